//! Half-closes of every kind, through each mode of relaying.

use std::thread;

use libtest_mimic::Trial;

use super::{
    peers::{Peers, Way, in_mode},
    world::Hosts,
};
use crate::{claim, harness::stream::End::Fin};

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        claim("each_side_may_finish_first_when_copied", || {
            each_side_may_finish_first("copy");
        }),
        claim("each_side_may_finish_first_when_spliced", || {
            each_side_may_finish_first("splice");
        }),
        claim("each_side_may_finish_first_when_adaptive", || {
            each_side_may_finish_first("adaptive");
        }),
    ]
}

/// Nothing, a little, or much before one side's FIN, and the same behind it from the other.
fn each_side_may_finish_first(mode: &str) {
    const SIZES: [u64; 3] = [0, 1000, 5_000_011];
    let hosts = Hosts::new("finish-first");
    hosts
        .relay
        .sysctl("net.ipv4.tcp_rmem", "4096 4194304 6291456");
    let peers = Peers::between(hosts, in_mode(mode));
    let (mut sums, mut sessions) = ([0; 2], 0);
    for way in Way::ALL {
        for before in SIZES {
            for behind in SIZES {
                let (mut first, mut second) = peers.open_along(way, 10);
                thread::scope(|scope| {
                    scope.spawn(|| {
                        first.send(before);
                        first.finish();
                        assert_eq!(first.expect_to_end(), Fin);
                    });
                    assert_eq!(second.expect_to_end(), Fin);
                    second.send(behind);
                    second.finish();
                });
                assert_eq!((first.received(), second.received()), (behind, before));
                sums[way as usize] += before;
                sums[1 - way as usize] += behind;
                sessions += 1;
            }
        }
    }
    peers.wait_closed("completed", sessions);
    assert_eq!(Way::ALL.map(|way| peers.booked(way)), sums);
    match mode {
        "copy" => assert_eq!(peers.moved_by("splice"), 0),
        "splice" => assert_eq!(peers.moved_by("copy"), 0),
        _ => {}
    }
    peers.assert_at_rest();
}
