//! Faults that attacks have found, each as the claim that it broke: what a peer sends beside its stream, in bulk, and last.

use std::{sync::Arc, thread, time::Duration};

use libtest_mimic::Trial;
use tokio::net::TcpListener;

use super::{
    peers::{Peer, Peers, Way, in_mode},
    world::{self, ENDPOINT, Hosts, ORIGIN, connected, shipped_and},
};
use crate::{
    claim,
    harness::{
        agent::Agent,
        relay::Baseline,
        sockets::State,
        stream::{End::Fin, within},
    },
};

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        claim("urgent_byte_arrives_in_its_place_when_copied", || {
            urgent("copy");
        }),
        claim("urgent_byte_arrives_in_its_place_when_spliced", || {
            urgent("splice");
        }),
        claim("urgent_byte_arrives_in_its_place_when_adaptive", || {
            urgent("adaptive");
        }),
        claim("hundreds_of_full_reads_in_a_row_are_copied", || {
            many_full_reads("copy");
        }),
        claim("hundreds_of_full_reads_in_a_row_are_spliced", || {
            many_full_reads("splice");
        }),
        claim(
            "hundreds_of_short_reads_in_a_row_are_spliced",
            many_short_splices,
        ),
        claim("reset_right_behind_a_fin_is_passed_on", reset_behind_a_fin),
        claim("reset_and_fin_in_one_event_are_passed_on", reset_with_a_fin),
        claim("reset_behind_a_fin_follows_held_data_when_copied", || {
            reset_behind_a_fin_and_held_data("copy");
        }),
        claim("reset_behind_a_fin_follows_held_data_when_spliced", || {
            reset_behind_a_fin_and_held_data("splice");
        }),
    ]
}

/// An urgent byte is a byte of the stream, wherever it stands: behind nothing, among a few, in the midst of bulk, last.
fn urgent(mode: &str) {
    const SEED: u64 = 90;
    const BULK: u64 = 8_000_000;
    let hosts = Hosts::new("urgent");
    let accepting = Arc::new(hosts.origin.run(TcpListener::bind(ORIGIN)).unwrap());
    let relay = in_mode(mode).on(&hosts.relay);
    let baseline = Baseline::of(&relay);
    for way in Way::ALL {
        let mut sum = 0;
        for (before, behind) in [(0, 1000), (10, 1000), (BULK, BULK), (BULK, 0)] {
            let client = hosts.node.run(connected(ENDPOINT)).unwrap();
            let accepting = Arc::clone(&accepting);
            let server = hosts.origin.run(async move {
                let accept = within(Duration::from_secs(20), accepting.accept());
                Agent::of(accept.await?.0)
            });
            let ends = [(&hosts.node, client), (&hosts.origin, server.unwrap())];
            let [(from, sender), (to, mut receiver)] = match (way, ends) {
                (Way::ToUpstream, ends) => ends,
                (Way::ToClient, [client, server]) => [server, client],
            };
            let sent = from.spawn(async move {
                let mut sender = sender.seed(SEED);
                sender.send(before).await?;
                sender.send_urgent().await?;
                sender.send(behind).await?;
                sender.finish()?;
                Ok::<_, std::io::Error>(sender)
            });
            let (end, received) = to.run(async move {
                let end = receiver.expect_to_end(SEED).await;
                (end.unwrap(), receiver.received())
            });
            assert_eq!((end, received), (Fin, before + 1 + behind));
            let mut sender = from.run(sent).unwrap().unwrap();
            let end = from.run(async move { sender.expect_to_end(0).await.unwrap() });
            assert_eq!(end, Fin);
            sum += received;
        }
        relay.wait_metric("tollgate_connections_active", &[], 0);
        let labels = [("endpoint", ENDPOINT), ("direction", way.name())];
        assert_eq!(relay.metric("tollgate_bytes_total", &labels), sum);
    }
    relay.wait_metric(
        "tollgate_connections_closed_total",
        &[("reason", "completed")],
        8,
    );
    world::assert_at_rest(&relay, baseline);
}

/// More full reads without a short one than a byte can count: 256 of 256 KiB are 67 MB.
fn many_full_reads(mode: &str) {
    const STREAM: u64 = 100_000_000;
    let hosts = Hosts::new("full-reads");
    hosts
        .relay
        .sysctl("net.ipv4.tcp_rmem", "4096 4194304 6291456");
    let peers = Peers::between(hosts, in_mode(mode));
    for way in Way::ALL {
        let (mut sender, mut receiver) = peers.open_along(way, 100);
        // Stuck first: from here on the relay finds more than it can take.
        let stuck = sender.send_until_stuck();
        thread::scope(|scope| {
            scope.spawn(|| sender.send(STREAM));
            receiver.expect(stuck + STREAM);
        });
        complete(&mut sender, &mut receiver);
        peers
            .relay
            .wait_metric("tollgate_connections_active", &[], 0);
        assert_eq!(peers.booked(way), stuck + STREAM);
    }
    peers.wait_closed("completed", 2);
    peers.assert_at_rest();
}

