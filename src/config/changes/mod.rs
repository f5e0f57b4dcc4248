//! What is different between two configurations, key by key, and which of it waits for a restart.

mod lines;
mod texts;

use std::collections::{HashMap, HashSet};

use serde::{Deserialize, Serialize};

use super::{Config, HealthPort};
use lines::Line;

/// A key whose value is another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// As people write it: `drain.deadline`, `listener.ingest.bind`, `endpoint."vpce-1".name`. Of a listener, upstream or endpoint that only one side has:
    /// its own, `listener.second`, with everything that was chosen for it as one value.
    pub key: String,
    /// As it may be written; `None`: nothing.
    pub before: Option<String>,
    /// See there.
    pub after: Option<String>,
    /// A running relay keeps the value that it was started with.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub restart: bool,
}

/// What is different: first what was there before, then what came. Where it stands in the file, and how it is written, is not looked at.
#[must_use]
pub fn changes(before: &Config, after: &Config) -> Vec<Change> {
    let (before, after) = (lines::of(before), lines::of(after));
    let (old, new) = (Known::new(&before), Known::new(&after));
    let mut changes = Vec::new();
    for table in before.chunk_by(Line::beside) {
        if !new.tables.contains(table[0].table()) {
            changes.push(Change {
                before: Some(lines::whole(table)),
                ..nothing(table[0].table())
            });
            continue;
        }
        for line in table {
            let now = new.values.get(&*line.key).map(|now| &now.value);
            if now != Some(&line.value) {
                changes.push(Change {
                    key: line.key.clone(),
                    before: Some(line.value.clone()),
                    after: now.cloned(),
                    restart: line.restart,
                });
            }
        }
    }
    for table in after.chunk_by(Line::beside) {
        if !old.tables.contains(table[0].table()) {
            changes.push(Change {
                after: Some(lines::whole(table)),
                ..nothing(table[0].table())
            });
            continue;
        }
        let came = table
            .iter()
            .filter(|line| !old.values.contains_key(&*line.key));
        changes.extend(came.map(|line| Change {
            after: Some(line.value.clone()),
            restart: line.restart,
            ..nothing(&line.key)
        }));
    }
    changes
}

fn nothing(key: &str) -> Change {
    Change {
        key: key.to_owned(),
        before: None,
        after: None,
        restart: false,
    }
}

/// Lines by their keys.
struct Known<'a> {
    values: HashMap<&'a str, &'a Line>,
    tables: HashSet<&'a str>,
}

impl<'a> Known<'a> {
    fn new(lines: &'a [Line]) -> Self {
        Self {
            values: lines.iter().map(|line| (&*line.key, line)).collect(),
            tables: lines.iter().map(Line::table).chain([""]).collect(),
        }
    }
}

impl Config {
    /// Everything that is in force, key by key, the defaults included.
    #[must_use]
    pub fn in_force(&self) -> Vec<(String, String)> {
        let lines = lines::of(self).into_iter();
        lines.map(|line| (line.key, line.value)).collect()
    }

    /// Takes what a running relay cannot change from the configuration that it was started with: every key that [`Change::restart`] is said of.
    pub fn keep_restart_only(&mut self, running: &Self) {
        // Whole, so that a new key has to be thought of here.
        let Self {
            workers,
            relay_id,
            admin,
            health,
            relay,
            state_dir,
            run_dir,
            admin_socket,
            accounts,
            ledger,
            audit,
            max_metric_endpoints,
            fail_without: _,
            drain: _,
            log: _,
            session: _,
            resolver: _,
            digest: _,
            limits: _,
            endpoints: _,
            consumers: _,
            listeners: _,
            upstreams: _,
        } = self;
        *workers = running.workers;
        relay_id.clone_from(&running.relay_id);
        *admin = running.admin;
        health.clone_from(&running.health);
        *relay = running.relay;
        state_dir.clone_from(&running.state_dir);
        run_dir.clone_from(&running.run_dir);
        admin_socket.clone_from(&running.admin_socket);
        *accounts = running.accounts;
        *ledger = running.ledger;
        audit.clone_from(&running.audit);
        *max_metric_endpoints = running.max_metric_endpoints;
    }
}

#[cfg(test)]
mod tests;
