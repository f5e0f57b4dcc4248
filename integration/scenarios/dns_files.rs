//! `/etc/resolv.conf` and `/etc/hosts`, rewritten under a relay that runs.

use hickory_proto::rr::RecordType::A;
use libtest_mimic::Trial;

use super::{
    dns::{NAME, Names, by_name, wait_addresses},
    world::{SHIPPED, exchange},
};
use crate::{
    claim,
    harness::{
        dns::{Answer, Dns},
        netns::Host,
        relay::{Relay, Start},
    },
};

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        claim("resolv_conf_is_followed_when_it_changes", resolv_conf),
        claim(
            "dead_resolver_is_left_when_resolv_conf_names_another",
            from_a_dead_one,
        ),
        claim(
            "resolv_conf_without_sense_is_kept_as_it_was",
            broken_resolv_conf,
        ),
        claim(
            "resolv_conf_is_not_looked_at_where_servers_are_configured",
            configured_servers,
        ),
        claim("hosts_are_followed_when_they_change", hosts_change),
        claim("hosts_without_sense_are_kept_as_they_were", broken_hosts),
    ]
}

const FIRST: &str = "nameserver 10.30.0.2\n";
const SECOND: &str = "nameserver 10.30.0.3\n";
const HOSTS: &str = "127.0.0.1 localhost\n";

const ONE: &str = "10.30.0.2:443";
const OTHER: &str = "10.30.0.3:443";

/// The shipped configuration, whose name servers are the system's. One question for each name, so that they can be counted.
fn start(resolv_conf: &str, hosts: &str) -> Start {
    Start::with(SHIPPED)
        .replace("[health]\n", "[resolver]\nfamily = \"ipv4\"\n\n[health]\n")
        .etc(resolv_conf, hosts)
}

/// Two name servers that say different things; no answer ends by itself while a test runs.
fn two_servers(origin: &Host, first: &Dns) -> Dns {
    let second = Dns::start(origin, "10.30.0.3:53");
    first.set(NAME, Answer::addresses(&["10.30.0.2"], 3600));
    second.set(NAME, Answer::addresses(&["10.30.0.3"], 3600));
    second
}

fn said(relay: &Relay, text: &str) -> usize {
    relay.log_lines(text).len()
}

fn resolv_conf() {
    let (hosts, first, origins) = Names::before("resolv-conf", Answer::Silence);
    let second = two_servers(&hosts.origin, &first);
    let relay = start(FIRST, HOSTS).on(&hosts.relay);
    wait_addresses(&relay, &[ONE]);
    exchange(&hosts.node);
    let before = first.totals();
    relay.rewrite_etc("resolv.conf", SECOND);
    wait_addresses(&relay, &[OTHER]);
    exchange(&hosts.node);
    assert_eq!(first.totals(), before, "it is asked no more");
    assert!(second.questions(NAME, A) == 1, "and the other one once");
    assert_eq!(said(&relay, "/etc/resolv.conf has changed"), 1);
    assert_eq!(
        [origins[0].books().accepted, origins[1].books().accepted],
        [1, 1]
    );
}

/// It was being asked, and had not failed yet: that is not waited for.
fn from_a_dead_one() {
    let (hosts, first, _origins) = Names::before("from-a-dead-one", Answer::Silence);
    let second = Dns::start(&hosts.origin, "10.30.0.3:53");
    second.set(NAME, Answer::addresses(&["10.30.0.3"], 3600));
    let relay = start(FIRST, HOSTS).on(&hosts.relay);
    first.wait_questions(NAME, A, 1);
    relay.rewrite_etc("resolv.conf", SECOND);
    wait_addresses(&relay, &[OTHER]);
    assert_eq!(relay.metric("tollgate_dns_failures_total", &[]), 0);
    exchange(&hosts.node);
}

fn broken_resolv_conf() {
    let (hosts, first, _origins) =
        Names::before("broken-resolv-conf", Answer::addresses(&["10.30.0.2"], 1));
    let relay = start(FIRST, HOSTS).on(&hosts.relay);
    wait_addresses(&relay, &[ONE]);
    relay.rewrite_etc("resolv.conf", "");
    let line = relay.wait_log("what it said before stays");
    assert!(line.contains("/etc/resolv.conf"), "{line}");
    first.wait_more_questions(NAME, A, 5);
    assert_eq!(said(&relay, "what it said before stays"), 1);
    assert_eq!(relay.metric("tollgate_dns_failures_total", &[]), 0);
    let _second = two_servers(&hosts.origin, &first);
    relay.rewrite_etc("resolv.conf", SECOND);
    wait_addresses(&relay, &[OTHER]);
}

fn configured_servers() {
    let (hosts, first, _origins) =
        Names::before("configured", Answer::addresses(&["10.30.0.2"], 1));
    let relay = by_name().etc("", HOSTS).on(&hosts.relay);
    wait_addresses(&relay, &[ONE]);
    let second = two_servers(&hosts.origin, &first);
    first.set(NAME, Answer::addresses(&["10.30.0.2"], 1));
    relay.rewrite_etc("resolv.conf", SECOND);
    // The hosts file is looked at in the same look.
    relay.rewrite_etc("hosts", "127.0.0.1 localhost other\n");
    relay.wait_log("/etc/hosts has changed");
    first.wait_more_questions(NAME, A, 2);
    assert_eq!(second.totals().0, 0);
    assert_eq!(said(&relay, "resolv.conf"), 0);
}

fn hosts_change() {
    let (hosts, dns, _origins) = Names::before("hosts", Answer::addresses(&["10.30.0.2"], 3600));
    let relay = start(FIRST, HOSTS).on(&hosts.relay);
    wait_addresses(&relay, &[ONE]);
    let asked = dns.totals();
    let by_hand = format!("{HOSTS}10.30.0.3 {NAME}\n");
    relay.rewrite_etc("hosts", &by_hand);
    wait_addresses(&relay, &[OTHER]);
    exchange(&hosts.node);
    assert_eq!(dns.totals(), asked, "it is the operator's word");
    // In place, as an editor may do it.
    std::fs::write(relay.folder().join("etc/hosts"), HOSTS).unwrap();
    wait_addresses(&relay, &[ONE]);
    exchange(&hosts.node);
    assert!(dns.totals() > asked);
}

fn broken_hosts() {
    let (hosts, dns, _origins) =
        Names::before("broken-hosts", Answer::addresses(&["10.30.0.2"], 3600));
    let by_hand = format!("10.30.0.3 {NAME}\n");
    let relay = start(FIRST, &by_hand).on(&hosts.relay);
    wait_addresses(&relay, &[OTHER]);
    for broken in ["", "# nothing yet\n"] {
        let lines = said(&relay, "what it said before stays");
        relay.rewrite_etc("hosts", broken);
        relay.wait_until("a line", || {
            said(&relay, "what it said before stays") == lines + 1
        });
        exchange(&hosts.node);
    }
    assert_eq!(dns.totals().0, 0, "DNS was never asked");
    std::fs::remove_file(relay.folder().join("etc/hosts")).unwrap();
    relay.wait_until("a third line", || {
        said(&relay, "what it said before stays") == 3
    });
    exchange(&hosts.node);
}
