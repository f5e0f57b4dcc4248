//! Which endpoints `/metrics` shows one by one: those with the most bytes, and the rest added up under `other`.
//!
//! Three things hold at each scrape. What is shown adds up, with `other`, to all that was ever counted. `other` never goes down. And an
//! endpoint that is shown stays so until another has more bytes, looked at once a minute: then what it showed is part of `other`, and should it
//! come back it starts at zero, as Prometheus expects of a counter that was away.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::account::{AccountKey, AccountTotals, Counters, NOBODY, OTHER, OVERFLOW, Snapshot};
use crate::proxy_protocol::header::DIRECT;

/// Between two looks at who has the most bytes. Each change of places makes a jump in `other`, so that they should be few.
const RANKED_EVERY: Duration = Duration::from_secs(60);

/// A line of the metrics: an account, or what accounts of one listener and upstream that are not shown have together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Shown {
    pub(super) key: AccountKey,
    /// Counted since its endpoint was last taken in.
    pub(super) counters: Counters,
    /// Open now, whenever they were opened.
    pub(super) active: u64,
}

/// Who is shown, from scrape to scrape.
#[derive(Debug)]
pub struct Top(Mutex<Places>);

impl Top {
    /// Shows so many endpoints one by one.
    #[must_use]
    pub fn new(max: usize) -> Self {
        Self(Mutex::new(Places::new(max)))
    }

    /// See [`Places::look`]. Those who ask at once are answered one by one, each from a snapshot of its own that is not older than that of the
    /// one before.
    pub(super) fn look(
        &self,
        snapshot: impl FnOnce() -> Snapshot,
        now: Instant,
    ) -> (Snapshot, Vec<Shown>) {
        let mut places = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let snapshot = snapshot();
        let shown = places.look(&snapshot.accounts, &snapshot.gone, now);
        (snapshot, shown)
    }
}

/// Who is shown, and since when.
#[derive(Debug)]
struct Places {
    /// How many endpoints are shown.
    max: usize,
    /// Those that are.
    held: HashSet<Arc<str>>,
    /// What accounts of theirs had counted when they were taken in, and `other` has; nothing where an account was shown from its beginning.
    before: HashMap<AccountKey, Counters>,
    /// Whether somebody was left to `other` at the last scrape, who may come in with what `other` has already.
    crowded: bool,
    /// When it was last looked who has the most bytes.
    ranked: Option<Instant>,
}

impl Places {
    fn new(max: usize) -> Self {
        Self {
            max,
            held: HashSet::new(),
            before: HashMap::new(),
            crowded: false,
            ranked: None,
        }
    }

    /// What is to be shown of `accounts`, and of `gone`: what accounts had counted that are in memory no more, by listener and upstream.
    fn look(
        &mut self,
        accounts: &[AccountTotals],
        gone: &[AccountTotals],
        now: Instant,
    ) -> Vec<Shown> {
        let was_crowded = self.crowded;
        let entered = self.choose(accounts, now);
        let mut before = HashMap::new();
        let mut shown = Vec::new();
        let mut others = Others::default();
        for account in accounts {
            let (key, counters) = (&account.key, &account.counters);
            if !is_ours(&key.endpoint) && !self.held.contains(&key.endpoint) {
                others.add(key, counters, counters.active());
                continue;
            }
            // One that was nowhere to be seen at the last scrape begins with all it has: no sum has it.
            let already = match entered.contains(&key.endpoint) {
                true if was_crowded => Some(*counters),
                true => None,
                false => self.before.get(key).copied(),
            };
            // An account of less than its endpoint came with is another, made since: it begins.
            let already =
                already.filter(|already| counters.since(already).plus(already) == *counters);
            let already = already.unwrap_or_default();
            shown.push(Shown {
                key: key.clone(),
                counters: counters.since(&already),
                active: counters.active(),
            });
            if already != Counters::default() {
                others.add(key, &already, 0);
                before.insert(key.clone(), already);
            }
        }
        for account in gone {
            others.add(&account.key, &account.counters, 0);
        }
        self.before = before;
        shown.extend(others.into_shown());
        shown
    }

