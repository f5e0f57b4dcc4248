//! `GET /top`: who is busy now, for `tollgate top`.
//!
//! What happens in a second is told from two looks at the books, so that something has to be remembered between two questions: once, however many
//! ask, and only while somebody does.

use std::cmp::Ordering;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::View;

use crate::account::{AccountTotals, Direction, Snapshot};
use crate::config::{EndpointEntry, Endpoints};
use crate::glob::matches_glob;
use crate::upstream::Upstream;

/// Between two looks from which rates are told, at least.
const APART: Duration = Duration::from_millis(900);

/// Between them at most: beyond, it would be no rate of now.
const STALE: Duration = Duration::from_secs(20);

/// Who asks within this time after another is told the same.
const SAME: Duration = Duration::from_millis(250);

/// What is remembered is forgotten when nobody asked for so long.
const FORGOTTEN: Duration = Duration::from_secs(30);

/// Most endpoints, and most addresses, of one answer.
const MOST: usize = 1000;

/// Most globs of the configuration that a name is looked for in, for each endpoint.
const MOST_GLOBS: usize = 100;

/// What is going on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Live {
    /// Of the relay's program.
    pub version: String,
    /// Whether it takes part, or how far it is on its way out.
    pub phase: String,
    /// Since it began to serve.
    pub uptime_seconds: u64,
    /// Open now.
    pub sessions: u64,
    /// Without a whole header now.
    pub pending: u64,
    /// Of all together, those whose endpoint is not known included; `None` until there are two looks.
    pub rates: Option<Rates>,
    /// How many endpoints there are, and how many of them fit the filter.
    pub endpoints_in_all: usize,
    /// See there.
    pub endpoints_found: usize,
    /// The first of them, in the order that was asked for.
    pub endpoints: Vec<Row>,
    /// How many upstream addresses there are.
    pub addresses_in_all: usize,
    /// Those that do not serve first.
    pub addresses: Vec<Address>,
}

/// What happens in a second.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Rates {
    /// Sessions opened.
    pub opened: f64,
    /// Connections refused.
    pub refused: f64,
    /// Payload bytes.
    pub bytes_to_upstream: f64,
    /// Payload bytes.
    pub bytes_to_client: f64,
}

/// An endpoint, over all listeners and upstreams.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// Its id.
    pub endpoint: String,
    /// The consumer behind it, where one is configured.
    pub consumer: String,
    /// What the configuration calls it.
    pub name: String,
    /// Who pays for it.
    pub account: String,
    /// Open now.
    pub sessions: u64,
    /// Payload since its accounts are in memory, both ways.
    pub bytes: u64,
    /// `None` until there are two looks.
    pub rates: Option<Rates>,
}

/// An address of an upstream.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Address {
    /// Whose it is.
    pub upstream: String,
    /// Itself.
    pub address: String,
    /// What is thought of it.
    pub state: String,
    /// Why, where it does not serve.
    pub why: String,
    /// Its group.
    pub priority: u32,
    /// Open now.
    pub sessions: u64,
    /// Opened so far.
    pub opened: u64,
    /// The round trip, as its connections last saw it.
    pub rtt_ms: Option<f64>,
    /// How long connecting takes.
    pub connect_ms: Option<f64>,
}

/// In which order endpoints are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Sort {
    /// Bytes in a second, both ways
    #[default]
    Rate,
    /// Bytes in a second to the upstream
    ToUpstream,
    /// Bytes in a second to the client
    ToClient,
    /// Sessions that are open
    Sessions,
    /// Sessions opened in a second
    Opened,
    /// Connections refused in a second
    Refused,
    /// Bytes so far, both ways
    Bytes,
    /// The id
    Endpoint,
}

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// The order.
    pub sort: Sort,
    /// Only endpoints in whose id, consumer, name or account this stands.
    pub filter: String,
    /// So many at most.
    pub rows: usize,
}

