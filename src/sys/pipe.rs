//! A pipe of a size that was read back, for splice(2).

use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};

/// Both ends of a pipe, non-blocking and closed on exec.
#[derive(Debug)]
pub struct Pipe {
    /// Bytes come out here.
    pub output: OwnedFd,
    /// Bytes go in here.
    pub input: OwnedFd,
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
            Ok(actual) if actual >= size => Ok(Self { output, input }),
            Ok(_) | Err(_) => Err(NoPipe::Size),
        }
    }
}
