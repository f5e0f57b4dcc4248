//! tollgate: a Layer-4 TCP relay behind an AWS Network Load Balancer, with exact books per consumer endpoint.
//!
//! # The life of a connection
//!
//! 1. **Accept.** [`listener`] takes it from the worker's own socket; a peer outside `trusted_peers` is reset before a byte is read.
//!    [`spread`] decides which worker keeps it. It gets a place in the [`waiting_room`], which bounds how many may be silent.
//! 2. **Header.** [`proxy_protocol::read`] collects bytes until [`proxy_protocol::decode`] has one whole PROXY protocol v2 header; what
//!    came with it is payload. LOCAL is a health check and is answered by [`admin::health`].
//! 3. **Route.** [`route`] chooses the upstream: by endpoint and network, and where an entry asks for a name, by what [`peek`] finds in the
//!    client's first bytes, which are passed on untouched.
//! 4. **Account.** The endpoint id opens a [`account::Meter`] on the books of (listener, endpoint, consumer, upstream).
//! 5. **Connect.** [`upstream::connect`] tries the upstream's addresses in the order of [`upstream::balance`], or takes a connection that
//!    was dialled [`upstream::ahead`]. Which there are and which serve is known on the control thread ([`upstream::named`],
//!    [`upstream::roster`], [`upstream::health`]). Where the upstream wants to know who is behind the connection, it begins with a header of ours
//!    ([`proxy_protocol::identity`]).
//! 6. **Relay.** Both sockets go to the worker's [`relay::engine`], which copies or splices in both directions, passes on half-closes
//!    and resets, and bounds the session's time.
//! 7. **Close.** One [`account::CloseReason`], booked, recorded and logged in one place.
//!
//! Steps 1 to 5 are one task, [`session::serve`]; step 6 and 7 are plain data in the engine. Both get their events from the worker's
//! [`reactor`].
//!
//! # Threads
//!
//! The [`supervisor`] is the control thread: names, admin port, signals, the way out ([`drain`]). Each [`worker`] is a thread
//! with one wait, its [`reactor`], and its own listening sockets, tasks, engine, pipes, buffer and shard of every counter. Workers share
//! nothing they would have to lock while bytes move. [`admin`] sees snapshots of the books and never a session. What is written to a disk has threads of its own, which wait for
//! it so that nobody else has to: [`account::ledger`] books what the workers count, [`account::audit`] writes the records that they hand over.

pub mod account;
pub mod activation;
pub mod admin;
pub mod cli;
pub mod config;
pub mod drain;
pub mod glob;
pub mod leg;
pub mod listener;
pub mod orders;
pub mod peek;
pub mod places;
pub mod policy;
pub mod proxy_protocol;
pub mod pulse;
pub mod reactor;
pub mod relay;
pub mod route;
pub mod session;
pub mod spread;
pub mod supervisor;
pub mod sys;
pub mod systemd;
pub mod telemetry;
pub mod upstream;
pub mod waiting_room;
pub mod worker;
