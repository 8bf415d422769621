//! The bridge: carries what the runtime committed in Postgres into SpacetimeDB.
//!
//! `spacetime_sync_lane` decides, [`spacetime_sync_authority`] and [`spacetime_sync_stdb`] do, [`pump`] wires them; [`status`] is what [`http`] tells. Beside that it
//! issues the tokens that clients connect with ([`auth`]), and reads them what SpacetimeDB holds no longer ([`history`]).
//! It keeps no state of its own: the authority knows what is published, SpacetimeDB knows what it holds, and whatever was
//! under way in a crash is done again.

pub mod config;
pub mod http;
pub mod pump;
pub mod status;
pub mod tasks;
