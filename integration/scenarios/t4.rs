//! T4, outpost VPC: consumers in one Region reach a provider in another through endpoints, a balancer and relays in a VPC between them.
//!
//! ```text
//! consumer a - endpoint a \                / relay 1 \                             / load balancer
//!                           balancer (NLB)            outpost ---- 70 ms ---- provider
//! consumer b - endpoint b /                \ relay 2 /                             \ resolver
//! ```
//! Both consumers' VPCs have the same addresses, as they may.

use std::{
    io::ErrorKind,
    net::SocketAddr,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use libtest_mimic::Trial;

use super::world::{self, SHIPPED, privatelink_header};
use crate::{
    claim,
    harness::{
        agent::Agent,
        dns::{Answer, Dns},
        netns::{Host, Lab},
        nlb::{Config, HealthCheck, Listen, Nlb},
        origin::{Manner, Origin},
        relay::{Baseline, Relay, Signal, Start, http_get},
        sockets::State,
        stream::End,
        wan::{Shape, Wan},
    },
};

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        claim(
            "t4_consumers_reach_the_provider_and_books_agree",
            books_agree,
        ),
        claim(
            "t4_health_checks_by_local_and_by_the_health_port_open_nothing",
            health_checks,
        ),
        claim(
            "t4_what_the_balancer_forgot_is_reset_and_booked",
            forgotten_by_the_balancer,
        ),
        claim("t4_relay_is_drained_without_a_failed_connection", drained),
        claim("t4_killed_agent_leaves_true_books", killed_agent),
        claim("t4_killed_origin_leaves_a_running_relay", killed_origin),
        claim("t4_killed_resolver_changes_nothing", killed_resolver),
        claim("t4_killed_balancer_leaves_true_books", killed_balancer),
    ]
}

const NAME: &str = "cp.us-east-1.example.internal";
const ENDPOINTS: [&str; 2] = ["vpce-0a5c1d2e3f4a5b6c7", "vpce-0b1d2c3e4f5a6b7c8"];
/// In each consumer's VPC.
const SERVICE: &str = "10.1.0.10:443";
const RELAYS: [&str; 2] = ["10.20.1.2:8443", "10.20.2.2:8443"];
const PROVIDER: &str = "10.30.1.2:443";
const RESOLVER: &str = "10.30.2.2:53";

struct Outpost {
    relays: [Relay; 2],
    baselines: [Baseline; 2],
    origin: Origin,
    dns: Dns,
    consumers: [Host; 2],
    endpoints: [Host; 2],
    nlb: Host,
    load_balancer: Host,
    resolver: Host,
    _wan: Wan,
    _lab: Lab,
}

