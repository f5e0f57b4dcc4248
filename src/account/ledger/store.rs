//! Booking: what was counted since the last time is added to the hour, in one transaction with the marks that say how far it was counted.
//!
//! Knows no threads and no clock: it is given what was counted and what time it is.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use rusqlite::{CachedStatement, Connection, OptionalExtension, Transaction, TransactionBehavior};

use super::hours::Hour;
use super::mark;
use super::schema;
use super::trouble::{Kind, Trouble};
use crate::account::{
    AccountKey, Anchor, CloseReason, Counters, Direction, REFUSED, SlotTotals, refused_name,
};
use crate::config::Endpoints;

/// 2026-01-01T00:00:00Z. There was no ledger before: a clock that says so was never set, and what it says is no hour to book to.
const EARLIEST: Hour = Hour(490_896);

/// A log of changes (`-wal`) of this size is taken up with some patience for readers; beyond the second, nothing more is added to it.
const WAL: WalBounds = WalBounds {
    take_up: 64 << 20,
    most: 256 << 20,
};

/// See [`WAL`]. In bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct WalBounds {
    pub(super) take_up: u64,
    pub(super) most: u64,
}

/// The ledger, open for writing. One at a time: whoever has it holds the lock of the state directory.
#[derive(Debug)]
pub struct Store {
    pub(super) path: PathBuf,
    pub(super) connection: Connection,
    /// Which ledger it is: no other has this number.
    pub(super) id: u64,
    /// The file that was opened: device and inode.
    pub(super) file: (u64, u64),
    /// What the file had at least when it was looked at last, and the number that others' writing to it had then.
    pub(super) had: (u64, i64),
    relay: String,
    pub(super) names: Endpoints,
    closed: [i64; CloseReason::ALL.len()],
    refused: [i64; REFUSED],
    /// The counter file whose slots say truly how far they are booked: the last booking of it went well, and this is the process that made it.
    settled: Option<u64>,
    anchored: Option<Anchor>,
    /// How far accounts have been given their names of today; `None`: all have.
    pub(super) naming: Option<i64>,
    pub(super) wal: WalBounds,
}

/// What there is to book.
#[derive(Debug, Clone, Copy)]
pub struct Batch<'a> {
    /// Whose slots they are: the counter file's id.
    pub file: u64,
    /// The ledger that the counter file names: the one that has a mark of whatever was booked of it. 0: none, or not known.
    pub ledger: u64,
    /// Whether these are all slots that somebody has.
    pub whole: bool,
    /// What they hold.
    pub slots: &'a [SlotTotals],
    /// Whether nobody will count in this file again.
    pub finished: bool,
    /// Where the audit trail stands.
    pub anchor: Option<&'a Anchor>,
}

/// What was booked.
#[derive(Debug, Default)]
pub struct Booked {
    /// To which hour; `None` where nothing had changed and nothing was written.
    pub hour: Option<Hour>,
    /// Accounts whose numbers changed.
    pub accounts: usize,
    /// How far slots are booked now, slot, generation and numbers: those for which the counter file does not say so yet.
    pub marks: Vec<(u32, u64, Counters)>,
    /// The ledger to be named by the counter file from now on: it has a mark, and for good, of whatever was booked.
    pub ledger: Option<u64>,
}

struct Mark {
    generation: u64,
    id: i64,
    hour: Hour,
    counters: Counters,
}

impl Store {
    /// Opens the ledger at `path`, makes it where there is none.
    ///
    /// # Errors
    /// [`Trouble`].
    pub fn open(path: &Path, relay: &str, names: &Endpoints) -> Result<Self, Trouble> {
        let connection = schema::open(path)?;
        let failed = |error: rusqlite::Error| Trouble::of(path, &error);
        let why = |what: &str, reason: &str| {
            let sql = "SELECT id FROM why WHERE what = ?1 AND reason = ?2";
            connection.query_row(sql, (what, reason), |row| row.get(0))
        };
        let (mut closed, mut refused) = ([0; CloseReason::ALL.len()], [0; REFUSED]);
        for (place, reason) in closed.iter_mut().zip(CloseReason::ALL) {
            *place = why("closed", reason.name()).map_err(failed)?;
        }
        for (index, place) in refused.iter_mut().enumerate() {
            *place = why("refused", refused_name(index)).map_err(failed)?;
        }
        let file = fs::metadata(path).map_err(|error| Trouble::io(path, &error))?;
        let mut store = Self {
            path: path.to_owned(),
            id: 0,
            file: (file.dev(), file.ino()),
            had: (0, 0),
            relay: relay.to_owned(),
            names: names.clone(),
            closed,
            refused,
            settled: None,
            anchored: None,
            naming: None,
            wal: WAL,
            connection,
        };
        store.anchored = last_anchor(&store.connection).map_err(failed)?;
        store.begin_naming().map_err(failed)?;
        store.id = store.identify().map_err(failed)?;
        store.remember_size().map_err(failed)?;
        Ok(store)
    }

