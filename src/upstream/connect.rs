//! Dials an upstream: addresses in the order of the balance, each at most once, the next one beside a try that takes too long, within the
//! bounds of a try and of all tries together.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::Poll;
use std::time::{Duration, Instant};

use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};
use socket2::{Domain, Protocol, Socket, Type};
use tracing::{debug, warn};

use super::address::{Address, Hold};
use super::ahead::{Pool, is_alive};
use super::balance::{Balancer, Picks};
use super::snapshot::Snapshot;
use super::{AheadOutcome, Upstream};
use crate::config::SocketOptions;
use crate::leg;
use crate::reactor::{END, Reactor, Watched};
use crate::telemetry::LogLimiter;

/// Why no connection was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConnectError {
    /// The upstream has no address, or none became known in time.
    NoAddress,
    /// Every address that there was time and budget for failed.
    Failed,
    /// A connection was made, and reset at once without a byte; and no other address did better.
    Reset,
}

/// A connection to an upstream, prepared but not guarded: see [`leg`].
#[derive(Debug)]
pub struct Connected {
    /// The socket.
    pub socket: Watched,
    /// Its place on the address.
    pub hold: Hold,
    /// It was dialled before it was asked for: the upstream may have given it up meanwhile.
    pub ahead: bool,
}

/// One worker's way to an upstream.
#[derive(Debug)]
pub struct Dialer {
    pub(super) reactor: Rc<Reactor>,
    pub(super) upstream: Arc<Upstream>,
    pub(super) balancer: Balancer,
    budget: Budget,
    pool: Option<Pool>,
    failures: LogLimiter,
    shortages: LogLimiter,
}

/// Tries of one session that may be under way at once.
const ABREAST: usize = 4;

type Try<'a> = Pin<Box<dyn Future<Output = (Arc<Address>, io::Result<Connected>)> + 'a>>;

impl Dialer {
    /// `seed` sets where turns and chance begin, so that workers do not go round in step.
    #[must_use]
    pub fn new(reactor: Rc<Reactor>, upstream: Arc<Upstream>, seed: u64) -> Self {
        let settings = &upstream.settings;
        Self {
            balancer: Balancer::new(settings.balance, seed),
            budget: Budget::new(settings.retry_budget, Instant::now()),
            pool: settings.ahead.map(Pool::new),
            reactor,
            upstream,
            failures: LogLimiter::default(),
            shortages: LogLimiter::default(),
        }
    }

    /// Whose addresses it dials.
    #[must_use]
    pub fn upstream(&self) -> &Upstream {
        &self.upstream
    }

    /// A number of at least 0 and below 1.
    #[must_use]
    pub fn chance(&self) -> f64 {
        self.balancer.fraction()
    }

    /// A connection for a session, to one of the addresses; one that was dialled ahead where there is one. `key` is what
    /// [`key_of`](super::balance::key_of) makes of the endpoint.
    ///
    /// # Errors
    /// [`ConnectError`], after `connect_deadline` at the latest.
    pub async fn connect(&self, key: u64) -> Result<Connected, ConnectError> {
        if let Some(pool) = &self.pool
            && let Some(connected) = pool.take(self, key)
        {
            return Ok(connected);
        }
        self.dial(key).await
    }

    /// As [`Dialer::connect`], but never one that was dialled ahead.
    ///
    /// # Errors
    /// As [`Dialer::connect`].
    pub async fn dial(&self, key: u64) -> Result<Connected, ConnectError> {
        let now = Instant::now();
        self.budget.session();
        let deadline = now + self.upstream.settings.connect_deadline;
        let snapshot = self.addresses(deadline).await?;
        let mut picks = self.balancer.picks(snapshot, key);
        let mut tries: Vec<Try<'_>> = Vec::new();
        let mut begun: Vec<Arc<Address>> = Vec::new(); // in the order of their start
        let mut next_at = Some(now);
        let mut failed = ConnectError::Failed;
        loop {
            if next_at.is_some_and(|at| at <= Instant::now()) {
                next_at = self.begin(&mut picks, &mut tries, &mut begun, deadline);
            }
            if tries.is_empty() {
                return Err(failed);
            }
            let until = next_at.map_or(deadline, |at| at.min(deadline));
            match self.reactor.timeout_at(until, first_of(&mut tries)).await {
                Some((address, Ok(connected))) => {
                    self.overtaken(&begun, &address);
                    return Ok(connected);
                }
                Some((address, Err(error))) => {
                    begun.retain(|other| !Arc::ptr_eq(other, &address));
                    if is_reset(&error) {
                        failed = ConnectError::Reset;
                    } else {
                        self.failed(&address, &error);
                    }
                    next_at = next_at.map(|_| Instant::now());
                }
                None if Instant::now() >= deadline => {
                    for address in begun {
                        self.failed(&address, &io::ErrorKind::TimedOut.into());
                    }
                    return Err(ConnectError::Failed);
                }
                None => {}
            }
        }
    }

