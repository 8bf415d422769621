//! A session tells others something in passing. Nothing is kept of it.

use spacetime_sync_proto::access::Scope;
use spacetime_sync_proto::{Label, Refusal, RefusalCode};
use spacetime_sync_rules::assignment;
use spacetime_sync_rules::quota::Call;
use spacetime_sync_rules::signal::{self, Subject};
use spacetimedb::{ReducerContext, Table, reducer};

use crate::access::{forbidden_stream, may_read, own_session};
use crate::assignments::Assignment;
use crate::log_access::trust_row;
use crate::quota::spend;
use crate::refuse::{Refused, refused};
use crate::tables::{SessionSignal, SyncSession, SyncTrust, session_signal};

/// Who hears a signal, and whether they may know whose it is.
type Audience = (u64, bool);

#[reducer]
// A reducer's arguments are its wire format.
#[allow(clippy::too_many_arguments)]
pub fn send_signal(
    ctx: &ReducerContext,
    node_id: String,
    subject_kind: String,
    subject: String,
    kind: String,
    done: u64,
    total: u64,
    note: String,
) -> Result<(), Refused> {
    let signal = signal::signal(&node_id, [&subject_kind, &subject], &kind, [done, total], &note).map_err(refused)?;
    let own = own_session(ctx)?;
    spend(ctx, Call::Signal)?;
    let trust = trust_row(ctx)?;
    let audiences = match &signal.subject {
        Subject::User => vec![(trust.user_key(&own.user_id)?, true)],
        Subject::Stream(stream_id) => {
            // All readers of the stream hear it, as they hear what serves it.
            own.may(Scope::Serve)?;
            let stream_key = trust.stream_key(stream_id)?;
            if !may_read(ctx, stream_key) {
                return Err(refused(forbidden_stream()));
            }
            vec![(stream_key, true)]
        }
        Subject::Assignment(request_id) => parties(ctx, &trust, &own, request_id)?,
    };
    for (audience_key, is_shown) in audiences {
        let shown = |name: &str| if is_shown { name.to_owned() } else { String::new() };
        ctx.db.session_signal().insert(SessionSignal {
            audience_key,
            session_id: shown(&own.session_id),
            node_id: shown(&node_id),
            subject_kind: subject_kind.clone(),
            subject: subject.clone(),
            kind: kind.clone(),
            done,
            total,
            note: note.clone(),
            said_at: ctx.timestamp,
        });
    }
    Ok(())
}

/// The two parties of an assignment that has not ended. Neither learns which session of the other one it is.
fn parties(
    ctx: &ReducerContext,
    trust: &SyncTrust,
    own: &SyncSession,
    request_id: &Label,
) -> Result<Vec<Audience>, Refused> {
    let forbidden = || refused(assignment::forbidden());
    let Assignment { party, row } = Assignment::find(ctx, request_id.as_str()).ok_or_else(forbidden)?;
    let parties = signal::parties(&own.user_id, &party.requester, &party.provider).ok_or_else(forbidden)?;
    let [asks, provides] = [Scope::AssignmentOpen, Scope::Provider].map(|scope| own.may(scope));
    let by_right = own.user_id == party.requester && asks.is_ok() || own.user_id == party.provider && provides.is_ok();
    if !by_right {
        return asks.and(provides).map(|()| Vec::new());
    }
    if party.has_ended {
        let message = format!("assignment {request_id} has ended: it is {}", row.status);
        return Err(refused(Refusal::new(RefusalCode::AssignmentConflict, message)));
    }
    let audience =
        |user_id: &str| -> Result<Audience, Refused> { Ok((trust.user_key(user_id)?, user_id == own.user_id)) };
    parties.into_iter().map(audience).collect()
}
