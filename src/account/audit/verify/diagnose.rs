//! What was done to a trail where it does not fit together, told from the records around.

use std::io;

use super::lines::Entry;
use super::{Finding, Kind, Walk};
use crate::account::audit::sink::is_aside;

impl Walk {
    /// What was done where `at` does not fit what was before.
    pub(super) fn diagnose(&mut self, at: Entry) -> io::Result<Finding> {
        let ahead: Vec<Entry> = self.lines.look()?.iter().cloned().collect();
        let last = self.before.back().cloned();
        if self.no_pair_fits(last.as_ref(), &at, &ahead) {
            let what = format!(
                "no record fits the next{}",
                match self.key_hint().as_str() {
                    "" =>
                        ": the key is not the one that the trail was made with, or this is no trail",
                    hint => hint,
                }
            );
            return Ok(self.finding(&at, at.sequence, Kind::WrongKey, what));
        }
        let Some(last) = last else {
            return Ok(self.first_is_wrong(&at, &ahead));
        };
        let expected = last.sequence.unwrap_or_default() + 1;
        let goes_on = ahead.iter().position(|entry| entry.follows(&last));
        let Some(sequence) = at.sequence else {
            let aside = is_aside(self.file(&at));
            let (kind, what) = match goes_on {
                _ if aside => (
                    Kind::Added,
                    "no relay wrote this line: the relay that found it set the file aside"
                        .to_owned(),
                ),
                Some(_) => (Kind::Added, "a line that is no record was added".to_owned()),
                None => (
                    Kind::Changed,
                    format!("this is no record; record {expected} should be here and was changed"),
                ),
            };
            return Ok(self.finding(&at, Some(expected), kind, what));
        };
        if at.begins() {
            let what = format!("a trail begins anew, where record {expected} should be");
            return Ok(self.finding(&at, Some(expected), Kind::BegunAnew, what));
        }
        // The same line as the one before, or one that was there earlier.
        if let Some(same) = self.before.iter().find(|entry| entry.hash == at.hash) {
            let what = format!(
                "record {sequence} is here again: it stands in line {} already",
                same.number
            );
            return Ok(self.finding(&at, Some(sequence), Kind::Added, what));
        }
        // It goes on from a record before the last: what is between was added.
        let from = self.before.iter().position(|entry| at.follows(entry));
        if let Some(added) = from.and_then(|from| self.before.get(from + 1)) {
            let what = format!(
                "a record was added that calls itself record {sequence}; the real one stands behind it"
            );
            return Ok(self.finding(added, added.sequence, Kind::Added, what));
        }
        if let Some(goes_on) = goes_on {
            return Ok(self.displaced(&at, expected, goes_on, &ahead));
        }
        if at.prev == Some(last.hash) {
            let what = format!("record {expected} was changed: it calls itself record {sequence}");
            return Ok(self.finding(&at, Some(expected), Kind::Changed, what));
        }
        if sequence > expected {
            // A number that was changed leaves the rest of its record's neighbours in their places.
            let next = ahead.first();
            if next.is_some_and(|next| next.sequence == Some(expected + 1)) {
                let what =
                    format!("record {expected} was changed: it calls itself record {sequence}");
                return Ok(self.finding(&at, Some(expected), Kind::Changed, what));
            }
            let what = match sequence - expected {
                1 => format!("record {expected} was removed before record {sequence}"),
                _ => format!(
                    "records {expected} to {} were removed before record {sequence}",
                    sequence - 1
                ),
            };
            return Ok(self.finding(&at, Some(expected), Kind::Removed, what));
        }
        if sequence < expected {
            let what = format!(
                "record {expected} should be here, and this calls itself record {sequence}: it was changed, or the file belongs elsewhere"
            );
            return Ok(self.finding(&at, Some(expected), Kind::Changed, what));
        }
        Ok(self.one_of_two(&last, &at, &ahead))
    }

