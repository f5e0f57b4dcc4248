//! S20: a long-distance link at its worst. The kernel repairs it; the relay must neither lose count nor lose patience.

use std::{
    thread,
    time::{Duration, Instant},
};

use libtest_mimic::Trial;

use super::{
    peers::{Peers, Way, in_mode},
    regression::complete,
    world::Hosts,
};
use crate::{claim, harness::wan::Shape};

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        claim("streams_over_a_bad_link_arrive_whole_when_copied", || {
            bad_link("copy");
        }),
        claim("streams_over_a_bad_link_arrive_whole_when_spliced", || {
            bad_link("splice");
        }),
        claim("streams_over_a_bad_link_arrive_whole_when_adaptive", || {
            bad_link("adaptive");
        }),
    ]
}

fn bad_link(mode: &str) {
    const SESSIONS: u64 = 6;
    const STREAM: u64 = 500_000;
    let hosts = Hosts::without_wires("bad-link");
    hosts.lab.veth(hosts.near()[0], hosts.near()[1]);
    let shape = Shape {
        // There and back: 80 ms.
        delay: Duration::from_millis(40),
        loss: 0.02,
        reorder: 0.05,
        duplicate: 0.02,
        mtu: 1500,
        ..Shape::default()
    };
    let link = hosts.lab.wan(hosts.far()[0], hosts.far()[1], shape);
    let peers = Peers::between(hosts, in_mode(mode));
    let (began, before) = (Instant::now(), peers.relay.cpu_time());
    thread::scope(|scope| {
        for n in 0..SESSIONS {
            let (mut client, mut server) = peers.open(2 * n);
            scope.spawn(move || {
                thread::scope(|scope| {
                    scope.spawn(|| client.talk(STREAM, STREAM));
                    server.talk(STREAM, STREAM);
                });
                complete(&mut client, &mut server);
            });
        }
    });
    let (took, used) = (began.elapsed(), peers.relay.cpu_time() - before);
    // What spins uses all of it; what waits for the link, next to nothing.
    assert!(used < took / 4, "{used:?} of {took:?}");
    for carried in [link.carried(0), link.carried(1)] {
        assert!(
            carried.lost > 0 && carried.reordered > 0 && carried.duplicated > 0,
            "a link as bad as that: {carried:?}"
        );
    }
    peers.wait_closed("completed", SESSIONS);
    for way in Way::ALL {
        assert_eq!(peers.booked(way), SESSIONS * STREAM);
    }
    // Each session was measured at its end at least, and none was faster than the link.
    let metrics = peers.relay.metrics();
    let trips = |end| metrics.sum("tollgate_upstream_rtt_seconds_bucket", &[("le", end)]);
    assert!(trips("+Inf") >= SESSIONS && trips("0.075") == 0);
    // Nor can more be delivered in a round trip than there was.
    let rates = "tollgate_upstream_delivery_rate_bytes_per_second_bucket";
    let rates = |end| metrics.sum(rates, &[("le", end)]);
    assert!(rates("+Inf") >= SESSIONS && rates("16777216") == rates("+Inf"));
    peers.assert_at_rest();
}
