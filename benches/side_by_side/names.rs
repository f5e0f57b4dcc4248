//! Ten thousand names: what it costs to keep them fresh, and whom.
//!
//! Names are the control thread's business. While a thousand of them are asked for anew each second, workers have to do as much for a session as
//! without; and a start with ten thousand has to leave them alone.

use std::{
    fmt::Write,
    io, thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{
    harness::{dns::Answer, relay::Signal},
    lab::World,
    load::{Outcome, Prepared},
    peers::Running,
    processor::{Cores, Usage},
    report::shown,
    rounds::{MOST_WAITED, TRIES, shuffled},
    settings::Room,
    summary::Spread,
    variant::{Kind, Role, Variant},
    workload::{SHORT, Workload, exchange_name, workloads},
};

/// Rounds unless said otherwise.
pub(crate) const ROUNDS: u32 = 8;
/// Names whose answers are good for a second; and as many as there are when a relay starts.
pub(crate) const REFRESHED: usize = 1_000;
pub(crate) const AT_START: usize = 10_000;
/// How many an upstream has.
pub(crate) const IN_AN_UPSTREAM: usize = 100;
/// Addresses in each answer, each time in another order: a load balancer's name with a zone each.
const ADDRESSES: usize = 3;
/// The most that may be set.
pub(crate) const QUERIES_PER_SECOND: u32 = 1_000;

/// TTLs, in seconds.
const SHORT_LIVED: u32 = 1;
const LONG_LIVED: u32 = 300;

/// Beyond this nothing is measured twice.
const BOUND: Duration = Duration::from_secs(50);
/// How long a relay may take to know all its names; and how long it is left alone before its processor time is read.
const PATIENCE: Duration = Duration::from_secs(60);
const SETTLE: Duration = Duration::from_millis(25);

/// What a relay does while sessions are measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Beside {
    /// It knows as many names, and need not ask. Twice in each round: what differs between the two is noise.
    Nothing,
    NothingAgain,
    /// It asks for each name each second.
    Refreshing,
}

impl Beside {
    pub(crate) const ALL: [Self; 3] = [Self::Nothing, Self::NothingAgain, Self::Refreshing];

    fn name(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::NothingAgain => "nothing, again",
            Self::Refreshing => "refreshing",
        }
    }
}

/// Sessions of one round through one relay.
#[derive(Clone, Debug)]
pub(crate) struct Measured {
    pub(crate) round: u32,
    /// Which of [`Names::workloads`].
    pub(crate) workload: usize,
    pub(crate) beside: Beside,
    pub(crate) outcome: Outcome,
    /// The worker's processor time, and that of all other threads.
    pub(crate) worker: Usage,
    pub(crate) control: Usage,
    /// Questions that the name server answered meanwhile.
    pub(crate) answers: u64,
}

/// A start with many names.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Started {
    pub(crate) names: usize,
    /// Until the last was known.
    pub(crate) took: Duration,
    /// Since the process began.
    pub(crate) worker: Usage,
    pub(crate) control: Usage,
}

/// All of it.
#[derive(Clone, Debug)]
pub(crate) struct Names {
    pub(crate) workloads: Vec<Workload>,
    pub(crate) measured: Vec<Measured>,
    /// The first without any, for what starting costs by itself.
    pub(crate) started: Vec<Started>,
}

/// The workloads that are measured beside names.
pub(crate) fn sessions() -> [String; 2] {
    [SHORT.to_owned(), exchange_name("1 KiB", 64)]
}

/// In rounds, each relay's turn by chance.
pub(crate) fn names(
    world: &World,
    cores: &Cores,
    variants: &[Variant],
    rounds: u32,
    length: Duration,
) -> Result<Option<Names>, String> {
    let Some(ours) = variants.iter().find(|variant| variant.role == Role::Ours) else {
        return Ok(None);
    };
    let mut names = Names {
        workloads: workloads(),
        measured: Vec::new(),
        started: Vec::new(),
    };
    names
        .workloads
        .retain(|what| sessions().contains(&what.name));
    // Ports behind those of all others.
    let first = variants.len();
    for (at, many) in [0, AT_START].into_iter().enumerate() {
        let at_start = with_names(ours, world, "start", many, LONG_LIVED);
        names
            .started
            .push(start(world, cores, &at_start, first + at, many)?);
    }
    let begin = |number, label, ttl| {
        let variant = with_names(ours, world, label, REFRESHED, ttl);
        let relay = variant.start(number, world, cores, Room::Usual)?;
        wait_resolved(&relay, REFRESHED)?;
        Ok::<_, String>(relay)
    };
    let quiet = begin(first, "seldom", LONG_LIVED)?;
    let busy = begin(first + 1, "often", SHORT_LIVED)?;
    let began = Instant::now();
    for round in 0..rounds {
        let unhurried = began + BOUND * (round + 1) / rounds;
        for workload in shuffled(names.workloads.len()) {
            for turn in shuffled(Beside::ALL.len()) {
                let beside = Beside::ALL[turn];
                let what = &names.workloads[workload];
                let measured = match beside {
                    Beside::Refreshing => calmest(world, &busy, what, length, unhurried),
                    // The other one rests, and its names wait.
                    _ => {
                        pause(&busy, true);
                        let measured = calmest(world, &quiet, what, length, unhurried);
                        pause(&busy, false);
                        measured
                    }
                };
                let (outcome, [worker, control], answers) =
                    measured.map_err(|error| format!("{} beside names: {error}", what.name))?;
                names.measured.push(Measured {
                    round,
                    workload,
                    beside,
                    outcome,
                    worker,
                    control,
                    answers,
                });
            }
        }
    }
    Ok(Some(names))
}

