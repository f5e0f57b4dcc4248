//! Whether a trail is as it was written, and if not, which record was touched first.
//!
//! Each record has the hash of the one before, and numbers follow each other, so that whatever is done to a trail breaks it somewhere: [`verify`] finds that place
//! for certain. What was done there (a record changed, removed, added or moved) it tells from the records around, as well as these can tell. Records behind
//! the last anchor that are cut off leave no trace; without a key and without an anchor neither does a trail that was written anew.

mod diagnose;
mod lines;

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use self::lines::{AROUND, Entry, Lines, named};
use super::chain::{Hash, Head, Key};
use super::sink::is_aside;

/// What is known of a trail by others than its files: the hash of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Known {
    /// The record's number.
    pub sequence: u64,
    /// Its hash.
    pub hash: Hash,
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Records that are as they were written.
    pub records: u64,
    /// The first of them.
    pub first: u64,
    /// The last of them.
    pub last: Head,
    /// The files, in the order of the trail.
    pub files: Vec<PathBuf>,
    /// Trails in them: on standard output each process begins one.
    pub trails: u64,
    /// The last record that an anchor was found for.
    pub anchored: Option<u64>,
    /// Bytes of a last line that is not finished: the process was killed while it wrote it, or is writing it now.
    pub torn: Option<usize>,
    /// What is no fault, but should be known.
    pub notes: Vec<String>,
    /// The first thing that is not as it was written.
    pub finding: Option<Finding>,
}

/// Where and how a trail is not as it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Which file.
    pub file: PathBuf,
    /// Which line of it, from 1.
    pub line: u64,
    /// The number of the first record that was touched, as far as it is known.
    pub sequence: Option<u64>,
    /// What was done.
    pub kind: Kind,
    /// The same in words.
    pub what: String,
}

/// What was done to a trail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A record is not what it was.
    Changed,
    /// Records are missing between two others.
    Removed,
    /// A line does not belong there.
    Added,
    /// A record stands elsewhere.
    Reordered,
    /// Records are missing at the end.
    Cut,
    /// A trail begins where another should go on.
    BegunAnew,
    /// All of it fits together, and not with an anchor.
    Rewritten,
    /// No record fits the next: the key is another.
    WrongKey,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}, line {}: {}",
            self.file.display(),
            self.line,
            self.what
        )
    }
}

/// Reads the files of a trail, given in any order, and tells whether they are as they were written and agree with `anchors`.
///
/// # Errors
/// A file cannot be read.
pub fn verify(files: &[PathBuf], key: &Key, anchors: &[Known]) -> io::Result<Report> {
    let files = in_order(files)?;
    let mut anchored: BTreeMap<u64, Vec<Hash>> = BTreeMap::new();
    for anchor in anchors {
        anchored
            .entry(anchor.sequence)
            .or_default()
            .push(anchor.hash);
    }
    let mut walk = Walk {
        lines: Lines::new(files.clone(), key.clone()),
        anchored,
        fitting: None,
        before: VecDeque::new(),
        report: Report {
            records: 0,
            first: 0,
            last: Head::default(),
            files,
            trails: 0,
            anchored: None,
            torn: None,
            notes: Vec::new(),
            finding: None,
        },
        keyed: None,
        misfit: None,
        gap: None,
    };
    walk.run()?;
    Ok(walk.report)
}

/// The files in the order of their first records. Of the first three lines the number counts that two of them agree on, because one may have been changed.
fn in_order(files: &[PathBuf]) -> io::Result<Vec<PathBuf>> {
    let mut found: Vec<(u64, PathBuf)> = Vec::new();
    let mut known = Vec::new();
    for path in files {
        let real = path.canonicalize().map_err(|error| named(path, &error))?;
        if known.contains(&real) {
            continue;
        }
        known.push(real);
        let mut lines = Lines::new(vec![path.clone()], Key::none());
        let mut begins = Vec::new();
        while begins.len() < 3
            && let Some(line) = lines.next()?
        {
            let offset = line.number - 1;
            begins.extend(
                line.sequence
                    .and_then(|sequence| sequence.checked_sub(offset)),
            );
        }
        let agreed = begins
            .iter()
            .find(|begin| begins.iter().filter(|other| other == begin).count() > 1);
        let begin = agreed.or(begins.first()).copied().unwrap_or(u64::MAX);
        found.push((begin, path.clone()));
    }
    found.sort();
    Ok(found.into_iter().map(|(_, path)| path).collect())
}

