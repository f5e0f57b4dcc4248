use std::io::Read as _;
use std::net::SocketAddr;
use std::rc::Rc;

use serde_json::Value;

use super::queue::ROOM;
use super::verify::{Kind, verify};
use super::*;
use crate::account::{Account, AccountKey, Books, CloseReason, Limits, Place};
use crate::config::{Audit, OnFull};

mod full;
mod held;

/// The longest that something is waited for which happens at once.
const BOUND: Duration = Duration::from_secs(20);

fn settings(path: &Path) -> Audit {
    Audit {
        sink: config::Sink::File(path.to_owned()),
        interval: Some(Duration::from_secs(300)),
        on_full: OnFull::Drop,
        key_file: None,
        rotate_size: 1 << 30,
        rotate_age: None,
    }
}

fn about(config: &str) -> About<'_> {
    About {
        relay_id: "relay-1",
        config,
        workers: 1,
    }
}

fn start(settings: &Audit) -> (Trail, Rc<Scribe>) {
    let (trail, scribes) = Trail::start(settings, &about("abc"), None).unwrap();
    (trail, Rc::new(scribes.into_iter().next().unwrap()))
}

fn start_behind(settings: &Audit, anchor: &Anchor) -> Trail {
    let started = Trail::start(settings, &about("abc"), Some(anchor));
    started.unwrap().0
}

/// A trail into a sink that a test has made.
fn start_with(sink: Box<dyn Sink>, on_full: OnFull, patience: Duration) -> (Trail, Rc<Scribe>) {
    let settings = Audit {
        on_full,
        sink: config::Sink::Stdout,
        ..settings(Path::new(""))
    };
    let resumed = Resumed {
        sink,
        head: Head::default(),
        torn: Vec::new(),
        aside: None,
        missing: None,
        past: Past::default(),
    };
    let (trail, scribes) =
        Trail::run(&settings, &about("abc"), Key::none(), resumed, patience).unwrap();
    (trail, Rc::new(scribes.into_iter().next().unwrap()))
}

fn account() -> Arc<Account> {
    let limits = Limits::of_most(10);
    let books = Books::new(Place::Memory, &["ingest".into()], 1, limits).unwrap();
    books.account(key("vpce-1"))
}

fn key(endpoint: &str) -> AccountKey {
    AccountKey {
        listener: "ingest".into(),
        endpoint: endpoint.into(),
        consumer: "".into(),
        upstream: "control-plane".into(),
    }
}

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn facts() -> Facts {
    Facts {
        client: Some(address("172.31.7.9:51234")),
        peer: Some(address("10.20.0.5:40000")),
        ..Facts::default()
    }
}

fn open(scribe: &Rc<Scribe>, account: &Arc<Account>) -> Entry {
    scribe.open(account, None, facts).unwrap()
}

fn refused() -> Refused {
    Refused {
        listener: "ingest".into(),
        endpoint: None,
        consumer: None,
        upstream: None,
        client: None,
        peer: address("[2001:db8::1]:7"),
        reason: "not_proxy",
    }
}

fn records(text: &[u8]) -> Vec<Value> {
    let lines = text
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty());
    lines
        .map(|line| serde_json::from_slice(line).unwrap())
        .collect()
}

fn read(path: &Path) -> Vec<Value> {
    records(&std::fs::read(path).unwrap())
}

fn events(records: &[Value]) -> Vec<&str> {
    records
        .iter()
        .filter_map(|record| record["event"].as_str())
        .collect()
}

