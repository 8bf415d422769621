//! What a leader does at intervals beside the lane: it purges the authority's log and its audit log, forgets old keys of purged
//! events and sessions that are over, and reports rows with invalid stream names.

use std::time::Duration;

use spacetime_sync_authority::{Authority, AuthorityError};
use spacetime_sync_proto::{Label, StreamId, error_text};

/// How many events one transaction removes. A writer of the stream may have to wait for it.
const PURGE_EVENTS: i32 = 1_000;
/// How many acts of the audit log one transaction removes.
const PURGE_ACTS: i32 = 1_000;
/// How many keys of purged events one transaction forgets.
const FORGET_KEYS: i32 = 1_000;
/// How many streams one statement lists.
const PURGE_STREAMS: usize = 1_000;
/// A round ends after so many failures in a row: then the fault is hardly that of single streams.
const FAILURES: usize = 3;
/// How often the bridge forgets sessions. They are kept for days, and each round looks at all of them.
const FORGET_EVERY: Duration = Duration::from_secs(60 * 60);
/// How many sessions one statement looks at.
const FORGET_SESSIONS: usize = 1_000;
/// How many rows with invalid names the log names at most.
const MISNAMED: usize = 10;

/// Purges the authority's log at intervals, on a connection of its own. Tells `purged` how many events each step removed, and
/// `kept` how many keys of purged events are kept after a round.
pub(crate) async fn purge(authority: Authority, every: Duration, purged: impl Fn(u64), kept: impl Fn(u64)) {
    let authority = authority.beside(1);
    loop {
        // What fails in one must not keep the others from being done.
        tell("purge the authority's log", purge_log(&authority, &purged).await);
        tell("forget keys of purged events", forget_keys(&authority, &kept).await);
        tell("purge the authority's audit log", purge_audit(&authority).await);
        tokio::time::sleep(every).await;
    }
}

fn tell(what: &str, done: Result<(), AuthorityError>) {
    if let Err(error) = done {
        tracing::warn!(error = error_text(&error), "cannot {what}; the bridge tries again");
    }
}

/// A stream that cannot be purged, which somebody may have locked, does not keep the others from it.
async fn purge_log(authority: &Authority, purged: impl Fn(u64)) -> Result<(), AuthorityError> {
    let (mut after, mut failures) = (None::<StreamId>, 0);
    loop {
        let streams = authority.purgeable_streams(after.as_ref(), PURGE_STREAMS).await?;
        let Some(last) = streams.last() else { return Ok(()) };
        after = Some(last.clone());
        for stream_id in &streams {
            let Err(error) = purge_stream(authority, stream_id, &purged).await else {
                failures = 0;
                continue;
            };
            failures += 1;
            if failures == FAILURES {
                return Err(error);
            }
            tracing::warn!(%stream_id, error = error_text(&error), "cannot purge a stream of the authority's log");
        }
    }
}

async fn purge_stream(authority: &Authority, stream_id: &StreamId, purged: impl Fn(u64)) -> Result<(), AuthorityError> {
    loop {
        let gone = authority.purge(stream_id, PURGE_EVENTS).await?;
        purged(gone);
        if gone < PURGE_EVENTS.unsigned_abs().into() {
            return Ok(());
        }
    }
}

async fn forget_keys(authority: &Authority, kept: impl Fn(u64)) -> Result<(), AuthorityError> {
    while authority.forget_keys(FORGET_KEYS).await? == u64::from(FORGET_KEYS.unsigned_abs()) {}
    kept(authority.kept_keys().await?);
    Ok(())
}

async fn purge_audit(authority: &Authority) -> Result<(), AuthorityError> {
    while authority.purge_audit(PURGE_ACTS).await? == u64::from(PURGE_ACTS.unsigned_abs()) {}
    Ok(())
}

/// Forgets sessions at intervals, on a connection of its own.
pub(crate) async fn forget_sessions(authority: Authority, days: u16) {
    let authority = authority.beside(1);
    loop {
        match forget_sessions_once(&authority, days).await {
            Ok(0) => {}
            Ok(gone) => tracing::info!(gone, "the authority forgot sessions that are over"),
            Err(error) => tracing::warn!(
                error = error_text(&error),
                "cannot forget sessions that are over; the bridge tries again"
            ),
        }
        tokio::time::sleep(FORGET_EVERY).await;
    }
}

async fn forget_sessions_once(authority: &Authority, days: u16) -> Result<u64, AuthorityError> {
    let (mut all_gone, mut after) = (0, None::<Label>);
    loop {
        let (last, gone) = authority.forget_sessions(days, after.as_ref(), FORGET_SESSIONS).await?;
        all_gone += gone;
        if last.is_none() {
            return Ok(all_gone);
        }
        after = last;
    }
}

/// Logs rows of `runtime.sync_streams` whose stream names are invalid. The lane skips them.
pub(crate) async fn name_misnamed(authority: Authority) {
    match authority.misnamed_streams(MISNAMED).await {
        Ok(names) => names.iter().for_each(|name| {
            tracing::error!(
                name,
                "the bridge skips a row of runtime.sync_streams because its stream_id is not a valid name; correct the row"
            );
        }),
        Err(error) => tracing::debug!(
            error = error_text(&error),
            "cannot look for rows with invalid stream names"
        ),
    }
}
