//! `health = { … }` of an upstream.

use std::sync::Arc;
use std::time::Duration;

use super::failing::quoted;
use crate::config::build::Builder;
use crate::config::build::findings::Side;
use crate::config::file::{Key, Raw};
use crate::config::values::{self, Parsed, wrong};
use crate::config::{Check, HealthCheck, defaults};

/// Most bytes sent, and most looked for in an answer.
const MOST_BYTES: usize = 4096;

/// Longest path and longest Host: no server takes a line much longer than both.
const LONGEST_TEXT: usize = 1024;

/// `check`, before what belongs to it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Tcp,
    Http,
    Exchange,
}

impl Builder {
    pub(super) fn health_check(&mut self, key: &Key) -> Option<HealthCheck> {
        let at = |name: &str| format!("upstream.health.{name}");
        let table = key.as_ref()?;
        let [
            check,
            interval,
            timeout,
            rise,
            fall,
            port,
            path,
            host,
            status,
            send,
            expect,
        ] = self.found.open(
            "upstream.health",
            table,
            "health = { check = \"http\", path = \"/healthz\" }",
            [
                "check", "interval", "timeout", "rise", "fall", "port", "path", "host", "status",
                "send", "expect",
            ],
        )?;
        let kinds = [
            ("tcp", Kind::Tcp),
            ("http", Kind::Http),
            ("exchange", Kind::Exchange),
        ];
        let kind = match &check {
            None => Some(Kind::Tcp),
            Some(_) => self
                .found
                .value(&at("check"), &check, |raw| values::word(raw, &kinds)),
        };
        let is = |wanted: Kind| kind.is_none_or(|kind| kind == wanted);
        let of_http = [("path", path), ("host", host), ("status", status)];
        let [path, host, status] = self.only_with("http", is(Kind::Http), of_http);
        let of_exchange = [("send", send), ("expect", expect)];
        let [send, expect] = self.only_with("exchange", is(Kind::Exchange), of_exchange);
        let [timeout, interval] = self.found.pair(
            Side {
                key: &at("timeout"),
                value: &timeout,
                default: defaults::HEALTH_TIMEOUT,
                parse: values::time,
            },
            Side {
                key: &at("interval"),
                value: &interval,
                default: defaults::HEALTH_INTERVAL,
                parse: |raw| {
                    values::time_within(raw, Duration::from_millis(100)..=Duration::from_secs(3600))
                },
            },
            quoted,
        );
        let rise = self
            .found
            .number(&at("rise"), &rise, 1..=100, defaults::HEALTH_RISE);
        let fall = self
            .found
            .number(&at("fall"), &fall, 1..=100, defaults::HEALTH_FALL);
        let port = self.found.value(&at("port"), &port, |raw| {
            values::integer(raw, 1..=65535)
                .map(|port| u16::try_from(port).expect("the upper bound fits"))
        });
        let path = self.found.value(&at("path"), &path, path_of);
        let host = self.found.value(&at("host"), &host, host_header);
        let status = self.found.value(&at("status"), &status, status_range);
        if kind == Some(Kind::Exchange) && expect.is_none() {
            self.found.mistake(
                &at("expect"),
                "is missing: any answer would do, and so would none",
                "add what the answer must contain, for instance expect = \"PONG\"; for a mere connection write check = \"tcp\"",
                Some(table.span()),
            );
        }
        let send = self.found.value(&at("send"), &send, |raw| bytes(raw, 0));
        let expect = self
            .found
            .value(&at("expect"), &expect, |raw| bytes(raw, 1));
        let check = match kind? {
            Kind::Tcp => Check::Tcp,
            Kind::Http => Check::Http {
                path: path.unwrap_or_else(|| defaults::HEALTH_PATH.into()),
                host,
                status: status.unwrap_or(defaults::HEALTH_STATUS),
            },
            Kind::Exchange => Check::Exchange {
                send: send.unwrap_or_default(),
                expect: expect?,
            },
        };
        Some(HealthCheck {
            check,
            interval,
            timeout,
            rise,
            fall,
            port,
        })
    }

    /// The values of keys that belong to one kind of check: where another is meant that is said, and they count as not written.
    fn only_with<const N: usize>(
        &mut self,
        check: &str,
        meant: bool,
        keys: [(&str, Key); N],
    ) -> [Key; N] {
        keys.map(|(name, value)| {
            if meant {
                return value;
            }
            self.found.useless(
                &format!("upstream.health.{name}"),
                &value,
                &format!("only a check of kind {check:?} has it"),
                &format!("write check = {check:?} beside it, or remove it"),
            );
            None
        })
    }
}

