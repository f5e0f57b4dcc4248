//! Whole files: what they mean, and what is said about wrong ones.

use std::num::{NonZeroU32, NonZeroU64};
use std::path::Path;
use std::time::Duration;

use super::*;

mod books;
mod limits;
mod routes;
mod upstreams;

const SMALL: &str = r#"
[[listener]]
name = "ingest"
bind = "0.0.0.0:8443"
trusted_peers = ["10.20.0.0/16"]
upstream = "control-plane"

[[upstream]]
name = "control-plane"
targets = ["cp.us-east-1.example.internal:443"]
"#;

fn valid(text: &str) -> Config {
    Config::from_str(text, "test.toml").unwrap_or_else(|error| panic!("{error}"))
}

fn error(text: &str) -> Error {
    match Config::from_str(text, "test.toml") {
        Ok(config) => panic!("must be refused: {config:?}"),
        Err(error) => error,
    }
}

/// The keys at fault, in order, and everything that is said.
fn refused(text: &str) -> (Vec<String>, String) {
    let error = error(text);
    let keys = error.mistakes().iter().map(|mistake| mistake.key.clone());
    (keys.collect(), error.render(false))
}

/// `SMALL` with one line of the listener, which comes last in it, added or put in place of another.
fn with(key: &str, value: &str) -> String {
    let line = format!("{key} = {value}");
    let table = SMALL.replace("[[upstream]]", "\n[[upstream]]");
    let mut found = false;
    let lines = table.lines().map(|old| {
        let same = old.split(" =").next() == Some(key) && !found;
        found |= same;
        if same { line.clone() } else { old.to_owned() }
    });
    let text: Vec<String> = lines.collect();
    let text = text.join("\n");
    if found {
        text
    } else {
        text.replacen("[[upstream]]", &format!("{line}\n[[upstream]]"), 1)
    }
}

fn with_in_upstream(line: &str) -> String {
    format!("{SMALL}{line}\n")
}

fn with_on_top(lines: &str) -> String {
    format!("{lines}\n{SMALL}")
}

#[test]
fn everything_has_its_default() {
    let config = valid(SMALL);
    assert_eq!(
        config.admin,
        Some("127.0.0.1:9900".parse().expect("an address"))
    );
    assert!(config.health.is_none());
    assert_eq!(config.drain.accept_for, Duration::from_secs(150));
    assert_eq!(config.drain.deadline, Duration::from_secs(300));
    assert_eq!(config.drain.close, CloseWith::Fin);
    assert_eq!(config.drain.spread, Duration::from_secs(60), "a fifth");
    assert_eq!(config.log.format, LogFormat::Auto);
    assert_eq!(config.log.level, tracing::Level::INFO);
    assert_eq!(
        config.relay,
        Relay {
            mode: RelayMode::Adaptive,
            spin: None,
            pin: false,
            stalled_receive_buffer: None
        }
    );
    assert!(!config.relay_id.is_empty());
    assert_eq!(config.resolver.family, Family::Any);
    assert_eq!(config.resolver.queries_per_second.get(), 200);
    assert!(config.resolver.search.is_empty());
    assert!(config.resolver.servers.is_empty());
    assert_eq!(
        (config.accounts.max, config.max_metric_endpoints),
        (50_000, 1000)
    );
    let listener = &config.listeners[0];
    assert_eq!(listener.proxy_protocol, ProxyProtocol::V2);
    assert_eq!(listener.crc, CrcPolicy::Verify);
    assert_eq!(
        (
            listener.max_header,
            listener.max_pending,
            listener.max_sessions
        ),
        (4096, 4096, 100_000)
    );
    assert_eq!(listener.first_byte_timeout, Duration::from_secs(360));
    assert_eq!(listener.header_timeout, Duration::from_secs(5));
    let upstream = &config.upstreams[listener.upstream.expect("written")];
    assert_eq!(upstream.connect_timeout, Duration::from_secs(5));
    assert_eq!(upstream.connect_deadline, Duration::from_secs(15));
    assert_eq!(
        (upstream.min_ttl, upstream.max_ttl),
        (Duration::from_secs(1), Duration::from_secs(300))
    );
    assert_eq!(upstream.stale_for, None);
    assert!(upstream.allow_addresses.is_empty());
}

