//! O8: what systemd is told, by a stand-in for it that listens at its notification socket.

use std::{
    net::{SocketAddr, TcpStream},
    os::{linux::net::SocketAddrExt, unix::net::UnixDatagram},
    time::Duration,
};

use libtest_mimic::Trial;

use super::{draining, open, wait_phase};
use crate::{
    claim,
    harness::{
        netns::Lab,
        notify::{Message, Notify},
        origin::Manner,
        relay::{Signal, Start},
        stream::End,
    },
    scenarios::world::{World, shipped},
};

pub(super) fn tests() -> Vec<Trial> {
    vec![
        claim(
            "systemd_hears_ready_when_every_listener_accepts_and_not_before",
            systemd_hears_ready_when_every_listener_accepts_and_not_before,
        ),
        claim(
            "systemd_hears_how_a_stop_goes_on_and_gives_it_time",
            systemd_hears_how_a_stop_goes_on_and_gives_it_time,
        ),
        claim(
            "systemd_hears_when_a_reload_begins_and_when_it_is_over_whatever_came_of_it",
            systemd_hears_when_a_reload_begins_and_when_it_is_over_whatever_came_of_it,
        ),
        claim(
            "systemd_hears_of_a_drain_that_ends_nothing",
            systemd_hears_of_a_drain_that_ends_nothing,
        ),
        claim(
            "watchdog_is_fed_while_every_worker_turns",
            watchdog_is_fed_while_every_worker_turns,
        ),
        claim(
            "worker_that_does_not_end_is_not_waited_for",
            worker_that_does_not_end_is_not_waited_for,
        ),
        claim(
            "abstract_notification_socket_is_found",
            abstract_notification_socket_is_found,
        ),
    ]
}

fn told(start: Start, notify: &Notify) -> Start {
    let path = notify.path();
    start.env("NOTIFY_SOCKET", path.to_str().expect("/run is text"))
}

fn is_ready(message: &Message) -> bool {
    message.value("READY") == Some("1")
}

fn systemd_hears_ready_when_every_listener_accepts_and_not_before() {
    const LISTENERS: u16 = 20;
    let (lab, notify) = (Lab::new("ready"), Notify::new());
    let host = lab.host("relay");
    let more: String = (0..LISTENERS)
        .map(|n| {
            let port = 9000 + n;
            format!(
                "\n[[listener]]\nname = \"l{n}\"\nbind = \"127.0.0.1:{port}\"\ntrusted_peers = [\"127.0.0.0/8\"]\nupstream = \"control-plane\"\n"
            )
        })
        .collect();
    let start = shipped().replace("[[upstream]]", &format!("{more}\n[[upstream]]"));
    let relay = told(start.clone(), &notify).without_waiting().on(&host);
    let ready = notify.wait("READY", 0, is_ready);
    // Whoever is told so now must be right at once, for each of them.
    let refused = host.call(|| {
        let ports = (0..LISTENERS).map(|n| SocketAddr::from(([127, 0, 0, 1], 9000 + n)));
        let refused = ports.filter(|address| TcpStream::connect(address).is_err());
        refused.collect::<Vec<_>>()
    });
    assert_eq!(refused, []);
    assert_eq!(relay.get("/readyz").0, 200);
    assert_eq!(notify.messages().len(), 1, "the first it hears is READY");
    assert_eq!(ready.value("STATUS"), Some("serving, 21 listeners"));
    // One that cannot listen on all of them says nothing of the kind.
    let second = Notify::new();
    let start = start.replace(
        "[health]\nbind = \"0.0.0.0:9901\"",
        "[health]\nbind = \"0.0.0.0:9902\"",
    );
    let failed = told(
        start.replace("[health]\n", "[admin]\nbind = \"off\"\n[health]\n"),
        &second,
    )
    .without_waiting()
    .on(&host);
    assert_eq!(failed.wait_exit(), 69);
    assert!(!second.messages().iter().any(is_ready));
}

/// More than one line of status in a second is only told where the phase is another.
#[track_caller]
fn assert_calm(messages: &[Message]) {
    let phase = |message: &Message| {
        let status = message.value("STATUS").expect("filtered");
        status
            .split([':', ','])
            .next()
            .unwrap_or_default()
            .to_owned()
    };
    let lines = messages
        .iter()
        .filter(|message| message.value("STATUS").is_some());
    let lines: Vec<&Message> = lines.collect();
    for pair in lines.windows(2) {
        let (before, after) = (pair[0], pair[1]);
        // Its clock is not ours: what is sent a second apart may arrive a little closer.
        let apart = after.at - before.at > Duration::from_millis(800);
        assert!(apart || phase(before) != phase(after), "{pair:?}");
        assert_ne!(before.value("STATUS"), after.value("STATUS"), "no news");
    }
}

