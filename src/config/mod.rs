//! The configuration as the rest of the program sees it: a [`Config`] that cannot be wrong.
//!
//! `file` mirrors the TOML file, key by key, with the place of each value; `build` turns that into a [`Config`], value by
//! value through `values` and `addresses`, and is where every mistake of an operator is found and said ([`Error`]). `flags` fills the same
//! mirror from the command line. Nothing behind this module checks a setting again.

mod addresses;
mod build;
pub mod defaults;
mod error;
mod file;
mod flags;
mod session;
#[cfg(test)]
mod tests;
mod upstream;
mod values;

use std::net::SocketAddr;
use std::num::{NonZeroU32, NonZeroUsize};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

pub use error::{Error, ErrorKind, Mistake};
pub use flags::Flags;
pub use session::{Bound, Keepalive, SessionKeys, SessionLimits};
pub use upstream::{
    Ahead, Balance, Check, Eject, Failover, HealthCheck, OnVanish, Route, SendProxy, SocketOptions,
};
pub use values::{duration_text, size_text};

/// Everything one process runs with. Built from a file or from the command line of `run`; immutable afterwards.
#[derive(Debug, Clone)]
pub struct Config {
    /// Data workers, each a thread with its own share of every listener. Default: one per core.
    pub workers: NonZeroUsize,
    /// What this relay is called where several are told apart: in the headers it sends. 1 to 64 of `[A-Za-z0-9.-]`.
    pub relay_id: Arc<str>,
    /// Where `/metrics`, `/healthz`, `/readyz` and `/status` are served; `None` when `bind = "off"`.
    pub admin: Option<SocketAddr>,
    /// The port for the NLB's health checks, when there is one.
    pub health: Option<HealthPort>,
    /// What happens between SIGTERM and the end of the process.
    pub drain: Drain,
    /// Form and level of the log.
    pub log: Log,
    /// `[session]`: what listeners and upstreams start from.
    pub session: SessionKeys,
    /// How bytes are moved.
    pub relay: Relay,
    /// Where names are resolved.
    pub resolver: Resolver,
    /// Most accounts kept; connections of further endpoints are booked to `overflow`.
    pub max_accounts: usize,
    /// Most endpoints shown one by one in `/metrics`; the rest are added up under `other`.
    pub max_metric_endpoints: usize,
    /// The addresses connections are accepted on. Never empty; names are unique.
    pub listeners: Vec<Listener>,
    /// Where they are forwarded to. Never empty; names are unique.
    pub upstreams: Vec<Upstream>,
}

impl Config {
    /// Reads and checks a configuration file.
    ///
    /// # Errors
    /// When the file cannot be read, and with every mistake found in it.
    pub fn from_file(path: &Path) -> Result<Self, Error> {
        let text = std::fs::read_to_string(path).map_err(|source| Error::Unreadable {
            path: path.to_owned(),
            source,
        })?;
        Self::from_str(&text, &path.display().to_string())
    }

    /// Checks a configuration given as text; `origin` is what its mistakes are shown under, usually a path.
    ///
    /// # Errors
    /// With every mistake found in `text`.
    pub fn from_str(text: &str, origin: &str) -> Result<Self, Error> {
        file::File::parse(text)
            .and_then(|file| build::config(&file))
            .map_err(|mistakes| Error::Mistakes {
                origin: origin.to_owned(),
                text: text.to_owned(),
                mistakes,
            })
    }

    /// The limits that a listener's clients have before it is known where they go: its own, and those of `upstream` where there is one.
    #[must_use]
    pub fn listener_limits(&self, listener: &Listener) -> SessionLimits {
        match listener.upstream {
            Some(upstream) => self.session_limits(listener, &self.upstreams[upstream]),
            None => {
                SessionLimits::from_layers([&listener.session, &listener.session, &self.session])
            }
        }
    }

    /// The limits of a session that arrived on `listener` and goes to `upstream`: what the upstream says, else the listener,
    /// else `[session]`, else the default.
    #[must_use]
    pub fn session_limits(&self, listener: &Listener, upstream: &Upstream) -> SessionLimits {
        SessionLimits::from_layers([&upstream.session, &listener.session, &self.session])
    }
}

