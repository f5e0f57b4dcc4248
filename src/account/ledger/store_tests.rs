//! What is booked is what was counted: never twice, never less, never negative, whatever happens in between.

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use tempfile::TempDir;

use super::hours::Hour;
use super::report::{By, Query, Row, report};
use super::store::*;
use super::trouble::Kind;
use super::*;
use crate::account::*;
use crate::config::{EndpointEntry, Endpoints};

pub(super) const NOON: &str = "2026-11-21T12:00:00Z";

pub(super) fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

pub(super) fn soon() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

pub(super) fn key(endpoint: &str) -> AccountKey {
    AccountKey {
        listener: "l".into(),
        endpoint: endpoint.into(),
        consumer: "".into(),
        upstream: "u".into(),
    }
}

/// A slot of the first generation: `opened` connections, all of them closed, and a byte each way for each.
pub(super) fn slot(place: u32, endpoint: &str, opened: u64) -> SlotTotals {
    let mut counters = Counters {
        opened,
        bytes: [opened, 2 * opened],
        connection_ms: opened * 1500,
        ..Counters::default()
    };
    counters.closed[CloseReason::Completed as usize] = opened;
    SlotTotals {
        slot: place,
        generation: 1,
        totals: AccountTotals {
            key: key(endpoint),
            counters,
            peak: 1,
        },
        booked: Counters::default(),
    }
}

pub(super) fn batch(file: u64, slots: &[SlotTotals]) -> Batch<'_> {
    Batch {
        file,
        slots,
        finished: false,
        anchor: None,
    }
}

pub(super) fn store(dir: &TempDir) -> Store {
    Store::open(&dir.path().join(FILE), "relay-1", &Endpoints::default()).unwrap()
}

pub(super) fn rows(store: &Store, by: &[By]) -> Vec<Row> {
    let query = Query {
        by: by.to_vec(),
        ..Query::default()
    };
    report(&store.connection, &store.path, &query, soon()).unwrap()
}

fn number(store: &Store, sql: &str) -> i64 {
    store
        .connection
        .query_row(sql, [], |row| row.get(0))
        .unwrap()
}

#[test]
fn a_booking_adds_what_is_new_and_a_second_one_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = store(&dir);
    let slots = [slot(0, "vpce-1", 3), slot(1, "vpce-2", 5)];
    let booked = store.book(at(NOON), &batch(7, &slots)).unwrap();
    assert_eq!((booked.accounts, booked.marks.len()), (2, 2));
    assert_eq!(booked.marks[0], (0, 1, slots[0].totals.counters));
    // The same again, as after a crash between the commit and the counter file's word of it.
    let again = store.book(at(NOON), &batch(7, &slots)).unwrap();
    assert_eq!((again.accounts, again.marks.len()), (0, 2));
    let [one, two] = &rows(&store, &[By::Endpoint])[..] else {
        panic!("two rows")
    };
    assert_eq!((&*one.endpoint, one.opened, one.closed), ("vpce-1", 3, 3));
    assert_eq!((two.bytes_to_upstream, two.bytes_to_client), (5, 10));
    assert_eq!(two.connection_seconds, 7.5);
    assert_eq!(one.relay, "relay-1");
}

#[test]
fn nothing_new_writes_nothing_and_what_changed_is_the_difference() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = store(&dir);
    let mut slots = [slot(0, "vpce-1", 3)];
    let booked = store.book(at(NOON), &batch(7, &slots)).unwrap();
    slots[0].booked = booked.marks[0].2;
    let idle = store.book(at(NOON), &batch(7, &slots)).unwrap();
    assert_eq!(idle.hour, None);
    slots[0].totals = slot(0, "vpce-1", 4).totals;
    slots[0].totals.peak = 9;
    let booked = store.book(at("2026-11-21T13:00:00Z"), &batch(7, &slots));
    assert_eq!(booked.unwrap().accounts, 1);
    let periods: Vec<_> = rows(&store, &[By::Hour])
        .into_iter()
        .map(|row| (row.period, row.opened))
        .collect();
    let expected = [("2026-11-21T12:00:00Z", 3), ("2026-11-21T13:00:00Z", 1)];
    assert_eq!(periods, expected.map(|(hour, n)| (hour.to_owned(), n)));
    assert_eq!(number(&store, "SELECT peak FROM usage WHERE opened = 1"), 9);
}

