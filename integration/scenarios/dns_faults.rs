//! Resolvers that die, lose packets or lead astray, and addresses that do not answer: D6 and D7.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use hickory_proto::{
    op::ResponseCode,
    rr::RecordType::{A, AAAA},
};
use libtest_mimic::Trial;
use serde_json::Value;

use super::{
    dns::{NAME, Names, TARGETS, by_name, by_names, targets, wait_addresses},
    world::{SHIPPED, exchange, refused},
};
use crate::{
    claim,
    harness::{
        dns::{Answer, Dns},
        origin::{Manner, Origin},
        relay::Start,
    },
};

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        claim(
            "resolver_that_dies_and_comes_back_costs_no_connection",
            dies,
        ),
        claim("lost_source_port_costs_one_try", lost_port),
        claim(
            "second_resolver_is_asked_where_the_first_is_dead",
            first_dead,
        ),
        claim(
            "second_resolver_is_asked_where_the_first_fails",
            first_fails,
        ),
        claim("connect_error_has_the_name_looked_up_again", connect_error),
        claim(
            "connect_errors_have_the_name_looked_up_once_a_second",
            connect_errors,
        ),
        claim(
            "no_more_questions_a_second_than_allowed_retries_included",
            rate,
        ),
        claim("answer_that_leads_back_here_is_left_out", own_listener),
        claim("nothing_but_loops_is_no_address", only_loops),
        claim("forbidden_addresses_are_left_out_unless_allowed", forbidden),
        claim("hundreds_of_names_rest_between_their_questions", crowd),
    ]
}

const GOOD: &str = "10.30.0.2:443";

fn good(ttl: u32) -> Answer {
    Answer::addresses(&["10.30.0.2"], ttl)
}

/// Some pauses between look-ups long. Ten minutes of it, with a clock that is told to go on: `a_resolver_that_is_dead_for_ten_minutes_…`
/// beside the decision itself.
fn dies() {
    let mut names = Names::new("dies", good(1));
    names.wait_addresses(&[GOOD]);
    names.dns.kill();
    names.wait_stale(true);
    names.exchange();
    // Two families, each of which waited for all the tries of a look-up (7 s) and for a pause.
    names.wait_failures(2);
    names.wait_failures(4);
    names.exchange();
    assert_eq!(names.said("the last good answer stays in use"), 1);
    let failure = names.target()["failure"].to_string();
    assert!(failure.contains("10.30.0.2:53 did not answer"), "{failure}");
    names.dns = Dns::start(&names.hosts.origin, "10.30.0.2:53");
    names.dns.set(NAME, Answer::addresses(&["10.30.0.3"], 1));
    names.wait_addresses(&["10.30.0.3:443"]);
    names.relay.wait_log("name resolves again");
    names.exchange();
    assert_eq!(names.accepted(), [2, 1, 0]);
    names.assert_at_rest();
}

fn lost_port() {
    let lossy = Answer::LosingAPort(Box::new(good(60)));
    let start = by_names("family = \"ipv4\"", "", &[NAME]);
    let names = Names::with("lost-port", lossy, start);
    names.wait_addresses(&[GOOD]);
    assert_eq!(names.failures(), 0);
    let ports: BTreeSet<u16> = names.dns.asked().iter().map(|asked| asked.port).collect();
    assert_eq!((names.dns.questions(NAME, A), ports.len()), (2, 2));
    assert_eq!(names.relay.metric("tollgate_dns_queries_total", &[]), 2);
    names.exchange();
    names.assert_at_rest();
}

/// The first of two servers.
fn before_a_good_one(first: &str) -> Start {
    let pair = format!("servers = [\"{first}\", \"10.30.0.2\"]");
    by_name().replace("servers = [\"10.30.0.2\"]", &pair)
}

fn first_dead() {
    let names = Names::with("first-dead", good(1), before_a_good_one("10.30.0.3"));
    names.wait_addresses(&[GOOD]);
    names.dns.wait_more_questions(NAME, A, 2);
    assert_eq!(names.failures(), 0);
    names.exchange();
    names.assert_at_rest();
}

fn first_fails() {
    let (hosts, dns, _origins) = Names::before("first-fails", good(1));
    let first = Dns::start(&hosts.origin, "10.30.0.3:53");
    first.set(NAME, Answer::Code(ResponseCode::ServFail));
    let relay = before_a_good_one("10.30.0.3").on(&hosts.relay);
    wait_addresses(&relay, &[GOOD]);
    first.wait_questions(NAME, A, 3);
    dns.wait_questions(NAME, A, 3);
    assert_eq!(relay.metric("tollgate_dns_failures_total", &[]), 0);
    exchange(&hosts.node);
}

fn connect_error() {
    let names = Names::new("connect-error", Answer::addresses(&["10.30.0.9"], 3600));
    names.wait_addresses(&["10.30.0.9:443"]);
    names.hosts.origin.address("eth0", "10.30.0.9/24"); // there, and nobody listens
    names.dns.set(NAME, good(3600));
    refused(&names.hosts.node);
    names.wait_addresses(&[GOOD]);
    names.exchange();
    assert_eq!(names.accepted(), [1, 0, 0]);
    names.assert_at_rest();
}

fn connect_errors() {
    let began = Instant::now();
    let names = Names::new("connect-errors", Answer::addresses(&["10.30.0.9"], 3600));
    names.wait_addresses(&["10.30.0.9:443"]);
    names.hosts.origin.address("eth0", "10.30.0.9/24");
    let mut clients = 0;
    while names.dns.questions(NAME, A) < 4 {
        refused(&names.hosts.node);
        clients += 1;
    }
    let most = began.elapsed().as_secs() + 1;
    for kind in [A, AAAA] {
        let asked = names.dns.questions(NAME, kind);
        assert!(
            asked <= most,
            "{asked} for {kind} in {most} s, of {clients} clients"
        );
    }
    assert!(clients > 4, "not one each");
    names.assert_at_rest();
}

