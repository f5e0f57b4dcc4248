//! The thread that books. Nobody else writes to the ledger, and nothing else waits for its disk.

use std::collections::HashMap;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::sync::oneshot;
use tracing::{debug, error, info, warn};

use super::aside::{self, set_aside};
use super::chores::Clock;
use super::hours::Hour;
use super::lock::Lock;
use super::read::read_back;
use super::store::{Batch, Store, beside};
use super::trouble::{Kind, Trouble};
use super::{FILE, Failing, Head, Settings, Status};
use crate::account::{Anchor, Books, Leftover, SlotTotals, leftover};
use crate::config::Endpoints;
use crate::sys::clock::monotonic_ms;

/// A disk that has not answered for so long does not get on.
const PATIENCE: Duration = Duration::from_secs(30);

/// A failure that goes on is said again after so long.
const SAID_AGAIN: Duration = Duration::from_secs(600);

/// Damaged slots that are named in the log.
const NAMED: usize = 8;

/// How bad it is for the thread to be asked for.
const NICE: i32 = 5;

/// What the thread is asked.
#[derive(Debug)]
pub(super) enum Command {
    /// To book now.
    Book(oneshot::Sender<Result<(), Trouble>>),
    /// To seal the next hours that are to be exported.
    Seal {
        all: bool,
        reply: SyncSender<Result<Vec<Hour>, Trouble>>,
    },
    /// To note that an hour's files are on the disk.
    Exported {
        hour: Hour,
        files: Vec<PathBuf>,
        reply: SyncSender<Result<(), Trouble>>,
    },
    /// Endpoints are called otherwise from now on.
    Rename(Endpoints),
    /// To book for the last time and go.
    End(oneshot::Sender<Result<(), Trouble>>),
}

/// What others see of the thread.
#[derive(Debug, Default)]
pub(super) struct Seen {
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    status: Status,
    anchor: Option<Anchor>,
    failing: Option<(Instant, Timestamp, Trouble)>,
    /// Since when it has been at the disk without coming back.
    at_the_disk: Option<Instant>,
}

impl Seen {
    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn anchor(&self) -> Option<Anchor> {
        self.lock().anchor.clone()
    }

    pub(super) fn status(&self) -> Status {
        let known = self.lock();
        let mut status = known.status.clone();
        let failing = known.failing.as_ref();
        status.failing = failing.map(|(since, at, trouble)| Failing {
            since: *at,
            lasts: since.elapsed(),
            kind: trouble.kind,
            why: trouble.to_string(),
        });
        let waits = known.at_the_disk.map(|since| since.elapsed());
        if let (None, Some(lasts)) = (&status.failing, waits.filter(|waits| *waits > PATIENCE)) {
            status.failing = Some(Failing {
                since: Timestamp::now()
                    .checked_sub(lasts)
                    .unwrap_or(Timestamp::UNIX_EPOCH),
                lasts,
                kind: Kind::Io,
                why: "the ledger's disk does not answer".into(),
            });
        }
        status
    }
}

/// See the module.
pub(super) struct Clerk {
    pub(super) settings: Settings,
    pub(super) books: Arc<Books>,
    pub(super) leftovers: Vec<Leftover>,
    pub(super) head: Head,
    pub(super) seen: Arc<Seen>,
    store: Option<Store>,
    /// Whether counter files that are no more were looked for.
    forgotten: bool,
    clock: Option<Clock>,
    /// Peaks of bookings that failed: a slot tells each only once.
    peaks: HashMap<(u32, u64), u64>,
    said: Option<(Kind, Instant)>,
    /// A ledger that this process booked into was lost: the counter file is all that there is for sure of what it had.
    unread: bool,
    /// Of the state directory. The last to go: until the store is closed somebody writes there.
    lock: Option<Lock>,
}

impl Clerk {
    pub(super) fn new(
        settings: Settings,
        books: Arc<Books>,
        leftovers: Vec<Leftover>,
        head: Head,
        seen: Arc<Seen>,
        lock: Lock,
    ) -> Self {
        let path = settings.state_dir.join(FILE);
        {
            let mut known = seen.lock();
            known.status.leftovers = leftovers.len();
            known.status.set_aside = aside::found(&path);
        }
        Self {
            settings,
            books,
            leftovers,
            head,
            seen,
            store: None,
            forgotten: false,
            clock: None,
            peaks: HashMap::new(),
            said: None,
            unread: false,
            lock: Some(lock),
        }
    }

