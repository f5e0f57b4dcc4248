//! Which addresses of an upstream serve, without I/O: answers, failures and health checks in, an immutable [`Snapshot`] out.
//!
//! An address is *usable* when it is in the answers, not ejected for failures, and not found unhealthy. Addresses stand in groups by
//! their target's priority, and one group serves: the best of which enough is usable. Everything else is kept behind it, in an order
//! in which a session may still try it before it gives up.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::address::Address;
use super::snapshot::{Choice, Snapshot};
use super::state::{Event, State};
use crate::config::{self, Eject, Failover, Family};

/// Addresses that left and have no session any more are remembered up to this number, with what was counted of them.
const MOST_GONE: usize = 1024;

/// The addresses of one upstream, as the control thread keeps them.
#[derive(Debug)]
pub struct Roster {
    upstream: usize,
    settings: config::Upstream,
    family: Family,
    targets: Vec<Target>,
    members: Vec<Member>,
    /// Addresses that left: one that comes back is the same, and those that still have sessions are shown.
    gone: HashMap<SocketAddr, Member>,
    serving: u32,
    /// Groups that handed over because too little of them was usable: they come back with hysteresis.
    left: BTreeSet<u32>,
    /// The better group that could take over again, and since when.
    better: Option<(u32, Instant)>,
    panicking: bool,
    /// Targets have other addresses than the members show.
    dirty: bool,
    attention: Arc<Notify>,
    events: Vec<Event>,
    counts: Counts,
}

/// What a target stands for.
#[derive(Debug, Clone, Default)]
struct Target {
    looked_up: bool,
    /// When it had addresses for the first time.
    first: Option<Instant>,
    /// Its addresses came beside others that were already serving.
    grown: bool,
    addresses: Vec<SocketAddr>,
}

/// How often something happened since the start.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    /// Another group took over.
    pub failovers: u64,
    /// An address was left alone for a while.
    pub ejections: u64,
}

/// One address and what is thought of it.
#[derive(Debug, Clone)]
pub struct Member {
    /// What workers share.
    pub address: Arc<Address>,
    /// Index of its target.
    pub target: usize,
    /// Its group.
    pub priority: u32,
    /// Its share within the group.
    pub weight: u32,
    /// Why it is in its state.
    pub why: String,
    /// Since when.
    pub since: Instant,
    /// Until when it is left alone, and why.
    ejected: Option<(Instant, String)>,
    ejections: u32,
    /// Why its health checks fail.
    unhealthy: Option<String>,
    /// Health checks in a row with the same result.
    run: (bool, u32),
    /// When it came (back) beside others that were already serving.
    returned: Option<Instant>,
}

impl Roster {
    /// No address yet. `upstream` is its [`id`](super::Upstream::id); `attention` is handed to its addresses.
    #[must_use]
    pub fn new(
        upstream: usize,
        settings: config::Upstream,
        family: Family,
        attention: Arc<Notify>,
    ) -> Self {
        let targets = settings.targets.iter().map(|_| Target::default());
        let best = settings.targets.iter().map(|target| target.priority).min();
        Self {
            upstream,
            targets: targets.collect(),
            members: Vec::new(),
            gone: HashMap::new(),
            serving: best.unwrap_or(0),
            left: BTreeSet::new(),
            better: None,
            panicking: false,
            dirty: false,
            attention,
            events: Vec::new(),
            counts: Counts::default(),
            family,
            settings,
        }
    }

    /// What follows with other settings: of targets that are in both, what is known stays known, and addresses keep what they are and what is
    /// thought of them. [`Roster::look`] takes up what changed.
    #[must_use]
    pub fn successor(&self, settings: config::Upstream, family: Family) -> Self {
        let alarm = settings.eject.after.unwrap_or(0);
        let mut members = self.members.clone();
        for member in &mut members {
            member.address.set_alarm(alarm);
            if settings.health.is_none() {
                member.unhealthy = None;
            }
            if settings.eject.after.is_none() {
                member.ejected = None;
            }
        }
        let written = settings.targets.iter();
        let targets: Vec<Target> = written
            .map(|target| {
                let before = self.settings.targets.iter();
                let mut before = before.zip(&self.targets);
                let same = |before: &config::Target| {
                    (&before.host, before.port) == (&target.host, target.port)
                };
                let before = before.find(|(written, _)| same(written));
                before.map_or_else(Target::default, |(_, known)| known.clone())
            })
            .collect();
        let groups: BTreeSet<u32> = settings
            .targets
            .iter()
            .map(|target| target.priority)
            .collect();
        let best = groups.first().copied().unwrap_or(0);
        Self {
            upstream: self.upstream,
            targets,
            members,
            gone: self.gone.clone(),
            serving: match groups.contains(&self.serving) {
                true => self.serving,
                false => best,
            },
            left: self.left.intersection(&groups).copied().collect(),
            better: None,
            panicking: self.panicking,
            dirty: true,
            attention: self.attention.clone(),
            events: Vec::new(),
            counts: self.counts,
            family,
            settings,
        }
    }

