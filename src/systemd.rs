//! Telling systemd how we are (sd_notify(3)). Without systemd every call does nothing.

use sd_notify::NotifyState;
use tracing::debug;

use crate::drain::Phase;

/// Every listener accepts.
pub fn ready(listeners: usize) {
    notify(&[
        NotifyState::Ready,
        NotifyState::Status(&format!("serving, {listeners} listeners")),
    ]);
}

/// The process moves on towards its end.
pub fn phase(phase: Phase) {
    notify(&[NotifyState::Stopping, NotifyState::Status(phase.name())]);
}

fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        debug!(%error, "cannot notify systemd");
    }
}
