//! One value at a time: from what was written to what is meant, or to what should have been written instead.

use std::ops::RangeInclusive;
use std::time::Duration;

use bytesize::ByteSize;
use jiff::{SignedDuration, Span, SpanRelativeTo};

use super::Bound;
use super::file::Raw;

/// What is wrong with one value.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Wrong {
    /// What is wrong with it.
    pub(super) problem: String,
    /// What to write instead.
    pub(super) help: String,
}

pub(super) type Parsed<T> = Result<T, Wrong>;

pub(super) fn wrong<T>(problem: impl Into<String>, help: impl Into<String>) -> Parsed<T> {
    Err(Wrong {
        problem: problem.into(),
        help: help.into(),
    })
}

impl Raw {
    /// The text, or a mistake that says what belongs here.
    pub(super) fn text(&self, help: &str) -> Parsed<&str> {
        let kind = match self {
            Raw::Text(text) => return Ok(text),
            Raw::Integer(number) => &format!("the number {number}"),
            Raw::Flag(value) => &format!("{value}"),
            Raw::List(_) => "a list",
            Raw::Table(_) => "a table",
            Raw::Other(kind) => *kind,
        };
        wrong(format!("{kind} where text in quotes belongs"), help)
    }
}

/// The candidate that was probably meant. The threshold is clap's, so that flags and keys are guessed alike.
pub(super) fn nearest<'a>(
    word: &str,
    candidates: impl Iterator<Item = &'a str>,
) -> Option<&'a str> {
    candidates
        .map(|candidate| (strsim::jaro(word, candidate), candidate))
        .filter(|(likeness, _)| *likeness > 0.7)
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, candidate)| candidate)
}

/// One of a few words.
pub(super) fn word<T: Copy>(raw: &Raw, words: &[(&str, T)]) -> Parsed<T> {
    let quoted: Vec<String> = words.iter().map(|(word, _)| format!("{word:?}")).collect();
    let list = quoted.join(", ");
    let text = raw.text(&format!("write one of {list}"))?;
    if let Some((_, value)) = words.iter().find(|(word, _)| *word == text) {
        return Ok(*value);
    }
    match nearest(text, words.iter().map(|(word, _)| *word)) {
        Some(near) => wrong(
            format!("{text:?} is not one of {list}"),
            format!("did you mean {near:?}?"),
        ),
        None => wrong(
            format!("{text:?} is not known here"),
            format!("write one of {list}"),
        ),
    }
}

/// A whole number within bounds.
pub(super) fn integer(raw: &Raw, bounds: RangeInclusive<i64>) -> Parsed<usize> {
    let help = format!(
        "write a whole number from {} to {}, without quotes",
        bounds.start(),
        bounds.end()
    );
    match raw {
        Raw::Integer(number) if bounds.contains(number) => {
            Ok(usize::try_from(*number).expect("every bound starts at 0 or above"))
        }
        Raw::Integer(number) => wrong(format!("{number} is out of bounds"), help),
        Raw::Text(text) => wrong(format!("{text:?} is text where a number belongs"), help),
        Raw::List(_) => wrong("a list where a number belongs", help),
        Raw::Table(_) => wrong("a table where a number belongs", help),
        Raw::Flag(value) => wrong(format!("{value} where a whole number belongs"), help),
        Raw::Other(kind) => wrong(format!("{kind} where a whole number belongs"), help),
    }
}

/// `true` or `false`.
pub(super) fn flag(raw: &Raw) -> Parsed<bool> {
    const HELP: &str = "write true or false, without quotes";
    match raw {
        Raw::Flag(value) => Ok(*value),
        Raw::Text(text) => match text.as_str() {
            "true" | "yes" | "on" => wrong(format!("{text:?} is text"), "write true"),
            "false" | "no" | "off" => wrong(format!("{text:?} is text"), "write false"),
            _ => wrong(format!("{text:?} is neither true nor false"), HELP),
        },
        _ => wrong("this is neither true nor false", HELP),
    }
}

/// The longest duration taken, ten years: whatever is added to a clock stays far from its end.
const LONGEST: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

const DURATION_HELP: &str =
    "write a number and a unit (ms, s, m or h), for instance \"30s\", \"5m\" or \"1h 30m\"";

