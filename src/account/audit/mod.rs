//! The audit trail: one record for each session that is opened, goes on or ends, for each connection that is refused, and for what the process itself does;
//! each tied to the one before by a hash.
//!
//! ```no_run
//! # use std::{rc::Rc, time::Duration};
//! # use tollgate::{account::audit::{About, Trail}, config::Config};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let config = Config::from_str("", "an example").map_err(|_| "no configuration")?;
//! let about = About { relay_id: &config.relay_id, config: "its digest", workers: 2 };
//! // One scribe for each worker, which wraps it in an `Rc`: sessions share it.
//! // With what the ledger knows of the trail, `Ledger::last_anchor`, where there is one.
//! let (trail, scribes) = Trail::start(&config.audit, &about, None)?;
//! // In a worker, right before a session is opened:
//! # let scribe = scribes.into_iter().next().map(Rc::new).ok_or("no worker")?;
//! if scribe.may_open() { /* Scribe::open, then Entry::progress, then Entry::close */ }
//! // At each booking, on the ledger's thread: what is to be kept in the ledger. It is also said in the log.
//! let anchor = trail.head(Duration::from_secs(5));
//! // For /metrics, /readyz and /status; `None`: there is no trail.
//! let status = trail.status();
//! // When the workers have ended and before the ledger books for the last time:
//! let head = trail.end();
//! # Ok(()) }
//! ```
//!
//! The way of a record: [`Scribe`] makes it, of clones and numbers, and puts it into its worker's queue; the audit thread (`press`) makes a line of it (`json`),
//! ties it to the one before ([`chain`]) and gives it to the sink (`sink`). [`verify`] reads what came of it.

pub mod chain;
mod json;
mod press;
mod queue;
mod record;
mod recover;
mod sink;
pub mod verify;

use std::fs::File;
use std::hash::{BuildHasher, RandomState};
use std::io::{self, BufRead, BufReader, Read};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::{Sender, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tracing::{error, warn};

use self::chain::{Hash, Head, Key, LAST};
use self::json::Style;
use self::press::{Command, Known, Page, Past, Press, bytes_as_text, say};
pub use self::queue::{Entry, Scribe};
use self::queue::{Queues, Shared};
pub use self::record::{Facts, Leg, Refused};
use self::record::{Micros, now};
use self::recover::{LONGEST_LINE, Tail, may_be_ours, tail};
pub use self::sink::files;
use self::sink::{FileSink, PipeSink, Rotation, Sink, followed, open, set_aside};
use crate::account::{Anchor, Event};
use crate::config;
use crate::telemetry::LogLimiter;

/// How long an end waits for a sink that takes nothing.
const PATIENCE: Duration = Duration::from_secs(5);

/// What the records of a process have in common.
#[derive(Debug, Clone, Copy)]
pub struct About<'a> {
    /// What the relay is called.
    pub relay_id: &'a str,
    /// The digest of its configuration.
    pub config: &'a str,
    /// How many scribes are wanted.
    pub workers: usize,
}

/// Why there is no trail.
#[derive(Debug, thiserror::Error)]
pub enum TrailError {
    /// The file cannot be written.
    #[error("[audit] sink {path:?}: {error}")]
    Sink {
        /// Which.
        path: PathBuf,
        /// Why not.
        error: io::Error,
    },
    /// The key cannot be had.
    #[error("[audit] key_file {path:?}: {error}")]
    Key {
        /// Where it was to be.
        path: PathBuf,
        /// Why not.
        error: io::Error,
    },
    /// No thread.
    #[error("cannot start the audit thread: {0}")]
    Thread(io::Error),
}

/// The trail of this process, for everybody but the workers. Without a sink it does nothing.
#[derive(Debug)]
pub struct Trail(Option<Running>);

