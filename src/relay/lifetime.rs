//! When a session has lasted too long, without I/O: `now` in, verdict out.

use std::rc::Rc;
use std::time::Duration;

use super::timer::Millis;
use crate::account::CloseReason;
use crate::config::SessionLimits;
use crate::leg;

/// What a session waits for, as far as its bounds are concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// Bytes in either direction.
    Open,
    /// One side's FIN was passed on; the other has yet to finish.
    Closing,
    /// One side is lost, and the other is to be reset for this reason once it has what was under way.
    Resetting(CloseReason),
}

/// How a session's sockets are closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Farewell {
    /// Both sides get a FIN, behind what the kernel still holds for them; a session with bytes under way is reset all the same.
    Fin,
    /// Both sides get an RST: a stream that was cut must not look complete.
    Rst,
}

/// What is to be done with a session whose deadline came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Ask for the next deadline.
    GoOn,
    /// It is over.
    End(CloseReason, Farewell),
}

/// A session's times and bounds.
#[derive(Debug)]
pub(super) struct Lifetime {
    limits: Rc<SessionLimits>,
    began: Millis,
    /// When a byte or a FIN last moved.
    moved: Millis,
    /// When it was last seen that a peer had taken bytes which the kernel held for it: that is traffic too.
    taken: Millis,
    /// When the half-close bound last ran out on a reader that had not got everything yet.
    spared: Millis,
    /// What was undelivered when it was last asked, and when that was.
    seen: (Millis, u64),
    delivery: Option<Delivery>,
    /// When it has to leave its address, and what it is closed with then.
    leave: Option<(Millis, CloseReason)>,
    /// When the drain closes it.
    drained: Option<Millis>,
    /// When the upstream's socket has to be guarded ([`leg::guard`]); `None`: it is, or need not be.
    guard: Option<Millis>,
}

/// A reset would take back what the kernel has not delivered yet (it is discarded, tcp(7) SO_LINGER): the reset waits. No event tells when
/// all is acknowledged, so this looks again after growing pauses.
#[derive(Debug)]
struct Delivery {
    look: Millis,
    pause: Millis,
}

/// How long a socket that was dialled ahead stays watched closely: longer than it takes to find it dead.
const AHEAD: Duration = Duration::from_secs(5);

const FIRST_PAUSE: Millis = 2;
const LONGEST_PAUSE: Millis = 256;

impl Lifetime {
    /// `ahead`: the upstream's socket is watched closely already, which ends with the guard: after a time in which a first answer comes.
    pub(super) fn new(limits: Rc<SessionLimits>, ahead: bool, now: Millis) -> Self {
        let unguarded = match ahead {
            true => Some(leg::unguarded_for(&limits).unwrap_or_default().max(AHEAD)),
            false => leg::unguarded_for(&limits),
        };
        Self {
            began: now,
            moved: now,
            taken: now,
            spared: now,
            seen: (now, 0),
            delivery: None,
            leave: None,
            drained: None,
            guard: end_of(now, unguarded),
            limits,
        }
    }

    /// A byte or a FIN moved.
    pub(super) fn moved(&mut self, now: Millis) {
        self.moved = now;
    }

    /// Milliseconds since the session began.
    pub(super) fn age(&self, now: Millis) -> Millis {
        now.saturating_sub(self.began)
    }

    /// Milliseconds since a byte or a FIN moved.
    pub(super) fn silence(&self, now: Millis) -> Millis {
        now.saturating_sub(self.moved)
    }

    /// When it has to leave its address, and why.
    pub(super) fn leaves(&self) -> Option<(Millis, CloseReason)> {
        self.leave
    }

    /// It has to leave its address then; `None`: it may stay.
    pub(super) fn leave(&mut self, at: Option<(Millis, CloseReason)>) {
        self.leave = at;
    }

    /// The drain closes it then; `None`: nothing is drained.
    pub(super) fn drain(&mut self, at: Option<Millis>) {
        self.drained = at;
    }

    /// All that can be sent before a reset was given to the kernel, which has not delivered all of it.
    pub(super) fn await_delivery(&mut self, now: Millis) {
        self.delivery.get_or_insert(Delivery {
            look: now + FIRST_PAUSE,
            pause: FIRST_PAUSE,
        });
    }

    fn idle_end(&self) -> Option<Millis> {
        end_of(self.moved.max(self.taken), self.limits.idle_timeout)
    }

    fn quiet_end(&self, phase: Phase) -> Option<Millis> {
        let from = self.moved.max(self.taken).max(self.spared);
        match phase {
            Phase::Open => None,
            Phase::Closing | Phase::Resetting(_) => end_of(from, self.limits.half_close_timeout),
        }
    }

    /// When to judge next; `None`: no bound is set.
    pub(super) fn deadline(&self, phase: Phase) -> Option<Millis> {
        let age = end_of(self.began, self.limits.max_age);
        let look = self.delivery.as_ref().map(|delivery| delivery.look);
        let ends = [
            self.quiet_end(phase),
            self.idle_end(),
            age,
            look,
            self.guard,
            self.leave.map(|(at, _)| at),
            self.drained,
        ];
        ends.into_iter().flatten().min()
    }

