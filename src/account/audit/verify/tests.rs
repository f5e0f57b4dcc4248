use super::*;
use crate::account::Event;
use crate::account::audit::json::Style;
use crate::account::audit::press::Page;

use proptest::prelude::*;

/// The lines of a trail, without newlines, and its head.
fn trail(records: usize, key: &Key) -> (Vec<Vec<u8>>, Head) {
    let mut page = Page {
        lines: Vec::new(),
        style: Style::new("relay", 7),
        key: key.clone(),
        head: Head::default(),
    };
    for number in 0..records {
        let event = match number {
            0 => Event::Started,
            // Where a test may have another file begin.
            5 => Event::Rotated,
            _ => Event::Progress,
        };
        page.tell(event, |line| {
            line.text("chain", key.algorithm());
            line.text("sink", "file");
            line.number("n", Some(number as u64));
        });
    }
    let lines = page.lines.split(|byte| *byte == b'\n');
    let mut lines: Vec<Vec<u8>> = lines.map(<[u8]>::to_vec).collect();
    assert_eq!(lines.pop(), Some(Vec::new()));
    (lines, page.head)
}

fn joined(lines: &[Vec<u8>]) -> Vec<u8> {
    lines
        .iter()
        .flat_map(|line| [line, &b"\n"[..]].concat())
        .collect()
}

/// What is found in files of that content, given in that order.
fn look(files: &[Vec<u8>], key: &Key, anchors: &[Known]) -> Report {
    let directory = tempfile::tempdir().unwrap();
    let paths: Vec<PathBuf> = (0..files.len())
        .map(|number| directory.path().join(format!("{number}")))
        .collect();
    for (path, content) in paths.iter().zip(files) {
        std::fs::write(path, content).unwrap();
    }
    verify(&paths, key, anchors).unwrap()
}

fn anchor(head: Head) -> Known {
    Known {
        sequence: head.sequence,
        hash: head.hash,
    }
}

/// The kind, line and number of what is found in a trail of 20 records to which something was done; its end is anchored.
fn after(change: impl FnOnce(&mut Vec<Vec<u8>>)) -> (Kind, u64, Option<u64>) {
    let (mut lines, head) = trail(20, &Key::none());
    change(&mut lines);
    let report = look(&[joined(&lines)], &Key::none(), &[anchor(head)]);
    let finding = report.finding.expect("it was tampered with");
    (finding.kind, finding.line, finding.sequence)
}

/// The line with another value for a key, which it must have.
fn with(line: &[u8], from: &str, to: &str) -> Vec<u8> {
    let text = std::str::from_utf8(line).unwrap();
    assert!(text.contains(from), "{text}");
    text.replace(from, to).into_bytes()
}

#[test]
fn a_trail_that_nobody_touched_is_whole_and_agrees_with_its_anchors() {
    for key in [Key::none(), Key::new(b"secret")] {
        let (lines, head) = trail(20, &key);
        let report = look(&[joined(&lines)], &key, &[anchor(head)]);
        assert_eq!(report.finding, None);
        assert_eq!((report.records, report.first, report.last), (20, 1, head));
        assert_eq!((report.anchored, report.trails), (Some(20), 1));
        assert!(report.notes.is_empty(), "{:?}", report.notes);
    }
}

#[test]
fn a_changed_record_is_named() {
    for number in 2..20 {
        let change = |lines: &mut Vec<Vec<u8>>| {
            let line = &mut lines[number - 1];
            *line = with(line, &format!("\"n\":{}", number - 1), "\"n\":777");
        };
        let found = after(change);
        assert_eq!(found, (Kind::Changed, number as u64, Some(number as u64)));
    }
}

#[test]
fn a_changed_record_at_the_end_is_named_as_far_as_anchors_tell() {
    let (mut lines, head) = trail(20, &Key::none());
    let hash = Key::none().hash(&lines[18]);
    lines[19] = with(&lines[19], "\"n\":19", "\"n\":777");
    let before = Known { sequence: 19, hash };
    let report = look(&[joined(&lines)], &Key::none(), &[before, anchor(head)]);
    let finding = report.finding.unwrap();
    assert_eq!(
        (finding.kind, finding.line, finding.sequence),
        (Kind::Rewritten, 20, Some(20))
    );
}

