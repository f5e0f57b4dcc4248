//! The workers' threads: started, told to swap, and heard of when they end.

use std::io;
use std::thread;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use tracing::error;

use super::SupervisorError;
use crate::worker::{Share, Swap, Worker};

/// Longest wait for workers to take a step from one configuration to the next. A worker has a turn each few milliseconds.
const STEP: Duration = Duration::from_secs(10);

/// What a worker's thread reports.
pub(super) enum Said {
    /// It accepts.
    Started,
    /// It has ended.
    Ended(Result<(), SupervisorError>),
}

/// What the control thread says to its workers.
#[derive(Debug)]
pub(super) struct Workers(Vec<mpsc::Sender<Swap>>);

impl Workers {
    /// With what each of them hears.
    pub(super) fn new(workers: usize) -> (Self, Vec<mpsc::Receiver<Swap>>) {
        // A step at a time, and one that takes the last one back.
        let (senders, receivers) = (0..workers).map(|_| mpsc::channel(2)).unzip();
        (Self(senders), receivers)
    }

    /// Makes all of them ready for what follows; where one cannot, none of them changes.
    ///
    /// # Errors
    /// A worker has no memory for a socket, or does not answer.
    pub(super) async fn prepare(&self, shares: Vec<Share>) -> io::Result<()> {
        let mut answers = Vec::new();
        let mut prepared = Ok(());
        for (worker, share) in self.0.iter().zip(shares) {
            let (answer, answered) = oneshot::channel();
            match worker.try_send(Swap::Prepare(Box::new(share), answer)) {
                Ok(()) => answers.push(answered),
                Err(_) => prepared = Err(silent()),
            }
        }
        for answered in answers {
            let answer = timeout(STEP, answered).await;
            let answer = answer
                .map_err(|_| silent())
                .and_then(|answer| answer.map_err(|_| silent()));
            prepared = prepared.and(answer.and_then(|prepared| prepared));
        }
        if prepared.is_err() {
            for worker in &self.0 {
                let _ = worker.try_send(Swap::Forget);
            }
        }
        prepared
    }

    /// What they prepared is in force when this returns. Says how many sessions it closed.
    pub(super) async fn open(&self) -> usize {
        let mut answers = Vec::new();
        for (index, worker) in self.0.iter().enumerate() {
            let (answer, answered) = oneshot::channel();
            match worker.try_send(Swap::Open(answer)) {
                Ok(()) => answers.push((index, answered)),
                Err(_) => error!(worker = index, "a worker does not hear"),
            }
        }
        let mut closed = 0;
        for (index, answered) in answers {
            // It has prepared itself a moment ago; it will come to it.
            match timeout(STEP, answered).await {
                Ok(Ok(sessions)) => closed += sessions,
                Ok(Err(_)) => {} // it has ended, which others hear
                Err(_) => error!(
                    worker = index,
                    "a worker is late in taking up the configuration"
                ),
            }
        }
        closed
    }
}

fn silent() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "a worker does not answer")
}

/// Waits until every worker accepts: before that nobody is told that we are ready.
pub(super) async fn all_started(
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

/// Starts a thread for each; it reports when it accepts and how it ended.
pub(super) fn start_workers(
    workers: impl Iterator<Item = Worker>,
) -> Result<mpsc::UnboundedReceiver<Said>, SupervisorError> {
    let (sender, said) = mpsc::unbounded_channel(); // two messages per worker, never more
    for (index, worker) in workers.enumerate() {
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
