//! Connections dialled ahead: who gets them, what becomes of those that die, age, or stand on an address that leaves.

use hickory_proto::rr::RecordType::A;
use libtest_mimic::Trial;
use rustix::process::Signal;

use super::world::{self, ENDPOINT, Hosts, ORIGIN, SHIPPED, connected, exchange};
use crate::{
    claim,
    harness::{
        agent::Agent,
        dns::{Answer, Dns},
        origin::{Manner, Origin},
        relay::{Baseline, Relay, Start},
        stream::End,
    },
};

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        claim("nothing_is_dialled_ahead_unless_asked_for", nothing_ahead),
        claim("sessions_take_connections_dialled_ahead", taken),
        claim(
            "what_an_upstream_says_first_waits_for_a_session_and_is_booked_then",
            speaks_first,
        ),
        claim(
            "connection_given_up_before_a_byte_was_sent_is_replaced",
            given_up,
        ),
        claim(
            "connections_of_an_origin_that_restarts_are_not_used",
            origin_restarts,
        ),
        claim(
            "upstream_that_ends_what_is_dialled_ahead_is_not_dialled_without_end",
            unwelcome,
        ),
        claim("connections_dialled_ahead_grow_old_and_are_renewed", age),
        claim(
            "connections_to_an_address_that_left_are_given_up",
            address_leaves,
        ),
        claim("more_sessions_than_connections_dial_themselves", burst),
        claim("connections_dialled_ahead_obey_the_hash", hash),
        claim("connections_in_a_zone_that_died_are_given_up", dead_zone),
        claim(
            "what_is_dialled_ahead_leaves_descriptors_to_others",
            few_descriptors,
        ),
        claim("drain_lets_go_of_connections_dialled_ahead", drain),
    ]
}

const OTHER: &str = "10.30.0.3:443";

/// One worker, whose connections these are.
fn shipped(ahead: &str, keys: &str) -> Start {
    Start::with(SHIPPED)
        .replace("cp.us-east-1.example.internal:443", ORIGIN)
        .replace("[health]\n", "workers = 1\n\n[health]\n")
        .replace(
            "name = \"control-plane\"\n",
            &format!("name = \"control-plane\"\n{ahead}\n{keys}\n"),
        )
}

struct Ahead {
    relay: Relay,
    baseline: Baseline,
    hosts: Hosts,
}

impl Ahead {
    #[track_caller]
    fn start(n: u64, hosts: Hosts, start: Start) -> Self {
        let relay = start.on(&hosts.relay);
        relay.wait_metric("tollgate_ahead_connections", &[], n);
        let baseline = Baseline::of(&relay);
        Self {
            relay,
            baseline,
            hosts,
        }
    }

    fn outcome(&self, outcome: &str) -> u64 {
        let labels = [("outcome", outcome)];
        self.relay.metric("tollgate_ahead_total", &labels)
    }

    /// Waits until so many wait for a session again.
    #[track_caller]
    fn wait_ahead(&self, n: u64) {
        self.relay.wait_metric("tollgate_ahead_connections", &[], n);
    }

    #[track_caller]
    fn assert_at_rest(&self, n: u64) {
        self.wait_ahead(n);
        world::assert_at_rest(&self.relay, self.baseline);
    }
}

fn nothing_ahead() {
    let world = world::World::new("not-ahead", Manner::Echo);
    exchange(&world.node);
    let books = world.origin.wait_over(1);
    assert_eq!(books.accepted, 1);
    assert!(!world.relay.metrics().has("tollgate_ahead_total"));
    world.assert_at_rest();
}

fn taken() {
    let hosts = Hosts::new("taken");
    let origin = Origin::start(&hosts.origin, ORIGIN, Manner::Echo);
    let start = shipped("ahead = { min = 2, max = 2, max_age = \"30s\" }", "");
    let ahead = Ahead::start(2, hosts, start);
    assert_eq!(origin.books().accepted, 2, "before anybody asked");
    for _ in 0..5 {
        ahead.wait_ahead(2);
        exchange(&ahead.hosts.node);
    }
    assert_eq!((ahead.outcome("taken"), ahead.outcome("missed")), (5, 0));
    ahead.wait_ahead(2);
    let books = origin.wait("those that wait again", |books| {
        (books.accepted == 7).then(|| books.clone())
    });
    assert_eq!(books.received, 5000);
    let status = ahead.relay.status();
    let address = &status["upstreams"][0]["targets"][0]["addresses"][0];
    assert_eq!(
        (&address["ahead"], &address["sessions"]),
        (&2.into(), &0.into())
    );
    ahead.assert_at_rest(2);
}

