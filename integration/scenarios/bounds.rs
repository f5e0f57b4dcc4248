//! The bounds of a session's time, and what both legs' sockets are told.

use std::{
    thread,
    time::{Duration, Instant},
};

use libtest_mimic::Trial;

use super::{
    peers::{Peers, Way, in_mode},
    world::{Hosts, shipped, shipped_and},
};
use crate::{
    claim,
    harness::{
        netns::{Host, output_of},
        stream::End::{Fin, Reset},
        wan::Shape,
    },
};

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        claim("quiet_session_is_reset_at_idle_timeout", idle_timeout),
        claim("old_session_is_closed_by_fin_at_max_age", || {
            max_age("fin");
        }),
        claim("old_session_is_reset_where_drain_close_says_so", || {
            max_age("rst");
        }),
        claim("keepalive_is_on_on_both_legs", keepalive_on_both_legs),
        claim("vanished_client_is_noticed_by_keepalive", || {
            vanished(Way::ToUpstream, "off");
        }),
        claim("vanished_upstream_is_noticed_by_keepalive", || {
            vanished(Way::ToClient, "off");
        }),
        claim("vanished_client_is_noticed_at_user_timeout", || {
            vanished(Way::ToUpstream, "2s");
        }),
        claim("each_small_write_is_sent_at_once_when_copied", || {
            small_writes("copy");
        }),
        claim("each_small_write_is_sent_at_once_when_spliced", || {
            small_writes("splice");
        }),
    ]
}

fn idle_timeout() {
    const IDLE: Duration = Duration::from_secs(1);
    let peers = Peers::new("idle", shipped_and("[session]\nidle_timeout = \"1s\""));
    thread::scope(|scope| {
        for way in Way::ALL {
            let (mut sender, mut receiver) = peers.open_along(way, 10);
            scope.spawn(move || {
                // Half the bound later a byte moves, in one direction: the session has it whole again.
                thread::sleep(IDLE / 2);
                let began = Instant::now();
                sender.send(1);
                receiver.expect(1);
                assert_eq!(receiver.expect_to_end(), Reset);
                assert_eq!(sender.expect_to_end(), Reset);
                assert!(began.elapsed() >= IDLE, "not before its time");
            });
        }
    });
    peers.wait_closed("idle_timeout", 2);
    peers.assert_at_rest();
}

fn max_age(close: &str) {
    // Long enough that a session on which nothing moves any more is seen to be quiet.
    const AGE: Duration = Duration::from_secs(3);
    let tables = format!("[session]\nmax_age = \"3s\"\n[drain]\nclose = \"{close}\"");
    let peers = Peers::new("age", shipped_and(&tables));
    let began = Instant::now();
    let (mut client, mut server) = peers.open(20);
    client.send(1000);
    server.expect(1000);
    server.send(1000);
    client.expect(1000);
    let end = if close == "fin" { Fin } else { Reset };
    assert_eq!(client.expect_to_end(), end);
    assert_eq!(server.expect_to_end(), end);
    assert!(began.elapsed() >= AGE, "not before its time");
    peers.wait_closed("max_age", 1);
    for way in Way::ALL {
        assert_eq!(peers.booked(way), 1000);
    }
    peers.assert_at_rest();
}

/// One line per open connection of the relay with the balancer or the origin, as ss(8) sees it from inside.
fn connections(host: &Host) -> Vec<String> {
    let mut command = host.command("ss");
    command.args(["-tionH", "-O", "state", "established"]);
    command.args(["(", "sport", "=", ":8443", "or", "dport", "=", ":443", ")"]);
    output_of(command, b"").lines().map(str::to_owned).collect()
}

fn keepalive_on_both_legs() {
    let peers = Peers::new("keepalive", shipped());
    let (mut client, mut server) = peers.open(30);
    client.send(1000);
    server.expect(1000);
    server.send(1000);
    client.expect(1000);
    // A retransmission timer may come first, until all is acknowledged.
    peers.relay.wait_until("keepalive on both legs", || {
        let lines = connections(&peers.hosts.relay);
        let kept = lines
            .iter()
            .filter(|line| line.contains("timer:(keepalive,"));
        (lines.len(), kept.count()) == (2, 2)
    });
    client.finish();
    server.finish();
    peers.wait_closed("completed", 1);
    drop((client, server));
    peers.assert_at_rest();
}

/// The link goes down under an idle session. The number of probes counts only where `user_timeout` is off: where it is not, the kernel goes
/// on probing until that has passed (tcp(7)).
fn vanished(sender: Way, user_timeout: &str) {
    let keepalive = "keepalive_idle = \"1s\"\nkeepalive_interval = \"1s\"\nkeepalive_probes = 1";
    let table = format!("[session]\n{keepalive}\nuser_timeout = \"{user_timeout}\"");
    let peers = Peers::new("vanished", shipped_and(&table));
    let (vanishing, mut other) = peers.open_along(sender, 40);
    let (link, reason) = match sender {
        Way::ToUpstream => ("eth0", "client_timeout"),
        Way::ToClient => ("eth1", "upstream_timeout"),
    };
    peers.hosts.relay.ip(&format!("link set {link} down"));
    assert_eq!(other.expect_to_end(), Reset);
    peers.wait_closed(reason, 1);
    peers.hosts.relay.ip(&format!("link set {link} up"));
    vanishing.reset();
    peers.assert_at_rest();
}

/// S11. Acknowledgements are on their way for longer than it takes to send a few messages. Nagle's algorithm, a cork or MORE would hold
/// the second and later ones back and send them as one: as many segments as messages leave the relay only if nothing holds any back.
fn small_writes(mode: &str) {
    const MESSAGES: u64 = 5;
    let hosts = Hosts::without_wires("nodelay");
    let [[node, near], [relay, origin]] = [hosts.near(), hosts.far()];
    let far = || Shape::delay(Duration::from_millis(60));
    let _near = hosts.lab.wan(node, near, far());
    let _far = hosts.lab.wan(relay, origin, far());
    let peers = Peers::between(hosts, in_mode(mode));
    for way in Way::ALL {
        // A message fits into one segment: the links carry 8500 bytes.
        for size in [1, 1000, 4000] {
            // A machine that stands still for a while may lose the race against the acknowledgement's timer, though not each time.
            let held_back = |_| {
                let (mut sender, mut receiver) = peers.open_along(way, 50);
                for _ in 0..MESSAGES {
                    let before = peers.booked(way);
                    sender.send(size);
                    peers.relay.wait_until("the message to be passed on", || {
                        peers.booked(way) == before + size
                    });
                }
                receiver.expect(MESSAGES * size);
                let segments = peers.segments_sent(&receiver);
                sender.reset();
                receiver.wait_broken();
                segments < MESSAGES
            };
            assert!(
                !(0..5).all(held_back),
                "{way:?}: messages of {size} bytes are held back"
            );
        }
    }
    peers.assert_at_rest();
}

impl Peers {
    /// How many segments with data the relay has sent to a peer.
    #[track_caller]
    fn segments_sent(&self, to: &super::peers::Peer) -> u64 {
        let (remote, local) = to.addresses();
        let lines = connections(&self.hosts.relay);
        let ends = [local.to_string(), remote.to_string()];
        let line = lines.iter().find(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            ends.iter().all(|end| words.contains(&end.as_str()))
        });
        let count = line.and_then(|line| {
            let rest = line.split_once("data_segs_out:")?.1;
            rest.split_whitespace().next()?.parse().ok()
        });
        count.unwrap_or_else(|| panic!("{ends:?} in {lines:#?}"))
    }
}
