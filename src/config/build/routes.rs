//! `routes` of a listener: which upstream takes which connections.

use std::ops::Range;
use std::sync::Arc;

use toml::Spanned;

use super::Builder;
use crate::config::file::{Key, Raw};
use crate::config::patterns::{self, endpoint_covers, host_covers};
use crate::config::values::nearest;
use crate::config::{ProxyProtocol, Route, addresses};

/// Names of the upstreams, in their order; `None` where a name is in error.
pub(super) type Names<'a> = &'a [Option<Arc<str>>];

const EXAMPLE: &str = "routes = [{ sni = \"*.logs.example\", upstream = \"logs\" }]";

impl Builder {
    /// Every route that is right, and where it stands; in their order.
    pub(super) fn routes(
        &mut self,
        key: &Key,
        proxy_protocol: ProxyProtocol,
        upstreams: Names<'_>,
    ) -> Vec<(Route, Range<usize>)> {
        let items = self.found.items("listener.routes", key).unwrap_or_default();
        let mut routes: Vec<(Route, Range<usize>)> = Vec::new();
        for item in items {
            let Some(route) = self.route(item, proxy_protocol, upstreams) else {
                continue;
            };
            let earlier = routes.iter().find(|(earlier, _)| covers(earlier, &route));
            if let Some((_, place)) = earlier {
                self.found.mistake(
                    "listener.routes",
                    "no connection comes this far: an earlier route takes all that this one would",
                    "write the narrower one first, or remove one of them",
                    Some(item.span()),
                );
                if let Some(mistake) = self.found.mistakes.last_mut() {
                    mistake.other = Some((place.clone(), "taken here".to_owned()));
                }
            }
            routes.push((route, item.span()));
        }
        routes
    }

    fn route(
        &mut self,
        item: &Spanned<Raw>,
        proxy_protocol: ProxyProtocol,
        upstreams: Names<'_>,
    ) -> Option<Route> {
        let known = ["endpoint", "network", "sni", "host", "upstream"];
        let [endpoint, network, sni, host, upstream] =
            self.found.open("listener.routes", item, EXAMPLE, known)?;
        let unconditional = [&endpoint, &network, &sni, &host]
            .iter()
            .all(|condition| condition.is_none());
        if unconditional {
            self.found.mistake(
                "listener.routes",
                "a route without a condition would take every connection",
                "add endpoint, network, sni or host; where the others go is said by upstream of the listener",
                Some(item.span()),
            );
        }
        if let (Some(_), Some(host)) = (&sni, &host) {
            self.found.mistake(
                "listener.routes",
                "no connection has both: sni is in a TLS hello, and host in an HTTP request that is not encrypted",
                "write two routes, one for each",
                Some(host.span()),
            );
        }
        if proxy_protocol == ProxyProtocol::Off {
            self.found.useless(
                "listener.routes.endpoint",
                &endpoint,
                "endpoint ids are in PROXY v2 headers, and proxy_protocol is \"off\"",
                "route by network, sni or host, or let the NLB send headers: proxy_protocol = \"v2\"",
            );
        }
        let route = Route {
            endpoint: self
                .found
                .value("listener.routes.endpoint", &endpoint, patterns::endpoint),
            network: self
                .found
                .value("listener.routes.network", &network, addresses::network),
            sni: self
                .found
                .value("listener.routes.sni", &sni, patterns::host),
            host: self
                .found
                .value("listener.routes.host", &host, patterns::host),
            upstream: self.upstream_named(
                "listener.routes.upstream",
                &upstream,
                &item.span(),
                upstreams,
            )?,
        };
        let written = [&endpoint, &network, &sni, &host].map(Option::is_some);
        let right = [
            route.endpoint.is_some(),
            route.network.is_some(),
            route.sni.is_some(),
            route.host.is_some(),
        ];
        // Without the condition that is in error it would seem to take what it was not meant for.
        (written == right && !unconditional).then_some(route)
    }

    /// The upstream that a key names.
    pub(super) fn upstream_named(
        &mut self,
        at: &str,
        key: &Key,
        place: &Range<usize>,
        upstreams: Names<'_>,
    ) -> Option<usize> {
        let names = || upstreams.iter().flatten().map(AsRef::as_ref);
        let example = format!("upstream = {:?}", names().next().unwrap_or("control-plane"));
        let wanted = self
            .found
            .required(at, key, place, &example, addresses::name)?;
        let found = position(upstreams, &wanted);
        if found.is_none() {
            let (problem, help) = no_such_upstream(upstreams, &wanted);
            let span = key.as_ref().map(Spanned::span);
            self.found.mistake(at, &problem, &help, span);
        }
        found
    }
}

/// Which upstream has this name.
pub(super) fn position(upstreams: Names<'_>, wanted: &str) -> Option<usize> {
    let mut names = upstreams.iter().map(Option::as_deref);
    names.position(|name| name == Some(wanted))
}

/// That none has, and what to do.
pub(super) fn no_such_upstream(upstreams: Names<'_>, wanted: &str) -> (String, String) {
    let names = || upstreams.iter().flatten().map(AsRef::as_ref);
    let list = names()
        .map(|name| format!("{name:?}"))
        .collect::<Vec<_>>()
        .join(", ");
    let help = match nearest(wanted, names()) {
        Some(near) => format!("did you mean {near:?}?"),
        None if list.is_empty() => format!("add [[upstream]] with name = {wanted:?}"),
        None => format!("write one of {list}, or add [[upstream]] with name = {wanted:?}"),
    };
    (format!("there is no upstream {wanted:?}"), help)
}

/// Whether every connection that `later` would take is taken by `earlier`. Sure where it says so.
fn covers(earlier: &Route, later: &Route) -> bool {
    let endpoint = earlier.endpoint.as_deref().is_none_or(|more| {
        // The glob that takes everything takes connections without a condition on their id, too.
        endpoint_covers(more, later.endpoint.as_deref().unwrap_or("*"))
    });
    let network = earlier
        .network
        .is_none_or(|more| later.network.is_some_and(|less| more.contains(&less)));
    let host = |earlier: &Option<Arc<str>>, later: &Option<Arc<str>>| {
        earlier
            .as_deref()
            .is_none_or(|more| later.as_deref().is_some_and(|less| host_covers(more, less)))
    };
    endpoint && network && host(&earlier.sni, &later.sni) && host(&earlier.host, &later.host)
}
