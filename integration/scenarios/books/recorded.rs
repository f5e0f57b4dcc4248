//! O5: what the audit log says of each connection, and what happens when it cannot be written.

use std::{
    collections::BTreeMap,
    fs::{File, OpenOptions},
    io::Read,
    os::unix::fs::OpenOptionsExt,
    process::Command,
};

use libtest_mimic::Trial;

use super::{
    counted::{Booked, close, open, run},
    sessions::{Manner, Plan, Planned, endpoint_id},
    world::{SERVICES, audit_log, audited, end, home, two_services},
};
use crate::{
    claim,
    harness::{
        agent::Agent,
        audit,
        netns::Host,
        origin::{Manner as Origins, Origin},
        relay::{Home, Relay, Start},
        stream::{self, End},
    },
    scenarios::{
        hello,
        raw_header::{self, endpoint},
        world::{Hosts, listener, privatelink_header},
    },
};

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        claim(
            "each_connection_has_one_open_and_one_close_in_order",
            each_connection_has_one_open_and_one_close_in_order,
        ),
        claim(
            "hostile_bytes_add_no_record_and_break_none",
            hostile_bytes_add_no_record_and_break_none,
        ),
        claim(
            "blocked_sink_that_drops_keeps_relaying_and_records_the_gap",
            blocked_sink_that_drops_keeps_relaying_and_records_the_gap,
        ),
        claim(
            "blocked_sink_that_blocks_opens_nothing_new_and_recovers",
            blocked_sink_that_blocks_opens_nothing_new_and_recovers,
        ),
        claim("full_disk_under_the_audit_log_drops_and_recovers", || {
            full_disk_under_the_audit_log("drop");
        }),
        claim("full_disk_under_the_audit_log_blocks_and_recovers", || {
            full_disk_under_the_audit_log("block");
        }),
    ]
}

/// The fields in the order in which a record has them.
const ORDER: [&str; 22] = [
    "time",
    "event",
    "session",
    "relay",
    "listener",
    "endpoint",
    "consumer",
    "client",
    "peer",
    "upstream",
    "target",
    "address",
    "bytes_to_upstream",
    "bytes_to_client",
    "duration_ms",
    "connect_ms",
    "reason",
    "client_leg",
    "upstream_leg",
    "(the event's own)",
    "seq",
    "prev",
];

/// The places of the known fields of a line in [`ORDER`].
fn places(line: &str) -> Vec<usize> {
    let mut places: Vec<(usize, usize)> = Vec::new();
    for (place, field) in ORDER.iter().enumerate() {
        if let Some(at) = line.find(&format!("\"{field}\":")) {
            places.push((at, place));
        }
    }
    places.sort_unstable();
    places.into_iter().map(|(_, place)| place).collect()
}

/// RFC 3339, UTC, microseconds.
fn is_time(text: &str) -> bool {
    let pattern = "dddd-dd-ddTdd:dd:dd.ddddddZ";
    let fits = |(wanted, found): (char, char)| match wanted {
        'd' => found.is_ascii_digit(),
        other => other == found,
    };
    text.len() == pattern.len() && pattern.chars().zip(text.chars()).all(fits)
}

