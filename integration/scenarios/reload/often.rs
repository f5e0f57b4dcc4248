//! A hundred reloads leave no more behind than one.

use std::fmt::Write as _;

use libtest_mimic::Trial;

use super::world::{FIRST, Reloading, SECOND, config};
use crate::{claim, scenarios::world::ENDPOINT};

pub(crate) fn tests() -> Vec<Trial> {
    vec![claim(
        "hundred_reloads_leave_what_one_leaves",
        hundred_reloads_leave_what_one_leaves,
    )]
}

/// What the allocator may keep for itself: far less than one configuration of a hundred would take, were it kept.
const SLACK: u64 = 1 << 20;

/// Large enough to be seen if it is not given back: 500 endpoints, five listeners, five upstreams; `turn` makes all of it another one.
fn large(turn: usize) -> String {
    let mut tables = format!("[session]\nidle_timeout = \"{}m\"\n", 5 + turn % 3);
    for number in 0..500 {
        let _ = write!(
            tables,
            "[endpoint.\"vpce-{number:017x}\"]\nname = \"customer {number} of turn {}\"\nmax_sessions = {}\n",
            turn % 3,
            1000 + turn % 3
        );
    }
    let listeners = (0..5).map(|n| {
        // One of them is at another place each time.
        let port = if n == 4 { 8460 + turn % 3 } else { 8443 + n };
        (
            format!("listener-{n}"),
            format!("0.0.0.0:{port}"),
            format!("upstream-{n}"),
        )
    });
    let listeners: Vec<_> = listeners.collect();
    let upstreams = (0..5).map(|n| {
        let target = if (n + turn).is_multiple_of(2) {
            FIRST
        } else {
            SECOND
        };
        (format!("upstream-{n}"), target)
    });
    let upstreams: Vec<_> = upstreams.collect();
    let listeners: Vec<_> = listeners
        .iter()
        .map(|(name, bind, upstream)| (&**name, &**bind, &**upstream))
        .collect();
    let upstreams: Vec<_> = upstreams
        .iter()
        .map(|(name, target)| (&**name, *target))
        .collect();
    config(&listeners, &upstreams, &tables)
}

fn hundred_reloads_leave_what_one_leaves() {
    let world = Reloading::new("often", &large(0));
    let session = world.open(8443, ENDPOINT);
    let turn = |turn: usize| {
        world.apply(&large(turn));
        for port in [8443, 8444, 8460 + (turn % 3) as u16] {
            world.exchange(port);
        }
        // The one that moved is gone from where it was, so that its sockets are counted no more.
        for gone in (0..3).filter(|place| *place != turn % 3) {
            world.wait_port_closed(8460 + gone as u16);
        }
    };
    // One of each kind, so that what is kept for the next is there.
    for number in 1..=6 {
        turn(number);
    }
    let (after_one, memory) = (Held::by(&world), world.relay.own_memory());
    for number in 7..=105 {
        turn(number);
    }
    turn(6);
    world
        .relay
        .wait_until("no more to be held than after one", || {
            let now = Held::by(&world);
            now.descriptors <= after_one.descriptors && now.threads <= after_one.threads
        });
    let ledger = Held::by(&world).ledger;
    assert!(ledger <= LEDGER, "{ledger} descriptors of the ledger");
    world.relay.assert_at_rest();
    let grown = world.relay.own_memory().saturating_sub(memory);
    assert!(grown < SLACK, "{grown} bytes in a hundred reloads");
    world.goes_on(session);
    world
        .relay
        .wait_metric("tollgate_connections_active", &[], 0);
}

/// The ledger's files, its log and its index: opened for each booking after names have changed, and SQLite may keep one of them for the next who asks.
const LEDGER: usize = 6;

/// What the relay holds at one moment.
#[derive(Clone, Copy, Debug)]
struct Held {
    /// Without the ledger's.
    descriptors: usize,
    ledger: usize,
    threads: u64,
}

impl Held {
    #[track_caller]
    fn by(world: &Reloading) -> Self {
        let all = world.relay.descriptors();
        let ledger = all.iter().filter(|link| link.contains("/ledger.db"));
        let ledger = ledger.count();
        Self {
            descriptors: all.len() - ledger,
            ledger,
            threads: world.relay.threads(),
        }
    }
}
