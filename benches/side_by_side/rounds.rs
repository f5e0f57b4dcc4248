//! Rounds: each starts every relay anew and takes each workload through each of its relays, in an order of chance.

use std::{
    io, thread,
    time::{Duration, Instant},
};

use crate::{
    lab::World,
    load::{Outcome, Prepared},
    peers::Running,
    processor::{self, Cores, Machine},
    profile,
    settings::Room,
    summary::Spread,
    variant::{Role, Variant},
    workload::{Cut, Traffic, Workload, exchange_name},
};

/// A relay that had to share its core moves more at a time, and some of its work is booked to others: beyond this part of the time a measurement
/// is made again, so many times, and the calmest counts.
pub(crate) const MOST_WAITED: f64 = 0.05;
pub(crate) const TRIES: usize = 3;

/// How long a relay is left alone before its processor time is read.
const SETTLE: Duration = Duration::from_millis(25);

/// The part of the slowest relay's capacity at which requests are sent beside bulk, and the rate where that was not measured.
const PART_OF_CAPACITY: f64 = 0.3;
const DEFAULT_RATE: f64 = 20_000.0;

/// One workload through one relay in one round.
#[derive(Clone, Debug)]
pub(crate) struct Sample {
    pub(crate) round: u32,
    pub(crate) workload: usize,
    pub(crate) variant: usize,
    pub(crate) measured: Measured,
}

/// What came of it, and what it took.
#[derive(Clone, Debug)]
pub(crate) struct Measured {
    /// What moved.
    pub(crate) outcome: Outcome,
    /// The relay's processes; `None` without a relay.
    pub(crate) relay: Option<processor::Usage>,
    /// Client and origin.
    pub(crate) load: Duration,
    /// Both cores.
    pub(crate) machine: Duration,
}

impl Measured {
    fn waited(&self) -> f64 {
        let waited = self.relay.map_or(0.0, |used| used.waited.as_secs_f64());
        waited / self.outcome.elapsed.as_secs_f64()
    }
}

/// What the rounds have in common.
#[derive(Debug)]
pub(crate) struct Rounds<'a> {
    pub(crate) world: &'a World,
    pub(crate) cores: &'a Cores,
    pub(crate) variants: &'a [Variant],
    pub(crate) workloads: &'a [Workload],
    pub(crate) length: Duration,
    /// Until then there is time to measure again.
    pub(crate) unhurried: Instant,
    /// Requests a second beside bulk, once it is known.
    pub(crate) rate: Option<f64>,
    /// Bytes of packets on average, in fragments: the least and the most of the senders.
    pub(crate) packet: Option<Spread>,
}

