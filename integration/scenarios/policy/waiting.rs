//! Who waits at a limit, for how long, and in which order.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use libtest_mimic::Trial;

use super::world::{NOISY, QUIET, echo, finish};
use crate::{
    claim,
    harness::{agent::Agent, origin::Manner, stream::End},
    scenarios::world::{World, connected, shipped_and, shipped_with},
};

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        claim(
            "who_waits_is_served_in_turn_when_a_place_comes_free",
            who_waits_is_served_in_turn_when_a_place_comes_free,
        ),
        claim(
            "who_waits_is_served_when_the_rate_has_earned_it",
            who_waits_is_served_when_the_rate_has_earned_it,
        ),
        claim(
            "who_waits_in_vain_is_reset_when_its_time_is_over",
            who_waits_in_vain_is_reset_when_its_time_is_over,
        ),
        claim(
            "no_more_wait_than_may_and_others_need_not",
            no_more_wait_than_may_and_others_need_not,
        ),
        claim(
            "who_leaves_while_it_waits_makes_room_for_others",
            who_leaves_while_it_waits_makes_room_for_others,
        ),
        claim(
            "who_has_said_all_and_waits_gets_its_answer",
            who_has_said_all_and_waits_gets_its_answer,
        ),
        claim(
            "who_waits_takes_no_place_of_those_without_a_header",
            who_waits_takes_no_place_of_those_without_a_header,
        ),
        claim(
            "who_waits_on_one_worker_is_served_when_another_has_a_place",
            who_waits_on_one_worker_is_served_when_another_has_a_place,
        ),
        claim(
            "who_waits_at_the_relays_limit_is_served_when_any_session_ends",
            who_waits_at_the_relays_limit_is_served_when_any_session_ends,
        ),
    ]
}

/// One session at a time, and so long a wait.
fn one_at_a_time(wait_for: &str, more: &str) -> String {
    format!(
        "{more}\n[endpoint.\"{NOISY}\"]\nmax_sessions = 1\non_limit = \"wait\"\nwait_for = \"{wait_for}\"\n"
    )
}

impl World {
    /// Waits until so many wait at a limit of `of`.
    #[track_caller]
    pub(super) fn wait_waiting(&self, of: &str, n: u64) {
        let labels = [("limit", of)];
        self.relay.wait_metric("tollgate_limit_waiting", &labels, n);
    }

    /// A connection whose header is sent, and nothing else.
    #[track_caller]
    pub(super) fn knock(&self, endpoint: &'static str) -> Agent {
        self.node
            .run(async move { connected(endpoint).await.unwrap() })
    }

    /// So many became of those who waited at a limit of `of`.
    #[track_caller]
    pub(super) fn assert_waits(&self, of: &str, outcome: &str, n: u64) {
        let labels = [("limit", of), ("outcome", outcome)];
        let waits = self.relay.metric("tollgate_limit_waits_total", &labels);
        assert_eq!(waits, n, "{of}, {outcome}");
    }
}

fn who_waits_is_served_in_turn_when_a_place_comes_free() {
    let world = echo("turn", &one_at_a_time("60s", ""));
    let mut open = world.open(NOISY);
    let mut waiting = VecDeque::new();
    for n in 1..=3 {
        waiting.push_back(world.knock(NOISY));
        world.wait_waiting("endpoint", n);
    }
    world.assert_upstream(1);
    while let Some(next) = waiting.pop_front() {
        world.end(open);
        open = world.node.run(async move {
            let mut next = next;
            next.exchange(10).await.unwrap();
            next
        });
        world.wait_waiting("endpoint", waiting.len() as u64);
    }
    world.end(open);
    world.assert_waits("endpoint", "admitted", 3);
    world.assert_upstream(4);
    let refused = world.relay.metric("tollgate_refused_total", &[]);
    assert_eq!(refused, 0);
    world.assert_at_rest();
}

fn who_waits_is_served_when_the_rate_has_earned_it() {
    let tables = format!(
        "[endpoint.\"{NOISY}\"]\nsessions_per_second = 4\nsessions_burst = 1\non_limit = \"wait\"\nwait_for = \"60s\"\n"
    );
    let world = echo("rate-turn", &tables);
    let began = Instant::now();
    let agents: Vec<_> = (0..5).map(|_| world.knock(NOISY)).collect();
    world.node.run(async move {
        for mut agent in agents {
            agent.exchange(10).await.unwrap();
            finish(agent).await;
        }
    });
    // The first was there at once.
    assert!(began.elapsed() >= Duration::from_millis(250) * 4);
    world
        .relay
        .wait_metric("tollgate_connections_active", &[], 0);
    world.assert_upstream(5);
    world.assert_at_rest();
}

fn who_waits_in_vain_is_reset_when_its_time_is_over() {
    let world = echo("in-vain", &one_at_a_time("500ms", ""));
    let open = world.open(NOISY);
    let began = Instant::now();
    assert!(world.is_turned_away(NOISY));
    assert!(began.elapsed() >= Duration::from_millis(500), "it waited");
    world.assert_refused(NOISY, "endpoint_limit", 1);
    world.assert_waits("endpoint", "refused", 1);
    let line = world.relay.wait_log("connection turned away");
    assert!(line.contains("it waited for wait_for"), "{line}");
    world.assert_upstream(1);
    world.end(open);
    world.assert_at_rest();
}

