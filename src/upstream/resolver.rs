//! Who is asked for the addresses of a name: `/etc/hosts`, then name servers, both as the system's files or the configuration say.

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hickory_resolver::proto::ProtoError;
use hickory_resolver::proto::rr::Name;
use tokio::sync::watch;
use tokio::time::sleep;
use tracing::{info, warn};

use super::addresses::Kind;
use super::answer::{Rules, Source};
use super::question::{Asker, NoAnswer};
use super::system::{Change, Files, Hosts, Servers};
use crate::config::{self, Family, Host};

/// How often the system's files are looked at: nobody restarts a relay for them, and a look is two calls of stat(2).
const BETWEEN_LOOKS: Duration = Duration::from_secs(2);

/// What is written in the hosts file is good until the file changes.
const UNTIL_IT_CHANGES: Duration = Duration::from_secs(24 * 60 * 60);

/// Why there is no resolver.
#[derive(Debug, thiserror::Error)]
pub enum ResolverError {
    /// `resolver.servers` is not set and the system's file cannot be used.
    #[error("cannot use /etc/resolv.conf ({0}): set resolver.servers = [\"IP:PORT\"]")]
    ResolvConf(String),
    /// A domain is none.
    #[error("resolver.search: {domain:?} is no domain: {error}")]
    Search {
        /// As configured.
        domain: String,
        /// What is wrong with it.
        error: ProtoError,
    },
}

/// Why a look-up brought nothing that can be used.
#[derive(Debug, thiserror::Error)]
pub enum LookupError {
    /// No server has an address.
    #[error(transparent)]
    NoAnswer(#[from] NoAnswer),
    /// What is configured cannot be asked for.
    #[error("not a name: {0}")]
    Name(#[from] ProtoError),
    /// The hosts file names it, and gives it addresses of the other family only.
    #[error("/etc/hosts has none for it")]
    NotInHosts,
    /// None of its addresses may be used.
    #[error("{0}")]
    Unusable(String),
}

/// What a look-up brought: addresses that may be used, at least one.
#[derive(Debug)]
pub struct Found {
    /// Each once.
    pub addresses: Vec<IpAddr>,
    /// How long they are good.
    pub ttl: Duration,
    /// What was left out of the answer, and why.
    pub note: Option<String>,
}

/// What a target's single look-up brought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Looked {
    /// Where connections would go.
    pub addresses: Vec<SocketAddr>,
    /// What was left out or failed all the same, a line each.
    pub notes: Vec<String>,
}

/// Why a target has no address, in one line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unresolved(String);

/// Who is asked, by everyone in this process.
#[derive(Debug)]
pub struct Resolver {
    asker: Asker,
    family: Family,
    files: Mutex<Files>,
    known: watch::Sender<System>,
}

/// What is known of the system; replaced as a whole.
#[derive(Debug, Clone)]
pub struct System {
    servers: Arc<Servers>,
    hosts: Arc<Hosts>,
}

/// The resolver that `config` asks for.
///
/// # Errors
/// See [`ResolverError`].
pub fn resolver(
    config: &config::Resolver,
    queries: Arc<AtomicU64>,
) -> Result<Arc<Resolver>, ResolverError> {
    let resolv_conf = Path::new("/etc/resolv.conf");
    let resolv_conf = config.servers.is_empty().then_some(resolv_conf);
    let files = Files::new(resolv_conf, Path::new("/etc/hosts"));
    Resolver::new(config, files, queries).map(Arc::new)
}

impl Resolver {
    fn new(
        config: &config::Resolver,
        mut files: Files,
        queries: Arc<AtomicU64>,
    ) -> Result<Self, ResolverError> {
        let mut servers = None;
        if !config.servers.is_empty() {
            servers = Some(Servers {
                addresses: config.servers.clone(),
                search: Vec::new(),
                ndots: 1,
            });
        }
        let mut hosts = Hosts::default();
        let mut why = String::new();
        for change in files.look() {
            match change {
                Change::Servers(found) => servers = Some(found),
                Change::Hosts(found) => hosts = found,
                Change::Kept { path, why: reason } if path.ends_with("hosts") => {
                    warn!(file = %path.display(), reason, "cannot be used; names are looked up in DNS alone");
                }
                Change::Kept { why: reason, .. } => why = reason,
            }
        }
        let mut servers = servers.ok_or(ResolverError::ResolvConf(why))?;
        if !config.search.is_empty() {
            let domains = config.search.iter().map(|domain| {
                Name::from_utf8(domain).map_err(|error| ResolverError::Search {
                    domain: domain.to_string(),
                    error,
                })
            });
            servers.search = domains.collect::<Result<_, _>>()?;
        }
        let known = System {
            servers: Arc::new(servers),
            hosts: Arc::new(hosts),
        };
        Ok(Self {
            asker: Asker::new(config.queries_per_second, queries),
            family: config.family,
            files: Mutex::new(files),
            known: watch::Sender::new(known),
        })
    }