/// A duration of zero or more, in whole milliseconds or longer.
pub(super) fn duration(raw: &Raw) -> Parsed<Duration> {
    let duration = exact_duration(raw)?;
    if !duration.is_zero() && duration < Duration::from_millis(1) {
        return wrong(
            format!("{duration:?} is shorter than a millisecond, the finest tollgate measures"),
            "write \"1ms\" or more",
        );
    }
    Ok(duration)
}

fn exact_duration(raw: &Raw) -> Parsed<Duration> {
    if let Raw::Integer(number) = raw {
        return wrong(
            format!("the number {number} has no unit"),
            format!("write \"{number}s\" if seconds were meant"),
        );
    }
    let text = raw.text(DURATION_HELP)?;
    let Ok(signed) = text.parse::<SignedDuration>() else {
        if text.parse::<Span>().is_ok() {
            return wrong(
                format!("{text:?} counts days or more, whose length varies"),
                "write hours: \"24h\" is a day, \"168h\" a week",
            );
        }
        return wrong(format!("{text:?} is not a duration"), DURATION_HELP);
    };
    let Ok(duration) = Duration::try_from(signed) else {
        return wrong(
            format!("{text:?} is negative"),
            "write a duration above zero",
        );
    };
    if duration > LONGEST {
        return wrong(
            format!("{text:?} is longer than ten years"),
            "write a shorter one",
        );
    }
    Ok(duration)
}

/// A duration within bounds, in which days and weeks may stand too: they are 24 hours and seven times that, since the books count in UTC.
pub(super) fn age_within(raw: &Raw, bounds: RangeInclusive<Duration>) -> Parsed<Duration> {
    let help = format!(
        "write a duration from {:?} to {:?}",
        age_text(*bounds.start()),
        age_text(*bounds.end())
    );
    if let Raw::Integer(number) = raw {
        return wrong(
            format!("the number {number} has no unit"),
            format!("write \"{number}d\" if days were meant"),
        );
    }
    let text = raw.text(&help)?;
    let days = SpanRelativeTo::days_are_24_hours();
    let age = text.parse::<Span>().and_then(|span| span.to_duration(days));
    match age.map(Duration::try_from) {
        Ok(Ok(age)) if bounds.contains(&age) => Ok(age),
        Ok(_) => wrong(format!("{text:?} is out of bounds"), help),
        Err(_) => wrong(
            format!("{text:?} is not a duration of a known length"),
            format!("{help}; months and years vary, \"400d\" do not"),
        ),
    }
}

/// How long to look for work before sleeping, or `"off"`: beyond a millisecond it would only burn a core.
pub(super) fn spin(raw: &Raw) -> Parsed<Option<Duration>> {
    off_or(raw, |raw| match exact_duration(raw)? {
        time if (Duration::from_micros(1)..=Duration::from_millis(1)).contains(&time) => Ok(time),
        time => wrong(
            format!("{time:?} is no time to spin"),
            "write one from \"1us\" to \"1ms\", for instance \"60us\"",
        ),
    })
}

/// A duration above zero.
pub(super) fn time(raw: &Raw) -> Parsed<Duration> {
    match duration(raw)? {
        Duration::ZERO => wrong(
            "zero would end everything at once",
            "write a duration above zero, for instance \"5s\"",
        ),
        time => Ok(time),
    }
}

/// A duration within bounds.
pub(super) fn time_within(raw: &Raw, bounds: RangeInclusive<Duration>) -> Parsed<Duration> {
    let time = duration(raw)?;
    if bounds.contains(&time) {
        return Ok(time);
    }
    wrong(
        format!("{} is out of bounds", duration_text(time)),
        format!(
            "write a duration from {:?} to {:?}",
            duration_text(*bounds.start()),
            duration_text(*bounds.end())
        ),
    )
}

/// A whole number within bounds that fit.
pub(super) fn number(raw: &Raw, bounds: RangeInclusive<u16>) -> Parsed<u32> {
    let bounds = i64::from(*bounds.start())..=i64::from(*bounds.end());
    integer(raw, bounds).map(|number| u32::try_from(number).expect("the upper bound fits"))
}

/// A duration above zero, or `"off"`.
pub(super) fn bound(raw: &Raw) -> Parsed<Bound> {
    off_or(raw, |raw| match duration(raw)? {
        Duration::ZERO => wrong(
            "zero would end every session at once",
            "write \"off\" to switch it off, or a duration above zero",
        ),
        time => Ok(time),
    })
    .map(|time| time.map_or(Bound::Off, Bound::After))
}

