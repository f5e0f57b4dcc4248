//! What a start makes of a file that is not what the ledger knows of it.

use super::*;

/// A trail of two processes: its path and its last anchor.
fn before(directory: &tempfile::TempDir) -> (PathBuf, Anchor) {
    let path = directory.path().join("audit.log");
    let mut last = None;
    for _ in 0..2 {
        let (trail, scribe) = start(&settings(&path));
        scribe.refused(refused);
        last = trail.end();
    }
    (path, last.expect("it was written"))
}

fn cut(path: &Path, lines: usize) {
    let text = std::fs::read_to_string(path).unwrap();
    let kept: String = text.split_inclusive('\n').take(lines).collect();
    std::fs::write(path, kept).unwrap();
}

/// The first record that the next process writes, after whatever was done to the file; its files' report.
fn next(path: &Path, anchor: &Anchor) -> (Value, verify::Report) {
    let trail = start_behind(&settings(path), anchor);
    let head = trail.end().expect("it was written");
    let records = read(path);
    let started = records[records.len() - 2].clone();
    let anchors = [known(anchor), known(&head)];
    (
        started,
        verify(&files(path), &Key::none(), &anchors).unwrap(),
    )
}

#[test]
fn a_file_that_was_cut_before_the_last_anchor_keeps_the_gap_for_ever() {
    for kept in [0, 1, 4, 5] {
        let directory = tempfile::tempdir().unwrap();
        let (path, anchor) = before(&directory);
        assert_eq!(anchor.sequence, 6);
        cut(&path, kept);
        let (started, report) = next(&path, &anchor);
        assert_eq!(started["seq"], 7, "{kept}");
        assert_eq!(started["prev"], anchor.hash);
        assert_eq!(started["missing_from"], kept + 1);
        assert_eq!(started["missing_to"], 6);
        let finding = report.finding.expect("records are missing");
        assert_eq!(finding.kind, Kind::Removed);
        assert_eq!(finding.sequence, Some(kept as u64 + 1));
        let said = match kept {
            5 => "record 6 is missing".to_owned(),
            _ => format!("records {} to 6 are missing", kept + 1),
        };
        assert!(finding.what.contains(&said), "{finding}");
        // What is behind the gap is read as well.
        assert_eq!(report.last.sequence, 8);
        // And the process after that does not heal it.
        let head = start(&settings(&path)).0.end().unwrap();
        let report = verify(&files(&path), &Key::none(), &[known(&head)]).unwrap();
        assert_eq!(report.finding.unwrap().sequence, Some(kept as u64 + 1));
    }
}

#[test]
fn a_file_that_was_deleted_does_not_begin_anew() {
    let directory = tempfile::tempdir().unwrap();
    let (path, anchor) = before(&directory);
    std::fs::remove_file(&path).unwrap();
    let (started, report) = next(&path, &anchor);
    assert_eq!(
        (&started["seq"], &started["missing_from"]),
        (&7.into(), &1.into())
    );
    assert!(report.finding.is_some());
}

#[test]
fn another_record_in_the_place_of_the_anchored_one_is_not_gone_on_from() {
    let directory = tempfile::tempdir().unwrap();
    let (path, anchor) = before(&directory);
    let text = std::fs::read_to_string(&path).unwrap();
    let (rest, last) = text.trim_end().rsplit_once('\n').unwrap();
    let last = last.replace("\"ended\"", "\"close\"");
    std::fs::write(&path, format!("{rest}\n{last}\n")).unwrap();
    let (started, report) = next(&path, &anchor);
    assert_eq!(started["prev"], anchor.hash);
    assert_eq!(
        (&started["missing_from"], &started["missing_to"]),
        (&6.into(), &6.into())
    );
    assert_eq!(report.finding.unwrap().sequence, Some(6));
}

#[test]
fn a_file_that_was_archived_while_no_relay_ran_verifies_with_the_new_one() {
    let directory = tempfile::tempdir().unwrap();
    let (path, anchor) = before(&directory);
    let archived = directory.path().join("archived");
    std::fs::rename(&path, &archived).unwrap();
    let (_, alone) = next(&path, &anchor);
    assert_eq!(alone.finding.unwrap().sequence, Some(1));
    let together = verify(&[path, archived], &Key::none(), &[known(&anchor)]).unwrap();
    assert_eq!((together.finding, together.records), (None, 8));
}

#[test]
fn an_untouched_file_and_the_anchor_of_another_leave_no_gap() {
    let directory = tempfile::tempdir().unwrap();
    let (path, anchor) = before(&directory);
    let (started, report) = next(&path, &anchor);
    assert!(started.get("missing_from").is_none());
    assert_eq!(report.finding, None);
    let other = directory.path().join("other.log");
    assert!(start_behind(&settings(&other), &anchor).end().is_some());
    assert_eq!(read(&other)[0]["seq"], 1);
}

#[test]
fn what_is_no_audit_file_is_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let (trail, anchor) = before(&directory);
    for content in [
        "a key\n",
        "a key without a newline",
        "{\"seq\":18446744073709551615,\"prev\":\"\"}\n",
    ] {
        let path = directory.path().join("other");
        std::fs::write(&path, content).unwrap();
        let refused = Trail::start(&settings(&path), &about("abc"), None);
        let said = refused.expect_err("it is somebody's").to_string();
        assert!(said.contains("no audit file of tollgate's"), "{said}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), content);
        // In the place of a trail that the ledger knows it is set aside.
        std::fs::write(&trail, content).unwrap();
        let (started, _) = next(&trail, &anchor);
        assert_eq!(started["missing_from"], 1, "{content}");
        std::fs::remove_file(&trail).unwrap();
    }
}

#[test]
fn a_file_of_another_key_is_set_aside() {
    let directory = tempfile::tempdir().unwrap();
    let (path, _) = before(&directory);
    let key = directory.path().join("key");
    std::fs::write(&key, "0123456789abcdef").unwrap();
    let keyed = Audit {
        key_file: Some(key),
        ..settings(&path)
    };
    assert!(start(&keyed).0.end().is_some());
    let records = read(&path);
    assert_eq!(records[0]["seq"], 1);
    assert_eq!(
        read(Path::new(records[0]["damaged"].as_str().unwrap())).len(),
        6
    );
}

#[test]
fn a_foreign_file_in_the_place_of_the_trails_is_set_aside() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("audit.log");
    let (trail, scribe) = start(&settings(&path));
    assert!(trail.head(BOUND).is_some());
    let foreign = directory.path().join("foreign");
    std::fs::write(&foreign, "somebody's\n").unwrap();
    std::fs::rename(&path, directory.path().join("moved")).unwrap();
    std::fs::rename(&foreign, &path).unwrap();
    wait("it is set aside", || files(&path).len() > 1);
    scribe.refused(refused);
    assert!(trail.end().is_some());
    let records = read(&path);
    assert_eq!(events(&records), ["rotated", "refused", "ended"]);
    let aside = records[0]["damaged"].as_str().unwrap();
    assert_eq!(std::fs::read_to_string(aside).unwrap(), "somebody's\n");
}
