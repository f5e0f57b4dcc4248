//! A connection that comes back to a relay it has passed is refused, also where a load balancer has put its own header in front of ours.

use libtest_mimic::Trial;

use super::{
    identity::{IPV4, is_told, own, summed, telling},
    raw_header::endpoint,
    world::{
        ENDPOINT, LISTENER, ORIGIN, World, assert_at_rest, connected, listener, privatelink_header,
    },
};
use crate::{
    claim,
    harness::{
        agent::Agent,
        netns::{Host, Lab},
        nlb::{Config, Listen, Nlb},
        origin::{Manner, Origin},
        relay::{Baseline, Relay},
        stream::End,
    },
};

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        claim(
            "header_that_has_been_here_is_refused",
            header_that_has_been_here_is_refused,
        ),
        claim(
            "header_that_comes_round_late_is_refused_before_anything_is_sent",
            header_that_comes_round_late_is_refused_before_anything_is_sent,
        ),
        claim(
            "loop_through_the_load_balancer_is_refused",
            loop_through_the_load_balancer_is_refused,
        ),
        claim(
            "loop_of_two_relays_behind_one_load_balancer_is_refused",
            loop_of_two_relays_behind_one_load_balancer_is_refused,
        ),
        claim(
            "relay_behind_a_relay_passes_on_whose_connection_it_is",
            relay_behind_a_relay_passes_on_whose_connection_it_is,
        ),
        claim(
            "relays_with_a_load_balancer_between_count_each_other",
            relays_with_a_load_balancer_between_count_each_other,
        ),
    ]
}

const TELLING: &str = "proxy_protocol = \"v2\"";

fn loops(relay: &Relay) -> u64 {
    relay.metric("tollgate_header_errors_total", &[("error", "loop")])
}

async fn is_reset(said: Vec<u8>) {
    let mut agent = Agent::connect(listener()).await.unwrap();
    agent.write(&said).await.unwrap();
    assert_eq!(agent.read_to_end().await.unwrap(), (vec![], End::Reset));
}

fn header_that_has_been_here_is_refused() {
    let world = World::with("been", Manner::Echo, telling(TELLING));
    let id = endpoint(ENDPOINT.as_bytes());
    let sent_by = |hops, relay_id: &str| {
        let tlvs = [id.clone(), own(hops, relay_id)].concat();
        summed(0x11, &IPV4, &tlvs)
    };
    let nlb = || privatelink_header(ENDPOINT);
    let looped = [
        sent_by(1, "relay-a"),
        sent_by(4, "relay-z"),
        [nlb(), sent_by(1, "relay-a")].concat(),
        [nlb(), sent_by(4, "relay-z"), b"payload".to_vec()].concat(),
        [nlb(), sent_by(2, "relay-z"), nlb(), sent_by(1, "relay-a")].concat(),
    ];
    let n = looped.len() as u64;
    world.node.run(async move {
        for said in looped {
            is_reset(said).await;
        }
    });
    assert_eq!(loops(&world.relay), n);
    assert_eq!(world.origin.books().accepted, 0);
    let line = &world.relay.log_lines("connection refused")[0];
    assert!(
        line.contains("loop") && line.contains("load balancer"),
        "{line}"
    );
    // Three relays before us are one fewer than is too many.
    let told = [id.clone(), own(4, "relay-a")].concat();
    is_told(&world, sent_by(3, "relay-z"), summed(0x11, &IPV4, &told));
    world.wait_closed("completed", 1);
    world.assert_at_rest();
}

