//! What is booked is what was counted: never twice, never less, never negative, whatever happens in between.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use proptest::prelude::*;
use tempfile::TempDir;

use super::report::{By, Query, report};
use super::store::*;
use super::store_tests::{NOON, at, batch, key, number, rows, slot, soon, store};
use super::*;
use crate::account::*;

/// The real thing beside its model: a counter file with slots that are used again, a ledger on the disk, and all that may happen to both.
struct World {
    dir: TempDir,
    store: Option<Store>,
    now: Timestamp,
    file: u64,
    slots: Vec<SlotTotals>,
    /// Everything that was ever counted, by endpoint.
    counted: BTreeMap<String, Counters>,
    /// What ledgers have that were set aside.
    aside: BTreeMap<String, [u64; 6]>,
    ledgers: u32,
}

#[derive(Debug, Clone)]
enum Event {
    /// Counting on an account.
    Count { slot: u8, endpoint: u8, n: u8 },
    /// A booking that goes well.
    Book,
    /// The process is killed before the commit, between it and the counter file's word of it, or while nothing is booked; its sessions are cut.
    Killed { after_commit: bool, idle: bool },
    /// A booking that fails: another program holds the ledger.
    Fails,
    /// The machine is switched off: the counter file is gone, what was not booked is lost.
    PowerCut,
    /// The ledger is found damaged.
    SetAside,
    /// An account without sessions that is wholly booked leaves memory; its slot is used again.
    Reuse { slot: u8, endpoint: u8 },
    /// Time goes on, or back.
    Clock { hours: i8 },
    /// Hours are exported.
    Export { all: bool },
    /// An hour that is over is added up in its day.
    Roll,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        6 => (0u8..4, 0u8..3, 1u8..20).prop_map(|(slot, endpoint, n)| Event::Count { slot, endpoint, n }),
        4 => Just(Event::Book),
        2 => (any::<bool>(), any::<bool>()).prop_map(|(after_commit, idle)| Event::Killed { after_commit, idle }),
        1 => Just(Event::Fails),
        1 => Just(Event::PowerCut),
        1 => Just(Event::SetAside),
        2 => (0u8..4, 0u8..3).prop_map(|(slot, endpoint)| Event::Reuse { slot, endpoint }),
        4 => (-25i8..30).prop_map(|hours| Event::Clock { hours }),
        1 => any::<bool>().prop_map(|all| Event::Export { all }),
        4 => Just(Event::Roll),
    ]
}

fn sums(counters: &Counters) -> [u64; 6] {
    [
        counters.opened,
        counters.closed(),
        counters.refused(),
        counters.bytes[0],
        counters.bytes[1],
        counters.connection_ms,
    ]
}

fn summed(store: &Store) -> BTreeMap<String, [u64; 6]> {
    let rows = rows(store, &[By::Endpoint]).into_iter();
    rows.map(|row| {
        let ms = (row.connection_seconds * 1000.0).round() as u64;
        let numbers = [
            row.opened,
            row.closed,
            row.refused,
            row.bytes_to_upstream,
            row.bytes_to_client,
            ms,
        ];
        (row.endpoint, numbers)
    })
    .collect()
}

fn add(to: &mut BTreeMap<String, [u64; 6]>, from: BTreeMap<String, [u64; 6]>) {
    for (endpoint, numbers) in from {
        let sums = to.entry(endpoint).or_default();
        sums.iter_mut().zip(numbers).for_each(|(sum, n)| *sum += n);
    }
}

