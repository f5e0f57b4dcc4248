//! Servers behind the relay, each with one manner, that count exactly what they received and sent.

use std::{collections::BTreeMap, io, net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    sync::Semaphore,
    time::sleep,
};
use tokio_util::sync::CancellationToken;

use super::{
    BOUND, collector,
    netns::Host,
    pattern::{Checker, Pattern},
    stream::{self, CHUNK, End},
    watched::Watched,
};

/// How many connections are remembered one by one; beyond, only the sums grow.
const REMEMBERED: usize = 100_000;
/// How many of a connection's first bytes are kept.
const FIRST: usize = 4096;

/// What an origin does with each connection. All but [`Stopped`](Self::Stopped) read to the end and answer a FIN with theirs.
#[derive(Clone, Debug)]
pub enum Manner {
    /// Sends back what it reads.
    Echo,
    /// Reads, sends nothing.
    Sink,
    /// Reads and checks the stream of a [`Pattern`], whose seed it takes from the stream itself.
    CheckedSink,
    /// Sends so many bytes of a seed's stream, then its FIN; reads to the end all the while.
    Source {
        /// Whose stream.
        seed: u64,
        /// How many bytes.
        bytes: u64,
    },
    /// Reads to the end, waits, sends so many bytes of a seed's stream, then its FIN.
    AnswerAfterEnd {
        /// Between the client's FIN and the answer.
        wait: Duration,
        /// Whose stream.
        seed: u64,
        /// How many bytes.
        bytes: u64,
    },
    /// Closes with RST when it has read so many bytes; with 0, at once.
    ResetAfter(u64),
    /// Sends so many bytes of a seed's stream and, as soon as they are acknowledged, RST.
    SendThenReset {
        /// Whose stream.
        seed: u64,
        /// How many bytes.
        bytes: u64,
    },
    /// Reads only what [`Origin::allow`] allows, of all connections together.
    Stopped,
    /// Sends a line at once, then echoes.
    Banner(String),
    /// An HTTP/1 server that takes what is posted and answers 200.
    Collector,
    /// As [`Collector`](Self::Collector); sends back what was posted, and this name in `Server`.
    Mirror(String),
}

/// What an origin has seen.
#[derive(Clone, Debug, Default)]
pub struct Books {
    /// Connections accepted so far.
    pub accepted: u64,
    /// Of these, still open.
    pub open: u64,
    /// Payload bytes read, of all connections.
    pub received: u64,
    /// Payload bytes the kernel took from us, of all connections.
    pub sent: u64,
    /// Each connection, in the order in which they came.
    pub connections: Vec<Connection>,
    /// What a checked sink found wrong.
    pub mismatches: Vec<String>,
    /// By path: what a collector was sent.
    pub requests: BTreeMap<String, Requests>,
}

/// One connection, as the origin saw it.
#[derive(Clone, Debug)]
pub struct Connection {
    /// Who connected: the relay.
    pub peer: SocketAddr,
    /// Bytes read.
    pub received: u64,
    /// Bytes sent.
    pub sent: u64,
    /// The first bytes read, 4 KiB at most.
    pub first: Vec<u8>,
    /// The seed that a checked sink found.
    pub seed: Option<u64>,
    /// How the client's direction ended, or none yet.
    pub end: Option<End>,
}

/// Requests with the same path.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Requests {
    /// How many.
    pub count: u64,
    /// Bytes in their bodies.
    pub body_bytes: u64,
}

/// A server that runs until it is dropped; then its open connections are reset.
#[derive(Debug)]
pub struct Origin {
    address: SocketAddr,
    books: Arc<Watched<Books>>,
    allowed: Arc<Semaphore>,
    stop: CancellationToken,
}