fn no_more_wait_than_may_and_others_need_not() {
    let world = echo(
        "so-many",
        &format!("{}max_waiting = 2", one_at_a_time("60s", "")),
    );
    let open = world.open(NOISY);
    let waiting = [world.knock(NOISY), world.knock(NOISY)];
    world.wait_waiting("endpoint", 2);
    assert!(world.is_turned_away(NOISY), "the third at once");
    world.assert_refused(NOISY, "endpoint_limit", 1);
    let others = (0..3).map(|_| world.open(QUIET)).collect();
    world.end_all_but(others, 1);
    world.node.run(async move { waiting.map(Agent::reset) });
    world.wait_waiting("endpoint", 0);
    world.assert_waits("endpoint", "left", 2);
    world.end(open);
    world.assert_at_rest();
}

fn who_leaves_while_it_waits_makes_room_for_others() {
    let world = echo(
        "leaves",
        &format!("{}max_waiting = 1", one_at_a_time("60s", "")),
    );
    let open = world.open(NOISY);
    for n in 1..=3 {
        let agent = world.knock(NOISY);
        world.wait_waiting("endpoint", 1);
        world.node.run(async move { agent.reset() });
        world.wait_waiting("endpoint", 0);
        world.assert_refused(NOISY, "endpoint_limit", n);
    }
    let last = world.knock(NOISY);
    world.wait_waiting("endpoint", 1);
    world.end(open);
    let last = world.node.run(async move {
        let mut last = last;
        last.exchange(10).await.unwrap();
        last
    });
    world.end(last);
    world.assert_upstream(2);
    world.assert_at_rest();
}

/// A FIN is not the end: it may well be that of a request.
fn who_has_said_all_and_waits_gets_its_answer() {
    let world = echo("said-all", &one_at_a_time("60s", ""));
    let open = world.open(NOISY);
    let waits = world.node.run(async {
        let mut agent = connected(NOISY).await.unwrap();
        agent.send(5000).await.unwrap();
        agent.finish().unwrap();
        agent.acknowledged().await.unwrap();
        agent
    });
    world.wait_waiting("endpoint", 1);
    world.end(open);
    world.node.run(async move {
        let mut waits = waits;
        assert_eq!(waits.expect_to_end(0).await.unwrap(), End::Fin);
        assert_eq!(waits.received(), 5000);
    });
    world.wait_closed("completed", 2);
    world.assert_at_rest();
}

fn who_waits_takes_no_place_of_those_without_a_header() {
    let limited = one_at_a_time("60s", "workers = 1");
    let start = shipped_and(&limited).replace(
        "name = \"ingest\"\n",
        "name = \"ingest\"\nmax_pending = 1\n",
    );
    let world = World::with("pending", Manner::Echo, start);
    let open = world.open(NOISY);
    let waiting: Vec<_> = (1..=4)
        .map(|n| {
            let agent = world.knock(NOISY);
            world.wait_waiting("endpoint", n);
            agent
        })
        .collect();
    let pending = || world.relay.metric("tollgate_connections_pending", &[]);
    assert_eq!(pending(), 0);
    for _ in 0..3 {
        let other = world.open(QUIET);
        world.end_all_but(vec![other], 1);
    }
    let shown_out = world
        .relay
        .metric("tollgate_refused_total", &[("reason", "pending")]);
    assert_eq!(shown_out, 0);
    world
        .node
        .run(async move { waiting.into_iter().for_each(Agent::reset) });
    world.wait_waiting("endpoint", 0);
    world.end(open);
    world.assert_at_rest();
}

fn who_waits_on_one_worker_is_served_when_another_has_a_place() {
    const SESSIONS: usize = 20;
    let tables = format!(
        "workers = 2\n[endpoint.\"{NOISY}\"]\nmax_sessions = {SESSIONS}\non_limit = \"wait\"\nwait_for = \"60s\"\n"
    );
    let world = echo("over-workers", &tables);
    let open: Vec<_> = (0..SESSIONS).map(|_| world.open(NOISY)).collect();
    let waiting: Vec<_> = (0..SESSIONS).map(|_| world.knock(NOISY)).collect();
    world.wait_waiting("endpoint", SESSIONS as u64);
    world.node.run(async move {
        for agent in open {
            finish(agent).await;
        }
        for mut agent in waiting {
            agent.exchange(10).await.unwrap();
            finish(agent).await;
        }
    });
    world
        .relay
        .wait_metric("tollgate_connections_active", &[], 0);
    world.assert_waits("endpoint", "admitted", SESSIONS as u64);
    world.assert_upstream(2 * SESSIONS);
    world.assert_at_rest();
}

fn who_waits_at_the_relays_limit_is_served_when_any_session_ends() {
    let limits = "[limits]\nmax_sessions = 1\non_limit = \"wait\"\nwait_for = \"60s\"\n";
    for (name, of, start) in [
        ("relay-turn", "relay", shipped_and(limits)),
        (
            "listener-turn",
            "listener",
            shipped_with("max_sessions = 1\non_limit = \"wait\"\nwait_for = \"60s\""),
        ),
    ] {
        let world = World::with(name, Manner::Echo, start);
        let open = world.open(QUIET);
        let waits = world.knock(NOISY);
        world.wait_waiting(of, 1);
        world.end(open);
        let waits = world.node.run(async move {
            let mut waits = waits;
            waits.exchange(10).await.unwrap();
            waits
        });
        world.end(waits);
        world.assert_waits(of, "admitted", 1);
        world.assert_at_rest();
    }
}
