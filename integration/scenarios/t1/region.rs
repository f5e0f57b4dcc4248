//! What stands in one Region of T1: balancers, relays, agents' VPCs, and the nodes of the control plane's load balancers.

use std::net::SocketAddr;

use super::plan::{
    ACCOUNTS, AGENT, HEALTH_PORT, INTERFACE, MAIN, PORTS, REGIONS, SIGNALS, STANDBY, Scene,
    Upstream, VPC_RESOLVER, ZONES, agents_name, balancers_name, node_address, node_name, target,
    upstream, upstreams,
};
use crate::{
    harness::{
        dns::{Answer, Dns},
        netns::{Host, Lab},
        nlb::{Config, HealthCheck, Listen, Nlb},
        origin::{Manner, Origin},
        relay::{Baseline, Relay, Start},
        tls::{Identity, Terminator},
    },
    scenarios::world::SHIPPED,
};

pub(super) struct Region {
    /// For agents that speak plain HTTP, and for those that speak TLS.
    pub(super) nlbs: [Nlb; 2],
    pub(super) nlb_host: Host,
    pub(super) relays: Vec<Relay>,
    pub(super) baselines: Vec<Baseline>,
    pub(super) dns: Dns,
    pub(super) router: Host,
    pub(super) consumers: Vec<Consumer>,
    number: usize,
}

pub(super) struct Consumer {
    pub(super) endpoint: &'static str,
    pub(super) vpc: Host,
    pub(super) interface: Host,
    _dns: Dns,
}

/// One zone of a Region with a control plane: a node of each signal's load balancer.
pub(super) struct Zone {
    pub(super) region: usize,
    pub(super) host: Host,
    interface: String,
    pub(super) nodes: Vec<Node>,
}

/// One address of a load balancer.
pub(super) struct Node {
    pub(super) signal: &'static str,
    pub(super) address: String,
    pub(super) origin: Origin,
    pub(super) tls: Terminator,
}

impl Zone {
    #[track_caller]
    pub(super) fn new(
        lab: &Lab,
        router: &Host,
        region: usize,
        zone: usize,
        identity: &Identity,
    ) -> Self {
        let host = lab.host(&format!("zone-{zone}-{}", REGIONS[region]));
        let wire = lab.veth(
            (router, &format!("10.3{region}.{zone}.1/24")),
            (&host, &format!("10.3{region}.{zone}.2/24")),
        );
        host.route("default", &format!("10.3{region}.{zone}.1"));
        let mut zone_of_it = Self {
            region,
            host,
            interface: wire.interface(1).to_owned(),
            nodes: Vec::new(),
        };
        for signal in SIGNALS {
            zone_of_it.add_node(signal, &node_address(region, zone, signal, 0), identity);
        }
        zone_of_it
    }

    /// A node of a signal's load balancer at one more address.
    #[track_caller]
    pub(super) fn add_node(&mut self, signal: &'static str, address: &str, identity: &Identity) {
        self.host.address(&self.interface, &format!("{address}/24"));
        let name = node_name(signal, address);
        let origin = Origin::start(&self.host, &format!("{address}:80"), Manner::Mirror(name));
        let secure = format!("{address}:443");
        let tls = Terminator::start(&self.host, &secure, identity, origin.address());
        self.nodes.push(Node {
            signal,
            address: address.to_owned(),
            origin,
            tls,
        });
    }
}

impl Region {
    #[track_caller]
    pub(super) fn new(lab: &Lab, number: usize, router: Host, scene: &Scene) -> Self {
        let name = REGIONS[number];
        router.ip(&format!("address add 10.2{number}.0.2/32 dev lo"));
        let dns = Dns::start(&router, &format!("10.2{number}.0.2:53"));
        for signal in SIGNALS {
            for region in [MAIN, STANDBY] {
                let zones = if region == MAIN { ZONES } else { 1 };
                let addresses: Vec<String> = (1..=zones)
                    .map(|zone| node_address(region, zone, signal, 0))
                    .collect();
                let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
                let answer = Answer::rotating(&addresses, scene.ttl);
                dns.set(&balancers_name(signal, region), answer);
            }
        }
        let nlb_host = lab.host(&format!("nlb-{name}"));
        let accounts = ACCOUNTS.iter().filter(|(region, _)| *region == number);
        let consumers: Vec<Consumer> = accounts
            .map(|(_, endpoint)| Consumer::new(lab, endpoint))
            .collect();
        let nlbs = PORTS.map(|(port, _)| {
            let listen = consumers.iter().map(|consumer| {
                let address = format!("{INTERFACE}:{port}");
                Listen::endpoint(&consumer.interface, &address, consumer.endpoint)
            });
            let mut config = Config::new(listen.collect(), &[]);
            // As the shipped configuration's first lines want it: a target that leaves may finish what it has.
            config.reset_when_unhealthy = false;
            config.health = Some(HealthCheck {
                port: Some(HEALTH_PORT),
                ..HealthCheck::http("/readyz")
            });
            Nlb::start(&nlb_host, config)
        });
        let mut region = Self {
            nlbs,
            nlb_host,
            relays: Vec::new(),
            baselines: Vec::new(),
            dns,
            router,
            consumers,
            number,
        };
        for _ in 0..2 {
            let relay = region.add_relay(lab, scene);
            region.register(relay);
        }
        region
    }

