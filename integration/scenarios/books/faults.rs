//! What the relay does where its ledger cannot be written: it relays on, says so, and loses nothing that memory holds.

use std::{fs, os::unix::fs::FileExt};

use libtest_mimic::Trial;

use super::{
    counted::{close, open},
    sessions::endpoint_id,
    world::{OFTEN, SERVICES, end, home, two_services, usage},
};
use crate::{
    claim,
    harness::{
        ledger::{self, Sums},
        origin::{Manner as Origins, Origin},
        relay::{Home, Mounted, Relay, Start},
    },
    scenarios::world::Hosts,
};

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        claim(
            "full_disk_under_the_ledger_stops_no_byte_and_loses_none",
            full_disk_under_the_ledger_stops_no_byte_and_loses_none,
        ),
        claim(
            "killed_over_a_full_disk_it_books_from_memory_when_there_is_room",
            killed_over_a_full_disk_it_books_from_memory_when_there_is_room,
        ),
        claim(
            "killed_where_run_dir_has_room_for_one_file_it_starts_again",
            killed_where_run_dir_has_room_for_one_file_it_starts_again,
        ),
        claim(
            "read_only_state_is_said_and_booked_when_it_can_be_written",
            read_only_state_is_said_and_booked_when_it_can_be_written,
        ),
        claim(
            "damaged_ledger_is_set_aside_and_a_new_one_begun",
            damaged_ledger_is_set_aside_and_a_new_one_begun,
        ),
        claim(
            "ledger_lost_with_a_killed_relay_is_begun_anew_and_doubles_nothing",
            ledger_lost_with_a_killed_relay_is_begun_anew_and_doubles_nothing,
        ),
        claim(
            "killed_between_a_booking_and_its_note_nothing_is_booked_twice",
            killed_between_a_booking_and_its_note_nothing_is_booked_twice,
        ),
        claim(
            "ledger_of_a_newer_version_is_left_alone",
            ledger_of_a_newer_version_is_left_alone,
        ),
        claim(
            "second_relay_on_the_same_state_is_refused_with_75",
            second_relay_on_the_same_state_is_refused_with_75,
        ),
        claim(
            "ledger_that_fails_for_long_makes_unready_where_that_is_wanted",
            ledger_that_fails_for_long_makes_unready_where_that_is_wanted,
        ),
        claim(
            "hours_are_exported_once_and_in_whole",
            hours_are_exported_once_and_in_whole,
        ),
    ]
}

/// A relay whose home is there before it, so that something can be done to it first.
#[derive(Debug)]
struct Faulty {
    hosts: Hosts,
    home: Home,
    start: Start,
    _origin: Origin,
}

impl Faulty {
    #[track_caller]
    fn new(name: &str, more: &str) -> Self {
        let hosts = Hosts::new(name);
        let origin = Origin::start(&hosts.origin, SERVICES[0].origin, Origins::Echo);
        let home = home();
        let start = two_services(&OFTEN.replace("[audit]", &format!("{more}[audit]"))).at(&home);
        Self {
            hosts,
            home,
            start,
            _origin: origin,
        }
    }

    #[track_caller]
    fn relay(&self) -> Relay {
        self.start.clone().on(&self.hosts.relay)
    }

    /// One session with so many bytes each way.
    #[track_caller]
    fn session(&self, endpoint: u64, bytes: u64) {
        let node = &self.hosts.node;
        close(node, open(node, &endpoint_id(endpoint), bytes));
    }

    /// A relay that has booked one session of 1,000 bytes and cannot book 200 more: the disk is full, and the ledger would have to grow.
    #[track_caller]
    fn full_disk(&self) -> (Mounted, Relay) {
        let disk = self.home.mount("state", "size=2m");
        let relay = self.relay();
        self.session(1, 1000);
        self.wait_booked(&relay, 1, 1000);
        disk.fill();
        for endpoint in 0..200 {
            self.session(endpoint, 1000);
        }
        wait_failing(&relay);
        (disk, relay)
    }

