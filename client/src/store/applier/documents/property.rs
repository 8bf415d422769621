//! Seeded runs of a stream of documents: the stream's core, the apply thread's work and SQLite as they are shipped, against a model of
//! SpacetimeDB and of the authority. Injected: pages of any size, documents that change, are deleted and come back while they are
//! fetched, positions that are not the head, a window that moves, an authority that purges, refuses or does not answer, lost
//! connections and answers, answers that come late, batches that nobody has sealed, a database that is locked, and a process that dies. Not injected: a store that loses what it has saved.
//!
//! The invariant: at every moment the store shows exactly the documents as of its checkpoint, each in its newest version up to there. From
//! the time that it has gone on from other documents until these lack nothing, it shows what it showed before. When the faults
//! stop, it shows the authority's.

use std::collections::BTreeMap;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use spacetime_sync_proto::document::{DELETE, DocumentPage, PUT, Pointer};
use spacetime_sync_proto::{Refusal, RefusalCode, Seq, StaleCursor, StaleReason};
use tempfile::TempDir;
use tokio::sync::mpsc::UnboundedReceiver;

use super::super::*;
use super::*;
use crate::config::StreamBounds;
use crate::seal::Unproven;
use crate::session::Outcome;
use crate::session::stream::tests::{Log, bounds};
use crate::session::stream::{Counters, Effect, Input, Mode, Page, Stream, SubscriptionId};
use crate::store::{DocumentReader, SqliteStore};

const STREAM: &str = "documents";
const KEYS: u64 = 8;

