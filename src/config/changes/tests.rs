use super::*;

const SMALL: &str = r#"
relay_id = "one"
[[listener]]
name = "ingest"
bind = "0.0.0.0:8443"
trusted_peers = ["10.20.0.0/16"]
upstream = "cp"
[[upstream]]
name = "cp"
targets = ["cp.example:443"]
"#;

/// Every key there is, with another value than its default.
const ALL: &str = r#"
workers = 77
relay_id = "two"
state_dir = "/a"
run_dir = "/b"
[admin]
bind = "off"
socket = "/c"
[health]
bind = "127.0.0.1:9901"
trusted_peers = ["10.1.0.0/16"]
fail_without = ["cp"]
[drain]
accept_for = "1s"
deadline = "2s"
spread = "1500ms"
close = "rst"
[log]
format = "json"
level = "debug"
[session]
idle_timeout = "1s"
half_close_timeout = "off"
max_age = "1h 30m"
keepalive_idle = "1s"
keepalive_interval = "2s"
keepalive_probes = 3
user_timeout = "off"
[relay]
mode = "copy"
spin = "60us"
pin = "cores"
stalled_receive_buffer = "1MiB"
[resolver]
servers = ["10.0.0.2"]
search = ["example.internal"]
family = "ipv6_first"
queries_per_second = 1
[accounts]
max = 1
idle_after = "2d"
[metrics]
max_endpoints = 1
[ledger]
interval = "1s"
keep = "2d"
unready_after = "1s"
[audit]
sink = "/d"
interval = "off"
on_full = "block"
key_file = "/e"
rotate_size = "1MiB"
rotate_age = "off"
[limits]
max_sessions = 1
sessions_per_second = 2
sessions_burst = 3
on_limit = "wait"
wait_for = "1s"
max_waiting = 4
[endpoint."vpce-1"]
name = "a\u202e\"b"
account = "c"
tags = ["d", "e"]
deny = false
on_deny = "close"
max_sessions = 1
sessions_per_second = 2
sessions_burst = 3
bytes_per_second_to_upstream = "1MiB"
bytes_per_second_to_client = "off"
max_age = "1h"
idle_timeout = "off"
on_limit = "wait"
wait_for = "1s"
max_waiting = 4
[[consumer]]
name = "batch"
networks = ["10.1.0.0/16"]
[[consumer]]
name = "batch"
networks = ["10.2.0.0/16"]
endpoints = ["vpce-1"]
[[listener]]
name = "ingest"
bind = ["0.0.0.0:8443", "[::1]:8444"]
trusted_peers = ["10.21.0.0/16"]
routes = [{ endpoint = "vpce-0a*", network = "10.1.0.0/16", sni = "*.example", upstream = "cp" }]
peek_size = "1KiB"
peek_timeout = "1s"
crc = "ignore"
max_header = "1KiB"
first_byte_timeout = "1s"
header_timeout = "1s"
max_pending = 1
max_sessions = 1
sessions_per_second = 2
sessions_burst = 3
on_limit = "wait"
wait_for = "1s"
max_waiting = 4
session = { idle_timeout = "off" }
socket = { preset = "wan", congestion = "cubic" }
[[upstream]]
name = "cp"
targets = ["cp.example:443", { target = "10.0.0.1:1", priority = 1, weight = 2 }]
connect_timeout = "1s"
connect_deadline = "2s"
min_ttl = "2s"
max_ttl = "3s"
stale_for = "1s"
allow_addresses = ["127.0.0.0/8"]
balance = "rendezvous"
next_try_after = "1s"
retry_budget = 1
on_vanish = "drain"
vanish_deadline = "2s"
vanish_spread = "1s"
failover = { below = 1, back_above = 2, back_after = "3s", max_age = "4s" }
eject = { after = 1, pause = "1s", longest = "2s", panic_below = 3 }
slow_start = "off"
health = { check = "http", path = "/x", host = "h", status = "200", interval = "3s", timeout = "2s", rise = 4, fall = 5, port = 6 }
ahead = { min = 2, max = 3, max_age = "4s" }
proxy_protocol = "v2"
session = { keepalive_idle = "off" }
socket = { send_buffer = "1MiB", receive_buffer = "2MiB", notsent_lowat = "3MiB", source = "127.0.0.9" }
"#;

fn valid(text: &str) -> Config {
    Config::from_str(text, "test.toml").unwrap_or_else(|error| panic!("{error}"))
}

/// Each change on a line.
fn told(before: &str, after: &str) -> Vec<String> {
    let changes = changes(&valid(before), &valid(after));
    let line = |change: &Change| {
        let value = |value: &Option<String>| value.clone().unwrap_or_else(|| "-".to_owned());
        let restart = if change.restart { " (restart)" } else { "" };
        let (before, after) = (value(&change.before), value(&change.after));
        format!("{}: {before} → {after}{restart}", change.key)
    };
    changes.iter().map(line).collect()
}

#[test]
fn what_is_written_otherwise_and_means_the_same_is_no_change() {
    let other = SMALL
        .replace("\"0.0.0.0:8443\"", "[\"0.0.0.0:8443\"] # the same")
        .replace(
            "[\"cp.example:443\"]",
            "[{ target = \"cp.example:443\", weight = 1 }]",
        );
    let other = format!("{other}\nsession = {{}}\n[session]\nidle_timeout = \"60m\"\n");
    assert_eq!(told(SMALL, &other), [""; 0]);
}