fn systemd_hears_how_a_stop_goes_on_and_gives_it_time() {
    let notify = Notify::new();
    let start = draining("accept_for = \"7s\"\ndeadline = \"4s\"\nspread = \"3s\"");
    let world = World::with("stop-told", Manner::Echo, told(start, &notify));
    let mut agents = open(&world, 30);
    let before = notify.messages().len();
    world.relay.signal(Signal::TERM);
    let leaving = notify.wait("leaving", before, |message| {
        message.value("STATUS").is_some()
    });
    assert_eq!(leaving.value("STOPPING"), Some("1"));
    let status = leaving.value("STATUS").unwrap();
    assert!(
        status.starts_with("leaving: ") && status.ends_with("; 30 sessions open"),
        "{status}"
    );
    agents.truncate(20);
    assert_eq!(world.relay.wait_exit(), 0);
    let messages = &notify.messages()[before..];
    let status = |wanted: &str| {
        let found = |message: &&Message| {
            message
                .value("STATUS")
                .is_some_and(|status| status.starts_with(wanted))
        };
        messages.iter().filter(found).count()
    };
    assert!(status("leaving: ") >= 2, "fewer are open: {messages:#?}");
    assert!(
        status("finishing: ") >= 2,
        "they are closed by and by: {messages:#?}"
    );
    assert_calm(messages);
    let stopping = messages
        .iter()
        .filter(|message| message.value("STOPPING").is_some());
    assert_eq!(stopping.count(), 1);
    assert!(
        !messages
            .iter()
            .any(|message| message.value("WATCHDOG").is_some())
    );
    // From the beginning to the end there is always time that was asked for.
    let asked: Vec<(&Message, Duration)> = messages
        .iter()
        .filter_map(|message| {
            let micros = message.value("EXTEND_TIMEOUT_USEC")?.parse().ok()?;
            Some((message, Duration::from_micros(micros)))
        })
        .collect();
    assert!(asked.len() >= 3 && asked[0].0.value("STOPPING").is_some());
    for pair in asked.windows(2) {
        assert!(pair[1].0.at - pair[0].0.at < pair[0].1, "{asked:#?}");
    }
    let first = messages.iter().position(|message| {
        message
            .value("STATUS")
            .is_some_and(|status| status.starts_with("finishing"))
    });
    let while_leaving = messages[..first.expect("it was counted")].iter();
    let asked = while_leaving.filter(|message| message.value("EXTEND_TIMEOUT_USEC").is_some());
    assert!(
        asked.count() >= 2,
        "again and again, whatever happens: {messages:#?}"
    );
    let last = messages.last().unwrap();
    assert!(
        last.value("EXTEND_TIMEOUT_USEC").is_some(),
        "for the last booking: {last:?}"
    );
}

fn systemd_hears_of_a_drain_that_ends_nothing() {
    let notify = Notify::new();
    let start = draining("accept_for = \"10m\"\ndeadline = \"2s\"");
    let world = World::with("drain-told", Manner::Echo, told(start, &notify));
    let agents = open(&world, 5);
    let before = notify.messages().len();
    for (order, said) in [
        (
            "/drain",
            "leaving: health checks fail, connections are still taken; 5 sessions open",
        ),
        ("/drain?now=1", "finishing: 5 of 5 sessions open"),
    ] {
        world.relay.order(order).done();
        notify.wait(said, before, |message| {
            message.value("STATUS") == Some(said)
        });
    }
    let said = "drained: nothing is open, nothing is taken";
    notify.wait(said, before, |message| {
        message.value("STATUS") == Some(said)
    });
    world.relay.order("/undrain").done();
    let said = "serving, 1 listener";
    notify.wait(said, before, |message| {
        message.value("STATUS") == Some(said)
    });
    let messages = &notify.messages()[before..];
    assert_calm(messages);
    for key in ["STOPPING", "EXTEND_TIMEOUT_USEC", "READY"] {
        let told = messages.iter().any(|message| message.value(key).is_some());
        assert!(!told, "{key}: it goes on as it was: {messages:#?}");
    }
    drop(agents);
    world.assert_at_rest();
}

