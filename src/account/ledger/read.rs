//! Reading a ledger that nobody need be writing to: as a user who may read the files and no more.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use jiff::Timestamp;
use rusqlite::{Connection, OpenFlags};

use super::FILE;
use super::report::{self, Query, Row};
use super::schema::{self, STEPS};
use super::store::{beside, fact, last_anchor};
use super::trouble::{Kind, Trouble};
use crate::account::Anchor;

/// How often a copy is made anew when somebody writes meanwhile.
const TRIES: usize = 5;

/// A ledger, open for reading only. It needs no leave to write: not to the file, nor to its directory.
#[derive(Debug)]
pub struct Reading {
    path: PathBuf,
    connection: Connection,
    how: How,
}

#[derive(Debug)]
enum How {
    /// Where it is, with its log of changes and that one's index, also while the relay writes.
    There,
    /// Where it is, without locks, because nobody has it open: it must still be as it was when the answer is there.
    Still(State),
    /// As a copy in this directory.
    Copy(PathBuf),
}

impl Reading {
    /// Opens the ledger of a state directory, in a process that does not write to it itself.
    ///
    /// # Errors
    /// [`Trouble`]; [`Kind::CannotOpen`] where there is none.
    pub fn open(state_dir: &Path) -> Result<Self, Trouble> {
        let path = state_dir.join(FILE);
        match Self::open_in_place(path.clone()) {
            Err(trouble) if trouble.kind == Kind::CannotOpen && path.exists() => {
                // There is no index of the log of changes, and no leave to make one.
                Self::open_copy(path)
            }
            done => done,
        }
    }

    /// Opens the ledger by SQLite's own hands only. For the process that has it open for writing: closing any other descriptor of the file would
    /// give back the locks that it holds there (fcntl(2)).
    pub(super) fn open_in_place(path: PathBuf) -> Result<Self, Trouble> {
        let still = state(&path).map_err(|error| Trouble::io(&path, &error))?;
        let nobody = |suffix| fs::metadata(beside(&path, suffix)).is_err();
        let (connection, how) = if nobody("-wal") && nobody("-shm") {
            let address = immutable(&path);
            let connection = open_checked(&address, &path, OpenFlags::SQLITE_OPEN_URI)?;
            (connection, How::Still(still))
        } else {
            (open_checked(&path, &path, OpenFlags::empty())?, How::There)
        };
        Ok(Self {
            path,
            connection,
            how,
        })
    }

    /// Opens a copy, of the ledger and its log of changes, that nobody else sees.
    pub(super) fn open_copy(path: PathBuf) -> Result<Self, Trouble> {
        let copy = private_dir().map_err(|error| Trouble::io(&std::env::temp_dir(), &error))?;
        let target = copy.join(FILE);
        let how = How::Copy(copy); // taken away from here on, whatever comes
        let mut reading = Self {
            connection: Connection::open_in_memory().map_err(|error| Trouble::of(&path, &error))?,
            path,
            how,
        };
        let still = copy_still(&reading.path, &target);
        still.map_err(|error| Trouble::io(&reading.path, &error))?;
        reading.connection = open_checked(&target, &reading.path, OpenFlags::empty())?;
        Ok(reading)
    }

    /// See [`report::report`].
    ///
    /// # Errors
    /// [`Trouble`].
    pub fn report(&self, query: &Query, deadline: Instant) -> Result<Vec<Row>, Trouble> {
        let rows = report::report(&self.connection, &self.path, query, deadline);
        if let How::Still(still) = &self.how
            && state(&self.path).ok().as_ref() != Some(still)
        {
            let what = "a relay began to write to it meanwhile";
            return Err(Trouble::new(Kind::Busy, &self.path, what));
        }
        rows
    }

    /// Where the audit trail stood at the last booking.
    ///
    /// # Errors
    /// [`Trouble`].
    pub fn last_anchor(&self) -> Result<Option<Anchor>, Trouble> {
        last_anchor(&self.connection).map_err(|error| Trouble::of(&self.path, &error))
    }

    /// The connection, for what is not foreseen here.
    #[must_use]
    pub fn connection(&self) -> &Connection {
        &self.connection
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        if let How::Copy(copy) = &self.how {
            let _ = fs::remove_dir_all(copy); // it lies where such things are swept up
        }
    }
}

