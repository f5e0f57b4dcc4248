//! Claims about what a client's first bytes tell. Every case is looked at whole, byte by byte, and cut in two at every place.

use std::sync::Arc;

use proptest::prelude::*;
use tokio_rustls::rustls::{ClientConfig, ClientConnection, RootCertStore, pki_types::ServerName};

use super::*;

const MOST: usize = 32 * 1024;

/// What `bytes` tell; `None` while that is not decided.
fn whole(bytes: &[u8], most: usize) -> Option<Seen> {
    match Peek::new(most).look(bytes) {
        Look::Over(seen) => Some(seen),
        Look::More(n) => {
            assert!(n > 0);
            None
        }
    }
}

/// As [`whole`], shown in steps that end at `cuts`.
fn in_steps(bytes: &[u8], most: usize, cuts: impl IntoIterator<Item = usize>) -> Option<Seen> {
    let mut peek = Peek::new(most);
    for cut in cuts.into_iter().chain([bytes.len()]) {
        if let Look::Over(seen) = peek.look(&bytes[..cut]) {
            return Some(seen);
        }
    }
    None
}

#[track_caller]
fn tells(bytes: &[u8]) -> Option<Seen> {
    let seen = whole(bytes, MOST);
    assert_eq!(seen, in_steps(bytes, MOST, 1..bytes.len()), "byte by byte");
    for cut in 1..bytes.len() {
        assert_eq!(seen, in_steps(bytes, MOST, [cut]), "cut at {cut}");
    }
    seen
}

#[track_caller]
fn outcome(bytes: &[u8]) -> PeekOutcome {
    let seen = tells(bytes).expect("must be decided");
    assert_eq!(seen.name, None);
    seen.outcome
}

fn sni(name: &str) -> Option<Seen> {
    Some(Seen {
        outcome: PeekOutcome::Sni,
        name: Some(Name::Sni(name.to_owned())),
    })
}

fn host(name: &str) -> Option<Seen> {
    Some(Seen {
        outcome: PeekOutcome::Host,
        name: Some(Name::Host(name.to_owned())),
    })
}

fn vector16(bytes: &[u8]) -> Vec<u8> {
    let length = u16::try_from(bytes.len()).unwrap();
    [&length.to_be_bytes(), bytes].concat()
}

fn extension(kind: u16, data: &[u8]) -> Vec<u8> {
    [&kind.to_be_bytes()[..], &vector16(data)].concat()
}

fn entry(kind: u8, name: &[u8]) -> Vec<u8> {
    [&[kind], &vector16(name)[..]].concat()
}

fn server_name(name: &[u8]) -> Vec<u8> {
    extension(0, &vector16(&entry(0, name)))
}

/// A ClientHello as a message; `None`: without the extensions and their length, as clients of SSL 3.0 send it.
fn hello(extensions: Option<&[u8]>) -> Vec<u8> {
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    body.extend([0]);
    body.extend(vector16(&[0x5A, 0x5A, 0x13, 0x01])); // the first is one of GREASE's
    body.extend([1, 0]);
    body.extend(extensions.map(vector16).unwrap_or_default());
    message(1, &body)
}

fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len()).unwrap().to_be_bytes();
    [&[kind], &length[1..], body].concat()
}

fn record(kind: u8, minor: u8, fragment: &[u8]) -> Vec<u8> {
    [&[kind, 3, minor], &vector16(fragment)[..]].concat()
}

fn tls(message: &[u8]) -> Vec<u8> {
    record(22, 1, message)
}

fn tls_with(extensions: &[u8]) -> Vec<u8> {
    tls(&hello(Some(extensions)))
}

/// What rustls says first, and behind it the beginning of something else.
fn of_rustls(name: &str) -> Vec<u8> {
    let provider = tokio_rustls::rustls::crypto::ring::default_provider();
    let config = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let mut client = ClientConnection::new(Arc::new(config), name).unwrap();
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).unwrap();
    bytes
}

