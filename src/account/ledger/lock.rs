//! One relay on one state directory: two would book to the same hours, and neither would know what the other has exported.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{FlockOperation, flock};

/// The directory itself is locked, not a file in it: that works on a full disk and on one that takes no writing, and leaves nothing behind.
/// Given back when this is dropped, or the process dies.
#[derive(Debug)]
pub(super) struct Lock {
    _dir: File,
}

impl Lock {
    /// Locks `dir`; `None` where somebody has it.
    ///
    /// # Errors
    /// When it cannot be opened or locked at all.
    pub(super) fn take(dir: &Path) -> io::Result<Option<Self>> {
        let file = File::open(dir)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Self { _dir: file })),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

/// The process that has `dir` locked, as far as the system tells.
#[must_use]
pub(super) fn holder(dir: &Path) -> Option<u32> {
    let inode = fs::metadata(dir).ok()?.ino();
    let locks = fs::read_to_string("/proc/locks").ok()?;
    locks.lines().find_map(|line| holder_in(line, inode))
}

/// `1: FLOCK  ADVISORY  WRITE 1234 00:1f:5678 0 EOF`
fn holder_in(line: &str, inode: u64) -> Option<u32> {
    let mut words = line.split_whitespace();
    let kind = words.nth(1)?;
    let pid = words.nth(2)?.parse().ok()?;
    let of = words.next()?.rsplit(':').next()?.parse::<u64>().ok()?;
    (kind == "FLOCK" && of == inode).then_some(pid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_locked_once_and_its_holder_is_known() {
        let dir = tempfile::tempdir().unwrap();
        let lock = Lock::take(dir.path()).unwrap();
        assert!(lock.is_some());
        assert!(Lock::take(dir.path()).unwrap().is_none());
        assert_eq!(holder(dir.path()), Some(std::process::id()));
        drop(lock);
        assert!(Lock::take(dir.path()).unwrap().is_some());
    }

    #[test]
    fn a_line_of_proc_locks_is_read() {
        let line = "1: FLOCK  ADVISORY  WRITE 1234 00:1f:5678 0 EOF";
        assert_eq!(holder_in(line, 5678), Some(1234));
        assert_eq!(holder_in(line, 5679), None);
        assert_eq!(holder_in(&line.replace("FLOCK", "POSIX"), 5678), None);
        assert_eq!(holder_in("1:", 5678), None);
    }
}
