use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::address::Hold;
use super::roster::Roster;
use super::snapshot::Choice;
use super::state::{Event, State};
use crate::config::{self, Check, Config, Family, HealthCheck};

const S: Duration = Duration::from_secs(1);

/// An upstream with one target for each priority given, in that order.
fn settings(priorities: &[u32]) -> config::Upstream {
    let text = "[[listener]]\nname = \"l\"\nbind = \"0.0.0.0:1\"\nupstream = \"u\"\ntrusted_peers = [\"10.0.0.0/8\"]\n\
                [[upstream]]\nname = \"u\"\ntargets = [\"a.example:443\"]\n";
    let config = Config::from_str(text, "test").expect("valid");
    let mut settings = config.upstreams[0].clone();
    let targets = priorities.iter().enumerate().map(|(index, priority)| {
        let mut target = settings.targets[0].clone();
        target.host = config::Host::Name(format!("{index}.example").into());
        target.priority = *priority;
        target
    });
    settings.targets = targets.collect();
    settings
}

fn roster(settings: config::Upstream) -> (Roster, Instant) {
    let roster = Roster::new(0, settings, Family::Any, Arc::new(Notify::new()));
    (roster, Instant::now())
}

fn ats(last: &[u8]) -> Vec<SocketAddr> {
    let at = |last: &u8| SocketAddr::from(([10, 0, 0, *last], 443));
    last.iter().map(at).collect()
}

fn resolved(
    roster: &mut Roster,
    target: usize,
    looked_up: bool,
    addresses: &[SocketAddr],
    now: Instant,
) -> bool {
    let changed = roster.resolved(target, looked_up, addresses, now);
    roster.look(now);
    changed
}

/// The last byte of each address of each tier, sorted.
fn tiers(roster: &Roster, now: Instant) -> Vec<Vec<u8>> {
    let last = |choice: &Choice| match choice.address.at.ip() {
        std::net::IpAddr::V4(v4) => v4.octets()[3],
        std::net::IpAddr::V6(v6) => v6.octets()[15],
    };
    let snapshot = roster.snapshot(now);
    let tier = |tier: &Vec<Choice>| {
        let mut tier: Vec<u8> = tier.iter().map(last).collect();
        tier.sort_unstable();
        tier
    };
    snapshot.tiers().iter().map(tier).collect()
}

fn fail(roster: &Roster, last: u8) {
    let member = member(roster, last);
    for _ in 0..3 {
        member.address.connect_failed();
    }
}

fn member(roster: &Roster, last: u8) -> &super::roster::Member {
    let at = ats(&[last])[0];
    let mut members = roster.members().iter();
    members
        .find(|member| member.address.at == at)
        .expect("it is there")
}

#[test]
fn an_address_that_leaves_gets_no_new_session_whatever_its_health() {
    let (mut roster, now) = roster(settings(&[0]));
    resolved(&mut roster, 0, true, &ats(&[1, 2]), now);
    let left = member(&roster, 1).address.clone();
    assert!(resolved(&mut roster, 0, true, &ats(&[2]), now));
    roster.probed(left.at, Ok(()), now);
    assert_eq!(tiers(&roster, now), [[2]]);
    assert!(!left.is_present());
}

#[test]
fn an_address_that_comes_back_while_it_has_sessions_is_the_same() {
    let (mut roster, now) = roster(settings(&[0]));
    resolved(&mut roster, 0, true, &ats(&[1, 2]), now);
    let held = member(&roster, 1).address.clone();
    resolved(&mut roster, 0, true, &ats(&[2]), now);
    resolved(&mut roster, 0, true, &ats(&[1, 2]), now);
    assert!(held.is_present() && Arc::ptr_eq(&held, &member(&roster, 1).address));
    assert_eq!(roster.gone().count(), 0);
    let session = Hold::session(held.clone());
    resolved(&mut roster, 0, true, &ats(&[2]), now);
    let gone: Vec<_> = roster.gone().map(|gone| gone.why.as_str()).collect();
    assert_eq!(
        gone,
        ["left the answers"],
        "shown as long as it has sessions"
    );
    drop(session);
    assert_eq!(roster.gone().count(), 0);
}

