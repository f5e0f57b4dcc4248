//! Rules that change under those who are not in yet: they meet what is in force when their turn comes, not when they came.

use libtest_mimic::Trial;

use super::world::{NOISY, QUIET, echo};
use crate::{
    claim,
    harness::{agent::Agent, stream::End},
    scenarios::world::{ORIGIN, SHIPPED, World, listener, privatelink_header},
};

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        claim(
            "who_waits_comes_in_when_a_reload_makes_room",
            who_waits_comes_in_when_a_reload_makes_room,
        ),
        claim(
            "who_waits_is_reset_when_a_reload_denies_its_endpoint",
            who_waits_is_reset_when_a_reload_denies_its_endpoint,
        ),
        claim(
            "who_was_silent_before_a_reload_meets_its_rules",
            who_was_silent_before_a_reload_meets_its_rules,
        ),
    ]
}

/// What an endpoint may, of which one waits.
fn waiting(max_sessions: u32, more: &str) -> String {
    format!(
        "[endpoint.\"{NOISY}\"]\nmax_sessions = {max_sessions}\non_limit = \"wait\"\nwait_for = \"60s\"\n{more}"
    )
}

impl World {
    /// Has it read the shipped configuration with these tables.
    #[track_caller]
    fn reload_and(&self, tables: &str) {
        let text = SHIPPED
            .replace("cp.us-east-1.example.internal:443", ORIGIN)
            .replace("[health]\n", &format!("{tables}\n\n[health]\n"));
        self.relay.reload_with(&text).done();
    }
}

fn who_waits_comes_in_when_a_reload_makes_room() {
    let world = echo("makes-room", &waiting(1, ""));
    let open = world.open(NOISY);
    let mut waits = world.knock(NOISY);
    world.wait_waiting("endpoint", 1);
    world.reload_and(&waiting(2, ""));
    let waits = world.node.run(async move {
        waits.exchange(10).await.unwrap();
        waits
    });
    world.assert_waits("endpoint", "admitted", 1);
    world.end_all(vec![open, waits]);
    world.assert_upstream(2);
}

fn who_waits_is_reset_when_a_reload_denies_its_endpoint() {
    let world = echo("no-hope", &waiting(1, ""));
    let open = world.open(NOISY);
    let mut waits = world.knock(NOISY);
    world.wait_waiting("endpoint", 1);
    world.reload_and(&waiting(1, "deny = true"));
    let end = world.node.run(async move { waits.read_to_end().await });
    assert_eq!(end.unwrap(), (Vec::new(), End::Reset));
    world.wait_waiting("endpoint", 0);
    world.assert_refused(NOISY, "policy", 1);
    world.assert_upstream(1);
    world.end(open);
}

fn who_was_silent_before_a_reload_meets_its_rules() {
    let world = echo("silent", "");
    let silent = || world.node.run(Agent::connect(listener())).unwrap();
    let (noisy, quiet) = (silent(), silent());
    let pending = "tollgate_connections_pending";
    world.relay.wait_metric(pending, &[], 2);
    world.reload_and(&format!("[endpoint.\"{NOISY}\"]\ndeny = true\n"));
    let quiet = world.node.run(async move {
        let [mut noisy, mut quiet] = [noisy, quiet];
        noisy.write(&privatelink_header(NOISY)).await.unwrap();
        let end = noisy.read_to_end().await.unwrap();
        assert_eq!(end, (Vec::new(), End::Reset));
        quiet.preface(&[&privatelink_header(QUIET)]).await.unwrap();
        quiet.exchange(10).await.unwrap();
        quiet
    });
    world.assert_refused(NOISY, "policy", 1);
    world.assert_upstream(1);
    world.end(quiet);
}
