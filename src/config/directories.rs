//! Where a relay's files are: said in the configuration or on the command line, by whoever started the process, or by custom.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// The name of the admin socket, in the run directory.
pub const ADMIN_SOCKET: &str = "admin.sock";

/// Where the shipped unit has the books.
const STATE: &str = "/var/lib/tollgate";

/// Where the shipped unit has the counters and the socket.
const RUN: &str = "/run/tollgate";

/// The directories of one relay.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Directories {
    /// What lasts: the ledger.
    pub state_dir: Option<PathBuf>,
    /// What lives as long as the machine: counters, the admin socket. Below `state_dir` where nothing else is said.
    pub run_dir: Option<PathBuf>,
}

impl Directories {
    /// What is written, and for the rest what the environment of a service says (systemd.exec(5)).
    #[must_use]
    pub fn or_environment(self) -> Self {
        self.or(&|variable| env::var_os(variable))
    }

    fn or(self, variable: &dyn Fn(&str) -> Option<OsString>) -> Self {
        let state_dir = self
            .state_dir
            .or_else(|| first(variable("STATE_DIRECTORY")));
        let run_dir = self
            .run_dir
            .or_else(|| first(variable("RUNTIME_DIRECTORY")))
            .or_else(|| Some(state_dir.as_ref()?.join("run")));
        Self { state_dir, run_dir }
    }

    /// For a command that looks for a relay: where nothing is known, where the shipped unit has them.
    #[must_use]
    pub fn or_customary(self) -> Self {
        Self {
            run_dir: self.run_dir.or_else(|| match &self.state_dir {
                Some(state) if state != Path::new(STATE) => Some(state.join("run")),
                _ => Some(RUN.into()),
            }),
            state_dir: self.state_dir.or_else(|| Some(STATE.into())),
        }
    }
}

/// A unit may be given several directories; the first is ours.
fn first(directories: Option<OsString>) -> Option<PathBuf> {
    let directories = directories?;
    let first = env::split_paths(&directories).next()?;
    first.is_absolute().then_some(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(state: &str, run: &str) -> impl Fn(&str) -> Option<OsString> {
        let (state, run) = (OsString::from(state), OsString::from(run));
        move |variable| match variable {
            "STATE_DIRECTORY" => Some(state.clone()),
            "RUNTIME_DIRECTORY" => Some(run.clone()),
            _ => None,
        }
    }

    fn written(state: Option<&str>, run: Option<&str>) -> Directories {
        Directories {
            state_dir: state.map(PathBuf::from),
            run_dir: run.map(PathBuf::from),
        }
    }

    #[test]
    fn what_is_written_goes_before_the_environment() {
        let service = environment("/var/lib/tollgate:/var/lib/more", "/run/tollgate");
        let of = |state, run| written(state, run).or(&service);
        assert_eq!(
            of(None, None),
            written(Some("/var/lib/tollgate"), Some("/run/tollgate"))
        );
        assert_eq!(of(Some("/a"), Some("/b")), written(Some("/a"), Some("/b")));
    }

    #[test]
    fn the_run_directory_is_below_the_state_directory_where_nobody_says_otherwise() {
        let nothing = environment("", "");
        assert_eq!(
            written(Some("/a"), None).or(&nothing),
            written(Some("/a"), Some("/a/run"))
        );
        assert_eq!(written(None, None).or(&nothing), Directories::default());
    }

    #[test]
    fn who_looks_for_a_relay_looks_where_the_unit_has_it() {
        assert_eq!(
            Directories::default().or_customary(),
            written(Some(STATE), Some(RUN))
        );
        assert_eq!(
            written(Some(STATE), None).or_customary(),
            written(Some(STATE), Some(RUN))
        );
        assert_eq!(
            written(Some("/a"), None).or_customary(),
            written(Some("/a"), Some("/a/run"))
        );
    }
}
