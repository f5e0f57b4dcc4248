//! Lines of JSON, written by hand into one buffer: a record takes a microsecond, and every string from outside is escaped.

use std::io::Write;
use std::net::SocketAddr;

use jiff::Timestamp;

use super::chain::Head;
use super::record::{Leg, Micros, Record, RefusedRecord, SessionRecord};
use crate::account::{Direction, Event};

/// What all lines of a process have in common.
#[derive(Debug)]
pub(super) struct Style {
    /// `"relay":"…"`, ready to be copied.
    relay: Vec<u8>,
    /// The process's part of session ids.
    process: [u8; 16],
    clock: Clock,
}

impl Style {
    pub(super) fn new(relay_id: &str, process: u64) -> Self {
        let mut relay = Vec::new();
        string(&mut relay, relay_id);
        let mut digits = [0; 16];
        digits.copy_from_slice(format!("{process:016x}").as_bytes());
        Self {
            relay,
            process: digits,
            clock: Clock::default(),
        }
    }

    /// Begins a line behind whatever is in `buffer`.
    pub(super) fn line<'a>(
        &mut self,
        buffer: &'a mut Vec<u8>,
        event: Event,
        time: Micros,
    ) -> Line<'a> {
        buffer.extend_from_slice(b"{\"time\":\"");
        buffer.extend_from_slice(self.clock.text(time));
        buffer.extend_from_slice(b"\",\"event\":\"");
        buffer.extend_from_slice(event.name().as_bytes());
        buffer.push(b'"');
        Line { buffer }
    }

    pub(super) fn relay(&self, line: &mut Line<'_>) {
        line.key("relay");
        line.buffer.extend_from_slice(&self.relay);
    }

    /// The fields of a record up to `seq`.
    pub(super) fn record(&mut self, buffer: &mut Vec<u8>, record: &Record) {
        match record {
            Record::Session(session) => self.session(buffer, session),
            Record::Refused(refused) => self.refused(buffer, refused),
        }
    }

    fn session(&mut self, buffer: &mut Vec<u8>, record: &SessionRecord) {
        let mut line = self.line(buffer, record.event, record.time);
        line.key("session");
        line.buffer.push(b'"');
        line.buffer.extend_from_slice(&self.process);
        // Fails for no buffer in memory, here as below.
        let _ = write!(line.buffer, "-{:x}-{:x}\"", record.worker, record.number);
        self.relay(&mut line);
        let facts = &record.facts;
        let key = record.own.as_deref().unwrap_or(record.account.key());
        line.text("listener", &key.listener);
        line.text("endpoint", &key.endpoint);
        line.some_text("consumer", &key.consumer);
        line.address("client", facts.client);
        line.address("peer", facts.peer);
        line.text("upstream", &key.upstream);
        line.some_text("target", facts.target.as_deref().unwrap_or_default());
        line.address("address", facts.address);
        if let Some(bytes) = facts.bytes {
            line.number(
                "bytes_to_upstream",
                Some(bytes[Direction::ToUpstream as usize]),
            );
            line.number("bytes_to_client", Some(bytes[Direction::ToClient as usize]));
        }
        line.number("duration_ms", record.duration_ms);
        line.number("connect_ms", record.connect_ms.map(u64::from));
        if let Some(reason) = record.reason {
            line.text("reason", reason.name());
        }
        let [client, upstream] = &facts.legs;
        line.leg("client_leg", client.as_ref());
        line.leg("upstream_leg", upstream.as_ref());
    }

    fn refused(&mut self, buffer: &mut Vec<u8>, record: &RefusedRecord) {
        let refused = &record.refused;
        let mut line = self.line(buffer, Event::Refused, record.time);
        self.relay(&mut line);
        line.text("listener", &refused.listener);
        line.some_text("endpoint", refused.endpoint.as_deref().unwrap_or_default());
        line.some_text("consumer", refused.consumer.as_deref().unwrap_or_default());
        line.address("client", refused.client);
        line.address("peer", Some(refused.peer));
        line.some_text("upstream", refused.upstream.as_deref().unwrap_or_default());
        line.text("reason", refused.reason);
    }
}

/// A line that is being written. [`Line::end`] makes it a record.
#[derive(Debug)]
pub(super) struct Line<'a> {
    buffer: &'a mut Vec<u8>,
}

impl<'a> Line<'a> {
    /// A line that was begun before.
    pub(super) fn go_on(buffer: &'a mut Vec<u8>) -> Self {
        Self { buffer }
    }
}

