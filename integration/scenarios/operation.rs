//! Starting, stopping and being looked at.

use std::{
    io::Write,
    process::{Command, Output, Stdio},
};

use libtest_mimic::Trial;

use super::{
    raw_header,
    world::{
        ENDPOINT, LISTENER, World, connected, listener, privatelink_header, shipped, shipped_with,
    },
};
use crate::{
    claim,
    harness::{
        agent::Agent,
        nlb::header,
        origin::Manner,
        relay::{self, Signal, Start},
        stream::End,
    },
};

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        claim(
            "terminate_fails_health_at_once_and_accepts_on",
            terminate_fails_health_at_once_and_accepts_on,
        ),
        claim(
            "sessions_finish_before_the_deadline",
            sessions_finish_before_the_deadline,
        ),
        claim(
            "the_deadline_closes_what_is_open",
            the_deadline_closes_what_is_open,
        ),
        claim("a_second_signal_ends_it_now", a_second_signal_ends_it_now),
        claim(
            "interrupt_stops_accepting_at_once",
            interrupt_stops_accepting_at_once,
        ),
        claim(
            "health_port_answers_with_and_without_a_header",
            health_port_answers_with_and_without_a_header,
        ),
        claim(
            "admin_port_survives_slow_and_wrong_clients",
            admin_port_survives_slow_and_wrong_clients,
        ),
        claim(
            "listener_limit_refuses_and_recovers",
            listener_limit_refuses_and_recovers,
        ),
        claim(
            "a_worker_with_more_sessions_passes_new_ones_on",
            a_worker_with_more_sessions_passes_new_ones_on,
        ),
        claim(
            "exit_codes_are_those_of_the_manual",
            exit_codes_are_those_of_the_manual,
        ),
        claim("runs_without_a_file", runs_without_a_file),
        claim("decode_explains_every_vector", decode_explains_every_vector),
    ]
}

/// The shipped configuration with these bounds of the drain.
fn draining(accept_for: &str, deadline: &str, close: &str) -> Start {
    let drain = format!(
        "[drain]\naccept_for = \"{accept_for}\"\ndeadline = \"{deadline}\"\nclose = \"{close}\"\n[health]"
    );
    shipped().replace("[health]", &drain)
}

fn readiness(world: &World) -> u16 {
    world.relay.get("/readyz").0
}

fn terminate_fails_health_at_once_and_accepts_on() {
    let world = World::with("leaving", Manner::Echo, draining("10m", "10m", "fin"));
    world.relay.signal(Signal::TERM);
    world
        .relay
        .wait_until("readiness is gone", || readiness(&world) == 503);
    assert_eq!(world.relay.get("/healthz").0, 200);
    world.node.run(async {
        let mut agent = connected(ENDPOINT).await.unwrap();
        agent.exchange(1000).await.unwrap();
        agent.finish().unwrap();
        assert_eq!(agent.expect_to_end(0).await.unwrap(), End::Fin);
        let request = [
            &header::health_check(),
            &b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"[..],
        ]
        .concat();
        for to in [LISTENER, "10.20.0.2:9901"] {
            let mut check = Agent::connect(to.parse().unwrap()).await.unwrap();
            let path = if to == LISTENER {
                request.clone()
            } else {
                b"GET /readyz HTTP/1.1\r\nHost: a\r\n\r\n".to_vec()
            };
            check.preface(&[&path]).await.unwrap();
            let (answer, _) = check.read_to_end().await.unwrap();
            assert!(
                answer.starts_with(b"HTTP/1.1 503"),
                "{}",
                String::from_utf8_lossy(&answer)
            );
        }
    });
    assert_eq!(world.relay.status()["phase"], "leaving");
    world.wait_closed("completed", 1);
    world.relay.signal(Signal::TERM);
    assert_eq!(world.relay.wait_exit(), 0);
}

