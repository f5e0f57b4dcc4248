//! A relay with both ends of its sessions in one hand: the client on the balancer's node and the server at the origin's address are both
//! agents, so that whatever is claimed of one direction is claimed of the other with the same words.

use std::{fs, pin::Pin, sync::Arc, time::Duration};

use tokio::net::TcpListener;

use super::world::{self, ENDPOINT, Hosts, ORIGIN};
use crate::harness::{
    agent::Agent,
    netns::Host,
    relay::{Baseline, Relay, Signal, Start},
    sockets::Socket,
    stream::{self, End, within},
};

/// How long an operation of a peer may take: tens of megabytes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(50);

/// What counts as stuck. Too short only makes a buffer less full.
const QUIET: Duration = Duration::from_millis(150);

/// See the module.
#[derive(Debug)]
pub(crate) struct Peers {
    pub(crate) relay: Relay,
    pub(crate) hosts: Hosts,
    baseline: Baseline,
    listener: Arc<TcpListener>,
}

/// One end of a session. It sends the stream of `sends` and expects that of `expects`.
#[derive(Debug)]
pub(crate) struct Peer {
    host: Host,
    agent: Option<Agent>,
    expects: u64,
}

/// A direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    ToUpstream,
    ToClient,
}

impl Way {
    pub(crate) const ALL: [Self; 2] = [Self::ToUpstream, Self::ToClient];

    /// As metrics call it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::ToUpstream => "to_upstream",
            Self::ToClient => "to_client",
        }
    }

    /// The reason of a session whose sender in this direction sends RST.
    pub(crate) fn sender_reset(self) -> &'static str {
        match self {
            Self::ToUpstream => "client_reset",
            Self::ToClient => "upstream_reset",
        }
    }

    /// The reason of a session whose receiver in this direction sends RST.
    pub(crate) fn receiver_reset(self) -> &'static str {
        match self {
            Self::ToUpstream => "upstream_reset",
            Self::ToClient => "client_reset",
        }
    }

    /// The sender and the receiver in this direction.
    pub(crate) fn along(self, (client, server): (Peer, Peer)) -> (Peer, Peer) {
        match self {
            Self::ToUpstream => (client, server),
            Self::ToClient => (server, client),
        }
    }
}

impl Peers {
    /// A relay started like this, and nothing yet before or behind it.
    #[track_caller]
    pub(crate) fn new(name: &str, start: Start) -> Self {
        Self::between(Hosts::new(name), start)
    }

    /// As [`new`](Self::new), between hosts on which something was changed.
    #[track_caller]
    pub(crate) fn between(hosts: Hosts, start: Start) -> Self {
        let listener = hosts.origin.run(TcpListener::bind(ORIGIN));
        let relay = start.on(&hosts.relay);
        Self {
            baseline: Baseline::of(&relay),
            relay,
            listener: Arc::new(listener.unwrap()),
            hosts,
        }
    }

    /// A new session: client and server, who send the streams of `seed` and `seed + 1`.
    #[track_caller]
    pub(crate) fn open(&self, seed: u64) -> (Peer, Peer) {
        let client = self.hosts.node.run(world::connected(ENDPOINT));
        let listener = self.accepting();
        let accepted = self.hosts.origin.run(async move {
            let (stream, _) = within(PATIENCE, listener.accept()).await?;
            Agent::of(stream)
        });
        let peer = |host: &Host, agent: Agent, sends: u64, expects: u64| Peer {
            host: host.clone(),
            agent: Some(agent.seed(sends).bound(PATIENCE)),
            expects,
        };
        (
            peer(&self.hosts.node, client.unwrap(), seed, seed + 1),
            peer(&self.hosts.origin, accepted.unwrap(), seed + 1, seed),
        )
    }

    /// Where the origin's ends of sessions come from.
    pub(crate) fn accepting(&self) -> Arc<TcpListener> {
        Arc::clone(&self.listener)
    }

    /// A new session as seen along a direction: sender and receiver.
    #[track_caller]
    pub(crate) fn open_along(&self, way: Way, seed: u64) -> (Peer, Peer) {
        way.along(self.open(seed))
    }

