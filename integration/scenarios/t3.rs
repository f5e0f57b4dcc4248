//! T3, a private cluster for other accounts: who may connect, who cannot, and that all of it is on record.
//!
//! ```text
//!  gateway's account -- endpoint \                              / load balancer -- service
//!  partner's account -- endpoint --- balancer (NLB) \          / (TLS ends here)
//!  stranger's account - endpoint /                   vpc -- relay
//!                             intruder (another host) /
//! ```
//! The consumers' VPCs have the same addresses, as they may. The balancer passes on whoever has an endpoint: which of them the provider has accepted, the
//! relay is told as well, by a policy that denies all others.

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use libtest_mimic::Trial;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::rustls::pki_types::ServerName;

use super::world::{self, SHIPPED, privatelink_header};
use crate::{
    claim,
    harness::{
        BOUND,
        agent::Agent,
        audit::{self, Record},
        http::{Message, Messages},
        netns::{Host, Lab},
        nlb::{self, Config, Listen, Nlb},
        origin::{Manner, Origin},
        pattern::Pattern,
        relay::{Baseline, Relay, Signal, Start},
        stream::{End, within},
        tap::Tap,
        tls::{Identity, Terminator},
    },
};

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        claim(
            "t3_tls_passes_untouched_and_every_connection_is_on_record",
            tls_passes_untouched,
        ),
        claim(
            "t3_endpoint_that_was_not_accepted_is_refused_before_anything_reaches_the_cluster",
            not_accepted,
        ),
        claim(
            "t3_acceptance_is_withdrawn_and_given_while_the_relay_runs",
            withdrawn_and_given,
        ),
        claim(
            "t3_outsiders_cannot_speak_to_the_relay_with_or_without_a_header",
            outsiders,
        ),
    ]
}

const NAME: &str = "api.cluster.internal";
/// Gateway, partner, stranger.
const ENDPOINTS: [&str; 3] = [
    "vpce-0a1a1a1a1a1a1a1a1",
    "vpce-0b2b2b2b2b2b2b2b2",
    "vpce-0c3c3c3c3c3c3c3c3",
];
const GATEWAY: usize = 0;
const PARTNER: usize = 1;
const STRANGER: usize = 2;
/// In each consumer's VPC.
const SERVICE: &str = "10.1.0.10:443";
const BALANCER: &str = "10.20.1.10";
const RELAY: &str = "10.20.2.2";
const INTRUDER: &str = "10.20.3.66";
const CLUSTER: &str = "10.30.1.2";

/// The trail goes into a file, and the ports are for the balancer's subnet only.
const TABLES: &str = "[audit]\nsink = \"@DIR@/audit.jsonl\"\n[drain]\naccept_for = \"0s\"\n\
     [health]\ntrusted_peers = [\"10.20.1.0/24\"]\n";

/// Nobody but these.
fn accepted(consumers: &[usize]) -> String {
    let mut policy = "[endpoint.\"*\"]\ndeny = true\non_deny = \"close\"\n".to_owned();
    for consumer in consumers {
        let _ = write!(
            policy,
            "[endpoint.\"{}\"]\ndeny = false\n",
            ENDPOINTS[*consumer]
        );
    }
    policy
}

struct Cluster {
    relay: Relay,
    baseline: Baseline,
    nlb: Nlb,
    service: Origin,
    load_balancer: Terminator,
    identity: Identity,
    /// Of all that reaches the cluster.
    tap: Tap,
    consumers: [Host; 3],
    balancer: Host,
    intruder: Host,
    _lab: Lab,
}

impl Cluster {
    /// The shipped configuration with `policy` added.
    #[track_caller]
    fn new(name: &str, policy: &str) -> Self {
        let lab = Lab::new(name);
        let vpc = lab.router("vpc");
        let [balancer, relay_host, intruder, cluster] =
            ["balancer", "relay", "intruder", "cluster"].map(|name| lab.host(name));
        for (host, network, last) in [
            (&balancer, "10.20.1", 10),
            (&relay_host, "10.20.2", 2),
            (&intruder, "10.20.3", 66),
            (&cluster, "10.30.1", 2),
        ] {
            let (own, gateway) = (format!("{network}.{last}/24"), format!("{network}.1"));
            lab.veth((host, &own), (&vpc, &format!("{gateway}/24")));
            host.route("default", &gateway);
        }
        let mut listen = Vec::new();
        let consumers = ["gateway", "partner", "stranger"].map(|name| {
            let (consumer, interface) = (lab.host(name), lab.host(&format!("{name}-interface")));
            lab.veth((&consumer, "10.1.0.2/24"), (&interface, "10.1.0.10/24"));
            listen.push(Listen::endpoint(
                &interface,
                SERVICE,
                ENDPOINTS[listen.len()],
            ));
            consumer
        });
        let identity = Identity::new(&[NAME]).expect("a certificate");
        let inside = format!("{CLUSTER}:8080");
        let service = Origin::start(&cluster, &inside, Manner::Mirror("pod".to_owned()));
        let outside = format!("{CLUSTER}:443");
        let load_balancer = Terminator::start(&cluster, &outside, &identity, service.address());
        let tap = Tap::on(&cluster);
        let relay = started(policy).on(&relay_host);
        Self {
            baseline: Baseline::of(&relay),
            relay,
            nlb: Nlb::start(&balancer, Config::new(listen, &[&format!("{RELAY}:8443")])),
            service,
            load_balancer,
            identity,
            tap,
            consumers,
            balancer,
            intruder,
            _lab: lab,
        }
    }

