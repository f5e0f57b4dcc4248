//! What an upstream is told of a client, and how a connection that comes round again is noticed.
//!
//! # Loops
//!
//! A name that leads back to the load balancer in front of this relay makes each connection two, without end. Where headers of version 2
//! are sent, each carries the relay's id and how many relays of this kind came before ([`Passed`]), so a header that comes back is refused,
//! and so is one that has passed [`MAX_HOPS`] of them.
//!
//! A Network Load Balancer does not take our header for its own: it writes one of its own in front, and ours is the beginning of the payload. So
//! that is looked at too ([`in_payload`]), for listeners that lead to such an upstream. There it is only looked at. It never says who the client
//! is, because any client can write one, and it is passed on as the payload that it is. A client that writes one of ours by
//! hand can have its own connection refused.
//!
//! What cannot be noticed: a loop through an upstream without `proxy_protocol = "v2"`; one through a proxy that takes our header away, or
//! puts other bytes in front of it; a header that arrives so late that a connection upstream is made before, each time. Two relays
//! with the same `relay_id` look like a loop where one leads to the other.

use std::os::fd::AsFd;

use rustix::net::{RecvFlags, recv};

use super::decode::{Rules, decode};
use super::encode;
use super::header::{Addresses, HeaderError, LONGEST, MAX_HOPS, Passed, Tlvs};
use crate::config::{CrcPolicy, SendProxy};

/// Bytes of a client that are looked at for headers when a connection upstream was made. Ours has about two hundred.
const LOOK: usize = 4096;

/// Who a client is, kept for its upstream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Source and destination of its connection, as the balancer told them; `None` where it did not know.
    pub addresses: Option<Addresses>,
    /// The TLVs of its header.
    pub tlvs: Vec<u8>,
    /// Relays of this kind that the connection has passed.
    pub hops: u8,
    /// Whether what its payload begins with may yet turn out to be a header.
    pub undecided: bool,
}

impl Identity {
    /// Looks at the beginning of the payload, if that can tell anything yet.
    ///
    /// # Errors
    /// [`HeaderError::Loop`].
    pub fn look(&mut self, payload: &[u8], relay_id: &str) -> Result<(), HeaderError> {
        if self.undecided {
            let found = in_payload(payload, relay_id)?;
            self.hops = self.hops.max(found.hops);
            self.undecided = found.undecided;
        }
        Ok(())
    }

    /// As [`Identity::look`], at `payload` and what has arrived behind it on the client's socket by now, where that is worth a call.
    ///
    /// # Errors
    /// [`HeaderError::Loop`].
    pub fn look_again(
        &mut self,
        payload: &[u8],
        client: &impl AsFd,
        relay_id: &str,
    ) -> Result<(), HeaderError> {
        if !self.undecided {
            return Ok(());
        }
        let mut room = [0; LOOK];
        // Whatever is wrong with the socket is the session's to find out.
        let Ok((n, _)) = recv(client, &mut room[..], RecvFlags::PEEK) else {
            return Ok(());
        };
        match payload {
            [] => self.look(&room[..n], relay_id),
            payload => self.look(&[payload, &room[..n]].concat(), relay_id),
        }
    }

    /// The header for an upstream that wants it in this form.
    ///
    /// # Errors
    /// [`HeaderError::TooLong`].
    pub fn header(&self, send: SendProxy, relay_id: &str) -> Result<Vec<u8>, HeaderError> {
        match send {
            SendProxy::Off => Ok(Vec::new()),
            SendProxy::V1 => Ok(encode::version_1(self.addresses)),
            SendProxy::V2 => {
                let passed = Passed {
                    hops: self.hops.saturating_add(1),
                    relay_id: relay_id.as_bytes(),
                };
                encode::version_2(self.addresses, &self.tlvs, passed).ok_or(HeaderError::TooLong)
            }
        }
    }
}

/// Relays of this kind that a header was sent by before us.
///
/// # Errors
/// [`HeaderError::Loop`]: `relay_id` is among them, or there are [`MAX_HOPS`].
pub fn hops(tlvs: &[u8], relay_id: &str) -> Result<u8, HeaderError> {
    let mut hops = 0;
    for (kind, value) in Tlvs::new(tlvs).flatten() {
        let Some(passed) = Passed::from_tlv(kind, value) else {
            continue;
        };
        if passed.hops >= MAX_HOPS || passed.relay_id == relay_id.as_bytes() {
            return Err(HeaderError::Loop);
        }
        hops = hops.max(passed.hops);
    }
    Ok(hops)
}

/// What a payload begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InPayload {
    /// The most that one of the headers there has.
    pub hops: u8,
    /// It ends with a header, or within one: more bytes may tell more.
    pub undecided: bool,
}

