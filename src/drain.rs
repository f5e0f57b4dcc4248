//! The stations between "serving" and "gone".

use std::time::Duration;

/// How far the process is on its way out. Only ever moves down this list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Phase {
    /// Everything is taken.
    #[default]
    Serving,
    /// Health checks fail, connections are still taken: the balancer needs time to notice.
    Leaving,
    /// Nothing new is taken; what is open goes on.
    Finishing,
    /// What is still open is closed.
    Over,
}

impl Phase {
    /// The name in `/status` and in the log.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Serving => "serving",
            Self::Leaving => "leaving",
            Self::Finishing => "finishing",
            Self::Over => "over",
        }
    }

    /// Whether the balancer should send traffic here.
    #[must_use]
    pub fn is_ready(self) -> bool {
        self == Self::Serving
    }

    /// The phase that follows by itself, and after how long.
    #[must_use]
    pub fn then(self, drain: &crate::config::Drain) -> Option<(Duration, Self)> {
        match self {
            Self::Serving | Self::Over => None,
            Self::Leaving => Some((drain.accept_for, Self::Finishing)),
            Self::Finishing => Some((drain.deadline, Self::Over)),
        }
    }
}

/// What somebody wants of the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// SIGTERM: leave with notice.
    Terminate,
    /// SIGINT: the same, without the time in which connections are still taken.
    Interrupt,
}

impl Signal {
    /// The phase a signal leads to. The second one ends it now.
    #[must_use]
    pub fn leads_to(self, phase: Phase) -> Phase {
        match (self, phase) {
            (Self::Terminate, Phase::Serving) => Phase::Leaving,
            (Self::Interrupt, Phase::Serving) => Phase::Finishing,
            (_, Phase::Leaving | Phase::Finishing | Phase::Over) => Phase::Over,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{CloseWith, Drain};

    #[test]
    fn terminate_keeps_accepting_and_interrupt_does_not() {
        assert_eq!(Signal::Terminate.leads_to(Phase::Serving), Phase::Leaving);
        assert_eq!(Signal::Interrupt.leads_to(Phase::Serving), Phase::Finishing);
    }

    #[test]
    fn a_second_signal_ends_it() {
        for phase in [Phase::Leaving, Phase::Finishing] {
            for signal in [Signal::Terminate, Signal::Interrupt] {
                assert_eq!(signal.leads_to(phase), Phase::Over);
            }
        }
    }

    #[test]
    fn each_phase_ends_by_itself() {
        let (accept_for, deadline) = (Duration::from_secs(150), Duration::from_secs(300));
        let drain = Drain {
            accept_for,
            deadline,
            close: CloseWith::Fin,
        };
        assert_eq!(
            Phase::Leaving.then(&drain),
            Some((accept_for, Phase::Finishing))
        );
        assert_eq!(Phase::Finishing.then(&drain), Some((deadline, Phase::Over)));
        assert_eq!(Phase::Over.then(&drain), None);
    }
}
