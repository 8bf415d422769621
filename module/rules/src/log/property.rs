//! Seeded runs of random operations on one log in memory. The oracle is a plain `Vec` of the log's events, and the seq
//! after which the log should hold them.

use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng, SeedableRng};
use spacetime_sync_proto::{Event, RefusalCode};

use super::memory::MemoryLog;
use super::tests::{frame_row, head_of, push, stream};
use super::*;
use crate::append::{Appended, Request, append};
use crate::page;
use crate::retention::{Effort, Swept, Window, sweep};
use crate::rewind::{Step, step};

/// The authority's log may be this many events ahead of the rows, and forks begin at most this far back.
const REACH: usize = 12;

struct World {
    rng: StdRng,
    rows: MemoryLog,
    /// Every event of the log from seq 1 on, including those that left the window.
    events: Vec<Event>,
    /// One log that continues where the rows end, and others that fork from theirs.
    authorities: Vec<Vec<Event>>,
    seen: Seen,
}

/// How often each interesting case occurred.
#[derive(Debug, Default)]
struct Seen {
    extended: u64,
    absorbed: u64,
    refused: u64,
    pages: u64,
    swept_for_count: u64,
    swept_for_age: u64,
    unfinished: u64,
    cuts: u64,
    beginnings: u64,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut world = Self {
            rng: StdRng::seed_from_u64(seed),
            rows: MemoryLog::default(),
            events: Vec::new(),
            authorities: Vec::new(),
            seen: Seen::default(),
        };
        world.branch();
        world
    }

    fn head(&self) -> usize {
        self.events.len()
    }

    fn held_after(&self) -> usize {
        let row = self.rows.head.unwrap_or_else(|| HeadRow::start(&stream()));
        row.held_after().get() as usize
    }

    /// Makes the logs that appends and rewinds use: one continues at the head, two fork somewhere before it.
    fn branch(&mut self) {
        self.authorities.clear();
        for flavour in 1..=3 {
            let parts_at = match flavour {
                1 => self.head(),
                _ => self.rng.random_range(self.head().saturating_sub(REACH)..=self.head()),
            };
            let mut log = self.events[..parts_at].to_vec();
            let more = self.rng.random_range(1..=REACH);
            (0..more).for_each(|_| push(&mut log, flavour));
            self.authorities.push(log);
        }
    }

    fn authority(&mut self) -> Vec<Event> {
        self.authorities.choose(&mut self.rng).unwrap().clone()
    }

    fn append(&mut self) {
        let log = self.authority();
        let from = self.rng.random_range(log.len().saturating_sub(2 * REACH)..log.len()) + 1;
        let to = self.rng.random_range(from..=log.len());
        let row = frame_row(&log, from, to);
        let before = self.rows.clone();
        let request = Request::of_frame(row.first_seq.get(), row.base_chain, row.bytes).unwrap();
        let answer = append(&mut self.rows, &stream(), request).map_err(|refusal| refusal.code);

        let (head, repeated) = (self.head(), to.min(self.head()));
        let expected = if from > head + 1 {
            Err(RefusalCode::SeqGap)
        } else if from == head + 1 && head_of(&log[..head]) != head_of(&self.events) {
            Err(RefusalCode::ChainMismatch)
        } else if from <= head && repeated <= self.held_after() && repeated < head {
            Err(RefusalCode::BelowWindow)
        } else if from <= head && log[..repeated] != self.events[..repeated] {
            Err(RefusalCode::EventConflict)
        } else {
            Ok(to > head)
        };
        assert_eq!(
            answer.map(|appended| appended != Appended::Absorbed),
            expected,
            "{from}..={to}"
        );
        match expected {
            Ok(true) => {
                self.events = log[..to].to_vec();
                self.seen.extended += 1;
            }
            Ok(false) => self.seen.absorbed += 1,
            Err(_) => self.seen.refused += 1,
        }
        if expected != Ok(true) {
            assert_eq!(self.rows, before, "an append that adds no event changes no row");
        }
    }

    fn read(&mut self) {
        let after = self.rng.random_range(0..=self.head() + 2);
        let most_bytes = self.rng.random_range(1..6_000);
        let page = page::read(&self.rows, &stream(), seq(after), most_bytes);
        assert_eq!(page.held.head, head_of(&self.events));
        let is_held = after >= self.held_after() && after < self.head();
        assert_eq!(page.frames.is_empty(), !is_held, "after {after}");
        let Some(last) = page.frames.last() else { return };
        let (first, last) = (&page.frames[0].frame, last.frame.last_seq.get() as usize);
        assert!(first.first_seq <= seq(after + 1) && first.last_seq > seq(after));
        let mut read = Vec::new();
        for stored in &page.frames {
            read.extend(stored.decode().unwrap().into_events_after(seq(after)));
        }
        assert_eq!(read, self.events[after..last]);
        let bytes = |frames: &[StoredFrame]| frames.iter().map(|stored| stored.frame.bytes.len()).sum::<usize>();
        assert!(page.frames.len() == 1 || bytes(&page.frames) <= most_bytes);
        let next = self.rows.frames_after(seq(last)).first();
        if let Some(next) = next {
            let more = bytes(&page.frames) + next.frame.bytes.len();
            assert!(more > most_bytes, "one more frame would have fitted");
        }
        self.seen.pages += 1;
    }

    fn sweep(&mut self) {
        let Some(before) = self.rows.head else { return };
        let head = self.head() as u64;
        let window = Window {
            events: self.rng.random_range(1..=40),
            age_us: self.rng.random_range(1..=60),
        };
        // One event is committed every microsecond.
        let now_us = head as i64 + self.rng.random_range(0..=20);
        let mut effort = Effort {
            frames: self.rng.random_range(0..=4),
            bytes: self.rng.random_range(0..=4) * limit::FRAME_PADDED_BYTES,
        };
        let frames_before = self.rows.frames.clone();
        let swept = sweep(&mut self.rows, window, now_us, &mut effort);

        let gone = frames_before.len() - self.rows.frames.len();
        assert_eq!(
            self.rows.frames,
            frames_before[gone..],
            "only the oldest frames leave, and each leaves whole"
        );
        let past_count = window.past_count(seq(head as usize));
        for stored in &frames_before[..gone] {
            let for_count = stored.frame.last_seq <= past_count;
            let for_age = window.is_past_age(stored.last_at_us, now_us);
            assert!(for_count || for_age, "{stored:?} was still inside the window");
            self.seen.swept_for_count += u64::from(for_count);
            self.seen.swept_for_age += u64::from(!for_count);
        }
        match swept {
            Swept::Unfinished => self.seen.unfinished += 1,
            Swept::Done { look_at_us } => {
                if let Some(first) = self.rows.frames.first() {
                    assert!(first.frame.last_seq > past_count, "{first:?} is past the count");
                    let leaves_at = window.leaves_at(first.last_at_us);
                    assert!(leaves_at >= now_us, "{first:?} is too old");
                    assert!(look_at_us <= leaves_at);
                }
                assert!(look_at_us >= now_us);
            }
        }
        assert!(self.rows.head.unwrap().oldest_seq >= before.oldest_seq);
    }

    fn rewind(&mut self) {
        let log = self.authority();
        let at = self.rng.random_range(log.len().saturating_sub(3 * REACH)..=log.len());
        let target = head_of(&log[..at]);
        let most_events = self.rng.random_range(1..=16);
        let is_whole = self.rng.random_bool(0.8);
        for steps in 0.. {
            let held_before = self.head() - self.held_after();
            let seen = self.rows.head.unwrap_or_else(|| HeadRow::start(&stream())).head;
            let (step, left) = step(&mut self.rows, &stream(), target, None, seen, most_events).unwrap();
            assert_eq!(left, self.rows.head.unwrap().head);
            match step {
                Step::Done => assert_eq!(steps, 0, "only the first step may find nothing to do"),
                Step::Cut { after } => {
                    assert!(seen.seq.since(after) <= most_events);
                    self.events.truncate(after.get() as usize);
                    self.seen.cuts += 1;
                }
                Step::Drop => panic!("the log is not broken, so no step may drop frames"),
                Step::Begin => {
                    assert!(
                        held_before as u64 <= most_events,
                        "one step removed {held_before} events"
                    );
                    self.events = log[..at].to_vec();
                    self.seen.beginnings += 1;
                }
            }
            self.check();
            if left == target {
                break;
            }
            assert_ne!(step, Step::Done);
            if !is_whole && steps > 0 {
                // The caller may stop here: after every step the log is valid.
                break;
            }
        }
    }

    /// The invariants that hold after each step.
    fn check(&self) {
        let Some(row) = self.rows.head else {
            return assert_eq!(self.rows, MemoryLog::default());
        };
        assert_eq!(row.head, head_of(&self.events));
        assert!(row.oldest_seq <= row.head.seq.next());
        let mut reached = row.held_after();
        for stored in &self.rows.frames {
            let FrameRow {
                first_seq,
                last_seq,
                base_chain,
                ..
            } = stored.frame;
            assert_eq!(first_seq, reached.next(), "each frame follows the one before");
            let before = head_of(&self.events[..reached.get() as usize]);
            assert_eq!(base_chain, before.chain);
            let frame = stored.decode().unwrap();
            assert_eq!(frame.last_seq(), last_seq);
            assert_eq!(frame.last_at_us(), stored.last_at_us);
            assert_eq!(
                frame.last_chain(),
                head_of(&self.events[..last_seq.get() as usize]).chain
            );
            reached = last_seq;
        }
        assert_eq!(reached, row.head.seq, "the last frame ends at the head");
    }

    fn turn(&mut self) {
        match self.rng.random_range(0..100) {
            0..55 => self.append(),
            55..75 => self.read(),
            75..85 => self.sweep(),
            85..88 => self.rewind(),
            _ => self.branch(),
        }
        self.check();
    }
}

