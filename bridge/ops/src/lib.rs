//! The operator's tools, without their command line.
//!
//! [`publish`] puts the module onto a server. [`parity`] compares what authority, SpacetimeDB and clients hold, and
//! only reads. [`repair`] is what an operator runs after a restore. [`unpublished`] checks whether committed events can
//! be published.

pub mod parity;
pub mod publish;
pub mod repair;
pub mod unpublished;
