//! Upstreams that change or go while sessions are on them, and those that do not.

use hickory_proto::rr::RecordType;
use libtest_mimic::Trial;

use super::{
    visitors::Visitors,
    world::{FIRST, Reloading, SECOND, at, config, plain, session},
};
use crate::{
    claim,
    harness::{
        dns::{Answer, Dns},
        origin::{Manner, Origin},
        relay::{Baseline, Start},
    },
    scenarios::world::ENDPOINT,
};

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        claim(
            "sessions_stay_on_a_target_that_the_upstream_no_longer_has",
            target_changed,
        ),
        claim("sessions_stay_on_an_upstream_that_is_gone", upstream_gone),
        claim(
            "sessions_leave_an_upstream_that_is_gone_where_on_vanish_says_so",
            upstream_vanished,
        ),
        claim(
            "upstream_that_does_not_change_is_not_looked_up_anew",
            not_looked_up_anew,
        ),
        claim(
            "upstream_that_changes_starts_from_what_is_known_of_its_targets",
            starts_from_what_is_known,
        ),
    ]
}

const INGEST: (&str, &str, &str) = ("ingest", "0.0.0.0:8443", "cp");

fn target_changed() {
    let world = Reloading::new("target", &plain());
    let visitors = Visitors::start(&world.hosts.node, 8, &[8443], ENDPOINT);
    let session = world.open(8443, ENDPOINT);
    visitors.wait_more(50);
    world.apply(&config(&[INGEST], &[("cp", SECOND)], ""));
    visitors.wait_more(200);
    visitors.stop().assert_all_served();
    let [first, second] = &world.origins;
    // Whoever was on his way there has arrived by now: all others go to the second.
    first.wait("all but one to have left", |books| {
        (books.open == 1).then_some(())
    });
    let so_far = first.books().accepted;
    for _ in 0..20 {
        world.exchange(8443);
    }
    assert_eq!(first.books().accepted, so_far);
    assert!(second.books().accepted > 20);
    world.goes_on(session);
    first.wait_over(so_far);
    let metrics = world.relay.metrics();
    let targets = metrics.label_values("tollgate_upstream_addresses", "target");
    assert_eq!(targets, [SECOND]);
    world.apply(&plain());
    world.assert_at_rest();
}

fn upstream_gone() {
    let both = config(
        &[INGEST, ("logs", "0.0.0.0:8444", "log-store")],
        &[("cp", FIRST), ("log-store", SECOND)],
        "",
    );
    let world = Reloading::new("upstream-gone", &both);
    let kept = world.open(8444, ENDPOINT);
    let labels = [("upstream", "log-store")];
    let active = || world.relay.metric("tollgate_connections_active", &labels);
    assert_eq!(active(), 1);
    world.apply(&config(
        &[INGEST, ("logs", "0.0.0.0:8444", "cp")],
        &[("cp", FIRST)],
        "",
    ));
    let metrics = world.relay.metrics();
    let upstreams = metrics.label_values("tollgate_upstream_addresses", "upstream");
    assert_eq!(upstreams, ["cp"]);
    world.exchange(8444);
    assert_eq!(
        world.origins[1].books().accepted,
        1,
        "new ones go elsewhere"
    );
    assert_eq!(active(), 1, "it is still on the books");
    world.goes_on(kept);
    world
        .relay
        .wait_until("it to be off the books", || active() == 0);
    let labels = [("upstream", "log-store"), ("direction", "to_upstream")];
    assert_eq!(world.relay.metric("tollgate_bytes_total", &labels), 301_000);
    world.apply(&both);
    world.exchange(8444);
    world.assert_at_rest();
}

fn upstream_vanished() {
    let listeners = |second: &'static str| [INGEST, ("logs", "0.0.0.0:8444", second)];
    let closing = |text: String| {
        let name = "name = \"log-store\"\n";
        text.replace(
            name,
            &format!("{name}on_vanish = \"close\"\nvanish_spread = \"0s\"\n"),
        )
    };
    let both = closing(config(
        &listeners("log-store"),
        &[("cp", FIRST), ("log-store", SECOND)],
        "",
    ));
    let world = Reloading::new("upstream-vanished", &both);
    let stays = world.open(8443, ENDPOINT);
    let left = world.open(8444, ENDPOINT);
    // Another name for the same place is no reason to leave it.
    let renamed = config(&listeners("logs"), &[("cp", FIRST), ("logs", SECOND)], "");
    world.apply(&renamed);
    world.goes_on(left);
    world.apply(&both);
    let _closed = world.open(8444, ENDPOINT);
    world.apply(&config(&[INGEST], &[("cp", FIRST)], ""));
    let labels = [("upstream", "log-store"), ("reason", "vanished")];
    world
        .relay
        .wait_metric("tollgate_connections_closed_total", &labels, 1);
    world.goes_on(stays);
    world.assert_at_rest();
}

const NAME: &str = "cp.us-east-1.example.internal";
const RESOLVER: &str = "10.30.0.2:53";

/// A relay that knows its upstream by name.
#[track_caller]
fn named(name: &str) -> (Reloading, Dns, String) {
    let hosts = super::world::busy_hosts(name);
    let origins = [FIRST, SECOND].map(|at| Origin::start(&hosts.origin, at, Manner::Echo));
    let dns = Dns::start(&hosts.origin, RESOLVER);
    dns.set(NAME, Answer::addresses(&["10.30.0.2"], 300));
    let tables = format!("[resolver]\nservers = [\"{RESOLVER}\"]\n");
    let text = config(&[INGEST], &[("cp", &format!("{NAME}:443"))], &tables);
    let relay = Start::with(&text).on(&hosts.relay);
    relay.wait_metric("tollgate_upstream_addresses", &[], 1);
    let world = Reloading {
        baseline: Baseline::of(&relay),
        relay,
        origins,
        hosts,
    };
    (world, dns, text)
}

fn not_looked_up_anew() {
    let (world, dns, text) = named("not-anew");
    let asked = || dns.questions(NAME, RecordType::A);
    let before = asked();
    assert!(before > 0);
    for minutes in 1..=5 {
        let text = text.replace(
            "[resolver]",
            &format!("[session]\nidle_timeout = \"{minutes}m\"\n[resolver]"),
        );
        world.apply(&text);
        world.exchange(8443);
    }
    assert_eq!(asked(), before);
    world.assert_at_rest();
}

fn starts_from_what_is_known() {
    let (world, dns, text) = named("known");
    let visitors = Visitors::start(&world.hosts.node, 4, &[8443], ENDPOINT);
    visitors.wait_more(20);
    // Nobody answers any more, and the upstream is another one: another name, another bound, one more target.
    dns.kill();
    for (from, to) in [
        ("\"cp\"", "\"control-plane\""),
        ("targets", "connect_timeout = \"3s\"\ntargets"),
        ("[resolver]", "[session]\nidle_timeout = \"3m\"\n[resolver]"),
    ] {
        world.apply(&text.replace(from, to));
        visitors.wait_more(20);
    }
    let seen = visitors.stop();
    seen.assert_all_served();
    let last = session(at(8443), ENDPOINT, 7, 7000);
    world.hosts.node.run(last).unwrap();
    let failed = [("reason", "no_address")];
    assert_eq!(
        world
            .relay
            .metric("tollgate_connections_closed_total", &failed),
        0
    );
}
