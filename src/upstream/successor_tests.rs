//! An upstream that follows another with other settings.

use std::net::SocketAddr;

use tokio::time::Instant;

use super::Upstream;
use super::address::Hold;
use crate::config::{self, Config, Family};

fn settings(targets: &str, more: &str) -> config::Upstream {
    let text = format!(
        "[[listener]]\nname = \"l\"\nbind = \"0.0.0.0:1\"\nupstream = \"u\"\nproxy_protocol = \"off\"\n\
         [[upstream]]\nname = \"u\"\ntargets = [{targets}]\n{more}\n"
    );
    Config::from_str(&text, "test").expect("valid").upstreams[0].clone()
}

/// Answers a look-up of a target with one address.
fn answer(upstream: &Upstream, target: usize, last: u8) {
    upstream.update(target, |state| {
        state.looked_up = true;
        state.answered = Some(Instant::now());
        state.addresses = vec![SocketAddr::from(([10, 0, 0, last], 443))];
    });
}

fn shown(upstream: &Upstream) -> Vec<String> {
    let snapshot = upstream.snapshot();
    let choices = snapshot.tiers().iter().flatten();
    choices
        .map(|choice| choice.address.at.to_string())
        .collect()
}

#[tokio::test]
async fn what_is_known_of_targets_and_addresses_goes_on_and_what_was_counted_too() {
    let before = Upstream::new(
        7,
        &settings("\"a.example:443\", \"b.example:443\"", ""),
        Family::Any,
    );
    answer(&before, 0, 1);
    answer(&before, 1, 2);
    let address = before.snapshot().tiers()[0][0].address.clone();
    let session = Hold::session(address.clone());
    let other = settings(
        "\"c.example:443\", \"a.example:443\"",
        "connect_timeout = \"2s\"",
    );
    let after = before.successor(&other, Family::Any);
    assert_eq!(
        (after.id, shown(&after)),
        (7, shown(&before)),
        "nothing changes before it is told to"
    );
    after.take_up();
    assert_eq!(shown(&after), ["10.0.0.1:443"]);
    let same = after.snapshot().tiers()[0][0].address.clone();
    assert!(std::sync::Arc::ptr_eq(&same, &address) && same.sessions() == 1);
    assert!(!after.snapshot().looked_up, "c.example is new");
    let gone = after.standing().gone;
    assert_eq!(gone.len(), 0, "nobody is on b.example");
    drop(session);
    assert!(std::sync::Arc::ptr_eq(&before.dialled, &after.dialled));
}

#[tokio::test]
async fn an_address_that_is_in_no_target_any_more_has_left_its_sessions() {
    let before = Upstream::new(0, &settings("\"a.example:443\"", ""), Family::Any);
    answer(&before, 0, 1);
    let address = before.snapshot().tiers()[0][0].address.clone();
    let _session = Hold::session(address.clone());
    let after = before.successor(&settings("\"10.0.0.9:443\"", ""), Family::Any);
    assert!(address.is_present());
    after.take_up();
    assert!(!address.is_present());
    assert_eq!(shown(&after), ["10.0.0.9:443"]);
    assert_eq!(after.standing().gone.len(), 1, "it is still shown");
}

#[tokio::test]
async fn an_upstream_with_another_name_starts_from_what_others_know_of_its_targets() {
    let before = Upstream::new(0, &settings("\"a.example:443\"", ""), Family::Any);
    answer(&before, 0, 1);
    let known = |target: &config::Target| before.knows(target);
    let renamed = Upstream::knowing(1, &settings("\"a.example:443\"", ""), Family::Any, known);
    assert_eq!(shown(&renamed), ["10.0.0.1:443"]);
    let (addresses, _) = renamed.remembered(0).expect("for whoever looks it up");
    assert_eq!(addresses.len(), 1);
    let other_port = Upstream::knowing(2, &settings("\"a.example:444\"", ""), Family::Any, known);
    assert_eq!(shown(&other_port), Vec::<String>::new());
}
