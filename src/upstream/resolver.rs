//! Keeps the addresses of every name fresh, on the control thread: one task per target.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hickory_resolver::config::{
    NameServerConfig, ResolveHosts, ResolverConfig, ServerOrderingStrategy,
};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::ProtoError;
use hickory_resolver::proto::op::{Query, ResponseCode};
use hickory_resolver::proto::rr::{Name, RecordType};
use hickory_resolver::{Hosts, Resolver, TokioResolver};
use tokio::time::{Instant, sleep_until, timeout};
use tracing::{info, warn};

use super::Upstream;
use super::addresses::{Answer, Bounds, Kind, Resolution, Standing, may_be_used};
use crate::config;

/// One server's time to answer one question.
const TRY: Duration = Duration::from_secs(2);

/// Retries of a question after the first.
const TRIES: usize = 2;

/// All tries over all servers together; hickory has no bound of its own over both.
const LOOKUP: Duration = Duration::from_secs(15);

/// Why there is no resolver.
#[derive(Debug, thiserror::Error)]
pub enum ResolverError {
    /// `resolver.servers` is not set and the system's file cannot be used.
    #[error("cannot use /etc/resolv.conf ({0}): set resolver.servers = [\"IP:PORT\"]")]
    ResolvConf(NetError),
    /// The resolver refused its settings.
    #[error("cannot set the resolver up: {0}")]
    Build(NetError),
}

/// Why a look-up brought nothing that can be used.
#[derive(Debug, thiserror::Error)]
enum LookupError {
    #[error("{0}")]
    Answer(NetError),
    #[error("there is no such name")]
    NoName,
    #[error("the name has no address of this family")]
    NoAddress,
    #[error("not a name: {0}")]
    Name(#[from] ProtoError),
    #[error("no answer within {} s", LOOKUP.as_secs())]
    Timeout,
    #[error("{0} is loopback, link-local, multicast or unspecified: see allow_addresses")]
    NotAllowed(IpAddr),
    #[error("{0} is this relay's own listener: a loop")]
    Loop(SocketAddr),
}

/// The resolver that `config` asks for.
///
/// # Errors
/// See [`ResolverError`].
pub fn resolver(config: &config::Resolver) -> Result<Arc<TokioResolver>, ResolverError> {
    let provider = TokioRuntimeProvider::default();
    let mut builder = match config.servers.is_empty() {
        true => Resolver::builder(provider).map_err(ResolverError::ResolvConf)?,
        false => {
            let servers = config
                .servers
                .iter()
                .map(|address| name_server(*address))
                .collect();
            let config = ResolverConfig::from_parts(None, Vec::new(), servers);
            Resolver::builder_with_config(config, provider)
        }
    };
    let options = builder.options_mut();
    options.cache_size = 0; // the last good answer is kept here, with its own rules
    options.use_hosts_file = ResolveHosts::Never; // read below, anew each time
    options.timeout = TRY;
    options.attempts = TRIES;
    options.num_concurrent_reqs = 1;
    options.server_ordering_strategy = ServerOrderingStrategy::UserProvidedOrder;
    options.try_tcp_on_error = true;
    builder.build().map(Arc::new).map_err(ResolverError::Build)
}

fn name_server(address: SocketAddr) -> NameServerConfig {
    let mut server = NameServerConfig::udp_and_tcp(address.ip());
    for connection in &mut server.connections {
        connection.port = address.port();
    }
    server.trust_negative_responses = false; // another server may know better
    server
}

/// A target of an upstream that is a name.
#[derive(Debug)]
pub struct Named {
    /// Whose target it is.
    pub upstream: Arc<Upstream>,
    /// Which of them.
    pub index: usize,
    /// What to look up.
    pub name: Arc<str>,
    /// The port that goes with its addresses.
    pub port: u16,
    /// Its upstream's settings.
    pub settings: config::Upstream,
    /// Addresses of the relay's own listeners: an answer that leads there would be a loop.
    pub own: Arc<[SocketAddr]>,
    /// Who is asked.
    pub resolver: Arc<TokioResolver>,
}

/// What is known of a name, and what was last said of it.
struct Known {
    resolution: Resolution,
    standing: Standing,
    addresses: Vec<SocketAddr>,
    errors: BTreeMap<&'static str, String>,
}

impl Known {
    /// Books what a look-up brought.
    fn answered(&mut self, kind: Kind, looked_up: Result<(Vec<IpAddr>, Duration), LookupError>) {
        let family = family_name(kind);
        let answer = match looked_up {
            Ok((addresses, ttl)) => {
                self.errors.remove(family);
                Answer::Addresses(addresses, ttl)
            }
            Err(error) => {
                self.errors.insert(family, error.to_string());
                match error {
                    LookupError::NoName | LookupError::NoAddress => Answer::None,
                    _ => Answer::Failed,
                }
            }
        };
        self.resolution.answered(Instant::now(), kind, answer);
    }
}

impl Named {
    /// Keeps its addresses fresh, for ever. Each family of addresses is asked for by itself, and neither waits for the other.
    pub async fn keep_fresh(self, family: config::Family) {
        let kinds = match family {
            config::Family::Any | config::Family::Ipv4First => &[Kind::V4, Kind::V6][..],
            config::Family::Ipv6First => &[Kind::V6, Kind::V4],
            config::Family::Ipv4 => &[Kind::V4],
            config::Family::Ipv6 => &[Kind::V6],
        };
        let bounds = Bounds {
            min_ttl: self.settings.min_ttl,
            max_ttl: self.settings.max_ttl,
            stale_for: self.settings.stale_for,
        };
        let known = RefCell::new(Known {
            resolution: Resolution::new(bounds, kinds, Instant::now()),
            standing: Standing::Unknown,
            addresses: Vec::new(),
            errors: BTreeMap::new(),
        });
        tokio::join!(self.keep(Kind::V4, &known), self.keep(Kind::V6, &known));
    }

