//! How soon an agent has the first byte of an answer, each time on a fresh connection, as agents behind a balancer open them: PROXY v2 header and
//! request at once, the answer over the link, closed by the agent.
//!
//! All relays are asked at the same time, at the same instants: they share the link, which this does not fill, and whatever the machine does
//! besides.

use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::{JoinHandle, JoinSet},
    time::{Instant, sleep_until, timeout},
};

use crate::{exchange::Chance, lab::World, peers::Running, short, variant::LEAST_AHEAD};

/// Of a request and of its answer.
const MESSAGE: usize = 1024;
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where agents are led to, as the relay's own numbers call it.
const FOR_AGENTS: (&str, &str) = ("upstream", "origin-by-name");

/// How often agents come, and for how long they are watched.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Arrivals {
    /// On average: each comes by chance.
    pub(crate) per_second: f64,
    pub(crate) during: Duration,
}

/// Now and then, and often enough that one comes before the last one's round trip is over.
pub(crate) const ARRIVALS: [Arrivals; 2] = [
    Arrivals {
        per_second: 3.0,
        during: Duration::from_secs(3),
    },
    Arrivals {
        per_second: 20.0,
        during: Duration::from_secs(4),
    },
];

/// What came of one round through one relay.
#[derive(Clone, Debug)]
pub(crate) struct FirstBytes {
    /// From connecting to the first byte of the answer: of each that came, in the order of arrival.
    pub(crate) took: Vec<Duration>,
    /// What `tollgate_ahead_total` says of them, by outcome; nothing where nothing is dialled ahead.
    pub(crate) ahead: BTreeMap<String, u64>,
}

/// Answers at each of the origin's ports, until dropped.
#[derive(Debug)]
pub(crate) struct Answering(Vec<JoinHandle<()>>);

impl Answering {
    /// At the ports of these relays.
    pub(crate) fn at<'a>(
        world: &World,
        relays: impl Iterator<Item = &'a Running>,
    ) -> io::Result<Self> {
        let mut tasks = Vec::new();
        for relay in relays {
            let listener = world.listener(relay.number()).try_clone()?;
            tasks.push(world.origin.spawn(async move {
                if let Ok(listener) = TcpListener::from_std(listener) {
                    serve(&listener).await;
                }
            }));
        }
        Ok(Self(tasks))
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.iter().for_each(JoinHandle::abort);
    }
}

async fn serve(listener: &TcpListener) {
    // Dropped with it: connections that were dialled ahead and never used.
    let mut connections = JoinSet::new();
    loop {
        if let Ok((stream, _)) = listener.accept().await {
            connections.spawn(answer(stream));
        }
        while connections.try_join_next().is_some() {}
    }
}

async fn answer(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut request = [0; MESSAGE];
    loop {
        stream.read_exact(&mut request).await?;
        stream.write_all(&[b'!'; MESSAGE]).await?;
    }
}

/// Waits until ours has what it dials ahead when it starts: from a name that is looked up over the link, to the origin that it is the name of.
///
/// # Panics
/// When it never has.
pub(crate) fn wait_dialled_ahead(relay: &Running) {
    if let Some(relay) = relay.tollgate() {
        relay.wait_until("connections dialled ahead", || {
            let metrics = relay.metrics();
            let waiting = metrics.sum("tollgate_ahead_connections", &[FOR_AGENTS]);
            waiting >= LEAST_AHEAD || !metrics.has("tollgate_ahead_connections")
        });
    }
}

