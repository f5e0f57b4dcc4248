//! Accepting: one socket per worker and address, and a loop that no errno ends.

use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::net::{SocketFlags, acceptfrom_with};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::task::yield_now;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::warn;

use crate::account::{AcceptError, Refusal};
use crate::config::{SessionLimits, SocketOptions};
use crate::leg;
use crate::proxy_protocol::header::HeaderError;
use crate::proxy_protocol::read::Pending;
use crate::reactor::Watched;
use crate::session::{self, Entrance, Whose};
use crate::spread::Passed;
use crate::sys::socket::drop_connects;
use crate::worker::{Hall, OpenGate};

/// Connections the kernel holds for us at most; cut to `net.core.somaxconn` (listen(2)).
const BACKLOG: i32 = 4096;

/// How long accepting rests when descriptors or memory have run out: long enough not to spin, short enough not to be noticed.
const REST: Duration = Duration::from_millis(100);

/// How long accepting waits when the next connection takes another's place: whoever has sent its header already is heard first.
const TURN: Duration = Duration::from_millis(1);

/// How long a socket that is closed while the process goes on is waited at: a handshake over a network that loses a packet of it (the first repetition
/// comes after a second, RFC 6298 section 2.1).
const HANDSHAKES: Duration = Duration::from_millis(1500);

/// Connections accepted in a row before whatever else the worker has to do.
const ACCEPTS: u32 = 16;

/// Whether `address` is free, and which port it is where the kernel chooses (port 0). SO_REUSEPORT lets any process of the same
/// user join an address, and a second relay on it would take half the connections unseen: so it is bound once without, and
/// not listened on, because a connection in that queue would be lost.
///
/// # Errors
/// The address is in use, not ours, or its port needs a permission.
pub fn claim(address: SocketAddr) -> io::Result<SocketAddr> {
    let socket = socket_for(address)?;
    socket.bind(&address.into())?;
    let bound = socket.local_addr()?.as_socket();
    Ok(bound.unwrap_or(address))
}

/// A listening socket that has its address for itself: for the admin and health ports.
///
/// # Errors
/// As [`claim`].
pub fn bind_alone(address: SocketAddr) -> io::Result<StdListener> {
    let socket = socket_for(address)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Whether a listener could be bound there now. Nobody can connect meanwhile.
///
/// # Errors
/// Why it could not.
pub fn could_bind(address: SocketAddr) -> io::Result<()> {
    socket_for(address)?.bind(&address.into())
}

fn socket_for(address: SocketAddr) -> io::Result<Socket> {
    let domain = Domain::for_address(address);
    let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?; // [::] takes IPv4 too, whatever net.ipv6.bindv6only says
    }
    socket.set_reuse_address(true)?;
    Ok(socket)
}

