//! The states of an assignment, and every change from one to another.

use std::fmt;

use spacetime_sync_proto::{AssignmentSide, Refusal};

use spacetime_sync_proto::names::UnknownName;

use crate::content::invalid;

pub use spacetime_sync_proto::AssignmentState as State;

/// Who may make a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Who {
    /// The user who asked for the assignment.
    Requester,
    /// The user of the provider that it is offered to, or that has it.
    Provider,
    /// Whoever may provide.
    AnyProvider,
    /// The module, at the deadline.
    Clock,
}

impl Who {
    /// The side that it is on, as the history names it.
    pub fn side(self) -> AssignmentSide {
        match self {
            Self::Requester => AssignmentSide::Requester,
            Self::Provider | Self::AnyProvider => AssignmentSide::Provider,
            Self::Clock => AssignmentSide::Clock,
        }
    }
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Requester => "the requester",
            Self::Provider => "its provider",
            Self::AnyProvider => "a session that may provide",
            Self::Clock => "the module, at the deadline,",
        })
    }
}

/// Every change that there is: from which state, to which, and who may make it. Where a caller is two of these, the first
/// counts.
pub const TRANSITIONS: &[(State, State, Who)] = {
    use State::{Accepted, Cancelled, Expired, Failed, Offered, Open, Running, Succeeded};
    use Who::{AnyProvider, Clock, Provider, Requester};
    &[
        // Shows all providers what was offered to one alone and came back.
        (Open, Open, Requester),
        (Open, Offered, Requester),
        (Open, Accepted, AnyProvider),
        (Open, Cancelled, Requester),
        (Open, Expired, Clock),
        // Withdraws the offer.
        (Offered, Open, Requester),
        // Declines it.
        (Offered, Open, Provider),
        (Offered, Accepted, Provider),
        (Offered, Cancelled, Requester),
        (Offered, Expired, Clock),
        // Gives it back.
        (Accepted, Open, Provider),
        (Accepted, Running, Provider),
        (Accepted, Failed, Provider),
        (Accepted, Cancelled, Requester),
        (Accepted, Expired, Clock),
        (Running, Succeeded, Provider),
        (Running, Failed, Provider),
        (Running, Cancelled, Requester),
        (Running, Expired, Clock),
    ]
};

/// Whether nothing changes an assignment in this state any more.
pub fn is_final(state: State) -> bool {
    !TRANSITIONS.iter().any(|(from, ..)| *from == state)
}

/// The state of this name.
pub fn state(name: &str) -> Result<State, Refusal> {
    name.parse().map_err(|error: UnknownName| invalid(error.to_string()))
}
