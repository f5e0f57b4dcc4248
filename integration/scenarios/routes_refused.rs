//! Issue C, item 7: what a client may say first that chooses no route, and what bounds the looking.

use libtest_mimic::Trial;

use super::{
    hello,
    routes::{peeks, routed},
    world::{ENDPOINT, World, connected, listener, privatelink_header},
};
use crate::{
    claim,
    harness::{agent::Agent, origin::Manner, relay::Signal, stream::End},
};

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        claim(
            "first_bytes_that_name_no_host_for_sure_are_refused",
            first_bytes_that_name_no_host_for_sure_are_refused,
        ),
        claim(
            "looking_for_a_name_ends_in_time",
            looking_for_a_name_ends_in_time,
        ),
        claim(
            "head_of_64_kib_is_routed_where_peek_size_allows_it",
            head_of_64_kib_is_routed_where_peek_size_allows_it,
        ),
        claim(
            "whoever_is_looked_at_keeps_its_place_in_the_waiting_room",
            whoever_is_looked_at_keeps_its_place_in_the_waiting_room,
        ),
        claim(
            "whoever_is_looked_at_is_told_when_the_relay_goes",
            whoever_is_looked_at_is_told_when_the_relay_goes,
        ),
    ]
}

const ROUTES: &str = r#"
upstream = "control-plane"
routes = [
  { sni = "a.example", upstream = "control-plane" },
  { host = "*.example", upstream = "control-plane" },
]"#;

/// Says this behind a header and finds the connection reset with nothing sent back.
async fn is_reset(said: Vec<u8>) {
    let mut agent = connected(ENDPOINT).await.unwrap();
    let _ = agent.write(&said).await; // the reset may come while we still write
    assert_eq!(agent.read_to_end().await.unwrap(), (Vec::new(), End::Reset));
}

/// Says this behind a header and finds that it comes back.
async fn comes_back(said: &[u8]) {
    let mut agent = connected(ENDPOINT).await.unwrap();
    agent.write(said).await.unwrap();
    agent.finish().unwrap();
    let (back, end) = agent.read_to_end().await.unwrap();
    assert!(back == said && end == End::Fin, "{} bytes", back.len());
}

const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n";

/// A head of so many bytes.
fn head_of(length: usize) -> Vec<u8> {
    let (before, behind) = ("GET / HTTP/1.1\r\nHost: a.example\r\nA: ", "\r\n\r\n");
    let value = "b".repeat(length - before.len() - behind.len());
    format!("{before}{value}{behind}").into_bytes()
}

fn first_bytes_that_name_no_host_for_sure_are_refused() {
    let world = World::with("unsure", Manner::Echo, routed(ROUTES));
    let head = |fields: &str| format!("GET / HTTP/1.1\r\n{fields}\r\n").into_bytes();
    let named = |name: &[u8]| hello::of(&hello::server_name(name));
    let twice = [
        hello::server_name(b"a.example"),
        hello::server_name(b"a.example"),
    ];
    let mut broken = named(b"a.example");
    broken[5] = 2; // a ServerHello
    let cases: Vec<(&str, Vec<Vec<u8>>)> = vec![
        (
            "malformed",
            vec![
                named(&[b'a'; 300]),
                named(b""),
                named(b"a..example"),
                named(b"a.example\0"),
                hello::of(&twice.concat()),
                hello::of(&hello::extension(0, b"")),
                broken,
                b"\x16\x03\x01\0\0".to_vec(),
                b"\x16\x03\x01\xff\xff".to_vec(),
                head("Host: a.example\r\n .evil\r\n"),
                head("Host : a.example\r\n"),
                head("Host: a.example, b.example\r\n"),
                head("A: b\0\r\nHost: a.example\r\n"),
                b"GET a.example HTTP/1.1\r\nHost: a.example\r\n\r\n".to_vec(),
            ],
        ),
        (
            "two_hosts",
            vec![
                head("Host: a.example\r\nHost: b.example\r\n"),
                head("Host: a.example\r\nhost: a.example\r\n"),
            ],
        ),
        (
            "too_long",
            vec![
                head_of(64 * 1024),
                head_of(32 * 1024 + 1),
                head(&"A: b\r\n".repeat(129)),
            ],
        ),
    ];
    let mut refused = 0;
    for (outcome, all) in cases {
        let n = all.len() as u64;
        refused += n;
        world.node.run(async move {
            for said in all {
                is_reset(said).await;
            }
            comes_back(REQUEST).await;
        });
        assert_eq!(peeks(&world, outcome), n, "{outcome}");
    }
    // It ends before it said enough, one way or the other.
    world.node.run(async {
        for said in [
            &b"\x16\x03\x01"[..],
            b"GET / HTTP/1.1\r\nHost: a.example\r\n",
        ] {
            let mut agent = connected(ENDPOINT).await.unwrap();
            agent.write(said).await.unwrap();
            agent.finish().unwrap();
            assert_eq!(agent.read_to_end().await.unwrap(), (vec![], End::Reset));
            let mut agent = connected(ENDPOINT).await.unwrap();
            agent.write(said).await.unwrap();
            agent.reset_after_delivery().await;
        }
        comes_back(REQUEST).await;
    });
    let closed_early = [("outcome", "closed_early")];
    world
        .relay
        .wait_metric("tollgate_peeks_total", &closed_early, 4);
    world.wait_closed("completed", 4);
    assert_eq!(world.origin.books().accepted, 4, "nothing of the others");
    assert_eq!(
        world
            .relay
            .metric("tollgate_refused_total", &[("reason", "no_route")]),
        refused + 4
    );
    let lines = world.relay.log_lines("turned away");
    let workers = world
        .relay
        .metrics()
        .label_values("tollgate_worker_connections", "worker")
        .len();
    assert!(
        (1..=5 * workers).contains(&lines.len()),
        "five for each worker: {lines:#?}"
    );
    assert!(
        ["no_route", "malformed", "10.20.0.10", ENDPOINT]
            .iter()
            .all(|part| lines[0].contains(part)),
        "{}",
        lines[0]
    );
    world.assert_at_rest();
}

