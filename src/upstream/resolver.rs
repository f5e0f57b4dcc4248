//! Keeps the addresses of every name fresh, on the control thread: one task per target.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hickory_resolver::config::{
    LookupIpStrategy, NameServerConfig, ResolveHosts, ResolverConfig, ServerOrderingStrategy,
};
use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::ProtoError;
use hickory_resolver::proto::op::Query;
use hickory_resolver::proto::rr::{Name, RecordType};
use hickory_resolver::{Hosts, Resolver, TokioResolver};
use tokio::time::{Instant, sleep_until, timeout};
use tracing::{info, warn};

use super::Upstream;
use super::addresses::{Bounds, Change, Resolution, may_be_used};
use crate::config::{self, Family};

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
    Answer(#[from] NetError),
    #[error("not a name: {0}")]
    Name(#[from] ProtoError),
    #[error("no answer within {} s", LOOKUP.as_secs())]
    Timeout,
    #[error("the answer has no address")]
    Empty,
    #[error("{0} is loopback, link-local, multicast or unspecified: see allow_addresses")]
    NotAllowed(IpAddr),
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
    options.ip_strategy = match config.family {
        Family::Any => LookupIpStrategy::Ipv4AndIpv6,
        Family::Ipv4 => LookupIpStrategy::Ipv4Only,
        Family::Ipv6 => LookupIpStrategy::Ipv6Only,
    };
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
}

impl Named {
    /// Keeps its addresses fresh, for ever.
    pub async fn keep_fresh(
        self,
        settings: config::Upstream,
        resolver: Arc<TokioResolver>,
        family: Family,
    ) {
        let bounds = Bounds {
            min_ttl: settings.min_ttl,
            max_ttl: settings.max_ttl,
            stale_for: settings.stale_for,
        };
        let mut resolution = Resolution::new(bounds, Instant::now());
        loop {
            tokio::select! {
                () = sleep_until(resolution.next()) => {}
                () = self.upstream.refresh.notified() => {
                    resolution.requested(Instant::now());
                    continue;
                }
            }
            resolution.asking(Instant::now());
            let looked_up = look_up(&self.name, &resolver, family, &settings).await;
            self.record(&mut resolution, looked_up);
        }
    }

    /// Books what a look-up brought; says so once per change of state.
    fn record(
        &self,
        resolution: &mut Resolution,
        looked_up: Result<(Vec<IpAddr>, Duration), LookupError>,
    ) {
        let now = Instant::now();
        let failure = looked_up.as_ref().err().map(ToString::to_string);
        let change = match looked_up {
            Ok((addresses, ttl)) => resolution.answered(now, addresses, ttl),
            Err(_) => resolution.failed(now),
        };
        let in_use = resolution
            .current(now)
            .iter()
            .map(|ip| SocketAddr::new(*ip, self.port))
            .collect::<Vec<_>>();
        let (upstream, name) = (&*self.upstream.name, &*self.name);
        match (change, &failure) {
            (Change::Addresses, _) => {
                info!(upstream, name, addresses = ?in_use, "addresses changed")
            }
            (Change::Recovered, _) => info!(upstream, name, "name resolves again"),
            (Change::Failing, Some(error)) => {
                warn!(upstream, name, error, addresses = ?in_use, "name does not resolve; the last good answer stays in use");
            }
            _ => {}
        }
        self.upstream.update(self.index, |state| {
            state.addresses = in_use;
            state.looked_up = true;
            state.next = Some(resolution.next());
            if failure.is_none() {
                state.answered = Some(now);
            }
            state.failure = failure;
        });
    }
}

/// `/etc/hosts`, then DNS. The hosts file is the operator's word: its addresses are not filtered.
async fn look_up(
    host: &str,
    resolver: &TokioResolver,
    family: Family,
    settings: &config::Upstream,
) -> Result<(Vec<IpAddr>, Duration), LookupError> {
    let name = Name::from_utf8(host)?;
    let from_hosts = in_hosts_file(&name, family);
    if !from_hosts.is_empty() {
        return Ok((from_hosts, settings.max_ttl));
    }
    let answer = timeout(LOOKUP, resolver.lookup_ip(name))
        .await
        .map_err(|_| LookupError::Timeout)??;
    let ttl = answer
        .valid_until()
        .saturating_duration_since(std::time::Instant::now());
    // The remaining time was rounded down by the time it took to get here.
    let ttl = Duration::from_secs(ttl.as_secs() + u64::from(ttl.subsec_nanos() > 0));
    let (usable, refused): (Vec<_>, Vec<_>) = answer
        .iter()
        .partition(|ip| may_be_used(*ip, &settings.allow_addresses));
    match (usable.is_empty(), refused.first()) {
        (false, _) => Ok((usable, ttl)),
        (true, Some(refused)) => Err(LookupError::NotAllowed(*refused)),
        (true, None) => Err(LookupError::Empty),
    }
}

/// Read anew for each look-up: a small file, and nobody restarts a relay for it.
fn in_hosts_file(name: &Name, family: Family) -> Vec<IpAddr> {
    let hosts = Hosts::from_system().unwrap_or_else(|error: io::Error| {
        warn!(%error, "cannot read /etc/hosts; asking DNS alone");
        Hosts::default()
    });
    let types = match family {
        Family::Any => &[RecordType::A, RecordType::AAAA][..],
        Family::Ipv4 => &[RecordType::A],
        Family::Ipv6 => &[RecordType::AAAA],
    };
    let lookups = types
        .iter()
        .filter_map(|kind| hosts.lookup_static_host(&Query::query(name.clone(), *kind)));
    let records = lookups.flat_map(|lookup| lookup.answers().to_vec());
    records.filter_map(|record| record.data.ip_addr()).collect()
}
