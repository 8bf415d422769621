//! The states of an assignment, and every change from one to another.

use std::fmt;

use spacetime_sync_proto::Refusal;

use crate::content::invalid;

macro_rules! states {
    ($($(#[$doc:meta])* $state:ident = $name:literal,)*) => {
        /// The state of an assignment.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum State {
            $($(#[$doc])* $state,)*
        }

        impl State {
            /// All states.
            pub const ALL: &[Self] = &[$(Self::$state),*];

            /// Its name in tables and calls.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$state => $name,)*
                }
            }
        }
    };
}

states! {
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
}

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
    pub fn side(self) -> &'static str {
        match self {
            Self::Requester => "requester",
            Self::Provider | Self::AnyProvider => "provider",
            Self::Clock => "clock",
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

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl State {
    /// Whether nothing changes it any more.
    pub fn is_final(self) -> bool {
        !TRANSITIONS.iter().any(|(from, ..)| *from == self)
    }

    /// The state of this name.
    pub fn parse(text: &str) -> Result<Self, Refusal> {
        let found = Self::ALL.iter().copied().find(|state| state.as_str() == text);
        found.ok_or_else(|| {
            let names: Vec<&str> = Self::ALL.iter().map(|state| state.as_str()).collect();
            invalid(format!("status: expected one of {}", names.join(", ")))
        })
    }
}
