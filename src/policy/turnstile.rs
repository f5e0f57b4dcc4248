//! Where those who come are counted in, one by one, and beyond a limit turned away or asked to wait.
//!
//! Who waits stands in line over all workers: the first tries, the others wait for their place at the front.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Instant;

use tokio::sync::{Mutex, Notify};

use super::bucket::{Bucket, Rate, nanos};
use super::rules::Entry;
use crate::places::{Places, Taken};
use crate::reactor::Reactor;

/// See the module.
#[derive(Debug)]
pub struct Turnstile {
    places: Arc<Places>,
    arrivals: Bucket,
    /// The first in line holds it. First come, first served (tokio says so of its locks).
    front: Mutex<()>,
    waiting: AtomicUsize,
}

/// Somebody is in. If no session comes of it, it was nothing.
#[derive(Debug)]
pub struct Entered {
    turnstile: Arc<Turnstile>,
    taken: Option<Taken>,
    /// By which it is given back.
    rate: Option<Rate>,
}

/// What there is not enough of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Full {
    /// As many sessions are open as may be.
    Places,
    /// They come too fast; until then.
    Rate(Instant),
}

/// One who waits in line, or tries to.
#[derive(Debug)]
pub(super) struct InLine<'a>(&'a Turnstile);

impl Drop for InLine<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Relaxed);
    }
}

impl Turnstile {
    /// At these places, which may be others' too: then only those who come in here wait.
    #[must_use]
    pub fn at(places: Arc<Places>) -> Arc<Self> {
        Arc::new(Self {
            places,
            arrivals: Bucket::default(),
            front: Mutex::default(),
            waiting: AtomicUsize::new(0),
        })
    }

    /// The places.
    #[must_use]
    pub fn places(&self) -> &Arc<Places> {
        &self.places
    }

    /// How many wait.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.waiting.load(Relaxed)
    }

    /// Whether nothing would be lost if it were made anew: nobody is in or waits, and all that came was earned.
    #[must_use]
    pub fn is_idle(&self, now: Instant) -> bool {
        self.places.taken() == 0 && self.waiting() == 0 && self.arrivals.is_full(nanos(now))
    }

    /// Comes in if that is possible now.
    ///
    /// # Errors
    /// What there is not enough of.
    pub fn enter(self: &Arc<Self>, now: Instant, entry: &Entry) -> Result<Entered, Full> {
        if self.places.is_full() {
            return Err(Full::Places);
        }
        // The place last: one that is given back wakes whoever waits for one, who would look again, and again, for as long as the rate is not earned.
        if let Some(rate) = entry.rate {
            let turn = self.arrivals.take(nanos(now), rate, 1);
            turn.map_err(|wait| Full::Rate(now + wait))?;
        }
        let mut entered = Entered {
            turnstile: self.clone(),
            taken: None,
            rate: entry.rate,
        };
        entered.taken = Some(self.places.take().ok_or(Full::Places)?);
        Ok(entered)
    }

    /// What there is not enough of for those in line.
    #[must_use]
    pub fn lacks(&self, now: Instant) -> Full {
        match self.places.is_full() {
            true => Full::Places,
            false => Full::Rate(now),
        }
    }

    /// A place in line, where fewer than `most` have one.
    pub(super) fn line_up(&self, most: usize) -> Option<InLine<'_>> {
        let one_more = |waiting| (waiting < most).then_some(waiting + 1);
        let before = self.waiting.fetch_update(Relaxed, Relaxed, one_more);
        before.ok().map(|_| InLine(self))
    }

    /// Waits, for ever, until its turn comes and it is in; `entry` says by what, or that there is no more point in it. `changed` is rung when it
    /// may say something else than before.
    pub(super) async fn turn<E>(
        self: &Arc<Self>,
        reactor: &Reactor,
        changed: &Notify,
        entry: impl Fn() -> Result<Entry, E>,
    ) -> Result<Entered, E> {
        let _front = self.front.lock().await;
        let wanted = self.places.want();
        loop {
            let change = changed.notified();
            let now = Instant::now();
            let until = match self.enter(now, &entry()?) {
                Ok(entered) => return Ok(entered),
                Err(Full::Places) => None,
                Err(Full::Rate(until)) => Some(until),
            };
            let earned = async {
                match until {
                    Some(until) => reactor.sleep_until(until).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = wanted.freed() => {}
                () = earned => {}
                () = change => {}
            }
        }
    }
}

