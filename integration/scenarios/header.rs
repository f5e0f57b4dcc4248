//! P1 to P14: what a connection may begin with, and what becomes of it.

use std::{net::SocketAddr, time::Duration};

use libtest_mimic::Trial;

use super::{
    raw_header::{self, endpoint, tlv, with_crc},
    world::{ENDPOINT, World, connected, listener, privatelink_header, shipped, shipped_with},
};
use crate::harness::relay::Start;
use crate::{
    claim,
    harness::{agent::Agent, netns::Host, nlb::header, origin::Manner, relay::Relay, stream::End},
};

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        claim(
            "header_split_anywhere_is_taken",
            header_split_anywhere_is_taken,
        ),
        claim(
            "every_vector_is_taken_in_pieces_and_glued_to_payload",
            every_vector_is_taken_in_pieces_and_glued_to_payload,
        ),
        claim(
            "header_of_the_greatest_length_is_taken",
            header_of_the_greatest_length_is_taken,
        ),
        claim(
            "malformed_headers_are_reset_by_name_and_harm_nobody",
            malformed_headers_are_reset_by_name_and_harm_nobody,
        ),
        claim("unusual_headers_are_taken", unusual_headers_are_taken),
        claim(
            "wrong_crc_is_taken_where_it_is_ignored",
            wrong_crc_is_taken_where_it_is_ignored,
        ),
        claim(
            "local_is_a_health_check_and_opens_nothing",
            local_is_a_health_check_and_opens_nothing,
        ),
        claim(
            "connections_without_a_byte_are_counted_and_not_logged",
            connections_without_a_byte_are_counted_and_not_logged,
        ),
        claim("second_header_is_payload", second_header_is_payload),
        claim(
            "untrusted_peer_is_reset_before_a_byte_is_read",
            untrusted_peer_is_reset_before_a_byte_is_read,
        ),
        claim(
            "silence_and_dawdling_have_bounds_of_their_own",
            silence_and_dawdling_have_bounds_of_their_own,
        ),
        claim(
            "server_speaks_first_when_the_header_comes_alone",
            server_speaks_first_when_the_header_comes_alone,
        ),
        claim(
            "too_many_silent_connections_cost_the_oldest",
            too_many_silent_connections_cost_the_oldest,
        ),
        claim(
            "without_headers_the_first_byte_is_payload",
            without_headers_the_first_byte_is_payload,
        ),
        claim(
            "ipv6_and_ipv4_share_a_listener",
            ipv6_and_ipv4_share_a_listener,
        ),
    ]
}

/// Sends these pieces, each a segment, then a stream of `n` bytes that must come back, then a FIN.
async fn echoed(pieces: &[&[u8]], n: u64) {
    let mut agent = Agent::connect(listener()).await.unwrap();
    agent.preface(pieces).await.unwrap();
    echoes(&mut agent, n).await;
}

async fn echoes(agent: &mut Agent, n: u64) {
    agent.exchange(n).await.unwrap();
    agent.finish().unwrap();
    assert_eq!(agent.expect_to_end(0).await.unwrap(), End::Fin);
}

/// Sends these bytes and finds the connection reset with nothing sent back.
async fn is_reset(bytes: Vec<u8>) {
    let mut agent = Agent::connect(listener()).await.unwrap();
    let _ = agent.preface(&[&bytes]).await; // the reset may come while we still write
    assert_eq!(agent.read_to_end().await.unwrap(), (Vec::new(), End::Reset));
}

fn header_errors(relay: &Relay, error: &str) -> u64 {
    relay.metric("tollgate_header_errors_total", &[("error", error)])
}

/// A hundred pieces, each waiting for its acknowledgement, take longer than `header_timeout` where other tests have the processor.
fn patient() -> Start {
    shipped_with("header_timeout = \"60s\"")
}

fn header_split_anywhere_is_taken() {
    let world = World::with("split", Manner::Echo, patient());
    let header = privatelink_header(ENDPOINT);
    let length = header.len() as u64;
    world.node.run(async move {
        let bytes: Vec<&[u8]> = header.chunks(1).collect();
        echoed(&bytes, 1000).await;
        for cut in 1..header.len() {
            let (first, rest) = header.split_at(cut);
            echoed(&[first, rest], 1000).await;
        }
        echoed(&[&header[..7], &header[7..30], &header[30..]], 1000).await;
    });
    let connections = length - 1 + 2;
    world.wait_closed("completed", connections);
    assert_eq!(world.booked(ENDPOINT, "to_upstream"), connections * 1000);
    assert_eq!(world.booked(ENDPOINT, "to_client"), connections * 1000);
    assert_eq!(world.origin.books().received, connections * 1000);
    world.assert_at_rest();
}

