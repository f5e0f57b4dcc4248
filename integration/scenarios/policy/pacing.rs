//! O7. Bytes a second: what an endpoint's sessions move together, and what a session does that has to wait for it.

use std::{
    thread,
    time::{Duration, Instant},
};

use libtest_mimic::Trial;
use socket2::SockRef;
use tokio::{net::TcpStream, task::JoinSet};

use crate::{
    claim,
    harness::{
        agent::Agent,
        netns::Host,
        origin::Manner,
        relay::Start,
        stream::{self, End::Fin},
    },
    scenarios::{
        peers::{Peers, Way, within_five},
        world::{ENDPOINT, World, listener, privatelink_header, shipped_and},
    },
};

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        claim("one_session_moves_to_upstream_at_its_rate", || {
            moves_at_its_rate(Way::ToUpstream, 1, 4 << 20);
        }),
        claim("one_session_moves_to_its_client_at_its_rate", || {
            moves_at_its_rate(Way::ToClient, 1, 4 << 20);
        }),
        claim("ten_sessions_move_to_upstream_at_one_rate", || {
            moves_at_its_rate(Way::ToUpstream, 10, 8 << 20);
        }),
        claim("ten_sessions_move_to_their_clients_at_one_rate", || {
            moves_at_its_rate(Way::ToClient, 10, 8 << 20);
        }),
        claim("two_hundred_sessions_move_to_upstream_at_one_rate", || {
            moves_at_its_rate(Way::ToUpstream, 200, 8 << 20);
        }),
        claim(
            "two_hundred_sessions_move_to_their_clients_at_one_rate",
            || moves_at_its_rate(Way::ToClient, 200, 8 << 20),
        ),
        claim("tiny_rate_moves_every_byte", || {
            moves_at_its_rate(Way::ToUpstream, 1, 4 << 10);
        }),
        claim(
            "what_comes_with_the_header_goes_by_its_rate",
            what_comes_with_the_header_goes_by_its_rate,
        ),
        claim(
            "sessions_that_wait_for_their_rate_cost_nothing",
            sessions_that_wait_for_their_rate_cost_nothing,
        ),
        claim(
            "session_that_waits_for_its_rate_is_not_idle",
            session_that_waits_for_its_rate_is_not_idle,
        ),
        claim(
            "session_that_waits_for_its_rate_ends_at_its_age",
            session_that_waits_for_its_rate_ends_at_its_age,
        ),
        claim(
            "receiver_that_resets_ends_a_session_that_waits_for_its_rate",
            receiver_that_resets_ends_a_session_that_waits_for_its_rate,
        ),
        claim(
            "what_a_sender_sent_before_its_reset_arrives_by_its_rate",
            what_a_sender_sent_before_its_reset_arrives_by_its_rate,
        ),
        claim(
            "sender_that_resets_while_it_waits_is_noticed_at_once",
            sender_that_resets_while_it_waits_is_noticed_at_once,
        ),
        claim(
            "one_direction_at_its_rate_holds_nothing_of_the_other_up",
            one_direction_at_its_rate_holds_nothing_of_the_other_up,
        ),
    ]
}

/// Another, without a limit.
const OTHER: &str = "vpce-0c00000000000000c";

/// Whose stream origins send.
const SEED: u64 = 7;

/// So many bytes a second this way, for the endpoint, on two workers.
fn limited(way: Way, rate: u64, more: &str) -> Start {
    let key = format!("bytes_per_second_{}", way.name());
    let endpoint = format!("[endpoint.\"{ENDPOINT}\"]\n{key} = \"{rate}B\"\n{more}");
    shipped_and(&format!("workers = 2\n\n{endpoint}"))
}

/// What goes at once after a pause: a tenth of a second's worth, and a grant at least.
fn burst(rate: u64) -> u64 {
    (rate / 10).max(4096)
}

/// A connection of `endpoint`, with so many bytes of its stream in one piece with its header. Runs on the node.
async fn opened(endpoint: &str, seed: u64, first: u64) -> Agent {
    let stream = TcpStream::connect(listener()).await.unwrap();
    // Not as an agent's preface, which looks through all sockets for its own.
    let header = privatelink_header(endpoint);
    stream::write(&stream, &header, |_| ()).await.unwrap();
    // Who is dropped is gone, and not finished by the kernel.
    SockRef::from(&stream)
        .set_linger(Some(Duration::ZERO))
        .unwrap();
    let mut agent = Agent::of(stream)
        .unwrap()
        .seed(seed)
        .bound(Duration::from_secs(50));
    agent.send(first).await.unwrap();
    agent
}

