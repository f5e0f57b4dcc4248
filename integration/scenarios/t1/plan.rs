//! Names and addresses of T1, and what a test chooses of it.

/// What agents push, each to a load balancer of its own.
pub(super) const SIGNALS: [&str; 3] = ["metrics", "logs", "traces"];
/// The main Region, and two others. The last has a control plane too, which stands by.
pub(super) const REGIONS: [&str; 3] = ["us-east-1", "eu-west-1", "us-west-2"];
pub(super) const MAIN: usize = 0;
pub(super) const STANDBY: usize = 2;
/// Zones of the main Region; the control plane that stands by has one.
pub(super) const ZONES: usize = 3;
/// Ports of the endpoint and of the load balancers, and where relays listen for them.
pub(super) const PORTS: [(u16, u16); 2] = [(80, 8080), (443, 8443)];
/// Where relays listen for the balancer's checks.
pub(super) const HEALTH_PORT: u16 = 9901;

/// Accounts whose agents push: Region, endpoint. All their VPCs have the same addresses, as they may.
pub(super) const ACCOUNTS: [(usize, &str); 4] = [
    (0, "vpce-0a11111111111111a"),
    (1, "vpce-0b22222222222222b"),
    (1, "vpce-0c33333333333333c"),
    (2, "vpce-0d44444444444444d"),
];
/// In each of those VPCs: the agent, the endpoint's interface, the name server.
pub(super) const AGENT: &str = "10.1.0.5";
pub(super) const INTERFACE: &str = "10.1.0.10";
pub(super) const VPC_RESOLVER: &str = "10.1.0.2";

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

/// What a relay calls where connections go: one upstream for each signal and port.
pub(super) struct Upstream {
    pub(super) name: String,
    pub(super) signal: &'static str,
    pub(super) port: u16,
}

/// The upstream's name for a signal.
pub(super) fn upstream(signal: &str, tls: bool) -> String {
    if tls {
        signal.to_owned()
    } else {
        format!("{signal}-http")
    }
}

pub(super) fn upstreams() -> impl Iterator<Item = Upstream> {
    let ports = PORTS.into_iter();
    ports.flat_map(|(port, _)| {
        SIGNALS.map(|signal| Upstream {
            name: upstream(signal, port == 443),
            signal,
            port,
        })
    })
}

pub(super) fn target(upstream: &Upstream, region: usize) -> String {
    let name = balancers_name(upstream.signal, region);
    format!("{name}:{}", upstream.port)
}
