//! `endpoints`: who is connected now.

use std::io::{self, Write};

use super::places;
use super::relay::Relay;
use super::table::{Column, Format, table};
use super::{Error, ExitCode};
use crate::admin::Connected;

/// List who is connected now: open connections by endpoint, listener and upstream, those with most first
///
/// Asks the relay that runs, through its admin socket; any user may.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    places: places::Args,
    /// How to print it
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

pub(super) fn run(arguments: &Args) -> Result<ExitCode, Error> {
    let places = arguments.places.find()?;
    let mut lines: Vec<Connected> = Relay::at(&places)?.json("GET", "/endpoints")?;
    for line in &mut lines {
        let named = places.endpoints.named(&line.endpoint);
        for (known, newer) in [
            (&mut line.name, named.name),
            (&mut line.account, named.account),
            (&mut line.tags, named.tags),
        ] {
            if !newer.is_empty() {
                *known = newer.to_string();
            }
        }
    }
    let out = io::stdout().lock();
    write(out, &lines, arguments.format).map_err(Error::Output)?;
    Ok(ExitCode::Ok)
}

fn write(mut out: impl Write, lines: &[Connected], format: Format) -> io::Result<()> {
    match format {
        Format::Table => out.write_all(as_table(lines).as_bytes()),
        Format::Json => {
            serde_json::to_writer_pretty(&mut out, lines)?;
            writeln!(out)
        }
        Format::Csv => {
            let mut csv = csv::WriterBuilder::new()
                .has_headers(false)
                .from_writer(out);
            csv.write_record(HEADER)?;
            for line in lines {
                csv.serialize(line)?;
            }
            csv.flush()
        }
    }
}

/// The columns, in the order of the fields.
const HEADER: [&str; 11] = [
    "endpoint",
    "consumer",
    "name",
    "account",
    "listener",
    "upstream",
    "active",
    "opened",
    "bytes_to_upstream",
    "bytes_to_client",
    "tags",
];

fn as_table(lines: &[Connected]) -> String {
    let columns = [
        Some(Column::text("endpoint", lines, |line| &line.endpoint)),
        Column::text_if_any("consumer", lines, |line| &line.consumer),
        Column::text_if_any("name", lines, |line| &line.name),
        Column::text_if_any("account", lines, |line| &line.account),
        Some(Column::text("listener", lines, |line| &line.listener)),
        Some(Column::text("upstream", lines, |line| &line.upstream)),
        Some(Column::sum("active", lines, |line| line.active)),
        Some(Column::sum("opened", lines, |line| line.opened)),
        Some(Column::sum("to upstream", lines, |line| {
            line.bytes_to_upstream
        })),
        Some(Column::sum("to client", lines, |line| line.bytes_to_client)),
        Column::text_if_any("tags", lines, |line| &line.tags),
    ];
    table(columns.into_iter().flatten().collect(), lines.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line() -> Connected {
        Connected {
            endpoint: "vpce-1".to_owned(),
            consumer: String::new(),
            name: "one".to_owned(),
            account: String::new(),
            listener: "ingest".to_owned(),
            upstream: "cp".to_owned(),
            active: 2,
            opened: 1000,
            bytes_to_upstream: 5,
            bytes_to_client: 6,
            tags: String::new(),
        }
    }

    fn written(format: Format) -> String {
        let mut out = Vec::new();
        write(&mut out, &[line()], format).expect("a buffer takes everything");
        String::from_utf8(out).expect("text")
    }

    #[test]
    fn each_form_has_the_same_in_it() {
        assert_eq!(
            written(Format::Table),
            "endpoint  name  listener  upstream  active  opened  to upstream  to client\n\
             vpce-1    one   ingest    cp             2   1,000            5          6\n\
             total                                    2   1,000            5          6\n"
        );
        assert_eq!(
            written(Format::Csv),
            "endpoint,consumer,name,account,listener,upstream,active,opened,bytes_to_upstream,bytes_to_client,tags\n\
             vpce-1,,one,,ingest,cp,2,1000,5,6,\n"
        );
        let read: Vec<Connected> = serde_json::from_str(&written(Format::Json)).expect("JSON");
        assert_eq!(read, [line()]);
    }
}
