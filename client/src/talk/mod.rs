//! What talks: one connection by the SDK and the attempt to make it, tokens and history from the bridge over HTTP. This
//! room carries out what the session decided and says what came of it. It never decides, and never reconnects by itself.

pub(crate) mod dial;
pub(crate) mod history;
pub(crate) mod link;
pub(crate) mod tokens;

mod connect;
mod presence;
mod reason;
