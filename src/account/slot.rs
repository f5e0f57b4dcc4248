//! One account's place in the memory of the counters: how it is written, and how it is read while it is being written.
//!
//! A process may be killed between any two stores. What was stored before is there, what would have come after is not, so the order of the
//! stores is what makes a slot whole again: every one is a release, and none moves past another. What is counted in two numbers at once
//! (a connection and its time) is announced first, with what the numbers will be; [`leftover`](super::leftover) finishes it from that.

use std::sync::atomic::{AtomicU64, Ordering, fence};

use super::layout::{PART, head, part, refused_place, slot_words};
use super::reason::{CloseReason, Direction};
use super::totals::{AccountKey, Counters};

/// How often a reader tries to see a part between two changes. Each takes nanoseconds; only who is interrupted in the middle takes longer.
const TRIES: usize = 64;

/// Who stores. The tests' pen breaks.
pub(super) trait Pen {
    fn put(&self, word: &AtomicU64, value: u64);
}

/// The pen that does not break.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ink;

impl Pen for Ink {
    #[inline(always)]
    fn put(&self, word: &AtomicU64, value: u64) {
        word.store(value, Ordering::Release);
    }
}

#[inline(always)]
fn get(word: &AtomicU64) -> u64 {
    word.load(Ordering::Relaxed)
}

/// A slot in the memory of the counters.
#[derive(Debug, Clone, Copy)]
pub(super) struct Slot<'a> {
    words: &'a [AtomicU64],
}

impl<'a> Slot<'a> {
    /// The slot that begins at a word of the region.
    pub(super) fn at(region: &'a [AtomicU64], first: usize, workers: usize) -> Self {
        let words = &region[first..first + slot_words(workers)];
        Self { words }
    }

    fn head(self) -> &'a [AtomicU64] {
        &self.words[..PART]
    }

    /// One worker's part.
    #[inline]
    pub(super) fn part(self, worker: usize) -> Part<'a> {
        Part::at(self.words, PART * (1 + worker))
    }

    pub(super) fn parts(self) -> impl Iterator<Item = Part<'a>> {
        (0..self.words.len() / PART - 2).map(move |worker| self.part(worker))
    }

    fn booked_words(self) -> &'a [AtomicU64] {
        &self.words[self.words.len() - PART..]
    }

    /// Makes the slot that of another account. Nobody may be writing to it.
    pub(super) fn begin(self, pen: &impl Pen, generation: u64, key: &AccountKey) {
        let fresh = head_of(generation, key);
        for (place, word) in self.words.iter().enumerate() {
            if place != head::STATE {
                pen.put(word, fresh.get(place).copied().unwrap_or_default());
            }
        }
        pen.put(&self.words[head::STATE], generation);
    }

    /// From here on it is nobody's.
    pub(super) fn end(self, pen: &impl Pen, generation: u64) {
        pen.put(&self.words[head::STATE], !generation);
    }

    /// Whether it still is that of `generation`, after everything read before.
    pub(super) fn is_of(self, generation: u64) -> bool {
        fence(Ordering::Acquire);
        get(&self.words[head::STATE]) == generation
    }

    pub(super) fn raise_peak(self, active: u64) {
        let peak = &self.head()[head::PEAK];
        if active > get(peak) {
            peak.fetch_max(active, Ordering::Relaxed);
        }
    }

    pub(super) fn peak(self) -> u64 {
        get(&self.head()[head::PEAK])
    }

    /// The peak so far; from now on it is counted from what is open.
    pub(super) fn take_peak(self, active: impl Fn() -> u64) -> u64 {
        let peak = self.head()[head::PEAK].swap(active(), Ordering::Relaxed);
        self.raise_peak(active()); // who opened in between
        peak
    }

    /// Everything counted, at `now`; `None` where some worker is in the middle of something and does not get on.
    pub(super) fn counters(self, now: u64) -> Option<Counters> {
        let mut counters = Counters::default();
        for part in self.parts() {
            add_part(&mut counters, &part.read()?, now);
        }
        Some(counters)
    }

    /// The same without waiting for anybody: what is being counted just now may be in it by half.
    pub(super) fn counters_at_once(self, now: u64) -> Counters {
        let mut counters = Counters::default();
        for part in self.parts() {
            add_part(&mut counters, &part.copy(), now);
        }
        counters
    }

    /// How often anything but bytes was counted.
    pub(super) fn changes(self) -> u64 {
        let changes = self.parts().map(|part| part.seq());
        changes.fold(0, u64::wrapping_add)
    }

    pub(super) fn booked(self) -> Counters {
        let words = self.booked_words();
        booked_of(|place| get(&words[place]))
    }

    /// Written down for the day on which the ledger is lost.
    pub(super) fn set_booked(self, pen: &impl Pen, counters: &Counters) {
        let mut words = [0; PART];
        words[part::BYTES..part::BYTES + 2].copy_from_slice(&counters.bytes);
        words[part::OPENED] = counters.opened;
        words[part::ENDED] = counters.connection_ms;
        words[part::CLOSED..part::CLOSED + counters.closed.len()].copy_from_slice(&counters.closed);
        for (index, refused) in counters.refused.iter().enumerate() {
            words[refused_place(index)] = *refused;
        }
        for (word, value) in self.booked_words().iter().zip(words) {
            if get(word) != value {
                pen.put(word, value);
            }
        }
    }
}

