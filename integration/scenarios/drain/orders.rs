//! `tollgate drain` and `tollgate undrain`: the process stays.

use std::thread;

use libtest_mimic::Trial;

use super::{draining, open, told, wait_phase};
use crate::{
    claim,
    harness::{
        agent::Agent,
        nlb::header,
        origin::Manner,
        relay::{Relay, Signal},
        stream::End,
    },
    scenarios::world::{
        ENDPOINT, LISTENER, World, connected, exchange, listener, privatelink_header, shipped_and,
    },
};

pub(super) fn tests() -> Vec<Trial> {
    vec![
        claim(
            "drained_relay_stays_refuses_and_takes_part_again",
            drained_relay_stays_refuses_and_takes_part_again,
        ),
        claim(
            "drained_relay_answers_health_checks_and_sends_the_silent_away",
            drained_relay_answers_health_checks_and_sends_the_silent_away,
        ),
        claim(
            "undrain_before_the_deadline_keeps_sessions",
            undrain_before_the_deadline_keeps_sessions,
        ),
        claim(
            "drain_is_over_when_its_last_session_is",
            drain_is_over_when_its_last_session_is,
        ),
        claim(
            "signal_during_a_drain_ends_the_process_in_order",
            signal_during_a_drain_ends_the_process_in_order,
        ),
        claim(
            "order_that_comes_too_late_is_declined",
            order_that_comes_too_late_is_declined,
        ),
        claim(
            "drain_command_waits_and_tells_how_far_it_is",
            drain_command_waits_and_tells_how_far_it_is,
        ),
        claim(
            "drain_and_undrain_a_hundred_times_leave_nothing_behind",
            drain_and_undrain_a_hundred_times_leave_nothing_behind,
        ),
    ]
}

fn readiness(relay: &Relay) -> u16 {
    relay.get("/readyz").0
}

/// One connection that is to be turned away with its header read: the books know whose it was.
#[track_caller]
fn turned_away(world: &World) {
    world.node.run(async {
        let mut agent = Agent::connect(listener()).await.unwrap();
        // The reset may come while we still wait for the header to be acknowledged.
        let _ = agent.preface(&[&privatelink_header(ENDPOINT)]).await;
        assert_eq!(agent.read_to_end().await.unwrap(), (Vec::new(), End::Reset));
    });
}

#[track_caller]
fn wait_turned_away(world: &World, n: u64) {
    let labels = [("reason", "draining")];
    world
        .relay
        .wait_metric("tollgate_refused_total", &labels, n);
    let labels = [("endpoint", ENDPOINT), labels[0]];
    world
        .relay
        .wait_metric("tollgate_endpoint_refused_total", &labels, n);
}

fn drained_relay_stays_refuses_and_takes_part_again() {
    let world = World::with(
        "drained",
        Manner::Echo,
        draining("accept_for = \"10m\"\ndeadline = \"2s\"\nspread = \"off\"\nclose = \"fin\""),
    );
    let mut agents = open(&world, 3);
    let begun = world.relay.order("/drain").done();
    assert_eq!(begun["phase"], "leaving");
    assert_eq!(
        (&begun["sessions"], &begun["sessions_at_start"]),
        (&3.into(), &3.into())
    );
    assert!(begun["next"].is_string() && begun["deadline"].is_string());
    assert_eq!(readiness(&world.relay), 503, "at once");
    assert_eq!(world.relay.get("/healthz").0, 200);
    exchange(&world.node); // connections are still taken
    let hurried = world.relay.order("/drain?now=1").done();
    assert_eq!(hurried["phase"], "finishing");
    assert_eq!(hurried["sessions_at_start"], 3);
    world.node.run(async move {
        agents[0].exchange(100_000).await.unwrap();
        for mut agent in agents.drain(1..) {
            assert_eq!(agent.read_to_end().await.unwrap(), (Vec::new(), End::Fin));
        }
        agents[0].read_to_end().await.unwrap();
    });
    wait_phase(&world.relay, "drained");
    world.wait_closed("drained", 3);
    turned_away(&world);
    wait_turned_away(&world, 1);
    let phase = |phase: &str| world.relay.metric("tollgate_phase", &[("phase", phase)]);
    assert_eq!((phase("drained"), phase("serving")), (1, 0));
    assert_eq!(world.relay.order("/undrain").done()["phase"], "serving");
    assert_eq!(readiness(&world.relay), 200);
    // Each worker hears of it by itself.
    world.relay.wait_until("connections are taken", || {
        world.node.run(async {
            let mut agent = connected(ENDPOINT).await.unwrap();
            agent.exchange(10).await.is_ok()
        })
    });
    exchange(&world.node);
    world.assert_at_rest();
}

