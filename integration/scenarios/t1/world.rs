//! Where everybody stands in T1, with the addresses they have.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};

use crate::{
    harness::{
        dns::{Answer, Dns},
        netns::{Host, Lab},
        nlb::{Config, HealthCheck, Listen, Nlb},
        origin::{Manner, Origin},
        relay::{Baseline, Metrics, Relay, Start},
        steady::{Connection, Plan, Service, Steady},
        tls::{Identity, Terminator},
        wan::{Shape, Wan},
    },
    scenarios::world::{self, SHIPPED},
};

/// What agents push, each to a load balancer of its own.
pub(super) const SIGNALS: [&str; 3] = ["metrics", "logs", "traces"];
/// The main Region, and two others. The last has a control plane too, which stands by.
pub(super) const REGIONS: [&str; 3] = ["us-east-1", "eu-west-1", "us-west-2"];
pub(super) const MAIN: usize = 0;
pub(super) const STANDBY: usize = 2;
/// Zones of the main Region; the control plane that stands by has one.
pub(super) const ZONES: usize = 3;
/// Ports of the endpoint and of the load balancers, and where relays listen for them.
const PORTS: [(u16, u16); 2] = [(80, 8080), (443, 8443)];
/// Where relays listen for the balancer's checks.
const HEALTH_PORT: u16 = 9901;

/// Accounts whose agents push: Region, endpoint. All their VPCs have the same addresses, as they may.
const ACCOUNTS: [(usize, &str); 4] = [
    (0, "vpce-0a11111111111111a"),
    (1, "vpce-0b22222222222222b"),
    (1, "vpce-0c33333333333333c"),
    (2, "vpce-0d44444444444444d"),
];
/// In each of those VPCs: the agent, the endpoint's interface, the name server.
pub(super) const AGENT: &str = "10.1.0.5";
pub(super) const INTERFACE: &str = "10.1.0.10";
const VPC_RESOLVER: &str = "10.1.0.2";

/// How Regions are joined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Between {
    /// Each VPC is peered with each other one.
    Peering,
    /// All are attached to one Transit Gateway, which routes.
    Hub,
}

/// Which part of T1 a test needs, and what it changes in the shipped configuration.
#[derive(Clone, Debug)]
pub(super) struct Scene {
    /// So many of [`REGIONS`], from the first on.
    pub(super) regions: usize,
    pub(super) between: Between,
    /// Keys of every upstream.
    pub(super) upstream: String,
    /// Tables of the relays.
    pub(super) tables: String,
    /// In seconds: of the load balancers' names.
    pub(super) ttl: u32,
}

impl Default for Scene {
    fn default() -> Self {
        Self {
            regions: 2,
            between: Between::Peering,
            upstream: String::new(),
            tables: String::new(),
            ttl: 60,
        }
    }
}

/// See the module of the same name.
pub(super) struct World {
    pub(super) regions: Vec<Region>,
    pub(super) zones: Vec<Zone>,
    /// By the two Regions they join; with a hub, the Region comes twice.
    pub(super) wans: BTreeMap<(usize, usize), Wan>,
    pub(super) hub: Option<Host>,
    pub(super) identity: Identity,
    scene: Scene,
    lab: Lab,
}

pub(super) struct Region {
    /// For agents that speak plain HTTP, and for those that speak TLS.
    pub(super) nlbs: [Nlb; 2],
    pub(super) nlb_host: Host,
    pub(super) relays: Vec<Relay>,
    baselines: Vec<Baseline>,
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

/// As agents know a signal.
pub(super) fn agents_name(signal: &str) -> String {
    format!("{signal}.observability.internal")
}

/// As relays know its load balancer in a Region.
pub(super) fn balancers_name(signal: &str, region: usize) -> String {
    format!("{signal}.{}.example.internal", REGIONS[region])
}

/// What a node of a load balancer says who it is.
pub(super) fn node_name(signal: &str, address: &str) -> String {
    format!("{signal} at {address}")
}

/// The subnet of a zone.
pub(super) fn zone_network(region: usize, zone: usize) -> String {
    format!("10.3{region}.{zone}.0/24")
}

/// A signal's load balancer in a zone, at first (`set` 0) or after all its addresses have been replaced (1).
pub(super) fn node_address(region: usize, zone: usize, signal: &str, set: usize) -> String {
    let at = SIGNALS.iter().position(|name| *name == signal);
    let at = at.expect("one of the three");
    format!("10.3{region}.{zone}.{}1{}", set + 1, at + 1)
}

impl World {
    #[track_caller]
    pub(super) fn new(name: &str, scene: Scene) -> Self {
        let lab = Lab::new(name);
        let names: Vec<String> = SIGNALS.iter().map(|signal| agents_name(signal)).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let identity = Identity::new(&names).expect("a certificate");
        let routers: Vec<Host> = (0..scene.regions)
            .map(|region| lab.router(&format!("vpc-{}", REGIONS[region])))
            .collect();
        let (wans, hub) = joined(&lab, &routers, scene.between);
        let mut zones = Vec::new();
        for region in [MAIN, STANDBY] {
            let count = if region == MAIN { ZONES } else { 1 };
            for zone in 1..=count {
                if let Some(router) = routers.get(region) {
                    zones.push(Zone::new(&lab, router, region, zone, &identity));
                }
            }
        }
        let regions = routers.into_iter().enumerate();
        let regions = regions
            .map(|(number, router)| Region::new(&lab, number, router, &scene))
            .collect();
        let world = Self {
            regions,
            zones,
            wans,
            hub,
            identity,
            scene,
            lab,
        };
        for region in &world.regions {
            for relay in 0..region.relays.len() {
                region.wait_health(relay, true);
            }
        }
        world
    }

