//! Which address a session tries first, and which next: pure, with `now` and chance handed in.

use std::cell::Cell;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use super::address::Address;
use super::snapshot::{Choice, Snapshot};
use crate::config::Balance;

/// What an address that has just come back begins with, of its share.
const LEAST_SHARE: f64 = 0.1;

/// One worker's way to choose among the addresses of one upstream.
#[derive(Debug)]
pub struct Balancer {
    balance: Balance,
    turn: Cell<u32>,
    chance: Cell<u64>,
}

/// The addresses of a snapshot in the order in which one session tries them: each once.
#[derive(Debug)]
pub struct Picks {
    snapshot: Arc<Snapshot>,
    key: u64,
    /// Whose turn it is: a session has one, however many addresses it tries.
    turn: u32,
    tier: usize,
    /// Those of the present tier that were picked.
    picked: Vec<usize>,
}

impl Picks {
    /// Whether none was picked yet.
    #[must_use]
    pub fn is_fresh(&self) -> bool {
        self.tier == 0 && self.picked.is_empty()
    }
}

impl Balancer {
    /// `seed` sets where turns and chance begin: workers, and relays, must not go in step.
    #[must_use]
    pub fn new(balance: Balance, seed: u64) -> Self {
        Self {
            balance,
            turn: Cell::new(u32::try_from(mix(seed) >> 32).unwrap_or_default()),
            chance: Cell::new(seed),
        }
    }

    /// The order for one session. `key` is [`key_of`] its endpoint; it is looked at by [`Balance::Rendezvous`] alone.
    #[must_use]
    pub fn picks(&self, snapshot: Arc<Snapshot>, key: u64) -> Picks {
        Picks {
            snapshot,
            key,
            turn: self.turn.replace(self.turn.get().wrapping_add(1)),
            tier: 0,
            picked: Vec::new(),
        }
    }

    /// Whether every session of an endpoint has to be on one address.
    #[must_use]
    pub fn is_sticky(&self) -> bool {
        self.balance == Balance::Rendezvous
    }

    /// The next address to try; `None`: all were.
    pub fn next(&self, picks: &mut Picks, now: Instant) -> Option<Arc<Address>> {
        loop {
            let tier = picks.snapshot.tiers().get(picks.tier)?;
            if picks.picked.len() == tier.len() {
                picks.tier += 1;
                picks.picked.clear();
                continue;
            }
            let left: Vec<usize>; // only a second try pays for it
            let index = if picks.picked.is_empty() {
                self.choose(tier, tier.len(), |n| n, picks, now)
            } else {
                // Where those serve that nothing good is thought of, one try is enough to pay for the doubt.
                let untried = || (0..tier.len()).filter(|index| !picks.picked.contains(index));
                let usable: Vec<usize> = untried().filter(|index| tier[*index].usable).collect();
                left = match usable.is_empty() {
                    false => usable,
                    true => untried().collect(),
                };
                self.choose(tier, left.len(), |n| left[n], picks, now)
            };
            picks.picked.push(index);
            return Some(tier[index].address.clone());
        }
    }

    /// One of `count` members of a tier, of which `index` tells the places.
    fn choose(
        &self,
        tier: &[Choice],
        count: usize,
        index: impl Fn(usize) -> usize,
        picks: &Picks,
        now: Instant,
    ) -> usize {
        let share = |n: usize| tier[index(n)].share(now);
        let chosen = match self.balance {
            _ if count == 1 => 0,
            Balance::LeastSessions => {
                let first = self.below(count);
                let second = (first + 1 + self.below(count - 1)) % count;
                // What it would carry with one more, for its share.
                let load = |n: usize| {
                    f64::from(tier[index(n)].address.load().saturating_add(1)) / share(n)
                };
                if load(second) < load(first) {
                    second
                } else {
                    first
                }
            }
            Balance::RoundRobin => {
                let first = picks.turn as usize % tier.len();
                // Of those that are left the next one in the circle.
                let ahead = |n: &usize| (index(*n) + tier.len() - first) % tier.len();
                let mut chosen = (0..count).min_by_key(ahead).unwrap_or(0);
                // Whoever has just come back is passed over more often than not.
                for _ in 0..count {
                    let share = share(chosen) / f64::from(tier[index(chosen)].weight);
                    if share >= 1.0 || self.fraction() < share {
                        break;
                    }
                    chosen = (chosen + 1) % count;
                }
                chosen
            }
            Balance::Weighted => {
                let all: f64 = (0..count).map(share).sum();
                // Multiples of the golden ratio fall evenly over the whole, however long one looks (Weyl's sequence).
                let at = f64::from(picks.turn.wrapping_mul(0x9E37_79B9)) / 4_294_967_296.0 * all;
                let mut end = 0.0;
                let found = (0..count).find(|n| {
                    end += share(*n);
                    at < end
                });
                found.unwrap_or(count - 1)
            }
            Balance::Rendezvous => {
                // Weighted rendezvous: the least of -ln(hash) / weight. Slow start has no part in it: a consumer stays where it is.
                let score = |n: usize| {
                    let choice = &tier[index(n)];
                    let hash = mix(picks.key ^ hash_of(choice.address.at));
                    let fraction = ((hash >> 11) as f64 + 1.0) / 9_007_199_254_740_993.0;
                    -fraction.ln() / f64::from(choice.weight)
                };
                let scored = (0..count).map(|n| (n, score(n)));
                scored
                    .min_by(|a, b| a.1.total_cmp(&b.1))
                    .map_or(0, |(n, _)| n)
            }
        };
        index(chosen)
    }

