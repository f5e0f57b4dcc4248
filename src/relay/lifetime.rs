//! When a session has lasted too long, without I/O: `now` in, verdict out.

use std::rc::Rc;
use std::time::Duration;

use super::timer::Millis;
use crate::account::CloseReason;
use crate::config::SessionLimits;

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
    /// Both sides get a FIN, if they have not had it, and what the kernel still holds is delivered.
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
    /// When the half-close bound last ran out on a reader that was slow and not silent.
    spared: Millis,
    /// What was undelivered then.
    left: u64,
    delivery: Option<Delivery>,
}

/// A reset would take back what the kernel has not delivered yet (it is discarded, tcp(7) SO_LINGER): the reset waits. No event tells when
/// all is acknowledged, so this looks again after growing pauses.
#[derive(Debug)]
struct Delivery {
    look: Millis,
    pause: Millis,
    undelivered: u64,
}

const FIRST_PAUSE: Millis = 2;
const LONGEST_PAUSE: Millis = 256;

impl Lifetime {
    pub(super) fn new(limits: Rc<SessionLimits>, now: Millis) -> Self {
        Self {
            limits,
            began: now,
            moved: now,
            spared: now,
            left: 0,
            delivery: None,
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

    /// All that can be sent before a reset was given to the kernel, which has so much left of it.
    pub(super) fn await_delivery(&mut self, now: Millis, undelivered: u64) {
        self.delivery.get_or_insert(Delivery {
            look: now + FIRST_PAUSE,
            pause: FIRST_PAUSE,
            undelivered,
        });
    }

    /// When to judge next; `None`: no bound is set.
    pub(super) fn deadline(&self, phase: Phase) -> Option<Millis> {
        let quiet = match phase {
            Phase::Open => None,
            Phase::Closing => end_of(self.moved.max(self.spared), self.limits.half_close_timeout),
            Phase::Resetting(_) => end_of(self.moved, self.limits.half_close_timeout),
        };
        let idle = end_of(self.moved, self.limits.idle_timeout);
        let age = end_of(self.began, self.limits.max_age);
        let look = self.delivery.as_ref().map(|delivery| delivery.look);
        [quiet, idle, age, look].into_iter().flatten().min()
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
        match phase {
            Phase::Resetting(reason) => {
                let left = undelivered();
                if self.delivery.is_some() && left == 0 {
                    return Verdict::End(reason, Farewell::Rst);
                }
                if let Some(delivery) = &mut self.delivery {
                    if left < delivery.undelivered {
                        self.moved = now;
                    }
                    delivery.undelivered = left;
                    delivery.pause = (delivery.pause * 2).min(LONGEST_PAUSE);
                    delivery.look = now + delivery.pause;
                }
                if due(end_of(self.moved, self.limits.half_close_timeout)) {
                    return Verdict::End(reason, Farewell::Rst);
                }
            }
            Phase::Closing
                if due(end_of(
                    self.moved.max(self.spared),
                    self.limits.half_close_timeout,
                )) =>
            {
                // Whoever still takes what came before the FIN is slow, not silent: the idle timeout bounds that. Whoever took the
                // last of it since we looked has not had its time to answer yet.
                let before = std::mem::replace(&mut self.left, undelivered());
                if (before, self.left) == (0, 0) {
                    return Verdict::End(CloseReason::HalfCloseTimeout, Farewell::Rst);
                }
                self.spared = now;
            }
            Phase::Open | Phase::Closing => {}
        }
        match due(end_of(self.moved, self.limits.idle_timeout)) {
            true => Verdict::End(CloseReason::IdleTimeout, Farewell::Rst),
            false => Verdict::GoOn,
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
    const RESETTING: Phase = Phase::Resetting(CloseReason::ClientReset);

    fn lifetime() -> Lifetime {
        let limits = SessionLimits {
            idle_timeout: Some(Duration::from_secs(3600)),
            half_close_timeout: Some(Duration::from_secs(60)),
            max_age: None,
            keepalive: None,
            user_timeout: None,
        };
        Lifetime::new(Rc::new(limits), 0)
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
        let end = Verdict::End(CloseReason::HalfCloseTimeout, Farewell::Rst);
        assert_eq!(judge(&mut lifetime, 110 * S, Phase::Closing, 0), end);
    }

    #[test]
    fn a_slow_reader_of_the_last_bytes_is_not_cut_by_the_half_close_bound() {
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
        let end = Verdict::End(CloseReason::IdleTimeout, Farewell::Rst);
        assert_eq!(judge(&mut lifetime, 3600 * S, Phase::Closing, 9), end);
    }

    #[test]
    fn a_slow_reader_has_its_time_to_answer_once_it_has_everything() {
        let mut lifetime = lifetime();
        judge(&mut lifetime, 60 * S, Phase::Closing, 9);
        assert_eq!(
            judge(&mut lifetime, 120 * S, Phase::Closing, 0),
            Verdict::GoOn,
            "it may have taken the last byte just now"
        );
        assert_eq!(lifetime.deadline(Phase::Closing), Some(180 * S));
        let end = Verdict::End(CloseReason::HalfCloseTimeout, Farewell::Rst);
        assert_eq!(judge(&mut lifetime, 180 * S, Phase::Closing, 0), end);
    }

    #[test]
    fn a_reset_waits_for_delivery_and_not_for_ever() {
        let mut lifetime = lifetime();
        lifetime.await_delivery(0, 100);
        assert_eq!(lifetime.deadline(RESETTING), Some(2));
        assert_eq!(judge(&mut lifetime, 2, RESETTING, 50), Verdict::GoOn);
        assert_eq!(lifetime.deadline(RESETTING), Some(6));
        let end = Verdict::End(CloseReason::ClientReset, Farewell::Rst);
        assert_eq!(judge(&mut lifetime, 6, RESETTING, 0), end);
        let mut lifetime = self::lifetime();
        lifetime.await_delivery(0, 100);
        assert_eq!(judge(&mut lifetime, 59 * S, RESETTING, 100), Verdict::GoOn);
        assert_eq!(judge(&mut lifetime, 60 * S, RESETTING, 100), end);
    }

    #[test]
    fn a_reset_is_not_passed_on_before_what_is_held_was_sent() {
        let mut lifetime = lifetime();
        assert_eq!(judge(&mut lifetime, 30 * S, RESETTING, 0), Verdict::GoOn);
        assert_eq!(lifetime.deadline(RESETTING), Some(60 * S));
    }

    #[test]
    fn age_is_bounded_whatever_moves() {
        let limits = SessionLimits {
            max_age: Some(Duration::from_secs(10)),
            ..*lifetime().limits
        };
        let mut lifetime = Lifetime::new(Rc::new(limits), 0);
        lifetime.moved(10 * S);
        let end = Verdict::End(CloseReason::MaxAge, Farewell::Fin);
        assert_eq!(judge(&mut lifetime, 10 * S, Phase::Open, 0), end);
    }
}
