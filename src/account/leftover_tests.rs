//! Real files, and processes that are really killed.

use std::cell::Cell;
use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::FileExt;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use super::*;
use crate::account::layout::{head, slot_words};
use crate::account::{
    AccountKey, Books, BooksError, CloseReason, Direction, HEADER, Limits, Meter, Place,
};
use crate::sys::region::Region;

fn key(endpoint: &str) -> AccountKey {
    AccountKey {
        listener: "l".into(),
        endpoint: endpoint.into(),
        consumer: "".into(),
        upstream: "u".into(),
    }
}

fn books(dir: &Path, max: usize) -> Books {
    let place = Place::File(dir.to_owned());
    Books::new(place, &["l".into()], 2, Limits::of_most(max)).unwrap()
}

fn only(dir: &Path) -> PathBuf {
    let found = find(dir);
    assert_eq!(found.len(), 1, "{found:?}");
    found[0].clone()
}

/// Opens what was left. A process that another test starts has all our files until it executes another program, and their locks with them.
fn open_left(path: &Path) -> Result<Leftover, LeftoverError> {
    for _ in 0..1000 {
        match Leftover::open(path) {
            Err(LeftoverError::InUse(_)) => thread::sleep(Duration::from_millis(5)),
            other => return other,
        }
    }
    Leftover::open(path)
}

/// What would be left of a file if its process were killed now.
fn as_if_killed(path: &Path) -> PathBuf {
    let dir = path.with_extension("killed");
    fs::create_dir(&dir).unwrap();
    fs::copy(path, dir.join(path.file_name().unwrap())).unwrap();
    only(&dir)
}

/// Changes a word of a file.
fn poke(path: &Path, word: usize, change: impl Fn(u64) -> u64) {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .unwrap();
    let mut bytes = [0; WORD];
    file.read_exact_at(&mut bytes, (word * WORD) as u64)
        .unwrap();
    let changed = change(u64::from_ne_bytes(bytes));
    file.write_all_at(&changed.to_ne_bytes(), (word * WORD) as u64)
        .unwrap();
}

#[test]
fn what_a_process_left_is_what_it_counted_and_its_open_connections_crashed() {
    let dir = tempfile::tempdir().unwrap();
    let books = books(dir.path(), 10);
    let (file_id, path) = (books.file_id(), only(dir.path()));
    let meter = Meter::open(books.account(key("a")), 1).unwrap();
    meter.moved(Direction::ToClient, 1234);
    let booked = books.slots(monotonic_ms())[0].totals.counters;
    books.set_booked(0, 1, &booked);
    Meter::open(books.account(key("a")), 0)
        .unwrap()
        .close(CloseReason::Completed);
    books.account(key("b")).refuse(0, HEADER).unwrap();
    assert!(
        matches!(Leftover::open(&path), Err(LeftoverError::InUse(_))),
        "its process lives"
    );
    let path = as_if_killed(&path);
    let left = open_left(&path).unwrap();
    assert_eq!(
        (left.file_id, left.crashed, left.same_boot),
        (file_id, 1, true)
    );
    assert_eq!((&left.torn[..], &left.damaged[..]), (&[][..], &[][..]));
    assert!(Timestamp::now().duration_since(left.ended).as_secs().abs() < 60);
    let [a, b] = &left.slots[..] else {
        panic!("{:?}", left.slots)
    };
    assert_eq!((&a.totals.key, &b.totals.key), (&key("a"), &key("b")));
    assert_eq!(a.booked, booked);
    let counters = &a.totals.counters;
    assert_eq!((counters.opened, counters.active()), (2, 0));
    assert_eq!(counters.bytes, [0, 1234]);
    assert_eq!(counters.closed[CloseReason::Crashed as usize], 1);
    assert_eq!(b.totals.counters.refused[HEADER], 1);
    assert!(
        matches!(Leftover::open(&path), Err(LeftoverError::InUse(_))),
        "somebody is booking it"
    );
    left.remove().unwrap();
    assert!(!path.exists());
    meter.close(CloseReason::Completed);
}

