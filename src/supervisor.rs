//! The control thread: binds, starts the workers, resolves names, answers the admin port, hears signals and ends it all.

mod books;
mod conduct;
mod doors;
mod ports;
mod reload;
mod upstreams;
mod workers;

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, watch};
use tokio::task::{LocalSet, spawn_local};
use tokio::time::Instant;
use tracing::{info, warn};

use crate::account::audit::Scribe;
use crate::activation::Passed;
use crate::admin::health::Readiness;
use crate::admin::{Booking, Configured, Top, View};
use crate::config::Config;
use crate::drain::Stand;
use crate::leg::{self, Refused};
use crate::orders::Orders;
use crate::policy::Policy;
use crate::pulse::Pulse;
use crate::relay::pipes::Budget;
use crate::spread::Spread;
use crate::sys::pipe::user_quota;
use crate::systemd;
use crate::telemetry::Running;
use crate::upstream::resolver::ResolverError;
use crate::worker::{Common, Worker, WorkerError};

pub use self::books::KeepError;
use self::books::Keeping;
use self::conduct::{Census, Scene, Signals, conduct};
use self::doors::Doors;
use self::ports::Ports;
use self::reload::{Published, Reloader, needed, shares};
use self::upstreams::Upstreams;
use self::workers::{Workers, all_started, start_workers};

/// Threads at once for what would keep the control thread too long: lists, the end of the trail. More waits.
const BESIDE: usize = 8;

/// How long such a thread stays when it has nothing to do. A relay that nobody asks has none.
const LINGER: Duration = Duration::from_millis(100);

/// Where the configuration comes from.
#[derive(Debug, Clone)]
pub struct Source {
    /// The file, which a reload reads again; `None`: the command line.
    pub path: Option<PathBuf>,
    /// What was read there.
    pub text: Arc<str>,
}

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

/// Runs the relay until it is told to end and has ended. `passed`: sockets that it need not open itself.
///
/// # Errors
/// See [`SupervisorError`].
pub fn run(
    mut config: Config,
    source: Source,
    passed: Passed,
    log: &Running,
) -> Result<(), SupervisorError> {
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
        supervise(Arc::new(config), source, passed, open_files, log),
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
    source: Source,
    passed: Passed,
    open_files: Option<u64>,
    log: &Running,
) -> Result<(), SupervisorError> {
    let mut signals = Signals::new()?; // from here on a signal is an orderly end
    // Books first: who has no right to this state directory takes nothing else.
    let (keeping, scribes) = Keeping::begin(&config).await?;
    let ended = relay(
        &config,
        &keeping,
        scribes,
        (source, passed, open_files, log),
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
    (source, mut passed, open_files, log): (Source, Passed, Option<u64>, &Running),
    signals: &mut Signals,
) -> Result<(), SupervisorError> {
    // Listeners last: a connection must not be taken by a process that then finds it cannot start.
    let ports = Ports::bind(config)?;
    let workers = config.workers.get();
    let (mut upstreams, mut doors) = (Upstreams::new(), Doors::new(workers));
    let planned = upstreams.plan(config)?;
    let upstreams_now = planned.upstreams.clone();
    upstreams.adopt(planned);
    let mut planned = doors.plan(config, &mut passed)?;
    passed.close_rest();
    let policy = Arc::new(Policy::new(config));
    let doors_now = std::mem::take(&mut planned.doors);
    let shares = shares(config, doors_now, &upstreams_now, &policy);
    doors.adopt(planned);
    let books = &keeping.books;
    let (stand_sender, stand) = watch::channel(Stand::serving(Instant::now().into_std()));
    let (needed_sender, needed) = watch::channel(needed(config, &upstreams_now));
    let readiness = Readiness {
        stand,
        needed,
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
    let (swapping, swaps) = Workers::new(workers);
    let common = |index| Common {
        index,
        books: books.clone(),
        spread: spread.clone(),
        descriptors: descriptors.clone(),
        ready: ready.clone(),
        readiness: readiness.clone(),
    };
    let watchdog = systemd::watchdog();
    let (pulse, hearts) = Pulse::new(workers);
    let hearts = hearts.into_iter().map(|heart| watchdog.map(|_| heart));
    let hands = shares.into_iter().zip(scribes).zip(hearts);
    let hands = hands.zip(swaps).zip(passed).enumerate();
    let hired = hands.map(
        |(index, ((((share, scribe), heart), swaps), passed))| Worker {
            common: common(index),
            control: Handle::current(),
            scribe,
            share,
            swaps,
            pipe_budget: pipe_budget.clone(),
            passed,
            heart,
            readiness: readiness.clone(),
        },
    );
    let mut workers_said = start_workers(hired)?;
    all_started(&mut workers_said, workers).await?;
    let fit = connections_that_fit(open_files, config);
    doors.set_fit(fit);
    descriptors.add_permits(fit);
    ready.store(true, Ordering::Relaxed);
    let Source { path, text } = source;
    let in_force = Configured {
        upstreams: upstreams_now,
        rooms: doors.rooms(),
        endpoints: config.endpoints.clone(),
        path: path.clone(),
        text,
        digest: config.digest.clone(),
        since: Timestamp::now(),
        restart: Vec::new(),
    };
    let (in_force_sender, in_force) = watch::channel(Arc::new(in_force));
    let (config_sender, config_in_force) = watch::channel(config.clone());
    let reloads = Arc::default();
    let (orders, mut given) = Orders::new();
    let (seen, all) = (in_force.clone(), spread.clone());
    let census = || {
        let seen = seen.borrow();
        let pending = seen.rooms.iter().map(|room| room.pending.taken()).sum();
        Census {
            sessions: all.all_open().saturating_sub(pending),
            pending,
            listeners: seen.rooms.len(),
        }
    };
    ports.serve(View {
        orders,
        in_force,
        reloads: Arc::clone(&reloads),
        books: books.clone(),
        tallies: policy.tallies().clone(),
        readiness: readiness.clone(),
        spread,
        dropped_lines: log.dropped(),
        dns_queries: upstreams.queries(),
        workers,
        top: Top::new(config.max_metric_endpoints),
        began: Instant::now(),
    });
    let reloader = Reloader {
        path,
        config: config.clone(),
        policy,
        open_files,
        doors,
        upstreams,
        workers: swapping,
        books: books.clone(),
        ledger: keeping.ledger.clone(),
        trail: keeping.trail.clone(),
        levels: log.levels(),
        reloads,
        stand: readiness.stand.clone(),
        published: Published {
            in_force: in_force_sender,
            needed: needed_sender,
            config: config_sender,
        },
    };
    if let Some(within) = watchdog {
        spawn_local(pulse.tell(within));
    }
    systemd::ready(&reloader.words().unwrap_or_default());
    let scene = Scene {
        drain: &|| config_in_force.borrow().drain.clone(),
        census: &census,
        stand: &stand_sender,
    };
    conduct(&scene, signals, &mut workers_said, &mut given, reloader).await
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
