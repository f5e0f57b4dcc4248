//! What a worker tells of a session or a refusal: plain data, not yet text. Made without formatting anything, and moved to the audit thread.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::SystemTime;

use crate::account::{Account, AccountKey, CloseReason, Event};

/// What goes through the queue.
#[derive(Debug)]
pub(super) enum Record {
    Session(SessionRecord),
    Refused(RefusedRecord),
}

impl Record {
    pub(super) fn event(&self) -> Event {
        match self {
            Self::Session(record) => record.event,
            Self::Refused(_) => Event::Refused,
        }
    }
}

/// `open`, `progress` or `close`.
#[derive(Debug)]
pub(super) struct SessionRecord {
    pub(super) time: Micros,
    pub(super) event: Event,
    pub(super) worker: u32,
    /// Which of the worker's sessions.
    pub(super) number: u64,
    pub(super) account: Arc<Account>,
    /// Whose it is, where the account is that of `overflow`.
    pub(super) own: Option<Arc<AccountKey>>,
    pub(super) duration_ms: Option<u64>,
    pub(super) connect_ms: Option<u32>,
    pub(super) reason: Option<CloseReason>,
    pub(super) facts: Facts,
}

/// `refused`.
#[derive(Debug)]
pub(super) struct RefusedRecord {
    pub(super) time: Micros,
    pub(super) refused: Refused,
}

/// A connection that was turned away, as far as it is known.
#[derive(Debug)]
pub struct Refused {
    /// Name of the listener.
    pub listener: Arc<str>,
    /// The account it was counted on, where its endpoint is known: with it endpoint, consumer and upstream.
    pub endpoint: Option<Arc<str>>,
    /// Name of the consumer behind a shared endpoint.
    pub consumer: Option<Arc<str>>,
    /// Name of the upstream that was chosen.
    pub upstream: Option<Arc<str>>,
    /// The client, as the header tells it.
    pub client: Option<SocketAddr>,
    /// Who really connected.
    pub peer: SocketAddr,
    /// The word that it is counted by.
    pub reason: &'static str,
}

/// What is known of a session beside its account. What is not known is left out of the record.
#[derive(Debug, Default, Clone)]
pub struct Facts {
    /// The client, as the header tells it.
    pub client: Option<SocketAddr>,
    /// Who really connected: an NLB node.
    pub peer: Option<SocketAddr>,
    /// The target of the upstream, as configured, and the address that it was found at.
    pub target: Option<Arc<str>>,
    /// The address of the upstream.
    pub address: Option<SocketAddr>,
    /// Payload passed on so far, by direction.
    pub bytes: Option<[u64; 2]>,
    /// What the kernel knows of the connection to the client and of that to the upstream.
    pub legs: [Option<Leg>; 2],
}

/// What the kernel knows of one of a session's connections (TCP_INFO, tcp(7)).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Leg {
    /// The smoothed round-trip time, in microseconds.
    pub rtt_us: Option<u32>,
    /// The shortest of late.
    pub min_rtt_us: Option<u32>,
    /// Segments sent more than once.
    pub retransmits: u32,
    /// Bytes a second, as they last arrived at the peer.
    pub delivery_rate: Option<u64>,
    /// Bytes that the peer acknowledged.
    pub bytes_acked: Option<u64>,
    /// Bytes that the peer sent and we acknowledged.
    pub bytes_received: Option<u64>,
}

/// Wall time: microseconds since 1970, UTC.
pub(super) type Micros = i64;

/// Now.
pub(super) fn now() -> Micros {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    // A clock before 1970 is no clock; it says so by itself.
    since.map_or(0, |since| Micros::try_from(since.as_micros()).unwrap_or(0))
}
