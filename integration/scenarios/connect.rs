//! Addresses that do not answer, and names whose addresses change.

use std::{
    io::{ErrorKind, Read, Write},
    net::{TcpListener, TcpStream},
    time::{Duration, Instant},
};

use hickory_proto::{op::ResponseCode, rr::RecordType::A};
use libtest_mimic::Trial;

use super::world::{
    self, ENDPOINT, Hosts, ORIGIN, SHIPPED, World, connected, exchange, listener,
    privatelink_header, refused, shipped,
};
use crate::{
    claim,
    harness::{
        dns::{Answer, Dns},
        origin::{Manner, Origin},
        relay::{Baseline, Relay, Start},
    },
};

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        claim("refused_address_is_left_for_the_next", refused_address),
        claim(
            "black_hole_is_left_for_the_next_at_connect_timeout",
            black_hole,
        ),
        claim(
            "black_holes_alone_end_at_connect_deadline_with_rst",
            black_holes_alone,
        ),
        claim("refusals_alone_end_with_rst", refusals_alone),
        claim(
            "what_an_upstream_says_before_it_resets_at_once_arrives",
            banner_and_reset,
        ),
        claim("name_without_address_ends_with_rst", no_address),
        claim("addresses_are_taken_in_turn", addresses_in_turn),
        claim("name_is_not_asked_per_connection", not_per_connection),
        claim(
            "name_is_asked_again_at_its_ttl_and_a_change_followed",
            ttl_and_change,
        ),
        claim(
            "relay_starts_without_a_resolver_and_finds_it_later",
            resolver_comes_later,
        ),
    ]
}

fn targets(targets: &str) -> Start {
    shipped().replace(&format!("targets = [\"{ORIGIN}\"]"), targets)
}

fn refused_address() {
    let list = format!("targets = [\"10.30.0.4:443\", \"{ORIGIN}\"]\nbalance = \"round_robin\"");
    let start = targets(&list);
    let world = World::with("refused", Manner::Echo, start);
    // There, and nobody listens.
    world.origin_host.address("eth0", "10.30.0.4/24");
    for _ in 0..6 {
        exchange(&world.node);
    }
    world.wait_closed("completed", 6);
    world.relay.wait_log("10.30.0.4:443");
    assert_eq!(world.origin.books().received, 6000);
    assert_eq!(world.booked(ENDPOINT, "to_upstream"), 6000);
    world.assert_at_rest();
}

/// Leads 10.40.0.0/24 to a host that passes nothing on and says nothing.
fn into_black_holes(world: &World) {
    let hole = world.lab.host("hole");
    world
        .lab
        .veth((&world.relay_host, "10.50.0.1/24"), (&hole, "10.50.0.2/24"));
    world.relay_host.route("10.40.0.0/24", "10.50.0.2");
}

fn black_hole() {
    let keys = "connect_timeout = \"300ms\"\nconnect_deadline = \"19s\"\nbalance = \"round_robin\"";
    let list = format!("targets = [\"10.40.0.9:443\", \"{ORIGIN}\"]\n{keys}");
    let world = World::with("black-hole", Manner::Echo, targets(&list));
    into_black_holes(&world);
    for _ in 0..6 {
        exchange(&world.node);
    }
    world.wait_closed("completed", 6);
    world.relay.wait_log("10.40.0.9:443");
    assert_eq!(world.booked(ENDPOINT, "to_client"), 6000);
    world.assert_at_rest();
}

fn black_holes_alone() {
    let keys = "connect_timeout = \"300ms\"\nconnect_deadline = \"700ms\"\nnext_try_after = \"1s\"";
    let holes: Vec<String> = (1..=5).map(|n| format!("\"10.40.0.{n}:443\"")).collect();
    let list = format!("targets = [{}]\n{keys}", holes.join(", "));
    let world = World::with("black-holes", Manner::Echo, targets(&list));
    into_black_holes(&world);
    let began = Instant::now();
    refused(&world.node);
    assert!(
        began.elapsed() >= Duration::from_millis(700),
        "all its time"
    );
    world.wait_closed("connect_failed", 1);
    let tried = world
        .relay
        .log_lines("cannot connect to the upstream")
        .len();
    assert!(tried <= 3, "{tried} tries of 300 ms in 700 ms");
    assert_eq!(world.origin.books().accepted, 0);
    world.assert_at_rest();
}

