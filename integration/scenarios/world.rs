//! The smallest world a relay can be tested in: a balancer's node, the relay, an origin, each a host of its own.

use std::net::SocketAddr;

use crate::harness::{
    agent::Agent,
    netns::{Host, Lab},
    nlb::header,
    origin::{Manner, Origin},
    relay::{Baseline, Relay, Start},
    stream::End,
};

/// The configuration that is shipped. Tests change what they must: addresses, and the bounds they are about.
pub(crate) const SHIPPED: &str = include_str!("../../systemd/tollgate.toml");

/// The endpoint most tests use.
pub(crate) const ENDPOINT: &str = "vpce-08d2bf15fac5001c9";

/// Where the relay's listener is, as the balancer sees it.
pub(crate) const LISTENER: &str = "10.20.0.2:8443";

/// Where the origin is, as the relay sees it.
pub(crate) const ORIGIN: &str = "10.30.0.2:443";

/// See the module. The agent stands on the balancer's node and writes headers itself.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) relay: Relay,
    pub(crate) origin: Origin,
    pub(crate) baseline: Baseline,
    pub(crate) node: Host,
    pub(crate) relay_host: Host,
    pub(crate) origin_host: Host,
    pub(crate) lab: Lab,
}

/// The three hosts and their wires: `eth0` of the relay leads to the node, `eth1` to the origin.
#[derive(Debug)]
pub(crate) struct Hosts {
    pub(crate) node: Host,
    pub(crate) relay: Host,
    pub(crate) origin: Host,
    pub(crate) lab: Lab,
}

impl Hosts {
    #[track_caller]
    pub(crate) fn new(name: &str) -> Self {
        let hosts = Self::without_wires(name);
        hosts.lab.veth(hosts.near()[0], hosts.near()[1]);
        hosts.lab.veth(hosts.far()[0], hosts.far()[1]);
        hosts
    }

    /// For a test that lays other wires between the [`near`](Self::near) ends and between the [`far`](Self::far) ones.
    #[track_caller]
    pub(crate) fn without_wires(name: &str) -> Self {
        let lab = Lab::new(name);
        let (node, relay, origin) = (lab.host("node"), lab.host("relay"), lab.host("origin"));
        Self {
            node,
            relay,
            origin,
            lab,
        }
    }

    /// The ends of the wire between node and relay.
    pub(crate) fn near(&self) -> [(&Host, &'static str); 2] {
        [(&self.node, "10.20.0.10/24"), (&self.relay, "10.20.0.2/24")]
    }

    /// The ends of the wire between relay and origin.
    pub(crate) fn far(&self) -> [(&Host, &'static str); 2] {
        [
            (&self.relay, "10.30.0.1/24"),
            (&self.origin, "10.30.0.2/24"),
        ]
    }
}

/// The shipped configuration with the origin's address in place of the control plane's.
pub(crate) fn shipped() -> Start {
    Start::with(SHIPPED).replace("cp.us-east-1.example.internal:443", ORIGIN)
}

/// The shipped configuration with `keys` added to its listener.
pub(crate) fn shipped_with(keys: &str) -> Start {
    shipped().replace(
        "name = \"ingest\"\n",
        &format!("name = \"ingest\"\n{keys}\n"),
    )
}

/// The shipped configuration with tables added, such as `[session]`; the origin's address in place of the control plane's.
#[track_caller]
pub(crate) fn shipped_and(tables: &str) -> Start {
    shipped().replace("[health]\n", &format!("{tables}\n\n[health]\n"))
}

impl World {
    /// The shipped configuration before an origin of this manner.
    #[track_caller]
    pub(crate) fn new(name: &str, manner: Manner) -> Self {
        Self::with(name, manner, shipped())
    }

    /// A relay started like this before an origin of this manner.
    #[track_caller]
    pub(crate) fn with(name: &str, manner: Manner, start: Start) -> Self {
        let Hosts {
            node,
            relay: relay_host,
            origin: origin_host,
            lab,
        } = Hosts::new(name);
        let origin = Origin::start(&origin_host, ORIGIN, manner);
        let relay = start.on(&relay_host);
        let baseline = Baseline::of(&relay);
        Self {
            relay,
            origin,
            baseline,
            node,
            relay_host,
            origin_host,
            lab,
        }
    }

    /// Payload bytes booked to `endpoint` in a direction.
    #[track_caller]
    pub(crate) fn booked(&self, endpoint: &str, direction: &str) -> u64 {
        self.relay.metric(
            "tollgate_bytes_total",
            &[("endpoint", endpoint), ("direction", direction)],
        )
    }

    /// Waits until so many connections were closed with `reason`.
    #[track_caller]
    pub(crate) fn wait_closed(&self, reason: &str, n: u64) {
        self.relay.wait_metric(
            "tollgate_connections_closed_total",
            &[("reason", reason)],
            n,
        );
    }

    /// See [`assert_at_rest`].
    #[track_caller]
    pub(crate) fn assert_at_rest(&self) {
        assert_at_rest(&self.relay, self.baseline);
    }
}

/// What every test ends with: nothing is open, nothing is left over, nothing moves, the books add up.
#[track_caller]
pub(crate) fn assert_at_rest(relay: &Relay, baseline: Baseline) {
    relay.wait_metric("tollgate_connections_active", &[], 0);
    relay.wait_metric("tollgate_pipes", &[("state", "lent")], 0);
    let kept = relay.metric("tollgate_pipes", &[("state", "idle")]);
    let kept = usize::try_from(kept).expect("a few");
    baseline.and_pipes(kept).assert_back(relay);
    let metrics = relay.metrics();
    let opened = metrics.sum("tollgate_connections_opened_total", &[]);
    let closed = metrics.sum("tollgate_connections_closed_total", &[]);
    assert_eq!(opened, closed, "opened = closed + active");
    assert_eq!(
        metrics.sum("tollgate_connections_closed_total", &[("reason", "error")]),
        0
    );
}

/// The listener's address.
pub(crate) fn listener() -> SocketAddr {
    LISTENER.parse().expect("an address")
}

/// A header as NLB writes it for a client of `endpoint`.
pub(crate) fn privatelink_header(endpoint: &str) -> Vec<u8> {
    let client = "172.31.7.113:51442".parse().expect("an address");
    let service = "172.31.10.31:80".parse().expect("an address");
    header::proxy(client, service, Some(endpoint))
}

/// A connection through the balancer's node whose header is sent. Runs on the node.
pub(crate) async fn connected(endpoint: &str) -> std::io::Result<Agent> {
    let mut agent = Agent::connect(listener()).await?;
    agent.preface(&[&privatelink_header(endpoint)]).await?;
    Ok(agent)
}

/// One connection through the relay, with a thousand bytes both ways. The agent stands on `node`.
#[track_caller]
pub(crate) fn exchange(node: &Host) {
    node.run(async {
        let mut agent = connected(ENDPOINT).await.unwrap();
        agent.exchange(1000).await.unwrap();
        agent.finish().unwrap();
        assert_eq!(agent.expect_to_end(0).await.unwrap(), End::Fin);
    });
}

/// One connection that is to be reset without a byte.
#[track_caller]
pub(crate) fn refused(node: &Host) {
    let outcome = node.run(async {
        let mut agent = Agent::connect(listener()).await?;
        agent.write(&privatelink_header(ENDPOINT)).await?;
        agent.read_to_end().await
    });
    assert_eq!(outcome.unwrap(), (Vec::new(), End::Reset));
}