impl Outpost {
    /// The shipped configuration with `tables` added.
    #[track_caller]
    fn new(name: &str, manner: Manner, ttl: u32, tables: &str) -> Self {
        let lab = Lab::new(name);
        let consumers = [lab.host("consumer-a"), lab.host("consumer-b")];
        let endpoints = [lab.host("endpoint-a"), lab.host("endpoint-b")];
        for (consumer, endpoint) in consumers.iter().zip(&endpoints) {
            lab.veth((consumer, "10.1.0.2/24"), (endpoint, "10.1.0.10/24"));
        }
        let nlb = lab.host("nlb");
        let relay_hosts = [lab.host("relay-1"), lab.host("relay-2")];
        let outpost = lab.router("outpost");
        for (n, relay) in relay_hosts.iter().enumerate() {
            let n = n + 1;
            lab.veth(
                (&nlb, &format!("10.20.{n}.10/24")),
                (relay, &format!("10.20.{n}.2/24")),
            );
            lab.veth(
                (relay, &format!("10.20.1{n}.2/24")),
                (&outpost, &format!("10.20.1{n}.1/24")),
            );
            relay.route("10.30.0.0/16", &format!("10.20.1{n}.1"));
        }
        let provider = lab.router("provider");
        let wan = lab.wan(
            (&outpost, "10.99.0.1/30"),
            (&provider, "10.99.0.2/30"),
            Shape::delay(Duration::from_millis(35)),
        );
        outpost.route("10.30.0.0/16", "10.99.0.2");
        provider.route("10.20.0.0/16", "10.99.0.1");
        let (load_balancer, resolver) = (lab.host("load-balancer"), lab.host("resolver"));
        for (n, host) in [&load_balancer, &resolver].into_iter().enumerate() {
            let n = n + 1;
            lab.veth(
                (&provider, &format!("10.30.{n}.1/24")),
                (host, &format!("10.30.{n}.2/24")),
            );
            host.route("default", &format!("10.30.{n}.1"));
        }
        let origin = Origin::start(&load_balancer, PROVIDER, manner);
        let dns = Dns::start(&resolver, RESOLVER);
        dns.set(NAME, Answer::addresses(&["10.30.1.2"], ttl));
        let config = format!("[resolver]\nservers = [\"{RESOLVER}\"]\n{tables}\n\n[health]\n");
        let start = Start::with(SHIPPED).replace("[health]\n", &config);
        let relays = relay_hosts.each_ref().map(|host| start.clone().on(host));
        for relay in &relays {
            relay.wait_metric("tollgate_upstream_addresses", &[], 1);
        }
        Self {
            baselines: relays.each_ref().map(Baseline::of),
            relays,
            origin,
            dns,
            consumers,
            endpoints,
            nlb,
            load_balancer,
            resolver,
            _wan: wan,
            _lab: lab,
        }
    }

    /// A balancer with both endpoints.
    #[track_caller]
    fn balancer(&self, change: impl FnOnce(&mut Config)) -> Nlb {
        let listen = self.endpoints.iter().zip(ENDPOINTS);
        let listen = listen.map(|(host, id)| Listen::endpoint(host, SERVICE, id));
        let mut config = Config::new(listen.collect(), &RELAYS);
        change(&mut config);
        Nlb::start(&self.nlb, config)
    }

    /// Payload bytes that both relays booked to an endpoint.
    #[track_caller]
    fn booked(&self, endpoint: &str, direction: &str) -> u64 {
        let labels = [("endpoint", endpoint), ("direction", direction)];
        let relays = self.relays.iter();
        relays
            .map(|relay| relay.metric("tollgate_bytes_total", &labels))
            .sum()
    }

    /// The sum of a metric over both relays.
    #[track_caller]
    fn sum(&self, name: &str, labels: &[(&str, &str)]) -> u64 {
        let relays = self.relays.iter();
        relays.map(|relay| relay.metric(name, labels)).sum()
    }

    #[track_caller]
    fn wait_closed(&self, reason: &str, n: u64) {
        self.relays[0].wait_until(&format!("{n} closed with {reason}"), || {
            self.sum("tollgate_connections_closed_total", &[("reason", reason)]) == n
        });
    }

    #[track_caller]
    fn assert_at_rest(&self) {
        for (relay, baseline) in self.relays.iter().zip(self.baselines) {
            world::assert_at_rest(relay, baseline);
        }
    }
}

fn address(text: &str) -> SocketAddr {
    text.parse().expect("an address")
}

async fn connect() -> Agent {
    Agent::connect(address(SERVICE)).await.unwrap()
}

/// A connection of a consumer's from beginning to end, `bytes` there and back.
#[track_caller]
fn exchange(consumer: &Host, seed: u64, bytes: u64) {
    consumer.run(async move {
        let mut agent = connect().await.seed(seed);
        agent.exchange(bytes).await.unwrap();
        agent.finish().unwrap();
        assert_eq!(agent.expect_to_end(seed).await.unwrap(), End::Fin);
        assert_eq!(agent.received(), bytes);
    });
}

/// A connection that is open and has moved `bytes` there and back.
#[track_caller]
fn opened(consumer: &Host, bytes: u64) -> Agent {
    consumer.run(async move {
        let mut agent = connect().await;
        agent.exchange(bytes).await.unwrap();
        agent
    })
}

