//! Everything that talks: the SDK connection and the attempt to make it, and the bridge's tokens and history over HTTP.
//! This room carries out what the session decided and reports the result. It never decides and never reconnects by
//! itself.

pub(crate) mod dial;
pub(crate) mod history;
pub(crate) mod link;
pub(crate) mod tokens;

mod calls;
mod connect;
mod pin;
mod presence;
mod reason;
mod signals;
mod views;
