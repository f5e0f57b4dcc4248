//! Requests and answers on connections that stay: the client asks, the origin answers.
//!
//! When a connection asks again is its [`Pace`]. Latency counts from when a request was due, not from when there was time to send it: one that waits
//! behind a stalled one has waited.

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    io,
    net::TcpStream,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use rustix::{
    event::epoll::EventFlags,
    io::Errno,
    net::{RecvFlags, SendFlags, recv, send},
};

use crate::{
    lab::Ends,
    load::{LOOK_AGAIN, Outcome, Readiness, STALLED},
};

/// The longest message, and the least and longest of mixed ones.
const LONGEST: usize = 64 * 1024;
const SHORTEST: usize = 100;
/// How long mixed sessions pause between an answer and the next request, on average.
const PAUSE: Duration = Duration::from_millis(100);
/// What a mixed request begins with: its own length and that of the answer it wants.
const SIZES: usize = 8;

/// How large messages are.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Size {
    /// All alike.
    Fixed(usize),
    /// From 100 B to 64 KiB, each power of two as likely as the next.
    Mixed,
}

/// When a connection asks.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Pace {
    /// As soon as it was answered.
    AtOnce,
    /// After a pause.
    Pausing,
    /// So often a second over all connections, answered or not.
    Rate(f64),
}

/// Asks for `length`, and until all are answered.
pub(crate) fn exchange(
    ends: &Ends,
    size: Size,
    pace: Pace,
    length: Duration,
) -> io::Result<Outcome> {
    let over = AtomicBool::new(false);
    // Before the clock starts: that of thousands of sockets takes longer than an answer.
    let watched = |sockets| Readiness::of(sockets, EventFlags::IN);
    let (asking, answers) = (watched(&ends.client)?, watched(&ends.origin)?);
    let began = Instant::now();
    let (latencies, bytes) = thread::scope(|scope| {
        let answering = scope.spawn(|| answer(&ends.origin, &answers, size, &over));
        let asked = ask(&ends.client, asking, size, pace, began + length);
        over.store(true, Ordering::Release);
        let answered = answering.join().expect("it does not panic");
        answered.and(asked)
    })?;
    Ok(Outcome {
        bytes,
        ..Outcome::of_latencies(latencies, began.elapsed())
    })
}

/// Numbers of chance, the same in each run: every relay gets the same sizes and pauses.
pub(crate) struct Chance(pub(crate) u64);

impl Chance {
    /// From 0 to 1.
    pub(crate) fn next(&mut self) -> f64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        #[expect(clippy::cast_precision_loss, reason = "53 bits of it")]
        let part = (self.0 >> 11) as f64;
        part / (1_u64 << 53) as f64
    }

    fn size(&mut self, size: Size) -> usize {
        match size {
            Size::Fixed(size) => size,
            Size::Mixed => {
                let (least, most) = (SHORTEST as f64, LONGEST as f64);
                let size = least * (most / least).powf(self.next());
                (size as usize).clamp(SHORTEST, LONGEST)
            }
        }
    }
}

/// One end of a connection: what it still has to send and to get.
#[derive(Clone, Copy)]
struct End {
    to_send: usize,
    to_get: usize,
    /// Of a mixed request, as far as it is known.
    head: ([u8; SIZES], usize),
    watches_room: bool,
    due: Instant,
}

impl End {
    fn new(due: Instant) -> Self {
        Self {
            to_send: 0,
            to_get: 0,
            head: ([0; SIZES], 0),
            watches_room: false,
            due,
        }
    }

    /// Sends what fits; watches for room while there is more.
    fn send(
        &mut self,
        place: usize,
        ready: &Readiness,
        socket: &TcpStream,
        bytes: &[u8],
    ) -> io::Result<()> {
        while self.to_send > 0 {
            match send(socket, &bytes[..self.to_send], SendFlags::NOSIGNAL) {
                Ok(n) => self.to_send -= n,
                Err(Errno::AGAIN) => break,
                Err(errno) => return Err(errno.into()),
            }
        }
        let more = self.to_send > 0;
        if more != self.watches_room {
            self.watches_room = more;
            let flags = if more {
                EventFlags::IN | EventFlags::OUT
            } else {
                EventFlags::IN
            };
            ready.watch(place, socket, flags)?;
        }
        Ok(())
    }
}

struct Client<'a> {
    sockets: &'a [TcpStream],
    ready: Readiness,
    ends: Vec<End>,
    size: Size,
    chance: Chance,
    bytes: u64,
    message: Vec<u8>,
}

impl Client<'_> {
    fn ask(&mut self, place: usize, due: Instant) -> io::Result<()> {
        let (request, answer) = (self.chance.size(self.size), self.chance.size(self.size));
        let end = &mut self.ends[place];
        (end.to_send, end.to_get, end.due) = (request, answer, due);
        self.bytes += (request + answer) as u64;
        if let Size::Mixed = self.size {
            // Sent whole at first: an empty socket takes more than that.
            let head = [request, answer].map(|n| u32::try_from(n).unwrap_or(0).to_le_bytes());
            send_whole(&self.sockets[place], &head.concat())?;
            end.to_send -= SIZES;
        }
        end.send(place, &self.ready, &self.sockets[place], &self.message)
    }
}

