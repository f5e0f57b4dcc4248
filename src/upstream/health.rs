//! Keeps asking every address of an upstream how it is, on the control thread.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use std::time::Instant;

use tokio::sync::Semaphore;
use tokio::task::{AbortHandle, JoinSet};
use tracing::warn;

use super::Upstream;
use super::address::Address;
use super::probe::{Subject, first_after, keep_probing};
use crate::telemetry::LogLimiter;

/// Asks for ever, where the upstream is to be asked: an address that comes is asked at once, one that leaves no more. `places` bounds the
/// questions of the whole process.
pub async fn keep_asking(upstream: Arc<Upstream>, places: Arc<Semaphore>) {
    let Some(check) = upstream.settings.health.clone() else {
        return;
    };
    let mut changes = upstream.changes();
    let mut tasks = JoinSet::new(); // ends them all when this is dropped
    let mut asked: HashMap<*const Address, AbortHandle> = HashMap::new();
    loop {
        let snapshot = changes.borrow_and_update().clone();
        let choices: Vec<_> = snapshot.tiers().iter().flatten().collect();
        let present: HashSet<_> = choices
            .iter()
            .map(|choice| Arc::as_ptr(&choice.address))
            .collect();
        asked.retain(|address, task| {
            let stays = present.contains(address);
            if !stays {
                task.abort();
            }
            stays
        });
        for (nth, choice) in choices.iter().enumerate() {
            let address = choice.address.clone();
            asked.entry(Arc::as_ptr(&address)).or_insert_with(|| {
                let subject = Subject {
                    address: address.at,
                    target: address.target.clone(),
                    check: check.clone(),
                    proxy: upstream.settings.proxy_protocol,
                    socket: upstream.settings.socket.clone(),
                };
                let first_after = first_after(nth, choices.len(), check.interval);
                let (upstream, places) = (upstream.clone(), places.clone());
                let shortages = LogLimiter::default();
                tasks.spawn_local(async move {
                    keep_probing(subject, first_after, places, |outcome| match outcome {
                        Err(error) if error.is_ours() => {
                            if let Some(suppressed) = shortages.allow(Instant::now()) {
                                warn!(%error, suppressed, "health check not made");
                            }
                        }
                        outcome => upstream.probed(
                            address.at,
                            outcome.map(drop).map_err(|error| error.to_string()),
                        ),
                    })
                    .await
                })
            });
        }
        tokio::select! {
            changed = changes.changed() => {
                if changed.is_err() {
                    return;
                }
            }
            // Only those that were aborted end.
            Some(_) = tasks.join_next() => {}
        }
    }
}
