//! The ledger as the relay has it: threads, a disk, real counters in a file.

use std::fs;
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, Sender, channel};

use proptest::prelude::*;
use tempfile::TempDir;

use super::read::Reading;
use super::store_tests::{NOON, at, batch, key, rows, slot, soon, store};
use super::*;
use crate::account::leftover::find;
use crate::account::{CloseReason, Direction, Limits, Meter, Place};

pub(super) const NEVER: Duration = Duration::from_secs(1_000_000);

pub(super) fn no_head() -> Head {
    Box::new(|| None)
}

pub(super) struct Here {
    pub(super) dir: TempDir,
}

impl Here {
    pub(super) fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
        }
    }

    pub(super) fn settings(&self) -> Settings {
        Settings {
            state_dir: self.dir.path().join("state"),
            interval: NEVER,
            keep: Duration::from_secs(400 * 24 * 3600),
            relay: "relay-1".into(),
            endpoints: Endpoints::default(),
        }
    }

    pub(super) fn path(&self) -> PathBuf {
        self.settings().state_dir.join(FILE)
    }

    pub(super) fn run_dir(&self) -> PathBuf {
        self.dir.path().join("run")
    }

    pub(super) fn books(&self) -> Arc<Books> {
        fs::create_dir_all(self.run_dir()).unwrap();
        let place = Place::File(self.run_dir());
        Arc::new(Books::new(place, &["l".into()], 1, Limits::of_most(100)).unwrap())
    }

    pub(super) fn leftovers(&self) -> Vec<Leftover> {
        let found = find(&self.run_dir());
        found
            .iter()
            .map(|path| Leftover::open(path).unwrap())
            .collect()
    }

    pub(super) fn start(&self, books: &Arc<Books>) -> Ledger {
        self.start_after(books, Vec::new())
    }

    pub(super) fn start_after(&self, books: &Arc<Books>, leftovers: Vec<Leftover>) -> Ledger {
        Ledger::start(self.settings(), books.clone(), leftovers, no_head()).unwrap()
    }
}

pub(super) fn open(books: &Books, endpoint: &str) -> Meter {
    books.open(key(endpoint), 0).0
}

/// A session that moves so many bytes and ends.
pub(super) fn session(books: &Books, endpoint: &str, bytes: usize) {
    let meter = open(books, endpoint);
    meter.moved(Direction::ToUpstream, bytes);
    meter.close(CloseReason::Completed);
}

pub(super) async fn total(ledger: &Ledger) -> (u64, u64, u64) {
    let rows = ledger.report(Query::default()).await.unwrap();
    let row = rows.first().cloned().unwrap_or_default();
    (row.opened, row.closed, row.bytes_to_upstream)
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
}

/// Until a state directory that was let go is free: the clerk leaves a moment after its handle.
pub(super) fn until_free(here: &Here) {
    let began = Instant::now();
    while Lock::take(&here.settings().state_dir).unwrap().is_none() {
        assert!(began.elapsed() < Duration::from_secs(30));
        thread::yield_now();
    }
}

#[tokio::test]
async fn what_is_counted_is_booked_when_asked_and_again_at_the_end() {
    let here = Here::new();
    let books = here.books();
    let ledger = here.start(&books);
    session(&books, "vpce-1", 100);
    ledger.book_now().await.unwrap();
    assert_eq!(total(&ledger).await, (1, 1, 100));
    session(&books, "vpce-1", 11);
    assert!(!find(&here.run_dir()).is_empty());
    ledger.end().await.unwrap();
    assert!(find(&here.run_dir()).is_empty(), "nobody needs it any more");
    let reading = Reading::open(&here.settings().state_dir).unwrap();
    let rows = reading.report(&Query::default(), soon()).unwrap();
    assert_eq!(rows[0].bytes_to_upstream, 111);
    assert!(matches!(ledger.book_now().await, Err(AskError::Ended)));
}

