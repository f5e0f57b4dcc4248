//! Which address a session goes to, and which are left alone.

use std::collections::BTreeMap;

use libtest_mimic::Trial;

use super::world::{self, Hosts, ORIGIN, connected, shipped};
use crate::{
    claim,
    harness::{
        agent::Agent,
        netns::Host,
        origin::{Manner, Origin},
        relay::{Baseline, Relay, Start},
        stream::End,
    },
};

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        claim("sessions_go_where_few_are", least_sessions),
        claim("weighted_turns_follow_the_weights", weighted),
        claim("two_relays_put_a_consumer_on_the_same_address", rendezvous),
        claim(
            "address_that_refuses_is_left_alone_and_tried_again",
            ejected,
        ),
        claim(
            "address_that_resets_at_once_is_left_alone_whoever_asks",
            || {
                early_resets(|n| format!("vpce-{n:017x}"));
            },
        ),
        claim(
            "address_that_resets_one_consumer_and_others_not_is_left_alone",
            || {
                early_resets(|_| world::ENDPOINT.to_owned());
            },
        ),
        claim(
            "one_consumer_ejects_no_address_from_the_others",
            one_consumer,
        ),
        claim("addresses_that_all_fail_are_never_all_given_up", never_all),
        claim("retries_stay_within_their_budget", budget),
        claim(
            "readyz_fails_without_an_upstream_that_it_was_told_to_need",
            needed,
        ),
        claim("health_check_takes_an_address_out_and_back", health),
        claim(
            "health_check_begins_with_local_where_headers_are_sent",
            local,
        ),
    ]
}

/// Three addresses of the origin's host.
const THREE: [&str; 3] = ["10.30.0.2:443", "10.30.0.3:443", "10.30.0.4:443"];

struct Three {
    relay: Relay,
    baseline: Baseline,
    origins: BTreeMap<&'static str, Origin>,
    hosts: Hosts,
}

/// A relay with one worker before three addresses, of which those with a manner have an origin.
#[track_caller]
fn three(name: &str, manners: [Option<Manner>; 3], targets: &str, keys: &str) -> Three {
    let hosts = Hosts::new(name);
    let mut origins = BTreeMap::new();
    for (at, manner) in THREE.into_iter().zip(manners) {
        if at != ORIGIN {
            hosts.origin.address("eth0", &at.replace(":443", "/24"));
        }
        if let Some(manner) = manner {
            origins.insert(at, Origin::start(&hosts.origin, at, manner));
        }
    }
    let relay = before(targets, keys).on(&hosts.relay);
    Three {
        baseline: Baseline::of(&relay),
        relay,
        origins,
        hosts,
    }
}

fn before(targets: &str, keys: &str) -> Start {
    shipped()
        .replace("[health]\n", "workers = 1\n\n[health]\n")
        .replace(
            &format!("targets = [\"{ORIGIN}\"]"),
            &format!("targets = [{targets}]\n{keys}"),
        )
}

fn all_three() -> String {
    THREE.map(|at| format!("{at:?}")).join(", ")
}

const ECHOES: [Option<Manner>; 3] = [Some(Manner::Echo), Some(Manner::Echo), Some(Manner::Echo)];

impl Three {
    fn accepted(&self) -> Vec<u64> {
        let books = self.origins.values().map(Origin::books);
        books.map(|books| books.accepted).collect()
    }

    fn state(&self, at: &str) -> String {
        let status = self.relay.status();
        let targets = status["upstreams"][0]["targets"].as_array().unwrap();
        let mut addresses = targets
            .iter()
            .flat_map(|target| target["addresses"].as_array().unwrap());
        let address = addresses.find(|address| address["address"] == at);
        address.unwrap()["state"].as_str().unwrap().to_owned()
    }
}

/// A session of an endpoint: whether it got its bytes back.
fn exchange(node: &Host, endpoint: &str) -> bool {
    let endpoint = endpoint.to_owned();
    node.run(async move {
        let Ok(mut agent) = connected(&endpoint).await else {
            return false;
        };
        let whole = agent.exchange(100).await.is_ok();
        let _ = agent.finish();
        whole
            && agent
                .expect_to_end(0)
                .await
                .is_ok_and(|end| end == End::Fin)
    })
}

fn open(node: &Host, n: u64) -> Agent {
    node.run(async move {
        let mut agent = connected(&format!("vpce-{n:017x}")).await.unwrap();
        agent.exchange(10).await.unwrap();
        agent
    })
}

