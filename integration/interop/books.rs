//! The books, in the hands of programs that everybody has: sqlite3 for the ledger, jq for the audit log.

use libtest_mimic::Trial;

use crate::{
    claim,
    harness::{ledger, relay::Signal},
    world::{FRONT, WITH_CHECKSUM, World, said},
};

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        claim(
            "sqlite3_and_usage_give_the_same_report",
            sqlite3_and_usage_give_the_same_report,
        ),
        claim(
            "jq_reads_every_line_of_the_audit_log",
            jq_reads_every_line_of_the_audit_log,
        ),
    ]
}

/// Often booked, and audited into a file.
const BOOKS: &str = "[ledger]\ninterval = \"1s\"\n[audit]\nsink = \"@DIR@/audit.jsonl\"\n[drain]\naccept_for = \"0s\"\n";

/// The documented query: what each endpoint used in each month.
const QUERY: &str = "SELECT substr(period, 1, 7) AS period, endpoint, consumer, name, account, listener, upstream, \
    sum(opened) AS opened, sum(closed) AS closed, sum(refused) AS refused, sum(bytes_to_upstream) AS bytes_to_upstream, \
    sum(bytes_to_client) AS bytes_to_client, sum(connection_seconds) AS connection_seconds, tags, relay \
    FROM usage GROUP BY 1, endpoint, consumer, listener, upstream, relay ORDER BY 1, 2";

fn used(name: &str) -> World {
    let world = World::furnished(name, 80, WITH_CHECKSUM, |start| {
        start.replace("[health]\n", &format!("{BOOKS}\n[health]\n"))
    });
    for _ in 0..3 {
        world.curl(&[&format!("http://{FRONT}:443/")]);
    }
    world.curl(&[
        "--output",
        "/dev/null",
        &format!("http://{FRONT}:443/large"),
    ]);
    world.assert_books(4);
    world
}

fn sqlite3_and_usage_give_the_same_report() {
    let world = used("sqlite3");
    let ledger = world.relay.home().ledger();
    let ledger = ledger.to_str().expect("/run is text");
    let dimensions = ["month", "endpoint", "consumer", "listener", "upstream"];
    let mut usage = vec!["usage", "--config", "@CONFIG@", "--format", "csv"];
    for dimension in dimensions {
        usage.extend(["--by", dimension]);
    }
    // While the relay runs: asking books what there is.
    let reported = ledger::report(&world.relay.tollgate(&usage).ok());
    let read = || {
        let arguments = ["-readonly", "-header", "-csv", ledger, QUERY];
        ledger::report(&said(&world.client, "sqlite3", &arguments, b""))
    };
    let counts = |rows: &[ledger::Row]| -> Vec<_> {
        let row = |row: &ledger::Row| (row.period.clone(), row.key.clone(), row.sums.counts());
        rows.iter().map(row).collect()
    };
    assert_eq!(counts(&read()), counts(&reported));
    let total = ledger::total(&reported);
    assert_eq!((total.opened, total.closed), (4, 4));
    assert_eq!(total.bytes_to_upstream, world.booked("to_upstream"));
    assert_eq!(total.bytes_to_client, world.booked("to_client"));
    world.relay.signal(Signal::TERM);
    assert_eq!(world.relay.wait_exit(), 0);
    // And when it is down, to the last digit.
    let reported = ledger::report(&world.relay.tollgate(&usage).ok());
    assert_eq!(counts(&read()), counts(&reported));
    for (read, reported) in read().iter().zip(&reported) {
        let apart = read.sums.connection_seconds - reported.sums.connection_seconds;
        // Three decimals are written.
        assert!(apart.abs() < 0.0011, "{read:?} {reported:?}");
        assert_eq!((&read.tags, &read.relay), (&reported.tags, &reported.relay));
    }
    let check = ["-readonly", ledger, "PRAGMA integrity_check"];
    assert_eq!(said(&world.client, "sqlite3", &check, b""), "ok\n");
}

fn jq_reads_every_line_of_the_audit_log() {
    let world = used("jq");
    let booked = ["to_upstream", "to_client"].map(|direction| world.booked(direction));
    world.relay.signal(Signal::TERM);
    assert_eq!(world.relay.wait_exit(), 0);
    let log = world.relay.folder().join("audit.jsonl");
    let log = log.to_str().expect("/run is text");
    let lines = crate::programs::read(log.as_ref()).lines().count();
    let jq = |arguments: &[&str]| {
        let arguments = [arguments, &[log]].concat();
        said(&world.client, "jq", &arguments, b"").trim().to_owned()
    };
    let events = jq(&["-er", ".event"]);
    assert_eq!(events.lines().count(), lines, "{events}");
    let count = |event: &str| events.lines().filter(|line| *line == event).count();
    assert_eq!((count("open"), count("close")), (4, 4));
    assert_eq!(events.lines().next(), Some("started"));
    assert_eq!(events.lines().last(), Some("ended"));
    for (direction, booked) in ["to_upstream", "to_client"].into_iter().zip(booked) {
        let sum = format!("map(select(.event == \"close\") | .bytes_{direction}) | add");
        assert_eq!(jq(&["-s", &sum]), booked.to_string());
    }
    let gaps = "[.[].seq] | . == [range(.[0]; .[0] + length)]";
    assert_eq!(jq(&["-es", gaps]), "true");
}
