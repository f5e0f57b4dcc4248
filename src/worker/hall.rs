//! What is in force on a worker: an [`Entrance`] behind each gate, and a way to each upstream. A configuration that follows another swaps it
//! whole, in two steps, so that all workers know a new gate before any of them opens it.
//!
//! A gate is a worker's socket of an address that is listened on. It outlives configurations: one that stays gets another entrance, and what
//! waits in its queue meets that. One that goes takes what waits first.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::TcpListener as StdListener;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::yield_now;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;
use tracing::warn;

use super::chores::review;
use crate::account::audit::Scribe;
use crate::account::{Books, Cache};
use crate::admin::health::Readiness;
use crate::config::{self, Config, Consumers, SendProxy};
use crate::drain::Notice;
use crate::leg;
use crate::listener::accept_loop;
use crate::places::Places;
use crate::policy::Policy;
use crate::policy::admission::InForce;
use crate::reactor::{Reactor, Watched};
use crate::relay::engine::{Engine, Review};
use crate::route::Routes;
use crate::session::{Entrance, Way};
use crate::spread::Spread;
use crate::telemetry::LogLimiter;
use crate::upstream::Upstream;
use crate::upstream::connect::Dialer;
use crate::waiting_room::WaitingRoom;

/// How long a gate that was removed is known: it takes what waits there for a while, and another worker may pass that on.
const UNDER_WAY: Duration = Duration::from_secs(30);

/// Sessions that are looked at in one turn when rules have changed: so few that nobody waits for it.
const REJUDGED: usize = 64;

/// What a worker needs whatever is configured.
#[derive(Debug)]
pub struct Common {
    /// Its index among the workers.
    pub index: usize,
    /// The books of the process.
    pub books: Arc<Books>,
    /// How many connections each worker has.
    pub spread: Arc<Spread>,
    /// Room for connections of the whole process: two descriptors each.
    pub descriptors: Arc<Semaphore>,
    /// Whether there are any yet.
    pub ready: Arc<AtomicBool>,
    /// Whether the process should get traffic.
    pub readiness: Readiness,
}

/// What a configuration gives a worker.
#[derive(Debug)]
pub struct Share {
    /// The configuration.
    pub config: Arc<Config>,
    /// Who may be behind shared endpoints.
    pub consumers: Arc<Consumers>,
    /// Who may come in.
    pub policy: Arc<Policy>,
    /// The upstreams, in the order of the configuration. One that stays as it was is the same.
    pub upstreams: Vec<Arc<Upstream>>,
    /// The listeners, in the order of the configuration.
    pub doors: Vec<Door>,
}

/// A worker's share of a listener.
#[derive(Debug)]
pub struct Door {
    /// One per address.
    pub gates: Vec<Gate>,
    /// `max_pending`, shared.
    pub pending: Arc<Places>,
    /// `max_sessions`, shared.
    pub sessions: Arc<Places>,
}

/// A worker's share of an address.
#[derive(Debug)]
pub struct Gate {
    /// The address's number: the same on all workers.
    pub id: u64,
    /// Its sockets: one that it has bound, or those that were passed to it, which may be none; `None`: the worker has them.
    pub sockets: Option<Vec<StdListener>>,
    /// They were passed to us, and stay open elsewhere when we close them.
    pub passed: bool,
}

/// The steps from one configuration to the next. The answer comes when the worker has taken the step; nobody may be waiting for it.
#[derive(Debug)]
pub enum Swap {
    /// Get ready; nothing changes yet.
    Prepare(Box<Share>, oneshot::Sender<io::Result<()>>),
    /// From now on that is in force. The answer says how many sessions it closed.
    Open(oneshot::Sender<usize>),
    /// What was prepared will not be.
    Forget,
}

/// What all sessions of a worker share.
#[derive(Debug, Clone)]
pub(super) struct Gear {
    pub(super) reactor: Rc<Reactor>,
    pub(super) engine: Rc<RefCell<Engine>>,
    pub(super) scribe: Rc<Scribe>,
    /// How far the process is drained.
    pub(super) notice: Rc<Notice>,
    /// Who may come in.
    pub(super) policy: Rc<InForce>,
}