#[test]
fn every_key_is_read() {
    let text = r#"
workers = 3
relay_id = "eu-1.relay"
[admin]
bind = "off"
[health]
bind = "[::]:9901"
trusted_peers = ["10.0.0.0/8", "fd00::1"]
[drain]
accept_for = "0s"
deadline = "0s"
spread = "off"
close = "rst"
[log]
format = "json"
level = "debug"
[session]
idle_timeout = "off"
half_close_timeout = "10s"
max_age = "12h"
keepalive_idle = "30s"
keepalive_interval = "5s"
keepalive_probes = 3
user_timeout = "off"
[relay]
mode = "copy"
spin = "60us"
pin = "cores"
stalled_receive_buffer = "1MiB"
[resolver]
servers = ["10.20.0.2"]
search = ["Example.internal."]
family = "ipv4_first"
queries_per_second = 1000
[accounts]
max = 10
[metrics]
max_endpoints = 5
[[listener]]
name = "plain"
bind = ["10.0.0.1:80", "[fd00::1]:80"]
upstream = "cp"
proxy_protocol = "off"
crc = "ignore"
max_header = "1KiB"
first_byte_timeout = "1s"
header_timeout = "2s"
max_pending = 1
max_sessions = 2
session = { idle_timeout = "1m", max_age = "off" }
[[upstream]]
name = "cp"
targets = ["10.9.9.9:443", "cp.example:443"]
connect_timeout = "1s"
connect_deadline = "2s"
min_ttl = "2s"
max_ttl = "3s"
stale_for = "10m"
allow_addresses = ["127.0.0.0/8"]
session = { idle_timeout = "2m" }
"#;
    let config = valid(text);
    assert_eq!(config.workers.get(), 3);
    assert_eq!(&*config.relay_id, "eu-1.relay");
    assert_eq!(config.resolver.search, ["example.internal".into()]);
    assert_eq!(config.resolver.family, Family::Ipv4First);
    assert_eq!(config.resolver.queries_per_second.get(), 1000);
    assert_eq!(config.admin, None);
    assert!(
        matches!(config.health, Some(HealthPort { trusted_peers: Peers::Within(ref nets), .. }) if nets.len() == 2)
    );
    assert_eq!(
        (
            config.drain.accept_for,
            config.drain.deadline,
            config.drain.spread
        ),
        (Duration::ZERO, Duration::ZERO, Duration::ZERO)
    );
    let relay = Relay {
        mode: RelayMode::Copy,
        spin: Some(Duration::from_micros(60)),
        pin: true,
        stalled_receive_buffer: Some(1 << 20),
    };
    assert_eq!(config.relay, relay);
    let (listener, upstream) = (&config.listeners[0], &config.upstreams[0]);
    assert_eq!(listener.bind.len(), 2);
    assert_eq!(listener.trusted_peers, Peers::Anyone);
    assert_eq!(listener.max_header, 1024);
    assert_eq!(upstream.stale_for, Some(Duration::from_secs(600)));
    let limits = config.session_limits(listener, upstream);
    assert_eq!(
        limits.idle_timeout,
        Some(Duration::from_secs(120)),
        "the upstream's word is the last"
    );
    assert_eq!(limits.max_age, None, "the listener's over the global one");
    assert_eq!(limits.half_close_timeout, Some(Duration::from_secs(10)));
    assert_eq!(limits.keepalive.map(|keepalive| keepalive.probes), Some(3));
    assert_eq!(limits.user_timeout, None);
}

#[test]
fn an_empty_file_lacks_a_listener_and_an_upstream() {
    let (keys, said) = refused("");
    assert_eq!(keys, ["listener", "upstream"]);
    assert!(said.contains("test.toml"));
}

#[test]
fn every_mistake_of_a_file_is_reported_in_its_order() {
    let text = with_on_top("workers = 0\n[drain]\ndeadline = 300\n[log]\nlevel = \"verbose\"")
        + "stale_for = true\n";
    let (keys, _) = refused(&text);
    assert_eq!(
        keys,
        [
            "workers",
            "drain.deadline",
            "log.level",
            "upstream.stale_for"
        ]
    );
}

#[test]
fn an_error_shows_file_line_caret_and_what_to_write() {
    let said = error(&with_on_top("[session]\nidle_timeout = 300")).render(false);
    let expected = "\
error: session.idle_timeout: the number 300 has no unit
 --> test.toml:2:16
  |
2 | idle_timeout = 300
  |                ^^^
  |
  = help: write \"300s\" if seconds were meant; or \"off\"";
    assert_eq!(said, expected);
}

