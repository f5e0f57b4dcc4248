//! What only the kernel can do: the one place with unsafe code.

pub mod tun;
