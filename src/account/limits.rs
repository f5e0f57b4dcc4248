//! How many accounts there may be, and for whom one is always kept free.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::totals::NOBODY;
use crate::config::{Config, Consumers};
use crate::glob::matches_glob;
use crate::proxy_protocol::header::DIRECT;

/// See the module.
#[derive(Debug, Clone, Default)]
pub struct Limits {
    /// `accounts.max`: endpoints that nobody has named in the configuration have so many accounts together.
    pub max: usize,
    /// Endpoints that always get an account of their own, and how many each of them may need.
    pub always: HashMap<Arc<str>, usize>,
    /// Accounts of `overflow`: one for each listener and upstream.
    pub overflow: usize,
}

impl Limits {
    /// So many accounts; nobody is known by name.
    #[must_use]
    pub fn of_most(max: usize) -> Self {
        Self {
            max,
            always: [(DIRECT.into(), 8), (NOBODY.into(), 8)].into(),
            overflow: 8,
        }
    }

    /// What a configuration asks for.
    #[must_use]
    pub fn of(config: &Config) -> Self {
        // The upstreams that each listener leads to, and none: for those who are turned away before one is chosen.
        let ways: usize = config
            .listeners
            .iter()
            .map(|listener| listener.reachable().iter().collect::<HashSet<_>>().len() + 1)
            .sum();
        let known = |id: &Arc<str>| (id.clone(), ways * (1 + behind(&config.consumers, id)));
        let mut always: HashMap<_, _> = config.endpoints.ids().map(known).collect();
        always.extend([known(&DIRECT.into()), (NOBODY.into(), ways)]);
        Self {
            max: config.accounts.max,
            always,
            overflow: ways,
        }
    }

    /// Room for all of them.
    pub(super) fn slots(&self) -> usize {
        // And one where everything goes that has no place: there is nothing, unless a bound above is wrong.
        self.max + self.always.values().sum::<usize>() + self.overflow + 1
    }
}

/// How many consumers may be behind an endpoint, by name.
fn behind(consumers: &Consumers, endpoint: &str) -> usize {
    let fits = |globs: &[Arc<str>]| {
        globs.is_empty() || globs.iter().any(|glob| matches_glob(glob, endpoint))
    };
    let entries = consumers.entries.iter();
    let names = entries
        .filter(|consumer| fits(&consumer.endpoints))
        .map(|consumer| &consumer.name);
    names.collect::<HashSet<_>>().len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Consumer;

    #[test]
    fn a_shared_endpoint_needs_an_account_for_each_consumer_by_name() {
        let consumer = |name: &str, endpoints: &[&str], network: &str| Consumer {
            name: name.into(),
            endpoints: endpoints.iter().map(|glob| (*glob).into()).collect(),
            network: network.parse().unwrap(),
        };
        let entries = vec![
            consumer("a", &["vpce-1*"], "10.1.0.0/16"),
            consumer("a", &["vpce-1*"], "10.2.0.0/16"),
            consumer("b", &[], "10.3.0.0/16"),
        ];
        let consumers = Consumers { entries };
        assert_eq!(behind(&consumers, "vpce-12"), 2);
        assert_eq!(behind(&consumers, "vpce-2"), 1);
        assert_eq!(behind(&Consumers::default(), "vpce-2"), 0);
    }
}
