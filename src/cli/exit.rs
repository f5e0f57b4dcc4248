//! What the process ends with; the numbers are those of sysexits(3) where it has one.

use crate::config::ErrorKind;

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum ExitCode {
    /// Done.
    Ok = 0,
    /// Done, and something was found that needs looking at.
    Findings = 1,
    /// The command line is wrong, or asks for what cannot be.
    Usage = 64,
    /// The input of a command is wrong, or a ledger damaged.
    Data = 65,
    /// The configuration file does not exist.
    NoConfig = 66,
    /// An address is in use by someone else; or who was to be asked is not there.
    Unavailable = 69,
    /// Our own fault, or the system's.
    Internal = 70,
    /// The state directory is in use by another relay.
    Locked = 75,
    /// The system does not permit it.
    Permission = 77,
    /// The configuration is wrong.
    Config = 78,
}

impl From<ExitCode> for std::process::ExitCode {
    fn from(code: ExitCode) -> Self {
        Self::from(code as u8)
    }
}

impl From<ErrorKind> for ExitCode {
    fn from(kind: ErrorKind) -> Self {
        match kind {
            ErrorKind::Missing => Self::NoConfig,
            ErrorKind::Permission => Self::Permission,
            ErrorKind::Configuration => Self::Config,
            ErrorKind::Usage => Self::Usage,
        }
    }
}
