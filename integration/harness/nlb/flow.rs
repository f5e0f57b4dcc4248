//! One consumer's connection through the load balancer.

use std::{
    io,
    net::SocketAddr,
    pin::pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use rustix::io::{Errno, ioctl_fionread};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{
    net::TcpStream,
    time::{Instant, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{Books, Listen, Placement, Shared, header};
use crate::harness::{netns::Host, pattern::Random, sockets, stream};

/// How long data that came before an RST may take to be delivered ahead of it.
const DELIVERY: Duration = Duration::from_secs(5);

/// Serves a connection to its end.
pub(super) async fn serve(
    consumer: std::net::TcpStream,
    from: SocketAddr,
    listen: Arc<Listen>,
    shared: Arc<Shared>,
) {
    let Ok(consumer) = TcpStream::from_std(consumer) else {
        return;
    };
    let endpoint = listen.endpoint.clone().unwrap_or_default();
    shared.books.update(|books| {
        books.accepted += 1;
        books.open += 1;
        books
            .endpoints
            .entry(endpoint.clone())
            .or_default()
            .accepted += 1;
    });
    let _open = Open(Arc::clone(&shared));
    let Some((target, ended)) = choose(from, &listen, &shared) else {
        stream::reset(consumer);
        return;
    };
    let connect = shared.stop.run_until_cancelled(connect(target));
    let Some(Ok(target)) = connect.await else {
        shared.books.update(|books| books.connect_failed += 1);
        stream::reset(consumer);
        return;
    };
    let _ = (consumer.set_nodelay(true), target.set_nodelay(true));
    let mut header = Vec::new();
    if shared.config.proxy_protocol {
        let to = consumer.local_addr().unwrap_or(listen.address);
        header = header::proxy(from, to, listen.endpoint.as_deref());
    }
    let flow = Flow {
        client_host: listen.host.clone(),
        consumer,
        target,
        endpoint,
        ended,
        shared,
        broken: Default::default(),
    };
    flow.run(header).await;
}

/// Connects. A target that was connected, sent and reset before we looked is one that was connected: what it sent can still be read, and then the
/// reset. Asking for the socket's error, as [`TcpStream::connect`] does, would take that away.
async fn connect(target: SocketAddr) -> io::Result<TcpStream> {
    let domain = Domain::for_address(target);
    let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    match socket.connect(&target.into()) {
        Err(error) if error.raw_os_error() != Some(Errno::INPROGRESS.raw_os_error()) => {
            return Err(error);
        }
        _ => {}
    }
    let stream = TcpStream::from_std(socket.into())?;
    stream.writable().await?;
    let has_bytes = || ioctl_fionread(&stream).is_ok_and(|bytes| bytes > 0);
    if stream.peer_addr().is_ok() || has_bytes() {
        return Ok(stream);
    }
    Err(stream
        .take_error()?
        .unwrap_or(io::ErrorKind::NotConnected.into()))
}

/// Counts a connection out, however it ends.
struct Open(Arc<Shared>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.books.update(|books| books.open -= 1);
    }
}

/// Picks a target by the connection's addresses, among the healthy, or among all when none is.
fn choose(
    from: SocketAddr,
    listen: &Listen,
    shared: &Shared,
) -> Option<(SocketAddr, CancellationToken)> {
    shared.books.update(|books| {
        let registered = |books: &Books, healthy: bool| -> Vec<SocketAddr> {
            let targets = books.targets.iter();
            let fit =
                targets.filter(|(_, target)| !target.deregistered && (target.healthy || !healthy));
            fit.map(|(address, _)| *address).collect()
        };
        let mut candidates = registered(books, true);
        if candidates.is_empty() {
            candidates = registered(books, false);
        }
        let to = listen.address;
        let hash = header::crc32c(format!("{from} {to}").as_bytes());
        let index = Random::new(u64::from(hash)).below(candidates.len() as u64);
        let address = *candidates.get(index as usize)?;
        let target = books.targets.get_mut(&address)?;
        target.connections += 1;
        let reset = target.reset.clone();
        let flow = (listen.endpoint.clone().unwrap_or_default(), from);
        books.flows.insert(flow, address);
        Some((address, reset))
    })
}

/// When a byte last moved, in either direction.
struct LastMove(Mutex<Instant>);

impl LastMove {
    fn now() -> Self {
        Self(Mutex::new(Instant::now()))
    }

    fn get(&self) -> Instant {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Client,
    Target,
}

/// Why a flow stopped.
enum Stop {
    /// Both sides sent their FIN.
    Over,
    /// This side broke: the other is to be told.
    Broken(Side),
    /// Nothing moved for too long.
    Idle,
    /// We were told to end it.
    Ended,
}

struct Flow {
    client_host: Host,
    consumer: TcpStream,
    target: TcpStream,
    endpoint: String,
    ended: CancellationToken,
    shared: Arc<Shared>,
    /// By side: that it broke.
    broken: [AtomicBool; 2],
}

impl Flow {
    async fn run(self, header: Vec<u8>) {
        match self.relay(header).await {
            Stop::Over => {}
            Stop::Idle => self.forget().await,
            Stop::Broken(_) | Stop::Ended => self.reset_both(),
        }
    }

    /// Moves bytes both ways until something ends it. When a side broke, what it sent before has arrived at the other.
    async fn relay(&self, header: Vec<u8>) -> Stop {
        let last_move = LastMove::now();
        let idle = async {
            loop {
                let end = last_move.get() + self.shared.config.idle_timeout;
                sleep_until(end).await;
                if last_move.get() + self.shared.config.idle_timeout <= Instant::now() {
                    return Stop::Idle;
                }
            }
        };
        let mut to_target = pin!(self.to_target(header, &last_move));
        let mut to_client = pin!(self.pump(Side::Target, &last_move));
        let mut idle = pin!(idle);
        // Which directions have come to their end.
        let (mut target_told, mut client_told) = (false, false);
        let stop = loop {
            tokio::select! {
                biased;
                () = self.ended.cancelled() => break Stop::Ended,
                end = &mut to_target, if !target_told => {
                    target_told = true;
                    if let Err(side) = end {
                        break Stop::Broken(side);
                    }
                }
                end = &mut to_client, if !client_told => {
                    client_told = true;
                    if let Err(side) = end {
                        break Stop::Broken(side);
                    }
                }
                () = stream::broken(&self.consumer) => break Stop::Broken(Side::Client),
                () = stream::broken(&self.target) => break Stop::Broken(Side::Target),
                stop = &mut idle => break stop,
            }
            if target_told && client_told {
                return Stop::Over;
            }
        };
        if let Stop::Broken(side) = stop {
            self.broken[side as usize].store(true, Ordering::Relaxed);
        }
        match stop {
            Stop::Broken(Side::Client) => {
                if !target_told {
                    let _ = timeout(DELIVERY, to_target).await;
                }
                self.delivered(Side::Target).await;
            }
            Stop::Broken(Side::Target) => {
                if !client_told {
                    let _ = timeout(DELIVERY, to_client).await;
                }
                self.delivered(Side::Client).await;
            }
            Stop::Over | Stop::Idle | Stop::Ended => {}
        }
        stop
    }

    /// The first bytes carry the header with them.
    async fn to_target(&self, header: Vec<u8>, last_move: &LastMove) -> Result<(), Side> {
        if header.is_empty() {
            return self.pump(Side::Client, last_move).await;
        }
        let mut first = header;
        let of_header = first.len();
        if self.shared.config.placement == Placement::OnFirstAckWithPayload {
            let read = stream::read(&self.consumer, |bytes| first.extend_from_slice(bytes));
            match read.await {
                Ok(Some(())) => last_move.set(),
                // A connection without a byte is one without a header.
                Ok(None) => return stream::finish(&self.target).map_err(|_| Side::Target),
                Err(_) => return Err(Side::Client),
            }
        }
        // Counted before it is written: whoever sees the payload arrive finds it in the books.
        self.shared.books.update(|books| books.headers += 1);
        let mut of_header = of_header;
        let write = stream::write(&self.target, &first, |n| {
            let payload = n.saturating_sub(of_header);
            of_header = of_header.saturating_sub(n);
            self.count(Side::Client, payload);
        });
        write.await.map_err(|_| Side::Target)?;
        self.pump(Side::Client, last_move).await
    }

    /// Moves bytes away from one side until its FIN, and passes that on.
    async fn pump(&self, from: Side, last_move: &LastMove) -> Result<(), Side> {
        let (source, sink, other) = self.sides(from);
        loop {
            // What the kernel takes at once needs no buffer of this connection's own.
            let moved = stream::read(source, |bytes| match sink.try_write(bytes) {
                Ok(n) => Ok((n, bytes[n..].to_vec())),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok((0, bytes.to_vec())),
                Err(error) => Err(error),
            });
            match moved.await {
                // A write that failed took the error away: reading what broke ends like a FIN, and is none.
                Ok(None) if self.is_broken(from) => return Err(from),
                Ok(Some(Ok((n, rest)))) => {
                    last_move.set();
                    self.count(from, n);
                    let write = stream::write(sink, &rest, |n| {
                        last_move.set();
                        self.count(from, n);
                    });
                    write.await.map_err(|_| other)?;
                }
                Ok(Some(Err(_))) => return Err(other),
                Ok(None) => return stream::finish(sink).map_err(|_| other),
                Err(_) => return Err(from),
            }
        }
    }

    fn sides(&self, from: Side) -> (&TcpStream, &TcpStream, Side) {
        match from {
            Side::Client => (&self.consumer, &self.target, Side::Target),
            Side::Target => (&self.target, &self.consumer, Side::Client),
        }
    }

    fn is_broken(&self, side: Side) -> bool {
        self.broken[side as usize].load(Ordering::Relaxed)
    }

    fn count(&self, from: Side, n: usize) {
        self.shared.books.update(|books| {
            let endpoint = books.endpoints.entry(self.endpoint.clone()).or_default();
            match from {
                Side::Client => {
                    books.bytes_to_target += n as u64;
                    endpoint.bytes_to_target += n as u64;
                }
                Side::Target => {
                    books.bytes_to_client += n as u64;
                    endpoint.bytes_to_client += n as u64;
                }
            }
        });
    }

    /// Waits until a side has acknowledged all that we wrote to it.
    async fn delivered(&self, to: Side) {
        // The table of sockets is that of the namespace in which this one was opened.
        let (sink, host) = match to {
            Side::Client => (&self.consumer, &self.client_host),
            Side::Target => (&self.target, &self.shared.host),
        };
        if let (Ok(local), Ok(remote)) = (sink.local_addr(), sink.peer_addr()) {
            let _ = host
                .spawn(sockets::acknowledged(local, remote, DELIVERY))
                .await;
        }
    }

    /// The idle timeout: nothing is said, and whoever speaks next is answered by RST.
    async fn forget(self) {
        self.shared.books.update(|books| books.forgotten += 1);
        let Self {
            consumer,
            target,
            ended,
            shared,
            ..
        } = self;
        let answer = |stream: TcpStream| {
            let ended = ended.clone();
            async move {
                let _ = ended
                    .run_until_cancelled(stream::read(&stream, |_| ()))
                    .await;
                stream::reset(stream);
            }
        };
        shared.books.update(|books| books.resets += 1);
        tokio::join!(answer(consumer), answer(target));
    }

    fn reset_both(self) {
        self.shared.books.update(|books| books.resets += 1);
        stream::reset(self.consumer);
        stream::reset(self.target);
    }
}
