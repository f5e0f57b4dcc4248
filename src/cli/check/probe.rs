//! `check --probe`: whether everything is there that a relay needs, and the way to each target, in one line for each thing that was found.

use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::task::{JoinSet, LocalSet};
use tokio::time::{Instant, timeout_at};

use super::super::places::Places;
use super::super::{Error, ExitCode};
use super::machine;
use super::running::Running;
use crate::config::{
    Check, Config, HealthCheck, Host, SendProxy, Target, Upstream, defaults, duration_text,
};
use crate::leg;
use crate::upstream::addresses::MOST_ADDRESSES;
use crate::upstream::answer::{Rules, Source};
use crate::upstream::probe::probe;
use crate::upstream::resolver::{Looked, Resolver, ResolverError, resolver};

/// All of it together. What was not finished by then is a finding.
const WHOLE: Duration = Duration::from_secs(120);

/// Most targets looked up, and most addresses asked, at a time: a shell gives 1024 descriptors.
const AT_ONCE: usize = 64;

/// What was found, in one line: something as it should be, or something wrong.
pub(super) type Line = Result<String, String>;

/// Looks at the machine and at the relay that runs on it, tries the way to each target, and prints what was found, in the order of the file.
pub(super) fn run(config: Config, places: &Places) -> Result<ExitCode, Error> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Error::Supervisor(error.into()))?;
    let running = Running::found(places);
    let mut lines = match &running {
        Some(running) => running.lines(&config),
        None => machine::places(&config),
    };
    lines.extend(machine::ports(&config, running.as_ref()));
    lines.extend(machine::limits(&config, running.as_ref()));
    lines.extend(sockets(&config));
    let prober = Prober::new(config).map_err(|error| Error::Supervisor(error.into()))?;
    let prober = Arc::new(prober);
    lines.extend(LocalSet::new().block_on(&runtime, prober.clone().all()));
    lines.extend(prober.local_ports());
    let mut out = io::stdout().lock();
    for Ok(text) | Err(text) in &lines {
        writeln!(out, "{text}").map_err(Error::Output)?;
    }
    Ok(match lines.iter().all(Result::is_ok) {
        true => ExitCode::Ok,
        false => ExitCode::Findings,
    })
}

/// What this machine does not give of the options of sockets.
fn sockets(config: &Config) -> Vec<Line> {
    let listeners = config.listeners.iter().map(|one| (&one.name, &one.socket));
    let upstreams = config.upstreams.iter().map(|one| (&one.name, &one.socket));
    let findings = listeners.chain(upstreams).flat_map(|(name, options)| {
        let findings = leg::findings(options).into_iter();
        findings.map(move |finding| Err(format!("{name}: socket: {finding}")))
    });
    findings.collect()
}

/// What every attempt needs.
struct Prober {
    config: Config,
    /// Addresses of the relay's own listeners.
    own: Vec<SocketAddr>,
    /// As in the relay, there is none where nothing is to be looked up.
    resolver: Option<Arc<Resolver>>,
    looking_up: Semaphore,
    asking: Semaphore,
    /// Addresses that were found, by upstream.
    found: Vec<AtomicUsize>,
}

impl Prober {
    fn new(config: Config) -> Result<Self, ResolverError> {
        let mut targets = config
            .upstreams
            .iter()
            .flat_map(|upstream| &upstream.targets);
        let names = targets.any(|target| matches!(target.host, Host::Name(_)));
        let resolver = names
            .then(|| resolver(&config.resolver, Arc::default()))
            .transpose()?;
        let own = config.listeners.iter().flat_map(|listener| &listener.bind);
        Ok(Self {
            own: own.copied().collect(),
            resolver,
            looking_up: Semaphore::new(AT_ONCE),
            asking: Semaphore::new(AT_ONCE),
            found: config
                .upstreams
                .iter()
                .map(|_| AtomicUsize::new(0))
                .collect(),
            config,
        })
    }

    async fn all(self: Arc<Self>) -> Vec<Line> {
        let deadline = Instant::now() + WHOLE;
        let upstreams = self.config.upstreams.iter().enumerate();
        let targets =
            upstreams.flat_map(|(n, upstream)| (0..upstream.targets.len()).map(move |m| (n, m)));
        let attempts = targets.map(|(n, m)| {
            let prober = self.clone();
            async move {
                let upstream = &prober.config.upstreams[n];
                let target = &upstream.targets[m];
                let attempt = timeout_at(deadline, prober.target(n, target));
                let lines = attempt.await.unwrap_or_else(|_| {
                    let whole = duration_text(WHOLE);
                    vec![Err(format!(
                        "not done within {whole}, which is all the time that a probe has"
                    ))]
                });
                let named = |text: String| format!("{}: {target}: {text}", upstream.name);
                lines
                    .into_iter()
                    .map(|line| line.map(named).map_err(named))
                    .collect::<Vec<_>>()
            }
        });
        in_order(attempts).await.into_iter().flatten().collect()
    }