    /// Every account's agents, each at this pace, to all three services in plain text and in TLS.
    pub(super) fn traffic(&self, pace: Duration) -> Traffic {
        let services: Vec<Service> = PORTS
            .iter()
            .flat_map(|(port, _)| SIGNALS.map(|signal| (*port, signal)))
            .map(|(port, signal)| Service {
                name: agents_name(signal),
                port,
                path: format!("/v1/{signal}"),
                tls: (port == 443).then(|| self.identity.clone()),
            })
            .collect();
        let consumers = self.regions.iter().flat_map(|region| &region.consumers);
        let sources = consumers.map(|consumer| {
            let plan = Plan {
                resolver: format!("{VPC_RESOLVER}:53").parse().expect("an address"),
                from: AGENT.parse().expect("an address"),
                services: services.clone(),
                pace,
                bytes: 3000,
                patience: Duration::from_secs(15),
            };
            (consumer.endpoint, Steady::start(&consumer.vpc, plan))
        });
        Traffic {
            sources: sources.collect(),
        }
    }

    pub(super) fn relays(&self) -> impl Iterator<Item = &Relay> {
        self.regions.iter().flat_map(|region| &region.relays)
    }

    /// Waits until a metric of each relay that runs is so much.
    #[track_caller]
    pub(super) fn wait_each(&self, name: &str, labels: &[(&str, &str)], wanted: u64) {
        for relay in self.relays().filter(|relay| relay.is_running()) {
            relay.wait_metric(name, labels, wanted);
        }
    }

    /// What all relays that run count now.
    #[track_caller]
    pub(super) fn counts(&self) -> Counts {
        let relays = self.relays().filter(|relay| relay.is_running());
        Counts(relays.map(Relay::metrics).collect())
    }

    /// To which target the balancers sent each connection, by endpoint and the agent's own address.
    pub(super) fn flows(&self) -> BTreeMap<(String, SocketAddr), SocketAddr> {
        let nlbs = self.regions.iter().flat_map(|region| &region.nlbs);
        nlbs.flat_map(|nlb| nlb.books().flows).collect()
    }

    /// What a signal's load balancer of a Region resolves to from now on, everywhere.
    pub(super) fn set_addresses(&self, signal: &str, region: usize, addresses: &[&str], ttl: u32) {
        for place in &self.regions {
            let answer = Answer::rotating(addresses, ttl);
            place.dns.set(&balancers_name(signal, region), answer);
        }
    }

    /// One more relay in a Region; not yet a target of its balancer.
    #[track_caller]
    pub(super) fn add_relay(&mut self, region: usize) {
        let place = &mut self.regions[region];
        place.add_relay(&self.lab, &self.scene);
    }

    /// What every test ends with, for each relay that still runs.
    #[track_caller]
    pub(super) fn assert_at_rest(&self) {
        thread::scope(|scope| {
            for region in &self.regions {
                for (relay, baseline) in region.relays.iter().zip(&region.baselines) {
                    if relay.is_running() {
                        scope.spawn(|| world::assert_at_rest(relay, *baseline));
                    }
                }
            }
        });
    }

