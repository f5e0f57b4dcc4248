//! The file that is read again: wrong, gone, not ours to read, never ending; asked for twice at once, in a drain, and of a relay that has none.

use std::{
    fs::{self, Permissions},
    os::unix::fs::{PermissionsExt, symlink},
    process::Command,
    thread,
};

use libtest_mimic::Trial;
use tokio::net::TcpListener;

use super::world::{FIRST, Reloading, config, listens, plain, plain_and};
use crate::{
    claim,
    harness::relay::{Signal, Start},
    scenarios::world::ENDPOINT,
};

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        claim(
            "reload_of_a_wrong_file_changes_nothing_and_says_why",
            wrong_file,
        ),
        claim(
            "reload_whose_address_is_taken_leaves_no_trace",
            address_is_taken,
        ),
        claim("reload_of_a_file_that_is_gone_changes_nothing", file_gone),
        claim(
            "reload_of_what_is_no_file_ends_and_changes_nothing",
            no_file,
        ),
        claim(
            "reload_of_a_file_that_may_not_be_read_changes_nothing",
            may_not_be_read,
        ),
        claim("reloads_at_once_come_one_after_the_other", at_once),
        claim("reload_in_a_drain_neither_ends_nor_undoes_it", in_a_drain),
        claim(
            "relay_without_a_file_is_not_reloaded_and_survives_the_signal",
            without_a_file,
        ),
        claim(
            "keys_that_need_a_restart_keep_their_value_and_are_named",
            keys_that_need_a_restart,
        ),
        claim("log_level_changes_with_a_reload", log_level),
    ]
}

/// What a reload that was declined must have left alone.
#[track_caller]
fn assert_as_before(world: &Reloading, digest: &serde_json::Value, failed: u64, why: &str) {
    let status = world.relay.status();
    assert_eq!(&status["config"]["digest"], digest, "{why}");
    let said = status["config"]["last_error"].to_string();
    assert!(said.contains(why), "{why:?} in {said}");
    assert_eq!(world.reloads("failed"), failed, "{why}");
    assert_eq!(world.reloads("applied"), 0, "{why}");
    world.exchange(8443);
}

fn digest(world: &Reloading) -> serde_json::Value {
    let digest = world.relay.status()["config"]["digest"].clone();
    assert!(digest.is_string(), "{digest}");
    digest
}

fn wrong_file() {
    let world = Reloading::new("reload-wrong", &plain());
    let session = world.open(8443, ENDPOINT);
    let before = digest(&world);
    let wrong = [
        ("[[listener]\n".to_owned(), "tollgate.toml:1"),
        (plain() + "nmae = \"a\"\n", "did you mean name"),
        (
            plain().replace("trusted_peers = [\"10.20.0.0/16\"]\n", ""),
            "trusted_peers",
        ),
        (
            plain().replace("upstream = \"cp\"", "upstream = \"pc\""),
            "pc",
        ),
        (plain().replace("0.0.0.0:8443", "0.0.0.0:84430"), "84430"),
        (
            plain()
                + &config(&[("ingest", "0.0.0.0:8444", "cp")], &[], "")[super::world::TOP.len()..],
            "ingest",
        ),
        (String::new(), "listener"),
        ("\0\0\0\0".to_owned(), "tollgate.toml:1"),
    ];
    for (failed, (text, why)) in (1..).zip(&wrong) {
        world
            .relay
            .reload_with(text)
            .assert_declined(422, &["tollgate.toml", why]);
        assert_as_before(&world, &before, failed, why);
    }
    assert!(
        !world.relay.log_lines("has changed").is_empty(),
        "the log tells of it"
    );
    // Not even text.
    fs::write(world.relay.home().config(), b"relay_id = \"\xff\xfe\"\n").unwrap();
    world
        .relay
        .reload()
        .assert_declined(422, &["tollgate.toml"]);
    // And right again: what is as it was is no change.
    let done = world.apply(&plain());
    assert_eq!(done["changed"].as_array().map(Vec::len), Some(0), "{done}");
    assert_eq!(world.reloads("unchanged"), 1);
    assert!(world.relay.status()["config"]["last_error"].is_null());
    world.goes_on(session);
    world.assert_at_rest();
}

