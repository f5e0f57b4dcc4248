//! O4: what is booked is what the clients counted, however a connection ended, and while it is open.

use std::collections::BTreeMap;

use libtest_mimic::Trial;

use super::{
    sessions::{self, Manner, Outcome, Plan, Planned, endpoint_id},
    world::{OFTEN, SERVICES, audit_log, audited, end, home, two_services},
};
use crate::{
    claim,
    harness::{
        BOUND,
        agent::Agent,
        audit,
        ledger::{self, Sums},
        netns::Host,
        nlb::header,
        origin::{Manner as Origins, Origin},
        relay::{Home, Metrics, Relay, Start},
        stream::End,
    },
    scenarios::world::{Hosts, listener, privatelink_header},
};

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        claim(
            "booked_bytes_are_the_clients_after_close_reset_and_kill",
            booked_bytes_are_the_clients_after_close_reset_and_kill,
        ),
        claim(
            "an_open_session_is_booked_while_it_is_open",
            an_open_session_is_booked_while_it_is_open,
        ),
        claim(
            "counters_only_grow_while_accounts_come_and_go",
            counters_only_grow_while_accounts_come_and_go,
        ),
        claim(
            "the_kernels_own_counts_agree_with_ours",
            the_kernels_own_counts_agree_with_ours,
        ),
    ]
}

/// A relay with two services, in a home that outlives it.
#[derive(Debug)]
pub(super) struct Booked {
    pub(super) relay: Relay,
    pub(super) home: Home,
    pub(super) start: Start,
    pub(super) hosts: Hosts,
}

impl Booked {
    #[track_caller]
    pub(super) fn new(name: &str, more: &str) -> Self {
        let hosts = Hosts::new(name);
        let home = home();
        let start = two_services(&format!("{OFTEN}{more}")).at(&home);
        let relay = start.clone().on(&hosts.relay);
        Self {
            relay,
            home,
            start,
            hosts,
        }
    }

    /// The relay, killed and started again in the same directories.
    #[track_caller]
    pub(super) fn killed(mut self) -> Self {
        self.relay.kill();
        self.relay = self.start.clone().on(&self.hosts.relay);
        self
    }

    /// Waits until the ledger's file says so; the relay books by itself.
    #[track_caller]
    pub(super) fn wait_ledger<T>(
        &self,
        what: &str,
        mut found: impl FnMut(&[ledger::Row]) -> Option<T>,
    ) -> T {
        let mut result = None;
        self.relay.wait_until(what, || {
            result = found(&ledger::rows(&self.home.ledger()));
            result.is_some()
        });
        result.expect("it was waited for")
    }
}

/// Runs planned sessions on the balancer's node, one after the other.
#[track_caller]
pub(super) fn run(node: &Host, plans: Vec<Plan>) -> Vec<Outcome> {
    node.run_within(3 * BOUND, async move {
        let mut outcomes = Vec::new();
        for plan in plans {
            let to = SERVICES[plan.service].address();
            outcomes.push(sessions::run(plan, to).await.unwrap());
        }
        outcomes
    })
}

/// An open session of `endpoint` that has exchanged so many bytes with an echo.
#[track_caller]
pub(super) fn open(node: &Host, endpoint: &str, bytes: u64) -> Agent {
    let header = privatelink_header(endpoint);
    node.run(async move {
        let mut agent = Agent::connect(listener()).await.unwrap();
        agent.preface(&[&header]).await.unwrap();
        agent.exchange(bytes).await.unwrap();
        agent
    })
}

/// Ends a session in order.
#[track_caller]
pub(super) fn close(node: &Host, mut agent: Agent) {
    node.run(async move {
        agent.finish().unwrap();
        assert_eq!(agent.expect_to_end(0).await.unwrap(), End::Fin);
    });
}

fn by_endpoint(rows: &[ledger::Row]) -> BTreeMap<String, Sums> {
    let mut all = BTreeMap::<String, Sums>::new();
    for row in rows {
        let sums = all.entry(row.key.endpoint.clone()).or_default();
        sums.add(&row.sums);
    }
    all
}

