//! Holding one thread of another process still, as a debugger does.
//!
//! The relay itself never does. The integration tests do, because there is no other way to a worker that does not turn while the rest of its
//! process goes on.
#![expect(unsafe_code, reason = "ptrace(2) has no safe wrapper")]

use std::io;
use std::ptr;

use rustix::process::Pid;

/// Holds a thread until the calling thread ends.
///
/// # Errors
/// There is no such thread, or it may not be held.
pub fn hold(thread: Pid) -> io::Result<()> {
    for request in [libc::PTRACE_SEIZE, libc::PTRACE_INTERRUPT] {
        let (id, nothing) = (
            thread.as_raw_nonzero().get(),
            ptr::null_mut::<libc::c_void>(),
        );
        // SAFETY: with these two requests ptrace(2) reads and writes no memory of ours: address and data are not looked at, or are options.
        let result = unsafe { libc::ptrace(request, id, nothing, nothing) };
        if result == -1 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}
