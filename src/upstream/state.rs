//! What is thought of an address, and what is said when that changes.

use std::net::SocketAddr;

/// What is thought of an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum State {
    /// It serves.
    Usable,
    /// It serves, with a growing share.
    SlowStart,
    /// It is left alone for a while, because its connections failed.
    Ejected,
    /// It does not answer its health check.
    Unhealthy,
}

impl State {
    /// Whether an address in this state serves.
    #[must_use]
    pub fn serves(self) -> bool {
        matches!(self, Self::Usable | Self::SlowStart)
    }

    /// All of them.
    pub const ALL: [Self; 4] = [
        Self::Usable,
        Self::SlowStart,
        Self::Ejected,
        Self::Unhealthy,
    ];

    /// As `/status` and `/metrics` call it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Usable => "usable",
            Self::SlowStart => "slow_start",
            Self::Ejected => "ejected",
            Self::Unhealthy => "unhealthy",
        }
    }
}

/// What is to be said in the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// An address changed its state.
    Address {
        /// Which.
        at: SocketAddr,
        /// From what.
        before: State,
        /// Into what.
        state: State,
        /// For what reason.
        why: String,
    },
    /// Another group serves.
    Group {
        /// The one that did.
        from: u32,
        /// The one that does.
        to: u32,
        /// For what reason.
        why: String,
    },
    /// So little of the serving group is usable that all of it serves; or no longer.
    Panic(bool),
}
