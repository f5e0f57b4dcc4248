//! Places for so many at a time: what `max_sessions` and `max_pending` bound, counted over all workers.
//!
//! How many there are may change while some are taken: where there are fewer than are taken now, nobody loses his, and none is given out until
//! enough are back.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// See the module.
#[derive(Debug)]
pub struct Places {
    most: AtomicUsize,
    taken: AtomicUsize,
}

/// One of them; free again when this is dropped.
#[derive(Debug)]
pub struct Taken(Arc<Places>);

impl Places {
    /// So many places, all of them free.
    #[must_use]
    pub fn new(most: usize) -> Arc<Self> {
        Arc::new(Self {
            most: AtomicUsize::new(most),
            taken: AtomicUsize::new(0),
        })
    }

    /// Takes a place; `None`: all are taken. Costs a compare-and-swap, and takes no lock.
    #[must_use]
    pub fn take(self: &Arc<Self>) -> Option<Taken> {
        let most = self.most.load(Relaxed);
        let one_more = |taken| (taken < most).then_some(taken + 1);
        let before = self.taken.fetch_update(Relaxed, Relaxed, one_more);
        before.ok().map(|_| Taken(self.clone()))
    }

    /// From now on there are so many.
    pub fn set_most(&self, most: usize) {
        self.most.store(most, Relaxed);
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
        self.0.taken.fetch_sub(1, Relaxed);
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
