//! Who may read which stream. Anyone connected can read this table, for the filters join it: opaque keys only.

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
    /// Given by hand, until it is taken by hand. Else it ends with its session.
    #[default(true)]
    pub standing: bool,
}
