//! A relay's process as /proc shows it: descriptors, pipes, threads, processor time, memory.

use std::{fs, net::SocketAddr, thread, time::Duration};

use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use socket2::Socket;

use super::{Relay, Signal};
use crate::harness::{BOUND, sockets};

/// Over which window a relay at rest is watched.
const REST: Duration = Duration::from_millis(300);
/// What it may use in that: two ticks of the kernel's clock, the least that can be told from one.
const REST_TICKS: u64 = 2;
/// How many windows it gets: what is under way when the first begins may end in it.
const REST_WINDOWS: usize = 3;

impl Relay {
    /// Its open descriptors.
    #[track_caller]
    pub fn fd_count(&self) -> usize {
        self.descriptors().len()
    }

    /// Those of them that are ends of pipes, its own stdout and stderr included.
    #[track_caller]
    pub fn pipe_fd_count(&self) -> usize {
        let descriptors = self.descriptors();
        let pipes = descriptors.iter().filter(|link| link.starts_with("pipe:"));
        pipes.count()
    }

    /// What each of its descriptors is.
    #[track_caller]
    pub fn descriptors(&self) -> Vec<String> {
        let folder = format!("/proc/{}/fd", self.id());
        let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{folder}: {error}"));
        // One that was closed since it was listed is none.
        let links = entries.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
        links
            .map(|link| link.to_string_lossy().into_owned())
            .collect()
    }

    /// Its connections as descriptors of ours (pidfd_getfd(2)), so that a test can ask its sockets what they were told: each with its own and the
    /// other end's address.
    #[track_caller]
    pub fn connections(&self) -> Vec<(SocketAddr, SocketAddr, Socket)> {
        let id = i32::try_from(self.id()).ok().and_then(Pid::from_raw);
        let process = pidfd_open(id.expect("a process id"), PidfdFlags::empty());
        let process = process.expect("it runs");
        let folder = format!("/proc/{}/fd", self.id());
        let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{folder}: {error}"));
        let sockets = entries.filter_map(|entry| {
            let entry = entry.ok()?;
            let link = fs::read_link(entry.path()).ok()?;
            let number = entry.file_name().to_str()?.parse().ok()?;
            link.to_str()?.starts_with("socket:").then_some(number)
        });
        sockets
            .filter_map(|number| {
                // One that was closed since it was listed is none, and neither is one that listens.
                let socket = pidfd_getfd(&process, number, PidfdGetfdFlags::empty()).ok()?;
                let socket = Socket::from(socket);
                let remote = socket.peer_addr().ok()?.as_socket()?;
                let local = socket.local_addr().ok()?.as_socket()?;
                Some((sockets::plain(local), sockets::plain(remote), socket))
            })
            .collect()
    }

    /// Its threads.
    #[track_caller]
    pub fn threads(&self) -> u64 {
        self.stat(17)
    }

    /// Whether each of its threads sleeps, waiting for something.
    #[track_caller]
    pub fn all_threads_wait(&self) -> bool {
        self.all_threads_are('S')
    }

    /// Stops it where it stands (SIGSTOP), and waits until nothing in it moves; SIGCONT lets it go on.
    #[track_caller]
    pub fn stop_still(&self) {
        self.signal(Signal::STOP);
        self.wait_until("all its threads to stand still", || {
            self.all_threads_are('T')
        });
    }

    #[track_caller]
    fn all_threads_are(&self, state: char) -> bool {
        let folder = format!("/proc/{}/task", self.id());
        let threads = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{folder}: {error}"));
        threads.flatten().all(|thread| {
            // One that has ended since it was listed is in no other state.
            let stat = fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
            stat.rsplit_once(") ")
                .is_none_or(|(_, rest)| rest.starts_with(state))
        })
    }

    /// Processor time since its start, its own and the kernel's on its behalf, in steps of a tick (10 ms most everywhere).
    #[track_caller]
    pub fn cpu_time(&self) -> Duration {
        let second = rustix::param::clock_ticks_per_second();
        Duration::from_millis(self.ticks() * 1000 / second)
    }

    /// Bytes of memory in its pages, shared ones included.
    #[track_caller]
    pub fn rss(&self) -> u64 {
        self.memory("Rss:")
    }