/// A gate as its worker has it.
#[derive(Debug)]
pub struct OpenGate {
    /// Its number.
    pub id: u64,
    entrance: RefCell<Rc<Entrance>>,
    /// Each has an accept loop, which closes it.
    listeners: Vec<Weak<Watched>>,
    /// See [`Gate::passed`].
    pub passed: bool,
    /// It is to be closed: ends the accept loop.
    pub close: CancellationToken,
    /// The address is listened on no longer, though the process goes on.
    pub removed: Cell<Option<Instant>>,
}

impl OpenGate {
    /// What a connection that is accepted now meets.
    #[must_use]
    pub fn entrance(&self) -> Rc<Entrance> {
        self.entrance.borrow().clone()
    }

    /// What a connection goes on with that came by `entrance` and has been silent since: routes and upstreams of now, if what was kept of its header
    /// is what they want to know.
    #[must_use]
    pub fn entrance_since(&self, entrance: &Rc<Entrance>) -> Rc<Entrance> {
        let now = self.entrance();
        match now.tells == entrance.tells {
            true => now,
            false => entrance.clone(),
        }
    }
}

/// See the module.
#[derive(Debug)]
pub struct Hall {
    common: Common,
    gear: Gear,
    accepting: TaskTracker,
    sessions: TaskTracker,
    stop: CancellationToken,
    /// By their numbers. Those that were removed stay for a while: another worker may have accepted a connection there that is on its way here.
    gates: RefCell<HashMap<u64, Rc<OpenGate>>>,
    in_force: RefCell<Set>,
    next: RefCell<Option<Prepared>>,
}

/// What belongs to one configuration.
#[derive(Debug, Default)]
struct Set {
    /// In the order of the configuration.
    ways: Vec<Rc<Kept>>,
    entrances: Vec<Rc<Entrance>>,
    /// Each gate and the place of its entrance.
    gates: Vec<(u64, usize)>,
}

#[derive(Debug)]
struct Prepared {
    config: Arc<Config>,
    policy: Arc<Policy>,
    set: Set,
    /// Gates that are to be opened, with their sockets.
    new: Vec<(Rc<OpenGate>, Vec<Rc<Watched>>)>,
}

/// A dialer, and its tasks once it is in force: they end with it.
#[derive(Debug)]
struct Kept {
    dialer: Rc<Dialer>,
    upstream: Arc<Upstream>,
    tasks: RefCell<Option<DropGuard>>,
}

impl Hall {
    pub(super) fn new(
        common: Common,
        gear: Gear,
        accepting: TaskTracker,
        sessions: TaskTracker,
        stop: CancellationToken,
    ) -> Rc<Self> {
        Rc::new(Self {
            common,
            gear,
            accepting,
            sessions,
            stop,
            gates: RefCell::default(),
            in_force: RefCell::default(),
            next: RefCell::default(),
        })
    }

    pub(super) fn gear(&self) -> &Gear {
        &self.gear
    }

    /// The gate with this number, if there is one, or was until lately.
    #[must_use]
    pub fn gate(&self, id: u64) -> Option<Rc<OpenGate>> {
        self.gates.borrow().get(&id).cloned()
    }

    /// Forgets accounts that left memory.
    pub(super) fn sweep(&self) {
        let in_force = self.in_force.borrow();
        in_force
            .entrances
            .iter()
            .for_each(|entrance| entrance.sweep());
    }

    /// Takes each step it is told to.
    pub(super) async fn change(self: Rc<Self>, mut swaps: mpsc::Receiver<Swap>) {
        while let Some(swap) = swaps.recv().await {
            // Nobody waits for the answer any more where the control thread has gone.
            match swap {
                Swap::Prepare(share, answer) => drop(answer.send(self.prepare(*share))),
                Swap::Open(answer) => {
                    self.open();
                    let _ = answer.send(self.rejudge().await);
                }
                Swap::Forget => self.forget(),
            }
        }
    }

