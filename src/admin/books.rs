//! How the ledger and the audit trail do, for whoever asks whether the books are kept.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use prometheus::proto::MetricFamily;
use serde_json::{Value, json};

use super::family::{Family, counter, gauge};
use crate::account::Event;
use crate::account::audit::{self, Trail};
use crate::account::ledger::{Ledger, Status};

/// The ledger and the audit trail, and what their troubles mean for traffic.
#[derive(Debug, Clone)]
pub struct Booking {
    /// `None`: the books are in memory.
    pub ledger: Option<Arc<Ledger>>,
    /// `ledger.unready_after`.
    pub unready_after: Option<Duration>,
    /// The audit trail.
    pub trail: Arc<Trail>,
}

impl Booking {
    /// What is wrong, in a sentence, and whether that is a reason to ask for no more traffic.
    pub(super) fn trouble(&self) -> Option<(bool, String)> {
        let ledger = self.ledger.as_ref();
        let of_ledger = ledger.and_then(|ledger| trouble(&ledger.status(), self.unready_after));
        let of_trail = self.trail.status().and_then(|status| {
            let why = format!("the audit trail fails: {}", status.failing?);
            Some((status.blocking, why))
        });
        match (of_ledger, of_trail) {
            (Some((a, ledger)), Some((b, trail))) => Some((a || b, format!("{ledger}; {trail}"))),
            (one, other) => one.or(other),
        }
    }

    /// Of both, for people.
    pub(super) fn status(&self) -> [Value; 2] {
        let of_ledger = self.ledger.as_ref().map(|ledger| {
            let mut value = status(&ledger.status());
            value["anchor"] = json!(ledger.last_anchor());
            value
        });
        let of_trail = self.trail.status().map(|status| status_of_trail(&status));
        [of_ledger, of_trail].map(Option::unwrap_or_default)
    }

    pub(super) fn families(&self) -> Vec<MetricFamily> {
        let of_ledger = self
            .ledger
            .as_ref()
            .map(|ledger| families(&ledger.status()));
        let of_trail = self.trail.status().map(|status| families_of_trail(&status));
        [of_ledger, of_trail]
            .into_iter()
            .flatten()
            .flatten()
            .collect()
    }
}

fn trouble(status: &Status, unready_after: Option<Duration>) -> Option<(bool, String)> {
    let failing = status.failing.as_ref()?;
    let unready = unready_after.is_some_and(|after| failing.lasts >= after);
    let why = format!("nothing is booked since {}: {}", failing.since, failing.why);
    Some((unready, why))
}

fn status(status: &Status) -> Value {
    json!({
        "booked": status.booked,
        "bookings": status.bookings,
        "errors": status.errors,
        "failing": status.failing.as_ref().map(|failing| json!({
            "since": failing.since,
            "seconds": failing.lasts.as_secs(),
            "kind": failing.kind.name(),
            "why": failing.why,
        })),
        "set_aside": status.set_aside,
        "leftovers": status.leftovers,
        "accounts": status.accounts,
        "took_seconds": status.took.as_secs_f64(),
        "bytes": status.bytes,
    })
}

fn families(status: &Status) -> Vec<MetricFamily> {
    let count = |name, help, n| {
        let mut family = counter(name, help);
        family.add(&[], n);
        family
    };
    let level = |name, help, n| {
        let mut family = gauge(name, help);
        family.add_float(&[], n);
        family
    };
    let failing = status.failing.as_ref();
    let lasts = failing.map_or(0.0, |failing| failing.lasts.as_secs_f64());
    let mut families = vec![
        count(
            "tollgate_ledger_bookings_total",
            "Bookings that went well.",
            status.bookings,
        ),
        count(
            "tollgate_ledger_errors_total",
            "Bookings, and other work on the ledger, that failed.",
            status.errors,
        ),
        level(
            "tollgate_ledger_failing_seconds",
            "For how long nothing could be booked; 0 while the ledger is well.",
            lasts,
        ),
        level(
            "tollgate_ledger_booking_seconds",
            "How long the last booking took.",
            status.took.as_secs_f64(),
        ),
        level(
            "tollgate_ledger_booked_accounts",
            "Accounts that had changed at the last booking.",
            number(status.accounts as u64),
        ),
        level(
            "tollgate_ledger_bytes",
            "What the ledger has on the disk.",
            number(status.bytes),
        ),
        level(
            "tollgate_ledger_leftovers",
            "Counters of killed processes that are not booked yet.",
            number(status.leftovers as u64),
        ),
        level(
            "tollgate_ledger_set_aside",
            "Damaged ledgers that lie beside it.",
            number(status.set_aside.len() as u64),
        ),
    ];
    if let Some(booked) = status.booked {
        families.push(level(
            "tollgate_ledger_last_booking_timestamp_seconds",
            "When it was booked last, in seconds since 1970.",
            booked.as_duration().as_secs_f64(),
        ));
    }
    families.into_iter().map(Family::into_proto).collect()
}

