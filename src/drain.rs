//! The stations between "serving" and "gone", or back to "serving": pure.
//!
//! A signal leads to the end of the process, an order (`tollgate drain`) to [`Phase::Drained`], where it stays and may take part again. The
//! stations before that are the same. The control thread moves along them ([`Stand`]); each worker follows ([`Notice`]).

use std::cell::{Cell, RefCell};
use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::config::Drain;

/// How far the process is on its way out. By itself it only moves down this list; an order takes it back to the top.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Everything is taken.
    Serving,
    /// Health checks fail, connections are still taken: the balancer needs time to notice.
    Leaving,
    /// Nothing new is taken; what is open goes on, and is closed bit by bit before the deadline.
    Finishing,
    /// Nothing is open, and nothing new is taken; the process stays.
    Drained,
    /// What is still open is closed, and the process ends.
    Over,
}

impl Phase {
    /// Every one, in their order.
    pub const ALL: [Self; 5] = [
        Self::Serving,
        Self::Leaving,
        Self::Finishing,
        Self::Drained,
        Self::Over,
    ];

    /// The name in `/status` and in the log.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Serving => "serving",
            Self::Leaving => "leaving",
            Self::Finishing => "finishing",
            Self::Drained => "drained",
            Self::Over => "over",
        }
    }

    /// Whether the balancer should send traffic here.
    #[must_use]
    pub fn is_ready(self) -> bool {
        self == Self::Serving
    }
}

/// What the operating system wants of the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// SIGTERM: leave with notice.
    Terminate,
    /// SIGINT: the same, without the time in which connections are still taken.
    Interrupt,
}

/// The time in which sessions are closed, each at a moment of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Closing {
    /// The first may be closed here.
    pub from: Instant,
    /// The last is closed here: the deadline.
    pub until: Instant,
}

impl Closing {
    fn before(deadline: Instant, drain: &Drain) -> Self {
        let from = deadline.checked_sub(drain.spread.min(drain.deadline));
        Self {
            from: from.unwrap_or(deadline),
            until: deadline,
        }
    }

    /// When the session that is the `nth` is closed: by chance, which `keys` are.
    #[must_use]
    pub fn moment(&self, keys: &RandomState, nth: usize) -> Instant {
        let chance = keys.hash_one(nth) >> 32;
        let chance = f64::from(u32::try_from(chance).unwrap_or(0)) / f64::from(u32::MAX);
        self.from + (self.until - self.from).mul_f64(chance)
    }
}

/// What decides about the next step.
#[derive(Debug, Clone, Copy)]
pub struct Moment<'a> {
    /// The time.
    pub now: Instant,
    /// How long each station lasts.
    pub drain: &'a Drain,
    /// Sessions that are open.
    pub sessions: usize,
}

/// Where the process stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stand {
    /// At which station.
    pub phase: Phase,
    /// The process ends when everything is closed; otherwise it stays.
    pub ends: bool,
    /// Since when.
    pub since: Instant,
    /// When the next station comes by itself.
    pub next: Option<Instant>,
    /// When sessions are closed, as it is planned.
    pub closing: Option<Closing>,
    /// Sessions that were open when it began to leave.
    pub sessions_at_start: usize,
}

/// The process ends, and no order changes that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ending;

impl Stand {
    /// At the beginning.
    #[must_use]
    pub fn serving(now: Instant) -> Self {
        Self {
            phase: Phase::Serving,
            ends: false,
            since: now,
            next: None,
            closing: None,
            sessions_at_start: 0,
        }
    }

    fn leave(at: Moment<'_>) -> Self {
        let next = at.now + at.drain.accept_for;
        Self {
            phase: Phase::Leaving,
            ends: false,
            since: at.now,
            next: Some(next),
            closing: Some(Closing::before(next + at.drain.deadline, at.drain)),
            sessions_at_start: at.sessions,
        }
    }

