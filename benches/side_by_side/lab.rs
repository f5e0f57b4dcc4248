//! Three hosts in a row, and a wire from the first to the last for going without a relay.

use std::{
    io,
    net::{SocketAddr, TcpListener, TcpStream},
    time::{Duration, Instant},
};

use crate::harness::netns::{Host, Lab};

/// Where relays listen, from this port on.
const RELAY: &str = "10.1.0.1";
const FIRST_PORT: u16 = 8000;

/// The origin, as relays reach it and as the client does without them.
pub(crate) const ORIGIN: &str = "10.2.0.2:9000";
const ORIGIN_DIRECT: &str = "10.3.0.2:9000";

/// What Linux ships, in every host alike: a machine's own tuning stays outside.
const RECEIVE_BUFFER: &str = "4096 131072 6291456";
const SEND_BUFFER: &str = "4096 16384 4194304";

/// How long connecting through a relay may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Hosts and wires.
#[derive(Debug)]
pub(crate) struct World {
    /// Where the relays run.
    pub(crate) relay: Host,
    client: Host,
    listener: TcpListener,
    _lab: Lab,
}

/// Both ends of a run's connections. The order of one has nothing to do with that of the other.
#[derive(Debug)]
pub(crate) struct Ends {
    /// At the client.
    pub(crate) client: Vec<TcpStream>,
    /// At the origin.
    pub(crate) origin: Vec<TcpStream>,
}

impl World {
    /// With this congestion control at every host.
    pub(crate) fn new(congestion: &str) -> Self {
        let lab = Lab::new("bench");
        let [client, relay, origin] = ["client", "relay", "origin"].map(|name| lab.host(name));
        for host in [&client, &relay, &origin] {
            host.sysctl("net.ipv4.tcp_congestion_control", congestion);
            host.sysctl("net.ipv4.tcp_rmem", RECEIVE_BUFFER);
            host.sysctl("net.ipv4.tcp_wmem", SEND_BUFFER);
        }
        lab.veth((&client, "10.1.0.2/24"), (&relay, "10.1.0.1/24"));
        lab.veth((&relay, "10.2.0.1/24"), (&origin, "10.2.0.2/24"));
        lab.veth((&client, "10.3.0.1/24"), (&origin, "10.3.0.2/24"));
        let listener = origin.call(|| TcpListener::bind("0.0.0.0:9000"));
        let listener = listener.expect("a host of our own has its ports free");
        listener
            .set_nonblocking(true)
            .expect("a socket can be non-blocking");
        Self {
            relay,
            client,
            listener,
            _lab: lab,
        }
    }

    /// Where the relay of this number listens.
    pub(crate) fn entry(number: usize) -> SocketAddr {
        let port = FIRST_PORT + u16::try_from(number).expect("a few relays");
        SocketAddr::new(RELAY.parse().expect("an address"), port)
    }

    /// Where the client goes without a relay.
    pub(crate) fn direct() -> SocketAddr {
        ORIGIN_DIRECT.parse().expect("an address")
    }

    /// Connects so many times to `address`, until all have arrived at the origin.
    pub(crate) fn connect(&self, address: SocketAddr, connections: usize) -> io::Result<Ends> {
        let client = self.client.call(move || {
            let connect = |_| TcpStream::connect_timeout(&address, PATIENCE);
            (0..connections)
                .map(connect)
                .collect::<io::Result<Vec<_>>>()
        })?;
        let (mut origin, deadline) = (Vec::new(), Instant::now() + PATIENCE);
        while origin.len() < connections {
            match self.listener.accept() {
                Ok((stream, _)) => origin.push(stream),
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error),
                Err(_) if Instant::now() > deadline => {
                    let arrived = origin.len();
                    return Err(io::Error::other(format!(
                        "{arrived} of {connections} connections arrived at the origin"
                    )));
                }
                Err(_) => std::thread::sleep(Duration::from_millis(1)),
            }
        }
        for stream in client.iter().chain(&origin) {
            stream.set_nonblocking(true)?;
            stream.set_nodelay(true)?;
        }
        Ok(Ends { client, origin })
    }
}
