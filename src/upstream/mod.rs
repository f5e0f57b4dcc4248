//! Where connections go: a named group of targets, resolved in the background, never per connection.
//!
//! The control thread keeps each target's addresses fresh ([`named`], by the decisions of [`addresses`] and [`pace`]; names are looked up by
//! the [`resolver`], in the files of the [`system`] or by a [`question`] whose [`answer`] is read and sifted), decides which of them serve
//! ([`roster`], from answers, failures and the health checks that [`health`] makes with [`probe`]) and publishes one immutable [`Snapshot`] per upstream.
//! A worker chooses from it ([`balance`]) and dials ([`connect`]), or takes a connection that it dialled [`ahead`]; what all of them find out
//! about an address is kept at that [`address`], as seen last and as a [`distribution`].

pub mod address;
pub mod addresses;
pub mod ahead;
pub mod answer;
pub mod balance;
pub mod connect;
pub mod distribution;
pub mod health;
pub mod named;
pub mod pace;
pub mod probe;
pub mod question;
pub mod resolver;
pub mod roster;
#[cfg(test)]
mod roster_tests;
pub mod snapshot;
pub mod state;
#[cfg(test)]
mod successor_tests;
pub mod system;

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prometheus::Histogram;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until};
use tracing::{info, warn};

use crate::config::{self, Family};
use roster::{Counts, Member, Roster};
use snapshot::Snapshot;
use state::{Event, State};

/// Upper ends of the connect histogram's buckets, in seconds: a zone, a Region next door, the other side of the world, lost SYNs.
const CONNECT_BUCKETS: [f64; 12] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0,
];

/// One upstream, as workers and the admin side see it.
#[derive(Debug)]
pub struct Upstream {
    /// Another for each name; what follows an upstream with other settings keeps it.
    pub id: usize,
    /// Its name in the configuration.
    pub name: Arc<str>,
    /// Its settings.
    pub settings: config::Upstream,
    /// Time from SYN to SYN-ACK of connections that were made.
    pub connect_seconds: Histogram,
    /// What its dialers did.
    pub dialled: Arc<Dialled>,
    published: watch::Sender<Arc<Snapshot>>,
    /// A worker could not connect: look the names up again.
    refresh: Notify,
    /// The roster has something to look at.
    attention: Arc<Notify>,
    known: Mutex<Known>,
}

/// What the control thread knows; the admin side looks.
#[derive(Debug)]
struct Known {
    roster: Roster,
    targets: Vec<TargetState>,
    /// An answer changed something that the workers have not been shown yet.
    changed: bool,
    /// When the next change may be shown.
    again: Instant,
}

/// Each change is shown at once where there are no more targets than this.
const FEW_TARGETS: usize = 64;

/// How often changes are shown where there are more: each costs a look at all of them.
const BETWEEN_CHANGES: Duration = Duration::from_millis(200);

/// What the dialers of all workers did, counted per connection.
#[derive(Debug, Default)]
pub struct Dialled {
    /// Connects that failed or were overtaken by another address.
    pub failures: AtomicU64,
    /// Tries beyond the first of a session.
    pub retries: AtomicU64,
    /// Tries that the retry budget did not allow.
    pub denied: AtomicU64,
    /// Connections dialled ahead that wait for a session now.
    pub waiting: AtomicU64,
    /// What became of connections dialled ahead, and of sessions that looked for one.
    pub ahead: [AtomicU64; AheadOutcome::ALL.len()],
}

/// What became of a connection dialled ahead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AheadOutcome {
    /// A session has it.
    Taken,
    /// There was none for a session, which dialled itself.
    Missed,
    /// The upstream closed it while it waited, or it was dead when it was taken.
    Stale,
    /// It became too old, or its address serves no longer.
    Expired,
    /// It could not be made.
    Failed,
}

impl AheadOutcome {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Taken,
        Self::Missed,
        Self::Stale,
        Self::Expired,
        Self::Failed,
    ];

    /// As `/metrics` calls it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Taken => "taken",
            Self::Missed => "missed",
            Self::Stale => "stale",
            Self::Expired => "expired",
            Self::Failed => "failed",
        }
    }
}

impl Dialled {
    /// Counts what became of a connection dialled ahead.
    pub fn count(&self, outcome: AheadOutcome) {
        self.ahead[outcome as usize].fetch_add(1, Relaxed);
    }
}

/// What is known of one target: for `/status` and `/metrics`.
#[derive(Debug, Clone)]
pub struct TargetState {
    /// `host:port` as configured.
    pub target: String,
    /// Its addresses in use.
    pub addresses: Vec<SocketAddr>,
    /// Looked up at least once.
    pub looked_up: bool,
    /// When the last good answer came; never for literal addresses.
    pub answered: Option<Instant>,
    /// When it is looked up next.
    pub next: Option<Instant>,
    /// There is no good answer now: the last good one serves, or nothing does.
    pub stale: bool,
    /// What is amiss: why look-ups fail, for one family of addresses at least, and which addresses are left out.
    pub failure: Option<String>,
    /// Look-ups that failed.
    pub failures: u64,
    /// When the first of the answers in use ends; never for literal addresses.
    pub ttl_ends: Option<Instant>,
}

