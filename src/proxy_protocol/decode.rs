//! Bytes in, header out: no socket, no clock, no allocation.
//!
//! [`decode`] is called with everything received so far and says "incomplete" until the header is whole, so a header may
//! arrive in any number of pieces. It refuses as soon as the bytes at hand decide it: nobody waits for the rest of
//! something that is already wrong.

use std::net::{IpAddr, SocketAddr};

use super::header::{
    Addresses, Checksum, Command, FIXED_LEN, Header, HeaderError, RESERVED_ENDPOINTS, SIGNATURE,
    Tlvs, tlv,
};
use crate::config::CrcPolicy;

/// What a listener asks of a header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// Longest header taken, in bytes, its fixed part included.
    pub max_header: usize,
    /// What is done about the checksum.
    pub crc: CrcPolicy,
}

/// Longest endpoint id: ids seen have 13 or 22 characters; the bound is the books' and the logs'.
const LONGEST_ENDPOINT: usize = 64;

/// Beginning of a version 1 header.
const VERSION_1: &[u8] = b"PROXY ";

/// Decodes the header at the beginning of `bytes`: `Ok(None)` while more bytes are needed.
///
/// # Errors
/// The first reason to refuse, as soon as `bytes` show it.
pub fn decode(bytes: &[u8], rules: Rules) -> Result<Option<Header<'_>>, HeaderError> {
    let Some(len) = whole_length(bytes, rules.max_header)? else {
        return Ok(None);
    };
    let Some(header) = bytes.get(..len) else {
        return Ok(None);
    };
    match command(header[12])? {
        Command::Local => local(header, rules.crc).map(Some),
        Command::Proxy => proxy(header, rules.crc).map(Some),
    }
}

/// Length of the header from its fixed part, checked as far as that part goes.
fn whole_length(bytes: &[u8], max_header: usize) -> Result<Option<usize>, HeaderError> {
    let begins_like = |what: &[u8]| bytes.iter().zip(what).all(|(a, b)| a == b);
    if !begins_like(&SIGNATURE) {
        return match begins_like(VERSION_1) {
            true if bytes.len() < VERSION_1.len() => Ok(None),
            true => Err(HeaderError::NotV2),
            false => Err(HeaderError::NotProxy),
        };
    }
    if let Some(&byte) = bytes.get(12) {
        if byte >> 4 != 2 {
            return Err(HeaderError::Version);
        }
        command(byte)?;
    }
    let Some(&[.., command_byte, family, high, low]) = bytes.first_chunk::<FIXED_LEN>() else {
        return Ok(None);
    };
    let length = usize::from(u16::from_be_bytes([high, low]));
    // LOCAL: the family means nothing and there may be no addresses at all (NLB sends 0x11 and none).
    if command(command_byte)? == Command::Proxy && length < addresses_len(family)? {
        return Err(HeaderError::Length);
    }
    if FIXED_LEN + length > max_header {
        return Err(HeaderError::TooLong);
    }
    Ok(Some(FIXED_LEN + length))
}

fn command(byte: u8) -> Result<Command, HeaderError> {
    match byte & 0x0F {
        0 => Ok(Command::Local),
        1 => Ok(Command::Proxy),
        _ => Err(HeaderError::Command),
    }
}

/// Bytes of addresses a family has, for those a TCP connection can come with.
fn addresses_len(family: u8) -> Result<usize, HeaderError> {
    match family {
        0x00..=0x02 => Ok(0), // UNSPEC: whatever the transport nibble says
        0x11 => Ok(12),
        0x21 => Ok(36),
        0x31 => Ok(216),
        _ => Err(HeaderError::Family),
    }
}

/// A health check's header: whatever stands in it never refuses the check, only a checksum that can be found and is wrong.
fn local(header: &[u8], policy: CrcPolicy) -> Result<Header<'_>, HeaderError> {
    let tlvs = &header[FIXED_LEN..];
    // Other senders put addresses here; only what walks cleanly as TLVs is taken for TLVs.
    let walks = Tlvs::new(tlvs).all(|entry| entry.is_ok());
    let checksum = match walks {
        true => {
            let crcs = Tlvs::new(tlvs).flatten();
            let crc = crcs
                .filter(|entry| entry.0 == tlv::CRC32C)
                .map(|entry| entry.1);
            crc.filter_map(|value| value.first_chunk::<4>().map(|sum| (value, *sum)))
                .next()
                .map_or(Checksum::Absent, |(value, sum)| verify(header, value, sum))
        }
        false => Checksum::Absent,
    };
    refuse_wrong(checksum, policy)?;
    Ok(Header {
        len: header.len(),
        command: Command::Local,
        addresses: None,
        endpoint: None,
        checksum,
        tlvs: if walks { tlvs } else { &[] },
    })
}

