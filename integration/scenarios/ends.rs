//! S2, S3, S6, S7, S10: how a direction ends, and that nothing before its end is lost.

use libtest_mimic::Trial;

use super::{
    peers::{Peers, Way, in_mode, within_five},
    world::{Hosts, shipped},
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
        claim("eof_behind_held_bytes_comes_last_when_copied", || {
            eof_behind_held_bytes("copy");
        }),
        claim("eof_behind_held_bytes_comes_last_when_spliced", || {
            eof_behind_held_bytes("splice");
        }),
        claim(
            "eof_behind_bulk_comes_last_and_bulk_is_spliced",
            eof_behind_bulk,
        ),
        claim("last_bytes_and_fin_in_one_read_are_copied", || {
            last_bytes_and_fin("copy");
        }),
        claim("last_bytes_and_fin_in_one_read_are_spliced", || {
            last_bytes_and_fin("splice");
        }),
        claim("last_bytes_behind_a_spliced_stream_arrive", || {
            last_bytes_and_fin("adaptive");
        }),
        claim(
            "receiver_reset_frees_the_pipe_and_resets_the_sender",
            || {
                receiver_reset("splice");
            },
        ),
        claim(
            "receiver_reset_drops_the_tail_and_resets_the_sender",
            || {
                receiver_reset("copy");
            },
        ),
        claim("data_before_a_reset_arrives_when_copied", || {
            data_then_reset("copy");
        }),
        claim("data_before_a_reset_arrives_when_spliced", || {
            data_then_reset("splice");
        }),
        claim("data_held_at_a_reset_arrives_when_copied", || {
            held_data_then_reset("copy");
        }),
        claim("data_held_at_a_reset_arrives_when_spliced", || {
            held_data_then_reset("splice");
        }),
        claim(
            "data_in_the_kernel_at_a_reset_arrives",
            data_in_the_kernel_then_reset,
        ),
        claim("reset_stays_reset_and_fin_stays_fin", reset_and_fin),
        claim(
            "reset_is_seen_behind_a_half_close",
            reset_is_seen_behind_a_half_close,
        ),
    ]
}

/// S2: the FIN has arrived and cannot be passed on yet.
fn eof_behind_held_bytes(mode: &str) {
    let peers = Peers::new("eof", in_mode(mode));
    let mut sessions = 0;
    for way in Way::ALL {
        within_five("bytes held behind a FIN", |_| {
            let before = peers.booked(way);
            let (mut sender, mut receiver) = peers.open_along(way, 10);
            peers.fill(&mut sender, way);
            sender.finish();
            peers.relay.wait_until("the FIN to arrive", || {
                let socket = peers.socket_to(&sender);
                socket.is_none_or(|socket| socket.state == State::CloseWait)
            });
            let held = peers.booked(way) - before < sender.sent();
            assert_eq!(receiver.expect_to_end(), Fin);
            assert_eq!(receiver.received(), sender.sent());
            receiver.finish();
            assert_eq!(sender.expect_to_end(), Fin);
            sessions += 1;
            peers.wait_closed("completed", sessions);
            assert_eq!(peers.booked(way) - before, sender.sent());
            held
        });
    }
    let [used, other] = match mode {
        "splice" => ["splice", "copy"],
        _ => ["copy", "splice"],
    };
    assert!(peers.moved_by(used) > 0);
    assert_eq!(peers.moved_by(other), 0);
    peers.assert_at_rest();
}

/// S2, once the relay itself has turned to splicing.
fn eof_behind_bulk() {
    let hosts = Hosts::new("eof-bulk");
    // Room for reads that fill the worker's buffer.
    hosts
        .relay
        .sysctl("net.ipv4.tcp_rmem", "4096 4194304 6291456");
    let peers = Peers::between(hosts, shipped());
    for (n, way) in Way::ALL.into_iter().enumerate() {
        let (mut sender, mut receiver) = peers.open_along(way, 20);
        let spliced = peers.moved_by("splice");
        let lent = || peers.relay.metric("tollgate_pipes", &[("state", "lent")]);
        peers.relay.wait_until("a pipe that holds bytes", || {
            sender.send_until_stuck();
            if lent() == 1 && peers.moved_by("splice") > spliced {
                return true;
            }
            receiver.expect(512 * 1024);
            false
        });
        sender.finish();
        assert_eq!(receiver.expect_to_end(), Fin);
        assert_eq!(receiver.received(), sender.sent());
        receiver.finish();
        assert_eq!(sender.expect_to_end(), Fin);
        peers.wait_closed("completed", n as u64 + 1);
        assert_eq!(peers.booked(way), sender.sent());
    }
    peers.assert_at_rest();
}

/// S3: the relay was elsewhere when the last bytes and the FIN came.
fn last_bytes_and_fin(mode: &str) {
    const STREAM: u64 = 20_000_000;
    let hosts = Hosts::new("last");
    hosts
        .relay
        .sysctl("net.ipv4.tcp_rmem", "4096 4194304 6291456");
    let peers = Peers::between(hosts, in_mode(mode));
    for way in Way::ALL {
        let mut sum = 0;
        for last in [1, 1000, 4095] {
            let (mut sender, mut receiver) = peers.open_along(way, last);
            if mode == "adaptive" {
                // Stuck first, so that the reads that follow are full ones.
                sender.send_until_stuck();
                let sent = sender.sent();
                std::thread::scope(|scope| {
                    scope.spawn(|| sender.send(STREAM));
                    receiver.expect(sent + STREAM);
                });
            }
            {
                let _frozen = peers.freeze();
                sender.send(last);
                sender.finish();
                sender.acknowledged();
            }
            assert_eq!(receiver.expect_to_end(), Fin);
            assert_eq!(receiver.received(), sender.sent());
            receiver.finish();
            assert_eq!(sender.expect_to_end(), Fin);
            sum += sender.sent();
        }
        peers
            .relay
            .wait_metric("tollgate_connections_active", &[], 0);
        assert_eq!(peers.booked(way), sum);
    }
    match mode {
        "copy" => assert_eq!(peers.moved_by("splice"), 0),
        "splice" => assert_eq!(peers.moved_by("copy"), 0),
        _ => assert!(peers.moved_by("splice") > STREAM),
    }
    peers.wait_closed("completed", 6);
    peers.assert_at_rest();
}

