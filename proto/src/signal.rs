//! Signals: what sessions tell one another in passing. Nobody keeps them, and whoever is not listening misses them.

use crate::names::names;

names!(
    /// What a signal says.
    SignalKind,
    "kind",
    /// How far something is.
    Progress = "progress",
    /// Somebody is typing. It holds for a few seconds, and is said again.
    Typing = "typing",
    /// Two changes do not go together, or somebody came too late.
    Conflict = "conflict",
);

names!(
    /// What a signal is about, which determines who hears it.
    SubjectKind,
    "subject_kind",
    /// Something of the sender's own user: its other sessions hear it.
    User = "user",
    /// A stream: whoever may read it hears it.
    Stream = "stream",
    /// An assignment: its two parties hear it.
    Assignment = "assignment",
);
