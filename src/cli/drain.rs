//! `tollgate drain` and `tollgate undrain`.

use std::io::{self, IsTerminal, Write};
use std::thread;
use std::time::Duration;

use serde::Deserialize;

use super::client::Client;
use super::{Error, ExitCode, places};

/// Between two looks at a drain that is waited for.
const LOOK: Duration = Duration::from_millis(500);

/// Take a running relay out of its balancer, and close what is open by and by; the process stays
///
/// Health checks fail at once. Connections are still taken for [drain] accept_for, then new ones are refused; sessions may go on until [drain]
/// deadline and are closed over the last [drain] spread of it. `tollgate undrain` takes it back. Only root and the relay's own user may do
/// this.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Exit codes: 0 it drains, or with --wait: nothing is open any more; 1 with --wait: it was taken back; 69 no relay answers, or it is ending; 77 not permitted."
)]
pub(super) struct Args {
    #[command(flatten)]
    places: places::Args,
    /// Refuse new connections at once, without the time in which they are still taken
    #[arg(long)]
    now: bool,
    /// Wait until nothing is open any more, and show how far it is
    #[arg(long)]
    wait: bool,
}

/// Let a relay take part again that was drained
///
/// Health checks pass again, new connections are taken, sessions that are still open stay. Only root and the relay's own user may do this.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Exit codes: 0 it takes part; 69 no relay answers, or it is ending; 77 not permitted."
)]
pub(super) struct UndrainArgs {
    #[command(flatten)]
    places: places::Args,
}

/// How far a drain is, as the relay tells it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct Progress {
    phase: String,
    ends: bool,
    next: Option<String>,
    deadline: Option<String>,
    sessions: usize,
}

impl Progress {
    fn words(&self) -> String {
        let open = match self.sessions {
            1 => "1 session open".to_owned(),
            n => format!("{n} sessions open"),
        };
        let until = |time: &Option<String>| time.clone().unwrap_or_else(|| "soon".to_owned());
        match self.phase.as_str() {
            "leaving" => format!(
                "leaving: connections are taken until {}, {open}",
                until(&self.next)
            ),
            "finishing" => format!(
                "finishing: all is closed by {}, {open}",
                until(&self.deadline)
            ),
            "drained" => "drained: nothing is open".to_owned(),
            other => format!("{other}: {open}"),
        }
    }
}

pub(super) fn drain(arguments: &Args) -> Result<ExitCode, Error> {
    let client = client(&arguments.places)?;
    let target = if arguments.now {
        "/drain?now=1"
    } else {
        "/drain"
    };
    let begun: Progress = reached(client.json("POST", target)?)?;
    let mut screen = Screen::default();
    screen.show(&begun)?;
    if !arguments.wait {
        return Ok(ExitCode::Ok);
    }
    let mut last = begun;
    while last.phase != "drained" {
        thread::sleep(LOOK);
        last = match client.json("GET", "/phase")? {
            Ok(progress) => progress,
            // Told to end in the meantime, it ends when nothing is open any more.
            Err(_) if last.ends => break,
            Err(error) => return Err(nobody(&error)),
        };
        screen.show(&last)?;
        if last.phase == "serving" {
            return Ok(ExitCode::Findings);
        }
    }
    Ok(ExitCode::Ok)
}

pub(super) fn undrain(arguments: &UndrainArgs) -> Result<ExitCode, Error> {
    let client = client(&arguments.places)?;
    let done: Progress = reached(client.json("POST", "/undrain")?)?;
    Screen::default().show(&done)?;
    Ok(ExitCode::Ok)
}

fn client(places: &places::Args) -> Result<Client, Error> {
    let socket = places.find()?.socket;
    let none = || {
        Error::Books {
        code: ExitCode::Unavailable,
        what: "this relay is configured to have no admin socket, which orders come by: write [admin] socket, or end it with SIGTERM".to_owned(),
    }
    };
    Ok(Client::new(&socket.ok_or_else(none)?))
}

fn reached<T>(answer: Result<T, io::Error>) -> Result<T, Error> {
    answer.map_err(|error| nobody(&error))
}

fn nobody(error: &io::Error) -> Error {
    Error::Books {
        code: ExitCode::Unavailable,
        what: format!(
            "no relay answers: {error}; is it running, and is this its configuration (--config, --run-dir)?"
        ),
    }
}

/// Where progress is shown: one line that changes on a terminal, a line per change elsewhere.
#[derive(Debug, Default)]
struct Screen {
    shown: Option<String>,
}

impl Screen {
    fn show(&mut self, progress: &Progress) -> Result<(), Error> {
        let words = progress.words();
        if self.shown.as_ref() != Some(&words) {
            let mut out = io::stdout();
            let again = self.shown.is_some() && out.is_terminal();
            // Up by one line, and clear it.
            let back = if again { "\x1b[1A\x1b[2K" } else { "" };
            writeln!(out, "{back}{words}").map_err(Error::Output)?;
            self.shown = Some(words);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_relay_reports_is_understood() {
        let now = std::time::Instant::now();
        let report = crate::drain::Stand::serving(now).report(1);
        let progress: Progress = serde_json::from_value(report).unwrap();
        assert_eq!(progress.words(), "serving: 1 session open");
    }

    #[test]
    fn progress_says_when_it_goes_on() {
        let mut progress = Progress {
            phase: "leaving".to_owned(),
            ends: false,
            next: Some("2026-11-21T21:00:00Z".to_owned()),
            deadline: Some("2026-11-21T21:05:00Z".to_owned()),
            sessions: 2,
        };
        assert_eq!(
            progress.words(),
            "leaving: connections are taken until 2026-11-21T21:00:00Z, 2 sessions open"
        );
        progress.phase = "finishing".to_owned();
        assert_eq!(
            progress.words(),
            "finishing: all is closed by 2026-11-21T21:05:00Z, 2 sessions open"
        );
    }
}
