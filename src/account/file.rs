//! The file of the counters: made in full, with a header that says what it is, and kept from others while the process lives.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use jiff::Timestamp;
use rustix::fs::{FallocateFlags, FlockOperation, fallocate, flock, fstatfs, fstatvfs};
use rustix::io::Errno;
use tracing::{info, warn};

use super::layout::{self, HEADER_WORDS, MAGIC, VERSION, WORD, header, region_words};
use super::leftover::set_aside;
use crate::sys::clock::monotonic_ms;
use crate::sys::region::Region;

/// Why there are no books.
#[derive(Debug, thiserror::Error)]
pub enum BooksError {
    /// More accounts than there are numbers for them.
    #[error("accounts.max: too many accounts for any memory")]
    TooMany,
    /// No memory.
    #[error(
        "no memory for the counters ({size}): {error}. Lower accounts.max: each account takes {each} bytes"
    )]
    Memory {
        /// How much it would be.
        size: String,
        /// What one account takes.
        each: usize,
        /// Why not.
        error: io::Error,
    },
    /// The file cannot be made.
    #[error("cannot make the file of the counters in {dir:?} (run_dir): {error}")]
    Create {
        /// Where.
        dir: PathBuf,
        /// Why not.
        error: io::Error,
    },
    /// There is no room for it.
    #[error(
        "no room for the counters in {dir:?} (run_dir): {size} are allocated at start, {each} bytes for each account: {error}. Lower accounts.max, or \
         give run_dir a larger file system"
    )]
    NoRoom {
        /// Where.
        dir: PathBuf,
        /// How large it would be.
        size: String,
        /// What one account takes.
        each: usize,
        /// What the kernel said.
        error: io::Error,
    },
}

fn size_of_all(bytes: u64) -> String {
    bytesize::ByteSize(bytes).display().iec().to_string()
}

/// The name of the file with this id.
pub(super) fn file_name(id: u64) -> String {
    format!("books-{id:016x}")
}

/// The file of this process. As long as it is open no other process takes it for a leftover: it is locked.
#[derive(Debug)]
pub(super) struct CounterFile {
    path: PathBuf,
    _locked: File,
}

impl CounterFile {
    /// Memory of the same form without a file.
    pub(super) fn memory(workers: usize, slots: usize) -> Result<Region, BooksError> {
        let words = region_words(workers, slots).ok_or(BooksError::TooMany)?;
        let region = Region::anonymous(words).map_err(|error| BooksError::Memory {
            size: size_of_all((words * WORD) as u64),
            each: layout::slot_words(workers) * WORD,
            error,
        })?;
        write_header(&region, random(), workers, slots);
        Ok(region)
    }

    /// A new file in `dir`, allocated in full: what is counted later can meet no full disk. It has its name only once its header is written.
    pub(super) fn create(
        dir: &Path,
        workers: usize,
        slots: usize,
    ) -> Result<(Region, Self), BooksError> {
        let words = region_words(workers, slots).ok_or(BooksError::TooMany)?;
        let size = (words * WORD) as u64;
        let failed = |error: io::Error| BooksError::Create {
            dir: dir.to_owned(),
            error,
        };
        fs::create_dir_all(dir).map_err(failed)?;
        sweep_unfinished(dir);
        let id = random();
        let path = dir.join(file_name(id));
        let unfinished = dir.join(format!(".{}{UNFINISHED}", file_name(id)));
        let made = (|| {
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&unfinished)
                .map_err(failed)?;
            lock(&file).map_err(failed)?;
            allocate(&file, size).map_err(|errno| BooksError::NoRoom {
                dir: dir.to_owned(),
                size: size_of_all(size),
                each: layout::slot_words(workers) * WORD,
                error: errno.into(),
            })?;
            if !is_in_memory(&file) {
                warn!(run_dir = %dir.display(), "run_dir is not on a tmpfs: a slow disk can make connections wait while they are counted");
            }
            let region = Region::shared_file(&file, words).map_err(failed)?;
            write_header(&region, id, workers, slots);
            fs::rename(&unfinished, &path).map_err(failed)?;
            info!(
                file = %path.display(),
                size = size_of_all(size),
                accounts = slots,
                "counters: allocated in full"
            );
            Ok((region, file))
        })();
        let (region, file) = made.inspect_err(|_| drop(fs::remove_file(&unfinished)))?;
        let file = Self {
            path,
            _locked: file,
        };
        Ok((region, file))
    }

    pub(super) fn dir(&self) -> Option<&Path> {
        self.path.parent()
    }

    pub(super) fn set_aside(&self) -> io::Result<PathBuf> {
        set_aside(&self.path)
    }

    pub(super) fn remove(&self) -> io::Result<()> {
        fs::remove_file(&self.path)
    }
}

