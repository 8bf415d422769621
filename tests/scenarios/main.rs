//! Scenarios on real processes. They observe every fact where a user would.

// A test reports a failure by panicking.
#![allow(clippy::unwrap_used)]

mod access;
mod collaboration;
mod command_line;
mod contracts;
mod lane;
mod leftovers;
mod reliability;
mod trust;