#[test]
fn reasons_are_booked_by_name_and_add_up_to_the_row() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = store(&dir);
    let mut slots = [slot(0, "vpce-1", 3)];
    let counters = &mut slots[0].totals.counters;
    counters.opened += 2;
    counters.closed[CloseReason::Crashed as usize] = 2;
    counters.refused[Refusal::ListenerLimit as usize] = 4;
    counters.refused[HEADER] = 1;
    store.book(at(NOON), &batch(7, &slots)).unwrap();
    let mut statement = store
        .connection
        .prepare("SELECT what || ' ' || reason, count FROM reasons ORDER BY 1")
        .unwrap();
    let found = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)));
    let found: Vec<(String, i64)> = found.unwrap().map(Result::unwrap).collect();
    let expected = [
        ("closed completed", 3),
        ("closed crashed", 2),
        ("refused header", 1),
        ("refused listener_limit", 4),
    ];
    assert_eq!(found, expected.map(|(what, n)| (what.to_owned(), n)));
    let sums = "SELECT closed * 100 + refused FROM usage";
    assert_eq!(number(&store, sums), 505);
}

#[test]
fn a_slot_that_is_used_again_begins_at_zero_and_its_former_life_is_over() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = store(&dir);
    let first = slot(0, "vpce-1", 10);
    store
        .book(at(NOON), &batch(7, std::slice::from_ref(&first)))
        .unwrap();
    let mut second = slot(0, "vpce-2", 3);
    second.generation = 2;
    store.book(at(NOON), &batch(7, &[second])).unwrap();
    store.book(at(NOON), &batch(7, &[first])).unwrap(); // a belated word of the former life
    let opened: Vec<_> = rows(&store, &[By::Endpoint])
        .iter()
        .map(|row| row.opened)
        .collect();
    assert_eq!(opened, [10, 3]);
}

#[test]
fn a_ledger_without_marks_goes_by_the_counter_file() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = store(&dir);
    let mut slots = [slot(0, "vpce-1", 10)];
    slots[0].booked = slot(0, "", 7).totals.counters;
    store.book(at(NOON), &batch(7, &slots)).unwrap();
    assert_eq!(rows(&store, &[])[0].opened, 3);
}

#[test]
fn a_number_that_became_smaller_is_not_booked_and_not_booked_again() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = store(&dir);
    for opened in [10, 4, 10, 11] {
        store
            .book(at(NOON), &batch(7, &[slot(0, "vpce-1", opened)]))
            .unwrap();
    }
    assert_eq!(rows(&store, &[])[0].opened, 11);
}

#[test]
fn what_was_open_in_memory_that_is_gone_is_closed_as_crashed_once() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = store(&dir);
    let mut open = slot(0, "vpce-1", 10);
    open.totals.counters.closed[CloseReason::Completed as usize] = 7;
    store.book(at(NOON), &batch(7, &[open])).unwrap();
    store
        .book(at(NOON), &batch(8, &[slot(0, "vpce-2", 1)]))
        .unwrap();
    assert_eq!(store.forget_all_but(at(NOON), &[8]).unwrap(), 3);
    assert_eq!(store.forget_all_but(at(NOON), &[8]).unwrap(), 0);
    let row = &rows(&store, &[])[0];
    assert_eq!((row.opened, row.closed), (11, 11));
    let crashed = "SELECT count FROM reasons WHERE reason = 'crashed'";
    assert_eq!(number(&store, crashed), 3);
    assert_eq!(number(&store, "SELECT count(*) FROM marks"), 1);
}

