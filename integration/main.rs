//! The integration tests: the relay's own binary between hosts, links, load balancers and origins that this one process makes.
//!
//! `cargo test --test integration [NAME] [-- --list | --nocapture | --test-threads N]`

use std::{
    io::{self, Write},
    process::ExitCode,
    sync::{PoisonError, RwLock},
};

use libtest_mimic::{Arguments, Trial};

pub mod harness;
mod scenarios;
mod selftest;

fn main() -> ExitCode {
    if let Some(part) = harness::unit::other_part()
        .or_else(selftest::other_part)
        .or_else(scenarios::other_part)
    {
        return part();
    }
    let arguments = Arguments::from_args();
    // Before the first thread starts, because a user namespace is entered by a whole process only.
    if !arguments.list
        && let Err(reason) = harness::enter::enter()
    {
        let _ = writeln!(io::stderr(), "integration tests cannot run: {reason}");
        return ExitCode::FAILURE;
    }
    libtest_mimic::run(&arguments, trials()).exit_code()
}

/// One list per file.
fn trials() -> Vec<Trial> {
    [selftest::tests(), scenarios::tests()]
        .into_iter()
        .flatten()
        .collect()
}

/// Held by all tests for reading, and for writing by one that takes something from all others.
static TURN: RwLock<()> = RwLock::new(());

/// A test: a claim that is its name, and a function that panics if it does not hold.
pub(crate) fn claim(name: &str, test: fn()) -> Trial {
    Trial::test(name, move || {
        let _turn = TURN.read().unwrap_or_else(PoisonError::into_inner);
        test();
        Ok(())
    })
}

/// A test that runs while no other does, if `alone` says so.
pub(crate) fn claim_alone(name: &str, alone: fn() -> bool, test: fn()) -> Trial {
    if !alone() {
        return claim(name, test);
    }
    Trial::test(name, move || {
        let _turn = TURN.write().unwrap_or_else(PoisonError::into_inner);
        test();
        Ok(())
    })
}
