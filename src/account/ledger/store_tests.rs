//! Bookings one by one: what each adds, to which hour, and what is taken away again.

use std::time::{Duration, Instant};

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
        ledger: 0,
        whole: true,
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

pub(super) fn number(store: &Store, sql: &str) -> i64 {
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
fn what_is_booked_to_an_hour_that_is_in_its_day_already_goes_to_both() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = store(&dir);
    let mut book = |time: &str, opened: u64| {
        store
            .book(at(time), &batch(7, &[slot(0, "vpce-1", opened)]))
            .unwrap();
        while store.roll(at(time)).unwrap() {}
    };
    book("2026-11-20T12:00:00Z", 1);
    book("2026-11-22T12:00:00Z", 3); // now the 20th is in days
    book("2026-11-20T12:30:00Z", 7); // the clock went back
    book("2026-11-20T15:30:00Z", 15); // to an hour that was none
    book("2026-11-22T12:00:00Z", 31);
    let by_day = "SELECT opened FROM days WHERE id = 1";
    assert_eq!(number(&store, by_day), 1 + 4 + 8);
    let days: Vec<_> = rows(&store, &[By::Day])
        .into_iter()
        .map(|row| (row.period, row.opened))
        .collect();
    let expected = [("2026-11-20", 13), ("2026-11-22", 18)];
    assert_eq!(days, expected.map(|(day, n)| (day.to_owned(), n)));
    let by_view = "SELECT sum(opened) FROM usage_by_day";
    assert_eq!(number(&store, by_view), 31);
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
    let first_kept = Hour::of(at("2026-10-22T00:00:00Z")); // by whole days
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
            policy: Default::default(),
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
