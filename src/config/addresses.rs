//! Addresses, networks, names and targets: from what was written to what is meant, or to what should have been written.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;

use super::file::Raw;
use super::values::{Parsed, wrong};
use super::{Host, Target};

/// An address and port to listen on.
pub(super) fn bind(raw: &Raw) -> Parsed<SocketAddr> {
    const HELP: &str = "write an address and a port, for instance \"0.0.0.0:8443\", or \"[::]:8443\" for IPv6 and IPv4 at once";
    let text = raw.text(HELP)?;
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Ok(canonical(address));
    }
    if text.parse::<IpAddr>().is_ok() {
        return wrong(format!("{text:?} has no port"), HELP);
    }
    // What other programs take for "every address".
    let port = text
        .strip_prefix("*:")
        .or(text.strip_prefix(':'))
        .unwrap_or(text);
    if port.parse::<u16>().is_ok() {
        return wrong(
            format!("{text:?} has no address"),
            format!("write \"0.0.0.0:{port}\", or \"[::]:{port}\" for IPv6 and IPv4 at once"),
        );
    }
    wrong(format!("{text:?} is not an address with a port"), HELP)
}

/// A name server: an address, its port 53 unless written.
pub(super) fn name_server(raw: &Raw) -> Parsed<SocketAddr> {
    const HELP: &str = "write an address, with a port if it is not 53: \"10.20.0.2\", \"10.20.0.2:5353\" or \"[fd00:ec2::253]:53\"";
    let text = raw.text(HELP)?;
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(SocketAddr::new(address, 53));
    }
    text.parse().or_else(|_| {
        wrong(
            format!("{text:?} is not the address of a name server"),
            HELP,
        )
    })
}

/// A domain that names are looked for in.
pub(super) fn search_domain(raw: &Raw) -> Parsed<Arc<str>> {
    const HELP: &str = "write a domain, for instance \"example.internal\"";
    let text = raw.text(HELP)?;
    match host_name_fault(text) {
        None => Ok(text.trim_end_matches('.').to_ascii_lowercase().into()),
        Some(fault) => wrong(format!("{text:?} is not a domain: {fault}"), HELP),
    }
}

/// An address that connections can come from.
pub(super) fn source(raw: &Raw) -> Parsed<IpAddr> {
    const HELP: &str = "write an address of this machine without a port, for instance \"10.0.0.5\"";
    let text = raw.text(HELP)?;
    match text.parse::<IpAddr>().map(|address| address.to_canonical()) {
        Ok(address) if address.is_unspecified() || address.is_multicast() => {
            wrong(format!("nothing can come from {address}"), HELP)
        }
        Ok(address) => Ok(address),
        Err(_) => wrong(format!("{text:?} is not an address"), HELP),
    }
}

/// What a relay is called.
pub(super) fn relay_id(raw: &Raw) -> Parsed<Arc<str>> {
    const HELP: &str = "write 1 to 64 letters, digits, \".\" or \"-\"";
    let text = raw.text(HELP)?;
    let fits = (1..=64).contains(&text.len())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b".-".contains(&byte));
    if fits {
        Ok(text.into())
    } else {
        wrong(format!("{text:?} cannot be a relay's id"), HELP)
    }
}

/// A network, or one address.
pub(super) fn network(raw: &Raw) -> Parsed<IpNet> {
    const HELP: &str =
        "write networks or addresses, for instance \"10.20.0.0/16\" or \"10.20.1.7\"";
    let text = raw.text(HELP)?;
    let Some(network) = text
        .parse::<IpNet>()
        .ok()
        .or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from))
    else {
        return wrong(format!("{text:?} is not a network"), HELP);
    };
    if network.trunc() != network {
        // Nobody can tell whether the address or the length is the typo, and this is what decides who is believed.
        let address = network.addr();
        let problem = format!("{text:?} has bits set beyond its /{}", network.prefix_len());
        return wrong(
            problem,
            format!(
                "write \"{}\" for the network, \"{address}\" for the one address",
                network.trunc()
            ),
        );
    }
    if let IpAddr::V6(address) = network.addr()
        && let Some(address) = address.to_ipv4_mapped()
    {
        // Peers are made IPv4 before they are compared, so this would never match.
        let length = network.prefix_len().saturating_sub(96);
        return wrong(
            format!("{text:?} is IPv4 in IPv6 form"),
            format!("write \"{address}/{length}\""),
        );
    }
    Ok(network)
}

