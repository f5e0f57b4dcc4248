//! S18: urgent data where it could do harm: several bytes of it, behind a reader that has stopped, last of all, before a reset, and beside
//! the other direction. Each is a byte like any other, and ends nothing.

use std::{thread, time::Duration};

use libtest_mimic::Trial;

use super::{
    peers::{Peers, Way, in_mode},
    regression::complete,
    world::{ENDPOINT, World, listener, privatelink_header, shipped_with},
};
use crate::{
    claim,
    harness::{
        origin::Manner,
        stream::End::{Fin, Reset},
    },
};

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        claim("urgent_bytes_harm_nobody_when_copied", || urgent("copy")),
        claim("urgent_bytes_harm_nobody_when_spliced", || urgent("splice")),
        claim("urgent_bytes_harm_nobody_when_adaptive", || {
            urgent("adaptive");
        }),
        claim("header_with_an_urgent_byte_in_it_is_taken", urgent_header),
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

/// A read stops at an urgent byte, with the rest of the header already there and nothing to announce it.
fn urgent_header() {
    let world = World::with(
        "urgent-header",
        Manner::Echo,
        shipped_with("header_timeout = \"60s\""),
    );
    let header = privatelink_header(ENDPOINT);
    let echoed = world.node.call(move || {
        let mut stream = std::net::TcpStream::connect(listener()).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        let socket = socket2::SockRef::from(&stream);
        socket.set_tcp_cork(true).unwrap(); // one segment, so that all of it is there at the first read
        assert_eq!(socket.send_out_of_band(&header[..10]).unwrap(), 10);
        std::io::Write::write_all(&mut stream, &[&header[10..], b"abc"].concat()).unwrap();
        socket2::SockRef::from(&stream).set_tcp_cork(false).unwrap();
        let mut echoed = [0; 3];
        std::io::Read::read_exact(&mut stream, &mut echoed).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let more = std::io::Read::read(&mut stream, &mut [0]);
        (echoed, more.unwrap())
    });
    assert_eq!(echoed, (*b"abc", 0));
    world.wait_closed("completed", 1);
    world.assert_at_rest();
}
