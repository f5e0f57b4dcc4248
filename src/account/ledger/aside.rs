//! A ledger that is damaged is set aside under another name, with its log of changes, and never deleted.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::store::beside;

/// Gives the ledger and what belongs to it another name, and returns that.
///
/// # Errors
/// When something cannot be renamed; the ledger itself is where it was, then.
pub(super) fn set_aside(path: &Path, now: Timestamp) -> io::Result<PathBuf> {
    let time = now
        .to_zoned(TimeZone::UTC)
        .strftime("%Y%m%dT%H%M%SZ")
        .to_string();
    let aside = (1..)
        .map(|n| match n {
            1 => beside(path, &format!(".damaged-{time}")),
            n => beside(path, &format!(".damaged-{time}-{n}")),
        })
        .find(|aside| ["", "-wal"].iter().all(|end| !beside(aside, end).exists()))
        .unwrap_or_else(|| beside(path, ".damaged"));
    // The ledger last: SQLite deletes a log of changes that it finds without one.
    for end in ["-wal", "-shm", ""] {
        match fs::rename(beside(path, end), beside(&aside, end)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(aside)
}

/// Ledgers that were set aside before.
#[must_use]
pub(super) fn found(path: &Path) -> Vec<PathBuf> {
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
        return Vec::new();
    };
    let prefix = format!("{}.damaged-", name.to_string_lossy());
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut found: Vec<_> = entries
        .filter(|entry| {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            let part = name.ends_with("-wal") || name.ends_with("-shm");
            name.starts_with(&prefix) && !part
        })
        .map(|entry| entry.path())
        .collect();
    found.sort();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_damaged_ledger_has_a_name_of_its_own_and_keeps_its_log() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger.db");
        let now: Timestamp = "2026-11-21T17:05:06Z".parse().unwrap();
        for n in 0..3 {
            fs::write(&path, format!("ledger {n}")).unwrap();
            fs::write(beside(&path, "-wal"), format!("log {n}")).unwrap();
            let aside = set_aside(&path, now).unwrap();
            let read = |end| fs::read_to_string(beside(&aside, end)).unwrap();
            assert_eq!(
                (read(""), read("-wal")),
                (format!("ledger {n}"), format!("log {n}"))
            );
            assert!(!path.exists());
        }
        let found = found(&path);
        assert_eq!(found.len(), 3);
        let first = found[0].file_name().unwrap().to_str().unwrap();
        assert_eq!(first, "ledger.db.damaged-20261121T170506Z");
    }
}
