//! Origins behave as told and count exactly.

use std::time::Duration;

use libtest_mimic::Trial;

use crate::{
    claim,
    harness::{
        agent::Agent,
        netns::{Host, Lab},
        origin::{Manner, Origin, Requests},
        pattern::Pattern,
        stream::End,
    },
};

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        claim(
            "origins_answer_in_their_manner",
            origins_answer_in_their_manner,
        ),
        claim("checked_sink_reports_damage", checked_sink_reports_damage),
        claim(
            "stopped_origin_reads_only_what_it_may",
            stopped_origin_reads_only_what_it_may,
        ),
        claim(
            "collector_counts_requests_by_path",
            collector_counts_requests_by_path,
        ),
        claim(
            "segments_are_acknowledged_one_by_one",
            segments_are_acknowledged_one_by_one,
        ),
    ]
}

fn pair(lab: &Lab) -> (Host, Host) {
    let (client, server) = (lab.host("client"), lab.host("server"));
    lab.veth((&client, "10.0.0.1/24"), (&server, "10.0.0.2/24"));
    (client, server)
}

fn origins_answer_in_their_manner() {
    let lab = Lab::new("manners");
    let (client, server) = pair(&lab);
    let (seed, bytes) = (5, 300_000);
    let wait = Duration::from_millis(1);
    // Sent by the client before its FIN; what comes back of seed 5, and how it ends.
    let manners = [
        (Manner::Sink, 1000, 0, End::Fin),
        (Manner::Source { seed, bytes }, 1000, bytes, End::Fin),
        (
            Manner::AnswerAfterEnd { wait, seed, bytes },
            1000,
            bytes,
            End::Fin,
        ),
        (Manner::ResetAfter(1000), 1000, 0, End::Reset),
        (Manner::SendThenReset { seed, bytes }, 0, bytes, End::Reset),
    ];
    for (manner, send, answer, end) in manners {
        let origin = Origin::start(&server, "10.0.0.2:0", manner.clone());
        let to = origin.address();
        let (received, ended) = client.run(async move {
            let mut agent = Agent::connect(to).await.expect("it listens");
            agent.send(send).await.expect("it reads");
            if end == End::Fin {
                agent.finish().expect("it is open");
            }
            let ended = agent.expect_to_end(seed).await.expect("it ends");
            (agent.received(), ended)
        });
        assert_eq!((received, ended), (answer, end), "{manner:?}");
        let books = origin.wait_over(1);
        assert_eq!((books.received, books.sent), (send, answer), "{manner:?}");
    }
    let origin = Origin::start(&server, "10.0.0.2:0", Manner::ResetAfter(0));
    let outcome = client.run(Agent::outcome(origin.address()));
    assert_eq!(outcome.expect("it listens"), (vec![], End::Reset));
    let origin = Origin::start(
        &server,
        "10.0.0.2:0",
        Manner::Banner("220 hello\r\n".into()),
    );
    let to = origin.address();
    let banner = client.run(async move { Agent::connect(to).await?.read(11).await });
    assert_eq!(banner.expect("it speaks first"), b"220 hello\r\n");
}

fn checked_sink_reports_damage() {
    let lab = Lab::new("damage");
    let (client, server) = pair(&lab);
    let origin = Origin::start(&server, "10.0.0.2:0", Manner::CheckedSink);
    let to = origin.address();
    client.run(async move {
        let mut bytes = Pattern::new(9).bytes(0, 5000);
        bytes[4321] ^= 1;
        let mut agent = Agent::connect(to).await.expect("it listens");
        // The sink resets as soon as it sees the damage.
        let _ = agent.write(&bytes).await;
        assert_eq!(agent.read_to_end().await.expect("it ends").1, End::Reset);
    });
    let mismatches = origin.wait_over(1).mismatches;
    assert_eq!(mismatches.len(), 1);
    assert!(
        mismatches[0].starts_with("stream 9: byte 4321 is"),
        "{mismatches:?}"
    );
}

fn stopped_origin_reads_only_what_it_may() {
    let lab = Lab::new("stopped");
    let (client, server) = pair(&lab);
    let origin = Origin::start(&server, "10.0.0.2:0", Manner::Stopped);
    let to = origin.address();
    let agent = client.spawn(async move {
        let mut agent = Agent::connect(to).await?;
        agent.send(50_000).await?;
        agent.finish()?;
        agent.expect_to_end(0).await
    });
    origin.wait("a connection", |books| (books.accepted == 1).then_some(()));
    for allowed in [10_u64, 10_000] {
        let before = origin.books().received;
        origin.allow(allowed as usize);
        origin.wait("what is allowed", |books| {
            (books.received >= before + allowed).then_some(())
        });
        assert_eq!(origin.books().received, before + allowed);
    }
    origin.allow_all();
    assert_eq!(origin.wait_over(1).received, 50_000);
    let end = client.run(agent).expect("the agent did not panic");
    assert_eq!(end.expect("it ends"), End::Fin);
}

fn collector_counts_requests_by_path() {
    let lab = Lab::new("collector");
    let (client, server) = pair(&lab);
    let origin = Origin::start(&server, "10.0.0.2:0", Manner::Collector);
    let to = origin.address();
    let answers = client.run(async move {
        let mut agent = Agent::connect(to).await?;
        for (path, body) in [("/v1/metrics", "a=1"), ("/v1/logs", "hello"), ("/v1/logs", "")] {
            let close = if body.is_empty() { "close" } else { "keep-alive" };
            let request = format!(
                "POST {path} HTTP/1.1\r\nHost: x\r\nConnection: {close}\r\ncontent-length: {}\r\n\r\n{body}",
                body.len()
            );
            agent.write(request.as_bytes()).await?;
        }
        agent.read_to_end().await
    });
    let (answers, end) = answers.expect("it answers and closes");
    let answers = String::from_utf8(answers).expect("HTTP is text");
    assert_eq!((answers.matches("200 OK").count(), end), (3, End::Fin));
    let logs = Requests {
        count: 2,
        body_bytes: 5,
    };
    assert_eq!(origin.wait_over(1).requests["/v1/logs"], logs);
}

fn segments_are_acknowledged_one_by_one() {
    let lab = Lab::new("segments");
    let (client, server) = pair(&lab);
    let origin = Origin::start(&server, "10.0.0.2:0", Manner::Stopped);
    let to = origin.address();
    client.run(async move {
        let mut agent = Agent::connect(to).await.expect("it listens");
        agent
            .write_segments(&[b"one", b"two"])
            .await
            .expect("it is acknowledged");
    });
    origin.allow(1 << 16);
    assert_eq!(origin.wait_over(1).connections[0].first, b"onetwo");
}
