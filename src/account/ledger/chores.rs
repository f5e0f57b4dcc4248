//! What is done between bookings, a little at a time: hours that are over are added up in their day, old ones go, and accounts get the names of today.

use std::fmt::Write as _;
use std::time::Duration;

use jiff::Timestamp;
use rusqlite::{OptionalExtension, Transaction, TransactionBehavior};
use sha2::{Digest, Sha256};

use super::hours::Hour;
use super::store::{Store, fact, number, on_conflict, set_fact};
use super::trouble::Trouble;

/// Rows taken away in one go: some milliseconds.
const ROWS: i64 = 5_000;

/// Accounts looked at in one go.
const NAMES: i64 = 2_000;

/// How far the clock may go otherwise than time does: it is adjusted by a bit now and then.
const ADJUSTED: Duration = Duration::from_secs(60);

/// After the clock jumped, how long it must have gone well before hours are taken away by what it says. A clock that is wrong by years must not cost
/// the books; it has a day to be noticed.
const PROBATION: Duration = Duration::from_secs(24 * 3600);

/// Whether the clock may be believed in what cannot be undone.
#[derive(Debug)]
pub struct Clock {
    seen: (Timestamp, u64),
    /// In milliseconds of the monotonic clock.
    believed_from: u64,
}

impl Clock {
    /// A clock that reads `now` at `monotonic_ms`; the last booking of the process before was at `booked`. Long ago, or yet to come: it has to
    /// prove itself.
    #[must_use]
    pub fn new(booked: Option<Timestamp>, now: Timestamp, monotonic_ms: u64) -> Self {
        let jumped = booked.is_some_and(|booked| apart(booked, now) > PROBATION);
        let mut clock = Self {
            seen: (now, monotonic_ms),
            believed_from: monotonic_ms,
        };
        if jumped {
            clock.doubt();
        }
        clock
    }

    /// Looks at it again: whether it is believed.
    pub fn look(&mut self, now: Timestamp, monotonic_ms: u64) -> bool {
        let passed = Duration::from_millis(monotonic_ms.saturating_sub(self.seen.1));
        let expected = self.seen.0.checked_add(passed).unwrap_or(now);
        self.seen = (now, monotonic_ms);
        if apart(expected, now) > ADJUSTED {
            self.doubt();
        }
        monotonic_ms >= self.believed_from
    }

    fn doubt(&mut self) {
        let probation = u64::try_from(PROBATION.as_millis()).unwrap_or(u64::MAX);
        self.believed_from = self.seen.1.saturating_add(probation);
    }
}

fn apart(one: Timestamp, other: Timestamp) -> Duration {
    one.duration_since(other).unsigned_abs()
}

impl Store {
    /// Adds one hour that is over to its day. Returns whether there was one. What is booked to it later goes to both.
    ///
    /// # Errors
    /// [`Trouble`]: then it was not added.
    pub fn roll(&mut self, now: Timestamp) -> Result<bool, Trouble> {
        let done = self.roll_before(Hour::of(now));
        done.map_err(|error| Trouble::of(&self.path, &error))
    }

    fn roll_before(&mut self, before: Hour) -> rusqlite::Result<bool> {
        let rolled = number(&self.connection, "rolled")?.unwrap_or(0);
        let next: Option<i64> = self
            .connection
            .prepare_cached("SELECT min(hour) FROM hours WHERE hour > ?1")?
            .query_row([rolled], |row| row.get(0))?;
        let Some(hour) = next.filter(|hour| *hour < before.0) else {
            return Ok(false);
        };
        let transaction =
            Transaction::new_unchecked(&self.connection, TransactionBehavior::Immediate)?;
        let sql = format!(
            "INSERT INTO days SELECT ?2, id, opened, closed, refused, bytes_to_upstream, bytes_to_client, connection_ms, peak
             FROM hours WHERE hour = ?1 {}",
            on_conflict("day")
        );
        transaction
            .prepare_cached(&sql)?
            .execute([hour, hour.div_euclid(24)])?;
        set_fact(&transaction, "rolled", &hour.to_string())?;
        transaction.commit()?;
        Ok(true)
    }

    /// Takes away some of the hours that are older than `keep`, by whole days. Returns whether there are more.
    ///
    /// # Errors
    /// [`Trouble`]: then nothing was taken away.
    pub fn prune(&mut self, now: Timestamp, keep: Duration) -> Result<bool, Trouble> {
        let first_kept = now.checked_sub(keep).map(Hour::of);
        let Ok(Hour(first_kept)) = first_kept else {
            return Ok(false); // kept since before there was time
        };
        let done = self.prune_before(Hour(first_kept - first_kept.rem_euclid(24)));
        done.map_err(|error| Trouble::of(&self.path, &error))
    }

