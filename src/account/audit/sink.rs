//! Where records go: a file that is followed by a new one now and then, or standard output.
//!
//! A sink takes as much as it can of what it is given and says so; whoever writes to it keeps the rest and tries again, so that a full disk leaves no torn
//! line inside a file. Nothing here deletes anything.

use std::ffi::{OsStr, OsString};
use std::fmt::Debug;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FlockOperation, RenameFlags, flock, renameat_with};
use rustix::io::Errno;

use super::chain::Key;
use super::record::Micros;
use super::recover::{Tail, tail};

/// Who may read a trail: its owner, and a group that can be given to auditors.
const MODE: u32 = 0o640;

/// What ends the name of a file that was set aside, perhaps with a number behind it.
const ASIDE: &str = "-damaged";

/// Names that are tried for it.
const MOST_ASIDE: u32 = 1000;

/// What a pipe that says it has room takes without making us wait (pipe(7), PIPE_BUF).
const PIPE_TAKES: usize = 4096;

/// How long a pipe is waited for before others are heard.
const PATIENCE: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 100_000_000,
};

/// See the module.
pub(super) trait Sink: Debug + Send {
    /// Writes some of it. `WouldBlock`: nothing is taken now.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize>;

    /// What was written outlasts a power cut, where the sink can do that.
    fn sync(&mut self) -> io::Result<()>;

    /// What it is.
    fn kind(&self) -> &'static str {
        "stdout"
    }

    /// What records call it; empty where it has no name.
    fn name(&self) -> String {
        String::new()
    }

    /// The name that what was written so far is to have, if a new file should begin behind record `sequence`.
    fn due(&self, _sequence: u64, _now: Micros) -> Option<OsString> {
        None
    }

    /// Gives the file that name and begins a new one.
    fn rotate(&mut self, _to: &OsStr, _now: Micros) -> io::Result<()> {
        Ok(())
    }

    /// Whether somebody else moved or deleted the file; then a new one was begun.
    fn follow(&mut self, _now: Micros) -> io::Result<Followed> {
        Ok(Followed::Same)
    }
}

/// What became of a file that is looked after.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Followed {
    /// It is where it was.
    Same,
    /// It was moved or deleted, and another is begun.
    Other {
        /// Where a file went that stood in its place and is no trail.
        aside: Option<PathBuf>,
    },
}

/// When a file is followed by a new one.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rotation {
    pub(super) size: u64,
    pub(super) age: Option<Duration>,
}

/// A file that is written at its end and locked, so that no other relay writes to it.
#[derive(Debug)]
pub(super) struct FileSink {
    path: PathBuf,
    file: File,
    size: u64,
    /// When its first record was written.
    began: Micros,
    rotation: Rotation,
    key: Key,
}

impl FileSink {
    pub(super) fn new(
        path: &Path,
        file: File,
        began: Micros,
        rotation: Rotation,
        key: Key,
    ) -> Self {
        let size = file.metadata().map_or(0, |metadata| metadata.len());
        Self {
            path: path.to_owned(),
            file,
            size,
            began,
            rotation,
            key,
        }
    }

    fn begin(&mut self, now: Micros) -> io::Result<()> {
        let file = open(&self.path, true)?;
        sync_directory(&self.path);
        (self.file, self.size, self.began) = (file, 0, now);
        Ok(())
    }
}

/// Opens a trail's file for writing at its end, or makes it, and locks it.
pub(super) fn open(path: &Path, new: bool) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).append(true).mode(MODE);
    // Without waiting for the reader of a pipe: what is no file is refused.
    options.custom_flags(nonblocking());
    let file = match new {
        true => options.create_new(true).open(path)?,
        false => options.create(true).open(path)?,
    };
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("this is no regular file"));
    }
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(Errno::AGAIN) => Err(io::Error::new(
            io::ErrorKind::ResourceBusy,
            "another process writes to it: each relay needs a file of its own",
        )),
        Err(errno) => Err(errno.into()),
    }
}

fn nonblocking() -> i32 {
    i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap_or(0)
}

/// A new name outlasts a power cut. Where a directory cannot be synced, nothing is lost but that.
fn sync_directory(path: &Path) {
    let directory = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty());
    if let Ok(directory) = File::open(directory.unwrap_or(Path::new("."))) {
        let _ = directory.sync_all();
    }
}

impl Sink for FileSink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.size += written as u64;
        Ok(written)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn kind(&self) -> &'static str {
        "file"
    }

    fn name(&self) -> String {
        self.path.display().to_string()
    }

    fn due(&self, sequence: u64, now: Micros) -> Option<OsString> {
        let age = u128::try_from(now.saturating_sub(self.began)).unwrap_or(0);
        let old = self
            .rotation
            .age
            .is_some_and(|most| age >= most.as_micros());
        let due = self.size > 0 && (self.size >= self.rotation.size || old);
        due.then(|| followed_by(&self.path, sequence, now))
            .flatten()
    }

    fn rotate(&mut self, to: &OsStr, now: Micros) -> io::Result<()> {
        self.file.sync_data()?;
        let target = self.path.with_file_name(to);
        rename(&self.path, &target)?;
        self.begin(now).inspect_err(|_| {
            // The file goes on under its name, or where that fails, without.
            let _ = rename(&target, &self.path);
        })
    }

    fn follow(&mut self, now: Micros) -> io::Result<Followed> {
        let ours = self.file.metadata()?;
        match fs::metadata(&self.path) {
            Ok(there) if (there.dev(), there.ino()) == (ours.dev(), ours.ino()) => {
                self.size = ours.len(); // somebody may have copied and emptied it
                Ok(Followed::Same)
            }
            Ok(_) => {
                let file = open(&self.path, false)?;
                let is_trail = match tail(&file, &self.key)? {
                    Tail::Empty { torn } | Tail::Whole { torn, .. } => torn.is_empty(),
                    Tail::Damaged { .. } => false,
                };
                if !is_trail {
                    // Somebody else's: nothing of ours belongs into it.
                    let aside = Some(set_aside(&self.path, now)?);
                    self.begin(now)?;
                    return Ok(Followed::Other { aside });
                }
                self.size = file.metadata()?.len();
                (self.file, self.began) = (file, now);
                Ok(Followed::Other { aside: None })
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.begin(now)?;
                Ok(Followed::Other { aside: None })
            }
            Err(error) => Err(error),
        }
    }
}

