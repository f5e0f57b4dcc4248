//! The relay is killed at random moments, again and again, and its books stay right to the byte.

use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    io::{self, Write},
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant, SystemTime},
};

use libtest_mimic::Trial;
use tokio::{sync::watch, task::JoinHandle};

use super::{
    sessions::{self, Manner, Outcome, Plan, Planned, Side, endpoint_id},
    world::{
        OFTEN, SERVICES, TRANSFER, UNDELIVERED, UNREAD, audited, end, home, narrow, two_services,
        usage,
    },
};
use crate::{
    claim,
    harness::{
        BOUND, audit,
        ledger::{self, Key, Sums},
        netns::Host,
        pattern::Random,
        relay::{Home, Relay},
    },
};

pub(crate) fn tests() -> Vec<Trial> {
    vec![claim(
        "killed_twenty_times_the_books_are_right_to_the_byte",
        killed_twenty_times_the_books_are_right_to_the_byte,
    )]
}

const KILLS: u64 = 20;
const ENDPOINTS: u64 = 600;
const AT_ONCE: u64 = 24;
/// The longest that the relay lives between two kills.
const LIFE: u64 = 700;

/// Seeds are new in each run, and said; `TOLLGATE_SEED` repeats one.
fn seed() -> u64 {
    let given = env::var("TOLLGATE_SEED").ok();
    let given = given.map(|seed| seed.parse().expect("TOLLGATE_SEED is a number"));
    let seed = given.unwrap_or_else(|| {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        now.map_or(0, |now| now.as_micros() as u64)
    });
    let _ = writeln!(io::stderr(), "books: TOLLGATE_SEED={seed}");
    seed
}

/// A session that is over, and in which lives of the relay it began and ended; an odd number is the time between two.
#[derive(Clone, Debug)]
struct Seen {
    outcome: Outcome,
    lives: [u64; 2],
}

impl Seen {
    fn one_life(&self) -> bool {
        self.lives[0] == self.lives[1] && self.lives[0].is_multiple_of(2)
    }
}

/// Clients that begin one session after the other.
#[derive(Debug)]
struct Clients {
    seen: Arc<Mutex<Vec<Seen>>>,
    stop: Arc<AtomicBool>,
    life: watch::Sender<u64>,
    tasks: Vec<JoinHandle<()>>,
}

impl Clients {
    fn start(node: &Host, seed: u64) -> Self {
        let (life, _) = watch::channel(0);
        let mut clients = Self {
            seen: Arc::default(),
            stop: Arc::default(),
            life,
            tasks: Vec::new(),
        };
        let next = Arc::new(AtomicU64::new(1));
        for client in 0..AT_ONCE {
            let (seen, stop) = (Arc::clone(&clients.seen), Arc::clone(&clients.stop));
            let (life, next) = (clients.life.subscribe(), Arc::clone(&next));
            let mut random = Random::new(seed ^ client.rotate_left(32));
            clients.tasks.push(node.spawn(async move {
                while !stop.load(Ordering::SeqCst) {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let plan = Plan::random(number, ENDPOINTS, &mut random);
                    one(plan, life.clone(), &seen).await;
                }
            }));
        }
        clients
    }

    /// Lets them end what they have begun, has each endpoint use each service once more without any harm, and returns all sessions.
    #[track_caller]
    fn end(self, node: &Host) -> Vec<Seen> {
        self.stop.store(true, Ordering::SeqCst);
        let Self {
            seen, life, tasks, ..
        } = self;
        let (all, life) = (Arc::clone(&seen), life.subscribe());
        node.run_within(4 * BOUND, async move {
            for task in tasks {
                task.await.expect("a client's task");
            }
            let next = Arc::new(AtomicU64::new(0));
            let rounds = (0..AT_ONCE).map(|_| {
                let (all, life, next) = (Arc::clone(&all), life.clone(), Arc::clone(&next));
                tokio::spawn(async move {
                    loop {
                        let number = next.fetch_add(1, Ordering::Relaxed);
                        if number >= 2 * ENDPOINTS {
                            return;
                        }
                        let plan = Plan {
                            // Behind all that there were.
                            number: number + 1_000_000,
                            endpoint: endpoint_id(number / 2),
                            service: (number % 2) as usize,
                            manner: Manner::ClientFirst,
                            bytes: [100 + number, 3 * number],
                        };
                        one(plan, life.clone(), &all).await;
                    }
                })
            });
            for round in rounds.collect::<Vec<_>>() {
                round.await.expect("a client's task");
            }
        });
        let seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.clone()
    }
}

