//! A long-distance link: two TUN devices and a thread that carries packets between them, late, out of order, or not at all.

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    io,
    os::fd::OwnedFd,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};

use tokio::{
    io::{Interest, unix::AsyncFd},
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;
use tollgate::sys::readiness;

use super::{netns::Host, pattern::Random};

/// How many packets are taken from a device before the due ones are delivered.
const BATCH: usize = 128;
/// Slots of the kernel's queue into each device; the default of 500 overflows in one burst of a fast sender.
const DEVICE_QUEUE: u32 = 10_000;

/// What a link does to packets, in each direction by itself.
#[derive(Clone, Debug)]
pub struct Shape {
    /// One way; half of what ping shows. The timer has a granularity of a millisecond.
    pub delay: Duration,
    /// Up to this is added to the delay of each packet, evenly spread. Order is kept.
    pub jitter: Duration,
    /// Share of packets that vanish, 0 to 1.
    pub loss: f64,
    /// Share of packets that arrive late by [`reorder_by`](Self::reorder_by), behind others sent after them.
    pub reorder: f64,
    /// How late those are.
    pub reorder_by: Duration,
    /// Share of packets that arrive twice.
    pub duplicate: f64,
    /// Bits per second; none: as fast as this machine can.
    pub rate: Option<u64>,
    /// What may wait for the rate, in bytes; more is dropped, as in a router.
    pub buffer: usize,
    /// What may be under way, in bytes; more is dropped. Bounds the memory of the link.
    pub in_flight: usize,
    /// Largest packet. Inter-Region peering carries 8500.
    pub mtu: u32,
    /// Where the link's chances start.
    pub seed: u64,
}

impl Default for Shape {
    fn default() -> Self {
        Self {
            delay: Duration::ZERO,
            jitter: Duration::ZERO,
            loss: 0.0,
            reorder: 0.0,
            reorder_by: Duration::from_millis(5),
            duplicate: 0.0,
            rate: None,
            buffer: 4 << 20,
            in_flight: 64 << 20,
            mtu: 8500,
            seed: 1,
        }
    }
}

impl Shape {
    /// A link with this one-way delay and no other trouble.
    pub fn delay(delay: Duration) -> Self {
        Self {
            delay,
            ..Self::default()
        }
    }
}

/// What one direction did so far, in packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Carried {
    /// Arrived at the far end, copies included.
    pub delivered: u64,
    /// Lost by chance.
    pub lost: u64,
    /// Arrived twice.
    pub duplicated: u64,
    /// Sent behind their successors.
    pub reordered: u64,
    /// Did not fit into a buffer.
    pub overflowed: u64,
    /// Lost because the link was cut.
    pub cut: u64,
}

#[derive(Debug)]
struct Control {
    shape: Shape,
    cut: bool,
    /// Left to right, right to left.
    carried: [Carried; 2],
}

/// A link that carries packets until it is dropped.
#[derive(Debug)]
pub struct Wan {
    control: Arc<Mutex<Control>>,
    stop: CancellationToken,
    thread: Option<thread::JoinHandle<()>>,
    interfaces: [String; 2],
}

impl Wan {
    #[track_caller]
    pub(super) fn start(left: (&Host, &str), right: (&Host, &str), shape: Shape) -> Self {
        let interfaces = [left, right].map(|(host, _)| host.next_interface("wan"));
        let devices = [0, 1].map(|end| {
            let (host, address) = [left, right][end];
            open(host, address, &interfaces[end], shape.mtu)
        });
        let control = Arc::new(Mutex::new(Control {
            shape,
            cut: false,
            carried: Default::default(),
        }));
        let stop = CancellationToken::new();
        let thread = thread::Builder::new()
            .name(format!("wan of {}", left.0.namespace()))
            .spawn({
                let (control, stop) = (Arc::clone(&control), stop.clone());
                move || carry(devices, &control, &stop)
            })
            .expect("one more thread");
        Self {
            control,
            stop,
            thread: Some(thread),
            interfaces,
        }
    }

    /// Changes the shape from the next packet on; the MTU stays.
    pub fn shape(&self, change: impl FnOnce(&mut Shape)) {
        change(&mut self.lock().shape);
    }

    /// From now on nothing arrives, nor does what is under way.
    pub fn cut(&self) {
        self.lock().cut = true;
    }

    /// Ends a cut.
    pub fn restore(&self) {
        self.lock().cut = false;
    }

    /// What was carried from left to right (0) or right to left (1).
    pub fn carried(&self, direction: usize) -> Carried {
        self.lock().carried[direction]
    }

    /// The interface's name at the left (0) or right (1) end.
    pub fn interface(&self, end: usize) -> &str {
        &self.interfaces[end]
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Control> {
        lock(&self.control)
    }
}

impl Drop for Wan {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn lock(control: &Mutex<Control>) -> std::sync::MutexGuard<'_, Control> {
    control.lock().unwrap_or_else(PoisonError::into_inner)
}

#[track_caller]
fn open(host: &Host, address: &str, interface: &str, mtu: u32) -> OwnedFd {
    let name = interface.to_owned();
    let device = match host.call(move || tollgate::sys::tun::open(&name)) {
        Ok(device) => device,
        Err(error) => panic!(
            "a long-distance link needs /dev/net/tun ({error}): modprobe tun; chmod 0666 /dev/net/tun"
        ),
    };
    host.address(interface, address);
    host.ip(&format!(
        "link set {interface} mtu {mtu} txqueuelen {DEVICE_QUEUE} up"
    ));
    device
}

fn carry(devices: [OwnedFd; 2], control: &Mutex<Control>, stop: &CancellationToken) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime needs only an epoll");
    runtime.block_on(async {
        let [left, right] = devices.map(register);
        tokio::select! {
            () = stop.cancelled() => {}
            result = Direction::new(0, control).run(&left, &right) => report(result),
            result = Direction::new(1, control).run(&right, &left) => report(result),
        }
    });
}

