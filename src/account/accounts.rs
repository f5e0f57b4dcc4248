//! An account in memory: whose it is, where its numbers are, and who holds it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use super::layout::PART;
use super::meter::Retired;
use super::reason::{CloseReason, Direction};
use super::slot::{Ink, Part, Slot};
use super::totals::{AccountKey, AccountTotals, Counters, SlotTotals};
use crate::sys::clock::monotonic_ms;
use crate::sys::region::Region;

/// The books of one (listener, endpoint, consumer, upstream): a part per worker.
#[derive(Debug)]
pub struct Account {
    region: Arc<Region>,
    /// Its slot's first word.
    first: usize,
    workers: usize,
    key: AccountKey,
    pub(super) slot_number: u32,
    pub(super) generation: u64,
    /// How often it had changed when it was last looked at, and since when it is so.
    seen: AtomicU64,
    idle_since: AtomicU64,
    /// What it came to, once it is retired.
    last: OnceLock<Counters>,
    holds: Holds,
}

/// Sessions in the lower half; above them those who only count something and are gone at once; the highest bit: retired. On a line of its
/// own: workers meet here, once per connection, and what they read for every transfer is elsewhere.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Holds(AtomicU64);

const SESSION: u64 = 1;
const VISITOR: u64 = 1 << 32;
const RETIRED: u64 = 1 << 63;

impl Account {
    /// The account that has a slot from now on. Nobody else may be writing to it.
    pub(super) fn new(
        region: Arc<Region>,
        first: usize,
        workers: usize,
        (slot_number, generation): (u32, u64),
        key: AccountKey,
        now: u64,
    ) -> Self {
        Slot::at(region.words(), first, workers).begin(&Ink, generation, &key);
        Self {
            region,
            first,
            workers,
            key,
            slot_number,
            generation,
            seen: AtomicU64::default(),
            idle_since: AtomicU64::new(now),
            last: OnceLock::new(),
            holds: Holds::default(),
        }
    }

    /// What it is kept for: the endpoint is `overflow` where the bound was reached.
    #[must_use]
    pub fn key(&self) -> &AccountKey {
        &self.key
    }

    /// The endpoint it is kept for: `overflow` where the bound was reached.
    #[must_use]
    pub fn endpoint(&self) -> &Arc<str> {
        &self.key.endpoint
    }

    /// Whether it has left memory: what keeps it may let it go.
    #[must_use]
    pub fn is_retired(&self) -> bool {
        self.holds.0.load(Ordering::Acquire) & RETIRED != 0
    }

    /// Books one connection refused, on the part of `worker`; `index` is the place in [`Counters::refused`].
    ///
    /// # Errors
    /// [`Retired`], and nothing is booked.
    pub fn refuse(&self, worker: usize, index: usize) -> Result<(), Retired> {
        if cfg!(feature = "no-accounting") {
            return Ok(());
        }
        self.enter(VISITOR)?;
        self.part(worker).refused(&Ink, index);
        self.leave(VISITOR);
        Ok(())
    }

    pub(super) fn open(&self, worker: usize) -> Result<(), Retired> {
        if cfg!(feature = "no-accounting") {
            return Ok(());
        }
        let active = self.enter(SESSION)?;
        self.part(worker).opened(&Ink, monotonic_ms());
        self.slot().raise_peak(active);
        Ok(())
    }

    #[inline(always)]
    pub(super) fn moved(&self, worker: usize, direction: Direction, n: u64) {
        if !cfg!(feature = "no-accounting") {
            self.part(worker).moved(&Ink, direction, n);
        }
    }

    pub(super) fn close(&self, worker: usize, reason: CloseReason) {
        if !cfg!(feature = "no-accounting") {
            self.part(worker).closed(&Ink, reason, monotonic_ms());
            self.leave(SESSION);
        }
    }

