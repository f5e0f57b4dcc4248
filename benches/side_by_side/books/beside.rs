//! Requests while the books are read and written: scrapes of many accounts, a report over a year, a booking of many accounts.
//!
//! All of these are other threads' business, and a worker must not notice. Requests come at a set rate, a part of what the relay can do: their latency counts from
//! when each was due, so that whatever makes a worker late shows.

use std::{
    io::{self, Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use jiff::{SignedDuration, Timestamp};
use rusqlite::Connection;

use super::accounting::Interval;
use crate::{
    exchange::{Pace, Size, exchange},
    lab::{Ends, World},
    load::Outcome,
    peers::Running,
    processor::{self, Cores, Usage},
    rounds::shuffled,
    short::Short,
    summary::Spread,
    variant::Tuning,
};

/// Rounds unless said otherwise; and beyond this none is begun.
pub(crate) const ROUNDS: u32 = 8;
const BOUND: Duration = Duration::from_secs(140);

/// Accounts in memory.
pub(crate) const ACCOUNTS: usize = 50_000;
/// What the generated ledger holds: so many endpoints in each hour of so many days.
pub(crate) const ENDPOINTS: usize = 1_000;
pub(crate) const DAYS: i64 = 365;

/// How requests come.
pub(crate) const CONNECTIONS: usize = 64;
const SIZE: usize = 1024;
pub(crate) const PART_OF_CAPACITY: f64 = 0.3;

/// How long requests are measured at a time.
pub(crate) const LENGTH: Duration = Duration::from_millis(1500);
/// For finding out the capacity.
const TRIAL: Duration = Duration::from_millis(600);
/// How long a relay is left alone before its processor time is read.
const SETTLE: Duration = Duration::from_millis(40);
/// How long opening all accounts may take, and an answer.
const PATIENCE: Duration = Duration::from_secs(60);
/// Connections that are opened at a time for that.
const AT_A_TIME: usize = 64;

/// What goes on beside the requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Beside {
    /// Nothing; twice in each round: what these two differ by is noise.
    Nothing,
    NothingAgain,
    /// `/metrics`, again and again.
    Scrapes,
    /// The same where each account has its series.
    WholeScrapes,
    /// A report by endpoint and month, again and again.
    Reports,
    /// One booking of all accounts.
    Booking,
}

impl Beside {
    pub(crate) const ALL: [Self; 6] = [
        Self::Nothing,
        Self::NothingAgain,
        Self::Scrapes,
        Self::WholeScrapes,
        Self::Reports,
        Self::Booking,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::NothingAgain => "nothing, again",
            Self::Scrapes => "scrapes, 1,000 endpoints shown",
            Self::WholeScrapes => "scrapes, all endpoints shown",
            Self::Reports => "reports",
            Self::Booking => "a booking",
        }
    }
}

/// Requests of one round.
#[derive(Clone, Debug)]
pub(crate) struct Measured {
    pub(crate) round: u32,
    pub(crate) beside: Beside,
    pub(crate) outcome: Outcome,
    pub(crate) worker: Usage,
    /// All other threads.
    pub(crate) others: Duration,
    /// How long each answer took, and its bytes.
    pub(crate) answers: Vec<(Duration, usize)>,
}

/// All of it.
#[derive(Clone, Debug)]
pub(crate) struct Besides {
    pub(crate) measured: Vec<Measured>,
    pub(crate) rounds: u32,
    /// Requests a second.
    pub(crate) rate: f64,
    /// Rows of the ledger, its bytes, and how long it took to make.
    pub(crate) rows: u64,
    pub(crate) ledger: u64,
    pub(crate) made_in: Duration,
    pub(crate) took: Duration,
}

/// A relay with all those accounts.
struct Place<'a> {
    world: &'a World,
    relay: Running,
    socket: PathBuf,
}

/// In rounds; relays have numbers from `first` on.
pub(crate) fn beside(
    world: &World,
    cores: &Cores,
    binary: &Path,
    first: usize,
    wanted: u32,
) -> Result<Besides, String> {
    let began = Instant::now();
    let failed = |error: io::Error| format!("requests beside the books: {error}");
    let state = super::folder("beside").map_err(failed)?;
    let start =
        |number, state: &Path, more: &str| Place::start(world, cores, binary, number, state, more);
    // It makes the ledger; what a year has brought is written into that.
    drop(start(first, &state, "")?);
    let (made, until) = (Instant::now(), hour_ago());
    let rows = a_year(&state.join("ledger.db"), until)
        .map_err(|error| format!("a ledger of a year: {error}"))?;
    let made_in = made.elapsed();
    let ledger = state.join("ledger.db").metadata().map_err(failed)?.len();
    let shipped = start(first, &state, "")?;
    let whole = super::folder("beside-whole").map_err(failed)?;
    let whole = start(first + 1, &whole, "[metrics]\nmax_endpoints = 100000\n")?;
    whole.open_all().map_err(failed)?;
    shipped.open_all().map_err(failed)?;
    let rate = shipped.capacity().map_err(failed)? * PART_OF_CAPACITY;
    let mut all = Besides {
        measured: Vec::new(),
        rounds: 0,
        rate,
        rows,
        ledger,
        made_in,
        took: Duration::ZERO,
    };
    while all.rounds < wanted && (all.rounds == 0 || began.elapsed() < BOUND) {
        for turn in shuffled(Beside::ALL.len()) {
            let beside = Beside::ALL[turn];
            let place = match beside {
                Beside::WholeScrapes => &whole,
                _ => &shipped,
            };
            let measured = place.measure(all.rounds, beside, rate, until);
            all.measured.push(
                measured.map_err(|error| format!("requests beside {}: {error}", beside.name()))?,
            );
        }
        all.rounds += 1;
    }
    all.took = began.elapsed();
    Ok(all)
}

