//! The ledger: hour × account on the disk, in SQLite, for longer than any process.
//!
//! # What is in the file
//!
//! `ledger.db` in the state directory. [`schema`] has the tables with a word on each column; people read the views:
//!
//! - **`usage`**: a row per hour and account, with the columns of the CSV and its names: `period` (the hour, `2026-11-21T17:00:00Z`), `endpoint`,
//!   `consumer`, `name`, `account`, `listener`, `upstream`, `opened`, `closed`, `refused` (connections), `bytes_to_upstream`, `bytes_to_client`
//!   (payload bytes), `connection_seconds`, `tags`, `relay`; beside them `peak` (most connections open at once), `connection_ms` and `hour` (hours
//!   since 1970: the column that is indexed).
//! - **`usage_by_day`**: the same by day, much quicker over months: `period` is `2026-11-21`, `day` stands for `hour`.
//! - **`reasons`**: why connections of such a row were closed or refused: `what` (`closed`, `refused`), `reason`, `count`.
//! - `exports` (hours that were shipped), `anchors` (the audit trail's head by the hour), `facts`.
//!
//! Beneath them `accounts` has the words once and `hours` the numbers, by hour first: a booking touches pages that lie together, a report reads
//! what it needs in one piece, retention takes away the beginning. An hour that is over is added up in `days` by the next bookings' chores (the
//! fact `rolled` says how far); what is booked to it later goes to both. An hour of an account takes 37 bytes and 16 for each reason: a year of a
//! thousand endpoints that are busy every hour is 0.46 GB, and 15 MB by day, which is what a report over months reads.
//!
//! # Why nothing is booked twice, or lost
//!
//! Each booking is one transaction: the differences, and with them a *mark* for each slot of the counter file that says how far it is booked now.
//! Marks name the file's id and the slot's generation, so that a slot that is used again, another process's file, and a file that is found twice
//! are told apart. After the commit the counter file is told, too; where the two differ (a kill in between) the mark is the truth. Without a mark
//! it is the counter file, as long as that names another ledger than this (one begun anew). One that it names has a mark of all that was booked, in the
//! file for good: what has none there was lost with the log of changes, and is booked again. What fails leaves all as it was; counters only grow, so the next booking has it.
//!
//! # Who does what
//!
//! [`Ledger`] is the handle. A thread of its own, the clerk, is the only one that writes; another one answers questions by connections that only read
//! (WAL: neither waits for the other). [`store`] is what the clerk does, without threads and without a clock. [`read`] opens a ledger for those who
//! may only read it, with or without a relay. A stuck disk stops the clerk and nobody else; who waits for it does so for a bounded time.

mod aside;
pub mod chores;
mod clerk;
mod desk;
pub mod export;
pub mod hours;
mod lock;
mod mark;
mod presence;
pub mod read;
pub mod report;
pub mod schema;
pub mod store;
pub mod trouble;

#[cfg(test)]
mod exact_tests;
#[cfg(test)]
mod fault_tests;
#[cfg(test)]
mod store_tests;
#[cfg(test)]
mod tests;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::sync::oneshot;
use tokio::time::timeout;

use self::clerk::{Clerk, Command, Seen};
use self::desk::{Desk, Question};
use self::lock::Lock;
use self::store::Store;

pub use self::export::{COLUMNS, Exported, write_csv};
pub use self::report::{By, MOST_ROWS, Query, Row};
pub use self::trouble::{Kind, Trouble};

use super::{Anchor, Books, Leftover};
use crate::config::Endpoints;

/// The ledger's name in the state directory.
pub const FILE: &str = "ledger.db";

/// How long the start waits for the ledger to be opened. Then the relay goes on without, and books when the disk answers.
const OPENING: Duration = Duration::from_secs(10);

/// How long a booking that was asked for is waited for.
const BOOKING: Duration = Duration::from_secs(5);

/// How long a question may take, with those before it.
const ASKING: Duration = Duration::from_secs(60);

/// How long the last booking is waited for.
const ENDING: Duration = Duration::from_secs(10);

/// Questions that wait, and bookings that are asked for at once; more are refused.
const QUEUE: usize = 16;

/// Where the audit trail stands. Asked on the clerk's thread at each booking; may take its time, but not for ever.
pub type Head = Box<dyn Fn() -> Option<Anchor> + Send>;

/// What the ledger needs to know.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where it is kept.
    pub state_dir: PathBuf,
    /// Between two bookings.
    pub interval: Duration,
    /// How long an hour is kept.
    pub keep: Duration,
    /// Who we are, in each row.
    pub relay: String,
    /// Names for endpoints.
    pub endpoints: Endpoints,
}

