//! The report: Markdown for people, JSON for programs.

use std::{fmt::Write, fs, time::Duration};

use serde_json::{Value, json};

use crate::{
    Sample,
    load::Workload,
    peers::{HAPROXY, NGINX, OURS, Variant},
    processor::Cores,
    summary::{Figure, Results, Spread},
};

/// What the figures belong to.
#[derive(Clone, Debug)]
pub(crate) struct Conditions {
    /// At every host.
    pub(crate) congestion: String,
    /// How many were made.
    pub(crate) rounds: u32,
    /// Of a measurement.
    pub(crate) length: Duration,
    /// All of it.
    pub(crate) took: Duration,
    /// Who ran where.
    pub(crate) cores: Cores,
}

/// Kernel and processor, as far as this machine tells.
fn machine() -> (String, String) {
    let kernel = rustix::system::uname();
    let [name, release, machine] = [kernel.sysname(), kernel.release(), kernel.machine()]
        .map(|text| text.to_string_lossy().into_owned());
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let count = info.lines().filter(|line| line.starts_with("processor"));
    let count = count.count();
    let model = info
        .lines()
        .find_map(|line| line.strip_prefix("model name"));
    let model = model.map_or("unknown", |text| text.trim_start_matches(['\t', ' ', ':']));
    (
        format!("{name} {release} {machine}"),
        format!("{model}, {count} in all"),
    )
}

/// The report as it is shown.
pub(crate) fn markdown(
    conditions: &Conditions,
    variants: &[Variant],
    workloads: &[Workload],
    samples: &[Sample],
) -> String {
    let results = Results { samples, workloads };
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = head(&mut text, conditions, variants);
    for index in 0..workloads.len() {
        let _ = table(&mut text, &results, index, variants);
    }
    let _ = verdicts(&mut text, &results, variants);
    text
}

fn head(text: &mut String, conditions: &Conditions, variants: &[Variant]) -> std::fmt::Result {
    let (kernel, processor) = machine();
    let Conditions {
        congestion,
        rounds,
        length,
        took,
        cores,
    } = conditions;
    writeln!(text, "# Side by side\n")?;
    writeln!(text, "- {kernel}; {processor}")?;
    for variant in variants.iter().filter(|variant| variant.version != "-") {
        writeln!(text, "- {}: {}", variant.name, variant.version)?;
    }
    writeln!(
        text,
        "- congestion control at every host: {congestion}; client, relay and origin in network namespaces of their own, over veth",
    )?;
    writeln!(
        text,
        "- relay on core {}, client and origin on core {}; {rounds} rounds in shuffled order, {length:?} each, {} s in all",
        cores.relay,
        cores.load,
        took.as_secs()
    )?;
    writeln!(
        text,
        "\nMedian (least to most of the rounds). *Relay* is the processor time of the relay's processes, *whole* that with client and origin; neither \
         has what kernel threads did. Ratios are of *relay*, round by round. *Busy* is the part of the time that the relay was on its core: where it is \
         well below 100 %, client and origin were the limit and throughput says nothing of the relay. *Waited*: other processes on that core; with a twentieth or \
         more of that, a relay moves more at a time and seems cheaper than it is. On one core for all there is no waiting for an idle core to wake, which \
         costs more than the relay does: that is the workload to read the price of a single transaction from.\n"
    )
}

fn table(
    text: &mut String,
    results: &Results<'_>,
    workload: usize,
    variants: &[Variant],
) -> std::fmt::Result {
    let bulk = results.workloads[workload].is_bulk();
    let unit = if bulk { "s/GB" } else { "µs each" };
    let rate = if bulk { "Gbit/s" } else { "per second" };
    writeln!(text, "## {}\n", results.workloads[workload].name)?;
    let latency = if bulk { "" } else { " p50 µs | p99 µs |" };
    writeln!(
        text,
        "| | relay, {unit} | by nginx's | by HAProxy's | whole, {unit} | {rate} |{latency} busy | waited |"
    )?;
    let columns = if bulk { 8 } else { 10 };
    writeln!(text, "|{}", "---|".repeat(columns))?;
    let index = |name: &str| variants.iter().position(|variant| variant.name == name);
    for (number, variant) in variants.iter().enumerate() {
        let ratio = |to: &str| {
            let spread = results.ratio(workload, (number, index(to)?), Figure::Relay);
            spread.filter(|_| variant.name != to)
        };
        let figure = |figure| results.figure(workload, number, figure);
        write!(
            text,
            "| {} | {} | {} | {} | {} | {} |",
            variant.name,
            shown(figure(Figure::Relay)),
            shown(ratio(NGINX)),
            shown(ratio(HAPROXY)),
            shown(figure(Figure::Whole)),
            shown(figure(Figure::Throughput)),
        )?;
        if !bulk {
            let [p50, p99] = [Figure::P50, Figure::P99].map(figure);
            write!(text, " {} | {} |", shown(p50), shown(p99))?;
        }
        let [busy, waited] = [Figure::Busy, Figure::Waited].map(|f| percent(figure(f)));
        writeln!(text, " {busy} | {waited} |")?;
    }
    writeln!(text)
}

