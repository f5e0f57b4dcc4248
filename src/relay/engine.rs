//! All relaying sessions of one worker: a slab of plain data, driven by the events of their sockets.
//!
//! [`Engine::add`] takes a connected session over; from then on the engine moves its bytes, bounds its time and ends it, in
//! `Engine::end` and nowhere else. The [`worker`](crate::worker) gives it a turn after each wait: [`Engine::begin`], an [`Engine::event`] for
//! each that is the engine's, [`Engine::go_on`]. It reads no clock itself.

use std::collections::VecDeque;
use std::hash::RandomState;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use slab::Slab;
use socket2::SockRef;
use tokio::sync::Notify;
use tracing::debug;

use super::half::FULL_READ;
use super::lifetime::{Farewell, Phase, Verdict};
use super::pipes::{Budget, Pipes};
use super::pump::{Pump, Turn};
pub use super::review::Review;
pub use super::session::{NewSession, Parties, Place};
use super::session::{Session, Side, undelivered};
use super::timer::{Millis, Timers};
use crate::account::{Books, CloseReason};
use crate::config::{CloseWith, OnDeny, Relay};
use crate::drain::Closing;
use crate::leg;
use crate::policy::Policy;
use crate::policy::bucket::{Nanos, nanos};
use crate::policy::pace::Pace;

/// See the module.
#[derive(Debug)]
pub struct Engine {
    sessions: Slab<Session>,
    /// Sessions whose turn ended before their work did.
    more: VecDeque<usize>,
    timers: Timers,
    buffer: Box<[u8]>,
    pipes: Pipes,
    relay: Relay,
    close_with: CloseWith,
    books: Arc<Books>,
    worker: usize,
    began: Instant,
    now: Millis,
    /// When its turn began.
    turn: Instant,
    /// The session after the one that was measured last.
    measured: usize,
    /// The place after the one that was recorded last.
    recorded: usize,
    /// Told whenever there is no session left.
    emptied: Rc<Notify>,
    /// When sessions are closed because of a drain, and what decides by chance which is when.
    closing: Option<(Closing, RandomState)>,
}

impl Engine {
    /// An engine without sessions, for `worker`; its pipes draw on `budget`.
    #[must_use]
    pub fn new(
        books: Arc<Books>,
        worker: usize,
        relay: Relay,
        close_with: CloseWith,
        budget: Arc<Budget>,
    ) -> Self {
        let began = Instant::now();
        Self {
            sessions: Slab::new(),
            more: VecDeque::new(),
            timers: Timers::default(),
            buffer: vec![0; FULL_READ].into_boxed_slice(),
            pipes: Pipes::new(budget),
            relay,
            close_with,
            books,
            worker,
            began,
            now: 0,
            turn: began,
            measured: 0,
            recorded: 0,
            emptied: Rc::default(),
            closing: None,
        }
    }

    /// Sessions that are being relayed.
    #[must_use]
    pub fn sessions(&self) -> usize {
        self.sessions.len()
    }

    /// Tells whenever there is no session left.
    #[must_use]
    pub fn emptied(&self) -> Rc<Notify> {
        self.emptied.clone()
    }

    /// Whether it has work left that no event will tell of.
    #[must_use]
    pub fn has_more(&self) -> bool {
        !self.more.is_empty()
    }