    /// Whether the upstream's socket has to be guarded now, and how: told once.
    pub(super) fn take_guard(&mut self, now: Millis) -> Option<&SessionLimits> {
        self.guard.take_if(|at| *at <= now)?;
        Some(&self.limits)
    }

    /// Decides at a deadline. `undelivered` counts what the reachable sides have not acknowledged; `at_age` is how a session that
    /// is too old is closed.
    pub(super) fn judge(
        &mut self,
        now: Millis,
        phase: Phase,
        at_age: Farewell,
        undelivered: impl FnOnce() -> u64,
    ) -> Verdict {
        let due = |end: Option<Millis>| end.is_some_and(|end| end <= now);
        if due(end_of(self.began, self.limits.max_age)) {
            return Verdict::End(CloseReason::MaxAge, at_age);
        }
        if due(self.drained) {
            return Verdict::End(CloseReason::Drained, at_age);
        }
        if let Some((_, reason)) = self.leave.filter(|(at, _)| *at <= now) {
            return Verdict::End(reason, at_age);
        }
        if !due(self.deadline(phase)) {
            return Verdict::GoOn;
        }
        let left = undelivered();
        self.see(now, left);
        match phase {
            Phase::Resetting(reason) if self.delivery.is_some() && left == 0 => {
                return Verdict::End(reason, Farewell::Rst);
            }
            Phase::Resetting(reason) if due(self.quiet_end(phase)) => {
                return Verdict::End(reason, Farewell::Rst);
            }
            Phase::Closing if due(self.quiet_end(phase)) && left == 0 => {
                return Verdict::End(CloseReason::HalfCloseTimeout, Farewell::Rst);
            }
            // Whoever has not got everything yet is slow, not silent: the idle timeout bounds that.
            Phase::Closing if due(self.quiet_end(phase)) => self.spared = now,
            Phase::Open | Phase::Closing | Phase::Resetting(_) => {}
        }
        if let Some(delivery) = &mut self.delivery {
            delivery.pause = (delivery.pause * 2).min(LONGEST_PAUSE);
            delivery.look = now + delivery.pause;
        }
        match due(self.idle_end()) {
            true => Verdict::End(CloseReason::IdleTimeout, Farewell::Rst),
            false => Verdict::GoOn,
        }
    }

    /// Whether the peers took bytes since the last look. Where bytes moved since then nobody can tell: the peer is given the benefit.
    fn see(&mut self, now: Millis, left: u64) {
        let (at, before) = std::mem::replace(&mut self.seen, (now, left));
        let progress = match self.moved >= at {
            true => left > 0,
            false => left < before,
        };
        if progress {
            self.taken = now;
        }
    }
}

