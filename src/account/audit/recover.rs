//! What a file tells of the process that wrote to it before: where its trail stands, what a kill left of its last line, and which of its sessions nobody closed.
//!
//! Files are read from their end, because they may be large and what matters is there.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use jiff::Timestamp;
use serde::Deserialize;

use super::chain::{Hash, Head, Key, LAST};
use super::record::Micros;

/// The longest line that is looked at. Ours have a few hundred bytes, and one that seals a torn line a few thousand.
pub(super) const LONGEST_LINE: usize = 1024 * 1024;

/// The longest rest of a line that is taken for one. A kill cuts a line of ours, which is shorter.
pub(super) const LONGEST_TORN: u64 = 64 * 1024;

/// Bytes read at a time.
const BLOCK: u64 = 256 * 1024;

/// How much is looked through for sessions that nobody closed: about two million records, a few seconds.
pub(super) const LOOK_BACK: u64 = 1024 * 1024 * 1024;

/// The part of a record that ties it to others.
#[derive(Debug, Deserialize)]
pub(super) struct Link<'a> {
    #[serde(default, borrow)]
    pub(super) event: Option<std::borrow::Cow<'a, str>>,
    #[serde(default, borrow)]
    pub(super) chain: Option<std::borrow::Cow<'a, str>>,
    #[serde(default, borrow)]
    pub(super) sink: Option<std::borrow::Cow<'a, str>>,
    /// The records that a start did not find.
    #[serde(default)]
    pub(super) missing_from: Option<u64>,
    #[serde(default)]
    pub(super) missing_to: Option<u64>,
    pub(super) seq: u64,
    #[serde(borrow)]
    pub(super) prev: std::borrow::Cow<'a, str>,
}

impl<'a> Link<'a> {
    /// What a line says; `None` where it is no record.
    pub(super) fn parse(line: &'a [u8]) -> Option<Self> {
        let link: Self = serde_json::from_slice(line).ok()?;
        (1..=LAST).contains(&link.seq).then_some(link)
    }

    /// The records that a start did not find, right before this one.
    pub(super) fn missing(&self) -> Option<(u64, u64)> {
        let (from, to) = (self.missing_from?, self.missing_to?);
        let fits = self.event.as_deref() == Some("started") && from <= to && to == self.seq - 1;
        fits.then_some((from, to))
    }

    pub(super) fn prev(&self) -> Option<Hash> {
        Hash::parse(&self.prev)
    }
}

/// The end of a file.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Tail {
    /// Nothing was written to it, but perhaps a part of a line.
    Empty { torn: Vec<u8> },
    /// Its last whole line is a record.
    Whole {
        head: Head,
        /// Where that line ends.
        end: u64,
        /// What is behind it.
        torn: Vec<u8>,
    },
    /// It ends with what no relay wrote, or with records that do not fit together.
    Damaged {
        /// The last record, where one is near and it fits the one before.
        head: Option<Head>,
        /// There is a record near the end, whether it fits or not.
        ours: bool,
    },
}

/// Whether a part of a line, behind which nothing was written, may be of a relay that was killed.
pub(super) fn may_be_ours(torn: &[u8]) -> bool {
    torn.iter().zip(BEGIN).all(|(one, other)| one == other)
}

/// What each record begins with.
const BEGIN: &[u8] = b"{\"time\":\"";

