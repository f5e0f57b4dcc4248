//! A session in its relaying phase, as plain data, and the decisions about its end.

use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use rustix::event::epoll::EventFlags;
use rustix::io::{Errno, ioctl_fionread};

use super::half::Half;
use super::lifetime::{Lifetime, Phase};
use super::pacing::Pacer;
use super::timer::Millis;
use crate::account::audit::{Facts, Leg};
use crate::account::{CloseReason, Direction, Meter};
use crate::config::{RelayMode, SessionLimits};
use crate::policy::admission::Seats;
use crate::policy::bucket::Nanos;
use crate::policy::pace::Pace;
use crate::reactor::{END, Watched};
use crate::spread::Load;
use crate::sys::pipe::Pipe;
use crate::sys::socket::{limit_pacing, unacknowledged};
use crate::sys::tcp_info::{TcpInfo, tcp_info};
use crate::upstream::address::Hold;
use crate::upstream::balance::key_of;

/// How long nothing must have moved before a session counts as between two messages and not within one: a few round trips over the
/// longest way (327 ms), so that what paces itself by its answers is within.
const QUIET: Millis = 1000;

/// What the engine takes over once both sockets are connected.
#[derive(Debug)]
pub struct NewSession {
    /// Towards the balancer.
    pub client_socket: Watched,
    /// Towards the control plane.
    pub upstream_socket: Watched,
    /// Payload that was read behind the header.
    pub first: Vec<u8>,
    /// Its hold on the account.
    pub meter: Meter,
    /// Its bounds.
    pub limits: Rc<SessionLimits>,
    /// Who is talking to whom, for the log.
    pub parties: Parties,
    /// The upstream's socket was dialled ahead, and is watched more closely ([`leg::watch_idle`](crate::leg::watch_idle)) until it has shown
    /// that it is alive.
    pub ahead: bool,
    /// How fast its endpoint's sessions may move bytes; `None`: as fast as it goes.
    pub pace: Option<Pace>,
    /// What is free again when the session ends.
    pub place: Place,
}

/// A session's place: held as long as it lasts.
#[derive(Debug)]
pub struct Place {
    /// Its endpoint, where it is booked to `overflow`.
    pub endpoint: Option<Box<str>>,
    /// Among the sessions of its endpoint, its listener and the relay.
    pub seats: Seats,
    /// Among the worker's connections.
    pub load: Load,
    /// On the upstream's address.
    pub hold: Hold,
}

/// The addresses of a session.
#[derive(Debug, Clone, Copy)]
pub struct Parties {
    /// The client, as the header tells it.
    pub client: SocketAddr,
    /// Who really connected: an NLB node.
    pub peer: SocketAddr,
}

/// One of a session's two sockets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Client,
    Upstream,
}

impl Side {
    pub(super) const ALL: [Self; 2] = [Self::Client, Self::Upstream];

    pub(super) fn other(self) -> Self {
        match self {
            Self::Client => Self::Upstream,
            Self::Upstream => Self::Client,
        }
    }

    /// The direction whose source this side is.
    pub(super) fn outgoing(self) -> Direction {
        match self {
            Self::Client => Direction::ToUpstream,
            Self::Upstream => Direction::ToClient,
        }
    }

    /// The reason a session has when this side failed.
    pub(super) fn failed_with(self, errno: Errno) -> CloseReason {
        let silent = matches!(
            errno,
            Errno::TIMEDOUT | Errno::HOSTUNREACH | Errno::NETUNREACH | Errno::HOSTDOWN
        );
        match (self, silent) {
            (Self::Client, false) => CloseReason::ClientReset,
            (Self::Client, true) => CloseReason::ClientTimeout,
            (Self::Upstream, false) => CloseReason::UpstreamReset,
            (Self::Upstream, true) => CloseReason::UpstreamTimeout,
        }
    }
}

/// A reset that comes sooner than this, before a byte, says something of the address and not of the conversation.
const EARLY: Millis = 1000;

/// Announcements in vain after which a side is not listened to. Most stalls are shorter, and turning away and back costs two calls.
const DEAF: u8 = 8;

/// See the module.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) sockets: [Watched; 2],
    pub(super) halves: [Half; 2],
    pub(super) pipes: [Option<Pipe>; 2],
    pub(super) meter: Meter,
    pub(super) bytes: [u64; 2],
    pub(super) lifetime: Lifetime,
    pub(super) parties: Parties,
    pub(super) place: Place,
    /// Its entry in the timers.
    pub(super) due: Option<Millis>,
    /// Boxed: most have none.
    pub(super) pacer: Option<Box<Pacer>>,
    /// The side that failed first, and what the session will be closed with once the other got what was under way.
    pub(super) lost: Option<(Side, CloseReason)>,
    /// Segments sent again on the upstream's leg, as they were last counted.
    retransmits: u32,
    /// It is on the engine's list of those with more to do.
    pub(super) queued: bool,
    /// How often each side announced bytes that could not be passed on; [`DEAF`]: it is not listened to.
    in_vain: [u8; 2],
}