impl World {
    fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
            store: None,
            now: at(NOON),
            file: 1,
            slots: Vec::new(),
            counted: BTreeMap::new(),
            aside: BTreeMap::new(),
            ledgers: 0,
        }
    }

    fn store(&mut self) -> &mut Store {
        let dir = &self.dir;
        self.store.get_or_insert_with(|| {
            let store = store(dir);
            store.connection.busy_timeout(Duration::ZERO).unwrap();
            // The disk is not what is tested, and the process does not die.
            store
                .connection
                .pragma_update(None, "synchronous", "OFF")
                .unwrap();
            store
        })
    }

    fn count(&mut self, place: u32, endpoint: u8, n: u64) {
        let endpoint = format!("vpce-{endpoint}");
        let found = self.slots.iter().position(|slot| slot.slot == place);
        let index = found.unwrap_or_else(|| {
            let mut fresh = slot(place, &endpoint, 0);
            fresh.totals.key = key(&endpoint);
            self.slots.push(fresh);
            self.slots.len() - 1
        });
        let slot = &mut self.slots[index];
        let mut more = Counters {
            opened: n,
            bytes: [n * 1000, n * 77],
            connection_ms: n * 13,
            ..Counters::default()
        };
        // Of those that are open, some close.
        let open = slot.totals.counters.active() + n;
        more.closed[n as usize % CloseReason::ALL.len()] = open / 2;
        more.refused[n as usize % REFUSED] = n / 3;
        slot.totals.counters = slot.totals.counters.plus(&more);
        let owner = slot.totals.key.endpoint.to_string();
        let total = self.counted.entry(owner).or_default();
        *total = total.plus(&more);
    }

    /// As a process does it; `told`: whether it lives long enough to tell the counter file.
    fn book(&mut self, told: bool) -> bool {
        let (now, file, slots) = (self.now, self.file, self.slots.clone());
        let Ok(booked) = self.store().book(now, &batch(file, &slots)) else {
            return false;
        };
        if told {
            for (place, generation, counters) in booked.marks {
                let slot = self.slots.iter_mut().find(|slot| slot.slot == place);
                let slot = slot.unwrap();
                assert_eq!(slot.generation, generation);
                slot.booked = counters;
            }
        }
        true
    }

    /// Sessions that are open are cut; the next process finds the file, books it and begins its own.
    fn recover(&mut self) {
        self.store = None;
        for slot in &mut self.slots {
            let active = slot.totals.counters.active();
            slot.totals.counters.closed[CloseReason::Crashed as usize] += active;
            let owner = slot.totals.key.endpoint.to_string();
            let total = self.counted.entry(owner).or_default();
            total.closed[CloseReason::Crashed as usize] += active;
        }
        let file = self.file;
        let now = self.now;
        assert_eq!(self.store().forget_all_but(now, &[file]).unwrap(), 0);
        assert!(self.book(true));
        self.store().forget(file).unwrap();
        self.file += 1;
        self.slots.clear();
    }

    fn power_cut(&mut self) {
        self.store = None;
        // What was not booked is lost, and what was open is closed.
        let mut crashed = 0;
        for slot in self.slots.drain(..) {
            let lost = slot.totals.counters.since(&slot.booked);
            let owner = slot.totals.key.endpoint.to_string();
            let total = self.counted.entry(owner).or_default();
            *total = total.since(&lost);
            total.closed[CloseReason::Crashed as usize] += slot.booked.active();
            crashed += slot.booked.active();
        }
        self.file += 1;
        let now = self.now;
        let told = self.store().forget_all_but(now, &[]).unwrap();
        // A ledger that was begun anew has no mark of what it did not book itself.
        assert!(told <= crashed);
        if told < crashed {
            assert!(self.ledgers > 0);
        }
    }

    fn happens(&mut self, event: Event) {
        match event {
            Event::Count { slot, endpoint, n } => self.count(slot.into(), endpoint, n.into()),
            Event::Book => assert!(self.book(true)),
            Event::Killed { after_commit, idle } => {
                if !idle && after_commit {
                    assert!(self.book(false));
                }
                self.recover();
            }
            Event::Fails => {
                drop(self.store().connection.execute_batch("SELECT 1"));
                let path = self.dir.path().join(FILE);
                let other = rusqlite::Connection::open(path).unwrap();
                other.execute_batch("BEGIN IMMEDIATE").unwrap();
                let nothing_to_do = self.slots.iter().all(|s| s.booked == s.totals.counters);
                assert!(!self.book(true) || nothing_to_do);
            }
            Event::PowerCut => {
                // A ledger begun anew knows nothing of what is open: what it does not know of it cannot close.
                if self.ledgers == 0 {
                    self.power_cut();
                }
            }
            Event::SetAside => {
                // Only what is marked in both is beyond doubt: a kill in the moment after the commit and damage at once would book that again.
                let had = summed(self.store());
                add(&mut self.aside, had);
                self.store = None;
                self.ledgers += 1;
                for suffix in ["", "-wal", "-shm"] {
                    let from = beside(&self.dir.path().join(FILE), suffix);
                    let to = beside(&from, &format!(".{}", self.ledgers));
                    let _ = fs::rename(from, to);
                }
            }
            Event::Reuse { slot, endpoint } => {
                let place = u32::from(slot);
                let found = self.slots.iter_mut().find(|slot| slot.slot == place);
                let Some(slot) = found else { return };
                let counters = slot.totals.counters;
                if counters.active() > 0 || counters != slot.booked {
                    return;
                }
                slot.generation += 1;
                slot.totals.counters = Counters::default();
                slot.booked = Counters::default();
                slot.totals.key = key(&format!("vpce-{endpoint}"));
            }
            Event::Clock { hours } => {
                self.now += jiff::SignedDuration::from_hours(hours.into());
            }
            Event::Roll => {
                let now = self.now;
                self.store().roll(now).unwrap();
                self.check_days();
            }
            Event::Export { all } => {
                let now = self.now;
                let before = summed(self.store());
                for hour in self.store().seal(now, all).unwrap() {
                    let file = self.dir.path().join("x.csv");
                    self.store().exported(now, hour, &[file]).unwrap();
                }
                assert_eq!(summed(self.store()), before);
            }
        }
    }

    /// Days have what their hours have, wherever a report is cut.
    fn check_days(&mut self) {
        let now = self.now;
        let store = self.store();
        let ask = |since, until, by: &[By]| {
            let query = Query {
                since,
                until,
                by: by.to_vec(),
            };
            let rows = report(&store.connection, &store.path, &query, soon()).unwrap();
            let sums = rows.iter().map(|row| row.bytes_to_upstream + row.opened);
            (sums.sum::<u64>(), rows)
        };
        let days = jiff::SignedDuration::from_hours(31);
        for (since, until) in [
            (None, None),
            (Some(now - days), None),
            (None, Some(now)),
            (Some(now - days), Some(now - days / 10)),
        ] {
            let (by_hour, _) = ask(since, until, &[By::Hour, By::Endpoint]);
            let (by_day, rows) = ask(since, until, &[By::Day, By::Endpoint]);
            assert_eq!(by_day, by_hour);
            assert!(rows.is_sorted_by_key(|row| (row.period.clone(), row.endpoint.clone())));
            assert_eq!(ask(since, until, &[]).0, by_hour);
        }
        let sum = |view| {
            number(
                store,
                &format!("SELECT coalesce(sum(connection_ms + bytes_to_client), 0) FROM {view}"),
            )
        };
        assert_eq!(sum("usage_by_day"), sum("usage"));
    }

    fn check(&mut self) {
        assert!(self.book(true));
        self.check_days();
        let mut booked = summed(self.store());
        add(&mut booked, self.aside.clone());
        let counted: BTreeMap<_, _> = self
            .counted
            .iter()
            .map(|(endpoint, counters)| (endpoint.clone(), sums(counters)))
            .filter(|(_, sums)| sums.iter().any(|sum| *sum > 0))
            .collect();
        booked.retain(|_, sums| sums.iter().any(|sum| *sum > 0));
        assert_eq!(booked, counted);
        let store = self.store();
        let negative = "SELECT count(*) FROM hours WHERE min(opened, closed, refused, bytes_to_upstream, bytes_to_client, connection_ms) < 0";
        assert_eq!(number(store, negative), 0);
        let by_reason = "SELECT (SELECT sum(closed) + sum(refused) FROM hours) IS (SELECT sum(count) FROM hour_reasons) OR (SELECT coalesce(sum(closed) + sum(refused), 0) FROM hours) = 0";
        assert_eq!(number(store, by_reason), 1);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_the_ledgers_have_what_was_counted(events in prop::collection::vec(event(), 1..40)) {
        let mut world = World::new();
        for event in events {
            world.happens(event);
        }
        world.check();
    }
}