fn refusals_alone() {
    let world = World::with(
        "refusals",
        Manner::Echo,
        targets("targets = [\"10.30.0.2:444\", \"10.30.0.2:445\"]"),
    );
    for _ in 0..3 {
        refused(&world.node);
    }
    world.wait_closed("connect_failed", 3);
    assert_eq!(world.booked(ENDPOINT, "to_upstream"), 0);
    world.assert_at_rest();
}

/// The name in the shipped configuration.
const NAME: &str = "cp.us-east-1.example.internal";
const SECOND_ADDRESS: &str = "10.30.0.3";

/// A world whose upstream is a name. Two origins stand ready behind two addresses.
struct Named {
    relay: Relay,
    baseline: Baseline,
    dns: Dns,
    origins: [Origin; 2],
    hosts: Hosts,
}

impl Named {
    #[track_caller]
    fn new(name: &str, answer: Answer) -> Self {
        let hosts = Hosts::new(name);
        hosts.origin.address("eth0", "10.30.0.3/24");
        let dns = Dns::start(&hosts.origin, "10.30.0.2:53");
        dns.set(NAME, answer);
        let origin = |address: &str| Origin::start(&hosts.origin, address, Manner::Echo);
        let origins = [origin(ORIGIN), origin(&format!("{SECOND_ADDRESS}:443"))];
        let relay = by_name().on(&hosts.relay);
        Self {
            baseline: Baseline::of(&relay),
            relay,
            dns,
            origins,
            hosts,
        }
    }

    /// Waits until so many addresses are known, from a good answer or an earlier one.
    #[track_caller]
    fn wait_addresses(&self, stale: bool, n: u64) {
        self.relay.wait_until("the answer to be known", || {
            self.relay.metric("tollgate_dns_stale", &[]) == u64::from(stale)
                && self.relay.metric("tollgate_upstream_addresses", &[]) == n
        });
    }

    fn accepted(&self) -> [u64; 2] {
        [0, 1].map(|n| self.origins[n].books().accepted)
    }
}

/// The shipped configuration with the scripted resolver, and one worker, which alone takes turns.
fn by_name() -> Start {
    let resolver = "workers = 1\n[resolver]\nservers = [\"10.30.0.2:53\"]\n\n[health]\n";
    Start::with(SHIPPED)
        .replace("[health]\n", resolver)
        .replace(
            "name = \"control-plane\"\n",
            "name = \"control-plane\"\nbalance = \"round_robin\"\n",
        )
}

fn no_address() {
    let named = Named::new("no-address", Answer::Code(ResponseCode::NXDomain));
    for _ in 0..3 {
        refused(&named.hosts.node);
    }
    let closed = "tollgate_connections_closed_total";
    named
        .relay
        .wait_metric(closed, &[("reason", "no_address")], 3);
    assert_eq!(named.accepted(), [0, 0]);
    world::assert_at_rest(&named.relay, named.baseline);
}

fn addresses_in_turn() {
    let answer = Answer::rotating(&["10.30.0.2", SECOND_ADDRESS], 1);
    let named = Named::new("turns", answer);
    named.wait_addresses(false, 2);
    for n in 1..=10 {
        exchange(&named.hosts.node);
        exchange(&named.hosts.node);
        assert_eq!(named.accepted(), [n, n], "whatever order answers come in");
    }
    world::assert_at_rest(&named.relay, named.baseline);
}

fn not_per_connection() {
    let named = Named::new("not-asked", Answer::addresses(&["10.30.0.2"], 3600));
    named.wait_addresses(false, 1);
    for _ in 0..20 {
        exchange(&named.hosts.node);
    }
    // Not exactly one: a resolver that waits for an answer asks again.
    assert!(named.dns.questions(NAME, A) < 10);
    assert_eq!(named.accepted(), [20, 0]);
    world::assert_at_rest(&named.relay, named.baseline);
}