fn books_agree() {
    let outpost = Outpost::new("t4", Manner::Echo, 60, "");
    let nlb = outpost.balancer(|_| ());
    const BYTES: [[u64; 6]; 2] = [
        [1, 100, 5_000, 70_000, 300_000, 12],
        [3, 200, 6_000, 90_000, 1, 700_000],
    ];
    thread::scope(|scope| {
        for (consumer, connections) in outpost.consumers.iter().zip(BYTES) {
            for (seed, bytes) in connections.into_iter().enumerate() {
                scope.spawn(move || exchange(consumer, seed as u64, bytes));
            }
        }
    });
    outpost.wait_closed("completed", 12);
    let nlb_books = nlb.wait_over();
    for (endpoint, connections) in ENDPOINTS.into_iter().zip(BYTES) {
        let sum: u64 = connections.iter().sum();
        assert_eq!(outpost.booked(endpoint, "to_upstream"), sum);
        assert_eq!(outpost.booked(endpoint, "to_client"), sum);
        let opened = "tollgate_connections_opened_total";
        assert_eq!(outpost.sum(opened, &[("endpoint", endpoint)]), 6);
        assert_eq!(nlb_books.endpoints[endpoint].bytes_to_target, sum);
        assert_eq!(nlb_books.endpoints[endpoint].bytes_to_client, sum);
    }
    let books = outpost.origin.wait_over(12);
    let sum: u64 = BYTES.iter().flatten().sum();
    assert_eq!((books.received, books.sent), (sum, sum));
    assert_eq!(outpost.sum("tollgate_bytes_total", &[]), 2 * sum);

    // Only the endpoint leads there, and nothing leads back.
    let unreachable = |host: &Host, to: &str| {
        let to = address(to);
        let error = host
            .run(async move { Agent::connect(to).await })
            .unwrap_err();
        let kinds = [ErrorKind::NetworkUnreachable, ErrorKind::HostUnreachable];
        assert!(kinds.contains(&error.kind()), "{to}: {error}");
    };
    for host in outpost.consumers.iter().chain(&outpost.endpoints) {
        for to in [PROVIDER, RESOLVER, RELAYS[0], RELAYS[1]] {
            unreachable(host, to);
        }
    }
    let relays = outpost.relays.iter().map(Relay::host);
    for host in relays.chain([&outpost.load_balancer, &outpost.nlb]) {
        unreachable(host, "10.1.0.2:22");
        unreachable(host, SERVICE);
    }
    drop(nlb);
    outpost.assert_at_rest();
}

fn health_checks() {
    let outpost = Outpost::new("t4-health", Manner::Echo, 60, "");
    let to_health_port = HealthCheck {
        port: Some(9901),
        ..HealthCheck::http("/readyz")
    };
    let kinds = [
        // On the traffic port, behind a LOCAL header; whatever the path.
        (HealthCheck::http("/"), true),
        (HealthCheck::http("/readyz"), true),
        // On the health port, with a LOCAL header and without.
        (to_health_port.clone(), false),
        (
            HealthCheck {
                header: false,
                ..to_health_port
            },
            false,
        ),
        // Connecting alone.
        (HealthCheck::tcp(), false),
    ];
    for (check, counted) in kinds {
        let name = "tollgate_health_checks_total";
        let before = outpost.sum(name, &[]);
        let nlb = outpost.balancer(|config| {
            // Checks only: no consumer comes, and the address is free for the next.
            config.listen.clear();
            config.health = Some(check.clone());
        });
        for target in RELAYS {
            nlb.wait_health(address(target), true);
        }
        let books = nlb.books();
        assert!(books.targets.values().all(|target| target.failed == 0));
        nlb.kill();
        assert_eq!(outpost.sum(name, &[]) > before, counted, "{check:?}");
    }
    assert_eq!(outpost.sum("tollgate_connections_opened_total", &[]), 0);
    assert_eq!(outpost.sum("tollgate_header_errors_total", &[]), 0);
    assert!(outpost.sum("tollgate_empty_connections_total", &[]) > 0);
    assert_eq!(outpost.origin.books().accepted, 0);
    outpost.assert_at_rest();
}

