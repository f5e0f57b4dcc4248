//! What a target's addresses are and when to ask again, without I/O.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use ipnet::IpNet;
use tokio::time::Instant;

/// First pause after a failed look-up; doubled each time.
const FIRST_RETRY: Duration = Duration::from_secs(1);

/// Longest pause between look-ups that fail.
const LONGEST_RETRY: Duration = Duration::from_secs(30);

/// Look-ups that connect errors ask for come at most this often.
const BETWEEN_REQUESTED: Duration = Duration::from_secs(1);

/// Most addresses taken from one answer.
const MOST_ADDRESSES: usize = 256;

/// The bounds of an upstream's `min_ttl`, `max_ttl` and `stale_for`.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Never asked again sooner.
    pub min_ttl: Duration,
    /// Asked again at the latest.
    pub max_ttl: Duration,
    /// How long the last good answer serves; `None`: for ever.
    pub stale_for: Option<Duration>,
}

/// A family of addresses: each is asked for by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A records.
    V4,
    /// AAAA records.
    V6,
}

/// What became of a question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Addresses that may be used, at least one, and how long they are good.
    Addresses(Vec<IpAddr>, Duration),
    /// The name, or this family of it, does not exist.
    None,
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
    /// The last good answer, and when it came.
    good: Vec<IpAddr>,
    since: Instant,
    failures: u32,
    next: Instant,
    asked: Option<Instant>,
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
    /// It was not asked for yet.
    Unknown,
    /// The last answer was good.
    Fresh,
    /// There is no good answer now, for one family of its addresses at least; the last good one serves.
    Stale,
    /// There is nothing to serve.
    Nothing,
}

impl Resolution {
    /// Nothing known, to be asked at once.
    #[must_use]
    pub fn new(bounds: Bounds, kinds: &[Kind], now: Instant) -> Self {
        let family = || Family {
            last: Last::Unasked,
            good: Vec::new(),
            since: now,
            failures: 0,
            next: now,
            asked: None,
        };
        let kinds = kinds.iter().map(|kind| (*kind, family())).collect();
        Self { bounds, kinds }
    }

    /// When to ask next, for any family.
    #[must_use]
    pub fn next(&self) -> Option<Instant> {
        self.kinds.iter().map(|(_, family)| family.next).min()
    }

    /// When to look at a family next: its question is due, or its last good answer stops serving.
    #[must_use]
    pub fn look(&self, kind: Kind, now: Instant) -> Option<Instant> {
        let (_, family) = self.kinds.iter().find(|(k, _)| *k == kind)?;
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
        let due = self
            .kinds
            .iter_mut()
            .find(|(k, family)| *k == kind && family.next <= now);
        due.map(|(_, family)| family.asked = Some(now)).is_some()
    }

    /// Somebody could not connect: ask soon, though not more often than once a second.
    pub fn requested(&mut self, now: Instant) {
        for (_, family) in &mut self.kinds {
            let allowed = family.asked.map_or(now, |asked| asked + BETWEEN_REQUESTED);
            family.next = family.next.min(allowed.max(now));
        }
    }

    /// A question for `kind` was answered, or not.
    pub fn answered(&mut self, now: Instant, kind: Kind, answer: Answer) {
        let bounds = self.bounds;
        let Some((_, family)) = self.kinds.iter_mut().find(|(k, _)| *k == kind) else {
            return;
        };
        let pause = match answer {
            Answer::Addresses(addresses, ttl) => {
                family.keep(addresses);
                (family.last, family.since, family.failures) = (Last::Good, now, 0);
                ttl.clamp(bounds.min_ttl, bounds.max_ttl)
            }
            Answer::None => family.not_good(Last::None),
            Answer::Failed => family.not_good(Last::Failed),
        };
        family.next = now + pause.max(bounds.min_ttl.min(LONGEST_RETRY));
    }

    /// The addresses to use now. A family that does not exist is empty where the other has a good answer; else, and where a family's
    /// question failed, its last good answer serves, as long as `stale_for` lets it.
    #[must_use]
    pub fn current(&self, now: Instant) -> Vec<IpAddr> {
        let elsewhere = self
            .kinds
            .iter()
            .any(|(_, family)| family.last == Last::Good);
        let serves = |family: &Family| match family.last {
            Last::Unasked => false,
            Last::Good => true,
            Last::None if elsewhere => false,
            Last::None | Last::Failed => {
                let age = now.saturating_duration_since(family.since);
                self.bounds.stale_for.is_none_or(|bound| age < bound)
            }
        };
        let serving = self.kinds.iter().filter(|(_, family)| serves(family));
        serving
            .flat_map(|(_, family)| family.good.iter().copied())
            .collect()
    }

