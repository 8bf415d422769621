use super::*;

#[test]
fn a_stream_that_halts_during_its_comparison_stays_halted() {
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
fn a_refill_sets_the_published_seq_forwards_or_backwards() {
    let mut bench = Bench::new();
    bench.found("a", 7, 90);
    let sent = calls(&bench.page("a", vec![prepared(8, 8)]));
    bench.step(Input::Refused(sent[0].0, refusal(RefusalCode::SeqGap)));
    bench.page("a", vec![prepared(9, 9)]);
    let (stream_id, after) = (stream("a"), seq(80));
    let refill = Effect::Refill {
        stream_id: stream_id.clone(),
        seen: position(0),
        after,
    };
    assert_eq!(bench.learned("a", Verdict::Refill(after)), [refill]);
    let set_back = Effect::SetBack { stream_id, seq: after };
    assert_eq!(bench.compared("a", Finding::Filled(after)), [set_back]);
    assert_eq!(reads(&bench.later(1_000)), [("a".to_owned(), 80)]);
}

#[test]
fn a_stream_that_the_sweep_has_not_compared_flows_once_it_is_compared() {
    let mut bench = Bench::new();
    bench.swept = Coverage::Through(stream("b"));
    assert_eq!(reads(&bench.found("a", 0, 2)), [("a".to_owned(), 0)]);
    assert_eq!(bench.found("c", 7, 9), [Effect::Compare(stream("c"))]);
    assert_eq!(bench.found("c", 7, 9), [], "one request is enough");
    let flows = bench.learned("c", Verdict::Behind(seq(5)));
    assert_eq!(reads(&flows), [("c".to_owned(), 5)]);
}

#[test]
fn a_stream_that_the_sweep_finds_in_step_is_not_remembered() {
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
    let (verdict, held, head) = (Verdict::Behind(seq(4)), position(4), seq(9));
    let out = bench.compared("a", Finding::Compared { verdict, held, head });
    assert_eq!(reads(&out), [("a".to_owned(), 4)]);
}

#[test]
fn a_refill_that_keeps_failing_halts_its_stream_in_the_end() {
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
fn a_window_is_not_refilled_twice_at_once() {
    let mut bench = Bench::new();
    assert_eq!(bench.learned("a", Verdict::Refill(seq(5))).len(), 1);
    assert_eq!(bench.learned("a", Verdict::Refill(seq(5))), []);
    assert_eq!(bench.compared("a", Finding::NotCompared), []);
    assert_eq!(bench.later(10_000), []);
    assert_eq!(bench.compared("a", Finding::Filled(seq(5))).len(), 1);
}

#[test]
fn a_stream_that_waits_to_be_compared_ignores_the_end_of_a_refill() {
    let mut bench = Bench::new();
    bench.swept = Coverage::None;
    assert_eq!(bench.found("a", 7, 9), [Effect::Compare(stream("a"))]);
    assert_eq!(bench.compared("a", Finding::Filled(seq(5))), []);
    assert_eq!(
        reads(&bench.learned("a", Verdict::Behind(seq(3)))),
        [("a".to_owned(), 3)]
    );
}

#[test]
fn the_published_seq_of_a_halted_stream_follows_what_spacetimedb_holds() {
    let mut bench = Bench::new();
    bench.step(Input::Halt(stream("a"), HaltReason::AheadOfAuthority));
    let (stream_id, at) = (|| stream("a"), seq(4));
    for (verdict, expected) in [
        (
            Verdict::InStep(at),
            Some(Effect::Holds {
                stream_id: stream_id(),
                seq: at,
            }),
        ),
        (
            Verdict::Ahead(at),
            Some(Effect::Advance {
                stream_id: stream_id(),
                seq: at,
            }),
        ),
        (
            Verdict::Behind(at),
            Some(Effect::SetBack {
                stream_id: stream_id(),
                seq: at,
            }),
        ),
        (Verdict::Refill(at), None),
        (Verdict::Unknown, None),
        (Verdict::Apart(HaltReason::AheadOfAuthority), None),
    ] {
        assert_eq!(bench.learned("a", verdict), Vec::from_iter(expected));
    }
    assert!(bench.core.is_halted(&stream("a")));
}

#[test]
fn a_comparison_that_fails_for_a_passing_reason_never_halts_its_stream() {
    let mut bench = Bench::new();
    bench.swept = Coverage::None;
    bench.found("a", 0, 9);
    for _ in 0..20 {
        assert_eq!(bench.compared("a", Finding::NotCompared), []);
        assert_eq!(bench.later(10_000), [Effect::Compare(stream("a"))]);
    }
}

#[test]
fn a_stream_whose_published_seq_stays_below_what_spacetimedb_held_is_compared() {
    let mut bench = Bench::new();
    bench.found("a", 0, 3);
    let sent = calls(&bench.page("a", vec![prepared(1, 3)]));
    for _ in 0..3 {
        assert_eq!(bench.found("a", 0, 3), [], "the call is under way");
    }
    bench.step(Input::Acked(sent[0].0));
    let shown_less = || [Effect::ShownLess(stream("a"))];
    assert_eq!(bench.found("a", 0, 3), [], "the look may be older than the record");
    assert_eq!(bench.found("a", 1, 3), [], "it moves");
    assert_eq!(bench.found("a", 1, 3), shown_less());
    assert_eq!(bench.step(Input::Doubted(stream("a"))), [Effect::Compare(stream("a"))]);
    assert_eq!(bench.found("a", 1, 3), [], "one request is enough");
    assert_eq!(bench.step(Input::Doubted(stream("a"))), []);
    assert_eq!(advances(&bench.learned("a", Verdict::Ahead(seq(3)))), [3]);
}

#[test]
fn an_outdated_published_seq_is_ignored_until_it_is_set_back() {
    let mut bench = Bench::new();
    bench.found("a", 7, 9);
    let sent = calls(&bench.page("a", vec![prepared(8, 9)]));
    bench.step(Input::Refused(sent[0].0, refusal(RefusalCode::SeqGap)));
    bench.learned("a", Verdict::Behind(seq(3)));
    // A writer holds the stream's row, so the set-back is not recorded yet.
    assert_eq!(reads(&bench.found("a", 7, 9)), []);
    assert_eq!(reads(&bench.later(10_000)), [("a".to_owned(), 3)]);
}

#[test]
fn a_stream_at_rest_that_is_doubted_is_compared_and_one_that_sends_is_not() {
    let mut bench = Bench::new();
    bench.found("a", 0, 9);
    let sent = calls(&bench.page("a", vec![prepared(1, 9)]));
    assert_eq!(bench.step(Input::Doubted(stream("a"))), [], "a call is in flight");
    bench.step(Input::Acked(sent[0].0));
    assert_eq!(bench.step(Input::Doubted(stream("a"))), [Effect::Compare(stream("a"))]);
    assert_eq!(bench.step(Input::Doubted(stream("a"))), [], "it is being compared");
    // Nobody remembers this one.
    assert_eq!(bench.step(Input::Doubted(stream("b"))), [Effect::Compare(stream("b"))]);
}

#[test]
fn a_forgery_goes_and_what_this_bridge_published_before_it_stays() {
    for (held, after) in [(11, 9), (9, 5), (4, 5)] {
        let mut bench = Bench::new();
        bench.found("a", 0, 9);
        let sent = calls(&bench.page("a", vec![prepared(1, 9)]));
        bench.step(Input::Acked(sent[0].0));
        bench.step(Input::Doubted(stream("a")));
        let (held, head, verdict) = (position(held), seq(9), Verdict::Refill(seq(5)));
        let refill = Effect::Refill {
            stream_id: stream("a"),
            seen: held,
            after: seq(after),
        };
        assert_eq!(bench.compared("a", Finding::Compared { verdict, held, head }), [refill]);
    }
}

#[test]
fn a_refilled_stream_has_all_its_attempts_again() {
    let mut bench = Bench::new();
    bench.found("a", 0, 9);
    for _ in 0..=LIMITS.attempts {
        let sent = calls(&bench.page("a", vec![prepared(1, 1)]));
        let out = bench.step(Input::Refused(sent[0].0, refusal(RefusalCode::EventConflict)));
        assert_eq!(out, [Effect::Compare(stream("a"))]);
        // The next page was being read.
        bench.page("a", vec![]);
        bench.learned("a", Verdict::Refill(seq(0)));
        bench.compared("a", Finding::Filled(seq(0)));
        assert_eq!(reads(&bench.later(60_000)), [("a".to_owned(), 0)]);
    }
}
