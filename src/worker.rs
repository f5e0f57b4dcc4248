//! A data worker: one thread, one single-threaded runtime, its own share of every listener, its own engine.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::TcpListener as StdListener;
use std::rc::Rc;
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio::sync::{Notify, Semaphore, mpsc, watch};
use tokio::task::LocalSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::account::{Books, CloseReason};
use crate::config::Config;
use crate::drain::Phase;
use crate::listener::{accept_loop, receive_loop};
use crate::relay::engine::{self, Engine};
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
    /// No runtime or no epoll instance: descriptors, memory.
    #[error("a worker cannot start: {0}")]
    Start(#[from] io::Error),
    /// A fault of ours.
    #[error("a worker's engine ended: {0}")]
    Engine(tokio::task::JoinError),
}

impl Worker {
    /// Serves until the phase is [`Phase::Over`], or [`Phase::Finishing`] and nothing is open any more. Calls `started` once it
    /// accepts.
    ///
    /// # Errors
    /// See [`WorkerError`].
    pub fn run(self, started: impl FnOnce()) -> Result<(), WorkerError> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        LocalSet::new().block_on(&runtime, self.serve(started))
    }

    async fn serve(mut self, started: impl FnOnce()) -> Result<(), WorkerError> {
        let engine = Engine::new(
            self.books.clone(),
            self.index,
            self.config.relay_mode,
            self.config.drain.close,
            self.pipe_budget.clone(),
        )?;
        let engine = Rc::new(RefCell::new(engine));
        let (stop, over) = (CancellationToken::new(), CancellationToken::new());
        let (accepting, sessions) = (TaskTracker::new(), TaskTracker::new());
        let mut entrances = Vec::new();
        for (index, door) in std::mem::take(&mut self.doors).into_iter().enumerate() {
            let entrance = self.entrance(index, &door, &engine, &over);
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
        let idle = Rc::new(Notify::new());
        let mut driver = tokio::task::spawn_local(engine::run(engine.clone(), idle.clone()));
        started();
        let mut phase = self.phase.clone();
        tokio::select! {
            failed = &mut driver => return failed.map_err(WorkerError::Engine),
            _ = phase.wait_for(|phase| *phase >= Phase::Finishing) => {}
        }
        stop.cancel();
        accepting.close();
        accepting.wait().await;
        sessions.close();
        let done = async {
            sessions.wait().await;
            while engine.borrow().sessions() > 0 {
                idle.notified().await;
            }
        };
        tokio::select! {
            failed = &mut driver => return failed.map_err(WorkerError::Engine),
            () = done => {}
            _ = phase.wait_for(|phase| *phase == Phase::Over) => {}
        }
        over.cancel(); // whatever is not relaying yet ends itself
        sessions.wait().await;
        engine.borrow_mut().end_all(CloseReason::Drained);
        driver.abort();
        Ok(())
    }

    fn entrance(
        &self,
        index: usize,
        door: &Door,
        engine: &Rc<RefCell<Engine>>,
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
            limits: Rc::new(limits),
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
