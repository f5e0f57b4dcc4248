//! Keeps the addresses of one target that is a name fresh: a task on the control thread that sleeps until its next question is due.

use std::cell::RefCell;
use std::hash::{BuildHasher, RandomState};
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until};
use tracing::{info, warn};

use super::Upstream;
use super::addresses::{Answer, Booked, Kind, Resolution, Standing};
use super::answer::Rules;
use super::pace::Bounds;
use super::resolver::{Found, LookupError, Resolver};

/// How many addresses a line of the log names.
const NAMED_IN_LOG: usize = 16;

/// A target of an upstream that is a name.
#[derive(Debug)]
pub struct Named {
    /// Whose target it is.
    pub upstream: Arc<Upstream>,
    /// Which of them.
    pub index: usize,
    /// What to look up.
    pub name: Arc<str>,
    /// The port that goes with its addresses.
    pub port: u16,
    /// Addresses of the relay's own listeners: an answer that leads there would be a loop.
    pub own: watch::Receiver<Arc<[SocketAddr]>>,
    /// Who is asked.
    pub resolver: Arc<Resolver>,
}

/// What is known of a name, and what was last said of it.
struct Known {
    resolution: Resolution,
    /// How it stood when that was last said.
    said: Standing,
    addresses: Vec<SocketAddr>,
    four: Remarks,
    six: Remarks,
    /// What was last said of addresses that are left out.
    notes: Option<String>,
}

/// What there is to be said of one family's last question.
#[derive(Default)]
struct Remarks {
    error: Option<String>,
    note: Option<String>,
    /// Its task is to look again when its question is due.
    nudge: Arc<Notify>,
}

impl Known {
    fn remarks(&mut self, kind: Kind) -> &mut Remarks {
        match kind {
            Kind::V4 => &mut self.four,
            Kind::V6 => &mut self.six,
        }
    }

    /// Books what a look-up brought.
    fn answered(&mut self, kind: Kind, looked_up: Result<Found, LookupError>) -> Booked {
        let remarks = self.remarks(kind);
        (remarks.error, remarks.note) = (None, None);
        let answer = match looked_up {
            Ok(found) => {
                remarks.note = found.note;
                Answer::Addresses(found.addresses, found.ttl)
            }
            Err(error) => {
                remarks.error = Some(error.to_string());
                error.none().map_or(Answer::Failed, Answer::None)
            }
        };
        let booked = self
            .resolution
            .answered(Instant::now(), kind, answer, chance());
        if booked.ask_other {
            let other = match kind {
                Kind::V4 => Kind::V6,
                Kind::V6 => Kind::V4,
            };
            self.remarks(other).nudge.notify_one();
        }
        booked
    }

    /// What is amiss: which family's question failed and how.
    fn errors(&self) -> Option<String> {
        let both = [(Kind::V4, &self.four), (Kind::V6, &self.six)];
        let amiss = both
            .into_iter()
            .filter(|(kind, _)| self.resolution.is_amiss(*kind));
        joined(amiss.map(|(kind, remarks)| (kind, &remarks.error)))
    }

    /// What is left out of answers that serve.
    fn notes(&self) -> Option<String> {
        let both = [(Kind::V4, &self.four), (Kind::V6, &self.six)];
        joined(
            both.map(|(kind, remarks)| (kind, &remarks.note))
                .into_iter(),
        )
    }
}

fn joined<'a>(texts: impl Iterator<Item = (Kind, &'a Option<String>)>) -> Option<String> {
    let texts = texts.filter_map(|(kind, text)| Some(format!("{kind}: {}", text.as_ref()?)));
    let texts: Vec<_> = texts.collect();
    (!texts.is_empty()).then(|| texts.join("; "))
}

/// From 0 to 1. Each `RandomState` has keys of its own.
fn chance() -> f64 {
    let random = RandomState::new().hash_one(()) >> 32;
    f64::from(u32::try_from(random).unwrap_or(0)) / f64::from(u32::MAX)
}

impl Named {
    /// Keeps its addresses fresh, for ever. Each family of addresses is asked for by itself, and neither waits for the other.
    pub async fn keep_fresh(self) {
        let settings = &self.upstream.settings;
        let bounds = Bounds {
            min_ttl: settings.min_ttl,
            max_ttl: settings.max_ttl,
            stale_for: settings.stale_for,
        };
        let known = RefCell::new(Known {
            resolution: self.resolution(bounds),
            said: Standing::Unknown,
            addresses: Vec::new(),
            four: Remarks::default(),
            six: Remarks::default(),
            notes: None,
        });
        tokio::join!(self.keep(Kind::V4, &known), self.keep(Kind::V6, &known));
    }

    /// Nothing is known, but what its target's predecessor knew.
    fn resolution(&self, bounds: Bounds) -> Resolution {
        let (kinds, now) = (self.resolver.kinds(), Instant::now());
        match self.upstream.remembered(self.index) {
            Some((addresses, answered)) => {
                Resolution::remembering(bounds, kinds, (&addresses, answered), now)
            }
            None => Resolution::new(bounds, kinds, now),
        }
    }