/// One session, as soon as the relay can be connected to.
async fn one(plan: Plan, mut life: watch::Receiver<u64>, seen: &Mutex<Vec<Seen>>) {
    let to = SERVICES[plan.service].address();
    loop {
        let began = *life.borrow_and_update();
        match sessions::run(plan.clone(), to).await {
            Ok(outcome) => {
                let lives = [began, *life.borrow()];
                let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
                seen.push(Seen { outcome, lives });
                return;
            }
            // Nobody listens: the next life begins with a change. A missed one shows at the next look.
            Err(_) => {
                let _ = tokio::time::timeout(Duration::from_millis(50), life.changed()).await;
            }
        }
    }
}

/// What must be in the books of one account: what is certain, and those sessions of which it is not.
#[derive(Debug, Default)]
struct Expected<'a> {
    certain: Sums,
    unsure: Vec<Unsure<'a>>,
}

#[derive(Debug)]
struct Unsure<'a> {
    seen: &'a Seen,
    upstream: Option<Side>,
    /// The audit log knows its close, so it was over, and counted, before any kill.
    closed: bool,
}

impl Unsure<'_> {
    /// Between what and what a direction was booked: no less than was received (but one transfer, if it may have been killed), no more than was sent, and no
    /// more than was received and the buffers hold.
    fn bounds(&self, direction: usize) -> (u64, u64) {
        let client = self.seen.outcome.client;
        let upstream = self.upstream.unwrap_or_default();
        let manner = self.seen.outcome.plan.manner;
        let (source, destination, leaves_unread) = if direction == 0 {
            (client, upstream, Manner::UpstreamCuts)
        } else {
            (upstream, client, Manner::ClientCuts)
        };
        let lost = if self.closed { 0 } else { TRANSFER };
        let unread = if manner == leaves_unread { UNREAD } else { 0 };
        let least = destination.received.saturating_sub(lost);
        let most = destination.received + UNDELIVERED + unread;
        (least, most.min(source.sent))
    }
}

impl Expected<'_> {
    #[track_caller]
    fn assert_booked(&self, key: &Key, booked: &Sums) {
        let within = |what: &str, booked: u64, (least, most): (u64, u64)| {
            assert!(
                (least..=most).contains(&booked),
                "{key:?}: {what}: {booked} booked, but it is {least} to {most}: {self:#?}"
            );
        };
        let sum = |of: &dyn Fn(&Unsure<'_>) -> (u64, u64), certain: u64| {
            let bounds = self.unsure.iter().map(of);
            bounds.fold((certain, certain), |sum, one| {
                (sum.0 + one.0, sum.1 + one.1)
            })
        };
        let refused = |one: &Unsure<'_>| one.seen.outcome.plan.manner.refused();
        let opened = sum(
            &|one| match refused(one) {
                true => (0, 0),
                false => (u64::from(one.upstream.is_some()), 1),
            },
            self.certain.opened,
        );
        within("opened", booked.opened, opened);
        assert_eq!(booked.opened, booked.closed, "{key:?}: opened = closed");
        let turned_away = sum(&|one| (0, u64::from(refused(one))), self.certain.refused);
        within("refused", booked.refused, turned_away);
        let bytes = sum(&|one| one.bounds(0), self.certain.bytes_to_upstream);
        within("to upstream", booked.bytes_to_upstream, bytes);
        let bytes = sum(&|one| one.bounds(1), self.certain.bytes_to_client);
        within("to client", booked.bytes_to_client, bytes);
    }
}

