//! All relaying sessions of one worker: a slab of plain data and an epoll instance of their own.
//!
//! [`Engine::add`] takes a connected session over; from then on the engine moves its bytes, bounds its time and ends it, in
//! `Engine::end` and nowhere else. [`run`] is the one task that drives it. The clock is read once per batch of events.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::Errno;
use slab::Slab;
use socket2::SockRef;
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};
use tracing::debug;

use super::half::FULL_READ;
use super::lifetime::{Farewell, Phase, Verdict};
use super::pipes::{Budget, Pipes};
use super::pump::{Pump, Turn};
pub use super::session::{NewSession, Parties, Place};
use super::session::{Session, Side, undelivered};
use super::timer::{Millis, Timers};
use crate::account::{Books, CloseReason};
use crate::config::{CloseWith, RelayMode};
use crate::leg;
use crate::sys::readiness::epoll_in_runtime;

/// Events taken from the kernel at a time.
const BATCH: usize = 128;

/// Full batches in a row before other tasks of the worker (accepting, connecting) get a turn.
const BATCHES: usize = 4;

/// See the module.
#[derive(Debug)]
pub struct Engine {
    epoll: Rc<AsyncFd<OwnedFd>>,
    sessions: Slab<Session>,
    /// Sessions whose turn ended before their work did.
    more: VecDeque<usize>,
    timers: Timers,
    buffer: Box<[u8]>,
    pipes: Pipes,
    mode: RelayMode,
    close_with: CloseWith,
    books: Arc<Books>,
    worker: usize,
    began: Instant,
    now: Millis,
    /// Wakes [`run`] when a deadline came nearer, and whoever waits for the last session.
    changed: Rc<Notify>,
}

impl Engine {
    /// An engine without sessions, for `worker`, within that worker's runtime; its pipes draw on `budget`.
    ///
    /// # Errors
    /// No descriptor left for its epoll instance.
    pub fn new(
        books: Arc<Books>,
        worker: usize,
        mode: RelayMode,
        close_with: CloseWith,
        budget: Arc<Budget>,
    ) -> io::Result<Self> {
        Ok(Self {
            epoll: Rc::new(epoll_in_runtime()?),
            sessions: Slab::new(),
            more: VecDeque::new(),
            timers: Timers::default(),
            buffer: vec![0; FULL_READ].into_boxed_slice(),
            pipes: Pipes::new(budget),
            mode,
            close_with,
            books,
            worker,
            began: Instant::now(),
            now: 0,
            changed: Rc::new(Notify::new()),
        })
    }

    /// Sessions that are being relayed.
    #[must_use]
    pub fn sessions(&self) -> usize {
        self.sessions.len()
    }

    /// Takes a session over: whatever was read behind its header is sent at once, the rest follows readiness.
    pub fn add(&mut self, new: NewSession) {
        self.read_clock();
        let index = self.sessions.insert(Session::new(new, self.mode, self.now));
        for side in Side::ALL {
            let flags = EventFlags::IN
                | EventFlags::PRI
                | EventFlags::OUT
                | EventFlags::RDHUP
                | EventFlags::ET;
            let token = EventData::new_u64(token(index, side));
            let socket = &self.sessions[index].sockets[side as usize];
            if epoll::add(self.epoll.get_ref(), socket, token, flags).is_err() {
                return self.end(index, CloseReason::Error, Farewell::Rst); // no memory, or max_user_watches
            }
        }
        self.drive(index);
    }

    /// Ends every session: the drain's deadline has come.
    pub fn end_all(&mut self, reason: CloseReason) {
        self.read_clock();
        let all: Vec<usize> = self.sessions.iter().map(|(index, _)| index).collect();
        for index in all {
            self.end(index, reason, self.farewell());
        }
    }

    /// How sessions that we end for no fault of theirs are closed.
    fn farewell(&self) -> Farewell {
        match self.close_with {
            CloseWith::Fin => Farewell::Fin,
            CloseWith::Rst => Farewell::Rst,
        }
    }

    fn read_clock(&mut self) {
        self.now = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(Millis::MAX);
    }

    /// One batch: what the kernel reports, what is left over from before, and what is due. Returns whether there is more.
    fn work(&mut self, events: &mut Vec<epoll::Event>) -> bool {
        events.clear();
        let reported = epoll::wait(
            self.epoll.get_ref(),
            spare_capacity(events),
            Some(&rustix::event::Timespec::default()),
        );
        self.read_clock();
        for event in events.iter() {
            self.event(event.data.u64(), event.flags);
        }
        for _ in 0..self.more.len() {
            if let Some(index) = self.more.pop_front()
                && let Some(session) = self.sessions.get_mut(index)
            {
                session.queued = false;
                self.drive(index);
            }
        }
        while let Some(index) = self.timers.take_due(self.now) {
            self.judge(index as usize);
        }
        !self.more.is_empty()
            || reported.is_ok_and(|n| n == events.capacity())
            || reported == Err(Errno::INTR)
    }