fn address_is_taken() {
    let world = Reloading::new("reload-taken", &plain());
    let before = digest(&world);
    let other = world
        .hosts
        .relay
        .run(TcpListener::bind("0.0.0.0:8445"))
        .unwrap();
    let next = config(
        &[
            ("ingest", "0.0.0.0:8443", "cp"),
            ("free", "0.0.0.0:8444", "cp"),
            ("taken", "0.0.0.0:8445", "cp"),
        ],
        &[("cp", FIRST)],
        "",
    );
    world
        .relay
        .reload_with(&next)
        .assert_declined(503, &["0.0.0.0:8445"]);
    assert_as_before(&world, &before, 1, "8445");
    assert!(
        !listens(&world.hosts.relay, 8444),
        "what was bound before is let go"
    );
    world.hosts.relay.call(move || drop(other));
    world.relay.reload().done();
    for port in [8443, 8444, 8445] {
        world.exchange(port);
    }
    world.apply(&plain());
    world.wait_port_closed(8444);
    world.wait_port_closed(8445);
    world.assert_at_rest();
}

fn file_gone() {
    let world = Reloading::new("reload-gone", &plain());
    let session = world.open(8443, ENDPOINT);
    let before = digest(&world);
    fs::remove_file(world.relay.home().config()).unwrap();
    world
        .relay
        .reload()
        .assert_declined(424, &["tollgate.toml"]);
    assert_as_before(&world, &before, 1, "tollgate.toml");
    world.relay.signal(Signal::HUP);
    world
        .relay
        .wait_until("the signal's reload", || world.reloads("failed") == 2);
    assert_as_before(&world, &before, 2, "tollgate.toml");
    world.apply(&plain_and("[session]\nidle_timeout = \"7m\"\n"));
    assert_eq!(world.reloads("applied"), 1);
    world.goes_on(session);
    world.assert_at_rest();
}

/// Things that are opened or read for ever by who does not look first.
fn no_file() {
    let world = Reloading::new("reload-no-file", &plain());
    let before = digest(&world);
    let path = world.relay.home().config();
    let again = |failed| {
        let declined = world.relay.reload();
        assert!((400..600).contains(&declined.status), "{declined:?}");
        assert_as_before(&world, &before, failed, "tollgate.toml");
    };
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    again(1);
    fs::remove_dir(&path).unwrap();
    symlink("tollgate.toml", &path).unwrap();
    again(2);
    fs::remove_file(&path).unwrap();
    assert!(
        Command::new("mkfifo")
            .arg(&path)
            .status()
            .unwrap()
            .success()
    );
    again(3);
    fs::remove_file(&path).unwrap();
    symlink("/dev/zero", &path).unwrap();
    again(4);
    fs::remove_file(&path).unwrap();
    world.apply(&plain_and("[session]\nidle_timeout = \"7m\"\n"));
    world.assert_at_rest();
}

fn may_not_be_read() {
    let user = [
        "setpriv",
        "--reuid=65533",
        "--regid=65533",
        "--clear-groups",
    ];
    let world = Reloading::with("reload-forbidden", Start::with(&plain()).through(&user));
    let before = digest(&world);
    let path = world.relay.home().config();
    let allow = |mode| fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
    allow(0o600);
    world
        .relay
        .reload()
        .assert_declined(403, &["tollgate.toml"]);
    assert_as_before(&world, &before, 1, "tollgate.toml");
    // Nor may it bind what is an administrator's.
    allow(0o644);
    let low =
        plain() + &config(&[("low", "0.0.0.0:443", "cp")], &[], "")[super::world::TOP.len()..];
    world
        .hosts
        .relay
        .sysctl("net.ipv4.ip_unprivileged_port_start", "1024");
    world
        .relay
        .reload_with(&low)
        .assert_declined(403, &["0.0.0.0:443"]);
    assert_as_before(&world, &before, 2, "0.0.0.0:443");
    world.apply(&plain_and("[session]\nidle_timeout = \"7m\"\n"));
    world.assert_at_rest();
}

/// Orders at once: more than may wait.
const AT_ONCE: usize = 40;

