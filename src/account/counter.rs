//! Counters with one writer.

use std::sync::atomic::{AtomicU64, Ordering};

use super::reason::{AcceptError, Fallback, PeekOutcome, Refusal, RelayPath};
use crate::proxy_protocol::header::HeaderError;

/// A number that one worker writes and anyone reads. Relaxed: each number is true by itself, no two belong together.
#[derive(Debug, Default)]
pub struct Cell(AtomicU64);

impl Cell {
    /// Adds `n`. Only the owning worker calls this, so load and store lose nothing and cost no locked instruction.
    pub fn add(&self, n: u64) {
        self.set(self.get().wrapping_add(n));
    }

    /// Replaces the number: for gauges.
    pub fn set(&self, n: u64) {
        self.0.store(n, Ordering::Relaxed);
    }

    /// The number.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// One worker's counters of one listener.
#[derive(Debug, Default)]
#[repr(align(64))]
pub struct ListenerShard {
    /// Refused headers.
    pub header_errors: [Cell; HeaderError::ALL.len()],
    /// Connections refused.
    pub refused: [Cell; Refusal::ALL.len()],
    /// Connections whose first bytes were looked at.
    pub peeks: [Cell; PeekOutcome::ALL.len()],
    /// Errors of accept(2).
    pub accept_errors: [Cell; AcceptError::ALL.len()],
    /// LOCAL headers.
    pub health_checks: Cell,
    /// Connections that ended without a byte.
    pub empty: Cell,
}

/// One worker's own counters.
#[derive(Debug, Default)]
#[repr(align(64))]
pub struct WorkerShard {
    /// Bytes moved.
    pub relayed: [Cell; RelayPath::ALL.len()],
    /// Directions that gave up splice(2).
    pub fallbacks: [Cell; Fallback::ALL.len()],
    /// Gauge: pipes with bytes in them.
    pub pipes_lent: Cell,
    /// Gauge: empty pipes kept.
    pub pipes_idle: Cell,
}
