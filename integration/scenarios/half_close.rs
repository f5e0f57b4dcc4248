//! S8: one side has finished, the other has not.

use std::{
    thread,
    time::{Duration, Instant},
};

use libtest_mimic::Trial;

use super::{
    peers::{Peers, Way},
    world::{Hosts, shipped, shipped_and, shipped_with},
};
use crate::{
    claim,
    harness::{
        sockets::State,
        stream::End::{Fin, Reset},
    },
};

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        claim(
            "answer_after_a_half_close_arrives_however_late",
            late_answers,
        ),
        claim(
            "silence_after_a_half_close_ends_at_its_bound",
            silence_after_a_half_close,
        ),
        claim(
            "slow_reader_outlives_the_bound_of_half_closes",
            slow_reader_outlives_the_bound,
        ),
    ]
}

/// With the shipped bound of a minute, each way, at the same time.
fn late_answers() {
    let peers = Peers::new("late", shipped());
    thread::scope(|scope| {
        for (seed, way) in [(10, Way::ToUpstream), (20, Way::ToClient)] {
            for wait in [0, 200, 5000].map(Duration::from_millis) {
                let (mut sender, mut receiver) = peers.open_along(way, seed);
                scope.spawn(move || {
                    sender.send(1000);
                    sender.finish();
                    assert_eq!(receiver.expect_to_end(), Fin);
                    assert_eq!(receiver.received(), 1000);
                    // The lateness is what is tested.
                    thread::sleep(wait);
                    receiver.send(200_000);
                    receiver.finish();
                    assert_eq!(sender.expect_to_end(), Fin);
                    assert_eq!(sender.received(), 200_000);
                });
            }
        }
    });
    peers.wait_closed("completed", 6);
    for way in Way::ALL {
        assert_eq!(peers.booked(way), 3 * 201_000);
    }
    peers.assert_at_rest();
}

fn silence_after_a_half_close() {
    const BOUND: Duration = Duration::from_millis(1500);
    let start = shipped_and("[session]\nhalf_close_timeout = \"1500ms\"");
    let peers = Peers::new("silence", start);
    thread::scope(|scope| {
        for way in Way::ALL {
            let (mut sender, mut receiver) = peers.open_along(way, 30);
            scope.spawn(move || {
                // The relay's clock stands while it has a turn: the FIN may still belong to the one that passed the bytes on.
                let began = Instant::now();
                sender.send(1000);
                receiver.expect(1000);
                sender.finish();
                assert_eq!(receiver.expect_to_end(), Fin);
                assert_eq!(sender.expect_to_end(), Reset);
                assert!(began.elapsed() >= BOUND, "not before its time");
                receiver.wait_broken();
            });
        }
        // The bound is of half-closed sessions alone: this one is silent for longer, and goes on.
        let (mut client, mut server) = peers.open(32);
        scope.spawn(move || {
            thread::sleep(2 * BOUND);
            client.send(1000);
            server.expect(1000);
            client.finish();
            server.finish();
            assert_eq!(server.expect_to_end(), Fin);
            assert_eq!(client.expect_to_end(), Fin);
        });
    });
    peers.wait_closed("half_close_timeout", 2);
    peers.wait_closed("completed", 1);
    peers.assert_at_rest();
}

/// The FIN is passed on, the kernel has the last bytes, and the reader takes its time: slow is not silent.
fn slow_reader_outlives_the_bound() {
    const BOUND: Duration = Duration::from_millis(500);
    let hosts = Hosts::new("slow");
    for host in [&hosts.node, &hosts.origin] {
        host.sysctl("net.ipv4.tcp_rmem", "4096 4096 4096");
    }
    let start = shipped_with("session = { half_close_timeout = \"500ms\" }");
    let peers = Peers::between(hosts, start);
    for (n, way) in Way::ALL.into_iter().enumerate() {
        let (mut sender, mut receiver) = peers.open_along(way, 40);
        sender.send(20_000);
        sender.finish();
        peers.relay.wait_until("the FIN to be passed on", || {
            let socket = peers.socket_to(&receiver);
            // FIN_WAIT1: behind the bytes, not acknowledged.
            socket.is_some_and(|socket| socket.state == State::Other(4) && socket.send_queue > 0)
        });
        for _ in 0..4 {
            // What is tested is that nothing happens in this time.
            thread::sleep(BOUND);
            receiver.expect(100);
        }
        assert_eq!(receiver.expect_to_end(), Fin);
        assert_eq!(receiver.received(), 20_000);
        receiver.finish();
        assert_eq!(sender.expect_to_end(), Fin);
        peers.wait_closed("completed", n as u64 + 1);
    }
    peers.assert_at_rest();
}
