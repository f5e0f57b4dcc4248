//! Short connections: each opens, sends a PROXY v2 header and a small request in one segment, as a balancer's client would, reads a small answer and
//! closes with FIN; the origin closes when it has seen that. As many at a time as asked for, each followed by the next.

use std::{
    io,
    net::{SocketAddr, TcpListener},
    os::fd::{AsFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use rustix::{
    buffer::spare_capacity,
    event::{
        Timespec,
        epoll::{self, CreateFlags, Event, EventData, EventFlags},
    },
    io::Errno,
    net::{
        AddressFamily, RecvFlags, SocketFlags, SocketType, accept_with, connect, recv, socket_with,
        sockopt::set_tcp_nodelay,
    },
};

use crate::{
    exchange::send_whole,
    harness::nlb::header,
    lab::{Ends, World},
    load::{LOOK_AGAIN, Outcome, STALLED},
    peers::Running,
};

/// Of a request, without the header, and of its answer.
const REQUEST: usize = 100;
const ANSWER: usize = 100;
/// From so many endpoints they come in turn.
const ENDPOINTS: usize = 100;
/// The listening socket among the origin's events.
const LISTENER: u64 = u64::MAX;

/// What is opened, and where it arrives.
#[derive(Debug)]
pub(crate) struct Short<'a> {
    world: &'a World,
    listener: &'a TcpListener,
    address: SocketAddr,
    /// Header and request, for each endpoint.
    requests: Arc<Vec<Vec<u8>>>,
    at_a_time: usize,
}

impl<'a> Short<'a> {
    /// Through this relay. Without one there is no header either: nobody would take it away.
    pub(crate) fn new(world: &'a World, relay: &Running, at_a_time: usize) -> Self {
        Self::from_endpoints(world, relay, at_a_time, ENDPOINTS)
    }

    /// The same from so many endpoints.
    pub(crate) fn from_endpoints(
        world: &'a World,
        relay: &Running,
        at_a_time: usize,
        endpoints: usize,
    ) -> Self {
        let headers = headers_of(relay, endpoints);
        let request = |header: Vec<u8>| [header, vec![b'?'; REQUEST]].concat();
        Self {
            world,
            listener: world.listener(relay.number()),
            address: relay.address_with_header().unwrap_or(relay.address()),
            requests: Arc::new(headers.into_iter().map(request).collect()),
            at_a_time,
        }
    }

    /// Opens one after the other for `length`, and until the last is closed at the origin.
    pub(crate) fn run(&self, length: Duration) -> io::Result<Outcome> {
        self.open(length, usize::MAX)
    }

    /// One from each endpoint, within this time.
    pub(crate) fn each_once(&self, within: Duration) -> io::Result<Outcome> {
        let wanted = self.requests.len();
        let outcome = self.open(within, wanted)?;
        match outcome.units == wanted as u64 {
            true => Ok(outcome),
            false => Err(io::Error::other(format!(
                "{} of {wanted} connections within {within:?}",
                outcome.units
            ))),
        }
    }

    fn open(&self, length: Duration, most: usize) -> io::Result<Outcome> {
        let over = AtomicBool::new(false);
        let began = Instant::now();
        let latencies = thread::scope(|scope| {
            let answering = scope.spawn(|| answer(self.listener, &over));
            let (address, requests) = (self.address, Arc::clone(&self.requests));
            let at_a_time = self.at_a_time;
            // There, because a socket belongs to the host of the thread that opens it.
            let asked = self
                .world
                .client
                .call(move || ask(address, &requests, at_a_time, began + length, most));
            over.store(true, Ordering::Release);
            let answered = answering.join().expect("it does not panic");
            asked.and_then(|latencies| answered.map(|()| latencies))
        })?;
        Ok(Outcome::of_latencies(latencies, began.elapsed()))
    }
}

/// The id of the first endpoint, behind `vpce-` and zeroes.
pub(crate) const FIRST_ENDPOINT: usize = 0x0abc_def0_1234_5670;

/// A header for each endpoint; empty ones where nobody would read them.
pub(crate) fn headers(relay: &Running) -> Vec<Vec<u8>> {
    headers_of(relay, ENDPOINTS)
}

fn headers_of(relay: &Running, endpoints: usize) -> Vec<Vec<u8>> {
    let source = SocketAddr::from(([192, 0, 2, 7], 40_000));
    let one = |number: usize| {
        let to = relay.address_with_header()?;
        let id = format!("vpce-{:017x}", FIRST_ENDPOINT + number);
        Some(header::proxy(source, to, Some(&id)))
    };
    (0..endpoints)
        .map(|number| one(number).unwrap_or_default())
        .collect()
}

/// One request and one answer on each of these connections, one after the other.
pub(crate) fn once_each(ends: &Ends) -> io::Result<()> {
    for (from, to, length) in [
        (&ends.client, &ends.origin, REQUEST),
        (&ends.origin, &ends.client, ANSWER),
    ] {
        for socket in from {
            send_whole(socket, &vec![b'.'; length])?;
        }
        let deadline = Instant::now() + STALLED;
        for socket in to {
            let mut got = 0;
            while got < length {
                got += receive(socket)?.unwrap_or(0);
                if Instant::now() > deadline {
                    return Err(io::Error::other("idle connections carry nothing"));
                }
            }
        }
    }
    Ok(())
}

/// One connection of the client.
struct Asking {
    socket: OwnedFd,
    since: Instant,
    sent: bool,
    got: usize,
}

/// The client: how long each took, from connecting to the whole answer. `most`: no more of them, and that is more than at a time.
fn ask(
    address: SocketAddr,
    requests: &[Vec<u8>],
    at_a_time: usize,
    end: Instant,
    most: usize,
) -> io::Result<Vec<Duration>> {
    let ready = epoll::create(CreateFlags::CLOEXEC)?;
    let open = |place: usize| -> io::Result<Asking> {
        let asking = connect_to(address)?;
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::ET;
        epoll::add(
            &ready,
            &asking.socket,
            EventData::new_u64(place as u64),
            flags,
        )?;
        Ok(asking)
    };
    let places = (0..at_a_time).map(|place| open(place).map(Some));
    let mut places = places.collect::<io::Result<Vec<_>>>()?;
    let mut latencies = Vec::with_capacity(1 << 16);
    let (mut left, mut asked) = (at_a_time, 0);
    let more = most.saturating_sub(at_a_time);
    let mut followed = 0;
    let mut events: Vec<Event> = Vec::with_capacity(at_a_time);
    while left > 0 {
        wait(&ready, &mut events)?;
        for event in &events {
            let (place, flags) = (event.data.u64(), event.flags);
            let place = usize::try_from(place).map_err(io::Error::other)?;
            let Some(asking) = &mut places[place] else {
                continue;
            };
            if !asking.sent && flags.intersects(EventFlags::OUT | EventFlags::ERR) {
                let request = &requests[asked % requests.len()];
                send_whole(&asking.socket, request)?;
                (asking.sent, asked) = (true, asked + 1);
            }
            if !asking.sent || !flags.contains(EventFlags::IN) {
                continue;
            }
            asking.got += receive(&asking.socket)?.unwrap_or(0);
            if asking.got < ANSWER {
                continue;
            }
            let now = Instant::now();
            latencies.push(now - asking.since);
            // Closes it: everything was read, so with FIN.
            places[place] = None;
            if now < end && followed < more {
                followed += 1;
                places[place] = Some(open(place)?);
            } else {
                left -= 1;
            }
        }
        if Instant::now() > end + STALLED {
            return Err(io::Error::other(format!(
                "{left} connections have no answer"
            )));
        }
    }
    Ok(latencies)
}

fn connect_to(address: SocketAddr) -> io::Result<Asking> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?;
    set_tcp_nodelay(&socket, true)?;
    let since = Instant::now();
    match connect(&socket, &address) {
        Ok(()) | Err(Errno::INPROGRESS) => {}
        Err(errno) => return Err(errno.into()),
    }
    Ok(Asking {
        socket,
        since,
        sent: false,
        got: 0,
    })
}

