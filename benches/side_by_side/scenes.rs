//! What is looked at once and not in rounds: memory of idle sessions, and what a stalled receiver makes a relay hold.

use std::{
    fs, io,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use rustix::{
    io::Errno,
    net::{RecvFlags, SendFlags, recv, send},
    process::{Resource, Rlimit, getrlimit, setrlimit},
};

use crate::{
    lab::World,
    peers::Running,
    processor::{self, Cores},
    settings::Room,
    short,
    variant::{Role, Variant},
};

/// Idle sessions that are wanted, and descriptors of ours beside theirs.
const IDLE: usize = 9000;
const RESERVE: u64 = 400;
/// How many descriptors that and the relays' settings ask for.
const DESCRIPTORS: u64 = 65_536;
/// What is let settle before memory is read.
const SETTLE: Duration = Duration::from_millis(400);
/// So long nothing moves: then a stalled receiver has taken what it takes; and how long that may last.
const STILL: Duration = Duration::from_millis(300);
const PATIENCE: Duration = Duration::from_secs(8);
/// What the client of a stalled flow reads before it stops: enough for a relay to take it for bulk.
const READ_FIRST: usize = 64 << 20;

/// Memory of idle sessions through one relay.
#[derive(Clone, Debug)]
pub(crate) struct Idle {
    /// Its name.
    pub(crate) relay: String,
    pub(crate) role: Role,
    /// How many.
    pub(crate) sessions: usize,
    /// Per session: bytes of its processes' memory (PSS), of the kernel's slabs on the whole machine, descriptors, and ends of pipes.
    pub(crate) user: f64,
    pub(crate) slab: f64,
    pub(crate) descriptors: f64,
    pub(crate) pipes: f64,
    /// Before the first: bytes.
    pub(crate) at_rest: f64,
}

/// A receiver that reads no more.
#[derive(Clone, Debug)]
pub(crate) struct Stalled {
    /// The relay's name.
    pub(crate) relay: String,
    pub(crate) role: Role,
    /// What the origin could send beyond what the client had read.
    pub(crate) taken: u64,
    /// The part of it that was in sockets, at both ends and at the relay.
    pub(crate) in_sockets: u64,
}

/// Takes as many descriptors as we may get: ours, and those of the relays, which inherit it.
pub(crate) fn raise_limit() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let wanted = maximum.map(|maximum| maximum.max(DESCRIPTORS));
    let set = |limit: Option<u64>| {
        let limit = Rlimit {
            current: limit,
            maximum: limit,
        };
        setrlimit(Resource::Nofile, limit)
    };
    if set(wanted).is_err() {
        // As an ordinary user: what there is.
        let _ = set(maximum);
    }
}

/// How many idle sessions the limit lets both this process and a relay hold.
pub(crate) fn possible() -> usize {
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(DESCRIPTORS);
    let sessions = limit.saturating_sub(RESERVE) / 2;
    usize::try_from(sessions).map_or(IDLE, |sessions| sessions.min(IDLE))
}

/// Through each of these; without a relay too, for what the ends of a session cost the kernel.
pub(crate) fn idle(
    world: &World,
    cores: &Cores,
    variants: &[Variant],
) -> Result<Vec<Idle>, String> {
    let wanted = [
        Role::Ours,
        Role::Before,
        Role::Nginx,
        Role::Haproxy,
        Role::NoRelay,
    ];
    let mut all = Vec::new();
    for (number, variant) in variants.iter().enumerate() {
        if !wanted.contains(&variant.role) {
            continue;
        }
        let running = variant.start(number, world, cores, Room::For(possible()))?;
        let idle = hold(world, &running, variant);
        all.push(idle.map_err(|error| format!("idle sessions, {}: {error}", variant.name))?);
    }
    Ok(all)
}

fn hold(world: &World, relay: &Running, variant: &Variant) -> io::Result<Idle> {
    let sessions = possible();
    thread::sleep(SETTLE);
    let before = Held::by(relay)?;
    let address = relay.address_with_header().unwrap_or(relay.address());
    let headers = Arc::new(short::headers(relay));
    let ends = world.connect_with(relay.number(), address, sessions, &headers)?;
    short::once_each(&ends)?;
    thread::sleep(SETTLE);
    let after = Held::by(relay)?;
    let each = |what: fn(&Held) -> u64| {
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
        let [before, after, sessions] =
            [what(&before), what(&after), sessions as u64].map(|n| n as f64);
        (after - before) / sessions
    };
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    let at_rest = before.user as f64;
    drop(ends);
    Ok(Idle {
        relay: variant.name.clone(),
        role: variant.role,
        sessions,
        user: each(|held| held.user),
        slab: each(|held| held.slab),
        descriptors: each(|held| held.descriptors),
        pipes: each(|held| held.pipes),
        at_rest,
    })
}

