//! Disks that are full, take no writing, or hold something else than was written: relaying goes on, and nothing is lost that memory holds.

use std::fs::{self, OpenOptions};
use std::io::{Seek, SeekFrom, Write};

use super::store_tests::{NOON, at, batch, rows, slot, store};
use super::tests::{Here, no_head, session, total, until_free};
use super::*;
use crate::account::leftover::find;

fn many(opened: u64) -> Vec<crate::account::SlotTotals> {
    (0..2_000)
        .map(|n| slot(n, &format!("vpce-{n}"), opened))
        .collect()
}

#[test]
fn a_full_disk_books_nothing_and_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = store(&dir);
    store.book(at(NOON), &batch(7, &many(1)[..10])).unwrap();
    let bound = |store: &Store, pages: i64| {
        let set = store
            .connection
            .pragma_update_and_check(None, "max_page_count", pages, |_| Ok(()));
        set.unwrap();
    };
    bound(&store, 1); // what it has: it can only be set to that
    let refused = store.book(at(NOON), &batch(7, &many(5))).unwrap_err();
    assert_eq!(refused.kind, Kind::Full, "{refused}");
    assert!(refused.to_string().contains("make room"), "{refused}");
    assert_eq!(rows(&store, &[])[0].opened, 10, "all or nothing");
    bound(&store, 1 << 30);
    store.book(at(NOON), &batch(7, &many(5))).unwrap();
    assert_eq!(rows(&store, &[])[0].opened, 10_000);
}

#[test]
fn a_disk_that_takes_no_writing_books_nothing_and_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = store(&dir);
    store.book(at(NOON), &batch(7, &many(1))).unwrap();
    let read_only = |store: &Store, on: bool| {
        let set = store.connection.pragma_update(None, "query_only", on);
        set.unwrap();
    };
    read_only(&store, true);
    let refused = store.book(at(NOON), &batch(7, &many(2))).unwrap_err();
    assert_eq!(refused.kind, Kind::ReadOnly, "{refused}");
    read_only(&store, false);
    store.book(at(NOON), &batch(7, &many(2))).unwrap();
    assert_eq!(rows(&store, &[])[0].opened, 4_000);
}

#[tokio::test]
async fn a_ledger_that_somebody_holds_is_booked_when_he_lets_go() {
    let here = Here::new();
    let books = here.books();
    let ledger = here.start(&books);
    session(&books, "vpce-1", 1);
    ledger.book_now().await.unwrap();
    let other = rusqlite::Connection::open(here.path()).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    session(&books, "vpce-1", 10);
    let Err(AskError::Trouble(refused)) = ledger.book_now().await else {
        panic!("it is held");
    };
    assert_eq!(refused.kind, Kind::Busy, "{refused}");
    let status = ledger.status();
    let failing = status.failing.expect("it fails");
    assert_eq!((failing.kind, status.errors), (Kind::Busy, 1));
    assert_eq!(total(&ledger).await.2, 1, "reports go on");
    other.execute_batch("ROLLBACK").unwrap();
    ledger.book_now().await.unwrap();
    assert_eq!(total(&ledger).await.2, 11);
    assert!(ledger.status().failing.is_none());
}

/// Writes junk over a part of the file.
fn damage(path: &Path, from: u64, length: usize) {
    let mut file = OpenOptions::new().write(true).open(path).unwrap();
    file.seek(SeekFrom::Start(from)).unwrap();
    file.write_all(&vec![0xa5; length]).unwrap();
    file.sync_all().unwrap();
}

#[tokio::test]
async fn a_damaged_ledger_is_set_aside_at_the_start_and_nothing_is_booked_twice() {
    for kind in ["header", "pages", "cut"] {
        let here = Here::new();
        {
            let books = here.books();
            let ledger = here.start(&books);
            for n in 0..50 {
                session(&books, &format!("vpce-{n}"), 100);
            }
            ledger.book_now().await.unwrap();
            session(&books, "vpce-0", 7); // only in the counter file
        }
        until_free(&here);
        let path = here.path();
        let length = fs::metadata(&path).unwrap().len();
        let before = match kind {
            "header" => {
                damage(&path, 0, 100);
                fs::read(&path).unwrap()
            }
            "pages" => {
                damage(&path, 4096, usize::try_from(length).unwrap() - 4096);
                fs::read(&path).unwrap()
            }
            _ => {
                let file = OpenOptions::new().write(true).open(&path).unwrap();
                file.set_len(length / 2).unwrap();
                fs::read(&path).unwrap()
            }
        };
        let left = here.leftovers();
        let books = here.books();
        session(&books, "vpce-1", 1000);
        let ledger = here.start_after(&books, left);
        ledger.book_now().await.unwrap();
        assert_eq!(total(&ledger).await, (2, 2, 1007), "{kind}");
        let status = ledger.status();
        let [aside] = &status.set_aside[..] else {
            panic!("{kind}: {:?}", status.set_aside);
        };
        assert!(
            fs::read(aside).unwrap() == before,
            "{kind}: as it was found"
        );
        assert!(status.failing.is_none(), "{kind}");
        ledger.end().await.unwrap();
        assert!(find(&here.run_dir()).is_empty());
    }
}