/// Looks for headers at the beginning of `payload`: each balancer on the way has put one in front of the others.
///
/// # Errors
/// [`HeaderError::Loop`].
pub fn in_payload(payload: &[u8], relay_id: &str) -> Result<InPayload, HeaderError> {
    const RULES: Rules = Rules {
        max_header: LONGEST,
        crc: CrcPolicy::Verify,
    };
    let (mut rest, mut most) = (payload, 0);
    loop {
        match decode(rest, RULES) {
            Ok(Some(header)) => {
                most = most.max(hops(header.tlvs, relay_id)?);
                rest = &rest[header.len..];
            }
            decided => {
                return Ok(InPayload {
                    hops: most,
                    undecided: decided.is_ok(),
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "relay-1";

    fn sent_by(relay_id: &str, hops: u8, tlvs: &[u8]) -> Vec<u8> {
        let passed = Passed {
            hops,
            relay_id: relay_id.as_bytes(),
        };
        encode::version_2(None, tlvs, passed).unwrap()
    }

    /// The TLVs of a header.
    fn tlvs(header: &[u8]) -> &[u8] {
        &header[16..]
    }

    fn after(hops: u8) -> Identity {
        Identity {
            addresses: None,
            tlvs: Vec::new(),
            hops,
            undecided: true,
        }
    }

    fn found(hops: u8, undecided: bool) -> Result<InPayload, HeaderError> {
        Ok(InPayload { hops, undecided })
    }

    #[test]
    fn ones_own_id_is_a_loop_and_so_are_too_many_hops() {
        assert_eq!(hops(tlvs(&sent_by(ID, 1, b"")), ID), Err(HeaderError::Loop));
        assert_eq!(hops(tlvs(&sent_by("relay-2", 1, b"")), ID), Ok(1));
        assert_eq!(hops(tlvs(&sent_by("relay-11", 3, b"")), ID), Ok(3));
        let four = sent_by("relay-2", MAX_HOPS, b"");
        assert_eq!(hops(tlvs(&four), ID), Err(HeaderError::Loop));
        assert_eq!(hops(b"", ID), Ok(0));
    }

    #[test]
    fn what_others_keep_under_our_type_is_no_loop() {
        for value in [&b"relay-1"[..], b"TG", b"TG\x01", b"TG\x02\x09relay-1", b""] {
            let length = u16::try_from(value.len()).unwrap().to_be_bytes();
            let tlv = [&[0xE7], &length[..], value].concat();
            assert_eq!(hops(&tlv, ID), Ok(0), "{value:?}");
        }
    }

    #[test]
    fn a_loop_is_found_behind_the_headers_of_others() {
        let (ours, other) = (sent_by(ID, 1, b""), sent_by("relay-2", 2, b""));
        let payload = [&other[..], &ours, b"hello"].concat();
        assert_eq!(in_payload(&payload, ID), Err(HeaderError::Loop));
        assert_eq!(in_payload(&payload, "relay-3"), found(2, false));
        for cut in 0..other.len() {
            assert_eq!(in_payload(&payload[..cut], ID), found(0, true), "{cut}");
        }
        for cut in other.len()..other.len() + ours.len() {
            assert_eq!(in_payload(&payload[..cut], ID), found(2, true), "{cut}");
        }
    }

    #[test]
    fn payload_that_is_no_header_is_known_at_once() {
        assert_eq!(in_payload(b"\x16\x03\x01", ID), found(0, false));
        let mut wrong = sent_by(ID, 1, b"");
        *wrong.last_mut().unwrap() ^= 1;
        assert_eq!(in_payload(&wrong, ID), found(0, false), "its checksum");
        let behind = [b"x", &sent_by(ID, 1, b"")[..]].concat();
        assert_eq!(in_payload(&behind, ID), found(0, false));
    }

    #[test]
    fn each_relay_adds_one_to_the_most_that_it_saw() {
        let mut identity = after(1);
        assert_eq!(identity.look(&sent_by("relay-2", 2, b""), ID), Ok(()));
        assert_eq!(identity.look(&sent_by("relay-2", 1, b""), ID), Ok(()));
        let header = identity.header(SendProxy::V2, ID).unwrap();
        assert_eq!(hops(tlvs(&header), "relay-3"), Ok(3));
        assert_eq!(hops(tlvs(&header), ID), Err(HeaderError::Loop));
        assert_eq!(identity.header(SendProxy::Off, ID), Ok(Vec::new()));
    }

    #[test]
    fn what_came_later_is_seen_and_left_where_it_is() {
        use std::io::{Read, Write};
        let (mut theirs, mut ours) = std::os::unix::net::UnixStream::pair().unwrap();
        let header = sent_by(ID, 1, b"");
        let mut identity = after(0);
        identity.look(&header[..9], ID).unwrap();
        ours.set_nonblocking(true).unwrap();
        assert_eq!(identity.look_again(&header[..9], &ours, ID), Ok(()));
        theirs.write_all(&header[9..]).unwrap();
        let looped = identity.look_again(&header[..9], &ours, ID);
        assert_eq!(looped, Err(HeaderError::Loop));
        let mut left = vec![0; header.len()];
        assert_eq!(ours.read(&mut left).unwrap(), header.len() - 9);
    }
}
