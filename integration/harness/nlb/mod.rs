//! The Network Load Balancer, as a target meets it.
//!
//! Consumers connect to one of its [`Listen`] addresses: its own, or an endpoint's network interface, which may lie in another host's namespace
//! (the consumer's VPC) without any route between the two, as with PrivateLink. Each connection goes to one target, chosen by hash over the
//! healthy ones, with a PROXY v2 header in front; then bytes, FINs and RSTs are passed on. What it cannot show: keepalive probes, which the
//! kernel answers by itself, do not restart the idle timer here.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc, time::Duration};

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::{BOUND, netns::Host, origin, watched::Watched};

mod flow;
pub mod header;
mod health;

/// Where consumers connect.
#[derive(Clone, Debug)]
pub struct Listen {
    /// In whose namespace: the NLB's own host, or that of an endpoint's network interface.
    pub host: Host,
    /// On which address.
    pub address: SocketAddr,
    /// Which endpoint's id goes into the headers; none for direct clients of the NLB.
    pub endpoint: Option<String>,
}

impl Listen {
    /// An endpoint's network interface.
    #[track_caller]
    pub fn endpoint(host: &Host, address: &str, id: &str) -> Self {
        Self {
            host: host.clone(),
            address: origin::parse(address),
            endpoint: Some(id.to_owned()),
        }
    }

    /// The NLB's own address.
    #[track_caller]
    pub fn direct(host: &Host, address: &str) -> Self {
        Self {
            host: host.clone(),
            address: origin::parse(address),
            endpoint: None,
        }
    }
}

/// When the header is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// In one segment with the client's first bytes: AWS's default. Until then the target sees a silent connection.
    OnFirstAckWithPayload,
    /// As soon as the target has accepted.
    OnFirstAck,
}

/// What a health check does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CheckBy {
    /// Connects and closes without a byte.
    Tcp,
    /// Asks for a path; 200 to 399 is healthy.
    Http(String),
}

/// How targets are checked.
#[derive(Clone, Debug)]
pub struct HealthCheck {
    /// What is done.
    pub by: CheckBy,
    /// On which port; none: the traffic port.
    pub port: Option<u16>,
    /// Whether a LOCAL header goes in front, as it does when the target group has PROXY v2 on (HTTP only: a TCP check sends nothing).
    pub header: bool,
    /// From one check to the next.
    pub interval: Duration,
    /// How long an answer may take.
    pub timeout: Duration,
    /// How many in a row make a target healthy.
    pub healthy_after: u32,
    /// How many in a row make it unhealthy.
    pub unhealthy_after: u32,
}

impl HealthCheck {
    /// Checks by HTTP with a LOCAL header, five times a second, two in a row decide.
    pub fn http(path: &str) -> Self {
        Self {
            by: CheckBy::Http(path.to_owned()),
            port: None,
            header: true,
            interval: Duration::from_millis(200),
            timeout: Duration::from_secs(2),
            healthy_after: 2,
            unhealthy_after: 2,
        }
    }

    /// As [`http`](Self::http), by connecting only.
    pub fn tcp() -> Self {
        Self {
            by: CheckBy::Tcp,
            ..Self::http("/")
        }
    }
}

/// What one NLB is told.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where consumers connect.
    pub listen: Vec<Listen>,
    /// Where connections go.
    pub targets: Vec<SocketAddr>,
    /// Whether headers are sent at all.
    pub proxy_protocol: bool,
    /// When they are sent.
    pub placement: Placement,
    /// Without a byte for so long, a connection is forgotten: nothing is sent, and the next packet of either side is answered by RST.
    pub idle_timeout: Duration,
    /// How targets are checked; none: all are healthy.
    pub health: Option<HealthCheck>,
    /// Whether connections of a target that turns unhealthy are reset, as AWS does by default.
    pub reset_when_unhealthy: bool,
}

impl Config {
    /// AWS's defaults, without health checks.
    #[track_caller]
    pub fn new(listen: Vec<Listen>, targets: &[&str]) -> Self {
        Self {
            listen,
            targets: targets.iter().map(|target| origin::parse(target)).collect(),
            proxy_protocol: true,
            placement: Placement::OnFirstAckWithPayload,
            idle_timeout: Duration::from_secs(350),
            health: None,
            reset_when_unhealthy: true,
        }
    }
}

/// What an NLB has done and what it knows.
#[derive(Clone, Debug, Default)]
pub struct Books {
    /// Connections of consumers.
    pub accepted: u64,
    /// Of these, still open. A forgotten one is open until it is reset.
    pub open: u64,
    /// Headers sent for them.
    pub headers: u64,
    /// Payload that targets took, without headers.
    pub bytes_to_target: u64,
    /// Payload that consumers took.
    pub bytes_to_client: u64,
    /// Connections that ended by RST, from either side or from us.
    pub resets: u64,
    /// Connections forgotten at the idle timeout.
    pub forgotten: u64,
    /// Connections for which the target could not be reached.
    pub connect_failed: u64,
    /// The same, by endpoint id (empty for direct clients): connections and payload.
    pub endpoints: BTreeMap<String, EndpointBooks>,
    /// By target.
    pub targets: BTreeMap<SocketAddr, Target>,
    /// To which target each consumer's connection was sent, by endpoint id and the consumer's own address; of several from one port the
    /// last.
    pub flows: BTreeMap<(String, SocketAddr), SocketAddr>,
}