fn least_sessions() {
    let three = three("least", ECHOES, &all_three(), "");
    let agents: Vec<Agent> = (0..60).map(|n| open(&three.hosts.node, n)).collect();
    // Of two by chance the emptier one: with three addresses they never differ by much.
    let accepted = three.accepted();
    assert!(
        accepted.iter().all(|n| (17..=23).contains(n)),
        "{accepted:?}"
    );
    let sessions = three
        .relay
        .metric("tollgate_upstream_address_sessions", &[]);
    assert_eq!(sessions, 60);
    three.hosts.node.run(async move { drop(agents) });
    three
        .relay
        .wait_metric("tollgate_upstream_address_sessions", &[], 0);
    world::assert_at_rest(&three.relay, three.baseline);
}

fn weighted() {
    let targets = format!(
        "{{ target = {:?}, weight = 1 }}, {{ target = {:?}, weight = 2 }}, {{ target = {:?}, weight = 5 }}",
        THREE[0], THREE[1], THREE[2]
    );
    let three = three("weighted", ECHOES, &targets, "balance = \"weighted\"");
    for _ in 0..80 {
        assert!(exchange(&three.hosts.node, world::ENDPOINT));
    }
    let accepted = three.accepted();
    let wanted = [10_u64, 20, 50];
    let near = accepted
        .iter()
        .zip(wanted)
        .all(|(got, wanted)| got.abs_diff(wanted) <= 2);
    assert!(near, "{accepted:?}");
    world::assert_at_rest(&three.relay, three.baseline);
}

fn rendezvous() {
    let places = |name: &str, targets: &str| {
        let three = three(name, ECHOES, targets, "balance = \"rendezvous\"");
        let mut places = Vec::new();
        for n in 0..12 {
            let before = three.accepted();
            for _ in 0..2 {
                assert!(exchange(&three.hosts.node, &format!("vpce-{n:017x}")));
            }
            let gained = three.accepted();
            let place = (0..3).find(|at| gained[*at] == before[*at] + 2);
            places.push(place.unwrap_or_else(|| panic!("{n} is on two: {before:?} {gained:?}")));
        }
        places
    };
    let backwards = THREE.iter().rev().map(|at| format!("{at:?}"));
    let first = places("hash-one", &all_three());
    let second = places("hash-two", &backwards.collect::<Vec<_>>().join(", "));
    assert_eq!(first, second, "whatever the order of the answers");
    assert!((0..3).all(|at| first.contains(&at)), "{first:?}");
}

fn ejected() {
    let manners = [Some(Manner::Echo), Some(Manner::Echo), None];
    let keys = "balance = \"round_robin\"\neject = { pause = \"1s\" }\nslow_start = \"off\"";
    let mut three = three("ejected", manners, &all_three(), keys);
    for _ in 0..9 {
        assert!(exchange(&three.hosts.node, world::ENDPOINT));
    }
    three
        .relay
        .wait_log("connects failed in a row; left alone for 1s");
    assert_eq!(three.state(THREE[2]), "ejected");
    assert_eq!(
        three.relay.metric("tollgate_upstream_ejections_total", &[]),
        1
    );
    let origin = Origin::start(&three.hosts.origin, THREE[2], Manner::Echo);
    three.origins.insert(THREE[2], origin);
    three.relay.wait_log("address serves again");
    for _ in 0..9 {
        assert!(exchange(&three.hosts.node, world::ENDPOINT));
    }
    assert_eq!(three.origins[THREE[2]].books().accepted, 3);
    assert_eq!(three.state(THREE[2]), "usable");
    world::assert_at_rest(&three.relay, three.baseline);
}

/// It accepts, and resets before it has said a word.
fn early_resets(endpoint: fn(u32) -> String) {
    let manners = [
        Some(Manner::Echo),
        Some(Manner::Echo),
        Some(Manner::ResetAfter(10)),
    ];
    let keys = "balance = \"round_robin\"\neject = { pause = \"5m\" }";
    let three = three("early", manners, &all_three(), keys);
    let mut failed = 0;
    while three.relay.metric("tollgate_upstream_ejections_total", &[]) == 0 {
        failed += u32::from(!exchange(&three.hosts.node, &endpoint(failed)));
        assert!(failed < 10, "nothing is learnt");
    }
    assert!(failed >= 3);
    for _ in 0..6 {
        assert!(exchange(&three.hosts.node, world::ENDPOINT));
    }
    three
        .relay
        .wait_log("connections were reset before a byte in a row");
    world::assert_at_rest(&three.relay, three.baseline);
}

fn one_consumer() {
    let resets = || Some(Manner::ResetAfter(10));
    let three = three(
        "one-consumer",
        [resets(), resets(), resets()],
        &all_three(),
        "",
    );
    for _ in 0..20 {
        assert!(!exchange(&three.hosts.node, world::ENDPOINT));
    }
    assert_eq!(
        three.relay.metric("tollgate_upstream_ejections_total", &[]),
        0
    );
    world::assert_at_rest(&three.relay, three.baseline);
}