/// Gives a file all its blocks. Where they are not to be had it is not tried: others would find the disk full meanwhile.
fn allocate(file: &File, size: u64) -> Result<(), Errno> {
    let system = fstatvfs(file)?;
    // A tmpfs without a bound has no blocks to tell of.
    if system.f_blocks > 0 && system.f_bavail.saturating_mul(system.f_frsize) < size {
        return Err(Errno::NOSPC);
    }
    fallocate(file, FallocateFlags::empty(), 0, size)
}

/// Whether a file is in memory. Elsewhere the kernel writes it to a disk all the time, and whoever counts may have to wait for that.
fn is_in_memory(file: &File) -> bool {
    fstatfs(file).is_ok_and(|system| system.f_type == 0x0102_1994) // TMPFS_MAGIC, statfs(2)
}

/// What the name of a file ends with that has no header yet.
const UNFINISHED: &str = ".new";

/// Takes a file for this process, as long as it is open; fails where another has it.
pub(super) fn lock(file: &File) -> io::Result<()> {
    Ok(flock(file, FlockOperation::NonBlockingLockExclusive)?)
}

/// Removes files of processes that were killed before they had counted anything.
fn sweep_unfinished(dir: &Path) {
    let Ok(entries) = fs::read_dir(dir) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with(".books-")
            && name.ends_with(UNFINISHED)
            && File::open(entry.path()).is_ok_and(|file| lock(&file).is_ok())
        {
            let _ = fs::remove_file(entry.path());
        }
    }
}

fn write_header(region: &Region, id: u64, workers: usize, slots: usize) {
    let [boot_high, boot_low] = boot_id();
    let (started, now) = (Timestamp::now().as_millisecond(), monotonic_ms());
    let mut words = [0; HEADER_WORDS];
    words[header::MAGIC] = MAGIC;
    words[header::VERSION] = VERSION;
    words[header::FILE_ID] = id;
    words[header::WORKERS] = workers as u64;
    words[header::SLOTS] = slots as u64;
    words[header::BOOT_ID] = boot_high;
    words[header::BOOT_ID + 1] = boot_low;
    words[header::STARTED] = u64::from_ne_bytes(started.to_ne_bytes());
    words[header::STARTED_MONOTONIC] = now;
    words[header::MEANINGS] = layout::meanings();
    words[header::CRC] = header_crc(&words);
    words[header::ALIVE] = now;
    for (word, value) in region.words().iter().zip(words) {
        word.store(value, Ordering::Release);
    }
}

/// CRC32C over what is written once.
pub(super) fn header_crc(words: &[u64; HEADER_WORDS]) -> u64 {
    let fixed = words[..header::CRC].iter();
    let crc = fixed.fold(0, |crc, word| {
        crc32c::crc32c_append(crc, &word.to_ne_bytes())
    });
    u64::from(crc)
}

/// Which time this machine was booted; zero where the kernel does not tell.
pub(super) fn boot_id() -> [u64; 2] {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let digits: String = text.chars().filter(char::is_ascii_hexdigit).collect();
    let id = u128::from_str_radix(&digits, 16).unwrap_or_default();
    [(id >> 64) as u64, id as u64]
}

/// Another number each time, in each process; never 0.
pub(super) fn random() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    // Each is keyed from the kernel's randomness, and the clock tells apart what one key would not.
    let clock = Timestamp::now().as_nanosecond();
    RandomState::new().hash_one((clock, std::process::id())) | 1
}
