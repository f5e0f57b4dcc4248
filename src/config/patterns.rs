//! What a route compares a connection with: globs over endpoint ids, and names of hosts.

use std::net::IpAddr;
use std::sync::Arc;

use super::addresses::host_name_fault;
use super::file::Raw;
use super::values::{Parsed, wrong};

/// A glob over endpoint ids.
pub(super) fn endpoint(raw: &Raw) -> Parsed<Arc<str>> {
    const HELP: &str = "write an endpoint id, \"vpce-08d2bf8fac5001001\", or with \"*\" for any characters: \"vpce-08d2*\"; \
                        \"direct\" is the id of connections without one";
    let text = raw.text(HELP)?;
    let fits = (1..=64).contains(&text.len())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-*".contains(&byte));
    if fits {
        Ok(text.into())
    } else {
        let problem =
            format!("{text:?} can be no endpoint id: those are 1 to 64 letters, digits and \"-\"");
        wrong(problem, HELP)
    }
}

/// A host name or `*.suffix`, in lower case and without the dot of the root.
pub(super) fn host(raw: &Raw) -> Parsed<Arc<str>> {
    const HELP: &str =
        "write a host name, \"logs.example.com\", or \"*.example.com\" for every name below one";
    let text = raw.text(HELP)?;
    if let Some((_, rest)) = text.split_once("://") {
        let name = rest.split(['/', ':']).next().unwrap_or(rest);
        return wrong(format!("{text:?} is a URL"), format!("write \"{name}\""));
    }
    if text.parse::<IpAddr>().is_ok() {
        return wrong(format!("{text:?} is an address, not a name"), HELP);
    }
    if let Some((name, port)) = text.rsplit_once(':')
        && port.bytes().all(|byte| byte.is_ascii_digit())
    {
        return wrong(
            format!("{text:?} has a port, and ports are not compared"),
            format!("write \"{name}\""),
        );
    }
    if text == "*" {
        return wrong(
            "\"*\" would take every name",
            "name a suffix, \"*.example.com\", or leave the key out",
        );
    }
    let name = text.strip_prefix("*.").unwrap_or(text);
    if name.contains('*') {
        return wrong(
            format!("{text:?} has a \"*\" elsewhere than in front of a suffix"),
            "write \"*.example.com\" for every name below one, however deep",
        );
    }
    if !name.is_ascii() {
        return wrong(
            format!("{text:?} is not as names are sent"),
            "write the form that begins with \"xn--\"",
        );
    }
    match host_name_fault(name) {
        None => Ok(text.trim_end_matches('.').to_ascii_lowercase().into()),
        Some(fault) => wrong(format!("{text:?} is not a host name: {fault}"), HELP),
    }
}

/// Whether every id that `less` takes is taken by `more` too. Sure where it says so; it may be so where it does not.
pub(super) fn endpoint_covers(more: &str, less: &str) -> bool {
    // A star of `less` stands for any characters, so that only a star of `more` may stand for it: as any other character that no
    // id has.
    let Some((head, rest)) = more.split_once('*') else {
        return more == less;
    };
    let Some(less) = less.strip_prefix(head) else {
        return false;
    };
    let mut parts: Vec<&str> = rest.split('*').collect();
    let tail = parts.pop().unwrap_or_default();
    let Some(mut left) = less.strip_suffix(tail) else {
        return false;
    };
    for part in parts {
        match left.find(part) {
            Some(at) => left = &left[at + part.len()..],
            None => return false,
        }
    }
    true
}

/// Whether every name that `less` takes is taken by `more` too.
pub(super) fn host_covers(more: &str, less: &str) -> bool {
    more == less
        || more
            .strip_prefix('*')
            .is_some_and(|suffix| less.strip_prefix('*').unwrap_or(less).ends_with(suffix))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::values::tests::{refused, text};

    #[test]
    fn names_are_compared_in_lower_case_and_without_the_root() {
        for (written, meant) in [
            ("Logs.Example.COM", "logs.example.com"),
            ("*.Example.com", "*.example.com"),
            ("a.example.", "a.example"),
            ("my_host", "my_host"),
        ] {
            assert_eq!(host(&text(written)).as_deref(), Ok(meant), "{written}");
        }
    }

    #[test]
    fn a_name_that_no_client_sends_is_answered_with_one_that_it_does() {
        for (written, answer) in [
            ("https://a.example/x", "write \"a.example\""),
            ("a.example:443", "write \"a.example\""),
            ("10.0.0.1", "not a name"),
            ("fd00::1", "not a name"),
            ("*", "leave the key out"),
            ("a.*.example", "*.example.com"),
            ("*example", "*.example.com"),
            ("*.", "empty"),
            ("", "empty"),
            ("naïve.example", "xn--"),
            ("a b.example", "only letters"),
        ] {
            let said = refused(host(&text(written)));
            assert!(said.contains(answer), "{written}: {said}");
        }
    }

    #[test]
    fn a_glob_has_the_characters_of_an_id() {
        for written in ["vpce-0a*", "*", "direct", "vpce-*-x"] {
            assert_eq!(endpoint(&text(written)).as_deref(), Ok(written));
        }
        for written in ["", "vpce_0a", "vpce-?", &"v".repeat(65)] {
            assert!(
                refused(endpoint(&text(written))).contains("1 to 64"),
                "{written}"
            );
        }
    }

    #[test]
    fn a_glob_covers_what_only_its_stars_stand_for() {
        for (more, less, covers) in [
            ("*", "vpce-1", true),
            ("*", "*", true),
            ("**", "*", true),
            ("vpce-*", "vpce-1*", true),
            ("vpce-*", "vpce-", true),
            ("vpce-1*", "vpce-*", false),
            ("vpce-1", "vpce-1", true),
            ("vpce-1", "vpce-*", false),
            ("a*a", "a", false),
            ("a*b*c", "axbyc", true),
            ("a*b*c", "a*b*c", true),
            ("a*b*c", "a*c", false),
            ("*ab*ab*", "xab", false),
            ("*1", "vpce-1", true),
        ] {
            assert_eq!(endpoint_covers(more, less), covers, "{more} {less}");
        }
    }

    #[test]
    fn a_suffix_covers_every_name_below_it() {
        for (more, less, covers) in [
            ("*.example", "a.example", true),
            ("*.example", "a.b.example", true),
            ("*.example", "*.example", true),
            ("*.example", "*.b.example", true),
            ("*.example", "example", false),
            ("*.example", "counterexample", false),
            ("*.b.example", "*.example", false),
            ("a.example", "*.example", false),
            ("a.example", "a.example", true),
        ] {
            assert_eq!(host_covers(more, less), covers, "{more} {less}");
        }
    }
}
