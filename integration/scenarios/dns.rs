//! Names whose answers change, go bad and come back: D1, D2 and D5.

use std::{collections::BTreeSet, time::Duration};

use hickory_proto::{
    op::ResponseCode,
    rr::RecordType::{A, AAAA},
};
use libtest_mimic::Trial;
use serde_json::Value;

use super::world::{self, Hosts, SHIPPED, exchange, refused};
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
        claim("every_change_of_an_answer_is_followed", changes),
        claim(
            "name_that_moves_to_the_other_family_is_followed_at_once",
            other_family,
        ),
        claim("servfail_keeps_the_last_good_answer", || {
            bad_answer(Answer::Code(ResponseCode::ServFail), "answered SERVFAIL");
        }),
        claim("refused_question_keeps_the_last_good_answer", || {
            bad_answer(Answer::Code(ResponseCode::Refused), "answered REFUSED");
        }),
        claim("nxdomain_keeps_the_last_good_answer", || {
            bad_answer(
                Answer::Code(ResponseCode::NXDomain),
                "says that there is no such name",
            );
        }),
        claim("empty_answer_keeps_the_last_good_answer", || {
            bad_answer(Answer::addresses(&[], 1), "says that the name has none");
        }),
        claim("garbage_keeps_the_last_good_answer", || {
            bad_answer(Answer::Garbage, "answered something that is no answer");
        }),
        claim("silence_keeps_the_last_good_answer", || {
            bad_answer(Answer::Silence, "did not answer");
        }),
        claim("circle_of_aliases_keeps_the_last_good_answer", || {
            bad_answer(Answer::alias(NAME, 1), "its aliases go in a circle");
        }),
        claim(
            "last_good_answer_serves_no_longer_than_stale_for",
            stale_for,
        ),
        claim(
            "one_family_that_fails_leaves_the_name_fresh_with_a_note",
            one_family_fails,
        ),
        claim(
            "first_client_waits_for_the_family_that_answers_last",
            late_family,
        ),
        claim("ttl_is_kept_to_within_min_ttl_and_max_ttl", ttls),
        claim("answers_in_another_order_change_nothing", another_order),
        claim("flood_of_addresses_is_cut_and_said_once", flood),
        claim("short_names_are_looked_for_in_search_domains", search),
    ]
}

/// The name in the shipped configuration.
pub(super) const NAME: &str = "cp.us-east-1.example.internal";

/// What it is an alias for, in tests with aliases.
pub(super) const OTHER_NAME: &str = "lb.us-east-1.example.internal";

/// Where three origins stand ready.
const ORIGINS: [&str; 3] = ["10.30.0.2:443", "10.30.0.3:443", "[fd30::2]:443"];

/// A world whose upstream is a name.
pub(super) struct Names {
    pub(super) relay: Relay,
    pub(super) baseline: Baseline,
    pub(super) dns: Dns,
    origins: [Origin; 3],
    pub(super) hosts: Hosts,
}

impl Names {
    #[track_caller]
    pub(super) fn new(name: &str, answer: Answer) -> Self {
        Self::with(name, answer, by_name())
    }

    #[track_caller]
    pub(super) fn with(name: &str, answer: Answer, start: Start) -> Self {
        let (hosts, dns, origins) = Self::before(name, answer);
        let relay = start.on(&hosts.relay);
        Self {
            baseline: Baseline::of(&relay),
            relay,
            dns,
            origins,
            hosts,
        }
    }

    /// All but the relay.
    #[track_caller]
    pub(super) fn before(name: &str, answer: Answer) -> (Hosts, Dns, [Origin; 3]) {
        let hosts = Hosts::new(name);
        hosts.origin.address("eth0", "10.30.0.3/24");
        hosts.origin.address("eth0", "fd30::2/64");
        hosts.relay.address("eth1", "fd30::1/64");
        let dns = Dns::start(&hosts.origin, "10.30.0.2:53");
        dns.set(NAME, answer);
        let origins = ORIGINS.map(|at| Origin::start(&hosts.origin, at, Manner::Echo));
        (hosts, dns, origins)
    }

    /// How the target stands in `/status`.
    #[track_caller]
    pub(super) fn target(&self) -> Value {
        target(&self.relay)
    }

    #[track_caller]
    pub(super) fn addresses(&self) -> BTreeSet<String> {
        addresses(&self.relay)
    }

    /// Waits until exactly these are in use.
    #[track_caller]
    pub(super) fn wait_addresses(&self, wanted: &[&str]) {
        wait_addresses(&self.relay, wanted);
    }

    /// Waits until the name is stale, or no longer.
    #[track_caller]
    pub(super) fn wait_stale(&self, stale: bool) {
        let labels = [("target", &*format!("{NAME}:443"))];
        self.relay
            .wait_metric("tollgate_dns_stale", &labels, u64::from(stale));
    }