#[test]
fn a_file_that_was_booked_in_whole_goes_with_its_process() {
    let dir = tempfile::tempdir().unwrap();
    let books = books(dir.path(), 10);
    books.remove_file().unwrap();
    drop(Meter::open(books.account(key("a")), 0));
    assert_eq!(books.snapshot().accounts[0].counters.opened, 1);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn files_of_other_layouts_and_with_damaged_headers_are_kept_aside() {
    let damaged = |word: usize, change: fn(u64) -> u64| {
        let dir = tempfile::tempdir().unwrap();
        drop(books(dir.path(), 10));
        let path = only(dir.path());
        poke(&path, word, change);
        let error = open_left(&path).unwrap_err();
        assert!(error.is_final(), "{error}");
        let aside = set_aside(&path).unwrap();
        assert!(aside.exists());
        assert_eq!(find(dir.path()), [] as [PathBuf; 0]);
        error
    };
    for word in 0..=header::CRC {
        let error = damaged(word, |word| word ^ 1 << 7);
        assert_eq!(
            matches!(error, LeftoverError::Layout { .. }),
            word == header::VERSION,
            "{word}: {error}"
        );
    }
}

#[test]
fn a_file_that_was_cut_is_kept_aside() {
    for len in [0, 100, 4096, 100_000] {
        let dir = tempfile::tempdir().unwrap();
        drop(books(dir.path(), 100));
        let path = only(dir.path());
        File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .set_len(len)
            .unwrap();
        let error = open_left(&path).unwrap_err();
        assert!(error.is_final(), "{len}: {error}");
    }
}

#[test]
fn a_damaged_slot_is_named_and_the_others_are_booked() {
    let dir = tempfile::tempdir().unwrap();
    let books = books(dir.path(), 10);
    for id in ["a", "b", "c"] {
        drop(Meter::open(books.account(key(id)), 0));
    }
    drop(books);
    let path = only(dir.path());
    let second = HEADER_WORDS + slot_words(2);
    poke(&path, second + head::NAMES + 8, |word| word + 1);
    let left = open_left(&path).unwrap();
    let endpoints: Vec<_> = left.slots.iter().map(|s| &*s.totals.key.endpoint).collect();
    assert_eq!(endpoints, ["a", "c"]);
    let said: Vec<_> = left.damaged.iter().map(ToString::to_string).collect();
    assert_eq!(said, ["slot 1: the check sum over whose it is is wrong"]);
    assert!(left.set_aside().unwrap().exists());
}

#[test]
fn an_alive_that_cannot_be_is_this_moment_at_the_latest() {
    let dir = tempfile::tempdir().unwrap();
    let books = books(dir.path(), 10);
    let _open = Meter::open(books.account(key("a")), 0).unwrap();
    let path = as_if_killed(&only(dir.path()));
    poke(&path, header::ALIVE, |_| u64::MAX / 2);
    let left = open_left(&path).unwrap();
    assert!(left.alive <= monotonic_ms());
    assert!(left.slots[0].totals.counters.connection_ms < 60_000);
}

#[test]
fn a_file_is_allocated_in_full_and_where_there_is_no_room_it_is_said_how_much_it_takes() {
    use std::os::unix::fs::MetadataExt;
    let dir = tempfile::tempdir().unwrap();
    let made = books(dir.path(), 1000);
    let metadata = fs::metadata(only(dir.path())).unwrap();
    assert!(metadata.len() >= (1000 * slot_words(2) * WORD) as u64);
    assert!(metadata.blocks() * 512 >= metadata.len());
    made.remove_file().unwrap();
    let place = Place::File(dir.path().to_owned());
    let error = Books::new(place, &[], 2, Limits::of_most(u32::MAX as usize / 2)).unwrap_err();
    let said = error.to_string();
    assert!(matches!(error, BooksError::NoRoom { .. }), "{said}");
    assert!(
        said.contains("2.5 TiB") && said.contains("1280 bytes"),
        "{said}"
    );
    assert!(said.contains("accounts.max"), "{said}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn a_file_that_was_never_finished_is_swept_up_and_one_that_is_being_made_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let orphan = dir.path().join(".books-00000000000000ff.new");
    let living = dir.path().join(".books-00000000000000fe.new");
    fs::write(&orphan, "").unwrap();
    let held = File::create(&living).unwrap();
    lock(&held).unwrap();
    drop(books(dir.path(), 1));
    assert_eq!((orphan.exists(), living.exists()), (false, true));
}

/// Where the child of the test below counts; and in which way.
const CHILD: &str = "TOLLGATE_TEST_COUNTS_IN";
const RETIRES: &str = "TOLLGATE_TEST_RETIRES";

/// What a worker of the child says it is about to do, and what it did: opened, closed, refused, and bytes both ways.
const SAID: usize = 5;

/// Kills a child that counts as fast as it can, at any moment, and calls `check` with what it left and what it said.
fn kill_again_and_again(retires: bool, check: impl Fn(&Leftover, &[u64])) {
    for round in 0..25_u64 {
        let dir = tempfile::Builder::new().tempdir_in(memory()).unwrap();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "account::leftover::tests::child_that_counts"])
            .arg("--nocapture")
            .env(CHILD, dir.path())
            .envs(retires.then_some((RETIRES, "1")))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap().contains("counting")));
        // The moment is what is tested: another in each round.
        thread::sleep(Duration::from_micros(round * round * 97));
        child.kill().unwrap();
        child.wait().unwrap();
        let left = open_left(&only(dir.path())).unwrap();
        assert_eq!(left.damaged, []);
        for worker in 0..2 {
            let torn = left.torn.iter().filter(|torn| torn.worker == worker);
            assert!(torn.count() <= 1, "{:?}", left.torn);
        }
        for slot in &left.slots {
            let counters = &slot.totals.counters;
            assert_eq!(counters.opened, counters.closed());
            assert_eq!(counters.since(&slot.booked).plus(&slot.booked), *counters);
            assert!(counters.connection_ms <= counters.opened * 600_000);
        }
        let mut said = Vec::new();
        File::open(dir.path().join("said"))
            .unwrap()
            .read_to_end(&mut said)
            .unwrap();
        let (said, _) = said.as_chunks();
        let said: Vec<_> = said.iter().map(|word| u64::from_ne_bytes(*word)).collect();
        check(&left, &said);
    }
}

