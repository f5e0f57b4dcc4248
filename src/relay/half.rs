//! One direction of a session, without I/O: told what happened, it says what to do next.
//!
//! Readiness is edge-triggered: `readable` and `writable` stay true until the kernel said otherwise, and are only set
//! again by an event. Both must hold before anything is read, so that what was read can be passed on at once; the exceptions are
//! bounded by one read ([`Half::keep`]) or one pipe.

use crate::config::RelayMode;

/// Size of the worker's buffer: the most one read brings. Measured: below it bulk costs more per byte, above it nothing is won.
pub const FULL_READ: usize = 256 * 1024;

/// The most one read brings in a direction whose sink stalled lately: what cannot be passed on must be kept on the heap.
const STALLED_READ: usize = 64 * 1024;

/// Reads passed on whole before a direction that stalled reads its full again.
const CAUTION: u8 = 4;

/// Full reads in a row after which a direction is bulk, and spliced.
const BULK_AFTER: u8 = 3;

/// A splice below this many bytes is a short one: copying would have been cheaper.
const SHORT_SPLICE: usize = 16 * 1024;

/// Short splices in a row after which a direction is copied again.
const SHORT_SPLICES: u8 = 8;

/// What to do next in a direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Send what is kept ([`Half::kept`]).
    SendKept,
    /// Splice from the pipe to the sink.
    Flush,
    /// Read at most so many bytes and send them.
    Copy {
        /// Room for the read.
        limit: usize,
    },
    /// Splice from the source into an empty pipe.
    Fill,
    /// Everything was passed on and the source is at its end: shut the sink down for writing.
    PassFin,
    /// Read and throw away: the sink is lost, and a source that cannot send may not read what is still meant for it.
    Discard,
    /// Nothing until an event.
    Wait,
    /// Nothing ever again.
    Done,
}