    /// A request of a consumer's, by TLS, with the next `bytes` of a stream in it, whose answer must be the same.
    #[track_caller]
    fn request(&self, consumer: usize, seed: u64, bytes: usize) -> io::Result<()> {
        let identity = self.identity.clone();
        self.consumers[consumer].run(within(BOUND, request(identity, seed, bytes)))
    }

    /// Waits for the end of all there is and ends the relay; the trail is whole, and everybody whom the balancer let in has one place in it: those who were
    /// served, by endpoint and address, those who were refused, and all records.
    #[track_caller]
    fn trail(&self) -> Trail {
        let flows = self.nlb.wait_over().flows;
        world::assert_at_rest(&self.relay, self.baseline);
        self.relay.signal(Signal::TERM);
        assert_eq!(self.relay.wait_exit(), 0);
        let log = log(self.relay.folder());
        let records = audit::records(&log);
        audit::assert_chained(&records);
        let verify = [
            "audit",
            "verify",
            "--config",
            "@CONFIG@",
            "@DIR@/audit.jsonl",
        ];
        self.relay.tollgate(&verify).ok();
        let who = |record: &Record| {
            let client = record.client();
            Some((record.text("endpoint").to_owned(), client?))
        };
        let sessions = audit::sessions(&records).into_values();
        let served: Vec<_> = sessions.filter_map(|session| who(&session.open)).collect();
        let refused = records.iter().filter(|record| record.event() == "refused");
        let (known, unknown): (Vec<_>, Vec<_>) = refused.cloned().partition(|it| who(it).is_some());
        let all = served.iter().cloned().chain(known.iter().filter_map(who));
        let through: Vec<_> = all.clone().collect();
        let set: BTreeSet<_> = all.collect();
        assert_eq!(set.len(), through.len(), "twice in the trail");
        assert_eq!(
            set,
            flows.into_keys().collect(),
            "who came, and who is on record"
        );
        // To the cluster there were as many openings as sessions, and all of them the relay's.
        let mut openings = self.tap.openings();
        // Its own load balancer's, to the service beside it.
        openings.retain(|(from, to)| from.ip() != to.ip());
        assert_eq!(openings.len(), served.len(), "{openings:?}");
        for (from, _) in openings {
            assert_eq!(from.ip().to_string(), RELAY);
        }
        Trail {
            served,
            refused: known,
            unknown,
        }
    }
}

/// Where the trail is.
fn log(folder: &Path) -> PathBuf {
    folder.join("audit.jsonl")
}

fn started(policy: &str) -> Start {
    Start::with(SHIPPED)
        .replace("[health]\n", &format!("{policy}\n{TABLES}"))
        .replace("10.20.0.0/16", "10.20.1.0/24")
        .replace(
            "cp.us-east-1.example.internal:443",
            &format!("{CLUSTER}:443"),
        )
}

/// What is on record.
struct Trail {
    /// Who was served.
    served: Vec<(String, SocketAddr)>,
    /// The records of those whom the relay knew and refused.
    refused: Vec<Record>,
    /// Those of them of whom nothing but an address is known.
    unknown: Vec<Record>,
}

async fn request(identity: Identity, seed: u64, bytes: usize) -> io::Result<()> {
    let to: SocketAddr = SERVICE.parse().map_err(io::Error::other)?;
    let stream = TcpStream::connect(to).await?;
    let name = ServerName::try_from(NAME).map_err(io::Error::other)?;
    // Trusts one certificate, whose key nobody but the cluster has.
    let mut stream = identity.connector().connect(name, stream).await?;
    let request = Message::post(NAME, "/v1/things", Pattern::new(seed).bytes(0, bytes));
    stream.write_all(&request.bytes()).await?;
    stream.flush().await?;
    let answer = Messages::default().read(&mut stream).await?;
    let answer = answer.ok_or(io::ErrorKind::UnexpectedEof)?;
    if (answer.second_word(), &answer.body) != ("200", &request.body) {
        return Err(io::Error::other(format!(
            "not what was sent: {}",
            answer.head
        )));
    }
    stream.shutdown().await?;
    match stream.read(&mut [0; 1]).await? {
        0 => Ok(()),
        _ => Err(io::Error::other("more than was asked for")),
    }
}

