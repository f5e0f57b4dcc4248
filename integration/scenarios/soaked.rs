//! S12, S25 and streams of random size, for as long as a suite may take; `make soak` takes longer.

use libtest_mimic::Trial;

use super::{chaos, streams, switching};
use crate::claim;

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        claim("half_closing_streams_arrive_whole_when_copied", || {
            half_closing_streams("copy");
        }),
        claim("half_closing_streams_arrive_whole_when_spliced", || {
            half_closing_streams("splice");
        }),
        claim("half_closing_streams_arrive_whole_when_adaptive", || {
            half_closing_streams("adaptive");
        }),
        claim("session_is_spliced_and_copied_in_turns", || {
            switching::assert_switched("adaptive", seed(), SWITCHING, LONGEST);
        }),
        claim("conversation_and_bulk_in_turns_are_copied", || {
            switching::assert_switched("copy", seed(), SWITCHING / 4, LONGEST);
        }),
        claim("conversation_and_bulk_in_turns_are_spliced", || {
            switching::assert_switched("splice", seed(), SWITCHING / 4, LONGEST);
        }),
        claim(
            "chaos_leaves_true_books_and_nothing_else_when_copied",
            || {
                chaos::run("copy", seed(), CHAOS);
            },
        ),
        claim(
            "chaos_leaves_true_books_and_nothing_else_when_spliced",
            || {
                chaos::run("splice", seed(), CHAOS);
            },
        ),
        claim(
            "chaos_leaves_true_books_and_nothing_else_when_adaptive",
            || {
                chaos::run("adaptive", seed(), CHAOS);
            },
        ),
    ]
}

const STREAMS: u64 = 1200;
/// A fifth of a gigabyte, in some twenty turns: a whole one takes 20 s, and is part of `make soak`.
const SWITCHING: u64 = 200 << 20;
const LONGEST: u64 = 16_000_000;
const CHAOS: u64 = 400;

/// The same each time, unless `TOLLGATE_SEED` says otherwise: new ones are for `make soak`.
fn seed() -> u64 {
    let given = std::env::var("TOLLGATE_SEED").ok();
    given.map_or(1, |text| text.parse().expect("TOLLGATE_SEED is a number"))
}

fn half_closing_streams(mode: &str) {
    let seed = seed();
    let outcome = streams::run(mode, seed, STREAMS);
    assert!(
        outcome.damaged.is_empty(),
        "TOLLGATE_SEED={seed}, {mode}: {:#?}",
        outcome.damaged
    );
    assert_eq!(outcome.streams, STREAMS);
    outcome.assert_mode(mode);
}
