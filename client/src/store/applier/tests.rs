//! The apply thread, over a store in memory.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use spacetime_sync_proto::page::Snapshot;
use spacetime_sync_proto::{Position, Seal, Seq, StaleCursor, StaleReason};

use super::*;
use crate::seal::Unproven;
use crate::seal::tests::TestKey;
use crate::session::stream::Batch;
use crate::session::stream::tests::Log;
use crate::store::{Closures, Effects};

/// Keeps what was applied as text, and rolls it back together with the checkpoint.
#[derive(Clone, Default)]
struct Memory(Arc<Mutex<Vec<String>>>);

impl CheckpointStore for Memory {
    type Transaction<'t> = Vec<String>;

    fn bind(&mut self, _: &str) -> Result<(), StoreError> {
        Ok(())
    }

    fn load(&mut self, _: &StreamId) -> Result<Option<Position>, StoreError> {
        Ok(None)
    }

    fn commit(
        &mut self,
        stream_id: &StreamId,
        from: &Position,
        to: &Position,
        effects: &mut Effects<'_, Self>,
    ) -> Result<(), CommitError> {
        let mut transaction = Vec::new();
        effects(&mut transaction).map_err(CommitError::Handler)?;
        transaction.push(format!("{stream_id} {}..{}", from.seq, to.seq));
        self.0.lock().unwrap().append(&mut transaction);
        Ok(())
    }

    fn start_over(
        &mut self,
        stream_id: &StreamId,
        from: &Position,
        at: &Position,
        effects: &mut Effects<'_, Self>,
    ) -> Result<(), CommitError> {
        let mut transaction = Vec::new();
        effects(&mut transaction).map_err(CommitError::Handler)?;
        transaction.push(format!("{stream_id} anew {}..{}", from.seq, at.seq));
        self.0.lock().unwrap().append(&mut transaction);
        Ok(())
    }
}

const BOUNDS: BatchBounds = BatchBounds {
    events: 100,
    bytes: 1_000_000,
};

fn worker<H: Handler<Memory>>(
    logs: &[&Log],
    handler: H,
    bounds: BatchBounds,
) -> (Worker<Memory, H>, Memory, UnboundedReceiver<Outcome>) {
    let store = Memory::default();
    let (outgoing, outcomes) = tokio::sync::mpsc::unbounded_channel();
    let streams = logs.iter().enumerate().map(|(at, log)| {
        let id = StreamId::new(&format!("s{at}")).unwrap();
        StreamQueue::new(id, log.start, Carries::Events)
    });
    let worker = Worker {
        store: store.clone(),
        handler,
        streams: streams.collect(),
        bounds,
        seals: SealKeys::new(&[]),
        changes: Changes::new(),
        unswept: false,
        outgoing,
    };
    (worker, store, outcomes)
}

fn batch(log: &Log, first: u64, last: u64) -> Batch {
    let events = log.events[first as usize - 1..last as usize].to_vec();
    Batch {
        from: log.at(first - 1),
        to: log.at(last),
        events,
        bytes: 10,
        proof: Proof::Authority,
    }
}

fn run<H: Handler<Memory>>(worker: &mut Worker<Memory, H>, jobs: Vec<(usize, Batch)>) {
    let (sender, incoming) = std::sync::mpsc::channel();
    for (stream, batch) in jobs {
        sender.send(Job::Do(stream, Work::Batch(batch))).unwrap();
    }
    drop(sender);
    worker.run(&incoming, &AtomicBool::new(false));
}

fn told(outcomes: &mut UnboundedReceiver<Outcome>) -> Vec<(usize, usize, Applied)> {
    std::iter::from_fn(|| outcomes.try_recv().ok())
        .map(|told| (told.stream, told.released, told.result))
        .collect()
}

fn all_good(_: &mut Vec<String>, _: &StreamId, _: &[Event]) -> Result<(), HandlerError> {
    Ok(())
}

#[test]
fn queued_batches_of_a_stream_share_a_transaction_up_to_its_bounds() {
    let log = Log::new("s0", 10);
    let bounds = BatchBounds { events: 6, ..BOUNDS };
    let (mut worker, store, mut outcomes) = worker(&[&log], all_good, bounds);
    run(
        &mut worker,
        vec![(0, batch(&log, 1, 3)), (0, batch(&log, 4, 6)), (0, batch(&log, 7, 10))],
    );
    assert_eq!(*store.0.lock().unwrap(), ["s0 0..6", "s0 6..10"]);
    assert_eq!(
        told(&mut outcomes),
        [(0, 20, Applied::To(log.at(6))), (0, 10, Applied::To(log.at(10)))]
    );
}