fn tls_passes_untouched() {
    let cluster = Cluster::new("t3-tls", &accepted(&[GATEWAY, PARTNER]));
    let mut wanted = [0, 0];
    for seed in 0..20_u64 {
        let consumer = if seed.is_multiple_of(3) {
            PARTNER
        } else {
            GATEWAY
        };
        let bytes = 1 + 20_000 * seed as usize;
        cluster.request(consumer, seed, bytes).unwrap();
        wanted[consumer] += 1;
    }
    // Handshakes with the cluster's own key, under the name that clients asked for.
    let ended = cluster.load_balancer.books();
    assert_eq!(ended.names.get(NAME), Some(&20));
    assert_eq!(cluster.service.books().requests["/v1/things"].count, 20);
    // As many bytes as the balancer passed on in either direction, by endpoint.
    let nlb = cluster.nlb.wait_over();
    cluster
        .relay
        .wait_metric("tollgate_connections_active", &[], 0);
    for endpoint in [GATEWAY, PARTNER].map(|consumer| ENDPOINTS[consumer]) {
        let booked = |direction| {
            let labels = [("endpoint", endpoint), ("direction", direction)];
            cluster.relay.metric("tollgate_bytes_total", &labels)
        };
        let books = nlb.endpoints[endpoint];
        assert_eq!(booked("to_upstream"), books.bytes_to_target);
        assert_eq!(booked("to_client"), books.bytes_to_client);
    }
    let trail = cluster.trail();
    for consumer in [GATEWAY, PARTNER] {
        let own = trail
            .served
            .iter()
            .filter(|(id, _)| id == ENDPOINTS[consumer]);
        assert_eq!(own.count(), wanted[consumer]);
    }
    assert!(trail.refused.is_empty() && trail.unknown.is_empty());
}

fn not_accepted() {
    let cluster = Cluster::new("t3-stranger", &accepted(&[GATEWAY, PARTNER]));
    cluster.request(GATEWAY, 1, 5000).unwrap();
    // A request, a word, and much at once.
    for seed in 0..5 {
        cluster.request(STRANGER, seed, 1000).unwrap_err();
    }
    for bytes in [1, 3_000_000] {
        let outcome = cluster.consumers[STRANGER].run(async move {
            let to = SERVICE.parse().map_err(io::Error::other)?;
            let mut agent = Agent::connect(to).await?;
            let sent = agent.send(bytes).await;
            heard_out(agent, sent).await
        });
        assert_eq!(outcome.unwrap(), (Vec::new(), End::Reset));
    }
    cluster.request(PARTNER, 2, 5000).unwrap();
    assert_eq!(cluster.load_balancer.books().accepted, 2);
    let labels = [("endpoint", ENDPOINTS[STRANGER]), ("reason", "policy")];
    let refused = cluster
        .relay
        .metric("tollgate_endpoint_refused_total", &labels);
    assert_eq!(refused, 7);
    // Every one of them is on record, with who it was.
    let trail = cluster.trail();
    assert_eq!((trail.served.len(), trail.refused.len()), (2, 7));
    assert!(trail.unknown.is_empty());
    for record in trail.refused {
        assert_eq!(record.text("reason"), "policy", "{}", record.line);
        assert_eq!(
            record.text("endpoint"),
            ENDPOINTS[STRANGER],
            "{}",
            record.line
        );
        let peer: SocketAddr = record.text("peer").parse().unwrap();
        assert_eq!(peer.ip().to_string(), BALANCER, "{}", record.line);
    }
}

/// A connection of this consumer's that is open: TLS is spoken on it no further than to its first message.
#[track_caller]
fn opened(cluster: &Cluster, consumer: usize) -> Agent {
    let before = cluster.load_balancer.books().accepted;
    let agent = cluster.consumers[consumer].run(async {
        let mut agent = Agent::connect(SERVICE.parse().unwrap()).await.unwrap();
        agent.write(b"\x16\x03\x01").await.unwrap();
        agent
    });
    cluster.relay.wait_until("the cluster to be reached", || {
        cluster.load_balancer.books().accepted > before
    });
    agent
}

