//! Leaving the balancer without a failed request, and coming back: by signal and by order; what is told of it, to people and to systemd.

use libtest_mimic::Trial;
use serde_json::Value;

use super::world::{ENDPOINT, World, connected, shipped};
use crate::harness::{
    agent::Agent,
    relay::{Relay, Start},
};

mod balancer;
mod closing;
mod orders;
mod systemd;

pub(crate) fn tests() -> Vec<Trial> {
    [
        orders::tests(),
        closing::tests(),
        balancer::tests(),
        systemd::tests(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// The shipped configuration with these keys in `[drain]`.
#[track_caller]
fn draining(keys: &str) -> Start {
    shipped().replace("[health]\n", &format!("[drain]\n{keys}\n\n[health]\n"))
}

/// What the relay tells of its drain.
#[track_caller]
fn told(relay: &Relay) -> Value {
    relay.status()["drain"].clone()
}

#[track_caller]
fn wait_phase(relay: &Relay, phase: &str) {
    relay.wait_until(phase, || told(relay)["phase"] == phase);
}

/// So many sessions, each of which has exchanged ten bytes.
#[track_caller]
fn open(world: &World, n: usize) -> Vec<Agent> {
    world.node.run(async move {
        let mut agents = Vec::new();
        for _ in 0..n {
            let mut agent = connected(ENDPOINT).await.unwrap();
            agent.exchange(10).await.unwrap();
            agents.push(agent);
        }
        agents
    })
}
