//! Further calls on the live link, for the bridge and the operator: what SpacetimeDB holds, for how long, and where its
//! logs end.

use spacetime_sync_bindings::{
    EventPage, RemoteProcedures, RemoteReducers, RetentionRule, StreamReport, SyncEvent, mark_epoch, read_events,
    read_streams, rewind_stream, set_retention,
};
use spacetime_sync_proto::epoch::AuthorityEpoch;
use spacetime_sync_proto::retention::RetentionClass;
use spacetime_sync_proto::rewind::{Rewind, Step};
use spacetime_sync_proto::{Frame, Position, Refusal, RefusalCode, Seal, Seq, StreamId};
use spacetimedb_sdk::__codegen::InternalError;
use tokio::sync::oneshot;

use super::link::{Link, head_of};
use super::{StdbError, chain_from_column, chain_to_column};

/// The raw answer to a call, in which the text of an error may be a refusal.
type Outcome<T> = Result<Result<T, String>, InternalError>;

/// A stream as SpacetimeDB holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldStream {
    /// The name of the stream.
    pub stream_id: StreamId,
    /// The first seq that SpacetimeDB holds; one past the head if it holds no event.
    pub oldest_seq: Seq,
    /// The stream's head.
    pub head: Position,
}

/// A part of a stream's log as SpacetimeDB holds it.
#[derive(Debug)]
pub struct HeldPage {
    /// The first seq that SpacetimeDB holds; one past the head if it holds no event.
    pub oldest_seq: Seq,
    /// The stream's head.
    pub head: Position,
    /// Consecutive frames. The first one holds the event after the seq that was asked for. They end before the first row
    /// that does not hold the frame that it states.
    pub frames: Vec<Frame>,
    /// What is wrong with that row, if there is one.
    pub invalid: Option<String>,
}

impl Link {
    /// Takes one step towards a log that ends at `to`, in a transaction of bounded size, and returns the head that the step
    /// left. `seal` is that position's. The module refuses it if the log no longer ends at `seen`, because somebody else
    /// has changed it.
    pub async fn rewind_step(
        &self,
        stream_id: &StreamId,
        seen: Position,
        to: Position,
        seal: Option<&Seal>,
    ) -> Result<Position, StdbError> {
        let seal = seal.map_or_else(Vec::new, |seal| seal.to_bytes().to_vec());
        let left = self.procedure("rewind_stream", |procedures, answer| {
            let name = stream_id.as_str().to_owned();
            let (at, chain) = (to.seq.get(), chain_to_column(&to.chain));
            let (seen_at, seen_chain) = (seen.seq.get(), chain_to_column(&seen.chain));
            procedures.rewind_stream_then(name, at, chain, seal, seen_at, seen_chain, move |_, result| {
                drop(answer.send(result));
            });
        });
        Ok(head_of(stream_id, &left.await?))
    }

    /// Makes SpacetimeDB's log end at `to` with the authority's `chain`, step by step.
    pub async fn rewind(
        &self,
        stream_id: &StreamId,
        seen: Position,
        to: Position,
        seal: Option<&Seal>,
    ) -> Result<(), StdbError> {
        let mut rewind = Rewind::new(seen, to);
        loop {
            let left = self.rewind_step(stream_id, rewind.seen(), to, seal).await?;
            match rewind.left(left) {
                Step::Done => return Ok(()),
                Step::Next => {}
                Step::Unexpected => {
                    let message = format!("a log that still ends at seq {}, not at {}", left.seq, to.seq);
                    return Err(self.unexpected("rewind_stream", message));
                }
            }
        }
    }

    /// Tells the module how long to hold events.
    pub async fn set_retention(&self, classes: &[RetentionClass]) -> Result<(), StdbError> {
        let rules = classes.iter().map(|class| RetentionRule {
            class: class.class.clone(),
            stream_prefix: class.stream_prefix.clone(),
            window_events: class.window_events,
            window_age: class.window_age_us,
            durable_reads: class.durable_reads,
        });
        let rules = rules.collect();
        self.reducer("set_retention", |reducers, answer| {
            reducers.set_retention_then(rules, move |_, result| drop(answer.send(result)))
        })
        .await
    }

    /// Tells the module which history of the authority this is. `Some` says why this cannot be the history that the
    /// bridge carried before.
    pub async fn mark_epoch(&self, epoch: &AuthorityEpoch, begin: bool) -> Result<Option<Refusal>, StdbError> {
        let told = self.reducer("mark_epoch", |reducers, answer| {
            reducers.mark_epoch_then(epoch.epoch.clone(), epoch.beat, begin, move |_, result| {
                drop(answer.send(result));
            })
        });
        match told.await {
            Ok(()) => Ok(None),
            Err(StdbError::Refused(refusal)) if refusal.code == RefusalCode::EpochBehind => Ok(Some(refusal)),
            Err(error) => Err(error),
        }
    }

    /// A bounded number of the streams that SpacetimeDB holds, in order of their names, after `after`.
    pub async fn streams(&self, after: Option<&StreamId>) -> Result<Vec<HeldStream>, StdbError> {
        let after = after.map_or("", StreamId::as_str).to_owned();
        let reports = self
            .procedure("read_streams", |procedures, answer| {
                procedures.read_streams_then(after, move |_, result| drop(answer.send(result)));
            })
            .await?;
        let held = |report: StreamReport| {
            let invalid = |error: &dyn std::fmt::Display| self.unexpected("read_streams", error.to_string());
            let seq = |value| Seq::new(value).ok_or_else(|| invalid(&format_args!("{value} as a seq")));
            Ok(HeldStream {
                stream_id: StreamId::new(&report.stream_id).map_err(|error| invalid(&error))?,
                oldest_seq: seq(report.oldest_seq)?,
                head: Position {
                    seq: seq(report.head_seq)?,
                    chain: chain_from_column(report.head_chain),
                },
            })
        };
        reports.into_iter().map(held).collect()
    }

