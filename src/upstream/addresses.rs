//! What a name's addresses are and when to ask again, without I/O.

use std::collections::HashSet;
use std::net::IpAddr;
use std::time::Duration;

use tokio::time::Instant;

use super::pace::{Bounds, until_next, until_retry};

/// Look-ups that connect errors ask for come at most this often.
const BETWEEN_REQUESTED: Duration = Duration::from_secs(1);

/// Most addresses taken from one answer.
pub const MOST_ADDRESSES: usize = 256;

/// A family of addresses: each is asked for by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A records.
    V4,
    /// AAAA records.
    V6,
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// What became of a question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Addresses that may be used, at least one, and how long they are good.
    Addresses(Vec<IpAddr>, Duration),
    /// The name, or this family of it, does not exist; for how long that is good, where the answer says so.
    None(Option<Duration>),
    /// No answer, a server's failure, or addresses that may not be used.
    Failed,
}

/// The addresses of one name over time.
#[derive(Debug)]
pub struct Resolution {
    bounds: Bounds,
    kinds: Vec<(Kind, Family)>,
}

/// One family of a name's addresses.
#[derive(Debug)]
struct Family {
    last: Last,
    /// The last good answer, when it came, and how long it was good.
    good: Vec<IpAddr>,
    since: Instant,
    ttl: Duration,
    failures: u32,
    /// How long it is good that there is none.
    none_for: Option<Duration>,
    next: Instant,
    asked: Option<Instant>,
    /// When its last question was answered, or not.
    answered: Option<Instant>,
    /// Its addresses have gone, and whether the name has gone is not known before the other family was asked.
    awaits_other: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Last {
    Unasked,
    Good,
    None,
    Failed,
}

/// How a name stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Not every family was asked for yet, and there is nothing to serve.
    Unknown,
    /// The last answer was good.
    Fresh,
    /// The last answer was good for one family of its addresses; the other's question failed. Its last good answer, if there was one,
    /// serves beside.
    Partly,
    /// There is no good answer now; the last good one serves.
    Stale,
    /// There is nothing to serve.
    Nothing,
}

/// What a name's task has to know of an answer that was booked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Booked {
    /// It counts as a failure. That a name has addresses of one family only is none.
    pub failure: bool,
    /// The other family is to be asked for now: addresses of this one have gone. They may have come back as addresses of that one, or the
    /// whole name has gone.
    pub ask_other: bool,
}

impl Resolution {
    /// Nothing known, to be asked at once.
    #[must_use]
    pub fn new(bounds: Bounds, kinds: &[Kind], now: Instant) -> Self {
        let family = || Family {
            last: Last::Unasked,
            good: Vec::new(),
            since: now,
            ttl: Duration::ZERO,
            failures: 0,
            none_for: None,
            next: now,
            asked: None,
            answered: None,
            awaits_other: false,
        };
        let kinds = kinds.iter().map(|kind| (*kind, family())).collect();
        Self { bounds, kinds }
    }

    /// As [`Resolution::new`], with addresses that were good when they were asked for last: they serve until there are others, as those of any
    /// last good answer.
    #[must_use]
    pub fn remembering(
        bounds: Bounds,
        kinds: &[Kind],
        (addresses, answered): (&[IpAddr], Instant),
        now: Instant,
    ) -> Self {
        let mut resolution = Self::new(bounds, kinds, now);
        for (kind, family) in &mut resolution.kinds {
            let of_kind = |address: &&IpAddr| address.is_ipv4() == (*kind == Kind::V4);
            family.good = addresses.iter().filter(of_kind).copied().collect();
            family.since = answered;
        }
        resolution
    }

    /// When to ask next, for any family.
    #[must_use]
    pub fn next(&self) -> Option<Instant> {
        self.kinds.iter().map(|(_, family)| family.next).min()
    }

    /// When the last good answer came whose addresses are still known.
    #[must_use]
    pub fn answered_at(&self) -> Option<Instant> {
        let known = self.kinds.iter().map(|(_, family)| family);
        known
            .filter(|family| !family.good.is_empty())
            .map(|family| family.since)
            .max()
    }

    /// When the first of the good answers ends.
    #[must_use]
    pub fn ttl_ends(&self) -> Option<Instant> {
        let good = self.kinds.iter().map(|(_, family)| family);
        good.filter(|family| family.last == Last::Good)
            .map(|family| family.since + family.ttl)
            .min()
    }

