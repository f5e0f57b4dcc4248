//! `check --probe`: what it says of ports, directories, files, and of a relay that runs. Targets are in `probe`.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;

use libtest_mimic::Trial;

use super::NOBODY;
use crate::{
    claim,
    harness::{
        origin::{Manner, Origin},
        relay::{Home, Said},
        unit,
    },
    scenarios::world::{Hosts, ORIGIN, World, shipped_with},
};

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        claim(
            "probe_finds_what_a_relay_would_not_be_allowed",
            probe_finds_what_a_relay_would_not_be_allowed,
        ),
        claim(
            "probe_tells_how_the_relay_is_that_runs",
            probe_tells_how_the_relay_is_that_runs,
        ),
    ]
}

const PROBE: [&str; 4] = ["check", "--probe", "--config", "@CONFIG@"];

/// The line that begins like this, and the code that it ended with.
#[track_caller]
fn finding<'a>(said: &'a Said, begins: &str) -> &'a str {
    assert_eq!(said.err, "");
    let line = said.out.lines().find(|line| line.starts_with(begins));
    line.unwrap_or_else(|| panic!("{begins} in {}", said.out))
}

/// Few enough sessions for any machine.
fn config(listener: &str, top: &str) -> String {
    format!(
        "{top}\n[[listener]]\nname = \"ingest\"\nmax_sessions = 100\n{listener}\ntrusted_peers = [\"10.20.0.0/16\"]\nupstream = \"cp\"\n\
         [[upstream]]\nname = \"cp\"\ntargets = [{ORIGIN:?}]\n"
    )
}

fn probe_finds_what_a_relay_would_not_be_allowed() {
    let hosts = Hosts::new("probe-machine");
    let origin = Origin::start(&hosts.origin, ORIGIN, Manner::Echo);
    // Somebody else on one of the ports.
    let _other = Origin::start(&hosts.relay, "10.20.0.2:8443", Manner::Echo);
    let home = Home::new();
    let audit = home.path().join("audit.jsonl");
    fs::write(&audit, "").unwrap();
    fs::set_permissions(&audit, Permissions::from_mode(0o600)).unwrap();
    fs::create_dir(home.path().join("locked")).unwrap();
    let binds =
        "bind = [\"10.20.0.2:8443\", \"10.20.0.2:80\", \"10.99.0.1:8443\", \"10.20.0.2:8444\"]";
    let files = "state_dir = \"@DIR@/locked/state\"\n[audit]\nsink = \"@DIR@/audit.jsonl\"\nkey_file = \"@DIR@/no.key\"\n[admin]\nsocket = \"off\"";
    home.configure(&config(binds, files));
    let said = home.tollgate_through(&hosts.relay, &NOBODY, &PROBE);
    assert_eq!(said.code, 1, "{}", said.out);
    for (begins, part) in [
        (
            "listener ingest: 10.20.0.2:8443: ",
            "somebody else listens there",
        ),
        ("listener ingest: 10.20.0.2:80: ", "CAP_NET_BIND_SERVICE"),
        (
            "listener ingest: 10.99.0.1:8443: ",
            "no interface has this address",
        ),
        ("state_dir: ", "user 65534 cannot write in"),
        ("[audit] sink: ", "cannot be written"),
        ("[audit] key_file: ", "cannot be read"),
        ("cp: 10.30.0.2:443: ", "connects in"),
    ] {
        let line = finding(&said, begins);
        assert!(line.contains(part), "{part:?} in {line}");
    }
    assert!(!said.out.contains("10.20.0.2:8444"), "{}", said.out);
    assert!(
        !home.path().join("locked/state").exists(),
        "nothing is made"
    );
    origin.wait_over(1);

    // Who may do all that, on ports that are free, is told nothing.
    let files = "state_dir = \"@DIR@/locked/state\"\n[audit]\nsink = \"@DIR@/audit.jsonl\"";
    home.configure(&config(
        "bind = [\"10.20.0.2:80\", \"10.20.0.2:8444\"]",
        files,
    ));
    let said = home.tollgate(&hosts.relay, &PROBE);
    assert_eq!(
        (said.code, said.out.lines().count()),
        (0, 1),
        "{}",
        said.out
    );
}

fn probe_tells_how_the_relay_is_that_runs() {
    let start = shipped_with("max_sessions = 100").replace(
        "[health]\n",
        "[health]\nfail_without = [\"control-plane\"]\n",
    );
    let world = World::with("probe-running", Manner::Echo, start);
    let relay = &world.relay;
    let said = relay.tollgate(&PROBE);
    // One that has no more capabilities than the unit leaves is told what the sysctl file is for, where this machine's pipes are few.
    let bounded = std::env::var_os(unit::ASKED).is_some()
        && said.out.lines().any(|line| line.starts_with("pipes: "));
    assert_eq!(said.code, i32::from(bounded), "{}", said.out);
    let asks = format!("relay: process {} asks for traffic", relay.id());
    finding(&said, &asks);
    assert!(
        !said.out.contains("listener"),
        "its ports are its own: {}",
        said.out
    );

    // A file that the relay has not taken up, and says so.
    let text = fs::read_to_string(relay.home().config()).unwrap();
    relay.rewrite_config(&text.replace("max_sessions = 100", "max_sessions = 0"));
    assert_eq!(relay.tollgate(&["reload", "--config", "@CONFIG@"]).code, 78);
    relay.rewrite_config(&text);
    let said = relay.tollgate(&PROBE);
    assert_eq!(said.code, 1, "{}", said.out);
    finding(&said, "relay: the last reload failed");

    // More sessions than this process has descriptors for, however many those are.
    relay.rewrite_config(&text.replace("max_sessions = 100", "max_sessions = 10000000"));
    let said = relay.tollgate(&PROBE);
    assert!(
        finding(&said, "descriptors: ").contains("LimitNOFILE"),
        "{}",
        said.out
    );
    world.assert_at_rest();
}
