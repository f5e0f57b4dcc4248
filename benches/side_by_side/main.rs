//! The relay beside HAProxy, nginx's stream proxy, the kernel's NAT and no relay at all, in one run on one machine.
//!
//! `make bench`, or `cargo bench --bench side_by_side`. Three hosts (network namespaces, no root needed) in a row: client, relay, origin. The
//! relay under test has a core of its own, client and origin share another one. Every round starts each relay anew and takes every
//! workload through each of its relays in a shuffled order, so that whatever else the machine does meets all alike. The figures to look at are
//! ratios of processor time per byte or transaction; absolute ones belong to the machine.
//!
//! Beside these rounds: memory of idle sessions (`idle`) and a receiver that reads no more (`stalled`), once each; agents and one flow over 220 ms
//! (`first-byte`, `long-flow`: [`far`]) and thousands of names (`names`), in rounds of their own. What the books cost (`accounting`), and whom they delay (`books`), has a report of its own, too, and so have what limits cost and whom
//! they protect (`limits`), and what a reload does to thousands of sessions (`reload`).
//!
//! The environment can change: `BENCH_ROUNDS` (5; parts beside these have their own number), `BENCH_SECONDS` (0.6 per measurement), `BENCH_ONLY` (parts of the names of workloads, by
//! comma, or of the parts just named), `BENCH_RELAYS` (likewise for relays), `CONGESTION` (reno), `NGINX` and `HAPROXY` (other binaries),
//! `TOLLGATE_BASE` (another tollgate, to compare a change with what was before), `BENCH_CONFIG` (text for the end of tollgate's configuration),
//! `TOLLGATE_WITHOUT` (a tollgate without books, if it is not to be built), `BENCH_PERF` (1: a profile of each measurement, see benches/PROFILE.md), `BENCH_RECORD` (1: the
//! reports also become benches/RESULTS.md, benches/BOOKS.md, benches/LIMITS.md and benches/OPERATE.md). They go to standard output and to `benches/out/`, as Markdown, JSON and SVG.

use std::{
    env, fs,
    io::{self, Write},
    path::Path,
    process::ExitCode,
    time::{Duration, Instant},
};

mod books;
mod exchange;
mod far;
#[path = "../../integration/harness/mod.rs"]
pub mod harness;
mod lab;
mod limits;
mod load;
mod names;
mod operate;
mod peers;
mod plot;
mod processor;
mod profile;
mod report;
mod rounds;
mod scenes;
mod settings;
mod short;
mod summary;
mod variant;
mod verdict;
mod workload;

use lab::World;
use processor::Cores;
use rounds::Rounds;
use summary::Results;

/// Longest run of the rounds: no more are begun beyond it, and nothing is measured twice that would lead there. The last may take two minutes
/// longer.
const BOUND: Duration = Duration::from_secs(660);