/// How an upstream stands: for `/status` and `/metrics`.
#[derive(Debug)]
pub struct Standing {
    /// Each target.
    pub targets: Vec<TargetState>,
    /// Each address.
    pub members: Vec<(Member, State)>,
    /// Addresses that left and still have sessions.
    pub gone: Vec<Member>,
    /// Priority of the group that serves.
    pub serving: u32,
    /// Each group and the usable part of its weight in percent; `None`: it has no address.
    pub groups: Vec<(u32, Option<u32>)>,
    /// What happened so far.
    pub counts: Counts,
}

impl Upstream {
    /// An upstream whose literal targets are known and whose names are yet to be looked up. No other upstream has this `id`.
    ///
    /// # Panics
    /// Never: the histogram's buckets are constant and in order.
    #[must_use]
    pub fn new(id: usize, settings: &config::Upstream, family: Family) -> Self {
        Self::knowing(id, settings, family, |_| None)
    }

    /// The same, with what is `known` of its targets already.
    #[must_use]
    pub fn knowing(
        id: usize,
        settings: &config::Upstream,
        family: Family,
        known: impl Fn(&config::Target) -> Option<TargetState>,
    ) -> Self {
        let options = prometheus::HistogramOpts::new(
            "tollgate_upstream_connect_seconds",
            "Time from SYN to SYN-ACK of connections made to an upstream.",
        );
        let options = options
            .const_label("upstream", &*settings.name)
            .buckets(CONNECT_BUCKETS.to_vec());
        let targets = settings.targets.iter();
        let target = |target| known(target).unwrap_or_else(|| TargetState::new(target));
        let targets: Vec<TargetState> = targets.map(target).collect();
        let attention = Arc::new(Notify::new());
        let mut roster = Roster::new(id, settings.clone(), family, attention.clone());
        let now = Instant::now();
        for (index, target) in targets.iter().enumerate() {
            roster.resolved(index, target.looked_up, &target.addresses, now);
        }
        roster.look(now);
        roster.take_events(); // there was nothing before that could have changed
        let shown = Arc::new(roster.snapshot(now));
        let connect_seconds = Histogram::with_opts(options).expect("constant buckets in order");
        let dialled = Arc::default();
        let counted = (connect_seconds, dialled);
        Self::with(settings, targets, roster, (attention, counted), shown)
    }

    /// What follows it with other settings. Targets that are in both go on with what is known of them, addresses with what is thought of them,
    /// numbers with what was counted; connections on an address that is in neither its targets nor their answers any more have lost it as if it
    /// had left the answers.
    ///
    /// It shows what this one shows until it is told to [`take up`](Self::take_up) what changed.
    #[must_use]
    pub fn successor(&self, settings: &config::Upstream, family: Family) -> Self {
        let targets = settings.targets.iter();
        let target = |target| {
            self.knows(target)
                .unwrap_or_else(|| TargetState::new(target))
        };
        let targets = targets.map(target).collect();
        let roster = self.known().roster.successor(settings.clone(), family);
        let counted = (self.connect_seconds.clone(), self.dialled.clone());
        let shown = self.snapshot();
        Self::with(
            settings,
            targets,
            roster,
            (self.attention.clone(), counted),
            shown,
        )
    }

    /// It is in no configuration any more: as far as its sessions are concerned its addresses have left, but for those that others have.
    pub fn leave(&self, in_use: &HashSet<SocketAddr>) {
        let known = self.known();
        let addresses = known.roster.members().iter().map(|member| &member.address);
        addresses
            .filter(|address| !in_use.contains(&address.at))
            .for_each(|address| address.set_present(false));
    }

    /// What it knows of a target, which may be another upstream's.
    #[must_use]
    pub fn knows(&self, target: &config::Target) -> Option<TargetState> {
        let known = self.known();
        let mut mine = self.settings.targets.iter().zip(&known.targets);
        let same = |mine: &config::Target| (&mine.host, mine.port) == (&target.host, target.port);
        mine.find(|(mine, _)| same(mine))
            .map(|(_, known)| known.clone())
    }

    /// Shows what it knows by now, where it follows another.
    pub fn take_up(&self) {
        let mut known = self.known();
        let Known {
            roster,
            targets,
            changed,
            ..
        } = &mut *known;
        let now = Instant::now();
        for (index, target) in targets.iter().enumerate() {
            roster.resolved(index, target.looked_up, &target.addresses, now);
        }
        *changed = true;
        self.look(&mut known, now);
    }