/// The last whole hour: what is generated ends there.
fn hour_ago() -> Timestamp {
    let second = Timestamp::now().as_second();
    Timestamp::from_second(second - second.rem_euclid(3600)).unwrap_or_default()
}

/// Fills a ledger; how many rows it has then.
fn a_year(path: &Path, until: Timestamp) -> rusqlite::Result<u64> {
    let ledger = Connection::open(path)?;
    let last = until.as_second() / 3600;
    // Half of the first year's price is that of waiting for a disk, and a ledger that is not whole after a power cut is made anew.
    ledger.execute_batch("PRAGMA synchronous = OFF; BEGIN")?;
    ledger.execute(
        "INSERT INTO accounts (relay, endpoint, consumer, listener, upstream, name, account, tags, last)
         WITH RECURSIVE n(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM n WHERE n + 1 < ?1)
         SELECT 'generated', printf('vpce-%017x', n), '', 'header', 'origin-by-name', 'consumer ' || n, printf('%012d', n), '', ?2 FROM n",
        (ENDPOINTS as i64, last - 1),
    )?;
    let rows = ledger.execute(
        "INSERT INTO hours (hour, id, opened, closed, refused, bytes_to_upstream, bytes_to_client, connection_ms, peak)
         WITH RECURSIVE h(h) AS (SELECT ?1 UNION ALL SELECT h + 1 FROM h WHERE h + 1 < ?2)
         SELECT h, id, 360, 360, 0, 1048576 * id, 16777216 + h, 3600000, 12 FROM h CROSS JOIN (SELECT id FROM accounts WHERE relay = 'generated' ORDER BY id)",
        (last - 24 * DAYS, last),
    )?;
    ledger.execute_batch("COMMIT; PRAGMA wal_checkpoint(TRUNCATE)")?;
    Ok(rows as u64)
}

impl<'a> Place<'a> {
    fn start(
        world: &'a World,
        cores: &Cores,
        binary: &Path,
        number: usize,
        state: &Path,
        more: &str,
    ) -> Result<Self, String> {
        // Nothing is booked but by those who ask, and all accounts have room.
        let end = format!("[ledger]\ninterval = \"1h\"\n[accounts]\nmax = 60000\n{more}");
        let tuning = Tuning {
            end,
            ..Tuning::default()
        };
        let relay = super::relay(world, cores, number, binary, tuning, state)?;
        let folder = relay.tollgate().map(|relay| relay.folder().to_owned());
        let socket = folder.unwrap_or_default().join("run/admin.sock");
        Ok(Self {
            world,
            relay,
            socket,
        })
    }

    /// A connection from each endpoint: all accounts are there, and have changed.
    fn open_all(&self) -> io::Result<()> {
        let short = Short::from_endpoints(self.world, &self.relay, AT_A_TIME, ACCOUNTS);
        short.each_once(PATIENCE).map(drop)
    }

    fn connect(&self) -> io::Result<Ends> {
        let (number, address) = (self.relay.number(), self.relay.address());
        self.world.connect(number, address, CONNECTIONS)
    }

    /// Requests a second that it can do.
    fn capacity(&self) -> io::Result<f64> {
        let ends = self.connect()?;
        let outcome = exchange(&ends, Size::Fixed(SIZE), Pace::AtOnce, TRIAL)?;
        Ok(outcome.units as f64 / outcome.elapsed.as_secs_f64())
    }