    /// What the ledger has.
    #[track_caller]
    fn total(&self) -> Sums {
        ledger::total(&ledger::rows(&self.home.ledger()))
    }

    /// Waits until the ledger has exactly so many sessions, and their bytes.
    #[track_caller]
    fn wait_booked(&self, relay: &Relay, sessions: u64, bytes: u64) {
        relay.wait_until("all of it to be booked", || self.total().closed == sessions);
        assert_eq!(self.total().counts(), [sessions, sessions, 0, bytes, bytes]);
    }
}

fn failing(relay: &Relay) -> bool {
    let metrics = relay.metrics();
    let lasts = metrics.value("tollgate_ledger_failing_seconds", &[]);
    lasts.is_some_and(|seconds| seconds > 0.0)
}

/// Waits until it says that it cannot book, everywhere where one looks.
#[track_caller]
fn wait_failing(relay: &Relay) {
    relay.wait_until("it to say so", || failing(relay));
    let (status, body) = relay.get("/readyz");
    assert_eq!(status, 200, "traffic goes on: {body}");
    assert!(body.contains("nothing is booked"), "{body}");
    let status = relay.status();
    assert!(!status["ledger"]["failing"].is_null(), "{status}");
    assert!(relay.metric("tollgate_ledger_errors_total", &[]) > 0);
}

fn full_disk_under_the_ledger_stops_no_byte_and_loses_none() {
    let faulty = Faulty::new("ledger-full", "");
    let (disk, relay) = faulty.full_disk();
    faulty.session(1, 5_000_000);
    // A report has to do without the last of it, and the relay lives.
    assert_eq!(relay.get("/healthz").0, 200);
    disk.empty();
    faulty.wait_booked(&relay, 202, 5_201_000);
    relay.wait_until("it to be well again", || !failing(&relay));
    assert!(!relay.get("/readyz").1.contains("booked"));
    end(&relay);
    assert_eq!(ledger::integrity(&faulty.home.ledger()), "ok");
    assert_eq!(faulty.total().closed, 202);
}

fn killed_over_a_full_disk_it_books_from_memory_when_there_is_room() {
    let faulty = Faulty::new("ledger-full-kill", "");
    let (disk, relay) = faulty.full_disk();
    relay.kill();
    drop(relay);
    // It begins where there is still no room, adds something, and is killed once more.
    let relay = faulty.relay();
    faulty.session(2, 1000);
    relay.kill();
    drop(relay);
    let relay = faulty.relay();
    faulty.session(3, 1000);
    disk.empty();
    faulty.wait_booked(&relay, 203, 203_000);
    end(&relay);
    assert_eq!(faulty.total().counts(), [203, 203, 0, 203_000, 203_000]);
}

fn killed_where_run_dir_has_room_for_one_file_it_starts_again() {
    let faulty = Faulty::new("run-full-kill", "");
    let run = faulty.home.mount("run", "size=100m"); // a file is 64 MB
    for life in 1..=3 {
        let relay = faulty.relay();
        faulty.session(1, 1000);
        faulty.wait_booked(&relay, life, life * 1000);
        relay.kill();
    }
    // And where there is no room at all, it counts in memory, and books that.
    run.fill();
    let relay = faulty.relay();
    relay.wait_log("are in memory");
    faulty.session(1, 1000);
    faulty.wait_booked(&relay, 4, 4000);
    relay.kill();
    drop(relay);
    run.empty();
    let relay = faulty.relay();
    faulty.session(1, 1000);
    faulty.wait_booked(&relay, 5, 5000);
    end(&relay);
    assert_eq!(faulty.total().counts(), [5, 5, 0, 5000, 5000]);
}