/// See the module.
#[derive(Debug)]
pub struct Half {
    /// Bytes read that the sink did not take, and how many of them it took since.
    kept: Option<(Box<[u8]>, usize)>,
    /// Bytes in the pipe. Never compared with its size: pages move by reference, so a pipe can hold more than its nominal
    /// size, and be full with far less.
    in_pipe: usize,
    mode: RelayMode,
    splicing: bool,
    /// Full reads in a row while copying, short splices in a row while splicing.
    in_a_row: u8,
    readable: bool,
    /// The kernel announced an end (FIN, RST) or urgent data: a short read no longer means that the socket is drained.
    read_to_the_end: bool,
    /// An error was announced: once the end is read it must be asked for, because after a FIN no read tells it.
    error_announced: bool,
    /// Urgent data came: splice(2) stops before it for ever, only reading gets past it.
    urgent: bool,
    writable: bool,
    /// There is something to read, or was when the session began, and its pace does not allow it yet.
    held_up: bool,
    /// Reads to be passed on whole before the limit is lifted again.
    caution: u8,
    /// Whether the source was ever kept from sending, and whether that was asked for since.
    stalled: Stalled,
    source: Source,
    sink: Sink,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stalled {
    Never,
    Untold,
    Told,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    Open,
    /// It failed elsewhere; what it still holds is read, then it is [`Source::Lost`].
    Failing,
    /// Its FIN was read.
    Ended,
    /// It failed and has nothing more.
    Lost,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sink {
    Open,
    FinPassed,
    Lost,
}

impl Half {
    /// A direction that begins with `first` to send: what was read behind the header.
    #[must_use]
    pub fn new(mode: RelayMode, first: Vec<u8>) -> Self {
        Self {
            kept: (!first.is_empty()).then(|| (first.into_boxed_slice(), 0)),
            in_pipe: 0,
            mode,
            splicing: mode == RelayMode::Splice,
            in_a_row: 0,
            readable: false, // registering with epoll reports what is there
            read_to_the_end: false,
            error_announced: false,
            urgent: false,
            writable: true,
            held_up: false,
            caution: 0,
            stalled: Stalled::Never,
            source: Source::Open,
            sink: Sink::Open,
        }
    }

    /// What to do now.
    #[must_use]
    pub fn next(&self) -> Next {
        let pending = match (self.in_pipe, &self.kept) {
            (0, None) => None,
            (0, Some(_)) => Some(Next::SendKept),
            (_, _) => Some(Next::Flush),
        };
        match (self.sink, pending, self.source) {
            (Sink::Lost, _, Source::Open) if self.readable => Next::Discard,
            (Sink::FinPassed | Sink::Lost, _, _) => Next::Done,
            (Sink::Open, Some(_), _) if !self.writable || self.held_up => Next::Wait,
            (Sink::Open, Some(next), _) => next,
            (Sink::Open, None, Source::Ended) => Next::PassFin,
            (Sink::Open, None, Source::Lost) => Next::Done,
            (Sink::Open, None, Source::Open | Source::Failing) => {
                match (
                    self.readable && self.writable && !self.held_up,
                    self.splicing && !self.urgent,
                ) {
                    (false, _) => Next::Wait,
                    (true, true) => Next::Fill,
                    (true, false) => Next::Copy {
                        limit: self.read_limit(),
                    },
                }
            }
        }
    }

    fn read_limit(&self) -> usize {
        if self.caution > 0 {
            STALLED_READ
        } else {
            FULL_READ
        }
    }

    /// Event: the source has bytes, or, if so announced, an end.
    pub fn source_ready(&mut self, end_announced: bool) {
        self.readable = true;
        self.read_to_the_end |= end_announced;
    }

    /// Event: the source has an error, which may stand behind bytes and a FIN.
    pub fn source_has_error(&mut self) {
        self.error_announced = true;
    }

    /// Event: the source has urgent data. It is passed on in its place, as bytes like any other (SO_OOBINLINE is set).
    pub fn source_has_urgent(&mut self) {
        self.urgent = true;
        self.source_ready(true);
    }

    /// Whether an error was announced that no read will tell, or not soon.
    #[must_use]
    pub fn hides_an_error(&self) -> bool {
        self.error_announced
            && (self.source == Source::Ended || (self.held_up && self.source == Source::Open))
    }

    /// Whether more bytes from the source are no news: it could read, but for a sink that takes nothing or a pace that does not allow it.
    #[must_use]
    pub fn has_enough(&self) -> bool {
        self.sink == Sink::Open && self.readable && (!self.writable || self.held_up)
    }

    /// Its pace does not allow anything yet.
    pub fn hold_up(&mut self) {
        self.held_up = true;
        self.stall();
    }

    /// Its time has come.
    pub fn let_go(&mut self) {
        self.held_up = false;
    }

    /// Whether its pace does not allow anything yet.
    #[must_use]
    pub fn is_held_up(&self) -> bool {
        self.held_up
    }

    /// Whether nothing but bytes from the source will get it going.
    #[must_use]
    pub fn waits_for_source(&self) -> bool {
        let could_pass_on = match self.sink {
            Sink::Open => self.writable && self.held() == 0,
            Sink::Lost => true,
            Sink::FinPassed => false,
        };
        could_pass_on && !self.readable && matches!(self.source, Source::Open | Source::Failing)
    }

    /// Event: the sink has room, or an error that the next write will tell.
    pub fn sink_ready(&mut self) {
        self.writable = true;
    }

    /// The source said it has nothing now.
    pub fn source_blocked(&mut self) {
        self.readable = false;
    }

    /// The sink said it has no room now.
    pub fn sink_blocked(&mut self) {
        self.writable = false;
        self.caution = CAUTION;
        self.stall();
    }

    fn stall(&mut self) {
        if self.stalled == Stalled::Never {
            self.stalled = Stalled::Untold;
        }
    }

    /// Whether it takes less than the source may send for the first time: true once.
    pub fn began_to_stall(&mut self) -> bool {
        let untold = self.stalled == Stalled::Untold;
        if untold {
            self.stalled = Stalled::Told;
        }
        untold
    }

    /// `n` bytes were read with room for `limit`; none is the end.
    pub fn received(&mut self, n: usize, limit: usize) {
        if n == 0 {
            return self.source_ended();
        }
        if n < limit && !self.read_to_the_end {
            self.readable = false; // drained: saves the read that would say so
        }
        self.in_a_row = if n == limit && n >= SHORT_SPLICE {
            self.in_a_row.saturating_add(1)
        } else {
            0
        };
        if self.in_a_row >= BULK_AFTER && self.mode == RelayMode::Adaptive {
            (self.splicing, self.in_a_row) = (true, 0);
        }
    }

    /// `n` bytes went into the pipe. None is the end, or urgent data that splice(2) does not pass: a read will tell.
    pub fn filled(&mut self, n: usize) {
        if n == 0 {
            return self.copy_again();
        }
        self.in_pipe += n;
        self.in_a_row = if n < SHORT_SPLICE {
            self.in_a_row.saturating_add(1)
        } else {
            0
        };
        if self.in_a_row >= SHORT_SPLICES && self.mode == RelayMode::Adaptive {
            self.copy_again();
        }
    }

    /// Splicing is given up, for now: the direction is copied until it is bulk again (for good where splice was asked for).
    pub fn copy_again(&mut self) {
        (self.splicing, self.in_a_row) = (false, 0);
    }

    /// `n` bytes went from the pipe to the sink.
    pub fn flushed(&mut self, n: usize) {
        self.in_pipe = self.in_pipe.saturating_sub(n);
    }

    /// The source is at its end: FIN, or nothing more from one that failed.
    pub fn source_ended(&mut self) {
        self.source = match self.source {
            Source::Failing | Source::Lost => Source::Lost,
            Source::Open | Source::Ended => Source::Ended,
        };
    }

    /// The source failed and said so on read: it has nothing more.
    pub fn source_lost(&mut self) {
        if self.source != Source::Ended {
            self.source = Source::Lost;
        }
    }

    /// The source failed, found out by something else than reading it: what it received before is read first.
    pub fn source_failing(&mut self) {
        if self.source == Source::Open {
            self.source = Source::Failing;
            self.source_ready(true);
        }
    }

    /// The sink failed: what was meant for it is lost. The pipe, if there is one, must not be used again.
    pub fn sink_lost(&mut self) {
        self.sink = Sink::Lost;
        self.held_up = false;
        self.kept = None;
        self.in_pipe = 0;
    }

    /// The sink was shut down for writing.
    pub fn fin_passed(&mut self) {
        self.sink = Sink::FinPassed;
    }

    /// Bytes were read that the sink did not take.
    pub fn keep(&mut self, rest: Box<[u8]>) {
        self.sink_blocked();
        self.kept = Some((rest, 0));
    }

    /// The sink took a whole read.
    pub fn passed_on(&mut self) {
        self.caution = self.caution.saturating_sub(1);
    }

    /// What is kept and not sent yet.
    #[must_use]
    pub fn kept(&self) -> &[u8] {
        self.kept
            .as_ref()
            .map_or(&[], |(bytes, sent)| &bytes[*sent..])
    }

    /// The sink took `n` bytes of what is kept.
    pub fn sent_kept(&mut self, n: usize) {
        let Some((bytes, sent)) = &mut self.kept else {
            return;
        };
        *sent += n;
        match *sent < bytes.len() {
            true => self.sink_blocked(),
            false => self.kept = None,
        }
    }

    /// Bytes in the pipe.
    #[must_use]
    pub fn in_pipe(&self) -> usize {
        self.in_pipe
    }

    /// Bytes that were read and that the sink has not taken.
    #[must_use]
    pub fn held(&self) -> usize {
        self.in_pipe + self.kept().len()
    }

    /// Whether nothing more will reach the sink.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.sink == Sink::Lost || self.next() == Next::Done
    }

    /// Whether the FIN was passed on.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.sink == Sink::FinPassed
    }
}

#[cfg(test)]
#[path = "half_tests.rs"]
mod tests;