    /// One family; returns at once where it is not wanted.
    async fn keep(&self, kind: Kind, known: &RefCell<Known>) {
        let mut changes = self.resolver.changes();
        let nudge = known.borrow_mut().remarks(kind).nudge.clone();
        loop {
            let now = Instant::now();
            let (look, hears) = {
                let resolution = &known.borrow().resolution;
                let hears = resolution.can_be_requested(kind, now);
                (resolution.look(kind, now), hears)
            };
            let Some(look) = look else { return };
            tokio::select! {
                () = sleep_until(look) => {}
                () = nudge.notified() => continue,
                // Not heard where it changes nothing: connect errors come by the thousand, and names sleep by the thousand.
                () = self.upstream.refresh.notified(), if hears => {
                    known.borrow_mut().resolution.requested(Instant::now());
                    continue;
                }
                _ = changes.changed() => {
                    known.borrow_mut().resolution.asked_elsewhere(kind, Instant::now());
                    continue;
                }
            }
            let due = known.borrow_mut().resolution.ask(kind, Instant::now());
            let mut failure = false;
            if due {
                let own = self.own.borrow().clone();
                let rules = self.rules(&own);
                // On the heap: thousands of names sleep most of the time, and a look-up is large.
                let looking = Box::pin(self.resolver.look_up(&self.name, kind, &rules));
                let looked_up = tokio::select! {
                    biased;
                    // Whoever is asked now is not to be asked any more.
                    _ = changes.changed() => {
                        known.borrow_mut().resolution.asked_elsewhere(kind, Instant::now());
                        continue;
                    }
                    looked_up = looking => looked_up,
                };
                failure = known.borrow_mut().answered(kind, looked_up).failure;
            }
            self.publish(&mut known.borrow_mut(), failure);
        }
    }

    fn rules<'a>(&'a self, own: &'a [SocketAddr]) -> Rules<'a> {
        Rules {
            allowed: &self.upstream.settings.allow_addresses,
            own,
            port: self.port,
            ipv4: self.resolver.wants_ipv4(),
        }
    }

    /// Shows workers and the admin side how the name stands now; says so once per change.
    fn publish(&self, known: &mut Known, failure: bool) {
        let now = Instant::now();
        let addresses = known.resolution.current(now).into_iter();
        let addresses = addresses.map(|ip| SocketAddr::new(ip, self.port)).collect();
        let addresses_before = std::mem::replace(&mut known.addresses, addresses);
        let standing = known.resolution.standing(now);
        let to_be_said = match standing {
            Standing::Partly if !known.resolution.fails_in_part() => known.said,
            standing => standing,
        };
        let before = std::mem::replace(&mut known.said, to_be_said);
        let notes = known.notes();
        let notes_before = std::mem::replace(&mut known.notes, notes);
        let errors = known.errors();
        let amiss = errors.clone().into_iter().chain(known.notes.clone());
        let amiss = amiss.collect::<Vec<_>>().join("; ");
        self.upstream.update(self.index, |state| {
            state.addresses.clone_from(&known.addresses);
            state.looked_up |= standing != Standing::Unknown;
            state.next = known.resolution.next();
            state.ttl_ends = known.resolution.ttl_ends();
            state.answered = known.resolution.answered_at().or(state.answered);
            state.stale = matches!(standing, Standing::Stale | Standing::Nothing);
            state.failure = (!amiss.is_empty() && standing != Standing::Unknown).then_some(amiss);
            state.failures += u64::from(failure);
        });
        let (upstream, name, error) = (&*self.upstream.name, &*self.name, errors.as_deref());
        let addresses = shown(&known.addresses);
        match to_be_said {
            Standing::Nothing if before != Standing::Nothing => warn!(
                upstream,
                name,
                error,
                "name does not resolve and no earlier answer serves: connections to it fail"
            ),
            Standing::Stale if before != Standing::Stale => warn!(
                upstream,
                name, error, addresses, "name does not resolve; the last good answer stays in use"
            ),
            Standing::Partly if before != Standing::Partly => warn!(
                upstream,
                name,
                error,
                addresses,
                "name resolves in part: one family of its addresses cannot be looked up"
            ),
            Standing::Fresh if !matches!(before, Standing::Fresh | Standing::Unknown) => {
                info!(upstream, name, addresses, "name resolves again");
            }
            _ if addresses_before != known.addresses => {
                info!(upstream, name, addresses, "addresses changed");
            }
            _ => {}
        }
        if let Some(notes) = known
            .notes
            .as_deref()
            .filter(|_| known.notes != notes_before)
        {
            warn!(
                upstream,
                name, notes, "not every address of the answer is used"
            );
        }
    }
}

/// The first few of them.
fn shown(addresses: &[SocketAddr]) -> String {
    let named = addresses.iter().take(NAMED_IN_LOG);
    let named = named
        .map(SocketAddr::to_string)
        .collect::<Vec<_>>()
        .join(", ");
    match addresses.len().saturating_sub(NAMED_IN_LOG) {
        0 => named,
        more => format!("{named} and {more} more"),
    }
}