/// A tmpfs, where there is one: it is what the counters are made for.
fn memory() -> PathBuf {
    let memory = PathBuf::from("/dev/shm");
    if memory.is_dir() {
        memory
    } else {
        std::env::temp_dir()
    }
}

#[test]
fn a_process_killed_at_any_moment_loses_nothing_but_what_each_worker_was_in_the_middle_of() {
    let counted = Cell::new(0);
    kill_again_and_again(false, |left, said| {
        let sum = |of: &dyn Fn(&SlotTotals) -> u64| left.slots.iter().map(of).sum::<u64>();
        let crashed = CloseReason::Crashed as usize;
        let found = [
            sum(&|slot| slot.totals.counters.opened),
            sum(&|slot| slot.totals.counters.closed() - slot.totals.counters.closed[crashed]),
            sum(&|slot| slot.totals.counters.refused()),
            sum(&|slot| slot.totals.counters.bytes[0]),
            sum(&|slot| slot.totals.counters.bytes[1]),
        ];
        let (begun, done) = said.split_at(2 * SAID);
        for (what, found) in found.into_iter().enumerate() {
            let of_both = |said: &[u64]| said[what] + said[SAID + what];
            let bounds = of_both(done)..=of_both(begun);
            assert!(bounds.contains(&found), "{what}: {found} of {bounds:?}");
        }
        assert_eq!(
            left.crashed,
            sum(&|slot| slot.totals.counters.closed[crashed])
        );
        counted.set(counted.get() + found[0]);
    });
    assert!(counted.get() > 1000, "{counted:?}");
}

