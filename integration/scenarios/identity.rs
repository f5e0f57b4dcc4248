//! P10, P11, P15: what an upstream is told of a client, and when.

use std::io::ErrorKind;

use libtest_mimic::Trial;
use tokio::net::TcpListener;

use super::{
    raw_header::{self, endpoint, tlv},
    world::{ENDPOINT, Hosts, ORIGIN, World, connected, listener, privatelink_header, shipped},
};
use crate::{
    claim,
    harness::{
        agent::Agent,
        nlb::header::{self, crc32c},
        origin::{Manner, Origin},
        relay::{Baseline, Relay, Start},
        stream::{self, End},
    },
};

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        claim(
            "upstream_is_told_at_once_and_byte_for_byte_who_connects",
            upstream_is_told_at_once_and_byte_for_byte_who_connects,
        ),
        claim(
            "upstream_header_is_as_long_as_it_may_be_and_no_longer",
            upstream_header_is_as_long_as_it_may_be_and_no_longer,
        ),
        claim(
            "upstream_header_that_does_not_fit_is_sent_in_pieces_within_the_deadline",
            upstream_header_that_does_not_fit_is_sent_in_pieces_within_the_deadline,
        ),
        claim(
            "upstream_that_wants_version_1_is_told_in_a_line",
            upstream_that_wants_version_1_is_told_in_a_line,
        ),
        claim(
            "without_headers_the_upstream_is_told_of_the_connection_itself",
            without_headers_the_upstream_is_told_of_the_connection_itself,
        ),
        claim(
            "second_header_never_says_who_a_client_is",
            second_header_never_says_who_a_client_is,
        ),
        claim(
            "connection_dialled_ahead_begins_with_its_own_clients_header",
            connection_dialled_ahead_begins_with_its_own_clients_header,
        ),
        claim(
            "whoever_takes_the_place_of_a_connection_that_was_given_up_is_told_too",
            whoever_takes_the_place_of_a_connection_that_was_given_up_is_told_too,
        ),
    ]
}

/// The shipped configuration of a relay called `relay-a`, with these keys in its upstream.
pub(super) fn telling(keys: &str) -> Start {
    shipped()
        .replace("[health]\n", "relay_id = \"relay-a\"\n\n[health]\n")
        .replace(
            "name = \"control-plane\"\n",
            &format!("name = \"control-plane\"\n{keys}\n"),
        )
}

/// What a relay adds to a header.
pub(super) fn own(hops: u8, relay_id: &str) -> Vec<u8> {
    tlv(
        0xE7,
        &[b"TG\x01", &[hops][..], relay_id.as_bytes()].concat(),
    )
}

/// A header with these addresses and TLVs, and its checksum behind them.
pub(super) fn summed(family: u8, addresses: &[u8], tlvs: &[u8]) -> Vec<u8> {
    let body = [addresses, tlvs, &tlv(0x03, &[0; 4])].concat();
    let mut header = raw_header::of(0x21, family, &body);
    let (at, sum) = (header.len() - 4, crc32c(&header));
    header[at..].copy_from_slice(&sum.to_be_bytes());
    header
}

/// The addresses that the headers of these tests have.
pub(super) const IPV4: [u8; 12] = [172, 31, 7, 113, 172, 31, 10, 31, 0xC8, 0xF2, 0, 80];

/// A client with this header hears from an origin that sends back what it is sent, and before the client said a word, this.
#[track_caller]
pub(super) fn is_told(world: &World, header: Vec<u8>, told: Vec<u8>) {
    world.node.run(async move {
        let mut agent = Agent::connect(listener()).await.unwrap();
        agent.preface(&[&header]).await.unwrap();
        let heard = agent.read(told.len()).await.unwrap();
        assert!(
            heard == told,
            "{}\nis not\n{}",
            heard.escape_ascii(),
            told.escape_ascii()
        );
        agent.write(b"and now the client").await.unwrap();
        agent.finish().unwrap();
        let rest = (b"and now the client".to_vec(), End::Fin);
        assert_eq!(agent.read_to_end().await.unwrap(), rest);
    });
}

