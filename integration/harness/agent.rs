//! Clients: connections whose every byte is known and counted, and which do to the relay what clients do.

use std::{io, net::SocketAddr, time::Duration};

use socket2::SockRef;
use tokio::{
    io::Interest,
    net::{TcpSocket, TcpStream},
};

use super::{
    BOUND,
    pattern::{Checker, Pattern},
    sockets,
    stream::{self, CHUNK, End, within},
};

/// A client's connection. Every operation ends within the agent's bound, with `TimedOut` if need be. Runs inside a task on a host.
#[derive(Debug)]
pub struct Agent {
    stream: TcpStream,
    pattern: Pattern,
    sent: u64,
    received: u64,
    bound: Duration,
}

impl Agent {
    /// Connects, fails with `ConnectionReset` if it is reset before we look, and is an agent otherwise. The stream that it will send is that of seed 0 unless [`seed`](Self::seed) says otherwise.
    pub async fn connect(to: SocketAddr) -> io::Result<Self> {
        let stream = within(BOUND, TcpStream::connect(to)).await?;
        Self::of(stream)
    }

    /// Connects, sends nothing and reads to the end: for connections that are to be refused. One that is reset at once, so that not even
    /// connecting succeeds, counts as reset without a byte; one that nobody accepted is an error.
    pub async fn outcome(to: SocketAddr) -> io::Result<(Vec<u8>, End)> {
        match Self::connect(to).await {
            Ok(mut agent) => agent.read_to_end().await,
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                Ok((Vec::new(), End::Reset))
            }
            Err(error) => Err(error),
        }
    }

    /// Connects from a given address, port 0 for any.
    pub async fn connect_from(from: SocketAddr, to: SocketAddr) -> io::Result<Self> {
        let socket = match to {
            SocketAddr::V4(_) => TcpSocket::new_v4(),
            SocketAddr::V6(_) => TcpSocket::new_v6(),
        }?;
        socket.set_reuseaddr(true)?;
        socket.bind(from)?;
        let stream = within(BOUND, socket.connect(to)).await?;
        Self::of(stream)
    }

    /// Connects with a small receive buffer, so that an agent that does not read soon stops its sender.
    pub async fn connect_narrow(to: SocketAddr, receive_buffer: u32) -> io::Result<Self> {
        let socket = match to {
            SocketAddr::V4(_) => TcpSocket::new_v4(),
            SocketAddr::V6(_) => TcpSocket::new_v6(),
        }?;
        socket.set_recv_buffer_size(receive_buffer)?;
        let stream = within(BOUND, socket.connect(to)).await?;
        Self::of(stream)
    }

    /// The other end: a connection that was accepted.
    pub fn of(stream: TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        Ok(Self {
            stream,
            pattern: Pattern::new(0),
            sent: 0,
            received: 0,
            bound: BOUND,
        })
    }

    /// Chooses whose stream is sent.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.pattern = Pattern::new(seed);
        self
    }

    /// Bounds each operation.
    #[must_use]
    pub fn bound(mut self, bound: Duration) -> Self {
        self.bound = bound;
        self
    }

    /// The connection itself.
    pub fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// Our end's address.
    pub fn local(&self) -> io::Result<SocketAddr> {
        self.stream.local_addr()
    }

    /// Bytes that the kernel took from us so far.
    pub fn sent(&self) -> u64 {
        self.sent
    }

    /// Bytes that we read so far.
    pub fn received(&self) -> u64 {
        self.received
    }

    /// Sends these bytes.
    pub async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let sent = &mut self.sent;
        let write = stream::write(&self.stream, bytes, |n| *sent += n as u64);
        within(self.bound, write).await
    }

    /// Sends each piece as a segment of its own: the next is sent when the other end's kernel has acknowledged the one before.
    ///
    /// The reader may still find two of them in one read if it is late.
    pub async fn write_segments(&mut self, pieces: &[&[u8]]) -> io::Result<()> {
        for piece in pieces {
            self.write(piece).await?;
            self.acknowledged().await?;
        }
        Ok(())
    }

    /// Sends what comes before the stream, a header, each piece as a segment of its own; not counted as sent.
    pub async fn preface(&mut self, pieces: &[&[u8]]) -> io::Result<()> {
        let sent = self.sent;
        let result = self.write_segments(pieces).await;
        self.sent = sent;
        result
    }

    /// Waits until the other end's kernel has all that we sent.
    pub async fn acknowledged(&self) -> io::Result<()> {
        let (local, remote) = (self.stream.local_addr()?, self.stream.peer_addr()?);
        sockets::acknowledged(local, remote, self.bound).await
    }

    /// Sends the next `n` bytes of our stream.
    pub async fn send(&mut self, n: u64) -> io::Result<()> {
        let sent = &mut self.sent;
        let send = send(&self.stream, self.pattern, *sent, n, sent);
        within(self.bound, send).await
    }

    /// Sends our stream until nothing more went for `quiet`: everything on the way is full. Returns how much it took.
    pub async fn send_until_stuck(&mut self, quiet: Duration) -> io::Result<u64> {
        let before = self.sent;
        let mut chunk = vec![0; CHUNK];
        loop {
            self.pattern.fill(self.sent, &mut chunk);
            match tokio::time::timeout(quiet, self.stream.writable()).await {
                Ok(ready) => ready?,
                Err(_) => return Ok(self.sent - before),
            }
            match self.stream.try_write(&chunk) {
                Ok(n) => self.sent += n as u64,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Reads `n` bytes and checks that they come next in the stream of `seed`, of which `self.received()` bytes were read before.
    pub async fn expect(&mut self, seed: u64, n: u64) -> io::Result<()> {
        let received = &mut self.received;
        let expect = expect(&self.stream, Pattern::new(seed), n, received);
        within(self.bound, expect).await
    }

    /// Sends the next `n` bytes and reads as many at the same time, which must be ours come back.
    pub async fn exchange(&mut self, n: u64) -> io::Result<()> {
        let (sent, received) = (&mut self.sent, &mut self.received);
        let send = send(&self.stream, self.pattern, *sent, n, sent);
        let expect = expect(&self.stream, self.pattern, n, received);
        within(self.bound, async { tokio::try_join!(send, expect) }).await?;
        Ok(())
    }

    /// Sends the next `n` bytes and reads the next `m` of the stream of `seed` at the same time.
    pub async fn talk(&mut self, n: u64, seed: u64, m: u64) -> io::Result<()> {
        let (sent, received) = (&mut self.sent, &mut self.received);
        let send = send(&self.stream, self.pattern, *sent, n, sent);
        let expect = expect(&self.stream, Pattern::new(seed), m, received);
        within(self.bound, async { tokio::try_join!(send, expect) }).await?;
        Ok(())
    }

    /// Sends the next byte of our stream as urgent data (`MSG_OOB`).
    pub async fn send_urgent(&mut self) -> io::Result<()> {
        let (stream, byte) = (&self.stream, self.pattern.bytes(self.sent, 1));
        let send = async {
            loop {
                stream.writable().await?;
                let sent = stream.try_io(Interest::WRITABLE, || {
                    SockRef::from(stream).send_out_of_band(&byte)
                });
                match sent {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    result => return result,
                }
            }
        };
        self.sent += within(self.bound, send).await? as u64;
        Ok(())
    }

    /// Reads exactly `n` bytes, whatever they are.
    pub async fn read(&mut self, n: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; n];
        let mut done = 0;
        let stream = &self.stream;
        let read = async {
            while done < n {
                stream.readable().await?;
                match stream.try_read(&mut bytes[done..]) {
                    Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                    Ok(n) => done += n,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => return Err(error),
                }
            }
            Ok(())
        };
        let result = within(self.bound, read).await;
        self.received += done as u64;
        result.map(|()| bytes)
    }

    /// Reads until the other end closes; returns what came and how it ended.
    pub async fn read_to_end(&mut self) -> io::Result<(Vec<u8>, End)> {
        let mut bytes = Vec::new();
        let stream = &self.stream;
        let read = async {
            loop {
                match stream::read(stream, |piece| bytes.extend_from_slice(piece)).await {
                    Ok(Some(())) => {}
                    Ok(None) => return Ok(End::Fin),
                    Err(_) => return Ok(End::Reset),
                }
            }
        };
        let end = within(self.bound, read).await?;
        self.received += bytes.len() as u64;
        Ok((bytes, end))
    }

    /// Reads to the end and checks all of it against the stream of `seed`, from its start if nothing was read before.
    pub async fn expect_to_end(&mut self, seed: u64) -> io::Result<End> {
        let pattern = Pattern::new(seed);
        let received = &mut self.received;
        let stream = &self.stream;
        let read = async {
            loop {
                let offset = *received;
                let read = stream::read(stream, |piece| {
                    *received += piece.len() as u64;
                    pattern.check(offset, piece)
                });
                match read.await {
                    Ok(Some(checked)) => checked?,
                    Ok(None) => return Ok(End::Fin),
                    Err(_) => return Ok(End::Reset),
                }
            }
        };
        within(self.bound, read).await
    }

    /// Sends our FIN; reading goes on.
    pub fn finish(&self) -> io::Result<()> {
        stream::finish(&self.stream)
    }

    /// Closes with RST; what was not acknowledged yet is lost.
    pub fn reset(self) {
        stream::reset(self.stream);
    }

    /// Waits until everything sent has been acknowledged, then closes with RST.
    pub async fn reset_after_delivery(self) {
        stream::reset_after_delivery(self.stream, self.bound).await;
    }

    /// A checker that follows the stream we send, for whoever receives it.
    pub fn checker(&self) -> Checker {
        Checker::of(self.pattern.seed())
    }
}

async fn send(
    stream: &TcpStream,
    pattern: Pattern,
    from: u64,
    n: u64,
    sent: &mut u64,
) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK.min(n as usize)];
    let mut offset = from;
    while offset < from + n {
        let piece = (from + n - offset).min(CHUNK as u64) as usize;
        pattern.fill(offset, &mut chunk[..piece]);
        stream::write(stream, &chunk[..piece], |n| *sent += n as u64).await?;
        offset += piece as u64;
    }
    Ok(())
}

async fn expect(
    stream: &TcpStream,
    pattern: Pattern,
    n: u64,
    received: &mut u64,
) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK.min(n as usize)];
    let end = *received + n;
    while *received < end {
        let room = (end - *received).min(CHUNK as u64) as usize;
        stream.readable().await?;
        match stream.try_read(&mut chunk[..room]) {
            Ok(0) => {
                return Err(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    format!("the stream ended after {received} bytes, {end} were expected"),
                ));
            }
            Ok(n) => {
                pattern.check(*received, &chunk[..n])?;
                *received += n as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
