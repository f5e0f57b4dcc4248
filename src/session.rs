//! The path of one connection, from accept to the engine.
//!
//! [`serve`] reads from top to bottom what a connection meets: a header, a route, an account, an address, the relay. Whatever ends it
//! before the relay ends it here, with one reason; [`crate::relay::engine`] does so afterwards.

mod refusal;

use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tracing::debug;

use crate::account::audit::{Facts, Scribe};
use crate::account::{
    Account, AccountKey, Books, Cache, CloseReason, ListenerShard, Meter, NOBODY, PeekOutcome,
    Refusal, Shards,
};
use crate::admin::health::{self, Readiness};
use crate::config::{self, Consumers, ProxyProtocol, SendProxy, SessionLimits};
use crate::drain::Notice;
use crate::leg;
use crate::peek::read::peek;
use crate::policy::admission::{Admitted, InForce, Newcomer, TurnedAway};
use crate::policy::turnstile::Turnstile;
use crate::proxy_protocol::decode::Rules;
use crate::proxy_protocol::header::{Addresses, Command, DIRECT, HeaderError};
use crate::proxy_protocol::identity::Identity;
use crate::proxy_protocol::read::{NoHeader, Own, Pending, Received, read_header};
use crate::reactor::{Reactor, Watched};
use crate::relay::engine::{Engine, NewSession, Parties, Place};
use crate::route::{Asked, Decision, Routes};
use crate::spread::{Load, Spread};
use crate::telemetry::LogLimiter;
use crate::upstream::balance::key_of;
use crate::upstream::connect::{ConnectError, Connected, Dialer};
use crate::waiting_room::{Ticket, WaitingRoom};
use crate::worker::OpenGate;

/// A listener as one worker's sessions meet it.
#[derive(Debug)]
pub struct Entrance {
    /// The listener's settings.
    pub settings: config::Listener,
    /// The worker's index.
    pub worker: usize,
    /// Which of its upstreams a connection goes to.
    pub routes: Routes,
    /// The most that one of them wants to be told of its clients.
    pub tells: SendProxy,
    /// What this relay is called.
    pub relay_id: Arc<str>,
    /// Who may be behind shared endpoints.
    pub consumers: Arc<Consumers>,
    /// Accounts of those who were turned away before an upstream was chosen.
    pub turned_away: RefCell<Cache>,
    /// The ways its connections may take, by the upstream's index in the configuration; `None` where none of its routes leads.
    pub ways: Vec<Option<Rc<Way>>>,
    /// The books of the process.
    pub books: Arc<Books>,
    /// The listener's counters, of each worker.
    pub shards: Shards,
    /// The worker's hand in the audit trail.
    pub scribe: Rc<Scribe>,
    /// The worker's engine.
    pub engine: Rc<RefCell<Engine>>,
    /// The worker's wait.
    pub reactor: Rc<Reactor>,
    /// Connections without a whole header.
    pub waiting: Rc<WaitingRoom>,
    /// How many connections each worker has.
    pub spread: Arc<Spread>,
    /// What is in force: who may come in.
    pub policy: Rc<InForce>,
    /// Where its sessions are counted in, `max_sessions`: shared with the other workers.
    pub turnstile: Arc<Turnstile>,
    /// Room for connections of the whole process: two descriptors each.
    pub descriptors: Arc<Semaphore>,
    /// The process is ready and connections are taken: before that there are no descriptors to be had, and none are missing.
    pub ready: Arc<AtomicBool>,
    /// Whether the process should get traffic.
    pub readiness: Readiness,
    /// How far the process is drained.
    pub notice: Rc<Notice>,
    /// Bounds the lines that refused connections cause.
    pub refusal_log: LogLimiter,
    /// Bounds those of connections that were turned away for what they may: a noisy endpoint must not silence what is said of others.
    pub policy_log: LogLimiter,
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
    /// Accounts this worker has met.
    pub accounts: RefCell<Cache>,
}

