//! The options of one leg's sockets that an operator chose.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;

use rustix::io::Errno;
use rustix::net::sockopt::set_tcp_congestion;
use socket2::{Domain, SockRef, Socket, Type};

use super::wan;
use crate::config::SocketOptions;
use crate::sys::socket::bind_without_port;

/// Sets what `options` say, and nothing else: without any, this makes no system call. Call it before connect(2) or listen(2): the receive
/// buffer decides about the window scale of the handshake. On a listening socket: what is accepted inherits all of it.
///
/// The source is taken for a socket of its own family only: with one of IPv4, connections to IPv6 addresses come from where the kernel says.
/// It takes no port, so that one source serves about 28,000 connections to each of an upstream's addresses, and not to all together.
///
/// # Errors
/// The source is no address of this machine, or the kernel refuses the congestion control that was ordered; one that was only wished for is
/// left out in silence ([`settle`] has said so).
pub fn shape(socket: &impl AsFd, options: &SocketOptions) -> io::Result<()> {
    if let Some(name) = &options.congestion {
        match set_tcp_congestion(socket, name) {
            Err(errno) if !is_wish(options) => return Err(refused(name, errno).into()),
            _ => {}
        }
    }
    let socket = SockRef::from(socket);
    // The kernel doubles what it is asked for, for its own records, and reports the double (socket(7)).
    if let Some(size) = options.send_buffer {
        socket.set_send_buffer_size(size / 2)?;
    }
    if let Some(size) = options.receive_buffer {
        socket.set_recv_buffer_size(size / 2)?;
    }
    if let Some(size) = options.notsent_lowat {
        socket.set_tcp_notsent_lowat(u32::try_from(size).unwrap_or(u32::MAX))?;
    }
    match options.source {
        Some(source) => leave_from(&socket, source.to_canonical()),
        None => Ok(()),
    }
}

fn leave_from(socket: &Socket, source: IpAddr) -> io::Result<()> {
    let source = SocketAddr::new(source, 0);
    if socket.domain()? != Domain::for_address(source) {
        return Ok(());
    }
    bind_without_port(socket)?;
    match socket.bind(&source.into()) {
        Err(error) if Errno::from_io_error(&error) == Some(Errno::ADDRNOTAVAIL) => {
            let text = format!("source {} is no address of this machine", source.ip());
            Err(io::Error::new(io::ErrorKind::AddrNotAvailable, text))
        }
        result => result,
    }
}

/// Whether the congestion control is the preset's own choice: taken where the kernel gives it. Whatever else is written was meant.
pub(super) fn is_wish(options: &SocketOptions) -> bool {
    options.wan && options.congestion == wan().congestion
}

/// A congestion control that was ordered and is not to be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Refused {
    /// Whether it is a permission that is missing, not the congestion control.
    pub permission: bool,
    /// What and why, and what to do.
    pub reason: String,
}

impl From<Refused> for io::Error {
    fn from(refused: Refused) -> Self {
        let kind = match refused.permission {
            true => io::ErrorKind::PermissionDenied,
            false => io::ErrorKind::NotFound,
        };
        Self::new(kind, refused)
    }
}

pub(super) fn refused(name: &str, errno: Errno) -> Refused {
    let permission = errno == Errno::PERM;
    let reason = match errno {
        Errno::PERM => format!(
            "congestion control {name:?} is not allowed to this process: add it to net.ipv4.tcp_allowed_congestion_control"
        ),
        Errno::NOENT => format!(
            "congestion control {name:?} is not in this kernel: load it (modprobe tcp_{name}, at each start: /etc/modules-load.d) or choose \
             one of net.ipv4.tcp_available_congestion_control"
        ),
        _ => format!("congestion control {name:?}: {errno}"),
    };
    Refused { permission, reason }
}

