//! S4, S5, and what a reader that stops may cost: a relay that can do nothing does nothing, holds little, and loses none of it.

use std::{thread, time::Duration};

use libtest_mimic::Trial;

use super::{
    peers::{Peer, Peers, Way, in_mode, within_five},
    regression::complete,
    world::Hosts,
};
use crate::{
    claim,
    harness::{sockets::State, stream::End::Fin},
};

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        claim("both_directions_full_cost_nothing_when_copied", || {
            both_full("copy");
        }),
        claim("both_directions_full_cost_nothing_when_spliced", || {
            both_full("splice");
        }),
        claim("both_directions_full_cost_nothing_when_adaptive", || {
            both_full("adaptive");
        }),
        claim(
            "fin_behind_a_blocked_sink_waits_in_peace_when_copied",
            || {
                fin_behind_a_blocked_sink("copy");
            },
        ),
        claim(
            "fin_behind_a_blocked_sink_waits_in_peace_when_spliced",
            || {
                fin_behind_a_blocked_sink("splice");
            },
        ),
        claim(
            "stopped_reader_makes_the_relay_hold_one_read_when_copied",
            || {
                held_is_bounded("copy", 256 << 10);
            },
        ),
        claim(
            "stopped_reader_makes_the_relay_hold_one_pipe_when_spliced",
            || {
                held_is_bounded("splice", 1 << 20);
            },
        ),
        claim(
            "stopped_reader_makes_the_relay_hold_one_pipe_when_adaptive",
            || {
                held_is_bounded("adaptive", 1 << 20);
            },
        ),
    ]
}

/// Room of a socket's buffer where little is to fit.
const LITTLE: u64 = 64 << 10;

/// Hosts whose sockets' buffers have so much room, and never more.
#[track_caller]
fn with_buffers(name: &str, room: u64) -> Hosts {
    let hosts = Hosts::new(name);
    for host in [&hosts.node, &hosts.relay, &hosts.origin] {
        for key in ["net.ipv4.tcp_rmem", "net.ipv4.tcp_wmem"] {
            host.sysctl(key, &format!("4096 {room} {room}"));
        }
    }
    hosts
}

/// S4. Seconds in place of the ten of the report: what spins, spins in the first.
fn both_full(mode: &str) {
    const BLOCKED: Duration = Duration::from_secs(2);
    const MORE: u64 = 3_000_000;
    let peers = Peers::between(with_buffers("full", LITTLE), in_mode(mode));
    let (mut client, mut server) = peers.open(20);
    // One's bytes make room for no others: twice each, because the second may fill what the first left.
    for _ in 0..2 {
        client.send_until_stuck();
        server.send_until_stuck();
    }
    let sums = || Way::ALL.map(|way| peers.booked(way));
    let (stuck, before) = (sums(), peers.relay.cpu_time());
    // Time is the test here.
    thread::sleep(BLOCKED);
    let used = peers.relay.cpu_time() - before;
    assert!(used < BLOCKED / 20, "{used:?} of {BLOCKED:?} for nothing");
    assert_eq!(sums(), stuck, "nobody read, and yet something moved");
    let [from_client, from_server] = [client.sent(), server.sent()];
    thread::scope(|scope| {
        scope.spawn(|| client.talk(MORE, from_server + MORE));
        server.talk(MORE, from_client + MORE);
    });
    complete(&mut client, &mut server);
    peers.wait_closed("completed", 1);
    assert_eq!(sums(), [from_client + MORE, from_server + MORE]);
    peers.assert_at_rest();
}

