//! What endpoints, listeners and the relay may have.

use super::*;

const POLICIES: &str = r#"
[endpoint."*"]
deny = true
on_deny = "close"
max_sessions = 100
sessions_per_second = 50
idle_timeout = "10m"
[endpoint."vpce-0a*"]
deny = false
on_limit = "wait"
wait_for = "500ms"
max_waiting = 7
sessions_burst = 200
[endpoint."vpce-0a1"]
max_sessions = "off"
bytes_per_second_to_upstream = "10MiB"
bytes_per_second_to_client = "4KiB"
max_age = "12h"
idle_timeout = "off"
"#;

#[test]
fn what_an_endpoint_may_is_read_key_by_key() {
    let endpoints = valid(&format!("{SMALL}{POLICIES}")).endpoints;
    let policies: Vec<&PolicyKeys> = endpoints
        .about("vpce-0a1")
        .map(|entry| &entry.policy)
        .collect();
    let [id, glob, all] = policies[..] else {
        panic!("{policies:?}")
    };
    assert_eq!(
        (all.deny, glob.deny, id.deny),
        (Some(true), Some(false), None)
    );
    assert_eq!(all.on_deny, Some(OnDeny::Close));
    assert_eq!(all.max_sessions, Some(Cap::At(100)));
    assert_eq!(
        id.max_sessions,
        Some(Cap::Off),
        "off is an answer, not a gap"
    );
    assert_eq!(
        (all.sessions_per_second, glob.sessions_burst),
        (NonZeroU32::new(50).map(Cap::At), NonZeroU32::new(200))
    );
    let bytes = id.bytes_per_second.map(|cap| cap.and_then(Cap::at));
    assert_eq!(
        bytes.map(|rate| rate.map(NonZeroU64::get)),
        [Some(10 << 20), Some(4096)]
    );
    assert_eq!(
        id.max_age,
        Some(Bound::After(Duration::from_secs(12 * 3600)))
    );
    assert_eq!(
        (all.idle_timeout, id.idle_timeout),
        (
            Some(Bound::After(Duration::from_secs(600))),
            Some(Bound::Off)
        )
    );
    assert_eq!(glob.on_limit, Some(Wish::Wait));
    assert_eq!(
        (glob.wait_for, glob.max_waiting),
        (Some(Duration::from_millis(500)), Some(7))
    );
    assert_eq!(*endpoints.named("vpce-0a1").name, *"", "it needs no name");
}

#[test]
fn without_limits_there_are_none_but_a_listeners_sessions() {
    let config = valid(SMALL);
    let nothing = Limits {
        max_sessions: None,
        rate: None,
        on_limit: OnLimit::Refuse,
        max_waiting: 1024,
    };
    assert_eq!(config.limits, nothing);
    let listener = &config.listeners[0];
    assert_eq!((listener.rate, listener.on_limit), (None, OnLimit::Refuse));
}

#[test]
fn relay_and_listener_have_limits_of_their_own() {
    let limits = "[limits]\nmax_sessions = 5000\nsessions_per_second = 300\nsessions_burst = 1\non_limit = \"wait\"\nmax_waiting = 9";
    let listener = with(
        "sessions_per_second",
        "20\non_limit = \"wait\"\nwait_for = \"60s\"",
    );
    let config = valid(&format!("{limits}\n{listener}"));
    let rate = |per_second, burst| {
        Some(SessionRate {
            per_second: NonZeroU32::new(per_second)?,
            burst: NonZeroU32::new(burst)?,
        })
    };
    let wait = |seconds, most| {
        OnLimit::Wait(Patience {
            longest: Duration::from_secs(seconds),
            most,
        })
    };
    assert_eq!(config.limits.max_sessions, Some(5000));
    assert_eq!(config.limits.rate, rate(300, 1));
    assert_eq!(config.limits.on_limit, wait(2, 9));
    let listener = &config.listeners[0];
    assert_eq!(listener.rate, rate(20, 20), "a second's worth");
    assert_eq!(listener.on_limit, wait(60, 64));
}

