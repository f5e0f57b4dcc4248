//! The configuration as the rest of the program sees it: a [`Config`] that cannot be wrong.
//!
//! [`file`] mirrors the TOML file, key by key, with the place of each value; turning it into a [`Config`] is where every
//! mistake of an operator is found and said. Nothing behind this module checks a setting again.

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

/// Everything one process runs with. Built by [`file`] or from the command line of `run`; immutable afterwards.
#[derive(Debug, Clone)]
pub struct Config {
    /// Data workers, each a thread with its own share of every listener. Default: one per core.
    pub workers: NonZeroUsize,
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
    pub relay_mode: RelayMode,
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
    /// Which addresses are asked for.
    pub family: Family,
}

/// Which families of addresses a name is resolved to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// A and AAAA.
    Any,
    /// A only.
    Ipv4,
    /// AAAA only.
    Ipv6,
}

/// Who may connect. Compared with the peer's address after `::ffff:a.b.c.d` was made IPv4.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Peers {
    /// No restriction.
    Anyone,
    /// Only addresses within these networks. Never empty.
    Within(Vec<IpNet>),
}

/// `[[listener]]`.
#[derive(Debug, Clone)]
pub struct Listener {
    /// Its name in logs, metrics and books.
    pub name: Arc<str>,
    /// Addresses to listen on. Never empty.
    pub bind: Vec<SocketAddr>,
    /// Index into [`Config::upstreams`].
    pub upstream: usize,
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
}

/// One `host:port` of an upstream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// As written in the file, without the port.
    pub host: Host,
    /// TCP port.
    pub port: u16,
}

/// A name to resolve or a literal address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Host {
    /// Resolved by DNS or `/etc/hosts`.
    Name(Arc<str>),
    /// Taken as it is.
    Literal(std::net::IpAddr),
}

/// `[session]` and its overrides: each key as far as it was written there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SessionKeys {
    /// No byte in either direction for this long ends the session.
    pub idle_timeout: Option<Bound>,
    /// After one side's FIN was passed on: no byte for this long ends the session.
    pub half_close_timeout: Option<Bound>,
    /// Longest life of a session.
    pub max_age: Option<Bound>,
    /// TCP_KEEPIDLE on both legs; `Off` switches keepalive off.
    pub keepalive_idle: Option<Bound>,
    /// TCP_KEEPINTVL on both legs.
    pub keepalive_interval: Option<Duration>,
    /// TCP_KEEPCNT on both legs.
    pub keepalive_probes: Option<u32>,
    /// TCP_USER_TIMEOUT on both legs.
    pub user_timeout: Option<Bound>,
}

/// A bound that can be switched off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bound {
    /// `"off"`.
    Off,
    /// A duration above zero.
    After(Duration),
}

/// The limits one session runs under: `[session]` with the listener's and then the upstream's keys laid over it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SessionLimits {
    /// See [`SessionKeys::idle_timeout`]. Default 1 h.
    pub idle_timeout: Option<Duration>,
    /// See [`SessionKeys::half_close_timeout`]. Default 60 s.
    pub half_close_timeout: Option<Duration>,
    /// See [`SessionKeys::max_age`]. Default off.
    pub max_age: Option<Duration>,
    /// `None` where keepalive is off. Default 60 s, 15 s, 4.
    pub keepalive: Option<Keepalive>,
    /// See [`SessionKeys::user_timeout`]. Default 5 min.
    pub user_timeout: Option<Duration>,
}

/// TCP keepalive of one leg (tcp(7)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keepalive {
    /// Silence before the first probe, whole seconds.
    pub idle: Duration,
    /// Between probes, whole seconds.
    pub interval: Duration,
    /// Unanswered probes before the connection counts as dead.
    pub probes: u32,
}
