//! One file a reducer: who calls, what is held, what do the rules say, write it.

pub(crate) mod ack_checkpoint;
mod append_sync_event;
mod append_sync_events;
mod configure;
mod grant_stream;
mod lifecycle;
mod revoke_stream;
