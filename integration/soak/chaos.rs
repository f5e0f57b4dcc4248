//! S25: sessions whose ends do what they like, by a seed: they write, rest, stop reading, half-close, reset. Whatever they do, nobody reads
//! a byte that was not sent, a stream that was cut does not look complete, the books lie between what was sent and what was read, and the
//! relay keeps nothing.

use std::{collections::HashMap, io, sync::Arc, time::Duration};

use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    sync::Semaphore,
    task::JoinSet,
    time::sleep,
};
use tokio_util::sync::CancellationToken;

use super::{
    peers::{Way, in_mode},
    world::{self, ENDPOINT, Hosts, ORIGIN, listener, privatelink_header},
};
use crate::harness::{
    BOUND,
    pattern::{Pattern, Random},
    relay::Baseline,
    stream::{self, CHUNK, End, within},
    watched::Watched,
};

/// Sessions at a time.
const AT_ONCE: usize = 40;

/// How long one end may take.
const PATIENCE: Duration = Duration::from_secs(50);

/// How many bytes tell the far end which session it has: the head of a [`Pattern`].
const HEAD: usize = 8;

/// What came of it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Outcome {
    /// Sessions without a reset from either end.
    pub(crate) whole: u64,
    /// Bytes that were read, both directions.
    pub(crate) bytes: u64,
}

/// How an end comes to its end.
#[derive(Clone, Copy, Debug)]
enum Ending {
    Finish,
    ResetAfterSending(u64),
    ResetAfterReading(u64),
}

/// What an end does.
#[derive(Clone, Debug)]
struct Script {
    sends: u64,
    write: u64,
    read: u64,
    /// Where it stops reading, and for how long.
    stops: Option<(u64, Duration)>,
    ending: Ending,
    narrow: bool,
}

impl Script {
    fn of(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let sends = match random.below(20) {
            0 => 0,
            1..8 => random.below(300),
            8..14 => random.below(60_000),
            _ => random.below(3_000_000),
        };
        Self {
            sends,
            write: 1 + random.below([2000, CHUNK as u64][usize::from(sends > 20_000)]),
            read: 1000 + random.below(CHUNK as u64 - 1000),
            // Longer than it takes to fill everything on the way.
            stops: random.chance(0.3).then(|| {
                let rest = Duration::from_millis(20 + random.below(200));
                (random.below(200_000), rest)
            }),
            ending: match random.below(10) {
                0 => Ending::ResetAfterSending(random.below(sends + 1)),
                1 => Ending::ResetAfterReading(random.below(500_000)),
                _ => Ending::Finish,
            },
            narrow: random.chance(0.2),
        }
    }
}

/// What an end saw, and what it did.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    /// Bytes that its kernel took.
    sent: u64,
    finished: bool,
    received: u64,
    /// How the other's stream ended.
    end: Option<End>,
    /// It sent a reset itself.
    cut: bool,
}

/// Follows the script; `received` bytes of the other's stream are read already. An error is a byte that was not sent, or time that ran out.
async fn follow(
    script: Script,
    seed: u64,
    stream: TcpStream,
    [sends, expects]: [Pattern; 2],
    received: u64,
) -> io::Result<Seen> {
    let cut = CancellationToken::new();
    // Whoever is told an error takes it from the socket, and then a read says end: after a write that failed there is no FIN.
    let broken = CancellationToken::new();
    let write = async {
        let (mut random, mut sent, mut chunk) = (Random::new(seed ^ 1), 0, vec![0; CHUNK]);
        loop {
            if matches!(script.ending, Ending::ResetAfterSending(n) if sent >= n) {
                cut.cancel();
            }
            if sent == script.sends {
                return (sent, stream::finish(&stream).is_ok());
            }
            let piece = (1 + random.below(script.write)).min(script.sends - sent) as usize;
            sends.fill(sent, &mut chunk[..piece]);
            let written = stream::write(&stream, &chunk[..piece], |n| sent += n as u64);
            tokio::select! {
                written = written => if written.is_err() {
                    broken.cancel();
                    return (sent, false);
                },
                () = cut.cancelled() => return (sent, false),
            }
        }
    };
    let read = async {
        let (mut received, mut stops) = (received, script.stops);
        loop {
            if matches!(script.ending, Ending::ResetAfterReading(n) if received >= n) {
                cut.cancel();
            }
            if let Some((_, rest)) = stops.take_if(|(at, _)| received >= *at) {
                // What it does, not a wait for something.
                sleep(rest).await;
            }
            let read = stream::read_at_most(&stream, script.read as usize, |bytes| {
                let at = received;
                received += bytes.len() as u64;
                expects.check(at, bytes)
            });
            let read = tokio::select! {
                read = read => read,
                () = cut.cancelled() => return Ok((received, None)),
            };
            match read {
                Ok(Some(checked)) => checked?,
                Ok(None) if !broken.is_cancelled() => return Ok((received, Some(End::Fin))),
                Ok(None) | Err(_) => return Ok::<_, io::Error>((received, Some(End::Reset))),
            }
        }
    };
    let both = async { Ok(tokio::join!(write, read)) };
    let ((sent, finished), read) = within(PATIENCE, both).await?;
    let (received, end) = read?;
    let seen = Seen {
        sent,
        finished,
        received,
        end,
        cut: cut.is_cancelled(),
    };
    if seen.cut {
        stream::reset(stream);
    }
    Ok(seen)
}

