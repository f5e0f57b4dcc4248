//! What `tollgate audit verify` finds, and what it does not take for tampering.

use std::{fs, path::PathBuf, slice};

use libtest_mimic::Trial;

use super::{
    counted::{Booked, close, open, run},
    sessions::{Manner, Plan, Planned, endpoint_id},
    world::{SERVICES, audit_log, end},
};
use crate::{
    claim,
    harness::{
        audit,
        origin::{Manner as Origins, Origin},
        relay::Said,
    },
};

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        claim(
            "each_tampering_with_the_audit_log_is_found_and_named",
            each_tampering_with_the_audit_log_is_found_and_named,
        ),
        claim(
            "a_log_of_killed_relays_and_several_files_is_whole",
            a_log_of_killed_relays_and_several_files_is_whole,
        ),
        claim(
            "a_log_made_with_a_key_is_verified_with_that_key_alone",
            a_log_made_with_a_key_is_verified_with_that_key_alone,
        ),
        claim(
            "what_was_taken_from_a_log_while_no_relay_ran_is_found_for_ever",
            what_was_taken_from_a_log_while_no_relay_ran_is_found_for_ever,
        ),
        claim(
            "a_log_is_verified_while_it_is_written",
            a_log_is_verified_while_it_is_written,
        ),
    ]
}

/// Plain sessions.
fn plans(from: u64, n: u64) -> Vec<Plan> {
    let plan = |number| Plan {
        number,
        endpoint: endpoint_id(number % 5),
        service: (number % 2) as usize,
        manner: Manner::ClientFirst,
        bytes: [100 + number, 200 + number],
    };
    (from..from + n).map(plan).collect()
}

/// Verifies files with the ledger's last anchor.
#[track_caller]
fn verify(booked: &Booked, files: &[PathBuf], more: &[&str]) -> Said {
    let mut arguments = vec!["audit", "verify", "--config", "@CONFIG@"];
    arguments.extend(more);
    arguments.extend(files.iter().map(|file| file.to_str().unwrap()));
    booked.home.tollgate(&booked.hosts.relay, &arguments)
}