/// The relay with so many names more, which the name server knows from now on.
fn with_names(ours: &Variant, world: &World, label: &str, names: usize, ttl: u32) -> Variant {
    let mut variant = ours.clone();
    let Kind::Tollgate(_, tuning) = &mut variant.kind else {
        return variant;
    };
    tuning.resolver = format!("family = \"ipv4\"\nqueries_per_second = {QUERIES_PER_SECOND}");
    let all: Vec<String> = (0..names)
        .map(|number| format!("n{number}.{label}.example.internal"))
        .collect();
    for (number, name) in all.iter().enumerate() {
        let address = |one| {
            let [_, a, b, c] = u32::try_from(ADDRESSES * number + one)
                .unwrap_or(0)
                .to_be_bytes();
            format!("10.{}.{b}.{c}", 128 + a)
        };
        let addresses: Vec<String> = (0..ADDRESSES).map(address).collect();
        let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
        world.names.set(name, Answer::rotating(&addresses, ttl));
    }
    for (number, some) in all.chunks(IN_AN_UPSTREAM).enumerate() {
        let targets: Vec<String> = some.iter().map(|name| format!("\"{name}:443\"")).collect();
        let targets = targets.join(", ");
        let table = format!("[[upstream]]\nname = \"names-{number}\"\ntargets = [{targets}]\n");
        tuning.end.push_str(&table);
    }
    variant
}

fn start(
    world: &World,
    cores: &Cores,
    variant: &Variant,
    number: usize,
    names: usize,
) -> Result<Started, String> {
    let (asked, began) = (world.names.totals().0, Instant::now());
    let relay = variant.start(number, world, cores, Room::Usual)?;
    // The name server counts for us: the relay's own numbers cost it more than a name does.
    while world.names.totals().0 - asked < names as u64 && began.elapsed() < PATIENCE {
        thread::sleep(Duration::from_millis(1));
    }
    let took = began.elapsed();
    let used = relay.process_id().map_or(Ok(Default::default()), threads);
    let [worker, control] = used.map_err(|error| error.to_string())?;
    wait_resolved(&relay, names)?;
    Ok(Started {
        names,
        took,
        worker,
        control,
    })
}

/// Asks the relay.
fn wait_resolved(relay: &Running, names: usize) -> Result<(), String> {
    let Some(relay) = relay.tollgate() else {
        return Ok(());
    };
    let wanted = (names * ADDRESSES) as u64;
    let deadline = Instant::now() + PATIENCE;
    loop {
        let known = relay.metric("tollgate_upstream_addresses", &[]);
        if known >= wanted {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(format!("{known} addresses of {wanted} are known"));
        }
        thread::sleep(Duration::from_millis(100));
    }
}

fn pause(relay: &Running, stop: bool) {
    if let Some(relay) = relay.tollgate() {
        relay.signal(if stop { Signal::STOP } else { Signal::CONT });
    }
}

/// The worker's, and that of all other threads.
fn threads(process: u32) -> io::Result<[Usage; 2]> {
    let of = |workers| Usage::of_threads(process, |name| name.starts_with("worker") == workers);
    Ok([of(true)?, of(false)?])
}

type Came = (Outcome, [Usage; 2], u64);