    /// Settles who is held; gives those who were not before.
    fn choose(&mut self, accounts: &[AccountTotals], now: Instant) -> HashSet<Arc<str>> {
        let mut bytes = HashMap::<&Arc<str>, u64>::new();
        for account in accounts
            .iter()
            .filter(|account| !is_ours(&account.key.endpoint))
        {
            *bytes.entry(&account.key.endpoint).or_default() +=
                account.counters.bytes.iter().sum::<u64>();
        }
        self.held.retain(|endpoint| bytes.contains_key(endpoint));
        let due = self
            .ranked
            .is_none_or(|ranked| now.duration_since(ranked) >= RANKED_EVERY);
        let crowded = bytes.len() > self.max;
        if crowded && due {
            self.ranked = Some(now);
        }
        let mut wanted: Vec<_> = bytes.into_iter().collect();
        if crowded {
            // Between two looks at the bytes those who are held go before everybody. Among equals they do in any case, so that nothing moves
            // without need.
            let rank = |(endpoint, bytes): &(&Arc<str>, u64)| {
                let held = self.held.contains(*endpoint);
                (
                    Reverse(held && !due),
                    Reverse(*bytes),
                    Reverse(held),
                    (*endpoint).clone(),
                )
            };
            wanted.sort_by_cached_key(rank);
            wanted.truncate(self.max);
        }
        let wanted: HashSet<_> = wanted
            .into_iter()
            .map(|(endpoint, _)| endpoint.clone())
            .collect();
        let entered = wanted.difference(&self.held).cloned().collect();
        self.held = wanted;
        self.crowded = crowded;
        entered
    }
}

/// What is not shown, by listener and upstream: whose there are is up to the configuration.
#[derive(Default)]
struct Others<'a>(BTreeMap<(&'a str, &'a str), Shown>);

impl<'a> Others<'a> {
    fn add(&mut self, key: &'a AccountKey, counters: &Counters, active: u64) {
        let other = self
            .0
            .entry((&key.listener, &key.upstream))
            .or_insert_with(|| Shown {
                key: AccountKey {
                    endpoint: OTHER.into(),
                    consumer: "".into(),
                    ..key.clone()
                },
                counters: Counters::default(),
                active: 0,
            });
        other.counters = other.counters.plus(counters);
        other.active += active;
    }

    fn into_shown(self) -> impl Iterator<Item = Shown> {
        self.0.into_values()
    }
}

