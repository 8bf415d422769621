//! Seeded runs of one stream against a model of SpacetimeDB, the authority and the applier. Injected: reordered,
//! repeated, lost and overlapping frames; pages of any size and cut; holes, lost connections, refusals, overruns,
//! renewals; failing and slow applying; a window that moves, a SpacetimeDB that is wiped and refilled, an authority
//! that purges or does not answer. Not injected: altered bytes and forked logs, which the small cases cover.
//!
//! The invariant: what is applied is a prefix of the log, each event once, and when the faults stop, the whole log.
//! Only events that the authority purged before the client read them may be missing, and then the stream started over.

use std::collections::VecDeque;

use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use spacetime_sync_proto::{PayloadHash, Position, Refusal, RefusalCode, StaleReason, StreamId, limit};
use spacetime_sync_rules::append::{Appended, Request, append};
use spacetime_sync_rules::log::HeadRow;
use spacetime_sync_rules::log::memory::MemoryLog;
use spacetime_sync_rules::retention::{Effort, Window, sweep};
use spacetime_sync_rules::{page, rewind};

use super::tests::{Log, bounds};
use super::*;
use crate::config::{StaleAnswer, StreamBounds, WithoutDocument};

/// The only stream.
const STREAM: &str = "model";

struct World {
    rng: StdRng,
    log: Log,
    stream: Stream,
    counters: Counters,
    /// Where frames end.
    cuts: Vec<u64>,
    /// Up to where the applier has saved.
    saved: Position,
    saved_events: u64,
    /// Events that were purged before the client read them.
    skipped: u64,
    queue: VecDeque<Work>,
    /// What is on its way to the client, in the order of the connection.
    wire: VecDeque<Input>,
    /// Each with the last seq it brings.
    subscriptions: Vec<(SubscriptionId, Seq)>,
    connected: bool,
    read: Option<Seq>,
    /// The pending question to the authority.
    asked: Option<Asked>,
    /// What SpacetimeDB holds.
    held: MemoryLog,
    /// The authority holds the events after this seq.
    floor: u64,
    /// The seq of the document, if there is one.
    document: Option<u64>,
    wipes: u64,
    ask: bool,
    faults: bool,
}

enum Work {
    Batch(Batch),
    Begin(Box<Beginning>),
}