#[test]
fn every_key_is_seen() {
    let (before, after) = (valid(SMALL), valid(ALL));
    let found = changes(&before, &after);
    let written = |config: &Config| {
        let lines = config.in_force().into_iter();
        lines.collect::<std::collections::BTreeMap<_, _>>()
    };
    let (before, after) = (written(&before), written(&after));
    // Everything but what has to stay: names, the first bind and target are within values that differ.
    let same: Vec<_> = after
        .iter()
        .filter(|(key, value)| before.get(*key) == Some(value))
        .collect();
    assert_eq!(
        same,
        [(
            &"listener.ingest.proxy_protocol".to_owned(),
            &"\"v2\"".to_owned()
        )]
    );
    let has = |key: &str| found.iter().any(|change| change.key == key);
    for key in after.keys().filter(|key| !key.starts_with("endpoint.")) {
        assert!(
            has(key) || *key == "listener.ingest.proxy_protocol",
            "{key}"
        );
    }
    // What an endpoint that came has is one change; one stays; three go: upstream, and the words for no health and nothing ahead.
    assert_eq!(found.len(), after.len() - 15 + 1 - 1 + 3, "{found:#?}");
}

#[test]
fn values_are_said_as_they_are_written() {
    let told = told(SMALL, ALL);
    for line in [
        "drain.deadline: \"5m\" → \"2s\"",
        "workers: ",
        "session.max_age: \"off\" → \"1h 30m\"",
        "endpoint.\"vpce-1\": - → { name = \"a\\U0000202E\\\"b\", account = \"c\", tags = [\"d\", \"e\"], deny = false, on_deny = \"close\", max_sessions = 1, sessions_per_second = 2, sessions_burst = 3, \
         bytes_per_second_to_upstream = \"1MiB\", bytes_per_second_to_client = \"off\", max_age = \"1h\", idle_timeout = \"off\", on_limit = \"wait\", wait_for = \"1s\", max_waiting = 4 }",
        "consumer.batch: - → { networks = [\"10.1.0.0/16\"] }, { networks = [\"10.2.0.0/16\"], endpoints = [\"vpce-1\"] }",
        "listener.ingest.bind: \"0.0.0.0:8443\" → [\"0.0.0.0:8443\", \"[::1]:8444\"]",
        "listener.ingest.upstream: \"cp\" → -",
        "listener.ingest.routes: - → [{ endpoint = \"vpce-0a*\", network = \"10.1.0.0/16\", sni = \"*.example\", upstream = \"cp\" }]",
        "upstream.cp.targets: [\"cp.example:443\"] → [\"cp.example:443\", { target = \"10.0.0.1:1\", priority = 1, weight = 2 }]",
        "upstream.cp.health: \"off\" → -",
        "upstream.cp.health.status: - → \"200-200\"",
    ] {
        assert!(
            told.iter().any(|said| said.starts_with(line)),
            "{line}\n{told:#?}"
        );
    }
}

#[test]
fn what_comes_or_goes_is_one_change_that_says_what_was_chosen() {
    let more = format!(
        "{SMALL}[[upstream]]\nname = \"far.b\"\ntargets = [\"b.example:1\"]\nretry_budget = 7\n\
         [[listener]]\nname = \"second\"\nbind = \"0.0.0.0:8444\"\nproxy_protocol = \"off\"\nupstream = \"far.b\"\n"
    );
    let listener = "{ bind = \"0.0.0.0:8444\", upstream = \"far.b\", proxy_protocol = \"off\" }";
    let upstream = "{ targets = [\"b.example:1\"], retry_budget = 7 }";
    assert_eq!(
        told(SMALL, &more),
        [
            format!("listener.second: - → {listener}"),
            format!("upstream.\"far.b\": - → {upstream}")
        ]
    );
    assert_eq!(
        told(&more, SMALL),
        [
            format!("listener.second: {listener} → -"),
            format!("upstream.\"far.b\": {upstream} → -")
        ]
    );
}

#[test]
fn what_a_restart_changes_is_said_and_can_be_kept() {
    let running = valid(SMALL);
    let mut after = valid(ALL);
    let waits: Vec<_> = changes(&running, &after)
        .into_iter()
        .filter(|change| change.restart)
        .collect();
    for change in &waits {
        let table = change.key.split('.').next().unwrap_or_default();
        assert!(
            [
                "workers",
                "relay_id",
                "state_dir",
                "run_dir",
                "admin",
                "health",
                "accounts",
                "ledger",
                "audit",
                "metrics",
                "relay"
            ]
            .contains(&table),
            "{change:?}"
        );
    }
    assert!(waits.iter().any(|change| change.key == "workers"));
    after.keep_restart_only(&running);
    let left = changes(&running, &after);
    let keys = |changes: &[Change]| {
        changes
            .iter()
            .map(|change| change.key.clone())
            .collect::<Vec<_>>()
    };
    assert!(left.iter().all(|change| !change.restart), "{left:#?}");
    assert!(keys(&left).contains(&"health.fail_without".to_owned()));
    // What is kept is what was waited for, and nothing else.
    let all = keys(&changes(&running, &valid(ALL)));
    let kept: Vec<_> = all
        .into_iter()
        .filter(|key| !keys(&left).contains(key))
        .collect();
    assert_eq!(kept, keys(&waits));
}
