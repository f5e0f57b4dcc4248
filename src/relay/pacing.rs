//! A session of an endpoint with a limit on bytes per second: each of its reads needs a grant first.
//!
//! A grant is taken before the read and what the read leaves of it is given back at once, so that no session hoards what others could use.
//! Where the endpoint's bucket is empty, the direction reserves as much as waits to be read, at most a grant, and waits for its time: first
//! come first served, over all sessions and workers. Without I/O and without a clock.

use std::sync::Arc;

use rustix::io::Errno;

use crate::account::Direction;
use crate::policy::bucket::{Bucket, Nanos, Rate};
use crate::policy::pace::{Pace, grant};

/// Room for a read where nothing waits to be read. It finds an end, most likely, which costs nothing; bytes that come in between are paid
/// for afterwards.
const FINDING_OUT: usize = 4 * 1024;

/// A session's pace, and what it has reserved by it.
#[derive(Debug)]
pub(super) struct Pacer {
    pace: Pace,
    reserved: [Option<Reserved>; 2],
    /// The kernel was told the rate of the direction, for its sink.
    told: [bool; 2],
}

#[derive(Debug, Clone, Copy)]
struct Reserved {
    start: Nanos,
    bytes: u64,
}

impl Pacer {
    pub(super) fn new(pace: Pace) -> Self {
        Self {
            pace,
            reserved: [None; 2],
            told: [false; 2],
        }
    }

    /// Whether this is its pace.
    pub(super) fn goes_by(&self, pace: &Pace) -> bool {
        Arc::ptr_eq(&self.pace.buckets, &pace.buckets) && self.pace.rates == pace.rates
    }

    /// What the reads of a direction have to pass; `None`: it has no limit.
    pub(super) fn gate(&mut self, direction: Direction, now: Nanos) -> Option<Gate<'_>> {
        let (bucket, rate) = self.pace.of(direction)?;
        Some(Gate {
            bucket,
            rate,
            reserved: &mut self.reserved[direction as usize],
            now,
        })
    }

    /// Bytes that were read before there was a pace: whether they have to wait.
    pub(super) fn begin(&mut self, direction: Direction, now: Nanos, bytes: usize) -> bool {
        let Some((bucket, rate)) = self.pace.of(direction) else {
            return false;
        };
        let bytes = bytes as u64;
        let start = bucket.reserve(now, rate, bytes);
        let waits = start > now;
        self.reserved[direction as usize] = waits.then_some(Reserved { start, bytes });
        waits
    }

    /// Those bytes go.
    pub(super) fn spend(&mut self, direction: Direction) {
        self.reserved[direction as usize] = None;
    }

    /// When the nearest reservation begins.
    pub(super) fn next(&self) -> Option<Nanos> {
        let reserved = self.reserved.iter().flatten();
        reserved.map(|reserved| reserved.start).min()
    }

    /// Whether the reservation of a direction has begun.
    pub(super) fn has_begun(&self, direction: Direction, now: Nanos) -> bool {
        self.reserved[direction as usize].is_some_and(|reserved| reserved.start <= now)
    }

    /// A direction has no use for its reservation any more.
    pub(super) fn release(&mut self, direction: Direction, now: Nanos) {
        if let Some(reserved) = self.reserved[direction as usize].take()
            && let Some((bucket, rate)) = self.pace.of(direction)
        {
            bucket.give_back(now, rate, reserved.bytes);
        }
    }

    /// What a direction has reserved is free again, because the session goes by `next` from now on, or by none.
    pub(super) fn move_to(&mut self, next: Option<&Pace>, direction: Direction, now: Nanos) {
        let Some((bucket, from)) = self.pace.of(direction) else {
            return;
        };
        let next = next.filter(|next| Arc::ptr_eq(&next.buckets, &self.pace.buckets));
        let to = next.and_then(|next| next.of(direction)).map(|(_, to)| to);
        bucket.move_queue(now, Some(from), to);
        if let Some(reserved) = self.reserved[direction as usize].take() {
            bucket.give_back(now, Bucket::moved_by(from, to), reserved.bytes);
        }
    }

    /// What the kernel should send to the sink of a direction in a second at most: told once, when the direction waits for the first time.
    /// A quarter above the limit, because the kernel is to smooth and the bucket to count.
    pub(super) fn tells(&mut self, direction: Direction) -> Option<u64> {
        let (_, rate) = self.pace.of(direction)?;
        let told = std::mem::replace(&mut self.told[direction as usize], true);
        let rate = rate.per_second.get();
        (!told).then(|| rate.saturating_add(rate / 4))
    }

    /// Whether the kernel was told of a direction.
    pub(super) fn was_told(&self, direction: Direction) -> bool {
        self.told[direction as usize]
    }
}

