//! Where everything is in the memory of the counters.
//!
//! Words of 8 bytes in the machine's order. A header of one page, then one slot after the other. A slot is the head, which says whose it is, a
//! part for each worker, which that worker alone writes, and what of it was booked. Each of these is 40 words, 320 bytes, five cache lines: what
//! two workers write is never on the same line, and what every transfer writes is on the first line of a part.
//!
//! Whoever changes what a word means raises [`VERSION`]. Reasons are counted at their place in [`CloseReason::ALL`] and [`Refusal::ALL`]: new ones
//! go to the end of those lists, so that a file that an older version left is still understood; [`meanings`] tells when that was not so.

use super::reason::{CloseReason, Refusal};
use super::totals::HEADER;

/// Raised with every change that an older or newer version would misread.
pub(super) const VERSION: u64 = 1;

/// "tollgate" as a number, in the machine's order: a file from a machine of the other order has another.
pub(super) const MAGIC: u64 = u64::from_ne_bytes(*b"tollgate");

/// Bytes of a word.
pub(super) const WORD: usize = size_of::<u64>();

/// Words of the header: a page.
pub(super) const HEADER_WORDS: usize = 512;

/// Words of a slot's head, of each worker's part, and of what was booked.
pub(super) const PART: usize = 40;

/// Places in the header.
pub(super) mod header {
    pub(in super::super) const MAGIC: usize = 0;
    pub(in super::super) const VERSION: usize = 1;
    pub(in super::super) const FILE_ID: usize = 2;
    pub(in super::super) const WORKERS: usize = 3;
    pub(in super::super) const SLOTS: usize = 4;
    /// Two words: `/proc/sys/kernel/random/boot_id`.
    pub(in super::super) const BOOT_ID: usize = 5;
    /// Milliseconds since 1970.
    pub(in super::super) const STARTED: usize = 7;
    /// The same moment on the clock that the books go by.
    pub(in super::super) const STARTED_MONOTONIC: usize = 8;
    pub(in super::super) const MEANINGS: usize = 9;
    /// CRC32C over everything before it.
    pub(in super::super) const CRC: usize = 10;
    /// The ledger that all of it was booked into at last, and the same inverted; zeros: not known. Written once that ledger has it for good.
    pub(in super::super) const LEDGER: usize = 11;
    /// See [`LEDGER`].
    pub(in super::super) const LEDGER_CHECK: usize = 12;
    /// Written again and again while the process lives: on a line of its own.
    pub(in super::super) const ALIVE: usize = 16;
}

/// Places in a slot's head.
pub(super) mod head {
    /// The generation of the account that has it; inverted when it was retired; 0: it was never used.
    pub(in super::super) const STATE: usize = 0;
    /// 16 bits each: of listener, endpoint, consumer and upstream.
    pub(in super::super) const LENGTHS: usize = 1;
    /// CRC32C over generation, lengths and names.
    pub(in super::super) const CRC: usize = 2;
    /// Most connections open at once since the last booking. Workers meet here when they open, and only where it rises.
    pub(in super::super) const PEAK: usize = 3;
    pub(in super::super) const NAMES: usize = 8;
    /// Words for each name.
    pub(in super::super) const NAME: usize = 8;
}

/// Places in a worker's part, and, but for those about writing, in what was booked.
pub(super) mod part {
    /// By direction.
    pub(in super::super) const BYTES: usize = 0;
    /// Both directions together, written after them.
    pub(in super::super) const SUM: usize = 2;
    /// Odd while something is being counted; half of it is how often that was.
    pub(in super::super) const SEQ: usize = 3;
    /// What is being counted: the place of its number.
    pub(in super::super) const OP: usize = 4;
    /// What the sum of times will then be.
    pub(in super::super) const OP_VALUE: usize = 5;
    pub(in super::super) const OPENED: usize = 6;
    /// The times at which connections were opened, added up, wrapping.
    pub(in super::super) const STARTED: usize = 7;
    /// Those at which they were closed.
    pub(in super::super) const ENDED: usize = 8;
    /// By reason.
    pub(in super::super) const CLOSED: usize = 9;
    pub(in super::super) const CLOSED_ROOM: usize = 16;
    /// By reason.
    pub(in super::super) const REFUSED: usize = CLOSED + CLOSED_ROOM;
    pub(in super::super) const REFUSED_ROOM: usize = 14;
    /// The time of the last opening or closing.
    pub(in super::super) const AT: usize = REFUSED + REFUSED_ROOM;
}

/// The place of a number of [`Counters::refused`](super::Counters::refused) among those of the region: refused headers are always the last.
pub(super) const fn refused_place(index: usize) -> usize {
    part::REFUSED
        + if index == HEADER {
            part::REFUSED_ROOM - 1
        } else {
            index
        }
}

const _: () = {
    assert!(
        part::AT < PART,
        "a part has room for everything that is counted"
    );
    assert!(
        head::NAMES + 4 * head::NAME == PART,
        "a head has room for four names"
    );
    assert!(
        CloseReason::ALL.len() <= part::CLOSED_ROOM,
        "no room for another reason: raise VERSION"
    );
    assert!(
        Refusal::ALL.len() < part::REFUSED_ROOM,
        "no room for another refusal: raise VERSION"
    );
};

/// Words of a slot.
pub(super) const fn slot_words(workers: usize) -> usize {
    PART * (2 + workers)
}

/// Words of it all.
pub(super) fn region_words(workers: usize, slots: usize) -> Option<usize> {
    slots
        .checked_mul(slot_words(workers))?
        .checked_add(HEADER_WORDS)
}

/// What the numbers mean: how many reasons there are for closing and refusing, and a check sum over their names.
pub(super) fn meanings() -> u64 {
    meanings_of(CloseReason::ALL.len(), Refusal::ALL.len()).unwrap_or_default()
}

/// The ledger that a header says the file was booked into; 0: it does not say.
pub(super) fn ledger_of(word: impl Fn(usize) -> u64) -> u64 {
    let id = word(header::LEDGER);
    if word(header::LEDGER_CHECK) == !id {
        id
    } else {
        0
    }
}

/// Whether numbers that were written with these meanings mean the same to us: we may know more reasons, but not others.
pub(super) fn understands(meanings: u64) -> bool {
    let [closed, refused, ..] = meanings.to_le_bytes();
    meanings_of(closed.into(), refused.into()) == Some(meanings)
}

fn meanings_of(closed: usize, refused: usize) -> Option<u64> {
    let mut names = String::new();
    for reason in CloseReason::ALL.get(..closed)? {
        names.extend([reason.name(), "\n"]);
    }
    for refusal in Refusal::ALL.get(..refused)? {
        names.extend([refusal.name(), "\n"]);
    }
    let [a, b, c, d] = crc32c::crc32c(names.as_bytes()).to_le_bytes();
    let counts = [u8::try_from(closed).ok()?, u8::try_from(refused).ok()?];
    Some(u64::from_le_bytes([counts[0], counts[1], 0, 0, a, b, c, d]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_older_version_counted_is_understood_and_what_a_newer_one_did_is_not() {
        assert!(understands(meanings()));
        let older = meanings_of(CloseReason::ALL.len() - 1, Refusal::ALL.len() - 2).unwrap();
        assert!(understands(older));
        let [closed, ..] = meanings().to_le_bytes();
        assert!(!understands(
            meanings() - u64::from(closed) + u64::from(closed + 1)
        ));
        assert!(!understands(older ^ 1 << 40), "other names");
    }
}
