//! The clock that the books go by.

use rustix::time::{ClockId, clock_gettime};

/// Milliseconds on a clock that nobody sets and that every process on this machine shares, until it is booted again.
#[must_use]
pub fn monotonic_ms() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    // Neither is negative (clock_gettime(2)).
    now.tv_sec.unsigned_abs() * 1000 + now.tv_nsec.unsigned_abs() / 1_000_000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_does_not_go_back_and_begins_at_boot() {
        let first = monotonic_ms();
        assert!(first > 0);
        assert!(monotonic_ms() >= first);
    }
}