    /// Begins another try where there is an address and the budget allows it; says when the next one may begin. `None`: none will.
    fn begin<'a>(
        &'a self,
        picks: &mut Picks,
        tries: &mut Vec<Try<'a>>,
        begun: &mut Vec<Arc<Address>>,
        deadline: Instant,
    ) -> Option<Instant> {
        let now = Instant::now();
        if now >= deadline {
            return None;
        }
        if tries.len() == ABREAST {
            return Some(deadline);
        }
        let first = begun.is_empty() && picks.is_fresh();
        let address = self.balancer.next(picks, now)?;
        if !first {
            if !self.budget.retry(now) {
                self.upstream.dialled.denied.fetch_add(1, Relaxed);
                return None;
            }
            self.upstream.dialled.retries.fetch_add(1, Relaxed);
        }
        begun.push(address.clone());
        let patience = self.patience(&address);
        let hold = Hold::session(address.clone());
        tries.push(Box::pin(async move {
            let tried = self.try_address(hold, deadline).await;
            (address, tried)
        }));
        Some(now + patience)
    }

    /// How long a try stays alone. Somebody who always takes long is not overtaken for it.
    fn patience(&self, address: &Address) -> Duration {
        let usual = address.connect_time().unwrap_or_default();
        (usual + usual / 2).max(self.upstream.settings.next_try_after)
    }

    /// One address, within its try. Where it is we who lack something, it is tried again until the deadline: another address would
    /// fail as well, and sessions end all the time.
    pub(super) async fn try_address(&self, hold: Hold, deadline: Instant) -> io::Result<Connected> {
        loop {
            let began = Instant::now();
            let until = deadline.min(began + self.upstream.settings.connect_timeout);
            let dialled = dial(
                &self.reactor,
                hold.address(),
                &self.upstream.settings.socket,
            );
            match self.reactor.timeout_at(until, dialled).await {
                Some(Ok(socket)) => {
                    let took = began.elapsed();
                    self.upstream.connect_seconds.observe(took.as_secs_f64());
                    hold.address().connected(took);
                    return Ok(Connected {
                        socket,
                        hold,
                        ahead: false,
                    });
                }
                Some(Err(error)) if is_reset(&error) => {
                    hold.address().reset_early(None);
                    return Err(error);
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

    /// The addresses as they are now; waits for the first look-up of a process that has just started.
    async fn addresses(&self, deadline: Instant) -> Result<Arc<Snapshot>, ConnectError> {
        let known = self.upstream.snapshot();
        if !known.is_empty() {
            return Ok(known);
        }
        let mut changes = self.upstream.changes();
        let known = changes.wait_for(|snapshot| snapshot.looked_up || !snapshot.is_empty());
        let known = match self.reactor.timeout_at(deadline, known).await {
            Some(Ok(snapshot)) => snapshot.clone(),
            Some(Err(_)) | None => return Err(ConnectError::NoAddress),
        };
        if known.is_empty() {
            self.upstream.refresh.notify_waiters();
            return Err(ConnectError::NoAddress);
        }
        Ok(known)
    }

    /// Whoever was asked before the one that answered has taken too long: as good as failed.
    fn overtaken(&self, begun: &[Arc<Address>], winner: &Arc<Address>) {
        let slower = begun
            .iter()
            .take_while(|address| !Arc::ptr_eq(address, winner));
        for address in slower {
            self.failed(address, &io::Error::other("another address answered first"));
        }
    }

    pub(super) fn failed(&self, address: &Address, error: &io::Error) {
        self.upstream.dialled.failures.fetch_add(1, Relaxed);
        // Our source is not here, no port is left towards the address, or no descriptor: no fault of its own.
        if error.kind() != io::ErrorKind::AddrNotAvailable && !is_ours(error) {
            address.connect_failed();
        }
        self.upstream.refresh.notify_waiters();
        let (upstream, address) = (&*self.upstream.name, address.at);
        match self.failures.allow(Instant::now()) {
            Some(suppressed) => {
                warn!(upstream, %address, %error, suppressed, "cannot connect to the upstream")
            }
            None => debug!(upstream, %address, %error, "cannot connect to the upstream"),
        }
    }

    /// Whether the upstream has given up a connection that was dialled ahead, before anybody said anything on it. Waits until one side says
    /// something, but no longer than such connections are kept at all: an upstream's patience with a silent client may be that short.
    pub async fn is_given_up(&self, connected: &Connected, client: &Watched) -> bool {
        let Some(ahead) = self.upstream.settings.ahead else {
            return false;
        };
        let heard = poll_fn(|context| {
            let upstream = connected.socket.poll_announced(context, EventFlags::IN);
            let client = client.poll_announced(context, EventFlags::IN);
            match (upstream, client) {
                (Poll::Ready(_), _) => Poll::Ready(true),
                (Poll::Pending, Poll::Ready(_)) => Poll::Ready(false),
                (Poll::Pending, Poll::Pending) => Poll::Pending,
            }
        });
        let until = Instant::now() + ahead.max_age;
        let heard = self.reactor.timeout_at(until, heard).await;
        let given_up = heard == Some(true) && !is_alive(&connected.socket);
        if given_up {
            self.count(AheadOutcome::Stale);
        }
        given_up
    }

    /// The upstream ended a connection dialled ahead as soon as it was made.
    pub(super) fn unwelcome(&self, address: &Address) {
        address.reset_early(None);
        if let Some(suppressed) = self.failures.allow(Instant::now()) {
            let upstream = &*self.upstream.name;
            warn!(upstream, address = %address.at, suppressed, "the upstream ends connections as soon as they are made; dialling ahead waits");
        }
    }

    /// Keeps the connections dialled ahead, for ever; returns at once where there are to be none.
    pub async fn keep_ahead(&self) {
        if let Some(pool) = &self.pool {
            pool.keep(self).await;
        }
    }

    pub(super) fn count(&self, outcome: AheadOutcome) {
        self.upstream.dialled.count(outcome);
    }
}

/// Waits for the first of several futures and takes it out of the list.
pub(super) async fn first_of<T>(futures: &mut Vec<Pin<Box<dyn Future<Output = T> + '_>>>) -> T {
    poll_fn(|context| {
        for index in 0..futures.len() {
            if let Poll::Ready(output) = futures[index].as_mut().poll(context) {
                drop(futures.remove(index));
                return Poll::Ready(output);
            }
        }
        Poll::Pending
    })
    .await
}

/// Bounds the tries beyond the first of each session, so that an upstream which fails is not asked twice as much.
#[derive(Debug)]
struct Budget {
    /// For each hundred sessions.
    percent: u32,
    /// Hundredths of a try.
    saved: Cell<u64>,
    since: Cell<Instant>,
}

impl Budget {
    /// Tries saved up at most, and there at the start.
    const MOST: u64 = 1000 * 100;
    /// Tries a second that are always allowed.
    const FLOOR: u64 = 10;

    fn new(percent: u32, now: Instant) -> Self {
        Self {
            percent,
            saved: Cell::new(Self::MOST / 10),
            since: Cell::new(now),
        }
    }

    /// A session begins.
    fn session(&self) {
        self.save(self.percent.into());
    }

    /// Whether another try is allowed; then it is spent.
    fn retry(&self, now: Instant) -> bool {
        if self.percent == 0 {
            return false;
        }
        let passed = now.saturating_duration_since(self.since.replace(now));
        let floor = passed.as_millis().min(10_000) as u64 * Self::FLOOR / 10;
        self.save(floor);
        let enough = self.saved.get() >= 100;
        if enough {
            self.saved.set(self.saved.get() - 100);
        }
        enough
    }

    fn save(&self, hundredths: u64) {
        self.saved
            .set((self.saved.get() + hundredths).min(Self::MOST));
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

async fn dial(
    reactor: &Rc<Reactor>,
    address: &Address,
    options: &SocketOptions,
) -> io::Result<Watched> {
    let kind = Type::STREAM.nonblocking().cloexec();
    let domain = Domain::for_address(address.at);
    let socket = Socket::new(domain, kind, Some(Protocol::TCP))?;
    leg::prepare(&socket)?;
    leg::shape(&socket, options)?;
    match socket.connect(&address.at.into()) {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retries_are_a_share_of_the_sessions_and_a_few_always() {
        let now = Instant::now();
        let budget = Budget::new(50, now);
        let spend = |now| std::iter::from_fn(|| budget.retry(now).then_some(())).count();
        assert_eq!(spend(now), 100, "what is there at the start");
        for _ in 0..40 {
            budget.session();
        }
        assert_eq!(spend(now), 20);
        assert_eq!(spend(now + Duration::from_secs(2)), 20, "ten a second");
        for _ in 0..10_000 {
            budget.session();
        }
        assert_eq!(spend(now + Duration::from_secs(2)), 1000, "the most");
        assert!(!Budget::new(0, now).retry(now));
    }
}