/// `None` for `"off"`, else what `parse` makes of it.
pub(super) fn off_or<T>(raw: &Raw, parse: impl FnOnce(&Raw) -> Parsed<T>) -> Parsed<Option<T>> {
    word_or(raw, "off", parse)
}

/// `None` for `word`, else what `parse` makes of it; its advice then mentions the word.
pub(super) fn word_or<T>(
    raw: &Raw,
    word: &str,
    parse: impl FnOnce(&Raw) -> Parsed<T>,
) -> Parsed<Option<T>> {
    if *raw == Raw::Text(word.to_owned()) {
        return Ok(None);
    }
    parse(raw).map(Some).map_err(|Wrong { problem, mut help }| {
        if !help.contains(word) {
            help = format!("{help}; or {word:?}");
        }
        Wrong { problem, help }
    })
}

/// Whole seconds as the kernel takes them for keepalive (tcp(7): at most 32767).
pub(super) fn keepalive_time(raw: &Raw) -> Parsed<Duration> {
    let time = duration(raw)?;
    if time.subsec_nanos() != 0 || !(1..=32767).contains(&time.as_secs()) {
        let problem = format!(
            "{} is not taken by the kernel for keepalive",
            duration_text(time)
        );
        return wrong(problem, "write whole seconds from \"1s\" to \"32767s\"");
    }
    Ok(time)
}

/// Whole milliseconds as the kernel takes them for TCP_USER_TIMEOUT (an `int`).
pub(super) fn user_timeout(raw: &Raw) -> Parsed<Bound> {
    let bound = bound(raw)?;
    if let Bound::After(time) = bound
        && (time.subsec_nanos() % 1_000_000 != 0 || i32::try_from(time.as_millis()).is_err())
    {
        let problem = format!(
            "{} is not taken by the kernel as a user timeout",
            duration_text(time)
        );
        return wrong(problem, "write whole milliseconds, at most \"596h\"");
    }
    Ok(bound)
}

/// A duration as a person writes it: `1h 30m`.
#[must_use]
pub fn duration_text(duration: Duration) -> String {
    SignedDuration::try_from(duration)
        .map_or_else(|_| format!("{duration:?}"), |signed| format!("{signed:#}"))
}

/// As [`duration_text`], in days where it is some of them.
#[must_use]
pub fn age_text(age: Duration) -> String {
    const DAY: u64 = 24 * 3600;
    let whole = age.subsec_nanos() == 0 && age.as_secs().is_multiple_of(DAY);
    match age.as_secs() / DAY {
        days @ 1.. if whole => format!("{days}d"),
        _ => duration_text(age),
    }
}

/// A number of bytes as it may be written: exact, in the largest unit that fits.
#[must_use]
pub fn size_text(bytes: u64) -> String {
    let units = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    let unit = units
        .into_iter()
        .find(|(size, _)| bytes >= *size && bytes.is_multiple_of(*size));
    let (size, name) = unit.unwrap_or((1, "B"));
    format!("{}{name}", bytes / size)
}

