//! The scripted DNS server, asked by the resolver that the relay uses.

use std::net::{IpAddr, SocketAddr};

use hickory_proto::{op::ResponseCode, rr::RecordType};
use hickory_resolver::{
    TokioResolver,
    config::{ConnectionConfig, NameServerConfig, ResolverConfig, ResolverOpts},
    net::runtime::TokioRuntimeProvider,
};
use libtest_mimic::Trial;

use crate::{
    claim,
    harness::{
        dns::{Answer, Dns},
        netns::{Host, Lab},
    },
};

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        claim("dns_answers_change", dns_answers_change),
        claim(
            "dns_fails_in_every_way_it_is_told",
            dns_fails_in_every_way_it_is_told,
        ),
    ]
}

const NAME: &str = "cp.example.internal";

fn resolve(host: &Host, server: SocketAddr) -> Option<Vec<(IpAddr, u32)>> {
    host.run(async move {
        let servers = vec![NameServerConfig::new(
            server.ip(),
            true,
            vec![ConnectionConfig::udp(), ConnectionConfig::tcp()],
        )];
        let mut options = ResolverOpts::default();
        options.attempts = 0;
        // Silence takes this long; an answer on a busy machine does not.
        options.timeout = std::time::Duration::from_secs(2);
        options.cache_size = 0;
        let resolver = TokioResolver::builder_with_config(
            ResolverConfig::from_parts(None, vec![], servers),
            TokioRuntimeProvider::default(),
        )
        .with_options(options)
        .build()
        .ok()?;
        let found = resolver.ipv4_lookup(format!("{NAME}.")).await.ok()?;
        let records = found.answers().iter();
        let addresses = records.filter_map(|record| Some((record.data.ip_addr()?, record.ttl)));
        Some(addresses.collect())
    })
}

fn pair(lab: &Lab) -> (Host, Dns) {
    let (asker, server) = (lab.host("asker"), lab.host("server"));
    lab.veth((&asker, "10.0.0.1/24"), (&server, "10.0.0.2/24"));
    let dns = Dns::start(&server, "10.0.0.2:53");
    (asker, dns)
}

fn found(addresses: &[&str], ttl: u32) -> Option<Vec<(IpAddr, u32)>> {
    let parse = |text: &&str| (text.parse().expect("an address"), ttl);
    Some(addresses.iter().map(parse).collect())
}

fn dns_answers_change() {
    let lab = Lab::new("dns-change");
    let (asker, dns) = pair(&lab);
    assert_eq!(resolve(&asker, dns.address()), None, "never heard of it");
    // A resolver that waits asks again.
    assert!(dns.questions(NAME, RecordType::A) >= 1);

    dns.set(
        NAME,
        Answer::addresses(&["10.9.0.1", "fd00::1", "10.9.0.2"], 60),
    );
    assert_eq!(
        resolve(&asker, dns.address()),
        found(&["10.9.0.1", "10.9.0.2"], 60)
    );
    dns.set(NAME, Answer::addresses(&["10.9.0.3"], 5));
    assert_eq!(resolve(&asker, dns.address()), found(&["10.9.0.3"], 5));
    dns.wait_questions(NAME, RecordType::A, 3);

    dns.set(
        "lb.example.internal",
        Answer::rotating(&["10.9.0.4", "10.9.0.5"], 7),
    );
    dns.set(
        NAME,
        Answer::Alias {
            to: "lb.example.internal".to_owned(),
            ttl: 30,
        },
    );
    let (first, second) = (
        resolve(&asker, dns.address()),
        resolve(&asker, dns.address()),
    );
    assert_eq!(first.clone().map(|all| all.len()), Some(2));
    assert_ne!(first, second, "it rotates");
    assert_eq!(dns.questions(NAME, RecordType::AAAA), 0);
}

fn dns_fails_in_every_way_it_is_told() {
    let lab = Lab::new("dns-fail");
    let (asker, dns) = pair(&lab);
    let good = Answer::addresses(&["10.9.0.1"], 60);
    for bad in [
        Answer::Code(ResponseCode::ServFail),
        Answer::Code(ResponseCode::NXDomain),
        Answer::Silence,
        Answer::Garbage,
    ] {
        dns.set(NAME, bad.clone());
        assert_eq!(resolve(&asker, dns.address()), None, "{bad:?}");
        dns.set(NAME, good.clone());
        assert!(resolve(&asker, dns.address()).is_some(), "after {bad:?}");
    }
    assert_eq!(dns.totals().1, 0, "none by TCP");
    dns.set(NAME, Answer::Truncated(Box::new(good)));
    assert!(resolve(&asker, dns.address()).is_some(), "whole by TCP");
    assert_eq!(dns.totals().1, 1);
    dns.kill();
    assert_eq!(resolve(&asker, dns.address()), None, "nobody is there");
}