/// Endpoints that are no consumer's: always shown, beside as many as are wanted of the others.
fn is_ours(endpoint: &str) -> bool {
    [DIRECT, OVERFLOW, NOBODY].contains(&endpoint)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::account::{CloseReason, Direction};

    fn key(endpoint: &str, upstream: &str) -> AccountKey {
        AccountKey {
            listener: "l".into(),
            endpoint: endpoint.into(),
            consumer: "".into(),
            upstream: upstream.into(),
        }
    }

    fn totals(endpoint: &str, bytes: u64) -> AccountTotals {
        AccountTotals {
            key: key(endpoint, "u"),
            counters: counted(bytes, 0),
            peak: 0,
        }
    }

    fn counted(bytes: u64, opened: u64) -> Counters {
        let mut counters = Counters {
            opened,
            ..Counters::default()
        };
        counters.bytes[Direction::ToClient as usize] = bytes;
        counters
    }

    /// Endpoint and bytes of each line.
    fn seen(shown: &[Shown]) -> Vec<(&str, u64)> {
        let line = |shown: &Shown| shown.counters.bytes.iter().sum::<u64>();
        let mut lines: Vec<_> = shown
            .iter()
            .map(|shown| (&*shown.key.endpoint, line(shown)))
            .collect();
        lines.sort_unstable();
        lines
    }

    #[test]
    fn with_room_for_all_there_is_no_other() {
        let mut top = Places::new(2);
        let shown = top.look(&[totals("a", 1), totals("b", 2)], &[], Instant::now());
        assert_eq!(seen(&shown), [("a", 1), ("b", 2)]);
        let shown = top.look(&[totals("a", 1)], &[totals("b", 2)], Instant::now());
        assert_eq!(seen(&shown), [("a", 1), (OTHER, 2)], "b left memory");
    }

    #[test]
    fn who_has_more_bytes_takes_a_place_once_a_minute_and_starts_at_zero() {
        let mut top = Places::new(1);
        let start = Instant::now();
        let mut look = |accounts: &[(&str, u64)], seconds| {
            let accounts: Vec<_> = accounts
                .iter()
                .map(|(id, bytes)| totals(id, *bytes))
                .collect();
            let shown = top.look(&accounts, &[], start + Duration::from_secs(seconds));
            seen(&shown)
                .into_iter()
                .map(|(id, bytes)| (id.to_owned(), bytes))
                .collect::<Vec<_>>()
        };
        let is = |lines: &[(&str, u64)]| -> Vec<(String, u64)> {
            lines
                .iter()
                .map(|(id, bytes)| ((*id).to_owned(), *bytes))
                .collect()
        };
        assert_eq!(look(&[("a", 5), ("b", 4)], 0), is(&[("a", 5), (OTHER, 4)]));
        assert_eq!(look(&[("a", 5), ("b", 9)], 59), is(&[("a", 5), (OTHER, 9)]));
        assert_eq!(
            look(&[("a", 5), ("b", 9)], 60),
            is(&[("b", 0), (OTHER, 14)])
        );
        assert_eq!(
            look(&[("a", 6), ("b", 12)], 61),
            is(&[("b", 3), (OTHER, 15)])
        );
        assert_eq!(
            look(&[("a", 12), ("b", 12)], 999),
            is(&[("b", 3), (OTHER, 21)]),
            "no move without need"
        );
        assert_eq!(
            look(&[("a", 20), ("b", 12)], 1999),
            is(&[("a", 0), (OTHER, 32)])
        );
    }

    #[test]
    fn a_place_that_is_free_is_taken_at_once() {
        let mut top = Places::new(1);
        let now = Instant::now();
        top.look(&[totals("a", 5), totals("b", 4), totals("c", 7)], &[], now);
        let shown = top.look(&[totals("a", 9), totals("b", 4)], &[totals("c", 7)], now);
        assert_eq!(seen(&shown), [("a", 0), (OTHER, 20)]);
    }

    #[test]
    fn an_account_that_came_again_begins() {
        let mut top = Places::new(1);
        let now = Instant::now();
        top.look(&[totals("a", 5), totals("b", 4)], &[], now);
        let later = now + RANKED_EVERY;
        top.look(&[totals("a", 5), totals("b", 9)], &[], later);
        let shown = top.look(&[totals("a", 5), totals("b", 2)], &[totals("b", 9)], later);
        assert_eq!(seen(&shown), [("b", 2), (OTHER, 14)]);
    }

    #[test]
    fn our_own_names_are_shown_beside_the_others() {
        let mut top = Places::new(1);
        let accounts = [
            totals(DIRECT, 1),
            totals(OVERFLOW, 1),
            totals(NOBODY, 0),
            totals("a", 5),
            totals("b", 1),
        ];
        let shown = top.look(&accounts, &[], Instant::now());
        assert_eq!(
            seen(&shown),
            [
                (NOBODY, 0),
                ("a", 5),
                (DIRECT, 1),
                (OTHER, 1),
                (OVERFLOW, 1)
            ]
        );
    }

    #[test]
    fn open_connections_are_all_shown_whenever_they_were_opened() {
        let mut top = Places::new(1);
        let now = Instant::now();
        let account = |id: &str, bytes, opened| AccountTotals {
            counters: counted(bytes, opened),
            ..totals(id, 0)
        };
        top.look(&[account("a", 5, 1), account("b", 4, 3)], &[], now);
        let shown = top.look(
            &[account("a", 5, 1), account("b", 9, 3)],
            &[],
            now + RANKED_EVERY,
        );
        let lines: Vec<_> = shown
            .iter()
            .map(|shown| (&*shown.key.endpoint, shown.counters.opened, shown.active))
            .collect();
        assert_eq!(lines, [("b", 0, 3), (OTHER, 4, 1)]);
    }

    /// What happens between and at scrapes.
    #[derive(Debug, Clone)]
    enum Step {
        /// This endpoint counts on this upstream; its account is made where there is none.
        Count(usize, usize, u64),
        /// Its accounts leave memory.
        Leave(usize),
        /// So many seconds pass, and somebody asks.
        Scrape(u64),
    }

    const ENDPOINTS: [&str; 8] = ["a", "b", "c", "d", "e", "f", "g", DIRECT];
    const UPSTREAMS: [&str; 2] = ["u", "v"];

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            5 => (0..ENDPOINTS.len(), 0..UPSTREAMS.len(), 1..50u64).prop_map(|(e, u, n)| Step::Count(e, u, n)),
            1 => (0..ENDPOINTS.len()).prop_map(Step::Leave),
            4 => (0..90u64).prop_map(Step::Scrape),
        ]
    }

    /// Everything of everybody.
    fn sum<'a>(all: impl Iterator<Item = &'a Counters>) -> Counters {
        all.fold(Counters::default(), |sum, counters| sum.plus(counters))
    }

    fn of_upstream<'a>(all: &'a [Shown], upstream: &'a str) -> impl Iterator<Item = &'a Counters> {
        let here = all
            .iter()
            .filter(move |shown| &*shown.key.upstream == upstream);
        here.map(|shown| &shown.counters)
    }

    /// Whether no number of `less` is above its like in `more`.
    fn at_most(less: &Counters, more: &Counters) -> bool {
        less.since(more) == Counters::default()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(500))]
        #[test]
        fn whatever_moves_nothing_is_lost_or_counted_twice(
            max in 1..5usize,
            steps in proptest::collection::vec(step(), 1..120),
        ) {
            let mut top = Places::new(max);
            let mut live = BTreeMap::<(usize, usize), Counters>::new();
            let mut gone = BTreeMap::<usize, Counters>::new();
            let mut now = Instant::now();
            let mut last: Vec<Shown> = Vec::new();
            for step in steps {
                match step {
                    Step::Count(endpoint, upstream, n) => {
                        let account = live.entry((endpoint, upstream)).or_default();
                        let mut more = counted(n, n % 3);
                        more.closed[CloseReason::Completed as usize] = n % 3;
                        *account = account.plus(&more);
                    }
                    Step::Leave(endpoint) => {
                        for upstream in 0..UPSTREAMS.len() {
                            if let Some(account) = live.remove(&(endpoint, upstream)) {
                                let gone = gone.entry(upstream).or_default();
                                *gone = gone.plus(&account);
                            }
                        }
                    }
                    Step::Scrape(seconds) => {
                        now += Duration::from_secs(seconds);
                        let accounts: Vec<_> = live.iter().map(|((endpoint, upstream), counters)| AccountTotals {
                            key: key(ENDPOINTS[*endpoint], UPSTREAMS[*upstream]),
                            counters: *counters,
                            peak: 0,
                        }).collect();
                        let left: Vec<_> = gone.iter().map(|(upstream, counters)| AccountTotals {
                            key: key(OTHER, UPSTREAMS[*upstream]),
                            counters: *counters,
                            peak: 0,
                        }).collect();
                        let shown = top.look(&accounts, &left, now);
                        for (number, upstream) in UPSTREAMS.iter().enumerate() {
                            let here = live.iter().filter(|((_, u), _)| *u == number).map(|(_, counters)| counters);
                            let truth = sum(here.chain(gone.get(&number)));
                            prop_assert_eq!(sum(of_upstream(&shown, upstream)), truth, "of {}", upstream);
                            prop_assert!(at_most(&sum(of_upstream(&last, upstream)), &truth));
                        }
                        let held: HashSet<_> = shown.iter().map(|shown| &shown.key.endpoint).filter(|id| !is_ours(id) && &***id != OTHER).collect();
                        prop_assert!(held.len() <= max);
                        prop_assert!(held.len() == max || live.keys().all(|(endpoint, _)| is_ours(ENDPOINTS[*endpoint]) || held.contains(&Arc::from(ENDPOINTS[*endpoint]))));
                        for line in &last {
                            let now = shown.iter().find(|shown| shown.key == line.key);
                            if &*line.key.endpoint == OTHER {
                                prop_assert!(now.is_some_and(|now| at_most(&line.counters, &now.counters)), "other never goes down");
                            }
                        }
                        last = shown;
                    }
                }
            }
        }
    }
}
