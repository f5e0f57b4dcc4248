//! Telling systemd how we are (sd_notify(3)). Without systemd every call does nothing.

use std::env;
use std::fmt::Write;
use std::future::Future;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::pin::pin;
use std::time::{Duration, Instant};

use sd_notify::NotifyState;
use tokio::time::sleep;
use tracing::debug;

use crate::drain::Stand;

/// Longest wait for systemd to take a message that is told once: it has others to look after, and we have names to resolve.
const PATIENCE: Duration = Duration::from_secs(1);

/// How often the status line changes at most, while a drain goes on.
const STATUS: Duration = Duration::from_secs(1);

/// How often more time is asked for while the process ends.
const ASKING: Duration = Duration::from_secs(5);

/// How much more each time: whoever has not asked again by then is stuck, and is killed where `TimeoutStopSec` has passed.
const MORE: Duration = Duration::from_secs(30);

/// Every listener accepts; or a new configuration is in force.
pub fn ready(status: &str) {
    notify(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// A new configuration is being put into force; [`ready`] follows, whatever comes of it.
pub fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => notify(&[NotifyState::Reloading, now]),
        Err(error) => debug!(%error, "cannot tell systemd of a reload"),
    }
}

/// A reload is over, whatever came of it, and there is nothing else to be said.
pub fn reloaded() {
    notify(&[NotifyState::Ready]);
}

/// Every worker has turned lately.
pub fn alive() {
    notify(&[NotifyState::Watchdog]);
}

/// How often systemd wants to hear [`alive`], where it does.
#[must_use]
pub fn watchdog() -> Option<Duration> {
    sd_notify::watchdog_enabled()
}

/// Waits for what is done last, which is bounded, and asks for the time that it takes.
pub async fn with_more_time<T>(last: impl Future<Output = T>) -> T {
    let mut last = pin!(last);
    loop {
        notify(&[more()]);
        tokio::select! {
            done = &mut last => return done,
            () = sleep(ASKING) => {}
        }
    }
}

fn more() -> NotifyState<'static> {
    NotifyState::ExtendTimeoutUsec(u32::try_from(MORE.as_micros()).unwrap_or(u32::MAX))
}

/// Tells how far a drain is.
#[derive(Debug, Default)]
pub struct Reporter {
    told: Option<(String, Instant)>,
    asked: Option<Instant>,
    stopping: bool,
}

impl Reporter {
    /// The process is at another station.
    pub fn moved(&mut self, stand: &Stand, status: String, now: Instant) {
        self.told = None;
        self.asked = None;
        self.look(stand, status, now);
    }

    /// Tells what has changed, not too often, and asks for more time where the process ends.
    pub fn look(&mut self, stand: &Stand, status: String, now: Instant) {
        let mut states = Vec::new();
        if stand.ends && !self.stopping {
            self.stopping = true;
            states.push(NotifyState::Stopping);
        }
        let long_ago = |at: Instant, pause| now.saturating_duration_since(at) >= pause;
        let news = match &self.told {
            Some((told, at)) => *told != status && long_ago(*at, STATUS),
            None => true,
        };
        if news {
            states.push(NotifyState::Status(&status));
        }
        if stand.ends && self.asked.is_none_or(|at| long_ago(at, ASKING)) {
            self.asked = Some(now);
            states.push(more());
        }
        if !states.is_empty() {
            notify(&states);
        }
        if news {
            self.told = Some((status, now));
        }
    }
}

fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = send(states) {
        debug!(%error, "cannot notify systemd");
    }
}

fn send(states: &[NotifyState<'_>]) -> io::Result<()> {
    let Some(path) = env::var_os("NOTIFY_SOCKET") else {
        return Ok(());
    };
    let mut message = String::new();
    for state in states {
        // Writing to a string does not fail.
        let _ = writeln!(message, "{state}");
    }
    let socket = UnixDatagram::unbound()?;
    // Whatever is told again soon is not waited for.
    let once = |state: &NotifyState<'_>| {
        use NotifyState::{Ready, Reloading, Stopping};
        matches!(state, Ready | Reloading | Stopping)
    };
    match states.iter().any(once) {
        true => socket.set_write_timeout(Some(PATIENCE))?,
        false => socket.set_nonblocking(true)?,
    }
    match path.as_bytes().strip_prefix(b"@") {
        Some(name) => socket.connect_addr(&SocketAddr::from_abstract_name(name)?)?,
        None => socket.connect(&path)?,
    }
    socket.send(message.as_bytes())?;
    Ok(())
}
