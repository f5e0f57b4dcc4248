//! The relay among programs that others wrote, as Debian packages them: HAProxy sends the headers, curl and openssl are the clients, nginx is
//! the control plane, promtool and Prometheus judge the metrics, the rules and the dashboard, sqlite3 and jq read the books, systemd runs
//! the unit.
//!
//! `make interop`, or `cargo test --test interop [NAME]` where the programs are there.

use std::{
    io::{self, Write},
    process::ExitCode,
};

use libtest_mimic::{Arguments, Trial};

mod books;
mod claims;
mod deploy;
#[path = "../harness/mod.rs"]
pub mod harness;
mod programs;
mod unit;
mod world;

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    // Before the first thread starts, because a user namespace is entered by a whole process only.
    if !arguments.list
        && let Err(reason) = programs::all_there().and_then(|()| harness::enter::enter())
    {
        let _ = writeln!(io::stderr(), "interop tests cannot run: {reason}");
        return ExitCode::FAILURE;
    }
    let mut tests = claims::tests();
    tests.extend(deploy::tests());
    tests.extend(books::tests());
    tests.extend(unit::tests());
    libtest_mimic::run(&arguments, tests).exit_code()
}

/// A test: a claim that is its name, and a function that panics if it does not hold.
pub(crate) fn claim(name: &str, test: fn()) -> Trial {
    Trial::test(name, move || {
        test();
        Ok(())
    })
}
