//! O1: another configuration under load.

use libtest_mimic::Trial;

use super::{
    visitors::Visitors,
    world::{FIRST, Reloading, SECOND, config},
};
use crate::{claim, scenarios::world::ENDPOINT};

pub(crate) fn tests() -> Vec<Trial> {
    vec![claim(
        "o1_configuration_changes_under_load_and_nobody_notices",
        configuration_changes_under_load_and_nobody_notices,
    )]
}

/// All that is swapped changes from one of them to the next.
fn configurations() -> [String; 3] {
    let one = config(
        &[("ingest", "0.0.0.0:8443", "cp")],
        &[("cp", FIRST)],
        "[drain]\naccept_for = \"0s\"\n",
    );
    let two = config(
        &[
            ("ingest", "0.0.0.0:8443", "elsewhere"),
            ("logs", "0.0.0.0:8444", "cp"),
        ],
        &[("cp", FIRST), ("elsewhere", SECOND)],
        "[drain]\naccept_for = \"1s\"\n[session]\nidle_timeout = \"10m\"\n\
         [endpoint.\"vpce-*\"]\nname = \"agents\"\n[log]\nlevel = \"debug\"\n",
    );
    let three = config(
        &[("ingest", "0.0.0.0:8443", "cp")],
        &[("cp", SECOND)],
        "[[consumer]]\nname = \"batch\"\nnetworks = [\"172.31.0.0/16\"]\n",
    );
    [one, two, three]
}

fn configuration_changes_under_load_and_nobody_notices() {
    let all = configurations();
    let world = Reloading::new("o1", &all[0]);
    let before = world.open(8443, ENDPOINT);
    let visitors = Visitors::start(&world.hosts.node, 16, &[8443], ENDPOINT);
    for round in 1..=12 {
        let next = &all[round % all.len()];
        match round % 2 {
            0 => world.apply_by_signal(next),
            _ => drop(world.apply(next)),
        }
        visitors.wait_more(50);
        // What is wrong changes nothing, and says so.
        let declined = world
            .relay
            .reload_with(&next.replace("[[upstream]]", "[[upstraem]]"));
        declined.assert_declined(
            422,
            &["tollgate.toml:", "upstraem", "did you mean upstream"],
        );
        let check = world.relay.tollgate(&["check", "--config", "@CONFIG@"]);
        assert_eq!(check.code, 78, "{check:?}");
        visitors.wait_more(20);
    }
    let seen = visitors.stop();
    seen.assert_all_served();
    assert_eq!(world.reloads("applied"), 12);
    assert_eq!(world.reloads("failed"), 12);
    world.goes_on(before);
    world
        .relay
        .wait_metric("tollgate_connections_active", &[], 0);
    // One session of before, which has moved 301,000 bytes.
    let closed = world.relay.metrics();
    let completed = [("reason", "completed")];
    let completed = closed.sum("tollgate_connections_closed_total", &completed);
    assert_eq!(completed, seen.whole + 1);
    let booked = closed.sum("tollgate_bytes_total", &[("direction", "to_client")]);
    assert_eq!(booked, seen.bytes + 301_000);
    assert_eq!(closed.sum("tollgate_refused_total", &[]), 0);
    for origin in &world.origins {
        let books = origin.wait_over(1);
        assert_eq!(books.received, books.sent);
    }
    // The last one of them is in force.
    world.apply(&all[0]);
    world.assert_at_rest();
}
