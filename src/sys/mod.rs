//! What the standard library, rustix and tokio leave to be done by hand. The only module with `unsafe` in it; every
//! function here is safe for every argument.
#![expect(
    unsafe_code,
    reason = "this is the one place for it; each block says why it is sound"
)]

pub mod clock;
pub mod hold;
pub mod passed;
pub mod pipe;
pub mod readiness;
pub mod region;
pub mod socket;
pub mod tcp_info;
pub mod tun;