/// So many sessions that each move so many bytes and end in order; how long all of it took.
#[track_caller]
fn move_all(node: &Host, way: Way, endpoint: &'static str, sessions: u64, each: u64) -> Duration {
    node.run(async move {
        let began = Instant::now();
        let mut running = JoinSet::new();
        for seed in 0..sessions {
            let mut agent = opened(endpoint, seed, 0).await;
            running.spawn(async move {
                if way == Way::ToUpstream {
                    agent.send(each).await.unwrap();
                    agent.finish().unwrap();
                }
                assert_eq!(agent.expect_to_end(SEED).await.unwrap(), Fin);
                let received = if way == Way::ToClient { each } else { 0 };
                assert_eq!(agent.received(), received);
                if way == Way::ToClient {
                    agent.finish().unwrap();
                }
            });
        }
        while let Some(ended) = running.join_next().await {
            ended.unwrap();
        }
        began.elapsed()
    })
}

/// What is behind the relay, for bytes this way.
fn origin(way: Way, each: u64) -> Manner {
    match way {
        Way::ToUpstream => Manner::CheckedSink,
        Way::ToClient => Manner::Source {
            seed: SEED,
            bytes: each,
        },
    }
}

/// Time is the test here. Never faster; and hardly slower, once of five times: the machine may have had something else to do.
fn moves_at_its_rate(way: Way, sessions: u64, rate: u64) {
    let each = 4 * rate / sessions;
    let all = each * sessions;
    let world = World::with("paced", origin(way, each), limited(way, rate, ""));
    let mut moved = 0;
    within_five("within five per cent of the rate", |_| {
        let took = move_all(&world.node, way, ENDPOINT, sessions, each).as_secs_f64();
        moved += all;
        world.relay.wait_until("it to be booked", || {
            world.booked(ENDPOINT, way.name()) == moved
        });
        let least = (all - burst(rate)) as f64 / rate as f64;
        assert!(took >= least, "{took} s for what takes {least}");
        took <= all as f64 / rate as f64 * 1.05
    });
    let books = world.origin.wait_over(moved / each);
    assert_eq!(books.mismatches, Vec::<String>::new());
    world.wait_closed("completed", moved / each);
    world.assert_at_rest();
}

fn what_comes_with_the_header_goes_by_its_rate() {
    const RATE: u64 = 10_000;
    const EACH: u64 = 1000;
    const SESSIONS: u64 = 30;
    let start = limited(Way::ToUpstream, RATE, "");
    let world = World::with("paced-first", Manner::CheckedSink, start);
    let took = world.node.run(async {
        let began = Instant::now();
        let mut agents = Vec::new();
        for seed in 0..SESSIONS {
            agents.push(opened(ENDPOINT, seed, EACH).await);
        }
        for mut agent in agents {
            agent.finish().unwrap();
            assert_eq!(agent.expect_to_end(0).await.unwrap(), Fin);
        }
        began.elapsed()
    });
    let least = (EACH * SESSIONS - burst(RATE)) as f64 / RATE as f64;
    assert!(took.as_secs_f64() >= least, "{took:?}, not {least} s");
    let books = world.origin.wait_over(SESSIONS);
    assert_eq!(books.mismatches, Vec::<String>::new());
    assert_eq!(books.received, EACH * SESSIONS);
    world.assert_at_rest();
}

fn sessions_that_wait_for_their_rate_cost_nothing() {
    const SESSIONS: u64 = 20;
    const BYTES: u64 = 1 << 20;
    const WATCHED: Duration = Duration::from_secs(2);
    // Each waits for two seconds and more, with packets of its source coming in all the while at first.
    let start = limited(Way::ToUpstream, 32 << 10, "");
    let world = World::with("paced-waiting", Manner::CheckedSink, start);
    let agents = world.node.run(async {
        let mut agents = Vec::new();
        for seed in 0..SESSIONS {
            agents.push(opened(ENDPOINT, seed, BYTES / 16).await);
        }
        agents
    });
    let before = world.relay.cpu_time();
    let sending = world.node.spawn(async move {
        let mut sending = JoinSet::new();
        for mut agent in agents {
            sending.spawn(async move {
                // More than the relay takes in that time: it does not end.
                let _ = agent.send(BYTES * 64).await;
            });
        }
        while sending.join_next().await.is_some() {}
    });
    // Time is the test here.
    thread::sleep(WATCHED);
    let used = world.relay.cpu_time() - before;
    assert!(used < WATCHED / 20, "{used:?} of {WATCHED:?} for waiting");
    // And whoever has no limit is served beside them.
    world.node.run(async {
        let mut agent = opened(OTHER, SESSIONS, 0).await;
        agent.send(BYTES).await.unwrap();
        agent.finish().unwrap();
        assert_eq!(agent.expect_to_end(0).await.unwrap(), Fin);
    });
    sending.abort();
    assert_eq!(world.origin.books().mismatches, Vec::<String>::new());
    // What the relay's kernel holds for them would go on for a minute.
    world.origin.kill();
    world.assert_at_rest();
}

