//! How records get from a worker to the audit thread: by a queue of the worker's own, which never makes the worker wait.
//!
//! Handing a record over is a copy into a list and a few plain stores. The audit thread looks at the queues a short while after each batch; only
//! where it sleeps because all of them were empty is it woken, once.
//!
//! A queue has [`ROOM`] for records that begin something (`open`, `refused`) or may be left out (`progress`). A session that is in the trail
//! ends in the trail: its `close` always has room, so that no queue is longer than `ROOM` and the worker's sessions together.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{
    AtomicBool, AtomicU64,
    Ordering::{Acquire, Relaxed, Release, SeqCst},
    fence,
};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::Thread;

use super::record::{Facts, Record, Refused, RefusedRecord, SessionRecord, now};
use crate::account::{Account, AccountKey, CloseReason, Event};
use crate::config::OnFull;
use crate::sys::clock::monotonic_ms;

/// Records of one worker that wait for the audit thread, beside those of the end of sessions: a few seconds of a worker that does nothing but open and
/// close, and about 6 MiB.
pub(super) const ROOM: u64 = 16_384;

/// How much of [`ROOM`] refusals may take: one client that is turned away again and again must not keep the others from being recorded, nor, where
/// `audit.on_full` is `block`, from being served.
pub(super) const ROOM_OF_REFUSALS: u64 = ROOM / 2;

/// A write that takes longer than this is one of a sink that takes nothing.
pub(super) const STUCK_MS: u64 = 1000;

/// What the workers and the audit thread know of each other.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) on_full: OnFull,
    /// The audit thread sleeps until it is woken.
    pub(super) asleep: AtomicBool,
    pub(super) thread: std::sync::OnceLock<Thread>,
    /// The sink refuses what it is given.
    pub(super) failing: AtomicBool,
    /// When the write that is under way began, by the monotonic clock; 0: none is.
    pub(super) writing_since: AtomicU64,
    /// Records written, by [`Event`].
    pub(super) written: [AtomicU64; Event::ALL.len()],
    pub(super) lanes: Vec<Arc<Lane>>,
}

impl Shared {
    pub(super) fn new(on_full: OnFull, workers: usize) -> Self {
        Self {
            on_full,
            asleep: AtomicBool::new(false),
            thread: std::sync::OnceLock::new(),
            failing: AtomicBool::new(false),
            writing_since: AtomicU64::new(0),
            written: std::array::from_fn(|_| AtomicU64::new(0)),
            lanes: (0..workers).map(|_| Arc::default()).collect(),
        }
    }

    /// Wakes the audit thread where it sleeps for want of work.
    pub(super) fn wake(&self) {
        // The record before the look: the thread looks for records after it has said that it sleeps, and one of both sees the other.
        fence(SeqCst);
        if self.asleep.load(Relaxed)
            && self.asleep.swap(false, Relaxed)
            && let Some(thread) = self.thread.get()
        {
            thread.unpark();
        }
    }

    /// Whether the sink takes nothing now: it refuses, or a write has taken too long.
    pub(super) fn is_failing(&self) -> bool {
        if self.failing.load(Relaxed) {
            return true;
        }
        let since = self.writing_since.load(Relaxed);
        since != 0 && monotonic_ms().saturating_sub(since) > STUCK_MS
    }

    /// Whether sessions are refused because a queue has no room: the sink takes records, but not as fast as they come.
    pub(super) fn is_full(&self) -> bool {
        self.on_full == OnFull::Block && self.lanes.iter().any(|lane| lane.waiting() >= ROOM)
    }

    /// Records that wait.
    pub(super) fn waiting(&self) -> u64 {
        self.lanes.iter().map(|lane| lane.waiting()).sum()
    }

    /// Records dropped.
    pub(super) fn dropped(&self) -> u64 {
        let dropped = self.lanes.iter().flat_map(|lane| &lane.dropped);
        dropped.map(|count| count.load(Relaxed)).sum()
    }
}

/// A queue's counters. Each has one writer.
#[derive(Debug, Default)]
#[repr(align(64))]
pub(super) struct Lane {
    pushed: AtomicU64,
    /// Refusals among them.
    refused: AtomicU64,
    /// Dropped by the worker, by [`Event`].
    pub(super) dropped: [AtomicU64; Event::ALL.len()],
    taken: Taken,
}

/// The audit thread's part, in a cache line of its own.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Taken {
    all: AtomicU64,
    refused: AtomicU64,
}

impl Lane {
    pub(super) fn waiting(&self) -> u64 {
        let taken = self.taken.all.load(Acquire);
        self.pushed.load(Acquire).saturating_sub(taken)
    }

    fn refusals_waiting(&self) -> u64 {
        let taken = self.taken.refused.load(Acquire);
        self.refused.load(Acquire).saturating_sub(taken)
    }

    pub(super) fn took(&self, event: Event) {
        let more = |count: &AtomicU64| count.store(count.load(Relaxed) + 1, Release);
        more(&self.taken.all);
        if event == Event::Refused {
            more(&self.taken.refused);
        }
    }
}

/// A worker's hand in the trail: what it tells goes into the worker's own queue. For one thread at a time.
#[derive(Debug)]
pub struct Scribe(Option<Pen>);

#[derive(Debug)]
struct Pen {
    worker: u32,
    queue: Sender<Record>,
    lane: Arc<Lane>,
    shared: Arc<Shared>,
    /// The number of the last session.
    numbered: Cell<u64>,
}

impl Scribe {
    /// One that writes nothing: there is no trail.
    #[must_use]
    pub const fn off() -> Self {
        Self(None)
    }

