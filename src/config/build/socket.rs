//! `socket = { … }` of a listener or an upstream.

use std::ops::RangeInclusive;
use std::sync::Arc;

use super::Builder;
use crate::config::file::{Key, Raw};
use crate::config::values::{self, Parsed, wrong};
use crate::config::{SocketOptions, addresses};
use crate::leg;

/// What a buffer of a socket may be told to be: below, the kernel's own least is in the way of a segment; above, it is a typo.
const BUFFERS: RangeInclusive<u64> = 8 * 1024..=1024 * 1024 * 1024;

/// What may be kept unsent.
const UNSENT: RangeInclusive<u64> = 4 * 1024..=1024 * 1024 * 1024;

impl Builder {
    /// `at` is the table: `listener.socket` or `upstream.socket`.
    pub(super) fn socket(&mut self, at: &str, table: &Key) -> SocketOptions {
        let example = "socket = { preset = \"wan\" }";
        let names = [
            "preset",
            "congestion",
            "send_buffer",
            "receive_buffer",
            "notsent_lowat",
            "source",
        ];
        let Some([preset, congestion, send, receive, unsent, source]) = table
            .as_ref()
            .and_then(|table| self.found.open(at, table, example, names))
        else {
            return SocketOptions::default();
        };
        let key = |name: &str| format!("{at}.{name}");
        let wan = self
            .found
            .value(&key("preset"), &preset, |raw| {
                values::word(raw, &[("wan", true)])
            })
            .unwrap_or(false);
        let buffer = |raw: &Raw| values::word_or(raw, "auto", |raw| values::size(raw, BUFFERS));
        let source = if at.starts_with("listener") {
            self.found.useless(
                &key("source"),
                &source,
                "a client chose the address that it is answered from, one of those in bind",
                "write it in socket of the upstream",
            );
            None
        } else {
            self.found.value(&key("source"), &source, addresses::source)
        };
        let unsent = self.found.value(&key("notsent_lowat"), &unsent, |raw| {
            values::off_or(raw, |raw| values::size(raw, UNSENT))
        });
        let congestion = self
            .found
            .value(&key("congestion"), &congestion, congestion_control);
        let preset = if wan {
            leg::wan()
        } else {
            SocketOptions::default()
        };
        SocketOptions {
            congestion: congestion.or(preset.congestion),
            send_buffer: self
                .found
                .value(&key("send_buffer"), &send, buffer)
                .unwrap_or(preset.send_buffer),
            receive_buffer: self
                .found
                .value(&key("receive_buffer"), &receive, buffer)
                .unwrap_or(preset.receive_buffer),
            notsent_lowat: unsent.unwrap_or(preset.notsent_lowat),
            source,
            wan: preset.wan,
        }
    }
}

/// The name of a congestion control, as the kernel takes it: 15 bytes (TCP_CA_NAME_MAX of Linux, with the zero behind).
fn congestion_control(raw: &Raw) -> Parsed<Arc<str>> {
    const HELP: &str = "write a name from /proc/sys/net/ipv4/tcp_available_congestion_control, for instance \"bbr\" or \"cubic\"";
    let text = raw.text(HELP)?;
    let fits = (1..=15).contains(&text.len())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte));
    if fits {
        Ok(text.into())
    } else {
        wrong(format!("{text:?} can be no congestion control"), HELP)
    }
}
