//! Who may read which stream. Anyone connected can read `stream_grant`, because the filters join it, so it holds only
//! opaque keys.

use spacetimedb::{Identity, Timestamp, table};

#[table(
    accessor = stream_grant,
    public,
    index(accessor = by_holder, btree(columns = [identity, stream_key]))
)]
pub struct StreamGrant {
    #[primary_key]
    #[auto_inc]
    pub grant_id: u64,
    /// Indexed alone, too: SpacetimeDB finds the rows of a subscription by no other index.
    #[index(btree)]
    pub identity: Identity,
    /// One row per identity and stream: a second one would deliver every frame twice.
    #[index(btree)]
    pub stream_key: u64,
    /// Whether the owner gave the grant. Then it ends as its row of `standing_grant` says; other grants end with their
    /// session.
    #[default(true)]
    pub standing: bool,
}

/// The grants that the owner gave. Private: the owner lists them with SQL. A grant without a row here was given by an
/// earlier release, and never ends by itself.
#[table(accessor = standing_grant)]
pub struct StandingGrant {
    /// The row of `stream_grant`.
    #[primary_key]
    pub grant_id: u64,
    pub identity: Identity,
    pub stream_id: String,
    /// When the owner last gave it.
    pub given_at: Timestamp,
    /// When it ends.
    #[index(btree)]
    pub ends_at: Timestamp,
    /// Whether the identity's session has the same right by its token. Then that remains when this grant ends.
    pub beside_session: bool,
}