    fn event(&mut self, token: u64, flags: EventFlags) {
        let (index, side) = session_of(token);
        // A session that ended earlier in this batch may have events left in it.
        let Some(session) = self.sessions.get_mut(index) else {
            return;
        };
        let end_announced = flags.intersects(EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR);
        if end_announced || flags.contains(EventFlags::IN) {
            session.half(side.outgoing()).source_ready(end_announced);
        }
        if flags.intersects(EventFlags::OUT | EventFlags::HUP | EventFlags::ERR) {
            session.half(side.other().outgoing()).sink_ready();
        }
        if flags.contains(EventFlags::PRI) {
            session.half(side.outgoing()).source_has_urgent();
        }
        if flags.contains(EventFlags::ERR) {
            session.half(side.outgoing()).source_has_error();
        }
        self.drive(index);
    }

    /// Gives both directions a turn and settles what came of it.
    fn drive(&mut self, index: usize) {
        let mut more = false;
        // A direction that fails may give the other something to do: once for each side that can be lost.
        for _ in 0..=Side::ALL.len() {
            let mut failed = None;
            for side in Side::ALL {
                let Some(session) = self.sessions.get_mut(index) else {
                    return;
                };
                let direction = side.outgoing();
                let shard = self.books.worker(self.worker);
                let mut pump = Pump {
                    direction,
                    half: &mut session.halves[direction as usize],
                    pipe: &mut session.pipes[direction as usize],
                    source: &session.sockets[side as usize],
                    sink: &session.sockets[side.other() as usize],
                    meter: &session.meter,
                    buffer: &mut self.buffer,
                    pipes: &mut self.pipes,
                    shard,
                    moved: 0,
                };
                let finished_before = pump.half.is_finished();
                let turn = pump.turn();
                let moved = pump.moved;
                session.bytes[direction as usize] += moved;
                if moved > 0 || finished_before != session.halves[direction as usize].is_finished()
                {
                    session.lifetime.moved(self.now);
                }
                match turn {
                    Turn::Over => {}
                    Turn::More => more = true,
                    Turn::SourceFailed(errno) => {
                        session.halves[direction as usize].source_lost();
                        failed = Some((side, errno));
                    }
                    Turn::SinkFailed(errno) => failed = Some((side.other(), errno)),
                }
                if failed.is_some() {
                    break;
                }
            }
            match failed.or_else(|| self.hidden_error(index)) {
                Some((side, errno)) => self.lose(index, side, errno),
                None => break,
            }
        }
        self.settle(index, more);
    }

    /// A side that was read to its end and then reset: no read tells the reset, and nobody reads there any more.
    fn hidden_error(&self, index: usize) -> Option<(Side, Errno)> {
        let session = self
            .sessions
            .get(index)
            .filter(|session| session.lost.is_none())?;
        let hides = |side: &Side| session.halves[side.outgoing() as usize].hides_an_error();
        Side::ALL.into_iter().filter(hides).find_map(|side| {
            let error = SockRef::from(&session.sockets[side as usize])
                .take_error()
                .ok()??;
            let errno = Errno::from_io_error(&error).unwrap_or(Errno::CONNRESET);
            Some((side, errno))
        })
    }

    /// `side` failed. The other gets what the lost one sent before, then a reset; what was meant for the lost one is gone.
    fn lose(&mut self, index: usize, side: Side, errno: Errno) {
        let Some(session) = self.sessions.get_mut(index) else {
            return;
        };
        session.half(side.outgoing()).source_failing();
        let into = side.other().outgoing();
        session.half(into).sink_lost();
        if let Some(pipe) = session.pipes[into as usize].take() {
            self.pipes.destroy(pipe, self.books.worker(self.worker));
        }
        match session.lost {
            None => session.lost = Some((side, side.failed_with(errno))),
            Some((first, _)) if first == side => {}
            Some((_, reason)) => self.end(index, reason, Farewell::Rst),
        }
    }

    /// After a turn: ended, more to do, or waiting.
    fn settle(&mut self, index: usize, more: bool) {
        let now = self.now;
        let Some(session) = self.sessions.get_mut(index) else {
            return;
        };
        if session.is_complete() {
            match session.phase() {
                Phase::Resetting(reason) => {
                    match undelivered(&session.halves, &session.sockets, session.lost) {
                        0 => return self.end(index, reason, Farewell::Rst),
                        _ => session.lifetime.await_delivery(now),
                    }
                }
                Phase::Open | Phase::Closing => {
                    return self.end(index, CloseReason::Completed, Farewell::Fin);
                }
            }
        } else if more && !session.queued {
            session.queued = true;
            self.more.push_back(index);
        }
        self.schedule(index);
    }

