//! All accounts and counters of one process.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::accounts::Account;
use super::counter::{ListenerShard, WorkerShard};
use super::file::CounterFile;
use super::layout::{HEADER_WORDS, header, ledger_of, slot_words};
use super::limits::Limits;
use super::meter::Meter;
use super::snapshot::{ListenerTotals, Snapshot, WorkerTotals};
use super::totals::{AccountKey, AccountTotals, Counters, OTHER, OVERFLOW, SlotTotals};
use crate::sys::clock::monotonic_ms;
use crate::sys::region::Region;

/// Where the counters are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// In memory: they end with the process, and nobody books them.
    Memory,
    /// In a file in this directory, which outlives the process; a ledger books them.
    File(PathBuf),
    /// In memory, and a ledger books them: what was counted since the last booking ends with the process.
    Unkept,
}

pub use super::file::BooksError;

/// Each worker's counters of a listener.
pub type Shards = Arc<[ListenerShard]>;

/// See the module.
#[derive(Debug)]
pub struct Books {
    accounts: Mutex<Accounts>,
    /// Room for so many accounts, which does not change.
    slots: usize,
    region: Arc<Region>,
    file: Option<CounterFile>,
    /// Whether a ledger books them.
    to_be_booked: bool,
    listeners: Mutex<Vec<(Arc<str>, Shards)>>,
    workers: Box<[WorkerShard]>,
}

#[derive(Debug, Default)]
struct Accounts {
    by_key: HashMap<AccountKey, Arc<Account>>,
    /// By generation, which is the order in which they were opened, so that what is shown does not jump about.
    in_order: BTreeMap<u64, Arc<Account>>,
    by_slot: Vec<Option<Arc<Account>>>,
    /// Slots that nobody has; the one that was left last is used last.
    free: VecDeque<u32>,
    /// How many were ever made.
    generation: u64,
    limits: Limits,
    /// Those of endpoints that nobody had named when they were made, by generation: what `accounts.max` bounds.
    unnamed: HashSet<u64>,
    /// Connections booked to `overflow` because the bound was reached.
    overflowed: u64,
    /// What was counted on accounts that left, by listener and upstream.
    gone: BTreeMap<(Arc<str>, Arc<str>), Counters>,
}

impl Books {
    /// Empty books for so many workers, with counters for these listeners.
    ///
    /// # Errors
    /// [`BooksError`]: there is no room, or no file can be made.
    pub fn new(
        place: Place,
        listeners: &[Arc<str>],
        workers: usize,
        limits: Limits,
    ) -> Result<Self, BooksError> {
        let slots = limits.slots();
        let to_be_booked = place != Place::Memory;
        let (region, file) = match place {
            Place::Memory | Place::Unkept => (CounterFile::memory(workers, slots)?, None),
            Place::File(run_dir) => {
                let (region, file) = CounterFile::create(&run_dir, workers, slots)?;
                (region, Some(file))
            }
        };
        let numbers = u32::try_from(slots).map_err(|_| BooksError::TooMany)?;
        let accounts = Accounts {
            by_slot: (0..numbers).map(|_| None).collect(),
            free: (0..numbers).collect(),
            limits,
            ..Accounts::default()
        };
        let books = Self {
            accounts: Mutex::new(accounts),
            slots,
            region: Arc::new(region),
            file,
            to_be_booked,
            listeners: Mutex::default(),
            workers: (0..workers).map(|_| WorkerShard::default()).collect(),
        };
        for name in listeners {
            books.listener(name);
        }
        Ok(books)
    }

    /// The account of `key`, made when it is new; that of `overflow` where `accounts.max` is reached. Takes a lock: once per
    /// connection at most, and a worker keeps what it was given in a [`Cache`](super::Cache).
    #[must_use]
    pub fn account(&self, key: AccountKey) -> Arc<Account> {
        self.lock().find(key, self)
    }

    /// Books one connection opened on the account of `key`, on the part of `worker`. What [`Meter::open`] does where nothing was kept.
    #[must_use]
    pub fn open(&self, key: AccountKey, worker: usize) -> (Meter, Arc<Account>) {
        let mut accounts = self.lock();
        let account = accounts.find(key, self);
        let meter = Meter::open(account.clone(), worker);
        // Accounts are retired under the lock, and are no longer found then.
        (meter.expect("what is found is not retired"), account)
    }

    /// Books one connection refused on the account of `key`, on the part of `worker`; `index` is the place in [`Counters::refused`].
    pub fn refuse(&self, key: AccountKey, worker: usize, index: usize) -> Arc<Account> {
        let mut accounts = self.lock();
        let account = accounts.find(key, self);
        let refused = account.refuse(worker, index);
        refused.expect("what is found is not retired");
        account
    }