fn read_only_state_is_said_and_booked_when_it_can_be_written() {
    let faulty = Faulty::new("ledger-ro", "");
    let disk = faulty.home.mount("state", "size=8m");
    let relay = faulty.relay();
    faulty.session(1, 1000);
    faulty.wait_booked(&relay, 1, 1000);
    faulty.session(1, 500);
    relay.kill();
    drop(relay);
    // A file system is made read-only only where nothing is open for writing: so the relay begins on one that is.
    disk.again("ro");
    let relay = faulty.relay();
    wait_failing(&relay);
    faulty.session(2, 70_000);
    let report = faulty.home.tollgate(
        &faulty.hosts.relay,
        &["usage", "--config", "@CONFIG@", "--format", "csv"],
    );
    // Whatever it can tell, it ends.
    assert_ne!(report.code, 137, "{report:?}");
    disk.again("rw");
    faulty.wait_booked(&relay, 3, 71_500);
    relay.wait_until("it to be well again", || !failing(&relay));
    end(&relay);
    assert_eq!(faulty.total().counts(), [3, 3, 0, 71_500, 71_500]);
}

/// What was set aside, by name.
fn set_aside(home: &Home) -> Vec<String> {
    let entries = fs::read_dir(home.state()).unwrap();
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    names.filter(|name| name.contains("damaged")).collect()
}

/// Overwrites the ledger's pages but the first bytes of the first, as a disk does that goes bad.
fn damage(home: &Home, keep_head: bool) {
    let file = fs::OpenOptions::new()
        .write(true)
        .open(home.ledger())
        .unwrap();
    let length = file.metadata().unwrap().len();
    let from = if keep_head { 4096 } else { 0 };
    let garbage = vec![0xA5; usize::try_from(length - from).unwrap()];
    file.write_all_at(&garbage, from).unwrap();
}

fn damaged_ledger_is_set_aside_and_a_new_one_begun() {
    for keep_head in [false, true] {
        let faulty = Faulty::new("ledger-damaged", "");
        let relay = faulty.relay();
        faulty.session(1, 1000);
        faulty.wait_booked(&relay, 1, 1000);
        end(&relay);
        drop(relay);
        damage(&faulty.home, keep_head);
        let damaged = fs::read(faulty.home.ledger()).unwrap();
        let relay = faulty.relay();
        relay.wait_log("set aside");
        faulty.session(2, 70_000);
        // Nothing of before can be known, but nothing that came since is lost, or booked again.
        faulty.wait_booked(&relay, 1, 70_000);
        let aside = set_aside(&faulty.home);
        let kept = aside
            .iter()
            .any(|name| fs::read(faulty.home.state().join(name)).unwrap() == damaged);
        assert!(kept, "{aside:?}");
        let status = relay.status()["ledger"]["set_aside"].to_string();
        assert!(status.contains("damaged"), "{status}");
        assert_eq!(relay.metric("tollgate_ledger_set_aside", &[]), 1);
        end(&relay);
    }
}

fn ledger_lost_with_a_killed_relay_is_begun_anew_and_doubles_nothing() {
    // Booked only when somebody asks.
    let mut faulty = Faulty::new("ledger-lost", "");
    faulty.start = faulty
        .start
        .replace("interval = \"1s\"", "interval = \"1h\"");
    let relay = faulty.relay();
    for endpoint in 0..50 {
        faulty.session(endpoint, 1000);
    }
    let before = usage(&faulty.home, &faulty.hosts.relay, &["endpoint"]);
    assert_eq!(ledger::total(&before).closed, 50);
    for endpoint in 40..60 {
        faulty.session(endpoint, 3000);
    }
    relay.wait_metric("tollgate_connections_active", &[], 0);
    relay.kill();
    drop(relay);
    damage(&faulty.home, false);
    let mut changes = faulty.home.ledger().into_os_string();
    changes.push("-wal");
    fs::write(&changes, [0xA5; 10_000]).unwrap();
    let relay = faulty.relay();
    relay.wait_log("set aside");
    assert!(!set_aside(&faulty.home).is_empty());
    // What was booked is in the file that went bad, and only there; what was not is booked now.
    let after = usage(&faulty.home, &faulty.hosts.relay, &["endpoint"]);
    assert_eq!(ledger::total(&after).counts(), [20, 20, 0, 60_000, 60_000]);
    faulty.session(1, 500);
    let after = usage(&faulty.home, &faulty.hosts.relay, &["endpoint"]);
    assert_eq!(ledger::total(&after).counts(), [21, 21, 0, 60_500, 60_500]);
    end(&relay);
    assert_eq!(ledger::integrity(&faulty.home.ledger()), "ok");
    assert_eq!(faulty.total().closed, 21);
}