#[test]
fn a_state_says_why_it_is_and_is_said_once() {
    let mut settings = settings(&[0]);
    settings.health = Some(HealthCheck {
        check: Check::Tcp,
        interval: S,
        timeout: S,
        rise: 1,
        fall: 1,
        port: None,
    });
    let (mut roster, now) = roster(settings);
    resolved(&mut roster, 0, true, &ats(&[1, 2]), now);
    let at = ats(&[1])[0];
    fail(&roster, 1);
    roster.look(now);
    roster.probed(at, Err("silent".to_owned()), now);
    assert_eq!(member(&roster, 1).why, "silent");
    roster.look(now + 10 * S);
    assert_eq!(
        member(&roster, 1).why,
        "silent",
        "no longer ejected, and unhealthy still"
    );
    fail(&roster, 1);
    roster.look(now + 11 * S);
    roster.probed(at, Ok(()), now + 12 * S);
    let why = &member(&roster, 1).why;
    assert!(why.contains("left alone for"), "{why}");
    let states: Vec<State> = roster
        .take_events()
        .into_iter()
        .map(|event| match event {
            Event::Address { state, .. } => state,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(states, [State::Ejected, State::Unhealthy, State::Ejected]);
}

#[test]
fn the_same_answer_changes_nothing() {
    let (mut roster, now) = roster(settings(&[0]));
    assert!(resolved(&mut roster, 0, true, &ats(&[1, 2]), now));
    assert!(!resolved(&mut roster, 0, true, &ats(&[1, 2]), now + S));
    assert_eq!(roster.take_events(), []);
}

#[test]
fn failures_in_a_row_eject_for_growing_times() {
    let (mut roster, now) = roster(settings(&[0]));
    resolved(&mut roster, 0, true, &ats(&[1, 2, 3]), now);
    let mut at = now;
    for pause in [10, 20, 40, 80, 160, 300, 300] {
        fail(&roster, 1);
        roster.look(at);
        assert_eq!(tiers(&roster, at), [vec![2, 3], vec![1]]);
        assert_eq!(roster.next(), Some(at + pause * S));
        at += pause * S;
        roster.look(at);
        assert_eq!(
            tiers(&roster, at),
            [[1, 2, 3]],
            "tried again after {pause} s"
        );
    }
    let events = roster.take_events();
    let Event::Address { state, why, .. } = &events[0] else {
        panic!("{events:?}")
    };
    assert_eq!(*state, State::Ejected);
    assert_eq!(why, "3 connects failed in a row; left alone for 10s");
    at += 300 * S;
    fail(&roster, 1);
    roster.look(at);
    assert_eq!(
        roster.next(),
        Some(at + 10 * S),
        "it was good for long enough"
    );
}

#[test]
fn who_comes_back_starts_slowly() {
    let (mut roster, now) = roster(settings(&[0]));
    resolved(&mut roster, 0, true, &ats(&[1, 2, 3]), now);
    let slow = |roster: &Roster, at: Instant| {
        let snapshot = roster.snapshot(at);
        let slow = snapshot.tiers()[0]
            .iter()
            .filter(|choice| choice.slow_start.is_some());
        slow.count()
    };
    assert_eq!(
        slow(&roster, now),
        0,
        "nobody has to wait for the first answer"
    );
    fail(&roster, 1);
    roster.look(now);
    roster.look(now + 10 * S);
    assert_eq!(slow(&roster, now + 10 * S), 1);
    assert_eq!(slow(&roster, now + 20 * S), 0);
    resolved(&mut roster, 0, true, &ats(&[1, 2, 3, 4]), now + 30 * S);
    assert_eq!(
        slow(&roster, now + 30 * S),
        1,
        "nor does a new one get all at once"
    );
}

#[test]
fn addresses_of_the_first_answers_start_alike() {
    let (mut roster, now) = roster(settings(&[0]));
    resolved(&mut roster, 0, true, &ats(&[1]), now);
    resolved(&mut roster, 0, true, &ats(&[1, 2]), now + S);
    let snapshot = roster.snapshot(now + S);
    let mut choices = snapshot.tiers().iter().flatten();
    assert!(choices.all(|choice| choice.slow_start.is_none()));
}

#[test]
fn the_last_ones_are_never_ejected() {
    let (mut roster, now) = roster(settings(&[0]));
    resolved(&mut roster, 0, true, &ats(&[1, 2, 3, 4]), now);
    for last in [1, 2] {
        fail(&roster, last);
    }
    roster.look(now);
    assert_eq!(tiers(&roster, now), [[3, 4], [1, 2]]);
    fail(&roster, 3);
    roster.look(now);
    assert_eq!(
        tiers(&roster, now),
        [[1, 2, 3, 4]],
        "a quarter is less than 30 %"
    );
    assert!(roster.take_events().contains(&Event::Panic(true)));
    fail(&roster, 4);
    roster.look(now);
    assert_eq!(tiers(&roster, now), [[1, 2, 3, 4]]);
    roster.look(now + 10 * S);
    assert_eq!(roster.take_events().last(), Some(&Event::Panic(false)));
}

#[test]
fn health_checks_rise_and_fall() {
    let mut settings = settings(&[0]);
    settings.health = Some(HealthCheck {
        check: Check::Tcp,
        interval: S,
        timeout: S,
        rise: 2,
        fall: 3,
        port: None,
    });
    let (mut roster, now) = roster(settings);
    resolved(&mut roster, 0, true, &ats(&[1, 2]), now);
    let at = ats(&[1])[0];
    let bad = || Err("refused".to_owned());
    for (result, usable) in [
        (bad(), true),
        (bad(), true),
        (Ok(()), true),
        (bad(), true),
        (bad(), true),
        (bad(), false),
        (Ok(()), false),
        (bad(), false),
        (Ok(()), false),
        (Ok(()), true),
    ] {
        roster.probed(at, result, now);
        assert_eq!(member(&roster, 1).is_usable(), usable);
    }
    let states: Vec<State> = roster
        .take_events()
        .iter()
        .map(|event| match event {
            Event::Address { state, .. } => *state,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(states, [State::Unhealthy, State::SlowStart]);
}

#[test]
fn the_next_group_takes_over_and_the_first_comes_back_with_hysteresis() {
    let (mut roster, now) = roster(settings(&[0, 1]));
    resolved(&mut roster, 0, true, &ats(&[1, 2, 3]), now);
    resolved(&mut roster, 1, true, &ats(&[11, 12]), now);
    assert_eq!(tiers(&roster, now), [vec![1, 2, 3], vec![11, 12]]);
    roster.take_events();
    fail(&roster, 1);
    roster.look(now);
    assert_eq!(roster.serving(), 0, "two of three are more than half");
    fail(&roster, 2);
    roster.look(now + S);
    assert_eq!(
        tiers(&roster, now),
        [vec![11, 12], vec![3], vec![1, 2]],
        "what is left of the first group is tried next"
    );
    // After ten seconds 1 and 2 are tried again: all are usable, but not for long enough.
    roster.look(now + 12 * S);
    assert_eq!((roster.share(0), roster.serving()), (Some(100), 1));
    assert_eq!(roster.next(), Some(now + 42 * S));
    fail(&roster, 1);
    roster.look(now + 20 * S);
    roster.look(now + 50 * S);
    assert_eq!(roster.serving(), 1, "the time began anew");
    roster.look(now + 80 * S);
    assert_eq!(roster.serving(), 0);
    assert_eq!(roster.counts().failovers, 2);
}

#[test]
fn a_better_group_that_never_failed_serves_as_soon_as_it_is_there() {
    let (mut roster, now) = roster(settings(&[0, 1]));
    resolved(&mut roster, 1, true, &ats(&[11]), now);
    assert_eq!(tiers(&roster, now), [[11]], "rather than nobody");
    resolved(&mut roster, 0, true, &ats(&[1]), now);
    assert_eq!(roster.serving(), 0);
}

#[test]
fn an_empty_group_hands_over_and_takes_over_again() {
    let (mut roster, now) = roster(settings(&[0, 1]));
    resolved(&mut roster, 0, true, &ats(&[1]), now);
    resolved(&mut roster, 1, true, &ats(&[11]), now);
    resolved(&mut roster, 0, true, &[], now);
    assert_eq!((roster.serving(), roster.share(0)), (1, None));
    resolved(&mut roster, 0, true, &ats(&[2]), now);
    assert_eq!(roster.serving(), 1);
    roster.look(now + 30 * S);
    assert_eq!(roster.serving(), 0);
}

#[test]
fn where_no_group_has_enough_the_fullest_serves() {
    let (mut roster, now) = roster(settings(&[0, 1, 2]));
    resolved(&mut roster, 0, true, &ats(&[1]), now);
    resolved(&mut roster, 1, true, &ats(&[11, 12, 13]), now);
    resolved(&mut roster, 2, true, &ats(&[21]), now);
    for last in [1, 11, 12, 21] {
        fail(&roster, last);
    }
    roster.look(now);
    assert_eq!(roster.serving(), 1);
    assert_eq!(tiers(&roster, now)[0], [13]);
    fail(&roster, 13);
    roster.look(now);
    let every = [tiers(&roster, now).concat().len(), roster.members().len()];
    assert_eq!(every, [5, 5], "and nothing is given up");
}

#[test]
fn the_family_asked_for_is_used_first() {
    let mut both = ats(&[1]);
    both.push("[fd00::2]:443".parse().expect("an address"));
    for (family, wanted) in [
        (Family::Any, vec![vec![1, 2]]),
        (Family::Ipv4First, vec![vec![1], vec![2]]),
        (Family::Ipv6First, vec![vec![2], vec![1]]),
    ] {
        let now = Instant::now();
        let mut roster = Roster::new(0, settings(&[0]), family, Arc::default());
        resolved(&mut roster, 0, true, &both, now);
        assert_eq!(tiers(&roster, now), wanted);
    }
}

#[test]
fn an_address_of_two_targets_stands_once() {
    let (mut roster, now) = roster(settings(&[0, 1]));
    resolved(&mut roster, 0, true, &ats(&[1]), now);
    resolved(&mut roster, 1, true, &ats(&[1, 2]), now);
    assert_eq!(tiers(&roster, now), [[1], [2]]);
    resolved(&mut roster, 0, true, &[], now);
    assert_eq!(
        member(&roster, 1).priority,
        1,
        "the second target still has it"
    );
    assert!(member(&roster, 1).address.is_present());
}