fn every_vector_is_taken_in_pieces_and_glued_to_payload() {
    let world = World::with("vectors", Manner::Echo, patient());
    for (vector, id) in [
        (raw_header::PRIVATELINK_TCP4, "vpce-08d2bf15fac5001c9"),
        (raw_header::SYNTHETIC_TCP6, "vpce-0123456789abcdef0"),
    ] {
        let header = raw_header::from_hex(vector);
        world.node.run(async move {
            let bytes: Vec<&[u8]> = header.chunks(1).collect();
            echoed(&bytes, 5000).await;
            let mut agent = Agent::connect(listener()).await.unwrap();
            let glued = [&header[..], b"and payload behind it"].concat();
            agent.preface(&[&glued]).await.unwrap();
            agent.finish().unwrap();
            assert_eq!(
                agent.read_to_end().await.unwrap(),
                (b"and payload behind it".to_vec(), End::Fin)
            );
        });
        let opened = || {
            world
                .relay
                .metric("tollgate_connections_opened_total", &[("endpoint", id)])
        };
        assert_eq!(opened(), 2);
        world
            .relay
            .wait_until("both are closed", || world.booked(id, "to_client") == 5021);
        assert_eq!(world.booked(id, "to_upstream"), 5021);
    }
    world
        .node
        .run(is_reset(raw_header::from_hex(raw_header::DIRECT_UDP4)));
    assert_eq!(header_errors(&world.relay, "family"), 1);
    world.assert_at_rest();
}

fn header_of_the_greatest_length_is_taken() {
    let world = World::new("longest", Manner::Echo);
    let padded = |length: usize| {
        let used = endpoint(ENDPOINT.as_bytes());
        let padding = vec![0; length - 16 - 12 - used.len() - 3];
        raw_header::tcp4(&[used, tlv(0x04, &padding)].concat())
    };
    let (exact, above) = (padded(4096), padded(4097));
    world.node.run(async move {
        echoed(&[&exact], 1000).await;
        echoed(&[&exact[..1448], &exact[1448..2896], &exact[2896..]], 1000).await;
        is_reset(above).await;
    });
    assert_eq!(header_errors(&world.relay, "too_long"), 1);
    world.wait_closed("completed", 2);
    world.assert_at_rest();
}

fn malformed_headers_are_reset_by_name_and_harm_nobody() {
    let start = shipped().replace("[health]", "workers = 2\n[health]");
    let world = World::with("malformed", Manner::Echo, start);
    let good = privatelink_header(ENDPOINT);
    let with = |at: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[at] = byte;
        bytes
    };
    let ids: Vec<Vec<u8>> = [
        &b""[..],
        b"a\nb",
        b"a\0",
        b"\xff\xfe",
        b"a b",
        b"direct",
        b"overflow",
        b"other",
        &[b'a'; 65],
    ]
    .iter()
    .map(|id| raw_header::tcp4(&endpoint(id)))
    .collect();
    let malformed: Vec<(&str, Vec<Vec<u8>>)> = vec![
        (
            "not_proxy",
            vec![
                b"GET / HTTP/1.1\r\nHost: a\r\n\r\n".to_vec(),
                b"\x16\x03\x01".to_vec(),
                vec![0; 100],
            ],
        ),
        (
            "not_v2",
            vec![b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\nhello".to_vec()],
        ),
        ("version", vec![with(12, 0x11), with(12, 0x31)]),
        ("command", vec![with(12, 0x22), with(12, 0x2f)]),
        (
            "family",
            vec![
                with(13, 0x12),
                with(13, 0x22),
                with(13, 0x32),
                with(13, 0x10),
                with(13, 0x41),
            ],
        ),
        (
            "length",
            vec![
                raw_header::of(0x21, 0x11, &[0; 11]),
                raw_header::of(0x21, 0x21, &[0; 35]),
                raw_header::of(0x21, 0x31, &[0; 215]),
            ],
        ),
        (
            "tlv",
            vec![
                raw_header::tcp4(&[0x04]),
                raw_header::tcp4(&[0x04, 0]),
                raw_header::tcp4(&[0x04, 0, 9, 1]),
            ],
        ),
        ("crc", vec![with(20, 1), with(99, 1)]),
        ("endpoint_id", ids),
        (
            "duplicate_endpoint",
            vec![raw_header::tcp4(
                &[endpoint(b"vpce-1"), endpoint(b"vpce-1")].concat(),
            )],
        ),
    ];
    for (error, headers) in malformed {
        let n = headers.len() as u64;
        world.node.run(async move {
            for header in headers {
                is_reset(header).await;
            }
            echoed(&[&privatelink_header(ENDPOINT)], 100).await;
        });
        assert_eq!(header_errors(&world.relay, error), n, "{error}");
    }
    assert_eq!(
        world.origin.books().accepted,
        10,
        "nothing of the refused ones went upstream"
    );
    let lines = world.relay.log_lines("connection refused");
    assert!(
        (1..=10).contains(&lines.len()),
        "five for each of two workers: {lines:#?}"
    );
    assert!(
        lines[0].contains("10.20.0.10"),
        "the peer is named: {}",
        lines[0]
    );
    world.wait_closed("completed", 10);
    world.assert_at_rest();
}