fn at_once() {
    let world = Reloading::new("reload-twice", &plain());
    let session = world.open(8443, ENDPOINT);
    world
        .relay
        .rewrite_config(&plain_and("[session]\nidle_timeout = \"7m\"\n"));
    let answers = thread::scope(|scope| {
        let orders = (0..AT_ONCE).map(|_| scope.spawn(|| world.relay.reload()));
        let orders: Vec<_> = orders.collect();
        for _ in 0..10 {
            world.relay.signal(Signal::HUP);
        }
        let answers = orders.into_iter().map(|order| order.join().unwrap());
        answers.collect::<Vec<_>>()
    });
    let done = answers
        .iter()
        .filter(|answered| answered.status == 200)
        .count();
    assert!(done >= 1, "{answers:?}");
    for answered in answers.iter().filter(|answered| answered.status != 200) {
        answered.assert_declined(503, &["try again"]);
    }
    // One of them found a change, all others none.
    world
        .relay
        .wait_until("the signals' reloads", || world.reloads("applied") == 1);
    assert!(world.reloads("unchanged") + 1 >= done as u64);
    assert_eq!(world.reloads("failed"), 0);
    world.exchange(8443);
    world.goes_on(session);
    world.assert_at_rest();
}

fn in_a_drain() {
    let drain = "[drain]\naccept_for = \"10m\"\ndeadline = \"10m\"\n";
    let world = Reloading::new("reload-drain", &plain_and(drain));
    let session = world.open(8443, ENDPOINT);
    world.relay.signal(Signal::TERM);
    let unready = || world.relay.get("/readyz").0 == 503;
    world.relay.wait_until("it leaves", unready);
    let next = plain_and(&format!("{drain}[session]\nidle_timeout = \"7m\"\n"));
    // Both are right, as long as the way out goes on.
    let answered = world.relay.reload_with(&next);
    assert!([200, 409].contains(&answered.status), "{answered:?}");
    world.relay.signal(Signal::HUP);
    world.exchange(8443);
    assert_eq!(world.relay.status()["phase"], "leaving");
    assert!(unready());
    world.goes_on(session);
    world
        .relay
        .wait_metric("tollgate_connections_active", &[], 0);
    world.relay.signal(Signal::TERM);
    assert_eq!(world.relay.wait_exit(), 0);
}

fn without_a_file() {
    let start = Start::with("").arguments(&[
        "run",
        "--listen",
        "0.0.0.0:8443",
        "--upstream",
        FIRST,
        "--trusted",
        "10.20.0.0/16",
    ]);
    let world = Reloading::with("reload-no-config", start);
    world.relay.reload().assert_declined(409, &["--config"]);
    world.relay.signal(Signal::HUP);
    world
        .relay
        .wait_until("the signal's reload", || world.reloads("failed") == 2);
    world.exchange(8443);
    world.assert_at_rest();
}

fn keys_that_need_a_restart() {
    let world = Reloading::new("reload-restart", &plain());
    let pending = || world.relay.metric("tollgate_config_restart_pending", &[]);
    assert_eq!(pending(), 0);
    let threads = world.relay.threads();
    let next =
        plain_and("[session]\nidle_timeout = \"7m\"\n").replace("workers = 2", "workers = 4");
    let done = world.apply(&next);
    assert_eq!(done["restart"], serde_json::json!(["workers"]), "{done}");
    assert_eq!(done["changed"].as_array().map(Vec::len), Some(1), "{done}");
    assert_eq!(world.relay.status()["config"]["restart"], done["restart"]);
    assert!(pending() >= 1);
    // One that read the file goes when it has nothing to do.
    world.relay.wait_until("as many threads as before", || {
        world.relay.threads() == threads
    });
    // It says so as long as it is so.
    let done = world.relay.reload().done();
    assert_eq!(done["restart"], serde_json::json!(["workers"]), "{done}");
    let done = world.apply(&plain());
    assert_eq!(done["restart"], serde_json::json!([]), "{done}");
    assert_eq!(pending(), 0);
    world.exchange(8443);
    world.assert_at_rest();
}

fn log_level() {
    let world = Reloading::new("reload-log", &plain());
    let told = || world.relay.log_lines("session closed").len();
    world.exchange(8443);
    assert_eq!(told(), 0);
    world.apply(&plain_and("[log]\nlevel = \"debug\"\n"));
    world.exchange(8443);
    world
        .relay
        .wait_until("the session to be logged", || told() == 1);
    world.apply(&plain());
    let session = world.open(8443, ENDPOINT);
    world.goes_on(session);
    world
        .relay
        .wait_metric("tollgate_connections_active", &[], 0);
    // A line that is always there, behind the place where the session's would be.
    world.apply(&plain_and("[session]\nidle_timeout = \"8m\"\n"));
    world.relay.wait_until("the reload to be logged", || {
        let lines = world.relay.log_lines("idle_timeout");
        lines.iter().any(|line| line.contains("8m"))
    });
    assert_eq!(told(), 1);
    world.assert_at_rest();
}
