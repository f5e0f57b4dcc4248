//! What `/metrics` has of accounts.

use std::collections::BTreeSet;
use std::num::NonZeroU64;

use prometheus::proto::MetricFamily;

use super::family::{Family, counter, gauge};
use super::top::Shown;
use crate::account::{CloseReason, Direction, NOBODY, OTHER, OVERFLOW, Snapshot, refused_name};
use crate::config::Endpoints;
use crate::policy::rules::Rule;

pub(super) fn families(
    snapshot: &Snapshot,
    shown: &[Shown],
    endpoints: &Endpoints,
) -> Vec<MetricFamily> {
    let mut opened = counter(
        "tollgate_connections_opened_total",
        "Connections opened: after header and route, before connect.",
    );
    let mut active = gauge("tollgate_connections_active", "Connections open now.");
    let mut closed = counter(
        "tollgate_connections_closed_total",
        "Connections closed, by reason.",
    );
    let mut bytes = counter(
        "tollgate_bytes_total",
        "Payload bytes that the destination socket took, by direction.",
    );
    let mut seconds = counter(
        "tollgate_connection_seconds_total",
        "How long connections were open, added up; those that are open count up to now.",
    );
    let mut refused = counter(
        "tollgate_endpoint_refused_total",
        "Connections turned away whose endpoint was known, by reason; those of all in tollgate_refused_total.",
    );
    for account in shown {
        let (key, counters) = (&account.key, &account.counters);
        let labels = labels(account);
        let with = |name, value| [&labels[..], &[(name, value)]].concat();
        let counts = counters.refused.iter().enumerate();
        for (index, n) in counts.filter(|(_, n)| **n > 0) {
            refused.add(&with("reason", refused_name(index)), *n);
        }
        if key.upstream.is_empty() {
            continue; // turned away before there was one: never opened
        }
        opened.add(&labels, counters.opened);
        active.add(&labels, account.active);
        for reason in CloseReason::ALL {
            let n = counters.closed[reason as usize];
            closed.add(&with("reason", reason.name()), n);
        }
        for direction in Direction::ALL {
            let n = counters.bytes[direction as usize];
            bytes.add(&with("direction", direction.name()), n);
        }
        seconds.add_float(&labels, in_seconds(counters.connection_ms));
    }
    [
        opened,
        active,
        closed,
        bytes,
        seconds,
        refused,
        info(shown, endpoints),
        limits(shown, endpoints),
        overflowed(snapshot),
        kept(snapshot),
    ]
    .map(Family::into_proto)
    .into()
}

/// An account without a consumer has no such label: to Prometheus an empty one is the same.
fn labels(account: &Shown) -> Vec<(&str, &str)> {
    let key = &account.key;
    let labels = [
        ("listener", &*key.listener),
        ("endpoint", &*key.endpoint),
        ("consumer", &*key.consumer),
        ("upstream", &*key.upstream),
    ];
    let given = labels.into_iter();
    given.filter(|(_, value)| !value.is_empty()).collect()
}

/// What people call those who are shown, to be joined with the rest by `endpoint`.
fn info(shown: &[Shown], endpoints: &Endpoints) -> Family {
    let mut info = gauge(
        "tollgate_endpoint_info",
        "What the configuration calls an endpoint, and who pays for it; always 1.",
    );
    if endpoints.entries.is_empty() {
        return info;
    }
    let ids: BTreeSet<&str> = shown.iter().map(|shown| &*shown.key.endpoint).collect();
    for id in ids {
        let named = endpoints.named(id);
        if !(named.name.is_empty() && named.account.is_empty()) {
            let labels = [
                ("endpoint", id),
                ("name", &*named.name),
                ("account", &*named.account),
            ];
            info.add(&labels, 1);
        }
    }
    info
}

/// What those who are shown may, to be compared with what they do.
fn limits(shown: &[Shown], endpoints: &Endpoints) -> Family {
    let mut limits = gauge(
        "tollgate_endpoint_limit",
        "What an endpoint may at most, all of its sessions together; only where there is a limit.",
    );
    if endpoints
        .entries
        .iter()
        .all(|entry| entry.policy.is_empty())
    {
        return limits;
    }
    let ids: BTreeSet<&str> = shown.iter().map(|shown| &*shown.key.endpoint).collect();
    // What is booked under a word of ours has limits by the ids that are behind it.
    for id in ids
        .into_iter()
        .filter(|id| ![OVERFLOW, NOBODY, OTHER].contains(id))
    {
        let rule = Rule::of(endpoints, id);
        let [to_upstream, to_client] = rule.bytes_per_second.map(|rate| rate.map(NonZeroU64::get));
        let rate = rule.entry.rate.map(|rate| rate.per_second.get());
        for (limit, value) in [
            ("sessions", rule.entry.most.map(|most| most as u64)),
            ("sessions_per_second", rate),
            ("bytes_per_second_to_upstream", to_upstream),
            ("bytes_per_second_to_client", to_client),
        ] {
            if let Some(value) = value {
                limits.add(&[("endpoint", id), ("limit", limit)], value);
            }
        }
    }
    limits
}