/// What there is at one moment.
#[derive(Clone, Copy, Debug, Default)]
struct Held {
    user: u64,
    slab: u64,
    descriptors: u64,
    pipes: u64,
}

impl Held {
    fn by(relay: &Running) -> io::Result<Self> {
        let mut held = Self::default();
        let kib = |text: &str, key: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(key));
            let number = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
            number.unwrap_or(0) * 1024
        };
        held.slab = kib(&fs::read_to_string("/proc/meminfo")?, "Slab:");
        let processes = match relay.process_id() {
            Some(id) => processor::family(id)?,
            None => Vec::new(),
        };
        for process in processes {
            held.user += kib(
                &fs::read_to_string(format!("/proc/{process}/smaps_rollup"))?,
                "Pss:",
            );
            for entry in fs::read_dir(format!("/proc/{process}/fd"))? {
                let link = fs::read_link(entry?.path()).unwrap_or_default();
                held.descriptors += 1;
                held.pipes += u64::from(link.to_string_lossy().starts_with("pipe:"));
            }
        }
        Ok(held)
    }
}

/// Through each of these.
pub(crate) fn stalled(
    world: &World,
    cores: &Cores,
    variants: &[Variant],
) -> Result<Vec<Stalled>, String> {
    let left_out = [
        Role::OursUnprivileged,
        Role::OursAmongIdle,
        Role::HaproxyUnprivileged,
        Role::HaproxyAmongIdle,
        Role::HaproxySpliceAuto,
        Role::OursAhead,
        Role::OursWan,
        Role::Nat,
    ];
    let mut all = Vec::new();
    for (number, variant) in variants.iter().enumerate() {
        if left_out.contains(&variant.role) {
            continue;
        }
        let running = variant.start(number, world, cores, Room::Usual)?;
        let stalled = stall(world, &running, variant);
        all.push(stalled.map_err(|error| format!("stalled receiver, {}: {error}", variant.name))?);
    }
    Ok(all)
}

fn stall(world: &World, relay: &Running, variant: &Variant) -> io::Result<Stalled> {
    let ends = world.connect(relay.number(), relay.address(), 1)?;
    let (client, origin) = (&ends.client[0], &ends.origin[0]);
    let (bytes, mut room) = (vec![7; 256 * 1024], vec![0; 1 << 20]);
    let (mut sent, mut read) = (0_u64, 0_u64);
    let (mut moved, deadline) = (Instant::now(), Instant::now() + PATIENCE);
    while moved.elapsed() < STILL && Instant::now() < deadline {
        let mut idle = true;
        match send(origin, &bytes, SendFlags::NOSIGNAL) {
            Ok(n) => (sent, idle) = (sent + n as u64, false),
            Err(Errno::AGAIN) => {}
            Err(errno) => return Err(errno.into()),
        }
        if read < READ_FIRST as u64 {
            match recv(client, &mut room[..], RecvFlags::TRUNC) {
                Ok((_, n)) => (read, idle) = (read + n as u64, false),
                Err(Errno::AGAIN) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        if idle {
            thread::sleep(Duration::from_millis(1));
        } else {
            moved = Instant::now();
        }
    }
    let ports = [relay.address().port(), World::origin(relay.number()).port()];
    let mut in_sockets = 0;
    for host in [&world.client, &world.relay, &world.origin] {
        let sockets = host.sockets();
        let ours = sockets.iter().filter(|socket| {
            socket.remote.port() != 0
                && (ports.contains(&socket.local.port()) || ports.contains(&socket.remote.port()))
        });
        in_sockets += ours
            .map(|socket| socket.send_queue + socket.receive_queue)
            .sum::<u64>();
    }
    Ok(Stalled {
        relay: variant.name.clone(),
        role: variant.role,
        taken: sent - read,
        in_sockets,
    })
}