    /// When it must have a turn at the latest, whatever happens.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        let at = self.timers.next()?;
        self.began.checked_add(Duration::from_millis(at))
    }

    /// Takes a session over: whatever was read behind its header is sent at once, the rest follows readiness.
    pub fn add(&mut self, new: NewSession) {
        new.place.hold.address().open();
        let index = self
            .sessions
            .insert(Session::new(new, self.relay.mode, self.now));
        self.sessions[index].begin(nanos(self.turn));
        for side in Side::ALL {
            let session = &mut self.sessions[index];
            let announced = session.sockets[side as usize].hand_over(token(index, side));
            session.announced(side, announced);
        }
        if self.closing.is_some() {
            self.drain_one(index);
        }
        self.drive(index);
    }

    /// How sessions that we end for no fault of theirs are closed from now on.
    pub fn close_with(&mut self, close_with: CloseWith) {
        self.close_with = close_with;
    }

    /// Closes each session at a moment of its own, those that come later too; `None`: none because of a drain.
    pub fn drain(&mut self, closing: Option<Closing>) {
        self.closing = closing.map(|closing| (closing, RandomState::new()));
        for index in 0..self.sessions.capacity() {
            if self.sessions.contains(index) {
                self.drain_one(index);
                self.schedule(index);
            }
        }
    }

    fn drain_one(&mut self, index: usize) {
        let moment = self.closing.as_ref().map(|(closing, keys)| {
            let moment = closing.moment(keys, index);
            let after = moment.saturating_duration_since(self.began).as_millis();
            u64::try_from(after).unwrap_or(Millis::MAX)
        });
        self.sessions[index].lifetime.drain(moment);
    }

    /// Ends every session: the drain's deadline has come.
    pub fn end_all(&mut self, reason: CloseReason) {
        let all: Vec<usize> = self.sessions.iter().map(|(index, _)| index).collect();
        for index in all {
            self.end(index, reason, self.farewell());
        }
    }

    /// Looks where its sessions on an upstream are: who may not stay gets a time to leave, spread by chance.
    pub fn review(&mut self, review: &Review<'_>) {
        let now = self.now;
        for index in 0..self.sessions.capacity() {
            let Some(session) = self.sessions.get_mut(index) else {
                continue;
            };
            let address = session.place.hold.address();
            if address.upstream != review.upstream {
                continue;
            }
            let age = session.lifetime.age(now);
            let leave = review.leave(address, session.lifetime.leaves(), now, age);
            session.lifetime.leave(leave);
            self.schedule(index);
        }
    }

    /// Asks the kernel how the ways to the upstreams are: of at most `most` sessions, others the next time.
    pub fn measure(&mut self, most: usize) {
        for _ in 0..most.min(self.sessions.len()) {
            let next = (self.measured..self.sessions.capacity())
                .chain(0..self.measured)
                .find(|index| self.sessions.contains(*index));
            let Some(index) = next else { return };
            self.measured = index + 1;
            let _ = self.sessions[index].measure();
        }
    }

    /// Places for sessions, taken or not: what [`Self::record`] goes round.
    #[must_use]
    pub fn places(&self) -> usize {
        self.sessions.capacity()
    }

    /// Records how the sessions in the next `most` places go on, those that are as old as `since`; others the next time.
    pub fn record(&mut self, most: usize, since: Duration) {
        let since = Millis::try_from(since.as_millis()).unwrap_or(Millis::MAX);
        for _ in 0..most.min(self.places()) {
            if self.recorded >= self.places() {
                self.recorded = 0;
            }
            let session = self.sessions.get_mut(self.recorded);
            self.recorded += 1;
            if let Some(session) = session
                && session.meter.is_recorded()
                && session.lifetime.age(self.now) >= since
            {
                let upstream = session.measure();
                let facts = session.facts(upstream);
                session.meter.progress(|| facts);
            }
        }
    }

    /// Looks at the sessions in `most` places from `first` on by rules that are new: who is denied is closed where that is wanted, the others go by
    /// their pace and are counted among their endpoint's. Says where to go on, and adds those it closed to `closed`.
    pub fn rejudge(
        &mut self,
        first: usize,
        most: usize,
        policy: &Policy,
        closed: &mut usize,
    ) -> Option<usize> {
        let places = self.sessions.capacity();
        let end = places.min(first.saturating_add(most));
        for index in first..end {
            let Some(session) = self.sessions.get_mut(index) else {
                continue;
            };
            let account = session.meter.endpoint().clone();
            let place = &mut session.place;
            let own = place.endpoint.as_deref();
            let endpoint = own.unwrap_or(&account);
            if policy.denies(endpoint) == Some(OnDeny::Close) {
                *closed += 1;
                self.end(index, CloseReason::Denied, Farewell::Rst);
                continue;
            }
            place.seats.count_in(policy, endpoint);
            let pace = policy.pace(endpoint);
            self.repace(index, pace);
        }
        (end < places).then_some(end)
    }

    /// From now on the session in this place, if there is one, goes by another pace, or by none.
    pub fn repace(&mut self, index: usize, pace: Option<Pace>) {
        if let Some(session) = self.sessions.get_mut(index)
            && session.repace(pace, nanos(self.turn))
        {
            self.drive(index);
            self.listen(index, None);
        }
    }

    /// A turn begins.
    pub fn begin(&mut self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.began).as_millis();
        self.now = u64::try_from(elapsed).unwrap_or(Millis::MAX);
        self.turn = now;
    }

    /// An event of one of its sockets.
    pub fn event(&mut self, token: u64, flags: EventFlags) {
        let (index, side) = session_of(token);
        if let Some(session) = self.sessions.get_mut(index) {
            session.announced(side, flags);
            self.drive(index);
            let bytes = flags.contains(EventFlags::IN).then_some(side);
            self.listen(index, bytes);
        }
    }

    /// The rest of a turn: what is left over from before, and what is due.
    pub fn go_on(&mut self) {
        for _ in 0..self.more.len() {
            if let Some(index) = self.more.pop_front()
                && let Some(session) = self.sessions.get_mut(index)
            {
                session.queued = false;
                self.drive(index);
                self.listen(index, None);
            }
        }
        while let Some(index) = self.timers.take_due(self.now) {
            self.judge(index as usize);
        }
    }

    fn listen(&mut self, index: usize, announced_bytes: Option<Side>) {
        if let Some(session) = self.sessions.get_mut(index) {
            session.listen(announced_bytes);
        }
    }

    /// How sessions that we end for no fault of theirs are closed.
    fn farewell(&self) -> Farewell {
        match self.close_with {
            CloseWith::Fin => Farewell::Fin,
            CloseWith::Rst => Farewell::Rst,
        }
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
                let now = self.turn;
                let pacer = session.pacer.as_deref_mut();
                let gate = pacer.and_then(|pacer| pacer.gate(direction, nanos(now)));
                let shard = self.books.worker(self.worker);
                let last = session.halves[side.other().outgoing() as usize].is_finished();
                let mut pump = Pump {
                    direction,
                    half: &mut session.halves[direction as usize],
                    gate,
                    pipe: &mut session.pipes[direction as usize],
                    source: &session.sockets[side as usize],
                    sink: &session.sockets[side.other() as usize],
                    meter: &session.meter,
                    buffer: &mut self.buffer,
                    pipes: &mut self.pipes,
                    shard,
                    moved: 0,
                    discarded: 0,
                    last,
                };
                let finished_before = pump.half.is_finished();
                let turn = pump.turn();
                let moved = pump.moved;
                if session.halves[direction as usize].is_held_up() {
                    session.smooth(side);
                }
                if let Some(size) = self.relay.stalled_receive_buffer
                    && session.halves[direction as usize].began_to_stall()
                {
                    // Half, because the kernel takes twice what it is told (socket(7), SO_RCVBUF). It fails for no size that is allowed.
                    let source = SockRef::from(&session.sockets[side as usize]);
                    let _ = source.set_recv_buffer_size(size / 2);
                }
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
        let session = self.sessions.get(index)?;
        let hides = |side: &Side| {
            session.lost.is_none_or(|(lost, _)| lost != *side)
                && session.halves[side.outgoing() as usize].hides_an_error()
        };
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
        session.release(into, nanos(self.turn));
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
        let (now, turn, farewell) = (self.now, nanos(self.turn), self.farewell());
        let Some(session) = self.sessions.get_mut(index) else {
            return;
        };
        session.due = None;
        let held_up = session.is_held_up();
        let let_go = session.let_go(turn);
        if held_up {
            session.lifetime.moved(now); // it would, if it were allowed to
        }
        if let Some(limits) = session.lifetime.take_guard(now) {
            // Fails only on a socket whose connection is gone, which the next read or write tells.
            let _ = leg::guard(&session.sockets[Side::Upstream as usize], limits);
        }
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
            Verdict::GoOn if let_go => {
                self.drive(index);
                self.listen(index, None);
            }
            Verdict::GoOn => self.schedule(index),
        }
    }

    /// Brings the session's timer forward when its deadline did; one that moved back is found when the timer goes off.
    fn schedule(&mut self, index: usize) {
        let session = &self.sessions[index];
        let bounds = session.lifetime.deadline(session.phase());
        let start = session.pacer.as_ref().and_then(|pacer| pacer.next());
        let start = start.map(|start| self.millis(start));
        let wanted = bounds.into_iter().chain(start).min();
        let nearer = match (wanted, session.due) {
            (Some(wanted), Some(due)) => wanted < due,
            (Some(_), None) => true,
            (None, _) => false,
        };
        if nearer {
            self.timers.set(slot(index), session.due, wanted);
            self.sessions[index].due = wanted;
        }
    }

    /// The first of our milliseconds in which that time has come; not this one, whose turn has found it waiting.
    fn millis(&self, at: Nanos) -> Millis {
        let since = at.saturating_sub(nanos(self.began));
        since.div_ceil(1_000_000).max(self.now + 1)
    }

    /// The one way out of a session.
    fn end(&mut self, index: usize, reason: CloseReason, farewell: Farewell) {
        let Some(mut session) = self.sessions.try_remove(index) else {
            return;
        };
        self.timers.set(slot(index), session.due, None);
        for side in Side::ALL {
            session.release(side.outgoing(), nanos(self.turn));
        }
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
        let upstream = session.measure();
        session.judge_address(reason, self.now);
        let [bytes_to_upstream, bytes_to_client] = session.bytes;
        debug!(
            endpoint = &**session.meter.endpoint(),
            client = %session.parties.client,
            peer = %session.parties.peer,
            address = %session.place.hold.address().at,
            bytes_to_upstream,
            bytes_to_client,
            duration_ms = session.lifetime.age(self.now),
            reason = reason.name(),
            "session closed"
        );
        let recorded = session.meter.is_recorded();
        let facts = recorded.then(|| session.facts(upstream));
        session
            .meter
            .close_with(reason, || facts.unwrap_or_default());
        if self.sessions.is_empty() {
            self.emptied.notify_one();
        }
    }
}

/// What its sockets are known by: the session's place in the slab and the side.
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