    pub(super) fn failures(&self) -> u64 {
        self.relay.metric("tollgate_dns_failures_total", &[])
    }

    /// Waits until so many look-ups have failed.
    #[track_caller]
    pub(super) fn wait_failures(&self, n: u64) {
        self.relay
            .wait_until(&format!("{n} failures"), || self.failures() >= n);
    }

    /// So many lines of the log with `text` so far.
    pub(super) fn said(&self, text: &str) -> usize {
        self.relay.log_lines(text).len()
    }

    /// One connection through the relay, with bytes both ways.
    #[track_caller]
    pub(super) fn exchange(&self) {
        exchange(&self.hosts.node);
    }

    /// Connections each origin has had.
    pub(super) fn accepted(&self) -> [u64; 3] {
        [0, 1, 2].map(|n| self.origins[n].books().accepted)
    }

    #[track_caller]
    pub(super) fn assert_at_rest(&self) {
        world::assert_at_rest(&self.relay, self.baseline);
    }
}

#[track_caller]
pub(super) fn target(relay: &Relay) -> Value {
    relay.status()["upstreams"][0]["targets"][0].clone()
}

#[track_caller]
fn addresses(relay: &Relay) -> BTreeSet<String> {
    let target = target(relay);
    let addresses = target["addresses"].as_array().unwrap().iter();
    let texts = addresses.map(|member| member["address"].as_str().unwrap().to_owned());
    texts.collect()
}

#[track_caller]
pub(super) fn wait_addresses(relay: &Relay, wanted: &[&str]) {
    let wanted: BTreeSet<String> = wanted.iter().map(|at| (*at).to_owned()).collect();
    relay.wait_until(&format!("{wanted:?} to be in use"), || {
        addresses(relay) == wanted
    });
}

/// The shipped configuration with the scripted resolver.
pub(super) fn by_name() -> Start {
    by_names("", "", &[NAME])
}

/// As [`by_name`], with keys added to `[resolver]` and to the upstream, and other names for it.
pub(super) fn by_names(resolver: &str, upstream: &str, names: &[&str]) -> Start {
    let table = format!("[resolver]\nservers = [\"10.30.0.2\"]\n{resolver}\n\n[health]\n");
    Start::with(SHIPPED)
        .replace("[health]\n", &table)
        .replace(TARGETS, &targets(upstream, names))
}

/// The line of the shipped configuration.
pub(super) const TARGETS: &str = "targets = [\"cp.us-east-1.example.internal:443\"]\n";

/// What stands in its place.
pub(super) fn targets(upstream: &str, names: &[&str]) -> String {
    let targets: Vec<_> = names.iter().map(|name| format!("\"{name}:443\"")).collect();
    format!("{upstream}\ntargets = [{}]\n", targets.join(", "))
}

const FOUR: &str = ORIGINS[0];
const OTHER_FOUR: &str = ORIGINS[1];
const SIX: &str = ORIGINS[2];

fn changes() {
    let names = Names::new("changes", Answer::addresses(&["10.30.0.2"], 1));
    let becomes = |answer: Answer, wanted: &[&str]| {
        names.dns.set(NAME, answer);
        names.wait_addresses(wanted);
        names.exchange();
    };
    becomes(Answer::addresses(&["10.30.0.2"], 1), &[FOUR]);
    assert_eq!(names.accepted(), [1, 0, 0]);
    becomes(Answer::addresses(&["10.30.0.3"], 1), &[OTHER_FOUR]);
    assert_eq!(names.accepted(), [1, 1, 0], "changed");
    let both = &["10.30.0.3", "10.30.0.2"];
    becomes(Answer::addresses(both, 1), &[FOUR, OTHER_FOUR]);
    becomes(Answer::addresses(&["fd30::2"], 1), &[SIX]);
    assert_eq!(names.accepted()[2], 1, "removed, and AAAA added");

    names.dns.set(NAME, Answer::addresses(&[], 1));
    names.wait_stale(true);
    names.wait_addresses(&[SIX]);
    names.exchange();
    assert_eq!(names.accepted()[2], 2, "all removed");
    assert_eq!(names.said("the last good answer stays in use"), 1);

    becomes(Answer::addresses(&["10.30.0.2"], 1), &[FOUR]);
    names.wait_stale(false);
    assert_eq!(names.said("name resolves again"), 1);

    names
        .dns
        .set(OTHER_NAME, Answer::addresses(&["10.30.0.3"], 1));
    becomes(Answer::alias(OTHER_NAME, 1), &[OTHER_FOUR]);
    assert_eq!(names.dns.totals().1, 0, "none by TCP");
    let whole = Box::new(Answer::addresses(&["10.30.0.2", "fd30::2"], 1));
    becomes(Answer::Truncated(whole), &[FOUR, SIX]);
    assert!(names.dns.totals().1 >= 2, "whole by TCP");
    let came = || names.dns.totals().0;
    let (before, sent, after) = (
        came(),
        names.relay.metric("tollgate_dns_queries_total", &[]),
        came(),
    );
    // Up to four are on their way: two families, and each of them is counted before it is sent.
    assert!(
        (before..=after + 4).contains(&sent),
        "{before} {sent} {after}"
    );
    // The first answer, changed, added, (to six) gone and come at once or one after the other, back, to the alias, whole by TCP.
    let changes = names.said("addresses changed");
    assert!((6..=9).contains(&changes), "{changes} lines");
    names.assert_at_rest();
}

