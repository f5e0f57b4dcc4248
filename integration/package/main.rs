//! What `make package` made: installed, run and removed on machines of their own, read by the tools that others read it with, and run under an emulator where it is
//! for another architecture.
//!
//! `make package`, or `cargo test --test package [NAME]` where target/package is there.

use std::{
    env,
    io::{self, Write},
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use libtest_mimic::{Arguments, Trial};

#[path = "../harness/mod.rs"]
pub mod harness;
mod image;
mod installed;
mod programs;

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    // Before the first thread starts, because namespaces are entered by a whole process only.
    if !arguments.list
        && let Err(reason) = ready().and_then(|()| harness::enter::enter())
    {
        let _ = writeln!(io::stderr(), "package tests cannot run: {reason}");
        return ExitCode::FAILURE;
    }
    let mut tests = programs::tests();
    tests.extend(image::tests());
    tests.extend(installed::tests());
    libtest_mimic::run(&arguments, tests).exit_code()
}

/// Packages cannot be tested in part: a machine on which they cannot be installed is no machine to release from.
fn ready() -> Result<(), String> {
    harness::machine::possible()?;
    match folder().join("SHA256SUMS").is_file() {
        true => Ok(()),
        false => Err(format!("nothing in {}: make package", folder().display())),
    }
}

/// Where everything is.
pub(crate) fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("target/package")
}

/// The one file there whose name ends so.
#[track_caller]
pub(crate) fn made(ends: &str) -> PathBuf {
    let entries = folder().read_dir().expect("target/package is there");
    let paths = entries.map(|entry| entry.expect("it can be read").path());
    let found: Vec<_> = paths
        .filter(|path| path.to_str().is_some_and(|path| path.ends_with(ends)))
        .collect();
    assert_eq!(found.len(), 1, "{ends}: {found:?}");
    found[0].clone()
}

/// A test: a claim that is its name, and a function that panics if it does not hold.
pub(crate) fn claim(name: &str, test: fn()) -> Trial {
    Trial::test(name, move || {
        test();
        Ok(())
    })
}

/// What a command printed, if it succeeded.
#[track_caller]
pub(crate) fn output_of(command: &mut Command) -> String {
    let path = env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{path}:/usr/sbin:/sbin"));
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {errors}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}