#[derive(Debug)]
struct Running {
    shared: Arc<Shared>,
    known: Arc<Mutex<Known>>,
    commands: Sender<Command>,
    thread: Mutex<Option<JoinHandle<()>>>,
    /// The number that was said in the log last.
    said: Mutex<u64>,
    /// How long an end waits for the sink.
    patience: Duration,
    /// The head that it ended with.
    last: Mutex<Option<Anchor>>,
    sink: config::Sink,
}

/// How the trail is.
#[derive(Debug, Clone)]
pub struct Status {
    /// Records written, or about to be, by [`Event`].
    pub records: [u64; Event::ALL.len()],
    /// Records that were dropped because the sink takes too little.
    pub dropped: u64,
    /// Records that wait for the sink.
    pub queued: u64,
    /// Why the sink takes nothing now, or too little for sessions to be opened.
    pub failing: Option<String>,
    /// No session is opened: [`Self::failing`], and `audit.on_full` is `block`.
    pub blocking: bool,
    /// The number of the last record that was written.
    pub sequence: u64,
    /// Its hash.
    pub head: String,
    /// Where records go: a path, or `stdout`.
    pub sink: String,
}

impl Trail {
    /// No trail.
    #[must_use]
    pub const fn off() -> Self {
        Self(None)
    }

    /// Opens the sink, goes on with the trail that is there, says that the process started, and gives each worker its scribe.
    ///
    /// `anchor` is the last that the ledger has: where it is of this file, and the file ends before it, records are missing. Then the trail goes on behind the
    /// anchor, so that the gap stays in it.
    ///
    /// # Errors
    /// See [`TrailError`].
    pub fn start(
        settings: &config::Audit,
        about: &About<'_>,
        anchor: Option<&Anchor>,
    ) -> Result<(Self, Vec<Scribe>), TrailError> {
        let key = match &settings.key_file {
            _ if settings.sink == config::Sink::Off => Key::none(),
            None => Key::none(),
            Some(path) => Key::read(path).map_err(|error| TrailError::Key {
                path: path.clone(),
                error,
            })?,
        };
        if let Some(path) = &settings.key_file
            && settings.sink != config::Sink::Off
            && Key::is_exposed(path)
        {
            warn!(
                key_file = %path.display(),
                "everybody on this machine can read or write the audit trail's key, and so forge the trail: chmod 0600"
            );
        }
        let resumed = match &settings.sink {
            config::Sink::Off => {
                let scribes = (0..about.workers).map(|_| Scribe::off());
                return Ok((Self::off(), scribes.collect()));
            }
            config::Sink::Stdout => standard_output().map_err(TrailError::Thread)?,
            config::Sink::File(path) => {
                let rotation = Rotation {
                    size: settings.rotate_size,
                    age: settings.rotate_age,
                };
                let known = anchor.and_then(|anchor| head_of(anchor, path));
                resume(path, &key, rotation, settings.interval, known).map_err(|error| {
                    TrailError::Sink {
                        path: path.clone(),
                        error,
                    }
                })?
            }
        };
        Self::run(settings, about, key, resumed, PATIENCE)
    }

