//! Listeners that come, go and move, with connections that wait to be accepted, wait for their first byte, or are open.

use libtest_mimic::Trial;

use super::{
    visitors::Visitors,
    world::{FIRST, Listener, Reloading, SECOND, at, config, opened, plain},
};
use crate::{
    claim,
    harness::{
        agent::Agent,
        relay::Signal,
        sockets::State,
        stream::{self, End},
    },
    scenarios::world::{ENDPOINT, privatelink_header},
};

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        claim(
            "listener_that_is_added_serves_and_one_that_is_removed_refuses",
            added_and_removed,
        ),
        claim(
            "connections_that_wait_to_be_accepted_are_served_by_a_listener_that_goes",
            || waiting(&[], &[("ingest", "0.0.0.0:8443", "cp")]),
        ),
        claim(
            "connections_that_wait_to_be_accepted_are_served_by_a_listener_that_moves",
            || {
                waiting(
                    &[8450],
                    &[
                        ("ingest", "0.0.0.0:8443", "cp"),
                        ("logs", "0.0.0.0:8450", "cp"),
                    ],
                )
            },
        ),
        claim(
            "connections_that_wait_to_be_accepted_are_served_where_listeners_change_places",
            || {
                waiting(
                    &[8444],
                    &[
                        ("ingest", "0.0.0.0:8444", "cp"),
                        ("logs", "0.0.0.0:8443", "cp"),
                    ],
                )
            },
        ),
        claim(
            "connections_that_wait_to_be_accepted_are_served_where_an_address_is_narrowed",
            || {
                waiting(
                    &[8444],
                    &[
                        ("ingest", "0.0.0.0:8443", "cp"),
                        ("logs", "10.20.0.2:8444", "cp"),
                    ],
                )
            },
        ),
        claim(
            "whoever_gets_through_to_a_listener_that_comes_and_goes_is_served",
            comes_and_goes,
        ),
        claim(
            "connection_that_has_not_spoken_yet_outlives_its_listener",
            has_not_spoken,
        ),
        claim(
            "listener_that_stays_takes_up_what_changed",
            takes_up_what_changed,
        ),
    ]
}

const BOTH: [Listener<'_>; 2] = [
    ("ingest", "0.0.0.0:8443", "cp"),
    ("logs", "0.0.0.0:8444", "cp"),
];

