//! The outpost VPC (T4 of the deployments this relay is for): who stands where, and how each part is started, killed and started again.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use crate::{
    agents::{Agent, Counts, Running, Signal, log_lines},
    control_plane::{self, ControlPlane},
    harness::{
        BOUND,
        dns::{Answer, Dns},
        netns::{Host, Lab},
        nlb::{Config, HealthCheck, Listen, Nlb},
        relay::{Relay, Start},
        tls::Identity,
        wan::{Shape, Wan},
        watched::Watched,
    },
    live::LOOK_AGAIN,
};

/// The configuration that is shipped. It is used as it is; the demo appends to it.
pub(crate) const SHIPPED: &str = include_str!("../../systemd/tollgate.toml");
/// What this place needs beyond: a name server, and a second port for agents that speak plain HTTP; names for the books, and a file for the audit trail.
pub(crate) const APPENDED: &str = r#"
# --- appended by the demo ---
[resolver]
servers = ["10.30.0.53:53"]

[[listener]]
name = "ingest-http"
bind = "0.0.0.0:8080"
trusted_peers = ["10.20.0.0/16"]
upstream = "control-plane-http"

[[upstream]]
name = "control-plane-http"
targets = ["cp.us-east-1.example.internal:80"]

[endpoint."vpce-0a1c5e7f9b2d4c6e8"]
name = "payments"
account = "111111111111"

[endpoint."vpce-0f9e8d7c6b5a43210"]
name = "search"
account = "222222222222"

[audit]
sink = "@DIR@/audit.log"
"#;
/// The control plane's name, as the shipped configuration has it.
pub(crate) const CONTROL_PLANE: &str = "cp.us-east-1.example.internal";
const ADDRESSES: [&str; 2] = ["10.30.1.10", "10.30.1.11"];
pub(crate) const RESOLVER: &str = "10.30.0.53:53";
/// In seconds: short, so that a resolver that was killed is missed soon.
const TTL: u32 = 5;
/// From the outpost to the main Region and back, as between us-east-1 and eu-west-1.
pub(crate) const ROUND_TRIP: Duration = Duration::from_millis(70);
/// The endpoint's interface; the same address in both VPCs, as it happens when accounts do not know of each other.
pub(crate) const INTERFACE: &str = "172.31.0.20";
pub(crate) const AGENT: &str = "172.31.0.10";
/// Ports of the endpoint and where the relay listens for each.
const PORTS: [(u16, &str); 2] = [(80, "10.20.0.2:8080"), (443, "10.20.0.2:8443")];

/// Somebody behind an endpoint.
#[derive(Debug)]
pub(crate) struct Consumer {
    pub(crate) name: &'static str,
    pub(crate) account: &'static str,
    pub(crate) endpoint: &'static str,
    /// Between two pushes.
    pub(crate) every: Duration,
}

/// Two accounts, of which one pushes more than the other.
pub(crate) const CONSUMERS: [Consumer; 2] = [
    Consumer {
        name: "payments",
        account: "111111111111",
        endpoint: "vpce-0a1c5e7f9b2d4c6e8",
        every: Duration::from_millis(100),
    },
    Consumer {
        name: "search",
        account: "222222222222",
        endpoint: "vpce-0f9e8d7c6b5a43210",
        every: Duration::from_millis(350),
    },
];

/// What may be killed and started again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// The agents of one consumer.
    Agents(usize),
    ControlPlane,
    Resolver,
    Nlb,
}

impl Part {
    pub(crate) const ALL: [Self; 5] = [
        Self::Agents(0),
        Self::Agents(1),
        Self::ControlPlane,
        Self::Resolver,
        Self::Nlb,
    ];

    /// As commands name it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Agents(index) => CONSUMERS[index].name,
            Self::ControlPlane => "control-plane",
            Self::Resolver => "resolver",
            Self::Nlb => "nlb",
        }
    }

    /// As people do.
    pub(crate) fn described(self) -> String {
        match self {
            Self::Agents(index) => format!("the agents of {}", CONSUMERS[index].name),
            Self::ControlPlane => "the control plane".to_owned(),
            Self::Resolver => "the name server".to_owned(),
            Self::Nlb => "the load balancer".to_owned(),
        }
    }
}

/// The parts that run; each goes when it is dropped.
#[derive(Default)]
struct Parts {
    agents: [Vec<Running>; 2],
    control_plane: Option<ControlPlane>,
    resolver: Option<Dns>,
    nlb: Vec<Nlb>,
    /// What was killed or started last, for whoever watches.
    note: Option<String>,
    /// Per consumer: whether a part was killed that may have cut its connections.
    cut: [bool; 2],
}

