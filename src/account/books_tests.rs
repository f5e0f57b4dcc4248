//! What the books promise whoever counts and whoever reads.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::books::{Books, Place};
use super::cache::Cache;
use super::limits::Limits;
use super::meter::{Meter, Retired};
use super::reason::{CloseReason, Direction, Refusal};
use super::totals::{AccountKey, AccountTotals, Counters, HEADER, OTHER, OVERFLOW};
use crate::proxy_protocol::header::DIRECT;
use crate::sys::clock::monotonic_ms;

/// By then the machine is stuck.
const BOUND: Duration = Duration::from_secs(120);

fn key(endpoint: &str) -> AccountKey {
    AccountKey {
        listener: "l".into(),
        endpoint: endpoint.into(),
        consumer: "".into(),
        upstream: "u".into(),
    }
}

fn books(max: usize) -> Books {
    Books::new(Place::Memory, &["l".into()], 2, Limits::of_most(max)).unwrap()
}

fn open(books: &Books, endpoint: &str, worker: usize) -> Meter {
    Meter::open(books.account(key(endpoint)), worker).unwrap()
}

#[test]
fn shards_of_all_workers_are_added_up() {
    let books = books(10);
    let first = open(&books, "vpce-1", 0);
    let second = open(&books, "vpce-1", 1);
    first.moved(Direction::ToUpstream, 5);
    second.moved(Direction::ToUpstream, 7);
    second.moved(Direction::ToClient, 1);
    first.close(CloseReason::Completed);
    let totals = &books.snapshot().accounts[0].counters;
    assert_eq!(
        (totals.opened, totals.active(), totals.bytes),
        (2, 1, [12, 1])
    );
    assert_eq!(totals.closed[CloseReason::Completed as usize], 1);
}

#[test]
fn a_meter_that_is_dropped_closes_with_error_once() {
    let books = books(10);
    drop(open(&books, "vpce-1", 0));
    open(&books, "vpce-1", 0).close(CloseReason::IdleTimeout);
    let totals = &books.snapshot().accounts[0].counters;
    assert_eq!((totals.opened, totals.active()), (2, 0));
    assert_eq!(totals.closed[CloseReason::Error as usize], 1);
    assert_eq!(totals.closed[CloseReason::IdleTimeout as usize], 1);
}

#[test]
fn refusals_are_counted_by_reason_and_refused_headers_beside_them() {
    let books = books(10);
    let account = books.account(key("vpce-1"));
    for index in [Refusal::NoRoute as usize, HEADER, HEADER] {
        account.refuse(1, index).unwrap();
    }
    let refused = books.snapshot().accounts[0].counters.refused;
    assert_eq!(
        (refused[Refusal::NoRoute as usize], refused[HEADER]),
        (1, 2)
    );
    assert_eq!(refused.iter().sum::<u64>(), 3);
}

#[test]
fn endpoints_beyond_the_bound_share_overflow_and_known_ones_keep_theirs() {
    let mut limits = Limits::of_most(2);
    limits.always.insert("named".into(), 1);
    let books = Books::new(Place::Memory, &["l".into()], 2, limits).unwrap();
    for id in ["a", "b", "c", "d", "a", DIRECT, "named"] {
        open(&books, id, 0).close(CloseReason::Completed);
    }
    let snapshot = books.snapshot();
    let accounts = snapshot.accounts.iter();
    let opened: Vec<_> = accounts
        .map(|account| (&*account.key.endpoint, account.counters.opened))
        .collect();
    let expected = [("a", 2), ("b", 1), (OVERFLOW, 2), (DIRECT, 1), ("named", 1)];
    assert_eq!(opened, expected);
    assert_eq!(snapshot.overflowed, 2);
}

#[test]
fn an_account_that_is_idle_leaves_and_what_it_came_to_stays_in_the_sum() {
    let books = books(10);
    let kept = books.account(key("a"));
    let meter = Meter::open(kept.clone(), 0).unwrap();
    meter.moved(Direction::ToClient, 7);
    let now = monotonic_ms();
    let let_go = |after| books.let_go(Duration::from_millis(100), now + after);
    assert_eq!(let_go(1000), 0, "it has a session");
    meter.close(CloseReason::Completed);
    assert_eq!(let_go(2000), 0, "it changed since it was last looked at");
    assert_eq!(let_go(2099), 0, "not for long enough");
    assert!(!kept.is_retired());
    assert_eq!(let_go(2100), 1);
    assert!(kept.is_retired());
    assert_eq!(kept.refuse(0, 0), Err(Retired));
    assert!(Meter::open(kept, 0).is_err());
    let snapshot = books.snapshot();
    assert_eq!(snapshot.accounts, []);
    let gone = &snapshot.gone[0];
    assert_eq!((&*gone.key.endpoint, &*gone.key.upstream), (OTHER, "u"));
    assert_eq!((gone.counters.opened, gone.counters.bytes), (1, [0, 7]));
    // Who returns begins at zero, in another generation.
    open(&books, "a", 1).close(CloseReason::Completed);
    let slots = books.slots(now);
    assert_eq!(
        (slots[0].generation, slots[0].totals.counters.opened),
        (2, 1)
    );
}