#[test]
fn a_real_client_tells_its_name_and_none_for_an_address() {
    assert_eq!(
        tells(&of_rustls("logs.example.com")),
        sni("logs.example.com")
    );
    assert_eq!(outcome(&of_rustls("10.30.0.2")), PeekOutcome::NoSni);
}

#[test]
fn a_name_is_found_in_lower_case_and_without_its_dot() {
    for name in ["logs.example", "LOGS.Example", "logs.example."] {
        assert_eq!(
            tells(&tls_with(&server_name(name.as_bytes()))),
            sni("logs.example")
        );
    }
    assert_eq!(tells(&tls_with(&server_name(b"_a-b.c1"))), sni("_a-b.c1"));
    let longest = [[b'a'; 61]; 4].join(&b'.');
    let name = String::from_utf8([&longest[..], b".abcde"].concat()).unwrap();
    assert_eq!(name.len(), 253);
    assert_eq!(tells(&tls_with(&server_name(name.as_bytes()))), sni(&name));
}

#[test]
fn a_hello_may_be_spread_over_records() {
    let hello = hello(Some(&server_name(b"logs.example")));
    for size in [1, 2, 3, 4, 5, 7, 40, hello.len() - 1] {
        let records: Vec<u8> = hello
            .chunks(size)
            .flat_map(|piece| record(22, 3, piece))
            .collect();
        assert_eq!(
            tells(&records),
            sni("logs.example"),
            "records of {size} bytes"
        );
    }
    for cut in 1..hello.len() {
        let (first, rest) = hello.split_at(cut);
        let glued = [record(22, 1, first), record(22, 3, rest), b"more".to_vec()].concat();
        assert_eq!(whole(&glued, MOST), sni("logs.example"), "cut at {cut}");
    }
}

#[test]
fn a_hello_of_16_kib_is_one_record_and_a_larger_one_is_two() {
    let padded = |room: usize| {
        let name = server_name(b"logs.example");
        let used = hello(Some(&name)).len() + 4;
        let padding = extension(21, &vec![0; room - used]);
        hello(Some(&[padding, name].concat()))
    };
    assert_eq!(whole(&tls(&padded(16384)), MOST), sni("logs.example"));
    let large = padded(20_000);
    let records: Vec<u8> = large
        .chunks(16384)
        .flat_map(|piece| record(22, 3, piece))
        .collect();
    assert_eq!(whole(&records, MOST), sni("logs.example"));
    assert_eq!(
        in_steps(&records, MOST, (1..records.len()).step_by(97)),
        sni("logs.example")
    );
    let too_long = Some(Seen::nameless(PeekOutcome::TooLong));
    assert_eq!(
        whole(&records[..5], 16384),
        too_long,
        "as soon as its length is there"
    );
    assert_eq!(whole(&records, 20_000), too_long);
    assert_eq!(in_steps(&records, 20_000, 1..records.len()), too_long);
}

#[test]
fn old_versions_and_grease_are_passed_over() {
    let name = server_name(b"logs.example");
    let grease = [extension(0x1A1A, b""), extension(0xFAFA, b"\0")];
    let with_grease = [&grease[0][..], &name, &grease[1]].concat();
    assert_eq!(tells(&tls_with(&with_grease)), sni("logs.example"));
    for minor in [0, 1, 2, 3, 4, 0x7F] {
        let mut hello = hello(Some(&name));
        hello[5] = minor;
        assert_eq!(tells(&record(22, minor, &hello)), sni("logs.example"));
    }
}

#[test]
fn a_hello_without_a_name_is_well_formed() {
    let session_ticket = extension(35, b"");
    for extensions in [None, Some(&[][..]), Some(&session_ticket)] {
        assert_eq!(outcome(&tls(&hello(extensions))), PeekOutcome::NoSni);
    }
    for address in ["192.0.2.1", "2001:db8::1"] {
        let hello = tls_with(&server_name(address.as_bytes()));
        assert_eq!(outcome(&hello), PeekOutcome::NoSni, "{address}");
    }
    let other_kind = extension(0, &vector16(&entry(7, b"what")));
    assert_eq!(outcome(&tls_with(&other_kind)), PeekOutcome::NoSni);
}

