//! Listening sockets that systemd has opened for us (`tollgate.socket`), matched by their addresses.
//!
//! They are optional: what is not passed is opened as ever. A passed socket stays open in systemd when this process ends, and holds who connects in
//! between. Where `ReusePort=yes` lets several have one address, each worker has one of them, and whoever gets none tries to open one beside them
//! (which Linux allows to the user who opened the first: not where that was root and we are not). A worker without one is passed what is too much
//! for the others ([`crate::spread`]).

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;

use rustix::net::sockopt;
use socket2::Socket;
use tracing::warn;

use crate::config::{SessionLimits, SocketOptions};
use crate::leg;
use crate::sys::passed;

/// What was passed and is not used yet.
#[derive(Debug, Default)]
pub struct Passed {
    sockets: Vec<(SocketAddr, OwnedFd)>,
    /// What is none of ours, and why.
    strangers: Vec<String>,
}

/// Passed sockets in use, all of one address.
#[derive(Debug)]
pub struct Activated {
    /// As those that we bind ourselves.
    pub sockets: Vec<TcpListener>,
    /// Whether others may be bound beside them.
    pub is_shared: bool,
}

impl Passed {
    /// Takes what was passed to this process. Before anything is opened.
    #[must_use]
    pub fn take() -> Self {
        match passed::take() {
            Ok(passed) => Self::of(passed),
            Err(error) => Self {
                sockets: Vec::new(),
                strangers: vec![format!(
                    "what LISTEN_PID and LISTEN_FDS say makes no sense: {error}"
                )],
            },
        }
    }

    fn of(passed: Vec<OwnedFd>) -> Self {
        let mut all = Self::default();
        for fd in passed {
            match address(&fd) {
                Ok(address) => all.sockets.push((address, fd)),
                Err(why) => all.strangers.push(why),
            }
        }
        all
    }

    /// The sockets that were passed for an address, if any were, told what the leg wants of them. All of them have to be accepted from: systemd keeps
    /// them open, and the kernel goes on giving each its share of the connections.
    ///
    /// # Errors
    /// The kernel refuses what one is told.
    pub fn sockets(
        &mut self,
        address: SocketAddr,
        limits: &SessionLimits,
        options: &SocketOptions,
    ) -> io::Result<Option<Activated>> {
        let mut activated = Activated {
            sockets: Vec::new(),
            is_shared: false,
        };
        let wanted = |socket: &mut (SocketAddr, OwnedFd)| socket.0 == address;
        for (_, fd) in self.sockets.extract_if(.., wanted) {
            let socket = Socket::from(fd);
            activated.is_shared = socket.reuse_port()?;
            socket.set_nonblocking(true)?;
            leg::prepare(&socket)?;
            leg::guard(&socket, limits)?;
            leg::shape(&socket, options)?;
            activated.sockets.push(socket.into());
        }
        Ok((!activated.sockets.is_empty()).then_some(activated))
    }

    /// Closes what no listener wants, and says so: whoever connects there would wait for ever.
    pub fn close_rest(&mut self) {
        for (address, _) in self.sockets.drain(..) {
            warn!(
                %address,
                "a socket was passed for an address that no listener has; it is closed: write it in bind, or take it out of the socket unit"
            );
        }
        for why in self.strangers.drain(..) {
            warn!("a socket was passed that is of no use: {why}; see the socket unit");
        }
    }
}

/// Where a passed socket listens, or why it does not.
fn address(fd: &OwnedFd) -> Result<SocketAddr, String> {
    let not = |error: io::Error| format!("it is no socket ({error})");
    let kind = sockopt::socket_type(fd).map_err(|errno| not(errno.into()))?;
    let name = rustix::net::getsockname(fd).map_err(|errno| not(errno.into()))?;
    let address = SocketAddr::try_from(name);
    let address = address.map_err(|_| "it is not of TCP over IPv4 or IPv6".to_owned())?;
    if kind != rustix::net::SocketType::STREAM {
        return Err(format!("{address}: it is not of TCP (ListenStream=)"));
    }
    match sockopt::socket_acceptconn(fd) {
        Ok(true) => Ok(address),
        _ => Err(format!(
            "{address}: it does not listen (Accept=no is right)"
        )),
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;
    use crate::config::Config;

    fn config() -> Config {
        let text = "[[listener]]\nname = \"a\"\nbind = \"127.0.0.1:0\"\nproxy_protocol = \"off\"\nupstream = \"b\"\n\
                    [[upstream]]\nname = \"b\"\ntargets = [\"10.0.0.1:1\"]";
        Config::from_str(text, "test").unwrap()
    }

    #[test]
    fn a_socket_is_found_by_its_address_and_once() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = listener.local_addr().unwrap();
        let mut passed = Passed::of(vec![listener.into()]);
        let config = config();
        let listener = &config.listeners[0];
        let (limits, options) = (config.client_leg(listener), &listener.socket);
        let other = "127.0.0.1:1".parse().unwrap();
        let mut found = |at| passed.sockets(at, &limits, options).unwrap();
        assert!(found(other).is_none());
        let activated = found(at).unwrap();
        assert_eq!(activated.sockets[0].local_addr().unwrap(), at);
        assert!(activated.sockets.len() == 1 && !activated.is_shared);
        assert!(found(at).is_none());
    }

    #[test]
    fn what_is_no_listening_socket_is_named() {
        let file = tempfile::tempfile().unwrap();
        let (local, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let silent = Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        let passed = Passed::of(vec![file.into(), local.into(), udp.into(), silent.into()]);
        assert!(passed.sockets.is_empty());
        let parts = [
            "no socket",
            "not of TCP over",
            "ListenStream",
            "does not listen",
        ];
        for (said, part) in passed.strangers.iter().zip(parts) {
            assert!(said.contains(part), "{part} in {said}");
        }
        assert_eq!(passed.strangers.len(), parts.len());
    }
}
