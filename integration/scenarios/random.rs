//! Many connections that do what they like, by a seed: nothing is damaged, nothing is left, the books add up.

use std::sync::Arc;

use libtest_mimic::Trial;
use tokio::sync::Semaphore;

use super::world::{ENDPOINT, World, connected, shipped};
use crate::{
    claim,
    harness::{agent::Agent, origin::Manner, pattern::Random, stream::End},
};

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        claim("random_streams_arrive_whole_when_copied", || {
            random_streams("copy")
        }),
        claim("random_streams_arrive_whole_when_spliced", || {
            random_streams("splice")
        }),
        claim("random_streams_arrive_whole_when_adaptive", || {
            random_streams("adaptive")
        }),
    ]
}

const CONNECTIONS: u64 = 400;
const AT_ONCE: usize = 40;
/// Large enough that a stream is spliced and blocks, small enough for a test.
const LONGEST: u64 = 3_000_000;

/// How a connection ends, of those that exchanged their bytes whole.
enum Ending {
    Fin,
    Reset,
}

async fn one(seed: u64) -> (u64, Ending) {
    let mut random = Random::new(seed);
    let mut agent = connected(ENDPOINT).await.unwrap().seed(seed);
    let total = match random.below(3) {
        0 => random.below(300),
        1 => random.below(60_000),
        _ => random.below(LONGEST),
    };
    let mut left = total;
    while left > 0 {
        let piece = (1 + random.below(left)).min(left);
        agent.exchange(piece).await.unwrap();
        left -= piece;
    }
    if random.chance(0.2) {
        agent.reset_after_delivery().await;
        return (total, Ending::Reset);
    }
    finish(agent, seed).await;
    (total, Ending::Fin)
}

async fn finish(mut agent: Agent, seed: u64) {
    agent.finish().unwrap();
    assert_eq!(agent.expect_to_end(seed).await.unwrap(), End::Fin);
}

fn random_streams(mode: &str) {
    let start = shipped().replace("[health]", &format!("[relay]\nmode = \"{mode}\"\n[health]"));
    let world = World::with("random", Manner::Echo, start);
    let (bytes, resets) = world.node.run(async {
        let places = Arc::new(Semaphore::new(AT_ONCE));
        let mut connections = tokio::task::JoinSet::new();
        for seed in 0..CONNECTIONS {
            let place = places.clone().acquire_owned().await.unwrap();
            connections.spawn(async move {
                let result = one(seed).await;
                drop(place);
                result
            });
        }
        let (mut bytes, mut resets) = (0, 0);
        while let Some(ended) = connections.join_next().await {
            let (n, ending) = ended.unwrap();
            bytes += n;
            resets += u64::from(matches!(ending, Ending::Reset));
        }
        (bytes, resets)
    });
    world.wait_closed("completed", CONNECTIONS - resets);
    world.wait_closed("client_reset", resets);
    let origin = world.origin.wait_over(CONNECTIONS);
    assert_eq!((origin.received, origin.sent), (bytes, bytes));
    assert_eq!(world.booked(ENDPOINT, "to_upstream"), bytes);
    assert_eq!(world.booked(ENDPOINT, "to_client"), bytes);
    let moved = |path: &str| {
        world
            .relay
            .metric("tollgate_relay_bytes_total", &[("mode", path)])
    };
    assert_eq!(moved("copy") + moved("splice"), 2 * bytes);
    match mode {
        "copy" => assert_eq!(moved("splice"), 0),
        "splice" => assert!(moved("splice") > bytes, "{} of {bytes}", moved("splice")),
        _ => {}
    }
    world.assert_at_rest();
}
