//! What a TCP socket can be asked and told.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

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