#[tokio::test]
async fn it_books_by_itself_every_interval() {
    let here = Here::new();
    let books = here.books();
    let settings = Settings {
        interval: Duration::from_millis(20),
        ..here.settings()
    };
    let ledger = Ledger::start(settings, books.clone(), Vec::new(), no_head()).unwrap();
    session(&books, "vpce-1", 100);
    // What is booked can be read a moment before the ledger says so.
    while total(&ledger).await.2 < 100 || ledger.status().bookings == 0 {
        tokio::task::yield_now().await;
    }
    let status = ledger.status();
    assert!(status.booked.is_some() && status.failing.is_none());
}

#[tokio::test]
async fn what_a_killed_process_had_open_is_closed_as_crashed_and_its_file_is_taken_away() {
    let here = Here::new();
    let dead = here.dir.path().join("dead");
    {
        let books = here.books();
        let ledger = here.start(&books);
        let open = open(&books, "vpce-1");
        open.moved(Direction::ToUpstream, 7);
        session(&books, "vpce-1", 100);
        ledger.book_now().await.unwrap();
        open.moved(Direction::ToUpstream, 5);
        session(&books, "vpce-2", 30);
        // As it is at this moment, which is when the process is killed.
        fs::create_dir(&dead).unwrap();
        let file = &find(&here.run_dir())[0];
        fs::copy(file, dead.join(file.file_name().unwrap())).unwrap();
        fs::remove_file(file).unwrap();
    }
    until_free(&here);
    let left: Vec<_> = find(&dead)
        .iter()
        .map(|path| Leftover::open(path).unwrap())
        .collect();
    assert_eq!(left[0].crashed, 1);
    let books = here.books();
    let ledger = here.start_after(&books, left);
    ledger.book_now().await.unwrap();
    assert_eq!(total(&ledger).await, (3, 3, 142));
    assert!(find(&dead).is_empty());
    assert_eq!(ledger.status().leftovers, 0);
    ledger.end().await.unwrap();
    let connection = rusqlite::Connection::open(here.path()).unwrap();
    let sql = "SELECT sum(count) FROM reasons WHERE reason = 'crashed'";
    let found: i64 = connection.query_row(sql, [], |row| row.get(0)).unwrap();
    assert_eq!(found, 1);
}

#[tokio::test]
async fn accounts_that_are_booked_may_leave_memory_and_come_back() {
    let here = Here::new();
    let books = here.books();
    let ledger = here.start(&books);
    for round in 1..4 {
        session(&books, "vpce-1", 10);
        assert_eq!(books.let_go(Duration::ZERO, u64::MAX), 0, "not booked yet");
        ledger.book_now().await.unwrap();
        assert!(books.let_go(Duration::ZERO, u64::MAX) > 0);
        assert_eq!(books.accounts(), 0);
        session(&books, &format!("vpce-{}", round + 1), 1);
    }
    ledger.book_now().await.unwrap();
    assert_eq!(total(&ledger).await, (6, 6, 33));
}

/// A head that tells when it is asked, and answers once the last is dropped: a booking stands still for as long.
fn stuck_head() -> (Head, Receiver<()>, Sender<()>) {
    let (enter, entered) = channel();
    let (leave, left) = channel::<()>();
    let left = Mutex::new(left);
    let head = Box::new(move || {
        let _ = enter.send(());
        let _ = left.lock().unwrap().recv();
        None
    });
    (head, entered, leave)
}

#[tokio::test]
async fn those_who_ask_at_once_are_answered_by_few_bookings() {
    let here = Here::new();
    let books = here.books();
    let (head, entered, leave) = stuck_head();
    let ledger = Ledger::start(here.settings(), books, Vec::new(), head).unwrap();
    entered.recv().unwrap(); // the first booking, by itself
    let ledger = &ledger;
    let asking = async { tokio::join!(ledger.book_now(), ledger.book_now(), ledger.book_now()) };
    let leaving = async {
        tokio::task::yield_now().await;
        drop(leave);
    };
    let ((one, two, three), ()) = tokio::join!(asking, leaving);
    one.and(two).and(three).unwrap();
    assert_eq!(ledger.status().bookings, 2);
}

