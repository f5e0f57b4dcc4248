//! What whoever shows the books gets to see: plain numbers of one moment.

use std::sync::Arc;

use super::counter::{ListenerShard, WorkerShard};
use super::reason::{AcceptError, Fallback, PeekOutcome, Refusal, RelayPath};
use super::totals::AccountTotals;

/// What was counted, at one moment.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// Every account, oldest first.
    pub accounts: Vec<AccountTotals>,
    /// What accounts that left memory came to, by listener and upstream; their endpoint is `other`. With it, sums over all never become less.
    pub gone: Vec<AccountTotals>,
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
    pub(super) fn add_up(name: Arc<str>, shards: &[ListenerShard]) -> Self {
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
    pub(super) fn add_up(shards: &[WorkerShard]) -> Self {
        let sum = |cell: &dyn Fn(&WorkerShard) -> u64| shards.iter().map(cell).sum::<u64>();
        Self {
            relayed: std::array::from_fn(|i| sum(&|shard| shard.relayed[i].get())),
            fallbacks: std::array::from_fn(|i| sum(&|shard| shard.fallbacks[i].get())),
            pipes_lent: sum(&|shard| shard.pipes_lent.get()),
            pipes_idle: sum(&|shard| shard.pipes_idle.get()),
        }
    }
}