    /// Books every interval and whenever asked, until told to end or nobody is left to ask. `opened` hears how the ledger was opened.
    pub(super) fn work(
        mut self,
        commands: &Receiver<Command>,
        opened: &SyncSender<Result<(), Trouble>>,
    ) {
        // An idle core is taken all the same; a busy one belongs to the connections.
        let _ = rustix::process::setpriority_process(None, NICE);
        let first = self.guarded(|clerk| clerk.open().map(|_| ()));
        let refused =
            matches!(&first, Err(trouble) if matches!(trouble.kind, Kind::Newer | Kind::Foreign));
        let _ = opened.try_send(first);
        if refused {
            return;
        }
        let mut due = Instant::now();
        loop {
            let waiting = due.saturating_duration_since(Instant::now());
            let mut askers = Vec::new();
            let mut next = match commands.recv_timeout(waiting) {
                Ok(command) => Some(command),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            let mut end = None;
            let mut book = next.is_none();
            // All that have asked by now are answered by one booking.
            while let Some(command) = next.take() {
                match command {
                    Command::Book(asker) => askers.push(asker),
                    Command::Seal { all, reply } => {
                        let hours = self.guarded(|clerk| clerk.seal(all));
                        let _ = reply.try_send(hours);
                    }
                    Command::Exported { hour, files, reply } => {
                        let now = Timestamp::now();
                        let noted = self.guarded(|clerk| clerk.open()?.exported(now, hour, &files));
                        let _ = reply.try_send(noted);
                    }
                    Command::Rename(endpoints) => {
                        self.settings.endpoints = endpoints;
                        self.store = None; // opened again, it takes the names up
                    }
                    Command::End(asker) => {
                        end = Some(asker);
                        break;
                    }
                }
                next = commands.try_recv().ok();
            }
            book |= !askers.is_empty() || Instant::now() >= due;
            if let Some(asker) = end {
                let ended = self.guarded(Self::end);
                self.store = None;
                self.lock = None; // who hears that it ended may begin another
                for waiting in askers {
                    let _ = waiting.send(ended.clone());
                }
                let _ = asker.send(ended);
                return;
            }
            if book {
                let booked = self.guarded(|clerk| clerk.round(false));
                for asker in askers {
                    let _ = asker.send(booked.clone());
                }
                due = Instant::now() + self.settings.interval;
            }
        }
    }

    /// Does something with the ledger, and sees to it that a failure is seen, said once, and followed by what can be done about it.
    fn guarded<T>(
        &mut self,
        mut what: impl FnMut(&mut Self) -> Result<T, Trouble>,
    ) -> Result<T, Trouble> {
        self.seen.lock().at_the_disk = Some(Instant::now());
        let mut done = self.caught(&mut what);
        if let Err(trouble) = &done
            && trouble.kind == Kind::Damaged
        {
            let trouble = trouble.clone();
            done = match self.begin_anew(&trouble) {
                Ok(()) => self.caught(&mut what),
                Err(worse) => Err(worse),
            };
        }
        self.note(done.as_ref().err());
        done
    }

    fn caught<T>(
        &mut self,
        what: &mut impl FnMut(&mut Self) -> Result<T, Trouble>,
    ) -> Result<T, Trouble> {
        let done = catch_unwind(AssertUnwindSafe(|| what(self)));
        let done = done.unwrap_or_else(|_| {
            let what = "booking panicked; the message is above";
            Err(Trouble::new(Kind::Other, &self.path(), what))
        });
        // What the file holds now is asked anew, by another connection.
        if let Err(trouble) = &done
            && !matches!(trouble.kind, Kind::Busy | Kind::Reader | Kind::Clock)
        {
            self.store = None;
        }
        done
    }

    /// Sets a damaged ledger aside. What was counted since is in the counter file, with what was booked: the next ledger goes on from there.
    fn begin_anew(&mut self, why: &Trouble) -> Result<(), Trouble> {
        self.store = None;
        let path = self.path();
        self.seen.lock().status.errors += 1;
        self.unread |= self.books.ledger() != 0;
        let aside =
            set_aside(&path, Timestamp::now()).map_err(|error| Trouble::io(&path, &error))?;
        error!(%why, set_aside = %aside.display(), "the ledger is damaged: it is set aside, and a new one is begun");
        self.seen.lock().status.set_aside = aside::found(&path);
        Ok(())
    }

    fn note(&mut self, trouble: Option<&Trouble>) {
        let mut known = self.seen.lock();
        known.at_the_disk = None;
        known.status.bytes = self.store.as_ref().map_or(known.status.bytes, Store::size);
        let Some(trouble) = trouble else {
            if let Some((since, ..)) = known.failing.take() {
                info!(failed_for = ?since.elapsed(), "the ledger is booked again: nothing was lost");
            }
            self.said = None;
            return;
        };
        known.status.errors += 1;
        let since = known.failing.take();
        let (since, at) = since.map_or_else(
            || (Instant::now(), Timestamp::now()),
            |(since, at, _)| (since, at),
        );
        known.failing = Some((since, at, trouble.clone()));
        drop(known);
        let fresh =
            |(kind, when): (Kind, Instant)| kind == trouble.kind && when.elapsed() < SAID_AGAIN;
        if !self.said.is_some_and(fresh) {
            error!(kind = trouble.kind.name(), "not booked: {trouble}");
            self.said = Some((trouble.kind, Instant::now()));
        }
    }

    fn path(&self) -> PathBuf {
        self.settings.state_dir.join(FILE)
    }

    fn open(&mut self) -> Result<&mut Store, Trouble> {
        let store = match self.store.take() {
            Some(store) => store,
            None => {
                let Settings {
                    relay, endpoints, ..
                } = &self.settings;
                let path = self.path();
                let lost = self.lost(&path);
                let store = Store::open(&path, relay, endpoints)?;
                if let Some(lost) = lost {
                    warn!(path = %path.display(), "{lost}: a new ledger is begun, and goes on from what the counter files say is booked");
                }
                let booked = store.last_booked()?;
                self.clock
                    .get_or_insert_with(|| Clock::new(booked, Timestamp::now(), monotonic_ms()));
                let mut known = self.seen.lock();
                known.anchor = store.last_anchor().cloned();
                known.status.booked = known.status.booked.or(booked);
                store
            }
        };
        Ok(self.store.insert(store))
    }

    /// What tells that there was a ledger where none is.
    fn lost(&self, path: &Path) -> Option<&'static str> {
        match fs::metadata(path) {
            Ok(found) if found.len() == 0 => Some("the ledger is an empty file"),
            Ok(_) => None,
            Err(_) if beside(path, "-wal").exists() => {
                Some("the ledger is gone, and its log of changes is there")
            }
            Err(_) if self.leftovers.iter().any(|left| left.ledger != 0) => {
                Some("the ledger that a killed process booked into is gone")
            }
            Err(_) => None,
        }
    }