impl Default for Asked {
    fn default() -> Self {
        Self {
            sort: Sort::default(),
            filter: String::new(),
            rows: 100,
        }
    }
}

/// What only grows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Counted {
    opened: u64,
    refused: u64,
    bytes: [u64; Direction::ALL.len()],
}

impl Counted {
    fn of(account: &AccountTotals) -> Self {
        Self {
            opened: account.counters.opened,
            refused: account.counters.refused(),
            bytes: account.counters.bytes,
        }
    }

    fn add(&mut self, other: Self) {
        self.opened += other.opened;
        self.refused += other.refused;
        for (sum, more) in self.bytes.iter_mut().zip(other.bytes) {
            *sum += more;
        }
    }

    /// What an account that left memory had counted is missing from what follows.
    #[expect(
        clippy::cast_precision_loss,
        reason = "a rate of 2^53 bytes a second is not told apart from the next one"
    )]
    fn since(&self, before: &Self, time: Duration) -> Rates {
        let per_second =
            |now: u64, before: u64| now.saturating_sub(before) as f64 / time.as_secs_f64();
        let bytes = |direction: Direction| {
            let direction = direction as usize;
            per_second(self.bytes[direction], before.bytes[direction])
        };
        Rates {
            opened: per_second(self.opened, before.opened),
            refused: per_second(self.refused, before.refused),
            bytes_to_upstream: bytes(Direction::ToUpstream),
            bytes_to_client: bytes(Direction::ToClient),
        }
    }
}

/// Endpoint and consumer.
type Key = (Arc<str>, Arc<str>);

/// A row in the making: there may be very many, of which few are told.
struct Line<'a> {
    key: &'a Key,
    sessions: u64,
    bytes: u64,
    rates: Option<Rates>,
}

impl Line<'_> {
    fn told(&self, endpoints: &Endpoints) -> Row {
        let named = endpoints.named(&self.key.0);
        Row {
            endpoint: self.key.0.to_string(),
            consumer: self.key.1.to_string(),
            name: named.name.to_string(),
            account: named.account.to_string(),
            sessions: self.sessions,
            bytes: self.bytes,
            rates: self.rates,
        }
    }
}

/// One look at the books.
#[derive(Debug)]
struct Look {
    at: Instant,
    rows: HashMap<Key, (Counted, u64)>,
    all: Counted,
}

impl Look {
    fn at(snapshot: &Snapshot, at: Instant) -> Self {
        let mut rows: HashMap<Key, (Counted, u64)> = HashMap::new();
        let mut all = Counted::default();
        for account in &snapshot.accounts {
            let key = (account.key.endpoint.clone(), account.key.consumer.clone());
            let (counted, active) = rows.entry(key).or_default();
            counted.add(Counted::of(account));
            *active += account.counters.active();
            all.add(Counted::of(account));
        }
        for account in &snapshot.gone {
            all.add(Counted::of(account));
        }
        // The listeners know of those as well whose endpoint nobody knew.
        let refused = snapshot.listeners.iter().flat_map(|listener| {
            let refused = listener.refused.iter();
            refused.chain(&listener.header_errors)
        });
        all.refused = refused.sum();
        Self { at, rows, all }
    }
}

/// A look with what happened since another.
#[derive(Debug)]
struct Table {
    look: Arc<Look>,
    before: Option<Arc<Look>>,
}

impl Table {
    fn rates(&self) -> Option<Rates> {
        let before = self.before.as_ref()?;
        let time = self.look.at.duration_since(before.at);
        Some(self.look.all.since(&before.all, time))
    }

    fn line<'a>(&self, key: &'a Key, (counted, sessions): &(Counted, u64)) -> Line<'a> {
        let rates = self.before.as_ref().map(|before| {
            let time = self.look.at.duration_since(before.at);
            let then = before.rows.get(key).map(|(counted, _)| *counted);
            counted.since(&then.unwrap_or_default(), time)
        });
        Line {
            key,
            sessions: *sessions,
            bytes: counted.bytes.iter().sum(),
            rates,
        }
    }
}

