//! Connections opened before a client needs one: a session that takes one saves the round trip of its own dial.
//!
//! Each worker keeps a few per upstream, as many as its recent sessions would have used up while a new one is being made. They are
//! spread over the addresses by the upstream's balance, and none is kept that is too old, was closed by the upstream, or stands on an
//! address that serves no longer. An upstream that speaks first keeps its word: what it said waits in the socket.
//!
//! **What is guaranteed.** A connection is looked at when it is taken: one that is dead by then is never used. One that dies just
//! then, before a byte of the client was sent, is replaced by a fresh dial (`session`); once a byte was sent nobody can know
//! what the upstream did with it, and its end is the session's end.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};

use super::address::{Address, Hold};
use super::connect::{Connected, Dialer};
use super::snapshot::Snapshot;
use super::{AheadOutcome, Upstream};
use crate::config::Ahead;
use crate::leg;
use crate::reactor::Watched;

/// How long no connection is dialled ahead after one could not be made, or was ended as soon as it was.
const REST: Duration = Duration::from_secs(1);

/// The longest of these pauses: they double while the upstream goes on like that.
const LONGEST_REST: Duration = Duration::from_secs(30);

/// After how long without an answer a connection that waits counts as dead: it is asked every second.
const PATIENCE: Duration = Duration::from_secs(3);

/// One worker's connections that wait for a session, in the order of their making.
#[derive(Debug)]
pub struct Pool {
    settings: Ahead,
    waiting: RefCell<VecDeque<Waiting>>,
    rate: Rate,
    /// Wakes the keeper.
    keeper: RefCell<Option<Waker>>,
    /// A session asked since the keeper last looked.
    asked: Cell<bool>,
    /// One was taken alive, or lived its time.
    settled: Cell<bool>,
}

/// A connection that waits.
#[derive(Debug)]
struct Waiting {
    socket: Watched,
    hold: Hold,
    born: Instant,
    _counted: Counted,
}

/// Counts a connection as long as it waits: one that is being made does not count yet.
#[derive(Debug)]
struct Counted(Arc<Upstream>);

impl Counted {
    fn new(upstream: &Arc<Upstream>) -> Self {
        upstream.dialled.waiting.fetch_add(1, Relaxed);
        Self(upstream.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dialled.waiting.fetch_sub(1, Relaxed);
    }
}

impl Pool {
    /// An empty pool.
    #[must_use]
    pub fn new(settings: Ahead) -> Self {
        Self {
            settings,
            waiting: RefCell::default(),
            rate: Rate::default(),
            keeper: RefCell::default(),
            asked: Cell::new(false),
            settled: Cell::new(false),
        }
    }

    /// One for a session, as its balance wants it; `None`: there is none.
    pub(super) fn take(&self, dialer: &Dialer, key: u64) -> Option<Connected> {
        let now = Instant::now();
        self.rate.session(now);
        self.asked.set(true);
        if let Some(keeper) = self.keeper.borrow_mut().take() {
            keeper.wake();
        }
        let snapshot = dialer.upstream.snapshot();
        // The hash leaves no choice; else the balance was asked when they were dialled.
        let wanted = match dialer.balancer.is_sticky() {
            true => {
                let mut picks = dialer.balancer.picks(snapshot.clone(), key);
                Some(dialer.balancer.next(&mut picks, now)?)
            }
            false => None,
        };
        while let Some(waiting) = self.remove_best(&snapshot, wanted.as_ref(), now) {
            if is_alive(&waiting.socket) {
                dialer.count(AheadOutcome::Taken);
                self.settled.set(true);
                return Some(Connected {
                    socket: waiting.socket,
                    hold: waiting.hold.taken(),
                    ahead: true,
                });
            }
            dialer.count(AheadOutcome::Stale);
        }
        dialer.count(AheadOutcome::Missed);
        None
    }

