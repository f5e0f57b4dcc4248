//! A token bucket without a lock, for all workers: the generic cell rate algorithm (ITU-T I.371) over one word.
//!
//! The word is the time at which all that was let through will have been earned at the rate. What is ahead of `now` is the debt; the burst
//! bounds it. So nothing has to be filled up from time to time, an idle bucket is two words, and the rate and the burst come with each use.

use std::num::NonZeroU64;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Nanoseconds since an hour before the process first asked: more than 500 years of them.
pub type Nanos = u64;

const SECOND: u128 = 1_000_000_000;

/// Nothing else hangs on what the words say.
const ORDER: Ordering = Ordering::Relaxed;

/// How long before the first point in time they begin.
const BEFORE: Duration = Duration::from_secs(3600);

/// What the clocks of all buckets begin at.
static EPOCH: OnceLock<Instant> = OnceLock::new();

/// A point in time, as buckets count.
#[must_use]
pub fn nanos(at: Instant) -> Nanos {
    // Another thread may have looked at the clock before and ask after us.
    let epoch = *EPOCH.get_or_init(|| at.checked_sub(BEFORE).unwrap_or(at));
    let since = at.saturating_duration_since(epoch).as_nanos();
    Nanos::try_from(since).unwrap_or(Nanos::MAX)
}

/// So many a second, and so many of them at once after a pause.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Units a second.
    pub per_second: NonZeroU64,
    /// Units at once.
    pub burst: NonZeroU64,
}

impl Rate {
    /// How long it takes to earn `n`, and not less.
    fn cost(self, n: u64) -> Nanos {
        clamped((u128::from(n) * SECOND).div_ceil(u128::from(self.per_second.get())))
    }

    /// How long it takes to earn `n`, and not more.
    fn earns(self, n: u64) -> Nanos {
        clamped(u128::from(n) * SECOND / u128::from(self.per_second.get()))
    }

    /// How far ahead of now the time may be at which all is earned: as far as the burst takes it, to the nanosecond.
    fn room(self) -> Nanos {
        self.cost(self.burst.get())
    }
}

fn clamped(nanos: u128) -> Nanos {
    Nanos::try_from(nanos).unwrap_or(Nanos::MAX)
}

/// See the module. A new one is full.
#[derive(Debug, Default)]
pub struct Bucket {
    /// When all that was taken is earned.
    earned: AtomicU64,
    /// The rate by which `earned` was reckoned; 0: none yet.
    rate: AtomicU64,
}

impl Bucket {
    /// Takes `n` if they are there, and nobody waits for a reservation.
    ///
    /// # Errors
    /// How long until there would be as many, if nobody else took any. Of more than the burst there never are enough.
    pub fn take(&self, now: Nanos, rate: Rate, n: u64) -> Result<(), Duration> {
        self.reckon_by(now, rate.per_second);
        let (cost, room) = (rate.cost(n), rate.room());
        let after = |earned: Nanos| earned.max(now).saturating_add(cost);
        let fits = |earned| Some(after(earned)).filter(|after| after - now <= room);
        let taken = self.earned.fetch_update(ORDER, ORDER, fits);
        taken
            .map(|_| ())
            .map_err(|earned| Duration::from_nanos(after(earned) - now - room))
    }

    /// Takes `n` in any case, and tells from when on they are there: in the order in which it was asked. Of more than the burst only after
    /// a wait.
    #[must_use]
    pub fn reserve(&self, now: Nanos, rate: Rate, n: u64) -> Nanos {
        self.reckon_by(now, rate.per_second);
        let cost = rate.cost(n);
        let after = |earned: Nanos| earned.max(now).saturating_add(cost);
        let before = self
            .earned
            .fetch_update(ORDER, ORDER, |earned| Some(after(earned)));
        let before = before.unwrap_or_else(|earned| earned); // it never refuses
        after(before).saturating_sub(rate.room()).max(now)
    }

    /// `n` that were taken or reserved are not used. Whoever has a reservation keeps its time.
    pub fn give_back(&self, now: Nanos, rate: Rate, n: u64) {
        self.reckon_by(now, rate.per_second);
        let time = rate.earns(n);
        let back = |earned: Nanos| Some(earned.saturating_sub(time));
        let _ = self.earned.fetch_update(ORDER, ORDER, back);
    }

    /// Whether it is full, as a new one is: nothing is lost if it is forgotten.
    #[must_use]
    pub fn is_full(&self, now: Nanos) -> bool {
        self.earned.load(ORDER) <= now
    }