    /// A number below `n`.
    fn below(&self, n: usize) -> usize {
        usize::try_from(self.random() % n as u64).unwrap_or(0)
    }

    /// A number of at least 0 and below 1.
    pub fn fraction(&self) -> f64 {
        (self.random() >> 11) as f64 / 9_007_199_254_740_992.0
    }

    fn random(&self) -> u64 {
        // SplitMix64: nothing here has to be unpredictable, only even.
        self.chance
            .set(self.chance.get().wrapping_add(0x9E37_79B9_7F4A_7C15));
        mix(self.chance.get())
    }
}

impl Choice {
    /// Its weight, or what it is given of it for now.
    fn share(&self, now: Instant) -> f64 {
        let weight = f64::from(self.weight);
        self.slow_start.map_or(weight, |(returned, window)| {
            let age = now.saturating_duration_since(returned).as_secs_f64();
            weight * (age / window.as_secs_f64()).clamp(LEAST_SHARE, 1.0)
        })
    }
}

/// What [`Balance::Rendezvous`] knows an endpoint by. The same in every version of this program: relays of a fleet have to agree.
#[must_use]
pub fn key_of(endpoint: &[u8]) -> u64 {
    // FNV-1a (draft-eastlake-fnv), mixed once more because it spreads short keys badly.
    let hash = endpoint
        .iter()
        .fold(0xCBF2_9CE4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01B3)
        });
    mix(hash)
}

fn hash_of(address: SocketAddr) -> u64 {
    let port = address.port().to_be_bytes();
    match address {
        SocketAddr::V4(v4) => key_of(&[&v4.ip().octets()[..], &port].concat()),
        SocketAddr::V6(v6) => key_of(&[&v6.ip().octets()[..], &port].concat()),
    }
}

