//! One value at a time: from what was written to what is meant, or to what should have been written instead.

use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use bytesize::ByteSize;
use ipnet::IpNet;
use jiff::SignedDuration;

use super::file::Raw;
use super::{Bound, Host, Target};

/// What is wrong with one value.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Wrong {
    /// What is wrong with it.
    pub(super) problem: String,
    /// What to write instead.
    pub(super) help: String,
}

type Parsed<T> = Result<T, Wrong>;

fn wrong<T>(problem: impl Into<String>, help: impl Into<String>) -> Parsed<T> {
    Err(Wrong {
        problem: problem.into(),
        help: help.into(),
    })
}

impl Raw {
    /// The text, or a mistake that says what belongs here.
    fn text(&self, help: &str) -> Parsed<&str> {
        let kind = match self {
            Raw::Text(text) => return Ok(text),
            Raw::Integer(number) => &format!("the number {number}"),
            Raw::List(_) => "a list",
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
        Raw::Other(kind) => wrong(format!("{kind} where a whole number belongs"), help),
    }
}

/// The longest duration taken, ten years: whatever is added to a clock stays far from its end.
const LONGEST: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

const DURATION_HELP: &str =
    "write a number and a unit (ms, s, m or h), for instance \"30s\", \"5m\" or \"1h 30m\"";

/// A duration of zero or more.
pub(super) fn duration(raw: &Raw) -> Parsed<Duration> {
    if let Raw::Integer(number) = raw {
        return wrong(
            format!("the number {number} has no unit"),
            format!("write \"{number}s\" if seconds were meant"),
        );
    }
    let text = raw.text(DURATION_HELP)?;
    let Ok(signed) = text.parse::<SignedDuration>() else {
        if text.parse::<jiff::Span>().is_ok() {
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
    if !duration.is_zero() && duration < Duration::from_millis(1) {
        return wrong(
            format!("{text:?} is shorter than a millisecond, the finest tollgate measures"),
            "write \"1ms\" or more",
        );
    }
    Ok(duration)
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

/// A number of bytes within bounds.
pub(super) fn size(raw: &Raw, bounds: RangeInclusive<u64>) -> Parsed<usize> {
    let help = format!(
        "write a size from \"{}B\" to \"{}B\", for instance \"4KiB\"",
        bounds.start(),
        bounds.end()
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

/// An address and port to listen on.
pub(super) fn bind(raw: &Raw) -> Parsed<SocketAddr> {
    const HELP: &str = "write an address and a port, for instance \"0.0.0.0:8443\", or \"[::]:8443\" for IPv6 and IPv4 at once";
    let text = raw.text(HELP)?;
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Ok(canonical(address));
    }
    if text.parse::<IpAddr>().is_ok() {
        return wrong(format!("{text:?} has no port"), HELP);
    }
    // What other programs take for "every address".
    let port = text
        .strip_prefix("*:")
        .or(text.strip_prefix(':'))
        .unwrap_or(text);
    if port.parse::<u16>().is_ok() {
        return wrong(
            format!("{text:?} has no address"),
            format!("write \"0.0.0.0:{port}\", or \"[::]:{port}\" for IPv6 and IPv4 at once"),
        );
    }
    wrong(format!("{text:?} is not an address with a port"), HELP)
}

/// A name server: an address, its port 53 unless written.
pub(super) fn name_server(raw: &Raw) -> Parsed<SocketAddr> {
    const HELP: &str = "write an address, with a port if it is not 53: \"10.20.0.2\", \"10.20.0.2:5353\" or \"[fd00:ec2::253]:53\"";
    let text = raw.text(HELP)?;
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(SocketAddr::new(address, 53));
    }
    text.parse().or_else(|_| {
        wrong(
            format!("{text:?} is not the address of a name server"),
            HELP,
        )
    })
}

/// A network, or one address.
pub(super) fn network(raw: &Raw) -> Parsed<IpNet> {
    const HELP: &str =
        "write networks or addresses, for instance \"10.20.0.0/16\" or \"10.20.1.7\"";
    let text = raw.text(HELP)?;
    let Some(network) = text
        .parse::<IpNet>()
        .ok()
        .or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from))
    else {
        return wrong(format!("{text:?} is not a network"), HELP);
    };
    if network.trunc() != network {
        // Nobody can tell whether the address or the length is the typo, and this is what decides who is believed.
        let address = network.addr();
        let problem = format!("{text:?} has bits set beyond its /{}", network.prefix_len());
        return wrong(
            problem,
            format!(
                "write \"{}\" for the network, \"{address}\" for the one address",
                network.trunc()
            ),
        );
    }
    if let IpAddr::V6(address) = network.addr()
        && let Some(address) = address.to_ipv4_mapped()
    {
        // Peers are made IPv4 before they are compared, so this would never match.
        let length = network.prefix_len().saturating_sub(96);
        return wrong(
            format!("{text:?} is IPv4 in IPv6 form"),
            format!("write \"{address}/{length}\""),
        );
    }
    Ok(network)
}

/// The name of a listener or an upstream, as it appears in metrics and books.
pub(super) fn name(raw: &Raw) -> Parsed<Arc<str>> {
    const HELP: &str = "write 1 to 64 letters, digits, \"_\", \".\" or \"-\"";
    let text = raw.text(HELP)?;
    let fits = (1..=64).contains(&text.len())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte));
    if fits {
        Ok(text.into())
    } else {
        wrong(format!("{text:?} cannot be a name"), HELP)
    }
}

