//! Issue C, item 7: which upstream a connection goes to, and what is done with the bytes that say so.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
};

use libtest_mimic::Trial;
use tokio::net::TcpStream;
use tokio_rustls::rustls::{ClientConfig, ClientConnection, pki_types::ServerName};

use super::{
    hello, raw_header,
    world::{ENDPOINT, ORIGIN, World, connected, listener, privatelink_header, shipped},
};
use crate::{
    claim,
    harness::{
        BOUND,
        agent::Agent,
        nlb::header,
        origin::{Manner, Origin},
        relay::Start,
        stream::{self, End},
        tls::{Identity, Terminator},
    },
};

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        claim(
            "routes_by_endpoint_and_network_read_no_byte",
            routes_by_endpoint_and_network_read_no_byte,
        ),
        claim(
            "tls_goes_by_its_name_however_the_hello_is_split",
            tls_goes_by_its_name_however_the_hello_is_split,
        ),
        claim(
            "http_goes_by_its_host_and_is_passed_on_untouched",
            http_goes_by_its_host_and_is_passed_on_untouched,
        ),
        claim(
            "head_split_anywhere_is_routed",
            head_split_anywhere_is_routed,
        ),
        claim(
            "what_no_route_takes_goes_to_the_rest_or_nowhere",
            what_no_route_takes_goes_to_the_rest_or_nowhere,
        ),
        claim(
            "without_headers_routes_go_by_host_and_checks_are_no_clients",
            without_headers_routes_go_by_host_and_checks_are_no_clients,
        ),
    ]
}

/// Where the upstreams `logs` and `metrics` are.
const LOGS: &str = "10.30.0.2:1001";
const METRICS: &str = "10.30.0.2:1002";

/// The shipped configuration with two upstreams more, and these keys in its listener in place of its upstream.
pub(super) fn routed(listener: &str) -> Start {
    let upstream =
        |name: &str, at: &str| format!("\n[[upstream]]\nname = \"{name}\"\ntargets = [\"{at}\"]\n");
    let more = upstream("logs", LOGS) + &upstream("metrics", METRICS);
    shipped()
        .replace("upstream = \"control-plane\"\n", &format!("{listener}\n"))
        .replace(
            "[[upstream]]\nname = \"control-plane\"\n",
            &format!("{more}[[upstream]]\nname = \"control-plane\"\n"),
        )
}

/// The origins of `logs` and `metrics` beside the world's own.
struct Others {
    logs: Origin,
    metrics: Origin,
}

impl Others {
    #[track_caller]
    fn start(world: &World, manner: impl Fn(&str) -> Manner) -> Self {
        Self {
            logs: Origin::start(&world.origin_host, LOGS, manner("logs")),
            metrics: Origin::start(&world.origin_host, METRICS, manner("metrics")),
        }
    }
}

pub(super) fn peeks(world: &World, outcome: &str) -> u64 {
    world
        .relay
        .metric("tollgate_peeks_total", &[("outcome", outcome)])
}

fn opened(world: &World, upstream: &str) -> u64 {
    world.relay.metric(
        "tollgate_connections_opened_total",
        &[("upstream", upstream)],
    )
}