    /// One family; returns at once where it is not wanted.
    async fn keep(&self, kind: Kind, known: &RefCell<Known>) {
        loop {
            let look = known.borrow().resolution.look(kind, Instant::now());
            let Some(look) = look else { return };
            tokio::select! {
                () = sleep_until(look) => {}
                () = self.upstream.refresh.notified() => {
                    known.borrow_mut().resolution.requested(Instant::now());
                    continue;
                }
            }
            let due = known.borrow_mut().resolution.ask(kind, Instant::now());
            let looked_up = if due {
                Some(self.look_up(kind).await)
            } else {
                None
            };
            let mut known = known.borrow_mut();
            if let Some(looked_up) = looked_up {
                known.answered(kind, looked_up);
            }
            self.publish(&mut known);
        }
    }

    /// Shows workers and the admin side how the name stands now; says so once per change.
    fn publish(&self, known: &mut Known) {
        let now = Instant::now();
        let addresses = known
            .resolution
            .current(now)
            .into_iter()
            .map(|ip| SocketAddr::new(ip, self.port));
        let before = std::mem::replace(&mut known.addresses, addresses.collect());
        let standing = std::mem::replace(&mut known.standing, known.resolution.standing(now));
        let error = known
            .errors
            .iter()
            .map(|(family, error)| format!("{family}: {error}"));
        let error = error.collect::<Vec<_>>().join("; ");
        let failing = matches!(known.standing, Standing::Stale | Standing::Nothing);
        self.upstream.update(self.index, |state| {
            state.addresses.clone_from(&known.addresses);
            state.looked_up |= known.standing != Standing::Unknown;
            state.next = known.resolution.next();
            if known.standing == Standing::Fresh {
                state.answered = Some(now);
            }
            state.failure = failing.then(|| error.clone());
        });
        let (upstream, name, addresses) = (&*self.upstream.name, &*self.name, &known.addresses);
        match known.standing {
            Standing::Nothing if standing != Standing::Nothing => {
                warn!(
                    upstream,
                    name,
                    error,
                    "name does not resolve and no earlier answer serves: connections to it fail"
                );
            }
            Standing::Stale if standing != Standing::Stale => {
                warn!(
                    upstream,
                    name,
                    error,
                    ?addresses,
                    "name does not resolve; the last good answer stays in use"
                );
            }
            _ if before != *addresses => info!(upstream, name, ?addresses, "addresses changed"),
            Standing::Fresh if matches!(standing, Standing::Stale | Standing::Nothing) => {
                info!(upstream, name, "name resolves again");
            }
            _ => {}
        }
    }

