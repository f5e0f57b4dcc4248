//! What the control thread does while workers serve: it hears signals and orders, and moves through the phases to the end.

use std::io;
use std::time::{Duration, Instant};

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::spawn_local;
use tokio::time::sleep_until;
use tracing::{info, warn};

use super::SupervisorError;
use super::reload::Reloader;
use super::workers::Said;
use crate::config::{Drain, duration_text};
use crate::drain::{Ending, Moment, Phase, SILENT, Signal, Stand};
use crate::orders::{Answer, Declined, DeclinedKind, Given, Order};
use crate::systemd::{self, Reporter};

/// How often a drain is looked at while it goes on.
const LOOK: Duration = Duration::from_millis(250);

/// How long workers may take to end once they are to: what they still do is bounded by nothing but the processor.
const LAST: Duration = Duration::from_secs(10);

/// What is open, for whoever wants to know how far a drain is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Census {
    /// Sessions, those that are still connecting included.
    pub(super) sessions: usize,
    /// Connections that have not said yet who they are.
    pub(super) pending: usize,
    /// Listeners.
    pub(super) listeners: usize,
}

/// What the control thread goes by.
pub(super) struct Scene<'a> {
    /// How long each station lasts, as it is configured now.
    pub(super) drain: &'a dyn Fn() -> Drain,
    /// What is open now.
    pub(super) census: &'a dyn Fn() -> Census,
    /// Where everybody else sees at which station the process is.
    pub(super) stand: &'a watch::Sender<Stand>,
}

/// Hears signals and orders and moves through the phases until every worker has ended.
pub(super) async fn conduct(
    scene: &Scene<'_>,
    signals: &mut Signals,
    workers: &mut mpsc::UnboundedReceiver<Said>,
    orders: &mut mpsc::Receiver<Given>,
    reloader: Reloader,
) -> Result<(), SupervisorError> {
    let mut reporter = Reporter::default();
    let (reloads, wanted) = mpsc::channel(WAITING);
    spawn_local(reload_when_told(reloader, wanted));
    loop {
        let stand = *scene.stand.borrow();
        let next = tokio::select! {
            told = signals.next() => match told {
                Told::End(signal) => scene.at(|at| stand.heard(signal, at)),
                Told::Reload => {
                    let (answer, _) = oneshot::channel(); // the log tells what becomes of it
                    let order = Order::Reload;
                    scene.carry_out(Given { order, answer }, stand, &reloads)
                }
            },
            Some(given) = orders.recv() => scene.carry_out(given, stand, &reloads),
            () = until(stand.next) => scene.at(|at| stand.passed(at)),
            () = look(stand.phase) => scene.look(stand, &mut reporter)?,
            said = workers.recv() => match said {
                Some(Said::Started | Said::Ended(Ok(()))) => continue,
                Some(Said::Ended(Err(error))) => return Err(error),
                None => break, // all workers have ended
            },
        };
        if next != stand {
            scene.go(next, &mut reporter);
        }
    }
    Ok(())
}

impl Scene<'_> {
    fn at<T>(&self, step: impl FnOnce(Moment<'_>) -> T) -> T {
        step(Moment {
            now: Instant::now(),
            drain: &(self.drain)(),
            sessions: (self.census)().sessions,
        })
    }

    /// Makes a station the one that the process is at.
    fn go(&self, stand: Stand, reporter: &mut Reporter) {
        let Census {
            sessions,
            listeners,
            ..
        } = (self.census)();
        let now = Instant::now();
        let next_in = stand.next.map(|at| at.saturating_duration_since(now));
        let next_in = next_in
            .map(|left| duration_text(Duration::from_secs(left.as_secs_f64().round() as u64)));
        self.stand.send_replace(stand);
        info!(
            phase = stand.phase.name(),
            ends = stand.ends,
            sessions,
            next_in,
            "drain"
        );
        reporter.moved(&stand, stand.words(sessions, listeners), now);
    }

    /// Looks how far a drain is: tells systemd, and finds its end.
    fn look(&self, stand: Stand, reporter: &mut Reporter) -> Result<Stand, SupervisorError> {
        let Census {
            sessions,
            pending,
            listeners,
        } = (self.census)();
        let now = Instant::now();
        let lasts = now.saturating_duration_since(stand.since);
        if stand.phase == Phase::Over && lasts >= LAST {
            return Err(SupervisorError::Stuck { after: lasts });
        }
        reporter.look(&stand, stand.words(sessions, listeners), now);
        let empty = sessions == 0 && (pending == 0 || lasts >= SILENT);
        Ok(match empty {
            true => self.at(|at| stand.emptied(at)),
            false => stand,
        })
    }

    /// Does what somebody orders, and says what came of it.
    fn carry_out(&self, given: Given, stand: Stand, reloads: &Reloads) -> Stand {
        let done = match given.order {
            Order::Drain { now } => self.at(|at| stand.drain(now, at)).map_err(ending),
            Order::Undrain => stand.undrain(Instant::now()).map_err(ending),
            Order::Reload if stand.ends => Err(ending(Ending)),
            Order::Reload => {
                if let Err(error) = reloads.try_send(given.answer) {
                    warn!("too many reloads wait already");
                    let _ = error.into_inner().send(Err(Declined {
                        kind: DeclinedKind::Failed,
                        why: "too many reloads wait already; try again".to_owned(),
                    }));
                }
                return stand;
            }
        };
        let next = *done.as_ref().unwrap_or(&stand);
        let answer: Answer = done.map(|next| next.report((self.census)().sessions));
        // Whoever asked may have gone.
        let _ = given.answer.send(answer);
        next
    }
}

/// Reloads that wait at most. Each reads the file when its turn comes.
const WAITING: usize = 16;

/// Where reloads are asked for, each with where its answer goes.
type Reloads = mpsc::Sender<oneshot::Sender<Answer>>;

/// Reloads, one after the other: signals are heard meanwhile.
async fn reload_when_told(
    mut reloader: Reloader,
    mut wanted: mpsc::Receiver<oneshot::Sender<Answer>>,
) {
    while let Some(answer) = wanted.recv().await {
        systemd::reloading();
        let reloaded = reloader.reload().await;
        match reloader.words() {
            Some(words) => systemd::ready(&words),
            None => systemd::reloaded(), // what it says of the drain stays
        }
        // Whoever asked may have gone.
        let _ = answer.send(reloaded);
    }
}

fn ending(_: Ending) -> Declined {
    Declined {
        kind: DeclinedKind::NotNow,
        why: "this relay was told to end, and no order changes that".to_owned(),
    }
}

async fn until(next: Option<Instant>) {
    match next {
        Some(at) => sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

/// Until a drain is to be looked at; never where none goes on.
async fn look(phase: Phase) {
    match phase {
        Phase::Serving | Phase::Drained => std::future::pending().await,
        Phase::Leaving | Phase::Finishing | Phase::Over => tokio::time::sleep(LOOK).await,
    }
}

/// What a signal says.
enum Told {
    End(Signal),
    /// SIGHUP.
    Reload,
}

/// The signals that the process listens to.
pub(super) struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
    hangup: tokio::signal::unix::Signal,
}

impl Signals {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> Told {
        tokio::select! {
            _ = self.terminate.recv() => Told::End(Signal::Terminate),
            _ = self.interrupt.recv() => Told::End(Signal::Interrupt),
            _ = self.hangup.recv() => Told::Reload,
        }
    }
}