fn routes_by_endpoint_and_network_read_no_byte() {
    let world = World::with(
        "ways",
        Manner::Banner("control-plane\n".to_owned()),
        routed(
            r#"
upstream = "control-plane"
routes = [
  { endpoint = "vpce-0a*", network = "10.1.0.0/16", upstream = "logs" },
  { endpoint = "direct", upstream = "metrics" },
  { network = "2001:db8:1::/48", upstream = "metrics" },
  { network = "10.2.0.0/16", sni = "a.example", upstream = "logs" },
]"#,
        ),
    );
    let others = Others::start(&world, |name| Manner::Banner(format!("{name}\n")));
    let to = "10.9.0.1:443";
    for (from, to, endpoint, goes) in [
        ("10.1.0.7:1", to, Some("vpce-0a1"), "logs"),
        ("10.3.0.7:1", to, Some("vpce-0a1"), "control-plane"),
        ("10.1.0.7:1", to, Some("vpce-0b1"), "control-plane"),
        ("10.1.0.7:1", to, None, "metrics"),
        (
            "[2001:db8:1::7]:1",
            "[2001:db8::1]:443",
            Some("vpce-0b1"),
            "metrics",
        ),
        (
            "[2001:db8:2::7]:1",
            "[2001:db8::1]:443",
            Some("vpce-0b1"),
            "control-plane",
        ),
    ] {
        let header = header::proxy(address(from), address(to), endpoint);
        goes_to(&world, header, goes);
    }
    // An IPv4 client, written as IPv6.
    let mapped = |ip: &str| ip.parse::<Ipv4Addr>().unwrap().to_ipv6_mapped().octets();
    let addresses = [mapped("10.1.0.7"), mapped("10.9.0.1")].concat();
    let body = [
        &addresses[..],
        &[0, 1, 1, 0xBB],
        &raw_header::endpoint(b"vpce-0a1"),
    ]
    .concat();
    goes_to(&world, raw_header::of(0x21, 0x21, &body), "logs");
    world.wait_closed("completed", 7);
    assert_eq!(world.relay.metric("tollgate_peeks_total", &[]), 0);
    assert_eq!(others.logs.books().accepted, 2);
    assert_eq!(others.metrics.books().accepted, 2);
    assert_eq!(
        ["logs", "metrics", "control-plane"].map(|upstream| opened(&world, upstream)),
        [2, 2, 3]
    );
    world.assert_at_rest();
}

/// A client with this header says nothing and hears this upstream's name.
#[track_caller]
fn goes_to(world: &World, header: Vec<u8>, upstream: &'static str) {
    world.node.run(async move {
        let mut agent = Agent::connect(listener()).await.unwrap();
        agent.preface(&[&header]).await.unwrap();
        // Whoever waited for a byte of the client would wait in vain.
        let line = agent.read(upstream.len() + 1).await.unwrap();
        assert_eq!(line, format!("{upstream}\n").into_bytes());
        agent.finish().unwrap();
        assert_eq!(agent.read_to_end().await.unwrap(), (Vec::new(), End::Fin));
    });
}

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// Shakes hands over a connection that has begun, and finds that what it says comes back. The hello goes out in these pieces.
async fn speaks_tls(
    pieces: impl Fn(&[u8]) -> Vec<Vec<u8>>,
    config: Arc<ClientConfig>,
    name: &str,
) -> io::Result<()> {
    let name = ServerName::try_from(name.to_owned()).map_err(io::Error::other)?;
    let mut tls = ClientConnection::new(config, name).map_err(io::Error::other)?;
    let mut hello = Vec::new();
    while tls.wants_write() {
        tls.write_tls(&mut hello)?;
    }
    let mut agent = connected(ENDPOINT).await?;
    let pieces = pieces(&hello);
    let pieces: Vec<&[u8]> = pieces.iter().map(Vec::as_slice).collect();
    agent.write_segments(&pieces).await?;
    let said = vec![0x5A; 20_000];
    io::Write::write_all(&mut tls.writer(), &said)?;
    let talk = async {
        let mut heard = Vec::new();
        while heard.len() < said.len() {
            turn(agent.stream(), &mut tls, &mut heard).await?;
        }
        assert!(heard == said, "what came back is what was said");
        tls.send_close_notify();
        write(agent.stream(), &mut tls).await?;
        agent.finish()
    };
    stream::within(BOUND, talk).await
}

/// Writes what is to be written, reads once.
async fn turn(
    stream: &TcpStream,
    tls: &mut ClientConnection,
    heard: &mut Vec<u8>,
) -> io::Result<()> {
    write(stream, tls).await?;
    let read = stream::read(stream, |mut bytes| {
        while !bytes.is_empty() {
            tls.read_tls(&mut bytes)?;
            let state = tls.process_new_packets().map_err(io::Error::other)?;
            let mut plain = vec![0; state.plaintext_bytes_to_read()];
            io::Read::read_exact(&mut tls.reader(), &mut plain)?;
            heard.extend(plain);
        }
        Ok(())
    });
    read.await?
        .unwrap_or_else(|| Err(io::ErrorKind::UnexpectedEof.into()))
}

async fn write(stream: &TcpStream, tls: &mut ClientConnection) -> io::Result<()> {
    let mut bytes = Vec::new();
    while tls.wants_write() {
        tls.write_tls(&mut bytes)?;
    }
    stream::write(stream, &bytes, |_| ()).await
}

