//! `socket = { … }`: the options of one leg's sockets.

use std::net::IpAddr;
use std::sync::Arc;

/// `socket = { … }`: what differs from the kernel's defaults on one leg.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SocketOptions {
    /// TCP_CONGESTION.
    pub congestion: Option<Arc<str>>,
    /// SO_SNDBUF, in bytes as the kernel reports them; `None`: the kernel's autotuning.
    pub send_buffer: Option<usize>,
    /// SO_RCVBUF, in bytes as the kernel reports them; `None`: the kernel's autotuning.
    pub receive_buffer: Option<usize>,
    /// TCP_NOTSENT_LOWAT: unsent bytes above which the socket takes no more.
    pub notsent_lowat: Option<usize>,
    /// What an upstream's connections come from; never set for a listener.
    pub source: Option<IpAddr>,
    /// `preset = "wan"` was chosen: [`SocketOptions::congestion`] is a wish then, not an order.
    pub wan: bool,
}