/// A kill seldom falls there, so the counters are put back as they were before the booking: the ledger's own marks must know better.
fn killed_between_a_booking_and_its_note_nothing_is_booked_twice() {
    let mut faulty = Faulty::new("ledger-twice", "");
    faulty.start = faulty
        .start
        .replace("interval = \"1s\"", "interval = \"1h\"");
    let relay = faulty.relay();
    for endpoint in 0..10 {
        faulty.session(endpoint, 1000);
    }
    relay.wait_metric("tollgate_connections_active", &[], 0);
    let entries = fs::read_dir(faulty.home.run()).unwrap();
    let mut counters = entries.map(|entry| entry.unwrap().path()).filter(|path| {
        let name = path.file_name().and_then(|name| name.to_str());
        name.is_some_and(|name| name.starts_with("books-"))
    });
    let counters = counters.next().unwrap();
    let before = fs::read(&counters).unwrap();
    let booked = usage(&faulty.home, &faulty.hosts.relay, &["endpoint"]);
    assert_eq!(ledger::total(&booked).counts(), [10, 10, 0, 10_000, 10_000]);
    relay.kill();
    drop(relay);
    assert!(fs::read(&counters).unwrap() != before, "it was noted");
    fs::write(&counters, before).unwrap();
    let relay = faulty.relay();
    faulty.session(3, 500);
    let booked = usage(&faulty.home, &faulty.hosts.relay, &["endpoint"]);
    assert_eq!(ledger::total(&booked).counts(), [11, 11, 0, 10_500, 10_500]);
    end(&relay);
    assert_eq!(faulty.total().counts(), [11, 11, 0, 10_500, 10_500]);
}

fn ledger_of_a_newer_version_is_left_alone() {
    let faulty = Faulty::new("ledger-newer", "");
    let relay = faulty.relay();
    faulty.session(1, 1000);
    faulty.wait_booked(&relay, 1, 1000);
    end(&relay);
    drop(relay);
    let ledger = rusqlite::Connection::open(faulty.home.ledger()).unwrap();
    ledger.pragma_update(None, "user_version", 99).unwrap();
    drop(ledger);
    let start = faulty.start.clone().without_waiting();
    let relay = start.on(&faulty.hosts.relay);
    relay.wait_log("99");
    // It may refuse to run or run without booking, but it neither deletes nor renames what it does not know.
    assert_eq!(set_aside(&faulty.home), Vec::<String>::new());
    relay.kill();
    assert_eq!(faulty.total().counts(), [1, 1, 0, 1000, 1000]);
}

fn second_relay_on_the_same_state_is_refused_with_75() {
    let faulty = Faulty::new("ledger-two", "");
    let relay = faulty.relay();
    let elsewhere = faulty.hosts.lab.host("elsewhere");
    // Its own namespace, its own run_dir: all it shares is the state.
    let second = faulty
        .start
        .clone()
        .env("RUNTIME_DIRECTORY", "/run/nowhere")
        .without_waiting()
        .on(&elsewhere);
    assert_eq!(second.wait_exit(), 75);
    let said = second.log_lines("");
    let state = faulty.home.state();
    let named = said
        .iter()
        .any(|line| line.contains(state.to_str().unwrap()));
    assert!(named, "{said:#?}");
    drop(second);
    faulty.session(1, 1000);
    faulty.wait_booked(&relay, 1, 1000);
    end(&relay);
    drop(relay);
    // The lock goes with the process that had it, however that ended.
    let relay = faulty.relay();
    relay.kill();
    drop(relay);
    drop(faulty.relay());
}