/// Why there is no ledger. A disk that is full or takes no writing is no reason: then it is tried again and again, while the relay runs.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// Another relay has it.
    #[error("state directory {path} is in use by {by}: each relay needs its own", path = path.display())]
    Locked {
        /// Which.
        path: PathBuf,
        /// By whom.
        by: String,
    },
    /// It cannot be made, or not be entered.
    #[error("state directory {path}: {error}; see that it exists and that this user may write there", path = path.display())]
    Directory {
        /// Which.
        path: PathBuf,
        /// Why not.
        error: io::Error,
    },
    /// It is a newer version's, or some other program's.
    #[error(transparent)]
    Refused(Trouble),
    /// No thread.
    #[error("no thread for the ledger: {0}")]
    Thread(io::Error),
}

/// Why there is no answer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum AskError {
    /// The ledger says why.
    #[error(transparent)]
    Trouble(#[from] Trouble),
    /// Too many ask at once.
    #[error("too many questions at once: ask again")]
    Busy,
    /// It does not answer.
    #[error("the ledger's disk did not answer within {0:?}")]
    Slow(Duration),
    /// It was ended.
    #[error("the ledger was closed: the relay is ending")]
    Ended,
}

/// How the ledger does, for `/readyz`, `/status` and `/metrics`.
#[derive(Debug, Clone, Default)]
pub struct Status {
    /// When it was booked last, by this process or the one before.
    pub booked: Option<Timestamp>,
    /// Bookings that went well.
    pub bookings: u64,
    /// Bookings and other work on it that failed.
    pub errors: u64,
    /// What is wrong now.
    pub failing: Option<Failing>,
    /// Damaged ledgers that lie beside it.
    pub set_aside: Vec<PathBuf>,
    /// Counter files of killed processes that are not booked yet.
    pub leftovers: usize,
    /// Accounts that changed in the last booking.
    pub accounts: usize,
    /// How long the last booking took.
    pub took: Duration,
    /// What it has on the disk.
    pub bytes: u64,
}

/// What is wrong, and since when.
#[derive(Debug, Clone)]
pub struct Failing {
    /// Since when, by the calendar.
    pub since: Timestamp,
    /// For how long, by time itself.
    pub lasts: Duration,
    /// What kind of trouble.
    pub kind: Kind,
    /// In words, with what to do about it.
    pub why: String,
}

/// The ledger of a relay that runs. When this is dropped without [`Ledger::end`], what was counted since the last booking stays in the counter file.
#[derive(Debug)]
pub struct Ledger {
    clerk: SyncSender<Command>,
    desk: SyncSender<Question>,
    seen: Arc<Seen>,
}

impl Ledger {
    /// Locks the state directory, opens the ledger and begins to book: first what killed processes left, then what `books` count, every interval.
    ///
    /// # Errors
    /// [`LedgerError`]: what only an operator can put right.
    pub fn start(
        settings: Settings,
        books: Arc<Books>,
        leftovers: Vec<Leftover>,
        head: Head,
    ) -> Result<Self, LedgerError> {
        let lock = lock_dir(&settings.state_dir)?;
        let (clerk, commands) = sync_channel(QUEUE);
        let (desk, questions) = sync_channel(QUEUE);
        let (opened, is_open) = sync_channel(1);
        let seen = Arc::new(Seen::default());
        let answering = Desk {
            settings: settings.clone(),
            clerk: clerk.clone(),
        };
        let booking = Clerk::new(settings, books, leftovers, head, seen.clone(), lock);
        spawn("ledger", move || booking.work(&commands, &opened))?;
        spawn("ledger-desk", move || answering.work(&questions))?;
        match is_open.recv_timeout(OPENING) {
            Ok(Err(trouble)) if matches!(trouble.kind, Kind::Newer | Kind::Foreign) => {
                return Err(LedgerError::Refused(trouble));
            }
            // Any other trouble passes, and was said. So does a disk that does not answer yet.
            Ok(_) | Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {}
        }
        Ok(Self { clerk, desk, seen })
    }

    /// Books what was counted up to now. Those who ask at once are answered by one booking.
    ///
    /// # Errors
    /// [`AskError`].
    pub async fn book_now(&self) -> Result<(), AskError> {
        let (reply, answer) = oneshot::channel();
        send(&self.clerk, Command::Book(reply))?;
        wait(answer, BOOKING).await
    }

    /// Adds up what is booked. Ask for [`Ledger::book_now`] before, where it is to be up to the moment.
    ///
    /// # Errors
    /// [`AskError`].
    pub async fn report(&self, query: Query) -> Result<Vec<Row>, AskError> {
        let (reply, answer) = oneshot::channel();
        send(&self.desk, Question::Report(query, reply))?;
        wait(answer, ASKING).await
    }