#[test]
fn a_file_that_was_finished_is_forgotten_without_a_word() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = store(&dir);
    let slots = [slot(0, "vpce-1", 10)];
    let last = Batch {
        finished: true,
        ..batch(7, &slots)
    };
    store.book(at(NOON), &last).unwrap();
    assert_eq!(store.forget_all_but(at(NOON), &[]).unwrap(), 0);
    let left = "SELECT (SELECT count(*) FROM marks) + (SELECT count(*) FROM files)";
    assert_eq!(number(&store, left), 0);
}

#[test]
fn a_clock_that_was_never_set_books_nothing_and_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = store(&dir);
    let slots = [slot(0, "vpce-1", 10)];
    let refused = store.book(at("1970-01-01T00:01:00Z"), &batch(7, &slots));
    assert_eq!(refused.unwrap_err().kind, Kind::Clock);
    store.book(at(NOON), &batch(7, &slots)).unwrap();
    assert_eq!(rows(&store, &[])[0].opened, 10);
}

#[test]
fn a_clock_that_goes_back_books_to_the_hour_it_says_unless_that_was_exported() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = store(&dir);
    let mut book = |hour: &str, opened: u64| {
        let booked = store.book(at(hour), &batch(7, &[slot(0, "vpce-1", opened)]));
        booked.unwrap().hour.unwrap().to_string()
    };
    assert_eq!(book("2026-11-21T12:30:00Z", 1), "2026-11-21T12:00:00Z");
    assert_eq!(book("2026-11-21T13:30:00Z", 2), "2026-11-21T13:00:00Z");
    assert_eq!(book("2026-11-21T12:10:00Z", 3), "2026-11-21T12:00:00Z");
    let sealed = store.seal(at("2026-11-21T14:00:00Z"), false).unwrap();
    assert_eq!(sealed, [Hour::of(at(NOON)), Hour::of(at(NOON)).next()]);
    let mut book = |hour: &str, opened: u64| {
        let booked = store.book(at(hour), &batch(7, &[slot(0, "vpce-1", opened)]));
        booked.unwrap().hour.unwrap().to_string()
    };
    assert_eq!(book("2026-11-21T12:10:00Z", 4), "2026-11-21T14:00:00Z");
    assert_eq!(book("2026-11-21T11:10:00Z", 5), "2026-11-21T11:00:00Z");
}

#[test]
fn old_hours_are_taken_away_a_step_at_a_time_and_their_accounts_with_them() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = store(&dir);
    let old: Vec<_> = (0..12_000)
        .map(|n| slot(n, &format!("vpce-{n}"), 1))
        .collect();
    store
        .book(at("2026-01-05T00:00:00Z"), &batch(7, &old))
        .unwrap();
    store
        .book(
            at("2026-11-20T12:00:00Z"),
            &batch(8, &[slot(0, "vpce-1", 2)]),
        )
        .unwrap();
    store.forget(7).unwrap();
    let keep = Duration::from_secs(30 * 24 * 3600);
    let mut steps = 1;
    let mut left = number(&store, "SELECT count(*) FROM hours");
    while store.prune(at(NOON), keep).unwrap() {
        steps += 1;
        let now = number(&store, "SELECT count(*) FROM hours");
        assert!(left - now <= 5_000, "{left} {now}");
        left = now;
        assert!(steps < 100);
    }
    assert!(steps >= 3, "{steps}");
    let all = "SELECT (SELECT count(*) FROM hours) * 1000000 + (SELECT count(*) FROM hour_reasons) * 1000 + (SELECT count(*) FROM accounts)";
    assert_eq!(number(&store, all), 1_001_001);
    assert_eq!(rows(&store, &[])[0].opened, 2);
    // Nothing is booked to hours that are taken away: it would be gone the next moment.
    let booked = store
        .book(
            at("2026-01-05T00:00:00Z"),
            &batch(8, &[slot(0, "vpce-1", 3)]),
        )
        .unwrap();
    let first_kept = Hour::of(at(NOON).checked_sub(keep).unwrap());
    assert_eq!(booked.hour, Some(first_kept));
    assert!(!store.prune(at(NOON), keep).unwrap());
    assert_eq!(rows(&store, &[])[0].opened, 3);
}

