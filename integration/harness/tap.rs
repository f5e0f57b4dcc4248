//! Who opens connections to whom: every SYN that passes through a host's interfaces.

use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    os::fd::OwnedFd,
    sync::Arc,
};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::Interest;
use tokio_util::sync::CancellationToken;
use tollgate::sys::readiness;

use super::{netns::Host, watched::Watched};

/// ETH_P_ALL of `linux/if_ether.h`: what arrives and what leaves. Only this one shows what leaves.
const EVERYTHING: u16 = 0x0003;
/// Of headers; the payload does not matter.
const HEAD: usize = 128;
const TCP: u8 = 6;
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

/// From whom to whom.
pub type Opening = (SocketAddr, SocketAddr);

/// Watches one host until it is dropped. IPv4 only: no lab that asks has anything else.
#[derive(Debug)]
pub struct Tap {
    seen: Arc<Watched<BTreeSet<Opening>>>,
    stop: CancellationToken,
}

impl Tap {
    /// Begins to watch all interfaces of `host`.
    ///
    /// # Panics
    /// When the kernel does not let us.
    #[track_caller]
    pub fn on(host: &Host) -> Self {
        let socket = host.call(|| {
            // Without the link's own header, so that wires and long-distance links look alike.
            let all = Protocol::from(i32::from(EVERYTHING.to_be()));
            let socket = Socket::new(Domain::PACKET, Type::DGRAM.nonblocking(), Some(all))?;
            // A burst must not go unseen.
            socket.set_recv_buffer_size(8 << 20)?;
            Ok::<_, io::Error>(socket)
        });
        let socket = socket.unwrap_or_else(|error| panic!("{}: {error}", host.namespace()));
        let seen = Arc::new(Watched::<BTreeSet<Opening>>::default());
        let stop = CancellationToken::new();
        let (into, end) = (Arc::clone(&seen), stop.clone());
        host.spawn(async move {
            end.run_until_cancelled(watch(socket.into(), &into)).await;
        });
        Self { seen, stop }
    }

    /// What was seen so far. A port that was used twice between the same two counts once.
    pub fn openings(&self) -> BTreeSet<Opening> {
        self.seen.look(BTreeSet::clone)
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn watch(socket: OwnedFd, seen: &Watched<BTreeSet<Opening>>) {
    let socket = readiness::watch(socket, Interest::READABLE).expect("a socket can be polled");
    let mut packet = [0; HEAD];
    loop {
        let mut ready = socket.readable().await.expect("a socket can be polled");
        match rustix::io::read(socket.get_ref(), &mut packet) {
            Ok(n) => {
                if let Some(opening) = opening(&packet[..n]) {
                    seen.update(|seen| seen.insert(opening));
                }
            }
            Err(rustix::io::Errno::AGAIN) => ready.clear_ready(),
            // An interface went down or away; there are others.
            Err(_) => {}
        }
    }
}

/// Whose SYN this packet is, if it is one.
fn opening(packet: &[u8]) -> Option<Opening> {
    let first = *packet.first()?;
    if first >> 4 != 4 || *packet.get(9)? != TCP {
        return None;
    }
    let tcp = packet.get(usize::from(first & 0xf) * 4..)?;
    let flags = *tcp.get(13)?;
    if flags & (SYN | ACK) != SYN {
        return None;
    }
    let address = |at: usize| -> Option<IpAddr> {
        let four: [u8; 4] = packet.get(at..at + 4)?.try_into().ok()?;
        Some(Ipv4Addr::from(four).into())
    };
    let port = |at: usize| Some(u16::from_be_bytes(tcp.get(at..at + 2)?.try_into().ok()?));
    let from = SocketAddr::new(address(12)?, port(0)?);
    let to = SocketAddr::new(address(16)?, port(2)?);
    Some((from, to))
}
