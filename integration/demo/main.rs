//! `make demo`: the relay at its job, on this machine. An outpost VPC with a load balancer and the relay in one Region, the control plane in
//! another, 70 ms away, and two consumers in VPCs and accounts of their own whose agents push this machine's metrics and logs.
//!
//! The program starts itself twice: [`outside`], where the user's terminal and Ctrl-C are, and inside namespaces of its own, where everything
//! else happens and with which everything goes.

use std::{
    env,
    io::{self, Write},
    process::ExitCode,
    time::Duration,
};

mod agents;
mod books;
mod control_plane;
mod counted;
#[path = "../harness/mod.rs"]
pub mod harness;
mod inside;
mod live;
mod outside;
mod pokes;
mod world;

/// How long agents push unless told otherwise.
const FOR: Duration = Duration::from_secs(15);

/// What was asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Options {
    /// Stay up until Ctrl-C.
    keep: bool,
    /// How long agents push; with `keep`, until they are told to stop.
    seconds: Duration,
}

impl Options {
    fn read() -> Result<Self, String> {
        let mut options = Self {
            keep: false,
            seconds: FOR,
        };
        let mut words = env::args().skip(1);
        while let Some(word) = words.next() {
            match word.as_str() {
                "--keep" => options.keep = true,
                "--seconds" => {
                    let number = words.next().and_then(|number| number.parse().ok());
                    options.seconds = Duration::from_secs(number.ok_or("--seconds NUMBER")?);
                }
                other => return Err(format!("{other}? there are --keep and --seconds NUMBER")),
            }
        }
        Ok(options)
    }
}

fn main() -> ExitCode {
    let result = Options::read().and_then(|options| {
        if outside::is_inside() {
            inside::run(options)
        } else {
            outside::run(options)
        }
    });
    result.unwrap_or_else(|error| {
        let _ = writeln!(io::stderr(), "demo: {error}");
        ExitCode::FAILURE
    })
}

/// One line of the story. A reader who has gone is no reason to stop before everything is put away.
pub(crate) fn say(line: &str) {
    let _ = writeln!(io::stdout(), "{line}");
}

/// `1234567` as `1,234,567`.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
