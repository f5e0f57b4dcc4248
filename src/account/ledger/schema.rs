//! The ledger's tables, and the steps from each version of them to the next.

use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, TransactionBehavior};

use super::trouble::{Kind, Trouble};
use crate::account::{CloseReason, REFUSED, refused_name};

/// In the file's header, so that no other program's database is taken for a ledger: "toll".
const APPLICATION: i32 = 0x746f_6c6c;

/// Step `n` makes version `n + 1` of version `n`. Never changed once it was released: a new one is added.
pub const STEPS: &[&str] = &["
CREATE TABLE accounts (
  id       INTEGER PRIMARY KEY,
  relay    TEXT NOT NULL,     -- relay_id of the relay that booked
  endpoint TEXT NOT NULL,     -- the consumer's endpoint id, or direct, overflow, (none)
  consumer TEXT NOT NULL,     -- [[consumer]] behind a shared endpoint, or empty
  listener TEXT NOT NULL,
  upstream TEXT NOT NULL,     -- empty for those turned away before one was chosen
  name     TEXT NOT NULL,     -- of [endpoint], as configured when it was last booked or the relay started
  account  TEXT NOT NULL,
  tags     TEXT NOT NULL,
  last     INTEGER NOT NULL,  -- the newest hour that has a row
  UNIQUE (relay, endpoint, consumer, listener, upstream)
) STRICT;

CREATE TABLE hours (
  hour              INTEGER NOT NULL,  -- since 1970-01-01T00:00:00Z
  id                INTEGER NOT NULL,  -- of accounts
  opened            INTEGER NOT NULL,
  closed            INTEGER NOT NULL,
  refused           INTEGER NOT NULL,
  bytes_to_upstream INTEGER NOT NULL,
  bytes_to_client   INTEGER NOT NULL,
  connection_ms     INTEGER NOT NULL,
  peak              INTEGER NOT NULL,  -- most connections open at once
  PRIMARY KEY (hour, id)
) STRICT, WITHOUT ROWID;

CREATE TABLE days (                    -- the same by day, of all hours up to the fact rolled: what long reports read
  day               INTEGER NOT NULL,  -- since 1970-01-01
  id                INTEGER NOT NULL,
  opened            INTEGER NOT NULL,
  closed            INTEGER NOT NULL,
  refused           INTEGER NOT NULL,
  bytes_to_upstream INTEGER NOT NULL,
  bytes_to_client   INTEGER NOT NULL,
  connection_ms     INTEGER NOT NULL,
  peak              INTEGER NOT NULL,
  PRIMARY KEY (day, id)
) STRICT, WITHOUT ROWID;

CREATE TABLE why (
  id     INTEGER PRIMARY KEY,
  what   TEXT NOT NULL,                -- closed or refused
  reason TEXT NOT NULL,
  UNIQUE (what, reason)
) STRICT;

CREATE TABLE hour_reasons (
  hour  INTEGER NOT NULL,
  id    INTEGER NOT NULL,
  why   INTEGER NOT NULL,
  count INTEGER NOT NULL,
  PRIMARY KEY (hour, id, why)
) STRICT, WITHOUT ROWID;

CREATE TABLE files (                   -- counter files that something was booked from
  file     INTEGER PRIMARY KEY,
  last     INTEGER NOT NULL,           -- hour of the last booking
  finished INTEGER NOT NULL            -- 1: all of it is booked, nobody writes to it any more
) STRICT;

CREATE TABLE marks (                   -- how far each of their slots is booked
  file       INTEGER NOT NULL,
  slot       INTEGER NOT NULL,
  generation INTEGER NOT NULL,
  id         INTEGER NOT NULL,
  hour       INTEGER NOT NULL,
  counters   BLOB NOT NULL,
  PRIMARY KEY (file, slot)
) STRICT, WITHOUT ROWID;

CREATE TABLE exports (
  hour     INTEGER PRIMARY KEY,
  sealed   TEXT NOT NULL,              -- when: from then on nothing is booked to it
  exported TEXT,                       -- when its files were on the disk
  files    TEXT NOT NULL
) STRICT;

CREATE TABLE anchors (                 -- the audit trail's head, the last of each hour
  hour     INTEGER PRIMARY KEY,
  time     TEXT NOT NULL,
  sequence INTEGER NOT NULL,
  hash     TEXT NOT NULL,
  file     TEXT NOT NULL
) STRICT;

CREATE TABLE facts (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;

CREATE VIEW usage AS
  SELECT strftime('%Y-%m-%dT%H:00:00Z', hour * 3600, 'unixepoch') AS period,
         endpoint, consumer, name, account, listener, upstream,
         opened, closed, refused, bytes_to_upstream, bytes_to_client,
         connection_ms / 1000.0 AS connection_seconds,
         tags, relay, peak, connection_ms, hour
  FROM hours CROSS JOIN accounts ON accounts.id = hours.id;

CREATE VIEW usage_by_day AS
  SELECT date(day * 86400, 'unixepoch') AS period,
         endpoint, consumer, name, account, listener, upstream,
         opened, closed, refused, bytes_to_upstream, bytes_to_client,
         connection_ms / 1000.0 AS connection_seconds,
         tags, relay, peak, connection_ms, day
  FROM (SELECT * FROM days
        UNION ALL
        SELECT hour / 24, id, opened, closed, refused, bytes_to_upstream, bytes_to_client, connection_ms, peak
        FROM hours WHERE hour > coalesce((SELECT CAST(value AS INTEGER) FROM facts WHERE key = 'rolled'), 0)) AS by_day
  CROSS JOIN accounts ON accounts.id = by_day.id;

CREATE VIEW reasons AS
  SELECT strftime('%Y-%m-%dT%H:00:00Z', hour * 3600, 'unixepoch') AS period,
         endpoint, consumer, listener, upstream, relay, what, reason, count, hour
  FROM hour_reasons
  CROSS JOIN accounts ON accounts.id = hour_reasons.id
  CROSS JOIN why ON why.id = hour_reasons.why;
"];

/// How long another program that holds the ledger is waited for.
const BUSY: Duration = Duration::from_secs(2);

/// Opens the ledger for writing, makes it where there is none, and brings its tables up to this version.
///
/// # Errors
/// [`Trouble`].
pub fn open(path: &Path) -> Result<Connection, Trouble> {
    let failed = |error: rusqlite::Error| Trouble::of(path, &error);
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
        | OpenFlags::SQLITE_OPEN_CREATE
        | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut connection = Connection::open_with_flags(path, flags).map_err(failed)?;
    connection.busy_timeout(BUSY).map_err(failed)?;
    // Before anything is written: a stranger's database stays as it is.
    migrate(&mut connection, STEPS, path)?;
    settle(&connection).map_err(failed)?;
    write_reasons(&connection).map_err(failed)?;
    Ok(connection)
}

/// What holds for as long as a connection lives.
fn settle(connection: &Connection) -> rusqlite::Result<()> {
    connection.set_prepared_statement_cache_capacity(32);
    connection.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(()))?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "foreign_keys", false)?; // an account's id is looked up by the booking itself
    connection.pragma_update(None, "cache_size", -8192)?; // KiB
    connection.pragma_update(None, "cell_size_check", true)?; // damage shows where it is, not somewhere later
    connection.pragma_update_and_check(None, "wal_autocheckpoint", 1000, |_| Ok(()))?;
    connection.pragma_update_and_check(None, "journal_size_limit", 16 << 20, |_| Ok(()))?;
    Ok(())
}