impl Line<'_> {
    fn key(&mut self, key: &str) {
        self.buffer.extend_from_slice(b",\"");
        self.buffer.extend_from_slice(key.as_bytes());
        self.buffer.extend_from_slice(b"\":");
    }

    pub(super) fn text(&mut self, key: &str, value: &str) {
        self.key(key);
        string(self.buffer, value);
    }

    pub(super) fn some_text(&mut self, key: &str, value: &str) {
        if !value.is_empty() {
            self.text(key, value);
        }
    }

    pub(super) fn number(&mut self, key: &str, value: Option<u64>) {
        if let Some(value) = value {
            self.key(key);
            decimal(self.buffer, value);
        }
    }

    /// A value that is JSON already.
    pub(super) fn raw(&mut self, key: &str, json: &[u8]) {
        self.key(key);
        self.buffer.extend_from_slice(json);
    }

    fn address(&mut self, key: &str, value: Option<SocketAddr>) {
        if let Some(address) = value {
            self.key(key);
            let _ = write!(self.buffer, "\"{address}\"");
        }
    }

    fn leg(&mut self, key: &str, leg: Option<&Leg>) {
        let Some(leg) = leg else { return };
        self.key(key);
        let numbers = [
            ("rtt_us", leg.rtt_us.map(u64::from)),
            ("min_rtt_us", leg.min_rtt_us.map(u64::from)),
            ("retransmits", Some(leg.retransmits.into())),
            ("delivery_rate", leg.delivery_rate),
            ("bytes_acked", leg.bytes_acked),
            ("bytes_received", leg.bytes_received),
        ];
        let begin = self.buffer.len();
        for (key, value) in numbers {
            self.number(key, value);
        }
        // There is at least one, and the comma before it becomes the bracket.
        self.buffer[begin] = b'{';
        self.buffer.push(b'}');
    }

    /// Ends the line: its number, and the hash of the line before.
    pub(super) fn end(mut self, sequence: u64, before: &Head) {
        self.number("seq", Some(sequence));
        self.key("prev");
        self.buffer.push(b'"');
        self.buffer.extend_from_slice(&before.hash.hex());
        self.buffer.extend_from_slice(b"\"}\n");
    }
}

/// A JSON string (RFC 8259, section 7). Control characters are escaped, DEL and those above ASCII too where they could move a terminal's
/// cursor or turn a line's direction: a record is read by people as well.
pub(super) fn string(buffer: &mut Vec<u8>, text: &str) {
    buffer.push(b'"');
    let plain = |byte: &u8| matches!(byte, b' '..=b'~') && !matches!(byte, b'"' | b'\\');
    if text.as_bytes().iter().all(plain) {
        buffer.extend_from_slice(text.as_bytes());
    } else {
        for unit in text.chars() {
            match unit {
                '"' | '\\' => buffer.extend_from_slice(&[b'\\', unit as u8]),
                ' '..='~' => buffer.push(unit as u8),
                _ => {
                    for half in unit.encode_utf16(&mut [0; 2]) {
                        let _ = write!(buffer, "\\u{half:04x}");
                    }
                }
            }
        }
    }
    buffer.push(b'"');
}

fn decimal(buffer: &mut Vec<u8>, mut value: u64) {
    let mut digits = [0; 20];
    let mut begin = digits.len();
    loop {
        begin -= 1;
        digits[begin] = b'0' + (value % 10) as u8;
        value /= 10;
        if value == 0 {
            break;
        }
    }
    buffer.extend_from_slice(&digits[begin..]);
}

/// Times as RFC 3339 in UTC with microseconds. The calendar is asked once a second.
#[derive(Debug)]
struct Clock {
    second: i64,
    text: [u8; 27],
}

impl Default for Clock {
    fn default() -> Self {
        Self {
            second: 0,
            text: *b"1970-01-01T00:00:00.000000Z",
        }
    }
}

impl Clock {
    fn text(&mut self, time: Micros) -> &[u8] {
        let (second, mut micros) = (time.div_euclid(1_000_000), time.rem_euclid(1_000_000));
        if second != self.second
            && let Ok(stamp) = Timestamp::from_second(second)
            && let text = stamp.strftime("%Y-%m-%dT%H:%M:%S").to_string()
            && text.len() == 19
        {
            self.second = second;
            self.text[..19].copy_from_slice(text.as_bytes());
        }
        for place in (20..26).rev() {
            self.text[place] = b'0' + (micros % 10) as u8;
            micros /= 10;
        }
        &self.text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_string_is_read_back_as_it_was_and_stays_on_its_line() {
        for text in [
            "",
            "vpce-08d2",
            "a\nb\r\n\t\0",
            "\"}\\",
            "{\"event\":\"close\"}",
            "naïve \u{202e} \u{7f} \u{2028} 💡",
        ] {
            let mut buffer = Vec::new();
            string(&mut buffer, text);
            let printable = buffer.iter().all(|byte| (b' '..=b'~').contains(byte));
            assert!(printable, "{buffer:?}");
            let read: String = serde_json::from_slice(&buffer).unwrap();
            assert_eq!(read, text);
        }
    }

    #[test]
    fn times_are_rfc_3339_with_microseconds() {
        let mut clock = Clock::default();
        let mut text = |time| String::from_utf8(clock.text(time).to_vec()).unwrap();
        assert_eq!(text(1_795_280_400_000_001), "2026-11-21T17:00:00.000001Z");
        assert_eq!(text(1_795_280_400_999_999), "2026-11-21T17:00:00.999999Z");
        assert_eq!(text(1_795_280_401_000_000), "2026-11-21T17:00:01.000000Z");
        assert_eq!(text(0), "1970-01-01T00:00:00.000000Z");
        assert_eq!(text(951_782_400_000_000), "2000-02-29T00:00:00.000000Z");
    }

    #[test]
    fn numbers_are_written_in_whole() {
        for value in [0, 7, 10, 1_000_000, u64::MAX] {
            let mut buffer = Vec::new();
            decimal(&mut buffer, value);
            assert_eq!(String::from_utf8(buffer).unwrap(), value.to_string());
        }
    }
}
