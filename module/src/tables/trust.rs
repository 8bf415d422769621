//! Whom the module trusts. Private: no client sees it.

use spacetimedb::{Identity, table};

#[table(accessor = sync_trust)]
pub struct SyncTrust {
    /// Always 0.
    #[primary_key]
    pub id: u8,
    /// Who published the module.
    pub owner: Identity,
    /// Who appends.
    pub bridge: Option<Identity>,
    /// What stream keys are derived with. Set once: another secret would rename every stream.
    pub key_secret: Vec<u8>,
}