    fn finish(self, at: Moment<'_>) -> Self {
        let deadline = at.now + at.drain.deadline;
        let sessions_at_start = match self.phase {
            Phase::Serving => at.sessions,
            _ => self.sessions_at_start,
        };
        Self {
            phase: Phase::Finishing,
            since: at.now,
            next: Some(deadline),
            closing: Some(Closing::before(deadline, at.drain)),
            sessions_at_start,
            ..self
        }
    }

    /// The last station: there is nothing to wait for any more.
    fn last(self, at: Moment<'_>) -> Self {
        let phase = if self.ends {
            Phase::Over
        } else {
            Phase::Drained
        };
        Self {
            phase,
            since: at.now,
            next: None,
            closing: None,
            ..self
        }
    }

    fn ending(self) -> Self {
        Self { ends: true, ..self }
    }

    /// Where a signal leads. The first one makes sure that the process ends, and takes no time back that a drain has used up already; the second
    /// one ends it now.
    #[must_use]
    pub fn heard(self, signal: Signal, at: Moment<'_>) -> Self {
        match (self.phase, signal) {
            (Phase::Over, _) => self,
            _ if self.ends => self.last(at),
            (Phase::Serving, Signal::Terminate) => Self::leave(at).ending(),
            (Phase::Serving | Phase::Leaving, Signal::Interrupt) => self.finish(at).ending(),
            (Phase::Leaving | Phase::Finishing, _) => self.ending(),
            (Phase::Drained, _) => self.ending().last(at),
        }
    }

    /// Where the order to drain leads: nowhere when it was given before. `at_once`: without the time in which connections are still taken.
    ///
    /// # Errors
    /// The process ends.
    pub fn drain(self, at_once: bool, at: Moment<'_>) -> Result<Self, Ending> {
        match self.phase {
            _ if self.ends => Err(Ending),
            Phase::Serving if !at_once => Ok(Self::leave(at)),
            Phase::Serving | Phase::Leaving if at_once => Ok(self.finish(at)),
            _ => Ok(self),
        }
    }

    /// Where the order to take part again leads: sessions that are still open stay.
    ///
    /// # Errors
    /// The process ends.
    pub fn undrain(self, now: Instant) -> Result<Self, Ending> {
        match self.phase {
            _ if self.ends => Err(Ending),
            Phase::Serving => Ok(self),
            _ => Ok(Self::serving(now)),
        }
    }

    /// [`Self::next`] has come.
    #[must_use]
    pub fn passed(self, at: Moment<'_>) -> Self {
        match self.phase {
            Phase::Leaving => self.finish(at),
            Phase::Finishing => self.last(at),
            Phase::Serving | Phase::Drained | Phase::Over => self,
        }
    }

    /// Nothing is open any more. Where the process ends it is the workers who know that, and end.
    #[must_use]
    pub fn emptied(self, at: Moment<'_>) -> Self {
        match self.phase {
            Phase::Finishing if !self.ends => self.last(at),
            _ => self,
        }
    }

    /// For `/status`, for whoever gave an order, and for whoever waits for its end.
    #[must_use]
    pub fn report(&self, sessions: usize) -> Value {
        let (now, today) = (Instant::now(), Timestamp::now());
        let time = |at: Instant| {
            let time = match at.checked_duration_since(now) {
                Some(ahead) => today.checked_add(ahead),
                None => today.checked_sub(now - at),
            };
            time.ok().map(|time| format!("{time:.0}"))
        };
        let under_way = self.phase != Phase::Serving;
        json!({
            "phase": self.phase.name(),
            "ends": self.ends,
            "since": time(self.since),
            "next": self.next.and_then(time),
            "deadline": self.closing.and_then(|closing| time(closing.until)),
            "sessions_at_start": under_way.then_some(self.sessions_at_start),
            "sessions": sessions,
        })
    }