impl Entered {
    /// A session came of it, which keeps the place for as long as it lasts.
    pub fn keep(mut self) -> Option<Taken> {
        self.rate = None;
        self.taken.take()
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        if let Some(rate) = self.rate {
            let now = nanos(Instant::now());
            self.turnstile.arrivals.give_back(now, rate, 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::num::NonZeroU64;

    use super::*;
    use crate::config::OnLimit;

    fn entry(rate: Option<(u64, u64)>) -> Entry {
        Entry {
            most: None,
            rate: rate.map(|(per_second, burst)| Rate {
                per_second: NonZeroU64::new(per_second).unwrap(),
                burst: NonZeroU64::new(burst).unwrap(),
            }),
            on_limit: OnLimit::Refuse,
        }
    }

    #[test]
    fn who_waits_for_the_rate_looks_once_and_sleeps() {
        let turnstile = Turnstile::at(Places::new(5));
        let reactor = Reactor::new(None).unwrap();
        let slow = || entry(Some((1, 1)));
        let _first = turnstile.enter(Instant::now(), &slow()).unwrap();
        let (changed, looks) = (Notify::new(), std::cell::Cell::new(0));
        let mut turn = std::pin::pin!(turnstile.turn(&reactor, &changed, || {
            looks.set(looks.get() + 1);
            assert!(looks.get() < 10, "it wakes itself");
            Ok::<_, ()>(slow())
        }));
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        assert!(turn.as_mut().poll(&mut context).is_pending());
        assert!(turn.as_mut().poll(&mut context).is_pending());
        assert_eq!(looks.get(), 1);
    }

    #[test]
    fn who_does_not_become_a_session_has_taken_nothing() {
        let turnstile = Turnstile::at(Places::new(5));
        let now = Instant::now();
        let slow = entry(Some((1, 2)));
        for _ in 0..10 {
            drop(turnstile.enter(now, &slow).unwrap());
        }
        let kept = turnstile.enter(now, &slow).unwrap().keep();
        assert_eq!(turnstile.places().taken(), 1);
        let _other = turnstile.enter(now, &slow).unwrap();
        let Err(Full::Rate(until)) = turnstile.enter(now, &slow) else {
            panic!("the third in a moment")
        };
        assert!(until > now);
        assert_eq!(turnstile.places().taken(), 2, "the third has no place");
        drop(kept);
        assert_eq!(turnstile.places().taken(), 1);
    }

    #[test]
    fn where_all_places_are_taken_nothing_is_taken_of_the_rate() {
        let turnstile = Turnstile::at(Places::new(1));
        let now = Instant::now();
        let slow = entry(Some((1, 2)));
        let _in = turnstile.enter(now, &slow).unwrap();
        for _ in 0..5 {
            assert_eq!(turnstile.enter(now, &slow).unwrap_err(), Full::Places);
        }
        turnstile.places().set_most(2);
        assert!(turnstile.enter(now, &slow).is_ok());
    }

    #[test]
    fn so_many_stand_in_line_and_no_more() {
        let turnstile = Turnstile::at(Places::new(1));
        let first = turnstile.line_up(2).unwrap();
        let _second = turnstile.line_up(2).unwrap();
        assert!(turnstile.line_up(2).is_none());
        drop(first);
        assert!(turnstile.line_up(2).is_some());
        assert!(!turnstile.is_idle(Instant::now()));
    }
}