/// What is remembered between two questions.
#[derive(Debug, Default)]
pub(super) struct Looks(Mutex<Remembered>);

#[derive(Debug, Default)]
struct Remembered {
    asked: Option<Instant>,
    older: Option<Arc<Look>>,
    newer: Option<Arc<Look>>,
    told: Option<Arc<Table>>,
}

impl Looks {
    /// Who asks at once is answered one by one.
    fn look(&self, snapshot: impl FnOnce() -> Snapshot) -> Arc<Table> {
        let mut remembered = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        remembered.look(now, || Look::at(&snapshot(), now))
    }

    /// Forgets what nobody asked for any more; says whether there was nothing left to forget.
    fn forget(&self) -> bool {
        let mut remembered = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let asked = remembered.asked;
        let over = asked.is_none_or(|asked| asked.elapsed() >= FORGOTTEN);
        if over {
            *remembered = Remembered::default();
        }
        over
    }

    /// Whoever asks first has somebody look after what is remembered.
    pub(super) fn keep(self: &Arc<Self>) {
        let looks = self.clone();
        let mut remembered = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if remembered.asked.replace(Instant::now()).is_none() {
            tokio::spawn(async move {
                while !looks.forget() {
                    tokio::time::sleep(FORGOTTEN).await;
                }
            });
        }
    }
}

impl Remembered {
    fn look(&mut self, now: Instant, look: impl FnOnce() -> Look) -> Arc<Table> {
        self.asked = Some(now);
        if let Some(told) = &self.told
            && now.duration_since(told.look.at) < SAME
        {
            return told.clone();
        }
        let look = Arc::new(look());
        let fits = |before: &&Arc<Look>| {
            let apart = now.duration_since(before.at);
            (APART..STALE).contains(&apart)
        };
        let newer = self.newer.as_ref();
        let before = newer.filter(fits).or(self.older.as_ref().filter(fits));
        let table = Arc::new(Table {
            look: look.clone(),
            before: before.cloned(),
        });
        if self
            .newer
            .as_ref()
            .is_none_or(|newer| now.duration_since(newer.at) >= APART)
        {
            self.older = self.newer.replace(look);
        }
        self.told = Some(table.clone());
        table
    }
}

/// Answers, in the order and with as many endpoints as was asked for.
pub(super) fn live(looks: &Looks, view: &View, asked: &Asked) -> Live {
    let table = looks.look(|| view.books.snapshot());
    let in_force = view.in_force();
    let (endpoints, upstreams) = (&in_force.endpoints, &in_force.upstreams);
    let filter = Filter::new(&asked.filter, endpoints);
    let found = table.look.rows.iter().filter(|(key, _)| filter.fits(key));
    let mut lines: Vec<Line<'_>> = found.map(|(key, value)| table.line(key, value)).collect();
    let endpoints_found = lines.len();
    first(&mut lines, asked.sort, asked.rows.min(MOST));
    let mut addresses: Vec<Address> = upstreams
        .iter()
        .flat_map(|upstream| addresses(upstream))
        .collect();
    let addresses_in_all = addresses.len();
    if addresses.len() > MOST {
        addresses.sort_by_key(|address| address.why.is_empty());
        addresses.truncate(MOST);
    }
    Live {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        phase: view.readiness.stand.borrow().phase.name().to_owned(),
        uptime_seconds: view.began.elapsed().as_secs(),
        sessions: table.look.rows.values().map(|(_, sessions)| sessions).sum(),
        pending: in_force
            .rooms
            .iter()
            .map(|room| room.pending.taken() as u64)
            .sum(),
        rates: table.rates(),
        endpoints_in_all: table.look.rows.len(),
        endpoints_found,
        endpoints: lines.iter().map(|line| line.told(endpoints)).collect(),
        addresses_in_all,
        addresses,
    }
}