/// A session that has exchanged ten bytes.
fn open_session(world: &World) -> Agent {
    world.node.run(async {
        let mut agent = connected(ENDPOINT).await.unwrap();
        agent.exchange(10).await.unwrap();
        agent
    })
}

fn sessions_finish_before_the_deadline() {
    let world = World::with("finish", Manner::Echo, draining("0s", "10m", "fin"));
    let mut agent = open_session(&world);
    world.relay.signal(Signal::TERM);
    world.relay.wait_until("the listener is closed", || {
        world
            .node
            .run(async { Agent::connect(listener()).await.is_err() })
    });
    world.node.run(async move {
        agent.exchange(3_000_000).await.unwrap();
        agent.finish().unwrap();
        assert_eq!(agent.expect_to_end(0).await.unwrap(), End::Fin);
    });
    assert_eq!(world.relay.wait_exit(), 0);
    assert_eq!(world.origin.wait_over(1).received, 3_000_010);
}

fn the_deadline_closes_what_is_open() {
    for (close, end) in [("fin", End::Fin), ("rst", End::Reset)] {
        let world = World::with("deadline", Manner::Echo, draining("0s", "2s", close));
        let mut agent = open_session(&world);
        let mut silent = world
            .node
            .run(async { Agent::connect(listener()).await.unwrap() });
        world
            .relay
            .wait_metric("tollgate_connections_pending", &[], 1);
        world.relay.signal(Signal::TERM);
        world.node.run(async move {
            assert_eq!(
                agent.read_to_end().await.unwrap(),
                (Vec::new(), end),
                "{close}"
            );
            assert_eq!(silent.read_to_end().await.unwrap().1, End::Reset);
        });
        assert_eq!(world.relay.wait_exit(), 0);
    }
}

fn a_second_signal_ends_it_now() {
    let world = World::with("second-signal", Manner::Echo, draining("10m", "10m", "fin"));
    let mut agent = open_session(&world);
    world.relay.signal(Signal::TERM);
    world
        .relay
        .wait_until("it leaves", || readiness(&world) == 503);
    world.relay.signal(Signal::TERM);
    // A moment ago bytes moved: it may be within a message, and must not look complete.
    let ended = world
        .node
        .run(async move { agent.read_to_end().await.unwrap() });
    assert_eq!(ended, (Vec::new(), End::Reset));
    assert_eq!(world.relay.wait_exit(), 0);
}

fn interrupt_stops_accepting_at_once() {
    let world = World::with("interrupt", Manner::Echo, draining("10m", "10m", "fin"));
    world.relay.signal(Signal::INT);
    assert_eq!(
        world.relay.wait_exit(),
        0,
        "nothing was open, so nothing is waited for"
    );
}

fn health_port_answers_with_and_without_a_header() {
    let world = World::new("health", Manner::Echo);
    world.node.run(async {
        let request = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n").into_bytes();
        let local = header::health_check();
        for (pieces, status) in [
            (vec![request("/readyz")], "200"),
            (vec![request("/healthz")], "200"),
            (vec![request("/other")], "404"),
            (vec![[local.clone(), request("/readyz")].concat()], "200"),
            (
                vec![
                    local[..50].to_vec(),
                    local[50..].to_vec(),
                    request("/readyz"),
                ],
                "200",
            ),
            (
                vec![
                    b"GE".to_vec(),
                    b"T /readyz HTTP/1.1\r\nHost: a\r\n\r\n".to_vec(),
                ],
                "200",
            ),
        ] {
            let mut agent = Agent::connect("10.20.0.2:9901".parse().unwrap())
                .await
                .unwrap();
            let pieces: Vec<&[u8]> = pieces.iter().map(Vec::as_slice).collect();
            agent.preface(&pieces).await.unwrap();
            let (answer, end) = agent.read_to_end().await.unwrap();
            let answer = String::from_utf8_lossy(&answer).into_owned();
            assert!(
                answer.starts_with(&format!("HTTP/1.1 {status}")) && end == End::Fin,
                "{answer}"
            );
        }
    });
    world.assert_at_rest();
}

