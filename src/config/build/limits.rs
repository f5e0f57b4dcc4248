//! `[limits]`, the same keys of a listener, and what `[endpoint]` says of what its endpoints may.

use std::num::{NonZeroU32, NonZeroU64};
use std::ops::RangeInclusive;
use std::time::Duration;

use super::Builder;
use crate::config::file::{Key, LimitsTable, ListenerTable, Raw};
use crate::config::values::{self, Parsed};
use crate::config::{
    Cap, Limits, OnDeny, OnLimit, Patience, PolicyKeys, SessionRate, Wish, defaults,
};

/// The most sessions that any limit may be about; far beyond what one machine has ports for.
const MOST_SESSIONS: i64 = 10_000_000;

/// New sessions in a second: one worker opens some ten thousand.
const RATES: RangeInclusive<i64> = 1..=1_000_000;

/// Bytes in a second.
const BYTE_RATES: RangeInclusive<u64> = 1024..=1 << 40;

/// How long a connection may wait for its turn: whoever opened it has given up by then.
const WAITS: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_secs(60);

/// How many may wait: each holds two descriptors.
const WAITING: RangeInclusive<i64> = 1..=100_000;

const ON_LIMIT: [(&str, Wish); 2] = [("refuse", Wish::Refuse), ("wait", Wish::Wait)];

/// The keys of an entry of `[endpoint]` that are about what it may, in the order in which [`Builder::policy`] takes them.
pub(super) const POLICY_KEYS: [&str; 12] = [
    "deny",
    "on_deny",
    "max_sessions",
    "sessions_per_second",
    "sessions_burst",
    "bytes_per_second_to_upstream",
    "bytes_per_second_to_client",
    "max_age",
    "idle_timeout",
    "on_limit",
    "wait_for",
    "max_waiting",
];

