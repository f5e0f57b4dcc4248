//! `[[listener]]`.

use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;

use toml::Spanned;

use super::Builder;
use super::findings::{strip, trusts_nobody};
use super::places::Placed;
use crate::config::file::{Key, ListenerTable, Raw};
use crate::config::values::{self, nearest};
use crate::config::{
    CrcPolicy, Listener, Peers, ProxyProtocol, SocketOptions, addresses, defaults,
};

impl Builder {
    pub(super) fn listener(
        &mut self,
        spanned: &Spanned<ListenerTable>,
        upstreams: &[Option<Arc<str>>],
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
        let upstream = self.chosen_upstream(table, &place, upstreams);
        let modes = [("v2", ProxyProtocol::V2), ("off", ProxyProtocol::Off)];
        let proxy_protocol =
            self.found
                .word("listener.proxy_protocol", &table.proxy_protocol, &modes);
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
        let session = self.session("listener.session", &table.session);
        Some(Listener {
            name: name?,
            bind: bind?,
            upstream: Some(upstream?),
            routes: Vec::new(),
            peek_size: defaults::PEEK_SIZE,
            peek_timeout: defaults::PEEK_TIMEOUT,
            proxy_protocol,
            trusted_peers: trusted_peers?,
            crc,
            max_header: max_header.unwrap_or(defaults::MAX_HEADER),
            first_byte_timeout,
            header_timeout,
            max_pending,
            max_sessions,
            session,
            socket: SocketOptions::default(),
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

    fn chosen_upstream(
        &mut self,
        table: &ListenerTable,
        place: &Range<usize>,
        upstreams: &[Option<Arc<str>>],
    ) -> Option<usize> {
        let names = || upstreams.iter().flatten().map(AsRef::as_ref);
        let example = format!("upstream = {:?}", names().next().unwrap_or("control-plane"));
        let wanted = self.found.required(
            "listener.upstream",
            &table.upstream,
            place,
            &example,
            addresses::name,
        )?;
        let found = upstreams
            .iter()
            .position(|name| name.as_ref() == Some(&wanted));
        if found.is_none() {
            let list = names()
                .map(|name| format!("{name:?}"))
                .collect::<Vec<_>>()
                .join(", ");
            let help = match nearest(&wanted, names()) {
                Some(near) => format!("did you mean {near:?}?"),
                None if list.is_empty() => format!("add [[upstream]] with name = {wanted:?}"),
                None => format!("write one of {list}, or add [[upstream]] with name = {wanted:?}"),
            };
            let span = table.upstream.as_ref().map(Spanned::span);
            self.found.mistake(
                "listener.upstream",
                &format!("there is no upstream {wanted:?}"),
                &help,
                span,
            );
        }
        found
    }
}
