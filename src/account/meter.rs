//! A session's hold on its account.

use std::sync::Arc;

use super::Account;
use super::reason::{CloseReason, Direction};

/// Opened when made, closed once: with a reason, or with `error` when it is dropped without one.
#[derive(Debug)]
pub struct Meter {
    account: Arc<Account>,
    worker: u32,
    closed: bool,
}

impl Meter {
    /// Books one connection opened, on the shard of `worker`.
    #[must_use]
    pub fn open(account: Arc<Account>, worker: usize) -> Self {
        account.shards[worker].opened.add(1);
        let worker = u32::try_from(worker).expect("workers are bounded by the configuration");
        Self {
            account,
            worker,
            closed: false,
        }
    }

    /// Books `n` bytes that the destination socket took.
    pub fn moved(&self, direction: Direction, n: usize) {
        self.account.shards[self.worker as usize].bytes[direction as usize].add(n as u64);
    }

    /// Books the end.
    pub fn close(mut self, reason: CloseReason) {
        self.book(reason);
    }

    /// The endpoint the session is booked to.
    #[must_use]
    pub fn endpoint(&self) -> &Arc<str> {
        self.account.endpoint()
    }

    fn book(&mut self, reason: CloseReason) {
        self.closed = true;
        self.account.shards[self.worker as usize].closed[reason as usize].add(1);
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        if !self.closed {
            self.book(CloseReason::Error);
        }
    }
}
