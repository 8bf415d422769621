//! Assignments: the names of their states, and of those who change them. Which changes there are, the module's rules say.

use crate::names::names;

names!(
    /// The state of an assignment.
    AssignmentState,
    "status",
    /// It waits for a provider.
    Open = "open",
    /// The requester offers it to one provider.
    Offered = "offered",
    /// A provider has taken it.
    Accepted = "accepted",
    /// The provider works on it.
    Running = "running",
    /// The provider has done it.
    Succeeded = "succeeded",
    /// The provider could not do it.
    Failed = "failed",
    /// The requester does not want it any more.
    Cancelled = "cancelled",
    /// Its deadline came first.
    Expired = "expired",
);

names!(
    /// Who changed an assignment.
    AssignmentSide,
    "changed_by",
    /// The user who asked for it.
    Requester = "requester",
    /// The user of a provider.
    Provider = "provider",
    /// The module, at the deadline.
    Clock = "clock",
);