    /// When to look at a family next: its question is due, or its last good answer stops serving. `None`: it is not wanted.
    #[must_use]
    pub fn look(&self, kind: Kind, now: Instant) -> Option<Instant> {
        let family = self.family(kind)?;
        let serves = matches!(family.last, Last::None | Last::Failed);
        let expiry = self
            .bounds
            .stale_for
            .filter(|_| serves)
            .map(|bound| family.since + bound);
        Some(
            expiry
                .filter(|expiry| *expiry > now)
                .map_or(family.next, |expiry| expiry.min(family.next)),
        )
    }

    /// Whether a family is to be asked for now; then it counts as asked.
    pub fn ask(&mut self, kind: Kind, now: Instant) -> bool {
        let due = self.family_mut(kind).filter(|family| family.next <= now);
        due.map(|family| family.asked = Some(now)).is_some()
    }

    /// Whether a connect error would bring a family's question forward. Where it would not, nobody has to listen for one.
    #[must_use]
    pub fn can_be_requested(&self, kind: Kind, now: Instant) -> bool {
        self.family(kind)
            .is_some_and(|family| family.requestable(now) < family.next)
    }

    /// Somebody could not connect: ask soon, though not more often than once a second.
    pub fn requested(&mut self, now: Instant) {
        for (_, family) in &mut self.kinds {
            family.next = family.next.min(family.requestable(now));
        }
    }

    /// Others are asked from now on, or the same ones otherwise: what the last ones said is to be asked again at once.
    pub fn asked_elsewhere(&mut self, kind: Kind, now: Instant) {
        if let Some(family) = self.family_mut(kind) {
            (family.next, family.failures) = (now, 0);
        }
    }

    /// A question for `kind` was answered, or not. `chance` is from 0 to 1.
    pub fn answered(&mut self, now: Instant, kind: Kind, answer: Answer, chance: f64) -> Booked {
        let bounds = self.bounds;
        let others = || self.kinds.iter().filter(|(k, _)| *k != kind);
        let elsewhere = others()
            .find(|(_, other)| other.last == Last::Good)
            .map(|(_, other)| other.ttl);
        let alone = others().all(|(_, other)| other.last != Last::Unasked);
        let awaited = others().any(|(_, other)| other.awaits_other);
        let Some(family) = self.family_mut(kind) else {
            return Booked::default();
        };
        let before = family.last;
        family.none_for = match &answer {
            Answer::None(good_for) => *good_for,
            Answer::Addresses(..) | Answer::Failed => None,
        };
        let mut booked = Booked::default();
        let pause = match (answer, elsewhere) {
            (Answer::Addresses(addresses, ttl), _) => {
                family.keep(addresses);
                (family.last, family.since, family.failures) = (Last::Good, now, 0);
                family.ttl = ttl;
                until_next(ttl, &bounds, chance)
            }
            (Answer::None(good_for), Some(ttl)) => {
                (family.last, family.failures) = (Last::None, 0);
                until_next(good_for.unwrap_or(ttl), &bounds, chance)
            }
            (Answer::None(_), None) => {
                booked.failure = alone;
                family.not_good(Last::None, &bounds, chance)
            }
            (Answer::Failed, _) => {
                booked.failure = true;
                family.not_good(Last::Failed, &bounds, chance)
            }
        };
        (family.next, family.answered) = (now + pause, Some(now));
        let (last, ttl) = (family.last, family.ttl);
        let had = last == Last::None && !family.good.is_empty();
        let new = before == Last::Good && !awaited && !self.kinds.iter().all(|(k, _)| *k == kind);
        booked.ask_other = had && (new || elsewhere.is_some());
        booked.failure &= !booked.ask_other;
        for (of, family) in &mut self.kinds {
            if *of == kind {
                family.awaits_other = booked.ask_other;
                continue;
            }
            family.awaits_other = false;
            if booked.ask_other {
                family.next = family.next.min(family.requestable(now));
            }
            if last == Last::Good && family.last == Last::None {
                family.good.clear(); // it is the family that has gone, not the name: nothing may bring them back
                let pause = until_next(family.none_for.unwrap_or(ttl), &bounds, chance);
                let rested = family.answered.map_or(now, |answered| answered + pause);
                (family.failures, family.next) = (0, family.next.max(rested));
            }
        }
        booked
    }

