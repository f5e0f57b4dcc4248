//! `man`: the manual pages, made from what the command line says of itself.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::{Command, CommandFactory};
use clap_mangen::Man;

use super::{Cli, Error, ExitCode};

/// Print the manual page tollgate(1), or write the pages of all commands into a directory
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  tollgate man | man -l -\n  tollgate man --dir /usr/share/man/man1"
)]
pub(super) struct Args {
    /// Write tollgate.1 and a page for each command, as tollgate-check.1, into this directory; it is made if it is not there
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

/// What of tollgate(1) the command line itself does not say.
const FILES: &str = ".SH FILES
.TP
.I /etc/tollgate/tollgate.toml
The configuration. \\fBtollgate check\\fR says what it means, or what is wrong with it.
.TP
.I /var/lib/tollgate
The ledger. \\fBtollgate usage\\fR reports from it.
.TP
.I /run/tollgate
Counters that outlive a killed process, and the admin socket that commands ask the relay through.
";

pub(super) fn run(arguments: &Args) -> Result<ExitCode, Error> {
    let pages = pages().map_err(Error::Output)?;
    match &arguments.dir {
        Some(dir) => write(dir, &pages)?,
        None => {
            let first = pages.first().map_or(&[][..], |(_, page)| page);
            io::stdout().write_all(first).map_err(Error::Output)?;
        }
    }
    Ok(ExitCode::Ok)
}

fn write(dir: &Path, pages: &[(String, Vec<u8>)]) -> Result<(), Error> {
    let failed = |path: &Path, error: io::Error| Error::Books {
        code: match error.kind() {
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                ExitCode::Permission
            }
            _ => ExitCode::Internal,
        },
        what: format!("{} cannot be written: {error}", path.display()),
    };
    std::fs::create_dir_all(dir).map_err(|error| failed(dir, error))?;
    for (name, page) in pages {
        let path = dir.join(name);
        std::fs::write(&path, page).map_err(|error| failed(&path, error))?;
    }
    Ok(())
}

/// File names and texts: that of the whole first, then one for each command, and for each of its own.
fn pages() -> io::Result<Vec<(String, Vec<u8>)>> {
    let mut all = Vec::new();
    // Its own help command says the same as the pages do.
    let mut whole = Cli::command().disable_help_subcommand(true);
    whole.build();
    page_of(&whole, whole.get_name(), &mut all)?;
    Ok(all)
}

fn page_of(command: &Command, name: &str, all: &mut Vec<(String, Vec<u8>)>) -> io::Result<()> {
    let mut page = Vec::new();
    let man = Man::new(command.clone().display_name(name))
        .title(name)
        .source(concat!("tollgate ", env!("CARGO_PKG_VERSION")))
        .manual("tollgate");
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    if command.has_subcommands() {
        man.render_subcommands_section(&mut page)?;
    }
    page.extend_from_slice(behind(command).as_bytes());
    if all.is_empty() {
        page.extend_from_slice(FILES.as_bytes());
    }
    all.push((format!("{name}.1"), page));
    for below in command.get_subcommands() {
        page_of(below, &format!("{name}-{}", below.get_name()), all)?;
    }
    Ok(())
}

/// What the command line says after its options, paragraph by paragraph under the heading that manuals have for it.
fn behind(command: &Command) -> String {
    let after = command.get_after_help().map(ToString::to_string);
    let after = after.unwrap_or_default();
    let mut page = String::new();
    for paragraph in after.split("\n\n") {
        if let Some(examples) = paragraph.strip_prefix("Examples:\n") {
            page += ".SH EXAMPLES\n.nf\n";
            for line in examples.lines() {
                page += &format!("{}\n", plain(line.trim_start()));
            }
            page += ".fi\n";
        } else if !paragraph.is_empty() {
            let heading = match paragraph.split(' ').next() {
                Some("Exit" | "Ends") => "EXIT STATUS",
                _ => "NOTES",
            };
            page += &format!(".SH {heading:?}\n{}\n", plain(paragraph));
        }
    }
    page
}

/// Text that roff(7) takes as it is.
fn plain(line: &str) -> String {
    let text = line.replace('\\', "\\e").replace('-', "\\-");
    match text.starts_with(['.', '\'']) {
        true => format!("\\&{text}"),
        false => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_a_page_and_the_first_page_names_them_all() {
        let pages = pages().expect("memory takes everything");
        let (name, first) = &pages[0];
        assert_eq!(name, "tollgate.1");
        let first = String::from_utf8_lossy(first);
        for command in Cli::command().get_subcommands() {
            let page = format!("tollgate-{}.1", command.get_name());
            assert!(pages.iter().any(|(name, _)| *name == page), "{page}");
            let named = format!("tollgate\\-{}(1)", command.get_name());
            assert!(first.contains(&named), "{named}: {first}");
        }
        assert!(
            pages
                .iter()
                .any(|(name, _)| name == "tollgate-audit-verify.1")
        );
    }

    #[test]
    fn examples_stand_line_by_line_and_exit_codes_under_their_heading() {
        let pages = pages().expect("memory takes everything");
        let of = |wanted: &str| {
            let page = pages.iter().find(|(name, _)| name == wanted);
            String::from_utf8_lossy(&page.expect("a page").1).into_owned()
        };
        let verify = of("tollgate-audit-verify.1");
        assert!(
            verify.contains(".SH EXAMPLES\n.nf\ntollgate audit verify\n"),
            "{verify}"
        );
        assert!(
            verify.contains(".SH \"EXIT STATUS\"\nEnds with 0"),
            "{verify}"
        );
        assert!(of("tollgate.1").contains(".SH \"EXIT STATUS\"\nExit codes"));
        assert_eq!(plain(".a\\b-c"), "\\&.a\\eb\\-c");
    }

    #[test]
    fn pages_are_written_where_they_are_wanted() {
        let folder = tempfile::tempdir().expect("a directory");
        let dir = folder.path().join("man/man1");
        write(&dir, &pages().expect("pages")).expect("it is ours");
        let page = std::fs::read_to_string(dir.join("tollgate-check.1")).expect("a page");
        assert!(page.contains(".SH SYNOPSIS"), "{page}");
    }
}
