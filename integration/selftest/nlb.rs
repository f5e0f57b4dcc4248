//! The load balancer's emulator does what AWS's does.

use std::time::Duration;

use libtest_mimic::Trial;

use crate::{
    claim,
    harness::{
        agent::Agent,
        netns::{Host, Lab},
        nlb::{Config, HealthCheck, Listen, Nlb, Placement, header},
        origin::{Manner, Origin},
        stream::End,
    },
};

const ENDPOINT: &str = "vpce-08d2bf15fac5001c9";

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        claim(
            "nlb_headers_equal_the_captured_ones",
            nlb_headers_equal_the_captured_ones,
        ),
        claim(
            "nlb_header_is_100_bytes_with_endpoint",
            nlb_header_is_100_bytes_with_endpoint,
        ),
        claim(
            "nlb_header_waits_for_payload_or_not",
            nlb_header_waits_for_payload_or_not,
        ),
        claim(
            "nlb_relays_half_close_and_reset",
            nlb_relays_half_close_and_reset,
        ),
        claim(
            "nlb_forgets_silently_then_resets",
            nlb_forgets_silently_then_resets,
        ),
        claim(
            "nlb_checks_health_and_fails_open",
            nlb_checks_health_and_fails_open,
        ),
        claim(
            "nlb_delivers_what_came_before_a_reset",
            nlb_delivers_what_came_before_a_reset,
        ),
        claim(
            "nlb_spreads_flows_over_targets",
            nlb_spreads_flows_over_targets,
        ),
        claim(
            "nlb_resets_what_an_unhealthy_target_has",
            nlb_resets_what_an_unhealthy_target_has,
        ),
        claim("nlb_deregisters_with_a_lag", nlb_deregisters_with_a_lag),
        claim("nlb_killed_resets_both_sides", nlb_killed_resets_both_sides),
    ]
}

fn hex(text: &str) -> Vec<u8> {
    let digits = text.as_bytes().chunks(2);
    digits
        .map(|two| {
            let two = std::str::from_utf8(two).expect("hexadecimal");
            u8::from_str_radix(two, 16).expect("hexadecimal")
        })
        .collect()
}

fn nlb_headers_equal_the_captured_ones() {
    let zeros = |n: usize| "00".repeat(n);
    let privatelink = format!(
        "0d0a0d0a000d0a515549540a21110054ac1f0771ac1f0a1fc8f20050030004e8d6892dea001701\
         767063652d3038643262663135666163353030316339040024{}",
        zeros(0x24)
    );
    let address = |text: &str| text.parse().expect("an address");
    assert_eq!(
        header::proxy(
            address("172.31.7.113:51442"),
            address("172.31.10.31:80"),
            Some(ENDPOINT)
        ),
        hex(&privatelink)
    );
    let check = format!(
        "0d0a0d0a000d0a515549540a20110054030004bce5951f04004a{}",
        zeros(0x4a)
    );
    assert_eq!(header::health_check(), hex(&check));
    let six = "0d0a0d0a000d0a515549540a2121004520010db800000000000000000000001020010db8000000\
               000000000000000020c8f201bb030004e91e7477ea001701767063652d3031323334353637383961626364656630";
    assert_eq!(
        header::proxy(
            address("[2001:db8::10]:51442"),
            address("[2001:db8::20]:443"),
            Some("vpce-0123456789abcdef0")
        ),
        hex(six)
    );
}

/// A consumer's VPC with an endpoint interface, the provider's with the NLB and a target. No route joins the two.
struct Vpcs {
    consumer: Host,
    interface: Host,
    nlb: Host,
    target: Host,
    _lab: Lab,
}

const LISTEN: &str = "10.1.0.10:443";
const TARGET: &str = "10.9.0.2:8443";

impl Vpcs {
    fn new(name: &str) -> Self {
        let lab = Lab::new(name);
        let (consumer, interface) = (lab.host("consumer"), lab.host("interface"));
        let (nlb, target) = (lab.host("nlb"), lab.host("target"));
        lab.veth((&consumer, "10.1.0.2/24"), (&interface, "10.1.0.10/24"));
        lab.veth((&nlb, "10.9.0.1/24"), (&target, "10.9.0.2/24"));
        Self {
            consumer,
            interface,
            nlb,
            target,
            _lab: lab,
        }
    }

    fn config(&self) -> Config {
        Config::new(
            vec![Listen::endpoint(&self.interface, LISTEN, ENDPOINT)],
            &[TARGET],
        )
    }
}