fn tls_goes_by_its_name_however_the_hello_is_split() {
    let routes = r#"
upstream = "control-plane"
peek_timeout = "60s" # each segment waits for its acknowledgement
routes = [
  { sni = "a.logs.example", upstream = "metrics" },
  { sni = "*.logs.example", upstream = "logs" },
]"#;
    let world = World::with("tls", Manner::Echo, routed(routes));
    let names = ["a.logs.example", "b.logs.example"];
    let identity = Identity::new(&names).unwrap();
    let echo: SocketAddr = ORIGIN.parse().unwrap();
    let metrics = Terminator::start(&world.origin_host, METRICS, &identity, echo);
    let logs = Terminator::start(&world.origin_host, LOGS, &identity, echo);
    let small = identity.client();
    let mut large = ClientConfig::clone(&small);
    // Names of protocols that the server does not know fill a hello of more than 16 KiB, which is two records.
    large.alpn_protocols = (0..66_u8).map(|n| vec![b'a' + n % 26; 250]).collect();
    let large = Arc::new(large);

    world.node.run_within(BOUND * 3, async move {
        for name in names {
            speaks_tls(|hello| vec![hello.to_vec()], small.clone(), name)
                .await
                .unwrap();
        }
        for cut in [1, 2, 4, 5, 6, 9, 10, 43, 44, 100, 150] {
            let cut_at = |hello: &[u8]| vec![hello[..cut].to_vec(), hello[cut..].to_vec()];
            speaks_tls(cut_at, small.clone(), "b.logs.example")
                .await
                .unwrap();
        }
        for size in [1, 3, 50, 200] {
            let in_records = |hello: &[u8]| vec![hello::in_records(hello, size)];
            speaks_tls(in_records, small.clone(), "b.logs.example")
                .await
                .unwrap();
            let in_segments = |hello: &[u8]| {
                let records = hello::in_records(hello, size * 7);
                records.chunks(size * 5).map(<[u8]>::to_vec).collect()
            };
            speaks_tls(in_segments, small.clone(), "a.logs.example")
                .await
                .unwrap();
        }
        for size in [usize::MAX, 1448, 4096] {
            let in_segments = |hello: &[u8]| {
                assert!(hello.len() > 16 * 1024);
                hello
                    .chunks(size.min(hello.len()))
                    .map(<[u8]>::to_vec)
                    .collect()
            };
            speaks_tls(in_segments, large.clone(), "b.logs.example")
                .await
                .unwrap();
        }
    });
    let (a, b) = (1 + 4, 1 + 11 + 4 + 3);
    world
        .relay
        .wait_metric("tollgate_connections_active", &[], 0);
    assert_eq!(metrics.books().names["a.logs.example"], a);
    assert_eq!(metrics.books().names.len(), 1);
    assert_eq!(logs.books().names["b.logs.example"], b);
    assert_eq!(logs.books().names.len(), 1);
    assert_eq!(peeks(&world, "sni"), a + b);
    assert_eq!(world.relay.metric("tollgate_peeks_total", &[]), a + b);
    world.assert_at_rest();
}

const BY_HOST: &str = r#"
upstream = "control-plane"
peek_timeout = "60s" # a segment for each byte, and each waits for its acknowledgement
routes = [
  { host = "logs.example", upstream = "logs" },
  { endpoint = "vpce-0a*", host = "*.metrics.example", upstream = "metrics" },
]"#;

/// Says this through an endpoint and finds that it came back as it was, with a FIN right behind it.
async fn comes_back(endpoint: &str, said: &[u8]) {
    let mut agent = Agent::connect(listener()).await.unwrap();
    let glued = [&privatelink_header(endpoint), said].concat();
    agent.write(&glued).await.unwrap();
    ends_with(&mut agent, said).await;
}

/// Finishes, and finds that this is all that came back.
async fn ends_with(agent: &mut Agent, said: &[u8]) {
    agent.finish().unwrap();
    let (back, end) = agent.read_to_end().await.unwrap();
    assert!(
        back == said && end == End::Fin,
        "{} came back of {}, then {end:?}",
        back.escape_ascii(),
        said.escape_ascii()
    );
}

