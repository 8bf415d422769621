//! The module's decisions, without a database.
//!
//! [`append`], [`page`], [`retention`] and [`rewind`] decide about a log and carry it out over the rows of [`log`]. The
//! other functions take what the tables hold and what a caller asks for, and return what to write, or a
//! [`Refusal`](spacetime_sync_proto::Refusal). Nothing here knows tables, a clock or a random number, so tests and the
//! simulation run the same code that is published.

pub mod append;
pub mod assignment;
pub mod capability;
pub mod checkpoint;
pub mod content;
pub mod journal;
pub mod log;
pub mod nostr;
pub mod outbox;
pub mod page;
pub mod presence;
pub mod quota;
pub mod retention;
pub mod rewind;
pub mod session;
pub mod signal;
pub mod stream_key;
pub mod trust;
