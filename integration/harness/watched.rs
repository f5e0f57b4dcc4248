//! A value that threads and tasks change and a test waits for.

use std::{
    fmt::Debug,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// A value with a bell: whoever changes it wakes whoever waits for it to become something.
#[derive(Debug, Default)]
pub struct Watched<T> {
    value: Mutex<T>,
    changed: Condvar,
}

impl<T: Debug> Watched<T> {
    /// Starts from `value`.
    pub fn new(value: T) -> Self {
        Self {
            value: Mutex::new(value),
            changed: Condvar::new(),
        }
    }

    /// Looks at the value as it is now.
    pub fn look<R>(&self, look: impl FnOnce(&T) -> R) -> R {
        look(&self.lock())
    }

    /// Changes the value and wakes all who wait.
    pub fn update<R>(&self, change: impl FnOnce(&mut T) -> R) -> R {
        let result = change(&mut self.lock());
        self.changed.notify_all();
        result
    }

    /// Waits, for at most `bound`, until `found` sees what it looks for. Blocks the thread: for tests, never for a task on a host.
    ///
    /// # Panics
    /// When the bound passes; the message names `what` and shows the value.
    #[track_caller]
    pub fn wait<R>(&self, what: &str, bound: Duration, found: impl FnMut(&T) -> Option<R>) -> R {
        match self.becomes(bound, found) {
            Some(result) => result,
            None => panic!("waited {bound:?} for {what}, but have {:#?}", self.lock()),
        }
    }

    /// As [`wait`](Self::wait); `None` when the bound passes.
    pub fn becomes<R>(&self, bound: Duration, mut found: impl FnMut(&T) -> Option<R>) -> Option<R> {
        let deadline = Instant::now() + bound;
        let mut value = self.lock();
        loop {
            let result = found(&value);
            let left = deadline.saturating_duration_since(Instant::now());
            if result.is_some() || left.is_zero() {
                return result;
            }
            value = self
                .changed
                .wait_timeout(value, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    fn lock(&self) -> MutexGuard<'_, T> {
        // A test that failed while it held the lock is reported by itself; the others go on.
        self.value.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
