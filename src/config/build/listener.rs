//! `[[listener]]`.

use std::net::SocketAddr;
use std::ops::Range;

use toml::Spanned;

use super::Builder;
use super::findings::{strip, trusts_nobody};
use super::places::Placed;
use super::routes::Names;
use crate::config::file::{Key, ListenerTable, Raw};
use crate::config::values;
use crate::config::{CrcPolicy, Listener, Peers, ProxyProtocol, addresses, defaults};

impl Builder {
    pub(super) fn listener(
        &mut self,
        spanned: &Spanned<ListenerTable>,
        upstreams: Names<'_>,
    ) -> Option<Listener> {
        let table = spanned.get_ref();
        let place = spanned.span();
        let name = self.found.required(
            "listener.name",
            &table.name,
            &place,
            "name = \"ingest\"",
            addresses::name,
        );
        let bind = self.binds(&table.bind, &place);
        let modes = [("v2", ProxyProtocol::V2), ("off", ProxyProtocol::Off)];
        let proxy_protocol =
            self.found
                .word("listener.proxy_protocol", &table.proxy_protocol, &modes);
        let routes = self.routes(&table.routes, proxy_protocol, upstreams);
        let routed =
            matches!(&table.routes, Some(routes) if *routes.get_ref() != Raw::List(Vec::new()));
        let upstream = if routed && table.upstream.is_none() {
            Some(None)
        } else {
            self.upstream_named("listener.upstream", &table.upstream, &place, upstreams)
                .map(Some)
        };
        let [peek_size, peek_timeout] = [&table.peek_size, &table.peek_timeout];
        let peeks = look_into_bytes(&table.routes);
        if !peeks {
            for (key, value) in [("peek_size", peek_size), ("peek_timeout", peek_timeout)] {
                self.found.useless(
                    &format!("listener.{key}"),
                    value,
                    "no route looks at what the client sends",
                    "remove it, or add a route with sni or host",
                );
            }
        }
        let peek_size = self.found.value("listener.peek_size", peek_size, |raw| {
            values::size(raw, 1024..=64 * 1024)
        });
        let peek_timeout = self.found.time(
            "listener.peek_timeout",
            peek_timeout,
            defaults::PEEK_TIMEOUT,
        );
        let trusted_peers = self.trusted_peers(&table.trusted_peers, proxy_protocol, &place);
        let first_byte_timeout = self.found.time(
            "listener.first_byte_timeout",
            &table.first_byte_timeout,
            defaults::FIRST_BYTE_TIMEOUT,
        );
        let header_timeout = self.found.time(
            "listener.header_timeout",
            &table.header_timeout,
            defaults::HEADER_TIMEOUT,
        );
        // 16 bytes are fixed and a 16-bit length says what follows (PROXY protocol specification, section 2.2).
        let max_header = self
            .found
            .value("listener.max_header", &table.max_header, |raw| {
                values::size(raw, 16..=65551)
            });
        let crc = self.found.word(
            "listener.crc",
            &table.crc,
            &[("verify", CrcPolicy::Verify), ("ignore", CrcPolicy::Ignore)],
        );
        let max_pending = self.found.count(
            "listener.max_pending",
            &table.max_pending,
            defaults::MAX_PENDING,
        );
        let max_sessions = self.found.count(
            "listener.max_sessions",
            &table.max_sessions,
            defaults::MAX_SESSIONS,
        );
        let (rate, on_limit) = self.listener_limits(table);
        let session = self.session("listener.session", &table.session);
        let socket = self.socket("listener.socket", &table.socket);
        Some(Listener {
            name: name?,
            bind: bind?,
            upstream: upstream?,
            routes: routes.into_iter().map(|(route, _)| route).collect(),
            peek_size: peek_size.unwrap_or(defaults::PEEK_SIZE),
            peek_timeout,
            proxy_protocol,
            trusted_peers: trusted_peers?,
            crc,
            max_header: max_header.unwrap_or(defaults::MAX_HEADER),
            first_byte_timeout,
            header_timeout,
            max_pending,
            max_sessions,
            rate,
            on_limit,
            session,
            socket,
        })
    }

    /// `trusted_peers`: required where headers are believed.
    fn trusted_peers(
        &mut self,
        key: &Key,
        proxy_protocol: ProxyProtocol,
        place: &Range<usize>,
    ) -> Option<Peers> {
        if proxy_protocol == ProxyProtocol::V2 && trusts_nobody(key) {
            let state = if key.is_none() { "missing" } else { "empty" };
            let problem = format!(
                "is {state}: whoever connects here can claim to be anyone, so it must be said whose PROXY headers are believed"
            );
            let help = "list the subnets of the NLB, for instance trusted_peers = [\"10.20.0.0/16\"]; \
                        or, where nothing sends a header, proxy_protocol = \"off\"";
            let span = key.as_ref().map_or_else(|| place.clone(), Spanned::span);
            self.found
                .mistake("listener.trusted_peers", &problem, help, Some(span));
            return None;
        }
        Some(
            self.found
                .peers("listener.trusted_peers", key)
                .unwrap_or(Peers::Anyone),
        )
    }

    /// `bind` of a listener: one address or a list of them.
    fn binds(&mut self, key: &Key, place: &Range<usize>) -> Option<Vec<SocketAddr>> {
        let example = "bind = \"0.0.0.0:8443\"";
        let binds = match key.as_ref().map(Spanned::get_ref) {
            Some(Raw::Text(_)) => {
                let address = self.found.value("listener.bind", key, addresses::bind)?;
                vec![Spanned::new(key.as_ref()?.span(), address)]
            }
            _ => self
                .found
                .required_list("listener.bind", key, place, example, addresses::bind)?,
        };
        for bind in &binds {
            self.listeners.push(Placed {
                key: "listener.bind",
                value: *bind.get_ref(),
                span: Some(bind.span()),
            });
        }
        Some(strip(binds))
    }
}

/// Whether a route asks for a name, be it right or wrong.
fn look_into_bytes(routes: &Key) -> bool {
    let items = match routes.as_ref().map(Spanned::get_ref) {
        None => return false,
        Some(Raw::List(items)) => items,
        Some(_) => return true, // what it is meant to be nobody knows
    };
    items.iter().any(|item| match item.get_ref() {
        Raw::Table(entries) => entries
            .iter()
            .any(|(key, _)| ["sni", "host"].contains(&key.get_ref().as_str())),
        _ => true,
    })
}