/// Waits until something is so.
fn wait(what: &str, mut so: impl FnMut() -> bool) {
    let until = Instant::now() + BOUND;
    while !so() {
        assert!(Instant::now() < until, "{what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// What an anchor says, as `verify` takes it.
fn known(anchor: &Anchor) -> verify::Known {
    verify::Known {
        sequence: anchor.sequence,
        hash: chain::Hash::parse(&anchor.hash).unwrap(),
    }
}

#[test]
fn a_session_is_recorded_from_open_to_close() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("audit.log");
    let (trail, scribe) = start(&settings(&path));
    let account = account();
    let mut entry = open(&scribe, &account);
    entry.connected();
    entry.progress(&account, || Facts {
        bytes: Some([5, 7]),
        ..facts()
    });
    let leg = Leg {
        rtt_us: Some(70_123),
        min_rtt_us: Some(70_000),
        retransmits: 2,
        delivery_rate: Some(1_000_000),
        bytes_acked: Some(13),
        bytes_received: Some(11),
    };
    entry.close(&account, CloseReason::Completed, || Facts {
        target: Some("cp.example.internal:443".into()),
        address: Some(address("10.1.0.9:443")),
        bytes: Some([11, 13]),
        legs: [Some(leg), Some(Leg::default())],
        ..facts()
    });
    scribe.refused(refused);
    let anchor = trail.end().expect("everything was written");
    assert_eq!(
        trail.head(BOUND).as_ref(),
        Some(&anchor),
        "for the last booking"
    );
    let text = std::fs::read_to_string(&path).unwrap();
    let records = read(&path);
    assert_eq!(
        events(&records),
        ["started", "open", "progress", "close", "refused", "ended"]
    );
    let close = text.lines().nth(3).unwrap();
    let (_, rest) = close.split_once("\"event\"").unwrap();
    let session = records[1]["session"].as_str().unwrap();
    let (before_duration, rest) = rest.split_once(",\"duration_ms\":").unwrap();
    assert_eq!(
        before_duration,
        format!(
            ":\"close\",\"session\":\"{session}\",\"relay\":\"relay-1\",\"listener\":\"ingest\",\"endpoint\":\"vpce-1\",\
             \"client\":\"172.31.7.9:51234\",\"peer\":\"10.20.0.5:40000\",\"upstream\":\"control-plane\",\"target\":\"cp.example.internal:443\",\
             \"address\":\"10.1.0.9:443\",\"bytes_to_upstream\":11,\"bytes_to_client\":13"
        )
    );
    let (_, rest) = rest.split_once(",\"connect_ms\":").unwrap();
    let (_, rest) = rest.split_once(",\"reason\":\"").unwrap();
    assert!(
        rest.starts_with(
            "completed\",\"client_leg\":{\"rtt_us\":70123,\"min_rtt_us\":70000,\"retransmits\":2,\"delivery_rate\":1000000,\
             \"bytes_acked\":13,\"bytes_received\":11},\"upstream_leg\":{\"retransmits\":0},\"seq\":4,\"prev\":\""
        ),
        "{rest}"
    );
    let sessions = records[1..4]
        .iter()
        .map(|record| record["session"].as_str());
    assert!(sessions.into_iter().all(|other| other == Some(session)));
    assert_eq!(records[4]["peer"], "[2001:db8::1]:7");
    assert!(records[4].get("endpoint").is_none());
    let report = verify(&[path], &Key::none(), &[known(&anchor)]).unwrap();
    assert_eq!((report.finding, report.anchored), (None, Some(6)));
}

#[test]
fn a_session_of_an_overflowing_endpoint_is_recorded_by_its_own_name() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("audit.log");
    let (trail, scribe) = start(&settings(&path));
    let entry = scribe
        .open(&account(), Some(Arc::new(key("vpce-beyond"))), facts)
        .unwrap();
    entry.close(&account(), CloseReason::Completed, facts);
    let _ = trail.end();
    assert!(
        read(&path)[1..3]
            .iter()
            .all(|record| record["endpoint"] == "vpce-beyond")
    );
}

#[test]
fn a_trail_goes_on_with_the_next_process() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("audit.log");
    for config in ["abc", "abc", "def"] {
        let (trail, _) = Trail::start(&settings(&path), &about(config), None).unwrap();
        trail.config_changed(config);
        assert!(trail.end().is_some());
    }
    let records = read(&path);
    let expected = [
        "started", "ended", "started", "ended", "started", "config", "ended",
    ];
    assert_eq!(events(&records), expected);
    assert_eq!(
        (&records[5]["former"], &records[5]["config"]),
        (&"abc".into(), &"def".into())
    );
    let report = verify(&[path], &Key::none(), &[]).unwrap();
    assert_eq!((report.finding, report.records), (None, 7));
}

