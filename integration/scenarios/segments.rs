//! S1: segments as a plain network card delivers them, one by one, and a reader that is slower than they come. A pipe has room for sixteen
//! pieces, however small: whoever takes a full pipe for an empty socket leaves the tail where it is.

use std::{thread, time::Duration};

use libtest_mimic::Trial;

use super::{
    peers::{Peers, Way, in_mode},
    regression::complete,
    world::Hosts,
};
use crate::{claim, harness::pattern::Random};

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        claim("tail_of_small_segments_arrives_when_copied", || {
            small_segments("copy");
        }),
        claim("tail_of_small_segments_arrives_when_spliced", || {
            small_segments("splice");
        }),
        claim("tail_of_small_segments_arrives_when_adaptive", || {
            small_segments("adaptive");
        }),
    ]
}

fn small_segments(mode: &str) {
    /// Not a multiple of anything.
    const STREAM: u64 = 4_000_037;
    /// IP's, TCP's and its timestamps' share of a packet.
    const HEADERS: u64 = 52;
    let hosts = Hosts::without_wires("segments");
    let [[node, near], [far, origin]] = [hosts.near(), hosts.far()];
    let wires = [hosts.lab.veth(node, near), hosts.lab.veth(origin, far)];
    wires.iter().for_each(|wire| wire.without_offload());
    for host in [&hosts.node, &hosts.origin] {
        host.sysctl("net.ipv4.tcp_rmem", "4096 65536 65536");
    }
    hosts
        .relay
        .sysctl("net.ipv4.tcp_rmem", "4096 1048576 6291456");
    let peers = Peers::between(hosts, in_mode(mode));
    let (mut sessions, mut random) = (0, Random::new(1));
    for mtu in [1500, 9001] {
        wires.iter().for_each(|wire| wire.mtu(mtu));
        for (way, wire) in Way::ALL.into_iter().zip(&wires) {
            let before = peers.booked(way);
            let (mut sender, mut receiver) = peers.open_along(way, 10);
            let packets = wire.packets_sent(0);
            thread::scope(|scope| {
                scope.spawn(|| sender.send(STREAM));
                let mut left = STREAM;
                while left > 0 {
                    let piece = (1 + random.below(60_000)).min(left);
                    // Slowness is what this is about.
                    if random.chance(0.2) {
                        thread::sleep(Duration::from_millis(1 + random.below(5)));
                    }
                    receiver.expect(piece);
                    left -= piece;
                }
            });
            let packets = wire.packets_sent(0) - packets;
            assert!(
                packets >= STREAM / (u64::from(mtu) - HEADERS),
                "{packets} packets: several segments in one"
            );
            // All of it came before the FIN does, which would make the relay look once more.
            let unread = peers.socket_to(&sender).map(|socket| socket.receive_queue);
            assert_eq!(unread, Some(0));
            complete(&mut sender, &mut receiver);
            sessions += 1;
            peers.wait_closed("completed", sessions);
            assert_eq!(peers.booked(way) - before, STREAM);
        }
    }
    match mode {
        "copy" => assert_eq!(peers.moved_by("splice"), 0),
        "splice" => assert_eq!(peers.moved_by("copy"), 0),
        _ => {}
    }
    peers.assert_at_rest();
}