/// One reading of a trail.
#[derive(Debug)]
struct Walk {
    lines: Lines,
    anchored: BTreeMap<u64, Vec<Hash>>,
    /// The last record whose anchor fits.
    fitting: Option<u64>,
    /// Records that fit together, the last one at the end.
    before: VecDeque<Entry>,
    report: Report,
    /// Whether the trail was made with a key, if it says so.
    keyed: Option<bool>,
    /// The first record whose anchor does not fit.
    misfit: Option<Entry>,
    /// The first records that were missing when a process started.
    gap: Option<Finding>,
}

impl Walk {
    fn run(&mut self) -> io::Result<()> {
        self.walk()?;
        // It comes before whatever else was found behind it.
        if let Some(gap) = self.gap.take() {
            let behind = self.report.finding.replace(gap);
            let behind = behind.map(|finding| format!("found behind that: {finding}"));
            self.report.notes.extend(behind);
        }
        Ok(())
    }

    fn walk(&mut self) -> io::Result<()> {
        while let Some(entry) = self.lines.next()? {
            if entry.torn.is_some() && !is_aside(self.file(&entry)) && self.is_last(&entry)? {
                self.report.torn = entry.torn;
                break;
            }
            let fits = match self.before.back() {
                None => entry.sequence.is_some() && self.may_begin(&entry),
                Some(last) => entry.follows(last) || self.another(&entry),
            };
            // Where a start did not find records either, the rest is read on from there.
            let gap = match self.before.back() {
                None => entry.missing,
                Some(last) => entry
                    .missing
                    .filter(|(_, to)| !fits && last.sequence <= Some(*to)),
            };
            if let Some((from, to)) = gap {
                let gap = self.missing(&entry, from, to);
                let _ = self.gap.get_or_insert(gap);
                self.take(entry);
                continue;
            }
            if !fits {
                self.report.finding = Some(self.diagnose(entry)?);
                return Ok(());
            }
            self.take(entry);
        }
        self.conclude();
        Ok(())
    }

    fn missing(&self, at: &Entry, from: u64, to: u64) -> Finding {
        // What it says and what is here are the same, unless somebody did more.
        let from = self.before.back().map_or(from, |last| {
            last.sequence.map_or(from, |last| (last + 1).min(to))
        });
        let which = match to - from {
            0 => format!("record {to} is missing or was changed"),
            _ => format!("records {from} to {to} are missing"),
        };
        let what = format!(
            "{which}: the relay that started here did not find what its ledger knows of. Where files were moved away, give them as well"
        );
        self.finding(at, Some(from), Kind::Removed, what)
    }

    fn is_last(&mut self, entry: &Entry) -> io::Result<bool> {
        Ok(entry.file + 1 == self.report.files.len() && self.lines.look()?.is_empty())
    }

    /// What the first line must be: the first record, or the first of a file of which those before are not here.
    fn may_begin(&self, entry: &Entry) -> bool {
        entry.begins() || (entry.opens && entry.goes_on())
    }

    /// Whether a process begins its own trail there: on standard output all do.
    fn another(&self, entry: &Entry) -> bool {
        entry.begins() && entry.started.is_some_and(|(_, stdout)| stdout)
    }