    /// Writes the hours that are over and were not exported yet to files in `to` (`export` in the state directory unless given), each hour once;
    /// with `all` also the present one: what is counted later is booked to the next, and exported when that is over or begun. Answers after some 20 s even if there is more, and
    /// says so.
    ///
    /// # Errors
    /// [`AskError`]: then some hours may have been exported; the others are next time.
    pub async fn export(&self, to: Option<PathBuf>, all: bool) -> Result<Exported, AskError> {
        let (reply, answer) = oneshot::channel();
        send(&self.desk, Question::Export { to, all, reply })?;
        wait(answer, ASKING).await
    }

    /// Endpoints are called otherwise from the next booking on.
    ///
    /// # Errors
    /// [`AskError`]: it does not hear; they keep their names.
    pub fn rename(&self, endpoints: Endpoints) -> Result<(), AskError> {
        send(&self.clerk, Command::Rename(endpoints))
    }

    /// Where the audit trail stood at the last booking.
    #[must_use]
    pub fn last_anchor(&self) -> Option<Anchor> {
        self.seen.anchor()
    }

    /// How it does. Never waits for the disk.
    #[must_use]
    pub fn status(&self) -> Status {
        self.seen.status()
    }

    /// Books for the last time, closes the ledger and takes the counter file away. To be called when nobody counts any more. Where it fails, or the
    /// disk does not answer in time, the counter file stays, and the next start books it.
    ///
    /// # Errors
    /// [`AskError`].
    pub async fn end(&self) -> Result<(), AskError> {
        let (reply, answer) = oneshot::channel();
        send(&self.clerk, Command::End(reply))?;
        wait(answer, ENDING).await
    }
}

/// Exports from a ledger whose relay is down. Takes the state directory's lock meanwhile.
///
/// # Errors
/// [`LedgerError`]: the relay runs, or there is no such directory; or [`Trouble`].
pub fn export_at_rest(
    settings: &Settings,
    to: Option<PathBuf>,
    all: bool,
) -> Result<Result<Exported, Trouble>, LedgerError> {
    let path = settings.state_dir.join(FILE);
    let _lock = lock_dir(&settings.state_dir)?;
    let dir = to.unwrap_or_else(|| settings.state_dir.join("export"));
    Ok(export_all(settings, &path, &dir, all))
}

fn export_all(
    settings: &Settings,
    path: &Path,
    dir: &Path,
    all: bool,
) -> Result<Exported, Trouble> {
    fs::metadata(path).map_err(|error| Trouble::io(path, &error))?;
    export::make_dir(dir)?;
    let mut store = Store::open(path, &settings.relay, &settings.endpoints)?;
    let mut exported = Exported::default();
    loop {
        let hours = store.seal(Timestamp::now(), all)?;
        if hours.is_empty() {
            exported.ahead = all && export::is_ahead(&store.connection, path, Timestamp::now())?;
            store.close();
            return Ok(exported);
        }
        for hour in hours {
            let until = Instant::now() + ASKING;
            let (files, rows) = export::write_hour(&store.connection, path, hour, dir, until)?;
            store.exported(Timestamp::now(), hour, &files)?;
            exported.files.extend(files);
            exported.rows += rows;
        }
    }
}

fn lock_dir(dir: &Path) -> Result<Lock, LedgerError> {
    let failed = |error| LedgerError::Directory {
        path: dir.to_owned(),
        error,
    };
    fs::create_dir_all(dir).map_err(failed)?;
    Lock::take(dir).map_err(failed)?.ok_or_else(|| {
        let by = lock::holder(dir).map_or_else(
            || "another relay".to_owned(),
            |pid| format!("another relay, process {pid}"),
        );
        LedgerError::Locked {
            path: dir.to_owned(),
            by,
        }
    })
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<(), LedgerError> {
    let spawned = thread::Builder::new().name(name.to_owned()).spawn(work);
    spawned.map(drop).map_err(LedgerError::Thread)
}

fn send<T>(to: &SyncSender<T>, what: T) -> Result<(), AskError> {
    to.try_send(what).map_err(|error| match error {
        TrySendError::Full(_) => AskError::Busy,
        TrySendError::Disconnected(_) => AskError::Ended,
    })
}

async fn wait<T>(
    answer: oneshot::Receiver<Result<T, Trouble>>,
    within: Duration,
) -> Result<T, AskError> {
    match timeout(within, answer).await {
        Ok(Ok(answer)) => Ok(answer?),
        Ok(Err(_)) => Err(AskError::Ended),
        Err(_) => Err(AskError::Slow(within)),
    }
}
