//! What these tests have in common: sessions of several endpoints, and those that are turned away.

use std::io;

use crate::harness::{agent::Agent, origin::Manner, stream::End};
use crate::scenarios::world::{World, connected, shipped_and};

/// The endpoint that is limited.
pub(super) const NOISY: &str = "vpce-0a00000000000000a";

/// One that is not.
pub(super) const QUIET: &str = "vpce-0b00000000000000b";

/// An echo behind a relay with these tables.
#[track_caller]
pub(super) fn echo(name: &str, tables: &str) -> World {
    World::with(name, Manner::Echo, shipped_and(tables))
}

/// A session that has moved ten bytes both ways, or that it was turned away. Runs on the node.
pub(super) async fn open(endpoint: &str) -> Option<Agent> {
    let mut agent = match connected(endpoint).await {
        Ok(agent) => agent,
        Err(error) => return turned_away(&error),
    };
    match agent.exchange(10).await {
        Ok(()) => Some(agent),
        Err(error) => turned_away(&error),
    }
}

#[track_caller]
fn turned_away(error: &io::Error) -> Option<Agent> {
    // A reset is seen as one, as a pipe that is broken, or as the end of what was to come back.
    let gone = [
        io::ErrorKind::ConnectionReset,
        io::ErrorKind::BrokenPipe,
        io::ErrorKind::NotConnected,
    ];
    assert!(
        gone.contains(&error.kind()),
        "neither in nor reset: {error:?}"
    );
    None
}

/// Ends a session in order. Runs on the node.
pub(super) async fn finish(mut agent: Agent) {
    agent.finish().unwrap();
    assert_eq!(agent.expect_to_end(0).await.unwrap(), End::Fin);
}

impl World {
    /// A session of `endpoint`, if it may have one.
    #[track_caller]
    pub(super) fn try_open(&self, endpoint: &'static str) -> Option<Agent> {
        self.node.run(open(endpoint))
    }

    /// A session of `endpoint`.
    #[track_caller]
    pub(super) fn open(&self, endpoint: &'static str) -> Agent {
        let agent = self.try_open(endpoint);
        agent.unwrap_or_else(|| panic!("{endpoint} was turned away"))
    }

    /// Whether `endpoint` is turned away without a byte.
    #[track_caller]
    pub(super) fn is_turned_away(&self, endpoint: &'static str) -> bool {
        self.try_open(endpoint).is_none()
    }

    /// Ends a session, and waits until it is booked.
    #[track_caller]
    pub(super) fn end(&self, agent: Agent) {
        let closed = || {
            let metrics = self.relay.metrics();
            metrics.sum("tollgate_connections_closed_total", &[])
        };
        let before = closed();
        self.node.run(finish(agent));
        self.relay
            .wait_until("the session to be closed", || closed() > before);
    }

    /// Ends all of these, after which nothing is open.
    #[track_caller]
    pub(super) fn end_all(&self, agents: Vec<Agent>) {
        self.end_all_but(agents, 0);
    }

    /// Ends all of these, after which `open` sessions are.
    #[track_caller]
    pub(super) fn end_all_but(&self, agents: Vec<Agent>, open: u64) {
        self.node.run(async {
            for agent in agents {
                finish(agent).await;
            }
        });
        self.relay
            .wait_metric("tollgate_connections_active", &[], open);
    }

    /// How many of `endpoint` were turned away for `reason`: at the listener, as all of them together, and on its own account.
    #[track_caller]
    pub(super) fn assert_refused(&self, endpoint: &str, reason: &str, n: u64) {
        let metrics = self.relay.metrics();
        let labels = [("endpoint", endpoint), ("reason", reason)];
        let of_endpoint = metrics.sum("tollgate_endpoint_refused_total", &labels);
        let in_all = metrics.sum("tollgate_refused_total", &[("reason", reason)]);
        assert_eq!((of_endpoint, in_all), (n, n), "{endpoint}, {reason}");
    }

    /// That so many connections reached the origin, and no more.
    #[track_caller]
    pub(super) fn assert_upstream(&self, n: usize) {
        assert_eq!(
            self.origin.books().accepted,
            n as u64,
            "connections upstream"
        );
    }
}