#[test]
fn a_changed_number_and_a_changed_hash_of_the_record_before_are_named() {
    for (from, to) in [
        ("\"seq\":9,", "\"seq\":10,"),
        ("\"seq\":9,", "\"seq\":8,"),
        ("\"seq\":9,", "\"seq\":999,"),
        ("\"prev\":\"", "\"prev\":\"0"),
    ] {
        let found = after(|lines| lines[8] = with(&lines[8], from, to));
        assert_eq!(found, (Kind::Changed, 9, Some(9)), "{to}");
    }
    let found = after(|lines| lines[8] = b"{\"time\":".to_vec());
    assert_eq!(found, (Kind::Changed, 9, Some(9)));
}

#[test]
fn removed_records_are_named() {
    assert_eq!(
        after(|lines| drop(lines.remove(8))),
        (Kind::Removed, 9, Some(9))
    );
    assert_eq!(
        after(|lines| drop(lines.drain(8..12))),
        (Kind::Removed, 9, Some(9))
    );
    // All but the beginning, which cannot be told from files that are elsewhere but by the anchor.
    assert_eq!(
        after(|lines| drop(lines.drain(8..))),
        (Kind::Cut, 9, Some(9))
    );
}

#[test]
fn a_removed_record_shows_also_where_the_rest_was_numbered_anew() {
    let found = after(|lines| {
        lines.remove(8);
        for (number, line) in lines.iter_mut().enumerate().skip(8) {
            let (from, to) = (
                format!("\"seq\":{},", number + 2),
                format!("\"seq\":{},", number + 1),
            );
            *line = with(line, &from, &to);
        }
    });
    assert_eq!(found, (Kind::Changed, 9, Some(9)));
}

#[test]
fn added_lines_are_named() {
    for added in [&b""[..], b"hello", b"{\"event\":\"close\"}"] {
        let found = after(|lines| lines.insert(8, added.to_vec()));
        assert_eq!(found, (Kind::Added, 9, Some(9)), "{added:?}");
    }
    let twice = after(|lines| lines.insert(9, lines[8].clone()));
    assert_eq!(twice, (Kind::Added, 10, Some(9)));
    let elsewhere = after(|lines| lines.insert(3, lines[8].clone()));
    assert_eq!(elsewhere, (Kind::Added, 4, Some(4)));
    let later = after(|lines| lines.insert(15, lines[8].clone()));
    assert_eq!(later, (Kind::Added, 16, Some(9)));
}

#[test]
fn a_forged_record_with_the_right_hash_is_named_for_what_it_is() {
    // Whoever has no key to forge without can make one that fits the record before.
    let found = after(|lines| lines.insert(8, with(&lines[8], "\"n\":8", "\"n\":777")));
    assert_eq!(found, (Kind::Added, 9, Some(9)));
    let sealed = after(|lines| {
        let seal = with(&lines[8], "progress", "started");
        let seal = with(&seal, "\"n\":8", "\"torn_bytes\":300,\"torn_sha256\":\"0\"");
        lines.splice(8..10, [seal]);
    });
    assert_eq!(
        sealed,
        (Kind::Removed, 10, Some(10)),
        "the forged one fits the record before; the next is not its own"
    );
}

#[test]
fn records_in_another_order_are_named() {
    assert_eq!(
        after(|lines| lines.swap(8, 9)),
        (Kind::Reordered, 9, Some(9))
    );
    let later = after(|lines| {
        let line = lines.remove(8);
        lines.insert(14, line);
    });
    assert_eq!(later, (Kind::Reordered, 9, Some(9)));
    let earlier = after(|lines| {
        let line = lines.remove(14);
        lines.insert(8, line);
    });
    assert_eq!(earlier, (Kind::Reordered, 9, Some(9)));
}

#[test]
fn records_cut_off_before_the_last_anchor_show_and_those_behind_it_cannot() {
    let (lines, head) = trail(20, &Key::none());
    let cut = |to: usize, anchors: &[Known]| look(&[joined(&lines[..to])], &Key::none(), anchors);
    let finding = cut(19, &[anchor(head)]).finding.unwrap();
    assert_eq!(
        (finding.kind, finding.line, finding.sequence),
        (Kind::Cut, 20, Some(20))
    );
    let (_, middle) = trail(15, &Key::none());
    // The same lines but for their times: the anchor is of the trail that was cut.
    let hash = Key::none().hash(&lines[14]);
    let middle = Known {
        hash,
        ..anchor(middle)
    };
    let report = cut(15, &[middle]);
    assert_eq!((report.finding, report.anchored), (None, Some(15)));
    let report = cut(19, &[middle]);
    assert_eq!(report.finding, None);
    assert!(report.notes[0].contains("record 15"), "{:?}", report.notes);
    assert!(cut(19, &[]).notes[0].contains("no anchor"));
}

