//! Who comes in, and who is turned away at once.

use std::time::{Duration, Instant};

use libtest_mimic::Trial;

use super::world::{NOISY, QUIET, echo, open};
use crate::{
    claim,
    harness::{origin::Manner, stream::End, tap::Tap},
    scenarios::world::{World, connected, shipped_with},
};

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        claim(
            "denied_endpoint_is_reset_before_anything_goes_upstream",
            denied_endpoint_is_reset_before_anything_goes_upstream,
        ),
        claim(
            "who_is_not_named_is_denied_where_all_are",
            who_is_not_named_is_denied_where_all_are,
        ),
        claim(
            "endpoint_at_max_sessions_is_reset_and_others_are_not",
            endpoint_at_max_sessions_is_reset_and_others_are_not,
        ),
        claim(
            "each_id_that_a_glob_fits_has_limits_of_its_own",
            each_id_that_a_glob_fits_has_limits_of_its_own,
        ),
        claim(
            "more_new_sessions_than_the_burst_are_reset_and_others_are_not",
            more_new_sessions_than_the_burst_are_reset_and_others_are_not,
        ),
        claim("the_rate_is_earned_again", the_rate_is_earned_again),
        claim(
            "limits_of_the_relay_are_over_all_endpoints",
            limits_of_the_relay_are_over_all_endpoints,
        ),
        claim(
            "a_listeners_rate_is_over_all_endpoints",
            a_listeners_rate_is_over_all_endpoints,
        ),
        claim(
            "two_workers_together_have_exactly_as_many_sessions_as_may_be",
            two_workers_together_have_exactly_as_many_sessions_as_may_be,
        ),
        claim(
            "who_is_turned_away_by_all_has_used_nothing_of_its_own",
            who_is_turned_away_by_all_has_used_nothing_of_its_own,
        ),
        claim(
            "limits_are_of_the_real_id_where_the_books_overflow",
            limits_are_of_the_real_id_where_the_books_overflow,
        ),
        claim(
            "an_endpoints_times_go_before_the_listeners",
            an_endpoints_times_go_before_the_listeners,
        ),
        claim(
            "refusals_for_policy_are_recorded",
            refusals_for_policy_are_recorded,
        ),
    ]
}

fn denied_endpoint_is_reset_before_anything_goes_upstream() {
    let world = echo(
        "denied",
        &format!("[endpoint.\"{NOISY}\"]\ndeny = true\nname = \"noisy\""),
    );
    let tap = Tap::on(&world.origin_host);
    for _ in 0..5 {
        assert!(world.is_turned_away(NOISY));
    }
    world.end(world.open(QUIET));
    assert_eq!(tap.openings().len(), 1, "the other's SYN, and none before");
    world.assert_upstream(1);
    world.assert_refused(NOISY, "policy", 5);
    let line = world.relay.wait_log("connection turned away");
    assert!(line.contains(NOISY) && line.contains("is denied"), "{line}");
    world.assert_at_rest();
}

fn who_is_not_named_is_denied_where_all_are() {
    let tables = format!("[endpoint.\"*\"]\ndeny = true\n[endpoint.\"{QUIET}\"]\ndeny = false");
    let world = echo("by-default", &tables);
    assert!(world.is_turned_away(NOISY));
    world.end(world.open(QUIET));
    world.assert_refused(NOISY, "policy", 1);
    world.assert_upstream(1);
    world.assert_at_rest();
}

fn endpoint_at_max_sessions_is_reset_and_others_are_not() {
    let world = echo(
        "sessions",
        &format!("[endpoint.\"{NOISY}\"]\nmax_sessions = 2"),
    );
    let first = world.open(NOISY);
    let second = world.open(NOISY);
    for _ in 0..3 {
        assert!(world.is_turned_away(NOISY));
    }
    let others: Vec<_> = (0..5).map(|_| world.open(QUIET)).collect();
    world.assert_refused(NOISY, "endpoint_limit", 3);
    world.assert_upstream(7);
    world.end(first);
    let third = world.open(NOISY);
    assert!(world.is_turned_away(NOISY));
    let line = world.relay.wait_log("connection turned away");
    assert!(line.contains("max_sessions = 2"), "{line}");
    world.end_all(others.into_iter().chain([second, third]).collect());
    world.assert_at_rest();
}

