//! Sessions of all kinds that last until they are told to end, and know afterwards at both ends whether they were whole.
//!
//! What each end sends is a stream of its own, of which the other end checks every byte. The client's begins with a number that says its kind.

use std::{collections::BTreeMap, io, net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    net::{TcpListener, TcpSocket},
    time::sleep,
};
use tokio_util::sync::CancellationToken;

use crate::{
    harness::{
        agent::Agent,
        netns::Host,
        pattern::Random,
        stream::{self, End, within},
        watched::Watched,
    },
    scenarios::world::privatelink_header,
};

/// How long an operation of a session may take: as long as the whole test, for whoever listens until the end.
const PATIENCE: Duration = Duration::from_secs(300);
/// What those who talk say at once, and what those do who have much to say.
const WORD: u64 = 1000;
const BULK: u64 = 200_000;
/// What is read at once by who reads slowly, and how small his receive buffer is.
const SIP: u64 = 2000;
const NARROW: u32 = 8192;
/// Tells the server's streams from those of clients.
const SERVER: u64 = 1 << 40;

/// How a session goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    /// A word at the beginning, silence, and a word at the end.
    Idle,
    /// A word there, a word back.
    PingPong,
    /// Both have much to say, at once.
    Bulk,
    /// The client has ended his half; the server speaks on.
    ClientEnded,
    /// The server has ended his half; the client speaks on.
    ServerEnded,
    /// The server says more than the client reads.
    SlowClient,
    /// The client says more than the server reads.
    SlowServer,
    /// The server speaks before he has heard anything.
    ServerFirst,
    /// As ping-pong and as bulk, of an endpoint that has only so many bytes a second.
    PacedPingPong,
    PacedBulk,
}

impl Kind {
    const ALL: [Self; 10] = [
        Self::Idle,
        Self::PingPong,
        Self::Bulk,
        Self::ClientEnded,
        Self::ServerEnded,
        Self::SlowClient,
        Self::SlowServer,
        Self::ServerFirst,
        Self::PacedPingPong,
        Self::PacedBulk,
    ];

    /// Of the session with this number: most are idle, as they are.
    pub(super) fn of(number: u64) -> Self {
        match number % 20 {
            0..8 => Self::Idle,
            8..12 => Self::PingPong,
            other => Self::ALL[(other - 10) as usize],
        }
    }

    pub(super) fn is_paced(self) -> bool {
        matches!(self, Self::PacedPingPong | Self::PacedBulk)
    }

    /// What a client's stream begins with.
    fn seed(self, number: u64) -> u64 {
        number * 16 + self as u64
    }

    fn of_seed(seed: u64) -> io::Result<Self> {
        let kind = Self::ALL.get((seed % 16) as usize);
        kind.copied().ok_or_else(|| wrong("a session of no kind"))
    }
}

/// What one end has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Count {
    pub(super) sent: u64,
    pub(super) received: u64,
}

impl Count {
    fn of(agent: &Agent) -> Self {
        Self {
            sent: agent.sent(),
            received: agent.received(),
        }
    }
}

