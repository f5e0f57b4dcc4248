//! What workers choose an address from: immutable, swapped whole.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::address::Address;

/// What workers choose from.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// Every target was looked up at least once, with whatever outcome.
    pub looked_up: bool,
    /// There is an address that is neither ejected nor unhealthy, in whatever group.
    pub usable: bool,
    /// Priority of the group that serves.
    pub serving: u32,
    /// Those that serve first, then those to be tried after them, in tiers.
    pub(super) tiers: Vec<Vec<Choice>>,
}

/// An address that may be chosen.
#[derive(Debug, Clone)]
pub struct Choice {
    /// What is counted and dialled.
    pub address: Arc<Address>,
    /// Its group.
    pub priority: u32,
    /// It is neither ejected nor unhealthy.
    pub usable: bool,
    /// Its share beside the others.
    pub weight: u32,
    /// When it came back, and how long it is given less; `None`: it has its full share.
    pub slow_start: Option<(Instant, Duration)>,
}

impl Snapshot {
    /// The addresses that serve; then, tier after tier, those behind them.
    #[must_use]
    pub fn tiers(&self) -> &[Vec<Choice>] {
        &self.tiers
    }

    /// Whether there is no address at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tiers.is_empty()
    }

    /// Whether an address is among those that serve.
    #[must_use]
    pub fn serves(&self, address: &Arc<Address>) -> bool {
        let first = self.tiers.first();
        first.is_some_and(|tier| {
            tier.iter()
                .any(|choice| Arc::ptr_eq(&choice.address, address))
        })
    }

    /// Addresses outside the group that serves.
    pub fn of_other_groups(&self) -> impl Iterator<Item = &Arc<Address>> {
        let choices = self.tiers.iter().flatten();
        choices
            .filter(|choice| choice.priority != self.serving)
            .map(|choice| &choice.address)
    }

    /// One of these tiers: for tests and for whoever chooses among addresses of its own.
    #[must_use]
    pub fn of_tiers(tiers: Vec<Vec<Choice>>) -> Self {
        Self {
            looked_up: true,
            tiers,
            ..Self::default()
        }
    }
}