#[test]
fn what_a_kill_left_is_sealed_and_its_sessions_are_closed_as_crashed() {
    let directory = tempfile::tempdir().unwrap();
    let (path, killed) = (directory.path().join("a"), directory.path().join("b"));
    let (trail, scribe) = start(&settings(&path));
    let account = account();
    let mut entries: Vec<Entry> = (0..3).map(|_| open(&scribe, &account)).collect();
    entries[1].progress(&account, || Facts {
        bytes: Some([5, 7]),
        ..facts()
    });
    entries
        .remove(0)
        .close(&account, CloseReason::Completed, facts);
    let anchor = trail.head(BOUND).unwrap();
    // What a kill leaves: the file as it is, and a part of the next line.
    let torn = b"{\"time\":\"2026-\x80";
    let left = [&std::fs::read(&path).unwrap()[..], torn].concat();
    std::fs::write(&killed, &left).unwrap();
    let (next, _) = start(&settings(&killed));
    assert!(next.end().is_some());
    let records = read(&killed);
    assert_eq!(
        events(&records),
        [
            "started", "open", "open", "open", "progress", "close", "started", "close", "close",
            "ended"
        ]
    );
    let seal = &records[6];
    assert_eq!(seal["torn_bytes"], torn.len());
    assert_eq!(seal["torn"], "{\"time\":\"2026-\u{80}");
    assert_eq!(seal["torn_sha256"], Key::none().hash(torn).to_string());
    let crashed = |record: &Value| record["reason"] == "crashed";
    assert!(records[7..9].iter().all(crashed), "{records:#?}");
    let of = |record: &Value| record["session"].as_str().unwrap().to_owned();
    let mut closed = [of(&records[7]), of(&records[8])];
    closed.sort();
    assert_eq!(closed, [of(&records[2]), of(&records[3])]);
    let progressed = records[7..9]
        .iter()
        .find(|record| of(record) == of(&records[4]))
        .unwrap();
    assert_eq!(
        (
            &progressed["bytes_to_upstream"],
            &progressed["bytes_to_client"]
        ),
        (&5.into(), &7.into())
    );
    assert_eq!(progressed["last_seen"], records[4]["time"]);
    let report = verify(&[killed], &Key::none(), &[known(&anchor)]).unwrap();
    assert_eq!((report.finding, report.anchored), (None, Some(6)));
}

#[test]
fn a_file_that_ends_with_what_is_no_record_is_set_aside() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("audit.log");
    assert!(start(&settings(&path)).0.end().is_some());
    let mut content = std::fs::read(&path).unwrap();
    content.extend_from_slice(b"hello\n");
    std::fs::write(&path, &content).unwrap();
    assert!(start(&settings(&path)).0.end().is_some());
    let aside = read(&path)[0]["damaged"].as_str().unwrap().to_owned();
    assert_eq!(
        std::fs::read(&aside).unwrap(),
        content,
        "nothing is deleted"
    );
    let all = files(&path);
    assert_eq!(all, [PathBuf::from(&aside), path.clone()]);
    let finding = verify(&all, &Key::none(), &[]).unwrap().finding.unwrap();
    assert_eq!((finding.kind, finding.line), (Kind::Added, 3));
}

#[test]
fn files_that_are_set_aside_in_one_second_have_names_of_their_own() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("audit.log");
    for content in ["one", "two", "three"] {
        std::fs::write(&path, content).unwrap();
        let aside = set_aside(&path, 0).unwrap();
        assert_eq!(std::fs::read_to_string(aside).unwrap(), content);
    }
    let names: Vec<_> = files(&path);
    let name = |end: &str| {
        directory
            .path()
            .join(format!("audit.log-19700101T000000Z{end}"))
    };
    let expected = ["-damaged", "-damaged-2", "-damaged-3"].map(name);
    assert_eq!(names, expected);
}

