//! Where the relay is that a command is about: its socket, its ledger, and what its configuration calls endpoints.

use std::path::{Path, PathBuf};

use super::{CONFIG_PATH, Error};
use crate::account::ledger::Settings;
use crate::config::defaults::{LEDGER_INTERVAL, LEDGER_KEEP};
use crate::config::{self, ADMIN_SOCKET, Audit, Config, Directories, Endpoints, ErrorKind};

/// How a relay is named.
#[derive(Debug, Default, clap::Args)]
#[group(skip)]
pub(super) struct Args {
    /// The relay's configuration file: says where its books are, and what endpoints are called [default: /etc/tollgate/tollgate.toml, where there is one]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where its ledger is [default: what the configuration says, else $STATE_DIRECTORY, else /var/lib/tollgate]
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// Where its admin socket is [default: what the configuration says, else $RUNTIME_DIRECTORY, else /run/tollgate, or run below --state-dir]
    #[arg(long, value_name = "DIR")]
    run_dir: Option<PathBuf>,
}

/// A relay, running or not.
#[derive(Debug)]
pub(super) struct Places {
    /// Where its ledger is, if it has one.
    pub(super) state_dir: PathBuf,
    /// Its admin socket; `None` where it is configured to have none.
    pub(super) socket: Option<PathBuf>,
    /// What its configuration calls endpoints.
    pub(super) endpoints: Endpoints,
    /// Its configuration, where there is one.
    config: Option<Config>,
}

impl Places {
    /// What its configuration says of the audit trail.
    pub(super) fn audit(&self) -> Option<&Audit> {
        self.config.as_ref().map(|config| &config.audit)
    }

    /// What a ledger has to be told that is opened without a relay.
    pub(super) fn settings(&self) -> Settings {
        let known = self.config.as_ref();
        Settings {
            state_dir: self.state_dir.clone(),
            interval: known.map_or(LEDGER_INTERVAL, |config| config.ledger.interval),
            keep: known.map_or(LEDGER_KEEP, |config| config.ledger.keep),
            relay: known.map_or(String::new(), |config| config.relay_id.to_string()),
            endpoints: self.endpoints.clone(),
        }
    }
}

impl Args {
    /// The relay that has this configuration file.
    pub(super) fn of(config: &Path) -> Self {
        Self {
            config: Some(config.to_owned()),
            ..Self::default()
        }
    }

    /// The configuration file that is looked at.
    pub(super) fn config_path(&self) -> &Path {
        self.config.as_deref().unwrap_or(Path::new(CONFIG_PATH))
    }

    /// Whether the command line says where the relay is.
    pub(super) fn name_directories(&self) -> bool {
        self.state_dir.is_some() || self.run_dir.is_some()
    }

    pub(super) fn find(&self) -> Result<Places, Error> {
        Ok(self.places(self.read()?))
    }

    /// Where the configuration is wrong or gone, and a relay may run with what it was before: the customary places, or those on the command line; and what
    /// is the matter with it.
    pub(super) fn find_all_the_same(&self) -> Result<(Places, Option<config::Error>), Error> {
        match self.read() {
            Ok(config) => Ok((self.places(config), None)),
            Err(Error::Config(error)) => {
                let said = Directories {
                    state_dir: self
                        .state_dir
                        .clone()
                        .or_else(|| said_in(&error, "state_dir")),
                    run_dir: self.run_dir.clone().or_else(|| said_in(&error, "run_dir")),
                };
                let there = Self {
                    config: self.config.clone(),
                    state_dir: said.state_dir,
                    run_dir: said.run_dir,
                };
                Ok((there.places(None), Some(error)))
            }
            Err(error) => Err(error),
        }
    }

