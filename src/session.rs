//! The path of one connection, from accept to the engine.
//!
//! [`serve`] reads from top to bottom what a connection meets: a header, an account, an address, the relay. Whatever ends it
//! before the relay ends it here, with one reason; [`crate::relay::engine`] does so afterwards.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use tokio::net::TcpStream;
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::account::{Account, AccountKey, Books, CloseReason, ListenerShard, Meter, Refusal};
use crate::admin::health;
use crate::config::{self, ProxyProtocol, SessionLimits};
use crate::drain::Phase;
use crate::leg;
use crate::proxy_protocol::decode::Rules;
use crate::proxy_protocol::header::{Command, DIRECT, HeaderError};
use crate::proxy_protocol::read::{NoHeader, Pending, Received, read_header};
use crate::reactor::{Reactor, Watched};
use crate::relay::engine::{Engine, NewSession, Parties, Place};
use crate::spread::{Load, Spread};
use crate::telemetry::LogLimiter;
use crate::upstream::balance::key_of;
use crate::upstream::connect::{ConnectError, Connected, Dialer};
use crate::waiting_room::{Ticket, WaitingRoom};

/// A listener as one worker's sessions meet it.
#[derive(Debug)]
pub struct Entrance {
    /// The listener's settings.
    pub settings: config::Listener,
    /// Its index in the configuration.
    pub index: usize,
    /// The worker's index.
    pub worker: usize,
    /// The ways its connections may take, by the upstream's index in the configuration; `None` where none of its routes leads.
    pub ways: Vec<Option<Rc<Way>>>,
    /// The books of the process.
    pub books: Arc<Books>,
    /// The worker's engine.
    pub engine: Rc<RefCell<Engine>>,
    /// The worker's wait.
    pub reactor: Rc<Reactor>,
    /// Connections without a whole header.
    pub waiting: Rc<WaitingRoom>,
    /// How many connections each worker has.
    pub spread: Arc<Spread>,
    /// `max_sessions`, shared with the other workers.
    pub places: Arc<Semaphore>,
    /// Room for connections of the whole process: two descriptors each.
    pub descriptors: Arc<Semaphore>,
    /// The process is ready and connections are taken: before that there are no descriptors to be had, and none are missing.
    pub ready: Arc<AtomicBool>,
    /// How far the process is on its way out.
    pub phase: watch::Receiver<Phase>,
    /// The drain's deadline has come.
    pub over: CancellationToken,
    /// Bounds the lines that refused connections cause.
    pub refusal_log: LogLimiter,
    /// Bounds the lines that failing accepts cause.
    pub accept_log: LogLimiter,
}

/// A listener's way to one of its upstreams.
#[derive(Debug)]
pub struct Way {
    /// The upstream's name.
    pub upstream: Arc<str>,
    /// The way there.
    pub dialer: Rc<Dialer>,
    /// The bounds of its sessions.
    pub limits: Rc<SessionLimits>,
    /// Accounts this worker has seen, so that the books are not locked for each connection. Bounded as they are.
    pub accounts: RefCell<HashMap<String, Arc<Account>>>,
}

/// A client whose header is read: what the session starts from.
struct Arrival {
    endpoint: Option<String>,
    client: SocketAddr,
    payload: Vec<u8>,
}

/// Serves one accepted connection until the engine has it or it has ended.
pub async fn serve(entrance: Rc<Entrance>, mut pending: Pending, ticket: Ticket, load: Load) {
    let arrival = tokio::select! {
        arrival = arrive(&entrance, &mut pending, &ticket) => arrival,
        () = ticket.shown_out() => Err(End::Refused(Refusal::Pending)),
        () = entrance.over.cancelled() => Err(End::Refused(Refusal::Draining)),
    };
    let Pending { client, peer, .. } = pending;
    let arrival = match arrival {
        Ok(arrival) => arrival,
        Err(End::HealthCheck(sent)) => {
            entrance.shard().health_checks.add(1);
            leg::close_in_order(&client);
            let Ok(client) = tokio_stream(client) else {
                return;
            };
            return tokio::select! {
                // Boxed: it is larger than all the rest, and every connection would carry room for it.
                () = Box::pin(health::answer(client, sent, *entrance.phase.borrow())) => {}
                () = ticket.shown_out() => {}
                () = entrance.over.cancelled() => {}
            };
        }
        Err(End::Empty) => {
            leg::close_in_order(&client);
            return entrance.shard().empty.add(1);
        }
        Err(End::Header(error)) => return entrance.refuse_header(client, peer, error),
        Err(End::Refused(refusal)) => return entrance.refuse(client, peer, refusal),
    };
    let Some(way) = entrance.way() else {
        return entrance.refuse(client, peer, Refusal::NoRoute);
    };
    drop(ticket);
    let Ok(permit) = entrance.places.clone().try_acquire_owned() else {
        return entrance.refuse(client, peer, Refusal::ListenerLimit);
    };
    let account = entrance.account(way, arrival.endpoint.as_deref().unwrap_or(DIRECT));
    let meter = Meter::open(account, entrance.worker);
    let connected = tokio::select! {
        connected = connect(way, &client, &arrival) => connected.map_err(|error| match error {
            ConnectError::NoAddress => CloseReason::NoAddress,
            ConnectError::Failed => CloseReason::ConnectFailed,
            ConnectError::Reset => CloseReason::UpstreamReset,
        }),
        () = entrance.over.cancelled() => Err(CloseReason::Drained),
    };
    match connected {
        Ok(Connected { socket, hold, .. }) => {
            let parties = Parties {
                client: arrival.client,
                peer,
            };
            let place = Place { permit, load, hold };
            let sockets = (client, socket);
            relay(
                &entrance,
                way,
                sockets,
                parties,
                arrival.payload,
                meter,
                place,
            );
        }
        Err(reason) => {
            let endpoint = &**meter.endpoint();
            debug!(endpoint, client = %arrival.client, %peer, reason = reason.name(), "session closed");
            meter.close(reason);
        }
    }
}

