//! The keys of `[relay]` that are off by default.

use std::{collections::BTreeSet, fs, thread};

use libtest_mimic::Trial;

use super::{
    peers::{Peers, Way},
    regression::complete,
    world::{Hosts, shipped_and},
};
use crate::claim;

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        claim("pinned_workers_stay_on_a_core_each", pinned),
        claim("spinning_workers_relay_and_end_like_others", spinning),
        claim(
            "stalled_receive_buffer_bounds_what_waits_for_a_slow_reader",
            stalled_receive_buffer,
        ),
    ]
}

fn pinned() {
    let start = shipped_and("[relay]\npin = \"cores\"");
    let start = start.replace("[relay]", "workers = 2\n[relay]");
    let peers = Peers::between(Hosts::new("pinned"), start);
    let tasks = fs::read_dir(format!("/proc/{}/task", peers.relay.id())).unwrap();
    let mut cores = Vec::new();
    for task in tasks {
        let status = fs::read_to_string(task.unwrap().path().join("status")).unwrap();
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.unwrap().trim().to_owned()
        };
        if field("Name:").starts_with("worker-") {
            cores.push(field("Cpus_allowed_list:"));
        }
    }
    assert_eq!(cores.len(), 2);
    assert!(
        cores.iter().all(|list| list.parse::<u32>().is_ok()),
        "not one core each: {cores:?}"
    );
    let machine = thread::available_parallelism().unwrap().get();
    let different = BTreeSet::from_iter(&cores).len();
    assert_eq!(different, machine.min(2), "{cores:?}");
    let (mut client, mut server) = peers.open(1);
    client.talk(100_000, 0);
    server.expect(100_000);
    complete(&mut client, &mut server);
    peers.assert_at_rest();
}

fn spinning() {
    let start = shipped_and("[relay]\nspin = \"200us\"");
    let peers = Peers::between(Hosts::new("spinning"), start);
    let (mut client, mut server) = peers.open(1);
    for _ in 0..200 {
        client.send(1000);
        server.expect(1000);
        server.send(1000);
        client.expect(1000);
    }
    complete(&mut client, &mut server);
    peers.wait_closed("completed", 1);
    peers.assert_at_rest();
}

/// A reader that keeps up for a while, so that the relay's receive buffer grows, and then stops.
fn stalled_receive_buffer() {
    const CAP: u64 = 256 << 10;
    const FLOWING: u64 = 24 << 20;
    let waits = |keys: &str, way: Way| {
        let hosts = Hosts::new("stalled");
        // Towards the reader there is little room, so that it is always the slower side.
        hosts.relay.sysctl("net.ipv4.tcp_wmem", "4096 65536 65536");
        for host in [&hosts.node, &hosts.origin] {
            host.sysctl("net.ipv4.tcp_rmem", "4096 65536 65536");
        }
        let peers = Peers::between(hosts, shipped_and(keys));
        let (mut sender, mut receiver) = peers.open_along(way, 5);
        thread::scope(|scope| {
            scope.spawn(|| receiver.expect(FLOWING));
            sender.send(FLOWING);
        });
        sender.send_until_stuck();
        let waiting = peers.socket_to(&sender).expect("it is open").receive_queue;
        let sent = sender.sent();
        receiver.expect(sent - FLOWING);
        complete(&mut sender, &mut receiver);
        peers.wait_closed("completed", 1);
        peers.assert_at_rest();
        waiting
    };
    let key = format!("[relay]\nstalled_receive_buffer = \"{CAP}B\"");
    for way in Way::ALL {
        let (without, with) = (waits("[relay]", way), waits(&key, way));
        assert!(without > 2 * CAP, "{without}: nothing was to be bounded");
        assert!(with <= CAP, "{with} bytes wait, {CAP} may");
    }
}
