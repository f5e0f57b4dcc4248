//! What goes over the connections. Both ends are in this process, so a run ends when every byte that was sent has arrived, and nobody has to
//! close anything before.
//!
//! It has to be cheaper than what it loads: large writes, and readers that throw bytes away without copying them (MSG_TRUNC).

use std::{
    io,
    net::TcpStream,
    os::fd::OwnedFd,
    sync::atomic::{AtomicU64, Ordering},
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
    pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice, tee},
};

use crate::{
    exchange::{Pace, Size, exchange},
    lab::{Ends, World},
    peers::Running,
    short::Short,
    workload::{Cut, Traffic, Workload},
};

/// A write of bulk data.
const WRITE: usize = 256 * 1024;
/// Room of a read.
const READ: usize = 1024 * 1024;
/// Pages of a write in fragments, and what is in each: the payload of a packet of 1500 bytes with timestamps.
const FRAGMENTS: usize = 256;
const FRAGMENT: usize = 1448;
/// Between two looks at whether it is over; and how long nothing may move.
pub(crate) const LOOK_AGAIN: Duration = Duration::from_millis(5);
pub(crate) const STALLED: Duration = Duration::from_secs(10);

/// What came of it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Outcome {
    /// Bytes, or transactions.
    pub(crate) units: u64,
    /// Bytes of all kinds, both ways.
    pub(crate) bytes: u64,
    /// Those of them that were bulk.
    pub(crate) bulk: u64,
    /// From the first to the arrival of the last.
    pub(crate) elapsed: Duration,
    /// Half of the transactions, and 99 of 100, took no longer.
    pub(crate) p50_p99: Option<[Duration; 2]>,
    /// The transaction that took longest.
    pub(crate) longest: Option<Duration>,
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
            longest: latencies.last().copied(),
            ..Self::default()
        }
    }
}

/// What a workload needs before it begins.
#[derive(Debug)]
pub(crate) struct Prepared<'a> {
    what: &'a Workload,
    over: Over<'a>,
    /// Requests a second, where there is a rate.
    rate: f64,
}

#[derive(Debug)]
enum Over<'a> {
    /// Connections that stay.
    Connected(Ends),
    /// Connections that come and go.
    Short(Short<'a>),
    /// One for bulk, others for requests.
    Both(Ends, Ends),
}

impl<'a> Prepared<'a> {
    /// Through this relay; `rate` is for the workload that has one.
    pub(crate) fn new(
        world: &'a World,
        relay: &Running,
        what: &'a Workload,
        rate: f64,
    ) -> io::Result<Self> {
        let connect = |n| world.connect(relay.number(), relay.address(), n);
        let over = match what.traffic {
            Traffic::ShortConnections => Over::Short(Short::new(world, relay, what.connections)),
            Traffic::Mixed | Traffic::OpenLoop => {
                Over::Both(connect(1)?, connect(what.connections)?)
            }
            _ => Over::Connected(connect(what.connections)?),
        };
        Ok(Self { what, over, rate })
    }

    /// Loads them for `length`, and until everything has arrived.
    pub(crate) fn run(&self, length: Duration) -> io::Result<Outcome> {
        let (flow, requests) = match &self.over {
            Over::Short(short) => return short.run(length),
            Over::Connected(ends) => {
                let (client, origin) = (&ends.client, &ends.origin);
                let sender = match self.what.cut {
                    Cut::Dense => Sender::Copying(vec![7; WRITE]),
                    Cut::Fragments | Cut::Packets => Sender::fragments()?,
                };
                let reading = match self.what.copied {
                    true => RecvFlags::empty(),
                    false => RecvFlags::TRUNC,
                };
                return match self.what.traffic {
                    Traffic::ToUpstream => bulk(client, origin, &sender, reading, length),
                    Traffic::RequestResponse(size) => {
                        exchange(ends, Size::Fixed(size), Pace::AtOnce, length)
                    }
                    _ => bulk(origin, client, &sender, reading, length),
                };
            }
            Over::Both(flow, requests) => (flow, requests),
        };
        let (size, pace) = match self.what.traffic {
            Traffic::Mixed => (Size::Mixed, Pace::Pausing),
            _ => (Size::Fixed(1024), Pace::Rate(self.rate)),
        };
        let sender = Sender::Copying(vec![7; WRITE]);
        thread::scope(|scope| {
            let flow = scope.spawn(|| {
                bulk(
                    &flow.origin,
                    &flow.client,
                    &sender,
                    RecvFlags::TRUNC,
                    length,
                )
            });
            let exchanged = exchange(requests, size, pace, length);
            let flow = flow.join().expect("it does not panic")?;
            let mut both = exchanged?;
            (both.bulk, both.bytes) = (flow.bulk, both.bytes + flow.bulk);
            both.elapsed = both.elapsed.max(flow.elapsed);
            Ok(both)
        })
    }
}

