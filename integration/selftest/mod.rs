//! Tests of the harness itself: what a scenario leans on must be able to say no.

use std::process::ExitCode;

use libtest_mimic::Trial;

mod dns;
mod hosts;
mod killed;
mod nlb;
mod origins;
mod pattern;
mod wan;

/// All of them.
pub(crate) fn tests() -> Vec<Trial> {
    [
        dns::tests(),
        hosts::tests(),
        killed::tests(),
        nlb::tests(),
        origins::tests(),
        pattern::tests(),
        wan::tests(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Whether this process was started by `killed` to be killed.
pub(crate) fn asked_to_be_killed() -> bool {
    std::env::var_os(killed::VICTIM).is_some()
}

/// What such a process does.
pub(crate) fn be_killed() -> ExitCode {
    killed::be_killed()
}
