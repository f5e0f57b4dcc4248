//! Making whole what a killed process left: slot by slot, pure.
//!
//! A worker is killed between two stores. What it was counting is finished from what it said beforehand; a transfer whose bytes are stored and not
//! yet in their sum is taken as it is. Each worker can have been in the middle of one thing: what looks like more is damage, and a damaged slot is
//! in no account.

use std::fmt;
use std::io::{self, Read};

use super::layout::{PART, head, part};
use super::leftover::read_words;
use super::reason::CloseReason;
use super::slot::{add_part, booked_of, key_of};
use super::totals::{AccountTotals, Counters, SlotTotals};

/// More than one call can move: it reads into the worker's buffer, or what fits into a pipe, and both are a MiB at most.
const TRANSFER: u64 = 16 * 1024 * 1024;

/// The process says that it lives twice a second, and takes a time just before it stores it. However busy the machine is: it is not later than this.
const STALLED: u64 = 10 * 60 * 1000;

/// When a process lived, on its clock.
#[derive(Debug, Clone, Copy)]
pub(super) struct Life {
    pub(super) began: u64,
    /// The last that is known.
    pub(super) alive: u64,
}

/// All slots of a file.
#[derive(Debug, Default)]
pub(super) struct Repaired {
    pub(super) slots: Vec<SlotTotals>,
    pub(super) crashed: u64,
    pub(super) torn: Vec<Torn>,
    pub(super) damaged: Vec<Damaged>,
}

/// What a worker was in the middle of when its process was killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Torn {
    /// On which slot.
    pub slot: u32,
    /// Which worker.
    pub worker: usize,
    /// Bytes of the transfer that it was counting; `None`: a connection was being opened, closed or refused.
    pub transfer: Option<u64>,
}

/// A slot that is not what we wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Damaged {
    /// Which.
    pub slot: u32,
    /// What is wrong with it.
    pub why: Damage,
}

impl fmt::Display for Damaged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "slot {}: {}", self.slot, self.why)
    }
}

/// What is wrong with a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    /// Whose it is.
    #[error("the check sum over whose it is is wrong")]
    Key,
    /// It was never anybody's.
    #[error("there are numbers in it, and it was never used")]
    Nobodys,
    /// How often something was counted.
    #[error("what worker {0} counted does not add up to how often it did")]
    Count(usize),
    /// Bytes.
    #[error("the bytes of worker {0} do not add up to their sum")]
    Bytes(usize),
    /// Connections and their times.
    #[error("worker {0} closed more than it opened, or they were open for longer than it lived")]
    Connections(usize),
    /// More than one thing at a time.
    #[error("worker {0} was in the middle of more than one thing")]
    TwoAtOnce(usize),
    /// What the ledger has.
    #[error("more of it was booked than counted")]
    Booked,
}

/// Reads and repairs all slots.
pub(super) fn repair(
    mut reader: impl Read,
    workers: usize,
    slots: usize,
    life: Life,
) -> io::Result<Repaired> {
    let mut repaired = Repaired::default();
    let mut parts = vec![[0; PART]; workers];
    for slot in 0..u32::try_from(slots).unwrap_or(u32::MAX) {
        let head = read_words(&mut reader)?;
        for part in &mut parts {
            *part = read_words(&mut reader)?;
        }
        let booked = read_words(&mut reader)?;
        match one(slot, &head, &mut parts, &booked, life, &mut repaired.torn) {
            Ok(Some((totals, crashed))) => {
                repaired.slots.push(totals);
                repaired.crashed += crashed;
            }
            Ok(None) => {}
            Err(why) => repaired.damaged.push(Damaged { slot, why }),
        }
    }
    repaired.refuse_impossible(workers);
    Ok(repaired)
}

impl Repaired {
    /// A worker that is torn on two slots is so on none.
    fn refuse_impossible(&mut self, workers: usize) {
        for worker in 0..workers {
            let torn: Vec<u32> = self
                .torn
                .iter()
                .filter(|torn| torn.worker == worker)
                .map(|torn| torn.slot)
                .collect();
            if torn.len() > 1 {
                let is_torn = |slot: u32| torn.contains(&slot);
                let crashed = |slot: &SlotTotals| crashed(&slot.totals.counters);
                let taken = self.slots.iter().filter(|slot| is_torn(slot.slot));
                self.crashed -= taken.map(crashed).sum::<u64>();
                self.slots.retain(|slot| !is_torn(slot.slot));
                self.torn.retain(|torn| !is_torn(torn.slot));
                let why = Damage::TwoAtOnce(worker);
                let damaged = torn.iter().map(|slot| Damaged { slot: *slot, why });
                self.damaged.extend(damaged);
            }
        }
    }
}