fn speaks_first() {
    let hosts = Hosts::new("banner");
    let banner = "220 mail.example ready\r\n";
    let _origin = Origin::start(&hosts.origin, ORIGIN, Manner::Banner(banner.to_owned()));
    let start = shipped("ahead = { min = 1, max = 1, max_age = \"30s\" }", "");
    let ahead = Ahead::start(1, hosts, start);
    let booked = || {
        ahead
            .relay
            .metric("tollgate_bytes_total", &[("direction", "to_client")])
    };
    assert_eq!(booked(), 0);
    ahead.hosts.node.run(async {
        let mut agent = connected(ENDPOINT).await.unwrap();
        let first = agent.read(24).await.unwrap();
        assert_eq!(first, b"220 mail.example ready\r\n");
        agent.write(&[b'x'; 500]).await.unwrap();
        agent.finish().unwrap();
        let (rest, end) = agent.read_to_end().await.unwrap();
        assert_eq!((rest, end), (vec![b'x'; 500], End::Fin));
    });
    assert_eq!((ahead.outcome("taken"), ahead.outcome("stale")), (1, 0));
    ahead.assert_at_rest(1);
    assert_eq!(booked(), 24 + 500);
}

/// The client has the connection and is silent: its upstream may still give it up, and nobody notices.
fn given_up() {
    let hosts = Hosts::new("given-up");
    hosts.origin.address("eth0", "10.30.0.3/24");
    let first = Origin::start(&hosts.origin, ORIGIN, Manner::Echo);
    let second = Origin::start(&hosts.origin, OTHER, Manner::Echo);
    let start = shipped("ahead = { min = 1, max = 1, max_age = \"30s\" }", "").replace(
        &format!("targets = [\"{ORIGIN}\"]"),
        &format!("targets = [\"{ORIGIN}\", {{ target = \"{OTHER}\", priority = 1 }}]"),
    );
    let ahead = Ahead::start(1, hosts, start);
    let mut agent: Agent = ahead
        .hosts
        .node
        .run(async { connected(ENDPOINT).await.unwrap() });
    ahead
        .relay
        .wait_metric("tollgate_ahead_total", &[("outcome", "taken")], 1);
    first.kill();
    // A byte that is sent before the relay hears of it is the session's own loss.
    second.wait("the replacement", |books| {
        (books.accepted > 0).then_some(())
    });
    ahead.hosts.node.run(async move {
        agent.exchange(1000).await.unwrap();
        agent.finish().unwrap();
        assert_eq!(agent.expect_to_end(0).await.unwrap(), End::Fin);
    });
    assert!(ahead.outcome("stale") >= 1);
    let books = second.wait("the session there", |books| {
        (books.received == 1000).then(|| books.clone())
    });
    assert_eq!(books.sent, 1000);
    let closed = "tollgate_connections_closed_total";
    ahead
        .relay
        .wait_metric(closed, &[("reason", "completed")], 1);
    assert_eq!(
        ahead.relay.metric("tollgate_connections_opened_total", &[]),
        1
    );
}

fn origin_restarts() {
    let hosts = Hosts::new("restarts");
    let first = Origin::start(&hosts.origin, ORIGIN, Manner::Echo);
    let start = shipped(
        "ahead = { min = 3, max = 3, max_age = \"30s\" }",
        "eject = { after = \"off\" }",
    );
    let ahead = Ahead::start(3, hosts, start);
    first.kill();
    drop(first);
    // More where one was made anew before it had stopped listening.
    ahead
        .relay
        .wait_until("them to be given up", || ahead.outcome("stale") >= 3);
    let second = Origin::start(&ahead.hosts.origin, ORIGIN, Manner::Echo);
    for _ in 0..3 {
        exchange(&ahead.hosts.node);
    }
    ahead.wait_ahead(3);
    assert_eq!(second.books().received, 3000);
    ahead.assert_at_rest(3);
}

