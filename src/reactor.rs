//! A worker's one wait: an epoll instance for listeners, for sockets that a task waits for and for those that the engine relays between,
//! with the tasks' timers and a bell for other threads.
//!
//! A socket is registered once, edge-triggered and for everything: when a session leaves its task for the engine, only the owner of its
//! events changes. So a connection costs one epoll_ctl(2) per socket, and a byte costs no runtime anything. The exception is a source
//! whose sink does not keep up ([`Watched::listen`]).
//!
//! Tasks that are woken from within the thread cost no system call; other threads ring the bell when the worker sleeps.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::event::{EventfdFlags, Timespec, eventfd};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use slab::Slab;

/// What epoll hands back when the bell was rung.
const BELL: u64 = u64::MAX;

/// What each socket is registered for. A listener has no use for most of it and never gets it.
const EVERYTHING: EventFlags = EventFlags::IN
    .union(EventFlags::PRI)
    .union(EventFlags::OUT)
    .union(EventFlags::RDHUP)
    .union(EventFlags::ET);

/// The end of a connection or of its first half, announced: reading or writing will tell more.
pub const END: EventFlags = EventFlags::RDHUP
    .union(EventFlags::HUP)
    .union(EventFlags::ERR);

/// Longest sleep. More than 24 days would need epoll_pwait2(2), which kernels have since 5.11 and seccomp filters may not know.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

/// Events taken from the kernel at a time.
pub const BATCH: usize = 128;

/// See the module.
#[derive(Debug)]
pub struct Reactor {
    epoll: OwnedFd,
    owners: RefCell<Slab<Owner>>,
    sleepers: RefCell<BTreeMap<(Instant, u64), Waker>>,
    next_sleeper: Cell<u64>,
    bell: Arc<Bell>,
    spin: Option<Duration>,
}

/// Whom a socket's events are for.
#[derive(Debug)]
enum Owner {
    Task(Expected),
    /// With what the engine knows it by.
    Engine(u64),
}

/// What a task's socket announced and the task has not used up; and who is to be woken by more.
#[derive(Debug)]
struct Expected {
    seen: EventFlags,
    waker: Option<Waker>,
}

/// Wakes the worker's thread.
#[derive(Debug)]
struct Bell {
    /// Registered edge-triggered: written to, never read.
    eventfd: OwnedFd,
    rung: AtomicBool,
    asleep: AtomicBool,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // In this order, and the sleeper's in the other: one of the two sees what the other did.
        self.rung.store(true, Ordering::SeqCst);
        if self.asleep.swap(false, Ordering::SeqCst) {
            // Fails only when the counter is full, after 2^64 rings: the edge is there all the same.
            let _ = rustix::io::write(&self.eventfd, &1_u64.to_ne_bytes());
        }
    }
}

