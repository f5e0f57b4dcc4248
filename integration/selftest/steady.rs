//! Steady traffic notices what goes wrong and when; the servers it meets do what they say.

use std::{
    io::ErrorKind,
    net::SocketAddr,
    time::{Duration, Instant},
};

use libtest_mimic::Trial;

use crate::{
    claim,
    harness::{
        agent::Agent,
        alb::Alb,
        dns::{Answer, Dns},
        http::{Message, Messages},
        netns::{Host, Lab},
        origin::{Manner, Origin},
        steady::{Plan, Service, Steady},
        tap::Tap,
        tls::{Identity, Terminator},
    },
};

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        claim("steady_traffic_knows_who_answered", who_answered),
        claim("steady_traffic_tells_what_failed_and_when", what_failed),
        claim("steady_traffic_finds_a_wrong_answer", wrong_answer),
        claim("steady_traffic_gives_up_only_the_old", gives_up),
        claim("alb_passes_requests_on_by_path", by_path),
        claim("tap_sees_who_opens_connections", who_opens),
        claim("router_that_is_a_black_hole_says_nothing", black_hole),
        claim("http_messages_are_found_at_any_split", any_split),
    ]
}

const NAME: &str = "metrics.observability.internal";
const SERVER: &str = "10.0.0.2";

struct Pair {
    client: Host,
    server: Host,
    _dns: Dns,
    _lab: Lab,
}

impl Pair {
    fn new(name: &str) -> Self {
        let lab = Lab::new(name);
        let (client, server) = (lab.host("client"), lab.host("server"));
        lab.veth((&client, "10.0.0.1/24"), (&server, "10.0.0.2/24"));
        let dns = Dns::start(&server, "10.0.0.2:53");
        dns.set(NAME, Answer::addresses(&[SERVER], 60));
        Self {
            client,
            server,
            _dns: dns,
            _lab: lab,
        }
    }

    fn traffic(&self, port: u16, tls: Option<Identity>) -> Steady {
        let service = Service {
            name: NAME.to_owned(),
            port,
            path: "/v1/metrics".to_owned(),
            tls,
        };
        let plan = Plan {
            resolver: "10.0.0.2:53".parse().expect("an address"),
            from: "10.0.0.1".parse().expect("an address"),
            services: vec![service],
            pace: Duration::from_millis(10),
            bytes: 5000,
            patience: Duration::from_secs(2),
        };
        Steady::start(&self.client, plan)
    }

    fn mirror(&self, name: &str) -> Origin {
        Origin::start(&self.server, "10.0.0.2:80", Manner::Mirror(name.to_owned()))
    }
}

fn who_answered() {
    let pair = Pair::new("steady");
    let origin = pair.mirror("one");
    let identity = Identity::new(&[NAME]).expect("a certificate");
    let tls = Terminator::start(&pair.server, "10.0.0.2:443", &identity, origin.address());
    for (port, identity) in [(80, None), (443, Some(identity))] {
        let traffic = pair.traffic(port, identity);
        traffic.wait_more(5);
        for connection in traffic.stop() {
            assert_eq!(connection.failure, None, "{connection:?}");
            assert_eq!(connection.by.as_deref(), Some("one"));
        }
    }
    let books = origin.wait_over(10);
    let asked = books.requests["/v1/metrics"];
    assert_eq!(
        (asked.count, asked.body_bytes),
        (books.accepted, books.accepted * 5000)
    );
    let names = tls.books().names;
    assert_eq!(names.keys().collect::<Vec<_>>(), [NAME]);
}

fn what_failed() {
    let pair = Pair::new("steady-fails");
    let origin = pair.mirror("one");
    let traffic = pair.traffic(80, None);
    traffic.wait_more(5);
    let killed = Instant::now();
    origin.kill();
    traffic.wait_more(5);
    traffic.wait_begun();
    let before = traffic.over();
    let failed = traffic.failed();
    assert!(failed.len() >= 5 && failed.len() < before.len());
    for connection in &failed {
        assert!(
            connection.began + connection.took > killed,
            "{connection:?}"
        );
    }
    let last = failed.last().and_then(|last| last.failure.as_deref());
    assert!(
        last.is_some_and(|last| last.starts_with("connect: ")),
        "{last:?}"
    );
    assert_eq!(
        traffic.stop().len() as u64,
        1 + traffic.over().last().expect("some").number
    );
}

fn wrong_answer() {
    let pair = Pair::new("steady-wrong");
    let _collector = Origin::start(&pair.server, "10.0.0.2:80", Manner::Collector);
    let traffic = pair.traffic(80, None);
    traffic.wait_more(1);
    for connection in traffic.stop() {
        assert_eq!(
            connection.failure.as_deref(),
            Some("answer: not what was sent")
        );
    }
}

fn gives_up() {
    let pair = Pair::new("steady-patient");
    let origin = Origin::start(&pair.server, "10.0.0.2:80", Manner::Sink);
    let traffic = pair.traffic(80, None);
    origin.wait("some", |books| (books.accepted >= 3).then_some(()));
    let when = Instant::now();
    traffic.give_up(when);
    for connection in traffic.stop() {
        let failure = connection.failure.as_deref();
        let given_up = failure.is_some_and(|failure| failure.ends_with("given up"));
        assert_eq!(given_up, connection.began < when, "{connection:?}");
    }
}

