//! Who used how much, from the ledger: hours of a time are added up by what is asked for.
//!
//! Reads what it needs in the order in which it lies in the file, once, and adds up outside of SQL: nothing is sorted, nothing is written to a
//! temporary file, and a report can be given up at any row. Whole days are read as days, where nobody asks for hours: a year of a thousand
//! endpoints has 8,760,000 rows by the hour and 365,000 by the day.

use std::collections::HashMap;
use std::path::Path;
use std::str::FromStr;
use std::time::Instant;

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension};
use serde::{Deserialize, Serialize};

use super::hours::Hour;
use super::store::number;
use super::trouble::{Kind, Trouble};

/// Rows that a report may have: so many take some 80 MB.
pub const MOST_ROWS: usize = 200_000;

/// Rows of the ledger between two looks at the clock.
const BETWEEN_LOOKS: u32 = 4096;

/// What usage is added up by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum By {
    /// The consumer's endpoint.
    Endpoint,
    /// The consumer behind a shared endpoint.
    Consumer,
    /// The listener.
    Listener,
    /// The upstream.
    Upstream,
    /// The hour. Of several times the shortest holds.
    Hour,
    /// The day, in UTC.
    Day,
    /// The month, in UTC.
    Month,
}

impl By {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Endpoint,
        Self::Consumer,
        Self::Listener,
        Self::Upstream,
        Self::Hour,
        Self::Day,
        Self::Month,
    ];

    /// As on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Endpoint => "endpoint",
            Self::Consumer => "consumer",
            Self::Listener => "listener",
            Self::Upstream => "upstream",
            Self::Hour => "hour",
            Self::Day => "day",
            Self::Month => "month",
        }
    }
}

impl FromStr for By {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|by| by.name() == text);
        found.ok_or_else(|| {
            let names = Self::ALL.map(Self::name).join(", ");
            format!("{text:?} is none of {names}")
        })
    }
}

/// What `tollgate usage --by endpoint --by month` gives, asked of the file itself.
pub const BY_ENDPOINT_AND_MONTH: &str = "
SELECT substr(period, 1, 7) AS period, endpoint, '' AS consumer, name, account, '' AS listener, '' AS upstream,
       sum(opened) AS opened, sum(closed) AS closed, sum(refused) AS refused,
       sum(bytes_to_upstream) AS bytes_to_upstream, sum(bytes_to_client) AS bytes_to_client,
       printf('%.3f', sum(connection_ms) / 1000.0) AS connection_seconds, tags, relay
FROM usage_by_day AS usage
GROUP BY substr(usage.period, 1, 7), endpoint, relay
ORDER BY 1, endpoint, relay";

/// What is asked.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Query {
    /// From the hour that contains it; `None`: from the beginning.
    pub since: Option<Timestamp>,
    /// Hours that begin before it; `None`: to the end.
    pub until: Option<Timestamp>,
    /// What to add up by; nothing: one row for each relay.
    pub by: Vec<By>,
}

/// A row of the report; columns of what was not asked for are empty. The fields are those of the CSV, in its order.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// The hour, day or month.
    pub period: String,
    /// The consumer's endpoint id.
    pub endpoint: String,
    /// The consumer behind a shared endpoint.
    pub consumer: String,
    /// What people call the endpoint.
    pub name: String,
    /// Who pays for it.
    pub account: String,
    /// The listener.
    pub listener: String,
    /// The upstream.
    pub upstream: String,
    /// Connections opened.
    pub opened: u64,
    /// Connections closed.
    pub closed: u64,
    /// Connections refused.
    pub refused: u64,
    /// Payload bytes from the client to the upstream.
    pub bytes_to_upstream: u64,
    /// Payload bytes from the upstream to the client.
    pub bytes_to_client: u64,
    /// How long connections were open, added up; exact to the millisecond.
    pub connection_seconds: f64,
    /// Anything else worth knowing of the endpoint.
    pub tags: String,
    /// The relay that booked it.
    pub relay: String,
}

/// Sums of a row: whole numbers, so that nothing is lost in adding.
#[derive(Debug, Clone, Copy, Default)]
struct Sums([i64; 6]);

/// Rows that are alike but for their period.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Group {
    endpoint: String,
    consumer: String,
    listener: String,
    upstream: String,
    relay: String,
}

/// What is known of a group's endpoint, and the newest hour that said so.
#[derive(Debug, Clone, Default)]
struct Names([String; 3]);

