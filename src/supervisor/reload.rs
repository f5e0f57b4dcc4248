//! One configuration after another: the file is read again, judged, prepared for, and only then put into force, whole.
//!
//! Whatever can go wrong goes wrong before anything has changed: mistakes, addresses that cannot be bound, sockets that workers have no memory
//! for. Sessions keep what they have.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;
use rustix::fs::{Mode, OFlags, open};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tracing::{info, warn};

use super::doors::{self, Doors};
use super::upstreams::{self, Upstreams};
use super::workers::Workers;
use super::{SupervisorError, fit_ahead, settle_sockets};
use crate::account::Books;
use crate::account::Limits;
use crate::account::audit::Trail;
use crate::account::ledger::Ledger;
use crate::activation::Passed;
use crate::admin::{Configured, Reloaded, Reloads};
use crate::config::{self, Change, Config, ErrorKind};
use crate::drain::{Phase, Stand};
use crate::orders::{Answer, Declined, DeclinedKind};
use crate::policy::Policy;
use crate::telemetry::Levels;
use crate::upstream::Upstream;
use crate::worker::Share;

/// Changes that the log tells one by one; of more it tells how many there are.
const TOLD: usize = 64;

/// What the process keeps over all configurations, and the one that is in force.
#[derive(Debug)]
pub(super) struct Reloader {
    pub(super) path: Option<PathBuf>,
    pub(super) config: Arc<Config>,
    pub(super) policy: Arc<Policy>,
    pub(super) open_files: Option<u64>,
    pub(super) doors: Doors,
    pub(super) upstreams: Upstreams,
    pub(super) workers: Workers,
    pub(super) books: Arc<Books>,
    pub(super) ledger: Option<Arc<Ledger>>,
    pub(super) trail: Arc<Trail>,
    pub(super) levels: Levels,
    pub(super) reloads: Arc<Reloads>,
    pub(super) stand: watch::Receiver<Stand>,
    pub(super) published: Published,
}

/// Where others look for what is in force.
#[derive(Debug)]
pub(super) struct Published {
    /// The admin side.
    pub(super) in_force: watch::Sender<Arc<Configured>>,
    /// Readiness: upstreams without which there is to be no traffic.
    pub(super) needed: watch::Sender<Arc<[Arc<Upstream>]>>,
    /// The way out.
    pub(super) config: watch::Sender<Arc<Config>>,
}

/// A configuration that nothing stands in the way of.
struct Planned {
    config: Config,
    text: String,
    changes: Vec<Change>,
    policy: Arc<Policy>,
    doors: doors::Plan,
    upstreams: upstreams::Plan,
}

impl Reloader {
    /// Puts the file into force as it is now, and says what that changed.
    ///
    /// # Errors
    /// [`Declined`]: everything is as before.
    pub(super) async fn reload(&mut self) -> Answer {
        let reloaded = self.try_to_reload().await;
        match &reloaded {
            Ok((how, _)) => self.reloads.ended(*how, None),
            Err(declined) => {
                warn!(
                    "configuration not reloaded, and nothing has changed: {}",
                    declined.why
                );
                self.reloads
                    .ended(Reloaded::Failed, Some(declined.why.clone()));
            }
        }
        reloaded.map(|(_, answer)| answer)
    }

    /// What systemd is told of the process while it serves; `None`: it drains, which others tell.
    pub(super) fn words(&self) -> Option<String> {
        let stand = self.stand.borrow();
        let serves = stand.phase == Phase::Serving;
        serves.then(|| stand.words(0, self.config.listeners.len()))
    }

    async fn try_to_reload(&mut self) -> Result<(Reloaded, Value), Declined> {
        let mut planned = self.plan().await?;
        let shares = self.shares(&mut planned);
        let prepared = self.workers.prepare(shares).await;
        prepared.map_err(|error| Declined {
            kind: DeclinedKind::Failed,
            why: format!("a worker cannot take it up: {error}"),
        })?;
        Ok(self.put_into_force(planned).await)
    }

    async fn plan(&self) -> Result<Planned, Declined> {
        let Some(path) = self.path.clone() else {
            let why = "this relay was started from the command line and has no configuration file: start it with --config FILE";
            return Err(Declined {
                kind: DeclinedKind::NotNow,
                why: why.to_owned(),
            });
        };
        // Thousands of endpoints take a while to be read.
        let read = spawn_blocking(move || read(&path)).await;
        let (mut config, text) = read.unwrap_or_else(|error| Err(failed(&error)))?;
        let settled = settle_sockets(&mut config);
        settled.map_err(|error| Declined {
            kind: DeclinedKind::Configuration,
            why: error.to_string(),
        })?;
        let changes = config::changes(&self.config, &config);
        config.keep_restart_only(&self.config);
        fit_ahead(&mut config, self.open_files);
        let doors = self
            .doors
            .plan(&config, &mut Passed::default())
            .map_err(|error| Declined {
                kind: match &error {
                    SupervisorError::Bind { error, .. }
                        if error.kind() == io::ErrorKind::PermissionDenied =>
                    {
                        DeclinedKind::Permission
                    }
                    _ => DeclinedKind::Failed,
                },
                why: error.to_string(),
            })?;
        let upstreams = self.upstreams.plan(&config).map_err(|error| Declined {
            kind: DeclinedKind::Configuration,
            why: error.to_string(),
        })?;
        Ok(Planned {
            policy: Arc::new(self.policy.next(&config)),
            config,
            text,
            changes,
            doors,
            upstreams,
        })
    }