fn booked_bytes_are_the_clients_after_close_reset_and_kill() {
    let booked = Booked::new("o4", "");
    let _origin = Origin::start(&booked.hosts.origin, SERVICES[0].origin, Origins::Echo);
    let node = &booked.hosts.node;
    let bytes = [70_001, 1_300_007, 2_000_003];
    let [closed, reset, cut] = [0, 1, 2].map(|n| open(node, &endpoint_id(n), bytes[n as usize]));
    close(node, closed);
    node.run(reset.reset_after_delivery());
    booked
        .relay
        .wait_metric("tollgate_connections_active", &[], 1);
    // What is still on its way to the audit log would be lost with the relay, and what is there says so.
    booked.relay.wait_until("both closes to be recorded", || {
        let records = audit::records(&audit_log(&booked.home));
        let closes = records.iter().filter(|record| record.event() == "close");
        closes.count() == 2
    });
    // The third is open and at rest when the relay is killed, so that not even a transfer is lost.
    let booked = booked.killed();
    drop(cut);
    let rows = booked.wait_ledger("the crashed session to be booked", |rows| {
        let all = by_endpoint(rows);
        (all.get(&endpoint_id(2))?.closed == 1).then_some(all)
    });
    for (n, bytes) in bytes.into_iter().enumerate() {
        let sums = rows[&endpoint_id(n as u64)];
        assert_eq!(sums.counts(), [1, 1, 0, bytes, bytes], "{n}");
    }
    let reasons = ledger::reasons(&booked.home.ledger(), "closed");
    let wanted = [("client_reset", 1), ("completed", 1), ("crashed", 1)];
    let wanted = wanted.map(|(reason, count)| (reason.to_owned(), count));
    assert_eq!(reasons, BTreeMap::from(wanted));
    end(&booked.relay);
    let records = audited(&booked.home);
    let sessions = audit::sessions(&records);
    let mut closes: Vec<_> = sessions.values().map(|session| &session.close).collect();
    closes.sort_by_key(|close| close.text("endpoint").to_owned());
    let reasons: Vec<_> = closes.iter().map(|close| close.text("reason")).collect();
    assert_eq!(reasons, ["completed", "client_reset", "crashed"]);
}

fn an_open_session_is_booked_while_it_is_open() {
    let booked = Booked::new("o4-open", "");
    let _origin = Origin::start(&booked.hosts.origin, SERVICES[0].origin, Origins::Echo);
    let node = &booked.hosts.node;
    let agent = open(node, &endpoint_id(7), 5000);
    let find = |rows: &[ledger::Row]| by_endpoint(rows).get(&endpoint_id(7)).copied();
    let first = booked.wait_ledger("the open session to be booked", |rows| {
        find(rows).filter(|sums| sums.bytes_to_client == 5000)
    });
    assert_eq!(first.counts(), [1, 0, 0, 5000, 5000]);
    let later = booked.wait_ledger("its time to be booked while it is open", |rows| {
        find(rows).filter(|sums| sums.connection_seconds > first.connection_seconds + 1.0)
    });
    assert_eq!(later.counts(), first.counts());
    // Who is connected now, and from where.
    let now = booked
        .relay
        .tollgate(&["endpoints", "--config", "@CONFIG@"]);
    let now = now.ok();
    assert!(now.contains(&endpoint_id(7)), "{now}");
    close(node, agent);
    booked.wait_ledger("its end", |rows| {
        find(rows).filter(|sums| sums.counts() == [1, 1, 0, 5000, 5000])
    });
    let last = booked.wait_ledger("the time", find);
    // Booked later than that.
    close(node, open(node, &endpoint_id(8), 10));
    booked.wait_ledger("another session", |rows| {
        by_endpoint(rows).remove(&endpoint_id(8))
    });
    end(&booked.relay);
    // Time that is over does not go on.
    let rows = ledger::rows(&booked.home.ledger());
    assert_eq!(find(&rows), Some(last));
}

/// The counters that are added up over accounts.
const COUNTERS: [&str; 3] = [
    "tollgate_bytes_total",
    "tollgate_connections_opened_total",
    "tollgate_connections_closed_total",
];