/// A `host:port` of an upstream.
pub(super) fn target(raw: &Raw) -> Parsed<Target> {
    const HELP: &str = "write \"HOST:PORT\", for instance \"cp.us-east-1.example.internal:443\", \"10.30.0.5:443\" or \"[fd00::5]:443\"";
    let text = raw.text(HELP)?;
    if let Some((scheme, rest)) = text.split_once("://") {
        let host = rest.split('/').next().unwrap_or(rest);
        let port = if host.contains(':') { "" } else { ":443" };
        return wrong(
            format!("{text:?} is a URL; TCP is forwarded, not {scheme}"),
            format!("write \"{host}{port}\""),
        );
    }
    if text.parse::<std::net::Ipv6Addr>().is_ok() {
        return wrong(
            format!("{text:?} does not tell address from port"),
            format!("write \"[{text}]:443\", with the right port"),
        );
    }
    let Some((host, port)) = text
        .rsplit_once(':')
        .filter(|(_, port)| !port.contains(']'))
    else {
        return wrong(
            format!("{text:?} has no port"),
            format!("write \"{text}:443\", with the right port"),
        );
    };
    let Some(port) = port.parse::<u16>().ok().filter(|port| *port != 0) else {
        return wrong(
            format!("{port:?} is not a port"),
            "write a port from 1 to 65535",
        );
    };
    let bare = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'));
    let host = match bare.unwrap_or(host).parse::<IpAddr>() {
        Ok(IpAddr::V6(_)) if bare.is_none() => {
            return wrong(
                format!("{text:?} does not tell address from port"),
                format!("write \"[{host}]:{port}\""),
            );
        }
        Ok(address) => Host::Literal(address.to_canonical()),
        Err(_) => match host_name_fault(host) {
            None => Host::Name(host.into()),
            Some(fault) => return wrong(format!("{host:?} is not a host name: {fault}"), HELP),
        },
    };
    Ok(Target { host, port })
}

/// What keeps `host` from being a host name (RFC 1123 section 2.1, and `_` as it is used within VPCs).
fn host_name_fault(host: &str) -> Option<&'static str> {
    let name = host.strip_suffix('.').unwrap_or(host);
    let label_fault = |label: &str| {
        if label.is_empty() {
            Some("two dots, or one too many, leave an empty part")
        } else if label.len() > 63 {
            Some("a part between dots is longer than 63 bytes")
        } else if label.starts_with('-') || label.ends_with('-') {
            Some("a part begins or ends with \"-\"")
        } else if !label
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
        {
            Some("only letters, digits, \"-\", \"_\" and dots may stand in one")
        } else {
            None
        }
    };
    if name.is_empty() {
        return Some("it is empty");
    }
    if name.len() > 253 {
        return Some("it is longer than 253 bytes");
    }
    if name
        .rsplit('.')
        .next()
        .is_some_and(|last| last.bytes().all(|byte| byte.is_ascii_digit()))
    {
        return Some("it looks like an address, and is none");
    }
    name.split('.').find_map(label_fault)
}