    fn run(
        settings: &config::Audit,
        about: &About<'_>,
        key: Key,
        resumed: Resumed,
        patience: Duration,
    ) -> Result<(Self, Vec<Scribe>), TrailError> {
        // Another in each process on each machine.
        let process = RandomState::new().hash_one((about.relay_id, std::process::id(), now()));
        let shared = Arc::new(Shared::new(settings.on_full, about.workers));
        let known = Arc::new(Mutex::new(Known {
            head: resumed.head,
            why: None,
        }));
        let (scribes, queues): (Vec<_>, Vec<_>) = (0..about.workers)
            .map(|worker| Scribe::new(worker, &shared))
            .unzip();
        let mut page = Page {
            lines: Vec::new(),
            style: Style::new(about.relay_id, process),
            key,
            head: resumed.head,
        };
        let algorithm = page.key.algorithm();
        page.tell(Event::Started, |line| {
            line.text("version", env!("CARGO_PKG_VERSION"));
            line.number("pid", Some(std::process::id().into()));
            line.text("process", &format!("{process:016x}"));
            line.text("config", about.config);
            line.text("chain", algorithm);
            line.text("sink", resumed.sink.kind());
            if !resumed.torn.is_empty() {
                let hash = Key::none().hash(&resumed.torn);
                line.number("torn_bytes", Some(resumed.torn.len() as u64));
                line.text("torn_sha256", &hash.to_string());
                line.raw("torn", &bytes_as_text(&resumed.torn));
            }
            if let Some(aside) = &resumed.aside {
                line.text("damaged", &aside.to_string_lossy());
            }
            if let Some((from, to)) = resumed.missing {
                line.number("missing_from", Some(from));
                line.number("missing_to", Some(to));
            }
        });
        shared.written[Event::Started as usize].fetch_add(1, Relaxed);
        let (commands, asked) = channel();
        let press = Press {
            queues: Queues {
                queues,
                shared: shared.clone(),
            },
            commands: asked,
            known: known.clone(),
            sink: resumed.sink,
            page,
            sent: 0,
            config: about.config.to_owned(),
            past: resumed.past,
            crashed: Vec::new(),
            gaps_told: vec![[0; Event::ALL.len()]; about.workers],
            gap_log: LogLimiter::default(),
            whole_at: now(),
            leaving: None,
            looked_after: Instant::now(),
            misplaced: false,
            asked: (Instant::now(), 0),
        };
        let thread = std::thread::Builder::new()
            .name("audit".to_owned())
            .spawn(move || press.run(patience))
            .map_err(TrailError::Thread)?;
        // Nobody else sets it.
        let _ = shared.thread.set(thread.thread().clone());
        let trail = Self(Some(Running {
            shared,
            known,
            commands,
            thread: Mutex::new(Some(thread)),
            said: Mutex::default(),
            patience,
            last: Mutex::default(),
            sink: settings.sink.clone(),
        }));
        Ok((trail, scribes))
    }

    /// The head of everything that was handed over before: written, and synced where the sink is a file. Said in the log where it is another than the last time.
    /// `None`: there is no trail, or its sink has not taken everything within `timeout`. After [`Self::end`], what that was. For the ledger's thread; it waits.
    #[must_use]
    pub fn head(&self, timeout: Duration) -> Option<Anchor> {
        let running = self.0.as_ref()?;
        if let Some(last) = &*running.last.lock().unwrap_or_else(PoisonError::into_inner) {
            return Some(last.clone());
        }
        let (reply, answer) = sync_channel(1);
        running.ask(Command::Head(reply));
        let anchor = answer.recv_timeout(timeout).ok()?;
        let mut said = running.said.lock().unwrap_or_else(PoisonError::into_inner);
        if *said != anchor.sequence {
            *said = anchor.sequence;
            say(&anchor);
        }
        Some(anchor)
    }

    /// Another configuration is in force: a record tells it, where its digest is another.
    pub fn config_changed(&self, digest: &str) {
        if let Some(running) = &self.0 {
            running.ask(Command::Config(digest.to_owned()));
        }
    }

    /// How it is; `None`: there is none.
    #[must_use]
    pub fn status(&self) -> Option<Status> {
        let running = self.0.as_ref()?;
        let shared = &running.shared;
        let known = running.known.lock().unwrap_or_else(PoisonError::into_inner);
        let failing = failing(shared, known.why.as_ref());
        Some(Status {
            records: std::array::from_fn(|event| shared.written[event].load(Relaxed)),
            dropped: shared.dropped(),
            queued: shared.waiting(),
            blocking: failing.is_some() && shared.on_full == config::OnFull::Block,
            failing,
            sequence: known.head.sequence,
            head: known.head.hash.to_string(),
            sink: match &running.sink {
                config::Sink::File(path) => path.display().to_string(),
                config::Sink::Stdout | config::Sink::Off => "stdout".to_owned(),
            },
        })
    }

