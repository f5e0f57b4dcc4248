//! A look at what a client says first, for listeners that route by the name in it: TLS' SNI or HTTP/1's Host.
//!
//! [`Peek`] is told the bytes received so far and answers with what they tell or how many more it needs at least; `sni` and `http` do the
//! reading for it, without I/O; [`read`] feeds it from a socket. The bytes stay where they are and are passed on untouched: TLS is not ended
//! here, and no request is changed.
//!
//! The name says where a client *wants* to go. It is not proof of anything, and Host is read once per connection: later requests
//! on it follow the first. So it routes and does not authorise.
//!
//! However the bytes are split, they tell the same (a property test says so). What is decided is decided by the bytes before it, and what
//! a server might read otherwise than we do is refused ([`PeekOutcome::refuses`]).

mod http;
pub mod read;
mod sni;
#[cfg(test)]
mod tests;

use crate::account::PeekOutcome;

/// What a client's first bytes tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// As it is counted.
    pub outcome: PeekOutcome,
    /// The name, where there is one.
    pub name: Option<Name>,
}

/// A name to route by: in lower case, without a trailing dot, without a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Name {
    /// The server name of a TLS ClientHello: a DNS name.
    Sni(String),
    /// The host of an HTTP/1 request: a DNS name, or an address as it is written in a URL.
    Host(String),
}

impl Name {
    /// The name itself. Of letters, digits and what addresses are written with: fit for a log.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            Self::Sni(name) | Self::Host(name) => name,
        }
    }
}

impl Seen {
    fn nameless(outcome: PeekOutcome) -> Self {
        Self {
            outcome,
            name: None,
        }
    }
}

/// What came of looking at the bytes so far.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Look {
    /// It takes so many bytes more, at least.
    More(usize),
    /// It is decided.
    Over(Seen),
}

/// Looks at one client's first bytes, however they arrive. Each byte is looked at once, or twice where a name must be found among them.
#[derive(Debug)]
pub struct Peek {
    /// Most bytes looked at.
    most: usize,
    kind: Kind,
}

/// What the bytes so far look like.
#[derive(Debug)]
enum Kind {
    Unknown,
    Tls(sni::Reader),
    Http(http::Reader),
}

impl Peek {
    /// Decides within `most` bytes.
    #[must_use]
    pub fn new(most: usize) -> Self {
        Self {
            most,
            kind: Kind::Unknown,
        }
    }

    /// Looks at `bytes`: everything received so far, what was shown before included.
    #[must_use]
    pub fn look(&mut self, bytes: &[u8]) -> Look {
        let bytes = &bytes[..bytes.len().min(self.most)];
        let look = match &mut self.kind {
            Kind::Unknown => {
                let Some(kind) = kind(bytes) else {
                    return self.bounded(bytes, Look::More(1));
                };
                self.kind = kind;
                return self.look(bytes);
            }
            Kind::Tls(reader) => reader.look(bytes),
            Kind::Http(reader) => reader.look(bytes),
        };
        self.bounded(bytes, look)
    }

    /// Nobody waits for what would be too much anyway.
    fn bounded(&self, bytes: &[u8], look: Look) -> Look {
        match look {
            Look::More(n) if bytes.len().saturating_add(n) > self.most => {
                Look::Over(Seen::nameless(PeekOutcome::TooLong))
            }
            look => look,
        }
    }
}

/// A handshake record of SSL 3.0 or later begins with its type and 3; nothing of HTTP begins with a control character but a line's end.
fn kind(bytes: &[u8]) -> Option<Kind> {
    match bytes {
        [] | [sni::HANDSHAKE] => None,
        [sni::HANDSHAKE, 3, ..] => Some(Kind::Tls(sni::Reader::default())),
        _ => Some(Kind::Http(http::Reader::default())),
    }
}

/// A DNS name as it is compared; `None` for what is none (RFC 1123 section 2.1, and `_` as it is used within VPCs).
fn dns_name(text: &[u8]) -> Option<String> {
    let text = text.strip_suffix(b".").unwrap_or(text);
    let label = |label: &[u8]| {
        let allowed = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        (1..=63).contains(&label.len()) && label.iter().all(allowed)
    };
    if text.len() > 253 || !text.split(|byte| *byte == b'.').all(label) {
        return None;
    }
    std::str::from_utf8(text).ok().map(str::to_ascii_lowercase)
}
