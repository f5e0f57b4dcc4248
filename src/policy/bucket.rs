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
    /// How far a burst reached when `earned` was reckoned; 0: never.
    room: AtomicU64,
    /// The rate that those in the queue were last moved to, a second; 0: none.
    queued_by: AtomicU64,
}

impl Bucket {
    /// Takes `n` if they are there, and nobody waits for a reservation.
    ///
    /// # Errors
    /// How long until there would be as many, if nobody else took any. Of more than the burst there never are enough.
    pub fn take(&self, now: Nanos, rate: Rate, n: u64) -> Result<(), Duration> {
        self.reckon_by(now, rate);
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
        self.reckon_by(now, rate);
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
        self.reckon_by(now, rate);
        let time = rate.earns(n);
        let back = |earned: Nanos| Some(earned.saturating_sub(time));
        let _ = self.earned.fetch_update(ORDER, ORDER, back);
    }

    /// Whether it is full, as a new one is: nothing is lost if it is forgotten.
    #[must_use]
    pub fn is_full(&self, now: Nanos) -> bool {
        self.earned.load(ORDER) <= now
    }

    /// Those who wait for reservations are about to go from one rate to another, each giving its own back ([`Self::moved_by`]) and making a new
    /// one. At a faster rate, who comes first must not wait until the others would have had their turns at the slow one: what is reserved takes
    /// its time at the new rate from then on. The first to say so does it for all.
    pub fn move_queue(&self, now: Nanos, from: Option<Rate>, to: Option<Rate>) {
        let per_second = |rate: Option<Rate>| rate.map_or(0, |rate| rate.per_second.get());
        let before = self.queued_by.swap(per_second(to), ORDER);
        let (Some(from), Some(to)) = (from, to) else {
            return;
        };
        if before == per_second(Some(to)) || from.per_second >= to.per_second {
            return;
        }
        self.reckon_by(now, from);
        let (room, then) = (from.room(), to.room());
        let _ = self.earned.fetch_update(ORDER, ORDER, |earned| {
            let queue = earned.checked_sub(now)?.checked_sub(room)?;
            let queue = scaled(queue, from.per_second.get(), to.per_second.get());
            let queue = scaled(queue, room, then); // which reckoning it over takes back
            Some(now.saturating_add(room).saturating_add(queue))
        });
        self.reckon_by(now, to);
    }

    /// By what to give back a reservation that was made at one rate, after the queue moved to another.
    #[must_use]
    pub fn moved_by(from: Rate, to: Option<Rate>) -> Rate {
        to.filter(|to| to.per_second > from.per_second)
            .unwrap_or(from)
    }

    /// Where a burst reaches further, or less far, than it did, what is owed does so too: who has used half of one has used half of the
    /// other, so nobody pays at a low rate what a high one lent, and an empty bucket stays empty. Two who come with different rates at once
    /// (a reload that has reached one worker) each reckon it over by theirs, and lose nothing by it.
    fn reckon_by(&self, now: Nanos, rate: Rate) {
        let (before, room) = (self.room.load(ORDER), rate.room());
        if before == room {
            return;
        }
        let changed = self.room.compare_exchange(before, room, ORDER, ORDER);
        if changed.is_ok() && before != 0 {
            let _ = self.earned.fetch_update(ORDER, ORDER, |earned| {
                let owed = scaled(earned.checked_sub(now)?, room, before);
                Some(now.saturating_add(owed))
            });
        }
    }
}

/// A time by so much and through so much, rounded so that nobody gains by it.
fn scaled(time: Nanos, by: u64, through: u64) -> Nanos {
    clamped((u128::from(time) * u128::from(by)).div_ceil(u128::from(through)))
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
    fn what_a_high_rate_lent_is_not_paid_at_a_low_one() {
        let (bucket, fast, slow) = (
            Bucket::default(),
            rate(100 << 20, 10 << 20),
            rate(1 << 20, 1 << 17),
        );
        assert_eq!(bucket.take(S, fast, 10 << 20), Ok(()));
        assert_eq!(bucket.reserve(S, fast, 1 << 20), S + S / 100);
        let start = bucket.reserve(S, slow, 1 << 17);
        assert!(start <= S + S * 15 / 100, "{} ns", start - S);
        assert!(bucket.take(S, fast, 1).is_err(), "nothing is won by it");
    }

    #[test]
    fn an_empty_bucket_stays_empty_at_any_rate_and_is_not_emptier() {
        let bucket = Bucket::default();
        assert_eq!(bucket.take(S, rate(1000, 1000), 1000), Ok(()));
        for (per_second, burst) in [(10, 10), (10, 5), (1, 1000), (1_000_000, 1000)] {
            let wait = bucket.take(S, rate(per_second, burst), 1).unwrap_err();
            let one = Duration::from_nanos(S / per_second);
            assert!(
                wait >= one && wait <= one + Duration::from_micros(2),
                "{wait:?}"
            );
        }
    }

    #[test]
    fn a_queue_that_moves_to_a_faster_rate_takes_as_long_as_it_takes_there() {
        let (bucket, slow, fast) = (Bucket::default(), rate(10, 1), rate(1000, 100));
        for _ in 0..201 {
            let _ = bucket.reserve(S, slow, 1);
        }
        for _ in 0..200 {
            bucket.move_queue(S, Some(slow), Some(fast)); // once for all
        }
        let start = bucket.reserve(S, fast, 1);
        assert!((S + S / 5..S + S / 4).contains(&start), "{} ns", start - S);
        for _ in 0..200 {
            bucket.give_back(S, Bucket::moved_by(slow, Some(fast)), 1);
        }
        let wait = bucket.take(S, fast, 1).unwrap_err();
        assert!(wait <= Duration::from_millis(3), "{wait:?}");
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
        fn however_often_the_rate_changes_what_is_free_of_a_burst_stays_the_same_part_of_it(
            rates in prop::collection::vec((1_u64..1_000_000, 1_u64..1_000), 1..20),
            used in 1_u64..=1000,
        ) {
            let first = rate(1000, 1000);
            let bucket = Bucket::default();
            prop_assert!(bucket.take(S, first, used).is_ok());
            for (per_second, burst) in rates {
                let _ = bucket.take(S, rate(per_second, burst), u64::MAX);
            }
            let free = 1000 - used;
            prop_assert!(bucket.take(S, first, free + 1).is_err(), "nothing is won");
            prop_assert!(bucket.take(S + S / 1000, first, free.max(1)).is_ok(), "nothing is lost");
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
