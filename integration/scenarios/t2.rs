//! T2, central API: requests that arrive in one Region are served in another, by another account, behind an endpoint that the relay's own account
//! has there.
//!
//! ```text
//!  Oregon, account 1                  N. Virginia, account 1              N. Virginia, account 2
//!  gateway -- balancer -- relay -- vpc ==== vpc -- interface, zone 1 \                           / svc1
//!             (NLB)                             -- interface, zone 2 --- balancer (NLB) -- (ALB)
//!                                               -- interface, zone 3 /                           \ svc2
//! ```
//! The relay knows the endpoint by its DNS name, which has the address of each interface.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use libtest_mimic::Trial;

use super::{
    journal::{self, SAY_WHERE, SOON_GIVEN_UP, Sessions, assert_none_failed},
    world::{self, SHIPPED},
};
use crate::{
    claim,
    harness::{
        agent::Agent,
        alb::Alb,
        dns::{Answer, Dns},
        netns::{Host, Lab},
        nlb::{Config, Listen, Nlb},
        origin::{Manner, Origin},
        relay::{Baseline, Relay, Start},
        steady::{Connection, Plan, Service, Steady},
        tap::Tap,
        wan::{Shape, Wan},
    },
};

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        claim(
            "t2_requests_reach_their_pods_through_an_endpoint_of_another_account",
            requests,
        ),
        claim(
            "t2_interface_that_left_the_dns_is_left_without_a_failed_request",
            left_the_dns,
        ),
        claim(
            "t2_interface_that_turns_into_a_black_hole_is_left_without_a_failed_new_request",
            black_hole,
        ),
    ]
}

/// As agents of the gateway know the API, and as the endpoint is known in account 1.
const API: &str = "api.example.internal";
const ENDPOINT: &str = "vpce-0e5f6a7b8c9d0e1f2";
const ENDPOINT_NAME: &str =
    "vpce-0e5f6a7b8c9d0e1f2-k3j4h5g6.vpce-svc-0a1b2c3d4e5f60718.us-east-1.example.internal";
const BALANCER: &str = "10.60.1.10";
const RELAY: &str = "10.60.2.2:8443";
const RESOLVER: &str = "10.60.0.2:53";
const INTERFACES: [&str; 3] = ["10.70.1.10", "10.70.2.10", "10.70.3.10"];
const ALB: &str = "10.80.1.2:80";
const PODS: [&str; 2] = ["10.80.11.2:8080", "10.80.12.2:8080"];
const SERVICES: [&str; 2] = ["svc1", "svc2"];

struct Central {
    relay: Relay,
    baseline: Baseline,
    nlb: Nlb,
    provider: Nlb,
    alb: Alb,
    pods: [Origin; 2],
    dns: Dns,
    gateway: Host,
    /// Of account 1 in N. Virginia.
    vpc: Host,
    interfaces: [Host; 3],
    alb_host: Host,
    pod_hosts: [Host; 2],
    provider_host: Host,
    _wan: Wan,
    _lab: Lab,
}