/// S6: the bytes have nowhere to go any more.
fn receiver_reset(mode: &str) {
    let peers = Peers::new("sink-reset", in_mode(mode));
    for way in Way::ALL {
        within_five("bytes held at a reset", |attempt| {
            let before = peers.booked(way);
            let (mut sender, receiver) = peers.open_along(way, 30);
            peers.fill(&mut sender, way);
            receiver.reset();
            assert_eq!(sender.expect_to_end(), Reset);
            peers.wait_closed(way.receiver_reset(), attempt);
            peers.wait_pipes_lent(0);
            // What the relay held was never counted.
            peers.booked(way) - before < sender.sent()
        });
    }
    peers.assert_at_rest();
}

/// S7: bytes and RST are seen in one event.
fn data_then_reset(mode: &str) {
    const N: u64 = 40_000;
    let peers = Peers::new("data-reset", in_mode(mode));
    for way in Way::ALL {
        let (mut sender, mut receiver) = peers.open_along(way, 40);
        {
            let _frozen = peers.freeze();
            sender.send(N);
            sender.reset_after_delivery();
        }
        assert_eq!(receiver.expect_to_end(), Reset);
        assert_eq!(receiver.received(), N);
        peers.wait_closed(way.sender_reset(), 1);
        assert_eq!(peers.booked(way), N);
    }
    peers.assert_at_rest();
}

/// S7, with a receiver that takes nothing until long after the RST: what is held, and what the kernel has taken, must outlive it.
fn held_data_then_reset(mode: &str) {
    let peers = Peers::new("held-reset", in_mode(mode));
    for way in Way::ALL {
        let (mut sender, mut receiver) = peers.open_along(way, 50);
        peers.fill(&mut sender, way);
        // So that something waits in front of the relay too.
        sender.send(10_000);
        let sent = sender.sent();
        sender.reset_after_delivery();
        receiver.expect(sent);
        assert_eq!(receiver.expect_to_end(), Reset);
        assert_eq!(receiver.received(), sent);
        peers.wait_closed(way.sender_reset(), 1);
        assert_eq!(peers.booked(way), sent);
    }
    peers.assert_at_rest();
}

/// S7: the relay has nothing left, its kernel has, and the receiver has room for a fifth of it. An RST sent at once would take it back.
fn data_in_the_kernel_then_reset() {
    const N: u64 = 20_000;
    let hosts = Hosts::new("kernel-reset");
    for host in [&hosts.node, &hosts.origin] {
        host.sysctl("net.ipv4.tcp_rmem", "4096 4096 4096");
    }
    let peers = Peers::between(hosts, shipped());
    for way in Way::ALL {
        let (sender, mut receiver) = peers.open_along(way, 55);
        peers.send_and_reset(sender, way, N);
        assert_eq!(receiver.expect_to_end(), Reset);
        assert_eq!(receiver.received(), N);
        peers.wait_closed(way.sender_reset(), 1);
    }
    peers.assert_at_rest();
}

/// S10, on sessions that moved something and on such that did not.
fn reset_and_fin() {
    let peers = Peers::new("reset-fin", shipped());
    for way in Way::ALL {
        for bytes in [0, 1000] {
            let (mut sender, mut receiver) = peers.open_along(way, 60);
            sender.send(bytes);
            receiver.expect(bytes);
            sender.reset();
            assert_eq!(receiver.expect_to_end(), Reset);

            let (mut sender, mut receiver) = peers.open_along(way, 62);
            sender.send(bytes);
            sender.finish();
            assert_eq!(receiver.expect_to_end(), Fin);
            receiver.finish();
            assert_eq!(sender.expect_to_end(), Fin);
        }
        peers.wait_closed(way.sender_reset(), 2);
        assert_eq!(peers.booked(way), 2000);
    }
    peers.wait_closed("completed", 4);
    peers.assert_at_rest();
}

/// Nobody reads a side whose FIN was read, and nobody writes to one that says nothing: a reset must be seen all the same.
fn reset_is_seen_behind_a_half_close() {
    let peers = Peers::new("half-reset", shipped());
    for way in Way::ALL {
        let (sender, mut receiver) = peers.open_along(way, 70);
        sender.finish();
        assert_eq!(receiver.expect_to_end(), Fin);
        sender.reset();
        receiver.wait_broken();
        peers.wait_closed(way.sender_reset(), 1);
    }
    for way in Way::ALL {
        let (mut sender, mut receiver) = peers.open_along(way, 72);
        sender.finish();
        assert_eq!(receiver.expect_to_end(), Fin);
        receiver.reset();
        assert_eq!(sender.expect_to_end(), Reset);
        // Once each from above, where the roles were the other way round.
        peers.wait_closed(way.receiver_reset(), 2);
    }
    peers.assert_at_rest();
}