fn admin_port_survives_slow_and_wrong_clients() {
    let world = World::new("admin", Manner::Echo);
    let world = &world;
    let mut slow = world.relay_host.run(async {
        let admin = "127.0.0.1:9900".parse().unwrap();
        let mut slow = Vec::new();
        for _ in 0..40 {
            let mut agent = Agent::connect(admin).await.unwrap();
            agent.preface(&[b"GET /metr"]).await.unwrap();
            slow.push(agent);
        }
        for (request, status) in [
            (b"POST /metrics HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".to_vec(), "405"),
            (b"GET /nothing HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".to_vec(), "404"),
            (b"what is this\r\n\r\n".to_vec(), "400"),
            ([&b"GET / HTTP/1.1\r\nX: "[..], &[b'a'; 40_000], b"\r\n\r\n"].concat(), "431"),
        ] {
            let mut agent = Agent::connect(admin).await.unwrap();
            let _ = agent.write(&request).await; // the answer may come before all was read
            let answer = agent.read(12).await.unwrap();
            assert_eq!(String::from_utf8_lossy(&answer), format!("HTTP/1.1 {status}"));
        }
        slow
    });
    assert_eq!(world.relay.get("/readyz").0, 200);
    world.relay_host.run(async move {
        for agent in &mut slow {
            agent.read_to_end().await.unwrap(); // each is ended by its bound
        }
    });
    world.assert_at_rest();
}

fn listener_limit_refuses_and_recovers() {
    let world = World::with("limit", Manner::Echo, shipped_with("max_sessions = 2"));
    let (first, second) = (open_session(&world), open_session(&world));
    world.node.run(async {
        let mut third = Agent::connect(listener()).await.unwrap();
        // The reset may come while we still wait for the header to be acknowledged.
        let _ = third.preface(&[&privatelink_header(ENDPOINT)]).await;
        assert_eq!(third.read_to_end().await.unwrap(), (Vec::new(), End::Reset));
    });
    let finish = |mut agent: Agent| {
        world.node.run(async move {
            agent.finish().unwrap();
            assert_eq!(agent.expect_to_end(0).await.unwrap(), End::Fin);
        });
    };
    finish(first);
    world.wait_closed("completed", 1);
    finish(open_session(&world));
    finish(second);
    assert_eq!(
        world
            .relay
            .metric("tollgate_refused_total", &[("reason", "listener_limit")]),
        1
    );
    world.wait_closed("completed", 3);
    world.assert_at_rest();
}

fn a_worker_with_more_sessions_passes_new_ones_on() {
    let start = shipped().replace("[health]", "workers = 2\n[health]");
    let world = World::with("spread", Manner::Echo, start);
    let on = |worker: &str| {
        world
            .relay
            .metric("tollgate_worker_connections", &[("worker", worker)])
    };
    let close = |agent: Agent| {
        let before = on("0") + on("1");
        agent.reset();
        world
            .relay
            .wait_until("it is gone", || on("0") + on("1") < before);
    };
    // Only those that the kernel gave to the first worker stay, until it has clearly more than the second.
    let mut first = Vec::new();
    while first.len() < 8 {
        let agent = open_session(&world);
        match on("0") as usize > first.len() {
            true => first.push(agent),
            false => close(agent),
        }
    }
    for _ in 0..30 {
        let agent = open_session(&world);
        assert_eq!(
            (on("0"), on("1")),
            (8, 1),
            "the kernel gave it to either, by chance"
        );
        close(agent);
    }
    for agent in first {
        close(agent);
    }
    world.assert_at_rest();
}

/// Runs the binary outside any world; for what ends by itself.
fn tollgate(arguments: &[&str], input: &str) -> Output {
    let mut child = Command::new(relay::binary())
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(input.as_bytes())
        .unwrap();
    child.wait_with_output().unwrap()
}

