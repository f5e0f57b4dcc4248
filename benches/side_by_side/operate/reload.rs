//! Another configuration under thousands of sessions with traffic: how long their clients wait, and what is left of it in memory.
//!
//! Requests come at a set rate over all sessions, a part of what the relay can do. Latency counts from when a request was due, so that the longest of a
//! window in which there was a reload is the pause that it made, or what else the machine did: windows without a reload stand beside.

use std::{
    fmt::{Result as Written, Write},
    io,
    path::Path,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{
    exchange::{Pace, Size, exchange},
    harness::relay::Relay,
    lab::{Ends, World},
    load::Outcome,
    peers::Running,
    processor::{Cores, Usage},
    report::shown,
    rounds::shuffled,
    scenes, settings,
    settings::Room,
    short,
    summary::Spread,
    variant::{Kind, Role, Tuning, Variant},
};

/// Rounds unless said otherwise; and beyond this none is begun.
pub(crate) const ROUNDS: u32 = 10;
const BOUND: Duration = Duration::from_secs(140);

/// Requests and answers.
const SIZE: usize = 1024;
const PART_OF_CAPACITY: f64 = 0.3;
/// How long requests are measured at a time, and when in it the reload comes.
const LENGTH: Duration = Duration::from_millis(1800);
const AFTER: Duration = Duration::from_millis(600);
/// For finding out the capacity.
const TRIAL: Duration = Duration::from_secs(1);
/// How long a relay is left alone before its processor time or its memory is read.
const SETTLE: Duration = Duration::from_millis(300);

/// Endpoints in the larger configuration, each with a policy of its own.
const ENDPOINTS: usize = 1000;
/// Reloads after which memory is looked at again.
const MANY: u32 = 100;

/// What happens in a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    /// Nothing; twice in each round: what these two differ by is noise.
    Nothing,
    NothingAgain,
    /// The file is the same.
    Unchanged,
    /// One key is another.
    OneKey,
    /// A policy and a name for each of many endpoints, another bound for each session, one more listener and one more upstream; or all of that no more.
    Everything,
}

impl Event {
    const ALL: [Self; 5] = [
        Self::Nothing,
        Self::NothingAgain,
        Self::Unchanged,
        Self::OneKey,
        Self::Everything,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::NothingAgain => "nothing, again",
            Self::Unchanged => "a reload of the same file",
            Self::OneKey => "a reload, one key changed",
            Self::Everything => "a reload, everything changed",
        }
    }
}

/// One window.
#[derive(Clone, Debug)]
struct Window {
    event: Event,
    outcome: Outcome,
    worker: Usage,
    /// From the order to its answer.
    took: Option<Duration>,
}

/// What the relay holds.
#[derive(Clone, Copy, Debug)]
struct Held {
    memory: u64,
    /// Without those of the ledger, which is opened for a booking after names have changed, and not before.
    descriptors: usize,
}

impl Held {
    fn by(relay: &Relay) -> Self {
        thread::sleep(SETTLE);
        let descriptors = relay.descriptors().into_iter();
        let others = descriptors.filter(|link| !link.contains("/ledger.db"));
        Self {
            memory: relay.own_memory(),
            descriptors: others.count(),
        }
    }
}

/// All of it.
#[derive(Clone, Debug)]
pub(crate) struct Reloads {
    windows: Vec<Window>,
    rounds: u32,
    sessions: usize,
    /// Requests a second.
    rate: f64,
    /// Before the first, after one, and after a hundred more.
    held: [Held; 3],
    took: Duration,
}

/// A relay with its sessions.
struct Place {
    running: Running,
    ends: Ends,
    admin: String,
}

/// In rounds, through a relay of this number.
pub(crate) fn reload(
    world: &World,
    cores: &Cores,
    binary: &Path,
    number: usize,
    wanted: u32,
) -> Result<Reloads, String> {
    let began = Instant::now();
    let place = Place::start(world, cores, binary, number)?;
    let failed = |error: io::Error| format!("sessions over reloads: {error}");
    let sessions = place.ends.client.len();
    let size = Size::Fixed(SIZE);
    // Once through everything, so that buffers are there and code is in memory.
    let trial = exchange(&place.ends, size, Pace::AtOnce, TRIAL).map_err(failed)?;
    let rate = trial.units as f64 / trial.elapsed.as_secs_f64() * PART_OF_CAPACITY;
    let relay = place.relay()?;
    // Before the windows, whose reloads are counted by nobody; all of these leave the same configuration in force.
    let before = Held::by(relay);
    place.both_ways()?;
    let after_one = Held::by(relay);
    for _ in 0..MANY {
        place.both_ways()?;
    }
    let after_many = Held::by(relay);
    let mut all = Reloads {
        windows: Vec::new(),
        rounds: 0,
        sessions,
        rate,
        held: [before, after_one, after_many],
        took: Duration::ZERO,
    };
    while all.rounds < wanted && (all.rounds == 0 || began.elapsed() < BOUND) {
        for turn in shuffled(Event::ALL.len()) {
            let event = Event::ALL[turn];
            let window = place.window(event, rate);
            let failed = |error| format!("requests beside {}: {error}", event.name());
            all.windows.push(window.map_err(failed)?);
        }
        all.rounds += 1;
    }
    all.took = began.elapsed();
    Ok(all)
}

