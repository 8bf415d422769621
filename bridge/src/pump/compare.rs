//! Comparing what SpacetimeDB holds with the authority: all streams when a link is made, one when its calls fail.

use spacetime_sync_proto::{Seq, StreamId};
use tokio::sync::mpsc;

use super::ledger::Handle;
use super::{News, chain};
use crate::authority::{Authority, AuthorityError, StreamPosition};
use crate::core::{Input, Verdict, reconcile};
use crate::stdb::StdbError;
use crate::stdb::link::Link;

/// Streams compared at once after a reconnect.
const RECONCILE_STREAMS: usize = 1_000;

/// Compares every stream that the authority holds with SpacetimeDB, so that one which was restored, wiped or replaced
/// is noticed at once and not when the next event comes.
pub(super) async fn reconcile_all(
    link: &Link,
    authority: &Authority,
    ledger: &Handle,
    news: &mpsc::UnboundedSender<News>,
) -> Result<(), StdbError> {
    let unavailable = |error: AuthorityError| StdbError::Unavailable {
        uri: "the authority".to_owned(),
        message: chain(&error),
    };
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
            match reconcile(position, held, chain_there) {
                Verdict::InStep(seq) => ledger.cap(stream_id, seq),
                Verdict::Ahead(seq) => ledger.advance(stream_id, seq),
                Verdict::Behind(to) => {
                    let published = position.published_seq;
                    tracing::warn!(%stream_id, %published, %to, "SpacetimeDB holds less than was published: publishing again");
                    ledger.rewind(stream_id, to);
                }
                Verdict::Apart(reason) => drop(news.send(News::Input(Input::Halt(stream_id, reason)))),
            }
        }
    }
    ledger.settled().await;
    Ok(())
}

pub(super) async fn learn(link: &Link, authority: &Authority, stream_id: &StreamId) -> Result<Verdict, String> {
    let heads = link
        .heads(std::slice::from_ref(stream_id))
        .await
        .map_err(|error| chain(&error))?;
    let held = *heads.first().ok_or("no head came back")?;
    let position = authority.position(stream_id).await.map_err(|error| chain(&error))?;
    let position = position.unwrap_or(StreamPosition {
        stream_id: stream_id.clone(),
        head_seq: Seq::ZERO,
        published_seq: Seq::ZERO,
    });
    let chain_there = authority
        .chain_at(stream_id, held.seq)
        .await
        .map_err(|error| chain(&error))?;
    Ok(reconcile(&position, held, chain_there))
}
