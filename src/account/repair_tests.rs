//! A kill after every single store, and damage to every single word.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};

use super::*;
use crate::account::layout::{HEADER_WORDS, refused_place, region_words, slot_words};
use crate::account::reason::{Direction, Refusal};
use crate::account::slot::{Ink, Pen, Slot};
use crate::account::totals::{AccountKey, HEADER};
use crate::sys::region::Region;

const WORKERS: usize = 2;
const SLOTS: usize = 3;
const LIFE: Life = Life {
    began: 1_000_000,
    alive: 1_600_000,
};

/// Stores so many times, then never again: the process was killed.
struct Kill {
    left: Cell<usize>,
}

impl Pen for Kill {
    fn put(&self, word: &AtomicU64, value: u64) {
        if let Some(left) = self.left.get().checked_sub(1) {
            self.left.set(left);
            Ink.put(word, value);
        }
    }
}

#[derive(Debug, Clone, Copy)]
enum Op {
    /// Another account gets a slot.
    Begin(usize, u64),
    /// Its account leaves it, booked.
    End(usize),
    Open(usize, usize),
    Close(usize, usize, CloseReason),
    Refuse(usize, usize, usize),
    Moved(usize, usize, Direction, u64),
    /// All of it is booked.
    Book(usize),
}

/// What is true, in the plainest form.
#[derive(Debug, Clone, Default, PartialEq)]
struct Truth {
    slots: [Option<Account>; SLOTS],
}

/// Its generation, its numbers, and by worker when those who are open were opened.
type Account = (u64, Counters, [Vec<u64>; WORKERS]);

impl Truth {
    fn apply(&mut self, op: Op, now: u64) {
        let (Op::Begin(slot, _)
        | Op::End(slot)
        | Op::Open(slot, _)
        | Op::Close(slot, ..)
        | Op::Refuse(slot, ..)
        | Op::Moved(slot, ..)
        | Op::Book(slot)) = op;
        let at = &mut self.slots[slot];
        match op {
            Op::Begin(_, generation) => {
                *at = Some((generation, Counters::default(), Default::default()));
            }
            Op::End(_) => *at = None,
            _ => {}
        }
        let Some((_, counters, open)) = at else {
            return;
        };
        match op {
            Op::Begin(..) | Op::End(_) | Op::Book(_) => {}
            Op::Open(_, worker) => {
                counters.opened += 1;
                open[worker].push(now);
            }
            Op::Close(_, worker, reason) => {
                counters.closed[reason as usize] += 1;
                counters.connection_ms += now - open[worker].remove(0);
            }
            Op::Refuse(_, _, index) => counters.refused[index] += 1,
            Op::Moved(_, _, direction, n) => counters.bytes[direction as usize] += n,
        }
    }

    /// What must be found: who was open is closed when the process was last known to live.
    fn left(&self) -> Vec<(u32, u64, Counters)> {
        let slots = (0..).zip(&self.slots);
        let left = slots.filter_map(|(slot, at)| {
            let (generation, mut counters, open) = at.clone()?;
            for opened in open.iter().flatten() {
                counters.closed[CloseReason::Crashed as usize] += 1;
                counters.connection_ms += LIFE.alive - opened;
            }
            Some((slot, generation, counters))
        });
        left.collect()
    }
}

fn key(generation: u64) -> AccountKey {
    AccountKey {
        listener: "ingest".into(),
        endpoint: format!("vpce-{generation}{}", "x".repeat(58)).into(),
        consumer: "a".into(),
        upstream: "control-plane".into(),
    }
}

fn apply(region: &Region, pen: &impl Pen, op: Op, now: u64) {
    let slot = |n: usize| {
        Slot::at(
            region.words(),
            HEADER_WORDS + n * slot_words(WORKERS),
            WORKERS,
        )
    };
    let generation = |n| (1..10).find(|generation| slot(n).is_of(*generation));
    match op {
        Op::Begin(n, generation) => slot(n).begin(pen, generation, &key(generation)),
        Op::End(n) => slot(n).end(pen, generation(n).unwrap_or(9)),
        Op::Open(n, worker) => slot(n).part(worker).opened(pen, now),
        Op::Close(n, worker, reason) => slot(n).part(worker).closed(pen, reason, now),
        Op::Refuse(n, worker, index) => slot(n).part(worker).refused(pen, index),
        Op::Moved(n, worker, direction, bytes) => slot(n).part(worker).moved(pen, direction, bytes),
        Op::Book(n) => {
            let counters = slot(n).counters(now).unwrap_or_default();
            slot(n).set_booked(pen, &counters);
        }
    }
}

fn bytes(region: &Region) -> Vec<u8> {
    let words = region.words()[HEADER_WORDS..].iter();
    words
        .flat_map(|word| word.load(Ordering::Relaxed).to_ne_bytes())
        .collect()
}

/// Every kind of operation, on two workers, and a slot that is used again.
fn script() -> Vec<Op> {
    use CloseReason::{ClientReset, Completed, Drained};
    use Direction::{ToClient, ToUpstream};
    use Op::{Begin, Book, Close, End, Moved, Open, Refuse};
    vec![
        Begin(0, 1),
        Open(0, 0),
        Moved(0, 0, ToUpstream, 7),
        Open(0, 1),
        Begin(1, 2),
        Refuse(1, 0, HEADER),
        Refuse(1, 1, Refusal::NoRoute as usize),
        Moved(0, 1, ToClient, TRANSFER),
        Close(0, 0, Completed),
        Book(0),
        Open(0, 1),
        Moved(0, 1, ToUpstream, 1),
        Close(0, 1, ClientReset),
        Close(0, 1, CloseReason::Error),
        Book(0),
        Open(1, 1),
        End(0),
        Begin(0, 3),
        Open(0, 0),
        Moved(0, 0, ToClient, 65_536),
        Open(0, 0),
        Close(0, 0, Drained),
        Close(1, 1, Completed),
        Book(1),
        Begin(2, 4),
    ]
}

