//! S14, S16, S22: readers that stop, pipes that were cut, descriptors that run out.

use std::thread;

use libtest_mimic::Trial;

use super::{
    peers::{Peer, Peers, Way, in_mode},
    world::{
        ENDPOINT, Hosts, World, connected, listener, privatelink_header, shipped, shipped_and,
    },
};
use crate::{
    claim,
    harness::{
        agent::Agent,
        origin::Manner,
        relay::{Start, http_get},
        stream::End::{Fin, Reset},
    },
};

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        claim(
            "stopped_reader_stops_the_sender_and_costs_no_memory",
            || {
                stopped_reader(shipped());
            },
        ),
        claim("stopped_reader_costs_no_memory_when_copied", || {
            stopped_reader(in_mode("copy"));
        }),
        claim(
            "pipes_cut_by_resets_never_reach_another_session",
            pipes_cut_by_resets,
        ),
        claim(
            "pipes_cut_by_a_timeout_never_reach_another_session",
            pipes_cut_by_a_timeout,
        ),
        claim(
            "without_descriptors_traffic_is_copied_and_accepting_recovers",
            descriptors_run_out,
        ),
        claim(
            "few_descriptors_serve_a_crowd_in_turn",
            few_descriptors_serve_a_crowd_in_turn,
        ),
        claim("listeners_without_a_client_hold_no_place", idle_listeners),
    ]
}

/// S22, a direction after the other.
fn stopped_reader(start: Start) {
    const TOTAL: u64 = 50_000_000;
    /// What the relay's own memory may grow by: its buffers are there already, a tail is 256 KiB.
    const GROWTH: u64 = 4 << 20;
    let hosts = Hosts::new("stopped");
    // Linux's own bound in most places; where it is higher, the kernels alone might take all of it.
    for host in [&hosts.node, &hosts.relay, &hosts.origin] {
        host.sysctl("net.ipv4.tcp_rmem", "4096 131072 6291456");
    }
    let peers = Peers::between(hosts, start);
    for (n, way) in Way::ALL.into_iter().enumerate() {
        let (mut sender, mut receiver) = peers.open_along(way, 10);
        // Once through everything, so that buffers and code are in memory.
        thread::scope(|scope| {
            scope.spawn(|| sender.send(2_000_000));
            receiver.expect(2_000_000);
        });
        let before = peers.relay.rss();
        sender.send_until_stuck();
        assert!(sender.sent() < TOTAL, "{} were taken", sender.sent());
        let grown = peers.relay.rss().saturating_sub(before);
        assert!(grown < GROWTH, "{grown} bytes more for a stopped reader");
        peers.relay.assert_at_rest();
        thread::scope(|scope| {
            scope.spawn(|| {
                sender.send(TOTAL - sender.sent());
                sender.finish();
            });
            assert_eq!(receiver.expect_to_end(), Fin);
        });
        assert_eq!(receiver.received(), TOTAL);
        receiver.finish();
        assert_eq!(sender.expect_to_end(), Fin);
        peers.wait_closed("completed", n as u64 + 1);
        assert_eq!(peers.booked(way), TOTAL);
        let grown = peers.relay.rss().saturating_sub(before);
        assert!(grown < GROWTH, "{grown} bytes more after it went on");
    }
    peers.assert_at_rest();
}

/// Sessions whose pipes hold bytes that nobody takes: sender, receiver.
fn stuck(peers: &Peers, each_way: u64) -> Vec<(Peer, Peer)> {
    let sessions: Vec<_> = Way::ALL
        .into_iter()
        .flat_map(|way| (0..each_way).map(move |n| peers.open_along(way, 100 + 2 * n)))
        .collect();
    let stuck = thread::scope(|scope| {
        let threads: Vec<_> = sessions
            .into_iter()
            .map(|(mut sender, receiver)| {
                scope.spawn(move || {
                    sender.send_until_stuck();
                    (sender, receiver)
                })
            })
            .collect();
        let joined = threads.into_iter().map(|thread| thread.join().unwrap());
        joined.collect()
    });
    peers.wait_pipes_lent(2 * each_way);
    stuck
}

/// Sessions with streams of their own, every byte of which is checked.
fn others(peers: &Peers) {
    const BYTES: u64 = 2_000_000;
    thread::scope(|scope| {
        for n in 0..12 {
            let (mut client, mut server) = peers.open(1000 + 2 * n);
            scope.spawn(move || {
                thread::scope(|scope| {
                    scope.spawn(|| {
                        client.send(BYTES);
                        client.expect(BYTES);
                        client.finish();
                        assert_eq!(client.expect_to_end(), Fin);
                    });
                    server.expect(BYTES);
                    server.send(BYTES);
                    server.finish();
                    assert_eq!(server.expect_to_end(), Fin);
                });
            });
        }
    });
    peers.wait_closed("completed", 12);
}

/// S16.
fn pipes_cut_by_resets() {
    const EACH_WAY: u64 = 10;
    let peers = Peers::new("poison", in_mode("splice"));
    for (n, (mut sender, receiver)) in stuck(&peers, EACH_WAY).into_iter().enumerate() {
        if n % 2 == 0 {
            receiver.reset();
            assert_eq!(sender.expect_to_end(), Reset);
        } else {
            // First the one whose bytes they are, then the one they are meant for.
            sender.reset();
            receiver.reset();
        }
    }
    peers.wait_pipes_lent(0);
    others(&peers);
    peers.assert_at_rest();
}