fn http_goes_by_its_host_and_is_passed_on_untouched() {
    let world = World::with("host", Manner::Echo, routed(BY_HOST));
    let others = Others::start(&world, |_| Manner::Echo);
    let heads: Vec<(&str, &str, String)> = [
        (
            "logs",
            ENDPOINT,
            "GET / HTTP/1.1\r\nHost: logs.example\r\n\r\n",
        ),
        (
            "logs",
            ENDPOINT,
            "\r\nPOST /a?b HTTP/1.0\r\nA: b\r\nhOST:\tLOGS.Example.:8080 \r\n\r\nbody\r\nHost: other.example\r\n",
        ),
        (
            "logs",
            ENDPOINT,
            "GET http://logs.example/ HTTP/1.1\r\nHost: a.metrics.example\r\n\r\n",
        ),
        ("logs", ENDPOINT, "CONNECT logs.example:443 HTTP/1.1\r\n\r\n"),
        (
            "metrics",
            "vpce-0a1",
            "GET / HTTP/1.1\r\nHost: a.b.metrics.example\r\n\r\n",
        ),
        (
            "control-plane",
            "vpce-0a1",
            "GET / HTTP/1.1\r\nHost: metrics.example\r\n\r\n",
        ),
        (
            "control-plane",
            ENDPOINT,
            "GET / HTTP/1.1\r\nHost: a.metrics.example\r\n\r\n",
        ),
        (
            "control-plane",
            ENDPOINT,
            "GET / HTTP/1.1\r\nHost: 10.30.0.2\r\n\r\n",
        ),
    ]
    .map(|(upstream, endpoint, head)| (upstream, endpoint, head.to_owned()))
    .into();
    let mut sent = 0;
    for (upstream, endpoint, head) in &heads {
        let (before, endpoint, said) = (
            opened(&world, upstream),
            (*endpoint).to_owned(),
            head.clone(),
        );
        world
            .node
            .run(async move { comes_back(&endpoint, said.as_bytes()).await });
        assert_eq!(opened(&world, upstream), before + 1, "{head}");
        sent += head.len() as u64;
    }
    let n = heads.len() as u64;
    world.wait_closed("completed", n);
    assert_eq!(peeks(&world, "host"), n);
    for direction in ["to_upstream", "to_client"] {
        let booked = world
            .relay
            .metric("tollgate_bytes_total", &[("direction", direction)]);
        assert_eq!(booked, sent, "{direction}");
    }
    assert_eq!(others.logs.books().accepted, 4);
    // Later requests on a connection follow the first, whatever they ask for.
    world.node.run(async {
        let first = "GET / HTTP/1.1\r\nHost: logs.example\r\n\r\n";
        let later = "GET / HTTP/1.1\r\nHost: a.metrics.example\r\n\r\n";
        comes_back("vpce-0a1", format!("{first}{later}").as_bytes()).await;
    });
    assert_eq!(others.logs.wait_over(5).accepted, 5);
    world.assert_at_rest();
}

fn head_split_anywhere_is_routed() {
    let world = World::with("splits", Manner::Echo, routed(BY_HOST));
    let others = Others::start(&world, |_| Manner::Echo);
    let said = b"GET / HTTP/1.1\r\nHost: logs.example\r\n\r\nand a body";
    world.node.run_within(BOUND * 3, async move {
        for cut in 1..said.len() {
            let mut agent = connected(ENDPOINT).await.unwrap();
            agent
                .write_segments(&[&said[..cut], &said[cut..]])
                .await
                .unwrap();
            ends_with(&mut agent, said).await;
        }
        let mut agent = connected(ENDPOINT).await.unwrap();
        let bytes: Vec<&[u8]> = said.chunks(1).collect();
        agent.write_segments(&bytes).await.unwrap();
        ends_with(&mut agent, said).await;
    });
    let n = said.len() as u64;
    world.wait_closed("completed", n);
    assert_eq!(others.logs.books().accepted, n);
    assert_eq!(world.origin.books().accepted, 0);
    world.assert_at_rest();
}