/// A listening socket that shares its address with those of the other workers. What is accepted from it inherits the leg's
/// options.
///
/// # Errors
/// The address is in use, not ours, or its port needs a permission.
pub fn bind(
    address: SocketAddr,
    limits: &SessionLimits,
    options: &SocketOptions,
) -> io::Result<StdListener> {
    let socket = socket_for(address)?;
    socket.set_reuse_port(true)?;
    socket.set_nonblocking(true)?;
    leg::prepare(&socket)?;
    leg::guard(&socket, limits)?;
    leg::shape(&socket, options)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Accepts until the gate is to be closed, then takes what still waits in the queue: closing the socket would reset it.
pub async fn accept_loop(listener: Rc<Watched>, gate: Rc<OpenGate>, sessions: TaskTracker) {
    let mut in_a_row = 0;
    let mut last = None;
    loop {
        let entrance = gate.entrance();
        // Somebody first, a place for him then: or listeners without a client would hold places that others need.
        let descriptors = tokio::select! {
            descriptors = async {
                listener.announced(EventFlags::IN).await;
                reserve(&entrance).await
            } => descriptors,
            () = gate.close.cancelled(), if last.is_none() => {
                // One that was passed to us stays open elsewhere: who comes later waits there.
                match gate.removed.get().is_some() && !gate.passed {
                    true => last = Some(turn_away(&listener)),
                    false => break,
                }
                continue;
            }
            () = until(&entrance, last) => break,
        };
        let Some(descriptors) = descriptors else {
            return;
        };
        let entrance = gate.entrance(); // that of now: there may have been another while nobody came
        match accept_now(&listener) {
            Err(Errno::AGAIN) => listener.drained(),
            Ok((client, peer)) => {
                take(client, peer, descriptors, (&gate, &entrance), &sessions);
                in_a_row += 1;
                if in_a_row % ACCEPTS == 0 {
                    yield_now().await;
                }
                if entrance.waiting.is_full() {
                    entrance.reactor.sleep_until(Instant::now() + TURN).await;
                }
            }
            Err(errno) => {
                if let Some(rest) = accept_failed(&errno.into(), &entrance) {
                    entrance.reactor.sleep_until(Instant::now() + rest).await;
                }
            }
        }
    }
    let entrance = gate.entrance();
    while let Ok(descriptors) = entrance.descriptors.clone().try_acquire_owned()
        && let Ok((client, peer)) = accept_now(&listener)
    {
        take(client, peer, descriptors, (&gate, &entrance), &sessions);
    }
    listener.leave(); // where it stays open elsewhere, closing it would not be the end of its events
}

/// Lets nobody new knock at a socket, and says how long those who have are waited for: the rest of their handshake, one lost packet of it
/// included. Whoever comes then is told by his own kernel's next try that nobody listens, where nobody does.
fn turn_away(listener: &Watched) -> Instant {
    if let Err(error) = drop_connects(listener) {
        warn!(%error, "a socket that is to be closed cannot be told to take no more; who connects at this moment may be reset");
    }
    Instant::now() + HANDSHAKES
}

async fn until(entrance: &Entrance, at: Option<Instant>) {
    match at {
        Some(at) => entrance.reactor.sleep_until(at).await,
        None => std::future::pending().await,
    }
}

fn accept_now(listener: &Watched) -> Result<(OwnedFd, SocketAddr), Errno> {
    let (client, peer) = acceptfrom_with(listener, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC)?;
    let peer = peer.ok_or(Errno::CONNABORTED)?;
    Ok((client, peer.try_into()?))
}

/// Waits until there are descriptors for both legs of another connection: who is accepted without one for the other leg would hold
/// the first in vain, and whoever waits in the kernel's queue loses nothing.
async fn reserve(entrance: &Entrance) -> Option<OwnedSemaphorePermit> {
    if let Ok(permit) = entrance.descriptors.clone().try_acquire_owned() {
        return Some(permit);
    }
    if entrance.ready.load(Ordering::Relaxed) {
        entrance.shard().accept_errors[AcceptError::Resources as usize].add(1);
        if let Some(suppressed) = entrance.accept_log.allow(Instant::now()) {
            let listener = &*entrance.settings.name;
            warn!(
                listener,
                suppressed,
                "cannot accept: all descriptors are in use; waiting for some (LimitNOFILE)"
            );
        }
    }
    entrance.descriptors.clone().acquire_owned().await.ok()
}

/// Takes what other workers pass on, until `stop`, then what is still on its way.
pub async fn receive_loop(
    mut passed: mpsc::Receiver<Passed>,
    hall: Rc<Hall>,
    sessions: TaskTracker,
    stop: CancellationToken,
) {
    loop {
        let next = tokio::select! {
            next = passed.recv() => next,
            () = stop.cancelled(), if !passed.is_closed() => {
                passed.close(); // from now on they keep what they accept
                continue;
            }
        };
        let Some(Passed {
            client,
            peer,
            gate,
            descriptors,
        }) = next
        else {
            return;
        };
        // Each worker knows a gate before any of them accepts there, and until the next configuration but one.
        if let Some(gate) = hall.gate(gate) {
            admit(client, peer, descriptors, &gate, &sessions);
        }
    }
}

/// What is decided before a byte is read: whether the peer may speak to us, and which worker has the connection.
fn take(
    client: OwnedFd,
    peer: SocketAddr,
    descriptors: OwnedSemaphorePermit,
    (gate, entrance): (&Rc<OpenGate>, &Entrance),
    sessions: &TaskTracker,
) {
    let peer = leg::canonical(peer);
    if !entrance.settings.trusted_peers.contains(peer.ip()) {
        return entrance.refuse_header(client, peer, HeaderError::Untrusted);
    }
    let keeper = entrance.spread.keeper(entrance.worker);
    if keeper == entrance.worker {
        return admit(client, peer, descriptors, gate, sessions);
    }
    let passed = Passed {
        client,
        peer,
        gate: gate.id,
        descriptors,
    };
    if let Err(passed) = entrance.spread.pass(keeper, passed) {
        admit(passed.client, peer, passed.descriptors, gate, sessions);
    }
}

/// Whether there is room to wait for its header; then the connection is on its way.
fn admit(
    client: OwnedFd,
    peer: SocketAddr,
    descriptors: OwnedSemaphorePermit,
    gate: &Rc<OpenGate>,
    sessions: &TaskTracker,
) {
    let entrance = gate.entrance();
    let Some(ticket) = entrance.waiting.enter() else {
        return entrance.refuse(client, peer, Whose::NOBODY, Refusal::Pending);
    };
    let Ok(client) = Watched::new(&entrance.reactor, client) else {
        return; // no memory is left for it: it is reset
    };
    let deadline = Instant::now() + entrance.settings.first_byte_timeout;
    let pending = Pending {
        client,
        peer,
        read: Vec::new(),
        deadline,
    };
    let load = entrance.spread.load(entrance.worker, descriptors);
    sessions.spawn_local(session::serve(gate.clone(), pending, ticket, load));
}

/// Counts an error of accept(2); says how long to rest, if at all.
fn accept_failed(error: &io::Error, entrance: &Entrance) -> Option<Duration> {
    let class = classify(error);
    entrance.shard().accept_errors[class as usize].add(1);
    if class == AcceptError::Connection {
        return None;
    }
    if let Some(suppressed) = entrance.accept_log.allow(Instant::now()) {
        let listener = &*entrance.settings.name;
        warn!(listener, %error, suppressed, "cannot accept; trying again (descriptors: LimitNOFILE, memory)");
    }
    Some(REST)
}

/// accept(2), ERRORS: pending network errors of the new socket are reported by accept and concern that connection alone.
fn classify(error: &io::Error) -> AcceptError {
    match Errno::from_io_error(error) {
        Some(
            Errno::CONNABORTED
            | Errno::INTR
            | Errno::AGAIN
            | Errno::PROTO
            | Errno::NETDOWN
            | Errno::NOPROTOOPT
            | Errno::HOSTDOWN
            | Errno::NONET
            | Errno::HOSTUNREACH
            | Errno::OPNOTSUPP
            | Errno::NETUNREACH
            | Errno::PERM
            | Errno::TIMEDOUT
            | Errno::CONNRESET,
        ) => AcceptError::Connection,
        Some(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM) => AcceptError::Resources,
        _ => AcceptError::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_aborted_connection_is_its_own_trouble_and_descriptors_are_ours() {
        let class = |errno: Errno| classify(&errno.into());
        assert_eq!(class(Errno::CONNABORTED), AcceptError::Connection);
        assert_eq!(class(Errno::MFILE), AcceptError::Resources);
        assert_eq!(class(Errno::BADF), AcceptError::Other);
    }

    #[test]
    fn workers_share_an_address() {
        let limits = SessionLimits {
            idle_timeout: None,
            half_close_timeout: None,
            max_age: None,
            keepalive: None,
            user_timeout: Some(Duration::from_secs(300)),
        };
        let bind = |address| super::bind(address, &limits, &SocketOptions::default()).unwrap();
        let first = bind("127.0.0.1:0".parse().unwrap());
        let second = bind(first.local_addr().unwrap());
        assert_eq!(first.local_addr().unwrap(), second.local_addr().unwrap());
    }
}
