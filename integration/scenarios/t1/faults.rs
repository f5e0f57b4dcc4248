//! T1 under steady traffic, while one thing after the other dies. What is claimed each time: no connection that began after that was lost,
//! none before it but those that were on the dead thing, and the relays say where each went.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    time::{Duration, Instant},
};

use libtest_mimic::Trial;
use serde_json::Value;

use super::{
    plan::{MAIN, SIGNALS, STANDBY, Scene, ZONES, node_address, upstream, zone_network},
    world::World,
};
use crate::{
    claim,
    harness::{
        dns::Dns,
        relay::{Relay, Signal},
        steady::Connection,
    },
    scenarios::journal::{self, SAY_WHERE, SOON_GIVEN_UP, assert_none_failed},
};

pub(super) fn tests() -> Vec<Trial> {
    vec![
        claim(
            "t1_all_addresses_of_a_balancer_are_replaced_without_a_lost_connection",
            addresses_replaced,
        ),
        claim(
            "t1_zone_turns_into_a_black_hole_without_a_lost_new_connection",
            black_hole,
        ),
        claim(
            "t1_main_region_is_cut_and_returns_without_a_lost_new_connection",
            region_cut,
        ),
        claim(
            "t1_resolver_is_gone_and_returns_without_a_lost_connection",
            resolver_gone,
        ),
        claim(
            "t1_killed_relay_loses_only_what_the_balancer_had_given_to_it",
            relay_killed,
        ),
        claim(
            "t1_relay_is_replaced_without_a_lost_connection",
            relay_replaced,
        ),
    ]
}

/// From one connection of an account's to the next.
const PACE: Duration = Duration::from_millis(50);

