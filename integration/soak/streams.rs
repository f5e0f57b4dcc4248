//! Streams of random size whose ends half-close, each by itself: what one end sent the other must have read, to the byte and to the FIN.
//!
//! Who is at the other end of a stream that has no byte cannot be told from the stream. So each lane has a listener and an origin's address of
//! its own, and one session at a time: both ends know whose turn it is, and everything else follows from the session's seed.

use std::{io, time::Duration};

use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    sync::mpsc,
    task::JoinSet,
    time::sleep,
};

use super::{
    peers::{Way, in_mode},
    world::{self, ENDPOINT, Hosts, ORIGIN, privatelink_header},
};
use crate::harness::{
    netns::Host,
    pattern::{Pattern, Random},
    relay::{Baseline, Start},
    stream::{self, CHUNK, within},
};

/// Sessions at a time.
pub(crate) const LANES: u64 = 24;

/// How long one session may take, on a machine that does other things too.
const PATIENCE: Duration = Duration::from_secs(50);

/// How long all of them may take, for each that a lane has.
const PATIENCE_EACH: Duration = Duration::from_secs(2);

/// What came of it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Outcome {
    /// Sessions whose both ends have seen all of it.
    pub(crate) streams: u64,
    /// Payload, both directions.
    pub(crate) bytes: u64,
    /// Of these, through the worker's buffer and through a pipe.
    pub(crate) copied: u64,
    pub(crate) spliced: u64,
    /// What was wrong, one line per session. A lane ends with its first.
    pub(crate) damaged: Vec<String>,
}

/// When a server answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum When {
    /// Before it reads.
    Before,
    /// While it reads.
    While,
    /// When it has read the client's FIN.
    After,
}

/// How one end goes about it.
#[derive(Clone, Debug)]
struct Habits {
    /// Writes and reads are of up to so many bytes.
    write: u64,
    read: u64,
    /// How often it rests before one of them.
    rest: f64,
    /// So small that its sender soon has to wait.
    receive_buffer: Option<u32>,
}

/// A whole session.
#[derive(Clone, Debug)]
struct Plan {
    seed: u64,
    request: u64,
    answer: u64,
    when: When,
    /// The client reads when it has sent everything, not before.
    client_reads_late: bool,
    client: Habits,
    server: Habits,
}

/// Most are small, some are large enough to be spliced and to block.
fn size(random: &mut Random) -> u64 {
    let bound = match random.below(200) {
        0..6 => 1,
        6..66 => 100,
        66..136 => 16 << 10,
        136..187 => 256 << 10,
        187..199 => 2 << 20,
        _ => 8 << 20,
    };
    random.below(bound)
}

impl Habits {
    fn of(random: &mut Random, most: u64) -> Self {
        // Tiny pieces only where there are few of them.
        let piece = |random: &mut Random| match random.below(4) {
            0 if most < 20_000 => 1 + random.below(100),
            0 | 1 => 1000 + random.below(9000),
            _ => 10_000 + random.below(CHUNK as u64 - 10_000),
        };
        Self {
            write: piece(random),
            read: piece(random),
            rest: [0.0, 0.0, 0.02][random.below(3) as usize],
            receive_buffer: random.chance(0.1).then_some(16 << 10),
        }
    }
}

impl Plan {
    fn of(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let (request, answer) = (size(&mut random), size(&mut random));
        let when = [When::Before, When::While, When::After][random.below(3) as usize];
        Self {
            seed,
            request,
            answer,
            when,
            // Else neither might read.
            client_reads_late: when != When::Before && random.chance(0.3),
            client: Habits::of(&mut random, request.max(answer)),
            server: Habits::of(&mut random, request.max(answer)),
        }
    }

    fn request_pattern(&self) -> Pattern {
        Pattern::new(self.seed)
    }

    fn answer_pattern(&self) -> Pattern {
        Pattern::new(!self.seed)
    }

    async fn client(&self, to: std::net::SocketAddr) -> io::Result<()> {
        let socket = TcpSocket::new_v4()?;
        if let Some(size) = self.client.receive_buffer {
            socket.set_recv_buffer_size(size)?;
        }
        let stream = socket.connect(to).await?;
        stream.set_nodelay(true)?;
        stream::write(&stream, &privatelink_header(ENDPOINT), |_| ()).await?;
        let mut random = Random::new(self.seed ^ 1);
        let send = self.client.send(
            &stream,
            random.clone(),
            self.request_pattern(),
            self.request,
        );
        let _ = random.number();
        let read = self
            .client
            .read(&stream, random, self.answer_pattern(), self.answer);
        if self.client_reads_late {
            send.await?;
            read.await
        } else {
            tokio::try_join!(send, read).map(|_| ())
        }
    }

