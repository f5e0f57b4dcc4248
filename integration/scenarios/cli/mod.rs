//! The commands that look at a relay that runs, and change it: what they print, and the codes they end with.

use libtest_mimic::Trial;

mod machine;
mod reload;
mod top;

pub(crate) fn tests() -> Vec<Trial> {
    [reload::tests(), top::tests(), machine::tests()]
        .into_iter()
        .flatten()
        .collect()
}

/// An ordinary user with nothing but what everybody has.
const NOBODY: [&str; 4] = [
    "setpriv",
    "--reuid=65534",
    "--regid=65534",
    "--clear-groups",
];
