//! Sessions that follow a plan which the client tells the origin in its first bytes, so that both ends know what is to come, count what came, and
//! know afterwards whether the session was whole or cut.

use std::{
    collections::BTreeMap,
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::net::{TcpListener, TcpStream};

use crate::harness::{
    BOUND,
    netns::Host,
    nlb::header,
    pattern::{Pattern, Random},
    stream::{self, CHUNK, End, within},
    watched::Watched,
};

/// Number, bytes each way and manner: what a client's stream begins with.
const HEAD: u64 = 32;
/// Tells the origin's stream from the client's.
const ANSWER: u64 = 1 << 40;

/// How a session goes and ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Manner {
    /// Both speak at once and end in order.
    Both,
    /// The client speaks and ends its half; then the origin speaks.
    ClientFirst,
    /// The origin speaks and ends its half; then the client goes on.
    UpstreamFirst,
    /// The client resets when it has everything and everything of it has arrived.
    ClientResets,
    /// The same by the origin.
    UpstreamResets,
    /// The client resets in the middle.
    ClientCuts,
    /// The origin resets in the middle.
    UpstreamCuts,
    /// An endpoint that has no route.
    Stranger,
    /// A header whose checksum is wrong.
    BadHeader,
}

impl Manner {
    const PLANNED: [Self; 7] = [
        Self::Both,
        Self::ClientFirst,
        Self::UpstreamFirst,
        Self::ClientResets,
        Self::UpstreamResets,
        Self::ClientCuts,
        Self::UpstreamCuts,
    ];

    /// Whether the relay is to turn it away.
    pub(super) fn refused(self) -> bool {
        matches!(self, Self::Stranger | Self::BadHeader)
    }

    /// The reason that the relay must give for a session that was whole.
    pub(super) fn reason(self) -> &'static str {
        match self {
            Self::ClientResets => "client_reset",
            Self::UpstreamResets => "upstream_reset",
            _ => "completed",
        }
    }
}

/// One session, before it begins.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) number: u64,
    pub(super) endpoint: String,
    /// Index into [`SERVICES`](super::world::SERVICES).
    pub(super) service: usize,
    pub(super) manner: Manner,
    /// Bytes to the upstream, the head among them, and to the client.
    pub(super) bytes: [u64; 2],
}

impl Plan {
    /// A session of any manner: mostly small, some as large as a pipe or several.
    pub(super) fn random(number: u64, endpoints: u64, random: &mut Random) -> Self {
        let mut size = || match random.below(6) {
            0..=2 => random.below(3000),
            3..=4 => random.below(60_000),
            _ => random.below(800_000),
        };
        let bytes = [HEAD + 1 + size(), size()];
        let endpoint = random.below(endpoints);
        let (manner, service) = match random.below(20) {
            18 => (Manner::Stranger, 1),
            19 => (Manner::BadHeader, random.below(2)),
            other => (Manner::PLANNED[other as usize % 7], random.below(2)),
        };
        let endpoint = match manner {
            Manner::Stranger => format!("stranger-{}", endpoint % 10),
            _ => endpoint_id(endpoint),
        };
        Self {
            number,
            endpoint,
            service: service as usize,
            manner,
            bytes,
        }
    }

    /// Where the header says that the client is; no two sessions come from the same place.
    pub(super) fn client(&self) -> SocketAddr {
        let [high, low] = ((self.number / 60_000) as u16).to_be_bytes();
        let port = 1024 + (self.number % 60_000) as u16;
        (Ipv4Addr::new(172, 31, high, low), port).into()
    }

    fn header(&self) -> Vec<u8> {
        let service = "172.31.255.31:80".parse().expect("an address");
        let mut header = header::proxy(self.client(), service, Some(&self.endpoint));
        if self.manner == Manner::BadHeader {
            *header.last_mut().expect("it is long") ^= 1;
        }
        header
    }

    fn head(&self) -> [u8; HEAD as usize] {
        let manner = Manner::PLANNED
            .iter()
            .position(|manner| *manner == self.manner);
        let numbers = [
            self.number,
            self.bytes[0],
            self.bytes[1],
            manner.unwrap_or_default() as u64,
        ];
        let mut head = [0; HEAD as usize];
        for (into, number) in head.chunks_mut(8).zip(numbers) {
            into.copy_from_slice(&number.to_be_bytes());
        }
        head
    }
}

