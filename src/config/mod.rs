//! The configuration as the rest of the program sees it: a [`Config`] that cannot be wrong.
//!
//! `file` mirrors the TOML file, key by key, with the place of each value; `build` turns that into a [`Config`], value by
//! value through `values` and `addresses`, and is where every mistake of an operator is found and said ([`Error`]). `flags` fills the same
//! mirror from the command line. Nothing behind this module checks a setting again.

mod addresses;
mod books;
mod build;
mod changes;
pub mod defaults;
mod directories;
mod error;
mod file;
mod flags;
mod identity;
mod limits;
mod listener;
mod patterns;
mod session;
mod socket;
#[cfg(test)]
mod tests;
mod upstream;
mod values;

use std::io::Read;
use std::net::SocketAddr;
use std::num::{NonZeroU32, NonZeroUsize};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

pub use books::{
    Accounts, Audit, Consumer, Consumers, EndpointEntry, Endpoints, Ledger, Named, OnFull, Sink,
};
pub use changes::{Change, changes};
pub use directories::{ADMIN_SOCKET, Directories};
pub use error::{Error, ErrorKind, Mistake};
pub use flags::Flags;
pub use limits::{Cap, Limits, OnDeny, OnLimit, Patience, PolicyKeys, SessionRate, Wish};
pub use listener::{CrcPolicy, Listener, ProxyProtocol, Route};
pub use session::{Bound, Keepalive, SessionKeys, SessionLimits};
pub use socket::SocketOptions;
pub use upstream::{
    Ahead, Balance, Check, Eject, Failover, HealthCheck, Host, OnVanish, SendProxy, Target,
    Upstream,
};
pub use values::{age_text, duration_text, size_text};

/// Most that is read of a configuration file, in bytes: 100,000 endpoints, each with a name, a tag and limits.
const LONGEST: u64 = 16 << 20;

/// Everything one process runs with. Built from a file or from the command line of `run`; immutable afterwards.
#[derive(Debug, Clone)]
pub struct Config {
    /// Data workers, each a thread with its own share of every listener. Default: one per core.
    pub workers: NonZeroUsize,
    /// What this relay is called where several are told apart: in the headers it sends. 1 to 64 of `[A-Za-z0-9.-]`.
    pub relay_id: Arc<str>,
    /// Where `/metrics`, `/healthz`, `/readyz` and `/status` are served; `None` when `bind = "off"`.
    pub admin: Option<SocketAddr>,
    /// The port for the NLB's health checks, when there is one.
    pub health: Option<HealthPort>,
    /// Upstreams without whose usable addresses this target asks for no traffic: indices into [`Config::upstreams`].
    pub fail_without: Vec<usize>,
    /// What happens between SIGTERM and the end of the process.
    pub drain: Drain,
    /// Form and level of the log.
    pub log: Log,
    /// `[session]`: what listeners and upstreams start from.
    pub session: SessionKeys,
    /// How bytes are moved.
    pub relay: Relay,
    /// Where names are resolved.
    pub resolver: Resolver,
    /// SHA-256 of the text it was built from, in hexadecimal: what the audit trail knows it by.
    pub digest: Arc<str>,
    /// Where the ledger is kept; `None`: the books live in memory, for as long as the process.
    pub state_dir: Option<PathBuf>,
    /// Where the counters and the admin socket are; `None` where there is no `state_dir` either. Belongs on tmpfs.
    pub run_dir: Option<PathBuf>,
    /// The admin socket; `None` when `socket = "off"`, or where there is no place for it.
    pub admin_socket: Option<PathBuf>,
    /// How many accounts are kept, and for how long.
    pub accounts: Accounts,
    /// How the ledger is kept.
    pub ledger: Ledger,
    /// The audit trail.
    pub audit: Audit,
    /// What endpoints are called.
    pub endpoints: Endpoints,
    /// Who is behind shared endpoints.
    pub consumers: Consumers,
    /// Most endpoints shown one by one in `/metrics`; the rest are added up under `other`.
    pub max_metric_endpoints: usize,
    /// What all endpoints and listeners together may have.
    pub limits: Limits,
    /// The addresses connections are accepted on. Never empty; names are unique.
    pub listeners: Vec<Listener>,
    /// Where they are forwarded to. Never empty; names are unique.
    pub upstreams: Vec<Upstream>,
}

impl Config {
    /// Reads and checks a configuration file.
    ///
    /// # Errors
    /// When the file cannot be read, and with every mistake found in it.
    pub fn from_file(path: &Path) -> Result<Self, Error> {
        Self::read(path).map(|(config, _)| config)
    }

    /// The same, with the text.
    ///
    /// # Errors
    /// As [`Config::from_file`].
    pub fn read(path: &Path) -> Result<(Self, String), Error> {
        let unreadable = |source| Error::Unreadable {
            path: path.to_owned(),
            source,
        };
        let file = std::fs::File::open(path).map_err(unreadable)?;
        Self::read_from(file, path)
    }

    /// Reads and checks what was opened at `path`.
    ///
    /// # Errors
    /// As [`Config::from_file`].
    pub fn read_from(file: std::fs::File, path: &Path) -> Result<(Self, String), Error> {
        let unreadable = |source| Error::Unreadable {
            path: path.to_owned(),
            source,
        };
        let mut text = String::new();
        let read = file.take(LONGEST + 1).read_to_string(&mut text);
        if read.map_err(unreadable)? as u64 > LONGEST {
            let why = "it is longer than 16 MiB, which no configuration is";
            let source = std::io::Error::new(std::io::ErrorKind::FileTooLarge, why);
            return Err(unreadable(source));
        }
        let config = Self::from_str(&text, &path.display().to_string())?;
        Ok((config, text))
    }