/// Brings the tables to the version that `steps` lead to, all steps in one transaction.
///
/// # Errors
/// [`Trouble`]; among it that it is newer, or no ledger.
pub fn migrate(connection: &mut Connection, steps: &[&str], path: &Path) -> Result<(), Trouble> {
    let failed = |error: rusqlite::Error| Trouble::of(path, &error);
    if version(connection, path, steps.len())? == steps.len() {
        return Ok(());
    }
    let transaction = connection
        .transaction_with_behavior(TransactionBehavior::Immediate)
        .map_err(failed)?;
    // Asked again: somebody may have been quicker.
    let found = version(&transaction, path, steps.len())?;
    for step in &steps[found..] {
        transaction.execute_batch(step).map_err(failed)?;
    }
    transaction
        .pragma_update(None, "application_id", APPLICATION)
        .and_then(|()| transaction.pragma_update(None, "user_version", steps.len() as i64))
        .and_then(|()| transaction.commit())
        .map_err(failed)
}

/// The version of the tables; 0 for a file without any.
///
/// # Errors
/// [`Trouble`]; among it that it is newer than `known`, or no ledger.
pub fn version(connection: &Connection, path: &Path, known: usize) -> Result<usize, Trouble> {
    let failed = |error: rusqlite::Error| Trouble::of(path, &error);
    let number = |pragma: &str| {
        connection
            .pragma_query_value(None, pragma, |row| row.get::<_, i64>(0))
            .map_err(failed)
    };
    let (application, found) = (number("application_id")?, number("user_version")?);
    let tables = "SELECT count(*) FROM sqlite_schema";
    let tables: i64 = connection
        .query_row(tables, [], |row| row.get(0))
        .map_err(failed)?;
    if application != i64::from(APPLICATION) && (tables > 0 || application != 0) {
        let what = "this is a database, but no ledger of tollgate's";
        return Err(Trouble::new(Kind::Foreign, path, what));
    }
    match usize::try_from(found) {
        Ok(found) if found <= known => Ok(found),
        _ => {
            let what = format!(
                "the ledger has version {found}, written by a newer tollgate; this one knows up to {known}"
            );
            Err(Trouble::new(Kind::Newer, path, what))
        }
    }
}

