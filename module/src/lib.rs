//! The SpacetimeDB module of the lane.
//!
//! [`tables`] hold the log, the grants and the checkpoints, and say who sees which row. [`reducers`], [`procedures`]
//! and [`nostr`] are thin: they find out who calls and leave the rest to [`spacetime_sync_rules`], which works on the log's
//! rows through [`log_access`]. The module delivers events. What happened is the authority's decision alone.

// The attributes of `spacetimedb` generate public items without documentation.
#![allow(missing_docs, unreachable_pub)]

pub mod nostr;
pub mod procedures;
pub mod reducers;
pub mod tables;

mod access;
mod assignments;
mod capabilities;
mod journal;
mod log_access;
mod outbox;
mod presences;
mod quota;
mod refuse;
