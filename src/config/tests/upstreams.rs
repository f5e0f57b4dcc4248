//! What an upstream may be told, and what is said about what cannot be meant.

use super::*;

fn upstream(lines: &str) -> Upstream {
    valid(&with_in_upstream(lines)).upstreams.remove(0)
}

fn targets(list: &str) -> String {
    SMALL.replace(
        "targets = [\"cp.us-east-1.example.internal:443\"]",
        &format!("targets = [{list}]"),
    )
}

#[test]
fn nothing_written_means_the_defaults() {
    let upstream = upstream("");
    let seconds = Duration::from_secs;
    assert_eq!(upstream.balance, Balance::LeastSessions);
    assert_eq!(upstream.next_try_after, Duration::from_millis(250));
    assert_eq!(upstream.retry_budget, 50);
    assert_eq!(upstream.on_vanish, OnVanish::Keep);
    assert_eq!(
        (upstream.vanish_deadline, upstream.vanish_spread),
        (seconds(300), seconds(30))
    );
    let failover = Failover {
        below: 50,
        back_above: 80,
        back_after: seconds(30),
        max_age: None,
    };
    assert_eq!(upstream.failover, failover);
    let eject = Eject {
        after: Some(3),
        pause: seconds(10),
        longest: seconds(300),
        panic_below: 30,
    };
    assert_eq!(upstream.eject, eject);
    assert_eq!(upstream.slow_start, Some(seconds(10)));
    assert_eq!((upstream.health, upstream.ahead), (None, None));
    assert_eq!(upstream.proxy_protocol, SendProxy::Off);
    assert_eq!(upstream.socket, SocketOptions::default());
    assert_eq!(
        (upstream.targets[0].priority, upstream.targets[0].weight),
        (0, 1)
    );
}

#[test]
fn every_key_is_read() {
    let text = r#"
[[listener]]
name = "ingest"
bind = "0.0.0.0:8443"
trusted_peers = ["10.20.0.0/16"]
upstream = "cp"
socket = { congestion = "cubic", send_buffer = "4MiB", receive_buffer = "auto", notsent_lowat = "off" }
[[upstream]]
name = "cp"
targets = ["cp.example:443", { target = "10.9.9.9:443", priority = 15, weight = 1000 }]
balance = "rendezvous"
next_try_after = "10ms"
retry_budget = 0
on_vanish = "drain"
vanish_deadline = "10s"
vanish_spread = "10s"
failover = { below = 1, back_above = 100, back_after = "0s", max_age = "1h" }
eject = { after = "off", panic_below = 0 }
slow_start = "off"
health = { check = "http", interval = "1s", timeout = "1s", rise = 1, fall = 100, port = 8080, path = "/healthz", host = "x", status = "204" }
ahead = { min = 0, max = 1024, max_age = "30s" }
proxy_protocol = "v2"
socket = { preset = "wan", source = "10.0.0.5" }
"#;
    let config = valid(text);
    let seconds = Duration::from_secs;
    let client = SocketOptions {
        congestion: Some("cubic".into()),
        send_buffer: Some(4 << 20),
        ..SocketOptions::default()
    };
    assert_eq!(config.listeners[0].socket, client);
    let upstream = &config.upstreams[0];
    let shown: Vec<_> = upstream
        .targets
        .iter()
        .map(|target| (target.to_string(), target.priority, target.weight))
        .collect();
    assert_eq!(
        shown,
        [
            ("cp.example:443".to_owned(), 0, 1),
            ("10.9.9.9:443".to_owned(), 15, 1000)
        ]
    );
    assert_eq!(upstream.balance, Balance::Rendezvous);
    assert_eq!(upstream.next_try_after, Duration::from_millis(10));
    assert_eq!(upstream.retry_budget, 0);
    assert_eq!(upstream.on_vanish, OnVanish::Drain);
    assert_eq!(
        (upstream.vanish_deadline, upstream.vanish_spread),
        (seconds(10), seconds(10))
    );
    let failover = Failover {
        below: 1,
        back_above: 100,
        back_after: Duration::ZERO,
        max_age: Some(seconds(3600)),
    };
    assert_eq!(upstream.failover, failover);
    assert_eq!(
        (upstream.eject.after, upstream.eject.panic_below),
        (None, 0)
    );
    assert_eq!(upstream.slow_start, None);
    let health = HealthCheck {
        check: Check::Http {
            path: "/healthz".into(),
            host: Some("x".into()),
            status: (204, 204),
        },
        interval: seconds(1),
        timeout: seconds(1),
        rise: 1,
        fall: 100,
        port: Some(8080),
    };
    assert_eq!(upstream.health, Some(health));
    let ahead = Ahead {
        min: 0,
        max: 1024,
        max_age: seconds(30),
    };
    assert_eq!(upstream.ahead, Some(ahead));
    assert_eq!(upstream.proxy_protocol, SendProxy::V2);
    let wan = SocketOptions {
        congestion: Some("bbr".into()),
        notsent_lowat: Some(1 << 20),
        source: Some("10.0.0.5".parse().expect("an address")),
        wan: true,
        ..SocketOptions::default()
    };
    assert_eq!(upstream.socket, wan);
}

