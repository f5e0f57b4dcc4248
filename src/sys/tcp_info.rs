//! What the kernel knows of a TCP connection (TCP_INFO, tcp(7)).
//!
//! One call takes 0.3 µs beside a connection that moves bytes (`cargo bench --bench micro -- tcp_info`): cheap enough once per session or once a
//! second, and too dear for each transfer.

use std::io;
use std::mem::offset_of;
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

/// The first fields of `struct tcp_info` (linux/tcp.h), whose layout is part of the kernel's interface: it only ever grows at its end.
/// Our own, because libc's differs between the C libraries.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
struct Prefix {
    state: u8,
    small: [u8; 7],
    before_rtt: [u32; 15],
    rtt: u32,
    before_retransmits: [u32; 7],
    total_retransmits: u32,
    pacing_rates: [u64; 2],
    bytes_acked: u64,
    bytes_received: u64,
    segments: [u32; 2],
    unsent: u32,
    min_rtt: u32,
    data_segments: [u32; 2],
    delivery_rate: u64,
}

/// A connection, as the kernel sees it at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TcpInfo {
    /// Where the connection stands.
    pub state: TcpState,
    /// The smoothed round-trip time; `None` before the first was measured.
    pub rtt: Option<Duration>,
    /// The shortest of late (`net.ipv4.tcp_min_rtt_wlen`: of the last five minutes); `None` before the first.
    pub min_rtt: Option<Duration>,
    /// Segments sent again, over the whole life of the connection.
    pub total_retransmits: u32,
    /// Bytes that the peer has acknowledged, its SYN among them; since Linux 4.1.
    pub bytes_acked: Option<u64>,
    /// Bytes of its own that were acknowledged to it, whether they were read or not; its FIN counts as one. Since Linux 4.1.
    pub bytes_received: Option<u64>,
    /// The rate at which it last got them, in bytes a second; `None` before the first was measured. Since Linux 4.9.
    pub delivery_rate: Option<u64>,
}

/// The states of RFC 9293 by the kernel's numbers (net/tcp_states.h).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TcpState {
    /// Open in both directions.
    Established,
    /// Our SYN is on its way.
    SynSent,
    /// Our answer to a SYN is on its way.
    SynReceived,
    /// Our FIN is on its way.
    FinWait1,
    /// Our FIN has arrived.
    FinWait2,
    /// Over; kept for late segments.
    TimeWait,
    /// Not connected, or no longer.
    Closed,
    /// The peer's FIN has arrived.
    CloseWait,
    /// The peer's FIN has arrived, and ours is on its way.
    LastAck,
    /// Waits for connections.
    Listen,
    /// Both FINs have crossed.
    Closing,
    /// One that this program does not know.
    Other(u8),
}

impl From<u8> for TcpState {
    fn from(number: u8) -> Self {
        match number {
            1 => Self::Established,
            2 => Self::SynSent,
            3 | 12 => Self::SynReceived,
            4 => Self::FinWait1,
            5 => Self::FinWait2,
            6 => Self::TimeWait,
            7 => Self::Closed,
            8 => Self::CloseWait,
            9 => Self::LastAck,
            10 => Self::Listen,
            11 => Self::Closing,
            other => Self::Other(other),
        }
    }
}

/// Asks the kernel.
///
/// # Errors
/// Not a TCP socket, or a kernel that tells less than its first eleven fields did twenty years ago.
pub fn tcp_info(socket: impl AsFd) -> io::Result<TcpInfo> {
    let mut prefix = Prefix::default();
    let mut length = size_of::<Prefix>() as libc::socklen_t;
    // SAFETY: the descriptor is open for the length of the call because it is borrowed. The kernel writes at most `length` bytes to the
    // pointer, which is live, aligned and has as many, and writes their number back to `length`. Every bit pattern is a valid `Prefix`.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut prefix).cast(),
            &raw mut length,
        )
    };
    if result == -1 {
        return Err(io::Error::last_os_error());
    }
    prefix
        .told(length as usize)
        .ok_or_else(|| io::ErrorKind::Unsupported.into())
}

