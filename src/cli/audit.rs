//! `audit verify`: whether a trail is as the relay wrote it.

use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use jiff::Timestamp;

use super::client::Client;
use super::places::{self, Places};
use super::{Error, ExitCode};
use crate::account::Anchor;
use crate::account::audit::chain::{Hash, Key};
use crate::account::audit::files;
use crate::account::audit::verify::{Known, Report, verify};
use crate::account::ledger::read::Reading;
use crate::config::Sink;

/// How often a trail is read whose files follow each other meanwhile.
const READINGS: u32 = 5;

/// The audit trail.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    Verify(Verify),
}

/// Tell whether an audit trail is as the relay wrote it, and name the first record that was changed, removed, added, moved or cut off
///
/// The files of a trail may be given in any order. Records are held against what the relay's ledger knows of the trail (its anchors), so that cut ends show as well;
/// without a ledger, anchors may be taken from the relay's log (the lines "audit head").
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Ends with 0 where nothing was found, 1 where something was.\n\nExamples:\n  \
    tollgate audit verify\n  \
    tollgate audit verify /var/log/tollgate/audit.log*\n  \
    tollgate audit verify audit.log --anchor=4711:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
)]
struct Verify {
    /// The trail's files [default: that of the configuration, and those that it followed]
    files: Vec<PathBuf>,
    /// The key that the trail was made with [default: that of the configuration]
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
    /// A record's number and hash, known from elsewhere; may be given several times
    #[arg(long, value_name = "SEQ:HASH", value_parser = anchor)]
    anchor: Vec<Known>,
    #[command(flatten)]
    places: places::Args,
}

/// Does what the command line says.
pub(super) fn run(arguments: &Args) -> Result<ExitCode, Error> {
    let Command::Verify(arguments) = &arguments.command;
    arguments.run(&mut std::io::stdout().lock())
}

fn anchor(text: &str) -> Result<Known, String> {
    let wrong = || "wanted is a record's number, a colon and 64 digits, as in the log".to_owned();
    let (sequence, hash) = text.split_once(':').ok_or_else(wrong)?;
    Ok(Known {
        sequence: sequence.parse().map_err(|_| wrong())?,
        hash: Hash::parse(&hash.to_ascii_lowercase()).ok_or_else(wrong)?,
    })
}

impl Verify {
    fn run(&self, out: &mut dyn Write) -> Result<ExitCode, Error> {
        let began = Instant::now();
        let places = self.places.find()?;
        let audit = places.audit();
        let own = audit.and_then(|audit| match &audit.sink {
            Sink::File(path) => Some(path.clone()),
            Sink::Off | Sink::Stdout => None,
        });
        if self.files.is_empty() && own.is_none() {
            let what = "which files? The configuration has no audit file, or there is no configuration: write tollgate audit verify FILE…";
            return Err(Error::Input(what.to_owned()));
        }
        let configured = || audit.and_then(|audit| audit.key_file.clone());
        let key = match self.key_file.clone().or_else(configured) {
            None => Key::none(),
            Some(path) => Key::read(&path)
                .map_err(|error| unreadable(&error, format!("key {}: {error}", path.display())))?,
        };
        let list = || match (&self.files[..], &own) {
            ([], Some(path)) => listed(files(path)),
            (files, _) => listed(files.to_vec()),
        };
        let mut unknown = None;
        let read = |listed: &[Listed]| {
            let paths: Vec<PathBuf> = listed.iter().map(|(path, _)| path.clone()).collect();
            // The anchors first: what is written meanwhile is behind them.
            let (mut anchors, why) = match (&self.files[..], &own) {
                // Also where there is no file any more.
                ([], Some(path)) => known_of(&places, std::slice::from_ref(path)),
                _ => known_of(&places, &paths),
            };
            unknown = why;
            anchors.extend(&self.anchor);
            verify(&paths, &key, &anchors)
        };
        let report = settled(list, read, |report| {
            report
                .as_ref()
                .map_or(true, |report| report.finding.is_some())
        });
        let mut report = report.map_err(|error| unreadable(&error, error.to_string()))?;
        if let (Some(finding), Some(path)) = (&mut report.finding, &own)
            && finding.file.as_os_str().is_empty()
        {
            finding.file.clone_from(path);
        }
        tell(out, &report, &unknown, began).map_err(Error::Output)?;
        Ok(match report.finding {
            None => ExitCode::Ok,
            Some(_) => ExitCode::Findings,
        })
    }
}

