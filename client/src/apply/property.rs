//! Seeded runs of one stream against a model of the lane and of the applier. Injected: reordered, repeated, lost and
//! overlapping frames, pages of any size and cut, holes, lost connections, refusals, overruns, renewals, failing and
//! slow applying. Not injected: bytes that were altered, which the small cases cover.
//!
//! Whatever happens, what is applied is a prefix of the log, each event once; and when faults stop, all of it.

use std::collections::VecDeque;

use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use spacetime_sync_proto::{Refusal, RefusalCode};

use super::tests::{Log, bounds};
use super::*;
use crate::config::StreamBounds;

struct World {
    rng: StdRng,
    log: Log,
    stream: Stream,
    counters: Counters,
    /// Where frames of the lane end.
    cuts: Vec<u64>,
    /// What the applier has saved.
    saved: Checkpoint,
    saved_events: u64,
    queue: VecDeque<Batch>,
    /// What is under way to the client, in the order of the connection.
    wire: VecDeque<Input>,
    /// Each with the last position it brings.
    subscriptions: Vec<(SubscriptionId, Seq)>,
    connected: bool,
    read: Option<Seq>,
    ask: bool,
    faults: bool,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let log = Log::new("model", rng.random_range(0..40));
        let bounds = StreamBounds {
            unapplied_bytes: rng.random_range(5_000..200_000),
            resume_bytes: rng.random_range(0..5_000),
            subscribe_within_events: rng.random_range(0..20),
            apply_attempts: u32::MAX,
            // Frames have up to 5 events.
            window_bytes: rng.random_range(1..20_000),
            window_events: rng.random_range(10..30),
            ..bounds()
        };
        let mut world = Self {
            stream: Stream::new(log.start, bounds),
            counters: Counters::default(),
            cuts: Vec::new(),
            saved: log.start,
            saved_events: 0,
            queue: VecDeque::new(),
            wire: VecDeque::new(),
            subscriptions: Vec::new(),
            connected: false,
            read: None,
            ask: false,
            faults: true,
            rng,
            log,
        };
        world.cut();
        world
    }

    /// Ends frames at random up to the head.
    fn cut(&mut self) {
        let mut end = self.cuts.last().copied().unwrap_or(0);
        while end < self.log.head().seq.get() {
            end = (end + self.rng.random_range(1..6)).min(self.log.head().seq.get());
            self.cuts.push(end);
        }
    }

    fn frames(&self, after: u64) -> Vec<RawFrame> {
        let mut first = 1;
        let mut frames = Vec::new();
        for end in &self.cuts {
            if *end > after {
                frames.push(self.log.frame(first, *end));
            }
            first = end + 1;
        }
        frames
    }

    fn step(&mut self, input: Input) {
        for effect in self.stream.step(input, &mut self.counters) {
            match effect {
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
                    let mut rows = self.frames(after.get());
                    rows.retain(|frame| frame.last_seq <= to && (!self.faults || self.rng.random_bool(0.95)));
                    self.wire.extend(rows.into_iter().map(Input::Frame));
                    self.wire.push_back(Input::Subscribed(id));
                }
                Effect::Unsubscribe { id } => self.subscriptions.retain(|(held, _)| *held != id),
                Effect::Apply(batch) => {
                    let events = batch.events.iter().map(|event| event.seq.get());
                    assert!(events.eq(batch.from.seq.get() + 1..=batch.to.seq.get()));
                    self.queue.push_back(batch);
                }
                Effect::AskLater | Effect::RetryLater { .. } => self.ask = true,
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
        let before = self.log.head().seq.get();
        (0..self.rng.random_range(1..8)).for_each(|_| self.log.append());
        self.cut();
        for frame in self.frames(before) {
            if self.subscriptions.iter().any(|(_, to)| frame.last_seq <= *to) {
                self.wire.push_back(Input::Frame(frame));
            }
        }
    }

    /// Sends the answer that a read has coming.
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
        let mut frames = self.frames(after.get());
        frames.truncate(self.rng.random_range(1..5));
        let oldest_seq = Seq::ZERO.next();
        self.wire.push_back(Input::Page(Page {
            head: self.log.head(),
            oldest_seq,
            durable_reads: true,
            frames,
        }));
    }

    fn deliver(&mut self) {
        if self.faults && self.rng.random_bool(0.1) {
            // Rows within a message come in any order, and nothing says that a delivery is never lost or repeated.
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
        let Some(batch) = self.queue.pop_front() else { return };
        let released = batch.bytes;
        if batch.from != self.saved {
            return self.step(Input::Dropped { released });
        }
        if self.faults && self.rng.random_bool(0.02) {
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
            20..30 if self.ask => {
                self.ask = false;
                self.step(Input::AskAgain);
            }
            30..50 => self.answer(),
            50..75 => self.apply(),
            _ => self.deliver(),
        }
    }
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
    let mut seen = Counters::default();
    for seed in 0..300 {
        let world = run(seed);
        assert_eq!(world.saved_events, world.log.events.len() as u64, "seed {seed}");
        assert_eq!(world.counters.events_applied, world.saved_events, "seed {seed}");
        seen.holes_paged += world.counters.holes_paged;
        seen.duplicates_dropped += world.counters.duplicates_dropped;
        seen.overruns += world.counters.overruns;
        seen.apply_failures += world.counters.apply_failures;
        seen.resubscriptions += world.counters.resubscriptions;
        seen.reads_refused += world.counters.reads_refused;
    }
    // A run that meets no fault would prove nothing.
    for (what, count) in [
        ("holes", seen.holes_paged),
        ("duplicates", seen.duplicates_dropped),
        ("overruns", seen.overruns),
        ("failures", seen.apply_failures),
        ("renewals", seen.resubscriptions),
        ("refusals", seen.reads_refused),
    ] {
        assert!(count > 100, "{what}: {count}");
    }
}