    /// Payload bytes booked in a direction.
    #[track_caller]
    pub(crate) fn booked(&self, way: Way) -> u64 {
        let labels = [("endpoint", ENDPOINT), ("direction", way.name())];
        self.relay.metric("tollgate_bytes_total", &labels)
    }

    /// Bytes that went through the worker's buffer (`copy`) or a pipe (`splice`).
    #[track_caller]
    pub(crate) fn moved_by(&self, mode: &str) -> u64 {
        let labels = [("mode", mode)];
        self.relay.metric("tollgate_relay_bytes_total", &labels)
    }

    /// Waits until so many connections were closed with `reason`.
    #[track_caller]
    pub(crate) fn wait_closed(&self, reason: &str, n: u64) {
        let labels = [("reason", reason)];
        self.relay
            .wait_metric("tollgate_connections_closed_total", &labels, n);
    }

    /// Waits until so many pipes hold bytes.
    #[track_caller]
    pub(crate) fn wait_pipes_lent(&self, n: u64) {
        let labels = [("state", "lent")];
        self.relay.wait_metric("tollgate_pipes", &labels, n);
    }

    /// Sends the first `n` bytes of a direction, then RST when they have been passed on; waits until the relay has seen it.
    #[track_caller]
    pub(crate) fn send_and_reset(&self, mut sender: Peer, way: Way, n: u64) {
        sender.send(n);
        self.relay
            .wait_until("all to be passed on", || self.booked(way) == n);
        let (local, remote) = sender.addresses();
        sender.reset_after_delivery();
        self.relay.wait_until("the RST to be seen", || {
            let mut sockets = self.hosts.relay.sockets().into_iter();
            !sockets.any(|socket| (socket.remote, socket.local) == (local, remote))
                && self.relay.all_threads_wait()
        });
    }

    /// The relay's socket towards this peer, if it is still there.
    #[track_caller]
    pub(crate) fn socket_to(&self, peer: &Peer) -> Option<Socket> {
        let (local, remote) = peer.addresses();
        let sockets = self.hosts.relay.sockets();
        sockets
            .into_iter()
            .find(|socket| (socket.local, socket.remote) == (remote, local))
    }

    /// Sends until the receiver's side takes no more: the relay has read everything and holds a part of it. For a while at least: the kernels
    /// on the way may make room by themselves, so that who relies on it looks again and says [`within_five`] tries.
    #[track_caller]
    pub(crate) fn fill(&self, sender: &mut Peer, way: Way) {
        let before = self.booked(way) - sender.sent();
        loop {
            sender.send(16 * 1024);
            sender.acknowledged();
            let passed_on = |_| {
                self.relay.wait_until("the relay to read", || {
                    let drained = |socket: Socket| socket.receive_queue == 0;
                    self.socket_to(sender).is_some_and(drained) && self.relay.all_threads_wait()
                });
                self.booked(way) - before == sender.sent()
            };
            if !(0..10).any(passed_on) {
                return;
            }
        }
    }

    /// Stops the process until the guard is dropped: what happens meanwhile it sees at once.
    #[track_caller]
    pub(crate) fn freeze(&self) -> Frozen<'_> {
        self.relay.signal(Signal::STOP);
        let stat = format!("/proc/{}/stat", self.relay.id());
        self.relay.wait_until("the relay to stop", || {
            fs::read_to_string(&stat).is_ok_and(|stat| stat.contains(") T "))
        });
        Frozen(&self.relay)
    }

    /// See [`world::assert_at_rest`].
    #[track_caller]
    pub(crate) fn assert_at_rest(&self) {
        world::assert_at_rest(&self.relay, self.baseline);
    }
}

/// See [`Peers::freeze`].
#[derive(Debug)]
pub(crate) struct Frozen<'a>(&'a Relay);

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        self.0.signal(Signal::CONT);
    }
}

type Act<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