/// A file, and which it is: its device, its number, and its length unless it is the one that is written to.
type Listed = (PathBuf, Option<(u64, u64, u64)>);

fn listed(paths: Vec<PathBuf>) -> Vec<Listed> {
    let last = paths.len().saturating_sub(1);
    let which = |(number, path): (usize, PathBuf)| {
        let found = path.metadata().ok().map(|found| {
            let length = if number == last { 0 } else { found.len() };
            (found.dev(), found.ino(), length)
        });
        (path, found)
    };
    paths.into_iter().enumerate().map(which).collect()
}

/// Reads what is listed. Where the answer is `unsure` and the list is another by then, because the relay began a new file meanwhile, again.
fn settled<T>(
    list: impl Fn() -> Vec<Listed>,
    mut read: impl FnMut(&[Listed]) -> T,
    unsure: impl Fn(&T) -> bool,
) -> T {
    let mut listed = list();
    let mut report = read(&listed);
    for _ in 1..READINGS {
        if !unsure(&report) {
            break;
        }
        let now = list();
        if now == listed {
            break;
        }
        listed = now;
        report = read(&listed);
    }
    report
}

/// Of a file or key that cannot be read.
fn unreadable(error: &std::io::Error, what: String) -> Error {
    match error.kind() {
        std::io::ErrorKind::PermissionDenied => Error::Books {
            code: ExitCode::Permission,
            what,
        },
        _ => Error::Input(what),
    }
}

/// What the relay's ledger knows of the trail in these files, and why it is not more.
fn known_of(places: &Places, paths: &[PathBuf]) -> (Vec<Known>, Option<String>) {
    let read = Reading::open(&places.state_dir).map_err(|trouble| trouble.to_string());
    let (anchors, trouble) = match read.and_then(|ledger| anchors_of(&ledger)) {
        Ok(anchors) => (anchors, None),
        Err(trouble) => {
            // Who may not read the ledger may ask the relay.
            let asked = places
                .socket
                .as_deref()
                .map(|socket| Client::new(socket).json::<Anchor>("GET", "/anchor"));
            match asked {
                Some(Ok(Ok(anchor))) => (vec![anchor], None),
                _ => (Vec::new(), Some(trouble)),
            }
        }
    };
    let anchors = anchors.iter().filter(|anchor| is_of(anchor, paths));
    let known = anchors.filter_map(|anchor| {
        Some(Known {
            sequence: anchor.sequence,
            hash: Hash::parse(&anchor.hash)?,
        })
    });
    (known.collect(), trouble)
}

/// The last head of each hour, and the last of all.
fn anchors_of(ledger: &Reading) -> Result<Vec<Anchor>, String> {
    let read = || -> rusqlite::Result<Vec<Anchor>> {
        let mut query = ledger
            .connection()
            .prepare("SELECT sequence, hash, file FROM anchors ORDER BY hour")?;
        let anchors = query.query_map([], |row| {
            Ok(Anchor {
                time: Timestamp::UNIX_EPOCH, // nobody asks
                sequence: row.get::<_, i64>(0)?.unsigned_abs(),
                hash: row.get(1)?,
                file: row.get(2)?,
            })
        })?;
        anchors.collect()
    };
    let mut anchors = read().map_err(|error| error.to_string())?;
    anchors.extend(
        ledger
            .last_anchor()
            .map_err(|trouble| trouble.to_string())?,
    );
    anchors.dedup_by(|one, other| (one.sequence, &one.hash) == (other.sequence, &other.hash));
    Ok(anchors)
}

/// Whether an anchor is of the trail in these files: one of them has its file's name, or one that the file had when another followed it. On standard output each
/// process begins a trail of its own, and nobody knows whose is in a file.
fn is_of(anchor: &Anchor, paths: &[PathBuf]) -> bool {
    let name = |path: &Path| Some(path.file_name()?.to_string_lossy().into_owned());
    let Some(of) = name(Path::new(&anchor.file)) else {
        return false;
    };
    paths.iter().filter_map(|path| name(path)).any(|name| {
        let rest = name.strip_prefix(&of);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
    })
}

