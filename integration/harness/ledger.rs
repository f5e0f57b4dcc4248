//! The ledger, read as anybody would read it: with SQL and the documented columns, and the same from `tollgate usage`'s CSV. Without the relay's own code.

use std::{collections::BTreeMap, path::Path};

use rusqlite::{Connection, OpenFlags};

/// What identifies an account, in the ledger as in a report.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// The consumer's endpoint id.
    pub endpoint: String,
    /// The consumer behind a shared endpoint.
    pub consumer: String,
    /// The listener.
    pub listener: String,
    /// The upstream.
    pub upstream: String,
}

/// The numbers of a row, or of several together.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sums {
    /// Connections opened.
    pub opened: u64,
    /// Connections closed.
    pub closed: u64,
    /// Connections refused.
    pub refused: u64,
    /// Payload towards the upstream.
    pub bytes_to_upstream: u64,
    /// Payload towards the client.
    pub bytes_to_client: u64,
    /// How long connections were open, together.
    pub connection_seconds: f64,
}

impl Sums {
    /// Number by number.
    pub fn add(&mut self, other: &Self) {
        self.opened += other.opened;
        self.closed += other.closed;
        self.refused += other.refused;
        self.bytes_to_upstream += other.bytes_to_upstream;
        self.bytes_to_client += other.bytes_to_client;
        self.connection_seconds += other.connection_seconds;
    }

    /// Whether all that is counted is the same; times, which are measured, are left out.
    pub fn counts(&self) -> [u64; 5] {
        [
            self.opened,
            self.closed,
            self.refused,
            self.bytes_to_upstream,
            self.bytes_to_client,
        ]
    }
}

/// One row of the ledger or of a report.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Row {
    /// The hour, day or month.
    pub period: String,
    /// Whose it is.
    pub key: Key,
    /// What the configuration calls the endpoint.
    pub name: String,
    /// Who pays.
    pub account: String,
    /// The numbers.
    pub sums: Sums,
    /// Anything else.
    pub tags: String,
    /// Which relay booked it.
    pub relay: String,
}

/// All rows added up by account.
pub fn by_key(rows: &[Row]) -> BTreeMap<Key, Sums> {
    let mut all = BTreeMap::<Key, Sums>::new();
    for row in rows {
        all.entry(row.key.clone()).or_default().add(&row.sums);
    }
    all
}

/// All rows added up.
pub fn total(rows: &[Row]) -> Sums {
    let mut total = Sums::default();
    for row in rows {
        total.add(&row.sums);
    }
    total
}

/// Opens a ledger for reading.
///
/// # Panics
/// When it cannot be opened.
#[track_caller]
pub fn open(path: &Path) -> Connection {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let opened = Connection::open_with_flags(path, flags);
    let connection = opened.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    connection
        .busy_timeout(super::BOUND)
        .expect("a bound is no question");
    connection
}

/// The rows of the documented table.
///
/// # Panics
/// When it is not as documented.
#[track_caller]
pub fn rows(path: &Path) -> Vec<Row> {
    let ledger = open(path);
    let query = "SELECT period, endpoint, consumer, name, account, listener, upstream, opened, closed, refused, \
                 bytes_to_upstream, bytes_to_client, connection_seconds, tags, relay FROM usage ORDER BY period";
    let mut statement = ledger.prepare(query).expect("the documented columns");
    let count = |value: i64| u64::try_from(value).expect("no count is below zero");
    let rows = statement.query_map([], |row| {
        Ok(Row {
            period: row.get(0)?,
            key: Key {
                endpoint: row.get(1)?,
                consumer: row.get(2)?,
                listener: row.get(5)?,
                upstream: row.get(6)?,
            },
            name: row.get(3)?,
            account: row.get(4)?,
            sums: Sums {
                opened: count(row.get(7)?),
                closed: count(row.get(8)?),
                refused: count(row.get(9)?),
                bytes_to_upstream: count(row.get(10)?),
                bytes_to_client: count(row.get(11)?),
                connection_seconds: row.get(12)?,
            },
            tags: row.get(13)?,
            relay: row.get(14)?,
        })
    });
    let rows = rows.expect("a query without parameters");
    rows.map(|row| row.expect("the documented types")).collect()
}

/// How many connections were closed, or refused, for each reason.
///
/// # Panics
/// When the table is not as documented.
#[track_caller]
pub fn reasons(path: &Path, what: &str) -> BTreeMap<String, u64> {
    let ledger = open(path);
    let query = "SELECT reason, sum(count) FROM reasons WHERE what = ?1 GROUP BY reason";
    let mut statement = ledger.prepare(query).expect("the documented columns");
    let rows = statement.query_map([what], |row| {
        let count: i64 = row.get(1)?;
        Ok((row.get(0)?, count.unsigned_abs()))
    });
    let rows = rows.expect("a query with one parameter");
    rows.map(|row| row.expect("the documented types")).collect()
}

/// What `PRAGMA integrity_check` says: `ok`.
#[track_caller]
pub fn integrity(path: &Path) -> String {
    let said = open(path).query_row("PRAGMA integrity_check", [], |row| row.get(0));
    said.expect("SQLite has an opinion")
}

/// The CSV that the relay promises, with exactly these columns first.
pub const HEADER: &str = "period,endpoint,consumer,name,account,listener,upstream,opened,closed,refused,bytes_to_upstream,\
                          bytes_to_client,connection_seconds";

/// Reads a report.
///
/// # Panics
/// When its header is not the documented one, or a line cannot be read, with the line.
#[track_caller]
pub fn report(text: &str) -> Vec<Row> {
    let head = text.lines().next().unwrap_or_default();
    assert!(head.starts_with(HEADER), "{head}");
    let mut reader = csv::Reader::from_reader(text.as_bytes());
    let records = reader.records();
    records
        .map(|record| {
            let record = record.unwrap_or_else(|error| panic!("{error}\n{text}"));
            let text = |at: usize| record.get(at).unwrap_or_default().to_owned();
            let count = |at: usize| {
                let number = text(at).parse::<u64>();
                number.unwrap_or_else(|error| panic!("column {at} of {record:?}: {error}"))
            };
            let seconds = text(12).parse();
            Row {
                period: text(0),
                key: Key {
                    endpoint: text(1),
                    consumer: text(2),
                    listener: text(5),
                    upstream: text(6),
                },
                name: text(3),
                account: text(4),
                sums: Sums {
                    opened: count(7),
                    closed: count(8),
                    refused: count(9),
                    bytes_to_upstream: count(10),
                    bytes_to_client: count(11),
                    connection_seconds: seconds.expect("seconds are a number"),
                },
                tags: text(13),
                relay: text(14),
            }
        })
        .collect()
}