#[test]
fn the_name_outside_of_an_encrypted_hello_counts() {
    let name = server_name(b"public.example");
    let encrypted = extension(0xFE0D, &[0; 40]);
    let seen = tells(&tls_with(&[encrypted.clone(), name].concat())).unwrap();
    assert_eq!(seen.outcome, PeekOutcome::Ech);
    assert_eq!(seen.name, Some(Name::Sni("public.example".to_owned())));
    assert_eq!(outcome(&tls_with(&encrypted)), PeekOutcome::NoSni);
}

#[test]
fn names_that_are_none_or_several_are_refused() {
    let long = vec![b'a'; 300];
    let dotted = [[b'a'; 49]; 6].join(&b'.');
    let bad: [&[u8]; 14] = [
        b"",
        b".",
        b"a..b",
        b".a",
        b"a b",
        b"a\0b",
        b"*.a",
        b"a/b",
        b"[::1]",
        b"\xFF",
        "é.example".as_bytes(),
        &long[..64],
        &long,
        &dotted,
    ];
    for name in bad {
        assert_eq!(
            outcome(&tls_with(&server_name(name))),
            PeekOutcome::Malformed,
            "{name:?}"
        );
    }
    let both = [entry(0, b"a.example"), entry(0, b"b.example")].concat();
    let twice = [server_name(b"a.example"), server_name(b"a.example")].concat();
    for extensions in [
        extension(0, &vector16(&both)),
        twice,
        extension(0, b""),
        extension(0, &vector16(b"")),
        extension(0, &[&vector16(&entry(0, b"a"))[..], b"x"].concat()),
        extension(0, &vector16(&entry(0, b"a")[..2])),
    ] {
        assert_eq!(
            outcome(&tls_with(&extensions)),
            PeekOutcome::Malformed,
            "{extensions:?}"
        );
    }
}

#[test]
fn what_begins_like_tls_and_is_no_hello_is_refused() {
    let good = hello(Some(&server_name(b"a.example")));
    let mut grown = good.clone();
    grown.push(0);
    grown[3] += 1;
    let in_two = |second: Vec<u8>| [record(22, 1, &good[..9]), second].concat();
    for bytes in [
        tls(&message(2, &good[4..])),
        tls(&message(1, b"")),
        tls(&message(1, &[3; 40])),
        tls(&grown),
        tls(b""),
        record(22, 1, &[1; 16385])[..5].to_vec(),
        in_two(record(21, 1, &good[9..])),
        in_two(b"\x16\x02\x01\0\x09".to_vec()),
        in_two(tls(b"")),
        tls_with(b"\0\0\0"),
    ] {
        assert_eq!(outcome(&bytes), PeekOutcome::Malformed, "{bytes:?}");
    }
}

#[test]
fn what_is_neither_is_known_at_its_first_byte_that_says_so() {
    for bytes in [
        &b"\x00"[..],
        b"\x16\x02",
        b"\x80\x2E\x01\x03\x01", // SSL 2.0's hello
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"\r\n\r\n\0", // a second PROXY header
        b"\x0D\x0A\x0D\x0A\x00\x0D\x0A\x51\x55\x49\x54\x0A",
        b"PRI * HTTP/2",
        b"GET / HTTP/1.2",
        b"GET / HTTP/1.1x",
        b"GET / RTSP",
        b"GET /\r",
        b"GET /\n",
        b"GET  ",
        b"GET /a b",
        b"EHLO me\r",
        b"EHLO me t",
        b"{",
        b" ",
        b"\r\r",
    ] {
        assert_eq!(
            outcome(bytes),
            PeekOutcome::Neither,
            "{}",
            bytes.escape_ascii()
        );
    }
    for bytes in [
        &b""[..],
        b"\x16",
        b"SSH",
        b"PRI * HTTP/",
        b"\r\n\n\r",
        b"GET / HTTP/1.1\r",
        b"EHLO me",
    ] {
        assert_eq!(tells(bytes), None, "{}", bytes.escape_ascii());
    }
}

