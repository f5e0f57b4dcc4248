//! What the relay must do and survive, each as a claim about the real binary with the shipped configuration.
#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot go on panics, and says where"
)]

use libtest_mimic::Trial;

mod bounds;
#[path = "../soak/chaos.rs"]
mod chaos;
mod connect;
mod ends;
mod half_close;
mod header;
mod operation;
mod peers;
mod pressure;
mod random;
mod raw_header;
mod regression;
mod regression_bounds;
mod soaked;
#[path = "../soak/streams.rs"]
mod streams;
#[path = "../soak/switching.rs"]
mod switching;
mod t4;
pub(crate) mod world;

pub(crate) fn tests() -> Vec<Trial> {
    [
        header::tests(),
        operation::tests(),
        ends::tests(),
        half_close::tests(),
        bounds::tests(),
        pressure::tests(),
        random::tests(),
        soaked::tests(),
        connect::tests(),
        t4::tests(),
        regression::tests(),
        regression_bounds::tests(),
    ]
    .into_iter()
    .flatten()
    .collect()
}
