//! A data worker: one thread, its own share of every listener, its own engine, and one wait for all of it.
//!
//! From accept to connect a connection is a task; the tasks of a worker run in a tokio `LocalSet`, which the worker drives itself, so that
//! its only wait is the [`Reactor`]'s. Relaying sessions are the engine's.

use std::cell::RefCell;
use std::future::Future;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::TcpListener as StdListener;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::{JoinError, JoinHandle, LocalSet, spawn_local};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::warn;

use crate::account::audit::Scribe;
use crate::account::{Books, Cache, CloseReason};
use crate::admin::health::Readiness;
use crate::config::{self, Config, Consumers, SendProxy};
use crate::drain::{Notice, Phase, Stand};
use crate::listener::{accept_loop, receive_loop};
use crate::places::Places;
use crate::policy::Policy;
use crate::policy::admission::InForce;
use crate::pulse::Heart;
use crate::reactor::{BATCH, Reactor, Watched};
use crate::relay::engine::{Engine, Review};
use crate::relay::pipes::Budget;
use crate::route::Routes;
use crate::session::{Entrance, Way};
use crate::spread::{Passed, Spread};
use crate::telemetry::LogLimiter;
use crate::upstream::Upstream;
use crate::upstream::connect::Dialer;
use crate::waiting_room::WaitingRoom;

/// What a worker is given. Everything in it is its own or shared without locks on the data path.
#[derive(Debug)]
pub struct Worker {
    /// Its index among the workers.
    pub index: usize,
    /// The control thread's runtime.
    pub control: Handle,
    /// The configuration.
    pub config: Arc<Config>,
    /// Who may come in.
    pub policy: Arc<Policy>,
    /// Who may be behind shared endpoints.
    pub consumers: Arc<Consumers>,
    /// The books of the process.
    pub books: Arc<Books>,
    /// Its hand in the audit trail.
    pub scribe: Scribe,
    /// The upstreams, in the order of the configuration.
    pub upstreams: Vec<Arc<Upstream>>,
    /// Its sockets of each listener, in the order of the configuration, and the listener's room.
    pub doors: Vec<Door>,
    /// What all workers' pipes together may take.
    pub pipe_budget: Arc<Budget>,
    /// How many connections each worker has.
    pub spread: Arc<Spread>,
    /// Room for connections of the whole process: two descriptors each.
    pub descriptors: Arc<Semaphore>,
    /// Whether there are any yet.
    pub ready: Arc<AtomicBool>,
    /// What the others pass on to it.
    pub passed: mpsc::Receiver<Passed>,
    /// Answers for it where a watchdog wants to know that it turns.
    pub heart: Option<Heart>,
    /// How far the process is on its way out, and whether it should get traffic.
    pub readiness: Readiness,
}

/// What all sessions of a worker share.
#[derive(Debug, Clone)]
struct Gear {
    reactor: Rc<Reactor>,
    engine: Rc<RefCell<Engine>>,
    scribe: Rc<Scribe>,
    policy: Rc<InForce>,
}

/// A worker's share of a listener.
#[derive(Debug)]
pub struct Door {
    /// One socket per address.
    pub sockets: Vec<StdListener>,
    /// `max_pending`, shared.
    pub pending: Arc<Places>,
    /// `max_sessions`, shared.
    pub sessions: Arc<Places>,
}

