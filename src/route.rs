//! Which upstream a connection goes to: the first route that takes it says so, else the listener's own upstream, else nobody.
//!
//! Pure, and told the client's name only if it asks for it: as long as the routes in front of the first one with a name decide, no byte
//! of the client is read.

use std::net::IpAddr;

use crate::config::{Listener, Route};
use crate::glob::matches_glob;
use crate::peek::Name;

/// A listener's routes.
#[derive(Debug)]
pub struct Routes {
    /// In the order in which they are asked.
    entries: Vec<Route>,
    /// For whom none takes.
    otherwise: Option<usize>,
}

/// What is known of the name that a client asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked<'a> {
    /// Nobody looked.
    Unknown,
    /// There is none.
    Nameless,
    /// It was found.
    For(&'a Name),
}

/// Where a connection goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// To this upstream, by its index in the configuration.
    To(usize),
    /// It depends on the name: look, and ask again.
    LookFirst,
    /// Nowhere.
    Refused,
}

impl Routes {
    /// The routes of `listener`.
    #[must_use]
    pub fn new(listener: &Listener) -> Self {
        Self {
            entries: listener.routes.clone(),
            otherwise: listener.upstream,
        }
    }

    /// Where a connection of `client` through `endpoint` goes. Never [`Decision::LookFirst`] where the name is no longer unknown.
    #[must_use]
    pub fn decide(&self, endpoint: &str, client: IpAddr, asked: Asked<'_>) -> Decision {
        let client = client.to_canonical();
        let fits = |route: &&Route| {
            route
                .endpoint
                .as_ref()
                .is_none_or(|glob| matches_glob(glob, endpoint))
                && route
                    .network
                    .is_none_or(|network| network.contains(&client))
        };
        for route in self.entries.iter().filter(fits) {
            let (sni, host) = match asked {
                _ if route.sni.is_none() && route.host.is_none() => {
                    return Decision::To(route.upstream);
                }
                Asked::Unknown => return Decision::LookFirst,
                Asked::Nameless => continue,
                Asked::For(Name::Sni(name)) => (Some(name), None),
                Asked::For(Name::Host(name)) => (None, Some(name)),
            };
            let holds = |pattern: Option<&str>, name: Option<&String>| match (pattern, name) {
                (None, _) => true,
                (Some(pattern), Some(name)) => matches_name(pattern, name),
                (Some(_), None) => false,
            };
            if holds(route.sni.as_deref(), sni) && holds(route.host.as_deref(), host) {
                return Decision::To(route.upstream);
            }
        }
        self.otherwise.map_or(Decision::Refused, Decision::To)
    }
}