fn never_all() {
    let mut three = three(
        "never-all",
        [None, None, None],
        &all_three(),
        "eject = { pause = \"5m\" }",
    );
    for _ in 0..4 {
        assert!(!exchange(&three.hosts.node, world::ENDPOINT));
    }
    three
        .relay
        .wait_metric("tollgate_upstream_ejections_total", &[], 3);
    three.relay.wait_log("whatever is thought of them");
    let origin = Origin::start(&three.hosts.origin, THREE[1], Manner::Echo);
    three.origins.insert(THREE[1], origin);
    assert!(
        exchange(&three.hosts.node, world::ENDPOINT),
        "though all are ejected"
    );
    world::assert_at_rest(&three.relay, three.baseline);
}

fn budget() {
    let keys = "retry_budget = 0\neject = { after = \"off\" }\nbalance = \"round_robin\"";
    let three = three(
        "budget",
        [Some(Manner::Echo), None, None],
        &all_three(),
        keys,
    );
    let whole = (0..9).filter(|_| exchange(&three.hosts.node, world::ENDPOINT));
    assert_eq!(whole.count(), 3, "nobody is tried after the first");
    assert_eq!(
        three.relay.metric("tollgate_upstream_retries_total", &[]),
        0
    );
    assert_eq!(
        three
            .relay
            .metric("tollgate_upstream_retries_denied_total", &[]),
        6
    );
    world::assert_at_rest(&three.relay, three.baseline);
}

/// By default it does not: a balancer resets every connection of a target that it takes for unhealthy.
fn needed() {
    for (keys, failing) in [("", 200), ("fail_without = [\"control-plane\"]", 503)] {
        let hosts = Hosts::new("needed");
        let start = before(&all_three(), "eject = { pause = \"1s\" }").replace(
            "bind = \"0.0.0.0:9901\"\n",
            &format!("bind = \"0.0.0.0:9901\"\n{keys}\n"),
        );
        hosts.origin.address("eth0", "10.30.0.3/24");
        hosts.origin.address("eth0", "10.30.0.4/24");
        let relay = start.on(&hosts.relay);
        assert_eq!(relay.get("/readyz").0, 200);
        for _ in 0..3 {
            assert!(!exchange(&hosts.node, world::ENDPOINT));
        }
        relay.wait_metric("tollgate_upstream_ejections_total", &[], 3);
        assert_eq!(relay.get("/readyz").0, failing);
        if failing == 503 {
            assert!(
                relay
                    .get("/readyz")
                    .1
                    .contains("no address of control-plane is usable")
            );
        }
        relay.wait_until("the pause to be over", || relay.get("/readyz").0 == 200);
    }
}

/// What an origin must answer, and what one that only reads does not.
const PING: &str = "health = { check = \"exchange\", send = \"ping\", expect = \"ping\", interval = \"500ms\", timeout = \"500ms\" }\nslow_start = \"off\"";

fn health() {
    let manners = [Some(Manner::Echo), Some(Manner::Sink), None];
    let targets = format!("{:?}, {:?}", THREE[0], THREE[1]);
    let mut three = three("health", manners, &targets, PING);
    three.relay.wait_until("it to be found out", || {
        three.state(THREE[1]) == "unhealthy"
    });
    for _ in 0..10 {
        assert!(exchange(&three.hosts.node, world::ENDPOINT));
    }
    three.origins[THREE[1]].kill();
    three.origins.remove(THREE[1]);
    let origin = Origin::start(&three.hosts.origin, THREE[1], Manner::Echo);
    three.origins.insert(THREE[1], origin);
    three
        .relay
        .wait_until("it to be back", || three.state(THREE[1]) == "usable");
    // The log has a thread of its own, which may be behind.
    three.relay.wait_log("answered 2 health checks");
    let lines = three.relay.log_lines("answered 2 health checks");
    let of_it = lines.iter().filter(|line| line.contains(THREE[1]));
    assert_eq!(of_it.count(), 1, "one line for each change");
    assert_eq!(
        three.relay.metric("tollgate_connections_opened_total", &[]),
        10
    );
    drop(three.origins);
}

fn local() {
    let targets = format!("{:?}", THREE[0]);
    let keys = format!("{PING}\nproxy_protocol = \"v2\"");
    let three = three("local", [Some(Manner::Echo), None, None], &targets, &keys);
    let first = three.origins[THREE[0]].wait("two checks", |books| {
        let whole = books.connections.iter().filter(|one| one.first.len() == 20);
        (whole.clone().count() >= 2).then(|| whole.clone().next().unwrap().first.clone())
    });
    assert_eq!(
        &first[..16],
        b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0",
        "LOCAL, no addresses"
    );
    assert_eq!(&first[16..], b"ping");
    assert_eq!(three.state(THREE[0]), "usable");
}
