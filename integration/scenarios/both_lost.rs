//! Both sides of a session are lost, one after the other: nobody is left for whom it could be kept.

use libtest_mimic::Trial;

use super::{
    peers::{Peers, Way},
    world::{Hosts, shipped_and},
};
use crate::{claim, harness::stream::End::Fin};

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        claim(
            "second_reset_ends_a_session_that_waits_for_delivery",
            || {
                second_reset(false);
            },
        ),
        claim(
            "second_reset_ends_a_half_closed_session_that_waits_for_delivery",
            || {
                second_reset(true);
            },
        ),
    ]
}

/// The sender is gone and what it sent has left the relay, but not its kernel: the reset waits for the receiver, until that is gone too.
fn second_reset(half_closed: bool) {
    const N: u64 = 20_000;
    let hosts = Hosts::new("both-lost");
    for host in [&hosts.node, &hosts.origin] {
        host.sysctl("net.ipv4.tcp_rmem", "4096 4096 4096");
    }
    let lasting = "[session]\nhalf_close_timeout = \"10m\"\nidle_timeout = \"10m\"";
    let peers = Peers::between(hosts, shipped_and(lasting));
    for way in Way::ALL {
        let (mut sender, receiver) = peers.open_along(way, 10);
        if half_closed {
            // Whoever has read this FIN reads there no more, and must learn of the reset in another way.
            receiver.finish();
            assert_eq!(sender.expect_to_end(), Fin);
        }
        peers.send_and_reset(sender, way, N);
        receiver.reset();
        peers.wait_closed(way.sender_reset(), 1);
    }
    peers.assert_at_rest();
}