impl Place {
    fn start(world: &World, cores: &Cores, binary: &Path, number: usize) -> Result<Self, String> {
        let variant = Variant {
            role: Role::Ours,
            name: "tollgate".to_owned(),
            version: String::new(),
            settings: String::new(),
            kind: Kind::Tollgate(binary.to_owned(), Tuning::default()),
        };
        let sessions = scenes::possible();
        let running = variant.start(number, world, cores, Room::For(sessions))?;
        let address = running.address_with_header().unwrap_or(running.address());
        let headers = Arc::new(short::headers(&running));
        let ends = world
            .connect_with(number, address, sessions, &headers)
            .and_then(|ends| {
                short::once_each(&ends)?;
                Ok(ends)
            });
        Ok(Self {
            running,
            ends: ends.map_err(|error| format!("sessions: {error}"))?,
            admin: format!("127.0.0.1:{}", 9900 + number),
        })
    }

    fn relay(&self) -> Result<&Relay, String> {
        let relay = self.running.tollgate();
        relay.ok_or_else(|| "the relay is ours".to_owned())
    }

    /// A configuration with this at its end.
    fn text(&self, end: &str) -> String {
        let tuning = Tuning {
            end: end.to_owned(),
            ..Tuning::default()
        };
        settings::tollgate(self.running.number(), &self.admin, &tuning)
    }

    fn plain(&self) -> String {
        self.text("")
    }

    fn one_key(&self) -> String {
        self.text("[session]\nidle_timeout = \"50m\"\n")
    }

    fn everything(&self) -> String {
        let mut end =
            String::from("[session]\nidle_timeout = \"40m\"\n[drain]\ndeadline = \"7m\"\n");
        for number in 0..ENDPOINTS {
            let _ = write!(
                end,
                "[endpoint.\"vpce-{number:017x}\"]\nname = \"consumer {number}\"\nmax_sessions = {}\n",
                1000 + number
            );
        }
        end += "[endpoint.\"*\"]\nmax_sessions = 100000\n\
                [[upstream]]\nname = \"another\"\ntargets = [\"10.2.0.2:7\"]\n\
                [[listener]]\nname = \"another\"\nbind = \"127.0.0.1:7\"\ntrusted_peers = [\"127.0.0.1\"]\nupstream = \"another\"\n";
        self.text(&end)
    }

    /// Puts this into force; how long that took.
    fn apply(&self, text: &str) -> Result<Duration, String> {
        let relay = self.relay()?;
        relay.rewrite_config(text);
        let began = Instant::now();
        let answered = relay.reload();
        let took = began.elapsed();
        match answered.status {
            200 => Ok(took),
            status => Err(format!("the reload came to {status}: {}", answered.body)),
        }
    }

    /// Two reloads: everything changes, and changes back.
    fn both_ways(&self) -> Result<(), String> {
        self.apply(&self.everything())?;
        self.apply(&self.plain()).map(drop)
    }

    fn window(&self, event: Event, rate: f64) -> Result<Window, String> {
        let failed = |error: io::Error| error.to_string();
        let next = match event {
            Event::Nothing | Event::NothingAgain => None,
            Event::Unchanged => Some(self.plain()),
            Event::OneKey => Some(self.one_key()),
            Event::Everything => Some(self.everything()),
        };
        let process = self.running.process_id().ok_or("the relay is a process")?;
        let worker = || Usage::of_threads(process, |name| name.starts_with("worker"));
        thread::sleep(SETTLE);
        let before = worker().map_err(failed)?;
        let (outcome, took) = thread::scope(|scope| {
            let reload = next.map(|text| {
                scope.spawn(move || {
                    // In the middle of the requests.
                    thread::sleep(AFTER);
                    self.apply(&text)
                })
            });
            let outcome = exchange(&self.ends, Size::Fixed(SIZE), Pace::Rate(rate), LENGTH);
            let took = reload.map(|reload| reload.join().expect("it does not panic"));
            (outcome, took.transpose())
        });
        let window = Window {
            event,
            outcome: outcome.map_err(failed)?,
            worker: worker().map_err(failed)?.since(before),
            took: took?,
        };
        if window.took.is_some() {
            // Not in anybody's figures.
            self.apply(&self.plain())?;
        }
        Ok(window)
    }
}

