//! When a name is asked for again, and how many packets that may take, without I/O and without a clock or dice of its own.

use std::num::NonZeroU32;
use std::time::Duration;

use tokio::time::Instant;

/// First pause after a failed look-up; doubled each time.
const FIRST_RETRY: Duration = Duration::from_secs(1);

/// Longest pause between look-ups that fail.
pub const LONGEST_RETRY: Duration = Duration::from_secs(30);

/// An answer is asked for again when at least this share of its TTL is over…
const SOONEST: f64 = 0.80;

/// …and at most this much more, by chance: the next answer is there before the last one ends, and names that were asked for together
/// are not for long.
const SPREAD: f64 = 0.15;

/// Where `min_ttl` forbids to ask before the end: by how much of it, by chance, the question comes later.
const LATER: f64 = 0.10;

/// By how much of a pause after a failure the question comes sooner, by chance.
const SOONER: f64 = 0.20;

/// The bounds of an upstream's `min_ttl`, `max_ttl` and `stale_for`.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Never asked again sooner.
    pub min_ttl: Duration,
    /// Asked again at the latest after this.
    pub max_ttl: Duration,
    /// How long the last good answer serves; `None`: for ever.
    pub stale_for: Option<Duration>,
}

/// How long to wait after a good answer: a little less than its TTL, within the bounds. `chance` is from 0 to 1.
#[must_use]
pub fn until_next(ttl: Duration, bounds: &Bounds, chance: f64) -> Duration {
    let ttl = ttl.clamp(bounds.min_ttl, bounds.max_ttl);
    let early = ttl.mul_f64(SOONEST + SPREAD * chance);
    if early >= bounds.min_ttl {
        return early;
    }
    let late = bounds.min_ttl.mul_f64(1.0 + LATER * chance);
    late.min(bounds.max_ttl)
}

/// How long to wait after so many failures in a row, this one not counted. `chance` is from 0 to 1.
#[must_use]
pub fn until_retry(failures: u32, bounds: &Bounds, chance: f64) -> Duration {
    let pause = FIRST_RETRY.saturating_mul(1 << failures.min(5));
    let pause = pause.min(LONGEST_RETRY).mul_f64(1.0 - SOONER * chance);
    pause.max(bounds.min_ttl.min(LONGEST_RETRY))
}

/// How many packets may be sent: evenly spread over each second, never in a burst, because a resolver that counts per second (as a VPC's
/// does) counts its own seconds.
#[derive(Debug)]
pub struct Allowance {
    gap: Duration,
    /// When the next packet may go.
    free: Option<Instant>,
}

impl Allowance {
    /// So many a second.
    #[must_use]
    pub fn new(per_second: NonZeroU32) -> Self {
        Self {
            gap: Duration::from_secs(1) / per_second.get(),
            free: None,
        }
    }

    /// When the next `packets` may be sent; what is taken is not given back. Who comes first goes first.
    pub fn take(&mut self, now: Instant, packets: u32) -> Instant {
        let at = self.free.map_or(now, |free| free.max(now));
        self.free = Some(at + self.gap.saturating_mul(packets));
        at
    }

    /// Everyone who waits begins anew: what they had taken is free again.
    pub fn all_left(&mut self, now: Instant) {
        self.free = self.free.map(|free| free.min(now + self.gap));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    fn bounds(min: u32, max: u32) -> Bounds {
        Bounds {
            min_ttl: min * S,
            max_ttl: max * S,
            stale_for: None,
        }
    }

    /// Between the least and the greatest chance.
    fn range(ttl: u32, bounds: &Bounds) -> [f64; 2] {
        [0.0, 1.0].map(|chance| until_next(ttl * S, bounds, chance).as_secs_f64())
    }

    #[test]
    fn an_answer_is_asked_for_again_a_little_before_it_ends() {
        assert_eq!(range(60, &bounds(1, 300)), [48.0, 57.0]);
        assert_eq!(range(5, &bounds(1, 300)), [4.0, 4.75]);
    }

    #[test]
    fn ttl_is_honoured_within_its_bounds() {
        for (ttl, expected) in [
            (0, [1.0, 1.1]),
            (1, [1.0, 1.1]),
            (5, [4.0, 4.75]),
            (86400, [240.0, 285.0]),
        ] {
            assert_eq!(range(ttl, &bounds(1, 300)), expected, "TTL {ttl}");
        }
        assert_eq!(range(7, &bounds(10, 10)), [10.0, 10.0], "there is no room");
    }

    #[test]
    fn never_sooner_than_min_ttl_nor_later_than_max_ttl() {
        for ttl in 0..400 {
            for step in 0..=20 {
                let wait = until_next(ttl * S, &bounds(10, 300), f64::from(step) / 20.0);
                assert!(wait >= 10 * S && wait <= 300 * S, "TTL {ttl}: {wait:?}");
            }
        }
    }

    #[test]
    fn two_names_do_not_stay_in_step() {
        for ttl in [0, 1, 60, 86400] {
            let [one, other] =
                [0.3, 0.7].map(|chance| until_next(ttl * S, &bounds(1, 300), chance));
            assert!(other > one + S / 100, "TTL {ttl}: {one:?} and {other:?}");
        }
    }

    #[test]
    fn failures_are_retried_with_growing_pauses() {
        let pauses = |chance| {
            [0, 1, 2, 3, 4, 5, 100].map(|n| until_retry(n, &bounds(1, 300), chance).as_secs_f64())
        };
        assert_eq!(pauses(0.0), [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]);
        assert_eq!(pauses(1.0), [1.0, 1.6, 3.2, 6.4, 12.8, 24.0, 24.0]);
    }

    #[test]
    fn a_failing_name_is_not_asked_for_more_often_than_min_ttl_allows_a_good_one() {
        assert_eq!(until_retry(0, &bounds(20, 300), 1.0), 20 * S);
        let longest = until_retry(0, &bounds(120, 300), 1.0);
        assert_eq!(longest, LONGEST_RETRY, "but then it is a failure");
    }

    #[test]
    fn packets_are_spread_over_the_second() {
        let begin = Instant::now();
        let mut allowance = Allowance::new(NonZeroU32::new(200).unwrap());
        for n in 0..1000 {
            assert_eq!(allowance.take(begin, 1), begin + n * (S / 200));
        }
        let later = begin + 60 * S;
        assert_eq!(
            allowance.take(later, 1),
            later,
            "an idle minute is no credit"
        );
        assert_eq!(allowance.take(later, 1), later + S / 200);
    }

    #[test]
    fn a_queue_that_everyone_leaves_holds_nobody_up() {
        let begin = Instant::now();
        let mut allowance = Allowance::new(NonZeroU32::new(100).unwrap());
        for _ in 0..1000 {
            allowance.take(begin, 1);
        }
        let later = begin + S;
        allowance.all_left(later);
        assert_eq!(
            allowance.take(later, 1),
            later + S / 100,
            "one may just have gone"
        );
    }

    #[test]
    fn what_takes_more_packets_waits_for_as_many() {
        let begin = Instant::now();
        let mut allowance = Allowance::new(NonZeroU32::new(100).unwrap());
        assert_eq!(allowance.take(begin, 8), begin);
        assert_eq!(allowance.take(begin, 1), begin + 8 * (S / 100));
    }
}