impl Session {
    pub(super) fn new(new: NewSession, mode: RelayMode, now: Millis) -> Self {
        Self {
            sockets: [new.client_socket, new.upstream_socket],
            halves: [Half::new(mode, new.first), Half::new(mode, Vec::new())],
            pipes: [None, None],
            meter: new.meter,
            bytes: [0; 2],
            lifetime: Lifetime::new(new.limits, new.ahead, now),
            parties: new.parties,
            place: new.place,
            due: None,
            pacer: new.pace.map(|pace| Box::new(Pacer::new(pace))),
            lost: None,
            queued: false,
            retransmits: 0,
            in_vain: [0; 2],
        }
    }

    /// The kernel announced something of a side.
    pub(super) fn announced(&mut self, side: Side, flags: EventFlags) {
        let end = flags.intersects(END);
        if end || flags.contains(EventFlags::IN) {
            self.half(side.outgoing()).source_ready(end);
        }
        if flags.intersects(EventFlags::OUT | EventFlags::HUP | EventFlags::ERR) {
            self.half(side.other().outgoing()).sink_ready();
        }
        if flags.contains(EventFlags::PRI) {
            self.half(side.outgoing()).source_has_urgent();
        }
        if flags.contains(EventFlags::ERR) {
            self.half(side.outgoing()).source_has_error();
        }
    }

    /// After a turn: whoever announces bytes again and again that cannot be passed on is not listened to until they have gone.
    pub(super) fn listen(&mut self, announced_bytes: Option<Side>) {
        for side in Side::ALL {
            let (half, socket) = (
                &self.halves[side.outgoing() as usize],
                &self.sockets[side as usize],
            );
            let in_vain = &mut self.in_vain[side as usize];
            match *in_vain {
                DEAF if half.waits_for_source() => {
                    // Fails for no socket that is registered.
                    let _ = socket.listen(true);
                    *in_vain = 0;
                }
                DEAF => {}
                _ if announced_bytes == Some(side) && half.has_enough() => {
                    *in_vain += 1;
                    if *in_vain == DEAF {
                        let _ = socket.listen(false);
                    }
                }
                _ if announced_bytes == Some(side) => *in_vain = 0,
                _ => {}
            }
        }
    }

    /// It goes by another pace, or by none; whether that is so.
    pub(super) fn repace(&mut self, pace: Option<Pace>, now: Nanos) -> bool {
        let same = match (&self.pacer, &pace) {
            (None, None) => true,
            (Some(pacer), Some(pace)) => pacer.goes_by(pace),
            (Some(_), None) | (None, Some(_)) => false,
        };
        if same {
            return false; // who waits keeps its place
        }
        let mut before = self.pacer.take();
        for side in Side::ALL {
            let direction = side.outgoing();
            let Some(before) = &mut before else { continue };
            before.move_to(pace.as_ref(), direction, now);
            if before.was_told(direction) {
                // It fails on no kernel that took the first; a session that waits again is told of the new one then.
                let _ = limit_pacing(&self.sockets[side.other() as usize], None);
            }
        }
        self.pacer = pace.map(|pace| Box::new(Pacer::new(pace)));
        // Who waited asks again, by the new pace: a read when it is driven, what was read behind the header here.
        let first = self.half(Side::Client.outgoing());
        let first = first.is_held_up() && first.held() > 0;
        self.halves.iter_mut().for_each(Half::let_go);
        if first {
            self.begin(now);
        }
        true
    }

    /// It begins: what was read behind its header goes by its pace, too.
    pub(super) fn begin(&mut self, now: Nanos) {
        let direction = Side::Client.outgoing();
        let half = &mut self.halves[direction as usize];
        if let Some(pacer) = &mut self.pacer
            && half.held() > 0
            && pacer.begin(direction, now, half.held())
        {
            half.hold_up();
        }
    }

    /// A direction was held up: the kernel smooths what it sends from now on.
    pub(super) fn smooth(&mut self, side: Side) {
        if let Some(pacer) = &mut self.pacer
            && let Some(rate) = pacer.tells(side.outgoing())
        {
            // Where the kernel does not take it, timers alone have to do.
            let _ = limit_pacing(&self.sockets[side.other() as usize], Some(rate));
        }
    }

    /// Lets those directions go whose time has come; whether there were any.
    pub(super) fn let_go(&mut self, now: Nanos) -> bool {
        let Some(pacer) = &mut self.pacer else {
            return false;
        };
        let mut any = false;
        for side in Side::ALL {
            let direction = side.outgoing();
            let half = &mut self.halves[direction as usize];
            if pacer.has_begun(direction, now) {
                if half.held() > 0 {
                    pacer.spend(direction); // what was read behind the header, else a read asks for it
                }
                half.let_go();
                any = true;
            }
        }
        any
    }

