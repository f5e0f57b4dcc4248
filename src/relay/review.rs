//! Who has to leave an upstream's address, and when: pure.

use std::sync::Arc;
use std::time::Duration;

use super::timer::Millis;
use crate::account::CloseReason;
use crate::config::{self, OnVanish};
use crate::upstream::Upstream;
use crate::upstream::address::Address;
use crate::upstream::snapshot::Snapshot;

/// What one look at an upstream's sessions goes by.
pub struct Review<'a> {
    /// The upstream's [`id`](crate::upstream::Upstream::id).
    pub upstream: usize,
    /// Its settings.
    pub settings: &'a config::Upstream,
    /// Addresses that are there, but not in the group that serves.
    others: Vec<&'a Arc<Address>>,
    /// From 0 to 1, anew for each call.
    chance: &'a dyn Fn() -> f64,
}

impl<'a> Review<'a> {
    /// A look at the sessions of an upstream as `snapshot` has its addresses.
    #[must_use]
    pub fn new(
        upstream: &'a Upstream,
        snapshot: &'a Snapshot,
        chance: &'a dyn Fn() -> f64,
    ) -> Self {
        let settings = &upstream.settings;
        let others = match settings.failover.max_age {
            Some(_) => snapshot.of_other_groups().collect(),
            None => Vec::new(),
        };
        Self {
            upstream: upstream.id,
            settings,
            others,
            chance,
        }
    }

    /// When a session of this `age` on `address` has to leave, and why; `before` is what was last decided of it.
    pub(super) fn leave(
        &self,
        address: &Arc<Address>,
        before: Option<(Millis, CloseReason)>,
        now: Millis,
        age: Millis,
    ) -> Option<(Millis, CloseReason)> {
        let settings = self.settings;
        if !address.is_present() {
            if before.is_some_and(|(_, reason)| reason == CloseReason::Vanished) {
                return before;
            }
            let spread = settings.vanish_spread;
            let first = match settings.on_vanish {
                OnVanish::Keep => return None,
                OnVanish::Drain => settings.vanish_deadline - spread,
                OnVanish::Close => Duration::ZERO,
            };
            let after = first + spread.mul_f64((self.chance)());
            return Some((now + millis(after), CloseReason::Vanished));
        }
        let max_age = settings.failover.max_age?;
        if !self.others.iter().any(|other| Arc::ptr_eq(other, address)) {
            return None;
        }
        if before.is_some_and(|(_, reason)| reason == CloseReason::MaxAge) {
            return before;
        }
        // Those that are too old already do not all go at once.
        let soonest = now + millis(settings.vanish_spread.mul_f64((self.chance)()));
        let at = (now - age.min(now) + millis(max_age)).max(soonest.min(now + millis(max_age)));
        Some((at, CloseReason::MaxAge))
    }
}

fn millis(duration: Duration) -> Millis {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX / 4)
}