type Connections = [(&'static str, Connection)];

/// As [`journal::lost`]; and that what the relays say of who answered is what agents say: the log of each connection, `/metrics` and
/// `/status` of how many each address had.
#[track_caller]
fn lost(
    world: &World,
    connections: &Connections,
    fault: Instant,
) -> Vec<(Connection, Option<SocketAddr>)> {
    let sessions = journal::sessions(world.relays());
    let mut of_address: BTreeMap<(String, SocketAddr), u64> = BTreeMap::new();
    for (endpoint, connection) in connections {
        let Some(local) = connection.local else {
            continue;
        };
        let Some(session) = sessions.get(&((*endpoint).to_owned(), local)) else {
            continue;
        };
        if let (Some(address), Some(by)) = (session.address, &connection.by) {
            let said = format!(" {}", address.ip());
            assert!(by.ends_with(&said), "{by} {session:?}");
        }
        if let Some(address) = session.address {
            let signal = SIGNALS[connection.service % SIGNALS.len()];
            let upstream = upstream(signal, connection.service >= SIGNALS.len());
            *of_address.entry((upstream, address)).or_default() += 1;
        }
    }
    // A relay that has ended took its books with it.
    if world.relays().all(Relay::is_running) {
        let counts = world.counts();
        let opened = "tollgate_upstream_address_connections_total";
        for ((upstream, address), n) in &of_address {
            let labels = [
                ("upstream", upstream.as_str()),
                ("address", &address.to_string()),
            ];
            // Of an address that has left, nothing is shown.
            if counts.has(opened, &labels) {
                assert_eq!(counts.sum(opened, &labels), *n, "{labels:?}");
            }
        }
        let in_status: u64 = world.relays().map(opened_in_status).sum();
        assert_eq!(in_status, counts.sum(opened, &[]));
    }
    journal::lost(&sessions, connections, fault)
}

/// Sessions that all addresses had, as `/status` says.
fn opened_in_status(relay: &Relay) -> u64 {
    let status = relay.status();
    let list = |value: &Value, key: &str| value[key].as_array().cloned().unwrap_or_default();
    let upstreams = list(&status, "upstreams").into_iter();
    let targets = upstreams.flat_map(|upstream| list(&upstream, "targets"));
    let addresses = targets.flat_map(|target| list(&target, "addresses"));
    addresses
        .map(|address| address["opened"].as_u64().expect("a number"))
        .sum()
}

/// Those that began after `since`, and who answered them.
fn answered_since(connections: &Connections, since: Instant) -> impl Iterator<Item = &str> {
    let newer = connections
        .iter()
        .filter(move |(_, connection)| connection.began > since);
    newer.filter_map(|(_, connection)| connection.by.as_deref())
}

#[track_caller]
fn at_rest(world: &World) {
    world.stop_balancers();
    world.assert_at_rest();
}

fn addresses_replaced() {
    let scene = Scene {
        ttl: 1,
        tables: SAY_WHERE.to_owned(),
        ..Scene::default()
    };
    let mut world = World::new("t1-moved", scene);
    let identity = world.identity.clone();
    let replaced = "logs";
    for zone in 1..=ZONES {
        let address = node_address(MAIN, zone, replaced, 1);
        world.zones[zone - 1].add_node("logs", &address, &identity);
    }
    let traffic = world.traffic(PACE);
    traffic.wait_more(12);
    let new: Vec<String> = (1..=ZONES)
        .map(|zone| node_address(MAIN, zone, replaced, 1))
        .collect();
    let new_ones: Vec<&str> = new.iter().map(String::as_str).collect();
    world.set_addresses(replaced, MAIN, &new_ones, 1);
    for relay in world.relays() {
        relay.wait_until("the new addresses", || {
            let (_, status) = relay.get("/status");
            let old = |zone| format!("\"{}:", node_address(MAIN, zone, replaced, 0));
            (1..=ZONES).all(|zone| !status.contains(&old(zone)))
                && new
                    .iter()
                    .all(|address| status.contains(&format!("\"{address}:")))
        });
    }
    let seen = Instant::now();
    // Those on their way to the old ones come to their end there.
    traffic.wait_begun();
    for node in world.zones.iter().flat_map(|zone| &zone.nodes) {
        if node.signal == replaced && !new.contains(&node.address) {
            node.origin.kill();
            node.tls.kill();
        }
    }
    traffic.wait_more(12);
    let connections = traffic.stop();
    assert_none_failed(&connections);
    assert!(lost(&world, &connections, seen).is_empty());
    let since = answered_since(&connections, seen).filter(|by| by.starts_with(replaced));
    let since: Vec<&str> = since.collect();
    assert!(!since.is_empty());
    for by in since {
        assert!(new.iter().any(|address| by.ends_with(address)), "{by}");
    }
    for signal in SIGNALS {
        world.set_addresses(signal, MAIN, &new_ones, 300);
    }
    at_rest(&world);
}

fn black_hole() {
    let scene = Scene {
        tables: format!("{SAY_WHERE}\n{SOON_GIVEN_UP}"),
        // Longer than an agent waits: who depends on it is lost.
        upstream: "connect_timeout = \"60s\"\nconnect_deadline = \"60s\"".to_owned(),
        ..Scene::default()
    };
    let world = World::new("t1-zone", scene);
    let traffic = world.traffic(PACE);
    traffic.wait_more(12);
    let dead = zone_network(MAIN, 2);
    world.regions[MAIN].router.black_hole(&dead);
    let fault = Instant::now();
    traffic.wait_more(30);
    traffic.give_up(fault);
    let connections = traffic.stop();
    let dead: ipnet::IpNet = dead.parse().expect("a network");
    for (connection, address) in lost(&world, &connections, fault) {
        let address = address.map(|address| address.ip());
        assert!(
            address.is_some_and(|address| dead.contains(&address)),
            "was on {address:?}, which lives: {connection:?}"
        );
    }
    for by in answered_since(&connections, fault) {
        assert!(!by.contains(" 10.30.2."), "{by} is in the dead zone");
    }
    at_rest(&world);
}

fn region_cut() {
    let scene = Scene {
        regions: 3,
        tables: format!("{SAY_WHERE}\n{SOON_GIVEN_UP}"),
        upstream: "connect_timeout = \"60s\"\nconnect_deadline = \"60s\"\n\
                   health = { check = \"tcp\", interval = \"500ms\", timeout = \"500ms\", rise = 2, fall = 3 }\n\
                   eject = { pause = \"1s\", longest = \"2s\" }\n\
                   failover = { back_after = \"1s\" }"
            .to_owned(),
        ..Scene::default()
    };
    let world = World::new("t1-cut", scene);
    let serves = |group: u64| {
        for region in &world.regions[1..] {
            for relay in &region.relays {
                let name = "tollgate_upstream_active_priority";
                relay.wait_until(&format!("group {group} to serve"), || {
                    relay.metric(name, &[]) == group * 2 * SIGNALS.len() as u64
                });
            }
        }
    };
    let traffic = world.traffic(PACE);
    traffic.wait_more(12);
    for ((left, _), wan) in &world.wans {
        if *left == MAIN {
            wan.cut();
        }
    }
    let fault = Instant::now();
    serves(1);
    let over = Instant::now();
    traffic.wait_more(12);
    traffic.give_up(fault);
    // None of the others waits for the main Region to be back.
    traffic.wait_begun();
    for wan in world.wans.values() {
        wan.restore();
    }
    let restored = Instant::now();
    serves(0);
    let back = Instant::now();
    traffic.wait_more(12);
    let connections = traffic.stop();
    for (connection, address) in lost(&world, &connections, fault) {
        let address = address.map(|address| address.ip().to_string());
        assert!(
            address
                .as_ref()
                .is_some_and(|address| address.starts_with("10.30.")),
            "was on {address:?}, which lives: {connection:?}"
        );
    }
    let own = world.regions[MAIN].consumers[0].endpoint;
    for (endpoint, connection) in &connections {
        let Some(by) = &connection.by else { continue };
        let standby = by.contains(&format!(" 10.3{STANDBY}."));
        // Who is in the main Region is not cut off from it.
        if *endpoint == own || connection.began < fault - connection.took || connection.began > back
        {
            assert!(!standby, "{connection:?}");
        } else if connection.began > over && connection.began + connection.took < restored {
            assert!(standby, "{connection:?}");
        }
    }
    for relay in world.regions[1..].iter().flat_map(|region| &region.relays) {
        let failovers = relay.metric("tollgate_upstream_failovers_total", &[]);
        let there_and_back = 2 * 2 * SIGNALS.len() as u64;
        assert!(failovers >= there_and_back, "{failovers}");
    }
    at_rest(&world);
}

fn resolver_gone() {
    let scene = Scene {
        ttl: 1,
        tables: SAY_WHERE.to_owned(),
        ..Scene::default()
    };
    let mut world = World::new("t1-resolver", scene);
    let traffic = world.traffic(PACE);
    traffic.wait_more(12);
    let began = Instant::now();
    for region in &world.regions {
        region.dns.kill();
    }
    let names = 2 * 2 * SIGNALS.len() as u64;
    world.wait_each("tollgate_dns_stale", &[], names);
    traffic.wait_more(12);
    for (number, region) in world.regions.iter_mut().enumerate() {
        let address = format!("10.2{number}.0.2:53");
        region.dns = Dns::start(&region.router, &address);
    }
    // From now on names are not asked for so often, and nothing comes and goes when the end is looked at.
    for (region, zones) in [(MAIN, ZONES), (STANDBY, 1)] {
        for signal in SIGNALS {
            let addresses = (1..=zones).map(|zone| node_address(region, zone, signal, 0));
            let addresses: Vec<String> = addresses.collect();
            let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
            world.set_addresses(signal, region, &addresses, 300);
        }
    }
    world.wait_each("tollgate_dns_stale", &[], 0);
    traffic.wait_more(12);
    let connections = traffic.stop();
    assert_none_failed(&connections);
    assert!(lost(&world, &connections, began).is_empty());
    at_rest(&world);
}

/// Counted as lost with it is what the balancer had given to it: what was open there, and what it gave to it before its checks failed.
fn relay_killed() {
    let scene = Scene {
        tables: SAY_WHERE.to_owned(),
        ..Scene::default()
    };
    let world = World::new("t1-killed", scene);
    let region = &world.regions[1];
    let traffic = world.traffic(PACE);
    traffic.wait_more(12);
    region.relays[0].signal(Signal::KILL);
    region.wait_health(0, false);
    let out = Instant::now();
    traffic.wait_more(18);
    let connections = traffic.stop();
    let dead = [false, true].map(|tls| region.listener(0, tls));
    let (sessions, flows) = (journal::sessions(world.relays()), world.flows());
    let mut given_to_it = 0;
    for (endpoint, connection) in &connections {
        let Some(local) = connection.local else {
            panic!("the balancer's address does not answer: {connection:?}");
        };
        let owner = ((*endpoint).to_owned(), local);
        let target = flows.get(&owner);
        let on_the_dead = target.is_some_and(|target| dead.contains(target));
        given_to_it += u64::from(on_the_dead);
        if connection.failure.is_some() {
            assert!(on_the_dead, "{target:?} lives: {connection:?}");
            assert!(connection.began < out, "{connection:?}");
        } else if !on_the_dead {
            assert_eq!(sessions[&owner].reason, "completed");
        }
    }
    assert!(given_to_it > 0, "it was in use");
    at_rest(&world);
}

fn relay_replaced() {
    let scene = Scene {
        tables: format!("{SAY_WHERE}\n[drain]\naccept_for = \"2s\"\ndeadline = \"60s\""),
        ..Scene::default()
    };
    let mut world = World::new("t1-replaced", scene);
    let traffic = world.traffic(PACE);
    traffic.wait_more(12);
    let began = Instant::now();
    world.add_relay(1);
    let region = &world.regions[1];
    region.register(2);
    region.wait_health(2, true);
    let leaving = &region.relays[0];
    for (nlb, tls) in region.nlbs.iter().zip([false, true]) {
        // Connections keep arriving there for a while.
        nlb.deregister(region.listener(0, tls), Duration::from_millis(300));
    }
    leaving.signal(Signal::TERM);
    assert_eq!(leaving.wait_exit(), 0);
    traffic.wait_more(12);
    let connections = traffic.stop();
    assert_none_failed(&connections);
    assert!(lost(&world, &connections, began).is_empty());
    assert!(region.relays[2].metric("tollgate_connections_opened_total", &[]) > 0);
    at_rest(&world);
}
