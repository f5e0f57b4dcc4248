//! One flow over the link for as long as it takes to fill it: how much of the link it uses, how soon, and what holds it back.

use std::{
    io,
    net::TcpStream,
    os::fd::AsFd,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use rustix::{
    event::epoll::EventFlags,
    io::Errno,
    net::{RecvFlags, SendFlags, recv, send},
};
use socket2::SockRef;

use crate::{harness::netns::Host, lab::World, load::Readiness, peers::Running};

/// From the first byte on: what a flow is left to find its rate, and what is measured then.
pub(crate) const TO_FIND_ITS_RATE: Duration = Duration::from_millis(3500);
pub(crate) const MEASURED: Duration = Duration::from_millis(2000);
/// How often it is looked at meanwhile, and the part of its later rate that counts for having found it.
const LOOK: Duration = Duration::from_millis(100);
const FOUND: f64 = 0.8;
const WRITE: usize = 256 * 1024;
const READ: usize = 1024 * 1024;

/// Which way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    ToUpstream,
    ToClient,
}

impl Way {
    pub(crate) const ALL: [Self; 2] = [Self::ToUpstream, Self::ToClient];

    /// As everywhere else.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::ToUpstream => "to_upstream",
            Self::ToClient => "to_client",
        }
    }
}

/// What came of one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Flow {
    /// Bits of payload a second that arrived at the far end.
    pub(crate) rate: f64,
    /// When it had found that rate, after its first byte.
    pub(crate) found: Duration,
    /// What the kernel says of the socket that sends over the link.
    pub(crate) sender: Sender,
}

/// The socket that sends over the link, while the rate was measured.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Sender {
    /// Parts of the time in which it had something to send and could not, because of the window that the receiver offers, or because its own
    /// buffer was full of what is under way.
    pub(crate) by_window: f64,
    pub(crate) by_buffer: f64,
    /// Segments sent again since its first byte.
    pub(crate) retransmits: u64,
    /// Bytes that its congestion control would have under way.
    pub(crate) window: f64,
}

/// What held a flow back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Limit {
    Link,
    ReceiveBuffer,
    SendBuffer,
    Congestion,
}

impl Limit {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Link => "the link",
            Self::ReceiveBuffer => "the receiver's window",
            Self::SendBuffer => "the sender's buffer",
            Self::Congestion => "congestion control",
        }
    }
}

impl Flow {
    /// What held it back, where the link lets so much through.
    pub(crate) fn limit(&self, link: f64) -> Limit {
        let Sender {
            by_window,
            by_buffer,
            ..
        } = self.sender;
        match () {
            () if self.rate > 0.9 * link => Limit::Link,
            () if by_window.max(by_buffer) < 0.2 => Limit::Congestion,
            () if by_window > by_buffer => Limit::ReceiveBuffer,
            () => Limit::SendBuffer,
        }
    }
}

/// One flow through this relay.
pub(crate) fn flow(world: &World, relay: &Running, way: Way) -> io::Result<Flow> {
    let ends = world.connect(relay.number(), relay.address(), 1)?;
    let (client, origin) = (&ends.client[0], &ends.origin[0]);
    // Over the link it is the relay that sends to the origin, and the client where there is no relay.
    let near = match relay.process_id() {
        Some(_) => &world.relay,
        None => &world.client,
    };
    let (from, to, sender) = match way {
        Way::ToUpstream => (client, origin, near),
        Way::ToClient => (origin, client, &world.origin),
    };
    let port = World::origin(relay.number()).port();
    let (over, arrived) = (AtomicBool::new(false), AtomicU64::new(0));
    let flow = thread::scope(|scope| {
        let sending = scope.spawn(|| send_until(from, &over));
        let receiving = scope.spawn(|| receive_until(to, &over, &arrived));
        let watched = watch(&arrived, || Said::by(sender, port));
        over.store(true, Ordering::Release);
        let sent = sending.join().expect("it does not panic");
        let received = receiving.join().expect("it does not panic");
        sent.and(received).and(watched)
    });
    // What is still in buffers is nobody's: the next flow has the link to itself.
    for end in [client, origin] {
        SockRef::from(end).set_linger(Some(Duration::ZERO))?;
    }
    flow
}