    /// What is wrong with the ports that connections to so many addresses have.
    fn local_ports(&self) -> Vec<Line> {
        let upstreams = self.config.upstreams.iter().zip(&self.found).enumerate();
        let found = upstreams.filter_map(|(n, (upstream, found))| {
            let coming = self.config.listeners.iter();
            let coming = coming.filter(|listener| listener.reachable().contains(&n));
            let most = coming.map(|listener| listener.max_sessions).sum();
            machine::local_ports(upstream, found.load(Ordering::Relaxed), most)
        });
        found.map(Err).collect()
    }

    /// A target of the `n`th upstream.
    async fn target(self: &Arc<Self>, n: usize, target: &Target) -> Vec<Line> {
        let found = {
            let _place = self.looking_up.acquire().await;
            self.look_up(&self.config.upstreams[n], target).await
        };
        let Looked { addresses, notes } = match found {
            Ok(found) => found,
            Err(why) => return vec![Err(why)],
        };
        self.found[n].fetch_add(addresses.len(), Ordering::Relaxed);
        let attempts = addresses.into_iter().take(MOST_ADDRESSES).map(|address| {
            let (prober, target) = (self.clone(), target.to_string());
            async move {
                let _place = prober.asking.acquire().await;
                ask(&prober.config.upstreams[n], &target, address).await
            }
        });
        let asked = in_order(attempts).await;
        notes.into_iter().map(Err).chain(asked).collect()
    }

    /// Its addresses, by the rules that the relay has for them.
    async fn look_up(&self, upstream: &Upstream, target: &Target) -> Result<Looked, String> {
        if let Host::Literal(ip) = target.host {
            let rules = Rules {
                allowed: &upstream.allow_addresses,
                own: &self.own,
                port: target.port,
                ipv4: true,
            };
            let (taken, note) = rules.sift(vec![ip], Source::Hosts);
            let with_port = |ip| SocketAddr::new(ip, target.port);
            return match note {
                Some(note) if taken.is_empty() => Err(note),
                _ => Ok(Looked {
                    addresses: taken.into_iter().map(with_port).collect(),
                    notes: Vec::new(),
                }),
            };
        }
        let resolver = self.resolver.as_ref().expect("made where there is a name");
        let found = resolver.look_up_once(target, upstream, &self.own).await;
        found.map_err(|error| error.to_string())
    }
}

/// Connects once as a session would, then asks once as the health check would, where that is anything else.
async fn ask(upstream: &Upstream, target: &str, address: SocketAddr) -> Line {
    let connection = HealthCheck {
        check: Check::Tcp,
        interval: upstream.connect_timeout,
        timeout: upstream.connect_timeout,
        rise: defaults::HEALTH_RISE,
        fall: defaults::HEALTH_FALL,
        port: None,
    };
    let socket = &upstream.socket;
    let connected = probe(address, target, &connection, SendProxy::Off, socket).await;
    let took = connected.map_err(|error| error.to_string())?;
    let mut text = format!("{address} connects in {}", milliseconds(took));
    if let Some(check) = &upstream.health
        && (check.check != Check::Tcp || check.port.is_some_and(|port| port != address.port()))
    {
        let asked = probe(address, target, check, upstream.proxy_protocol, socket).await;
        let took = asked.map_err(|error| format!("{text}, and its health check fails: {error}"))?;
        text += &format!(", is healthy after {}", milliseconds(took));
    }
    Ok(text)
}

fn milliseconds(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1e3)
}

/// Runs them side by side; what each brought, in their order.
async fn in_order<F>(tasks: impl Iterator<Item = F>) -> Vec<F::Output>
where
    F: Future + 'static,
    F::Output: 'static,
{
    let mut running = JoinSet::new();
    for (n, task) in tasks.enumerate() {
        running.spawn_local(async move { (n, task.await) });
    }
    let mut brought = running.join_all().await;
    brought.sort_by_key(|(n, _)| *n);
    brought.into_iter().map(|(_, output)| output).collect()
}