    fn places(&self, config: Option<Config>) -> Places {
        let (directories, socket) = match &config {
            _ if self.name_directories() => {
                let written = Directories {
                    state_dir: self.state_dir.clone(),
                    run_dir: self.run_dir.clone(),
                };
                (written.or_environment(), None)
            }
            Some(config) => {
                let directories = Directories {
                    state_dir: config.state_dir.clone(),
                    run_dir: config.run_dir.clone(),
                };
                // Without a run directory nothing was said of the socket: the service's environment has it.
                let said = config.admin_socket.is_some() || config.run_dir.is_some();
                (directories, said.then(|| config.admin_socket.clone()))
            }
            None => (Directories::default().or_environment(), None),
        };
        let Directories { state_dir, run_dir } = directories.or_customary();
        let customary = || run_dir.map(|run_dir| run_dir.join(ADMIN_SOCKET));
        Places {
            state_dir: state_dir.unwrap_or_default(),
            socket: socket.unwrap_or_else(customary),
            endpoints: config
                .as_ref()
                .map(|config| config.endpoints.clone())
                .unwrap_or_default(),
            config,
        }
    }

    /// The configuration; `None` where none was named, and the customary one is not there, or not for this user.
    fn read(&self) -> Result<Option<Config>, Error> {
        match Config::from_file(self.config_path()) {
            Ok(config) => Ok(Some(config)),
            Err(error) => match error.kind() {
                ErrorKind::Missing | ErrorKind::Permission if self.config.is_none() => Ok(None),
                _ => Err(Error::Config(error)),
            },
        }
    }
}

/// What a file that is wrong elsewhere says of a directory.
fn said_in(error: &config::Error, key: &str) -> Option<PathBuf> {
    let config::Error::Mistakes { text, .. } = error else {
        return None;
    };
    let table: toml::Table = text.parse().ok()?;
    Some(table.get(key)?.as_str()?.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    const REST: &str = r#"
[[listener]]
name = "ingest"
bind = "0.0.0.0:8443"
trusted_peers = ["10.20.0.0/16"]
upstream = "cp"
[[upstream]]
name = "cp"
targets = ["cp.example:443"]
[endpoint.vpce-1]
name = "one"
"#;

    fn configured(top: &str) -> Places {
        let folder = tempfile::tempdir().expect("a directory");
        let path = folder.path().join("tollgate.toml");
        std::fs::write(&path, format!("{top}\n{REST}")).expect("a file");
        let args = Args {
            config: Some(path),
            ..Args::default()
        };
        args.find().expect("valid")
    }

    #[test]
    fn the_configuration_says_where_the_relay_is() {
        let places = configured("state_dir = \"/a\"\nrun_dir = \"/b\"");
        assert_eq!(places.state_dir, Path::new("/a"));
        assert_eq!(places.socket.as_deref(), Some(Path::new("/b/admin.sock")));
        assert_eq!(&*places.endpoints.named("vpce-1").name, "one");
        let elsewhere = configured("state_dir = \"/a\"\n[admin]\nsocket = \"/c.sock\"");
        assert_eq!(elsewhere.socket.as_deref(), Some(Path::new("/c.sock")));
        let off = configured("state_dir = \"/a\"\n[admin]\nsocket = \"off\"");
        assert_eq!(off.socket, None);
    }

    #[test]
    fn what_is_written_on_the_command_line_goes_first() {
        let args = Args {
            state_dir: Some("/a".into()),
            run_dir: Some("/b".into()),
            ..Args::default()
        };
        let places = args.find().expect("no file is needed");
        assert_eq!(places.state_dir, Path::new("/a"));
        assert_eq!(places.socket.as_deref(), Some(Path::new("/b/admin.sock")));
    }

    #[test]
    fn a_file_that_is_wrong_elsewhere_says_where_the_relay_is() {
        let folder = tempfile::tempdir().expect("a directory");
        let path = folder.path().join("tollgate.toml");
        std::fs::write(&path, "run_dir = \"/b\"\nworkers = -1\n").expect("a file");
        let args = Args::of(&path);
        assert!(matches!(args.find(), Err(Error::Config(_))));
        let (places, wrong) = args.find_all_the_same().expect("it can be read");
        assert_eq!(places.socket.as_deref(), Some(Path::new("/b/admin.sock")));
        assert!(wrong.is_some());
    }

    #[test]
    fn a_file_that_was_named_must_be_there() {
        let args = Args {
            config: Some("/nonexistent/a.toml".into()),
            ..Args::default()
        };
        assert!(matches!(args.find(), Err(Error::Config(_))));
    }
}
