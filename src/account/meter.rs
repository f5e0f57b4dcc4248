//! A session's hold on its account.

use std::sync::Arc;

use super::accounts::Account;
use super::audit::{Entry, Facts};
use super::reason::{CloseReason, Direction};
use super::totals::AccountKey;

/// The account has left memory: whoever kept it asks [`Books`](super::Books) again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the account was retired")]
pub struct Retired;

/// Opened when made, closed once: with a reason, or with `error` when it is dropped without one. As long as there is one, its account stays. What is
/// booked is recorded in the audit trail by the same call, where the session has an [`Entry`] there.
#[derive(Debug)]
pub struct Meter {
    account: Arc<Account>,
    worker: u32,
    closed: bool,
    entry: Option<Entry>,
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
            entry: None,
        })
    }

    /// The session's place in the audit trail, from now on.
    #[must_use]
    pub fn recorded(mut self, entry: impl FnOnce(&Arc<Account>) -> Option<Entry>) -> Self {
        self.entry = entry(&self.account);
        self
    }

    /// The upstream is connected.
    pub fn connected(&mut self) {
        if let Some(entry) = &mut self.entry {
            entry.connected();
        }
    }

    /// The session goes on: recorded, not booked.
    pub fn progress(&mut self, facts: impl FnOnce() -> Facts) {
        if let Some(entry) = &mut self.entry {
            entry.progress(&self.account, facts);
        }
    }

    /// Whether there is a record of what the session does.
    #[must_use]
    pub const fn is_recorded(&self) -> bool {
        self.entry.is_some()
    }

    /// Books `n` bytes that the destination socket took.
    #[inline]
    pub fn moved(&self, direction: Direction, n: usize) {
        self.account
            .moved(self.worker as usize, direction, n as u64);
    }

    /// Books the end.
    pub fn close(self, reason: CloseReason) {
        self.close_with(reason, Facts::default);
    }

    /// Books the end, and records it with what is known of the session.
    pub fn close_with(mut self, reason: CloseReason, facts: impl FnOnce() -> Facts) {
        self.book(reason, facts);
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

    fn book(&mut self, reason: CloseReason, facts: impl FnOnce() -> Facts) {
        self.closed = true;
        self.account.close(self.worker as usize, reason);
        if let Some(entry) = self.entry.take() {
            entry.close(&self.account, reason, facts);
        }
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        if !self.closed {
            self.book(CloseReason::Error, Facts::default);
        }
    }
}
