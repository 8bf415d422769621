//! Assignments: work that one user asks for and another one's provider does. Which changes there are, and who may make them.
//!
//! An assignment has two documents. What is asked for is the requester's, and what became of it is the provider's report.
//! Nobody changes the other one's: a provider that gives an assignment back leaves the next one what the requester wrote.

mod state;

use std::time::Duration;

use spacetime_sync_proto::{Label, Refusal, RefusalCode, limit};

pub use self::state::{State, TRANSITIONS, Who, is_final, state};
use crate::content::{Digest, check_document, digest, invalid, name, optional_name};

/// How long an assignment is remembered after it has ended.
pub const REMEMBERED: Duration = Duration::from_secs(86_400);

/// Until when it is known of an assignment that it was opened, once it is held no longer. An older copy of SpacetimeDB may have it as
/// it was before its end, and takes changes of it until its deadline. So the name stays taken as long, where there is room: of the
/// requester's names that are known, `lingering` are taken for longer than an assignment is remembered that ends now.
pub fn known_until(remembered_until_us: i64, deadline_us: i64, lingering: usize) -> i64 {
    if lingering < limit::ASSIGNMENTS_LINGERING {
        remembered_until_us.max(deadline_us)
    } else {
        remembered_until_us
    }
}

/// An assignment that is asked for, with valid fields.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opening {
    /// The assignment's name.
    pub request_id: Label,
    /// To whom it is offered. `None` opens it to all providers.
    pub provider_id: Option<Label>,
    /// What is asked for: a JSON object.
    pub assignment: String,
    /// How long it may take.
    pub deadline: Duration,
    /// Over all of the above.
    pub content: Digest,
}

/// Checks the fields of an assignment that is asked for.
pub fn opening(
    request_id: &str,
    provider_id: &str,
    assignment: &str,
    deadline_seconds: u64,
) -> Result<Opening, Refusal> {
    let (request_id, provider) = (
        name("request_id", request_id)?,
        optional_name("provider_id", provider_id)?,
    );
    if !(1..=limit::ASSIGNMENT_SECONDS).contains(&deadline_seconds) {
        let message = format!(
            "deadline_seconds: expected 1 to {}, found {deadline_seconds}",
            limit::ASSIGNMENT_SECONDS
        );
        return Err(invalid(message));
    }
    check_document("assignment", assignment, limit::ASSIGNMENT_BYTES)?;
    let content = digest(&[
        request_id.as_str().as_bytes(),
        provider_id.as_bytes(),
        assignment.as_bytes(),
        &deadline_seconds.to_be_bytes(),
    ]);
    Ok(Opening {
        request_id,
        provider_id: provider,
        assignment: assignment.to_owned(),
        deadline: Duration::from_secs(deadline_seconds),
        content,
    })
}

impl Opening {
    /// The state in which it begins.
    pub fn state(&self) -> State {
        if self.provider_id.is_some() {
            State::Offered
        } else {
            State::Open
        }
    }

    /// Compares with what was opened under the same name, by the caller's user if `is_own`. Everybody else learns only that
    /// the name is taken.
    pub fn check_repeat(&self, is_own: bool, content: Digest) -> Result<(), Refusal> {
        let request_id = &self.request_id;
        if !is_own {
            let message = format!("the name {request_id} is taken: choose another request_id, a random one");
            return Err(conflict(message));
        }
        if self.content != content {
            let message = format!(
                "the assignment {request_id} was opened with another provider, document or deadline: choose another \
                 request_id for another assignment"
            );
            return Err(conflict(message));
        }
        Ok(())
    }
}

/// Checks that a user with so many assignments that have not ended has room for another one.
pub fn check_room(unfinished: usize) -> Result<(), Refusal> {
    if unfinished < limit::ASSIGNMENTS {
        return Ok(());
    }
    let message =
        format!("the user has {unfinished} assignments that have not ended, the most allowed: cancel one first");
    Err(invalid(message))
}