/// Tries once what each socket will be told, so that it is known before the first connection: `options` without a wish that the kernel does
/// not grant, and with everything that was ordered.
///
/// # Errors
/// See [`Refused`].
pub fn settle(options: &SocketOptions) -> Result<SocketOptions, Refused> {
    let mut settled = options.clone();
    let Some(name) = &options.congestion else {
        return Ok(settled);
    };
    let socket = |domain| Socket::new(domain, Type::STREAM, None);
    // A process without a socket to try with has greater troubles, and they will be said.
    let Ok(socket) = socket(Domain::IPV4).or_else(|_| socket(Domain::IPV6)) else {
        return Ok(settled);
    };
    match set_tcp_congestion(&socket, name) {
        Err(_) if is_wish(options) => settled.congestion = None,
        Err(errno) => return Err(refused(name, errno)),
        Ok(()) => {}
    }
    Ok(settled)
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream;
    use std::sync::Arc;
    use std::time::Duration;

    use rustix::net::sockopt::tcp_congestion;

    use super::*;
    use crate::config::{Keepalive, SessionLimits};
    use crate::listener;

    /// Everything that can be said, with values that no kernel has by itself.
    fn unusual() -> SocketOptions {
        SocketOptions {
            congestion: Some(Arc::from("reno")),
            send_buffer: Some(90_000),
            receive_buffer: Some(70_000),
            notsent_lowat: Some(12_345),
            source: None,
            wan: false,
        }
    }

    fn socket(domain: Domain) -> Socket {
        Socket::new(domain, Type::STREAM, None).unwrap()
    }

    #[track_caller]
    fn assert_unusual(socket: &Socket) {
        assert_eq!(tcp_congestion(socket).unwrap(), "reno");
        assert_eq!(socket.send_buffer_size().unwrap(), 90_000);
        assert_eq!(socket.recv_buffer_size().unwrap(), 70_000);
        assert_eq!(socket.tcp_notsent_lowat().unwrap(), 12_345);
    }

    #[test]
    fn each_option_is_set() {
        for domain in [Domain::IPV4, Domain::IPV6] {
            let socket = socket(domain);
            shape(&socket, &unusual()).unwrap();
            assert_unusual(&socket);
        }
    }

    #[test]
    fn without_options_a_socket_stays_as_the_kernel_made_it() {
        let (plain, shaped) = (socket(Domain::IPV4), socket(Domain::IPV4));
        shape(&shaped, &SocketOptions::default()).unwrap();
        let told = |socket: &Socket| {
            let sizes = (socket.send_buffer_size(), socket.recv_buffer_size());
            (
                tcp_congestion(socket).unwrap(),
                (sizes.0.unwrap(), sizes.1.unwrap()),
                socket.tcp_notsent_lowat().unwrap(),
            )
        };
        assert_eq!(told(&shaped), told(&plain));
    }

    /// A list of what accept(2) passes on, on the kernel that runs this: a relay saves a dozen calls per connection by it.
    #[test]
    fn an_accepted_socket_inherits_every_option_of_its_listener() {
        let limits = SessionLimits {
            idle_timeout: None,
            half_close_timeout: None,
            max_age: None,
            keepalive: Some(Keepalive {
                idle: Duration::from_secs(77),
                interval: Duration::from_secs(11),
                probes: 3,
            }),
            user_timeout: Some(Duration::from_millis(4321)),
        };
        let listener = listener::bind("127.0.0.1:0".parse().unwrap(), &limits, &unusual()).unwrap();
        listener.set_nonblocking(false).unwrap();
        let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        let accepted = Socket::from(accepted);
        assert_unusual(&accepted);
        assert_eq!(accepted.linger().unwrap(), Some(Duration::ZERO));
        assert!(accepted.out_of_band_inline().unwrap());
        assert!(accepted.tcp_nodelay().unwrap());
        assert!(accepted.keepalive().unwrap());
        let second = Duration::from_secs;
        assert_eq!(accepted.tcp_keepalive_time().unwrap(), second(77));
        assert_eq!(accepted.tcp_keepalive_interval().unwrap(), second(11));
        assert_eq!(accepted.tcp_keepalive_retries().unwrap(), 3);
        let user_timeout = accepted.tcp_user_timeout().unwrap();
        assert_eq!(user_timeout, Some(Duration::from_millis(4321)));
    }

    #[test]
    fn a_source_takes_an_address_and_no_port() {
        for (domain, source) in [(Domain::IPV4, "127.0.0.9"), (Domain::IPV6, "::1")] {
            let options = SocketOptions {
                source: Some(source.parse().unwrap()),
                ..SocketOptions::default()
            };
            let socket = socket(domain);
            shape(&socket, &options).unwrap();
            let bound = socket.local_addr().unwrap().as_socket().unwrap();
            // The port is chosen at connect(2), when the other end is known.
            assert_eq!(bound, SocketAddr::new(source.parse().unwrap(), 0));
        }
    }

    #[test]
    fn a_connection_comes_from_its_source() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let options = SocketOptions {
            source: Some("127.0.0.9".parse().unwrap()),
            ..SocketOptions::default()
        };
        let client = socket(Domain::IPV4);
        shape(&client, &options).unwrap();
        client
            .connect(&listener.local_addr().unwrap().into())
            .unwrap();
        let (_, peer) = listener.accept().unwrap();
        assert_eq!(peer.ip(), options.source.unwrap());
    }

    #[test]
    fn a_source_of_the_other_family_is_left_out() {
        for (domain, source) in [(Domain::IPV6, "127.0.0.9"), (Domain::IPV4, "::1")] {
            let options = SocketOptions {
                source: Some(source.parse().unwrap()),
                ..SocketOptions::default()
            };
            let socket = socket(domain);
            shape(&socket, &options).unwrap();
            let bound = socket.local_addr().unwrap().as_socket().unwrap();
            assert!(bound.ip().is_unspecified(), "{bound}");
        }
    }

    #[test]
    fn a_source_that_is_not_ours_is_named() {
        let options = SocketOptions {
            source: Some("192.0.2.1".parse().unwrap()),
            ..SocketOptions::default()
        };
        let error = shape(&socket(Domain::IPV4), &options).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrNotAvailable);
        assert!(error.to_string().contains("192.0.2.1"), "{error}");
    }

    #[test]
    fn a_wrong_order_is_refused_and_a_wish_is_dropped() {
        let order = SocketOptions {
            congestion: Some(Arc::from("nonesuch")),
            ..wan()
        };
        let refused = settle(&order).unwrap_err();
        assert!(!refused.permission);
        assert!(
            refused
                .reason
                .contains("\"nonesuch\" is not in this kernel")
        );
        let error = shape(&socket(Domain::IPV4), &order).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);

        let settled = settle(&wan()).unwrap();
        let socket = socket(Domain::IPV4);
        let granted = set_tcp_congestion(&socket, "bbr").is_ok();
        assert_eq!(settled.congestion.is_some(), granted);
        shape(&socket, &wan()).unwrap();
        assert_eq!(socket.tcp_notsent_lowat().unwrap(), 1 << 20);
    }
}
