//! Prometheus's text format, read.

use std::collections::BTreeMap;

/// What `/metrics` said at one moment.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    series: Vec<Series>,
}

#[derive(Clone, Debug)]
struct Series {
    name: String,
    labels: BTreeMap<String, String>,
    value: f64,
}

impl Metrics {
    /// Reads the text.
    ///
    /// # Panics
    /// When it is not in the format, with the line.
    #[track_caller]
    pub fn parse(text: &str) -> Self {
        let lines = text
            .lines()
            .filter(|line| !line.is_empty() && !line.starts_with('#'));
        let series =
            lines.map(|line| series(line).unwrap_or_else(|| panic!("no metric: {line:?}")));
        Self {
            series: series.collect(),
        }
    }

    /// The value of the series with that name and exactly these labels, in any order.
    pub fn value(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let mut matching = self.matching(name, labels);
        matching
            .find(|series| series.labels.len() == labels.len())
            .map(|series| series.value)
    }

    /// The sum of all series of that name which have these labels, and perhaps others; 0 without any.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> u64 {
        let sum: f64 = self.matching(name, labels).map(|series| series.value).sum();
        sum as u64
    }

    /// Whether there is any series of that name.
    pub fn has(&self, name: &str) -> bool {
        self.matching(name, &[]).next().is_some()
    }

    /// The values that a label has among the series of a name.
    pub fn label_values(&self, name: &str, label: &str) -> Vec<String> {
        let series = self.matching(name, &[]);
        let mut values: Vec<_> = series
            .filter_map(|series| series.labels.get(label).cloned())
            .collect();
        values.sort();
        values.dedup();
        values
    }

    /// How many series there are in all.
    pub fn len(&self) -> usize {
        self.series.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.series.is_empty()
    }

    fn matching(&self, name: &str, labels: &[(&str, &str)]) -> impl Iterator<Item = &Series> {
        self.series.iter().filter(move |series| {
            let fits = |(key, value): &(&str, &str)| {
                series.labels.get(*key).is_some_and(|have| have == value)
            };
            series.name == name && labels.iter().all(fits)
        })
    }
}

fn series(line: &str) -> Option<Series> {
    let at = line.find(['{', ' '])?;
    let (name, mut rest) = line.split_at(at);
    let mut labels = BTreeMap::new();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside;
        loop {
            rest = rest.trim_start_matches(',');
            if let Some(after) = rest.strip_prefix('}') {
                rest = after;
                break;
            }
            let (key, value) = rest.split_once("=\"")?;
            let (value, after) = unquote(value)?;
            labels.insert(key.to_owned(), value);
            rest = after;
        }
    }
    let value = rest.split_whitespace().next()?.parse().ok()?;
    let name = name.to_owned();
    Some(Series {
        name,
        labels,
        value,
    })
}

/// Reads up to the closing quote; returns the value and what follows.
fn unquote(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => match characters.next()?.1 {
                'n' => value.push('\n'),
                other => value.push(other),
            },
            other => value.push(other),
        }
    }
    None
}
