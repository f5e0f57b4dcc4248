//! A DNS server that says what a test wants, and remembers who asked, from which port and when.
//!
//! Written on hickory-proto rather than hickory-server, because a server that is right by design cannot be silent, truncated or garbled.

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use hickory_proto::{
    op::{Message, MessageType, ResponseCode},
    rr::{
        Name, RData, Record, RecordType,
        rdata::{A, AAAA, CNAME, SOA},
    },
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
    time::sleep,
};
use tokio_util::sync::CancellationToken;

use super::{BOUND, netns::Host, origin, watched::Watched};

/// What is answered to questions about one name.
#[derive(Clone, Debug)]
pub enum Answer {
    /// These addresses: A or AAAA as asked; without one of the kind asked for, an empty answer.
    Addresses {
        /// All of them, both kinds.
        addresses: Vec<IpAddr>,
        /// In seconds.
        ttl: u32,
        /// Whether each answer starts with another one, as load balancers' names do.
        rotate: bool,
    },
    /// An alias, followed by what is set for the name it leads to.
    Alias {
        /// The canonical name.
        to: String,
        /// In seconds.
        ttl: u32,
    },
    /// No address, and how many seconds that is good.
    None(u32),
    /// SERVFAIL, NXDOMAIN, REFUSED…
    Code(ResponseCode),
    /// Nothing at all.
    Silence,
    /// Bytes that are no answer, under the question's id.
    Garbage,
    /// By UDP only the flag that says so, by TCP the whole.
    Truncated(Box<Answer>),
    /// The same, late.
    Late(Duration, Box<Answer>),
    /// One answer for A, another for AAAA.
    Each(Box<Answer>, Box<Answer>),
    /// The same, but what comes from the source port that asks first is lost for ever, as on a path that a firewall has forgotten.
    LosingAPort(Box<Answer>),
}

impl Answer {
    /// Addresses in this order.
    ///
    /// # Panics
    /// When a text is not an address.
    #[track_caller]
    pub fn addresses(addresses: &[&str], ttl: u32) -> Self {
        let parse = |text: &&str| match text.parse() {
            Ok(address) => address,
            Err(error) => panic!("{text}: {error}"),
        };
        Self::Addresses {
            addresses: addresses.iter().map(parse).collect(),
            ttl,
            rotate: false,
        }
    }

    /// Another name.
    pub fn alias(to: &str, ttl: u32) -> Self {
        Self::Alias {
            to: to.to_owned(),
            ttl,
        }
    }

    /// Addresses that start with another one in each answer.
    #[track_caller]
    pub fn rotating(addresses: &[&str], ttl: u32) -> Self {
        match Self::addresses(addresses, ttl) {
            Self::Addresses { addresses, ttl, .. } => Self::Addresses {
                addresses,
                ttl,
                rotate: true,
            },
            other => other,
        }
    }
}

/// The script and what came of it.
#[derive(Debug, Default)]
struct Script {
    answers: BTreeMap<String, Answer>,
    /// In the order in which they came.
    questions: Vec<Question>,
    /// How many of them by name and kind.
    counts: BTreeMap<(String, RecordType), u64>,
    /// The port that [`Answer::LosingAPort`] loses, by name.
    lost: BTreeMap<String, u16>,
}

/// One that came.
#[derive(Clone, Debug)]
pub struct Question {
    /// Without its final dot.
    pub name: String,
    /// A or AAAA.
    pub kind: RecordType,
    /// Where it was sent from.
    pub port: u16,
    /// Whether by TCP.
    pub by_tcp: bool,
    /// When it came.
    pub at: Instant,
}

impl Script {
    fn count(&self, name: &str, kind: RecordType) -> u64 {
        let count = self.counts.get(&(name.to_owned(), kind));
        count.copied().unwrap_or(0)
    }
}

/// A name server on port 53 that runs until it is dropped. What it was not told about it answers with NXDOMAIN.
#[derive(Debug)]
pub struct Dns {
    address: SocketAddr,
    script: Arc<Watched<Script>>,
    stop: CancellationToken,
}

impl Dns {
    /// Serves UDP and TCP at `address` (`"10.0.0.2:53"`) of `host`.
    ///
    /// # Panics
    /// When that fails.
    #[track_caller]
    pub fn start(host: &Host, address: &str) -> Self {
        let address = origin::parse(address);
        let script = Arc::new(Watched::<Script>::default());
        let stop = CancellationToken::new();
        let sockets = host.run(async move {
            Ok::<_, io::Error>((UdpSocket::bind(address).await?, origin::listen(address)?))
        });
        let (udp, tcp) = sockets.unwrap_or_else(|error| panic!("{address}: {error}"));
        let serve = {
            let (script, stop) = (Arc::clone(&script), stop.clone());
            async move {
                tokio::select! {
                    () = stop.cancelled() => {}
                    () = by_udp(Arc::new(udp), Arc::clone(&script)) => {}
                    () = by_tcp(tcp, script, stop.clone()) => {}
                }
            }
        };
        host.spawn(serve);
        Self {
            address,
            script,
            stop,
        }
    }