    /// Bytes of memory in its pages, shared ones by its share.
    #[track_caller]
    pub fn pss(&self) -> u64 {
        self.memory("Pss:")
    }

    /// Bytes of memory in pages that it wrote itself: its heap and its stacks. Unlike [`pss`](Self::pss) it does not change when another
    /// process begins or ends that runs the same program.
    #[track_caller]
    pub fn own_memory(&self) -> u64 {
        self.memory("Pss_Anon:")
    }

    /// Checks that it does nothing while nothing moves: that it is not spinning. Call it when nothing does.
    ///
    /// # Panics
    /// When it used more than two ticks of processor time in each of three windows of 300 ms.
    #[track_caller]
    pub fn assert_at_rest(&self) {
        let mut used = Vec::new();
        for _ in 0..REST_WINDOWS {
            let before = self.ticks();
            // Not a wait for something: what is tested is what happens in this time.
            thread::sleep(REST);
            used.push(self.ticks() - before);
            if used.last().is_some_and(|ticks| *ticks <= REST_TICKS) {
                return;
            }
        }
        panic!("it is busy while nothing moves: ticks in {REST:?} each: {used:?}");
    }

    #[track_caller]
    fn ticks(&self) -> u64 {
        self.stat(11) + self.stat(12)
    }

    /// A field of /proc/PID/stat, counted from the state, which is 0.
    #[track_caller]
    fn stat(&self, field: usize) -> u64 {
        let stat = self.proc("stat");
        // "pid (name) state …", and a name may hold anything.
        let fields = stat.rsplit_once(')').map(|(_, rest)| rest);
        let value = fields.and_then(|fields| fields.split_whitespace().nth(field)?.parse().ok());
        value.unwrap_or_else(|| panic!("field {field} of {stat:?}"))
    }

    #[track_caller]
    fn memory(&self, key: &str) -> u64 {
        let rollup = self.proc("smaps_rollup");
        let line = rollup.lines().find_map(|line| line.strip_prefix(key));
        let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
        kib.unwrap_or_else(|| panic!("{key} in {rollup:?}")) * 1024
    }

    #[track_caller]
    fn proc(&self, file: &str) -> String {
        let path = format!("/proc/{}/{file}", self.id());
        fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
    }
}

/// What a relay held before the test began, and must hold no more of at its end.
#[derive(Clone, Copy, Debug)]
pub struct Baseline {
    fds: usize,
    pipes: usize,
    threads: u64,
}

impl Baseline {
    /// Takes it from a relay that is ready and has no connection.
    ///
    /// It answers as soon as its control thread does, when a worker may still be opening what it needs; so all must be waiting first.
    #[track_caller]
    pub fn of(relay: &Relay) -> Self {
        relay.wait_until("all its threads to wait", || relay.all_threads_wait());
        Self {
            fds: relay.fd_count(),
            pipes: relay.pipe_fd_count(),
            threads: relay.threads(),
        }
    }

    /// Allows so many pipes more, for a relay that keeps some at hand.
    #[must_use]
    pub fn and_pipes(mut self, pipes: usize) -> Self {
        self.fds += 2 * pipes;
        self.pipes += 2 * pipes;
        self
    }

    /// Waits until the relay holds no more than then, and checks that it is at rest.
    ///
    /// # Panics
    /// When it keeps something, with the list of its descriptors, or is busy.
    #[track_caller]
    pub fn assert_back(&self, relay: &Relay) {
        self.assert_back_within(BOUND, relay);
    }

    /// As [`assert_back`](Self::assert_back), with a bound of the caller's for what is to be let go.
    #[track_caller]
    pub fn assert_back_within(&self, bound: Duration, relay: &Relay) {
        let mut last = Vec::new();
        let back = || {
            last = relay.descriptors();
            let pipes = last.iter().filter(|link| link.starts_with("pipe:")).count();
            last.len() <= self.fds && pipes <= self.pipes && relay.threads() <= self.threads
        };
        if !relay.becomes_true(bound, back) {
            last.sort();
            panic!(
                "{self:?}, but now {} threads and {} descriptors: {last:#?}",
                relay.threads(),
                last.len()
            );
        }
        relay.assert_at_rest();
    }
}
