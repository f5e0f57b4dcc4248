//! Claims about decoding. `vectors` holds headers as NLB puts them on the wire.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;
use proxy_header::ParseConfig;

use super::*;

const PRIVATELINK_TCP4: &str = include_str!("vectors/privatelink-tcp4.hex");
const SYNTHETIC_TCP6: &str = include_str!("vectors/synthetic-tcp6.hex");
const HEALTH_CHECK_LOCAL: &str = include_str!("vectors/health-check-local.hex");
const DIRECT_UDP4: &str = include_str!("vectors/direct-udp4.hex");

const RULES: Rules = Rules {
    max_header: 4096,
    crc: CrcPolicy::Verify,
};
const IGNORE_CRC: Rules = Rules {
    max_header: 4096,
    crc: CrcPolicy::Ignore,
};

fn bytes_of(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> = hex.trim().bytes().collect();
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    digits.chunks(2).map(byte).collect()
}

fn header(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = SIGNATURE.to_vec();
    bytes.extend([0x20 | command, family]);
    bytes.extend(u16::try_from(body.len()).unwrap().to_be_bytes());
    bytes.extend(body);
    bytes
}

fn tcp4(tlvs: &[u8]) -> Vec<u8> {
    let addresses = [172, 31, 7, 113, 172, 31, 10, 31, 0xC8, 0xF2, 0, 80];
    header(1, 0x11, &[&addresses, tlvs].concat())
}

fn entry(kind: u8, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(value.len()).unwrap().to_be_bytes();
    [&[kind], &length[..], value].concat()
}

fn endpoint_entry(id: &[u8]) -> Vec<u8> {
    entry(tlv::AWS, &[&[tlv::AWS_VPC_ENDPOINT], id].concat())
}

fn refused(bytes: &[u8]) -> HeaderError {
    decode(bytes, RULES).expect_err("must be refused")
}

#[test]
fn privatelink_header_tells_endpoint_and_client() {
    let bytes = bytes_of(PRIVATELINK_TCP4);
    let header = decode(&bytes, RULES).unwrap().unwrap();
    assert_eq!(header.len, 100);
    assert_eq!(header.command, Command::Proxy);
    assert_eq!(header.endpoint, Some("vpce-08d2bf15fac5001c9"));
    assert_eq!(header.checksum, Checksum::Right);
    let addresses = header.addresses.unwrap();
    assert_eq!(addresses.source, "172.31.7.113:51442".parse().unwrap());
    assert_eq!(addresses.destination, "172.31.10.31:80".parse().unwrap());
}

#[test]
fn ipv6_header_tells_endpoint_and_client() {
    let bytes = bytes_of(SYNTHETIC_TCP6);
    let header = decode(&bytes, RULES).unwrap().unwrap();
    assert_eq!(header.endpoint, Some("vpce-0123456789abcdef0"));
    assert_eq!(header.checksum, Checksum::Right);
    assert!(header.addresses.unwrap().source.is_ipv6());
}

#[test]
fn local_without_addresses_is_a_health_check() {
    let bytes = bytes_of(HEALTH_CHECK_LOCAL);
    let header = decode(&bytes, RULES).unwrap().unwrap();
    assert_eq!((header.command, header.len), (Command::Local, 100));
    assert_eq!((header.addresses, header.endpoint), (None, None));
    assert_eq!(header.checksum, Checksum::Right);
}

#[test]
fn local_with_a_wrong_crc_is_refused_unless_ignored() {
    let mut bytes = bytes_of(HEALTH_CHECK_LOCAL);
    bytes[99] ^= 1;
    assert_eq!(refused(&bytes), HeaderError::Crc);
    let header = decode(&bytes, IGNORE_CRC).unwrap().unwrap();
    assert_eq!(header.checksum, Checksum::Wrong);
}

#[test]
fn local_takes_any_family_and_any_body() {
    for body in [
        &[][..],
        &[127, 0, 0, 1, 127, 0, 0, 1, 0, 80, 0, 80],
        &[9; 5],
    ] {
        for family in [0x00, 0x11, 0x12, 0x21, 0x31, 0xFF] {
            let bytes = header(0, family, body);
            let header = decode(&bytes, RULES).unwrap().unwrap();
            assert_eq!(header.command, Command::Local);
        }
    }
}

#[test]
fn endpoint_inside_a_local_header_means_nothing() {
    let bytes = header(0, 0x11, &endpoint_entry(b"vpce-1"));
    assert_eq!(decode(&bytes, RULES).unwrap().unwrap().endpoint, None);
}

