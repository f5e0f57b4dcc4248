//! The report: Markdown for people, JSON for programs.

use std::{
    fmt::{Result, Write},
    fs,
    time::Duration,
};

use serde_json::{Value, json};

use crate::{
    far::{FirstByte, Flows},
    names::Names,
    processor::Cores,
    rounds::Sample,
    scenes::{Idle, Stalled},
    summary::{Figure, Results, Spread},
    variant::Role,
    verdict,
    workload::Unit,
};

/// What was measured, and under which conditions.
#[derive(Debug)]
pub(crate) struct Report<'a> {
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
    /// What is not there, and why.
    pub(crate) left_out: Vec<String>,
    /// Requests a second beside bulk.
    pub(crate) rate: Option<f64>,
    /// Bytes of a packet where they are to be small.
    pub(crate) packet: Option<Spread>,
    /// In rounds.
    pub(crate) results: Results<'a>,
    /// Once.
    pub(crate) idle: Vec<Idle>,
    pub(crate) stalled: Vec<Stalled>,
    /// Over a long way, in rounds of their own.
    pub(crate) first_byte: Option<FirstByte>,
    pub(crate) flows: Option<Flows>,
    /// In rounds of their own.
    pub(crate) names: Option<Names>,
}

/// Kernel and processor, as far as this machine tells.
pub(crate) fn machine() -> (String, String) {
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

impl Report<'_> {
    /// The report as it is shown.
    pub(crate) fn markdown(&self) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = self.write(&mut text);
        text
    }

    fn write(&self, text: &mut String) -> Result {
        self.head(text)?;
        verdict::write(text, self)?;
        writeln!(text, "![medians, least to most](results.svg)\n")?;
        self.legend(text)?;
        for index in 0..self.results.workloads.len() {
            self.table(text, index)?;
        }
        self.idle(text)?;
        self.stalled(text)?;
        let variants = self.results.variants;
        if let Some(first_byte) = &self.first_byte {
            first_byte.write(text, variants)?;
        }
        if let Some(flows) = &self.flows {
            flows.write(text, variants)?;
        }
        self.names
            .as_ref()
            .map_or(Ok(()), |names| names.write(text))
    }

    fn head(&self, text: &mut String) -> Result {
        let (kernel, processor) = machine();
        let (cores, took) = (self.cores, self.took.as_secs());
        writeln!(text, "# Side by side\n")?;
        writeln!(text, "- {kernel}; {processor}")?;
        writeln!(
            text,
            "- congestion control at every host: {}; client, relay and origin in network namespaces of their own, over veth",
            self.congestion
        )?;
        writeln!(
            text,
            "- relay on core {} with one worker, client and origin on core {}; {} rounds in shuffled order, {:?} each, {took} s in all",
            cores.relay, cores.load, self.rounds, self.length
        )?;
        if let Some(Spread { median, min, max }) = self.packet {
            writeln!(
                text,
                "- MTU-sized fragments: the sender's pages have 1,448 bytes each in them, many to a packet, as GRO joins what a network card delivered. \
                 MTU-sized packets: the same with one to a packet, TSO off (`gso_max_segs 1`) and GRO too: packets of {min:.0} to {max:.0} bytes on average (middle {median:.0})"
            )?;
        }
        if let Some(rate) = self.rate {
            writeln!(
                text,
                "- requests beside bulk: {rate:.0} a second, 30 % of what the slowest of tollgate, HAProxy and nginx did with 1 KiB on 64 connections in the first round"
            )?;
        }
        for left_out in &self.left_out {
            writeln!(text, "- {left_out}")?;
        }
        writeln!(
            text,
            "\n| | version | settings beyond one worker, a listener, an upstream |\n|---|---|---|"
        )?;
        for variant in self.results.variants {
            let (name, version, settings) = (&variant.name, &variant.version, &variant.settings);
            writeln!(text, "| {name} | {version} | {settings} |")?;
        }
        writeln!(
            text,
            "\nHAProxy 2.6 considers `splice-auto` only when a session's task runs, which in a steady flow can be as late as its timers, here a minute: \
             the short flows of this benchmark it copies. *HAProxy splice* does from the first byte what `splice-auto` comes to do; what is wanted by \
             HAProxy's splicing is judged against that one.\n"
        )
    }

    fn legend(&self, text: &mut String) -> Result {
        writeln!(
            text,
            "## Figures\n\nMedian (least to most of the rounds). *Relay* is the processor time of the relay's processes. *Machine* is the time that both cores were \
             not idle, in steps of 10 ms: it has the work of interrupts and kernel threads in it, all of what the kernel's NAT does, and whatever other programs \
             did; *others* is that without relay, client and origin, as a part of one core. Ratios are of *relay*, round by round. *Busy* is the part of the time that \
             the relay was on its core: where it is well below 100 %, client and origin were the limit and throughput says nothing of the relay. *Waited*: other \
             processes on that core; with a twentieth or more of that, a relay moves more at a time and seems cheaper than it is. On one core for all there is no \
             waiting for an idle core to wake, which costs more than the relay does: that is the workload to read the price of a single transaction from. Who receives bulk throws it away in the kernel (MSG_TRUNC), \
             so that the relay and not its load is the limit; that makes going without a relay, all on one core and in its caches, cheaper than any program could have it. \
             Where the whole machine is judged, it copies.\n"
        )
    }

    fn table(&self, text: &mut String, workload: usize) -> Result {
        let (results, what) = (&self.results, &self.results.workloads[workload]);
        let unit = what.unit();
        let (each, rate) = match unit {
            Unit::Byte => ("s/GB", "Gbit/s"),
            Unit::Transaction => ("µs each", "per second"),
            Unit::Both => ("s/GB", "bulk, Gbit/s"),
        };
        writeln!(text, "### {}\n", what.name)?;
        let latency = match unit {
            Unit::Byte => "",
            Unit::Transaction => " p50 µs | p99 µs |",
            Unit::Both => " requests/s | p50 µs | p99 µs |",
        };
        writeln!(
            text,
            "| | relay, {each} | tollgate's by it | machine, {each} | {rate} |{latency} busy | waited | others |"
        )?;
        let columns = match unit {
            Unit::Byte => 8,
            Unit::Transaction => 10,
            Unit::Both => 11,
        };
        writeln!(text, "|{}", "---|".repeat(columns))?;
        let has = |role| {
            results
                .variant(role)
                .filter(|number| results.has(workload, *number))
        };
        let ours = has(Role::Ours).or_else(|| has(Role::OursAmongIdle));
        for (number, variant) in results.variants.iter().enumerate() {
            if !results.has(workload, number) {
                continue;
            }
            let ratio = ours
                .filter(|ours| *ours != number)
                .and_then(|ours| results.ratio(workload, (ours, number), Figure::Relay));
            let figure = |figure| results.figure(workload, number, figure);
            write!(
                text,
                "| {} | {} | {} | {} | {} |",
                variant.name,
                shown(figure(Figure::Relay)),
                shown(ratio),
                shown(figure(Figure::Machine)),
                shown(figure(Figure::Throughput)),
            )?;
            if unit == Unit::Both {
                write!(text, " {} |", shown(figure(Figure::Transactions)))?;
            }
            if unit != Unit::Byte {
                let [p50, p99] = [Figure::P50, Figure::P99].map(figure);
                write!(text, " {} | {} |", shown(p50), shown(p99))?;
            }
            let [busy, waited, others] =
                [Figure::Busy, Figure::Waited, Figure::Others].map(|f| percent(figure(f)));
            writeln!(text, " {busy} | {waited} | {others} |")?;
        }
        writeln!(text)
    }

    fn idle(&self, text: &mut String) -> Result {
        let Some(first) = self.idle.first() else {
            return Ok(());
        };
        let direct = self.idle.iter().find(|idle| idle.role == Role::NoRelay);
        let direct = direct.map(|idle| idle.slab);
        writeln!(
            text,
            "### {} idle sessions\n\nEach came with a PROXY v2 header, from 100 endpoints in turn, and has carried 100 B each way. User memory is PSS of all processes of the relay. \
             Slab is the whole machine's growth; the relay's is that less the growth without a relay, which is what the sessions' ends cost. What a relay sets aside \
             for connections before the first comes is in *at rest*.\n",
            first.sessions
        )?;
        writeln!(
            text,
            "| | user, KiB each | relay's slab, KiB each | slab, KiB each | descriptors each | ends of pipes, in all | at rest, MiB |\n|---|---|---|---|---|---|---|"
        )?;
        for idle in &self.idle {
            let without = direct.filter(|_| idle.role != Role::NoRelay);
            let slab = without.map_or("-".to_owned(), |direct| {
                format!("{:.1}", (idle.slab - direct) / 1024.0)
            });
            #[expect(clippy::cast_precision_loss, reason = "some thousands")]
            let pipes = idle.pipes * idle.sessions as f64;
            writeln!(
                text,
                "| {} | {:.2} | {slab} | {:.1} | {:.2} | {pipes:.0} | {:.1} |",
                idle.relay,
                idle.user / 1024.0,
                idle.slab / 1024.0,
                idle.descriptors,
                idle.at_rest / 1_048_576.0
            )?;
        }
        writeln!(text)
    }

    fn stalled(&self, text: &mut String) -> Result {
        if self.stalled.is_empty() {
            return Ok(());
        }
        writeln!(
            text,
            "### Stalled receiver\n\nOne flow to the client, which reads 64 MiB and then no more; the origin sends until nothing moves. *Taken* is what it could send beyond \
             what was read, *in sockets* the part of it that lay in queues of sockets at all three hosts; the rest is in the relay's buffers and pipes. Sockets may take 6 MiB \
             to receive and 4 MiB to send (`tcp_rmem`, `tcp_wmem` as Linux ships them).\n\n| | taken, MiB | in sockets, MiB | held by the relay, KiB |\n|---|---|---|---|"
        )?;
        for stalled in &self.stalled {
            #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
            let [taken, sockets] = [stalled.taken, stalled.in_sockets].map(|bytes| bytes as f64);
            writeln!(
                text,
                "| {} | {:.2} | {:.2} | {:.0} |",
                stalled.relay,
                taken / 1_048_576.0,
                sockets / 1_048_576.0,
                (taken - sockets) / 1024.0
            )?;
        }
        writeln!(text)
    }

    /// Everything, each sample included.
    pub(crate) fn json(&self) -> String {
        let (kernel, processor) = machine();
        let Results {
            samples,
            workloads,
            variants,
        } = self.results;
        let value = json!({
            "kernel": kernel,
            "processor": processor,
            "congestion_control": self.congestion,
            "rounds": self.rounds,
            "seconds_each": self.length.as_secs_f64(),
            "seconds_in_all": self.took.as_secs_f64(),
            "requests_per_s_beside_bulk": self.rate,
            "left_out": self.left_out,
            "relays": variants.iter().map(|v| json!({ "name": v.name, "version": v.version, "settings": v.settings })).collect::<Vec<_>>(),
            "workloads": workloads.iter().map(|w| &w.name).collect::<Vec<_>>(),
            "samples": samples.iter().map(|s| self.sample(s)).collect::<Vec<_>>(),
            "idle": self.idle.iter().map(|idle| json!({
                "relay": idle.relay,
                "sessions": idle.sessions,
                "user_bytes_each": idle.user,
                "slab_bytes_each": idle.slab,
                "descriptors_each": idle.descriptors,
                "pipe_ends_each": idle.pipes,
                "user_bytes_at_rest": idle.at_rest,
            })).collect::<Vec<_>>(),
            "stalled": self.stalled.iter().map(|stalled| json!({
                "relay": stalled.relay,
                "bytes_taken": stalled.taken,
                "bytes_in_sockets": stalled.in_sockets,
            })).collect::<Vec<_>>(),
            "first_byte": self.first_byte.as_ref().map(|first_byte| first_byte.json(variants)),
            "long_flow": self.flows.as_ref().map(|flows| flows.json(variants)),
            "names": self.names.as_ref().map(Names::json),
        });
        format!("{value:#}\n")
    }

    fn sample(&self, sample: &Sample) -> Value {
        let workload = &self.results.workloads[sample.workload];
        let outcome = &sample.measured.outcome;
        let mut value = json!({
            "round": sample.round,
            "workload": workload.name,
            "relay": self.results.variants[sample.variant].name,
            "units": outcome.units,
            "bytes": outcome.bytes,
            "seconds": outcome.elapsed.as_secs_f64(),
        });
        for figure in Figure::ALL {
            if let Some(number) = figure.value(sample, workload) {
                value[figure.name(workload.unit())] = json!(number);
            }
        }
        value
    }
}

/// Median and range, to about three digits.
pub(crate) fn shown(spread: Option<Spread>) -> String {
    let Some(Spread { median, min, max }) = spread else {
        return "-".to_owned();
    };
    let digits = match median {
        m if m >= 100.0 => 0,
        m if m >= 10.0 => 1,
        m if m >= 1.0 => 2,
        _ => 3,
    };
    // What was measured once has no range.
    match (min - max).abs() < f64::EPSILON {
        true => format!("{median:.digits$}"),
        false => format!("{median:.digits$} ({min:.digits$} to {max:.digits$})"),
    }
}

fn percent(spread: Option<Spread>) -> String {
    spread.map_or("-".to_owned(), |spread| {
        format!("{:.0} %", spread.median * 100.0)
    })
}
