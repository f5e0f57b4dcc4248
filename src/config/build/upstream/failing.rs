//! What is done about addresses that leave or fail: `on_vanish` and what belongs to it, `failover = { … }`, `eject = { … }`.

use std::time::Duration;

use toml::Spanned;

use crate::config::build::Builder;
use crate::config::build::findings::Side;
use crate::config::file::{Key, UpstreamTable};
use crate::config::values::{self, duration_text};
use crate::config::{Eject, Failover, OnVanish, Target, defaults};

/// `on_vanish`, `vanish_deadline`, `vanish_spread`.
pub(super) struct Vanish {
    pub(super) what: OnVanish,
    pub(super) deadline: Duration,
    pub(super) spread: Duration,
}

impl Builder {
    pub(super) fn vanish(&mut self, table: &UpstreamTable) -> Vanish {
        let what = self.found.word(
            "upstream.on_vanish",
            &table.on_vanish,
            &[
                ("keep", OnVanish::Keep),
                ("drain", OnVanish::Drain),
                ("close", OnVanish::Close),
            ],
        );
        let (deadline, spread) = (&table.vanish_deadline, &table.vanish_spread);
        match what {
            OnVanish::Keep => {
                for (key, value) in [("vanish_deadline", deadline), ("vanish_spread", spread)] {
                    self.found.useless(
                        &format!("upstream.{key}"),
                        value,
                        "sessions on an address that leaves are kept",
                        "remove it, or write on_vanish = \"drain\"",
                    );
                }
            }
            OnVanish::Drain => {}
            OnVanish::Close => self.found.useless(
                "upstream.vanish_deadline",
                deadline,
                "sessions on an address that leaves are closed without waiting",
                "remove it, or write on_vanish = \"drain\"; vanish_spread says over how much time they are closed",
            ),
        }
        let [spread, deadline] = self.found.pair(
            Side {
                key: "upstream.vanish_spread",
                value: spread,
                default: defaults::VANISH_SPREAD,
                parse: values::duration,
            },
            Side {
                key: "upstream.vanish_deadline",
                value: deadline,
                default: defaults::VANISH_DEADLINE,
                parse: values::time,
            },
            quoted,
        );
        Vanish {
            what,
            deadline,
            spread,
        }
    }

    /// `failover = { … }`.
    pub(super) fn failover(&mut self, key: &Key, targets: Option<&[Spanned<Target>]>) -> Failover {
        let example = "failover = { below = 50, back_above = 80 }";
        let known = ["below", "back_above", "back_after", "max_age"];
        let [below, back_above, back_after, max_age] = key
            .as_ref()
            .and_then(|table| self.found.open("upstream.failover", table, example, known))
            .unwrap_or_default();
        let one_group = targets.is_some_and(|targets| {
            let mut priorities = targets.iter().map(|target| target.get_ref().priority);
            let first = priorities.next();
            priorities.all(|priority| Some(priority) == first)
        });
        if one_group {
            self.found.useless(
                "upstream.failover",
                key,
                "all targets are of one priority, so that nothing takes over from them",
                "give those that stand by a later one: targets = [\"HOST:PORT\", { target = \"HOST:PORT\", priority = 1 }]",
            );
        }
        let [below, back_above] = self.found.pair(
            Side {
                key: "upstream.failover.below",
                value: &below,
                default: defaults::FAILOVER_BELOW,
                parse: |raw| values::number(raw, 1..=100),
            },
            Side {
                key: "upstream.failover.back_above",
                value: &back_above,
                default: defaults::FAILOVER_BACK_ABOVE,
                parse: |raw| values::number(raw, 1..=100),
            },
            |percent| percent.to_string(),
        );
        let back_after = self.found.value(
            "upstream.failover.back_after",
            &back_after,
            values::duration,
        );
        let max_age = self
            .found
            .value("upstream.failover.max_age", &max_age, |raw| {
                values::off_or(raw, values::time)
            });
        Failover {
            below,
            back_above,
            back_after: back_after.unwrap_or(defaults::FAILOVER_BACK_AFTER),
            max_age: max_age.flatten(),
        }
    }

    /// `eject = { … }`.
    pub(super) fn eject(&mut self, key: &Key) -> Eject {
        let example = "eject = { after = 3, pause = \"10s\" }";
        let known = ["after", "pause", "longest", "panic_below"];
        let [after, pause, longest, panic_below] = key
            .as_ref()
            .and_then(|table| self.found.open("upstream.eject", table, example, known))
            .unwrap_or_default();
        let after = self.found.value("upstream.eject.after", &after, |raw| {
            values::off_or(raw, |raw| values::number(raw, 1..=1000))
        });
        if after == Some(None) {
            for (key, value) in [("pause", &pause), ("longest", &longest)] {
                self.found.useless(
                    &format!("upstream.eject.{key}"),
                    value,
                    "with after = \"off\" no address is ejected",
                    "remove one of the two",
                );
            }
        }
        let [pause, longest] = self.found.pair(
            Side {
                key: "upstream.eject.pause",
                value: &pause,
                default: defaults::EJECT_PAUSE,
                parse: values::time,
            },
            Side {
                key: "upstream.eject.longest",
                value: &longest,
                default: defaults::EJECT_LONGEST,
                parse: values::time,
            },
            quoted,
        );
        Eject {
            after: after.unwrap_or(Some(defaults::EJECT_AFTER)),
            pause,
            longest,
            panic_below: self.found.number(
                "upstream.eject.panic_below",
                &panic_below,
                0..=100,
                defaults::PANIC_BELOW,
            ),
        }
    }
}

/// A duration as it is written in the file.
pub(super) fn quoted(duration: Duration) -> String {
    format!("{:?}", duration_text(duration))
}
