//! The words that things are counted by. Each list is closed: a metric has exactly these labels.

/// Defines an enum whose variants have a name in metrics and a place in an array of counters.
macro_rules! counted_by {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $text:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum $name { $($(#[$variant_doc])* $variant,)+ }

        impl $name {
            /// Every value, in the order of its discriminant.
            pub const ALL: [Self; [$($text),+].len()] = [$(Self::$variant),+];

            /// The name in metrics and logs.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $text,)+ }
            }
        }
    };
}

counted_by! {
    /// Which way bytes go.
    Direction {
        /// From the client to the upstream.
        ToUpstream = "to_upstream",
        /// From the upstream to the client.
        ToClient = "to_client",
    }
}

counted_by! {
    /// Why a session ended. Every session has exactly one.
    CloseReason {
        /// Both sides sent their FIN and every byte was passed on.
        Completed = "completed",
        /// The client's side was reset.
        ClientReset = "client_reset",
        /// The upstream's side was reset.
        UpstreamReset = "upstream_reset",
        /// The client stopped answering (keepalive or user timeout).
        ClientTimeout = "client_timeout",
        /// The upstream stopped answering.
        UpstreamTimeout = "upstream_timeout",
        /// No byte in either direction for `idle_timeout`.
        IdleTimeout = "idle_timeout",
        /// One side was finished and the other said nothing for `half_close_timeout`.
        HalfCloseTimeout = "half_close_timeout",
        /// Older than `max_age`.
        MaxAge = "max_age",
        /// No address of the upstream took the connection; or what was about to be sent on it came round again, a loop.
        ConnectFailed = "connect_failed",
        /// The upstream has no address.
        NoAddress = "no_address",
        /// Still open at the drain's deadline.
        Drained = "drained",
        /// Its address left the upstream's answers, and `on_vanish` does not let it stay.
        Vanished = "vanished",
        /// A fault of ours.
        Error = "error",
        /// The process that relayed it was killed.
        Crashed = "crashed",
        /// Its endpoint was denied while it was open, and `on_deny` is `close`.
        Denied = "denied",
    }
}

counted_by! {
    /// Why a connection was turned away without a session.
    Refusal {
        /// Too many connections without a whole header: the oldest silent one goes.
        Pending = "pending",
        /// No route takes it, and the listener has no upstream for the rest.
        NoRoute = "no_route",
        /// The listener has `max_sessions`.
        ListenerLimit = "listener_limit",
        /// It came when nothing new was taken any more, or had no whole header when the drain's deadline came.
        Draining = "draining",
        /// It could not be recorded, and `audit.on_full` is `block`.
        Audit = "audit",
        /// Its endpoint is denied.
        Policy = "policy",
        /// Its endpoint has `max_sessions`.
        EndpointLimit = "endpoint_limit",
        /// The relay has `[limits] max_sessions`.
        GlobalLimit = "global_limit",
        /// More than `sessions_per_second` of the endpoint, the listener or the relay.
        Rate = "rate",
    }
}

counted_by! {
    /// Whose limit it is that a connection meets.
    LimitOf {
        /// Its endpoint's.
        Endpoint = "endpoint",
        /// The listener's.
        Listener = "listener",
        /// The whole relay's.
        Relay = "relay",
    }
}

counted_by! {
    /// What became of a connection that waited at a limit.
    Wait {
        /// Its turn came.
        Admitted = "admitted",
        /// It did not come within `wait_for`, or the endpoint was denied meanwhile.
        Refused = "refused",
        /// The client went away.
        Left = "left",
    }
}

counted_by! {
    /// Errors of accept(2), by what they mean for the listener.
    AcceptError {
        /// The connection was gone before it was taken; the next one is unharmed.
        Connection = "connection",
        /// No descriptors for another connection, or no memory: accepting waits and goes on.
        Resources = "resources",
        /// Anything else: the same pause.
        Other = "other",
    }
}

counted_by! {
    /// What a record of the audit trail tells.
    Event {
        /// A session was opened: header read, way chosen, account opened.
        Open = "open",
        /// It goes on: every `audit.interval`.
        Progress = "progress",
        /// It ended.
        Close = "close",
        /// A connection was turned away.
        Refused = "refused",
        /// Another configuration is in force.
        Config = "config",
        /// A process began.
        Started = "started",
        /// It ended in order.
        Ended = "ended",
        /// Records were dropped.
        Gap = "gap",
        /// The trail goes on in another file: the last record of one and the first of the next.
        Rotated = "rotated",
    }
}

counted_by! {
    /// How bytes were moved.
    RelayPath {
        /// Through the worker's buffer.
        Copy = "copy",
        /// Through a pipe, by splice(2).
        Splice = "splice",
    }
}

counted_by! {
    /// Why a direction went back to copying.
    Fallback {
        /// No pipe could be made (descriptors).
        NoPipe = "no_pipe",
        /// The pipe stayed smaller than wanted (`fs.pipe-user-pages-soft`).
        SmallPipe = "small_pipe",
        /// All pipes this worker may have are lent.
        Exhausted = "exhausted",
        /// splice(2) itself refused.
        Splice = "splice",
    }
}

counted_by! {
    /// What the first bytes of a client told, where a route asks for a name.
    PeekOutcome {
        /// A ClientHello with a server name.
        Sni = "sni",
        /// A ClientHello with an encrypted one inside (ECH, or what a client sends that the extension may not be told from its absence): it
        /// is routed by the name on its outside.
        Ech = "ech",
        /// A ClientHello without a server name, or with an address for one.
        NoSni = "no_sni",
        /// The head of an HTTP/1 request that names its host.
        Host = "host",
        /// One that does not.
        NoHost = "no_host",
        /// Neither TLS nor HTTP/1.
        Neither = "neither",
        /// One that has two Host fields: nobody knows which of them the server takes.
        TwoHosts = "two_hosts",
        /// It begins like TLS or HTTP/1 and goes on otherwise, or its name is none.
        Malformed = "malformed",
        /// Nothing was decided within `peek_size`.
        TooLong = "too_long",
        /// Nothing was decided within `peek_timeout`.
        Timeout = "timeout",
        /// It ended before anything was decided.
        ClosedEarly = "closed_early",
    }
}

impl PeekOutcome {
    /// Whether the connection is turned away: what is not understood must not choose a route, not even the last one.
    #[must_use]
    pub const fn refuses(self) -> bool {
        match self {
            Self::Sni | Self::Ech | Self::NoSni | Self::Host | Self::NoHost | Self::Neither => {
                false
            }
            Self::TwoHosts
            | Self::Malformed
            | Self::TooLong
            | Self::Timeout
            | Self::ClosedEarly => true,
        }
    }
}
