//! The bridge: carries the events that the runtime commits in Postgres into SpacetimeDB.
//!
//! [`spacetime_sync_lane`] decides, [`spacetime_sync_authority`] and [`spacetime_sync_stdb`] act, and [`run`] wires them. The
//! bridge also issues tokens to clients and reads the authority's log for them ([`spacetime_sync_issuer`]). [`http`] serves
//! all that, and the lane's [`status`].
//!
//! The bridge keeps no state of its own: the authority knows what is published, and SpacetimeDB knows what it holds. After a
//! crash the bridge repeats what it had not finished.

pub mod config;
pub mod http;
pub mod issuing;
pub mod run;
pub mod status;
pub mod tasks;
mod timer;
mod upkeep;
