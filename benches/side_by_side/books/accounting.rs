//! The relay's processor time with its books and without: the same program built twice, in turn.
//!
//! Ratios within a round, because what the machine does besides is alike for those measured within a second of each other; their median, and an
//! interval of confidence by resampling the rounds (bootstrap, percentiles).

use std::{
    io,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use crate::{
    exchange::Chance,
    lab::World,
    load::{Outcome, Prepared},
    peers::Running,
    processor::{Cores, Usage},
    rounds::shuffled,
    summary::Spread,
    variant::Tuning,
    workload::{SHORT, Workload, bulk_name, exchange_name, workloads},
};

/// Rounds unless said otherwise, and the fewest that are made however long they take.
pub(crate) const ROUNDS: u32 = 24;
const LEAST: u32 = 20;
/// Beyond this no more than those.
const BOUND: Duration = Duration::from_secs(200);

/// The part of the usual length.
const PART: f64 = 2.0 / 3.0;

/// Ten times as often as shipped: a measurement is shorter than what is shipped, and would meet no booking.
pub(crate) const INTERVAL: &str = "1s";

/// How long a relay is left alone before its processor time is read: the audit trail is written within.
const SETTLE: Duration = Duration::from_millis(40);

/// How often rounds are drawn anew, and what part of the results lies outside of the interval on each side.
const DRAWS: usize = 10_000;
const OUTSIDE: f64 = 0.025;

/// What is wanted: the upper end of the interval.
pub(crate) const WANTED: f64 = 1.05;

/// What a relay keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Keeps {
    /// Nothing: another build.
    Nothing,
    /// The same, measured once more: what these two differ by is noise.
    NothingAgain,
    /// Counters and ledger.
    Ledger,
    /// An audit trail in a file, too.
    Audit,
}

impl Keeps {
    pub(crate) const ALL: [Self; 4] =
        [Self::Nothing, Self::NothingAgain, Self::Ledger, Self::Audit];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::NothingAgain => "nothing, again",
            Self::Ledger => "counters and ledger",
            Self::Audit => "counters, ledger and audit trail",
        }
    }

    /// Which relay that is.
    fn relay(self) -> usize {
        match self {
            Self::Nothing | Self::NothingAgain => 0,
            Self::Ledger => 1,
            Self::Audit => 2,
        }
    }
}

/// One workload through one relay in one round.
#[derive(Clone, Debug)]
pub(crate) struct Measured {
    pub(crate) round: u32,
    pub(crate) workload: usize,
    pub(crate) keeps: Keeps,
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
pub(crate) struct Accounting {
    pub(crate) workloads: Vec<Workload>,
    pub(crate) measured: Vec<Measured>,
    pub(crate) rounds: u32,
    pub(crate) length: Duration,
    pub(crate) took: Duration,
}

/// A median, and where it is with 95 of 100 sets of rounds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Interval {
    pub(crate) median: f64,
    pub(crate) low: f64,
    pub(crate) high: f64,
}

impl Interval {
    /// By drawing as many as there are, with repetition, again and again. `None` without any.
    pub(crate) fn of(values: &[f64]) -> Option<Self> {
        let median = |values: &[f64]| Spread::of(values.iter().copied()).map(|all| all.median);
        let mut chance = Chance(0x9e37_79b9_7f4a_7c15);
        let mut draw = || {
            let any = |_| values[(chance.next() * values.len() as f64) as usize];
            median(&(0..values.len()).map(any).collect::<Vec<_>>())
        };
        let whole = median(values)?;
        let mut medians: Vec<f64> = (0..DRAWS).filter_map(|_| draw()).collect();
        medians.sort_by(f64::total_cmp);
        let at = |part: f64| medians[((DRAWS - 1) as f64 * part).round() as usize];
        Some(Self {
            median: whole,
            low: at(OUTSIDE),
            high: at(1.0 - OUTSIDE),
        })
    }
}

/// The workloads.
fn names() -> [String; 3] {
    [
        bulk_name("to_client", 1),
        exchange_name("1 KiB", 64),
        SHORT.to_owned(),
    ]
}

/// In rounds. `with` and `without` are the two builds; relays have numbers from `first` on.
pub(crate) fn accounting(
    world: &World,
    cores: &Cores,
    (with, without): (&Path, &Path),
    first: usize,
    wanted: u32,
    length: Duration,
) -> Result<Accounting, String> {
    let began = Instant::now();
    // More rounds are worth more than longer ones: each ratio is of two that were measured within two seconds.
    let length = length.mul_f64(PART);
    let mut workloads = workloads();
    workloads.retain(|what| names().contains(&what.name));
    let relays = [
        start(world, cores, first, without, Keeps::Nothing),
        start(world, cores, first + 1, with, Keeps::Ledger),
        start(world, cores, first + 2, with, Keeps::Audit),
    ];
    let relays: Vec<Running> = relays.into_iter().collect::<Result<_, _>>()?;
    let mut all = Accounting {
        workloads,
        measured: Vec::new(),
        rounds: 0,
        length,
        took: Duration::ZERO,
    };
    let least = wanted.min(LEAST);
    while all.rounds < wanted && (all.rounds < least || began.elapsed() < BOUND) {
        for workload in shuffled(all.workloads.len()) {
            for turn in shuffled(Keeps::ALL.len()) {
                let keeps = Keeps::ALL[turn];
                let what = &all.workloads[workload];
                let (outcome, relay) = measure(world, &relays[keeps.relay()], what, length)
                    .map_err(|error| format!("{}, {}: {error}", what.name, keeps.name()))?;
                all.measured.push(Measured {
                    round: all.rounds,
                    workload,
                    keeps,
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

fn start(
    world: &World,
    cores: &Cores,
    number: usize,
    binary: &Path,
    keeps: Keeps,
) -> Result<Running, String> {
    let name = format!("accounting-{number}");
    let state = super::folder(&name).map_err(|error| format!("{name}: {error}"))?;
    let audit = match keeps {
        Keeps::Audit => format!("sink = \"{}\"", state.join("audit.jsonl").display()),
        _ => Tuning::default().audit,
    };
    let tuning = Tuning {
        audit,
        end: format!("[ledger]\ninterval = \"{INTERVAL}\"\n"),
        ..Tuning::default()
    };
    super::relay(world, cores, number, binary, tuning, &state)
}

/// As in the rounds: connections and some traffic first, then what counts.
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

impl Accounting {
    /// Microseconds for each byte or transaction.
    pub(crate) fn each(&self, workload: usize, keeps: Keeps) -> Option<Spread> {
        Spread::of(self.by_round(workload, keeps).map(|one| one.each()))
    }

    /// By what it takes without books, round by round.
    pub(crate) fn ratios(&self, workload: usize, keeps: Keeps) -> Vec<f64> {
        let ratio = |one: &Measured| {
            let mut without = self.by_round(workload, Keeps::Nothing);
            let without = without.find(|without| without.round == one.round)?;
            Some(one.each() / without.each())
        };
        self.by_round(workload, keeps).filter_map(ratio).collect()
    }

    /// How long the relay waited for its core, by the time that it was measured.
    pub(crate) fn waited(&self, workload: usize, keeps: Keeps) -> Option<Spread> {
        let waited =
            |one: &Measured| one.relay.waited.as_secs_f64() / one.outcome.elapsed.as_secs_f64();
        Spread::of(self.by_round(workload, keeps).map(waited))
    }

    fn by_round(&self, workload: usize, keeps: Keeps) -> impl Iterator<Item = &Measured> {
        let measured = self.measured.iter();
        measured.filter(move |one| (one.workload, one.keeps) == (workload, keeps))
    }
}