    /// Books what was counted, all of it or nothing. What is marked already is not booked again, whatever the counter file says.
    ///
    /// # Errors
    /// [`Trouble`]: then nothing is booked.
    pub fn book(&mut self, now: Timestamp, batch: &Batch<'_>) -> Result<Booked, Trouble> {
        self.is_there()?;
        if self.settled == Some(batch.file) && !self.has_news(batch) {
            return Ok(Booked::default());
        }
        self.bound_wal()?;
        self.settled = None; // until it went well
        let mut booked = self.try_to_book(now, batch)?;
        // Where it is not, what was written just now is in no ledger that anybody finds, and is booked again into the next.
        self.is_there()?;
        self.remember_size()
            .map_err(|error| Trouble::of(&self.path, &error))?;
        if batch.whole && batch.ledger != self.id && self.is_in_the_file() {
            booked.ledger = Some(self.id);
        }
        self.settled = Some(batch.file);
        if batch.anchor.is_some() {
            self.anchored = batch.anchor.cloned();
        }
        Ok(booked)
    }

    fn has_news(&self, batch: &Batch<'_>) -> bool {
        let changed = |slot: &SlotTotals| slot.totals.counters != slot.booked;
        let moved = batch.anchor.is_some() && batch.anchor != self.anchored.as_ref();
        batch.finished || moved || batch.slots.iter().any(changed)
    }

    fn try_to_book(&mut self, now: Timestamp, batch: &Batch<'_>) -> Result<Booked, Trouble> {
        let (path, connection) = (&self.path, &self.connection);
        let failed = |error: rusqlite::Error| Trouble::of(path, &error);
        let transaction = Transaction::new_unchecked(connection, TransactionBehavior::Immediate)
            .map_err(failed)?;
        let hour = hour_to_book_to(&transaction, now)
            .map_err(failed)?
            .ok_or_else(|| {
                let what = format!("the clock says {now}, which cannot be");
                Trouble::new(Kind::Clock, path, what)
            })?;
        let marks = marks(&transaction, path, batch.file)?;
        let mut entry = Entry::new(&transaction, self, hour).map_err(failed)?;
        let mut booked = Booked {
            hour: Some(hour),
            ..Booked::default()
        };
        let named = batch.ledger == self.id;
        let nothing = Counters::default();
        for slot in batch.slots {
            let mark = marks.get(&slot.slot);
            if mark.is_some_and(|mark| mark.generation > slot.generation) {
                continue; // a life of that slot that ended long ago, wholly booked
            }
            let mark = mark.filter(|mark| mark.generation == slot.generation);
            // What this ledger has a mark of was booked into it, and nothing else. What another one has, the counter file says.
            let unmarked = if named { &nothing } else { &slot.booked };
            let before = mark.map_or(unmarked, |mark| &mark.counters);
            // The truth of yesterday stands where a number became smaller, which only a file that was tampered with has.
            let counters = before.plus(&slot.totals.counters.since(before));
            if counters != *before {
                let added = counters.since(before);
                let account = (&slot.totals.key, slot.totals.peak, mark);
                let id = entry.add(account, &added).map_err(failed)?;
                let place = (batch.file, slot.slot, slot.generation);
                entry.mark(place, id, &counters).map_err(failed)?;
                booked.accounts += 1;
            } else if mark.is_none() && counters != nothing {
                let id = entry.account(&slot.totals.key).map_err(failed)?;
                let place = (batch.file, slot.slot, slot.generation);
                entry.mark(place, id, &counters).map_err(failed)?;
            }
            if counters != slot.booked {
                booked.marks.push((slot.slot, slot.generation, counters));
            }
        }
        drop(entry);
        note(&transaction, now, hour, batch)
            .and_then(|()| transaction.commit())
            .map_err(failed)?;
        Ok(booked)
    }

