//! What came of it: figures, tables, JSON.

use std::{
    collections::BTreeMap,
    fmt::{Result, Write},
    time::Duration,
};

use serde_json::{Value, json};

use super::{
    ASKED, DELAY, FLOWING, FirstByte, Flowed, Flows, PAYLOAD, RATE,
    first_byte::ARRIVALS,
    flow::{Limit, Way},
};
use crate::{
    report::shown,
    summary::Spread,
    variant::{Role, Variant},
};

/// What the two peers can do about the dial.
const PEERS: &str = "The peers are as shipped: neither has anything that saves the dial for a stream. HAProxy and nginx keep connections to a server for \
    the next request of HTTP only; HAProxy's `tfo` on a server's line puts the first bytes into the SYN, for a far end that takes TCP Fast Open.";

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// The one that so much of them is not above.
fn at(times: &[Duration], part: f64) -> Option<f64> {
    let mut times = times.to_vec();
    times.sort_unstable();
    let last = times.len().checked_sub(1)?;
    let place = (times.len() as f64 * part) as usize;
    Some(milliseconds(times[place.min(last)]))
}

fn place(variants: &[Variant], role: Role) -> Option<usize> {
    variants.iter().position(|variant| variant.role == role)
}

impl FirstByte {
    /// Round trips of the link, in milliseconds: the middle one of each round.
    pub(crate) fn trip(&self) -> Option<Spread> {
        Spread::of(self.trips.iter().filter_map(|trips| at(trips, 0.5)))
    }

    fn by_round(&self, variant: usize, arrivals: usize) -> impl Iterator<Item = (u32, f64)> {
        let asked = self.asked.iter();
        let ours =
            asked.filter(move |asked| (asked.variant, asked.arrivals) == (variant, arrivals));
        ours.filter_map(|asked| Some((asked.round, at(&asked.got.took, 0.5)?)))
    }

    /// Time to first byte in milliseconds: the middle one of each round.
    pub(crate) fn median(&self, variant: usize, arrivals: usize) -> Option<Spread> {
        Spread::of(self.by_round(variant, arrivals).map(|(_, median)| median))
    }

    /// What 99 of 100 were not above, of all rounds together.
    fn p99(&self, variant: usize, arrivals: usize) -> Option<f64> {
        let asked = self.asked.iter();
        let ours = asked.filter(|asked| (asked.variant, asked.arrivals) == (variant, arrivals));
        let all: Vec<_> = ours.flat_map(|asked| asked.got.took.clone()).collect();
        at(&all, 0.99)
    }

    /// How much later one has its first byte than another, in round trips of the link, round by round.
    pub(crate) fn later(
        &self,
        variants: &[Variant],
        (one, than): (Role, Role),
        arrivals: usize,
    ) -> Option<Spread> {
        let [one, than] = [place(variants, one)?, place(variants, than)?];
        let others: BTreeMap<u32, f64> = self.by_round(than, arrivals).collect();
        Spread::of(self.by_round(one, arrivals).filter_map(|(round, median)| {
            let trip = at(self.trips.get(usize::try_from(round).ok()?)?, 0.5)?;
            Some((median - others.get(&round)?) / trip)
        }))
    }

    /// Of all that came, the part that found a connection; where there were any to be found.
    fn hits(&self, variant: usize, arrivals: usize) -> Option<(f64, BTreeMap<String, u64>)> {
        let mut sums = BTreeMap::<String, u64>::new();
        let asked = self.asked.iter();
        for asked in asked.filter(|asked| (asked.variant, asked.arrivals) == (variant, arrivals)) {
            for (outcome, count) in &asked.got.ahead {
                *sums.entry(outcome.clone()).or_default() += count;
            }
        }
        let count = |outcome: &str| sums.get(outcome).copied().unwrap_or(0) as f64;
        let all = count("taken") + count("missed");
        (all > 0.0).then(|| (count("taken") / all, sums.clone()))
    }

