//! `[[upstream]]`.

mod failing;
mod health;
mod targets;

use std::time::Duration;

use toml::Spanned;

use super::Builder;
use super::findings::{Side, strip};
use crate::config::file::{Key, UpstreamTable};
use crate::config::{Ahead, Balance, SendProxy, Upstream, addresses, defaults, values};

/// Most connections of one worker that wait for a client.
const MOST_AHEAD: u16 = 1024;

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
        let targets = self.targets(&table.targets, &place);
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
        let balance = self.found.word(
            "upstream.balance",
            &table.balance,
            &[
                ("least_sessions", Balance::LeastSessions),
                ("round_robin", Balance::RoundRobin),
                ("weighted", Balance::Weighted),
                ("rendezvous", Balance::Rendezvous),
            ],
        );
        let next_try_after =
            self.found
                .value("upstream.next_try_after", &table.next_try_after, |raw| {
                    values::time_within(raw, Duration::from_millis(10)..=Duration::from_secs(60))
                });
        let retry_budget = self.found.number(
            "upstream.retry_budget",
            &table.retry_budget,
            0..=1000,
            defaults::RETRY_BUDGET,
        );
        let slow_start = self
            .found
            .value("upstream.slow_start", &table.slow_start, |raw| {
                values::off_or(raw, values::time)
            });
        let vanish = self.vanish(table);
        let failover = self.failover(&table.failover, targets.as_deref());
        let eject = self.eject(&table.eject);
        let health = self.health_check(&table.health);
        let ahead = self.ahead(&table.ahead);
        let proxy_protocol = self.found.word(
            "upstream.proxy_protocol",
            &table.proxy_protocol,
            &[
                ("off", SendProxy::Off),
                ("v1", SendProxy::V1),
                ("v2", SendProxy::V2),
            ],
        );
        let session = self.session("upstream.session", &table.session);
        let socket = self.socket("upstream.socket", &table.socket);
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
            balance,
            next_try_after: next_try_after.unwrap_or(defaults::NEXT_TRY_AFTER),
            retry_budget,
            on_vanish: vanish.what,
            vanish_deadline: vanish.deadline,
            vanish_spread: vanish.spread,
            failover,
            eject,
            slow_start: slow_start.unwrap_or(Some(defaults::SLOW_START)),
            health,
            ahead,
            proxy_protocol,
            socket,
        })
    }

    /// `ahead = { … }`.
    fn ahead(&mut self, key: &Key) -> Option<Ahead> {
        let known = ["min", "max", "max_age"];
        let example = "ahead = { max = 32 }";
        let table = key.as_ref()?;
        let [min, max, max_age] = self.found.open("upstream.ahead", table, example, known)?;
        let [min, max] = self.found.pair(
            Side {
                key: "upstream.ahead.min",
                value: &min,
                default: defaults::AHEAD_MIN,
                parse: |raw| values::integer(raw, 0..=MOST_AHEAD.into()),
            },
            Side {
                key: "upstream.ahead.max",
                value: &max,
                default: defaults::AHEAD_MAX,
                parse: |raw| values::integer(raw, 1..=MOST_AHEAD.into()),
            },
            |number| number.to_string(),
        );
        let max_age = self.found.value("upstream.ahead.max_age", &max_age, |raw| {
            values::time_within(raw, Duration::from_millis(100)..=Duration::from_secs(30))
        });
        Some(Ahead {
            min,
            max,
            max_age: max_age.unwrap_or(defaults::AHEAD_MAX_AGE),
        })
    }
}