fn key_of(plan: &Plan) -> Key {
    let service = SERVICES[plan.service];
    let (endpoint, upstream) = match plan.manner {
        Manner::BadHeader => ("(none)", ""),
        Manner::Stranger => (plan.endpoint.as_str(), ""),
        _ => (plan.endpoint.as_str(), service.upstream),
    };
    Key {
        endpoint: endpoint.to_owned(),
        consumer: String::new(),
        listener: service.listener.to_owned(),
        upstream: upstream.to_owned(),
    }
}

/// What the audit log says became of each session, by the client's address: the reason, and the bytes.
type Closes = BTreeMap<SocketAddr, (String, [u64; 2])>;

#[track_caller]
fn closes(records: &[audit::Record]) -> Closes {
    let sessions = audit::sessions(records);
    let closes = sessions.values().map(|session| {
        let client = session.open.client().expect("each session has a client");
        let close = &session.close;
        assert_eq!(close.client(), Some(client), "{}", close.line);
        let bytes = ["bytes_to_upstream", "bytes_to_client"].map(|key| close.number(key));
        (client, (close.text("reason").to_owned(), bytes))
    });
    closes.collect()
}

/// Whether all is known of a session: both ends saw it end as planned in one life of the relay, and the relay has said so too. One whose last record
/// was still in the queue of the audit log when the relay was killed is not.
fn certain(seen: &Seen, upstream: Option<&Side>, closes: &Closes) -> bool {
    let plan = &seen.outcome.plan;
    if !seen.outcome.client.whole || !seen.one_life() {
        return false;
    }
    if plan.manner.refused() {
        return true;
    }
    let close = closes.get(&plan.client());
    upstream.is_some_and(|upstream| upstream.whole)
        && close.is_some_and(|(reason, _)| reason != "crashed")
}

