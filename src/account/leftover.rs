//! What a killed process left in its file of counters: read, repaired, checked.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use rustix::fs::{FallocateFlags, fallocate};

use super::file::{boot_id, header_crc, lock};
use super::layout::{self, HEADER_WORDS, MAGIC, VERSION, WORD, header};
use super::repair::{Damaged, Life, Torn, repair};
use super::totals::SlotTotals;
use crate::sys::clock::monotonic_ms;

/// A file of counters whose process has ended without booking all of it. As long as this lives no other process takes it.
#[derive(Debug)]
pub struct Leftover {
    /// Where it is.
    pub path: PathBuf,
    /// Which counters they are.
    pub file_id: u64,
    /// The ledger that has marks of all that was booked of it; 0: none, or not known.
    pub ledger: u64,
    /// Every account in it that is whole: sessions that were open are closed with `crashed`.
    pub slots: Vec<SlotTotals>,
    /// How many those were.
    pub crashed: u64,
    /// What a worker was in the middle of, and was finished.
    pub torn: Vec<Torn>,
    /// Slots that are not what we wrote. They are in no account; the file is to be set aside.
    pub damaged: Vec<Damaged>,
    /// When the process was last known to live, on its clock.
    pub alive: u64,
    /// The same by the calendar, as far as its start was right about that.
    pub ended: Timestamp,
    /// Whether the machine is still the same boot.
    pub same_boot: bool,
    _locked: File,
}

/// Why a file is no leftover that can be booked.
#[derive(Debug, thiserror::Error)]
pub enum LeftoverError {
    /// A process has it: it is none.
    #[error("{0:?} belongs to a process that runs")]
    InUse(PathBuf),
    /// It cannot be read.
    #[error("cannot read {path:?}: {error}")]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// Why not.
        error: io::Error,
    },
    /// It is no file of counters, or not any more. To be set aside.
    #[error("{path:?} is damaged: {what}; nothing of it can be booked")]
    Header {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        what: &'static str,
    },
    /// Another version wrote it. To be set aside, for that version.
    #[error(
        "{path:?} is of layout {layout}, this is a tollgate for layout {VERSION}: the version that wrote it can book it"
    )]
    Layout {
        /// Which.
        path: PathBuf,
        /// The layout that it says it has.
        layout: u64,
    },
}

impl LeftoverError {
    /// Whether the file will never be a leftover of ours: it is to be set aside, so that it is said once.
    #[must_use]
    pub fn is_final(&self) -> bool {
        matches!(self, Self::Header { .. } | Self::Layout { .. })
    }
}

/// The files of counters in `run_dir`, those of processes that run among them. Those that were set aside are not.
#[must_use]
pub fn find(run_dir: &Path) -> Vec<PathBuf> {
    let is_books = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str());
        let id = name.and_then(|name| name.strip_prefix("books-"));
        id.is_some_and(|id| id.len() == 16 && id.bytes().all(|byte| byte.is_ascii_hexdigit()))
    };
    let entries = fs::read_dir(run_dir).into_iter().flatten().flatten();
    let mut found: Vec<_> = entries.map(|entry| entry.path()).filter(is_books).collect();
    found.sort();
    found
}

/// The ids of the counter files in `run_dir`, by their names: also of those that cannot be read.
#[must_use]
pub fn ids(run_dir: &Path) -> Vec<u64> {
    let found = find(run_dir).into_iter();
    let id = |path: PathBuf| {
        u64::from_str_radix(path.file_name()?.to_str()?.strip_prefix("books-")?, 16).ok()
    };
    found.filter_map(id).collect()
}

/// Gives a file that cannot be booked, or not wholly, another name, under which it stays. Says which.
///
/// # Errors
/// When it cannot be renamed.
pub fn set_aside(path: &Path) -> io::Result<PathBuf> {
    let mut aside = path.as_os_str().to_owned();
    aside.push(".set-aside");
    let aside = PathBuf::from(aside);
    fs::rename(path, &aside)?; // ids do not repeat: there is none of that name
    Ok(aside)
}