    fn take(&mut self, entry: Entry) {
        let sequence = entry.sequence.unwrap_or_default();
        if self.report.records == 0 {
            self.report.first = sequence;
        }
        if self.report.records == 0 || self.another(&entry) {
            self.report.trails += 1;
        }
        if let Some((keyed, _)) = entry.started {
            self.keyed = Some(keyed);
        }
        if let Some(hashes) = self.anchored.get_mut(&sequence) {
            let known = hashes.len();
            hashes.retain(|hash| *hash != entry.hash);
            if hashes.len() < known {
                self.fitting = self.fitting.max(Some(sequence));
            } else if self.misfit.is_none() && !hashes.is_empty() {
                self.misfit = Some(entry.clone());
            }
        }
        self.report.records += 1;
        self.report.last = Head {
            sequence,
            hash: entry.hash,
        };
        if self.before.len() == AROUND {
            self.before.pop_front();
        }
        self.before.push_back(entry);
    }

    /// All lines fit together: do they fit what is known beside them?
    fn conclude(&mut self) {
        self.report.anchored = self.fitting;
        let (first, last) = (self.report.first, self.report.last.sequence);
        let open = |hashes: &&Vec<Hash>| !hashes.is_empty();
        let missing = self.anchored.iter().filter(|(_, hashes)| open(hashes));
        let missing: Vec<u64> = missing.map(|(sequence, _)| *sequence).collect();
        let wrong = self.misfit.take().filter(|entry| {
            // Of several trails another may have the record.
            entry
                .sequence
                .is_some_and(|sequence| missing.contains(&sequence))
        });
        if let Some(entry) = wrong {
            let sequence = entry.sequence.unwrap_or_default();
            let since = self.fitting.filter(|fitting| *fitting < sequence);
            let from = since.map_or_else(|| first, |fitting| fitting + 1);
            let what = format!(
                "record {sequence} is not the one that was anchored: the trail was written anew from one of the records {from} to {sequence} on{}",
                self.key_hint()
            );
            self.report.finding = Some(self.finding(&entry, Some(from), Kind::Rewritten, what));
            return;
        }
        if let Some(behind) = missing.iter().rev().find(|sequence| **sequence > last) {
            let (file, line) = match self.before.back() {
                Some(entry) => (entry.file, entry.number + 1),
                None => (0, 1),
            };
            self.report.finding = Some(Finding {
                file: self.report.files.get(file).cloned().unwrap_or_default(),
                line,
                sequence: Some(last + 1),
                kind: Kind::Cut,
                what: match last {
                    0 => format!(
                        "there are no records, and record {behind} was anchored: records 1 to {behind} and whatever followed are missing"
                    ),
                    _ => format!(
                        "the trail ends with record {last}, and record {behind} was anchored: records {} to {behind} and whatever followed were cut off",
                        last + 1
                    ),
                },
            });
            return;
        }
        let notes = &mut self.report.notes;
        if self.report.records == 0 {
            notes.push("there are no records".to_owned());
            return;
        }
        let before = missing.iter().filter(|sequence| **sequence < first).count();
        if before > 0 {
            notes.push(format!(
                "{before} anchors are of records before record {first}, which are not in these files"
            ));
        }
        if first > 1 {
            notes.push(format!(
                "the trail begins with record {first}: what was before is in other files"
            ));
        }
        if let Some(last) = self.before.back()
            && last.leaves
            && last.number > 1
        {
            notes.push("the last record says that the trail goes on in another file, which is not among these".to_owned());
        }
        match self.fitting {
            Some(anchored) if anchored < last => notes.push(format!(
                "the last anchor is of record {anchored}: of what came after record {last} nothing would tell"
            )),
            Some(_) => {}
            None => notes.push(
                "no anchor: that records were cut off at the end would not show, nor, without a key, that all of it was written anew".to_owned(),
            ),
        }
    }

    fn file(&self, entry: &Entry) -> &Path {
        self.report
            .files
            .get(entry.file)
            .map_or(Path::new(""), PathBuf::as_path)
    }

    fn finding(&self, entry: &Entry, sequence: Option<u64>, kind: Kind, what: String) -> Finding {
        Finding {
            file: self.file(entry).to_owned(),
            line: entry.number,
            sequence,
            kind,
            what,
        }
    }
}

#[cfg(test)]
mod tests;
