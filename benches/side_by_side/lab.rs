//! Three hosts in a row, and a wire from the first to the last for going without a relay.

use std::{
    io,
    net::{SocketAddr, TcpListener, TcpStream},
    time::{Duration, Instant},
};

use socket2::{Domain, Socket, Type};

use crate::harness::{
    dns::{Answer, Dns},
    netns::{Host, Lab},
};

/// Where relays listen: from the one port on without a header in front, from the other with.
const RELAY: &str = "10.1.0.1";
const FIRST_PORT: u16 = 8000;
const FIRST_PORT_WITH_HEADER: u16 = 8100;

/// The origin, as relays reach it and as the client does without them. Each relay has a port of its own there, from this one on, and so as many
/// ports of its own to come from as if it were alone.
const ORIGIN: &str = "10.2.0.2";
const ORIGIN_DIRECT: &str = "10.3.0.2";
const FIRST_ORIGIN_PORT: u16 = 9000;
const ORIGIN_PORTS: usize = 16;

/// The origin's name, and who knows it.
pub(crate) const ORIGIN_NAME: &str = "origin.example.internal";
pub(crate) const NAME_SERVER: &str = "10.2.0.2:53";

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
    /// Where the client is.
    pub(crate) client: Host,
    listeners: Vec<TcpListener>,
    _names: Dns,
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
            // Thousands of short connections a second: enough ports, and those of connections that were closed a second ago once more.
            host.sysctl("net.ipv4.ip_local_port_range", "10000 65535");
            host.sysctl("net.ipv4.tcp_tw_reuse", "1");
        }
        lab.veth((&client, "10.1.0.2/24"), (&relay, "10.1.0.1/24"));
        lab.veth((&relay, "10.2.0.1/24"), (&origin, "10.2.0.2/24"));
        lab.veth((&client, "10.3.0.1/24"), (&origin, "10.3.0.2/24"));
        let listeners = origin.call(|| (0..ORIGIN_PORTS).map(listen).collect::<io::Result<_>>());
        let listeners = listeners.expect("a host of our own has its ports free");
        let names = Dns::start(&origin, NAME_SERVER);
        names.set(ORIGIN_NAME, Answer::addresses(&[ORIGIN], 60));
        Self {
            relay,
            client,
            listeners,
            _names: names,
            _lab: lab,
        }
    }

    /// Where the relay of this number listens.
    pub(crate) fn entry(number: usize) -> SocketAddr {
        address(RELAY, FIRST_PORT, number)
    }

    /// Where it wants a PROXY v2 header.
    pub(crate) fn entry_with_header(number: usize) -> SocketAddr {
        address(RELAY, FIRST_PORT_WITH_HEADER, number)
    }

    /// Where it finds the origin.
    pub(crate) fn origin(number: usize) -> SocketAddr {
        address(ORIGIN, FIRST_ORIGIN_PORT, number)
    }

    /// Where the client goes without a relay.
    pub(crate) fn direct(number: usize) -> SocketAddr {
        address(ORIGIN_DIRECT, FIRST_ORIGIN_PORT, number)
    }

    /// The origin's listening socket for the relay of this number. It does not block.
    pub(crate) fn listener(&self, number: usize) -> &TcpListener {
        &self.listeners[number]
    }

    /// Connects so many times to `address` of the relay of this number, until all have arrived at the origin.
    pub(crate) fn connect(
        &self,
        number: usize,
        address: SocketAddr,
        connections: usize,
    ) -> io::Result<Ends> {
        let client = self.client.call(move || {
            let connect = |_| TcpStream::connect_timeout(&address, PATIENCE);
            (0..connections)
                .map(connect)
                .collect::<io::Result<Vec<_>>>()
        })?;
        let (mut origin, deadline) = (Vec::new(), Instant::now() + PATIENCE);
        while origin.len() < connections {
            match self.listeners[number].accept() {
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

fn address(host: &str, first_port: u16, number: usize) -> SocketAddr {
    let port = first_port + u16::try_from(number).expect("a few relays");
    SocketAddr::new(host.parse().expect("an address"), port)
}

/// With a queue that holds what one run connects at once, which the standard library's does not.
fn listen(number: usize) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.set_reuse_address(true)?;
    socket.bind(&address("0.0.0.0", FIRST_ORIGIN_PORT, number).into())?;
    socket.listen(4096)?;
    Ok(socket.into())
}