fn seq(value: usize) -> Seq {
    Seq::new(value as u64).unwrap()
}

#[test]
fn after_any_operations_the_rows_are_one_log_and_match_the_head_row() {
    let mut seen = Seen::default();
    for seed in 0..200 {
        let mut world = World::new(seed);
        (0..300).for_each(|_| world.turn());
        let of_run = world.seen;
        seen.extended += of_run.extended;
        seen.absorbed += of_run.absorbed;
        seen.refused += of_run.refused;
        seen.pages += of_run.pages;
        seen.swept_for_count += of_run.swept_for_count;
        seen.swept_for_age += of_run.swept_for_age;
        seen.unfinished += of_run.unfinished;
        seen.cuts += of_run.cuts;
        seen.beginnings += of_run.beginnings;
    }
    // A run in which a case never occurs proves nothing about it.
    for (what, count) in [
        ("extended", seen.extended),
        ("absorbed", seen.absorbed),
        ("refused", seen.refused),
        ("pages", seen.pages),
        ("swept for the count", seen.swept_for_count),
        ("swept for the age", seen.swept_for_age),
        ("unfinished sweeps", seen.unfinished),
        ("cuts", seen.cuts),
        ("beginnings", seen.beginnings),
    ] {
        assert!(count > 100, "{what}: {count}");
    }
}
