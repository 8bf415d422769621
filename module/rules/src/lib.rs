//! What the module decides, without a database.
//!
//! Each function takes what the tables hold and what a caller asks for, and answers with what is to be written or
//! with a [`Refusal`](spacetime_sync_proto::Refusal). Nothing here reads a table, a clock or a random number, so the
//! simulation runs the very code that is published.

pub mod append;
pub mod checkpoint;
pub mod log;
pub mod page;
pub mod presence;
pub mod retention;
pub mod rewind;
pub mod session;
pub mod stream_key;
pub mod trust;
