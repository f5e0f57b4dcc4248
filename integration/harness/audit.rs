//! The audit log, read as anybody would read it: line by line, with the chain computed anew. Without the relay's own code.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use serde_json::Value;
use sha2::{Digest, Sha256};

/// One record, and the line it was.
#[derive(Clone, Debug)]
pub struct Record {
    /// The line, without its newline.
    pub line: String,
    /// What it says.
    pub value: Value,
}

impl Record {
    /// What happened.
    pub fn event(&self) -> &str {
        self.text("event")
    }

    /// A field that is text; empty where it is left out.
    pub fn text(&self, key: &str) -> &str {
        self.value.get(key).and_then(Value::as_str).unwrap_or("")
    }

    /// A field that is a number; 0 where it is left out.
    pub fn number(&self, key: &str) -> u64 {
        self.value.get(key).and_then(Value::as_u64).unwrap_or(0)
    }

    /// A field of a leg (`client_leg`, `upstream_leg`), if it is there.
    pub fn leg(&self, leg: &str, key: &str) -> Option<u64> {
        self.value.get(leg)?.get(key)?.as_u64()
    }

    /// Who connected.
    pub fn client(&self) -> Option<SocketAddr> {
        self.text("client").parse().ok()
    }
}

/// The files of a log in the order of their records: those that were rotated, then the one that is written.
///
/// # Panics
/// When a file has no record at its start.
#[track_caller]
pub fn files(log: &Path) -> Vec<PathBuf> {
    let folder = log.parent().expect("a file is in a folder");
    let name = log.file_name().and_then(|name| name.to_str());
    let name = name.expect("a name of ours is text");
    let entries = fs::read_dir(folder).expect("a folder of ours");
    let mut files: Vec<(u64, PathBuf)> = entries
        .filter_map(|entry| {
            let path = entry.expect("a folder of ours").path();
            let own = path.file_name()?.to_str()?;
            // audit.jsonl, and audit.jsonl-<time>-<seq> or audit-<time>-<seq>.jsonl.
            let stem = name.split('.').next().unwrap_or(name);
            if !own.starts_with(stem) {
                return None;
            }
            let first = first_seq(&path)?;
            Some((first, path))
        })
        .collect();
    files.sort();
    files.into_iter().map(|(_, path)| path).collect()
}

fn first_seq(path: &Path) -> Option<u64> {
    let bytes = fs::read(path).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    let value: Value = serde_json::from_str(text.lines().next()?).ok()?;
    value.get("seq")?.as_u64()
}

/// Every record of a log, in order. Lines that are torn, as a killed process leaves its last one, are left out; see [`torn`].
///
/// # Panics
/// When a line that is no record is anything but the last of what a killed process wrote.
#[track_caller]
pub fn records(log: &Path) -> Vec<Record> {
    let lines = files(log).into_iter().flat_map(|path| lines(&path));
    let lines: Vec<String> = lines.collect();
    let parsed: Vec<Option<Value>> = lines
        .iter()
        .map(|line| serde_json::from_str(line).ok())
        .collect();
    let mut records = Vec::new();
    for (at, (line, value)) in lines.iter().zip(&parsed).enumerate() {
        match value {
            Some(value) => records.push(Record {
                line: line.clone(),
                value: value.clone(),
            }),
            None => {
                let next = parsed.get(at + 1).and_then(Option::as_ref);
                let sealed = next.is_none_or(|next| {
                    next["event"] == "started" && next.get("torn_bytes").is_some()
                });
                assert!(sealed, "line {}: no record: {line:?}", at + 1);
            }
        }
    }
    records
}

/// The lines of a file.
///
/// # Panics
/// When it cannot be read or is not text.
#[track_caller]
pub fn lines(path: &Path) -> Vec<String> {
    let bytes = fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    String::from_utf8_lossy(&bytes)
        .split_inclusive('\n')
        .map(|line| line.trim_end_matches('\n').to_owned())
        .collect()
}

/// Checks the chain: numbers without a gap, and in each record the hash of the whole line before it.
///
/// # Panics
/// At the first record that does not fit.
#[track_caller]
pub fn assert_chained(records: &[Record]) {
    for pair in records.windows(2) {
        let [before, record] = pair else { continue };
        assert_eq!(
            record.number("seq"),
            before.number("seq") + 1,
            "{}\n{}",
            before.line,
            record.line
        );
        assert_eq!(
            record.text("prev"),
            hex(&Sha256::digest(before.line.as_bytes())),
            "{}\n{}",
            before.line,
            record.line
        );
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// One session: its opening and its close.
#[derive(Clone, Debug)]
pub struct Session {
    /// The `open` record.
    pub open: Record,
    /// The `close` record.
    pub close: Record,
}

/// All sessions by their id.
///
/// # Panics
/// When an opening has no close, or several, or one before it; or a close no opening.
#[track_caller]
pub fn sessions(records: &[Record]) -> BTreeMap<String, Session> {
    let mut open = BTreeMap::new();
    let mut sessions = BTreeMap::new();
    for record in records {
        let id = record.text("session").to_owned();
        match record.event() {
            "open" => {
                assert!(!id.is_empty(), "{}", record.line);
                let before = open.insert(id.clone(), record.clone());
                assert!(
                    before.is_none() && !sessions.contains_key(&id),
                    "{id} opened twice"
                );
            }
            "close" => {
                let opened = open.remove(&id);
                let opened = opened.unwrap_or_else(|| panic!("not open: {}", record.line));
                let session = Session {
                    open: opened,
                    close: record.clone(),
                };
                sessions.insert(id, session);
            }
            "progress" => assert!(open.contains_key(&id), "not open: {}", record.line),
            _ => {}
        }
    }
    let left: Vec<_> = open.values().map(|record| &record.line).collect();
    assert!(left.is_empty(), "opened and never closed: {left:#?}");
    sessions
}
