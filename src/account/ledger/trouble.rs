//! What may be wrong with the file, and what somebody can do about it.

use std::io;
use std::path::{Path, PathBuf};

use rusqlite::{ErrorCode, ffi};

/// What kind of trouble it is: what follows depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// No room on the disk.
    Full,
    /// The disk, or the file, takes no writing.
    ReadOnly,
    /// The disk fails.
    Io,
    /// The file is not a ledger any more: it is set aside.
    Damaged,
    /// Somebody else holds it.
    Busy,
    /// Somebody's reading keeps the log of changes from being taken up, and it has grown as long as it may.
    Reader,
    /// The clock cannot be right.
    Clock,
    /// It was written by a newer version.
    Newer,
    /// It is some other program's database.
    Foreign,
    /// It cannot be opened: permission, or a directory that is missing.
    CannotOpen,
    /// The answer took too long, or would be too long.
    TooMuch,
    /// A fault of ours.
    Other,
}

/// Why something did not happen.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{path}: {what}; {next}", path = path.display(), next = kind.next())]
pub struct Trouble {
    /// What kind of.
    pub kind: Kind,
    /// Which file.
    pub path: PathBuf,
    /// In words.
    pub what: String,
}

impl Kind {
    fn next(self) -> &'static str {
        match self {
            Self::Full => {
                "make room on that disk: nothing is lost, what was counted is booked as soon as there is some"
            }
            Self::ReadOnly => {
                "make the disk and the file writable: nothing is lost, what was counted is booked then"
            }
            Self::Io => "look for errors of that disk in the kernel's log (dmesg)",
            Self::Damaged => {
                "it is set aside under a name with .damaged-, and a new ledger is begun; `sqlite3 FILE .recover` gets out what can be read"
            }
            Self::Busy => "end the program that has it locked (fuser names it)",
            Self::Reader => {
                "end the program that has been reading it all the time (fuser names it)"
            }
            Self::Clock => "set the clock: what was counted is booked then",
            Self::Newer => "run the newer version again, or point state_dir to another directory",
            Self::Foreign => "point state_dir to a directory of tollgate's own",
            Self::CannotOpen => "see that the directory exists and that this user may write there",
            Self::TooMuch => "ask for a shorter time, or by fewer things",
            Self::Other => "this should not happen: please report it",
        }
    }

    /// The word for it, in the log.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::ReadOnly => "read_only",
            Self::Io => "io",
            Self::Damaged => "damaged",
            Self::Busy => "busy",
            Self::Reader => "reader",
            Self::Clock => "clock",
            Self::Newer => "newer",
            Self::Foreign => "foreign",
            Self::CannotOpen => "cannot_open",
            Self::TooMuch => "too_much",
            Self::Other => "other",
        }
    }
}

impl Trouble {
    /// Of this kind.
    #[must_use]
    pub fn new(kind: Kind, path: &Path, what: impl Into<String>) -> Self {
        Self {
            kind,
            path: path.to_owned(),
            what: what.into(),
        }
    }

    /// What SQLite says.
    #[must_use]
    pub fn of(path: &Path, error: &rusqlite::Error) -> Self {
        let kind = match error {
            rusqlite::Error::SqliteFailure(failure, _) => kind(failure),
            _ => Kind::Other,
        };
        Self::new(kind, path, error.to_string())
    }

    /// What the system says.
    #[must_use]
    pub fn io(path: &Path, error: &io::Error) -> Self {
        let kind = match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Kind::Full,
            io::ErrorKind::ReadOnlyFilesystem => Kind::ReadOnly,
            io::ErrorKind::PermissionDenied
            | io::ErrorKind::NotFound
            | io::ErrorKind::NotADirectory => Kind::CannotOpen,
            _ => Kind::Io,
        };
        Self::new(kind, path, error.to_string())
    }
}

fn kind(failure: &ffi::Error) -> Kind {
    match failure.code {
        ErrorCode::DiskFull => Kind::Full,
        ErrorCode::ReadOnly => Kind::ReadOnly,
        // SQLite needs room for the index of its log of changes, too, and calls the want of it an error of the disk.
        ErrorCode::SystemIoFailure if failure.extended_code == ffi::SQLITE_IOERR_SHMSIZE => {
            Kind::Full
        }
        ErrorCode::SystemIoFailure => Kind::Io,
        ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase => Kind::Damaged,
        ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked => Kind::Busy,
        ErrorCode::CannotOpen | ErrorCode::PermissionDenied => Kind::CannotOpen,
        ErrorCode::OperationInterrupted => Kind::TooMuch,
        _ => Kind::Other,
    }
}
