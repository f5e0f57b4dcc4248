//! T1 while nothing is wrong: who reaches whom, and who does not.

use std::{
    collections::BTreeMap,
    io::{self, ErrorKind},
    net::SocketAddr,
    time::Duration,
};

use libtest_mimic::Trial;

use super::{
    plan::{AGENT, Between, INTERFACE, MAIN, SIGNALS, Scene, agents_name, upstream},
    world::World,
};
use crate::{
    claim,
    harness::{
        agent::Agent,
        http::Message,
        netns::Host,
        stream::End,
        tap::{Opening, Tap},
    },
    scenarios::journal::assert_none_failed,
};

pub(super) fn tests() -> Vec<Trial> {
    vec![
        claim(
            "t1_three_names_lead_to_three_services_from_three_regions_over_peering",
            || three_services(Between::Peering),
        ),
        claim(
            "t1_three_names_lead_to_three_services_from_three_regions_over_a_hub",
            || three_services(Between::Hub),
        ),
        claim("t1_connections_go_one_way_only", one_way),
        claim("t1_name_of_no_service_is_refused", no_service),
    ]
}

const PACE: Duration = Duration::from_millis(40);

fn three_services(between: Between) {
    let world = World::new(
        "t1",
        Scene {
            regions: 3,
            between,
            ..Scene::default()
        },
    );
    let hub = world.hub.as_ref().map(Tap::on);
    let traffic = world.traffic(PACE);
    traffic.wait_more(18);
    let connections = traffic.stop();
    assert_none_failed(&connections);

    // By endpoint and upstream: what agents opened.
    let mut wanted: BTreeMap<(&str, String), u64> = BTreeMap::new();
    for (endpoint, connection) in &connections {
        let signal = SIGNALS[connection.service % SIGNALS.len()];
        let name = upstream(signal, connection.service >= SIGNALS.len());
        *wanted.entry((endpoint, name)).or_default() += 1;
    }
    let completed = [("reason", "completed")];
    world
        .relays()
        .next()
        .expect("some")
        .wait_until("all to be over", || {
            let closed = world
                .counts()
                .sum("tollgate_connections_closed_total", &completed);
            closed == connections.len() as u64
        });
    let counts = world.counts();
    for ((endpoint, upstream), n) in &wanted {
        let labels = [("endpoint", *endpoint), ("upstream", upstream.as_str())];
        let booked = counts.sum("tollgate_connections_opened_total", &labels);
        assert_eq!(booked, *n, "{labels:?}");
    }
    for region in &world.regions {
        for relay in &region.relays {
            let opened = relay.metric("tollgate_connections_opened_total", &[]);
            assert!(opened > 0, "the balancer uses both of a Region's relays");
        }
        for consumer in &region.consumers {
            let books = region.nlbs.iter().map(|nlb| nlb.wait_over());
            let (mut to_target, mut to_client) = (0, 0);
            for books in books.filter_map(|books| books.endpoints.get(consumer.endpoint).copied()) {
                to_target += books.bytes_to_target;
                to_client += books.bytes_to_client;
            }
            for (direction, bytes) in [("to_upstream", to_target), ("to_client", to_client)] {
                let labels = [("endpoint", consumer.endpoint), ("direction", direction)];
                assert_eq!(counts.sum("tollgate_bytes_total", &labels), bytes);
            }
        }
    }
    // Hellos arrive as they were sent: each balancer was asked for its own signal, and the control plane that stands by for nothing.
    for zone in &world.zones {
        for node in &zone.nodes {
            let names = node.tls.books().names;
            let accepted = node.origin.books().accepted;
            if zone.region == MAIN {
                let asked: Vec<&String> = names.keys().collect();
                assert_eq!(asked, [&agents_name(node.signal)], "{}", node.address);
                assert!(accepted > names.values().sum(), "plain text came too");
            } else {
                assert_eq!(accepted, 0, "{}", node.address);
            }
        }
    }
    if let Some(hub) = hub {
        let seen = hub.openings();
        assert!(!seen.is_empty(), "the way between Regions is the hub's");
        let control_plane = |to: &SocketAddr| to.to_string().starts_with("10.30.");
        assert!(seen.iter().all(|(_, to)| control_plane(to)), "{seen:?}");
    }
    world.stop_balancers();
    world.assert_at_rest();
}

