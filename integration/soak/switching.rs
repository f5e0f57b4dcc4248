//! S12: one session that is now a conversation and now bulk, in either direction, for as long as one likes.

use std::thread;

use super::{
    peers::{Peers, Way, in_mode},
    world::Hosts,
};
use crate::harness::{pattern::Random, stream::End::Fin};

/// What came of it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Outcome {
    /// Conversations, each with bulk behind it.
    pub(crate) rounds: u64,
    /// In how many of them a part of the conversation was copied.
    pub(crate) copied: u64,
    /// In how many of them a part of the bulk was spliced.
    pub(crate) spliced: u64,
    /// Payload, both directions.
    pub(crate) bytes: u64,
}

/// More messages than short splices make a direction one that is copied.
const MESSAGES: u64 = 16;

/// What waits in front of the relay when bulk begins: more than the full reads that make a direction bulk.
const WAITING: u64 = 1_200_000;

/// Moves at least `total` bytes in rounds of up to `longest` bytes of bulk.
#[track_caller]
pub(crate) fn run(mode: &str, seed: u64, total: u64, longest: u64) -> Outcome {
    let hosts = Hosts::new("switching");
    hosts
        .relay
        .sysctl("net.ipv4.tcp_rmem", "4096 4194304 6291456");
    let peers = Peers::between(hosts, in_mode(mode));
    let mut random = Random::new(seed);
    let (mut client, mut server) = peers.open(seed % 1000);
    let mut outcome = Outcome::default();
    // Counted when the call returns, which may be after the bytes have arrived.
    let moved = |bytes| {
        let mut moved = (0, 0);
        peers.relay.wait_until("all to be counted", || {
            moved = (peers.moved_by("copy"), peers.moved_by("splice"));
            moved.0 + moved.1 == bytes
        });
        moved
    };
    while outcome.bytes < total {
        let way = Way::ALL[random.below(2) as usize];
        let (sender, receiver) = match way {
            Way::ToUpstream => (&mut client, &mut server),
            Way::ToClient => (&mut server, &mut client),
        };
        let before = moved(outcome.bytes);
        for _ in 0..MESSAGES {
            let message = 1 + random.below(8000);
            sender.send(message);
            receiver.expect(message);
            outcome.bytes += message;
        }
        let between = moved(outcome.bytes);
        {
            let _frozen = peers.freeze();
            sender.send(WAITING);
            sender.acknowledged();
        }
        let more = random.below(longest);
        thread::scope(|scope| {
            scope.spawn(|| sender.send(more));
            receiver.expect(WAITING + more);
        });
        outcome.bytes += WAITING + more;
        let after = moved(outcome.bytes);
        outcome.rounds += 1;
        outcome.copied += u64::from(between.0 > before.0);
        outcome.spliced += u64::from(after.1 > between.1);
    }
    client.finish();
    assert_eq!(server.expect_to_end(), Fin);
    server.finish();
    assert_eq!(client.expect_to_end(), Fin);
    assert_eq!(server.received(), client.sent());
    assert_eq!(client.received(), server.sent());
    peers.wait_closed("completed", 1);
    assert_eq!(peers.booked(Way::ToUpstream), client.sent());
    assert_eq!(peers.booked(Way::ToClient), server.sent());
    drop((client, server));
    peers.assert_at_rest();
    outcome
}

/// As [`run`], where each mode must have done what it is called, in each round.
#[track_caller]
pub(crate) fn assert_switched(mode: &str, seed: u64, total: u64, longest: u64) -> Outcome {
    let outcome = run(mode, seed, total, longest);
    let expected = match mode {
        "copy" => (outcome.rounds, 0),
        "splice" => (0, outcome.rounds),
        _ => (outcome.rounds, outcome.rounds),
    };
    assert_eq!(
        (outcome.copied, outcome.spliced),
        expected,
        "TOLLGATE_SEED={seed}, {mode}: {outcome:?}"
    );
    outcome
}
