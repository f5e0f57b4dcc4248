//! What the relay must do and survive, each as a claim about the real binary with the shipped configuration.
#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot go on panics, and says where"
)]

use libtest_mimic::Trial;

mod ends;
mod header;
mod peers;
pub(crate) mod world;

pub(crate) fn tests() -> Vec<Trial> {
    [ends::tests(), header::tests()]
        .into_iter()
        .flatten()
        .collect()
}