impl Origin {
    /// Listens on `address` (port 0: any) of `host`.
    ///
    /// # Panics
    /// When that fails.
    #[track_caller]
    pub fn start(host: &Host, address: &str, manner: Manner) -> Self {
        let books = Arc::new(Watched::<Books>::default());
        let allowed = Arc::new(Semaphore::new(0));
        let stop = CancellationToken::new();
        let wanted = parse(address);
        let listener = host.run(async move { listen(wanted) });
        let listener = listener.unwrap_or_else(|error| panic!("{address}: {error}"));
        let address = listener.local_addr().expect("a listener has an address");
        let server = Server {
            manner,
            books: Arc::clone(&books),
            allowed: Arc::clone(&allowed),
            stop: stop.clone(),
        };
        host.spawn(server.run(listener));
        Self {
            address,
            books,
            allowed,
            stop,
        }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What it has seen so far.
    pub fn books(&self) -> Books {
        self.books.look(Books::clone)
    }

    /// Waits until the books are as `found` wants them.
    #[track_caller]
    pub fn wait<R>(&self, what: &str, found: impl FnMut(&Books) -> Option<R>) -> R {
        self.books.wait(what, BOUND, found)
    }

    /// Waits until `n` connections came and all of them are over, and returns the books.
    #[track_caller]
    pub fn wait_over(&self, n: u64) -> Books {
        self.wait(&format!("{n} connections to be over"), |books| {
            (books.accepted >= n && books.open == 0).then(|| books.clone())
        })
    }

    /// Lets a stopped origin read so many bytes more.
    pub fn allow(&self, bytes: usize) {
        self.allowed.add_permits(bytes);
    }

    /// Lets a stopped origin read on without end.
    pub fn allow_all(&self) {
        self.allowed.close();
    }

    /// Stops listening and resets what is open.
    pub fn kill(&self) {
        self.stop.cancel();
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.kill();
    }
}

#[track_caller]
pub(super) fn parse(address: &str) -> SocketAddr {
    match address.parse() {
        Ok(address) => address,
        Err(error) => panic!("{address}: {error}"),
    }
}

/// Listens with a queue that no test overflows by accident.
pub(super) fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    }?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(4096)
}

#[derive(Clone)]
struct Server {
    manner: Manner,
    books: Arc<Watched<Books>>,
    allowed: Arc<Semaphore>,
    stop: CancellationToken,
}

impl Server {
    async fn run(self, listener: TcpListener) {
        while let Some(accepted) = self.stop.run_until_cancelled(listener.accept()).await {
            // Accepting fails only for reasons of one connection here: nobody limits our descriptors.
            if let Ok((stream, peer)) = accepted {
                tokio::spawn(self.clone().serve(stream, peer));
            }
        }
    }

    async fn serve(self, stream: TcpStream, peer: SocketAddr) {
        let meter = Meter::open(Arc::clone(&self.books), peer);
        let _ = stream.set_nodelay(true);
        let served = self
            .stop
            .run_until_cancelled(self.behave(&stream, &meter))
            .await;
        match served {
            // The client's end was seen by whoever read it.
            Some(Ok(Close::InOrder)) => {}
            Some(Ok(Close::Reset)) => stream::reset(stream),
            Some(Ok(Close::ResetAfterDelivery)) => {
                stream::reset_after_delivery(stream, BOUND).await;
            }
            Some(Err(error)) if error.kind() == io::ErrorKind::InvalidData => {
                self.books
                    .update(|books| books.mismatches.push(error.to_string()));
                stream::reset(stream);
            }
            Some(Err(_)) => meter.ended(End::Reset),
            None => stream::reset(stream),
        }
    }

    async fn behave(&self, stream: &TcpStream, meter: &Meter) -> io::Result<Close> {
        match &self.manner {
            Manner::Echo => echo(stream, meter).await?,
            Manner::Sink => drain(stream, meter).await?,
            Manner::CheckedSink => {
                let mut checker = Checker::learning();
                while let Some(fed) = meter.read(stream, |bytes| checker.feed(bytes)).await? {
                    fed?;
                    meter.seed(checker.seed());
                }
            }
            Manner::Source { seed, bytes } => {
                let send = async {
                    send(stream, meter, Pattern::new(*seed), *bytes).await?;
                    stream::finish(stream)
                };
                tokio::try_join!(send, drain(stream, meter))?;
            }
            Manner::AnswerAfterEnd { wait, seed, bytes } => {
                drain(stream, meter).await?;
                sleep(*wait).await;
                send(stream, meter, Pattern::new(*seed), *bytes).await?;
            }
            Manner::ResetAfter(limit) => {
                let mut read = 0;
                while read < *limit {
                    match meter.read(stream, |bytes| bytes.len() as u64).await? {
                        Some(n) => read += n,
                        None => return Ok(Close::InOrder),
                    }
                }
                return Ok(Close::Reset);
            }
            Manner::SendThenReset { seed, bytes } => {
                send(stream, meter, Pattern::new(*seed), *bytes).await?;
                return Ok(Close::ResetAfterDelivery);
            }
            Manner::Stopped => self.read_when_allowed(stream, meter).await?,
            Manner::Banner(line) => {
                stream::write(stream, line.as_bytes(), |n| meter.sent(n)).await?;
                echo(stream, meter).await?;
            }
            Manner::Collector => collector::serve(stream, meter, None).await?,
            Manner::Mirror(name) => collector::serve(stream, meter, Some(name)).await?,
        }
        Ok(Close::InOrder)
    }