fn proxy(header: &[u8], policy: CrcPolicy) -> Result<Header<'_>, HeaderError> {
    let tlvs = &header[FIXED_LEN + addresses_len(header[13])?..];
    let mut endpoint = None;
    let mut checksum = None;
    for entry in Tlvs::new(tlvs) {
        match entry.map_err(|_| HeaderError::Tlv)? {
            (tlv::CRC32C, value) => {
                let sum = <[u8; 4]>::try_from(value).map_err(|_| HeaderError::Tlv)?;
                if checksum.replace(verify(header, value, sum)).is_some() {
                    return Err(HeaderError::Tlv);
                }
            }
            (tlv::AWS, [tlv::AWS_VPC_ENDPOINT, id @ ..])
                if endpoint.replace(endpoint_id(id)?).is_some() =>
            {
                return Err(HeaderError::DuplicateEndpoint);
            }
            _ => {}
        }
    }
    let checksum = checksum.unwrap_or(Checksum::Absent);
    refuse_wrong(checksum, policy)?;
    Ok(Header {
        len: header.len(),
        command: Command::Proxy,
        addresses: addresses(header)?,
        endpoint,
        checksum,
        tlvs,
    })
}

/// The addresses, by the family byte and never by the socket's family. UNSPEC and UNIX have none that TCP knows.
fn addresses(header: &[u8]) -> Result<Option<Addresses>, HeaderError> {
    if !matches!(header[13], 0x11 | 0x21) {
        return Ok(None);
    }
    let parsed = ppp::v2::Header::try_from(header).map_err(|_| HeaderError::Length)?;
    let (source, destination) = match parsed.addresses {
        ppp::v2::Addresses::IPv4(a) => (
            SocketAddr::new(IpAddr::V4(a.source_address), a.source_port),
            SocketAddr::new(IpAddr::V4(a.destination_address), a.destination_port),
        ),
        ppp::v2::Addresses::IPv6(a) => (
            SocketAddr::new(IpAddr::V6(a.source_address), a.source_port),
            SocketAddr::new(IpAddr::V6(a.destination_address), a.destination_port),
        ),
        ppp::v2::Addresses::Unix(_) | ppp::v2::Addresses::Unspecified => return Ok(None),
    };
    Ok(Some(Addresses {
        source,
        destination,
    }))
}

/// `value` is the checksum's place within `header`; it counts as four zeros (specification, section 2.2.3).
fn verify(header: &[u8], value: &[u8], sum: [u8; 4]) -> Checksum {
    let at = value.as_ptr().addr() - header.as_ptr().addr();
    let crc = crc32c::crc32c(&header[..at]);
    let crc = crc32c::crc32c_append(crc, &[0; 4]);
    let crc = crc32c::crc32c_append(crc, &header[at + 4..]);
    match crc == u32::from_be_bytes(sum) {
        true => Checksum::Right,
        false => Checksum::Wrong,
    }
}

fn refuse_wrong(checksum: Checksum, policy: CrcPolicy) -> Result<(), HeaderError> {
    match (checksum, policy) {
        (Checksum::Wrong, CrcPolicy::Verify) => Err(HeaderError::Crc),
        _ => Ok(()),
    }
}

fn endpoint_id(id: &[u8]) -> Result<&str, HeaderError> {
    let allowed = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'-';
    std::str::from_utf8(id)
        .ok()
        .filter(|text| (1..=LONGEST_ENDPOINT).contains(&text.len()))
        .filter(|text| text.bytes().all(|byte| allowed(&byte)))
        .filter(|text| !RESERVED_ENDPOINTS.contains(text))
        .ok_or(HeaderError::EndpointId)
}

#[cfg(test)]
#[path = "decode_tests.rs"]
mod tests;
