//! Sinks that take nothing: what waits, what is dropped, who is refused.

use super::*;

/// A sink that takes so many bytes and then refuses, as a full disk does.
#[derive(Debug, Clone, Default)]
struct Disk(Arc<Mutex<(Vec<u8>, usize)>>);

impl Disk {
    fn give(&self, room: usize) {
        self.0.lock().unwrap().1 = room;
    }

    fn content(&self) -> Vec<u8> {
        self.0.lock().unwrap().0.clone()
    }
}

impl Sink for Disk {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let (content, room) = &mut *self.0.lock().unwrap();
        let takes = bytes.len().min(*room);
        if takes == 0 {
            return Err(io::ErrorKind::StorageFull.into());
        }
        *room -= takes;
        content.extend_from_slice(&bytes[..takes]);
        Ok(takes)
    }

    fn sync(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn verify_content(content: &[u8]) -> verify::Report {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("audit.log");
    std::fs::write(&path, content).unwrap();
    verify(&[path], &Key::none(), &[]).unwrap()
}

#[test]
fn a_full_disk_leaves_no_torn_line_and_nothing_is_missing_once_it_has_room() {
    let disk = Disk::default();
    disk.give(1000);
    let (trail, scribe) = start_with(Box::new(disk.clone()), OnFull::Drop, BOUND);
    (0..100).for_each(|_| scribe.refused(refused));
    let failing = || trail.status().unwrap().failing.is_some();
    wait("the disk is full", failing);
    assert_eq!(disk.content().len(), 1000, "it took a part of a line");
    assert!(scribe.may_open(), "dropping is the policy");
    assert_eq!(
        trail.head(Duration::from_millis(100)),
        None,
        "nothing is safe"
    );
    for room in [1, 700, 7] {
        disk.give(room);
        let before = disk.content().len();
        wait("some is taken", || disk.content().len() == before + room);
    }
    disk.give(usize::MAX);
    wait("it is written again", || !failing());
    assert_eq!(trail.head(BOUND).unwrap().sequence, 101);
    assert!(trail.end().is_some());
    let report = verify_content(&disk.content());
    assert_eq!((report.finding, report.records), (None, 102));
}

#[test]
fn what_is_dropped_is_counted_and_recorded_and_a_known_session_ends_in_the_trail() {
    let disk = Disk::default();
    let (trail, scribe) = start_with(Box::new(disk.clone()), OnFull::Drop, BOUND);
    let account = account();
    let mut known = open(&scribe, &account);
    wait("the disk is full", || {
        trail.status().unwrap().failing.is_some()
    });
    // What the thread took of them before it knew is on its page.
    let mut sent = 0;
    while trail.status().unwrap().dropped < 100 {
        scribe.refused(refused);
        sent += 1;
        assert!(sent < 10 * ROOM, "the queue has a bound");
    }
    assert!(
        trail.status().unwrap().queued <= ROOM / 2 + 1,
        "and room for others"
    );
    while trail.status().unwrap().dropped < 200 {
        known.progress(&account, facts);
        sent += 1;
        assert!(sent < 10 * ROOM, "the queue has a bound");
    }
    let unknown = open(&scribe, &account);
    known.close(&account, CloseReason::Completed, facts);
    unknown.close(&account, CloseReason::Completed, facts);
    let status = trail.status().unwrap();
    assert_eq!((status.dropped, status.blocking), (202, false));
    disk.give(usize::MAX);
    assert!(trail.end().is_some());
    let records = records(&disk.content());
    let gap = records
        .iter()
        .find(|record| record["event"] == "gap")
        .unwrap();
    assert_eq!(gap["dropped"], 202);
    let by_event = serde_json::json!({"refused": 100, "progress": 100, "open": 1, "close": 1});
    assert_eq!(gap["dropped_by_event"], by_event);
    let closes = records
        .iter()
        .filter(|record| record["event"] == "close")
        .count();
    assert_eq!(closes, 1);
    assert_eq!(verify_content(&disk.content()).finding, None);
}

#[test]
fn nobody_may_open_who_could_not_be_recorded_and_live_sessions_go_on() {
    let disk = Disk::default();
    disk.give(usize::MAX);
    let (trail, scribe) = start_with(Box::new(disk.clone()), OnFull::Block, BOUND);
    let account = account();
    assert!(scribe.may_open());
    let mut entry = open(&scribe, &account);
    assert!(trail.head(BOUND).is_some());
    disk.give(0);
    scribe.refused(refused);
    wait("the disk is full", || !scribe.may_open());
    assert!(trail.status().unwrap().blocking);
    entry.progress(&account, facts);
    entry.close(&account, CloseReason::Completed, facts);
    disk.give(usize::MAX);
    wait("it may open again", || scribe.may_open());
    assert!(trail.end().is_some());
    let records = records(&disk.content());
    assert_eq!(
        events(&records),
        ["started", "open", "refused", "progress", "close", "ended"]
    );
}

#[test]
fn refusals_leave_room_for_sessions_and_a_full_queue_is_told() {
    for on_full in [OnFull::Block, OnFull::Drop] {
        // Nobody takes anything, and no write fails: a sink that is slow.
        let shared = Arc::new(Shared::new(on_full, 1));
        let (scribe, queue) = Scribe::new(0, &shared);
        let scribe = Rc::new(scribe);
        (0..2 * ROOM).for_each(|_| scribe.refused(refused));
        assert_eq!(
            (shared.waiting(), shared.dropped()),
            (ROOM / 2, ROOM * 3 / 2)
        );
        assert!(scribe.may_open(), "one noisy client");
        assert_eq!(failing(&shared, None), None);
        let account = account();
        let mut entry = open(&scribe, &account);
        while shared.waiting() < ROOM {
            entry.progress(&account, facts);
        }
        let blocks = on_full == OnFull::Block;
        assert_eq!(scribe.may_open(), !blocks);
        let told = failing(&shared, None);
        assert_eq!(told.is_some(), blocks, "{told:?}");
        assert!(told.is_none_or(|told| told.contains("faster than the sink")));
        // Room for one.
        let queues = Queues {
            queues: vec![queue],
            shared: shared.clone(),
        };
        assert!(queues.take(|_| false));
        assert!(scribe.may_open());
        assert_eq!(failing(&shared, None), None);
        scribe.refused(refused);
        assert_eq!(shared.waiting(), ROOM, "a refusal was taken, one has room");
    }
}

#[test]
fn a_pipe_that_nobody_reads_stops_nobody_and_the_end_has_a_bound() {
    let (reader, writer) = std::io::pipe().unwrap();
    let patience = Duration::from_millis(300);
    let (trail, scribe) = start_with(
        Box::new(PipeSink::new(writer.into())),
        OnFull::Block,
        patience,
    );
    for _ in 0..2000 {
        scribe.refused(refused);
    }
    wait("it is said", || trail.status().unwrap().failing.is_some());
    assert!(!scribe.may_open());
    assert_eq!(trail.end(), None, "what could not be written is no end");
    drop(reader);
}

#[test]
fn a_pipe_that_is_read_late_gets_everything() {
    let (mut reader, writer) = std::io::pipe().unwrap();
    let (trail, scribe) = start_with(Box::new(PipeSink::new(writer.into())), OnFull::Block, BOUND);
    for _ in 0..2000 {
        scribe.refused(refused);
    }
    wait("it is said", || trail.status().unwrap().failing.is_some());
    let reading = std::thread::spawn(move || {
        let mut text = Vec::new();
        reader.read_to_end(&mut text).unwrap();
        text
    });
    assert!(trail.end().is_some());
    let text = reading.join().unwrap();
    let report = verify_content(&text);
    assert_eq!((report.finding, report.records), (None, 2002));
}
