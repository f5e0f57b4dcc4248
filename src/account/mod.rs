//! The books: who moved how much, who was refused, and why each connection ended.
//!
//! An [`Account`] belongs to one (listener, endpoint, upstream). Each worker writes a shard of its own, so that counting
//! is a plain load and store without contention; whoever reads adds the shards up. [`Meter`] ties a session to its
//! account: opened when it is made, closed exactly once when it ends.
//!
//! Knows no sockets and no HTTP: [`Books::snapshot`] is what the admin side gets to see.

mod anchor;
pub mod audit;
mod counter;
mod meter;
mod reason;
mod totals;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use anchor::Anchor;
pub use counter::{Cell, ListenerShard, WorkerShard};
pub use meter::Meter;
pub use reason::{
    AcceptError, CloseReason, Direction, Event, Fallback, PeekOutcome, Refusal, RelayPath,
};

pub use totals::{
    AccountKey, AccountTotals, Counters, HEADER, NOBODY, REFUSED, SlotTotals, refused_name,
};

use crate::proxy_protocol::header::DIRECT;

/// Where connections of endpoints beyond `accounts.max` are booked.
pub const OVERFLOW: &str = "overflow";

/// The books of one (listener, endpoint, upstream): a shard per worker.
#[derive(Debug)]
pub struct Account {
    key: AccountKey,
    shards: Box<[AccountShard]>,
}

/// One worker's part of an account. Written by that worker alone.
#[derive(Debug, Default)]
#[repr(align(64))] // two workers never share a cache line
struct AccountShard {
    opened: Cell,
    closed: [Cell; CloseReason::ALL.len()],
    bytes: [Cell; Direction::ALL.len()],
}

impl Account {
    fn new(key: AccountKey, workers: usize) -> Self {
        let shards = (0..workers).map(|_| AccountShard::default()).collect();
        Self { key, shards }
    }

    /// The endpoint it is kept for: `overflow` where the bound was reached.
    #[must_use]
    pub fn endpoint(&self) -> &Arc<str> {
        &self.key.endpoint
    }

    fn totals(&self) -> AccountTotals {
        // Closed before opened: a connection counted in between shows as active, never as minus one.
        let sum = |cell: &dyn Fn(&AccountShard) -> u64| self.shards.iter().map(cell).sum::<u64>();
        let closed =
            CloseReason::ALL.map(|reason| sum(&|shard| shard.closed[reason as usize].get()));
        let bytes =
            Direction::ALL.map(|direction| sum(&|shard| shard.bytes[direction as usize].get()));
        let opened = sum(&|shard| shard.opened.get());
        AccountTotals {
            key: self.key.clone(),
            counters: Counters {
                opened,
                closed,
                bytes,
                ..Counters::default()
            },
            peak: 0,
        }
    }
}

/// All accounts and counters of one process.
#[derive(Debug)]
pub struct Books {
    accounts: Mutex<Accounts>,
    max_accounts: usize,
    listeners: Vec<(Arc<str>, Box<[ListenerShard]>)>,
    workers: Box<[WorkerShard]>,
}

#[derive(Debug, Default)]
struct Accounts {
    by_key: HashMap<AccountKey, Arc<Account>>,
    /// In the order they were opened, so that what is shown does not jump about.
    in_order: Vec<Arc<Account>>,
    /// Connections booked to `overflow` because the bound was reached.
    overflowed: u64,
}

impl Books {
    /// Empty books for these listeners and so many workers; at most `max_accounts` accounts beside those of `overflow`.
    #[must_use]
    pub fn new(listeners: &[Arc<str>], workers: usize, max_accounts: usize) -> Self {
        let shards = |_| (0..workers).map(|_| ListenerShard::default()).collect();
        Self {
            accounts: Mutex::default(),
            max_accounts,
            listeners: listeners
                .iter()
                .enumerate()
                .map(|(i, name)| (name.clone(), shards(i)))
                .collect(),
            workers: (0..workers).map(|_| WorkerShard::default()).collect(),
        }
    }

