//! Asks name servers: one try after the other, each with a socket and a source port of its own, and never more packets a second than
//! allowed.
//!
//! Sockets, messages and the checks against forged answers are hickory's; the order of servers, tries and aliases is decided here.
//! hickory's own resolver never asks the second server where the first one is silent or fails (its bound for all servers is the one for
//! a single server, and SERVFAIL ends the round), sends up to nine packets for one question, and keeps a TCP connection for the next.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::{RuntimeProvider, TokioRuntimeProvider};
use hickory_resolver::net::tcp::TcpClientStream;
use hickory_resolver::net::udp::UdpClientStream;
use hickory_resolver::net::xfer::{DnsHandle, DnsRequestSender, FirstAnswer};
use hickory_resolver::proto::op::{
    DnsRequest, DnsRequestOptions, DnsResponse, Message, Query, ResponseCode,
};
use hickory_resolver::proto::rr::Name;
use tokio::time::{Instant, sleep_until, timeout};

use super::addresses::Kind;
use super::answer::{AliasError, Chain, Said, record_type};
use super::pace::Allowance;

/// How long a server has for an answer by UDP, try by try. A server asks others in its turn: what came too late is in its cache then.
const PATIENCE: [Duration; 3] = [
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(4),
];

/// How long a server has for an answer by TCP, the handshake included.
const TCP_PATIENCE: Duration = Duration::from_secs(4);

/// All tries of a look-up together, at all servers and for all aliases. Waiting for one's turn does not count.
const LOOKUP: Duration = Duration::from_secs(15);

/// What a question by TCP takes of the allowance: packets of the handshake, the question, the answer's acknowledgements, the end.
const TCP_PACKETS: u32 = 8;

/// For how long a server that did not answer is asked after the others.
const LAST_IN_LINE: Duration = Duration::from_secs(30);

/// Why a look-up brought no address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoAnswer {
    /// A server says that the name does not exist, and no other knows better.
    #[error("{server} says that there is no such name")]
    NoName {
        /// Who says so.
        server: SocketAddr,
        /// How long that is good.
        good_for: Option<Duration>,
    },
    /// The name has no address of this family.
    #[error("{server} says that the name has none")]
    NoAddress {
        /// Who says so.
        server: SocketAddr,
        /// How long that is good.
        good_for: Option<Duration>,
    },
    /// Its aliases lead nowhere.
    #[error("{server}: {error}")]
    Alias {
        /// Who says so.
        server: SocketAddr,
        /// In which way.
        error: AliasError,
    },
    /// What each server did instead of answering.
    #[error("{0}")]
    Failed(String),
}

/// Why one server gave no answer.
#[derive(Debug)]
enum Miss {
    Silent,
    Error(NetError),
    Code(ResponseCode),
}

impl fmt::Display for Miss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Silent => write!(f, "did not answer"),
            Self::Error(NetError::Io(error)) => write!(f, "cannot be asked: {error}"),
            Self::Error(error) => write!(f, "answered something that is no answer: {error}"),
            Self::Code(ResponseCode::ServFail) => write!(f, "answered SERVFAIL"),
            Self::Code(ResponseCode::Refused) => write!(f, "answered REFUSED"),
            Self::Code(code) => write!(f, "answered an error: {code}"),
        }
    }
}

/// Asks, for everyone in this process, within one allowance.
#[derive(Debug)]
pub struct Asker {
    allowance: Mutex<Allowance>,
    sockets: Counted,
    /// Servers that did not answer, and until when they are asked last.
    silent: Mutex<HashMap<SocketAddr, Instant>>,
}

impl Asker {
    /// With so many packets a second.
    #[must_use]
    pub fn new(per_second: NonZeroU32, queries: Arc<AtomicU64>) -> Self {
        let sockets = Counted {
            opened: queries,
            ..Counted::default()
        };
        Self {
            allowance: Mutex::new(Allowance::new(per_second)),
            sockets,
            silent: Mutex::default(),
        }
    }

    /// Questions sent so far, each try counted.
    #[must_use]
    pub fn queries(&self) -> Arc<AtomicU64> {
        self.sockets.opened.clone()
    }

    /// Other servers are asked from now on, by everyone: who waits for a turn will not take it.
    pub fn all_begin_anew(&self) {
        lock(&self.allowance).all_left(Instant::now());
        lock(&self.silent).clear();
    }

    /// The addresses of a name, and how long they are good.
    ///
    /// # Errors
    /// [`NoAnswer`].
    pub async fn look_up(
        &self,
        servers: &[SocketAddr],
        name: Name,
        kind: Kind,
    ) -> Result<(Vec<IpAddr>, Duration), NoAnswer> {
        let mut left = LOOKUP;
        let mut chain = Chain::new(name.clone());
        let mut at = name;
        loop {
            let (server, message) = self.ask(servers, &at, kind, &mut left).await?;
            let said = chain.follow(&message, kind);
            match said.map_err(|error| NoAnswer::Alias { server, error })? {
                Said::Addresses(addresses, ttl) => return Ok((addresses, ttl)),
                Said::Alias(to) => at = to,
                Said::NoAddress(good_for) => return Err(NoAnswer::NoAddress { server, good_for }),
                Said::NoName(good_for) => return Err(NoAnswer::NoName { server, good_for }),
            }
        }
    }

