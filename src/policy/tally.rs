//! What was used of what endpoints may, for as long as the process: by endpoint, and only of those that have a limit. A reload changes nothing
//! here, because how much there is to use is said at each use.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Instant;

use super::bucket::{Bucket, nanos};
use super::turnstile::Turnstile;
use crate::account::{LimitOf, Wait};
use crate::places::Places;

/// Parts of the table, so that workers seldom want the same one.
const PARTS: usize = 16;

/// As many may be there before it is looked whether any is idle.
const FEW: usize = 64;

/// Of one endpoint.
#[derive(Debug, Clone)]
pub struct Tally {
    /// Its sessions.
    pub turnstile: Arc<Turnstile>,
    /// Its bytes, by [`Direction`](crate::account::Direction).
    pub bytes: Arc<[Bucket; 2]>,
}

/// See the module.
#[derive(Debug)]
pub struct Tallies {
    hasher: RandomState,
    parts: [Mutex<Part>; PARTS],
    relay: Arc<Turnstile>,
    /// One for each listener's places, for as long as a worker has it.
    listeners: Mutex<Vec<Weak<Turnstile>>>,
    waiting: [AtomicUsize; LimitOf::ALL.len()],
    waits: [[AtomicU64; Wait::ALL.len()]; LimitOf::ALL.len()],
}

#[derive(Debug, Default)]
struct Part {
    by_endpoint: HashMap<Box<str>, Tally>,
    /// Once there are so many, those that are idle go.
    look_at: usize,
}

impl Tally {
    fn new() -> Self {
        Self {
            turnstile: Turnstile::at(Places::new(usize::MAX)),
            bytes: Arc::default(),
        }
    }

    /// Whether nothing would be lost if it were made anew, and nobody has it.
    fn is_idle(&self, now: Instant) -> bool {
        let alone = Arc::strong_count(&self.turnstile) == 1 && Arc::strong_count(&self.bytes) == 1;
        let earned = |bucket: &Bucket| bucket.is_full(nanos(now));
        alone && self.turnstile.is_idle(now) && self.bytes.iter().all(earned)
    }
}

impl Default for Tallies {
    fn default() -> Self {
        Self {
            hasher: RandomState::new(),
            parts: Default::default(),
            relay: Turnstile::at(Places::new(usize::MAX)),
            listeners: Mutex::default(),
            waiting: Default::default(),
            waits: Default::default(),
        }
    }
}

impl Tallies {
    /// That of `endpoint`. Takes a lock that other workers may have for as long as this takes.
    #[must_use]
    pub fn of(&self, endpoint: &str) -> Tally {
        let part = self.hasher.hash_one(endpoint) as usize % PARTS;
        let mut part = lock(&self.parts[part]);
        if let Some(tally) = part.by_endpoint.get(endpoint) {
            return tally.clone();
        }
        part.make_room(Instant::now());
        let tally = Tally::new();
        part.by_endpoint.insert(endpoint.into(), tally.clone());
        tally
    }

    /// That of the whole relay.
    #[must_use]
    pub fn relay(&self) -> &Arc<Turnstile> {
        &self.relay
    }

    /// That of a listener, which is known by its places.
    #[must_use]
    pub fn listener(&self, places: &Arc<Places>) -> Arc<Turnstile> {
        let mut listeners = lock(&self.listeners);
        listeners.retain(|turnstile| turnstile.strong_count() > 0);
        let mut known = listeners.iter().filter_map(Weak::upgrade);
        if let Some(turnstile) = known.find(|one| Arc::ptr_eq(one.places(), places)) {
            return turnstile;
        }
        let turnstile = Turnstile::at(places.clone());
        listeners.push(Arc::downgrade(&turnstile));
        turnstile
    }

    /// Counts one more who waits, until that is dropped; `None` where `most` do already.
    pub(super) fn wait(&self, of: LimitOf, most: usize) -> Option<Waiting<'_>> {
        // Two who come at once may both find the last place: it is memory that is bounded, and one more is nothing.
        if self.waiting().into_iter().sum::<usize>() >= most {
            return None;
        }
        self.waiting[of as usize].fetch_add(1, Relaxed);
        let tallies = self;
        Some(Waiting { tallies, of })
    }

    /// How many wait, by whose limit it is.
    #[must_use]
    pub fn waiting(&self) -> [usize; LimitOf::ALL.len()] {
        LimitOf::ALL.map(|of| self.waiting[of as usize].load(Relaxed))
    }

    /// What became of those who waited, by whose limit it was.
    #[must_use]
    pub fn waits(&self) -> [[u64; Wait::ALL.len()]; LimitOf::ALL.len()] {
        let count =
            |of: LimitOf| Wait::ALL.map(|end| self.waits[of as usize][end as usize].load(Relaxed));
        LimitOf::ALL.map(count)
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.parts
            .iter()
            .map(|part| lock(part).by_endpoint.len())
            .sum()
    }
}

