//! The same relays with the origin in another Region: 220 ms there and back, as between us-east-1 and ap-southeast-1.
//!
//! Two things are looked at: how soon an agent has its first byte ([`first_byte`]), and how much of the link one flow fills ([`flow`]).

use std::{fs, thread, time::Duration};

use crate::{
    harness::wan::Shape,
    lab::World,
    peers::Running,
    processor::Cores,
    rounds::shuffled,
    settings::Room,
    variant::{Role, Variant},
};

pub(crate) mod first_byte;
pub(crate) mod flow;
mod report;

use first_byte::{ARRIVALS, Answering, FirstBytes};
use flow::{Flow, Way};

/// Rounds unless said otherwise.
pub(crate) const ROUNDS_OF_AGENTS: u32 = 5;
pub(crate) const ROUNDS_OF_FLOWS: u32 = 3;

/// One way.
pub(crate) const DELAY: Duration = Duration::from_millis(110);
/// What the link lets a flow have, in bits of packets a second: what a TUN carries here several times over.
pub(crate) const RATE: u64 = 500_000_000;
/// What waits for that in the link's router: two bandwidth-delay products and some, so that the start of a flow loses nothing. How the relay lives
/// with losses is not a question of speed.
const ROUTER: usize = 32 << 20;
/// Of a packet of 8500 bytes, what is payload: the rest is IPv4's and TCP's header with timestamps.
const PAYLOAD: f64 = 8448.0 / 8500.0;
/// The system settings that come with tollgate.
const SHIPPED: &str = include_str!("../../../systemd/90-tollgate.conf");

/// Who takes part.
pub(crate) const ASKED: [Role; 5] = [
    Role::Ours,
    Role::OursAhead,
    Role::Nginx,
    Role::Haproxy,
    Role::NoRelay,
];
pub(crate) const FLOWING: [Role; 4] = [Role::OursWan, Role::Nginx, Role::Haproxy, Role::NoRelay];

/// Agents of one round through one relay.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) round: u32,
    pub(crate) variant: usize,
    /// Which of [`ARRIVALS`].
    pub(crate) arrivals: usize,
    pub(crate) got: FirstBytes,
}

/// What dials over the link took at the same time: its round trips.
#[derive(Clone, Debug)]
pub(crate) struct Trips {
    pub(crate) round: u32,
    pub(crate) arrivals: usize,
    pub(crate) took: Vec<Duration>,
}

/// Time to first byte, in all rounds.
#[derive(Clone, Debug, Default)]
pub(crate) struct FirstByte {
    pub(crate) asked: Vec<Asked>,
    pub(crate) trips: Vec<Trips>,
}

/// One flow.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Flowed {
    pub(crate) round: u32,
    pub(crate) variant: usize,
    /// With what the shipped sysctl file sets; else with what Linux ships.
    pub(crate) tuned: bool,
    pub(crate) way: Way,
    pub(crate) flow: Flow,
}

/// One flow at a time, in all rounds.
#[derive(Clone, Debug)]
pub(crate) struct Flows {
    pub(crate) flowed: Vec<Flowed>,
    /// Of every host.
    pub(crate) congestion: String,
    pub(crate) shipped: Vec<(String, String)>,
}

/// Whether this machine has such links, or why not.
pub(crate) fn possible() -> Result<(), String> {
    let tun = fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/net/tun");
    tun.map(drop).map_err(|error| {
        format!("over 220 ms: not on this machine: /dev/net/tun: {error}: modprobe tun; chmod 0666 /dev/net/tun")
    })
}

/// TCP settings of the file that is shipped: those that a network namespace has of its own.
fn shipped() -> Vec<(String, String)> {
    let lines = SHIPPED.lines().filter_map(|line| line.split_once('='));
    let lines = lines.map(|(key, value)| (key.trim().to_owned(), value.trim().to_owned()));
    lines
        .filter(|(key, _)| key.starts_with("net.ipv4.tcp_"))
        .collect()
}

/// Agents, round by round: each begins with relays that have just started.
pub(crate) fn first_byte(
    variants: &[Variant],
    cores: &Cores,
    congestion: &str,
    rounds: u32,
) -> Result<FirstByte, String> {
    let world = World::far(*cores, congestion, &Shape::delay(DELAY), &[]);
    let failed = |error| format!("first byte over the link: {error}");
    let mut all = FirstByte::default();
    for round in 0..rounds {
        let relays = start(variants, &ASKED, &world, cores)?;
        let _answering = Answering::at(&world, relays.iter()).map_err(failed)?;
        relays.iter().for_each(first_byte::wait_dialled_ahead);
        for (arrivals, what) in ARRIVALS.into_iter().enumerate() {
            let came = first_byte::first_bytes(&world, &relays, what, round);
            let (got, took) = came.map_err(failed)?;
            all.trips.push(Trips {
                round,
                arrivals,
                took,
            });
            for (relay, got) in relays.iter().zip(got) {
                all.asked.push(Asked {
                    round,
                    variant: relay.number(),
                    arrivals,
                    got,
                });
            }
        }
    }
    Ok(all)
}

/// Flows, round by round: through one relay after the other, and at the same time both ways and with both kinds of system settings, each on a link and
/// through a process of its own.
pub(crate) fn flows(
    variants: &[Variant],
    cores: &Cores,
    congestion: &str,
    rounds: u32,
) -> Result<Flows, String> {
    let shape = Shape {
        rate: Some(RATE),
        buffer: ROUTER,
        in_flight: 256 << 20,
        ..Shape::delay(DELAY)
    };
    let shipped = shipped();
    let mut worlds = Vec::new();
    for tuned in [false, true] {
        let more: &[_] = if tuned { &shipped } else { &[] };
        for way in Way::ALL {
            let world = World::far(*cores, congestion, &shape, more);
            let relays = start(variants, &FLOWING, &world, cores)?;
            worlds.push((tuned, way, world, relays));
        }
    }
    let mut flowed = Vec::new();
    let relays = worlds.first().map_or(0, |(.., relays)| relays.len());
    for round in 0..rounds {
        for relay in shuffled(relays) {
            let at_once = thread::scope(|scope| {
                let mut begun = Vec::new();
                for (_, way, world, relays) in &worlds {
                    begun.push(scope.spawn(move || flow::flow(world, &relays[relay], *way)));
                }
                let ended = begun.into_iter().map(thread::ScopedJoinHandle::join);
                ended.collect::<Vec<_>>()
            });
            for ((tuned, way, _, relays), ended) in worlds.iter().zip(at_once) {
                let variant = relays[relay].number();
                let flow = ended.expect("it does not panic").map_err(|error| {
                    let name = &variants[variant].name;
                    format!("one flow over the link, {name}, {}: {error}", way.name())
                })?;
                flowed.push(Flowed {
                    round,
                    variant,
                    tuned: *tuned,
                    way: *way,
                    flow,
                });
            }
        }
    }
    Ok(Flows {
        flowed,
        congestion: congestion.to_owned(),
        shipped,
    })
}

fn start(
    variants: &[Variant],
    roles: &[Role],
    world: &World,
    cores: &Cores,
) -> Result<Vec<Running>, String> {
    let wanted = variants.iter().enumerate();
    let wanted = wanted.filter(|(_, variant)| roles.contains(&variant.role));
    wanted
        .map(|(number, variant)| variant.start(number, world, cores, Room::Usual))
        .collect()
}
