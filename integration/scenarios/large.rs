//! S17: more than 32 bits can count, in one direction, and more than 31 in the other.

use std::{sync::atomic::AtomicU64, thread};

use libtest_mimic::Trial;

use super::{
    peers::{Peers, Way},
    world::shipped_and,
};
use crate::claim;

pub(crate) fn tests() -> Vec<Trial> {
    vec![claim(
        "books_of_more_than_four_gibibytes_are_exact",
        more_than_four_gibibytes,
    )]
}

fn more_than_four_gibibytes() {
    const TO_UPSTREAM: u64 = (1 << 32) + 12_345;
    const TO_CLIENT: u64 = (1 << 31) + 54_321;
    /// Behind them, and looked at.
    const LAST: usize = 1_000_003;
    let peers = Peers::new("large", shipped_and("[log]\nlevel = \"debug\""));
    let [client, server] = peers.open_plain(Way::ToUpstream);
    thread::scope(|scope| {
        for (n, sender, receiver, seed) in [
            (TO_UPSTREAM, &client, &server, 1),
            (TO_CLIENT, &server, &client, 2),
        ] {
            scope.spawn(move || {
                assert_eq!(sender.send(|sent| n - sent).unwrap(), n);
                sender.finish(seed, LAST).unwrap();
            });
            scope.spawn(move || {
                assert_eq!(receiver.discard(n, &AtomicU64::new(0)).unwrap(), n);
                receiver.expect_to_end(seed, LAST).unwrap();
            });
        }
    });
    peers.wait_closed("completed", 1);
    let sums = [TO_UPSTREAM, TO_CLIENT].map(|n| n + LAST as u64);
    assert_eq!(Way::ALL.map(|way| peers.booked(way)), sums);
    assert_eq!(
        peers.moved_by("copy") + peers.moved_by("splice"),
        sums.iter().sum::<u64>()
    );
    let line = peers.relay.wait_log("session closed");
    for (way, sum) in Way::ALL.into_iter().zip(sums) {
        let said = format!("\"bytes_{}\":{sum}", way.name());
        assert!(line.contains(&said), "{said} in {line}");
    }
    drop([client, server]);
    peers.assert_at_rest();
}
