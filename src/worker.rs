//! A data worker: one thread, its own share of every listener, its own engine, and one wait for all of it.
//!
//! From accept to connect a connection is a task; the tasks of a worker run in a tokio `LocalSet`, which the worker drives itself, so that
//! its only wait is the [`Reactor`]'s. Relaying sessions are the engine's.

mod chores;
mod hall;

use std::cell::RefCell;
use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinError, JoinHandle, LocalSet, spawn_local};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::warn;

use crate::account::CloseReason;
use crate::account::audit::Scribe;
use crate::admin::health::Readiness;
use crate::drain::{Notice, Phase, Stand};
use crate::listener::receive_loop;
use crate::policy::admission::InForce;
use crate::pulse::Heart;
use crate::reactor::{BATCH, Reactor};
use crate::relay::engine::Engine;
use crate::relay::pipes::Budget;
use crate::spread::Passed;
use chores::{record, sweep};
use hall::Gear;
pub use hall::{Common, Door, Gate, Hall, OpenGate, Share, Swap};

/// What a worker is given. Everything in it is its own or shared without locks on the data path.
#[derive(Debug)]
pub struct Worker {
    /// What it needs for as long as it lives.
    pub common: Common,
    /// The control thread's runtime.
    pub control: Handle,
    /// Its hand in the audit trail.
    pub scribe: Scribe,
    /// What it begins with.
    pub share: Share,
    /// What follows that, whenever a configuration follows another.
    pub swaps: mpsc::Receiver<Swap>,
    /// What all workers' pipes together may take.
    pub pipe_budget: Arc<Budget>,
    /// What the others pass on to it.
    pub passed: mpsc::Receiver<Passed>,
    /// Answers for it where a watchdog wants to know that it turns.
    pub heart: Option<Heart>,
    /// How far the process is on its way out, and whether it should get traffic.
    pub readiness: Readiness,
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
        let (config, index) = (&self.share.config, self.common.index);
        if config.relay.pin {
            pin_to_core(index);
        }
        // What is not worth being written for the reactor (answers to health checks) is served by the control thread's.
        let control = self.control.clone();
        let _entered = control.enter();
        let reactor = Rc::new(Reactor::new(config.relay.spin)?);
        let engine = Rc::new(RefCell::new(Engine::new(
            self.common.books.clone(),
            index,
            config.relay,
            config.drain.close,
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
        let gear = Gear {
            reactor,
            engine: engine.clone(),
            scribe: Rc::new(std::mem::replace(&mut self.scribe, Scribe::off())),
            notice: notice.clone(),
            policy: InForce::new(self.share.policy.clone()),
        };
        if let Some(interval) = self.share.config.audit.interval
            && gear.scribe.is_on()
        {
            let recording = record(interval, gear.clone());
            accepting.spawn_local(stop.clone().run_until_cancelled_owned(recording));
        }
        let hall = Hall::new(
            self.common,
            gear,
            accepting.clone(),
            sessions.clone(),
            stop.clone(),
        );
        hall.prepare(self.share)?;
        hall.open();
        let sweeping = sweep(hall.clone());
        accepting.spawn_local(stop.clone().run_until_cancelled_owned(sweeping));
        let changing = hall.clone().change(self.swaps);
        accepting.spawn_local(stop.clone().run_until_cancelled_owned(changing));
        accepting.spawn_local(receive_loop(
            self.passed,
            hall,
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