/// As in the rounds: one in which the relay had to share its core is measured again, while there is time.
fn calmest(
    world: &World,
    relay: &Running,
    what: &Workload,
    length: Duration,
    unhurried: Instant,
) -> io::Result<Came> {
    // For its own other threads the worker waits rightly.
    let waited = |(outcome, [worker, control], _): &Came| {
        let waited = worker.waited.saturating_sub(control.ran);
        waited.as_secs_f64() / outcome.elapsed.as_secs_f64()
    };
    let mut best = measure(world, relay, what, length)?;
    for _ in 1..TRIES {
        if waited(&best) < MOST_WAITED || Instant::now() > unhurried {
            break;
        }
        let again = measure(world, relay, what, length)?;
        if waited(&again) < waited(&best) {
            best = again;
        }
    }
    Ok(best)
}

/// As in the rounds: connections and some traffic first, then what counts.
fn measure(world: &World, relay: &Running, what: &Workload, length: Duration) -> io::Result<Came> {
    let process = relay.process_id().ok_or(io::ErrorKind::NotFound)?;
    let load = Prepared::new(world, relay, what, 0.0)?;
    load.run(length / 4)?;
    thread::sleep(SETTLE);
    let (asked, before) = (world.names.totals().0, threads(process)?);
    let outcome = load.run(length)?;
    thread::sleep(SETTLE);
    let [worker, control] = threads(process)?;
    let used = [worker.since(before[0]), control.since(before[1])];
    let answers = world.names.totals().0 - asked;
    drop(load);
    thread::sleep(SETTLE); // closing is not in the next one's figures
    Ok((outcome, used, answers))
}

/// Figures of the sessions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Figure {
    /// The worker's processor time, in microseconds each.
    Worker,
    /// Each takes so long on average, in microseconds.
    Each,
    /// 99 of 100 take no longer, in microseconds.
    P99,
}

impl Figure {
    /// For what has several.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Worker => "worker's CPU, ",
            Self::Each => "time each, ",
            Self::P99 => "p99, ",
        }
    }
}

impl Measured {
    fn figure(&self, figure: Figure) -> Option<f64> {
        let units = self.outcome.units as f64;
        Some(match figure {
            Figure::Worker => self.worker.ran.as_secs_f64() / units * 1e6,
            Figure::Each => self.outcome.elapsed.as_secs_f64() / units * 1e6,
            Figure::P99 => self.outcome.p50_p99?[1].as_secs_f64() * 1e6,
        })
    }
}

impl Names {
    fn by_round(
        &self,
        workload: usize,
        beside: Beside,
        figure: Figure,
    ) -> impl Iterator<Item = (u32, f64)> {
        let measured = self.measured.iter();
        let ours = measured.filter(move |one| (one.workload, one.beside) == (workload, beside));
        ours.filter_map(move |one| Some((one.round, one.figure(figure)?)))
    }

    fn spread(&self, workload: usize, beside: Beside, figure: Figure) -> Option<Spread> {
        Spread::of(
            self.by_round(workload, beside, figure)
                .map(|(_, value)| value),
        )
    }

    /// A figure beside refreshing (or beside nothing once more) by that beside nothing, round by round.
    pub(crate) fn ratio(&self, workload: usize, beside: Beside, figure: Figure) -> Option<Spread> {
        Spread::of(self.ratios(workload, beside, figure))
    }

    fn ratios(&self, workload: usize, beside: Beside, figure: Figure) -> impl Iterator<Item = f64> {
        self.by_round(workload, beside, figure)
            .filter_map(move |(round, value)| {
                let mut without = self.by_round(workload, Beside::Nothing, figure);
                let (_, without) = without.find(|(of, _)| *of == round)?;
                Some(value / without)
            })
    }

    /// What the same figure differs by when the same is measured again, in the middle one of the rounds: as a ratio above one.
    pub(crate) fn noise(&self, workload: usize, figure: Figure) -> Option<f64> {
        let again = self.ratios(workload, Beside::NothingAgain, figure);
        let apart = Spread::of(again.map(|ratio| ratio.max(1.0 / ratio)));
        apart.map(|apart| apart.median)
    }

    /// What other threads than workers take for a thousand answers, in milliseconds; round by round and over all workloads.
    pub(crate) fn control(&self) -> Option<Spread> {
        let refreshing = self
            .measured
            .iter()
            .filter(|one| one.beside == Beside::Refreshing);
        Spread::of(refreshing.map(|one| one.control.ran.as_secs_f64() * 1e6 / one.answers as f64))
    }

    /// The part of a core that the worker took while all names of a start became known, beyond what a start without names takes it.
    pub(crate) fn worker_at_start(&self) -> Option<f64> {
        let [without, with] = self.started.as_slice() else {
            return None;
        };
        let more = with.worker.since(without.worker).ran;
        Some(more.as_secs_f64() / with.took.as_secs_f64())
    }

