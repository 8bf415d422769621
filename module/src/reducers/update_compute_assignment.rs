//! A requester or a provider takes an assignment one step further.

use spacetime_sync_proto::access::Scope;
use spacetime_sync_proto::{Refusal, RefusalCode, limit};
use spacetime_sync_rules::assignment::{self, Part, Provider, Who};
use spacetime_sync_rules::quota::Call;
use spacetimedb::{ReducerContext, Table, reducer};

use crate::access::own_session;
use crate::assignments::{Assignment, unfinished_with};
use crate::capabilities::user_of;
use crate::journal::check_open;
use crate::log_access::{digest_from_column, digest_to_column};
use crate::quota::spend;
use crate::refuse::{Refused, refused};
use crate::tables::{AssignmentUpdate, assignment_update};

/// `status` is the state that the assignment shall have after version `expected_version`. `provider_id` says to whom it is
/// offered, or who takes it. `assignment` is the caller's own document, what is asked for or the report; empty keeps it. The
/// same call again changes nothing, as long as its change is among the newest that are kept.
#[reducer]
pub fn update_compute_assignment(
    ctx: &ReducerContext,
    request_id: String,
    update_id: String,
    expected_version: u64,
    status: String,
    provider_id: String,
    assignment: String,
) -> Result<(), Refused> {
    let own = own_session(ctx)?;
    let [asks, provides] = [Scope::AssignmentOpen, Scope::Provider].map(|scope| own.may(scope));
    if provides.is_err() {
        asks.clone()?;
    }
    check_open(ctx)?;
    spend(ctx, Call::Assignment)?;
    let change = assignment::change(
        &request_id,
        &update_id,
        expected_version,
        &status,
        &provider_id,
        &assignment,
    )
    .map_err(refused)?;
    let found = Assignment::find(ctx, &request_id).ok_or_else(|| refused(assignment::forbidden()))?;
    let held = found.held()?;
    let by_user = Part {
        is_requester: found.party.requester == own.user_id,
        is_provider: found.party.provider == own.user_id,
        may_provide: provides.is_ok(),
    };
    let updates = ctx.db.assignment_update();
    let before = updates
        .by_version()
        .filter(request_id.as_str())
        .find(|row| row.update_id == update_id && row.user_id == own.user_id);
    if let Some(before) = before {
        if digest_from_column(before.content) == change.content {
            return Ok(());
        }
        return Err(refused(assignment::other_change(&held, &change, by_user)));
    }
    let by_scope = Part {
        is_requester: by_user.is_requester && asks.is_ok(),
        is_provider: by_user.is_provider && provides.is_ok(),
        ..by_user
    };
    let now_us = ctx.timestamp.to_micros_since_unix_epoch();
    let next = match assignment::decide(&held, &change, by_scope, now_us) {
        Ok(next) => next,
        Err(refusal) => {
            // What its user may know, a session is told. If nothing else is in the way, it lacks the scope.
            let next = assignment::decide(&held, &change, by_user, now_us).map_err(refused)?;
            match next.by {
                Who::Requester => asks?,
                Who::Provider | Who::AnyProvider | Who::Clock => provides?,
            }
            return Err(refused(refusal));
        }
    };
    let provider = match &next.provider {
        Provider::Same | Provider::Nobody => String::new(),
        Provider::Chosen(named) => {
            let user = user_of(ctx, named)?;
            assignment::check_offer(named, unfinished_with(ctx, &user)).map_err(refused)?;
            user
        }
        Provider::Own(named) => {
            let user = user_of(ctx, named)?;
            if user != own.user_id {
                let message = format!("the name {named} is another user's: name a provider of your own");
                return Err(refused(Refusal::new(RefusalCode::CapabilityConflict, message)));
            }
            assignment::check_taking(unfinished_with(ctx, &user)).map_err(refused)?;
            user
        }
    };
    updates.insert(AssignmentUpdate {
        update_key: 0,
        request_id: request_id.clone(),
        version: next.version,
        update_id: update_id.clone(),
        user_id: own.user_id,
        content: digest_to_column(change.content),
    });
    if let Some(oldest) = next.version.checked_sub(limit::ASSIGNMENT_CHANGES) {
        updates.by_version().delete((request_id.as_str(), ..=oldest));
    }
    found.change(ctx, next, provider, &update_id)
}
