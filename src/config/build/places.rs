//! What can only be seen by looking at several places of the file at once: the same name twice, the same address twice, a
//! relay that would connect to itself.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::ops::Range;

use crate::config::error::Mistake;
use crate::config::{Host, Target};

/// Something that must be the only one of its kind, and where it is written. What is not written has no place.
pub(super) struct Placed<T> {
    pub(super) key: &'static str,
    pub(super) value: T,
    pub(super) span: Option<Range<usize>>,
}

/// A mistake at `later` that points back to `earlier`.
fn clash<T>(
    earlier: &Placed<T>,
    later_key: &str,
    later_span: Option<Range<usize>>,
    problem: String,
    back: &str,
    help: &str,
) -> Mistake {
    // The default address of the admin port has no place; then the one who was written is at fault.
    let (span, other) = match (later_span, earlier.span.clone()) {
        (Some(span), Some(back_span)) => (Some(span), Some((back_span, back.to_owned()))),
        (span, back_span) => (span.or(back_span), None),
    };
    Mistake {
        key: later_key.to_owned(),
        problem,
        help: help.to_owned(),
        span,
        other,
    }
}

/// Each name once.
pub(super) fn duplicate_names<'a>(
    names: &'a [Placed<&'a str>],
) -> impl Iterator<Item = Mistake> + 'a {
    names.iter().enumerate().filter_map(|(index, later)| {
        let earlier = names[..index]
            .iter()
            .find(|earlier| earlier.value == later.value)?;
        let problem = format!("{:?} is the name of another one already", later.value);
        Some(clash(
            earlier,
            later.key,
            later.span.clone(),
            problem,
            "first used here",
            "give each a name of its own",
        ))
    })
}

/// Each address once, the admin and health ports included.
pub(super) fn duplicate_binds(binds: &[Placed<SocketAddr>]) -> impl Iterator<Item = Mistake> + '_ {
    binds.iter().enumerate().filter_map(|(index, later)| {
        let earlier = binds[..index]
            .iter()
            .find(|earlier| overlap(earlier.value, later.value))?;
        let (problem, help) = if earlier.value == later.value {
            (
                format!("{} is listened on already", later.value),
                "give each an address or a port of its own",
            )
        } else {
            let problem = format!(
                "{} is listened on already by {}: 0.0.0.0 takes every IPv4 address, [::] every address",
                later.value, earlier.value
            );
            (problem, "keep the wildcard alone, or give one of them another port")
        };
        let back = format!("already taken here by {}", earlier.key);
        Some(clash(
            earlier,
            later.key,
            later.span.clone(),
            problem,
            &back,
            help,
        ))
    })
}

/// Each target of an upstream once, whatever its priority and weight: the second would only count the first double.
pub(super) fn duplicate_targets(targets: &[Placed<Target>]) -> impl Iterator<Item = Mistake> + '_ {
    let mut first: HashMap<(String, u16), &Placed<Target>> = HashMap::new();
    targets.iter().filter_map(move |later| {
        let host = match &later.value.host {
            Host::Literal(ip) => ip.to_string(),
            Host::Name(name) => name.to_ascii_lowercase(),
        };
        let earlier = *first.entry((host, later.value.port)).or_insert(later);
        if std::ptr::eq(earlier, later) {
            return None;
        }
        let problem = format!("{} is a target of this upstream already", later.value);
        Some(clash(
            earlier,
            later.key,
            later.span.clone(),
            problem,
            "first named here",
            "remove one of them; a larger share is given by weight",
        ))
    })
}

/// No target that is one of our own listeners: the first connection would go round until the descriptors run out.
pub(super) fn loops<'a>(
    listeners: &'a [Placed<SocketAddr>],
    targets: &'a [Placed<Target>],
) -> impl Iterator<Item = Mistake> + 'a {
    targets.iter().filter_map(|target| {
        let Host::Literal(ip) = target.value.host else {
            return None;
        };
        let address = SocketAddr::new(ip, target.value.port);
        let listener = listeners
            .iter()
            .find(|listener| reaches(address, listener.value))?;
        let problem = format!(
            "{address} is tollgate's own listener: every connection would come back for ever"
        );
        let help = "write the address of the service behind tollgate";
        Some(clash(
            listener,
            target.key,
            target.span.clone(),
            problem,
            "listened on here",
            help,
        ))
    })
}

/// Whether two sockets cannot both listen. Port 0 is another port each time; a wildcard takes what is listened on alone, too.
fn overlap(a: SocketAddr, b: SocketAddr) -> bool {
    let covers = |wildcard: SocketAddr, other: SocketAddr| {
        wildcard.ip().is_unspecified() && (wildcard.is_ipv6() || other.is_ipv4())
    };
    let same = a.ip() == b.ip() || covers(a, b) || covers(b, a);
    a.port() == b.port() && a.port() != 0 && same
}

/// Whether connecting to `target` surely ends at `bind`. Other addresses of this machine are found out when connecting.
fn reaches(target: SocketAddr, bind: SocketAddr) -> bool {
    let local = target.ip().is_loopback() || target.ip().is_unspecified();
    let takes_family = bind.is_ipv6() || target.is_ipv4(); // [::] takes IPv4 too
    target.port() == bind.port()
        && (target.ip() == bind.ip() || (local && bind.ip().is_unspecified() && takes_family))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> SocketAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn both_wildcards_take_the_same_port() {
        assert!(overlap(address("[::]:80"), address("0.0.0.0:80")));
        assert!(overlap(address("10.0.0.1:80"), address("10.0.0.1:80")));
        assert!(overlap(address("0.0.0.0:80"), address("127.0.0.1:80")));
        assert!(overlap(address("10.0.0.1:80"), address("[::]:80")));
        assert!(!overlap(address("0.0.0.0:80"), address("[::1]:80")));
        assert!(!overlap(address("10.0.0.1:80"), address("10.0.0.2:80")));
        assert!(!overlap(address("0.0.0.0:80"), address("0.0.0.0:81")));
        assert!(
            !overlap(address("0.0.0.0:0"), address("0.0.0.0:0")),
            "port 0 is another port each time"
        );
    }

    #[test]
    fn loopback_reaches_a_wildcard_listener() {
        assert!(reaches(address("127.0.0.1:80"), address("0.0.0.0:80")));
        assert!(reaches(address("127.0.0.1:80"), address("[::]:80")));
        assert!(reaches(address("[::1]:80"), address("[::]:80")));
        assert!(reaches(address("10.0.0.1:80"), address("10.0.0.1:80")));
        assert!(!reaches(address("[::1]:80"), address("0.0.0.0:80")));
        assert!(!reaches(address("127.0.0.1:81"), address("0.0.0.0:80")));
        assert!(!reaches(address("10.0.0.2:80"), address("10.0.0.1:80")));
    }
}
