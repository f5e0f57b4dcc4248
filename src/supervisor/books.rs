//! The books of a process from its start to its end: what others left is taken over, what is counted is booked, and nothing is left behind that is
//! not wanted.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::task::{spawn_blocking, spawn_local};
use tracing::{error, info, warn};

use crate::account::audit::{About, Scribe, Trail, TrailError};
use crate::account::ledger::{Ledger, LedgerError, Settings};
use crate::account::leftover::{self, Leftover, LeftoverError};
use crate::account::{self, Anchor, Books, BooksError, Limits, Place};
use crate::config::Config;

/// How long a booking waits for the head of the audit trail: it goes without where the trail's sink is stuck.
const HEAD: Duration = Duration::from_secs(2);

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
    /// The audit trail cannot be begun.
    #[error(transparent)]
    Trail(#[from] TrailError),
}

/// The books while the process runs.
#[derive(Debug)]
pub(super) struct Keeping {
    pub(super) books: Arc<Books>,
    /// `None`: the books are in memory.
    pub(super) ledger: Option<Arc<Ledger>>,
    pub(super) trail: Arc<Trail>,
    anchoring: Arc<Anchoring>,
}

/// Where the ledger asks for the head of the trail. The ledger is first, because it has the lock: two processes must not write one trail.
#[derive(Debug, Default)]
struct Anchoring {
    trail: OnceLock<Arc<Trail>>,
    /// The head of all: when it has ended, the trail knows no more.
    last: OnceLock<Anchor>,
}

impl Anchoring {
    fn head(&self) -> Option<Anchor> {
        match self.last.get() {
            Some(last) => Some(last.clone()),
            None => self.trail.get()?.head(HEAD),
        }
    }
}

impl Keeping {
    /// Opens the books; from here on they are booked. Gives each worker its hand in the audit trail.
    pub(super) async fn begin(config: &Config) -> Result<(Self, Vec<Scribe>), KeepError> {
        let mut keeping = Self::open(config)?;
        let about = About {
            relay_id: &config.relay_id,
            config: &config.digest,
            workers: config.workers.get(),
        };
        let anchor = keeping
            .ledger
            .as_ref()
            .and_then(|ledger| ledger.last_anchor());
        match Trail::start(&config.audit, &about, anchor.as_ref()) {
            Ok((trail, scribes)) => {
                keeping.trail = Arc::new(trail);
                // Nobody else sets it.
                let _ = keeping.anchoring.trail.set(keeping.trail.clone());
                Ok((keeping, scribes))
            }
            Err(error) => {
                keeping.end().await;
                Err(error.into())
            }
        }
    }

    fn open(config: &Config) -> Result<Self, KeepError> {
        let anchoring = Arc::new(Anchoring::default());
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
            return Ok(Self::kept(Arc::new(books), None, anchoring, config));
        };
        std::fs::create_dir_all(run_dir).map_err(|error| KeepError::RunDir {
            path: run_dir.clone(),
            error,
        })?;
        let leftovers = take_over(run_dir);
        let counters = |place| Books::new(place, &names, workers, limits.clone());
        let books = match counters(Place::File(run_dir.clone())) {
            // They are booked while this process runs: the next one has the room.
            Err(why @ BooksError::NoRoom { .. }) if !leftovers.is_empty() => {
                error!(
                    %why,
                    leftovers = leftovers.len(),
                    "the counters of killed processes take up run_dir: those of this process are in memory until its end, and a kill costs what was counted since the last booking"
                );
                counters(Place::Unkept)
            }
            made => made,
        };
        let books = Arc::new(books?);
        let settings = Settings {
            state_dir: state_dir.clone(),
            interval: config.ledger.interval,
            keep: config.ledger.keep,
            relay: config.relay_id.to_string(),
            endpoints: config.endpoints.clone(),
        };
        let asked = anchoring.clone();
        let head = Box::new(move || asked.head());
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
        let ledger = Some(Arc::new(ledger));
        Ok(Self::kept(books, ledger, anchoring, config))
    }

    fn kept(
        books: Arc<Books>,
        ledger: Option<Arc<Ledger>>,
        anchoring: Arc<Anchoring>,
        config: &Config,
    ) -> Self {
        spawn_local(account::keep(books.clone(), config.accounts.idle_after));
        Self {
            books,
            ledger,
            trail: Arc::new(Trail::off()),
            anchoring,
        }
    }

    /// Says in the trail that the process ended, and books for the last time, that head too. Once nobody counts any more; each for a bounded time.
    pub(super) async fn end(self) {
        let trail = self.trail;
        // It waits for its sink; whoever asks for our health must not.
        if let Ok(Some(last)) = spawn_blocking(move || trail.end()).await {
            let _ = self.anchoring.last.set(last);
        }
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

/// What processes left that were killed. What is none of that, or not any more, is said and set aside.
fn take_over(run_dir: &Path) -> Vec<Leftover> {
    let found = leftover::find(run_dir).into_iter();
    found.filter_map(|path| take(&path)).collect()
}

fn take(path: &Path) -> Option<Leftover> {
    let taken = read(path);
    if let Some(found) = &taken
        && let Err(error) = leftover::shrink(&found.path)
    {
        warn!(path = %path.display(), %error, "counters of a killed process keep more room in run_dir than they need");
    }
    taken
}

fn read(path: &Path) -> Option<Leftover> {
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
            let _ = leftover::shrink(&aside); // it lies there for long
            error!(error = %why, aside = %aside.display(), "counters of a killed process cannot be booked, and are set aside")
        }
        Err(error) => {
            error!(why = %why, %error, "counters of a killed process cannot be booked, nor set aside")
        }
    }
    None
}