fn each_connection_has_one_open_and_one_close_in_order() {
    let booked = Booked::new("o5", "");
    let _origins = SERVICES.map(|service| Planned::start(&booked.hosts.origin, service.origin));
    let manners = [
        Manner::Both,
        Manner::ClientFirst,
        Manner::UpstreamFirst,
        Manner::ClientResets,
        Manner::UpstreamResets,
        Manner::Stranger,
        Manner::BadHeader,
    ];
    let plans = (0..28).map(|number| {
        let manner = manners[number as usize % manners.len()];
        let stranger = manner == Manner::Stranger;
        Plan {
            number,
            endpoint: match stranger {
                true => format!("stranger-{number}"),
                false => endpoint_id(number),
            },
            service: if stranger { 1 } else { (number % 2) as usize },
            manner,
            bytes: [1000 + number, 2000 + 3 * number],
        }
    });
    let outcomes = run(&booked.hosts.node, plans.collect());
    assert!(outcomes.iter().all(|outcome| outcome.client.whole));
    booked
        .relay
        .wait_metric("tollgate_connections_active", &[], 0);
    end(&booked.relay);
    let records = audited(&booked.home);
    assert_eq!(records.first().unwrap().event(), "started");
    assert_eq!(records.last().unwrap().event(), "ended");
    for record in &records {
        assert!(is_time(record.text("time")), "{}", record.line);
        assert_eq!(record.text("relay"), "relay-a", "{}", record.line);
        assert!(places(&record.line).is_sorted(), "{}", record.line);
    }
    let sessions = audit::sessions(&records);
    let by_client: BTreeMap<_, _> = sessions
        .values()
        .map(|session| (session.open.client().unwrap(), session))
        .collect();
    let mut refused: Vec<_> = records
        .iter()
        .filter(|record| record.event() == "refused")
        .map(|record| (record.text("reason"), record.text("endpoint")))
        .collect();
    refused.sort_unstable();
    let mut turned_away = Vec::new();
    for outcome in &outcomes {
        let plan = &outcome.plan;
        let service = SERVICES[plan.service];
        match plan.manner {
            Manner::Stranger => turned_away.push(("no_route", plan.endpoint.as_str())),
            Manner::BadHeader => turned_away.push(("crc", "")),
            _ => {
                let session = by_client[&plan.client()];
                let (open, close) = (&session.open, &session.close);
                assert!(open.text("time") <= close.text("time"), "{}", close.line);
                for record in [open, close] {
                    assert_eq!(record.text("endpoint"), plan.endpoint, "{}", record.line);
                    assert_eq!(record.text("listener"), service.listener, "{}", record.line);
                    assert_eq!(record.text("upstream"), service.upstream, "{}", record.line);
                    assert!(
                        record.text("peer").starts_with("10.20.0.10:"),
                        "{}",
                        record.line
                    );
                }
                assert_eq!(close.text("address"), service.origin, "{}", close.line);
                assert_eq!(close.text("reason"), plan.manner.reason(), "{}", close.line);
                assert_eq!(close.number("bytes_to_upstream"), plan.bytes[0]);
                assert_eq!(close.number("bytes_to_client"), plan.bytes[1]);
            }
        }
    }
    turned_away.sort_unstable();
    assert_eq!(refused, turned_away);
    assert_eq!(sessions.len() + refused.len(), outcomes.len());
}

/// What would be two records if it were written as it came.
const INJECTED: &str = "x\"}\n{\"event\":\"close\",\"session\":\"forged\",\"reason\":\"completed\"}\r\n\u{1b}[2J\u{2028}";