#[test]
fn a_trail_written_anew_does_not_fit_its_anchors() {
    let (_, head) = trail(20, &Key::none());
    let (mut other, _) = trail(3, &Key::none());
    other.clear();
    let mut page = Page {
        lines: Vec::new(),
        style: Style::new("forged", 7),
        key: Key::none(),
        head: Head::default(),
    };
    (0..30).for_each(|_| page.tell(Event::Progress, |_| {}));
    let report = look(&[page.lines], &Key::none(), &[anchor(head)]);
    let finding = report.finding.unwrap();
    assert_eq!(
        (finding.kind, finding.line, finding.sequence),
        (Kind::Rewritten, 20, Some(1))
    );
}

#[test]
fn a_torn_last_line_is_told_from_tampering() {
    let (lines, head) = trail(20, &Key::none());
    let mut content = joined(&lines);
    content.extend_from_slice(b"{\"time\":\"2026-11");
    let report = look(&[content], &Key::none(), &[anchor(head)]);
    assert_eq!((report.finding, report.torn), (None, Some(16)));
    // A whole record that has only lost its newline is not there either, and the anchor says so.
    let mut content = joined(&lines);
    content.pop();
    let report = look(&[content], &Key::none(), &[anchor(head)]);
    assert_eq!(report.finding.unwrap().kind, Kind::Cut);
    // Nobody is killed in the middle of a trail.
    let torn = [joined(&lines[..8]), b"{\"ti".to_vec()].concat();
    let report = look(&[torn, joined(&lines[8..])], &Key::none(), &[]);
    assert_eq!(report.finding.unwrap().kind, Kind::Added);
}

#[test]
fn files_may_be_given_in_any_order_and_more_than_once() {
    let (lines, head) = trail(20, &Key::none());
    let parts = [
        joined(&lines[12..]),
        joined(&lines[..5]),
        joined(&lines[5..12]),
    ];
    let report = look(&parts, &Key::none(), &[anchor(head)]);
    assert_eq!((report.finding, report.records), (None, 20));
    let names: Vec<_> = report
        .files
        .iter()
        .filter_map(|path| path.file_name())
        .collect();
    assert_eq!(names, ["1", "2", "0"]);
    // A first line that was changed does not put its file elsewhere.
    let mut changed = lines.clone();
    changed[5] = with(&changed[5], "\"seq\":6,", "\"seq\":900,");
    let parts = [
        joined(&changed[12..]),
        joined(&changed[..5]),
        joined(&changed[5..12]),
    ];
    let finding = look(&parts, &Key::none(), &[]).finding.unwrap();
    assert_eq!(
        (finding.kind, finding.line, finding.sequence),
        (Kind::Changed, 1, Some(6))
    );
}

#[test]
fn a_missing_file_shows_unless_it_is_the_first_or_behind_the_last_anchor() {
    let (lines, head) = trail(20, &Key::none());
    let part = |from: usize, to: usize| joined(&lines[from..to]);
    let finding = look(&[part(0, 5), part(12, 20)], &Key::none(), &[])
        .finding
        .unwrap();
    assert_eq!(
        (finding.kind, finding.line, finding.sequence),
        (Kind::Removed, 1, Some(6))
    );
    let report = look(&[part(5, 12), part(12, 20)], &Key::none(), &[anchor(head)]);
    assert_eq!(report.finding, None);
    assert!(
        report.notes[0].contains("begins with record 6"),
        "{:?}",
        report.notes
    );
    let report = look(&[part(0, 5), part(5, 12)], &Key::none(), &[anchor(head)]);
    assert_eq!(report.finding.unwrap().kind, Kind::Cut);
}

#[test]
fn the_wrong_key_is_told_from_tampering() {
    let (lines, head) = trail(20, &Key::new(b"secret"));
    let kind = |key: &Key| {
        look(&[joined(&lines)], key, &[anchor(head)])
            .finding
            .map(|finding| (finding.kind, finding.what))
    };
    assert_eq!(kind(&Key::new(b"secret")), None);
    let (other, what) = kind(&Key::new(b"guess")).unwrap();
    assert_eq!(other, Kind::WrongKey, "{what}");
    let (none, what) = kind(&Key::none()).unwrap();
    assert_eq!(none, Kind::WrongKey);
    assert!(what.contains("--key-file"), "{what}");
}