    fn measure(
        &self,
        round: u32,
        beside: Beside,
        rate: f64,
        until: Timestamp,
    ) -> io::Result<Measured> {
        let process = self.relay.process_id().ok_or(io::ErrorKind::NotFound)?;
        if beside == Beside::Booking {
            self.book(until)?; // what came before is none of this one's
            self.open_all()?;
        }
        let (size, pace) = (Size::Fixed(SIZE), Pace::Rate(rate));
        let ends = self.connect()?;
        exchange(&ends, size, pace, LENGTH / 4)?;
        thread::sleep(SETTLE);
        let used = || -> io::Result<(Usage, Duration)> {
            let worker = Usage::of_threads(process, |name| name.starts_with("worker"))?;
            Ok((worker, processor::with_ended(process)?))
        };
        let (worker, whole) = used()?;
        let over = AtomicBool::new(false);
        let (outcome, after, answers) = thread::scope(|scope| {
            let busy = scope.spawn(|| self.ask(beside, until, &over));
            let outcome = exchange(&ends, size, pace, LENGTH);
            // Before the last answer, which may take longer than the requests.
            let after = used();
            over.store(true, Ordering::Release);
            (outcome, after, busy.join().expect("it does not panic"))
        });
        let (outcome, (worker_after, whole_after), answers) = (outcome?, after?, answers?);
        let worker = worker_after.since(worker);
        drop(ends);
        thread::sleep(SETTLE); // closing is not in the next one's figures
        Ok(Measured {
            round,
            beside,
            outcome,
            worker,
            others: (whole_after - whole).saturating_sub(worker.ran),
            answers,
        })
    }

    /// Asks until it is over; a booking is made once.
    fn ask(
        &self,
        beside: Beside,
        until: Timestamp,
        over: &AtomicBool,
    ) -> io::Result<Vec<(Duration, usize)>> {
        let mut answers = Vec::new();
        while !over.load(Ordering::Acquire) {
            answers.push(match beside {
                Beside::Nothing | Beside::NothingAgain => break,
                Beside::Scrapes | Beside::WholeScrapes => self.get("/metrics")?,
                Beside::Reports => {
                    self.get(&format!("/usage?by=endpoint&by=month&until={until}"))?
                }
                Beside::Booking => {
                    answers.push(self.book(until)?);
                    break;
                }
            });
        }
        Ok(answers)
    }

    /// A report of no hour at all: what it takes is the booking that comes before each.
    fn book(&self, until: Timestamp) -> io::Result<(Duration, usize)> {
        let since = until + SignedDuration::from_hours(24);
        self.get(&format!("/usage?since={since}"))
    }

    /// How long an answer took, and its bytes.
    fn get(&self, path: &str) -> io::Result<(Duration, usize)> {
        let began = Instant::now();
        let mut stream = UnixStream::connect(&self.socket)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: tollgate\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes())?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        let took = began.elapsed();
        match answer.starts_with(b"HTTP/1.1 200 ") {
            true => Ok((took, answer.len())),
            false => {
                let said = String::from_utf8_lossy(&answer[..answer.len().min(400)]).into_owned();
                Err(io::Error::other(format!("{path}: {said}")))
            }
        }
    }
}

/// Figures of the requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Figure {
    /// Half of them take no longer, in microseconds.
    P50,
    /// 99 of 100 of them.
    P99,
    /// The worker's processor time for each, in microseconds.
    Worker,
    /// Other threads', by the time that was measured.
    Others,
    /// The part of the time in which the worker waited for its core.
    Waited,
}

impl Measured {
    pub(crate) fn figure(&self, figure: Figure) -> Option<f64> {
        let seconds = self.outcome.elapsed.as_secs_f64();
        let micros = |at: usize| Some(self.outcome.p50_p99?[at].as_secs_f64() * 1e6);
        match figure {
            Figure::P50 => micros(0),
            Figure::P99 => micros(1),
            Figure::Worker => Some(self.worker.ran.as_secs_f64() * 1e6 / self.outcome.units as f64),
            Figure::Others => Some(self.others.as_secs_f64() / seconds),
            Figure::Waited => Some(self.worker.waited.as_secs_f64() / seconds),
        }
    }
}

impl Besides {
    fn of(&self, beside: Beside) -> impl Iterator<Item = &Measured> {
        let measured = self.measured.iter();
        measured.filter(move |one| one.beside == beside)
    }

    pub(crate) fn figure(&self, beside: Beside, figure: Figure) -> Option<Spread> {
        Spread::of(self.of(beside).filter_map(|one| one.figure(figure)))
    }

    /// By the same beside nothing, round by round.
    pub(crate) fn ratio(&self, beside: Beside, figure: Figure) -> Option<Interval> {
        let ratio = |one: &Measured| {
            let mut without = self.of(Beside::Nothing);
            let without = without.find(|without| without.round == one.round)?;
            Some(one.figure(figure)? / without.figure(figure)?)
        };
        let ratios: Vec<f64> = self.of(beside).filter_map(ratio).collect();
        Interval::of(&ratios)
    }

    /// How long its answers took, in milliseconds; and how large they were, in bytes.
    pub(crate) fn answers(&self, beside: Beside) -> (Option<Spread>, Option<Spread>) {
        let all = || self.of(beside).flat_map(|one| &one.answers);
        (
            Spread::of(all().map(|(took, _)| took.as_secs_f64() * 1e3)),
            Spread::of(all().map(|(_, bytes)| *bytes as f64)),
        )
    }
}
