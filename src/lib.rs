//! tollgate: a Layer-4 TCP relay behind an AWS Network Load Balancer.

pub mod cli;
pub mod config;
pub mod telemetry;
