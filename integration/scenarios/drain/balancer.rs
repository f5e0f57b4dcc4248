//! O3: a relay that leaves its Network Load Balancer, under load, without one failed request.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use libtest_mimic::Trial;
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use super::wait_phase;
use crate::{
    claim,
    harness::{
        agent::Agent,
        netns::{Host, Lab},
        nlb::{Config, HealthCheck, Listen, Nlb},
        origin::{Manner, Origin},
        relay::{Baseline, Relay, Signal},
        stream::End,
    },
    scenarios::world::{self, shipped_and},
};

pub(super) fn tests() -> Vec<Trial> {
    vec![
        claim(
            "o3_deregistered_relay_that_is_stopped_fails_no_request",
            deregistered_relay_that_is_stopped_fails_no_request,
        ),
        claim(
            "o3_drained_relay_fails_its_checks_and_no_request_and_comes_back",
            drained_relay_fails_its_checks_and_no_request_and_comes_back,
        ),
    ]
}

const BALANCER: &str = "10.60.1.10:443";
const RELAYS: [&str; 2] = ["10.20.1.2:8443", "10.20.2.2:8443"];
const ACCEPT_FOR: Duration = Duration::from_secs(4);
const DEADLINE: Duration = Duration::from_secs(4);
const SPREAD: Duration = Duration::from_secs(3);
/// How long an NLB goes on sending to a target that it was told to leave out; minutes with AWS.
const LAG: Duration = Duration::from_secs(2);

/// Agents, a balancer, two relays, and what is behind them.
struct Scene {
    relays: [Relay; 2],
    baselines: [Baseline; 2],
    nlb: Nlb,
    agents: Host,
    _origin: Origin,
    _lab: Lab,
}

impl Scene {
    #[track_caller]
    fn new(name: &str, health: Option<HealthCheck>) -> Self {
        let lab = Lab::new(name);
        let (agents, nlb_host, origin_host) =
            (lab.host("agents"), lab.host("nlb"), lab.host("origin"));
        lab.veth((&agents, "10.60.1.5/24"), (&nlb_host, "10.60.1.10/24"));
        let hosts = [1, 2].map(|n| {
            let relay = lab.host(&format!("relay-{n}"));
            lab.veth(
                (&nlb_host, &format!("10.20.{n}.10/24")),
                (&relay, &format!("10.20.{n}.2/24")),
            );
            lab.veth(
                (&relay, &format!("10.30.{n}.1/24")),
                (&origin_host, &format!("10.30.{n}.2/24")),
            );
            relay
        });
        let origin = Origin::start(&origin_host, "0.0.0.0:443", Manner::Echo);
        let keys = format!(
            "[drain]\naccept_for = \"{}s\"\ndeadline = \"{}s\"\nspread = \"{}s\"\nclose = \"fin\"",
            ACCEPT_FOR.as_secs(),
            DEADLINE.as_secs(),
            SPREAD.as_secs()
        );
        let relays = [0, 1].map(|n| {
            let upstream = format!("10.30.{}.2:443", n + 1);
            let start = shipped_and(&keys).replace(world::ORIGIN, &upstream);
            start.on(&hosts[n])
        });
        let baselines = [Baseline::of(&relays[0]), Baseline::of(&relays[1])];
        let listen = vec![Listen::direct(&nlb_host, BALANCER)];
        let nlb = Nlb::start(
            &nlb_host,
            Config {
                health,
                // README tells operators to switch it off: or NLB cuts what the relay would let finish.
                reset_when_unhealthy: false,
                ..Config::new(listen, &RELAYS)
            },
        );
        for relay in RELAYS {
            nlb.wait_health(relay.parse().unwrap(), true);
        }
        Self {
            relays,
            baselines,
            nlb,
            agents,
            _origin: origin,
            _lab: lab,
        }
    }

    fn connections(&self, relay: usize) -> u64 {
        self.nlb.books().targets[&RELAYS[relay].parse().unwrap()].connections
    }

    /// Sessions that each have exchanged something, by the relay they go through.
    #[track_caller]
    fn sessions(&self, n: usize) -> [Vec<Agent>; 2] {
        let opened = self.agents.run(async move {
            let mut agents = Vec::new();
            for _ in 0..n {
                let mut agent = Agent::connect(BALANCER.parse().unwrap()).await.unwrap();
                agent.exchange(1000).await.unwrap();
                agents.push(agent);
            }
            agents
        });
        let flows = self.nlb.books().flows;
        let mut by_relay = [Vec::new(), Vec::new()];
        for agent in opened {
            let flow = (String::new(), agent.local().unwrap());
            let second = flows[&flow] == RELAYS[1].parse().unwrap();
            by_relay[usize::from(second)].push(agent);
        }
        assert!(by_relay.iter().all(|agents| agents.len() >= 5));
        by_relay
    }

    /// Waits until the balancer has sent so many more connections to a relay.
    #[track_caller]
    fn wait_connections(&self, relay: usize, more: u64) {
        let address = RELAYS[relay].parse().unwrap();
        let wanted = self.connections(relay) + more;
        self.nlb.wait("connections", |books| {
            (books.targets[&address].connections >= wanted).then_some(())
        });
    }
}

/// One request after the other, each on a connection of its own, and what became of those that failed.
struct Requests {
    stop: CancellationToken,
    failed: Arc<Mutex<Vec<String>>>,
    sent: JoinHandle<u64>,
}