    /// Most accounts that a [`Cache`](super::Cache) need have room for.
    #[must_use]
    pub fn most_accounts(&self) -> usize {
        self.slots
    }

    /// How many accounts are in memory.
    #[must_use]
    pub fn accounts(&self) -> usize {
        self.lock().by_key.len()
    }

    /// The counters of a listener, made when its name is new. They stay with the name for as long as the process lives: what was counted once is
    /// shown for ever, and goes on where the listener comes back.
    pub fn listener(&self, name: &Arc<str>) -> Shards {
        let mut listeners = self.listeners();
        if let Some((_, shards)) = listeners.iter().find(|(known, _)| known == name) {
            return shards.clone();
        }
        let workers = 0..self.workers.len();
        let shards: Shards = workers.map(|_| ListenerShard::default()).collect();
        listeners.push((name.clone(), shards.clone()));
        shards
    }

    fn listeners(&self) -> MutexGuard<'_, Vec<(Arc<str>, Shards)>> {
        let listeners = self.listeners.lock();
        listeners.unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on other endpoints have a name, and always an account of their own. There is room for as many accounts as before: where that is less
    /// than what is asked for, those that nobody has named get by with fewer; says how many are missing even then.
    pub fn set_limits(&self, mut limits: Limits) -> usize {
        let missing = limits.slots().saturating_sub(self.slots);
        let given_up = missing.min(limits.max.saturating_sub(1));
        limits.max -= given_up;
        self.lock().limits = limits;
        missing - given_up
    }

    /// Connections that were booked to `overflow` because the bound was reached.
    #[must_use]
    pub fn overflowed(&self) -> u64 {
        self.lock().overflowed
    }

    /// One worker's own counters.
    #[must_use]
    pub fn worker(&self, worker: usize) -> &WorkerShard {
        &self.workers[worker]
    }

