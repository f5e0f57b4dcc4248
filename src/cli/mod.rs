//! The command line: what may be written there, and which command it leads to.

mod audit;
mod check;
mod client;
mod completions;
mod configuration;
mod decode;
mod drain;
mod endpoints;
mod exit;
mod man;
mod places;
mod relay;
mod reload;
mod run;
mod table;
mod top;
mod usage;

use std::ffi::OsString;
use std::io;

use clap::{Parser, Subcommand};

use crate::account::BooksError;
use crate::account::audit::TrailError;
use crate::account::ledger::LedgerError;
use crate::config;
use crate::supervisor::{KeepError, SupervisorError};
pub use exit::ExitCode;

/// Where the configuration is looked for when nothing is said.
const CONFIG_PATH: &str = "/etc/tollgate/tollgate.toml";

/// Layer-4 relay between a PrivateLink Network Load Balancer and an upstream in another Region.
#[derive(Debug, Parser)]
#[command(
    version,
    arg_required_else_help = true,
    subcommand_required = true,
    max_term_width = 100
)]
#[command(
    after_help = "Exit codes: 0 done, 1 something found by check --probe, config diff or audit verify, 64 command line, 65 bad input to decode, or a damaged ledger, 66 no configuration file, \
                        69 address in use, or no relay answers or it cannot do that now, 70 internal, 75 state directory in use by another relay, 77 not permitted, 78 configuration."
)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Run(run::Args),
    Check(check::Args),
    Decode(decode::Args),
    Usage(usage::Args),
    Endpoints(endpoints::Args),
    Top(top::Args),
    Audit(audit::Args),
    Reload(reload::Args),
    Config(configuration::Args),
    Drain(drain::Args),
    Undrain(drain::UndrainArgs),
    Completions(completions::Args),
    Man(man::Args),
}

/// Why a command did not do what it was asked for.
#[derive(Debug)]
pub enum Error {
    /// The command line cannot be read, or asks for help or the version.
    Usage(clap::Error),
    /// The configuration is missing or wrong.
    Config(config::Error),
    /// What was to be decoded is no hexadecimal.
    Input(String),
    /// The relay could not start, or failed.
    Supervisor(SupervisorError),
    /// The books could not be asked, or do not answer.
    Books {
        /// Whose trouble it is.
        code: ExitCode,
        /// What happened, and what to do.
        what: String,
    },
    /// What was asked for could not be written to standard output.
    Output(io::Error),
}

/// Reads the command line and does what it says.
///
/// # Errors
/// See [`Error`]; for whoever prints it and ends the process.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> Result<ExitCode, Error> {
    let cli = Cli::try_parse_from(arguments).map_err(Error::Usage)?;
    match cli.command {
        Command::Run(arguments) => run::run(&arguments),
        Command::Check(arguments) => check::check(&arguments),
        Command::Decode(arguments) => decode::run(&arguments),
        Command::Usage(arguments) => usage::run(&arguments),
        Command::Endpoints(arguments) => endpoints::run(&arguments),
        Command::Top(arguments) => top::run(&arguments),
        Command::Audit(arguments) => audit::run(&arguments),
        Command::Reload(arguments) => reload::run(&arguments),
        Command::Config(arguments) => configuration::run(&arguments),
        Command::Drain(arguments) => drain::drain(&arguments),
        Command::Undrain(arguments) => drain::undrain(&arguments),
        Command::Completions(arguments) => completions::run(&arguments),
        Command::Man(arguments) => man::run(&arguments),
    }
}