    /// `/etc/hosts`, then DNS. The hosts file is the operator's word: its addresses are not filtered, but for a loop.
    async fn look_up(&self, kind: Kind) -> Result<(Vec<IpAddr>, Duration), LookupError> {
        let name = Name::from_utf8(&self.name)?;
        if let Some(addresses) = in_hosts_file(&name, kind) {
            return self.without_loops(addresses, self.settings.max_ttl);
        }
        let asked = timeout(LOOKUP, self.resolver.lookup(name, record_type(kind))).await;
        let answer = asked.map_err(|_| LookupError::Timeout)?.map_err(why_not)?;
        let ttl = answer
            .valid_until()
            .saturating_duration_since(std::time::Instant::now());
        // The remaining time was rounded down by the time it took to get here.
        let ttl = Duration::from_secs(ttl.as_secs() + u64::from(ttl.subsec_nanos() > 0));
        let addresses = answer
            .answers()
            .iter()
            .filter_map(|record| record.data.ip_addr());
        let allowed = &self.settings.allow_addresses;
        let (usable, refused): (Vec<_>, Vec<_>) =
            addresses.partition(|ip| may_be_used(*ip, allowed));
        match (usable.is_empty(), refused.first()) {
            (false, _) => self.without_loops(usable, ttl),
            (true, Some(refused)) => Err(LookupError::NotAllowed(*refused)),
            (true, None) => Err(LookupError::NoAddress),
        }
    }

    fn without_loops(
        &self,
        addresses: Vec<IpAddr>,
        ttl: Duration,
    ) -> Result<(Vec<IpAddr>, Duration), LookupError> {
        let loops = |ip: &IpAddr| is_own(&self.own, SocketAddr::new(*ip, self.port));
        let (own, usable): (Vec<_>, Vec<_>) = addresses.into_iter().partition(loops);
        match (usable.is_empty(), own.first()) {
            (false, _) => Ok((usable, ttl)),
            (true, Some(own)) => Err(LookupError::Loop(SocketAddr::new(*own, self.port))),
            (true, None) => Err(LookupError::NoAddress),
        }
    }
}

/// Whether `address` leads to one of `listeners`: the same address, or any address of this machine where one listens on all.
fn is_own(listeners: &[SocketAddr], address: SocketAddr) -> bool {
    let ip = address.ip().to_canonical();
    let mut same_port = listeners
        .iter()
        .filter(|listener| listener.port() == address.port());
    same_port.any(|listener| {
        let on = listener.ip().to_canonical();
        on == ip || (on.is_unspecified() && is_local(ip))
    })
}

/// Only an address of this machine can be bound to. Where that cannot be found out it is taken for one: rather no answer than a loop.
fn is_local(ip: IpAddr) -> bool {
    match std::net::UdpSocket::bind((ip, 0)) {
        Ok(_) => true,
        Err(error) => error.kind() != io::ErrorKind::AddrNotAvailable,
    }
}

fn why_not(error: NetError) -> LookupError {
    match &error {
        NetError::Dns(DnsError::NoRecordsFound(none)) => match none.response_code {
            ResponseCode::NXDomain => LookupError::NoName,
            ResponseCode::NoError => LookupError::NoAddress,
            _ => LookupError::Answer(error),
        },
        _ => LookupError::Answer(error),
    }
}

fn record_type(kind: Kind) -> RecordType {
    match kind {
        Kind::V4 => RecordType::A,
        Kind::V6 => RecordType::AAAA,
    }
}

fn family_name(kind: Kind) -> &'static str {
    match kind {
        Kind::V4 => "IPv4",
        Kind::V6 => "IPv6",
    }
}

/// What the hosts file says of a name; a name that is there in one family only has no address in the other, and DNS is not asked.
/// Read anew for each look-up: a small file, and nobody restarts a relay for it.
fn in_hosts_file(name: &Name, kind: Kind) -> Option<Vec<IpAddr>> {
    let hosts = Hosts::from_system().unwrap_or_else(|error: io::Error| {
        warn!(%error, "cannot read /etc/hosts; asking DNS alone");
        Hosts::default()
    });
    let find = |kind| hosts.lookup_static_host(&Query::query(name.clone(), record_type(kind)));
    let of_kind = find(kind);
    if of_kind.is_none()
        && [Kind::V4, Kind::V6]
            .into_iter()
            .all(|kind| find(kind).is_none())
    {
        return None;
    }
    let records = of_kind
        .map(|lookup| lookup.answers().to_vec())
        .unwrap_or_default();
    Some(
        records
            .iter()
            .filter_map(|record| record.data.ip_addr())
            .collect(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_that_leads_back_here_is_a_loop() {
        let own = ["0.0.0.0:8443", "10.0.0.1:9000"].map(|address| address.parse().unwrap());
        for (address, looped) in [
            ("127.0.0.1:8443", true),
            ("[::ffff:127.0.0.1]:8443", true),
            ("[::ffff:10.0.0.1]:9000", true),
            ("127.0.0.1:9443", false),
            ("192.0.2.1:8443", false),
            ("10.0.0.1:9000", true),
            ("10.0.0.2:9000", false),
        ] {
            assert_eq!(is_own(&own, address.parse().unwrap()), looped, "{address}");
        }
    }
}