    /// Questions sent to name servers so far, each try counted: `tollgate_dns_queries_total`.
    #[must_use]
    pub fn queries(&self) -> Arc<AtomicU64> {
        self.asker.queries()
    }

    /// Whether addresses of IPv4 may be used, however they are written.
    #[must_use]
    pub fn wants_ipv4(&self) -> bool {
        self.family != Family::Ipv6
    }

    /// The families to ask for.
    #[must_use]
    pub fn kinds(&self) -> &'static [Kind] {
        match self.family {
            Family::Any | Family::Ipv4First => &[Kind::V4, Kind::V6],
            Family::Ipv6First => &[Kind::V6, Kind::V4],
            Family::Ipv4 => &[Kind::V4],
            Family::Ipv6 => &[Kind::V6],
        }
    }

    /// Changes whenever everything is to be asked again.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<System> {
        self.known.subscribe()
    }

    /// Takes over what changes in the system's files, for ever.
    pub async fn follow_files(self: Arc<Self>) {
        loop {
            sleep(BETWEEN_LOOKS).await;
            self.look_at_files();
        }
    }

    fn look_at_files(&self) {
        let changes = {
            let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
            files.look()
        };
        for change in changes {
            match change {
                Change::Servers(servers) => {
                    info!(servers = ?servers.addresses, "/etc/resolv.conf has changed: every name is asked for again");
                    self.asker.all_begin_anew();
                    let servers = Arc::new(servers);
                    self.known.send_modify(|known| known.servers = servers);
                }
                Change::Hosts(hosts) => {
                    info!("/etc/hosts has changed: every name is looked up again");
                    self.asker.all_begin_anew();
                    let hosts = Arc::new(hosts);
                    self.known.send_modify(|known| known.hosts = hosts);
                }
                Change::Kept { path, why } => {
                    warn!(file = %path.display(), reason = why, "has changed and cannot be used; what it said before stays");
                }
            }
        }
    }

    /// One family of a name's addresses: from `/etc/hosts`, else from DNS.
    ///
    /// # Errors
    /// [`LookupError`].
    pub async fn look_up(
        &self,
        name: &str,
        kind: Kind,
        rules: &Rules<'_>,
    ) -> Result<Found, LookupError> {
        let System { servers, hosts } = self.known.borrow().clone();
        if let Some(addresses) = hosts.addresses(name) {
            // A name that is there in one family only has no address in the other, and DNS is not asked.
            let of_kind = |ip: &&IpAddr| ip.is_ipv4() == (kind == Kind::V4);
            let addresses = addresses.iter().filter(of_kind).copied().collect();
            return sifted(rules, addresses, Source::Hosts, UNTIL_IT_CHANGES);
        }
        let mut candidates = servers.candidates(name)?.into_iter();
        loop {
            let candidate = candidates.next().ok_or(LookupError::NotInHosts)?;
            let asked = self.asker.look_up(&servers.addresses, candidate, kind);
            match asked.await {
                Ok((addresses, ttl)) => return sifted(rules, addresses, Source::Dns, ttl),
                Err(NoAnswer::NoName { .. }) if candidates.len() > 0 => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Looks a target up once, by the rules it has when the relay runs: for `check --probe`. `own` are the addresses of all listeners.
    ///
    /// # Errors
    /// [`Unresolved`]: names who was asked.
    pub async fn look_up_once(
        &self,
        target: &config::Target,
        settings: &config::Upstream,
        own: &[SocketAddr],
    ) -> Result<Looked, Unresolved> {
        let name = match &target.host {
            Host::Name(name) => name,
            Host::Literal(ip) => {
                return Ok(Looked {
                    addresses: vec![SocketAddr::new(*ip, target.port)],
                    notes: Vec::new(),
                });
            }
        };
        let rules = Rules {
            allowed: &settings.allow_addresses,
            own,
            port: target.port,
            ipv4: self.wants_ipv4(),
        };
        let look_up = async |kind| match self.kinds().contains(&kind) {
            true => Some((kind, self.look_up(name, kind, &rules).await)),
            false => None,
        };
        let (four, six) = tokio::join!(look_up(Kind::V4), look_up(Kind::V6));
        let (mut addresses, mut notes, mut failures) = (Vec::new(), Vec::new(), Vec::new());
        for (kind, looked_up) in [four, six].into_iter().flatten() {
            match looked_up {
                Ok(found) => {
                    addresses.extend(found.addresses);
                    notes.extend(found.note.map(|note| format!("{kind}: {note}")));
                }
                Err(error) => failures.push((error.says_none(), kind, error.to_string())),
            }
        }
        // That it has no address of the other family is nothing to be said.
        if !addresses.is_empty() || failures.iter().any(|(none, ..)| !none) {
            failures.retain(|(none, ..)| !none);
        }
        let mut why: Vec<String> = failures
            .iter()
            .map(|(_, kind, failure)| format!("{kind}: {failure}"))
            .collect();
        if addresses.is_empty() {
            // What is the same of both families is said once.
            if let [(_, _, one), (_, _, other)] = &failures[..]
                && one == other
            {
                why = vec![one.clone()];
            }
            return Err(Unresolved(why.join("; ")));
        }
        notes.extend(why);
        let mut seen = HashSet::new();
        addresses.retain(|address| seen.insert(*address));
        let with_port = |ip| SocketAddr::new(ip, target.port);
        Ok(Looked {
            addresses: addresses.into_iter().map(with_port).collect(),
            notes,
        })
    }
}

impl LookupError {
    /// It is known that there is no address of this family, not only unknown whether there is one.
    fn says_none(&self) -> bool {
        self.none().is_some()
    }

    /// As `says_none`; how long that is good, where it was said.
    #[must_use]
    pub fn none(&self) -> Option<Option<Duration>> {
        match self {
            Self::NoAnswer(
                NoAnswer::NoName { good_for, .. } | NoAnswer::NoAddress { good_for, .. },
            ) => Some(*good_for),
            Self::NotInHosts => Some(None),
            _ => None,
        }
    }
}

fn sifted(
    rules: &Rules<'_>,
    addresses: Vec<IpAddr>,
    source: Source,
    ttl: Duration,
) -> Result<Found, LookupError> {
    let (addresses, note) = rules.sift(addresses, source);
    match (addresses.is_empty(), note) {
        (false, note) => Ok(Found {
            addresses,
            ttl,
            note,
        }),
        (true, Some(note)) => Err(LookupError::Unusable(note)),
        (true, None) => Err(LookupError::NotInHosts),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::num::NonZeroU32;
    use std::sync::atomic::Ordering;

    use hickory_resolver::proto::op::ResponseCode;
    use tempfile::TempDir;

    use super::super::question::tests::server;
    use super::*;
    use crate::config::{Config, Target};

    /// A resolver that asks this server, with these hosts and search domains.
    fn resolver(server: SocketAddr, family: Family, hosts: &str, search: &[&str]) -> Resolver {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("hosts");
        fs::write(&path, hosts).unwrap();
        let config = config::Resolver {
            servers: vec![server],
            search: search.iter().map(|domain| Arc::from(*domain)).collect(),
            family,
            queries_per_second: NonZeroU32::new(1000).unwrap(),
        };
        Resolver::new(&config, Files::new(None, &path), Arc::default()).unwrap()
    }

    async fn look_up(resolver: &Resolver, host: &str) -> Result<Looked, Unresolved> {
        let text = "[[listener]]\nname = \"in\"\nbind = \"127.0.0.1:0\"\nproxy_protocol = \"off\"\nupstream = \"up\"\n\
                    [[upstream]]\nname = \"up\"\ntargets = [\"unused:1\"]\n";
        let config = Config::from_str(text, "here").unwrap();
        let target = Target {
            host: host
                .parse()
                .map_or_else(|_| Host::Name(host.into()), Host::Literal),
            port: 443,
            priority: 0,
            weight: 1,
        };
        let own = ["10.0.0.7:443".parse().unwrap()];
        resolver
            .look_up_once(&target, &config.upstreams[0], &own)
            .await
    }

    fn at(address: &str) -> Looked {
        Looked {
            addresses: vec![address.parse().unwrap()],
            notes: Vec::new(),
        }
    }

    fn asked(resolver: &Resolver) -> u64 {
        resolver.queries().load(Ordering::Relaxed)
    }

    #[tokio::test]
    async fn hosts_come_before_dns_and_literals_before_both() {
        let (server, _) = server(ResponseCode::NoError);
        let resolver = resolver(server, Family::Ipv4, "10.0.0.9 by-hand\n", &[]);
        let looked = look_up(&resolver, "By-Hand").await.unwrap();
        assert_eq!(looked, at("10.0.0.9:443"));
        assert_eq!(
            look_up(&resolver, "fd00::1").await.unwrap(),
            at("[fd00::1]:443")
        );
        assert_eq!(asked(&resolver), 0);
        let looked = look_up(&resolver, "cp.example").await.unwrap();
        assert_eq!(looked, at("10.0.0.1:443"), "from the server");
        assert_eq!(asked(&resolver), 1);
    }

    #[tokio::test]
    async fn why_there_is_no_address_names_who_was_asked() {
        let (server, _) = server(ResponseCode::ServFail);
        let hosts = "10.0.0.7 loop\n10.0.0.8 half\n10.0.0.7 half\n";
        let resolver = resolver(server, Family::Any, hosts, &[]);
        let why = look_up(&resolver, "cp.example").await.unwrap_err();
        let expected = format!("{server} answered SERVFAIL");
        assert_eq!(why.to_string(), expected);
        let why = look_up(&resolver, "loop").await.unwrap_err().to_string();
        let expected =
            "IPv4: left out 10.0.0.7: port 443 there is this relay's own listener, a loop";
        assert_eq!(why, expected);
        let looked = look_up(&resolver, "half").await.unwrap();
        assert_eq!(looked.addresses, at("10.0.0.8:443").addresses);
        assert!(
            looked.notes.len() == 1 && looked.notes[0].contains("10.0.0.7"),
            "{looked:?}"
        );
    }

    #[tokio::test]
    async fn the_next_domain_is_tried_only_where_the_name_does_not_exist() {
        let domains = &["one.example", "two.example"];
        for (code, questions) in [(ResponseCode::NXDomain, 3), (ResponseCode::ServFail, 1)] {
            let (server, _) = server(code);
            let resolver = resolver(server, Family::Ipv4, "", domains);
            look_up(&resolver, "cp").await.unwrap_err();
            assert_eq!(asked(&resolver), questions, "{code}");
        }
    }

    #[test]
    fn without_servers_there_is_no_resolver() {
        let folder = TempDir::new().unwrap();
        let config = config::Resolver {
            servers: Vec::new(),
            search: Vec::new(),
            family: Family::Any,
            queries_per_second: NonZeroU32::new(1).unwrap(),
        };
        let missing = folder.path().join("resolv.conf");
        let files = Files::new(Some(&missing), Path::new("/etc/hosts"));
        let error = Resolver::new(&config, files, Arc::default())
            .unwrap_err()
            .to_string();
        assert!(error.contains("set resolver.servers"), "{error}");
    }
}