    async fn server(&self, stream: TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        if let Some(size) = self.server.receive_buffer {
            socket2::SockRef::from(&stream).set_recv_buffer_size(size as usize)?;
        }
        let random = Random::new(self.seed ^ 2);
        let send = self
            .server
            .send(&stream, random.clone(), self.answer_pattern(), self.answer);
        let read = self
            .server
            .read(&stream, random, self.request_pattern(), self.request);
        match self.when {
            When::Before => {
                send.await?;
                read.await
            }
            When::While => tokio::try_join!(send, read).map(|_| ()),
            When::After => {
                read.await?;
                send.await
            }
        }
    }
}

impl Habits {
    /// A rest is what a peer does, not a wait for something.
    async fn perhaps_rest(&self, random: &mut Random) {
        if random.chance(self.rest) {
            sleep(Duration::from_millis(1 + random.below(3))).await;
        }
    }

    async fn send(
        &self,
        stream: &TcpStream,
        mut random: Random,
        pattern: Pattern,
        n: u64,
    ) -> io::Result<()> {
        let mut chunk = vec![0; self.write.min(n) as usize];
        let mut sent = 0;
        while sent < n {
            self.perhaps_rest(&mut random).await;
            let piece = (1 + random.below(self.write)).min(n - sent) as usize;
            pattern.fill(sent, &mut chunk[..piece]);
            stream::write(stream, &chunk[..piece], |n| sent += n as u64).await?;
        }
        stream::finish(stream)
    }

    async fn read(
        &self,
        stream: &TcpStream,
        mut random: Random,
        pattern: Pattern,
        n: u64,
    ) -> io::Result<()> {
        let mut received = 0;
        loop {
            self.perhaps_rest(&mut random).await;
            let most = 1 + random.below(self.read) as usize;
            let read = stream::read_at_most(stream, most, |bytes| {
                let at = received;
                received += bytes.len() as u64;
                pattern.check(at, bytes)
            });
            match read.await {
                Ok(Some(checked)) => checked?,
                Ok(None) if received == n => return Ok(()),
                Ok(None) => return Err(wrong(format!("FIN after {received} bytes of {n}"))),
                Err(error) => {
                    return Err(wrong(format!("{error} after {received} bytes of {n}")));
                }
            }
        }
    }
}