/// The client: how long each transaction took, and how many bytes they were.
fn ask(
    sockets: &[TcpStream],
    ready: Readiness,
    size: Size,
    pace: Pace,
    end: Instant,
) -> io::Result<(Vec<Duration>, u64)> {
    let now = Instant::now();
    let mut client = Client {
        sockets,
        ready,
        ends: vec![End::new(now); sockets.len()],
        size,
        chance: Chance(0x2545_f491_4f6c_dd1d),
        bytes: 0,
        message: vec![b'?'; LONGEST],
    };
    let period = match pace {
        Pace::Rate(rate) => Duration::from_secs_f64(sockets.len() as f64 / rate),
        Pace::Pausing => PAUSE * 2,
        Pace::AtOnce => Duration::ZERO,
    };
    // Spread over a period, so that they do not ask in step.
    let mut waiting = BinaryHeap::new();
    for place in 0..sockets.len() {
        let first = period.mul_f64(place as f64 / sockets.len() as f64);
        waiting.push(Reverse((now + first, place)));
    }
    let (mut latencies, mut room) = (Vec::with_capacity(1 << 20), vec![0; LONGEST]);
    let (mut asking, mut events) = (0, Vec::with_capacity(sockets.len()));
    loop {
        let now = Instant::now();
        while let Some(Reverse((due, place))) =
            waiting.peek().copied().filter(|next| next.0.0 <= now)
        {
            waiting.pop();
            if now < end {
                let since = if let Pace::Rate(_) = pace { due } else { now };
                client.ask(place, since)?;
                asking += 1;
            }
        }
        if now >= end && asking == 0 {
            return Ok((latencies, client.bytes));
        }
        if now > end + STALLED {
            return Err(io::Error::other(format!(
                "{asking} requests have no answer"
            )));
        }
        let next = waiting
            .peek()
            .map(|Reverse((due, _))| due.saturating_duration_since(now));
        let timeout = next.unwrap_or(LOOK_AGAIN).min(LOOK_AGAIN);
        for place in client.ready.wait_within(timeout, &mut events)? {
            let one = &mut client.ends[place];
            if one.to_send > 0 {
                one.send(place, &client.ready, &sockets[place], &client.message)?;
            }
            if one.to_get == 0 {
                continue;
            }
            one.to_get -= receive_some(&sockets[place], &mut room[..one.to_get])?;
            if one.to_get > 0 {
                continue;
            }
            let now = Instant::now();
            latencies.push(now - one.due);
            let due = match pace {
                Pace::AtOnce => now,
                Pace::Pausing => now + PAUSE.mul_f64(2.0 * client.chance.next()),
                Pace::Rate(_) => one.due + period,
            };
            if due <= now && now < end {
                client.ask(place, due)?;
            } else {
                asking -= 1;
                waiting.push(Reverse((due, place)));
            }
        }
    }
}

/// The origin.
fn answer(
    sockets: &[TcpStream],
    ready: &Readiness,
    size: Size,
    over: &AtomicBool,
) -> io::Result<()> {
    let answer = vec![b'!'; LONGEST];
    let mut ends = vec![End::new(Instant::now()); sockets.len()];
    let (mut room, mut events) = (vec![0; LONGEST], Vec::with_capacity(sockets.len()));
    while !over.load(Ordering::Acquire) {
        for place in ready.wait(&mut events)? {
            let (end, socket) = (&mut ends[place], &sockets[place]);
            if end.to_send > 0 {
                end.send(place, ready, socket, &answer)?;
            }
            let wanted = match size {
                Size::Fixed(size) => size,
                Size::Mixed => match head(end, socket)? {
                    Some(answer) => answer,
                    None => continue,
                },
            };
            if end.to_get == 0 {
                end.to_get = wanted;
            }
            end.to_get -= receive_some(socket, &mut room[..end.to_get])?;
            if end.to_get == 0 {
                end.head.1 = 0;
                end.to_send = wanted;
                end.send(place, ready, socket, &answer)?;
            }
        }
    }
    Ok(())
}

/// Reads what a mixed request begins with; once that is whole, the size of the answer it wants.
fn head(end: &mut End, socket: &TcpStream) -> io::Result<Option<usize>> {
    let (bytes, got) = &mut end.head;
    if *got < SIZES {
        match recv(socket, &mut bytes[*got..], RecvFlags::empty()) {
            Ok((_, 0)) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok((_, n)) => *got += n,
            Err(Errno::AGAIN) => return Ok(None),
            Err(errno) => return Err(errno.into()),
        }
        if *got < SIZES {
            return Ok(None);
        }
        let [a, b, c, d, ..] = *bytes;
        end.to_get = u32::from_le_bytes([a, b, c, d]) as usize - SIZES;
    }
    let [.., a, b, c, d] = *bytes;
    Ok(Some(u32::from_le_bytes([a, b, c, d]) as usize))
}

/// Throws them away without copying.
fn receive_some(socket: &TcpStream, room: &mut [u8]) -> io::Result<usize> {
    match recv(socket, room, RecvFlags::TRUNC) {
        Ok((_, 0)) => Err(io::ErrorKind::UnexpectedEof.into()),
        Ok((_, n)) => Ok(n),
        Err(Errno::AGAIN) => Ok(0),
        Err(errno) => Err(errno.into()),
    }
}

/// To a socket that has room for it.
pub(crate) fn send_whole(socket: impl std::os::fd::AsFd, bytes: &[u8]) -> io::Result<()> {
    match send(socket, bytes, SendFlags::NOSIGNAL)? {
        n if n == bytes.len() => Ok(()),
        n => Err(io::Error::other(format!("an empty socket took {n} bytes"))),
    }
}
