//! Two thousand sessions of all kinds and twenty reloads, while others come and go.

use std::{
    collections::BTreeMap,
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use libtest_mimic::Trial;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::{
    kinds::{self, Count, Kind, Servers},
    visitors::Visitors,
    world::{Listener, Reloading, at, busy_hosts, config},
};
use crate::{
    claim,
    harness::{
        netns::Host,
        origin::{Manner, Origin},
        relay::{Baseline, Signal, Start},
    },
    scenarios::{crowd, world::ENDPOINT},
};

pub(crate) fn tests() -> Vec<Trial> {
    vec![claim(
        "two_thousand_sessions_of_all_kinds_live_through_twenty_reloads_under_load",
        two_thousand_sessions_of_all_kinds_live_through_twenty_reloads_under_load,
    )]
}

const SESSIONS: u64 = 2000;
const RELOADS: usize = 20;
const PACED: &str = "vpce-0aced0aced0aced00";
/// Whose sessions come and go.
const OTHERS: &str = "vpce-0071e250071e25000";

const PORT: u16 = 8443;
/// Where the server speaks first.
const FIRST_PORT: u16 = 8444;
const OTHERS_PORT: u16 = 8445;
/// For sessions, for those in which the server speaks first, and two for others.
const ORIGINS: [&str; 4] = [
    "10.30.0.2:443",
    "10.30.0.2:444",
    "10.30.0.2:445",
    "10.30.0.2:446",
];

/// All that can change does: where the sessions came in is open, is elsewhere, is gone; so is what they are connected to; policies come and go.
fn configurations() -> [String; 3] {
    let all: [Listener<'_>; 3] = [
        ("ingest", "0.0.0.0:8443", "cp"),
        ("first", "0.0.0.0:8444", "banner"),
        ("others", "0.0.0.0:8445", "others"),
    ];
    let moved: [Listener<'_>; 3] = [
        ("ingest", "0.0.0.0:8453", "cp"),
        ("others", "0.0.0.0:8445", "elsewhere"),
        ("new", "10.20.0.2:8454", "cp"),
    ];
    let tables = |pace: &str, more: &str| {
        format!(
            "[session]\nhalf_close_timeout = \"30m\"\n[drain]\naccept_for = \"0s\"\n\
             [endpoint.\"{PACED}\"]\n{pace}\n{more}\n"
        )
    };
    let rates = |rate: &str| {
        format!(
            "bytes_per_second_to_upstream = \"{rate}\"\nbytes_per_second_to_client = \"{rate}\""
        )
    };
    let [cp, banner, others, elsewhere] = ORIGINS;
    [
        config(
            &all,
            &[("cp", cp), ("banner", banner), ("others", others)],
            &tables(&rates("4MiB"), ""),
        ),
        config(
            &moved,
            &[("cp", elsewhere), ("elsewhere", elsewhere)],
            &tables(
                &rates("2MiB"),
                "[endpoint.\"*\"]\nmax_sessions = 10\n[log]\nlevel = \"warn\"\n[endpoint.\"vpce-0071e*\"]\nmax_sessions = \"off\"\n",
            ),
        ),
        config(
            &all[2..],
            &[("others", others)],
            &tables(
                "name = \"no pace\"",
                "[endpoint.\"vpce-0dead*\"]\ndeny = true\non_deny = \"close\"\n",
            ),
        ),
    ]
}

/// All sessions' clients.
struct Clients {
    over: CancellationToken,
    clients: Vec<JoinHandle<io::Result<(u64, Count)>>>,
    host: Host,
}

impl Clients {
    /// Starts so many, and waits until each is as it will be.
    #[track_caller]
    fn start(world: &Reloading, n: u64, over: &CancellationToken) -> Self {
        let host = world.hosts.node.clone();
        let ready = Arc::new(AtomicU64::new(0));
        let clients = (0..n).map(|number| {
            let (ready, over) = (ready.clone(), over.clone());
            let kind = Kind::of(number);
            let endpoint = if kind.is_paced() { PACED } else { ENDPOINT };
            let port = if kind == Kind::ServerFirst {
                FIRST_PORT
            } else {
                PORT
            };
            let told = move || {
                ready.fetch_add(1, Ordering::Relaxed);
            };
            host.spawn(kinds::client(at(port), endpoint, number, told, over))
        });
        let clients: Vec<_> = clients.collect();
        world.relay.wait_until("all sessions to be there", || {
            ready.load(Ordering::Relaxed) == n
        });
        Self {
            over: over.clone(),
            clients,
            host,
        }
    }

    /// Checks that none has ended.
    #[track_caller]
    fn assert_all_there(&self) {
        let ended = self.clients.iter().filter(|client| client.is_finished());
        assert_eq!(ended.count(), 0, "sessions have ended");
    }

    /// Ends all of them; what they counted.
    #[track_caller]
    fn end(self) -> BTreeMap<u64, Count> {
        self.over.cancel();
        let outcomes = self
            .host
            .run_within(std::time::Duration::from_secs(300), async move {
                let mut outcomes = Vec::new();
                for client in self.clients {
                    outcomes.push(client.await.unwrap());
                }
                outcomes
            });
        let cut = outcomes.iter().filter_map(|outcome| outcome.as_ref().err());
        let cut: Vec<_> = cut.take(10).collect();
        assert!(cut.is_empty(), "sessions were cut: {cut:#?}");
        outcomes.into_iter().map(Result::unwrap).collect()
    }
}

fn two_thousand_sessions_of_all_kinds_live_through_twenty_reloads_under_load() {
    let n = crowd::as_many_as(SESSIONS);
    let all = configurations();
    let hosts = busy_hosts("many");
    let over = CancellationToken::new();
    let servers = Servers::start(&hosts.origin, [ORIGINS[0], ORIGINS[1]], &over);
    let origins = [ORIGINS[2], ORIGINS[3]].map(|at| Origin::start(&hosts.origin, at, Manner::Echo));
    let relay = Start::with(&all[0]).on(&hosts.relay);
    let world = Reloading {
        baseline: Baseline::of(&relay),
        relay,
        origins,
        hosts,
    };
    let clients = Clients::start(&world, n, &over);
    let visitors = Visitors::start(&world.hosts.node, 8, &[OTHERS_PORT], OTHERS);
    let of = |name: &str, endpoint| world.relay.metric(name, &[("endpoint", endpoint)]);
    let ours = |name: &str| of(name, ENDPOINT) + of(name, PACED);
    for round in 1..=RELOADS {
        let before = ours("tollgate_bytes_total");
        let next = &all[round % all.len()];
        match round % 2 {
            0 => world.apply_by_signal(next),
            _ => drop(world.apply(next)),
        }
        if round % 5 == 0 {
            let wrong = world
                .relay
                .reload_with(&next.replace("trusted_peers", "trusted_pears"));
            wrong.assert_declined(422, &["trusted_pears"]);
        }
        visitors.wait_more(20);
        world
            .relay
            .wait_until("bytes to move", || ours("tollgate_bytes_total") > before);
        clients.assert_all_there();
        assert_eq!(ours("tollgate_connections_active"), n, "reload {round}");
    }
    let seen = visitors.stop();
    seen.assert_all_served();
    assert_eq!(ours("tollgate_connections_opened_total"), n);
    let (clients, servers) = (clients.end(), servers.wait_over());
    assert_eq!((clients.len() as u64, servers.len() as u64), (n, n));
    let mut sums = [0; 2];
    for (seed, client) in &clients {
        let server = servers[seed];
        let said = [
            (client.sent, server.received),
            (server.sent, client.received),
        ];
        for (sum, (sent, received)) in sums.iter_mut().zip(said) {
            assert_eq!(sent, received, "session {seed}: {client:?} {server:?}");
            *sum += sent;
        }
    }
    world
        .relay
        .wait_metric("tollgate_connections_active", &[], 0);
    let metrics = world.relay.metrics();
    let closed = |labels| metrics.sum("tollgate_connections_closed_total", labels);
    assert_eq!(closed(&[("reason", "completed")]), n + seen.whole);
    assert_eq!(closed(&[]), n + seen.whole);
    assert_eq!(metrics.sum("tollgate_refused_total", &[]), 0);
    for (way, sum) in ["to_upstream", "to_client"].into_iter().zip(sums) {
        let labels = [("direction", way)];
        let booked = metrics.sum("tollgate_bytes_total", &labels);
        assert_eq!(booked, sum + seen.bytes, "{way}");
    }
    assert_eq!(world.reloads("applied"), RELOADS as u64);
    assert_eq!(world.reloads("failed"), RELOADS as u64 / 5);
    world.apply(&all[0]);
    world.assert_at_rest();
    world.relay.signal(Signal::TERM);
    assert_eq!(world.relay.wait_exit(), 0);
}
