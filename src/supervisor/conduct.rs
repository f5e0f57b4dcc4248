//! What the control thread does while workers serve: it hears signals and orders, and moves through the phases to the end.

use std::io;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};
use tracing::info;

use super::{Said, SupervisorError};
use crate::config::Config;
use crate::drain::{Phase, Signal};
use crate::orders::{Declined, DeclinedKind, Given, Order};
use crate::systemd;

/// Waits for signals and moves through the phases until every worker has ended.
pub(super) async fn conduct(
    config: &Config,
    phase: &watch::Sender<Phase>,
    signals: &mut Signals,
    workers: &mut mpsc::UnboundedReceiver<Said>,
    orders: &mut mpsc::Receiver<Given>,
) -> Result<(), SupervisorError> {
    let mut timer: Option<(Instant, Phase)> = None;
    loop {
        let next = tokio::select! {
            signal = signals.next() => signal.leads_to(*phase.borrow()),
            Some(given) = orders.recv() => {
                carry_out(given);
                continue;
            }
            () = until(timer) => timer.map_or(Phase::Over, |(_, next)| next),
            said = workers.recv() => match said {
                Some(Said::Started | Said::Ended(Ok(()))) => continue,
                Some(Said::Ended(Err(error))) => return Err(error),
                None => break, // all workers have ended
            },
        };
        timer = next
            .then(&config.drain)
            .map(|(after, then)| (Instant::now() + after, then));
        phase.send_replace(next);
        systemd::phase(next);
        info!(phase = next.name(), accept_for = ?config.drain.accept_for, deadline = ?config.drain.deadline, "on the way out");
    }
    Ok(())
}

fn carry_out(given: Given) {
    let answer = match given.order {
        Order::Reload | Order::Drain { .. } | Order::Undrain => Err(Declined {
            kind: DeclinedKind::NotNow,
            why: "this relay cannot do that yet".to_owned(),
        }),
    };
    // Whoever asked may have gone.
    let _ = given.answer.send(answer);
}

async fn until(timer: Option<(Instant, Phase)>) {
    match timer {
        Some((at, _)) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// The signals that the process listens to.
pub(super) struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl Signals {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    async fn next(&mut self) -> Signal {
        tokio::select! {
            _ = self.terminate.recv() => Signal::Terminate,
            _ = self.interrupt.recv() => Signal::Interrupt,
        }
    }
}
