//! Who may read which stream. Anyone connected can read this table, because the filters join it, so it holds only
//! opaque keys.

use spacetimedb::{Identity, table};

#[table(
    accessor = stream_grant,
    public,
    index(accessor = by_holder, btree(columns = [identity, stream_key]))
)]
pub struct StreamGrant {
    #[primary_key]
    #[auto_inc]
    pub grant_id: u64,
    pub identity: Identity,
    /// One row per identity and stream: a second one would deliver every frame twice.
    #[index(btree)]
    pub stream_key: u64,
    /// Whether an operator gave the grant. Then it stays until an operator takes it; other grants end with their
    /// session.
    #[default(true)]
    pub standing: bool,
}
