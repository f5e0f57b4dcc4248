//! ledger
use jiff::Timestamp;
pub mod chores;
pub mod export;
pub mod hours;
pub mod mark;
pub mod read;
pub mod report;
pub mod schema;
pub mod store;
#[cfg(test)]
mod store_tests;
pub mod trouble;
/// The ledger's name in the state directory.
pub const FILE: &str = "ledger.db";
