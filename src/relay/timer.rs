//! When sessions are to be looked at again.
//!
//! One entry per session, at its nearest deadline as it was known then. Traffic does not touch it: a session whose entry comes
//! up and which was active since is put back. So a transfer costs nothing here, opening and closing one tree operation each: less than
//! one per cent of what a short connection takes. A wheel would save that, round every deadline to its tick, and wake an idle worker for
//! each; this one sleeps until something is due.

use std::collections::BTreeSet;

/// Milliseconds since the engine began.
pub(super) type Millis = u64;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Timers {
    due: BTreeSet<(Millis, u32)>,
}

impl Timers {
    /// Sets the entry of `session`, which was at `before`, to `at`.
    pub(super) fn set(&mut self, session: u32, before: Option<Millis>, at: Option<Millis>) {
        if before == at {
            return;
        }
        if let Some(before) = before {
            self.due.remove(&(before, session));
        }
        if let Some(at) = at {
            self.due.insert((at, session));
        }
    }

    /// Takes out a session whose time has come.
    pub(super) fn take_due(&mut self, now: Millis) -> Option<u32> {
        let first = *self.due.first().filter(|entry| entry.0 <= now)?;
        self.due.remove(&first);
        Some(first.1)
    }

    /// The nearest deadline.
    #[must_use]
    pub(super) fn next(&self) -> Option<Millis> {
        self.due.first().map(|entry| entry.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_due_comes_in_order_and_once() {
        let mut timers = Timers::default();
        timers.set(1, None, Some(30));
        timers.set(2, None, Some(10));
        timers.set(1, Some(30), Some(20));
        assert_eq!((timers.take_due(9), timers.next()), (None, Some(10)));
        assert_eq!(
            (
                timers.take_due(25),
                timers.take_due(25),
                timers.take_due(99)
            ),
            (Some(2), Some(1), None)
        );
    }

    #[test]
    fn a_closed_session_leaves_nothing_behind() {
        let mut timers = Timers::default();
        timers.set(1, None, Some(30));
        timers.set(1, Some(30), None);
        assert_eq!(timers.next(), None);
    }
}