/// NLB's idle timeout: nobody is told, whoever speaks next is answered by RST.
fn forgotten_by_the_balancer() {
    let answer = Manner::AnswerAfterEnd {
        wait: Duration::from_secs(3),
        seed: 7,
        // More than is under way at once, so that the RST finds the session open.
        bytes: 20_000_000,
    };
    let table = "[session]\nidle_timeout = \"6s\"";
    let outpost = Outpost::new("t4-idle", answer, 60, table);
    let nlb = outpost.balancer(|config| config.idle_timeout = Duration::from_secs(1));
    // The upstream speaks first after the balancer has forgotten: the relay is answered by RST.
    let waiting = outpost.consumers[0].run(async {
        let mut agent = connect().await;
        agent.send(1000).await.unwrap();
        agent.finish().unwrap();
        agent
    });
    // Nobody speaks: the relay's own bound ends it on both sides.
    let mut silent = outpost.consumers[1].run(async {
        let mut agent = connect().await;
        agent.send(500).await.unwrap();
        agent
    });
    nlb.wait("both to be forgotten", |books| {
        (books.forgotten == 2).then_some(())
    });
    outpost.wait_closed("client_reset", 1);
    outpost.wait_closed("idle_timeout", 1);
    let end = outpost.consumers[1].run(async move {
        silent.write(b"still there?").await.unwrap();
        silent.read_to_end().await.unwrap().1
    });
    assert_eq!(end, End::Reset, "the balancer answers for what is gone");
    let books = outpost.origin.wait_over(2);
    assert_eq!(books.received, 1500);
    assert!(outpost.booked(ENDPOINTS[0], "to_client") <= books.sent);
    assert_eq!(outpost.booked(ENDPOINTS[0], "to_upstream"), 1000);
    assert_eq!(outpost.booked(ENDPOINTS[1], "to_upstream"), 500);
    outpost.consumers[0].call(move || waiting.reset());
    nlb.wait_over();
    drop(nlb);
    outpost.assert_at_rest();
}

