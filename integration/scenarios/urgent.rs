//! S18: urgent data where it could do harm: several bytes of it, behind a reader that has stopped, last of all, before a reset, and beside
//! the other direction. Each is a byte like any other, and ends nothing.

use std::thread;

use libtest_mimic::Trial;

use super::{
    peers::{Peers, Way, in_mode},
    regression::complete,
};
use crate::{
    claim,
    harness::stream::End::{Fin, Reset},
};

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        claim("urgent_bytes_harm_nobody_when_copied", || urgent("copy")),
        claim("urgent_bytes_harm_nobody_when_spliced", || urgent("splice")),
        claim("urgent_bytes_harm_nobody_when_adaptive", || {
            urgent("adaptive");
        }),
    ]
}

fn urgent(mode: &str) {
    const BULK: u64 = 2_000_000;
    let peers = Peers::new("urgent-more", in_mode(mode));
    for (n, way) in Way::ALL.into_iter().enumerate() {
        let before = peers.booked(way);

        // Several in a row, nothing before and nothing behind; nobody has to close for them to arrive.
        let (mut sender, mut receiver) = peers.open_along(way, 10);
        sender.send_urgent(5);
        receiver.expect(5);
        // Behind a reader that has stopped.
        sender.send_until_stuck();
        let stuck = sender.sent();
        thread::scope(|scope| {
            scope.spawn(|| {
                sender.send_urgent(3);
                sender.send(BULK);
                sender.send_urgent(1);
            });
            receiver.expect(stuck - 5 + 3 + BULK + 1);
        });
        // Beside the other direction, which goes on as before.
        thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..20 {
                    sender.send_urgent(1);
                    sender.send(1000);
                }
            });
            scope.spawn(|| receiver.talk(BULK, 20 * 1001));
        });
        sender.expect(BULK);
        // And last, with the FIN right behind it.
        sender.send_urgent(1);
        complete(&mut sender, &mut receiver);
        let whole = sender.sent();
        peers.wait_closed("completed", n as u64 + 1);

        // Before a reset.
        let (mut sender, mut receiver) = peers.open_along(way, 20);
        sender.send(1000);
        sender.send_urgent(1);
        sender.reset_after_delivery();
        assert_eq!(receiver.expect_to_end(), Reset);
        assert_eq!(receiver.received(), 1001);
        peers.wait_closed(way.sender_reset(), 1);
        assert_eq!(peers.booked(way) - before, whole + 1001);
    }
    // From a side whose other direction has ended.
    for way in Way::ALL {
        let (mut sender, mut receiver) = peers.open_along(way, 30);
        receiver.finish();
        assert_eq!(sender.expect_to_end(), Fin);
        sender.send_urgent(2);
        sender.finish();
        assert_eq!(receiver.expect_to_end(), Fin);
        assert_eq!(receiver.received(), 2);
    }
    peers.wait_closed("completed", 4);
    peers.assert_at_rest();
}