#[test]
fn a_trail_that_begins_anew_in_a_file_is_a_finding_and_on_standard_output_is_none() {
    let (lines, _) = trail(5, &Key::none());
    let (again, _) = trail(5, &Key::none());
    let twice = [joined(&lines), joined(&again)].concat();
    let finding = look(&[twice], &Key::none(), &[]).finding.unwrap();
    assert_eq!(
        (finding.kind, finding.line, finding.sequence),
        (Kind::BegunAnew, 6, Some(6))
    );
    let mut page = Page {
        lines: Vec::new(),
        style: Style::new("relay", 7),
        key: Key::none(),
        head: Head::default(),
    };
    for _ in 0..2 {
        page.head = Head::default();
        page.tell(Event::Started, |line| line.text("sink", "stdout"));
        page.tell(Event::Ended, |_| {});
    }
    let report = look(&[page.lines], &Key::none(), &[]);
    assert_eq!(
        (report.finding, report.trails, report.records),
        (None, 2, 4)
    );
}

#[test]
fn what_is_no_trail_is_a_finding_and_an_empty_file_is_none() {
    let nothing = look(&[Vec::new()], &Key::none(), &[]);
    assert_eq!((nothing.records, nothing.finding), (0, None));
    let text = look(&[b"hello\nworld\n".to_vec()], &Key::none(), &[]);
    assert!(text.finding.is_some());
    let zeros = look(&[vec![0; 3 * 1024 * 1024]], &Key::none(), &[]);
    assert!(zeros.finding.is_some());
    let cut = look(
        &[Vec::new()],
        &Key::none(),
        &[anchor(trail(5, &Key::none()).1)],
    );
    assert_eq!(cut.finding.unwrap().kind, Kind::Cut);
}

/// Something done to whole lines.
#[derive(Debug, Clone)]
enum Operation {
    Remove(usize),
    Repeat(usize, usize),
    Move(usize, usize),
    Swap(usize, usize),
    Cut(usize),
    Merge(usize),
    Split(usize, usize),
}

const LINES: usize = 12;

fn operation() -> impl Strategy<Value = Operation> {
    let line = 0..LINES;
    prop_oneof![
        line.clone().prop_map(Operation::Remove),
        (line.clone(), 0..=LINES).prop_map(|(from, to)| Operation::Repeat(from, to)),
        (line.clone(), line.clone()).prop_map(|(from, to)| Operation::Move(from, to)),
        (line.clone(), line.clone()).prop_map(|(one, other)| Operation::Swap(one, other)),
        line.clone().prop_map(Operation::Cut),
        (0..LINES - 1).prop_map(Operation::Merge),
        (line, 0..50_usize).prop_map(|(line, at)| Operation::Split(line, at)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_byte_that_was_changed_is_found(at in any::<prop::sample::Index>(), flip in 1..=255_u8) {
        let (lines, head) = trail(LINES, &Key::none());
        let mut content = joined(&lines);
        let at = at.index(content.len());
        content[at] ^= flip;
        let report = look(&[content], &Key::none(), &[anchor(head)]);
        prop_assert!(report.finding.is_some());
    }

    #[test]
    fn whatever_is_done_to_lines_is_found(operation in operation()) {
        let (lines, head) = trail(LINES, &Key::none());
        let before = joined(&lines);
        let mut lines = lines;
        match operation {
            Operation::Remove(line) => drop(lines.remove(line)),
            Operation::Repeat(from, to) => lines.insert(to, lines[from].clone()),
            Operation::Move(from, to) => {
                let line = lines.remove(from);
                lines.insert(to, line);
            }
            Operation::Swap(one, other) => lines.swap(one, other),
            Operation::Cut(to) => lines.truncate(to),
            Operation::Merge(line) => {
                let next = lines.remove(line + 1);
                lines[line].extend_from_slice(&next);
            }
            Operation::Split(line, at) => {
                let rest = lines[line].split_off(at);
                lines.insert(line + 1, rest);
            }
        }
        let after = joined(&lines);
        let report = look(std::slice::from_ref(&after), &Key::none(), &[anchor(head)]);
        prop_assert_eq!(report.finding.is_none(), after == before);
    }
}
