//! `check`: says what a configuration file means, without running it.

mod books;
mod listener;
mod machine;
mod policy;
mod probe;
mod running;
mod upstream;

use std::fmt::{self, Display, Write as _};
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::{CONFIG_PATH, Error, ExitCode, places};
use crate::config::{
    Config, Family, Peers, Relay, RelayMode, Resolver, SocketOptions, duration_text, size_text,
};
use crate::leg;

/// Check a configuration file and say what it means
///
/// Nothing is listened on, resolved or connected to, but with --probe. What this user may is not always what the service may: as root, sudo -u tollgate tollgate
/// check --probe looks with its eyes.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Configuration file
    #[arg(long, value_name = "FILE", default_value = CONFIG_PATH)]
    config: PathBuf,
    /// Try everything that a relay needs: ports, directories and files, what the machine allows, a relay that runs already and what its balancer sees of it;
    /// then resolve each target, connect to each of its addresses and ask it as `health` says. One line for each finding and each address, exit code 1 when
    /// something is wrong
    #[arg(long)]
    probe: bool,
}

/// Prints what the file means, or whether everything is there that it takes.
pub(super) fn check(arguments: &Args) -> Result<ExitCode, Error> {
    let config = Config::from_file(&arguments.config).map_err(Error::Config)?;
    if arguments.probe {
        let places = places::Args::of(&arguments.config).find()?;
        return probe::run(config, &places);
    }
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
    let address =
        |address: Option<&SocketAddr>| address.map_or("off".to_owned(), ToString::to_string);
    writeln!(out, "workers   {}", config.workers)?;
    writeln!(out, "relay id  {}", config.relay_id)?;
    let socket = config.admin_socket.as_ref();
    let socket = socket.map_or("no socket".to_owned(), |path| path.display().to_string());
    let admin = address(config.admin.as_ref());
    writeln!(out, "admin     {admin}, {socket}")?;
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
        "drain     accept for {}, then at most {}, {}",
        duration_text(drain.accept_for),
        duration_text(drain.deadline),
        match drain.spread {
            Duration::ZERO => "all closed at its end".to_owned(),
            spread => format!("closing over the last {} of it", duration_text(spread)),
        }
    )?;
    books::describe(&mut out, config)?;
    policy::describe(&mut out, config)?;
    writeln!(out, "relay     {}", describe_relay(&config.relay))?;
    writeln!(out, "resolver  {}", describe_resolver(&config.resolver))?;
    for listener in &config.listeners {
        writeln!(out)?;
        listener::describe(&mut out, config, listener)?;
    }
    for (index, upstream) in config.upstreams.iter().enumerate() {
        writeln!(out)?;
        upstream::describe(&mut out, config, upstream)?;
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

fn describe_resolver(resolver: &Resolver) -> String {
    let mut text = if resolver.servers.is_empty() {
        "servers and search domains of /etc/resolv.conf".to_owned()
    } else {
        join(&resolver.servers)
    };
    if !resolver.search.is_empty() {
        text += &format!(", searching {}", join(&resolver.search));
    }
    text += match resolver.family {
        Family::Any => "; IPv4 and IPv6",
        Family::Ipv4 => "; IPv4 alone",
        Family::Ipv6 => "; IPv6 alone",
        Family::Ipv4First => "; IPv4, then IPv6",
        Family::Ipv6First => "; IPv6, then IPv4",
    };
    text + &format!("; at most {} queries a second", resolver.queries_per_second)
}

/// The options of one leg's sockets, and a line for each of them that this machine does not give.
fn describe_socket(out: &mut String, options: &SocketOptions) -> fmt::Result {
    if *options == SocketOptions::default() {
        return writeln!(out, "  socket    as the kernel makes them");
    }
    let buffer = |size: Option<usize>| {
        size.map_or("as large as the kernel finds right".to_owned(), |size| {
            size_text(size as u64)
        })
    };
    let mut said = Vec::new();
    if options.wan {
        said.push("preset wan".to_owned());
    }
    if let Some(name) = &options.congestion {
        said.push(format!("congestion control {name}"));
    }
    said.push(match (options.send_buffer, options.receive_buffer) {
        (None, None) => format!("buffers {}", buffer(None)),
        (send, receive) => format!(
            "send buffer {}, receive buffer {}",
            buffer(send),
            buffer(receive)
        ),
    });
    if let Some(size) = options.notsent_lowat {
        said.push(format!("at most {} unsent", size_text(size as u64)));
    }
    if let Some(source) = options.source {
        said.push(format!("from {source}"));
    }
    writeln!(out, "  socket    {}", said.join("; "))?;
    for finding in leg::findings(options) {
        writeln!(out, "  note      {finding}")?;
    }
    Ok(())
}

fn peers(peers: &Peers) -> String {
    match peers {
        Peers::Anyone => "anyone".to_owned(),
        Peers::Within(networks) => join(networks),
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

    #[track_caller]
    fn tells(text: &str, expected: &[&str]) {
        let config = Config::from_str(text, "test.toml").unwrap_or_else(|error| panic!("{error}"));
        let said = summary(&config).expect("a String takes everything");
        for expected in expected {
            assert!(said.contains(expected), "{expected}\n---\n{said}");
        }
    }

    #[test]
    fn the_summary_tells_what_is_in_force() {
        let text = r#"
relay_id = "eu-1"
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
        tells(
            text,
            &[
                "relay id  eu-1",
                "resolver  servers and search domains of /etc/resolv.conf; IPv4 and IPv6; at most 200 queries a second",
                "listener ingest: 0.0.0.0:8443 → control-plane",
                "peers     10.20.0.0/16",
                "idle 10m, half-close 1m, age 12h, keepalive off, user timeout 5m",
                "  clients   keepalive 1m then 4 × 15s, user timeout 5m",
                "  socket    as the kernel makes them",
                "target    [fd00::5]:443",
                "balance   of two at random, the one with fewer sessions for its weight",
                "connect   5s per try, 15s in all; the next address is tried after 250ms; at most 50 tries more for 100 sessions",
                "vanished  sessions on an address that leaves go on",
                "health    not asked",
                "eject     after 3 failures in a row for 10s, doubled each time up to 5m; not believed where less than 30% is usable, or nothing",
                "returns   with a growing share over 10s",
                "header    none: the first byte is the client's",
                "ahead     off",
                "no listener forwards to it",
            ],
        );
    }

    const REST: &str = r#"
[[listener]]
name = "ingest"
bind = "0.0.0.0:8443"
trusted_peers = ["10.20.0.0/16"]
upstream = "cp"
[[upstream]]
name = "cp"
targets = ["cp.example:443"]
"#;

    #[test]
    fn the_summary_tells_where_the_books_are() {
        let text = r#"
state_dir = "/srv/books"
"#;
        tells(
            &format!("{text}{REST}"),
            &[
                "admin     127.0.0.1:9900, /srv/books/run/admin.sock\n",
                "books     in /srv/books, counters in /srv/books/run\n",
                "ledger    booked every 10s, kept for 400d\n",
                "audit     standard output; sessions at open, close and every 5m; dropped and counted where the sink is slow\n",
                "accounts  at most 50000, in memory for 1h without a session; 1000 endpoints in metrics\n",
            ],
        );
    }

    #[test]
    fn the_summary_tells_how_the_books_were_chosen_to_be() {
        let text = r#"
state_dir = "/srv/books"
run_dir = "/run/books"
[admin]
bind = "off"
socket = "off"
[ledger]
interval = "1s"
keep = "30d"
unready_after = "10m"
[audit]
sink = "/var/log/audit.jsonl"
interval = "off"
on_full = "block"
key_file = "/etc/audit.key"
[accounts]
max = 7
idle_after = "2d"
[endpoint."vpce-1"]
name = "one"
[endpoint."vpce-*"]
account = "all"
[[consumer]]
name = "billing"
networks = ["10.1.0.0/16", "10.2.0.0/24"]
[[consumer]]
name = "batch"
endpoints = ["vpce-1", "vpce-2*"]
networks = ["10.3.0.0/16"]
"#;
        tells(
            &format!("{text}{REST}"),
            &[
                "admin     off, no socket\n",
                "books     in /srv/books, counters in /run/books\n",
                "ledger    booked every 1s, kept for 30d; not ready once that has failed for 10m\n",
                "audit     /var/log/audit.jsonl, a new file after 256MiB or 1d; sessions at open and close; no new session where the sink is slow; chained with the key in /etc/audit.key\n",
                "accounts  at most 7, in memory for 2d without a session; 1000 endpoints in metrics\n",
                "endpoints 1 known by their id, 1 by a pattern\n",
                "consumer  batch: 10.3.0.0/16 through vpce-1, vpce-2*\n",
                "consumer  billing: 10.2.0.0/24, 10.1.0.0/16 through any endpoint\n",
            ],
        );
    }

    #[test]
    fn the_summary_tells_who_may_come_in() {
        let policies = r#"
[endpoint."*"]
deny = true
max_sessions = 10
sessions_per_second = 5
on_limit = "wait"
[endpoint."vpce-1"]
on_deny = "close"
max_sessions = "off"
sessions_burst = 9
bytes_per_second_to_upstream = "10MiB"
bytes_per_second_to_client = "off"
idle_timeout = "off"
max_age = "12h"
wait_for = "500ms"
max_waiting = 7
[limits]
max_sessions = 5000
sessions_per_second = 300
on_limit = "wait"
[[listener]]
name = "second"
bind = "0.0.0.0:8444"
trusted_peers = ["10.20.0.0/16"]
upstream = "cp"
sessions_per_second = 20
on_limit = "wait"
"#;
        tells(
            &format!("{policies}{REST}"),
            &[
                "limits    at most 5000 sessions; 300 new ones a second, 300 at once; who is beyond waits for 2s at most, 1024 at a time\n",
                "endpoint  vpce-1: sessions that are open when it is denied are closed; any number of sessions; 9 at once; 10MiB a second to the upstream; as fast as it goes to the client; idle off; age 12h; for 500ms at most; 7 wait at a time\n",
                "endpoint  *: denied; at most 10 sessions; 5 new ones a second; who is beyond waits\nnote      every endpoint is denied: no entry says deny = false\n",
                "  limits    100000 sessions, 4096 without a whole header; 20 new ones a second, 20 at once; who is beyond waits for 2s at most, 64 at a time\n",
                "  limits    100000 sessions, 4096 without a whole header\n",
            ],
        );
    }

    #[test]
    fn of_very_many_policies_some_are_told() {
        let entry = |n| format!("[endpoint.\"vpce-{n:02}\"]\nmax_sessions = {n}\n");
        let entries: String = (1..=23).map(entry).collect();
        tells(
            &format!("{entries}{REST}"),
            &["endpoint  vpce-20: at most 20 sessions\nendpoint  … and 3 more\n"],
        );
    }

    #[test]
    fn the_summary_tells_routes_groups_and_everything_chosen() {
        let text = r#"
relay_id = "eu-1"
[resolver]
servers = ["10.0.0.2"]
search = ["example.internal"]
family = "ipv6_first"
[[listener]]
name = "ingest"
bind = "0.0.0.0:8443"
trusted_peers = ["10.20.0.0/16"]
routes = [
  { endpoint = "vpce-0a*", network = "10.1.0.0/16", upstream = "logs" },
  { sni = "*.cp.example", upstream = "cp" },
]
socket = { send_buffer = "4MiB" }
[[listener]]
name = "second"
bind = "0.0.0.0:8444"
trusted_peers = ["10.20.0.0/16"]
upstream = "cp"
routes = [{ network = "10.1.0.0/16", upstream = "logs" }]
[[upstream]]
name = "cp"
targets = [{ target = "far.example:443", priority = 1 }, "cp.example:443", { target = "10.0.0.1:443", weight = 3 }]
balance = "rendezvous"
on_vanish = "drain"
failover = { max_age = "1h" }
eject = { after = "off", panic_below = 0 }
slow_start = "off"
health = { check = "http", path = "/healthz", host = "x", port = 8080 }
ahead = { max_age = "5s" }
proxy_protocol = "v2"
socket = { notsent_lowat = "1MiB", source = "127.0.0.9" }
[[upstream]]
name = "logs"
targets = ["logs.example:443"]
on_vanish = "close"
vanish_spread = "0s"
health = { check = "exchange", send = "PING\r\n", expect = "PONG" }
proxy_protocol = "v1"
"#;
        tells(
            text,
            &[
                "resolver  10.0.0.2:53, searching example.internal; IPv6, then IPv4; at most 200",
                "listener ingest: 0.0.0.0:8443 → by 2 routes\n",
                "  route 1   endpoint vpce-0a*, network 10.1.0.0/16 → logs\n  route 2   sni *.cp.example → cp\n  else      refused",
                "  look      for a name in the first 32KiB a client sends, for at most 5s",
                "  socket    send buffer 4MiB, receive buffer as large as the kernel finds right",
                "listener second: 0.0.0.0:8444 → by 1 route\n",
                "  route 1   network 10.1.0.0/16 → logs\n  else      cp",
                "  group 0   cp.example:443\n  group 0   10.0.0.1:443, weight 3\n  group 1   far.example:443",
                "balance   by the endpoint id: a consumer stays on one address",
                "failover  below 50% usable the next group serves; back from 80% on, once that has held for 30s; sessions elsewhere then last at most 1h",
                "vanished  sessions on an address that leaves may go on for 5m, and are closed over the last 30s of it",
                "health    GET /healthz, Host x, at port 8080, answered by 200 to 399; every 10s, at most 4s; usable after 2 good answers in a row, not after 3 bad ones",
                "eject     never; bad health not believed where nothing is usable",
                "returns   at once",
                "ahead     1 to 32 connections per worker, none older than 5s",
                "header    PROXY v2, with the client's TLVs and this relay's id, eu-1",
                "  socket    buffers as large as the kernel finds right; at most 1MiB unsent; from 127.0.0.9",
                "vanished  sessions on an address that leaves are closed at once",
                "health    \"PING\\r\\n\" answered by something with \"PONG\" in it; every 10s",
                "header    PROXY v1: addresses alone",
            ],
        );
    }

    #[test]
    fn what_the_kernel_does_not_give_is_noted() {
        let text = r#"
[[listener]]
name = "ingest"
bind = "0.0.0.0:8443"
trusted_peers = ["10.20.0.0/16"]
upstream = "cp"
[[upstream]]
name = "cp"
targets = ["cp.example:443"]
socket = { congestion = "nonesuch" }
"#;
        tells(
            text,
            &[
                "congestion control nonesuch",
                "note      congestion control \"nonesuch\" is not in this kernel",
            ],
        );
    }
}
