//! T5: a provider with two services, six hundred endpoints, and a shared one behind which only the network tells who it is.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use libtest_mimic::Trial;
use tokio::net::TcpSocket;

use super::{
    sessions::{self, Manner, Outcome, Plan, Planned, endpoint_id},
    world::{OFTEN, SERVICES, end, home, two_services, usage},
};
use crate::{
    claim,
    harness::{
        BOUND,
        ledger::{self, Key, Sums},
        netns::Host,
        nlb::{Config, Listen, Nlb},
        relay::{Home, Relay},
    },
    scenarios::world::Hosts,
};

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        claim(
            "t5_six_hundred_endpoints_on_two_services_each_have_their_exact_account",
            six_hundred_endpoints_on_two_services_each_have_their_exact_account,
        ),
        claim(
            "t5_consumers_behind_a_shared_endpoint_are_told_apart_by_network",
            consumers_behind_a_shared_endpoint_are_told_apart_by_network,
        ),
    ]
}

const ENDPOINTS: u64 = 600;
/// Sessions of each endpoint.
const EACH: u64 = 3;
const AT_ONCE: u64 = 32;
const SHARED: &str = "vpce-0shared0shared000";

/// The consumers' VPCs (one namespace with all their addresses), the balancers' node, the relay, the origins.
#[derive(Debug)]
struct Provider {
    relay: Relay,
    home: Home,
    origins: [Planned; 2],
    _balancers: [Nlb; 2],
    consumers: Host,
    hosts: Hosts,
}

/// Where an endpoint's network interface is.
fn interface(number: u64) -> SocketAddr {
    let number = number as u16;
    (
        Ipv4Addr::new(10, 1, (number / 200) as u8, (number % 200) as u8 + 1),
        443,
    )
        .into()
}

/// The shared endpoint's.
fn shared_interface() -> SocketAddr {
    (Ipv4Addr::new(10, 1, 100, 1), 443).into()
}

impl Provider {
    #[track_caller]
    fn new(name: &str, more: &str) -> Self {
        let hosts = Hosts::new(name);
        let consumers = hosts.lab.host("consumers");
        // Every address in it is the host's own: interfaces of endpoints, and consumers of several networks.
        consumers.ip("route add local 10.0.0.0/8 dev lo");
        let origins = SERVICES.map(|service| Planned::start(&hosts.origin, service.origin));
        let home = home();
        let relay = two_services(&format!("{OFTEN}{more}"))
            .at(&home)
            .on(&hosts.relay);
        let balancers = [0, 1].map(|service| {
            let own = (0..ENDPOINTS).filter(|number| number % 2 == service);
            let mut listen: Vec<_> = own
                .map(|number| Listen {
                    host: consumers.clone(),
                    address: interface(number),
                    endpoint: Some(endpoint_id(number)),
                })
                .collect();
            if service == 0 {
                let shared = shared_interface().to_string();
                listen.push(Listen::endpoint(&consumers, &shared, SHARED));
            }
            Nlb::start(
                &hosts.node,
                Config::new(listen, &[SERVICES[service as usize].at]),
            )
        });
        Self {
            relay,
            home,
            origins,
            _balancers: balancers,
            consumers,
            hosts,
        }
    }

