//! The outbox: the names of what becomes of its events.

use crate::names::names;

names!(
    /// What became of an event of the outbox.
    OutboxStatus,
    "status",
    /// It waits for the mirror.
    Pending = "pending",
    /// The mirror has sent it.
    Sent = "sent",
    /// It is never sent.
    Dropped = "dropped",
);
