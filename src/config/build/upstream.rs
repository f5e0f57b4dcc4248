//! `[[upstream]]`.

use toml::Spanned;

use super::Builder;
use super::findings::strip;
use super::places::Placed;
use crate::config::file::UpstreamTable;
use crate::config::{
    Balance, Eject, Failover, OnVanish, SendProxy, SocketOptions, Upstream, addresses, defaults,
    values,
};

impl Builder {
    pub(super) fn upstream(&mut self, spanned: &Spanned<UpstreamTable>) -> Option<Upstream> {
        let table = spanned.get_ref();
        let place = spanned.span();
        let name = self.found.required(
            "upstream.name",
            &table.name,
            &place,
            "name = \"control-plane\"",
            addresses::name,
        );
        let example = "targets = [\"cp.us-east-1.example.internal:443\"]";
        let targets = self.found.required_list(
            "upstream.targets",
            &table.targets,
            &place,
            example,
            addresses::target,
        );
        for target in targets.iter().flatten() {
            self.targets.push(Placed {
                key: "upstream.targets",
                value: target.get_ref().clone(),
                span: Some(target.span()),
            });
        }
        let [connect_timeout, connect_deadline] = self.found.ordered(
            (
                "upstream.connect_timeout",
                &table.connect_timeout,
                defaults::CONNECT_TIMEOUT,
            ),
            (
                "upstream.connect_deadline",
                &table.connect_deadline,
                defaults::CONNECT_DEADLINE,
            ),
        );
        let [min_ttl, max_ttl] = self.found.ordered(
            ("upstream.min_ttl", &table.min_ttl, defaults::MIN_TTL),
            ("upstream.max_ttl", &table.max_ttl, defaults::MAX_TTL),
        );
        let stale_for = self
            .found
            .value("upstream.stale_for", &table.stale_for, |raw| {
                values::word_or(raw, "forever", values::duration)
            });
        let allow_addresses = self.found.list(
            "upstream.allow_addresses",
            &table.allow_addresses,
            addresses::network,
        );
        let session = self.session("upstream.session", &table.session);
        Some(Upstream {
            name: name?,
            targets: strip(targets?),
            connect_timeout,
            connect_deadline,
            min_ttl,
            max_ttl,
            stale_for: stale_for.flatten(),
            allow_addresses: allow_addresses.map(strip).unwrap_or_default(),
            session,
            balance: Balance::LeastSessions,
            next_try_after: defaults::NEXT_TRY_AFTER,
            retry_budget: defaults::RETRY_BUDGET,
            on_vanish: OnVanish::Keep,
            vanish_deadline: defaults::VANISH_DEADLINE,
            vanish_spread: defaults::VANISH_SPREAD,
            failover: Failover {
                below: defaults::FAILOVER_BELOW,
                back_above: defaults::FAILOVER_BACK_ABOVE,
                back_after: defaults::FAILOVER_BACK_AFTER,
                max_age: None,
            },
            eject: Eject {
                after: Some(defaults::EJECT_AFTER),
                pause: defaults::EJECT_PAUSE,
                longest: defaults::EJECT_LONGEST,
                panic_below: defaults::PANIC_BELOW,
            },
            slow_start: Some(defaults::SLOW_START),
            health: None,
            ahead: None,
            proxy_protocol: SendProxy::Off,
            socket: SocketOptions::default(),
        })
    }
}
