//! What became of each connection: the agent's word beside the relay's.

use std::{collections::BTreeMap, net::SocketAddr, time::Instant};

use crate::harness::{relay::Relay, steady::Connection};

/// The table that has every closed session logged, with where it went.
pub(super) const SAY_WHERE: &str = "[log]\nlevel = \"debug\"";

/// What a client that gave up had sent is still owed to an upstream that is a black hole: this bounds for how long.
pub(super) const SOON_GIVEN_UP: &str = "[session]\nuser_timeout = \"2s\"";

/// One closed session, as a relay logged it.
#[derive(Clone, Debug)]
pub(super) struct Session {
    /// Where it went, if it got so far.
    pub(super) address: Option<SocketAddr>,
    pub(super) reason: String,
}

/// By endpoint and the client's own address.
pub(super) type Sessions = BTreeMap<(String, SocketAddr), Session>;

/// All sessions that these relays have closed, once none is open any more. A relay that is dead says what it said before.
#[track_caller]
pub(super) fn sessions<'a>(relays: impl Iterator<Item = &'a Relay>) -> Sessions {
    let mut sessions = Sessions::new();
    for relay in relays {
        if relay.is_running() {
            relay.wait_metric("tollgate_connections_active", &[], 0);
            relay.wait_until("each closed session to be logged", || {
                let closed = relay.metric("tollgate_connections_closed_total", &[]);
                relay.log_lines("session closed").len() as u64 == closed
            });
        }
        let lines = relay.log_lines("session closed");
        sessions.extend(lines.iter().map(|line| session(line)));
    }
    sessions
}

/// A line about a closed session: whose it was, and what became of it.
#[track_caller]
fn session(line: &str) -> ((String, SocketAddr), Session) {
    let value: serde_json::Value =
        serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}"));
    let fields = value.get("fields").unwrap_or(&value);
    let text = |key: &str| fields.get(key).and_then(|value| value.as_str());
    let address = |key: &str| text(key).and_then(|address| address.parse().ok());
    let endpoint = text("endpoint").expect("it says whose").to_owned();
    let session = Session {
        address: address("address"),
        reason: text("reason").expect("and why").to_owned(),
    };
    ((endpoint, address("client").expect("and who")), session)
}

/// Fails with all connections that failed, if any did.
#[track_caller]
pub(super) fn assert_none_failed(connections: &[(&'static str, Connection)]) {
    let failed = connections
        .iter()
        .filter(|(_, connection)| connection.failure.is_some());
    let failed: Vec<_> = failed.collect();
    assert!(
        failed.is_empty(),
        "{} of {} failed: {failed:#?}",
        failed.len(),
        connections.len()
    );
}

/// Connections (by endpoint) that failed, each with where it was. Checks that none of them began after `fault`, and that all others came to
/// their end in order at the relay too.
#[track_caller]
pub(super) fn lost(
    sessions: &Sessions,
    connections: &[(&'static str, Connection)],
    fault: Instant,
) -> Vec<(Connection, Option<SocketAddr>)> {
    let mut lost = Vec::new();
    for (endpoint, connection) in connections {
        let session = connection
            .local
            .and_then(|local| sessions.get(&((*endpoint).to_owned(), local)));
        if connection.failure.is_some() {
            assert!(
                connection.began < fault,
                "lost, and began {:?} after the fault: {connection:?} {session:?}",
                connection.began - fault
            );
            let address = session.and_then(|session| session.address);
            lost.push((connection.clone(), address));
        } else {
            let session = session.unwrap_or_else(|| panic!("no relay knows of {connection:?}"));
            assert_eq!(session.reason, "completed", "{connection:?} {session:?}");
        }
    }
    lost
}