    /// Its upstream's [`id`](super::Upstream::id).
    #[must_use]
    pub fn id(&self) -> usize {
        self.upstream
    }

    /// What became of looking a target up: its addresses now. Returns whether anything changed, which [`Roster::look`] then takes up.
    pub fn resolved(
        &mut self,
        target: usize,
        looked_up: bool,
        addresses: &[SocketAddr],
        now: Instant,
    ) -> bool {
        let known = &mut self.targets[target];
        let news = looked_up && !known.looked_up;
        known.looked_up |= looked_up;
        if known.addresses == addresses {
            return news;
        }
        // Whoever comes with the first answers (those of the other family, say) is as new as all the others.
        let first = *known.first.get_or_insert(now);
        let grown = self
            .settings
            .slow_start
            .is_some_and(|window| now >= first + window);
        known.addresses = addresses.to_vec();
        known.grown = grown;
        self.dirty = true;
        true
    }

    /// Brings the members in line with the targets' addresses. Where two targets have the same address, the first one's word counts.
    fn regroup(&mut self, now: Instant) {
        let mut before: HashMap<SocketAddr, Member> = HashMap::with_capacity(self.members.len());
        before.extend(
            self.members
                .drain(..)
                .map(|member| (member.address.at, member)),
        );
        let mut seen = BTreeSet::new();
        for (index, target) in self.targets.iter().enumerate() {
            let written = &self.settings.targets[index];
            for at in &target.addresses {
                if !seen.insert(*at) {
                    continue;
                }
                let mut member = before.remove(at).unwrap_or_else(|| {
                    let back = self.gone.remove(at).map(|gone| gone.address);
                    let address = back.unwrap_or_else(|| {
                        Arc::new(Address::new(
                            *at,
                            written.to_string().into(),
                            self.upstream,
                            self.settings.eject.after.unwrap_or(0),
                            self.attention.clone(),
                        ))
                    });
                    address.set_present(true);
                    address.forget_failures();
                    Member {
                        address,
                        target: index,
                        priority: 0,
                        weight: 0,
                        why: "in the answers".to_owned(),
                        since: now,
                        ejected: None,
                        ejections: 0,
                        unhealthy: None,
                        run: (true, 0),
                        returned: target.grown.then_some(now),
                    }
                });
                member.target = index;
                (member.priority, member.weight) = (written.priority, written.weight);
                self.members.push(member);
            }
        }
        if self.gone.len() > MOST_GONE {
            self.gone.retain(|_, gone| gone.address.load() > 0);
        }
        for (at, mut member) in before {
            member.address.set_present(false);
            (member.since, member.why) = (now, "left the answers".to_owned());
            self.gone.insert(at, member);
        }
    }

    /// What a health check of an address found.
    pub fn probed(&mut self, at: SocketAddr, result: Result<(), String>, now: Instant) {
        let Some(check) = &self.settings.health else {
            return;
        };
        let (rise, fall) = (check.rise, check.fall);
        let slow_start = self.settings.slow_start;
        let Some(member) = self
            .members
            .iter_mut()
            .find(|member| member.address.at == at)
        else {
            return;
        };
        let good = result.is_ok();
        member.run = match member.run {
            (before, times) if before == good => (good, times.saturating_add(1)),
            _ => (good, 1),
        };
        let before = member.state(now, slow_start);
        match result {
            Ok(()) if member.unhealthy.is_some() && member.run.1 >= rise => {
                member.unhealthy = None;
                member.returned = Some(now);
            }
            Err(why) if member.unhealthy.is_none() && member.run.1 >= fall => {
                member.unhealthy = Some(why);
            }
            _ => return,
        }
        let why = format!("answered {rise} health checks");
        self.events
            .extend(member.turn(before, now, why, slow_start));
        self.look(now);
    }

