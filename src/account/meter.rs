//! A session's hold on its account.

use std::sync::Arc;

use super::accounts::Account;
use super::reason::{CloseReason, Direction};
use super::totals::AccountKey;

/// The account has left memory: whoever kept it asks [`Books`](super::Books) again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the account was retired")]
pub struct Retired;

/// Opened when made, closed once: with a reason, or with `error` when it is dropped without one. As long as there is one, its account stays.
#[derive(Debug)]
pub struct Meter {
    account: Arc<Account>,
    worker: u32,
    closed: bool,
}

impl Meter {
    /// Books one connection opened, on the part of `worker`.
    ///
    /// # Errors
    /// [`Retired`], and nothing is booked.
    pub fn open(account: Arc<Account>, worker: usize) -> Result<Self, Retired> {
        account.open(worker)?;
        let worker = u32::try_from(worker).expect("workers are bounded by the configuration");
        Ok(Self {
            account,
            worker,
            closed: false,
        })
    }

    /// Books `n` bytes that the destination socket took.
    #[inline]
    pub fn moved(&self, direction: Direction, n: usize) {
        self.account
            .moved(self.worker as usize, direction, n as u64);
    }

    /// Books the end.
    pub fn close(mut self, reason: CloseReason) {
        self.book(reason);
    }

    /// What the session is booked to.
    #[must_use]
    pub fn key(&self) -> &AccountKey {
        self.account.key()
    }

    /// The endpoint the session is booked to.
    #[must_use]
    pub fn endpoint(&self) -> &Arc<str> {
        self.account.endpoint()
    }

    fn book(&mut self, reason: CloseReason) {
        self.closed = true;
        self.account.close(self.worker as usize, reason);
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        if !self.closed {
            self.book(CloseReason::Error);
        }
    }
}