    /// Where the rate is another one, what is owed stays as much in units, and takes another time. Two who come with different rates at
    /// once (a reload that has reached one worker) each reckon it over by theirs.
    fn reckon_by(&self, now: Nanos, rate: NonZeroU64) {
        let before = self.rate.load(ORDER);
        if before == rate.get() {
            return;
        }
        let changed = self
            .rate
            .compare_exchange(before, rate.get(), ORDER, ORDER)
            .is_ok();
        if changed && before != 0 {
            let _ = self.earned.fetch_update(ORDER, ORDER, |earned| {
                let owed = u128::from(earned.checked_sub(now)?) * u128::from(before);
                let owed = clamped(owed.div_ceil(u128::from(rate.get())));
                Some(now.saturating_add(owed))
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use proptest::prelude::*;

    const S: Nanos = 1_000_000_000;

    fn rate(per_second: u64, burst: u64) -> Rate {
        Rate {
            per_second: NonZeroU64::new(per_second).unwrap(),
            burst: NonZeroU64::new(burst).unwrap(),
        }
    }

    #[test]
    fn a_burst_is_there_at_once_and_the_rest_is_earned() {
        let (bucket, rate) = (Bucket::default(), rate(10, 5));
        for _ in 0..5 {
            assert_eq!(bucket.take(S, rate, 1), Ok(()));
        }
        let wait = Duration::from_millis(100);
        assert_eq!(bucket.take(S, rate, 1), Err(wait));
        assert_eq!(bucket.take(S, rate, 2), Err(2 * wait));
        assert_eq!(bucket.take(S + S / 10, rate, 1), Ok(()));
        assert_eq!(bucket.take(S + S / 10, rate, 1), Err(wait));
    }

    #[test]
    fn a_pause_earns_one_burst_and_no_more() {
        let (bucket, rate) = (Bucket::default(), rate(10, 5));
        let later = 1000 * S;
        assert_eq!(bucket.take(later, rate, 5), Ok(()));
        assert!(bucket.take(later, rate, 1).is_err());
        assert!(!bucket.is_full(later) && bucket.is_full(later + S));
    }

    #[test]
    fn reservations_begin_in_the_order_in_which_they_were_made() {
        let (bucket, rate) = (Bucket::default(), rate(1000, 10));
        let starts: Vec<Nanos> = (0..5).map(|_| bucket.reserve(S, rate, 10)).collect();
        let expected: Vec<Nanos> = (0..5).map(|n| S + n * S / 100).collect();
        assert_eq!(starts, expected);
        assert!(bucket.take(S, rate, 1).is_err(), "nobody goes before them");
    }

    #[test]
    fn more_than_a_burst_can_be_reserved_and_has_to_be_earned_first() {
        let (bucket, rate) = (Bucket::default(), rate(1000, 10));
        assert_eq!(bucket.reserve(S, rate, 110), S + S / 10);
        assert!(bucket.take(10 * S, rate, 11).is_err());
    }

    #[test]
    fn what_is_given_back_is_there_for_the_next() {
        let (bucket, rate) = (Bucket::default(), rate(3, 7));
        assert_eq!(bucket.take(S, rate, 7), Ok(()));
        assert!(bucket.take(S, rate, 4).is_err());
        bucket.give_back(S, rate, 4);
        let soon = S + 1; // rounded so that nobody gains by it
        assert_eq!(bucket.take(soon, rate, 4), Ok(()));
        bucket.give_back(soon, rate, 100);
        assert_eq!(bucket.take(soon, rate, 7), Ok(()));
        assert!(bucket.take(soon, rate, 1).is_err(), "a burst is the most");
    }

    #[test]
    fn a_queue_at_one_rate_is_as_long_in_units_at_another() {
        let (bucket, slow, fast) = (Bucket::default(), rate(1, 1), rate(1000, 1));
        for _ in 0..201 {
            let _ = bucket.reserve(S, slow, 1);
        }
        assert_eq!(bucket.take(S, slow, 1), Err(Duration::from_secs(201)));
        assert_eq!(bucket.take(S, fast, 1), Err(Duration::from_millis(201)));
        assert_eq!(bucket.take(S, slow, 1), Err(Duration::from_secs(201)));
    }

    #[test]
    fn extremes_do_not_wrap() {
        let bucket = Bucket::default();
        let (slow, fast) = (rate(1, u64::MAX), rate(u64::MAX, u64::MAX));
        assert_eq!(bucket.take(S, fast, u64::MAX), Ok(()));
        assert_eq!(bucket.take(u64::MAX, slow, u64::MAX), Ok(()));
        assert_eq!(bucket.reserve(u64::MAX, slow, u64::MAX), u64::MAX);
        bucket.give_back(u64::MAX, slow, u64::MAX);
        bucket.give_back(0, fast, u64::MAX);
    }

    /// What was let through and when: in no stretch of time more than a burst and what the rate makes of it.
    fn assert_bounded(mut let_through: Vec<(Nanos, u64)>, rate: Rate) -> Result<(), TestCaseError> {
        let_through.sort_unstable();
        for (first, (from, _)) in let_through.iter().enumerate() {
            let mut sum = 0;
            for (to, n) in &let_through[first..] {
                sum += u128::from(*n);
                let earned = u128::from(to - from) * u128::from(rate.per_second.get()) / SECOND + 5; // a nanosecond is worth 2
                prop_assert!(
                    sum <= u128::from(rate.burst.get()) + earned,
                    "{sum} within {} ns",
                    to - from
                );
            }
        }
        Ok(())
    }

    proptest! {
        #[test]
        fn never_more_than_a_burst_and_what_was_earned(
            per_second in 1_u64..2_000_000_000,
            burst in 1_u64..10_000_000,
            steps in prop::collection::vec((0_u64..S / 50, 1_u64..5_000_000, any::<bool>()), 1..60),
        ) {
            let (bucket, rate) = (Bucket::default(), rate(per_second, burst));
            let (mut now, mut let_through) = (S, Vec::new());
            for (pause, n, reserves) in steps {
                now += pause;
                let n = n.min(burst);
                if reserves {
                    let start = bucket.reserve(now, rate, n);
                    prop_assert!(start >= now);
                    let_through.push((start, n));
                } else if bucket.take(now, rate, n).is_ok() {
                    let_through.push((now, n));
                }
            }
            assert_bounded(let_through, rate)?;
        }

        #[test]
        fn who_waits_as_long_as_told_is_served(
            per_second in 1_u64..2_000_000_000,
            burst in 1_u64..10_000_000,
            takes in prop::collection::vec(1_u64..10_000_000, 1..20),
        ) {
            let (bucket, rate) = (Bucket::default(), rate(per_second, burst));
            let mut now = S;
            for n in takes {
                let n = n.min(burst);
                if let Err(wait) = bucket.take(now, rate, n) {
                    now += u64::try_from(wait.as_nanos()).unwrap();
                    prop_assert!(bucket.take(now, rate, n).is_ok());
                }
            }
        }

        #[test]
        fn changing_the_rate_neither_makes_nor_loses_units(
            rates in prop::collection::vec(1_u64..1_000_000, 1..20),
            owed in 1_u64..100_000,
        ) {
            let first = rate(rates[0], 1);
            let bucket = Bucket::default();
            let _ = bucket.reserve(S, first, owed);
            let mut wait = Duration::ZERO;
            let mut last = first;
            for per_second in rates {
                last = rate(per_second, 1);
                wait = bucket.take(S, last, 1).err().unwrap_or_default();
            }
            let units = wait.as_secs_f64() * last.per_second.get() as f64;
            let slack = 1e-6 * owed as f64 + 0.1;
            prop_assert!((units - owed as f64).abs() <= slack, "{units} of {owed}");
        }
    }

    #[test]
    fn many_threads_get_no_more_than_one_would() {
        let (bucket, rate) = (Bucket::default(), rate(1_000_000, 1000));
        // Each thread has its own time, as workers have, and goes through the same second.
        let took: u64 = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4)
                .map(|_| {
                    scope.spawn(|| {
                        let mut took = 0;
                        for now in (S..2 * S).step_by(10_000) {
                            for n in [7, 1, 30] {
                                match bucket.take(now, rate, n) {
                                    Ok(()) => took += n,
                                    Err(_) if bucket.reserve(now, rate, 2) <= 2 * S => took += 2,
                                    Err(_) => bucket.give_back(now, rate, 2),
                                }
                            }
                        }
                        took
                    })
                })
                .collect();
            threads.into_iter().map(|one| one.join().unwrap()).sum()
        });
        let most = 1_000_000 + 1000;
        assert!(took <= most, "{took} of {most}");
        assert!(took > most * 9 / 10, "{took} of {most}");
    }
}
