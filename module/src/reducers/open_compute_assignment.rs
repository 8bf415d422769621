//! A user asks for work to be done, by one provider or by any.

use spacetime_sync_proto::access::Scope;
use spacetime_sync_proto::limit;
use spacetime_sync_rules::assignment::{self, Who};
use spacetime_sync_rules::quota::Call;
use spacetimedb::{ReducerContext, Table, reducer};

use crate::access::own_session;
use crate::assignments::{Assignment, forget_early, unfinished_with};
use crate::capabilities::user_of;
use crate::journal::check_room;
use crate::log_access::{digest_from_column, digest_to_column};
use crate::quota::spend;
use crate::refuse::{Refused, refused};
use crate::tables::{AssignmentParty, ComputeAssignment, assignment_party, forgotten_assignment};

/// Without a `provider_id` the assignment is open to all. It expires after `deadline_seconds`. The same call again changes
/// nothing, whatever has become of the assignment.
#[reducer]
pub fn open_compute_assignment(
    ctx: &ReducerContext,
    request_id: String,
    provider_id: String,
    assignment: String,
    deadline_seconds: u64,
) -> Result<(), Refused> {
    let own = own_session(ctx)?;
    own.may(Scope::AssignmentOpen)?;
    check_room(ctx)?;
    spend(ctx, Call::Assignment)?;
    let opening = assignment::opening(&request_id, &provider_id, &assignment, deadline_seconds).map_err(refused)?;
    let parties = ctx.db.assignment_party();
    let held = parties.request_id().find(request_id.clone());
    let opened = held.map(|held| (held.requester, held.opened_as)).or_else(|| {
        let forgotten = ctx.db.forgotten_assignment().request_id().find(request_id.clone())?;
        Some((forgotten.requester, forgotten.opened_as))
    });
    if let Some((requester, opened_as)) = opened {
        return opening
            .check_repeat(requester == own.user_id, digest_from_column(opened_as))
            .map_err(refused);
    }
    let unfinished = parties.by_requester().filter((own.user_id.as_str(), false)).count();
    assignment::check_room(unfinished).map_err(refused)?;
    let ended: Vec<AssignmentParty> = parties.by_requester().filter((own.user_id.as_str(), true)).collect();
    if unfinished + ended.len() >= 2 * limit::ASSIGNMENTS
        && let Some(first) = ended.into_iter().next()
    {
        forget_early(ctx, first);
    }
    let provider = match &opening.provider_id {
        Some(provider_id) => {
            let user = user_of(ctx, provider_id)?;
            assignment::check_offer(provider_id, unfinished_with(ctx, &user)).map_err(refused)?;
            user
        }
        None => String::new(),
    };
    let deadline_at = ctx.timestamp + opening.deadline;
    let opened = Assignment {
        party: AssignmentParty {
            request_id: request_id.clone(),
            requester: own.user_id,
            provider,
            opened_as: digest_to_column(opening.content),
            has_ended: false,
            due_at: deadline_at,
        },
        row: ComputeAssignment {
            assignment_id: 0,
            audience_key: 0,
            request_id,
            version: 1,
            status: opening.state().as_str().to_owned(),
            to_all: opening.provider_id.is_none(),
            provider_id,
            assignment,
            report: String::new(),
            opened_at: ctx.timestamp,
            changed_at: ctx.timestamp,
            deadline_at,
        },
    };
    opened.place(ctx, Who::Requester.side(), "")?;
    parties.insert(opened.party);
    Ok(())
}