/// Looks at the end of a file. It is believed only where its last two records fit together under the key.
pub(super) fn tail(file: &File, key: &Key) -> io::Result<Tail> {
    let length = file.metadata()?.len();
    let mut torn = None;
    // The last record, what it says of the one before, and whether that is so.
    let mut found: Option<(Head, Option<Hash>)> = None;
    let mut fits = true;
    let mut seen = 0;
    let mut end = 0;
    lines_backwards(file, length, |at, line| {
        if torn.is_none() {
            // What is behind the last newline, perhaps nothing.
            torn = Some(line.to_vec());
            end = at;
            return ControlFlow::Continue(());
        }
        if let Some((_, prev)) = found {
            fits = prev == Some(key.hash(line));
            return ControlFlow::Break(());
        }
        seen += 1;
        let link = Link::parse(line);
        // Where a start did not find records, the one before is missing.
        let alone = link.as_ref().is_some_and(|link| link.missing().is_some());
        found = link.map(|link| {
            let head = Head {
                sequence: link.seq,
                hash: key.hash(line),
            };
            (head, link.prev())
        });
        // A damaged end is not long.
        match alone || seen == 1000 {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    })?;
    let torn = torn.unwrap_or_default();
    let too_long = torn.len() as u64 > LONGEST_TORN || length.saturating_sub(end) > LONGEST_TORN;
    Ok(match (seen, found) {
        (0, _) if !too_long => Tail::Empty { torn },
        (1, Some((head, _))) if fits && !too_long => Tail::Whole { head, end, torn },
        (_, found) => Tail::Damaged {
            head: found.map(|(head, _)| head).filter(|_| fits),
            ours: found.is_some(),
        },
    })
}

/// Gives `take` the lines before `end`, the last first, each with the place where it begins and without its newline: first what is behind the last newline, even if
/// that is nothing. Of a line longer than [`LONGEST_LINE`] the end is left out.
fn lines_backwards(
    file: &File,
    end: u64,
    mut take: impl FnMut(u64, &[u8]) -> ControlFlow<()>,
) -> io::Result<()> {
    let mut at = end;
    // The part of a line that the last block began with.
    let mut rest: Vec<u8> = Vec::new();
    while at > 0 {
        let length = at.min(BLOCK);
        at -= length;
        let mut block = vec![0; usize::try_from(length).unwrap_or(0)];
        file.read_exact_at(&mut block, at)?;
        let mut stop = block.len();
        while let Some(newline) = block[..stop].iter().rposition(|byte| *byte == b'\n') {
            let line = &block[newline + 1..stop];
            let begins = at + newline as u64 + 1;
            let flow = if rest.is_empty() {
                take(begins, line)
            } else {
                let line = [line, &rest].concat();
                rest.clear();
                take(begins, &line)
            };
            if flow.is_break() {
                return Ok(());
            }
            stop = newline;
        }
        rest.splice(..0, block[..stop].iter().copied());
        rest.truncate(LONGEST_LINE);
    }
    let _ = take(0, &rest);
    Ok(())
}

/// A session as its last record had it.
#[derive(Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(default)]
pub(super) struct LastSeen {
    pub(super) time: String,
    pub(super) session: String,
    pub(super) relay: String,
    pub(super) listener: String,
    pub(super) endpoint: String,
    pub(super) consumer: String,
    pub(super) client: String,
    pub(super) peer: String,
    pub(super) upstream: String,
    pub(super) target: String,
    pub(super) address: String,
    pub(super) bytes_to_upstream: Option<u64>,
    pub(super) bytes_to_client: Option<u64>,
    pub(super) duration_ms: Option<u64>,
    pub(super) connect_ms: Option<u64>,
}

/// What the records before this process tell.
#[derive(Debug, Default)]
pub(super) struct Before {
    /// Sessions that nobody closed, the one that was seen last first.
    pub(super) open: Vec<LastSeen>,
    /// The digest of the configuration that was in force.
    pub(super) config: Option<String>,
    /// Not everything was looked at that might tell of a session.
    pub(super) cut_short: bool,
}

#[derive(Deserialize)]
struct Digest {
    config: Option<String>,
}

/// Looks back through `files`, the last of them first and each up to its given length, for what was open in the time `window` before the last record; `None`: ever.
pub(super) fn look_back(files: &[(PathBuf, u64)], window: Option<Micros>) -> Before {
    let mut before = Before::default();
    let mut closed = HashSet::new();
    let mut oldest: Option<Micros> = None;
    let (mut sessions, mut looked) = (true, 0);
    for (path, length) in files {
        if !sessions && before.config.is_some() {
            break;
        }
        let Ok(file) = File::open(path) else {
            before.cut_short |= sessions;
            break;
        };
        let read = lines_backwards(&file, *length, |_, line| {
            looked += line.len() as u64 + 1;
            if looked > LOOK_BACK {
                before.cut_short |= sessions;
                return ControlFlow::Break(());
            }
            let Some((time, event)) = head_of(line) else {
                return ControlFlow::Continue(());
            };
            if sessions && let (Ok(time), Some(window)) = (time.parse::<Timestamp>(), window) {
                let time = time.as_microsecond();
                let oldest = *oldest.get_or_insert(time.saturating_sub(window));
                sessions = time >= oldest;
            }
            match event {
                // Whoever ended in order has closed all sessions, those of the process before included.
                "ended" => sessions = false,
                "close" if sessions => {
                    closed.extend(session_of(line).map(Box::<str>::from));
                }
                "open" | "progress" if sessions => {
                    if let Some(session) = session_of(line)
                        && closed.insert(session.into())
                        && let Ok(seen) = serde_json::from_slice(line)
                    {
                        before.open.push(seen);
                    }
                }
                "started" | "config" | "rotated" if before.config.is_none() => {
                    let digest = serde_json::from_slice::<Digest>(line);
                    before.config = digest.ok().and_then(|digest| digest.config);
                }
                _ => {}
            }
            match sessions || before.config.is_none() {
                true => ControlFlow::Continue(()),
                false => ControlFlow::Break(()),
            }
        });
        if read.is_err() {
            before.cut_short |= sessions;
        }
    }
    before
}

/// Time and event of a record of ours, without reading all of it: they are always in the same place.
fn head_of(line: &[u8]) -> Option<(&str, &str)> {
    let line = std::str::from_utf8(line).ok()?;
    let (time, rest) = line.strip_prefix("{\"time\":\"")?.split_once('"')?;
    let (event, _) = rest.strip_prefix(",\"event\":\"")?.split_once('"')?;
    Some((time, event))
}

/// The session that a record is about.
fn session_of(line: &[u8]) -> Option<&str> {
    let line = std::str::from_utf8(line).ok()?;
    let (_, rest) = line.split_once(",\"session\":\"")?;
    Some(rest.split_once('"')?.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(content: &[u8]) -> (tempfile::TempDir, PathBuf, File) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("audit.log");
        std::fs::write(&path, content).unwrap();
        let file = File::open(&path).unwrap();
        (directory, path, file)
    }

    fn lines_of(content: &[u8]) -> Vec<(u64, Vec<u8>)> {
        let (_directory, _, file) = file(content);
        let mut lines = Vec::new();
        lines_backwards(&file, content.len() as u64, |at, line| {
            lines.push((at, line.to_vec()));
            ControlFlow::Continue(())
        })
        .unwrap();
        lines
    }

    #[test]
    fn lines_are_found_from_the_end_wherever_blocks_cut_them() {
        assert_eq!(
            lines_of(b"one\ntwo\nthr"),
            [
                (8, b"thr".to_vec()),
                (4, b"two".to_vec()),
                (0, b"one".to_vec())
            ]
        );
        for length in [1, 1000, 70_000, 262_143, 262_144, 262_145] {
            let line = vec![b'x'; length];
            let mut content = Vec::new();
            for _ in 0..5 {
                content.extend_from_slice(&line);
                content.push(b'\n');
            }
            let lines = lines_of(&content);
            assert_eq!(lines.len(), 6, "{length}");
            assert!(lines[0].1.is_empty());
            for (number, (at, found)) in lines[1..].iter().enumerate() {
                assert!(found == &line, "{length}");
                assert_eq!(*at, (4 - number as u64) * (length as u64 + 1));
            }
        }
        assert_eq!(lines_of(b""), [(0, Vec::new())]);
    }

    #[test]
    fn an_end_is_whole_torn_empty_or_damaged() {
        let key = Key::none();
        let tail_of = |content: &[u8]| tail(&file(content).2, &key).unwrap();
        let line = b"{\"seq\":7,\"prev\":\"\"}";
        let head = Head {
            sequence: 7,
            hash: key.hash(line),
        };
        let with = |rest: &[u8]| [line, rest].concat();
        let torn = |torn: &[u8]| Tail::Whole {
            head,
            end: line.len() as u64 + 1,
            torn: torn.to_vec(),
        };
        assert_eq!(tail_of(&with(b"\n")), torn(b""));
        assert_eq!(tail_of(&with(b"\n{\"ti")), torn(b"{\"ti"));
        assert_eq!(tail_of(b""), Tail::Empty { torn: vec![] });
        assert_eq!(
            tail_of(b"{\"ti"),
            Tail::Empty {
                torn: b"{\"ti".to_vec()
            }
        );
        assert_eq!(
            tail_of(b"hello\n"),
            Tail::Damaged {
                head: None,
                ours: false
            }
        );
        assert_eq!(
            tail_of(&with(b"\nhello\n")),
            Tail::Damaged {
                head: Some(head),
                ours: true
            }
        );
        let zeros = vec![0; 70_000];
        let damaged = with(&[b"\n", &zeros[..]].concat());
        assert_eq!(
            tail_of(&damaged),
            Tail::Damaged {
                head: Some(head),
                ours: true
            }
        );
    }

    #[test]
    fn an_end_is_believed_only_where_its_last_two_records_fit() {
        let key = Key::new(b"a key of 16 bytes");
        let record = |seq: u64, prev: &str| format!("{{\"seq\":{seq},\"prev\":\"{prev}\"}}");
        let first = record(7, &"0".repeat(64));
        let second = record(8, &key.hash(first.as_bytes()).to_string());
        let content = format!("{first}\n{second}\n");
        let tail_of = |content: &str, key: &Key| tail(&file(content.as_bytes()).2, key).unwrap();
        assert!(matches!(tail_of(&content, &key), Tail::Whole { .. }));
        let unfit = Tail::Damaged {
            head: None,
            ours: true,
        };
        assert_eq!(tail_of(&content, &Key::none()), unfit, "another key");
        let changed = content.replace("\"seq\":7", "\"seq\":6");
        assert_eq!(tail_of(&changed, &key), unfit);
        assert_eq!(tail_of(&format!("{content}hello\n{second}\n"), &key), unfit);
        for number in [0, i64::MAX as u64 + 1, u64::MAX] {
            let none = tail_of(&format!("{}\n", record(number, "")), &key);
            assert_eq!(
                none,
                Tail::Damaged {
                    head: None,
                    ours: false
                },
                "{number}"
            );
        }
    }

    #[test]
    fn sessions_without_an_end_are_found_as_far_back_as_asked() {
        let line = |minute: u32, event: &str, session: &str| {
            format!(
                "{{\"time\":\"2026-11-21T17:{minute:02}:00.000000Z\",\"event\":\"{event}\",\"session\":\"{session}\",\"relay\":\"r\",\"bytes_to_client\":{minute}}}\n"
            )
        };
        let content = [
            line(0, "open", "old"),
            "{\"time\":\"2026-11-21T17:01:00.000000Z\",\"event\":\"started\",\"config\":\"abc\"}\n"
                .into(),
            line(20, "open", "a"),
            line(21, "open", "b"),
            line(22, "progress", "a"),
            line(23, "close", "b"),
            line(24, "open", "c"),
        ]
        .concat();
        let (_directory, path, _) = file(content.as_bytes());
        let files = [(path, content.len() as u64)];
        let names = |before: &Before| -> Vec<String> {
            before
                .open
                .iter()
                .map(|seen| seen.session.clone())
                .collect()
        };
        let before = look_back(&files, Some(10 * 60_000_000));
        assert_eq!(names(&before), ["c", "a"]);
        assert_eq!(before.open[1].bytes_to_client, Some(22));
        assert_eq!(before.config.as_deref(), Some("abc"));
        assert!(!before.cut_short);
        assert_eq!(names(&look_back(&files, None)), ["c", "a", "old"]);
    }

    #[test]
    fn an_orderly_end_leaves_nothing_open() {
        let content = "{\"time\":\"2026-11-21T17:01:00.000000Z\",\"event\":\"open\",\"session\":\"a\"}\n\
                       {\"time\":\"2026-11-21T17:01:00.000000Z\",\"event\":\"ended\"}\n";
        let (_directory, path, _) = file(content.as_bytes());
        let before = look_back(&[(path, content.len() as u64)], None);
        assert!(before.open.is_empty());
    }
}