impl Reactor {
    /// A reactor without sockets. `spin`: how long to look again and again before sleeping.
    ///
    /// # Errors
    /// No descriptor left.
    pub fn new(spin: Option<Duration>) -> io::Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        let bell = Bell {
            eventfd: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            rung: AtomicBool::new(true), // tasks run once before the first sleep
            asleep: AtomicBool::new(false),
        };
        let edges = EventFlags::IN | EventFlags::ET;
        epoll::add(&epoll, &bell.eventfd, EventData::new_u64(BELL), edges)?;
        Ok(Self {
            epoll,
            owners: RefCell::default(),
            sleepers: RefCell::default(),
            next_sleeper: Cell::new(0),
            bell: Arc::new(bell),
            spin,
        })
    }

    /// Wakes the thread from anywhere; [`Reactor::was_woken`] tells it.
    #[must_use]
    pub fn waker(&self) -> Waker {
        self.bell.clone().into()
    }

    /// Whether a waker was used since this was last asked.
    #[must_use]
    pub fn was_woken(&self) -> bool {
        self.bell.rung.load(Ordering::Relaxed) && self.bell.rung.swap(false, Ordering::SeqCst)
    }

    /// Takes at most [`BATCH`] events; waits for one until `deadline` or the nearest timer, unless there is `more` to do or a waker was
    /// used. `now` may be a turn old.
    ///
    /// # Errors
    /// The kernel has no memory, or a fault of ours.
    pub fn wait(
        &self,
        events: &mut Vec<Event>,
        more: bool,
        now: Instant,
        deadline: Option<Instant>,
    ) -> io::Result<()> {
        let rung = || self.bell.rung.load(Ordering::SeqCst);
        if more || rung() {
            return self.take(events, Some(Duration::ZERO));
        }
        if let Some(spin) = self.spin {
            let began = Instant::now();
            while began.elapsed() < spin {
                self.take(events, Some(Duration::ZERO))?;
                if !events.is_empty() || rung() {
                    return Ok(());
                }
            }
        }
        let until = [deadline, self.first_sleeper()].into_iter().flatten().min();
        let patience = until.map(|until| until.saturating_duration_since(now));
        self.bell.asleep.store(true, Ordering::SeqCst);
        let patience = if rung() {
            Some(Duration::ZERO)
        } else {
            patience
        };
        let taken = self.take(events, patience);
        self.bell.asleep.store(false, Ordering::SeqCst);
        taken
    }

    fn take(&self, events: &mut Vec<Event>, patience: Option<Duration>) -> io::Result<()> {
        events.clear();
        let patience = patience.and_then(|patience| Timespec::try_from(patience.min(LONGEST)).ok());
        match epoll::wait(&self.epoll, spare_capacity(events), patience.as_ref()) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    fn first_sleeper(&self) -> Option<Instant> {
        let sleepers = self.sleepers.borrow();
        sleepers.first_key_value().map(|((at, _), _)| *at)
    }

    /// Gives an event to the task that waits for it; returns what the engine knows the socket by where it is the engine's.
    #[must_use]
    pub fn dispatch(&self, event: &Event) -> Option<u64> {
        let place = usize::try_from(event.data.u64()).ok()?;
        let waker = match self.owners.borrow_mut().get_mut(place) {
            Some(Owner::Engine(token)) => return Some(*token),
            Some(Owner::Task(expected)) => {
                expected.seen |= event.flags;
                expected.waker.take()
            }
            None => None, // the bell, or a socket closed within this batch
        };
        if let Some(waker) = waker {
            waker.wake();
        }
        None
    }

    /// Wakes the tasks whose time has come.
    pub fn wake_sleepers(&self, now: Instant) {
        loop {
            let waker = match self.sleepers.borrow_mut().first_entry() {
                Some(first) if first.key().0 <= now => first.remove(),
                _ => return,
            };
            waker.wake();
        }
    }

    /// Waits until `deadline`.
    pub async fn sleep_until(&self, deadline: Instant) {
        let number = self.next_sleeper.replace(self.next_sleeper.get() + 1);
        let sleep = Sleep {
            reactor: self,
            key: (deadline, number),
        };
        poll_fn(|context| {
            if Instant::now() >= deadline {
                return Poll::Ready(());
            }
            let waker = context.waker().clone();
            self.sleepers.borrow_mut().insert(sleep.key, waker);
            Poll::Pending
        })
        .await;
    }

    /// Waits for `future`, but not beyond `deadline`: then `None`. Costs nothing where the future need not wait.
    pub async fn timeout_at<T>(
        &self,
        deadline: Instant,
        future: impl Future<Output = T>,
    ) -> Option<T> {
        let mut future = pin!(future);
        let mut sleep = pin!(self.sleep_until(deadline));
        poll_fn(|context| match future.as_mut().poll(context) {
            Poll::Ready(value) => Poll::Ready(Some(value)),
            Poll::Pending => sleep.as_mut().poll(context).map(|()| None),
        })
        .await
    }
}

/// A sleeper's entry; it goes with the sleeper.
struct Sleep<'a> {
    reactor: &'a Reactor,
    key: (Instant, u64),
}

impl Drop for Sleep<'_> {
    fn drop(&mut self) {
        self.reactor.sleepers.borrow_mut().remove(&self.key);
    }
}

/// A non-blocking socket in the reactor; closed and forgotten when dropped.
#[derive(Debug)]
pub struct Watched {
    socket: OwnedFd,
    place: Place,
}

/// Where the reactor has it.
#[derive(Debug)]
struct Place {
    reactor: Rc<Reactor>,
    index: usize,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.reactor.owners.borrow_mut().remove(self.index);
    }
}

impl AsFd for Watched {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Watched {
    /// Registers a socket, which must be non-blocking and have no other descriptor, for the task that calls.
    ///
    /// # Errors
    /// No memory, or `fs.epoll.max_user_watches` is reached.
    pub fn new(reactor: &Rc<Reactor>, socket: OwnedFd) -> io::Result<Self> {
        let expected = Expected {
            seen: EventFlags::empty(), // what is there is reported
            waker: None,
        };
        let index = reactor.owners.borrow_mut().insert(Owner::Task(expected));
        let reactor = reactor.clone();
        let watched = Self {
            socket,
            place: Place { reactor, index },
        };
        let token = EventData::new_u64(index as u64);
        epoll::add(&watched.place.reactor.epoll, &watched, token, EVERYTHING)?;
        Ok(watched)
    }

    /// The reactor it is in.
    #[must_use]
    pub fn reactor(&self) -> &Rc<Reactor> {
        &self.place.reactor
    }

    /// Waits until one of `wanted`, or an end, was announced and not used up; returns all that was. One task waits at a time.
    pub async fn announced(&self, wanted: EventFlags) -> EventFlags {
        poll_fn(|context| self.poll_announced(context, wanted)).await
    }

    /// [`Watched::announced`], for whoever waits for several.
    pub fn poll_announced(&self, context: &Context<'_>, wanted: EventFlags) -> Poll<EventFlags> {
        self.poll_news(context, wanted | END)
    }

