//! Three hosts in a row and two origins, before which the relay has one configuration after the other.

use std::{fmt::Write as _, io, net::SocketAddr};

use serde_json::Value;

use crate::{
    harness::{
        BOUND,
        agent::Agent,
        netns::Host,
        origin::{Manner, Origin},
        relay::{Baseline, Relay, Start},
        sockets::State,
        stream::{self, End, within},
    },
    scenarios::world::{self, ENDPOINT, Hosts, privatelink_header},
};

/// What every configuration here begins with.
pub(super) const TOP: &str = "relay_id = \"relay-a\"\nworkers = 2\n";

/// Where the origins are.
pub(super) const FIRST: &str = "10.30.0.2:443";
pub(super) const SECOND: &str = "10.30.0.2:444";

/// A listener for the balancer's node: name, where it listens, its upstream.
pub(super) type Listener<'a> = (&'a str, &'a str, &'a str);

/// A configuration as text.
pub(super) fn config(
    listeners: &[Listener<'_>],
    upstreams: &[(&str, &str)],
    tables: &str,
) -> String {
    let mut text = format!("{TOP}{tables}\n");
    for (name, bind, upstream) in listeners {
        let _ = write!(
            text,
            "[[listener]]\nname = \"{name}\"\nbind = \"{bind}\"\ntrusted_peers = [\"10.20.0.0/16\"]\nupstream = \"{upstream}\"\n"
        );
    }
    for (name, target) in upstreams {
        let _ = write!(
            text,
            "[[upstream]]\nname = \"{name}\"\ntargets = [\"{target}\"]\n"
        );
    }
    text
}

/// One listener and the first origin: what most begin with.
pub(super) fn plain() -> String {
    plain_and("")
}

/// The same with tables.
pub(super) fn plain_and(tables: &str) -> String {
    let listeners = [("ingest", "0.0.0.0:8443", "cp")];
    config(&listeners, &[("cp", FIRST)], tables)
}

/// See the module.
#[derive(Debug)]
pub(super) struct Reloading {
    pub(super) relay: Relay,
    pub(super) baseline: Baseline,
    pub(super) origins: [Origin; 2],
    pub(super) hosts: Hosts,
}

impl Reloading {
    /// A relay with this configuration before two origins that echo.
    #[track_caller]
    pub(super) fn new(name: &str, config: &str) -> Self {
        Self::with(name, Start::with(config))
    }

    /// A relay started like this before two origins that echo.
    #[track_caller]
    pub(super) fn with(name: &str, start: Start) -> Self {
        let hosts = busy_hosts(name);
        let origins = [FIRST, SECOND].map(|at| Origin::start(&hosts.origin, at, Manner::Echo));
        let relay = start.on(&hosts.relay);
        Self {
            baseline: Baseline::of(&relay),
            relay,
            origins,
            hosts,
        }
    }

    /// Puts this into force, which must succeed; what the relay says of it.
    #[track_caller]
    pub(super) fn apply(&self, config: &str) -> Value {
        self.relay.reload_with(config).done()
    }

    /// The same by SIGHUP.
    #[track_caller]
    pub(super) fn apply_by_signal(&self, config: &str) {
        let before = self.reloads("applied");
        self.relay.rewrite_config(config);
        self.relay.signal(crate::harness::relay::Signal::HUP);
        let applied = || self.reloads("applied") > before;
        self.relay.wait_until("the reload", applied);
    }

    /// How many reloads came to this.
    #[track_caller]
    pub(super) fn reloads(&self, result: &str) -> u64 {
        let labels = [("result", result)];
        self.relay.metric("tollgate_config_reloads_total", &labels)
    }

    /// A session of a thousand bytes to this port of the relay, whole.
    #[track_caller]
    pub(super) fn exchange(&self, port: u16) {
        let session = session(at(port), ENDPOINT, 1, 1000);
        self.hosts.node.run(session).unwrap();
    }

    /// A session that has exchanged a thousand bytes, and stays.
    #[track_caller]
    pub(super) fn open(&self, port: u16, endpoint: &'static str) -> Agent {
        self.hosts.node.run(async move {
            let mut agent = opened(at(port), endpoint).await.unwrap();
            agent.exchange(1000).await.unwrap();
            agent
        })
    }

    /// Checks that a session of before still carries bytes, and ends it in order.
    #[track_caller]
    pub(super) fn goes_on(&self, mut agent: Agent) {
        self.hosts.node.run(async move {
            agent.exchange(300_000).await.unwrap();
            agent.finish().unwrap();
            assert_eq!(agent.expect_to_end(0).await.unwrap(), End::Fin);
        });
    }

    /// Waits until nothing of the relay listens at this port.
    #[track_caller]
    pub(super) fn wait_port_closed(&self, port: u16) {
        self.relay.wait_until("the port to be closed", || {
            !listens(&self.hosts.relay, port)
        });
    }

    /// As [`world::assert_at_rest`].
    #[track_caller]
    pub(super) fn assert_at_rest(&self) {
        world::assert_at_rest(&self.relay, self.baseline);
    }
}

/// Three hosts in a row, on which ports of sessions that are over are soon used again.
#[track_caller]
pub(super) fn busy_hosts(name: &str) -> Hosts {
    let hosts = Hosts::new(name);
    for host in [&hosts.node, &hosts.relay, &hosts.origin] {
        host.sysctl("net.ipv4.ip_local_port_range", "10000 65000");
        host.sysctl("net.ipv4.tcp_tw_reuse", "1");
    }
    hosts
}

/// Whether anybody on this host listens at this port.
#[track_caller]
pub(super) fn listens(host: &Host, port: u16) -> bool {
    let sockets = host.sockets();
    let mut sockets = sockets.iter();
    sockets.any(|socket| socket.state == State::Listen && socket.local.port() == port)
}

/// A port of the relay, as the balancer sees it.
pub(super) fn at(port: u16) -> SocketAddr {
    SocketAddr::from(([10, 20, 0, 2], port))
}

/// A connection of this endpoint whose header is sent.
pub(super) async fn opened(to: SocketAddr, endpoint: &str) -> io::Result<Agent> {
    let agent = Agent::connect(to).await?;
    // Not as an agent's preface, which looks through all sockets for its own.
    let header = privatelink_header(endpoint);
    within(BOUND, stream::write(agent.stream(), &header, |_| ())).await?;
    Ok(agent)
}

/// A session from beginning to end with an origin that echoes.
pub(super) async fn session(
    to: SocketAddr,
    endpoint: &str,
    seed: u64,
    bytes: u64,
) -> io::Result<()> {
    let mut agent = opened(to, endpoint).await?.seed(seed);
    agent.exchange(bytes).await?;
    agent.finish()?;
    match agent.expect_to_end(seed).await? {
        End::Fin if agent.received() == bytes => Ok(()),
        end => {
            let what = format!("{end:?} after {} bytes of {bytes}", agent.received());
            Err(io::Error::other(what))
        }
    }
}
