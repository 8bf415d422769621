//! One file a reducer: who calls, what is held, what do the rules say, write it.

mod ack_checkpoint;
mod append_sync_event;
mod append_sync_events;
mod configure;
mod grant_stream;
mod lifecycle;
mod revoke_session;
mod revoke_stream;
mod set_compatibility;
pub(crate) mod sweep_access;
mod trust_issuer;
mod upsert_presence;