/// What must hold, and whether it does.
fn verdicts(text: &mut String, results: &Results<'_>, variants: &[Variant]) -> std::fmt::Result {
    let index = |name: &str| variants.iter().position(|variant| variant.name == name);
    let Some(ours) = index(OURS) else {
        return Ok(());
    };
    writeln!(text, "## Verdict\n")?;
    let mut worst: Option<f64> = None;
    for (number, workload) in results.workloads.iter().enumerate() {
        for (name, peer) in [NGINX, HAPROXY].map(|name| (name, index(name))) {
            let Some(spread) =
                peer.and_then(|peer| results.ratio(number, (ours, peer), Figure::Relay))
            else {
                continue;
            };
            let unit = if workload.is_bulk() {
                "byte"
            } else {
                "transaction"
            };
            let ratio = shown(Some(spread));
            writeln!(text, "- {}: {ratio} x {name} per {unit}", workload.name)?;
            if workload.is_bulk() && name == NGINX {
                worst = Some(worst.map_or(spread.median, |worst| worst.max(spread.median)));
            }
        }
    }
    if let Some(worst) = worst {
        let verdict = if worst <= 1.0 {
            "holds"
        } else {
            "DOES NOT HOLD"
        };
        writeln!(
            text,
            "\nNot slower than nginx's stream proxy on bulk data (processor time per byte, medians): **{verdict}**, at worst {worst:.2} x."
        )?;
    }
    Ok(())
}

fn shown(spread: Option<Spread>) -> String {
    let Some(Spread { median, min, max }) = spread else {
        return "-".to_owned();
    };
    let digits = match median {
        m if m >= 100.0 => 0,
        m if m >= 10.0 => 1,
        m if m >= 1.0 => 2,
        _ => 3,
    };
    format!("{median:.digits$} ({min:.digits$} to {max:.digits$})")
}

fn percent(spread: Option<Spread>) -> String {
    spread.map_or("-".to_owned(), |spread| {
        format!("{:.0} %", spread.median * 100.0)
    })
}

/// Everything, each sample included.
pub(crate) fn json(
    conditions: &Conditions,
    variants: &[Variant],
    workloads: &[Workload],
    samples: &[Sample],
) -> String {
    let (kernel, processor) = machine();
    let value = json!({
        "kernel": kernel,
        "processor": processor,
        "congestion_control": conditions.congestion,
        "rounds": conditions.rounds,
        "seconds_each": conditions.length.as_secs_f64(),
        "seconds_in_all": conditions.took.as_secs_f64(),
        "relays": variants.iter().map(|v| json!({ "name": v.name, "version": v.version })).collect::<Vec<_>>(),
        "workloads": workloads.iter().map(|w| &w.name).collect::<Vec<_>>(),
        "samples": samples.iter().map(|s| sample(s, variants, workloads)).collect::<Vec<_>>(),
    });
    format!("{value:#}\n")
}

fn sample(sample: &Sample, variants: &[Variant], workloads: &[Workload]) -> Value {
    let workload = &workloads[sample.workload];
    let mut value = json!({
        "round": sample.round,
        "workload": workload.name,
        "relay": variants[sample.variant].name,
        "units": sample.outcome.units,
        "seconds": sample.outcome.elapsed.as_secs_f64(),
    });
    for figure in Figure::ALL {
        value[figure.name(workload.is_bulk())] = json!(figure.value(sample, workload));
    }
    value
}