/// The id of an endpoint of these tests.
pub(super) fn endpoint_id(number: u64) -> String {
    format!("vpce-{number:017x}")
}

/// What one end of a session has done so far.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Side {
    /// Bytes that the kernel took.
    pub(super) sent: u64,
    /// Bytes that were read, each of them right.
    pub(super) received: u64,
    /// Everything went as planned.
    pub(super) whole: bool,
}

/// One end of a session, at work.
struct Leg<'a> {
    stream: &'a TcpStream,
    head: Option<[u8; HEAD as usize]>,
    says: Pattern,
    hears: Pattern,
    side: &'a Mutex<Side>,
}

impl Leg<'_> {
    fn side<R>(&self, change: impl FnOnce(&mut Side) -> R) -> R {
        change(&mut self.side.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Sends until so many bytes of the stream are sent.
    async fn say(&self, until: u64) -> io::Result<()> {
        let mut chunk = vec![0; CHUNK.min(until as usize)];
        loop {
            let offset = self.side(|side| side.sent);
            let piece = until.saturating_sub(offset).min(CHUNK as u64) as usize;
            if piece == 0 {
                return Ok(());
            }
            self.says.fill(offset, &mut chunk[..piece]);
            if let Some(head) = &self.head
                && let Some(rest) = head.get(offset as usize..)
            {
                let n = rest.len().min(piece);
                chunk[..n].copy_from_slice(&rest[..n]);
            }
            stream::write(self.stream, &chunk[..piece], |n| {
                self.side(|side| side.sent += n as u64);
            })
            .await?;
        }
    }

    /// Reads until so many bytes of the stream are read, or to its end.
    async fn hear(&self, until: u64) -> io::Result<Option<End>> {
        loop {
            let offset = self.side(|side| side.received);
            let room = until.saturating_sub(offset).min(CHUNK as u64) as usize;
            if room == 0 {
                return Ok(None);
            }
            let read = stream::read_at_most(self.stream, room, |bytes| {
                self.hears.check(offset, bytes)?;
                self.side(|side| side.received += bytes.len() as u64);
                Ok::<_, io::Error>(())
            });
            match read.await {
                Ok(Some(checked)) => checked?,
                Ok(None) => return Ok(Some(End::Fin)),
                Err(_) => return Ok(Some(End::Reset)),
            }
        }
    }

    async fn hear_out(&self) -> io::Result<End> {
        let end = self.hear(u64::MAX).await?;
        Ok(end.expect("a stream has an end"))
    }

    fn finish(&self) -> io::Result<()> {
        stream::finish(self.stream)
    }
}

/// A session that is over, as its client saw it.
#[derive(Clone, Debug)]
pub(super) struct Outcome {
    pub(super) plan: Plan,
    pub(super) client: Side,
}

/// Runs a session as its client, as the balancer's node sends it on. `Err` when the relay could not even be connected to, so that there was none.
///
/// # Panics
/// When a byte is wrong, or it takes longer than anything here may.
pub(super) async fn run(plan: Plan, to: SocketAddr) -> io::Result<Outcome> {
    let stream = within(BOUND, TcpStream::connect(to)).await?;
    let header = plan.header();
    run_on(stream, plan, &header).await
}

/// As [`run`], on a connection that is there, behind this header: none where a balancer is to write it.
pub(super) async fn run_on(stream: TcpStream, plan: Plan, header: &[u8]) -> io::Result<Outcome> {
    // Fails on one that was reset already: then its first write says so.
    let _ = stream.set_nodelay(true);
    let side = Mutex::new(Side::default());
    let end = Leg {
        stream: &stream,
        head: Some(plan.head()),
        says: Pattern::new(plan.number),
        hears: Pattern::new(plan.number | ANSWER),
        side: &side,
    };
    let went = within(3 * BOUND, follow(&plan, header, &end)).await;
    match went {
        Ok(whole) => end.side(|side| side.whole = whole),
        Err(error) => {
            // A byte that is wrong, or a session that hangs, is what all this is about.
            assert!(broke(&error), "{plan:?} {:?}: {error}", side.lock());
            // What had arrived before is counted, but by one that left it there on purpose.
            if plan.manner != Manner::ClientCuts {
                end.hear_out().await?;
            }
        }
    }
    if matches!(plan.manner, Manner::ClientResets | Manner::ClientCuts) {
        stream::reset(stream);
    }
    let client = *side.lock().unwrap_or_else(PoisonError::into_inner);
    Ok(Outcome { plan, client })
}

/// Whether an error is one of a connection that was cut.
fn broke(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe | io::ErrorKind::NotConnected
    )
}