fn overflowed(snapshot: &Snapshot) -> Family {
    let mut overflowed = counter(
        "tollgate_accounts_overflowed_total",
        "Connections booked to the endpoint overflow because accounts.max was reached.",
    );
    overflowed.add(&[], snapshot.overflowed);
    overflowed
}

fn kept(snapshot: &Snapshot) -> Family {
    let mut kept = gauge("tollgate_accounts", "Accounts in memory.");
    kept.add(&[], snapshot.accounts.len() as u64);
    kept
}

#[expect(
    clippy::cast_precision_loss,
    reason = "Prometheus' numbers are floats: whole milliseconds up to 285,000 years"
)]
fn in_seconds(ms: u64) -> f64 {
    ms as f64 / 1e3
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use prometheus::{Encoder, TextEncoder};

    use super::*;
    use crate::account::{AccountKey, Books, Counters, HEADER, Limits, Place};
    use crate::config::{Cap, EndpointEntry, PolicyKeys};

    fn shown(endpoint: &str, consumer: &str, upstream: &str, counters: Counters) -> Shown {
        Shown {
            key: AccountKey {
                listener: "l".into(),
                endpoint: endpoint.into(),
                consumer: consumer.into(),
                upstream: upstream.into(),
            },
            counters,
            active: 0,
        }
    }

    fn text(shown: &[Shown], endpoints: &Endpoints) -> String {
        let snapshot = Books::new(Place::Memory, &["l".into()], 1, Limits::of_most(1));
        let snapshot = snapshot.expect("memory").snapshot();
        let mut families = families(&snapshot, shown, endpoints);
        families.retain(|family| !family.get_metric().is_empty());
        let mut text = Vec::new();
        TextEncoder::new().encode(&families, &mut text).unwrap();
        String::from_utf8(text).unwrap()
    }

    #[test]
    fn only_who_has_a_consumer_has_that_label() {
        let counters = Counters {
            connection_ms: 1500,
            ..Counters::default()
        };
        let lines = text(
            &[
                shown("a", "", "u", counters),
                shown("b", "billing", "u", counters),
            ],
            &Endpoints::default(),
        );
        for line in [
            "tollgate_connection_seconds_total{listener=\"l\",endpoint=\"a\",upstream=\"u\"} 1.5\n",
            "tollgate_connection_seconds_total{listener=\"l\",endpoint=\"b\",consumer=\"billing\",upstream=\"u\"} 1.5\n",
        ] {
            assert!(lines.contains(line), "{line}\n{lines}");
        }
        assert!(!lines.contains("tollgate_endpoint_info{"));
    }

    #[test]
    fn who_was_turned_away_is_shown_with_the_reasons_there_were() {
        let mut counters = Counters::default();
        counters.refused[HEADER] = 3;
        let lines = text(&[shown(NOBODY, "", "", counters)], &Endpoints::default());
        let refused: Vec<_> = lines
            .lines()
            .filter(|line| line.contains("endpoint=") && !line.starts_with('#'))
            .collect();
        assert_eq!(
            refused,
            [
                "tollgate_endpoint_refused_total{listener=\"l\",endpoint=\"(none)\",reason=\"header\"} 3"
            ]
        );
    }

    #[test]
    fn endpoints_that_have_a_name_have_it_beside_them_once() {
        let endpoints = Endpoints {
            entries: vec![EndpointEntry {
                pattern: "a*".into(),
                name: None,
                account: Some(Arc::from("finance")),
                tags: None,
                policy: Default::default(),
            }],
        };
        let counters = Counters::default();
        let accounts = [
            shown("a1", "", "u", counters),
            shown("a1", "", "v", counters),
            shown("b", "", "u", counters),
        ];
        let lines = text(&accounts, &endpoints);
        let info: Vec<_> = lines
            .lines()
            .filter(|line| line.starts_with("tollgate_endpoint_info{"))
            .collect();
        assert_eq!(
            info,
            ["tollgate_endpoint_info{endpoint=\"a1\",name=\"\",account=\"finance\"} 1"]
        );
    }

    #[test]
    fn what_an_endpoint_may_is_told_of_those_who_have_a_limit() {
        let policy = PolicyKeys {
            max_sessions: Some(Cap::At(7)),
            bytes_per_second: [None, NonZeroU64::new(4096).map(Cap::At)],
            ..PolicyKeys::default()
        };
        let endpoints = Endpoints {
            entries: vec![EndpointEntry {
                pattern: "a*".into(),
                name: None,
                account: None,
                tags: None,
                policy,
            }],
        };
        let accounts = ["a1", "b", OVERFLOW].map(|id| shown(id, "", "u", Counters::default()));
        let lines = text(&accounts, &endpoints);
        let limits: Vec<_> = lines
            .lines()
            .filter(|line| line.starts_with("tollgate_endpoint_limit{"))
            .collect();
        assert_eq!(
            limits,
            [
                "tollgate_endpoint_limit{endpoint=\"a1\",limit=\"sessions\"} 7",
                "tollgate_endpoint_limit{endpoint=\"a1\",limit=\"bytes_per_second_to_client\"} 4096",
            ]
        );
    }
}
