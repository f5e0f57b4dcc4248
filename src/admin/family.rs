//! Metric families in the making, for `/metrics`.

use prometheus::proto::{
    Bucket, Counter, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType,
};

use crate::upstream::distribution::Distributed;

/// A metric family in the making.
pub(super) struct Family {
    proto: MetricFamily,
    kind: MetricType,
}

pub(super) fn counter(name: &str, help: &str) -> Family {
    Family::new(name, help, MetricType::COUNTER)
}

pub(super) fn gauge(name: &str, help: &str) -> Family {
    Family::new(name, help, MetricType::GAUGE)
}

pub(super) fn histogram(name: &str, help: &str) -> Family {
    Family::new(name, help, MetricType::HISTOGRAM)
}

impl Family {
    fn new(name: &str, help: &str, kind: MetricType) -> Self {
        let mut proto = MetricFamily::default();
        proto.set_name(name.to_owned());
        proto.set_help(help.to_owned());
        proto.set_field_type(kind);
        Self { proto, kind }
    }

    #[expect(
        clippy::cast_precision_loss,
        reason = "Prometheus' numbers are floats: whole up to 2^53, 9 PB"
    )]
    pub(super) fn add(&mut self, labels: &[(&str, &str)], value: u64) {
        self.add_float(labels, value as f64);
    }

    pub(super) fn add_float(&mut self, labels: &[(&str, &str)], value: f64) {
        let mut metric = labelled(labels);
        match self.kind {
            MetricType::COUNTER => {
                let mut counter = Counter::default();
                counter.set_value(value);
                metric.set_counter(counter);
            }
            _ => {
                let mut gauge = Gauge::default();
                gauge.set_value(value);
                metric.set_gauge(gauge);
            }
        }
        self.proto.mut_metric().push(metric);
    }

    /// What was distributed, `scale` of its units to one of the metric's.
    #[expect(clippy::cast_precision_loss, reason = "as above")]
    pub(super) fn add_distribution(
        &mut self,
        labels: &[(&str, &str)],
        distributed: &Distributed,
        scale: f64,
    ) {
        let bucket = |(end, count): &(u64, u64)| {
            let mut bucket = Bucket::default();
            bucket.set_upper_bound(*end as f64 / scale);
            bucket.set_cumulative_count(*count);
            bucket
        };
        let mut histogram = Histogram::default();
        histogram.set_bucket(distributed.up_to.iter().map(bucket).collect());
        histogram.set_sample_count(distributed.count);
        histogram.set_sample_sum(distributed.sum as f64 / scale);
        let mut metric = labelled(labels);
        metric.set_histogram(histogram);
        self.proto.mut_metric().push(metric);
    }

    pub(super) fn into_proto(self) -> MetricFamily {
        self.proto
    }
}

fn labelled(labels: &[(&str, &str)]) -> Metric {
    let label = |(name, value): &(&str, &str)| {
        let mut label = LabelPair::default();
        label.set_name((*name).to_owned());
        label.set_value((*value).to_owned());
        label
    };
    let mut metric = Metric::default();
    metric.set_label(labels.iter().map(label).collect());
    metric
}

#[cfg(test)]
mod tests {
    use prometheus::{Encoder, TextEncoder};

    use super::*;

    #[test]
    fn a_distribution_is_shown_as_prometheus_has_histograms() {
        let mut family = histogram("rtt_seconds", "Round trip.");
        let distributed = Distributed {
            up_to: vec![(250, 1), (1_000_000, 3)],
            count: 4,
            sum: 2_500_000,
        };
        family.add_distribution(&[("address", "a")], &distributed, 1e6);
        let mut text = Vec::new();
        TextEncoder::new()
            .encode(&[family.into_proto()], &mut text)
            .unwrap();
        assert_eq!(
            String::from_utf8(text).unwrap(),
            "# HELP rtt_seconds Round trip.\n# TYPE rtt_seconds histogram\n\
             rtt_seconds_bucket{address=\"a\",le=\"0.00025\"} 1\n\
             rtt_seconds_bucket{address=\"a\",le=\"1\"} 3\n\
             rtt_seconds_bucket{address=\"a\",le=\"+Inf\"} 4\n\
             rtt_seconds_sum{address=\"a\"} 2.5\nrtt_seconds_count{address=\"a\"} 4\n"
        );
    }
}