#[test]
fn udp_is_refused_by_family() {
    assert_eq!(refused(&bytes_of(DIRECT_UDP4)), HeaderError::Family);
    for family in [0x12, 0x22, 0x32, 0x10, 0x13, 0x40, 0xFF] {
        assert_eq!(refused(&header(1, family, &[0; 300])), HeaderError::Family);
    }
}

#[test]
fn unspec_and_unix_have_no_addresses_but_keep_their_tlvs() {
    let tlvs = endpoint_entry(b"vpce-1");
    for (family, skipped) in [(0x00, 0), (0x01, 0), (0x31, 216)] {
        let bytes = header(1, family, &[vec![0xAB; skipped], tlvs.clone()].concat());
        let header = decode(&bytes, RULES).unwrap().unwrap();
        assert_eq!((header.addresses, header.endpoint), (None, Some("vpce-1")));
    }
}

#[test]
fn addresses_must_fit_the_length() {
    for (family, needed) in [(0x11, 12), (0x21, 36), (0x31, 216)] {
        assert_eq!(
            refused(&header(1, family, &vec![0; needed - 1])),
            HeaderError::Length
        );
        assert!(
            decode(&header(1, family, &vec![0; needed]), RULES)
                .unwrap()
                .is_some()
        );
    }
}

#[test]
fn version_and_command_are_refused_at_the_thirteenth_byte() {
    let at_thirteen = |byte: u8| [&SIGNATURE[..], &[byte]].concat();
    assert_eq!(refused(&at_thirteen(0x11)), HeaderError::Version);
    assert_eq!(refused(&at_thirteen(0x31)), HeaderError::Version);
    assert_eq!(refused(&at_thirteen(0x22)), HeaderError::Command);
    assert_eq!(decode(&at_thirteen(0x21), RULES), Ok(None));
}

#[test]
fn version_1_is_told_from_noise() {
    assert_eq!(
        refused(b"PROXY TCP4 1.2.3.4 1.2.3.4 1 2\r\n"),
        HeaderError::NotV2
    );
    assert_eq!(decode(b"PROX", RULES), Ok(None));
    assert_eq!(refused(b"POST / HTTP/1.1\r\n"), HeaderError::NotProxy);
    assert_eq!(refused(b"\x16\x03\x01"), HeaderError::NotProxy);
    assert_eq!(refused(b"\r\n\r\n\0\r\nQUIX"), HeaderError::NotProxy);
}

#[test]
fn length_at_the_maximum_passes_and_one_above_does_not() {
    let exact = tcp4(&entry(tlv::NOOP, &[0; 4096 - 16 - 12 - 3]));
    assert_eq!(exact.len(), 4096);
    assert!(decode(&exact, RULES).unwrap().is_some());
    let above = tcp4(&entry(tlv::NOOP, &[0; 4096 - 16 - 12 - 3 + 1]));
    assert_eq!(
        refused(&above[..16]),
        HeaderError::TooLong,
        "before its bytes are waited for"
    );
}

#[test]
fn tlvs_must_add_up() {
    for stray in [
        &[0xEA][..],
        &[0xEA, 0],
        &[0x04, 0, 9, 0],
        &[0x04, 0xFF, 0xFF],
    ] {
        assert_eq!(refused(&tcp4(stray)), HeaderError::Tlv);
    }
    for fine in [entry(0x04, &[]), entry(0xE0, b"own"), entry(0x04, &[0; 30])] {
        assert!(decode(&tcp4(&fine), RULES).unwrap().is_some());
    }
    assert_eq!(
        refused(&tcp4(&entry(tlv::CRC32C, &[1, 2, 3]))),
        HeaderError::Tlv
    );
}

#[test]
fn other_subtypes_and_empty_values_are_no_id() {
    for value in [&[][..], &[2], b"\x02vpce-1", &[0]] {
        let bytes = tcp4(&entry(tlv::AWS, value));
        assert_eq!(decode(&bytes, RULES).unwrap().unwrap().endpoint, None);
    }
    let both = [entry(tlv::AWS, b"\x02x"), endpoint_entry(b"vpce-1")].concat();
    assert_eq!(
        decode(&tcp4(&both), RULES).unwrap().unwrap().endpoint,
        Some("vpce-1")
    );
}

#[test]
fn hostile_ids_are_refused() {
    let long = [b'a'; 65];
    let ids: [&[u8]; 11] = [
        b"",
        b"a\nb",
        b"a\0",
        b"vpce_1",
        b"\xFF\xFE",
        b"a b",
        "vpcé".as_bytes(),
        &long,
        b"direct",
        b"overflow",
        b"other",
    ];
    for id in ids {
        assert_eq!(
            refused(&tcp4(&endpoint_entry(id))),
            HeaderError::EndpointId,
            "{id:?}"
        );
    }
    assert!(decode(&tcp4(&endpoint_entry(&long[..64])), RULES).is_ok());
}