    #[inline(always)]
    fn part(&self, worker: usize) -> Part<'_> {
        Part::at(self.region.words(), self.first + PART * (1 + worker))
    }

    fn slot(&self) -> Slot<'_> {
        Slot::at(self.region.words(), self.first, self.workers)
    }

    /// Keeps it from being retired; says how many sessions there are then.
    fn enter(&self, what: u64) -> Result<u64, Retired> {
        let holds = self.holds.0.fetch_add(what, Ordering::Acquire) + what;
        if holds & RETIRED == 0 {
            return Ok(sessions(holds));
        }
        self.leave(what);
        Err(Retired)
    }

    fn leave(&self, what: u64) {
        self.holds.0.fetch_sub(what, Ordering::Release);
    }

    /// What was counted so far, at `now`. Where some worker does not get on with what it is counting, that may be in it by half.
    pub(super) fn totals(&self, now: u64) -> AccountTotals {
        let slot = self.slot();
        let counters = slot.counters(now);
        let counters = counters.unwrap_or_else(|| slot.counters_at_once(now));
        let peak = slot.peak();
        let (counters, peak) = match slot.is_of(self.generation) {
            true => (counters, peak),
            // Retired in the meantime, and perhaps it is another's slot already.
            false => (self.last.get().copied().unwrap_or_default(), 0),
        };
        let key = self.key.clone();
        AccountTotals {
            key,
            counters,
            peak,
        }
    }

    /// The same for the ledger, which books what is whole and nothing else: `None` where a worker does not get on, and where it was retired in the
    /// meantime. Takes the peak.
    pub(super) fn slot_totals(&self, now: u64) -> Option<SlotTotals> {
        self.enter(VISITOR).ok()?;
        let slot = self.slot();
        let booked = slot.booked();
        let counters = slot.counters(now);
        let totals = counters.map(|counters| SlotTotals {
            slot: self.slot_number,
            generation: self.generation,
            totals: AccountTotals {
                key: self.key.clone(),
                counters: counters.not_before(&booked),
                peak: slot.take_peak(|| sessions(self.holds.0.load(Ordering::Relaxed))),
            },
            booked,
        });
        self.leave(VISITOR);
        totals
    }

    /// What the ledger has of it now.
    pub(super) fn set_booked(&self, counters: &Counters) {
        if self.enter(VISITOR).is_ok() {
            self.slot().set_booked(&Ink, counters);
            self.leave(VISITOR);
        }
    }

    /// Whether nobody holds it and nothing was counted since so long; where it is to be booked, whether all of it is.
    pub(super) fn may_go(&self, idle_after: u64, now: u64, to_be_booked: bool) -> bool {
        let changes = self.slot().changes();
        let holds = self.holds.0.load(Ordering::Acquire);
        if holds != 0 || self.seen.swap(changes, Ordering::Relaxed) != changes {
            self.idle_since.store(now, Ordering::Relaxed);
            return false;
        }
        now.saturating_sub(self.idle_since.load(Ordering::Relaxed)) >= idle_after
            && (!to_be_booked || self.is_booked(now))
    }

    fn is_booked(&self, now: u64) -> bool {
        let slot = self.slot();
        let booked = slot.booked();
        let counters = slot.counters(now);
        counters.is_some_and(|counters| counters.not_before(&booked) == booked)
    }

    /// Retires it, unless somebody came since [`Account::may_go`]; gives what it came to. Under the lock of the books: who finds it retired and
    /// asks there is given another.
    pub(super) fn retire(&self, now: u64, to_be_booked: bool) -> Option<Counters> {
        let holds = &self.holds.0;
        holds
            .compare_exchange(0, RETIRED, Ordering::AcqRel, Ordering::Relaxed)
            .ok()?;
        let slot = self.slot();
        let unchanged = slot.changes() == self.seen.load(Ordering::Relaxed);
        if !unchanged || to_be_booked && !self.is_booked(now) {
            holds.fetch_and(!RETIRED, Ordering::Release);
            return None;
        }
        // Nobody writes: it is between two changes.
        let counters = slot.counters_at_once(now);
        let _ = self.last.set(counters);
        slot.end(&Ink, self.generation);
        Some(counters)
    }
}

fn sessions(holds: u64) -> u64 {
    holds & (VISITOR - 1)
}