    /// Forgets the marks of a counter file that is no more. What was open in it and never told to have closed (its memory is gone: a reboot, a power
    /// cut) is closed as crashed, so that opened and closed add up. Returns how many connections those were.
    ///
    /// # Errors
    /// [`Trouble`]: then it is as before.
    pub fn forget_all_but(&mut self, now: Timestamp, present: &[u64]) -> Result<u64, Trouble> {
        let failed = |error: rusqlite::Error| Trouble::of(&self.path, &error);
        let transaction =
            Transaction::new_unchecked(&self.connection, TransactionBehavior::Immediate)
                .map_err(failed)?;
        let files: Vec<(i64, bool)> = {
            let mut statement = transaction
                .prepare("SELECT file, finished FROM files")
                .map_err(failed)?;
            let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)));
            rows.and_then(Iterator::collect).map_err(failed)?
        };
        let mut crashed = 0;
        for (file, finished) in files {
            let file = file.cast_unsigned();
            if present.contains(&file) {
                continue;
            }
            if !finished {
                let Some(hour) = hour_to_book_to(&transaction, now).map_err(failed)? else {
                    continue; // the clock is not set yet: the next start does it
                };
                let marks = marks(&transaction, &self.path, file)?;
                let mut entry = Entry::new(&transaction, self, hour).map_err(failed)?;
                for mark in marks.values().filter(|mark| mark.counters.active() > 0) {
                    let mut cut = Counters::default();
                    cut.closed[CloseReason::Crashed as usize] = mark.counters.active();
                    crashed += mark.counters.active();
                    entry.add_to(mark.id, 0, &cut).map_err(failed)?;
                }
            }
            forget(&transaction, file).map_err(failed)?;
        }
        transaction.commit().map_err(failed)?;
        Ok(crashed)
    }

    /// Forgets a counter file that was wholly booked and taken away.
    ///
    /// # Errors
    /// [`Trouble`].
    pub fn forget(&mut self, file: u64) -> Result<(), Trouble> {
        forget(&self.connection, file).map_err(|error| Trouble::of(&self.path, &error))
    }

    /// When the last booking was, as far as the ledger knows.
    ///
    /// # Errors
    /// [`Trouble`].
    pub fn last_booked(&self) -> Result<Option<Timestamp>, Trouble> {
        let text = fact(&self.connection, "booked");
        let text = text.map_err(|error| Trouble::of(&self.path, &error))?;
        Ok(text.and_then(|text| text.parse().ok()))
    }

    /// Where the audit trail stood at the last booking.
    #[must_use]
    pub fn last_anchor(&self) -> Option<&Anchor> {
        self.anchored.as_ref()
    }

    /// What the ledger has on the disk, in bytes: the file and its log of changes.
    #[must_use]
    pub fn size(&self) -> u64 {
        file_size(&self.path) + file_size(&beside(&self.path, "-wal"))
    }

    /// Takes the log of changes up into the file, as far as readers let us, and ends.
    pub fn close(self) {
        // What is not taken up now is taken up at the next start: nothing is lost with the log of changes.
        let _ = self.take_up_wal();
        let _ = self.connection.close();
    }
}

/// The statements of one booking, and the hour it goes to.
struct Entry<'a> {
    store: &'a Store,
    hour: Hour,
    find: CachedStatement<'a>,
    make: CachedStatement<'a>,
    touch: CachedStatement<'a>,
    hours: CachedStatement<'a>,
    /// Where the hour is added up in its day already.
    days: Option<CachedStatement<'a>>,
    reasons: CachedStatement<'a>,
    marks: CachedStatement<'a>,
}

impl<'a> Entry<'a> {
    fn new(
        transaction: &'a Transaction<'_>,
        store: &'a Store,
        hour: Hour,
    ) -> rusqlite::Result<Self> {
        Ok(Self {
            store,
            hour,
            find: transaction.prepare_cached(
                "SELECT id FROM accounts WHERE relay = ?1 AND endpoint = ?2 AND consumer = ?3 AND listener = ?4 AND upstream = ?5",
            )?,
            make: transaction.prepare_cached(
                "INSERT INTO accounts (relay, endpoint, consumer, listener, upstream, name, account, tags, last)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9) RETURNING id",
            )?,
            touch: transaction
                .prepare_cached("UPDATE accounts SET last = ?2 WHERE id = ?1 AND last < ?2")?,
            hours: transaction.prepare_cached(&add_up("hours", "hour"))?,
            days: match number(transaction, "rolled")? {
                Some(rolled) if rolled >= hour.0 => {
                    Some(transaction.prepare_cached(&add_up("days", "day"))?)
                }
                _ => None,
            },
            reasons: transaction.prepare_cached(
                "INSERT INTO hour_reasons VALUES (?1, ?2, ?3, ?4)
                 ON CONFLICT (hour, id, why) DO UPDATE SET count = count + excluded.count",
            )?,
            marks: transaction.prepare_cached(
                "INSERT INTO marks VALUES (?1, ?2, ?3, ?4, ?5, ?6) ON CONFLICT (file, slot) DO UPDATE SET
                   generation = excluded.generation, id = excluded.id, hour = excluded.hour, counters = excluded.counters",
            )?,
        })
    }