/// The client's part; whether all went as planned.
async fn follow(plan: &Plan, header: &[u8], end: &Leg<'_>) -> io::Result<bool> {
    let [up, down] = plan.bytes;
    stream::write(end.stream, header, |_| ()).await?;
    let all = |end: End, side: Side| end == End::Fin && side.received == down;
    match plan.manner {
        Manner::Both => {
            let say = async {
                end.say(up).await?;
                end.finish()
            };
            let ((), heard) = tokio::try_join!(say, end.hear_out())?;
            Ok(all(heard, end.side(|side| *side)))
        }
        Manner::ClientFirst => {
            end.say(up).await?;
            end.finish()?;
            let heard = end.hear_out().await?;
            Ok(all(heard, end.side(|side| *side)))
        }
        Manner::UpstreamFirst => {
            end.say(HEAD).await?;
            let heard = end.hear_out().await?;
            end.say(up).await?;
            end.finish()?;
            Ok(all(heard, end.side(|side| *side)))
        }
        Manner::ClientResets => {
            end.say(up).await?;
            Ok(end.hear(down).await?.is_none())
        }
        Manner::UpstreamResets => {
            end.say(up - 1).await?;
            let heard = end.hear(down).await?;
            end.say(up).await?;
            Ok(heard.is_none() && end.hear_out().await? == End::Reset)
        }
        Manner::ClientCuts => {
            let say = async {
                end.say(HEAD + (up - HEAD) / 2).await?;
                Err::<(), _>(io::Error::from(io::ErrorKind::ConnectionReset))
            };
            tokio::try_join!(say, end.hear_out())?;
            Ok(false)
        }
        Manner::UpstreamCuts => {
            tokio::try_join!(end.say(up), end.hear_out())?;
            Ok(false)
        }
        Manner::Stranger | Manner::BadHeader => {
            let heard = end.hear_out().await?;
            Ok(heard == End::Reset && end.side(|side| side.received == 0))
        }
    }
}

/// An origin that follows its clients' plans.
#[derive(Debug)]
pub(super) struct Planned {
    books: Arc<Books>,
}

#[derive(Debug, Default)]
struct Books {
    sessions: Mutex<BTreeMap<u64, Arc<Mutex<Side>>>>,
    open: Watched<u64>,
    wrong: Mutex<Vec<String>>,
    /// Bytes of sessions that were cut within their heads, so that nobody knows whose they are.
    stray: AtomicU64,
}

impl Planned {
    /// Listens on `address` of `host`.
    #[track_caller]
    pub(super) fn start(host: &Host, address: &str) -> Self {
        let books = Arc::new(Books::default());
        let address = address.parse().expect("an address");
        let listener = host.run(async move { listen(address) });
        let listener = listener.unwrap_or_else(|error| panic!("{address}: {error}"));
        let accept = Arc::clone(&books);
        host.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                accept.open.update(|open| *open += 1);
                let books = Arc::clone(&accept);
                tokio::spawn(async move {
                    books.serve(stream).await;
                    books.open.update(|open| *open -= 1);
                });
            }
        });
        Self { books }
    }

    /// Waits until no session is open, and returns all that there were.
    #[track_caller]
    pub(super) fn wait_over(&self) -> BTreeMap<u64, Side> {
        let bound = 3 * BOUND;
        self.books
            .open
            .wait("the origin's sessions to be over", bound, |open| {
                (*open == 0).then_some(())
            });
        let wrong = self
            .books
            .wrong
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        assert!(wrong.is_empty(), "{wrong:#?}");
        let sessions = self.books.sessions.lock();
        let sessions = sessions.unwrap_or_else(PoisonError::into_inner);
        let side = |side: &Arc<Mutex<Side>>| *side.lock().unwrap_or_else(PoisonError::into_inner);
        sessions
            .iter()
            .map(|(number, of)| (*number, side(of)))
            .collect()
    }

    /// Bytes of sessions that were cut before they had said whose they are.
    pub(super) fn stray(&self) -> u64 {
        self.books.stray.load(Ordering::Relaxed)
    }
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let listener = std::net::TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener)
}

