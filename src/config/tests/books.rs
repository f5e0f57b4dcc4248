//! The books: where they are, how long, and by which names.

use std::path::{Path, PathBuf};

use super::*;

fn hours(n: u64) -> Duration {
    Duration::from_secs(n * 3600)
}

#[test]
fn the_books_have_their_defaults() {
    let config = valid(&with_on_top("state_dir = \"/var/lib/tollgate\""));
    assert_eq!(config.accounts.idle_after, hours(1));
    let ledger = config.ledger;
    assert_eq!(
        (ledger.interval, ledger.keep, ledger.unready_after),
        (Duration::from_secs(10), hours(400 * 24), None)
    );
    let audit = config.audit;
    assert_eq!(
        (audit.sink, audit.on_full, audit.key_file),
        (Sink::Stdout, OnFull::Drop, None)
    );
    assert_eq!(audit.interval, Some(Duration::from_secs(300)));
    assert_eq!(
        (audit.rotate_size, audit.rotate_age),
        (256 << 20, Some(hours(24)))
    );
    assert!(config.endpoints.entries.is_empty() && config.consumers.entries.is_empty());
}

#[test]
fn every_key_of_the_books_is_read() {
    let config = valid(&with_on_top(
        r#"
state_dir = "/srv/books"
run_dir = "/run/books"
[admin]
socket = "/run/other.sock"
[accounts]
max = 7
idle_after = "2d"
[ledger]
interval = "1s"
keep = "4 weeks"
unready_after = "10m"
[audit]
sink = "/var/log/audit.jsonl"
interval = "off"
on_full = "block"
key_file = "/etc/tollgate/audit.key"
rotate_size = "1MiB"
rotate_age = "off"
"#,
    ));
    assert_eq!(config.state_dir.as_deref(), Some(Path::new("/srv/books")));
    assert_eq!(config.run_dir.as_deref(), Some(Path::new("/run/books")));
    let socket = config.admin_socket.as_deref();
    assert_eq!(socket, Some(Path::new("/run/other.sock")));
    assert_eq!(
        (config.accounts.max, config.accounts.idle_after),
        (7, hours(48))
    );
    let ledger = config.ledger;
    assert_eq!(
        (ledger.interval, ledger.keep, ledger.unready_after),
        (
            Duration::from_secs(1),
            hours(4 * 7 * 24),
            Some(Duration::from_secs(600))
        )
    );
    let audit = config.audit;
    assert_eq!(audit.sink, Sink::File("/var/log/audit.jsonl".into()));
    assert_eq!((audit.interval, audit.on_full), (None, OnFull::Block));
    assert_eq!(
        audit.key_file,
        Some(PathBuf::from("/etc/tollgate/audit.key"))
    );
    assert_eq!((audit.rotate_size, audit.rotate_age), (1 << 20, None));
}

#[test]
fn the_run_directory_and_its_socket_follow_the_state_directory() {
    let config = valid(&with_on_top("state_dir = \"/srv/books\""));
    assert_eq!(config.run_dir.as_deref(), Some(Path::new("/srv/books/run")));
    let socket = config.admin_socket.as_deref();
    assert_eq!(socket, Some(Path::new("/srv/books/run/admin.sock")));
    let off = valid(&with_on_top(
        "state_dir = \"/srv/books\"\n[admin]\nsocket = \"off\"",
    ));
    assert_eq!(off.admin_socket, None);
}

#[test]
fn a_wrong_place_is_refused_with_a_right_one() {
    for (lines, key, help) in [
        ("state_dir = \"books\"", "state_dir", "/var/lib/tollgate"),
        ("run_dir = \"\"", "run_dir", "/var/lib/tollgate"),
        ("run_dir = \"/a\\u0000b\"", "run_dir", "the whole path"),
        (
            "[admin]\nsocket = \"admin.sock\"",
            "admin.socket",
            "or \"off\"",
        ),
        ("[audit]\nsink = \"stdot\"", "audit.sink", "mean \"stdout\""),
        (
            "[audit]\nsink = \"audit.log\"",
            "audit.sink",
            "/audit.jsonl",
        ),
        (
            "state_dir = \"/srv/books\"\n[audit]\nsink = \"/srv/books/ledger.db-wal\"",
            "audit.sink",
            "a file of its own",
        ),
        (
            "[audit]\nsink = \"/etc/key\"\nkey_file = \"/etc//key\"",
            "audit.sink",
            "a file of its own",
        ),
        ("[audit]\nkey_file = \"k\"", "audit.key_file", "whole path"),
    ] {
        let (keys, said) = refused(&with_on_top(lines));
        assert_eq!(keys, [key], "{said}");
        assert!(said.contains(help), "{lines}: {said}");
    }
}

