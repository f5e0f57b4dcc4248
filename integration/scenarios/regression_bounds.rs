//! Faults that attacks have found, each as the claim that it broke: whom the bounds of the relay meet, and what a stream that it cuts, or is
//! made to cut, looks like.

use std::{
    thread,
    time::{Duration, Instant},
};

use libtest_mimic::Trial;

use super::{
    peers::{Peer, Peers, Way, in_mode},
    regression::complete,
    world::{ENDPOINT, Hosts, World, connected, listener, shipped_and, shipped_with},
};
use crate::{
    claim,
    harness::{
        agent::Agent,
        nlb::header,
        origin::Manner,
        relay::Signal,
        stream::End::{Fin, Reset},
    },
};

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        claim(
            "stuck_transfer_is_reset_at_max_age_and_quiet_session_gets_fin",
            cut_at_max_age,
        ),
        claim(
            "stuck_transfer_is_reset_at_the_drains_end_and_quiet_session_gets_fin",
            cut_at_the_drains_end,
        ),
        claim(
            "flowing_transfer_is_reset_at_max_age",
            flowing_transfer_cut_at_max_age,
        ),
        claim(
            "slow_reader_gets_what_was_sent_before_a_reset",
            slow_reader_after_a_reset,
        ),
        claim(
            "slow_reader_of_the_kernels_buffer_is_not_idle",
            slow_reader_is_not_idle,
        ),
        claim("killed_relay_leaves_resets", killed_relay_leaves_resets),
        claim(
            "silent_health_checks_hold_places_among_the_pending",
            silent_health_checks_are_pending,
        ),
        claim(
            "silent_health_checks_do_not_delay_the_second_signal",
            silent_health_checks_at_the_second_signal,
        ),
    ]
}

/// Hosts between which little is under way, so that a sender is stuck at once.
#[track_caller]
fn narrow(name: &str) -> Hosts {
    let hosts = Hosts::new(name);
    for host in [&hosts.node, &hosts.relay, &hosts.origin] {
        for key in ["net.ipv4.tcp_rmem", "net.ipv4.tcp_wmem"] {
            host.sysctl(key, "4096 65536 65536");
        }
    }
    hosts
}

/// One session in the middle of a transfer in each direction, with bytes before and in the relay, and two on which nothing moves any more,
/// are ended by `end`.
#[track_caller]
fn cut(peers: &Peers, reason: &str, end: impl FnOnce()) {
    let transfers = Way::ALL.map(|way| {
        let (mut sender, receiver) = peers.open_along(way, 120);
        sender.send_until_stuck();
        (sender, receiver)
    });
    let quiet = Way::ALL.map(|way| {
        let (mut sender, mut receiver) = peers.open_along(way, 122);
        sender.send(1000);
        receiver.expect(1000);
        (sender, receiver)
    });
    end();
    for (mut sender, mut receiver) in transfers {
        assert_eq!(sender.expect_to_end(), Reset);
        assert_eq!(receiver.expect_to_end(), Reset, "a stream that was cut");
        assert!(receiver.received() < sender.sent());
    }
    for (mut sender, mut receiver) in quiet {
        assert_eq!(sender.expect_to_end(), Fin);
        assert_eq!(receiver.expect_to_end(), Fin);
    }
    if peers.relay.is_running() {
        peers.wait_closed(reason, 4);
        peers.assert_at_rest();
    }
}

/// Time is the test here: the transfers must be stuck before the bound comes.
fn cut_at_max_age() {
    let start = shipped_and("[session]\nmax_age = \"4s\"\n[drain]\nclose = \"fin\"");
    cut(&Peers::between(narrow("cut-age"), start), "max_age", || {});
}

/// A sender with pauses: at any one moment there may be nothing in the relay, and yet the stream is not complete. The pauses are what this is
/// about.
fn flowing_transfer_cut_at_max_age() {
    let start = shipped_and("[session]\nmax_age = \"1s\"\n[drain]\nclose = \"fin\"");
    let world = World::with("cut-flow", Manner::CheckedSink, start);
    world.node.run(async {
        let mut agent = connected(ENDPOINT).await.unwrap();
        while agent.send(16_000).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    });
    let books = world.origin.wait_over(1);
    assert_eq!(
        books.connections[0].end,
        Some(Reset),
        "a stream that was cut"
    );
    world.wait_closed("max_age", 1);
    world.assert_at_rest();
}

/// Time is the test here: what is quiet must have been so for a while when the deadline comes.
fn cut_at_the_drains_end() {
    let drain = "[drain]\naccept_for = \"0s\"\ndeadline = \"3s\"\nclose = \"fin\"";
    let peers = Peers::between(narrow("cut-drain"), shipped_and(drain));
    cut(&peers, "drained", || {
        peers.relay.signal(Signal::TERM);
        assert_eq!(peers.relay.wait_exit(), 0);
    });
}

/// Hosts whose relay can hand a megabyte to its kernel at once, while the peers' kernels take little.
#[track_caller]
fn deep(name: &str) -> Hosts {
    let hosts = Hosts::new(name);
    for host in [&hosts.node, &hosts.origin] {
        host.sysctl("net.ipv4.tcp_rmem", "4096 65536 65536");
    }
    hosts
        .relay
        .sysctl("net.ipv4.tcp_wmem", "4096 8388608 8388608");
    hosts
}

/// Reads `n` bytes at 200 KB/s: pauses are what this is about.
#[track_caller]
fn read_slowly(receiver: &mut Peer, n: u64) {
    for _ in 0..n / 10_000 {
        thread::sleep(Duration::from_millis(50));
        receiver.expect(10_000);
    }
}