/// Why a worker ended before its time.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// No epoll instance, or no memory for a listener in it.
    #[error("a worker cannot start: {0}")]
    Start(#[from] io::Error),
    /// The kernel refused to wait.
    #[error("a worker cannot wait for events: {0}")]
    Wait(io::Error),
    /// A fault of ours.
    #[error("a worker's task ended: {0}")]
    Task(#[from] JoinError),
}

impl Worker {
    /// Serves until the process ends: at [`Phase::Over`], or earlier when nothing is open any more. Calls `started` once it
    /// accepts.
    ///
    /// # Errors
    /// See [`WorkerError`].
    pub fn run(self, started: impl FnOnce() + 'static) -> Result<(), WorkerError> {
        if self.config.relay.pin {
            pin_to_core(self.index);
        }
        // What is not worth being written for the reactor (answers to health checks) is served by the control thread's.
        let control = self.control.clone();
        let _entered = control.enter();
        let reactor = Rc::new(Reactor::new(self.config.relay.spin)?);
        let engine = Rc::new(RefCell::new(Engine::new(
            self.books.clone(),
            self.index,
            self.config.relay,
            self.config.drain.close,
            self.pipe_budget.clone(),
        )));
        let tasks = LocalSet::new();
        let serving = tasks.spawn_local(self.serve(reactor.clone(), engine.clone(), started));
        turns(&reactor, &engine, tasks, serving)
    }

    async fn serve(
        mut self,
        reactor: Rc<Reactor>,
        engine: Rc<RefCell<Engine>>,
        started: impl FnOnce(),
    ) -> io::Result<()> {
        let (stop, notice) = (CancellationToken::new(), Rc::<Notice>::default());
        let (accepting, sessions) = (TaskTracker::new(), TaskTracker::new());
        let dialers = self.dialers(&reactor);
        for (upstream, dialer) in dialers.iter().enumerate() {
            let kept = dialer.clone();
            accepting.spawn_local(stop.clone().run_until_cancelled_owned(async move {
                kept.keep_ahead().await;
            }));
            let (reactor, engine) = (reactor.clone(), engine.clone());
            let reviewing = review(upstream, dialer.clone(), reactor, engine);
            accepting.spawn_local(stop.clone().run_until_cancelled_owned(reviewing));
        }
        let gear = Gear {
            reactor: reactor.clone(),
            engine: engine.clone(),
            scribe: Rc::new(std::mem::replace(&mut self.scribe, Scribe::off())),
            policy: InForce::new(self.policy.clone()),
        };
        let mut entrances = Vec::new();
        for (index, door) in std::mem::take(&mut self.doors).into_iter().enumerate() {
            let entrance = self.entrance(index, &door, &gear, &dialers, &notice);
            entrances.push(entrance.clone());
            for socket in door.sockets {
                let listener = Watched::new(&reactor, socket.into())?;
                accepting.spawn_local(accept_loop(
                    listener,
                    entrance.clone(),
                    sessions.clone(),
                    stop.clone(),
                ));
            }
        }
        if let Some(interval) = self.config.audit.interval
            && gear.scribe.is_on()
        {
            let recording = record(interval, gear.clone());
            accepting.spawn_local(stop.clone().run_until_cancelled_owned(recording));
        }
        let sweeping = sweep(entrances.clone(), reactor);
        accepting.spawn_local(stop.clone().run_until_cancelled_owned(sweeping));
        accepting.spawn_local(receive_loop(
            self.passed,
            entrances,
            sessions.clone(),
            stop.clone(),
        ));
        if let Some(heart) = self.heart.take() {
            spawn_local(heart.beat()); // to its very end
        }
        started();
        let mut stand = self.readiness.stand.clone();
        follow(&mut stand, &engine, &notice).await;
        stop.cancel();
        accepting.close();
        accepting.wait().await;
        sessions.close();
        let done = async {
            sessions.wait().await;
            let emptied = engine.borrow().emptied();
            while engine.borrow().sessions() > 0 {
                emptied.notified().await;
            }
        };
        tokio::select! {
            () = done => {}
            _ = stand.wait_for(|stand| stand.phase == Phase::Over) => {}
        }
        notice.cut(); // whatever is not relaying yet ends itself
        sessions.wait().await;
        engine.borrow_mut().end_all(CloseReason::Drained);
        Ok(())
    }

    /// Its way to each upstream, in the order of the configuration.
    fn dialers(&self, reactor: &Rc<Reactor>) -> Vec<Rc<Dialer>> {
        let upstreams = self.upstreams.iter();
        let dialer = |upstream: &Arc<Upstream>| {
            // Another in each process, worker and upstream: nothing is to go in step.
            let seed = RandomState::new().hash_one(self.index);
            Rc::new(Dialer::new(reactor.clone(), upstream.clone(), seed))
        };
        upstreams.map(dialer).collect()
    }

    fn way(&self, listener: &config::Listener, upstream: usize, dialer: &Rc<Dialer>) -> Rc<Way> {
        let limits = self
            .config
            .session_limits(listener, &self.config.upstreams[upstream]);
        let upstream = &self.upstreams[upstream];
        Rc::new(Way {
            upstream: upstream.name.clone(),
            dialer: dialer.clone(),
            limits: Rc::new(limits),
            accounts: self.cache(),
        })
    }

    fn cache(&self) -> RefCell<Cache> {
        RefCell::new(Cache::new(self.books.most_accounts()))
    }

    fn entrance(
        &self,
        index: usize,
        door: &Door,
        gear: &Gear,
        dialers: &[Rc<Dialer>],
        notice: &Rc<Notice>,
    ) -> Rc<Entrance> {
        let settings = self.config.listeners[index].clone();
        let reachable = settings.reachable();
        // In the order of how much it is: nothing, addresses, everything.
        let wanted = reachable
            .iter()
            .map(|index| self.config.upstreams[*index].proxy_protocol);
        let tells = wanted.max_by_key(|send| *send as u8);
        let ways = (0..self.upstreams.len())
            .map(|upstream| {
                reachable
                    .contains(&upstream)
                    .then(|| self.way(&settings, upstream, &dialers[upstream]))
            })
            .collect();
        Rc::new(Entrance {
            index,
            worker: self.index,
            routes: Routes::new(&settings),
            tells: tells.unwrap_or(SendProxy::Off),
            relay_id: self.config.relay_id.clone(),
            consumers: self.consumers.clone(),
            turned_away: self.cache(),
            ways,
            books: self.books.clone(),
            scribe: gear.scribe.clone(),
            engine: gear.engine.clone(),
            reactor: gear.reactor.clone(),
            waiting: Rc::new(WaitingRoom::new(door.pending.clone())),
            spread: self.spread.clone(),
            descriptors: self.descriptors.clone(),
            ready: self.ready.clone(),
            policy: gear.policy.clone(),
            turnstile: self.policy.tallies().listener(&door.sessions),
            readiness: self.readiness.clone(),
            notice: notice.clone(),
            refusal_log: LogLimiter::default(),
            policy_log: LogLimiter::default(),
            accept_log: LogLimiter::default(),
            settings,
        })
    }
}

/// Does what the phases ask for as long as the process may stay, and returns when it is to end and takes nothing new any more.
async fn follow(stand: &mut watch::Receiver<Stand>, engine: &RefCell<Engine>, notice: &Notice) {
    loop {
        let now = *stand.borrow_and_update();
        {
            let mut engine = engine.borrow_mut();
            engine.begin(Instant::now());
            match now.phase {
                Phase::Serving | Phase::Leaving => engine.drain(None),
                Phase::Finishing => engine.drain(now.closing),
                Phase::Drained => engine.end_all(CloseReason::Drained),
                Phase::Over => {}
            }
        }
        let takes_nothing = now.phase >= Phase::Finishing;
        if takes_nothing && now.ends {
            return; // who waits in the accept queue is still served, unless nobody was before
        }
        notice.refuse(takes_nothing);
        if now.phase == Phase::Drained {
            notice.cut();
        }
        if stand.changed().await.is_err() {
            return; // the control thread is gone: then there is nobody left to serve for
        }
    }
}

/// How often a worker looks at its sessions' addresses where nothing changes, and asks the kernel about some.
const REVIEW: Duration = Duration::from_secs(15);

/// Sessions that the kernel is asked about at a time, per upstream: a call each.
const MEASURED: usize = 64;

/// Looks, for ever, at where the sessions on an upstream are: at once when its addresses change.
async fn review(
    upstream: usize,
    dialer: Rc<Dialer>,
    reactor: Rc<Reactor>,
    engine: Rc<RefCell<Engine>>,
) {
    let mut changes = dialer.upstream().changes();
    loop {
        let snapshot = changes.borrow_and_update().clone();
        {
            let mut engine = engine.borrow_mut();
            let chance = || dialer.chance();
            let review = Review::new(upstream, &dialer.upstream().settings, &snapshot, &chance);
            engine.begin(Instant::now());
            engine.review(&review);
            engine.measure(MEASURED);
        }
        // `changed` fails only when the upstream is gone, and the dialer has it.
        let _ = reactor
            .timeout_at(Instant::now() + REVIEW, changes.changed())
            .await;
    }
}

/// Sessions whose going on is recorded at a time: two calls each.
const RECORDED: usize = 64;

/// The pause between them: so many sessions that even 100,000 have a record each half minute, and no message waits long behind them.
const RECORDING: Duration = Duration::from_millis(20);

/// Records, for ever, how sessions go on: each once in an interval, and evenly, whenever they were opened.
async fn record(interval: Duration, gear: Gear) {
    let mut before = Instant::now();
    let mut owed = 0;
    loop {
        let places = gear.engine.borrow().places().max(RECORDED);
        let pause = interval.mul_f64(RECORDED as f64 / places as f64);
        let until = before + pause.clamp(RECORDING, Duration::from_secs(1));
        gear.reactor.sleep_until(until).await;
        let now = Instant::now();
        let mut engine = gear.engine.borrow_mut();
        let passed = now.saturating_duration_since(before).as_nanos();
        let length = interval.as_nanos().max(1);
        owed += passed * engine.places() as u128;
        let due = usize::try_from(owed / length).unwrap_or(usize::MAX);
        owed %= length;
        before = now;
        engine.begin(now);
        engine.record(due.min(RECORDED), interval / 2);
    }
}

/// Forgets, for ever, accounts that left memory.
async fn sweep(entrances: Vec<Rc<Entrance>>, reactor: Rc<Reactor>) {
    loop {
        reactor.sleep_until(Instant::now() + REVIEW).await;
        entrances.iter().for_each(|entrance| entrance.sweep());
    }
}

/// Turn after turn until `serving` has ended: tasks that were woken, then a wait, then what its events are about.
fn turns(
    reactor: &Reactor,
    engine: &RefCell<Engine>,
    tasks: LocalSet,
    serving: JoinHandle<io::Result<()>>,
) -> Result<(), WorkerError> {
    let (mut tasks, mut serving) = (pin!(tasks), pin!(serving));
    let waker = reactor.waker();
    let mut context = Context::from_waker(&waker);
    let mut events = Vec::with_capacity(BATCH);
    let mut now = Instant::now();
    loop {
        if reactor.was_woken() {
            // It is over when `serving` says so: the tasks are never all gone before.
            let _ = tasks.as_mut().poll(&mut context);
            if serving.is_finished()
                && let Poll::Ready(end) = serving.as_mut().poll(&mut context)
            {
                return Ok(end??);
            }
        }
        let (more, deadline) = (engine.borrow().has_more(), engine.borrow().deadline());
        reactor
            .wait(&mut events, more, now, deadline)
            .map_err(WorkerError::Wait)?;
        now = Instant::now();
        let mut engine = engine.borrow_mut();
        engine.begin(now);
        for event in &events {
            if let Some(token) = reactor.dispatch(event) {
                engine.event(token, event.flags);
            }
        }
        engine.go_on();
        reactor.wake_sleepers(now);
    }
}

/// Keeps the calling thread, and what it starts, on one of the cores that the process may use: the first worker on the first of them.
fn pin_to_core(worker: usize) {
    let pinned = sched_getaffinity(None).and_then(|allowed| {
        let cores: Vec<usize> = (0..CpuSet::MAX_CPU)
            .filter(|core| allowed.is_set(*core))
            .collect();
        let mut one = CpuSet::new();
        one.set(cores[worker % cores.len()]);
        sched_setaffinity(None, &one)
    });
    if let Err(error) = pinned {
        warn!(worker, %error, "cannot keep the worker on one core ([relay] pin); it goes on without");
    }
}
