//! Mistakes as they are found, key by key. A value in error counts as not written, so that the rest of the file is judged too:
//! the result is thrown away anyway.

use std::ops::Range;
use std::time::Duration;

use toml::Spanned;

use crate::config::Peers;
use crate::config::addresses;
use crate::config::error::Mistake;
use crate::config::file::{Key, Raw};
use crate::config::values::{self, Wrong, duration_text};

/// The most that any table of ours may be told to hold; far beyond what memory allows, and no typo.
const MOST: i64 = 10_000_000;

/// The mistakes found so far.
#[derive(Default)]
pub(super) struct Findings {
    pub(super) mistakes: Vec<Mistake>,
}

impl Findings {
    /// What was written under a key; `None` when nothing was, or something wrong.
    pub(super) fn value<T>(
        &mut self,
        key: &str,
        value: &Key,
        parse: impl FnOnce(&Raw) -> Result<T, Wrong>,
    ) -> Option<T> {
        self.judge(key, value.as_ref()?, parse)
    }

    fn judge<T>(
        &mut self,
        key: &str,
        value: &Spanned<Raw>,
        parse: impl FnOnce(&Raw) -> Result<T, Wrong>,
    ) -> Option<T> {
        parse(value.get_ref())
            .map_err(|wrong| self.mistake(key, &wrong.problem, &wrong.help, Some(value.span())))
            .ok()
    }

    /// A key that must be there; `place` is the table without it.
    pub(super) fn required<T>(
        &mut self,
        key: &str,
        value: &Key,
        place: &Range<usize>,
        example: &str,
        parse: fn(&Raw) -> Result<T, Wrong>,
    ) -> Option<T> {
        if value.is_none() {
            self.mistake(
                key,
                "is missing",
                &format!("add {example}"),
                Some(place.clone()),
            );
        }
        self.value(key, value, parse)
    }

    /// A list that must be there and hold something.
    pub(super) fn required_list<T>(
        &mut self,
        key: &str,
        value: &Key,
        place: &Range<usize>,
        example: &str,
        parse: fn(&Raw) -> Result<T, Wrong>,
    ) -> Option<Vec<Spanned<T>>> {
        let empty = value
            .as_ref()
            .is_some_and(|value| matches!(value.get_ref(), Raw::List(items) if items.is_empty()));
        if value.is_none() || empty {
            let span = value.as_ref().map_or_else(|| place.clone(), Spanned::span);
            self.mistake(
                key,
                if empty { "is empty" } else { "is missing" },
                &format!("write {example}"),
                Some(span),
            );
            return None;
        }
        self.list(key, value, parse)
    }

    /// A list whose items are judged one by one; `None` when nothing was written, or no list.
    pub(super) fn list<T>(
        &mut self,
        key: &str,
        value: &Key,
        parse: fn(&Raw) -> Result<T, Wrong>,
    ) -> Option<Vec<Spanned<T>>> {
        let value = value.as_ref()?;
        let Raw::List(items) = value.get_ref() else {
            let help = match value.get_ref() {
                Raw::Text(text) => format!("write it in brackets: [{text:?}]"),
                _ => "write text in quotes within brackets: [\"…\", \"…\"]".to_owned(),
            };
            self.mistake(key, "this must be a list", &help, Some(value.span()));
            return None;
        };
        let judged = items
            .iter()
            .filter_map(|item| Some(Spanned::new(item.span(), self.judge(key, item, parse)?)));
        Some(judged.collect())
    }

    /// One of a few words, the first of which is the default.
    pub(super) fn word<T: Copy>(&mut self, key: &str, value: &Key, words: &[(&str, T)]) -> T {
        self.value(key, value, |raw| values::word(raw, words))
            .unwrap_or(words[0].1)
    }

    /// A duration above zero.
    pub(super) fn time(&mut self, key: &str, value: &Key, default: Duration) -> Duration {
        self.value(key, value, values::time).unwrap_or(default)
    }

    /// How many there may be, at least one.
    pub(super) fn count(&mut self, key: &str, value: &Key, default: usize) -> usize {
        self.value(key, value, |raw| values::integer(raw, 1..=MOST))
            .unwrap_or(default)
    }

    pub(super) fn mistake(
        &mut self,
        key: &str,
        problem: &str,
        help: &str,
        span: Option<Range<usize>>,
    ) {
        self.mistakes.push(Mistake {
            key: key.to_owned(),
            problem: problem.to_owned(),
            help: help.to_owned(),
            span,
            other: None,
        });
    }

    /// Two durations of which the first may not exceed the second.
    pub(super) fn ordered(
        &mut self,
        less: (&str, &Key, Duration),
        more: (&str, &Key, Duration),
    ) -> [Duration; 2] {
        let low = self.value(less.0, less.1, values::time);
        let high = self.value(more.0, more.1, values::time);
        let pair = [low.unwrap_or(less.2), high.unwrap_or(more.2)];
        // A value in error was said already, and its default is not what was meant.
        let comparable = low.is_some() == less.1.is_some() && high.is_some() == more.1.is_some();
        let written = if high.is_some() { more } else { less };
        if comparable && pair[0] > pair[1] {
            let said = |(key, _, _): (&str, &Key, Duration), value, given: bool| {
                let default = if given { "" } else { " (the default)" };
                format!(
                    "{} = \"{}\"{default}",
                    key.trim_start_matches("upstream."),
                    duration_text(value)
                )
            };
            let problem = format!(
                "{} is longer than {}",
                said(less, pair[0], low.is_some()),
                said(more, pair[1], high.is_some())
            );
            let help = format!(
                "write {} = \"{}\" or more",
                more.0.trim_start_matches("upstream."),
                duration_text(pair[0])
            );
            self.mistake(
                written.0,
                &problem,
                &help,
                written.1.as_ref().map(Spanned::span),
            );
        }
        pair
    }

    /// A list of networks; an empty one would trust nobody.
    pub(super) fn peers(&mut self, key: &str, value: &Key) -> Option<Peers> {
        let networks = self.list(key, value, addresses::network)?;
        if trusts_nobody(value) {
            let help =
                "leave the key out to let anyone connect, or list networks: [\"10.20.0.0/16\"]";
            self.mistake(
                key,
                "an empty list would let nobody connect",
                help,
                value.as_ref().map(Spanned::span),
            );
        }
        Some(Peers::Within(strip(networks)))
    }
}

pub(super) fn strip<T>(items: Vec<Spanned<T>>) -> Vec<T> {
    items.into_iter().map(Spanned::into_inner).collect()
}

/// Whether a list of peers is missing or empty.
pub(super) fn trusts_nobody(peers: &Key) -> bool {
    peers
        .as_ref()
        .is_none_or(|peers| matches!(peers.get_ref(), Raw::List(items) if items.is_empty()))
}
