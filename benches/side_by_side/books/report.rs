//! What came of it, in Markdown and JSON.

use std::fmt::{Result, Write};

use serde_json::{Value, json};

use super::{
    accounting::{Accounting, INTERVAL, Interval, Keeps, WANTED},
    beside::{
        ACCOUNTS, Beside, Besides, CONNECTIONS, DAYS, ENDPOINTS, Figure, LENGTH, PART_OF_CAPACITY,
    },
};
use crate::{
    processor::Cores,
    report::{machine, shown},
    workload::Unit,
};

/// Both parts, as far as they were made.
#[derive(Debug)]
pub(crate) struct Report {
    /// At every host.
    pub(crate) congestion: String,
    /// Who ran where.
    pub(crate) cores: Cores,
    pub(crate) accounting: Option<Accounting>,
    pub(crate) beside: Option<Besides>,
}

impl Report {
    /// As it is shown.
    pub(crate) fn markdown(&self) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = self.write(&mut text);
        text
    }

    fn write(&self, text: &mut String) -> Result {
        let (kernel, processor) = machine();
        let Cores { load, relay } = self.cores;
        writeln!(text, "# Books\n\n- {kernel}; {processor}")?;
        writeln!(
            text,
            "- congestion control at every host: {}; client, relay and origin in network namespaces of their own, over veth; relay with one worker and all its \
             other threads on core {relay}, client and origin on core {load}\n",
            self.congestion
        )?;
        if let Some(accounting) = &self.accounting {
            accounting.write(text)?;
        }
        if let Some(beside) = &self.beside {
            beside.write(text)?;
        }
        Ok(())
    }

    /// Each sample.
    pub(crate) fn json(&self) -> String {
        let (kernel, processor) = machine();
        let value = json!({
            "kernel": kernel,
            "processor": processor,
            "congestion_control": self.congestion,
            "accounting": self.accounting.as_ref().map(Accounting::json),
            "beside": self.beside.as_ref().map(Besides::json),
        });
        format!("{value:#}\n")
    }
}

impl Accounting {
    fn write(&self, text: &mut String) -> Result {
        writeln!(
            text,
            "## What accounting costs\n\nProcessor time of all threads of the relay for each byte or transaction, by that of a build without books (cargo feature `no-accounting`: no counter, no ledger, no \
             audit trail, otherwise the same). {} rounds in shuffled order, {:?} each, {} s in all; ratios within a round, their median, and where it lies for 95 of 100 sets of \
             rounds (bootstrap). *Nothing, again* is the build without books once more: noise. Ledger and audit trail are files on a disk, booked every {INTERVAL} (shipped: 10s). Short connections \
             come from 100 endpoints in turn, and each writes two audit records.\n",
            self.rounds,
            self.length,
            self.took.as_secs(),
        )?;
        writeln!(
            text,
            "| | keeps | relay, each | by nothing | 95 % interval | upper end below {WANTED} | waited |\n|---|---|---|---|---|---|---|"
        )?;
        for (workload, what) in self.workloads.iter().enumerate() {
            let (unit, scale) = match what.unit() {
                Unit::Transaction => ("µs", 1.0),
                // A microsecond for each byte is a thousand seconds for each GB.
                Unit::Byte | Unit::Both => ("s/GB", 1e3),
            };
            for keeps in Keeps::ALL {
                let each = self.each(workload, keeps).map(|each| each.times(scale));
                let waited = self.waited(workload, keeps);
                let waited = waited.map_or(f64::NAN, |waited| waited.median * 100.0);
                write!(
                    text,
                    "| {} | {} | {} {unit} |",
                    what.name,
                    keeps.name(),
                    shown(each)
                )?;
                match Interval::of(&self.ratios(workload, keeps)) {
                    Some(ratio) if keeps != Keeps::Nothing => {
                        let Interval { median, low, high } = ratio;
                        let verdict = match keeps {
                            Keeps::NothingAgain => "-",
                            _ if high < WANTED => "yes",
                            _ => "**no**",
                        };
                        write!(text, " {median:.3} | {low:.3} to {high:.3} | {verdict} |")?;
                    }
                    _ => write!(text, " - | - | - |")?,
                }
                writeln!(text, " {waited:.0} % |")?;
            }
        }
        writeln!(text)?;
        for keeps in [Keeps::Ledger, Keeps::Audit] {
            writeln!(text, "{}\n", self.verdict(keeps))?;
        }
        Ok(())
    }

    /// In one line: the workload that pays most for it.
    fn verdict(&self, keeps: Keeps) -> String {
        let of = |workload: usize| Interval::of(&self.ratios(workload, keeps));
        let all = (0..self.workloads.len()).filter_map(|workload| Some((workload, of(workload)?)));
        let worst = all.max_by(|one, other| one.1.high.total_cmp(&other.1.high));
        let name = keeps.name();
        let Some((workload, Interval { median, low, high })) = worst else {
            return format!("Verdict, {name}: nothing was measured.");
        };
        let [median, low, high_in_percent] = [median, low, high].map(|ratio| (ratio - 1.0) * 100.0);
        let below = match high < WANTED {
            true => "**below 5 % everywhere**",
            false => "**not below 5 % everywhere**",
        };
        let what = &self.workloads[workload].name;
        format!(
            "Verdict, {name}: {below}; most in {what}: {median:.1} % ({low:.1} % to {high_in_percent:.1} %)."
        )
    }