fn header_that_comes_round_late_is_refused_before_anything_is_sent() {
    let world = World::with("late", Manner::Echo, telling(TELLING));
    let opened = |n| {
        world
            .relay
            .wait_metric("tollgate_connections_opened_total", &[], n);
    };
    // The upstream cannot be reached until what comes behind the balancer's header has come.
    let late = |opens: u64, payload: Vec<u8>| {
        world.origin_host.black_hole("10.30.0.1/32");
        let mut agent = world.node.run(async { connected(ENDPOINT).await.unwrap() });
        opened(opens);
        let agent = world.node.run(async move {
            agent.write_segments(&[&payload]).await.unwrap();
            agent
        });
        world.origin_host.pass_again("10.30.0.1/32");
        agent
    };
    let mut agent = late(1, summed(0x11, &IPV4, &own(1, "relay-a")));
    world.node.run(async move {
        assert_eq!(agent.read_to_end().await.unwrap(), (vec![], End::Reset));
    });
    world.wait_closed("connect_failed", 1);
    assert_eq!(loops(&world.relay), 1);
    assert_eq!(world.origin.wait_over(1).received, 0);

    // Another's is counted, and is payload.
    let other = summed(0x11, &IPV4, &own(2, "relay-z"));
    let mut agent = late(2, other.clone());
    world.node.run(async move {
        let tlvs = [endpoint(ENDPOINT.as_bytes()), own(3, "relay-a")].concat();
        let told = [summed(0x11, &IPV4, &tlvs), other].concat();
        assert_eq!(agent.read(told.len()).await.unwrap(), told);
        agent.finish().unwrap();
        assert_eq!(agent.read_to_end().await.unwrap(), (vec![], End::Fin));
    });
    world.wait_closed("completed", 1);
    world.assert_at_rest();
}

fn loop_through_the_load_balancer_is_refused() {
    let lab = Lab::new("round");
    let (node, relay_host) = (lab.host("node"), lab.host("relay"));
    lab.veth((&node, "10.20.0.10/24"), (&relay_host, "10.20.0.2/24"));
    let relay = telling(TELLING)
        .replace(ORIGIN, "10.20.0.10:443")
        .on(&relay_host);
    let baseline = Baseline::of(&relay);
    let front = Listen::endpoint(&node, "10.20.0.10:80", ENDPOINT);
    let back = Listen::direct(&node, "10.20.0.10:443");
    let nlb = Nlb::start(&node, Config::new(vec![front, back], &[LISTENER]));
    node.run(async {
        let mut agent = Agent::connect("10.20.0.10:80".parse().unwrap())
            .await
            .unwrap();
        agent.write(b"hello").await.unwrap();
        assert_eq!(agent.read_to_end().await.unwrap(), (vec![], End::Reset));
    });
    assert_eq!(nlb.wait_over().accepted, 2, "the client's, and ours once");
    assert_eq!(loops(&relay), 1);
    relay.wait_metric(
        "tollgate_connections_closed_total",
        &[("reason", "upstream_reset")],
        1,
    );
    assert_eq!(relay.metric("tollgate_connections_opened_total", &[]), 1);
    assert_at_rest(&relay, baseline);
}

/// Two relays, `relay-a` at 10.20.0.2 and `relay-b` at 10.21.0.2, and a node that is 10.20.0.10 and 10.21.0.10.
struct Two {
    relays: [Relay; 2],
    baselines: [Baseline; 2],
    node: Host,
    hosts: [Host; 2],
    lab: Lab,
}

impl Two {
    /// Each leads to its upstream.
    #[track_caller]
    fn new(name: &str, upstreams: [&str; 2]) -> Self {
        let lab = Lab::new(name);
        let node = lab.router("node");
        let hosts = [lab.host("a"), lab.host("b")];
        for (net, host) in [20, 21].into_iter().zip(&hosts) {
            let (ours, theirs) = (format!("10.{net}.0.10/24"), format!("10.{net}.0.2/24"));
            lab.veth((&node, &ours), (host, &theirs));
            host.route("10.0.0.0/8", &format!("10.{net}.0.10"));
        }
        let start = |index: usize| {
            let start = telling(TELLING)
                .replace("\"10.20.0.0/16\"", "\"10.20.0.0/15\"")
                .replace(ORIGIN, upstreams[index]);
            match index {
                0 => start,
                _ => start.replace("\"relay-a\"", "\"relay-b\""),
            }
        };
        let relays = [start(0).on(&hosts[0]), start(1).on(&hosts[1])];
        let baselines = [Baseline::of(&relays[0]), Baseline::of(&relays[1])];
        Self {
            relays,
            baselines,
            node,
            hosts,
            lab,
        }
    }

    #[track_caller]
    fn assert_at_rest(&self) {
        for (relay, baseline) in self.relays.iter().zip(self.baselines) {
            assert_at_rest(relay, baseline);
        }
    }
}

