//! `decode`: what a header says, for whoever has a capture and a question.

use std::io::{self, Read, Write};

use serde_json::{Value, json};

use super::{Error, ExitCode};
use crate::config::CrcPolicy;
use crate::proxy_protocol::decode::{Rules, decode as decode_header};
use crate::proxy_protocol::header::{
    Checksum, Command, Header, HeaderError, LONGEST, Passed, SIGNATURE, Tlvs, tlv,
};

/// Explain a PROXY protocol v2 header, as a listener would take it.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    tollgate decode 0d0a0d0a000d0a515549540a2000000000\n  \
    xxd -p capture.bin | tollgate decode -")]
pub(super) struct Args {
    /// The bytes in hexadecimal, white space and colons ignored; "-" or nothing reads them from standard input, as they are
    /// or in hexadecimal
    #[arg(value_name = "HEX|-")]
    hex: Option<String>,
    /// One JSON document instead of text
    #[arg(long)]
    json: bool,
}

/// Most input read: the longest header in hexadecimal, with room for line ends.
const LONGEST_INPUT: u64 = 4 * LONGEST as u64;

/// Decodes and prints; a header that a listener would refuse is [`ExitCode::Data`].
pub(super) fn run(arguments: &Args) -> Result<ExitCode, Error> {
    let bytes = match arguments.hex.as_deref() {
        Some(hex) if hex != "-" => from_hex(hex),
        _ => read_input(),
    };
    let bytes = bytes.map_err(Error::Input)?;
    let outcome = explain(&bytes);
    let text = if arguments.json {
        format!("{:#}\n", outcome.json())
    } else {
        outcome.text()
    };
    io::stdout()
        .lock()
        .write_all(text.as_bytes())
        .map_err(Error::Output)?;
    Ok(match outcome {
        Outcome::Taken { .. } => ExitCode::Ok,
        Outcome::Refused(_) | Outcome::Incomplete(_) => ExitCode::Data,
    })
}

enum Outcome<'a> {
    Taken { header: Header<'a>, payload: usize },
    Refused(HeaderError),
    Incomplete(usize),
}

fn explain(bytes: &[u8]) -> Outcome<'_> {
    let rules = Rules {
        max_header: LONGEST,
        crc: CrcPolicy::Verify,
    };
    match decode_header(bytes, rules) {
        Ok(Some(header)) => Outcome::Taken {
            payload: bytes.len() - header.len,
            header,
        },
        Ok(None) => Outcome::Incomplete(bytes.len()),
        Err(error) => Outcome::Refused(error),
    }
}

impl Outcome<'_> {
    fn text(&self) -> String {
        match self {
            Self::Refused(error) => format!("refused     {}: {error}\n", error.name()),
            Self::Incomplete(bytes) => format!(
                "incomplete  {bytes} bytes are the beginning of a header; a listener would wait for the rest\n"
            ),
            Self::Taken { header, payload } => {
                let mut lines = vec![
                    ("command", command(header).to_owned()),
                    ("length", format!("{} bytes", header.len)),
                ];
                if let Some(addresses) = header.addresses {
                    lines.push(("source", addresses.source.to_string()));
                    lines.push(("destination", addresses.destination.to_string()));
                }
                lines.push(("endpoint", header.endpoint.unwrap_or("none").to_owned()));
                lines.push(("crc32c", checksum(header).to_owned()));
                for (kind, value) in Tlvs::new(header.tlvs).flatten() {
                    lines.push((
                        "tlv",
                        format!(
                            "{kind:#04x} {}, {} bytes{}",
                            kind_name(kind, value),
                            value.len(),
                            shown(kind, value)
                        ),
                    ));
                }
                lines.push(("payload", format!("{payload} bytes follow")));
                lines
                    .iter()
                    .map(|(name, value)| format!("{name:<12}{value}\n"))
                    .collect()
            }
        }
    }

    fn json(&self) -> Value {
        match self {
            Self::Refused(error) => {
                json!({ "outcome": "refused", "error": error.name(), "why": error.to_string() })
            }
            Self::Incomplete(bytes) => json!({ "outcome": "incomplete", "bytes": bytes }),
            Self::Taken { header, payload } => json!({
                "outcome": "taken",
                "command": command(header),
                "length": header.len,
                "source": header.addresses.map(|addresses| addresses.source.to_string()),
                "destination": header.addresses.map(|addresses| addresses.destination.to_string()),
                "endpoint": header.endpoint,
                "crc32c": checksum(header),
                "tlvs": Tlvs::new(header.tlvs).flatten().map(|(kind, value)| json!({
                    "type": kind, "name": kind_name(kind, value), "value": to_hex(value),
                })).collect::<Vec<_>>(),
                "payload_bytes": payload,
            }),
        }
    }
}

