//! `reload`, `config diff`, `config show`.

use libtest_mimic::Trial;

use super::NOBODY;
use crate::{
    claim,
    harness::{origin::Manner, relay::Said},
    scenarios::world::{ORIGIN, SHIPPED, World, exchange},
};

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        claim(
            "diff_says_what_reload_then_does",
            diff_says_what_reload_then_does,
        ),
        claim(
            "a_file_that_is_wrong_or_gone_changes_nothing_and_the_code_says_which",
            a_file_that_is_wrong_or_gone_changes_nothing_and_the_code_says_which,
        ),
        claim(
            "only_root_and_the_relays_own_user_reload_and_read_what_is_in_force",
            only_root_and_the_relays_own_user_reload_and_read_what_is_in_force,
        ),
    ]
}

const RELOAD: [&str; 3] = ["reload", "--config", "@CONFIG@"];
const DIFF: [&str; 4] = ["config", "diff", "--config", "@CONFIG@"];
const SHOW: [&str; 4] = ["config", "show", "--config", "@CONFIG@"];

/// The shipped configuration before the origin, with these lines at its top.
fn config(top: &str) -> String {
    let text = SHIPPED.replace("cp.us-east-1.example.internal:443", ORIGIN);
    format!("{top}\n{text}")
}

#[track_caller]
fn ended(said: &Said, code: i32, parts: &[&str]) {
    let text = format!("{}{}", said.out, said.err);
    assert_eq!(said.code, code, "{text}");
    for part in parts {
        assert!(text.contains(part), "{part:?} in {text}");
    }
}

fn diff_says_what_reload_then_does() {
    let world = World::new("cli-reload", Manner::Echo);
    let relay = &world.relay;
    ended(&relay.tollgate(&DIFF), 0, &["would change nothing"]);
    ended(&relay.tollgate(&RELOAD), 0, &["nothing changed"]);
    let top = "workers = 1\n[drain]\ndeadline = \"7s\"\n[[upstream]]\nname = \"spare\"\ntargets = [\"10.30.0.2:444\"]";
    let workers = "  workers (with a restart)\n";
    // A default that follows another key changes with it.
    let changes = "  drain.deadline\n    - \"5m\"\n    + \"7s\"\n  drain.spread\n    - \"1m\"\n    + \"1s 400ms\"\n";
    let spare = "  upstream.spare\n    + { targets = [\"10.30.0.2:444\"] }\n";
    // The harness gives every relay as many workers as there are cores; two at least in all of them.
    let two = std::thread::available_parallelism().is_ok_and(|cores| cores.get() > 1);
    relay.rewrite_config(&config(top));
    let said = relay.tollgate(&DIFF);
    ended(&said, 1, &[changes, spare]);
    assert_eq!(said.out.contains(workers), two, "{}", said.out);
    ended(&relay.tollgate(&SHOW), 0, &["drain.deadline = \"5m\"\n"]);
    let said = relay.tollgate(&RELOAD);
    ended(&said, 0, &["3 keys changed", changes, spare]);
    assert_eq!(
        said.out.contains("kept until a restart: workers"),
        two,
        "{}",
        said.out
    );
    ended(&relay.tollgate(&DIFF), 0, &["would change nothing"]);
    ended(&relay.tollgate(&SHOW), 0, &["drain.deadline = \"7s\"\n"]);
    exchange(&world.node);
    world.assert_at_rest();
}

fn a_file_that_is_wrong_or_gone_changes_nothing_and_the_code_says_which() {
    let world = World::new("cli-reload-wrong", Manner::Echo);
    let relay = &world.relay;
    let failed = [("result", "failed")];
    relay.rewrite_config(&config("[drain]\ndeadline = \"soon\""));
    ended(&relay.tollgate(&DIFF), 78, &["\"soon\" is not a duration"]);
    let said = relay.tollgate(&RELOAD);
    ended(&said, 78, &["\"soon\" is not a duration"]);
    assert!(!said.err.contains("error: error"), "{}", said.err);
    relay.wait_metric("tollgate_config_reloads_total", &failed, 1);
    std::fs::remove_file(relay.home().config()).unwrap();
    ended(&relay.tollgate(&DIFF), 66, &["tollgate.toml"]);
    ended(&relay.tollgate(&RELOAD), 66, &["tollgate.toml"]);
    relay.wait_metric("tollgate_config_reloads_total", &failed, 2);
    exchange(&world.node);
    // A file that nobody runs with is no other relay's reload.
    let other = relay.folder().join("other.toml");
    std::fs::write(&other, "workers = \"many\"").unwrap();
    let other = other.to_str().unwrap();
    ended(
        &relay.tollgate(&["reload", "--config", other]),
        78,
        &["other.toml"],
    );
    relay.wait_metric("tollgate_config_reloads_total", &failed, 2);
    relay.rewrite_config(&config(""));
    ended(&relay.tollgate(&RELOAD), 0, &["nothing changed"]);
    world.assert_at_rest();
    relay.kill();
    ended(
        &relay.tollgate(&RELOAD),
        69,
        &["no relay answers", "start it"],
    );
    ended(&relay.tollgate(&DIFF), 69, &["no relay answers"]);
}

fn only_root_and_the_relays_own_user_reload_and_read_what_is_in_force() {
    let world = World::new("cli-reload-who", Manner::Echo);
    let home = world.relay.home();
    for command in [&RELOAD[..], &DIFF, &SHOW] {
        let said = home.tollgate_through(&world.relay_host, &NOBODY, command);
        ended(&said, 77, &["only root and the relay's own user"]);
    }
    let applied = [("result", "applied")];
    assert_eq!(
        world
            .relay
            .metric("tollgate_config_reloads_total", &applied),
        0
    );
}