#[test]
fn a_wrong_limit_is_shown_where_it_stands() {
    for (line, key, said_of_it) in [
        ("deny = \"yes\"", "deny", "write true"),
        ("deny = \"off\"", "deny", "write false"),
        ("deny = 1", "deny", "write true or false"),
        ("on_deny = \"drop\"", "on_deny", "\"keep\", \"close\""),
        ("max_sessions = 0", "max_sessions", "deny = true"),
        ("max_sessions = \"none\"", "max_sessions", "or \"off\""),
        ("max_sessions = true", "max_sessions", "a whole number"),
        (
            "sessions_per_second = 0",
            "sessions_per_second",
            "1 to 1000000",
        ),
        (
            "sessions_per_second = 0.5",
            "sessions_per_second",
            "a fraction",
        ),
        (
            "bytes_per_second_to_client = \"1MiB/s\"",
            "bytes_per_second_to_client",
            "a size from",
        ),
        (
            "bytes_per_second_to_upstream = \"1KB\"",
            "bytes_per_second_to_upstream",
            "out of bounds",
        ),
        ("max_age = \"0s\"", "max_age", "\"off\""),
        (
            "sessions_burst = 5",
            "sessions_burst",
            "add sessions_per_second",
        ),
        ("on_limit = \"wait\"", "on_limit", "no endpoint has"),
        ("wait_for = \"1s\"", "wait_for", "on_limit = \"wait\""),
        ("max_waiting = 5", "max_waiting", "on_limit = \"wait\""),
        (
            "max_session = 5",
            "max_session",
            "did you mean max_sessions?",
        ),
    ] {
        let (keys, said) = refused(&with_on_top(&format!("[endpoint.vpce-1]\n{line}")));
        assert_eq!(keys, [format!("endpoint.{key}")], "{said}");
        assert!(said.contains(said_of_it), "{line}: {said}");
        assert!(said.contains("test.toml:"), "it has a place: {said}");
    }
}

#[test]
fn what_waiting_means_may_be_said_by_another_entry() {
    let waits = "[endpoint.\"*\"]\non_limit = \"wait\"\nmax_sessions = 5\n";
    valid(&with_on_top(&format!(
        "{waits}[endpoint.vpce-1]\nwait_for = \"1s\""
    )));
    let refuses = "[endpoint.vpce-1]\non_limit = \"refuse\"\nwait_for = \"1s\"";
    let (keys, said) = refused(&with_on_top(&format!("{waits}{refuses}")));
    assert_eq!(keys, ["endpoint.wait_for"], "{said}");
    let lifted = "[endpoint.\"*\"]\nsessions_per_second = 5\n[endpoint.vpce-1]\nsessions_per_second = \"off\"\nsessions_burst = 9";
    let (keys, said) = refused(&with_on_top(lifted));
    assert_eq!(keys, ["endpoint.sessions_burst"], "{said}");
}

#[test]
fn limits_of_relay_and_listener_are_judged_alike() {
    for (line, key) in [
        ("sessions_burst = 5", "sessions_burst"),
        ("wait_for = \"1s\"", "wait_for"),
        (
            "sessions_per_second = 5\non_limit = \"wait\"\nwait_for = \"61s\"",
            "wait_for",
        ),
        ("sessions_per_second = 1000001", "sessions_per_second"),
        ("max_sessions = 0", "max_sessions"),
    ] {
        let (keys, said) = refused(&with_on_top(&format!("[limits]\n{line}")));
        assert_eq!(keys, [format!("limits.{key}")], "{said}");
        let (first, rest) = line.split_once(" = ").expect("a key");
        let (keys, said) = refused(&with(first, rest));
        assert_eq!(keys, [format!("listener.{key}")], "{said}");
    }
    let (keys, _) = refused(&with_on_top("[limits]\non_limit = \"wait\""));
    assert_eq!(keys, ["limits.on_limit"]);
    let (_, said) = refused(&with_on_top("max_sessions = 5"));
    assert!(said.contains("it belongs under [limits]"), "{said}");
}

#[test]
fn the_example_of_a_policy_is_valid() {
    let operating = include_str!("../../../OPERATING.md");
    let block = operating.split("```toml\n").nth(1).expect("an example");
    let block = block.split("```").next().expect("its end");
    let config = valid(&format!("{SHIPPED}\n{block}"));
    assert_eq!(config.endpoints.entries.len(), 2);
    assert_eq!(
        operating.matches("```toml").count(),
        1,
        "each example is tried"
    );
}