fn end_of(from: Millis, bound: Option<Duration>) -> Option<Millis> {
    let bound = u64::try_from(bound?.as_millis()).unwrap_or(u64::MAX);
    Some(from.saturating_add(bound))
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Millis = 1000;
    const HALF_CLOSED: Verdict = Verdict::End(CloseReason::HalfCloseTimeout, Farewell::Rst);
    const IDLE: Verdict = Verdict::End(CloseReason::IdleTimeout, Farewell::Rst);
    const RESET: Verdict = Verdict::End(CloseReason::ClientReset, Farewell::Rst);
    const RESETTING: Phase = Phase::Resetting(CloseReason::ClientReset);

    fn lifetime() -> Lifetime {
        let limits = SessionLimits {
            idle_timeout: Some(Duration::from_secs(3600)),
            half_close_timeout: Some(Duration::from_secs(60)),
            max_age: None,
            keepalive: None,
            user_timeout: None,
        };
        Lifetime::new(Rc::new(limits), false, 0)
    }

    fn judge(lifetime: &mut Lifetime, now: Millis, phase: Phase, left: u64) -> Verdict {
        lifetime.judge(now, phase, Farewell::Fin, || left)
    }

    #[test]
    fn traffic_puts_the_idle_timeout_off() {
        let mut lifetime = lifetime();
        lifetime.moved(1800 * S);
        assert_eq!(
            judge(&mut lifetime, 3600 * S, Phase::Open, 0),
            Verdict::GoOn
        );
        assert_eq!(lifetime.deadline(Phase::Open), Some(5400 * S));
        let end = Verdict::End(CloseReason::IdleTimeout, Farewell::Rst);
        assert_eq!(judge(&mut lifetime, 5400 * S, Phase::Open, 0), end);
    }

    #[test]
    fn half_close_is_bounded_by_silence_not_by_length() {
        let mut lifetime = lifetime();
        lifetime.moved(50 * S);
        assert_eq!(
            judge(&mut lifetime, 60 * S, Phase::Closing, 0),
            Verdict::GoOn
        );
        assert_eq!(
            judge(&mut lifetime, 110 * S, Phase::Closing, 0),
            HALF_CLOSED
        );
    }

    #[test]
    fn a_stopped_reader_of_the_last_bytes_is_bounded_by_the_idle_timeout() {
        let mut lifetime = lifetime();
        assert_eq!(
            judge(&mut lifetime, 60 * S, Phase::Closing, 9),
            Verdict::GoOn
        );
        assert_eq!(
            lifetime.deadline(Phase::Closing),
            Some(120 * S),
            "looked at again, not at once"
        );
        for now in (120..3660).step_by(60) {
            assert_eq!(
                judge(&mut lifetime, now * S, Phase::Closing, 9),
                Verdict::GoOn,
                "{now}"
            );
        }
        assert_eq!(judge(&mut lifetime, 3660 * S, Phase::Closing, 9), IDLE);
    }

    #[test]
    fn a_slow_reader_of_the_last_bytes_has_its_time_to_answer() {
        let mut lifetime = lifetime();
        assert_eq!(
            judge(&mut lifetime, 60 * S, Phase::Closing, 9),
            Verdict::GoOn
        );
        assert_eq!(
            judge(&mut lifetime, 120 * S, Phase::Closing, 0),
            Verdict::GoOn,
            "taken a moment ago, perhaps"
        );
        assert_eq!(lifetime.deadline(Phase::Closing), Some(180 * S));
        assert_eq!(
            judge(&mut lifetime, 180 * S, Phase::Closing, 0),
            HALF_CLOSED
        );
    }

    #[test]
    fn a_reader_served_from_the_kernels_buffer_is_not_idle() {
        let mut lifetime = lifetime();
        for (hour, left) in [(1, 900), (2, 600), (3, 300)] {
            assert_eq!(
                judge(&mut lifetime, hour * 3600 * S, Phase::Open, left),
                Verdict::GoOn
            );
        }
        assert_eq!(judge(&mut lifetime, 4 * 3600 * S, Phase::Open, 300), IDLE);
    }

    #[test]
    fn a_reset_waits_for_delivery_and_not_for_ever() {
        let mut lifetime = lifetime();
        lifetime.await_delivery(0);
        assert_eq!(lifetime.deadline(RESETTING), Some(2));
        assert_eq!(judge(&mut lifetime, 2, RESETTING, 50), Verdict::GoOn);
        assert_eq!(lifetime.deadline(RESETTING), Some(6));
        assert_eq!(judge(&mut lifetime, 6, RESETTING, 0), RESET);
        let mut lifetime = self::lifetime();
        lifetime.await_delivery(0);
        assert_eq!(judge(&mut lifetime, 10, RESETTING, 100), Verdict::GoOn);
        assert_eq!(judge(&mut lifetime, 59 * S, RESETTING, 100), Verdict::GoOn);
        assert_eq!(judge(&mut lifetime, 60 * S + 10, RESETTING, 100), RESET);
    }

    #[test]
    fn a_slow_reader_gets_what_was_sent_before_a_reset() {
        let mut lifetime = lifetime();
        for minute in 1..60 {
            let left = 1_000_000 - minute;
            assert_eq!(
                judge(&mut lifetime, minute * 60 * S, RESETTING, left),
                Verdict::GoOn
            );
        }
        assert_eq!(
            judge(&mut lifetime, 60 * 60 * S, RESETTING, 1_000_000 - 59),
            RESET
        );
    }

    #[test]
    fn an_upstream_is_guarded_once_and_long_before_it_matters() {
        let limits = SessionLimits {
            user_timeout: Some(Duration::from_secs(20)),
            ..*lifetime().limits
        };
        let mut lifetime = Lifetime::new(Rc::new(limits), false, 0);
        assert_eq!(lifetime.deadline(Phase::Open), Some(S));
        assert!(lifetime.take_guard(S - 1).is_none());
        assert!(lifetime.take_guard(S).is_some());
        assert!(lifetime.take_guard(S).is_none());
        assert_eq!(lifetime.deadline(Phase::Open), Some(3600 * S));
    }

    #[test]
    fn a_drain_ends_it_when_its_turn_comes_unless_it_was_taken_back() {
        let mut lifetime = lifetime();
        lifetime.drain(Some(20 * S));
        lifetime.moved(19 * S);
        assert_eq!(lifetime.deadline(Phase::Open), Some(20 * S));
        let end = Verdict::End(CloseReason::Drained, Farewell::Fin);
        assert_eq!(judge(&mut lifetime, 20 * S, Phase::Open, 0), end);
        lifetime.drain(None);
        assert_eq!(judge(&mut lifetime, 20 * S, Phase::Open, 0), Verdict::GoOn);
        assert_eq!(lifetime.deadline(Phase::Open), Some(3619 * S));
    }

    #[test]
    fn age_is_bounded_whatever_moves() {
        let limits = SessionLimits {
            max_age: Some(Duration::from_secs(10)),
            ..*lifetime().limits
        };
        let mut lifetime = Lifetime::new(Rc::new(limits), false, 0);
        lifetime.moved(10 * S);
        let end = Verdict::End(CloseReason::MaxAge, Farewell::Fin);
        assert_eq!(judge(&mut lifetime, 10 * S, Phase::Open, 0), end);
    }
}