#[test]
fn streams_take_turns() {
    let (a, b) = (Log::new("s0", 6), Log::new("s1", 2));
    let bounds = BatchBounds { events: 2, ..BOUNDS };
    let (mut worker, store, _outcomes) = worker(&[&a, &b], all_good, bounds);
    run(
        &mut worker,
        vec![
            (0, batch(&a, 1, 2)),
            (0, batch(&a, 3, 4)),
            (0, batch(&a, 5, 6)),
            (1, batch(&b, 1, 2)),
        ],
    );
    assert_eq!(*store.0.lock().unwrap(), ["s0 0..2", "s1 0..2", "s0 2..4", "s0 4..6"]);
}

#[test]
fn a_batch_that_does_not_begin_at_the_checkpoint_is_thrown_away() {
    let log = Log::new("s0", 6);
    let (mut worker, store, mut outcomes) = worker(&[&log], all_good, BOUNDS);
    run(
        &mut worker,
        vec![(0, batch(&log, 3, 4)), (0, batch(&log, 1, 2)), (0, batch(&log, 1, 2))],
    );
    assert_eq!(*store.0.lock().unwrap(), ["s0 0..2"]);
    let to = Applied::To(log.at(2));
    assert_eq!(
        told(&mut outcomes),
        [(0, 10, Applied::Dropped), (0, 10, to), (0, 10, Applied::Dropped)]
    );
}

#[test]
fn events_before_an_altered_payload_are_applied_and_none_after_it() {
    let mut log = Log::new("s0", 6);
    let expected = log.events[3].payload_hash;
    log.events[3].payload = Bytes::from_static(b"altered");
    let (mut worker, store, mut outcomes) = worker(&[&log], all_good, BOUNDS);
    run(
        &mut worker,
        vec![(0, batch(&log, 1, 2)), (0, batch(&log, 3, 5)), (0, batch(&log, 6, 6))],
    );
    assert_eq!(*store.0.lock().unwrap(), ["s0 0..3"]);
    let (seq, found) = (Seq::new(4).unwrap(), PayloadHash::of(b"altered"));
    let failed = Applied::Failed(ApplyFailure::Payload {
        seq,
        expected,
        found,
        from_authority: true,
    });
    assert_eq!(told(&mut outcomes), [(0, 0, Applied::To(log.at(3))), (0, 30, failed)]);
}

#[test]
fn batches_after_a_failed_one_are_thrown_away_and_other_streams_go_on() {
    let (a, b) = (Log::new("s0", 4), Log::new("s1", 2));
    let bounds = BatchBounds { events: 2, ..BOUNDS };
    let handler = |_: &mut Vec<String>, stream: &StreamId, _: &[Event]| match stream.as_str() {
        "s0" => Err(HandlerError::retry("not now")),
        _ => Ok(()),
    };
    let (mut worker, store, mut outcomes) = worker(&[&a, &b], handler, bounds);
    run(
        &mut worker,
        vec![(0, batch(&a, 1, 2)), (0, batch(&a, 3, 4)), (1, batch(&b, 1, 2))],
    );
    assert_eq!(*store.0.lock().unwrap(), ["s1 0..2"]);
    let failed = Applied::Failed(ApplyFailure::Retry {
        message: "not now".to_owned(),
    });
    let to = Applied::To(b.at(2));
    assert_eq!(
        told(&mut outcomes),
        [(0, 10, failed), (1, 10, to), (0, 10, Applied::Dropped)]
    );
}

#[test]
fn a_handler_that_panics_stops_its_stream_and_not_the_thread() {
    let (a, b) = (Log::new("s0", 2), Log::new("s1", 2));
    let handler = |_: &mut Vec<String>, stream: &StreamId, _: &[Event]| {
        assert_ne!(stream.as_str(), "s0", "a defect of the application");
        Ok(())
    };
    let (mut worker, store, mut outcomes) = worker(&[&a, &b], handler, BOUNDS);
    run(&mut worker, vec![(0, batch(&a, 1, 2)), (1, batch(&b, 1, 2))]);
    assert_eq!(*store.0.lock().unwrap(), ["s1 0..2"]);
    let told = told(&mut outcomes);
    assert!(matches!(&told[0].2, Applied::Failed(ApplyFailure::Stop { message })
        if message.contains("a defect of the application")));
    assert_eq!(told[1].2, Applied::To(b.at(2)));
}

/// A handler that can start over.
struct Anew;

impl Handler<Memory> for Anew {
    fn apply(&mut self, _: &mut Vec<String>, _: &StreamId, _: &[Event]) -> Result<(), HandlerError> {
        Ok(())
    }

