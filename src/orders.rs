//! What a running relay is told to do through its admin socket, and what it answers.
//!
//! The admin side hands an order over and waits; the control thread ([`supervisor`](crate::supervisor)) carries orders out, one after the
//! other.

use std::time::Duration;

use serde_json::Value;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

/// Orders that wait at most; whoever comes on top of them is sent away.
const WAITING: usize = 16;

/// Longest wait for an answer: several reloads that each wait for name servers.
const PATIENCE: Duration = Duration::from_secs(60);

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Read the configuration file again, and put it into force.
    Reload,
    /// Leave the balancer, and close what is open at the deadline; the process stays. `now`: without the time in which connections are
    /// still taken.
    Drain {
        /// See there.
        now: bool,
    },
    /// Take part again.
    Undrain,
}

/// Why an order was not carried out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Declined {
    /// What kind of reason.
    pub kind: DeclinedKind,
    /// The reason, with what to do; may have several lines.
    pub why: String,
}

/// Kinds of reasons.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeclinedKind {
    /// There is no configuration file.
    Missing,
    /// The configuration is wrong.
    Configuration,
    /// The system does not permit it.
    Permission,
    /// Not in this state of the process.
    NotNow,
    /// It was tried and failed, and nothing has changed; or nobody answered.
    Failed,
}

/// What became of an order; for whoever gave it, as JSON.
pub type Answer = Result<Value, Declined>;

/// An order on its way to the control thread.
#[derive(Debug)]
pub struct Given {
    /// What is to be done.
    pub order: Order,
    /// Who waits for the answer; it may have gone.
    pub answer: oneshot::Sender<Answer>,
}

/// Hands orders over.
#[derive(Debug, Clone)]
pub struct Orders(mpsc::Sender<Given>);

impl Orders {
    /// With where they arrive.
    #[must_use]
    pub fn new() -> (Self, mpsc::Receiver<Given>) {
        let (sender, given) = mpsc::channel(WAITING);
        (Self(sender), given)
    }

    /// Gives an order and waits for what becomes of it.
    ///
    /// # Errors
    /// [`Declined`]: it was not carried out.
    pub async fn give(&self, order: Order) -> Answer {
        let failed = |why: &str| Declined {
            kind: DeclinedKind::Failed,
            why: why.to_owned(),
        };
        let (answer, answered) = oneshot::channel();
        let given = Given { order, answer };
        let sent = self.0.try_send(given);
        sent.map_err(|_| {
            failed("too many orders wait already, or the relay is ending; try again")
        })?;
        match timeout(PATIENCE, answered).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(failed("the relay ended over it")),
            Err(_) => Err(failed("the relay has not finished; look at its log")),
        }
    }
}
