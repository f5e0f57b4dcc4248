//! `check`: says what a configuration file means, without running it.

use std::fmt::{self, Display, Write as _};
use std::io::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use super::{CONFIG_PATH, Error, ExitCode};
use crate::config::{
    Config, CrcPolicy, Host, Listener, Peers, ProxyProtocol, Relay, RelayMode, SessionLimits,
    Target, Upstream, duration_text, size_text,
};

/// Check a configuration file and say what it means; nothing is opened or resolved.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Configuration file
    #[arg(long, value_name = "FILE", default_value = CONFIG_PATH)]
    config: PathBuf,
}

/// Prints what the file means.
pub(super) fn check(arguments: &Args) -> Result<ExitCode, Error> {
    let config = Config::from_file(&arguments.config).map_err(Error::Config)?;
    let summary = summary(&config).map_err(|_| Error::Output(std::io::ErrorKind::Other.into()))?;
    writeln!(
        std::io::stdout(),
        "{} is valid\n\n{summary}",
        arguments.config.display()
    )
    .map_err(Error::Output)?;
    Ok(ExitCode::Ok)
}

/// What the configuration means, a paragraph per listener and upstream.
fn summary(config: &Config) -> Result<String, fmt::Error> {
    let mut out = String::new();
    let address = |address: Option<&std::net::SocketAddr>| {
        address.map_or("off".to_owned(), ToString::to_string)
    };
    writeln!(out, "workers   {}", config.workers)?;
    writeln!(out, "admin     {}", address(config.admin.as_ref()))?;
    match &config.health {
        Some(health) => writeln!(
            out,
            "health    {}, asked by {}",
            health.bind,
            peers(&health.trusted_peers)
        )?,
        None => writeln!(out, "health    off")?,
    }
    let drain = &config.drain;
    writeln!(
        out,
        "drain     accept for {}, then at most {}",
        duration_text(drain.accept_for),
        duration_text(drain.deadline)
    )?;
    writeln!(
        out,
        "accounts  at most {}, {} endpoints in metrics",
        config.max_accounts, config.max_metric_endpoints
    )?;
    writeln!(out, "relay     {}", describe_relay(&config.relay))?;
    for listener in &config.listeners {
        writeln!(out)?;
        describe_listener(&mut out, config, listener)?;
    }
    for (index, upstream) in config.upstreams.iter().enumerate() {
        writeln!(out)?;
        describe_upstream(&mut out, upstream)?;
        if config
            .listeners
            .iter()
            .all(|listener| !listener.reachable().contains(&index))
        {
            writeln!(out, "  note      no listener forwards to it")?;
        }
    }
    out.truncate(out.trim_end().len());
    Ok(out)
}

fn describe_relay(relay: &Relay) -> String {
    let mode = match relay.mode {
        RelayMode::Adaptive => "copies, and splices what is bulk",
        RelayMode::Copy => "copies (for diagnosis)",
        RelayMode::Splice => "splices (for diagnosis)",
    };
    let mut text = mode.to_owned();
    if let Some(spin) = relay.spin {
        text += &format!("; looks for work for {spin:?} before it sleeps");
    }
    if relay.pin {
        text += "; each worker on a core of its own";
    }
    if let Some(size) = relay.stalled_receive_buffer {
        text += &format!(
            "; holds {} for a receiver that stalls",
            size_text(size as u64)
        );
    }
    text
}

fn describe_listener(out: &mut String, config: &Config, listener: &Listener) -> fmt::Result {
    let upstream = listener.upstream.map_or("by its routes alone", |upstream| {
        &config.upstreams[upstream].name
    });
    writeln!(
        out,
        "listener {}: {} → {upstream}",
        listener.name,
        join(&listener.bind),
    )?;
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
        "  limits    {} sessions, {} without a whole header",
        listener.max_sessions, listener.max_pending
    )?;
    writeln!(
        out,
        "  session   {}",
        session(&config.listener_limits(listener))
    )
}

fn describe_upstream(out: &mut String, upstream: &Upstream) -> fmt::Result {
    writeln!(out, "upstream {}", upstream.name)?;
    for target in &upstream.targets {
        writeln!(out, "  target    {}", target_text(target))?;
    }
    let (try_for, deadline) = (upstream.connect_timeout, upstream.connect_deadline);
    writeln!(
        out,
        "  connect   {} per try, {} in all",
        duration_text(try_for),
        duration_text(deadline)
    )?;
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
    Ok(())
}

fn session(limits: &SessionLimits) -> String {
    let bound = |bound: Option<Duration>| bound.map_or("off".to_owned(), duration_text);
    let keepalive = limits.keepalive.map_or("off".to_owned(), |keepalive| {
        format!(
            "{} then {} × {}",
            duration_text(keepalive.idle),
            keepalive.probes,
            duration_text(keepalive.interval)
        )
    });
    format!(
        "idle {}, half-close {}, age {}, keepalive {keepalive}, user timeout {}",
        bound(limits.idle_timeout),
        bound(limits.half_close_timeout),
        bound(limits.max_age),
        bound(limits.user_timeout),
    )
}

fn peers(peers: &Peers) -> String {
    match peers {
        Peers::Anyone => "anyone".to_owned(),
        Peers::Within(networks) => join(networks),
    }
}

fn target_text(target: &Target) -> String {
    match &target.host {
        Host::Name(name) => format!("{name}:{}", target.port),
        Host::Literal(ip) => std::net::SocketAddr::new(*ip, target.port).to_string(),
    }
}

fn join<T: Display>(items: &[T]) -> String {
    items
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_tells_what_is_in_force() {
        let text = r#"
[session]
idle_timeout = "10m"
[[listener]]
name = "ingest"
bind = "0.0.0.0:8443"
trusted_peers = ["10.20.0.0/16"]
upstream = "control-plane"
session = { max_age = "12h" }
[[upstream]]
name = "control-plane"
targets = ["[fd00::5]:443"]
session = { keepalive_idle = "off" }
[[upstream]]
name = "spare"
targets = ["spare.example:443"]
"#;
        let config = Config::from_str(text, "test.toml").expect("valid");
        let said = summary(&config).expect("a String takes everything");
        for expected in [
            "listener ingest: 0.0.0.0:8443 → control-plane",
            "peers     10.20.0.0/16",
            "idle 10m, half-close 1m, age 12h, keepalive off, user timeout 5m",
            "target    [fd00::5]:443",
            "no listener forwards to it",
        ] {
            assert!(said.contains(expected), "{expected}\n---\n{said}");
        }
    }
}