    fn with(
        settings: &config::Upstream,
        targets: Vec<TargetState>,
        roster: Roster,
        (attention, (connect_seconds, dialled)): (Arc<Notify>, (Histogram, Arc<Dialled>)),
        shown: Arc<Snapshot>,
    ) -> Self {
        let (published, _) = watch::channel(shown);
        Self {
            id: roster.id(),
            name: settings.name.clone(),
            settings: settings.clone(),
            connect_seconds,
            dialled,
            published,
            refresh: Notify::new(),
            attention,
            known: Mutex::new(Known {
                roster,
                targets,
                changed: false,
                again: Instant::now(),
            }),
        }
    }

    /// What a target's predecessor knew: its addresses, and since when.
    fn remembered(&self, target: usize) -> Option<(Vec<IpAddr>, Instant)> {
        let known = self.known();
        let target = &known.targets[target];
        let addresses: Vec<_> = target.addresses.iter().map(SocketAddr::ip).collect();
        Some((addresses, target.answered?)).filter(|(addresses, _)| !addresses.is_empty())
    }

    /// The addresses as they are now.
    #[must_use]
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.published.borrow().clone()
    }

    /// The addresses as they change.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.published.subscribe()
    }

    /// How it stands.
    #[must_use]
    pub fn standing(&self) -> Standing {
        let known = self.known();
        let now = Instant::now();
        let roster = &known.roster;
        let state = |member: &Member| member.state(now, self.settings.slow_start);
        let groups = roster.groups().into_iter();
        Standing {
            targets: known.targets.clone(),
            members: roster
                .members()
                .iter()
                .map(|member| (member.clone(), state(member)))
                .collect(),
            gone: roster.gone().cloned().collect(),
            serving: roster.serving(),
            groups: groups.map(|group| (group, roster.share(group))).collect(),
            counts: roster.counts(),
        }
    }

    /// Looks at what failures and time change, for ever; and takes up answers that came too fast to be taken up one by one.
    pub async fn keep(&self) {
        loop {
            let (next, changed, again) = {
                let known = self.known();
                (known.roster.next(), known.changed, known.again)
            };
            tokio::select! {
                () = self.attention.notified() => {}
                () = until(next) => {}
                () = sleep_until(again), if changed => {}
            }
            let (mut known, now) = (self.known(), Instant::now());
            if !known.changed || now >= known.again {
                self.look(&mut known, now);
            }
        }
    }

    /// Records what a health check found.
    pub fn probed(&self, address: SocketAddr, result: Result<(), String>) {
        let mut known = self.known();
        known.roster.probed(address, result, Instant::now());
        self.publish(&mut known, false);
    }

    /// Records what became of looking a target up.
    fn update(&self, target: usize, update: impl FnOnce(&mut TargetState)) {
        let mut known = self.known();
        let Known {
            roster,
            targets,
            changed,
            ..
        } = &mut *known;
        update(&mut targets[target]);
        let (state, now) = (&targets[target], Instant::now());
        *changed |= roster.resolved(target, state.looked_up, &state.addresses, now);
        if !*changed {
            return;
        }
        match now >= known.again {
            true => self.look(&mut known, now),
            false => self.attention.notify_one(),
        }
    }

    fn look(&self, known: &mut Known, now: Instant) {
        known.roster.look(now);
        let changed = std::mem::take(&mut known.changed);
        self.publish(known, changed);
        if changed && known.targets.len() > FEW_TARGETS {
            known.again = now + BETWEEN_CHANGES;
        }
    }

    /// Shows the workers what changed, and says it.
    fn publish(&self, known: &mut Known, changed: bool) {
        let events = known.roster.take_events();
        if !changed && events.is_empty() {
            return;
        }
        let snapshot = known.roster.snapshot(Instant::now());
        self.published.send_replace(Arc::new(snapshot));
        self.attention.notify_one(); // it may have to look earlier than it thought
        let upstream = &*self.name;
        for event in events {
            match event {
                Event::Address {
                    at,
                    before,
                    state,
                    why,
                } => {
                    let (address, serves, state) = (at, state.serves(), state.name());
                    match (before.serves(), serves) {
                        (true, false) => {
                            warn!(upstream, %address, state, why, "address serves no longer")
                        }
                        (_, true) => info!(upstream, %address, state, why, "address serves again"),
                        (false, false) => {
                            info!(upstream, %address, state, why, "address does not serve yet")
                        }
                    }
                }
                Event::Group { from, to, why } => {
                    warn!(upstream, from, to, why, "another group of targets serves");
                }
                Event::Panic(true) => warn!(
                    upstream,
                    "hardly any address is usable: all of the group serve, whatever is thought of them"
                ),
                Event::Panic(false) => info!(upstream, "enough addresses are usable again"),
            }
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl TargetState {
    /// A literal is its own address; a name has none yet.
    fn new(target: &config::Target) -> Self {
        let literal = match &target.host {
            config::Host::Literal(ip) => Some(SocketAddr::new(*ip, target.port)),
            config::Host::Name(_) => None,
        };
        Self {
            target: target.to_string(),
            addresses: literal.into_iter().collect(),
            looked_up: literal.is_some(),
            answered: None,
            next: None,
            stale: false,
            failure: None,
            failures: 0,
            ttl_ends: None,
        }
    }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}