    async fn read_when_allowed(&self, stream: &TcpStream, meter: &Meter) -> io::Result<()> {
        let mut piece = vec![0; 4096];
        while let Ok(first) = self.allowed.acquire().await {
            first.forget();
            // As much more as is allowed right now, a piece at most; what the stream does not have is given back.
            let more = self.allowed.available_permits().min(piece.len() - 1);
            let more = match self.allowed.try_acquire_many(more as u32) {
                Ok(permits) => {
                    permits.forget();
                    more
                }
                Err(_) => 0,
            };
            let n = loop {
                stream.readable().await?;
                match stream.try_read(&mut piece[..=more]) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    result => break result?,
                }
            };
            if n == 0 {
                meter.ended(End::Fin);
                return Ok(());
            }
            meter.received(&piece[..n]);
            self.allowed.add_permits(1 + more - n);
        }
        drain(stream, meter).await
    }
}

enum Close {
    InOrder,
    Reset,
    ResetAfterDelivery,
}

async fn drain(stream: &TcpStream, meter: &Meter) -> io::Result<()> {
    while meter.read(stream, |_| ()).await?.is_some() {}
    Ok(())
}

async fn echo(stream: &TcpStream, meter: &Meter) -> io::Result<()> {
    while let Some(bytes) = meter.read(stream, <[u8]>::to_vec).await? {
        stream::write(stream, &bytes, |n| meter.sent(n)).await?;
    }
    Ok(())
}

async fn send(stream: &TcpStream, meter: &Meter, pattern: Pattern, bytes: u64) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK];
    let mut offset = 0;
    while offset < bytes {
        let n = (bytes - offset).min(CHUNK as u64) as usize;
        pattern.fill(offset, &mut chunk[..n]);
        stream::write(stream, &chunk[..n], |n| meter.sent(n)).await?;
        offset += n as u64;
    }
    Ok(())
}

/// Books one connection: opened when made, closed when dropped.
pub(super) struct Meter {
    books: Arc<Watched<Books>>,
    index: usize,
}

impl Meter {
    fn open(books: Arc<Watched<Books>>, peer: SocketAddr) -> Self {
        let index = books.update(|books| {
            books.accepted += 1;
            books.open += 1;
            if books.connections.len() < REMEMBERED {
                books.connections.push(Connection {
                    peer,
                    received: 0,
                    sent: 0,
                    first: Vec::new(),
                    seed: None,
                    end: None,
                });
                books.connections.len() - 1
            } else {
                REMEMBERED
            }
        });
        Self { books, index }
    }

    async fn read<R>(
        &self,
        stream: &TcpStream,
        take: impl FnOnce(&[u8]) -> R,
    ) -> io::Result<Option<R>> {
        let read = stream::read(stream, |bytes| {
            self.received(bytes);
            take(bytes)
        });
        let result = read.await;
        match &result {
            Ok(Some(_)) => {}
            Ok(None) => self.ended(End::Fin),
            Err(_) => self.ended(End::Reset),
        }
        result
    }

    pub(super) fn received(&self, bytes: &[u8]) {
        self.books.update(|books| {
            books.received += bytes.len() as u64;
            if let Some(connection) = books.connections.get_mut(self.index) {
                connection.received += bytes.len() as u64;
                let room = FIRST - connection.first.len();
                connection
                    .first
                    .extend_from_slice(&bytes[..bytes.len().min(room)]);
            }
        });
    }

    pub(super) fn sent(&self, n: usize) {
        self.books.update(|books| {
            books.sent += n as u64;
            if let Some(connection) = books.connections.get_mut(self.index) {
                connection.sent += n as u64;
            }
        });
    }

    pub(super) fn ended(&self, end: End) {
        self.books.update(|books| {
            if let Some(connection) = books.connections.get_mut(self.index) {
                connection.end.get_or_insert(end);
            }
        });
    }

    pub(super) fn requested(&self, path: &str, body_bytes: u64) {
        self.books.update(|books| {
            let requests = books.requests.entry(path.to_owned()).or_default();
            requests.count += 1;
            requests.body_bytes += body_bytes;
        });
    }

    fn seed(&self, seed: Option<u64>) {
        self.books.update(|books| {
            if let Some(connection) = books.connections.get_mut(self.index) {
                connection.seed = seed;
            }
        });
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        self.books.update(|books| books.open -= 1);
    }
}