#[test]
fn a_relay_id_is_plain_and_short() {
    for id in ["", "two words", "under_score", &"x".repeat(65)] {
        let (keys, said) = refused(&with_on_top(&format!("relay_id = {id:?}")));
        assert_eq!(keys, ["relay_id"], "{said}");
        assert!(said.contains("1 to 64"), "{said}");
    }
    assert_eq!(
        &*valid(&with_on_top(&format!("relay_id = \"{}\"", "x".repeat(64)))).relay_id,
        "x".repeat(64)
    );
}

#[test]
fn search_domains_are_looked_at_only_beside_servers() {
    let (keys, said) = refused(&with_on_top("[resolver]\nsearch = [\"example.internal\"]"));
    assert_eq!(keys, ["resolver.search"]);
    assert!(said.contains("/etc/resolv.conf"), "{said}");
    let (keys, said) = refused(&with_on_top(
        "[resolver]\nservers = [\"10.0.0.2\"]\nsearch = [\"a..b\", \"ok.example\", \"10.0.0.1\"]",
    ));
    assert_eq!(keys, ["resolver.search", "resolver.search"], "{said}");
    let many = vec!["\"10.0.0.2\""; 17].join(", ");
    let (keys, said) = refused(&with_on_top(&format!("[resolver]\nservers = [{many}]")));
    assert_eq!(keys, ["resolver.servers"]);
    assert!(said.contains("at most 16"), "{said}");
}

#[test]
fn a_date_is_nothing_that_a_key_takes() {
    for text in ["[session]\nidle_timeout = 2026-11-21", "workers = 10:00:00"] {
        let (keys, said) = refused(&with_on_top(text));
        assert_eq!(keys, [""], "{said}");
        assert!(said.contains("a date or a time of day"), "{said}");
    }
}

#[test]
fn a_header_needs_trusted_peers() {
    for text in [
        with("trusted_peers", "[]"),
        SMALL.replace("trusted_peers = [\"10.20.0.0/16\"]\n", ""),
    ] {
        let (keys, said) = refused(&text);
        assert_eq!(keys, ["listener.trusted_peers"]);
        assert!(
            said.contains("subnets of the NLB")
                && said.contains("trusted_peers = [\"10.20.0.0/16\"]"),
            "{said}"
        );
    }
}

#[test]
fn an_empty_list_of_peers_is_refused_without_a_header_too() {
    let text = with("trusted_peers", "[]\nproxy_protocol = \"off\"");
    assert!(refused(&text).1.contains("leave the key out"));
    assert!(
        refused(&with_on_top(
            "[health]\nbind = \"0.0.0.0:9901\"\ntrusted_peers = []"
        ))
        .1
        .contains("nobody")
    );
}

#[test]
fn peers_of_a_health_port_that_does_not_exist_are_a_mistake() {
    let (keys, _) = refused(&with_on_top("[health]\ntrusted_peers = [\"10.20.0.0/16\"]"));
    assert_eq!(keys, ["health.bind"]);
    let off = "[health]\nbind = \"off\"\ntrusted_peers = [\"10.20.0.0/16\"]";
    assert!(
        valid(&with_on_top(off)).health.is_none(),
        "switched off on purpose"
    );
}

#[test]
fn an_unknown_upstream_gets_the_nearest_name() {
    let (keys, said) = refused(&with("upstream", "\"controlplane\""));
    assert_eq!(keys, ["listener.upstream"]);
    assert!(said.contains("did you mean \"control-plane\"?"), "{said}");
}

#[test]
fn what_is_missing_is_named_with_an_example() {
    let (keys, said) = refused("[[listener]]\n[[upstream]]\n");
    let expected = [
        "listener.name",
        "listener.bind",
        "listener.upstream",
        "listener.trusted_peers",
        "upstream.name",
        "upstream.targets",
    ];
    assert_eq!(keys, expected, "{said}");
    assert!(said.contains("bind = \"0.0.0.0:8443\""));
    assert!(refused(&with("bind", "[]")).1.contains("is empty"));
    assert!(
        refused(&with("targets", "\"cp.example:443\""))
            .1
            .contains("write it in brackets: [\"cp.example:443\"]")
    );
}