impl Part {
    /// Looks through all of them, but only when they have doubled since the last time: so it costs each newcomer the same few steps.
    fn make_room(&mut self, now: Instant) {
        if self.by_endpoint.len() < self.look_at.max(FEW) {
            return;
        }
        self.by_endpoint.retain(|_, tally| !tally.is_idle(now));
        self.look_at = self.by_endpoint.len() * 2;
    }
}

/// One who waits.
#[derive(Debug)]
pub(super) struct Waiting<'a> {
    tallies: &'a Tallies,
    of: LimitOf,
}

impl Waiting<'_> {
    /// It waits no longer.
    pub(super) fn ends(self, end: Wait) {
        self.tallies.waits[self.of as usize][end as usize].fetch_add(1, Relaxed);
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.tallies.waiting[self.of as usize].fetch_sub(1, Relaxed);
    }
}

/// What is behind the locks is right at every step.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::OnLimit;
    use crate::policy::bucket::Rate;
    use crate::policy::rules::Entry;

    /// One a second, and very many at once.
    fn slow() -> Entry {
        let number = |n| std::num::NonZeroU64::new(n).unwrap();
        Entry {
            most: None,
            rate: Some(Rate {
                per_second: number(1),
                burst: number(1_000_000),
            }),
            on_limit: OnLimit::Refuse,
        }
    }

    #[test]
    fn an_endpoint_has_one_tally_whoever_asks() {
        let tallies = Tallies::default();
        let taken = tallies.of("vpce-1").turnstile.places().take();
        assert_eq!(tallies.of("vpce-1").turnstile.places().taken(), 1);
        assert_eq!(tallies.of("vpce-2").turnstile.places().taken(), 0);
        drop(taken);
    }

    #[test]
    fn those_that_nobody_uses_go_and_those_in_use_stay() {
        let tallies = Tallies::default();
        let session = tallies.of("in-use").turnstile.places().take().unwrap();
        let owing = tallies.of("owing").turnstile;
        // What came in a moment is earned in a quarter of an hour, and not while this runs.
        for _ in 0..1000 {
            drop(owing.enter(Instant::now(), &slow()).unwrap().keep());
        }
        drop(owing);
        for n in 0..100_000 {
            let _ = tallies.of(&format!("vpce-{n}"));
        }
        let len = tallies.len();
        assert!(len <= PARTS * (FEW + 1) + 2, "{len} are kept");
        let part = |endpoint: &str| {
            let part = tallies.hasher.hash_one(endpoint) as usize % PARTS;
            lock(&tallies.parts[part])
                .by_endpoint
                .contains_key(endpoint)
        };
        assert!(part("in-use") && part("owing"));
        drop(session);
    }

    #[test]
    fn a_listener_is_known_by_its_places() {
        let tallies = Tallies::default();
        let [one, other] = [Places::new(1), Places::new(1)];
        let first = tallies.listener(&one);
        assert!(Arc::ptr_eq(&first, &tallies.listener(&one)));
        assert!(!Arc::ptr_eq(&first, &tallies.listener(&other)));
        assert_eq!(lock(&tallies.listeners).len(), 2);
        drop(first);
        let _ = tallies.listener(&other);
        assert_eq!(lock(&tallies.listeners).len(), 1, "others are forgotten");
    }

    #[test]
    fn those_who_wait_are_counted_until_they_end() {
        let tallies = Tallies::default();
        let first = tallies.wait(LimitOf::Endpoint, 2).unwrap();
        let second = tallies.wait(LimitOf::Relay, 2).unwrap();
        assert!(tallies.wait(LimitOf::Listener, 2).is_none(), "two in all");
        assert_eq!(tallies.waiting(), [1, 0, 1]);
        first.ends(Wait::Admitted);
        drop(second);
        assert_eq!(tallies.waiting(), [0; 3]);
        let waits = tallies.waits();
        assert_eq!(waits[LimitOf::Endpoint as usize], [1, 0, 0]);
        assert_eq!(waits[LimitOf::Relay as usize], [0; 3], "it is not said how");
    }
}
