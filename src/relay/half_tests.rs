//! What a direction does next, event by event: the hazards of edge-triggered readiness, pipes and half-closes.

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
    assert!(!half.has_enough() && !half.waits_for_source());
    half.sink_blocked();
    assert!(half.has_enough() && !half.waits_for_source());
    half.sink_ready();
    half.source_blocked();
    assert!(!half.has_enough() && half.waits_for_source());
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

#[test]
fn a_direction_that_is_held_up_does_nothing() {
    let mut half = half();
    half.hold_up();
    assert_eq!(half.next(), Next::Wait);
    assert!(half.has_enough() && !half.waits_for_source());
    half.source_ready(true);
    assert_eq!(half.next(), Next::Wait, "more bytes are no news");
    half.let_go();
    assert_eq!(half.next(), COPY);
    half.keep((*b"x").into());
    half.hold_up();
    half.sink_ready();
    assert_eq!(half.next(), Next::Wait);
    half.let_go();
    assert_eq!(half.next(), Next::SendKept);
}

#[test]
fn a_lost_sink_ends_the_waiting() {
    let mut half = half();
    half.hold_up();
    half.sink_lost();
    assert_eq!(half.next(), Next::Discard);
    assert!(!half.is_held_up());
}

#[test]
fn an_error_behind_bytes_that_may_not_be_read_yet_is_asked_for() {
    let mut half = half();
    half.source_has_error();
    assert!(!half.hides_an_error(), "reading tells");
    half.hold_up();
    assert!(half.hides_an_error());
    half.source_failing();
    assert!(!half.hides_an_error(), "it is known");
    assert_eq!(half.next(), Next::Wait, "what came before goes by the pace");
}

#[test]
fn small_grants_are_not_taken_for_bulk() {
    let mut half = half();
    for _ in 0..10 {
        half.received(4096, 4096);
    }
    assert_eq!(half.next(), COPY);
    for _ in 0..3 {
        half.received(SHORT_SPLICE, SHORT_SPLICE);
    }
    assert_eq!(half.next(), Next::Fill);
}
