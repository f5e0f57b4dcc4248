//! Tests of the harness itself: what a scenario leans on must be able to say no.

use std::process::ExitCode;

use libtest_mimic::Trial;

mod books;
mod dns;
mod hosts;
mod killed;
mod nlb;
mod origins;
mod pattern;
mod relay;
mod steady;
mod unit;
mod wan;

/// All of them.
pub(crate) fn tests() -> Vec<Trial> {
    [
        books::tests(),
        dns::tests(),
        hosts::tests(),
        killed::tests(),
        nlb::tests(),
        origins::tests(),
        pattern::tests(),
        relay::tests(),
        steady::tests(),
        unit::tests(),
        wan::tests(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// What this process was started for by one of these tests, if it was: to be killed, or to stand in for a relay.
pub(crate) fn other_part() -> Option<fn() -> ExitCode> {
    let asked = |variable| std::env::var_os(variable).is_some();
    if asked(killed::VICTIM) {
        return Some(killed::be_killed);
    }
    asked(relay::STAND_IN).then_some(relay::stand_in)
}
