//! Active health checks: whether an address takes a connection, and answers as it should.
//!
//! [`probe`] is one question to one address; [`keep_probing`] asks again and again, for ever, and tells each outcome to its caller, who counts
//! how many of a kind follow each other. Both belong on the control thread: a few connections a second, and workers never wait for them.

use std::convert::Infallible;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

use crate::config::{Check, HealthCheck, SendProxy, SocketOptions, duration_text};
use crate::leg;
use crate::proxy_protocol::encode;

/// Checks under way at once, over all upstreams: what a look at many addresses may take of the descriptors that sessions need.
pub const AT_ONCE: usize = 64;

/// Addresses of one upstream that are first asked all together; more are spread over the first interval.
const FEW: usize = 16;

/// How much of an answer to an exchange is searched.
const ANSWER: usize = 4096;

/// How long the head of an HTTP answer may be, up to the end of the status line that counts.
const HEAD: usize = 8192;

/// How long, and for how many bytes, an address may take to end the connection after a good answer.
const PARTING: Duration = Duration::from_secs(1);
const PARTING_BYTES: usize = 1 << 20;

/// How much of a wrong answer is shown.
const SHOWN: usize = 40;

/// Why an address is not taken for healthy.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// We have no socket to ask with: this says nothing of the address.
    #[error("cannot ask {at}: {error}{}", ours_hint(.error))]
    Ours {
        /// Who was to be asked.
        at: SocketAddr,
        /// What is missing.
        error: io::Error,
    },
    /// No connection.
    #[error("cannot connect to {at}: {error}{}", connect_hint(.error))]
    Connect {
        /// Who was asked.
        at: SocketAddr,
        /// Why not.
        error: io::Error,
    },
    /// No answer to the SYN.
    #[error(
        "cannot connect to {at}: no answer within {}; look at security groups, routes, and whether the host is up",
        duration_text(*.within)
    )]
    Unanswered {
        /// Who was asked.
        at: SocketAddr,
        /// `health.timeout`.
        within: Duration,
    },
    /// A connection, and then not the whole answer in time.
    #[error(
        "{at} takes connections and does not answer within {}; it may hang, or wait for TLS or for a PROXY header (proxy_protocol)",
        duration_text(*.within)
    )]
    Silent {
        /// Who was asked.
        at: SocketAddr,
        /// `health.timeout`.
        within: Duration,
    },
    /// A connection that broke.
    #[error("{at} breaks the connection: {error}{}", wrong_port())]
    Broken {
        /// Who was asked.
        at: SocketAddr,
        /// How.
        error: io::Error,
    },
    /// A connection that ended too soon.
    #[error("{at} closes the connection before a whole answer; {}{}", got(.answer), wrong_port())]
    Closed {
        /// Who was asked.
        at: SocketAddr,
        /// What it sent until then.
        answer: Vec<u8>,
    },
    /// An answer without what was expected.
    #[error(
        "the answer of {at} does not contain \"{}\" in its first {ANSWER} bytes; {}",
        shown(.expect),
        got(.answer)
    )]
    Unexpected {
        /// Who was asked.
        at: SocketAddr,
        /// `health.expect`.
        expect: Vec<u8>,
        /// What it sent.
        answer: Vec<u8>,
    },
    /// An answer that is no HTTP/1.
    #[error("the answer of {at} is no HTTP/1; {}{}", got(.answer), wrong_port())]
    NotHttp {
        /// Who was asked.
        at: SocketAddr,
        /// What it sent.
        answer: Vec<u8>,
    },
    /// A status outside the range.
    #[error(
        "{at} answers with status {status}, good are {} to {}; look at its log, or at path and host of the check",
        .good.0, .good.1
    )]
    Status {
        /// Who was asked.
        at: SocketAddr,
        /// What it said.
        status: u16,
        /// `health.status`.
        good: (u16, u16),
    },
}

