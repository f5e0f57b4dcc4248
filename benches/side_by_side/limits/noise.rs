//! Requests of one endpoint while another does all it can at one of its limits.
//!
//! Once at a set rate, where latency counts from when each was due, and once as fast as they are answered. Who makes the noise shares a core with
//! client and origin, and rests between two tries: what it costs there is in the figures, too.

use std::{
    io,
    net::TcpStream,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use rustix::{
    io::Errno,
    net::{RecvFlags, SendFlags, recv, send},
};

use crate::{
    books,
    books::accounting::Interval,
    exchange::{Pace, Size, exchange},
    lab::{Ends, World},
    load::Outcome,
    peers::Running,
    processor::Cores,
    rounds::shuffled,
    short,
    summary::Spread,
    variant::Tuning,
};

/// Rounds unless said otherwise; and beyond this none is begun.
pub(crate) const ROUNDS: u32 = 12;
const BOUND: Duration = Duration::from_secs(200);

/// How requests come.
pub(crate) const CONNECTIONS: usize = 32;
const SIZE: usize = 1024;
pub(crate) const PART_OF_CAPACITY: f64 = 0.3;

/// How long they are measured at a time.
pub(crate) const LENGTH: Duration = Duration::from_millis(800);

/// The noise: so many connections a second, or so many that have bytes to move without end.
pub(crate) const COMING: Duration = Duration::from_millis(2);
pub(crate) const MOVING: usize = 8;

/// What the noisy endpoint is limited in. One relay for each, and one on which nobody makes noise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Noise {
    /// None; twice in each round: what these two differ by is what the machine does besides.
    Nothing,
    NothingAgain,
    Denied,
    Sessions,
    Rate,
    Bytes,
}

impl Noise {
    pub(crate) const ALL: [Self; 6] = [
        Self::Nothing,
        Self::NothingAgain,
        Self::Denied,
        Self::Sessions,
        Self::Rate,
        Self::Bytes,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Nothing => "no noise",
            Self::NothingAgain => "no noise, again",
            Self::Denied => "it is denied, and keeps coming",
            Self::Sessions => "it is at `max_sessions`, and keeps coming",
            Self::Rate => "it is at `sessions_per_second`, and keeps coming",
            Self::Bytes => "it is at its bytes per second, both ways",
        }
    }

    fn keys(self) -> &'static str {
        match self {
            Self::Nothing | Self::NothingAgain => "",
            Self::Denied => "deny = true",
            Self::Sessions => "max_sessions = 1",
            Self::Rate => "sessions_per_second = 1",
            Self::Bytes => {
                "bytes_per_second_to_upstream = \"10MiB\"\nbytes_per_second_to_client = \"10MiB\""
            }
        }
    }
}

/// Requests of one round: at their rate, and as fast as they are answered.
#[derive(Clone, Debug)]
pub(crate) struct Measured {
    pub(crate) round: u32,
    pub(crate) noise: Noise,
    pub(crate) paced: Outcome,
    pub(crate) fast: Outcome,
}

/// All of it.
#[derive(Clone, Debug)]
pub(crate) struct Noises {
    pub(crate) measured: Vec<Measured>,
    pub(crate) rounds: u32,
    /// Requests a second.
    pub(crate) rate: f64,
    pub(crate) took: Duration,
}

/// In rounds; the relay has the number `number`, one after the other.
pub(crate) fn noises(
    world: &World,
    cores: &Cores,
    binary: &Path,
    number: usize,
    wanted: u32,
) -> Result<Noises, String> {
    let began = Instant::now();
    let start = |noise: Noise| {
        let state = books::folder("limits-noise").map_err(|error| error.to_string())?;
        let noisy = noisy();
        let end = match noise.keys() {
            "" => String::new(),
            keys => format!("[endpoint.\"{noisy}\"]\n{keys}\n"),
        };
        let tuning = Tuning {
            end,
            ..Tuning::default()
        };
        books::relay(world, cores, number, binary, tuning, &state)
    };
    let rate = capacity(world, &start(Noise::Nothing)?).map_err(|error| error.to_string())?;
    let mut all = Noises {
        measured: Vec::new(),
        rounds: 0,
        rate: rate * PART_OF_CAPACITY,
        took: Duration::ZERO,
    };
    while all.rounds < wanted && (all.rounds == 0 || began.elapsed() < BOUND) {
        for turn in shuffled(Noise::ALL.len()) {
            let noise = Noise::ALL[turn];
            let relay = start(noise)?;
            let measured = measure(world, &relay, noise, all.rate);
            let (paced, fast) =
                measured.map_err(|error| format!("while {}: {error}", noise.name()))?;
            all.measured.push(Measured {
                round: all.rounds,
                noise,
                paced,
                fast,
            });
        }
        all.rounds += 1;
    }
    all.took = began.elapsed();
    Ok(all)
}

/// Whose headers [`short::headers`] writes second.
fn noisy() -> String {
    format!("vpce-{:017x}", short::FIRST_ENDPOINT + 1)
}

/// Connections of the quiet endpoint, the first, or of the noisy one.
fn connect(world: &World, relay: &Running, endpoint: usize, n: usize) -> io::Result<Ends> {
    let header = short::headers(relay)[endpoint].clone();
    let address = relay
        .address_with_header()
        .ok_or(io::ErrorKind::AddrNotAvailable)?;
    world.connect_with(relay.number(), address, n, &Arc::new(vec![header]))
}

