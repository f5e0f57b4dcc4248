//! What of the configuration is about the books: where they are kept, for how long, and by which names.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use super::PolicyKeys;
use crate::glob::matches_glob;

/// `[accounts]`.
#[derive(Debug, Clone, Copy)]
pub struct Accounts {
    /// Most accounts kept; connections of further endpoints are booked to `overflow`.
    pub max: usize,
    /// How long an account without a session stays in memory once it is booked.
    pub idle_after: Duration,
}

/// `[ledger]`.
#[derive(Debug, Clone, Copy)]
pub struct Ledger {
    /// Between two bookings.
    pub interval: Duration,
    /// How long an hour is kept.
    pub keep: Duration,
    /// For how long booking may fail before `/readyz` asks for no more traffic; `None`: for ever.
    pub unready_after: Option<Duration>,
}

/// `[audit]`.
#[derive(Debug, Clone)]
pub struct Audit {
    /// Where records go.
    pub sink: Sink,
    /// Between two `progress` records of a session; `None`: there are none.
    pub interval: Option<Duration>,
    /// What happens when records come faster than the sink takes them.
    pub on_full: OnFull,
    /// The secret that the chain is made with; without one it is a plain hash.
    pub key_file: Option<PathBuf>,
    /// A file as large as this, in bytes, is followed by a new one.
    pub rotate_size: u64,
    /// A file as old as this is followed by a new one.
    pub rotate_age: Option<Duration>,
}

/// `[audit] sink`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sink {
    /// Nowhere: there are no records.
    Off,
    /// Standard output.
    Stdout,
    /// A file, rotated.
    File(PathBuf),
}

/// `[audit] on_full`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnFull {
    /// Records are dropped, counted, and the gap is recorded.
    Drop,
    /// No session is opened that could not be recorded; live ones go on.
    Block,
}

/// `[endpoint."ID or glob"]`, all of them.
#[derive(Debug, Clone, Default)]
pub struct Endpoints {
    /// The most specific first: ids, by what they are, then globs, a longer before a shorter one.
    pub entries: Vec<EndpointEntry>,
}

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointEntry {
    /// The id, or a glob for several.
    pub pattern: Arc<str>,
    /// What people call it.
    pub name: Option<Arc<str>>,
    /// Who pays for it.
    pub account: Option<Arc<str>>,
    /// Anything else worth knowing.
    pub tags: Option<Vec<Arc<str>>>,
    /// What it may.
    pub policy: PolicyKeys,
}

/// What is known of an endpoint beside its id. Empty where nothing is configured.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Named {
    /// What people call it.
    pub name: Arc<str>,
    /// Who pays for it.
    pub account: Arc<str>,
    /// Anything else worth knowing, joined by spaces.
    pub tags: Arc<str>,
}

impl EndpointEntry {
    /// Whether it is about one id only.
    #[must_use]
    pub fn is_id(&self) -> bool {
        !self.pattern.contains('*')
    }
}

impl Endpoints {
    /// The entries that are about `endpoint`, the most specific first.
    pub fn about<'a>(&'a self, endpoint: &'a str) -> impl Iterator<Item = &'a EndpointEntry> {
        // There may be thousands of ids, and this is asked for as many endpoints at once.
        let (ids, globs) = self
            .entries
            .split_at(self.entries.partition_point(EndpointEntry::is_id));
        let id = ids.binary_search_by(|entry| (*entry.pattern).cmp(endpoint));
        let fits = move |entry: &&EndpointEntry| matches_glob(&entry.pattern, endpoint);
        let id = id.ok().map(|id| &ids[id]);
        id.into_iter().chain(globs.iter().filter(fits))
    }

    /// What is said of `endpoint`: the most specific entry wins, key by key.
    #[must_use]
    pub fn named(&self, endpoint: &str) -> Named {
        let entries: Vec<_> = self.about(endpoint).collect();
        let first = |of: &dyn Fn(&EndpointEntry) -> Option<Arc<str>>| {
            entries
                .iter()
                .find_map(|entry| of(entry))
                .unwrap_or_default()
        };
        Named {
            name: first(&|entry| entry.name.clone()),
            account: first(&|entry| entry.account.clone()),
            tags: first(&|entry| Some(entry.tags.as_ref()?.join(" ").into())),
        }
    }

    /// The ids that are configured one by one: they never overflow.
    pub fn ids(&self) -> impl Iterator<Item = &Arc<str>> {
        let ids = self.entries.iter().filter(|entry| entry.is_id());
        ids.map(|entry| &entry.pattern)
    }
}

/// `[[consumer]]`: a name for those behind one shared endpoint, by where they come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Consumer {
    /// Its name in the books.
    pub name: Arc<str>,
    /// The endpoints it comes through, ids or globs; any where empty.
    pub endpoints: Vec<Arc<str>>,
    /// The network it comes from.
    pub network: IpNet,
}

/// All consumers, one entry for each of their networks.
#[derive(Debug, Clone, Default)]
pub struct Consumers {
    /// The longest prefix first, and those alike in the order of the file.
    pub entries: Vec<Consumer>,
}

impl Consumers {
    /// The consumer that a client at `address` behind `endpoint` is, by its place in `entries`: the one with the longest prefix. Looks through them
    /// one by one.
    #[must_use]
    pub fn find(&self, endpoint: &str, address: IpAddr) -> Option<usize> {
        let address = address.to_canonical();
        self.entries.iter().position(|consumer| {
            let through = || {
                let mut endpoints = consumer.endpoints.iter();
                consumer.endpoints.is_empty() || endpoints.any(|glob| matches_glob(glob, endpoint))
            };
            consumer.network.contains(&address) && through()
        })
    }
}
