//! Addresses that fail: the next is tried, all of them down is said quickly, and another group takes over and hands back.

use std::time::{Duration, Instant};

use libtest_mimic::Trial;

use super::{
    addressed::{ADDRESSES, Addressed, NAME, OTHER},
    world::{ENDPOINT, listener, privatelink_header},
};
use crate::{
    claim,
    harness::{
        agent::Agent,
        dns::Answer,
        origin::{Manner, Origin},
        stream::End,
        tap::Tap,
    },
};

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        claim(
            "refusing_and_silent_addresses_cost_a_client_nothing_but_time",
            refused_silent_works,
        ),
        claim("all_addresses_down_is_an_rst_and_no_unreadiness", all_down),
        claim("other_group_takes_over_and_hands_back_late", || {
            groups(None);
        }),
        claim(
            "sessions_outside_the_serving_group_end_at_their_age",
            || {
                groups(Some("1s"));
            },
        ),
    ]
}

/// A network of the relay's that leads to a host which says nothing.
#[track_caller]
fn silent_network(world: &Addressed) {
    let hole = world.hosts.lab.host("hole");
    let (relay, lab) = (&world.hosts.relay, &world.hosts.lab);
    lab.veth((relay, "10.50.0.1/24"), (&hole, "10.50.0.2/24"));
    relay.route("10.40.0.0/24", "10.50.0.2");
}

fn refused_silent_works() {
    // Nobody listens at the first; behind the second is nothing.
    let list = format!(
        "[\"{}:444\", \"10.40.0.9:443\", \"{NAME}:443\"]",
        ADDRESSES[0]
    );
    // Much longer than the whole test may take: a session that waits for it fails.
    let keys = "balance = \"round_robin\"\nconnect_timeout = \"60s\"\nconnect_deadline = \"60s\"\n\
                next_try_after = \"100ms\"\neject = { after = \"off\" }\nretry_budget = 1000";
    let names = [(NAME, Answer::addresses(&[ADDRESSES[2]], 60))];
    let world = Addressed::new("tries", &names, &list, keys);
    silent_network(&world);
    world.wait_usable(3);
    let tap = Tap::on(&world.hosts.relay);
    let tries = || {
        let to = [
            format!("{}:444", ADDRESSES[0]),
            "10.40.0.9:443".to_owned(),
            format!("{}:443", ADDRESSES[2]),
        ];
        let openings = tap.openings();
        to.map(|to| {
            openings
                .iter()
                .filter(|(_, at)| at.to_string() == to)
                .count()
        })
    };
    let mut before = tries();
    assert_eq!(before, [0; 3]);
    for _ in 0..6 {
        assert_eq!(world.session(), 2);
        let after = tries();
        for (address, (before, after)) in before.iter().zip(&after).enumerate() {
            assert!(after - before <= 1, "address {address} was tried again");
        }
        before = after;
    }
    assert!(
        before[0] > 0 && before[1] > 0,
        "each came first sometimes: {before:?}"
    );
    world.wait_closed("completed", 6);
    let metrics = world.relay.metrics();
    assert_eq!(metrics.sum("tollgate_connections_opened_total", &[]), 6);
    assert!(metrics.sum("tollgate_upstream_retries_total", &[]) > 0);
    assert!(metrics.sum("tollgate_upstream_connect_failures_total", &[]) > 0);
    assert_eq!(world.origins[2].wait_over(6).received, 6000);
    world.assert_at_rest();
}

