//! `usage export`: hours as files, each once.

use std::fmt::Display;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::account::ledger::{Exported, export_at_rest};
use crate::admin::query;
use crate::cli::client::Client;
use crate::cli::places::{self, Places};
use crate::cli::{Error, ExitCode};

/// Write the hours that closed since the last export as CSV files, each hour once and in whole; prints their names
///
/// For what ships them before an instance ends. Needs to be root or the relay's user.
#[derive(Debug, clap::Args)]
#[group(skip)]
pub(super) struct Args {
    #[command(flatten)]
    places: places::Args,
    /// Where to write them [default: export in the state directory]
    #[arg(long, value_name = "DIR")]
    to: Option<PathBuf>,
    /// Also the hour that is not over: what is booked later belongs to the next
    #[arg(long)]
    all: bool,
}

/// Said to whoever asks for all of an hour again.
const AHEAD: &str = "tollgate: the present hour was exported before: what was counted since is booked to the next, and is exported once that has begun";

pub(super) fn run(arguments: &Args) -> Result<ExitCode, Error> {
    let places = arguments.places.find()?;
    loop {
        let done = once(arguments, &places)?;
        let mut out = io::stdout().lock();
        for file in &done.files {
            writeln!(out, "{}", file.display()).map_err(Error::Output)?;
        }
        if !done.more {
            if done.ahead {
                // Whoever does not listen has the files all the same.
                let _ = writeln!(io::stderr(), "{AHEAD}");
            }
            return Ok(ExitCode::Ok);
        }
    }
}

/// One piece of it.
fn once(arguments: &Args, places: &Places) -> Result<Exported, Error> {
    // The relay has a working directory of its own.
    let to = arguments.to.as_ref().map(std::path::absolute).transpose();
    let to = to.map_err(|error| Error::Input(format!("--to: {error}")))?;
    let mut nobody = String::new();
    if let Some(socket) = &places.socket {
        match Client::new(socket).json("POST", &target(to.as_deref(), arguments.all))? {
            Ok(exported) => return Ok(exported),
            Err(error) => nobody = format!("no relay answers at {} ({error}); ", socket.display()),
        }
    }
    let settings = places.settings();
    let failed = |code, what: &dyn Display| Error::Books {
        code,
        what: format!("{nobody}{what}"),
    };
    let exported = export_at_rest(&settings, to, arguments.all);
    let exported = exported.map_err(|error| failed(super::super::of_ledger(&error), &error))?;
    exported.map_err(|trouble| failed(super::code(trouble.kind), &trouble))
}

fn target(to: Option<&Path>, all: bool) -> String {
    let to = to.map(|to| ("to", to.to_string_lossy().into_owned()));
    let all = all.then(|| ("all", "1".to_owned()));
    let pairs: Vec<_> = [to, all].into_iter().flatten().collect();
    format!("/usage/export?{}", query::encode(&pairs))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_of_a_relay_is_one_address() {
        assert_eq!(target(None, false), "/usage/export?");
        assert_eq!(
            target(Some(Path::new("/a b")), true),
            "/usage/export?to=/a%20b&all=1"
        );
    }
}