    /// Stops the balancers: nobody asks relays how they are any more.
    pub(super) fn stop_balancers(&self) {
        for nlb in self.regions.iter().flat_map(|region| &region.nlbs) {
            nlb.kill();
        }
    }
}

/// Joins the Regions' routers, and tells each the way to the networks of the others. Nobody is told the way to a consumer.
fn joined(
    lab: &Lab,
    routers: &[Host],
    between: Between,
) -> (BTreeMap<(usize, usize), Wan>, Option<Host>) {
    let mut wans = BTreeMap::new();
    let networks = |region: usize| {
        [
            format!("10.2{region}.0.0/16"),
            format!("10.3{region}.0.0/16"),
        ]
    };
    if between == Between::Hub {
        let hub = lab.router("hub");
        for (region, router) in routers.iter().enumerate() {
            let (near, far) = (format!("10.99.{region}.1"), format!("10.99.{region}.2"));
            let wan = lab.wan(
                (router, &format!("{near}/30")),
                (&hub, &format!("{far}/30")),
                Shape::delay(Duration::from_millis(8)),
            );
            wans.insert((region, region), wan);
            for network in networks(region) {
                hub.route(&network, &near);
            }
            for other in (0..routers.len()).filter(|other| *other != region) {
                for network in networks(other) {
                    router.route(&network, &far);
                }
            }
        }
        return (wans, Some(hub));
    }
    for (left, right) in [(0, 1), (0, 2), (1, 2)] {
        let (Some(a), Some(b)) = (routers.get(left), routers.get(right)) else {
            continue;
        };
        let (near, far) = (
            format!("10.99.{left}{right}.1"),
            format!("10.99.{left}{right}.2"),
        );
        let wan = lab.wan(
            (a, &format!("{near}/30")),
            (b, &format!("{far}/30")),
            Shape::delay(Duration::from_millis(15)),
        );
        wans.insert((left, right), wan);
        for network in networks(right) {
            a.route(&network, &far);
        }
        for network in networks(left) {
            b.route(&network, &near);
        }
    }
    (wans, None)
}

impl Zone {
    #[track_caller]
    fn new(lab: &Lab, router: &Host, region: usize, zone: usize, identity: &Identity) -> Self {
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
    fn new(lab: &Lab, number: usize, router: Host, scene: &Scene) -> Self {
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
    fn add_relay(&mut self, lab: &Lab, scene: &Scene) -> usize {
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

/// What a relay calls where connections go: one upstream for each signal and port.
struct Upstream {
    name: String,
    signal: &'static str,
    port: u16,
}

/// The upstream's name for a signal.
pub(super) fn upstream(signal: &str, tls: bool) -> String {
    if tls {
        signal.to_owned()
    } else {
        format!("{signal}-http")
    }
}

fn upstreams() -> impl Iterator<Item = Upstream> {
    let ports = PORTS.into_iter();
    ports.flat_map(|(port, _)| {
        SIGNALS.map(|signal| Upstream {
            name: upstream(signal, port == 443),
            signal,
            port,
        })
    })
}

fn target(upstream: &Upstream, region: usize) -> String {
    let name = balancers_name(upstream.signal, region);
    format!("{name}:{}", upstream.port)
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

/// What several relays counted at one moment.
pub(super) struct Counts(Vec<Metrics>);

impl Counts {
    /// The sum over all of them.
    pub(super) fn sum(&self, name: &str, labels: &[(&str, &str)]) -> u64 {
        let relays = self.0.iter();
        relays.map(|metrics| metrics.sum(name, labels)).sum()
    }
}

/// The traffic of all accounts.
pub(super) struct Traffic {
    /// By endpoint.
    pub(super) sources: Vec<(&'static str, Steady)>,
}

impl Traffic {
    /// Waits until so many connections of each account that begin from now on are over.
    #[track_caller]
    pub(super) fn wait_more(&self, n: u64) {
        for (_, source) in &self.sources {
            source.wait_more(n);
        }
    }

    /// Waits until every connection that has begun by now is over.
    #[track_caller]
    pub(super) fn wait_begun(&self) {
        for (_, source) in &self.sources {
            source.wait_begun();
        }
    }

    /// Resets what is still open of those that began before `when`.
    pub(super) fn give_up(&self, when: Instant) {
        for (_, source) in &self.sources {
            source.give_up(when);
        }
    }

    /// Ends it, and returns each account's connections. Whoever was answered was answered by the service it asked.
    #[track_caller]
    pub(super) fn stop(&self) -> Vec<(&'static str, Connection)> {
        let mut all = Vec::new();
        for (endpoint, source) in &self.sources {
            for connection in source.stop() {
                if let Some(by) = &connection.by {
                    let asked = SIGNALS[connection.service % SIGNALS.len()];
                    assert_eq!(by.split(' ').next(), Some(asked), "{connection:?}");
                }
                all.push((*endpoint, connection));
            }
        }
        all
    }
}