impl ProbeError {
    /// Whether it is we who lack something, so that nothing was learnt of the address.
    #[must_use]
    pub fn is_ours(&self) -> bool {
        matches!(self, Self::Ours { .. })
    }
}

fn ours_hint(error: &io::Error) -> &'static str {
    match Errno::from_io_error(error) {
        Some(Errno::MFILE | Errno::NFILE) => "; raise LimitNOFILE",
        Some(Errno::ADDRNOTAVAIL) => {
            "; all ports towards it are in use: widen net.ipv4.ip_local_port_range"
        }
        _ => "",
    }
}

fn connect_hint(error: &io::Error) -> &'static str {
    match Errno::from_io_error(error) {
        Some(Errno::CONNREFUSED) => "; nothing listens there: look at the service, or at the port",
        Some(Errno::HOSTUNREACH | Errno::NETUNREACH) => {
            "; look at the route tables of both networks"
        }
        _ => "",
    }
}

fn wrong_port() -> &'static str {
    "; it may want TLS or a PROXY header (proxy_protocol), or be another service: health.port may say where to ask"
}

fn shown(bytes: &[u8]) -> String {
    let more = if bytes.len() > SHOWN { "…" } else { "" };
    format!("{}{more}", bytes[..bytes.len().min(SHOWN)].escape_ascii())
}

fn got(answer: &[u8]) -> String {
    match answer {
        [] => "it said nothing".to_owned(),
        _ => format!("it said \"{}\"", shown(answer)),
    }
}

/// Asks `address` once, as `check` says: with its port in place of the address's own where it has one, and `target` as the host of an HTTP
/// request that names none. What `proxy` says goes first: a header for a connection that is ours and no client's. `socket` are the options
/// of the upstream's leg, so that what is asked is what sessions will use.
///
/// A good answer is followed by an orderly end, for which the address has a second; it is in the time that this takes, and not in the one
/// that it returns: from the first SYN to the answer. After anything else the connection is reset.
///
/// # Errors
/// See [`ProbeError`]; after `check.timeout` at the latest.
pub async fn probe(
    address: SocketAddr,
    target: &str,
    check: &HealthCheck,
    proxy: SendProxy,
    socket: &SocketOptions,
) -> Result<Duration, ProbeError> {
    let at = SocketAddr::new(address.ip(), check.port.unwrap_or(address.port()));
    let (began, within) = (Instant::now(), check.timeout);
    let deadline = began + within;
    let connected = timeout_at(deadline, connect(at, socket)).await;
    let mut stream = connected.map_err(|_| ProbeError::Unanswered { at, within })??;
    let asked = ask(&mut stream, at, target, &check.check, proxy);
    let asked = timeout_at(deadline, asked).await;
    asked.map_err(|_| ProbeError::Silent { at, within })??;
    let took = began.elapsed();
    // Whoever does not part in time is left.
    let _ = timeout(PARTING, part(&mut stream, &check.check)).await;
    leg::close_in_order(&stream);
    Ok(took)
}

async fn connect(at: SocketAddr, options: &SocketOptions) -> Result<TcpStream, ProbeError> {
    let ours = |error| ProbeError::Ours { at, error };
    let kind = Type::STREAM.nonblocking().cloexec();
    let socket = Socket::new(Domain::for_address(at), kind, Some(Protocol::TCP)).map_err(ours)?;
    leg::prepare(&socket).map_err(ours)?;
    leg::shape(&socket, options).map_err(ours)?;
    let connected = TcpSocket::from_std_stream(socket.into()).connect(at).await;
    connected.map_err(|error| match Errno::from_io_error(&error) {
        Some(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM | Errno::ADDRNOTAVAIL) => {
            ProbeError::Ours { at, error }
        }
        _ => ProbeError::Connect { at, error },
    })
}

