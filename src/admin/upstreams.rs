//! How the upstreams stand, in `/metrics` and `/status`.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use prometheus::core::Collector;
use prometheus::proto::MetricFamily;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::family::{Family, counter, gauge, histogram};
use crate::upstream::roster::Member;
use crate::upstream::state::State;
use crate::upstream::{AheadOutcome, Standing, TargetState, Upstream};

/// Addresses that have series of their own, over all upstreams: what a Prometheus scrapes without pain. `/status` has all of them.
const MOST_ADDRESSES: usize = 1000;

/// The families in the making, in the order in which they are shown.
struct Families {
    addresses: Family,
    stale: Family,
    lookups_failed: Family,
    serving: Family,
    failovers: Family,
    ejections: Family,
    failures: Family,
    retries: Family,
    denied: Family,
    waiting: Family,
    ahead: Family,
    sessions: Family,
    opened: Family,
    connect: Family,
    rtt: Family,
    rtts: Family,
    rates: Family,
    retransmits: Family,
    ttl: Family,
}

impl Families {
    fn new() -> Self {
        Self {
            addresses: gauge(
                "tollgate_upstream_addresses",
                "Addresses of a target, by what is thought of them.",
            ),
            stale: gauge(
                "tollgate_dns_stale",
                "1 while a target has no good answer: its last one serves, or nothing does.",
            ),
            lookups_failed: counter(
                "tollgate_dns_failures_total",
                "Look-ups of a target that brought no address that can be used.",
            ),
            serving: gauge(
                "tollgate_upstream_active_priority",
                "Priority of the group of targets that serves.",
            ),
            failovers: counter(
                "tollgate_upstream_failovers_total",
                "How often another group of targets took over.",
            ),
            ejections: counter(
                "tollgate_upstream_ejections_total",
                "How often an address was left alone because its connections failed.",
            ),
            failures: counter(
                "tollgate_upstream_connect_failures_total",
                "Tries to connect that failed, or were overtaken by another address.",
            ),
            retries: counter(
                "tollgate_upstream_retries_total",
                "Tries to connect beyond the first of a session.",
            ),
            denied: counter(
                "tollgate_upstream_retries_denied_total",
                "Tries that the retry budget did not allow.",
            ),
            waiting: gauge(
                "tollgate_ahead_connections",
                "Connections dialled ahead that wait for a session.",
            ),
            ahead: counter(
                "tollgate_ahead_total",
                "What became of connections dialled ahead, and of sessions that looked for one.",
            ),
            sessions: gauge(
                "tollgate_upstream_address_sessions",
                "Sessions on an address.",
            ),
            opened: counter(
                "tollgate_upstream_address_connections_total",
                "Sessions that were connected to an address.",
            ),
            connect: gauge(
                "tollgate_upstream_address_connect_seconds",
                "Time from SYN to SYN-ACK, smoothed.",
            ),
            rtt: gauge(
                "tollgate_upstream_address_rtt_seconds",
                "Round trip, as the kernel last measured it on a session.",
            ),
            rtts: histogram(
                "tollgate_upstream_rtt_seconds",
                "Round trip to an address, as the kernel measured it on a session: at its end, and now and then while it lasts.",
            ),
            rates: histogram(
                "tollgate_upstream_delivery_rate_bytes_per_second",
                "How fast an address took bytes, as the kernel measured it on a session: at its end, and now and then while it lasts.",
            ),
            retransmits: counter(
                "tollgate_upstream_address_retransmits_total",
                "Segments sent to an address more than once.",
            ),
            ttl: gauge(
                "tollgate_upstream_address_ttl_seconds",
                "Time until the answer with the address ends, as the name's servers say.",
            ),
        }
    }

    fn upstream(&mut self, upstream: &Upstream, standing: &Standing) {
        let name = ("upstream", &*upstream.name);
        let labels = [name];
        let mut of_state: HashMap<(usize, State), u64> = HashMap::new();
        for (member, state) in &standing.members {
            *of_state.entry((member.target, *state)).or_default() += 1;
        }
        for (index, target) in standing.targets.iter().enumerate() {
            let target_label = ("target", &*target.target);
            for state in State::ALL {
                let labels = [name, target_label, ("state", state.name())];
                let n = of_state.get(&(index, state)).copied();
                self.addresses.add(&labels, n.unwrap_or(0));
            }
            let labels = [name, target_label];
            self.stale.add(&labels, u64::from(target.stale));
            self.lookups_failed.add(&labels, target.failures);
        }
        let dialled = &upstream.dialled;
        self.serving.add(&labels, standing.serving.into());
        self.failovers.add(&labels, standing.counts.failovers);
        self.ejections.add(&labels, standing.counts.ejections);
        self.failures.add(&labels, dialled.failures.load(Relaxed));
        self.retries.add(&labels, dialled.retries.load(Relaxed));
        self.denied.add(&labels, dialled.denied.load(Relaxed));
        if upstream.settings.ahead.is_some() {
            self.waiting.add(&labels, dialled.waiting.load(Relaxed));
            for outcome in AheadOutcome::ALL {
                let n = dialled.ahead[outcome as usize].load(Relaxed);
                self.ahead.add(&[name, ("outcome", outcome.name())], n);
            }
        }
    }