/// Gives back the room of a file that nobody writes to any more: pages of zeros, which are most of it, are read as that without any. Its length and
/// what is in it stay as they are. Says how many bytes it has no more.
///
/// # Errors
/// When it cannot be read or changed.
pub fn shrink(path: &Path) -> io::Result<u64> {
    let mut file = OpenOptions::new().read(true).write(true).open(path)?;
    let before = file.metadata()?.blocks();
    let mut piece = vec![0; SPARE];
    let mut at = 0;
    loop {
        let mut read = 0;
        while read < SPARE {
            match file.read(&mut piece[read..])? {
                0 => break,
                n => read += n,
            }
        }
        if read == 0 {
            break;
        }
        if piece[..read].iter().all(|byte| *byte == 0) {
            let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            fallocate(&file, hole, at, read as u64)?;
        }
        at += read as u64;
    }
    Ok(before.saturating_sub(file.metadata()?.blocks()) * 512)
}

/// What is given back is given back by so much: some pages.
const SPARE: usize = 16 * 1024;

impl Leftover {
    /// Reads a file, unless a process has it, and makes whole what can be made whole.
    ///
    /// # Errors
    /// [`LeftoverError`].
    pub fn open(path: &Path) -> Result<Self, LeftoverError> {
        let unreadable = |error| LeftoverError::Unreadable {
            path: path.to_owned(),
            error,
        };
        let broken = |what| LeftoverError::Header {
            path: path.to_owned(),
            what,
        };
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(path)
            .map_err(unreadable)?;
        lock(&file).map_err(|_| LeftoverError::InUse(path.to_owned()))?;
        let len = file.metadata().map_err(unreadable)?.len();
        if len < (HEADER_WORDS * WORD) as u64 {
            return Err(broken("it is shorter than its header"));
        }
        let mut reader = BufReader::with_capacity(1 << 20, &file);
        let header: [u64; HEADER_WORDS] = read_words(&mut reader).map_err(unreadable)?;
        if header[header::MAGIC] != MAGIC {
            return Err(broken("it does not begin as a file of counters does"));
        }
        // The check sum is where it is in this layout only.
        if header[header::VERSION] != VERSION {
            return Err(LeftoverError::Layout {
                path: path.to_owned(),
                layout: header[header::VERSION],
            });
        }
        if header_crc(&header) != header[header::CRC] {
            return Err(broken("the check sum of its header is wrong"));
        }
        if !layout::understands(header[header::MEANINGS]) {
            return Err(broken(
                "it counts by reasons that this version does not know",
            ));
        }
        let number = |place: usize| usize::try_from(header[place]).unwrap_or(usize::MAX);
        let (workers, slots) = (number(header::WORKERS), number(header::SLOTS));
        let words = layout::region_words(workers, slots).unwrap_or(usize::MAX);
        if len / (WORD as u64) < words as u64 {
            return Err(broken("it is shorter than its header says"));
        }
        let same_boot = header[header::BOOT_ID..header::BOOT_ID + 2] == boot_id();
        // Not after this very moment: it has no check sum.
        let latest = if same_boot { monotonic_ms() } else { u64::MAX };
        let began = header[header::STARTED_MONOTONIC];
        let alive = header[header::ALIVE].min(latest).max(began);
        let repaired = repair(reader, workers, slots, Life { began, alive });
        let repaired = repaired.map_err(unreadable)?;
        let started = Timestamp::from_millisecond(header[header::STARTED].cast_signed());
        let lived = Duration::from_millis(alive - began);
        let ended = started.and_then(|started| started.checked_add(lived));
        Ok(Self {
            path: path.to_owned(),
            file_id: header[header::FILE_ID],
            ledger: layout::ledger_of(|place| header[place]),
            slots: repaired.slots,
            crashed: repaired.crashed,
            torn: repaired.torn,
            damaged: repaired.damaged,
            alive,
            ended: ended.unwrap_or_default(),
            same_boot,
            _locked: file,
        })
    }

    /// Removes the file: all of it is booked.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn remove(self) -> io::Result<()> {
        fs::remove_file(&self.path)
    }

    /// Keeps the file under another name: what could be booked of it is, and it must not be booked again. Says which name.
    ///
    /// # Errors
    /// When it cannot be renamed.
    pub fn set_aside(self) -> io::Result<PathBuf> {
        set_aside(&self.path)
    }
}

/// So many words of a file.
pub(super) fn read_words<const N: usize>(reader: &mut impl Read) -> io::Result<[u64; N]> {
    let mut bytes = vec![0; N * WORD];
    reader.read_exact(&mut bytes)?;
    let (words, _) = bytes.as_chunks();
    Ok(std::array::from_fn(|i| u64::from_ne_bytes(words[i])))
}

#[cfg(test)]
#[path = "leftover_tests.rs"]
mod tests;
