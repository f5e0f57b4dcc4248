//! The server name in a TLS ClientHello. Sources: RFC 8446 sections 4.1.2 and 5.1, RFC 6066 section 3, RFC 9849 (ECH).
//!
//! Versions are not looked at: no server name depends on them, and RFC 8446 wants them ignored where they stand in a record. Values that
//! GREASE makes up (RFC 8701) are unknown ciphers and extensions, and passed over as such.

use std::net::IpAddr;

use super::{Look, Name, Seen, dns_name};
use crate::account::PeekOutcome;

/// Content type of a handshake record.
pub(super) const HANDSHAKE: u8 = 22;

/// Type, version and length in front of a record.
const RECORD_HEADER: usize = 5;

/// The most a record of a handshake may hold (RFC 8446, section 5.1).
const LONGEST_RECORD: usize = 1 << 14;

/// Type and length in front of a handshake message.
const MESSAGE_HEADER: usize = 4;

/// Type of the ClientHello among handshake messages.
const CLIENT_HELLO: u8 = 1;

/// The extension with the server's name.
const SERVER_NAME: u16 = 0;

/// The extension with a ClientHello inside (ECH).
const ENCRYPTED_CLIENT_HELLO: u16 = 0xFE0D;

/// Type of the only kind of server name there is.
const HOST_NAME: u8 = 0;

/// Collects the ClientHello out of the records that it is in.
#[derive(Debug, Default)]
pub(super) struct Reader {
    /// Where the next record begins.
    at: usize,
    /// What earlier records held: empty unless the hello is spread over several.
    message: Vec<u8>,
}

impl Reader {
    /// Looks at the records that are whole.
    pub(super) fn look(&mut self, bytes: &[u8]) -> Look {
        loop {
            let rest = &bytes[self.at..];
            let Some((header, body)) = rest.split_first_chunk::<RECORD_HEADER>() else {
                return Look::More(RECORD_HEADER - rest.len());
            };
            let [kind, major, _, high, low] = *header;
            let len = usize::from(u16::from_be_bytes([high, low]));
            // An empty one is forbidden too: a reader that passes over it would see another hello than one that does not.
            if kind != HANDSHAKE || major != 3 || !(1..=LONGEST_RECORD).contains(&len) {
                return malformed();
            }
            let Some(fragment) = body.get(..len) else {
                return Look::More(len - body.len());
            };
            self.at += RECORD_HEADER + len;
            // Usually the whole hello is in one record, and nothing is copied.
            let message = match self.message.is_empty() {
                true => fragment,
                false => {
                    self.message.extend_from_slice(fragment);
                    &self.message
                }
            };
            if message[0] != CLIENT_HELLO {
                return malformed();
            }
            if let Some(hello) = body_of(message) {
                return server_name(hello).map_or_else(malformed, Look::Over);
            }
            if self.message.is_empty() {
                self.message.extend_from_slice(fragment);
            }
        }
    }
}

/// The body of a handshake message that is whole.
fn body_of(message: &[u8]) -> Option<&[u8]> {
    let ([_, a, b, c], body) = message.split_first_chunk::<MESSAGE_HEADER>()?;
    body.get(..u32::from_be_bytes([0, *a, *b, *c]) as usize)
}

fn malformed() -> Look {
    Look::Over(Seen::nameless(PeekOutcome::Malformed))
}

/// What a ClientHello tells; `None` where it is none, or may be read in two ways.
fn server_name(hello: &[u8]) -> Option<Seen> {
    let mut hello = Cursor(hello);
    let (_version, _random) = (hello.take(2)?, hello.take(32)?);
    let session = hello.vector8()?;
    let ciphers = hello.vector16()?;
    let compressions = hello.vector8()?;
    if session.len() > 32 || ciphers.is_empty() || ciphers.len() % 2 != 0 || compressions.is_empty()
    {
        return None;
    }
    // Clients before TLS 1.2 may leave the extensions out, their length included.
    let mut extensions = match hello.is_empty() {
        true => Cursor(&[]),
        false => Cursor(hello.vector16()?),
    };
    if !hello.is_empty() {
        return None;
    }
    let (mut names, mut encrypted) = (None, false);
    while !extensions.is_empty() {
        let (kind, data) = (extensions.number()?, extensions.vector16()?);
        match kind {
            SERVER_NAME if names.replace(data).is_some() => return None,
            ENCRYPTED_CLIENT_HELLO => encrypted = true,
            _ => {}
        }
    }
    let name = match names {
        Some(names) => host_name(names)?,
        None => None,
    };
    let outcome = match (&name, encrypted) {
        (None, _) => PeekOutcome::NoSni,
        (Some(_), false) => PeekOutcome::Sni,
        (Some(_), true) => PeekOutcome::Ech,
    };
    Some(Seen {
        outcome,
        name: name.map(Name::Sni),
    })
}

/// The name in the extension: `Some(None)` where there is none to route by, `None` where what is there is no name, or several.
fn host_name(list: &[u8]) -> Option<Option<String>> {
    let mut list = Cursor(list);
    let mut names = Cursor(list.vector16()?);
    if names.is_empty() || !list.is_empty() {
        return None;
    }
    let mut found = None;
    while !names.is_empty() {
        let (kind, name) = (names.take(1)?[0], names.vector16()?);
        if kind == HOST_NAME && found.replace(name).is_some() {
            return None;
        }
    }
    match found {
        None => Some(None),
        // Forbidden, and sent all the same by clients that were given an address: servers take it for no name.
        Some(name) if is_address(name) => Some(None),
        Some(name) => dns_name(name).map(Some),
    }
}

fn is_address(name: &[u8]) -> bool {
    std::str::from_utf8(name).is_ok_and(|name| name.parse::<IpAddr>().is_ok())
}

/// Takes bytes from the front; `None` where there are not enough.
struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(n)?;
        self.0 = rest;
        Some(taken)
    }

    fn number(&mut self) -> Option<u16> {
        let (number, rest) = self.0.split_first_chunk::<2>()?;
        self.0 = rest;
        Some(u16::from_be_bytes(*number))
    }

    /// Bytes behind a length of one byte.
    fn vector8(&mut self) -> Option<&'a [u8]> {
        let len = self.take(1)?[0];
        self.take(usize::from(len))
    }

    /// Bytes behind a length of two.
    fn vector16(&mut self) -> Option<&'a [u8]> {
        let len = self.number()?;
        self.take(usize::from(len))
    }
}
