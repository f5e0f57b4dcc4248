//! The host in the head of an HTTP/1 request. Source: RFC 9112 sections 2.2, 3 and 5, RFC 9110 section 7.2.
//!
//! The bytes are followed to the empty line that ends the head, each looked at once; whatever cannot stand in a request line says at once that
//! this is no HTTP/1. The whole head is then [`httparse`]'s, which takes no folded lines, no space before a colon and no bare CR.

use std::mem::MaybeUninit;
use std::net::Ipv6Addr;

use super::{Look, Name, Seen, dns_name};
use crate::account::PeekOutcome;

/// Most fields of a head. Servers have bounds near it: 100 with Apache and hyper.
const MOST_FIELDS: usize = 128;

/// What stands between the target and the line's end, but for the last digit.
const VERSION: &[u8; 7] = b"HTTP/1.";

/// Follows a head to its end.
#[derive(Debug, Default)]
pub(super) struct Reader {
    /// Bytes looked at.
    at: usize,
    place: Place,
}

/// Where in a head the next byte stands.
#[derive(Debug, Clone, Copy, Default)]
enum Place {
    /// In front of the request line, where empty lines may be.
    #[default]
    Start,
    StartCr,
    Method,
    FirstOfTarget,
    Target,
    Version(usize),
    AfterVersion,
    AfterVersionCr,
    /// At the beginning of a line behind the request line.
    Line,
    LineCr,
    InLine,
    /// Behind the empty line.
    Over,
}

impl Reader {
    /// Looks at what was not looked at yet.
    pub(super) fn look(&mut self, bytes: &[u8]) -> Look {
        while let Some(byte) = bytes.get(self.at) {
            let Some(place) = self.place.next(*byte) else {
                return Look::Over(Seen::nameless(PeekOutcome::Neither));
            };
            (self.place, self.at) = (place, self.at + 1);
            if let Place::Over = place {
                let seen = host(&bytes[..self.at]).unwrap_or_else(Seen::nameless);
                return Look::Over(seen);
            }
        }
        Look::More(1)
    }
}

impl Place {
    /// Where the byte behind this one stands; `None`: this is no request line.
    fn next(self, byte: u8) -> Option<Self> {
        Some(match (self, byte) {
            (Self::Start, b'\r') => Self::StartCr,
            (Self::Start | Self::StartCr, b'\n') => Self::Start,
            (Self::Start | Self::Method, byte) if is_token(byte) => Self::Method,
            (Self::Method, b' ') => Self::FirstOfTarget,
            (Self::FirstOfTarget | Self::Target, b'!'..=b'~' | 0x80..) => Self::Target,
            (Self::Target, b' ') => Self::Version(0),
            (Self::Version(n), byte) if VERSION.get(n) == Some(&byte) => Self::Version(n + 1),
            (Self::Version(n), b'0' | b'1') if n == VERSION.len() => Self::AfterVersion,
            (Self::AfterVersion, b'\r') => Self::AfterVersionCr,
            (Self::AfterVersion | Self::AfterVersionCr, b'\n') => Self::Line,
            // From here on it is HTTP/1, for better or worse.
            (Self::Line, b'\r') => Self::LineCr,
            (Self::Line | Self::LineCr, b'\n') => Self::Over,
            (Self::InLine, b'\n') => Self::Line,
            (Self::Line | Self::LineCr | Self::InLine, _) => Self::InLine,
            _ => return None,
        })
    }
}

fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// What a whole head tells.
fn host(head: &[u8]) -> Result<Seen, PeekOutcome> {
    let mut fields = [const { MaybeUninit::uninit() }; MOST_FIELDS];
    let mut request = httparse::Request::new(&mut []);
    match request.parse_with_uninit_headers(head, &mut fields) {
        Ok(httparse::Status::Complete(_)) => {}
        Err(httparse::Error::TooManyHeaders) => return Err(PeekOutcome::TooLong),
        Ok(httparse::Status::Partial) | Err(_) => return Err(PeekOutcome::Malformed),
    }
    let mut hosts = request
        .headers
        .iter()
        .filter(|field| field.name.eq_ignore_ascii_case("host"));
    let host = hosts.next().map(|field| field.value.trim_ascii());
    if hosts.next().is_some() {
        return Err(PeekOutcome::TwoHosts);
    }
    let target = request.path.unwrap_or_default();
    let authority = if request.method == Some("CONNECT") {
        target.as_bytes()
    } else if target == "*" || target.starts_with('/') {
        host.filter(|host| !host.is_empty())
            .ok_or(PeekOutcome::NoHost)?
    } else {
        // The target's authority goes before Host (RFC 9112, section 3.2.2).
        let (_scheme, rest) = target.split_once("://").ok_or(PeekOutcome::Malformed)?;
        rest.split(['/', '?', '#']).next().unwrap_or("").as_bytes()
    };
    let name = without_port(authority).ok_or(PeekOutcome::Malformed)?;
    Ok(Seen {
        outcome: PeekOutcome::Host,
        name: Some(Name::Host(name)),
    })
}

/// The host of an authority: a name, or an address as it is written in a URL. `None` for anything else, a user's name in front included.
fn without_port(authority: &[u8]) -> Option<String> {
    let in_brackets = authority.strip_prefix(b"[");
    let end = match in_brackets {
        Some(_) => authority.iter().position(|byte| *byte == b']')? + 1,
        None => authority
            .iter()
            .position(|byte| *byte == b':')
            .unwrap_or(authority.len()),
    };
    let (host, port) = authority.split_at(end);
    match port {
        [] => {}
        [b':', digits @ ..] if digits.iter().all(u8::is_ascii_digit) => {}
        _ => return None,
    }
    match in_brackets {
        Some(_) => {
            let address = std::str::from_utf8(&host[1..end - 1]).ok()?;
            Some(format!("[{}]", address.parse::<Ipv6Addr>().ok()?))
        }
        None => dns_name(host),
    }
}
