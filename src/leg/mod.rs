//! What both legs of a session have in common: the options of their sockets.
//!
//! Those that every socket has are here. [`shape`](shape()) sets what an operator chose for one leg, [`findings`](findings()) says beforehand what
//! of it this machine does not give.

pub mod findings;
mod shape;
mod wan;

use std::os::fd::AsFd;
use std::time::Duration;
use std::{io, net};

use socket2::{SockRef, TcpKeepalive};

pub use findings::findings;
pub use shape::{Refused, settle, shape};
pub use wan::wan;

use crate::config::SessionLimits;
use crate::proxy_protocol::header::Addresses;

/// Sets NODELAY, urgent data in line, and that a socket which is dropped is reset. On a listening socket: what is accepted from it inherits
/// them (tcp(7)), and saves the calls.
///
/// A reset is what a dropped socket owes its peer: a relay that is killed, or gives up, must not make a stream that was cut look
/// complete. Only an orderly end says otherwise ([`close_in_order`]).
///
/// # Errors
/// The kernel refused a value.
pub fn prepare(socket: &impl AsFd) -> io::Result<()> {
    let socket = SockRef::from(socket);
    socket.set_linger(Some(Duration::ZERO))?;
    socket.set_out_of_band_inline(true)?;
    socket.set_tcp_nodelay(true)
}

/// Sets keepalive and the user timeout, which find out that a peer has vanished. On a listening socket as [`prepare`]; on a connected one
/// in time for the first of them ([`unguarded_for`]).
///
/// # Errors
/// The kernel refused a value.
pub fn guard(socket: &impl AsFd, limits: &SessionLimits) -> io::Result<()> {
    let socket = SockRef::from(socket);
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

/// Makes the kernel ask the other end of an idle connection every second, and give it up when nothing came back for `patience`: whatever is
/// sent on it, too.
///
/// # Errors
/// The kernel refused a value.
pub fn watch_idle(socket: &impl AsFd, patience: Duration) -> io::Result<()> {
    let socket = SockRef::from(socket);
    let second = Duration::from_secs(1);
    socket.set_tcp_user_timeout(Some(patience))?;
    let asked = TcpKeepalive::new().with_time(second).with_interval(second);
    socket.set_tcp_keepalive(&asked)
}

/// How long a connection may do without [`guard`]: a twentieth of what it would first wait for. Many sessions are over by then and never pay
/// its five calls. `None`: for ever.
#[must_use]
pub fn unguarded_for(limits: &SessionLimits) -> Option<Duration> {
    let keepalive = limits.keepalive.map(|keepalive| keepalive.idle);
    let first = [keepalive, limits.user_timeout].into_iter().flatten().min();
    first.map(|first| first / 20)
}

/// Makes closing the socket an orderly end: a FIN, behind everything that was written to it.
pub fn close_in_order(socket: &impl AsFd) {
    // Fails only on a socket whose connection is gone: then there is nobody left to tell.
    let _ = SockRef::from(socket).set_linger(None);
}

/// An address as it is compared, logged and routed: `::ffff:a.b.c.d` is IPv4.
#[must_use]
pub fn canonical(address: net::SocketAddr) -> net::SocketAddr {
    net::SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Both ends of a client's connection, as it reached us: for where nobody told of another.
#[must_use]
pub fn ends(client: &impl AsFd, peer: net::SocketAddr) -> Option<Addresses> {
    let here = SockRef::from(client).local_addr().ok()?.as_socket()?;
    Some(Addresses {
        source: peer,
        destination: canonical(here),
    })
}