    pub(crate) fn write(&self, text: &mut String, variants: &[Variant]) -> Result {
        let Some(trip) = self.trip() else {
            return Ok(());
        };
        writeln!(
            text,
            "### Time to first byte over {} ms\n\nAgents come by chance, each on a fresh connection: PROXY v2 header and a request of 1 KiB at once, the answer of 1 KiB \
             from an origin behind the link. Counted from connecting to the first byte of the answer. All relays are asked at the same instants. The link is two TUN \
             devices that hold each packet for {} ms; a dial over it, which is what a round trip takes there, took {} ms (middle one of each round). {PEERS} *No relay* \
             is the agent over a link of its own, dial included.\n",
            2 * DELAY.as_millis(),
            DELAY.as_millis(),
            shown(Some(trip)),
        )?;
        for (number, arrivals) in ARRIVALS.into_iter().enumerate() {
            writeln!(
                text,
                "| {} agents a second | median, ms | p99, ms | median, round trips | later than tollgate, round trips | later than tollgate ahead, round trips | found a connection |\n|---|---|---|---|---|---|---|",
                arrivals.per_second
            )?;
            for role in ASKED {
                let Some(variant) = place(variants, role) else {
                    continue;
                };
                let Some(median) = self.median(variant, number) else {
                    continue;
                };
                let than = |than| match role == than {
                    true => "-".to_owned(),
                    false => shown(self.later(variants, (role, than), number)),
                };
                let hits = self.hits(variant, number);
                let hits = hits.map_or("-".to_owned(), |(part, outcomes)| {
                    let told = outcomes.iter().filter(|(_, count)| **count > 0);
                    let told = told.map(|(outcome, count)| format!("{count} {outcome}"));
                    let told: Vec<_> = told.collect();
                    format!("{:.1} % ({})", part * 100.0, told.join(", "))
                });
                writeln!(
                    text,
                    "| {} | {} | {:.0} | {:.2} | {} | {} | {hits} |",
                    variants[variant].name,
                    shown(Some(median)),
                    self.p99(variant, number).unwrap_or(f64::NAN),
                    median.median / trip.median,
                    than(Role::Ours),
                    than(Role::OursAhead),
                )?;
            }
            writeln!(text)?;
        }
        Ok(())
    }

    pub(crate) fn json(&self, variants: &[Variant]) -> Value {
        let all_ms =
            |times: &[Duration]| -> Vec<f64> { times.iter().copied().map(milliseconds).collect() };
        json!({
            "round_trips_ms": self.trips.iter().map(|trips| all_ms(trips)).collect::<Vec<_>>(),
            "samples": self.asked.iter().map(|asked| json!({
                "round": asked.round,
                "relay": variants[asked.variant].name,
                "agents_per_s": ARRIVALS[asked.arrivals].per_second,
                "first_byte_ms": all_ms(&asked.got.took),
                "ahead": asked.got.ahead,
            })).collect::<Vec<_>>(),
        })
    }
}

impl Flows {
    fn of(&self, variant: usize, tuned: bool, way: Way) -> impl Iterator<Item = &Flowed> {
        let wanted = (variant, tuned, way);
        let flowed = self.flowed.iter();
        flowed.filter(move |flowed| (flowed.variant, flowed.tuned, flowed.way) == wanted)
    }

    /// Bits of payload a second.
    pub(crate) fn rate(&self, variant: usize, tuned: bool, way: Way) -> Option<Spread> {
        Spread::of(self.of(variant, tuned, way).map(|flowed| flowed.flow.rate))
    }

    /// What a byte takes, by what it takes at the link's own rate.
    pub(crate) fn by_link(&self, variants: &[Variant], tuned: bool, way: Way) -> Option<Spread> {
        let ours = place(variants, Role::OursWan)?;
        Spread::of(
            self.of(ours, tuned, way)
                .map(|flowed| link() / flowed.flow.rate),
        )
    }

    /// What a byte takes, by what it takes through another relay; round by round.
    pub(crate) fn by(
        &self,
        variants: &[Variant],
        peer: Role,
        tuned: bool,
        way: Way,
    ) -> Option<Spread> {
        let [ours, peer] = [place(variants, Role::OursWan)?, place(variants, peer)?];
        let ratios = self.of(ours, tuned, way).filter_map(|ours| {
            let mut peers = self.of(peer, tuned, way);
            let peer = peers.find(|peer| peer.round == ours.round)?;
            Some(peer.flow.rate / ours.flow.rate)
        });
        Spread::of(ratios)
    }

