//! Three hosts in a row, a wire from the first to the last for going without a relay, and a router beside the relay that does kernel NAT. Or the same
//! hosts with the last one in another Region: what leads to it is a long-distance link.

use std::{
    fs,
    io::{self, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    process::Stdio,
    sync::Arc,
    time::{Duration, Instant},
};

use socket2::{Domain, Socket, Type};

use crate::{
    harness::{
        dns::{Answer, Dns},
        netns::{Host, Lab},
        wan::{Shape, Wan},
    },
    processor::Cores,
};

/// Where relays listen: from the one port on without a header in front, from the other with.
const RELAY: &str = "10.1.0.1";
/// The router, as the client reaches it.
const NAT: &str = "10.4.0.1";
const ORIGIN_BY_NAT: &str = "10.5.0.2";
const FIRST_PORT: u16 = 8000;
const FIRST_PORT_WITH_HEADER: u16 = 8100;

/// The origin, as relays reach it and as the client does without them. Each relay has a port of its own there, from this one on, and so as many
/// ports of its own to come from as if it were alone.
const ORIGIN: &str = "10.2.0.2";
const ORIGIN_DIRECT: &str = "10.3.0.2";
const FIRST_ORIGIN_PORT: u16 = 9000;
const ORIGIN_PORTS: usize = 24;

/// The origin's name, and who knows it.
pub(crate) const ORIGIN_NAME: &str = "origin.example.internal";
pub(crate) const NAME_SERVER: &str = "10.2.0.2:53";

/// What Linux ships, in every host alike: a machine's own tuning stays outside.
pub(crate) const RECEIVE_BUFFER: &str = "4096 131072 6291456";
pub(crate) const SEND_BUFFER: &str = "4096 16384 4194304";

/// How long connecting through a relay may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// How many connections are opened before the origin takes them: less than its queue holds.
const BATCH: usize = 256;

/// Hosts and wires.
#[derive(Debug)]
pub(crate) struct World {
    /// Where the relays run.
    pub(crate) relay: Host,
    /// Where the client is.
    pub(crate) client: Host,
    /// Where the origin is.
    pub(crate) origin: Host,
    /// Whether the router does NAT, or why not.
    pub(crate) nat: Result<Nat, String>,
    /// Who knows the origin's name, and whatever it is told.
    pub(crate) names: Dns,
    hosts: Vec<Host>,
    listeners: Vec<TcpListener>,
    /// From the relay to the origin, and from the client past the relay.
    _far: Option<[Wan; 2]>,
    _lab: Lab,
}

/// The kernel's NAT.
#[derive(Clone, Debug)]
pub(crate) struct Nat {
    /// Of the program that set it up.
    pub(crate) version: String,
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
        let router = lab.router("nat");
        lab.veth((&relay, "10.2.0.1/24"), (&origin, "10.2.0.2/24"));
        lab.veth((&client, "10.3.0.1/24"), (&origin, "10.3.0.2/24"));
        lab.veth((&client, "10.4.0.2/24"), (&router, "10.4.0.1/24"));
        lab.veth((&router, "10.5.0.1/24"), (&origin, "10.5.0.2/24"));
        let nat = nat(&router);
        let hosts = vec![client, relay, origin, router];
        Self::furnished(lab, hosts, nat, None, &[], congestion)
    }

    /// The origin is so far away, for the relay and for the client; there is no router. `more` are sysctls of every host. What carries packets over
    /// the links shares the relay's core, because client and origin have more to do than the relay.
    pub(crate) fn far(
        cores: Cores,
        congestion: &str,
        shape: &Shape,
        more: &[(String, String)],
    ) -> Self {
        let lab = Lab::new("far");
        let [client, relay, origin] = ["client", "relay", "origin"].map(|name| lab.host(name));
        let far = cores.with_the_relay(|| {
            [
                lab.wan(
                    (&relay, "10.2.0.1/24"),
                    (&origin, "10.2.0.2/24"),
                    shape.clone(),
                ),
                lab.wan(
                    (&client, "10.3.0.1/24"),
                    (&origin, "10.3.0.2/24"),
                    shape.clone(),
                ),
            ]
        });
        let hosts = vec![client, relay, origin];
        let nat = Err("no router stands there".to_owned());
        Self::furnished(lab, hosts, nat, Some(far), more, congestion)
    }

    fn furnished(
        lab: Lab,
        hosts: Vec<Host>,
        nat: Result<Nat, String>,
        far: Option<[Wan; 2]>,
        more: &[(String, String)],
        congestion: &str,
    ) -> Self {
        for host in &hosts {
            host.sysctl("net.ipv4.tcp_congestion_control", congestion);
            host.sysctl("net.ipv4.tcp_rmem", RECEIVE_BUFFER);
            host.sysctl("net.ipv4.tcp_wmem", SEND_BUFFER);
            // Thousands of short connections a second: enough ports, and those of connections that were closed a second ago once more.
            host.sysctl("net.ipv4.ip_local_port_range", "10000 65535");
            host.sysctl("net.ipv4.tcp_tw_reuse", "1");
            for (key, value) in more {
                host.sysctl(key, value);
            }
        }
        let [client, relay, origin] = [0, 1, 2].map(|at| hosts[at].clone());
        lab.veth((&client, "10.1.0.2/24"), (&relay, "10.1.0.1/24"));
        let listeners = origin.call(|| (0..ORIGIN_PORTS).map(listen).collect::<io::Result<_>>());
        let listeners = listeners.expect("a host of our own has its ports free");
        let names = Dns::start(&origin, NAME_SERVER);
        names.set(ORIGIN_NAME, Answer::addresses(&[ORIGIN], 60));
        Self {
            relay,
            client,
            origin,
            nat,
            names,
            hosts,
            listeners,
            _far: far,
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

    /// Where the router takes what is for the origin's port of this number.
    pub(crate) fn entry_of_nat(number: usize) -> SocketAddr {
        address(NAT, FIRST_ORIGIN_PORT, number)
    }

    /// One segment per packet on every wire, as on a card without TSO and GRO; or as many as fit.
    ///
    /// By `gso_max_segs`, which ip(8) can set: nothing is left for TSO, and veth does no GRO unless it is told to.
    pub(crate) fn one_segment_per_packet(&self, one: bool) {
        let segments = if one { 1 } else { 65_535 };
        for host in &self.hosts {
            for interface in ethernets(host) {
                host.ip(&format!("link set {interface} gso_max_segs {segments}"));
            }
        }
    }

    /// Bytes and packets that a host has sent by all its wires.
    pub(crate) fn sent(host: &Host) -> [u64; 2] {
        let table = host.call(|| fs::read_to_string("/proc/thread-self/net/dev"));
        let mut sums = [0; 2];
        for line in table.unwrap_or_default().lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            if words.first().is_some_and(|name| name.starts_with("eth")) {
                for (sum, at) in sums.iter_mut().zip([9, 10]) {
                    *sum += words
                        .get(at)
                        .and_then(|word| word.parse().ok())
                        .unwrap_or(0);
                }
            }
        }
        sums
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
        self.connect_with(number, address, connections, &Arc::default())
    }

    /// As [`connect`](Self::connect), and each sends one of these at once.
    pub(crate) fn connect_with(
        &self,
        number: usize,
        address: SocketAddr,
        connections: usize,
        first: &Arc<Vec<Vec<u8>>>,
    ) -> io::Result<Ends> {
        let (mut client, mut origin) = (Vec::new(), Vec::new());
        while client.len() < connections {
            let batch = BATCH.min(connections - client.len());
            let (first, begun) = (Arc::clone(first), client.len());
            client.extend(self.client.call(move || {
                let connect = |number: usize| {
                    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
                    if let Some(at) = number.checked_rem(first.len()) {
                        stream.write_all(&first[at])?;
                    }
                    Ok(stream)
                };
                (begun..begun + batch)
                    .map(connect)
                    .collect::<io::Result<Vec<_>>>()
            })?);
            let deadline = Instant::now() + PATIENCE;
            while origin.len() < client.len() {
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

fn ethernets(host: &Host) -> Vec<String> {
    let table = host.call(|| fs::read_to_string("/proc/thread-self/net/dev"));
    let table = table.unwrap_or_default();
    let names = table.lines().filter_map(|line| line.split_once(':'));
    let names = names.map(|(name, _)| name.trim().to_owned());
    names.filter(|name| name.starts_with("eth")).collect()
}

/// Has the router send what comes for each of the origin's ports there, from an address of its own: by nft(8), or else by iptables(8).
fn nat(router: &Host) -> Result<Nat, String> {
    let last = FIRST_ORIGIN_PORT + u16::try_from(ORIGIN_PORTS).expect("a few relays") - 1;
    let first = FIRST_ORIGIN_PORT;
    let run = |program: &str, arguments: &str, input: &str| -> Result<String, String> {
        let mut command = router.command("/usr/bin/env");
        // Debian puts them where an ordinary user's PATH does not lead.
        let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
        command.env("PATH", path).arg(program);
        command.args(arguments.split_whitespace());
        command.stdin(Stdio::piped());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let output = command.spawn().and_then(|mut child| {
            let mut stdin = child.stdin.take();
            let _ = stdin
                .as_mut()
                .map(|stdin| stdin.write_all(input.as_bytes()));
            drop(stdin);
            child.wait_with_output()
        });
        let output = output.map_err(|error| format!("{program}: {error}"))?;
        let said = |bytes| {
            String::from_utf8_lossy(bytes)
                .lines()
                .next()
                .unwrap_or_default()
                .trim()
                .to_owned()
        };
        match output.status.success() {
            true => Ok(said(&output.stdout)),
            false => Err(format!("{program}: {}", said(&output.stderr))),
        }
    };
    let nft = format!(
        "table ip bench {{
            chain into {{ type nat hook prerouting priority -100; ip daddr {NAT} tcp dport {first}-{last} dnat to {ORIGIN_BY_NAT}; }}
            chain from {{ type nat hook postrouting priority 100; ip daddr {ORIGIN_BY_NAT} masquerade; }}
        }}"
    );
    let by_nft = run("nft", "-f -", &nft).and_then(|_| run("nft", "--version", ""));
    let by_iptables = || {
        let port = format!("-d {NAT} -p tcp --dport {first}:{last}");
        run(
            "iptables",
            &format!("-t nat -A PREROUTING {port} -j DNAT --to-destination {ORIGIN_BY_NAT}"),
            "",
        )?;
        run(
            "iptables",
            &format!("-t nat -A POSTROUTING -d {ORIGIN_BY_NAT} -j MASQUERADE"),
            "",
        )?;
        run("iptables", "--version", "")
    };
    let version =
        by_nft.or_else(|nft| by_iptables().map_err(|iptables| format!("{nft}; {iptables}")));
    version.map(|version| Nat { version })
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