/// Renames without replacing what is there.
fn rename(from: &Path, to: &Path) -> io::Result<()> {
    let here = rustix::fs::CWD;
    match renameat_with(here, from, here, to, RenameFlags::NOREPLACE) {
        // A file system that does not know the flag.
        Err(Errno::INVAL) if !to.exists() => fs::rename(from, to),
        Err(Errno::INVAL) => Err(io::ErrorKind::AlreadyExists.into()),
        result => Ok(result?),
    }
}

/// Moves a file that cannot be gone on with out of the way; its new name.
pub(super) fn set_aside(path: &Path, now: Micros) -> io::Result<PathBuf> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!("-{}{ASIDE}", compact(now)));
    let mut aside = path.with_file_name(&name);
    // Several in one second.
    for number in 2..MOST_ASIDE {
        match rename(path, &aside) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                let mut name = name.clone();
                name.push(format!("-{number}"));
                aside = path.with_file_name(name);
            }
            result => return result.map(|()| aside),
        }
    }
    Err(io::ErrorKind::AlreadyExists.into())
}

/// `<name>-<time>-<sequence>`: what a file is called once another has followed it.
fn followed_by(path: &Path, sequence: u64, now: Micros) -> Option<OsString> {
    let mut name = path.file_name()?.to_owned();
    name.push(format!("-{}-{sequence}", compact(now)));
    Some(name)
}

fn compact(now: Micros) -> String {
    let time = Timestamp::from_microsecond(now).unwrap_or_default();
    time.strftime("%Y%m%dT%H%M%SZ").to_string()
}

/// The files that were followed by others, the oldest first.
pub(super) fn followed(path: &Path) -> Vec<PathBuf> {
    let mut found: Vec<(u64, PathBuf)> = beside(path)
        .into_iter()
        .filter_map(|(rest, path)| Some((rest.parse().ok()?, path)))
        .collect();
    found.sort();
    found.into_iter().map(|(_, path)| path).collect()
}

/// Whether a file was set aside, by its name.
pub(super) fn is_aside(path: &Path) -> bool {
    let name = path.file_name().and_then(OsStr::to_str);
    name.and_then(|name| name.rsplit_once(ASIDE))
        .is_some_and(|(_, number)| is_number(number))
}

fn is_number(rest: &str) -> bool {
    rest.is_empty()
        || rest
            .strip_prefix('-')
            .is_some_and(|number| number.parse::<u32>().is_ok())
}

/// The files whose name is that of `path` and a time, and what is behind the time.
fn beside(path: &Path) -> Vec<(String, PathBuf)> {
    let Some(name) = path.file_name().and_then(OsStr::to_str) else {
        return Vec::new();
    };
    let directory = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty());
    let Ok(entries) = fs::read_dir(directory.unwrap_or(Path::new("."))) else {
        return Vec::new();
    };
    let behind_time = |other: &OsStr| -> Option<String> {
        let rest = other.to_str()?.strip_prefix(name)?.strip_prefix('-')?;
        let (time, rest) = rest.split_once('-')?;
        let is_time = time.len() == 16 && time.ends_with('Z') && time.as_bytes()[8] == b'T';
        is_time.then(|| rest.to_owned())
    };
    let found = entries.flatten().filter_map(|entry| {
        let name = entry.file_name();
        Some((behind_time(&name)?, path.with_file_name(name)))
    });
    found.collect()
}

/// A trail's files: those that were followed by others, those that were set aside, and the one that is written to.
#[must_use]
pub fn files(path: &Path) -> Vec<PathBuf> {
    let mut files = followed(path);
    let mut aside: Vec<_> = beside(path).into_iter().map(|(_, path)| path).collect();
    aside.retain(|path| is_aside(path));
    aside.sort();
    files.append(&mut aside);
    files.extend(path.exists().then(|| path.to_owned()));
    files
}

/// Standard output, or anything else that may keep a writer waiting.
#[derive(Debug)]
pub(super) struct PipeSink(OwnedFd);

impl PipeSink {
    pub(super) const fn new(fd: OwnedFd) -> Self {
        Self(fd)
    }
}

impl Sink for PipeSink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut fds = [PollFd::new(&self.0, PollFlags::OUT)];
        if poll(&mut fds, Some(&PATIENCE))? == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        // Not made nonblocking: that would be so for everybody who has it, a shell among them.
        let takes = bytes.len().min(PIPE_TAKES);
        Ok(rustix::io::write(&self.0, &bytes[..takes])?)
    }

    fn sync(&mut self) -> io::Result<()> {
        Ok(())
    }
}