impl Peer {
    /// What an agent does, done on its host.
    #[track_caller]
    fn with<T: Send + 'static>(
        &mut self,
        act: impl for<'a> FnOnce(&'a mut Agent) -> Act<'a, T> + Send + 'static,
    ) -> T {
        let mut agent = self.take();
        let (agent, result) = self.host.run(async move {
            let result = act(&mut agent).await;
            (agent, result)
        });
        self.agent = Some(agent);
        result
    }

    fn take(&mut self) -> Agent {
        self.agent.take().expect("back from what it did last")
    }

    fn agent(&self) -> &Agent {
        self.agent.as_ref().expect("back from what it did last")
    }

    /// This end and the other.
    pub(crate) fn addresses(&self) -> (std::net::SocketAddr, std::net::SocketAddr) {
        let stream = self.agent().stream();
        (stream.local_addr().unwrap(), stream.peer_addr().unwrap())
    }

    /// Bytes sent so far.
    pub(crate) fn sent(&self) -> u64 {
        self.agent().sent()
    }

    /// Bytes read so far.
    pub(crate) fn received(&self) -> u64 {
        self.agent().received()
    }

    /// Sends the next `n` bytes.
    #[track_caller]
    pub(crate) fn send(&mut self, n: u64) {
        self.with(move |agent| Box::pin(agent.send(n))).unwrap();
    }

    /// Sends the next `n` bytes as urgent data, each by itself.
    #[track_caller]
    pub(crate) fn send_urgent(&mut self, n: u64) {
        self.with(move |agent| {
            Box::pin(async move {
                for _ in 0..n {
                    agent.send_urgent().await?;
                }
                Ok::<_, std::io::Error>(())
            })
        })
        .unwrap();
    }

    /// Sends the next `n` bytes and reads the next `m` of the other's stream at the same time.
    #[track_caller]
    pub(crate) fn talk(&mut self, n: u64, m: u64) {
        let seed = self.expects;
        self.with(move |agent| Box::pin(agent.talk(n, seed, m)))
            .unwrap();
    }

    /// Sends until nothing goes any more; returns how much went.
    #[track_caller]
    pub(crate) fn send_until_stuck(&mut self) -> u64 {
        self.with(|agent| Box::pin(agent.send_until_stuck(QUIET)))
            .unwrap()
    }

    /// Waits until the relay's kernel has all that was sent.
    #[track_caller]
    pub(crate) fn acknowledged(&mut self) {
        self.with(|agent| Box::pin(agent.acknowledged())).unwrap();
    }

    /// Sends the FIN.
    #[track_caller]
    pub(crate) fn finish(&self) {
        self.agent().finish().unwrap();
    }

    /// Reads the next `n` bytes of the other's stream.
    #[track_caller]
    pub(crate) fn expect(&mut self, n: u64) {
        let seed = self.expects;
        self.with(move |agent| Box::pin(agent.expect(seed, n)))
            .unwrap();
    }

    /// Reads the other's stream to its end.
    #[track_caller]
    pub(crate) fn expect_to_end(&mut self) -> End {
        let seed = self.expects;
        self.with(move |agent| Box::pin(agent.expect_to_end(seed)))
            .unwrap()
    }

    /// Waits until the connection is broken, for one whose FIN was read already.
    #[track_caller]
    pub(crate) fn wait_broken(&mut self) {
        self.with(|agent| {
            Box::pin(within(PATIENCE, async {
                stream::broken(agent.stream()).await;
                Ok(())
            }))
        })
        .unwrap();
    }

    /// Sends RST; what was not acknowledged is lost.
    #[track_caller]
    pub(crate) fn reset(mut self) {
        let agent = self.take();
        self.host.call(move || agent.reset());
    }

    /// Sends RST when everything is acknowledged.
    #[track_caller]
    pub(crate) fn reset_after_delivery(mut self) {
        let agent = self.take();
        self.host.run(agent.reset_after_delivery());
    }
}

/// Tries again what came out right and yet not as the test set it up, because a kernel was quicker.
///
/// # Panics
/// When none of five tries came out as it should.
#[track_caller]
pub(crate) fn within_five(what: &str, as_set_up: impl FnMut(u64) -> bool) {
    assert!((1..=5).any(as_set_up), "{what}: not once in five tries");
}

/// The shipped configuration in a mode of relaying.
#[track_caller]
pub(crate) fn in_mode(mode: &str) -> Start {
    world::shipped_and(&format!("[relay]\nmode = \"{mode}\""))
}