/// `[health]`: a port of its own for the NLB's health checks.
#[derive(Debug, Clone)]
pub struct HealthPort {
    /// Address to listen on.
    pub bind: SocketAddr,
    /// Who may ask; anyone where nothing is configured.
    pub trusted_peers: Peers,
}

/// `[drain]`: from SIGTERM to the end.
#[derive(Debug, Clone)]
pub struct Drain {
    /// How long connections are still accepted while the health checks already fail.
    pub accept_for: Duration,
    /// How long sessions may go on after that.
    pub deadline: Duration,
    /// How a session that outlives the deadline is closed.
    pub close: CloseWith,
}

/// How a session is ended by us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CloseWith {
    /// An orderly end: both sides get a FIN.
    Fin,
    /// A reset: both sides get an RST.
    Rst,
}

/// `[log]`.
#[derive(Debug, Clone, Copy)]
pub struct Log {
    /// Text or JSON lines.
    pub format: LogFormat,
    /// The least severe level that is written.
    pub level: tracing::Level,
}

/// Form of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// Text when standard error is a terminal, JSON otherwise.
    Auto,
    /// For people.
    Text,
    /// One object per line.
    Json,
}

/// `[relay]`: how the engines of the workers move bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Relay {
    /// Which of the kernel's ways.
    pub mode: RelayMode,
    /// How long an engine that has nothing to do looks again and again before it sleeps: a core's time for a few microseconds of
    /// latency.
    pub spin: Option<Duration>,
    /// Whether each worker's threads stay on one core.
    pub pin: bool,
    /// What the kernel may hold, in bytes, of a stream whose receiver does not keep up.
    pub stalled_receive_buffer: Option<usize>,
}

/// `[relay] mode`: for diagnosis; the default is right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RelayMode {
    /// Copy, and splice a direction while it is bulk.
    Adaptive,
    /// Always copy through the worker's buffer.
    Copy,
    /// Always splice through a pipe.
    Splice,
}

/// `[resolver]`.
#[derive(Debug, Clone)]
pub struct Resolver {
    /// Name servers to ask; those of `/etc/resolv.conf` when empty.
    pub servers: Vec<SocketAddr>,
    /// Domains that names without a dot are looked for in; those of `/etc/resolv.conf` where `servers` is empty and this is too.
    pub search: Vec<Arc<str>>,
    /// Which addresses are asked for, and which are used first.
    pub family: Family,
    /// Most queries sent in a second, over all names; retries count.
    pub queries_per_second: NonZeroU32,
}

/// Which families of addresses a name is resolved to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// A and AAAA, used alike.
    Any,
    /// A only.
    Ipv4,
    /// AAAA only.
    Ipv6,
    /// A and AAAA; the addresses of AAAA serve when those of A do not.
    Ipv4First,
    /// A and AAAA; the addresses of A serve when those of AAAA do not.
    Ipv6First,
}

/// Who may connect. Compared with the peer's address after `::ffff:a.b.c.d` was made IPv4.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Peers {
    /// No restriction.
    Anyone,
    /// Only addresses within these networks. Never empty.
    Within(Vec<IpNet>),
}

impl Peers {
    /// Whether `address`, IPv4-mapped addresses made IPv4, is one of them.
    #[must_use]
    pub fn contains(&self, address: std::net::IpAddr) -> bool {
        match self {
            Self::Anyone => true,
            Self::Within(networks) => networks.iter().any(|network| network.contains(&address)),
        }
    }
}

/// `[[listener]]`.
#[derive(Debug, Clone)]
pub struct Listener {
    /// Its name in logs, metrics and books.
    pub name: Arc<str>,
    /// Addresses to listen on. Never empty.
    pub bind: Vec<SocketAddr>,
    /// Where a connection goes that no route takes: index into [`Config::upstreams`]. `None`: it is refused. Never `None` without routes.
    pub upstream: Option<usize>,
    /// The first that takes a connection says where it goes.
    pub routes: Vec<Route>,
    /// Most bytes of the client read to find a name in, where a route asks for one.
    pub peek_size: usize,
    /// Longest wait for them, from the end of the header on.
    pub peek_timeout: Duration,
    /// Whether each connection begins with a header.
    pub proxy_protocol: ProxyProtocol,
    /// Whose connections are taken. With [`ProxyProtocol::V2`] never [`Peers::Anyone`].
    pub trusted_peers: Peers,
    /// What is done about the header's checksum.
    pub crc: CrcPolicy,
    /// Longest header taken, in bytes, its 16 fixed ones included. 16 to 65551.
    pub max_header: usize,
    /// From accept to the first byte.
    pub first_byte_timeout: Duration,
    /// From the first byte to the end of the header.
    pub header_timeout: Duration,
    /// Most connections without a whole header.
    pub max_pending: usize,
    /// Most sessions open at once.
    pub max_sessions: usize,
    /// `session = { … }` of this listener: what differs from `[session]`.
    pub session: SessionKeys,
    /// `socket = { … }` of this listener: options of the client's leg.
    pub socket: SocketOptions,
}