    /// For systemd's status line: the same as long as nothing has happened.
    #[must_use]
    pub fn words(&self, sessions: usize, listeners: usize) -> String {
        let s = |n: usize| if n == 1 { "" } else { "s" };
        let of = self.sessions_at_start;
        match self.phase {
            Phase::Serving => format!("serving, {listeners} listener{}", s(listeners)),
            Phase::Leaving => format!(
                "leaving: health checks fail, connections are still taken; {sessions} session{} open",
                s(sessions)
            ),
            Phase::Finishing => format!("finishing: {sessions} of {of} sessions open"),
            Phase::Drained => "drained: nothing is open, nothing is taken".to_owned(),
            Phase::Over => format!("over: closing {sessions} session{}", s(sessions)),
        }
    }
}

/// How a worker's connections learn of it all.
#[derive(Debug, Default)]
pub struct Notice {
    refuses: Cell<bool>,
    over: RefCell<CancellationToken>,
}

impl Notice {
    /// Whether connections that come now are turned away, as soon as it is known that they are no health checks.
    #[must_use]
    pub fn refuses(&self) -> bool {
        self.refuses.get()
    }

    /// Cancelled when the connections that are there now have to end. To be asked for when one begins.
    #[must_use]
    pub fn over(&self) -> CancellationToken {
        self.over.borrow().clone()
    }

    /// New connections are turned away from now on, or no longer.
    pub fn refuse(&self, refuses: bool) {
        self.refuses.set(refuses);
    }

    /// All that is there now has to end.
    pub fn cut(&self) {
        self.over.take().cancel();
    }
}

