//! `[[upstream]]`: where connections are forwarded to, and how an address is found, chosen and judged.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use super::{SessionKeys, SocketOptions};

/// `[[upstream]]`.
#[derive(Debug, Clone, PartialEq)]
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
    Literal(IpAddr),
}

/// `balance`: how a session's first address is chosen among those that serve.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Balance {
    /// Two at random, then the one with fewer sessions for its weight.
    LeastSessions,
    /// One after the other, whatever their weights.
    RoundRobin,
    /// One after the other, as often as their weights say.
    Weighted,
    /// By the endpoint id: a consumer stays on one address, in every worker and every relay.
    Rendezvous,
}

/// `on_vanish`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnVanish {
    /// They go on.
    Keep,
    /// They may go on until the deadline.
    Drain,
    /// They are closed at once.
    Close,
}

/// `failover = { … }`: which priority serves. Shares are in percent of a group's weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Failover {
    /// A group whose usable share is below this hands over to the next one that is not.
    pub below: u32,
    /// A better group takes over again when its usable share is at least this. Never less than `below`.
    pub back_above: u32,
    /// And has been for this long.
    pub back_after: Duration,
    /// How old sessions outside the serving group may get; `None`: as old as others.
    pub max_age: Option<Duration>,
}

/// `eject = { … }`: what is learnt from the sessions themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Eject {
    /// Failures in a row after which an address is left alone; `None`: never.
    pub after: Option<u32>,
    /// For how long, the first time; doubled each time it fails again.
    pub pause: Duration,
    /// At most. Never less than `pause`.
    pub longest: Duration,
    /// Where less than this share of the serving group is usable, in percent, or nothing at all, what is known of its addresses' health is
    /// not believed: all of them serve.
    pub panic_below: u32,
}

/// `health = { … }`: whether and how each address is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthCheck {
    /// What is asked.
    pub check: Check,
    /// From one question to the next, give or take a tenth.
    pub interval: Duration,
    /// Longest wait for the whole answer. Never above `interval`.
    pub timeout: Duration,
    /// Good answers in a row that make an address usable again.
    pub rise: u32,
    /// Bad answers in a row that make it unusable.
    pub fall: u32,
    /// Port to ask at; `None`: the target's own.
    pub port: Option<u16>,
}

/// What a health check asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Check {
    /// Whether a connection can be made.
    Tcp,
    /// Whether bytes are answered by bytes that contain others.
    Exchange {
        /// Sent once connected; may be empty.
        send: Vec<u8>,
        /// Must be somewhere within the first 4 KiB of the answer. Never empty.
        expect: Vec<u8>,
    },
    /// Whether GET is answered with a status within a range.
    Http {
        /// Origin-form: begins with a slash.
        path: Arc<str>,
        /// The Host header; `None`: the target as configured.
        host: Option<Arc<str>>,
        /// Lowest and highest good status.
        status: (u16, u16),
    },
}

/// `ahead = { … }`: connections that wait for sessions, per worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ahead {
    /// Always as many.
    pub min: usize,
    /// Never more.
    pub max: usize,
    /// None is older: a server's own patience runs meanwhile. At most 30 s.
    pub max_age: Duration,
}

/// `proxy_protocol` of an upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SendProxy {
    /// The first byte is the client's.
    Off,
    /// A line of text: addresses only.
    V1,
    /// Addresses, every TLV of the client's header, this relay's id and a checksum.
    V2,
}
