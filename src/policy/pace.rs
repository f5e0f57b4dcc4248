//! How fast the sessions of an endpoint may move bytes, all of them together.

use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;

use super::bucket::{Bucket, Rate};
use crate::account::Direction;

/// What a direction may move at once after a pause. It is also how late a worker may come to a session that waited without a loss: a
/// turn behind many others, a clock in milliseconds.
const BURST: Duration = Duration::from_millis(100);

/// What a session is granted at a time while others wait, so that each gets its turn soon.
const GRANT: Duration = Duration::from_millis(10);

/// Bounds of a grant in bytes: below the least, what it costs to wait and to wake outweighs the bytes; above the most, nothing is won.
const LEAST: u64 = 4 * 1024;
const MOST: u64 = 256 * 1024;

/// See the module. Of one session: the endpoint's buckets, and the rates of its rules.
#[derive(Debug, Clone)]
pub struct Pace {
    /// What the endpoint's sessions have used, by [`Direction`].
    pub buckets: Arc<[Bucket; 2]>,
    /// Bytes a second, by [`Direction`]; `None`: as fast as it goes.
    pub rates: [Option<NonZeroU64>; 2],
}

impl Pace {
    /// The bucket of a direction and its rate, where it has one.
    #[must_use]
    pub fn of(&self, direction: Direction) -> Option<(&Bucket, Rate)> {
        let per_second = self.rates[direction as usize]?;
        Some((&self.buckets[direction as usize], rate(per_second)))
    }
}

/// What a bucket of bytes is told.
#[must_use]
pub fn rate(per_second: NonZeroU64) -> Rate {
    let burst = worth(per_second, BURST).max(grant(per_second));
    Rate {
        per_second,
        burst: NonZeroU64::new(burst).unwrap_or(per_second), // never 0
    }
}

/// What a session that waits reserves at most.
#[must_use]
pub fn grant(per_second: NonZeroU64) -> u64 {
    worth(per_second, GRANT).clamp(LEAST, MOST)
}

/// What a rate makes of a time.
fn worth(per_second: NonZeroU64, time: Duration) -> u64 {
    let worth = u128::from(per_second.get()) * time.as_nanos() / 1_000_000_000;
    u64::try_from(worth).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn per_second(bytes: u64) -> NonZeroU64 {
        NonZeroU64::new(bytes).unwrap()
    }

    #[test]
    fn a_grant_is_ten_milliseconds_within_its_bounds() {
        for (rate, expected) in [
            (1, LEAST),
            (4096, LEAST),
            (1_000_000, 10_000),
            (1 << 40, MOST),
            (u64::MAX, MOST),
        ] {
            assert_eq!(grant(per_second(rate)), expected, "{rate} bytes/s");
        }
    }

    #[test]
    fn a_burst_holds_a_grant_and_a_tenth_of_a_second() {
        for (bytes, expected) in [(1, LEAST), (4096, LEAST), (1_000_000, 100_000)] {
            assert_eq!(rate(per_second(bytes)).burst.get(), expected);
        }
        assert!(rate(per_second(u64::MAX)).burst.get() > 1 << 50);
    }
}