#[test]
fn a_process_killed_while_accounts_come_and_go_leaves_each_of_them_whole() {
    kill_again_and_again(true, |left, _| {
        let mut keys = HashMap::new();
        for slot in &left.slots {
            let before = keys.insert(slot.totals.key.clone(), slot.slot);
            assert_eq!(before, None, "two slots of one account");
        }
    });
}

/// No test by itself: what the tests above kill.
#[test]
fn child_that_counts() {
    let Some(dir) = std::env::var_os(CHILD).map(PathBuf::from) else {
        return;
    };
    let retires = std::env::var_os(RETIRES).is_some();
    let said = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(dir.join("said"))
        .unwrap();
    said.set_len((4 * SAID * WORD) as u64).unwrap();
    let said = Arc::new(Region::shared_file(&said, 4 * SAID).unwrap());
    let books = Arc::new(books(&dir, if retires { 4 } else { 40 }));
    for worker in 0..2 {
        let (books, said) = (books.clone(), said.clone());
        thread::spawn(move || count(&books, worker, said.words()));
    }
    writeln!(std::io::stdout(), "\ncounting").unwrap();
    loop {
        let now = monotonic_ms();
        for slot in books.slots(now) {
            books.set_booked(slot.slot, slot.generation, &slot.totals.counters);
        }
        if retires {
            books.let_go(Duration::ZERO, now);
        }
    }
}

/// Counts for ever, and says what before and after.
fn count(books: &Books, worker: usize, said: &[AtomicU64]) {
    let (begun, done) = said.split_at(2 * SAID);
    let step = |what: usize, n: u64, act: &mut dyn FnMut()| {
        begun[worker * SAID + what].fetch_add(n, Ordering::SeqCst);
        act();
        done[worker * SAID + what].fetch_add(n, Ordering::SeqCst);
    };
    let mut open = std::collections::VecDeque::new();
    for n in 0_u64.. {
        let endpoint = format!("vpce-{}", n.wrapping_mul(2_654_435_761) % 7);
        let mut meter = None;
        step(0, 1, &mut || {
            meter = Some(books.open(key(&endpoint), worker).0)
        });
        let meter = meter.unwrap();
        for _ in 0..n % 20 {
            step(3, n % 1000, &mut || {
                meter.moved(Direction::ToUpstream, (n % 1000) as usize);
            });
            step(4, n, &mut || meter.moved(Direction::ToClient, n as usize));
        }
        step(2, 1, &mut || {
            books.refuse(key("nobody"), worker, (n % 3) as usize);
        });
        open.push_back(meter);
        if open.len() > (n % 5) as usize {
            let mut meter = open.pop_front();
            step(1, 1, &mut || {
                if let Some(meter) = meter.take() {
                    meter.close(CloseReason::ALL[(n % 13) as usize]);
                }
            });
        }
    }
}

#[test]
fn a_leftover_gives_back_the_room_of_what_was_never_counted_and_says_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let books = books(dir.path(), 5_000);
    books.open(key("vpce-1"), 0).0.moved(Direction::ToClient, 7);
    let path = as_if_killed(&only(dir.path()));
    let file = File::options().write(true).open(&path).unwrap();
    fallocate(
        &file,
        FallocateFlags::empty(),
        0,
        file.metadata().unwrap().len(),
    )
    .unwrap();
    let before = fs::read(&path).unwrap();
    let gained = shrink(&path).unwrap();
    assert!(
        gained > before.len() as u64 / 2,
        "{gained} of {}",
        before.len()
    );
    assert!(fs::read(&path).unwrap() == before);
    assert_eq!(open_left(&path).unwrap().slots.len(), 1);
    assert_eq!(shrink(&path).unwrap(), 0);
}