fn capacity(world: &World, relay: &Running) -> io::Result<f64> {
    let ends = connect(world, relay, 0, CONNECTIONS)?;
    let outcome = exchange(&ends, Size::Fixed(SIZE), Pace::AtOnce, LENGTH)?;
    Ok(outcome.units as f64 / outcome.elapsed.as_secs_f64())
}

fn measure(
    world: &World,
    relay: &Running,
    noise: Noise,
    rate: f64,
) -> io::Result<(Outcome, Outcome)> {
    let size = Size::Fixed(SIZE);
    // Of those who were let in before, and whom nobody answered.
    while world.listener(relay.number()).accept().is_ok() {}
    // Before the noise, whose connections would arrive at the origin among these.
    let ends = connect(world, relay, 0, CONNECTIONS)?;
    let others = match noise {
        Noise::Sessions => Some(connect(world, relay, 1, 1)?),
        Noise::Bytes => Some(connect(world, relay, 1, MOVING)?),
        _ => None,
    };
    exchange(&ends, size, Pace::Rate(rate), LENGTH / 4)?;
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let making = scope.spawn(|| match (noise, &others) {
            (Noise::Nothing | Noise::NothingAgain, _) => Ok(()),
            (Noise::Bytes, Some(ends)) => move_bytes(ends, &over),
            _ => come_again(world, relay, &over),
        });
        let paced = exchange(&ends, size, Pace::Rate(rate), LENGTH);
        let fast = paced.and_then(|paced| {
            let fast = exchange(&ends, size, Pace::AtOnce, LENGTH)?;
            Ok((paced, fast))
        });
        over.store(true, Ordering::Release);
        let made = making.join().expect("it does not panic");
        made.and(fast)
    })
}

/// Comes with a header, again and again, and is reset. Whoever the limit lets in is answered by nobody, and leaves.
fn come_again(world: &World, relay: &Running, over: &AtomicBool) -> io::Result<()> {
    let header = short::headers(relay)[1].clone();
    let address = relay
        .address_with_header()
        .ok_or(io::ErrorKind::AddrNotAvailable)?;
    let (header, mut gone) = (Arc::new(header), Vec::new());
    while !over.load(Ordering::Acquire) {
        let header = Arc::clone(&header);
        // There, because a socket belongs to the host of the thread that opens it.
        let one = world.client.call(move || {
            let stream = TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
            // It may be reset already.
            let _ = send(&stream, &header, SendFlags::NOSIGNAL);
            Ok::<_, io::Error>(stream)
        })?;
        gone.push(one);
        if gone.len() == 16 {
            gone.clear();
        }
        thread::sleep(COMING);
    }
    Ok(())
}

/// Sends as much as there is room for, both ways, and throws away what comes.
fn move_bytes(ends: &Ends, over: &AtomicBool) -> io::Result<()> {
    let (bytes, mut room) = (vec![7; 64 * 1024], vec![0; 256 * 1024]);
    let done = |result: rustix::io::Result<usize>| match result {
        Ok(_) | Err(Errno::AGAIN) => Ok(()),
        Err(errno) => Err(io::Error::from(errno)),
    };
    while !over.load(Ordering::Acquire) {
        for socket in ends.client.iter().chain(&ends.origin) {
            done(send(socket, &bytes, SendFlags::NOSIGNAL))?;
            done(recv(socket, &mut *room, RecvFlags::TRUNC).map(|(_, n)| n))?;
        }
        thread::sleep(COMING);
    }
    Ok(())
}

/// Figures of the requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Figure {
    /// Half of them take no longer, at their rate, in microseconds.
    P50,
    /// 99 of 100 of them.
    P99,
    /// Requests a second, as fast as they are answered.
    Throughput,
}

impl Measured {
    pub(crate) fn figure(&self, figure: Figure) -> Option<f64> {
        let micros = |at: usize| Some(self.paced.p50_p99?[at].as_secs_f64() * 1e6);
        match figure {
            Figure::P50 => micros(0),
            Figure::P99 => micros(1),
            Figure::Throughput => Some(self.fast.units as f64 / self.fast.elapsed.as_secs_f64()),
        }
    }
}

impl Noises {
    fn of(&self, noise: Noise) -> impl Iterator<Item = &Measured> {
        let measured = self.measured.iter();
        measured.filter(move |one| one.noise == noise)
    }

    pub(crate) fn figure(&self, noise: Noise, figure: Figure) -> Option<Spread> {
        Spread::of(self.of(noise).filter_map(|one| one.figure(figure)))
    }

    /// By the same without noise, round by round.
    pub(crate) fn ratio(&self, noise: Noise, figure: Figure) -> Option<Interval> {
        let ratio = |one: &Measured| {
            let mut without = self.of(Noise::Nothing);
            let without = without.find(|without| without.round == one.round)?;
            Some(one.figure(figure)? / without.figure(figure)?)
        };
        let ratios: Vec<f64> = self.of(noise).filter_map(ratio).collect();
        Interval::of(&ratios)
    }
}
