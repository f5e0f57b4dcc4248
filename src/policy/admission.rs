//! Who comes in: first past the rules of its endpoint, then the listener's limits, then the relay's.
//!
//! The narrowest first, so that whoever is turned away for what its own endpoint may has taken nothing of what all share.

use std::cell::RefCell;
use std::fmt::{self, Display};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::Notify;

use super::Policy;
use super::pace::Pace;
use super::rules::{Entry, Rule, rate};
use super::turnstile::{Entered, Full, Turnstile};
use crate::account::{CloseReason, LimitOf, Refusal, Wait};
use crate::config::{Listener, OnDeny, OnLimit, Patience, SessionLimits};
use crate::places::Taken;
use crate::reactor::Watched;

/// What is in force on a worker: for those who come, and for those who came before it was and are not in yet.
#[derive(Debug)]
pub struct InForce {
    policy: RefCell<Arc<Policy>>,
    /// Rung for those who wait: there may be room for them now, or no hope.
    changed: Notify,
}

/// One who wants to come in.
#[derive(Debug, Clone, Copy)]
pub struct Newcomer<'a> {
    /// Through which endpoint: its real id.
    pub endpoint: &'a str,
    /// At which listener,
    pub listener: &'a Listener,
    /// and through its turnstile.
    pub turnstile: &'a Arc<Turnstile>,
    /// On which socket, should it leave.
    pub client: &'a Watched,
}

/// One who may come in. Nothing of it is used up unless a session comes of it.
#[derive(Debug)]
pub struct Admitted {
    entered: [Option<Entered>; LimitOf::ALL.len()],
    rule: Rule,
    pace: Option<Pace>,
}

/// The places that a session has: its endpoint's, where that has a limit, its listener's and the relay's.
#[derive(Debug)]
pub struct Seats([Option<Taken>; LimitOf::ALL.len()]);