    fn poll_news(&self, context: &Context<'_>, wanted: EventFlags) -> Poll<EventFlags> {
        self.expected(|expected| {
            if expected.seen.intersects(wanted) {
                return Poll::Ready(expected.seen);
            }
            let same = expected
                .waker
                .as_ref()
                .is_some_and(|waker| waker.will_wake(context.waker()));
            if !same {
                expected.waker = Some(context.waker().clone());
            }
            Poll::Pending
        })
    }

    /// Whether an end was announced.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.expected(|expected| expected.seen.intersects(END))
    }

    /// Everything there was to read has been read.
    pub fn drained(&self) {
        self.expected(|expected| expected.seen.remove(EventFlags::IN));
    }

    /// One read of at most `most` bytes, and `ROOM`, behind what `buffer` holds; `announced` is what [`Watched::announced`] said. None is the
    /// end.
    ///
    /// # Errors
    /// recv(2)'s.
    pub fn take<const ROOM: usize>(
        &self,
        announced: EventFlags,
        buffer: &mut Vec<u8>,
        most: usize,
    ) -> Result<usize, Errno> {
        let mut room = [0; ROOM];
        let room = &mut room[..ROOM.min(most)];
        let read = recv(self, &mut *room, RecvFlags::empty());
        // Less than there was room for is all there is; but an end that was announced is still to be read, and a read stops at an urgent byte.
        let more = END | EventFlags::PRI;
        let all = match read {
            Ok((n, _)) => n < room.len() && !announced.intersects(more),
            Err(errno) => errno == Errno::AGAIN,
        };
        if all {
            self.drained();
        }
        let (n, _) = read?;
        buffer.extend_from_slice(&room[..n]);
        Ok(n)
    }

    /// Sends all of `bytes`.
    ///
    /// # Errors
    /// send(2)'s.
    pub async fn send(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match send(self, bytes, SendFlags::NOSIGNAL) {
                Ok(n) => bytes = &bytes[n..],
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => self.writable().await,
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    /// Waits until both halves are over or the connection is broken. A peer that has only finished its own half may still want an answer.
    pub async fn broken(&self) {
        const BROKEN: EventFlags = EventFlags::HUP.union(EventFlags::ERR);
        poll_fn(|context| self.poll_news(context, BROKEN)).await;
    }

    /// Waits until there is room to write again, or writing will tell why there never will be. A peer that has only finished
    /// its own half is no reason.
    async fn writable(&self) {
        const NEWS: EventFlags = EventFlags::OUT
            .union(EventFlags::HUP)
            .union(EventFlags::ERR);
        self.expected(|expected| expected.seen.remove(EventFlags::OUT));
        poll_fn(|context| self.poll_news(context, NEWS)).await;
    }

    /// Gives its events to the engine, under a token of the engine's; returns what was announced and not used up.
    pub fn hand_over(&self, token: u64) -> EventFlags {
        let mut owners = self.place.reactor.owners.borrow_mut();
        match std::mem::replace(&mut owners[self.place.index], Owner::Engine(token)) {
            Owner::Task(expected) => expected.seen,
            Owner::Engine(_) => EventFlags::empty(),
        }
    }

    /// Whether arriving bytes are to be announced. Off, it stays silent about them, and about nothing else: a fast sender would wake the
    /// worker with every packet while there is nowhere to put it. On again, what is there by then is announced.
    ///
    /// # Errors
    /// A fault of ours.
    pub fn listen(&self, to_bytes: bool) -> io::Result<()> {
        let flags = match to_bytes {
            true => EVERYTHING,
            // Without PRI too: the kernel announces bytes as perhaps urgent (sock_def_readable).
            false => EVERYTHING - EventFlags::IN - EventFlags::PRI,
        };
        let token = EventData::new_u64(self.place.index as u64);
        epoll::modify(&self.place.reactor.epoll, &self.socket, token, flags)?;
        Ok(())
    }

    /// The socket, taken out of the reactor.
    ///
    /// # Errors
    /// A fault of ours.
    pub fn take_out(self) -> io::Result<OwnedFd> {
        epoll::delete(&self.place.reactor.epoll, &self.socket)?;
        Ok(self.socket)
    }

    /// Nothing more is announced.
    pub fn leave(&self) {
        // Fails for no socket that is registered.
        let _ = epoll::delete(&self.place.reactor.epoll, &self.socket);
    }

    fn expected<T>(&self, with: impl FnOnce(&mut Expected) -> T) -> T {
        match &mut self.place.reactor.owners.borrow_mut()[self.place.index] {
            Owner::Task(expected) => with(expected),
            Owner::Engine(_) => unreachable!("the engine's sockets are asked about by nobody else"),
        }
    }
}

#[cfg(test)]
#[path = "reactor_tests.rs"]
mod tests;
