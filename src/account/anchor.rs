//! Where the audit trail stood at a moment: what the ledger and the log keep of it, so that records cannot be cut off unseen.

use jiff::Timestamp;

/// The head of the chain.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Anchor {
    /// When it was taken.
    pub time: Timestamp,
    /// The number of the last record, from 1.
    pub sequence: u64,
    /// Its hash, in hexadecimal.
    pub hash: String,
    /// The file it is in; empty for standard output.
    pub file: String,
}
