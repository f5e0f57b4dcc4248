//! The relay that a command is about, where the command makes sense only while it runs.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::client::Client;
use super::places::{self, Places};
use super::{Error, ExitCode};

/// A relay that is asked through its socket.
#[derive(Debug)]
pub(super) struct Relay {
    client: Client,
    socket: PathBuf,
}

impl Relay {
    /// The one at these places.
    ///
    /// # Errors
    /// When it is configured to have no socket.
    pub(super) fn at(places: &Places) -> Result<Self, Error> {
        let Some(socket) = &places.socket else {
            return Err(unavailable(
                "the relay has no admin socket ([admin] socket = \"off\"): write a path there to ask it".to_owned(),
            ));
        };
        Ok(Self {
            client: Client::new(socket),
            socket: socket.clone(),
        })
    }

    /// The one that a configuration file is of, whatever is in it now: where the file is wrong, its places are the customary ones, or those on the
    /// command line, and the relay there must say that the file is its own.
    pub(super) fn whatever_the_file(arguments: &places::Args) -> Result<Self, Error> {
        let (places, wrong) = arguments.find_all_the_same()?;
        let relay = Self::at(&places)?;
        match wrong {
            Some(wrong)
                if !arguments.name_directories() && !relay.runs(arguments.config_path()) =>
            {
                Err(Error::Config(wrong))
            }
            _ => Ok(relay),
        }
    }

    /// Whether it was started with this file.
    fn runs(&self, file: &Path) -> bool {
        #[derive(Deserialize)]
        struct Status {
            config: InForce,
        }
        #[derive(Deserialize)]
        struct InForce {
            path: Option<PathBuf>,
        }
        let status = self.client.json::<Status>("GET", "/status");
        let path = status
            .ok()
            .and_then(Result::ok)
            .and_then(|status| status.config.path);
        // It may be gone.
        let whole = |path: &Path| {
            path.canonicalize()
                .or_else(|_| std::path::absolute(path))
                .ok()
        };
        path.is_some_and(|path| whole(&path) == whole(file))
    }

    /// Asks, and reads what was asked for as JSON.
    ///
    /// # Errors
    /// When nobody is there, too.
    pub(super) fn json<T: DeserializeOwned>(&self, method: &str, target: &str) -> Result<T, Error> {
        self.client.json(method, target)?.map_err(|error| {
            unavailable(format!(
                "no relay answers at {} ({error}): start it, or name its directories with --config or --run-dir",
                self.socket.display()
            ))
        })
    }
}

fn unavailable(what: String) -> Error {
    Error::Books {
        code: ExitCode::Unavailable,
        what,
    }
}
