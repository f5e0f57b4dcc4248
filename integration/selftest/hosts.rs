//! Hosts are apart, wires join them.

use std::net::SocketAddr;

use libtest_mimic::Trial;

use crate::{
    claim,
    harness::{
        agent::Agent,
        netns::{Lab, output_of},
        origin::{Manner, Origin},
        sockets::State,
    },
};

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        claim("hosts_meet_only_over_links", hosts_meet_only_over_links),
        claim(
            "commands_run_in_their_hosts_namespace",
            commands_run_in_their_hosts_namespace,
        ),
        claim(
            "without_offload_each_packet_is_one_segment",
            without_offload_each_packet_is_one_segment,
        ),
        claim("routers_pass_packets_on", routers_pass_packets_on),
    ]
}

fn hosts_meet_only_over_links() {
    let lab = Lab::new("apart");
    let (a, b, c) = (lab.host("a"), lab.host("b"), lab.host("c"));
    lab.veth((&a, "10.0.0.1/24"), (&b, "10.0.0.2/24"));
    lab.veth((&a, "fd00::1/64"), (&b, "fd00::2/64"));
    for address in ["10.0.0.2:80", "[fd00::2]:80"] {
        let origin = Origin::start(&b, address, Manner::Echo);
        let to = origin.address();
        a.run(async move {
            let mut agent = Agent::connect(to).await?.seed(1);
            agent.exchange(1 << 20).await?;
            agent.finish()?;
            agent.expect_to_end(1).await
        })
        .expect("a reaches b");
        let listening = b.sockets().into_iter().filter(|s| s.state == State::Listen);
        assert_eq!(listening.map(|s| s.local).collect::<Vec<_>>(), [to]);
        assert!(c.run(Agent::connect(to)).is_err(), "c has no link");
        let books = origin.wait_over(1);
        assert_eq!((books.received, books.sent), (1 << 20, 1 << 20));
        drop(origin);
        // Its port is free again when its listener is gone.
        a.run(async move {
            while Agent::connect(to).await.is_ok() {
                tokio::task::yield_now().await;
            }
        });
    }
}

fn commands_run_in_their_hosts_namespace() {
    let lab = Lab::new("command");
    let host = lab.host("only");
    host.ip("address add 10.77.0.1/32 dev lo");
    let mut command = host.command("ip");
    command.args(["-o", "address", "show"]);
    assert!(output_of(command, b"").contains("10.77.0.1/32"));
}

fn without_offload_each_packet_is_one_segment() {
    const BYTES: u64 = 2 << 20;
    let lab = Lab::new("offload");
    let (a, b) = (lab.host("a"), lab.host("b"));
    let wire = lab.veth((&a, "10.0.0.1/24"), (&b, "10.0.0.2/24"));
    let origin = Origin::start(&b, "10.0.0.2:80", Manner::CheckedSink);
    let to = origin.address();
    let mut packets = [0; 2];
    for (n, packets) in (1..).zip(&mut packets) {
        let before = wire.packets_sent(0);
        send(&a, to, BYTES);
        let books = origin.wait_over(n);
        assert_eq!((books.received, books.mismatches), (n * BYTES, vec![]));
        *packets = wire.packets_sent(0) - before;
        wire.without_offload();
    }
    let segments = BYTES / 1448;
    assert!(packets[0] < segments / 4, "by default: {packets:?}");
    assert!(packets[1] >= segments, "without offload: {packets:?}");
}

fn send(host: &crate::harness::netns::Host, to: SocketAddr, bytes: u64) {
    host.run(async move {
        let mut agent = Agent::connect(to).await?;
        agent.send(bytes).await?;
        agent.finish()?;
        agent.expect_to_end(0).await
    })
    .expect("the link works");
}

fn routers_pass_packets_on() {
    let lab = Lab::new("router");
    let (a, hub, b) = (lab.host("a"), lab.router("hub"), lab.host("b"));
    let left = lab.veth((&a, "10.1.0.2/24"), (&hub, "10.1.0.1/24"));
    lab.veth((&hub, "10.2.0.1/24"), (&b, "10.2.0.2/24"));
    a.route("default", "10.1.0.1");
    b.route("default", "10.2.0.1");
    let origin = Origin::start(&b, "10.2.0.2:80", Manner::Sink);
    let to = origin.address();
    send(&a, to, 1000);
    assert_eq!(
        origin.wait_over(1).connections[0].peer.ip().to_string(),
        "10.1.0.2"
    );
    left.down();
    assert!(a.run(Agent::connect(to)).is_err(), "the only way is down");
}