/// The last step of SplitMix64: every bit of the result depends on every bit of `n`.
fn mix(n: u64) -> u64 {
    let n = (n ^ (n >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let n = (n ^ (n >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    n ^ (n >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::address::Hold;
    use std::collections::HashMap;
    use std::time::Duration;

    fn choice(last: u8, weight: u32) -> Choice {
        let at = SocketAddr::from(([10, 0, 0, last], 443));
        Choice {
            address: Arc::new(Address::new(at, "cp:443".into(), 0, 0, Arc::default())),
            priority: 0,
            usable: true,
            weight,
            slow_start: None,
        }
    }

    fn snapshot(tiers: &[&[(u8, u32)]]) -> Arc<Snapshot> {
        let tier = |tier: &&[(u8, u32)]| {
            let choices = tier.iter().map(|(last, weight)| choice(*last, *weight));
            choices.collect()
        };
        Arc::new(Snapshot::of_tiers(tiers.iter().map(tier).collect()))
    }

    fn last(address: &Address) -> u8 {
        match address.at.ip() {
            std::net::IpAddr::V4(v4) => v4.octets()[3],
            std::net::IpAddr::V6(_) => 0,
        }
    }

    fn first_picks(balancer: &Balancer, snapshot: &Arc<Snapshot>, times: u32) -> HashMap<u8, u32> {
        let mut counts = HashMap::new();
        for n in 0..times {
            let mut picks = balancer.picks(snapshot.clone(), mix(n.into()));
            let first = balancer.next(&mut picks, Instant::now()).unwrap();
            *counts.entry(last(&first)).or_default() += 1;
        }
        counts
    }

    const ALL: [Balance; 4] = [
        Balance::LeastSessions,
        Balance::RoundRobin,
        Balance::Weighted,
        Balance::Rendezvous,
    ];

    #[test]
    fn every_address_is_tried_once_and_those_that_serve_first() {
        for balance in ALL {
            let balancer = Balancer::new(balance, 1);
            let snapshot = snapshot(&[&[(1, 1), (2, 3), (3, 1)], &[(4, 1)], &[(5, 1), (6, 1)]]);
            let mut picks = balancer.picks(snapshot, 7);
            let order: Vec<u8> = std::iter::from_fn(|| balancer.next(&mut picks, Instant::now()))
                .map(|address| last(&address))
                .collect();
            let sorted = |range: std::ops::Range<usize>| {
                let mut part = order[range].to_vec();
                part.sort_unstable();
                part
            };
            assert_eq!(sorted(0..3), [1, 2, 3], "{balance:?}");
            assert_eq!(sorted(3..4), [4], "{balance:?}");
            assert_eq!(sorted(4..6), [5, 6], "{balance:?}");
            assert_eq!(order.len(), 6, "{balance:?}");
        }
    }

    #[test]
    fn a_retry_prefers_what_is_believed_in() {
        for balance in ALL {
            let mut tier: Vec<Choice> = (1..=8).map(|last| choice(last, 1)).collect();
            tier[..7]
                .iter_mut()
                .for_each(|choice| choice.usable = false);
            let snapshot = Arc::new(Snapshot::of_tiers(vec![tier]));
            let balancer = Balancer::new(balance, 5);
            for key in 0..20 {
                let mut picks = balancer.picks(snapshot.clone(), key);
                let mut next = || last(&balancer.next(&mut picks, Instant::now()).unwrap());
                assert!(next() == 8 || next() == 8, "{balance:?}");
            }
        }
    }

    #[test]
    fn two_choices_never_take_the_fullest() {
        let balancer = Balancer::new(Balance::LeastSessions, 1);
        let snapshot = snapshot(&[&[(1, 1), (2, 1), (3, 1)]]);
        let full = snapshot.tiers()[0][0].address.clone();
        let _holds: Vec<Hold> = (0..9).map(|_| Hold::session(full.clone())).collect();
        let counts = first_picks(&balancer, &snapshot, 300);
        assert_eq!(counts.get(&1), None, "{counts:?}");
        assert!(counts[&2] > 100 && counts[&3] > 100, "{counts:?}");
    }

    #[test]
    fn sessions_are_weighed_by_the_weight_of_their_address() {
        let balancer = Balancer::new(Balance::LeastSessions, 1);
        let snapshot = snapshot(&[&[(1, 1), (2, 4)]]);
        let mut holds = Vec::new();
        for _ in 0..100 {
            let mut picks = balancer.picks(snapshot.clone(), 0);
            holds.push(Hold::session(
                balancer.next(&mut picks, Instant::now()).unwrap(),
            ));
        }
        assert_eq!(snapshot.tiers()[0][1].address.sessions(), 80);
    }

    #[test]
    fn turns_are_even_and_weighted_ones_as_the_weights_say() {
        let even = first_picks(
            &Balancer::new(Balance::RoundRobin, 1),
            &snapshot(&[&[(1, 1), (2, 9), (3, 1)]]),
            300,
        );
        assert!(even.values().all(|n| *n == 100), "{even:?}");
        let weighted = first_picks(
            &Balancer::new(Balance::Weighted, 1),
            &snapshot(&[&[(1, 1), (2, 2), (3, 7)]]),
            1000,
        );
        for (last, wanted) in [(1, 100_u32), (2, 200), (3, 700)] {
            assert!(weighted[&last].abs_diff(wanted) <= 3, "{weighted:?}");
        }
    }

    #[test]
    fn a_consumer_stays_on_its_address_while_others_come_and_go() {
        let (one, other) = (
            Balancer::new(Balance::Rendezvous, 1),
            Balancer::new(Balance::Rendezvous, 2),
        );
        let place = |balancer: &Balancer, snapshot: &Arc<Snapshot>, id: u32| {
            let key = key_of(format!("vpce-{id:017x}").as_bytes());
            let mut picks = balancer.picks(snapshot.clone(), key);
            last(&balancer.next(&mut picks, Instant::now()).unwrap())
        };
        let four = snapshot(&[&[(1, 1), (2, 1), (3, 1), (4, 1)]]);
        let three = snapshot(&[&[(4, 1), (2, 1), (1, 1)]]);
        let mut counts = [0_u32; 5];
        for id in 0..1000 {
            let before = place(&one, &four, id);
            counts[usize::from(before)] += 1;
            assert_eq!(before, place(&other, &four, id), "workers agree");
            let after = place(&one, &three, id);
            assert!(before == 3 || before == after, "only those of 3 move");
        }
        assert!(
            counts[1..].iter().all(|n| n.abs_diff(250) < 60),
            "{counts:?}"
        );
    }

    #[test]
    fn the_hash_of_an_endpoint_never_changes() {
        assert_eq!(key_of(b"vpce-0123456789abcdef0"), 0x828E_A164_89B2_7EE6);
    }

    #[test]
    fn who_comes_back_gets_little_first_and_its_share_in_the_end() {
        let now = Instant::now();
        let window = Duration::from_secs(10);
        for balance in [Balance::RoundRobin, Balance::Weighted] {
            let counts = |age: u64| {
                let mut back = choice(2, 1);
                back.slow_start = Some((now, window));
                let snapshot = Arc::new(Snapshot::of_tiers(vec![vec![choice(1, 1), back]]));
                let balancer = Balancer::new(balance, 3);
                let picks = (0..1000).filter(|_| {
                    let mut picks = balancer.picks(snapshot.clone(), 0);
                    let later = now + Duration::from_secs(age);
                    last(&balancer.next(&mut picks, later).unwrap()) == 2
                });
                picks.count()
            };
            assert!((20..150).contains(&counts(0)), "{balance:?} {}", counts(0));
            assert!((200..400).contains(&counts(5)), "{balance:?} {}", counts(5));
            assert!(counts(10).abs_diff(500) < 3, "{balance:?}");
        }
    }
}