fn drained() {
    let table = "[drain]\naccept_for = \"6s\"\ndeadline = \"60s\"";
    let outpost = Outpost::new("t4-drain", Manner::Echo, 60, table);
    let nlb = outpost.balancer(|config| {
        config.reset_when_unhealthy = false;
        config.health = Some(HealthCheck {
            port: Some(9901),
            ..HealthCheck::http("/readyz")
        });
    });
    let [leaving, staying] = RELAYS.map(address);
    for target in [leaving, staying] {
        nlb.wait_health(target, true);
    }
    // One long connection to the relay that is to leave; those that land on the other one make way.
    let consumer = &outpost.consumers[0];
    let mut long = loop {
        let agent = opened(consumer, 100);
        if nlb.books().targets[&leaving].connections == 1 {
            break agent;
        }
        consumer.call(move || drop(agent));
    };
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        // A consumer that connects again and again; each failure is one of the test.
        scope.spawn(|| {
            let mut seed = 1000;
            while !stop.load(Ordering::Relaxed) {
                exchange(&outpost.consumers[1], seed, 3000);
                seed += 1;
            }
        });
        // Set on every way out, or a failure here would wait for that consumer for ever.
        let _stop = Stop(&stop);
        let [relay, other] = &outpost.relays;
        relay.signal(Signal::TERM);
        relay.wait_until("readiness to fail", || relay.get("/readyz").0 == 503);
        let health = address("10.20.1.2:9901");
        let asked = outpost.nlb.run(http_get(health, "/readyz".to_owned()));
        assert_eq!(asked.unwrap().0, 503);
        assert_eq!(relay.get("/healthz").0, 200);
        // Connections on their way there are still taken.
        outpost.nlb.run(async move {
            let mut agent = Agent::connect(leaving).await.unwrap();
            let header = privatelink_header(ENDPOINTS[0]);
            agent.preface(&[&header]).await.unwrap();
            agent.exchange(1000).await.unwrap();
            agent.finish().unwrap();
            assert_eq!(agent.expect_to_end(0).await.unwrap(), End::Fin);
        });
        nlb.wait_health(leaving, false);
        nlb.deregister(leaving, Duration::from_millis(200));
        nlb.wait("the end of the lag", |books| {
            books.targets[&leaving].is_deregistered().then_some(())
        });
        relay.wait_log("finishing");
        // What is open goes on; nobody else is taken.
        long = consumer.run(async move {
            long.exchange(50_000).await.unwrap();
            long
        });
        relay.wait_until("the listener to be gone", || {
            let sockets = relay.host().sockets();
            !sockets
                .iter()
                .any(|s| s.state == State::Listen && s.local.port() == 8443)
        });
        assert!(relay.is_running());
        relay.wait_metric("tollgate_connections_active", &[], 1);
        let labels = [("direction", "to_upstream"), ("endpoint", ENDPOINTS[0])];
        assert_eq!(relay.metric("tollgate_bytes_total", &labels), 51_100);
        consumer.run(async move {
            long.finish().unwrap();
            assert_eq!(long.expect_to_end(0).await.unwrap(), End::Fin);
        });
        assert_eq!(relay.wait_exit(), 0);
        // The fleet still serves.
        exchange(consumer, 0, 1000);
        assert_eq!(other.metric("tollgate_refused_total", &[]), 0);
    });
    let books = outpost.origin.books();
    assert!(
        books
            .connections
            .iter()
            .all(|connection| connection.end == Some(End::Fin))
    );
    assert_eq!(books.received, books.sent);
    assert_eq!(nlb.books().connect_failed, 0);
    drop(nlb);
    world::assert_at_rest(&outpost.relays[1], outpost.baselines[1]);
}

/// Sets the flag when it goes.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// What the relay's send buffer (Linux's default) and the receive buffer of a reader that has stopped (set below) hold at most.
const IN_KERNELS: u64 = (4 << 20) + (4 << 20);

fn killed_agent() {
    // What the agent sent before its RST is still owed to the upstream, which does not read before somebody takes its answers. Nobody
    // will, so the bound on silence decides.
    let table = "[session]\nhalf_close_timeout = \"2s\"";
    let outpost = Outpost::new("t4-agent", Manner::Echo, 60, table);
    outpost
        .load_balancer
        .sysctl("net.ipv4.tcp_rmem", "4096 131072 4194304");
    let nlb = outpost.balancer(|_| ());
    // It takes nothing back: everything on the way is full when it dies.
    let sent = outpost.consumers[0].run(async {
        let mut agent = connect().await;
        let quiet = Duration::from_millis(300);
        let sent = agent.send_until_stuck(quiet).await.unwrap();
        agent.reset();
        sent
    });
    outpost.wait_closed("client_reset", 1);
    let books = outpost.origin.wait_over(1);
    assert_eq!(books.connections[0].end, Some(End::Reset));
    let booked = outpost.booked(ENDPOINTS[0], "to_upstream");
    assert!(booked <= sent && books.received <= booked);
    assert!(
        booked - books.received <= IN_KERNELS,
        "{booked} {}",
        books.received
    );
    assert!(outpost.booked(ENDPOINTS[0], "to_client") <= books.sent);
    exchange(&outpost.consumers[1], 1, 10_000);
    assert_eq!(outpost.booked(ENDPOINTS[1], "to_upstream"), 10_000);
    nlb.wait_over();
    drop(nlb);
    outpost.assert_at_rest();
}