    /// The addresses to use now, each once. The last good answer of a family serves as long as `stale_for` lets it, when its question
    /// failed and when it has gone; but not when the other family, asked after that, is there.
    #[must_use]
    pub fn current(&self, now: Instant) -> Vec<IpAddr> {
        let serves = |family: &Family| match family.last {
            Last::Unasked | Last::Good => true,
            Last::None | Last::Failed => {
                let age = now.saturating_duration_since(family.since);
                self.bounds.stale_for.is_none_or(|bound| age < bound)
            }
        };
        let serving = self.kinds.iter().filter(|(_, family)| serves(family));
        let mut seen = HashSet::new();
        serving
            .flat_map(|(_, family)| family.good.iter().copied())
            .filter(|address| seen.insert(*address))
            .collect()
    }

    /// How it stands.
    #[must_use]
    pub fn standing(&self, now: Instant) -> Standing {
        match (self.has(Last::Good), self.has(Last::Failed)) {
            (true, false) => Standing::Fresh,
            (true, true) => Standing::Partly,
            (false, false) if self.awaits_other() => Standing::Fresh,
            _ if self.has(Last::Unasked) => Standing::Unknown,
            _ if !self.current(now).is_empty() => Standing::Stale,
            _ => Standing::Nothing,
        }
    }

    /// Whether [`Standing::Partly`] is more than the moment between two answers: the family that failed has failed again since the other
    /// was good.
    #[must_use]
    pub fn fails_in_part(&self) -> bool {
        let of = |last: Last| {
            let kinds = self.kinds.iter().map(|(_, family)| family);
            kinds.filter(move |family| family.last == last)
        };
        let again = |failed: &Family| {
            failed.failures > 1 && of(Last::Good).any(|good| failed.answered > good.answered)
        };
        of(Last::Failed).any(again)
    }

    /// Whether what was said of a family's last question explains something: it failed, or there is no such family and no other.
    #[must_use]
    pub fn is_amiss(&self, kind: Kind) -> bool {
        self.family(kind).is_some_and(|family| match family.last {
            Last::Unasked | Last::Good => false,
            Last::None => !self.has(Last::Good) && !self.awaits_other(),
            Last::Failed => true,
        })
    }

    /// Whether it is not known yet if the name has gone or one family of it only.
    fn awaits_other(&self) -> bool {
        self.kinds.iter().any(|(_, family)| family.awaits_other)
    }

    fn has(&self, last: Last) -> bool {
        self.kinds.iter().any(|(_, family)| family.last == last)
    }

    fn family(&self, kind: Kind) -> Option<&Family> {
        let mut kinds = self.kinds.iter();
        kinds.find(|(k, _)| *k == kind).map(|(_, family)| family)
    }

    fn family_mut(&mut self, kind: Kind) -> Option<&mut Family> {
        let mut kinds = self.kinds.iter_mut();
        kinds.find(|(k, _)| *k == kind).map(|(_, family)| family)
    }
}

impl Family {
    /// Servers rotate their answers, and of a flood each answer begins with others: what is there already stays, in the order at hand, so
    /// that taking turns stays fair; what is new comes after it.
    fn keep(&mut self, addresses: Vec<IpAddr>) {
        let answered: HashSet<IpAddr> = addresses.iter().copied().collect();
        self.good.retain(|address| answered.contains(address));
        let mut seen: HashSet<IpAddr> = self.good.iter().copied().collect();
        let new = addresses
            .into_iter()
            .filter(|address| seen.insert(*address));
        let room = MOST_ADDRESSES - self.good.len();
        self.good.extend(new.take(room));
    }

    /// Returns the pause until the next try.
    fn not_good(&mut self, last: Last, bounds: &Bounds, chance: f64) -> Duration {
        let pause = until_retry(self.failures, bounds, chance);
        self.failures = self.failures.saturating_add(1);
        self.last = last;
        pause
    }

    /// When it may be asked for because somebody could not connect.
    fn requestable(&self, now: Instant) -> Instant {
        self.asked
            .map_or(now, |asked| now.max(asked + BETWEEN_REQUESTED))
    }
}

#[cfg(test)]
#[path = "addresses_tests.rs"]
mod tests;