    /// How it stands. A family that has not answered yet does not count.
    #[must_use]
    pub fn standing(&self, now: Instant) -> Standing {
        let has = |last: Last| self.kinds.iter().any(|(_, family)| family.last == last);
        match (has(Last::Good), has(Last::Failed)) {
            (true, false) => Standing::Fresh,
            (false, false) if !has(Last::None) || has(Last::Unasked) => Standing::Unknown,
            _ if self.current(now).is_empty() => Standing::Nothing,
            _ => Standing::Stale,
        }
    }
}

impl Family {
    /// Servers rotate their answers; where nothing else changed the order at hand stays, so that taking turns stays fair.
    fn keep(&mut self, mut addresses: Vec<IpAddr>) {
        let mut seen = HashSet::new();
        addresses.retain(|address| seen.insert(*address));
        addresses.truncate(MOST_ADDRESSES);
        let same = self.good.len() == addresses.len()
            && self.good.iter().all(|address| addresses.contains(address));
        if !same {
            self.good = addresses;
        }
    }

    /// Returns the pause until the next try.
    fn not_good(&mut self, last: Last) -> Duration {
        let pause = FIRST_RETRY.saturating_mul(1 << self.failures.min(5));
        self.failures = self.failures.saturating_add(1);
        self.last = last;
        pause.min(LONGEST_RETRY)
    }
}