impl Prefix {
    /// What is below the length that the kernel returned: anything behind it is ours, not the kernel's.
    fn told(&self, length: usize) -> Option<TcpInfo> {
        let has = |end_of_field: usize| end_of_field <= length;
        let micros = |value: u32| Duration::from_micros(value.into());
        // What every kernel that this program runs on has told since before git.
        if !has(offset_of!(Self, total_retransmits) + size_of::<u32>()) {
            return None;
        }
        let acked = has(offset_of!(Self, bytes_acked) + size_of::<u64>());
        let received = has(offset_of!(Self, bytes_received) + size_of::<u64>());
        let min_rtt = has(offset_of!(Self, min_rtt) + size_of::<u32>());
        let rate = has(offset_of!(Self, delivery_rate) + size_of::<u64>());
        Some(TcpInfo {
            state: self.state.into(),
            rtt: (self.rtt > 0).then(|| micros(self.rtt)),
            // The kernel begins with the longest time there is.
            min_rtt: (min_rtt && self.min_rtt < u32::MAX).then(|| micros(self.min_rtt)),
            total_retransmits: self.total_retransmits,
            bytes_acked: acked.then_some(self.bytes_acked),
            bytes_received: received.then_some(self.bytes_received),
            delivery_rate: (rate && self.delivery_rate > 0).then_some(self.delivery_rate),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{Shutdown, TcpListener, TcpStream, UdpSocket};

    use super::*;

    #[test]
    fn the_fields_are_where_the_kernel_has_them() {
        // Offsets counted in linux/tcp.h.
        assert_eq!(offset_of!(Prefix, rtt), 68);
        assert_eq!(offset_of!(Prefix, total_retransmits), 100);
        assert_eq!(offset_of!(Prefix, bytes_acked), 120);
        assert_eq!(offset_of!(Prefix, bytes_received), 128);
        assert_eq!(offset_of!(Prefix, min_rtt), 148);
        assert_eq!(offset_of!(Prefix, delivery_rate), 160);
        assert_eq!(size_of::<Prefix>(), 168);
    }

    #[test]
    fn a_connection_tells_its_round_trip_and_what_was_acknowledged() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        client.write_all(&[7; 100_000]).unwrap();
        let mut read = vec![0; 100_000];
        server.read_exact(&mut read).unwrap();
        // The answer carries the acknowledgement of everything before it.
        server.write_all(&[1]).unwrap();
        client.read_exact(&mut read[..1]).unwrap();
        let info = tcp_info(&client).unwrap();
        assert_eq!(info.state, TcpState::Established);
        assert!(info.bytes_acked >= Some(100_000), "{info:?}");
        assert_eq!(info.bytes_received, Some(1), "{info:?}");
        let received = tcp_info(&server).unwrap().bytes_received;
        assert_eq!(received, Some(100_000));
        assert!(
            info.rtt
                .is_some_and(|rtt| rtt > Duration::ZERO && rtt < Duration::from_secs(10)),
            "{info:?}"
        );
        assert!(
            info.min_rtt.is_some() && info.min_rtt <= Some(Duration::from_secs(10)),
            "{info:?}"
        );
        assert!(info.delivery_rate > Some(1000), "{info:?}");
        server.shutdown(Shutdown::Write).unwrap();
        assert_eq!(client.read(&mut read).unwrap(), 0);
        assert_eq!(tcp_info(&client).unwrap().state, TcpState::CloseWait);
        assert_eq!(tcp_info(&listener).unwrap().state, TcpState::Listen);
    }

    #[test]
    fn nothing_is_measured_before_there_is_a_connection() {
        let kind = socket2::Type::STREAM;
        let socket = socket2::Socket::new(socket2::Domain::IPV4, kind, None).unwrap();
        let info = tcp_info(&socket).unwrap();
        assert_eq!(info.state, TcpState::Closed);
        assert_eq!(
            (info.rtt, info.min_rtt, info.delivery_rate),
            (None, None, None)
        );
    }

    #[test]
    fn a_datagram_socket_has_none() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        assert!(tcp_info(&socket).is_err());
    }

    #[test]
    fn what_an_old_kernel_did_not_tell_is_not_made_up() {
        let prefix = Prefix {
            rtt: 220_000,
            min_rtt: 219_000,
            bytes_acked: 5,
            delivery_rate: 6,
            ..Prefix::default()
        };
        // Linux 3.14, 4.1, 4.6 and this one.
        let told = |length| prefix.told(length).unwrap();
        assert_eq!(told(104).rtt, Some(Duration::from_millis(220)));
        assert_eq!(told(104).bytes_acked, None);
        assert_eq!(told(136).bytes_acked, Some(5));
        assert_eq!(told(136).min_rtt, None);
        assert_eq!(told(160).min_rtt, Some(Duration::from_millis(219)));
        assert_eq!(told(160).delivery_rate, None);
        assert_eq!(told(168).delivery_rate, Some(6));
        assert_eq!(prefix.told(103), None);
    }
}