#[test]
fn tables_may_have_headers_of_their_own() {
    let health = upstream("[upstream.health]\ncheck = \"tcp\"\ninterval = \"2s\"").health;
    assert_eq!(
        health.map(|health| health.interval),
        Some(Duration::from_secs(2))
    );
}

#[test]
fn what_is_written_goes_before_the_preset() {
    let socket =
        upstream("socket = { preset = \"wan\", congestion = \"cubic\", notsent_lowat = \"off\" }")
            .socket;
    assert_eq!(
        (
            socket.congestion.as_deref(),
            socket.notsent_lowat,
            socket.wan
        ),
        (Some("cubic"), None, true)
    );
}

#[test]
fn bounds_hold_on_both_sides() {
    for (key, line) in [
        ("next_try_after", "next_try_after = \"9ms\""),
        ("next_try_after", "next_try_after = \"61s\""),
        ("retry_budget", "retry_budget = -1"),
        ("retry_budget", "retry_budget = 1001"),
        ("slow_start", "slow_start = \"0s\""),
        ("balance", "balance = \"random\""),
        ("on_vanish", "on_vanish = \"reset\""),
        ("proxy_protocol", "proxy_protocol = \"v3\""),
        ("eject.after", "eject = { after = 0 }"),
        ("eject.pause", "eject = { pause = \"0s\" }"),
        ("eject.panic_below", "eject = { panic_below = 101 }"),
        ("health.interval", "health = { interval = \"99ms\" }"),
        ("health.rise", "health = { rise = 0 }"),
        ("health.fall", "health = { fall = 101 }"),
        ("health.port", "health = { port = 0 }"),
        ("health.port", "health = { port = 65536 }"),
        ("health.check", "health = { check = \"ping\" }"),
        ("ahead.max", "ahead = { max = 0 }"),
        ("ahead.max", "ahead = { max = 1025 }"),
        ("ahead.min", "ahead = { min = 1025 }"),
        ("ahead.max_age", "ahead = { max_age = \"31s\" }"),
        ("socket.preset", "socket = { preset = \"lan\" }"),
        (
            "socket.congestion",
            "socket = { congestion = \"sixteen_letters_\" }",
        ),
        ("socket.send_buffer", "socket = { send_buffer = \"4KiB\" }"),
        (
            "socket.receive_buffer",
            "socket = { receive_buffer = \"2GiB\" }",
        ),
        (
            "socket.notsent_lowat",
            "socket = { notsent_lowat = \"1KiB\" }",
        ),
        ("socket.source", "socket = { source = \"0.0.0.0\" }"),
        ("socket.source", "socket = { source = \"10.0.0.5:80\" }"),
    ] {
        let (keys, said) = refused(&with_in_upstream(line));
        assert_eq!(keys, [format!("upstream.{key}")], "{said}");
    }
    for (key, value) in [
        ("below", 0),
        ("below", 101),
        ("back_above", 0),
        ("back_above", 101),
    ] {
        let list = "\"a.example:1\", { target = \"b.example:1\", priority = 1 }";
        let text = targets(list) + &format!("failover = {{ {key} = {value} }}\n");
        let (keys, said) = refused(&text);
        assert_eq!(keys, [format!("upstream.failover.{key}")], "{said}");
    }
}

