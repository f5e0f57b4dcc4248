//! Policies that change under sessions: who is denied, who is limited, and who is not any more.

use std::io::ErrorKind;

use libtest_mimic::Trial;

use super::world::{Reloading, at, opened, plain, plain_and, session};
use crate::{
    claim,
    harness::{agent::Agent, stream::End, tap::Tap},
};

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        claim(
            "deny_that_closes_ends_the_sessions_of_that_endpoint_and_no_other",
            || denied("close"),
        ),
        claim("deny_that_keeps_refuses_new_sessions_alone", || {
            denied("keep")
        }),
        claim(
            "lower_limit_closes_nobody_and_holds_from_then_on",
            lower_limit,
        ),
        claim("pace_of_a_session_is_that_of_the_last_reload", pace),
        claim("names_of_endpoints_change_in_reports", names),
    ]
}

const GOOD: &str = "vpce-0aaaaaaaaaaaaaaa1";
const BAD: &str = "vpce-0bbbbbbbbbbbbbbb2";

/// One session that is to be refused.
#[track_caller]
fn assert_refused(world: &Reloading, endpoint: &'static str) {
    let outcome = world.hosts.node.run(async move {
        // The reset may come at any of these steps.
        let mut agent = opened(at(8443), endpoint).await?;
        agent.read_to_end().await
    });
    match outcome {
        Ok(outcome) => assert_eq!(outcome, (Vec::new(), End::Reset), "{endpoint}"),
        Err(error) => {
            let cut = [ErrorKind::ConnectionReset, ErrorKind::BrokenPipe];
            assert!(cut.contains(&error.kind()), "{endpoint}: {error}");
        }
    }
}

fn denied(on_deny: &str) {
    let audit = "[audit]\nsink = \"@DIR@/audit.jsonl\"\n[drain]\naccept_for = \"0s\"\n";
    let world = Reloading::new("deny", &plain_and(audit));
    let some = |endpoint| -> Vec<Agent> { (0..6).map(|_| world.open(8443, endpoint)).collect() };
    let (good, bad) = (some(GOOD), some(BAD));
    let policy = format!("{audit}[endpoint.\"{BAD}\"]\ndeny = true\non_deny = \"{on_deny}\"\n");
    let denied = plain_and(&policy);
    world.apply(&denied);
    let tap = Tap::on(&world.hosts.origin);
    for _ in 0..10 {
        assert_refused(&world, BAD);
    }
    assert!(tap.openings().is_empty(), "not even a SYN");
    drop(tap);
    let policy = [("endpoint", BAD), ("reason", "policy")];
    assert_eq!(
        world
            .relay
            .metric("tollgate_refused_total", &[("reason", "policy")]),
        10
    );
    assert_eq!(
        world
            .relay
            .metric("tollgate_endpoint_refused_total", &policy),
        10
    );
    let closed = |reason| {
        let labels = [("reason", reason)];
        world
            .relay
            .metric("tollgate_connections_closed_total", &labels)
    };
    match on_deny {
        "close" => {
            for mut agent in bad {
                world
                    .hosts
                    .node
                    .run(async move { agent.read_to_end().await.unwrap() });
            }
            world
                .relay
                .wait_until("all of them to be closed", || closed("denied") == 6);
        }
        _ => {
            for agent in bad {
                world.goes_on(agent);
            }
            assert_eq!(closed("denied"), 0);
        }
    }
    for agent in good {
        world.goes_on(agent);
    }
    // And back.
    world.apply(&plain_and(audit));
    world
        .hosts
        .node
        .run(session(at(8443), BAD, 1, 1000))
        .unwrap();
    world.assert_at_rest();
    assert_eq!(closed("completed"), if on_deny == "close" { 7 } else { 13 });
    let log = world.relay.folder().join("audit.jsonl");
    world.relay.signal(crate::harness::relay::Signal::TERM);
    assert_eq!(world.relay.wait_exit(), 0);
    let records = crate::harness::audit::records(&log);
    crate::harness::audit::assert_chained(&records);
    let count = |event: &str, reason: &str| {
        let same = |record: &&crate::harness::audit::Record| {
            (
                record.event(),
                record.text("endpoint"),
                record.text("reason"),
            ) == (event, BAD, reason)
        };
        records.iter().filter(same).count()
    };
    assert_eq!(count("refused", "policy"), 10);
    assert_eq!(
        count("close", "denied"),
        if on_deny == "close" { 6 } else { 0 }
    );
    let changes = records.iter().filter(|record| record.event() == "config");
    assert!(changes.count() >= 2, "each configuration is in the trail");
}