/// The balancer's own connections are answered; one that says nothing is soon told to look elsewhere, long before `first_byte_timeout`.
fn drained_relay_answers_health_checks_and_sends_the_silent_away() {
    let start = draining("deadline = \"1s\"").replace(
        "name = \"ingest\"\n",
        "name = \"ingest\"\nheader_timeout = \"500ms\"\n",
    );
    let world = World::with("drained-health", Manner::Echo, start);
    world.relay.order("/drain?now=1").done();
    wait_phase(&world.relay, "drained");
    let question = [
        &header::health_check(),
        &b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"[..],
    ]
    .concat();
    world.node.run(async move {
        let mut check = Agent::connect(LISTENER.parse().unwrap()).await.unwrap();
        check.preface(&[&question]).await.unwrap();
        let (answer, end) = check.read_to_end().await.unwrap();
        assert!(answer.starts_with(b"HTTP/1.1 503") && end == End::Fin);
        assert!(answer.ends_with(b"drained\n"));
        let outcome = Agent::outcome(listener()).await.unwrap();
        assert_eq!(outcome, (Vec::new(), End::Reset));
    });
    let labels = [("reason", "draining")];
    world
        .relay
        .wait_metric("tollgate_refused_total", &labels, 1);
    world
        .relay
        .wait_metric("tollgate_health_checks_total", &[], 1);
    world.assert_at_rest();
}

fn undrain_before_the_deadline_keeps_sessions() {
    let world = World::with(
        "taken-back",
        Manner::Echo,
        draining("deadline = \"1500ms\"\nspread = \"1500ms\""),
    );
    let agents = open(&world, 20);
    world.relay.order("/drain?now=1").done();
    let back = world.relay.order("/undrain").done();
    assert_eq!(back["phase"], "serving");
    let left = world
        .relay
        .metric("tollgate_connections_active", &[("listener", "ingest")]);
    // What was planned for its sessions would have come by then: that is what is tested.
    thread::sleep(std::time::Duration::from_millis(2500));
    let now = world
        .relay
        .metric("tollgate_connections_active", &[("listener", "ingest")]);
    assert_eq!(now, left, "nobody is closed after it was taken back");
    assert!(left > 10, "only the unlucky were closed before: {left}");
    drop(agents);
    world.assert_at_rest();
}

fn drain_is_over_when_its_last_session_is() {
    let world = World::with(
        "emptied",
        Manner::Echo,
        draining("accept_for = \"10m\"\ndeadline = \"10m\""),
    );
    let mut agents = open(&world, 2);
    world.relay.order("/drain?now=1").done();
    let mut last = agents.pop().unwrap();
    drop(agents);
    world
        .relay
        .wait_until("one to be left", || told(&world.relay)["sessions"] == 1);
    assert_eq!(told(&world.relay)["phase"], "finishing");
    world.node.run(async move {
        last.exchange(100_000).await.unwrap();
        last.finish().unwrap();
        assert_eq!(last.expect_to_end(0).await.unwrap(), End::Fin);
    });
    wait_phase(&world.relay, "drained");
    world.assert_at_rest();
}

fn signal_during_a_drain_ends_the_process_in_order() {
    let keys = "accept_for = \"10m\"\ndeadline = \"10m\"";
    // Drained already: there is nothing to wait for.
    let world = World::with("signal-drained", Manner::Echo, draining(keys));
    world.relay.order("/drain?now=1").done();
    wait_phase(&world.relay, "drained");
    world.relay.signal(Signal::TERM);
    assert_eq!(world.relay.wait_exit(), 0);
    // Sessions go on, listeners close, and the process ends with the last session.
    let world = World::with("signal-finishing", Manner::Echo, draining(keys));
    let mut agents = open(&world, 1);
    world.relay.order("/drain?now=1").done();
    world.relay.signal(Signal::TERM);
    world.relay.wait_until("the listener to be closed", || {
        world
            .node
            .run(async { Agent::connect(listener()).await.is_err() })
    });
    assert_eq!(told(&world.relay)["ends"], true);
    let mut agent = agents.pop().unwrap();
    world.node.run(async move {
        agent.exchange(100_000).await.unwrap();
        agent.finish().unwrap();
        assert_eq!(agent.expect_to_end(0).await.unwrap(), End::Fin);
    });
    assert_eq!(world.relay.wait_exit(), 0);
}

