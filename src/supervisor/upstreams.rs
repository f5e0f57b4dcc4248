//! The upstreams of the configuration in force, with the tasks that keep them: one that stays as it was is left alone, one that changed goes
//! on with what is known, one that is gone has no tasks any more.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use tokio::sync::{Semaphore, watch};
use tokio::task::{AbortHandle, spawn_local};
use tokio::time::{Instant, timeout_at};

use crate::config::{self, Config, Family, Host};
use crate::upstream::named::Named;
use crate::upstream::resolver::{self, Resolver, ResolverError};
use crate::upstream::snapshot::Snapshot;
use crate::upstream::{Upstream, health, probe};

/// How long new names are waited for before a configuration is put into force: for a server that does not answer and one that does.
const LOOKING_UP: Duration = Duration::from_secs(5);

/// See the module.
#[derive(Debug)]
pub(super) struct Upstreams {
    running: Vec<Running>,
    /// There is none before there is a name.
    resolver: Option<(config::Resolver, Arc<Resolver>)>,
    /// Follows the resolver's files.
    following: Option<Task>,
    /// Addresses of the relay's own listeners.
    own: watch::Sender<Arc<[SocketAddr]>>,
    /// Health checks under way, over all upstreams.
    probes: Arc<Semaphore>,
    queries: Arc<AtomicU64>,
    next: usize,
}

/// An upstream and what keeps it.
#[derive(Debug)]
struct Running {
    upstream: Arc<Upstream>,
    family: Family,
    _tasks: Vec<Task>,
}

/// Ends with this.
#[derive(Debug)]
struct Task(AbortHandle);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What a configuration asks for: nothing has changed yet.
#[derive(Debug)]
pub(super) struct Plan {
    /// In the order of the configuration.
    pub(super) upstreams: Vec<Arc<Upstream>>,
    family: Family,
    resolver: Option<(config::Resolver, Arc<Resolver>)>,
    own: Arc<[SocketAddr]>,
    next: usize,
}

/// Upstreams whose names may not have been looked up yet.
#[derive(Debug)]
pub(super) struct New(Vec<watch::Receiver<Arc<Snapshot>>>);

impl New {
    /// Waits until they were, whatever came of it; for a bounded time.
    pub(super) async fn are_looked_up(self) {
        let until = Instant::now() + LOOKING_UP;
        for mut changes in self.0 {
            // Fails only where the upstream is gone; and where time is up, its connections wait for its addresses as at a start.
            let looked_up = changes.wait_for(|snapshot| snapshot.looked_up);
            let _ = timeout_at(until, looked_up).await;
        }
    }
}

impl Upstreams {
    pub(super) fn new() -> Self {
        Self {
            running: Vec::new(),
            resolver: None,
            following: None,
            own: watch::channel([].into()).0,
            probes: Arc::new(Semaphore::new(probe::AT_ONCE)),
            queries: Arc::default(),
            next: 0,
        }
    }

    /// Questions sent to name servers so far.
    pub(super) fn queries(&self) -> Arc<AtomicU64> {
        self.queries.clone()
    }

    /// What `config` asks for.
    ///
    /// # Errors
    /// There is no way to resolve its names.
    pub(super) fn plan(&self, config: &Config) -> Result<Plan, ResolverError> {
        let mut targets = config
            .upstreams
            .iter()
            .flat_map(|upstream| &upstream.targets);
        let names = targets.any(|target| matches!(target.host, Host::Name(_)));
        let resolver = match &self.resolver {
            Some((settings, resolver)) if *settings == config.resolver => {
                Some((settings.clone(), resolver.clone()))
            }
            _ if names => {
                let made = resolver::resolver(&config.resolver, self.queries.clone())?;
                Some((config.resolver.clone(), made))
            }
            _ => None,
        };
        let family = config.resolver.family;
        let same_resolver = match (&resolver, &self.resolver) {
            (Some((_, now)), Some((_, before))) => Arc::ptr_eq(now, before),
            (None, _) => true,
            (Some(_), None) => false,
        };
        let mut next = self.next;
        let upstreams = config.upstreams.iter().map(|settings| {
            let mut running = self.running.iter();
            match running.find(|running| running.upstream.name == settings.name) {
                Some(running)
                    if same_resolver
                        && running.family == family
                        && running.upstream.settings == *settings =>
                {
                    running.upstream.clone()
                }
                Some(running) => Arc::new(running.upstream.successor(settings, family)),
                None => {
                    next += 1;
                    // It may have had another name before.
                    let others = |target: &config::Target| {
                        let mut running = self.running.iter();
                        running.find_map(|running| running.upstream.knows(target))
                    };
                    let made = Upstream::knowing(next - 1, settings, family, others);
                    Arc::new(made)
                }
            }
        });
        let upstreams = upstreams.collect();
        let own = config.listeners.iter().flat_map(|listener| &listener.bind);
        Ok(Plan {
            upstreams,
            family,
            resolver,
            own: own.copied().collect(),
            next,
        })
    }

    /// Starts what is new, and ends what is gone.
    pub(super) fn adopt(&mut self, plan: Plan) -> New {
        let Plan {
            upstreams,
            family,
            resolver,
            own,
            next,
        } = plan;
        self.next = next;
        self.own.send_replace(own);
        let followed = self.resolver.as_ref().map(|(_, resolver)| resolver);
        let to_follow = resolver.as_ref().map(|(_, resolver)| resolver);
        if to_follow.map(Arc::as_ptr) != followed.map(Arc::as_ptr) {
            self.following = to_follow.map(|resolver| {
                let resolver = resolver.clone();
                Task(spawn_local(async move { resolver.follow_files().await }).abort_handle())
            });
        }
        self.resolver = resolver;
        let mut before = std::mem::take(&mut self.running);
        let mut new = Vec::new();
        for upstream in upstreams {
            let same = |running: &Running| Arc::ptr_eq(&running.upstream, &upstream);
            if let Some(place) = before.iter().position(same) {
                self.running.push(before.swap_remove(place));
                continue;
            }
            // Two must not keep one.
            before.retain(|running| running.upstream.name != upstream.name);
            upstream.take_up();
            let tasks = self.keep(&upstream);
            new.push(upstream.changes());
            self.running.push(Running {
                upstream,
                family,
                _tasks: tasks,
            });
        }
        // Those that are gone with their names: their sessions leave addresses that no other upstream has, as the workers tell them.
        let in_use: HashSet<SocketAddr> = self
            .running
            .iter()
            .flat_map(|running| running.upstream.standing().members)
            .map(|(member, _)| member.address.at)
            .collect();
        for gone in &before {
            gone.upstream.leave(&in_use);
        }
        New(new)
    }

    /// The tasks of an upstream: its roster, its health checks, each name in it.
    fn keep(&self, upstream: &Arc<Upstream>) -> Vec<Task> {
        let kept = upstream.clone();
        let probes = self.probes.clone();
        let mut tasks = vec![
            spawn_local(async move { kept.keep().await }),
            spawn_local(health::keep_asking(upstream.clone(), probes)),
        ];
        for (index, target) in upstream.settings.targets.iter().enumerate() {
            let (Host::Name(name), Some((_, resolver))) = (&target.host, &self.resolver) else {
                continue;
            };
            let named = Named {
                upstream: upstream.clone(),
                index,
                name: name.clone(),
                port: target.port,
                own: self.own.subscribe(),
                resolver: resolver.clone(),
            };
            tasks.push(spawn_local(named.keep_fresh()));
        }
        tasks
            .into_iter()
            .map(|task| Task(task.abort_handle()))
            .collect()
    }
}
