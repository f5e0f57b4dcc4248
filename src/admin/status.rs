//! `/status`: the state of the process as one JSON document.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use tokio::time::Instant;

use super::{View, configured, upstreams};
use crate::account::{AccountTotals, CloseReason, Direction, refused_name};

pub(super) fn status(view: &View) -> Value {
    let snapshot = view.books.snapshot();
    let (now, in_force) = (Instant::now(), view.in_force());
    let [ledger, audit] = view.readiness.booking.status();
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "phase": view.readiness.stand.borrow().phase.name(),
        "drain": drain(view),
        "uptime_seconds": now.duration_since(view.began).as_secs(),
        "workers": view.workers,
        "ledger": ledger,
        "audit": audit,
        "config": configured::status(&in_force, &view.reloads),
        "listeners": in_force.rooms.iter().map(|room| json!({
            "name": &*room.listener,
            "addresses": room.addresses,
            "sessions": room.sessions.taken(),
            "max_sessions": room.sessions.most(),
            "pending": room.pending.taken(),
            "max_pending": room.pending.most(),
        })).collect::<Vec<_>>(),
        "upstreams": in_force.upstreams.iter().map(|upstream| upstreams::status(upstream, now)).collect::<Vec<_>>(),
        "accounts": snapshot.accounts.iter().map(account).collect::<Vec<_>>(),
        "overflowed": snapshot.overflowed,
    })
}

/// How far the process is on its way out, or out of the balancer.
pub(super) fn drain(view: &View) -> Value {
    let pending = view
        .in_force()
        .rooms
        .iter()
        .map(|room| room.pending.taken())
        .sum();
    let sessions = view.spread.all_open().saturating_sub(pending);
    view.readiness.stand.borrow().report(sessions)
}

fn account(account: &AccountTotals) -> Value {
    let counters = &account.counters;
    let closed = CloseReason::ALL
        .iter()
        .zip(counters.closed)
        .filter(|(_, n)| *n > 0);
    let refused = counters.refused.into_iter().enumerate();
    let refused = refused.filter(|(_, n)| *n > 0);
    json!({
        "listener": &*account.key.listener,
        "endpoint": &*account.key.endpoint,
        "consumer": &*account.key.consumer,
        "upstream": &*account.key.upstream,
        "opened": counters.opened,
        "active": counters.active(),
        "closed": closed.map(|(reason, n)| (reason.name(), n)).collect::<BTreeMap<_, _>>(),
        "bytes_to_upstream": counters.bytes[Direction::ToUpstream as usize],
        "bytes_to_client": counters.bytes[Direction::ToClient as usize],
        "refused": refused.map(|(index, n)| (refused_name(index), n)).collect::<BTreeMap<_, _>>(),
        "connection_ms": counters.connection_ms,
    })
}
