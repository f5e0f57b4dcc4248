//! What is measured, and through which relays.

use std::time::Duration;

use crate::variant::Role;

/// What moves, and which way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Traffic {
    /// As many bytes as fit, from the client to the origin.
    ToUpstream,
    /// The other way.
    ToClient,
    /// Requests of so many bytes and answers of the same size; each connection asks as soon as it was answered.
    RequestResponse(usize),
    /// A connection for each request: header, request, answer, closed by the client. So many at a time.
    ShortConnections,
    /// Requests and answers of 100 B to 64 KiB with pauses between, beside one bulk flow to the client.
    Mixed,
    /// Requests of 1 KiB at a set rate whatever comes of them, beside one bulk flow to the client.
    OpenLoop,
}

/// What a workload's figures are counted by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    /// Bulk.
    Byte,
    /// Requests.
    Transaction,
    /// Bytes of both, where requests go beside bulk.
    Both,
}

/// How bulk is cut up on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cut {
    /// Packets of up to 64 KiB, filled densely: what two programs on one machine send each other.
    Dense,
    /// Each page has one segment's payload in it, as network cards deliver them; many to a packet, as GRO joins them.
    Fragments,
    /// The same, one to a packet: GRO and TSO are off.
    Packets,
}

/// A kind of traffic on so many connections.
#[derive(Clone, Debug)]
pub(crate) struct Workload {
    /// For the report and for `BENCH_ONLY`: without a comma.
    pub(crate) name: String,
    /// What moves.
    pub(crate) traffic: Traffic,
    /// On how many.
    pub(crate) connections: usize,
    /// The relay shares the core of client and origin.
    pub(crate) same_core: bool,
    /// How bulk is cut up on the wire.
    pub(crate) cut: Cut,
    /// Whether who receives bulk copies it, as programs do; else it is thrown away in the kernel, which loads the relay more.
    pub(crate) copied: bool,
    /// Through which relays.
    relays: Vec<Role>,
}

impl Workload {
    fn new(name: String, traffic: Traffic, connections: usize, relays: &[Role]) -> Self {
        Self {
            name,
            traffic,
            connections,
            same_core: false,
            cut: Cut::Dense,
            copied: false,
            relays: relays.to_vec(),
        }
    }

    /// What its figures are counted by.
    pub(crate) fn unit(&self) -> Unit {
        match self.traffic {
            Traffic::ToUpstream | Traffic::ToClient => Unit::Byte,
            Traffic::RequestResponse(_) | Traffic::ShortConnections => Unit::Transaction,
            Traffic::Mixed | Traffic::OpenLoop => Unit::Both,
        }
    }

    /// Whether it goes through this relay.
    pub(crate) fn is_for(&self, role: Role) -> bool {
        self.relays.contains(&role)
    }

    /// How long it is measured: tails need more than means.
    pub(crate) fn length(&self, usual: Duration) -> Duration {
        match self.unit() {
            Unit::Both => usual.mul_f64(1.5),
            _ => usual,
        }
    }
}

/// Sizes of requests, as the report calls them.
pub(crate) const SIZES: [(usize, &str); 3] =
    [(100, "100 B"), (1024, "1 KiB"), (16 * 1024, "16 KiB")];

/// The name of a bulk workload.
pub(crate) fn bulk_name(to: &str, flows: usize) -> String {
    let s = if flows == 1 { "" } else { "s" };
    format!("bulk {to} {flows} flow{s}")
}

/// The name of a request/response workload.
pub(crate) fn exchange_name(size: &str, connections: usize) -> String {
    let s = if connections == 1 { "" } else { "s" };
    format!("request/response {size} {connections} connection{s}")
}

/// What is added to the names of those that differ by it.
pub(crate) const FRAGMENTS: &str = " in MTU-sized fragments";
pub(crate) const COPIED: &str = " copied by the receiver";
pub(crate) const PACKETS: &str = " in MTU-sized packets";
pub(crate) const UNPRIVILEGED: &str = " as an unprivileged user";
/// Names of those that there is one of.
pub(crate) const SHORT: &str = "short connections with PROXY v2 header";
pub(crate) const MIXED: &str = "500 mixed sessions beside a bulk flow";
pub(crate) const OPEN_LOOP: &str = "open-loop 1 KiB on 64 connections beside a bulk flow";

const DIRECTIONS: [(Traffic, &str); 2] = [
    (Traffic::ToUpstream, "to_upstream"),
    (Traffic::ToClient, "to_client"),
];

/// All of them.
pub(crate) fn workloads() -> Vec<Workload> {
    use Role::*;
    // Settings by hand matter for bulk only.
    let bulk = [
        Ours,
        Before,
        Nginx,
        NginxTuned,
        Haproxy,
        HaproxySpliceAuto,
        HaproxySplice,
        HaproxyTuned,
        Nat,
        NoRelay,
    ];
    let fragments = [
        Ours,
        Before,
        NginxTuned,
        HaproxySplice,
        HaproxyTuned,
        Nat,
        NoRelay,
    ];
    let machine = [Ours, Before, HaproxySplice, Nat, NoRelay];
    let defaults = [Ours, Before, Nginx, Haproxy, NoRelay];
    let with_nat = [Ours, Before, Nginx, Haproxy, Nat, NoRelay];
    let unprivileged = [
        OursUnprivileged,
        OursAmongIdle,
        HaproxyUnprivileged,
        HaproxyAmongIdle,
    ];
    let mut all = Vec::new();
    for flows in [1, 16] {
        for (traffic, to) in DIRECTIONS {
            all.push(Workload::new(bulk_name(to, flows), traffic, flows, &bulk));
        }
    }
    for (traffic, to) in DIRECTIONS {
        let mut workload = Workload::new(bulk_name(to, 1) + COPIED, traffic, 1, &machine);
        workload.copied = true;
        all.push(workload);
    }
    for flows in [1, 16] {
        for (traffic, to) in DIRECTIONS {
            let name = bulk_name(to, flows) + FRAGMENTS;
            let mut workload = Workload::new(name, traffic, flows, &fragments);
            workload.cut = Cut::Fragments;
            all.push(workload);
        }
        let name = bulk_name("to_client", flows) + PACKETS;
        let mut workload = Workload::new(name, Traffic::ToClient, flows, &fragments);
        workload.cut = Cut::Packets;
        all.push(workload);
    }
    for flows in [1, 16] {
        let name = bulk_name("to_client", flows) + UNPRIVILEGED;
        all.push(Workload::new(name, Traffic::ToClient, flows, &unprivileged));
    }
    for (size, name) in SIZES {
        for connections in [1, 64, 512] {
            let nat = (size, connections) == (1024, 64);
            let relays: &[Role] = if nat { &with_nat } else { &defaults };
            let traffic = Traffic::RequestResponse(size);
            all.push(Workload::new(
                exchange_name(name, connections),
                traffic,
                connections,
                relays,
            ));
        }
    }
    let name = exchange_name("1 KiB", 1) + " on one core for all";
    let mut one_core = Workload::new(name, Traffic::RequestResponse(1024), 1, &defaults);
    one_core.same_core = true;
    all.push(one_core);
    all.push(Workload::new(
        SHORT.to_owned(),
        Traffic::ShortConnections,
        32,
        &defaults,
    ));
    all.push(Workload::new(
        MIXED.to_owned(),
        Traffic::Mixed,
        500,
        &defaults,
    ));
    all.push(Workload::new(
        OPEN_LOOP.to_owned(),
        Traffic::OpenLoop,
        64,
        &defaults,
    ));
    all
}
