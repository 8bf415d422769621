//! The SpacetimeDB module of the lane.
//!
//! [`tables`] hold the log, the grants and the checkpoints, and say who sees which row. [`reducers`] and
//! [`procedures`] are thin: find out who calls, read what is held, ask [`spacetime_sync_rules`], write its answer.
//! The module delivers; it decides nothing about what happened. That is the authority's alone.

// The attributes of `spacetimedb` make items for the generated glue that nobody documents.
#![allow(missing_docs, unreachable_pub)]

pub mod procedures;
pub mod reducers;
pub mod tables;

mod access;
mod log_access;
mod refuse;
