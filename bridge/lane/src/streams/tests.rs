use bytes::Bytes;

use super::*;
use crate::ids::Ids;

const LIMITS: Limits = Limits {
    reads: 2,
    calls: 3,
    bytes: 100,
    idle_streams: 10,
    attempts: 2,
};

/// The streams with their clock, on a link whose sweep has passed all of them.
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

/// A frame of ten bytes that holds `first..=last`.
fn prepared(first: u64, last: u64) -> ReadyFrame {
    ReadyFrame {
        row: FrameRow {
            first_seq: seq(first),
            last_seq: seq(last),
            base_chain: chain(first - 1),
            bytes: Bytes::from_static(&[0; 10]),
        },
        last_chain: chain(last),
    }
}

impl Bench {
    fn new() -> Self {
        let mut bench = Self {
            core: Streams::new(LIMITS),
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
        assert!(idle <= LIMITS.idle_streams, "{idle} are idle");
        out
    }

    fn found(&mut self, name: &str, published: u64, head: u64) -> Vec<Effect> {
        self.step(Input::Found {
            progress: vec![StreamProgress {
                stream_id: stream(name),
                head_seq: seq(head),
                published_seq: seq(published),
                floor_seq: Seq::ZERO,
            }],
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
        let (held, head) = (Seq::ZERO, Seq::ZERO);
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
            Effect::Append { call, frame, .. } => Some((*call, frame.first_seq.get(), frame.last_seq.get())),
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
fn the_next_page_is_read_while_the_last_one_is_in_flight() {
    let mut bench = Bench::new();
    bench.found("a", 0, 10);
    let out = bench.page("a", vec![prepared(1, 5)]);
    assert_eq!(calls(&out).len(), 1);
    assert_eq!(reads(&out), [("a".to_owned(), 5)]);
}

#[test]
fn nothing_is_read_or_sent_past_the_bounds() {
    let mut bench = Bench::new();
    for name in ["a", "b", "c"] {
        bench.found(name, 0, 100);
    }
    assert_eq!(bench.core.reads, 2, "two reads at once");
    let out = bench.page("a", (1..=10).map(|at| prepared(at, at)).collect());
    assert_eq!(calls(&out).len(), 3, "three calls at once");
    assert_eq!(reads(&out), [], "a hundred bytes are under way");
    let first = calls(&out)[0].0;
    assert_eq!(calls(&bench.step(Input::Acked(first))).len(), 1);
}

#[test]
fn idle_streams_are_forgotten_past_their_bound_and_busy_ones_never() {
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
fn a_stream_that_turns_out_to_be_published_is_idle_after_its_rest() {
    let mut bench = Bench::new();
    bench.found("a", 0, 1);
    let sent = calls(&bench.page("a", vec![prepared(1, 1)]));
    bench.step(Input::Lost(sent[0].0, "trapped".to_owned()));
    assert_eq!(advances(&bench.learned("a", Verdict::Ahead(seq(1)))), [1]);
    assert_eq!(bench.core.load().busy_streams, 1);
    bench.later(10_000);
    assert_eq!(bench.core.load(), Load::default());
}

#[test]
fn streams_take_turns() {
    let mut bench = Bench::new();
    bench.found("a", 0, 100);
    bench.found("b", 0, 100);
    let mut flying = calls(&bench.page("a", (1..=6).map(|at| prepared(at, at)).collect()));
    bench.page("b", vec![prepared(1, 1), prepared(2, 2)]);
    let mut turns = Vec::new();
    for _ in 0..4 {
        let out = bench.step(Input::Acked(flying.remove(0).0));
        flying.extend(calls(&out));
        turns.extend(out.iter().filter_map(|effect| match effect {
            Effect::Append { stream_id, .. } => Some(stream_id.to_string()),
            _ => None,
        }));
    }
    assert_eq!(turns, ["a", "b", "a", "b"]);
}

#[test]
fn a_refused_stream_is_halted_and_the_others_run_on() {
    let mut bench = Bench::new();
    bench.found("a", 0, 9);
    bench.found("b", 0, 9);
    let a = calls(&bench.page("a", vec![prepared(1, 1), prepared(2, 2)]));
    let halted = bench.step(Input::Refused(a[0].0, refusal(RefusalCode::EventConflict)));
    assert!(
        !halted.iter().any(|effect| matches!(effect, Effect::Halted { .. })),
        "one call is still in flight"
    );
    let halted = bench.step(Input::Refused(a[1].0, refusal(RefusalCode::SeqGap)));
    assert!(
        matches!(&halted[..], [Effect::Halted { reason: HaltReason::Refused(why), .. }] if why.code == RefusalCode::EventConflict),
        "the first refusal is the reason: {halted:?}"
    );
    assert_eq!(reads(&bench.found("a", 0, 20)), []);
    assert_eq!(calls(&bench.page("b", vec![prepared(1, 1)])).len(), 1);
    bench.step(Input::LinkDown);
    bench.link_up();
    assert_eq!(reads(&bench.found("a", 0, 20)), [], "halted over a reconnect, too");
    assert_eq!(bench.core.load().halted_streams, 1);
}

#[test]
fn a_gap_is_answered_by_learning_the_head() {
    let mut bench = Bench::new();
    bench.found("a", 7, 9);
    let sent = calls(&bench.page("a", vec![prepared(8, 8), prepared(9, 9)]));
    bench.step(Input::Refused(sent[0].0, refusal(RefusalCode::SeqGap)));
    let out = bench.step(Input::Refused(sent[1].0, refusal(RefusalCode::SeqGap)));
    assert!(matches!(out[..], [Effect::Compare(_)]));
    let out = bench.learned("a", Verdict::Behind(seq(3)));
    assert!(matches!(&out[..], [Effect::SetBack { seq: to, .. }] if *to == seq(3)));
    assert_eq!(reads(&bench.later(10_000)), [("a".to_owned(), 3)]);
}

#[test]
fn a_page_asked_for_before_a_setback_is_not_used() {
    let mut bench = Bench::new();
    bench.found("a", 7, 30);
    let out = bench.page("a", vec![prepared(8, 8)]);
    assert_eq!(reads(&out), [("a".to_owned(), 8)]);
    bench.step(Input::Refused(calls(&out)[0].0, refusal(RefusalCode::SeqGap)));
    bench.learned("a", Verdict::Behind(seq(3)));
    bench.later(10_000);
    let out = bench.page("a", vec![prepared(9, 9)]);
    assert_eq!((calls(&out).len(), reads(&out)), (0, vec![("a".to_owned(), 3)]));
}

#[test]
fn a_stream_that_keeps_failing_is_halted_in_the_end() {
    let mut bench = Bench::new();
    bench.found("a", 0, 1);
    for attempt in 0..=LIMITS.attempts {
        let sent = calls(&bench.page("a", vec![prepared(1, 1)]));
        let out = bench.step(Input::Lost(sent[0].0, "trapped".to_owned()));
        if attempt < LIMITS.attempts {
            assert!(matches!(out[..], [Effect::Compare(_)]), "{attempt}: {out:?}");
            bench.learned("a", Verdict::InStep(seq(0)));
            assert_eq!(reads(&bench.later(60_000)), [("a".to_owned(), 0)]);
        } else {
            assert!(matches!(
                &out[..],
                [Effect::Halted {
                    reason: HaltReason::Failing { attempts: 2, .. },
                    ..
                }]
            ));
        }
    }
}

#[test]
fn a_stream_whose_gap_does_not_close_is_halted_in_the_end() {
    let mut bench = Bench::new();
    bench.found("a", 0, 1);
    for attempt in 0..=LIMITS.attempts {
        let sent = calls(&bench.page("a", vec![prepared(1, 1)]));
        let out = bench.step(Input::Refused(sent[0].0, refusal(RefusalCode::SeqGap)));
        if attempt < LIMITS.attempts {
            assert!(matches!(out[..], [Effect::Compare(_)]), "{attempt}: {out:?}");
            bench.learned("a", Verdict::InStep(seq(0)));
            bench.later(60_000);
        } else {
            assert!(
                matches!(
                    &out[..],
                    [Effect::Halted {
                        reason: HaltReason::Refused(_),
                        ..
                    }]
                ),
                "{out:?}"
            );
        }
    }
}

#[test]
fn a_stream_that_is_halted_while_its_head_is_asked_for_stays_halted() {
    let mut bench = Bench::new();
    bench.found("a", 7, 9);
    let sent = calls(&bench.page("a", vec![prepared(8, 8)]));
    bench.step(Input::Refused(sent[0].0, refusal(RefusalCode::SeqGap)));
    bench.step(Input::Halt(stream("a"), HaltReason::AheadOfAuthority));
    bench.learned("a", Verdict::InStep(seq(7)));
    assert_eq!(bench.later(60_000), []);
    bench.compared("a", Finding::NotCompared);
    assert_eq!(bench.later(60_000), []);
    assert!(bench.core.is_halted(&stream("a")));
}

#[test]
fn what_is_not_acknowledged_when_the_link_breaks_is_sent_again() {
    let mut bench = Bench::new();
    bench.found("a", 0, 2);
    let sent = calls(&bench.page("a", vec![prepared(1, 2)]));
    bench.step(Input::LinkDown);
    assert_eq!(
        bench.step(Input::Acked(sent[0].0)),
        [],
        "an answer of the old link says nothing"
    );
    bench.link_up();
    assert_eq!(reads(&bench.found("a", 0, 2)), [("a".to_owned(), 0)]);
}

#[test]
fn a_page_that_cannot_be_read_is_asked_for_ever_more_seldom() {
    let mut bench = Bench::new();
    let failed = |bench: &mut Bench| {
        let (link, stream_id) = (bench.link(), stream("a"));
        bench.step(Input::PageFailed { link, stream_id })
    };
    bench.found("a", 0, 9);
    for wait in [50, 100, 200, 400, 800, 1_600, 3_200, 3_200] {
        assert_eq!(failed(&mut bench), []);
        assert_eq!(
            reads(&bench.found("a", 0, 9)),
            [],
            "a look at the authority is no reason"
        );
        assert_eq!(bench.later(wait - 1), []);
        assert_eq!(reads(&bench.later(1)), [("a".to_owned(), 0)]);
    }
    let sent = calls(&bench.page("a", vec![prepared(1, 1)]));
    assert_eq!(failed(&mut bench), [], "the next one, while a call is in flight");
    let acked = bench.step(Input::Acked(sent[0].0));
    assert_eq!(reads(&acked), [("a".to_owned(), 1)]);
    failed(&mut bench);
    assert_eq!(
        reads(&bench.later(50)),
        [("a".to_owned(), 1)],
        "from the shortest rest on"
    );
}

#[test]
fn what_makes_every_call_fail_drops_the_link() {
    for code in [
        RefusalCode::Unauthorized,
        RefusalCode::TokenRevoked,
        // A fresh token may do, and the stream has nothing to do with it.
        RefusalCode::TokenExpired,
        RefusalCode::TokenNotYetValid,
        RefusalCode::TokenTooOld,
    ] {
        let mut bench = Bench::new();
        bench.found("a", 0, 2);
        let sent = calls(&bench.page("a", vec![prepared(1, 2)]));
        let out = bench.step(Input::Refused(sent[0].0, refusal(code)));
        assert!(matches!(&out[..], [Effect::DropLink(why)] if why.code == code));
    }
}

#[test]
fn a_broken_log_halts_after_what_is_sound_is_out() {
    let mut bench = Bench::new();
    bench.found("a", 0, 9);
    let sent = calls(&bench.page("a", vec![prepared(1, 2)]));
    let bad = Page::Broken(HaltReason::BrokenLog("seq 5 follows seq 2".to_owned()));
    let out = bench.step(Input::Page {
        link: bench.link(),
        stream_id: stream("a"),
        page: bad,
    });
    assert_eq!(out, []);
    let out = bench.step(Input::Acked(sent[0].0));
    assert_eq!(advances(&out), [2]);
    assert!(out.iter().any(|effect| matches!(
        effect,
        Effect::Halted {
            reason: HaltReason::BrokenLog(_),
            ..
        }
    )));
}

#[test]
fn a_drain_sends_what_was_read_and_reads_no_more() {
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
fn another_bridge_that_is_ahead_is_followed() {
    let mut bench = Bench::new();
    bench.found("a", 0, 2);
    let sent = calls(&bench.page("a", vec![prepared(1, 2)]));
    bench.step(Input::Acked(sent[0].0));
    assert_eq!(reads(&bench.found("a", 5, 8)), [("a".to_owned(), 5)]);
}

mod pages {
    use super::*;
    use spacetime_sync_proto::{Event, Frame, IdempotencyKey, Kind, PayloadHash};

    fn log(sizes: &[usize]) -> Vec<Event> {
        let mut chain = ChainHash::genesis(&stream("a"));
        (1u64..)
            .zip(sizes)
            .map(|(at, size)| {
                let payload = Bytes::from(vec![7; *size]);
                let (key, kind) = (IdempotencyKey::new(&format!("k{at}")).unwrap(), Kind::new("t").unwrap());
                let payload_hash = PayloadHash::of(&payload);
                chain = chain.link(seq(at), 0, &payload_hash, &key, &kind);
                Event {
                    seq: seq(at),
                    idempotency_key: key,
                    kind,
                    payload,
                    payload_hash,
                    chain_hash: chain,
                    committed_at_us: 0,
                }
            })
            .collect()
    }

    fn prepare_all(events: &[Event], frame_bytes: usize) -> Result<Vec<ReadyFrame>, HaltReason> {
        prepare(Seq::ZERO, ChainHash::genesis(&stream("a")), events, frame_bytes)
    }

    #[test]
    fn a_page_becomes_frames_that_hold_all_of_it() {
        let events = log(&[100, 300, 100, 5_000, 10, 10]);
        let frames = prepare_all(&events, 600).unwrap();
        let cuts: Vec<_> = frames
            .iter()
            .map(|frame| (frame.row.first_seq.get(), frame.row.last_seq.get()))
            .collect();
        assert_eq!(cuts, [(1, 2), (3, 3), (4, 4), (5, 6)]);
        let mut held = Vec::new();
        for frame in frames {
            let decoded = Frame::decode(frame.row.first_seq.get(), frame.row.base_chain, frame.row.bytes).unwrap();
            assert_eq!(decoded.last_chain(), frame.last_chain);
            held.extend(decoded.into_events_after(Seq::ZERO));
        }
        assert_eq!(held, events);
    }

    #[test]
    fn a_log_that_is_not_what_it_claims_is_found_out() {
        let broken = |change: fn(&mut Vec<Event>)| {
            let mut events = log(&[5; 4]);
            change(&mut events);
            prepare_all(&events, 10_000).map(|_| ())
        };
        assert_eq!(broken(|_| {}), Ok(()));
        for (name, answer) in [
            ("a gap", broken(|events| drop(events.remove(1)))),
            (
                "a payload",
                broken(|events| events[2].payload = Bytes::from_static(b"other")),
            ),
            ("a kind", broken(|events| events[2].kind = Kind::new("u").unwrap())),
            ("a link", broken(|events| events[1].chain_hash = chain(9))),
        ] {
            assert!(matches!(answer, Err(HaltReason::BrokenLog(_))), "{name}");
        }
    }
}

#[test]
fn what_an_operator_has_put_right_is_looked_at_anew() {
    let mut bench = Bench::new();
    bench.step(Input::Halt(stream("a"), HaltReason::AheadOfAuthority));
    bench.step(Input::LinkDown);
    bench.step(Input::Anew);
    bench.link_up();
    assert_eq!(reads(&bench.found("a", 0, 20)), [("a".to_owned(), 0)]);
    assert_eq!(bench.core.load().halted_streams, 0);
}

#[test]
fn a_window_that_began_anew_is_recorded_whichever_side_of_it_was_published() {
    let mut bench = Bench::new();
    bench.found("a", 7, 90);
    let sent = calls(&bench.page("a", vec![prepared(8, 8)]));
    bench.step(Input::Refused(sent[0].0, refusal(RefusalCode::SeqGap)));
    bench.page("a", vec![prepared(9, 9)]);
    let (stream_id, after) = (stream("a"), seq(80));
    let refill = Effect::Refill {
        stream_id: stream_id.clone(),
        seen: Seq::ZERO,
        after,
    };
    assert_eq!(bench.learned("a", Verdict::Refill(after)), [refill]);
    let set_back = Effect::SetBack { stream_id, seq: after };
    assert_eq!(bench.compared("a", Finding::Filled(after)), [set_back]);
    assert_eq!(reads(&bench.later(1_000)), [("a".to_owned(), 80)]);
}

#[test]
fn a_stream_that_the_sweep_has_not_passed_is_compared_first_and_flows_at_once() {
    let mut bench = Bench::new();
    bench.swept = Coverage::Through(stream("b"));
    assert_eq!(reads(&bench.found("a", 0, 2)), [("a".to_owned(), 0)]);
    assert_eq!(bench.found("c", 7, 9), [Effect::Compare(stream("c"))]);
    assert_eq!(bench.found("c", 7, 9), [], "it is asked for once");
    let flows = bench.learned("c", Verdict::Behind(seq(5)));
    assert_eq!(reads(&flows), [("c".to_owned(), 5)]);
}

#[test]
fn what_the_sweep_finds_in_step_is_not_remembered() {
    let mut bench = Bench::new();
    let holds = Effect::Holds {
        stream_id: stream("a"),
        seq: seq(9),
    };
    assert_eq!(bench.learned("a", Verdict::InStep(seq(9))), [holds]);
    assert_eq!(advances(&bench.learned("a", Verdict::Ahead(seq(9)))), [9]);
    assert!(bench.core.streams.is_empty());
}

#[test]
fn a_stream_that_the_sweep_finds_behind_flows_without_waiting_for_its_record() {
    let mut bench = Bench::new();
    let (verdict, held, head) = (Verdict::Behind(seq(4)), seq(4), seq(9));
    let out = bench.compared("a", Finding::Compared { verdict, held, head });
    assert_eq!(reads(&out), [("a".to_owned(), 4)]);
}

#[test]
fn a_window_that_cannot_be_filled_is_tried_again_and_halts_its_stream_in_the_end() {
    let mut bench = Bench::new();
    bench.swept = Coverage::None;
    bench.found("a", 0, 9);
    let not_filled = || Finding::NotFilled {
        message: "trapped".to_owned(),
        counts: true,
    };
    for _ in 0..LIMITS.attempts {
        bench.learned("a", Verdict::Refill(seq(5)));
        assert_eq!(bench.compared("a", not_filled()), []);
        assert_eq!(bench.later(10_000), [Effect::Compare(stream("a"))]);
    }
    bench.learned("a", Verdict::Refill(seq(5)));
    let halted = bench.compared("a", not_filled());
    assert!(
        matches!(
            &halted[..],
            [Effect::Halted {
                reason: HaltReason::Failing { .. },
                ..
            }]
        ),
        "{halted:?}"
    );
}

#[test]
fn a_window_that_is_being_filled_is_not_filled_a_second_time() {
    let mut bench = Bench::new();
    assert_eq!(bench.learned("a", Verdict::Refill(seq(5))).len(), 1);
    assert_eq!(bench.learned("a", Verdict::Refill(seq(5))), []);
    assert_eq!(bench.compared("a", Finding::NotCompared), []);
    assert_eq!(bench.later(10_000), []);
    assert_eq!(bench.compared("a", Finding::Filled(seq(5))).len(), 1);
}

#[test]
fn a_comparison_that_fails_for_a_reason_that_passes_is_made_again_for_ever() {
    let mut bench = Bench::new();
    bench.swept = Coverage::None;
    bench.found("a", 0, 9);
    for _ in 0..20 {
        assert_eq!(bench.compared("a", Finding::NotCompared), []);
        assert_eq!(bench.later(10_000), [Effect::Compare(stream("a"))]);
    }
}

#[test]
fn a_record_that_is_not_yet_set_back_is_not_gone_by() {
    let mut bench = Bench::new();
    bench.found("a", 7, 9);
    let sent = calls(&bench.page("a", vec![prepared(8, 9)]));
    bench.step(Input::Refused(sent[0].0, refusal(RefusalCode::SeqGap)));
    bench.learned("a", Verdict::Behind(seq(3)));
    // A writer holds the stream's row: the rewind waits to be written down.
    assert_eq!(reads(&bench.found("a", 7, 9)), []);
    assert_eq!(reads(&bench.later(10_000)), [("a".to_owned(), 3)]);
}