#[test]
fn the_peak_is_that_since_the_last_booking() {
    let books = books(10);
    let peak = || books.slots(monotonic_ms())[0].totals.peak;
    let first = open(&books, "a", 0);
    let second = open(&books, "a", 1);
    second.close(CloseReason::Completed);
    assert_eq!(peak(), 2);
    assert_eq!(peak(), 1, "one is still open");
    first.close(CloseReason::Completed);
    assert_eq!(peak(), 1, "it was, at the last booking");
    assert_eq!(peak(), 0);
}

#[test]
fn time_goes_on_while_a_connection_is_open_and_then_no_more() {
    let books = books(10);
    let before = monotonic_ms();
    let meter = open(&books, "a", 0);
    let after = monotonic_ms();
    let time = |now| books.slots(now)[0].totals.counters.connection_ms;
    let an_hour = before + 3_600_000;
    assert!((an_hour - after..=an_hour - before).contains(&time(an_hour)));
    assert_eq!(time(0), 0, "it cannot have been open for less");
    meter.close(CloseReason::Completed);
    assert!(time(an_hour) <= monotonic_ms() - before);
}

#[test]
fn a_hundred_thousand_endpoints_in_a_row_take_no_more_room_than_is_allowed() {
    let books = books(1000);
    let room = books.most_accounts();
    let mut now = monotonic_ms();
    let (mut slots, mut opened) = (HashSet::new(), 0);
    for n in 0..100_000 {
        open(&books, &format!("vpce-{n:017x}"), n % 2).close(CloseReason::Completed);
        if n % 700 == 0 {
            now += 10;
            slots.extend(books.slots(now).iter().map(|slot| slot.slot));
            books.let_go(Duration::from_millis(10), now);
            assert!(books.accounts() <= 1001, "{}", books.accounts());
        }
    }
    assert!(slots.iter().all(|slot| (*slot as usize) < room));
    let snapshot = books.snapshot();
    assert!(snapshot.overflowed > 0);
    for totals in snapshot.accounts.iter().chain(&snapshot.gone) {
        opened += totals.counters.opened;
    }
    assert_eq!(opened, 100_000, "nothing is lost on the way");
    assert_eq!(snapshot.gone.len(), 1);
}

/// Counts until it is told to stop; says how often.
fn count(books: &Books, worker: usize, stop: &AtomicBool) -> u64 {
    let mut cache = Cache::new(100);
    for n in 0.. {
        if stop.load(Ordering::Relaxed) {
            return n;
        }
        let id = ["a", "b", "c"][n as usize / 64 % 3]; // the others have a rest
        let kept = || cache.get(id, None).cloned();
        if kept().is_none_or(|account| account.refuse(worker, HEADER).is_err()) {
            books.refuse(key(id), worker, HEADER);
        }
        let meter = match kept().map(|account| Meter::open(account, worker)) {
            Some(Ok(meter)) => meter,
            Some(Err(Retired)) | None => {
                let (meter, account) = books.open(key(id), worker);
                cache.keep(id, None, account);
                meter
            }
        };
        meter.moved(Direction::ToUpstream, 3);
        meter.close(CloseReason::Completed);
    }
    0
}

#[test]
fn nothing_is_lost_where_accounts_leave_while_workers_hold_on_to_them() {
    let books = books(4);
    let (stop, deadline) = (AtomicBool::new(false), Instant::now() + BOUND);
    let (left, counted) = std::thread::scope(|scope| {
        let workers = [0, 1].map(|worker| {
            scope.spawn({
                let (books, stop) = (&books, &stop);
                move || count(books, worker, stop)
            })
        });
        let mut left = 0;
        while left < 60 && Instant::now() < deadline {
            left += books.let_go(Duration::ZERO, monotonic_ms());
        }
        stop.store(true, Ordering::Relaxed);
        let counted = workers.into_iter().map(|worker| worker.join().unwrap());
        (left, counted.sum::<u64>())
    });
    assert!(left >= 60, "{left}");
    let snapshot = books.snapshot();
    let mut all = Counters::default();
    for totals in snapshot.accounts.iter().chain(&snapshot.gone) {
        all = all.plus(&totals.counters);
    }
    assert_eq!(
        (all.opened, all.closed(), all.refused(), all.bytes),
        (counted, counted, counted, [3 * counted, 0])
    );
}

#[test]
fn whoever_reads_while_workers_count_sees_each_connection_whole() {
    let books = books(4);
    let (stop, deadline) = (AtomicBool::new(false), Instant::now() + BOUND);
    let counted = std::thread::scope(|scope| {
        let workers = [0, 1].map(|worker| {
            scope.spawn({
                let (books, stop) = (&books, &stop);
                move || count(books, worker, stop)
            })
        });
        let (mut seen, mut last) = (0, [0; 3]);
        while seen < 2000 && Instant::now() < deadline {
            for slot in books.slots(monotonic_ms()) {
                let counters = slot.totals.counters;
                assert!(counters.opened - counters.closed() <= 2, "{counters:?}");
                assert!(counters.connection_ms < 60_000, "{counters:?}");
                let last = &mut last[slot.slot as usize];
                assert!(counters.opened >= *last);
                (seen, *last) = (seen + 1, counters.opened);
            }
        }
        stop.store(true, Ordering::Relaxed);
        assert!(seen >= 2000, "{seen}");
        let counted = workers.into_iter().map(|worker| worker.join().unwrap());
        counted.sum::<u64>()
    });
    let opened = |account: &AccountTotals| account.counters.opened;
    let accounts = books.snapshot().accounts;
    assert_eq!(accounts.iter().map(opened).sum::<u64>(), counted);
}