/// The path of a request, as it is sent.
fn path_of(raw: &Raw) -> Parsed<Arc<str>> {
    const HELP: &str = "write a path that begins with \"/\", for instance \"/healthz\"; other than visible ASCII as %XX";
    let text = raw.text(HELP)?;
    if let Some((_, rest)) = text.split_once("://") {
        let path = rest.find('/').map_or("/", |at| &rest[at..]);
        return wrong(format!("{text:?} is a URL"), format!("write \"{path}\""));
    }
    if text.starts_with('/') && visible(text) {
        Ok(text.into())
    } else {
        wrong(format!("{text:?} is not the path of a request"), HELP)
    }
}

/// What is sent as Host.
fn host_header(raw: &Raw) -> Parsed<Arc<str>> {
    const HELP: &str = "write a name, \"cp.example.com\", with a port if the service wants one";
    let text = raw.text(HELP)?;
    if visible(text) && !text.contains('/') {
        Ok(text.into())
    } else {
        wrong(format!("{text:?} can be no Host"), HELP)
    }
}

/// Nothing that would end the line of a request, or a word of it.
fn visible(text: &str) -> bool {
    (1..=LONGEST_TEXT).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic())
}

/// One status, or the lowest and the highest.
fn status_range(raw: &Raw) -> Parsed<(u16, u16)> {
    const HELP: &str = "write a status, \"200\", or the lowest and the highest, \"200-399\"";
    let text = raw.text(HELP)?;
    let (low, high) = text.split_once('-').unwrap_or((text, text));
    let status = |text: &str| {
        let text = text.trim();
        let number = text.parse::<u16>().ok()?;
        (text.len() == 3 && (100..=599).contains(&number)).then_some(number)
    };
    match (status(low), status(high)) {
        (Some(low), Some(high)) if low <= high => Ok((low, high)),
        (Some(low), Some(high)) => wrong(
            format!("{text:?} ends before it begins"),
            format!("write \"{high}-{low}\""),
        ),
        _ => wrong(format!("{text:?} is no range of statuses"), HELP),
    }
}

/// Text as bytes, at least so many.
fn bytes(raw: &Raw, least: usize) -> Parsed<Vec<u8>> {
    let help = "write text in quotes, with \\r\\n where a line ends: \"PING\\r\\n\"";
    let text = raw.text(help)?;
    if (least..=MOST_BYTES).contains(&text.len()) {
        return Ok(text.as_bytes().to_vec());
    }
    let problem = if text.is_empty() {
        "is empty, so that every answer would do".to_owned()
    } else {
        format!(
            "{} bytes are more than the {MOST_BYTES} looked at",
            text.len()
        )
    };
    wrong(problem, help)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::values::tests::{refused, text};

    #[test]
    fn a_path_is_as_it_is_sent() {
        for written in ["/", "/healthz?deep=1", "/a%20b"] {
            assert_eq!(path_of(&text(written)).as_deref(), Ok(written));
        }
        for (written, answer) in [
            ("healthz", "begins with"),
            ("/a b", "begins with"),
            ("/a\r\nX: y", "begins with"),
            ("http://x.example/healthz", "\"/healthz\""),
            ("http://x.example", "\"/\""),
            ("", "begins with"),
        ] {
            assert!(
                refused(path_of(&text(written))).contains(answer),
                "{written}"
            );
        }
    }

    #[test]
    fn a_host_cannot_end_its_line() {
        for written in ["cp.example", "cp.example:8080", "[fd00::1]:80"] {
            assert_eq!(host_header(&text(written)).as_deref(), Ok(written));
        }
        for written in ["", "a b", "a\r\nX: y", "http://a"] {
            assert!(host_header(&text(written)).is_err(), "{written}");
        }
    }

    #[test]
    fn statuses_are_three_digits_in_order() {
        assert_eq!(status_range(&text("200")), Ok((200, 200)));
        assert_eq!(status_range(&text("200-399")), Ok((200, 399)));
        assert_eq!(status_range(&text("200 - 204")), Ok((200, 204)));
        assert!(refused(status_range(&text("399-200"))).contains("\"200-399\""));
        for written in [
            "2xx",
            "99",
            "600",
            "0200",
            "200-",
            "-",
            "+20",
            "200-299-300",
        ] {
            assert!(
                refused(status_range(&text(written))).contains("\"200-399\""),
                "{written}"
            );
        }
    }

    #[test]
    fn bytes_are_bounded() {
        assert_eq!(bytes(&text("PING\r\n"), 0), Ok(b"PING\r\n".to_vec()));
        assert_eq!(bytes(&text(""), 0), Ok(Vec::new()));
        assert!(refused(bytes(&text(""), 1)).contains("every answer"));
        assert!(bytes(&text(&"x".repeat(4096)), 1).is_ok());
        assert!(refused(bytes(&text(&"x".repeat(4097)), 1)).contains("4097 bytes"));
    }
}