    fn start_over(
        &mut self,
        transaction: &mut Vec<String>,
        stream_id: &StreamId,
        beginning: &Beginning,
    ) -> Result<(), HandlerError> {
        let document = beginning.document.as_ref().map(|document| document.doc_key.clone());
        transaction.push(format!("{stream_id} cleared for {document:?}"));
        Ok(())
    }
}

fn beginning(log: &Log, from: u64, at: u64) -> Beginning {
    let payload = Bytes::from_static(b"document");
    Beginning {
        from: log.at(from),
        at: log.at(at),
        document: Some(Snapshot {
            doc_key: "doc".to_owned(),
            seq: log.at(at).seq,
            chain_hash: log.at(at).chain,
            payload_hash: PayloadHash::of(&payload),
            payload,
        }),
        stale: StaleCursor {
            code: Default::default(),
            stream_id: StreamId::new("s0").unwrap(),
            requested_after_seq: log.at(from).seq,
            oldest_available_cursor: log.at(at).seq,
            oldest_available_chain: log.at(at).chain,
            head_cursor: log.head().seq,
            reason_codes: vec![StaleReason::RetentionFloorBreach],
            replay_lag: 0,
            replay_budget_events: None,
            snapshot_cursor: None,
        },
    }
}

fn begin<H: Handler<Memory>>(worker: &mut Worker<Memory, H>, beginning: Beginning, then: Option<Batch>) {
    let (sender, incoming) = std::sync::mpsc::channel();
    let works = [Some(Work::StartOver(Box::new(beginning))), then.map(Work::Batch)];
    for work in works.into_iter().flatten() {
        sender.send(Job::Do(0, work)).unwrap();
    }
    drop(sender);
    worker.run(&incoming, &AtomicBool::new(false));
}

#[test]
fn starting_over_is_one_transaction_and_events_continue_from_there() {
    let log = Log::new("s0", 9);
    let (mut worker, store, mut outcomes) = worker(&[&log], Anew, BOUNDS);
    begin(&mut worker, beginning(&log, 0, 5), Some(batch(&log, 6, 9)));
    assert_eq!(
        told(&mut outcomes),
        [(0, 0, Applied::StartedOver(log.at(5))), (0, 10, Applied::To(log.at(9)))]
    );
    assert_eq!(
        *store.0.lock().unwrap(),
        ["s0 cleared for Some(\"doc\")", "s0 anew 0..5", "s0 5..9"]
    );
}

#[test]
fn closures_stand_for_a_handler_and_without_one_nothing_is_applied() {
    let log = Log::new("s0", 9);
    let handler = Closures::<Memory>::default()
        .apply(|transaction, stream, events| {
            transaction.push(format!("{stream}: {} events", events.len()));
            Ok(())
        })
        .start_over(|transaction, stream, beginning| {
            transaction.push(format!("{stream} begins at {}", beginning.at.seq));
            Ok(())
        });
    let (mut applying, store, _outcomes) = worker(&[&log], handler, BOUNDS);
    begin(&mut applying, beginning(&log, 0, 5), Some(batch(&log, 6, 9)));
    assert_eq!(
        *store.0.lock().unwrap(),
        ["s0 begins at 5", "s0 anew 0..5", "s0: 4 events", "s0 5..9"]
    );
    let (mut applying, store, mut outcomes) = worker(&[&log], Closures::default(), BOUNDS);
    run(&mut applying, vec![(0, batch(&log, 1, 9))]);
    begin(&mut applying, beginning(&log, 0, 5), None);
    for (_, _, outcome) in told(&mut outcomes) {
        assert!(
            matches!(outcome, Applied::Failed(ApplyFailure::Stop { .. })),
            "{outcome:?}"
        );
    }
    assert!(store.0.lock().unwrap().is_empty());
}

#[test]
fn a_handler_that_cannot_start_over_stops_with_a_reason_and_nothing_moves() {
    let log = Log::new("s0", 9);
    let (mut worker, store, mut outcomes) = worker(&[&log], all_good, BOUNDS);
    begin(&mut worker, beginning(&log, 0, 5), Some(batch(&log, 6, 9)));
    let told = told(&mut outcomes);
    assert!(
        matches!(&told[0].2, Applied::Failed(ApplyFailure::Stop { message }) if message.contains("start_over")),
        "{told:?}"
    );
    assert_eq!(told[1].2, Applied::Dropped);
    assert!(store.0.lock().unwrap().is_empty());
}

