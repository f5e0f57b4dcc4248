//! What each leg's sockets are told, and what of it decides how long a peer that takes nothing is waited for: S19, S21.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    thread,
    time::{Duration, Instant},
};

use libtest_mimic::Trial;
use rustix::net::sockopt::tcp_congestion;
use socket2::Socket;

use super::{
    peers::{Peer, Peers, Way},
    regression::complete,
    world::{Hosts, LISTENER, ORIGIN, shipped_with},
};
use crate::{
    claim,
    harness::{
        relay::{Relay, Start},
        stream::End::Reset,
    },
};

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        claim("each_leg_has_the_socket_options_of_its_own", own_options),
        claim(
            "without_options_sockets_are_as_the_kernel_makes_them",
            no_options,
        ),
        claim("upstream_connections_come_from_the_source", source),
        claim("wan_preset_carries_every_byte_both_ways", wan_preset),
        claim("what_waits_unsent_is_bounded_by_notsent_lowat", unsent),
        claim(
            "congestion_control_that_is_not_in_the_kernel_ends_the_start",
            missing_congestion,
        ),
        claim(
            "congestion_control_that_is_not_allowed_ends_the_start_and_a_wish_does_not",
            forbidden_congestion,
        ),
        claim("zero_window_of_the_upstream_is_waited_for", || {
            window_opens(Way::ToUpstream);
        }),
        claim("zero_window_of_the_client_is_waited_for", || {
            window_opens(Way::ToClient);
        }),
        claim(
            "zero_window_of_the_upstream_ends_at_its_user_timeout",
            || {
                window_stays_shut(Way::ToUpstream);
            },
        ),
        claim("zero_window_of_the_client_ends_at_its_user_timeout", || {
            window_stays_shut(Way::ToClient);
        }),
        claim(
            "vanished_upstream_with_bytes_under_way_ends_at_its_user_timeout",
            || {
                link_goes_down(Way::ToUpstream, "eth1");
            },
        ),
        claim(
            "vanished_client_with_bytes_under_way_ends_at_its_user_timeout",
            || {
                link_goes_down(Way::ToClient, "eth0");
            },
        ),
        claim(
            "upstream_behind_a_dead_link_ends_at_its_user_timeout",
            || {
                far_link_goes_down(Way::ToUpstream);
            },
        ),
        claim("client_behind_a_dead_link_ends_at_its_user_timeout", || {
            far_link_goes_down(Way::ToClient);
        }),
    ]
}

/// The shipped configuration with keys added to its listener and to its upstream.
#[track_caller]
fn with_keys(listener: &str, upstream: &str) -> Start {
    let name = "name = \"control-plane\"\n";
    shipped_with(listener).replace(name, &format!("{name}{upstream}\n"))
}

/// The user timeout of the leg that this direction leads to, and of the other.
#[track_caller]
fn with_user_timeouts(way: Way, receivers: &str, senders: &str) -> Start {
    // Keepalive would find some of them out as well, and is not what is tested.
    let keys =
        |time: &str| format!("session = {{ user_timeout = \"{time}\", keepalive_idle = \"off\" }}");
    match way {
        Way::ToUpstream => with_keys(&keys(senders), &keys(receivers)),
        Way::ToClient => with_keys(&keys(receivers), &keys(senders)),
    }
}

/// The relay's sockets: towards the client and towards the upstream.
#[track_caller]
fn legs(relay: &Relay) -> [Socket; 2] {
    let is = |address: SocketAddr, text: &str| address == text.parse().unwrap();
    let mut legs = [None, None];
    for (local, remote, socket) in relay.connections() {
        if is(local, LISTENER) {
            legs[0] = Some(socket);
        } else if is(remote, ORIGIN) {
            legs[1] = Some(socket);
        }
    }
    legs.map(|leg| leg.expect("a session is open"))
}

/// What a socket was told, in words.
fn told(socket: &Socket) -> [String; 6] {
    let keepalive = match socket.keepalive().unwrap() {
        true => format!(
            "{:?} {:?} {}",
            socket.tcp_keepalive_time().unwrap(),
            socket.tcp_keepalive_interval().unwrap(),
            socket.tcp_keepalive_retries().unwrap()
        ),
        false => "off".to_owned(),
    };
    [
        tcp_congestion(socket).unwrap(),
        socket.send_buffer_size().unwrap().to_string(),
        socket.recv_buffer_size().unwrap().to_string(),
        socket.tcp_notsent_lowat().unwrap().to_string(),
        keepalive,
        format!("{:?}", socket.tcp_user_timeout().unwrap()),
    ]
}

