//! One thread of a relay held still, as a debugger does it, while the others go on.

use std::{
    fs,
    sync::mpsc::{Sender, channel},
    thread::{self, JoinHandle},
};

use rustix::process::Pid;

use super::Relay;

/// A thread that stands still until this is dropped.
#[derive(Debug)]
pub struct Held {
    release: Option<Sender<()>>,
    holder: Option<JoinHandle<()>>,
}

impl Relay {
    /// Holds its thread of this name (`worker-1`).
    ///
    /// # Panics
    /// When there is none, or it may not be held.
    #[track_caller]
    pub fn hold(&self, name: &str) -> Held {
        let folder = format!("/proc/{}/task", self.id());
        let threads = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{folder}: {error}"));
        let thread = threads.flatten().find(|thread| {
            let named = fs::read_to_string(thread.path().join("comm"));
            named.is_ok_and(|named| named.trim_end() == name)
        });
        let thread = thread.unwrap_or_else(|| panic!("no thread {name}"));
        let id = thread
            .file_name()
            .to_str()
            .and_then(|id| Pid::from_raw(id.parse().ok()?));
        let id = id.expect("a thread's id is a number");
        let (held, is_held) = channel();
        let (release, released) = channel::<()>();
        // Whoever holds it is a thread of ours, and its end lets go.
        let holder = thread::spawn(move || {
            let _ = held.send(tollgate::sys::hold::hold(id));
            let _ = released.recv();
        });
        let result = is_held.recv().expect("it is told");
        result.unwrap_or_else(|error| panic!("{name}: {error}"));
        let stat = thread.path().join("stat");
        self.wait_until("the thread to stand still", || {
            let stat = fs::read_to_string(&stat).unwrap_or_default();
            stat.rsplit_once(") ")
                .is_some_and(|(_, rest)| rest.starts_with(['t', 'T']))
        });
        Held {
            release: Some(release),
            holder: Some(holder),
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        drop(self.release.take());
        if let Some(holder) = self.holder.take() {
            // It does nothing that could fail.
            let _ = holder.join();
        }
    }
}
