//! `top --once`, and what the relay answers to it. What is drawn on a terminal has tests beside the code.

use libtest_mimic::Trial;

use super::NOBODY;
use crate::{
    claim,
    harness::{agent::Agent, origin::Manner, stream::End},
    scenarios::world::{ENDPOINT, World, connected, shipped_and},
};

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        claim(
            "top_tells_anybody_who_is_connected_and_how_the_upstream_is",
            top_tells_anybody_who_is_connected_and_how_the_upstream_is,
        ),
        claim(
            "top_is_bounded_filtered_and_ordered_by_the_relay",
            top_is_bounded_filtered_and_ordered_by_the_relay,
        ),
    ]
}

fn top_tells_anybody_who_is_connected_and_how_the_upstream_is() {
    let named = format!("[endpoint.{ENDPOINT}]\nname = \"billing agents\"");
    let world = World::with("cli-top", Manner::Echo, shipped_and(&named));
    let agents: Vec<Agent> = (0..3).map(|_| open(&world, ENDPOINT)).collect();
    let once = ["top", "--once", "--interval", "1", "--config", "@CONFIG@"];
    let home = world.relay.home();
    let said = home
        .tollgate_through(&world.relay_host, &NOBODY, &once)
        .ok();
    let line = |begins: &str| {
        let line = said.lines().find(|line| line.starts_with(begins));
        line.unwrap_or_else(|| panic!("{begins} in {said}"))
    };
    assert!(line("tollgate ").contains("serving  3 sessions"), "{said}");
    let row: Vec<_> = line(ENDPOINT).split_whitespace().collect();
    assert_eq!(row[1], "3", "{said}");
    assert!(row.ends_with(&["billing", "agents"]), "{said}");
    let upstream = line("control-plane 10.30.0.2:443");
    assert!(
        upstream.contains("usable") && upstream.contains(" ms"),
        "{said}"
    );
    // It draws on terminals only.
    let drawn = world.relay.tollgate(&["top", "--config", "@CONFIG@"]);
    assert_eq!(drawn.code, 65, "{}", drawn.err);
    assert!(drawn.err.contains("--once"), "{}", drawn.err);
    for agent in agents {
        close(&world, agent);
    }
    world.assert_at_rest();
}

fn top_is_bounded_filtered_and_ordered_by_the_relay() {
    let world = World::new("cli-top-asked", Manner::Echo);
    let agents: Vec<Agent> = [("vpce-1", 1), ("vpce-2", 3), ("other-3", 2)]
        .into_iter()
        .flat_map(|(endpoint, n)| std::iter::repeat_n(endpoint, n))
        .map(|endpoint| open(&world, endpoint))
        .collect();
    let ask = |query: &str| {
        let answer = world.relay.ask_socket(0, "GET", &format!("/top?{query}"));
        let look = answer.done();
        let rows = look["endpoints"].as_array().unwrap().clone();
        let rows = rows
            .iter()
            .map(|row| row["endpoint"].as_str().unwrap().to_owned());
        (
            rows.collect::<Vec<_>>(),
            look["endpoints_found"].as_u64().unwrap(),
        )
    };
    assert_eq!(
        ask("sort=sessions&rows=2"),
        (vec!["vpce-2".to_owned(), "other-3".to_owned()], 3)
    );
    assert_eq!(
        ask("sort=endpoint&filter=VPCE"),
        (vec!["vpce-1".to_owned(), "vpce-2".to_owned()], 2)
    );
    assert_eq!(ask("filter=%1b%5b2J"), (vec![], 0));
    assert_eq!(ask("rows=0").0, [""; 0]);
    for (query, said) in [
        ("sort=size", "known as sort: rate"),
        ("rows=-1", "number"),
        ("page=2", "sort, filter and rows"),
    ] {
        let answer = world.relay.ask_socket(0, "GET", &format!("/top?{query}"));
        answer.assert_declined(400, &[said]);
    }
    for agent in agents {
        close(&world, agent);
    }
    world.assert_at_rest();
}

fn open(world: &World, endpoint: &'static str) -> Agent {
    world.node.run(async move {
        let mut agent = connected(endpoint).await.unwrap();
        agent.exchange(1000).await.unwrap();
        agent
    })
}

fn close(world: &World, mut agent: Agent) {
    world.node.run(async move {
        agent.finish().unwrap();
        assert_eq!(agent.expect_to_end(0).await.unwrap(), End::Fin);
    });
}
