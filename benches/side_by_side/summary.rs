//! What the samples of all rounds say together.

use crate::{
    rounds::{Measured, Sample},
    variant::{Role, Variant},
    workload::{Unit, Workload},
};

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

impl Spread {
    /// In another unit.
    pub(crate) fn times(self, scale: f64) -> Self {
        Self {
            median: self.median * scale,
            min: self.min * scale,
            max: self.max * scale,
        }
    }
}

/// A figure of one sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Figure {
    /// Processor time of the relay: seconds per GB, or microseconds per transaction.
    Relay,
    /// The same of both cores, whoever kept them busy.
    Machine,
    /// Of both cores, beyond the relay, client and origin: the part of the time.
    Others,
    /// Gbit/s of bulk, or transactions per second.
    Throughput,
    /// Transactions per second.
    Transactions,
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
    pub(crate) const ALL: [Self; 9] = [
        Self::Relay,
        Self::Machine,
        Self::Throughput,
        Self::Transactions,
        Self::P50,
        Self::P99,
        Self::Busy,
        Self::Waited,
        Self::Others,
    ];

    /// Its name in JSON.
    pub(crate) fn name(self, unit: Unit) -> &'static str {
        let by_transaction = unit == Unit::Transaction;
        match self {
            Self::Relay if by_transaction => "relay_us_per_transaction",
            Self::Relay => "relay_s_per_gb",
            Self::Machine if by_transaction => "machine_us_per_transaction",
            Self::Machine => "machine_s_per_gb",
            Self::Throughput if by_transaction => "per_s",
            Self::Throughput => "bulk_gbit_per_s",
            Self::Transactions => "transactions_per_s",
            Self::Busy => "relay_core_busy",
            Self::Waited => "relay_waited_for_core",
            Self::Others => "others_on_both_cores",
            Self::P50 => "p50_us",
            Self::P99 => "p99_us",
        }
    }

    /// Its value in a sample; `None` where it makes no sense.
    pub(crate) fn value(self, sample: &Sample, workload: &Workload) -> Option<f64> {
        let Measured {
            outcome,
            relay,
            load,
            machine,
        } = &sample.measured;
        let (seconds, unit) = (outcome.elapsed.as_secs_f64(), workload.unit());
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
        let [units, bytes, bulk] =
            [outcome.units, outcome.bytes, outcome.bulk].map(|count| count as f64);
        let per_unit = |time: f64| match unit {
            Unit::Transaction => time / units * 1e6,
            Unit::Byte | Unit::Both => time / bytes * 1e9,
        };
        let latency = |at: usize| outcome.p50_p99.map(|both| both[at].as_secs_f64() * 1e6);
        let ran = relay.map_or(0.0, |relay| relay.ran.as_secs_f64());
        match self {
            Self::Relay => relay.map(|_| per_unit(ran)),
            Self::Machine => Some(per_unit(machine.as_secs_f64())),
            Self::Others => {
                let others = machine.as_secs_f64() - ran - load.as_secs_f64();
                Some((others / seconds).max(0.0))
            }
            Self::Throughput if unit == Unit::Transaction => Some(units / seconds),
            Self::Throughput => Some(bulk * 8.0 / 1e9 / seconds),
            Self::Transactions => (unit == Unit::Both).then_some(units / seconds),
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
    pub(crate) variants: &'a [Variant],
}

impl Results<'_> {
    /// The number of the workload of this name.
    pub(crate) fn workload(&self, name: &str) -> Option<usize> {
        self.workloads.iter().position(|one| one.name == name)
    }

    /// The number of a variant.
    pub(crate) fn variant(&self, role: Role) -> Option<usize> {
        self.variants.iter().position(|one| one.role == role)
    }

    /// Whether this variant took part in it.
    pub(crate) fn has(&self, workload: usize, variant: usize) -> bool {
        let mut samples = self.samples.iter();
        samples.any(|sample| (sample.workload, sample.variant) == (workload, variant))
    }

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