/// What `booked` says, word by word.
pub(super) fn booked_of(word: impl Fn(usize) -> u64) -> Counters {
    Counters {
        opened: word(part::OPENED),
        closed: std::array::from_fn(|reason| word(part::CLOSED + reason)),
        refused: std::array::from_fn(|index| word(refused_place(index))),
        bytes: std::array::from_fn(|direction| word(part::BYTES + direction)),
        connection_ms: word(part::ENDED),
    }
}

/// Adds what one worker counted. Times are taken at `now`, or at the worker's last where that is later: it cannot have been open for less than no
/// time.
pub(super) fn add_part(counters: &mut Counters, words: &[u64; PART], now: u64) {
    let closed = &words[part::CLOSED..part::REFUSED];
    let closed_all = closed.iter().copied().fold(0, u64::wrapping_add);
    // Closed is read before opened: of a part that is read by half, at worst too many are open.
    let active = words[part::OPENED].saturating_sub(closed_all);
    let open_now = active.wrapping_mul(now.max(words[part::AT]));
    let times = words[part::ENDED].wrapping_sub(words[part::STARTED]);
    let of_part = Counters {
        opened: words[part::OPENED],
        closed: std::array::from_fn(|reason| words[part::CLOSED + reason]),
        refused: std::array::from_fn(|index| words[refused_place(index)]),
        bytes: std::array::from_fn(|direction| words[part::BYTES + direction]),
        connection_ms: times.wrapping_add(open_now),
    };
    *counters = counters.plus(&of_part);
}

impl Counters {
    /// Not less time than was booked. A worker that closes a connection takes the time and then stores it; who reads in between counts the
    /// connection as open for a moment longer than it was.
    pub(super) fn not_before(self, booked: &Self) -> Self {
        Self {
            connection_ms: self.connection_ms.max(booked.connection_ms),
            ..self
        }
    }
}

/// A worker's part of a slot.
#[derive(Debug, Clone, Copy)]
pub(super) struct Part<'a>(&'a [AtomicU64; PART]);

impl<'a> Part<'a> {
    /// The part that begins at a word of `words`.
    #[inline(always)]
    pub(super) fn at(words: &'a [AtomicU64], first: usize) -> Self {
        let Some(words) = words.get(first..).and_then(<[AtomicU64]>::first_chunk) else {
            unreachable!("slots are within the region")
        };
        Self(words)
    }

    /// Bytes that the destination socket took: what every transfer does. Two stores on one line.
    #[inline(always)]
    pub(super) fn moved(self, pen: &impl Pen, direction: Direction, n: u64) {
        let bytes = &self.0[part::BYTES + direction as usize];
        let sum = &self.0[part::SUM];
        pen.put(bytes, get(bytes).wrapping_add(n));
        pen.put(sum, get(sum).wrapping_add(n));
    }

    #[inline]
    pub(super) fn opened(self, pen: &impl Pen, now: u64) {
        self.count(pen, part::OPENED, Some((part::STARTED, now)));
    }

    #[inline]
    pub(super) fn closed(self, pen: &impl Pen, reason: CloseReason, now: u64) {
        self.count(
            pen,
            part::CLOSED + reason as usize,
            Some((part::ENDED, now)),
        );
    }