/// See [`Pacer::gate`].
pub(super) struct Gate<'a> {
    bucket: &'a Bucket,
    rate: Rate,
    reserved: &'a mut Option<Reserved>,
    now: Nanos,
}

/// What may be read, and what was paid for it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Grant {
    /// At most so many bytes, and one at least.
    pub(super) most: usize,
    paid: u64,
}

impl Grant {
    /// Where nothing is limited.
    pub(super) fn free(most: usize) -> Self {
        Self { most, paid: 0 }
    }
}

impl Gate<'_> {
    /// Asks for a read of `wanted` bytes. `unread` tells how many there are. `None`: not before the reservation that was made begins.
    pub(super) fn ask(
        &mut self,
        wanted: usize,
        unread: impl FnOnce() -> Result<u64, Errno>,
    ) -> Option<Grant> {
        if let Some(reserved) = *self.reserved {
            if reserved.start > self.now {
                return None;
            }
            *self.reserved = None;
            return Some(Grant {
                most: at_most(reserved.bytes, wanted),
                paid: reserved.bytes,
            });
        }
        let at_once = self.rate.burst.get().min(wanted as u64);
        if self.bucket.take(self.now, self.rate, at_once).is_ok() {
            return Some(Grant {
                most: at_most(at_once, wanted),
                paid: at_once,
            });
        }
        let most = grant(self.rate.per_second).min(wanted as u64);
        let bytes = match unread() {
            Ok(0) => return Some(Grant::free(wanted.min(FINDING_OUT))),
            Ok(unread) => unread.min(most),
            Err(_) => most, // then reading tells what is wrong
        };
        let start = self.bucket.reserve(self.now, self.rate, bytes);
        if start > self.now {
            *self.reserved = Some(Reserved { start, bytes });
            return None;
        }
        Some(Grant {
            most: at_most(bytes, wanted),
            paid: bytes,
        })
    }

    /// So many bytes were read on a grant.
    pub(super) fn settle(&mut self, grant: &Grant, read: usize) {
        let read = read as u64;
        if read < grant.paid {
            self.bucket
                .give_back(self.now, self.rate, grant.paid - read);
        } else if read > grant.paid {
            let _ = self.bucket.reserve(self.now, self.rate, read - grant.paid);
        }
    }
}