impl Reloads {
    /// A figure of all windows with this event, in milliseconds.
    fn spread(&self, event: Event, figure: impl Fn(&Window) -> Option<Duration>) -> Option<Spread> {
        let windows = self.windows.iter().filter(|window| window.event == event);
        let figures = windows.filter_map(figure);
        Spread::of(figures.map(|figure| figure.as_secs_f64() * 1e3))
    }

    pub(super) fn write(&self, text: &mut String) -> Written {
        writeln!(
            text,
            "## Reload under {} sessions\n\nRequests and answers of 1 KiB over all {} sessions of 100 endpoints, {:.0} a second ({:.0} % of what the relay can do), for {LENGTH:?} at a time, in {} rounds of \
             shuffled order, {} s in all. Latency counts from when a request was due; *longest* is the longest in a window, that is the pause as a client sees it: its median over all windows and, in brackets, its least and its most. \
             Worker and all other threads of the relay share one core, so that reading and judging the file can delay a byte, too. *Nothing, again*: what differs from *nothing* is noise. *Everything*: a policy and a name for each of \
             {ENDPOINTS} endpoints, other bounds for each session, one more listener and one more upstream.\n",
            self.sessions,
            self.sessions,
            self.rate,
            PART_OF_CAPACITY * 100.0,
            self.rounds,
            self.took.as_secs(),
        )?;
        writeln!(
            text,
            "| in the window | order answered after, ms | p50, ms | p99, ms | longest, ms | worker ran, ms |\n|---|---|---|---|---|---|"
        )?;
        for event in Event::ALL {
            let latency =
                |at: usize| self.spread(event, move |window| Some(window.outcome.p50_p99?[at]));
            writeln!(
                text,
                "| {} | {} | {} | {} | {} | {} |",
                event.name(),
                shown(self.spread(event, |window| window.took)),
                shown(latency(0)),
                shown(latency(1)),
                shown(self.spread(event, |window| window.outcome.longest)),
                shown(self.spread(event, |window| Some(window.worker.ran))),
            )?;
        }
        let [before, one, many] = self.held;
        let mib = |held: Held| held.memory as f64 / 1_048_576.0;
        writeln!(
            text,
            "\nThe relay's own memory (heap and stacks) with all sessions open: {:.2} MiB before the first reload, {:.2} MiB after everything had changed and changed back once, {:.2} MiB after that had happened {MANY} times more; \
             descriptors: {}, {}, {}.\n\n{}\n",
            mib(before),
            mib(one),
            mib(many),
            before.descriptors,
            one.descriptors,
            many.descriptors,
            self.verdict()
        )
    }

    fn verdict(&self) -> String {
        let longest = |event| self.spread(event, |window| window.outcome.longest);
        let noise = [Event::Nothing, Event::NothingAgain].map(longest);
        let all = Event::ALL
            .into_iter()
            .skip(2)
            .filter_map(|event| Some((event, longest(event)?)));
        let worst = all.max_by(|one, other| one.1.median.total_cmp(&other.1.median));
        let (Some((event, worst)), [Some(first), Some(second)]) = (worst, noise) else {
            return "Verdict: nothing was measured.".to_owned();
        };
        let [_, one, many] = self.held;
        let grown = (many.memory as f64 - one.memory as f64) / 1024.0;
        format!(
            "Verdict: the longest pause is {:.1} ms in the middle and {:.1} ms at most ({}); without a reload it is {:.1} ms and {:.1} ms. {MANY} times more change memory by {grown:+.0} KiB, {} descriptors.",
            worst.median,
            worst.max,
            event.name(),
            f64::midpoint(first.median, second.median),
            first.max.max(second.max),
            many.descriptors as i64 - one.descriptors as i64
        )
    }

    pub(super) fn json(&self) -> Value {
        let seconds = |duration: Option<Duration>| duration.map(|one| one.as_secs_f64());
        json!({
            "rounds": self.rounds,
            "sessions": self.sessions,
            "requests_per_s": self.rate,
            "held": self.held.map(|held| json!({
                "memory_bytes": held.memory,
                "descriptors": held.descriptors,
            })),
            "samples": self.windows.iter().map(|window| json!({
                "in_the_window": window.event.name(),
                "requests": window.outcome.units,
                "p50_s": window.outcome.p50_p99.map(|both| both[0].as_secs_f64()),
                "p99_s": window.outcome.p50_p99.map(|both| both[1].as_secs_f64()),
                "longest_s": seconds(window.outcome.longest),
                "answered_after_s": seconds(window.took),
                "worker_ran_s": window.worker.ran.as_secs_f64(),
            })).collect::<Vec<_>>(),
        })
    }
}