    /// Whether a direction waits for its time: it has something to read, so the session is not silent.
    pub(super) fn is_held_up(&self) -> bool {
        self.halves.iter().any(Half::is_held_up)
    }

    /// What is reserved for a direction is free again.
    pub(super) fn release(&mut self, direction: Direction, now: Nanos) {
        if let Some(pacer) = &mut self.pacer {
            pacer.release(direction, now);
        }
    }

    pub(super) fn half(&mut self, direction: Direction) -> &mut Half {
        &mut self.halves[direction as usize]
    }

    /// Whether neither direction has anything left to do.
    pub(super) fn is_complete(&self) -> bool {
        self.halves.iter().all(Half::is_over)
    }

    /// Whether nothing is under way, as far as can be known: nothing held here, nothing waiting to be read, nothing moved for a while.
    pub(super) fn is_quiet(&self, now: Millis) -> bool {
        let unread = |socket| ioctl_fionread(socket).unwrap_or(0) > 0;
        self.lifetime.silence(now) >= QUIET
            && self.halves.iter().all(|half| half.held() == 0)
            && !self.sockets.iter().any(unread)
    }

    /// Tells the upstream's address how the way there is, and whoever asks, what the kernel knows of it.
    pub(super) fn measure(&mut self) -> Option<TcpInfo> {
        // It fails on an older kernel than any we know, or by a fault of ours: then the figures stay as they are.
        let info = tcp_info(&self.sockets[Side::Upstream as usize]).ok()?;
        let retransmits = info.total_retransmits;
        let more = retransmits.saturating_sub(self.retransmits);
        self.retransmits = retransmits;
        let address = self.place.hold.address();
        address.measured(info.rtt, info.delivery_rate, more.into());
        Some(info)
    }

    /// What the audit trail tells of it beside its account. Asks the kernel about the client's leg.
    pub(super) fn facts(&self, upstream: Option<TcpInfo>) -> Facts {
        let client = tcp_info(&self.sockets[Side::Client as usize]).ok();
        let address = self.place.hold.address();
        Facts {
            client: Some(self.parties.client),
            peer: Some(self.parties.peer),
            target: Some(address.target.clone()),
            address: Some(address.at),
            bytes: Some(self.bytes),
            legs: [client.map(leg), upstream.map(leg)],
        }
    }

    /// Through which endpoint it came, whatever it is booked to.
    pub(super) fn endpoint(&self) -> &str {
        let booked = &**self.meter.endpoint();
        self.place.endpoint.as_deref().unwrap_or(booked)
    }

    /// Tells the upstream's address what its end means for it.
    pub(super) fn judge_address(&self, reason: CloseReason, now: Millis) {
        let [to_upstream, to_client] = self.bytes;
        let address = self.place.hold.address();
        if to_client > 0 {
            address.spoke();
        } else if reason == CloseReason::UpstreamTimeout {
            address.reset_early(None); // it took nothing and said nothing
        } else if reason == CloseReason::UpstreamReset && self.lifetime.age(now) < EARLY {
            let key = || key_of(self.endpoint().as_bytes());
            address.reset_early((to_upstream > 0).then(key));
        }
    }

    /// What it waits for.
    pub(super) fn phase(&self) -> Phase {
        match self.lost {
            Some((_, reason)) => Phase::Resetting(reason),
            None if self.halves.iter().any(Half::is_finished) => Phase::Closing,
            None => Phase::Open,
        }
    }
}

/// A leg, as the audit trail tells it.
fn leg(info: TcpInfo) -> Leg {
    let micros = |time: Duration| u32::try_from(time.as_micros()).unwrap_or(u32::MAX);
    Leg {
        rtt_us: info.rtt.map(micros),
        min_rtt_us: info.min_rtt.map(micros),
        retransmits: info.total_retransmits,
        delivery_rate: info.delivery_rate,
        bytes_acked: info.bytes_acked,
        bytes_received: info.bytes_received,
    }
}

/// Bytes that were taken from one side and that the other has not acknowledged, here and in the kernel.
pub(super) fn undelivered(
    halves: &[Half; 2],
    sockets: &[Watched; 2],
    lost: Option<(Side, CloseReason)>,
) -> u64 {
    let held: usize = halves.iter().map(Half::held).sum();
    let reachable = Side::ALL
        .into_iter()
        .filter(|side| lost.is_none_or(|lost| lost.0 != *side));
    let in_kernel = reachable.filter_map(|side| unacknowledged(&sockets[side as usize]).ok());
    held as u64 + in_kernel.map(u64::from).sum::<u64>()
}