    pub(crate) fn write(&self, text: &mut String, variants: &[Variant]) -> Result {
        if self.flowed.is_empty() {
            return Ok(());
        }
        let trip = 2.0 * DELAY.as_secs_f64();
        let settings = self.shipped.iter();
        let settings = settings.map(|(key, value)| format!("`{key} = {value}`"));
        let settings: Vec<_> = settings.collect();
        writeln!(
            text,
            "### One flow over {} ms\n\nThe link lets {} Mbit/s of packets through, {:.0} of payload: {:.2} MB are under way when it is full (the bandwidth-delay product). A fresh flow, \
             looked at from its 3.5th second to its 5.5th; *found* is when it first had four fifths of that rate. Congestion control of every host: {}; tollgate asks for bbr by \
             itself where it is allowed. System settings, alike in every host's namespace: as Linux ships them (`tcp_rmem = 4096 131072 6291456`, `tcp_wmem = 4096 16384 4194304`), and as the file says \
             that comes with tollgate ({}). The peers are as shipped: their socket sizes are the kernel's choice too. *Held back by* is what the kernel books of the socket that sends \
             over the link. Both ways and both settings run at the same time, each on a link and through a process of its own.\n",
            (trip * 1e3).round(),
            RATE / 1_000_000,
            link() / 1e6,
            link() / 8.0 * trip / 1e6,
            self.congestion,
            settings.join(", "),
        )?;
        writeln!(
            text,
            "| system settings | way | | Mbit/s | of the link | under way, MB | found, s | held back by | sent again, segments |\n|---|---|---|---|---|---|---|---|---|"
        )?;
        for tuned in [false, true] {
            for way in Way::ALL {
                for role in FLOWING {
                    if let Some(variant) = place(variants, role) {
                        self.line(text, variants, (variant, tuned, way))?;
                    }
                }
            }
        }
        writeln!(text)
    }

    fn line(
        &self,
        text: &mut String,
        variants: &[Variant],
        (variant, tuned, way): (usize, bool, Way),
    ) -> Result {
        let Some(rate) = self.rate(variant, tuned, way) else {
            return Ok(());
        };
        let spread =
            |value: fn(&Flowed) -> f64| Spread::of(self.of(variant, tuned, way).map(value));
        let mut limits = BTreeMap::<Limit, u32>::new();
        for flowed in self.of(variant, tuned, way) {
            *limits.entry(flowed.flow.limit(link())).or_default() += 1;
        }
        let all: u32 = limits.values().sum();
        let limits = limits.into_iter().map(|(limit, times)| match times == all {
            true => limit.name().to_owned(),
            false => format!("{} ({times} of {all})", limit.name()),
        });
        let mbits = Spread {
            median: rate.median / 1e6,
            min: rate.min / 1e6,
            max: rate.max / 1e6,
        };
        writeln!(
            text,
            "| {} | {} | {} | {} | {:.0} % | {:.1} | {} | {} | {} |",
            if tuned {
                "as shipped with tollgate"
            } else {
                "Linux's own"
            },
            way.name(),
            variants[variant].name,
            shown(Some(mbits)),
            rate.median / link() * 100.0,
            rate.median / 8.0 * 2.0 * DELAY.as_secs_f64() / 1e6,
            shown(spread(|flowed| flowed.flow.found.as_secs_f64())),
            limits.collect::<Vec<_>>().join(", "),
            shown(spread(|flowed| flowed.flow.sender.retransmits as f64)),
        )
    }

    pub(crate) fn json(&self, variants: &[Variant]) -> Value {
        json!({
            "congestion_control": self.congestion,
            "link_bit_per_s": RATE,
            "sysctls": self.shipped.iter().cloned().collect::<BTreeMap<_, _>>(),
            "samples": self.flowed.iter().map(|flowed| json!({
                "round": flowed.round,
                "relay": variants[flowed.variant].name,
                "shipped_sysctls": flowed.tuned,
                "way": flowed.way.name(),
                "bit_per_s": flowed.flow.rate,
                "found_after_s": flowed.flow.found.as_secs_f64(),
                "held_back_by": flowed.flow.limit(link()).name(),
                "held_back_by_window": flowed.flow.sender.by_window,
                "held_back_by_buffer": flowed.flow.sender.by_buffer,
                "segments_sent_again": flowed.flow.sender.retransmits,
                "congestion_window": flowed.flow.sender.window,
            })).collect::<Vec<_>>(),
        })
    }
}

/// Bits of payload a second that the link lets through.
fn link() -> f64 {
    RATE as f64 * PAYLOAD
}
