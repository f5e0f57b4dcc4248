//! Pipes of a size that was read back, for splice(2), and what the kernel allows this process to have of them.

use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};
use rustix::thread::{CapabilitySet, capabilities};

/// Both ends of a pipe, non-blocking and closed on exec.
#[derive(Debug)]
pub struct Pipe {
    /// Bytes come out here.
    pub output: OwnedFd,
    /// Bytes go in here.
    pub input: OwnedFd,
    /// Its nominal size in bytes, as the kernel told it.
    pub size: usize,
}

/// Why there is no pipe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoPipe {
    /// pipe2(2) failed: descriptors or memory.
    Create(Errno),
    /// It could not be given the size. Beyond `fs.pipe-user-pages-soft` pipe2(2) still succeeds, with 8 KiB, and
    /// F_SETPIPE_SZ fails with EPERM (pipe(7)).
    Size,
}

impl Pipe {
    /// A new pipe that holds at least `size` bytes in pages of their own.
    ///
    /// # Errors
    /// [`NoPipe`]; nothing is left open.
    pub fn with_size(size: usize) -> Result<Self, NoPipe> {
        let (output, input) =
            pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).map_err(NoPipe::Create)?;
        // What the kernel answers is the size it really has, rounded up to a power of two of pages.
        match fcntl_setpipe_size(&input, size) {
            Ok(actual) if actual >= size => Ok(Self {
                output,
                input,
                size: actual,
            }),
            Ok(_) | Err(_) => Err(NoPipe::Size),
        }
    }
}

/// Bytes that all pipes of this user may have together before the kernel hands out tiny ones: `fs.pipe-user-pages-soft`.
/// `None`: no bound, because it is 0 or because the process has CAP_SYS_RESOURCE or CAP_SYS_ADMIN (pipe(7)).
#[must_use]
pub fn user_quota() -> Option<usize> {
    let effective = capabilities(None).map(|sets| sets.effective);
    let exempt = CapabilitySet::SYS_RESOURCE | CapabilitySet::SYS_ADMIN;
    if effective.is_ok_and(|effective| effective.intersects(exempt)) {
        return None;
    }
    let text = std::fs::read_to_string("/proc/sys/fs/pipe-user-pages-soft").ok();
    // The kernel's default where the file cannot be read.
    let pages = text
        .and_then(|text| text.trim().parse::<usize>().ok())
        .unwrap_or(16384);
    (pages > 0).then(|| pages.saturating_mul(rustix::param::page_size()))
}
