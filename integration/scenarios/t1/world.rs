//! The world of T1 as one thing: Regions, what joins them, and the traffic of all accounts.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};

use super::{
    plan::{
        AGENT, Between, MAIN, PORTS, REGIONS, SIGNALS, STANDBY, Scene, VPC_RESOLVER, ZONES,
        agents_name, balancers_name,
    },
    region::{Region, Zone},
};
use crate::{
    harness::{
        dns::Answer,
        netns::{Host, Lab},
        relay::{Metrics, Relay},
        steady::{Connection, Plan, Service, Steady},
        tls::Identity,
        wan::{Shape, Wan},
    },
    scenarios::world,
};

/// See the module.
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

/// What several relays counted at one moment.
pub(super) struct Counts(Vec<Metrics>);

impl Counts {
    /// Whether any of them has a series of that name and these labels, and no others.
    pub(super) fn has(&self, name: &str, labels: &[(&str, &str)]) -> bool {
        let mut relays = self.0.iter();
        relays.any(|metrics| metrics.value(name, labels).is_some())
    }

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