fn with(listeners: &[Listener<'_>]) -> String {
    config(listeners, &[("cp", FIRST)], "")
}

fn added_and_removed() {
    let world = Reloading::new("listeners", &plain());
    let ingest = world.open(8443, ENDPOINT);
    let refused = |port| {
        let outcome = world.hosts.node.run(Agent::connect(at(port)));
        assert_eq!(
            outcome.unwrap_err().kind(),
            std::io::ErrorKind::ConnectionRefused
        );
    };
    refused(8444);
    let done = world.apply(&with(&BOTH));
    assert!(
        done["changed"].to_string().contains("listener.logs"),
        "{done}"
    );
    world.exchange(8444);
    let logs = world.open(8444, ENDPOINT);
    world.apply(&with(&BOTH[..1]));
    world.wait_port_closed(8444);
    refused(8444);
    world.exchange(8443);
    // What came through it stays.
    world.goes_on(logs);
    world.goes_on(ingest);
    let opened = |listener| {
        let labels = [("listener", listener)];
        world
            .relay
            .metric("tollgate_connections_opened_total", &labels)
    };
    assert_eq!(opened("ingest"), 2);
    world.apply(&with(&BOTH));
    world.exchange(8444);
    world.apply(&plain());
    world.wait_port_closed(8444);
    world.assert_at_rest();
}

/// Connections that wait at each of two ports.
const WAITING: u64 = 150;

/// While the relay stands still, clients connect to both ports and say all that they have to say; when it goes on, the configuration is another one: with
/// `next`, that is, after which these ports are open beside 8443.
#[track_caller]
fn waiting(open: &[u16], next: &[Listener<'_>]) {
    let world = Reloading::new("waiting", &with(&BOTH));
    let long = world.open(8444, ENDPOINT);
    world.relay.stop_still();
    let clients = world.hosts.node.run(async {
        let mut clients = Vec::new();
        for number in 0..2 * WAITING {
            let to = at(8443 + (number % 2) as u16);
            let mut agent = opened(to, ENDPOINT).await.unwrap().seed(number);
            agent.send(3000).await.unwrap();
            clients.push(agent);
        }
        clients
    });
    let queued: u64 = {
        let sockets = world.hosts.relay.sockets();
        let of = |port| {
            let own = sockets
                .iter()
                .filter(move |socket| socket.state == State::Listen && socket.local.port() == port);
            own.map(|socket| socket.receive_queue).sum::<u64>()
        };
        of(8443) + of(8444)
    };
    assert_eq!(queued, 2 * WAITING, "they wait to be accepted");
    world.relay.rewrite_config(&with(next));
    world.relay.signal(Signal::HUP);
    world.relay.signal(Signal::CONT);
    world.hosts.node.run(async move {
        for (number, mut agent) in (0..).zip(clients) {
            let what = format!("the client {number} at {}", 8443 + number % 2);
            let heard = agent.expect(number, 3000).await;
            heard.unwrap_or_else(|error| panic!("{what}: {error}"));
            agent.finish().unwrap();
            assert_eq!(
                agent.expect_to_end(number).await.unwrap(),
                End::Fin,
                "{what}"
            );
        }
    });
    world
        .relay
        .wait_until("the reload", || world.reloads("applied") == 1);
    for port in [8443].iter().chain(open) {
        world.exchange(*port);
    }
    if !open.contains(&8444) {
        world.wait_port_closed(8444);
    }
    world.goes_on(long);
    assert_eq!(world.relay.metric("tollgate_refused_total", &[]), 0);
    world.apply(&with(&BOTH));
    world.assert_at_rest();
}

/// How often the listener goes and comes back.
const TURNS: u64 = 10;

fn comes_and_goes() {
    let world = Reloading::new("comes-and-goes", &with(&BOTH));
    let visitors = Visitors::start(&world.hosts.node, 24, &[8444, 8444, 8443], ENDPOINT);
    visitors.wait_more(100);
    for _ in 0..TURNS {
        world.apply(&plain());
        visitors.wait_more(40);
        world.apply(&with(&BOTH));
        visitors.wait_more(40);
    }
    let seen = visitors.stop();
    // Who finds nobody there is told so at once, or never gets an answer to his first packet; nobody is cut off.
    seen.assert_none_failed();
    world
        .relay
        .wait_metric("tollgate_connections_active", &[], 0);
    let booked = [("direction", "to_upstream")];
    let booked = world.relay.metric("tollgate_bytes_total", &booked);
    assert_eq!(booked, seen.bytes);
    assert_eq!(world.relay.metric("tollgate_refused_total", &[]), 0);
    world.assert_at_rest();
}

fn has_not_spoken() {
    let world = Reloading::new("not-spoken", &with(&BOTH));
    let silent = world.hosts.node.run(async {
        let mut silent = Vec::new();
        for port in [8443, 8444] {
            silent.push((Agent::connect(at(port)).await.unwrap(), 0));
            // And one in the middle of its header.
            let agent = Agent::connect(at(port)).await.unwrap();
            let header = privatelink_header(ENDPOINT);
            stream::write(agent.stream(), &header[..20], |_| ())
                .await
                .unwrap();
            silent.push((agent, 20));
        }
        silent
    });
    world
        .relay
        .wait_metric("tollgate_connections_pending", &[], 4);
    world.apply(&plain());
    world.wait_port_closed(8444);
    world.hosts.node.run(async move {
        for (mut agent, said) in silent {
            let header = privatelink_header(ENDPOINT);
            stream::write(agent.stream(), &header[said..], |_| ())
                .await
                .unwrap();
            agent.exchange(5000).await.unwrap();
            agent.finish().unwrap();
            assert_eq!(agent.expect_to_end(0).await.unwrap(), End::Fin);
        }
    });
    world.relay.wait_metric(
        "tollgate_connections_closed_total",
        &[("reason", "completed")],
        4,
    );
    world.apply(&with(&BOTH));
    world.assert_at_rest();
}

fn takes_up_what_changed() {
    let world = Reloading::new("takes-up", &plain());
    let first = world.open(8443, ENDPOINT);
    // Its room, of which what is there already has a part.
    let tables = |keys: &str| {
        plain().replace(
            "name = \"ingest\"\n",
            &format!("name = \"ingest\"\n{keys}\n"),
        )
    };
    let refused = || {
        let session = super::world::session(at(8443), ENDPOINT, 1, 10);
        assert!(world.hosts.node.run(session).is_err());
    };
    world.apply(&tables("max_sessions = 1"));
    refused();
    let labels = [("reason", "listener_limit")];
    assert_eq!(world.relay.metric("tollgate_refused_total", &labels), 1);
    world.apply(&tables("max_sessions = 2"));
    world.exchange(8443);
    // Whom it trusts.
    world.apply(&plain().replace("10.20.0.0/16", "10.99.0.0/16"));
    refused();
    world.apply(&plain());
    world.exchange(8443);
    // How long it waits for a first byte.
    world.apply(&tables("first_byte_timeout = \"1s\""));
    let mut silent = world
        .hosts
        .node
        .run(async { Agent::connect(at(8443)).await.unwrap() });
    let end = world
        .hosts
        .node
        .run(async move { silent.read_to_end().await.unwrap() });
    assert_eq!(end, (Vec::new(), End::Reset));
    // Where it leads.
    let elsewhere = config(&[("ingest", "0.0.0.0:8443", "cp")], &[("cp", SECOND)], "");
    world.apply(&elsewhere);
    world.exchange(8443);
    assert_eq!(world.origins[1].wait_over(1).accepted, 1);
    // How long a session may be silent: one of before keeps the bound that it came with.
    world.apply(&plain().replace(
        "[[listener]]",
        "[session]\nidle_timeout = \"1s\"\n[[listener]]",
    ));
    let mut silent = world.open(8443, ENDPOINT);
    let ended = world
        .hosts
        .node
        .run(async move { silent.read_to_end().await.unwrap() });
    assert_eq!(ended, (Vec::new(), End::Reset));
    let labels = [("reason", "idle_timeout")];
    world
        .relay
        .wait_metric("tollgate_connections_closed_total", &labels, 1);
    world.goes_on(first);
    world.apply(&plain());
    world.assert_at_rest();
}