#[tokio::test(start_paused = true)] // the clock of waiting runs ahead as soon as everybody waits
async fn a_disk_that_does_not_answer_keeps_nobody_waiting_for_ever() {
    let here = Here::new();
    let books = here.books();
    let (head, entered, leave) = stuck_head();
    let ledger = Ledger::start(here.settings(), books.clone(), Vec::new(), head).unwrap();
    entered.recv().unwrap();
    session(&books, "vpce-1", 100);
    assert!(matches!(ledger.book_now().await, Err(AskError::Slow(_))));
    for _ in 0..QUEUE + 1 {
        let _ = ledger.book_now().await;
    }
    assert!(matches!(ledger.book_now().await, Err(AskError::Busy)));
    assert!(ledger.end().await.is_err());
    assert!(
        !find(&here.run_dir()).is_empty(),
        "what is not booked stays"
    );
    let status = ledger.status();
    assert_eq!(status.bookings, 0);
    drop(leave);
}

#[tokio::test]
async fn the_head_of_the_trail_goes_into_the_ledger_with_the_booking() {
    let here = Here::new();
    let books = here.books();
    let anchor = Anchor {
        time: at(NOON),
        sequence: 7,
        hash: "ab".repeat(32),
        file: "/var/log/audit.jsonl".into(),
    };
    let given = anchor.clone();
    let head: Head = Box::new(move || Some(given.clone()));
    let ledger = Ledger::start(here.settings(), books, Vec::new(), head).unwrap();
    ledger.book_now().await.unwrap();
    assert_eq!(ledger.last_anchor(), Some(anchor.clone()));
    ledger.end().await.unwrap();
    let reading = Reading::open(&here.settings().state_dir).unwrap();
    assert_eq!(reading.last_anchor().unwrap(), Some(anchor.clone()));
    let sql = "SELECT sequence FROM anchors";
    let kept: i64 = reading
        .connection()
        .query_row(sql, [], |row| row.get(0))
        .unwrap();
    assert_eq!(kept, 7);
    drop(reading);
    let books = here.books();
    let ledger = here.start(&books);
    assert_eq!(ledger.last_anchor(), Some(anchor));
}

#[test]
fn two_relays_on_one_directory_are_refused_and_the_first_is_named() {
    let here = Here::new();
    let books = here.books();
    let _ledger = here.start(&books);
    let refused = Ledger::start(here.settings(), books, Vec::new(), no_head()).unwrap_err();
    assert!(matches!(refused, LedgerError::Locked { .. }), "{refused}");
    let us = format!("process {}", std::process::id());
    assert!(refused.to_string().contains(&us), "{refused}");
    let at_rest = export_at_rest(&here.settings(), None, false);
    assert!(matches!(at_rest, Err(LedgerError::Locked { .. })));
}