    /// Makes everything that `share` needs and does not have yet.
    ///
    /// # Errors
    /// No memory for a socket in the reactor: then nothing has changed.
    pub(super) fn prepare(&self, share: Share) -> io::Result<()> {
        self.forget();
        let mut gates = self.gates.borrow_mut();
        let lately = |gate: &OpenGate| gate.removed.get().is_none_or(|at| at.elapsed() < UNDER_WAY);
        gates.retain(|_, gate| lately(gate));
        let mut set = Set {
            ways: share
                .upstreams
                .iter()
                .map(|upstream| self.way_to(upstream))
                .collect(),
            ..Set::default()
        };
        let mut new = Vec::new();
        for (place, door) in share.doors.into_iter().enumerate() {
            let settings = &share.config.listeners[place];
            let entrance = self.entrance(
                (&share.config, settings),
                &door,
                (&share.consumers, &share.policy),
                &set.ways,
            );
            for Gate {
                id,
                sockets,
                passed,
            } in door.gates
            {
                set.gates.push((id, place));
                let Some(sockets) = sockets else { continue };
                let listeners = sockets.into_iter().map(|socket| {
                    let listener = Watched::new(&self.gear.reactor, socket.into());
                    listener.map(Rc::new)
                });
                let listeners = listeners.collect::<io::Result<Vec<_>>>()?;
                let gate = Rc::new(OpenGate {
                    id,
                    entrance: RefCell::new(entrance.clone()),
                    listeners: listeners.iter().map(Rc::downgrade).collect(),
                    passed,
                    close: self.stop.child_token(),
                    removed: Cell::new(None),
                });
                new.push((gate, listeners));
            }
            set.entrances.push(entrance);
        }
        gates.extend(new.iter().map(|(gate, _)| (gate.id, gate.clone())));
        self.next.replace(Some(Prepared {
            config: share.config,
            policy: share.policy,
            set,
            new,
        }));
        Ok(())
    }

    /// What was prepared is in force from now on: each gate has its entrance, new ones are opened, those that are gone close. Sessions that are under way
    /// keep what they have.
    pub(super) fn open(&self) {
        let Some(prepared) = self.next.take() else {
            return;
        };
        let Prepared {
            config,
            policy,
            set,
            new,
        } = prepared;
        self.gear.policy.set(policy);
        let gates = self.gates.borrow();
        for gate in gates.values() {
            let place = set.gates.iter().find(|(id, _)| *id == gate.id);
            let Some((_, place)) = place else {
                gate.removed
                    .set(gate.removed.get().or(Some(Instant::now())));
                gate.close.cancel();
                continue;
            };
            let entrance = set.entrances[*place].clone();
            let before = gate.entrance.replace(entrance.clone());
            reshape(gate, &config, &before.settings, &entrance.settings);
        }
        for kept in &set.ways {
            self.begin(kept);
        }
        for kept in &self.in_force.borrow().ways {
            let stays = |way: &Rc<Kept>| way.upstream.id == kept.upstream.id;
            if !set.ways.iter().any(stays) {
                self.leave(&kept.dialer);
            }
        }
        self.gear.engine.borrow_mut().close_with(config.drain.close);
        for (gate, listeners) in new {
            for listener in listeners {
                let accepting = accept_loop(listener, gate.clone(), self.sessions.clone());
                self.accepting.spawn_local(accepting);
            }
        }
        self.in_force.replace(set);
    }

    /// Looks at every session by the rules that are in force now, a few in each turn; says how many were closed.
    async fn rejudge(&self) -> usize {
        let policy = self.gear.policy.now();
        let (mut next, mut closed) = (Some(0), 0);
        while let Some(first) = next {
            {
                let mut engine = self.gear.engine.borrow_mut();
                engine.begin(Instant::now());
                next = engine.rejudge(first, REJUDGED, &policy, &mut closed);
            }
            yield_now().await;
        }
        closed
    }

    fn forget(&self) {
        if let Some(Prepared { new, .. }) = self.next.take() {
            let mut gates = self.gates.borrow_mut();
            new.iter()
                .for_each(|(gate, _)| drop(gates.remove(&gate.id)));
        }
    }

    /// The way to an upstream that is there already, or a new one.
    fn way_to(&self, upstream: &Arc<Upstream>) -> Rc<Kept> {
        let in_force = self.in_force.borrow();
        let mut ways = in_force.ways.iter();
        if let Some(kept) = ways.find(|kept| Arc::ptr_eq(&kept.upstream, upstream)) {
            return kept.clone();
        }
        // Another in each process, worker and upstream: nothing is to go in step.
        let seed = RandomState::new().hash_one(self.common.index);
        let dialer = Dialer::new(self.gear.reactor.clone(), upstream.clone(), seed);
        Rc::new(Kept {
            dialer: Rc::new(dialer),
            upstream: upstream.clone(),
            tasks: RefCell::default(),
        })
    }

