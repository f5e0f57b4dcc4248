//! What a worker does beside its connections, a little at a time.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::hall::{Gear, Hall};
use crate::reactor::Reactor;
use crate::relay::engine::{Engine, Review};
use crate::upstream::connect::Dialer;

/// How often a worker looks at its sessions' addresses where nothing changes, and asks the kernel about some.
const REVIEW: Duration = Duration::from_secs(15);

/// Sessions that the kernel is asked about at a time, per upstream: a call each.
const MEASURED: usize = 64;

/// Looks, for ever, at where the sessions on an upstream are: at once when its addresses change.
pub(super) async fn review(dialer: Rc<Dialer>, reactor: Rc<Reactor>, engine: Rc<RefCell<Engine>>) {
    let mut changes = dialer.upstream().changes();
    loop {
        let snapshot = changes.borrow_and_update().clone();
        {
            let mut engine = engine.borrow_mut();
            let chance = || dialer.chance();
            let review = Review::new(dialer.upstream(), &snapshot, &chance);
            engine.begin(Instant::now());
            engine.review(&review);
            engine.measure(MEASURED);
        }
        // `changed` fails only when the upstream is gone, and the dialer has it.
        let _ = reactor
            .timeout_at(Instant::now() + REVIEW, changes.changed())
            .await;
    }
}

/// Sessions whose going on is recorded at a time: two calls each.
const RECORDED: usize = 64;

/// The pause between them: so many sessions that even 100,000 have a record each half minute, and no message waits long behind them.
const RECORDING: Duration = Duration::from_millis(20);

/// Records, for ever, how sessions go on: each once in an interval, and evenly, whenever they were opened.
pub(super) async fn record(interval: Duration, gear: Gear) {
    let mut before = Instant::now();
    let mut owed = 0;
    loop {
        let places = gear.engine.borrow().places().max(RECORDED);
        let pause = interval.mul_f64(RECORDED as f64 / places as f64);
        let until = before + pause.clamp(RECORDING, Duration::from_secs(1));
        gear.reactor.sleep_until(until).await;
        let now = Instant::now();
        let mut engine = gear.engine.borrow_mut();
        let passed = now.saturating_duration_since(before).as_nanos();
        let length = interval.as_nanos().max(1);
        owed += passed * engine.places() as u128;
        let due = usize::try_from(owed / length).unwrap_or(usize::MAX);
        owed %= length;
        before = now;
        engine.begin(now);
        engine.record(due.min(RECORDED), interval / 2);
    }
}

/// Forgets, for ever, accounts that left memory.
pub(super) async fn sweep(hall: Rc<Hall>) {
    loop {
        let until = Instant::now() + REVIEW;
        hall.gear().reactor.sleep_until(until).await;
        hall.sweep();
    }
}
