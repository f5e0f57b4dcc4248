//! What goes over the connections: as much as fits, or one question after the other. Both ends are in this process, so a run ends when every
//! byte that was sent has arrived, and nobody has to close anything before.
//!
//! It has to be cheaper than what it loads: large writes, and readers that throw bytes away without copying them (MSG_TRUNC).

use std::{
    io,
    net::TcpStream,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use rustix::{
    buffer::spare_capacity,
    event::{
        Timespec,
        epoll::{self, CreateFlags, EventData, EventFlags},
    },
    io::Errno,
    net::{RecvFlags, SendFlags, recv, send},
};

use crate::{
    lab::{Ends, World},
    peers::Running,
    short::Short,
};

/// A write of bulk data.
const WRITE: usize = 256 * 1024;
/// Room of a read.
const READ: usize = 1024 * 1024;
/// Size of a request, and of its answer.
const MESSAGE: usize = 1024;
/// Between two looks at whether it is over; and how long nothing may move.
pub(crate) const LOOK_AGAIN: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 5_000_000,
};
pub(crate) const STALLED: Duration = Duration::from_secs(10);

/// What moves, and which way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Traffic {
    /// As many bytes as fit, from the client to the origin.
    ToUpstream,
    /// The other way.
    ToClient,
    /// Requests of 1 KiB and answers of the same size; each connection asks as soon as it was answered.
    RequestResponse,
    /// A connection for each request: header, request, answer, closed by the client. So many at a time.
    ShortConnections,
}

/// A kind of traffic on so many connections.
#[derive(Clone, Debug)]
pub(crate) struct Workload {
    /// For the report and for `BENCH_ONLY`.
    pub(crate) name: String,
    /// What moves.
    pub(crate) traffic: Traffic,
    /// On how many.
    pub(crate) connections: usize,
    /// The relay shares the core of client and origin.
    pub(crate) same_core: bool,
}

impl Workload {
    /// Whether it counts bytes, not transactions.
    pub(crate) fn is_bulk(&self) -> bool {
        matches!(self.traffic, Traffic::ToUpstream | Traffic::ToClient)
    }
}

/// All of them.
pub(crate) fn workloads() -> Vec<Workload> {
    let mut all = Vec::new();
    for connections in [1, 16] {
        for (traffic, to) in [
            (Traffic::ToUpstream, "to_upstream"),
            (Traffic::ToClient, "to_client"),
        ] {
            let s = if connections == 1 { "" } else { "s" };
            all.push(Workload {
                name: format!("bulk {to} {connections} flow{s}"),
                traffic,
                connections,
                same_core: false,
            });
        }
    }
    for (connections, same_core, name) in [
        (1, false, "1 connection"),
        (1, true, "1 connection on one core for all"),
        (64, false, "64 connections"),
    ] {
        all.push(Workload {
            name: format!("request/response 1 KiB {name}"),
            traffic: Traffic::RequestResponse,
            connections,
            same_core,
        });
    }
    all.push(Workload {
        name: "short connections with PROXY v2 header, 32 at a time".to_owned(),
        traffic: Traffic::ShortConnections,
        connections: 32,
        same_core: false,
    });
    all
}

/// What came of it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Outcome {
    /// Bytes, or transactions.
    pub(crate) units: u64,
    /// From the first to the arrival of the last.
    pub(crate) elapsed: Duration,
    /// Half of the transactions, and 99 of 100, took no longer.
    pub(crate) p50_p99: Option<[Duration; 2]>,
}

/// What a workload needs before it begins: connections, or what to open them with.
#[derive(Debug)]
pub(crate) enum Prepared<'a> {
    /// Both ends of each.
    Connected(Traffic, Ends),
    /// They come and go.
    Short(Short<'a>),
}

impl<'a> Prepared<'a> {
    /// Through this relay.
    pub(crate) fn new(world: &'a World, relay: &Running, workload: &Workload) -> io::Result<Self> {
        match workload.traffic {
            Traffic::ShortConnections => {
                Ok(Self::Short(Short::new(world, relay, workload.connections)))
            }
            traffic => {
                let ends = world.connect(relay.number(), relay.address(), workload.connections)?;
                Ok(Self::Connected(traffic, ends))
            }
        }
    }

    /// Loads them for `length`, and until everything has arrived.
    pub(crate) fn run(&self, length: Duration) -> io::Result<Outcome> {
        match self {
            Self::Short(short) => short.run(length),
            Self::Connected(traffic, ends) => match traffic {
                Traffic::ToUpstream => bulk(&ends.client, &ends.origin, length),
                Traffic::ToClient => bulk(&ends.origin, &ends.client, length),
                _ => request_response(&ends.client, &ends.origin, length),
            },
        }
    }
}

impl Outcome {
    /// One unit for each, and what most of them took.
    pub(crate) fn of_latencies(mut latencies: Vec<Duration>, elapsed: Duration) -> Self {
        latencies.sort_unstable();
        let at = |percent: usize| latencies.get(latencies.len() * percent / 100).copied();
        Self {
            units: latencies.len() as u64,
            elapsed,
            p50_p99: at(50).zip(at(99)).map(|(p50, p99)| [p50, p99]),
        }
    }
}

fn bulk(senders: &[TcpStream], receivers: &[TcpStream], length: Duration) -> io::Result<Outcome> {
    let total = AtomicU64::new(u64::MAX);
    let began = Instant::now();
    let units = thread::scope(|scope| {
        let receiver = scope.spawn(|| receive(receivers, &total));
        let sent = send_until(senders, began + length);
        // Also when it failed: or nobody would end.
        total.store(*sent.as_ref().unwrap_or(&0), Ordering::Release);
        let received = receiver.join().expect("it does not panic");
        sent.and(received)
    })?;
    Ok(Outcome {
        units,
        elapsed: began.elapsed(),
        p50_p99: None,
    })
}

