//! How sessions are closed at the end of a drain: spread, all of them, and never later than the deadline.

use std::time::{Duration, Instant};

use libtest_mimic::Trial;
use tokio::task::JoinSet;

use super::{draining, open, told, wait_phase};
use crate::{
    claim,
    harness::{agent::Agent, origin::Manner, relay::Signal, sockets::State, stream::End},
    scenarios::{
        peers::{Peers, Way},
        world::{ENDPOINT, Hosts, World, connected, shipped_and},
    },
};

pub(super) fn tests() -> Vec<Trial> {
    vec![
        claim(
            "sessions_are_closed_spread_over_the_time_before_the_deadline",
            sessions_are_closed_spread_over_the_time_before_the_deadline,
        ),
        claim(
            "session_that_is_connecting_at_the_deadline_is_closed",
            session_that_is_connecting_at_the_deadline_is_closed,
        ),
        claim(
            "s24_blocked_flushes_end_at_the_deadline_of_a_signal",
            || {
                blocked_flushes(true);
            },
        ),
        claim("s24_blocked_flushes_end_at_the_deadline_of_a_drain", || {
            blocked_flushes(false);
        }),
        claim(
            "s9_thousands_without_a_fin_are_reaped_and_leave_no_socket",
            thousands_without_a_fin_are_reaped_and_leave_no_socket,
        ),
    ]
}

/// When each of these sessions was ended by the relay.
async fn ends(agents: Vec<Agent>, end: End) -> Vec<Instant> {
    let mut reads = JoinSet::new();
    for mut agent in agents {
        reads.spawn(async move {
            assert_eq!(agent.read_to_end().await.unwrap(), (Vec::new(), end));
            Instant::now()
        });
    }
    reads.join_all().await
}

/// That is what is tested, so there are clocks in it. By order and by signal alike, FIN and RST.
fn sessions_are_closed_spread_over_the_time_before_the_deadline() {
    const N: usize = 100;
    let (deadline, spread) = (Duration::from_millis(5000), Duration::from_millis(3000));
    for (signal, close, end) in [(false, "fin", End::Fin), (true, "rst", End::Reset)] {
        let keys =
            format!("accept_for = \"0s\"\ndeadline = \"5s\"\nspread = \"3s\"\nclose = \"{close}\"");
        let world = World::with("spread-drain", Manner::Echo, draining(&keys));
        let agents = open(&world, N);
        let before = Instant::now();
        match signal {
            true => world.relay.signal(Signal::TERM),
            false => drop(world.relay.order("/drain").done()),
        }
        let ends = world.node.run(ends(agents, end));
        let after: Vec<Duration> = ends.iter().map(|at| *at - before).collect();
        let first = after.iter().min().unwrap();
        assert!(*first >= deadline - spread, "{first:?}, {close}");
        // In each third of the time there are some: with a hundred, chance leaves none out.
        for third in 0..3 {
            let from = deadline - spread + spread / 3 * third;
            let within = after
                .iter()
                .filter(|at| **at >= from && **at < from + spread / 3);
            // A machine that stands still makes it later, so the last third is open.
            let n = match third {
                2 => after.iter().filter(|at| **at >= from).count(),
                _ => within.count(),
            };
            assert!(n >= 5, "{n} in third {third}: {after:?}");
        }
        match signal {
            true => assert_eq!(world.relay.wait_exit(), 0),
            false => {
                wait_phase(&world.relay, "drained");
                world.wait_closed("drained", N as u64);
                world.assert_at_rest();
            }
        }
    }
}

/// An upstream that answers no SYN: the session is opened, and not connected when the deadline comes.
fn session_that_is_connecting_at_the_deadline_is_closed() {
    let world = World::with(
        "drain-connecting",
        Manner::Echo,
        draining("accept_for = \"0s\"\ndeadline = \"1s\"").replace(
            "name = \"control-plane\"\n",
            "name = \"control-plane\"\nconnect_timeout = \"10m\"\nconnect_deadline = \"10m\"\n",
        ),
    );
    world.origin_host.black_hole("10.30.0.0/24");
    let mut agent = world.node.run(connected(ENDPOINT)).unwrap();
    world
        .relay
        .wait_until("it to be a session", || told(&world.relay)["sessions"] == 1);
    world.relay.order("/drain").done();
    let ended = world.node.run(async move { agent.read_to_end().await });
    assert_eq!(ended.unwrap(), (Vec::new(), End::Reset));
    wait_phase(&world.relay, "drained");
    world.wait_closed("drained", 1);
    world.origin_host.pass_again("10.30.0.0/24");
    world.assert_at_rest();
}

