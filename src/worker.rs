//! A data worker: its own share of every listener, and two threads. One has a single-threaded runtime and takes a connection from accept
//! to connect; the other is the engine, which relays. The kernel shares a core between them, so neither has to yield to the other.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::TcpListener as StdListener;
use std::rc::Rc;
use std::sync::Arc;
use std::thread;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use tokio::net::TcpListener;
use tokio::sync::oneshot::error::RecvError;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::task::LocalSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::warn;

use crate::account::{Books, CloseReason};
use crate::config::Config;
use crate::drain::Phase;
use crate::listener::{accept_loop, receive_loop};
use crate::relay::engine::{Engine, Intake};
use crate::relay::pipes::Budget;
use crate::session::Entrance;
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
    /// The configuration.
    pub config: Arc<Config>,
    /// The books of the process.
    pub books: Arc<Books>,
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
    /// What the others pass on to it.
    pub passed: mpsc::Receiver<Passed>,
    /// How far the process is on its way out.
    pub phase: watch::Receiver<Phase>,
}

/// A worker's share of a listener.
#[derive(Debug)]
pub struct Door {
    /// One socket per address.
    pub sockets: Vec<StdListener>,
    /// `max_pending`, shared.
    pub pending: Arc<Semaphore>,
    /// `max_sessions`, shared.
    pub sessions: Arc<Semaphore>,
}

/// Why a worker ended before its time.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// No runtime, no thread or no epoll instance: descriptors, memory.
    #[error("a worker cannot start: {0}")]
    Start(#[from] io::Error),
    /// The engine's wait failed.
    #[error("a worker's engine ended: {0}")]
    Engine(io::Error),
    /// A fault of ours.
    #[error("a worker's engine panicked; the message is above")]
    EnginePanicked,
}

/// How the engine's thread ended; nothing when it panicked.
type EngineEnd = oneshot::Receiver<io::Result<()>>;

impl Worker {
    /// Serves until the phase is [`Phase::Over`], or [`Phase::Finishing`] and nothing is open any more. Calls `started` once it
    /// accepts.
    ///
    /// # Errors
    /// See [`WorkerError`].
    pub fn run(self, started: impl FnOnce()) -> Result<(), WorkerError> {
        if self.config.relay.pin {
            pin_to_core(self.index);
        }
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        LocalSet::new().block_on(&runtime, self.serve(started))
    }

    async fn serve(mut self, started: impl FnOnce()) -> Result<(), WorkerError> {
        let (intake, mut engine_end) = self.start_engine()?;
        let intake = Rc::new(intake);
        let (stop, over) = (CancellationToken::new(), CancellationToken::new());
        let (accepting, sessions) = (TaskTracker::new(), TaskTracker::new());
        let mut entrances = Vec::new();
        for (index, door) in std::mem::take(&mut self.doors).into_iter().enumerate() {
            let entrance = self.entrance(index, &door, &intake, &over);
            entrances.push(entrance.clone());
            for socket in door.sockets {
                let listener = TcpListener::from_std(socket)?;
                accepting.spawn_local(accept_loop(
                    listener,
                    entrance.clone(),
                    sessions.clone(),
                    stop.clone(),
                ));
            }
        }
        accepting.spawn_local(receive_loop(
            self.passed,
            entrances,
            sessions.clone(),
            stop.clone(),
        ));
        started();
        let mut phase = self.phase.clone();
        tokio::select! {
            end = &mut engine_end => return early(end),
            _ = phase.wait_for(|phase| *phase >= Phase::Finishing) => {}
        }
        stop.cancel();
        accepting.close();
        accepting.wait().await;
        sessions.close();
        let done = async {
            sessions.wait().await;
            intake.emptied().await;
        };
        tokio::select! {
            end = &mut engine_end => return early(end),
            () = done => {}
            _ = phase.wait_for(|phase| *phase == Phase::Over) => {}
        }
        over.cancel(); // whatever is not relaying yet ends itself
        sessions.wait().await;
        intake.end(CloseReason::Drained);
        early(engine_end.await)
    }

    /// Starts the engine's thread, on the same core where that is asked for.
    fn start_engine(&self) -> io::Result<(Intake, EngineEnd)> {
        let (engine, intake) = Engine::new(
            self.books.clone(),
            self.index,
            self.config.relay,
            self.config.drain.close,
            self.pipe_budget.clone(),
        )?;
        let (ended, engine_end) = oneshot::channel();
        thread::Builder::new()
            .name(format!("relay-{}", self.index)) // inherits the affinity
            .spawn(move || drop(ended.send(engine.run())))?;
        Ok((intake, engine_end))
    }

    fn entrance(
        &self,
        index: usize,
        door: &Door,
        engine: &Rc<Intake>,
        over: &CancellationToken,
    ) -> Rc<Entrance> {
        let settings = self.config.listeners[index].clone();
        let upstream = &self.upstreams[settings.upstream];
        let limits = self
            .config
            .session_limits(&settings, &self.config.upstreams[settings.upstream]);
        Rc::new(Entrance {
            index,
            worker: self.index,
            limits: Arc::new(limits),
            upstream: upstream.name.clone(),
            dialer: Rc::new(Dialer::new(upstream.clone(), self.index)),
            books: self.books.clone(),
            engine: engine.clone(),
            waiting: Rc::new(WaitingRoom::new(door.pending.clone())),
            spread: self.spread.clone(),
            descriptors: self.descriptors.clone(),
            running: Cell::new(false),
            places: door.sessions.clone(),
            phase: self.phase.clone(),
            over: over.clone(),
            accounts: RefCell::default(),
            refusal_log: LogLimiter::default(),
            accept_log: LogLimiter::default(),
            settings,
        })
    }
}

/// What the engine's end means for the worker.
fn early(end: Result<io::Result<()>, RecvError>) -> Result<(), WorkerError> {
    end.map_err(|_| WorkerError::EnginePanicked)?
        .map_err(WorkerError::Engine)
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