fn head(line: &str, fields: &str) -> Vec<u8> {
    format!("{line} HTTP/1.1\r\n{fields}\r\n").into_bytes()
}

#[test]
fn the_host_of_a_request_is_found() {
    for fields in [
        "Host: logs.example\r\n",
        "Host: logs.example:8080\r\n",
        "Host: logs.example:\r\n",
        "Host: logs.example.\r\n",
        "host:LOGS.Example.:443\r\n",
        "HOST: \t logs.example \t\r\n",
        "A: b\r\nHost: logs.example\r\nC: d\r\n",
    ] {
        let seen = tells(&head("GET /path?query", fields));
        assert_eq!(seen, host("logs.example"), "{fields}");
    }
    let bare = b"\r\n\nPOST * HTTP/1.0\nHost: logs.example\n\nand what follows";
    assert_eq!(tells(bare), host("logs.example"));
    for (written, name) in [
        ("192.0.2.1:80", "192.0.2.1"),
        ("[2001:DB8::1]:80", "[2001:db8::1]"),
    ] {
        assert_eq!(
            tells(&head("GET /", &format!("Host: {written}\r\n"))),
            host(name)
        );
    }
}

#[test]
fn an_authority_in_the_target_goes_before_host() {
    let fields = "Host: other.example\r\n";
    for line in [
        "GET http://logs.example/path",
        "GET HTTP://logs.example:80?query",
        "GET http://Logs.example",
        "CONNECT logs.example:443",
        "GET any+scheme://logs.example#fragment",
    ] {
        assert_eq!(tells(&head(line, fields)), host("logs.example"), "{line}");
        assert_eq!(tells(&head(line, "")), host("logs.example"), "{line}");
    }
    for line in [
        "GET http://",
        "GET http:///path",
        "GET http://me@logs.example/",
        "CONNECT /path",
        "CONNECT logs.example:443/path",
        "GET path",
        "GET urn:path",
        "GET http:/logs.example",
    ] {
        assert_eq!(
            outcome(&head(line, fields)),
            PeekOutcome::Malformed,
            "{line}"
        );
    }
}

#[test]
fn a_request_without_a_host_is_well_formed() {
    for fields in ["", "A: b\r\n", "Host:\r\n", "Host: \t\r\n"] {
        assert_eq!(
            outcome(&head("GET /", fields)),
            PeekOutcome::NoHost,
            "{fields}"
        );
    }
}

#[test]
fn two_hosts_are_refused_even_when_equal() {
    let fields = "Host: a.example\r\nA: b\r\nhOST: a.example\r\n";
    assert_eq!(outcome(&head("GET /", fields)), PeekOutcome::TwoHosts);
    assert_eq!(
        outcome(&head("CONNECT a.example:1", fields)),
        PeekOutcome::TwoHosts
    );
}

#[test]
fn heads_that_servers_read_in_two_ways_are_refused() {
    for fields in [
        "A: b\r\n folded\r\nHost: a.example\r\n",
        "Host: a.example\r\n .evil\r\n",
        " Host: a.example\r\n",
        "Host : a.example\r\n",
        "Host\r\n",
        ": b\r\n",
        "A: b\rHost: a.example\r\n",
        "A: b\0\r\n",
        "\rA: b\r\n",
        "Host: a.example b.example\r\n",
        "Host: a.example, b.example\r\n",
        "Host: a%2eexample\r\n",
        "Host: me@a.example\r\n",
        "Host: a.example/path\r\n",
        "Host: a.example:http\r\n",
        "Host: :80\r\n",
        "Host: [::1\r\n",
        "Host: [::1]x\r\n",
        "Host: [a.example]\r\n",
        "Host: [fe80::1%25eth0]\r\n",
        "Host: \u{e9}.example\r\n",
    ] {
        assert_eq!(
            outcome(&head("GET /", fields)),
            PeekOutcome::Malformed,
            "{fields:?}"
        );
    }
    assert_eq!(
        outcome(b"GET /\xFF HTTP/1.1\r\nHost: a\r\n\r\n"),
        PeekOutcome::Malformed
    );
}

