//! What the samples of all rounds say together.

use crate::{Sample, load::Workload};

/// Median and range of what several rounds gave.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Spread {
    /// The one in the middle.
    pub(crate) median: f64,
    /// The least.
    pub(crate) min: f64,
    /// The most.
    pub(crate) max: f64,
}

impl Spread {
    /// `None` without any.
    pub(crate) fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let (upper, lower) = (values[values.len() / 2], values[(values.len() - 1) / 2]);
        Some(Self {
            median: f64::midpoint(lower, upper),
            min,
            max,
        })
    }
}

/// A figure of one sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Figure {
    /// Processor time of the relay: seconds per GB, or microseconds per transaction.
    Relay,
    /// The same with client and origin.
    Whole,
    /// Gbit/s, or transactions per second.
    Throughput,
    /// The part of the time in which the relay was on its core.
    Busy,
    /// The part of the time in which it would have run but for others on its core.
    Waited,
    /// Microseconds.
    P50,
    /// Microseconds.
    P99,
}

impl Figure {
    /// All, in the report's order.
    pub(crate) const ALL: [Self; 7] = [
        Self::Relay,
        Self::Whole,
        Self::Throughput,
        Self::P50,
        Self::P99,
        Self::Busy,
        Self::Waited,
    ];

    /// Its name in JSON.
    pub(crate) fn name(self, bulk: bool) -> &'static str {
        match (self, bulk) {
            (Self::Relay, true) => "relay_s_per_gb",
            (Self::Relay, false) => "relay_us_per_transaction",
            (Self::Whole, true) => "whole_s_per_gb",
            (Self::Whole, false) => "whole_us_per_transaction",
            (Self::Throughput, true) => "gbit_per_s",
            (Self::Throughput, false) => "transactions_per_s",
            (Self::Busy, _) => "relay_core_busy",
            (Self::Waited, _) => "relay_waited_for_core",
            (Self::P50, _) => "p50_us",
            (Self::P99, _) => "p99_us",
        }
    }

    /// Its value in a sample; `None` where it makes no sense.
    pub(crate) fn value(self, sample: &Sample, workload: &Workload) -> Option<f64> {
        let Sample {
            outcome,
            relay,
            load,
            ..
        } = sample;
        let (seconds, bulk) = (outcome.elapsed.as_secs_f64(), workload.is_bulk());
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
        let units = outcome.units as f64;
        let per_unit = |time: f64| time / units * if bulk { 1e9 } else { 1e6 };
        let latency = |at: usize| outcome.p50_p99.map(|both| both[at].as_secs_f64() * 1e6);
        match self {
            Self::Relay => relay.map(|relay| per_unit(relay.ran.as_secs_f64())),
            Self::Whole => {
                let ran = relay.map_or(0.0, |relay| relay.ran.as_secs_f64());
                Some(per_unit(ran + load.as_secs_f64()))
            }
            Self::Throughput if bulk => Some(units * 8.0 / 1e9 / seconds),
            Self::Throughput => Some(units / seconds),
            Self::Busy => relay.map(|relay| relay.ran.as_secs_f64() / seconds),
            Self::Waited => relay.map(|relay| relay.waited.as_secs_f64() / seconds),
            Self::P50 => latency(0),
            Self::P99 => latency(1),
        }
    }
}

/// The samples with the list of workloads they refer to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Results<'a> {
    /// As measured.
    pub(crate) samples: &'a [Sample],
    /// What their numbers mean.
    pub(crate) workloads: &'a [Workload],
}

impl Results<'_> {
    /// A figure over all rounds.
    pub(crate) fn figure(&self, workload: usize, variant: usize, figure: Figure) -> Option<Spread> {
        Spread::of(self.by_round(workload, variant, figure).map(|(_, v)| v))
    }

    /// A variant's figure by another's, round by round: what a round had of its own is in both.
    pub(crate) fn ratio(
        &self,
        workload: usize,
        (variant, to): (usize, usize),
        figure: Figure,
    ) -> Option<Spread> {
        let ratios = self
            .by_round(workload, variant, figure)
            .filter_map(|(round, value)| {
                let mut others = self.by_round(workload, to, figure);
                let (_, other) = others.find(|(of, _)| *of == round)?;
                Some(value / other)
            });
        Spread::of(ratios)
    }

    fn by_round(
        &self,
        workload: usize,
        variant: usize,
        figure: Figure,
    ) -> impl Iterator<Item = (u32, f64)> {
        let ours = move |sample: &&Sample| (sample.workload, sample.variant) == (workload, variant);
        let value = move |sample: &Sample| figure.value(sample, &self.workloads[workload]);
        let samples = self.samples.iter().filter(ours);
        samples.filter_map(move |sample| Some((sample.round, value(sample)?)))
    }
}