    /// Starts one more relay; its index.
    #[track_caller]
    pub(super) fn add_relay(&mut self, lab: &Lab, scene: &Scene) -> usize {
        let (number, n) = (self.number, self.relays.len() + 1);
        let host = lab.host(&format!("relay-{n}-{}", REGIONS[number]));
        lab.veth(
            (&self.nlb_host, &format!("10.2{number}.{n}.10/24")),
            (&host, &format!("10.2{number}.{n}.2/24")),
        );
        let router = format!("10.2{number}.1{n}.1");
        lab.veth(
            (&host, &format!("10.2{number}.1{n}.2/24")),
            (&self.router, &format!("{router}/24")),
        );
        host.route(&format!("10.2{number}.0.2/32"), &router);
        for region in [MAIN, STANDBY] {
            host.route(&format!("10.3{region}.0.0/16"), &router);
        }
        let relay = configuration(number, scene).on(&host);
        // Each name of the control plane that stands by resolves, whether or not it is there.
        for upstream in upstreams() {
            for region in [MAIN, STANDBY] {
                let target = target(&upstream, region);
                let labels = [("upstream", upstream.name.as_str()), ("target", &target)];
                let addresses = if region == MAIN { ZONES } else { 1 };
                let known = "tollgate_upstream_addresses";
                relay.wait_until(&format!("{target} to resolve"), || {
                    relay.metric(known, &labels) == addresses as u64
                });
            }
        }
        self.baselines.push(Baseline::of(&relay));
        self.relays.push(relay);
        n - 1
    }

    /// Where a relay takes connections of agents that speak plain HTTP, or TLS.
    pub(super) fn listener(&self, relay: usize, tls: bool) -> SocketAddr {
        let port = PORTS[usize::from(tls)].1;
        let address = format!("10.2{}.{}.2:{port}", self.number, relay + 1);
        address.parse().expect("an address")
    }

    /// Makes a relay a target of both balancers.
    pub(super) fn register(&self, relay: usize) {
        for (nlb, tls) in self.nlbs.iter().zip([false, true]) {
            nlb.register(self.listener(relay, tls));
        }
    }

    /// Waits until both balancers take a relay for healthy, or not.
    #[track_caller]
    pub(super) fn wait_health(&self, relay: usize, healthy: bool) {
        for (nlb, tls) in self.nlbs.iter().zip([false, true]) {
            nlb.wait_health(self.listener(relay, tls), healthy);
        }
    }
}

impl Consumer {
    #[track_caller]
    fn new(lab: &Lab, endpoint: &'static str) -> Self {
        let vpc = lab.host(&format!("agents-{endpoint}"));
        let interface = lab.host(endpoint);
        let wire = lab.veth(
            (&vpc, &format!("{AGENT}/24")),
            (&interface, &format!("{INTERFACE}/24")),
        );
        interface.address(wire.interface(1), &format!("{VPC_RESOLVER}/24"));
        // The private zone of this VPC.
        let dns = Dns::start(&interface, &format!("{VPC_RESOLVER}:53"));
        for signal in SIGNALS {
            dns.set(&agents_name(signal), Answer::addresses(&[INTERFACE], 60));
        }
        Self {
            endpoint,
            vpc,
            interface,
            _dns: dns,
        }
    }
}

/// The shipped configuration, made one of a Region's relays.
#[track_caller]
fn configuration(region: usize, scene: &Scene) -> Start {
    let routes = |condition: &str, tls: bool| {
        let routes = SIGNALS.map(|signal| {
            let (name, upstream) = (agents_name(signal), upstream(signal, tls));
            format!("    {{ {condition} = \"{name}\", upstream = \"{upstream}\" }},\n")
        });
        format!("routes = [\n{}]\n", routes.concat())
    };
    let trusted = format!("trusted_peers = [\"10.2{region}.0.0/16\"]");
    let mut tables = format!(
        "[resolver]\nservers = [\"10.2{region}.0.2:53\"]\n{}\n\
         [[listener]]\nname = \"ingest-http\"\nbind = \"0.0.0.0:8080\"\n{trusted}\n{}\n",
        scene.tables,
        routes("host", false)
    );
    let keys = |upstream: &Upstream| {
        format!(
            "targets = [\"{}\", {{ target = \"{}\", priority = 1 }}]\n{}\n",
            target(upstream, MAIN),
            target(upstream, STANDBY),
            scene.upstream
        )
    };
    let mut all = upstreams().collect::<Vec<_>>();
    let last = all.pop().expect("there are six");
    for upstream in all {
        let keys = keys(&upstream);
        tables.push_str(&format!(
            "[[upstream]]\nname = \"{}\"\n{keys}\n",
            upstream.name
        ));
    }
    Start::with(SHIPPED)
        .replace("upstream = \"control-plane\"\n", &routes("sni", true))
        .replace("trusted_peers = [\"10.20.0.0/16\"]", &trusted)
        .replace("\"control-plane\"", &format!("\"{}\"", last.name))
        .replace(
            "targets = [\"cp.us-east-1.example.internal:443\"]\n",
            &keys(&last),
        )
        .replace("[health]\n", &format!("{tables}[health]\n"))
}