/// A congestion control other than the system's, which every process may choose (RFC 5681 is in every kernel).
const OTHER: &str = "reno";

fn own_options() {
    let listener = "session = { keepalive_idle = \"7s\", keepalive_interval = \"2s\", keepalive_probes = 3, user_timeout = \"4s\" }\n\
         socket = { send_buffer = \"60000B\", receive_buffer = \"50000B\", notsent_lowat = \"10000B\" }";
    let upstream = format!(
        "session = {{ keepalive_idle = \"off\", user_timeout = \"3s\" }}\n\
         socket = {{ congestion = \"{OTHER}\", send_buffer = \"80000B\", receive_buffer = \"70000B\", notsent_lowat = \"20000B\" }}"
    );
    let peers = Peers::new("options", with_keys(listener, &upstream));
    let (mut client, mut server) = peers.open(10);
    client.send(1000);
    server.expect(1000);
    let [to_client, to_upstream] = legs(&peers.relay);
    let system = fs::read_to_string("/proc/sys/net/ipv4/tcp_congestion_control").unwrap();
    let client_told = told(&to_client);
    if system.trim() != OTHER {
        assert_ne!(client_told[0], OTHER, "the upstream's is its own");
    }
    assert_eq!(
        client_told[1..],
        ["60000", "50000", "10000", "7s 2s 3", "Some(4s)"]
    );
    // The upstream's leg is guarded when its user timeout begins to matter.
    peers
        .relay
        .wait_until("the upstream's leg to be guarded", || {
            to_upstream.tcp_user_timeout().unwrap().is_some()
        });
    assert_eq!(
        told(&to_upstream),
        [OTHER, "80000", "70000", "20000", "off", "Some(3s)"]
    );
    drop([to_client, to_upstream]);
    complete(&mut client, &mut server);
    peers.assert_at_rest();
}

fn no_options() {
    let peers = Peers::new("no-options", with_keys("", ""));
    let (mut client, mut server) = peers.open(10);
    let legs = legs(&peers.relay);
    // As a socket of this host that nobody told anything.
    let kernels = peers.hosts.relay.call(|| {
        let socket = Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        (
            tcp_congestion(&socket).unwrap(),
            socket.tcp_notsent_lowat().unwrap(),
        )
    });
    for leg in &legs {
        let congestion = tcp_congestion(leg).unwrap();
        assert_eq!((congestion, leg.tcp_notsent_lowat().unwrap()), kernels);
    }
    drop(legs);
    complete(&mut client, &mut server);
    peers.assert_at_rest();
}

/// Two connections from one source to two places at once would need two ports if bind(2) took them.
fn source() {
    const SOURCE: &str = "10.30.0.77";
    let hosts = Hosts::new("source");
    hosts.relay.address("eth1", "10.30.0.77/24");
    // One port is left to come from: bind(2) would have it for one connection and none for the next.
    hosts
        .relay
        .sysctl("net.ipv4.ip_local_port_range", "20000 20000");
    hosts.origin.address("eth0", "10.30.0.3/24");
    let other = hosts
        .origin
        .run(tokio::net::TcpListener::bind("10.30.0.3:443"))
        .unwrap();
    let start = with_keys("", &format!("socket = {{ source = \"{SOURCE}\" }}"));
    let start = start.replace(
        &format!("targets = [\"{ORIGIN}\"]"),
        &format!("balance = \"round_robin\"\ntargets = [\"{ORIGIN}\", \"10.30.0.3:443\"]"),
    );
    let peers = Peers::between(hosts, start);
    let node = peers.hosts.node.clone();
    let clients = [1, 2].map(|_| {
        node.run(super::world::connected(super::world::ENDPOINT))
            .unwrap()
    });
    let accepted = peers.accepting();
    let froms = peers.hosts.origin.run(async move {
        let first = accepted.accept().await.unwrap();
        let second = other.accept().await.unwrap();
        [first, second].map(|(_, from)| from)
    });
    for from in froms {
        assert_eq!(
            from,
            SocketAddr::new(SOURCE.parse::<IpAddr>().unwrap(), 20_000)
        );
    }
    drop(clients);
}

fn wan_preset() {
    const BYTES: u64 = 20_000_000;
    let socket = "socket = { preset = \"wan\" }";
    let peers = Peers::new("wan-preset", with_keys(socket, socket));
    let (mut client, mut server) = peers.open(10);
    for leg in legs(&peers.relay) {
        assert_eq!(leg.tcp_notsent_lowat().unwrap(), 1 << 20);
    }
    thread::scope(|scope| {
        scope.spawn(|| client.talk(BYTES, BYTES));
        server.talk(BYTES, BYTES);
    });
    complete(&mut client, &mut server);
    peers.wait_closed("completed", 1);
    for way in Way::ALL {
        assert_eq!(peers.booked(way), BYTES);
    }
    peers.assert_at_rest();
}