#[test]
fn files_follow_each_other_by_size_and_the_chain_goes_through_them() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("audit.log");
    let small = Audit {
        rotate_size: 2000,
        ..settings(&path)
    };
    let (trail, scribe) = start(&small);
    let mut head = None;
    for _ in 0..5 {
        (0..20).for_each(|_| scribe.refused(refused));
        head = trail.head(BOUND);
    }
    // A kill between two files.
    assert!(trail.end().is_some());
    let all = files(&path);
    assert!(all.len() > 3, "{all:?}");
    let report = verify(&all, &Key::none(), &[known(&head.unwrap())]).unwrap();
    assert_eq!(report.finding, None);
    assert_eq!(report.files, all);
    for pair in all.windows(2) {
        let (before, after) = (read(&pair[0]), read(&pair[1]));
        let name = pair[0].file_name().unwrap().to_str().unwrap();
        assert_eq!(before.last().unwrap()["to"], name);
        assert_eq!(after[0]["from"], name);
    }
    std::fs::remove_file(&path).unwrap();
    assert!(start(&small).0.end().is_some());
    assert_eq!(
        verify(&files(&path), &Key::none(), &[]).unwrap().finding,
        None
    );
    std::fs::remove_file(&all[1]).unwrap();
    let finding = verify(&files(&path), &Key::none(), &[])
        .unwrap()
        .finding
        .unwrap();
    assert_eq!(finding.kind, Kind::Removed);
}

#[test]
fn files_follow_each_other_by_age() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("audit.log");
    let (trail, scribe) = start(&Audit {
        rotate_age: Some(Duration::from_millis(1)),
        ..settings(&path)
    });
    scribe.refused(refused);
    wait("a second file", || files(&path).len() > 1);
    assert!(trail.end().is_some());
    assert_eq!(
        verify(&files(&path), &Key::none(), &[]).unwrap().finding,
        None
    );
}

#[test]
fn a_file_that_somebody_moved_is_followed_by_a_new_one() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("audit.log");
    let (trail, scribe) = start(&settings(&path));
    assert!(trail.head(BOUND).is_some());
    let moved = directory.path().join("moved");
    std::fs::rename(&path, &moved).unwrap();
    wait("a new file", || path.exists());
    scribe.refused(refused);
    assert!(trail.end().is_some());
    let report = verify(&[path, moved], &Key::none(), &[]).unwrap();
    assert_eq!(report.finding, None);
}

#[test]
fn two_relays_do_not_write_to_one_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("audit.log");
    let (_trail, _) = start(&settings(&path));
    let second = Trail::start(&settings(&path), &about("abc"), None);
    assert!(matches!(second, Err(TrailError::Sink { .. })), "{second:?}");
}

#[test]
fn without_a_sink_nothing_is_recorded() {
    let (trail, scribe) = start(&Audit {
        sink: config::Sink::Off,
        ..settings(Path::new(""))
    });
    assert!(!scribe.is_on() && scribe.may_open());
    assert!(scribe.open(&account(), None, facts).is_none());
    scribe.refused(refused);
    assert!(trail.status().is_none() && trail.head(BOUND).is_none() && trail.end().is_none());
}

#[test]
fn a_key_makes_a_trail_that_nobody_else_can_make() {
    let directory = tempfile::tempdir().unwrap();
    let (path, key) = (
        directory.path().join("audit.log"),
        directory.path().join("key"),
    );
    let keyed = Audit {
        key_file: Some(key.clone()),
        ..settings(&path)
    };
    let missing = Trail::start(&keyed, &about("abc"), None);
    assert!(
        matches!(missing, Err(TrailError::Key { .. })),
        "{missing:?}"
    );
    std::fs::write(&key, "secret\n").unwrap();
    let short = Trail::start(&keyed, &about("abc"), None);
    assert!(matches!(short, Err(TrailError::Key { .. })), "{short:?}");
    std::fs::write(&key, "a secret of many\n").unwrap();
    for _ in 0..2 {
        let (trail, scribe) = start(&keyed);
        scribe.refused(refused);
        assert!(trail.end().is_some());
    }
    let verified = |key: &Key| {
        verify(std::slice::from_ref(&path), key, &[])
            .unwrap()
            .finding
    };
    assert_eq!(verified(&Key::read(&key).unwrap()), None);
    assert_eq!(verified(&Key::none()).unwrap().kind, Kind::WrongKey);
}