/// Adds up what `query` asks for. All of it is of one moment. Ends with [`Kind::TooMuch`] at `deadline`, or when there are more than [`MOST_ROWS`].
///
/// # Errors
/// [`Trouble`].
pub fn report(
    connection: &Connection,
    path: &Path,
    query: &Query,
    deadline: Instant,
) -> Result<Vec<Row>, Trouble> {
    let failed = |error: rusqlite::Error| Trouble::of(path, &error);
    let too_much = |what: String| Trouble::new(Kind::TooMuch, path, what);
    let transaction = connection.unchecked_transaction().map_err(failed)?;
    let mut adding = Adding::new(&transaction, &query.by);
    let mut until_look = BETWEEN_LOOKS;
    for Part { sql, from, before } in parts(&transaction, query).map_err(failed)? {
        let mut statement = transaction.prepare_cached(sql).map_err(failed)?;
        let mut rows = statement.query([from, before]).map_err(failed)?;
        while let Some(row) = rows.next().map_err(failed)? {
            adding.add(row).map_err(failed)?;
            until_look -= 1;
            if until_look > 0 {
                continue;
            }
            until_look = BETWEEN_LOOKS;
            if Instant::now() > deadline {
                return Err(too_much("the report took too long".into()));
            }
            if adding.rows() > MOST_ROWS {
                let what = format!("the report would have more than {MOST_ROWS} rows");
                return Err(too_much(what));
            }
        }
    }
    let rows = adding.finish();
    if rows.len() > MOST_ROWS {
        let what = format!(
            "the report has {} rows, {MOST_ROWS} are the most",
            rows.len()
        );
        return Err(too_much(what));
    }
    Ok(rows)
}

/// A stretch of time, and how it is read.
struct Part {
    sql: &'static str,
    from: i64,
    before: i64,
}

const HOURS: &str =
    "SELECT hour, id, opened, closed, refused, bytes_to_upstream, bytes_to_client, connection_ms
                     FROM hours WHERE hour >= ?1 AND hour < ?2 ORDER BY hour";

const DAYS: &str = "SELECT day * 24, id, opened, closed, refused, bytes_to_upstream, bytes_to_client, connection_ms
                    FROM days WHERE day >= ?1 AND day < ?2 ORDER BY day";

/// Hours to the end of the first day, days as far as they are whole and their hours all added up in them, hours to the end.
fn parts(connection: &Connection, query: &Query) -> rusqlite::Result<Vec<Part>> {
    // What is being taken away is not there any more, however far that is.
    let kept = number(connection, "pruned")?.map_or(0, |pruned| pruned + 1);
    let from = query
        .since
        .map_or(kept, |since| Hour::of(since).0.max(kept));
    let before = query.until.map_or(i64::MAX, |until| Hour::from(until).0);
    let rolled = number(connection, "rolled")?.map_or(0, |rolled| rolled + 1);
    let first = from.div_euclid(24) + i64::from(from.rem_euclid(24) > 0);
    let end = before.min(rolled).div_euclid(24);
    let part = |sql, from, before| Part { sql, from, before };
    Ok(if query.by.contains(&By::Hour) || end <= first {
        vec![part(HOURS, from, before)]
    } else {
        vec![
            part(HOURS, from, first * 24),
            part(DAYS, first, end),
            part(HOURS, end * 24, before),
        ]
    })
}

struct Adding<'a> {
    connection: &'a Connection,
    by: &'a [By],
    period: fn(Hour) -> String,
    /// Group of each account that was met, by its number.
    of_account: HashMap<i64, usize>,
    groups: Vec<(Group, Names)>,
    of_group: HashMap<Group, usize>,
    /// The hour of the last row, the period it is in, and that period's sums by group.
    hour: Option<Hour>,
    now: String,
    sums: Vec<Option<Sums>>,
    touched: usize,
    /// Periods before.
    done: Vec<(String, Vec<(usize, Sums)>)>,
    rows: usize,
}

impl<'a> Adding<'a> {
    fn new(connection: &'a Connection, by: &'a [By]) -> Self {
        let period = if by.contains(&By::Hour) {
            |hour: Hour| hour.to_string()
        } else if by.contains(&By::Day) {
            Hour::day
        } else if by.contains(&By::Month) {
            Hour::month
        } else {
            |_: Hour| String::new()
        };
        Self {
            connection,
            by,
            period,
            of_account: HashMap::new(),
            groups: Vec::new(),
            of_group: HashMap::new(),
            hour: None,
            now: String::new(),
            sums: Vec::new(),
            touched: 0,
            done: Vec::new(),
            rows: 0,
        }
    }

