//! `[endpoint]` and `[[consumer]]` as lines, and what endpoints, listeners and the whole relay may have.

use std::collections::BTreeMap;

use super::super::texts::{bound, list, or_off, shown, table, text, time};
use super::{Lines, key};
use crate::account::Direction;
use crate::config::{
    Cap, Consumer, Consumers, EndpointEntry, Limits, OnDeny, OnLimit, Patience, PolicyKeys,
    SessionRate, Wish, size_text,
};

impl Lines {
    pub(super) fn endpoint(&mut self, entry: &EndpointEntry) {
        let EndpointEntry {
            pattern,
            name,
            account,
            tags,
            policy,
        } = entry;
        self.named("endpoint", &text(pattern), |lines| {
            lines.put_if("name", name.as_deref().map(text));
            lines.put_if("account", account.as_deref().map(text));
            lines.put_if(
                "tags",
                tags.as_ref().map(|tags| list(tags, |tag| text(tag))),
            );
            lines.policy(policy);
        });
    }

    /// A line for each name, which may stand in the file several times.
    pub(super) fn consumers(&mut self, consumers: &Consumers) {
        let mut named: BTreeMap<_, BTreeMap<_, Vec<_>>> = BTreeMap::new();
        for Consumer {
            name,
            endpoints,
            network,
        } in &consumers.entries
        {
            let through = named.entry(name).or_default();
            through.entry(endpoints).or_default().push(network);
        }
        for (name, through) in named {
            let tables = through.into_iter().map(|(endpoints, networks)| {
                let some = Some(endpoints).filter(|endpoints| !endpoints.is_empty());
                table([
                    ("networks", Some(list(&networks, |network| shown(*network)))),
                    (
                        "endpoints",
                        some.map(|some| list(some, |endpoint| text(endpoint))),
                    ),
                ])
            });
            let tables: Vec<String> = tables.collect();
            self.put(&format!("consumer.{}", key(name)), tables.join(", "));
        }
    }

    /// As far as it is there.
    fn policy(&mut self, policy: &PolicyKeys) {
        let PolicyKeys {
            deny,
            on_deny,
            max_sessions,
            sessions_per_second,
            sessions_burst,
            bytes_per_second,
            max_age,
            idle_timeout,
            on_limit,
            wait_for,
            max_waiting,
        } = policy;
        self.put_if("deny", deny.map(|deny| deny.to_string()));
        let on_deny = on_deny.map(|on_deny| match on_deny {
            OnDeny::Keep => text("keep"),
            OnDeny::Close => text("close"),
        });
        self.put_if("on_deny", on_deny);
        self.put_if("max_sessions", cap(*max_sessions, |n| n.to_string()));
        let rate = cap(*sessions_per_second, |n| n.to_string());
        self.put_if("sessions_per_second", rate);
        self.put_if("sessions_burst", sessions_burst.map(|n| n.to_string()));
        for direction in Direction::ALL {
            let rate = cap(bytes_per_second[direction as usize], |n| {
                text(&size_text(n.get()))
            });
            self.put_if(&format!("bytes_per_second_{}", direction.name()), rate);
        }
        self.put_if("max_age", max_age.map(bound));
        self.put_if("idle_timeout", idle_timeout.map(bound));
        let on_limit = on_limit.map(|on_limit| match on_limit {
            Wish::Refuse => text("refuse"),
            Wish::Wait => text("wait"),
        });
        self.put_if("on_limit", on_limit);
        self.put_if("wait_for", wait_for.map(time));
        self.put_if("max_waiting", max_waiting.map(|n| n.to_string()));
    }

    /// `[limits]`.
    pub(super) fn limits(&mut self, limits: &Limits) {
        let Limits {
            max_sessions,
            rate,
            on_limit,
            max_waiting,
        } = limits;
        self.within("limits", |lines| {
            lines.put("max_sessions", or_off(*max_sessions, |n| n.to_string()));
            lines.rate(rate.as_ref());
            // How many wait here at most is how many wait in all.
            let _ = lines.on_limit(on_limit);
            lines.put("max_waiting", max_waiting.to_string());
        });
    }

    pub(super) fn rate(&mut self, rate: Option<&SessionRate>) {
        let Some(SessionRate { per_second, burst }) = rate else {
            return self.put("sessions_per_second", text("off"));
        };
        self.put("sessions_per_second", per_second.to_string());
        self.put("sessions_burst", burst.to_string());
    }

    /// But for how many wait at most, which it gives back.
    pub(super) fn on_limit(&mut self, on_limit: &OnLimit) -> Option<usize> {
        match on_limit {
            OnLimit::Refuse => {
                self.put("on_limit", text("refuse"));
                None
            }
            OnLimit::Wait(Patience { longest, most }) => {
                self.put("on_limit", text("wait"));
                self.put("wait_for", time(*longest));
                Some(*most)
            }
        }
    }
}

fn cap<T>(cap: Option<Cap<T>>, text_of: impl FnOnce(T) -> String) -> Option<String> {
    cap.map(|cap| or_off(cap.at(), text_of))
}
