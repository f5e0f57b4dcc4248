//! Memory that outlives a killed process: a file mapped into it, as a slice of words that any thread may read and write.

use std::fs::File;
use std::io;
use std::ptr::{self, NonNull};
use std::slice;
use std::sync::atomic::AtomicU64;

use rustix::mm::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};

/// A mapping, zero where nothing was written. Every word in it is an atomic, so that whoever else has the file mapped can do no more harm than
/// to change numbers.
#[derive(Debug)]
pub struct Region {
    start: NonNull<AtomicU64>,
    words: usize,
}

// SAFETY: it is its mapping's only owner, and what is in it are atomics.
unsafe impl Send for Region {}
// SAFETY: it gives out nothing but shared references to atomics.
unsafe impl Sync for Region {}

impl Region {
    /// The first `words` words of a file. All of them must be allocated (fallocate(2)): where a file has no block and the disk is full, or where it
    /// ends early, touching the memory is SIGBUS.
    ///
    /// # Errors
    /// When the file is shorter, and where mmap(2) fails.
    pub fn shared_file(file: &File, words: usize) -> io::Result<Self> {
        let len = len(words)?;
        if file.metadata()?.len() < len as u64 {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the file is shorter than what is to be mapped of it",
            ));
        }
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: without an address of ours the kernel chooses one that is free; nothing that exists is touched.
        let start = unsafe { mmap(ptr::null_mut(), len, access, MapFlags::SHARED, file, 0) }?;
        Self::at(start.cast(), words)
    }

    /// Memory of this process alone. Pages that were never written take no room.
    ///
    /// # Errors
    /// Where mmap(2) fails.
    pub fn anonymous(words: usize) -> io::Result<Self> {
        let len = len(words)?;
        let access = ProtFlags::READ | ProtFlags::WRITE;
        let kind = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: as above.
        let start = unsafe { mmap_anonymous(ptr::null_mut(), len, access, kind) }?;
        Self::at(start.cast(), words)
    }

    fn at(start: *mut AtomicU64, words: usize) -> io::Result<Self> {
        let start = NonNull::new(start).ok_or_else(|| io::Error::other("mapped at address 0"))?;
        Ok(Self { start, words })
    }

    /// All of it.
    #[inline]
    #[must_use]
    pub fn words(&self) -> &[AtomicU64] {
        // SAFETY: mapped readable and writable over this length until `self` is dropped, aligned to a page; every bit pattern is a number, and
        // there is no reference to it that is not to atomics.
        unsafe { slice::from_raw_parts(self.start.as_ptr(), self.words) }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: mapped by us over this length, and no reference outlives `self`.
        let _ = unsafe { munmap(self.start.as_ptr().cast(), self.words * size_of::<u64>()) };
    }
}

fn len(words: usize) -> io::Result<usize> {
    let len = words.checked_mul(size_of::<u64>());
    len.filter(|len| *len > 0 && isize::try_from(*len).is_ok())
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "no size for a mapping"))
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::sync::atomic::Ordering::Relaxed;

    use super::*;

    #[test]
    fn what_is_written_to_a_mapping_is_in_the_file() {
        let mut file = tempfile::tempfile().unwrap();
        file.set_len(8192).unwrap();
        let region = Region::shared_file(&file, 1024).unwrap();
        region.words()[1023].store(0x0807_0605_0403_0201, Relaxed);
        drop(region);
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes[8184..], [1, 2, 3, 4, 5, 6, 7, 8]);
    }

    #[test]
    fn a_file_that_is_too_short_is_not_mapped() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(8191).unwrap();
        let error = Region::shared_file(&file, 1024).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn anonymous_memory_is_zero_and_as_large_as_asked_for() {
        let region = Region::anonymous(1_000_000).unwrap();
        assert_eq!(region.words().len(), 1_000_000);
        assert!(region.words().iter().all(|word| word.load(Relaxed) == 0));
        assert!(Region::anonymous(0).is_err());
        assert!(Region::anonymous(usize::MAX / 4).is_err());
    }
}