impl Requests {
    fn start(agents: &Host) -> Self {
        let stop = CancellationToken::new();
        let failed = Arc::<Mutex<Vec<String>>>::default();
        let (stopped, failures) = (stop.clone(), Arc::clone(&failed));
        let sent = agents.spawn(async move {
            let began = Instant::now();
            let mut requests = JoinSet::new();
            let mut pace = tokio::time::interval(Duration::from_millis(10));
            let mut sent = 0;
            while stopped.run_until_cancelled(pace.tick()).await.is_some() {
                sent += 1;
                let failures = Arc::clone(&failures);
                requests.spawn(async move {
                    let at = began.elapsed();
                    if let Err(error) = request().await {
                        let mut failures = failures.lock().unwrap();
                        failures.push(format!("begun {at:?}, over {:?}: {error}", began.elapsed()));
                    }
                });
                while requests.try_join_next().is_some() {}
            }
            requests.join_all().await;
            sent
        });
        Self { stop, failed, sent }
    }

    /// Ends the traffic; how many there were.
    #[track_caller]
    fn assert_none_failed(self, agents: &Host) -> u64 {
        self.stop.cancel();
        let sent = self.sent;
        let sent = agents.run(async move { sent.await.unwrap() });
        let failed = self.failed.lock().unwrap();
        assert!(failed.is_empty(), "of {sent}: {failed:#?}");
        sent
    }
}

async fn request() -> std::io::Result<()> {
    let mut agent = Agent::connect(BALANCER.parse().expect("an address")).await?;
    agent.exchange(2000).await?;
    agent.finish()?;
    match agent.expect_to_end(0).await? {
        End::Fin => Ok(()),
        End::Reset => Err(std::io::ErrorKind::ConnectionReset.into()),
    }
}

/// When each of these was closed, all of them in order.
#[track_caller]
fn closed(scene: &Scene, agents: Vec<Agent>) -> Vec<Instant> {
    scene.agents.run_within(Duration::from_secs(60), async {
        let mut reads = JoinSet::new();
        for mut agent in agents {
            reads.spawn(async move {
                assert_eq!(agent.read_to_end().await.unwrap(), (Vec::new(), End::Fin));
                Instant::now()
            });
        }
        reads.join_all().await
    })
}

/// Clocks are what is tested: nobody is closed before the time for it, and not all at once.
#[track_caller]
fn assert_spread(began: Instant, closed: &[Instant]) {
    let after: Vec<Duration> = closed.iter().map(|at| *at - began).collect();
    let first = after.iter().min().unwrap();
    assert!(*first >= ACCEPT_FOR + DEADLINE - SPREAD, "{after:?}");
    let last = after.iter().max().unwrap();
    assert!(*last - *first > SPREAD / 4, "all at once: {after:?}");
}

/// By the book: deregistered, and stopped at the same time. For a while the balancer goes on sending.
fn deregistered_relay_that_is_stopped_fails_no_request() {
    let scene = Scene::new("o3-stop", None);
    let requests = Requests::start(&scene.agents);
    let [leaving, staying] = scene.sessions(40);
    scene.wait_connections(0, 10);
    let began = Instant::now();
    scene.nlb.deregister(RELAYS[0].parse().unwrap(), LAG);
    scene.relays[0].signal(Signal::TERM);
    wait_phase(&scene.relays[0], "leaving");
    assert_eq!(scene.relays[0].get("/readyz").0, 503);
    scene.wait_connections(0, 10); // and they are served, as is found in the end
    assert_spread(began, &closed(&scene, leaving));
    assert_eq!(scene.relays[0].wait_exit(), 0);
    scene.wait_connections(1, 10);
    let staying = scene.agents.run(async move {
        let mut staying = staying;
        for agent in &mut staying {
            agent.exchange(1000).await.unwrap();
        }
        staying
    });
    let sent = requests.assert_none_failed(&scene.agents);
    assert!(sent > 100);
    drop(staying);
    world::assert_at_rest(&scene.relays[1], scene.baselines[1]);
}

/// Not deregistered: the checks alone take it out, and back in.
fn drained_relay_fails_its_checks_and_no_request_and_comes_back() {
    let check = HealthCheck {
        port: Some(9901),
        unhealthy_after: 5, // a second, in which connections go on coming
        ..HealthCheck::http("/readyz")
    };
    let scene = Scene::new("o3-drain", Some(check));
    let first = RELAYS[0].parse().unwrap();
    let requests = Requests::start(&scene.agents);
    let [leaving, staying] = scene.sessions(40);
    let began = Instant::now();
    scene.relays[0].order("/drain").done();
    scene.wait_connections(0, 10);
    scene.nlb.wait_health(first, false);
    assert_spread(began, &closed(&scene, leaving));
    wait_phase(&scene.relays[0], "drained");
    let before = scene.connections(0);
    scene.wait_connections(1, 50);
    assert_eq!(scene.connections(0), before, "none goes there any more");
    scene.relays[0].order("/undrain").done();
    scene.nlb.wait_health(first, true);
    scene.wait_connections(0, 20);
    let sent = requests.assert_none_failed(&scene.agents);
    assert!(sent > 100);
    drop(staying);
    scene.nlb.kill();
    for (relay, baseline) in scene.relays.iter().zip(scene.baselines) {
        let refused = relay.metric("tollgate_refused_total", &[("reason", "draining")]);
        assert_eq!(refused, 0);
        world::assert_at_rest(relay, baseline);
    }
}