fn looking_for_a_name_ends_in_time() {
    let start = routed(&format!("peek_timeout = \"300ms\"\n{ROUTES}"));
    let world = World::with("patience", Manner::Echo, start);
    world.node.run(async {
        // Silent behind the header, and in the middle of a head.
        is_reset(Vec::new()).await;
        is_reset(REQUEST[..20].to_vec()).await;
        comes_back(REQUEST).await;
    });
    assert_eq!(peeks(&world, "timeout"), 2);
    assert_eq!(world.origin.wait_over(1).accepted, 1);
    world.wait_closed("completed", 1);
    world.assert_at_rest();
}

fn head_of_64_kib_is_routed_where_peek_size_allows_it() {
    let start = routed(&format!("peek_size = \"64KiB\"\n{ROUTES}"));
    let world = World::with("longhead", Manner::Echo, start);
    world.node.run(async {
        comes_back(&head_of(64 * 1024)).await;
        let followed = [head_of(64 * 1024), vec![7; 100_000]].concat();
        comes_back(&followed).await;
        is_reset(head_of(64 * 1024 + 1)).await;
    });
    assert_eq!([peeks(&world, "host"), peeks(&world, "too_long")], [2, 1]);
    world.wait_closed("completed", 2);
    let bytes = 2 * 64 * 1024 + 100_000;
    assert_eq!(world.booked(ENDPOINT, "to_upstream"), bytes);
    world.assert_at_rest();
}

fn whoever_is_looked_at_keeps_its_place_in_the_waiting_room() {
    let keys = "max_pending = 10\npeek_timeout = \"60s\"";
    let start = routed(&format!("{keys}\n{ROUTES}")).replace("[health]", "workers = 1\n[health]");
    let world = World::with("looked", Manner::Echo, start);
    let half_said = |n: usize| {
        world.node.run(async move {
            let mut agents = Vec::new();
            for _ in 0..n {
                let mut agent = Agent::connect(listener()).await.unwrap();
                let glued = [&privatelink_header(ENDPOINT), &REQUEST[..20]].concat();
                agent.write(&glued).await.unwrap();
                agents.push(agent);
            }
            agents
        })
    };
    let first = half_said(10);
    let pending = |n| {
        world
            .relay
            .wait_metric("tollgate_connections_pending", &[], n);
    };
    pending(10);
    let more = half_said(3);
    let refused = [("reason", "pending")];
    world
        .relay
        .wait_metric("tollgate_refused_total", &refused, 3);
    pending(10);
    let served = world.node.run(async move {
        let mut served = 0;
        for mut agent in first.into_iter().chain(more) {
            let _ = agent.write(&REQUEST[20..]).await; // it may have been reset
            let _ = agent.finish();
            // One that was reset may have told so to the write already.
            let (back, _) = agent.read_to_end().await.unwrap();
            assert!(back.is_empty() || back == REQUEST);
            served += usize::from(back == REQUEST);
        }
        served
    });
    assert_eq!(served, 10);
    pending(0);
    world.wait_closed("completed", 10);
    world.assert_at_rest();
}

fn whoever_is_looked_at_is_told_when_the_relay_goes() {
    let start = routed(&format!("peek_timeout = \"60s\"\n{ROUTES}"));
    let drain = "[drain]\naccept_for = \"0s\"\ndeadline = \"0s\"\n\n[health]\n";
    let world = World::with("going", Manner::Echo, start.replace("[health]\n", drain));
    let mut agent = world.node.run(async {
        let mut agent = connected(ENDPOINT).await.unwrap();
        agent.write(&REQUEST[..20]).await.unwrap();
        agent
    });
    world
        .relay
        .wait_metric("tollgate_connections_pending", &[], 1);
    world.relay.signal(Signal::TERM);
    world.node.run(async move {
        assert_eq!(agent.read_to_end().await.unwrap(), (vec![], End::Reset));
    });
    assert_eq!(world.relay.wait_exit(), 0);
}
