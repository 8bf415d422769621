//! Comparing what SpacetimeDB holds with the authority: all streams when a link is made, one when its calls fail.

use spacetime_sync_proto::{Seq, StreamId, StreamProgress};
use tokio::sync::mpsc;

use super::News;
use super::ledger::Handle;
use super::policy::Policy;
use spacetime_sync_authority::{Authority, AuthorityError};
use spacetime_sync_lane::{Input, Verdict, reconcile};
use spacetime_sync_proto::error_text;
use spacetime_sync_stdb::StdbError;
use spacetime_sync_stdb::link::Link;

/// Streams compared at once after a reconnect.
const RECONCILE_STREAMS: usize = 1_000;
/// Rows told of that are no streams.
const MISNAMED: usize = 10;

/// Compares every stream that the authority holds with SpacetimeDB, so that one which was restored, wiped or replaced
/// is noticed at once and not when the next event comes.
pub(super) async fn reconcile_all(
    link: &Link,
    authority: &Authority,
    ledger: &Handle,
    policy: &Policy,
    news: &mpsc::UnboundedSender<News>,
) -> Result<(), StdbError> {
    let unavailable = |error: AuthorityError| authority_away(&error);
    for name in authority.misnamed_streams(MISNAMED).await.map_err(unavailable)? {
        tracing::error!(
            name,
            "a row of runtime.sync_streams has a name that no stream can have: it is passed over"
        );
    }
    let mut after = None;
    loop {
        let positions = authority
            .streams_after(after.as_ref(), RECONCILE_STREAMS)
            .await
            .map_err(unavailable)?;
        let Some(last) = positions.last() else { break };
        after = Some(last.stream_id.clone());
        let names: Vec<StreamId> = positions.iter().map(|position| position.stream_id.clone()).collect();
        let heads = link.heads(&names).await?;
        let at: Vec<_> = names.into_iter().zip(heads.iter().map(|held| held.seq)).collect();
        let chains = authority.chains_at(&at).await.map_err(unavailable)?;
        for ((position, held), chain_there) in positions.iter().zip(heads).zip(chains) {
            let stream_id = position.stream_id.clone();
            match reconcile(position, held, chain_there, policy.window(&stream_id)) {
                Verdict::InStep(seq) => ledger.cap(stream_id, seq),
                Verdict::Ahead(seq) => ledger.advance(stream_id, seq),
                Verdict::Behind(to) => {
                    let published = position.published_seq;
                    tracing::warn!(%stream_id, %published, %to, "SpacetimeDB holds less than was published: publishing again");
                    ledger.rewind(stream_id, to);
                }
                Verdict::Refill(after) => {
                    let published = position.published_seq;
                    tracing::warn!(%stream_id, %published, %after, "SpacetimeDB holds less than was published: its window begins anew");
                    if let Some(filled) = refill(link, authority, &stream_id, held.seq, after).await? {
                        ledger.rewind(stream_id.clone(), filled);
                        ledger.advance(stream_id, filled);
                    }
                }
                // What is not recorded is sent again, and absorbed.
                Verdict::Unknown => {}
                Verdict::Apart(reason) => drop(news.send(News::Input(Input::Halt(stream_id, reason)))),
            }
        }
    }
    ledger.settled().await;
    Ok(())
}

/// Begins the window of a stream, whose head was `seen`, anew after a position. None if the authority has purged that
/// meanwhile: then the next comparison says where.
async fn refill(
    link: &Link,
    authority: &Authority,
    stream_id: &StreamId,
    seen: Seq,
    after: Seq,
) -> Result<Option<Seq>, StdbError> {
    let chain_there = authority
        .chain_at(stream_id, after)
        .await
        .map_err(|error| authority_away(&error))?;
    let Some(chain_there) = chain_there else {
        return Ok(None);
    };
    link.rewind(stream_id, seen, after, chain_there).await?;
    Ok(Some(after))
}

pub(super) fn authority_away(error: &AuthorityError) -> StdbError {
    StdbError::Unavailable {
        uri: "the authority".to_owned(),
        message: error_text(error),
    }
}

pub(super) async fn learn(
    link: &Link,
    authority: &Authority,
    policy: &Policy,
    stream_id: &StreamId,
) -> Result<Verdict, String> {
    let heads = link
        .heads(std::slice::from_ref(stream_id))
        .await
        .map_err(|error| error_text(&error))?;
    let held = *heads.first().ok_or("no head came back")?;
    let position = authority
        .position(stream_id)
        .await
        .map_err(|error| error_text(&error))?;
    let position = position.unwrap_or(StreamProgress {
        stream_id: stream_id.clone(),
        head_seq: Seq::ZERO,
        published_seq: Seq::ZERO,
        floor_seq: Seq::ZERO,
    });
    let chain_there = authority
        .chain_at(stream_id, held.seq)
        .await
        .map_err(|error| error_text(&error))?;
    let verdict = reconcile(&position, held, chain_there, policy.window(stream_id));
    if let Verdict::Refill(after) = verdict {
        let filled = refill(link, authority, stream_id, held.seq, after)
            .await
            .map_err(|error| error_text(&error))?;
        filled.ok_or("the authority purged what the window was to begin with")?;
    }
    Ok(verdict)
}