fn unwelcome() {
    let hosts = Hosts::new("unwelcome");
    let origin = Origin::start(&hosts.origin, ORIGIN, Manner::Source { seed: 0, bytes: 0 });
    let start = shipped(
        "ahead = { min = 2, max = 2, max_age = \"30s\" }",
        "eject = { after = \"off\" }",
    );
    let relay = start.on(&hosts.relay);
    origin.wait("two rounds", |books| (books.accepted >= 4).then_some(()));
    relay.assert_at_rest();
    let accepted = origin.books().accepted;
    assert!(accepted < 100, "{accepted} connections in a few seconds");
}

fn age() {
    let hosts = Hosts::new("age");
    let origin = Origin::start(&hosts.origin, ORIGIN, Manner::Echo);
    let start = shipped("ahead = { min = 1, max = 1, max_age = \"1s\" }", "");
    let ahead = Ahead::start(1, hosts, start);
    let books = origin.wait("three generations", |books| {
        (books.accepted == 3).then(|| books.clone())
    });
    let ends: Vec<_> = books.connections.iter().map(|one| one.end).collect();
    assert_eq!(ends[0], Some(End::Fin), "nothing was cut");
    assert!(ahead.outcome("expired") >= 2);
    exchange(&ahead.hosts.node);
    assert_eq!(
        ahead.relay.metric("tollgate_connections_opened_total", &[]),
        1
    );
    ahead.assert_at_rest(1);
}

fn address_leaves() {
    let hosts = Hosts::new("ahead-leaves");
    hosts.origin.address("eth0", "10.30.0.3/24");
    let name = "cp.us-east-1.example.internal";
    let dns = Dns::start(&hosts.origin, "10.30.0.2:53");
    dns.set(name, Answer::addresses(&["10.30.0.2"], 1));
    let first = Origin::start(&hosts.origin, ORIGIN, Manner::Echo);
    let second = Origin::start(&hosts.origin, OTHER, Manner::Echo);
    let start = Start::with(SHIPPED)
        .replace(
            "[health]\n",
            "workers = 1\n[resolver]\nservers = [\"10.30.0.2:53\"]\n\n[health]\n",
        )
        .replace(
            "name = \"control-plane\"\n",
            "name = \"control-plane\"\nahead = { min = 2, max = 2, max_age = \"30s\" }\n",
        );
    let ahead = Ahead::start(2, hosts, start);
    assert_eq!(first.books().open, 2);
    dns.set(name, Answer::addresses(&["10.30.0.3"], 60));
    dns.wait_questions(name, A, dns.questions(name, A) + 1);
    let books = first.wait_over(2);
    assert!(
        books
            .connections
            .iter()
            .all(|one| one.end == Some(End::Fin))
    );
    second.wait("those that wait now", |books| {
        (books.open == 2).then_some(())
    });
    exchange(&ahead.hosts.node);
    assert_eq!((first.books().received, second.books().received), (0, 1000));
    ahead.assert_at_rest(2);
}

fn burst() {
    let hosts = Hosts::new("burst");
    let origin = Origin::start(&hosts.origin, ORIGIN, Manner::Echo);
    let start = shipped("ahead = { min = 2, max = 4, max_age = \"30s\" }", "");
    let ahead = Ahead::start(2, hosts, start);
    let mut agents = Vec::new();
    for _ in 0..40 {
        agents.push(ahead.hosts.node.run(async {
            let mut agent = connected(ENDPOINT).await.unwrap();
            agent.exchange(100).await.unwrap();
            agent
        }));
    }
    ahead.hosts.node.run(async move {
        for mut agent in agents {
            agent.finish().unwrap();
            assert_eq!(agent.expect_to_end(0).await.unwrap(), End::Fin);
        }
    });
    assert_eq!(ahead.outcome("taken") + ahead.outcome("missed"), 40);
    assert!(ahead.outcome("taken") > 0);
    let waiting = ahead.relay.metric("tollgate_ahead_connections", &[]);
    assert!((2..=4).contains(&waiting), "{waiting}");
    assert_eq!(origin.books().received, 4000);
    let closed = "tollgate_connections_closed_total";
    ahead
        .relay
        .wait_metric(closed, &[("reason", "completed")], 40);
}