    fn seal(&mut self, all: bool) -> Result<Vec<Hour>, Trouble> {
        self.open()?.seal(Timestamp::now(), all)
    }

    /// One booking: what other processes left, then what this one counted, then some chores.
    fn round(&mut self, last: bool) -> Result<(), Trouble> {
        let began = Instant::now();
        let now = Timestamp::now();
        self.open()?;
        self.forget(now)?;
        self.book_leftovers(now)?;
        // Asked for before the numbers are read: a session's records are in the trail before its numbers are in the books.
        let anchor = (self.head)();
        let (mut slots, missing) = self.books.slots_and_missing(monotonic_ms());
        self.recall_peaks(&mut slots);
        // Nobody counts any more, and no account is missing.
        let finished = last && slots.len() == self.books.accounts();
        let file = self.books.file_id();
        let batch = Batch {
            file,
            ledger: self.books.ledger(),
            whole: missing == 0,
            slots: &slots,
            finished,
            anchor: anchor.as_ref(),
        };
        let booked = self.open()?.book(now, &batch);
        let booked = booked.inspect_err(|_| self.keep_peaks(&slots))?;
        self.peaks.clear();
        if let Some(ledger) = booked.ledger {
            self.books.set_ledger(ledger);
        }
        for (slot, generation, counters) in &booked.marks {
            self.books.set_booked(*slot, *generation, counters);
        }
        if let Some(hour) = booked.hour {
            debug!(%hour, accounts = booked.accounts, took = ?began.elapsed(), "booked");
        }
        self.booked(now, anchor, booked.accounts, began.elapsed());
        if last && !finished {
            let what = "some accounts could not be read: they are booked by the next start";
            return Err(Trouble::new(Kind::Other, &self.path(), what));
        }
        self.chores(now)
    }

