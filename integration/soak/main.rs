//! `make soak`: what the suite tries for seconds, for minutes. A hundred thousand sessions whose ends half-close, a gigabyte that is copied
//! and spliced in turns, and many seeds of chaos, each through every mode of relaying, with every byte checked at both ends.
//!
//! What is wrong is said with the seed that brings it back, `TOLLGATE_SEED=… make soak`, and whatever it is, the other parts run.
#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot go on panics, and says where"
)]

use std::{
    env,
    io::{self, Write},
    panic,
    process::ExitCode,
    time::{Instant, SystemTime},
};

mod chaos;
#[path = "../harness/mod.rs"]
pub mod harness;
#[path = "../scenarios/peers.rs"]
#[expect(dead_code, reason = "the suite uses all of it")]
mod peers;
mod streams;
mod switching;
#[path = "../scenarios/world.rs"]
#[expect(dead_code, reason = "the suite uses all of it")]
mod world;

const MODES: [&str; 3] = ["copy", "splice", "adaptive"];

/// In each mode: a hundred thousand and some together.
const STREAMS: u64 = 33_600;
/// In the mode that switches; the others, which do not, get a quarter.
const SWITCHING: u64 = 1 << 30;
const LONGEST: u64 = 20_000_000;
/// In each mode.
const CHAOS_SEEDS: u64 = 10;
const CHAOS_SESSIONS: u64 = 400;

fn main() -> ExitCode {
    if let Err(reason) = harness::enter::enter() {
        say(&format!("soak: {reason}"));
        return ExitCode::FAILURE;
    }
    let Some(seed) = seed() else {
        say("soak: TOLLGATE_SEED is a number");
        return ExitCode::FAILURE;
    };
    say(&format!("TOLLGATE_SEED={seed}"));
    // What is wrong is said by whoever finds it, with its place.
    let held = [
        part("streams", || soak_streams(seed)),
        part("switching", || soak_switching(seed)),
        part("chaos", || soak_chaos(seed)),
    ];
    if held.iter().all(|held| *held) {
        say(&format!("soak: nothing damaged (TOLLGATE_SEED={seed})"));
        ExitCode::SUCCESS
    } else {
        say(&format!(
            "soak: FAILED (TOLLGATE_SEED={seed} brings it back)"
        ));
        ExitCode::FAILURE
    }
}

/// A new one each time, unless one is given.
fn seed() -> Option<u64> {
    match env::var("TOLLGATE_SEED") {
        Ok(text) => text.parse().ok(),
        Err(_) => {
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
            // Of a length that a person types.
            now.ok().map(|now| now.as_secs() % 1_000_000)
        }
    }
}

fn say(line: &str) {
    let _ = writeln!(io::stdout(), "{line}");
}

/// Runs a part; the others run whatever becomes of it.
fn part(name: &str, run: impl FnOnce() -> bool) -> bool {
    let held = panic::catch_unwind(panic::AssertUnwindSafe(run)).unwrap_or(false);
    if !held {
        say(&format!("{name}: FAILED"));
    }
    held
}

fn soak_streams(seed: u64) -> bool {
    let mut sum = streams::Outcome::default();
    for (mode, seed) in MODES.into_iter().zip(seed..) {
        let began = Instant::now();
        let outcome = streams::run(mode, seed, STREAMS);
        for damage in &outcome.damaged {
            say(&format!("  {damage}"));
        }
        say(&format!(
            "streams, {mode}, seed {seed}: {} streams, {} bytes ({} copied, {} spliced), {} damaged, {} s",
            outcome.streams,
            outcome.bytes,
            outcome.copied,
            outcome.spliced,
            outcome.damaged.len(),
            began.elapsed().as_secs()
        ));
        if outcome.damaged.is_empty() {
            outcome.assert_mode(mode);
        }
        sum.streams += outcome.streams;
        sum.bytes += outcome.bytes;
        sum.damaged.extend(outcome.damaged);
    }
    say(&format!(
        "streams: {} streams, {} bytes, {} damaged",
        sum.streams,
        sum.bytes,
        sum.damaged.len()
    ));
    sum.damaged.is_empty()
}

fn soak_switching(seed: u64) -> bool {
    for (mode, total) in [
        ("adaptive", SWITCHING),
        ("copy", SWITCHING / 4),
        ("splice", SWITCHING / 4),
    ] {
        let began = Instant::now();
        let outcome = switching::assert_switched(mode, seed, total, LONGEST);
        say(&format!(
            "switching, {mode}, seed {seed}: {} bytes in one session, {} rounds, {} with copied bytes, {} with spliced bytes, {} s",
            outcome.bytes,
            outcome.rounds,
            outcome.copied,
            outcome.spliced,
            began.elapsed().as_secs()
        ));
    }
    true
}

fn soak_chaos(seed: u64) -> bool {
    for mode in MODES {
        let (began, mut whole, mut bytes) = (Instant::now(), 0, 0);
        let seeds = seed..seed + CHAOS_SEEDS;
        for seed in seeds.clone() {
            let outcome = chaos::run(mode, seed, CHAOS_SESSIONS);
            whole += outcome.whole;
            bytes += outcome.bytes;
        }
        let sessions = CHAOS_SEEDS * CHAOS_SESSIONS;
        say(&format!(
            "chaos, {mode}, seeds {seeds:?}: {sessions} sessions, {} of them cut, {bytes} bytes, {} s",
            sessions - whole,
            began.elapsed().as_secs()
        ));
    }
    true
}
