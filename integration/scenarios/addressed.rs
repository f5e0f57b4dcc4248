//! A relay whose upstream is a name, with a server behind each of its addresses: what tests of choosing, failing and leaving stand on.

use super::world::{self, ENDPOINT, Hosts, SHIPPED, connected};
use crate::harness::{
    agent::Agent,
    dns::{Answer, Dns},
    netns::Host,
    origin::{Manner, Origin},
    relay::{Baseline, Relay, Start},
    stream::End,
};

/// The name in the shipped configuration, and the one of a second group.
pub(super) const NAME: &str = "cp.us-east-1.example.internal";
pub(super) const OTHER: &str = "cp.eu-west-1.example.internal";
/// Servers that stand ready.
pub(super) const ADDRESSES: [&str; 3] = ["10.30.0.2", "10.30.0.3", "10.30.0.4"];
const RESOLVER: &str = "10.30.0.53:53";

/// See the module.
pub(super) struct Addressed {
    pub(super) relay: Relay,
    pub(super) dns: Dns,
    /// At port 443 of [`ADDRESSES`], one each; they echo.
    pub(super) origins: Vec<Origin>,
    pub(super) hosts: Hosts,
    baseline: Baseline,
}

impl Addressed {
    /// The shipped configuration whose upstream has these `targets` (a TOML list) and more keys. `names`: what resolves to what.
    #[track_caller]
    pub(super) fn new(name: &str, names: &[(&str, Answer)], targets: &str, keys: &str) -> Self {
        let hosts = Hosts::new(name);
        hosts.origin.address("eth0", "10.30.0.53/24");
        for address in &ADDRESSES[1..] {
            hosts.origin.address("eth0", &format!("{address}/24"));
        }
        let dns = Dns::start(&hosts.origin, RESOLVER);
        for (name, answer) in names {
            dns.set(name, answer.clone());
        }
        let origins = ADDRESSES.map(|address| {
            let address = format!("{address}:443");
            Origin::start(&hosts.origin, &address, Manner::Echo)
        });
        let tables = format!("[resolver]\nservers = [\"{RESOLVER}\"]\n\n[health]\n");
        let relay = Start::with(SHIPPED)
            .replace("[health]\n", &tables)
            .replace(
                &format!("targets = [\"{NAME}:443\"]"),
                &format!("targets = {targets}\n{keys}"),
            )
            .on(&hosts.relay);
        Self {
            baseline: Baseline::of(&relay),
            relay,
            dns,
            origins: origins.into(),
            hosts,
        }
    }

    /// With the name alone.
    #[track_caller]
    pub(super) fn named(name: &str, addresses: &[&str], ttl: u32, keys: &str) -> Self {
        let names = [(NAME, Answer::addresses(addresses, ttl))];
        let world = Self::new(name, &names, &format!("[\"{NAME}:443\"]"), keys);
        world.wait_usable(addresses.len() as u64);
        world
    }

    /// Waits until so many addresses may be used.
    #[track_caller]
    pub(super) fn wait_usable(&self, n: u64) {
        let labels = [("state", "usable")];
        self.relay
            .wait_metric("tollgate_upstream_addresses", &labels, n);
    }

    /// A session that is open and has moved 1000 bytes there and back, and which of the servers has it.
    #[track_caller]
    pub(super) fn open(&self) -> (Agent, usize) {
        let before = self.received();
        let agent = self.node().run(async {
            let mut agent = connected(ENDPOINT).await?;
            agent.exchange(1000).await?;
            Ok::<_, std::io::Error>(agent)
        });
        let agent = agent.expect("an address that works");
        let after = self.received();
        let at = before.iter().zip(&after).position(|(a, b)| a < b);
        (agent, at.expect("one of them read it"))
    }

    /// Payload that each server read.
    fn received(&self) -> Vec<u64> {
        let books = self.origins.iter().map(Origin::books);
        books.map(|books| books.received).collect()
    }

    /// Moves 1000 bytes more on an open session.
    #[track_caller]
    pub(super) fn exchange(&self, mut agent: Agent) -> Agent {
        let agent = self.node().run(async move {
            agent.exchange(1000).await?;
            Ok::<_, std::io::Error>(agent)
        });
        agent.expect("it is open")
    }

    /// Ends a session in order.
    #[track_caller]
    pub(super) fn finish(&self, mut agent: Agent) {
        self.node().run(async move {
            agent.finish().expect("it is open");
            assert_eq!(agent.expect_to_end(0).await.expect("it ends"), End::Fin);
        });
    }

    /// A whole session; which of the servers had it.
    #[track_caller]
    pub(super) fn session(&self) -> usize {
        let (agent, at) = self.open();
        self.finish(agent);
        at
    }

    pub(super) fn node(&self) -> &Host {
        &self.hosts.node
    }

    /// Waits until so many connections were closed with `reason`.
    #[track_caller]
    pub(super) fn wait_closed(&self, reason: &str, n: u64) {
        let labels = [("reason", reason)];
        self.relay
            .wait_metric("tollgate_connections_closed_total", &labels, n);
    }

    /// See [`world::assert_at_rest`].
    #[track_caller]
    pub(super) fn assert_at_rest(&self) {
        world::assert_at_rest(&self.relay, self.baseline);
    }
}
