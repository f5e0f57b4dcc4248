//! Beside bulk that never pauses, whoever asks for little is answered: on one worker, with as much bulk as there is room for.

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
};

use libtest_mimic::Trial;

use super::{
    peers::{Peers, Way, in_mode, within_five},
    regression::complete,
    world::{Hosts, listener},
};
use crate::claim;

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        claim("small_requests_are_answered_beside_copied_bulk", || {
            beside_bulk("copy");
        }),
        claim("small_requests_are_answered_beside_spliced_bulk", || {
            beside_bulk("adaptive");
        }),
        claim("small_request_does_not_wait_until_bulk_is_copied", || {
            behind_bulk("copy");
        }),
        claim("small_request_does_not_wait_until_bulk_is_spliced", || {
            behind_bulk("splice");
        }),
    ]
}

/// Progress is what is claimed, of both and by each other's measure, not speed: each asks so often while each flow moves so much.
fn beside_bulk(mode: &str) {
    const CONNECTIONS: u64 = 32;
    const EXCHANGES: u64 = 20;
    const BULK: u64 = 20_000_000;
    /// Whoever has been answered so often while bulk did not move, has starved it.
    const AT_MOST: u64 = 100 * EXCHANGES;
    let hosts = Hosts::new("beside-bulk");
    hosts
        .relay
        .sysctl("net.ipv4.tcp_rmem", "4096 4194304 6291456");
    let peers = Peers::between(
        hosts,
        in_mode(mode).replace("[relay]", "workers = 1\n[relay]"),
    );
    let asking = (0..CONNECTIONS).map(|n| peers.open(100 + 2 * n));
    let asking: Vec<_> = asking.collect();
    let flows = Way::ALL.map(|way| peers.open_plain(way));
    let moved = [const { AtomicU64::new(0) }; 2];
    let over = AtomicBool::new(false);
    let at_least = |more: [u64; 2]| {
        let now = moved.each_ref().map(|moved| moved.load(Ordering::Relaxed));
        now.iter().zip(more).all(|(now, more)| *now >= more)
    };
    thread::scope(|scope| {
        for ([sender, receiver], moved) in flows.iter().zip(&moved) {
            scope.spawn(|| {
                let on = |_| u64::from(!over.load(Ordering::Relaxed)) << 20;
                sender.send(on).unwrap();
                sender.finish(1, 1000).unwrap();
            });
            scope.spawn(move || receiver.discard(u64::MAX, moved).unwrap());
        }
        // Both flow before anybody asks.
        peers
            .relay
            .wait_until("bulk to flow", || at_least([BULK, BULK]));
        let goal = moved
            .each_ref()
            .map(|moved| moved.load(Ordering::Relaxed) + BULK);
        let asking: Vec<_> = asking
            .into_iter()
            .map(|(mut client, mut server)| {
                scope.spawn(move || {
                    let mut answered = 0;
                    while answered < EXCHANGES || !at_least(goal) {
                        client.send(1000);
                        server.expect(1000);
                        server.send(1000);
                        client.expect(1000);
                        answered += 1;
                        assert!(answered < AT_MOST, "bulk does not move");
                    }
                    (client, server)
                })
            })
            .collect();
        let asking: Vec<_> = asking
            .into_iter()
            .map(thread::ScopedJoinHandle::join)
            .collect();
        over.store(true, Ordering::Relaxed);
        for ended in asking {
            let (mut client, mut server) = ended.unwrap();
            complete(&mut client, &mut server);
        }
    });
    drop(flows);
    peers.wait_closed("completed", CONNECTIONS + 2);
    peers.assert_at_rest();
}

/// Much waits in front of the relay, with room for all of it behind, and last comes a request. It is passed on while most still waits: each
/// flow has its turn, and no more. How much is left is asked of the kernel, with the relay stopped as soon as the request has come: a machine
/// that stops it late may find less, though not each time.
fn behind_bulk(mode: &str) {
    const FLOWS: usize = 4;
    const WAITING: u64 = 16 << 20;
    let hosts = Hosts::new("behind-bulk");
    for host in [&hosts.node, &hosts.relay, &hosts.origin] {
        for key in ["net.ipv4.tcp_rmem", "net.ipv4.tcp_wmem"] {
            host.sysctl(key, "4096 67108864 67108864");
        }
    }
    let start = in_mode(mode).replace("[relay]", "workers = 1\n[relay]");
    let peers = Peers::between(hosts, start);
    let mut flows = 0;
    within_five("a request before most of the bulk", |_| {
        let bulk: Vec<_> = (0..FLOWS)
            .map(|_| peers.open_plain(Way::ToUpstream))
            .collect();
        let (mut client, mut server) = peers.open(10);
        let unread = || -> u64 {
            let sockets = peers.hosts.relay.sockets().into_iter();
            let bulk = sockets.filter(|socket| socket.local == listener());
            bulk.map(|socket| socket.receive_queue).sum()
        };
        let frozen = peers.freeze();
        for [sender, _] in &bulk {
            assert_eq!(sender.send(|sent| WAITING - sent).unwrap(), WAITING);
        }
        let all = WAITING * FLOWS as u64;
        peers
            .relay
            .wait_until("all to wait in front of the relay", || unread() == all);
        client.send(1000);
        client.acknowledged();
        drop(frozen);
        server.expect(1000);
        let left = {
            let _frozen = peers.freeze();
            unread()
        };
        for [sender, receiver] in bulk {
            sender.finish(1, 1000).unwrap();
            let counted = AtomicU64::new(0);
            assert_eq!(receiver.discard(WAITING, &counted).unwrap(), WAITING);
            receiver.expect_to_end(1, 1000).unwrap();
        }
        complete(&mut client, &mut server);
        flows += FLOWS as u64 + 1;
        peers.wait_closed("completed", flows);
        left > all / 2
    });
    peers.assert_at_rest();
}