/// Whom a connection is booked to, as far as that is known.
#[derive(Debug, Clone, Copy)]
pub struct Whose<'a> {
    /// Its endpoint, or [`NOBODY`].
    pub endpoint: &'a str,
    /// Its consumer, by its place in the configuration.
    pub consumer: Option<usize>,
    /// The client, as the header tells it.
    pub client: Option<SocketAddr>,
    /// Where it goes.
    pub way: Option<&'a Way>,
}

impl Whose<'static> {
    /// Nothing is known.
    pub const NOBODY: Self = Self {
        endpoint: NOBODY,
        consumer: None,
        client: None,
        way: None,
    };
}

/// A client whose header is read: what the session starts from.
struct Arrival {
    endpoint: Option<String>,
    client: SocketAddr,
    payload: Vec<u8>,
    /// Where one of the listener's upstreams wants it. Boxed, because most have none.
    identity: Option<Box<Identity>>,
}

/// Serves one accepted connection until the engine has it or it has ended.
pub async fn serve(gate: Rc<OpenGate>, mut pending: Pending, ticket: Ticket, load: Load) {
    let entrance = gate.entrance();
    let (over, late) = (entrance.notice.over(), entrance.notice.refuses());
    let arrival = tokio::select! {
        arrival = arrive(&gate, &entrance, &mut pending, &ticket) => arrival,
        () = ticket.shown_out() => Err(End::Refused(Refusal::Pending)),
        () = over.cancelled() => Err(End::Refused(Refusal::Draining)),
        () = entrance.patience(), if late => Err(End::Refused(Refusal::Draining)),
    };
    let Pending { client, peer, .. } = pending;
    let (entrance, mut arrival, way) = match arrival {
        Ok(arrival) => arrival,
        Err(End::HealthCheck(sent)) => {
            entrance.shard().health_checks.add(1);
            leg::close_in_order(&client);
            let Ok(client) = tokio_stream(client) else {
                return;
            };
            return tokio::select! {
                // Boxed: it is larger than all the rest, and every connection would carry room for it.
                () = Box::pin(health::answer(client, sent, entrance.readiness.clone())) => {}
                () = ticket.shown_out() => {}
                () = over.cancelled() => {}
            };
        }
        Err(End::Empty) => {
            leg::close_in_order(&client);
            return entrance.shard().empty.add(1);
        }
        Err(End::Header(error)) => return entrance.refuse_header(client, peer, error),
        Err(End::Refused(refusal)) => {
            return entrance.refuse(client, peer, Whose::NOBODY, refusal);
        }
        Err(End::TurnedAway) => return,
    };
    drop(ticket); // who waits for its turn shows nobody out
    let whose = entrance.whose(&arrival, Some(&way));
    if late {
        return entrance.refuse(client, peer, whose, Refusal::Draining);
    }
    let admitted = tokio::select! {
        admitted = entrance.admit(whose.endpoint, &client) => admitted,
        () = over.cancelled() => return entrance.refuse(client, peer, whose, Refusal::Draining),
    };
    let admitted = match admitted {
        Ok(admitted) => admitted,
        Err(why) => return entrance.turn_away(peer, whose, why),
    };
    if !entrance.scribe.may_open() {
        return entrance.refuse(client, peer, whose, Refusal::Audit);
    }
    let mut meter = entrance.open(whose, peer);
    let overflowed = **meter.endpoint() != *whose.endpoint;
    let endpoint = overflowed.then(|| whose.endpoint.into());
    let limits = admitted.bound(&way.limits);
    let (mut seats, mut pace) = admitted.keep();
    let rules = entrance.policy.now();
    let connected = tokio::select! {
        connected = connect(&entrance, &way, (&client, peer), &mut arrival) => connected,
        () = over.cancelled() => Err(CloseReason::Drained),
    };
    let id = endpoint.as_deref().unwrap_or(&**meter.endpoint());
    let allowed = entrance
        .policy
        .catch_up(&rules, id, (&mut seats, &mut pace));
    let connected = connected.and_then(|connected| allowed.map(|()| connected));
    match connected {
        Ok(Connected {
            socket,
            hold,
            ahead,
        }) => {
            meter.connected();
            // The engine ends the session by itself.
            entrance.engine.borrow_mut().add(NewSession {
                client_socket: client,
                upstream_socket: socket,
                first: arrival.payload,
                meter,
                limits,
                parties: Parties {
                    client: arrival.client,
                    peer,
                },
                ahead,
                pace,
                place: Place {
                    endpoint,
                    seats,
                    load,
                    hold,
                },
            });
        }
        Err(reason) => {
            let endpoint = &**meter.endpoint();
            debug!(endpoint, client = %arrival.client, %peer, reason = reason.name(), "session closed");
            meter.close_with(reason, || Facts {
                client: Some(arrival.client),
                peer: Some(peer),
                bytes: Some([0; 2]),
                ..Facts::default()
            });
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
    /// It is denied, or no route takes it; that was counted and said.
    TurnedAway,
}

/// What happens while it is in the waiting room: who it is, and where it goes.
async fn arrive(
    gate: &OpenGate,
    entrance: &Rc<Entrance>,
    pending: &mut Pending,
    ticket: &Ticket,
) -> Result<(Rc<Entrance>, Arrival, Rc<Way>), End> {
    let mut arrival = identify(entrance, pending, ticket).await?;
    let entrance = &gate.entrance_since(entrance);
    let whose = entrance.whose(&arrival, None);
    if let Err(why) = entrance.policy.look(whose.endpoint) {
        entrance.turn_away(pending.peer, whose, why);
        return Err(End::TurnedAway);
    }
    let way = choose(entrance, pending, ticket, &mut arrival).await?;
    Ok((entrance.clone(), arrival, way))
}

/// Reads the header, where the listener wants one.
async fn identify(
    entrance: &Entrance,
    pending: &mut Pending,
    ticket: &Ticket,
) -> Result<Arrival, End> {
    let settings = &entrance.settings;
    if settings.proxy_protocol == ProxyProtocol::Off {
        let identity =
            || entrance.identity(leg::ends(&pending.client, pending.peer), Vec::new(), 0);
        return Ok(Arrival {
            endpoint: None,
            client: pending.peer,
            payload: Vec::new(),
            identity: (entrance.tells != SendProxy::Off).then(identity),
        });
    }
    let rules = Rules {
        max_header: settings.max_header,
        crc: settings.crc,
    };
    let own = Own {
        relay_id: &entrance.relay_id,
        keep_tlvs: entrance.tells == SendProxy::V2,
    };
    let timeout = settings.header_timeout;
    let received = read_header(pending, rules, own, timeout, || ticket.heard()).await;
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
            tlvs,
            hops,
            payload,
        }) => {
            let client =
                addresses.map_or(pending.peer, |addresses| leg::canonical(addresses.source));
            let mut identity = (entrance.tells != SendProxy::Off)
                .then(|| entrance.identity(addresses, tlvs, hops));
            if let Some(identity) = &mut identity {
                let looked = identity.look(&payload, &entrance.relay_id);
                looked.map_err(End::Header)?;
            }
            Ok(Arrival {
                endpoint,
                client,
                payload,
                identity,
            })
        }
        Err(NoHeader::Empty) => Err(End::Empty),
        Err(NoHeader::Refused(error)) => Err(End::Header(error)),
    }
}

