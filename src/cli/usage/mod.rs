//! `usage`: who used how much. From the relay that runs, which books first, or from its ledger.

mod export;
mod when;

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use clap::Subcommand;
use jiff::Timestamp;

use super::client::Client;
use super::places::{self, Places};
use super::table::{Column, Format, table};
use super::{Error, ExitCode};
use crate::account::ledger::read::Reading;
use crate::account::ledger::{By, Kind, Query, Row, write_csv};
use crate::admin::query;
use crate::config::{Endpoints, Named};

/// Longest that a report from the ledger itself may take.
const REPORT: Duration = Duration::from_secs(600);

/// Show who used how much, hour by hour as it was booked
///
/// Asks the relay that runs, through its admin socket, which any user may; where none answers, reads its ledger. All times are UTC.
#[derive(Debug, clap::Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Examples:\n  \
    tollgate usage --since 7d\n  \
    tollgate usage --since 2026-11-01 --until 2026-12-01 --by endpoint --by month --format csv\n  \
    tollgate usage export --to /var/spool/tollgate"
)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    places: places::Args,
    /// From the hour that contains this on: "2026-11-21T17:00:00Z", "2026-11-21", or "7d" ago [default: everything]
    #[arg(long, value_name = "TIME", value_parser = moment)]
    since: Option<Timestamp>,
    /// Hours that begin before this, written as --since [default: to the end]
    #[arg(long, value_name = "TIME", value_parser = moment)]
    until: Option<Timestamp>,
    /// What to add up by; may be given several times, or with commas
    #[arg(long, value_name = "WHAT", value_delimiter = ',', default_value = "endpoint", value_parser = clap::builder::PossibleValuesParser::new(By::ALL.map(By::name)))]
    by: Vec<String>,
    /// How to print it
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

#[derive(Debug, Subcommand)]
enum Command {
    Export(export::Args),
}

fn moment(text: &str) -> Result<Timestamp, String> {
    when::parse(text, Timestamp::now())
}

pub(super) fn run(arguments: &Args) -> Result<ExitCode, Error> {
    if let Some(Command::Export(arguments)) = &arguments.command {
        return export::run(arguments);
    }
    let by = arguments.by.iter().map(|name| name.parse());
    let query = Query {
        since: arguments.since,
        until: arguments.until,
        by: by.collect::<Result<_, _>>().map_err(Error::Input)?,
    };
    if let (Some(since), Some(until)) = (query.since, query.until)
        && since >= until
    {
        return Err(Error::Books {
            code: ExitCode::Usage,
            what: format!(
                "--since ({since}) is not before --until ({until}): nothing lies between them"
            ),
        });
    }
    let places = arguments.places.find()?;
    let mut rows = ask(&places, &query)?;
    if query.by.contains(&By::Endpoint) {
        name(&mut rows, &places.endpoints);
    }
    let out = io::stdout().lock();
    write(out, &rows, &query.by, arguments.format).map_err(Error::Output)?;
    Ok(ExitCode::Ok)
}

/// The report, from whoever has it.
fn ask(places: &Places, query: &Query) -> Result<Vec<Row>, Error> {
    let mut nobody = "it has no admin socket".to_owned();
    if let Some(socket) = &places.socket {
        match Client::new(socket).json("GET", &target(query))? {
            Ok(rows) => return Ok(rows),
            Err(error) => nobody = format!("no relay answers at {} ({error})", socket.display()),
        }
    }
    let read = Reading::open(&places.state_dir)
        .and_then(|ledger| ledger.report(query, Instant::now() + REPORT));
    read.map_err(|trouble| Error::Books {
        code: match trouble.kind {
            Kind::CannotOpen if is_denied(&trouble.path) => ExitCode::Permission,
            kind => code(kind),
        },
        what: match trouble.kind {
            Kind::CannotOpen => format!(
                "{nobody}, and its ledger cannot be read: {path}: {what}; name the relay's directories with --config or --state-dir, or ask as a user who may read them",
                path = trouble.path.display(),
                what = trouble.what,
            ),
            _ => format!("{nobody}, and its ledger tells nothing: {trouble}"),
        },
    })
}

/// Whether it is there, or may be, and not for us.
fn is_denied(path: &Path) -> bool {
    File::open(path).is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied)
}

/// What a command ends with that cannot use the ledger.
fn code(kind: Kind) -> ExitCode {
    match kind {
        Kind::Damaged | Kind::Newer | Kind::Foreign => ExitCode::Data,
        Kind::Other => ExitCode::Internal,
        _ => ExitCode::Unavailable,
    }
}

/// What to ask a relay for.
fn target(query: &Query) -> String {
    let times = [("since", query.since), ("until", query.until)];
    let times = times.into_iter();
    let mut pairs: Vec<_> = times
        .filter_map(|(key, time)| Some((key, time?.to_string())))
        .collect();
    pairs.extend(query.by.iter().map(|by| ("by", by.name().to_owned())));
    format!("/usage?{}", query::encode(&pairs))
}

/// What the configuration calls endpoints now goes before what the ledger knows.
fn name(rows: &mut [Row], endpoints: &Endpoints) {
    if endpoints.entries.is_empty() {
        return;
    }
    for row in rows {
        let Named {
            name,
            account,
            tags,
        } = endpoints.named(&row.endpoint);
        for (known, newer) in [
            (&mut row.name, name),
            (&mut row.account, account),
            (&mut row.tags, tags),
        ] {
            if !newer.is_empty() {
                *known = newer.to_string();
            }
        }
    }
}