#[test]
fn of_two_values_the_less_comes_first() {
    let two = targets("\"a.example:1\", { target = \"b.example:1\", priority = 1 }");
    for (key, line, said_too) in [
        (
            "vanish_deadline",
            "on_vanish = \"drain\"\nvanish_deadline = \"10s\"\nvanish_spread = \"11s\"",
            "write vanish_deadline = \"11s\" or more",
        ),
        (
            "failover.back_above",
            "failover = { below = 60, back_above = 59 }",
            "back_above = 59 is less than below = 60",
        ),
        (
            "eject.longest",
            "eject = { pause = \"2s\", longest = \"1s\" }",
            "write longest = \"2s\" or more",
        ),
        (
            "health.interval",
            "health = { timeout = \"2s\", interval = \"1s\" }",
            "write interval = \"2s\" or more",
        ),
        (
            "ahead.max",
            "ahead = { min = 3, max = 2 }",
            "write max = 3 or more",
        ),
    ] {
        let (keys, said) = refused(&format!("{two}{line}\n"));
        assert_eq!(keys, [format!("upstream.{key}")], "{said}");
        assert!(said.contains(said_too), "{said}");
    }
}

#[test]
fn a_default_gives_way_to_what_is_written() {
    let seconds = Duration::from_secs;
    assert_eq!(
        upstream("on_vanish = \"drain\"\nvanish_deadline = \"10s\"").vanish_spread,
        seconds(10)
    );
    assert_eq!(
        upstream("eject = { pause = \"10m\" }").eject.longest,
        seconds(600)
    );
    assert_eq!(
        upstream("health = { interval = \"1s\" }")
            .health
            .map(|health| health.timeout),
        Some(seconds(1))
    );
    assert_eq!(
        upstream("ahead = { min = 64 }")
            .ahead
            .map(|ahead| ahead.max),
        Some(64)
    );
    assert_eq!(
        upstream("ahead = {}")
            .ahead
            .map(|ahead| (ahead.min, ahead.max)),
        Some((1, 32))
    );
}

#[test]
fn keys_that_mean_nothing_where_they_stand_are_refused() {
    for (key, line, said_too) in [
        (
            "vanish_deadline",
            "vanish_deadline = \"1m\"",
            "on_vanish = \"drain\"",
        ),
        (
            "vanish_spread",
            "on_vanish = \"keep\"\nvanish_spread = \"1m\"",
            "on_vanish = \"drain\"",
        ),
        (
            "vanish_deadline",
            "on_vanish = \"close\"\nvanish_deadline = \"1m\"",
            "closed without waiting",
        ),
        ("failover", "failover = { below = 50 }", "priority = 1"),
        (
            "eject.pause",
            "eject = { after = \"off\", pause = \"1s\" }",
            "remove one",
        ),
        (
            "health.path",
            "health = { path = \"/\" }",
            "check = \"http\"",
        ),
        (
            "health.host",
            "health = { check = \"tcp\", host = \"x\" }",
            "check = \"http\"",
        ),
        (
            "health.status",
            "health = { check = \"tcp\", status = \"200\" }",
            "check = \"http\"",
        ),
        (
            "health.send",
            "health = { check = \"http\", send = \"x\" }",
            "check = \"exchange\"",
        ),
        (
            "health.expect",
            "health = { expect = \"x\" }",
            "check = \"exchange\"",
        ),
    ] {
        let (keys, said) = refused(&with_in_upstream(line));
        assert_eq!(keys, [format!("upstream.{key}")], "{said}");
        assert!(said.contains(said_too), "{said}");
    }
    let (keys, said) = refused(&with("socket", "{ source = \"10.0.0.5\" }"));
    assert_eq!(keys, ["listener.socket.source"]);
    assert!(said.contains("socket of the upstream"), "{said}");
}