fn tell(
    out: &mut dyn Write,
    report: &Report,
    unknown: &Option<String>,
    began: Instant,
) -> std::io::Result<()> {
    let files = report.files.len();
    if let Some(finding) = &report.finding {
        writeln!(out, "{finding}")?;
        let touched = finding.sequence.unwrap_or(report.last.sequence + 1);
        let last = report.last.sequence.min(touched.saturating_sub(1));
        if report.records > 0 && last >= report.first {
            writeln!(
                out,
                "records {} to {last} before that fit together",
                report.first
            )?;
        }
    } else if report.records > 0 {
        let last = &report.last;
        writeln!(
            out,
            "records {} to {} in {files} file{} are as they were written; head {}:{}",
            report.first,
            last.sequence,
            if files == 1 { "" } else { "s" },
            last.sequence,
            last.hash
        )?;
    }
    if report.trails > 1 {
        writeln!(
            out,
            "{} processes, each with a trail of its own",
            report.trails
        )?;
    }
    if let Some(anchored) = report.anchored {
        writeln!(out, "anchored up to record {anchored}")?;
    }
    if let Some(torn) = report.torn {
        writeln!(
            out,
            "the last line is not finished ({torn} bytes): the process was killed in it, or is writing it now. The next start keeps it in its first record"
        )?;
    }
    for note in &report.notes {
        writeln!(out, "{note}")?;
    }
    if let Some(unknown) = unknown {
        writeln!(out, "the ledger could not be asked for anchors: {unknown}")?;
    }
    let seconds = began.elapsed().as_secs_f64();
    if seconds > 5.0 {
        writeln!(out, "{} records in {seconds:.0} s", report.records)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::account::audit::{About, Trail};

    fn anchored(file: &str) -> Anchor {
        Anchor {
            time: jiff::Timestamp::UNIX_EPOCH,
            sequence: 7,
            hash: String::new(),
            file: file.to_owned(),
        }
    }

    #[test]
    fn an_anchor_is_of_the_files_that_followed_each_other_under_its_name() {
        let of = |file: &str, path: &str| is_of(&anchored(file), &[path.into()]);
        assert!(of(
            "/var/log/audit.log",
            "/archive/audit.log-20261121T170000Z-7"
        ));
        assert!(of("/var/log/audit.log", "audit.log"));
        assert!(!of("/var/log/audit.log", "other.log"));
        assert!(!of("", "audit.log"), "standard output");
    }

    /// What is said of a trail whose content is changed, and how the command ends; its end is anchored.
    fn told(change: impl FnOnce(String) -> String) -> (ExitCode, String) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("audit.log");
        let settings = crate::config::Audit {
            sink: Sink::File(path.clone()),
            interval: None,
            on_full: crate::config::OnFull::Drop,
            key_file: None,
            rotate_size: u64::MAX,
            rotate_age: None,
        };
        let about = About {
            relay_id: "relay-1",
            config: "abc",
            workers: 0,
        };
        let mut head = None;
        for _ in 0..2 {
            head = Trail::start(&settings, &about, None).unwrap().0.end();
        }
        let head = head.expect("it was written");
        std::fs::write(&path, change(std::fs::read_to_string(&path).unwrap())).unwrap();
        let [file, state_dir] = [&path, directory.path()].map(|path| path.to_str().unwrap());
        let known = format!("{}:{}", head.sequence, head.hash);
        let line = [
            "tollgate",
            "audit",
            "verify",
            file,
            "--state-dir",
            state_dir,
            "--anchor",
            &known,
        ];
        let super::super::Command::Audit(Args {
            command: Command::Verify(verify),
        }) = crate::cli::Cli::try_parse_from(line).unwrap().command
        else {
            panic!("another command");
        };
        let mut out = Vec::new();
        let code = verify.run(&mut out).unwrap();
        (code, String::from_utf8(out).unwrap())
    }

    #[test]
    fn a_whole_trail_ends_with_0_and_what_was_done_to_another_with_1_and_its_place() {
        let (code, said) = told(|text| text);
        assert_eq!(code, ExitCode::Ok, "{said}");
        assert!(
            said.starts_with("records 1 to 4 in 1 file are as they were written; head 4:"),
            "{said}"
        );
        assert!(said.contains("anchored up to record 4"), "{said}");
        let (code, said) = told(|text| text.replacen("\"ended\"", "\"close\"", 1));
        assert_eq!(code, ExitCode::Findings, "{said}");
        assert!(
            said.contains("audit.log, line 2: record 2 was changed"),
            "{said}"
        );
        let (code, said) = told(|text| {
            text.lines()
                .take(3)
                .map(|line| format!("{line}\n"))
                .collect()
        });
        assert_eq!(code, ExitCode::Findings, "{said}");
        assert!(
            said.contains("line 4: the trail ends with record 3, and record 4 was anchored"),
            "{said}"
        );
    }

    #[test]
    fn a_trail_whose_files_follow_each_other_meanwhile_is_read_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("audit.log");
        let record = |seq: u64, prev: Hash| {
            format!("{{\"event\":\"rotated\",\"seq\":{seq},\"prev\":\"{prev}\"}}\n")
        };
        let first = record(1, crate::account::audit::chain::BEGINNING);
        let hash = Key::none().hash(first.trim_end().as_bytes());
        std::fs::write(&path, &first).unwrap();
        let anchors = [Known { sequence: 1, hash }];
        let mut readings = 0;
        let mut read = |listed: &[Listed]| {
            readings += 1;
            if readings == 1 {
                let to = directory.path().join("audit.log-20261121T170000Z-1");
                std::fs::rename(&path, to).unwrap();
                std::fs::write(&path, "").unwrap();
            }
            let paths: Vec<_> = listed.iter().map(|(path, _)| path.clone()).collect();
            verify(&paths, &Key::none(), &anchors).unwrap()
        };
        let unsure = |report: &Report| report.finding.is_some();
        let report = settled(|| listed(files(&path)), &mut read, unsure);
        assert_eq!((report.finding, report.records), (None, 1));
        assert_eq!(readings, 2);
        // What stays as it is is a finding at once.
        let mut readings = 0;
        let read = |_: &[Listed]| readings += 1;
        settled(|| listed(files(&path)), read, |()| true);
        assert_eq!(readings, 1);
    }

    #[test]
    fn a_trail_of_which_nothing_is_left_is_a_finding() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("audit.log");
        let config = directory.path().join("tollgate.toml");
        let text = format!(
            "state_dir = {:?}\n[audit]\nsink = {path:?}\n[[listener]]\nname = \"a\"\nbind = \"127.0.0.1:1\"\ntrusted_peers = [\"127.0.0.0/8\"]\nupstream = \"u\"\n[[upstream]]\nname = \"u\"\ntargets = [\"127.0.0.1:2\"]\n",
            directory.path()
        );
        std::fs::write(&config, text).unwrap();
        let hash = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        let known = format!("--anchor=7:{}", hash.to_uppercase());
        let line = [
            "tollgate",
            "audit",
            "verify",
            "--config",
            config.to_str().unwrap(),
        ];
        let anchored = [&line[..], &[&known]].concat();
        for (line, wanted) in [(&line[..], ExitCode::Ok), (&anchored, ExitCode::Findings)] {
            let super::super::Command::Audit(Args {
                command: Command::Verify(verify),
            }) = crate::cli::Cli::try_parse_from(line).unwrap().command
            else {
                panic!("another command");
            };
            let mut out = Vec::new();
            assert_eq!(verify.run(&mut out).unwrap(), wanted);
            let said = String::from_utf8(out).unwrap();
            assert!(said.contains("there are no records"), "{said}");
            let named = said.starts_with(path.to_str().unwrap());
            assert_eq!(named, wanted == ExitCode::Findings, "{said}");
        }
    }

    #[test]
    fn an_anchor_on_the_command_line_is_as_in_the_log() {
        let hash = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(anchor(&format!("7:{hash}")).unwrap().sequence, 7);
        for wrong in ["", "7", "7:", ":7", "x:y", &format!("-7:{hash}")] {
            assert!(anchor(wrong).is_err(), "{wrong}");
        }
    }
}