    fn booked(&mut self, now: Timestamp, anchor: Option<Anchor>, accounts: usize, took: Duration) {
        let mut known = self.seen.lock();
        known.status.booked = Some(now);
        known.status.bookings += 1;
        known.status.accounts = accounts;
        known.status.took = took;
        if anchor.is_some() {
            known.anchor = anchor;
        }
    }

    /// Once: counter files that the ledger knows and that are no more.
    fn forget(&mut self, now: Timestamp) -> Result<(), Trouble> {
        if self.forgotten {
            return Ok(());
        }
        let mut present = vec![self.books.file_id()];
        present.extend(self.leftovers.iter().map(|leftover| leftover.file_id));
        // What cannot be read now may be another time.
        let beside = self.leftovers.iter().filter_map(|left| left.path.parent());
        for dir in self.books.dir().into_iter().chain(beside) {
            present.extend(leftover::ids(dir));
        }
        let crashed = self.open()?.forget_all_but(now, &present)?;
        self.forgotten = true;
        if crashed > 0 {
            warn!(
                crashed,
                "the counters of a former process are gone (a reboot, or run_dir was emptied): what they had since the last booking is lost, and the sessions that were open are closed as crashed"
            );
        }
        Ok(())
    }

    /// What killed processes left: booked wholly, then taken away.
    fn book_leftovers(&mut self, now: Timestamp) -> Result<(), Trouble> {
        while let Some(leftover) = self.leftovers.last() {
            let batch = Batch {
                file: leftover.file_id,
                ledger: leftover.ledger,
                whole: false, // it will name no other ledger
                slots: &leftover.slots,
                finished: true,
                anchor: None,
            };
            let booked = match &mut self.store {
                Some(store) => store.book(now, &batch)?,
                None => return Ok(()),
            };
            let Some(leftover) = self.leftovers.pop() else {
                break;
            };
            self.seen.lock().status.leftovers = self.leftovers.len();
            info!(
                file = %leftover.path.display(), accounts = booked.accounts, crashed = leftover.crashed, torn = leftover.torn.len(),
                "booked what a killed process had counted"
            );
            let (path, file) = (leftover.path.clone(), leftover.file_id);
            let gone = if leftover.damaged.is_empty() {
                leftover.remove()
            } else {
                let damaged = leftover.damaged.len();
                let which = leftover.damaged.iter().take(NAMED).map(ToString::to_string);
                let which = which.collect::<Vec<_>>().join("; ");
                leftover.set_aside().map(|aside| {
                    error!(damaged, which, set_aside = %aside.display(), "slots of a counter file are damaged and not booked: the file is kept");
                })
            };
            match gone {
                Ok(()) => self.open()?.forget(file)?,
                // The marks stay with it: the next start books nothing of it again.
                Err(error) => {
                    warn!(file = %path.display(), %error, "a counter file that is booked cannot be taken away: see that this user may write to its directory");
                }
            }
        }
        Ok(())
    }

    fn recall_peaks(&self, slots: &mut [SlotTotals]) {
        for slot in slots {
            if let Some(peak) = self.peaks.get(&(slot.slot, slot.generation)) {
                slot.totals.peak = slot.totals.peak.max(*peak);
            }
        }
    }

    fn keep_peaks(&mut self, slots: &[SlotTotals]) {
        self.peaks = slots
            .iter()
            .map(|slot| ((slot.slot, slot.generation), slot.totals.peak))
            .collect();
    }

    fn chores(&mut self, now: Timestamp) -> Result<(), Trouble> {
        let keep = self.settings.keep;
        let mut clock = self.clock.take();
        let believed = clock
            .as_mut()
            .is_some_and(|clock| clock.look(now, monotonic_ms()));
        self.clock = clock;
        let store = self.open()?;
        store.name()?;
        store.roll(now)?;
        if believed {
            store.prune(now, keep)?;
        }
        Ok(())
    }

    /// The last booking; then nothing of the process's counters is needed any more.
    fn end(&mut self) -> Result<(), Trouble> {
        self.round(true)?;
        if let Some(store) = self.store.take() {
            let (path, id) = (store.path.clone(), store.id);
            store.close();
            // What SQLite remembers of pages hides what became of them on the disk.
            read_back(&path, id)?;
        }
        let gone = if self.unread {
            self.books.set_file_aside().map(|aside| {
                error!(set_aside = ?aside, "a ledger that this process booked into was lost or damaged: its counters are kept beside");
            })
        } else {
            self.books.remove_file()
        };
        gone.map_err(|error| Trouble::io(Path::new("the counter file"), &error))
    }
}