/// How long connections that have not said who they are may keep a drain from being done when no session is left.
pub const SILENT: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::CloseWith;

    const S: Duration = Duration::from_secs(1);

    fn drain() -> Drain {
        Drain {
            accept_for: 150 * S,
            deadline: 300 * S,
            spread: 60 * S,
            close: CloseWith::Fin,
        }
    }

    fn at(drain: &Drain, now: Instant) -> Moment<'_> {
        Moment {
            now,
            drain,
            sessions: 7,
        }
    }

    #[test]
    fn terminate_keeps_accepting_and_interrupt_does_not() {
        let (drain, now) = (drain(), Instant::now());
        let serving = Stand::serving(now);
        let leaving = serving.heard(Signal::Terminate, at(&drain, now));
        assert_eq!((leaving.phase, leaving.ends), (Phase::Leaving, true));
        assert_eq!(leaving.next, Some(now + 150 * S));
        let finishing = serving.heard(Signal::Interrupt, at(&drain, now));
        assert_eq!((finishing.phase, finishing.ends), (Phase::Finishing, true));
        assert_eq!(finishing.sessions_at_start, 7);
    }

    #[test]
    fn a_second_signal_ends_it() {
        let (drain, now) = (drain(), Instant::now());
        for first in [Signal::Terminate, Signal::Interrupt] {
            for second in [Signal::Terminate, Signal::Interrupt] {
                let stand = Stand::serving(now).heard(first, at(&drain, now));
                let stand = stand.heard(second, at(&drain, now));
                assert_eq!((stand.phase, stand.ends), (Phase::Over, true));
                assert_eq!(stand.heard(first, at(&drain, now)), stand);
            }
        }
    }

    #[test]
    fn each_station_ends_by_itself() {
        let (drain, now) = (drain(), Instant::now());
        let serving = Stand::serving(now);
        for (begun, last) in [
            (
                serving.heard(Signal::Terminate, at(&drain, now)),
                Phase::Over,
            ),
            (
                serving.drain(false, at(&drain, now)).unwrap(),
                Phase::Drained,
            ),
        ] {
            let later = now + 151 * S;
            let finishing = begun.passed(at(&drain, later));
            assert_eq!(finishing.phase, Phase::Finishing);
            assert_eq!(finishing.next, Some(later + 300 * S));
            let closing = Closing {
                from: later + 240 * S,
                until: later + 300 * S,
            };
            assert_eq!(finishing.closing, Some(closing));
            let end = finishing.passed(at(&drain, later + 300 * S));
            assert_eq!((end.phase, end.next), (last, None));
            assert_eq!(end.passed(at(&drain, later + 301 * S)), end);
        }
    }

    #[test]
    fn a_signal_during_a_drain_ends_the_process_without_starting_anew() {
        let (drain, now) = (drain(), Instant::now());
        let leaving = Stand::serving(now).drain(false, at(&drain, now)).unwrap();
        let later = at(&drain, now + 100 * S);
        let told = leaving.heard(Signal::Terminate, later);
        assert_eq!((told.phase, told.ends), (Phase::Leaving, true));
        assert_eq!(told.next, leaving.next);
        let hurried = leaving.heard(Signal::Interrupt, later);
        assert_eq!((hurried.phase, hurried.ends), (Phase::Finishing, true));
        let finishing = leaving.passed(later);
        let told = finishing.heard(Signal::Terminate, later);
        assert_eq!(
            (told.phase, told.ends, told.next),
            (Phase::Finishing, true, finishing.next)
        );
        let drained = finishing.emptied(later);
        assert_eq!(drained.phase, Phase::Drained);
        assert_eq!(drained.heard(Signal::Terminate, later).phase, Phase::Over);
    }

    #[test]
    fn an_order_given_twice_changes_nothing_and_one_in_a_hurry_does() {
        let (drain, now) = (drain(), Instant::now());
        let leaving = Stand::serving(now).drain(false, at(&drain, now)).unwrap();
        let later = at(&drain, now + S);
        assert_eq!(leaving.drain(false, later), Ok(leaving));
        let finishing = leaving.drain(true, later).unwrap();
        assert_eq!(finishing.phase, Phase::Finishing);
        assert_eq!(finishing.drain(true, later), Ok(finishing));
        let at_once = Stand::serving(now).drain(true, later).unwrap();
        assert_eq!(at_once.phase, Phase::Finishing);
    }

    #[test]
    fn undrain_leads_back_from_everywhere_unless_the_process_ends() {
        let (drain, now) = (drain(), Instant::now());
        let leaving = Stand::serving(now).drain(false, at(&drain, now)).unwrap();
        let finishing = leaving.passed(at(&drain, now));
        let drained = finishing.emptied(at(&drain, now));
        for stand in [leaving, finishing, drained] {
            assert_eq!(stand.undrain(now), Ok(Stand::serving(now)));
            let ending = stand.heard(Signal::Terminate, at(&drain, now));
            assert_eq!(ending.undrain(now), Err(Ending));
            assert_eq!(ending.drain(true, at(&drain, now)), Err(Ending));
        }
    }

    #[test]
    fn sessions_are_closed_all_over_the_time_that_there_is_for_it() {
        let (drain, now, keys) = (drain(), Instant::now(), RandomState::new());
        let closing = Closing::before(now + 300 * S, &drain);
        let mut tenths = [0; 10];
        for nth in 0..1000 {
            let moment = closing.moment(&keys, nth);
            assert!((closing.from..=closing.until).contains(&moment));
            let share = (moment - closing.from).as_secs_f64() / 60.0;
            tenths[((share * 10.0) as usize).min(9)] += 1;
        }
        assert!(tenths.iter().all(|n| (50..200).contains(n)), "{tenths:?}");
        let at_once = Drain {
            spread: Duration::ZERO,
            ..drain
        };
        let closing = Closing::before(now, &at_once);
        assert_eq!(closing.moment(&keys, 1), now);
    }

    #[test]
    fn whoever_comes_after_a_cut_is_not_cut() {
        let notice = Notice::default();
        let before = notice.over();
        notice.cut();
        assert!(before.is_cancelled() && !notice.over().is_cancelled());
    }
}
