//! The relay that runs with a configuration: what it says of itself, and what its balancer sees of it.

use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::Duration;

use serde::Deserialize;

use super::super::client::Client;
use super::super::places::Places;
use super::probe::Line;
use crate::config::{Config, HealthPort};

/// Longest wait for what a balancer waits for, too.
const PATIENCE: Duration = Duration::from_secs(5);

/// Most of an answer that is read.
const ANSWER: u64 = 4096;

/// A relay, as far as it can be seen.
#[derive(Debug)]
pub(super) struct Running {
    process: i32,
    /// What `/readyz` says: that there should be traffic, or why not.
    ready: Result<String, String>,
    status: Option<Status>,
}

#[derive(Debug, Deserialize)]
struct Status {
    listeners: Vec<Listener>,
    config: Option<InForce>,
}

#[derive(Debug, Deserialize)]
struct Listener {
    addresses: Vec<SocketAddr>,
}

#[derive(Debug, Deserialize)]
struct InForce {
    #[serde(default)]
    restart: Vec<String>,
    last_error: Option<Failed>,
}

#[derive(Debug, Deserialize)]
struct Failed {
    why: String,
}

impl Running {
    /// The one at these places, if there is one.
    pub(super) fn found(places: &Places) -> Option<Self> {
        let client = Client::new(places.socket.as_deref()?);
        let process = client.process()?.as_raw_nonzero().get();
        Some(Self {
            process,
            ready: client.text("/readyz"),
            status: client.json("GET", "/status").ok().and_then(Result::ok),
        })
    }

    /// Whether it listens there for connections.
    pub(super) fn has(&self, address: SocketAddr) -> bool {
        let listeners = self.status.iter().flat_map(|status| &status.listeners);
        let mut addresses = listeners.flat_map(|listener| &listener.addresses);
        addresses.any(|own| *own == address)
    }

    /// The descriptors that it may open; `None` where that cannot be seen.
    pub(super) fn open_files(&self) -> Option<u64> {
        let limits = fs::read_to_string(format!("/proc/{}/limits", self.process)).ok()?;
        let line = limits
            .lines()
            .find(|line| line.starts_with("Max open files"))?;
        line.split_whitespace().nth(3)?.parse().ok()
    }

    /// Its effective capabilities; `None` where they cannot be seen.
    pub(super) fn capabilities(&self) -> Option<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process)).ok()?;
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("CapEff:"))?;
        u64::from_str_radix(line.trim(), 16).ok()
    }

    pub(super) fn lines(&self, config: &Config) -> Vec<Line> {
        let process = self.process;
        let mut lines = vec![match &self.ready {
            Ok(why) => Ok(format!("relay: process {process} asks for traffic: {why}")),
            Err(why) => Err(format!(
                "relay: process {process} asks for no traffic, and its balancer sends none: /readyz says {why:?}"
            )),
        }];
        if let Some(health) = &config.health {
            lines.extend(self.health(health));
        }
        let in_force = self
            .status
            .as_ref()
            .and_then(|status| status.config.as_ref());
        if let Some(InForce {
            restart,
            last_error,
        }) = in_force
        {
            if let Some(Failed { why }) = last_error {
                let why = why.lines().next().unwrap_or_default();
                let what = "relay: the last reload failed, what was in force before still is";
                lines.push(Err(format!(
                    "{what}: {why}: correct the file, then tollgate reload"
                )));
            }
            if !restart.is_empty() {
                let keys = restart.join(", ");
                lines.push(Err(format!(
                    "relay: {keys} wait for a restart: systemctl restart tollgate, when its sessions may go"
                )));
            }
        }
        lines
    }

    /// The port that the balancer asks at, asked from here; nothing where it answers as it should.
    fn health(&self, health: &HealthPort) -> Option<Line> {
        let here = match health.bind.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
            IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
            ip => ip,
        };
        let address = SocketAddr::new(here, health.bind.port());
        let wrong = |why: String| {
            Some(Err(format!(
                "health: {address}: {why}: its balancer takes this target for unhealthy; did the relay start with this file? (tollgate config diff)"
            )))
        };
        let mut stream = match TcpStream::connect_timeout(&address, PATIENCE) {
            Ok(stream) => stream,
            Err(error) => return wrong(error.to_string()),
        };
        // Who asks from an address of this machine comes from that address.
        if !health.trusted_peers.contains(here) {
            return None;
        }
        match ask(&mut stream) {
            Ok(status) if status == 200 || self.ready.is_err() => None,
            Ok(status) => wrong(format!("/readyz answers {status}")),
            Err(error) => wrong(format!("/readyz does not answer: {error}")),
        }
    }
}

/// The status of `/readyz`.
fn ask(stream: &mut TcpStream) -> std::io::Result<u16> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: tollgate\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.take(ANSWER).read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer);
    let status = answer
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok());
    status.ok_or_else(|| std::io::Error::other("what it says is no HTTP"))
}
