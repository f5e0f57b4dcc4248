//! Who may come in, how often and how fast, a line for each that says so.

use std::fmt::{self, Write as _};
use std::time::Duration;

use crate::config::{
    Bound, Cap, Config, EndpointEntry, Limits, Listener, OnDeny, OnLimit, Patience, PolicyKeys,
    SessionRate, Wish, duration_text, size_text,
};

/// Entries that are told one by one: a table of thousands is read in the file.
const TOLD: usize = 20;

pub(super) fn describe(out: &mut String, config: &Config) -> fmt::Result {
    if let Some(limits) = of_relay(&config.limits) {
        writeln!(out, "limits    {limits}")?;
    }
    let entries = &config.endpoints.entries;
    let about_policy = |entry: &&EndpointEntry| !entry.policy.is_empty();
    for entry in entries.iter().filter(about_policy).take(TOLD) {
        let said = of_endpoint(&entry.policy).join("; ");
        writeln!(out, "endpoint  {}: {said}", entry.pattern)?;
    }
    let more = entries.iter().filter(about_policy).skip(TOLD).count();
    if more > 0 {
        writeln!(out, "endpoint  … and {more} more")?;
    }
    let says = |deny| move |entry: &EndpointEntry| entry.policy.deny == Some(deny);
    let all = |entry: &EndpointEntry| entry.pattern.bytes().all(|byte| byte == b'*');
    let denied = entries.iter().filter(|entry| all(entry)).any(says(true));
    if denied && !entries.iter().any(says(false)) {
        writeln!(
            out,
            "note      every endpoint is denied: no entry says deny = false"
        )?;
    }
    Ok(())
}

fn of_relay(limits: &Limits) -> Option<String> {
    let most = limits
        .max_sessions
        .map(|most| format!("at most {most} sessions"));
    let rate = limits.rate.map(rate);
    let said: Vec<String> = most.into_iter().chain(rate).collect();
    if said.is_empty() {
        return None;
    }
    Some(said.join("; ") + &beyond(limits.on_limit))
}

/// What a listener's line of limits goes on with.
pub(super) fn of_listener(listener: &Listener) -> String {
    let rate = listener.rate.map(rate);
    let rate = rate.map_or(String::new(), |rate| format!("; {rate}"));
    rate + &match listener.on_limit {
        OnLimit::Refuse => String::new(),
        wait @ OnLimit::Wait(_) => beyond(wait),
    }
}

fn rate(rate: SessionRate) -> String {
    format!(
        "{} new ones a second, {} at once",
        rate.per_second, rate.burst
    )
}

fn beyond(on_limit: OnLimit) -> String {
    match on_limit {
        OnLimit::Refuse => "; who is beyond is reset".to_owned(),
        OnLimit::Wait(Patience { longest, most }) => format!(
            "; who is beyond waits for {} at most, {most} at a time",
            duration_text(longest)
        ),
    }
}

/// Key by key, only what the entry itself says.
fn of_endpoint(policy: &PolicyKeys) -> Vec<String> {
    let deny = policy.deny.map(|deny| match deny {
        true => "denied".to_owned(),
        false => "let in".to_owned(),
    });
    let on_deny = policy.on_deny.map(|on_deny| match on_deny {
        OnDeny::Keep => "sessions that are open when it is denied go on".to_owned(),
        OnDeny::Close => "sessions that are open when it is denied are closed".to_owned(),
    });
    let most = policy.max_sessions.map(|cap| match cap {
        Cap::Off => "any number of sessions".to_owned(),
        Cap::At(most) => format!("at most {most} sessions"),
    });
    let rate = policy.sessions_per_second.map(|cap| match cap {
        Cap::Off => "new ones as fast as they come".to_owned(),
        Cap::At(rate) => format!("{rate} new ones a second"),
    });
    let burst = policy
        .sessions_burst
        .map(|burst| format!("{burst} at once"));
    let bytes = ["to the upstream", "to the client"].into_iter();
    let bytes = bytes.zip(policy.bytes_per_second).filter_map(|(way, cap)| {
        Some(match cap? {
            Cap::Off => format!("as fast as it goes {way}"),
            Cap::At(rate) => format!("{} a second {way}", size_text(rate.get())),
        })
    });
    let time = |what: &str, bound: Bound| match bound {
        Bound::Off => format!("{what} off"),
        Bound::After(time) => format!("{what} {}", duration_text(time)),
    };
    let idle = policy.idle_timeout.map(|bound| time("idle", bound));
    let age = policy.max_age.map(|bound| time("age", bound));
    let on_limit = policy.on_limit.map(|wish| match wish {
        Wish::Refuse => "who is beyond is reset".to_owned(),
        Wish::Wait => "who is beyond waits".to_owned(),
    });
    let wait_for = |time: Duration| format!("for {} at most", duration_text(time));
    let wait_for = policy.wait_for.map(wait_for);
    let waiting = policy
        .max_waiting
        .map(|most| format!("{most} wait at a time"));
    [deny, on_deny, most, rate, burst]
        .into_iter()
        .flatten()
        .chain(bytes)
        .chain(
            [idle, age, on_limit, wait_for, waiting]
                .into_iter()
                .flatten(),
        )
        .collect()
}