/// Finds the way that the routes choose, and reads what the client says first where they ask for a name in it: it becomes the beginning of
/// the payload.
async fn choose(
    entrance: &Entrance,
    pending: &Pending,
    ticket: &Ticket,
    arrival: &mut Arrival,
) -> Result<Rc<Way>, End> {
    let (settings, client) = (&entrance.settings, arrival.client.ip());
    let endpoint = arrival.endpoint.as_deref().unwrap_or(DIRECT);
    let mut decision = entrance.routes.decide(endpoint, client, Asked::Unknown);
    let mut seen = None;
    if decision == Decision::LookFirst {
        let deadline = Instant::now() + settings.peek_timeout;
        let (payload, most) = (&mut arrival.payload, settings.peek_size);
        let told = peek(&pending.client, payload, most, deadline, || ticket.heard()).await;
        let silent = settings.proxy_protocol == ProxyProtocol::Off && arrival.payload.is_empty();
        if silent && told.outcome == PeekOutcome::ClosedEarly {
            return Err(End::Empty); // a TCP health check
        }
        entrance.shard().peeks[told.outcome as usize].add(1);
        let told = seen.insert(told);
        decision = match &told.name {
            _ if told.outcome.refuses() => Decision::Refused,
            Some(name) => entrance.routes.decide(endpoint, client, Asked::For(name)),
            None => entrance.routes.decide(endpoint, client, Asked::Nameless),
        };
    }
    if let Decision::To(upstream) = decision
        && let Some(way) = &entrance.ways[upstream]
    {
        return Ok(way.clone());
    }
    entrance.unrouted(pending.peer, arrival, seen.as_ref());
    Err(End::TurnedAway)
}