    /// Adds to an account's hour and returns the account's number. The mark knows it, and that it was touched in this hour; else it is looked for.
    fn add(
        &mut self,
        (key, peak, mark): (&AccountKey, u64, Option<&Mark>),
        added: &Counters,
    ) -> rusqlite::Result<i64> {
        let id = match mark {
            Some(mark) => mark.id,
            None => self.account(key)?,
        };
        if mark.is_none_or(|mark| mark.hour != self.hour) {
            self.touch.execute((id, self.hour.0))?;
        }
        self.add_to(id, peak, added)?;
        Ok(id)
    }

    fn account(&mut self, key: &AccountKey) -> rusqlite::Result<i64> {
        let (relay, endpoint) = (&*self.store.relay, &*key.endpoint);
        let dimensions = (
            relay,
            endpoint,
            &*key.consumer,
            &*key.listener,
            &*key.upstream,
        );
        let found = self.find.query_row(dimensions, |row| row.get(0));
        if let Some(id) = found.optional()? {
            return Ok(id);
        }
        let named = self.store.names.named(endpoint);
        let named = (&*named.name, &*named.account, &*named.tags);
        let (relay, endpoint, consumer, listener, upstream) = dimensions;
        let dimensions = [relay, endpoint, consumer, listener, upstream];
        self.make.query_row(
            rusqlite::params![
                dimensions[0],
                dimensions[1],
                dimensions[2],
                dimensions[3],
                dimensions[4],
                named.0,
                named.1,
                named.2,
                self.hour.0
            ],
            |row| row.get(0),
        )
    }

    fn add_to(&mut self, id: i64, peak: u64, added: &Counters) -> rusqlite::Result<()> {
        let row = |period: i64| {
            [
                period,
                id,
                int(added.opened),
                int(added.closed()),
                int(added.refused()),
                int(added.bytes[Direction::ToUpstream as usize]),
                int(added.bytes[Direction::ToClient as usize]),
                int(added.connection_ms),
                int(peak),
            ]
        };
        self.hours.execute(row(self.hour.0))?;
        if let Some(days) = &mut self.days {
            days.execute(row(self.hour.0.div_euclid(24)))?;
        }
        let closed = self.store.closed.iter().zip(added.closed);
        let refused = self.store.refused.iter().zip(added.refused);
        for (why, count) in closed.chain(refused).filter(|(_, count)| *count > 0) {
            self.reasons.execute((self.hour.0, id, why, int(count)))?;
        }
        Ok(())
    }

    fn mark(
        &mut self,
        (file, slot, generation): (u64, u32, u64),
        id: i64,
        counters: &Counters,
    ) -> rusqlite::Result<()> {
        self.marks.execute((
            file.cast_signed(),
            slot,
            generation.cast_signed(),
            id,
            self.hour.0,
            mark::encode(counters),
        ))?;
        Ok(())
    }
}

/// Notes of the booking what is not about an account.
fn note(
    connection: &Connection,
    now: Timestamp,
    hour: Hour,
    batch: &Batch<'_>,
) -> rusqlite::Result<()> {
    connection
        .prepare_cached(
            "INSERT INTO files VALUES (?1, ?2, ?3)
             ON CONFLICT (file) DO UPDATE SET last = excluded.last, finished = max(finished, excluded.finished)",
        )?
        .execute((batch.file.cast_signed(), hour.0, batch.finished))?;
    set_fact(connection, "booked", &now.to_string())?;
    let Some(anchor) = batch.anchor else {
        return Ok(());
    };
    let text = serde_json::to_string(anchor)
        .map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))?;
    set_fact(connection, "anchor", &text)?;
    connection
        .prepare_cached(
            "INSERT INTO anchors VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT (hour) DO UPDATE SET
               time = excluded.time, sequence = excluded.sequence, hash = excluded.hash, file = excluded.file",
        )?
        .execute((
            hour.0,
            anchor.time.to_string(),
            int(anchor.sequence),
            &anchor.hash,
            &anchor.file,
        ))?;
    Ok(())
}

