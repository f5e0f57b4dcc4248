//! The relay's processor time with limits that nobody comes near, and without any: the same program with two configurations, in turn.

use std::{
    io,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use crate::{
    books,
    books::accounting::Interval,
    lab::World,
    load::{Outcome, Prepared},
    peers::Running,
    processor::{Cores, Usage},
    rounds::shuffled,
    summary::Spread,
    variant::Tuning,
    workload::{SHORT, Workload, bulk_name, exchange_name, workloads},
};

/// Rounds unless said otherwise; and beyond this none is begun.
pub(crate) const ROUNDS: u32 = 20;
const BOUND: Duration = Duration::from_secs(150);

/// How long a relay is left alone before its processor time is read.
const SETTLE: Duration = Duration::from_millis(40);

/// Of each kind, for every endpoint, listener and the relay, and far beyond what this machine can do.
const LIMITS: &str = r#"
[limits]
max_sessions = 900000
sessions_per_second = 900000
[endpoint."*"]
max_sessions = 900000
sessions_per_second = 900000
bytes_per_second_to_upstream = "100GiB"
bytes_per_second_to_client = "100GiB"
"#;

/// What holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Holds {
    /// No limit.
    Nothing,
    /// The same, measured once more: what these two differ by is noise.
    NothingAgain,
    /// All of them.
    Limits,
}

impl Holds {
    pub(crate) const ALL: [Self; 3] = [Self::Nothing, Self::NothingAgain, Self::Limits];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Nothing => "none",
            Self::NothingAgain => "none, again",
            Self::Limits => "all, none of which bites",
        }
    }
}

/// One workload through one relay in one round.
#[derive(Clone, Debug)]
pub(crate) struct Measured {
    pub(crate) round: u32,
    pub(crate) workload: usize,
    pub(crate) holds: Holds,
    pub(crate) outcome: Outcome,
    pub(crate) relay: Usage,
}

impl Measured {
    /// Processor time of all threads, in microseconds for each unit.
    fn each(&self) -> f64 {
        self.relay.ran.as_secs_f64() * 1e6 / self.outcome.units as f64
    }
}

/// All of it.
#[derive(Clone, Debug)]
pub(crate) struct Cost {
    pub(crate) workloads: Vec<Workload>,
    pub(crate) measured: Vec<Measured>,
    pub(crate) rounds: u32,
    pub(crate) length: Duration,
    pub(crate) took: Duration,
}

fn names() -> [String; 4] {
    [
        bulk_name("to_upstream", 1),
        bulk_name("to_client", 1),
        exchange_name("1 KiB", 64),
        SHORT.to_owned(),
    ]
}

/// In rounds; relays have numbers from `first` on.
pub(crate) fn cost(
    world: &World,
    cores: &Cores,
    binary: &Path,
    first: usize,
    wanted: u32,
    length: Duration,
) -> Result<Cost, String> {
    let began = Instant::now();
    let mut workloads = workloads();
    workloads.retain(|what| names().contains(&what.name));
    let start = |number: usize, end: &str| {
        let name = format!("limits-{number}");
        let state = books::folder(&name).map_err(|error| format!("{name}: {error}"))?;
        let tuning = Tuning {
            end: end.to_owned(),
            ..Tuning::default()
        };
        books::relay(world, cores, number, binary, tuning, &state)
    };
    let (without, with) = (start(first, "")?, start(first + 1, LIMITS)?);
    let mut all = Cost {
        workloads,
        measured: Vec::new(),
        rounds: 0,
        length,
        took: Duration::ZERO,
    };
    while all.rounds < wanted && (all.rounds == 0 || began.elapsed() < BOUND) {
        for workload in shuffled(all.workloads.len()) {
            for turn in shuffled(Holds::ALL.len()) {
                let holds = Holds::ALL[turn];
                let relay = if holds == Holds::Limits {
                    &with
                } else {
                    &without
                };
                let what = &all.workloads[workload];
                let (outcome, relay) = measure(world, relay, what, length)
                    .map_err(|error| format!("{}, {}: {error}", what.name, holds.name()))?;
                all.measured.push(Measured {
                    round: all.rounds,
                    workload,
                    holds,
                    outcome,
                    relay,
                });
            }
        }
        all.rounds += 1;
    }
    all.took = began.elapsed();
    Ok(all)
}

/// As in the other rounds: connections and some traffic first, then what counts.
fn measure(
    world: &World,
    relay: &Running,
    what: &Workload,
    length: Duration,
) -> io::Result<(Outcome, Usage)> {
    let used = || -> io::Result<Usage> { relay.usage()?.ok_or(io::ErrorKind::NotFound.into()) };
    let load = Prepared::new(world, relay, what, 0.0)?;
    load.run(length / 4)?;
    thread::sleep(SETTLE);
    let before = used()?;
    let outcome = load.run(length)?;
    thread::sleep(SETTLE);
    let after = used()?;
    drop(load);
    thread::sleep(SETTLE); // closing is not in the next one's figures
    Ok((outcome, after.since(before)))
}

impl Cost {
    /// Microseconds for each byte or transaction.
    pub(crate) fn each(&self, workload: usize, holds: Holds) -> Option<Spread> {
        Spread::of(self.of(workload, holds).map(Measured::each))
    }

    /// By what it takes without limits, round by round.
    pub(crate) fn ratio(&self, workload: usize, holds: Holds) -> Option<Interval> {
        let ratio = |one: &Measured| {
            let mut without = self.of(workload, Holds::Nothing);
            let without = without.find(|without| without.round == one.round)?;
            Some(one.each() / without.each())
        };
        let ratios: Vec<f64> = self.of(workload, holds).filter_map(ratio).collect();
        Interval::of(&ratios)
    }

    fn of(&self, workload: usize, holds: Holds) -> impl Iterator<Item = &Measured> {
        let measured = self.measured.iter();
        measured.filter(move |one| (one.workload, one.holds) == (workload, holds))
    }
}
