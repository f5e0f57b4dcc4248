//! The PROXY v2 header as NLB writes it. Written from the specification and from captures, and on purpose without the relay's own code or
//! crates: a mistake made twice would not be seen.

use std::net::{IpAddr, SocketAddr};

const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// What NLB pads its IPv4 and LOCAL headers to.
const PADDED: usize = 100;
const CRC32C: u8 = 0x03;
const NOOP: u8 = 0x04;
const AWS: u8 = 0xea;
const AWS_ENDPOINT: u8 = 0x01;

/// A header for a connection of a client, with the endpoint's id if it came through PrivateLink.
///
/// # Panics
/// When one address is IPv4 and the other IPv6.
pub fn proxy(source: SocketAddr, destination: SocketAddr, endpoint: Option<&str>) -> Vec<u8> {
    let mut addresses = Vec::new();
    let family = match (source.ip().to_canonical(), destination.ip().to_canonical()) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            addresses.extend(source.octets());
            addresses.extend(destination.octets());
            0x11
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            addresses.extend(source.octets());
            addresses.extend(destination.octets());
            0x21
        }
        _ => panic!("{source} to {destination}: two families in one connection"),
    };
    addresses.extend(source.port().to_be_bytes());
    addresses.extend(destination.port().to_be_bytes());
    // Nobody has shown NLB's IPv6 form; without padding it exercises what the IPv4 form does not.
    let padded = if family == 0x11 { PADDED } else { 0 };
    build(0x21, family, &addresses, endpoint, padded)
}

/// The header of a health check: LOCAL, family 0x11, and yet no address block.
pub fn health_check() -> Vec<u8> {
    build(0x20, 0x11, &[], None, PADDED)
}

fn build(
    command: u8,
    family: u8,
    addresses: &[u8],
    endpoint: Option<&str>,
    padded: usize,
) -> Vec<u8> {
    let mut header = Vec::from(SIGNATURE);
    header.extend([command, family, 0, 0]);
    header.extend(addresses);
    let checksum = header.len() + 3;
    tlv(&mut header, CRC32C, &[0; 4]);
    if let Some(endpoint) = endpoint {
        let mut value = vec![AWS_ENDPOINT];
        value.extend(endpoint.as_bytes());
        tlv(&mut header, AWS, &value);
    }
    // A TLV has three bytes before its value, so less than that cannot be padded.
    if let Some(zeros) = padded.checked_sub(header.len() + 3) {
        tlv(&mut header, NOOP, &vec![0; zeros]);
    }
    let length = u16::try_from(header.len() - 16).expect("a header of ours is short");
    header[14..16].copy_from_slice(&length.to_be_bytes());
    let crc = crc32c(&header);
    header[checksum..checksum + 4].copy_from_slice(&crc.to_be_bytes());
    header
}

fn tlv(header: &mut Vec<u8>, kind: u8, value: &[u8]) {
    let length = u16::try_from(value.len()).expect("a value of ours is short");
    header.push(kind);
    header.extend(length.to_be_bytes());
    header.extend(value);
}

/// Castagnoli, reflected, bit by bit.
pub fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 {
                (crc >> 1) ^ 0x82f6_3b78
            } else {
                crc >> 1
            };
        }
    }
    !crc
}