fn bulk(
    senders: &[TcpStream],
    receivers: &[TcpStream],
    sender: &Sender,
    reading: RecvFlags,
    length: Duration,
) -> io::Result<Outcome> {
    let total = AtomicU64::new(u64::MAX);
    let began = Instant::now();
    let units = thread::scope(|scope| {
        let receiver = scope.spawn(|| receive(receivers, reading, &total));
        let sent = send_until(senders, sender, began + length);
        // Also when it failed: or nobody would end.
        total.store(*sent.as_ref().unwrap_or(&0), Ordering::Release);
        let received = receiver.join().expect("it does not panic");
        sent.and(received)
    })?;
    Ok(Outcome {
        units,
        bytes: units,
        bulk: units,
        elapsed: began.elapsed(),
        ..Outcome::default()
    })
}

/// How bulk is sent.
enum Sender {
    /// Copied into the socket, which packs it densely into large pages.
    Copying(Vec<u8>),
    /// Pages with one packet's payload in each, as a network card fills them: a pipe that always has them, and the ends of one that takes
    /// them to a socket.
    Fragments {
        pages: [OwnedFd; 2],
        way: [OwnedFd; 2],
    },
}

impl Sender {
    fn fragments() -> io::Result<Self> {
        // Each write of a pipe with O_DIRECT is a page of its own.
        let pipe = |flags| -> io::Result<[OwnedFd; 2]> {
            let (out, into) = pipe_with(flags | PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
            fcntl_setpipe_size(&into, FRAGMENTS * 4096)?;
            Ok([out, into])
        };
        let (pages, way) = (pipe(PipeFlags::DIRECT)?, pipe(PipeFlags::empty())?);
        for _ in 0..FRAGMENTS {
            rustix::io::write(&pages[1], &[7; FRAGMENT])?;
        }
        Ok(Self::Fragments { pages, way })
    }

    /// As much as fits.
    fn send(&self, socket: &TcpStream) -> rustix::io::Result<usize> {
        match self {
            Self::Copying(bytes) => send(socket, bytes, SendFlags::NOSIGNAL),
            Self::Fragments { pages, way } => {
                match tee(
                    &pages[0],
                    &way[1],
                    FRAGMENTS * FRAGMENT,
                    SpliceFlags::NONBLOCK,
                ) {
                    // It is full of what the last socket did not take.
                    Ok(_) | Err(Errno::AGAIN) => {}
                    Err(errno) => return Err(errno),
                }
                let flags = SpliceFlags::NONBLOCK;
                splice(&way[0], None, socket, None, FRAGMENTS * FRAGMENT, flags)
            }
        }
    }
}

fn send_until(sockets: &[TcpStream], sender: &Sender, end: Instant) -> io::Result<u64> {
    let ready = Readiness::of(sockets, EventFlags::OUT)?;
    let (mut sent, mut events) = (0, Vec::with_capacity(sockets.len()));
    while Instant::now() < end {
        for socket in ready.wait(&mut events)? {
            match sender.send(&sockets[socket]) {
                Ok(n) => sent += n as u64,
                Err(Errno::AGAIN) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
    Ok(sent)
}

/// Reads until the total, which is known late, has come.
fn receive(sockets: &[TcpStream], reading: RecvFlags, total: &AtomicU64) -> io::Result<u64> {
    let ready = Readiness::of(sockets, EventFlags::IN)?;
    let (mut room, mut received, mut events) =
        (vec![0; READ], 0, Vec::with_capacity(sockets.len()));
    let mut moved = Instant::now();
    while received < total.load(Ordering::Acquire) {
        let before = received;
        for socket in ready.wait(&mut events)? {
            match recv(&sockets[socket], &mut room[..room_of(reading)], reading) {
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

/// What is copied is soon written over in the caches.
fn room_of(reading: RecvFlags) -> usize {
    if reading.is_empty() { WRITE } else { READ }
}

/// Which of some sockets can be read or written.
pub(crate) struct Readiness(OwnedFd);

impl Readiness {
    /// Of these, known by their place.
    pub(crate) fn of(sockets: &[TcpStream], flags: EventFlags) -> io::Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        for (index, socket) in sockets.iter().enumerate() {
            epoll::add(&epoll, socket, EventData::new_u64(index as u64), flags)?;
        }
        Ok(Self(epoll))
    }

    /// From now on for these flags.
    pub(crate) fn watch(
        &self,
        place: usize,
        socket: &TcpStream,
        flags: EventFlags,
    ) -> io::Result<()> {
        Ok(epoll::modify(
            &self.0,
            socket,
            EventData::new_u64(place as u64),
            flags,
        )?)
    }

    /// Waits for some, not for long.
    pub(crate) fn wait<'a>(
        &self,
        events: &'a mut Vec<epoll::Event>,
    ) -> io::Result<impl Iterator<Item = usize> + use<'a>> {
        self.wait_within(LOOK_AGAIN, events)
    }

    /// Waits for some, so long.
    pub(crate) fn wait_within<'a>(
        &self,
        timeout: Duration,
        events: &'a mut Vec<epoll::Event>,
    ) -> io::Result<impl Iterator<Item = usize> + use<'a>> {
        events.clear();
        let timeout = Timespec::try_from(timeout).map_err(io::Error::other)?;
        match epoll::wait(&self.0, spare_capacity(events), Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        let index = |event: &epoll::Event| usize::try_from(event.data.u64());
        Ok(events.iter().filter_map(move |event| index(event).ok()))
    }
}
