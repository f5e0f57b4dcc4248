//! S15: what a connection costs that says nothing.

use std::io::{self, Write};

use libtest_mimic::Trial;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::net::TcpStream;

use super::{
    peers::in_mode,
    world::{ENDPOINT, World, listener, privatelink_header, shipped},
};
use crate::{
    claim,
    harness::{
        agent::Agent,
        origin::Manner,
        relay::Start,
        stream::{self, End::Fin},
    },
};

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        claim(
            "thousands_of_idle_connections_hold_no_pipe_and_little_memory",
            || idle_connections(5000, shipped()),
        ),
        // What they said went through pipes.
        claim("idle_connections_that_were_spliced_hold_no_pipe", || {
            idle_connections(1000, in_mode("splice"));
        }),
    ]
}

/// Memory per idle connection, the relay's own; the kernel's sockets are not in it.
const EACH: u64 = 1024;

/// As many connections as asked for, or as the hard limit of descriptors leaves room for: the relay needs two for each, and so do we.
pub(super) fn as_many_as(wanted: u64) -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let hard = limit.maximum;
    setrlimit(
        Resource::Nofile,
        Rlimit {
            current: hard,
            maximum: hard,
        },
    )
    .expect("up to the hard limit anybody may");
    // A quarter is for the tests that run at the same time.
    let fit = hard.map_or(wanted, |hard| hard / 4 * 3 / 2).min(wanted);
    if fit < wanted {
        let _ = writeln!(
            io::stderr(),
            "connections: {fit}, not {wanted}, because `ulimit -Hn` is {hard:?}"
        );
    }
    fit
}

/// Opens and uses so many connections, once there and back.
#[track_caller]
fn used(world: &World, n: u64) -> Vec<Agent> {
    world.node.run(async move {
        let mut crowd = Vec::new();
        for seed in 0..n {
            let stream = TcpStream::connect(listener()).await.unwrap();
            // Not as an agent's preface, which looks through all sockets for its own.
            let header = privatelink_header(ENDPOINT);
            stream::write(&stream, &header, |_| ()).await.unwrap();
            let mut agent = Agent::of(stream).unwrap().seed(seed);
            agent.exchange(500).await.unwrap();
            crowd.push(agent);
        }
        crowd
    })
}

#[track_caller]
fn close(world: &World, crowd: Vec<Agent>) {
    world.node.run(async move {
        for (seed, mut agent) in crowd.into_iter().enumerate() {
            agent.finish().unwrap();
            assert_eq!(agent.expect_to_end(seed as u64).await.unwrap(), Fin);
        }
    });
}

fn idle_connections(crowd: u64, start: Start) {
    let crowd = as_many_as(crowd);
    let world = World::with("idle-crowd", Manner::Echo, start);
    // Once through everything, so that buffers and code are in memory.
    close(&world, used(&world, 100));
    world.wait_closed("completed", 100);
    // Those that it keeps at hand are few, and not lent.
    let pipes = || {
        let idle = world.relay.metric("tollgate_pipes", &[("state", "idle")]);
        world.relay.pipe_fd_count() as u64 - 2 * idle
    };
    let (before, others) = (world.relay.own_memory(), pipes());
    let agents = used(&world, crowd);
    let active = [("upstream", "control-plane")];
    let lent = [("state", "lent")];
    world
        .relay
        .wait_metric("tollgate_connections_active", &active, crowd);
    world.relay.wait_metric("tollgate_pipes", &lent, 0);
    assert_eq!(pipes(), others);
    world.relay.assert_at_rest();
    let each = world.relay.own_memory().saturating_sub(before) / crowd;
    assert!(each < EACH, "{each} bytes for an idle connection");
    close(&world, agents);
    world.wait_closed("completed", 100 + crowd);
    let all = 500 * (100 + crowd);
    assert_eq!(world.booked(ENDPOINT, "to_upstream"), all);
    assert_eq!(world.booked(ENDPOINT, "to_client"), all);
    world.assert_at_rest();
}