#[test]
fn a_socket_that_the_kernel_cannot_take_is_refused_before_it_is_tried() {
    let long = |bytes: usize| format!("/{}", "x".repeat(bytes - 1));
    let written = |path: &str| with_on_top(&format!("[admin]\nsocket = \"{path}\""));
    valid(&written(&long(107)));
    let (keys, said) = refused(&written(&long(108)));
    assert_eq!(keys, ["admin.socket"]);
    assert!(
        said.contains("108 bytes, and the kernel takes 107"),
        "{said}"
    );
    // The customary one in a directory whose name is too long.
    let (keys, said) = refused(&with_on_top(&format!("run_dir = \"{}\"", long(100))));
    assert_eq!(keys, ["admin.socket"]);
    assert!(said.contains("a shorter run_dir"), "{said}");
    valid(&with_on_top(&format!(
        "run_dir = \"{}\"\n[admin]\nsocket = \"off\"",
        long(100)
    )));
}

#[test]
fn bounds_of_the_books_are_said() {
    for (lines, key, help) in [
        (
            "[accounts]\nidle_after = \"0s\"",
            "accounts.idle_after",
            "\"1s\" to \"30d\"",
        ),
        (
            "[ledger]\ninterval = \"10ms\"",
            "ledger.interval",
            "\"100ms\" to \"1h\"",
        ),
        (
            "[ledger]\nkeep = \"1 year\"",
            "ledger.keep",
            "\"400d\" do not",
        ),
        ("[ledger]\nkeep = 400", "ledger.keep", "\"400d\" if days"),
        (
            "[ledger]\nunready_after = \"0s\"",
            "ledger.unready_after",
            "or \"off\"",
        ),
        ("[audit]\ninterval = \"2h\"", "audit.interval", "or \"off\""),
        ("[audit]\non_full = \"blok\"", "audit.on_full", "\"block\""),
        (
            "[audit]\nsink = \"/a\"\nrotate_size = \"1KiB\"",
            "audit.rotate_size",
            "\"4KiB\" to \"1024GiB\"",
        ),
        (
            "[audit]\nsink = \"/a\"\nrotate_age = \"0s\"",
            "audit.rotate_age",
            "or \"off\"",
        ),
    ] {
        let (keys, said) = refused(&with_on_top(lines));
        assert_eq!(keys, [key], "{said}");
        assert!(said.contains(help), "{lines}: {said}");
    }
}

#[test]
fn a_key_of_the_audit_that_changes_nothing_is_refused() {
    for (lines, key) in [
        ("sink = \"off\"\non_full = \"block\"", "audit.on_full"),
        ("sink = \"off\"\ninterval = \"1m\"", "audit.interval"),
        ("sink = \"off\"\nkey_file = \"/k\"", "audit.key_file"),
        ("rotate_size = \"1MiB\"", "audit.rotate_size"),
        ("sink = \"stdout\"\nrotate_age = \"1h\"", "audit.rotate_age"),
    ] {
        let (keys, said) = refused(&with_on_top(&format!("[audit]\n{lines}")));
        assert_eq!(keys, [key], "{said}");
        assert!(said.contains("means nothing here"), "{said}");
    }
}

const ENDPOINTS: &str = r#"
[endpoint."*"]
account = "nobody"
[endpoint."vpce-0a*"]
name = "the a's"
account = "finance"
[endpoint."vpce-0a1"]
name = "ledger agents"
tags = ["prod", "eu"]
[endpoint."vpce-0a11*"]
tags = []
"#;

#[test]
fn of_an_endpoint_the_most_specific_entry_is_believed_key_by_key() {
    let endpoints = valid(&format!("{SMALL}{ENDPOINTS}")).endpoints;
    let patterns: Vec<&str> = endpoints
        .entries
        .iter()
        .map(|entry| &*entry.pattern)
        .collect();
    assert_eq!(patterns, ["vpce-0a1", "vpce-0a11*", "vpce-0a*", "*"]);
    let named = |id: &str| {
        let named = endpoints.named(id);
        [named.name, named.account, named.tags].map(|text| text.to_string())
    };
    assert_eq!(named("vpce-0a1"), ["ledger agents", "finance", "prod eu"]);
    assert_eq!(named("vpce-0a2"), ["the a's", "finance", ""]);
    assert_eq!(named("vpce-0b"), ["", "nobody", ""]);
    assert_eq!(
        endpoints.ids().map(|id| &**id).collect::<Vec<_>>(),
        ["vpce-0a1"]
    );
}

#[test]
fn each_of_many_ids_is_found_wherever_it_stands() {
    let ids = ["vpce-9", "vpce-10", "a", "zz", "vpce-1"];
    let tables = ids.map(|id| format!("[endpoint.{id}]\nname = \"of {id}\"\n"));
    let endpoints = valid(&format!(
        "{SMALL}{}[endpoint.\"*\"]\nname = \"any\"",
        tables.concat()
    ))
    .endpoints;
    for id in ids {
        assert_eq!(*endpoints.named(id).name, format!("of {id}"));
    }
    assert_eq!(&*endpoints.named("vpce-2").name, "any");
}

#[test]
fn an_endpoint_may_be_written_on_one_line() {
    let dotted = "endpoint.vpce-1.name = \"one\"\nendpoint.vpce-2 = { name = \"two\" }";
    let endpoints = valid(&with_on_top(dotted)).endpoints;
    assert_eq!(&*endpoints.named("vpce-1").name, "one");
    assert_eq!(&*endpoints.named("vpce-2").name, "two");
}