    fn shares(&self, planned: &mut Planned) -> Vec<Share> {
        let config = Arc::new(planned.config.clone());
        let doors = std::mem::take(&mut planned.doors.doors);
        let upstreams = &planned.upstreams.upstreams;
        shares(&config, doors, upstreams, &planned.policy)
    }

    /// From here on nothing can fail.
    async fn put_into_force(&mut self, planned: Planned) -> (Reloaded, Value) {
        let Planned {
            config,
            text,
            changes,
            policy,
            doors,
            upstreams,
        } = planned;
        self.policy = policy;
        let config = Arc::new(config);
        let upstreams_now = upstreams.upstreams.clone();
        self.doors.adopt(doors);
        self.upstreams.adopt(upstreams).are_looked_up().await;
        let closed = self.workers.open().await;
        let mut warnings = Vec::new();
        let missing = self.books.set_limits(Limits::of(&config));
        if missing > 0 {
            warnings.push(format!(
                "the books have room for as many accounts as at the start, and {missing} more may be needed: those that have none are booked to overflow until a restart"
            ));
        }
        if config.endpoints.entries != self.config.endpoints.entries
            && let Some(ledger) = &self.ledger
            && let Err(error) = ledger.rename(config.endpoints.clone())
        {
            warnings.push(format!("reports show the endpoints' former names: {error}"));
        }
        self.levels.set(&config.log);
        self.trail.config_changed(&config.digest);
        let restart: Vec<String> = changes
            .iter()
            .filter(|change| change.restart)
            .map(|change| change.key.clone())
            .collect();
        self.published.show(
            &config,
            (upstreams_now, self.doors.rooms()),
            (self.path.clone(), text.into(), restart.clone()),
        );
        self.config = config;
        let changed: Vec<&Change> = changes.iter().filter(|change| !change.restart).collect();
        self.tell(&changed, &restart, &warnings, closed);
        let how = match changed.is_empty() {
            true => Reloaded::Unchanged,
            false => Reloaded::Applied,
        };
        let answer = json!({
            "result": how.name(),
            "digest": &*self.config.digest,
            "changed": changed.iter().map(|change| json!({
                "key": change.key,
                "before": change.before,
                "after": change.after,
            })).collect::<Vec<_>>(),
            "restart": restart,
            "closed": closed,
            "warnings": warnings,
        });
        (how, answer)
    }

    fn tell(&self, changed: &[&Change], restart: &[String], warnings: &[String], closed: usize) {
        let digest = &*self.config.digest;
        for change in changed.iter().take(TOLD) {
            let (before, after) = (change.before.as_deref(), change.after.as_deref());
            info!(key = change.key, before, after, "configuration changed");
        }
        if !restart.is_empty() {
            let keys = restart.join(", ");
            warn!(keys, "these keys keep their value until a restart");
        }
        for warning in warnings {
            warn!("{warning}");
        }
        info!(
            digest,
            changes = changed.len(),
            closed,
            "configuration reloaded"
        );
    }
}

impl Published {
    /// Shows others what is in force.
    pub(super) fn show(
        &self,
        config: &Arc<Config>,
        (upstreams, rooms): (Vec<Arc<Upstream>>, Vec<crate::admin::Room>),
        (path, text, restart): (Option<PathBuf>, Arc<str>, Vec<String>),
    ) {
        self.needed.send_replace(needed(config, &upstreams));
        self.config.send_replace(config.clone());
        self.in_force.send_replace(Arc::new(Configured {
            upstreams,
            rooms,
            endpoints: config.endpoints.clone(),
            path,
            text,
            digest: config.digest.clone(),
            since: Timestamp::now(),
            restart,
        }));
    }
}

/// Upstreams without whose usable addresses this target asks for no traffic.
pub(super) fn needed(config: &Config, upstreams: &[Arc<Upstream>]) -> Arc<[Arc<Upstream>]> {
    let needed = config.fail_without.iter();
    needed.map(|index| upstreams[*index].clone()).collect()
}

/// What each worker is given of a configuration.
pub(super) fn shares(
    config: &Arc<Config>,
    doors: Vec<Vec<crate::worker::Door>>,
    upstreams: &[Arc<Upstream>],
    policy: &Arc<Policy>,
) -> Vec<Share> {
    let consumers = Arc::new(config.consumers.clone());
    let share = |doors| Share {
        config: config.clone(),
        consumers: consumers.clone(),
        policy: policy.clone(),
        upstreams: upstreams.to_vec(),
        doors,
    };
    doors.into_iter().map(share).collect()
}

fn read(path: &Path) -> Result<(Config, String), Declined> {
    let declined = |error: &config::Error| Declined {
        kind: match error.kind() {
            ErrorKind::Missing => DeclinedKind::Missing,
            ErrorKind::Permission => DeclinedKind::Permission,
            ErrorKind::Configuration | ErrorKind::Usage => DeclinedKind::Configuration,
        },
        why: error.to_string(),
    };
    let unreadable = |source| {
        let path = path.to_owned();
        declined(&config::Error::Unreadable { path, source })
    };
    // Of a pipe nobody knows when it ends, or whether anybody writes into it: opening it must not wait either.
    let flags = OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
    let file = open(path, OFlags::RDONLY | flags, Mode::empty());
    let file = File::from(file.map_err(|errno| unreadable(errno.into()))?);
    if !file.metadata().map_err(unreadable)?.is_file() {
        let why = "it is no regular file";
        return Err(unreadable(io::Error::new(io::ErrorKind::InvalidInput, why)));
    }
    Config::read_from(file, path).map_err(|error| declined(&error))
}

fn failed(error: &dyn std::fmt::Display) -> Declined {
    Declined {
        kind: DeclinedKind::Failed,
        why: format!("the file could not be read: {error}"),
    }
}