impl Books {
    async fn serve(&self, stream: TcpStream) {
        let _ = stream.set_nodelay(true);
        let mut head = Vec::new();
        while head.len() < HEAD as usize {
            let room = HEAD as usize - head.len();
            let read = stream::read_at_most(&stream, room, |bytes| head.extend_from_slice(bytes));
            if !matches!(read.await, Ok(Some(()))) {
                self.stray.fetch_add(head.len() as u64, Ordering::Relaxed);
                return;
            }
        }
        let numbers: Vec<u64> = head
            .chunks_exact(8)
            .map(|eight| u64::from_be_bytes(eight.try_into().expect("eight")))
            .collect();
        let [number, up, down, manner] = numbers[..] else {
            return;
        };
        let side = Arc::new(Mutex::new(Side {
            received: HEAD,
            ..Side::default()
        }));
        let before = {
            let sessions = self.sessions.lock();
            let mut sessions = sessions.unwrap_or_else(PoisonError::into_inner);
            sessions.insert(number, Arc::clone(&side))
        };
        let end = Leg {
            stream: &stream,
            head: None,
            says: Pattern::new(number | ANSWER),
            hears: Pattern::new(number),
            side: &side,
        };
        let manner = Manner::PLANNED[manner as usize % 7];
        let went = within(3 * BOUND, answer(manner, up, down, &end)).await;
        let wrong = match went {
            Ok(whole) => {
                end.side(|side| side.whole = whole);
                before.is_some().then(|| "a second connection".to_owned())
            }
            Err(error) if !broke(&error) => Some(error.to_string()),
            Err(_) if manner == Manner::UpstreamCuts => None,
            // What had arrived before is counted, but by one that left it there on purpose.
            Err(_) => end.hear_out().await.err().map(|error| error.to_string()),
        };
        if let Some(wrong) = wrong {
            let mut list = self.wrong.lock().unwrap_or_else(PoisonError::into_inner);
            list.push(format!("session {number}: {wrong}"));
        }
        if matches!(manner, Manner::UpstreamResets | Manner::UpstreamCuts) {
            stream::reset(stream);
        }
    }
}

/// The origin's part; whether all went as planned.
async fn answer(manner: Manner, up: u64, down: u64, end: &Leg<'_>) -> io::Result<bool> {
    let all = |heard: End| heard == End::Fin && end.side(|side| side.received) == up;
    match manner {
        Manner::Both => {
            let say = async {
                end.say(down).await?;
                end.finish()
            };
            let ((), heard) = tokio::try_join!(say, end.hear_out())?;
            Ok(all(heard))
        }
        Manner::ClientFirst => {
            let heard = end.hear_out().await?;
            end.say(down).await?;
            end.finish()?;
            Ok(all(heard))
        }
        Manner::UpstreamFirst => {
            end.say(down).await?;
            end.finish()?;
            Ok(all(end.hear_out().await?))
        }
        Manner::ClientResets | Manner::UpstreamResets => {
            let last = u64::from(manner == Manner::UpstreamResets);
            let heard = end.hear(up - last).await?;
            end.say(down).await?;
            if manner == Manner::ClientResets {
                // However it learns of it.
                end.hear_out().await?;
            }
            Ok(heard.is_none() && end.hear(up).await?.is_none())
        }
        Manner::UpstreamCuts => {
            let hear = async {
                end.hear(HEAD + (up - HEAD) / 2).await?;
                Err::<(), _>(io::Error::from(io::ErrorKind::ConnectionReset))
            };
            tokio::try_join!(hear, end.say(down))?;
            Ok(false)
        }
        _ => {
            tokio::try_join!(end.hear_out(), end.say(down))?;
            Ok(false)
        }
    }
}
