//! The books of a process from its start to its end: what others left is taken over, what is counted is booked, and nothing is left behind that is
//! not wanted.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::task::spawn_local;
use tracing::{error, info, warn};

use crate::account::ledger::{Head, Ledger, LedgerError, Settings};
use crate::account::leftover::{self, Leftover, LeftoverError};
use crate::account::{self, Books, BooksError, Limits, Place};
use crate::config::Config;

/// Why books cannot be kept.
#[derive(Debug, thiserror::Error)]
pub enum KeepError {
    /// The counters have no place.
    #[error(transparent)]
    Counters(#[from] BooksError),
    /// The directory for them cannot be made.
    #[error("run directory {path}: {error}; see that it exists and that this user may write there", path = path.display())]
    RunDir {
        /// Which.
        path: PathBuf,
        /// Why not.
        error: io::Error,
    },
    /// The ledger is another's, or cannot be begun.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
}

/// The books while the process runs.
#[derive(Debug)]
pub(super) struct Keeping {
    pub(super) books: Arc<Books>,
    /// `None`: the books are in memory.
    pub(super) ledger: Option<Arc<Ledger>>,
}

impl Keeping {
    /// Opens the books; from here on they are booked. `head` is asked at each booking.
    pub(super) fn begin(config: &Config, head: Head) -> Result<Self, KeepError> {
        let names: Vec<_> = config
            .listeners
            .iter()
            .map(|listener| listener.name.clone())
            .collect();
        let (workers, limits) = (config.workers.get(), Limits::of(config));
        let (Some(state_dir), Some(run_dir)) = (&config.state_dir, &config.run_dir) else {
            warn!(
                "the books are kept in memory: they start at zero with each process. Write state_dir, or --state-dir, to keep them"
            );
            let books = Books::new(Place::Memory, &names, workers, limits)?;
            return Ok(Self::kept(Arc::new(books), None, config));
        };
        std::fs::create_dir_all(run_dir).map_err(|error| KeepError::RunDir {
            path: run_dir.clone(),
            error,
        })?;
        let leftovers = take_over(run_dir);
        let place = Place::File(run_dir.clone());
        let books = Arc::new(Books::new(place, &names, workers, limits)?);
        let settings = settings(config, state_dir);
        let ledger = Ledger::start(settings, books.clone(), leftovers, head).inspect_err(|_| {
            // Nothing was counted yet; and should it stay, it is booked as what it is: nothing.
            let _ = books.remove_file();
        })?;
        info!(
            state_dir = %state_dir.display(),
            run_dir = %run_dir.display(),
            interval = ?config.ledger.interval,
            "the books outlive this process"
        );
        Ok(Self::kept(books, Some(Arc::new(ledger)), config))
    }

    fn kept(books: Arc<Books>, ledger: Option<Arc<Ledger>>, config: &Config) -> Self {
        spawn_local(account::keep(books.clone(), config.accounts.idle_after));
        Self { books, ledger }
    }

    /// Books for the last time, for a bounded time. Once nobody counts any more.
    pub(super) async fn end(self) {
        let Some(ledger) = self.ledger else {
            return;
        };
        match ledger.end().await {
            Ok(()) => info!("everything is booked"),
            Err(error) => error!(
                %error,
                "the last booking failed: the counters stay in run_dir, and the next start books them, unless this machine is restarted before"
            ),
        }
    }
}

pub(super) fn settings(config: &Config, state_dir: &Path) -> Settings {
    Settings {
        state_dir: state_dir.to_owned(),
        interval: config.ledger.interval,
        keep: config.ledger.keep,
        relay: config.relay_id.to_string(),
        endpoints: config.endpoints.clone(),
    }
}

/// What processes left that were killed. What is none of that, or not any more, is said and set aside.
fn take_over(run_dir: &Path) -> Vec<Leftover> {
    let found = leftover::find(run_dir).into_iter();
    found.filter_map(|path| take(&path)).collect()
}

fn take(path: &Path) -> Option<Leftover> {
    let why = match Leftover::open(path) {
        Ok(found) => {
            let (sessions, torn) = (found.crashed, found.torn.len());
            info!(
                path = %path.display(),
                accounts = found.slots.len(),
                sessions,
                torn,
                ended = %found.ended,
                "a process was killed before all was booked: its counters are booked now, and its sessions closed as crashed"
            );
            return Some(found);
        }
        Err(LeftoverError::InUse(_)) => return None, // a relay that runs
        Err(why) => why,
    };
    if !why.is_final() {
        error!(error = %why, "counters of a killed process are not booked; they are looked for again at the next start");
        return None;
    }
    match leftover::set_aside(path) {
        Ok(aside) => {
            error!(error = %why, aside = %aside.display(), "counters of a killed process cannot be booked, and are set aside")
        }
        Err(error) => {
            error!(why = %why, %error, "counters of a killed process cannot be booked, nor set aside")
        }
    }
    None
}
