//! What a target's addresses are and when to ask again, without I/O.

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

/// The addresses of one name over time.
#[derive(Debug)]
pub struct Resolution {
    bounds: Bounds,
    good: Option<(Vec<IpAddr>, Instant)>,
    failures: u32,
    next: Instant,
    asked: Option<Instant>,
}

/// What an answer or its absence changed: for the log, once per change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Nothing worth a line.
    None,
    /// Other addresses than before; a new order is no change.
    Addresses,
    /// The first failure after an answer.
    Failing,
    /// The first answer after a failure.
    Recovered,
}

impl Resolution {
    /// Nothing known, to be asked at once.
    #[must_use]
    pub fn new(bounds: Bounds, now: Instant) -> Self {
        Self {
            bounds,
            good: None,
            failures: 0,
            next: now,
            asked: None,
        }
    }

    /// When to ask next.
    #[must_use]
    pub fn next(&self) -> Instant {
        self.next
    }

    /// The question goes out.
    pub fn asking(&mut self, now: Instant) {
        self.asked = Some(now);
    }

    /// Somebody could not connect: ask soon, though not more often than once a second.
    pub fn requested(&mut self, now: Instant) {
        let allowed = self.asked.map_or(now, |asked| asked + BETWEEN_REQUESTED);
        self.next = self.next.min(allowed.max(now));
    }

    /// An answer with at least one address that may be used.
    pub fn answered(&mut self, now: Instant, mut addresses: Vec<IpAddr>, ttl: Duration) -> Change {
        let mut seen = std::collections::HashSet::new();
        addresses.retain(|address| seen.insert(*address));
        addresses.truncate(MOST_ADDRESSES);
        let same = self.good.as_ref().is_some_and(|(before, _)| {
            before.len() == addresses.len()
                && before.iter().all(|address| addresses.contains(address))
        });
        let change = match (same, self.failures) {
            (false, _) => Change::Addresses,
            (true, 0) => Change::None,
            (true, _) => Change::Recovered,
        };
        // Servers rotate their answers; the order at hand stays, so that taking turns stays fair.
        let kept = if same {
            self.good.take().map(|good| good.0)
        } else {
            None
        };
        self.good = Some((kept.unwrap_or(addresses), now));
        self.failures = 0;
        self.next = now + ttl.clamp(self.bounds.min_ttl, self.bounds.max_ttl);
        change
    }

    /// No usable answer: the last good one stays.
    pub fn failed(&mut self, now: Instant) -> Change {
        let pause = FIRST_RETRY
            .saturating_mul(1 << self.failures.min(5))
            .min(LONGEST_RETRY);
        self.failures = self.failures.saturating_add(1);
        self.next = now + pause.max(self.bounds.min_ttl.min(LONGEST_RETRY));
        if self.failures == 1 {
            Change::Failing
        } else {
            Change::None
        }
    }

    /// The addresses to use now: the last good answer, as long as `stale_for` lets it serve.
    #[must_use]
    pub fn current(&self, now: Instant) -> &[IpAddr] {
        match &self.good {
            Some((addresses, since)) if self.failures == 0 || self.serves(*since, now) => addresses,
            _ => &[],
        }
    }

    fn serves(&self, since: Instant, now: Instant) -> bool {
        self.bounds
            .stale_for
            .is_none_or(|stale_for| now.saturating_duration_since(since) < stale_for)
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

    fn ips(last: &[u8]) -> Vec<IpAddr> {
        last.iter().map(|n| IpAddr::from([10, 0, 0, *n])).collect()
    }

    fn resolution(stale_for: Option<Duration>) -> (Resolution, Instant) {
        let now = Instant::now();
        let bounds = Bounds {
            min_ttl: S,
            max_ttl: 300 * S,
            stale_for,
        };
        (Resolution::new(bounds, now), now)
    }

    #[test]
    fn ttl_is_honoured_within_its_bounds() {
        for (ttl, waited) in [(0, 1), (1, 1), (5, 5), (86400, 300)] {
            let (mut resolution, now) = resolution(None);
            resolution.answered(now, ips(&[1]), ttl * S);
            assert_eq!(resolution.next() - now, waited * S);
        }
    }

    #[test]
    fn the_last_good_answer_outlives_failures() {
        let (mut resolution, now) = resolution(None);
        resolution.answered(now, ips(&[1, 2]), S);
        assert_eq!(resolution.failed(now + S), Change::Failing);
        assert_eq!(resolution.failed(now + 2 * S), Change::None);
        assert_eq!(resolution.current(now + 100_000 * S), ips(&[1, 2]));
        assert_eq!(
            resolution.answered(now + 3 * S, ips(&[1, 2]), S),
            Change::Recovered
        );
    }

    #[test]
    fn stale_for_ends_it_and_only_while_failing() {
        let (mut resolution, now) = resolution(Some(10 * S));
        resolution.answered(now, ips(&[1]), 60 * S);
        assert_eq!(resolution.current(now + 59 * S), ips(&[1]));
        resolution.failed(now + 60 * S);
        assert!(resolution.current(now + 60 * S).is_empty());
    }

    #[test]
    fn a_new_order_is_no_change() {
        let (mut resolution, now) = resolution(None);
        assert_eq!(
            resolution.answered(now, ips(&[1, 2, 1]), S),
            Change::Addresses
        );
        assert_eq!(resolution.answered(now, ips(&[2, 1]), S), Change::None);
        assert_eq!(resolution.current(now), ips(&[1, 2]));
        assert_eq!(resolution.answered(now, ips(&[2, 3]), S), Change::Addresses);
        assert_eq!(resolution.current(now), ips(&[2, 3]));
    }

    #[test]
    fn failures_are_retried_with_growing_pauses() {
        let (mut resolution, now) = resolution(None);
        let pauses = [1, 2, 4, 8, 16, 30, 30].map(|pause| pause * S);
        for pause in pauses {
            resolution.failed(now);
            assert_eq!(resolution.next() - now, pause);
        }
    }

    #[test]
    fn a_connect_error_brings_the_next_question_forward_once_a_second() {
        let (mut resolution, now) = resolution(None);
        resolution.asking(now);
        resolution.answered(now, ips(&[1]), 60 * S);
        resolution.requested(now);
        assert_eq!(resolution.next(), now + S);
        resolution.requested(now + 5 * S);
        assert_eq!(resolution.next(), now + S);
    }

    #[test]
    fn a_flood_of_addresses_is_bounded() {
        let (mut resolution, now) = resolution(None);
        let many = (0..4000_u32)
            .map(|n| IpAddr::from(n.to_be_bytes()))
            .collect();
        resolution.answered(now, many, S);
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