fn ledger_that_fails_for_long_makes_unready_where_that_is_wanted() {
    let faulty = Faulty::new(
        "ledger-unready",
        "[ledger]\nunready_after = \"1s\"\ninterval = \"200ms\"\n",
    );
    // Its own table takes the place of the usual one.
    let start = faulty
        .start
        .clone()
        .replace("[ledger]\ninterval = \"1s\"\n", "");
    let disk = faulty.home.mount("state", "size=8m");
    let relay = start.clone().on(&faulty.hosts.relay);
    faulty.session(1, 1000);
    faulty.wait_booked(&relay, 1, 1000);
    relay.kill();
    drop(relay);
    disk.again("ro");
    let relay = start.without_waiting().on(&faulty.hosts.relay);
    relay.wait_until(
        "it to ask for no more traffic",
        || matches!(relay.try_get("/readyz"), Ok((503, body)) if body.contains("booked")),
    );
    // Who comes all the same is served.
    faulty.session(1, 1000);
    disk.again("rw");
    relay.wait_ready();
    faulty.wait_booked(&relay, 2, 2000);
    end(&relay);
}

fn hours_are_exported_once_and_in_whole() {
    let faulty = Faulty::new("ledger-export", "");
    let relay = faulty.relay();
    for endpoint in 0..5 {
        faulty.session(endpoint, 1000 + endpoint);
    }
    faulty.wait_booked(&relay, 5, 5010);
    let to = faulty.home.path().join("shipped");
    fs::create_dir(&to).unwrap();
    let export = |all: bool| {
        let mut arguments = vec![
            "usage",
            "export",
            "--config",
            "@CONFIG@",
            "--to",
            "@DIR@/shipped",
        ];
        if all {
            arguments.push("--all");
        }
        relay.tollgate(&arguments).ok();
        let entries = fs::read_dir(&to).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = names.collect();
        names.sort();
        names
    };
    // The hour that is not over is not exported, unless one asks, before an instance ends.
    let before = export(false);
    let files = export(true);
    assert!(files.len() > before.len(), "{files:?}");
    let read = |files: &[String]| {
        let rows = files.iter().flat_map(|name| {
            assert!(
                name.starts_with("usage-relay-a-") && name.ends_with(".csv"),
                "{name}"
            );
            ledger::report(&fs::read_to_string(to.join(name)).unwrap())
        });
        rows.collect::<Vec<_>>()
    };
    let shipped = read(&files);
    assert_eq!(ledger::total(&shipped).counts(), [5, 5, 0, 5010, 5010]);
    assert!(shipped.iter().all(|row| row.relay == "relay-a"));
    // Again: nothing is shipped twice, and what was booked since is no part of an hour that was.
    let kept: Vec<_> = files
        .iter()
        .map(|name| fs::read(to.join(name)).unwrap())
        .collect();
    faulty.session(1, 500);
    faulty.wait_booked(&relay, 6, 5510);
    let again = export(true);
    for (name, kept) in files.iter().zip(kept) {
        assert_eq!(fs::read(to.join(name)).unwrap(), kept, "{name}");
    }
    // It is in the next hour, which is shipped once it has begun: it did where the hour turned just now.
    let all = if again == files {
        [5, 5, 0, 5010, 5010]
    } else {
        [6, 6, 0, 5510, 5510]
    };
    assert_eq!(ledger::total(&read(&again)).counts(), all);
    assert_eq!(faulty.total().counts(), [6, 6, 0, 5510, 5510]);
    end(&relay);
}
