//! Hours as files, to be shipped before the instance ends: each hour once, and in whole.
//!
//! An hour is sealed first: from then on nothing is booked to it. Then its files are written, and when they are on the disk for good it is marked as
//! exported. Who is killed in between finds the hour sealed and writes the same files again, over those that may be there.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use jiff::Timestamp;
use rusqlite::{Connection, Transaction, TransactionBehavior};
use serde::{Deserialize, Serialize};

use super::hours::Hour;
use super::report::{By, Query, Row, report};
use super::store::{Store, beside};
use super::trouble::Trouble;

/// Hours sealed in one go.
pub(super) const HOURS: usize = 24;

/// What was exported.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exported {
    /// The files, in the order of their hours.
    pub files: Vec<PathBuf>,
    /// Rows in them.
    pub rows: usize,
    /// Whether there are more hours to export than fitted into the time there was: ask again.
    pub more: bool,
    /// Whether something is booked to hours that have not begun, because the present one is exported already: it is exported when they are over.
    #[serde(default)]
    pub ahead: bool,
}

impl Store {
    /// Seals the next hours that are to be exported and returns them: at most `HOURS`, none twice. Those that are over, and with `all` the present
    /// one, too: never one that has not begun, or who asks again and again would drive the books into the future.
    ///
    /// # Errors
    /// [`Trouble`]: then none is sealed.
    pub fn seal(&mut self, now: Timestamp, all: bool) -> Result<Vec<Hour>, Trouble> {
        let present = Hour::of(now);
        let before = if all { present.next() } else { present };
        let sealed = self.seal_before(now, before.0);
        sealed.map_err(|error| Trouble::of(&self.path, &error))
    }

    fn seal_before(&mut self, now: Timestamp, before: i64) -> rusqlite::Result<Vec<Hour>> {
        let transaction =
            Transaction::new_unchecked(&self.connection, TransactionBehavior::Immediate)?;
        let mut hours = Vec::new();
        {
            let mut next =
                transaction.prepare_cached("SELECT min(hour) FROM hours WHERE hour > ?1")?;
            let mut shipped = transaction
                .prepare_cached("SELECT 1 FROM exports WHERE hour = ?1 AND exported IS NOT NULL")?;
            let mut seal = transaction.prepare_cached(
                "INSERT INTO exports VALUES (?1, ?2, NULL, '') ON CONFLICT DO NOTHING",
            )?;
            let mut last = i64::MIN;
            while hours.len() < HOURS {
                let found: Option<i64> = next.query_row([last], |row| row.get(0))?;
                let Some(hour) = found.filter(|hour| *hour < before) else {
                    break;
                };
                if !shipped.exists([hour])? {
                    seal.execute((hour, now.to_string()))?;
                    hours.push(Hour(hour));
                }
                last = hour;
            }
        }
        transaction.commit()?;
        Ok(hours)
    }

    /// Notes that an hour's files are on the disk.
    ///
    /// # Errors
    /// [`Trouble`]: then they are written again next time.
    pub fn exported(
        &mut self,
        now: Timestamp,
        hour: Hour,
        files: &[PathBuf],
    ) -> Result<(), Trouble> {
        let files: Vec<_> = files.iter().map(|file| file.to_string_lossy()).collect();
        let sql = "UPDATE exports SET exported = ?2, files = ?3 WHERE hour = ?1";
        let note = (hour.0, now.to_string(), files.join("\n"));
        let done = self.connection.execute(sql, note);
        done.map(drop)
            .map_err(|error| Trouble::of(&self.path, &error))
    }
}

/// Writes one sealed hour to `dir`, a file for each relay that booked in it (there is one, unless it was renamed in that hour). Returns them and
/// how many rows they have.
///
/// # Errors
/// [`Trouble`]: then there may be files of that hour, whole ones; they are written again next time.
pub(super) fn write_hour(
    connection: &Connection,
    path: &Path,
    hour: Hour,
    dir: &Path,
    deadline: Instant,
) -> Result<(Vec<PathBuf>, usize), Trouble> {
    let query = Query {
        since: Some(hour.start()),
        until: Some(hour.next().start()),
        by: vec![
            By::Hour,
            By::Endpoint,
            By::Consumer,
            By::Listener,
            By::Upstream,
        ],
    };
    let mut rows = report(connection, path, &query, deadline)?;
    rows.sort_by(|one, other| one.relay.cmp(&other.relay)); // stable: within a relay as in the report
    let mut files = Vec::new();
    for of_relay in rows.chunk_by(|one, other| one.relay == other.relay) {
        let name = format!("usage-{}-{}.csv", of_relay[0].relay, hour.compact());
        let file = dir.join(name);
        let written = write_whole(&file, of_relay);
        files.push(written.map_err(|error| Trouble::io(&file, &error))?);
    }
    Ok((files, rows.len()))
}

