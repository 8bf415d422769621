//! The commands of `spacetime-sync` beside running it.

pub(crate) mod keys;
pub(crate) mod parity;
pub(crate) mod publish;
pub(crate) mod session;

use clap::Args;

#[derive(Args)]
pub(crate) struct ServerArgs {
    /// http://host:port of the SpacetimeDB server.
    #[arg(long)]
    pub(crate) uri: String,
    /// Name of the database.
    #[arg(long)]
    pub(crate) database: String,
}
