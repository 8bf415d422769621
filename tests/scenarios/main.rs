//! Scenarios on real processes: every fact is looked up where a user would see it.

// A test that cannot go on says so by failing.
#![allow(clippy::unwrap_used)]

mod access;
mod command_line;
mod lane;
mod leftovers;
mod reliability;