/// Although the servers say for minutes that there are none of them.
fn other_family() {
    let [four, six] = ["10.30.0.2", "fd30::2"].map(|at| Box::new(Answer::addresses(&[at], 1)));
    let none = || Box::new(Answer::None(300));
    let names = Names::new("other-family", Answer::Each(four, none()));
    names.wait_addresses(&[FOUR]);
    names.dns.wait_questions(NAME, A, 2);
    names.dns.set(NAME, Answer::Each(none(), six));
    names.wait_addresses(&[SIX]);
    names.exchange();
    assert_eq!(names.failures(), 0);
    names.assert_at_rest();
}

/// An answer that brings nothing leaves what there was, is counted each time, and is said once.
fn bad_answer(bad: Answer, said: &str) {
    let good = || Answer::addresses(&["10.30.0.2", "fd30::2"], 1);
    let names = Names::new("bad", good());
    names.wait_addresses(&[FOUR, SIX]);
    assert_eq!(names.failures(), 0);
    names.dns.set(NAME, bad);
    names.wait_stale(true);
    let failures = names.failures();
    names.wait_failures(failures + 2);
    names.wait_addresses(&[FOUR, SIX]);
    for _ in 0..5 {
        names.exchange();
    }
    let failure = names.target()["failure"].as_str().unwrap().to_owned();
    for family in ["IPv4", "IPv6"] {
        let expected = format!("{family}: 10.30.0.2:53");
        assert!(
            failure.contains(&expected) && failure.contains(said),
            "{failure}"
        );
    }
    assert_eq!(names.said("the last good answer stays in use"), 1);
    let before = names.said("addresses changed");
    assert!((1..=2).contains(&before), "one for each family at most");
    names.dns.set(NAME, good());
    names.relay.wait_log("name resolves again");
    assert_eq!(names.target()["failure"], Value::Null);
    let others = [names.said("in part"), names.said("addresses changed")];
    assert_eq!(others, [0, before], "there was no other change");
    names.wait_stale(false);
    names.exchange();
    let [one, _, other] = names.accepted();
    assert_eq!(one + other, 6);
    names.assert_at_rest();
}

fn stale_for() {
    let start = by_names("", "stale_for = \"3s\"", &[NAME]);
    let names = Names::with("stale-for", Answer::addresses(&["10.30.0.2"], 1), start);
    names.wait_addresses(&[FOUR]);
    names.dns.set(NAME, Answer::Code(ResponseCode::NXDomain));
    names.wait_stale(true);
    names.exchange();
    names.wait_addresses(&[]);
    refused(&names.hosts.node);
    assert_eq!(names.said("no earlier answer serves"), 1);
    names.dns.set(NAME, Answer::addresses(&["10.30.0.2"], 1));
    names.wait_addresses(&[FOUR]);
    names.exchange();
    names.assert_at_rest();
}

fn one_family_fails() {
    let four = || Box::new(Answer::addresses(&["10.30.0.2"], 1));
    let fails = Box::new(Answer::Code(ResponseCode::ServFail));
    let names = Names::new("one-family", Answer::Each(four(), fails));
    names.wait_addresses(&[FOUR]);
    names.wait_failures(2);
    assert_eq!(names.target()["stale"], false);
    assert_eq!(
        names.target()["failure"],
        "IPv6: 10.30.0.2:53 answered SERVFAIL"
    );
    names.exchange();
    assert_eq!(names.said("name resolves in part"), 1);
    // What has no address of a family has nothing to be said of it.
    let none = Box::new(Answer::addresses(&[], 1));
    names.dns.set(NAME, Answer::Each(four(), none));
    names
        .relay
        .wait_until("the note to go", || names.target()["failure"].is_null());
    let failures = names.failures();
    names.dns.wait_more_questions(NAME, AAAA, 3);
    assert_eq!(names.failures(), failures);
    assert_eq!(names.said("name resolves in part"), 1);
    names.assert_at_rest();
}