/// The streams of a session: the client's, the server's.
fn patterns(index: u64) -> [Pattern; 2] {
    [2 * index, 2 * index + 1].map(Pattern::new)
}

fn seed_of(seed: u64, pattern: Pattern) -> u64 {
    // Any mixing will do that keeps them apart.
    Random::new(seed ^ pattern.seed().wrapping_mul(0x9e37_79b9)).number()
}

async fn client(seed: u64, index: u64) -> io::Result<Seen> {
    let [mine, other] = patterns(index);
    let seed = seed_of(seed, mine);
    let script = Script::of(seed);
    let socket = TcpSocket::new_v4()?;
    if script.narrow {
        socket.set_recv_buffer_size(16 << 10)?;
    }
    let stream = within(BOUND, socket.connect(listener())).await?;
    stream::write(&stream, &privatelink_header(ENDPOINT), |_| ()).await?;
    follow(script, seed, stream, [mine, other], 0).await
}

/// Which session it is, unless it ended before it said so.
async fn index_of(stream: &TcpStream) -> io::Result<Option<u64>> {
    let mut head = Vec::with_capacity(HEAD);
    while head.len() < HEAD {
        let more = HEAD - head.len();
        match stream::read_at_most(stream, more, |bytes| head.extend_from_slice(bytes)).await {
            Ok(Some(())) => {}
            Ok(None) | Err(_) => return Ok(None),
        }
    }
    let head = head.try_into().expect("so many were read");
    Ok(Some(u64::from_be_bytes(head) / 2))
}

async fn server(seed: u64, stream: TcpStream) -> io::Result<Option<(u64, Seen)>> {
    let Some(index) = within(PATIENCE, index_of(&stream)).await? else {
        return Ok(None);
    };
    let [other, mine] = patterns(index);
    let seed = seed_of(seed, mine);
    let seen = follow(Script::of(seed), seed, stream, [mine, other], HEAD as u64).await?;
    Ok(Some((index, seen)))
}

#[derive(Debug, Default)]
struct Served {
    accepted: u64,
    over: u64,
    seen: HashMap<u64, Seen>,
    wrong: Vec<String>,
}

async fn serve(listener: TcpListener, seed: u64, served: Arc<Watched<Served>>) {
    while let Ok((stream, _)) = listener.accept().await {
        served.update(|served| served.accepted += 1);
        let served = Arc::clone(&served);
        tokio::spawn(async move {
            let result = server(seed, stream).await;
            served.update(|served| {
                served.over += 1;
                match result {
                    Ok(seen) => served.seen.extend(seen),
                    Err(error) => served.wrong.push(error.to_string()),
                }
            });
        });
    }
}