#[test]
fn a_head_is_as_long_as_peek_size_and_has_128_fields_at_most() {
    let padded = |length: usize| {
        let bare = head("GET /", "Host: a.example\r\nA: \r\n").len();
        let fields = format!("Host: a.example\r\nA: {}\r\n", "b".repeat(length - bare));
        head("GET /", &fields)
    };
    assert_eq!(whole(&padded(65_536), 65_536), host("a.example"));
    let longer = padded(65_537);
    let too_long = Some(Seen::nameless(PeekOutcome::TooLong));
    assert_eq!(whole(&longer, 65_536), too_long);
    assert_eq!(in_steps(&longer, 65_536, 1..longer.len()), too_long);
    let fields = |n: usize| format!("Host: a.example\r\n{}", "A: b\r\n".repeat(n - 1));
    assert_eq!(tells(&head("GET /", &fields(128))), host("a.example"));
    assert_eq!(outcome(&head("GET /", &fields(129))), PeekOutcome::TooLong);
    let endless = vec![b'A'; 2000];
    assert_eq!(whole(&endless, 1024), too_long, "a method without an end");
}

/// Bytes that are nearly right: pieces of hellos and heads, with some of them changed.
fn nearly_right() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        any::<[u8; 3]>().prop_map(Vec::from),
        Just(tls_with(&server_name(b"a.example"))),
        Just(hello(Some(&server_name(b"a.example")))),
        (1..60usize).prop_map(|size| {
            let hello = hello(Some(&server_name(b"a.example")));
            hello
                .chunks(size)
                .flat_map(|piece| record(22, 3, piece))
                .collect()
        }),
        "(GET|PRI|[A-Z]{1,3}) (/|\\*|http://a|b) HTTP/[12]\\.[01]\r?\n"
            .prop_map(String::into_bytes),
        "([Hh]ost|A)( )?:[ -~]{0,12}\r?\n".prop_map(String::into_bytes),
        Just(b"\r\n".to_vec()),
    ];
    let changes = proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 0..3);
    (proptest::collection::vec(piece, 1..6), changes).prop_map(|(pieces, changes)| {
        let mut bytes = pieces.concat();
        for (index, byte) in changes {
            let at = index.index(bytes.len());
            bytes[at] = byte;
        }
        bytes
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn any_split_tells_what_the_whole_tells(
        bytes in nearly_right(), most in 1..400usize, cuts in proptest::collection::vec(any::<proptest::sample::Index>(), 0..5),
    ) {
        let seen = whole(&bytes, most);
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len())).collect();
        cuts.sort_unstable();
        prop_assert_eq!(&in_steps(&bytes, most, cuts), &seen);
        prop_assert_eq!(&in_steps(&bytes, most, 0..bytes.len()), &seen);
        if seen.is_none() {
            prop_assert!(bytes.len() < most, "the bound decides");
        }
    }

    #[test]
    fn what_follows_a_decision_does_not_change_it(bytes in nearly_right(), more in proptest::collection::vec(any::<u8>(), 0..100)) {
        if let Some(seen) = whole(&bytes, MOST) {
            prop_assert_eq!(whole(&[bytes, more].concat(), MOST), Some(seen));
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..600), like in 0..3) {
        match like {
            0 if bytes.len() > 6 => bytes[..6].copy_from_slice(&[22, 3, 1, 0, 200, 1]),
            1 => bytes = [b"GET / HTTP/1.1\r\n", &bytes[..], b"\r\n\r\n"].concat(),
            _ => {}
        }
        let seen = whole(&bytes, MOST);
        prop_assert_eq!(in_steps(&bytes, MOST, 0..bytes.len()), seen);
    }
}