    /// Asks one server after the other, and those that did not answer again. Who says that there is no such name is believed when no other
    /// knows better.
    async fn ask(
        &self,
        servers: &[SocketAddr],
        name: &Name,
        kind: Kind,
        left: &mut Duration,
    ) -> Result<(SocketAddr, Message), NoAnswer> {
        let mut line = self.in_line(servers);
        let mut misses: Vec<(SocketAddr, Miss)> = Vec::new();
        for patience in PATIENCE {
            let mut no_name = None;
            for server in std::mem::take(&mut line) {
                if left.is_zero() {
                    break;
                }
                let miss = match self.try_one(server, name, kind, patience, left).await {
                    Ok(message) => match message.response_code {
                        ResponseCode::NoError => return Ok((server, message)),
                        ResponseCode::NXDomain => {
                            no_name.get_or_insert((server, message));
                            continue;
                        }
                        code => Miss::Code(code), // asked again it would say the same
                    },
                    Err(miss) => {
                        line.push(server);
                        miss
                    }
                };
                misses.retain(|(at, _)| *at != server);
                misses.push((server, miss));
            }
            if let Some(no_name) = no_name {
                return Ok(no_name);
            }
        }
        let misses = misses
            .iter()
            .map(|(server, miss)| format!("{server} {miss}"));
        Err(NoAnswer::Failed(misses.collect::<Vec<_>>().join("; ")))
    }

    /// By UDP, and by TCP where the answer did not fit.
    async fn try_one(
        &self,
        server: SocketAddr,
        name: &Name,
        kind: Kind,
        patience: Duration,
        left: &mut Duration,
    ) -> Result<Message, Miss> {
        let mut options = DnsRequestOptions::default();
        options.use_edns = false; // there are servers that refuse it, and few names need it
        let query = Query::query(name.clone(), record_type(kind));
        let request = DnsRequest::from_query(query, options);
        let by_udp = by_udp(server, request.clone(), self.sockets.clone());
        let mut answer = self.within(1, patience, left, by_udp).await;
        if answer.as_ref().is_ok_and(|answer| answer.truncation) {
            let by_tcp = by_tcp(server, request, self.sockets.clone());
            answer = self.within(TCP_PACKETS, TCP_PATIENCE, left, by_tcp).await;
        }
        let mut silent = lock(&self.silent);
        match &answer {
            Ok(_) => silent.remove(&server),
            Err(_) => silent.insert(server, Instant::now() + LAST_IN_LINE),
        };
        answer.map(DnsResponse::into_message)
    }

    /// Waits for a turn; then what is tried has so long, and takes it from what is left.
    async fn within(
        &self,
        packets: u32,
        patience: Duration,
        left: &mut Duration,
        tried: impl Future<Output = Result<DnsResponse, NetError>>,
    ) -> Result<DnsResponse, Miss> {
        let turn = lock(&self.allowance).take(Instant::now(), packets);
        sleep_until(turn).await;
        let began = Instant::now();
        let answer = timeout(patience.min(*left), tried).await;
        *left = left.saturating_sub(began.elapsed());
        answer
            .map_err(|_| Miss::Silent)
            .and_then(|answer| answer.map_err(Miss::Error))
    }

    /// In the order given, but those that did not answer of late come last.
    fn in_line(&self, servers: &[SocketAddr]) -> Vec<SocketAddr> {
        let mut silent = lock(&self.silent);
        let now = Instant::now();
        silent.retain(|_, until| *until > now);
        let mut line = servers.to_vec();
        line.sort_by_key(|server| silent.contains_key(server)); // stable
        line
    }
}

/// One packet, and the first answer to it that is one: hickory looks at sender, id and question.
async fn by_udp(
    server: SocketAddr,
    request: DnsRequest,
    sockets: Counted,
) -> Result<DnsResponse, NetError> {
    let mut stream = UdpClientStream::builder(server, sockets)
        .with_timeout(Some(LOOKUP)) // ours is the one that counts
        .with_max_retries(1) // in hickory's count that is the first packet
        .build();
    stream.send_message(request).first_answer().await
}

/// A connection of its own.
async fn by_tcp(
    server: SocketAddr,
    request: DnsRequest,
    sockets: Counted,
) -> Result<DnsResponse, NetError> {
    let connecting = TcpClientStream::exchange(server, None, LOOKUP, None, sockets);
    connecting.await?.send(request).first_answer().await
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Opens hickory's sockets, and is the one place that counts them: each is one try.
#[derive(Clone, Default)]
struct Counted {
    tokio: TokioRuntimeProvider,
    opened: Arc<AtomicU64>,
}

impl fmt::Debug for Counted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Counted").field(&self.opened).finish()
    }
}

type Opening<S> = Pin<Box<dyn Send + Future<Output = io::Result<S>>>>;

impl RuntimeProvider for Counted {
    type Handle = <TokioRuntimeProvider as RuntimeProvider>::Handle;
    type Timer = <TokioRuntimeProvider as RuntimeProvider>::Timer;
    type Udp = <TokioRuntimeProvider as RuntimeProvider>::Udp;
    type Tcp = <TokioRuntimeProvider as RuntimeProvider>::Tcp;

    fn create_handle(&self) -> Self::Handle {
        self.tokio.create_handle()
    }

    fn connect_tcp(
        &self,
        server: SocketAddr,
        from: Option<SocketAddr>,
        patience: Option<Duration>,
    ) -> Opening<Self::Tcp> {
        self.opened.fetch_add(1, Ordering::Relaxed);
        self.tokio.connect_tcp(server, from, patience)
    }

    fn bind_udp(&self, local: SocketAddr, server: SocketAddr) -> Opening<Self::Udp> {
        let (binding, opened) = (self.tokio.bind_udp(local, server), self.opened.clone());
        Box::pin(async move {
            let socket = binding.await?; // a port that is taken is no try: another is chosen
            opened.fetch_add(1, Ordering::Relaxed);
            Ok(socket)
        })
    }
}

#[cfg(test)]
#[path = "question_tests.rs"]
pub(super) mod tests;
