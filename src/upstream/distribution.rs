//! How what was measured of an address is distributed: counts in fixed buckets, as a Prometheus histogram has them.
//!
//! Workers add to it once per session and now and then while one lasts: two relaxed additions, no lock, no allocation.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Upper ends of the round trip's buckets, in microseconds: a zone, a Region, those next door, the other side of the world, trouble.
pub const RTT_MICROS: [u64; 16] = [
    250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 75_000, 100_000, 150_000, 200_000,
    250_000, 350_000, 500_000, 1_000_000,
];

/// Upper ends of the delivery rate's buckets, in bytes a second: from 16 KiB to 4 GiB, each four times the one before.
pub const RATE_BYTES: [u64; 10] = {
    let mut ends = [16 << 10; 10];
    let mut at = 1;
    while at < ends.len() {
        ends[at] = ends[at - 1] * 4;
        at += 1;
    }
    ends
};

/// See the module. Values are whole numbers of whatever unit `ends` is in.
#[derive(Debug)]
pub struct Distribution<const N: usize> {
    ends: &'static [u64; N],
    /// Of values not above the end of the same place, and above the one before.
    counts: [AtomicU64; N],
    /// Of those above the last end.
    above: AtomicU64,
    sum: AtomicU64,
}

/// What it held at one moment.
#[derive(Debug, Clone, PartialEq)]
pub struct Distributed {
    /// Each end, and how many values were not above it.
    pub up_to: Vec<(u64, u64)>,
    /// All values.
    pub count: u64,
    /// Their sum.
    pub sum: u64,
}

impl<const N: usize> Distribution<N> {
    /// Without a value. `ends` are in order.
    pub(super) const fn new(ends: &'static [u64; N]) -> Self {
        Self {
            ends,
            counts: [const { AtomicU64::new(0) }; N],
            above: AtomicU64::new(0),
            sum: AtomicU64::new(0),
        }
    }

    /// One more.
    pub(super) fn add(&self, value: u64) {
        let at = self.ends.partition_point(|end| *end < value);
        let count = self.counts.get(at).unwrap_or(&self.above);
        count.fetch_add(1, Relaxed);
        self.sum.fetch_add(value, Relaxed);
    }

    /// What was added so far; `None`: nothing. The count is that of the buckets, always; the sum may be a value ahead or behind while one is being added.
    #[must_use]
    pub fn read(&self) -> Option<Distributed> {
        let mut count = 0;
        let cumulated = |(end, counted): (&u64, &AtomicU64)| {
            count += counted.load(Relaxed);
            (*end, count)
        };
        let up_to = self.ends.iter().zip(&self.counts).map(cumulated).collect();
        count += self.above.load(Relaxed);
        (count > 0).then(|| Distributed {
            up_to,
            count,
            sum: self.sum.load(Relaxed),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_shown_before_the_first_value() {
        assert_eq!(Distribution::new(&RTT_MICROS).read(), None);
    }

    #[test]
    fn each_value_is_in_the_first_bucket_whose_end_is_not_below_it() {
        static ENDS: [u64; 3] = [10, 20, 40];
        let distribution = Distribution::new(&ENDS);
        for value in [0, 10, 11, 20, 39, 41, 1000] {
            distribution.add(value);
        }
        let read = distribution.read().unwrap();
        assert_eq!(read.up_to, [(10, 2), (20, 4), (40, 5)]);
        assert_eq!((read.count, read.sum), (7, 1121));
    }

    #[test]
    fn ends_are_in_order_and_rates_grow_by_four() {
        assert!(RTT_MICROS.is_sorted_by(|one, next| one < next));
        assert_eq!(RATE_BYTES[0], 16_384);
        assert!(RATE_BYTES.windows(2).all(|pair| pair[1] == 4 * pair[0]));
        assert_eq!(RATE_BYTES[9], 1 << 32);
    }

    #[test]
    fn no_value_is_lost_between_threads() {
        let distribution = Distribution::new(&RATE_BYTES);
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let distribution = &distribution;
                scope.spawn(move || (0..1000).for_each(|n| distribution.add(n << (8 * thread))));
            }
        });
        assert_eq!(distribution.read().unwrap().count, 4000);
    }
}
