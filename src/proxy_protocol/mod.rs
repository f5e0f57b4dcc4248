//! PROXY protocol: version 2 from the load balancer, version 1 or 2 to upstreams that want to know who connects.
//!
//! [`header`] has the words, [`decode`] turns bytes into a [`header::Header`] without any I/O, [`read`] feeds it from a
//! socket. [`encode`] goes the other way, with what [`identity`] kept, and [`identity`] refuses loops. Source: "The PROXY protocol",
//! versions 1 and 2, HAProxy Technologies, section 2.1, 2.2 and 2.2.3, and what NLB was seen to send (`LOCAL` with an address family but
//! no addresses; endpoint id in a TLV of type `0xEA`).

pub mod decode;
pub mod encode;
pub mod header;
pub mod identity;
pub mod read;
