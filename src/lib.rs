//! A Layer-4 relay between a PrivateLink Network Load Balancer and an upstream in another Region.

pub mod sys;