fn crashed(counters: &Counters) -> u64 {
    counters.closed[CloseReason::Crashed as usize]
}

/// Repairs one slot; says how many of its connections were open. `None`: it is nobody's.
fn one(
    slot: u32,
    head: &[u64; PART],
    parts: &mut [[u64; PART]],
    booked: &[u64; PART],
    life: Life,
    torn: &mut Vec<Torn>,
) -> Result<Option<(SlotTotals, u64)>, Damage> {
    let generation = head[head::STATE];
    if generation == 0 {
        // Whose it was to be may be written already.
        let untouched = parts.iter().flatten().chain(booked).all(|word| *word == 0);
        return untouched.then_some(None).ok_or(Damage::Nobodys);
    }
    if !generation <= u64::from(u32::MAX) {
        return Ok(None); // retired: all of it is booked
    }
    let key = key_of(head).ok_or(Damage::Key)?;
    let torn_before = torn.len();
    let mut counters = Counters::default();
    for (worker, words) in parts.iter_mut().enumerate() {
        match repair_part(worker, words, life) {
            Ok(None) => {}
            Ok(Some(transfer)) => torn.push(Torn {
                slot,
                worker,
                transfer,
            }),
            Err(why) => {
                torn.truncate(torn_before);
                return Err(why);
            }
        }
        add_part(&mut counters, words, life.alive);
    }
    let booked = booked_of(|place| booked[place]);
    let ahead = booked.connection_ms.saturating_sub(counters.connection_ms);
    if ahead <= counters.opened.saturating_mul(STALLED) {
        counters = counters.not_before(&booked);
    }
    if counters.since(&booked).plus(&booked) != counters {
        torn.truncate(torn_before);
        return Err(Damage::Booked);
    }
    let crashed = counters.active();
    counters.closed[CloseReason::Crashed as usize] += crashed;
    let totals = AccountTotals {
        key,
        counters,
        peak: head[head::PEAK].min(counters.opened),
    };
    let totals = SlotTotals {
        slot,
        generation,
        totals,
        booked,
    };
    Ok(Some((totals, crashed)))
}

/// Finishes what a worker was counting. `Some`: it was counting something, with the bytes if it was a transfer.
fn repair_part(
    worker: usize,
    words: &mut [u64; PART],
    life: Life,
) -> Result<Option<Option<u64>>, Damage> {
    let mut found = None;
    if words[part::SEQ] & 1 == 1 {
        finish(words).ok_or(Damage::Count(worker))?;
        found = Some(None);
    }
    if counted(words) != words[part::SEQ] / 2 {
        return Err(Damage::Count(worker));
    }
    let moved = words[part::BYTES].wrapping_add(words[part::BYTES + 1]);
    match moved.wrapping_sub(words[part::SUM]) {
        0 => {}
        transfer @ 1..=TRANSFER if found.is_none() => {
            words[part::SUM] = moved;
            found = Some(Some(transfer));
        }
        _ => return Err(Damage::Bytes(worker)),
    }
    let closed = words[part::CLOSED..part::REFUSED].iter();
    let closed = closed.fold(0_u64, |sum, n| sum.saturating_add(*n));
    let end = life.alive.max(words[part::AT]);
    let mut times = Counters::default();
    add_part(&mut times, words, life.alive);
    let longest = u128::from(words[part::OPENED]) * u128::from(end - life.began.min(end));
    if closed > words[part::OPENED]
        || end - life.alive > STALLED
        || u128::from(times.connection_ms) > longest
    {
        return Err(Damage::Connections(worker));
    }
    Ok(found)
}

/// Does what was announced and may have been half done.
fn finish(words: &mut [u64; PART]) -> Option<()> {
    let number = usize::try_from(words[part::OP]).ok()?;
    let time = match number {
        part::OPENED => Some(part::STARTED),
        part::CLOSED..part::REFUSED => Some(part::ENDED),
        part::REFUSED..part::AT => None,
        _ => return None,
    };
    // As often as before: the number is not stored yet.
    if counted(words) == words[part::SEQ] / 2 {
        words[number] = words[number].checked_add(1)?;
    }
    if let Some(time) = time {
        words[time] = words[part::OP_VALUE];
    }
    words[part::SEQ] = words[part::SEQ].checked_add(1)?;
    Some(())
}

/// How often anything but bytes was counted, by what was counted.
fn counted(words: &[u64; PART]) -> u64 {
    let numbers = words[part::CLOSED..part::AT].iter();
    numbers.fold(words[part::OPENED], |sum, n| sum.wrapping_add(*n))
}

#[cfg(test)]
#[path = "repair_tests.rs"]
mod tests;