async fn ask(
    stream: &mut TcpStream,
    at: SocketAddr,
    target: &str,
    check: &Check,
    proxy: SendProxy,
) -> Result<(), ProbeError> {
    let mut question = encode::our_own(proxy).to_vec();
    match check {
        Check::Tcp => {}
        Check::Exchange { send, .. } => question.extend_from_slice(send),
        Check::Http { path, host, .. } => {
            let host = host.as_deref().unwrap_or(target);
            let version = env!("CARGO_PKG_VERSION");
            let request = format!(
                "GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: tollgate/{version}\r\nAccept: */*\r\nConnection: close\r\n\r\n"
            );
            question.extend_from_slice(request.as_bytes());
        }
    }
    // One that has answered already and closed is good: what counts is what can be read.
    let wrote = stream.write_all(&question).await;
    match check {
        Check::Tcp => wrote.map_err(|error| ProbeError::Broken { at, error }),
        Check::Exchange { expect, .. } => read_expected(stream, at, expect).await,
        Check::Http { status, .. } => match read_status(stream, at).await? {
            got if (status.0..=status.1).contains(&got) => Ok(()),
            got => Err(ProbeError::Status {
                at,
                status: got,
                good: *status,
            }),
        },
    }
}

/// Reads until the bytes are there, or so many others that they do not count any more.
async fn read_expected(
    stream: &mut (impl AsyncRead + Unpin),
    at: SocketAddr,
    expect: &[u8],
) -> Result<(), ProbeError> {
    let mut answer = Vec::new();
    loop {
        // Where the bytes may begin that were not complete before.
        let from = answer.len().saturating_sub(expect.len().saturating_sub(1));
        let more = read_more(stream, at, &mut answer, ANSWER).await?;
        let mut places = answer[from..].windows(expect.len().max(1));
        if places.any(|place| place == expect) {
            return Ok(());
        }
        let expect = expect.to_vec();
        match more {
            More::Read => {}
            More::Full => return Err(ProbeError::Unexpected { at, expect, answer }),
            More::End if answer.is_empty() => return Err(ProbeError::Closed { at, answer }),
            More::End => return Err(ProbeError::Unexpected { at, expect, answer }),
        }
    }
}

