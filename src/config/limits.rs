//! What endpoints, listeners and the relay as a whole may have, and what becomes of a connection beyond it.

use std::num::{NonZeroU32, NonZeroU64};
use std::time::Duration;

use super::Bound;

/// `[limits]`, which is about the whole relay. A listener has the same keys for itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Most sessions open at once.
    pub max_sessions: Option<usize>,
    /// How fast they may come.
    pub rate: Option<SessionRate>,
    /// What becomes of a connection beyond.
    pub on_limit: OnLimit,
    /// Most connections that wait at once in the whole relay, at whichever limit.
    pub max_waiting: usize,
}

/// New sessions in a second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SessionRate {
    /// `sessions_per_second`.
    pub per_second: NonZeroU32,
    /// `sessions_burst`: as many may come at once after a pause that was long enough. Default: what comes in a second.
    pub burst: NonZeroU32,
}

/// `on_limit`: what becomes of a connection for which there is no place now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnLimit {
    /// It is reset.
    Refuse,
    /// It waits, and is reset only then.
    Wait(Patience),
}

/// How long and with how many others a connection waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// `wait_for`.
    pub longest: Duration,
    /// `max_waiting`, at this limit.
    pub most: usize,
}

/// What an entry of `[endpoint]` says of what its endpoints may: each key as far as it was written there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PolicyKeys {
    /// Nobody comes through.
    pub deny: Option<bool>,
    /// What becomes of sessions that are open when a reload denies them.
    pub on_deny: Option<OnDeny>,
    /// Most sessions open at once.
    pub max_sessions: Option<Cap<usize>>,
    /// New sessions in a second.
    pub sessions_per_second: Option<Cap<NonZeroU32>>,
    /// See [`SessionRate::burst`].
    pub sessions_burst: Option<NonZeroU32>,
    /// Payload in a second, of all its sessions together, by [`Direction`](crate::account::Direction).
    pub bytes_per_second: [Option<Cap<NonZeroU64>>; 2],
    /// Longest life of a session: goes before what listener and upstream say.
    pub max_age: Option<Bound>,
    /// Longest silence of a session: goes before what listener and upstream say.
    pub idle_timeout: Option<Bound>,
    /// Whether a connection beyond `max_sessions` and `sessions_per_second` waits.
    pub on_limit: Option<Wish>,
    /// See [`Patience::longest`].
    pub wait_for: Option<Duration>,
    /// See [`Patience::most`].
    pub max_waiting: Option<usize>,
}

/// A limit that a less specific entry may set and a more specific one lift.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cap<T> {
    /// `"off"`.
    Off,
    /// So much.
    At(T),
}

impl<T> Cap<T> {
    /// The limit, where there is one.
    pub fn at(self) -> Option<T> {
        match self {
            Self::Off => None,
            Self::At(limit) => Some(limit),
        }
    }
}

/// `on_limit` as it is written; for how long and with how many others is said by other keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    /// `"refuse"`.
    Refuse,
    /// `"wait"`.
    Wait,
}

/// `on_deny`: what becomes of the sessions of an endpoint that a reload denies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnDeny {
    /// They go on; nobody else comes.
    Keep,
    /// They are closed.
    Close,
}

impl PolicyKeys {
    /// Whether nothing was written.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// What is said here, and by `less`, a less specific entry, where nothing is.
    #[must_use]
    pub fn or(self, less: &Self) -> Self {
        let [to_upstream, to_client] = self.bytes_per_second;
        Self {
            deny: self.deny.or(less.deny),
            on_deny: self.on_deny.or(less.on_deny),
            max_sessions: self.max_sessions.or(less.max_sessions),
            sessions_per_second: self.sessions_per_second.or(less.sessions_per_second),
            sessions_burst: self.sessions_burst.or(less.sessions_burst),
            bytes_per_second: [
                to_upstream.or(less.bytes_per_second[0]),
                to_client.or(less.bytes_per_second[1]),
            ],
            max_age: self.max_age.or(less.max_age),
            idle_timeout: self.idle_timeout.or(less.idle_timeout),
            on_limit: self.on_limit.or(less.on_limit),
            wait_for: self.wait_for.or(less.wait_for),
            max_waiting: self.max_waiting.or(less.max_waiting),
        }
    }
}