/// Everything. Parts first: they run on hosts.
pub(crate) struct World {
    parts: Mutex<Parts>,
    pub(crate) relay: Relay,
    pub(crate) control_plane_books: Arc<Watched<control_plane::Books>>,
    pub(crate) counts: [Arc<Counts>; 2],
    identity: Identity,
    lines: Arc<Vec<String>>,
    pub(crate) log_files: Vec<&'static str>,
    /// Why there is no delay, if there is none.
    pub(crate) no_delay: Option<String>,
    hosts: Hosts,
    _distance: Option<Wan>,
    _lab: Lab,
}

struct Hosts {
    /// Per consumer: where its agents are, and its endpoint's interface.
    consumers: [(Host, Host); 2],
    nlb: Host,
    relay: Host,
    control_plane: Host,
    resolver: Host,
}

impl World {
    /// Makes hosts and links, and starts the control plane, the name server, the relay and the load balancer. No agent yet.
    pub(crate) fn new() -> Result<Self, String> {
        let lab = Lab::new("demo");
        let consumers = [0, 1].map(|index| {
            let name = CONSUMERS[index].name;
            let (agents, interface) = (lab.host(name), lab.host(&format!("{name}-endpoint")));
            lab.veth(
                (&agents, &format!("{AGENT}/24")),
                (&interface, &format!("{INTERFACE}/24")),
            );
            (agents, interface)
        });
        let (nlb, relay) = (lab.host("nlb"), lab.host("relay"));
        lab.veth((&nlb, "10.20.0.10/24"), (&relay, "10.20.0.2/24"));
        let main = lab.router("main");
        let (distance, no_delay) = connect_regions(&lab, &relay, &main);
        let (control_plane, resolver) = (lab.host("control-plane"), lab.host("resolver"));
        let wire = lab.veth(
            (&main, "10.30.1.1/24"),
            (&control_plane, &format!("{}/24", ADDRESSES[0])),
        );
        control_plane.address(wire.interface(1), &format!("{}/24", ADDRESSES[1]));
        lab.veth((&main, "10.30.0.1/24"), (&resolver, "10.30.0.53/24"));
        relay.route("10.30.0.0/16", "10.25.0.2");
        control_plane.route("default", "10.30.1.1");
        resolver.route("default", "10.30.0.1");
        let hosts = Hosts {
            consumers,
            nlb,
            relay,
            control_plane,
            resolver,
        };
        let (lines, log_files) = log_lines();
        let relay = Start::with(&format!("{SHIPPED}{APPENDED}")).on(&hosts.relay);
        let lines = if lines.is_empty() {
            relay.log_lines("")
        } else {
            lines
        };
        Ok(Self {
            parts: Mutex::default(),
            relay,
            control_plane_books: Arc::default(),
            counts: Default::default(),
            identity: Identity::new(&[CONTROL_PLANE])?,
            lines: Arc::new(lines),
            log_files,
            no_delay,
            hosts,
            _distance: distance,
            _lab: lab,
        })
    }

    /// Starts a part; what runs already is left alone.
    pub(crate) fn start(&self, part: Part) -> Result<(), String> {
        let hosts = &self.hosts;
        let mut parts = self.parts();
        match part {
            Part::Agents(index) if parts.agents[index].is_empty() => {
                parts.agents[index] = self.agents(index);
            }
            Part::ControlPlane if parts.control_plane.is_none() => {
                parts.control_plane = Some(again(|| {
                    ControlPlane::start(
                        &hosts.control_plane,
                        &ADDRESSES,
                        &self.identity,
                        &self.control_plane_books,
                    )
                })?);
            }
            Part::Resolver if parts.resolver.is_none() => {
                wait_free(&hosts.resolver, &[RESOLVER])?;
                let resolver = Dns::start(&hosts.resolver, RESOLVER);
                resolver.set(CONTROL_PLANE, Answer::rotating(&ADDRESSES, TTL));
                parts.resolver = Some(resolver);
            }
            Part::Nlb if parts.nlb.is_empty() => {
                for (_, interface) in &hosts.consumers {
                    for (port, _) in PORTS {
                        wait_free(interface, &[&format!("{INTERFACE}:{port}")])?;
                    }
                }
                parts.nlb = PORTS
                    .map(|(port, target)| self.balancer(port, target))
                    .into();
            }
            _ => {}
        }
        // At the beginning everything is started, and nobody needs to be told.
        if parts.note.is_some() {
            parts.note = Some(format!("{} started", part.described()));
        }
        Ok(())
    }

    /// Ends a part as kill -9 would.
    pub(crate) fn kill(&self, part: Part) {
        let mut parts = self.parts();
        match part {
            Part::Agents(index) => {
                for agent in parts.agents[index].drain(..) {
                    agent.kill();
                }
            }
            Part::ControlPlane => parts.control_plane = None,
            Part::Resolver => parts.resolver = None,
            Part::Nlb => parts.nlb.clear(),
        }
        match part {
            Part::Agents(index) => parts.cut[index] = true,
            Part::ControlPlane | Part::Nlb => parts.cut = [true; 2],
            Part::Resolver => {}
        }
        parts.note = Some(format!("{} killed", part.described()));
    }

