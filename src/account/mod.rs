//! The books: who moved how much, who was refused, and why each connection ended.
//!
//! An [`Account`] belongs to one (listener, endpoint, consumer, upstream). [`Meter`] ties a session to its account: opened when it is made, closed
//! exactly once when it ends. [`Books`] has all accounts of a process and shows them: as a [`Snapshot`] to the admin side, slot by slot
//! ([`SlotTotals`]) to the ledger.
//!
//! # How the numbers outlive the process
//!
//! They are in memory that is a file on tmpfs ([`sys::region`](crate::sys::region)): what was stored there stays when the process is killed.
//! `layout` says where everything is. `slot` writes: each worker a part of its own, by plain stores without contention, in an order from which
//! `leftover` makes every slot whole again that a killed process was in the middle of. `file` makes the file and keeps it from others.
//!
//! # How their number stays bounded
//!
//! [`Limits`] says how many accounts there may be; further endpoints share `overflow`. Accounts without a session leave memory once they are
//! booked ([`Books::let_go`]), and their slots are used again; each use is another generation. Workers keep what they were given in a [`Cache`];
//! one that was retired says so ([`Retired`]).
//!
//! Knows no sockets and no HTTP.

mod accounts;
mod anchor;
pub mod audit;
mod books;
#[cfg(test)]
mod books_tests;
mod cache;
mod counter;
mod file;
mod keeper;
mod layout;
pub mod ledger;
pub mod leftover;
mod limits;
mod meter;
mod reason;
mod repair;
mod slot;
mod snapshot;
mod totals;

pub use accounts::Account;
pub use anchor::Anchor;
pub use books::{Books, BooksError, Place, Shards};
pub use cache::Cache;
pub use counter::{Cell, ListenerShard, WorkerShard};
pub use keeper::keep;
pub use leftover::{Leftover, LeftoverError};
pub use limits::Limits;
pub use meter::{Meter, Retired};
pub use reason::{
    AcceptError, CloseReason, Direction, Event, Fallback, LimitOf, PeekOutcome, Refusal, RelayPath,
    Wait,
};
pub use repair::{Damage, Damaged, Torn};
pub use snapshot::{ListenerTotals, Snapshot, WorkerTotals};
pub use totals::{
    AccountKey, AccountTotals, Counters, HEADER, NOBODY, OTHER, OVERFLOW, REFUSED, SlotTotals,
    refused_name,
};