/// A reader with little room stops, and the relay's kernel would take megabytes for it.
fn unsent() {
    const MARK: u64 = 128 << 10;
    const ROOM: u64 = 8 << 20;
    /// What the reader's kernel takes, and the segment that a socket may have too many.
    const TAKEN: u64 = 256 << 10;
    let waits = |way: Way, keys: &str| {
        let hosts = Hosts::new("unsent");
        hosts
            .relay
            .sysctl("net.ipv4.tcp_wmem", &format!("4096 {ROOM} {ROOM}"));
        for host in [&hosts.node, &hosts.origin] {
            host.sysctl("net.ipv4.tcp_rmem", "4096 65536 65536");
        }
        let peers = Peers::between(hosts, with_keys(keys, keys));
        let (mut sender, mut receiver) = peers.open_along(way, 10);
        sender.send_until_stuck();
        let waits = peers.socket_to(&receiver).expect("it is open").send_queue;
        let sent = sender.sent();
        receiver.expect(sent);
        complete(&mut sender, &mut receiver);
        peers.wait_closed("completed", 1);
        peers.assert_at_rest();
        waits
    };
    for way in Way::ALL {
        let without = waits(way, "");
        let with = waits(way, &format!("socket = {{ notsent_lowat = \"{MARK}B\" }}"));
        assert!(
            without > 2 * (MARK + TAKEN),
            "{without}: nothing was to be bounded"
        );
        assert!(with <= MARK + TAKEN, "{with} bytes wait");
    }
}

/// What `run` and `check` say of keys for the upstream's socket, and the exit code of `run`; in `wrapper`, a program that becomes them.
#[track_caller]
fn refused(keys: &str, wrapper: &[&str], wanted: i32) -> [String; 2] {
    let hosts = Hosts::new("refused");
    let start = with_keys("", keys).through(wrapper);
    let check = start.clone().arguments(&["check", "--config", "@CONFIG@"]);
    let [run, check] = [start, check].map(|start| start.without_waiting().on(&hosts.relay));
    check.wait_exit();
    assert_eq!(run.wait_exit(), wanted);
    let said = run.log_lines("congestion control").join("\n");
    [said, check.records().join("\n")]
}

fn missing_congestion() {
    let keys = "socket = { congestion = \"nonesuch\" }";
    let [run, check] = refused(keys, &[], 78);
    let parts = [
        "\"nonesuch\" is not in this kernel",
        "modprobe tcp_nonesuch",
    ];
    for part in parts {
        assert!(run.contains(part) && check.contains(part), "{run}\n{check}");
    }
    assert!(run.contains("upstream \"control-plane\""), "{run}");
}