    fn json(&self) -> Value {
        json!({
            "rounds": self.rounds,
            "seconds_each": self.length.as_secs_f64(),
            "ledger_interval": INTERVAL,
            "samples": self.measured.iter().map(|one| json!({
                "round": one.round,
                "workload": self.workloads[one.workload].name,
                "keeps": one.keeps.name(),
                "units": one.outcome.units,
                "seconds": one.outcome.elapsed.as_secs_f64(),
                "relay_s": one.relay.ran.as_secs_f64(),
                "waited_s": one.relay.waited.as_secs_f64(),
            })).collect::<Vec<_>>(),
        })
    }
}

impl Besides {
    fn write(&self, text: &mut String) -> Result {
        writeln!(
            text,
            "## Requests beside the books\n\nRequests and answers of 1 KiB on {CONNECTIONS} connections, {:.0} a second ({:.0} % of what the relay can do), for {LENGTH:?} at a time, in {} rounds of shuffled order, {} s in all. \
             Latency counts from when a request was due. Worker and all other threads of the relay share one core, so that whatever they do could delay a byte; with a core to spare it delays none. *Nothing, again*: what differs \
             from *nothing* is noise.\n\n\
             The relay has {ACCOUNTS} accounts in memory. *Scrapes* of `/metrics`, *reports* (`/usage` by endpoint and month over a ledger of {DAYS} days with {ENDPOINTS} endpoints in each hour: {} rows, {:.0} MiB, made in {:.1} s) \
             follow each other as fast as they are answered. *A booking* is one of all {ACCOUNTS} accounts, each of which has changed, in one transaction on a disk.\n",
            self.rate,
            PART_OF_CAPACITY * 100.0,
            self.rounds,
            self.took.as_secs(),
            self.rows,
            self.ledger as f64 / 1_048_576.0,
            self.made_in.as_secs_f64(),
        )?;
        writeln!(
            text,
            "| beside | answer takes, ms | KiB | p50, µs | p99, µs | p99 by that beside nothing | 95 % interval | worker, µs each | by nothing | others, of a core | worker waited |\n|---|---|---|---|---|---|---|---|---|---|---|"
        )?;
        for beside in Beside::ALL {
            let figure = |figure| self.figure(beside, figure);
            let percent = |part| figure(part).map_or(f64::NAN, |part| part.median * 100.0);
            let ratio = |of| match beside {
                Beside::Nothing => None,
                _ => self.ratio(beside, of),
            };
            let [p99, worker] = [Figure::P99, Figure::Worker].map(ratio);
            let median = |ratio: Option<Interval>| {
                ratio.map_or("-".to_owned(), |ratio| format!("{:.2}", ratio.median))
            };
            let (took, bytes) = self.answers(beside);
            writeln!(
                text,
                "| {} | {} | {} | {} | {} | {} | {} | {} | {} | {:.1} % | {:.1} % |",
                beside.name(),
                shown(took),
                bytes.map_or("-".to_owned(), |bytes| format!(
                    "{:.0}",
                    bytes.median / 1024.0
                )),
                shown(figure(Figure::P50)),
                shown(figure(Figure::P99)),
                median(p99),
                p99.map_or("-".to_owned(), |p99| format!(
                    "{:.2} to {:.2}",
                    p99.low, p99.high
                )),
                shown(figure(Figure::Worker)),
                median(worker),
                percent(Figure::Others),
                percent(Figure::Waited),
            )?;
        }
        writeln!(text, "\n{}\n", self.verdict())
    }

    /// In one line: whether any p99 is beyond what the noise is.
    fn verdict(&self) -> String {
        let p99 = |beside| self.ratio(beside, Figure::P99);
        let Some(noise) = p99(Beside::NothingAgain) else {
            return "Verdict: nothing was measured.".to_owned();
        };
        let busy = Beside::ALL.into_iter().skip(2);
        let beyond = busy.filter(|beside| p99(*beside).is_some_and(|p99| p99.low > noise.high));
        let beyond: Vec<_> = beyond.map(Beside::name).collect();
        match beyond.is_empty() {
            true => format!(
                "Verdict: p99 is **unchanged within noise** ({:.2} to {:.2}) beside all of them.",
                noise.low, noise.high
            ),
            false => format!(
                "Verdict: p99 is **beyond noise** ({:.2} to {:.2}) beside: {}.",
                noise.low,
                noise.high,
                beyond.join(", ")
            ),
        }
    }

    fn json(&self) -> Value {
        json!({
            "rounds": self.rounds,
            "requests_per_s": self.rate,
            "ledger_rows": self.rows,
            "ledger_bytes": self.ledger,
            "ledger_made_in_s": self.made_in.as_secs_f64(),
            "samples": self.measured.iter().map(|one| json!({
                "round": one.round,
                "beside": one.beside.name(),
                "p50_us": one.figure(Figure::P50),
                "p99_us": one.figure(Figure::P99),
                "worker_us_each": one.figure(Figure::Worker),
                "others_of_a_core": one.figure(Figure::Others),
                "worker_waited": one.figure(Figure::Waited),
                "answers": one.answers.iter().map(|(took, bytes)| json!({
                    "ms": took.as_secs_f64() * 1e3,
                    "bytes": bytes,
                })).collect::<Vec<_>>(),
            })).collect::<Vec<_>>(),
        })
    }
}