    /// Whether something was killed that may have cut connections of this consumer.
    pub(crate) fn was_cut(&self, consumer: usize) -> bool {
        self.parts().cut[consumer]
    }

    /// What was killed or started last.
    pub(crate) fn note(&self) -> Option<String> {
        self.parts().note.clone()
    }

    /// Has every agent end its push and close in order; false when one did not.
    pub(crate) fn stop_agents(&self) -> bool {
        let agents = std::mem::take(&mut self.parts().agents);
        for agent in agents.iter().flatten() {
            agent.stop();
        }
        let hosts = self.hosts.consumers.iter().map(|(host, _)| host);
        let mut all = true;
        for (agents, host) in agents.into_iter().zip(hosts) {
            for agent in agents {
                all &= agent.ended(host);
            }
        }
        all
    }

    /// Waits until the load balancer takes the relay for healthy on both ports.
    pub(crate) fn wait_healthy(&self) -> Result<(), String> {
        let deadline = Instant::now() + BOUND;
        loop {
            let parts = self.parts();
            let mut targets = parts.nlb.iter().flat_map(|nlb| nlb.books().targets);
            if targets.all(|(_, target)| target.healthy) {
                return Ok(());
            }
            drop(parts);
            if Instant::now() > deadline {
                return Err("the load balancer's health checks of the relay fail".to_owned());
            }
            thread::sleep(LOOK_AGAIN);
        }
    }

    /// Health checks passed and failed, as the load balancer counts them.
    pub(crate) fn health_checks(&self) -> (u64, u64) {
        let parts = self.parts();
        let targets = parts.nlb.iter().flat_map(|nlb| nlb.books().targets);
        targets.fold((0, 0), |(passed, failed), (_, target)| {
            (passed + target.passed, failed + target.failed)
        })
    }

    fn parts(&self) -> MutexGuard<'_, Parts> {
        self.parts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn agents(&self, index: usize) -> Vec<Running> {
        let consumer = &CONSUMERS[index];
        let logs = Signal::Logs {
            tls: self.identity.client(),
            lines: Arc::clone(&self.lines),
        };
        let agent = |port, signal| Agent {
            consumer: consumer.name,
            signal,
            endpoint: SocketAddr::new(INTERFACE.parse().expect("an address"), port),
            name: CONTROL_PLANE,
            every: consumer.every,
            counts: Arc::clone(&self.counts[index]),
        };
        let host = &self.hosts.consumers[index].0;
        [agent(80, Signal::Metrics), agent(443, logs)]
            .map(|agent| agent.start(host))
            .into()
    }

    /// One port of the load balancer, with its target group.
    fn balancer(&self, port: u16, target: &str) -> Nlb {
        let interfaces = self.hosts.consumers.iter().zip(&CONSUMERS);
        let listen = interfaces.map(|((_, interface), consumer)| {
            Listen::endpoint(interface, &format!("{INTERFACE}:{port}"), consumer.endpoint)
        });
        let mut config = Config::new(listen.collect(), &[target]);
        config.health = Some(HealthCheck {
            port: Some(9901),
            ..HealthCheck::http("/readyz")
        });
        Nlb::start(&self.hosts.nlb, config)
    }
}

/// The peering between the Regions: with its distance, or without where this user may not have a TUN device.
fn connect_regions(lab: &Lab, relay: &Host, main: &Host) -> (Option<Wan>, Option<String>) {
    let ends = [(relay, "10.25.0.1/30"), (main, "10.25.0.2/30")];
    match relay.call(|| tollgate::sys::tun::open("probe0").map(drop)) {
        Ok(()) => {
            let wan = lab.wan(ends[0], ends[1], Shape::delay(ROUND_TRIP / 2));
            (Some(wan), None)
        }
        Err(error) => {
            lab.veth(ends[0], ends[1]);
            let why = format!("no delay: /dev/net/tun cannot be opened ({error})");
            (None, Some(why))
        }
    }
}

/// Waits until nobody listens at these addresses of a host any more: a part that was killed closes its sockets a moment later.
fn wait_free(host: &Host, addresses: &[&str]) -> Result<(), String> {
    for address in addresses {
        again(|| {
            let address = (*address).to_owned();
            let bound = host.call(move || std::net::TcpListener::bind(address).map(drop));
            bound.map_err(|error| error.to_string())
        })
        .map_err(|error| format!("{address}: {error}"))?;
    }
    Ok(())
}

/// Tries until it works, for a bounded time.
fn again<T>(mut make: impl FnMut() -> Result<T, String>) -> Result<T, String> {
    let deadline = Instant::now() + BOUND;
    loop {
        match make() {
            Err(_) if Instant::now() < deadline => thread::sleep(LOOK_AGAIN),
            result => return result,
        }
    }
}
