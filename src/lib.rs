//! tollgate: a Layer-4 TCP relay behind an AWS Network Load Balancer.

pub mod config;