fn status_of_trail(status: &audit::Status) -> Value {
    let records = Event::ALL.iter().zip(status.records);
    let records: BTreeMap<_, _> = records.map(|(event, n)| (event.name(), n)).collect();
    json!({
        "sink": status.sink,
        "sequence": status.sequence,
        "head": status.head,
        "records": records,
        "queued": status.queued,
        "dropped": status.dropped,
        "failing": status.failing,
        "blocking": status.blocking,
    })
}

fn families_of_trail(status: &audit::Status) -> Vec<MetricFamily> {
    let mut records = counter(
        "tollgate_audit_records_total",
        "Records of the audit trail, by event.",
    );
    for event in Event::ALL {
        let n = status.records[event as usize];
        records.add(&[("event", event.name())], n);
    }
    let mut dropped = counter(
        "tollgate_audit_dropped_total",
        "Records that were dropped because the sink takes too little.",
    );
    dropped.add(&[], status.dropped);
    let mut queue = gauge("tollgate_audit_queue", "Records that wait for the sink.");
    queue.add(&[], status.queued);
    let mut failing = gauge("tollgate_audit_failing", "1 while the sink takes nothing.");
    failing.add(&[], u64::from(status.failing.is_some()));
    [records, dropped, queue, failing]
        .map(Family::into_proto)
        .into()
}

#[expect(
    clippy::cast_precision_loss,
    reason = "Prometheus' numbers are floats: whole up to 2^53"
)]
fn number(n: u64) -> f64 {
    n as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::account::ledger::{Failing, Kind};

    fn failing(seconds: u64) -> Status {
        Status {
            failing: Some(Failing {
                since: "2026-11-21T17:00:00Z".parse().expect("a time"),
                lasts: Duration::from_secs(seconds),
                kind: Kind::Full,
                why: "no room; make some".to_owned(),
            }),
            ..Status::default()
        }
    }

    #[test]
    fn a_ledger_that_fails_is_said_and_is_no_reason_unless_it_was_made_one() {
        let why = "nothing is booked since 2026-11-21T17:00:00Z: no room; make some";
        let ten = Some(Duration::from_secs(10));
        for (status, unready_after, expected) in [
            (Status::default(), ten, None),
            (failing(9999), None, Some((false, why))),
            (failing(9), ten, Some((false, why))),
            (failing(10), ten, Some((true, why))),
        ] {
            let expected = expected.map(|(unready, why)| (unready, why.to_owned()));
            assert_eq!(trouble(&status, unready_after), expected);
        }
    }

    #[test]
    fn what_fails_is_shown_with_its_kind() {
        let shown = status(&failing(3));
        assert_eq!(shown["failing"]["kind"], "full");
        assert_eq!(shown["failing"]["seconds"], 3);
        assert_eq!(status(&Status::default())["failing"], Value::Null);
    }

    #[test]
    fn a_ledger_that_was_never_booked_has_no_time_of_it() {
        let names = |status: &Status| -> Vec<_> {
            let families = families(status);
            families
                .iter()
                .map(|family| family.name().to_owned())
                .collect()
        };
        let last = "tollgate_ledger_last_booking_timestamp_seconds".to_owned();
        assert!(!names(&Status::default()).contains(&last));
        let booked = Status {
            booked: Some("2026-11-21T17:00:00Z".parse().expect("a time")),
            ..Status::default()
        };
        assert!(names(&booked).contains(&last));
    }
}
