//! The control thread: binds, starts the workers, resolves names, answers the admin port, hears signals and ends it all.

mod books;
mod conduct;
mod ports;

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::{LocalSet, spawn_local};
use tokio::time::Instant;
use tracing::{error, info, warn};

use crate::account::audit::Scribe;
use crate::admin::health::Readiness;
use crate::admin::{Booking, Room, Top, View};
use crate::config::{Config, Host};
use crate::drain::Stand;
use crate::leg::{self, Refused};
use crate::listener::{bind, claim};
use crate::orders::Orders;
use crate::places::Places;
use crate::policy::Policy;
use crate::pulse::Pulse;
use crate::relay::pipes::Budget;
use crate::spread::Spread;
use crate::sys::pipe::user_quota;
use crate::systemd;
use crate::telemetry::DroppedLines;
use crate::upstream::named::Named;
use crate::upstream::resolver::{self, ResolverError};
use crate::upstream::{Upstream, health as upstream_health, probe};
use crate::worker::{Door, Worker, WorkerError};

pub use self::books::KeepError;
use self::books::Keeping;
use self::conduct::{Census, Scene, Signals, conduct};
use self::ports::Ports;

/// Threads at once for what would keep the control thread too long: lists, the end of the trail. More waits.
const BESIDE: usize = 8;

/// How long such a thread stays when it has nothing to do. A relay that nobody asks has none.
const LINGER: Duration = Duration::from_millis(100);