/// Checks that a provider whose user has so many assignments that have not ended may be offered another one.
pub fn check_offer(provider_id: &Label, unfinished: usize) -> Result<(), Refusal> {
    if unfinished < limit::PROVIDER_ASSIGNMENTS {
        return Ok(());
    }
    let message =
        format!("{provider_id} has as many assignments as a provider may be offered: choose another one, or wait");
    Err(invalid(message))
}

/// Checks that a provider whose user has so many assignments that have not ended may take another one that was not offered to it.
pub fn check_taking(unfinished: usize) -> Result<(), Refusal> {
    if unfinished < 2 * limit::PROVIDER_ASSIGNMENTS {
        return Ok(());
    }
    let message = format!(
        "the user's providers have {unfinished} assignments that have not ended, the most allowed: finish, decline or give back \
         one first"
    );
    Err(invalid(message))
}

/// A change that a caller asks for, with valid fields.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The assignment.
    pub request_id: Label,
    /// The change's name, by which a repeat is told.
    pub update_id: Label,
    /// The version that it changes.
    pub expected_version: u64,
    /// The state that it wants.
    pub to: State,
    /// To whom it is offered, or who takes it. Otherwise nobody, or whoever has it.
    pub provider_id: Option<Label>,
    /// The document of the one who asks, if it changes.
    pub document: Option<String>,
    /// Over all of the above.
    pub content: Digest,
}

/// Checks the fields of a change.
pub fn change(
    request_id: &str,
    update_id: &str,
    expected_version: u64,
    status: &str,
    provider_id: &str,
    document: &str,
) -> Result<Change, Refusal> {
    let (request, update) = (name("request_id", request_id)?, name("update_id", update_id)?);
    let to = state(status)?;
    let provider = optional_name("provider_id", provider_id)?;
    if !document.is_empty() {
        check_document("assignment", document, limit::ASSIGNMENT_BYTES)?;
    }
    let content = digest(&[
        request_id.as_bytes(),
        update_id.as_bytes(),
        &expected_version.to_be_bytes(),
        status.as_bytes(),
        provider_id.as_bytes(),
        document.as_bytes(),
    ]);
    Ok(Change {
        request_id: request,
        update_id: update,
        expected_version,
        to,
        provider_id: provider,
        document: (!document.is_empty()).then(|| document.to_owned()),
        content,
    })
}

/// What is held of an assignment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// Its state.
    pub state: State,
    /// Its version: 1, and one more with each change.
    pub version: u64,
    /// To whom it is offered, or who has it.
    pub provider_id: Option<String>,
    /// Whether the requester shows it to all providers while it is open. What was offered to one provider alone is not shown
    /// to the others because that one declines.
    pub to_all: bool,
    /// When it expires, in microseconds.
    pub deadline_us: i64,
}

/// What a caller is to an assignment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Part {
    /// Its user asked for it.
    pub is_requester: bool,
    /// It is offered to a provider of its user, or such a provider has it.
    pub is_provider: bool,
    /// Its session may provide.
    pub may_provide: bool,
}

impl Part {
    fn is(self, who: Who) -> bool {
        match who {
            Who::Requester => self.is_requester,
            Who::Provider => self.is_provider,
            Who::AnyProvider => self.may_provide,
            Who::Clock => false,
        }
    }

    /// Whether the caller may know how it is with the assignment. A provider that came too late for an assignment that was
    /// shown to all is told who has it.
    fn may_know(self, held: &Held) -> bool {
        self.is_requester || self.is_provider || self.may_provide && held.to_all
    }
}

/// Who has an assignment after a change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Provider {
    /// Whoever had it before, if anybody had.
    Same,
    /// Nobody.
    Nobody,
    /// The provider of this name, whom the requester chose.
    Chosen(Label),
    /// The provider of this name, which must be one of the caller's user.
    Own(Label),
}

/// What a change makes of an assignment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Next {
    /// Its state.
    pub state: State,
    /// Its version.
    pub version: u64,
    /// Who has it.
    pub provider: Provider,
    /// Whether it is shown to all providers while it is open.
    pub to_all: bool,
    /// In which part the caller changes it.
    pub by: Who,
    /// What is asked for from now on. `None` if that stays the same.
    pub assignment: Option<String>,
    /// The provider's report from now on. `None` if that stays the same.
    pub report: Option<String>,
}

