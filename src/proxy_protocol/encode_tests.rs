//! Claims about what is sent to upstreams, each read back by our own decoder and by two that are not ours.

use std::net::SocketAddr;

use proptest::prelude::*;
use proxy_header::{ParseConfig, ProxyHeader};

use super::*;
use crate::config::CrcPolicy;
use crate::proxy_protocol::decode::{Rules, decode};
use crate::proxy_protocol::header::{Checksum, Command, LONGEST};

const PASSED: Passed<'_> = Passed {
    hops: 1,
    relay_id: b"relay-1",
};

fn pair(source: &str, destination: &str) -> Option<Addresses> {
    Some(Addresses {
        source: source.parse().unwrap(),
        destination: destination.parse().unwrap(),
    })
}

fn tlv(kind: u8, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(value.len()).unwrap().to_be_bytes();
    [&[kind], &length[..], value].concat()
}

fn own(hops: u8, relay_id: &str) -> Vec<u8> {
    tlv(
        0xE7,
        &[b"TG\x01", &[hops][..], relay_id.as_bytes()].concat(),
    )
}

/// Addresses and TLVs of a header, by our own decoder, which also finds it whole and its checksum right.
#[track_caller]
fn read_back(header: &[u8]) -> (Option<Addresses>, &[u8]) {
    let rules = Rules {
        max_header: LONGEST,
        crc: CrcPolicy::Verify,
    };
    let decoded = decode(header, rules).unwrap().expect("whole");
    assert_eq!(
        (decoded.len, decoded.command),
        (header.len(), Command::Proxy)
    );
    assert_eq!(decoded.checksum, Checksum::Right);
    (decoded.addresses, decoded.tlvs)
}