fn unusual_headers_are_taken() {
    let world = World::new("unusual", Manner::Echo);
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("direct", raw_header::tcp4(&[])),
        ("direct", raw_header::tcp4(&tlv(0xEA, b"\x02vpce-not-this"))),
        ("direct", raw_header::tcp4(&tlv(0xEA, b""))),
        (
            "vpce-unix",
            raw_header::of(
                0x21,
                0x31,
                &[&[7; 216][..], &endpoint(b"vpce-unix")].concat(),
            ),
        ),
        (
            "vpce-unspec",
            raw_header::of(0x21, 0x00, &endpoint(b"vpce-unspec")),
        ),
        (
            "vpce-known",
            raw_header::tcp4(
                &[
                    tlv(0xE5, b"own"),
                    endpoint(b"vpce-known"),
                    tlv(0x04, b""),
                    tlv(0xEE, &[9; 300]),
                ]
                .concat(),
            ),
        ),
        (
            "vpce-0e2ee57a",
            raw_header::tcp4(&with_crc(&endpoint(b"vpce-0e2ee57a"))),
        ),
    ];
    for (id, header) in cases {
        let before = world.booked(id, "to_client");
        world.node.run(async move { echoed(&[&header], 77).await });
        world
            .relay
            .wait_until(id, || world.booked(id, "to_client") == before + 77);
    }
    world.assert_at_rest();
}

fn wrong_crc_is_taken_where_it_is_ignored() {
    let world = World::with("nocrc", Manner::Echo, shipped_with("crc = \"ignore\""));
    let mut header = privatelink_header(ENDPOINT);
    header[20] ^= 1;
    world.node.run(async move { echoed(&[&header], 100).await });
    world.wait_closed("completed", 1);
    world.assert_at_rest();
}

fn local_is_a_health_check_and_opens_nothing() {
    let world = World::new("local", Manner::Echo);
    world.node.run(async {
        // A TCP check with a header, an HTTP check glued to it, and one in pieces behind it.
        let mut agent = Agent::connect(listener()).await.unwrap();
        agent.preface(&[&header::health_check()]).await.unwrap();
        agent.finish().unwrap();
        assert_eq!(agent.read_to_end().await.unwrap(), (Vec::new(), End::Fin));
        let request = b"GET /anything HTTP/1.1\r\nHost: 10.20.0.2\r\n\r\n";
        for pieces in [
            vec![[&header::health_check(), &request[..]].concat()],
            vec![
                header::health_check(),
                request[..9].to_vec(),
                request[9..].to_vec(),
            ],
        ] {
            let mut agent = Agent::connect(listener()).await.unwrap();
            agent
                .preface(&pieces.iter().map(Vec::as_slice).collect::<Vec<_>>())
                .await
                .unwrap();
            let (answer, end) = agent.read_to_end().await.unwrap();
            let answer = String::from_utf8_lossy(&answer).into_owned();
            assert!(
                answer.starts_with("HTTP/1.1 200") && end == End::Fin,
                "{answer}"
            );
        }
        let mut wrong = header::health_check();
        wrong[99] = 1;
        is_reset(wrong).await;
        // An endpoint in a LOCAL header means nothing.
        let mut agent = Agent::connect(listener()).await.unwrap();
        agent
            .preface(&[&raw_header::of(0x20, 0x11, &endpoint(b"vpce-1"))])
            .await
            .unwrap();
        agent.finish().unwrap();
        assert_eq!(agent.read_to_end().await.unwrap(), (Vec::new(), End::Fin));
    });
    world
        .relay
        .wait_metric("tollgate_health_checks_total", &[], 4);
    assert_eq!(header_errors(&world.relay, "crc"), 1);
    assert_eq!(
        world.relay.metric("tollgate_connections_opened_total", &[]),
        0
    );
    assert_eq!(world.origin.books().accepted, 0);
    world.assert_at_rest();
}