/// As an ordinary user, who may choose only what the machine's administrator allows.
fn forbidden_congestion() {
    const USER: [&str; 4] = [
        "setpriv",
        "--reuid=65534",
        "--bounding-set=-all",
        "--inh-caps=-all",
    ];
    let words = |name: &str| {
        let text = fs::read_to_string(format!("/proc/sys/net/ipv4/{name}")).unwrap();
        text.split_whitespace()
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let allowed = words("tcp_allowed_congestion_control");
    let available = words("tcp_available_congestion_control");
    // A machine that allows all it has has nothing to refuse.
    if let Some(name) = available.iter().find(|name| !allowed.contains(name)) {
        let keys = format!("socket = {{ congestion = \"{name}\" }}");
        let [run, check] = refused(&keys, &USER, 77);
        let part =
            "is not allowed to this process: add it to net.ipv4.tcp_allowed_congestion_control";
        assert!(run.contains(part) && check.contains(part), "{run}\n{check}");
    }
    let wan = "socket = { preset = \"wan\" }";
    let hosts = Hosts::new("wish");
    // Not by chance: the system's is another one.
    hosts.relay.sysctl("net.ipv4.tcp_congestion_control", OTHER);
    let peers = Peers::between(hosts, with_keys("", wan).through(&USER));
    let (mut client, mut server) = peers.open(10);
    let [_, upstream] = legs(&peers.relay);
    let granted = allowed.iter().any(|name| name == "bbr");
    assert_eq!(tcp_congestion(&upstream).unwrap() == "bbr", granted);
    assert_eq!(peers.relay.log_lines("\"bbr\"").is_empty(), granted);
    drop(upstream);
    complete(&mut client, &mut server);
    peers.assert_at_rest();
}

/// A session whose receiver takes nothing: its window is zero, and bytes wait for it in the relay's kernel. Both hosts have little room.
#[track_caller]
fn stuck(name: &str, way: Way, start: Start) -> (Peers, Peer, Peer) {
    let hosts = Hosts::new(name);
    for host in [&hosts.node, &hosts.relay, &hosts.origin] {
        for key in ["net.ipv4.tcp_rmem", "net.ipv4.tcp_wmem"] {
            host.sysctl(key, "4096 65536 65536");
        }
    }
    let peers = Peers::between(hosts, start);
    let (mut sender, receiver) = peers.open_along(way, 20);
    sender.send_until_stuck();
    let waiting = peers.socket_to(&receiver).expect("it is open").send_queue;
    assert!(waiting > 0, "nothing waits: nothing is tested");
    (peers, sender, receiver)
}

/// How long a window stays shut in these tests, in place of minutes: several times what the sender's leg would wait, and what the receiver's
/// leg waits in [`window_stays_shut`].
const SHUT: Duration = Duration::from_secs(6);

/// S19. The bound of the sender's leg has nothing to do with it: there, everything is acknowledged that may be.
fn window_opens(way: Way) {
    let start = with_user_timeouts(way, "off", "1s");
    let (peers, mut sender, mut receiver) = stuck("opens", way, start);
    let before = peers.relay.cpu_time();
    // Time is the test here.
    thread::sleep(SHUT);
    let used = peers.relay.cpu_time() - before;
    assert!(used < SHUT / 20, "{used:?} of {SHUT:?} for nothing");
    let sent = sender.sent();
    receiver.expect(sent);
    // Both directions are alive.
    sender.send(1000);
    receiver.expect(1000);
    receiver.send(1000);
    sender.expect(1000);
    complete(&mut sender, &mut receiver);
    peers.wait_closed("completed", 1);
    assert_eq!(peers.booked(way), sent + 1000);
    peers.assert_at_rest();
}

const USER_TIMEOUT: Duration = Duration::from_secs(2);

/// The reason of a session whose receiver in this direction is waited for no longer.
fn timeout_of_receiver(way: Way) -> &'static str {
    match way {
        Way::ToUpstream => "upstream_timeout",
        Way::ToClient => "client_timeout",
    }
}

/// S19.
fn window_stays_shut(way: Way) {
    let began = Instant::now();
    let start = with_user_timeouts(way, "2s", "off");
    let (peers, mut sender, receiver) = stuck("shut", way, start);
    assert_eq!(sender.expect_to_end(), Reset);
    assert!(began.elapsed() >= USER_TIMEOUT, "not before its time");
    peers.wait_closed(timeout_of_receiver(way), 1);
    // It never heard of it: the kernel gives up in silence.
    receiver.reset();
    peers.assert_at_rest();
}

/// A link goes down under bytes that nobody acknowledges any more. `down` and `up` are told the relay's hosts.
fn vanishes(way: Way, down: impl FnOnce(&Hosts), up: impl FnOnce(&Hosts)) {
    let peers = Peers::new("vanishes", with_user_timeouts(way, "2s", "off"));
    let (mut sender, mut receiver) = peers.open_along(way, 30);
    sender.send(1000);
    receiver.expect(1000);
    down(&peers.hosts);
    let began = Instant::now();
    sender.send(10_000);
    assert_eq!(sender.expect_to_end(), Reset);
    assert!(began.elapsed() >= USER_TIMEOUT, "not before its time");
    peers.wait_closed(timeout_of_receiver(way), 1);
    up(&peers.hosts);
    receiver.reset();
    peers.assert_at_rest();
}

/// S21. The relay's own link: its routes go with it.
fn link_goes_down(way: Way, link: &str) {
    vanishes(
        way,
        |hosts| drop(hosts.relay.ip(&format!("link set {link} down"))),
        |hosts| drop(hosts.relay.ip(&format!("link set {link} up"))),
    );
}

/// S21. The other end of the link: the relay's kernel learns nothing but silence.
fn far_link_goes_down(way: Way) {
    let far = |hosts: &Hosts, state: &str| match way {
        Way::ToUpstream => drop(hosts.origin.ip(&format!("link set eth0 {state}"))),
        Way::ToClient => drop(hosts.node.ip(&format!("link set eth0 {state}"))),
    };
    vanishes(way, |hosts| far(hosts, "down"), |hosts| far(hosts, "up"));
}