type Refuses = fn(&mut rusqlite::Transaction<'_>, &StreamId, &[Event]) -> Result<(), HandlerError>;

fn refuses(_: &mut rusqlite::Transaction<'_>, _: &StreamId, _: &[Event]) -> Result<(), HandlerError> {
    Err(HandlerError::stop("documents are no business of the handler's"))
}

fn stream_id() -> StreamId {
    StreamId::new(STREAM).unwrap()
}

/// What is shown of a document: version, seq and hash.
type Shown = BTreeMap<String, (u64, u64, PayloadHash)>;

struct Process {
    worker: Worker<SqliteStore, Refuses>,
    outcomes: UnboundedReceiver<Outcome>,
    stream: Stream,
}

struct World {
    rng: StdRng,
    folder: TempDir,
    process: Process,
    reader: Box<dyn DocumentReader>,
    /// Holds the database's lock while it is there.
    lock: Option<rusqlite::Connection>,
    log: Log,
    counters: Counters,
    /// The answers to come, in any order.
    answers: Vec<Input>,
    subscriptions: Vec<SubscriptionId>,
    connected: bool,
    asks_again: bool,
    /// SpacetimeDB holds the events after this seq, and the authority those after the other.
    window: u64,
    floor: u64,
    /// What was shown last.
    shown: Shown,
    /// How often it was looked at while other documents were to be shown next.
    waited: u64,
    deletions: u64,
    crashes: u64,
    faults: bool,
}

fn start(folder: &TempDir, bounds: &StreamBounds) -> Process {
    let mut store = SqliteStore::open(folder.path().join("app.db")).unwrap();
    store.bind("lane").unwrap();
    // Who waits for a lock must not stop the world.
    store.connection().busy_timeout(std::time::Duration::ZERO).unwrap();
    // Two or three contents.
    store.copied_bytes = 20;
    let opened = open_stream(&mut store, &stream_id(), Carries::Documents { are_held: false }).unwrap();
    let (outgoing, outcomes) = tokio::sync::mpsc::unbounded_channel();
    let worker = Worker {
        store,
        handler: refuses as Refuses,
        streams: vec![StreamQueue::new(stream_id(), opened.at, opened.carries)],
        bounds: BatchBounds {
            events: 10,
            bytes: 1 << 20,
        },
        seals: SealKeys::new(&[]),
        changes: Changes::new(),
        unswept: true,
        outgoing,
    };
    let bounds = StreamBounds {
        carries: opened.carries,
        ..bounds.clone()
    };
    Process {
        worker,
        outcomes,
        stream: Stream::new(opened.at, bounds),
    }
}

impl World {
    fn new(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let folder = tempfile::tempdir().unwrap();
        let process = start(&folder, &within(&mut rng));
        let reader = process.worker.store.document_reader().unwrap();
        let mut world = Self {
            rng,
            folder,
            process,
            reader,
            lock: None,
            log: Log::new(STREAM, 0),
            counters: Counters::default(),
            answers: Vec::new(),
            subscriptions: Vec::new(),
            connected: false,
            asks_again: false,
            window: 0,
            floor: 0,
            shown: Shown::new(),
            waited: 0,
            deletions: 0,
            crashes: 0,
            faults: true,
        };
        (0..world.rng.random_range(0..30)).for_each(|_| world.append());
        world
    }

    /// Something happens to a document, and its event is appended and delivered.
    fn append(&mut self) {
        let key = format!("k:{}", self.rng.random_range(0..KEYS));
        let version = self.log.events.len() as u64 + 1;
        let json = format!(r#"{{"n":{}}}"#, self.rng.random_range(0..1_000));
        let hash = PayloadHash::of(json.as_bytes());
        let put = format!(r#"{{"doc_key":"{key}","doc_version":{version},"payload":{json},"payload_hash":"{hash}"}}"#);
        let (kind, payload) = match self.rng.random_range(0..10) {
            0..3 => {
                self.deletions += 1;
                let payload = format!(r#"{{"deleted":true,"doc_key":"{key}","doc_version":{version}}}"#);
                (DELETE, payload)
            }
            3 => (
                PUT,
                format!(
                    r#"{{"doc_key":"{key}","doc_version":{version},"hydration_required":true,"payload_bytes":9,"payload_hash":"{hash}"}}"#
                ),
            ),
            4 => (PUT, "no document".to_owned()),
            5 => ("document.seen", put),
            _ => (PUT, put),
        };
        self.log.append_event(kind, &payload);
        let seq = self.log.head().seq.get();
        if !self.subscriptions.is_empty() && !(self.faults && self.rng.random_bool(0.1)) {
            self.answers.push(Input::Frame(self.log.frame(seq, seq)));
        }
    }

    /// The documents as of a seq, by the events up to there.
    fn state(&self, at: u64) -> BTreeMap<String, Document> {
        let mut state = BTreeMap::new();
        for event in &self.log.events[..at as usize] {
            if let Ok(document) = Document::told(event.seq, &event.kind, &event.payload) {
                match document.state {
                    DocumentState::Deleted => drop(state.remove(&document.key)),
                    DocumentState::Content { .. } | DocumentState::Pointer(_) => {
                        state.insert(document.key.clone(), document);
                    }
                }
            }
        }
        state
    }

    /// The newest versions, with those that are deleted.
    fn newest(&self) -> BTreeMap<String, Document> {
        let told = self
            .log
            .events
            .iter()
            .filter_map(|event| Document::told(event.seq, &event.kind, &event.payload).ok());
        told.map(|document| (document.key.clone(), document)).collect()
    }

    fn page(&mut self, at: Option<Position>, after: Option<String>) -> Input {
        let head = self.log.head().seq.get();
        if let Some(at) = at
            && at.seq.get() < self.floor
        {
            return Input::Stale(Box::new(self.stale(at.seq)));
        }
        let at = at.unwrap_or_else(|| {
            let at = self.rng.random_range(self.floor..=head);
            self.log.at(at)
        });
        let most = self.rng.random_range(1..4);
        let newest = self.newest();
        let looked: Vec<_> = newest
            .into_values()
            .filter(|document| Some(&document.key) > after.as_ref())
            .collect();
        let next_after = (looked.len() > most).then(|| looked[most - 1].key.clone());
        let documents = looked.into_iter().take(most);
        Input::Documents(Box::new(DocumentPage {
            at,
            documents: documents
                .filter(|document| document.seq <= at.seq && document.state != DocumentState::Deleted)
                .collect(),
            next_after,
            head_seq: self.log.head().seq,
        }))
    }

    fn stale(&self, after: Seq) -> StaleCursor {
        let floor = self.log.at(self.floor);
        StaleCursor {
            code: Default::default(),
            stream_id: stream_id(),
            requested_after_seq: after,
            oldest_available_cursor: floor.seq,
            oldest_available_chain: floor.chain,
            head_cursor: self.log.head().seq,
            reason_codes: vec![StaleReason::RetentionFloorBreach],
            replay_lag: 0,
            replay_budget_events: None,
            snapshot_cursor: None,
        }
    }

    fn events(&mut self, after: u64, held: u64) -> Page {
        let head = self.log.head();
        let last = (after + self.rng.random_range(1..9)).min(head.seq.get());
        let frames = if after < held || last <= after {
            Vec::new()
        } else {
            vec![self.log.frame(after + 1, last)]
        };
        Page {
            head,
            oldest_seq: Seq::new(held + 1).unwrap(),
            durable_reads: true,
            frames,
        }
    }

    fn step(&mut self, input: Input) {
        let effects = self.process.stream.step(input, &mut self.counters);
        for effect in effects {
            let refused = self.faults && self.rng.random_bool(0.05);
            let refusal = || Refusal::new(RefusalCode::ForbiddenStream, "not now");
            let work = match effect {
                Effect::Report => continue,
                Effect::AskLater | Effect::RetryLater { .. } | Effect::RecoverLater { .. } => {
                    self.asks_again = true;
                    continue;
                }
                Effect::Read { .. } if refused => {
                    self.answers.push(Input::ReadFailed);
                    continue;
                }
                Effect::Read { after } => {
                    let page = self.events(after.get(), self.window);
                    self.answers.push(Input::Page(page));
                    continue;
                }
                Effect::ReadHistory { .. } | Effect::ReadDocuments { .. } if refused => {
                    let failed = [Input::HistoryFailed, Input::HistoryRefused(refusal())];
                    self.answers.push(failed[self.rng.random_range(0..2)].clone());
                    continue;
                }
                Effect::ReadHistory { after } => {
                    let answer = if after.seq.get() < self.floor {
                        Input::Stale(Box::new(self.stale(after.seq)))
                    } else {
                        Input::HistoryPage(self.events(after.seq.get(), self.floor))
                    };
                    self.answers.push(answer);
                    continue;
                }
                Effect::ReadDocuments { at, after } => {
                    let answer = self.page(at, after);
                    self.answers.push(answer);
                    continue;
                }
                Effect::Subscribe { id, after, .. } => {
                    self.subscriptions.push(id);
                    let (after, head) = (after.get(), self.log.head().seq.get());
                    if after < head {
                        self.answers.push(Input::Frame(self.log.frame(after + 1, head)));
                    }
                    self.answers.push(Input::Subscribed(id));
                    continue;
                }
                Effect::Unsubscribe { id } => {
                    self.subscriptions.retain(|held| *held != id);
                    continue;
                }
                Effect::Apply(mut batch) => {
                    // Seals are another test's business.
                    batch.proof = Proof::Authority;
                    Work::Batch(batch)
                }
                Effect::Stage(staging) => Work::Stage(staging),
                Effect::Adopt(adoption) => Work::Adopt(adoption),
                Effect::ReadDocument | Effect::StartOver(_) => panic!("a stream of documents begins with them"),
            };
            self.process.worker.streams[0].queue.push_back(work);
        }
        let mode = self.process.stream.mode();
        assert!(!matches!(mode, Mode::Stopped(_)), "{mode:?}");
    }

    fn work(&mut self) {
        let worker = &mut self.process.worker;
        if worker.streams[0].queue.is_empty() {
            worker.sweep();
        }
        if self.faults && self.rng.random_bool(0.05) {
            // Its seal is not the bridge's.
            match worker.streams[0].queue.pop_front() {
                Some(Work::Batch(batch)) => {
                    let failure = ApplyFailure::Unproven {
                        to: batch.to.seq,
                        why: Unproven::NoSeal,
                    };
                    let released = batch.bytes;
                    return self.step(Input::ApplyFailed { failure, released });
                }
                Some(other) => worker.streams[0].queue.push_front(other),
                None => {}
            }
        }
        let _ = worker.apply_some(0);
        self.check();
        while let Ok(Outcome { released, result, .. }) = self.process.outcomes.try_recv() {
            let input = match result {
                Applied::To(to) | Applied::DocumentsTo { to, .. } => Input::Applied { to, released },
                Applied::StartedOver(at) => Input::StartedOver(at),
                Applied::Dropped => Input::Dropped { released },
                Applied::Staged(fetch) => Input::Staged { fetch, released },
                Applied::Failed(failure) => Input::ApplyFailed { failure, released },
                Applied::StoreFailed(_) | Applied::Opened(_) | Applied::Pointer(_) | Applied::Filled(_) => {
                    panic!("{result:?}")
                }
            };
            self.step(input);
        }
    }

    /// What is shown is what was true at the checkpoint.
    fn check(&mut self) {
        let store = &mut self.process.worker.store;
        let at = store.load(&stream_id()).unwrap().map_or(0, |at| at.seq.get());
        let shown = self.reader.documents(&stream_id(), None, 100).unwrap();
        let is_next: bool = store
            .connection()
            .query_row(
                "SELECT count(*) > 0 FROM spacetime_sync_view WHERE state = 'next'",
                [],
                |row| row.get(0),
            )
            .unwrap();
        let shown: Shown = shown
            .into_iter()
            .map(|stored| {
                let content = stored.content.as_ref();
                assert!(content.is_none_or(|json| PayloadHash::of(json.as_bytes()) == stored.hash));
                // A pointer has its content only if that was here before.
                let event = &self.log.events[stored.seq.get() as usize - 1];
                let told = Document::told(stored.seq, &event.kind, &event.payload).map(|document| document.state);
                let is_pointer = matches!(told, Ok(DocumentState::Pointer(_)));
                assert!(content.is_some() || is_pointer, "{}", stored.key);
                (stored.key, (stored.version, stored.seq.get(), stored.hash))
            })
            .collect();
        let expected: Shown = self
            .state(at)
            .into_iter()
            .map(|(key, document)| {
                let hash = match document.state {
                    DocumentState::Content { hash, .. } | DocumentState::Pointer(Pointer { hash, .. }) => hash,
                    DocumentState::Deleted => panic!("not in the state"),
                };
                (key, (document.version, document.seq.get(), hash))
            })
            .collect();
        if is_next {
            self.waited += 1;
            assert_eq!(shown, self.shown, "what was shown before");
        } else {
            assert_eq!(shown, expected, "as of {at}");
            self.shown = shown;
        }
    }

    fn disconnect(&mut self) {
        self.connected = false;
        self.answers.clear();
        self.subscriptions.clear();
        self.step(Input::Disconnected);
    }

    /// The process dies, and another one goes on with its file.
    fn crash(&mut self) {
        self.crashes += 1;
        self.lock = None;
        self.answers.clear();
        self.subscriptions.clear();
        self.connected = false;
        let bounds = within(&mut self.rng);
        self.process = start(&self.folder, &bounds);
        self.check();
    }

    fn lock(&mut self) {
        self.lock = match self.lock {
            Some(_) => None,
            None => {
                let other = rusqlite::Connection::open(self.folder.path().join("app.db")).unwrap();
                other.execute_batch("BEGIN IMMEDIATE").unwrap();
                Some(other)
            }
        };
    }

    fn turn(&mut self) {
        if !self.connected {
            self.connected = true;
            return self.step(Input::Connected);
        }
        let (head, faults) = (self.log.head().seq.get(), self.faults);
        match self.rng.random_range(0..100) {
            0..8 if faults => self.append(),
            8..9 if faults => self.disconnect(),
            9..10 if faults && self.rng.random_bool(0.3) => self.crash(),
            10..13 if faults => self.lock(),
            13..15 if faults => self.window = self.rng.random_range(self.window..=head),
            15..17 if faults => self.floor = self.rng.random_range(self.floor..=self.window),
            17..18 if faults => self.step(Input::GrantLost),
            18..19 => self.step(Input::Verify),
            19..30 if self.asks_again => {
                self.asks_again = false;
                self.step(Input::AskAgain);
            }
            30..60 => self.work(),
            _ if self.answers.is_empty() => {}
            _ => {
                let at = if faults && self.rng.random_bool(0.1) {
                    self.rng.random_range(0..self.answers.len())
                } else {
                    0
                };
                let answer = self.answers.remove(at);
                self.step(answer);
            }
        }
    }
}

fn within(rng: &mut StdRng) -> StreamBounds {
    StreamBounds {
        history: true,
        apply_attempts: u32::MAX,
        recovery_attempts: u32::MAX,
        reach_bytes: rng.random_range(1..20_000),
        unapplied_bytes: rng.random_range(2_000..200_000),
        ..bounds()
    }
}

fn run(seed: u64) -> World {
    let mut world = World::new(seed);
    (0..1_500).for_each(|_| world.turn());
    world.faults = false;
    world.asks_again = true;
    world.lock = None;
    for _ in 0..20_000 {
        if world.process.stream.is_current() {
            world.check();
            world.process.worker.unswept = true;
            while world.process.worker.unswept {
                world.process.worker.sweep();
            }
            return world;
        }
        world.turn();
    }
    panic!(
        "seed {seed}: {:?} at {:?} of {:?}",
        world.process.stream.mode(),
        world.process.stream.applied(),
        world.log.head()
    );
}

#[test]
fn whatever_happens_the_store_shows_the_documents_of_its_checkpoint() {
    let (mut seen, mut waited, mut deletions, mut crashes) = (Counters::default(), 0, 0, 0);
    for seed in 0..60 {
        let world = run(seed);
        seen.rebootstraps += world.counters.rebootstraps;
        seen.document_pages += world.counters.document_pages;
        seen.stale_cursors += world.counters.stale_cursors;
        seen.history_failures += world.counters.history_failures;
        seen.apply_failures += world.counters.apply_failures;
        seen.events_applied += world.counters.events_applied;
        waited += world.waited;
        deletions += world.deletions;
        crashes += world.crashes;
        let left: i64 = rusqlite::Connection::open(world.folder.path().join("app.db"))
            .unwrap()
            .query_row(
                "SELECT count(*) FROM spacetime_sync_view WHERE state <> 'shown'",
                [],
                |row| row.get(0),
            )
            .unwrap();
        assert_eq!(left, 0, "seed {seed}: what is shown no more leaves");
    }
    // A run that meets no fault would prove nothing.
    for (what, count) in [
        ("beginnings", seen.rebootstraps),
        ("pages", seen.document_pages),
        ("stale cursors", seen.stale_cursors),
        ("failures of the authority", seen.history_failures),
        ("failures of the store", seen.apply_failures),
        ("events", seen.events_applied),
        ("looks at what was shown before", waited),
        ("deletions", deletions),
        ("crashes", crashes),
    ] {
        assert!(count > 50, "{what}: {count}");
    }
}

#[test]
fn a_part_with_many_contents_that_are_here_is_kept_aside_step_by_step_and_told_once() {
    let folder = tempfile::tempdir().unwrap();
    let mut process = start(&folder, &bounds());
    let (worker, content) = (&mut process.worker, "0123456789");
    let hash = PayloadHash::of(content.as_bytes());
    let pointer = |number| Document {
        key: format!("k:{number}"),
        version: 1,
        seq: Seq::new(1).unwrap(),
        state: DocumentState::Pointer(Pointer { hash, bytes: 10 }),
    };
    let documents: Vec<_> = (0..5).map(pointer).collect();
    let log = Log::new(STREAM, 2);
    let store = &mut worker.store;
    store.stage_documents(&stream_id(), true, &documents).unwrap();
    store
        .adopt_documents(&stream_id(), &log.start, &log.at(1), Seq::ZERO)
        .unwrap();
    for document in &documents {
        store.fill_document(&stream_id(), &document.key, hash, content).unwrap();
    }
    let mut turn = VecDeque::new();
    let staging = Staging {
        fetch: FetchId(7),
        is_first: true,
        documents,
        bytes: 99,
    };
    worker.enqueue(Job::Do(0, Work::Stage(staging)), &mut turn);
    let mut steps = 0;
    while !worker.streams[0].queue.is_empty() {
        assert!(process.outcomes.try_recv().is_err());
        assert!(worker.apply_some(0).is_ok());
        steps += 1;
    }
    let told = process.outcomes.try_recv().unwrap();
    assert_eq!(
        (steps, told.released, told.result),
        (3, 99, Applied::Staged(FetchId(7)))
    );
    assert!(process.outcomes.try_recv().is_err());
    let aside: i64 = worker
        .store
        .connection()
        .query_row(
            "SELECT count(*) FROM spacetime_sync_document JOIN spacetime_sync_view ON view = id \
             WHERE state = 'aside' AND content IS NOT NULL",
            [],
            |row| row.get(0),
        )
        .unwrap();
    assert_eq!(aside, 5);
}
