//! Mistakes as they are found, key by key. A value in error counts as not written, so that the rest of the file is judged too:
//! the result is thrown away anyway.

use std::ops::{Range, RangeInclusive};
use std::time::Duration;

use toml::Spanned;

use crate::config::Peers;
use crate::config::addresses;
use crate::config::error::Mistake;
use crate::config::file::{Key, Raw, unknown_key_help};
use crate::config::values::{self, Wrong, duration_text};

/// The most that any table of ours may be told to hold; far beyond what memory allows, and no typo.
const MOST: i64 = 10_000_000;

/// One of two values that are compared.
pub(super) struct Side<'a, T> {
    pub(super) key: &'a str,
    pub(super) value: &'a Key,
    pub(super) default: T,
    pub(super) parse: fn(&Raw) -> Result<T, Wrong>,
}

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
        if self.lacking(key, value, place, example) {
            return None;
        }
        self.list(key, value, parse)
    }

    /// Whether a list that must hold something does not, or is not there.
    pub(super) fn lacking(
        &mut self,
        key: &str,
        value: &Key,
        place: &Range<usize>,
        example: &str,
    ) -> bool {
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
        }
        value.is_none() || empty
    }

    /// A list whose items are judged one by one; `None` when nothing was written, or no list.
    pub(super) fn list<T>(
        &mut self,
        key: &str,
        value: &Key,
        parse: fn(&Raw) -> Result<T, Wrong>,
    ) -> Option<Vec<Spanned<T>>> {
        let judged = self
            .items(key, value)?
            .iter()
            .filter_map(|item| Some(Spanned::new(item.span(), self.judge(key, item, parse)?)));
        Some(judged.collect())
    }

    /// The items of a list, none of them judged; `None` when nothing was written, or no list.
    pub(super) fn items<'a>(&mut self, key: &str, value: &'a Key) -> Option<&'a [Spanned<Raw>]> {
        let value = value.as_ref()?;
        let help = match value.get_ref() {
            Raw::List(items) => return Some(items),
            Raw::Text(text) => format!("write it in brackets: [{text:?}]"),
            Raw::Table(_) => "write it in brackets: [{ … }]".to_owned(),
            _ => "write text in quotes within brackets: [\"…\", \"…\"]".to_owned(),
        };
        self.mistake(key, "this must be a list", &help, Some(value.span()));
        None
    }

    /// The values of a table within a table, in the order of `known`, and where it stands; `None` when it is no table.
    pub(super) fn open<const N: usize>(
        &mut self,
        at: &str,
        table: &Spanned<Raw>,
        example: &str,
        known: [&str; N],
    ) -> Option<[Key; N]> {
        let Raw::Table(entries) = table.get_ref() else {
            self.mistake(
                at,
                "a single value where a table belongs",
                &format!("write {example}"),
                Some(table.span()),
            );
            return None;
        };
        let mut values = [const { None }; N];
        for (key, value) in entries {
            match known.iter().position(|known| known == key.get_ref()) {
                Some(place) => values[place] = Some(value.clone()),
                None => self.mistake(
                    &format!("{at}.{}", key.get_ref().escape_debug()),
                    "there is no such key here",
                    &unknown_key_help(key.get_ref(), &known),
                    Some(key.span()),
                ),
            }
        }
        Some(values)
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

    /// A whole number within bounds.
    pub(super) fn number(
        &mut self,
        key: &str,
        value: &Key,
        bounds: RangeInclusive<u16>,
        default: u32,
    ) -> u32 {
        self.value(key, value, |raw| values::number(raw, bounds))
            .unwrap_or(default)
    }

    /// A key that says nothing where it was written, because of what is said elsewhere.
    pub(super) fn useless(&mut self, key: &str, value: &Key, because: &str, help: &str) {
        if let Some(value) = value {
            let problem = format!("means nothing here: {because}");
            self.mistake(key, &problem, help, Some(value.span()));
        }
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

    /// Two values of which the first may not exceed the second. A default never makes a mistake of what is written: it gives way.
    pub(super) fn pair<T: Copy + PartialOrd>(
        &mut self,
        low: Side<'_, T>,
        high: Side<'_, T>,
        text: fn(T) -> String,
    ) -> [T; 2] {
        let low_is = self.value(low.key, low.value, low.parse);
        let high_is = self.value(high.key, high.value, high.parse);
        let (Some(low_is), Some(high_is)) = (low_is, high_is) else {
            let lesser = |a: T, b: T| if b < a { b } else { a };
            let greater = |a: T, b: T| if b > a { b } else { a };
            return match (low_is, high_is) {
                (Some(low_is), _) => [low_is, greater(high.default, low_is)],
                (_, Some(high_is)) => [lesser(low.default, high_is), high_is],
                _ => [low.default, high.default],
            };
        };
        if low_is > high_is {
            let last = |key: &str| key.rsplit('.').next().unwrap_or(key).to_owned();
            let (less, more) = (last(low.key), last(high.key));
            let problem = format!(
                "{more} = {} is less than {less} = {}",
                text(high_is),
                text(low_is)
            );
            let help = format!("write {more} = {} or more", text(low_is));
            self.mistake(
                high.key,
                &problem,
                &help,
                high.value.as_ref().map(Spanned::span),
            );
            if let (Some(mistake), Some(low)) = (self.mistakes.last_mut(), low.value) {
                mistake.other = Some((low.span(), "this may not be the greater".to_owned()));
            }
        }
        [low_is, high_is]
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