/// What is measured beside workloads, as `BENCH_ONLY` calls it.
const PARTS: [&str; 9] = [
    IDLE, STALLED, FIRST_BYTE, LONG_FLOW, NAMES, ACCOUNTING, BOOKS, LIMITS, RELOAD,
];
const IDLE: &str = "idle";
const STALLED: &str = "stalled";
const FIRST_BYTE: &str = "first-byte";
const LONG_FLOW: &str = "long-flow";
const NAMES: &str = "names";
const ACCOUNTING: &str = "accounting";
const BOOKS: &str = "books";
const LIMITS: &str = "limits";
const RELOAD: &str = "reload";

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
    let part = |name: &str| env::var("BENCH_ONLY").map_or(true, |words| words.contains(name));
    // On all cores, and before the clock starts.
    let without = match part(ACCOUNTING) {
        true => Some(books::without_books()?),
        false => None,
    };
    let began = Instant::now();
    let cores = Cores::split()?;
    scenes::raise_limit();
    let wanted: u32 = setting("BENCH_ROUNDS", 5)?;
    let length = Duration::from_secs_f64(setting("BENCH_SECONDS", 0.6)?);
    let congestion = env::var("CONGESTION").unwrap_or_else(|_| "reno".to_owned());
    allowed(&congestion)?;
    let world = World::new(&congestion);
    let (variants, mut left_out) = variant::variants(&world.nat)?;
    let variants = chosen("BENCH_RELAYS", variants, |variant| &variant.name)?;
    let workloads = match chosen("BENCH_ONLY", workload::workloads(), |workload| {
        &workload.name
    }) {
        Err(_) if PARTS.into_iter().any(part) => Vec::new(),
        workloads => workloads?,
    };
    let idle = match part(IDLE) {
        true => scenes::idle(&world, &cores, &variants)?,
        false => Vec::new(),
    };
    let stalled = match part(STALLED) {
        true => scenes::stalled(&world, &cores, &variants)?,
        false => Vec::new(),
    };
    let mut rounds = Rounds {
        world: &world,
        cores: &cores,
        variants: &variants,
        workloads: &workloads,
        length,
        unhurried: began,
        rate: None,
        packet: None,
    };
    let (mut samples, mut done) = (Vec::new(), 0);
    while done < wanted && began.elapsed() < BOUND && !workloads.is_empty() {
        rounds.unhurried = began + BOUND * (done + 1) / wanted;
        samples.extend(rounds.round(done)?);
        done += 1;
        let took = began.elapsed().as_secs();
        let _ = writeln!(io::stderr(), "round {done} of {wanted}, {took} s");
    }
    // Rounds of their own, as many as their small differences need.
    let rounds_of = |default: u32| setting("BENCH_ROUNDS", default);
    let mut first_byte = None;
    let mut flows = None;
    match far::possible() {
        Err(why) if part(FIRST_BYTE) || part(LONG_FLOW) => left_out.push(why),
        Err(_) => {}
        Ok(()) => {
            // What the preset for a long way wishes for, and all get it alike.
            let bbr = env::var_os("CONGESTION").is_none() && allowed("bbr").is_ok();
            let congestion = if bbr { "bbr" } else { &congestion };
            if part(FIRST_BYTE) {
                let rounds = rounds_of(far::ROUNDS_OF_AGENTS)?;
                first_byte = Some(far::first_byte(&variants, &cores, congestion, rounds)?);
            }
            if part(LONG_FLOW) {
                let rounds = rounds_of(far::ROUNDS_OF_FLOWS)?;
                flows = Some(far::flows(&variants, &cores, congestion, rounds)?);
            }
        }
    }
    let names = match part(NAMES) {
        true => {
            let rounds = rounds_of(names::ROUNDS)?;
            names::names(&world, &cores, &variants, rounds, length)?
        }
        false => None,
    };
    // Ports behind those of names.
    let (first, with) = (variants.len() + 2, harness::relay::binary());
    let accounting = match &without {
        Some(without) => {
            let rounds = rounds_of(books::accounting::ROUNDS)?;
            let builds = (with.as_path(), without.as_path());
            let made = books::accounting::accounting(&world, &cores, builds, first, rounds, length);
            Some(made?)
        }
        None => None,
    };
    let beside = match part(BOOKS) {
        true => {
            let rounds = rounds_of(books::beside::ROUNDS)?;
            Some(books::beside::beside(&world, &cores, &with, first, rounds)?)
        }
        false => None,
    };
    let books = books::Report {
        congestion: congestion.clone(),
        cores,
        accounting,
        beside,
    };
    if books.accounting.is_some() || books.beside.is_some() {
        record_books(&books)?;
    }
    if part(LIMITS) {
        let cost_rounds = rounds_of(limits::cost::ROUNDS)?;
        let noise_rounds = rounds_of(limits::noise::ROUNDS)?;
        record_limits(&limits::Report {
            congestion: congestion.clone(),
            cores,
            cost: limits::cost::cost(&world, &cores, &with, first, cost_rounds, length)?,
            noise: limits::noise::noises(&world, &cores, &with, first + 2, noise_rounds)?,
        })?;
    }
    // Behind those of the books.
    let reload = match part(RELOAD) {
        true => {
            let rounds = rounds_of(operate::reload::ROUNDS)?;
            let made = operate::reload::reload(&world, &cores, &with, first + 2, rounds);
            Some(made?)
        }
        false => None,
    };
    let operate = operate::Report {
        congestion: congestion.clone(),
        cores,
        reload,
    };
    if operate.reload.is_some() {
        record_operate(&operate)?;
    }
    let results = Results {
        samples: &samples,
        workloads: &workloads,
        variants: &variants,
    };
    let report = report::Report {
        congestion,
        rounds: done,
        length,
        took: began.elapsed(),
        cores,
        left_out,
        rate: rounds.rate,
        packet: rounds.packet,
        results,
        idle,
        stalled,
        first_byte,
        flows,
        names,
    };
    let others = PARTS
        .into_iter()
        .filter(|name| ![ACCOUNTING, BOOKS, LIMITS, RELOAD].contains(name));
    if done == 0 && !others.into_iter().any(part) {
        return Ok(());
    }
    record(&report)
}