/// Why a connection does not become a session.
enum End {
    /// The balancer asks how we are; what it sent behind the header.
    HealthCheck(Vec<u8>),
    /// It said nothing and went away.
    Empty,
    /// Its header is refused.
    Header(HeaderError),
    /// It is turned away.
    Refused(Refusal),
}

/// Reads the header, where the listener wants one.
async fn arrive(
    entrance: &Entrance,
    pending: &mut Pending,
    ticket: &Ticket,
) -> Result<Arrival, End> {
    let settings = &entrance.settings;
    if settings.proxy_protocol == ProxyProtocol::Off {
        return Ok(Arrival {
            endpoint: None,
            client: pending.peer,
            payload: Vec::new(),
        });
    }
    let rules = Rules {
        max_header: settings.max_header,
        crc: settings.crc,
    };
    let received = read_header(pending, rules, settings.header_timeout, || ticket.heard()).await;
    match received {
        Ok(Received {
            command: Command::Local,
            payload,
            ..
        }) => Err(End::HealthCheck(payload)),
        Ok(Received {
            command: Command::Proxy,
            endpoint,
            addresses,
            payload,
        }) => {
            let client =
                addresses.map_or(pending.peer, |addresses| leg::canonical(addresses.source));
            Ok(Arrival {
                endpoint,
                client,
                payload,
            })
        }
        Err(NoHeader::Empty) => Err(End::Empty),
        Err(NoHeader::Refused(error)) => Err(End::Header(error)),
    }
}

/// Connects a session to its upstream. A connection that was dialled ahead and turns out to have been given up by the upstream is replaced:
/// as long as nothing of the client was sent, nothing is lost by that.
async fn connect(
    way: &Way,
    client: &Watched,
    arrival: &Arrival,
) -> Result<Connected, ConnectError> {
    let key = match &arrival.endpoint {
        Some(endpoint) => key_of(endpoint.as_bytes()),
        None => key_of(arrival.client.ip().to_string().as_bytes()),
    };
    let connected = way.dialer.connect(key).await?;
    if connected.ahead
        && arrival.payload.is_empty()
        && way.dialer.is_given_up(&connected, client).await
    {
        return way.dialer.dial(key).await;
    }
    // Nothing was sent yet: an address that left while it was dialled gets no new session.
    if !connected.hold.address().is_present() && !way.dialer.upstream().snapshot().is_empty() {
        return way.dialer.dial(key).await;
    }
    Ok(connected)
}

/// Hands both sockets to the engine, which ends the session by itself.
fn relay(
    entrance: &Entrance,
    way: &Way,
    (client_socket, upstream_socket): (Watched, Watched),
    parties: Parties,
    first: Vec<u8>,
    meter: Meter,
    place: Place,
) {
    entrance.engine.borrow_mut().add(NewSession {
        client_socket,
        upstream_socket,
        first,
        meter,
        limits: way.limits.clone(),
        parties,
        place,
    });
}

/// A socket for what is not worth being written for our own reactor: its events come by way of the control thread's.
fn tokio_stream(socket: Watched) -> io::Result<TcpStream> {
    TcpStream::from_std(socket.take_out()?.into())
}

impl Entrance {
    /// This worker's counters of the listener.
    #[must_use]
    pub fn shard(&self) -> &ListenerShard {
        self.books.listener(self.index, self.worker)
    }

    /// Resets a connection whose header is refused: dropping it does.
    pub fn refuse_header(&self, _client: impl AsFd, peer: SocketAddr, error: HeaderError) {
        self.shard().header_errors[error as usize].add(1);
        if let Some(suppressed) = self.refusal_log.allow(Instant::now()) {
            let listener = &*self.settings.name;
            warn!(listener, %peer, error = error.name(), suppressed, "connection refused: {error}");
        }
    }

    /// Resets a connection that is turned away: dropping it does.
    pub fn refuse(&self, _client: impl AsFd, peer: SocketAddr, refusal: Refusal) {
        self.shard().refused[refusal as usize].add(1);
        if let Some(suppressed) = self.refusal_log.allow(Instant::now()) {
            let listener = &*self.settings.name;
            warn!(listener, %peer, reason = refusal.name(), suppressed, "connection turned away");
        }
    }

    /// Where a connection goes.
    fn way(&self) -> Option<&Rc<Way>> {
        self.ways[self.settings.upstream?].as_ref()
    }

    fn account(&self, way: &Way, endpoint: &str) -> Arc<Account> {
        if let Some(account) = way.accounts.borrow().get(endpoint) {
            return account.clone();
        }
        let account = self.books.account(AccountKey {
            listener: self.settings.name.clone(),
            endpoint: endpoint.into(),
            upstream: way.upstream.clone(),
        });
        if &**account.endpoint() == endpoint {
            way.accounts
                .borrow_mut()
                .insert(endpoint.to_owned(), account.clone());
        }
        account
    }
}
