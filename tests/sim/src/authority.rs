//! A model of the authority: logs with chains, `published_seq`, and writers that commit. Its contents are the oracle
//! for everything else.

use bytes::Bytes;
use spacetime_sync_proto::{
    ChainHash, Event, IdempotencyKey, Kind, PayloadHash, Position, Seq, StreamId, StreamProgress,
};

use crate::agenda::Micros;

/// An event that a writer wants to append.
#[derive(Debug, Clone)]
pub(crate) struct NewEvent {
    pub(crate) key: IdempotencyKey,
    pub(crate) payload: Bytes,
}

#[derive(Debug)]
pub(crate) struct Log {
    pub(crate) id: StreamId,
    pub(crate) start: Position,
    pub(crate) events: Vec<Event>,
    pub(crate) published: Seq,
    /// The last purged position. The oracle still remembers the events up to it.
    pub(crate) floor: Seq,
    /// A position whose payload was altered, and the altered payload.
    pub(crate) tampered: Option<(Seq, Bytes)>,
    /// A position whose chain hash is malformed, as after a manual change of the table.
    pub(crate) corrupt: Option<Seq>,
    /// Until when a writer holds the lock on its row.
    pub(crate) locked_until: Micros,
    kind: Kind,
}

impl Log {
    pub(crate) fn new(at: usize) -> Self {
        let id = StreamId::new(&format!("stream.{at}")).expect("a name");
        Self {
            start: Position::start(&id),
            id,
            events: Vec::new(),
            published: Seq::ZERO,
            floor: Seq::ZERO,
            tampered: None,
            corrupt: None,
            locked_until: 0,
            kind: Kind::new("sim").expect("a kind"),
        }
    }

    pub(crate) fn head(&self) -> Seq {
        Seq::ZERO.plus(self.events.len() as u64)
    }

    /// The chain hash at a position. `None` if the log ends before it.
    pub(crate) fn chain_at(&self, seq: Seq) -> Option<ChainHash> {
        match seq.get().checked_sub(1) {
            None => Some(self.start.chain),
            Some(at) => self.events.get(at as usize).map(|event| event.chain_hash),
        }
    }

    /// The chain hash as the authority answers it. It has none of what is purged.
    pub(crate) fn kept_chain_at(&self, seq: Seq) -> Option<ChainHash> {
        (seq >= self.floor).then(|| self.chain_at(seq)).flatten()
    }

    /// Purges like the SQL function: it keeps the newest events and all unpublished ones.
    pub(crate) fn purge(&mut self, keeps: u64) -> u64 {
        let old = Seq::ZERO.plus(self.head().get().saturating_sub(keeps));
        let to = old.min(self.published).max(self.floor);
        let gone = to.since(self.floor);
        self.floor = to;
        gone
    }

    /// Appends like the SQL function: a repeated key returns the first seq and writes nothing.
    pub(crate) fn append(&mut self, new: &NewEvent, clock_us: i64) -> (Seq, bool) {
        if let Some(held) = self.events.iter().rev().find(|event| event.idempotency_key == new.key) {
            return (held.seq, false);
        }
        let seq = self.head().next();
        let (before, not_before) = self.events.last().map_or((self.start.chain, i64::MIN), |last| {
            (last.chain_hash, last.committed_at_us)
        });
        let committed_at_us = clock_us.max(not_before);
        let payload_hash = PayloadHash::of(&new.payload);
        self.events.push(Event {
            seq,
            idempotency_key: new.key.clone(),
            kind: self.kind.clone(),
            payload: new.payload.clone(),
            payload_hash,
            chain_hash: before.link(seq, committed_at_us, &payload_hash, &new.key, &self.kind),
            committed_at_us,
        });
        (seq, true)
    }

    pub(crate) fn position(&self) -> StreamProgress {
        StreamProgress {
            stream_id: self.id.clone(),
            head_seq: self.head(),
            published_seq: self.published,
            floor_seq: self.floor,
        }
    }

    /// A page as the bridge reads it. It always holds at least one event, if there is one.
    pub(crate) fn read(&self, after: Seq, most: usize, bytes: usize) -> Vec<Event> {
        let mut sum = 0;
        self.events
            .iter()
            .skip(after.max(self.floor).get() as usize)
            .take(most)
            .enumerate()
            .take_while(|(at, event)| {
                sum += event.payload.len();
                *at == 0 || sum <= bytes
            })
            .map(|(_, event)| match &self.tampered {
                Some((seq, payload)) if *seq == event.seq => Event {
                    payload: payload.clone(),
                    ..event.clone()
                },
                _ => event.clone(),
            })
            .collect()
    }
}