fn wrong(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

/// The other end's FIN comes next, behind bytes that are right.
async fn hear_out(agent: &mut Agent, seed: u64) -> io::Result<()> {
    match agent.expect_to_end(seed).await? {
        End::Fin => Ok(()),
        End::Reset => Err(wrong("reset")),
    }
}

/// Says something again and again until it is time to end, then ends the half.
async fn say_until(
    agent: &mut Agent,
    n: u64,
    rest: Duration,
    over: &CancellationToken,
) -> io::Result<()> {
    while !over.is_cancelled() {
        tokio::select! {
            sent = agent.send(n) => sent?,
            () = over.cancelled() => break,
        }
        pause(rest, over).await;
    }
    agent.finish()
}

/// Reads a little again and again until it is time to end, then all the rest.
async fn sip_until(agent: &mut Agent, seed: u64, over: &CancellationToken) -> io::Result<()> {
    while !over.is_cancelled() {
        tokio::select! {
            heard = agent.expect(seed, SIP) => heard?,
            () = over.cancelled() => break,
        }
        pause(Duration::from_millis(150), over).await;
    }
    hear_out(agent, seed).await
}

/// A rest is what a peer does, not a wait for something.
async fn pause(rest: Duration, over: &CancellationToken) {
    tokio::select! {
        () = sleep(rest) => {}
        () = over.cancelled() => {}
    }
}

/// A session's client, from beginning to end. `ready` is told when it is as it will be from then on.
pub(super) async fn client(
    to: SocketAddr,
    endpoint: &str,
    number: u64,
    ready: impl FnOnce(),
    over: CancellationToken,
) -> io::Result<(u64, Count)> {
    let kind = Kind::of(number);
    let seed = kind.seed(number);
    let socket = TcpSocket::new_v4()?;
    if kind == Kind::SlowClient {
        socket.set_recv_buffer_size(NARROW)?;
    }
    let stream = within(PATIENCE, socket.connect(to)).await?;
    let mut agent = Agent::of(stream)?.seed(seed).bound(PATIENCE);
    stream::write(agent.stream(), &privatelink_header(endpoint), |_| ()).await?;
    let mut theirs = seed | SERVER;
    if kind == Kind::ServerFirst {
        theirs = learn(&mut agent).await?;
        agent.expect(theirs, WORD - 8).await?;
    }
    let said = if kind == Kind::ServerEnded { 8 } else { WORD };
    agent.send(said).await?;
    if !matches!(
        kind,
        Kind::ServerEnded | Kind::ClientEnded | Kind::SlowServer
    ) {
        agent.expect(theirs, WORD).await?;
    }
    let mut random = Random::new(seed);
    let rest = Duration::from_millis(300 + random.below(600));
    match kind {
        Kind::ClientEnded => {
            agent.finish()?;
            ready();
            hear_out(&mut agent, theirs).await?;
        }
        Kind::ServerEnded => {
            hear_out(&mut agent, theirs).await?;
            ready();
            say_until(&mut agent, WORD, rest, &over).await?;
        }
        Kind::SlowClient => {
            ready();
            sip_until(&mut agent, theirs, &over).await?;
            agent.finish()?;
        }
        Kind::SlowServer => {
            ready();
            say_until(&mut agent, BULK, Duration::ZERO, &over).await?;
            hear_out(&mut agent, theirs).await?;
        }
        _ => {
            let word = match kind {
                Kind::Bulk | Kind::PacedBulk => BULK,
                _ => WORD,
            };
            ready();
            if kind == Kind::Idle {
                over.cancelled().await;
                agent.talk(word, theirs, word).await?;
            }
            while !over.is_cancelled() {
                agent.talk(word, theirs, word).await?;
                pause(rest, &over).await;
            }
            agent.finish()?;
            hear_out(&mut agent, theirs).await?;
        }
    }
    Ok((seed, Count::of(&agent)))
}

/// The number that the other end's stream begins with.
async fn learn(agent: &mut Agent) -> io::Result<u64> {
    let head = agent.read(8).await?;
    let head = head.try_into().map_err(|_| wrong("no head"))?;
    Ok(u64::from_be_bytes(head))
}

/// What the servers have seen.
#[derive(Debug, Default)]
struct Books {
    open: u64,
    /// Of sessions that were whole, by what the client's stream begins with.
    whole: BTreeMap<u64, Count>,
    wrong: Vec<String>,
}

/// The other ends.
#[derive(Debug)]
pub(super) struct Servers {
    books: Arc<Watched<Books>>,
}

impl Servers {
    /// Listens at both places of `host`: at the second one the server speaks first.
    #[track_caller]
    pub(super) fn start(host: &Host, places: [&str; 2], over: &CancellationToken) -> Self {
        let books = Arc::new(Watched::<Books>::default());
        for (place, speaks_first) in places.into_iter().zip([false, true]) {
            let address: SocketAddr = place.parse().expect("an address");
            let listener = host.run(async move {
                let socket = TcpSocket::new_v4()?;
                socket.set_reuseaddr(true)?;
                socket.bind(address)?;
                socket.listen(4096)
            });
            let listener = listener.unwrap_or_else(|error| panic!("{place}: {error}"));
            host.spawn(accept(listener, speaks_first, books.clone(), over.clone()));
        }
        Self { books }
    }

    /// Waits until all are over; what they counted.
    ///
    /// # Panics
    /// When one was not whole.
    #[track_caller]
    pub(super) fn wait_over(&self) -> BTreeMap<u64, Count> {
        let over = |books: &Books| (books.open == 0).then_some(());
        let became = self.books.becomes(PATIENCE, over);
        self.books.look(|books| {
            let some: Vec<_> = books.wrong.iter().take(10).collect();
            assert!(some.is_empty(), "{} were cut: {some:#?}", books.wrong.len());
            assert!(became.is_some(), "{} are still open", books.open);
            books.whole.clone()
        })
    }
}

async fn accept(
    listener: TcpListener,
    speaks_first: bool,
    books: Arc<Watched<Books>>,
    over: CancellationToken,
) {
    let mut number = 0;
    while let Ok((stream, _)) = listener.accept().await {
        number += 1;
        books.update(|books| books.open += 1);
        let (books, over) = (books.clone(), over.clone());
        tokio::spawn(async move {
            let first = speaks_first.then_some(number | SERVER << 1);
            let served = match Agent::of(stream) {
                Ok(agent) => server(agent.bound(PATIENCE), first, over).await,
                Err(error) => Err(error),
            };
            books.update(|books| {
                books.open -= 1;
                match served {
                    Ok((seed, count)) => drop(books.whole.insert(seed, count)),
                    Err(error) => books.wrong.push(error.to_string()),
                }
            });
        });
    }
}

async fn server(
    mut agent: Agent,
    speaks_first: Option<u64>,
    over: CancellationToken,
) -> io::Result<(u64, Count)> {
    if let Some(ours) = speaks_first {
        agent = agent.seed(ours);
        agent.send(WORD).await?;
    }
    let theirs = learn(&mut agent).await?;
    let kind = Kind::of_seed(theirs)?;
    let told = |error: io::Error| io::Error::other(format!("{kind:?} {theirs}: {error}"));
    if speaks_first.is_none() {
        agent = agent.seed(theirs | SERVER);
    }
    serve(&mut agent, kind, theirs, over).await.map_err(told)?;
    Ok((theirs, Count::of(&agent)))
}

async fn serve(
    agent: &mut Agent,
    kind: Kind,
    theirs: u64,
    over: CancellationToken,
) -> io::Result<()> {
    if kind != Kind::ServerEnded {
        agent.expect(theirs, WORD - 8).await?;
    }
    match kind {
        Kind::ClientEnded => {
            hear_out(agent, theirs).await?;
            say_until(agent, WORD, Duration::from_millis(500), &over).await
        }
        Kind::ServerEnded => {
            agent.send(WORD).await?;
            agent.finish()?;
            hear_out(agent, theirs).await
        }
        Kind::SlowClient => {
            agent.send(WORD).await?;
            say_until(agent, BULK, Duration::ZERO, &over).await?;
            hear_out(agent, theirs).await
        }
        Kind::SlowServer => {
            sip_until(agent, theirs, &over).await?;
            agent.finish()
        }
        _ => {
            agent.send(WORD).await?;
            loop {
                let heard = match kind {
                    // Both at once; what was begun when the client ended his half is part of what he hears.
                    Kind::Bulk | Kind::PacedBulk => agent.talk(BULK, theirs, BULK).await,
                    _ => agent.expect(theirs, WORD).await,
                };
                match heard {
                    Ok(()) if matches!(kind, Kind::Bulk | Kind::PacedBulk) => {}
                    Ok(()) => agent.send(WORD).await?,
                    Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                        return agent.finish();
                    }
                    Err(error) => return Err(error),
                }
            }
        }
    }
}