/// Takes up the log of changes, which would hide what happens to the file, and overwrites every page but the first. Returns the file's
/// length.
fn damage_all_but_the_head(path: &Path) -> usize {
    let other = rusqlite::Connection::open(path).unwrap();
    let take_up = "PRAGMA wal_checkpoint(TRUNCATE)";
    other.query_row(take_up, [], |_| Ok(())).unwrap();
    drop(other);
    let length = usize::try_from(fs::metadata(path).unwrap().len()).unwrap();
    damage(path, 4096, length - 4096);
    length
}

#[tokio::test]
async fn a_ledger_that_is_damaged_while_it_is_used_is_set_aside_and_counting_goes_on() {
    let here = Here::new();
    let books = here.books();
    let ledger = here.start(&books);
    for n in 0..50 {
        session(&books, &format!("vpce-{n}"), 100);
    }
    ledger.book_now().await.unwrap();
    let length = damage_all_but_the_head(&here.path());
    session(&books, "vpce-0", 7);
    // The pages that it remembers may do for a while; new accounts need others.
    for n in 50..90 {
        session(&books, &format!("vpce-{n}"), 1);
    }
    let mut counted = 7 + 40;
    while ledger.status().set_aside.is_empty() {
        session(&books, "vpce-0", 1);
        counted += 1;
        ledger.book_now().await.unwrap();
        assert!(counted < 10_000, "nobody noticed");
    }
    let kept = fs::metadata(&ledger.status().set_aside[0]).unwrap().len();
    assert!(kept >= length as u64);
    let (_, _, bytes) = total(&ledger).await;
    assert!(bytes <= counted && bytes > 0, "{bytes} of {counted}");
    session(&books, "vpce-0", 1);
    ledger.book_now().await.unwrap();
    assert_eq!(total(&ledger).await.2, bytes + 1);
}

#[test]
fn a_newer_ledger_ends_the_start_and_stays_as_it_is() {
    let here = Here::new();
    let dir = here.settings().state_dir;
    fs::create_dir_all(&dir).unwrap();
    drop(schema::open(&here.path()).unwrap());
    let connection = rusqlite::Connection::open(here.path()).unwrap();
    connection.pragma_update(None, "user_version", 99).unwrap();
    drop(connection);
    let before = fs::read(here.path()).unwrap();
    let books = here.books();
    let refused = Ledger::start(here.settings(), books, Vec::new(), no_head()).unwrap_err();
    assert!(refused.to_string().contains("newer"), "{refused}");
    assert_eq!(fs::read(here.path()).unwrap(), before);
    assert_eq!(aside::found(&here.path()), Vec::<PathBuf>::new());
}

#[test]
fn a_state_directory_that_is_none_is_said_with_its_path() {
    let here = Here::new();
    let file = here.dir.path().join("state");
    fs::write(&file, "").unwrap();
    let books = here.books();
    let refused = Ledger::start(here.settings(), books, Vec::new(), no_head()).unwrap_err();
    let said = refused.to_string();
    assert!(said.contains(file.to_str().unwrap()), "{said}");
}

#[tokio::test]
async fn a_leftover_whose_file_cannot_be_booked_waits_and_is_booked_later() {
    let here = Here::new();
    {
        let books = here.books();
        session(&books, "vpce-1", 5);
    }
    let left = here.leftovers();
    assert_eq!(left.len(), 1);
    // A directory where the ledger would be: it cannot be opened.
    fs::create_dir_all(here.path()).unwrap();
    let books = here.books();
    let ledger = here.start_after(&books, left);
    assert!(ledger.book_now().await.is_err());
    let status = ledger.status();
    assert_eq!(status.leftovers, 1);
    assert!(status.failing.is_some());
    fs::remove_dir(here.path()).unwrap();
    ledger.book_now().await.unwrap();
    assert_eq!(total(&ledger).await, (1, 1, 5));
    assert_eq!(ledger.status().leftovers, 0);
}