/// The hour that `now` is booked to: one that was exported gets nothing more, and neither does one that is too old to be kept. `None`: the clock
/// was never set.
fn hour_to_book_to(connection: &Connection, now: Timestamp) -> rusqlite::Result<Option<Hour>> {
    let mut hour = Hour::of(now);
    if hour < EARLIEST {
        return Ok(None);
    }
    if let Some(pruned) = number(connection, "pruned")? {
        hour = hour.max(Hour(pruned).next());
    }
    let mut sealed = connection.prepare_cached("SELECT 1 FROM exports WHERE hour = ?1")?;
    while sealed.exists([hour.0])? {
        hour = hour.next();
    }
    Ok(Some(hour))
}

fn marks(connection: &Connection, path: &Path, file: u64) -> Result<HashMap<u32, Mark>, Trouble> {
    let failed = |error: rusqlite::Error| Trouble::of(path, &error);
    let sql = "SELECT slot, generation, id, hour, counters FROM marks WHERE file = ?1";
    let mut statement = connection.prepare_cached(sql).map_err(failed)?;
    let mut rows = statement.query([file.cast_signed()]).map_err(failed)?;
    let mut marks = HashMap::new();
    while let Some(row) = rows.next().map_err(failed)? {
        let read = || -> rusqlite::Result<(u32, Option<Mark>)> {
            let (generation, id, hour): (i64, _, _) = (row.get(1)?, row.get(2)?, row.get(3)?);
            let counters = mark::decode(row.get_ref(4)?.as_blob()?);
            let mark = counters.map(|counters| Mark {
                generation: generation.cast_unsigned(),
                id,
                hour: Hour(hour),
                counters,
            });
            Ok((row.get(0)?, mark))
        };
        let (slot, mark) = read().map_err(failed)?;
        let Some(mark) = mark else {
            let what = format!("the mark of slot {slot} cannot be read");
            return Err(Trouble::new(Kind::Damaged, path, what));
        };
        marks.insert(slot, mark);
    }
    Ok(marks)
}

fn forget(connection: &Connection, file: u64) -> rusqlite::Result<()> {
    for sql in [
        "DELETE FROM marks WHERE file = ?1",
        "DELETE FROM files WHERE file = ?1",
    ] {
        connection.execute(sql, [file.cast_signed()])?;
    }
    Ok(())
}

pub(super) fn fact(connection: &Connection, key: &str) -> rusqlite::Result<Option<String>> {
    let mut statement = connection.prepare_cached("SELECT value FROM facts WHERE key = ?1")?;
    statement.query_row([key], |row| row.get(0)).optional()
}

/// A fact that is a number.
pub(super) fn number(connection: &Connection, key: &str) -> rusqlite::Result<Option<i64>> {
    Ok(fact(connection, key)?.and_then(|text| text.parse().ok()))
}

/// Adds a row's numbers to those that are there.
fn add_up(table: &str, period: &str) -> String {
    format!(
        "INSERT INTO {table} VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9) {}",
        on_conflict(period)
    )
}

pub(super) fn on_conflict(period: &str) -> String {
    format!(
        "ON CONFLICT ({period}, id) DO UPDATE SET
           opened = opened + excluded.opened, closed = closed + excluded.closed, refused = refused + excluded.refused,
           bytes_to_upstream = bytes_to_upstream + excluded.bytes_to_upstream,
           bytes_to_client = bytes_to_client + excluded.bytes_to_client,
           connection_ms = connection_ms + excluded.connection_ms, peak = max(peak, excluded.peak)"
    )
}

pub(super) fn set_fact(connection: &Connection, key: &str, value: &str) -> rusqlite::Result<()> {
    let sql =
        "INSERT INTO facts VALUES (?1, ?2) ON CONFLICT (key) DO UPDATE SET value = excluded.value";
    connection.prepare_cached(sql)?.execute((key, value))?;
    Ok(())
}

/// Where the audit trail stood at the last booking.
pub(super) fn last_anchor(connection: &Connection) -> rusqlite::Result<Option<Anchor>> {
    let text = fact(connection, "anchor")?;
    Ok(text.and_then(|text| serde_json::from_str(&text).ok()))
}

pub(super) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

pub(super) fn file_size(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |metadata| metadata.len())
}

/// SQLite's numbers have a sign. 9.2 exabytes are enough for an hour.
fn int(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