/// Makes the directory if need be.
pub(super) fn make_dir(dir: &Path) -> Result<(), Trouble> {
    fs::create_dir_all(dir).map_err(|error| Trouble::io(dir, &error))
}

/// Names tried for one file.
const NAMES: usize = 1000;

/// Writes beside, syncs, renames, syncs the directory: whoever looks finds the whole file or none. Says under which name: another file that has it
/// stays as it is, and ours gets a number. One that holds just this is what an export before wrote that was killed.
fn write_whole(path: &Path, rows: &[Row]) -> io::Result<PathBuf> {
    let mut text = Vec::new();
    write_csv(&mut text, rows)?;
    let path = free_name(path, &text)?;
    let draft = beside(&path, ".tmp");
    let mut file = File::create(&draft)?;
    file.write_all(&text)?;
    file.sync_all()?;
    fs::rename(&draft, &path)?;
    let dir = path.parent().unwrap_or(Path::new("."));
    File::open(dir)?.sync_all()?;
    Ok(path)
}

/// The path, or with `-2`, `-3`… the first that nobody has, or that holds this text.
fn free_name(path: &Path, text: &[u8]) -> io::Result<PathBuf> {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    for n in 1..=NAMES {
        let path = match n {
            1 => path.to_owned(),
            n => path.with_file_name(format!("{stem}-{n}.csv")),
        };
        match fs::symlink_metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(path),
            Err(error) => return Err(error),
            Ok(found) if found.is_file() && found.len() == text.len() as u64 => {
                if fs::read(&path)? == text {
                    return Ok(path);
                }
            }
            Ok(_) => {}
        }
    }
    Err(io::Error::other(format!(
        "{NAMES} other files have this name and those with a number behind it"
    )))
}

/// Whether something is booked to hours that have not begun.
pub(super) fn is_ahead(
    connection: &Connection,
    path: &Path,
    now: Timestamp,
) -> Result<bool, Trouble> {
    let sql = "SELECT EXISTS (SELECT 1 FROM hours WHERE hour > ?1)";
    let ahead = connection.query_row(sql, [Hour::of(now).0], |row| row.get(0));
    ahead.map_err(|error| Trouble::of(path, &error))
}

/// Writes the CSV, its header first.
///
/// # Errors
/// Those of `out`.
pub fn write_csv(out: impl Write, rows: &[Row]) -> io::Result<()> {
    let mut csv = csv::Writer::from_writer(out);
    csv.write_record(COLUMNS)?;
    for row in rows {
        csv.write_record([
            &row.period,
            &row.endpoint,
            &row.consumer,
            &row.name,
            &row.account,
            &row.listener,
            &row.upstream,
            &row.opened.to_string(),
            &row.closed.to_string(),
            &row.refused.to_string(),
            &row.bytes_to_upstream.to_string(),
            &row.bytes_to_client.to_string(),
            // Every millisecond, and always as many digits.
            &format!("{:.3}", row.connection_seconds),
            &row.tags,
            &row.relay,
        ])?;
    }
    csv.flush()
}

/// The columns of the CSV.
pub const COLUMNS: [&str; 15] = [
    "period",
    "endpoint",
    "consumer",
    "name",
    "account",
    "listener",
    "upstream",
    "opened",
    "closed",
    "refused",
    "bytes_to_upstream",
    "bytes_to_client",
    "connection_seconds",
    "tags",
    "relay",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_stands_also_over_nothing_and_each_value_below_its_name() {
        let written = |rows: &[Row]| {
            let mut out = Vec::new();
            write_csv(&mut out, rows).unwrap();
            String::from_utf8(out).unwrap()
        };
        assert_eq!(written(&[]), COLUMNS.join(",") + "\n");
        // What serde calls the fields is the JSON's word for them.
        let row = serde_json::json!({
            "period": "p", "endpoint": "e", "consumer": "c", "name": "n, \"n\"", "account": "a", "listener": "l", "upstream": "u",
            "opened": 1, "closed": 2, "refused": 3, "bytes_to_upstream": 4, "bytes_to_client": 5, "connection_seconds": 6.5,
            "tags": "t", "relay": "r",
        });
        let row: Row = serde_json::from_value(row).unwrap();
        let line = "p,e,c,\"n, \"\"n\"\"\",a,l,u,1,2,3,4,5,6.500,t,r\n";
        assert_eq!(written(&[row]), COLUMNS.join(",") + "\n" + line);
    }
}
