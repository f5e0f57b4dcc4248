//! Cores, and who used how much of them.

use std::{
    fs, io,
    path::PathBuf,
    time::{Duration, Instant},
};

use rustix::{
    process::Pid,
    thread::{CpuSet, sched_getaffinity, sched_setaffinity},
    time::{ClockId, clock_gettime},
};

/// Who runs where.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cores {
    /// Client and origin: this process.
    pub(crate) load: usize,
    /// The relay under test.
    pub(crate) relay: usize,
}

impl Cores {
    /// Takes two of the cores that this process may use and puts it, and whatever it starts from now on, on the first.
    pub(crate) fn split() -> Result<Self, String> {
        let allowed = sched_getaffinity(None).map_err(|error| error.to_string())?;
        let mut allowed = (0..CpuSet::MAX_CPU).filter(|core| allowed.is_set(*core));
        let (Some(load), Some(relay)) = (allowed.next(), allowed.next()) else {
            return Err(
                "two cores are needed: one for the relay, one for what loads it".to_owned(),
            );
        };
        sched_setaffinity(None, &only(load)).map_err(|error| error.to_string())?;
        Ok(Self { load, relay })
    }

    /// Calls it with the calling thread on the relay's core: threads that it starts stay there.
    pub(crate) fn with_the_relay<T>(self, function: impl FnOnce() -> T) -> T {
        // Fails only for a core that is gone; then where it runs is the kernel's choice, and nothing here hangs on it.
        let _ = sched_setaffinity(None, &only(self.relay));
        let value = function();
        let _ = sched_setaffinity(None, &only(self.load));
        value
    }
}

/// Processor time of processes, as the scheduler counts it, in nanoseconds. Work of the kernel on their behalf is in it, that of its own
/// threads is not.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    /// On a core.
    pub(crate) ran: Duration,
    /// Ready to run while the core was somebody else's.
    pub(crate) waited: Duration,
}

impl Usage {
    /// Of all threads of a process and its children, theirs included.
    pub(crate) fn of(process: u32) -> io::Result<Self> {
        Self::of_threads(process, |_| true)
    }

    /// Of those of them whose name says so.
    pub(crate) fn of_threads(process: u32, wanted: impl Fn(&str) -> bool) -> io::Result<Self> {
        let mut total = Self::default();
        for task in tasks(process)? {
            if !wanted(fs::read_to_string(task.join("comm"))?.trim_end()) {
                continue;
            }
            let text = fs::read_to_string(task.join("schedstat"))?;
            let mut fields = text.split_whitespace().map_while(|word| word.parse().ok());
            let (Some(ran), Some(waited)) = (fields.next(), fields.next()) else {
                return Err(io::Error::other("schedstat: the kernel keeps none"));
            };
            total.ran += Duration::from_nanos(ran);
            total.waited += Duration::from_nanos(waited);
        }
        Ok(total)
    }

    /// What came since.
    pub(crate) fn since(self, before: Self) -> Self {
        Self {
            ran: self.ran.saturating_sub(before.ran),
            waited: self.waited.saturating_sub(before.waited),
        }
    }
}

/// Time that both cores were busy since `since`, whoever kept them so: interrupts and the kernel's own threads as well as other people's programs.
/// Counted as what they were not idle, in steps of 10 ms.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Machine {
    idle: Duration,
    since: Instant,
}

impl Machine {
    /// From now on.
    pub(crate) fn now(cores: &Cores) -> io::Result<Self> {
        let text = fs::read_to_string("/proc/stat")?;
        let mut idle = Duration::ZERO;
        for core in [cores.load, cores.relay] {
            let name = format!("cpu{core} ");
            let line = text.lines().find_map(|line| line.strip_prefix(&name));
            // user nice system idle iowait
            let line = line.ok_or_else(|| io::Error::other(format!("/proc/stat has no {name}")))?;
            let ticks = line.split_whitespace().skip(3).take(2);
            let ticks: u64 = ticks.filter_map(|word| word.parse::<u64>().ok()).sum();
            idle += Duration::from_millis(ticks * 1000 / rustix::param::clock_ticks_per_second());
        }
        Ok(Self {
            idle,
            since: Instant::now(),
        })
    }

    /// Since then.
    pub(crate) fn busy(self, cores: &Cores) -> io::Result<Duration> {
        let now = Self::now(cores)?;
        let idle = now.idle.saturating_sub(self.idle);
        Ok((2 * (now.since - self.since)).saturating_sub(idle))
    }
}

/// Lets all threads of a process and its children run on this core only.
pub(crate) fn move_to(process: u32, core: usize) -> io::Result<()> {
    for task in tasks(process)? {
        let id = task
            .file_name()
            .and_then(|name| name.to_str()?.parse().ok());
        if let Some(id) = id.and_then(Pid::from_raw) {
            sched_setaffinity(Some(id), &only(core))?;
        }
    }
    Ok(())
}

fn only(core: usize) -> CpuSet {
    let mut set = CpuSet::new();
    set.set(core);
    set
}

/// Of this process: client and origin.
pub(crate) fn own() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::try_from(time).unwrap_or_default()
}

/// The threads of a process and of its descendants.
fn tasks(process: u32) -> io::Result<Vec<PathBuf>> {
    let mut tasks = Vec::new();
    for process in family(process)? {
        for task in fs::read_dir(format!("/proc/{process}/task"))? {
            tasks.push(task?.path());
        }
    }
    Ok(tasks)
}

/// A process and its descendants.
pub(crate) fn family(first: u32) -> io::Result<Vec<u32>> {
    let mut parents = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let Ok(process) = entry?.file_name().to_string_lossy().parse::<u32>() else {
            continue;
        };
        // "pid (name) state parent …", and one may have ended since.
        let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
        let fields = stat.rsplit_once(')').map(|(_, rest)| rest);
        let parent = fields.and_then(|fields| fields.split_whitespace().nth(1)?.parse().ok());
        parents.extend(parent.map(|parent: u32| (process, parent)));
    }
    let mut family = vec![first];
    let mut next = 0;
    while let Some(&parent) = family.get(next) {
        let children = parents.iter().filter(|(_, of)| *of == parent);
        family.extend(children.map(|(process, _)| *process));
        next += 1;
    }
    Ok(family)
}

/// Of a process, in steps of 10 ms: of its threads that have ended as well.
pub(crate) fn with_ended(process: u32) -> io::Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat"))?;
    let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    // state is the first of them; utime and stime are the 12th and 13th.
    let ticks = fields.split_whitespace().skip(11).take(2);
    let ticks: u64 = ticks.filter_map(|word| word.parse::<u64>().ok()).sum();
    Ok(Duration::from_millis(
        ticks * 1000 / rustix::param::clock_ticks_per_second(),
    ))
}