fn rate() {
    const NAMES: usize = 8;
    let of = |n: usize| format!("n{n}.example.internal");
    let list: Vec<String> = (0..NAMES).map(of).collect();
    let list: Vec<&str> = list.iter().map(String::as_str).collect();
    let (hosts, dns, _origins) = Names::before("rate", good(1));
    for (n, name) in list.iter().enumerate() {
        dns.set(name, if n % 2 == 0 { good(1) } else { Answer::Silence });
    }
    let began = Instant::now();
    let relay = by_names("queries_per_second = 5", "", &list).on(&hosts.relay);
    for name in &list {
        dns.wait_questions(name, A, 2);
        dns.wait_questions(name, AAAA, 2);
    }
    let times: Vec<Instant> = dns.asked().iter().map(|asked| asked.at).collect();
    assert!(times.len() >= 4 * NAMES);
    for (n, came) in (0..).zip(&times) {
        let soonest = began + n * Duration::from_millis(200);
        assert!(
            *came >= soonest,
            "question {n}: {:?} early",
            soonest - *came
        );
    }
    let sent = relay.metric("tollgate_dns_queries_total", &[]);
    assert!(sent >= times.len() as u64);
}

/// The upstream has the listener's port.
fn at_the_listeners_port() -> Start {
    let table = "[resolver]\nservers = [\"10.30.0.2\"]\n\n[health]\n";
    Start::with(SHIPPED)
        .replace("[health]\n", table)
        .replace(TARGETS, &targets("", &[NAME]).replace(":443", ":8443"))
}

fn own_listener() {
    let addresses = &["10.20.0.2", "127.0.0.1", "10.30.0.2", "10.30.0.1"];
    let (hosts, dns, _origins) = Names::before("loop", Answer::rotating(addresses, 1));
    let origin = Origin::start(&hosts.origin, "10.30.0.2:8443", Manner::Echo);
    let relay = at_the_listeners_port().on(&hosts.relay);
    wait_addresses(&relay, &["10.30.0.2:8443"]);
    dns.wait_more_questions(NAME, A, 4);
    for _ in 0..5 {
        exchange(&hosts.node);
    }
    assert_eq!(origin.books().accepted, 5);
    assert_eq!(
        relay
            .log_lines("not every address of the answer is used")
            .len(),
        1
    );
    assert_eq!(relay.metric("tollgate_dns_stale", &[]), 0);
    assert_eq!(relay.metric("tollgate_dns_failures_total", &[]), 0);
    let failure = super::dns::target(&relay)["failure"].to_string();
    let expected =
        "left out 10.20.0.2, 10.30.0.1: port 8443 there is this relay's own listener, a loop";
    assert!(failure.contains(expected), "{failure}");
}

fn only_loops() {
    let answer = Answer::addresses(&["10.20.0.2"], 1);
    let (hosts, dns, _origins) = Names::before("only-loops", answer);
    let relay = at_the_listeners_port().on(&hosts.relay);
    let line = relay.wait_log("no earlier answer serves");
    assert!(line.contains("own listener, a loop"), "{line}");
    refused(&hosts.node);
    dns.wait_more_questions(NAME, A, 2);
    assert_eq!(relay.log_lines("no earlier answer serves").len(), 1);
    assert_eq!(
        relay.metric("tollgate_connections_opened_total", &[]),
        1,
        "one, not a circle of them"
    );
}

fn forbidden() {
    let addresses = || {
        Answer::addresses(
            &[
                "169.254.169.254",
                "10.30.0.2",
                "fe80::1",
                "::ffff:10.30.0.3",
            ],
            1,
        )
    };
    let names = Names::new("forbidden", addresses());
    names.wait_addresses(&[GOOD, "10.30.0.3:443"]);
    let failure = names.target()["failure"].to_string();
    for text in [
        "left out 169.254.169.254",
        "left out fe80::1",
        "see allow_addresses",
    ] {
        assert!(failure.contains(text), "{failure}");
    }
    names.exchange();
    names
        .dns
        .set(NAME, Answer::addresses(&["169.254.169.254"], 1));
    names.wait_stale(true);
    names.exchange();
    assert_eq!(
        names.accepted().iter().sum::<u64>(),
        2,
        "the last good ones serve"
    );

    let allowed = by_names(
        "family = \"ipv4\"",
        "allow_addresses = [\"169.254.0.0/16\"]",
        &[NAME],
    );
    let names = Names::with("allowed", addresses(), allowed);
    names.wait_addresses(&[GOOD, "169.254.169.254:443"]);
    assert_eq!(names.target()["failure"], Value::Null);
}

fn crowd() {
    const NAMES: usize = 500;
    let of = |n: usize| format!("n{n}.example.internal");
    let list: Vec<String> = (0..NAMES).map(of).collect();
    let list: Vec<&str> = list.iter().map(String::as_str).collect();
    let (hosts, dns, _origins) = Names::before("crowd", good(3600));
    for (n, name) in list.iter().enumerate() {
        let address = format!("10.66.{}.{}", n / 250, n % 250 + 1);
        dns.set(name, Answer::addresses(&[&address], 3600));
    }
    let relay = by_names("queries_per_second = 1000", "", &list).on(&hosts.relay);
    relay.wait_until("all of them", || {
        relay.metric("tollgate_upstream_addresses", &[]) == NAMES as u64
    });
    for name in &list {
        dns.wait_questions(name, AAAA, 1);
    }
    relay.assert_at_rest();
}