#[derive(Clone, Copy)]
enum Asked {
    Events(Position),
    Document,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let log = Log::new(STREAM, rng.random_range(0..40));
        let bounds = StreamBounds {
            unapplied_bytes: rng.random_range(5_000..200_000),
            resume_bytes: rng.random_range(0..5_000),
            subscribe_within_events: rng.random_range(0..20),
            apply_attempts: u32::MAX,
            recovery_attempts: u32::MAX,
            history: true,
            on_stale: if rng.random_bool(0.5) {
                StaleAnswer::Restart
            } else {
                StaleAnswer::Rebootstrap(WithoutDocument::Restart)
            },
            // Frames have up to 5 events.
            reach_bytes: rng.random_range(1..20_000),
            ..bounds()
        };
        let mut world = Self {
            stream: Stream::new(log.start, bounds),
            counters: Counters::default(),
            cuts: Vec::new(),
            saved: log.start,
            saved_events: 0,
            skipped: 0,
            queue: VecDeque::new(),
            wire: VecDeque::new(),
            subscriptions: Vec::new(),
            connected: false,
            read: None,
            asked: None,
            held: MemoryLog::default(),
            floor: 0,
            document: None,
            wipes: 0,
            ask: false,
            faults: true,
            rng,
            log,
        };
        world.cut();
        world.publish(world.log.head().seq.get());
        world
    }

    /// Cuts the log into frames at random, up to the head.
    fn cut(&mut self) {
        let mut end = self.cuts.last().copied().unwrap_or(0);
        while end < self.log.head().seq.get() {
            end = (end + self.rng.random_range(1..6)).min(self.log.head().seq.get());
            self.cuts.push(end);
        }
    }

    fn head_row(&self) -> HeadRow {
        self.held.head.unwrap_or_else(|| HeadRow::start(&stream_id()))
    }

    /// The last event that SpacetimeDB holds.
    fn published(&self) -> u64 {
        self.head_row().head.seq.get()
    }

    fn step(&mut self, input: Input) {
        for effect in self.stream.step(input, &mut self.counters) {
            match effect {
                // The lane of this test mends itself.
                Effect::Report => {}
                Effect::Read { after } => {
                    assert!(
                        self.connected && self.read.is_none(),
                        "one read at a time, and only when connected"
                    );
                    self.read = Some(after);
                }
                Effect::Subscribe { id, after, to } => {
                    assert!(self.connected);
                    self.subscriptions.push((id, to));
                    let rows = self.held.frames_after(after).iter().map(|stored| stored.frame.clone());
                    let mut rows: Vec<_> = rows.collect();
                    rows.retain(|frame| frame.first_seq <= to && (!self.faults || self.rng.random_bool(0.95)));
                    self.wire.extend(rows.into_iter().map(Input::Frame));
                    self.wire.push_back(Input::Subscribed(id));
                }
                Effect::Unsubscribe { id } => self.subscriptions.retain(|(held, _)| *held != id),
                Effect::Apply(batch) => {
                    let events = batch.events.iter().map(|event| event.seq.get());
                    assert!(events.eq(batch.from.seq.get() + 1..=batch.to.seq.get()));
                    self.queue.push_back(Work::Batch(batch));
                }
                Effect::StartOver(beginning) => {
                    assert_eq!(
                        beginning.from, self.saved,
                        "nothing is pending when a stream starts over"
                    );
                    assert!(
                        beginning.from.seq.get() < self.floor,
                        "a stream that can be continued does not start over"
                    );
                    self.queue.push_back(Work::Begin(beginning));
                }
                Effect::ReadHistory { after } => {
                    assert!(self.connected);
                    self.asked = Some(Asked::Events(after));
                }
                Effect::ReadDocument => self.asked = Some(Asked::Document),
                Effect::ReadDocuments { .. } | Effect::Stage(_) | Effect::Adopt(_) => {
                    panic!("a stream of events has no documents by key")
                }
                Effect::AskLater | Effect::RetryLater { .. } | Effect::RecoverLater { .. } => self.ask = true,
            }
        }
        assert!(
            !matches!(self.stream.mode(), Mode::Stopped(_)),
            "{:?}",
            self.stream.mode()
        );
        assert!(self.subscriptions.len() <= 2);
    }

    fn append(&mut self) {
        let in_step = self.published() == self.log.head().seq.get();
        (0..self.rng.random_range(1..8)).for_each(|_| self.log.append());
        self.cut();
        if in_step {
            self.publish(self.log.head().seq.get());
        }
    }

    /// Appends the frames up to the one that ends at `to`, and delivers them to the subscriptions.
    fn publish(&mut self, to: u64) {
        let before = self.published();
        for end in self.cuts.iter().filter(|end| (before + 1..=to).contains(end)) {
            let frame = self.log.frame(self.published() + 1, *end);
            let request = Request::of_frame(frame.first_seq.get(), frame.base_chain, frame.bytes.clone()).unwrap();
            let appended = append(&mut self.held, &stream_id(), request).unwrap();
            assert_ne!(appended, Appended::Absorbed);
            if self.subscriptions.iter().any(|(_, to)| frame.first_seq <= *to) {
                self.wire.push_back(Input::Frame(frame));
            }
        }
    }

    /// Refills a wiped SpacetimeDB by one frame, beginning with the window.
    fn refill(&mut self) {
        let head = self.log.head().seq.get();
        if self.published() == 0 && self.wipes > 0 {
            let window = self.rng.random_range(1..30);
            let begins = self
                .cuts
                .iter()
                .copied()
                .filter(|end| *end <= head.saturating_sub(window));
            let begin = begins.max().unwrap_or(0).max(self.cut_at(self.floor));
            let target = self.log.at(begin);
            rewind::step(
                &mut self.held,
                &stream_id(),
                target,
                None,
                self.log.at(0),
                limit::REWIND_STEP_EVENTS,
            )
            .unwrap();
        }
        if let Some(next) = self.cuts.iter().copied().find(|end| *end > self.published()) {
            self.publish(next);
        }
    }

    /// The first end of a frame at or after a seq.
    fn cut_at(&self, seq: u64) -> u64 {
        if seq == 0 {
            return 0;
        }
        self.cuts.iter().copied().find(|end| *end >= seq).unwrap_or(seq)
    }

    fn sweep(&mut self) {
        let published = self.published();
        let ends: Vec<u64> = self.cuts.iter().copied().filter(|end| *end < published).collect();
        if let Some(end) = ends.get(self.rng.random_range(0..ends.len().max(1))) {
            let window = Window {
                events: published - end,
                age_us: i64::MAX,
            };
            sweep(&mut self.held, window, 0, &mut Effort::default());
        }
    }

    fn wipe(&mut self) {
        self.wipes += 1;
        let last_seq = self.head_row().head.seq;
        self.held = MemoryLog::default();
        if self.rng.random_bool(0.5) {
            self.disconnect();
        } else {
            self.wire.push_back(Input::Gone { last_seq });
        }
    }

    fn purge(&mut self) {
        let head = self.log.head().seq.get();
        self.floor = self.floor.max(self.rng.random_range(0..=head));
        self.document = self
            .rng
            .random_bool(0.5)
            .then(|| self.rng.random_range(self.floor..=head));
    }

    fn answer_history(&mut self) {
        let Some(asked) = self.asked.take() else { return };
        if self.faults && self.rng.random_bool(0.1) {
            let refusal = Refusal::new(RefusalCode::ForbiddenStream, "not now");
            let failed = [Input::HistoryFailed, Input::HistoryRefused(refusal)];
            let at = self.rng.random_range(0..2);
            return self.step(failed[at].clone());
        }
        let head = self.log.head();
        let input = match asked {
            Asked::Document => Input::Document(self.document.map(|seq| Box::new(self.document_at(seq)))),
            Asked::Events(after) if after.seq.get() < self.floor => Input::Stale(Box::new(self.stale(after))),
            Asked::Events(after) => {
                assert_eq!(self.log.at(after.seq.get()), after);
                let (mut frames, mut first) = (Vec::new(), after.seq.get() + 1);
                for _ in 0..self.rng.random_range(1..5) {
                    let last = (first + self.rng.random_range(0..6)).min(head.seq.get());
                    if first <= last {
                        frames.push(self.log.frame(first, last));
                    }
                    first = last + 1;
                }
                let oldest_seq = Seq::new(self.floor + 1).unwrap();
                Input::HistoryPage(Page {
                    head,
                    oldest_seq,
                    durable_reads: true,
                    frames,
                })
            }
        };
        self.step(input);
    }

    fn stale(&self, after: Position) -> StaleCursor {
        let floor = self.log.at(self.floor);
        StaleCursor {
            code: Default::default(),
            stream_id: stream_id(),
            requested_after_seq: after.seq,
            oldest_available_cursor: floor.seq,
            oldest_available_chain: floor.chain,
            head_cursor: self.log.head().seq,
            reason_codes: vec![StaleReason::RetentionFloorBreach],
            replay_lag: self.log.head().seq.since(after.seq),
            replay_budget_events: None,
            snapshot_cursor: self.document.and_then(Seq::new),
        }
    }

    fn document_at(&self, seq: u64) -> Snapshot {
        let payload = bytes::Bytes::from_static(b"{}");
        Snapshot {
            doc_key: "doc".to_owned(),
            seq: Seq::new(seq).unwrap(),
            chain_hash: self.log.at(seq).chain,
            payload_hash: PayloadHash::of(&payload),
            payload,
        }
    }

    /// Sends the answer to the pending read.
    fn answer(&mut self) {
        let Some(after) = self.read.take() else { return };
        if self.faults && self.rng.random_bool(0.04) {
            let refusal = Refusal::new(RefusalCode::ForbiddenStream, "not now");
            let failed = if self.rng.random_bool(0.5) {
                Input::ReadFailed
            } else {
                Input::ReadRefused(refusal)
            };
            return self.wire.push_back(failed);
        }
        // The shortest frame has 993 bytes.
        let most_bytes = self.rng.random_range(1..5_000);
        let page = page::read(&self.held, &stream_id(), after, most_bytes);
        self.wire.push_back(Input::Page(Page {
            head: page.held.head,
            oldest_seq: page.held.oldest_seq,
            durable_reads: true,
            frames: page.frames.into_iter().map(|stored| stored.frame).collect(),
        }));
    }

    fn deliver(&mut self) {
        if self.faults && self.rng.random_bool(0.1) {
            // Rows within a message come in any order, and deliveries may be lost or repeated.
            let mut frames: Vec<_> = self
                .wire
                .iter()
                .filter(|input| matches!(input, Input::Frame(_)))
                .cloned()
                .collect();
            frames.shuffle(&mut self.rng);
            let keep = self.rng.random_range(0..=frames.len());
            for frame in frames.into_iter().take(keep) {
                self.step(frame);
            }
        }
        if let Some(input) = self.wire.pop_front() {
            let lost = self.faults && matches!(input, Input::Frame(_)) && self.rng.random_bool(0.15);
            if !lost {
                self.step(input);
            }
        }
    }

    fn apply(&mut self) {
        let fails = self.faults && self.rng.random_bool(0.02);
        let batch = match self.queue.pop_front() {
            None => return,
            Some(Work::Begin(_)) if fails => {
                let failure = ApplyFailure::Retry {
                    message: "injected".to_owned(),
                };
                return self.step(Input::ApplyFailed { failure, released: 0 });
            }
            Some(Work::Begin(beginning)) => {
                assert_eq!(beginning.from, self.saved);
                self.skipped += beginning.at.seq.get() - self.saved.seq.get();
                self.saved = beginning.at;
                return self.step(Input::StartedOver(beginning.at));
            }
            Some(Work::Batch(batch)) => batch,
        };
        let released = batch.bytes;
        if batch.from != self.saved {
            return self.step(Input::Dropped { released });
        }
        if fails {
            let failure = ApplyFailure::Retry {
                message: "injected".to_owned(),
            };
            return self.step(Input::ApplyFailed { failure, released });
        }
        let expected = &self.log.events[batch.from.seq.get() as usize..batch.to.seq.get() as usize];
        assert_eq!(batch.events, expected);
        self.saved = batch.to;
        self.saved_events += batch.events.len() as u64;
        self.step(Input::Applied { to: batch.to, released });
    }

    fn disconnect(&mut self) {
        self.connected = false;
        self.read = None;
        self.asked = None;
        self.wire.clear();
        self.subscriptions.clear();
        self.step(Input::Disconnected);
    }

    fn turn(&mut self) {
        if !self.connected {
            self.connected = true;
            return self.step(Input::Connected);
        }
        match self.rng.random_range(0..100) {
            0..10 if self.faults => self.append(),
            10..11 if self.faults => self.disconnect(),
            11..12 if self.faults => self.step(Input::Overrun),
            12..16 => self.step(Input::Renew),
            16..17 if self.faults => self.step(Input::GrantLost),
            17..20 => self.step(Input::Verify),
            20..21 if self.faults && self.rng.random_bool(0.3) => self.sweep(),
            21..22 if self.faults && self.rng.random_bool(0.1) => self.wipe(),
            22..23 if self.faults && self.rng.random_bool(0.4) => self.purge(),
            23..26 => self.refill(),
            26..34 if self.ask => {
                self.ask = false;
                self.step(Input::AskAgain);
            }
            34..42 => self.answer_history(),
            42..56 => self.answer(),
            56..78 => self.apply(),
            _ => self.deliver(),
        }
    }
}