    /// An upstream is gone, and with it its addresses: its sessions are told once, because nobody looks after them any more.
    fn leave(&self, dialer: &Dialer) {
        let snapshot = dialer.upstream().snapshot();
        let chance = || dialer.chance();
        let review = Review::new(dialer.upstream(), &snapshot, &chance);
        let mut engine = self.gear.engine.borrow_mut();
        engine.begin(Instant::now());
        engine.review(&review);
    }

    /// Starts a dialer's tasks, if they do not run already.
    fn begin(&self, kept: &Kept) {
        if kept.tasks.borrow().is_some() {
            return;
        }
        let end = self.stop.child_token();
        let dialer = kept.dialer.clone();
        let dialling = async move { dialer.keep_ahead().await };
        let Gear {
            reactor, engine, ..
        } = &self.gear;
        let reviewing = review(kept.dialer.clone(), reactor.clone(), engine.clone());
        let tasks = &self.accepting;
        tasks.spawn_local(end.clone().run_until_cancelled_owned(dialling));
        tasks.spawn_local(end.clone().run_until_cancelled_owned(reviewing));
        kept.tasks.replace(Some(end.drop_guard()));
    }

    fn way(&self, config: &Config, listener: &config::Listener, kept: &Kept) -> Rc<Way> {
        let limits = config.session_limits(listener, &kept.upstream.settings);
        Rc::new(Way {
            upstream: kept.upstream.name.clone(),
            dialer: kept.dialer.clone(),
            limits: Rc::new(limits),
            accounts: self.cache(),
        })
    }

    fn cache(&self) -> RefCell<Cache> {
        RefCell::new(Cache::new(self.common.books.most_accounts()))
    }

    fn entrance(
        &self,
        (config, settings): (&Config, &config::Listener),
        door: &Door,
        (consumers, policy): (&Arc<Consumers>, &Policy),
        ways: &[Rc<Kept>],
    ) -> Rc<Entrance> {
        let reachable = settings.reachable();
        // In the order of how much it is: nothing, addresses, everything.
        let wanted = reachable
            .iter()
            .map(|index| config.upstreams[*index].proxy_protocol);
        let tells = wanted.max_by_key(|send| *send as u8);
        let way = |(upstream, kept): (usize, &Rc<Kept>)| {
            let reached = reachable.contains(&upstream);
            reached.then(|| self.way(config, settings, kept))
        };
        let Common {
            index,
            books,
            spread,
            descriptors,
            ready,
            readiness,
        } = &self.common;
        Rc::new(Entrance {
            worker: *index,
            routes: Routes::new(settings),
            tells: tells.unwrap_or(SendProxy::Off),
            relay_id: config.relay_id.clone(),
            consumers: consumers.clone(),
            turned_away: self.cache(),
            ways: ways.iter().enumerate().map(way).collect(),
            books: books.clone(),
            shards: books.listener(&settings.name),
            scribe: self.gear.scribe.clone(),
            engine: self.gear.engine.clone(),
            reactor: self.gear.reactor.clone(),
            waiting: self.waiting_room(&door.pending),
            spread: spread.clone(),
            descriptors: descriptors.clone(),
            ready: ready.clone(),
            policy: self.gear.policy.clone(),
            turnstile: policy.tallies().listener(&door.sessions),
            readiness: readiness.clone(),
            notice: self.gear.notice.clone(),
            refusal_log: LogLimiter::default(),
            policy_log: LogLimiter::default(),
            accept_log: LogLimiter::default(),
            settings: settings.clone(),
        })
    }

    /// The room of those who wait already at these places, where there is one.
    fn waiting_room(&self, places: &Arc<Places>) -> Rc<WaitingRoom> {
        let in_force = self.in_force.borrow();
        let mut rooms = in_force.entrances.iter().map(|entrance| &entrance.waiting);
        let room = rooms.find(|room| room.is_of(places));
        room.cloned()
            .unwrap_or_else(|| Rc::new(WaitingRoom::new(places.clone())))
    }
}

/// Gives a socket that stays the options that its listener has now: what is accepted from it inherits them.
fn reshape(gate: &OpenGate, config: &Config, before: &config::Listener, now: &config::Listener) {
    for listener in gate.listeners.iter().filter_map(Weak::upgrade) {
        let shaped = match before.socket == now.socket {
            true => Ok(()),
            false => leg::shape(&*listener, &now.socket),
        };
        if let Err(error) = shaped.and_then(|()| leg::guard(&*listener, &config.client_leg(now))) {
            let listener = &*now.name;
            warn!(listener, %error, "its sockets keep options that they had before");
        }
    }
}