/// Every reason there is gets its number, once.
fn write_reasons(connection: &Connection) -> rusqlite::Result<()> {
    let known: i64 = connection.query_row("SELECT count(*) FROM why", [], |row| row.get(0))?;
    let closed = CloseReason::ALL.map(|reason| ("closed", reason.name()));
    let refused: [_; REFUSED] = std::array::from_fn(|index| ("refused", refused_name(index)));
    if known >= (closed.len() + refused.len()) as i64 {
        return Ok(());
    }
    let transaction = connection.unchecked_transaction()?;
    {
        let mut insert = transaction
            .prepare("INSERT INTO why (what, reason) VALUES (?1, ?2) ON CONFLICT DO NOTHING")?;
        for (what, reason) in closed.into_iter().chain(refused) {
            insert.execute((what, reason))?;
        }
    }
    transaction.commit()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rusqlite::types::Value;

    fn objects(connection: &Connection) -> Vec<(String, Option<String>)> {
        let mut statement = connection
            .prepare("SELECT name, sql FROM sqlite_schema ORDER BY name")
            .unwrap();
        let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)));
        rows.unwrap().map(Result::unwrap).collect()
    }

    #[test]
    fn every_version_before_leads_to_the_tables_of_today() {
        let path = Path::new("ledger.db");
        let mut fresh = Connection::open_in_memory().unwrap();
        migrate(&mut fresh, STEPS, path).unwrap();
        for from in 0..=STEPS.len() {
            let mut old = Connection::open_in_memory().unwrap();
            migrate(&mut old, &STEPS[..from], path).unwrap();
            migrate(&mut old, STEPS, path).unwrap();
            assert_eq!(objects(&old), objects(&fresh), "from version {from}");
            assert_eq!(version(&old, path, STEPS.len()).unwrap(), STEPS.len());
        }
    }

    /// Steps as there may be some day, on what there is: a column more, and a table remade. What was booked stays.
    #[test]
    fn an_old_ledger_is_migrated_with_its_rows_and_a_failing_step_leaves_it_as_it_was() {
        let path = Path::new("ledger.db");
        let mut connection = Connection::open_in_memory().unwrap();
        migrate(&mut connection, STEPS, path).unwrap();
        connection
            .execute("INSERT INTO hours VALUES (1, 2, 3, 4, 5, 6, 7, 8, 9)", [])
            .unwrap();
        let more = "ALTER TABLE hours ADD COLUMN udp INTEGER NOT NULL DEFAULT 0";
        let wrong = "CREATE TABLE t (a); INSERT INTO missing VALUES (1)";
        let steps = |last| [STEPS, &[more, last]].concat();
        assert!(migrate(&mut connection, &steps(wrong), path).is_err());
        assert_eq!(
            version(&connection, path, STEPS.len()).unwrap(),
            STEPS.len()
        );
        migrate(
            &mut connection,
            &steps("ALTER TABLE facts RENAME TO said"),
            path,
        )
        .unwrap();
        let row: (i64, i64) = connection
            .query_row("SELECT bytes_to_client, udp FROM hours", [], |row| {
                Ok((row.get(0)?, row.get(1)?))
            })
            .unwrap();
        assert_eq!(row, (7, 0));
        let found = version(&connection, path, STEPS.len() + 2).unwrap();
        assert_eq!(found, STEPS.len() + 2);
    }

    #[test]
    fn a_newer_ledger_and_a_strangers_database_are_refused_untouched() {
        let dir = tempfile::tempdir().unwrap();
        let newer = dir.path().join("ledger.db");
        drop(open(&newer).unwrap());
        let connection = Connection::open(&newer).unwrap();
        connection
            .pragma_update(None, "user_version", STEPS.len() as i64 + 1)
            .unwrap();
        drop(connection);
        let refused = open(&newer).unwrap_err();
        assert_eq!(refused.kind, Kind::Newer);
        assert!(refused.to_string().contains("newer"), "{refused}");

        let strange = dir.path().join("other.db");
        let connection = Connection::open(&strange).unwrap();
        connection.execute("CREATE TABLE theirs (a)", []).unwrap();
        drop(connection);
        let before = std::fs::read(&strange).unwrap();
        assert_eq!(open(&strange).unwrap_err().kind, Kind::Foreign);
        assert_eq!(std::fs::read(&strange).unwrap(), before);
    }

    #[test]
    fn every_reason_has_a_number_once_however_often_it_is_opened() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger.db");
        for _ in 0..2 {
            let connection = open(&path).unwrap();
            let count: i64 = connection
                .query_row("SELECT count(*) FROM why", [], |row| row.get(0))
                .unwrap();
            assert_eq!(count, (CloseReason::ALL.len() + REFUSED) as i64);
        }
    }

    #[test]
    fn the_view_has_the_columns_of_the_report_in_its_order() {
        let mut connection = Connection::open_in_memory().unwrap();
        migrate(&mut connection, STEPS, Path::new("ledger.db")).unwrap();
        let statement = connection.prepare("SELECT * FROM usage").unwrap();
        let names: Vec<_> = statement.column_names().collect();
        let names = names.join(",");
        let header = "period,endpoint,consumer,name,account,listener,upstream,opened,closed,refused,bytes_to_upstream,bytes_to_client,connection_seconds,tags,relay";
        assert!(names.starts_with(header), "{names}");
        let none: Option<Value> = connection
            .query_row("SELECT sum(opened) FROM usage", [], |row| row.get(0))
            .unwrap();
        assert_eq!(none, None);
    }
}
