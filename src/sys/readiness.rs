//! Descriptors that tokio tells us about: the devices of the labs. The relay itself waits with [`crate::reactor`].

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Registers a descriptor with the runtime of the calling thread.
///
/// # Errors
/// It cannot be polled, or no memory is left.
///
/// # Panics
/// Outside a tokio runtime.
pub fn watch(descriptor: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: `register_with_interest` wants the descriptor to stay open and to be the same one for as long as the
    // `AsyncFd` lives. An `OwnedFd` is closed only when it is dropped, its `as_raw_fd` never changes, and it is moved into
    // the `AsyncFd` here.
    let registered = unsafe { AsyncFd::register_with_interest(descriptor, interest) };
    registered.map_err(|error| error.into_parts().1)
}