/// Connects a session to its upstream, and says who is behind it where that is wanted: at once, whatever the client has yet to say. A
/// connection that was dialled ahead and turns out to have been given up by the upstream is replaced: as long as nothing of the client was
/// sent, nothing is lost by that.
async fn connect(
    entrance: &Entrance,
    way: &Way,
    (client, peer): (&Watched, SocketAddr),
    arrival: &mut Arrival,
) -> Result<Connected, CloseReason> {
    let key = match &arrival.endpoint {
        Some(endpoint) => key_of(endpoint.as_bytes()),
        None => key_of(arrival.client.ip().to_string().as_bytes()),
    };
    let mut connected = way.dialer.connect(key).await.map_err(reason_of)?;
    // Nothing was sent yet: an address that left while it was dialled gets no new session.
    if !connected.hold.address().is_present() && !way.dialer.upstream().snapshot().is_empty() {
        connected = way.dialer.dial(key).await.map_err(reason_of)?;
    }
    let header = entrance.introduction(way, arrival, client);
    let header = header.map_err(|error| {
        // It was opened, so it is closed and not refused.
        entrance.count_header_error(peer, error);
        CloseReason::ConnectFailed
    })?;
    let mut introduced = introduce(way, &connected, &header).await;
    if connected.ahead
        && (arrival.payload.is_empty() || introduced.is_err())
        && way.dialer.is_given_up(&connected, client).await
    {
        connected = way.dialer.dial(key).await.map_err(reason_of)?;
        introduced = introduce(way, &connected, &header).await;
    }
    introduced.map(|()| connected)
}

fn reason_of(error: ConnectError) -> CloseReason {
    match error {
        ConnectError::NoAddress => CloseReason::NoAddress,
        ConnectError::Failed => CloseReason::ConnectFailed,
        ConnectError::Reset => CloseReason::UpstreamReset,
    }
}

/// Sends the header that a connection upstream begins with. Where that fails, it counts as one that was not made.
async fn introduce(way: &Way, connected: &Connected, header: &[u8]) -> Result<(), CloseReason> {
    if header.is_empty() {
        return Ok(());
    }
    let socket = &connected.socket;
    let until = Instant::now() + way.dialer.upstream().settings.connect_deadline;
    match socket
        .reactor()
        .timeout_at(until, socket.send(header))
        .await
    {
        Some(Ok(())) => Ok(()),
        Some(Err(_)) | None => Err(CloseReason::ConnectFailed),
    }
}

/// A socket for what is not worth being written for our own reactor: its events come by way of the control thread's.
fn tokio_stream(socket: Watched) -> io::Result<TcpStream> {
    TcpStream::from_std(socket.take_out()?.into())
}

impl Entrance {
    async fn admit(&self, endpoint: &str, client: &Watched) -> Result<Admitted, TurnedAway> {
        let newcomer = Newcomer {
            endpoint,
            listener: &self.settings,
            turnstile: &self.turnstile,
            client,
        };
        self.policy.admit(newcomer).await
    }