fn all_down() {
    let keys = "connect_timeout = \"60s\"\nconnect_deadline = \"60s\"\nretry_budget = 1000\n\
                eject = { after = 1, pause = \"60s\", longest = \"60s\" }";
    let world = Addressed::named("all-down", &ADDRESSES, 60, keys);
    for origin in &world.origins {
        origin.kill();
    }
    world.relay.wait_until("nobody to listen", || {
        let sockets = world.hosts.origin.sockets();
        !sockets
            .iter()
            .any(|s| s.local.port() == 443 && s.remote.port() == 0)
    });
    // Also when each of them has failed before, and long before any is given another chance.
    for n in 1..=5 {
        let outcome = world.node().run(async {
            let mut agent = Agent::connect(listener()).await?;
            agent.write(&privatelink_header(ENDPOINT)).await?;
            agent.read_to_end().await
        });
        assert_eq!(outcome.expect("it ends in time"), (Vec::new(), End::Reset));
        world.wait_closed("connect_failed", n);
    }
    let failures = world
        .relay
        .metric("tollgate_upstream_connect_failures_total", &[]);
    assert!(failures >= 5, "{failures}");
    // The balancer would reset every session of a target that says it is not ready.
    assert_eq!(world.relay.get("/readyz").0, 200);
    // One that is there again serves at once: while all have failed, what is known of them is not believed.
    let again = Origin::start(&world.hosts.origin, "10.30.0.3:443", Manner::Echo);
    world.node().run(async {
        let mut agent = super::world::connected(ENDPOINT).await.expect("it is up");
        agent.exchange(1000).await.expect("one of them is back");
        agent.finish().expect("it is open");
        assert_eq!(agent.expect_to_end(0).await.expect("it ends"), End::Fin);
    });
    assert_eq!(again.wait_over(1).received, 1000);
    world.wait_closed("completed", 1);
    world.assert_at_rest();
}

/// The server says on a port of its own how it is, so that it can fall ill with its sessions alive.
fn groups(max_age: Option<&str>) {
    let back_after = Duration::from_secs(2);
    let targets = format!("[\"{NAME}:443\", {{ target = \"{OTHER}:443\", priority = 1 }}]",);
    let max_age_key = max_age
        .map(|age| format!(", max_age = \"{age}\""))
        .unwrap_or_default();
    let keys = format!(
        "health = {{ check = \"tcp\", port = 8080, interval = \"100ms\", timeout = \"100ms\", rise = 2, fall = 2 }}\n\
         slow_start = \"off\"\nfailover = {{ back_after = \"2s\"{max_age_key} }}"
    );
    let names = [
        (NAME, Answer::addresses(&[ADDRESSES[0]], 60)),
        (OTHER, Answer::addresses(&[ADDRESSES[1]], 60)),
    ];
    let world = Addressed::new("groups", &names, &targets, &keys);
    let health = |address: &str| {
        Origin::start(
            &world.hosts.origin,
            &format!("{address}:8080"),
            Manner::Sink,
        )
    };
    let ill = health(ADDRESSES[0]);
    let _well = health(ADDRESSES[1]);
    let serves = |group| {
        world
            .relay
            .wait_metric("tollgate_upstream_active_priority", &[], group);
    };
    world.wait_usable(2);
    serves(0);
    let (on_main, at) = world.open();
    assert_eq!(at, 0);
    drop(ill);
    serves(1);
    let (on_other, at) = world.open();
    assert_eq!(at, 1);
    // What is open in the main group goes on, unless its age there is bounded.
    let on_main = match max_age {
        None => Some(world.exchange(on_main)),
        Some(_) => {
            world.wait_closed("max_age", 1);
            None
        }
    };
    let _well_again = health(ADDRESSES[0]);
    let from = Instant::now();
    world.wait_usable(2);
    // It is well, and yet not served from before it has been for a while; unless this machine was away for that long.
    let at = world.session();
    let serving = world.relay.metric("tollgate_upstream_active_priority", &[]);
    assert!(at == 1 || serving == 0, "too early");
    serves(0);
    assert!(from.elapsed() >= back_after, "{:?}", from.elapsed());
    assert_eq!(world.session(), 0);
    match max_age {
        None => {
            for agent in on_main.into_iter().chain([on_other]) {
                let agent = world.exchange(agent);
                world.finish(agent);
            }
        }
        Some(_) => world.wait_closed("max_age", 2),
    }
    let failovers = "tollgate_upstream_failovers_total";
    assert_eq!(world.relay.metric(failovers, &[]), 2, "there and back");
    world
        .relay
        .wait_metric("tollgate_connections_active", &[], 0);
}
