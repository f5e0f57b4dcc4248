//! Everything a test of the relay needs around it, on one machine and without root: hosts and links, long distances, a Network Load
//! Balancer, DNS, origins behind the relay and agents before it, and the relay's own process under watch.
//!
//! A program that uses it calls [`enter::enter`] first thing in `main`. Then a [`netns::Lab`] owns hosts (network namespaces) and the links
//! between them; each other part is started on a host and goes when its handle is dropped. Tests are plain functions on plain threads:
//! asynchronous work runs on a host (`host.run(async move { … })`), and what parts counted is waited for from the test's thread.
//!
//! A program includes it as `pub mod harness;` at its root: the parts know each other by `crate::harness`.

use std::time::Duration;

pub mod agent;
pub mod alb;
pub mod audit;
mod collector;
pub mod dns;
pub mod enter;
pub mod http;
pub mod ledger;
pub mod machine;
pub mod netns;
pub mod nlb;
pub mod notify;
pub mod origin;
pub mod pattern;
pub mod relay;
pub mod sockets;
pub mod steady;
pub mod stream;
pub mod tap;
pub mod tls;
pub mod unit;
pub mod wan;
pub mod watched;

/// How long anything that should happen soon is waited for before the test fails.
pub const BOUND: Duration = Duration::from_secs(20);