impl Central {
    /// The shipped configuration with `tables` added. `ttl` is that of the endpoint's name.
    #[track_caller]
    fn new(name: &str, ttl: u32, tables: &str) -> Self {
        let lab = Lab::new(name);
        let (gateway, nlb_host, relay_host) =
            (lab.host("gateway"), lab.host("nlb"), lab.host("relay"));
        let (oregon, vpc) = (lab.router("oregon"), lab.router("virginia"));
        lab.veth((&gateway, "10.60.1.5/24"), (&nlb_host, "10.60.1.10/24"));
        lab.veth((&nlb_host, "10.60.2.10/24"), (&relay_host, "10.60.2.2/24"));
        lab.veth((&relay_host, "10.60.3.2/24"), (&oregon, "10.60.3.1/24"));
        lab.veth((&gateway, "10.60.4.2/24"), (&oregon, "10.60.4.1/24"));
        oregon.ip("address add 10.60.0.2/32 dev lo");
        relay_host.route("10.60.0.2/32", "10.60.3.1");
        relay_host.route("10.70.0.0/16", "10.60.3.1");
        gateway.route("10.60.0.2/32", "10.60.4.1");
        let wan = lab.wan(
            (&oregon, "10.99.0.1/30"),
            (&vpc, "10.99.0.2/30"),
            Shape::delay(Duration::from_millis(32)),
        );
        oregon.route("10.70.0.0/16", "10.99.0.2");
        vpc.route("10.60.0.0/16", "10.99.0.1");
        let interfaces = ["1", "2", "3"].map(|zone| {
            let interface = lab.host(&format!("interface-{zone}"));
            lab.veth(
                (&vpc, &format!("10.70.{zone}.1/24")),
                (&interface, &format!("10.70.{zone}.10/24")),
            );
            interface.route("default", &format!("10.70.{zone}.1"));
            interface
        });

        let (provider_host, alb_host) = (lab.host("provider-nlb"), lab.host("alb"));
        lab.veth(
            (&provider_host, "10.80.1.10/24"),
            (&alb_host, "10.80.1.2/24"),
        );
        let pod_hosts = SERVICES.map(|name| lab.host(name));
        for (n, pod) in pod_hosts.iter().enumerate() {
            let network = format!("10.80.1{}", n + 1);
            lab.veth(
                (&alb_host, &format!("{network}.1/24")),
                (pod, &format!("{network}.2/24")),
            );
        }
        let pods = [0, 1].map(|n| {
            let manner = Manner::Mirror(SERVICES[n].to_owned());
            Origin::start(&pod_hosts[n], PODS[n], manner)
        });
        let rules = [("/svc1", PODS[0]), ("/svc2", PODS[1])];
        let alb = Alb::start(&alb_host, ALB, &rules);
        let listen = interfaces.iter().zip(INTERFACES);
        let listen = listen.map(|(host, ip)| Listen::endpoint(host, &format!("{ip}:80"), ENDPOINT));
        let mut config = Config::new(listen.collect(), &[ALB]);
        // What an ALB is a target of sends no header.
        config.proxy_protocol = false;
        let provider = Nlb::start(&provider_host, config);

        let dns = Dns::start(&oregon, RESOLVER);
        dns.set(API, Answer::addresses(&[BALANCER], 60));
        dns.set(ENDPOINT_NAME, Answer::rotating(&INTERFACES, ttl));
        let tables = format!("[resolver]\nservers = [\"{RESOLVER}\"]\n{tables}\n\n[health]\n");
        let relay = Start::with(SHIPPED)
            .replace("[health]\n", &tables)
            .replace("10.20.0.0/16", "10.60.2.0/24")
            .replace(
                "cp.us-east-1.example.internal:443",
                &format!("{ENDPOINT_NAME}:80"),
            )
            // Longer than a request waits: who depends on it is lost.
            .replace(
                "name = \"control-plane\"\n",
                "name = \"control-plane\"\nconnect_timeout = \"60s\"\nconnect_deadline = \"60s\"\n",
            )
            .on(&relay_host);
        relay.wait_metric("tollgate_upstream_addresses", &[], 3);
        let listen = Listen::direct(&nlb_host, &format!("{BALANCER}:80"));
        let nlb = Nlb::start(&nlb_host, Config::new(vec![listen], &[RELAY]));
        Self {
            baseline: Baseline::of(&relay),
            relay,
            nlb,
            provider,
            alb,
            pods,
            dns,
            gateway,
            vpc,
            interfaces,
            alb_host,
            pod_hosts,
            provider_host,
            _wan: wan,
            _lab: lab,
        }
    }

    /// Requests to both services in turn, each on a connection of its own.
    fn requests(&self) -> Steady {
        let services = SERVICES.map(|service| Service {
            name: API.to_owned(),
            port: 80,
            path: format!("/{service}/items"),
            tls: None,
        });
        let plan = Plan {
            resolver: RESOLVER.parse().expect("an address"),
            from: "10.60.1.5".parse().expect("an address"),
            services: services.into(),
            pace: Duration::from_millis(25),
            bytes: 2000,
            patience: Duration::from_secs(15),
        };
        Steady::start(&self.gateway, plan)
    }

    /// Ends them, and returns what became of each. Whoever was answered was answered by the service of its path.
    #[track_caller]
    fn stop(&self, requests: &Steady) -> Vec<(&'static str, Connection)> {
        let connections = requests.stop();
        for connection in &connections {
            if let Some(by) = &connection.by {
                assert_eq!(by, SERVICES[connection.service], "{connection:?}");
            }
        }
        // They come from no endpoint.
        let direct = |connection| ("direct", connection);
        connections.into_iter().map(direct).collect()
    }

    #[track_caller]
    fn sessions(&self) -> Sessions {
        journal::sessions([&self.relay].into_iter())
    }

    #[track_caller]
    fn assert_at_rest(&self) {
        self.nlb.wait_over();
        world::assert_at_rest(&self.relay, self.baseline);
    }
}