#[test]
fn an_exchange_needs_something_to_expect() {
    let (keys, said) = refused(&with_in_upstream(
        "health = { check = \"exchange\", send = \"PING\" }",
    ));
    assert_eq!(keys, ["upstream.health.expect"]);
    assert!(said.contains("check = \"tcp\""), "{said}");
    let health =
        upstream("health = { check = \"exchange\", send = \"PING\\r\\n\", expect = \"PONG\" }")
            .health;
    let exchange = Check::Exchange {
        send: b"PING\r\n".to_vec(),
        expect: b"PONG".to_vec(),
    };
    assert_eq!(health.map(|health| health.check), Some(exchange));
}

#[test]
fn a_check_over_http_asks_for_the_root_unless_told() {
    let health = upstream("health = { check = \"http\" }").health;
    let http = Check::Http {
        path: "/".into(),
        host: None,
        status: (200, 399),
    };
    assert_eq!(health.map(|health| health.check), Some(http));
}

#[test]
fn every_mistake_of_a_target_is_said() {
    let (keys, said) = refused(&targets(
        "{ target = \"cp.example\", priority = 16, weight = 0 }, { priority = 1 }, 443, \
         { target = \"a.example:1\", prio = 1 }, \"b.example\"",
    ));
    assert_eq!(
        keys,
        [
            "upstream.targets.target",
            "upstream.targets.priority",
            "upstream.targets.weight",
            "upstream.targets.target",
            "upstream.targets",
            "upstream.targets.prio",
            "upstream.targets",
        ],
        "{said}"
    );
    assert!(said.contains("did you mean priority?"), "{said}");
}

#[test]
fn a_target_is_named_once() {
    for list in [
        "\"a.example:443\", \"A.example:443\"",
        "\"a.example:443\", { target = \"a.example:443\", priority = 1 }",
        "\"10.0.0.1:443\", \"[::ffff:10.0.0.1]:443\"",
    ] {
        let (keys, said) = refused(&targets(list));
        assert_eq!(keys, ["upstream.targets"], "{said}");
        assert!(said.contains("first named here"), "{said}");
    }
    let different = "\"a.example:443\", \"a.example:444\", \"a.example.:443\"";
    assert_eq!(valid(&targets(different)).upstreams[0].targets.len(), 3);
}

#[test]
fn a_target_in_a_table_is_a_loop_as_well() {
    let text = targets("\"a.example:443\", { target = \"127.0.0.1:8443\", priority = 1 }");
    let (keys, said) = refused(&text);
    assert_eq!(keys, ["upstream.targets"]);
    assert!(said.contains("own listener"), "{said}");
}

#[test]
fn an_unknown_key_of_an_inner_table_is_one_mistake_among_others() {
    let (keys, said) = refused(&with_in_upstream(
        "health = { intervall = \"1s\", rise = 0 }\nahead = 32\nsocket = { pre-set = \"wan\" }",
    ));
    assert_eq!(
        keys,
        [
            "upstream.health.intervall",
            "upstream.health.rise",
            "upstream.ahead",
            "upstream.socket.pre-set"
        ],
        "{said}"
    );
    assert!(said.contains("did you mean interval?"), "{said}");
    assert!(said.contains("write ahead = { max = 32 }"), "{said}");
}

#[test]
fn an_inner_key_beside_its_table_is_sent_there() {
    for (line, table) in [
        ("congestion = \"bbr\"", "socket = { congestion = … }"),
        ("interval = \"1s\"", "health = { interval = … }"),
        ("back_above = 1", "failover = { back_above = … }"),
        ("panic_below = 1", "eject = { panic_below = … }"),
        ("weight = 1", "weight = … }]"),
    ] {
        let (_, said) = refused(&with_in_upstream(line));
        assert!(said.contains(table), "{said}");
    }
}