/// Why the relay does not run, or ran no longer.
#[derive(Debug, thiserror::Error)]
pub enum SupervisorError {
    /// An address cannot be listened on.
    #[error("cannot listen on {address} ({what}): {error}")]
    Bind {
        /// Which address.
        address: SocketAddr,
        /// What for.
        what: String,
        /// Why not.
        error: io::Error,
    },
    /// The admin socket cannot be had.
    #[error("admin socket {path}: {error}", path = path.display())]
    AdminSocket {
        /// Where it was to be.
        path: PathBuf,
        /// Why not.
        error: io::Error,
    },
    /// The kernel refuses what a leg's sockets are to be told.
    #[error("{whose}, key socket: {refused}")]
    Socket {
        /// Which listener or upstream.
        whose: String,
        /// What, why, and what to do.
        refused: Refused,
    },
    /// No runtime, no signal handler, no thread.
    #[error("cannot start: {0}")]
    Start(#[from] io::Error),
    /// No way to resolve names.
    #[error(transparent)]
    Resolver(#[from] ResolverError),
    /// The books cannot be kept.
    #[error(transparent)]
    Books(#[from] KeepError),
    /// A worker failed. The process cannot go on with a share of its listeners dead.
    #[error(transparent)]
    Worker(#[from] WorkerError),
    /// A worker does not end.
    #[error("a worker has not ended {after:.1?} after it was told to; please report")]
    Stuck {
        /// How long it had.
        after: Duration,
    },
    /// A worker panicked.
    #[error("a worker panicked; the message is above")]
    Panicked,
}

/// Runs the relay until it is told to end and has ended.
///
/// # Errors
/// See [`SupervisorError`].
pub fn run(mut config: Config, dropped_lines: DroppedLines) -> Result<(), SupervisorError> {
    settle_sockets(&mut config)?;
    let open_files = raise_descriptor_limit();
    fit_ahead(&mut config, open_files);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(BESIDE)
        .thread_keep_alive(LINGER)
        .build()?;
    LocalSet::new().block_on(
        &runtime,
        supervise(Arc::new(config), open_files, dropped_lines),
    )
}

/// Connections dialled ahead get a quarter of the descriptors at most, over all workers and upstreams: they must not take what sessions, the
/// admin port and the health checks need.
fn fit_ahead(config: &mut Config, open_files: Option<u64>) {
    let workers = config.workers.get();
    let ahead = || {
        config
            .upstreams
            .iter()
            .filter_map(|upstream| upstream.ahead)
    };
    let wanted: usize = ahead().map(|ahead| ahead.max * workers).sum();
    let pools = ahead().count().max(1) * workers;
    let most = open_files.map_or(usize::MAX, |files| {
        usize::try_from(files / 4).unwrap_or(usize::MAX)
    });
    if wanted <= most {
        return;
    }
    let each = most / pools;
    warn!(
        ?open_files,
        wanted,
        each,
        "too few descriptors for what is to be dialled ahead; each worker keeps fewer for each upstream: raise LimitNOFILE, or lower ahead.max"
    );
    for ahead in config
        .upstreams
        .iter_mut()
        .filter_map(|upstream| upstream.ahead.as_mut())
    {
        ahead.max = ahead.max.min(each);
        ahead.min = ahead.min.min(ahead.max);
    }
}

/// Tries what each leg's sockets are to be told, drops what was only wished for, and says once what this machine does not give.
fn settle_sockets(config: &mut Config) -> Result<(), SupervisorError> {
    let listeners = config.listeners.iter_mut();
    let listeners = listeners.map(|listener| ("listener", &listener.name, &mut listener.socket));
    let upstreams = config.upstreams.iter_mut();
    let upstreams = upstreams.map(|upstream| ("upstream", &upstream.name, &mut upstream.socket));
    let mut said = BTreeMap::<String, Vec<String>>::new();
    for (what, name, options) in listeners.chain(upstreams) {
        let whose = format!("{what} {name:?}");
        let settled = leg::settle(options).map_err(|refused| SupervisorError::Socket {
            whose: whose.clone(),
            refused,
        })?;
        for finding in leg::findings(options) {
            said.entry(finding).or_default().push(whose.clone());
        }
        *options = settled;
    }
    for (finding, legs) in said {
        warn!(of = legs.join(", "), "{finding}");
    }
    Ok(())
}

async fn supervise(
    config: Arc<Config>,
    open_files: Option<u64>,
    dropped_lines: DroppedLines,
) -> Result<(), SupervisorError> {
    let mut signals = Signals::new()?; // from here on a signal is an orderly end
    // Books first: who has no right to this state directory takes nothing else.
    let (keeping, scribes) = Keeping::begin(&config).await?;
    let ended = relay(
        &config,
        &keeping,
        scribes,
        open_files,
        dropped_lines,
        &mut signals,
    )
    .await;
    match &ended {
        // Other workers still count: their counters are booked by the next process, their sessions closed as crashed.
        Err(
            SupervisorError::Worker(_) | SupervisorError::Panicked | SupervisorError::Stuck { .. },
        ) => {}
        _ => systemd::with_more_time(keeping.end()).await,
    }
    if ended.is_ok() {
        info!("ended");
    }
    ended
}

/// Starts everything that serves, and sees it through to its end.
async fn relay(
    config: &Arc<Config>,
    keeping: &Keeping,
    scribes: Vec<Scribe>,
    open_files: Option<u64>,
    dropped_lines: DroppedLines,
    signals: &mut Signals,
) -> Result<(), SupervisorError> {
    // Listeners last: a connection must not be taken by a process that then finds it cannot start.
    let ports = Ports::bind(config)?;
    let (upstreams, dns_queries) = start_upstreams(config)?;
    let (mut rooms, doors) = open_doors(config)?;
    let books = &keeping.books;
    let workers = config.workers.get();
    let consumers = Arc::new(config.consumers.clone());
    let policy = Arc::new(Policy::new(config));
    let (stand_sender, stand) = watch::channel(Stand::serving(Instant::now().into_std()));
    let needed = config.fail_without.iter();
    let readiness = Readiness {
        stand,
        needed: needed.map(|index| upstreams[*index].clone()).collect(),
        booking: Booking {
            ledger: keeping.ledger.clone(),
            unready_after: config.ledger.unready_after,
            trail: keeping.trail.clone(),
        },
    };
    let descriptors = Arc::new(Semaphore::new(0)); // none before we are ready
    let ready = Arc::new(AtomicBool::new(false));
    let pipe_budget = Arc::new(Budget::of(user_quota(), workers));
    let (spread, passed) = Spread::new(workers);
    let watchdog = systemd::watchdog();
    let (pulse, hearts) = Pulse::new(workers);
    let hearts = hearts.into_iter().map(|heart| watchdog.map(|_| heart));
    let doors = doors.into_iter().zip(passed).zip(scribes).zip(hearts);
    let mut workers_said =
        start_workers(doors, |index, (((doors, passed), scribe), heart)| Worker {
            index,
            control: Handle::current(),
            config: config.clone(),
            policy: policy.clone(),
            consumers: consumers.clone(),
            books: books.clone(),
            scribe,
            upstreams: upstreams.clone(),
            doors,
            pipe_budget: pipe_budget.clone(),
            spread: spread.clone(),
            descriptors: descriptors.clone(),
            ready: ready.clone(),
            passed,
            heart,
            readiness: readiness.clone(),
        })?;
    all_started(&mut workers_said, workers).await?;
    let fit = connections_that_fit(open_files, config);
    rooms
        .iter_mut()
        .for_each(|room| room.keep_half_for_sessions(fit));
    descriptors.add_permits(fit);
    ready.store(true, Ordering::Relaxed);
    let (orders, mut given) = Orders::new();
    let (seen, all) = (rooms.clone(), spread.clone());
    let census = || {
        let pending = seen.iter().map(|room| room.pending.taken()).sum();
        Census {
            sessions: all.all_open().saturating_sub(pending),
            pending,
            listeners: seen.len(),
        }
    };
    ports.serve(View {
        orders,
        books: books.clone(),
        upstreams: upstreams.clone(),
        rooms,
        tallies: policy.tallies().clone(),
        readiness: readiness.clone(),
        spread,
        dropped_lines,
        dns_queries,
        workers,
        top: Top::new(config.max_metric_endpoints),
        endpoints: config.endpoints.clone(),
        began: Instant::now(),
    });
    if let Some(within) = watchdog {
        spawn_local(pulse.tell(within));
    }
    let words = stand_sender.borrow().words(0, config.listeners.len());
    systemd::ready(&words);
    let scene = Scene {
        drain: &|| config.drain.clone(),
        census: &census,
        stand: &stand_sender,
    };
    conduct(&scene, signals, &mut workers_said, &mut given).await
}

/// Binds every address for every worker, before any thread starts: an address in use ends the process, not a worker.
fn open_doors(config: &Config) -> Result<(Vec<Room>, Vec<Vec<Door>>), SupervisorError> {
    let mut doors: Vec<Vec<Door>> = (0..config.workers.get()).map(|_| Vec::new()).collect();
    let mut rooms = Vec::new();
    for listener in &config.listeners {
        let pending = Places::new(listener.max_pending);
        let sessions = Places::new(listener.max_sessions);
        let limits = config.client_leg(listener);
        let what = || format!("listener {:?}", &*listener.name);
        let refused = |address: SocketAddr| move |error| bind_error(address, what(), error);
        let addresses = listener
            .bind
            .iter()
            .map(|at| claim(*at).map_err(refused(*at)));
        let addresses = addresses.collect::<Result<Vec<_>, _>>()?;
        info!(listener = &*listener.name, ?addresses, "listening");
        for door in &mut doors {
            let sockets = addresses
                .iter()
                .map(|at| bind(*at, &limits, &listener.socket).map_err(refused(*at)));
            let sockets = sockets.collect::<Result<_, _>>()?;
            door.push(Door {
                sockets,
                pending: pending.clone(),
                sessions: sessions.clone(),
            });
        }
        rooms.push(Room {
            addresses,
            pending,
            sessions,
        });
    }
    Ok((rooms, doors))
}

fn bind_error(address: SocketAddr, what: String, error: io::Error) -> SupervisorError {
    SupervisorError::Bind {
        address,
        what,
        error,
    }
}

/// Takes the descriptors that may be taken, and says how many that are; `None`: without bound.
fn raise_descriptor_limit() -> Option<u64> {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum,
        Err(_) => limit.current,
    }
}

/// Connections that there are descriptors for, two each, beside what is open now, connections dialled ahead, and some for pipes, names, admin and health.
fn connections_that_fit(open_files: Option<u64>, config: &Config) -> usize {
    let Some(open_files) = open_files else {
        return Semaphore::MAX_PERMITS;
    };
    let open_now = std::fs::read_dir("/proc/self/fd").map_or(64, |files| files.count() as u64);
    let ahead = config
        .upstreams
        .iter()
        .filter_map(|upstream| upstream.ahead);
    let ahead: usize = ahead.map(|ahead| ahead.max * config.workers.get()).sum();
    let kept_free = 16 + (open_files / 16).min(1024) + ahead as u64;
    let fit = (open_files.saturating_sub(open_now + kept_free) / 2).max(1);
    let allowed: u64 = config
        .listeners
        .iter()
        .map(|listener| listener.max_sessions as u64)
        .sum();
    if fit < allowed {
        info!(
            open_files,
            "descriptors for {fit} connections, max_sessions allows {allowed}: raise LimitNOFILE if that many may come"
        );
    }
    usize::try_from(fit)
        .unwrap_or(usize::MAX)
        .min(Semaphore::MAX_PERMITS)
}

/// Every upstream, with a task for each name in it, and the number of questions they asked. Without a name there is no resolver, and nothing
/// to be set up for one.
fn start_upstreams(
    config: &Config,
) -> Result<(Vec<Arc<Upstream>>, Arc<AtomicU64>), SupervisorError> {
    let own = config.listeners.iter().flat_map(|listener| &listener.bind);
    let own: Arc<[SocketAddr]> = own.copied().collect();
    let mut resolver: Option<Arc<_>> = None;
    let mut upstreams = Vec::new();
    let places = Arc::new(Semaphore::new(probe::AT_ONCE));
    for (place, settings) in config.upstreams.iter().enumerate() {
        let upstream = Arc::new(Upstream::new(place, settings, config.resolver.family));
        let kept = upstream.clone();
        spawn_local(async move { kept.keep().await });
        spawn_local(upstream_health::keep_asking(
            upstream.clone(),
            places.clone(),
        ));
        for (index, target) in settings.targets.iter().enumerate() {
            let Host::Name(name) = &target.host else {
                continue;
            };
            let resolver = match &resolver {
                Some(resolver) => Arc::clone(resolver),
                None => resolver
                    .insert(resolver::resolver(&config.resolver)?)
                    .clone(),
            };
            let named = Named {
                upstream: upstream.clone(),
                index,
                name: name.clone(),
                port: target.port,
                own: own.clone(),
                resolver,
            };
            spawn_local(named.keep_fresh());
        }
        upstreams.push(upstream);
    }
    let queries = resolver.as_ref().map(|resolver| resolver.queries());
    if let Some(resolver) = resolver {
        spawn_local(resolver.follow_files());
    }
    Ok((upstreams, queries.unwrap_or_default()))
}

/// What a worker's thread reports.
enum Said {
    /// It accepts.
    Started,
    /// It has ended.
    Ended(Result<(), SupervisorError>),
}

/// Waits until every worker accepts: before that nobody is told that we are ready.
async fn all_started(
    said: &mut mpsc::UnboundedReceiver<Said>,
    workers: usize,
) -> Result<(), SupervisorError> {
    for _ in 0..workers {
        if let Some(Said::Ended(Err(error))) = said.recv().await {
            return Err(error);
        }
    }
    Ok(())
}

/// Starts one thread per worker; each reports when it accepts and how it ended.
fn start_workers<T>(
    shares: impl Iterator<Item = T>,
    worker: impl Fn(usize, T) -> Worker,
) -> Result<mpsc::UnboundedReceiver<Said>, SupervisorError> {
    let (sender, said) = mpsc::unbounded_channel(); // two messages per worker, never more
    for (index, share) in shares.enumerate() {
        let worker = worker(index, share);
        let (started, ended) = (sender.clone(), sender.clone());
        let work = move || {
            let started = move || drop(started.send(Said::Started));
            let run = std::panic::AssertUnwindSafe(|| worker.run(started));
            let result = match std::panic::catch_unwind(run) {
                Ok(result) => result.map_err(SupervisorError::Worker),
                Err(_) => Err(SupervisorError::Panicked),
            };
            if let Err(error) = &result {
                error!(worker = index, %error, "a worker failed");
            }
            // Nobody listens any more once the process is ending.
            let _ = ended.send(Said::Ended(result));
        };
        thread::Builder::new()
            .name(format!("worker-{index}"))
            .spawn(work)?;
    }
    Ok(said)
}
