//! The parts of an upstream's and a listener's settings that have a shape of their own.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

/// One entry of a listener's `routes`: every condition that is there must hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// A glob over the endpoint id: `*` stands for any characters, none included. [`DIRECT`](crate::proxy_protocol::header::DIRECT) is
    /// the id of connections without one.
    pub endpoint: Option<Arc<str>>,
    /// Where the client is, as the header says.
    pub network: Option<IpNet>,
    /// The server name of a TLS ClientHello, in lower case: whole, or `*.suffix` for any name below the suffix.
    pub sni: Option<Arc<str>>,
    /// The host of an HTTP/1 request, as `sni`, without a port.
    pub host: Option<Arc<str>>,
    /// Index into [`Config::upstreams`](super::Config::upstreams).
    pub upstream: usize,
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
    /// Where no more than this share of the serving group is usable, in percent, what is known of its addresses' health is not believed:
    /// all of them serve.
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

/// `socket = { … }`: what differs from the kernel's defaults on one leg.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SocketOptions {
    /// TCP_CONGESTION.
    pub congestion: Option<Arc<str>>,
    /// SO_SNDBUF, in bytes as the kernel reports them; `None`: the kernel's autotuning.
    pub send_buffer: Option<usize>,
    /// SO_RCVBUF, in bytes as the kernel reports them; `None`: the kernel's autotuning.
    pub receive_buffer: Option<usize>,
    /// TCP_NOTSENT_LOWAT: unsent bytes above which the socket takes no more.
    pub notsent_lowat: Option<usize>,
    /// What an upstream's connections come from; never set for a listener.
    pub source: Option<IpAddr>,
    /// `preset = "wan"` was chosen: [`SocketOptions::congestion`] is a wish then, not an order.
    pub wan: bool,
}