/// With and without connections dialled ahead an endpoint is on the same address.
fn hash() {
    let place = |name: &str, ahead: &str| {
        let hosts = Hosts::new(name);
        hosts.origin.address("eth0", "10.30.0.3/24");
        let origins = [ORIGIN, OTHER].map(|at| Origin::start(&hosts.origin, at, Manner::Echo));
        let start = shipped(ahead, "balance = \"rendezvous\"").replace(
            &format!("targets = [\"{ORIGIN}\"]"),
            &format!("targets = [\"{ORIGIN}\", \"{OTHER}\"]"),
        );
        let relay = start.on(&hosts.relay);
        let ids: Vec<String> = (0..8).map(|n| format!("vpce-{n:017x}")).collect();
        ids.into_iter()
            .map(|id| {
                let before = origins[0].books().received;
                for _ in 0..2 {
                    let id = id.clone();
                    hosts.node.run(async move {
                        let mut agent = connected(&id).await.unwrap();
                        agent.exchange(100).await.unwrap();
                    });
                }
                let got = origins[0].books().received - before;
                assert!(got == 0 || got == 200, "{id} is on both");
                (
                    got == 200,
                    relay
                        .metrics()
                        .sum("tollgate_ahead_total", &[("outcome", "taken")]),
                )
            })
            .collect::<Vec<_>>()
    };
    let without = place("hash", "");
    let with = place(
        "hash-ahead",
        "ahead = { min = 4, max = 4, max_age = \"30s\" }",
    );
    let first = |places: &[(bool, u64)]| places.iter().map(|one| one.0).collect::<Vec<_>>();
    assert_eq!(first(&with), first(&without));
    let firsts = first(&with).iter().filter(|first| **first).count();
    assert!((1..8).contains(&firsts), "both addresses have consumers");
    assert!(
        with.last().unwrap().1 > 0,
        "some took what was dialled ahead"
    );
}

fn drain() {
    let hosts = Hosts::new("ahead-drain");
    let origin = Origin::start(&hosts.origin, ORIGIN, Manner::Echo);
    let start = shipped("ahead = { min = 2, max = 2, max_age = \"30s\" }", "");
    let ahead = Ahead::start(2, hosts, start);
    ahead.relay.signal(Signal::INT);
    assert_eq!(ahead.relay.wait_exit(), 0);
    let books = origin.wait_over(2);
    assert!(
        books
            .connections
            .iter()
            .all(|one| one.end == Some(End::Fin)),
        "in order"
    );
}

/// The zone dies without a word: those that wait there are given up, and new sessions go elsewhere.
fn dead_zone() {
    let hosts = Hosts::new("ahead-dead");
    hosts.origin.address("eth0", "10.30.0.3/24");
    let origins = [ORIGIN, OTHER].map(|at| Origin::start(&hosts.origin, at, Manner::Echo));
    let start = shipped("ahead = { min = 4, max = 4, max_age = \"30s\" }", "").replace(
        &format!("targets = [\"{ORIGIN}\"]"),
        &format!("targets = [\"{ORIGIN}\", \"{OTHER}\"]"),
    );
    let ahead = Ahead::start(4, hosts, start);
    origins[0].wait("one there", |books| (books.open > 0).then_some(()));
    ahead.hosts.origin.ip("rule add from 10.30.0.2 blackhole");
    ahead.hosts.relay.ip("route add blackhole 10.30.0.2/32");
    ahead.relay.wait_until("those there to be given up", || {
        ahead.relay.metric("tollgate_ahead_connections", &[]) == 4
            && ahead.outcome("stale") + ahead.outcome("failed") > 0
            && {
                let status = ahead.relay.status();
                let first = &status["upstreams"][0]["targets"][0]["addresses"][0];
                first["state"] == "ejected"
            }
    });
    for _ in 0..4 {
        exchange(&ahead.hosts.node);
    }
    assert_eq!(origins[1].books().received, 4000);
}

/// A pool that is larger than the process may be leaves the descriptors to those who need them.
fn few_descriptors() {
    let hosts = Hosts::new("ahead-few");
    let _origin = Origin::start(&hosts.origin, ORIGIN, Manner::Echo);
    let start = shipped("ahead = { min = 200, max = 400, max_age = \"30s\" }", "")
        .through(&["prlimit", "--nofile=300"]);
    let ahead = Ahead::start(75, hosts, start);
    ahead
        .relay
        .wait_log("too few descriptors for what is to be dialled ahead");
    for _ in 0..10 {
        exchange(&ahead.hosts.node);
    }
    assert_eq!(ahead.relay.get("/readyz").0, 200);
    assert_eq!(
        ahead.relay.metric("tollgate_upstream_ejections_total", &[]),
        0
    );
}