fn hostile_bytes_add_no_record_and_break_none() {
    let hosts = Hosts::new("o5-hostile");
    let home = home();
    let by_name = "[[listener]]\nname = \"by-name\"\nbind = \"0.0.0.0:8445\"\ntrusted_peers = [\"10.20.0.0/16\"]\n\
                   routes = [{ sni = \"*.example.com\", upstream = \"control-plane\" }, { host = \"*.example.com\", upstream = \"control-plane\" }]\n";
    let start = two_services(&format!("{}{by_name}", super::world::OFTEN));
    let relay = start.at(&home).on(&hosts.relay);
    let _origin = Origin::start(&hosts.origin, SERVICES[0].origin, Origins::Echo);
    let ids: Vec<Vec<u8>> = [
        INJECTED.as_bytes(),
        b"\"",
        b"\\",
        b"vpce-\0",
        b"vpce-\n",
        b"vpce-\xff\xfe",
        b"overflow",
        b"other",
        b"direct",
        b"(none)",
        b"",
        &[b'a'; 65],
    ]
    .iter()
    .map(|id| id.to_vec())
    .collect();
    let tries = ids.len();
    hosts.node.run(async move {
        for id in ids {
            // Without a checksum, and with other TLVs that mean nothing to anybody.
            let tlvs = [
                endpoint(&id),
                raw_header::tlv(0xE1, INJECTED.as_bytes()),
                raw_header::tlv(0x02, INJECTED.as_bytes()),
            ];
            let addresses = [172, 31, 7, 113, 172, 31, 10, 31, 0xC8, 0xF2, 0, 80];
            let header = raw_header::of(0x21, 0x11, &[&addresses[..], &tlvs.concat()].concat());
            let mut agent = Agent::connect(listener()).await.unwrap();
            // It may be reset while it is still being read.
            let _ = agent.write(&header).await;
            let outcome = agent.read_to_end().await.unwrap();
            assert_eq!(outcome, (Vec::new(), End::Reset), "{}", id.escape_ascii());
        }
        // Names that a client chose.
        let to = "10.20.0.2:8445".parse().unwrap();
        let head = |host: &str| format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n").into_bytes();
        let name = "x\"}{\"event\":\"close\"}.example.org";
        for first in [
            hello::of(&hello::server_name(name.as_bytes())),
            head(name),
            head("\u{1b}[2J\u{2028}"),
        ] {
            let mut agent = Agent::connect(to).await.unwrap();
            agent
                .write(&privatelink_header("vpce-named"))
                .await
                .unwrap();
            let _ = agent.write(&first).await;
            let outcome = agent.read_to_end().await.unwrap();
            assert_eq!(
                outcome,
                (Vec::new(), End::Reset),
                "{}",
                first.escape_ascii()
            );
        }
    });
    end(&relay);
    let records = audited(&home);
    let mut counts = BTreeMap::<&str, usize>::new();
    for record in &records {
        assert_ne!(record.text("session"), "forged");
        let plain = record.line.bytes().all(|byte| byte >= 0x20 && byte != 0x7f);
        assert!(
            plain && !record.line.contains('\u{2028}'),
            "{:?}",
            record.line
        );
        *counts.entry(record.event()).or_default() += 1;
    }
    assert_eq!(counts.get("refused"), Some(&(tries + 3)), "{counts:?}");
    assert_eq!(counts.get("open"), None, "{counts:?}");
    let verify = [
        "audit",
        "verify",
        "--config",
        "@CONFIG@",
        "@DIR@/audit/audit.jsonl",
    ];
    home.tollgate(&hosts.relay, &verify).ok();
    // The log for people has no room for control characters either.
    for line in relay.log_lines("") {
        assert!(
            !line.contains('\u{1b}') && !line.contains("forged\","),
            "{line:?}"
        );
    }
}

/// A relay whose records go to standard output, and that to a pipe which nobody reads until the test does.
#[derive(Debug)]
struct Unread {
    relay: Relay,
    pipe: File,
    hosts: Hosts,
    _origin: Origin,
}

impl Unread {
    #[track_caller]
    fn new(name: &str, on_full: &str) -> Self {
        let hosts = Hosts::new(name);
        let origin = Origin::start(&hosts.origin, SERVICES[0].origin, Origins::Echo);
        let home = home();
        let pipe = home.path().join("records");
        let made = Command::new("mkfifo").arg(&pipe).status().unwrap();
        assert!(made.success());
        // Both ends in one, so that the relay finds a reader and no end.
        let pipe = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(rustix::fs::OFlags::NONBLOCK.bits() as i32)
            .open(&pipe)
            .unwrap();
        let audit = format!(
            "[ledger]\ninterval = \"1s\"\n[audit]\nsink = \"stdout\"\non_full = \"{on_full}\"\n[drain]\naccept_for = \"0s\"\n"
        );
        let relay = two_services(&audit)
            .at(&home)
            .through(&["sh", "-c", "exec \"$0\" \"$@\" >@DIR@/records"])
            .on(&hosts.relay);
        Self {
            relay,
            pipe,
            hosts,
            _origin: origin,
        }
    }

    /// Opens and closes sessions until the relay has no place for their records: none is waited for.
    #[track_caller]
    fn until(&self, what: &str, full: impl Fn(&Relay) -> bool) -> u64 {
        let mut sessions = 0;
        self.relay.wait_until(what, || {
            sessions += self.some();
            full(&self.relay)
        });
        sessions
    }

    /// See [`some`].
    fn some(&self) -> u64 {
        some(&self.hosts.node)
    }