/// Sends `n` bytes and waits until all of them have left the relay, but not its kernel.
#[track_caller]
fn send_through(peers: &Peers, way: Way, n: u64) -> (Peer, Peer) {
    let (mut sender, receiver) = peers.open_along(way, 130);
    sender.send(n);
    peers
        .relay
        .wait_until("all to be passed on", || peers.booked(way) == n);
    (sender, receiver)
}

/// S7, thrice as long as `half_close_timeout`.
fn slow_reader_after_a_reset() {
    const N: u64 = 600_000;
    let start = shipped_and("[session]\nhalf_close_timeout = \"1s\"");
    let peers = Peers::between(deep("slow-reset"), start);
    thread::scope(|scope| {
        for way in Way::ALL {
            let (sender, mut receiver) = send_through(&peers, way, N);
            sender.reset_after_delivery();
            scope.spawn(move || {
                read_slowly(&mut receiver, N);
                assert_eq!(receiver.expect_to_end(), Reset);
                assert_eq!(receiver.received(), N);
            });
        }
    });
    for way in Way::ALL {
        peers.wait_closed(way.sender_reset(), 1);
    }
    peers.assert_at_rest();
}

/// Nothing moves through the relay for twice its `idle_timeout`, and all the while its kernel delivers.
fn slow_reader_is_not_idle() {
    const N: u64 = 800_000;
    let start = shipped_and("[session]\nidle_timeout = \"2s\"");
    let peers = Peers::between(deep("slow-idle"), start);
    thread::scope(|scope| {
        for way in Way::ALL {
            let (mut sender, mut receiver) = send_through(&peers, way, N);
            scope.spawn(move || {
                read_slowly(&mut receiver, N);
                sender.send(1000);
                receiver.expect(1000);
                complete(&mut sender, &mut receiver);
            });
        }
    });
    peers.wait_closed("completed", 2);
    peers.assert_at_rest();
}

/// Nobody is left to say that a stream was cut, except the kernel.
fn killed_relay_leaves_resets() {
    for mode in ["copy", "splice"] {
        let peers = Peers::between(narrow("killed"), in_mode(mode));
        let mut sessions = Vec::new();
        for way in Way::ALL {
            let (mut sender, mut receiver) = peers.open_along(way, 140);
            sender.send_until_stuck();
            receiver.expect(1000);
            sessions.push((sender, receiver));
            // All that was sent has arrived, and nobody but the sender knows that it was not all.
            let (mut sender, mut receiver) = peers.open_along(way, 142);
            sender.send(1000);
            receiver.expect(1000);
            sessions.push((sender, receiver));
        }
        peers.relay.signal(Signal::KILL);
        assert_eq!(peers.relay.wait_exit(), 128 + 9);
        for (mut sender, mut receiver) in sessions {
            assert_eq!(receiver.expect_to_end(), Reset, "the receiver, {mode}");
            assert_eq!(sender.expect_to_end(), Reset, "the sender, {mode}");
        }
    }
}

/// A connection that says it is a health check, and then nothing.
#[track_caller]
fn silent_check(world: &World, nth: u64) -> Agent {
    let agent = world.node.run(async {
        let mut agent = Agent::connect(listener()).await?;
        agent.preface(&[&header::health_check()]).await?;
        Ok::<_, std::io::Error>(agent)
    });
    world
        .relay
        .wait_metric("tollgate_health_checks_total", &[], nth);
    agent.unwrap()
}

fn silent_health_checks_are_pending() {
    const PLACES: u64 = 10;
    let start = shipped_with("max_pending = 10").replace("[health]", "workers = 1\n[health]");
    let world = World::with("local-pending", Manner::Echo, start);
    let before = world.relay.fd_count();
    // One after the other: whoever was not heard yet makes way before they do.
    let checks: Vec<Agent> = (1..=4 * PLACES)
        .map(|nth| {
            let check = silent_check(&world, nth);
            let taken = world.relay.metric("tollgate_connections_pending", &[]);
            assert!((1..=PLACES).contains(&taken), "{taken} are pending");
            let fds = world.relay.fd_count().saturating_sub(before);
            // The question after the gauge and whoever made way last may not be closed yet.
            assert!(fds as u64 <= PLACES + 2, "{fds} descriptors more");
            check
        })
        .collect();
    world.node.run(async move {
        for mut check in checks {
            assert_eq!(check.read_to_end().await.unwrap(), (Vec::new(), Fin));
        }
    });
    world
        .relay
        .wait_metric("tollgate_connections_pending", &[], 0);
    world.assert_at_rest();
}

/// Time is the test here, measured by what it is compared with: how long the relay waits for a check's question.
fn silent_health_checks_at_the_second_signal() {
    let drain = "[drain]\naccept_for = \"10m\"\ndeadline = \"10m\"";
    let world = World::with("local-signal", Manner::Echo, shipped_and(drain));
    let ends_after = |nth, then: &dyn Fn()| {
        let mut check = silent_check(&world, nth);
        let began = Instant::now();
        then();
        let end = world.node.run(async move { check.read_to_end().await });
        assert_eq!(end.unwrap(), (Vec::new(), Fin));
        began.elapsed()
    };
    let by_itself = ends_after(1, &|| {});
    world.assert_at_rest();
    let at_the_signal = ends_after(2, &|| {
        world.relay.signal(Signal::TERM);
        world
            .relay
            .wait_until("it leaves", || world.relay.get("/readyz").0 == 503);
        world.relay.signal(Signal::TERM);
        assert_eq!(world.relay.wait_exit(), 0);
    });
    assert!(
        at_the_signal < by_itself / 2,
        "{at_the_signal:?}, {by_itself:?} by itself"
    );
}