/// What came through one endpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EndpointBooks {
    /// Connections of consumers.
    pub accepted: u64,
    /// Payload that targets took, without headers.
    pub bytes_to_target: u64,
    /// Payload that consumers took.
    pub bytes_to_client: u64,
}

/// One target, as the NLB sees it.
#[derive(Clone, Debug)]
pub struct Target {
    /// Whether it gets connections; while none is healthy, all do.
    pub healthy: bool,
    /// Connections sent to it.
    pub connections: u64,
    /// Checks that it passed.
    pub passed: u64,
    /// Checks that it failed.
    pub failed: u64,
    /// The latest run of equal results, and its length.
    row: (bool, u32),
    deregistered: bool,
    /// Cancelled when its connections are to be reset.
    reset: CancellationToken,
    /// Cancelled when it is no longer checked.
    forgotten: CancellationToken,
}

impl Target {
    /// Whether it gets no new connection any more.
    pub fn is_deregistered(&self) -> bool {
        self.deregistered
    }
}

/// A load balancer that runs until it is dropped; then its connections are reset.
#[derive(Debug)]
pub struct Nlb {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    host: Host,
    config: Config,
    books: Watched<Books>,
    stop: CancellationToken,
}

impl Nlb {
    /// Starts it on `host`: from there it reaches its targets.
    ///
    /// # Panics
    /// When it cannot listen.
    #[track_caller]
    pub fn start(host: &Host, config: Config) -> Self {
        let shared = Arc::new(Shared {
            host: host.clone(),
            books: Watched::default(),
            stop: CancellationToken::new(),
            config,
        });
        let nlb = Self { shared };
        for target in &nlb.shared.config.targets {
            nlb.register(*target);
        }
        for listen in &nlb.shared.config.listen {
            nlb.listen(listen.clone());
        }
        nlb
    }

    /// Listens on one more address.
    ///
    /// # Panics
    /// When that fails.
    #[track_caller]
    pub fn listen(&self, listen: Listen) {
        let address = listen.address;
        let listener = listen.host.run(async move { origin::listen(address) });
        let listener = listener.unwrap_or_else(|error| panic!("{address}: {error}"));
        let accept = accept(listener, listen.clone(), Arc::clone(&self.shared));
        listen.host.spawn(accept);
    }

    /// Adds a target. With health checks, it is unhealthy until it passed them.
    pub fn register(&self, address: SocketAddr) {
        let checked = self.shared.config.health.is_some();
        let forgotten = self.shared.stop.child_token();
        let target = Target {
            healthy: !checked,
            connections: 0,
            passed: 0,
            failed: 0,
            row: (false, 0),
            deregistered: false,
            reset: self.shared.stop.child_token(),
            forgotten: forgotten.clone(),
        };
        let before = self
            .shared
            .books
            .update(|books| books.targets.insert(address, target));
        if let Some(before) = before {
            before.forgotten.cancel();
        }
        if checked {
            let check = health::watch(address, Arc::clone(&self.shared));
            self.shared.host.spawn(async move {
                forgotten.run_until_cancelled(check).await;
            });
        }
    }

    /// Takes a target out. New connections keep arriving there for `lag`, as they do with AWS; open ones are left alone.
    pub fn deregister(&self, address: SocketAddr, lag: Duration) {
        let shared = Arc::clone(&self.shared);
        self.shared.host.spawn(async move {
            tokio::time::sleep(lag).await;
            shared.books.update(|books| {
                if let Some(target) = books.targets.get_mut(&address) {
                    target.deregistered = true;
                    target.forgotten.cancel();
                }
            });
        });
    }

    /// What it has done so far.
    pub fn books(&self) -> Books {
        self.shared.books.look(Books::clone)
    }

    /// Waits until the books are as `found` wants them.
    #[track_caller]
    pub fn wait<R>(&self, what: &str, found: impl FnMut(&Books) -> Option<R>) -> R {
        self.shared.books.wait(what, BOUND, found)
    }

    /// Waits until it takes a target for healthy, or unhealthy.
    #[track_caller]
    pub fn wait_health(&self, target: SocketAddr, healthy: bool) {
        self.wait(&format!("{target} healthy: {healthy}"), |books| {
            (books.targets.get(&target)?.healthy == healthy).then_some(())
        });
    }

    /// Waits until no connection is open.
    #[track_caller]
    pub fn wait_over(&self) -> Books {
        self.wait("all connections to be over", |books| {
            (books.open == 0).then(|| books.clone())
        })
    }

    /// Stops listening and checking, and resets every connection on both sides.
    pub fn kill(&self) {
        self.shared.stop.cancel();
    }
}

impl Drop for Nlb {
    fn drop(&mut self) {
        self.kill();
    }
}

async fn accept(listener: TcpListener, listen: Listen, shared: Arc<Shared>) {
    let listen = Arc::new(listen);
    while let Some(accepted) = shared.stop.run_until_cancelled(listener.accept()).await {
        let Ok((stream, consumer)) = accepted else {
            continue;
        };
        // The socket stays in the namespace where it was accepted, but from here on the NLB's own thread serves it.
        if let Ok(stream) = stream.into_std() {
            let (listen, flows) = (Arc::clone(&listen), Arc::clone(&shared));
            shared
                .host
                .spawn(flow::serve(stream, consumer, listen, flows));
        }
    }
}
