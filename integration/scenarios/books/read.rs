//! Reports: for whoever may read them, whether the relay runs or not.

use std::fs;

use libtest_mimic::Trial;

use super::{
    counted::{Booked, close, open},
    sessions::endpoint_id,
    world::{SERVICES, usage},
};
use crate::{
    claim,
    harness::{
        ledger,
        origin::{Manner as Origins, Origin},
    },
};

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        claim(
            "usage_tells_the_same_while_the_relay_runs_and_when_it_is_down",
            usage_tells_the_same_while_the_relay_runs_and_when_it_is_down,
        ),
        claim(
            "usage_needs_no_right_to_write",
            usage_needs_no_right_to_write,
        ),
        claim(
            "usage_says_as_of_when_it_is_where_nothing_can_be_booked",
            usage_says_as_of_when_it_is_where_nothing_can_be_booked,
        ),
        claim(
            "usage_adds_up_by_whatever_is_asked_for",
            usage_adds_up_by_whatever_is_asked_for,
        ),
    ]
}

/// An ordinary user with nothing but what everybody has.
const NOBODY: [&str; 4] = [
    "setpriv",
    "--reuid=65534",
    "--regid=65534",
    "--clear-groups",
];

const ALL: [&str; 4] = ["endpoint", "consumer", "listener", "upstream"];

/// Some endpoints with sessions that are over, and one that is open.
#[track_caller]
fn used(name: &str) -> (Booked, Origin, crate::harness::agent::Agent) {
    let booked = Booked::new(name, "");
    let origin = Origin::start(&booked.hosts.origin, SERVICES[0].origin, Origins::Echo);
    let node = &booked.hosts.node;
    for n in 0..5 {
        close(node, open(node, &endpoint_id(n), 1000 + n));
    }
    booked
        .relay
        .wait_metric("tollgate_connections_active", &[], 0);
    let agent = open(node, &endpoint_id(9), 777);
    (booked, origin, agent)
}

const SUM: u64 = 5 * 1000 + 1 + 2 + 3 + 4 + 777;

fn usage_tells_the_same_while_the_relay_runs_and_when_it_is_down() {
    let (booked, _origin, agent) = used("usage");
    let running = usage(&booked.home, &booked.hosts.relay, &ALL);
    // Up to this moment: nobody has to wait for the next booking.
    assert_eq!(ledger::total(&running).counts(), [6, 5, 0, SUM, SUM]);
    booked.relay.kill();
    drop(agent);
    // Killed: its log of changes is still beside the ledger, and its counters are not booked; what it reports is what was booked.
    let down = usage(&booked.home, &booked.hosts.relay, &ALL);
    assert_eq!(ledger::total(&down).counts(), [6, 5, 0, SUM, SUM]);
    let by_state = booked.home.tollgate(
        &booked.hosts.relay,
        &["usage", "--state-dir", "@DIR@/state", "--format", "csv"],
    );
    let total = ledger::total(&ledger::report(&by_state.ok()));
    assert_eq!(total.counts(), [6, 5, 0, SUM, SUM]);
    let nowhere = booked.home.tollgate(
        &booked.hosts.relay,
        &["usage", "--state-dir", "@DIR@/nothing"],
    );
    assert_eq!(nowhere.code, 69, "{nowhere:?}");
    assert!(nowhere.err.contains("nothing"), "{nowhere:?}");
}

fn usage_says_as_of_when_it_is_where_nothing_can_be_booked() {
    let (booked, _origin, agent) = used("usage-stale");
    let arguments = ["usage", "--config", "@CONFIG@", "--format", "csv"];
    let ask = || booked.home.tollgate(&booked.hosts.relay, &arguments);
    let said = ask();
    assert_eq!((said.code, &*said.err), (0, ""));
    let held = rusqlite::Connection::open(booked.home.ledger()).unwrap();
    held.execute_batch("BEGIN EXCLUSIVE").unwrap();
    let node = &booked.hosts.node;
    close(node, open(node, &endpoint_id(1), 10));
    let said = ask();
    assert!(said.err.contains("as of 20"), "{said:?}");
    let rows = ledger::report(&said.ok());
    assert_eq!(ledger::total(&rows).counts(), [6, 5, 0, SUM, SUM]);
    held.execute_batch("ROLLBACK").unwrap();
    let said = ask();
    assert_eq!((said.code, &*said.err), (0, ""));
    let rows = ledger::report(&said.out);
    assert_eq!(ledger::total(&rows).counts(), [7, 6, 0, SUM + 10, SUM + 10]);
    drop(agent);
}