impl Listener {
    /// Indices into [`Config::upstreams`] of every upstream that its connections may go to.
    #[must_use]
    pub fn reachable(&self) -> Vec<usize> {
        let routes = self.routes.iter().map(|route| route.upstream);
        routes.chain(self.upstream).collect()
    }
}

/// Whether a listener's connections begin with a PROXY protocol header. Never guessed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProxyProtocol {
    /// A version 2 header is required.
    V2,
    /// The first byte is payload.
    Off,
}

/// What is done about the CRC32C TLV of a header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CrcPolicy {
    /// A wrong checksum refuses the connection; a header without one is taken.
    Verify,
    /// Never looked at.
    Ignore,
}

/// `[[upstream]]`.
#[derive(Debug, Clone)]
pub struct Upstream {
    /// Its name in logs, metrics and books.
    pub name: Arc<str>,
    /// Where it is. Never empty.
    pub targets: Vec<Target>,
    /// Longest wait for one address to answer.
    pub connect_timeout: Duration,
    /// Longest wait over all addresses tried for one session.
    pub connect_deadline: Duration,
    /// Answers are never asked for again sooner than this.
    pub min_ttl: Duration,
    /// Answers are asked for again at the latest after this.
    pub max_ttl: Duration,
    /// How long the last good answer serves while no new one comes; `None` is for ever.
    pub stale_for: Option<Duration>,
    /// Special-purpose networks in which DNS answers are taken all the same.
    pub allow_addresses: Vec<IpNet>,
    /// `session = { … }` of this upstream: what differs from the listener and `[session]`.
    pub session: SessionKeys,
    /// How an address is chosen.
    pub balance: Balance,
    /// How long a try stays alone before the next address is tried beside it.
    pub next_try_after: Duration,
    /// Tries beyond the first of a session: so many for each hundred sessions.
    pub retry_budget: u32,
    /// What becomes of live sessions whose address leaves the answers.
    pub on_vanish: OnVanish,
    /// With [`OnVanish::Drain`]: how long they may go on.
    pub vanish_deadline: Duration,
    /// Over how much time they are closed.
    pub vanish_spread: Duration,
    /// `failover = { … }`: when another priority takes over.
    pub failover: Failover,
    /// `eject = { … }`: when an address that fails is left alone for a while.
    pub eject: Eject,
    /// From how little of its share an address that returns is brought back, and how fast; `None`: at once.
    pub slow_start: Option<Duration>,
    /// `health = { … }`: whether addresses are asked how they are.
    pub health: Option<HealthCheck>,
    /// `ahead = { … }`: connections opened before a client needs one.
    pub ahead: Option<Ahead>,
    /// The header that each connection to it begins with.
    pub proxy_protocol: SendProxy,
    /// `socket = { … }` of this upstream: options of its leg.
    pub socket: SocketOptions,
}

/// One `host:port` of an upstream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// As written in the file, without the port.
    pub host: Host,
    /// TCP port.
    pub port: u16,
    /// The group it belongs to: the lowest with enough usable addresses is the one that serves.
    pub priority: u32,
    /// Its addresses' share beside others of the group. 1 to 1000.
    pub weight: u32,
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.host {
            Host::Name(name) => write!(f, "{name}:{}", self.port),
            Host::Literal(ip) => write!(f, "{}", SocketAddr::new(*ip, self.port)),
        }
    }
}

/// A name to resolve or a literal address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Host {
    /// Resolved by DNS or `/etc/hosts`.
    Name(Arc<str>),
    /// Taken as it is.
    Literal(std::net::IpAddr),
}
