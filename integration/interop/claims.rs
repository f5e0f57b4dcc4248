//! What holds between the relay and each of these programs.

use std::{fmt::Write as _, fs, process::Stdio};

use libtest_mimic::Trial;
use tempfile::TempDir;

use crate::{
    claim,
    harness::{
        netns::Lab,
        origin::{Manner, Origin},
        pattern::Pattern,
        relay,
    },
    programs::command,
    world::{
        CLIENT, CLIENT_V6, FRONT, FRONT_V6, LARGE, NAME, RELAY, WITH_CHECKSUM, World, haproxy, said,
    },
};

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        claim(
            "http_from_curl_through_haproxy_reaches_nginx_and_all_four_count_the_same",
            http_from_curl_through_haproxy_reaches_nginx_and_all_four_count_the_same,
        ),
        claim(
            "haproxys_header_without_checksum_is_taken",
            haproxys_header_without_checksum_is_taken,
        ),
        claim(
            "haproxys_header_of_an_ipv6_client_is_taken",
            haproxys_header_of_an_ipv6_client_is_taken,
        ),
        claim(
            "tls_of_curl_ends_at_nginx_and_nowhere_before",
            tls_of_curl_ends_at_nginx_and_nowhere_before,
        ),
        claim(
            "tls_of_openssl_ends_at_nginx_and_nowhere_before",
            tls_of_openssl_ends_at_nginx_and_nowhere_before,
        ),
        claim(
            "ten_megabytes_each_way_arrive_whole_plain_and_by_tls",
            ten_megabytes_each_way_arrive_whole_plain_and_by_tls,
        ),
        claim(
            "haproxys_health_checks_are_answered_and_open_nothing",
            haproxys_health_checks_are_answered_and_open_nothing,
        ),
        claim(
            "curls_version_1_header_is_refused_by_name",
            curls_version_1_header_is_refused_by_name,
        ),
        claim(
            "decode_explains_the_header_that_haproxy_sends",
            decode_explains_the_header_that_haproxy_sends,
        ),
        claim(
            "promtool_has_nothing_to_say_about_the_metrics",
            promtool_has_nothing_to_say_about_the_metrics,
        ),
    ]
}

/// curl's own numbers, after whatever it writes besides.
const COUNTED: &str = "\n%{size_request} %{size_upload} %{size_header} %{size_download}";

fn http_from_curl_through_haproxy_reaches_nginx_and_all_four_count_the_same() {
    let world = World::new("plain", 80, WITH_CHECKSUM);
    let url = format!("http://{FRONT}:443/");
    let said = world.curl(&["--write-out", COUNTED, &url]);
    let (body, counted) = said.rsplit_once('\n').expect("curl adds a line");
    assert_eq!(body, "from nginx\n");
    let counted: Vec<u64> = counted
        .split(' ')
        .map(|number| number.parse().expect("curl writes numbers"))
        .collect();
    let (sent, received) = (counted[0] + counted[1], counted[2] + counted[3]);
    world.assert_books(1);
    assert_eq!(world.booked("to_upstream"), sent, "curl's count");
    assert_eq!(world.booked("to_client"), received, "curl's count");
    assert_eq!(world.requests(1), [(sent, received)], "nginx's count");
}

fn haproxys_header_without_checksum_is_taken() {
    let world = World::new("bare", 80, "send-proxy-v2");
    let body = world.curl(&[&format!("http://{FRONT}:443/")]);
    assert_eq!(body, "from nginx\n");
    world.assert_books(1);
}

fn haproxys_header_of_an_ipv6_client_is_taken() {
    let world = World::new("six", 80, WITH_CHECKSUM);
    let body = world.curl(&[&format!("http://[{FRONT_V6}]:443/")]);
    assert_eq!(body, "from nginx\n");
    world.assert_books(1);
}

fn tls_of_curl_ends_at_nginx_and_nowhere_before() {
    let world = World::new("curl-tls", 443, WITH_CHECKSUM);
    let trusted = world.path("certificate.pem");
    let url = format!("https://{NAME}/");
    let resolve = format!("{NAME}:443:{FRONT}");
    let body = world.curl(&["--cacert", &trusted, "--resolve", &resolve, &url]);
    assert_eq!(body, "from nginx\n");
    world.assert_books(1);
}