    fn prune_before(&mut self, first_kept: Hour) -> rusqlite::Result<bool> {
        let old = |(table, period): (&str, &str)| {
            let sql = format!("SELECT 1 FROM {table} WHERE {period} < ?1 LIMIT 1");
            self.connection.prepare_cached(&sql)?.exists([first_kept.0])
        };
        let mut any = false;
        for table in ["hours", "hour_reasons", "exports", "anchors"] {
            any |= old((table, "hour"))?;
        }
        any |= old(("days", "day * 24"))?;
        if !any {
            return Ok(false);
        }
        let transaction =
            Transaction::new_unchecked(&self.connection, TransactionBehavior::Immediate)?;
        let pruned: Option<i64> = fact(&transaction, "pruned")?.and_then(|text| text.parse().ok());
        let last = first_kept.0 - 1;
        if pruned.is_none_or(|pruned| pruned < last) {
            set_fact(&transaction, "pruned", &last.to_string())?;
        }
        let mut more = false;
        for (table, period, key, first) in [
            ("hours", "hour", "hour, id", first_kept.0),
            ("hour_reasons", "hour", "hour, id, why", first_kept.0),
            ("days", "day", "day, id", first_kept.0.div_euclid(24)),
        ] {
            // All before the row that is so many further, or all that are old.
            let bound = format!(
                "SELECT {period}, id FROM {table} WHERE {period} < ?1 ORDER BY {key} LIMIT 1 OFFSET ?2"
            );
            let bound: Option<(i64, i64)> = transaction
                .prepare_cached(&bound)?
                .query_row([first, ROWS], |row| Ok((row.get(0)?, row.get(1)?)))
                .optional()?;
            more |= bound.is_some();
            let (first, id) = bound.unwrap_or((first, i64::MIN));
            transaction
                .prepare_cached(&format!(
                    "DELETE FROM {table} WHERE ({period}, id) < (?1, ?2)"
                ))?
                .execute([first, id])?;
        }
        if !more {
            for table in ["exports", "anchors"] {
                let sql = format!("DELETE FROM {table} WHERE hour < ?1");
                transaction.prepare_cached(&sql)?.execute([first_kept.0])?;
            }
            // Those that no slot counts for and that have no hour any more.
            transaction
                .prepare_cached(
                    "DELETE FROM accounts WHERE last < ?1 AND id NOT IN (SELECT id FROM marks)",
                )?
                .execute([first_kept.0])?;
        }
        transaction.commit()?;
        Ok(more)
    }

    /// Looks whether the names of the configuration are those that the ledger has.
    pub(super) fn begin_naming(&mut self) -> rusqlite::Result<()> {
        let same = fact(&self.connection, "names")? == Some(self.names_digest());
        self.naming = (!same).then_some(i64::MIN);
        Ok(())
    }

    /// Gives some accounts the names of today's configuration. Returns whether there are more.
    ///
    /// # Errors
    /// [`Trouble`]: then none got one.
    pub fn name(&mut self) -> Result<bool, Trouble> {
        let Some(after) = self.naming else {
            return Ok(false);
        };
        let done = self.name_after(after);
        self.naming = done.map_err(|error| Trouble::of(&self.path, &error))?;
        Ok(self.naming.is_some())
    }

    fn name_after(&self, after: i64) -> rusqlite::Result<Option<i64>> {
        let transaction =
            Transaction::new_unchecked(&self.connection, TransactionBehavior::Immediate)?;
        let mut last = None;
        {
            let mut statement = transaction.prepare_cached(
                "SELECT id, endpoint, name, account, tags FROM accounts WHERE id > ?1 ORDER BY id LIMIT ?2",
            )?;
            let rows = statement.query_map([after, NAMES], |row| {
                let text = |column| row.get::<_, String>(column);
                Ok((
                    row.get::<_, i64>(0)?,
                    text(1)?,
                    [text(2)?, text(3)?, text(4)?],
                ))
            })?;
            let rows = rows.collect::<rusqlite::Result<Vec<_>>>()?;
            let mut update = transaction.prepare_cached(
                "UPDATE accounts SET name = ?2, account = ?3, tags = ?4 WHERE id = ?1",
            )?;
            for (id, endpoint, known) in rows {
                last = Some(id);
                let named = self.names.named(&endpoint);
                let today = [&*named.name, &*named.account, &*named.tags];
                if known != today {
                    update.execute((id, today[0], today[1], today[2]))?;
                }
            }
        }
        if last.is_none() {
            set_fact(&transaction, "names", &self.names_digest())?;
        }
        transaction.commit()?;
        Ok(last)
    }

    fn names_digest(&self) -> String {
        let mut digest = Sha256::new();
        for entry in &self.names.entries {
            digest.update(format!("{entry:?}\n"));
        }
        let mut text = String::new();
        for byte in digest.finalize() {
            let _ = write!(text, "{byte:02x}");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR_MS: u64 = 3_600_000;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn a_clock_that_jumps_has_a_day_to_prove_itself() {
        let start = at("2026-11-21T17:00:00Z");
        let mut clock = Clock::new(Some(start), start, 0);
        let after = |hours: u64| start + Duration::from_secs(hours * 3600);
        assert!(clock.look(after(1), HOUR_MS));
        // Ten years forward.
        let mad = at("2036-11-21T19:00:00Z");
        assert!(!clock.look(mad, 2 * HOUR_MS));
        assert!(!clock.look(mad + Duration::from_secs(3600), 3 * HOUR_MS));
        // And back again: that is a jump, too.
        assert!(!clock.look(after(4), 4 * HOUR_MS));
        assert!(!clock.look(after(27), 27 * HOUR_MS));
        assert!(clock.look(after(28), 28 * HOUR_MS));
    }

    #[test]
    fn a_clock_that_reads_otherwise_than_the_last_booking_has_to_prove_itself() {
        let now = at("2026-11-21T17:00:00Z");
        for booked in ["2025-11-21T17:00:00Z", "2036-11-21T17:00:00Z"] {
            let mut clock = Clock::new(Some(at(booked)), now, 5);
            assert!(!clock.look(now, 5), "{booked}");
        }
        assert!(Clock::new(None, now, 5).look(now, 5));
        let yesterday = at("2026-11-20T18:00:00Z");
        assert!(Clock::new(Some(yesterday), now, 5).look(now, 5));
    }

    #[test]
    fn a_clock_that_is_adjusted_by_seconds_is_believed() {
        let start = at("2026-11-21T17:00:00Z");
        let mut clock = Clock::new(None, start, 0);
        assert!(clock.look(start + Duration::from_secs(3570), HOUR_MS));
    }
}
