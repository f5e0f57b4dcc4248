//! Two services behind one relay, and its books.

use std::{net::SocketAddr, path::PathBuf};

use crate::harness::{
    audit,
    netns::Host,
    relay::{Home, Relay, Start},
};
use crate::scenarios::world::Hosts;

/// One of two services: a listener, the upstream behind it, and where they are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Service {
    pub(super) listener: &'static str,
    pub(super) upstream: &'static str,
    /// Where the relay listens, as the balancer sees it.
    pub(super) at: &'static str,
    /// Where its origin is, as the relay sees it.
    pub(super) origin: &'static str,
}

impl Service {
    pub(super) fn address(&self) -> SocketAddr {
        self.at.parse().expect("an address")
    }
}

pub(super) const SERVICES: [Service; 2] = [
    Service {
        listener: "ingest",
        upstream: "control-plane",
        at: "10.20.0.2:8443",
        origin: "10.30.0.2:443",
    },
    Service {
        listener: "logs",
        upstream: "log-store",
        at: "10.20.0.2:8444",
        origin: "10.30.0.2:444",
    },
];

/// What a socket of the relay, or of an origin, holds at most in these tests: [`narrow`] sets it.
pub(super) const BUFFER: u64 = 256 * 1024;
/// What the kernel may put into a socket beyond that: a buffer is full when it is full, not when the next piece would not fit.
const PIECE: u64 = 64 * 1024;
/// The most that is moved at once: the largest pipe.
pub(super) const TRANSFER: u64 = 1024 * 1024;

/// What is booked of a direction that was cut, and never delivered: what the relay's send buffer held.
pub(super) const UNDELIVERED: u64 = BUFFER + PIECE + TRANSFER;
/// What a receiver that cuts leaves unread in its own buffer.
pub(super) const UNREAD: u64 = BUFFER + PIECE;

/// The relay of these tests: two listeners, two upstreams; the second listener has no way for endpoints that are no `vpce-`. Booked four times a second.
/// `more` is added in front, tables and all.
pub(super) fn two_services(more: &str) -> Start {
    let [ingest, logs] = SERVICES;
    Start::with(&format!(
        "relay_id = \"relay-a\"\n{more}\n\
         [[listener]]\nname = \"{}\"\nbind = \"0.0.0.0:8443\"\ntrusted_peers = [\"10.20.0.0/16\"]\nupstream = \"{}\"\n\
         [[listener]]\nname = \"{}\"\nbind = \"0.0.0.0:8444\"\ntrusted_peers = [\"10.20.0.0/16\"]\n\
         routes = [{{ endpoint = \"vpce-*\", upstream = \"{}\" }}]\n\
         [[upstream]]\nname = \"{}\"\ntargets = [\"{}\"]\n\
         [[upstream]]\nname = \"{}\"\ntargets = [\"{}\"]\n",
        ingest.listener,
        ingest.upstream,
        logs.listener,
        logs.upstream,
        ingest.upstream,
        ingest.origin,
        logs.upstream,
        logs.origin
    ))
}

/// The tables that most of these tests have: often booked, and audited into a file of the relay's own.
pub(super) const OFTEN: &str = "[ledger]\ninterval = \"1s\"\n[audit]\nsink = \"@DIR@/audit/audit.jsonl\"\n[drain]\naccept_for = \"0s\"\n";

/// Where [`OFTEN`] has the audit log.
pub(super) fn audit_log(home: &Home) -> PathBuf {
    home.path().join("audit/audit.jsonl")
}

/// All records of a relay that has ended, whose chain is whole and in which each opening has one close.
#[track_caller]
pub(super) fn audited(home: &Home) -> Vec<audit::Record> {
    let records = audit::records(&audit_log(home));
    audit::assert_chained(&records);
    records
}

/// A home with a folder for the audit log.
pub(super) fn home() -> Home {
    let home = Home::new();
    std::fs::create_dir(home.path().join("audit")).expect("/run is ours");
    home
}

/// Three hosts in a row, with small buffers, so that what was cut is bounded tightly.
#[track_caller]
pub(super) fn narrow(name: &str) -> Hosts {
    let hosts = Hosts::new(name);
    for host in [&hosts.node, &hosts.relay, &hosts.origin] {
        for of in ["tcp_wmem", "tcp_rmem"] {
            let sizes = format!("4096 65536 {BUFFER}");
            host.sysctl(&format!("net.ipv4.{of}"), &sizes);
        }
        // A port that was just used may be used again: there are many short connections.
        host.sysctl("net.ipv4.ip_local_port_range", "10000 65000");
        host.sysctl("net.ipv4.tcp_tw_reuse", "1");
    }
    hosts
}

/// Ends a relay in order and says whether that worked.
#[track_caller]
pub(super) fn end(relay: &Relay) {
    relay.signal(crate::harness::relay::Signal::TERM);
    assert_eq!(relay.wait_exit(), 0);
}

/// The report of the books, by these dimensions, as CSV.
#[track_caller]
pub(super) fn usage(home: &Home, host: &Host, by: &[&str]) -> Vec<crate::harness::ledger::Row> {
    let mut arguments = vec!["usage", "--config", "@CONFIG@", "--format", "csv"];
    for dimension in by {
        arguments.extend(["--by", dimension]);
    }
    crate::harness::ledger::report(&home.tollgate(host, &arguments).ok())
}
