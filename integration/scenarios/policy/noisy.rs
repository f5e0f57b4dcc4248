//! O7. Whatever an endpoint does at its limits, another has as good a time as without it.

use std::{
    io,
    time::{Duration, Instant},
};

use libtest_mimic::Trial;
use tokio::{task::JoinSet, time::sleep};

use super::world::{NOISY, QUIET};
use crate::{
    claim,
    harness::{agent::Agent, netns::Host, origin::Manner, stream::End::Fin},
    scenarios::{
        peers::within_five,
        world::{World, connected, shipped_and},
    },
};

/// Who makes noise at once, and how long each rests before it comes again.
const MANY: u64 = 16;
const REST: Duration = Duration::from_millis(50);

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        claim("denied_endpoint_that_keeps_coming_harms_nobody", || {
            harms_nobody("deny = true", Noise::Coming, "policy");
        }),
        claim(
            "endpoint_at_max_sessions_that_keeps_coming_harms_nobody",
            || {
                harms_nobody("max_sessions = 4", Noise::Coming, "endpoint_limit");
            },
        ),
        claim(
            "endpoint_at_its_session_rate_that_keeps_coming_harms_nobody",
            || {
                harms_nobody("sessions_per_second = 20", Noise::Coming, "rate");
            },
        ),
        claim(
            "endpoint_whose_connections_wait_in_line_harms_nobody",
            || {
                let keys =
                    "max_sessions = 2\non_limit = \"wait\"\nwait_for = \"500ms\"\nmax_waiting = 8";
                harms_nobody(keys, Noise::Coming, "endpoint_limit");
            },
        ),
        claim("endpoint_at_its_bytes_a_second_harms_nobody", || {
            let keys =
                "bytes_per_second_to_upstream = \"1MiB\"\nbytes_per_second_to_client = \"1MiB\"";
            harms_nobody(keys, Noise::Bytes, "");
        }),
    ]
}

#[derive(Clone, Copy)]
enum Noise {
    /// New connections without end.
    Coming,
    /// Bytes without end, both ways.
    Bytes,
}

/// Makes noise until it is aborted; how it fares is of no interest here.
async fn make(noise: Noise, seed: u64) {
    loop {
        let _: io::Result<()> = async {
            let mut agent = connected(NOISY).await?.seed(seed);
            match noise {
                Noise::Coming => {
                    agent.exchange(100).await?;
                    sleep(REST).await;
                    agent.finish()
                }
                Noise::Bytes => agent.exchange(64 << 20).await,
            }
        }
        .await;
        sleep(REST).await;
    }
}

/// What the quiet one had: the longest but one in a hundred of its exchanges, and what a stream of its took.
#[derive(Debug)]
struct Had {
    p99: Duration,
    stream: Duration,
}

async fn measure() -> Had {
    const EXCHANGES: usize = 200;
    const STREAM: u64 = 8 << 20;
    let mut agent: Agent = connected(QUIET).await.unwrap();
    let mut took = Vec::new();
    for _ in 0..EXCHANGES {
        let began = Instant::now();
        agent.exchange(500).await.unwrap();
        took.push(began.elapsed());
    }
    took.sort_unstable();
    let began = Instant::now();
    agent.exchange(STREAM).await.unwrap();
    let stream = began.elapsed();
    agent.finish().unwrap();
    assert_eq!(agent.expect_to_end(0).await.unwrap(), Fin);
    Had {
        p99: took[EXCHANGES * 99 / 100],
        stream,
    }
}

/// With the noise and without, and in between: a machine that has other things to do has them in both.
fn harms_nobody(keys: &str, noise: Noise, refusal: &str) {
    let tables = format!("workers = 2\n\n[endpoint.\"{NOISY}\"]\n{keys}");
    let world = World::with("noisy", Manner::Echo, shipped_and(&tables));
    let mut rounds = 0;
    within_five("the quiet one to be as well off as before", |_| {
        let without = world.node.run(measure());
        let making = begin(&world.node, noise);
        let at_its_limit = || match noise {
            Noise::Coming => {
                let labels = [("endpoint", NOISY), ("reason", refusal)];
                world
                    .relay
                    .metric("tollgate_endpoint_refused_total", &labels)
                    > 0
            }
            Noise::Bytes => world.booked(NOISY, "to_upstream") > 1 << 20,
        };
        world.relay.wait_until("the noise", at_its_limit);
        let with = world.node.run(measure());
        making.abort();
        rounds += 2;
        with.p99 <= without.p99 * 3 + Duration::from_millis(5) && with.stream <= without.stream * 3
    });
    // Those who made noise are gone, one way or another.
    world
        .relay
        .wait_metric("tollgate_connections_active", &[], 0);
    let quiet = [("endpoint", QUIET)];
    let refused = world
        .relay
        .metric("tollgate_endpoint_refused_total", &quiet);
    assert_eq!(refused, 0, "the quiet one was turned away");
    let completed = [("endpoint", QUIET), ("reason", "completed")];
    let completed = world
        .relay
        .metric("tollgate_connections_closed_total", &completed);
    assert_eq!(completed, rounds);
    world.assert_at_rest();
}

fn begin(node: &Host, noise: Noise) -> tokio::task::JoinHandle<()> {
    node.spawn(async move {
        let mut all = JoinSet::new();
        for seed in 0..MANY {
            all.spawn(make(noise, seed));
        }
        while all.join_next().await.is_some() {}
    })
}
