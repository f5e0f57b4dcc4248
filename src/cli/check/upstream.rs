//! What an upstream is, in a paragraph.

use std::fmt::{self, Write as _};

use super::{describe_socket, join};
use crate::config::{
    Balance, Check, Config, Eject, Failover, HealthCheck, OnVanish, SendProxy, Upstream,
    duration_text,
};

pub(super) fn describe(out: &mut String, config: &Config, upstream: &Upstream) -> fmt::Result {
    writeln!(out, "upstream {}", upstream.name)?;
    let groups = targets(out, upstream)?;
    let balance = match upstream.balance {
        Balance::LeastSessions => "of two at random, the one with fewer sessions for its weight",
        Balance::RoundRobin => "one after the other",
        Balance::Weighted => "one after the other, as often as their weights say",
        Balance::Rendezvous => "by the endpoint id: a consumer stays on one address",
    };
    writeln!(out, "  balance   {balance}")?;
    writeln!(
        out,
        "  connect   {} per try, {} in all; the next address is tried after {}; at most {} tries more for 100 sessions",
        duration_text(upstream.connect_timeout),
        duration_text(upstream.connect_deadline),
        duration_text(upstream.next_try_after),
        upstream.retry_budget
    )?;
    if groups > 1 {
        writeln!(out, "  failover  {}", failover(&upstream.failover))?;
    }
    let stale = upstream.stale_for.map_or("for ever".to_owned(), |time| {
        format!("for {}", duration_text(time))
    });
    let (min, max) = (
        duration_text(upstream.min_ttl),
        duration_text(upstream.max_ttl),
    );
    writeln!(
        out,
        "  names     asked for again after {min} to {max}; the last good answer serves {stale}"
    )?;
    if !upstream.allow_addresses.is_empty() {
        writeln!(
            out,
            "  allowed   answers in {}",
            join(&upstream.allow_addresses)
        )?;
    }
    writeln!(
        out,
        "  vanished  sessions on an address that leaves {}",
        vanished(upstream)
    )?;
    let health = upstream.health.as_ref();
    writeln!(
        out,
        "  health    {}",
        health.map_or("not asked".to_owned(), check)
    )?;
    writeln!(out, "  eject     {}", eject(&upstream.eject))?;
    match upstream.slow_start {
        Some(time) => writeln!(
            out,
            "  returns   with a growing share over {}",
            duration_text(time)
        )?,
        None => writeln!(out, "  returns   at once")?,
    }
    match &upstream.ahead {
        Some(ahead) => writeln!(
            out,
            "  ahead     {} to {} connections per worker, none older than {}",
            ahead.min,
            ahead.max,
            duration_text(ahead.max_age)
        )?,
        None => writeln!(out, "  ahead     off")?,
    }
    match upstream.proxy_protocol {
        SendProxy::Off => writeln!(out, "  header    none: the first byte is the client's")?,
        SendProxy::V1 => writeln!(out, "  header    PROXY v1: addresses alone")?,
        SendProxy::V2 => writeln!(
            out,
            "  header    PROXY v2, with the client's TLVs and this relay's id, {}",
            config.relay_id
        )?,
    }
    describe_socket(out, &upstream.socket)
}

/// A line each, those of the first group first; says how many groups there are.
fn targets(out: &mut String, upstream: &Upstream) -> Result<usize, fmt::Error> {
    let mut targets: Vec<_> = upstream.targets.iter().collect();
    targets.sort_by_key(|target| target.priority);
    let mut groups: Vec<u32> = targets.iter().map(|target| target.priority).collect();
    groups.dedup();
    for target in targets {
        let label = match groups.len() {
            1 => "target".to_owned(),
            _ => format!("group {}", target.priority),
        };
        let weight = match target.weight {
            1 => String::new(),
            weight => format!(", weight {weight}"),
        };
        writeln!(out, "  {label:<9} {target}{weight}")?;
    }
    Ok(groups.len())
}

fn failover(failover: &Failover) -> String {
    let stay = failover.max_age.map_or("stay there".to_owned(), |age| {
        format!("then last at most {}", duration_text(age))
    });
    format!(
        "below {}% usable the next group serves; back from {}% on, once that has held for {}; sessions elsewhere {stay}",
        failover.below,
        failover.back_above,
        duration_text(failover.back_after)
    )
}

fn vanished(upstream: &Upstream) -> String {
    let spread = Some(upstream.vanish_spread)
        .filter(|spread| !spread.is_zero())
        .map(duration_text);
    match (upstream.on_vanish, spread) {
        (OnVanish::Keep, _) => "go on".to_owned(),
        (OnVanish::Drain, spread) => {
            let end = spread.map_or("at its end".to_owned(), |spread| {
                format!("over the last {spread} of it")
            });
            let deadline = duration_text(upstream.vanish_deadline);
            format!("may go on for {deadline}, and are closed {end}")
        }
        (OnVanish::Close, Some(spread)) => format!("are closed over {spread}"),
        (OnVanish::Close, None) => "are closed at once".to_owned(),
    }
}

fn check(health: &HealthCheck) -> String {
    let port = health
        .port
        .map_or(String::new(), |port| format!(", at port {port}"));
    let what = match &health.check {
        Check::Tcp => format!("a connection{port}"),
        Check::Exchange { send, expect } => {
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            let sent = match send.is_empty() {
                true => "a connection".to_owned(),
                false => format!("{:?}", text(send)),
            };
            format!(
                "{sent} answered by something with {:?} in it{port}",
                text(expect)
            )
        }
        Check::Http { path, host, status } => {
            let host = host
                .as_ref()
                .map_or(String::new(), |host| format!(", Host {host}"));
            let (low, high) = status;
            format!("GET {path}{host}{port}, answered by {low} to {high}")
        }
    };
    format!(
        "{what}; every {}, at most {}; usable after {} good answers in a row, not after {} bad ones",
        duration_text(health.interval),
        duration_text(health.timeout),
        health.rise,
        health.fall
    )
}

fn eject(eject: &Eject) -> String {
    let believed = match eject.panic_below {
        0 => "not believed where nothing is usable".to_owned(),
        percent => format!("not believed where less than {percent}% is usable, or nothing"),
    };
    match eject.after {
        None => format!("never; bad health {believed}"),
        Some(after) => format!(
            "after {after} failures in a row for {}, doubled each time up to {}; {believed}",
            duration_text(eject.pause),
            duration_text(eject.longest)
        ),
    }
}
