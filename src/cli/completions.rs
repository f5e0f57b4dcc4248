//! `completions`: what a shell needs to complete our command lines.

use std::io::{self, Write};

use clap::CommandFactory;
use clap_complete::{Shell, generate};

use super::{Cli, Error, ExitCode};

/// Print what a shell needs to complete the command lines of tollgate
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    tollgate completions bash > /usr/share/bash-completion/completions/tollgate\n  \
    tollgate completions zsh > /usr/share/zsh/vendor-completions/_tollgate\n  \
    tollgate completions fish > /usr/share/fish/vendor_completions.d/tollgate.fish")]
pub(super) struct Args {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

pub(super) fn run(arguments: &Args) -> Result<ExitCode, Error> {
    let written = io::stdout().write_all(&script(arguments.shell));
    written.map_err(Error::Output)?;
    Ok(ExitCode::Ok)
}

/// In memory first: what writes it takes an output that fails for a defect of ours.
fn script(shell: Shell) -> Vec<u8> {
    let mut script = Vec::new();
    let mut command = Cli::command();
    let name = command.get_name().to_owned();
    generate(shell, &mut command, name, &mut script);
    script
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum;

    use super::*;

    #[test]
    fn every_shell_gets_every_command() {
        for shell in Shell::value_variants() {
            let script = String::from_utf8(script(*shell)).expect("text");
            for command in Cli::command().get_subcommands() {
                let name = command.get_name();
                assert!(script.contains(name), "{shell}: {name}");
            }
        }
    }
}
