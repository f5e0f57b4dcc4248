//! The lines of a trail's files, as far as they matter for whether they fit together.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use crate::account::audit::chain::{BEGINNING, Hash, Key};
use crate::account::audit::recover::{LONGEST_LINE, Link};

/// Records before and behind a break that are looked at to tell what was done.
pub(super) const AROUND: usize = 4096;

/// A line, as far as it matters.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) file: usize,
    pub(super) number: u64,
    pub(super) sequence: Option<u64>,
    pub(super) prev: Option<Hash>,
    pub(super) hash: Hash,
    /// It has no newline: its length.
    pub(super) torn: Option<usize>,
    /// What a `started` record says of how lines are hashed and where they go.
    pub(super) started: Option<(bool, bool)>,
    /// It is the last line of a file, and says that another follows.
    pub(super) leaves: bool,
    /// It is what a file begins with: `started`, or the `rotated` that says what was before.
    pub(super) opens: bool,
    /// The records before it that the process did not find when it started.
    pub(super) missing: Option<(u64, u64)>,
}

impl Entry {
    pub(super) fn follows(&self, other: &Self) -> bool {
        self.sequence.is_some()
            && self.sequence == other.sequence.and_then(|sequence| sequence.checked_add(1))
            && self.prev == Some(other.hash)
    }

    pub(super) fn begins(&self) -> bool {
        self.sequence == Some(1) && self.prev == Some(BEGINNING)
    }

    /// Whether it says that there was a record before.
    pub(super) fn goes_on(&self) -> bool {
        self.sequence > Some(1) && self.prev.is_some_and(|prev| prev != BEGINNING)
    }
}

/// The lines of several files, one after the other.
#[derive(Debug)]
pub(super) struct Lines {
    files: Vec<PathBuf>,
    pub(super) key: Key,
    /// The file that is read, and how many lines of it were.
    at: usize,
    number: u64,
    reader: Option<BufReader<File>>,
    ahead: VecDeque<Entry>,
    line: Vec<u8>,
}

impl Lines {
    pub(super) fn new(files: Vec<PathBuf>, key: Key) -> Self {
        Self {
            files,
            key,
            at: 0,
            number: 0,
            reader: None,
            ahead: VecDeque::new(),
            line: Vec::new(),
        }
    }

    pub(super) fn next(&mut self) -> io::Result<Option<Entry>> {
        match self.ahead.pop_front() {
            Some(entry) => Ok(Some(entry)),
            None => self.read(),
        }
    }

    /// What follows, without taking it.
    pub(super) fn look(&mut self) -> io::Result<&VecDeque<Entry>> {
        while self.ahead.len() < AROUND {
            match self.read()? {
                Some(entry) => self.ahead.push_back(entry),
                None => break,
            }
        }
        Ok(&self.ahead)
    }

    fn read(&mut self) -> io::Result<Option<Entry>> {
        loop {
            let Some(path) = self.files.get(self.at) else {
                return Ok(None);
            };
            let reader = match &mut self.reader {
                Some(reader) => reader,
                None => {
                    let file = File::open(path).map_err(|error| named(path, &error))?;
                    self.number = 0;
                    self.reader
                        .insert(BufReader::with_capacity(256 * 1024, file))
                }
            };
            self.line.clear();
            let most = LONGEST_LINE as u64;
            reader
                .by_ref()
                .take(most)
                .read_until(b'\n', &mut self.line)
                .map_err(|error| named(path, &error))?;
            if self.line.is_empty() {
                (self.at, self.reader) = (self.at + 1, None);
                continue;
            }
            self.number += 1;
            let mut torn = None;
            if self.line.last() == Some(&b'\n') {
                self.line.pop();
            } else {
                torn = Some(self.line.len());
                if self.line.len() == LONGEST_LINE {
                    // No record. Its rest is read over.
                    reader
                        .skip_until(b'\n')
                        .map_err(|error| named(path, &error))?;
                    torn = None;
                    self.line.truncate(1);
                }
            }
            let link = Link::parse(&self.line).filter(|_| torn.is_none());
            let event = link.as_ref().and_then(|link| link.event.as_deref());
            return Ok(Some(Entry {
                file: self.at,
                number: self.number,
                sequence: link.as_ref().map(|link| link.seq),
                prev: link.as_ref().and_then(Link::prev),
                hash: self.key.hash(&self.line),
                torn,
                started: link
                    .as_ref()
                    .filter(|_| event == Some("started"))
                    .map(|link| {
                        (
                            link.chain.as_deref() == Some("hmac-sha256"),
                            link.sink.as_deref() == Some("stdout"),
                        )
                    }),
                leaves: event == Some("rotated"),
                opens: matches!(event, Some("started" | "rotated")),
                missing: link.as_ref().and_then(Link::missing),
            }));
        }
    }
}

pub(super) fn named(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}