fn register(device: OwnedFd) -> AsyncFd<OwnedFd> {
    let both_ways = Interest::READABLE | Interest::WRITABLE;
    readiness::watch(device, both_ways).expect("a TUN can be polled")
}

fn report(result: io::Result<()>) {
    if let Err(error) = result {
        panic!("a link broke down: {error}");
    }
}

/// A packet under way. Ordered by when it is due, then by when it came.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Packet {
    due: Instant,
    number: u64,
    bytes: Vec<u8>,
}

struct Direction<'a> {
    index: usize,
    control: &'a Mutex<Control>,
    random: Random,
    under_way: BinaryHeap<Reverse<Packet>>,
    /// Bytes in `under_way`.
    weight: usize,
    number: u64,
    /// When the packet before leaves the bottleneck.
    free_at: Instant,
    /// When the latest packet that kept its place is due.
    last_due: Instant,
}

impl<'a> Direction<'a> {
    fn new(index: usize, control: &'a Mutex<Control>) -> Self {
        let seed = lock(control).shape.seed.wrapping_mul(2) + index as u64;
        let now = Instant::now();
        Self {
            index,
            control,
            random: Random::new(seed),
            under_way: BinaryHeap::new(),
            weight: 0,
            number: 0,
            free_at: now,
            last_due: now,
        }
    }

    async fn run(mut self, from: &AsyncFd<OwnedFd>, to: &AsyncFd<OwnedFd>) -> io::Result<()> {
        let mut buffer = vec![0; 65_536];
        loop {
            let due = self.under_way.peek().map(|Reverse(packet)| packet.due);
            tokio::select! {
                ready = from.readable() => {
                    let mut ready = ready?;
                    if self.take(from, &mut buffer)? {
                        ready.clear_ready();
                    }
                }
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {}
            }
            self.deliver(to);
        }
    }

    /// Takes a batch of packets from the device; true when it has no more.
    fn take(&mut self, from: &AsyncFd<OwnedFd>, buffer: &mut [u8]) -> io::Result<bool> {
        let mut control = lock(self.control);
        let now = Instant::now();
        for _ in 0..BATCH {
            match rustix::io::read(from.get_ref(), &mut *buffer) {
                Ok(n) => self.admit(&buffer[..n], now, &mut control),
                Err(rustix::io::Errno::AGAIN) => return Ok(true),
                // Down for the moment: the kernel says EIO, and nothing waits.
                Err(rustix::io::Errno::IO) => return Ok(true),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(false)
    }

    fn admit(&mut self, bytes: &[u8], now: Instant, control: &mut Control) {
        let carried = &mut control.carried[self.index];
        let shape = &control.shape;
        if control.cut {
            carried.cut += 1;
            return;
        }
        if self.random.chance(shape.loss) {
            carried.lost += 1;
            return;
        }
        let mut leaves = now;
        if let Some(rate) = shape.rate.filter(|rate| *rate > 0) {
            let start = self.free_at.max(now);
            let wait = start.duration_since(now).as_secs_f64();
            if wait * rate as f64 / 8.0 > shape.buffer as f64 {
                carried.overflowed += 1;
                return;
            }
            leaves = start + Duration::from_secs_f64(bytes.len() as f64 * 8.0 / rate as f64);
            self.free_at = leaves;
        }
        let jitter = self.random.below(shape.jitter.as_nanos() as u64);
        let mut due = leaves + shape.delay + Duration::from_nanos(jitter);
        if self.random.chance(shape.reorder) {
            carried.reordered += 1;
            due += shape.reorder_by;
        } else {
            due = due.max(self.last_due);
            self.last_due = due;
        }
        let copies = if self.random.chance(shape.duplicate) {
            2
        } else {
            1
        };
        carried.duplicated += copies - 1;
        for _ in 0..copies {
            if self.weight + bytes.len() > shape.in_flight {
                carried.overflowed += 1;
                continue;
            }
            self.weight += bytes.len();
            self.number += 1;
            self.under_way.push(Reverse(Packet {
                due,
                number: self.number,
                bytes: bytes.to_vec(),
            }));
        }
    }

    fn deliver(&mut self, to: &AsyncFd<OwnedFd>) {
        let mut control = lock(self.control);
        let cut = control.cut;
        let carried = &mut control.carried[self.index];
        let now = Instant::now();
        while let Some(Reverse(packet)) = self
            .under_way
            .peek_mut()
            .filter(|p| p.0.due <= now)
            .map(std::collections::binary_heap::PeekMut::pop)
        {
            self.weight -= packet.bytes.len();
            if cut {
                carried.cut += 1;
            } else if rustix::io::write(to.get_ref(), &packet.bytes).is_ok() {
                carried.delivered += 1;
            } else {
                // The far interface is down, or the kernel is out of memory: either way this packet is lost.
                carried.overflowed += 1;
            }
        }
    }
}