fn send_until(sockets: &[TcpStream], end: Instant) -> io::Result<u64> {
    let ready = Readiness::of(sockets, EventFlags::OUT)?;
    let (bytes, mut sent, mut events) = (vec![7; WRITE], 0, Vec::with_capacity(sockets.len()));
    while Instant::now() < end {
        for socket in ready.wait(&mut events)? {
            match send(&sockets[socket], &bytes, SendFlags::NOSIGNAL) {
                Ok(n) => sent += n as u64,
                Err(Errno::AGAIN) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
    Ok(sent)
}

/// Reads until the total, which is known late, has come.
fn receive(sockets: &[TcpStream], total: &AtomicU64) -> io::Result<u64> {
    let ready = Readiness::of(sockets, EventFlags::IN)?;
    let (mut room, mut received, mut events) =
        (vec![0; READ], 0, Vec::with_capacity(sockets.len()));
    let mut moved = Instant::now();
    while received < total.load(Ordering::Acquire) {
        let before = received;
        for socket in ready.wait(&mut events)? {
            match recv(&sockets[socket], &mut room[..], RecvFlags::TRUNC) {
                Ok((_, 0)) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok((_, n)) => received += n as u64,
                Err(Errno::AGAIN) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        if received > before {
            moved = Instant::now();
        } else if moved.elapsed() > STALLED {
            return Err(io::Error::other(format!(
                "nothing moves after {received} bytes"
            )));
        }
    }
    Ok(received)
}

fn request_response(
    clients: &[TcpStream],
    origins: &[TcpStream],
    length: Duration,
) -> io::Result<Outcome> {
    let over = AtomicBool::new(false);
    let began = Instant::now();
    let latencies = thread::scope(|scope| {
        let answering = scope.spawn(|| answer(origins, &over));
        let asked = ask(clients, began + length);
        over.store(true, Ordering::Release);
        let answered = answering.join().expect("it does not panic");
        answered.and(asked)
    })?;
    Ok(Outcome::of_latencies(latencies, began.elapsed()))
}

/// The client: how long each transaction took.
fn ask(sockets: &[TcpStream], end: Instant) -> io::Result<Vec<Duration>> {
    let ready = Readiness::of(sockets, EventFlags::IN)?;
    let request = [b'?'; MESSAGE];
    let mut asked = vec![(Instant::now(), 0); sockets.len()];
    for socket in sockets {
        send_whole(socket, &request)?;
    }
    let (mut latencies, mut room) = (Vec::with_capacity(1 << 20), [0; MESSAGE]);
    let (mut open, mut events) = (sockets.len(), Vec::with_capacity(sockets.len()));
    while open > 0 {
        for socket in ready.wait(&mut events)? {
            let (since, got) = &mut asked[socket];
            *got += receive_some(&sockets[socket], &mut room)?;
            if *got < MESSAGE {
                continue;
            }
            let now = Instant::now();
            latencies.push(now - *since);
            (*since, *got) = (now, 0);
            if now < end {
                send_whole(&sockets[socket], &request)?;
            } else {
                open -= 1;
            }
        }
        if Instant::now() > end + STALLED {
            return Err(io::Error::other(format!("{open} requests have no answer")));
        }
    }
    Ok(latencies)
}

/// The origin.
fn answer(sockets: &[TcpStream], over: &AtomicBool) -> io::Result<()> {
    let ready = Readiness::of(sockets, EventFlags::IN)?;
    let answer = [b'!'; MESSAGE];
    let (mut got, mut room) = (vec![0; sockets.len()], [0; MESSAGE]);
    let mut events = Vec::with_capacity(sockets.len());
    while !over.load(Ordering::Acquire) {
        for socket in ready.wait(&mut events)? {
            got[socket] += receive_some(&sockets[socket], &mut room)?;
            if got[socket] == MESSAGE {
                got[socket] = 0;
                send_whole(&sockets[socket], &answer)?;
            }
        }
    }
    Ok(())
}

fn receive_some(socket: &TcpStream, room: &mut [u8]) -> io::Result<usize> {
    match recv(socket, room, RecvFlags::TRUNC) {
        Ok((_, 0)) => Err(io::ErrorKind::UnexpectedEof.into()),
        Ok((_, n)) => Ok(n),
        Err(Errno::AGAIN) => Ok(0),
        Err(errno) => Err(errno.into()),
    }
}

fn send_whole(socket: &TcpStream, bytes: &[u8]) -> io::Result<()> {
    match send(socket, bytes, SendFlags::NOSIGNAL)? {
        n if n == bytes.len() => Ok(()),
        n => Err(io::Error::other(format!("an empty socket took {n} bytes"))),
    }
}

/// Which of some sockets can be read or written.
struct Readiness(std::os::fd::OwnedFd);

impl Readiness {
    fn of(sockets: &[TcpStream], flags: EventFlags) -> io::Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        for (index, socket) in sockets.iter().enumerate() {
            epoll::add(&epoll, socket, EventData::new_u64(index as u64), flags)?;
        }
        Ok(Self(epoll))
    }

    /// Waits for some, not for long.
    fn wait<'a>(
        &self,
        events: &'a mut Vec<epoll::Event>,
    ) -> io::Result<impl Iterator<Item = usize> + 'a> {
        events.clear();
        match epoll::wait(&self.0, spare_capacity(events), Some(&LOOK_AGAIN)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        let index = |event: &epoll::Event| usize::try_from(event.data.u64());
        Ok(events.iter().filter_map(move |event| index(event).ok()))
    }
}
