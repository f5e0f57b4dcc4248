//! The admin port and socket in the hands of those who mean no good: what may be asked there, by whom, how much, how slowly and how many at once. The
//! relay is told nothing by anybody who may not, and relays on whatever is done to it.

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use libtest_mimic::Trial;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UnixStream},
    time::timeout,
};

use super::{
    crowd,
    world::{ENDPOINT, World, connected, exchange, shipped, shipped_and},
};
use crate::{
    claim,
    harness::{
        BOUND,
        agent::Agent,
        netns::Host,
        origin::Manner,
        relay::{Relay, Signal},
        stream::End,
    },
};

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        claim(
            "orders_are_taken_from_root_and_the_relays_own_user_alone",
            orders_are_taken_from_root_and_the_relays_own_user_alone,
        ),
        claim(
            "admin_port_takes_no_order_whatever_the_method",
            admin_port_takes_no_order_whatever_the_method,
        ),
        claim(
            "orders_are_posted_and_nothing_else_gives_one",
            orders_are_posted_and_nothing_else_gives_one,
        ),
        claim(
            "oversized_and_malformed_requests_end_and_change_nothing",
            oversized_and_malformed_requests_end_and_change_nothing,
        ),
        claim(
            "slow_clients_of_the_admin_socket_are_ended",
            slow_clients_of_the_admin_socket_are_ended,
        ),
        claim(
            "thousand_connections_on_each_admin_and_health_port_leave_the_data_path_alone",
            thousand_connections_on_each_admin_and_health_port_leave_the_data_path_alone,
        ),
    ]
}

/// Everything that changes something, as it would be asked for.
const ORDERS: [&str; 5] = [
    "/reload",
    "/drain",
    "/drain?now=1",
    "/undrain",
    "/usage/export?to=/run&all=1",
];
const METHODS: [&str; 9] = [
    "GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "BREW",
];
/// Who the relay is in one of these tests, and a third one who is neither that nor root.
const OWN: u32 = 65_533;
const ANOTHER: u32 = 65_534;

fn admin() -> SocketAddr {
    "127.0.0.1:9900".parse().expect("an address")
}

/// What the relay would not be if an order had been carried out.
#[track_caller]
fn assert_unchanged(world: &World, before: &serde_json::Value) {
    let status = world.relay.status();
    assert_eq!(status["phase"], "serving");
    assert_eq!(status.get("config"), before.get("config"));
    assert_eq!(world.relay.get("/readyz").0, 200);
    exchange(&world.node);
}

fn orders_are_taken_from_root_and_the_relays_own_user_alone() {
    let user = format!("--reuid={OWN}");
    let group = format!("--regid={OWN}");
    let start = shipped().through(&["setpriv", &user, &group, "--clear-groups"]);
    let world = World::with("orders", Manner::Echo, start);
    let before = world.relay.status();
    for order in ORDERS {
        let answered = world.relay.order_as(ANOTHER, order);
        answered.assert_declined(403, &["only root and the relay's own user"]);
    }
    assert_unchanged(&world, &before);
    // It may read all the same.
    for path in ["/status", "/metrics", "/endpoints", "/readyz"] {
        let answered = world.relay.ask_socket(ANOTHER, "GET", path);
        assert_eq!(answered.status, 200, "{path}: {}", answered.body);
    }
    for user in [0, OWN] {
        let answered = world.relay.order_as(user, "/reload");
        assert_ne!(answered.status, 403, "{user}: {}", answered.body);
    }
    exchange(&world.node);
    world.assert_at_rest();
}

/// One request on a connection of its own; the answer's status, if there was one.
async fn asked(to: SocketAddr, request: Vec<u8>) -> Option<u16> {
    let mut agent = Agent::connect(to).await.ok()?;
    // The answer may come before all was read.
    let _ = agent.write(&request).await;
    let (answer, _) = agent.read_to_end().await.ok()?;
    let text = String::from_utf8_lossy(&answer).into_owned();
    text.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()
}