fn watch(arrived: &AtomicU64, said: impl Fn() -> io::Result<Said>) -> io::Result<Flow> {
    let began = Instant::now();
    let mut seen = vec![(Duration::ZERO, 0)];
    let mut look_until = |end: Duration| {
        while began.elapsed() < end {
            thread::sleep(LOOK);
            seen.push((began.elapsed(), arrived.load(Ordering::Acquire)));
        }
        seen.len() - 1
    };
    let first = look_until(TO_FIND_ITS_RATE);
    let before = said()?;
    let last = look_until(TO_FIND_ITS_RATE + MEASURED);
    let after = said()?;
    let per_second = |from: usize, to: usize| {
        let ((since, before), (until, after)) = (seen[from], seen[to]);
        let bits = (after - before) as f64 * 8.0;
        bits / (until - since).as_secs_f64()
    };
    let rate = per_second(first, last);
    // Over half a second each: what arrives does so in rounds.
    let found = (5..seen.len()).find(|at| per_second(at - 5, *at) >= FOUND * rate);
    Ok(Flow {
        rate,
        found: found.map_or(seen[last].0, |at| seen[at - 5].0),
        sender: after.since(before),
    })
}

fn send_until(socket: &TcpStream, over: &AtomicBool) -> io::Result<()> {
    let ready = Readiness::of(std::slice::from_ref(socket), EventFlags::OUT)?;
    let (bytes, mut events) = (vec![7; WRITE], Vec::with_capacity(1));
    while !over.load(Ordering::Acquire) {
        if ready.wait(&mut events)?.next().is_none() {
            continue;
        }
        match send(socket, &bytes, SendFlags::NOSIGNAL) {
            Ok(_) | Err(Errno::AGAIN) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

fn receive_until(socket: &TcpStream, over: &AtomicBool, arrived: &AtomicU64) -> io::Result<()> {
    let ready = Readiness::of(std::slice::from_ref(socket), EventFlags::IN)?;
    let (mut room, mut events) = (vec![0; READ], Vec::with_capacity(1));
    while !over.load(Ordering::Acquire) {
        if ready.wait(&mut events)?.next().is_none() {
            continue;
        }
        match recv(socket.as_fd(), &mut room[..], RecvFlags::TRUNC) {
            Ok((_, 0)) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok((_, n)) => _ = arrived.fetch_add(n as u64, Ordering::AcqRel),
            Err(Errno::AGAIN) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

/// What ss(8) says of the connection that has sent most to or from this port of the origin, in seconds, segments and bytes.
#[derive(Clone, Copy, Debug, Default)]
struct Said {
    busy: f64,
    by_window: f64,
    by_buffer: f64,
    sent: f64,
    retransmits: f64,
    window: f64,
}

impl Said {
    fn by(host: &Host, port: u16) -> io::Result<Self> {
        let mut command = host.command("ss");
        command.args(["-tinOH", "state", "established"]);
        command.arg(format!("( dport = :{port} or sport = :{port} )"));
        let output = command.output()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let all = text.lines().map(Self::read);
        all.max_by(|a, b| a.sent.total_cmp(&b.sent)).ok_or_else(|| {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            io::Error::other(format!("ss shows no connection at port {port}: {said}"))
        })
    }

    fn read(line: &str) -> Self {
        let number = |key: &str| -> f64 {
            let text = line.split_whitespace().find_map(|word| {
                let text = word.strip_prefix(key)?.strip_prefix(':')?;
                Some(text.rsplit('/').next().unwrap_or(text))
            });
            let digits = text.unwrap_or_default();
            let end = digits.find(|c: char| !c.is_ascii_digit() && c != '.');
            digits[..end.unwrap_or(digits.len())].parse().unwrap_or(0.0)
        };
        Self {
            busy: number("busy") / 1000.0,
            by_window: number("rwnd_limited") / 1000.0,
            by_buffer: number("sndbuf_limited") / 1000.0,
            sent: number("bytes_sent"),
            retransmits: number("retrans"),
            window: number("cwnd") * number("mss"),
        }
    }

    fn since(self, before: Self) -> Sender {
        let busy = (self.busy - before.busy).max(1e-3);
        let retransmits = self.retransmits as u64;
        Sender {
            by_window: (self.by_window - before.by_window) / busy,
            by_buffer: (self.by_buffer - before.by_buffer) / busy,
            retransmits,
            window: self.window,
        }
    }
}