#[tokio::test]
async fn a_ledger_that_is_taken_away_while_it_is_used_is_noticed_before_the_next_booking() {
    for kind in ["removed", "replaced", "cut"] {
        let here = Here::new();
        let books = here.books();
        let ledger = here.start(&books);
        session(&books, "vpce-1", 100);
        ledger.book_now().await.unwrap();
        match kind {
            "removed" => fs::remove_file(here.path()).unwrap(),
            "replaced" => {
                let other = here.dir.path().join("other");
                fs::write(&other, "whatever").unwrap();
                fs::rename(other, here.path()).unwrap();
            }
            _ => {
                let file = OpenOptions::new().write(true).open(here.path()).unwrap();
                file.set_len(0).unwrap();
            }
        }
        session(&books, "vpce-1", 11);
        ledger.book_now().await.unwrap();
        assert_eq!(total(&ledger).await, (1, 1, 11), "{kind}");
        assert_eq!(ledger.status().errors, 1, "{kind}");
        session(&books, "vpce-1", 5);
        ledger.end().await.unwrap();
        assert!(find(&here.run_dir()).is_empty(), "{kind}");
        let reading = read::Reading::open(&here.settings().state_dir).unwrap();
        let rows = reading.report(&Query::default(), super::store_tests::soon());
        assert_eq!(rows.unwrap()[0].bytes_to_upstream, 16, "{kind}");
    }
}

#[tokio::test]
async fn a_ledger_that_does_not_read_back_at_the_end_costs_no_counters() {
    let here = Here::new();
    let books = here.books();
    let ledger = here.start(&books);
    for n in 0..50 {
        session(&books, &format!("vpce-{n}"), 100);
    }
    ledger.book_now().await.unwrap();
    damage_all_but_the_head(&here.path());
    ledger.end().await.unwrap();
    assert_eq!(ledger.status().set_aside.len(), 1);
    let kept = fs::read_dir(here.run_dir()).unwrap();
    let kept: Vec<_> = kept.map(|entry| entry.unwrap().path()).collect();
    let [kept] = &kept[..] else {
        panic!("{kept:?}");
    };
    assert!(kept.to_str().unwrap().ends_with(".set-aside"), "{kept:?}");
}

/// Copies the ledger's file without its log of changes over what is there: what a lost log leaves.
fn without_log(here: &Here, file: &[u8]) {
    for suffix in ["-wal", "-shm"] {
        let _ = fs::remove_file(store::beside(&here.path(), suffix));
    }
    fs::write(here.path(), file).unwrap();
}

#[tokio::test]
async fn what_was_lost_with_the_log_of_changes_is_booked_again_from_the_counters() {
    let here = Here::new();
    let file = {
        let books = here.books();
        let ledger = here.start(&books);
        session(&books, "vpce-1", 100);
        ledger.book_now().await.unwrap();
        let file = fs::read(here.path()).unwrap(); // the first booking is in it
        session(&books, "vpce-1", 20);
        session(&books, "vpce-2", 3);
        ledger.book_now().await.unwrap();
        file
    };
    until_free(&here);
    without_log(&here, &file);
    let left = here.leftovers();
    let books = here.books();
    let ledger = here.start_after(&books, left);
    ledger.book_now().await.unwrap();
    assert_eq!(total(&ledger).await, (3, 3, 123));
}

#[tokio::test]
async fn a_ledger_begun_anew_knows_also_what_it_did_not_book_itself() {
    let here = Here::new();
    {
        let books = here.books();
        let ledger = here.start(&books);
        session(&books, "vpce-1", 100);
        session(&books, "vpce-2", 1000);
        ledger.book_now().await.unwrap();
        fs::remove_file(here.path()).unwrap();
        session(&books, "vpce-1", 20);
        ledger.book_now().await.unwrap();
    }
    until_free(&here);
    let left = here.leftovers();
    let books = here.books();
    let ledger = here.start_after(&books, left);
    ledger.book_now().await.unwrap();
    assert_eq!(total(&ledger).await, (1, 1, 20));
}

#[tokio::test]
async fn counters_in_memory_are_booked_and_leave_nothing() {
    let here = Here::new();
    let books = Books::new(
        super::super::Place::Unkept,
        &["l".into()],
        1,
        super::super::Limits::of_most(100),
    );
    let books = Arc::new(books.unwrap());
    let ledger = here.start(&books);
    session(&books, "vpce-1", 100);
    assert_eq!(books.let_go(Duration::ZERO, u64::MAX), 0, "not booked yet");
    ledger.book_now().await.unwrap();
    assert_eq!(total(&ledger).await, (1, 1, 100));
    ledger.end().await.unwrap();
}