async fn connect() -> Agent {
    let to = LISTEN.parse().expect("an address");
    Agent::connect(to).await.expect("the endpoint listens")
}

fn nlb_header_is_100_bytes_with_endpoint() {
    let vpcs = Vpcs::new("nlb-header");
    let origin = Origin::start(&vpcs.target, TARGET, Manner::Sink);
    let nlb = Nlb::start(&vpcs.nlb, vpcs.config());
    let local = vpcs.consumer.run(async {
        let mut agent = connect().await;
        // A header of the client's own is payload.
        agent
            .write(&header::health_check())
            .await
            .expect("it takes");
        agent.finish().expect("it is open");
        agent.expect_to_end(0).await.expect("it ends");
        agent.local().expect("it has one")
    });
    let books = origin.wait_over(1);
    let seen = &books.connections[0];
    let header = header::proxy(local, LISTEN.parse().expect("an address"), Some(ENDPOINT));
    assert_eq!(header.len(), 100);
    assert_eq!(seen.first, [header, header::health_check()].concat());
    assert_eq!(
        seen.peer.ip().to_string(),
        "10.9.0.1",
        "the NLB's own address"
    );
    let books = nlb.wait_over();
    assert_eq!(
        (books.accepted, books.headers, books.bytes_to_target),
        (1, 1, 100)
    );
    assert_eq!(books.endpoints[ENDPOINT].bytes_to_target, 100);
}

fn nlb_header_waits_for_payload_or_not() {
    let vpcs = Vpcs::new("nlb-placement");
    let origin = Origin::start(&vpcs.target, TARGET, Manner::Sink);
    {
        let nlb = Nlb::start(&vpcs.nlb, vpcs.config());
        vpcs.consumer.run(async {
            let mut agent = connect().await;
            agent.finish().expect("it is open");
            assert_eq!(agent.expect_to_end(0).await.expect("it ends"), End::Fin);
        });
        assert_eq!(origin.wait_over(1).received, 0, "no payload, no header");
        assert_eq!(nlb.wait_over().headers, 0);
    }
    let config = Config {
        placement: Placement::OnFirstAck,
        listen: vec![Listen::endpoint(&vpcs.interface, "10.1.0.10:444", ENDPOINT)],
        ..vpcs.config()
    };
    let nlb = Nlb::start(&vpcs.nlb, config);
    let idle = vpcs.consumer.run(async {
        let to = "10.1.0.10:444".parse().expect("an address");
        Agent::connect(to).await.expect("the endpoint listens")
    });
    origin.wait("the header", |books| (books.received == 100).then_some(()));
    assert_eq!(nlb.books().bytes_to_target, 0);
    drop(idle);
    assert_eq!(origin.wait_over(2).received, 100);
}

fn nlb_relays_half_close_and_reset() {
    let vpcs = Vpcs::new("nlb-ends");
    let nlb = Nlb::start(
        &vpcs.nlb,
        Config {
            proxy_protocol: false,
            ..vpcs.config()
        },
    );
    let (seed, bytes) = (8, 1_000_000);
    let wait = Duration::from_millis(5);
    let half = Origin::start(
        &vpcs.target,
        TARGET,
        Manner::AnswerAfterEnd { wait, seed, bytes },
    );
    let end = vpcs.consumer.run(async move {
        let mut agent = connect().await;
        agent.send(bytes).await.expect("it takes");
        agent.finish().expect("it is open");
        let end = agent.expect_to_end(seed).await.expect("it ends");
        (end, agent.received())
    });
    assert_eq!(end, (End::Fin, bytes));
    assert_eq!(half.wait_over(1).received, bytes);
    let books = nlb.wait_over();
    assert_eq!(
        (books.bytes_to_target, books.bytes_to_client, books.resets),
        (bytes, bytes, 0)
    );
    half.kill();
    drop(half);

    // Data and RST from the target: the data arrives whole, then the RST.
    let origin = restart(&vpcs, Manner::SendThenReset { seed, bytes });
    let end = vpcs.consumer.run(async move {
        let mut agent = connect().await;
        let end = agent.expect_to_end(seed).await.expect("it ends");
        (end, agent.received())
    });
    assert_eq!(end, (End::Reset, bytes));
    origin.wait_over(1);
    nlb.wait_over();
    drop(origin);

    // RST from the client.
    let origin = restart(&vpcs, Manner::CheckedSink);
    vpcs.consumer.run(async move {
        let mut agent = connect().await;
        agent.send(1000).await.expect("it takes");
        agent.reset_after_delivery().await;
    });
    let books = origin.wait_over(1);
    assert_eq!(books.connections[0].end, Some(End::Reset));
    assert_eq!(books.received, 1000);
    assert_eq!(nlb.wait_over().resets, 2);
}

