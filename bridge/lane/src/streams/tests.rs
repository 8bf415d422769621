mod calls;
mod findings;
mod pages;

use bytes::Bytes;
use spacetime_sync_proto::{FrameRow, RefusalCode};

use super::*;
use crate::ids::Ids;

const LIMITS: Limits = Limits {
    reads: 2,
    calls: 3,
    bytes: 100,
    idle_streams: 10,
    attempts: 2,
};

/// The streams with a clock, on a link whose sweep has compared all of them.
struct Bench {
    core: Streams,
    now: Duration,
    ids: Ids,
    swept: Coverage,
}

fn stream(name: &str) -> StreamId {
    StreamId::new(name).unwrap()
}

fn seq(value: u64) -> Seq {
    Seq::new(value).unwrap()
}

fn chain(value: u64) -> ChainHash {
    ChainHash::from_bytes([value as u8; 32])
}

fn position(value: u64) -> Position {
    Position {
        seq: seq(value),
        chain: chain(value),
    }
}

/// A frame of ten bytes with the events `first..=last`.
fn prepared(first: u64, last: u64) -> ReadyFrame {
    ReadyFrame {
        row: FrameRow {
            first_seq: seq(first),
            last_seq: seq(last),
            base_chain: chain(first - 1),
            bytes: Bytes::from_static(&[0; 10]),
        },
        last_chain: chain(last),
        last_at_us: 0,
    }
}

impl Bench {
    fn new() -> Self {
        Self::within(LIMITS)
    }

    fn within(limits: Limits) -> Self {
        let mut bench = Self {
            core: Streams::new(limits),
            now: Duration::ZERO,
            ids: Ids::default(),
            swept: Coverage::All,
        };
        bench.link_up();
        bench
    }

    fn link_up(&mut self) {
        let link = self.ids.link();
        self.step(Input::LinkUp(link));
    }

    fn step(&mut self, input: Input) -> Vec<Effect> {
        let mut out = Vec::new();
        self.core.step(self.now, input, &mut out);
        let streams = || self.core.streams.values();
        let busy = streams().filter(|stream| stream.is_busy()).count();
        let idle = streams().filter(|stream| stream.is_idle()).count();
        let Load {
            busy_streams,
            halted_streams,
            ..
        } = self.core.load();
        assert_eq!((busy_streams, halted_streams), (busy, self.core.halted().count()));
        assert!(idle <= self.core.limits.idle_streams, "{idle} streams are idle");
        out
    }

    fn found(&mut self, name: &str, published: u64, head: u64) -> Vec<Effect> {
        self.looked(name, published, head, Vec::new())
    }

    /// A look finds a dirty stream, and brings frames.
    fn looked(&mut self, name: &str, published: u64, head: u64, frames: Vec<ReadyFrame>) -> Vec<Effect> {
        let progress = vec![StreamProgress {
            stream_id: stream(name),
            head_seq: seq(head),
            published_seq: seq(published),
            floor_seq: Seq::ZERO,
        }];
        let frames = [(stream(name), frames)].into();
        self.step(Input::Found {
            looked: Looked { progress, frames },
            swept: self.swept.clone(),
        })
    }

    fn link(&self) -> LinkId {
        self.core.link.unwrap()
    }

    fn page(&mut self, name: &str, frames: Vec<ReadyFrame>) -> Vec<Effect> {
        self.step(Input::Page {
            link: self.link(),
            stream_id: stream(name),
            page: Page::Frames(frames),
        })
    }

    fn learned(&mut self, name: &str, verdict: Verdict) -> Vec<Effect> {
        let (held, head) = (position(0), Seq::ZERO);
        self.compared(name, Finding::Compared { verdict, held, head })
    }

    fn compared(&mut self, name: &str, finding: Finding) -> Vec<Effect> {
        self.step(Input::Compared(stream(name), finding))
    }

    fn later(&mut self, millis: u64) -> Vec<Effect> {
        self.now += Duration::from_millis(millis);
        self.step(Input::Tick)
    }
}

fn reads(effects: &[Effect]) -> Vec<(String, u64)> {
    effects
        .iter()
        .filter_map(|effect| match effect {
            Effect::Read { stream_id, after, .. } => Some((stream_id.to_string(), after.get())),
            _ => None,
        })
        .collect()
}