    /// The account of `key`, made when it is new; that of `overflow` where `accounts.max` is reached. Takes a lock: once per
    /// connection at most, and a worker keeps what it was given.
    #[must_use]
    pub fn account(&self, key: AccountKey) -> Arc<Account> {
        let mut accounts = self.lock();
        if let Some(account) = accounts.by_key.get(&key) {
            return account.clone();
        }
        // `direct` is ours, not a consumer's: it never overflows.
        if accounts.by_key.len() < self.max_accounts || &*key.endpoint == DIRECT {
            return accounts.insert(key, self.workers.len());
        }
        accounts.overflowed += 1;
        let key = AccountKey {
            endpoint: OVERFLOW.into(),
            ..key
        };
        match accounts.by_key.get(&key) {
            Some(account) => account.clone(),
            None => accounts.insert(key, self.workers.len()),
        }
    }

    /// One worker's counters of a listener, by the listener's index.
    #[must_use]
    pub fn listener(&self, listener: usize, worker: usize) -> &ListenerShard {
        &self.listeners[listener].1[worker]
    }

    /// One worker's own counters.
    #[must_use]
    pub fn worker(&self, worker: usize) -> &WorkerShard {
        &self.workers[worker]
    }

    /// Everything counted so far, added up over the workers. Costs a pass over all accounts.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let (accounts, overflowed) = {
            let accounts = self.lock();
            (accounts.in_order.clone(), accounts.overflowed)
        };
        let listeners = self.listeners.iter();
        Snapshot {
            accounts: accounts.iter().map(|account| account.totals()).collect(),
            overflowed,
            listeners: listeners
                .map(|(name, shards)| ListenerTotals::add_up(name.clone(), shards))
                .collect(),
            workers: WorkerTotals::add_up(&self.workers),
        }
    }

    /// A worker that panicked while it held the lock left whole accounts behind: nothing is torn.
    fn lock(&self) -> MutexGuard<'_, Accounts> {
        self.accounts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Accounts {
    fn insert(&mut self, key: AccountKey, workers: usize) -> Arc<Account> {
        let account = Arc::new(Account::new(key.clone(), workers));
        self.by_key.insert(key, account.clone());
        self.in_order.push(account.clone());
        account
    }
}

/// What was counted, at one moment.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// Every account, oldest first.
    pub accounts: Vec<AccountTotals>,
    /// Connections booked to `overflow` because `accounts.max` was reached.
    pub overflowed: u64,
    /// Every listener, in the order of the configuration.
    pub listeners: Vec<ListenerTotals>,
    /// All workers together.
    pub workers: WorkerTotals,
}

/// A listener's counters, added up over the workers.
#[derive(Debug, Clone)]
pub struct ListenerTotals {
    /// Its name.
    pub name: Arc<str>,
    /// Refused headers, by [`crate::proxy_protocol::header::HeaderError`].
    pub header_errors: [u64; crate::proxy_protocol::header::HeaderError::ALL.len()],
    /// Connections refused after the header or for want of room, by [`Refusal`].
    pub refused: [u64; Refusal::ALL.len()],
    /// Connections whose first bytes were looked at, by [`PeekOutcome`].
    pub peeks: [u64; PeekOutcome::ALL.len()],
    /// Errors of accept(2), by [`AcceptError`].
    pub accept_errors: [u64; AcceptError::ALL.len()],
    /// LOCAL headers.
    pub health_checks: u64,
    /// Connections that ended without a byte.
    pub empty: u64,
}