    /// Where it serves.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Sets what is answered from now on for `name`, without its final dot.
    pub fn set(&self, name: &str, answer: Answer) {
        self.script.update(|script| {
            script.answers.insert(name.to_ascii_lowercase(), answer);
        });
    }

    /// How often A or AAAA of `name` was asked for.
    pub fn questions(&self, name: &str, kind: RecordType) -> u64 {
        let name = name.to_ascii_lowercase();
        self.script.look(|script| script.count(&name, kind))
    }

    /// Every question so far.
    pub fn asked(&self) -> Vec<Question> {
        self.script.look(|script| script.questions.clone())
    }

    /// How many questions came in all, and how many of them by TCP.
    pub fn totals(&self) -> (u64, u64) {
        self.script.look(|script| {
            let by_tcp = script.questions.iter().filter(|asked| asked.by_tcp);
            (script.questions.len() as u64, by_tcp.count() as u64)
        })
    }

    /// Waits until A or AAAA of `name` was asked for `n` times since the start.
    #[track_caller]
    pub fn wait_questions(&self, name: &str, kind: RecordType, n: u64) {
        let what = format!("{n} questions for {kind} of {name}");
        let name = name.to_ascii_lowercase();
        self.script.wait(&what, BOUND, |script| {
            (script.count(&name, kind) >= n).then_some(())
        });
    }

    /// Waits until A or AAAA of `name` was asked for `n` more times.
    #[track_caller]
    pub fn wait_more_questions(&self, name: &str, kind: RecordType, n: u64) {
        self.wait_questions(name, kind, self.questions(name, kind) + n);
    }

    /// Stops serving: its ports are closed.
    pub fn kill(&self) {
        self.stop.cancel();
    }
}

impl Drop for Dns {
    fn drop(&mut self) {
        self.kill();
    }
}

async fn by_udp(socket: Arc<UdpSocket>, script: Arc<Watched<Script>>) {
    let mut buffer = vec![0; 4096];
    loop {
        // An error is an ICMP message about an answer sent before.
        let Ok((n, from)) = socket.recv_from(&mut buffer).await else {
            continue;
        };
        let Some((reply, late)) = reply_to(&buffer[..n], &script, from, Transport::Udp) else {
            continue;
        };
        let socket = Arc::clone(&socket);
        tokio::spawn(async move {
            sleep(late).await;
            let _ = socket.send_to(&reply, from).await;
        });
    }
}

async fn by_tcp(listener: TcpListener, script: Arc<Watched<Script>>, stop: CancellationToken) {
    loop {
        let Ok((stream, from)) = listener.accept().await else {
            continue;
        };
        let (script, stop) = (Arc::clone(&script), stop.clone());
        tokio::spawn(async move {
            stop.run_until_cancelled(serve_tcp(stream, from, script))
                .await;
        });
    }
}

async fn serve_tcp(
    mut stream: TcpStream,
    from: SocketAddr,
    script: Arc<Watched<Script>>,
) -> io::Result<()> {
    loop {
        let n = stream.read_u16().await?;
        let mut question = vec![0; usize::from(n)];
        stream.read_exact(&mut question).await?;
        if let Some((reply, late)) = reply_to(&question, &script, from, Transport::Tcp) {
            sleep(late).await;
            let n = u16::try_from(reply.len()).map_err(io::Error::other)?;
            stream
                .write_all(&[&n.to_be_bytes(), reply.as_slice()].concat())
                .await?;
        }
    }
}

/// What fits into an answer by UDP, for one who does not say more (RFC 1035).
const MOST_BY_UDP: usize = 512;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Transport {
    Udp,
    Tcp,
}

