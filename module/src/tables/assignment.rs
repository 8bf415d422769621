//! Work that one user asks for and another one's provider does. An assignment is seen by the sessions of the user who asked for
//! it, and by those of the user whose provider has it. While it is open to all, all sessions that may provide see it. There is
//! a row for each of these audiences, joined with the grants as the log is. An assignment's rows differ in the audience alone.

use spacetimedb::sats::u256;
use spacetimedb::{Filter, Timestamp, client_visibility_filter, table};

#[table(accessor = compute_assignment, public)]
#[derive(Clone)]
pub struct ComputeAssignment {
    #[primary_key]
    #[auto_inc]
    pub assignment_id: u64,
    /// Holders of a grant with this key see the row.
    #[index(btree)]
    pub audience_key: u64,
    /// The assignment's name.
    #[index(btree)]
    pub request_id: String,
    /// 1, and one more with each change.
    pub version: u64,
    /// `open`, `offered`, `accepted`, `running`, `succeeded`, `failed`, `cancelled` or `expired`.
    pub status: String,
    /// To whom it is offered, or who has it. Empty while it is open.
    pub provider_id: String,
    /// Whether all who may provide see it while it is open.
    pub to_all: bool,
    /// What is asked for: the requester's JSON object.
    pub assignment: String,
    /// What became of it: the provider's JSON object. Empty if it has said nothing.
    pub report: String,
    pub opened_at: Timestamp,
    pub changed_at: Timestamp,
    pub deadline_at: Timestamp,
}

#[client_visibility_filter]
const SEEN_ASSIGNMENTS: Filter = Filter::Sql(
    "SELECT a.* FROM compute_assignment a JOIN stream_grant g ON a.audience_key = g.stream_key WHERE g.identity = :sender",
);

/// The newest changes of each assignment, for the audiences that see the assignment.
#[table(
    accessor = compute_assignment_change,
    public,
    index(accessor = by_version, btree(columns = [request_id, audience_key, version]))
)]
#[derive(Clone)]
pub struct ComputeAssignmentChange {
    #[primary_key]
    #[auto_inc]
    pub change_id: u64,
    /// Holders of a grant with this key see the row.
    #[index(btree)]
    pub audience_key: u64,
    pub request_id: String,
    /// The assignment's version after the change.
    pub version: u64,
    /// Its status after the change.
    pub status: String,
    /// Who had it after the change. Empty if nobody had.
    pub provider_id: String,
    /// Who changed it: `requester`, `provider` or `clock`.
    pub changed_by: String,
    /// The name that its author gave the change. Empty if the assignment was opened, or has expired.
    pub update_id: String,
    pub changed_at: Timestamp,
}

#[client_visibility_filter]
const SEEN_CHANGES: Filter = Filter::Sql(
    "SELECT c.* FROM compute_assignment_change c JOIN stream_grant g ON c.audience_key = g.stream_key WHERE g.identity = :sender",
);

/// Who takes part in an assignment, and when a sweep must look at it. Private, because it names users.
#[table(
    accessor = assignment_party,
    index(accessor = by_requester, btree(columns = [requester, has_ended, due_at])),
    index(accessor = by_provider, btree(columns = [provider, has_ended]))
)]
pub struct AssignmentParty {
    #[primary_key]
    pub request_id: String,
    /// The user who asked for it.
    pub requester: String,
    /// The user whose provider has it. Empty if nobody has.
    pub provider: String,
    /// The digest of the call that opened it.
    pub opened_as: u256,
    /// Whether it is in a state that never changes.
    pub has_ended: bool,
    /// When it expires. Once it has ended: when it may be forgotten.
    #[index(btree)]
    pub due_at: Timestamp,
}

/// Assignments that the module holds no longer because their requester opened many others, as long as they would have been
/// held. By these the late repeat of a call is told that opened one. Private, because it names users.
#[table(accessor = forgotten_assignment, index(accessor = by_requester, btree(columns = [requester, until])))]
pub struct ForgottenAssignment {
    #[primary_key]
    pub request_id: String,
    /// The user who asked for it.
    pub requester: String,
    /// The digest of the call that opened it.
    pub opened_as: u256,
    /// When the row may be deleted.
    #[index(btree)]
    pub until: Timestamp,
    /// When it was opened. The epoch where an earlier release has forgotten it.
    #[default(Timestamp::UNIX_EPOCH)]
    pub opened_at: Timestamp,
}

/// The calls that made the newest changes, by which a repeated call is told. Private, because it names users.
#[table(accessor = assignment_update, index(accessor = by_version, btree(columns = [request_id, version])))]
pub struct AssignmentUpdate {
    #[primary_key]
    #[auto_inc]
    pub update_key: u64,
    pub request_id: String,
    /// The assignment's version after the change.
    pub version: u64,
    pub update_id: String,
    /// Whose session made the change.
    pub user_id: String,
    /// The digest of the call.
    pub content: u256,
}