    fn address(
        &mut self,
        upstream: &Upstream,
        target: &TargetState,
        member: &Member,
        now: Instant,
    ) {
        let address = &member.address;
        let at = address.at.to_string();
        let labels = [("upstream", &*upstream.name), ("address", at.as_str())];
        self.sessions.add(&labels, address.sessions().into());
        self.opened.add(&labels, address.opened());
        let times = [
            (&mut self.connect, address.connect_time()),
            (&mut self.rtt, address.rtt()),
            (&mut self.ttl, until(target.ttl_ends, now)),
        ];
        for (family, time) in times {
            if let Some(time) = time {
                family.add_float(&labels, time.as_secs_f64());
            }
        }
        if let Some(rtts) = address.rtts.read() {
            self.rtts.add_distribution(&labels, &rtts, 1e6);
        }
        if let Some(rates) = address.rates.read() {
            self.rates.add_distribution(&labels, &rates, 1.0);
        }
        self.retransmits.add(&labels, address.retransmits());
    }

    fn into_protos(self) -> Vec<MetricFamily> {
        [
            self.addresses,
            self.stale,
            self.lookups_failed,
            self.serving,
            self.failovers,
            self.ejections,
            self.failures,
            self.retries,
            self.denied,
            self.waiting,
            self.ahead,
            self.sessions,
            self.opened,
            self.connect,
            self.rtt,
            self.rtts,
            self.rates,
            self.retransmits,
            self.ttl,
        ]
        .map(Family::into_proto)
        .into()
    }
}

/// Everything about the upstreams.
pub(super) fn families(upstreams: &[Arc<Upstream>]) -> Vec<MetricFamily> {
    let mut families = Families::new();
    let mut connect: Option<MetricFamily> = None;
    let (mut shown, now) = (0, Instant::now());
    for upstream in upstreams {
        let standing = upstream.standing();
        families.upstream(upstream, &standing);
        let members = standing.members.iter().map(|(member, _)| member);
        let members = members.chain(&standing.gone);
        for member in members.take(MOST_ADDRESSES - shown) {
            families.address(upstream, &standing.targets[member.target], member, now);
            shown += 1;
        }
        for mut family in upstream.connect_seconds.collect() {
            match &mut connect {
                Some(connect) => connect.mut_metric().extend(family.take_metric()),
                None => connect = Some(family),
            }
        }
    }
    families.into_protos().into_iter().chain(connect).collect()
}

/// One upstream in `/status`.
pub(super) fn status(upstream: &Upstream, now: Instant) -> Value {
    let standing = upstream.standing();
    let dialled = &upstream.dialled;
    let mut members: Vec<Vec<Value>> = standing.targets.iter().map(|_| Vec::new()).collect();
    for (member, state) in &standing.members {
        members[member.target].push(address_status(member, state.name(), now));
    }
    json!({
        "name": &*upstream.name,
        "active_priority": standing.serving,
        "groups": standing.groups.iter().map(|(priority, usable)| json!({
            "priority": priority,
            "usable_percent": usable,
        })).collect::<Vec<_>>(),
        "failovers": standing.counts.failovers,
        "ejections": standing.counts.ejections,
        "connect_failures": dialled.failures.load(Relaxed),
        "retries": dialled.retries.load(Relaxed),
        "retries_denied": dialled.denied.load(Relaxed),
        "targets": standing.targets.iter().enumerate().map(|(index, target)| json!({
            "target": target.target,
            "addresses": std::mem::take(&mut members[index]),
            "answered_seconds_ago": target.answered.map(|at| now.saturating_duration_since(at).as_secs()),
            "next_look_up_in_seconds": until(target.next, now).map(|time| time.as_secs()),
            "ttl_ends_in_seconds": until(target.ttl_ends, now).map(|time| time.as_secs()),
            "stale": target.stale,
            "failure": target.failure,
            "failures": target.failures,
        })).collect::<Vec<_>>(),
        "vanished": standing.gone.iter().map(|member| address_status(member, "vanished", now)).collect::<Vec<_>>(),
    })
}

fn address_status(member: &Member, state: &str, now: Instant) -> Value {
    let address = &member.address;
    let millis = |time: Option<Duration>| time.map(|time| time.as_secs_f64() * 1000.0);
    json!({
        "address": address.at,
        "priority": member.priority,
        "weight": member.weight,
        "state": state,
        "why": member.why,
        "for_seconds": now.saturating_duration_since(member.since).as_secs(),
        "sessions": address.sessions(),
        "opened": address.opened(),
        "ahead": address.ahead(),
        "connect_ms": millis(address.connect_time()),
        "rtt_ms": millis(address.rtt()),
        "retransmits": address.retransmits(),
    })
}

fn until(at: Option<Instant>, now: Instant) -> Option<Duration> {
    at.map(|at| at.saturating_duration_since(now))
}
