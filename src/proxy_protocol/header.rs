//! What a header says, and every way in which one is refused.

use std::net::SocketAddr;

/// The twelve bytes every version 2 header begins with.
pub const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";

/// Signature, version and command, family, length: the part that is always there.
pub const FIXED_LEN: usize = 16;

/// Longest header the format can express: 16 bytes and a 16-bit length.
pub const LONGEST: usize = FIXED_LEN + u16::MAX as usize;

/// Most relays of this kind that a connection may pass one after the other.
pub const MAX_HOPS: u8 = 4;

/// The endpoint of connections whose header carries no id, and of listeners without headers.
pub const DIRECT: &str = "direct";

/// Ids that have a meaning of their own in the books and so cannot be a consumer's.
pub const RESERVED_ENDPOINTS: [&str; 3] = [DIRECT, "overflow", "other"];

/// A decoded header. Borrows from the bytes it was decoded from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header<'a> {
    /// Bytes it takes, its fixed part included: the payload begins there.
    pub len: usize,
    /// A health check of the balancer's own, or a client's connection.
    pub command: Command,
    /// Where the connection came from and went to, in the consumer's network. `None`: use the socket's own.
    pub addresses: Option<Addresses>,
    /// The endpoint id, valid and not reserved; `None` when the header has none.
    pub endpoint: Option<&'a str>,
    /// What was found out about the CRC32C TLV.
    pub checksum: Checksum,
    /// The bytes after the addresses.
    pub tlvs: &'a [u8],
}

/// Low nibble of the 13th byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// The balancer speaks for itself: a health check.
    Local,
    /// The balancer speaks for a client.
    Proxy,
}

/// Source and destination of the client's connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Addresses {
    /// The client.
    pub source: SocketAddr,
    /// Where it connected to.
    pub destination: SocketAddr,
}

/// What is known of the header's CRC32C.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checksum {
    /// There is no checksum TLV.
    Absent,
    /// There is one and it is right.
    Right,
    /// There is one and it is wrong; only seen where the policy is to ignore it.
    Wrong,
}

/// Why a connection's header was refused. The names are those of `tollgate_header_errors_total{error}`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
#[repr(u8)]
pub enum HeaderError {
    /// The first bytes are neither a version 2 nor a version 1 header.
    #[error(
        "the connection does not begin with a PROXY protocol header: is PROXY protocol v2 on for the target group?"
    )]
    NotProxy,
    /// A version 1 header (`PROXY TCP4 …`).
    #[error("a version 1 header: only version 2 carries the endpoint id")]
    NotV2,
    /// The high nibble of the 13th byte is not 2.
    #[error("the signature of version 2 is followed by another version")]
    Version,
    /// Neither LOCAL nor PROXY.
    #[error("the command is neither LOCAL nor PROXY")]
    Command,
    /// UDP, or a family or transport the specification does not know.
    #[error(
        "the family is not one that TCP connections have (UDP, or unknown to the specification)"
    )]
    Family,
    /// The length is too small for the family's addresses.
    #[error("the length is too small for the addresses of the family")]
    Length,
    /// The length is above the listener's `max_header`.
    #[error(
        "the header is longer than the listener's max_header, or leaves no room for what is added to it for the upstream"
    )]
    TooLong,
    /// A TLV that ends outside the header, or stray bytes after the last.
    #[error("the TLVs do not add up to the header's length")]
    Tlv,
    /// The CRC32C TLV is there and wrong.
    #[error("the CRC32C does not match the header")]
    Crc,
    /// The endpoint id is empty, too long, reserved, or has characters outside `[A-Za-z0-9-]`.
    #[error("the endpoint id is not 1 to 64 of [A-Za-z0-9-], or a reserved word")]
    EndpointId,
    /// A second endpoint id.
    #[error("the header has two endpoint ids")]
    DuplicateEndpoint,
    /// Silence from accept on.
    #[error("no byte came within first_byte_timeout")]
    FirstByteTimeout,
    /// The header began and was not finished in time.
    #[error("the header was not finished within header_timeout")]
    HeaderTimeout,
    /// The connection ended inside the header.
    #[error("the connection ended inside the header")]
    ClosedEarly,
    /// The peer is not in `trusted_peers`.
    #[error("the peer is not in the listener's trusted_peers")]
    Untrusted,
    /// It has passed this relay before, or [`MAX_HOPS`] of its kind.
    #[error(
        "the connection has passed this relay before, or too many relays: does an upstream lead back to the load balancer in front?"
    )]
    Loop,
}