    pub(crate) fn write(&self, text: &mut String) -> std::fmt::Result {
        writeln!(
            text,
            "### Names\n\n{REFRESHED} names, {IN_AN_UPSTREAM} to an upstream, with {ADDRESSES} IPv4 addresses each that every answer has in another order. *Refreshing*: their TTL is {SHORT_LIVED} s, and the relay asks \
             for each again as soon as that is over, a socket and a port for each question. {} rounds. *Beside nothing*: the same with a TTL of {LONG_LIVED} s, twice in each round; what these two differ by is noise. \
             The worker and all other threads share one core, the name server has its place on the other with client and origin: what it takes them is missing there, so that a session takes longer; what the worker \
             does for one should be the same. *Waited*: for the core, which it has not for itself. Only one kind of address is asked for, because `queries_per_second` is at most {QUERIES_PER_SECOND} (a VPC's resolver drops what is beyond 1024): two kinds of {REFRESHED} names \
             take two seconds each time round.\n",
            self.measured
                .iter()
                .map(|one| one.round + 1)
                .max()
                .unwrap_or(0),
        )?;
        writeln!(
            text,
            "| | beside | worker, µs each | by nothing | a session each, µs | by nothing | p99, µs | answers a second | other threads, of a core | worker waited |\n|---|---|---|---|---|---|---|---|---|---|"
        )?;
        for (workload, what) in self.workloads.iter().enumerate() {
            for beside in Beside::ALL {
                let figure = |figure| shown(self.spread(workload, beside, figure));
                let ratio = |figure| match beside {
                    Beside::Nothing => "-".to_owned(),
                    _ => shown(self.ratio(workload, beside, figure)),
                };
                let ours = || {
                    let measured = self.measured.iter();
                    measured.filter(|one| (one.workload, one.beside) == (workload, beside))
                };
                let by_time = |value: fn(&Measured) -> f64| {
                    let seconds = |one: &Measured| one.outcome.elapsed.as_secs_f64();
                    Spread::of(ours().map(|one| value(one) / seconds(one)))
                };
                let answers = by_time(|one| one.answers as f64);
                let control = by_time(|one| one.control.ran.as_secs_f64() * 100.0);
                let waited = by_time(|one| one.worker.waited.as_secs_f64() * 100.0);
                writeln!(
                    text,
                    "| {} | {} | {} | {} | {} | {} | {} | {} | {:.1} % | {:.0} % |",
                    what.name,
                    beside.name(),
                    figure(Figure::Worker),
                    ratio(Figure::Worker),
                    figure(Figure::Each),
                    ratio(Figure::Each),
                    figure(Figure::P99),
                    answers.map_or(0.0, |answers| answers.median).round(),
                    control.map_or(f64::NAN, |control| control.median),
                    waited.map_or(f64::NAN, |waited| waited.median),
                )?;
            }
        }
        writeln!(
            text,
            "\nOther threads than workers take {} ms for a thousand answers.\n\n| names at the start | all known after, s | answers a second | worker, ms | worker, µs a name | other threads, ms |\n|---|---|---|---|---|---|",
            shown(self.control())
        )?;
        for started in &self.started {
            let took = started.took.as_secs_f64();
            let each = started.worker.ran.as_secs_f64() * 1e6 / started.names as f64;
            let each = match started.names {
                0 => "-".to_owned(),
                _ => format!("{each:.1}"),
            };
            writeln!(
                text,
                "| {} | {took:.2} | {:.0} | {:.1} | {each} | {:.0} |",
                started.names,
                started.names as f64 / took,
                started.worker.ran.as_secs_f64() * 1e3,
                started.control.ran.as_secs_f64() * 1e3,
            )?;
        }
        writeln!(text)
    }

    pub(crate) fn json(&self) -> Value {
        let seconds = |used: Usage| used.ran.as_secs_f64();
        json!({
            "names": REFRESHED,
            "samples": self.measured.iter().map(|one| json!({
                "round": one.round,
                "workload": self.workloads[one.workload].name,
                "beside": one.beside.name(),
                "units": one.outcome.units,
                "seconds": one.outcome.elapsed.as_secs_f64(),
                "worker_us_each": one.figure(Figure::Worker),
                "p99_us": one.figure(Figure::P99),
                "answers": one.answers,
                "other_threads_s": seconds(one.control),
            })).collect::<Vec<_>>(),
            "starts": self.started.iter().map(|started| json!({
                "names": started.names,
                "seconds": started.took.as_secs_f64(),
                "worker_s": seconds(started.worker),
                "other_threads_s": seconds(started.control),
            })).collect::<Vec<_>>(),
        })
    }
}