/// The origin: takes what comes, answers each request, and closes what the client closed; until it is over and nothing is open.
fn answer(listener: &TcpListener, over: &AtomicBool) -> io::Result<()> {
    let ready = epoll::create(CreateFlags::CLOEXEC)?;
    epoll::add(
        &ready,
        listener,
        EventData::new_u64(LISTENER),
        EventFlags::IN,
    )?;
    let mut open = slab::Slab::<(OwnedFd, usize)>::new();
    let mut events: Vec<Event> = Vec::with_capacity(256);
    let mut patience: Option<Instant> = None;
    while !over.load(Ordering::Acquire) || !open.is_empty() {
        if over.load(Ordering::Acquire) {
            let deadline = *patience.get_or_insert_with(|| Instant::now() + STALLED);
            if Instant::now() > deadline {
                let left = open.len();
                let said = format!("{left} connections were not closed at the origin");
                return Err(io::Error::other(said));
            }
        }
        wait(&ready, &mut events)?;
        for event in &events {
            if event.data.u64() == LISTENER {
                take_all(listener, &ready, &mut open)?;
                continue;
            }
            let place = usize::try_from(event.data.u64()).map_err(io::Error::other)?;
            let Some((socket, got)) = open.get_mut(place) else {
                continue;
            };
            match receive(&*socket) {
                Ok(Some(n)) => {
                    let before = *got;
                    *got += n;
                    if before < REQUEST && *got >= REQUEST {
                        send_whole(&*socket, &[b'!'; ANSWER])?;
                    }
                }
                Ok(None) => {}
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    open.remove(place);
                }
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
}

fn take_all(
    listener: &TcpListener,
    ready: &OwnedFd,
    open: &mut slab::Slab<(OwnedFd, usize)>,
) -> io::Result<()> {
    loop {
        let socket = match accept_with(listener, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC) {
            Ok(socket) => socket,
            Err(Errno::AGAIN) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        };
        set_tcp_nodelay(&socket, true)?;
        let place = open.vacant_entry();
        let data = EventData::new_u64(place.key() as u64);
        epoll::add(ready, &socket, data, EventFlags::IN)?;
        place.insert((socket, 0));
    }
}

fn wait(ready: &OwnedFd, events: &mut Vec<Event>) -> io::Result<()> {
    events.clear();
    let timeout = Timespec::try_from(LOOK_AGAIN).map_err(io::Error::other)?;
    match epoll::wait(ready, spare_capacity(events), Some(&timeout)) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

fn receive(socket: impl AsFd) -> io::Result<Option<usize>> {
    let mut room = [0; 1024];
    match recv(socket, &mut room, RecvFlags::empty()) {
        Ok((_, 0)) => Err(io::ErrorKind::UnexpectedEof.into()),
        Ok((_, n)) => Ok(Some(n)),
        Err(Errno::AGAIN) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}
