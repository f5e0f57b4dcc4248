//! What the unit keeps a process from: seen by a program that tries.

use std::process::Command;

use libtest_mimic::Trial;

use crate::{
    claim,
    harness::unit::{self, PROBES},
};

pub(super) fn tests() -> Vec<Trial> {
    vec![claim(
        "as_the_unit_says_a_process_is_refused_what_the_unit_refuses",
        refused,
    )]
}

#[track_caller]
fn outcomes(before: &[String]) -> Vec<String> {
    let perl = ["perl".to_owned(), "-e".to_owned(), unit::prober()];
    let words = [before, &perl].concat();
    let output = Command::new(&words[0]).args(&words[1..]).output();
    let output = output.expect("perl is installed");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.split_whitespace().map(str::to_owned).collect()
}

fn refused() {
    let wanted: Vec<_> = PROBES.iter().map(|(_, _, wanted)| *wanted).collect();
    assert_eq!(outcomes(&unit::always()), wanted);
    // It is the unit that refuses, and nobody else.
    assert_eq!(outcomes(&[]), ["-"; PROBES.len()]);
    let status = Command::new(&unit::always()[0])
        .args(&unit::always()[1..])
        .args([
            "grep",
            "-E",
            "^(Cap(Bnd|Eff)|NoNewPrivs|Seccomp):",
            "/proc/self/status",
        ])
        .output()
        .expect("grep is installed");
    let said = String::from_utf8_lossy(&status.stdout).into_owned();
    let lines: Vec<_> = said.split_whitespace().collect();
    let bound = "0000000000000400";
    let wanted = [
        "CapEff:",
        bound,
        "CapBnd:",
        bound,
        "NoNewPrivs:",
        "1",
        "Seccomp:",
        "2",
    ];
    assert_eq!(lines, wanted);
}