/// A log and what is done to it: its lines, and the place of the first that is not as it was.
type Tampering = (&'static str, fn(&mut Vec<String>) -> usize);

const TAMPERINGS: [Tampering; 12] = [
    ("an edited number", |lines| {
        let at = lines.len() / 2;
        let at = (at..).find(|at| lines[*at].contains("\"close\"")).unwrap();
        lines[at] = lines[at].replace("\"bytes_to_client\":2", "\"bytes_to_client\":9");
        at
    }),
    ("an edited reason", |lines| {
        let at = (3..).find(|at| lines[*at].contains("completed")).unwrap();
        lines[at] = lines[at].replace("completed", "connect_failed");
        at
    }),
    ("a space more", |lines| {
        lines[4] = lines[4].replacen(':', ": ", 1);
        4
    }),
    ("the first record edited", |lines| {
        lines[0] = lines[0].replace("relay-a", "relay-b");
        0
    }),
    ("the last record edited", |lines| {
        let last = lines.len() - 1;
        lines[last] = lines[last].replace("relay-a", "relay-b");
        last
    }),
    ("a deleted record", |lines| {
        lines.remove(7);
        7
    }),
    ("the first record deleted", |lines| {
        lines.remove(0);
        0
    }),
    ("several deleted records", |lines| {
        lines.drain(5..12);
        5
    }),
    ("two in each other's place", |lines| {
        lines.swap(8, 9);
        8
    }),
    ("a record twice", |lines| {
        let line = lines[6].clone();
        lines.insert(7, line);
        7
    }),
    ("a record that was made up", |lines| {
        let line = lines[6].replace("\"seq\":7", "\"seq\":8");
        lines.insert(7, line);
        7
    }),
    ("the end cut off", |lines| {
        lines.truncate(lines.len() - 3);
        lines.len()
    }),
];

fn each_tampering_with_the_audit_log_is_found_and_named() {
    let booked = Booked::new("tamper", "");
    let _origins = SERVICES.map(|service| Planned::start(&booked.hosts.origin, service.origin));
    run(&booked.hosts.node, plans(0, 20));
    booked
        .relay
        .wait_metric("tollgate_connections_active", &[], 0);
    end(&booked.relay);
    let log = audit_log(&booked.home);
    let lines = audit::lines(&log);
    assert!(lines.len() > 40, "{}", lines.len());
    // Under its own name, by which the ledger knows it.
    let copy = booked.home.path().join("copy/audit.jsonl");
    fs::create_dir(copy.parent().unwrap()).unwrap();
    let put = |lines: &[String]| {
        let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
        fs::write(&copy, text).unwrap();
    };
    put(&lines);
    verify(&booked, slice::from_ref(&copy), &[]).ok();
    for (what, tamper) in TAMPERINGS {
        let mut changed = lines.clone();
        let first = tamper(&mut changed);
        assert_ne!(changed, lines, "{what}");
        put(&changed);
        let said = verify(&booked, slice::from_ref(&copy), &[]);
        let all = format!("{}{}", said.out, said.err);
        assert_eq!(said.code, 1, "{what}: {all}");
        assert!(all.contains("copy/audit.jsonl"), "{what}: {all}");
        // The record itself, or the next, whose hash does not fit to it.
        let named = [first, first + 1, first + 2]
            .iter()
            .any(|line| all.contains(&line.to_string()));
        assert!(named, "{what} at line {}: {all}", first + 1);
    }
    // Whatever byte it is.
    for at in (0..lines.len()).step_by(5) {
        let mut changed = lines.clone();
        let mut bytes = changed[at].clone().into_bytes();
        let place = bytes.len() / 3;
        bytes[place] ^= 1;
        changed[at] = String::from_utf8(bytes).unwrap();
        put(&changed);
        assert_eq!(
            verify(&booked, slice::from_ref(&copy), &[]).code,
            1,
            "line {at}"
        );
    }
    // The end of a line is torn by a kill, and that is no tampering, but it is said; here it is before what the ledger knows.
    let mut bytes = fs::read(&log).unwrap();
    bytes.truncate(bytes.len() - 20);
    fs::write(&copy, bytes).unwrap();
    assert_eq!(verify(&booked, &[copy], &[]).code, 1);
}

fn a_log_of_killed_relays_and_several_files_is_whole() {
    let mut booked = Booked::new("tamper-killed", "");
    // The table is there already, so the key goes into it.
    let rotate = "on_full = \"block\"\nrotate_size = \"4KiB\"\n[drain]";
    booked.start = booked.start.replace("[drain]", rotate);
    let _origins = SERVICES.map(|service| Planned::start(&booked.hosts.origin, service.origin));
    let folder = booked.home.path().join("audit");
    let written = || -> u64 {
        let entries = fs::read_dir(&folder).unwrap();
        let lengths = entries.filter_map(|entry| Some(entry.ok()?.metadata().ok()?.len()));
        lengths.sum()
    };
    for life in 0..4 {
        booked = booked.killed();
        let before = written();
        run(&booked.hosts.node, plans(100 * life, 15));
        // A kill takes what the last 20 ms had: without this, perhaps all that this life did, and there would be one file.
        booked
            .relay
            .wait_until("a file's worth of records", || written() > before + 4096);
    }
    booked
        .relay
        .wait_metric("tollgate_connections_active", &[], 0);
    end(&booked.relay);
    let log = audit_log(&booked.home);
    let files = audit::files(&log);
    assert!(files.len() > 3, "{files:?}");
    let records = audit::records(&log);
    audit::assert_chained(&records);
    audit::sessions(&records);
    verify(&booked, &files, &[]).ok();
    // In whatever order they are given, and by the name of the log alone.
    let backwards: Vec<_> = files.iter().rev().cloned().collect();
    verify(&booked, &backwards, &[]).ok();
    // One of them is missing.
    let without: Vec<_> = files[..1].iter().chain(&files[2..]).cloned().collect();
    assert_eq!(verify(&booked, &without, &[]).code, 1);
    // One of them has lost its last line, the one that names the next.
    let mut bytes = fs::read(&files[1]).unwrap();
    let whole = bytes.clone();
    let end = bytes[..bytes.len() - 1]
        .iter()
        .rposition(|byte| *byte == b'\n');
    bytes.truncate(end.unwrap() + 1);
    fs::write(&files[1], bytes).unwrap();
    assert_eq!(verify(&booked, &files, &[]).code, 1);
    fs::write(&files[1], whole).unwrap();
    verify(&booked, &files, &[]).ok();
}

fn a_log_made_with_a_key_is_verified_with_that_key_alone() {
    let mut booked = Booked::new("tamper-key", "");
    for (name, key) in [
        ("key", "an auditor's secret\n"),
        ("other", "somebody's guess\n"),
    ] {
        fs::write(booked.home.path().join(name), key).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        fs::set_permissions(booked.home.path().join(name), mode).unwrap();
    }
    // Another key needs another file.
    booked.start = booked
        .start
        .replace("audit.jsonl", "keyed.jsonl")
        .replace("[drain]", "key_file = \"@DIR@/key\"\n[drain]");
    let booked = booked.killed();
    let _origins = SERVICES.map(|service| Planned::start(&booked.hosts.origin, service.origin));
    run(&booked.hosts.node, plans(0, 5));
    end(&booked.relay);
    let log = [audit_log(&booked.home).with_file_name("keyed.jsonl")];
    let key = |name: &str| booked.home.path().join(name).to_str().unwrap().to_owned();
    verify(&booked, &log, &["--key-file", &key("key")]).ok();
    let wrong = verify(&booked, &log, &["--key-file", &key("other")]);
    assert_eq!(wrong.code, 1, "{wrong:?}");
}

fn what_was_taken_from_a_log_while_no_relay_ran_is_found_for_ever() {
    let booked = Booked::new("tamper-down", "");
    let _origins = SERVICES.map(|service| Planned::start(&booked.hosts.origin, service.origin));
    run(&booked.hosts.node, plans(0, 5));
    end(&booked.relay);
    let log = audit_log(&booked.home);
    verify(&booked, &[], &[]).ok();
    let whole = fs::read_to_string(&log).unwrap();
    // Nothing is left: the ledger knows that there was something.
    let archived = booked.home.path().join("archived");
    fs::rename(&log, &archived).unwrap();
    let nothing = verify(&booked, &[], &[]);
    assert_eq!(nothing.code, 1, "{nothing:?}");
    // The next relay does not make good for it.
    let kept: String = whole.split_inclusive('\n').take(4).collect();
    fs::write(&log, kept).unwrap();
    let booked = booked.killed();
    end(&booked.relay);
    let last = whole.lines().count();
    let cut = verify(&booked, &[], &[]);
    assert_eq!(cut.code, 1, "{cut:?}");
    let said = format!("{cut:?}");
    let wanted = format!("records 5 to {last} are missing");
    assert!(said.contains(&wanted), "{said}");
    // With what was taken away, and without what was left, all is there.
    let text = fs::read_to_string(&log).unwrap();
    let new: String = text.split_inclusive('\n').skip(4).collect();
    fs::write(&log, new).unwrap();
    verify(&booked, &[archived, log], &[]).ok();
}

fn a_log_is_verified_while_it_is_written() {
    let booked = Booked::new("tamper-live", "");
    let _origin = Origin::start(&booked.hosts.origin, SERVICES[0].origin, Origins::Echo);
    let node = &booked.hosts.node;
    let agent = open(node, &endpoint_id(1), 1000);
    for _ in 0..10 {
        close(node, open(node, &endpoint_id(2), 1000));
        verify(&booked, &[audit_log(&booked.home)], &[]).ok();
    }
    close(node, agent);
    end(&booked.relay);
    verify(&booked, &[audit_log(&booked.home)], &[]).ok();
}