fn loop_of_two_relays_behind_one_load_balancer_is_refused() {
    let two = Two::new("ring", ["10.20.0.10:443", "10.21.0.10:443"]);
    let listens = vec![
        Listen::endpoint(&two.node, "10.20.0.10:80", ENDPOINT),
        Listen::direct(&two.node, "10.20.0.10:443"),
        Listen::direct(&two.node, "10.21.0.10:443"),
    ];
    let targets = ["10.20.0.2:8443", "10.21.0.2:8443"];
    let nlb = Nlb::start(&two.node, Config::new(listens, &targets));
    // Which relay is next is the balancer's choice, by the ports: in a dozen there are all kinds.
    const CLIENTS: u64 = 12;
    two.node.run(async {
        for _ in 0..CLIENTS {
            let to = "10.20.0.10:80".parse().unwrap();
            let mut agent = Agent::connect(to).await.unwrap();
            agent.write(b"hello").await.unwrap();
            assert_eq!(agent.read_to_end().await.unwrap(), (vec![], End::Reset));
        }
    });
    let accepted = nlb.wait_over().accepted;
    assert!(
        (2 * CLIENTS..=3 * CLIENTS).contains(&accepted),
        "each comes back once, or twice over both: {accepted}"
    );
    assert_eq!(two.relays.iter().map(loops).sum::<u64>(), CLIENTS);
    two.assert_at_rest();
}

fn relay_behind_a_relay_passes_on_whose_connection_it_is() {
    let two = Two::new("chain", ["10.21.0.2:8443", "10.30.0.2:443"]);
    let origin_host = two.lab.host("origin");
    two.lab.veth(
        (&two.hosts[1], "10.30.0.1/24"),
        (&origin_host, "10.30.0.2/24"),
    );
    let origin = Origin::start(&origin_host, ORIGIN, Manner::Echo);
    two.node.run(async {
        let mut agent = connected(ENDPOINT).await.unwrap();
        let tlvs = [endpoint(ENDPOINT.as_bytes()), own(2, "relay-b")].concat();
        let told = summed(0x11, &IPV4, &tlvs);
        assert_eq!(agent.read(told.len()).await.unwrap(), told);
        agent.write(b"hello").await.unwrap();
        agent.finish().unwrap();
        let back = (b"hello".to_vec(), End::Fin);
        assert_eq!(agent.read_to_end().await.unwrap(), back);
    });
    assert_eq!(origin.wait_over(1).accepted, 1);
    for relay in &two.relays {
        let labels = [("endpoint", ENDPOINT), ("direction", "to_upstream")];
        assert_eq!(relay.metric("tollgate_bytes_total", &labels), 5);
        assert_eq!(loops(relay), 0);
    }
    two.assert_at_rest();
}

fn relays_with_a_load_balancer_between_count_each_other() {
    let two = Two::new("between", ["10.20.0.10:443", "10.30.0.2:443"]);
    let origin_host = two.lab.host("origin");
    two.lab.veth(
        (&two.hosts[1], "10.30.0.1/24"),
        (&origin_host, "10.30.0.2/24"),
    );
    let origin = Origin::start(&origin_host, ORIGIN, Manner::Echo);
    let listen = Listen::endpoint(&two.node, "10.20.0.10:443", "vpce-0b");
    let _nlb = Nlb::start(&two.node, Config::new(vec![listen], &["10.21.0.2:8443"]));
    two.node.run(async {
        let mut agent = connected(ENDPOINT).await.unwrap();
        // The balancer's header waits for payload, and our header is some.
        let of_a = [endpoint(ENDPOINT.as_bytes()), own(1, "relay-a")].concat();
        let inner = summed(0x11, &IPV4, &of_a);
        let of_b = [endpoint(b"vpce-0b"), own(2, "relay-b")].concat();
        let outer = 16 + 12 + of_b.len() + 7;
        let heard = agent.read(outer + inner.len()).await.unwrap();
        let addresses = &heard[16..28];
        assert_eq!(addresses[..8], [10, 20, 0, 2, 10, 20, 0, 10]);
        assert_eq!(heard[..outer], summed(0x11, addresses, &of_b));
        assert_eq!(heard[outer..], inner);
        agent.write(b"hello").await.unwrap();
        agent.finish().unwrap();
        let back = (b"hello".to_vec(), End::Fin);
        assert_eq!(agent.read_to_end().await.unwrap(), back);
    });
    assert_eq!(origin.wait_over(1).accepted, 1);
    assert_eq!(two.relays.iter().map(loops).sum::<u64>(), 0);
    two.assert_at_rest();
}