#[test]
fn a_wrong_endpoint_is_shown_where_it_stands() {
    for (lines, key, said_of_it) in [
        (
            "[endpoint.\"vpce_1\"]\nname = \"a\"",
            "endpoint",
            "1 to 64 letters",
        ),
        (
            "[endpoint.vpce-1]\nnme = \"a\"",
            "endpoint.nme",
            "did you mean name?",
        ),
        (
            "[endpoint.vpce-1]",
            "endpoint",
            "write name, account, tags or a limit",
        ),
        (
            "[endpoint.vpce-1]\nname = \"a\\nb\"",
            "endpoint.name",
            "on one line",
        ),
        (
            "[endpoint.vpce-1]\nname = \" a\"",
            "endpoint.name",
            "write \"a\"",
        ),
        (
            "[endpoint.vpce-1]\ntags = [\"a b\"]",
            "endpoint.tags",
            "write \"a-b\"",
        ),
        (
            "[endpoint.vpce-1]\ntags = \"a\"",
            "endpoint.tags",
            "[\"a\"]",
        ),
        ("endpoint.vpce-1 = 3", "endpoint", "write a table"),
        (
            "[[endpoint]]\nname = \"a\"",
            "",
            "[endpoint.\"vpce-08d2bf8fac5001001\"]",
        ),
        ("endpoint = 3", "", "[endpoint.\"vpce-08d2bf8fac5001001\"]"),
    ] {
        let (keys, said) = refused(&with_on_top(lines));
        assert_eq!(keys, [key], "{said}");
        assert!(said.contains(said_of_it), "{lines}: {said}");
        assert!(said.contains("test.toml:"), "it has a place: {said}");
    }
}

const CONSUMERS: &str = r#"
[[consumer]]
name = "billing"
networks = ["10.1.0.0/16", "fd00:1::/32"]
[[consumer]]
name = "batch"
endpoints = ["vpce-shared*"]
networks = ["10.1.7.0/24", "10.2.0.0/16"]
"#;

#[test]
fn the_consumer_with_the_longest_prefix_is_meant() {
    let consumers = valid(&format!("{SMALL}{CONSUMERS}")).consumers;
    let find = |endpoint: &str, address: &str| {
        let found = consumers.find(endpoint, address.parse().expect("an address"));
        found.map(|found| &*consumers.entries[found].name)
    };
    assert_eq!(find("vpce-1", "10.1.7.7"), Some("billing"));
    assert_eq!(find("vpce-shared1", "10.1.7.7"), Some("batch"));
    assert_eq!(find("vpce-shared1", "::ffff:10.1.8.7"), Some("billing"));
    assert_eq!(find("vpce-1", "fd00:1::7"), Some("billing"));
    assert_eq!(find("vpce-1", "10.2.0.1"), None);
}

#[test]
fn a_wrong_consumer_is_shown_where_it_stands() {
    for (lines, key, said_of_it) in [
        ("networks = [\"10.0.0.0/8\"]", "consumer.name", "add name"),
        (
            "name = \"a b\"\nnetworks = [\"10.0.0.0/8\"]",
            "consumer.name",
            "1 to 64",
        ),
        ("name = \"a\"", "consumer.networks", "is missing"),
        (
            "name = \"a\"\nnetworks = []",
            "consumer.networks",
            "is empty",
        ),
        (
            "name = \"a\"\nnetworks = [\"10.0.0.1/8\"]",
            "consumer.networks",
            "10.0.0.0/8",
        ),
        (
            "name = \"a\"\nnetworks = [\"10.0.0.0/8\"]\nendpoints = []",
            "consumer.endpoints",
            "leave the key out",
        ),
        (
            "name = \"a\"\nnetworks = [\"10.0.0.0/8\"]\n[[consumer]]\nname = \"b\"\nnetworks = [\"10.0.0.0/8\"]",
            "consumer.networks",
            "a's already",
        ),
        (
            "name = \"a\"\nnetwork = \"10.0.0.0/8\"",
            "network",
            "did you mean networks?",
        ),
    ] {
        let (keys, said) = refused(&with_on_top(&format!("[[consumer]]\n{lines}")));
        assert_eq!(keys, [key], "{said}");
        assert!(said.contains(said_of_it), "{lines}: {said}");
    }
    let (_, said) = refused(&with_on_top("[consumer]\nname = \"a\""));
    assert!(said.contains("[[consumer]]"), "{said}");
}

#[test]
fn a_file_is_known_by_what_is_written_in_it() {
    let empty_line = format!("\n{SMALL}");
    let (one, other) = (valid(SMALL), valid(&empty_line));
    assert_eq!(one.digest.len(), 64);
    assert_eq!(one.digest, valid(SMALL).digest);
    assert_ne!(one.digest, other.digest);
    let known = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    assert_eq!(
        &*super::super::build::digest(""),
        known,
        "of nothing (FIPS 180-4)"
    );
}
