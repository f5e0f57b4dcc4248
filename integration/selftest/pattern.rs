//! The pattern finds what a relay could do wrong to a stream.

use libtest_mimic::Trial;

use crate::{
    claim,
    harness::pattern::{Checker, Mismatch, Pattern},
};

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        claim(
            "pattern_detects_one_flipped_byte",
            pattern_detects_one_flipped_byte,
        ),
        claim(
            "pattern_detects_shifts_and_strangers",
            pattern_detects_shifts_and_strangers,
        ),
    ]
}

fn pattern_detects_one_flipped_byte() {
    let pattern = Pattern::new(7);
    // Across the head, across the table's end.
    for (start, n) in [(0, 100), (1_048_500, 5_000), (1 << 40, 300)] {
        let good = pattern.bytes(start, n);
        assert_eq!(pattern.check(start, &good), Ok(()));
        for at in [0, n / 2, n - 1] {
            let mut bad = good.clone();
            bad[at] ^= 0x40;
            let expected = Mismatch {
                seed: 7,
                offset: start + at as u64,
                expected: good[at],
                found: bad[at],
            };
            assert_eq!(pattern.check(start, &bad), Err(expected));
        }
    }
}

fn pattern_detects_shifts_and_strangers() {
    let pattern = Pattern::new(3);
    let bytes = pattern.bytes(0, 300_000);
    for shift in [1, 8, 1448, 4096, 65_536, 262_144] {
        assert!(pattern.check(shift, &bytes[100..400]).is_err(), "{shift}");
    }
    assert!(Pattern::new(4).check(1000, &bytes[1000..1100]).is_err());

    let mut checker = Checker::learning();
    for piece in bytes.chunks(5) {
        checker.feed(piece).expect("these are its bytes");
    }
    assert_eq!((checker.seed(), checker.received()), (Some(3), 300_000));
    assert!(checker.feed(&bytes[..64]).is_err(), "a piece come twice");
}
