//! O6: ids without number, and ids of every kind.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use libtest_mimic::Trial;

use super::{
    counted::{Booked, close, open},
    sessions::endpoint_id,
    world::{SERVICES, end, usage},
};
use crate::{
    claim,
    harness::{
        BOUND,
        agent::Agent,
        ledger,
        origin::{Manner as Origins, Origin},
        stream,
    },
    scenarios::world::{listener, privatelink_header},
};

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        claim(
            "a_hundred_thousand_ids_leave_memory_metrics_and_ledger_bounded",
            a_hundred_thousand_ids_leave_memory_metrics_and_ledger_bounded,
        ),
        claim(
            "ids_of_64_bytes_of_each_allowed_character_have_their_own_accounts",
            ids_of_64_bytes_of_each_allowed_character_have_their_own_accounts,
        ),
    ]
}

const IDS: u64 = 100_000;
const AT_ONCE: u64 = 64;
/// Accounts that may be kept.
const MOST: u64 = 2000;
/// Bytes each way in each session.
const BYTES: u64 = 10;
/// What the relay's heap may grow by while a hundred thousand ids pass: what two thousand accounts take, and what the metrics and the ledger take of
/// a thousand. A tenth of what one kilobyte for each id would be.
const GROWTH: u64 = 24 << 20;

/// Sessions of these ids, some at once; each ends by RST, so that no port waits for its end.
async fn sessions(ids: std::ops::Range<u64>) {
    let next = Arc::new(AtomicU64::new(ids.start));
    let clients = (0..AT_ONCE).map(|_| {
        let next = Arc::clone(&next);
        tokio::spawn(async move {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= ids.end {
                    return;
                }
                let mut agent = Agent::connect(listener()).await.unwrap();
                let header = privatelink_header(&endpoint_id(number));
                stream::write(agent.stream(), &header, |_| ())
                    .await
                    .unwrap();
                agent.exchange(BYTES).await.unwrap();
                agent.reset();
            }
        })
    });
    for client in clients.collect::<Vec<_>>() {
        client.await.unwrap();
    }
}

fn a_hundred_thousand_ids_leave_memory_metrics_and_ledger_bounded() {
    let tables = format!(
        "[accounts]\nmax = {MOST}\n[metrics]\nmax_endpoints = 200\n[endpoint.\"vpce-known\"]\nname = \"known\"\n"
    );
    let mut booked = Booked::new("o6", &tables);
    // As many records would only be as many lines.
    booked.start = booked
        .start
        .replace("sink = \"@DIR@/audit/audit.jsonl\"", "sink = \"off\"");
    booked = booked.killed();
    let _origin = Origin::start(&booked.hosts.origin, SERVICES[0].origin, Origins::Echo);
    let node = &booked.hosts.node;
    let run = |ids| node.run_within(12 * BOUND, sessions(ids));
    // As many as there is room for, so that what comes then is what strangers cost.
    run(0..MOST);
    let memory = booked.relay.own_memory();
    run(MOST..IDS);
    let grown = booked.relay.own_memory().saturating_sub(memory);
    assert!(grown < GROWTH, "{grown} bytes");
    // One that is configured has an account all the same.
    close(node, open(node, "vpce-known", 1000));
    booked
        .relay
        .wait_metric("tollgate_connections_active", &[], 0);

    let metrics = booked.relay.metrics();
    let accounts = metrics.sum("tollgate_accounts", &[]);
    assert!(accounts <= MOST + 10, "{accounts}");
    for name in [
        "tollgate_bytes_total",
        "tollgate_connections_opened_total",
        "tollgate_connections_active",
        "tollgate_connections_closed_total",
    ] {
        let endpoints = metrics.label_values(name, "endpoint").len();
        // Those that have a series, `other`, `overflow` and `direct`.
        assert!(endpoints <= 203, "{name}: {endpoints}");
    }
    assert!(metrics.len() < 8000, "{} series", metrics.len());
    let opened = metrics.sum("tollgate_connections_opened_total", &[]);
    assert_eq!(opened, IDS + 1, "nobody is forgotten");
    let of = |direction| metrics.sum("tollgate_bytes_total", &[("direction", direction)]);
    let bytes = IDS * BYTES + 1000;
    assert_eq!((of("to_upstream"), of("to_client")), (bytes, bytes));

    let rows = usage(&booked.home, &booked.hosts.relay, &["endpoint"]);
    assert!(rows.len() as u64 <= MOST + 10, "{}", rows.len());
    let total = ledger::total(&rows);
    assert_eq!(total.counts(), [IDS + 1, IDS + 1, 0, bytes, bytes]);
    let of = |id: &str| {
        let mut rows = rows.iter().filter(|row| row.key.endpoint == id);
        rows.next().map(|row| row.sums.opened)
    };
    assert_eq!(of("vpce-known"), Some(1));
    assert!(of("overflow").unwrap() > IDS - MOST - 10);
    booked.relay.wait_log("overflow");
    end(&booked.relay);
    let size = std::fs::metadata(booked.home.ledger()).unwrap().len();
    // Less than a kilobyte for each account and the hours that this ran in.
    assert!(size < 2 * 1024 * 2 * MOST, "{size} bytes");
}

fn ids_of_64_bytes_of_each_allowed_character_have_their_own_accounts() {
    let booked = Booked::new("o6-ids", "");
    let _origin = Origin::start(&booked.hosts.origin, SERVICES[0].origin, Origins::Echo);
    let node = &booked.hosts.node;
    let allowed = ('a'..='z').chain('A'..='Z').chain('0'..='9').chain(['-']);
    let ids: Vec<String> = allowed
        .map(|character| character.to_string().repeat(64))
        .collect();
    assert_eq!(ids.len(), 63);
    for (n, id) in ids.iter().enumerate() {
        close(node, open(node, id, 1000 + n as u64));
    }
    booked
        .relay
        .wait_metric("tollgate_connections_active", &[], 0);
    let rows = usage(&booked.home, &booked.hosts.relay, &["endpoint"]);
    let metrics = booked.relay.metrics();
    assert_eq!(rows.len(), ids.len());
    for (n, id) in ids.iter().enumerate() {
        let bytes = 1000 + n as u64;
        let row = rows.iter().find(|row| row.key.endpoint == *id).unwrap();
        assert_eq!(row.sums.counts(), [1, 1, 0, bytes, bytes], "{id}");
        let labels = [("endpoint", id.as_str()), ("direction", "to_client")];
        assert_eq!(metrics.sum("tollgate_bytes_total", &labels), bytes);
    }
    end(&booked.relay);
    // Each of them outlives a kill, too.
    let records = super::world::audited(&booked.home);
    let opens = records.iter().filter(|record| record.event() == "open");
    assert_eq!(opens.count(), ids.len());
}