    /// This worker's counters of the listener.
    #[must_use]
    pub fn shard(&self) -> &ListenerShard {
        &self.shards[self.worker]
    }

    /// How long whoever comes during a drain may take to show that it is a health check: one that is none should soon try elsewhere.
    async fn patience(&self) {
        let until = Instant::now() + self.settings.header_timeout;
        self.reactor.sleep_until(until).await;
    }

    /// The header that a connection on `way` begins with; empty where none is wanted.
    fn introduction(
        &self,
        way: &Way,
        arrival: &mut Arrival,
        client: &Watched,
    ) -> Result<Vec<u8>, HeaderError> {
        let Some(identity) = &mut arrival.identity else {
            return Ok(Vec::new());
        };
        // By now a header that comes round has had the time of a connect to arrive.
        identity.look_again(&arrival.payload, client, &self.relay_id)?;
        identity.header(
            way.dialer.upstream().settings.proxy_protocol,
            &self.relay_id,
        )
    }

    /// What is kept of a client for its upstream.
    fn identity(&self, addresses: Option<Addresses>, tlvs: Vec<u8>, hops: u8) -> Box<Identity> {
        Box::new(Identity {
            addresses,
            tlvs,
            hops,
            undecided: self.tells == SendProxy::V2,
        })
    }

    /// Whom a connection is booked to whose header is read.
    fn whose<'a>(&self, arrival: &'a Arrival, way: Option<&'a Way>) -> Whose<'a> {
        let endpoint = arrival.endpoint.as_deref().unwrap_or(DIRECT);
        let consumer = self.consumers.find(endpoint, arrival.client.ip());
        Whose {
            endpoint,
            consumer,
            client: Some(arrival.client),
            way,
        }
    }

    /// Books and records a connection opened.
    fn open(&self, whose: Whose<'_>, peer: SocketAddr) -> Meter {
        let kept = self.kept(whose);
        let kept = kept.and_then(|account| Meter::open(account, self.worker).ok());
        let meter = kept.unwrap_or_else(|| {
            let (meter, account) = self.books.open(self.key(whose), self.worker);
            self.keep(whose, account);
            meter
        });
        meter.recorded(|account| {
            // The trail says whose it really is.
            let overflowed = **account.endpoint() != *whose.endpoint;
            let own = overflowed.then(|| Arc::new(self.key(whose)));
            let facts = || Facts {
                client: whose.client,
                peer: Some(peer),
                ..Facts::default()
            };
            self.scribe.open(account, own, facts)
        })
    }

    fn accounts<'a>(&'a self, whose: Whose<'a>) -> &'a RefCell<Cache> {
        whose.way.map_or(&self.turned_away, |way| &way.accounts)
    }

    fn kept(&self, whose: Whose<'_>) -> Option<Arc<Account>> {
        let accounts = self.accounts(whose).borrow();
        accounts.get(whose.endpoint, whose.consumer).cloned()
    }

    /// Keeps an account for the next connection. Not that of `overflow`: tomorrow there may be room for one of its own.
    fn keep(&self, whose: Whose<'_>, account: Arc<Account>) {
        if **account.endpoint() == *whose.endpoint {
            let mut accounts = self.accounts(whose).borrow_mut();
            accounts.keep(whose.endpoint, whose.consumer, account);
        }
    }

    fn key(&self, whose: Whose<'_>) -> AccountKey {
        let consumer = whose
            .consumer
            .and_then(|place| self.consumers.entries.get(place));
        AccountKey {
            listener: self.settings.name.clone(),
            endpoint: whose.endpoint.into(),
            consumer: consumer
                .map(|consumer| consumer.name.clone())
                .unwrap_or_default(),
            upstream: whose
                .way
                .map(|way| way.upstream.clone())
                .unwrap_or_default(),
        }
    }

    /// Forgets accounts that left memory.
    pub fn sweep(&self) {
        self.turned_away.borrow_mut().sweep();
        for way in self.ways.iter().flatten() {
            way.accounts.borrow_mut().sweep();
        }
    }
}