/// One who may not, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TurnedAway {
    /// As it is counted.
    pub refusal: Refusal,
    why: Why,
    waited: Waited,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Why {
    Denied,
    Sessions(LimitOf, usize),
    Rate(LimitOf, u64),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Waited {
    No,
    InVain,
    TooMany,
    UntilItLeft,
}

impl InForce {
    /// This one, for the time being.
    #[must_use]
    pub fn new(policy: Arc<Policy>) -> Rc<Self> {
        Rc::new(Self {
            policy: RefCell::new(policy),
            changed: Notify::new(),
        })
    }

    /// What is in force now.
    #[must_use]
    pub fn now(&self) -> Arc<Policy> {
        self.policy.borrow().clone()
    }

    /// From now on it is this one.
    pub fn set(&self, policy: Arc<Policy>) {
        self.policy.replace(policy);
        self.changed.notify_waiters();
    }

    /// Whether anybody may come in through `endpoint` at all.
    ///
    /// # Errors
    /// It is denied.
    pub fn look(&self, endpoint: &str) -> Result<(), TurnedAway> {
        self.policy.borrow().rule(endpoint).map(|_| ())
    }

    /// For one who was let in by `rules` and became a session only now: a reload, which looks at sessions, may have missed it.
    ///
    /// # Errors
    /// It is denied by now, and to be closed for that.
    pub fn catch_up(
        &self,
        rules: &Arc<Policy>,
        endpoint: &str,
        (seats, pace): (&mut Seats, &mut Option<Pace>),
    ) -> Result<(), CloseReason> {
        let policy = self.policy.borrow();
        if Arc::ptr_eq(rules, &policy) {
            return Ok(());
        }
        if policy.denies(endpoint) == Some(OnDeny::Close) {
            return Err(CloseReason::Denied);
        }
        *pace = policy.pace(endpoint);
        seats.count_in(&policy, endpoint);
        Ok(())
    }

    /// Lets somebody in, after a wait where that is wanted.
    ///
    /// # Errors
    /// It is turned away.
    pub async fn admit(&self, newcomer: Newcomer<'_>) -> Result<Admitted, TurnedAway> {
        let mut entered = [None, None, None];
        let mut policy = self.now();
        let mut rule = policy.rule(newcomer.endpoint)?;
        for of in LimitOf::ALL {
            let entry = policy.entry(of, &rule, newcomer.listener);
            let turnstile = match of {
                LimitOf::Endpoint if !entry.is_limited() => continue,
                LimitOf::Endpoint => policy.tallies().of(newcomer.endpoint).turnstile,
                LimitOf::Listener => newcomer.turnstile.clone(),
                LimitOf::Relay => policy.tallies().relay().clone(),
            };
            furnish(of, &turnstile, &entry);
            let patience = match entry.on_limit {
                OnLimit::Refuse => None,
                OnLimit::Wait(patience) => Some(patience),
            };
            // Nobody goes past those in line.
            let at_once = match patience.is_some() && turnstile.waiting() > 0 {
                true => Err(turnstile.lacks(Instant::now())),
                false => turnstile.enter(Instant::now(), &entry),
            };
            entered[of as usize] = Some(match (at_once, patience) {
                (Ok(entered), _) => entered,
                (Err(full), None) => return Err(TurnedAway::at(of, full, &turnstile, &entry)),
                (Err(_), Some(patience)) => {
                    // Boxed: few wait, and all would carry room for it.
                    let waiting = Box::pin(self.wait(of, newcomer, &turnstile, patience));
                    let entered = waiting.await?;
                    // By then there may be another.
                    policy = self.now();
                    rule = policy.rule(newcomer.endpoint)?;
                    entered
                }
            });
        }
        Ok(Admitted {
            entered,
            pace: policy.pace_by(&rule, newcomer.endpoint),
            rule,
        })
    }

    async fn wait(
        &self,
        of: LimitOf,
        newcomer: Newcomer<'_>,
        turnstile: &Arc<Turnstile>,
        patience: Patience,
    ) -> Result<Entered, TurnedAway> {
        let now = self.now();
        let tallies = now.tallies();
        let turned_away = |waited| {
            let (policy, lacks) = (self.now(), turnstile.lacks(Instant::now()));
            let entry = policy.entry(of, &policy.rule(newcomer.endpoint)?, newcomer.listener);
            let why = TurnedAway::at(of, lacks, turnstile, &entry);
            Err(TurnedAway { waited, ..why })
        };
        let in_line = turnstile.line_up(patience.most);
        let waiting = tallies.wait(of, now.rules().max_waiting());
        let (Some(_in_line), Some(waiting)) = (in_line, waiting) else {
            return turned_away(Waited::TooMany);
        };
        let entry = || {
            let policy = self.now();
            let entry = policy.entry(of, &policy.rule(newcomer.endpoint)?, newcomer.listener);
            furnish(of, turnstile, &entry);
            Ok(entry)
        };
        let reactor = newcomer.client.reactor();
        let turn = turnstile.turn(reactor, &self.changed, entry);
        let deadline = Instant::now() + patience.longest;
        let turn = tokio::select! {
            turn = reactor.timeout_at(deadline, turn) => turn,
            () = newcomer.client.broken() => {
                waiting.ends(Wait::Left);
                return turned_away(Waited::UntilItLeft);
            }
        };
        waiting.ends(match turn {
            Some(Ok(_)) => Wait::Admitted,
            Some(Err(_)) | None => Wait::Refused,
        });
        turn.unwrap_or_else(|| turned_away(Waited::InVain))
    }
}

impl Policy {
    /// What holds for `endpoint`, if it may come in at all.
    fn rule(&self, endpoint: &str) -> Result<Rule, TurnedAway> {
        let rule = self.rules().of(endpoint);
        match rule.deny {
            None => Ok(rule),
            Some(_) => Err(TurnedAway::DENIED),
        }
    }

    /// What one of the three limits is.
    fn entry(&self, of: LimitOf, rule: &Rule, listener: &Listener) -> Entry {
        match of {
            LimitOf::Endpoint => rule.entry,
            LimitOf::Listener => Entry {
                most: Some(listener.max_sessions),
                rate: listener.rate.map(rate),
                on_limit: listener.on_limit,
            },
            LimitOf::Relay => self.rules().of_relay(),
        }
    }
}

/// Says how many places there are. Those of a listener are told by whoever opened it.
fn furnish(of: LimitOf, turnstile: &Turnstile, entry: &Entry) {
    let most = entry.most.unwrap_or(usize::MAX);
    if of != LimitOf::Listener && turnstile.places().most() != most {
        turnstile.places().set_most(most);
    }
}

impl Admitted {
    /// A session comes of it: its places, which it has for as long as it lasts, and its pace.
    #[must_use]
    pub fn keep(self) -> (Seats, Option<Pace>) {
        let seats = Seats(self.entered.map(|entered| entered?.keep()));
        (seats, self.pace)
    }

    /// The bounds of a session that would have `limits` without it.
    #[must_use]
    pub fn bound(&self, limits: &Rc<SessionLimits>) -> Rc<SessionLimits> {
        self.rule.bound(limits)
    }
}

impl Seats {
    /// One that was not counted among its endpoint's, which had no limit, is from now on, though there may be too many. One that was takes no
    /// second place, not even for a moment: somebody might be turned away for that.
    pub fn count_in(&mut self, policy: &Policy, endpoint: &str) {
        let own = &mut self.0[LimitOf::Endpoint as usize];
        if own.is_none() {
            *own = policy.seat(endpoint);
        }
    }
}

impl TurnedAway {
    const DENIED: Self = Self {
        refusal: Refusal::Policy,
        why: Why::Denied,
        waited: Waited::No,
    };

    fn at(of: LimitOf, full: Full, turnstile: &Turnstile, entry: &Entry) -> Self {
        let (refusal, why) = match (full, of) {
            (Full::Places, of) => {
                let refusal = match of {
                    LimitOf::Endpoint => Refusal::EndpointLimit,
                    LimitOf::Listener => Refusal::ListenerLimit,
                    LimitOf::Relay => Refusal::GlobalLimit,
                };
                (refusal, Why::Sessions(of, turnstile.places().most()))
            }
            (Full::Rate(_), of) => {
                let rate = entry.rate.map_or(0, |rate| rate.per_second.get());
                (Refusal::Rate, Why::Rate(of, rate))
            }
        };
        Self {
            refusal,
            why,
            waited: Waited::No,
        }
    }
}

impl Display for TurnedAway {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whose = |of: LimitOf| match of {
            LimitOf::Endpoint => "its endpoint",
            LimitOf::Listener => "the listener",
            LimitOf::Relay => "the relay",
        };
        match self.why {
            Why::Denied => write!(f, "its endpoint is denied"),
            Why::Sessions(of, most) => {
                let whose = whose(of);
                write!(
                    f,
                    "{whose} has all of its sessions open, max_sessions = {most}"
                )
            }
            Why::Rate(of, rate) => {
                let whose = whose(of);
                write!(
                    f,
                    "{whose} has them come faster than sessions_per_second = {rate}"
                )
            }
        }?;
        f.write_str(match self.waited {
            Waited::No => "",
            Waited::InVain => "; it waited for wait_for",
            Waited::TooMany => "; no more may wait, max_waiting",
            Waited::UntilItLeft => "; it waited, and left",
        })
    }
}