fn order_that_comes_too_late_is_declined() {
    let world = World::with(
        "too-late",
        Manner::Echo,
        draining("accept_for = \"10m\"\ndeadline = \"10m\""),
    );
    assert_eq!(world.relay.order("/undrain").done()["phase"], "serving");
    world.relay.signal(Signal::TERM);
    wait_phase(&world.relay, "leaving");
    for order in ["/drain", "/drain?now=1", "/undrain"] {
        let answered = world.relay.order(order);
        answered.assert_declined(409, &["told to end"]);
    }
    let said = world
        .relay
        .home()
        .tollgate(&world.relay_host, &["undrain", "--config", "@CONFIG@"]);
    assert_eq!(said.code, 69, "{}", said.err);
    assert!(said.err.contains("told to end"), "{}", said.err);
    world.relay.signal(Signal::TERM);
    assert_eq!(world.relay.wait_exit(), 0);
    let said = world
        .relay
        .home()
        .tollgate(&world.relay_host, &["drain", "--config", "@CONFIG@"]);
    assert_eq!(said.code, 69, "{}", said.err);
    assert!(said.err.contains("no relay answers"), "{}", said.err);
}

fn drain_command_waits_and_tells_how_far_it_is() {
    let start = draining("accept_for = \"10m\"\ndeadline = \"2s\"");
    let world = World::with("drain-command", Manner::Echo, start);
    let agents = open(&world, 4);
    let tollgate = |arguments: &[&str]| {
        let arguments = [arguments, &["--config", "@CONFIG@"]].concat();
        world.relay.home().tollgate(&world.relay_host, &arguments)
    };
    let begun = tollgate(&["drain"]).ok();
    assert!(
        begun.starts_with("leaving: connections are taken until 20")
            && begun.ends_with("4 sessions open\n"),
        "{begun}"
    );
    let lines = tollgate(&["drain", "--now", "--wait"]).ok();
    let lines: Vec<&str> = lines.lines().collect();
    assert!(
        lines[0].starts_with("finishing: all is closed by 20"),
        "{lines:?}"
    );
    assert_eq!(lines.last(), Some(&"drained: nothing is open"));
    assert_eq!(told(&world.relay)["phase"], "drained");
    drop(agents);
    assert_eq!(tollgate(&["undrain"]).ok(), "serving: 0 sessions open\n");
    // Nobody else may.
    let said = world.relay.home().tollgate_through(
        &world.relay_host,
        &["setpriv", "--reuid=65534"],
        &["drain", "--run-dir", "@DIR@/run"],
    );
    assert_eq!(said.code, 77, "{}{}", said.out, said.err);
    // Taken back while somebody waits for it.
    let agents = open(&world, 1);
    let waiting = thread::scope(|scope| {
        let waiting = scope.spawn(|| tollgate(&["drain", "--wait"]));
        wait_phase(&world.relay, "leaving");
        world.relay.order("/undrain").done();
        waiting.join().unwrap()
    });
    assert_eq!(waiting.code, 1, "{}{}", waiting.out, waiting.err);
    drop(agents);
    world.assert_at_rest();
}

fn drain_and_undrain_a_hundred_times_leave_nothing_behind() {
    let start = shipped_and("[drain]\naccept_for = \"0s\"\ndeadline = \"10m\"");
    let world = World::with("hundred-drains", Manner::Echo, start);
    let mut agents = open(&world, 50);
    for round in 0..100 {
        let order = ["/drain", "/drain?now=1"][round % 2];
        world.relay.order(order).done();
        let back = world.relay.order("/undrain").done();
        assert_eq!(back["sessions"], 50, "nobody is closed");
    }
    world.node.run(async move {
        for agent in &mut agents {
            agent.exchange(1000).await.unwrap();
        }
        for mut agent in agents {
            agent.finish().unwrap();
            assert_eq!(agent.expect_to_end(0).await.unwrap(), End::Fin);
        }
    });
    world.wait_closed("completed", 50);
    exchange(&world.node);
    world.assert_at_rest();
}