fn requests() {
    let central = Central::new("t2", 60, SAY_WHERE);
    let taps = central.interfaces.each_ref().map(Tap::on);
    let requests = central.requests();
    requests.wait_more(30);
    let connections = central.stop(&requests);
    assert_none_failed(&connections);
    let n = connections.len() as u64;
    let sessions = central.sessions();
    for interface in INTERFACES {
        let to: SocketAddr = format!("{interface}:80").parse().expect("an address");
        let there = sessions.values().filter(|one| one.address == Some(to));
        assert!(there.count() > 0, "{interface} has its share");
    }
    // All of it came through the endpoint, and the load balancer told the services apart.
    let provider = central.provider.wait_over();
    assert_eq!(provider.endpoints[ENDPOINT].accepted, n);
    let labels = [("endpoint", "direct"), ("direction", "to_upstream")];
    let booked = central.relay.metric("tollgate_bytes_total", &labels);
    assert_eq!(provider.bytes_to_target, booked);
    let asked = |service| {
        connections
            .iter()
            .filter(|(_, c)| c.service == service)
            .count()
    };
    for (service, pod) in central.pods.iter().enumerate() {
        let path = format!("/{}/items", SERVICES[service]);
        let of_it = pod.books().requests;
        assert_eq!(of_it.keys().collect::<Vec<_>>(), [&path]);
        assert_eq!(of_it[&path].count, asked(service) as u64);
    }
    assert_eq!(central.alb.books().rules.values().sum::<u64>(), n);
    for tap in &taps {
        for (from, _) in tap.openings() {
            assert_eq!(from.ip().to_string(), "10.60.3.2", "the relay, nobody else");
        }
    }
    // Nothing leads from one account into the other but the endpoint.
    let unreachable = |host: &Host, to: &str| {
        let to: SocketAddr = to.parse().expect("an address");
        assert!(host.run(Agent::connect(to)).is_err(), "{to} is reached");
    };
    let provider_hosts = central.pod_hosts.iter();
    for host in provider_hosts.chain([&central.alb_host, &central.provider_host]) {
        for to in [RELAY, "10.60.1.10:80", "10.70.1.10:80"] {
            unreachable(host, to);
        }
    }
    for host in [central.relay.host(), &central.vpc, &central.interfaces[0]] {
        for to in [ALB, PODS[0], PODS[1]] {
            unreachable(host, to);
        }
    }
    central.assert_at_rest();
}

/// Those that began after `since` went to none of the addresses in `left`.
#[track_caller]
fn assert_left(
    sessions: &Sessions,
    connections: &[(&'static str, Connection)],
    since: Instant,
    left: &str,
) {
    let mut n = 0;
    for (endpoint, connection) in connections {
        if connection.began < since {
            continue;
        }
        let local = connection.local.expect("it was connected");
        let session = &sessions[&((*endpoint).to_owned(), local)];
        let address = session.address.expect("it was connected").ip();
        assert_ne!(address.to_string(), left, "{connection:?}");
        n += 1;
    }
    assert!(n > 0, "nothing was tested");
}

fn left_the_dns() {
    let central = Central::new("t2-dns", 1, SAY_WHERE);
    let requests = central.requests();
    requests.wait_more(15);
    central
        .dns
        .set(ENDPOINT_NAME, Answer::rotating(&INTERFACES[1..], 1));
    central
        .relay
        .wait_metric("tollgate_upstream_addresses", &[], 2);
    let seen = Instant::now();
    central
        .dns
        .set(ENDPOINT_NAME, Answer::rotating(&INTERFACES[1..], 300));
    requests.wait_begun();
    // Now it may go.
    central.vpc.black_hole("10.70.1.0/24");
    requests.wait_more(30);
    let connections = central.stop(&requests);
    assert_none_failed(&connections);
    let sessions = central.sessions();
    assert!(journal::lost(&sessions, &connections, seen).is_empty());
    assert_left(&sessions, &connections, seen, INTERFACES[0]);
    central.assert_at_rest();
}

fn black_hole() {
    let central = Central::new("t2-hole", 60, &format!("{SAY_WHERE}\n{SOON_GIVEN_UP}"));
    let requests = central.requests();
    requests.wait_more(15);
    central.vpc.black_hole("10.70.1.0/24");
    let fault = Instant::now();
    requests.wait_more(40);
    requests.give_up(fault);
    let connections = central.stop(&requests);
    let sessions = central.sessions();
    for (connection, address) in journal::lost(&sessions, &connections, fault) {
        let address = address.map(|address| address.ip().to_string());
        assert_eq!(address.as_deref(), Some(INTERFACES[0]), "{connection:?}");
    }
    assert_left(&sessions, &connections, fault, INTERFACES[0]);
    central.assert_at_rest();
}
