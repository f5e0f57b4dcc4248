//! What limits cost where they do not bite ([`cost`]), and what another endpoint feels of one that is at its own ([`noise`]).
//!
//! In rounds of their own, and in a report of their own.

use crate::processor::Cores;

pub(crate) mod cost;
pub(crate) mod noise;
mod report;

/// Both parts.
#[derive(Debug)]
pub(crate) struct Report {
    /// At every host.
    pub(crate) congestion: String,
    /// Who ran where.
    pub(crate) cores: Cores,
    pub(crate) cost: cost::Cost,
    pub(crate) noise: noise::Noises,
}