fn nlb_delivers_what_came_before_a_reset() {
    let vpcs = Vpcs::new("nlb-late-reader");
    let config = Config {
        proxy_protocol: false,
        ..vpcs.config()
    };
    let nlb = Nlb::start(&vpcs.nlb, config);
    // Little enough for the NLB's kernel to acknowledge all of it while the client reads nothing.
    let (seed, bytes) = (8, 50_000);
    let origin = Origin::start(&vpcs.target, TARGET, Manner::SendThenReset { seed, bytes });
    let agent = vpcs.consumer.run(async {
        let to = LISTEN.parse().expect("an address");
        Agent::connect_narrow(to, 4096).await.expect("it listens")
    });
    // The target has reset its connection while most of what it sent is still on the way.
    origin.wait_over(1);
    let end = vpcs.consumer.run(async move {
        let mut agent = agent;
        let end = agent.expect_to_end(seed).await.expect("it ends");
        (end, agent.received())
    });
    assert_eq!(end, (End::Reset, bytes));
    nlb.wait_over();
}

fn nlb_spreads_flows_over_targets() {
    let vpcs = Vpcs::new("nlb-spread");
    let targets = ["10.9.0.2:8443", "10.9.0.2:8444", "10.9.0.2:8445"];
    let origins = targets.map(|target| Origin::start(&vpcs.target, target, Manner::Echo));
    let nlb = Nlb::start(
        &vpcs.nlb,
        Config {
            targets: origins.iter().map(Origin::address).collect(),
            proxy_protocol: false,
            ..vpcs.config()
        },
    );
    vpcs.consumer.run(async {
        for _ in 0..90 {
            connect().await.exchange(10).await.expect("it echoes");
        }
    });
    let shares = origins.map(|origin| origin.wait_over(1).accepted);
    assert_eq!(shares.iter().sum::<u64>(), 90);
    // 30 each in the mean, with a standard deviation of 4.5.
    assert!(
        shares.iter().all(|share| (8..60).contains(share)),
        "{shares:?}"
    );
    nlb.wait_over();
}

/// Another origin at the same address, as soon as the one before has let go of it.
fn restart(vpcs: &Vpcs, manner: Manner) -> Origin {
    let free = || {
        vpcs.target
            .sockets()
            .iter()
            .all(|s| s.state != crate::harness::sockets::State::Listen)
    };
    let deadline = std::time::Instant::now() + crate::harness::BOUND;
    while !free() {
        assert!(
            std::time::Instant::now() < deadline,
            "the address stays in use"
        );
        std::thread::yield_now();
    }
    Origin::start(&vpcs.target, TARGET, manner)
}

fn nlb_forgets_silently_then_resets() {
    let vpcs = Vpcs::new("nlb-idle");
    let origin = Origin::start(&vpcs.target, TARGET, Manner::Echo);
    let config = Config {
        idle_timeout: Duration::from_millis(100),
        proxy_protocol: false,
        ..vpcs.config()
    };
    let nlb = Nlb::start(&vpcs.nlb, config);
    let mut agent = vpcs.consumer.run(async {
        let mut agent = connect().await;
        agent.exchange(10).await.expect("it echoes");
        agent
    });
    nlb.wait("the idle timeout", |books| {
        (books.forgotten == 1).then_some(())
    });
    assert_eq!(origin.books().open, 1, "the target was told nothing");
    let end = vpcs.consumer.run(async move {
        agent.write(b"x").await.expect("our kernel takes it");
        agent.read_to_end().await.expect("it ends")
    });
    assert_eq!(end, (vec![], End::Reset));
    assert_eq!(origin.books().received, 10);
}

