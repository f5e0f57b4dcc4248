//! How far a slot was booked, as the ledger writes it down: the slot's numbers in few bytes.

use crate::account::{CloseReason, Counters, Direction, HEADER, REFUSED, Refusal};

/// Reasons that a mark may have of each kind, so that a damaged one asks for no absurd work.
const MOST_REASONS: u64 = 255;

/// Numbers in base 128, the low digits first; then each list of reasons behind its length. New reasons are added at the end of their lists, so
/// that a mark of an older version is read by a newer one.
#[must_use]
pub(super) fn encode(counters: &Counters) -> Vec<u8> {
    let mut out = Vec::with_capacity(48);
    let refused = &counters.refused[..Refusal::ALL.len()];
    for number in [
        counters.opened,
        counters.bytes[Direction::ToUpstream as usize],
        counters.bytes[Direction::ToClient as usize],
        counters.connection_ms,
        counters.refused[HEADER],
    ] {
        put(&mut out, number);
    }
    for list in [&counters.closed[..], refused] {
        put(&mut out, list.len() as u64);
        list.iter().for_each(|number| put(&mut out, *number));
    }
    out
}

/// What [`encode`] wrote; `None` where it is nothing of ours.
#[must_use]
pub(super) fn decode(mut from: &[u8]) -> Option<Counters> {
    let mut counters = Counters {
        opened: take(&mut from)?,
        bytes: [take(&mut from)?, take(&mut from)?],
        connection_ms: take(&mut from)?,
        ..Counters::default()
    };
    counters.refused[HEADER] = take(&mut from)?;
    let (closed, refused) = (&mut counters.closed[..], &mut counters.refused);
    for list in [closed, &mut refused[..REFUSED - 1]] {
        let length = take(&mut from).filter(|length| *length <= MOST_REASONS)?;
        for place in 0..usize::try_from(length).ok()? {
            let number = take(&mut from)?;
            match list.get_mut(place) {
                Some(known) => *known = number,
                // A newer version's reason. What never happened is no loss.
                None if number == 0 => {}
                None => return None,
            }
        }
    }
    from.is_empty().then_some(counters)
}

fn put(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push((number & 0x7f) as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

fn take(from: &mut &[u8]) -> Option<u64> {
    let mut number = 0u64;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = from.split_first()?;
        *from = rest;
        let digit = u64::from(byte & 0x7f);
        if digit << shift >> shift != digit {
            return None;
        }
        number |= digit << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

// A list that is longer than that could not be read back.
const _: () = assert!(CloseReason::ALL.len() as u64 <= MOST_REASONS);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_written_is_read(
            opened: u64,
            bytes: [u64; 2],
            connection_ms: u64,
            closed: [u64; CloseReason::ALL.len()],
            refused: [u64; REFUSED],
        ) {
            let counters = Counters { opened, closed, refused, bytes, connection_ms };
            prop_assert_eq!(decode(&encode(&counters)), Some(counters));
        }

        #[test]
        fn whatever_is_there_is_read_or_refused_in_peace(junk: Vec<u8>) {
            let _ = decode(&junk);
        }
    }

    #[test]
    fn a_mark_of_an_older_version_with_fewer_reasons_is_read() {
        let old = [7, 1, 2, 3, 4, 1, 5, 0]; // one reason to close, none to refuse
        let counters = decode(&old).unwrap();
        assert_eq!(
            (counters.opened, counters.bytes, counters.closed()),
            (7, [1, 2], 5)
        );
        assert_eq!(counters.refused[HEADER], 4);
    }

    #[test]
    fn a_mark_that_was_cut_is_none() {
        let whole = encode(&Counters {
            opened: 300,
            ..Counters::default()
        });
        for cut in 0..whole.len() {
            assert_eq!(decode(&whole[..cut]), None, "{cut}");
        }
    }
}
