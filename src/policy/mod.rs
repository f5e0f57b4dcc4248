//! What an endpoint may do: whether it comes in at all, how often, how fast, and how much at once. And what listeners and the whole relay may.
//!
//! The numbers stand in the configuration, and what was used of them lives for as long as the process: in tallies, which know only counts and
//! times and are told the numbers at each use, so that a reload changes them under those who wait.
//!
//! - [`rules`] says what holds for an endpoint, as one configuration has it.
//! - [`tally`] has what was used, by endpoint, whatever configurations follow each other.
//! - [`turnstile`] counts new sessions in, one by one, and has those who wait stand in line.
//! - [`admission`] is what a connection meets: the rules, then three turnstiles, its endpoint's, its listener's, the relay's.
//! - [`bucket`] counts what comes in one unit after another: sessions, bytes.
//! - [`pace`] is what a session is given of it: the buckets of its endpoint and their rates, for the [`relay`](crate::relay) to go by.

use std::sync::Arc;

use crate::config::{Config, OnDeny};
use crate::places::Taken;

use pace::Pace;
use rules::{Rule, Rules};
use tally::Tallies;

pub mod admission;
pub mod bucket;
pub mod pace;
pub mod rules;
pub mod tally;
pub mod turnstile;

/// The rules of one configuration, and what was used of them since the process began.
#[derive(Debug)]
pub struct Policy {
    rules: Rules,
    tallies: Arc<Tallies>,
}

impl Policy {
    /// The first of a process.
    #[must_use]
    pub fn new(config: &Config) -> Self {
        Self {
            rules: Rules::new(config),
            tallies: Arc::default(),
        }
    }

    /// The one that follows: other rules, and what was used stays used.
    #[must_use]
    pub fn next(&self, config: &Config) -> Self {
        Self {
            rules: Rules::new(config),
            tallies: self.tallies.clone(),
        }
    }

    /// What holds.
    #[must_use]
    pub fn rules(&self) -> &Rules {
        &self.rules
    }

    /// What was used.
    #[must_use]
    pub fn tallies(&self) -> &Arc<Tallies> {
        &self.tallies
    }

    /// Whether nobody comes in through `endpoint`; then what becomes of those who are in.
    #[must_use]
    pub fn denies(&self, endpoint: &str) -> Option<OnDeny> {
        self.rules.of(endpoint).deny
    }

    /// How fast a session of `endpoint` may move bytes; `None`: as fast as it goes.
    #[must_use]
    pub fn pace(&self, endpoint: &str) -> Option<Pace> {
        self.pace_by(&self.rules.of(endpoint), endpoint)
    }

    fn pace_by(&self, rule: &Rule, endpoint: &str) -> Option<Pace> {
        let rates = rule.bytes_per_second;
        rates.iter().any(Option::is_some).then(|| Pace {
            buckets: self.tallies.of(endpoint).bytes,
            rates,
        })
    }

    /// A place among the sessions of `endpoint` for one that is there already, whether or not there is one; `None` where they are not counted.
    #[must_use]
    pub fn seat(&self, endpoint: &str) -> Option<Taken> {
        let limited = self.rules.of(endpoint).entry.is_limited();
        limited.then(|| self.tallies.of(endpoint).turnstile.places().take_anyway())
    }
}