fn request(method: &str, path: &str) -> Vec<u8> {
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    );
    head.into_bytes()
}

fn admin_port_takes_no_order_whatever_the_method() {
    let world = World::new("admin-methods", Manner::Echo);
    let before = world.relay.status();
    let health = "10.20.0.2:9901".parse().unwrap();
    for method in METHODS {
        for order in ORDERS {
            let said = world.relay_host.run(asked(admin(), request(method, order)));
            let wanted = if ["GET", "HEAD"].contains(&method) {
                404
            } else {
                405
            };
            assert_eq!(said, Some(wanted), "{method} {order}");
            // The port for the balancer's checks knows two paths.
            let said = world.node.run(asked(health, request(method, order)));
            assert_eq!(said, Some(404), "{method} {order}");
        }
        // What tells of customers is told to this machine only.
        for path in ["/usage", "/endpoints", "/anchor", "/config", "/top"] {
            let said = world.relay_host.run(asked(admin(), request(method, path)));
            let said = said.unwrap_or_else(|| panic!("{method} {path}: no answer"));
            assert!([404, 405].contains(&said), "{method} {path}: {said}");
        }
    }
    assert_unchanged(&world, &before);
    world.assert_at_rest();
}

fn orders_are_posted_and_nothing_else_gives_one() {
    let world = World::new("order-methods", Manner::Echo);
    let before = world.relay.status();
    for method in METHODS.into_iter().filter(|method| *method != "POST") {
        for order in ORDERS {
            let answered = world.relay.ask_socket(0, method, order);
            assert!(
                [404, 405].contains(&answered.status),
                "{method} {order}: {answered:?}"
            );
        }
    }
    // Nothing that only looks like one of them, and nothing that it does not know.
    for order in [
        "/reload/",
        "//reload",
        "/RELOAD",
        "/reload%00",
        "/drain/now",
        "/%2e%2e/drain",
    ] {
        let answered = world.relay.order(order);
        assert!(
            [404, 405].contains(&answered.status),
            "{order}: {answered:?}"
        );
    }
    for order in [
        "/reload?now=1",
        "/undrain?now=1",
        "/drain?when=now",
        "/drain?now=1&why",
        "/drain?%zz",
        "/usage/export?to=relative",
        "/usage/export?from=/run",
    ] {
        let answered = world.relay.order(order);
        assert_eq!(answered.status, 400, "{order}: {answered:?}");
    }
    assert_unchanged(&world, &before);
    world.assert_at_rest();
}