fn counters_only_grow_while_accounts_come_and_go() {
    let booked = Booked::new(
        "o4-grow",
        "[accounts]\nidle_after = \"1s\"\n[metrics]\nmax_endpoints = 3\n",
    );
    let _origin = Origin::start(&booked.hosts.origin, SERVICES[0].origin, Origins::Echo);
    let node = &booked.hosts.node;
    let mut before = booked.relay.metrics();
    let grow = |before: &mut Metrics| {
        let now = booked.relay.metrics();
        for name in COUNTERS {
            let (was, is) = (before.sum(name, &[]), now.sum(name, &[]));
            assert!(was <= is, "{name}: {was}, then {is}");
            let other = [("endpoint", "other")];
            let (was, is) = (before.sum(name, &other), now.sum(name, &other));
            assert!(was <= is, "{name} of other: {was}, then {is}");
        }
        *before = now;
    };
    let mut bytes = 0;
    // The first ones come back after they have left memory.
    for round in 0..2 {
        for n in 0..8 {
            let sent = 1000 + 100 * n;
            let agent = open(node, &endpoint_id(n), sent);
            grow(&mut before);
            close(node, agent);
            bytes += sent;
            grow(&mut before);
        }
        let accounts = |metrics: &Metrics| metrics.sum("tollgate_accounts", &[]);
        let most = accounts(&before);
        assert!(most > 0, "{round}");
        booked.relay.wait_until("accounts to leave memory", || {
            grow(&mut before);
            accounts(&before) < most
        });
        let total = before.sum("tollgate_bytes_total", &[("direction", "to_client")]);
        assert_eq!(total, bytes, "nothing is lost with them");
    }
    end(&booked.relay);
    let rows = ledger::rows(&booked.home.ledger());
    for (n, sums) in by_endpoint(&rows).values().enumerate() {
        let bytes = 2 * (1000 + 100 * n as u64);
        assert_eq!(sums.counts(), [2, 2, 0, bytes, bytes]);
    }
    let total = ledger::total(&rows);
    assert_eq!((total.opened, total.bytes_to_client), (16, bytes));
}

fn the_kernels_own_counts_agree_with_ours() {
    let booked = Booked::new("tcp-info", "");
    let _origins = SERVICES.map(|service| Planned::start(&booked.hosts.origin, service.origin));
    let plans = (0..12).map(|number| Plan {
        number,
        endpoint: endpoint_id(number),
        service: (number % 2) as usize,
        manner: match number % 4 {
            0 | 3 => Manner::ClientFirst,
            _ => Manner::UpstreamFirst,
        },
        bytes: [100 + 77_777 * number, 5 + 99_999 * number],
    });
    let outcomes = run(&booked.hosts.node, plans.collect());
    booked
        .relay
        .wait_metric("tollgate_connections_active", &[], 0);
    end(&booked.relay);
    let sessions = audit::sessions(&audited(&booked.home));
    assert_eq!(sessions.len(), outcomes.len());
    for outcome in &outcomes {
        let plan = &outcome.plan;
        assert!(outcome.client.whole, "{plan:?}");
        let of = |session: &&audit::Session| session.open.client() == Some(plan.client());
        let close = &sessions.values().find(of).unwrap().close;
        let [up, down] = plan.bytes;
        let leg = |leg: &str, key: &str| {
            let value = close.leg(leg, key);
            value.unwrap_or_else(|| panic!("{leg} {key}: {}", close.line))
        };
        let header = header::proxy(plan.client(), plan.client(), Some(&plan.endpoint)).len() as u64;
        // A FIN has a number of its own, and the kernel counts it. So has the SYN of the one who connects: of the relay, to the upstream.
        let syn = 1;
        let fin = |counted: u64, ours: u64, what: &str| {
            let fits = (ours..=ours + 1).contains(&counted);
            assert!(fits, "{what}: {counted}, ours {ours}: {}", close.line);
        };
        fin(
            leg("client_leg", "bytes_received"),
            header + up,
            "from the client",
        );
        fin(
            leg("upstream_leg", "bytes_received"),
            down,
            "from the upstream",
        );
        match plan.manner {
            // The upstream has acknowledged all before it answered, and the client before it went on.
            Manner::ClientFirst => {
                fin(
                    leg("upstream_leg", "bytes_acked"),
                    syn + up,
                    "to the upstream",
                );
            }
            _ => fin(leg("client_leg", "bytes_acked"), down, "to the client"),
        }
        assert!(leg("client_leg", "rtt_us") > 0 && leg("upstream_leg", "rtt_us") > 0);
    }
}
