//! T1, observability platform: agents of many accounts in three Regions push metrics, logs and traces to a control plane in one of them.
//!
//! ```text
//! agents - endpoint \                      / relay 1 \                     / zone 1: metrics, logs, traces
//!                     balancer, us-east-1                vpc us-east-1 --- - zone 2: metrics, logs, traces
//!                                          \ relay 2 /    |         \      \ zone 3: metrics, logs, traces
//! agents - endpoint \                      / relay 1 \    |          |
//!                     balancer, eu-west-1                vpc eu-west-1
//! agents - endpoint /                      \ relay 2 /    |          |
//! agents - endpoint \                      / relay 1 \    |         /
//!                     balancer, us-west-2                vpc us-west-2 --- zone 1: metrics, logs, traces (stands by)
//!                                          \ relay 2 /
//! ```
//! Agents everywhere use the same three names, which a private zone in each VPC leads to the endpoint there. Every relay tells the three apart
//! by `Host`, and where agents speak TLS by the server name in their hello.

use libtest_mimic::Trial;

mod faults;
mod plan;
mod region;
mod services;
mod world;

pub(crate) fn tests() -> Vec<Trial> {
    [services::tests(), faults::tests()]
        .into_iter()
        .flatten()
        .collect()
}