    /// Looks at everything that time and failures change.
    pub fn look(&mut self, now: Instant) {
        if std::mem::take(&mut self.dirty) {
            self.regroup(now);
        }
        let slow_start = self.settings.slow_start;
        let eject = self.settings.eject;
        // Groups in which an address that was used has not been reset.
        let fine = |member: &&Member| {
            member.is_usable() && member.address.early_resets() == 0 && member.address.opened() > 0
        };
        let well = self.members.iter().filter(fine);
        let well: BTreeSet<u32> = well.map(|member| member.priority).collect();
        for member in &mut self.members {
            let before = member.state(now, slow_start);
            let others_do_well = well.contains(&member.priority);
            if let Some((pause, why)) = member.fails(eject, others_do_well, now) {
                let why = format!("{why}; left alone for {}", config::duration_text(pause));
                member.ejected = Some((now + pause, why));
                self.counts.ejections += 1;
            } else if member.ejected_until().is_some_and(|until| until <= now) {
                member.ejected = None;
                member.address.forget_failures();
                member.returned = Some(now);
            } else {
                continue;
            }
            let event = member.turn(before, now, "tried again".to_owned(), slow_start);
            self.events.extend(event);
        }
        self.choose_group(now);
        let share = self.share(self.serving);
        let panicking = share.is_some_and(|share| {
            share == 0 || share < self.settings.eject.panic_below && share < 100
        });
        if panicking != std::mem::replace(&mut self.panicking, panicking) {
            self.events.push(Event::Panic(panicking));
        }
    }

    /// When to look again, whatever else happens.
    #[must_use]
    pub fn next(&self) -> Option<Instant> {
        let ends = self.members.iter().filter_map(Member::ejected_until);
        let back = self
            .better
            .map(|(_, since)| since + self.settings.failover.back_after);
        ends.chain(back).min()
    }

    /// The usable part of a group's weight, in percent, rounded down; `None`: it has no address.
    #[must_use]
    pub fn share(&self, priority: u32) -> Option<u32> {
        let (mut usable, mut all) = (0_u64, 0_u64);
        for member in self
            .members
            .iter()
            .filter(|member| member.priority == priority)
        {
            all += u64::from(member.weight);
            if member.is_usable() {
                usable += u64::from(member.weight);
            }
        }
        (all > 0).then(|| u32::try_from(usable * 100 / all).unwrap_or(0))
    }

    /// The groups, best first.
    #[must_use]
    pub fn groups(&self) -> Vec<u32> {
        let priorities = self.settings.targets.iter().map(|target| target.priority);
        priorities.collect::<BTreeSet<_>>().into_iter().collect()
    }

    fn choose_group(&mut self, now: Instant) {
        let Failover {
            below,
            back_above,
            back_after,
            ..
        } = self.settings.failover;
        let groups = self.groups();
        let shares: BTreeMap<u32, u32> = groups
            .iter()
            .filter_map(|group| Some((*group, self.share(*group)?)))
            .collect();
        let share = |group: u32| shares.get(&group).copied().unwrap_or(0);
        let current = share(self.serving);
        if current < below {
            let good = groups.iter().copied().find(|group| share(*group) >= below);
            // None has enough: the best that has anything; and where nothing is usable, one that has addresses at least.
            let some = groups.iter().copied().filter(|group| share(*group) > 0);
            let any = groups
                .iter()
                .copied()
                .find(|group| shares.contains_key(group));
            let next = good
                .or_else(|| some.max_by_key(|group| (share(*group), std::cmp::Reverse(*group))))
                .or(any.filter(|_| !shares.contains_key(&self.serving)));
            if let Some(next) = next.filter(|next| *next != self.serving) {
                let why = format!("{current} % of group {} is usable", self.serving);
                // A group that was never looked up has not failed: it may come at once.
                if self.is_looked_up(self.serving) {
                    self.left.insert(self.serving);
                }
                self.serve(next, why);
            }
        }
        let better = |group: &u32| {
            *group < self.serving
                && if self.left.contains(group) {
                    share(*group) >= back_above
                } else {
                    share(*group) >= below.max(1)
                }
        };
        let Some(best) = groups.iter().copied().find(better) else {
            self.better = None;
            return;
        };
        let since = match self.better {
            Some((group, since)) if group == best => since,
            _ => now,
        };
        if !self.left.contains(&best) || now >= since + back_after {
            let why = format!("{} % of group {best} is usable again", share(best));
            self.left.remove(&best);
            self.serve(best, why);
        } else {
            self.better = Some((best, since));
        }
    }

    fn serve(&mut self, next: u32, why: String) {
        let from = std::mem::replace(&mut self.serving, next);
        self.better = None;
        self.counts.failovers += 1;
        let to = next;
        self.events.push(Event::Group { from, to, why });
    }