fn oversized_and_malformed_requests_end_and_change_nothing() {
    let world = World::new("admin-sizes", Manner::Echo);
    let before = world.relay.status();
    let memory = world.relay.own_memory();
    let filler = |n: usize| "a".repeat(n);
    let much = 32 << 20;
    let heads = [
        // (what it is, what is said, which statuses are right; none: no answer at all is, too)
        ("a long path", format!("POST /{} HTTP/1.1\r\nHost: a\r\n\r\n", filler(70_000)), vec![400, 414, 431]),
        ("a long field", format!("GET /status HTTP/1.1\r\nX: {}\r\n\r\n", filler(1 << 20)), vec![431]),
        ("many fields", format!("GET /status HTTP/1.1\r\n{}\r\n", "X: y\r\n".repeat(1000)), vec![431]),
        ("a field without end", format!("GET /status HTTP/1.1\r\nX: {}", filler(much)), vec![431]),
        ("a body that is not read", format!("PUT /status HTTP/1.1\r\nHost: a\r\nContent-Length: {much}\r\n\r\n{}", filler(much)), vec![405]),
        ("two lengths", "POST /nothing HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd".to_owned(), vec![400]),
        ("a length that is none", "POST /nothing HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n".to_owned(), vec![400]),
        ("a length beyond all", "PUT /status HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999999\r\n\r\n".to_owned(), vec![400]),
        ("NUL in the path", "GET /sta\0tus HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(), vec![400]),
        ("HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(), vec![400, 505]),
        ("TLS", "\u{16}\u{3}\u{1}\0\u{5}hello".repeat(100), vec![400]),
        ("a tunnel", "CONNECT 10.30.0.2:443 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".to_owned(), vec![400, 404, 405]),
    ];
    for (what, said, right) in heads {
        let answer = world.relay.say_to_socket(0, said.as_bytes()).unwrap();
        assert_answered(what, &answer, &right);
        let host = &world.relay_host;
        let answer = host.run(async move {
            let mut agent = Agent::connect(admin()).await.unwrap();
            let _ = agent.write(said.as_bytes()).await;
            let (answer, _) = agent.read_to_end().await.unwrap();
            String::from_utf8_lossy(&answer).into_owned()
        });
        assert_answered(what, &answer, &right);
    }
    // Requests in one breath are answered one after the other.
    let many = "GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n".repeat(500)
        + "GET /healthz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    let answers = world.relay.say_to_socket(ANOTHER, many.as_bytes()).unwrap();
    assert_eq!(answers.matches("HTTP/1.1 200").count(), 501);
    assert_unchanged(&world, &before);
    // None of what was sent is kept.
    let grown = world.relay.own_memory().saturating_sub(memory);
    assert!(grown < 8 << 20, "{grown} bytes more than before");
    world.assert_at_rest();
}

#[track_caller]
fn assert_answered(what: &str, answer: &str, right: &[u16]) {
    let status = answer
        .strip_prefix("HTTP/1.1 ")
        .and_then(|rest| rest.get(..3)?.parse().ok());
    // What was sent behind the answer was reset, and the answer may have gone with it.
    let lost = answer.is_empty();
    assert!(
        lost || status.is_some_and(|status| right.contains(&status)),
        "{what}: {answer:?}"
    );
}

fn slow_clients_of_the_admin_socket_are_ended() {
    let world = World::new("admin-slow", Manner::Echo);
    let path = world.relay.admin_socket();
    let ended = world.relay_host.run(async move {
        let clients = (0..50).map(|number: usize| {
            let path = path.clone();
            tokio::spawn(async move {
                let mut stream = UnixStream::connect(path).await.unwrap();
                let said = b"POST /reload HTTP/1.1\r\nHost: a\r\n";
                // Some say nothing, others one letter after the other and never the last.
                for letter in
                    said.iter()
                        .cycle()
                        .take(if number.is_multiple_of(2) { 0 } else { 100_000 })
                {
                    if stream.write_all(&[*letter]).await.is_err() {
                        break;
                    }
                    tokio::time::sleep(Duration::from_millis(50)).await; // it is the slowness that is tested
                }
                let mut rest = Vec::new();
                timeout(BOUND, stream.read_to_end(&mut rest)).await.is_ok()
            })
        });
        let mut ended = 0;
        for client in clients.collect::<Vec<_>>() {
            ended += usize::from(client.await.unwrap());
        }
        ended
    });
    assert_eq!(ended, 50);
    exchange(&world.node);
    world.assert_at_rest();
}

/// Connections on each port, and how many of them say something whole.
const FLOOD: u64 = 1000;
const ASKING: u64 = 20;

/// What somebody on one of the ports does until it is over, whose connection is made anew whenever the relay ends it.
async fn pester(number: u64, connect: Connect, stop: Arc<AtomicBool>, held: Arc<AtomicU64>) {
    let said: &[u8] = match number % 4 {
        _ if number < ASKING => b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n",
        0 => b"",
        1 => b"GET /metr",
        2 => b"\r\n\r\n\0\r\nQUIT\n\x20",
        _ => b"POST /reload HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n",
    };
    while !stop.load(Ordering::Relaxed) {
        // Its queue may be full for a moment.
        let Ok(mut stream) = connect.stream().await else {
            tokio::task::yield_now().await;
            continue;
        };
        held.fetch_add(1, Ordering::Relaxed);
        let mut heard = [0; 4096];
        let until = async {
            stream.write_all(said).await.ok()?;
            loop {
                let n = timeout(Duration::from_millis(100), stream.read(&mut heard)).await;
                let over = matches!(n, Ok(Ok(0) | Err(_)));
                if over || stop.load(Ordering::Relaxed) {
                    return Some(());
                }
                if number < ASKING && n.is_ok() {
                    stream.write_all(said).await.ok()?;
                }
            }
        };
        until.await;
        held.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Where one of them connects.
#[derive(Clone, Debug)]
enum Connect {
    Tcp(SocketAddr),
    Socket(PathBuf),
}

trait Stream: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send {}
impl<S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send> Stream for S {}

impl Connect {
    async fn stream(&self) -> std::io::Result<Box<dyn Stream>> {
        Ok(match self {
            Self::Tcp(address) => Box::new(TcpStream::connect(address).await?),
            Self::Socket(path) => Box::new(UnixStream::connect(path).await?),
        })
    }
}

/// Connections that stay until they are told to stop.
struct Flood {
    stop: Arc<AtomicBool>,
    held: Vec<Arc<AtomicU64>>,
}

impl Flood {
    fn start(relay: &Relay, node: &Host) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let places = [
            (relay.host(), Connect::Tcp(admin())),
            (relay.host(), Connect::Socket(relay.admin_socket())),
            (
                node,
                Connect::Tcp("10.20.0.2:9901".parse().expect("an address")),
            ),
        ];
        let held = places.map(|(host, connect)| {
            let held = Arc::new(AtomicU64::new(0));
            let each = (stop.clone(), held.clone());
            host.spawn(async move {
                for number in 0..FLOOD {
                    let (stop, held) = each.clone();
                    tokio::spawn(pester(number, connect.clone(), stop, held));
                }
            });
            held
        });
        Self {
            stop,
            held: held.into(),
        }
    }

    /// Whether nearly all of them are there: some are always between two connections.
    fn is_up(&self) -> bool {
        let most = |held: &Arc<AtomicU64>| held.load(Ordering::Relaxed) > FLOOD / 10 * 9;
        self.held.iter().all(most)
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn thousand_connections_on_each_admin_and_health_port_leave_the_data_path_alone() {
    // Ours and the relay's: both ends of each.
    crowd::as_many_as(4 * FLOOD);
    let world = World::with("admin-flood", Manner::Echo, shipped_and("workers = 2"));
    let mut long = world.node.run(async {
        let mut agent = connected(ENDPOINT).await.unwrap();
        agent.exchange(1000).await.unwrap();
        agent
    });
    let flood = Flood::start(&world.relay, &world.node);
    world
        .relay
        .wait_until("a thousand on each port", || flood.is_up());
    // All of this while they are there: a session of before, and new ones.
    let long = world.node.run(async move {
        long.exchange(20_000_000).await.unwrap();
        long
    });
    for _ in 0..100 {
        exchange(&world.node);
    }
    world
        .relay
        .wait_until("a thousand on each port", || flood.is_up());
    // And who waits long enough is answered, in the crowd too.
    let said = world
        .relay_host
        .run(asked(admin(), request("GET", "/readyz")));
    assert_eq!(said, Some(200));
    drop(flood);
    world.node.run(async move {
        let mut agent = long;
        agent.finish().unwrap();
        assert_eq!(agent.expect_to_end(0).await.unwrap(), End::Fin);
    });
    world.wait_closed("completed", 101);
    let bytes = 20_001_000 + 100 * 1000;
    assert_eq!(world.booked(ENDPOINT, "to_upstream"), bytes);
    assert_eq!(world.booked(ENDPOINT, "to_client"), bytes);
    assert_eq!(world.relay.status()["phase"], "serving");
    world.assert_at_rest();
    world.relay.signal(Signal::INT);
    assert_eq!(world.relay.wait_exit(), 0);
}