/// Whether a network namespace may have this congestion control.
fn allowed(congestion: &str) -> Result<(), String> {
    let allowed = fs::read_to_string("/proc/sys/net/ipv4/tcp_allowed_congestion_control");
    let allowed = allowed.unwrap_or_default();
    match allowed.split_whitespace().any(|one| one == congestion) {
        true => Ok(()),
        false => Err(format!(
            "CONGESTION={congestion}: allowed here: {} (modprobe tcp_{congestion}, then sysctl net.ipv4.tcp_allowed_congestion_control)",
            allowed.trim()
        )),
    }
}

/// The report on the relays, everywhere it belongs.
fn record(report: &report::Report<'_>) -> Result<(), String> {
    let (text, json, plot) = (report.markdown(), report.json(), plot::svg(report));
    say(&text);
    let files = [
        ("side_by_side.md", Some("RESULTS.md"), &*text),
        ("side_by_side.json", None, &*json),
        ("results.svg", Some("results.svg"), &*plot),
    ];
    write(&files)
}

/// That on the books, likewise.
fn record_books(report: &books::Report) -> Result<(), String> {
    let (text, json) = (report.markdown(), report.json());
    say(&text);
    write(&[
        ("books.md", Some("BOOKS.md"), &*text),
        ("books.json", None, &*json),
    ])
}

/// That on operation, likewise.
fn record_operate(report: &operate::Report) -> Result<(), String> {
    let (text, json) = (report.markdown(), report.json());
    say(&text);
    write(&[
        ("operate.md", Some("OPERATE.md"), &*text),
        ("operate.json", None, &*json),
    ])
}

/// That on limits, likewise.
fn record_limits(report: &limits::Report) -> Result<(), String> {
    let (text, json) = (report.markdown(), report.json());
    say(&text);
    write(&[
        ("limits.md", Some("LIMITS.md"), &*text),
        ("limits.json", None, &*json),
    ])
}

/// Writes files to benches/out, and where they are to be kept to benches, by the name that they have there.
fn write(files: &[(&str, Option<&str>, &str)]) -> Result<(), String> {
    let keep = env::var("BENCH_RECORD").is_ok_and(|value| value == "1");
    let kept = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches");
    let out = profile::folder();
    for (name, kept_as, text) in files {
        let kept = kept_as.filter(|_| keep).map(|name| kept.join(name));
        for path in [Some(out.join(name)), kept].into_iter().flatten() {
            let folder = path.parent().unwrap_or(&out);
            fs::create_dir_all(folder)
                .and_then(|()| fs::write(&path, text))
                .map_err(|error| format!("{}: {error}", path.display()))?;
        }
    }
    Ok(())
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