impl Rounds<'_> {
    /// One of them.
    pub(crate) fn round(&mut self, round: u32) -> Result<Vec<Sample>, String> {
        let needed = |role| self.workloads.iter().any(|workload| workload.is_for(role));
        let start = |(number, variant): (usize, &Variant)| match needed(variant.role) {
            true => {
                let running = variant.start(number, self.world, self.cores, Room::Usual);
                running.map(Some)
            }
            false => Ok(None),
        };
        let relays = self.variants.iter().enumerate().map(start);
        let relays = relays.collect::<Result<Vec<_>, _>>()?;
        let (mut samples, mut packets) = (Vec::new(), None);
        let mut order = shuffled(self.workloads.len());
        // Its rate comes from another one.
        order.sort_by_key(|workload| self.workloads[*workload].traffic == Traffic::OpenLoop);
        for workload in order {
            let what = &self.workloads[workload];
            if what.traffic == Traffic::OpenLoop && self.rate.is_none() {
                self.rate = Some(self.rate_of(&samples));
            }
            let one_segment = what.cut == Cut::Packets;
            if packets.replace(one_segment) != Some(one_segment) {
                self.world.one_segment_per_packet(one_segment);
            }
            for variant in shuffled(relays.len()) {
                let Some(relay) = &relays[variant] else {
                    continue;
                };
                let Variant { name, role, .. } = &self.variants[variant];
                if !what.is_for(*role) {
                    continue;
                }
                let measured = self
                    .calmest(relay, what)
                    .map_err(|error| format!("{}, {name}: {error}", what.name))?;
                samples.push(Sample {
                    round,
                    workload,
                    variant,
                    measured,
                });
            }
        }
        Ok(samples)
    }

    /// From what the slowest of those compared could do in this round.
    fn rate_of(&self, samples: &[Sample]) -> f64 {
        let capacity = exchange_name("1 KiB", 64);
        let of = |sample: &&Sample| {
            let role = self.variants[sample.variant].role;
            self.workloads[sample.workload].name == capacity
                && [Role::Ours, Role::Nginx, Role::Haproxy].contains(&role)
        };
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
        let each = |sample: &Sample| {
            let outcome = &sample.measured.outcome;
            outcome.units as f64 / outcome.elapsed.as_secs_f64()
        };
        let least = samples.iter().filter(of).map(each).reduce(f64::min);
        least.map_or(DEFAULT_RATE, |least| least * PART_OF_CAPACITY)
    }

    fn calmest(&mut self, relay: &Running, workload: &Workload) -> io::Result<Measured> {
        let mut best = self.measure(relay, workload)?;
        for _ in 1..TRIES {
            // Where the relay shares its core with client and origin, it waits for them.
            let calm = workload.same_core || best.waited() < MOST_WAITED;
            if calm || Instant::now() > self.unhurried {
                break;
            }
            let again = self.measure(relay, workload)?;
            if again.waited() < best.waited() {
                best = again;
            }
        }
        Ok(best)
    }

    /// Connections first, then some traffic to warm up (windows, buffers, pages), then what counts: what connecting costs is not in it. The
    /// relay is at rest whenever its time is read.
    fn measure(&mut self, relay: &Running, workload: &Workload) -> io::Result<Measured> {
        let core = match workload.same_core {
            true => self.cores.load,
            false => self.cores.relay,
        };
        let length = workload.length(self.length);
        relay.move_to(core)?;
        let rate = self.rate.unwrap_or(DEFAULT_RATE);
        let load = Prepared::new(self.world, relay, workload, rate)?;
        load.run(length / 4)?;
        thread::sleep(SETTLE);
        let sender = match workload.traffic {
            Traffic::ToUpstream => &self.world.client,
            _ => &self.world.origin,
        };
        let sent = (workload.cut == Cut::Packets).then(|| World::sent(sender));
        let profile = profile::begin(relay, workload, length)?;
        let (relay_before, load_before) = (relay.usage()?, processor::own());
        let machine = Machine::now(self.cores)?;
        let outcome = load.run(length)?;
        let load_used = processor::own().saturating_sub(load_before);
        thread::sleep(SETTLE);
        let machine = machine.busy(self.cores)?;
        let used = relay.usage()?.zip(relay_before);
        let used = used.map(|(after, before)| after.since(before));
        if let Some([bytes, packets]) = sent {
            let now = World::sent(sender);
            #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
            let mean = (now[0] - bytes) as f64 / (now[1] - packets) as f64;
            let so_far = self
                .packet
                .into_iter()
                .flat_map(|spread| [spread.min, spread.max]);
            self.packet = Spread::of(so_far.chain([mean]));
        }
        profile::end(profile)?;
        drop(load);
        thread::sleep(SETTLE); // closing is not in the next one's figures
        Ok(Measured {
            outcome,
            relay: used,
            load: load_used,
            machine,
        })
    }
}

/// The numbers below `n` in an order of chance.
pub(crate) fn shuffled(n: usize) -> Vec<usize> {
    use std::hash::{BuildHasher, RandomState};
    let chance = RandomState::new();
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by_key(|i| chance.hash_one(i));
    order
}
