//! How a connection is turned away: counted, booked, recorded, and said in a line, but not in a line each.

use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::time::Instant;

use tracing::warn;

use super::{Arrival, Entrance, Whose};
use crate::account::audit::Refused;
use crate::account::{HEADER, NOBODY, Refusal};
use crate::peek::{Name, Seen};
use crate::policy::admission::TurnedAway;
use crate::proxy_protocol::header::{DIRECT, HeaderError};

impl Entrance {
    /// Resets a connection whose header is refused: dropping it does.
    pub fn refuse_header(&self, _client: impl AsFd, peer: SocketAddr, error: HeaderError) {
        self.book_refused(Whose::NOBODY, HEADER);
        self.record_refused(Whose::NOBODY, peer, error.name());
        self.count_header_error(peer, error);
    }

    pub(super) fn count_header_error(&self, peer: SocketAddr, error: HeaderError) {
        self.shard().header_errors[error as usize].add(1);
        if let Some(suppressed) = self.refusal_log.allow(Instant::now()) {
            let listener = &*self.settings.name;
            warn!(listener, %peer, error = error.name(), suppressed, "connection refused: {error}");
        }
    }

    /// Resets a connection that is turned away: dropping it does.
    pub fn refuse(&self, _client: impl AsFd, peer: SocketAddr, whose: Whose<'_>, refusal: Refusal) {
        self.shard().refused[refusal as usize].add(1);
        self.book_refused(whose, refusal as usize);
        self.record_refused(whose, peer, refusal.name());
        if let Some(suppressed) = self.refusal_log.allow(Instant::now()) {
            let listener = &*self.settings.name;
            warn!(listener, %peer, reason = refusal.name(), suppressed, "connection turned away");
        }
    }

    /// Counts and says that no route takes a connection. Dropping it resets it.
    pub(super) fn unrouted(&self, peer: SocketAddr, arrival: &Arrival, seen: Option<&Seen>) {
        self.shard().refused[Refusal::NoRoute as usize].add(1);
        let whose = self.whose(arrival, None);
        self.book_refused(whose, Refusal::NoRoute as usize);
        self.record_refused(whose, peer, Refusal::NoRoute.name());
        if let Some(suppressed) = self.refusal_log.allow(Instant::now()) {
            let (listener, reason) = (&*self.settings.name, Refusal::NoRoute.name());
            let endpoint = arrival.endpoint.as_deref().unwrap_or(DIRECT);
            let (client, outcome) = (arrival.client, seen.map(|seen| seen.outcome.name()));
            let name = seen.and_then(|seen| seen.name.as_ref()).map(Name::as_str);
            let why = match seen {
                Some(seen) if seen.outcome.refuses() => "what it says first names no host for sure",
                _ => "no route takes it, and the listener has no upstream for the rest",
            };
            warn!(listener, %peer, reason, endpoint, %client, outcome, name, suppressed, "connection turned away: {why}");
        }
    }

    /// Counts and says that a connection is not let in. Dropping it resets it.
    pub(super) fn turn_away(&self, peer: SocketAddr, whose: Whose<'_>, why: TurnedAway) {
        let reason = why.refusal.name();
        self.shard().refused[why.refusal as usize].add(1);
        self.book_refused(whose, why.refusal as usize);
        self.record_refused(whose, peer, reason);
        if let Some(suppressed) = self.policy_log.allow(Instant::now()) {
            let (listener, endpoint) = (&*self.settings.name, whose.endpoint);
            let client = whose.client.map(tracing::field::display);
            warn!(listener, %peer, reason, endpoint, client, suppressed, "connection turned away: {why}");
        }
    }

    /// Records a connection refused.
    fn record_refused(&self, whose: Whose<'_>, peer: SocketAddr, reason: &'static str) {
        self.scribe.refused(|| {
            let key = self.key(whose);
            Refused {
                listener: key.listener,
                endpoint: (whose.endpoint != NOBODY).then_some(key.endpoint),
                consumer: Some(key.consumer),
                upstream: Some(key.upstream),
                client: whose.client,
                peer,
                reason,
            }
        });
    }

    /// Books a connection refused.
    fn book_refused(&self, whose: Whose<'_>, index: usize) {
        let kept = self.kept(whose);
        if let Some(Ok(())) = kept.map(|account| account.refuse(self.worker, index)) {
            return;
        }
        let account = self.books.refuse(self.key(whose), self.worker, index);
        self.keep(whose, account);
    }
}