    /// A bounded part of what SpacetimeDB holds after a position.
    pub async fn page(&self, stream_id: &StreamId, after: Seq) -> Result<HeldPage, StdbError> {
        let name = stream_id.as_str().to_owned();
        let page: EventPage = self
            .procedure("read_events", |procedures, answer| {
                procedures.read_events_then(name, after.get(), move |_, result| drop(answer.send(result)));
            })
            .await?;
        let seq =
            |value: u64| Seq::new(value).ok_or_else(|| self.unexpected("read_events", format!("{value} as a seq")));
        let (frames, invalid) = frames_of(page.frames);
        Ok(HeldPage {
            oldest_seq: seq(page.oldest_seq)?,
            head: Position {
                seq: seq(page.head_seq)?,
                chain: chain_from_column(page.head_chain),
            },
            frames,
            invalid,
        })
    }

    pub(super) async fn reducer(
        &self,
        what: &'static str,
        send: impl FnOnce(&RemoteReducers, oneshot::Sender<Outcome<()>>) -> spacetimedb_sdk::Result<()>,
    ) -> Result<(), StdbError> {
        let (answer, answered) = oneshot::channel();
        send(self.reducers(), answer).map_err(|error| self.unavailable(&error.to_string()))?;
        self.outcome(what, answered).await
    }

    pub(super) async fn procedure<T>(
        &self,
        what: &'static str,
        send: impl FnOnce(&RemoteProcedures, oneshot::Sender<Outcome<T>>),
    ) -> Result<T, StdbError> {
        let (answer, answered) = oneshot::channel();
        send(self.procedures(), answer);
        self.outcome(what, answered).await
    }
}

/// The frames of these rows, up to the first row that does not hold the frame that it states, and what is wrong with that
/// row.
fn frames_of(rows: Vec<SyncEvent>) -> (Vec<Frame>, Option<String>) {
    let mut frames = Vec::with_capacity(rows.len());
    for row in rows {
        match frame_of(row) {
            Ok(frame) => frames.push(frame),
            Err(why) => return (frames, Some(why)),
        }
    }
    (frames, None)
}

/// The frame of a row. Everything that the row states about it must be true: the module has not looked into it.
fn frame_of(row: SyncEvent) -> Result<Frame, String> {
    let first = row.first_seq;
    let frame = Frame::decode(first, chain_from_column(row.base_chain), row.frame.into())
        .map_err(|error| format!("the frame at seq {first} is invalid: {error}"))?;
    let (said, found) = (row.last_seq, frame.last_seq().get());
    if said != found {
        return Err(format!(
            "the row at seq {first} says that its frame ends at {said}, but the frame ends at {found}"
        ));
    }
    let (said, found) = (row.last_at, frame.last_at_us());
    if said != found {
        return Err(format!(
            "the row at seq {first} says that its last event was committed at {said}, but the event says {found}"
        ));
    }
    Ok(frame)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use spacetime_sync_proto::{ChainHash, Event, IdempotencyKey, Kind, PayloadHash};

    use super::*;

    /// Three rows of one event each.
    fn rows() -> Vec<SyncEvent> {
        let mut chain = ChainHash::from_bytes([7; 32]);
        let row = |at: u64| {
            let (seq, time) = (Seq::new(at).unwrap(), 1_000 + at as i64);
            let (key, kind) = (IdempotencyKey::new("k").unwrap(), Kind::new("t").unwrap());
            let payload = Bytes::from_static(b"payload");
            let payload_hash = PayloadHash::of(&payload);
            let base = chain;
            chain = base.link(seq, time, &payload_hash, &key, &kind);
            let event = Event {
                seq,
                idempotency_key: key,
                kind,
                payload,
                payload_hash,
                chain_hash: chain,
                committed_at_us: time,
            };
            SyncEvent {
                stream_key: 1,
                first_seq: at,
                last_seq: at,
                base_chain: chain_to_column(&base),
                last_at: time,
                frame: Frame::encode(&[event], None).into(),
                section: 0,
            }
        };
        (1..=3).map(row).collect()
    }

    #[test]
    fn a_page_ends_before_the_first_row_that_states_what_is_not_true() {
        let (frames, invalid) = frames_of(rows());
        assert_eq!((frames.len(), invalid), (3, None));
        type Change = fn(&mut SyncEvent);
        let changes: [(Change, &str); 5] = [
            (|row| row.frame = vec![0xff; 1_000], "is invalid"),
            (|row| row.last_seq += 1, "ends at"),
            (|row| row.last_at = i64::MAX, "was committed at"),
            (|row| row.last_at = i64::MIN, "was committed at"),
            (|row| row.last_at += 1, "was committed at"),
        ];
        for at in 0..3 {
            for (change, said) in changes {
                let mut rows = rows();
                change(&mut rows[at]);
                let (frames, invalid) = frames_of(rows);
                assert_eq!(frames.len(), at);
                let why = invalid.unwrap();
                let of_row = format!("at seq {} ", at + 1);
                assert!(why.contains(&of_row) && why.contains(said), "{why}");
            }
        }
    }
}