    /// Reads what is in the pipe until there is a line with `text`; returns all complete lines.
    #[track_caller]
    fn read_until(&mut self, text: &str) -> Vec<String> {
        let mut bytes = Vec::new();
        let mut chunk = vec![0; 65536];
        let Self { relay, pipe, .. } = self;
        relay.wait_until(&format!("a record with {text}"), || {
            let mut found = false;
            while let Ok(n @ 1..) = pipe.read(&mut chunk) {
                // What was looked through before is not looked through again, but for what may have begun there.
                let from = bytes.len().saturating_sub(text.len());
                bytes.extend_from_slice(&chunk[..n]);
                found |= String::from_utf8_lossy(&bytes[from..]).contains(text);
            }
            found
        });
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let complete = text.rfind('\n').map_or("", |end| &text[..end]);
        complete.lines().map(str::to_owned).collect()
    }
}

/// How many sessions [`some`] begins: eight at once.
const SOME: u64 = 8 * 100;

/// Sessions that end by RST; how many were taken.
fn some(node: &Host) -> u64 {
    node.run(async move {
        let clients = (0..8).map(|_| tokio::spawn(hundred()));
        let mut taken = 0;
        for client in clients.collect::<Vec<_>>() {
            taken += client.await.unwrap();
        }
        taken
    })
}

async fn hundred() -> u64 {
    let header = privatelink_header(&endpoint_id(1));
    let mut taken = 0;
    for _ in 0..100 {
        let Ok(mut agent) = Agent::connect(listener()).await else {
            continue;
        };
        // One that is refused may be reset at any of these steps.
        let written = stream::write(agent.stream(), &header, |_| ()).await;
        if written.is_ok() && agent.exchange(10).await.is_ok() {
            taken += 1;
        }
        agent.reset();
    }
    taken
}

#[track_caller]
fn parse(lines: &[String]) -> Vec<audit::Record> {
    let record = |line: &String| audit::Record {
        line: line.clone(),
        value: serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line:?}")),
    };
    lines.iter().map(record).collect()
}

fn blocked_sink_that_drops_keeps_relaying_and_records_the_gap() {
    let mut unread = Unread::new("o5-drop", "drop");
    let agent = open(&unread.hosts.node, &endpoint_id(2), 1000);
    let dropped = |relay: &Relay| relay.metric("tollgate_audit_dropped_total", &[]);
    let before = unread.until("records to be dropped", |relay| dropped(relay) > 0);
    assert!(before > 0);
    // Nobody notices: what is open goes on, and new ones are taken.
    let agent = unread.hosts.node.run(async move {
        let mut agent = agent;
        agent.exchange(500_000).await.unwrap();
        agent
    });
    assert_eq!(unread.some(), SOME);
    assert_eq!(unread.relay.get("/readyz").0, 200);
    close(&unread.hosts.node, agent);
    unread
        .relay
        .wait_metric("tollgate_connections_active", &[], 0);
    let opened = unread
        .relay
        .metric("tollgate_connections_opened_total", &[]);
    let mut lines = unread.read_until("\"event\":\"gap\"");
    unread.relay.signal(crate::harness::relay::Signal::TERM);
    lines.extend(unread.read_until("\"event\":\"ended\""));
    assert_eq!(unread.relay.wait_exit(), 0);
    let records = parse(&lines);
    audit::assert_chained(&records);
    let gaps = records.iter().filter(|record| record.event() == "gap");
    let recorded: u64 = gaps.map(|gap| gap.number("dropped")).sum();
    assert!(recorded > 0);
    // What was recorded and what was dropped is all there was: two of each session.
    let sessions = records
        .iter()
        .filter(|record| ["open", "close"].contains(&record.event()));
    assert_eq!(sessions.count() as u64 + recorded, 2 * opened);
}