#[test]
fn an_account_whose_slot_lives_outlives_its_hours() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = store(&dir);
    let mut slots = [slot(0, "vpce-1", 1)];
    store
        .book(at("2026-01-05T00:00:00Z"), &batch(7, &slots))
        .unwrap();
    let keep = Duration::from_secs(3600);
    store.prune(at(NOON), keep).unwrap();
    slots[0].totals = slot(0, "vpce-1", 5).totals;
    store.book(at(NOON), &batch(7, &slots)).unwrap();
    let row = &rows(&store, &[By::Endpoint])[0];
    assert_eq!((&*row.endpoint, row.opened), ("vpce-1", 4));
}

fn named(name: &str) -> Endpoints {
    Endpoints {
        entries: vec![EndpointEntry {
            pattern: "vpce-1*".into(),
            name: Some(name.into()),
            account: Some("111122223333".into()),
            tags: Some(vec!["a".into(), "b".into()]),
        }],
    }
}

#[test]
fn accounts_have_the_names_of_the_configuration_of_today() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(FILE);
    let mut store = Store::open(&path, "relay-1", &named("before")).unwrap();
    let slots: Vec<_> = (0..2_500)
        .map(|n| slot(n, &format!("vpce-{n}"), 1))
        .collect();
    store.book(at(NOON), &batch(7, &slots)).unwrap();
    let count = |store: &Store, name: &str| {
        let by_name = format!(
            "SELECT count(*) FROM usage WHERE name = '{name}' AND account = '111122223333' AND tags = 'a b'"
        );
        number(store, &by_name)
    };
    assert_eq!(count(&store, "before"), 1 + 10 + 100 + 1000);
    store.close();
    let mut store = Store::open(&path, "relay-1", &named("after")).unwrap();
    while store.name().unwrap() {}
    assert_eq!((count(&store, "before"), count(&store, "after")), (0, 1111));
    store.close();
    let store = Store::open(&path, "relay-1", &named("after")).unwrap();
    assert_eq!(store.naming, None); // nothing to do twice
}

#[test]
fn a_reader_that_never_ends_stops_the_booking_before_it_fills_the_disk() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = store(&dir);
    store.wal = WalBounds {
        take_up: 256 << 10,
        most: 512 << 10,
    };
    store
        .connection
        .busy_timeout(Duration::from_millis(10))
        .unwrap();
    let mut slots: Vec<_> = (0..2_000)
        .map(|n| slot(n, &format!("vpce-{n}"), 1))
        .collect();
    store.book(at(NOON), &batch(7, &slots)).unwrap();
    let reader = read::Reading::open(dir.path()).unwrap();
    reader
        .connection()
        .execute_batch("BEGIN; SELECT count(*) FROM hours;")
        .unwrap();
    let mut trouble = None;
    for round in 2..200 {
        for slot in &mut slots {
            slot.totals.counters.opened = round;
        }
        if let Err(refused) = store.book(at(NOON), &batch(7, &slots)) {
            trouble = Some(refused);
            break;
        }
    }
    let trouble = trouble.expect("a bound");
    assert_eq!(trouble.kind, Kind::Reader, "{trouble}");
    assert!(store.size() < 4 << 20, "{}", store.size());
    reader.connection().execute_batch("COMMIT").unwrap();
    store.book(at(NOON), &batch(7, &slots)).unwrap();
    let opened = slots.iter().map(|slot| slot.totals.counters.opened);
    assert_eq!(rows(&store, &[])[0].opened, opened.sum::<u64>());
}

