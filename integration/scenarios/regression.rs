//! Faults that attacks have found, each as the claim that it broke: what a peer sends last, or beside the stream, and how a relay that
//! gives up, or is given up, says so.

use std::{
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use libtest_mimic::Trial;
use socket2::SockRef;
use tokio::{io::Interest, net::TcpListener};

use super::{
    peers::{Peer, Peers, Way, in_mode},
    world::{self, ENDPOINT, Hosts, ORIGIN, World, connected, listener, shipped_and, shipped_with},
};
use crate::{
    claim,
    harness::{
        agent::Agent,
        nlb::header,
        origin::Manner,
        pattern::Pattern,
        relay::{Baseline, Signal},
        sockets::State,
        stream::{
            End::{Fin, Reset},
            within,
        },
    },
};

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        claim("urgent_byte_arrives_in_its_place_when_copied", || {
            urgent("copy");
        }),
        claim("urgent_byte_arrives_in_its_place_when_spliced", || {
            urgent("splice");
        }),
        claim("urgent_byte_arrives_in_its_place_when_adaptive", || {
            urgent("adaptive");
        }),
        claim("hundreds_of_full_reads_in_a_row_are_copied", || {
            many_full_reads("copy")
        }),
        claim("hundreds_of_full_reads_in_a_row_are_spliced", || {
            many_full_reads("splice")
        }),
        claim(
            "hundreds_of_short_reads_in_a_row_are_spliced",
            many_short_splices,
        ),
        claim("reset_right_behind_a_fin_is_passed_on", reset_behind_a_fin),
        claim("reset_and_fin_in_one_event_are_passed_on", reset_with_a_fin),
        claim("reset_behind_a_fin_follows_held_data_when_copied", || {
            reset_behind_a_fin_and_held_data("copy")
        }),
        claim("reset_behind_a_fin_follows_held_data_when_spliced", || {
            reset_behind_a_fin_and_held_data("splice")
        }),
        claim(
            "transfer_is_reset_at_max_age_and_quiet_session_gets_fin",
            cut_at_max_age,
        ),
        claim(
            "transfer_is_reset_at_the_drains_end_and_quiet_session_gets_fin",
            cut_at_the_drains_end,
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

/// Sends one byte with `MSG_OOB`.
async fn send_urgent(agent: &Agent, byte: u8) -> std::io::Result<()> {
    let stream = agent.stream();
    loop {
        stream.writable().await?;
        let sent = stream.try_io(Interest::WRITABLE, || {
            SockRef::from(stream).send_out_of_band(&[byte])
        });
        match sent {
            Ok(_) => return Ok(()),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}

/// An urgent byte is a byte of the stream, wherever it stands: behind nothing, among a few, in the midst of bulk, last.
fn urgent(mode: &str) {
    const SEED: u64 = 90;
    const BULK: u64 = 8_000_000;
    let hosts = Hosts::new("urgent");
    let accepting = Arc::new(hosts.origin.run(TcpListener::bind(ORIGIN)).unwrap());
    let relay = in_mode(mode).on(&hosts.relay);
    let baseline = Baseline::of(&relay);
    for way in Way::ALL {
        let mut sum = 0;
        for (before, behind) in [(0, 1000), (10, 1000), (BULK, BULK), (BULK, 0)] {
            let client = hosts.node.run(connected(ENDPOINT)).unwrap();
            let accepting = Arc::clone(&accepting);
            let server = hosts.origin.run(async move {
                let accept = within(Duration::from_secs(20), accepting.accept());
                Agent::of(accept.await?.0)
            });
            let ends = [(&hosts.node, client), (&hosts.origin, server.unwrap())];
            let [(from, sender), (to, mut receiver)] = match (way, ends) {
                (Way::ToUpstream, ends) => ends,
                (Way::ToClient, [client, server]) => [server, client],
            };
            let sent = from.spawn(async move {
                let mut sender = sender.seed(SEED);
                let byte = |at, n| Pattern::new(SEED).bytes(at, n);
                sender.send(before).await?;
                send_urgent(&sender, byte(before, 1)[0]).await?;
                sender.write(&byte(before + 1, behind as usize)).await?;
                sender.finish()?;
                Ok::<_, std::io::Error>(sender)
            });
            let (end, received) = to.run(async move {
                let end = receiver.expect_to_end(SEED).await;
                (end.unwrap(), receiver.received())
            });
            assert_eq!((end, received), (Fin, before + 1 + behind));
            let mut sender = from.run(sent).unwrap().unwrap();
            let end = from.run(async move { sender.expect_to_end(0).await.unwrap() });
            assert_eq!(end, Fin);
            sum += received;
        }
        relay.wait_metric("tollgate_connections_active", &[], 0);
        let labels = [("endpoint", ENDPOINT), ("direction", way.name())];
        assert_eq!(relay.metric("tollgate_bytes_total", &labels), sum);
    }
    relay.wait_metric(
        "tollgate_connections_closed_total",
        &[("reason", "completed")],
        8,
    );
    world::assert_at_rest(&relay, baseline);
}

/// More full reads without a short one than a byte can count: 256 of 256 KiB are 67 MB.
fn many_full_reads(mode: &str) {
    const STREAM: u64 = 100_000_000;
    let hosts = Hosts::new("full-reads");
    hosts
        .relay
        .sysctl("net.ipv4.tcp_rmem", "4096 4194304 6291456");
    let peers = Peers::between(hosts, in_mode(mode));
    for way in Way::ALL {
        let (mut sender, mut receiver) = peers.open_along(way, 100);
        // Stuck first: from here on the relay finds more than it can take.
        let stuck = sender.send_until_stuck();
        thread::scope(|scope| {
            scope.spawn(|| sender.send(STREAM));
            receiver.expect(stuck + STREAM);
        });
        complete(&mut sender, &mut receiver);
        peers
            .relay
            .wait_metric("tollgate_connections_active", &[], 0);
        assert_eq!(peers.booked(way), stuck + STREAM);
    }
    peers.wait_closed("completed", 2);
    peers.assert_at_rest();
}

/// More short splices in a row than a byte can count.
fn many_short_splices() {
    let peers = Peers::new("short-splices", in_mode("splice"));
    for way in Way::ALL {
        let (mut sender, mut receiver) = peers.open_along(way, 102);
        for size in 1..=300 {
            sender.send(size);
            receiver.expect(size);
        }
        complete(&mut sender, &mut receiver);
    }
    peers.wait_closed("completed", 2);
    assert_eq!(peers.moved_by("copy"), 0);
    peers.assert_at_rest();
}

/// Both sides finish, and nothing more came.
#[track_caller]
fn complete(sender: &mut Peer, receiver: &mut Peer) {
    sender.finish();
    assert_eq!(receiver.expect_to_end(), Fin);
    assert_eq!(receiver.received(), sender.sent());
    receiver.finish();
    assert_eq!(sender.expect_to_end(), Fin);
}

/// A half-closed session may last: a reset that is not passed on at once is not passed on at all.
const LASTING: &str = "[session]\nhalf_close_timeout = \"10m\"\nidle_timeout = \"10m\"";

/// All arrives, and then a reset; whether a FIN is seen before it is a matter of who looks when.
#[track_caller]
fn expect_all_and_reset(receiver: &mut Peer, sent: u64) {
    let end = receiver.expect_to_end();
    assert_eq!(receiver.received(), sent);
    if end == Fin {
        receiver.wait_broken();
    }
}

/// The RST comes when the FIN was perhaps read, perhaps not.
fn reset_behind_a_fin() {
    const ROUNDS: u64 = 20;
    let peers = Peers::new("fin-reset", shipped_and(LASTING));
    for way in Way::ALL {
        for round in 1..=ROUNDS {
            let (mut sender, mut receiver) = peers.open_along(way, 110);
            sender.send(1000);
            sender.acknowledged();
            sender.finish();
            sender.reset();
            expect_all_and_reset(&mut receiver, 1000);
            peers.wait_closed(way.sender_reset(), round);
        }
        assert_eq!(peers.booked(way), 1000 * ROUNDS);
    }
    peers.assert_at_rest();
}

/// The relay was elsewhere when both came.
fn reset_with_a_fin() {
    let peers = Peers::new("fin-and-reset", shipped_and(LASTING));
    for way in Way::ALL {
        let (mut sender, mut receiver) = peers.open_along(way, 112);
        {
            let _frozen = peers.freeze();
            sender.send(1000);
            sender.acknowledged();
            sender.finish();
            sender.reset();
        }
        expect_all_and_reset(&mut receiver, 1000);
        peers.wait_closed(way.sender_reset(), 1);
        assert_eq!(peers.booked(way), 1000);
    }
    peers.assert_at_rest();
}

/// Megabytes are under way to a side that takes nothing, when the FIN comes and then the RST.
fn reset_behind_a_fin_and_held_data(mode: &str) {
    let hosts = Hosts::new("held-fin-reset");
    // So that the relay's kernel has room for all that is sent, and the FIN, while the relay itself reads no more.
    hosts
        .relay
        .sysctl("net.ipv4.tcp_rmem", "4096 16777216 16777216");
    hosts.relay.sysctl("net.ipv4.tcp_wmem", "4096 65536 65536");
    for host in [&hosts.node, &hosts.origin] {
        host.sysctl("net.ipv4.tcp_rmem", "4096 65536 65536");
    }
    let start = shipped_and(&format!("{LASTING}\n[relay]\nmode = \"{mode}\""));
    let peers = Peers::between(hosts, start);
    for way in Way::ALL {
        let (mut sender, mut receiver) = peers.open_along(way, 114);
        sender.send(4_000_000);
        let sent = sender.sent();
        sender.finish();
        sender.acknowledged();
        peers.relay.wait_until("the FIN to arrive", || {
            let socket = peers.socket_to(&sender);
            socket.is_some_and(|socket| socket.state == State::CloseWait)
                && peers.relay.all_threads_wait()
        });
        let (local, remote) = sender.addresses();
        sender.reset();
        peers.relay.wait_until("the RST to be seen", || {
            let mut sockets = peers.hosts.relay.sockets().into_iter();
            !sockets.any(|socket| (socket.remote, socket.local) == (local, remote))
                && peers.relay.all_threads_wait()
        });
        expect_all_and_reset(&mut receiver, sent);
        peers.wait_closed(way.sender_reset(), 1);
        assert_eq!(peers.booked(way), sent);
    }
    peers.assert_at_rest();
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

/// One session in the middle of a transfer in each direction, and two on which nothing moves any more, are ended by `end`.
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

fn cut_at_the_drains_end() {
    let drain = "[drain]\naccept_for = \"10m\"\ndeadline = \"10m\"\nclose = \"fin\"";
    let peers = Peers::between(narrow("cut-drain"), shipped_and(drain));
    cut(&peers, "drained", || {
        peers.relay.signal(Signal::TERM);
        peers
            .relay
            .wait_until("it leaves", || peers.relay.get("/readyz").0 == 503);
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
    // The first have gone by themselves, perhaps, before the last come; no more than the places are taken at any time.
    let checks: Vec<Agent> = (1..=4 * PLACES)
        .map(|nth| {
            let check = silent_check(&world, nth);
            let taken = world.relay.metric("tollgate_connections_pending", &[]);
            assert!((1..=PLACES).contains(&taken), "{taken} are pending");
            let fds = world.relay.fd_count() - before;
            // One more for the question after the gauge, which may not be closed yet.
            assert!(fds as u64 <= PLACES + 1, "{fds} descriptors more");
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
        at_the_signal < by_itself,
        "{at_the_signal:?}, {by_itself:?} by itself"
    );
}
