//! Metric families in the making, for `/metrics`.

use prometheus::proto::{Counter, Gauge, LabelPair, Metric, MetricFamily, MetricType};

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
        let mut metric = Metric::default();
        metric.set_label(
            labels
                .iter()
                .map(|(name, value)| {
                    let mut label = LabelPair::default();
                    label.set_name((*name).to_owned());
                    label.set_value((*value).to_owned());
                    label
                })
                .collect(),
        );
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

    pub(super) fn into_proto(self) -> MetricFamily {
        self.proto
    }
}
