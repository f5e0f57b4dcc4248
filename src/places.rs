//! Places for so many at a time: what `max_sessions` and `max_pending` bound, counted over all workers.
//!
//! How many there are may change while some are taken: where there are fewer than are taken now, nobody loses his, and none is given out until
//! enough are back.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed, Ordering::SeqCst};

use tokio::sync::Notify;

/// See the module.
#[derive(Debug)]
pub struct Places {
    most: AtomicUsize,
    taken: AtomicUsize,
    /// How many wait for one, so that whoever leaves need not tell nobody.
    wanted: AtomicUsize,
    freed: Notify,
}

/// One of them; free again when this is dropped.
#[derive(Debug)]
pub struct Taken(Arc<Places>);

/// One who waits for a place.
#[derive(Debug)]
pub struct Wanted<'a>(&'a Places);

impl Wanted<'_> {
    /// Waits until one came free since this was last asked, for one of those who wait: it may be taken again by then.
    pub async fn freed(&self) {
        self.0.freed.notified().await;
    }
}

impl Drop for Wanted<'_> {
    fn drop(&mut self) {
        self.0.wanted.fetch_sub(1, Relaxed);
    }
}

impl Places {
    /// So many places, all of them free.
    #[must_use]
    pub fn new(most: usize) -> Arc<Self> {
        Arc::new(Self {
            most: AtomicUsize::new(most),
            taken: AtomicUsize::new(0),
            wanted: AtomicUsize::new(0),
            freed: Notify::new(),
        })
    }

    /// Takes a place; `None`: all are taken. Costs a compare-and-swap, and takes no lock.
    #[must_use]
    pub fn take(self: &Arc<Self>) -> Option<Taken> {
        let most = self.most.load(Relaxed);
        let one_more = |taken| (taken < most).then_some(taken + 1);
        let before = self.taken.fetch_update(SeqCst, SeqCst, one_more);
        before.ok().map(|_| Taken(self.clone()))
    }

    /// Takes a place though all may be taken: for whoever was there before it was known how many there are.
    #[must_use]
    pub fn take_anyway(self: &Arc<Self>) -> Taken {
        self.taken.fetch_add(1, Relaxed);
        Taken(self.clone())
    }

    /// Announces that a place is waited for: [`Wanted::freed`] tells of each that comes free from now on.
    #[must_use]
    pub fn want(&self) -> Wanted<'_> {
        self.wanted.fetch_add(1, SeqCst);
        Wanted(self)
    }

    /// From now on there are so many.
    pub fn set_most(&self, most: usize) {
        self.most.store(most, Relaxed);
        if self.wanted.load(SeqCst) > 0 {
            self.freed.notify_one(); // there may be more
        }
    }

    /// How many there are.
    #[must_use]
    pub fn most(&self) -> usize {
        self.most.load(Relaxed)
    }

    /// How many are taken.
    #[must_use]
    pub fn taken(&self) -> usize {
        self.taken.load(Relaxed)
    }

    /// Whether all are taken.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.taken() >= self.most()
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        // In this order, and in the other where one waits: either sees what the other did.
        self.0.taken.fetch_sub(1, SeqCst);
        if self.0.wanted.load(SeqCst) > 0 {
            self.0.freed.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_are_given_out_than_there_are() {
        let places = Places::new(2);
        let first = places.take().unwrap();
        let _second = places.take().unwrap();
        assert!(places.take().is_none() && places.is_full());
        drop(first);
        assert!(places.take().is_some());
        assert_eq!(places.taken(), 1);
    }

    #[test]
    fn who_has_a_place_keeps_it_where_there_are_fewer() {
        let places = Places::new(3);
        let mut taken: Vec<_> = (0..3).map(|_| places.take().unwrap()).collect();
        places.set_most(1);
        assert_eq!((places.taken(), places.most()), (3, 1));
        taken.truncate(1);
        assert!(places.take().is_none());
        taken.clear();
        assert!(places.take().is_some());
        places.set_most(4);
        let more: Vec<_> = (0..5).map_while(|_| places.take()).collect();
        assert_eq!(more.len(), 4);
    }

    #[test]
    fn whoever_waits_is_told_of_a_place_that_came_free_before_he_looked() {
        let places = Places::new(1);
        let taken = places.take().unwrap();
        let wanted = places.want();
        assert!(places.take().is_none());
        drop(taken);
        let mut freed = std::pin::pin!(wanted.freed());
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        use std::future::Future;
        assert!(freed.as_mut().poll(&mut context).is_ready());
        assert!(places.take().is_some());
    }

    #[test]
    fn who_was_there_before_is_counted_beyond_the_bound() {
        let places = Places::new(1);
        let there = [places.take_anyway(), places.take_anyway()];
        assert!(places.take().is_none() && places.taken() == 2);
        drop(there);
        assert!(places.take().is_some());
    }

    #[test]
    fn threads_that_take_at_once_never_have_too_many() {
        let places = Places::new(8);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..20_000 {
                        let taken = places.take();
                        assert!(places.taken() <= 8);
                        drop(taken);
                    }
                });
            }
        });
        assert_eq!(places.taken(), 0);
    }
}
