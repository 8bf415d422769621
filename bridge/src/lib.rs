//! The bridge: carries what the runtime committed in Postgres into SpacetimeDB.
//!
//! [`spacetime_sync_lane`] decides, [`spacetime_sync_authority`] and [`spacetime_sync_stdb`] act, and [`run`] wires them. Beside
//! the lane the bridge issues tokens to clients and reads them the authority's log ([`spacetime_sync_issuer`]). [`status`] is
//! what [`http`] tells about it.
//! The bridge keeps no state of its own: the authority knows what is published, SpacetimeDB knows what it holds, and after a
//! crash the bridge does again what it had not finished.

pub mod config;
pub mod http;
pub mod issuing;
pub mod run;
pub mod status;
pub mod tasks;
mod upkeep;