/// More short splices in a row than a byte can count.
fn many_short_splices() {
    let peers = Peers::new("short-splices", in_mode("splice"));
    for way in Way::ALL {
        let (mut sender, mut receiver) = peers.open_along(way, 102);
        for size in 1..=300 {
            sender.send(size);
            receiver.expect(size);
        }
        complete(&mut sender, &mut receiver);
    }
    peers.wait_closed("completed", 2);
    assert_eq!(peers.moved_by("copy"), 0);
    peers.assert_at_rest();
}

/// Both sides finish, and nothing more came.
#[track_caller]
pub(crate) fn complete(sender: &mut Peer, receiver: &mut Peer) {
    sender.finish();
    assert_eq!(receiver.expect_to_end(), Fin);
    assert_eq!(receiver.received(), sender.sent());
    receiver.finish();
    assert_eq!(sender.expect_to_end(), Fin);
}

/// A half-closed session may last: a reset that is not passed on at once is not passed on at all.
const LASTING: &str = "[session]\nhalf_close_timeout = \"10m\"\nidle_timeout = \"10m\"";

/// All arrives, and then a reset; whether a FIN is seen before it is a matter of who looks when.
#[track_caller]
fn expect_all_and_reset(receiver: &mut Peer, sent: u64) {
    let end = receiver.expect_to_end();
    assert_eq!(receiver.received(), sent);
    if end == Fin {
        receiver.wait_broken();
    }
}

/// The RST comes when the FIN was perhaps read, perhaps not.
fn reset_behind_a_fin() {
    const ROUNDS: u64 = 20;
    let peers = Peers::new("fin-reset", shipped_and(LASTING));
    for way in Way::ALL {
        for round in 1..=ROUNDS {
            let (mut sender, mut receiver) = peers.open_along(way, 110);
            sender.send(1000);
            sender.acknowledged();
            sender.finish();
            sender.reset();
            expect_all_and_reset(&mut receiver, 1000);
            peers.wait_closed(way.sender_reset(), round);
        }
        assert_eq!(peers.booked(way), 1000 * ROUNDS);
    }
    peers.assert_at_rest();
}

/// The relay was elsewhere when both came.
fn reset_with_a_fin() {
    let peers = Peers::new("fin-and-reset", shipped_and(LASTING));
    for way in Way::ALL {
        let (mut sender, mut receiver) = peers.open_along(way, 112);
        {
            let _frozen = peers.freeze();
            sender.send(1000);
            sender.acknowledged();
            sender.finish();
            sender.reset();
        }
        expect_all_and_reset(&mut receiver, 1000);
        peers.wait_closed(way.sender_reset(), 1);
        assert_eq!(peers.booked(way), 1000);
    }
    peers.assert_at_rest();
}

/// Megabytes are under way to a side that takes nothing, when the FIN comes and then the RST.
fn reset_behind_a_fin_and_held_data(mode: &str) {
    let hosts = Hosts::new("held-fin-reset");
    // So that the relay's kernel has room for all that is sent, and the FIN, while the relay itself reads no more.
    hosts
        .relay
        .sysctl("net.ipv4.tcp_rmem", "4096 16777216 16777216");
    hosts.relay.sysctl("net.ipv4.tcp_wmem", "4096 65536 65536");
    for host in [&hosts.node, &hosts.origin] {
        host.sysctl("net.ipv4.tcp_rmem", "4096 65536 65536");
    }
    let start = shipped_and(&format!("{LASTING}\n[relay]\nmode = \"{mode}\""));
    let peers = Peers::between(hosts, start);
    for way in Way::ALL {
        let (mut sender, mut receiver) = peers.open_along(way, 114);
        sender.send(4_000_000);
        let sent = sender.sent();
        sender.finish();
        sender.acknowledged();
        peers.relay.wait_until("the FIN to arrive", || {
            let socket = peers.socket_to(&sender);
            socket.is_some_and(|socket| socket.state == State::CloseWait)
                && peers.relay.all_threads_wait()
        });
        let (local, remote) = sender.addresses();
        sender.reset();
        peers.relay.wait_until("the RST to be seen", || {
            let mut sockets = peers.hosts.relay.sockets().into_iter();
            !sockets.any(|socket| (socket.remote, socket.local) == (local, remote))
                && peers.relay.all_threads_wait()
        });
        expect_all_and_reset(&mut receiver, sent);
        peers.wait_closed(way.sender_reset(), 1);
        assert_eq!(peers.booked(way), sent);
    }
    peers.assert_at_rest();
}