/// The name of a listener or an upstream, as it appears in metrics and books.
pub(super) fn name(raw: &Raw) -> Parsed<Arc<str>> {
    const HELP: &str = "write 1 to 64 letters, digits, \"_\", \".\" or \"-\"";
    let text = raw.text(HELP)?;
    let fits = (1..=64).contains(&text.len())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte));
    if fits {
        Ok(text.into())
    } else {
        wrong(format!("{text:?} cannot be a name"), HELP)
    }
}

/// A `host:port` of an upstream.
pub(super) fn target(raw: &Raw) -> Parsed<Target> {
    const HELP: &str = "write \"HOST:PORT\", for instance \"cp.us-east-1.example.internal:443\", \"10.30.0.5:443\" or \"[fd00::5]:443\"";
    let text = raw.text(HELP)?;
    if let Some((scheme, rest)) = text.split_once("://") {
        let host = rest.split('/').next().unwrap_or(rest);
        let port = if host.contains(':') { "" } else { ":443" };
        return wrong(
            format!("{text:?} is a URL; TCP is forwarded, not {scheme}"),
            format!("write \"{host}{port}\""),
        );
    }
    if text.parse::<std::net::Ipv6Addr>().is_ok() {
        return wrong(
            format!("{text:?} does not tell address from port"),
            format!("write \"[{text}]:443\", with the right port"),
        );
    }
    let Some((host, port)) = text
        .rsplit_once(':')
        .filter(|(_, port)| !port.contains(']'))
    else {
        return wrong(
            format!("{text:?} has no port"),
            format!("write \"{text}:443\", with the right port"),
        );
    };
    let Some(port) = port.parse::<u16>().ok().filter(|port| *port != 0) else {
        return wrong(
            format!("{port:?} is not a port"),
            "write a port from 1 to 65535",
        );
    };
    let bare = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'));
    let host = match bare.unwrap_or(host).parse::<IpAddr>() {
        Ok(IpAddr::V6(_)) if bare.is_none() => {
            return wrong(
                format!("{text:?} does not tell address from port"),
                format!("write \"[{host}]:{port}\""),
            );
        }
        Ok(address) if address.is_unspecified() || address.is_multicast() => {
            return wrong(
                format!("{address} is no address that one can connect to"),
                "write where the upstream listens",
            );
        }
        Ok(address) => Host::Literal(address.to_canonical()),
        Err(_) => match host_name_fault(host) {
            None => Host::Name(host.into()),
            Some(fault) => return wrong(format!("{host:?} is not a host name: {fault}"), HELP),
        },
    };
    Ok(Target {
        host,
        port,
        priority: 0,
        weight: 1,
    })
}

/// What keeps `host` from being a host name (RFC 1123 section 2.1, and `_` as it is used within VPCs).
pub(super) fn host_name_fault(host: &str) -> Option<&'static str> {
    let name = host.strip_suffix('.').unwrap_or(host);
    let label_fault = |label: &str| {
        if label.is_empty() {
            Some("two dots, or one too many, leave an empty part")
        } else if label.len() > 63 {
            Some("a part between dots is longer than 63 bytes")
        } else if label.starts_with('-') || label.ends_with('-') {
            Some("a part begins or ends with \"-\"")
        } else if !label
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
        {
            Some("only letters, digits, \"-\", \"_\" and dots may stand in one")
        } else {
            None
        }
    };
    if name.is_empty() {
        return Some("it is empty");
    }
    if name.len() > 253 {
        return Some("it is longer than 253 bytes");
    }
    if name
        .rsplit('.')
        .next()
        .is_some_and(|last| last.bytes().all(|byte| byte.is_ascii_digit()))
    {
        return Some("it looks like an address, and is none");
    }
    name.split('.').find_map(label_fault)
}

