//! Values as they may be written in the file.

use std::fmt::Display;
use std::path::Path;
use std::time::Duration;

use crate::config::{Bound, Peers, age_text, duration_text, size_text};

/// In quotes. What would move a cursor, or cannot be seen, is written by its number, as TOML has it.
pub(super) fn text(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            // Rust's own escape says which characters cannot be seen.
            c if c != '\'' && c.escape_debug().len() > 1 => {
                quoted.push_str(&format!("\\U{:08X}", u32::from(c)));
            }
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

pub(super) fn path(path: &Path) -> String {
    text(&path.to_string_lossy())
}

pub(super) fn shown<T: Display>(value: &T) -> String {
    text(&value.to_string())
}

pub(super) fn time(time: Duration) -> String {
    text(&duration_text(time))
}

pub(super) fn age(age: Duration) -> String {
    text(&age_text(age))
}

pub(super) fn size(bytes: usize) -> String {
    text(&size_text(bytes as u64))
}

/// `"off"` for `None`.
pub(super) fn or_off<T>(value: Option<T>, text_of: impl FnOnce(T) -> String) -> String {
    value.map_or_else(|| text("off"), text_of)
}

pub(super) fn bound(bound: Bound) -> String {
    match bound {
        Bound::Off => text("off"),
        Bound::After(after) => time(after),
    }
}

pub(super) fn list<T>(items: &[T], text_of: impl Fn(&T) -> String) -> String {
    let texts: Vec<String> = items.iter().map(text_of).collect();
    format!("[{}]", texts.join(", "))
}

/// The keys that are there.
pub(super) fn table<const N: usize>(keys: [(&str, Option<String>); N]) -> String {
    let keys = keys
        .into_iter()
        .filter_map(|(key, value)| Some(format!("{key} = {}", value?)));
    let keys: Vec<String> = keys.collect();
    format!("{{ {} }}", keys.join(", "))
}

/// `None` for anyone, which has no word.
pub(super) fn peers(peers: &Peers) -> Option<String> {
    match peers {
        Peers::Anyone => None,
        Peers::Within(networks) => Some(list(networks, shown)),
    }
}
