//! `config diff` and `config show`: what a relay runs with, beside the file that it would read.

use std::io::{self, Write};
use std::path::PathBuf;

use serde::Deserialize;

use super::places;
use super::relay::Relay;
use super::{Error, ExitCode, reload};
use crate::config::{Config, changes};

/// What a running relay's configuration is, and what a reload would change
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    Diff(Diff),
    Show(Show),
}

/// Say what a reload would change: what is in force in a running relay beside the file as it is now
///
/// Comments, order and ways of writing the same are not looked at. Only root and the relay's own user may ask for what is in force.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Ends with 0 where a reload would change nothing, 1 where it would change something; 66 where there is no file, 69 where no relay answers, 77 where it is \
                  not permitted, 78 where the file is wrong.\n\nExamples:\n  \
                  tollgate config diff\n  \
                  tollgate config diff ./next.toml"
)]
struct Diff {
    /// The file that is compared [default: the one that the relay was started with, as it is now]
    file: Option<PathBuf>,
    #[command(flatten)]
    places: places::Args,
}

/// Say everything that is in force in a running relay, key by key, the defaults included
///
/// Only root and the relay's own user may ask for it. `tollgate check` says what a file means.
#[derive(Debug, clap::Args)]
struct Show {
    #[command(flatten)]
    places: places::Args,
}

/// What a relay says of its configuration.
#[derive(Debug, Deserialize)]
struct Running {
    path: PathBuf,
    text: String,
    restart: Vec<String>,
}

pub(super) fn run(arguments: &Args) -> Result<ExitCode, Error> {
    let out = &mut io::stdout().lock();
    match &arguments.command {
        Command::Diff(arguments) => diff(arguments, out),
        Command::Show(arguments) => show(arguments, out),
    }
}

/// What the relay has, read as it read it: what the environment says of directories is this command's.
fn running(arguments: &places::Args) -> Result<(Running, Config), Error> {
    // What is wrong with the file is said when it is compared.
    let relay = Relay::whatever_the_file(arguments)?;
    let running: Running = relay.json("GET", "/config")?;
    let origin = format!("{} as the relay has it", running.path.display());
    let config = Config::from_str(&running.text, &origin).map_err(Error::Config)?;
    Ok((running, config))
}

fn diff(arguments: &Diff, out: &mut dyn Write) -> Result<ExitCode, Error> {
    let (running, before) = running(&arguments.places)?;
    let file = arguments.file.as_ref().unwrap_or(&running.path);
    let after = Config::from_file(file).map_err(Error::Config)?;
    let found = changes(&before, &after);
    let told = match found.len() {
        0 => writeln!(out, "{}: a reload would change nothing", file.display()),
        1 => writeln!(out, "{}: a reload would change 1 key", file.display()),
        n => writeln!(out, "{}: a reload would change {n} keys", file.display()),
    };
    told.and_then(|()| reload::list(out, &found))
        .and_then(|()| waiting(out, &running))
        .map_err(Error::Output)?;
    Ok(match found.is_empty() {
        true => ExitCode::Ok,
        false => ExitCode::Findings,
    })
}

fn waiting(out: &mut dyn Write, running: &Running) -> io::Result<()> {
    if running.restart.is_empty() {
        return Ok(());
    }
    let keys = running.restart.join(", ");
    writeln!(
        out,
        "of what was loaded last, these wait for a restart: {keys}"
    )
}

fn show(arguments: &Show, out: &mut dyn Write) -> Result<ExitCode, Error> {
    let (running, config) = running(&arguments.places)?;
    let mut tell = || {
        for (key, value) in config.in_force() {
            let waits = running.restart.contains(&key);
            let note = if waits {
                " # from the next start on"
            } else {
                ""
            };
            writeln!(out, "{key} = {value}{note}")?;
        }
        Ok(())
    };
    tell().map_err(Error::Output)?;
    Ok(ExitCode::Ok)
}