/// S5: the end is known and cannot be passed on, and meanwhile the other side, which does not read, speaks and ends.
fn fin_behind_a_blocked_sink(mode: &str) {
    const ANSWER: u64 = 300_000;
    let peers = Peers::between(with_buffers("fin-blocked", LITTLE), in_mode(mode));
    let mut sessions = 0;
    for way in Way::ALL {
        within_five("bytes held behind a FIN", |_| {
            let before = Way::ALL.map(|way| peers.booked(way));
            let (mut sender, mut receiver) = peers.open_along(way, 30);
            peers.fill(&mut sender, way);
            sender.finish();
            peers.relay.wait_until("the FIN to arrive", || {
                let socket = peers.socket_to(&sender);
                socket.is_none_or(|socket| socket.state == State::CloseWait)
            });
            let held = || peers.booked(way) - before[way as usize] < sender.sent();
            let held_before = held();
            peers.relay.assert_at_rest();
            thread::scope(|scope| {
                scope.spawn(|| {
                    receiver.send(ANSWER);
                    receiver.finish();
                });
                assert_eq!(sender.expect_to_end(), Fin);
            });
            assert_eq!(sender.received(), ANSWER);
            let held_behind = peers.booked(way) - before[way as usize] < sender.sent();
            peers.relay.assert_at_rest();
            assert_eq!(receiver.expect_to_end(), Fin);
            assert_eq!(receiver.received(), sender.sent());
            sessions += 1;
            peers.wait_closed("completed", sessions);
            assert_eq!(peers.booked(way) - before[way as usize], sender.sent());
            held_before && held_behind
        });
    }
    peers.assert_at_rest();
}

/// Bytes that the relay has taken from a sender, and of them those that the other side's kernel has not taken.
#[track_caller]
fn taken_and_held(peers: &Peers, sender: &Peer, way: Way, before: u64) -> (u64, u64) {
    let (local, remote) = sender.addresses();
    let sockets = peers.hosts.of(way).sockets();
    let mut sockets = sockets.into_iter();
    let of_sender = sockets.find(|socket| (socket.local, socket.remote) == (local, remote));
    let unacknowledged = of_sender.expect("it is open").send_queue;
    let unread = peers.socket_to(sender).expect("it is open").receive_queue;
    let taken = sender.sent() - unacknowledged - unread;
    (taken, taken - (peers.booked(way) - before))
}

impl Hosts {
    /// Where this direction's sender is.
    fn of(&self, way: Way) -> &crate::harness::netns::Host {
        match way {
            Way::ToUpstream => &self.node,
            Way::ToClient => &self.origin,
        }
    }
}

/// More waits in front of the relay than it may hold, and the reader takes nothing.
fn held_is_bounded(mode: &str, bound: u64) {
    const BUFFER: u64 = 256 << 10;
    /// Of the relay's receiving sockets.
    const DEEP: u64 = 4 << 20;
    const WAITING: u64 = 1_500_000;
    let hosts = with_buffers("held", BUFFER);
    hosts
        .relay
        .sysctl("net.ipv4.tcp_rmem", &format!("4096 {DEEP} {DEEP}"));
    let peers = Peers::between(hosts, in_mode(mode));
    for (n, way) in Way::ALL.into_iter().enumerate() {
        let before = peers.booked(way);
        let (mut sender, mut receiver) = peers.open_along(way, 40);
        {
            let _frozen = peers.freeze();
            sender.send(WAITING);
            sender.acknowledged();
        }
        sender.send_until_stuck();
        peers
            .relay
            .wait_until("it to wait", || peers.relay.all_threads_wait());
        let (taken, held) = taken_and_held(&peers, &sender, way, before);
        assert!(held <= bound, "{held} bytes held, {bound} are allowed");
        assert!(held > 0, "nothing held: nothing was tested");
        // What it took is in it, in its socket towards the reader, and in the reader's: the kernel doubles what it is asked for, and lets
        // one segment be too many.
        let buffers = 2 * 2 * BUFFER + (64 << 10);
        assert!(taken <= bound + buffers, "{taken} bytes taken");
        peers.relay.assert_at_rest();
        let later = taken_and_held(&peers, &sender, way, before);
        assert_eq!(later, (taken, held), "nobody read, and yet it took more");
        let sent = sender.sent();
        receiver.expect(sent);
        complete(&mut sender, &mut receiver);
        peers.wait_closed("completed", n as u64 + 1);
        assert_eq!(peers.booked(way) - before, sent);
    }
    peers.assert_at_rest();
}