fn nlb_checks_health_and_fails_open() {
    let vpcs = Vpcs::new("nlb-health");
    let config = Config {
        health: Some(HealthCheck::tcp()),
        ..vpcs.config()
    };
    let target = TARGET.parse().expect("an address");
    let nlb = Nlb::start(&vpcs.nlb, config);
    nlb.wait("a failed check", |books| {
        (books.targets[&target].failed > 0).then_some(())
    });
    let origin = Origin::start(&vpcs.target, TARGET, Manner::Echo);
    nlb.wait_health(target, true);
    let mut agent = vpcs.consumer.run(async {
        let mut agent = connect().await;
        agent.write(b"x").await.expect("it takes");
        agent
    });
    drop(origin);
    nlb.wait_health(target, false);
    let end = vpcs.consumer.run(async move { agent.read_to_end().await });
    assert_eq!(end.expect("it ends").1, End::Reset, "its target is gone");
    // Nobody is healthy, so everybody gets connections.
    let before = nlb.books().connect_failed;
    let to = LISTEN.parse().expect("an address");
    let outcome = vpcs.consumer.run(Agent::outcome(to));
    assert_eq!(outcome.expect("it listens").1, End::Reset);
    assert_eq!(nlb.books().connect_failed, before + 1);

    // By HTTP, with the LOCAL header in front.
    let http = Origin::start(&vpcs.target, "10.9.0.2:8080", Manner::Sink);
    let check = HealthCheck {
        port: Some(8080),
        ..HealthCheck::http("/readyz")
    };
    let listen = vec![Listen::endpoint(&vpcs.interface, "10.1.0.10:445", ENDPOINT)];
    let config = Config {
        listen,
        health: Some(check),
        ..vpcs.config()
    };
    let _nlb = Nlb::start(&vpcs.nlb, config);
    let first = http.wait("a whole request", |books| {
        let first = &books.connections.first()?.first;
        first.ends_with(b"\r\n\r\n").then(|| first.clone())
    });
    assert_eq!(first[..100], header::health_check());
    assert!(first[100..].starts_with(b"GET /readyz HTTP/1.1\r\n"));
}

fn nlb_resets_what_an_unhealthy_target_has() {
    let vpcs = Vpcs::new("nlb-unhealthy");
    let origin = Origin::start(&vpcs.target, TARGET, Manner::Echo);
    let health = Origin::start(&vpcs.target, "10.9.0.2:8080", Manner::Collector);
    let check = HealthCheck {
        port: Some(8080),
        header: false,
        ..HealthCheck::http("/healthz")
    };
    let config = Config {
        health: Some(check),
        proxy_protocol: false,
        ..vpcs.config()
    };
    let nlb = Nlb::start(&vpcs.nlb, config);
    nlb.wait_health(origin.address(), true);
    let mut agent = vpcs.consumer.run(async {
        let mut agent = connect().await;
        agent.exchange(10).await.expect("it echoes");
        agent
    });
    assert!(health.books().requests["/healthz"].count >= 2);
    drop(health);
    nlb.wait_health(origin.address(), false);
    let end = vpcs.consumer.run(async move { agent.read_to_end().await });
    assert_eq!(end.expect("it ends"), (vec![], End::Reset));
    assert_eq!(origin.wait_over(1).connections[0].end, Some(End::Reset));
}

fn nlb_deregisters_with_a_lag() {
    let vpcs = Vpcs::new("nlb-deregister");
    let origin = Origin::start(&vpcs.target, TARGET, Manner::Echo);
    let second = Origin::start(&vpcs.target, "10.9.0.2:8444", Manner::Echo);
    let config = Config {
        proxy_protocol: false,
        ..vpcs.config()
    };
    let nlb = Nlb::start(&vpcs.nlb, config);
    let mut old = vpcs.consumer.run(async {
        let mut agent = connect().await;
        agent.exchange(10).await.expect("it echoes");
        agent
    });
    nlb.register(second.address());
    nlb.deregister(origin.address(), Duration::from_millis(50));
    nlb.wait("the end of the lag", |books| {
        books.targets[&origin.address()]
            .is_deregistered()
            .then_some(())
    });
    let before = origin.books().accepted;
    vpcs.consumer.run(async move {
        for _ in 0..20 {
            connect().await.exchange(10).await.expect("it echoes");
        }
        old.exchange(10)
            .await
            .expect("an open connection is left alone");
    });
    assert_eq!(
        (origin.books().accepted, second.books().accepted),
        (before, 20)
    );
}

fn nlb_killed_resets_both_sides() {
    let vpcs = Vpcs::new("nlb-killed");
    let origin = Origin::start(&vpcs.target, TARGET, Manner::Echo);
    let nlb = Nlb::start(
        &vpcs.nlb,
        Config {
            proxy_protocol: false,
            ..vpcs.config()
        },
    );
    let mut agent = vpcs.consumer.run(async {
        let mut agent = connect().await;
        agent.exchange(10).await.expect("it echoes");
        agent
    });
    nlb.kill();
    let end = vpcs.consumer.run(async move { agent.read_to_end().await });
    assert_eq!(end.expect("it ends").1, End::Reset);
    assert_eq!(origin.wait_over(1).connections[0].end, Some(End::Reset));
}