fn upstream_is_told_at_once_and_byte_for_byte_who_connects() {
    let world = World::with("told", Manner::Echo, telling("proxy_protocol = \"v2\""));
    let first = own(1, "relay-a");
    let id = endpoint(ENDPOINT.as_bytes());
    // As NLB writes it: the checksum first, padding last.
    let nlb = summed(0x11, &IPV4, &[&id[..], &first].concat());
    is_told(&world, privatelink_header(ENDPOINT), nlb.clone());

    let strange = [
        tlv(0xE0, b"one"),
        id.clone(),
        tlv(0xE7, b"not ours"),
        tlv(0xEA, b"\x02other subtype"),
        tlv(0xE0, b""),
        tlv(0x05, &[0xFF; 300]),
        tlv(0xE0, b"one"),
    ];
    let mut padded: Vec<u8> = strange.join(&tlv(0x04, &[0; 7])[..]);
    padded.extend(own(3, "relay-z"));
    padded.extend(tlv(0x04, b""));
    let incoming = summed(0x11, &IPV4, &padded);
    let told = [strange.concat(), own(4, "relay-a")].concat();
    is_told(&world, incoming, summed(0x11, &IPV4, &told));

    let six = raw_header::from_hex(raw_header::SYNTHETIC_TCP6);
    let addresses = six[16..52].to_vec();
    let told = [endpoint(b"vpce-0123456789abcdef0"), first.clone()].concat();
    is_told(&world, six, summed(0x21, &addresses, &told));

    let told = [id.clone(), first].concat();
    is_told(
        &world,
        raw_header::of(0x21, 0x00, &id),
        summed(0x00, b"", &told),
    );
    let unix = [&[7; 216][..], &id].concat();
    is_told(
        &world,
        raw_header::of(0x21, 0x31, &unix),
        summed(0x00, b"", &told),
    );

    world.wait_closed("completed", 5);
    // Headers are not the client's bytes; the origin's, which happen to be the same, are its own.
    let payload = 4 * b"and now the client".len() as u64;
    assert_eq!(world.booked(ENDPOINT, "to_upstream"), payload);
    assert!(world.booked(ENDPOINT, "to_client") > payload + nlb.len() as u64);
    world.assert_at_rest();
}

fn upstream_header_is_as_long_as_it_may_be_and_no_longer() {
    let start = telling("proxy_protocol = \"v2\"").replace(
        "name = \"ingest\"\n",
        "name = \"ingest\"\nmax_header = \"65551B\"\n",
    );
    let world = World::with("room", Manner::Echo, start);
    let own = own(1, "relay-a");
    let room = 65_535 - 12 - own.len() - 7;
    let filling = |length: usize| {
        let id = endpoint(ENDPOINT.as_bytes());
        let filler = tlv(0xEE, &vec![9; length - id.len() - 3]);
        [id, filler].concat()
    };
    let told = summed(0x11, &IPV4, &[filling(room), own].concat());
    assert_eq!(told.len(), 65_551);
    is_told(&world, raw_header::tcp4(&filling(room)), told);
    world.wait_closed("completed", 1);
    let above = raw_header::tcp4(&filling(room + 1));
    world.node.run(async move {
        let mut agent = Agent::connect(listener()).await.unwrap();
        // It is refused once it is whole, which the write may hear of already: it sends in pieces.
        match agent.preface(&[&above]).await {
            Ok(()) => assert_eq!(agent.read_to_end().await.unwrap(), (vec![], End::Reset)),
            // Whatever the agent was about to do when the reset came.
            Err(error) => assert!(
                matches!(
                    error.kind(),
                    ErrorKind::ConnectionReset | ErrorKind::NotConnected | ErrorKind::BrokenPipe
                ),
                "{error}"
            ),
        }
    });
    let errors = [("error", "too_long")];
    assert_eq!(
        world.relay.metric("tollgate_header_errors_total", &errors),
        1
    );
    world.wait_closed("connect_failed", 1);
    world.assert_at_rest();
}