/// Lets agents come to all of these relays, and has the relays' host dial the origin whenever one comes: what that takes is the link's round trip.
/// `round` decides when they come.
pub(crate) fn first_bytes(
    world: &World,
    relays: &[Running],
    arrivals: Arrivals,
    round: u32,
) -> io::Result<(Vec<FirstBytes>, Vec<Duration>)> {
    let ahead = |relay: &Running| relay.tollgate().map(|relay| outcomes(&relay.metrics()));
    let before: Vec<_> = relays.iter().map(ahead).collect();
    let mut asked = Vec::new();
    for relay in relays {
        let to = relay.address_with_header().unwrap_or(relay.address());
        let requests = short::headers(relay).into_iter();
        let requests = requests.map(|header| [header, vec![b'?'; MESSAGE]].concat());
        asked.push((to, Arc::new(requests.collect())));
    }
    let Some(first) = relays.first() else {
        return Ok((Vec::new(), Vec::new()));
    };
    let dialled = (World::origin(first.number()), Arc::default());
    let trips = world.relay.spawn(agents(vec![dialled], arrivals, round));
    let took = world.client.run(agents(asked, arrivals, round))?;
    let trips = world.relay.run(trips).map_err(io::Error::other)??;
    let mut all = Vec::new();
    let after = relays.iter().map(ahead);
    for ((before, after), took) in before.into_iter().zip(after).zip(took) {
        let (before, mut ahead) = (before.unwrap_or_default(), after.unwrap_or_default());
        for (outcome, count) in &mut ahead {
            *count -= before.get(outcome).copied().unwrap_or(0);
        }
        all.push(FirstBytes { took, ahead });
    }
    Ok((all, trips.into_iter().flatten().collect()))
}

fn outcomes(metrics: &crate::harness::relay::Metrics) -> BTreeMap<String, u64> {
    let name = "tollgate_ahead_total";
    let outcomes = metrics.label_values(name, "outcome").into_iter();
    let count = |outcome: String| {
        let count = metrics.sum(name, &[FOR_AGENTS, ("outcome", &outcome)]);
        (outcome, count)
    };
    outcomes.map(count).collect()
}

/// Where to, and with what in turn; with nothing, connecting is all.
type Asked = (SocketAddr, Arc<Vec<Vec<u8>>>);

/// To each address at the same instants.
async fn agents(all: Vec<Asked>, arrivals: Arrivals, round: u32) -> io::Result<Vec<Vec<Duration>>> {
    let mut chance =
        Chance(0x2545_f491_4f6c_dd1d ^ (u64::from(round) + 1).wrapping_mul(0x9e37_79b9));
    let took = Arc::new(Mutex::new(vec![Vec::new(); all.len()]));
    let mut asking = JoinSet::new();
    let began = Instant::now();
    let mut at = began;
    for number in 0_usize.. {
        at += Duration::from_secs_f64(-(1.0 - chance.next()).ln() / arrivals.per_second);
        if at > began + arrivals.during {
            break;
        }
        sleep_until(at).await;
        for (place, (to, requests)) in all.iter().enumerate() {
            let (to, requests, took) = (*to, Arc::clone(requests), Arc::clone(&took));
            asking.spawn(async move {
                let at = number.checked_rem(requests.len());
                let first = timeout(PATIENCE, ask(to, at.map(|at| &*requests[at]))).await??;
                let mut took = took.lock().unwrap_or_else(PoisonError::into_inner);
                took[place].push(first);
                Ok::<_, io::Error>(())
            });
        }
    }
    while let Some(asked) = asking.join_next().await {
        asked.map_err(io::Error::other)??;
    }
    let mut took = took.lock().unwrap_or_else(PoisonError::into_inner);
    Ok(std::mem::take(&mut *took))
}

async fn ask(to: SocketAddr, request: Option<&[u8]>) -> io::Result<Duration> {
    let began = Instant::now();
    let mut stream = TcpStream::connect(to).await?;
    let Some(request) = request else {
        return Ok(began.elapsed());
    };
    stream.set_nodelay(true)?;
    stream.write_all(request).await?;
    let mut answer = [0; MESSAGE];
    let got = stream.read(&mut answer).await?;
    let first = began.elapsed();
    if got == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    stream.read_exact(&mut answer[got..]).await?;
    Ok(first)
}