fn command(header: &Header<'_>) -> &'static str {
    match header.command {
        Command::Local => "LOCAL (a health check: opens nothing)",
        Command::Proxy => "PROXY (a client's connection)",
    }
}

fn checksum(header: &Header<'_>) -> &'static str {
    match header.checksum {
        Checksum::Absent => "absent",
        Checksum::Right => "right",
        Checksum::Wrong => "wrong",
    }
}

/// Names from the specification, section 2.2, and Amazon's own.
fn kind_name(kind: u8, value: &[u8]) -> &'static str {
    match (kind, value.first()) {
        (0x01, _) => "ALPN",
        (0x02, _) => "AUTHORITY",
        (tlv::CRC32C, _) => "CRC32C",
        (tlv::NOOP, _) => "NOOP (padding)",
        (0x05, _) => "UNIQUE_ID",
        (0x20, _) => "SSL",
        (0x30, _) => "NETNS",
        (tlv::AWS, Some(&tlv::AWS_VPC_ENDPOINT)) => "AWS VPC endpoint id",
        (tlv::AWS, _) => "AWS, other subtype",
        _ if Passed::from_tlv(kind, value).is_some() => "tollgate: hops and relay id",
        (0xE0..=0xEF, _) => "custom",
        (0xF0..=0xF7, _) => "experimental",
        _ => "unknown",
    }
}

/// A value in hexadecimal, where that helps: not for padding.
fn shown(kind: u8, value: &[u8]) -> String {
    match (kind, value) {
        (tlv::NOOP, _) | (_, []) => String::new(),
        _ => format!(": {}", to_hex(value)),
    }
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Takes the forms in which captures are copied: `0d0a…`, `0d 0a …`, `0d:0a:…`, `0x0d0a…`.
fn from_hex(text: &str) -> Result<Vec<u8>, String> {
    let text = text.trim();
    let text = text.strip_prefix("0x").unwrap_or(text);
    let digit = |(at, c): (usize, char)| match c.to_digit(16) {
        Some(digit) => Ok(u8::try_from(digit).unwrap_or(0)),
        None => Err(format!(
            "character {} is {c:?}, which is no hexadecimal digit",
            at + 1
        )),
    };
    let separator = |c: char| c.is_whitespace() || c == ':';
    let characters = text.char_indices().filter(|(_, c)| !separator(*c));
    let digits = characters.map(digit).collect::<Result<Vec<u8>, String>>()?;
    match digits.len() {
        0 => Err("no bytes to decode: give them in hexadecimal, or on standard input".to_owned()),
        odd if odd % 2 == 1 => Err(format!(
            "{odd} hexadecimal digits: the last byte has only one"
        )),
        _ => Ok(digits
            .chunks_exact(2)
            .map(|pair| pair[0] << 4 | pair[1])
            .collect()),
    }
}

/// Standard input, whole: hexadecimal, or the bytes of a header as they are.
fn read_input() -> Result<Vec<u8>, String> {
    let mut input = Vec::new();
    let read = io::stdin()
        .lock()
        .take(LONGEST_INPUT)
        .read_to_end(&mut input);
    read.map_err(|error| format!("standard input cannot be read: {error}"))?;
    if input.starts_with(&SIGNATURE) {
        return Ok(input);
    }
    from_hex(&String::from_utf8_lossy(&input))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRIVATELINK: &str = include_str!("../proxy_protocol/vectors/privatelink-tcp4.hex");
    const UDP: &str = include_str!("../proxy_protocol/vectors/direct-udp4.hex");

    #[test]
    fn a_privatelink_header_is_explained() {
        let bytes = from_hex(PRIVATELINK).unwrap();
        let text = explain(&bytes).text();
        for part in [
            "172.31.7.113:51442",
            "vpce-08d2bf15fac5001c9",
            "crc32c      right",
            "0 bytes follow",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
        let json = explain(&bytes).json();
        assert_eq!(json["endpoint"], "vpce-08d2bf15fac5001c9");
        assert_eq!(json["tlvs"].as_array().unwrap().len(), 3);
    }

    #[test]
    fn what_a_relay_adds_is_told_from_what_others_keep_under_its_type() {
        let tlv = |value: &[u8]| [&[0xE7, 0, u8::try_from(value.len()).unwrap()], value].concat();
        let tlvs = [tlv(b"TG\x01\x02relay-1"), tlv(b"else")].concat();
        let length = u8::try_from(tlvs.len()).unwrap();
        let bytes = [&SIGNATURE[..], &[0x21, 0, 0, length], &tlvs].concat();
        let text = explain(&bytes).text();
        assert!(text.contains("0xe7 tollgate: hops and relay id, 11 bytes: 54470102"));
        assert!(text.contains("0xe7 custom, 4 bytes"), "{text}");
    }

    #[test]
    fn a_udp_header_is_refused_by_name() {
        let bytes = from_hex(UDP).unwrap();
        assert!(explain(&bytes).text().contains("family"));
        assert_eq!(explain(&bytes).json()["error"], "family");
    }

    #[test]
    fn the_beginning_of_a_header_is_incomplete() {
        let bytes = from_hex(&PRIVATELINK[..40]).unwrap();
        assert_eq!(explain(&bytes).json()["outcome"], "incomplete");
    }

    #[test]
    fn bytes_are_taken_as_they_are_copied() {
        for text in ["0d0a00", "0d 0a\n00", "0d:0a:00", "0x0d0a00"] {
            assert_eq!(from_hex(text).unwrap(), [0x0d, 0x0a, 0]);
        }
    }

    #[test]
    fn what_is_no_hexadecimal_is_told_by_its_place() {
        assert!(from_hex("0d 0x").unwrap_err().contains("character 5"));
        assert!(
            from_hex("0d0")
                .unwrap_err()
                .contains("3 hexadecimal digits")
        );
        assert!(from_hex(" \n").unwrap_err().contains("no bytes"));
    }
}