/// Reads up to the end of the first status line that is a final one.
async fn read_status(
    stream: &mut (impl AsyncRead + Unpin),
    at: SocketAddr,
) -> Result<u16, ProbeError> {
    let mut answer = Vec::new();
    loop {
        let more = read_more(stream, at, &mut answer, HEAD).await?;
        match status_of(&answer) {
            Ok(Some(status)) => return Ok(status),
            Err(NotHttp) => return Err(ProbeError::NotHttp { at, answer }),
            Ok(None) => match more {
                More::Read => {}
                More::Full => return Err(ProbeError::NotHttp { at, answer }),
                More::End => return Err(ProbeError::Closed { at, answer }),
            },
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
struct NotHttp;

/// The status of an answer as far as it has been read: `None` while its line is not whole. Interim answers (1xx) are passed over.
fn status_of(mut answer: &[u8]) -> Result<Option<u16>, NotHttp> {
    const BEGIN: &[u8] = b"HTTP/1.";
    loop {
        let known = answer.len().min(BEGIN.len());
        if answer[..known] != BEGIN[..known] {
            return Err(NotHttp);
        }
        let Some(end) = answer.iter().position(|byte| *byte == b'\n') else {
            return Ok(None);
        };
        let line = answer[..end].strip_suffix(b"\r").unwrap_or(&answer[..end]);
        let digits = match &line[BEGIN.len().min(line.len())..] {
            [minor, b' ', digits @ ..] if minor.is_ascii_digit() => digits,
            _ => return Err(NotHttp),
        };
        // What follows is a reason for people, and some leave it out.
        let digits = match digits {
            [_, _, _, b' ', ..] => &digits[..3],
            [_, _, _] => digits,
            _ => return Err(NotHttp),
        };
        let number = std::str::from_utf8(digits).ok();
        let number = number.and_then(|digits| digits.parse::<u16>().ok());
        match number.filter(|_| digits[0] != b'+').ok_or(NotHttp)? {
            0..=99 => return Err(NotHttp),
            100..=199 => {
                let empty_line = answer.windows(4).position(|four| four == b"\r\n\r\n");
                match empty_line {
                    Some(at) => answer = &answer[at + 4..],
                    None => return Ok(None),
                }
            }
            number => return Ok(Some(number)),
        }
    }
}

/// How reading went on.
enum More {
    /// There is more than before.
    Read,
    /// There is as much as may be.
    Full,
    /// The other side has ended.
    End,
}

async fn read_more(
    stream: &mut (impl AsyncRead + Unpin),
    at: SocketAddr,
    answer: &mut Vec<u8>,
    most: usize,
) -> Result<More, ProbeError> {
    let room = (most - answer.len()) as u64;
    let read = stream.take(room).read_buf(answer).await;
    match read.map_err(|error| ProbeError::Broken { at, error })? {
        0 => Ok(More::End),
        _ if answer.len() == most => Ok(More::Full),
        _ => Ok(More::Read),
    }
}

/// Ends the connection as both sides expect it: closing a socket with bytes to be read would reset it, and the other side would have an
/// error to tell of. An HTTP server was asked to close by itself; others hear that we have ended.
async fn part(stream: &mut TcpStream, check: &Check) -> io::Result<()> {
    if !matches!(check, Check::Http { .. }) {
        stream.shutdown().await?;
    }
    let mut rest = vec![0; 16 * 1024];
    let mut read = 0;
    while read < PARTING_BYTES {
        match stream.read(&mut rest).await? {
            0 => break,
            n => read += n,
        }
    }
    Ok(())
}

/// Who is asked, and how.
#[derive(Debug, Clone)]
pub struct Subject {
    /// One of an upstream's addresses.
    pub address: SocketAddr,
    /// The target that it belongs to, as configured.
    pub target: Arc<str>,
    /// What is asked.
    pub check: HealthCheck,
    /// What goes first.
    pub proxy: SendProxy,
    /// The options of the upstream's leg.
    pub socket: SocketOptions,
}

/// Asks for ever: first after `first_after` (see [`first_after`]), then an interval after the last question began, give or take a tenth, so
/// that many relays do not ask in step. Each question waits for one of the `places`, of which the process has [`AT_ONCE`]; waiting is in no
/// timeout. `report` is told each outcome. Dropping it ends it, with a question that is under way.
pub async fn keep_probing(
    subject: Subject,
    first_after: Duration,
    places: Arc<Semaphore>,
    report: impl FnMut(Result<Duration, ProbeError>),
) -> Infallible {
    let ask = async || {
        let Subject {
            address,
            target,
            check,
            proxy,
            socket,
        } = &subject;
        let _place = places.acquire().await;
        probe(*address, target, check, *proxy, socket).await
    };
    repeat(subject.check.interval, first_after, ask, report).await
}

/// When an upstream's `nth` address of `of` is first asked: at once where they are few, else at its place in the first interval.
#[must_use]
pub fn first_after(nth: usize, of: usize, interval: Duration) -> Duration {
    match of > FEW {
        true => interval.mul_f64(nth.min(of) as f64 / of as f64),
        false => Duration::ZERO,
    }
}

async fn repeat<T>(
    interval: Duration,
    first_after: Duration,
    mut ask: impl AsyncFnMut() -> T,
    mut report: impl FnMut(T),
) -> Infallible {
    let mut next = Instant::now() + first_after;
    loop {
        sleep_until(next).await;
        next = Instant::now() + jittered(interval);
        report(ask().await);
    }
}

/// An interval, give or take a tenth.
fn jittered(interval: Duration) -> Duration {
    // Each of them has keys of its own, from the system's random numbers.
    let random = RandomState::new().hash_one(0) as f64 / u64::MAX as f64;
    interval.mul_f64(0.9 + 0.2 * random)
}

#[cfg(test)]
#[path = "probe_tests.rs"]
mod tests;