#[test]
fn reading_never_keeps_a_booking_waiting() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = store(&dir);
    store
        .book(at(NOON), &batch(7, &[slot(0, "vpce-1", 1)]))
        .unwrap();
    let reader = read::Reading::open(dir.path()).unwrap();
    reader.connection().execute_batch("BEGIN").unwrap();
    let seen = |reader: &read::Reading| reader.report(&Query::default(), soon());
    let count = "SELECT sum(opened) FROM hours";
    let count = || -> i64 {
        reader
            .connection()
            .query_row(count, [], |row| row.get(0))
            .unwrap()
    };
    assert_eq!(count(), 1);
    store.connection.busy_timeout(Duration::ZERO).unwrap();
    store
        .book(at(NOON), &batch(7, &[slot(0, "vpce-1", 2)]))
        .unwrap();
    assert_eq!(count(), 1, "what it reads is of one moment");
    reader.connection().execute_batch("COMMIT").unwrap();
    assert_eq!(seen(&reader).unwrap()[0].opened, 2);
}

/// The real thing beside its model: a counter file with slots that are used again, a ledger on the disk, and all that may happen to both.
struct World {
    dir: TempDir,
    store: Option<Store>,
    now: Timestamp,
    file: u64,
    slots: Vec<SlotTotals>,
    /// Everything that was ever counted, by endpoint.
    counted: BTreeMap<String, Counters>,
    /// What ledgers have that were set aside.
    aside: BTreeMap<String, [u64; 6]>,
    ledgers: u32,
}

#[derive(Debug, Clone)]
enum Event {
    /// Counting on an account.
    Count { slot: u8, endpoint: u8, n: u8 },
    /// A booking that goes well.
    Book,
    /// The process is killed before the commit, between it and the counter file's word of it, or while nothing is booked; its sessions are cut.
    Killed { after_commit: bool, idle: bool },
    /// A booking that fails: another program holds the ledger.
    Fails,
    /// The machine is switched off: the counter file is gone, what was not booked is lost.
    PowerCut,
    /// The ledger is found damaged.
    SetAside,
    /// An account without sessions that is wholly booked leaves memory; its slot is used again.
    Reuse { slot: u8, endpoint: u8 },
    /// Time goes on, or back.
    Clock { hours: i8 },
    /// Hours are exported.
    Export { all: bool },
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        6 => (0u8..4, 0u8..3, 1u8..20).prop_map(|(slot, endpoint, n)| Event::Count { slot, endpoint, n }),
        4 => Just(Event::Book),
        2 => (any::<bool>(), any::<bool>()).prop_map(|(after_commit, idle)| Event::Killed { after_commit, idle }),
        1 => Just(Event::Fails),
        1 => Just(Event::PowerCut),
        1 => Just(Event::SetAside),
        2 => (0u8..4, 0u8..3).prop_map(|(slot, endpoint)| Event::Reuse { slot, endpoint }),
        2 => (-3i8..5).prop_map(|hours| Event::Clock { hours }),
        1 => any::<bool>().prop_map(|all| Event::Export { all }),
    ]
}

fn sums(counters: &Counters) -> [u64; 6] {
    [
        counters.opened,
        counters.closed(),
        counters.refused(),
        counters.bytes[0],
        counters.bytes[1],
        counters.connection_ms,
    ]
}

fn summed(store: &Store) -> BTreeMap<String, [u64; 6]> {
    let rows = rows(store, &[By::Endpoint]).into_iter();
    rows.map(|row| {
        let ms = (row.connection_seconds * 1000.0).round() as u64;
        let numbers = [
            row.opened,
            row.closed,
            row.refused,
            row.bytes_to_upstream,
            row.bytes_to_client,
            ms,
        ];
        (row.endpoint, numbers)
    })
    .collect()
}