fn withdrawn_and_given() {
    let cluster = Cluster::new("t3-withdrawn", &accepted(&[GATEWAY, PARTNER]));
    let [mut leaves, stays] = [opened(&cluster, PARTNER), opened(&cluster, GATEWAY)];
    let reload = |consumers: &[usize]| {
        let text = started(&accepted(consumers)).text().to_owned();
        cluster.relay.reload_with(&text).done()
    };
    reload(&[GATEWAY]);
    let ended = cluster.consumers[PARTNER].run(async move { leaves.read_to_end().await.unwrap() });
    assert_eq!(ended.0, b"");
    let labels = [("reason", "denied")];
    cluster
        .relay
        .wait_metric("tollgate_connections_closed_total", &labels, 1);
    cluster.request(PARTNER, 1, 1000).unwrap_err();
    cluster.request(GATEWAY, 2, 1000).unwrap();
    reload(&[GATEWAY, PARTNER, STRANGER]);
    cluster.request(PARTNER, 3, 1000).unwrap();
    cluster.request(STRANGER, 4, 1000).unwrap();
    // Whom nobody meant was there all the time.
    cluster
        .relay
        .wait_metric("tollgate_connections_active", &[], 1);
    cluster.consumers[GATEWAY].call(move || stays.reset());
    let trail = cluster.trail();
    assert_eq!((trail.served.len(), trail.refused.len()), (5, 1));
}

/// Connects from here and says this; what came of it.
async fn said(to: SocketAddr, said: Vec<u8>) -> io::Result<(Vec<u8>, End)> {
    match Agent::connect(to).await {
        Ok(mut agent) => {
            let written = agent.write(&said).await;
            heard_out(agent, written).await
        }
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
            Ok((Vec::new(), End::Reset))
        }
        Err(error) => Err(error),
    }
}

/// What came, and how it ended: a write that failed took the error away, and what is read then ends as if by FIN.
async fn heard_out(mut agent: Agent, written: io::Result<()>) -> io::Result<(Vec<u8>, End)> {
    let (heard, end) = agent.read_to_end().await?;
    let end = written.map_or(End::Reset, |()| end);
    Ok((heard, end))
}

fn outsiders() {
    let cluster = Cluster::new("t3-outsiders", &accepted(&[GATEWAY]));
    let address = |host: &str, port: u16| SocketAddr::new(host.parse().expect("an address"), port);
    let traffic = address(RELAY, 8443);
    let hello = b"\x16\x03\x01\x00\x05hello".to_vec();
    let behind = |header: Vec<u8>| [header, hello.clone()].concat();
    let attempts = [
        Vec::new(),
        hello.clone(),
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\n".to_vec(),
        // As the balancer would say it, for an endpoint that is accepted.
        behind(privatelink_header(ENDPOINTS[GATEWAY])),
        behind(nlb::header::proxy(address(BALANCER, 1), traffic, None)),
        behind(nlb::header::health_check()),
    ];
    let n = attempts.len();
    for attempt in attempts {
        let what = format!("{:?}", String::from_utf8_lossy(&attempt));
        let outcome = cluster.intruder.run(said(traffic, attempt));
        assert_eq!(outcome.unwrap(), (Vec::new(), End::Reset), "{what}");
    }
    // The port of the balancer's checks is not theirs either, and the admin port is not to be reached.
    let check = b"GET /readyz HTTP/1.1\r\nHost: a\r\n\r\n".to_vec();
    let health = address(RELAY, 9901);
    let (answer, _) = cluster.intruder.run(said(health, check.clone())).unwrap();
    assert_eq!(answer, b"");
    let (answer, _) = cluster.balancer.run(said(health, check.clone())).unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 200"));
    for host in [&cluster.intruder, &cluster.balancer] {
        let admin = host.run(said(address(RELAY, 9900), check.clone()));
        assert_eq!(admin.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    }
    // Those who may are served meanwhile.
    cluster.request(GATEWAY, 1, 5000).unwrap();
    let errors = |error| {
        let labels = [("error", error)];
        cluster
            .relay
            .metric("tollgate_header_errors_total", &labels)
    };
    assert_eq!(errors("untrusted"), n as u64);
    let trail = cluster.trail();
    assert_eq!(trail.served.len(), 1);
    assert!(
        trail.refused.is_empty(),
        "nothing is believed of who they are"
    );
    assert_eq!(trail.unknown.len(), n);
    for record in trail.unknown {
        assert_eq!(record.text("reason"), "untrusted", "{}", record.line);
        let peer: SocketAddr = record.text("peer").parse().unwrap();
        assert_eq!(peer.ip().to_string(), INTRUDER, "{}", record.line);
        for key in ["client", "endpoint", "upstream"] {
            assert_eq!(record.text(key), "", "{}", record.line);
        }
    }
}
