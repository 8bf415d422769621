//! What a key does with an assignment, and with which assignments it can be done.

use spacetime_sync_client::AssignmentState;
use spacetime_sync_rules::assignment::{TRANSITIONS, Who};

/// What a key does with an assignment.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Act {
    /// The key.
    pub(crate) key: char,
    /// What it does, as the last line of the screen says it.
    pub(crate) word: &'static str,
    /// The state that the assignment is to have.
    pub(crate) to: AssignmentState,
}

/// Every act. An offer to a chosen provider is none: there is no key for a name.
pub(crate) const ACTS: [Act; 6] = {
    use AssignmentState::{Accepted, Cancelled, Failed, Open, Running, Succeeded};
    const fn act(key: char, word: &'static str, to: AssignmentState) -> Act {
        Act { key, word, to }
    }
    [
        act('a', "accept", Accepted),
        act('s', "start", Running),
        act('d', "done", Succeeded),
        act('f', "fail", Failed),
        // Declined, given back or withdrawn.
        act('r', "reopen", Open),
        act('x', "cancel", Cancelled),
    ]
};

/// The acts that exist for an assignment in this state. The module decides whether this session may do them: a session does not
/// know on which side of an assignment it is.
pub(crate) fn possible(from: AssignmentState) -> impl Iterator<Item = &'static Act> {
    ACTS.iter().filter(move |act| is_possible(from, act.to))
}

fn is_possible(from: AssignmentState, to: AssignmentState) -> bool {
    TRANSITIONS
        .iter()
        .any(|(is, becomes, who)| (*is, *becomes) == (from, to) && *who != Who::Clock)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_acts_are_the_changes_that_a_session_can_make() {
        use AssignmentState::{Accepted, Cancelled, Expired, Failed, Offered, Open, Running, Succeeded};
        for (from, keys) in [
            (Open, "arx"),
            (Offered, "arx"),
            (Accepted, "sfrx"),
            (Running, "dfx"),
            (Succeeded, ""),
            (Failed, ""),
            (Cancelled, ""),
            (Expired, ""),
        ] {
            assert_eq!(possible(from).map(|act| act.key).collect::<String>(), keys, "{from}");
        }
    }
}
