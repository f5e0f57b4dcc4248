//! `[[upstream]]` as lines.

use super::super::texts::{list, or_off, shown, table, text, time};
use super::Lines;
use crate::config::{
    Ahead, Balance, Check, Eject, Failover, HealthCheck, OnVanish, SendProxy, Target, Upstream,
};

impl Lines {
    pub(super) fn upstream(&mut self, upstream: &Upstream) {
        let Upstream {
            name: _,
            targets,
            connect_timeout,
            connect_deadline,
            min_ttl,
            max_ttl,
            stale_for,
            allow_addresses,
            session,
            balance,
            next_try_after,
            retry_budget,
            on_vanish,
            vanish_deadline,
            vanish_spread,
            failover,
            eject,
            slow_start,
            health,
            ahead,
            proxy_protocol,
            socket,
        } = upstream;
        self.put("targets", list(targets, target_text));
        self.put("connect_timeout", time(*connect_timeout));
        self.put("connect_deadline", time(*connect_deadline));
        self.put("min_ttl", time(*min_ttl));
        self.put("max_ttl", time(*max_ttl));
        self.put("stale_for", stale_for.map_or_else(|| text("forever"), time));
        if !allow_addresses.is_empty() {
            self.put("allow_addresses", list(allow_addresses, shown));
        }
        self.put(
            "balance",
            text(match balance {
                Balance::LeastSessions => "least_sessions",
                Balance::RoundRobin => "round_robin",
                Balance::Weighted => "weighted",
                Balance::Rendezvous => "rendezvous",
            }),
        );
        self.put("next_try_after", time(*next_try_after));
        self.put("retry_budget", retry_budget.to_string());
        self.put(
            "on_vanish",
            text(match on_vanish {
                OnVanish::Keep => "keep",
                OnVanish::Drain => "drain",
                OnVanish::Close => "close",
            }),
        );
        self.put("vanish_deadline", time(*vanish_deadline));
        self.put("vanish_spread", time(*vanish_spread));
        self.failing(failover, eject);
        self.put("slow_start", or_off(*slow_start, time));
        match health {
            Some(health) => self.health(health),
            None => self.put("health", text("off")),
        }
        match ahead {
            Some(Ahead { min, max, max_age }) => {
                self.put("ahead.min", min.to_string());
                self.put("ahead.max", max.to_string());
                self.put("ahead.max_age", time(*max_age));
            }
            None => self.put("ahead", text("off")),
        }
        self.put(
            "proxy_protocol",
            text(match proxy_protocol {
                SendProxy::Off => "off",
                SendProxy::V1 => "v1",
                SendProxy::V2 => "v2",
            }),
        );
        self.session(session);
        self.socket(socket);
    }

    fn failing(&mut self, failover: &Failover, eject: &Eject) {
        let Failover {
            below,
            back_above,
            back_after,
            max_age,
        } = failover;
        self.put("failover.below", below.to_string());
        self.put("failover.back_above", back_above.to_string());
        self.put("failover.back_after", time(*back_after));
        self.put("failover.max_age", or_off(*max_age, time));
        let Eject {
            after,
            pause,
            longest,
            panic_below,
        } = eject;
        self.put("eject.after", or_off(*after, |n| n.to_string()));
        self.put("eject.pause", time(*pause));
        self.put("eject.longest", time(*longest));
        self.put("eject.panic_below", panic_below.to_string());
    }

    fn health(&mut self, health: &HealthCheck) {
        let HealthCheck {
            check,
            interval,
            timeout,
            rise,
            fall,
            port,
        } = health;
        self.within("health", |lines| {
            let bytes = |bytes: &[u8]| text(&String::from_utf8_lossy(bytes));
            match check {
                Check::Tcp => lines.put("check", text("tcp")),
                Check::Exchange { send, expect } => {
                    lines.put("check", text("exchange"));
                    lines.put("send", bytes(send));
                    lines.put("expect", bytes(expect));
                }
                Check::Http { path, host, status } => {
                    lines.put("check", text("http"));
                    lines.put("path", text(path));
                    lines.put_if("host", host.as_deref().map(text));
                    let (low, high) = status;
                    lines.put("status", text(&format!("{low}-{high}")));
                }
            }
            lines.put("interval", time(*interval));
            lines.put("timeout", time(*timeout));
            lines.put("rise", rise.to_string());
            lines.put("fall", fall.to_string());
            lines.put_if("port", port.map(|port| port.to_string()));
        });
    }
}

fn target_text(target: &Target) -> String {
    let Target {
        host: _,
        port: _,
        priority,
        weight,
    } = target; // host and port are how it shows itself
    match (priority, weight) {
        (0, 1) => shown(target),
        _ => table([
            ("target", Some(shown(target))),
            (
                "priority",
                Some(priority.to_string()).filter(|_| *priority != 0),
            ),
            ("weight", Some(weight.to_string()).filter(|_| *weight != 1)),
        ]),
    }
}
