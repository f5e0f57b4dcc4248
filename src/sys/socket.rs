//! What a TCP socket can be asked and told.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use socket2::{SockFilter, SockRef};

/// Bytes that were written to the socket and that the peer has not acknowledged yet (SIOCOUTQ, tcp(7)).
///
/// # Errors
/// Not a stream socket.
pub fn unacknowledged(socket: impl AsFd) -> io::Result<u32> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the descriptor is open for the length of the call because it is borrowed. TIOCOUTQ (the same number as
    // SIOCOUTQ) writes one `int` through its argument, which points to a live, aligned `c_int`.
    let result = unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    match result {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(u32::try_from(bytes).unwrap_or(0)),
    }
}

/// Makes a listening socket deaf to whoever begins to connect: their SYN is dropped as if it were lost, so that their kernel tries again. Handshakes that
/// have begun go on. For a socket that is to be closed when it has nothing left to accept.
///
/// The filter (SO_ATTACH_FILTER, socket(7); classic BPF, <https://docs.kernel.org/networking/filter.html>) sees the segment from its TCP header on:
/// byte 13 has the flags (RFC 9293 section 3.1), and a SYN without an ACK is dropped. What is accepted inherits it and never sees one.
///
/// # Errors
/// The kernel takes no filter.
pub fn drop_connects(listener: impl AsFd) -> io::Result<()> {
    const LOAD_FLAGS: u16 = 0x30; // BPF_LD | BPF_B | BPF_ABS
    const AND: u16 = 0x54; // BPF_ALU | BPF_AND | BPF_K
    const JUMP_IF_EQUAL: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
    const RETURN: u16 = 0x06; // BPF_RET | BPF_K
    const SYN: u32 = 0x02;
    const ACK: u32 = 0x10;
    let filter = [
        SockFilter::new(LOAD_FLAGS, 0, 0, 13),
        SockFilter::new(AND, 0, 0, SYN | ACK),
        SockFilter::new(JUMP_IF_EQUAL, 0, 1, SYN),
        SockFilter::new(RETURN, 0, 0, 0), // nothing of it is let through
        SockFilter::new(RETURN, 0, 0, u32::MAX),
    ];
    SockRef::from(&listener).attach_filter(&filter)
}

/// Lets the kernel send at most so many bytes a second, evenly; `None`: as fast as it goes (SO_MAX_PACING_RATE, socket(7)). TCP does that by
/// itself, whatever the queueing discipline of the interface is.
///
/// # Errors
/// The kernel does not know it.
pub fn limit_pacing(socket: impl AsFd, bytes_per_second: Option<u64>) -> io::Result<()> {
    // What is written for "without a limit" is the largest number of the kernel's own word.
    let rate = bytes_per_second.and_then(|rate| libc::c_ulong::try_from(rate).ok());
    let rate = rate.unwrap_or(libc::c_ulong::MAX);
    // SAFETY: the descriptor is open for the length of the call because it is borrowed. The kernel reads one `unsigned long`, which the
    // pointer points to and which lives until the call returns.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_MAX_PACING_RATE,
            (&raw const rate).cast(),
            size_of::<libc::c_ulong>() as libc::socklen_t,
        )
    };
    match result {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Makes bind(2) to port 0 take an address only: connect(2) then chooses a port that is free towards its own destination, where it would
/// otherwise be kept from all others (IP_BIND_ADDRESS_NO_PORT, ip(7)). For both families.
///
/// # Errors
/// Not an IP socket.
pub fn bind_without_port(socket: impl AsFd) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: the descriptor is open for the length of the call because it is borrowed. The kernel reads one `int`, which the pointer points
    // to and which lives until the call returns.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_BIND_ADDRESS_NO_PORT,
            (&raw const on).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    match result {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;
    use std::time::Duration;

    use socket2::{Domain, Socket, Type};

    use super::*;

    /// A client whose connect has had the time that it takes on this machine: none.
    fn knock(at: &TcpListener) -> (Socket, bool) {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.set_nonblocking(true).unwrap();
        let _ = socket.connect(&at.local_addr().unwrap().into());
        let connected = socket.peer_addr().is_ok();
        socket.set_nonblocking(false).unwrap();
        (socket, connected)
    }

    #[test]
    fn a_deaf_listener_serves_who_is_in_its_queue_and_hears_nobody_else() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (mut early, connected) = knock(&listener);
        assert!(
            connected,
            "the handshake over the loopback is done within connect(2)"
        );
        drop_connects(&listener).unwrap();
        let (late, connected) = knock(&listener);
        assert!(
            !connected && late.take_error().unwrap().is_none(),
            "unheard, and not refused"
        );
        let (mut accepted, _) = listener.accept().unwrap();
        accepted.write_all(b"hello").unwrap();
        drop(accepted);
        drop(listener);
        let mut said = Vec::new();
        early
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        early.read_to_end(&mut said).unwrap();
        assert_eq!(said, b"hello");
    }
}
