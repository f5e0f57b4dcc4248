//! What holds for an endpoint, as the configuration says: numbers, and nothing that was counted.

use std::num::NonZeroU64;
use std::rc::Rc;

use super::bucket::Rate;
use crate::config::{
    Bound, Cap, Config, EndpointEntry, Endpoints, Limits, OnDeny, OnLimit, Patience, PolicyKeys,
    SessionLimits, SessionRate, Wish, defaults,
};

/// See the module. Of one configuration; immutable.
#[derive(Debug)]
pub struct Rules {
    /// The entries that say anything of it.
    endpoints: Endpoints,
    limits: Limits,
}

/// What holds for one endpoint: key by key what the most specific entry says that says anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    /// Nobody comes in; and that is what becomes of those who are.
    pub deny: Option<OnDeny>,
    /// Of new sessions.
    pub entry: Entry,
    /// Of bytes, by [`Direction`](crate::account::Direction).
    pub bytes_per_second: [Option<NonZeroU64>; 2],
    /// What it says of its sessions' time, in place of what listener and upstream say.
    pub max_age: Option<Bound>,
    /// See `max_age`.
    pub idle_timeout: Option<Bound>,
}

/// Who comes in, and what becomes of those who do not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// Most sessions at once.
    pub most: Option<usize>,
    /// New ones in a second.
    pub rate: Option<Rate>,
    /// Whether anybody waits.
    pub on_limit: OnLimit,
}

impl Entry {
    /// Whether anybody may be turned away.
    #[must_use]
    pub fn is_limited(&self) -> bool {
        self.most.is_some() || self.rate.is_some()
    }
}

impl Rules {
    /// What `config` says.
    #[must_use]
    pub fn new(config: &Config) -> Self {
        let about_policy = |entry: &&EndpointEntry| !entry.policy.is_empty();
        let entries = config.endpoints.entries.iter().filter(about_policy);
        Self {
            endpoints: Endpoints {
                entries: entries.cloned().collect(),
            },
            limits: config.limits,
        }
    }

    /// What holds for `endpoint`. Looks through the entries with `*` one by one.
    #[must_use]
    pub fn of(&self, endpoint: &str) -> Rule {
        Rule::of(&self.endpoints, endpoint)
    }

    /// What holds for the whole relay.
    #[must_use]
    pub fn of_relay(&self) -> Entry {
        Entry {
            most: self.limits.max_sessions,
            rate: self.limits.rate.map(rate),
            on_limit: self.limits.on_limit,
        }
    }

    /// Most connections that may wait at once, at whichever limit.
    #[must_use]
    pub fn max_waiting(&self) -> usize {
        self.limits.max_waiting
    }
}

impl From<PolicyKeys> for Rule {
    fn from(keys: PolicyKeys) -> Self {
        let per_second = keys.sessions_per_second.and_then(Cap::at);
        let patience = Patience {
            longest: keys.wait_for.unwrap_or(defaults::WAIT_FOR),
            most: keys.max_waiting.unwrap_or(defaults::MAX_WAITING),
        };
        Self {
            deny: keys
                .deny
                .filter(|deny| *deny)
                .map(|_| keys.on_deny.unwrap_or(OnDeny::Keep)),
            entry: Entry {
                most: keys.max_sessions.and_then(Cap::at),
                rate: per_second.map(|per_second| {
                    rate(SessionRate {
                        per_second,
                        burst: keys.sessions_burst.unwrap_or(per_second),
                    })
                }),
                on_limit: match keys.on_limit {
                    Some(Wish::Wait) => OnLimit::Wait(patience),
                    Some(Wish::Refuse) | None => OnLimit::Refuse,
                },
            },
            bytes_per_second: keys.bytes_per_second.map(|cap| cap.and_then(Cap::at)),
            max_age: keys.max_age,
            idle_timeout: keys.idle_timeout,
        }
    }
}

impl Rule {
    /// What `endpoints` say of `endpoint`.
    #[must_use]
    pub fn of(endpoints: &Endpoints, endpoint: &str) -> Self {
        let entries = endpoints.about(endpoint);
        let said = entries.fold(PolicyKeys::default(), |said, entry| said.or(&entry.policy));
        said.into()
    }

