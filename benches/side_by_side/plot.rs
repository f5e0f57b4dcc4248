//! Bars with whiskers: the median, the least and the most of the rounds.

use std::fmt::{Result, Write};

use crate::{
    far::{first_byte::ARRIVALS, flow::Way},
    report::Report,
    summary::{Figure, Spread},
    workload::{COPIED, FRAGMENTS, OPEN_LOOP, PACKETS, SHORT, bulk_name, exchange_name},
};

const LABEL: f64 = 200.0;
const BARS: f64 = 280.0;
const NUMBER: f64 = 70.0;
const LINE: f64 = 18.0;
const TITLE: f64 = 34.0;
const GAP: f64 = 16.0;

/// A diagram of its own within the plot.
struct Panel {
    title: String,
    bars: Vec<(String, Spread)>,
}

impl Panel {
    fn height(&self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "a few")]
        let lines = self.bars.len() as f64;
        TITLE + lines * LINE + GAP
    }

    fn write(&self, text: &mut String, x: f64, y: f64) -> Result {
        let most = self
            .bars
            .iter()
            .map(|(_, spread)| spread.max)
            .fold(0.0, f64::max);
        let scale = BARS / most.max(1e-12);
        let title = escaped(&self.title);
        writeln!(
            text,
            r#"<text x="{x}" y="{:.0}" class="t">{title}</text>"#,
            y + 22.0
        )?;
        let mut top = y + TITLE;
        for (name, Spread { median, min, max }) in &self.bars {
            let [left, middle] = [x + LABEL, top + LINE / 2.0];
            let [to, least, last] = [median, min, max].map(|value| left + value * scale);
            let class = if name.starts_with("tollgate") {
                "us"
            } else {
                "b"
            };
            let digits = if *median >= 100.0 {
                0
            } else if *median >= 10.0 {
                1
            } else {
                3
            };
            let (label, base) = (escaped(name), middle + 4.0);
            writeln!(
                text,
                r#"<text x="{:.0}" y="{base:.0}" class="l">{label}</text>"#,
                left - 6.0
            )?;
            writeln!(
                text,
                r#"<rect x="{left:.0}" y="{:.0}" width="{:.1}" height="{:.0}" class="{class}"/>"#,
                top + 2.0,
                to - left,
                LINE - 4.0
            )?;
            writeln!(
                text,
                r#"<path d="M{least:.1} {middle:.0}H{last:.1}" class="w"/>"#
            )?;
            writeln!(
                text,
                r#"<text x="{:.1}" y="{base:.0}">{median:.digits$}</text>"#,
                last + 5.0
            )?;
            top += LINE;
        }
        Ok(())
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

fn panels(report: &Report<'_>) -> Vec<Panel> {
    let results = &report.results;
    let of = |name: &str, figure: Figure, unit: &str| {
        let workload = results.workload(name)?;
        let bars = results
            .variants
            .iter()
            .enumerate()
            .filter_map(|(number, variant)| {
                Some((
                    variant.name.clone(),
                    results.figure(workload, number, figure)?,
                ))
            });
        Some(Panel {
            title: format!("{name}: {unit}"),
            bars: bars.collect(),
        })
    };
    let relay_bulk = "relay's CPU, s/GB";
    let relay_each = "relay's CPU, µs each";
    let mut all: Vec<Panel> = [
        of(&bulk_name("to_client", 1), Figure::Relay, relay_bulk),
        of(&bulk_name("to_client", 16), Figure::Relay, relay_bulk),
        of(
            &(bulk_name("to_client", 16) + FRAGMENTS),
            Figure::Relay,
            relay_bulk,
        ),
        of(
            &(bulk_name("to_client", 16) + PACKETS),
            Figure::Relay,
            relay_bulk,
        ),
        of(
            &(bulk_name("to_client", 1) + COPIED),
            Figure::Machine,
            "whole machine, s/GB",
        ),
        of(&exchange_name("1 KiB", 64), Figure::Relay, relay_each),
        of(&exchange_name("1 KiB", 512), Figure::Relay, relay_each),
        of(&exchange_name("100 B", 512), Figure::Relay, relay_each),
        of(SHORT, Figure::Relay, relay_each),
        of(OPEN_LOOP, Figure::P99, "p99, µs"),
    ]
    .into_iter()
    .flatten()
    .collect();
    let idle = report.idle.iter().filter(|idle| idle.descriptors > 0.0);
    let idle =
        idle.filter_map(|idle| Some((idle.relay.clone(), Spread::of([idle.user / 1024.0])?)));
    all.push(Panel {
        title: "user memory per idle session, KiB".to_owned(),
        bars: idle.collect(),
    });
    let variants = results.variants;
    let named = |bar: (usize, Option<Spread>)| Some((variants[bar.0].name.clone(), bar.1?));
    let each = |figure: &dyn Fn(usize) -> Option<Spread>| -> Vec<(String, Spread)> {
        let bars = (0..variants.len()).map(|number| (number, figure(number)));
        bars.filter_map(named).collect()
    };
    if let Some(first_byte) = &report.first_byte {
        for (number, arrivals) in ARRIVALS.iter().enumerate() {
            all.push(Panel {
                title: format!(
                    "first byte over 220 ms, {} agents a second: ms",
                    arrivals.per_second
                ),
                bars: each(&|variant| first_byte.median(variant, number)),
            });
        }
    }
    if let Some(flows) = &report.flows {
        for way in Way::ALL {
            all.push(Panel {
                title: format!(
                    "one flow {} over 220 ms, our system settings: Mbit/s",
                    way.name()
                ),
                bars: each(&|variant| flows.rate(variant, true, way)),
            });
        }
    }
    all.retain(|panel| !panel.bars.is_empty());
    all
}

/// All of them in two columns.
pub(crate) fn svg(report: &Report<'_>) -> String {
    let width = LABEL + BARS + NUMBER;
    let mut heights = [0.0, 0.0];
    let mut body = String::new();
    for panel in panels(report) {
        let column = usize::from(heights[1] < heights[0]);
        let x = if column == 1 { width + GAP } else { 0.0 };
        // Writing to a String cannot fail.
        let _ = panel.write(&mut body, x, heights[column]);
        heights[column] += panel.height();
    }
    let (width, height) = (2.0 * width + GAP, f64::max(heights[0], heights[1]));
    format!(
        r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0} {height:.0}" font-family="sans-serif" font-size="11">
<style>.t{{font-size:13px;font-weight:bold}}.l{{text-anchor:end}}.b{{fill:#9aa7b5}}.us{{fill:#d9663b}}.w{{stroke:#222;stroke-width:1.5}}</style>
<rect width="100%" height="100%" fill="white"/>
{body}</svg>
"#
    )
}