fn killed_twenty_times_the_books_are_right_to_the_byte() {
    let seed = seed();
    let mut random = Random::new(seed);
    let hosts = narrow("killed");
    let origins = SERVICES.map(|service| Planned::start(&hosts.origin, service.origin));
    let home = home();
    let start = two_services(OFTEN).at(&home);
    let relay = start.clone().on(&hosts.relay);
    let clients = Clients::start(&hosts.node, seed);
    let relay = live_and_die(relay, &mut random, &clients, || {
        start.clone().without_waiting().on(&hosts.relay)
    });
    let seen = clients.end(&hosts.node);
    let upstream: Vec<_> = origins.iter().map(Planned::wait_over).collect();
    let stray: u64 = origins.iter().map(Planned::stray).sum();
    relay.wait_metric("tollgate_connections_active", &[], 0);
    // Through the relay that runs, which books first; then as it left them.
    let by = ["endpoint", "consumer", "listener", "upstream"];
    let asked = ledger::by_key(&usage(&home, &hosts.relay, &by));
    end(&relay);
    drop(relay);
    let rows = ledger::rows(&home.ledger());
    let booked = ledger::by_key(&rows);
    let counts = |books: &BTreeMap<Key, Sums>| -> BTreeMap<Key, [u64; 5]> {
        let counts = books.iter().map(|(key, sums)| (key.clone(), sums.counts()));
        counts.collect()
    };
    assert_eq!(counts(&asked), counts(&booked), "nothing moved in between");

    let records = audited(&home);
    let closes = closes(&records);
    let mut expected = BTreeMap::<Key, Expected<'_>>::new();
    let mut whole_but_unsure = 0;
    for seen in &seen {
        let plan = &seen.outcome.plan;
        let upstream = upstream[plan.service].get(&plan.number);
        let account = expected.entry(key_of(plan)).or_default();
        if certain(seen, upstream, &closes) {
            let refused = plan.manner.refused();
            account.certain.refused += u64::from(refused);
            account.certain.opened += u64::from(!refused);
            if !refused {
                account.certain.bytes_to_upstream += plan.bytes[0];
                account.certain.bytes_to_client += plan.bytes[1];
                let audited = &closes[&plan.client()];
                let wanted = (plan.manner.reason().to_owned(), plan.bytes);
                assert_eq!(*audited, wanted, "audited: {plan:?}");
            }
        } else {
            let whole = seen.outcome.client.whole && upstream.is_some_and(|side| side.whole);
            whole_but_unsure += u64::from(whole && seen.one_life());
            let close = closes.get(&plan.client());
            account.unsure.push(Unsure {
                seen,
                upstream: upstream.copied(),
                closed: close.is_some_and(|(reason, _)| reason != "crashed"),
            });
        }
    }
    let unsure: usize = expected.values().map(|account| account.unsure.len()).sum();
    let none = Sums::default();
    for (key, account) in &expected {
        account.assert_booked(key, booked.get(key).unwrap_or(&none));
    }
    let unknown: Vec<_> = booked
        .keys()
        .filter(|key| !expected.contains_key(key))
        .collect();
    assert!(unknown.is_empty(), "{unknown:?}");
    let endpoints: BTreeSet<_> = booked.keys().map(|key| &key.endpoint).collect();
    assert!(endpoints.len() as u64 >= ENDPOINTS, "{}", endpoints.len());

    // The reasons are those of the sessions, and what a kill cut is called so.
    let reasons = ledger::reasons(&home.ledger(), "closed");
    let total = ledger::total(&rows);
    assert_eq!(reasons.values().sum::<u64>(), total.closed, "{reasons:?}");
    let cut_by_kill = seen.iter().filter(|seen| !seen.one_life()).count() as u64;
    let crashed = reasons.get("crashed").copied().unwrap_or(0);
    assert!(
        (1..=cut_by_kill).contains(&crashed),
        "{crashed} {cut_by_kill}"
    );
    assert_eq!(ledger::integrity(&home.ledger()), "ok");
    assert_no_counters_left(&home);
    // What the queue of the audit log held at each kill, at most.
    assert!(
        whole_but_unsure <= KILLS * 10 * AT_ONCE,
        "{whole_but_unsure} sessions of {} were whole, and the audit log does not know them",
        seen.len()
    );
    assert!(unsure < seen.len() / 2, "{unsure} of {}", seen.len());
    let verify = [
        "audit",
        "verify",
        "--config",
        "@CONFIG@",
        "@DIR@/audit/audit.jsonl",
    ];
    home.tollgate(&hosts.relay, &verify).ok();
    let _ = writeln!(
        io::stderr(),
        "books: {} sessions, {} bytes, {unsure} unsure ({whole_but_unsure} of them whole), {crashed} crashed, {stray} bytes within heads",
        seen.len(),
        total.bytes_to_upstream + total.bytes_to_client,
    );
}

/// Kills the relay twenty times, and returns the one that lives on. Some die before they are ready, while they read what the one before left.
#[track_caller]
fn live_and_die(
    mut relay: Relay,
    random: &mut Random,
    clients: &Clients,
    again: impl Fn() -> Relay,
) -> Relay {
    let turn = |clients: &Clients| clients.life.send_modify(|life| *life += 1);
    for kill in 0..KILLS {
        let young = kill % 5 == 4;
        let life = match young {
            true => random.below(60),
            false => {
                relay.wait_ready();
                30 + random.below(LIFE)
            }
        };
        let dies = Instant::now() + Duration::from_millis(life);
        // What is tested is a random moment.
        thread::sleep(dies.saturating_duration_since(Instant::now()));
        turn(clients);
        relay.kill();
        relay = again();
        turn(clients);
    }
    relay.wait_ready();
    relay
}

/// All counters were booked, so none is left to be.
#[track_caller]
fn assert_no_counters_left(home: &Home) {
    let entries = std::fs::read_dir(home.run()).expect("/run is ours");
    let left: Vec<_> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.starts_with("books-"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}