fn connections_without_a_byte_are_counted_and_not_logged() {
    let world = World::new("empty", Manner::Echo);
    let lines = || world.relay.log_lines("").len();
    let before = lines();
    world.node.run(async {
        for _ in 0..50 {
            let mut agent = Agent::connect(listener()).await.unwrap();
            agent.finish().unwrap();
            assert_eq!(agent.read_to_end().await.unwrap(), (Vec::new(), End::Fin));
            Agent::connect(listener()).await.unwrap().reset();
        }
    });
    world
        .relay
        .wait_metric("tollgate_empty_connections_total", &[], 100);
    assert_eq!(lines(), before);
    assert_eq!(world.relay.metric("tollgate_header_errors_total", &[]), 0);
    world.assert_at_rest();
}

fn second_header_is_payload() {
    let world = World::new("second", Manner::Echo);
    let second = privatelink_header("vpce-0000000000000000f");
    world.node.run(async move {
        let mut agent = Agent::connect(listener()).await.unwrap();
        let both = [privatelink_header(ENDPOINT), second.clone()].concat();
        agent.preface(&[&both]).await.unwrap();
        agent.finish().unwrap();
        assert_eq!(agent.read_to_end().await.unwrap(), (second, End::Fin));
    });
    world.wait_closed("completed", 1);
    assert_eq!(
        world
            .relay
            .metrics()
            .label_values("tollgate_bytes_total", "endpoint"),
        [ENDPOINT]
    );
    world.assert_at_rest();
}

fn untrusted_peer_is_reset_before_a_byte_is_read() {
    let world = World::new("untrusted", Manner::Echo);
    world.node.address("eth0", "192.0.2.10/24");
    world.relay_host.address("eth0", "192.0.2.2/24");
    world.node.run(async {
        let to = "192.0.2.2:8443".parse().unwrap();
        assert_eq!(Agent::outcome(to).await.unwrap(), (Vec::new(), End::Reset));
        echoed(&[&privatelink_header(ENDPOINT)], 10).await;
    });
    assert_eq!(header_errors(&world.relay, "untrusted"), 1);
    assert_eq!(world.origin.books().accepted, 1);
    world.wait_closed("completed", 1);
    world.assert_at_rest();
}

fn silence_and_dawdling_have_bounds_of_their_own() {
    let keys = "first_byte_timeout = \"2s\"\nheader_timeout = \"300ms\"";
    let world = World::with("timers", Manner::Echo, shipped_with(keys));
    world.node.run(async {
        let mut silent = Agent::connect(listener()).await.unwrap();
        let mut late = Agent::connect(listener()).await.unwrap();
        let mut dawdler = Agent::connect(listener()).await.unwrap();
        dawdler
            .preface(&[&privatelink_header(ENDPOINT)[..99]])
            .await
            .unwrap();
        assert_eq!(
            dawdler.read_to_end().await.unwrap(),
            (Vec::new(), End::Reset)
        );
        let mut half = Agent::connect(listener()).await.unwrap();
        half.preface(&[&privatelink_header(ENDPOINT)[..50]])
            .await
            .unwrap();
        half.finish().unwrap();
        assert_eq!(half.read_to_end().await.unwrap(), (Vec::new(), End::Reset));
        // Time itself is tested: longer than header_timeout, shorter than first_byte_timeout.
        tokio::time::sleep(Duration::from_millis(600)).await;
        late.preface(&[&privatelink_header(ENDPOINT)])
            .await
            .unwrap();
        echoes(&mut late, 100).await;
        assert_eq!(
            silent.read_to_end().await.unwrap(),
            (Vec::new(), End::Reset)
        );
    });
    for (error, n) in [
        ("first_byte_timeout", 1),
        ("header_timeout", 1),
        ("closed_early", 1),
    ] {
        assert_eq!(header_errors(&world.relay, error), n, "{error}");
    }
    world.wait_closed("completed", 1);
    world.assert_at_rest();
}