    /// Whether anything of it is counted.
    #[must_use]
    pub fn is_counted(&self) -> bool {
        self.entry.is_limited() || self.bytes_per_second.iter().any(Option::is_some)
    }

    /// The bounds of a session that would have `limits` without it.
    #[must_use]
    pub fn bound(&self, limits: &Rc<SessionLimits>) -> Rc<SessionLimits> {
        if self.max_age.is_none() && self.idle_timeout.is_none() {
            return limits.clone();
        }
        let or = |said: Option<Bound>, otherwise| match said {
            Some(Bound::After(time)) => Some(time),
            Some(Bound::Off) => None,
            None => otherwise,
        };
        Rc::new(SessionLimits {
            max_age: or(self.max_age, limits.max_age),
            idle_timeout: or(self.idle_timeout, limits.idle_timeout),
            ..**limits
        })
    }
}

/// As buckets are told it.
#[must_use]
pub fn rate(rate: SessionRate) -> Rate {
    Rate {
        per_second: rate.per_second.into(),
        burst: rate.burst.into(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const REST: &str = r#"
[[listener]]
name = "ingest"
bind = "0.0.0.0:8443"
trusted_peers = ["10.20.0.0/16"]
upstream = "cp"
session = { max_age = "1h" }
[[upstream]]
name = "cp"
targets = ["cp.example:443"]
"#;

    fn config(entries: &str) -> Config {
        let text = format!("{entries}\n{REST}");
        Config::from_str(&text, "test").unwrap_or_else(|error| panic!("{error}"))
    }

    #[test]
    fn of_each_key_the_most_specific_entry_is_believed() {
        let rules = Rules::new(&config(
            r#"
[endpoint."*"]
max_sessions = 10
sessions_per_second = 5
on_deny = "close"
[endpoint."vpce-*"]
max_sessions = "off"
on_limit = "wait"
wait_for = "1s"
[endpoint."vpce-1"]
deny = true
sessions_burst = 1
[endpoint."vpce-2"]
name = "only a name"
"#,
        ));
        let (direct, other, denied) = (rules.of("direct"), rules.of("vpce-2"), rules.of("vpce-1"));
        assert_eq!((direct.entry.most, other.entry.most), (Some(10), None));
        assert_eq!((direct.deny, other.deny), (None, None));
        assert_eq!(denied.deny, Some(OnDeny::Close));
        let bursts = [direct, denied].map(|rule| rule.entry.rate.map(|rate| rate.burst.get()));
        assert_eq!(bursts, [Some(5), Some(1)], "a second's worth, or as said");
        let patience = Patience {
            longest: Duration::from_secs(1),
            most: 64,
        };
        assert_eq!(other.entry.on_limit, OnLimit::Wait(patience));
        assert_eq!(direct.entry.on_limit, OnLimit::Refuse);
    }

    #[test]
    fn who_is_not_named_may_be_denied_by_default() {
        let rules = Rules::new(&config(
            "[endpoint.\"*\"]\ndeny = true\n[endpoint.\"vpce-1\"]\ndeny = false",
        ));
        assert_eq!(rules.of("vpce-1").deny, None);
        for endpoint in ["vpce-2", "vpce-11", "direct"] {
            assert_eq!(rules.of(endpoint).deny, Some(OnDeny::Keep), "{endpoint}");
        }
    }

    #[test]
    fn without_entries_nothing_is_counted() {
        let rules = Rules::new(&config("[endpoint.\"vpce-1\"]\nname = \"one\""));
        let rule = rules.of("vpce-1");
        assert!(!rule.is_counted() && rule.deny.is_none());
        assert!(!rules.of_relay().is_limited());
    }

    #[test]
    fn an_endpoints_times_go_before_those_of_listener_and_upstream() {
        let config = config("[endpoint.\"vpce-1\"]\nidle_timeout = \"off\"\nmax_age = \"2h\"");
        let limits = Rc::new(config.session_limits(&config.listeners[0], &config.upstreams[0]));
        let rules = Rules::new(&config);
        let its = rules.of("vpce-1").bound(&limits);
        assert_eq!(its.max_age, Some(Duration::from_secs(7200)));
        assert_eq!(its.idle_timeout, None);
        assert_eq!(its.half_close_timeout, limits.half_close_timeout);
        assert!(Rc::ptr_eq(&rules.of("vpce-2").bound(&limits), &limits));
    }
}