    /// Checks a configuration given as text; `origin` is what its mistakes are shown under, usually a path.
    ///
    /// # Errors
    /// With every mistake found in `text`.
    pub fn from_str(text: &str, origin: &str) -> Result<Self, Error> {
        file::File::parse(text)
            .and_then(|file| build::config(&file, text))
            .map_err(|mistakes| Error::Mistakes {
                origin: origin.to_owned(),
                text: text.to_owned(),
                mistakes,
            })
    }

    /// The limits that a listener's clients have before it is known where they go: its own, and those of `upstream` where there is one.
    #[must_use]
    pub fn listener_limits(&self, listener: &Listener) -> SessionLimits {
        match listener.upstream {
            Some(upstream) => self.session_limits(listener, &self.upstreams[upstream]),
            None => self.client_leg(listener),
        }
    }

    /// What the sockets of a listener's clients are guarded by, keepalive and user timeout: what the listener says, else `[session]`, else the
    /// default. What an upstream says of them is about its own leg.
    #[must_use]
    pub fn client_leg(&self, listener: &Listener) -> SessionLimits {
        SessionLimits::from_layers([&listener.session, &listener.session, &self.session])
    }

    /// The limits of a session that arrived on `listener` and goes to `upstream`: what the upstream says, else the listener,
    /// else `[session]`, else the default.
    #[must_use]
    pub fn session_limits(&self, listener: &Listener, upstream: &Upstream) -> SessionLimits {
        SessionLimits::from_layers([&upstream.session, &listener.session, &self.session])
    }
}

/// `[health]`: a port of its own for the NLB's health checks.
#[derive(Debug, Clone)]
pub struct HealthPort {
    /// Address to listen on.
    pub bind: SocketAddr,
    /// Who may ask; anyone where nothing is configured.
    pub trusted_peers: Peers,
}

/// `[drain]`: from SIGTERM to the end, or from `tollgate drain` until nothing is open.
#[derive(Debug, Clone)]
pub struct Drain {
    /// How long connections are still accepted while the health checks already fail.
    pub accept_for: Duration,
    /// How long sessions may go on after that.
    pub deadline: Duration,
    /// How long before the deadline closing begins, each session at a moment of its own. At most the deadline.
    pub spread: Duration,
    /// How a session that outlives the deadline is closed.
    pub close: CloseWith,
}

/// How a session is ended by us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CloseWith {
    /// An orderly end: both sides get a FIN.
    Fin,
    /// A reset: both sides get an RST.
    Rst,
}

/// `[log]`.
#[derive(Debug, Clone, Copy)]
pub struct Log {
    /// Text or JSON lines.
    pub format: LogFormat,
    /// The least severe level that is written.
    pub level: tracing::Level,
}

/// Form of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// Text when standard error is a terminal, JSON otherwise.
    Auto,
    /// For people.
    Text,
    /// One object per line.
    Json,
}

/// `[relay]`: how the engines of the workers move bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Relay {
    /// Which of the kernel's ways.
    pub mode: RelayMode,
    /// How long an engine that has nothing to do looks again and again before it sleeps: a core's time for a few microseconds of
    /// latency.
    pub spin: Option<Duration>,
    /// Whether each worker's threads stay on one core.
    pub pin: bool,
    /// What the kernel may hold, in bytes, of a stream whose receiver does not keep up.
    pub stalled_receive_buffer: Option<usize>,
}

/// `[relay] mode`: for diagnosis; the default is right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RelayMode {
    /// Copy, and splice a direction while it is bulk.
    Adaptive,
    /// Always copy through the worker's buffer.
    Copy,
    /// Always splice through a pipe.
    Splice,
}

/// `[resolver]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolver {
    /// Name servers to ask; those of `/etc/resolv.conf` when empty.
    pub servers: Vec<SocketAddr>,
    /// Domains that names without a dot are looked for in; those of `/etc/resolv.conf` where `servers` is empty and this is too.
    pub search: Vec<Arc<str>>,
    /// Which addresses are asked for, and which are used first.
    pub family: Family,
    /// Most queries sent in a second, over all names; retries count.
    pub queries_per_second: NonZeroU32,
}

/// Which families of addresses a name is resolved to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// A and AAAA, used alike.
    Any,
    /// A only.
    Ipv4,
    /// AAAA only.
    Ipv6,
    /// A and AAAA; the addresses of AAAA serve when those of A do not.
    Ipv4First,
    /// A and AAAA; the addresses of A serve when those of AAAA do not.
    Ipv6First,
}

/// Who may connect. Compared with the peer's address after `::ffff:a.b.c.d` was made IPv4.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Peers {
    /// No restriction.
    Anyone,
    /// Only addresses within these networks. Never empty.
    Within(Vec<IpNet>),
}

impl Peers {
    /// Whether `address`, IPv4-mapped addresses made IPv4, is one of them.
    #[must_use]
    pub fn contains(&self, address: std::net::IpAddr) -> bool {
        match self {
            Self::Anyone => true,
            Self::Within(networks) => networks.iter().any(|network| network.contains(&address)),
        }
    }
}