fn upstream_header_that_does_not_fit_is_sent_in_pieces_within_the_deadline() {
    let hosts = Hosts::new("pieces");
    // Neither end's buffers hold it.
    hosts.origin.sysctl("net.ipv4.tcp_rmem", "4096 4096 4096");
    hosts.relay.sysctl("net.ipv4.tcp_wmem", "4096 4096 4096");
    let origin = Origin::start(&hosts.origin, ORIGIN, Manner::Stopped);
    let keys = "proxy_protocol = \"v2\"\nconnect_timeout = \"2s\"\nconnect_deadline = \"2s\"";
    let start = telling(keys).replace(
        "name = \"ingest\"\n",
        "name = \"ingest\"\nmax_header = \"65551B\"\n",
    );
    let relay = start.on(&hosts.relay);
    let baseline = Baseline::of(&relay);
    let long = tlv(0xEE, &[9; 60_000]);
    let header = raw_header::tcp4(&long);

    // One that never reads it is one that was not connected to.
    let unread = header.clone();
    hosts.node.run(async move {
        let mut agent = Agent::connect(listener()).await.unwrap();
        agent.preface(&[&unread]).await.unwrap();
        assert_eq!(agent.read_to_end().await.unwrap(), (vec![], End::Reset));
    });
    let closed = |reason, n| {
        let labels = [("reason", reason)];
        relay.wait_metric("tollgate_connections_closed_total", &labels, n);
    };
    closed("connect_failed", 1);

    origin.allow_all();
    hosts.node.run(async move {
        let mut agent = Agent::connect(listener()).await.unwrap();
        agent.preface(&[&header]).await.unwrap();
        agent.write(b"payload").await.unwrap();
        agent.finish().unwrap();
        assert_eq!(agent.read_to_end().await.unwrap(), (vec![], End::Fin));
    });
    closed("completed", 1);
    let told = summed(0x11, &IPV4, &[long, own(1, "relay-a")].concat());
    let books = origin.wait_over(2);
    let last = &books.connections[1];
    assert_eq!(last.received, (told.len() + b"payload".len()) as u64);
    assert!(last.first == told[..last.first.len()]);
    super::world::assert_at_rest(&relay, baseline);
}

fn upstream_that_wants_version_1_is_told_in_a_line() {
    let world = World::with("line", Manner::Echo, telling("proxy_protocol = \"v1\""));
    let unspec = raw_header::of(0x21, 0x00, &endpoint(b"vpce-1"));
    let mixed = {
        let mapped = [&[0; 10][..], &[0xFF, 0xFF, 10, 0, 0, 1]].concat();
        let other = [&[0xFD][..], &[0; 14], &[1]].concat();
        raw_header::of(0x21, 0x21, &[mapped, other, vec![0, 1, 0, 2]].concat())
    };
    let mapped = {
        let address = |last| [&[0; 10][..], &[0xFF, 0xFF, 10, 0, 0, last]].concat();
        raw_header::of(
            0x21,
            0x21,
            &[address(1), address(2), vec![0, 1, 0, 2]].concat(),
        )
    };
    let six = header::proxy(
        "[2001:db8::7]:40000".parse().unwrap(),
        "[2001:db8:0:1::1]:443".parse().unwrap(),
        Some(ENDPOINT),
    );
    for (header, line) in [
        (
            privatelink_header(ENDPOINT),
            "PROXY TCP4 172.31.7.113 172.31.10.31 51442 80\r\n",
        ),
        (six, "PROXY TCP6 2001:db8::7 2001:db8:0:1::1 40000 443\r\n"),
        (mapped, "PROXY TCP4 10.0.0.1 10.0.0.2 1 2\r\n"),
        (mixed, "PROXY UNKNOWN\r\n"),
        (unspec, "PROXY UNKNOWN\r\n"),
    ] {
        is_told(&world, header, line.as_bytes().to_vec());
    }
    world.wait_closed("completed", 5);
    world.assert_at_rest();
}

fn without_headers_the_upstream_is_told_of_the_connection_itself() {
    for (version, told) in [("v1", false), ("v2", true)] {
        let start = telling(&format!("proxy_protocol = \"{version}\"")).replace(
            "name = \"ingest\"\n",
            "name = \"ingest\"\nproxy_protocol = \"off\"\n",
        );
        let world = World::with("itself", Manner::Echo, start);
        world.node.run(async move {
            let mut agent = Agent::connect(listener()).await.unwrap();
            let port = agent.local().unwrap().port();
            let expected = if told {
                let addresses = [
                    &[10, 20, 0, 10, 10, 20, 0, 2][..],
                    &port.to_be_bytes(),
                    &8443_u16.to_be_bytes(),
                ];
                summed(0x11, &addresses.concat(), &own(1, "relay-a"))
            } else {
                format!("PROXY TCP4 10.20.0.10 10.20.0.2 {port} 8443\r\n").into_bytes()
            };
            assert_eq!(agent.read(expected.len()).await.unwrap(), expected);
            agent.finish().unwrap();
            assert_eq!(agent.read_to_end().await.unwrap(), (vec![], End::Fin));
        });
        world.wait_closed("completed", 1);
        world.assert_at_rest();
    }
}