#[test]
fn two_ids_are_refused_even_when_equal() {
    let twice = [endpoint_entry(b"vpce-1"), endpoint_entry(b"vpce-1")].concat();
    assert_eq!(refused(&tcp4(&twice)), HeaderError::DuplicateEndpoint);
}

#[test]
fn any_flipped_bit_is_caught_by_the_checksum_or_refused_otherwise() {
    let good = bytes_of(PRIVATELINK_TCP4);
    for bit in 0..good.len() * 8 {
        let mut bytes = good.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        // A longer length waits for bytes that never come; PROXY made LOCAL opens nothing.
        match decode(&bytes, RULES) {
            Err(_) | Ok(None) => {}
            Ok(Some(header)) if header.command == Command::Local => assert_eq!(bit, 12 * 8),
            // The type of the checksum's own TLV: one less check, and nothing else changed.
            Ok(Some(header)) if header.checksum == Checksum::Absent => assert_eq!(bit / 8, 28),
            Ok(Some(header)) => panic!("bit {bit} went unnoticed: {header:?}"),
        }
    }
}

#[test]
fn ignoring_the_checksum_takes_a_wrong_one() {
    let mut bytes = bytes_of(PRIVATELINK_TCP4);
    bytes[19] ^= 1; // within the source address
    assert_eq!(refused(&bytes), HeaderError::Crc);
    assert!(decode(&bytes, IGNORE_CRC).unwrap().is_some());
}

fn arbitrary_tlvs() -> impl Strategy<Value = Vec<u8>> {
    let one = (any::<u8>(), proptest::collection::vec(any::<u8>(), 0..40));
    proptest::collection::vec(one, 0..6).prop_map(|entries| {
        let kept = entries
            .iter()
            .filter(|e| e.0 != tlv::CRC32C && e.0 != tlv::AWS);
        kept.flat_map(|(kind, value)| entry(*kind, value)).collect()
    })
}

proptest! {
    #[test]
    fn every_prefix_is_incomplete_and_the_payload_is_left_alone(
        tlvs in arbitrary_tlvs(), payload in proptest::collection::vec(any::<u8>(), 0..64),
    ) {
        let bytes = tcp4(&[tlvs, endpoint_entry(b"vpce-1")].concat());
        for cut in 0..bytes.len() {
            prop_assert_eq!(decode(&bytes[..cut], RULES), Ok(None));
        }
        let glued = [bytes.clone(), payload].concat();
        let header = decode(&glued, RULES).unwrap().unwrap();
        prop_assert_eq!(header.len, bytes.len());
        prop_assert_eq!(header.endpoint, Some("vpce-1"));
    }

    #[test]
    fn arbitrary_bytes_never_panic(
        command in any::<u8>(), family in any::<u8>(), body in proptest::collection::vec(any::<u8>(), 0..400),
    ) {
        let mut bytes = header(0, family, &body);
        bytes[12] = command;
        let _ = decode(&bytes, RULES);
        let _ = decode(&body, RULES);
    }

    #[test]
    fn an_independent_decoder_agrees_on_addresses(
        v4 in any::<[u8; 8]>(), v6 in any::<[u8; 32]>(), ports in any::<[u8; 4]>(), tlvs in arbitrary_tlvs(),
    ) {
        for bytes in [
            header(1, 0x11, &[&v4[..], &ports, &tlvs].concat()),
            header(1, 0x21, &[&v6[..], &ports, &tlvs].concat()),
        ] {
            let ours = decode(&bytes, RULES).unwrap().unwrap().addresses.unwrap();
            let (theirs, consumed) = proxy_header::ProxyHeader::parse(&bytes, ParseConfig::default()).unwrap();
            let theirs = theirs.proxied_address().unwrap();
            prop_assert_eq!(consumed, bytes.len());
            prop_assert_eq!((ours.source, ours.destination), (theirs.source, theirs.destination));
        }
    }
}

#[test]
fn address_bytes_are_in_network_order() {
    let bytes = header(1, 0x11, &[1, 2, 3, 4, 5, 6, 7, 8, 0x12, 0x34, 0x56, 0x78]);
    let addresses = decode(&bytes, RULES).unwrap().unwrap().addresses.unwrap();
    assert_eq!(addresses.source.ip(), IpAddr::V4(Ipv4Addr::new(1, 2, 3, 4)));
    assert_eq!(addresses.destination.port(), 0x5678);
    let mut body = [0; 36];
    body[15] = 1;
    let bytes = header(1, 0x21, &body);
    let addresses = decode(&bytes, RULES).unwrap().unwrap().addresses.unwrap();
    assert_eq!(addresses.source.ip(), IpAddr::V6(Ipv6Addr::LOCALHOST));
}
