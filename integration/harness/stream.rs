//! Moving bytes through sockets without a buffer per connection, and ending connections the hard way.

use std::{cell::RefCell, io, time::Duration};

use tokio::{io::Interest, net::TcpStream, time::timeout};

use super::sockets;

/// What one read takes at most.
pub const CHUNK: usize = 128 * 1024;

thread_local! {
    static SCRATCH: RefCell<Vec<u8>> = RefCell::new(vec![0; CHUNK]);
}

/// How a direction of a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// In order, by FIN.
    Fin,
    /// By RST, or by a timeout of the kernel's.
    Reset,
}

/// Waits until something can be read, reads it and shows it to `take`; `None` at the end of the stream.
pub async fn read<R>(stream: &TcpStream, take: impl FnOnce(&[u8]) -> R) -> io::Result<Option<R>> {
    read_at_most(stream, CHUNK, take).await
}

/// As [`read`], of so many bytes at most.
pub async fn read_at_most<R>(
    stream: &TcpStream,
    most: usize,
    take: impl FnOnce(&[u8]) -> R,
) -> io::Result<Option<R>> {
    let mut take = Some(take);
    loop {
        stream.readable().await?;
        let read = SCRATCH.with_borrow_mut(|scratch| match stream.try_read(&mut scratch[..most]) {
            Ok(0) => Some(Ok(None)),
            Ok(n) => {
                let take = take.take().expect("taken once, then returned");
                Some(Ok(Some(take(&scratch[..n]))))
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
            Err(error) => Some(Err(error)),
        });
        if let Some(result) = read {
            return result;
        }
    }
}

/// Writes all of `bytes`, telling `wrote` of each piece that the kernel took.
pub async fn write(
    stream: &TcpStream,
    mut bytes: &[u8],
    mut wrote: impl FnMut(usize),
) -> io::Result<()> {
    while !bytes.is_empty() {
        stream.writable().await?;
        match stream.try_write(bytes) {
            Ok(n) => {
                wrote(n);
                bytes = &bytes[n..];
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Sends our FIN and goes on reading.
pub fn finish(stream: &TcpStream) -> io::Result<()> {
    socket2::SockRef::from(stream).shutdown(std::net::Shutdown::Write)
}

/// Closes with RST; what the other end has not acknowledged yet is lost.
pub fn reset(stream: TcpStream) {
    // Fails only on a socket that is gone already.
    let _ = socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO));
}

/// Waits until the other end has acknowledged everything, then closes with RST.
pub async fn reset_after_delivery(stream: TcpStream, bound: Duration) {
    if let (Ok(local), Ok(remote)) = (stream.local_addr(), stream.peer_addr()) {
        let _ = sockets::acknowledged(local, remote, bound).await;
    }
    reset(stream);
}

/// Returns when the connection broke, without reading what arrived before. Waits for ever on one that lives.
pub async fn broken(stream: &TcpStream) {
    // An error of the wait itself is as good as a broken socket.
    let _ = stream.ready(Interest::ERROR).await;
}

/// Puts a bound on an operation; `TimedOut` when it passes.
pub async fn within<T>(
    bound: Duration,
    work: impl Future<Output = io::Result<T>>,
) -> io::Result<T> {
    match timeout(bound, work).await {
        Ok(result) => result,
        Err(_) => Err(io::Error::new(
            io::ErrorKind::TimedOut,
            format!("not within {bound:?}"),
        )),
    }
}