fn stream_id() -> StreamId {
    StreamId::new(STREAM).unwrap()
}

fn run(seed: u64) -> World {
    let mut world = World::new(seed);
    (0..1_500).for_each(|_| world.turn());
    world.faults = false;
    world.ask = true;
    for _ in 0..20_000 {
        if world.stream.is_current() && world.saved == world.log.head() {
            return world;
        }
        world.turn();
    }
    panic!(
        "seed {seed}: at {:?} in {:?}, head {:?}",
        world.saved,
        world.stream.mode(),
        world.log.head()
    );
}

#[test]
fn whatever_happens_the_whole_log_is_applied_once_and_in_order() {
    let (mut seen, mut wipes) = (Counters::default(), 0);
    for seed in 0..300 {
        let world = run(seed);
        let log = world.log.events.len() as u64;
        assert_eq!(world.saved_events + world.skipped, log, "seed {seed}");
        assert_eq!(world.counters.events_applied, world.saved_events, "seed {seed}");
        seen.holes_paged += world.counters.holes_paged;
        seen.duplicates_dropped += world.counters.duplicates_dropped;
        seen.overruns += world.counters.overruns;
        seen.apply_failures += world.counters.apply_failures;
        seen.resubscriptions += world.counters.resubscriptions;
        seen.reads_refused += world.counters.reads_refused;
        seen.history_pages += world.counters.history_pages;
        seen.history_failures += world.counters.history_failures;
        seen.stale_cursors += world.counters.stale_cursors;
        seen.rebootstraps += world.counters.rebootstraps;
        seen.restarts += world.counters.restarts;
        wipes += world.wipes;
    }
    // A run that meets no fault would prove nothing.
    for (what, count) in [
        ("holes", seen.holes_paged),
        ("duplicates", seen.duplicates_dropped),
        ("overruns", seen.overruns),
        ("failures", seen.apply_failures),
        ("renewals", seen.resubscriptions),
        ("refusals", seen.reads_refused),
        ("pages of the authority", seen.history_pages),
        ("failures of the authority", seen.history_failures),
        ("stale cursors", seen.stale_cursors),
        ("beginnings", seen.rebootstraps + seen.restarts),
        ("wipes", wipes),
    ] {
        assert!(count > 100, "{what}: {count}");
    }
}
