//! The `tollgate` program: the one place where errors are printed and exit codes picked.

use std::io::{self, Write};
use std::process;

use tollgate::cli::{self, Error};
use tollgate::telemetry;

fn main() -> process::ExitCode {
    match cli::main(std::env::args_os()) {
        Ok(code) => code.into(),
        Err(error) => {
            // Nothing is left to do where even standard error is gone; the exit code still tells.
            let _ = print(&error);
            error.exit_code().into()
        }
    }
}

fn print(error: &Error) -> io::Result<()> {
    match error {
        // Help and version were asked for: clap writes those to standard output.
        Error::Usage(error) => error.print(),
        Error::Config(error) => writeln!(io::stderr(), "{}", error.render(telemetry::colour())),
        Error::Input(error) => writeln!(io::stderr(), "error: {error}"),
        Error::Books { what, .. } => writeln!(io::stderr(), "error: {what}"),
        Error::Supervisor(error) => writeln!(io::stderr(), "error: {error}"),
        // Whoever read it has gone, as head(1) does when it has seen enough.
        Error::Output(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        Error::Output(error) => writeln!(
            io::stderr(),
            "error: standard output cannot be written: {error}"
        ),
    }
}