impl Error {
    /// What the process ends with.
    #[must_use]
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Usage(error) if error.exit_code() == 0 => ExitCode::Ok,
            Self::Usage(_) => ExitCode::Usage,
            Self::Config(error) => error.kind().into(),
            Self::Input(_) => ExitCode::Data,
            Self::Books { code, .. } => *code,
            Self::Supervisor(
                SupervisorError::Bind { error, .. } | SupervisorError::AdminSocket { error, .. },
            ) => match error.kind() {
                io::ErrorKind::AddrInUse => ExitCode::Unavailable,
                io::ErrorKind::PermissionDenied => ExitCode::Permission,
                _ => ExitCode::Config,
            },
            Self::Supervisor(SupervisorError::Socket { refused, .. }) if refused.permission => {
                ExitCode::Permission
            }
            Self::Supervisor(SupervisorError::Socket { .. } | SupervisorError::Resolver(_)) => {
                ExitCode::Config
            }
            Self::Supervisor(SupervisorError::Books(error)) => of_books(error),
            Self::Supervisor(_) => ExitCode::Internal,
            // Whoever read it has gone, as head(1) does when it has seen enough.
            Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::Ok,
            Self::Output(_) => ExitCode::Internal,
        }
    }
}

fn of_books(error: &KeepError) -> ExitCode {
    match error {
        KeepError::Ledger(error) => of_ledger(error),
        KeepError::RunDir { error, .. } => of_place(error),
        KeepError::Trail(TrailError::Sink { error, .. } | TrailError::Key { error, .. }) => {
            of_place(error)
        }
        KeepError::Counters(BooksError::Create { error, .. }) => of_place(error),
        KeepError::Counters(BooksError::NoRoom { .. }) => ExitCode::Config,
        KeepError::Counters(_) | KeepError::Trail(TrailError::Thread(_)) => ExitCode::Internal,
    }
}

fn of_ledger(error: &LedgerError) -> ExitCode {
    match error {
        LedgerError::Locked { .. } => ExitCode::Locked,
        LedgerError::Directory { error, .. } => of_place(error),
        LedgerError::Refused(_) => ExitCode::Data,
        LedgerError::Thread(_) => ExitCode::Internal,
    }
}

/// Of a file or directory that cannot be used.
fn of_place(error: &io::Error) -> ExitCode {
    match error.kind() {
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => ExitCode::Permission,
        _ => ExitCode::Config,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exit_code(line: &str) -> ExitCode {
        match main(line.split(' ').map(OsString::from)) {
            Ok(code) => code,
            Err(error) => error.exit_code(),
        }
    }

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn a_sink_or_key_that_is_not_permitted_ends_with_77_and_any_other_trouble_with_78() {
        let path = || "/a".into();
        for (kind, code) in [
            (io::ErrorKind::PermissionDenied, ExitCode::Permission),
            (io::ErrorKind::NotFound, ExitCode::Config),
            (io::ErrorKind::Other, ExitCode::Config),
        ] {
            let error = || kind.into();
            let sink = TrailError::Sink {
                path: path(),
                error: error(),
            };
            let key = TrailError::Key {
                path: path(),
                error: error(),
            };
            for trouble in [sink, key] {
                assert_eq!(of_books(&KeepError::Trail(trouble)), code);
            }
        }
    }

    #[test]
    fn help_and_version_are_no_errors() {
        for line in [
            "tollgate --help",
            "tollgate --version",
            "tollgate run --help",
        ] {
            assert_eq!(exit_code(line), ExitCode::Ok, "{line}");
        }
    }

    #[test]
    fn a_wrong_command_line_is_usage() {
        for line in [
            "tollgate",
            "tollgate walk",
            "tollgate run --config /dev/null --listen 0.0.0.0:1 --upstream a:1",
            "tollgate run --listen 0.0.0.0:1",
            "tollgate run --upstream a:1",
            "tollgate run --trusted 10.0.0.0/8",
            "tollgate run --listen 0.0.0.0:1 --upstream a:1 --proxy-protocol v1",
            "tollgate run --listen 0.0.0.0:1 --upstream a:1",
            "tollgate run --listen 0.0.0.0:1 --upstream a --proxy-protocol off",
        ] {
            assert_eq!(exit_code(line), ExitCode::Usage, "{line}");
        }
    }

    #[test]
    fn a_file_is_missing_or_wrong() {
        assert_eq!(
            exit_code("tollgate check --config /nonexistent/a.toml"),
            ExitCode::NoConfig
        );
        assert_eq!(
            exit_code("tollgate run --config /nonexistent/a.toml"),
            ExitCode::NoConfig
        );
        assert_eq!(
            exit_code("tollgate check --config /dev/null"),
            ExitCode::Config
        );
    }
}