/// What one direction of a session may look like.
fn judge(sender: &Seen, receiver: &Seen) -> Result<(), &'static str> {
    if receiver.received > sender.sent {
        return Err("more was read than sent");
    }
    if receiver.end == Some(End::Fin) && !(sender.finished && receiver.received == sender.sent) {
        return Err("a stream that was cut looks complete");
    }
    if !sender.cut && !receiver.cut && receiver.end != Some(End::Fin) {
        return Err("nobody cut it, and yet it did not end in order");
    }
    Ok(())
}

/// So many sessions of a seed through a relay in a mode.
///
/// # Panics
/// When any of it does not hold; the message tells the seed.
#[track_caller]
pub(crate) fn run(mode: &str, seed: u64, sessions: u64) -> Outcome {
    let again = format!("TOLLGATE_SEED={seed}, {mode}");
    let hosts = Hosts::new("chaos");
    hosts
        .relay
        .sysctl("net.ipv4.tcp_rmem", "4096 1048576 6291456");
    let relay = in_mode(mode).on(&hosts.relay);
    let baseline = Baseline::of(&relay);
    let listener = hosts.origin.run(TcpListener::bind(ORIGIN));
    let served = Arc::new(Watched::<Served>::default());
    let listener = listener.expect("the address is the origin's");
    hosts
        .origin
        .spawn(serve(listener, seed, Arc::clone(&served)));
    let bound = PATIENCE * 2 + Duration::from_millis(200) * sessions as u32;
    let clients = hosts.node.run_within(bound, async move {
        let places = Arc::new(Semaphore::new(AT_ONCE));
        let mut all = JoinSet::new();
        for index in 0..sessions {
            let place = places.clone().acquire_owned().await.expect("never closed");
            all.spawn(async move {
                let seen = client(seed, index).await;
                drop(place);
                (index, seen)
            });
        }
        all.join_all().await
    });
    relay.wait_metric("tollgate_connections_active", &[], 0);
    let opened = relay.metric("tollgate_connections_opened_total", &[]);
    let servers = served.wait("the origin's ends to be over", BOUND, |served| {
        (served.over == served.accepted).then(|| (served.seen.clone(), served.wrong.clone()))
    });
    assert!(
        servers.1.is_empty(),
        "{again}: the origin: {:#?}",
        servers.1
    );
    let mut outcome = Outcome::default();
    // By direction: bytes sent and bytes read.
    let mut sums = [[0; 2]; 2];
    for (index, client) in clients {
        let client = client.unwrap_or_else(|error| panic!("{again}: session {index}: {error}"));
        // A server that was reset before it knew which one it has read little, and nothing of it is known.
        let server = servers.0.get(&index);
        outcome.whole += u64::from(!client.cut && server.is_none_or(|server| !server.cut));
        let server = server.copied();
        let of_server = server.unwrap_or_default();
        sums[0] = [sums[0][0] + client.sent, sums[0][1] + of_server.received];
        sums[1] = [sums[1][0] + of_server.sent, sums[1][1] + client.received];
        let short = client.sent < HEAD as u64;
        let judged = match server {
            Some(server) => judge(&client, &server).and_then(|()| judge(&server, &client)),
            // It ended as soon as the client did, without a byte.
            None if client.cut || short => Ok(()),
            None => Err("the server never knew of it"),
        };
        if let Err(what) = judged {
            panic!("{again}: session {index}: {what}: {client:?}, {server:?}");
        }
    }
    outcome.bytes = sums[0][1] + sums[1][1];
    let cut = sessions - outcome.whole;
    assert!(cut > 0 && outcome.whole > 0, "{again}: {cut} were cut");
    for (way, [sent, read]) in Way::ALL.into_iter().zip(sums) {
        let labels = [("endpoint", ENDPOINT), ("direction", way.name())];
        let booked = relay.metric("tollgate_bytes_total", &labels);
        assert!(
            (read..=sent).contains(&booked),
            "{again}: {way:?}: {sent} sent, {booked} booked, {read} read"
        );
    }
    let metrics = relay.metrics();
    let reasons = ["completed", "client_reset", "upstream_reset"];
    let closed = reasons
        .map(|reason| metrics.sum("tollgate_connections_closed_total", &[("reason", reason)]));
    assert_eq!(closed.iter().sum::<u64>(), opened, "{again}: {closed:?}");
    world::assert_at_rest(&relay, baseline);
    outcome
}