fn session_that_waits_for_its_rate_is_not_idle() {
    // Eight that wait for each other: two seconds between two grants of one.
    let start = limited(
        Way::ToClient,
        16 << 10,
        "\n[session]\nidle_timeout = \"1s\"\n",
    );
    let bytes = 12 << 10;
    let world = World::with("paced-idle", origin(Way::ToClient, bytes), start);
    move_all(&world.node, Way::ToClient, ENDPOINT, 8, bytes);
    world.wait_closed("completed", 8);
    world.wait_closed("idle_timeout", 0);
    world.assert_at_rest();
}

fn session_that_waits_for_its_rate_ends_at_its_age() {
    let start = limited(Way::ToClient, 1024, "max_age = \"1s\"\n");
    let world = World::with("paced-age", origin(Way::ToClient, 1 << 20), start);
    world.node.run(async {
        let mut agent = opened(ENDPOINT, 0, 0).await;
        let (bytes, _) = agent.read_to_end().await.unwrap();
        assert!(bytes.len() < 1 << 20);
    });
    world.wait_closed("max_age", 1);
    world.assert_at_rest();
}

fn receiver_that_resets_ends_a_session_that_waits_for_its_rate() {
    let peers = Peers::new("paced-gone", limited(Way::ToClient, 1024, ""));
    let (client, mut server) = peers.open(10);
    server.send(60_000);
    peers
        .relay
        .wait_until("it to move", || peers.booked(Way::ToClient) > 0);
    client.reset();
    // What is left would take a minute and a half.
    peers.wait_closed("client_reset", 1);
    server.wait_broken();
    peers.assert_at_rest();
}

fn what_a_sender_sent_before_its_reset_arrives_by_its_rate() {
    const BYTES: u64 = 12 << 10;
    for way in Way::ALL {
        let peers = Peers::new("paced-reset", limited(way, 4 << 10, ""));
        let (mut sender, mut receiver) = peers.open_along(way, 10);
        let began = Instant::now();
        sender.send(BYTES);
        sender.reset_after_delivery();
        receiver.expect(BYTES);
        assert!(began.elapsed() > Duration::from_millis(1990));
        receiver.wait_broken();
        peers.wait_closed(way.sender_reset(), 1);
        peers.assert_at_rest();
    }
}

fn sender_that_resets_while_it_waits_is_noticed_at_once() {
    // Half a minute, for what it has sent.
    let start = limited(Way::ToUpstream, 1024, "");
    let peers = Peers::new("paced-noticed", start);
    let (mut client, mut server) = peers.open(10);
    client.send(40_000);
    client.reset_after_delivery();
    // Nobody is there any more to be answered: what the server says is taken and thrown away, however much it is.
    server.send(64 << 20);
    server.acknowledged();
    assert_eq!(peers.booked(Way::ToClient), 0);
    server.reset();
    peers.wait_closed("client_reset", 1);
    peers.assert_at_rest();
}

fn one_direction_at_its_rate_holds_nothing_of_the_other_up() {
    const BYTES: u64 = 30_000_000;
    let peers = Peers::new("paced-one-way", limited(Way::ToUpstream, 1024, ""));
    let (mut client, mut server) = peers.open(10);
    client.send(60_000);
    thread::scope(|scope| {
        scope.spawn(|| client.expect(BYTES));
        server.send(BYTES);
    });
    let moved = peers.booked(Way::ToUpstream);
    assert!(moved < 60_000, "{moved} bytes at 1 KiB/s");
    // What still waits is for nobody then.
    server.reset();
    peers.wait_closed("upstream_reset", 1);
    client.wait_broken();
    peers.assert_at_rest();
}