fn at_most(bytes: u64, wanted: usize) -> usize {
    usize::try_from(bytes).map_or(wanted, |bytes| bytes.min(wanted))
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::collections::BTreeMap;
    use std::num::NonZeroU64;

    const S: Nanos = 1_000_000_000;
    const UP: Direction = Direction::ToUpstream;
    const MUCH: u64 = 1 << 40;

    fn pace(per_second: u64) -> Pace {
        Pace {
            buckets: Arc::default(),
            rates: [NonZeroU64::new(per_second), None],
        }
    }

    /// Reads all that a pacer allows from `unread` bytes now; how many that were.
    fn read(pacer: &mut Pacer, now: Nanos, unread: &mut u64) -> u64 {
        let mut got = 0;
        while let Some(mut gate) = pacer.gate(UP, now)
            && *unread > 0
            && let Some(grant) = gate.ask(256 * 1024, || Ok(*unread))
        {
            let n = (grant.most as u64).min(*unread);
            gate.settle(&grant, usize::try_from(n).unwrap());
            *unread -= n;
            got += n;
        }
        got
    }

    #[test]
    fn a_direction_without_a_limit_has_no_gate() {
        let mut pacer = Pacer::new(pace(1000));
        assert!(pacer.gate(Direction::ToClient, S).is_none());
        assert!(pacer.gate(UP, S).is_some());
    }

    #[test]
    fn many_sessions_have_one_rate_and_each_its_share_however_late_they_wake() {
        for (sessions, rate) in [
            (1, 1_000_000),
            (10, 1_000_000),
            (200, 50_000_000),
            (3, 4096),
        ] {
            let pace = pace(rate);
            let mut all: Vec<_> = (0..sessions).map(|_| Pacer::new(pace.clone())).collect();
            let mut got = vec![0_u64; all.len()];
            let mut wakes: BTreeMap<(Nanos, usize), ()> =
                (0..all.len()).map(|index| ((S, index), ())).collect();
            let end = S + 20 * S;
            while let Some(((at, index), ())) = wakes.pop_first() {
                if at >= end {
                    break;
                }
                let now = at + (at % 17) * S / 1000; // up to 16 ms late
                got[index] += read(&mut all[index], now, &mut { MUCH });
                let next = all[index].next().expect("a reservation");
                assert!(next > now);
                wakes.insert((next, index), ());
            }
            let (sum, due) = (got.iter().sum::<u64>(), 20 * rate);
            let most = due + rate / 10 + grant(NonZeroU64::new(rate).unwrap());
            assert!(
                (due * 98 / 100..=most).contains(&sum),
                "{sessions} at {rate}: {sum} of {due}"
            );
            let share = sum / sessions as u64;
            // One of them had the whole burst at the beginning, and some had one turn more than others.
            let turn = rate / 10 + 2 * grant(NonZeroU64::new(rate).unwrap());
            for one in got {
                assert!(
                    one + turn >= share * 9 / 10 && one <= share * 11 / 10 + turn,
                    "{one} of {share}"
                );
            }
        }
    }

    #[test]
    fn a_message_within_the_rate_does_not_wait() {
        let mut pacer = Pacer::new(pace(1_000_000));
        for turn in 0..1000 {
            let mut unread = 900;
            assert_eq!(read(&mut pacer, S + turn * S / 1000, &mut unread), 900);
        }
    }

    #[test]
    fn a_small_message_reserves_no_more_than_itself() {
        let pace = pace(1_000_000);
        let (mut bulk, mut small) = (Pacer::new(pace.clone()), Pacer::new(pace));
        read(&mut bulk, S, &mut { MUCH });
        let before = bulk.next().unwrap();
        assert_eq!(read(&mut small, S, &mut 100), 0);
        let after = small.next().unwrap();
        assert_eq!(
            after - before,
            100 * 1000,
            "100 bytes at a microsecond each"
        );
    }

    #[test]
    fn an_end_waits_for_nobody_and_bytes_in_its_place_are_paid_for() {
        let pace = pace(4096);
        let (mut bulk, mut other) = (Pacer::new(pace.clone()), Pacer::new(pace));
        read(&mut bulk, S, &mut { MUCH });
        let mut gate = other.gate(UP, S).unwrap();
        let grant = gate.ask(256 * 1024, || Ok(0)).unwrap();
        gate.settle(&grant, 0);
        let grant = gate.ask(256 * 1024, || Ok(0)).unwrap();
        gate.settle(&grant, 2048);
        assert_eq!(read(&mut other, S, &mut 100), 0);
        let expected = bulk.next().unwrap() + S / 2 + S * 100 / 4096;
        assert!(other.next().unwrap().abs_diff(expected) < 1000);
    }

    #[test]
    fn what_came_with_the_header_is_paid_for_too() {
        let pace = pace(1_000_000);
        let mut sessions: Vec<_> = (0..12).map(|_| Pacer::new(pace.clone())).collect();
        let waits: Vec<bool> = sessions
            .iter_mut()
            .map(|one| one.begin(UP, S, 10_000))
            .collect();
        assert_eq!(
            waits.iter().filter(|waits| !**waits).count(),
            10,
            "{waits:?}"
        );
        assert_eq!(sessions[11].next(), Some(S + S / 50));
        assert!(sessions[11].has_begun(UP, S + S / 50));
        sessions[11].spend(UP);
        assert_eq!(sessions[11].next(), None);
        assert!(!sessions[0].begin(Direction::ToClient, S, 1 << 30));
    }

    #[test]
    fn what_is_released_is_for_the_others() {
        let pace = pace(1_000_000);
        let (mut one, mut other) = (Pacer::new(pace.clone()), Pacer::new(pace));
        read(&mut one, S, &mut { MUCH });
        let first = one.next().unwrap();
        one.release(UP, S);
        assert_eq!(one.next(), None);
        read(&mut other, S, &mut { MUCH });
        assert!(other.next().unwrap().abs_diff(first) < 1000);
    }

    /// Sessions that use all of `from`, then all at once go by `to`: how long each waits for its first bytes, in milliseconds.
    fn silences(sessions: usize, from: u64, to: u64) -> Vec<u64> {
        let before = pace(from);
        let after = Pace {
            rates: [NonZeroU64::new(to), None],
            ..before.clone()
        };
        let mut all: Vec<_> = (0..sessions).map(|_| Pacer::new(before.clone())).collect();
        for one in &mut all {
            read(one, S, &mut { MUCH });
        }
        for one in &mut all {
            one.move_to(Some(&after), UP, S);
            *one = Pacer::new(after.clone());
            read(one, S, &mut { MUCH });
        }
        let silence = |one: &Pacer| (one.next().unwrap() - S).div_ceil(S / 1000);
        all.iter().map(silence).collect()
    }

    #[test]
    fn after_a_change_of_the_rate_nobody_waits_longer_than_for_the_turns_of_those_before() {
        const KIB: u64 = 1024;
        const MIB: u64 = 1024 * KIB;
        for (sessions, from, to) in [
            (1, 8 * MIB, 20 * KIB),
            (1, 20 * MIB, 100 * KIB),
            (5, 100 * MIB, MIB),
            (20, 50 * MIB, 512 * KIB),
            (1, 50 * MIB, 256 * KIB),
            (200, 20 * KIB, 8 * MIB),
            (200, MIB, 100 * MIB),
            (200, 100 * MIB, MIB),
        ] {
            let turn = grant(NonZeroU64::new(to).unwrap()) * 1000 / to + 1;
            for (index, silence) in silences(sessions, from, to).into_iter().enumerate() {
                let most = turn * (sessions as u64 + 1) + 1;
                assert!(
                    silence <= most,
                    "{index} of {sessions}, {from} to {to}: {silence} ms"
                );
            }
        }
    }

    #[test]
    fn over_a_change_of_the_rate_no_more_goes_than_by_the_faster_and_one_burst() {
        for (from, to) in [
            (1_000_000, 50_000_000),
            (50_000_000, 1_000_000),
            (5_000, 1_000_000),
        ] {
            let before = pace(from);
            let after = Pace {
                rates: [NonZeroU64::new(to), None],
                ..before.clone()
            };
            let mut all: Vec<_> = (0..100).map(|_| Pacer::new(before.clone())).collect();
            let (mut early, mut late) = (0, 0);
            for (step, now) in (S..3 * S).step_by(1_000_000).enumerate() {
                for (index, one) in all.iter_mut().enumerate() {
                    // The news reaches one session after the other, and half of them (another worker's) in the opposite order.
                    let turn = if index % 2 == 0 { index } else { 100 - index };
                    if step == 1000 + turn {
                        one.move_to(Some(&after), UP, now);
                        *one = Pacer::new(after.clone());
                    }
                    let got = read(one, now, &mut { MUCH });
                    match step {
                        0..1000 => early += got,
                        1000..1100 => {}
                        _ => late += got,
                    }
                }
            }
            let grants = 2 * grant(NonZeroU64::new(from.max(to)).unwrap());
            assert!(early <= from * 11 / 10 + grants, "{early} at {from}");
            assert!(late <= to * 9 / 10 + to / 10 + grants, "{late} at {to}");
            assert!(late >= to * 8 / 10, "{late} at {to}");
        }
    }

    #[test]
    fn the_kernel_is_told_once() {
        let mut pacer = Pacer::new(pace(1000));
        assert_eq!(pacer.tells(UP), Some(1250));
        assert_eq!((pacer.tells(UP), pacer.was_told(UP)), (None, true));
        assert_eq!(pacer.tells(Direction::ToClient), None);
    }
}
