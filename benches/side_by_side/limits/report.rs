//! What came of it, in Markdown and JSON.

use std::fmt::{Result, Write};

use serde_json::{Value, json};

use super::{
    Report,
    cost::{Cost, Holds},
    noise::{COMING, CONNECTIONS, Figure, LENGTH, MOVING, Noise, Noises, PART_OF_CAPACITY},
};
use crate::{
    books::accounting::Interval,
    processor::Cores,
    report::{machine, shown},
    workload::Unit,
};

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
        writeln!(text, "# Limits\n\n- {kernel}; {processor}")?;
        writeln!(
            text,
            "- congestion control at every host: {}; client, relay and origin in network namespaces of their own, over veth; relay with one worker on core \
             {relay}, client and origin on core {load}\n",
            self.congestion
        )?;
        self.cost.write(text)?;
        self.noise.write(text)
    }

    /// Each sample.
    pub(crate) fn json(&self) -> String {
        let (kernel, processor) = machine();
        let value = json!({
            "kernel": kernel,
            "processor": processor,
            "congestion_control": self.congestion,
            "cost": self.cost.json(),
            "noise": self.noise.json(),
        });
        format!("{value:#}\n")
    }
}

/// A ratio and where it lies.
fn ratio(interval: Option<Interval>) -> String {
    interval.map_or("- | -".to_owned(), |Interval { median, low, high }| {
        format!("{median:.3} | {low:.3} to {high:.3}")
    })
}

impl Cost {
    fn write(&self, text: &mut String) -> Result {
        writeln!(
            text,
            "## What they cost where they do not bite\n\nProcessor time of all threads of the relay for each byte or transaction, by that without a limit. With them, every endpoint, every listener and the \
             relay have a most of sessions and of new ones per second, and every endpoint a most of bytes per second both ways, all of them out of reach. {} rounds in shuffled order, {:?} each, {} s in all; ratios \
             within a round, their median, and where it lies for 95 of 100 sets of rounds (bootstrap). *None, again*: noise.\n",
            self.rounds,
            self.length,
            self.took.as_secs(),
        )?;
        writeln!(
            text,
            "| | limits | relay, each | by none | 95 % interval |\n|---|---|---|---|---|"
        )?;
        for (workload, what) in self.workloads.iter().enumerate() {
            let (unit, scale) = match what.unit() {
                Unit::Transaction => ("µs", 1.0),
                // A microsecond for each byte is a thousand seconds for each GB.
                Unit::Byte | Unit::Both => ("s/GB", 1e3),
            };
            for holds in Holds::ALL {
                let each = self.each(workload, holds).map(|each| each.times(scale));
                let by_none = match holds {
                    Holds::Nothing => None,
                    _ => self.ratio(workload, holds),
                };
                writeln!(
                    text,
                    "| {} | {} | {} {unit} | {} |",
                    what.name,
                    holds.name(),
                    shown(each),
                    ratio(by_none)
                )?;
            }
        }
        writeln!(text)
    }

    fn json(&self) -> Value {
        json!({
            "rounds": self.rounds,
            "seconds_each": self.length.as_secs_f64(),
            "samples": self.measured.iter().map(|one| json!({
                "round": one.round,
                "workload": self.workloads[one.workload].name,
                "limits": one.holds.name(),
                "units": one.outcome.units,
                "seconds": one.outcome.elapsed.as_secs_f64(),
                "relay_s": one.relay.ran.as_secs_f64(),
                "waited_s": one.relay.waited.as_secs_f64(),
            })).collect::<Vec<_>>(),
        })
    }
}

impl Noises {
    fn write(&self, text: &mut String) -> Result {
        writeln!(
            text,
            "## What others feel of an endpoint at its limits\n\nRequests and answers of 1 KiB of one endpoint on {CONNECTIONS} connections: at {:.0} a second ({:.0} % of what the relay can do; latency counts from when a \
             request was due), then as fast as they are answered, {LENGTH:?} each, in {} rounds of shuffled order, {} s in all. Meanwhile another endpoint comes every {COMING:?} and is reset; or has {MOVING} \
             connections with bytes to move, both ways, at 10 MiB/s. Ratios within a round, by the same without noise. *No noise, again*: what the machine does besides. Who makes the noise shares a core with client and \
             origin.\n",
            self.rate,
            PART_OF_CAPACITY * 100.0,
            self.rounds,
            self.took.as_secs(),
        )?;
        writeln!(
            text,
            "| the other | p50, µs | p99, µs | p99 by that without | 95 % interval | requests/s | by those without | 95 % interval |\n|---|---|---|---|---|---|---|---|"
        )?;
        for noise in Noise::ALL {
            let figure = |figure| shown(self.figure(noise, figure));
            let by_none = |figure| match noise {
                Noise::Nothing => ratio(None),
                _ => ratio(self.ratio(noise, figure)),
            };
            writeln!(
                text,
                "| {} | {} | {} | {} | {} | {} |",
                noise.name(),
                figure(Figure::P50),
                figure(Figure::P99),
                by_none(Figure::P99),
                figure(Figure::Throughput),
                by_none(Figure::Throughput),
            )?;
        }
        writeln!(text, "\n{}\n", self.verdict())
    }

    /// In one line: whether anything is beyond what the noise of the machine is.
    fn verdict(&self) -> String {
        let quiet = |figure| self.ratio(Noise::NothingAgain, figure);
        let (Some(p99), Some(throughput)) = (quiet(Figure::P99), quiet(Figure::Throughput)) else {
            return "Verdict: nothing was measured.".to_owned();
        };
        let noisy = Noise::ALL.into_iter().skip(2);
        let beyond = noisy.filter(|noise| {
            let slower = self.ratio(*noise, Figure::P99);
            let fewer = self.ratio(*noise, Figure::Throughput);
            slower.is_some_and(|ratio| ratio.low > p99.high)
                || fewer.is_some_and(|ratio| ratio.high < throughput.low)
        });
        let beyond: Vec<_> = beyond.map(Noise::name).collect();
        let range = format!(
            "p99 {:.2} to {:.2}, requests {:.2} to {:.2}",
            p99.low, p99.high, throughput.low, throughput.high
        );
        match beyond.is_empty() {
            true => {
                format!("Verdict: p99 and throughput are **unchanged within noise** ({range}).")
            }
            false => format!(
                "Verdict: **beyond noise** ({range}) where {}.",
                beyond.join("; ")
            ),
        }
    }

    fn json(&self) -> Value {
        json!({
            "rounds": self.rounds,
            "requests_per_s": self.rate,
            "samples": self.measured.iter().map(|one| json!({
                "round": one.round,
                "noise": one.noise.name(),
                "p50_us": one.figure(Figure::P50),
                "p99_us": one.figure(Figure::P99),
                "requests_per_s": one.figure(Figure::Throughput),
            })).collect::<Vec<_>>(),
        })
    }
}