#[tokio::test]
async fn each_hour_is_exported_once_and_in_whole() {
    let began = hours::Hour::of(Timestamp::now());
    let turned = || hours::Hour::of(Timestamp::now()) != began;
    let here = Here::new();
    let books = here.books();
    let ledger = here.start(&books);
    session(&books, "vpce-1", 100);
    ledger.book_now().await.unwrap();
    let to = here.dir.path().join("shipped");
    let none = ledger.export(Some(to.clone()), false).await.unwrap();
    // Unless an hour turned just now.
    assert!(none.files.len() <= 1);
    let all = ledger.export(Some(to.clone()), true).await.unwrap();
    assert_eq!(none.files.len() + all.files.len(), 1);
    session(&books, "vpce-1", 11);
    ledger.book_now().await.unwrap();
    assert_eq!(
        ledger.export(Some(to.clone()), false).await.unwrap().rows,
        0,
        "what came later is in an hour that is not over"
    );
    // An hour that has not begun is not exported, however often one asks: the books would run ahead of the time.
    for _ in 0..3 {
        let again = ledger.export(Some(to.clone()), true).await.unwrap();
        assert!(turned() || (again.rows, again.ahead) == (0, true));
    }
    let mut bytes = 0;
    for entry in fs::read_dir(&to).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        assert!(
            name.starts_with("usage-relay-1-20") && name.ends_with("Z.csv"),
            "{name}"
        );
        let mut csv = csv::Reader::from_path(&path).unwrap();
        for row in csv.deserialize::<Row>() {
            let row = row.unwrap();
            assert_eq!((&*row.endpoint, &*row.relay), ("vpce-1", "relay-1"));
            bytes += row.bytes_to_upstream;
        }
    }
    assert!(turned() || bytes == 100, "{bytes}");
    assert_eq!(total(&ledger).await.2, 111);
}

#[test]
fn an_hour_that_was_sealed_when_the_process_died_is_exported_by_the_next() {
    let here = Here::new();
    let settings = here.settings();
    fs::create_dir_all(&settings.state_dir).unwrap();
    let mut store = Store::open(&here.path(), "relay-1", &Endpoints::default()).unwrap();
    store
        .book(at(NOON), &batch(7, &[slot(0, "vpce-1", 3)]))
        .unwrap();
    store.seal(at(NOON), true).unwrap();
    let booked = store
        .book(at(NOON), &batch(7, &[slot(0, "vpce-1", 4)]))
        .unwrap();
    assert_eq!(booked.hour.unwrap().to_string(), "2026-11-21T13:00:00Z");
    drop(store);
    // Another's file has the name of the second: it stays.
    let taken = settings
        .state_dir
        .join("export/usage-relay-1-20261121T13Z.csv");
    fs::create_dir_all(taken.parent().unwrap()).unwrap();
    fs::write(&taken, "another relay's").unwrap();
    let exported = export_at_rest(&settings, None, true).unwrap().unwrap();
    assert_eq!(fs::read_to_string(&taken).unwrap(), "another relay's");
    let names: Vec<_> = exported
        .files
        .iter()
        .map(|file| file.file_name().unwrap().to_str().unwrap())
        .collect();
    let expected = [
        "usage-relay-1-20261121T12Z.csv",
        "usage-relay-1-20261121T13Z-2.csv",
    ];
    assert_eq!(names, expected);
    let text = fs::read_to_string(&exported.files[0]).unwrap();
    let line = "2026-11-21T12:00:00Z,vpce-1,,,,l,u,3,3,0,3,6,4.500,,relay-1";
    assert_eq!(text, format!("{}\n{line}\n", COLUMNS.join(",")));
    let again = export_at_rest(&settings, None, true).unwrap().unwrap();
    assert_eq!(again, Exported::default());
}

#[test]
fn a_ledger_at_rest_is_read_without_leaving_anything_behind() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = store(&dir);
    store
        .book(at(NOON), &batch(7, &[slot(0, "vpce-1", 3)]))
        .unwrap();
    let files = || {
        let mut names: Vec<_> = fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        names.sort();
        names
    };
    store.close();
    assert_eq!(files(), [FILE]);
    let reading = Reading::open(dir.path()).unwrap();
    assert_eq!(
        reading.report(&Query::default(), soon()).unwrap()[0].opened,
        3
    );
    assert_eq!(files(), [FILE]);
    // A relay comes while it is read.
    let mut store = super::store_tests::store(&dir);
    store
        .book(at(NOON), &batch(7, &[slot(0, "vpce-1", 4)]))
        .unwrap();
    store.close();
    let refused = reading.report(&Query::default(), soon()).unwrap_err();
    assert_eq!(refused.kind, Kind::Busy);
}

