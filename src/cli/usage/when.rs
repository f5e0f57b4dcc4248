//! Moments as they are written on the command line.

use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{Span, SpanRelativeTo, Timestamp};

/// A moment: RFC 3339, a date (its midnight in UTC), or how long ago.
pub(super) fn parse(text: &str, now: Timestamp) -> Result<Timestamp, String> {
    if let Ok(moment) = text.parse::<Timestamp>() {
        return Ok(moment);
    }
    // A time of day without an offset would be taken for the date that it begins with.
    if !text.contains([':', 'T'])
        && let Ok(date) = text.parse::<Date>()
    {
        let midnight = date.to_zoned(TimeZone::UTC);
        return midnight
            .map(|midnight| midnight.timestamp())
            .map_err(|error| error.to_string());
    }
    let ago = text
        .parse::<Span>()
        .and_then(|span| span.to_duration(SpanRelativeTo::days_are_24_hours()));
    match ago {
        Ok(ago) if ago.is_negative() => Err("write how long ago without a minus: \"7d\"".to_owned()),
        Ok(ago) => now.checked_sub(ago).map_err(|_| "that is too long ago".to_owned()),
        Err(_) => Err(
            "write a time with its offset, \"2026-11-21T17:00:00Z\", a date, \"2026-11-21\" (in UTC), or how long ago, \"7d\" or \"24h\""
                .to_owned(),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: &str = "2026-11-21T17:30:00Z";

    fn read(text: &str) -> Result<String, String> {
        parse(text, NOW.parse().expect("a time")).map(|moment| moment.to_string())
    }

    #[test]
    fn a_moment_may_be_written_in_three_ways() {
        for (text, moment) in [
            ("2026-11-01T00:00:00Z", "2026-11-01T00:00:00Z"),
            ("2026-11-01T00:00:00+01:00", "2026-10-31T23:00:00Z"),
            ("2026-11-01", "2026-11-01T00:00:00Z"),
            ("7d", "2026-11-14T17:30:00Z"),
            ("24h", "2026-11-20T17:30:00Z"),
            ("1d 12h", "2026-11-20T05:30:00Z"),
            ("2 weeks", "2026-11-07T17:30:00Z"),
        ] {
            assert_eq!(read(text).as_deref(), Ok(moment), "{text}");
        }
    }

    #[test]
    fn what_leaves_the_moment_open_is_refused_with_what_does_not() {
        for text in [
            "yesterday",
            "",
            "2026-11-01T00:00:00",
            "1 month",
            "2026-13-01",
            "7",
        ] {
            let said = read(text).expect_err(text);
            assert!(said.contains("\"7d\""), "{text}: {said}");
        }
        assert!(
            read("-7d")
                .expect_err("negative")
                .contains("without a minus")
        );
        assert!(read("999999 weeks").is_err());
    }
}
