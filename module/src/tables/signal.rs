//! What sessions tell one another in passing. SpacetimeDB delivers a row with its transaction and does not keep it.
//!
//! A filter on an event table works only for a subscription that names the audience (`WHERE audience_key = …`): the planner
//! then joins one key with the grants, which are indexed by it. Every other subscription to these tables is refused.

use spacetimedb::{Filter, Timestamp, client_visibility_filter, table};

#[table(accessor = session_signal, public, event)]
pub struct SessionSignal {
    /// Holders of a grant with this key hear it, if their subscription names the key.
    #[index(btree)]
    pub audience_key: u64,
    /// Whose it is. Empty for the other party of an assignment, which may not know.
    pub session_id: String,
    /// The sender's node. Empty where the session is.
    pub node_id: String,
    /// What it is about: `user`, `stream` or `assignment`.
    pub subject_kind: String,
    /// Its name.
    pub subject: String,
    /// `progress`, `typing` or `conflict`.
    pub kind: String,
    /// Of a progress: the steps that are done, and all of them; 0 if that is unknown.
    pub done: u64,
    pub total: u64,
    /// What a person may read; may be empty.
    pub note: String,
    pub said_at: Timestamp,
}

#[client_visibility_filter]
const HEARD_SIGNALS: Filter = Filter::Sql(
    "SELECT s.* FROM session_signal s JOIN stream_grant g ON s.audience_key = g.stream_key WHERE g.identity = :sender",
);