fn calls(effects: &[Effect]) -> Vec<(CallId, u64, u64)> {
    effects
        .iter()
        .filter_map(|effect| match effect {
            Effect::Append { call, frame, .. } => Some((*call, frame.row.first_seq.get(), frame.row.last_seq.get())),
            _ => None,
        })
        .collect()
}

fn advances(effects: &[Effect]) -> Vec<u64> {
    effects
        .iter()
        .filter_map(|effect| match effect {
            Effect::Advance { seq, .. } => Some(seq.get()),
            _ => None,
        })
        .collect()
}

fn refusal(code: RefusalCode) -> Refusal {
    Refusal::new(code, "")
}

#[test]
fn a_dirty_stream_is_read_sent_and_published_only_when_durable() {
    let mut bench = Bench::new();
    assert_eq!(reads(&bench.found("a", 4, 6)), [("a".to_owned(), 4)]);
    let sent = bench.page("a", vec![prepared(5, 6)]);
    assert_eq!(advances(&sent), [0u64; 0]);
    let sent = calls(&sent);
    assert_eq!((sent[0].1, sent[0].2), (5, 6));
    assert_eq!(advances(&bench.step(Input::Acked(sent[0].0))), [6]);
    assert_eq!(bench.core.load(), Load::default());
}

#[test]
fn reads_and_calls_stay_within_the_limits() {
    let mut bench = Bench::new();
    for name in ["a", "b", "c"] {
        bench.found(name, 0, 100);
    }
    assert_eq!(bench.core.reads, 2, "two reads at once");
    assert_eq!(bench.core.load().busy_streams, 3, "the third waits for its read");
    let out = bench.page("a", (1..=10).map(|at| prepared(at, at)).collect());
    assert_eq!(calls(&out).len(), 3, "three calls at once");
    assert_eq!(reads(&out), [], "a hundred bytes are under way");
    let first = calls(&out)[0].0;
    assert_eq!(calls(&bench.step(Input::Acked(first))).len(), 1);
}

#[test]
fn idle_streams_are_forgotten_past_the_limit_and_busy_ones_never() {
    let mut bench = Bench::new();
    bench.found("busy", 0, 9);
    for number in 0..100 {
        let name = format!("s{number}");
        bench.found(&name, 0, 1);
        let sent = calls(&bench.page(&name, vec![prepared(1, 1)]));
        bench.step(Input::Acked(sent[0].0));
    }
    let mut left: Vec<_> = bench.core.streams.keys().map(StreamId::to_string).collect();
    left.sort();
    let newest = (90..100).map(|number| format!("s{number}"));
    let expected: Vec<_> = std::iter::once("busy".to_owned()).chain(newest).collect();
    assert_eq!(left, expected);
}

#[test]
fn a_drain_sends_what_was_read_and_reads_nothing_new() {
    let mut bench = Bench::new();
    bench.found("a", 0, 9);
    bench.core.drain();
    let sent = calls(&bench.page("a", vec![prepared(1, 2)]));
    assert!(!bench.core.is_drained());
    let out = bench.step(Input::Acked(sent[0].0));
    assert_eq!((reads(&out), advances(&out)), (vec![], vec![2]));
    assert!(bench.core.is_drained());
}

#[test]
fn a_stream_continues_where_another_bridge_has_published() {
    let mut bench = Bench::new();
    bench.found("a", 0, 2);
    let sent = calls(&bench.page("a", vec![prepared(1, 2)]));
    bench.step(Input::Acked(sent[0].0));
    assert_eq!(reads(&bench.found("a", 5, 8)), [("a".to_owned(), 5)]);
}

#[test]
fn after_a_repair_halted_streams_are_read_again() {
    let mut bench = Bench::new();
    bench.step(Input::Halt(stream("a"), HaltReason::AheadOfAuthority));
    bench.step(Input::LinkDown);
    bench.step(Input::Anew);
    bench.link_up();
    assert_eq!(reads(&bench.found("a", 0, 20)), [("a".to_owned(), 0)]);
    assert_eq!(bench.core.load().halted_streams, 0);
}

#[test]
fn the_sweep_need_not_compare_a_stream_that_is_busy_and_must_if_it_is_halted_or_unknown() {
    let mut bench = Bench::new();
    bench.found("busy", 0, 9);
    bench.step(Input::Halt(stream("halted"), HaltReason::AheadOfAuthority));
    let met = ["busy", "halted", "unknown"].map(|name| bench.core.is_met(&stream(name)));
    assert_eq!(met, [true, false, false]);
}