    /// The oldest on the address that has the fewest sessions.
    fn remove_best(
        &self,
        snapshot: &Snapshot,
        wanted: Option<&Arc<Address>>,
        now: Instant,
    ) -> Option<Waiting> {
        let mut waiting = self.waiting.borrow_mut();
        let fits = |waiting: &Waiting| {
            let address = waiting.hold.address();
            now < waiting.born + self.settings.max_age
                && wanted.is_none_or(|wanted| Arc::ptr_eq(wanted, address))
                && snapshot.serves(address)
        };
        let fitting = waiting.iter().enumerate().filter(|(_, one)| fits(one));
        let (index, _) = fitting.min_by_key(|(_, one)| one.hold.address().sessions())?;
        waiting.remove(index)
    }

    /// Keeps it filled and fresh, for ever; empties it when dropped.
    pub(super) async fn keep(&self, dialer: &Dialer) {
        let _emptied = Emptied(self);
        let mut changes = dialer.upstream.changes();
        let mut dialling: Vec<Pin<Box<dyn Future<Output = bool> + '_>>> = Vec::new();
        let (mut rest_until, mut rest) = (None, REST);
        loop {
            let now = Instant::now();
            self.asked.set(false);
            let snapshot = changes.borrow_and_update().clone();
            if self.weed(dialer, &snapshot, now) {
                // Longer each time, or an upstream that has no room would be dialled for ever as fast as it can refuse.
                rest_until = Some(now + rest);
                rest = (rest * 2).min(LONGEST_REST);
            } else if self.settled.take() {
                rest = REST;
            }
            if rest_until.is_none_or(|until| until <= now) {
                let there = self.waiting.borrow().len() + dialling.len();
                for _ in there..self.wanted(&snapshot, now) {
                    dialling.push(Box::pin(self.dial_one(dialer, snapshot.clone())));
                }
            }
            let born = self.waiting.borrow().front().map(|oldest| oldest.born);
            let oldest = born.map(|born| born + self.settings.max_age);
            let until = [oldest, rest_until.filter(|until| *until > now)];
            // Once in a while all the same: the rate falls without anybody telling.
            let until = until.into_iter().flatten().min();
            let until = until.map_or(now + self.settings.max_age, |at| {
                at.min(now + self.settings.max_age)
            });
            let event = async {
                tokio::select! {
                    made = super::connect::first_of(&mut dialling), if !dialling.is_empty() => Some(made),
                    // Fails only when the upstream is gone, and the dialer has it.
                    _ = changes.changed() => None,
                    () = self.something() => None,
                }
            };
            if let Some(Some(false)) = dialer.reactor.timeout_at(until, event).await {
                rest_until = Some(Instant::now() + REST);
            }
        }
    }

    /// One connection more, where the balance wants it. `false`: it could not be made.
    async fn dial_one(&self, dialer: &Dialer, snapshot: Arc<Snapshot>) -> bool {
        // For the hash: over all the addresses, as endpoints are.
        let key = (dialer.balancer.fraction() * 9_007_199_254_740_992.0) as u64;
        let mut picks = dialer.balancer.picks(snapshot, key);
        let now = Instant::now();
        let Some(address) = dialer.balancer.next(&mut picks, now) else {
            return false;
        };
        let deadline = now + dialer.upstream.settings.connect_timeout;
        match dialer
            .try_address(Hold::ahead(address.clone()), deadline)
            .await
        {
            Ok(Connected { socket, hold, .. }) => {
                let born = Instant::now();
                // Fails for no connected socket; without it a dead address is found out when somebody needs it.
                let _ = leg::watch_idle(&socket, PATIENCE);
                let waiting = Waiting {
                    socket,
                    hold,
                    born,
                    _counted: Counted::new(&dialer.upstream),
                };
                self.waiting.borrow_mut().push_back(waiting);
                true
            }
            Err(error) => {
                dialer.failed(&address, &error);
                dialer.count(AheadOutcome::Failed);
                false
            }
        }
    }