/// Whether `name` is the one that `pattern` names, or below the suffix in `*.suffix`.
fn matches_name(pattern: &str, name: &str) -> bool {
    match pattern.strip_prefix('*') {
        // The suffix keeps its dot: a name that merely ends like it is not below it, and neither is the suffix itself.
        Some(suffix) => name.len() > suffix.len() && name.ends_with(suffix),
        None => name == pattern,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proxy_protocol::header::DIRECT;

    fn to(upstream: usize) -> Route {
        Route {
            endpoint: None,
            network: None,
            sni: None,
            host: None,
            upstream,
        }
    }

    fn endpoint(glob: &str, route: Route) -> Route {
        Route {
            endpoint: Some(glob.into()),
            ..route
        }
    }

    fn network(network: &str, route: Route) -> Route {
        Route {
            network: Some(network.parse().unwrap()),
            ..route
        }
    }

    fn sni(name: &str, route: Route) -> Route {
        Route {
            sni: Some(name.into()),
            ..route
        }
    }

    fn host(name: &str, route: Route) -> Route {
        Route {
            host: Some(name.into()),
            ..route
        }
    }

    fn routes(entries: Vec<Route>, otherwise: Option<usize>) -> Routes {
        Routes { entries, otherwise }
    }

    const CLIENT: &str = "10.1.2.3";

    fn decide(routes: &Routes, endpoint: &str, client: &str, asked: Asked<'_>) -> Decision {
        routes.decide(endpoint, client.parse().unwrap(), asked)
    }

    fn asks_sni(name: &str) -> Name {
        Name::Sni(name.to_owned())
    }

    fn asks_host(name: &str) -> Name {
        Name::Host(name.to_owned())
    }

    #[test]
    fn without_routes_there_is_one_way_and_nobody_looks() {
        let one = routes(vec![], Some(3));
        assert_eq!(
            decide(&one, DIRECT, CLIENT, Asked::Unknown),
            Decision::To(3)
        );
        let none = routes(vec![], None);
        assert_eq!(
            decide(&none, DIRECT, CLIENT, Asked::Unknown),
            Decision::Refused
        );
    }

    #[test]
    fn the_first_that_takes_it_wins() {
        let routes = routes(
            vec![
                endpoint("vpce-0a*", network("10.1.0.0/16", to(1))),
                network("10.1.0.0/16", to(2)),
                endpoint("vpce-0a1", to(3)),
                endpoint(DIRECT, to(4)),
            ],
            None,
        );
        let decide = |id, client| decide(&routes, id, client, Asked::Unknown);
        assert_eq!(decide("vpce-0a1", "10.1.9.9"), Decision::To(1));
        assert_eq!(decide("vpce-0b1", "10.1.9.9"), Decision::To(2));
        assert_eq!(decide("vpce-0a1", "10.2.9.9"), Decision::To(3));
        assert_eq!(decide(DIRECT, "10.2.9.9"), Decision::To(4));
        assert_eq!(decide("vpce-0b1", "10.2.9.9"), Decision::Refused);
    }

    #[test]
    fn an_ipv4_address_in_ipv6_form_is_ipv4() {
        let routes = routes(
            vec![
                network("10.1.0.0/16", to(1)),
                network("2001:db8::/32", to(2)),
                network("::/0", to(3)),
            ],
            None,
        );
        let decide = |client| decide(&routes, DIRECT, client, Asked::Unknown);
        assert_eq!(decide("::ffff:10.1.2.3"), Decision::To(1));
        assert_eq!(decide("2001:db8::1"), Decision::To(2));
        assert_eq!(decide("fd00::1"), Decision::To(3));
        assert_eq!(decide("::ffff:10.2.2.3"), Decision::Refused);
    }

    #[test]
    fn a_name_is_asked_for_only_when_it_decides() {
        let routes = routes(
            vec![
                endpoint("vpce-1", to(1)),
                endpoint("vpce-2", sni("logs.example", to(2))),
                endpoint("vpce-3", to(3)),
                host("logs.example", to(4)),
            ],
            Some(5),
        );
        let decide = |id, asked| decide(&routes, id, CLIENT, asked);
        assert_eq!(decide("vpce-1", Asked::Unknown), Decision::To(1));
        assert_eq!(decide("vpce-2", Asked::Unknown), Decision::LookFirst);
        assert_eq!(decide("vpce-3", Asked::Unknown), Decision::To(3));
        assert_eq!(decide(DIRECT, Asked::Unknown), Decision::LookFirst);
        assert_eq!(decide("vpce-2", Asked::Nameless), Decision::To(5));
        let (by_sni, by_host) = (asks_sni("logs.example"), asks_host("logs.example"));
        assert_eq!(decide("vpce-2", Asked::For(&by_sni)), Decision::To(2));
        assert_eq!(
            decide("vpce-1", Asked::For(&by_sni)),
            Decision::To(1),
            "the order stays"
        );
        assert_eq!(decide("vpce-2", Asked::For(&by_host)), Decision::To(4));
        assert_eq!(decide(DIRECT, Asked::For(&by_sni)), Decision::To(5));
    }

    #[test]
    fn nobody_asks_for_both_kinds_of_name_at_once() {
        let both = sni("logs.example", host("logs.example", to(1)));
        let routes = routes(vec![both], None);
        for name in [asks_sni("logs.example"), asks_host("logs.example")] {
            assert_eq!(
                decide(&routes, DIRECT, CLIENT, Asked::For(&name)),
                Decision::Refused
            );
        }
    }

    #[test]
    fn a_suffix_has_names_below_it_and_is_none_of_them() {
        for (name, below) in [
            ("a.example", true),
            ("a.b.example", true),
            ("example", false),
            ("anexample", false),
            ("a.example.org", false),
            (".example", false),
        ] {
            assert_eq!(matches_name("*.example", name), below, "{name}");
        }
        assert!(matches_name("a.example", "a.example"));
        assert!(!matches_name("a.example", "b.a.example"));
    }
}