/// `::ffff:a.b.c.d` made IPv4, as everywhere in this program.
fn canonical(address: SocketAddr) -> SocketAddr {
    match address.ip().to_canonical() {
        ip if ip != address.ip() => SocketAddr::new(ip, address.port()),
        _ => address, // keeps the scope of fe80::…%2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Raw {
        Raw::Text(text.to_owned())
    }

    fn refused<T: std::fmt::Debug>(result: Parsed<T>) -> String {
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
        assert!(refused(size(&text("four"), 16..=65551)).contains("\"4KiB\""));
        assert!(refused(size(&Raw::Integer(4096), 16..=65551)).contains("\"4096B\""));
    }

    #[test]
    fn a_bind_address_needs_both_parts() {
        assert_eq!(
            bind(&text("[::]:8443")).map(|a| a.to_string()),
            Ok("[::]:8443".to_owned())
        );
        assert_eq!(
            bind(&text("[::ffff:10.0.0.1]:80")).map(|a| a.to_string()),
            Ok("10.0.0.1:80".to_owned())
        );
        for written in ["8443", ":8443", "*:8443"] {
            assert!(
                refused(bind(&text(written))).contains("\"0.0.0.0:8443\""),
                "{written}"
            );
        }
        assert!(refused(bind(&text("10.0.0.1"))).contains("no port"));
        assert!(refused(bind(&text("localhost:80"))).contains("not an address"));
    }

    #[test]
    fn a_name_server_has_port_53_unless_written() {
        for (written, address) in [
            ("10.0.0.2", "10.0.0.2:53"),
            ("10.0.0.2:5353", "10.0.0.2:5353"),
            ("fd00::2", "[fd00::2]:53"),
        ] {
            assert_eq!(
                name_server(&text(written)).map(|a| a.to_string()),
                Ok(address.to_owned())
            );
        }
        assert!(refused(name_server(&text("dns.example"))).contains("10.20.0.2"));
    }

    #[test]
    fn a_plain_address_is_a_network_of_one() {
        assert_eq!(
            network(&text("10.0.0.1")).map(|n| n.to_string()),
            Ok("10.0.0.1/32".to_owned())
        );
        assert_eq!(
            network(&text("fd00::1")).map(|n| n.to_string()),
            Ok("fd00::1/128".to_owned())
        );
    }

    #[test]
    fn a_network_that_cannot_be_meant_is_refused() {
        assert!(refused(network(&text("10.20.0.7/16"))).contains("\"10.20.0.0/16\""));
        assert!(refused(network(&text("::ffff:10.0.0.0/104"))).contains("\"10.0.0.0/8\""));
        assert!(refused(network(&text("10.0.0.0/33"))).contains("not a network"));
    }

    #[test]
    fn names_are_short_and_plain() {
        assert!(name(&text("ingest-1.eu_west")).is_ok());
        for written in ["", "two words", "naïve", &"x".repeat(65)] {
            assert!(
                refused(name(&text(written))).contains("1 to 64"),
                "{written}"
            );
        }
    }

    #[test]
    fn targets_are_names_or_literals_with_a_port() {
        let named = Target {
            host: Host::Name("cp.example".into()),
            port: 443,
        };
        assert_eq!(target(&text("cp.example:443")), Ok(named));
        for (written, literal) in [
            ("[::1]:443", "::1"),
            ("10.0.0.1:443", "10.0.0.1"),
            ("[::ffff:10.0.0.1]:443", "10.0.0.1"),
        ] {
            let literal = literal.parse().expect("an address");
            assert_eq!(
                target(&text(written)),
                Ok(Target {
                    host: Host::Literal(literal),
                    port: 443
                }),
                "{written}"
            );
        }
        assert!(
            target(&text("cp.example.:443")).is_ok(),
            "a trailing dot is a rooted name"
        );
        assert!(target(&text("my_host:443")).is_ok());
    }

    #[test]
    fn a_wrong_target_is_answered_with_the_right_one() {
        for (written, answer) in [
            ("cp.example", "\"cp.example:443\""),
            ("https://cp.example/path", "\"cp.example:443\""),
            ("https://cp.example:8443", "\"cp.example:8443\""),
            ("::1", "\"[::1]:443\""),
            ("fd00::5:443", "\"[fd00::5:443]:443\""),
            ("cp.example:0", "1 to 65535"),
            ("cp.example:https", "1 to 65535"),
            ("10.0.0.300:443", "looks like an address"),
            ("-cp.example:443", "begins or ends"),
            ("cp..example:443", "empty"),
            ("cp example:443", "only letters"),
            (":443", "it is empty"),
            ("[::1]", "no port"),
        ] {
            let said = refused(target(&text(written)));
            assert!(said.contains(answer), "{written}: {said}");
        }
    }

    #[test]
    fn a_word_gets_the_nearest_one() {
        let words = [("adaptive", 1), ("copy", 2)];
        assert_eq!(word(&text("copy"), &words), Ok(2));
        assert!(refused(word(&text("adaptiv"), &words)).contains("did you mean \"adaptive\"?"));
        assert!(refused(word(&Raw::Other("true"), &words)).contains("\"adaptive\", \"copy\""));
    }
}