    fn rows(&self) -> usize {
        self.rows + self.touched
    }

    fn add(&mut self, row: &rusqlite::Row<'_>) -> rusqlite::Result<()> {
        let hour = Hour(row.get(0)?);
        if self.hour != Some(hour) {
            self.hour = Some(hour);
            let period = (self.period)(hour);
            if period != self.now {
                self.turn();
                self.now = period;
            }
        }
        let account = row.get(1)?;
        let group = match self.of_account.get(&account) {
            Some(group) => *group,
            None => self.meet(account)?,
        };
        let sums = self.sums[group].get_or_insert_with(|| {
            self.touched += 1;
            Sums::default()
        });
        for (column, sum) in (2..).zip(&mut sums.0) {
            *sum = sum.saturating_add(row.get(column)?);
        }
        Ok(())
    }

    /// A period is over.
    fn turn(&mut self) {
        let taken = self.sums.iter_mut().enumerate();
        let taken = taken.filter_map(|(group, sums)| Some((group, sums.take()?)));
        let taken: Vec<_> = taken.collect();
        self.touched = 0;
        if !taken.is_empty() {
            self.rows += taken.len();
            self.done.push((std::mem::take(&mut self.now), taken));
        }
    }

    fn meet(&mut self, account: i64) -> rusqlite::Result<usize> {
        let asked = |by: By| self.by.contains(&by);
        let sql = "SELECT endpoint, consumer, listener, upstream, relay, name, account, tags FROM accounts WHERE id = ?1";
        let mut statement = self.connection.prepare_cached(sql)?;
        let known = statement.query_row([account], |row| {
            let text = |column| row.get::<_, String>(column);
            let of = |by, column| {
                if asked(by) {
                    text(column)
                } else {
                    Ok(String::new())
                }
            };
            let group = Group {
                endpoint: of(By::Endpoint, 0)?,
                consumer: of(By::Consumer, 1)?,
                listener: of(By::Listener, 2)?,
                upstream: of(By::Upstream, 3)?,
                relay: text(4)?,
            };
            let of = |column| of(By::Endpoint, column);
            Ok((group, Names([of(5)?, of(6)?, of(7)?])))
        });
        // Hours without their account are damage, and what they say is still true.
        let (group, names) = known.optional()?.unwrap_or_else(|| {
            let unknown = "(unknown)".to_owned();
            let group = Group {
                endpoint: if asked(By::Endpoint) {
                    unknown
                } else {
                    String::new()
                },
                consumer: String::new(),
                listener: String::new(),
                upstream: String::new(),
                relay: String::new(),
            };
            (group, Names::default())
        });
        let next = self.groups.len();
        let place = *self.of_group.entry(group.clone()).or_insert(next);
        if place == next {
            self.groups.push((group, names));
            self.sums.push(None);
        } else {
            self.groups[place].1 = names; // met later: newer, or as new
        }
        self.of_account.insert(account, place);
        Ok(place)
    }

    fn finish(mut self) -> Vec<Row> {
        self.turn();
        let groups = self.groups;
        let mut rows = Vec::with_capacity(self.rows);
        // A clock that went back makes no period come twice: hours lie in their order.
        for (period, mut sums) in self.done {
            sums.sort_by(|(one, _), (other, _)| groups[*one].0.cmp(&groups[*other].0));
            let row = |(group, sums): (usize, Sums)| {
                let (group, names) = &groups[group];
                row(&period, group, names, sums)
            };
            rows.extend(sums.into_iter().map(row));
        }
        rows
    }
}

fn row(period: &str, group: &Group, names: &Names, sums: Sums) -> Row {
    let [name, account, tags] = names.0.clone();
    let Group {
        endpoint,
        consumer,
        listener,
        upstream,
        relay,
    } = group.clone();
    let [opened, closed, refused, to_upstream, to_client, ms] =
        sums.0.map(|sum| u64::try_from(sum).unwrap_or(0));
    Row {
        period: period.to_owned(),
        endpoint,
        consumer,
        name,
        account,
        listener,
        upstream,
        opened,
        closed,
        refused,
        bytes_to_upstream: to_upstream,
        bytes_to_client: to_client,
        connection_seconds: ms as f64 / 1000.0,
        tags,
        relay,
    }
}