/// Whether a DNS answer may be used: nobody's load balancer lives in loopback, link-local (where the metadata service is),
/// multicast or unspecified space, so a name that points there is a mistake or an attack, unless the operator allows it.
#[must_use]
pub fn may_be_used(address: IpAddr, allowed: &[IpNet]) -> bool {
    let special = match address.to_canonical() {
        IpAddr::V4(v4) => {
            v4.is_loopback()
                || v4.is_link_local()
                || v4.is_multicast()
                || v4.is_broadcast()
                || v4.octets()[0] == 0
        }
        IpAddr::V6(v6) => {
            const METADATA: Ipv6Addr = Ipv6Addr::new(0xFD00, 0xEC2, 0, 0, 0, 0, 0, 0x254);
            v6.is_loopback()
                || v6.is_unicast_link_local()
                || v6.is_multicast()
                || v6.is_unspecified()
                || v6 == METADATA
        }
    };
    !special
        || allowed
            .iter()
            .any(|net| net.contains(&address.to_canonical()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    const MINUTE: Duration = Duration::from_secs(60);

    fn ips(last: &[u8]) -> Vec<IpAddr> {
        last.iter().map(|n| IpAddr::from([10, 0, 0, *n])).collect()
    }

    fn v4(last: &[u8], ttl: Duration) -> Answer {
        Answer::Addresses(ips(last), ttl)
    }

    fn resolution(stale_for: Option<Duration>, kinds: &[Kind]) -> (Resolution, Instant) {
        let now = Instant::now();
        let bounds = Bounds {
            min_ttl: S,
            max_ttl: 300 * S,
            stale_for,
        };
        (Resolution::new(bounds, kinds, now), now)
    }

    #[test]
    fn ttl_is_honoured_within_its_bounds() {
        for (ttl, waited) in [(0, 1), (1, 1), (5, 5), (86400, 300)] {
            let (mut resolution, now) = resolution(None, &[Kind::V4]);
            resolution.answered(now, Kind::V4, v4(&[1], ttl * S));
            assert_eq!(resolution.next(), Some(now + waited * S));
        }
    }

    #[test]
    fn the_last_good_answer_outlives_failures_and_a_name_that_is_gone() {
        for bad in [Answer::Failed, Answer::None] {
            let (mut resolution, now) = resolution(None, &[Kind::V4]);
            assert_eq!(resolution.standing(now), Standing::Unknown);
            resolution.answered(now, Kind::V4, v4(&[1, 2], S));
            assert_eq!(resolution.standing(now), Standing::Fresh);
            resolution.answered(now, Kind::V4, bad);
            assert_eq!(resolution.standing(now), Standing::Stale);
            assert_eq!(resolution.current(now + 100_000 * S), ips(&[1, 2]));
            resolution.answered(now, Kind::V4, v4(&[1, 2], S));
            assert_eq!(resolution.standing(now), Standing::Fresh);
        }
    }

    #[test]
    fn stale_for_ends_it_and_only_while_failing() {
        let (mut resolution, now) = resolution(Some(10 * S), &[Kind::V4]);
        resolution.answered(now, Kind::V4, v4(&[1], MINUTE));
        assert_eq!(resolution.current(now + 59 * S), ips(&[1]));
        resolution.answered(now + 5 * S, Kind::V4, Answer::Failed);
        resolution.answered(now + 6 * S, Kind::V4, Answer::Failed);
        resolution.answered(now + 7 * S, Kind::V4, Answer::Failed);
        assert_eq!(
            resolution.look(Kind::V4, now + 7 * S),
            Some(now + 10 * S),
            "before the next question"
        );
        assert_eq!(resolution.standing(now + 9 * S), Standing::Stale);
        assert_eq!(resolution.standing(now + 10 * S), Standing::Nothing);
        assert_eq!(resolution.look(Kind::V4, now + 10 * S), Some(now + 11 * S));
    }

    #[test]
    fn one_family_failing_leaves_both_in_use() {
        let both = [Kind::V4, Kind::V6];
        let six = vec!["fd00::1".parse().unwrap()];
        let (mut resolution, now) = resolution(None, &both);
        resolution.answered(now, Kind::V4, v4(&[1], MINUTE));
        assert_eq!(
            resolution.current(now),
            ips(&[1]),
            "without waiting for the other"
        );
        resolution.answered(now, Kind::V6, Answer::Addresses(six.clone(), MINUTE));
        resolution.answered(now, Kind::V4, Answer::Failed);
        assert_eq!(resolution.current(now), [ips(&[1]), six.clone()].concat());
        assert_eq!(resolution.standing(now), Standing::Stale);
        resolution.answered(now, Kind::V4, Answer::None);
        assert_eq!(
            resolution.current(now),
            six,
            "there is no such family any more"
        );
        assert_eq!(resolution.standing(now), Standing::Fresh);
        resolution.answered(now, Kind::V6, Answer::None);
        assert_eq!(
            resolution.current(now),
            [ips(&[1]), six].concat(),
            "the name is gone"
        );
    }

    #[test]
    fn a_name_without_aaaa_is_fresh() {
        let (mut resolution, now) = resolution(None, &[Kind::V4, Kind::V6]);
        resolution.answered(now, Kind::V6, Answer::None);
        assert_eq!(resolution.standing(now), Standing::Unknown);
        resolution.answered(now, Kind::V4, v4(&[1], MINUTE));
        assert_eq!(resolution.standing(now), Standing::Fresh);
        assert!(resolution.ask(Kind::V6, now + 2 * S) && !resolution.ask(Kind::V4, now + 2 * S));
    }

    #[test]
    fn a_new_order_is_no_change() {
        let (mut resolution, now) = resolution(None, &[Kind::V4]);
        resolution.answered(now, Kind::V4, v4(&[1, 2, 1], S));
        resolution.answered(now, Kind::V4, v4(&[2, 1], S));
        assert_eq!(resolution.current(now), ips(&[1, 2]));
        resolution.answered(now, Kind::V4, v4(&[2, 3], S));
        assert_eq!(resolution.current(now), ips(&[2, 3]));
    }

    #[test]
    fn failures_are_retried_with_growing_pauses() {
        let (mut resolution, now) = resolution(None, &[Kind::V4]);
        for pause in [1, 2, 4, 8, 16, 30, 30] {
            resolution.answered(now, Kind::V4, Answer::Failed);
            assert_eq!(resolution.next(), Some(now + pause * S));
        }
    }

    #[test]
    fn a_connect_error_brings_the_next_question_forward_once_a_second() {
        let (mut resolution, now) = resolution(None, &[Kind::V4]);
        assert!(resolution.ask(Kind::V4, now));
        resolution.answered(now, Kind::V4, v4(&[1], MINUTE));
        resolution.requested(now);
        assert_eq!(resolution.next(), Some(now + S));
        resolution.requested(now + 5 * S);
        assert_eq!(resolution.next(), Some(now + S));
    }

    #[test]
    fn a_flood_of_addresses_is_bounded() {
        let (mut resolution, now) = resolution(None, &[Kind::V4]);
        let many = (0..4000_u32)
            .map(|n| IpAddr::from(n.to_be_bytes()))
            .collect();
        resolution.answered(now, Kind::V4, Answer::Addresses(many, S));
        assert_eq!(resolution.current(now).len(), MOST_ADDRESSES);
    }

    #[test]
    fn special_addresses_need_a_word_from_the_operator() {
        for ip in [
            "127.0.0.1",
            "169.254.169.254",
            "224.0.0.1",
            "0.0.0.0",
            "::1",
            "fe80::1",
            "fd00:ec2::254",
            "::ffff:127.0.0.1",
        ] {
            assert!(!may_be_used(ip.parse().unwrap(), &[]), "{ip}");
        }
        for ip in ["10.1.2.3", "52.1.2.3", "fd12::1", "2600::1"] {
            assert!(may_be_used(ip.parse().unwrap(), &[]), "{ip}");
        }
        assert!(may_be_used(
            "127.0.0.1".parse().unwrap(),
            &["127.0.0.0/8".parse().unwrap()]
        ));
    }
}
