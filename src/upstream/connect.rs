//! Dials an upstream: its addresses in turn, each at most once, within the bounds of a try and of all tries together.

use std::cell::Cell;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};
use socket2::{Domain, Protocol, Socket, Type};
use tracing::{debug, warn};

use super::Upstream;
use crate::leg;
use crate::reactor::{END, Reactor, Watched};
use crate::telemetry::LogLimiter;

/// Why no connection was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConnectError {
    /// The upstream has no address, or none became known in time.
    NoAddress,
    /// Every address that there was time for failed.
    Failed,
    /// A connection was made, and reset at once without a byte: the upstream's own answer, which another address is not asked for.
    Reset,
}

/// One worker's way to an upstream: takes its addresses in turn.
#[derive(Debug)]
pub struct Dialer {
    reactor: Rc<Reactor>,
    upstream: Arc<Upstream>,
    /// Where the next session begins in the list.
    turn: Cell<usize>,
    failures: LogLimiter,
    shortages: LogLimiter,
}

impl Dialer {
    /// `worker` sets where the turns begin, so that workers do not go round in step.
    #[must_use]
    pub fn new(reactor: Rc<Reactor>, upstream: Arc<Upstream>, worker: usize) -> Self {
        Self {
            reactor,
            upstream,
            turn: Cell::new(worker),
            failures: LogLimiter::default(),
            shortages: LogLimiter::default(),
        }
    }

    /// A connection to one of the addresses, prepared but not guarded: see [`leg`].
    ///
    /// # Errors
    /// [`ConnectError`], after `connect_deadline` at the latest.
    pub async fn connect(&self) -> Result<(Watched, SocketAddr), ConnectError> {
        let deadline = Instant::now() + self.upstream.connect_deadline;
        let addresses = self.addresses(deadline).await?;
        let first = self.turn.get();
        self.turn.set(first.wrapping_add(1));
        for n in 0..addresses.len() {
            let address = addresses[first.wrapping_add(n) % addresses.len()];
            match self.try_address(address, deadline).await {
                Ok(stream) => return Ok((stream, address)),
                Err(error) if is_reset(&error) => return Err(ConnectError::Reset),
                Err(error) => self.failed(address, &error),
            }
            if Instant::now() >= deadline {
                break;
            }
        }
        Err(ConnectError::Failed)
    }

    /// One address, within its try. Where it is we who lack something, it is tried again until the deadline: another address would
    /// fail as well, and sessions end all the time.
    async fn try_address(&self, address: SocketAddr, deadline: Instant) -> io::Result<Watched> {
        loop {
            let began = Instant::now();
            let until = deadline.min(began + self.upstream.connect_timeout);
            let dialled = dial(&self.reactor, address);
            match self.reactor.timeout_at(until, dialled).await {
                Some(Ok(stream)) => {
                    let took = began.elapsed().as_secs_f64();
                    self.upstream.connect_seconds.observe(took);
                    return Ok(stream);
                }
                Some(Err(error)) if is_ours(&error) && began + REST < deadline => {
                    if let Some(suppressed) = self.shortages.allow(began) {
                        warn!(%error, suppressed, "no socket left for an upstream; waiting for one (descriptors: LimitNOFILE)");
                    }
                    self.reactor.sleep_until(Instant::now() + REST).await;
                }
                Some(Err(error)) => return Err(error),
                None => return Err(io::ErrorKind::TimedOut.into()),
            }
        }
    }

    /// The list as it is now; waits for the first look-up of a process that has just started.
    async fn addresses(&self, deadline: Instant) -> Result<Arc<[SocketAddr]>, ConnectError> {
        let known = self.upstream.published.borrow().addresses.clone();
        if !known.is_empty() {
            return Ok(known);
        }
        let mut published = self.upstream.published.subscribe();
        let known =
            published.wait_for(|published| published.looked_up || !published.addresses.is_empty());
        let addresses = match self.reactor.timeout_at(deadline, known).await {
            Some(Ok(published)) => published.addresses.clone(),
            Some(Err(_)) | None => return Err(ConnectError::NoAddress),
        };
        if addresses.is_empty() {
            self.upstream.refresh.notify_waiters();
            return Err(ConnectError::NoAddress);
        }
        Ok(addresses)
    }

    fn failed(&self, address: SocketAddr, error: &io::Error) {
        self.upstream.refresh.notify_waiters();
        let upstream = &*self.upstream.name;
        match self.failures.allow(Instant::now()) {
            Some(suppressed) => {
                warn!(upstream, %address, %error, suppressed, "cannot connect to the upstream")
            }
            None => debug!(upstream, %address, %error, "cannot connect to the upstream"),
        }
    }
}

/// How long to wait when descriptors or memory have run out.
const REST: Duration = Duration::from_millis(100);

/// Whether an error is a shortage of this process or machine, not of the address.
fn is_ours(error: &io::Error) -> bool {
    let errno = Errno::from_io_error(error);
    matches!(
        errno,
        Some(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM)
    )
}

/// Whether a connection was made before it failed: what a SYN is refused with is ECONNREFUSED (tcp_reset of Linux).
fn is_reset(error: &io::Error) -> bool {
    let errno = Errno::from_io_error(error);
    matches!(errno, Some(Errno::CONNRESET | Errno::PIPE))
}

async fn dial(reactor: &Rc<Reactor>, address: SocketAddr) -> io::Result<Watched> {
    let kind = Type::STREAM.nonblocking().cloexec();
    let socket = Socket::new(Domain::for_address(address), kind, Some(Protocol::TCP))?;
    leg::prepare(&socket)?;
    match socket.connect(&address.into()) {
        Err(error) if Errno::from_io_error(&error) != Some(Errno::INPROGRESS) => return Err(error),
        _ => {}
    }
    // Only now: a socket that is not connecting counts as hung up.
    let socket = Watched::new(reactor, socket.into())?;
    let announced = socket.announced(EventFlags::OUT).await;
    // A failure, or a connection that was made and whose end came quickly: a look tells, and leaves bytes and what comes behind them alone.
    if announced.intersects(END) {
        match recv(&socket, &mut [0; 1], RecvFlags::PEEK) {
            Ok(_) | Err(Errno::AGAIN | Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(socket)
}