fn usage_needs_no_right_to_write() {
    let (mut booked, _origin, agent) = used("usage-nobody");
    let ask = |booked: &Booked| {
        let arguments = ["usage", "--config", "@CONFIG@", "--format", "csv"];
        let said = booked
            .home
            .tollgate_through(&booked.hosts.relay, &NOBODY, &arguments);
        ledger::total(&ledger::report(&said.ok())).counts()
    };
    let list = |booked: &Booked| {
        let mut said: Vec<_> = fs::read_dir(booked.home.state())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        said.sort();
        said
    };
    // Through the socket.
    assert_eq!(ask(&booked), [6, 5, 0, SUM, SUM]);
    let endpoints = ["endpoints", "--config", "@CONFIG@"];
    let said = booked
        .home
        .tollgate_through(&booked.hosts.relay, &NOBODY, &endpoints);
    assert!(said.ok().contains(&endpoint_id(9)));
    // Killed, with a log of changes beside the ledger, in a directory in which it may not write.
    booked.relay.kill();
    let close_state = |mode: u32| {
        let mode = std::os::unix::fs::PermissionsExt::from_mode(mode);
        fs::set_permissions(booked.home.state(), mode).unwrap();
    };
    close_state(0o755);
    let before = list(&booked);
    assert_eq!(ask(&booked), [6, 5, 0, SUM, SUM]);
    assert_eq!(list(&booked), before, "it leaves nothing there");
    drop(agent);
    // Ended in order: there is no such log.
    booked = booked.killed();
    super::world::end(&booked.relay);
    assert_eq!(ask(&booked), [6, 6, 0, SUM, SUM]);
    // Nobody may read it: that is said.
    close_state_of(&booked, 0o700);
    let arguments = ["usage", "--config", "@CONFIG@"];
    let said = booked
        .home
        .tollgate_through(&booked.hosts.relay, &NOBODY, &arguments);
    assert_eq!(said.code, 77, "{said:?}");
    assert!(said.err.contains("Permission denied"), "{said:?}");
}

fn close_state_of(booked: &Booked, mode: u32) {
    let mode = std::os::unix::fs::PermissionsExt::from_mode(mode);
    fs::set_permissions(booked.home.state(), mode).unwrap();
}

fn usage_adds_up_by_whatever_is_asked_for() {
    let (booked, _origin, agent) = used("usage-by");
    drop(agent);
    booked
        .relay
        .wait_metric("tollgate_connections_active", &[], 0);
    let whole = [6, 6, 0, SUM, SUM];
    for by in [
        &[][..],
        &["endpoint"],
        &["listener"],
        &["upstream"],
        &["consumer"],
        &["hour"],
        &["day"],
        &["month"],
        &["hour", "endpoint", "upstream"],
    ] {
        let rows = usage(&booked.home, &booked.hosts.relay, by);
        assert_eq!(ledger::total(&rows).counts(), whole, "{by:?}");
        let filled = |of: fn(&ledger::Row) -> &str| rows.iter().all(|row| !of(row).is_empty());
        if by.contains(&"endpoint") || by.is_empty() {
            assert!(filled(|row| &row.key.endpoint), "{by:?} {rows:#?}");
        } else {
            assert!(rows.iter().all(|row| row.key.endpoint.is_empty()), "{by:?}");
        }
        assert_eq!(
            by.contains(&"upstream"),
            filled(|row| &row.key.upstream),
            "{by:?}"
        );
        assert_eq!(
            by.contains(&"listener"),
            filled(|row| &row.key.listener),
            "{by:?}"
        );
    }
    let ask = |more: &[&str]| {
        let arguments = [&["usage", "--config", "@CONFIG@", "--format", "csv"], more].concat();
        ledger::total(&ledger::report(&booked.relay.tollgate(&arguments).ok())).counts()
    };
    assert_eq!(ask(&["--since", "7d"]), whole);
    assert_eq!(ask(&["--until", "2020-01-01T00:00:00Z"]), [0; 5]);
    assert_eq!(ask(&["--since", "2100-01-01T00:00:00Z"]), [0; 5]);
    let json = booked
        .relay
        .tollgate(&["usage", "--config", "@CONFIG@", "--format", "json"]);
    let json: serde_json::Value = serde_json::from_str(&json.ok()).unwrap();
    let sum: u64 = json
        .as_array()
        .unwrap()
        .iter()
        .map(|row| row["bytes_to_client"].as_u64().unwrap())
        .sum();
    assert_eq!(sum, SUM);
    let table = booked
        .relay
        .tollgate(&["usage", "--config", "@CONFIG@"])
        .ok();
    assert!(table.contains(&endpoint_id(3)), "{table}");
    super::world::end(&booked.relay);
}