#[test]
fn bounds_hold_on_both_sides() {
    for (key, value) in [
        ("max_header", "\"15B\""),
        ("max_header", "\"65552B\""),
        ("max_pending", "0"),
        ("max_sessions", "0"),
        ("max_sessions", "-1"),
        ("header_timeout", "\"0s\""),
        ("first_byte_timeout", "\"off\""),
        ("session", "{ keepalive_probes = 128 }"),
        ("session", "{ keepalive_interval = \"off\" }"),
        ("session", "{ keepalive_idle = \"40000s\" }"),
    ] {
        let (keys, said) = refused(&with(key, value));
        assert!(
            keys.len() == 1 && keys[0].starts_with(&format!("listener.{key}")),
            "{said}"
        );
    }
    for text in [
        "workers = 0",
        "workers = 1025",
        "[resolver]\nqueries_per_second = 0",
        "[resolver]\nqueries_per_second = 1001",
        "[accounts]\nmax = 0",
        "[metrics]\nmax_endpoints = 0",
    ] {
        assert!(
            refused(&with_on_top(text)).1.contains("out of bounds"),
            "{text}"
        );
    }
    assert_eq!(
        valid(&with("max_header", "\"16B\"")).listeners[0].max_header,
        16
    );
}

#[test]
fn a_deadline_is_not_shorter_than_one_try() {
    let (keys, said) = refused(&with_in_upstream("connect_timeout = \"20s\""));
    assert_eq!(keys, ["upstream.connect_timeout"]);
    assert!(
        said.contains("connect_deadline = \"15s\" (the default)"),
        "{said}"
    );
    let (keys, said) = refused(&with_in_upstream("connect_deadline = \"2s\""));
    assert_eq!(keys, ["upstream.connect_deadline"]);
    assert!(
        said.contains("connect_timeout = \"5s\" (the default)"),
        "{said}"
    );
    assert_eq!(
        refused(&with_in_upstream("min_ttl = \"10m\"")).0,
        ["upstream.min_ttl"]
    );
}

#[test]
fn a_value_in_error_is_said_once() {
    let text = with_in_upstream("connect_timeout = \"20s\"\nconnect_deadline = \"soon\"");
    assert_eq!(refused(&text).0, ["upstream.connect_deadline"]);
}

#[test]
fn a_name_is_used_once() {
    let again = SMALL.replace("8443", "8444");
    let (keys, said) = refused(&format!("{SMALL}{again}"));
    assert_eq!(keys, ["listener.name", "upstream.name"]);
    assert!(said.contains("first used here"), "{said}");
}

#[test]
fn an_address_is_listened_on_once() {
    let again = "[[listener]]\nname = \"b\"\nbind = \"[::]:8443\"\ntrusted_peers = [\"fd00::/8\"]\nupstream = \"control-plane\"\n";
    let (keys, said) = refused(&format!("{SMALL}{again}"));
    assert_eq!(keys, ["listener.bind"]);
    assert!(
        said.contains("[::] every address") && said.contains("already taken here"),
        "{said}"
    );
    let (keys, said) = refused(&with("bind", "\"127.0.0.1:9900\""));
    assert_eq!(
        keys,
        ["listener.bind"],
        "the admin port's default has no place in the file: {said}"
    );
}

#[test]
fn a_target_that_is_an_own_listener_is_a_loop() {
    let text = with("targets", "[\"127.0.0.1:8443\"]");
    let (keys, said) = refused(&text);
    assert_eq!(keys, ["upstream.targets"]);
    assert!(
        said.contains("own listener") && said.contains("listened on here"),
        "{said}"
    );
}

#[test]
fn a_file_that_cannot_be_read_tells_why() {
    let missing =
        Config::from_file(Path::new("/nonexistent/tollgate.toml")).expect_err("must be refused");
    assert_eq!(missing.kind(), ErrorKind::Missing);
    assert!(missing.to_string().contains("/nonexistent/tollgate.toml"));
    let folder = Config::from_file(Path::new("/")).expect_err("must be refused");
    assert_eq!(folder.kind(), ErrorKind::Configuration);
    let denied = Error::Unreadable {
        path: "/x".into(),
        source: std::io::ErrorKind::PermissionDenied.into(),
    };
    assert_eq!(denied.kind(), ErrorKind::Permission);
    assert_eq!(error("workers = 0").kind(), ErrorKind::Configuration);
}

const SHIPPED: &str = include_str!("../../systemd/tollgate.toml");
const UNIT: &str = include_str!("../../systemd/tollgate.service");