impl HeaderError {
    /// Every error, in the order of its discriminant.
    pub const ALL: [Self; 16] = [
        Self::NotProxy,
        Self::NotV2,
        Self::Version,
        Self::Command,
        Self::Family,
        Self::Length,
        Self::TooLong,
        Self::Tlv,
        Self::Crc,
        Self::EndpointId,
        Self::DuplicateEndpoint,
        Self::FirstByteTimeout,
        Self::HeaderTimeout,
        Self::ClosedEarly,
        Self::Untrusted,
        Self::Loop,
    ];

    /// The name in metrics and logs.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::NotProxy => "not_proxy",
            Self::NotV2 => "not_v2",
            Self::Version => "version",
            Self::Command => "command",
            Self::Family => "family",
            Self::Length => "length",
            Self::TooLong => "too_long",
            Self::Tlv => "tlv",
            Self::Crc => "crc",
            Self::EndpointId => "endpoint_id",
            Self::DuplicateEndpoint => "duplicate_endpoint",
            Self::FirstByteTimeout => "first_byte_timeout",
            Self::HeaderTimeout => "header_timeout",
            Self::ClosedEarly => "closed_early",
            Self::Untrusted => "untrusted",
            Self::Loop => "loop",
        }
    }
}

/// What a relay of this kind adds to the headers that it sends, in a TLV of type [`tlv::RELAY`]: `TG`, the version of this layout, then these.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Passed<'a> {
    /// Relays of this kind that the connection has passed, the one that wrote this included.
    pub hops: u8,
    /// Who wrote it.
    pub relay_id: &'a [u8],
}

impl<'a> Passed<'a> {
    /// What the value of its TLV begins with.
    pub const MARK: [u8; 3] = *b"TG\x01";

    /// Reads it from a TLV. The type is one that anybody may use for his own: what does not begin like ours is somebody else's.
    #[must_use]
    pub fn from_tlv(kind: u8, value: &'a [u8]) -> Option<Self> {
        let [hops, relay_id @ ..] = value.strip_prefix(&Self::MARK)? else {
            return None;
        };
        (kind == tlv::RELAY).then_some(Self {
            hops: *hops,
            relay_id,
        })
    }
}

/// Types of TLVs that mean something here.
pub mod tlv {
    /// CRC32C of the whole header, its own four bytes taken as zero.
    pub const CRC32C: u8 = 0x03;
    /// Padding.
    pub const NOOP: u8 = 0x04;
    /// Our own type, from the range for applications' own (specification, section 2.2.7).
    pub const RELAY: u8 = 0xE7;
    /// Amazon's own type; the first byte of the value is a subtype.
    pub const AWS: u8 = 0xEA;
    /// Subtype of [`AWS`]: the rest of the value is the VPC endpoint's id in ASCII.
    pub const AWS_VPC_ENDPOINT: u8 = 0x01;
}

/// Walks TLVs: type, 16-bit length, value. Ends after the first one that does not fit.
#[derive(Debug, Clone)]
pub struct Tlvs<'a> {
    rest: &'a [u8],
}

/// A TLV that reaches past the end of the header, or one or two stray bytes where one should begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Overrun;

impl<'a> Tlvs<'a> {
    /// Over the bytes after the addresses.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }
}

impl<'a> Iterator for Tlvs<'a> {
    type Item = Result<(u8, &'a [u8]), Overrun>;

    fn next(&mut self) -> Option<Self::Item> {
        match *self.rest {
            [] => None,
            [kind, high, low, ref tail @ ..]
                if tail.len() >= usize::from(u16::from_be_bytes([high, low])) =>
            {
                let (value, rest) = tail.split_at(usize::from(u16::from_be_bytes([high, low])));
                self.rest = rest;
                Some(Ok((kind, value)))
            }
            _ => {
                self.rest = &[];
                Some(Err(Overrun))
            }
        }
    }
}