#[test]
fn killed_after_any_store_nothing_is_lost_but_what_was_not_counted_yet() {
    let script = script();
    let moment = |step: usize| LIFE.began + 1000 * (step as u64 + 1);
    let (mut finished, mut torn) = (0, 0);
    for stores in 0.. {
        let region = Region::anonymous(region_words(WORKERS, SLOTS).unwrap()).unwrap();
        let kill = Kill {
            left: Cell::new(stores),
        };
        let (mut before, mut after) = (Truth::default(), Truth::default());
        let mut killed = None;
        for (step, op) in script.iter().enumerate() {
            apply(&region, &kill, *op, moment(step));
            before = after.clone();
            after.apply(*op, moment(step));
            if kill.left.get() == 0 {
                killed = Some(*op);
                break; // this very store, or the first of the next operation, was not made
            }
        }
        let found = repair(&bytes(&region)[..], WORKERS, SLOTS, LIFE).unwrap();
        assert_eq!(found.damaged, [], "after {stores} stores: {killed:?}");
        assert!(found.torn.len() <= 1, "{:?}", found.torn);
        let left: Vec<_> = found
            .slots
            .iter()
            .map(|slot| (slot.slot, slot.generation, slot.totals.counters))
            .collect();
        if left == after.left() {
            finished += 1;
        } else {
            assert_eq!(left, before.left(), "after {stores} stores: {killed:?}");
        }
        for slot in &found.slots {
            assert_eq!(slot.totals.key, key(slot.generation));
            assert_eq!(slot.totals.counters.active(), 0);
        }
        let crashed = left.iter().map(|(_, _, counters)| crashed(counters));
        assert_eq!(found.crashed, crashed.sum::<u64>());
        torn += found.torn.len();
        if killed.is_none() {
            break;
        }
    }
    // It is repaired, and not only always found as it was before.
    assert!(torn >= 40, "{torn}");
    assert!(finished > torn, "{finished}");
}

/// Three accounts in the midst of life.
fn lived() -> Region {
    let region = Region::anonymous(region_words(WORKERS, SLOTS).unwrap()).unwrap();
    for (step, op) in script().into_iter().enumerate() {
        apply(&region, &Ink, op, LIFE.began + 1000 * (step as u64 + 1));
    }
    region
}

#[test]
fn damage_to_any_word_that_says_anything_is_found_on_its_slot_alone() {
    let region = lived();
    let whole = repair(&bytes(&region)[..], WORKERS, SLOTS, LIFE).unwrap();
    assert_eq!((whole.slots.len(), whole.damaged), (3, vec![]));
    let silent = |place: usize| match place / PART {
        // The peak, and words that nobody uses.
        0 => (head::PEAK..head::NAMES).contains(&place),
        // Of something that is not being counted.
        1 | 2 => matches!(place % PART, part::OP | part::OP_VALUE),
        // What is booked is less than what is written.
        _ => {
            let reasons = part::CLOSED..part::CLOSED + CloseReason::ALL.len();
            let booked = [part::BYTES, part::BYTES + 1, part::OPENED, part::ENDED];
            let place = place % PART;
            let refused = (0..=HEADER)
                .map(refused_place)
                .any(|refused| refused == place);
            !(booked.contains(&place) || reasons.contains(&place) || refused)
        }
    };
    for slot in [0, 1] {
        let first = HEADER_WORDS + slot * slot_words(WORKERS);
        for place in 0..slot_words(WORKERS) {
            let word = &region.words()[first + place];
            let was = word.fetch_xor(1 << 62, Ordering::Relaxed);
            let found = repair(&bytes(&region)[..], WORKERS, SLOTS, LIFE).unwrap();
            word.store(was, Ordering::Relaxed);
            let damaged: Vec<_> = found.damaged.iter().map(|d| d.slot as usize).collect();
            let expected: &[usize] = if silent(place) { &[] } else { &[slot] };
            assert_eq!(damaged, expected, "word {place}: {:?}", found.damaged);
            assert_eq!(found.slots.len(), 3 - expected.len(), "word {place}");
        }
    }
}

#[test]
fn a_worker_in_the_middle_of_two_things_was_in_the_middle_of_neither() {
    let region = lived();
    for slot in [0, 1] {
        let first = HEADER_WORDS + slot * slot_words(WORKERS);
        region.words()[first + PART + part::BYTES].fetch_add(5, Ordering::Relaxed);
    }
    let found = repair(&bytes(&region)[..], WORKERS, SLOTS, LIFE).unwrap();
    let why = Damage::TwoAtOnce(0);
    let damaged = [Damaged { slot: 0, why }, Damaged { slot: 1, why }];
    assert_eq!(found.damaged, damaged);
    assert_eq!((found.slots.len(), found.torn), (1, vec![]));
    let crashed = found
        .slots
        .iter()
        .map(|slot| crashed(&slot.totals.counters));
    assert_eq!(found.crashed, crashed.sum::<u64>());
}
