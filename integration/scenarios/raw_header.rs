//! Headers byte by byte, for those that no balancer would send.

use crate::harness::nlb::header::crc32c;

pub(crate) const PRIVATELINK_TCP4: &str =
    include_str!("../../src/proxy_protocol/vectors/privatelink-tcp4.hex");
pub(crate) const SYNTHETIC_TCP6: &str =
    include_str!("../../src/proxy_protocol/vectors/synthetic-tcp6.hex");
pub(crate) const DIRECT_UDP4: &str =
    include_str!("../../src/proxy_protocol/vectors/direct-udp4.hex");
pub(crate) const HEALTH_CHECK_LOCAL: &str =
    include_str!("../../src/proxy_protocol/vectors/health-check-local.hex");

/// The signature, these two bytes, the length of `body`, and `body`.
pub(crate) fn of(version_and_command: u8, family: u8, body: &[u8]) -> Vec<u8> {
    let mut header = b"\r\n\r\n\0\r\nQUIT\n".to_vec();
    header.extend([version_and_command, family]);
    header.extend(u16::try_from(body.len()).unwrap().to_be_bytes());
    header.extend(body);
    header
}

/// A client's IPv4 connection with these TLVs.
pub(crate) fn tcp4(tlvs: &[u8]) -> Vec<u8> {
    let addresses = [172, 31, 7, 113, 172, 31, 10, 31, 0xC8, 0xF2, 0, 80];
    of(0x21, 0x11, &[&addresses, tlvs].concat())
}

/// One TLV.
pub(crate) fn tlv(kind: u8, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(value.len()).unwrap().to_be_bytes();
    [&[kind], &length[..], value].concat()
}

/// The TLV of an endpoint id.
pub(crate) fn endpoint(id: &[u8]) -> Vec<u8> {
    tlv(0xEA, &[&[1], id].concat())
}

/// These TLVs of an IPv4 header and behind them a checksum that is right.
pub(crate) fn with_crc(tlvs: &[u8]) -> Vec<u8> {
    let sum = crc32c(&tcp4(&[tlvs, &tlv(0x03, &[0; 4])].concat()));
    [tlvs, &tlv(0x03, &sum.to_be_bytes())].concat()
}

/// The bytes of a vector.
pub(crate) fn from_hex(hex: &str) -> Vec<u8> {
    let digits = hex.trim().as_bytes().chunks(2);
    digits
        .map(|pair| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}
