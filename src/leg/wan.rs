//! The values of `preset = "wan"`, and what they are computed from.

use std::sync::Arc;
use std::time::Duration;

use crate::config::SocketOptions;

/// The longest way that the preset is meant for: us-east-1 to ap-southeast-1 takes 219 ms.
pub(super) const RTT: Duration = Duration::from_millis(220);

/// The most that one flow gets between instances in EC2 that share no placement group: 5 Gbit/s, in bytes a second.
pub(super) const RATE: u64 = 625_000_000;

/// Bytes on their way when a flow of [`RATE`] fills a way of [`RTT`]: 137.5 MB.
pub(super) const IN_FLIGHT: u64 = RATE * RTT.as_millis() as u64 / 1000;

/// What a socket's buffer must be allowed to become for that, in bytes as the kernel counts. Twice what is in flight, and a little, up to a
/// round number: a receive buffer is charged for the memory that segments lie in, up to twice what they carry; a send buffer holds a
/// second round trip's worth while a lost segment is repaired, because nothing behind it is let go until then.
pub(super) const BUFFER: u64 = 288 << 20;

/// `preset = "wan"`, for one flow of up to 5 Gbit/s over a way of up to 220 ms:
///
/// * Send and receive buffers are left to the kernel. A size that is set switches autotuning off: each of ten thousand connections may take
///   it, an idle one on a short way too, and unprivileged sizes end at `net.core.wmem_max` (208 KiB, reported as 416), 1.9 MB/s over
///   220 ms. Autotuning gives each connection what its own round trips ask for, up to the third number of `net.ipv4.tcp_wmem` and
///   `tcp_rmem`; those are the machine's to be raised (to 288 MiB, see `BUFFER`), once and for all connections.
/// * `notsent_lowat` is 1 MiB. What is in flight is bounded by the path; what waits behind it in our own kernel is not, and serves
///   nobody: it would grow to half of the send buffer and more. With the mark a connection whose reader stops holds 1 MiB beyond what was in flight,
///   and what is written next is not behind seconds of older bytes. The kernel asks for more at half of it: 512 KiB, which 5 Gbit/s take
///   0.8 ms to send, ten times what a worker needs to wake and to move as much again. Flows that share the link take longer in
///   proportion, as does the worker's turn.
/// * Congestion control is BBR where the kernel has it and allows it, else the system's. Cubic takes a loss for a sign of a full path: after
///   one at 137.5 MB in flight it falls to seven tenths and needs 41 s to be back (RFC 9438, segments of 1448 bytes); BBR goes by the rate at
///   which bytes arrive, and paces them by itself, with or without the fq queue.
#[must_use]
pub fn wan() -> SocketOptions {
    SocketOptions {
        congestion: Some(Arc::from("bbr")),
        send_buffer: None,
        receive_buffer: None,
        notsent_lowat: Some(1 << 20),
        source: None,
        wan: true,
    }
}