fn one_way() {
    let world = World::new("t1-way", Scene::default());
    let region = &world.regions[1];
    let relays: Vec<Tap> = region.relays.iter().map(|r| Tap::on(r.host())).collect();
    let interfaces = region.consumers.iter().map(|c| &c.interface);
    let vpcs = region.consumers.iter().map(|c| &c.vpc);
    let consumers: Vec<Tap> = interfaces.chain(vpcs).map(Tap::on).collect();
    let control_plane: Vec<Tap> = world.zones.iter().map(|zone| Tap::on(&zone.host)).collect();
    let traffic = world.traffic(PACE);
    traffic.wait_more(18);

    assert_none_failed(&traffic.stop());

    // Whoever opened a connection to whom, all the while.
    let from = |(from, _): &Opening, network: &str| from.ip().to_string().starts_with(network);
    let to = |(_, to): &Opening, network: &str| to.ip().to_string().starts_with(network);
    for tap in &relays {
        for opening in tap.openings() {
            let by_the_balancer = from(&opening, "10.21.") && to(&opening, "10.21.");
            let by_the_relay = from(&opening, "10.21.1") && to(&opening, "10.30.");
            // The admin port, which we read.
            let within = from(&opening, "127.") && to(&opening, "127.");
            assert!(by_the_balancer || by_the_relay || within, "{opening:?}");
            if by_the_balancer {
                let node = opening.0.ip().to_string();
                assert!(node.ends_with(".10"), "a relay opened one: {opening:?}");
            }
        }
        assert!(tap.openings().iter().any(|one| to(one, "10.30.")));
    }
    for tap in &consumers {
        let seen = tap.openings();
        assert!(!seen.is_empty());
        for opening in seen {
            assert_eq!(opening.0.ip().to_string(), AGENT, "{opening:?}");
            assert_eq!(opening.1.ip().to_string(), INTERFACE, "{opening:?}");
        }
    }
    for tap in &control_plane {
        for opening in tap.openings() {
            let from_a_relay = from(&opening, "10.20.") || from(&opening, "10.21.");
            let within = from(&opening, "10.30.") && to(&opening, "10.30.");
            assert!(from_a_relay || within, "{opening:?}");
        }
    }

    // Nothing leads there that one could try.
    let hosts = world.zones.iter().map(|zone| &zone.host);
    let hosts = hosts.chain(world.relays().map(|relay| relay.host()));
    for host in hosts.chain([&region.router, &region.nlb_host]) {
        for to in [format!("{AGENT}:22"), format!("{INTERFACE}:443")] {
            let error = open(host, &to).expect_err("there is no way");
            let kinds = [ErrorKind::NetworkUnreachable, ErrorKind::HostUnreachable];
            assert!(kinds.contains(&error.kind()), "{to}: {error}");
        }
    }
    // A relay is reached by what answers it, and yet takes no connection from there, header or not.
    for (n, relay) in region.relays.iter().enumerate() {
        for tls in [false, true] {
            let before = relay.metric("tollgate_header_errors_total", &[("error", "untrusted")]);
            let to = format!("10.21.1{}.2:{}", n + 1, region.listener(n, tls).port());
            let to: SocketAddr = to.parse().expect("an address");
            let outcome = world.zones[0].host.run(Agent::outcome(to));
            assert_eq!(outcome.expect("it is reached"), (Vec::new(), End::Reset));
            let labels = [("error", "untrusted")];
            relay.wait_metric("tollgate_header_errors_total", &labels, before + 1);
        }
    }
    world.stop_balancers();
    world.assert_at_rest();
}

fn open(host: &Host, to: &str) -> io::Result<Agent> {
    let to: SocketAddr = to.parse().expect("an address");
    host.run(Agent::connect(to))
}

fn no_service() {
    let world = World::new(
        "t1-none",
        Scene {
            regions: 1,
            ..Scene::default()
        },
    );
    let consumer = &world.regions[MAIN].consumers[0];
    let to: SocketAddr = format!("{INTERFACE}:80").parse().expect("an address");
    let outcome = consumer.vpc.run(async move {
        let mut agent = Agent::connect(to).await?;
        let request = Message::post("billing.observability.internal", "/", Vec::new());
        agent.write(&request.bytes()).await?;
        agent.read_to_end().await
    });
    assert_eq!(outcome.expect("it is reached"), (Vec::new(), End::Reset));
    let labels = [("reason", "no_route"), ("listener", "ingest-http")];
    assert_eq!(world.counts().sum("tollgate_refused_total", &labels), 1);
    let tls: SocketAddr = format!("{INTERFACE}:443").parse().expect("an address");
    let (identity, to) = (world.identity.clone(), tls);
    let handshake = consumer.vpc.run(async move {
        let stream = tokio::net::TcpStream::connect(to).await?;
        let name = "billing.observability.internal".to_owned().try_into();
        let name = name.map_err(io::Error::other)?;
        identity.connector().connect(name, stream).await.map(drop)
    });
    let error = handshake.expect_err("nobody answers");
    assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
    let labels = [("reason", "no_route"), ("listener", "ingest")];
    assert_eq!(world.counts().sum("tollgate_refused_total", &labels), 1);
    assert_eq!(
        world.counts().sum("tollgate_connections_opened_total", &[]),
        0
    );
    world.stop_balancers();
    world.assert_at_rest();
}