fn wrong(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// The relay's ports and the origin's, one of each per lane; the first lane has the shipped ones.
fn port(lane: u64) -> (u64, u64) {
    match lane {
        0 => (8443, 443),
        lane => (9000 + lane, 7000 + lane),
    }
}

fn with_lanes(start: Start) -> Start {
    let targets = format!("targets = [\"{ORIGIN}\"]");
    let more: String = (1..LANES)
        .map(|lane| {
            let (listener, origin) = port(lane);
            format!(
                "\n[[listener]]\nname = \"lane{lane}\"\nbind = \"0.0.0.0:{listener}\"\n\
                 trusted_peers = [\"10.20.0.0/16\"]\nupstream = \"lane{lane}\"\n\
                 [[upstream]]\nname = \"lane{lane}\"\ntargets = [\"10.30.0.2:{origin}\"]\n"
            )
        })
        .collect();
    start.replace(&targets, &format!("{targets}\n{more}"))
}

/// The far end of a lane: serves one session after the other, as it is told.
async fn serve(
    listener: TcpListener,
    mut turns: mpsc::Receiver<u64>,
    done: mpsc::Sender<io::Result<()>>,
) {
    while let Some(seed) = turns.recv().await {
        let served = within(PATIENCE, async {
            let (stream, _) = listener.accept().await?;
            Plan::of(seed).server(stream).await
        });
        if done.send(served.await).await.is_err() {
            return;
        }
    }
}

/// The near end: what was done, and what was wrong with the first that was wrong.
async fn drive(
    to: std::net::SocketAddr,
    seeds: Vec<u64>,
    turns: mpsc::Sender<u64>,
    mut done: mpsc::Receiver<io::Result<()>>,
) -> ([u64; 3], Option<String>) {
    let mut sums = [0; 3];
    for seed in seeds {
        let plan = Plan::of(seed);
        turns.send(seed).await.expect("the far end outlives us");
        // The far end ends by itself when ours is gone.
        let client = within(PATIENCE, plan.client(to)).await;
        let server = done.recv().await.expect("the far end answers each turn");
        if client.is_err() || server.is_err() {
            let said = |result: io::Result<()>| {
                result.map_or_else(|e| e.to_string(), |()| "fine".to_owned())
            };
            let (client, server) = (said(client), said(server));
            return (
                sums,
                Some(format!("client: {client}; server: {server}; {plan:?}")),
            );
        }
        sums = [sums[0] + 1, sums[1] + plan.request, sums[2] + plan.answer];
    }
    (sums, None)
}

fn bind(origin: &Host, lane: u64) -> TcpListener {
    let address = format!("10.30.0.2:{}", port(lane).1);
    let listener = origin.run(TcpListener::bind(address));
    listener.expect("the address is the origin's")
}

/// So many sessions of a seed through a relay in a mode, several at a time.
///
/// # Panics
/// When the relay keeps something, or its books are not exact.
#[track_caller]
pub(crate) fn run(mode: &str, seed: u64, streams: u64) -> Outcome {
    let hosts = Hosts::new("streams");
    // Room for reads that fill the worker's buffer: where it is less, little is ever spliced.
    hosts
        .relay
        .sysctl("net.ipv4.tcp_rmem", "4096 4194304 6291456");
    let relay = with_lanes(in_mode(mode)).on(&hosts.relay);
    let baseline = Baseline::of(&relay);
    let mut lanes = Vec::new();
    for lane in 0..LANES {
        let (turns, turn) = mpsc::channel(1);
        let (done, over) = mpsc::channel(1);
        hosts
            .origin
            .spawn(serve(bind(&hosts.origin, lane), turn, done));
        let to = format!("10.20.0.2:{}", port(lane).0);
        // Sixteen million apart, so that neither lanes nor runs share sessions.
        let mut seeds = Random::new(seed.wrapping_mul(1 << 24) + lane);
        let share = streams / LANES + u64::from(lane < streams % LANES);
        let seeds = (0..share).map(|_| seeds.number() >> 1).collect();
        lanes.push((to.parse().expect("an address"), seeds, turns, over));
    }
    let bound = PATIENCE * 2 + PATIENCE_EACH * (streams / LANES) as u32;
    let ended = hosts.node.run_within(bound, async move {
        let mut all = JoinSet::new();
        for (to, seeds, turns, over) in lanes {
            all.spawn(drive(to, seeds, turns, over));
        }
        all.join_all().await
    });
    let mut outcome = Outcome::default();
    let mut sums = [0; 2];
    for ([streams, request, answer], damage) in ended {
        outcome.streams += streams;
        sums = [sums[0] + request, sums[1] + answer];
        outcome.damaged.extend(damage);
    }
    outcome.bytes = sums[0] + sums[1];
    if !outcome.damaged.is_empty() {
        return outcome;
    }
    relay.wait_metric(
        "tollgate_connections_closed_total",
        &[("reason", "completed")],
        streams,
    );
    for (way, sum) in Way::ALL.into_iter().zip(sums) {
        let labels = [("endpoint", ENDPOINT), ("direction", way.name())];
        assert_eq!(
            relay.metric("tollgate_bytes_total", &labels),
            sum,
            "{way:?}"
        );
    }
    let moved = |path| relay.metric("tollgate_relay_bytes_total", &[("mode", path)]);
    (outcome.copied, outcome.spliced) = (moved("copy"), moved("splice"));
    assert_eq!(outcome.copied + outcome.spliced, outcome.bytes);
    world::assert_at_rest(&relay, baseline);
    outcome
}

impl Outcome {
    /// Checks that the mode did what it is called.
    #[track_caller]
    pub(crate) fn assert_mode(&self, mode: &str) {
        match mode {
            "copy" => assert_eq!(self.spliced, 0),
            "splice" => assert!(self.spliced > self.copied, "{self:?}"),
            _ => assert!(self.copied > 0 && self.spliced > 0, "{self:?}"),
        }
    }
}
