//! Descriptors that whoever started the process has passed to it (sd_listen_fds(3)).
#![expect(
    unsafe_code,
    reason = "owning a descriptor that the process was born with is a claim that only its environment backs"
)]

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

/// Takes the descriptors that were passed to this very process; each can be had once, so the second call gets none. To be called before anything is
/// opened: what the environment says was true at the start.
///
/// # Errors
/// What the environment says makes no sense, or one of them is not open.
pub fn take() -> io::Result<Vec<OwnedFd>> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    if TAKEN.swap(true, Ordering::Relaxed) {
        return Ok(Vec::new());
    }
    let passed = sd_notify::listen_fds()?;
    // SAFETY: it is open (its flags were just set), nobody else in this process owns it, because it was there before the process was and nothing
    // else takes it, and it is given out only once.
    Ok(passed
        .map(|fd| unsafe { OwnedFd::from_raw_fd(fd) })
        .collect())
}