#[test]
fn an_altered_or_misplaced_document_never_becomes_a_beginning() {
    let log = Log::new("s0", 9);
    let (mut worker, store, mut outcomes) = worker(&[&log], Anew, BOUNDS);
    let mut altered = beginning(&log, 0, 5);
    altered.document.as_mut().unwrap().payload = Bytes::from_static(b"other");
    begin(&mut worker, altered, None);
    begin(&mut worker, beginning(&log, 3, 5), None);
    let told = told(&mut outcomes);
    assert!(
        matches!(told[0].2, Applied::Failed(ApplyFailure::Payload { .. })),
        "{told:?}"
    );
    assert!(
        matches!(told[1].2, Applied::Failed(ApplyFailure::Retry { .. })),
        "{told:?}"
    );
    assert!(store.0.lock().unwrap().is_empty());
}

/// What comes from SpacetimeDB.
fn delivered(batch: Batch, seal: Option<Seal>) -> Batch {
    Batch {
        proof: Proof::Seal(seal),
        ..batch
    }
}

#[test]
fn the_last_seal_proves_all_batches_of_a_transaction() {
    let log = Log::new("s0", 9);
    let key = TestKey::new(1);
    let (mut worker, store, mut outcomes) = worker(&[&log], all_good, BOUNDS);
    worker.seals = SealKeys::new(std::slice::from_ref(&key.public));
    let id = worker.streams[0].id.clone();
    let jobs = vec![
        (0, delivered(batch(&log, 1, 3), None)),
        (0, delivered(batch(&log, 4, 9), Some(key.seal(&id, &log.at(9))))),
    ];
    run(&mut worker, jobs);
    assert_eq!(told(&mut outcomes), [(0, 20, Applied::To(log.at(9)))]);
    assert_eq!(*store.0.lock().unwrap(), ["s0 0..9"]);
}

#[test]
fn nothing_that_the_bridge_has_not_sealed_is_applied() {
    let log = Log::new("s0", 9);
    let (key, stranger) = (TestKey::new(1), TestKey::new(2));
    let id = StreamId::new("s0").unwrap();
    let of_stranger = stranger.seal(&id, &log.at(6));
    for (seal, why) in [
        (None, Unproven::NoSeal),
        (Some(of_stranger), Unproven::UnknownKey(of_stranger.key)),
        (Some(key.seal(&id, &log.at(5))), Unproven::Forged),
    ] {
        let (mut worker, store, mut outcomes) = worker(&[&log], all_good, BOUNDS);
        worker.seals = SealKeys::new(std::slice::from_ref(&key.public));
        let jobs = vec![
            (0, delivered(batch(&log, 1, 3), Some(key.seal(&id, &log.at(3))))),
            (0, delivered(batch(&log, 4, 6), seal)),
        ];
        run(&mut worker, jobs);
        let failure = ApplyFailure::Unproven { to: log.at(6).seq, why };
        assert_eq!(told(&mut outcomes), [(0, 20, Applied::Failed(failure))]);
        assert!(store.0.lock().unwrap().is_empty());
    }
}

#[test]
fn keys_count_from_when_the_token_brings_them() {
    let log = Log::new("s0", 9);
    let (old, new) = (TestKey::new(1), TestKey::new(2));
    let (mut worker, _, mut outcomes) = worker(&[&log], all_good, BOUNDS);
    worker.seals = SealKeys::new(std::slice::from_ref(&old.public));
    let id = worker.streams[0].id.clone();
    let sealed = |key: &TestKey, first, last| {
        Work::Batch(delivered(batch(&log, first, last), Some(key.seal(&id, &log.at(last)))))
    };
    let mut turn = VecDeque::new();
    worker.enqueue(Job::Trust(vec![new.public.clone()]), &mut turn);
    for work in [sealed(&new, 1, 3), sealed(&old, 4, 6)] {
        worker.enqueue(Job::Do(0, work), &mut turn);
        assert!(worker.apply_some(0).is_ok());
    }
    let told = told(&mut outcomes);
    assert_eq!(told[0], (0, 10, Applied::To(log.at(3))));
    assert!(
        matches!(told[1].2, Applied::Failed(ApplyFailure::Unproven { .. })),
        "{told:?}"
    );
}

#[tokio::test]
async fn an_idle_thread_ends_when_it_is_told_to() {
    let seals = SealKeys::new(&[]);
    let mut applier = Applier::start(Memory::default(), all_good, Vec::new(), BOUNDS, seals, Changes::new()).unwrap();
    // It has nothing to do, and waits for work.
    applier.stop();
    let ended = tokio::time::timeout(Duration::from_secs(10), applier.next());
    assert_eq!(ended.await.expect("the thread does not end"), None);
}
