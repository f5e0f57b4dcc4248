//! Books and metrics over reloads: they only grow, and in the end they are what clients counted.

use std::{collections::BTreeMap, thread};

use libtest_mimic::Trial;

use super::{
    visitors::Visitors,
    world::{FIRST, Listener, Reloading, SECOND, config},
};
use crate::{
    claim,
    harness::{ledger, relay::Metrics},
    scenarios::world::ENDPOINT,
};

pub(crate) fn tests() -> Vec<Trial> {
    vec![claim(
        "counters_and_books_only_grow_over_reloads",
        counters_and_books_only_grow_over_reloads,
    )]
}

const INGEST: Listener<'_> = ("ingest", "0.0.0.0:8443", "cp");
const LOGS: Listener<'_> = ("logs", "0.0.0.0:8444", "log-store");

/// What is looked at: a counter, and by which label.
const COUNTERS: [(&str, &str); 5] = [
    ("tollgate_bytes_total", "listener"),
    ("tollgate_bytes_total", "upstream"),
    ("tollgate_connections_opened_total", "listener"),
    ("tollgate_connections_opened_total", "upstream"),
    ("tollgate_connections_closed_total", "reason"),
];

fn counters(metrics: &Metrics) -> BTreeMap<(&'static str, String), u64> {
    let mut all = BTreeMap::new();
    for (name, label) in COUNTERS {
        all.insert((name, String::new()), metrics.sum(name, &[]));
        for value in metrics.label_values(name, label) {
            let sum = metrics.sum(name, &[(label, &value)]);
            all.insert((name, format!("{label}={value}")), sum);
        }
    }
    all
}

fn counters_and_books_only_grow_over_reloads() {
    let often = "[ledger]\ninterval = \"1s\"\n[drain]\naccept_for = \"0s\"\n";
    let upstreams = [("cp", FIRST), ("log-store", SECOND)];
    let both = config(&[INGEST, LOGS], &upstreams, often);
    let without = config(&[INGEST], &upstreams[..1], often);
    let world = Reloading::new("counted", &both);
    // Open all the time, on a listener and an upstream that come and go.
    let long = world.open(8444, ENDPOINT);
    let visitors = Visitors::start(&world.hosts.node, 8, &[8443, 8444], ENDPOINT);
    visitors.wait_more(20);
    let mut last = counters(&world.relay.metrics());
    let look = |last: &mut BTreeMap<_, _>| {
        let now = counters(&world.relay.metrics());
        for (key, before) in &*last {
            let after = now.get(key);
            assert!(
                after >= Some(before),
                "{key:?} was {before} and is {after:?}"
            );
        }
        *last = now;
    };
    thread::scope(|scope| {
        let reloads = scope.spawn(|| {
            for _ in 0..8 {
                world.apply(&without);
                visitors.wait_more(30);
                world.apply(&both);
                visitors.wait_more(30);
            }
        });
        while !reloads.is_finished() {
            look(&mut last);
        }
    });
    look(&mut last);
    let seen = visitors.stop();
    seen.assert_none_failed();
    world.apply(&without);
    world.goes_on(long);
    world
        .relay
        .wait_metric("tollgate_connections_active", &[], 0);
    look(&mut last);
    let bytes = seen.bytes + 301_000;
    assert_eq!(last[&("tollgate_bytes_total", String::new())], 2 * bytes);
    let opened = last[&("tollgate_connections_opened_total", String::new())];
    assert_eq!(opened, seen.whole + 1);
    world.apply(&both);
    world.assert_at_rest();
    let report = world
        .relay
        .tollgate(&["usage", "--config", "@CONFIG@", "--format", "csv"]);
    let total = ledger::total(&ledger::report(&report.ok()));
    assert_eq!(total.counts(), [opened, opened, 0, bytes, bytes]);
}
