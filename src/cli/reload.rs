//! `reload`: has a relay read its configuration again.

use std::io::{self, Write};

use serde::Deserialize;

use super::places;
use super::relay::Relay;
use super::{Error, ExitCode};
use crate::config::Change;

/// Have a running relay read its configuration file again, and put it into force; open sessions keep what they have
///
/// The file is checked first; where anything is wrong with it, or cannot be done, nothing changes. Says what changed, key by key, and which keys wait for a
/// restart. Only root and the relay's own user may do this; SIGHUP does the same without an answer.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Ends with 0 where the file is in force, whether anything changed or not; 66 where there is no file, 69 where no relay answers or it cannot reload now, \
                  77 where it is not permitted, 78 where the file is wrong.\n\nExamples:\n  \
                  tollgate check && tollgate reload\n  \
                  tollgate reload --run-dir /run/tollgate"
)]
pub(super) struct Args {
    #[command(flatten)]
    places: places::Args,
}

/// What became of it.
#[derive(Debug, Deserialize)]
struct Reloaded {
    digest: String,
    changed: Vec<Change>,
    restart: Vec<String>,
    warnings: Vec<String>,
}

pub(super) fn run(arguments: &Args) -> Result<ExitCode, Error> {
    // It is the relay that counts and logs a reload that failed: it is asked whatever is in the file.
    let relay = Relay::whatever_the_file(&arguments.places)?;
    let reloaded: Reloaded = relay.json("POST", "/reload").map_err(plain)?;
    let mut out = io::stdout().lock();
    tell(&mut out, &reloaded).map_err(Error::Output)?;
    Ok(ExitCode::Ok)
}

/// What the relay says of a file begins as every error does.
fn plain(error: Error) -> Error {
    match error {
        Error::Books { code, what } => Error::Books {
            code,
            what: what.strip_prefix("error: ").unwrap_or(&what).to_owned(),
        },
        other => other,
    }
}

fn tell(out: &mut dyn Write, reloaded: &Reloaded) -> io::Result<()> {
    let digest = reloaded.digest.get(..12).unwrap_or(&reloaded.digest);
    match reloaded.changed.len() {
        0 => writeln!(out, "nothing changed: {digest} means what was in force")?,
        1 => writeln!(out, "reloaded: {digest} is in force, 1 key changed")?,
        n => writeln!(out, "reloaded: {digest} is in force, {n} keys changed")?,
    }
    list(out, &reloaded.changed)?;
    if !reloaded.restart.is_empty() {
        let keys = reloaded.restart.join(", ");
        writeln!(out, "kept until a restart: {}", shown(&keys))?;
    }
    for warning in &reloaded.warnings {
        writeln!(out, "warning: {}", shown(warning))?;
    }
    Ok(())
}

/// Changes for people: the key, and below it what was there and what came.
pub(super) fn list(out: &mut dyn Write, changes: &[Change]) -> io::Result<()> {
    for change in changes {
        let restart = if change.restart {
            " (with a restart)"
        } else {
            ""
        };
        writeln!(out, "  {}{restart}", shown(&change.key))?;
        if let Some(before) = &change.before {
            writeln!(out, "    - {}", shown(before))?;
        }
        if let Some(after) = &change.after {
            writeln!(out, "    + {}", shown(after))?;
        }
    }
    Ok(())
}

/// What came over a socket stays on its line.
fn shown(text: &str) -> String {
    let escaped = text.chars().flat_map(|c| match c {
        '"' | '\'' | '\\' => vec![c],
        c => c.escape_debug().collect(),
    });
    escaped.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(reloaded: &str) -> String {
        let mut out = Vec::new();
        let reloaded = serde_json::from_str(reloaded).expect("as a relay answers");
        tell(&mut out, &reloaded).expect("memory takes everything");
        String::from_utf8(out).expect("text")
    }

    #[test]
    fn what_changed_is_told_key_by_key() {
        let text = told(
            r#"{"result": "applied", "digest": "0123456789abcdef", "restart": ["workers", "relay.mode"], "warnings": ["careful\u001b[2J"],
                "changed": [{"key": "drain.deadline", "before": "\"5m\"", "after": "\"2s\""}, {"key": "listener.b", "before": null, "after": "{ bind = \"1:1\" }"}]}"#,
        );
        let expected = "\
reloaded: 0123456789ab is in force, 2 keys changed
  drain.deadline
    - \"5m\"
    + \"2s\"
  listener.b
    + { bind = \"1:1\" }
kept until a restart: workers, relay.mode
warning: careful\\u{1b}[2J
";
        assert_eq!(text, expected);
    }

    #[test]
    fn a_file_that_means_the_same_is_told_as_such() {
        let text = told(r#"{"digest": "ab", "changed": [], "restart": [], "warnings": []}"#);
        assert_eq!(text, "nothing changed: ab means what was in force\n");
    }
}
