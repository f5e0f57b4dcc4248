//! What is wanted of the relay, what would be better still, and whether a run shows it.

use std::fmt::Write;

use crate::{
    far::{
        Flows,
        first_byte::{ARRIVALS, Arrivals},
        flow::Way,
    },
    names::{self, Beside, Names},
    report::{Report, shown},
    summary::{Figure, Spread},
    variant::{Role, Variant},
    workload::{
        COPIED, FRAGMENTS, OPEN_LOOP, PACKETS, SHORT, UNPRIVILEGED, bulk_name, exchange_name,
    },
};

/// What a stalled receiver may make a relay hold outside of sockets: its largest pipe. And in sockets: what they are allowed, twice each way.
const PIPE: f64 = 1_048_576.0;
const SOCKETS: f64 = 2.0 * (6_291_456.0 + 4_194_304.0);

/// One figure and its bound.
#[derive(Debug)]
struct Claim {
    what: String,
    measured: Option<Spread>,
    bound: f64,
    unit: &'static str,
}

impl Claim {
    /// To two digits behind the point, as bounds are given.
    fn holds(&self) -> Option<bool> {
        self.measured
            .map(|measured| (measured.median * 100.0).round() <= (self.bound * 100.0).round())
    }

    /// How far it is from its bound.
    fn by_bound(&self) -> f64 {
        let measured = self.measured.map_or(0.0, |measured| measured.median);
        measured / self.bound.max(1e-9)
    }
}