/// S16, where it is the relay itself that cuts.
fn pipes_cut_by_a_timeout() {
    let tables = "[relay]\nmode = \"splice\"\n[session]\nidle_timeout = \"3s\"";
    let peers = Peers::new("poison-idle", shipped_and(tables));
    let stuck = stuck(&peers, 5);
    peers.wait_closed("idle_timeout", 10);
    peers.wait_pipes_lent(0);
    others(&peers);
    drop(stuck);
    peers.assert_at_rest();
}

/// Everybody is served in turn, and health checks are answered meanwhile.
fn few_descriptors_serve_a_crowd_in_turn() {
    const CROWD: u64 = 60;
    let start = shipped()
        .replace("[health]", "workers = 1\n[health]")
        .through(&["prlimit", "--nofile=80:80"]);
    let world = World::with("few-fds", Manner::Echo, start);
    let crowd = world.node.run(async {
        let mut crowd = Vec::new();
        for _ in 0..CROWD {
            let mut agent = Agent::connect(listener()).await.unwrap();
            agent
                .preface(&[&privatelink_header(ENDPOINT)])
                .await
                .unwrap();
            crowd.push(agent);
        }
        crowd
    });
    world.relay.wait_log("cannot accept");
    let health = http_get("10.20.0.2:9901".parse().unwrap(), "/readyz".to_owned());
    assert_eq!(world.node.run(health).unwrap().0, 200);
    world.node.run(async move {
        for mut agent in crowd {
            agent.exchange(1000).await.unwrap();
            agent.finish().unwrap();
            assert_eq!(agent.expect_to_end(0).await.unwrap(), Fin);
        }
    });
    world.wait_closed("completed", CROWD);
    world.assert_at_rest();
}

/// More listening sockets than places: each connection gets one, whichever socket the kernel gives it to.
fn idle_listeners() {
    let start = shipped()
        .replace("[health]", "workers = 16\n[health]")
        .through(&["prlimit", "--nofile=104:104"]);
    let world = World::with("idle-listeners", Manner::Echo, start);
    let fit = world.relay.wait_log("descriptors for ");
    let fit = fit.split("descriptors for ").nth(1).unwrap();
    let fit: u64 = fit.split(' ').next().unwrap().parse().unwrap();
    assert!(
        (1..16).contains(&fit),
        "{fit} places: nothing was to be seen"
    );
    const SESSIONS: u64 = 60;
    for _ in 0..SESSIONS {
        world.node.run(async {
            let mut agent = connected(ENDPOINT).await.unwrap();
            agent.exchange(100).await.unwrap();
            agent.finish().unwrap();
            assert_eq!(agent.expect_to_end(0).await.unwrap(), Fin);
        });
    }
    world.wait_closed("completed", SESSIONS);
    let shortages = [("error", "resources")];
    assert_eq!(
        world
            .relay
            .metric("tollgate_accept_errors_total", &shortages),
        0
    );
    world.assert_at_rest();
}

/// Sets the soft limit of a running relay's descriptors.
fn limit_descriptors(peers: &Peers, soft: &str) {
    let (id, limit) = (peers.relay.id().to_string(), format!("--nofile={soft}:"));
    let status = std::process::Command::new("prlimit")
        .args(["--pid", &id, &limit])
        .status();
    assert!(status.unwrap().success());
}

/// S14. The limit is taken away from under a relay that runs: one that starts with few never accepts more than fit.
fn descriptors_run_out() {
    const CROWD: u64 = 80;
    const BYTES: u64 = 1_000_000;
    let peers = Peers::new("nofile", in_mode("splice"));
    // Without payload, so that it has no pipe when the last descriptor goes.
    let (mut client, mut server) = peers.open(10);
    limit_descriptors(&peers, &peers.relay.fd_count().to_string());
    let crowd = peers.hosts.node.run(async {
        let mut crowd = Vec::new();
        for _ in 0..CROWD {
            crowd.push(Agent::connect(listener()).await.unwrap());
        }
        crowd
    });
    peers.relay.wait_log("cannot accept");
    peers.relay.assert_at_rest();
    thread::scope(|scope| {
        scope.spawn(|| client.send(BYTES));
        server.expect(BYTES);
    });
    thread::scope(|scope| {
        scope.spawn(|| server.send(BYTES));
        client.expect(BYTES);
    });
    limit_descriptors(&peers, "1024");
    peers.hosts.node.call(move || drop(crowd));
    let metric = |name, labels: &[_]| peers.relay.metric(name, labels);
    peers
        .relay
        .wait_metric("tollgate_empty_connections_total", &[], CROWD);
    let fallbacks = metric("tollgate_splice_fallbacks_total", &[("reason", "no_pipe")]);
    assert_eq!(fallbacks, 2, "one in each direction");
    // Counted when the call returns, which may be after the bytes have arrived.
    let wait_moved = |mode, n| {
        let labels = [("mode", mode)];
        peers
            .relay
            .wait_metric("tollgate_relay_bytes_total", &labels, n);
    };
    wait_moved("copy", 2 * BYTES);
    let errors = metric("tollgate_accept_errors_total", &[("error", "resources")]);
    assert!(errors > 0);
    // The listener lives, and there are pipes again.
    let (mut second, mut its_server) = peers.open(20);
    second.send(BYTES / 10);
    its_server.expect(BYTES / 10);
    wait_moved("splice", BYTES / 10);
    for (mut client, mut server) in [(client, server), (second, its_server)] {
        client.finish();
        assert_eq!(server.expect_to_end(), Fin);
        server.finish();
        assert_eq!(client.expect_to_end(), Fin);
    }
    peers.wait_closed("completed", 2);
    peers.assert_at_rest();
}