impl ListenerTotals {
    fn add_up(name: Arc<str>, shards: &[ListenerShard]) -> Self {
        let sum = |cell: &dyn Fn(&ListenerShard) -> u64| shards.iter().map(cell).sum::<u64>();
        Self {
            name,
            header_errors: std::array::from_fn(|i| sum(&|shard| shard.header_errors[i].get())),
            refused: std::array::from_fn(|i| sum(&|shard| shard.refused[i].get())),
            peeks: std::array::from_fn(|i| sum(&|shard| shard.peeks[i].get())),
            accept_errors: std::array::from_fn(|i| sum(&|shard| shard.accept_errors[i].get())),
            health_checks: sum(&|shard| shard.health_checks.get()),
            empty: sum(&|shard| shard.empty.get()),
        }
    }
}

/// The workers' own counters, added up.
#[derive(Debug, Clone)]
pub struct WorkerTotals {
    /// Bytes moved, by [`RelayPath`].
    pub relayed: [u64; RelayPath::ALL.len()],
    /// Directions that gave up splice(2), by [`Fallback`].
    pub fallbacks: [u64; Fallback::ALL.len()],
    /// Pipes with bytes in them now.
    pub pipes_lent: u64,
    /// Empty pipes kept for the next.
    pub pipes_idle: u64,
}

impl WorkerTotals {
    fn add_up(shards: &[WorkerShard]) -> Self {
        let sum = |cell: &dyn Fn(&WorkerShard) -> u64| shards.iter().map(cell).sum::<u64>();
        Self {
            relayed: std::array::from_fn(|i| sum(&|shard| shard.relayed[i].get())),
            fallbacks: std::array::from_fn(|i| sum(&|shard| shard.fallbacks[i].get())),
            pipes_lent: sum(&|shard| shard.pipes_lent.get()),
            pipes_idle: sum(&|shard| shard.pipes_idle.get()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(endpoint: &str) -> AccountKey {
        AccountKey {
            listener: "l".into(),
            endpoint: endpoint.into(),
            consumer: "".into(),
            upstream: "u".into(),
        }
    }

    fn books(max: usize) -> Arc<Books> {
        Arc::new(Books::new(&["l".into()], 2, max))
    }

    #[test]
    fn shards_of_all_workers_are_added_up() {
        let books = books(10);
        let first = Meter::open(books.account(key("vpce-1")), 0);
        let second = Meter::open(books.account(key("vpce-1")), 1);
        first.moved(Direction::ToUpstream, 5);
        second.moved(Direction::ToUpstream, 7);
        second.moved(Direction::ToClient, 1);
        first.close(CloseReason::Completed);
        let totals = &books.snapshot().accounts[0].counters;
        assert_eq!(
            (totals.opened, totals.active(), totals.bytes),
            (2, 1, [12, 1])
        );
        assert_eq!(totals.closed[CloseReason::Completed as usize], 1);
    }

    #[test]
    fn a_meter_that_is_dropped_closes_with_error_once() {
        let books = books(10);
        drop(Meter::open(books.account(key("vpce-1")), 0));
        Meter::open(books.account(key("vpce-1")), 0).close(CloseReason::IdleTimeout);
        let totals = &books.snapshot().accounts[0].counters;
        assert_eq!((totals.opened, totals.active()), (2, 0));
        assert_eq!(totals.closed[CloseReason::Error as usize], 1);
        assert_eq!(totals.closed[CloseReason::IdleTimeout as usize], 1);
    }

    #[test]
    fn endpoints_beyond_the_bound_share_overflow_and_known_ones_keep_theirs() {
        let books = books(2);
        for id in ["a", "b", "c", "d", "a"] {
            Meter::open(books.account(key(id)), 0).close(CloseReason::Completed);
        }
        Meter::open(books.account(key(DIRECT)), 0).close(CloseReason::Completed);
        let snapshot = books.snapshot();
        let opened: Vec<_> = snapshot
            .accounts
            .iter()
            .map(|a| (&*a.key.endpoint, a.counters.opened))
            .collect();
        assert_eq!(opened, [("a", 2), ("b", 1), (OVERFLOW, 2), (DIRECT, 1)]);
        assert_eq!(snapshot.overflowed, 2);
    }
}
