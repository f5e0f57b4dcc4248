//! What both legs of a session have in common: the options of their sockets.

use std::os::fd::AsFd;
use std::time::Duration;
use std::{io, net};

use socket2::{SockRef, TcpKeepalive};

use crate::config::SessionLimits;

/// Sets NODELAY, keepalive and the user timeout. On a listening socket: what is accepted from it inherits them (tcp(7)), which
/// saves five calls per connection.
///
/// # Errors
/// The kernel refused a value.
pub fn set_options(socket: &impl AsFd, limits: &SessionLimits) -> io::Result<()> {
    let socket = SockRef::from(socket);
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_user_timeout(limits.user_timeout)?;
    match limits.keepalive {
        Some(keepalive) => socket.set_tcp_keepalive(
            &TcpKeepalive::new()
                .with_time(keepalive.idle)
                .with_interval(keepalive.interval)
                .with_retries(keepalive.probes),
        ),
        None => socket.set_keepalive(false),
    }
}

/// Makes closing the socket a reset: what it holds is thrown away, and the peer sees that this was no orderly end.
pub fn reset_on_close(socket: &impl AsFd) {
    // Fails only on a socket whose connection is gone: then there is nobody left to reset.
    let _ = SockRef::from(socket).set_linger(Some(Duration::ZERO));
}

/// An address as it is compared, logged and routed: `::ffff:a.b.c.d` is IPv4.
#[must_use]
pub fn canonical(address: net::SocketAddr) -> net::SocketAddr {
    net::SocketAddr::new(address.ip().to_canonical(), address.port())
}
