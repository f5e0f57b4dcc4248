//! The kernel's table of TCP sockets: what is open, and what waits in its queues.

use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use tokio::time::{Instant, sleep};

/// One line of /proc/net/tcp or tcp6. IPv4-mapped addresses are shown as IPv4.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Socket {
    /// Our end.
    pub local: SocketAddr,
    /// The other end; port 0 while it listens.
    pub remote: SocketAddr,
    /// Where the connection stands.
    pub state: State,
    /// Bytes written and not yet acknowledged; while it listens, nothing.
    pub send_queue: u64,
    /// Bytes arrived and not yet read; while it listens, connections that wait to be accepted.
    pub receive_queue: u64,
}

/// The states that tests tell apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Open in both directions.
    Established,
    /// Waits for connections.
    Listen,
    /// Closed, kept by the kernel for late packets.
    TimeWait,
    /// The other end has sent its FIN, we have not.
    CloseWait,
    /// Any other: opening, or somewhere on the way to closed.
    Other(u8),
}

/// Reads the calling thread's namespace.
pub fn of_this_namespace() -> Vec<Socket> {
    let mut sockets = Vec::new();
    // thread-self, not self: the process's first thread is in another namespace.
    for file in ["/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"] {
        // A kernel without IPv6 has no tcp6.
        let table = fs::read_to_string(file).unwrap_or_default();
        sockets.extend(table.lines().skip(1).filter_map(parse));
    }
    sockets
}

/// Waits until everything that was written to the connection `local` to `remote` is acknowledged, or the connection is gone.
///
/// The kernel has no event for it that safe code can reach, so this looks again each millisecond. Runs on the host that has the socket.
pub async fn acknowledged(
    local: SocketAddr,
    remote: SocketAddr,
    bound: Duration,
) -> io::Result<()> {
    let deadline = Instant::now() + bound;
    loop {
        let waits = of_this_namespace().into_iter().any(|socket| {
            (socket.local, socket.remote) == (plain(local), plain(remote)) && socket.send_queue > 0
        });
        if !waits {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(io::ErrorKind::TimedOut.into());
        }
        sleep(Duration::from_millis(1)).await;
    }
}

/// `::ffff:10.0.0.1` as `10.0.0.1`.
pub fn plain(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

fn parse(line: &str) -> Option<Socket> {
    let mut words = line.split_whitespace().skip(1);
    let local = address(words.next()?)?;
    let remote = address(words.next()?)?;
    let state = match u8::from_str_radix(words.next()?, 16).ok()? {
        1 => State::Established,
        6 => State::TimeWait,
        8 => State::CloseWait,
        10 => State::Listen,
        other => State::Other(other),
    };
    let (send, receive) = words.next()?.split_once(':')?;
    Some(Socket {
        local,
        remote,
        state,
        send_queue: u64::from_str_radix(send, 16).ok()?,
        receive_queue: u64::from_str_radix(receive, 16).ok()?,
    })
}

/// Words of 32 bits in the machine's byte order, then the port.
fn address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let mut bytes = Vec::with_capacity(16);
    for at in (0..ip.len()).step_by(8) {
        let word = u32::from_str_radix(ip.get(at..at + 8)?, 16).ok()?;
        bytes.extend_from_slice(&word.to_ne_bytes());
    }
    let ip = match <[u8; 4]>::try_from(bytes.as_slice()) {
        Ok(four) => IpAddr::V4(Ipv4Addr::from(four)),
        Err(_) => IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(bytes.as_slice()).ok()?)),
    };
    Some(plain(SocketAddr::new(ip, port)))
}
