//! `[[listener]]`: where connections are taken, and where each goes.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use super::{OnLimit, Peers, SessionKeys, SessionRate, SocketOptions};

/// `[[listener]]`.
#[derive(Debug, Clone)]
pub struct Listener {
    /// Its name in logs, metrics and books.
    pub name: Arc<str>,
    /// Addresses to listen on. Never empty.
    pub bind: Vec<SocketAddr>,
    /// Where a connection goes that no route takes: index into [`Config::upstreams`](super::Config::upstreams). `None`: it is refused. Never `None` without routes.
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
    /// How fast they may come.
    pub rate: Option<SessionRate>,
    /// What becomes of a connection beyond.
    pub on_limit: OnLimit,
    /// `session = { … }` of this listener: what differs from `[session]`.
    pub session: SessionKeys,
    /// `socket = { … }` of this listener: options of the client's leg.
    pub socket: SocketOptions,
}

impl Listener {
    /// Indices into [`Config::upstreams`](super::Config::upstreams) of every upstream that its connections may go to.
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
