//! Addresses that leave a name's answer: no new session goes there at once, and what becomes of those that are there is the operator's choice.

use std::time::{Duration, Instant};

use libtest_mimic::Trial;
use tokio::task::JoinSet;

use super::addressed::{ADDRESSES, Addressed, NAME};
use crate::{
    claim,
    harness::{agent::Agent, dns::Answer},
};

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        claim(
            "vanished_address_gets_no_new_session_and_keeps_its_own",
            keep,
        ),
        claim(
            "sessions_of_a_vanished_address_are_drained_by_the_deadline",
            drain,
        ),
        claim("sessions_of_a_vanished_address_are_closed_at_once", close),
        claim("address_that_returns_keeps_its_sessions", returns),
        claim(
            "vanished_address_is_left_although_its_health_check_passes",
            healthy,
        ),
    ]
}

const BOTH: [&str; 2] = [ADDRESSES[0], ADDRESSES[1]];

/// Opens sessions until each of the two servers has as many as asked for; those of the first, and those of the second.
#[track_caller]
fn sessions_on_both(world: &Addressed, n: usize) -> [Vec<Agent>; 2] {
    let mut open = [Vec::new(), Vec::new()];
    while open.iter().any(|agents| agents.len() < n) {
        let (agent, at) = world.open();
        if open[at].len() < n {
            open[at].push(agent);
        } else {
            world.finish(agent);
        }
    }
    open
}

/// The first address leaves the answers; when that was, at the latest.
#[track_caller]
fn first_leaves(world: &Addressed) -> Instant {
    world.dns.set(NAME, Answer::addresses(&[ADDRESSES[1]], 1));
    let when = Instant::now();
    world.wait_usable(1);
    when
}

/// No more questions, so that nothing comes and goes when the end is looked at.
#[track_caller]
fn ask_no_more(world: &Addressed) {
    world.dns.set(NAME, Answer::addresses(&[ADDRESSES[1]], 300));
}

fn keep() {
    let world = Addressed::named("keep", &BOTH, 1, "on_vanish = \"keep\"");
    let [leaving, staying] = sessions_on_both(&world, 3);
    first_leaves(&world);
    ask_no_more(&world);
    for _ in 0..10 {
        assert_eq!(world.session(), 1, "only there is one still to go");
    }
    for agent in leaving.into_iter().chain(staying) {
        let agent = world.exchange(agent);
        world.finish(agent);
    }
    world
        .relay
        .wait_metric("tollgate_connections_active", &[], 0);
    let labels = [("reason", "completed")];
    let metrics = world.relay.metrics();
    assert_eq!(
        metrics.sum("tollgate_connections_closed_total", &labels),
        metrics.sum("tollgate_connections_opened_total", &[])
    );
    world.assert_at_rest();
}

/// Waits until each of these sessions is ended by the relay; when each was.
#[track_caller]
fn ends(world: &Addressed, agents: Vec<Agent>) -> Vec<Instant> {
    world.node().run(async move {
        let mut reads = JoinSet::new();
        for mut agent in agents {
            reads.spawn(async move {
                let (rest, _) = agent.read_to_end().await.expect("it ends in time");
                assert_eq!(rest, b"");
                Instant::now()
            });
        }
        reads.join_all().await
    })
}

/// That is what is tested, so there are clocks in it.
fn drain() {
    let (deadline, spread) = (Duration::from_millis(2500), Duration::from_millis(1500));
    let keys = "on_vanish = \"drain\"\nvanish_deadline = \"2500ms\"\nvanish_spread = \"1500ms\"";
    let world = Addressed::named("drain", &BOTH, 1, keys);
    let [leaving, staying] = sessions_on_both(&world, 10);
    let when = first_leaves(&world);
    ask_no_more(&world);
    assert_eq!(world.session(), 1);
    let leaving: Vec<Agent> = leaving
        .into_iter()
        .map(|agent| world.exchange(agent))
        .collect();
    let ends = ends(&world, leaving);
    let first = ends.iter().min().expect("ten");
    let last = ends.iter().max().expect("ten");
    assert!(*first - when >= deadline - spread, "{:?}", *first - when);
    assert!(
        *last - *first >= spread / 10,
        "all at once: {:?}",
        *last - *first
    );
    world.wait_closed("vanished", 10);
    for agent in staying {
        let agent = world.exchange(agent);
        world.finish(agent);
    }
    world.assert_at_rest();
}

fn close() {
    let world = Addressed::named(
        "close",
        &BOTH,
        1,
        "on_vanish = \"close\"\nvanish_spread = \"300ms\"",
    );
    let [leaving, staying] = sessions_on_both(&world, 5);
    first_leaves(&world);
    ask_no_more(&world);
    // Each of them ends, long before the five minutes of those that drain.
    ends(&world, leaving);
    world.wait_closed("vanished", 5);
    assert_eq!(world.session(), 1);
    for agent in staying {
        let agent = world.exchange(agent);
        world.finish(agent);
    }
    world.assert_at_rest();
}

fn returns() {
    let keys = "on_vanish = \"drain\"\nvanish_deadline = \"4s\"\nvanish_spread = \"1s\"\nslow_start = \"off\"";
    let world = Addressed::named("returns", &BOTH, 1, keys);
    let [leaving, staying] = sessions_on_both(&world, 3);
    let when = first_leaves(&world);
    world.dns.set(NAME, Answer::addresses(&BOTH, 300));
    world.wait_usable(2);
    // What is tested is that nothing happens at the deadline.
    let past = (when + Duration::from_secs(5)).saturating_duration_since(Instant::now());
    std::thread::sleep(past);
    for agent in leaving.into_iter().chain(staying) {
        let agent = world.exchange(agent);
        world.finish(agent);
    }
    let labels = [("reason", "vanished")];
    let vanished = world
        .relay
        .metric("tollgate_connections_closed_total", &labels);
    assert_eq!(vanished, 0);
    world.assert_at_rest();
}

fn healthy() {
    let keys = "health = { check = \"tcp\", interval = \"100ms\", timeout = \"100ms\", rise = 1 }";
    let world = Addressed::named("healthy", &BOTH, 1, keys);
    let accepted = |n: usize| world.origins[n].books().accepted;
    sessions_on_both(&world, 1);
    first_leaves(&world);
    for _ in 0..10 {
        assert_eq!(world.session(), 1);
    }
    // Nor is it asked any more how it is: the other one is, several times meanwhile.
    let (left, other) = (accepted(0), accepted(1));
    world
        .relay
        .wait_until("checks of the other", || accepted(1) >= other + 5);
    assert_eq!(accepted(0), left);
    assert_eq!(world.session(), 1);
    world
        .relay
        .wait_metric("tollgate_connections_active", &[], 0);
}