fn exit_codes_are_those_of_the_manual() {
    let code = |arguments: &[&str]| tollgate(arguments, "").status.code();
    let folder = tempfile::tempdir().unwrap();
    let wrong = folder.path().join("wrong.toml");
    std::fs::write(&wrong, "[[listener]]\nnmae = \"a\"\n").unwrap();
    let wrong = wrong.to_str().unwrap();
    assert_eq!(code(&["--help"]), Some(0));
    assert_eq!(code(&["frobnicate"]), Some(64));
    assert_eq!(
        code(&["run", "--listen", "127.0.0.1:0", "--upstream", "a:1"]),
        Some(64)
    );
    assert_eq!(code(&["decode", "00zz"]), Some(65));
    assert_eq!(code(&["decode", "00"]), Some(65));
    assert_eq!(code(&["run", "--config", "/nowhere.toml"]), Some(66));
    assert_eq!(code(&["check", "--config", "/nowhere.toml"]), Some(66));
    assert_eq!(code(&["check", "--config", wrong]), Some(78));
    let said = tollgate(&["run", "--config", wrong], "");
    let said = (
        said.status.code(),
        String::from_utf8_lossy(&said.stderr).into_owned(),
    );
    assert_eq!(said.0, Some(78));
    for part in ["wrong.toml:2:1", "nmae", "^^^^", "did you mean name"] {
        assert!(said.1.contains(part), "{part} in {}", said.1);
    }
    let world = World::new("in-use", Manner::Echo);
    let mut second = world.relay_host.command(relay::binary().to_str().unwrap());
    second.args([
        "run",
        "--proxy-protocol",
        "off",
        "--listen",
        "0.0.0.0:8443",
        "--upstream",
        "10.30.0.2:443",
        "--admin",
        "off",
    ]);
    let said = world.relay_host.call(move || second.output()).unwrap();
    let words = String::from_utf8_lossy(&said.stderr).into_owned();
    assert_eq!(said.status.code(), Some(69), "{words}");
    assert!(words.contains("0.0.0.0:8443"), "{words}");
}

fn runs_without_a_file() {
    let start = shipped().arguments(&[
        "run",
        "--listen",
        "0.0.0.0:8443",
        "--upstream",
        "10.30.0.2:443",
        "--trusted",
        "10.20.0.0/16",
    ]);
    let start = start.env("STATE_DIRECTORY", "");
    let world = World::with("no-file", Manner::Echo, start);
    world.node.run(async {
        let mut agent = Agent::connect(listener()).await.unwrap();
        agent
            .preface(&[&privatelink_header(ENDPOINT)])
            .await
            .unwrap();
        agent.exchange(1000).await.unwrap();
        agent.finish().unwrap();
        assert_eq!(agent.expect_to_end(0).await.unwrap(), End::Fin);
    });
    world.wait_closed("completed", 1);
    assert_eq!(world.relay.log_lines("books are kept in memory").len(), 1);
    world.assert_at_rest();
}

fn decode_explains_every_vector() {
    for (vector, code, words) in [
        (raw_header::PRIVATELINK_TCP4, 0, "vpce-08d2bf15fac5001c9"),
        (raw_header::SYNTHETIC_TCP6, 0, "vpce-0123456789abcdef0"),
        (raw_header::HEALTH_CHECK_LOCAL, 0, "LOCAL"),
        (raw_header::DIRECT_UDP4, 65, "family"),
    ] {
        for (arguments, input) in [
            (vec!["decode", vector.trim()], ""),
            (vec!["decode", "-"], vector),
            (vec!["decode", "--json"], vector),
        ] {
            let output = tollgate(&arguments, input);
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            assert_eq!(output.status.code(), Some(code), "{text}");
            assert!(text.contains(words), "{text}");
        }
    }
}
