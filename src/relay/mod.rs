//! Moving bytes between two sockets.
//!
//! A session in its relaying phase is plain data in the [`engine`]'s slab: two sockets and two [`half`]s, one per
//! direction, driven by edge-triggered readiness. There is no task and no future per session. A half decides what to do
//! next and does no I/O; the pump does what it says: copy through the worker's one buffer, or splice(2) through a
//! pipe of [`pipes::Pipes`] that is lent only while it holds bytes. Where the endpoint has a limit on bytes per second, each read needs a
//! grant first (`pacing`).

pub mod engine;
pub mod half;
mod lifetime;
mod pacing;
pub mod pipes;
mod pump;
mod review;
mod session;
mod timer;