fn each_id_that_a_glob_fits_has_limits_of_its_own() {
    let world = echo(
        "globs",
        "[endpoint.\"vpce-*\"]\nmax_sessions = 1\n[endpoint.\"vpce-0b*\"]\nmax_sessions = \"off\"",
    );
    let mut open = vec![world.open(NOISY), world.open("vpce-0a00000000000000c")];
    assert!(world.is_turned_away(NOISY));
    assert!(world.is_turned_away("vpce-0a00000000000000c"));
    open.extend((0..3).map(|_| world.open(QUIET)));
    world.end_all(open);
    world.assert_at_rest();
}

/// As many as the burst come in at once. What is earned while this runs is too little for one more.
fn more_new_sessions_than_the_burst_are_reset_and_others_are_not() {
    let tables = format!("[endpoint.\"{NOISY}\"]\nsessions_per_second = 1\nsessions_burst = 4\n");
    let world = echo("burst", &tables);
    let began = Instant::now();
    let tries: Vec<_> = (0..8).map(|_| world.try_open(NOISY)).collect();
    let open: Vec<_> = tries.into_iter().flatten().collect();
    let earned = began.elapsed().as_secs() as usize;
    assert!(
        (4..=4 + earned).contains(&open.len()),
        "{} came in",
        open.len()
    );
    world.assert_refused(NOISY, "rate", 8 - open.len() as u64);
    world.assert_upstream(open.len());
    let others = (0..8).map(|_| world.open(QUIET));
    world.end_all(open.into_iter().chain(others).collect());
    world.assert_at_rest();
}

fn the_rate_is_earned_again() {
    let tables = format!("[endpoint.\"{NOISY}\"]\nsessions_per_second = 5\nsessions_burst = 1");
    let world = echo("earned", &tables);
    let began = Instant::now();
    let mut came_in = 0;
    world
        .relay
        .wait_until("ten to come in, one after the other", || {
            if let Some(agent) = world.try_open(NOISY) {
                came_in += 1;
                world.end(agent);
            }
            came_in == 10
        });
    // The first was there at once.
    let least = Duration::from_millis(200) * 9;
    assert!(began.elapsed() >= least, "faster than the rate");
    world.assert_at_rest();
}

fn limits_of_the_relay_are_over_all_endpoints() {
    let world = echo("relay", "[limits]\nmax_sessions = 3");
    let open = vec![world.open(NOISY), world.open(QUIET), world.open(QUIET)];
    assert!(world.is_turned_away(QUIET) && world.is_turned_away(NOISY));
    let refused = [("reason", "global_limit")];
    assert_eq!(world.relay.metric("tollgate_refused_total", &refused), 2);
    world.assert_upstream(3);
    world.end_all(open);
    world.end(world.open(NOISY));
    world.assert_at_rest();
}

fn a_listeners_rate_is_over_all_endpoints() {
    let keys = "sessions_per_second = 1\nsessions_burst = 2";
    let world = World::with("listener", Manner::Echo, shipped_with(keys));
    let began = Instant::now();
    let tries = [NOISY, QUIET, NOISY, QUIET].map(|endpoint| world.try_open(endpoint));
    let open: Vec<_> = tries.into_iter().flatten().collect();
    let earned = began.elapsed().as_secs() as usize;
    assert!(
        (2..=2 + earned).contains(&open.len()),
        "{} came in",
        open.len()
    );
    let refused = [("reason", "rate"), ("listener", "ingest")];
    let refused = world.relay.metric("tollgate_refused_total", &refused);
    assert_eq!(refused as usize, 4 - open.len());
    world.end_all(open);
    world.assert_at_rest();
}