fn killed_origin() {
    let outpost = Outpost::new("t4-origin", Manner::Echo, 60, "");
    let nlb = outpost.balancer(|_| ());
    let agents = [0, 1].map(|n| opened(&outpost.consumers[n], 10_000));
    outpost.origin.kill();
    for (mut agent, consumer) in agents.into_iter().zip(&outpost.consumers) {
        let end = consumer.run(async move { agent.read_to_end().await.unwrap().1 });
        assert_eq!(end, End::Reset);
    }
    outpost.wait_closed("upstream_reset", 2);
    outpost.relays[0].wait_until("the origin to be gone", || {
        let sockets = outpost.load_balancer.sockets();
        !sockets.iter().any(|socket| socket.state == State::Listen)
    });
    let end = outpost.consumers[0].run(async {
        let mut agent = connect().await;
        agent.write(b"anybody?").await.unwrap();
        agent.read_to_end().await.unwrap().1
    });
    assert_eq!(end, End::Reset);
    outpost.wait_closed("connect_failed", 1);
    let again = Origin::start(&outpost.load_balancer, PROVIDER, Manner::Echo);
    for consumer in &outpost.consumers {
        exchange(consumer, 1, 10_000);
    }
    assert_eq!(again.wait_over(2).received, 20_000);
    for endpoint in ENDPOINTS {
        assert_eq!(outpost.booked(endpoint, "to_upstream"), 20_000);
        assert_eq!(outpost.booked(endpoint, "to_client"), 20_000);
    }
    nlb.wait_over();
    drop(nlb);
    outpost.assert_at_rest();
}

fn killed_resolver() {
    let outpost = Outpost::new("t4-resolver", Manner::Echo, 1, "");
    let nlb = outpost.balancer(|_| ());
    let mut agent = opened(&outpost.consumers[0], 10_000);
    outpost.dns.kill();
    let stale = || outpost.sum("tollgate_dns_stale", &[]);
    outpost.relays[0].wait_until("both to see it", || stale() == 2);
    exchange(&outpost.consumers[1], 1, 10_000);
    outpost.consumers[0].run(async move {
        agent.exchange(10_000).await.unwrap();
        agent.finish().unwrap();
        assert_eq!(agent.expect_to_end(0).await.unwrap(), End::Fin);
    });
    let again = Dns::start(&outpost.resolver, RESOLVER);
    // From now on it is not asked so often, and nothing comes and goes when the end is looked at.
    again.set(NAME, Answer::addresses(&["10.30.1.2"], 60));
    outpost.relays[0].wait_until("both to see it", || stale() == 0);
    outpost.wait_closed("completed", 2);
    assert_eq!(outpost.origin.wait_over(2).received, 30_000);
    assert_eq!(outpost.sum("tollgate_bytes_total", &[]), 60_000);
    nlb.wait_over();
    drop(nlb);
    outpost.assert_at_rest();
}

fn killed_balancer() {
    let outpost = Outpost::new("t4-nlb", Manner::Echo, 60, "");
    let nlb = outpost.balancer(|_| ());
    let agents = [0, 1].map(|n| opened(&outpost.consumers[n], 10_000));
    nlb.kill();
    for (mut agent, consumer) in agents.into_iter().zip(&outpost.consumers) {
        let end = consumer.run(async move { agent.read_to_end().await.unwrap().1 });
        assert_eq!(end, End::Reset);
    }
    outpost.wait_closed("client_reset", 2);
    let books = outpost.origin.wait_over(2);
    assert_eq!(books.received, 20_000);
    let ends = books.connections.iter().map(|connection| connection.end);
    assert!(ends.into_iter().all(|end| end == Some(End::Reset)));
    outpost.relays[0].wait_until("the balancer to be gone", || {
        let mut sockets = outpost.endpoints.iter().flat_map(Host::sockets);
        !sockets.any(|socket| socket.state == State::Listen)
    });
    let again = outpost.balancer(|_| ());
    for (n, consumer) in outpost.consumers.iter().enumerate() {
        exchange(consumer, 1, 5000);
        assert_eq!(outpost.booked(ENDPOINTS[n], "to_upstream"), 15_000);
        assert_eq!(outpost.booked(ENDPOINTS[n], "to_client"), 15_000);
    }
    again.wait_over();
    drop(again);
    outpost.assert_at_rest();
}
