//! What reads and upsets books does what it says.

use std::fs;

use libtest_mimic::Trial;

use super::relay::failure;
use crate::{
    claim,
    harness::{audit, ledger, relay::Home},
};

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        claim(
            "small_disk_is_filled_made_read_only_and_let_go",
            small_disk_is_filled_made_read_only_and_let_go,
        ),
        claim(
            "chain_that_was_tampered_with_is_none",
            chain_that_was_tampered_with_is_none,
        ),
        claim(
            "report_is_read_with_its_quotes",
            report_is_read_with_its_quotes,
        ),
    ]
}

fn small_disk_is_filled_made_read_only_and_let_go() {
    let home = Home::new();
    let file = home.state().join("file");
    let disk = home.mount("state", "size=64k");
    fs::write(&file, [0; 4096]).expect("there is room");
    disk.fill();
    assert!(fs::write(home.state().join("more"), [0; 4096]).is_err());
    disk.empty();
    disk.again("ro");
    assert!(fs::write(&file, [1]).is_err());
    disk.again("rw");
    fs::write(&file, [1; 4096]).expect("there is room");
    drop(disk);
    assert!(!file.exists(), "it went with its disk");
}

fn chain_that_was_tampered_with_is_none() {
    let home = Home::new();
    let log = home.path().join("audit.jsonl");
    let first = r#"{"event":"started","seq":1,"prev":""}"#;
    // printf '%s' FIRST | sha256sum
    let hash = "95afc229a75324c2798a6eb577994662c771b2b1640c6cc54eb91d6ad1e718af";
    let second = format!(r#"{{"event":"ended","seq":2,"prev":"{hash}"}}"#);
    fs::write(&log, format!("{first}\n{second}\n")).expect("/run is ours");
    let records = audit::records(&log);
    assert_eq!(records.len(), 2);
    audit::assert_chained(&records);
    let mut edited = records;
    edited[0].line = edited[0].line.replace("started", "Started");
    let said = failure(|| audit::assert_chained(&edited));
    assert!(said.contains("Started"), "{said}");
}

fn report_is_read_with_its_quotes() {
    let text = format!(
        "{},tags,relay\n2026-11,vpce-1,,\"Orders, \"\"north\"\"\",1,ingest,cp,3,2,1,10,20,1.5,a b,r\n",
        ledger::HEADER
    );
    let rows = ledger::report(&text);
    assert_eq!(rows.len(), 1);
    assert_eq!(rows[0].name, "Orders, \"north\"");
    assert_eq!(rows[0].sums.counts(), [3, 2, 1, 10, 20]);
    assert_eq!(ledger::total(&rows).counts(), [3, 2, 1, 10, 20]);
    assert_eq!(
        (rows[0].tags.as_str(), rows[0].relay.as_str()),
        ("a b", "r")
    );
}