    /// Runs sessions, some at once, each from an address to another; all must be whole at both ends.
    #[track_caller]
    fn run(&self, sessions: Vec<(Plan, Ipv4Addr, SocketAddr)>) -> Vec<Outcome> {
        let outcomes = self.consumers.run_within(6 * BOUND, async move {
            let sessions = Arc::new(sessions);
            let next = Arc::new(AtomicU64::new(0));
            let clients = (0..AT_ONCE).map(|_| {
                let (sessions, next) = (Arc::clone(&sessions), Arc::clone(&next));
                tokio::spawn(async move {
                    let mut outcomes = Vec::new();
                    loop {
                        let number = next.fetch_add(1, Ordering::Relaxed) as usize;
                        let Some((plan, from, to)) = sessions.get(number) else {
                            return outcomes;
                        };
                        let socket = TcpSocket::new_v4().unwrap();
                        socket.bind((*from, 0).into()).unwrap();
                        let stream = socket.connect(*to).await.unwrap();
                        let run = sessions::run_on(stream, plan.clone(), b"");
                        outcomes.push(run.await.unwrap());
                    }
                })
            });
            let mut outcomes = Vec::new();
            for client in clients.collect::<Vec<_>>() {
                outcomes.extend(client.await.unwrap());
            }
            outcomes
        });
        let upstream = self.origins.each_ref().map(Planned::wait_over);
        for outcome in &outcomes {
            let plan = &outcome.plan;
            let origin = upstream[plan.service][&plan.number];
            assert!(
                outcome.client.whole && origin.whole,
                "{outcome:?} {origin:?}"
            );
            let client = outcome.client;
            assert_eq!([client.sent, client.received], plan.bytes, "{plan:?}");
            assert_eq!([origin.received, origin.sent], plan.bytes, "{plan:?}");
        }
        self.relay
            .wait_metric("tollgate_connections_active", &[], 0);
        outcomes
    }
}

fn plan(number: u64, endpoint: String, service: u64) -> Plan {
    let manners = [Manner::Both, Manner::ClientFirst, Manner::UpstreamFirst];
    Plan {
        number,
        endpoint,
        service: service as usize,
        manner: manners[(number % 3) as usize],
        // No two alike, so that no two can be mistaken for one another.
        bytes: [1000 + 7 * number, 40 + 31 * number],
    }
}

/// What sessions add up to.
fn sums<'a>(outcomes: impl IntoIterator<Item = &'a Outcome>) -> Sums {
    let mut sums = Sums::default();
    for outcome in outcomes {
        sums.opened += 1;
        sums.closed += 1;
        sums.bytes_to_upstream += outcome.client.sent;
        sums.bytes_to_client += outcome.client.received;
    }
    sums
}

fn six_hundred_endpoints_on_two_services_each_have_their_exact_account() {
    let names = format!(
        "[metrics]\nmax_endpoints = 100\n\
         [endpoint.\"{}\"]\nname = \"Orders, \\\"north\\\"\"\naccount = \"111122223333\"\ntags = [\"prod\", \"eu\"]\n\
         [endpoint.\"vpce-*\"]\naccount = \"000000000000\"\n",
        endpoint_id(1)
    );
    let provider = Provider::new("t5", &names);
    let plans = (0..ENDPOINTS * EACH).map(|number| {
        let endpoint = number % ENDPOINTS;
        let from = Ipv4Addr::new(10, 2, (endpoint / 200) as u8, (endpoint % 200) as u8 + 1);
        let plan = plan(number, endpoint_id(endpoint), endpoint % 2);
        (plan, from, interface(endpoint))
    });
    let outcomes = provider.run(plans.collect());

    // A report for those who send the bills: each endpoint and month, and exactly what was counted at both ends.
    let report = usage(
        &provider.home,
        &provider.hosts.relay,
        &["month", "endpoint", "listener", "upstream"],
    );
    let mut wanted = BTreeMap::<Key, Sums>::new();
    for outcome in &outcomes {
        let service = SERVICES[outcome.plan.service];
        let key = Key {
            endpoint: outcome.plan.endpoint.clone(),
            consumer: String::new(),
            listener: service.listener.to_owned(),
            upstream: service.upstream.to_owned(),
        };
        wanted.entry(key).or_default().add(&sums([outcome]));
    }
    assert_eq!(wanted.len() as u64, ENDPOINTS);
    let reported = ledger::by_key(&report);
    let counts = |books: &BTreeMap<Key, Sums>| -> Vec<(Key, [u64; 5])> {
        let counts = books.iter().map(|(key, sums)| (key.clone(), sums.counts()));
        counts.collect()
    };
    assert_eq!(counts(&reported), counts(&wanted));
    let this_month = jiff::Timestamp::now().to_string();
    for row in &report {
        // The month may have turned while this ran.
        assert_eq!(row.period.len(), "2026-11".len(), "{row:?}");
        assert!(row.period.as_str() <= &this_month[..7], "{row:?}");
        assert_eq!(row.relay, "relay-a");
        let first = row.key.endpoint == endpoint_id(1);
        let named = [row.name.as_str(), row.account.as_str(), row.tags.as_str()];
        let wanted = match first {
            true => ["Orders, \"north\"", "111122223333", "prod eu"],
            false => ["", "000000000000", ""],
        };
        assert_eq!(named, wanted, "{row:?}");
    }

    // Metrics stay few, and nothing is lost in them.
    let metrics = provider.relay.metrics();
    let total = sums(&outcomes);
    for name in ["tollgate_bytes_total", "tollgate_connections_opened_total"] {
        let endpoints = metrics.label_values(name, "endpoint");
        assert!(endpoints.len() <= 101, "{name}: {}", endpoints.len());
        assert!(endpoints.iter().any(|endpoint| endpoint == "other"));
    }
    let of = |direction| metrics.sum("tollgate_bytes_total", &[("direction", direction)]);
    assert_eq!(of("to_upstream"), total.bytes_to_upstream);
    assert_eq!(of("to_client"), total.bytes_to_client);
    let opened = metrics.sum("tollgate_connections_opened_total", &[]);
    assert_eq!(opened, total.opened);

    end(&provider.relay);
    let rows = ledger::rows(&provider.home.ledger());
    assert_eq!(counts(&ledger::by_key(&rows)), counts(&wanted));
}

