//! The way from a worker's runtime into its engine, which has a thread of its own.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};

use rustix::event::{EventfdFlags, eventfd};
use tokio::sync::Notify;

use super::session::NewSession;
use crate::account::CloseReason;

/// What the engine is told.
#[derive(Debug)]
pub(super) enum Order {
    /// Take over a session.
    Relay(NewSession),
    /// End all sessions, and then yourself.
    End(CloseReason),
}

/// The worker's end: gives sessions to the engine, and knows how many it has.
#[derive(Debug)]
pub struct Intake {
    /// Bounded by the sessions there can be: each holds a permit of the process's descriptors.
    orders: Sender<Order>,
    shared: Arc<Shared>,
}

/// The engine's end.
#[derive(Debug)]
pub(super) struct Inbox {
    pub(super) orders: Receiver<Order>,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// An eventfd that the engine has in its epoll instance, edge-triggered: rung for each order, never read.
    bell: OwnedFd,
    /// Sessions given to the engine that have not ended.
    open: AtomicUsize,
    /// Told whenever there is none left.
    idle: Notify,
}

/// Both ends.
///
/// # Errors
/// No descriptor left.
pub(super) fn intake() -> io::Result<(Intake, Inbox)> {
    let (sender, orders) = channel();
    let shared = Arc::new(Shared {
        bell: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
        open: AtomicUsize::new(0),
        idle: Notify::new(),
    });
    let intake = Intake {
        orders: sender,
        shared: shared.clone(),
    };
    Ok((intake, Inbox { orders, shared }))
}

impl Intake {
    /// Gives a session to the engine, which ends it by itself. One whose engine is gone is dropped, and so reset and booked.
    pub fn relay(&self, session: NewSession) {
        self.shared.open.fetch_add(1, Ordering::Relaxed);
        match self.orders.send(Order::Relay(session)) {
            Ok(()) => self.shared.ring(),
            Err(_) => self.shared.ended(),
        }
    }

    /// Ends all sessions for `reason`, and the engine.
    pub fn end(&self, reason: CloseReason) {
        if self.orders.send(Order::End(reason)).is_ok() {
            self.shared.ring();
        }
    }

    /// Waits until the engine has no session.
    pub async fn emptied(&self) {
        while self.shared.open.load(Ordering::Acquire) > 0 {
            self.shared.idle.notified().await;
        }
    }
}

impl Inbox {
    /// What wakes the engine.
    pub(super) fn bell(&self) -> &OwnedFd {
        &self.shared.bell
    }

    /// A session has ended.
    pub(super) fn ended(&self) {
        self.shared.ended();
    }
}

impl Shared {
    /// An edge for the engine. Fails only when the counter is full, after 2^64 orders: the edge is there all the same.
    fn ring(&self) {
        let _ = rustix::io::write(&self.bell, &1_u64.to_ne_bytes());
    }

    fn ended(&self) {
        if self.open.fetch_sub(1, Ordering::Release) == 1 {
            self.idle.notify_one();
        }
    }
}