fn second_header_never_says_who_a_client_is() {
    let world = World::with("third", Manner::Echo, telling("proxy_protocol = \"v2\""));
    // One as NLB's, and one as a relay's, which says how many came before and nothing else.
    for (second, hops) in [
        (privatelink_header("vpce-0000000000000000f"), 1),
        (
            summed(
                0x11,
                &[1; 12],
                &[endpoint(b"vpce-0000000000000000f"), own(2, "relay-z")].concat(),
            ),
            3,
        ),
    ] {
        let id = endpoint(ENDPOINT.as_bytes());
        let told = summed(0x11, &IPV4, &[id, own(hops, "relay-a")].concat());
        world.node.run(async move {
            let mut agent = Agent::connect(listener()).await.unwrap();
            let all = [&privatelink_header(ENDPOINT), &second[..], b"payload"].concat();
            agent.write(&all).await.unwrap();
            agent.finish().unwrap();
            let expected = [&told, &second[..], b"payload"].concat();
            assert_eq!(agent.read_to_end().await.unwrap(), (expected, End::Fin));
        });
    }
    world.wait_closed("completed", 2);
    let endpoints = world
        .relay
        .metrics()
        .label_values("tollgate_bytes_total", "endpoint");
    assert_eq!(endpoints, [ENDPOINT]);
    world.assert_at_rest();
}

/// Waits until the first connection is there: the gauge counts one that is still being made.
#[track_caller]
fn wait_ahead(relay: &Relay) {
    relay.wait_metric("tollgate_upstream_connect_seconds_count", &[], 1);
}

fn connection_dialled_ahead_begins_with_its_own_clients_header() {
    let keys = "proxy_protocol = \"v2\"\nahead = { min = 1, max = 1, max_age = \"30s\" }";
    let start = telling(keys).replace("[health]", "workers = 1\n[health]");
    let world = World::with("readymade", Manner::Echo, start);
    wait_ahead(&world.relay);
    world.node.run(async {
        let mut agent = connected(ENDPOINT).await.unwrap();
        let id = endpoint(ENDPOINT.as_bytes());
        let told = summed(0x11, &IPV4, &[id, own(1, "relay-a")].concat());
        assert_eq!(agent.read(told.len()).await.unwrap(), told);
        agent.finish().unwrap();
        assert_eq!(agent.read_to_end().await.unwrap(), (vec![], End::Fin));
    });
    world.wait_closed("completed", 1);
    let taken = [("outcome", "taken")];
    assert_eq!(world.relay.metric("tollgate_ahead_total", &taken), 1);
}

fn whoever_takes_the_place_of_a_connection_that_was_given_up_is_told_too() {
    let hosts = Hosts::new("again");
    // The first connection is given up when something is said on it; what is said on the others comes back.
    hosts.origin.spawn(async {
        let listener = TcpListener::bind(ORIGIN).await.unwrap();
        for number in 0.. {
            let (connection, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                while let Ok(Some(said)) = stream::read(&connection, <[u8]>::to_vec).await {
                    if number == 0 {
                        return stream::reset(connection);
                    }
                    stream::write(&connection, &said, |_| ()).await.unwrap();
                }
            });
        }
    });
    let keys = "proxy_protocol = \"v2\"\nahead = { min = 1, max = 1, max_age = \"30s\" }";
    let start = telling(keys).replace("[health]", "workers = 1\n[health]");
    let relay = start.on(&hosts.relay);
    wait_ahead(&relay);
    hosts.node.run(async {
        let mut agent = connected(ENDPOINT).await.unwrap();
        let id = endpoint(ENDPOINT.as_bytes());
        let told = summed(0x11, &IPV4, &[id, own(1, "relay-a")].concat());
        assert_eq!(agent.read(told.len()).await.unwrap(), told);
        agent.finish().unwrap();
        assert_eq!(agent.read_to_end().await.unwrap(), (vec![], End::Fin));
    });
    let completed = [("reason", "completed")];
    relay.wait_metric("tollgate_connections_closed_total", &completed, 1);
    for outcome in ["taken", "stale"] {
        let labels = [("outcome", outcome)];
        assert_eq!(
            relay.metric("tollgate_ahead_total", &labels),
            1,
            "{outcome}"
        );
    }
}