fn server_speaks_first_when_the_header_comes_alone() {
    let world = World::new("banner", Manner::Banner("220 ready\r\n".to_owned()));
    world.node.run(async {
        let mut agent = connected(ENDPOINT).await.unwrap();
        assert_eq!(agent.read(11).await.unwrap(), b"220 ready\r\n");
        agent.write(b"HELO").await.unwrap();
        assert_eq!(agent.read(4).await.unwrap(), b"HELO");
        agent.finish().unwrap();
        assert_eq!(agent.read_to_end().await.unwrap(), (Vec::new(), End::Fin));
    });
    world.wait_closed("completed", 1);
    world.assert_at_rest();
}

fn too_many_silent_connections_cost_the_oldest() {
    let start = shipped_with("max_pending = 10").replace("[health]", "workers = 1\n[health]");
    let world = World::with("pending", Manner::Echo, start);
    world.node.run(async {
        let mut spoke = Agent::connect(listener()).await.unwrap();
        spoke
            .preface(&[&privatelink_header(ENDPOINT)[..40]])
            .await
            .unwrap();
        let mut silent = Vec::new();
        for _ in 0..12 {
            silent.push(Agent::connect(listener()).await.unwrap());
        }
        for agent in &mut silent[..3] {
            assert_eq!(agent.read_to_end().await.unwrap(), (Vec::new(), End::Reset));
        }
        spoke
            .preface(&[&privatelink_header(ENDPOINT)[40..]])
            .await
            .unwrap();
        echoes(&mut spoke, 100).await;
        for mut agent in silent.into_iter().skip(3) {
            agent
                .preface(&[&privatelink_header(ENDPOINT)])
                .await
                .unwrap();
            echoes(&mut agent, 100).await;
        }
    });
    assert_eq!(
        world
            .relay
            .metric("tollgate_refused_total", &[("reason", "pending")]),
        3
    );
    world.wait_closed("completed", 10);
    world.assert_at_rest();
}

fn without_headers_the_first_byte_is_payload() {
    let start = shipped_with("proxy_protocol = \"off\"");
    let world = World::with("off", Manner::Echo, start);
    world.node.run(async {
        let mut agent = Agent::connect(listener()).await.unwrap();
        let header = privatelink_header(ENDPOINT);
        agent.preface(&[&header]).await.unwrap();
        agent.finish().unwrap();
        assert_eq!(agent.read_to_end().await.unwrap(), (header, End::Fin));
    });
    world.wait_closed("completed", 1);
    assert_eq!(world.booked("direct", "to_upstream"), 100);
    world.assert_at_rest();
}

fn ipv6_and_ipv4_share_a_listener() {
    let start = shipped_with("")
        .replace("0.0.0.0:8443", "[::]:8443")
        .replace(
            "trusted_peers = [\"10.20.0.0/16\"]",
            "trusted_peers = [\"10.20.0.0/16\", \"fd00:20::/32\"]",
        );
    let world = World::with("dual", Manner::Echo, start);
    let address = |host: &Host, address: &str| {
        host.ip(&format!("-6 address add {address} dev eth0 nodad"));
    };
    address(&world.node, "fd00:20::10/64");
    address(&world.relay_host, "fd00:20::2/64");
    world.node.run(async {
        for to in ["10.20.0.2:8443", "[fd00:20::2]:8443"] {
            let to: SocketAddr = to.parse().unwrap();
            let mut agent = Agent::connect(to).await.unwrap();
            agent
                .preface(&[&raw_header::from_hex(raw_header::SYNTHETIC_TCP6)])
                .await
                .unwrap();
            echoes(&mut agent, 100).await;
        }
    });
    world.wait_closed("completed", 2);
    world.assert_at_rest();
}