/// Whether the ledger on the disk, as another connection finds it, is the one with this number and whole. For whoever has it open for writing, or had.
///
/// # Errors
/// [`Trouble`]; [`Kind::Damaged`] where it is not.
pub(super) fn read_back(path: &Path, id: u64) -> Result<(), Trouble> {
    let damaged = |what: String| Trouble::new(Kind::Damaged, path, what);
    let reading =
        Reading::open_in_place(path.to_owned()).map_err(|trouble| match trouble.kind {
            Kind::Foreign | Kind::Newer => damaged(trouble.what),
            _ => trouble,
        })?;
    let failed = |error: rusqlite::Error| Trouble::of(path, &error);
    let found = fact(&reading.connection, "ledger").map_err(failed)?;
    if found != Some(format!("{id:016x}")) {
        return Err(damaged("it is another ledger than was written to".into()));
    }
    // The end of the process waits for it.
    if fs::metadata(path).is_ok_and(|found| found.len() > CHECKED) {
        return Ok(());
    }
    let check = reading
        .connection
        .query_row("PRAGMA quick_check(1)", [], |row| row.get::<_, String>(0));
    match check.map_err(failed)?.as_str() {
        "ok" => Ok(()),
        wrong => Err(damaged(format!("it does not read back: {wrong}"))),
    }
}

/// A ledger of up to this size is read at the end: in a second or so.
const CHECKED: u64 = 64 << 20;

/// Opens the database at `file` for reading and looks whether it is a ledger of a version that this program reads. Troubles are those of `path`.
fn open_checked(file: &Path, path: &Path, more: OpenFlags) -> Result<Connection, Trouble> {
    let failed = |error: rusqlite::Error| Trouble::of(path, &error);
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX | more;
    let connection = Connection::open_with_flags(file, flags).map_err(failed)?;
    connection
        .busy_timeout(std::time::Duration::from_secs(2))
        .and_then(|()| connection.pragma_update(None, "cache_size", -8192))
        .map_err(failed)?;
    let found = schema::version(&connection, path, STEPS.len())?;
    if found == 0 {
        let what = "there is no ledger in it yet";
        return Err(Trouble::new(Kind::CannotOpen, path, what));
    }
    if found < STEPS.len() {
        let what = format!(
            "the ledger has version {found}; the relay brings it up to {} when it starts",
            STEPS.len()
        );
        return Err(Trouble::new(Kind::Other, path, what));
    }
    Ok(connection)
}

/// A directory that only this user sees.
fn private_dir() -> io::Result<PathBuf> {
    let mut dir = std::env::temp_dir();
    dir.push(format!(
        "tollgate-{}-{}",
        std::process::id(),
        Timestamp::now().as_nanosecond()
    ));
    // Fails where somebody was there before: nobody can put a directory of his in our way unseen.
    fs::DirBuilder::new().mode(0o700).create(&dir)?;
    Ok(dir)
}

/// Copies the database and its log of changes as they are at one moment: anew when either changed meanwhile.
fn copy_still(from: &Path, to: &Path) -> io::Result<()> {
    let (log, log_copy) = (beside(from, "-wal"), beside(to, "-wal"));
    for _ in 0..TRIES {
        let before = (state(from)?, state(&log).ok());
        fs::copy(from, to)?;
        match fs::copy(&log, &log_copy) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let _ = fs::remove_file(&log_copy);
            }
            Err(error) => return Err(error),
        }
        if before == (state(from)?, state(&log).ok()) {
            return Ok(());
        }
    }
    Err(io::Error::other(
        "it is being written to all the time: ask the relay, through its admin socket",
    ))
}

/// The path as an address that says: nobody writes to this.
fn immutable(path: &Path) -> PathBuf {
    let mut address = String::from("file:");
    for byte in path.as_os_str().as_bytes() {
        match byte {
            b'/' | b'.' | b'-' | b'_' => address.push(char::from(*byte)),
            byte if byte.is_ascii_alphanumeric() => address.push(char::from(*byte)),
            byte => address.push_str(&format!("%{byte:02X}")),
        }
    }
    address.push_str("?immutable=1");
    address.into()
}

/// Length, and when it was written to: what tells whether a file changed.
type State = (u64, std::time::SystemTime);

fn state(path: &Path) -> io::Result<State> {
    let metadata = fs::metadata(path)?;
    Ok((metadata.len(), metadata.modified()?))
}