/// A line of the table.
#[derive(Debug)]
struct Row {
    name: &'static str,
    wanted: (&'static str, Vec<Claim>),
    stretch: (&'static str, Vec<Claim>),
}

const TIMES: &str = "x";
const DIRECTIONS: [&str; 2] = ["to_upstream", "to_client"];

struct Claims<'a>(&'a Report<'a>);

impl Claims<'_> {
    /// Ours by another's.
    fn ratio(&self, workload: &str, figure: Figure, (ours, to): (Role, Role), bound: f64) -> Claim {
        let results = &self.0.results;
        let measured = || {
            let [ours, to] = [results.variant(ours)?, results.variant(to)?];
            results.ratio(results.workload(workload)?, (ours, to), figure)
        };
        let name = results
            .variant(to)
            .map(|to| results.variants[to].name.as_str());
        let figure = match figure {
            Figure::P99 => "p99, ",
            Figure::Machine => "whole machine, ",
            Figure::Throughput => "time per byte, ",
            _ => "",
        };
        Claim {
            what: format!(
                "{figure}{workload}, by {}",
                name.unwrap_or("what is not here")
            ),
            measured: measured(),
            bound,
            unit: TIMES,
        }
    }

    fn relay(&self, workload: &str, to: Role, bound: f64) -> Claim {
        self.ratio(workload, Figure::Relay, (Role::Ours, to), bound)
    }

    /// Ours by the cheapest of those set by hand.
    fn best(&self, workload: &str, bound: f64) -> Claim {
        let results = &self.0.results;
        let median = |role: &Role| {
            let figure = results.figure(
                results.workload(workload)?,
                results.variant(*role)?,
                Figure::Relay,
            );
            Some(figure?.median)
        };
        let tuned = [Role::NginxTuned, Role::HaproxySplice, Role::HaproxyTuned];
        let best = tuned.into_iter().min_by(|a, b| {
            let [a, b] = [median(a), median(b)].map(|m| m.unwrap_or(f64::MAX));
            a.total_cmp(&b)
        });
        self.relay(workload, best.unwrap_or(Role::HaproxyTuned), bound)
    }

    /// A figure of an idle session of ours.
    fn idle(
        &self,
        what: &str,
        unit: &'static str,
        bound: f64,
        figure: fn(&crate::scenes::Idle) -> f64,
    ) -> Claim {
        let ours = self.0.idle.iter().find(|idle| idle.role == Role::Ours);
        Claim {
            what: what.to_owned(),
            measured: ours.and_then(|idle| Spread::of([figure(idle)])),
            bound,
            unit,
        }
    }

    /// A figure of our stalled receiver, in MiB.
    fn stalled(&self, what: &str, bound: f64, figure: fn(&crate::scenes::Stalled) -> u64) -> Claim {
        let ours = self
            .0
            .stalled
            .iter()
            .find(|stalled| stalled.role == Role::Ours);
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
        let mib = |stalled| figure(stalled) as f64 / 1_048_576.0;
        Claim {
            what: what.to_owned(),
            measured: ours.and_then(|stalled| Spread::of([mib(stalled)])),
            bound: bound / 1_048_576.0,
            unit: "MiB",
        }
    }

    /// How much of a round trip one of ours lacks to have its first byte so many sooner than another; at each rate of arrivals.
    fn first_byte(&self, (ours, peer): (Role, Role), sooner: f64, bound: f64) -> Vec<Claim> {
        let variants = self.0.results.variants;
        let claim = |(number, arrivals): (usize, &Arrivals)| {
            let asked = self.0.first_byte.as_ref();
            let later = asked.and_then(|asked| asked.later(variants, (ours, peer), number));
            Claim {
                what: format!(
                    "first byte, {} agents a second, {}, beyond {} less {sooner}",
                    arrivals.per_second,
                    named(variants, ours),
                    named(variants, peer)
                ),
                measured: later.map(|Spread { median, min, max }| Spread {
                    median: median + sooner,
                    min: min + sooner,
                    max: max + sooner,
                }),
                bound,
                unit: "round trips",
            }
        };
        ARRIVALS.iter().enumerate().map(claim).collect()
    }

    /// Time per byte of a long flow of ours, by another's or by the link's own, each way.
    fn long_flow(&self, to: Option<Role>, tuned: bool, bound: f64) -> Vec<Claim> {
        let variants = self.0.results.variants;
        let claim = |way: Way| {
            let ratio = |flows: &Flows| match to {
                Some(peer) => flows.by(variants, peer, tuned, way),
                None => flows.by_link(variants, tuned, way),
            };
            let to = to.map_or("the link itself", |peer| named(variants, peer));
            let settings = if tuned { "our" } else { "Linux's" };
            Claim {
                what: format!(
                    "time per byte of a long flow {} with {settings} system settings, by {to}",
                    way.name()
                ),
                measured: self.0.flows.as_ref().and_then(ratio),
                bound,
                unit: TIMES,
            }
        };
        Way::ALL.into_iter().map(claim).collect()
    }

    /// A session's figure beside names that are refreshed, by that beside nothing. The bound is what the same twice differ by.
    fn names(&self, figure: names::Figure) -> Vec<Claim> {
        let names = self.0.names.as_ref();
        let claim = |name: &String| {
            let number = |names: &Names| names.workloads.iter().position(|one| one.name == *name);
            let both = names.and_then(|names| Some((names, number(names)?)));
            let ratio =
                both.and_then(|(names, number)| names.ratio(number, Beside::Refreshing, figure));
            let noise = both.and_then(|(names, number)| names.noise(number, figure));
            Claim {
                what: format!(
                    "{}{name} beside 1,000 names refreshed each second, by beside nothing",
                    figure.name()
                ),
                measured: ratio,
                bound: noise.unwrap_or(1.0),
                unit: TIMES,
            }
        };
        names::sessions().iter().map(claim).collect()
    }

    fn rows(&self) -> Vec<Row> {
        use Role::*;
        let bulk: Vec<String> = [1, 16]
            .into_iter()
            .flat_map(|flows| DIRECTIONS.map(|to| bulk_name(to, flows)))
            .collect();
        let one: Vec<String> = DIRECTIONS.map(|to| bulk_name(to, 1) + COPIED).to_vec();
        let fragments: Vec<String> = bulk.iter().map(|name| name.clone() + FRAGMENTS).collect();
        let packets: Vec<String> = [1, 16]
            .map(|flows| bulk_name("to_client", flows) + PACKETS)
            .to_vec();
        let each = |names: &[String], claim: &dyn Fn(&str) -> Claim| -> Vec<Claim> {
            names.iter().map(|name| claim(name)).collect()
        };
        let against = |names: &[String], bounds: &[(Role, f64)]| -> Vec<Claim> {
            let each = |(to, bound): &(Role, f64)| {
                names
                    .iter()
                    .map(|name| self.relay(name, *to, *bound))
                    .collect::<Vec<_>>()
            };
            bounds.iter().flat_map(each).collect()
        };
        let small = |connections: &[usize]| -> Vec<String> {
            let name = |n: &usize| ["1 KiB", "100 B"].map(|size| exchange_name(size, *n));
            connections.iter().flat_map(name).collect()
        };
        let tails = |names: &[String]| -> Vec<Claim> {
            let tail = |name: &String| {
                [Haproxy, Nginx].map(|to| self.ratio(name, Figure::P99, (Ours, to), 1.0))
            };
            names.iter().flat_map(tail).collect()
        };
        let exchanges = small(&[64, 512]);
        let mut requests = against(&exchanges, &[(Haproxy, 0.88), (Nginx, 1.0)]);
        requests.extend(tails(&exchanges));
        let machine = |bound: f64| {
            each(&one, &|name| {
                self.ratio(name, Figure::Machine, (Ours, Nat), bound)
            })
        };
        let mut faster = machine(1.20);
        faster.extend(each(&one, &|name| {
            // Ours by none, turned round: time per byte.
            let mut claim = self.ratio(name, Figure::Throughput, (Ours, NoRelay), 1.0);
            claim.measured = claim.measured.map(|Spread { median, min, max }| Spread {
                median: 1.0 / median,
                min: 1.0 / max,
                max: 1.0 / min,
            });
            claim
        }));
        let unprivileged: Vec<String> = [1, 16]
            .map(|flows| bulk_name("to_client", flows) + UNPRIVILEGED)
            .to_vec();
        let among_idle = |bound: f64| {
            each(&unprivileged, &|name| {
                self.ratio(
                    name,
                    Figure::Relay,
                    (OursAmongIdle, OursUnprivileged),
                    bound,
                )
            })
        };
        let short = [SHORT.to_owned()];
        let [mut ahead, mut flows] = [Vec::new(), self.long_flow(None, true, 1.1)];
        for peer in [Haproxy, Nginx] {
            ahead.extend(self.first_byte((OursAhead, peer), 1.0, 0.02));
            ahead.extend(self.first_byte((Ours, peer), 0.0, 0.02));
            flows.extend(self.long_flow(Some(peer), true, 1.05));
            flows.extend(self.long_flow(Some(peer), false, 1.05));
        }
        let at_start = self.0.names.as_ref().and_then(Names::worker_at_start);
        vec![
            Row {
                name: "bulk, CPU per GB, 1 and 16 flows",
                wanted: (
                    "≤ 0.22 x HAProxy, ≤ 0.32 x nginx, ≤ 0.80 x HAProxy splice",
                    against(
                        &bulk,
                        &[(Haproxy, 0.22), (Nginx, 0.32), (HaproxySplice, 0.80)],
                    ),
                ),
                stretch: (
                    "≤ 1.02 x the best peer set by hand",
                    each(&bulk, &|name| self.best(name, 1.02)),
                ),
            },
            Row {
                name: "bulk, MTU-sized fragments, CPU per GB",
                wanted: (
                    "≤ 0.38 x HAProxy splice",
                    against(&fragments, &[(HaproxySplice, 0.38)]),
                ),
                stretch: (
                    "≤ 1.0 x the best peer set by hand",
                    each(&fragments, &|name| self.best(name, 1.0)),
                ),
            },
            Row {
                name: "the same one to a packet: GRO and TSO off",
                wanted: (
                    "≤ 0.38 x HAProxy splice",
                    against(&packets, &[(HaproxySplice, 0.38)]),
                ),
                stretch: (
                    "≤ 1.0 x the best peer set by hand",
                    each(&packets, &|name| self.best(name, 1.0)),
                ),
            },
            Row {
                name: "one bulk flow copied by the receiver, whole machine",
                wanted: ("≤ 1.30 x kernel NAT", machine(1.30)),
                stretch: ("≤ 1.20 x, and faster than without a relay", faster),
            },
            Row {
                name: "request/response, CPU each, 1 KiB and 100 B, 64 and 512 connections",
                wanted: (
                    "≤ 0.88 x HAProxy, ≤ 1.0 x nginx; p99 no worse than either",
                    requests,
                ),
                stretch: (
                    "≤ 0.80 x HAProxy at 512",
                    against(&small(&[512]), &[(Haproxy, 0.80)]),
                ),
            },
            Row {
                name: "short connections, CPU each, with header, DNS route, accounts, policy",
                wanted: ("≤ 0.95 x HAProxy", against(&short, &[(Haproxy, 0.95)])),
                stretch: ("≤ 0.88 x HAProxy", against(&short, &[(Haproxy, 0.88)])),
            },
            Row {
                name: "user memory per idle session, books and identity included",
                wanted: (
                    "≤ 1 KiB, 2 descriptors, 0 pipes",
                    vec![
                        self.idle("user memory (PSS)", "KiB", 1.0, |idle| idle.user / 1024.0),
                        self.idle("descriptors", "", 2.0, |idle| idle.descriptors),
                        self.idle("ends of pipes", "", 0.0, |idle| idle.pipes),
                    ],
                ),
                stretch: (
                    "≤ 0.4 KiB",
                    vec![self.idle("user memory (PSS)", "KiB", 0.4, |idle| idle.user / 1024.0)],
                ),
            },
            Row {
                name: "bulk as an unprivileged user among 1,500 idle sessions, CPU per GB",
                wanted: ("within 10 % of alone", among_idle(1.10)),
                stretch: ("within 3 %", among_idle(1.03)),
            },
            Row {
                name: "open-loop requests at 30 % of capacity beside bulk at full speed",
                wanted: (
                    "p99 no worse than through HAProxy and nginx",
                    tails(&[OPEN_LOOP.to_owned()]),
                ),
                stretch: ("-", Vec::new()),
            },
            Row {
                name: "stalled receiver, bytes taken",
                wanted: (
                    "bounded by socket buffers plus one pipe or tail",
                    vec![
                        self.stalled("beyond what lay in sockets", PIPE, |stalled| {
                            stalled.taken.saturating_sub(stalled.in_sockets)
                        }),
                        self.stalled("in all", SOCKETS + PIPE, |stalled| stalled.taken),
                    ],
                ),
                stretch: ("-", Vec::new()),
            },
            Row {
                name: "time to first byte over 220 ms, each on a fresh connection",
                wanted: (
                    "dialled ahead: one round trip less than HAProxy and nginx; else the same, within 0.02",
                    ahead,
                ),
                stretch: ("-", Vec::new()),
            },
            Row {
                name: "one flow over 220 ms, `preset = \"wan\"`",
                wanted: (
                    "fills nine tenths of the link with our system settings; ≤ 1.05 x the time of HAProxy and nginx with these and Linux's",
                    flows,
                ),
                stretch: ("-", Vec::new()),
            },
            Row {
                name: "sessions while 1,000 names are refreshed each second, worker's CPU each",
                wanted: (
                    "no more than without, within noise",
                    self.names(names::Figure::Worker),
                ),
                stretch: (
                    "nor do sessions take longer, on one core for worker and names",
                    [names::Figure::Each, names::Figure::P99]
                        .into_iter()
                        .flat_map(|figure| self.names(figure))
                        .collect(),
                ),
            },
            Row {
                name: "a start with 10,000 names, worker's CPU",
                wanted: (
                    "≤ 2 % of a core while they become known",
                    vec![Claim {
                        what: "worker's part of a core while 10,000 names become known".to_owned(),
                        measured: at_start.and_then(|part| Spread::of([part])),
                        bound: 0.02,
                        unit: "",
                    }],
                ),
                stretch: ("-", Vec::new()),
            },
        ]
    }
}

fn named(variants: &[Variant], role: Role) -> &str {
    let variant = variants.iter().find(|variant| variant.role == role);
    variant.map_or("what is not here", |variant| variant.name.as_str())
}

/// The table, and what it goes by.
pub(crate) fn write(text: &mut String, report: &Report<'_>) -> std::fmt::Result {
    let rows = Claims(report).rows();
    writeln!(text, "## Verdict\n")?;
    writeln!(
        text,
        "Medians of ratios within a round (least to most of the rounds). In a row with several figures the one farthest from its bound is shown; \
         all are below it in the list.\n"
    )?;
    writeln!(text, "| | wanted | | stretch | |\n|---|---|---|---|---|")?;
    for row in &rows {
        let [(wanted, first), (stretch, second)] = [&row.wanted, &row.stretch];
        writeln!(
            text,
            "| {} | {wanted} | {} | {stretch} | {} |",
            row.name,
            judged(first),
            judged(second)
        )?;
    }
    writeln!(
        text,
        "\n<details><summary>Each figure behind the table</summary>\n"
    )?;
    writeln!(text, "| | measured | bound | |\n|---|---|---|---|")?;
    for row in &rows {
        for (kind, claims) in [("wanted", &row.wanted.1), ("stretch", &row.stretch.1)] {
            for claim in claims {
                writeln!(
                    text,
                    "| {} | {} {} | {kind} ≤ {:.2} | {} |",
                    claim.what,
                    shown(claim.measured),
                    claim.unit,
                    claim.bound,
                    word(claim.holds())
                )?;
            }
        }
    }
    writeln!(text, "\n</details>\n")
}

fn word(holds: Option<bool>) -> &'static str {
    match holds {
        Some(true) => "reached",
        Some(false) => "**NOT REACHED**",
        None => "not measured",
    }
}

/// All of a cell together, by the one that is worst.
fn judged(claims: &[Claim]) -> String {
    let measured = || claims.iter().filter(|claim| claim.measured.is_some());
    let Some(worst) = measured().max_by(|a, b| a.by_bound().total_cmp(&b.by_bound())) else {
        return if claims.is_empty() {
            "-"
        } else {
            "not measured"
        }
        .to_owned();
    };
    let missed = measured()
        .filter(|claim| claim.holds() == Some(false))
        .count();
    let (all, here) = (claims.len(), measured().count());
    let of = match (missed, here < all) {
        (0, false) => String::new(),
        (0, true) => format!(" ({here} of {all} measured)"),
        (missed, _) => format!(" ({missed} of {here})"),
    };
    let (figure, unit) = (shown(worst.measured), worst.unit);
    format!(
        "{}{of}; {figure} {unit}: {}",
        word(Some(missed == 0)),
        worst.what
    )
}