    /// Everything counted so far, added up over the workers. Costs a pass over all accounts.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let (accounts, gone, overflowed) = {
            let accounts = self.lock();
            let all: Vec<_> = accounts.in_order.values().cloned().collect();
            (all, accounts.gone.clone(), accounts.overflowed)
        };
        let now = monotonic_ms();
        let gone = gone
            .into_iter()
            .map(|((listener, upstream), counters)| AccountTotals {
                key: AccountKey {
                    listener,
                    endpoint: OTHER.into(),
                    consumer: "".into(),
                    upstream,
                },
                counters,
                peak: 0,
            });
        let listeners = self.listeners();
        Snapshot {
            accounts: accounts.iter().map(|account| account.totals(now)).collect(),
            gone: gone.collect(),
            overflowed,
            listeners: listeners
                .iter()
                .map(|(name, shards)| ListenerTotals::add_up(name.clone(), shards))
                .collect(),
            workers: WorkerTotals::add_up(&self.workers),
        }
    }

    /// Which counters these are: no two processes have the same.
    #[must_use]
    pub fn file_id(&self) -> u64 {
        self.region.words()[header::FILE_ID].load(Ordering::Relaxed)
    }

    /// The ledger that has marks of all that was booked of these; 0: there is none yet.
    #[must_use]
    pub fn ledger(&self) -> u64 {
        ledger_of(|place| self.region.words()[place].load(Ordering::Acquire))
    }

    /// Remembers that a ledger has marks of all that was booked of these. Killed in between, it is as if nobody had said so.
    pub fn set_ledger(&self, id: u64) {
        let words = self.region.words();
        words[header::LEDGER].store(id, Ordering::Release);
        words[header::LEDGER_CHECK].store(!id, Ordering::Release);
    }

    /// Every account as the ledger books it, at `now` on the clock of [`monotonic_ms`]. Those whose worker does not get on with what it is counting
    /// are left for the next time.
    #[must_use]
    pub fn slots(&self, now: u64) -> Vec<SlotTotals> {
        self.slots_and_missing(now).0
    }

    /// The same, and how many are left for the next time.
    #[must_use]
    pub fn slots_and_missing(&self, now: u64) -> (Vec<SlotTotals>, usize) {
        self.beat(now);
        let accounts: Vec<_> = self.lock().in_order.values().cloned().collect();
        let slots = accounts.iter();
        let slots: Vec<_> = slots
            .filter_map(|account| account.slot_totals(now))
            .collect();
        let missing = accounts.len() - slots.len();
        (slots, missing)
    }

    /// Where the file of the counters is.
    #[must_use]
    pub fn dir(&self) -> Option<&Path> {
        self.file.as_ref()?.dir()
    }

    /// Remembers what the ledger has of an account, in this life of its slot.
    pub fn set_booked(&self, slot: u32, generation: u64, counters: &Counters) {
        let account = self.lock().by_slot.get(slot as usize).cloned().flatten();
        if let Some(account) = account.filter(|account| account.generation == generation) {
            account.set_booked(counters);
        }
    }

    /// Lets go of accounts without a session on which nothing was counted for `idle_after`, once they are wholly booked where anybody books them.
    /// Says how many.
    pub fn let_go(&self, idle_after: Duration, now: u64) -> usize {
        let idle_after = u64::try_from(idle_after.as_millis()).unwrap_or(u64::MAX);
        let to_be_booked = self.to_be_booked;
        let accounts: Vec<_> = self.lock().in_order.values().cloned().collect();
        let idle = accounts
            .iter()
            .filter(|account| account.may_go(idle_after, now, to_be_booked));
        // The lock is taken for each, so that no connection waits for all of them.
        idle.filter(|account| self.lock().retire(account, to_be_booked, now))
            .count()
    }

    /// Says that the process lives at `now`.
    pub fn beat(&self, now: u64) {
        self.region.words()[header::ALIVE].fetch_max(now, Ordering::Release);
    }

    /// Keeps the file of the counters under another name, under which nobody books it. Says which.
    ///
    /// # Errors
    /// When it cannot be renamed.
    pub fn set_file_aside(&self) -> io::Result<Option<PathBuf>> {
        self.file.as_ref().map(CounterFile::set_aside).transpose()
    }

    /// Removes the file of the counters, once everything in it is booked. They go on counting, for nobody.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn remove_file(&self) -> io::Result<()> {
        self.file.as_ref().map_or(Ok(()), CounterFile::remove)
    }

    /// A worker that panicked while it held the lock left whole accounts behind: nothing is torn.
    fn lock(&self) -> MutexGuard<'_, Accounts> {
        self.accounts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Accounts {
    fn find(&mut self, key: AccountKey, books: &Books) -> Arc<Account> {
        if let Some(account) = self.by_key.get(&key) {
            return account.clone();
        }
        let named = is_named(&key, &self.limits);
        if (named || self.unnamed.len() < self.limits.max) && self.free.len() > 1 {
            let account = self.make(key, books);
            if !named {
                self.unnamed.insert(account.generation);
            }
            return account;
        }
        self.overflowed += 1;
        let key = AccountKey {
            endpoint: OVERFLOW.into(),
            consumer: "".into(),
            ..key
        };
        match self.by_key.get(&key) {
            Some(account) => account.clone(),
            None if self.free.len() > 1 => self.make(key, books),
            None => self.last_resort(books),
        }
    }

    /// The last slot is for what has no place elsewhere. [`Limits`] are such that there is nothing; but no connection is to fail over it.
    fn last_resort(&mut self, books: &Books) -> Arc<Account> {
        let nothing: Arc<str> = "".into();
        let key = AccountKey {
            listener: nothing.clone(),
            endpoint: OVERFLOW.into(),
            consumer: nothing.clone(),
            upstream: nothing,
        };
        match self.by_key.get(&key) {
            Some(account) => account.clone(),
            None => self.make(key, books),
        }
    }

    fn make(&mut self, key: AccountKey, books: &Books) -> Arc<Account> {
        let slot = self.free.pop_front().expect("whoever makes one has looked");
        self.generation += 1;
        let workers = books.workers.len();
        let account = Arc::new(Account::new(
            books.region.clone(),
            HEADER_WORDS + slot as usize * slot_words(workers),
            workers,
            (slot, self.generation),
            key.clone(),
            monotonic_ms(),
        ));
        self.by_key.insert(key, account.clone());
        self.in_order.insert(self.generation, account.clone());
        self.by_slot[slot as usize] = Some(account.clone());
        account
    }

    fn retire(&mut self, account: &Account, to_be_booked: bool, now: u64) -> bool {
        let Some(counters) = account.retire(now, to_be_booked) else {
            return false;
        };
        let key = account.key();
        let gone = self
            .gone
            .entry((key.listener.clone(), key.upstream.clone()))
            .or_default();
        *gone = gone.plus(&counters);
        self.by_key.remove(key);
        self.in_order.remove(&account.generation);
        self.by_slot[account.slot_number as usize] = None;
        self.free.push_back(account.slot_number);
        self.unnamed.remove(&account.generation);
        true
    }
}

/// Whether the account is one of those that are always kept free: `accounts.max` does not count them.
fn is_named(key: &AccountKey, limits: &Limits) -> bool {
    &*key.endpoint == OVERFLOW || limits.always.contains_key(&key.endpoint)
}
