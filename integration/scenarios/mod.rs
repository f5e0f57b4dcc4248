//! What the relay must do and survive, each as a claim about the real binary with the shipped configuration.
#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot go on panics, and says where"
)]

use std::process::ExitCode;

use libtest_mimic::Trial;

mod activation;
mod addressed;
mod admin;
mod ahead;
mod balance;
mod blocked;
mod books;
mod both_lost;
mod bounds;
#[path = "../soak/chaos.rs"]
mod chaos;
mod cli;
mod connect;
mod crowd;
mod dns;
mod dns_faults;
mod dns_files;
mod drain;
mod ends;
mod failover;
mod fairness;
mod half_close;
mod header;
mod hello;
mod identity;
mod journal;
mod large;
mod legs;
mod long_way;
mod loops;
mod modes;
mod operation;
mod options;
mod peers;
mod pipe_quota;
mod plain;
mod policy;
mod pressure;
mod probe;
mod random;
mod raw_header;
mod regression;
mod regression_bounds;
mod reload;
mod routes;
mod routes_refused;
mod segments;
mod soaked;
#[path = "../soak/streams.rs"]
mod streams;
#[path = "../soak/switching.rs"]
mod switching;
mod t1;
mod t2;
mod t3;
mod t4;
mod urgent;
mod vanish;
pub(crate) mod world;

/// This program in another part than that of the test, if a test has started it for one.
pub(crate) fn other_part() -> Option<fn() -> ExitCode> {
    type Part = fn() -> ExitCode;
    let parts: [(&str, Part); 2] = [
        (pipe_quota::HOLDER, pipe_quota::hold),
        (activation::PASSED, activation::pass),
    ];
    let mut parts = parts.into_iter();
    let part = parts.find(|(key, _)| std::env::var_os(key).is_some());
    part.map(|(_, part)| part)
}

pub(crate) fn tests() -> Vec<Trial> {
    [
        admin::tests(),
        cli::tests(),
        header::tests(),
        operation::tests(),
        drain::tests(),
        activation::tests(),
        options::tests(),
        ends::tests(),
        half_close::tests(),
        bounds::tests(),
        legs::tests(),
        pressure::tests(),
        probe::tests(),
        random::tests(),
        soaked::tests(),
        modes::tests(),
        segments::tests(),
        routes::tests(),
        routes_refused::tests(),
        identity::tests(),
        loops::tests(),
        blocked::tests(),
        both_lost::tests(),
        urgent::tests(),
        large::tests(),
        long_way::tests(),
        fairness::tests(),
        crowd::tests(),
        pipe_quota::tests(),
        connect::tests(),
        dns::tests(),
        dns_faults::tests(),
        dns_files::tests(),
        vanish::tests(),
        failover::tests(),
        t1::tests(),
        t2::tests(),
        t3::tests(),
        balance::tests(),
        ahead::tests(),
        t4::tests(),
        books::tests(),
        policy::tests(),
        regression::tests(),
        regression_bounds::tests(),
        reload::tests(),
    ]
    .into_iter()
    .flatten()
    .collect()
}