fn by_path() {
    let pair = Pair::new("alb");
    let pods = [("10.0.0.2:8081", "svc1"), ("10.0.0.2:8082", "svc2")].map(|(address, name)| {
        Origin::start(&pair.server, address, Manner::Mirror(name.to_owned()))
    });
    let rules = [
        ("/svc1", "10.0.0.2:8081"),
        ("/svc2", "10.0.0.2:8082"),
        ("/gone", "10.0.0.2:8083"),
    ];
    let alb = Alb::start(&pair.server, "10.0.0.2:80", &rules);
    let asked = [
        ("/svc1/a", "200", Some("svc1")),
        ("/svc2", "200", Some("svc2")),
        ("/svc11", "404", None),
        ("/gone/b", "502", None),
    ];
    // All of them on one connection.
    let answers = pair.client.run(async move {
        let to = "10.0.0.2:80".parse::<SocketAddr>().expect("an address");
        let mut stream = tokio::net::TcpStream::connect(to).await?;
        let mut messages = Messages::default();
        let mut answers = Vec::new();
        for (path, ..) in asked {
            let request = Message::post("api", path, b"body".to_vec()).bytes();
            tokio::io::AsyncWriteExt::write_all(&mut stream, &request).await?;
            answers.push(messages.read(&mut stream).await?.expect("an answer"));
        }
        Ok::<_, std::io::Error>(answers)
    });
    for (answer, (path, status, by)) in answers.expect("it answers").iter().zip(asked) {
        assert_eq!(
            (answer.second_word(), answer.field("server")),
            (status, by),
            "{path}"
        );
    }
    for pod in &pods {
        assert_eq!(
            pod.wait_over(1)
                .requests
                .values()
                .map(|r| r.body_bytes)
                .sum::<u64>(),
            4
        );
    }
    let books = alb.books();
    assert_eq!(
        (books.accepted, books.rules[""], books.rules["/svc1"]),
        (1, 1, 1)
    );
}

fn who_opens() {
    let pair = Pair::new("tap");
    let _origin = pair.mirror("one");
    let taps = [Tap::on(&pair.client), Tap::on(&pair.server)];
    let to: SocketAddr = "10.0.0.2:80".parse().expect("an address");
    let from = pair
        .client
        .run(async move { Agent::connect(to).await?.local() })
        .expect("it listens");
    for tap in &taps {
        // The kernel hands copies of packets over in its own time.
        let deadline = Instant::now() + crate::harness::BOUND;
        while tap.openings().is_empty() && Instant::now() < deadline {
            std::thread::yield_now();
        }
        let seen: Vec<_> = tap.openings().into_iter().collect();
        assert_eq!(seen, [(from, to)], "its answer is not one");
    }
}

fn black_hole() {
    let lab = Lab::new("hole");
    let (a, router, b) = (lab.host("a"), lab.router("router"), lab.host("b"));
    lab.veth((&a, "10.1.0.2/24"), (&router, "10.1.0.1/24"));
    lab.veth((&router, "10.2.0.1/24"), (&b, "10.2.0.2/24"));
    a.route("default", "10.1.0.1");
    b.route("default", "10.2.0.1");
    let origin = Origin::start(&b, "10.2.0.2:80", Manner::Sink);
    let to = origin.address();
    let connect = |bound: Duration| {
        let connect = crate::harness::stream::within(bound, Agent::connect(to));
        a.run(connect).map(drop).map_err(|error| error.kind())
    };
    assert_eq!(connect(crate::harness::BOUND), Ok(()));
    router.black_hole("10.2.0.0/24");
    // That nothing comes is what is tested.
    assert_eq!(
        connect(Duration::from_millis(200)),
        Err(ErrorKind::TimedOut)
    );
    router.pass_again("10.2.0.0/24");
    assert_eq!(connect(crate::harness::BOUND), Ok(()));
    router.ip("route del 10.2.0.0/24");
    let gone = connect(crate::harness::BOUND);
    assert_eq!(
        gone,
        Err(ErrorKind::NetworkUnreachable),
        "without a hole it says so"
    );
}

fn any_split() {
    let sent = [
        Message::post("a", "/one", b"12345".to_vec()),
        Message::post("b", "/two", Vec::new()),
        Message::answer("204 No Content", "Server: x\r\n", b"\r\n\r\n".to_vec()),
    ];
    let bytes = sent.iter().flat_map(Message::bytes).collect::<Vec<_>>();
    for at in 0..=bytes.len() {
        let mut messages = Messages::default();
        let mut found = Vec::new();
        for piece in [&bytes[..at], &bytes[at..]] {
            messages.feed(piece);
            while let Some(message) = messages.take().expect("it is right") {
                found.push(message);
            }
        }
        assert_eq!(
            (found.as_slice(), messages.is_empty()),
            (&sent[..], true),
            "{at}"
        );
    }
}