fn tls_of_openssl_ends_at_nginx_and_nowhere_before() {
    let world = World::new("openssl", 443, WITH_CHECKSUM);
    let trusted = world.path("certificate.pem");
    for version in ["-tls1_2", "-tls1_3"] {
        let connect = format!("{FRONT}:443");
        let arguments = [
            "30",
            "openssl",
            "s_client",
            "-connect",
            &connect,
            "-servername",
            NAME,
            "-verify_hostname",
            NAME,
            "-verify_return_error",
            "-CAfile",
            &trusted,
            "-quiet",
            version,
        ];
        let request = format!("GET / HTTP/1.0\r\nHost: {NAME}\r\n\r\n");
        let answer = said(&world.client, "timeout", &arguments, request.as_bytes());
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer:?}");
        assert!(answer.ends_with("\r\n\r\nfrom nginx\n"), "{answer:?}");
    }
    world.assert_books(2);
}

fn ten_megabytes_each_way_arrive_whole_plain_and_by_tls() {
    for (name, port, scheme) in [("large", 80, "http"), ("large-tls", 443, "https")] {
        let world = World::new(name, port, WITH_CHECKSUM);
        let (trusted, large, copy) = (
            world.path("certificate.pem"),
            world.path("large"),
            world.path("copy"),
        );
        let resolve = format!("{NAME}:443:{FRONT}");
        let url = |path: &str| format!("{scheme}://{NAME}:443{path}");
        let ways = ["--cacert", &trusted, "--resolve", &resolve];
        let (serve, take) = (url("/large"), url("/take"));
        let down = [&ways[..], &["--output", &copy, &serve]].concat();
        world.curl(&down);
        let copied = fs::read(&copy).expect("curl has written it");
        assert_eq!(copied.len(), LARGE);
        Pattern::new(1)
            .check(0, &copied)
            .expect("the file that nginx served");
        let data = format!("@{large}");
        let up = [&ways[..], &["--data-binary", &data, &take]].concat();
        assert_eq!(world.curl(&up), format!("{LARGE} bytes taken\n"));
        world.assert_books(2);
        for direction in ["to_upstream", "to_client"] {
            assert!(world.booked(direction) > LARGE as u64, "{direction}");
        }
    }
}

fn haproxys_health_checks_are_answered_and_open_nothing() {
    // "check-send-proxy" is implied by send-proxy-v2 on the same address. The connection's own header says LOCAL.
    let line = format!("{WITH_CHECKSUM} check inter 100ms\n    option httpchk GET /readyz");
    let world = World::new("checks", 80, &line);
    world.relay.wait_until("ten health checks", || {
        world.relay.metric("tollgate_health_checks_total", &[]) >= 10
    });
    let body = world.curl(&[&format!("http://{FRONT}:443/")]);
    assert_eq!(body, "from nginx\n", "HAProxy takes the relay for healthy");
    let log = world.folder.path().join("haproxy.out");
    let log = crate::programs::read(&log);
    assert!(!log.contains("DOWN"), "{log}");
    let labels = [("endpoint", "direct"), ("reason", "completed")];
    world
        .relay
        .wait_metric("tollgate_connections_closed_total", &labels, 1);
    let opened = world.relay.metric("tollgate_connections_opened_total", &[]);
    assert_eq!(opened, 1, "health checks are no connections");
    let logged = world.logged(1);
    assert_eq!(world.booked("to_upstream"), logged[0].from_client);
    assert_eq!(world.booked("to_client"), logged[0].to_client);
    let errors = world.relay.metric("tollgate_header_errors_total", &[]);
    assert_eq!(errors, 0);
}