    /// How many there should be: what recent sessions would take while another is being made, twice over, and some for chance.
    fn wanted(&self, snapshot: &Snapshot, now: Instant) -> usize {
        let Some(tier) = snapshot.tiers().first() else {
            return 0;
        };
        let slowest = tier
            .iter()
            .filter_map(|choice| choice.address.connect_time());
        let making = slowest.max().unwrap_or(Duration::from_millis(100));
        let expected = self.rate.per_second(now) * making.as_secs_f64() * 2.0;
        // Arrivals scatter by the root of their number (Poisson): three times that is enough 999 times out of a thousand.
        let wanted = (expected + 3.0 * expected.sqrt()).ceil();
        (wanted as usize).clamp(self.settings.min, self.settings.max)
    }

    /// Closes what is too old, was closed, or stands on an address that serves no longer.
    /// Returns whether the upstream had no patience at all with one of them: then others would fare no better.
    fn weed(&self, dialer: &Dialer, snapshot: &Snapshot, now: Instant) -> bool {
        let mut unwelcome = false;
        self.waiting.borrow_mut().retain(|waiting| {
            if waiting.socket.has_ended() {
                dialer.count(AheadOutcome::Stale);
                if now < waiting.born + REST {
                    unwelcome = true;
                    dialer.unwelcome(waiting.hold.address());
                }
                return false;
            }
            let stays = now < waiting.born + self.settings.max_age
                && snapshot.serves(waiting.hold.address());
            if !stays {
                self.settled.set(true);
                waiting.let_go();
                dialer.count(AheadOutcome::Expired);
            }
            stays
        });
        unwelcome
    }

    /// Waits until a session asked, or the end of one of those that wait.
    async fn something(&self) {
        poll_fn(|context| {
            if self.asked.get() {
                return Poll::Ready(());
            }
            for waiting in self.waiting.borrow().iter() {
                if waiting
                    .socket
                    .poll_announced(context, EventFlags::empty())
                    .is_ready()
                {
                    return Poll::Ready(());
                }
            }
            *self.keeper.borrow_mut() = Some(context.waker().clone());
            Poll::Pending
        })
        .await;
    }
}

/// Empties a pool that nobody keeps any more.
struct Emptied<'a>(&'a Pool);

impl Drop for Emptied<'_> {
    fn drop(&mut self) {
        self.0
            .waiting
            .borrow_mut()
            .drain(..)
            .for_each(|waiting| waiting.let_go());
    }
}

impl Waiting {
    /// Nothing was ever sent on it: there is no stream that a FIN could make look complete.
    fn let_go(&self) {
        leg::close_in_order(&self.socket);
    }
}

/// Whether a connection has neither ended nor failed, as far as the kernel knows by now.
pub(super) fn is_alive(socket: &Watched) -> bool {
    match recv(socket, &mut [0; 1], RecvFlags::PEEK) {
        Ok((0, _)) => false,
        Ok(_) | Err(Errno::AGAIN | Errno::INTR) => true,
        Err(_) => false,
    }
}

/// Sessions per second, as they were lately: the weight of each halves every [`Rate::HALF`].
#[derive(Debug, Default)]
struct Rate {
    last: Cell<Option<Instant>>,
    /// Decayed number of sessions.
    recent: Cell<f64>,
}

impl Rate {
    const HALF: f64 = 2.0;

    fn session(&self, now: Instant) {
        self.decay(now);
        self.recent.set(self.recent.get() + 1.0);
    }

    fn per_second(&self, now: Instant) -> f64 {
        self.decay(now);
        // A steady rate r has r × HALF / ln 2 of them (the integral of the decay).
        self.recent.get() * std::f64::consts::LN_2 / Self::HALF
    }

    fn decay(&self, now: Instant) {
        if let Some(last) = self.last.replace(Some(now)) {
            let passed = now.saturating_duration_since(last).as_secs_f64();
            self.recent
                .set(self.recent.get() * (-passed / Self::HALF * std::f64::consts::LN_2).exp());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_follows_the_sessions() {
        let (rate, start) = (Rate::default(), Instant::now());
        for n in 0..2000_u32 {
            rate.session(start + n * Duration::from_millis(10));
        }
        let now = start + Duration::from_secs(20);
        let measured = rate.per_second(now);
        assert!((95.0..105.0).contains(&measured), "{measured}");
        let later = rate.per_second(now + Duration::from_secs(20));
        assert!(later < 0.2, "{later}");
    }
}