fn late_family() {
    let late = Answer::Late(
        Duration::from_millis(700),
        Box::new(Answer::addresses(&["10.30.0.2"], 60)),
    );
    for first in [
        Answer::Code(ResponseCode::NXDomain),
        Answer::Code(ResponseCode::ServFail),
        Answer::addresses(&["fe80::1"], 60),
    ] {
        let answer = Answer::Each(Box::new(late.clone()), Box::new(first));
        let names = Names::new("late-family", answer);
        names.exchange();
        assert_eq!(names.accepted(), [1, 0, 0]);
        assert_eq!(names.said("connections to it fail"), 0);
    }
}

fn ttls() {
    const ZERO: &str = "zero.example.internal";
    const ONE: &str = "one.example.internal";
    const DAY: &str = "day.example.internal";
    const OTHER_DAY: &str = "other.example.internal";
    let bounds = "min_ttl = \"1s\"\nmax_ttl = \"3s\"";
    let start = by_names("family = \"ipv4\"", bounds, &[ZERO, ONE, DAY, OTHER_DAY]);
    let (hosts, dns, _origins) = Names::before("ttls", Answer::Silence);
    for (name, ttl) in [(ZERO, 0), (ONE, 1), (DAY, 86400), (OTHER_DAY, 86400)] {
        dns.set(name, Answer::addresses(&["10.30.0.2"], ttl));
    }
    let relay = start.on(&hosts.relay);
    dns.wait_questions(DAY, A, 4);
    dns.wait_questions(OTHER_DAY, A, 4);
    // Time is what is tested: nothing is asked for before it may be, as the server sees it. 10 ms are for the way there.
    for (name, least) in [(ZERO, 1000), (ONE, 1000), (DAY, 2400), (OTHER_DAY, 2400)] {
        let asked = dns.asked().into_iter().filter(|asked| asked.name == name);
        let times: Vec<_> = asked.map(|asked| asked.at).collect();
        let gaps = times.windows(2).map(|pair| pair[1] - pair[0]);
        let shortest = gaps.min().unwrap() + Duration::from_millis(10);
        assert!(
            shortest >= Duration::from_millis(least),
            "{name}: {shortest:?}"
        );
    }
    assert!(
        dns.questions(ONE, A) > dns.questions(DAY, A),
        "each by its own"
    );
    assert_eq!(dns.questions(ONE, AAAA), 0, "nobody wants them");
    assert!(relay.log_lines("does not resolve").is_empty());
}

fn another_order() {
    let addresses = &["10.30.0.2", "10.30.0.3", "fd30::2"];
    let names = Names::new("order", Answer::rotating(addresses, 1));
    names.wait_addresses(&ORIGINS);
    names.dns.set(OTHER_NAME, Answer::rotating(addresses, 1));
    names.dns.set(NAME, Answer::alias(OTHER_NAME, 1));
    let changes = names.said("addresses changed");
    names.dns.wait_more_questions(NAME, A, 4);
    for _ in 0..30 {
        names.exchange();
    }
    assert_eq!(names.said("addresses changed"), changes);
    assert_eq!(names.said("the name has none") + names.said("again"), 0);
    let accepted = names.accepted();
    assert!(accepted.iter().all(|n| *n > 0), "fair use: {accepted:?}");
    names.assert_at_rest();
}

fn flood() {
    let many: Vec<String> = (0..4000)
        .map(|n| format!("10.66.{}.{}", n / 250, n % 250 + 1))
        .collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let names = Names::new("flood", Answer::rotating(&many, 1));
    names
        .relay
        .wait_until("a bounded part of them", || names.addresses().len() == 256);
    let before = names.addresses();
    names.dns.wait_more_questions(NAME, A, 6);
    assert_eq!(names.addresses(), before, "whichever come first");
    assert_eq!(names.said("addresses changed"), 1);
    assert_eq!(names.said("not every address of the answer is used"), 1);
    let failure = names.target()["failure"].to_string();
    assert!(failure.contains("more than 256 addresses"), "{failure}");
    assert_eq!(names.target()["stale"], false);
}

fn search() {
    let keys = "search = [\"eu-west-1.example.internal\", \"us-east-1.example.internal\"]";
    let answer = Answer::addresses(&["10.30.0.2"], 60);
    let names = Names::with("search", answer, by_names(keys, "", &["cp"]));
    names.wait_addresses(&[FOUR]);
    names.exchange();
    assert!(names.dns.questions("cp.eu-west-1.example.internal", A) >= 1);
    assert_eq!(names.dns.questions("cp", A), 0, "it was found before");
    names.assert_at_rest();
}
