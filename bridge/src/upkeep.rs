//! What a leader does now and then beside the lane: it purges the authority's log, forgets sessions that are over, and names
//! rows that cannot be streams.

use std::time::Duration;

use spacetime_sync_authority::{Authority, AuthorityError};
use spacetime_sync_proto::{Label, StreamId, error_text};

/// Events that are removed in one transaction, and for which a writer of the stream may have to wait.
const PURGE_EVENTS: i32 = 1_000;
/// Streams asked for at once.
const PURGE_STREAMS: usize = 1_000;
/// How often sessions are forgotten: they are kept for days, and every look goes through all of them.
const FORGET_EVERY: Duration = Duration::from_secs(60 * 60);
/// Sessions looked at in one statement.
const FORGET_SESSIONS: usize = 1_000;
/// Rows that are named; there may be more.
const MISNAMED: usize = 10;

/// Purges the authority's log again and again, with a connection of its own. `purged` is told how many events went.
pub(crate) async fn purge(authority: Authority, every: Duration, purged: impl Fn(u64)) {
    let authority = authority.beside(1);
    loop {
        if let Err(error) = purge_once(&authority, &purged).await {
            tracing::warn!(error = error_text(&error), "the authority's log could not be purged");
        }
        tokio::time::sleep(every).await;
    }
}

async fn purge_once(authority: &Authority, purged: impl Fn(u64)) -> Result<(), AuthorityError> {
    let mut after: Option<StreamId> = None;
    loop {
        let streams = authority.purgeable_streams(after.as_ref(), PURGE_STREAMS).await?;
        let Some(last) = streams.last() else { return Ok(()) };
        after = Some(last.clone());
        for stream_id in &streams {
            loop {
                let gone = authority.purge(stream_id, PURGE_EVENTS).await?;
                purged(gone);
                if gone < PURGE_EVENTS.unsigned_abs().into() {
                    break;
                }
            }
        }
    }
}

/// Forgets sessions again and again, with a connection of its own.
pub(crate) async fn forget_sessions(authority: Authority, days: u16) {
    let authority = authority.beside(1);
    loop {
        match forget_sessions_once(&authority, days).await {
            Ok(0) => {}
            Ok(gone) => tracing::info!(gone, "the authority forgot sessions that are over"),
            Err(error) => tracing::warn!(
                error = error_text(&error),
                "sessions that are over could not be forgotten"
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

/// Names rows of `runtime.sync_streams` whose names no stream can have. The lane passes them over.
pub(crate) async fn name_misnamed(authority: Authority) {
    match authority.misnamed_streams(MISNAMED).await {
        Ok(names) => names.iter().for_each(|name| {
            tracing::error!(
                name,
                "a row of runtime.sync_streams has a name that no stream can have; the bridge passes it over"
            );
        }),
        Err(error) => tracing::debug!(error = error_text(&error), "misnamed rows could not be looked for"),
    }
}