    /// Writes what is left and that the process ended; waits for the sink for five seconds at most. After the workers have ended. The last head, for the
    /// ledger's last booking; `None` where not everything could be written, which is said.
    pub fn end(&self) -> Option<Anchor> {
        let running = self.0.as_ref()?;
        let mut thread = running
            .thread
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let thread = thread.take()?;
        let (reply, answer) = sync_channel(1);
        running.ask(Command::End(reply));
        // A little longer than the thread waits: it may be in the middle of a call.
        let written = answer.recv_timeout(running.patience + Duration::from_millis(500));
        if written != Ok(true) {
            let lost = running.shared.waiting();
            let why = running.known.lock().unwrap_or_else(PoisonError::into_inner);
            error!(
                lost,
                error = why.why.as_deref(),
                "the audit trail could not be written to its end"
            );
            return None;
        }
        // It has nothing left to do.
        let _ = thread.join();
        let known = running.known.lock().unwrap_or_else(PoisonError::into_inner);
        let anchor = Anchor {
            time: Timestamp::now(),
            sequence: known.head.sequence,
            hash: known.head.hash.to_string(),
            file: match &running.sink {
                config::Sink::File(path) => path.display().to_string(),
                config::Sink::Stdout | config::Sink::Off => String::new(),
            },
        };
        say(&anchor);
        *running.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(anchor.clone());
        Some(anchor)
    }
}

/// Why sessions cannot be recorded now, or what is to be recorded is lost.
fn failing(shared: &Shared, why: Option<&String>) -> Option<String> {
    if shared.is_failing() {
        let why = why.cloned();
        return Some(why.unwrap_or_else(|| "a write takes longer than a second".to_owned()));
    }
    let slow = "records come faster than the sink takes them";
    shared.is_full().then(|| slow.to_owned())
}

impl Running {
    fn ask(&self, command: Command) {
        // Fails only after the end.
        let _ = self.commands.send(command);
        if let Some(thread) = self.shared.thread.get() {
            thread.unpark();
        }
    }
}

/// A sink, and the trail that is there already.
#[derive(Debug)]
struct Resumed {
    sink: Box<dyn Sink>,
    head: Head,
    /// What a kill left of the last line.
    torn: Vec<u8>,
    /// Where a file went that could not be gone on with.
    aside: Option<PathBuf>,
    /// The first and the last record that the ledger knows of and no file has.
    missing: Option<(u64, u64)>,
    past: Past,
}

/// Each process begins a trail of its own there: nobody can read what was written before.
fn standard_output() -> io::Result<Resumed> {
    let fd = io::stdout().as_fd().try_clone_to_owned()?;
    Ok(Resumed {
        sink: Box::new(PipeSink::new(fd)),
        head: Head::default(),
        torn: Vec::new(),
        aside: None,
        missing: None,
        past: Past::default(),
    })
}

/// Where an anchor says that the trail in `path` stands; `None`: it is another file's.
fn head_of(anchor: &Anchor, path: &Path) -> Option<Head> {
    let is_ours = anchor.file == path.display().to_string();
    let known = is_ours && (1..=LAST).contains(&anchor.sequence);
    Some(Head {
        sequence: anchor.sequence,
        hash: Hash::parse(&anchor.hash).filter(|_| known)?,
    })
}

/// Where a trail goes on whose files end with `found`, and which records are missing there. What the ledger knows stands above what the files say: it is
/// where whoever writes to the files is not.
fn held_against(anchor: Option<Head>, found: Head) -> (Head, Option<(u64, u64)>) {
    match anchor {
        Some(anchor) if found.sequence < anchor.sequence => {
            (anchor, Some((found.sequence + 1, anchor.sequence)))
        }
        Some(anchor) if found.sequence == anchor.sequence && found.hash != anchor.hash => {
            (anchor, Some((anchor.sequence, anchor.sequence)))
        }
        _ => (found, None),
    }
}

