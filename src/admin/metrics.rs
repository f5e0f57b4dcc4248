//! `/metrics`: a snapshot of the books in Prometheus' text format.
//!
//! Nothing on the data path knows of Prometheus, except the connect histogram: families are built from a snapshot at each scrape.
//! Their number is bounded by `metrics.max_endpoints`.

use std::sync::atomic::Ordering;
use std::time::Instant;

use prometheus::proto::MetricFamily;
use prometheus::{Encoder, TextEncoder};

use super::family::{Family, counter, gauge};
use super::{Configured, View, accounts, configured, upstreams};
use crate::account::{
    AcceptError, Fallback, LimitOf, PeekOutcome, Refusal, RelayPath, Snapshot, Wait,
};
use crate::drain::Phase;
use crate::proxy_protocol::header::HeaderError;

/// Everything, as text.
pub(super) fn encode(view: &View) -> prometheus::Result<String> {
    let (now, in_force) = (Instant::now(), view.in_force());
    let (snapshot, shown) = view.top.look(|| view.books.snapshot(), now);
    let mut families = accounts::families(&snapshot, &shown, &in_force.endpoints);
    families.extend(view.readiness.booking.families());
    families.extend(of_listeners(&snapshot, &in_force));
    families.extend(of_limits(view));
    families.extend(configured::families(&in_force, &view.reloads));
    families.extend(upstreams::families(&in_force.upstreams));
    families.extend(of_workers(&snapshot, view));
    families.push(build_info());
    families.push(phase(view));
    families.push(dropped_lines(view));
    families.push(dns_queries(view));
    families.retain(|family| !family.get_metric().is_empty());
    let mut text = Vec::new();
    TextEncoder::new().encode(&families, &mut text)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

fn of_listeners(snapshot: &Snapshot, in_force: &Configured) -> Vec<MetricFamily> {
    let mut header_errors = counter(
        "tollgate_header_errors_total",
        "Connections refused for their PROXY protocol header, by error.",
    );
    let mut refused = counter(
        "tollgate_refused_total",
        "Connections turned away, by reason.",
    );
    let mut peeks = counter(
        "tollgate_peeks_total",
        "Connections whose first bytes were looked at for a name to route by, by what they told.",
    );
    let mut accept_errors = counter(
        "tollgate_accept_errors_total",
        "Errors of accept(2): of the connection, for want of resources, other.",
    );
    let mut health_checks = counter(
        "tollgate_health_checks_total",
        "LOCAL headers: the balancer's own connections.",
    );
    let mut empty = counter(
        "tollgate_empty_connections_total",
        "Connections that ended without a byte.",
    );
    let mut pending = gauge(
        "tollgate_connections_pending",
        "Connections without a whole header.",
    );
    for listener in &snapshot.listeners {
        let mut rooms = in_force.rooms.iter();
        let room = rooms.find(|room| room.listener == listener.name);
        let labels = [("listener", &*listener.name)];
        let with = |name, value| [labels[0], (name, value)];
        for error in HeaderError::ALL {
            header_errors.add(
                &with("error", error.name()),
                listener.header_errors[error as usize],
            );
        }
        for reason in Refusal::ALL {
            refused.add(
                &with("reason", reason.name()),
                listener.refused[reason as usize],
            );
        }
        for outcome in PeekOutcome::ALL {
            let n = listener.peeks[outcome as usize];
            peeks.add(&with("outcome", outcome.name()), n);
        }
        for error in AcceptError::ALL {
            accept_errors.add(
                &with("error", error.name()),
                listener.accept_errors[error as usize],
            );
        }
        health_checks.add(&labels, listener.health_checks);
        empty.add(&labels, listener.empty);
        // Who has left has counters, and nobody who waits.
        if let Some(room) = room {
            pending.add(&labels, room.pending.taken() as u64);
        }
    }
    [
        header_errors,
        refused,
        peeks,
        accept_errors,
        health_checks,
        empty,
        pending,
    ]
    .map(Family::into_proto)
    .into()
}

fn of_limits(view: &View) -> Vec<MetricFamily> {
    let mut waiting = gauge(
        "tollgate_limit_waiting",
        "Connections that wait at a limit of their endpoint, their listener or the relay.",
    );
    let mut waits = counter(
        "tollgate_limit_waits_total",
        "Connections that waited at a limit, by what became of them.",
    );
    let now = view.tallies.waiting();
    for (of, outcomes) in LimitOf::ALL.into_iter().zip(view.tallies.waits()) {
        let limit = ("limit", of.name());
        waiting.add(&[limit], now[of as usize] as u64);
        for (outcome, n) in Wait::ALL.into_iter().zip(outcomes) {
            waits.add(&[limit, ("outcome", outcome.name())], n);
        }
    }
    [waiting, waits].map(Family::into_proto).into()
}

fn of_workers(snapshot: &Snapshot, view: &View) -> Vec<MetricFamily> {
    let workers = &snapshot.workers;
    let mut relayed = counter(
        "tollgate_relay_bytes_total",
        "Bytes moved, by the way they took.",
    );
    let mut fallbacks = counter(
        "tollgate_splice_fallbacks_total",
        "Directions that went back to copying, by reason.",
    );
    let mut pipes = gauge(
        "tollgate_pipes",
        "Pipes: lent to a direction with bytes in flight, or idle.",
    );
    for path in RelayPath::ALL {
        relayed.add(&[("mode", path.name())], workers.relayed[path as usize]);
    }
    for reason in Fallback::ALL {
        fallbacks.add(
            &[("reason", reason.name())],
            workers.fallbacks[reason as usize],
        );
    }
    let mut connections = gauge(
        "tollgate_worker_connections",
        "Connections a worker has open, those without a whole header included.",
    );
    for worker in 0..view.workers {
        let open = view.spread.open(worker) as u64;
        connections.add(&[("worker", &worker.to_string())], open);
    }
    pipes.add(&[("state", "lent")], workers.pipes_lent);
    pipes.add(&[("state", "idle")], workers.pipes_idle);
    [relayed, fallbacks, pipes, connections]
        .map(Family::into_proto)
        .into()
}

fn dns_queries(view: &View) -> MetricFamily {
    let mut queries = counter(
        "tollgate_dns_queries_total",
        "Questions sent to name servers, each try counted.",
    );
    queries.add(&[], view.dns_queries.load(Ordering::Relaxed));
    queries.into_proto()
}

fn build_info() -> MetricFamily {
    let mut info = gauge("tollgate_build_info", "The version that runs; always 1.");
    info.add(&[("version", env!("CARGO_PKG_VERSION"))], 1);
    info.into_proto()
}

fn phase(view: &View) -> MetricFamily {
    let now = view.readiness.stand.borrow().phase;
    let mut phase = gauge(
        "tollgate_phase",
        "Whether the process serves or how far it is drained: 1 for the phase that it is in, 0 for the others.",
    );
    for each in Phase::ALL {
        phase.add(&[("phase", each.name())], u64::from(each == now));
    }
    phase.into_proto()
}

fn dropped_lines(view: &View) -> MetricFamily {
    let mut dropped = counter(
        "tollgate_log_lines_dropped_total",
        "Lines of the log that were dropped because standard error took none.",
    );
    dropped.add(&[], view.dropped_lines.count());
    dropped.into_proto()
}