#[test]
fn a_ledger_is_read_as_a_copy_with_what_is_only_in_its_log_of_changes() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = store(&dir);
    store
        .book(at(NOON), &batch(7, &[slot(0, "vpce-1", 3)]))
        .unwrap();
    let copied = tempfile::tempdir().unwrap();
    for name in [FILE, "ledger.db-wal"] {
        fs::copy(dir.path().join(name), copied.path().join(name)).unwrap();
    }
    let reading = Reading::open_copy(copied.path().join(FILE)).unwrap();
    assert_eq!(
        reading.report(&Query::default(), soon()).unwrap()[0].opened,
        3
    );
    assert!(!copied.path().join("ledger.db-shm").exists());
}

#[test]
fn a_missing_ledger_says_where_it_was_looked_for() {
    let dir = tempfile::tempdir().unwrap();
    let refused = Reading::open(dir.path()).unwrap_err();
    assert_eq!(refused.kind, Kind::CannotOpen);
    assert!(refused.to_string().contains("ledger.db"), "{refused}");
}

fn hours_of(dir: &TempDir, booked: &[(&str, &str, u64)]) -> Store {
    let mut store = store(dir);
    for (place, (time, endpoint, opened)) in (0..).zip(booked) {
        store
            .book(at(time), &batch(7, &[slot(place, endpoint, *opened)]))
            .unwrap();
    }
    store
}

#[test]
fn a_report_is_cut_at_hours_and_added_up_by_what_is_asked() {
    let dir = tempfile::tempdir().unwrap();
    let booked = [
        ("2026-10-31T23:10:00Z", "vpce-1", 1),
        ("2026-11-01T00:00:00Z", "vpce-1", 2),
        ("2026-11-01T00:30:00Z", "vpce-2", 4),
        ("2026-11-02T05:00:00Z", "vpce-1", 8),
    ];
    let store = hours_of(&dir, &booked);
    let ask = |since: Option<&str>, until: Option<&str>, by: &[By]| {
        let query = Query {
            since: since.map(at),
            until: until.map(at),
            by: by.to_vec(),
        };
        let rows = report::report(&store.connection, &store.path, &query, soon()).unwrap();
        let short = |row: Row| format!("{} {} {}", row.period, row.endpoint, row.opened);
        rows.into_iter().map(short).collect::<Vec<_>>()
    };
    assert_eq!(ask(None, None, &[]), ["  15"]);
    assert_eq!(
        ask(None, None, &[By::Endpoint]),
        [" vpce-1 11", " vpce-2 4"]
    );
    let months = ["2026-10 vpce-1 1", "2026-11 vpce-1 10", "2026-11 vpce-2 4"];
    assert_eq!(ask(None, None, &[By::Month, By::Endpoint]), months);
    let days = ["2026-10-31  1", "2026-11-01  6", "2026-11-02  8"];
    assert_eq!(ask(None, None, &[By::Day, By::Month]), days);
    // From the hour that contains it, to those that begin before.
    assert_eq!(ask(Some("2026-11-01T00:59:00Z"), None, &[]), ["  14"]);
    assert_eq!(ask(None, Some("2026-11-01T00:00:00Z"), &[]), ["  1"]);
    assert_eq!(ask(None, Some("2026-11-01T00:00:01Z"), &[]), ["  7"]);
    let none: [&str; 0] = [];
    assert_eq!(ask(Some("2027-01-01T00:00:00Z"), None, &[]), none);
    assert_eq!(ask(Some(NOON), Some("2026-11-01T00:00:00Z"), &[]), none);
}

#[test]
fn a_report_that_takes_too_long_ends() {
    let dir = tempfile::tempdir().unwrap();
    let slots: Vec<_> = (0..5_000)
        .map(|n| slot(n, &format!("vpce-{n}"), 1))
        .collect();
    let mut store = store(&dir);
    store.book(at(NOON), &batch(7, &slots)).unwrap();
    let query = Query::default();
    let now = Instant::now();
    let ended = report::report(&store.connection, &store.path, &query, now).unwrap_err();
    assert_eq!(ended.kind, Kind::TooMuch);
    assert!(ended.to_string().contains("shorter time"), "{ended}");
}