    fn is_looked_up(&self, priority: u32) -> bool {
        let mut group = self.targets.iter().zip(&self.settings.targets);
        group.any(|(target, written)| written.priority == priority && target.looked_up)
    }

    /// What workers are to choose from now.
    #[must_use]
    pub fn snapshot(&self, now: Instant) -> Snapshot {
        let mut tiers: BTreeMap<Rank, Vec<Choice>> = BTreeMap::new();
        for member in &self.members {
            let serving = member.priority == self.serving;
            let other_family = match self.family {
                Family::Ipv4First => member.address.at.is_ipv6(),
                Family::Ipv6First => member.address.at.is_ipv4(),
                Family::Any | Family::Ipv4 | Family::Ipv6 => false,
            };
            let believed = member.is_usable() || serving && self.panicking;
            let rank = Rank {
                not_believed: !believed,
                not_serving: !serving,
                priority: member.priority,
                other_family,
            };
            tiers.entry(rank).or_default().push(Choice {
                address: member.address.clone(),
                priority: member.priority,
                usable: member.is_usable(),
                weight: member.weight,
                slow_start: member.slow_start(now, self.settings.slow_start),
            });
        }
        Snapshot {
            looked_up: self.targets.iter().all(|target| target.looked_up),
            usable: self.members.iter().any(Member::is_usable),
            serving: self.serving,
            tiers: tiers.into_values().collect(),
        }
    }

    /// The addresses and what is thought of each.
    #[must_use]
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// Addresses that left the answers and still have sessions.
    pub fn gone(&self) -> impl Iterator<Item = &Member> {
        let gone = self.gone.values();
        gone.filter(|member| member.address.load() > 0)
    }

    /// The group that serves.
    #[must_use]
    pub fn serving(&self) -> u32 {
        self.serving
    }

    /// What happened so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// What is to be said in the log, each once.
    pub fn take_events(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.events)
    }
}

/// The order in which addresses are tried: what is believed in before what is not, what serves before what does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    not_believed: bool,
    not_serving: bool,
    priority: u32,
    other_family: bool,
}

impl Member {
    /// Whether it is neither ejected nor unhealthy.
    #[must_use]
    pub fn is_usable(&self) -> bool {
        self.ejected.is_none() && self.unhealthy.is_none()
    }

    /// What is thought of it.
    #[must_use]
    pub fn state(&self, now: Instant, slow_start: Option<Duration>) -> State {
        match () {
            () if self.unhealthy.is_some() => State::Unhealthy,
            () if self.ejected.is_some() => State::Ejected,
            () if self.slow_start(now, slow_start).is_some() => State::SlowStart,
            () => State::Usable,
        }
    }

    fn slow_start(
        &self,
        now: Instant,
        window: Option<Duration>,
    ) -> Option<(std::time::Instant, Duration)> {
        let (returned, window) = (self.returned?, window?);
        (now < returned + window).then(|| (returned.into_std(), window))
    }

    /// Whether it has failed often enough to be left alone: for how long, and why.
    fn fails(
        &mut self,
        eject: Eject,
        others_do_well: bool,
        now: Instant,
    ) -> Option<(Duration, String)> {
        let after = eject.after?;
        let (failures, what) = self.address.failures(others_do_well);
        if self.ejected.is_some() || failures < after {
            return None;
        }
        let good_for = self.returned.map(|returned| now.duration_since(returned));
        if good_for.is_none_or(|time| time >= eject.longest) {
            self.ejections = 0;
        }
        let pause = eject.pause.saturating_mul(1 << self.ejections.min(16));
        self.ejections = self.ejections.saturating_add(1);
        let why = format!("{failures} {what} in a row");
        Some((pause.min(eject.longest), why))
    }

    fn ejected_until(&self) -> Option<Instant> {
        self.ejected.as_ref().map(|(until, _)| *until)
    }

    /// Something changed that its state is made of: whether the state did, and then since when and why. `why` is said of one that serves.
    fn turn(
        &mut self,
        before: State,
        now: Instant,
        why: String,
        slow_start: Option<Duration>,
    ) -> Option<Event> {
        let state = self.state(now, slow_start);
        if state == before {
            return None;
        }
        self.since = now;
        self.why = match (&self.unhealthy, &self.ejected) {
            (Some(why), _) | (None, Some((_, why))) => why.clone(),
            (None, None) => why,
        };
        Some(Event::Address {
            at: self.address.at,
            before,
            state,
            why: self.why.clone(),
        })
    }
}
