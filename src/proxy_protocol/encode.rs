//! Headers for upstreams: what is known in, bytes out, in one allocation.

use std::io::Write;
use std::net::{IpAddr, Ipv6Addr};

use super::header::{Addresses, FIXED_LEN, Passed, SIGNATURE, Tlvs, tlv};
use crate::config::SendProxy;

/// Versions 2's version and command for a client's connection.
const PROXY: u8 = 0x21;

/// Bytes in front of a TLV's value.
const TLV_HEADER: usize = 3;

/// Bytes of a checksum.
const CRC: usize = 4;

/// The longest line of version 1, its end included (specification, section 2.1).
const LONGEST_LINE: usize = 107;

/// A version 2 header: the client's addresses, the TLVs of its own header as they were, then ours, then a checksum over the whole. `None`
/// where that would be longer than a header can be.
///
/// Left out are the balancer's checksum, which is of another header, its padding, and what the relay of our kind before us said of
/// itself. Addresses of two families are both written as IPv6.
#[must_use]
pub fn version_2(addresses: Option<Addresses>, tlvs: &[u8], passed: Passed<'_>) -> Option<Vec<u8>> {
    let (family, of_addresses) = match addresses.map(|it| (it.source.ip(), it.destination.ip())) {
        None => (0x00, 0),
        Some((IpAddr::V4(_), IpAddr::V4(_))) => (0x11, 12),
        Some(_) => (0x21, 36),
    };
    let of_tlvs: usize = passed_on(tlvs)
        .map(|entry| TLV_HEADER + entry.1.len())
        .sum();
    let of_own = Passed::MARK.len() + 1 + passed.relay_id.len();
    let body = of_addresses + of_tlvs + TLV_HEADER + of_own + TLV_HEADER + CRC;

    let mut header = Vec::with_capacity(FIXED_LEN + body);
    header.extend_from_slice(&SIGNATURE);
    header.extend_from_slice(&[PROXY, family]);
    header.extend_from_slice(&u16::try_from(body).ok()?.to_be_bytes());
    if let Some(Addresses {
        source,
        destination,
    }) = addresses
    {
        for ip in [source.ip(), destination.ip()] {
            match ip {
                IpAddr::V4(ip) if family == 0x11 => header.extend_from_slice(&ip.octets()),
                ip => header.extend_from_slice(&in_ipv6(ip).octets()),
            }
        }
        for port in [source.port(), destination.port()] {
            header.extend_from_slice(&port.to_be_bytes());
        }
    }
    for (kind, value) in passed_on(tlvs) {
        begin(&mut header, kind, value.len());
        header.extend_from_slice(value);
    }
    begin(&mut header, tlv::RELAY, of_own);
    header.extend_from_slice(&Passed::MARK);
    header.push(passed.hops);
    header.extend_from_slice(passed.relay_id);
    begin(&mut header, tlv::CRC32C, CRC);
    // The sum's own bytes count as zeros (specification, section 2.2.3).
    let sum = crc32c::crc32c_append(crc32c::crc32c(&header), &[0; CRC]);
    header.extend_from_slice(&sum.to_be_bytes());
    Some(header)
}

/// The TLVs of a client's header that its upstream gets, in their order.
fn passed_on(tlvs: &[u8]) -> impl Iterator<Item = (u8, &[u8])> {
    Tlvs::new(tlvs).flatten().filter(|(kind, value)| {
        !matches!(*kind, tlv::CRC32C | tlv::NOOP) && Passed::from_tlv(*kind, value).is_none()
    })
}

fn begin(header: &mut Vec<u8>, kind: u8, len: usize) {
    // Never cut: it is part of a body whose length was seen to fit.
    let [.., high, low] = len.to_be_bytes();
    header.extend_from_slice(&[kind, high, low]);
}

fn in_ipv6(ip: IpAddr) -> Ipv6Addr {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    }
}

/// A version 1 header: a line with the client's addresses. Addresses of two families cannot be written there (specification, section 2.1), so
/// they are as unknown as none.
#[must_use]
pub fn version_1(addresses: Option<Addresses>) -> Vec<u8> {
    let Some(Addresses {
        source,
        destination,
    }) = addresses
    else {
        return UNKNOWN.to_vec();
    };
    let protocol = match (source.ip().to_canonical(), destination.ip().to_canonical()) {
        (IpAddr::V4(_), IpAddr::V4(_)) => "TCP4",
        (IpAddr::V6(_), IpAddr::V6(_)) => "TCP6",
        _ => return UNKNOWN.to_vec(),
    };
    let mut line = Vec::with_capacity(LONGEST_LINE);
    let (from, to) = (source.ip().to_canonical(), destination.ip().to_canonical());
    let (from_port, to_port) = (source.port(), destination.port());
    // Fails for no vector.
    let _ = write!(
        line,
        "PROXY {protocol} {from} {to} {from_port} {to_port}\r\n"
    );
    line
}

/// A connection whose addresses nobody knows, in version 1.
const UNKNOWN: &[u8] = b"PROXY UNKNOWN\r\n";

/// LOCAL without addresses, in version 2.
const LOCAL: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0";

/// What a connection of our own begins with, where nobody is behind us: a health check.
#[must_use]
pub fn our_own(send: SendProxy) -> &'static [u8] {
    match send {
        SendProxy::Off => b"",
        SendProxy::V1 => UNKNOWN,
        SendProxy::V2 => LOCAL,
    }
}

#[cfg(test)]
#[path = "encode_tests.rs"]
mod tests;