fn curls_version_1_header_is_refused_by_name() {
    let world = World::new("version-1", 80, WITH_CHECKSUM);
    // From HAProxy's host, because nobody else may speak to the relay.
    let mut curl = command(&world.sender, "curl");
    curl.args(["--silent", "--max-time", "30", "--haproxy-protocol"])
        .arg(format!("http://{RELAY}/"))
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    let status = curl.status().expect("curl is there");
    // It was reset: before anything came back (52), while it sent (55), or while it read (56).
    assert!(matches!(status.code(), Some(52 | 55 | 56)), "{status}");
    let labels = [("error", "not_v2")];
    world
        .relay
        .wait_metric("tollgate_header_errors_total", &labels, 1);
    assert_eq!(world.booked("to_upstream"), 0);
    let opened = world.relay.metric("tollgate_connections_opened_total", &[]);
    assert_eq!(opened, 0);
    world.baseline.assert_back(&world.relay);
}

fn decode_explains_the_header_that_haproxy_sends() {
    let lab = Lab::new("decode");
    let (client, sender, sink) = (lab.host("client"), lab.host("haproxy"), lab.host("sink"));
    let wire = lab.veth(
        (&client, &format!("{CLIENT}/24")),
        (&sender, &format!("{FRONT}/24")),
    );
    client.address(wire.interface(0), &format!("{CLIENT_V6}/64"));
    sender.address(wire.interface(1), &format!("{FRONT_V6}/64"));
    lab.veth((&sender, "10.20.0.10/24"), (&sink, "10.20.0.2/24"));
    let folder = TempDir::new_in("/run").expect("/run is ours");
    // In the relay's place something that only listens.
    let origin = Origin::start(&sink, RELAY, Manner::Sink);
    let _haproxy = haproxy(&sender, folder.path(), WITH_CHECKSUM);
    for (index, (from, to)) in [
        (CLIENT, FRONT.to_owned()),
        (CLIENT_V6, format!("[{FRONT_V6}]")),
    ]
    .into_iter()
    .enumerate()
    {
        let from = from.to_owned();
        let address = format!("{to}:443").parse().expect("an address");
        let payload = b"payload";
        let local = client.run(async move {
            let mut agent = crate::harness::agent::Agent::connect(address).await?;
            agent.write(payload).await?;
            agent.finish()?;
            agent.read_to_end().await?;
            agent.local()
        });
        let local = local.expect("HAProxy passes everything on");
        assert_eq!(local.ip().to_string(), from);
        let books = origin.wait_over(index as u64 + 1);
        let captured = &books.connections[index].first;
        let header = captured
            .strip_suffix(payload)
            .expect("the payload comes last");
        let hex = captured.iter().fold(String::new(), |mut hex, byte| {
            let _ = write!(hex, "{byte:02x}");
            hex
        });
        let decode = relay::binary();
        let decode = decode.to_str().expect("cargo's paths are text");
        let json = said(&sink, decode, &["decode", "--json", "-"], hex.as_bytes());
        let json: serde_json::Value = serde_json::from_str(&json).expect("JSON was asked for");
        assert_eq!(json["outcome"], "taken");
        assert_eq!(json["source"], local.to_string());
        assert_eq!(json["destination"], address.to_string());
        assert_eq!(json["crc32c"], "right");
        assert_eq!(json["endpoint"], serde_json::Value::Null);
        assert_eq!(json["length"], header.len());
        assert_eq!(json["payload_bytes"], payload.len());
        let text = said(&sink, decode, &["decode", &hex], b"");
        assert!(text.contains("PROXY (a client's connection)"), "{text}");
    }
}

fn promtool_has_nothing_to_say_about_the_metrics() {
    let world = World::new("promtool", 80, WITH_CHECKSUM);
    let check = |when: &str| {
        let (status, metrics) = world.relay.get("/metrics");
        assert_eq!(status, 200);
        let mut promtool = command(&world.client, "sh");
        // Both outputs in one: it must be silent on either.
        promtool.args(["-c", "promtool check metrics 2>&1"]);
        let said = crate::harness::netns::output_of(promtool, metrics.as_bytes());
        assert_eq!(said, "", "{when}");
    };
    check("before the first connection");
    let body = world.curl(&[&format!("http://{FRONT}:443/")]);
    assert_eq!(body, "from nginx\n");
    world.assert_books(1);
    check("with an account in it");
}