    /// Two records whose numbers follow each other and that do not fit: one of them was changed.
    fn one_of_two(&self, last: &Entry, at: &Entry, ahead: &[Entry]) -> Finding {
        let is_anchored = |entry: &Entry| {
            let hashes = entry
                .sequence
                .and_then(|sequence| self.anchored.get(&sequence));
            hashes.is_some_and(|hashes| hashes.contains(&entry.hash))
        };
        // An anchor that fitted was taken out.
        let last_is_whole = self.fitting == last.sequence;
        let at_is_whole = ahead.first().is_some_and(|next| next.follows(at)) || is_anchored(at);
        let sequence = |entry: &Entry| entry.sequence.unwrap_or_default();
        if at_is_whole && !last_is_whole {
            let number = sequence(last);
            let what = format!(
                "record {number} was changed: record {} has another hash of it",
                sequence(at)
            );
            return self.finding(last, Some(number), Kind::Changed, what);
        }
        if ahead.is_empty() && !last_is_whole {
            let number = sequence(last);
            let what = format!(
                "record {number} or record {} was changed: they do not fit",
                sequence(at)
            );
            return self.finding(last, Some(number), Kind::Changed, what);
        }
        let number = sequence(at);
        let what = format!(
            "record {number} was changed: it has another hash of the record before, and the next has another of it"
        );
        self.finding(at, Some(number), Kind::Changed, what)
    }

    /// The record that should be here stands further on: what is here was added, or moved, or the other was.
    fn displaced(&self, at: &Entry, expected: u64, goes_on: usize, ahead: &[Entry]) -> Finding {
        let real = &ahead[goes_on];
        let sequence = at.sequence.unwrap_or_default();
        // A record that the real trail knows, or that was in its place: moved. Otherwise nobody but who added it knows it.
        let known = ahead.iter().any(|entry| entry.follows(at));
        let again = ahead.iter().any(|entry| entry.hash == at.hash);
        if known && !again {
            let what = format!(
                "record {sequence} stands where record {expected} should be, which is in {}, line {}: their order was changed",
                self.file(real).display(),
                real.number
            );
            return self.finding(at, Some(sequence.min(expected)), Kind::Reordered, what);
        }
        let what = match again {
            true => format!(
                "record {sequence} was added before record {expected}: it stands further on as well"
            ),
            false => format!(
                "a record was added before record {expected}; it calls itself record {sequence}"
            ),
        };
        self.finding(at, Some(expected), Kind::Added, what)
    }

    fn first_is_wrong(&self, at: &Entry, ahead: &[Entry]) -> Finding {
        let begins = ahead.first().is_some_and(Entry::begins);
        match (begins, at.sequence) {
            (true, _) => self.finding(
                at,
                Some(1),
                Kind::Added,
                "a line was added before the first record".to_owned(),
            ),
            (false, Some(sequence)) if at.goes_on() => {
                let what = format!(
                    "what was before record {sequence} was removed, or it was changed: no file begins like that"
                );
                self.finding(at, Some(sequence), Kind::Removed, what)
            }
            (false, Some(sequence)) => {
                let what = format!(
                    "record {sequence} was changed: what it says of the record before cannot be"
                );
                self.finding(at, Some(sequence), Kind::Changed, what)
            }
            (false, None) => {
                let next = ahead.first().and_then(|next| next.sequence);
                let sequence = next.and_then(|next| next.checked_sub(1));
                self.finding(
                    at,
                    sequence,
                    Kind::Changed,
                    "the first line is no record".to_owned(),
                )
            }
        }
    }

    /// Nothing fitted so far, and nothing of what follows does: that is not one record's fault.
    fn no_pair_fits(&self, last: Option<&Entry>, at: &Entry, ahead: &[Entry]) -> bool {
        let all: Vec<&Entry> = last.into_iter().chain([at]).chain(ahead).collect();
        let in_row = |pair: &&[&Entry]| {
            pair[1].sequence.is_some()
                && pair[1].sequence
                    == pair[0]
                        .sequence
                        .and_then(|sequence| sequence.checked_add(1))
        };
        self.report.records <= 1
            && all.windows(2).filter(in_row).count() >= 2
            && !all.windows(2).any(|pair| pair[1].follows(pair[0]))
    }

    /// What the trail says of its key, where that is not how it is read.
    pub(super) fn key_hint(&self) -> String {
        let with_key = self.lines.key.algorithm() == "hmac-sha256";
        match (self.keyed, with_key) {
            (Some(true), false) => ": it was made with a key, give it with --key-file".to_owned(),
            (Some(false), true) => ": it was made without a key, leave --key-file out".to_owned(),
            _ => String::new(),
        }
    }
}
