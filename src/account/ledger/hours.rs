//! Hours of the books: counted from 1970 in UTC, so that neither a time zone nor a change of one makes an hour twice.

use std::fmt;

use jiff::{Timestamp, tz::TimeZone};

/// An hour, as the number of hours since 1970-01-01T00:00:00Z.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hour(pub i64);

const SECONDS: i64 = 3600;

impl Hour {
    /// The hour that contains `time`.
    #[must_use]
    pub fn of(time: Timestamp) -> Self {
        Self(time.as_second().div_euclid(SECONDS))
    }

    /// The first hour that begins at `time` or later.
    #[must_use]
    pub fn from(time: Timestamp) -> Self {
        let hour = Self::of(time);
        if hour.start() < time {
            hour.next()
        } else {
            hour
        }
    }

    /// The one after it.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }

    /// Its first moment.
    #[must_use]
    pub fn start(self) -> Timestamp {
        let seconds = self.0.saturating_mul(SECONDS);
        let bounded = seconds.clamp(
            Timestamp::MIN.as_second() + SECONDS,
            Timestamp::MAX.as_second(),
        );
        Timestamp::from_second(bounded).unwrap_or_default()
    }

    /// As in names of files: `20261121T17Z`.
    #[must_use]
    pub fn compact(self) -> String {
        self.format("%Y%m%dT%HZ")
    }

    /// Its day: `2026-11-21`.
    #[must_use]
    pub fn day(self) -> String {
        self.format("%Y-%m-%d")
    }

    /// Its month: `2026-11`.
    #[must_use]
    pub fn month(self) -> String {
        self.format("%Y-%m")
    }

    fn format(self, how: &str) -> String {
        let zoned = self.start().to_zoned(TimeZone::UTC);
        zoned.strftime(how).to_string()
    }
}

/// `2026-11-21T17:00:00Z`, as in the column `period`.
impl fmt::Display for Hour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.format("%Y-%m-%dT%H:00:00Z"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_hour_is_that_of_utc_and_says_so() {
        let time: Timestamp = "2026-11-21T19:59:59.9+02:00".parse().unwrap();
        let hour = Hour::of(time);
        assert_eq!(hour.to_string(), "2026-11-21T17:00:00Z");
        assert_eq!(hour.compact(), "20261121T17Z");
        assert_eq!(
            (hour.day(), hour.month()),
            ("2026-11-21".into(), "2026-11".into())
        );
        assert_eq!(Hour::of(hour.start()), hour);
        assert_eq!(hour.next().to_string(), "2026-11-21T18:00:00Z");
    }

    #[test]
    fn an_hour_that_has_begun_is_not_one_that_begins_later() {
        let time: Timestamp = "2026-11-21T17:00:00.001Z".parse().unwrap();
        assert_eq!(Hour::from(time), Hour::of(time).next());
        assert_eq!(Hour::from(Hour::of(time).start()), Hour::of(time));
    }

    #[test]
    fn a_clock_gone_mad_has_an_hour_all_the_same() {
        for time in [Timestamp::MIN, Timestamp::MAX, Timestamp::UNIX_EPOCH] {
            assert!(!Hour::of(time).to_string().is_empty());
        }
    }
}