/// What an entry of `[endpoint]` says that means something only where another key is written, perhaps in another entry.
pub(super) struct Dependent {
    burst: Key,
    on_limit: Key,
    patience: [(&'static str, Key); 2],
}

impl Builder {
    pub(super) fn limits(&mut self, table: &LimitsTable) -> Limits {
        let most = |raw: &Raw| values::off_or(raw, sessions);
        let at = "limits.max_sessions";
        let max_sessions = self.found.value(at, &table.max_sessions, most).flatten();
        let rate = self.rate("limits", &table.sessions_per_second, &table.sessions_burst);
        let max_waiting = self.waiting("limits.max_waiting", &table.max_waiting);
        let max_waiting = max_waiting.unwrap_or(defaults::MAX_WAITING_IN_ALL);
        let on_limit = self.on_limit("limits", &table.on_limit, &table.wait_for, || max_waiting);
        if table.max_sessions.is_none() && table.sessions_per_second.is_none() {
            let because = "the relay has neither max_sessions nor sessions_per_second";
            let help = "write one of the two beside it, or remove it";
            let at = "limits.on_limit";
            self.found.useless(at, &table.on_limit, because, help);
        }
        Limits {
            max_sessions,
            rate,
            on_limit,
            max_waiting,
        }
    }

    /// Those of a listener that are about more than its `max_sessions`.
    pub(super) fn listener_limits(
        &mut self,
        table: &ListenerTable,
    ) -> (Option<SessionRate>, OnLimit) {
        let (per_second, burst) = (&table.sessions_per_second, &table.sessions_burst);
        let rate = self.rate("listener", per_second, burst);
        let most = self.waiting("listener.max_waiting", &table.max_waiting);
        let most = || most.unwrap_or(defaults::MAX_WAITING);
        let on_limit = self.on_limit("listener", &table.on_limit, &table.wait_for, most);
        if on_limit == OnLimit::Refuse {
            self.waits_for_nothing("listener.max_waiting", &table.max_waiting);
        }
        (rate, on_limit)
    }

    fn rate(&mut self, at: &str, per_second: &Key, burst: &Key) -> Option<SessionRate> {
        let rate = |raw: &Raw| values::off_or(raw, rate);
        let key = format!("{at}.sessions_per_second");
        let rate = self.found.value(&key, per_second, rate).flatten();
        let key = format!("{at}.sessions_burst");
        let written = self.found.value(&key, burst, self::burst);
        if per_second.is_none() {
            self.bursts_of_nothing(&key, burst);
        }
        rate.map(|per_second| SessionRate {
            per_second,
            burst: written.unwrap_or(per_second),
        })
    }

    fn on_limit(
        &mut self,
        at: &str,
        on_limit: &Key,
        wait_for: &Key,
        most: impl FnOnce() -> usize,
    ) -> OnLimit {
        let wish = self
            .found
            .word(&format!("{at}.on_limit"), on_limit, &ON_LIMIT);
        let key = format!("{at}.wait_for");
        let longest = self.found.value(&key, wait_for, wait);
        match wish {
            Wish::Wait => OnLimit::Wait(Patience {
                longest: longest.unwrap_or(defaults::WAIT_FOR),
                most: most(),
            }),
            Wish::Refuse => {
                self.waits_for_nothing(&key, wait_for);
                OnLimit::Refuse
            }
        }
    }

    fn waiting(&mut self, at: &str, key: &Key) -> Option<usize> {
        self.found
            .value(at, key, |raw| values::integer(raw, WAITING))
    }

    fn waits_for_nothing(&mut self, at: &str, key: &Key) {
        let because = "no connection waits here";
        let help = "add on_limit = \"wait\", or remove it";
        self.found.useless(at, key, because, help);
    }

    fn bursts_of_nothing(&mut self, at: &str, key: &Key) {
        let because = "there is no sessions_per_second";
        let help = "add sessions_per_second = 100, or remove it";
        self.found.useless(at, key, because, help);
    }

    /// What an entry of `[endpoint]` allows: the values of [`POLICY_KEYS`].
    pub(super) fn policy(&mut self, keys: [Key; 12]) -> (PolicyKeys, Dependent) {
        let [
            deny,
            on_deny,
            max_sessions,
            per_second,
            burst,
            to_upstream,
            to_client,
            max_age,
            idle_timeout,
            on_limit,
            wait_for,
            max_waiting,
        ] = keys;
        let on_denies = [("keep", OnDeny::Keep), ("close", OnDeny::Close)];
        let bytes = |raw: &Raw| cap(raw, byte_rate);
        let policy = PolicyKeys {
            deny: self.found.value("endpoint.deny", &deny, values::flag),
            on_deny: self.found.value("endpoint.on_deny", &on_deny, |raw| {
                values::word(raw, &on_denies)
            }),
            max_sessions: self
                .found
                .value("endpoint.max_sessions", &max_sessions, |raw| {
                    cap(raw, sessions)
                }),
            sessions_per_second: self.found.value(
                "endpoint.sessions_per_second",
                &per_second,
                |raw| cap(raw, rate),
            ),
            sessions_burst: self
                .found
                .value("endpoint.sessions_burst", &burst, self::burst),
            bytes_per_second: [
                self.found
                    .value("endpoint.bytes_per_second_to_upstream", &to_upstream, bytes),
                self.found
                    .value("endpoint.bytes_per_second_to_client", &to_client, bytes),
            ],
            max_age: self
                .found
                .value("endpoint.max_age", &max_age, values::bound),
            idle_timeout: self
                .found
                .value("endpoint.idle_timeout", &idle_timeout, values::bound),
            on_limit: self.found.value("endpoint.on_limit", &on_limit, |raw| {
                values::word(raw, &ON_LIMIT)
            }),
            wait_for: self.found.value("endpoint.wait_for", &wait_for, wait),
            max_waiting: self.waiting("endpoint.max_waiting", &max_waiting),
        };
        let dependent = Dependent {
            burst,
            on_limit,
            patience: [
                ("endpoint.wait_for", wait_for),
                ("endpoint.max_waiting", max_waiting),
            ],
        };
        (policy, dependent)
    }

    /// Says which keys mean nothing, because none of all entries has what they are about.
    pub(super) fn policies_mean_something(&mut self, policies: &[(PolicyKeys, Dependent)]) {
        let rated = |policy: &PolicyKeys| matches!(policy.sessions_per_second, Some(Cap::At(_)));
        let limited =
            |policy: &PolicyKeys| matches!(policy.max_sessions, Some(Cap::At(_))) || rated(policy);
        let waits = |policy: &PolicyKeys| policy.on_limit == Some(Wish::Wait);
        let any = |of: &dyn Fn(&PolicyKeys) -> bool| policies.iter().any(|(policy, _)| of(policy));
        let (any_rated, any_limited, any_waits) = (any(&rated), any(&limited), any(&waits));
        for (policy, dependent) in policies {
            if !any_rated || policy.sessions_per_second == Some(Cap::Off) {
                self.bursts_of_nothing("endpoint.sessions_burst", &dependent.burst);
            }
            if !any_limited {
                let because = "no endpoint has max_sessions or sessions_per_second";
                let help = "write one of the two beside it, or remove it";
                let at = "endpoint.on_limit";
                self.found.useless(at, &dependent.on_limit, because, help);
            }
            if !any_waits || policy.on_limit == Some(Wish::Refuse) {
                for (at, key) in &dependent.patience {
                    self.waits_for_nothing(at, key);
                }
            }
        }
    }
}

/// What `parse` takes, or `"off"` where a more specific entry lifts what another says.
fn cap<T>(raw: &Raw, parse: impl FnOnce(&Raw) -> Parsed<T>) -> Parsed<Cap<T>> {
    values::off_or(raw, parse).map(|limit| limit.map_or(Cap::Off, Cap::At))
}

fn sessions(raw: &Raw) -> Parsed<usize> {
    if *raw == Raw::Integer(0) {
        return values::wrong(
            "0 would let nobody in",
            "write deny = true in [endpoint.\"…\"] for that, or a number from 1",
        );
    }
    values::integer(raw, 1..=MOST_SESSIONS)
}

fn rate(raw: &Raw) -> Parsed<NonZeroU32> {
    whole(raw, RATES)
}

fn burst(raw: &Raw) -> Parsed<NonZeroU32> {
    whole(raw, 1..=MOST_SESSIONS)
}

fn whole(raw: &Raw, bounds: RangeInclusive<i64>) -> Parsed<NonZeroU32> {
    let number = values::integer(raw, bounds)?;
    let number = u32::try_from(number).ok().and_then(NonZeroU32::new);
    Ok(number.expect("the bounds fit"))
}

fn byte_rate(raw: &Raw) -> Parsed<NonZeroU64> {
    let size = values::size(raw, BYTE_RATES)?;
    Ok(NonZeroU64::new(size as u64).expect("the lower bound is not zero"))
}

fn wait(raw: &Raw) -> Parsed<Duration> {
    values::time_within(raw, WAITS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_with_a_unit_of_time_is_answered_with_what_to_write() {
        for text in ["10MiB/s", "10 MB per second"] {
            let said = byte_rate(&Raw::Text(text.to_owned())).expect_err("no size");
            assert!(
                said.help.contains("\"1KiB\" to \"1024GiB\""),
                "{}",
                said.help
            );
        }
        let ten = byte_rate(&Raw::Text("10MiB".to_owned()));
        assert_eq!(ten.map(NonZeroU64::get), Ok(10 << 20));
    }
}
