//! What came of it, in Markdown and JSON.

use std::fmt::{Result, Write};

use serde_json::{Value, json};

use super::accounting::{Accounting, INTERVAL, Interval, Keeps, WANTED};
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
        writeln!(text, "\n{}\n", self.verdict())
    }

    /// In one line: every workload with everything kept.
    fn verdict(&self) -> String {
        let of = |workload: usize| Some(Interval::of(&self.ratios(workload, Keeps::Audit))?.high);
        let highs = (0..self.workloads.len()).map(|workload| Some((of(workload)?, workload)));
        let worst = highs
            .flatten()
            .max_by(|one, other| one.0.total_cmp(&other.0));
        let Some((high, workload)) = worst else {
            return "Verdict: nothing was measured.".to_owned();
        };
        let less = (high - 1.0) * 100.0;
        let name = &self.workloads[workload].name;
        match high < WANTED {
            true => format!(
                "Verdict: **below 5 % everywhere**; at most {less:.1} % ({name}, upper end)."
            ),
            false => format!(
                "Verdict: **not below 5 % everywhere**; as much as {less:.1} % ({name}, upper end)."
            ),
        }
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