fn systemd_hears_when_a_reload_begins_and_when_it_is_over_whatever_came_of_it() {
    let notify = Notify::new();
    let world = World::with("reload-told", Manner::Echo, told(shipped(), &notify));
    let agents = open(&world, 3);
    let right = std::fs::read_to_string(world.relay.home().config()).expect("it runs with it");
    for config in ["nonsense = 1", &right] {
        let before = notify.messages().len();
        world.relay.rewrite_config(config);
        world.relay.signal(Signal::HUP);
        notify.wait("READY after RELOADING", before, |message| {
            message.value("READY") == Some("1")
        });
        let messages = &notify.messages()[before..];
        let begun = messages.iter().position(|message| {
            message.value("RELOADING") == Some("1") && message.value("MONOTONIC_USEC").is_some()
        });
        assert_eq!(begun, Some(0), "{messages:#?}");
    }
    drop(agents);
    world.assert_at_rest();
}

/// Time is what is tested: how long systemd waits.
fn watchdog_is_fed_while_every_worker_turns() {
    const WITHIN: Duration = Duration::from_secs(2);
    let notify = Notify::new();
    let start = told(
        shipped().replace("[health]\n", "workers = 2\n[health]\n"),
        &notify,
    );
    let start = start.env("WATCHDOG_USEC", &WITHIN.as_micros().to_string());
    let world = World::with("watchdog", Manner::Echo, start);
    let is_fed = |message: &Message| message.value("WATCHDOG") == Some("1");
    let wait_fed = |what: &str| {
        let so_far = notify.messages().len();
        notify.wait(what, so_far, is_fed)
    };
    let mut before = wait_fed("a first time");
    for _ in 0..5 {
        let fed = wait_fed("again");
        assert!(fed.at - before.at < WITHIN, "{:?}", fed.at - before.at);
        before = fed;
    }
    world.relay.assert_at_rest();
    for worker in ["worker-0", "worker-1"] {
        let held = world.relay.hold(worker);
        let number = worker.rsplit('-').next().unwrap();
        world.relay.wait_until("it to be missed", || {
            let lines = world.relay.log_lines("do not turn");
            lines
                .last()
                .is_some_and(|line| line.contains(&format!("[{number}]")))
        });
        let so_far = notify.messages().len();
        std::thread::sleep(2 * WITHIN);
        let later = &notify.messages()[so_far..];
        assert!(
            !later.iter().any(is_fed),
            "{worker} stands still: {later:?}"
        );
        // The control thread lives, so it is not that which is missed.
        assert_eq!(world.relay.get("/healthz").0, 200);
        drop(held);
        wait_fed("after it turns again");
    }
    // A drain is no reason to be taken for dead: workers that have ended are not missed.
    let agents = open(&world, 1);
    world.relay.signal(Signal::INT);
    wait_phase(&world.relay, "finishing");
    for _ in 0..5 {
        wait_fed("while one worker has ended and the other has a session");
    }
    world.node.run(async move {
        for mut agent in agents {
            agent.finish().unwrap();
            assert_eq!(agent.expect_to_end(0).await.unwrap(), End::Fin);
        }
    });
    assert_eq!(world.relay.wait_exit(), 0);
}

/// The deadline of the deadline: a worker that stands still would keep the process from its end for ever.
fn worker_that_does_not_end_is_not_waited_for() {
    let world = World::with(
        "stuck-at-the-end",
        Manner::Echo,
        draining("accept_for = \"0s\"\ndeadline = \"1s\""),
    );
    let held = world.relay.hold("worker-0");
    world.relay.signal(Signal::TERM);
    // A traced thread is only gone when whoever holds it lets go: the words come before.
    world.relay.wait_until("it to be said", || {
        !world.relay.log_lines("has not ended").is_empty() || !world.relay.is_running()
    });
    drop(held);
    assert_eq!(world.relay.wait_exit(), 70);
}

fn abstract_notification_socket_is_found() {
    let lab = Lab::new("abstract");
    let host = lab.host("relay");
    // Such names belong to a network namespace.
    let socket = host.call(|| {
        let name = std::os::unix::net::SocketAddr::from_abstract_name("tollgate/notify");
        UnixDatagram::bind_addr(&name.expect("short"))
    });
    let notify = Notify::on(socket.expect("nobody has it"));
    let start = shipped().env("NOTIFY_SOCKET", "@tollgate/notify");
    let _relay = start.on(&host);
    notify.wait("READY", 0, is_ready);
}
