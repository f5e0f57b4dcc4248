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
    flow::{self, Limit, Way},
};
use crate::{
    lab::{RECEIVE_BUFFER, SEND_BUFFER},
    report::shown,
    summary::Spread,
    variant::{Role, Variant},
};

/// What the two peers can do about the dial.
const PEERS: &str = "The peers are as shipped, because neither has anything that saves the dial for a stream: HAProxy and nginx keep connections to a server for \
    the next request of HTTP only, and HAProxy 2.6 makes no use of `tfo` on a server's line in TCP mode (tried: no SYN carries data).";

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
    fn trips(&self, arrivals: usize) -> impl Iterator<Item = (u32, f64)> {
        let trips = self.trips.iter();
        let trips = trips.filter(move |trips| trips.arrivals == arrivals);
        trips.filter_map(|trips| Some((trips.round, at(&trips.took, 0.5)?)))
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
        let trips: BTreeMap<u32, f64> = self.trips(arrivals).collect();
        Spread::of(self.by_round(one, arrivals).filter_map(|(round, median)| {
            Some((median - others.get(&round)?) / trips.get(&round)?)
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
        if self.asked.is_empty() {
            return Ok(());
        }
        let rounds = self.trips.iter().map(|trips| trips.round).max();
        let trips = ARRIVALS.iter().enumerate();
        let trips = trips.flat_map(|(arrivals, _)| self.trips(arrivals));
        writeln!(
            text,
            "### Time to first byte over {} ms\n\nAgents come by chance, each on a fresh connection: PROXY v2 header and a request of 1 KiB at once, the answer of 1 KiB \
             from an origin behind the link. Counted from connecting to the first byte of the answer. All relays are asked at the same instants, in {} rounds of {} and {} s that follow on \
             each other: what finds no connection dialled ahead comes mostly while the rate has just risen. The link is two TUN \
             devices that hold each packet for {} ms. A dial over it, at the same instants, takes a round trip: {} ms. {PEERS} *No relay* \
             is the agent over a link of its own, dial included.\n",
            2 * DELAY.as_millis(),
            rounds.map_or(0, |last| last + 1),
            ARRIVALS[0].during.as_secs(),
            ARRIVALS[1].during.as_secs(),
            DELAY.as_millis(),
            shown(Spread::of(trips.map(|(_, trip)| trip))),
        )?;
        for (number, arrivals) in ARRIVALS.into_iter().enumerate() {
            writeln!(
                text,
                "| {} agents a second | median, ms | p99, ms | median, round trips | later than tollgate, round trips | later than tollgate ahead, round trips | found a connection |\n|---|---|---|---|---|---|---|",
                arrivals.per_second
            )?;
            let trip = Spread::of(self.trips(number).map(|(_, trip)| trip));
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
                    median.median / trip.map_or(f64::NAN, |trip| trip.median),
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
            "round_trips": self.trips.iter().map(|trips| json!({
                "round": trips.round,
                "agents_per_s": ARRIVALS[trips.arrivals].per_second,
                "took_ms": all_ms(&trips.took),
            })).collect::<Vec<_>>(),
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

    /// Megabits of payload a second.
    pub(crate) fn rate(&self, variant: usize, tuned: bool, way: Way) -> Option<Spread> {
        Spread::of(
            self.of(variant, tuned, way)
                .map(|flowed| flowed.flow.rate / 1e6),
        )
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
        let rounds = self.flowed.iter().map(|flowed| flowed.round).max();
        let settings = self.shipped.iter();
        let settings = settings.map(|(key, value)| format!("`{key} = {value}`"));
        let settings: Vec<_> = settings.collect();
        writeln!(
            text,
            "### One flow over {} ms\n\nThe link lets {} Mbit/s of packets through, {:.0} of payload: {:.2} MB are under way when it is full (the bandwidth-delay product). A fresh flow each time, \
             left alone for {:?} and measured for {:?}, in {} rounds; *found* is when it first had four fifths of that rate. Congestion control of every host: {}; *tollgate wan* asks for bbr by \
             itself where it is allowed. System settings, alike in every host's namespace: *Linux's own* (`tcp_rmem = {RECEIVE_BUFFER}`, `tcp_wmem = {SEND_BUFFER}`) and *tollgate's*, of the file that comes \
             with it ({}). The peers are as shipped: the sizes of their sockets are the kernel's choice too. *Held back by* is what the kernel books of the socket that sends \
             over the link. Both ways and both settings run at the same time, each on a link and through a process of its own.\n",
            (trip * 1e3).round(),
            RATE / 1_000_000,
            link() / 1e6,
            link() / 8.0 * trip / 1e6,
            flow::TO_FIND_ITS_RATE,
            flow::MEASURED,
            rounds.map_or(0, |last| last + 1),
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
        writeln!(
            text,
            "| {} | {} | {} | {} | {:.0} % | {:.1} | {} | {} | {} |",
            if tuned { "tollgate's" } else { "Linux's own" },
            way.name(),
            variants[variant].name,
            shown(Some(rate)),
            rate.median * 1e6 / link() * 100.0,
            rate.median / 8.0 * 2.0 * DELAY.as_secs_f64(),
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