fn consumers_behind_a_shared_endpoint_are_told_apart_by_network() {
    let consumers = "[[consumer]]\nname = \"payments\"\nendpoints = [\"vpce-0shared*\"]\nnetworks = [\"10.8.1.0/24\", \"10.8.2.0/24\"]\n\
         [[consumer]]\nname = \"search\"\nendpoints = [\"vpce-0shared*\"]\nnetworks = [\"10.8.0.0/16\"]\n\
         [[consumer]]\nname = \"elsewhere\"\nendpoints = [\"vpce-another\"]\nnetworks = [\"0.0.0.0/0\"]\n";
    let provider = Provider::new("t5-shared", consumers);
    let from = [
        ("payments", Ipv4Addr::new(10, 8, 1, 7)),
        ("payments", Ipv4Addr::new(10, 8, 2, 7)),
        ("search", Ipv4Addr::new(10, 8, 3, 7)),
        ("", Ipv4Addr::new(10, 9, 0, 7)),
    ];
    let plans = (0..40).map(|number| {
        let (_, address) = from[number as usize % from.len()];
        let plan = plan(number, SHARED.to_owned(), 0);
        (plan, address, shared_interface())
    });
    let outcomes = provider.run(plans.collect());
    let mut wanted = BTreeMap::<&str, Sums>::new();
    for outcome in &outcomes {
        let (consumer, _) = from[outcome.plan.number as usize % from.len()];
        wanted.entry(consumer).or_default().add(&sums([outcome]));
    }
    let report = usage(
        &provider.home,
        &provider.hosts.relay,
        &["month", "consumer", "endpoint"],
    );
    let metrics = provider.relay.metrics();
    assert_eq!(report.len(), wanted.len(), "{report:#?}");
    for row in &report {
        let wanted = wanted[row.key.consumer.as_str()];
        assert_eq!(row.key.endpoint, SHARED);
        assert_eq!(row.sums.counts(), wanted.counts(), "{row:?}");
        // A label that is empty and one that is not there are the same.
        let labels = [
            ("consumer", row.key.consumer.as_str()),
            ("direction", "to_upstream"),
        ];
        if !row.key.consumer.is_empty() {
            let bytes = metrics.sum("tollgate_bytes_total", &labels);
            assert_eq!(bytes, wanted.bytes_to_upstream, "{labels:?}");
        }
    }
    // The endpoint's own bill is that of all of them.
    let together = usage(&provider.home, &provider.hosts.relay, &["endpoint"]);
    assert_eq!(together.len(), 1);
    assert_eq!(together[0].sums.counts(), sums(&outcomes).counts());
    end(&provider.relay);
}