    /// Looks at a session whose deadline came.
    fn judge(&mut self, index: usize) {
        let (now, farewell) = (self.now, self.farewell());
        let Some(session) = self.sessions.get_mut(index) else {
            return;
        };
        session.due = None;
        let phase = session.phase();
        let Session {
            lifetime,
            halves,
            sockets,
            lost,
            ..
        } = session;
        let verdict = lifetime.judge(now, phase, farewell, || undelivered(halves, sockets, *lost));
        match verdict {
            Verdict::End(reason, farewell) => self.end(index, reason, farewell),
            Verdict::GoOn => self.schedule(index),
        }
    }

    /// Brings the session's timer forward when its deadline did; one that moved back is found when the timer goes off.
    fn schedule(&mut self, index: usize) {
        let session = &mut self.sessions[index];
        let wanted = session.lifetime.deadline(session.phase());
        let nearer = match (wanted, session.due) {
            (Some(wanted), Some(due)) => wanted < due,
            (Some(_), None) => true,
            (None, _) => false,
        };
        if nearer {
            let first = self.timers.next();
            self.timers.set(slot(index), session.due, wanted);
            session.due = wanted;
            if self.timers.next() != first {
                self.changed.notify_one();
            }
        }
    }

    /// The one way out of a session.
    fn end(&mut self, index: usize, reason: CloseReason, farewell: Farewell) {
        let Some(mut session) = self.sessions.try_remove(index) else {
            return;
        };
        self.timers.set(slot(index), session.due, None);
        for (half, pipe) in session
            .halves
            .iter()
            .zip(session.pipes.iter_mut().map(Option::take))
        {
            let shard = self.books.worker(self.worker);
            match pipe {
                Some(pipe) if half.in_pipe() > 0 => self.pipes.destroy(pipe, shard),
                Some(pipe) => self.pipes.give_back(pipe, shard),
                None => {}
            }
        }
        // A stream that is cut must not look complete; whatever the configuration says of its sessions in general.
        if farewell == Farewell::Fin
            && (reason == CloseReason::Completed || session.is_quiet(self.now))
        {
            session.sockets.iter().for_each(leg::close_in_order);
        }
        let [bytes_to_upstream, bytes_to_client] = session.bytes;
        debug!(
            endpoint = &**session.meter.endpoint(),
            client = %session.parties.client,
            peer = %session.parties.peer,
            address = %session.parties.address,
            bytes_to_upstream,
            bytes_to_client,
            duration_ms = session.lifetime.age(self.now),
            reason = reason.name(),
            "session closed"
        );
        session.meter.close(reason);
        if self.sessions.is_empty() {
            self.changed.notify_one();
        }
    }
}

/// Drives the engine, for ever. `idle` is told whenever there is no session left.
pub async fn run(engine: Rc<RefCell<Engine>>, idle: Rc<Notify>) {
    let (epoll, changed, began) = {
        let engine = engine.borrow();
        (engine.epoll.clone(), engine.changed.clone(), engine.began)
    };
    let mut events = Vec::with_capacity(BATCH);
    // One timer for all, moved only when the nearest deadline did: traffic does not touch it.
    let mut timer = pin!(sleep_until(began));
    let mut armed = None;
    loop {
        let next = engine.borrow().timers.next();
        if let Some(at) = next
            && next != armed
        {
            timer.as_mut().reset(began + Duration::from_millis(at));
        }
        armed = next;
        // In this order, because whichever it is, all that is due is done below.
        let mut ready = tokio::select! {
            biased;
            ready = epoll.readable() => ready.ok(),
            () = &mut timer, if armed.is_some() => {
                armed = None;
                None
            }
            () = changed.notified() => None,
        };
        let mut batches = 0;
        while engine.borrow_mut().work(&mut events) {
            batches += 1;
            if batches % BATCHES == 0 {
                tokio::task::yield_now().await;
            }
        }
        // Only what was drained is cleared: an event since then keeps it ready.
        if let Some(ready) = &mut ready {
            ready.clear_ready();
        }
        if engine.borrow().sessions() == 0 {
            idle.notify_one();
        }
    }
}

/// What epoll hands back with an event: the session's place in the slab and the side.
fn token(index: usize, side: Side) -> u64 {
    (index as u64) << 1 | side as u64
}

fn session_of(token: u64) -> (usize, Side) {
    let index = usize::try_from(token >> 1).unwrap_or(usize::MAX);
    (
        index,
        if token & 1 == 0 {
            Side::Client
        } else {
            Side::Upstream
        },
    )
}

/// The session's place in the slab, as the timers keep it.
fn slot(index: usize) -> u32 {
    u32::try_from(index).unwrap_or(u32::MAX)
}
