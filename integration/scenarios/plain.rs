//! Sessions whose ends are plain blocking sockets, for bulk that costs the test less than the relay: large writes of one buffer, and readers
//! that throw bytes away without copying them (MSG_TRUNC). Only counted; who wants to know that the bytes are right sends a pattern behind.

use std::{
    io::{self, Read, Write},
    net::{Shutdown, TcpStream},
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use rustix::net::{RecvFlags, recv};

use super::{
    peers::{Peers, Way},
    world::{ENDPOINT, listener, privatelink_header},
};
use crate::harness::{
    pattern::Pattern,
    stream::{self, within},
};

/// How long one read or write may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// A write, and the room of a read.
const CHUNK: usize = 1 << 20;

/// One end of a session.
#[derive(Debug)]
pub(crate) struct Plain(TcpStream);

impl Peers {
    /// A new session as seen along a direction: sender and receiver.
    #[track_caller]
    pub(crate) fn open_plain(&self, way: Way) -> [Plain; 2] {
        let client = self.hosts.node.run(async {
            let connect = tokio::net::TcpStream::connect(listener());
            let client = within(PATIENCE, connect).await?;
            stream::write(&client, &privatelink_header(ENDPOINT), |_| ()).await?;
            plain(client)
        });
        let accepting = self.accepting();
        let server = self.hosts.origin.run(async move {
            let (stream, _) = within(PATIENCE, accepting.accept()).await?;
            plain(stream)
        });
        let ends = [client, server].map(|end: io::Result<Plain>| end.unwrap());
        match (way, ends) {
            (Way::ToUpstream, ends) => ends,
            (Way::ToClient, [client, server]) => [server, client],
        }
    }
}

fn plain(stream: tokio::net::TcpStream) -> io::Result<Plain> {
    let stream = stream.into_std()?;
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(Plain(stream))
}

impl Plain {
    /// Sends bytes until `enough` of how many were sent.
    pub(crate) fn send(&self, mut left: impl FnMut(u64) -> u64) -> io::Result<u64> {
        let (chunk, mut sent) = (vec![7; CHUNK], 0);
        loop {
            match left(sent).min(CHUNK as u64) {
                0 => return Ok(sent),
                more => sent += (&self.0).write(&chunk[..more as usize])? as u64,
            }
        }
    }

    /// Takes `n` bytes, or fewer if the stream ends before; each that came is added to `counted` at once.
    pub(crate) fn discard(&self, n: u64, counted: &AtomicU64) -> io::Result<u64> {
        let (mut room, mut received) = (vec![0; CHUNK], 0);
        while received < n {
            let most = (n - received).min(CHUNK as u64) as usize;
            match recv(&self.0, &mut room[..most], RecvFlags::TRUNC)?.1 {
                0 => break,
                more => {
                    received += more as u64;
                    counted.fetch_add(more as u64, Ordering::Relaxed);
                }
            }
        }
        Ok(received)
    }

    /// Sends the first `n` bytes of a seed's stream, and the FIN.
    pub(crate) fn finish(&self, seed: u64, n: usize) -> io::Result<()> {
        (&self.0).write_all(&Pattern::new(seed).bytes(0, n))?;
        self.0.shutdown(Shutdown::Write)
    }

    /// Reads to the end, which must be the first `n` bytes of a seed's stream.
    pub(crate) fn expect_to_end(&self, seed: u64, n: usize) -> io::Result<()> {
        let mut bytes = Vec::with_capacity(n);
        (&self.0).read_to_end(&mut bytes)?;
        Pattern::new(seed).check(0, &bytes)?;
        if bytes.len() != n {
            let what = format!("{} bytes and a FIN, {n} were expected", bytes.len());
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
        Ok(())
    }
}