#[test]
fn a_header_of_version_2_byte_for_byte() {
    let addresses = pair("172.31.7.113:51442", "172.31.10.31:80");
    let endpoint = tlv(0xEA, b"\x01vpce-1");
    let header = version_2(addresses, &endpoint, PASSED).unwrap();
    let body = [
        &[172, 31, 7, 113, 172, 31, 10, 31, 0xC8, 0xF2, 0, 80][..],
        &endpoint,
        &own(1, "relay-1"),
        &[0x03, 0, 4],
    ]
    .concat();
    let length = u8::try_from(body.len() + 4).unwrap();
    let expected = [b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0", &[length][..], &body].concat();
    assert_eq!(header[..header.len() - 4], expected);
    assert_eq!(header.capacity(), header.len(), "one allocation");
}

#[test]
fn tlvs_are_passed_on_but_for_checksum_padding_and_the_last_relays_own() {
    let kept = [
        tlv(0xEA, b"\x01vpce-1"),
        tlv(0x01, b"h2"),
        tlv(0xE7, b"somebody else's"),
        tlv(0xE7, b""),
        tlv(0x20, &[0; 300]),
        tlv(0x01, b"h2"),
        tlv(0xFF, b""),
    ];
    let mut incoming = vec![tlv(0x03, &[1; 4]), own(2, "relay-2")];
    incoming.extend(
        kept.iter()
            .flat_map(|entry| [entry.clone(), tlv(0x04, &[0; 9])]),
    );
    incoming.push(own(3, ""));
    let header = version_2(None, &incoming.concat(), PASSED).unwrap();
    let (addresses, tlvs) = read_back(&header);
    assert_eq!(addresses, None);
    let expected = [kept.concat(), own(1, "relay-1")].concat();
    assert_eq!(tlvs[..tlvs.len() - 7], expected);
}

#[test]
fn families_are_as_they_are_and_two_are_both_ipv6() {
    for (source, destination, family, back) in [
        (
            "10.0.0.1:1",
            "10.0.0.2:2",
            0x11,
            ("10.0.0.1:1", "10.0.0.2:2"),
        ),
        (
            "[fd00::1]:1",
            "[fd00::2]:2",
            0x21,
            ("[fd00::1]:1", "[fd00::2]:2"),
        ),
        (
            "10.0.0.1:1",
            "[fd00::2]:2",
            0x21,
            ("[::ffff:10.0.0.1]:1", "[fd00::2]:2"),
        ),
        (
            "[fd00::1]:1",
            "10.0.0.2:2",
            0x21,
            ("[fd00::1]:1", "[::ffff:10.0.0.2]:2"),
        ),
    ] {
        let header = version_2(pair(source, destination), b"", PASSED).unwrap();
        assert_eq!(header[13], family);
        assert_eq!(read_back(&header).0, pair(back.0, back.1));
    }
    assert_eq!(version_2(None, b"", PASSED).unwrap()[13], 0);
}

#[test]
fn a_header_is_as_long_as_the_format_allows_and_no_longer() {
    let used = version_2(pair("10.0.0.1:1", "10.0.0.2:2"), b"", PASSED)
        .unwrap()
        .len();
    let filled = |length: usize| {
        let value = vec![7; length - used - 3];
        version_2(pair("10.0.0.1:1", "10.0.0.2:2"), &tlv(0xEE, &value), PASSED)
    };
    let longest = filled(LONGEST).unwrap();
    assert_eq!(longest.len(), 65_551);
    read_back(&longest);
    assert_eq!(filled(LONGEST + 1), None);
}

#[test]
fn a_line_of_version_1_has_addresses_of_one_family() {
    for (source, destination, line) in [
        (
            "10.0.0.1:1",
            "10.0.0.2:65535",
            "PROXY TCP4 10.0.0.1 10.0.0.2 1 65535\r\n",
        ),
        (
            "[fd00::1]:1",
            "[2001:db8::]:2",
            "PROXY TCP6 fd00::1 2001:db8:: 1 2\r\n",
        ),
        (
            "[::ffff:10.0.0.1]:1",
            "10.0.0.2:2",
            "PROXY TCP4 10.0.0.1 10.0.0.2 1 2\r\n",
        ),
        (
            "[::10.0.0.1]:1",
            "[::1]:2",
            "PROXY TCP6 ::a00:1 ::1 1 2\r\n",
        ),
        ("10.0.0.1:1", "[fd00::2]:2", "PROXY UNKNOWN\r\n"),
        ("[::ffff:10.0.0.1]:1", "[fd00::2]:2", "PROXY UNKNOWN\r\n"),
    ] {
        let bytes = version_1(pair(source, destination));
        assert_eq!(String::from_utf8_lossy(&bytes), line);
    }
    assert_eq!(version_1(None), b"PROXY UNKNOWN\r\n");
    let widest = "[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535";
    let line = version_1(pair(widest, widest));
    assert!(
        line.len() == 104 && line.capacity() == LONGEST_LINE,
        "{}",
        line.len()
    );
}

#[test]
fn our_own_connections_say_that_nobody_is_behind_them() {
    let local = ppp::v2::Header::try_from(our_own(SendProxy::V2)).unwrap();
    assert_eq!(local.command, ppp::v2::Command::Local);
    assert_eq!(local.addresses, ppp::v2::Addresses::Unspecified);
    let (theirs, consumed) =
        ProxyHeader::parse(our_own(SendProxy::V2), ParseConfig::default()).unwrap();
    assert_eq!((theirs.proxied_address(), consumed), (None, 16));
    let unknown = ppp::v1::Header::try_from(our_own(SendProxy::V1)).unwrap();
    assert_eq!(unknown.addresses, ppp::v1::Addresses::Unknown);
    assert_eq!(our_own(SendProxy::Off), b"");
}

fn any_address() -> impl Strategy<Value = SocketAddr> {
    let ip = prop_oneof![
        any::<[u8; 4]>().prop_map(IpAddr::from),
        any::<[u8; 16]>().prop_map(IpAddr::from),
        any::<[u8; 4]>().prop_map(|ip| IpAddr::V6(std::net::Ipv4Addr::from(ip).to_ipv6_mapped())),
    ];
    (ip, any::<u16>()).prop_map(SocketAddr::from)
}

fn any_addresses() -> impl Strategy<Value = Option<Addresses>> {
    let both = (any_address(), any_address());
    proptest::option::of(both.prop_map(|(source, destination)| Addresses {
        source,
        destination,
    }))
}

/// TLVs that every decoder takes: two of them look into types that have a form of their own, and ours into endpoint ids.
fn any_tlvs() -> impl Strategy<Value = Vec<(u8, Vec<u8>)>> {
    let value = || proptest::collection::vec(any::<u8>(), 0..40);
    let kind = prop_oneof![
        Just(0x04),
        Just(0xE7),
        0xE0..=0xE9_u8,
        0xEB..=0xF7_u8,
        0x40..0x50_u8
    ];
    let entry = prop_oneof![
        (kind, value()),
        value().prop_map(|value| (0xEA, [&[2], &value[..]].concat())),
        value().prop_map(|value| (0xE7, [&Passed::MARK, &value[..]].concat())),
    ];
    proptest::collection::vec(entry, 0..6)
}

proptest! {
    #[test]
    fn decoders_agree_with_what_was_sent(
        addresses in any_addresses(), entries in any_tlvs(), hops in any::<u8>(), relay_id in "[A-Za-z0-9.-]{1,64}",
    ) {
        let tlvs: Vec<u8> = entries.iter().flat_map(|(kind, value)| tlv(*kind, value)).collect();
        let passed = Passed { hops, relay_id: relay_id.as_bytes() };
        let header = version_2(addresses, &tlvs, passed).unwrap();
        prop_assert_eq!(header.capacity(), header.len());

        let as_sent = addresses.map(|Addresses { source, destination }| {
            match source.is_ipv4() && destination.is_ipv4() {
                true => (source, destination),
                false => {
                    let v6 = |a: SocketAddr| SocketAddr::from((in_ipv6(a.ip()), a.port()));
                    (v6(source), v6(destination))
                }
            }
        });
        let mut expected: Vec<(u8, Vec<u8>)> = entries
            .into_iter()
            .filter(|(kind, value)| *kind != 0x04 && Passed::from_tlv(*kind, value).is_none())
            .collect();
        expected.push((0xE7, [b"TG\x01", &[hops][..], relay_id.as_bytes()].concat()));

        let (ours, tlvs) = read_back(&header);
        prop_assert_eq!(ours.map(|a| (a.source, a.destination)), as_sent);
        let mut found: Vec<_> = Tlvs::new(tlvs).map(|entry| entry.unwrap()).map(|(k, v)| (k, v.to_vec())).collect();
        let sum = found.pop().unwrap();
        prop_assert_eq!((sum.0, sum.1.len()), (0x03, 4));
        prop_assert_eq!(&found, &expected);

        let theirs = ppp::v2::Header::try_from(&header[..]).unwrap();
        prop_assert_eq!(theirs.len(), header.len());
        prop_assert_eq!(theirs.command, ppp::v2::Command::Proxy);
        // To this one everything behind an unknown family is its address.
        if addresses.is_some() {
            let mut found: Vec<_> = theirs.tlvs().map(|entry| entry.unwrap()).map(|e| (e.kind, e.value.to_vec())).collect();
            found.pop();
            prop_assert_eq!(&found, &expected);
        }

        let (theirs, consumed) = ProxyHeader::parse(&header, ParseConfig::default()).unwrap();
        prop_assert_eq!(consumed, header.len());
        prop_assert_eq!(theirs.proxied_address().map(|a| (a.source, a.destination)), as_sent);
        prop_assert_eq!(theirs.crc32c(), Some(u32::from_be_bytes(sum.1.try_into().unwrap())));
    }

    #[test]
    fn a_relay_behind_passes_on_what_the_one_before_did(addresses in any_addresses(), entries in any_tlvs()) {
        let tlvs: Vec<u8> = entries.iter().flat_map(|(kind, value)| tlv(*kind, value)).collect();
        let first = version_2(addresses, &tlvs, PASSED).unwrap();
        let (addresses, tlvs) = read_back(&first);
        let second = version_2(addresses, tlvs, PASSED).unwrap();
        prop_assert_eq!(first, second, "but for what it says of itself");
    }

    #[test]
    fn lines_are_read_by_others_as_they_were_meant(addresses in any_addresses()) {
        let line = version_1(addresses);
        prop_assert!(line.len() <= LONGEST_LINE);
        let text = std::str::from_utf8(&line).unwrap();
        let of_one_family = addresses.map(|Addresses { source, destination }| {
            let canonical = |a: SocketAddr| SocketAddr::new(a.ip().to_canonical(), a.port());
            (canonical(source), canonical(destination))
        }).filter(|(source, destination)| source.is_ipv4() == destination.is_ipv4());
        let theirs = match ppp::v1::Header::try_from(text).unwrap().addresses {
            ppp::v1::Addresses::Unknown => None,
            ppp::v1::Addresses::Tcp4(a) => Some((
                SocketAddr::from((a.source_address, a.source_port)),
                SocketAddr::from((a.destination_address, a.destination_port)),
            )),
            ppp::v1::Addresses::Tcp6(a) => Some((
                SocketAddr::from((a.source_address, a.source_port)),
                SocketAddr::from((a.destination_address, a.destination_port)),
            )),
        };
        prop_assert_eq!(theirs, of_one_family);
        let (theirs, consumed) = ProxyHeader::parse(&line, ParseConfig { allow_v1: true, ..Default::default() }).unwrap();
        prop_assert_eq!(consumed, line.len());
        prop_assert_eq!(theirs.proxied_address().map(|a| (a.source, a.destination)), of_one_family);
    }
}