/// The bytes to send, and how late; none for silence and for what is no question.
fn reply_to(
    bytes: &[u8],
    script: &Watched<Script>,
    from: SocketAddr,
    transport: Transport,
) -> Option<(Vec<u8>, Duration)> {
    let question = Message::from_vec(bytes).ok()?;
    let query = question.queries.first()?.clone();
    let name = plain(query.name());
    let mut reply = Message::new(
        question.metadata.id,
        MessageType::Response,
        question.metadata.op_code,
    );
    reply.metadata.recursion_desired = question.metadata.recursion_desired;
    reply.metadata.recursion_available = true;
    reply.add_query(query.clone());
    script.update(|script| {
        script.questions.push(Question {
            name: name.clone(),
            kind: query.query_type(),
            port: from.port(),
            by_tcp: transport == Transport::Tcp,
            at: Instant::now(),
        });
        let key = (name.clone(), query.query_type());
        let count = script.counts.entry(key).or_default();
        *count += 1;
        let turn = *count as usize;
        let mut late = Duration::ZERO;
        let (mut many, mut many_live) = (Vec::new(), 0);
        let mut at = query.name().clone();
        let mut answer = script.answers.get(&name).cloned();
        // More aliases than this are a loop.
        for _ in 0..16 {
            match answer {
                None => reply.metadata.response_code = ResponseCode::NXDomain,
                Some(Answer::None(good_for)) => {
                    let of = |text: &str| Name::from_ascii(text).expect("a name");
                    let (ns, admin) = (of("ns.example.internal."), of("admin.example.internal."));
                    let soa = RData::SOA(SOA::new(ns, admin, 1, 60, 60, 60, good_for));
                    reply.add_authority(Record::from_rdata(at.base_name(), good_for, soa));
                }
                Some(Answer::Code(code)) => reply.metadata.response_code = code,
                Some(Answer::Silence) => return None,
                Some(Answer::Garbage) => return Some((garbled(question.metadata.id), late)),
                Some(Answer::Each(four, six)) => {
                    answer = Some(match query.query_type() {
                        RecordType::A => *four,
                        _ => *six,
                    });
                    continue;
                }
                Some(Answer::LosingAPort(others)) => {
                    let lost = *script.lost.entry(name.clone()).or_insert(from.port());
                    if lost == from.port() {
                        return None;
                    }
                    answer = Some(*others);
                    continue;
                }
                Some(Answer::Late(more, then)) => {
                    late += more;
                    answer = Some(*then);
                    continue;
                }
                Some(Answer::Truncated(whole)) => {
                    if transport == Transport::Tcp {
                        answer = Some(*whole);
                        continue;
                    }
                    reply.metadata.truncation = true;
                }
                Some(Answer::Alias { to, ttl }) => {
                    let target = Name::from_ascii(format!("{to}.")).expect("a test's own name");
                    let alias = RData::CNAME(CNAME(target.clone()));
                    reply.add_answer(Record::from_rdata(at, ttl, alias));
                    answer = script.answers.get(&plain(&target)).cloned();
                    at = target;
                    continue;
                }
                Some(Answer::Addresses {
                    mut addresses,
                    ttl,
                    rotate,
                }) => {
                    addresses.retain(|address| match query.query_type() {
                        RecordType::A => address.is_ipv4(),
                        RecordType::AAAA => address.is_ipv6(),
                        _ => false,
                    });
                    if rotate && !addresses.is_empty() {
                        let first = turn % addresses.len();
                        addresses.rotate_left(first);
                    }
                    if addresses.len() > MANY {
                        (many, many_live) = (addresses, ttl);
                        break;
                    }
                    for address in addresses {
                        let data = match address {
                            IpAddr::V4(four) => RData::A(A(four)),
                            IpAddr::V6(six) => RData::AAAA(AAAA(six)),
                        };
                        reply.add_answer(Record::from_rdata(at.clone(), ttl, data));
                    }
                }
            }
            break;
        }
        let mut whole = reply.to_vec().ok()?;
        append(&mut whole, &many, many_live);
        if transport == Transport::Tcp || whole.len() <= MOST_BY_UDP {
            return Some((whole, late));
        }
        reply.metadata.truncation = true;
        reply.answers.clear();
        Some((reply.to_vec().ok()?, late))
    })
}

/// More of them are written by hand: hickory shortens the names of the first so many records only, and then 4,000 do not fit.
const MANY: usize = 100;

/// Appends answers for the name that the question is about.
fn append(reply: &mut Vec<u8>, addresses: &[IpAddr], ttl: u32) {
    const QUESTION: [u8; 2] = [0xc0, 12];
    for address in addresses {
        let (kind, data) = match address {
            IpAddr::V4(four) => (RecordType::A, four.octets().to_vec()),
            IpAddr::V6(six) => (RecordType::AAAA, six.octets().to_vec()),
        };
        reply.extend(QUESTION);
        reply.extend(u16::from(kind).to_be_bytes());
        reply.extend([0, 1]); // IN
        reply.extend(ttl.to_be_bytes());
        reply.extend((data.len() as u16).to_be_bytes());
        reply.extend(data);
    }
    if !addresses.is_empty() {
        reply[6..8].copy_from_slice(&(addresses.len() as u16).to_be_bytes());
    }
}

/// A header that promises an answer, and then not one.
fn garbled(id: u16) -> Vec<u8> {
    let mut bytes = id.to_be_bytes().to_vec();
    bytes.extend([0x81, 0x80, 0, 1, 0, 9, 0, 0, 0, 0, 0xff, 0xff, 0xff]);
    bytes
}

fn plain(name: &Name) -> String {
    let text = name.to_ascii().to_ascii_lowercase();
    text.trim_end_matches('.').to_owned()
}
