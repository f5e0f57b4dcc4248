//! The relay beside nginx's stream proxy, HAProxy and no relay at all, in one run on one machine.
//!
//! `make bench`, or `cargo bench --bench side_by_side`. Three hosts (network namespaces, no root needed) in a row: client, relay, origin. The
//! relay under test has a core of its own, client and origin share another one. Every round starts each relay anew and takes every
//! workload through each of them in a shuffled order, so that whatever else the machine does meets all alike. The figures to look at are
//! ratios of processor time per byte or transaction; absolute ones belong to the machine.
//!
//! The environment can change: `BENCH_ROUNDS` (5), `BENCH_SECONDS` (1.2 per measurement), `BENCH_ONLY` (parts of the names of workloads, by
//! comma), `BENCH_RELAYS` (likewise for relays), `CONGESTION` (reno), `NGINX` and `HAPROXY` (other binaries), `TOLLGATE_BASE` (another tollgate, to
//! compare a change with what was before). The report goes to standard output and to `benches/out/`, as Markdown and as JSON.

use std::{
    env, fs,
    io::{self, Write},
    path::Path,
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

#[path = "../../integration/harness/mod.rs"]
pub mod harness;
mod lab;
mod load;
mod peers;
mod processor;
mod report;
mod short;
mod summary;

use lab::World;
use load::{Outcome, Prepared, Workload};
use peers::{Running, Variant};
use processor::Cores;

/// Longest run: no more rounds are begun beyond it, and nothing is measured twice that would lead there.
const BOUND: Duration = Duration::from_secs(440);

/// A relay that had to share its core moves more at a time, and some of its work is booked to others: beyond this part of the time a measurement
/// is made again, so many times, and the calmest counts.
const MOST_WAITED: f64 = 0.05;
const TRIES: usize = 3;

/// How long a relay is left alone before its processor time is read.
const SETTLE: Duration = Duration::from_millis(25);

/// One workload through one relay in one round.
#[derive(Clone, Debug)]
struct Sample {
    round: u32,
    workload: usize,
    variant: usize,
    outcome: Outcome,
    /// The relay's processes; `None` without a relay.
    relay: Option<processor::Usage>,
    /// Client and origin.
    load: Duration,
}

fn main() -> ExitCode {
    // `cargo test --all-targets` starts it too, without this word.
    if !env::args().any(|argument| argument == "--bench") {
        say("a benchmark: cargo bench --bench side_by_side");
        return ExitCode::SUCCESS;
    }
    match harness::enter::enter().and_then(|()| run()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            let _ = writeln!(io::stderr(), "side_by_side: {reason}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), String> {
    let cores = Cores::split()?;
    let rounds: u32 = setting("BENCH_ROUNDS", 5)?;
    let length = Duration::from_secs_f64(setting("BENCH_SECONDS", 1.2)?);
    let variants = chosen("BENCH_RELAYS", peers::variants()?, |variant| &variant.name)?;
    let workloads = chosen("BENCH_ONLY", load::workloads(), |workload| &workload.name)?;
    let congestion = env::var("CONGESTION").unwrap_or_else(|_| "reno".to_owned());
    let world = World::new(&congestion);
    let mut samples = Vec::new();
    let began = Instant::now();
    let mut done = 0;
    while done < rounds && began.elapsed() < BOUND {
        let share = BOUND * (done + 1) / rounds;
        let plan = Plan {
            world: &world,
            cores: &cores,
            variants: &variants,
            workloads: &workloads,
            length,
            unhurried: began + share,
        };
        samples.extend(plan.round(done)?);
        done += 1;
        let took = began.elapsed().as_secs();
        let _ = writeln!(io::stderr(), "round {done} of {rounds}, {took} s");
    }
    let conditions = report::Conditions {
        congestion,
        rounds: done,
        length,
        took: began.elapsed(),
        cores,
    };
    let text = report::markdown(&conditions, &variants, &workloads, &samples);
    let json = report::json(&conditions, &variants, &workloads, &samples);
    say(&text);
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/out");
    let write = |name: &str, text: &str| fs::write(folder.join(name), text);
    fs::create_dir_all(&folder)
        .and_then(|()| write("side_by_side.md", &text))
        .and_then(|()| write("side_by_side.json", &json))
        .map_err(|error| format!("{}: {error}", folder.display()))
}

/// What a round does.
struct Plan<'a> {
    world: &'a World,
    cores: &'a Cores,
    variants: &'a [Variant],
    workloads: &'a [Workload],
    length: Duration,
    /// Until then there is time to measure again.
    unhurried: Instant,
}

impl Plan<'_> {
    fn round(&self, round: u32) -> Result<Vec<Sample>, String> {
        let start =
            |(index, variant): (usize, &Variant)| variant.start(index, self.world, self.cores);
        let relays = self.variants.iter().enumerate().map(start);
        let relays = relays.collect::<Result<Vec<_>, _>>()?;
        let mut samples = Vec::new();
        for workload in shuffled(self.workloads.len()) {
            for variant in shuffled(relays.len()) {
                let (what, name) = (&self.workloads[workload], &self.variants[variant].name);
                let calmest = self.calmest(&relays[variant], what);
                let (outcome, relay, load) =
                    calmest.map_err(|error| format!("{}, {name}: {error}", what.name))?;
                samples.push(Sample {
                    round,
                    workload,
                    variant,
                    outcome,
                    relay,
                    load,
                });
            }
        }
        Ok(samples)
    }

    fn calmest(&self, relay: &Running, workload: &Workload) -> io::Result<Measured> {
        let waited = |(outcome, used, _): &Measured| {
            let waited = used.map_or(0.0, |used| used.waited.as_secs_f64());
            waited / outcome.elapsed.as_secs_f64()
        };
        let mut best = self.measure(relay, workload)?;
        for _ in 1..TRIES {
            // Where the relay shares its core with client and origin, it waits for them.
            let calm = workload.same_core || waited(&best) < MOST_WAITED;
            if calm || Instant::now() > self.unhurried {
                break;
            }
            let again = self.measure(relay, workload)?;
            if waited(&again) < waited(&best) {
                best = again;
            }
        }
        Ok(best)
    }

    /// Connections first, then some traffic to warm up (windows, buffers, pages), then what counts: what connecting costs is not in it. The
    /// relay is at rest whenever its time is read.
    fn measure(&self, relay: &Running, workload: &Workload) -> io::Result<Measured> {
        let core = match workload.same_core {
            true => self.cores.load,
            false => self.cores.relay,
        };
        relay.move_to(core)?;
        let load = Prepared::new(self.world, relay, workload)?;
        load.run(self.length / 4)?;
        thread::sleep(SETTLE);
        let (relay_before, load_before) = (relay.usage()?, processor::own());
        let outcome = load.run(self.length)?;
        let used_by_load = processor::own().saturating_sub(load_before);
        thread::sleep(SETTLE);
        let used = relay.usage()?.zip(relay_before);
        let used = used.map(|(after, before)| after.since(before));
        drop(load);
        thread::sleep(SETTLE); // closing is not in the next one's figures
        Ok((outcome, used, used_by_load))
    }
}

/// What came of it, what the relay used for it, and what client and origin did.
type Measured = (Outcome, Option<processor::Usage>, Duration);

/// The numbers below `n` in an order of chance.
fn shuffled(n: usize) -> Vec<usize> {
    use std::hash::{BuildHasher, RandomState};
    let chance = RandomState::new();
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by_key(|i| chance.hash_one(i));
    order
}

/// A number from the environment.
fn setting<T: std::str::FromStr>(name: &str, default: T) -> Result<T, String> {
    match env::var(name) {
        Ok(text) => text
            .parse()
            .map_err(|_| format!("{name}={text}: not a number")),
        Err(_) => Ok(default),
    }
}

/// Those whose name contains one of the words that the environment names; all without it.
fn chosen<T>(variable: &str, all: Vec<T>, name: impl Fn(&T) -> &String) -> Result<Vec<T>, String> {
    let Ok(words) = env::var(variable) else {
        return Ok(all);
    };
    let wanted = |one: &T| words.split(',').any(|word| name(one).contains(word.trim()));
    let names: Vec<String> = all.iter().map(|one| name(one).clone()).collect();
    let some: Vec<T> = all.into_iter().filter(wanted).collect();
    match some.is_empty() {
        true => Err(format!("{variable}={words}: there are {names:?}")),
        false => Ok(some),
    }
}

fn say(text: &str) {
    let _ = writeln!(io::stdout(), "{text}");
}