#[test]
fn shipped_config_is_valid() {
    valid(SHIPPED);
}

#[test]
fn its_examples_are_valid_all_at_once() {
    let example = |line: &str| line.starts_with('#') && !line.starts_with("# ") && line != "#";
    let lines = SHIPPED.lines().map(|line| match example(line) {
        true => &line[1..],
        false => line,
    });
    let logs = "[[upstream]]\nname = \"logs\"\ntargets = [\"logs.example:443\"]";
    let lines = lines.chain(logs.lines());
    let config = valid(&lines.collect::<Vec<_>>().join("\n"));
    assert_eq!(config.listeners[0].routes.len(), 2);
    assert_eq!(config.upstreams.len(), 2);
    assert!(config.upstreams[0].health.is_some() && config.upstreams[0].ahead.is_some());
}

const README: &str = include_str!("../../README.md");

#[test]
fn the_examples_of_the_readme_are_valid() {
    let mut blocks = README.split("```toml\n").skip(1).map(|rest| {
        let lines = rest.split("```").next().expect("split gives one at least");
        // Within a list of steps it is indented.
        lines.lines().map(str::trim).collect::<Vec<_>>().join("\n")
    });
    let quick_start = valid(&blocks.next().expect("a quick start"));
    assert_eq!(&*quick_start.upstreams[0].name, "control-plane");
    let mut routes = blocks.next().expect("routes");
    for name in ["blue", "control-plane", "logs", "metrics"] {
        routes += &format!("\n[[upstream]]\nname = {name:?}\ntargets = [\"{name}.example:443\"]\n");
    }
    assert_eq!(valid(&routes).listeners[0].routes.len(), 4);
    let books = valid(&format!("{SHIPPED}\n{}", blocks.next().expect("the books")));
    let named = books.endpoints.named("vpce-08d2bf15fac5001c9");
    assert_eq!((&*named.name, &*named.tags), ("acme production", "gold eu"));
    assert_eq!(books.consumers.entries.len(), 1);
    assert_eq!(blocks.next(), None, "each example is tried");
}

#[test]
fn a_drain_closes_sessions_before_its_deadline_and_not_before_it_begins() {
    let drain = |keys: &str| valid(&with_on_top(&format!("[drain]\n{keys}"))).drain;
    let spread = |keys: &str| drain(keys).spread;
    assert_eq!(spread("deadline = \"10s\""), Duration::from_secs(2));
    assert_eq!(
        spread("deadline = \"10s\"\nspread = \"10s\""),
        Duration::from_secs(10)
    );
    let said = error(&with_on_top(
        "[drain]\ndeadline = \"10s\"\nspread = \"11s\"",
    ));
    let said = said.render(false);
    for part in ["drain.spread", "drain.deadline", "10s\" at most"] {
        assert!(said.contains(part), "{part} in {said}");
    }
}

#[test]
fn systemd_waits_longer_than_the_drain() {
    let setting = |key: &str| {
        UNIT.lines()
            .find_map(|line| line.strip_prefix(key))
            .expect("in the unit")
    };
    let wait = values::duration(&file::Raw::Text(setting("TimeoutStopSec=").to_owned()))
        .expect("a duration");
    let drain = valid(SHIPPED).drain;
    // The last booking, and workers that hang.
    let booking = Duration::from_secs(16 + 10);
    assert!(wait > drain.accept_for + drain.deadline + booking);
}

#[test]
fn the_socket_unit_opens_what_the_shipped_configuration_listens_on() {
    let unit = include_str!("../../systemd/tollgate.socket");
    let open: Vec<_> = unit
        .lines()
        .filter_map(|line| line.strip_prefix("ListenStream="))
        .map(|address| address.parse::<SocketAddr>().expect("an address"))
        .collect();
    assert_eq!(open, valid(SHIPPED).listeners[0].bind);
}

#[test]
fn the_unit_has_places_for_the_books_that_outlive_the_process() {
    let has = |line: &str| UNIT.lines().any(|written| written == line);
    assert!(has("StateDirectory=tollgate") && has("RuntimeDirectory=tollgate"));
    assert!(has("RuntimeDirectoryPreserve=yes"));
    assert!(!has("DynamicUser=yes"), "nobody could reach the socket");
    let user = "u tollgate ";
    let users = include_str!("../../systemd/tollgate.sysusers");
    assert!(has("User=tollgate") && users.lines().any(|line| line.starts_with(user)));
}
