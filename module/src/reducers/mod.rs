//! One file per reducer. Each checks the caller, reads what is held, asks the rules, and writes their answer.

mod ack_checkpoint;
mod append_sync_event;
mod append_sync_events;
mod bring_back;
mod close_journal;
mod configure;
mod enqueue_bridge_event;
mod grant_stream;
mod lifecycle;
mod mark_bridge_event_sent;
mod mark_epoch;
mod open_compute_assignment;
mod open_journal;
mod publish_provider_capability;
mod revoke_session;
mod revoke_stream;
mod send_signal;
mod set_compatibility;
mod set_retention;
mod settle_journal;
pub(crate) mod sweep_access;
pub(crate) mod sweep_log;
mod trust_issuer;
mod update_compute_assignment;
mod upsert_presence;