fn blocked_sink_that_blocks_opens_nothing_new_and_recovers() {
    let mut unread = Unread::new("o5-block", "block");
    let agent = open(&unread.hosts.node, &endpoint_id(2), 1000);
    let refused = |relay: &Relay| relay.metric("tollgate_refused_total", &[("reason", "audit")]);
    unread.until("sessions to be refused", |relay| refused(relay) > 0);
    let (status, why) = unread.relay.get("/readyz");
    assert_eq!(status, 503, "{why}");
    assert!(why.contains("audit"), "{why}");
    // What is open goes on.
    let agent = unread.hosts.node.run(async move {
        let mut agent = agent;
        agent.exchange(500_000).await.unwrap();
        agent
    });
    close(&unread.hosts.node, agent);
    let mut lines = unread.read_until(&endpoint_id(2));
    // Somebody reads again, so all is well again.
    let mut ready = false;
    let mut rest = Vec::new();
    let Unread {
        relay, pipe, hosts, ..
    } = &mut unread;
    let mut chunk = vec![0; 65536];
    relay.wait_until("readiness to come back", || {
        while let Ok(n @ 1..) = pipe.read(&mut chunk) {
            rest.extend_from_slice(&chunk[..n]);
        }
        ready = relay.get("/readyz").0 == 200;
        ready
    });
    close(&hosts.node, open(&hosts.node, &endpoint_id(3), 1000));
    lines.extend(String::from_utf8_lossy(&rest).lines().map(str::to_owned));
    assert_eq!(relay.metric("tollgate_audit_dropped_total", &[]), 0);
    unread.relay.signal(crate::harness::relay::Signal::TERM);
    let ended = unread.read_until("\"event\":\"ended\"");
    assert_eq!(unread.relay.wait_exit(), 0);
    assert!(ended.iter().any(|line| line.contains(&endpoint_id(3))));
    assert!(lines.iter().all(|line| !line.contains("\"gap\"")));
}

fn full_disk_under_the_audit_log(on_full: &str) {
    let hosts = Hosts::new("o5-full");
    let _origin = Origin::start(&hosts.origin, SERVICES[0].origin, Origins::Echo);
    let home = Home::new();
    std::fs::create_dir(home.path().join("audit")).unwrap();
    let disk = home.mount("audit", "size=1m");
    let audit = format!(
        "[ledger]\ninterval = \"1s\"\n[audit]\nsink = \"@DIR@/audit/audit.jsonl\"\non_full = \"{on_full}\"\n[drain]\naccept_for = \"0s\"\n"
    );
    let start: Start = two_services(&audit).at(&home);
    let relay = start.on(&hosts.relay);
    let agent = open(&hosts.node, &endpoint_id(1), 1000);
    disk.fill();
    let failing = |relay: &Relay| relay.metric("tollgate_audit_failing", &[]) == 1;
    let trouble = |relay: &Relay| match on_full {
        "drop" => relay.metric("tollgate_audit_dropped_total", &[]) > 0,
        _ => relay.metric("tollgate_refused_total", &[("reason", "audit")]) > 0,
    };
    relay.wait_until("trouble", || {
        some(&hosts.node);
        failing(&relay) && trouble(&relay)
    });
    let (status, why) = relay.get("/readyz");
    assert_eq!(status, if on_full == "drop" { 200 } else { 503 }, "{why}");
    let taken = some(&hosts.node);
    if on_full == "drop" {
        assert_eq!(taken, SOME, "relaying goes on");
    }
    let agent = hosts.node.run(async move {
        let mut agent = agent;
        agent.exchange(500_000).await.unwrap();
        agent
    });
    // Whoever looks after the disk makes room.
    disk.empty();
    disk.again("size=64m");
    relay.wait_until("the log to be written again", || !failing(&relay));
    relay.wait_until("readiness", || relay.get("/readyz").0 == 200);
    close(&hosts.node, agent);
    close(&hosts.node, open(&hosts.node, &endpoint_id(3), 10));
    let dropped = relay.metric("tollgate_audit_dropped_total", &[]);
    end(&relay);
    let records = audited(&home);
    let gaps = records.iter().filter(|record| record.event() == "gap");
    let recorded: u64 = gaps.map(|gap| gap.number("dropped")).sum();
    assert_eq!(recorded, dropped);
    assert_eq!(dropped > 0, on_full == "drop");
    if on_full == "block" {
        audit::sessions(&records);
    }
    // Whichever worker's close is written last: that of the session after the trouble is there.
    let closed = |record: &audit::Record| {
        record.event() == "close" && record.text("endpoint") == endpoint_id(3)
    };
    assert!(records.iter().any(closed), "the session after the trouble");
    let log = audit_log(&home);
    let verify = [
        "audit",
        "verify",
        "--config",
        "@CONFIG@",
        log.to_str().unwrap(),
    ];
    home.tollgate(&hosts.relay, &verify).ok();
}