/// Opens a file and goes on with the trail that is in it, or in those before it. What a kill left of a line is taken out of the file, where it would be in
/// the way of whoever reads lines, and kept in the next record.
fn resume(
    path: &Path,
    key: &Key,
    rotation: Rotation,
    interval: Option<Duration>,
    anchor: Option<Head>,
) -> io::Result<Resumed> {
    let mut file = open(path, false)?;
    let mut before = followed(path);
    let known = anchor.is_some() || !before.is_empty();
    let (mut aside, mut torn, mut head) = (None, Vec::new(), None);
    match tail(&file, key)? {
        Tail::Whole {
            head: last,
            end,
            torn: rest,
        } => {
            seal(&file, end, &rest)?;
            (head, torn) = (Some(last), rest);
        }
        Tail::Empty { torn: rest } if known || may_be_ours(&rest) => {
            seal(&file, 0, &rest)?;
            torn = rest;
        }
        Tail::Damaged { head: last, ours } if known || ours => {
            let to = set_aside(path, now())?;
            let why = match (&last, ours) {
                (None, true) => {
                    "its last records do not fit together: it was written with another key, or changed"
                }
                _ => "it ends with what is no record",
            };
            error!(file = %path.display(), aside = %to.display(), why, "the audit file cannot be gone on with; it is set aside, and a new one begun");
            file = open(path, true)?;
            (head, aside) = (last, Some(to));
        }
        Tail::Empty { .. } | Tail::Damaged { .. } => {
            return Err(io::Error::other(
                "this is no audit file of tollgate's; name another, or move it away",
            ));
        }
    }
    // Killed between two files: the last that was followed tells.
    if head.is_none()
        && let Some(last) = before.last()
        && let Ok(last) = File::options().read(true).append(true).open(last)
        && let Tail::Whole {
            head: last_head,
            end,
            torn: rest,
        } = tail(&last, key)?
    {
        seal(&last, end, &rest)?;
        torn = [rest, torn].concat();
        head = Some(last_head);
    }
    before.extend(aside.clone());
    let (head, missing) = held_against(anchor, head.unwrap_or_default());
    if let Some((from, to)) = missing {
        error!(
            file = %path.display(),
            missing_from = from,
            missing_to = to,
            "audit records are missing that the ledger knows of: while no relay ran, the file was cut, emptied, changed or moved away. The trail goes on behind them, \
             and tollgate audit verify finds the gap unless it is given the files that have them"
        );
    }
    before.push(path.to_owned());
    let length = |path: PathBuf| {
        let length = path.metadata().ok()?.len();
        Some((path, length))
    };
    let past = Past {
        files: before.into_iter().rev().filter_map(length).collect(),
        // A session that lives has a record in each interval, and one more for what is on its way.
        window: interval.map(|interval| {
            let twice = Micros::try_from(interval.as_micros().saturating_mul(2));
            twice.unwrap_or(Micros::MAX / 4).saturating_add(60_000_000)
        }),
    };
    let began = first_time(&file).unwrap_or_else(now);
    Ok(Resumed {
        sink: Box::new(FileSink::new(path, file, began, rotation, key.clone())),
        head,
        torn,
        aside,
        missing,
        past,
    })
}

fn seal(file: &File, end: u64, torn: &[u8]) -> io::Result<()> {
    match torn {
        [] => Ok(()),
        _ => file.set_len(end),
    }
}

/// When the first record of a file was written.
fn first_time(file: &File) -> Option<Micros> {
    #[derive(serde::Deserialize)]
    struct First {
        time: Timestamp,
    }
    let mut line = Vec::new();
    let mut file = BufReader::new(file).take(LONGEST_LINE as u64);
    file.read_until(b'\n', &mut line).ok()?;
    let first: First = serde_json::from_slice(&line).ok()?;
    Some(first.time.as_microsecond())
}

#[cfg(test)]
mod tests;
