//! What the books hold of an account, added up: plain numbers that may be compared, subtracted and written down.

use std::sync::Arc;

use super::reason::{CloseReason, Direction, Refusal};

/// What an account is kept for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AccountKey {
    /// Name of the listener.
    pub listener: Arc<str>,
    /// The consumer's endpoint id, or `direct`, `overflow`, or [`NOBODY`].
    pub endpoint: Arc<str>,
    /// Name of the consumer behind a shared endpoint; empty where none is configured.
    pub consumer: Arc<str>,
    /// Name of the upstream; empty for those that were turned away before one was chosen.
    pub upstream: Arc<str>,
}

/// The endpoint of those who were turned away before anybody knew whose they are. No id can be this: it has characters that none may have.
pub const NOBODY: &str = "(none)";

/// Where connections of endpoints beyond `accounts.max` are booked. No endpoint id is this (`proxy_protocol`).
pub const OVERFLOW: &str = "overflow";

/// What accounts that are not shown one by one are added up under. No endpoint id is this either.
pub const OTHER: &str = "other";

/// Reasons for which one may be turned away, as the books count them: those of [`Refusal`], and all that is wrong with a header together.
pub const REFUSED: usize = Refusal::ALL.len() + 1;

/// Where [`Counters::refused`] has those whose header was refused.
pub const HEADER: usize = Refusal::ALL.len();

/// The name of a place in [`Counters::refused`].
#[must_use]
pub fn refused_name(index: usize) -> &'static str {
    Refusal::ALL
        .get(index)
        .map_or("header", |refusal| refusal.name())
}

/// The numbers of an account that only grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Connections opened: after header and route, before connect.
    pub opened: u64,
    /// Connections closed, by [`CloseReason`].
    pub closed: [u64; CloseReason::ALL.len()],
    /// Connections refused, by [`Refusal`], and at [`HEADER`] for their header.
    pub refused: [u64; REFUSED],
    /// Payload bytes that the destination socket took, by [`Direction`].
    pub bytes: [u64; Direction::ALL.len()],
    /// How long connections were open, added up, in milliseconds; those that are open count up to the moment of reading.
    pub connection_ms: u64,
}

impl Counters {
    /// Connections that were open.
    #[must_use]
    pub fn active(&self) -> u64 {
        self.opened.saturating_sub(self.closed())
    }

    /// Connections closed, for whatever reason.
    #[must_use]
    pub fn closed(&self) -> u64 {
        self.closed.iter().sum()
    }

    /// Connections refused, for whatever reason.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.refused.iter().sum()
    }

    /// Number by number.
    #[must_use]
    pub fn plus(&self, other: &Self) -> Self {
        self.with(other, u64::saturating_add)
    }

    /// What was added since `before`; a number that became smaller, which none does, counts as unchanged.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        self.with(before, u64::saturating_sub)
    }

    fn with(&self, other: &Self, combine: fn(u64, u64) -> u64) -> Self {
        Self {
            opened: combine(self.opened, other.opened),
            closed: std::array::from_fn(|i| combine(self.closed[i], other.closed[i])),
            refused: std::array::from_fn(|i| combine(self.refused[i], other.refused[i])),
            bytes: std::array::from_fn(|i| combine(self.bytes[i], other.bytes[i])),
            connection_ms: combine(self.connection_ms, other.connection_ms),
        }
    }
}

/// An account added up over the workers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccountTotals {
    /// Whose it is.
    pub key: AccountKey,
    /// What was counted since the account was made.
    pub counters: Counters,
    /// Most connections that were open at once since the last booking.
    pub peak: u64,
}

/// One life of one slot of a counter file, as the ledger reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotTotals {
    /// The slot's place in the file.
    pub slot: u32,
    /// Which of its lives: a slot is used again for another account.
    pub generation: u64,
    /// The account and its numbers.
    pub totals: AccountTotals,
    /// What of them was booked, as far as the counter file knows. The ledger's own mark, where it has one, is the truth.
    pub booked: Counters,
}
