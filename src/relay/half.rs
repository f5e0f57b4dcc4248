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
    /// Reads to be passed on whole before the limit is lifted again.
    caution: u8,
    /// Whether the sink ever refused bytes, and whether that was asked for since.
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
            (Sink::Open, Some(_), _) if !self.writable => Next::Wait,
            (Sink::Open, Some(next), _) => next,
            (Sink::Open, None, Source::Ended) => Next::PassFin,
            (Sink::Open, None, Source::Lost) => Next::Done,
            (Sink::Open, None, Source::Open | Source::Failing) => {
                match (
                    self.readable && self.writable,
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

    /// Whether the source was read to its end though an error was announced.
    #[must_use]
    pub fn hides_an_error(&self) -> bool {
        self.error_announced && self.source == Source::Ended
    }

    /// Whether it could read, but for a sink that takes nothing.
    #[must_use]
    pub fn waits_for_sink(&self) -> bool {
        self.sink == Sink::Open && self.readable && !self.writable
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
        if self.stalled == Stalled::Never {
            self.stalled = Stalled::Untold;
        }
    }

    /// Whether the sink refused bytes for the first time: true once.
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
        self.in_a_row = if n == limit {
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
mod tests {
    use super::*;

    fn half() -> Half {
        let mut half = Half::new(RelayMode::Adaptive, Vec::new());
        half.source_ready(false);
        half
    }

    const COPY: Next = Next::Copy { limit: FULL_READ };

    #[test]
    fn nothing_is_read_before_an_event() {
        assert_eq!(
            Half::new(RelayMode::Adaptive, Vec::new()).next(),
            Next::Wait
        );
    }

    #[test]
    fn bytes_behind_the_header_go_first() {
        let mut half = Half::new(RelayMode::Splice, b"hello".to_vec());
        half.source_ready(false);
        assert_eq!(half.next(), Next::SendKept);
        half.sent_kept(2);
        assert_eq!((half.next(), half.kept()), (Next::Wait, &b"llo"[..]));
        half.sink_ready();
        half.sent_kept(3);
        assert_eq!(half.next(), Next::Fill);
    }

    #[test]
    fn a_short_read_means_drained_unless_an_end_was_announced() {
        let mut half = half();
        half.received(10, FULL_READ);
        assert_eq!(half.next(), Next::Wait);
        half.source_ready(true);
        half.received(10, FULL_READ);
        assert_eq!(half.next(), COPY, "the FIN behind these bytes must be read");
        half.received(0, FULL_READ);
        assert_eq!(half.next(), Next::PassFin);
    }

    #[test]
    fn fin_waits_for_the_pipe_and_for_what_is_kept() {
        let mut half = half();
        half.filled(100);
        half.source_ready(true);
        half.source_ended();
        half.flushed(60);
        assert_eq!(half.next(), Next::Flush);
        half.sink_blocked();
        assert_eq!(half.next(), Next::Wait);
        half.sink_ready();
        half.flushed(40);
        assert_eq!(half.next(), Next::PassFin);
        let mut half = self::half();
        half.keep((*b"tail").into());
        half.received(0, FULL_READ);
        assert_eq!(half.next(), Next::Wait);
        half.sink_ready();
        assert_eq!(half.next(), Next::SendKept);
        half.sent_kept(4);
        assert_eq!(half.next(), Next::PassFin);
        half.fin_passed();
        assert_eq!(half.next(), Next::Done);
    }

    #[test]
    fn a_blocked_sink_stops_reading_and_a_blocked_source_does_not_stop_sending() {
        let mut half = half();
        half.sink_blocked();
        assert_eq!(half.next(), Next::Wait);
        half.sink_ready();
        half.filled(5);
        half.source_blocked();
        assert_eq!(half.next(), Next::Flush);
    }

    #[test]
    fn nothing_is_spliced_in_before_the_pipe_is_empty() {
        let mut half = Half::new(RelayMode::Splice, Vec::new());
        half.source_ready(false);
        assert_eq!(half.next(), Next::Fill);
        half.filled(23 * 1024); // sixteen small segments: full, whatever its size
        assert_eq!(half.next(), Next::Flush);
        half.filled(300 * 1024); // more than its nominal size
        half.flushed(323 * 1024);
        assert_eq!((half.next(), half.in_pipe()), (Next::Fill, 0));
    }

    #[test]
    fn bulk_is_spliced_after_three_full_reads_and_copied_after_eight_short_splices() {
        let mut half = half();
        for _ in 0..2 {
            half.received(FULL_READ, FULL_READ);
        }
        half.received(FULL_READ - 1, FULL_READ);
        half.source_ready(false);
        for _ in 0..3 {
            assert_eq!(half.next(), COPY);
            half.received(FULL_READ, FULL_READ);
        }
        for _ in 0..8 {
            assert_eq!(half.next(), Next::Fill);
            half.filled(SHORT_SPLICE - 1);
            half.flushed(SHORT_SPLICE - 1);
        }
        assert_eq!(half.next(), COPY);
    }

    #[test]
    fn a_stalled_direction_reads_less_until_four_reads_were_passed_on() {
        let mut half = half();
        half.keep((*b"x").into());
        half.sink_ready();
        half.sent_kept(1);
        for _ in 0..4 {
            assert_eq!(
                half.next(),
                Next::Copy {
                    limit: STALLED_READ
                }
            );
            half.passed_on();
        }
        assert_eq!(half.next(), COPY);
    }

    #[test]
    fn it_waits_for_one_end_at_a_time() {
        let mut half = half();
        assert!(!half.waits_for_sink() && !half.waits_for_source());
        half.sink_blocked();
        assert!(half.waits_for_sink() && !half.waits_for_source());
        half.sink_ready();
        half.source_blocked();
        assert!(!half.waits_for_sink() && half.waits_for_source());
        half.keep((*b"x").into());
        assert!(!half.waits_for_source(), "the sink's event comes first");
        half.sink_lost();
        assert!(half.waits_for_source(), "to throw it away");
        half.source_ready(true);
        half.received(0, FULL_READ);
        assert!(!half.waits_for_source(), "there will be no more");
    }

    #[test]
    fn the_first_stall_is_told_once() {
        let mut half = half();
        assert!(!half.began_to_stall());
        half.sink_blocked();
        assert!(half.began_to_stall());
        half.sink_ready();
        half.sink_blocked();
        assert!(!half.began_to_stall());
    }

    #[test]
    fn data_before_a_reset_is_delivered_and_no_fin_follows() {
        let mut half = half();
        half.source_failing(); // a write to that side failed
        assert_eq!(half.next(), COPY);
        half.received(9, FULL_READ);
        assert_eq!(half.next(), COPY, "until the end shows");
        half.received(0, FULL_READ); // the error was consumed by the write: read says end
        assert_eq!(
            half.next(),
            Next::Done,
            "a reset must not become a clean end"
        );
    }

    #[test]
    fn a_lost_sink_ends_the_direction_at_once() {
        let mut half = half();
        half.filled(10);
        half.sink_lost();
        assert!(half.is_over() && half.in_pipe() == 0);
        assert_eq!(half.next(), Next::Discard);
        half.received(10, FULL_READ);
        assert_eq!(half.next(), Next::Done, "until more comes");
    }

    #[test]
    fn a_splice_that_brings_nothing_is_an_end_only_if_a_read_says_so() {
        let mut half = Half::new(RelayMode::Splice, Vec::new());
        half.source_ready(true);
        half.filled(0);
        assert_eq!(half.next(), COPY);
        half.received(0, FULL_READ);
        assert_eq!(half.next(), Next::PassFin);
    }

    #[test]
    fn urgent_data_is_read_past_and_never_spliced() {
        let mut half = Half::new(RelayMode::Splice, Vec::new());
        half.source_ready(false);
        assert_eq!(half.next(), Next::Fill);
        half.source_has_urgent();
        assert_eq!(half.next(), COPY);
        half.received(10, FULL_READ);
        assert_eq!(half.next(), COPY, "a read stops short at the mark");
    }

    #[test]
    fn a_reset_behind_a_fin_is_not_forgotten() {
        let mut half = half();
        half.source_has_error();
        assert!(!half.hides_an_error(), "what came before is read first");
        half.received(9, FULL_READ);
        half.received(0, FULL_READ);
        assert!(half.hides_an_error());
    }

    #[test]
    fn copy_mode_never_splices() {
        let mut half = Half::new(RelayMode::Copy, Vec::new());
        half.source_ready(false);
        for _ in 0..1000 {
            half.received(FULL_READ, FULL_READ);
        }
        assert_eq!(half.next(), COPY);
    }
}
