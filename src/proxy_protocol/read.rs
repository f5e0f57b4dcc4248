//! Reads exactly one header from a client socket, however it arrives.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rustix::event::epoll::EventFlags;
use rustix::io::Errno;

use super::decode::{Rules, decode};
use super::header::{Addresses, Command, HeaderError};
use super::identity::hops;
use crate::reactor::Watched;

/// A connection before its header is whole, and all there is to it: a successor could go on from these four values.
#[derive(Debug)]
pub struct Pending {
    /// The accepted socket.
    pub client: Watched,
    /// Its address: an NLB node, IPv4-mapped addresses made IPv4.
    pub peer: SocketAddr,
    /// What was read so far. Holds no memory until the first byte.
    pub read: Vec<u8>,
    /// When the wait ends: for the first byte, later for the rest of the header.
    pub deadline: Instant,
}

/// A whole header, taken out of the stream.
#[derive(Debug)]
pub struct Received {
    /// Health check or client.
    pub command: Command,
    /// The consumer's endpoint id.
    pub endpoint: Option<String>,
    /// Source and destination of the client's connection.
    pub addresses: Option<Addresses>,
    /// The header's TLVs, where they are kept.
    pub tlvs: Vec<u8>,
    /// Relays of our kind that sent it on before.
    pub hops: u8,
    /// Bytes of the stream that came with the header: the first of the payload.
    pub payload: Vec<u8>,
}

/// What this relay makes of a header beyond taking it.
#[derive(Debug, Clone, Copy)]
pub struct Own<'a> {
    /// What it is called: a header that says so has been here before.
    pub relay_id: &'a str,
    /// Whether its TLVs are kept: an upstream wants them.
    pub keep_tlvs: bool,
}

/// Why there is no header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoHeader {
    /// The connection ended without a byte: a TCP health check, or a client that thought better of it.
    Empty,
    /// It is refused.
    Refused(HeaderError),
}

/// Bytes read at a time: NLB's header is 100, so that one read takes it and a small first message.
const READ_AHEAD: usize = 1024;

/// Waits for a whole header: `pending.deadline` for its first byte, then `header_timeout` for the rest.
///
/// `on_first_byte` is called once when the connection stops being silent.
///
/// # Errors
/// [`NoHeader`]; nothing was answered and the socket is still open.
pub async fn read_header(
    pending: &mut Pending,
    rules: Rules,
    own: Own<'_>,
    header_timeout: Duration,
    on_first_byte: impl FnOnce(),
) -> Result<Received, NoHeader> {
    let mut on_first_byte = Some(on_first_byte);
    loop {
        let silent = pending.read.is_empty();
        let timeout = match silent {
            true => HeaderError::FirstByteTimeout,
            false => HeaderError::HeaderTimeout,
        };
        let announced = pending.client.announced(EventFlags::IN);
        let reactor = pending.client.reactor();
        let Some(announced) = reactor.timeout_at(pending.deadline, announced).await else {
            return Err(NoHeader::Refused(timeout));
        };
        // Whatever it brings stays within `max_header` and one read's worth of payload.
        let room = rules.max_header.max(READ_AHEAD) - pending.read.len();
        let read = pending
            .client
            .take::<READ_AHEAD>(announced, &mut pending.read, room);
        match read {
            Ok(0) => return Err(ended(silent)),
            Ok(_) => {}
            Err(Errno::AGAIN | Errno::INTR) => continue,
            Err(_) => return Err(ended(silent)),
        }
        if let Some(on_first_byte) = on_first_byte.take() {
            on_first_byte();
            pending.deadline = Instant::now() + header_timeout;
        }
        if let Some(header) = decode(&pending.read, rules).map_err(NoHeader::Refused)? {
            // A health check opens nothing, so nothing goes round in it.
            let hops = match header.command {
                Command::Proxy => hops(header.tlvs, own.relay_id).map_err(NoHeader::Refused)?,
                Command::Local => 0,
            };
            let tlvs = match own.keep_tlvs {
                true => header.tlvs.to_vec(),
                false => Vec::new(),
            };
            return Ok(Received {
                tlvs,
                hops,
                command: header.command,
                endpoint: header.endpoint.map(str::to_owned),
                addresses: header.addresses,
                payload: pending.read[header.len..].to_vec(),
            });
        }
    }
}

/// A reset counts as an end: a health check may close either way.
fn ended(silent: bool) -> NoHeader {
    match silent {
        true => NoHeader::Empty,
        false => NoHeader::Refused(HeaderError::ClosedEarly),
    }
}
