//! `tollgate check --probe`: what it says of targets that are wrong, each in one line, from the relay's own host.

use std::process::Output;

use hickory_proto::op::ResponseCode;
use libtest_mimic::Trial;

use super::world::{Hosts, ORIGIN, SHIPPED};
use crate::{
    claim,
    harness::{
        dns::{Answer, Dns},
        origin::{Manner, Origin},
        relay,
    },
};

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        claim(
            "probe_explains_each_wrong_target_in_one_line",
            probe_explains_each_wrong_target_in_one_line,
        ),
        claim(
            "probe_of_a_way_that_is_there_finds_nothing",
            probe_of_a_way_that_is_there_finds_nothing,
        ),
    ]
}

/// Where names are asked for.
const SERVER: &str = "10.30.0.2:53";

/// The shipped configuration before this upstream, for as many sessions as any machine has descriptors and ports for.
fn config(upstream: &str) -> String {
    let table = SHIPPED.find("[[upstream]]").unwrap();
    format!(
        "[resolver]\nservers = [{SERVER:?}]\n{}max_sessions = 1000\n[[upstream]]\nname = \"control-plane\"\n{upstream}\n",
        &SHIPPED[..table]
    )
}

fn probe(hosts: &Hosts, config: &str) -> Output {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tollgate.toml");
    std::fs::write(&path, config).unwrap();
    let mut command = hosts.relay.command(relay::binary().to_str().unwrap());
    command.args(["check", "--probe", "--config"]).arg(&path);
    command.output().unwrap()
}

/// What it printed, and the code it ended with.
fn said(output: &Output) -> (String, Option<i32>) {
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    (text, output.status.code())
}

fn probe_explains_each_wrong_target_in_one_line() {
    let hosts = Hosts::new("probe-wrong");
    let _origin = Origin::start(&hosts.origin, ORIGIN, Manner::Echo);
    let dns = Dns::start(&hosts.origin, SERVER);
    let addresses = |list: &[&str]| Answer::addresses(list, 60);
    dns.set("refuses.example", addresses(&["10.30.0.2"]));
    // Nobody has this address: not answered within the time for a connection, which is shorter than the kernel's for the neighbour.
    dns.set("dead.example", addresses(&["10.30.0.99"]));
    dns.set("no-route.example", addresses(&["203.0.113.9"]));
    dns.set("loopback.example", addresses(&["127.0.0.1"]));
    dns.set("own.example", addresses(&["10.20.0.2"]));
    dns.set("fails.example", Answer::Code(ResponseCode::ServFail));
    dns.set("half.example", addresses(&["10.30.0.2", "10.30.0.99"]));
    let targets = [
        ("gone.example:443", &["10.30.0.2:53", "no such name"][..]),
        ("refuses.example:444", &["10.30.0.2:444", "nothing listens"]),
        (
            "dead.example:443",
            &["10.30.0.99:443", "no answer within 500ms", "security group"],
        ),
        ("no-route.example:443", &["203.0.113.9:443", "route"]),
        ("loopback.example:443", &["127.0.0.1", "allow_addresses"]),
        ("own.example:8443", &["10.20.0.2", "own listener", "loop"]),
        ("fails.example:443", &["10.30.0.2:53", "SERVFAIL"]),
        ("10.20.0.2:8443", &["10.20.0.2", "own listener", "loop"]),
        ("10.30.0.2:445", &["10.30.0.2:445", "nothing listens"]),
    ];
    let list = targets.map(|(target, _)| format!("{target:?}")).join(", ");
    let upstream = format!("targets = [{list}, \"half.example:443\"]\nconnect_timeout = \"500ms\"");
    let (text, code) = said(&probe(&hosts, &config(&upstream)));
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!((lines.len(), code), (targets.len() + 2, Some(1)), "{text}");
    for (line, (target, parts)) in lines.iter().zip(targets) {
        assert!(
            line.starts_with(&format!("control-plane: {target}: ")),
            "{line}"
        );
        assert!(!line.contains("the name has none"), "{line}");
        for part in parts {
            assert!(line.contains(part), "{part} in {line}");
        }
    }
    // One dead address does not hide the one beside it.
    let half = &lines[targets.len()..];
    assert!(
        half.iter()
            .all(|line| line.starts_with("control-plane: half.example:443: ")),
        "{text}"
    );
    assert!(half[0].contains("10.30.0.2:443 connects in "), "{text}");
    assert!(half[1].contains("10.30.0.99:443"), "{text}");
}

fn probe_of_a_way_that_is_there_finds_nothing() {
    let hosts = Hosts::new("probe-right");
    let origin = Origin::start(&hosts.origin, ORIGIN, Manner::Echo);
    let dns = Dns::start(&hosts.origin, SERVER);
    dns.set("cp.example", Answer::addresses(&["10.30.0.2"], 60));
    let targets = "targets = [\"cp.example:443\", { target = \"10.30.0.2:443\", priority = 1 }]\n";
    let (text, code) = said(&probe(&hosts, &config(targets)));
    assert_eq!((text.lines().count(), code), (2, Some(0)), "{text}");
    for line in text.lines() {
        assert!(line.contains(": 10.30.0.2:443 connects in "), "{line}");
    }
    origin.wait_over(2);

    // A check that the service does not pass, then one that it does.
    let health = "health = { check = \"http\", timeout = \"5s\" }\n";
    let (text, code) = said(&probe(&hosts, &config(&format!("{targets}{health}"))));
    assert_eq!((text.lines().count(), code), (2, Some(1)), "{text}");
    assert!(
        text.lines().all(|line| line.contains("no HTTP/1")),
        "{text}"
    );
    let health = "health = { check = \"exchange\", send = \"PING\", expect = \"PING\" }\n";
    let (text, code) = said(&probe(&hosts, &config(&format!("{targets}{health}"))));
    assert_eq!((text.lines().count(), code), (2, Some(0)), "{text}");
    assert!(
        text.lines().all(|line| line.contains("is healthy after ")),
        "{text}"
    );

    // What the kernel does not give is a finding beside targets that are as they should be.
    let socket = "socket = { receive_buffer = \"1GiB\" }\n";
    let (text, code) = said(&probe(&hosts, &config(&format!("{targets}{socket}"))));
    assert_eq!(code, Some(1), "{text}");
    assert!(
        text.starts_with("control-plane: socket: receive_buffer 1GiB is cut to "),
        "{text}"
    );
    assert_eq!(text.lines().count(), 3, "{text}");
}
