//! Somebody who has stolen the bridge's token for SpacetimeDB. It does there what the bridge may do, but it has no key that
//! seals.

use anyhow::Context as _;
use bytes::Bytes;
use spacetime_sync_proto::{Event, Frame, FrameRow, IdempotencyKey, Kind, PayloadHash, Position, Seal, Seq, StreamId};
use spacetime_sync_stdb::link::{Appended, Link};
use tokio::sync::oneshot;

use super::Lane;

/// A forger; see the module.
pub struct Forger(Link);

impl Lane {
    /// A forger on this lane.
    pub async fn forger(&self) -> anyhow::Result<Forger> {
        Ok(Forger(self.link().await?))
    }

    /// Appends an event at seq 1 that the authority does not have, with the rights of the bridge.
    pub async fn append_as_bridge(&self, stream_id: &StreamId) -> anyhow::Result<()> {
        let begin = Position::start(stream_id);
        let forger = self.forger().await?;
        forger.write(stream_id, begin, &invented(begin, 1)?, None).await
    }
}

impl Forger {
    /// The events at the beginning of what SpacetimeDB holds of a stream, up to 1 MiB, and the seal of the last of them.
    pub async fn read(&self, stream_id: &StreamId) -> anyhow::Result<(Vec<Event>, Option<Seal>)> {
        let page = self.0.page(stream_id, Seq::ZERO).await?;
        let seal = page.frames.last().and_then(|last| last.seal().copied());
        let events = page.frames.into_iter();
        Ok((
            events.flat_map(|frame| frame.into_events_after(Seq::ZERO)).collect(),
            seal,
        ))
    }

    /// Makes SpacetimeDB's log continue after a position with these events, in one frame with this seal. What it held there
    /// before is gone.
    pub async fn write(
        &self,
        stream_id: &StreamId,
        after: Position,
        events: &[Event],
        seal: Option<&Seal>,
    ) -> anyhow::Result<()> {
        let last = events.last().context("expected events, found none")?;
        let end = Position {
            seq: last.seq,
            chain: last.chain_hash,
        };
        let bytes = Frame::encode(events, seal);
        self.write_bytes(stream_id, after, end, last.committed_at_us, bytes)
            .await
    }

    /// The same with bytes that need not be a frame. They are said to hold what follows up to `end`, which is said to have
    /// been committed at `last_at_us`.
    pub async fn write_bytes(
        &self,
        stream_id: &StreamId,
        after: Position,
        end: Position,
        last_at_us: i64,
        bytes: Bytes,
    ) -> anyhow::Result<()> {
        let held = self.0.heads(std::slice::from_ref(stream_id)).await?;
        let held = *held.first().context("expected a head, found none")?;
        if held != after {
            self.0.rewind(stream_id, held, after, None).await?;
        }
        let frame = FrameRow {
            first_seq: after.seq.next(),
            last_seq: end.seq,
            base_chain: after.chain,
            bytes,
        };
        let (answer, answered) = oneshot::channel();
        self.0
            .append(stream_id, frame, &end.chain, last_at_us, move |appended| {
                drop(answer.send(appended))
            });
        match answered.await? {
            Appended::Durable => Ok(()),
            Appended::Refused(refusal) => Err(refusal.into()),
            Appended::Failed(why) => Err(anyhow::Error::msg(why)),
        }
    }
}

/// So many events after a position, none of which is the authority's.
pub fn invented(after: Position, events: u64) -> anyhow::Result<Vec<Event>> {
    let mut before = after;
    let invent = |_| {
        let (seq, committed_at_us) = (before.seq.next(), 1);
        let idempotency_key = IdempotencyKey::new(&format!("foreign:{seq}"))?;
        let (kind, payload) = (Kind::new("foreign")?, Bytes::from_static(b"not of the authority"));
        let payload_hash = PayloadHash::of(&payload);
        let chain_hash = before
            .chain
            .link(seq, committed_at_us, &payload_hash, &idempotency_key, &kind);
        before = Position { seq, chain: chain_hash };
        Ok(Event {
            seq,
            idempotency_key,
            kind,
            payload,
            payload_hash,
            chain_hash,
            committed_at_us,
        })
    };
    (0..events).map(invent).collect()
}