fn write(mut out: impl Write, rows: &[Row], by: &[By], format: Format) -> io::Result<()> {
    match format {
        Format::Table => out.write_all(as_table(rows, by).as_bytes()),
        Format::Csv => write_csv(out, rows),
        Format::Json => {
            serde_json::to_writer_pretty(&mut out, rows)?;
            writeln!(out)
        }
    }
}

fn as_table(rows: &[Row], by: &[By]) -> String {
    let asked = |wanted: By, title, cell: fn(&Row) -> &str| {
        by.contains(&wanted)
            .then(|| Column::text(title, rows, cell))
    };
    let period = [By::Hour, By::Day, By::Month]
        .into_iter()
        .find(|time| by.contains(time));
    let relays = || rows.windows(2).any(|pair| pair[0].relay != pair[1].relay);
    let nothing_asked = by.is_empty();
    let columns = [
        period.map(|period| Column::text(period.name(), rows, |row| &row.period)),
        asked(By::Endpoint, "endpoint", |row| &row.endpoint),
        asked(By::Consumer, "consumer", |row| &row.consumer),
        Column::text_if_any("name", rows, |row| &row.name),
        Column::text_if_any("account", rows, |row| &row.account),
        asked(By::Listener, "listener", |row| &row.listener),
        asked(By::Upstream, "upstream", |row| &row.upstream),
        (nothing_asked || relays()).then(|| Column::text("relay", rows, |row| &row.relay)),
        Some(Column::sum("opened", rows, |row| row.opened)),
        Some(Column::sum("closed", rows, |row| row.closed)),
        Some(Column::sum("refused", rows, |row| row.refused)),
        Some(Column::sum("to upstream", rows, |row| {
            row.bytes_to_upstream
        })),
        Some(Column::sum("to client", rows, |row| row.bytes_to_client)),
        Some(Column::sum_of_thousandths("seconds", rows, milliseconds)),
        Column::text_if_any("tags", rows, |row| &row.tags),
    ];
    table(columns.into_iter().flatten().collect(), rows.len())
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "they were whole milliseconds, and are below 2^53"
)]
fn milliseconds(row: &Row) -> u64 {
    (row.connection_seconds * 1e3).round() as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::EndpointEntry;

    fn row(endpoint: &str) -> Row {
        Row {
            period: "2026-11-21".to_owned(),
            endpoint: endpoint.to_owned(),
            name: "old, \"name\"".to_owned(),
            opened: 3,
            closed: 2,
            bytes_to_upstream: 1_000_000,
            bytes_to_client: 7,
            connection_seconds: 12.5,
            relay: "relay-1".to_owned(),
            ..Row::default()
        }
    }

    fn written(format: Format) -> String {
        let mut out = Vec::new();
        let by = [By::Endpoint, By::Day];
        write(&mut out, &[row("vpce-1"), row("vpce-2")], &by, format).expect("a buffer");
        String::from_utf8(out).expect("text")
    }

    #[test]
    fn a_table_has_what_was_asked_for_and_sums() {
        assert_eq!(
            written(Format::Table),
            "\
day         endpoint  name         opened  closed  refused  to upstream  to client  seconds
2026-11-21  vpce-1    old, \"name\"       3       2        0    1,000,000          7   12.500
2026-11-21  vpce-2    old, \"name\"       3       2        0    1,000,000          7   12.500
total                                   6       4        0    2,000,000         14   25.000
"
        );
    }

    #[test]
    fn a_csv_is_read_by_who_reads_rfc_4180() {
        assert_eq!(
            written(Format::Csv),
            "period,endpoint,consumer,name,account,listener,upstream,opened,closed,refused,bytes_to_upstream,bytes_to_client,connection_seconds,tags,relay\n\
             2026-11-21,vpce-1,,\"old, \"\"name\"\"\",,,,3,2,0,1000000,7,12.500,,relay-1\n\
             2026-11-21,vpce-2,,\"old, \"\"name\"\"\",,,,3,2,0,1000000,7,12.500,,relay-1\n"
        );
    }

    #[test]
    fn json_is_an_array_of_objects_with_the_same_names() {
        let read: Vec<serde_json::Map<String, serde_json::Value>> =
            serde_json::from_str(&written(Format::Json)).expect("JSON");
        let csv = written(Format::Csv);
        let mut names: Vec<_> = csv.lines().next().expect("a header").split(',').collect();
        names.sort_unstable();
        let mut keys: Vec<_> = read[0].keys().map(String::as_str).collect();
        keys.sort_unstable();
        assert_eq!(keys, names);
        assert_eq!(read[1]["endpoint"], "vpce-2");
    }

    #[test]
    fn names_of_the_configuration_go_before_those_of_the_ledger() {
        let endpoints = Endpoints {
            entries: vec![EndpointEntry {
                pattern: "vpce-1".into(),
                name: Some("new".into()),
                account: None,
                tags: Some(vec!["a".into(), "b".into()]),
                policy: Default::default(),
            }],
        };
        let mut rows = [row("vpce-1"), row("vpce-2")];
        name(&mut rows, &endpoints);
        assert_eq!((&*rows[0].name, &*rows[0].tags), ("new", "a b"));
        assert_eq!(rows[1].name, row("").name);
    }

    #[test]
    fn what_is_asked_of_a_relay_is_one_address() {
        let query = Query {
            since: Some("2026-11-21T17:00:00Z".parse().expect("a time")),
            until: None,
            by: vec![By::Endpoint, By::Day],
        };
        assert_eq!(
            target(&query),
            "/usage?since=2026-11-21T17:00:00Z&by=endpoint&by=day"
        );
    }
}