    #[inline]
    pub(super) fn refused(self, pen: &impl Pen, index: usize) {
        self.count(pen, refused_place(index), None);
    }

    /// Adds one to a number, and `now` to a sum of times. Says beforehand what it is about to do.
    #[inline(always)]
    fn count(self, pen: &impl Pen, number: usize, time: Option<(usize, u64)>) {
        let (number_word, seq_word) = (&self.0[number], &self.0[part::SEQ]);
        let seq = get(seq_word);
        pen.put(&self.0[part::OP], number as u64);
        if let Some((sum, now)) = time {
            pen.put(&self.0[part::OP_VALUE], get(&self.0[sum]).wrapping_add(now));
            pen.put(&self.0[part::AT], now);
        }
        pen.put(seq_word, seq.wrapping_add(1));
        pen.put(number_word, get(number_word).wrapping_add(1));
        if let Some((sum, _)) = time {
            pen.put(&self.0[sum], get(&self.0[part::OP_VALUE]));
        }
        pen.put(seq_word, seq.wrapping_add(2));
    }

    fn seq(self) -> u64 {
        self.0[part::SEQ].load(Ordering::Acquire)
    }

    /// All of it between two changes. Bytes are not changes: they are as they are.
    fn read(self) -> Option<[u64; PART]> {
        for _ in 0..TRIES {
            let before = self.seq();
            if before & 1 == 0 {
                let words = self.copy();
                fence(Ordering::Acquire);
                if get(&self.0[part::SEQ]) == before {
                    return Some(words);
                }
            }
            std::hint::spin_loop();
        }
        None
    }

    /// Word by word from the end, so that what closed is read before what opened.
    fn copy(self) -> [u64; PART] {
        let mut words = [0; PART];
        for (word, value) in self.0.iter().zip(&mut words).rev() {
            *value = word.load(Ordering::Acquire);
        }
        words
    }
}

/// The head of a slot whose account is `key`.
fn head_of(generation: u64, key: &AccountKey) -> [u64; PART] {
    let mut words = [0; PART];
    words[head::STATE] = generation;
    let names = [&key.listener, &key.endpoint, &key.consumer, &key.upstream];
    let mut lengths = [0; 4];
    for (i, name) in names.into_iter().enumerate() {
        let mut bytes = [0; head::NAME * size_of::<u64>()];
        // Names in the configuration and endpoint ids are no longer (config, proxy_protocol).
        let len = name.len().min(bytes.len());
        bytes[..len].copy_from_slice(&name.as_bytes()[..len]);
        lengths[i] = len as u16;
        let (chunks, _) = bytes.as_chunks();
        for (j, chunk) in chunks.iter().enumerate() {
            words[head::NAMES + i * head::NAME + j] = u64::from_ne_bytes(*chunk);
        }
    }
    words[head::LENGTHS] = lengths
        .iter()
        .rev()
        .fold(0, |all, len| all << 16 | u64::from(*len));
    words[head::CRC] = head_crc(&words);
    words
}

/// CRC32C over what does not change in a slot's life.
fn head_crc(words: &[u64; PART]) -> u64 {
    let crc = |crc, word: &u64| crc32c::crc32c_append(crc, &word.to_ne_bytes());
    let fixed = [words[head::STATE], words[head::LENGTHS]];
    let fixed = fixed.iter().chain(&words[head::NAMES..]);
    u64::from(fixed.fold(0, crc))
}

/// Whose a head says the slot is; `None` where its check sum is wrong.
pub(super) fn key_of(words: &[u64; PART]) -> Option<AccountKey> {
    if head_crc(words) != words[head::CRC] {
        return None;
    }
    let name = |i: usize| {
        let len = usize::try_from(words[head::LENGTHS] >> (16 * i) & 0xffff).ok()?;
        let first = head::NAMES + i * head::NAME;
        let bytes: Vec<u8> = words[first..first + head::NAME]
            .iter()
            .flat_map(|word| word.to_ne_bytes())
            .collect();
        std::str::from_utf8(bytes.get(..len)?).ok().map(Into::into)
    };
    Some(AccountKey {
        listener: name(0)?,
        endpoint: name(1)?,
        consumer: name(2)?,
        upstream: name(3)?,
    })
}