fn ttl_and_change() {
    let began = Instant::now();
    let named = Named::new("ttl", Answer::addresses(&["10.30.0.2"], 1));
    named.wait_addresses(false, 1);
    exchange(&named.hosts.node);
    // A session that is open across the change stays where it is.
    let mut old = named.hosts.node.run(async {
        let mut agent = connected(ENDPOINT).await.unwrap();
        agent.exchange(1000).await.unwrap();
        agent
    });
    named.dns.wait_questions(NAME, A, 4);
    let three_ttls = Duration::from_secs(3);
    assert!(began.elapsed() >= three_ttls, "not before its time");
    named.dns.set(NAME, Answer::addresses(&[SECOND_ADDRESS], 1));
    named.relay.wait_until("the change to be known", || {
        named.relay.get("/status").1.contains(SECOND_ADDRESS)
    });
    exchange(&named.hosts.node);
    assert_eq!(named.accepted(), [2, 1]);
    named.hosts.node.run(async move {
        old.exchange(1000).await.unwrap();
    });
    assert_eq!(named.origins[0].wait_over(2).received, 3000);
    let booked = [("direction", "to_upstream")];
    assert_eq!(named.relay.metric("tollgate_bytes_total", &booked), 4000);
    world::assert_at_rest(&named.relay, named.baseline);
}

/// Nothing answers at the resolver's address when the relay starts.
fn resolver_comes_later() {
    let hosts = Hosts::new("later");
    let origin = Origin::start(&hosts.origin, ORIGIN, Manner::Echo);
    let relay = by_name().on(&hosts.relay);
    let baseline = Baseline::of(&relay);
    relay.wait_log("name does not resolve");
    refused(&hosts.node);
    let dns = Dns::start(&hosts.origin, "10.30.0.2:53");
    dns.set(NAME, Answer::addresses(&["10.30.0.2"], 60));
    relay.wait_metric("tollgate_upstream_addresses", &[], 1);
    exchange(&hosts.node);
    assert_eq!(origin.wait_over(1).received, 1000);
    world::assert_at_rest(&relay, baseline);
}

/// The connection was made, so it is no other address's turn, and what was said before the reset is delivered: whether the relay looks
/// before the reset or after it.
fn banner_and_reset() {
    const BANNER: &[u8] = b"busy, come back later";
    const SESSIONS: u64 = 60;
    let hosts = Hosts::new("banner");
    let relay = shipped().on(&hosts.relay);
    let baseline = Baseline::of(&relay);
    let accepting = hosts.origin.call(|| TcpListener::bind(ORIGIN)).unwrap();
    let speaking = std::thread::spawn(move || {
        for _ in 0..SESSIONS {
            let (mut stream, _) = accepting.accept().unwrap();
            stream.write_all(BANNER).unwrap();
            let socket = socket2::SockRef::from(&stream);
            socket.set_linger(Some(Duration::ZERO)).unwrap();
        }
    });
    // A plain socket: an agent waits until its header is acknowledged, and here the session may be over by then.
    hosts.node.call(|| {
        for _ in 0..SESSIONS {
            let mut client = TcpStream::connect(listener()).unwrap();
            client
                .set_read_timeout(Some(Duration::from_secs(20)))
                .unwrap();
            client.write_all(&privatelink_header(ENDPOINT)).unwrap();
            let mut heard = Vec::new();
            let end = client.read_to_end(&mut heard).map_err(|error| error.kind());
            assert_eq!((&heard[..], end), (BANNER, Err(ErrorKind::ConnectionReset)));
        }
    });
    speaking.join().unwrap();
    let closed = [("reason", "upstream_reset")];
    relay.wait_metric("tollgate_connections_closed_total", &closed, SESSIONS);
    world::assert_at_rest(&relay, baseline);
}