/// A number of bytes within bounds.
pub(super) fn size(raw: &Raw, bounds: RangeInclusive<u64>) -> Parsed<usize> {
    let help = format!(
        "write a size from \"{}\" to \"{}\"",
        size_text(*bounds.start()),
        size_text(*bounds.end())
    );
    if let Raw::Integer(number) = raw {
        return wrong(
            format!("the number {number} has no unit"),
            format!("write \"{number}B\" if bytes were meant"),
        );
    }
    let text = raw.text(&help)?;
    match text.parse::<ByteSize>() {
        Ok(size) if bounds.contains(&size.as_u64()) => {
            Ok(usize::try_from(size.as_u64()).expect("the upper bound fits"))
        }
        Ok(_) => wrong(format!("{text:?} is out of bounds"), help),
        Err(_) => wrong(format!("{text:?} is not a size"), help),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::config) fn text(text: &str) -> Raw {
        Raw::Text(text.to_owned())
    }

    pub(in crate::config) fn refused<T: std::fmt::Debug>(result: Parsed<T>) -> String {
        let Wrong { problem, help } = result.expect_err("must be refused");
        format!("{problem}; {help}")
    }

    #[test]
    fn durations_are_read_as_people_write_them() {
        for (written, seconds) in [
            ("5m", 300),
            ("1h 30m", 5400),
            ("1h30m", 5400),
            ("90 seconds", 90),
            ("0s", 0),
        ] {
            assert_eq!(
                duration(&text(written)),
                Ok(Duration::from_secs(seconds)),
                "{written}"
            );
        }
        assert_eq!(duration(&text("1.5s")), Ok(Duration::from_millis(1500)));
    }

    #[test]
    fn a_duration_without_a_unit_is_answered_with_one() {
        assert!(refused(duration(&Raw::Integer(300))).contains("\"300s\""));
        assert!(refused(duration(&text("300"))).contains("unit"));
    }

    #[test]
    fn days_negatives_and_trifles_are_no_durations() {
        assert!(refused(duration(&text("2d"))).contains("\"24h\""));
        assert!(refused(duration(&text("1 month"))).contains("hours"));
        assert!(refused(duration(&text("-5m"))).contains("negative"));
        assert!(refused(duration(&text("1ns"))).contains("millisecond"));
        assert!(refused(duration(&text("99999999h"))).contains("ten years"));
        assert!(refused(duration(&text("soon"))).contains("not a duration"));
    }

    #[test]
    fn zero_is_no_bound_but_off_is() {
        assert!(refused(bound(&text("0s"))).contains("\"off\""));
        assert_eq!(bound(&text("off")), Ok(Bound::Off));
        assert!(refused(bound(&text("fife minutes"))).contains("or \"off\""));
        assert!(refused(time(&text("0s"))).contains("above zero"));
    }

    #[test]
    fn ages_may_be_written_in_days() {
        let bounds = Duration::from_secs(3600)..=Duration::from_secs(3650 * 86400);
        let age = |written: &str| age_within(&text(written), bounds.clone());
        assert_eq!(age("400d"), Ok(Duration::from_secs(400 * 86400)));
        assert_eq!(age("2 weeks"), Ok(Duration::from_secs(14 * 86400)));
        assert_eq!(age("1d 12h"), Ok(Duration::from_secs(36 * 3600)));
        assert!(refused(age("1 year")).contains("\"400d\""));
        assert!(refused(age("30m")).contains("\"1h\" to \"3650d\""));
        assert!(refused(age("-1d")).contains("out of bounds"));
        assert!(refused(age_within(&Raw::Integer(7), bounds.clone())).contains("\"7d\""));
        assert_eq!(age_text(Duration::from_secs(36 * 3600)), "36h");
        assert_eq!(age_text(Duration::from_secs(0)), "0s");
    }

    #[test]
    fn keepalive_times_are_what_the_kernel_takes() {
        assert_eq!(
            keepalive_time(&text("32767s")),
            Ok(Duration::from_secs(32767))
        );
        for written in ["500ms", "1.5s", "32768s", "0s"] {
            assert!(
                refused(keepalive_time(&text(written))).contains("whole seconds"),
                "{written}"
            );
        }
        assert!(user_timeout(&text("1500ms")).is_ok());
        assert!(refused(user_timeout(&text("1500.5ms"))).contains("whole milliseconds"));
        assert!(refused(user_timeout(&text("600h"))).contains("596h"));
        assert!(user_timeout(&text("596h")).is_ok());
    }

    #[test]
    fn sizes_have_units_and_bounds() {
        assert_eq!(size(&text("4KiB"), 16..=65551), Ok(4096));
        assert_eq!(size(&text("65551B"), 16..=65551), Ok(65551));
        assert!(refused(size(&text("65552B"), 16..=65551)).contains("\"65551B\""));
        assert!(refused(size(&text("four"), 16..=65551)).contains("\"16B\" to \"65551B\""));
        assert!(refused(size(&text("1KiB"), 131_072..=1 << 30)).contains("\"128KiB\" to \"1GiB\""));
        assert!(refused(size(&Raw::Integer(4096), 16..=65551)).contains("\"4096B\""));
    }

    #[test]
    fn a_word_gets_the_nearest_one() {
        let words = [("adaptive", 1), ("copy", 2)];
        assert_eq!(word(&text("copy"), &words), Ok(2));
        assert!(refused(word(&text("adaptiv"), &words)).contains("did you mean \"adaptive\"?"));
        assert!(refused(word(&Raw::Flag(true), &words)).contains("\"adaptive\", \"copy\""));
    }
}
