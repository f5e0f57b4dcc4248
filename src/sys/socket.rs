//! What can be asked of a TCP socket.

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
