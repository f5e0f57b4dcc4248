//! What an endpoint may do: how much, how fast, and at once.
//!
//! The numbers stand in the configuration, and what was used of them lives for as long as the process: in [`bucket`]s, which know only
//! times and are told the rate at each use, so that a reload changes it under those who wait.
//!
//! - [`bucket`] counts what comes in one unit after another: sessions, bytes.
//! - [`pace`] is what a session is given of it: the buckets of its endpoint and their rates, for the [`relay`](crate::relay) to go by.

pub mod bucket;
pub mod pace;