fn add(to: &mut BTreeMap<String, [u64; 6]>, from: BTreeMap<String, [u64; 6]>) {
    for (endpoint, numbers) in from {
        let sums = to.entry(endpoint).or_default();
        sums.iter_mut().zip(numbers).for_each(|(sum, n)| *sum += n);
    }
}

impl World {
    fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
            store: None,
            now: at(NOON),
            file: 1,
            slots: Vec::new(),
            counted: BTreeMap::new(),
            aside: BTreeMap::new(),
            ledgers: 0,
        }
    }

    fn store(&mut self) -> &mut Store {
        let dir = &self.dir;
        self.store.get_or_insert_with(|| {
            let store = store(dir);
            store.connection.busy_timeout(Duration::ZERO).unwrap();
            // The disk is not what is tested, and the process does not die.
            store
                .connection
                .pragma_update(None, "synchronous", "OFF")
                .unwrap();
            store
        })
    }

    fn count(&mut self, place: u32, endpoint: u8, n: u64) {
        let endpoint = format!("vpce-{endpoint}");
        let found = self.slots.iter().position(|slot| slot.slot == place);
        let index = found.unwrap_or_else(|| {
            let mut fresh = slot(place, &endpoint, 0);
            fresh.totals.key = key(&endpoint);
            self.slots.push(fresh);
            self.slots.len() - 1
        });
        let slot = &mut self.slots[index];
        let mut more = Counters {
            opened: n,
            bytes: [n * 1000, n * 77],
            connection_ms: n * 13,
            ..Counters::default()
        };
        // Of those that are open, some close.
        let open = slot.totals.counters.active() + n;
        more.closed[n as usize % CloseReason::ALL.len()] = open / 2;
        more.refused[n as usize % REFUSED] = n / 3;
        slot.totals.counters = slot.totals.counters.plus(&more);
        let owner = slot.totals.key.endpoint.to_string();
        let total = self.counted.entry(owner).or_default();
        *total = total.plus(&more);
    }

    /// As a process does it; `told`: whether it lives long enough to tell the counter file.
    fn book(&mut self, told: bool) -> bool {
        let (now, file, slots) = (self.now, self.file, self.slots.clone());
        let Ok(booked) = self.store().book(now, &batch(file, &slots)) else {
            return false;
        };
        if told {
            for (place, generation, counters) in booked.marks {
                let slot = self.slots.iter_mut().find(|slot| slot.slot == place);
                let slot = slot.unwrap();
                assert_eq!(slot.generation, generation);
                slot.booked = counters;
            }
        }
        true
    }

    /// Sessions that are open are cut; the next process finds the file, books it and begins its own.
    fn recover(&mut self) {
        self.store = None;
        for slot in &mut self.slots {
            let active = slot.totals.counters.active();
            slot.totals.counters.closed[CloseReason::Crashed as usize] += active;
            let owner = slot.totals.key.endpoint.to_string();
            let total = self.counted.entry(owner).or_default();
            total.closed[CloseReason::Crashed as usize] += active;
        }
        let file = self.file;
        let now = self.now;
        assert_eq!(self.store().forget_all_but(now, &[file]).unwrap(), 0);
        assert!(self.book(true));
        self.store().forget(file).unwrap();
        self.file += 1;
        self.slots.clear();
    }

    fn power_cut(&mut self) {
        self.store = None;
        // What was not booked is lost, and what was open is closed.
        let mut crashed = 0;
        for slot in self.slots.drain(..) {
            let lost = slot.totals.counters.since(&slot.booked);
            let owner = slot.totals.key.endpoint.to_string();
            let total = self.counted.entry(owner).or_default();
            *total = total.since(&lost);
            total.closed[CloseReason::Crashed as usize] += slot.booked.active();
            crashed += slot.booked.active();
        }
        self.file += 1;
        let now = self.now;
        let told = self.store().forget_all_but(now, &[]).unwrap();
        // A ledger that was begun anew has no mark of what it did not book itself.
        assert!(told <= crashed);
        if told < crashed {
            assert!(self.ledgers > 0);
        }
    }

    fn happens(&mut self, event: Event) {
        match event {
            Event::Count { slot, endpoint, n } => self.count(slot.into(), endpoint, n.into()),
            Event::Book => assert!(self.book(true)),
            Event::Killed { after_commit, idle } => {
                if !idle && after_commit {
                    assert!(self.book(false));
                }
                self.recover();
            }
            Event::Fails => {
                drop(self.store().connection.execute_batch("SELECT 1"));
                let path = self.dir.path().join(FILE);
                let other = rusqlite::Connection::open(path).unwrap();
                other.execute_batch("BEGIN IMMEDIATE").unwrap();
                let nothing_to_do = self.slots.iter().all(|s| s.booked == s.totals.counters);
                assert!(!self.book(true) || nothing_to_do);
            }
            Event::PowerCut => {
                // A ledger begun anew knows nothing of what is open: what it does not know of it cannot close.
                if self.ledgers == 0 {
                    self.power_cut();
                }
            }
            Event::SetAside => {
                // Only what is marked in both is beyond doubt: a kill in the moment after the commit and damage at once would book that again.
                let had = summed(self.store());
                add(&mut self.aside, had);
                self.store = None;
                self.ledgers += 1;
                for suffix in ["", "-wal", "-shm"] {
                    let from = beside(&self.dir.path().join(FILE), suffix);
                    let to = beside(&from, &format!(".{}", self.ledgers));
                    let _ = fs::rename(from, to);
                }
            }
            Event::Reuse { slot, endpoint } => {
                let place = u32::from(slot);
                let found = self.slots.iter_mut().find(|slot| slot.slot == place);
                let Some(slot) = found else { return };
                let counters = slot.totals.counters;
                if counters.active() > 0 || counters != slot.booked {
                    return;
                }
                slot.generation += 1;
                slot.totals.counters = Counters::default();
                slot.booked = Counters::default();
                slot.totals.key = key(&format!("vpce-{endpoint}"));
            }
            Event::Clock { hours } => {
                self.now += jiff::SignedDuration::from_hours(hours.into());
            }
            Event::Export { all } => {
                let now = self.now;
                let before = summed(self.store());
                for hour in self.store().seal(now, all).unwrap() {
                    let file = self.dir.path().join("x.csv");
                    self.store().exported(now, hour, &[file]).unwrap();
                }
                assert_eq!(summed(self.store()), before);
            }
        }
    }

    fn check(&mut self) {
        assert!(self.book(true));
        let mut booked = summed(self.store());
        add(&mut booked, self.aside.clone());
        let counted: BTreeMap<_, _> = self
            .counted
            .iter()
            .map(|(endpoint, counters)| (endpoint.clone(), sums(counters)))
            .filter(|(_, sums)| sums.iter().any(|sum| *sum > 0))
            .collect();
        booked.retain(|_, sums| sums.iter().any(|sum| *sum > 0));
        assert_eq!(booked, counted);
        let store = self.store();
        let negative = "SELECT count(*) FROM hours WHERE min(opened, closed, refused, bytes_to_upstream, bytes_to_client, connection_ms) < 0";
        assert_eq!(number(store, negative), 0);
        let by_reason = "SELECT (SELECT sum(closed) + sum(refused) FROM hours) IS (SELECT sum(count) FROM hour_reasons) OR (SELECT coalesce(sum(closed) + sum(refused), 0) FROM hours) = 0";
        assert_eq!(number(store, by_reason), 1);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_the_ledgers_have_what_was_counted(events in prop::collection::vec(event(), 1..40)) {
        let mut world = World::new();
        for event in events {
            world.happens(event);
        }
        world.check();
    }
}
