//! PROXY protocol version 2, the receiving side.
//!
//! [`header`] has the words, [`decode`] turns bytes into a [`header::Header`] without any I/O, [`read`] feeds it from a
//! socket. Source: "The PROXY protocol", versions 1 and 2, HAProxy Technologies, section 2.2 and 2.2.3, and what NLB was
//! seen to send (`LOCAL` with an address family but no addresses; endpoint id in a TLV of type `0xEA`).

pub mod decode;
pub mod header;
pub mod read;