/// Readers that have stopped, in both directions: bytes in the relay's pipes, in its kernel and in the peers', and nobody takes any. The deadline
/// holds, and nothing of it is left: no session, no descriptor, no socket in the kernel.
fn blocked_flushes(signal: bool) {
    let hosts = Hosts::new("blocked-flush");
    for host in [&hosts.node, &hosts.relay, &hosts.origin] {
        for key in ["net.ipv4.tcp_rmem", "net.ipv4.tcp_wmem"] {
            host.sysctl(key, "4096 65536 65536");
        }
    }
    let keys = "[drain]\naccept_for = \"0s\"\ndeadline = \"3s\"\nclose = \"fin\"";
    let peers = Peers::between(hosts, shipped_and(keys));
    let stuck: Vec<_> = (0..10)
        .flat_map(|_| Way::ALL)
        .map(|way| {
            let (mut sender, receiver) = peers.open_along(way, 220);
            sender.send_until_stuck();
            (sender, receiver)
        })
        .collect();
    // Some have sent their FIN behind what is stuck: the relay is in the middle of flushing.
    for (sender, _) in stuck.iter().step_by(3) {
        sender.finish();
    }
    match signal {
        true => {
            peers.relay.signal(Signal::TERM);
            assert_eq!(peers.relay.wait_exit(), 0, "at the deadline, in order");
        }
        false => {
            peers.relay.order("/drain").done();
            wait_phase(&peers.relay, "drained");
            peers.wait_closed("drained", stuck.len() as u64);
        }
    }
    for (mut sender, mut receiver) in stuck {
        assert_eq!(sender.expect_to_end(), End::Reset);
        assert_eq!(receiver.expect_to_end(), End::Reset, "it was cut");
        assert!(receiver.received() < sender.sent());
    }
    let left = || {
        let sockets = peers.hosts.relay.sockets();
        let ours = sockets.into_iter().filter(|socket| {
            !matches!(socket.state, State::Listen | State::TimeWait)
                && [443, 8443]
                    .iter()
                    .any(|port| [socket.local.port(), socket.remote.port()].contains(port))
        });
        ours.collect::<Vec<_>>()
    };
    peers
        .relay
        .wait_until("no socket to be left in the kernel", || left().is_empty());
    if !signal {
        peers.assert_at_rest();
    }
}

/// Peers that took our FIN and never send theirs: the bound of half-closed sessions ends them all, and the kernel keeps nothing either.
fn thousands_without_a_fin_are_reaped_and_leave_no_socket() {
    const N: usize = 2000;
    let world = World::with(
        "no-fin",
        Manner::Stopped,
        shipped_and("[session]\nhalf_close_timeout = \"2s\""),
    );
    let agents = world.node.run_within(Duration::from_secs(60), async {
        let mut agents = Vec::new();
        for _ in 0..N {
            let stream = tokio::net::TcpStream::connect(super::super::world::listener())
                .await
                .unwrap();
            let header = super::super::world::privatelink_header(ENDPOINT);
            crate::harness::stream::write(&stream, &header, |_| ())
                .await
                .unwrap();
            agents.push(Agent::of(stream).unwrap());
        }
        agents
    });
    let active = [("upstream", "control-plane")];
    world
        .relay
        .wait_metric("tollgate_connections_active", &active, N as u64);
    // The origin has stopped reading: it never sees the FIN, and never sends its own.
    for agent in &agents {
        agent.finish().unwrap();
    }
    world.wait_closed("half_close_timeout", N as u64);
    drop(agents);
    world.relay.wait_until("no socket to be left", || {
        let sockets = world.relay_host.sockets();
        let mut traffic = sockets.iter().filter(|socket| {
            [8443, 443]
                .iter()
                .any(|port| [socket.local.port(), socket.remote.port()].contains(port))
        });
        traffic.all(|socket| socket.state == State::Listen)
    });
    world.assert_at_rest();
}
