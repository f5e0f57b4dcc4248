//! What a reload replaces of what the admin side sees, and what became of reloads.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use jiff::Timestamp;
use prometheus::proto::MetricFamily;
use serde_json::{Value, json};

use super::Room;
use super::family::{Family, counter, gauge};
use crate::config::Endpoints;
use crate::upstream::Upstream;

/// What is in force; swapped whole.
#[derive(Debug)]
pub struct Configured {
    /// The upstreams, in the order of the configuration.
    pub upstreams: Vec<Arc<Upstream>>,
    /// Room in each listener, in the order of the configuration.
    pub rooms: Vec<Room>,
    /// What endpoints are called.
    pub endpoints: Endpoints,
    /// Where it was read from; `None`: from the command line.
    pub path: Option<PathBuf>,
    /// What was read.
    pub text: Arc<str>,
    /// What the audit trail knows it by.
    pub digest: Arc<str>,
    /// Since when.
    pub since: Timestamp,
    /// Keys that wait for a restart: the file has another value than the one in force.
    pub restart: Vec<String>,
}

/// What became of reloads.
#[derive(Debug, Default)]
pub struct Reloads {
    counts: [AtomicU64; Reloaded::ALL.len()],
    /// Why the last one failed, if it did.
    failed: Mutex<Option<(Timestamp, String)>>,
}

/// How a reload ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reloaded {
    /// Another configuration is in force.
    Applied,
    /// The file means what it meant.
    Unchanged,
    /// Nothing has changed, because it cannot.
    Failed,
}

impl Reloaded {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Applied, Self::Unchanged, Self::Failed];

    /// As `/metrics` calls it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Applied => "applied",
            Self::Unchanged => "unchanged",
            Self::Failed => "failed",
        }
    }
}

impl Reloads {
    /// One ended like this; `why` is said of one that failed.
    pub fn ended(&self, how: Reloaded, why: Option<String>) {
        self.counts[how as usize].fetch_add(1, Relaxed);
        let why = why.map(|why| (Timestamp::now(), why));
        *self.failed.lock().unwrap_or_else(PoisonError::into_inner) = why;
    }

    fn last_failure(&self) -> Option<(Timestamp, String)> {
        let failed = self.failed.lock();
        failed.unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// For `/status`.
pub(super) fn status(in_force: &Configured, reloads: &Reloads) -> Value {
    let failed = reloads.last_failure();
    json!({
        "path": in_force.path,
        "digest": &*in_force.digest,
        "loaded": in_force.since,
        "restart": in_force.restart,
        "last_error": failed.map(|(at, why)| json!({ "at": at, "why": why })),
    })
}

/// For `/metrics`.
pub(super) fn families(in_force: &Configured, reloads: &Reloads) -> [MetricFamily; 4] {
    let mut count = counter(
        "tollgate_config_reloads_total",
        "Times that the configuration was read again, by what became of it.",
    );
    for how in Reloaded::ALL {
        let n = reloads.counts[how as usize].load(Relaxed);
        count.add(&[("result", how.name())], n);
    }
    let mut failing = gauge(
        "tollgate_config_last_reload_failed",
        "1: the file could not be put into force when it was read last; what was in force still is.",
    );
    failing.add(&[], u64::from(reloads.last_failure().is_some()));
    let mut since = gauge(
        "tollgate_config_loaded_timestamp_seconds",
        "When the configuration in force was read.",
    );
    since.add(&[], u64::try_from(in_force.since.as_second()).unwrap_or(0));
    let mut pending = gauge(
        "tollgate_config_restart_pending",
        "Keys that have another value in the file, and get it with a restart.",
    );
    pending.add(&[], in_force.restart.len() as u64);
    [count, failing, since, pending].map(Family::into_proto)
}