/// `::ffff:a.b.c.d` made IPv4, as everywhere in this program.
fn canonical(address: SocketAddr) -> SocketAddr {
    match address.ip().to_canonical() {
        ip if ip != address.ip() => SocketAddr::new(ip, address.port()),
        _ => address, // keeps the scope of fe80::…%2
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::values::tests::{refused, text};

    #[test]
    fn a_bind_address_needs_both_parts() {
        assert_eq!(
            bind(&text("[::]:8443")).map(|a| a.to_string()),
            Ok("[::]:8443".to_owned())
        );
        assert_eq!(
            bind(&text("[::ffff:10.0.0.1]:80")).map(|a| a.to_string()),
            Ok("10.0.0.1:80".to_owned())
        );
        for written in ["8443", ":8443", "*:8443"] {
            assert!(
                refused(bind(&text(written))).contains("\"0.0.0.0:8443\""),
                "{written}"
            );
        }
        assert!(refused(bind(&text("10.0.0.1"))).contains("no port"));
        assert!(refused(bind(&text("localhost:80"))).contains("not an address"));
    }

    #[test]
    fn a_name_server_has_port_53_unless_written() {
        for (written, address) in [
            ("10.0.0.2", "10.0.0.2:53"),
            ("10.0.0.2:5353", "10.0.0.2:5353"),
            ("fd00::2", "[fd00::2]:53"),
        ] {
            assert_eq!(
                name_server(&text(written)).map(|a| a.to_string()),
                Ok(address.to_owned())
            );
        }
        assert!(refused(name_server(&text("dns.example"))).contains("10.20.0.2"));
    }

    #[test]
    fn a_plain_address_is_a_network_of_one() {
        assert_eq!(
            network(&text("10.0.0.1")).map(|n| n.to_string()),
            Ok("10.0.0.1/32".to_owned())
        );
        assert_eq!(
            network(&text("fd00::1")).map(|n| n.to_string()),
            Ok("fd00::1/128".to_owned())
        );
    }

    #[test]
    fn a_network_that_cannot_be_meant_is_refused() {
        assert!(refused(network(&text("10.20.0.7/16"))).contains("\"10.20.0.0/16\""));
        assert!(refused(network(&text("::ffff:10.0.0.0/104"))).contains("\"10.0.0.0/8\""));
        assert!(refused(network(&text("10.0.0.0/33"))).contains("not a network"));
    }

    #[test]
    fn names_are_short_and_plain() {
        assert!(name(&text("ingest-1.eu_west")).is_ok());
        for written in ["", "two words", "naïve", &"x".repeat(65)] {
            assert!(
                refused(name(&text(written))).contains("1 to 64"),
                "{written}"
            );
        }
    }

    #[test]
    fn targets_are_names_or_literals_with_a_port() {
        let named = Target {
            host: Host::Name("cp.example".into()),
            port: 443,
            priority: 0,
            weight: 1,
        };
        assert_eq!(target(&text("cp.example:443")), Ok(named));
        for (written, literal) in [
            ("[::1]:443", "::1"),
            ("10.0.0.1:443", "10.0.0.1"),
            ("[::ffff:10.0.0.1]:443", "10.0.0.1"),
        ] {
            let literal = literal.parse().expect("an address");
            assert_eq!(
                target(&text(written)),
                Ok(Target {
                    host: Host::Literal(literal),
                    port: 443,
                    priority: 0,
                    weight: 1,
                }),
                "{written}"
            );
        }
        assert!(
            target(&text("cp.example.:443")).is_ok(),
            "a trailing dot is a rooted name"
        );
        assert!(target(&text("my_host:443")).is_ok());
    }

    #[test]
    fn a_wrong_target_is_answered_with_the_right_one() {
        for (written, answer) in [
            ("cp.example", "\"cp.example:443\""),
            ("https://cp.example/path", "\"cp.example:443\""),
            ("https://cp.example:8443", "\"cp.example:8443\""),
            ("::1", "\"[::1]:443\""),
            ("fd00::5:443", "\"[fd00::5:443]:443\""),
            ("cp.example:0", "1 to 65535"),
            ("cp.example:https", "1 to 65535"),
            ("10.0.0.300:443", "looks like an address"),
            ("-cp.example:443", "begins or ends"),
            ("cp..example:443", "empty"),
            ("cp example:443", "only letters"),
            (":443", "it is empty"),
            ("[::1]", "no port"),
        ] {
            let said = refused(target(&text(written)));
            assert!(said.contains(answer), "{written}: {said}");
        }
    }
}