#[test]
fn words_of_the_command_line_are_those_of_by() {
    for by in By::ALL {
        assert_eq!(by.name().parse(), Ok(by));
        assert_eq!(
            serde_json::to_string(&by).unwrap(),
            format!("{:?}", by.name())
        );
    }
    assert!("week".parse::<By>().unwrap_err().contains("month"));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// The query of the README, which is there for everybody who would rather ask the file, gives the report.
    #[test]
    fn sqlite_gives_the_same_as_the_report(
        booked in prop::collection::vec((0i64..2000, 0u8..4, 0u8..3, 1u64..1000), 0..40),
        rolled in 0..50,
    ) {
        let dir = tempfile::tempdir().unwrap();
        let mut store = store(&dir);
        for (place, (hour, endpoint, upstream, opened)) in (0..).zip(booked) {
            let mut slot = slot(place, &format!("vpce-{endpoint}"), opened);
            slot.totals.key.upstream = format!("u{upstream}").into();
            slot.totals.counters.connection_ms += 333;
            let time = at(NOON) + jiff::SignedDuration::from_hours(hour);
            store.book(time, &batch(7, &[slot])).unwrap();
        }
        for _ in 0..rolled {
            store.roll(at(NOON) + jiff::SignedDuration::from_hours(1500)).unwrap();
        }
        let mut statement = store.connection.prepare(report::BY_ENDPOINT_AND_MONTH).unwrap();
        let asked = statement.query_map([], |row| {
            let number = |column| row.get::<_, i64>(column).map(i64::cast_unsigned);
            Ok(Row {
                period: row.get(0)?,
                endpoint: row.get(1)?,
                consumer: row.get(2)?,
                name: row.get(3)?,
                account: row.get(4)?,
                listener: row.get(5)?,
                upstream: row.get(6)?,
                opened: number(7)?,
                closed: number(8)?,
                refused: number(9)?,
                bytes_to_upstream: number(10)?,
                bytes_to_client: number(11)?,
                connection_seconds: row.get::<_, String>(12)?.parse().unwrap(),
                tags: row.get(13)?,
                relay: row.get(14)?,
            })
        });
        let asked: Vec<Row> = asked.unwrap().map(Result::unwrap).collect();
        prop_assert_eq!(asked, rows(&store, &[By::Endpoint, By::Month]));
    }
}

#[test]
fn a_handle_that_is_dropped_lets_the_directory_go() {
    let here = Here::new();
    let books = here.books();
    runtime().block_on(async {
        let ledger = here.start(&books);
        session(&books, "vpce-1", 1);
        ledger.book_now().await.unwrap();
    });
    until_free(&here);
}

#[test]
fn an_export_that_was_killed_writes_its_file_again_and_no_second_one() {
    let here = Here::new();
    let settings = here.settings();
    fs::create_dir_all(&settings.state_dir).unwrap();
    let mut store = Store::open(&here.path(), "relay-1", &Endpoints::default()).unwrap();
    store
        .book(at(NOON), &batch(7, &[slot(0, "vpce-1", 3)]))
        .unwrap();
    store.close();
    let first = export_at_rest(&settings, None, true).unwrap().unwrap();
    let connection = rusqlite::Connection::open(here.path()).unwrap();
    let unmark = "UPDATE exports SET exported = NULL";
    connection.execute(unmark, []).unwrap();
    let again = export_at_rest(&settings, None, true).unwrap().unwrap();
    assert_eq!(again.files, first.files);
}

#[test]
fn a_ledger_without_a_byte_is_none_yet() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join(FILE), "").unwrap();
    let refused = Reading::open(dir.path()).unwrap_err();
    assert_eq!(refused.kind, Kind::CannotOpen);
    assert!(refused.to_string().contains("no ledger"), "{refused}");
}