fn lower_limit() {
    let world = Reloading::new("lower", &plain());
    let mut open: Vec<Agent> = (0..5).map(|_| world.open(8443, GOOD)).collect();
    let most = |n: u64| plain_and(&format!("[endpoint.\"vpce-*\"]\nmax_sessions = {n}\n"));
    world.apply(&most(3));
    assert_refused(&world, GOOD);
    world
        .hosts
        .node
        .run(session(at(8443), BAD, 1, 1000))
        .unwrap();
    // Three are still one too many.
    for _ in 0..2 {
        world.goes_on(open.remove(0));
    }
    world
        .relay
        .wait_metric("tollgate_connections_active", &[], 3);
    assert_refused(&world, GOOD);
    world.apply(&most(4));
    world
        .hosts
        .node
        .run(session(at(8443), GOOD, 2, 1000))
        .unwrap();
    let labels = [("reason", "endpoint_limit")];
    assert_eq!(world.relay.metric("tollgate_refused_total", &labels), 2);
    for agent in open {
        world.goes_on(agent);
    }
    world.apply(&plain());
    world.assert_at_rest();
}

/// As much as takes days at the slow pace, and no time without.
const MUCH: u64 = 8_000_000;

fn pace() {
    let slow = plain_and(&format!(
        "[endpoint.\"{BAD}\"]\nbytes_per_second_to_upstream = \"1KiB\"\nbytes_per_second_to_client = \"1KiB\"\n"
    ));
    let world = Reloading::new("pace", &slow);
    let mut agent = world
        .hosts
        .node
        .run(async { opened(at(8443), BAD).await.unwrap() });
    let (said, hears) = std::sync::mpsc::channel();
    let node = world.hosts.node.clone();
    let talk = node.spawn(async move {
        agent.send(100_000).await.unwrap();
        let _ = said.send(());
        agent.expect(0, 100_000).await.unwrap();
        agent.exchange(MUCH).await.unwrap();
        agent
    });
    hears
        .recv_timeout(crate::harness::BOUND)
        .expect("it is in the buffers");
    let labels = [("direction", "to_upstream")];
    let moved = || world.relay.metric("tollgate_bytes_total", &labels);
    world.relay.wait_until("the first bytes", || moved() > 0);
    assert!(moved() < 90_000, "{}", moved());
    world.apply(&plain());
    let agent = node.run(async move { talk.await.unwrap() });
    world.goes_on(agent);
    world.apply(&slow);
    world.assert_at_rest();
}

fn names() {
    let named = |name: &str| plain_and(&format!("[endpoint.\"{GOOD}\"]\nname = \"{name}\"\n"));
    let world = Reloading::new("names", &named("before"));
    world
        .hosts
        .node
        .run(session(at(8443), GOOD, 1, 1000))
        .unwrap();
    let said = || {
        world
            .relay
            .tollgate(&[
                "usage", "--config", "@CONFIG@", "--format", "csv", "--by", "endpoint",
            ])
            .ok()
    };
    assert!(said().contains("before"), "{}", said());
    world.apply(&named("after"));
    assert!(said().contains("after"), "{}", said());
    // Not against what it held at first: reports open the ledger's file, and names that are new close it.
    world.relay.assert_at_rest();
}