/// Decides about a change.
pub fn decide(held: &Held, change: &Change, part: Part, now_us: i64) -> Result<Next, Refusal> {
    if !part.may_know(held) {
        return Err(forbidden());
    }
    let refuse = |why: &str| Err(conflict(describe(held, change, why)));
    if change.expected_version != held.version {
        return refuse("it was changed since");
    }
    if !is_final(held.state) && held.deadline_us <= now_us {
        return refuse("its deadline has passed");
    }
    let possible = TRANSITIONS
        .iter()
        .filter(|(from, to, _)| (*from, *to) == (held.state, change.to));
    let Some((_, to, by)) = possible.clone().find(|(_, _, who)| part.is(*who)) else {
        let others: Vec<String> = possible.map(|(_, _, who)| who.to_string()).collect();
        return match others.as_slice() {
            [] => refuse("there is no such change"),
            others => refuse(&format!("only {} may do that", others.join(" or "))),
        };
    };
    let named = || {
        let missing = || invalid(format!("provider_id: {} needs the name of a provider", change.to));
        change.provider_id.clone().ok_or_else(missing)
    };
    let provider = match (to, by) {
        (State::Offered, _) => Provider::Chosen(named()?),
        (State::Accepted, Who::AnyProvider) => Provider::Own(named()?),
        _ => {
            if let Some(named) = &change.provider_id
                && held.provider_id.as_deref() != Some(named.as_str())
            {
                return refuse(&format!("provider_id names {named}"));
            }
            match to {
                State::Open => Provider::Nobody,
                _ => Provider::Same,
            }
        }
    };
    let document = change.document.clone();
    let (assignment, report) = match by {
        Who::Requester => (document, None),
        Who::Provider | Who::AnyProvider | Who::Clock => (None, document),
    };
    let comes_back = *to == State::Open;
    Ok(Next {
        state: *to,
        version: held.version.saturating_add(1),
        provider,
        to_all: held.to_all || comes_back && *by == Who::Requester,
        by: *by,
        assignment,
        // Nobody who has it next has to do with what was reported before.
        report: if comes_back {
            Some(report.unwrap_or_default())
        } else {
            report
        },
    })
}

/// What becomes of an assignment at its deadline. `None` if it has ended before.
pub fn expire(held: &Held) -> Option<Next> {
    let expires = TRANSITIONS.contains(&(held.state, State::Expired, Who::Clock));
    expires.then(|| Next {
        state: State::Expired,
        version: held.version.saturating_add(1),
        provider: Provider::Same,
        to_all: held.to_all,
        by: Who::Clock,
        assignment: None,
        report: None,
    })
}

/// The refusal for a change whose name belongs to another one, which the caller's user made. It may take no part any more.
pub fn other_change(held: &Held, change: &Change, part: Part) -> Refusal {
    let why = format!("{} is the name of another change, which was made", change.update_id);
    conflict(if part.may_know(held) {
        describe(held, change, &why)
    } else {
        why
    })
}

/// The refusal for whoever takes no part in an assignment. It is the same whether or not the assignment exists.
pub fn forbidden() -> Refusal {
    Refusal::new(
        RefusalCode::ForbiddenAssignment,
        "no part in this assignment: its name may be wrong, it may have ended long ago, or it is not offered to this user",
    )
}

fn describe(held: &Held, change: &Change, why: &str) -> String {
    let holder = match &held.provider_id {
        Some(provider_id) if held.state == State::Offered => format!("offered to {provider_id}"),
        Some(provider_id) => format!("with provider {provider_id}"),
        None => "with no provider".to_owned(),
    };
    format!(
        "expected version {}, to make it {}; found {} is {} at version {}, {holder}: {why}",
        change.expected_version, change.to, change.request_id, held.state, held.version
    )
}

fn conflict(message: String) -> Refusal {
    Refusal::new(RefusalCode::AssignmentConflict, message)
}

#[cfg(test)]
mod tests;