/// The first so many, in their order.
fn first(lines: &mut Vec<Line<'_>>, sort: Sort, most: usize) {
    if most < lines.len() {
        lines.select_nth_unstable_by(most, |a, b| order(a, b, sort));
        lines.truncate(most);
    }
    lines.sort_by(|a, b| order(a, b, sort));
}

fn order(a: &Line<'_>, b: &Line<'_>, sort: Sort) -> Ordering {
    let rate = |of: fn(&Rates) -> f64| {
        let rate = |line: &Line<'_>| line.rates.as_ref().map_or(0.0, of);
        rate(b).total_cmp(&rate(a))
    };
    let by = match sort {
        Sort::Rate => rate(|rates| rates.bytes_to_upstream + rates.bytes_to_client),
        Sort::ToUpstream => rate(|rates| rates.bytes_to_upstream),
        Sort::ToClient => rate(|rates| rates.bytes_to_client),
        Sort::Sessions => b.sessions.cmp(&a.sessions),
        Sort::Opened => rate(|rates| rates.opened),
        Sort::Refused => rate(|rates| rates.refused),
        Sort::Bytes => Ordering::Equal,
        Sort::Endpoint => a.key.cmp(b.key),
    };
    // Those alike by what they have moved so far, which stays as it is from look to look.
    by.then_with(|| b.bytes.cmp(&a.bytes))
        .then_with(|| a.key.cmp(b.key))
}

/// Which endpoints are wanted.
struct Filter<'a> {
    text: String,
    /// Ids whose name or account fits.
    ids: HashSet<&'a str>,
    /// The same for several.
    globs: Vec<&'a str>,
}

impl<'a> Filter<'a> {
    fn new(text: &str, endpoints: &'a Endpoints) -> Self {
        let text = text.to_lowercase();
        let fits = |words: &Option<Arc<str>>| {
            words
                .as_ref()
                .is_some_and(|words| words.to_lowercase().contains(&text))
        };
        let named = endpoints.entries.iter();
        let named =
            named.filter(|entry| !text.is_empty() && (fits(&entry.name) || fits(&entry.account)));
        let (ids, globs): (Vec<_>, Vec<_>) = named.partition(|entry| EndpointEntry::is_id(entry));
        let pattern = |entry: &'a EndpointEntry| &*entry.pattern;
        Self {
            ids: ids.into_iter().map(pattern).collect(),
            globs: globs.into_iter().map(pattern).take(MOST_GLOBS).collect(),
            text,
        }
    }

    fn fits(&self, (endpoint, consumer): &Key) -> bool {
        self.text.is_empty()
            || endpoint.to_lowercase().contains(&self.text)
            || consumer.to_lowercase().contains(&self.text)
            || self.ids.contains(&**endpoint)
            || self.globs.iter().any(|glob| matches_glob(glob, endpoint))
    }
}

fn addresses(upstream: &Upstream) -> Vec<Address> {
    let standing = upstream.standing();
    let millis = |time: Option<Duration>| time.map(|time| time.as_secs_f64() * 1000.0);
    let members = standing
        .members
        .iter()
        .map(|(member, state)| (member, state.name()));
    let gone = standing.gone.iter().map(|member| (member, "vanished"));
    let told = members.chain(gone).map(|(member, state)| Address {
        upstream: upstream.name.to_string(),
        address: member.address.at.to_string(),
        state: state.to_owned(),
        why: match state {
            "usable" => String::new(),
            _ => member.why.to_string(),
        },
        priority: member.priority,
        sessions: member.address.sessions().into(),
        opened: member.address.opened(),
        rtt_ms: millis(member.address.rtt()),
        connect_ms: millis(member.address.connect_time()),
    });
    told.collect()
}

#[cfg(test)]
#[path = "live_tests.rs"]
mod tests;
