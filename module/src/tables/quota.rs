//! How much of its quotas each caller has used lately. Private. A row that says nothing more is swept.

use spacetimedb::{Identity, Timestamp, table};

#[table(accessor = caller_quota)]
pub struct CallerQuota {
    #[primary_key]
    pub identity: Identity,
    /// When the caller may acknowledge a whole burst again.
    pub acknowledgements: Timestamp,
    /// When a whole burst of its heartbeats is accepted again.
    pub heartbeats: Timestamp,
    /// The latest of all these: then the row may be deleted.
    #[index(btree)]
    pub until: Timestamp,
    /// When the caller may publish a whole burst of capabilities again.
    #[default(Timestamp::UNIX_EPOCH)]
    pub publications: Timestamp,
    /// When the caller may open and change a whole burst of assignments again.
    #[default(Timestamp::UNIX_EPOCH)]
    pub assignments: Timestamp,
    /// When the caller may send a whole burst of signals again.
    #[default(Timestamp::UNIX_EPOCH)]
    pub signals: Timestamp,
    /// When the caller may ask for a whole burst of challenges again.
    #[default(Timestamp::UNIX_EPOCH)]
    pub challenges: Timestamp,
    /// When the caller may make a whole burst of calls about the outbox again.
    #[default(Timestamp::UNIX_EPOCH)]
    pub outbox: Timestamp,
}