fn what_no_route_takes_goes_to_the_rest_or_nowhere() {
    let routes = r#"routes = [{ sni = "a.example", upstream = "logs" }, { host = "a.example", upstream = "logs" }]"#;
    let rest = format!("upstream = \"control-plane\"\n{routes}");
    // Well-formed, and without a name that a route has.
    let nameless: Vec<(&str, Vec<u8>)> = vec![
        ("sni", hello::of(&hello::server_name(b"b.example"))),
        ("no_sni", hello::of(b"")),
        ("no_sni", hello::of(&hello::server_name(b"10.30.0.2"))),
        (
            "ech",
            hello::of(&[hello::server_name(b"b.example"), hello::encrypted()].concat()),
        ),
        (
            "host",
            b"GET / HTTP/1.1\r\nHost: b.example\r\n\r\n".to_vec(),
        ),
        ("no_host", b"GET / HTTP/1.1\r\nA: b\r\n\r\n".to_vec()),
        ("neither", b"SSH-2.0-client\r\n".to_vec()),
        ("neither", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec()),
        ("neither", b"\0".to_vec()),
        // A header of the client's own is payload, and no name.
        ("neither", privatelink_header("vpce-0000000000000000f")),
    ];
    let n = nameless.len() as u64;

    let world = World::with("rest", Manner::Echo, routed(&rest));
    let others = Others::start(&world, |_| Manner::Echo);
    for (outcome, said) in nameless.clone() {
        let before = peeks(&world, outcome);
        world
            .node
            .run(async move { comes_back(ENDPOINT, &said).await });
        assert_eq!(peeks(&world, outcome), before + 1);
    }
    world.wait_closed("completed", n);
    assert_eq!(world.origin.books().accepted, n);
    assert_eq!(others.logs.books().accepted, 0);
    world.assert_at_rest();

    let world = World::with("nowhere", Manner::Echo, routed(routes));
    let others = Others::start(&world, |_| Manner::Echo);
    for (outcome, said) in nameless {
        let before = peeks(&world, outcome);
        world.node.run(async move {
            let mut agent = Agent::connect(listener()).await.unwrap();
            let glued = [privatelink_header(ENDPOINT), said].concat();
            agent.write(&glued).await.unwrap();
            assert_eq!(agent.read_to_end().await.unwrap(), (vec![], End::Reset));
        });
        assert_eq!(peeks(&world, outcome), before + 1);
    }
    let refused = [("reason", "no_route")];
    world
        .relay
        .wait_metric("tollgate_refused_total", &refused, n);
    assert_eq!(
        world.relay.metric("tollgate_connections_opened_total", &[]),
        0
    );
    let line = &world.relay.log_lines("turned away")[0];
    for part in ["no_route", ENDPOINT, "b.example", "172.31.7.113"] {
        assert!(line.contains(part), "{part} in {line}");
    }
    world.node.run(async {
        comes_back(ENDPOINT, &hello::of(&hello::server_name(b"a.example"))).await;
    });
    assert_eq!(others.logs.wait_over(1).accepted, 1);
    world.assert_at_rest();
}

fn without_headers_routes_go_by_host_and_checks_are_no_clients() {
    let start = routed(
        r#"
proxy_protocol = "off"
upstream = "control-plane"
routes = [{ host = "logs.example", upstream = "logs" }]"#,
    );
    let world = World::with("bare", Manner::Echo, start);
    let others = Others::start(&world, |_| Manner::Echo);
    world.node.run(async {
        for _ in 0..5 {
            let mut agent = Agent::connect(listener()).await.unwrap();
            agent.finish().unwrap();
            assert_eq!(agent.read_to_end().await.unwrap(), (Vec::new(), End::Fin));
            Agent::connect(listener()).await.unwrap().reset();
        }
        let mut agent = Agent::connect(listener()).await.unwrap();
        let said = b"GET / HTTP/1.1\r\nHost: logs.example\r\n\r\n";
        agent.write(said).await.unwrap();
        ends_with(&mut agent, said).await;
    });
    world
        .relay
        .wait_metric("tollgate_empty_connections_total", &[], 10);
    assert_eq!(world.relay.metric("tollgate_refused_total", &[]), 0);
    assert_eq!(world.relay.metric("tollgate_peeks_total", &[]), 1);
    assert_eq!(others.logs.wait_over(1).accepted, 1);
    world.assert_at_rest();
}
