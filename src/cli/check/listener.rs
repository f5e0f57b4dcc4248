//! What a listener does, in a paragraph.

use std::fmt::{self, Write as _};
use std::time::Duration;

use super::{describe_socket, join, peers};
use crate::config::{
    Config, CrcPolicy, Listener, ProxyProtocol, Route, SessionLimits, duration_text, size_text,
};

pub(super) fn describe(out: &mut String, config: &Config, listener: &Listener) -> fmt::Result {
    let name = |upstream: usize| &*config.upstreams[upstream].name;
    let to = match (listener.routes.len(), listener.upstream) {
        (0, Some(upstream)) => name(upstream).to_owned(),
        (1, _) => "by 1 route".to_owned(),
        (count, _) => format!("by {count} routes"),
    };
    writeln!(
        out,
        "listener {}: {} → {to}",
        listener.name,
        join(&listener.bind)
    )?;
    for (index, route) in listener.routes.iter().enumerate() {
        let label = format!("route {}", index + 1);
        writeln!(
            out,
            "  {label:<9} {} → {}",
            conditions(route),
            name(route.upstream)
        )?;
    }
    if !listener.routes.is_empty() {
        let upstream = listener.upstream.map_or("refused", name);
        writeln!(out, "  else      {upstream}")?;
    }
    let looks = |route: &Route| route.sni.is_some() || route.host.is_some();
    if listener.routes.iter().any(looks) {
        writeln!(
            out,
            "  look      for a name in the first {} a client sends, for at most {}",
            size_text(listener.peek_size as u64),
            duration_text(listener.peek_timeout)
        )?;
    }
    writeln!(out, "  peers     {}", peers(&listener.trusted_peers))?;
    match listener.proxy_protocol {
        ProxyProtocol::V2 => writeln!(
            out,
            "  header    PROXY v2, at most {} bytes, checksum {}; first byte within {}, the rest within {}",
            listener.max_header,
            match listener.crc {
                CrcPolicy::Verify => "verified",
                CrcPolicy::Ignore => "ignored",
            },
            duration_text(listener.first_byte_timeout),
            duration_text(listener.header_timeout),
        )?,
        ProxyProtocol::Off => writeln!(out, "  header    none: the first byte is payload")?,
    }
    writeln!(
        out,
        "  limits    {} sessions, {} without a whole header{}",
        listener.max_sessions,
        listener.max_pending,
        super::policy::of_listener(listener)
    )?;
    let (limits, clients) = (
        config.listener_limits(listener),
        config.client_leg(listener),
    );
    writeln!(out, "  session   {}", session(&limits))?;
    if guards(&clients) != guards(&limits) {
        writeln!(out, "  clients   {}", guards(&clients))?;
    }
    describe_socket(out, &listener.socket)
}

fn conditions(route: &Route) -> String {
    let network = route.network.map(|network| network.to_string());
    let conditions = [
        ("endpoint", route.endpoint.as_deref()),
        ("network", network.as_deref()),
        ("sni", route.sni.as_deref()),
        ("host", route.host.as_deref()),
    ];
    let written = conditions
        .iter()
        .filter_map(|(key, value)| Some(format!("{key} {}", (*value)?)));
    written.collect::<Vec<_>>().join(", ")
}

fn session(limits: &SessionLimits) -> String {
    format!(
        "idle {}, half-close {}, age {}, {}",
        bound(limits.idle_timeout),
        bound(limits.half_close_timeout),
        bound(limits.max_age),
        guards(limits),
    )
}

/// What a socket is told.
fn guards(limits: &SessionLimits) -> String {
    let keepalive = limits.keepalive.map_or("off".to_owned(), |keepalive| {
        format!(
            "{} then {} × {}",
            duration_text(keepalive.idle),
            keepalive.probes,
            duration_text(keepalive.interval)
        )
    });
    format!(
        "keepalive {keepalive}, user timeout {}",
        bound(limits.user_timeout)
    )
}

fn bound(bound: Option<Duration>) -> String {
    bound.map_or("off".to_owned(), duration_text)
}