fn two_workers_together_have_exactly_as_many_sessions_as_may_be() {
    const MOST: usize = 40;
    let tables = format!("workers = 2\n[endpoint.\"{NOISY}\"]\nmax_sessions = {MOST}");
    let world = echo("exact", &tables);
    for _ in 0..3 {
        let tries = world.node.run(async {
            let all = (0..3 * MOST).map(|_| tokio::spawn(open(NOISY)));
            let mut agents = Vec::new();
            for task in all.collect::<Vec<_>>() {
                agents.extend(task.await.unwrap());
            }
            agents
        });
        assert_eq!(tries.len(), MOST, "came in");
        let of = |worker| {
            let open = world
                .relay
                .metric("tollgate_worker_connections", &[("worker", worker)]);
            open as usize
        };
        assert_eq!([of("0"), of("1")].iter().sum::<usize>(), MOST);
        assert!(of("0") > 0 && of("1") > 0, "both have some");
        world.end_all(tries);
    }
    world.assert_refused(NOISY, "endpoint_limit", 3 * 2 * MOST as u64);
    world.assert_upstream(3 * MOST);
    world.assert_at_rest();
}

/// Its endpoint would let three in at once, and earns less than one while this runs. The relay is full for five of its tries.
fn who_is_turned_away_by_all_has_used_nothing_of_its_own() {
    let own = format!("[endpoint.\"{NOISY}\"]\nsessions_per_second = 1\nsessions_burst = 3");
    let world = echo("given-back", &format!("{own}\n[limits]\nmax_sessions = 3"));
    let others: Vec<_> = (0..3).map(|_| world.open(QUIET)).collect();
    for _ in 0..5 {
        assert!(world.is_turned_away(NOISY));
    }
    world.assert_refused(NOISY, "global_limit", 5);
    world.end_all(others);
    let open = (0..3).map(|_| world.open(NOISY)).collect();
    world.end_all(open);
    world.assert_at_rest();
}

fn limits_are_of_the_real_id_where_the_books_overflow() {
    let tables = "[accounts]\nmax = 1\n[endpoint.\"vpce-0a*\"]\nmax_sessions = 1\n[endpoint.\"vpce-0c*\"]\ndeny = true";
    let world = echo("overflow", tables);
    let first = world.open(QUIET);
    let open: Vec<_> = [NOISY, "vpce-0a00000000000000c"]
        .map(|id| world.open(id))
        .into();
    assert!(world.is_turned_away(NOISY), "its own one is open");
    assert!(world.is_turned_away("vpce-0c00000000000000c"));
    let overflowed = [("endpoint", "overflow")];
    let opened = world
        .relay
        .metric("tollgate_connections_opened_total", &overflowed);
    assert_eq!(opened, 2);
    world.end_all(open.into_iter().chain([first]).collect());
    world.assert_at_rest();
}

fn an_endpoints_times_go_before_the_listeners() {
    let tables = format!(
        "[session]\nidle_timeout = \"1h\"\nmax_age = \"1h\"\n\
         [endpoint.\"{NOISY}\"]\nidle_timeout = \"1s\"\n\
         [endpoint.\"{QUIET}\"]\nmax_age = \"2s\"\n"
    );
    let world = echo("times", &tables);
    let began = Instant::now();
    let (mut idle, mut old) = (world.open(NOISY), world.open(QUIET));
    let mut other = world.open("vpce-0c00000000000000c");
    world.node.run(async move {
        assert_eq!(idle.expect_to_end(0).await.unwrap(), End::Reset);
        old.expect_to_end(0).await.unwrap();
    });
    assert!(began.elapsed() >= Duration::from_secs(2), "before its time");
    world.wait_closed("idle_timeout", 1);
    world.wait_closed("max_age", 1);
    let other = world.node.run(async move {
        other.exchange(10).await.unwrap();
        other
    });
    world.end(other);
    world.assert_at_rest();
}

fn refusals_for_policy_are_recorded() {
    let world = echo("recorded", &format!("[endpoint.\"{NOISY}\"]\ndeny = true"));
    assert!(world.is_turned_away(NOISY));
    world.relay.wait_until("the record", || {
        let records = world.relay.records();
        let wanted = ["\"event\":\"refused\"", "\"reason\":\"policy\"", NOISY];
        records
            .iter()
            .any(|record| wanted.iter().all(|text| record.contains(text)))
    });
    world.node.run(async {
        let mut agent = connected(QUIET).await.unwrap();
        agent.exchange(10).await.unwrap();
        agent.reset();
    });
    world.wait_closed("client_reset", 1);
    world.assert_at_rest();
}