    pub(super) fn new(worker: usize, shared: &Arc<Shared>) -> (Self, Receiver<Record>) {
        let (queue, records) = channel();
        let pen = Pen {
            worker: u32::try_from(worker).expect("workers are bounded by the configuration"),
            queue,
            lane: shared.lanes[worker].clone(),
            shared: shared.clone(),
            numbered: Cell::new(0),
        };
        (Self(Some(pen)), records)
    }

    /// Whether there is a trail.
    #[must_use]
    pub const fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// Whether a session may be opened: not where `audit.on_full` is `block` and it could not be recorded. Asked right before.
    #[must_use]
    pub fn may_open(&self) -> bool {
        self.0.as_ref().is_none_or(|pen| {
            pen.shared.on_full == OnFull::Drop || (pen.has_room() && !pen.shared.is_failing())
        })
    }

    /// A session was opened on `account`; `own` says whose it is where that account is `overflow`'s. The entry tells the rest of it.
    pub fn open(
        self: &Rc<Self>,
        account: &Arc<Account>,
        own: Option<Arc<AccountKey>>,
        facts: impl FnOnce() -> Facts,
    ) -> Option<Entry> {
        let pen = self.0.as_ref()?;
        let number = pen.numbered.get() + 1;
        pen.numbered.set(number);
        let mut entry = Entry {
            scribe: self.clone(),
            number,
            opened: monotonic_ms(),
            own,
            connect_ms: UNKNOWN,
            is_known: false,
        };
        entry.tell(Event::Open, account, None, facts);
        Some(entry)
    }

    /// A connection was turned away.
    pub fn refused(&self, refused: impl FnOnce() -> Refused) {
        let Some(pen) = &self.0 else { return };
        if pen.has_room() && pen.lane.refusals_waiting() < ROOM_OF_REFUSALS {
            let refusals = &pen.lane.refused;
            refusals.store(refusals.load(Relaxed) + 1, Release);
            let (time, refused) = (now(), refused());
            pen.push(Record::Refused(RefusedRecord { time, refused }));
        } else {
            pen.drop_one(Event::Refused);
        }
    }
}

impl Pen {
    fn has_room(&self) -> bool {
        self.lane.waiting() < ROOM
    }

    fn push(&self, record: Record) {
        // Fails only when the audit thread is gone, which ends after the workers.
        let _ = self.queue.send(record);
        let pushed = self.lane.pushed.load(Relaxed);
        self.lane.pushed.store(pushed + 1, Release);
        self.shared.wake();
    }

    fn drop_one(&self, event: Event) {
        let dropped = &self.lane.dropped[event as usize];
        dropped.store(dropped.load(Relaxed) + 1, Relaxed);
    }
}

/// [`Entry::connect_ms`] before the upstream is connected.
const UNKNOWN: u32 = u32::MAX;

/// A session's place in the trail, from `open` to `close`.
#[derive(Debug)]
pub struct Entry {
    scribe: Rc<Scribe>,
    number: u64,
    /// By the monotonic clock, in milliseconds.
    opened: u64,
    own: Option<Arc<AccountKey>>,
    connect_ms: u32,
    /// A record of it is in the trail or on its way there, so that its end must be as well.
    is_known: bool,
}

impl Entry {
    /// The upstream is connected.
    pub fn connected(&mut self) {
        let took = monotonic_ms().saturating_sub(self.opened);
        self.connect_ms = u32::try_from(took).unwrap_or(UNKNOWN).min(UNKNOWN - 1);
    }

    /// It goes on.
    pub fn progress(&mut self, account: &Arc<Account>, facts: impl FnOnce() -> Facts) {
        self.tell(Event::Progress, account, None, facts);
    }

    /// It ended.
    pub fn close(
        mut self,
        account: &Arc<Account>,
        reason: CloseReason,
        facts: impl FnOnce() -> Facts,
    ) {
        self.tell(Event::Close, account, Some(reason), facts);
    }

    fn tell(
        &mut self,
        event: Event,
        account: &Arc<Account>,
        reason: Option<CloseReason>,
        facts: impl FnOnce() -> Facts,
    ) {
        let Some(pen) = &self.scribe.0 else { return };
        let ends = event == Event::Close && self.is_known;
        if !ends && !pen.has_room() {
            return pen.drop_one(event);
        }
        self.is_known = true;
        pen.push(Record::Session(SessionRecord {
            time: now(),
            event,
            worker: pen.worker,
            number: self.number,
            account: account.clone(),
            own: self.own.clone(),
            duration_ms: (event != Event::Open).then(|| monotonic_ms().saturating_sub(self.opened)),
            connect_ms: (self.connect_ms != UNKNOWN).then_some(self.connect_ms),
            reason,
            facts: facts(),
        }));
    }
}

/// What waits in the queues, for the audit thread.
#[derive(Debug)]
pub(super) struct Queues {
    pub(super) queues: Vec<Receiver<Record>>,
    pub(super) shared: Arc<Shared>,
}

impl Queues {
    /// Takes a record of each queue in turn until there is none left or `take` has had enough; whether something is left.
    pub(super) fn take(&self, mut take: impl FnMut(&Record) -> bool) -> bool {
        loop {
            let mut any = false;
            for (queue, lane) in self.queues.iter().zip(&self.shared.lanes) {
                let Ok(record) = queue.try_recv() else {
                    continue;
                };
                any = true;
                let more = take(&record);
                lane.took(record.event());
                if !more {
                    return true;
                }
            }
            if !any {
                return false;
            }
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.shared.waiting() == 0
    }
}
