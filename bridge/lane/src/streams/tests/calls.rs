use super::*;

#[test]
fn a_refusal_halts_its_stream_and_the_others_continue() {
    let mut bench = Bench::new();
    bench.found("a", 0, 9);
    bench.found("b", 0, 9);
    let a = calls(&bench.page("a", vec![prepared(1, 1), prepared(2, 2)]));
    let halted = bench.step(Input::Refused(a[0].0, refusal(RefusalCode::InvalidArgument)));
    assert!(
        !halted.iter().any(|effect| matches!(effect, Effect::Halted { .. })),
        "one call is still in flight"
    );
    let halted = bench.step(Input::Refused(a[1].0, refusal(RefusalCode::SeqGap)));
    assert!(
        matches!(&halted[..], [Effect::Halted { reason: HaltReason::Refused(why), .. }] if why.code == RefusalCode::InvalidArgument),
        "the first refusal is the reason: {halted:?}"
    );
    assert_eq!(reads(&bench.found("a", 0, 20)), []);
    let out = bench.page("b", vec![prepared(1, 1)]);
    assert_eq!((calls(&out).len(), reads(&out)), (1, vec![("b".to_owned(), 1)]));
    bench.step(Input::LinkDown);
    bench.link_up();
    assert_eq!(reads(&bench.found("a", 0, 20)), [], "it stays halted on the next link");
    assert_eq!(bench.core.load().halted_streams, 1);
}

#[test]
fn after_a_gap_the_stream_is_compared_and_continues_at_the_head() {
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
fn a_stream_whose_log_does_not_fit_is_compared_and_halted_in_the_end() {
    for (code, comparisons) in [
        (RefusalCode::SeqGap, LIMITS.attempts),
        (RefusalCode::ChainMismatch, LIMITS.attempts + 1),
        (RefusalCode::EventConflict, LIMITS.attempts + 1),
        (RefusalCode::BelowWindow, LIMITS.attempts + 1),
    ] {
        keeps_refusing(code, comparisons);
    }
}

fn keeps_refusing(code: RefusalCode, comparisons: u32) {
    let mut bench = Bench::new();
    bench.found("a", 0, 1);
    for attempt in 0..=comparisons {
        let sent = calls(&bench.page("a", vec![prepared(1, 1)]));
        let out = bench.step(Input::Refused(sent[0].0, refusal(code)));
        if attempt < comparisons {
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
fn a_forgery_is_looked_for_even_if_all_attempts_went_to_other_failures() {
    for code in [
        RefusalCode::ChainMismatch,
        RefusalCode::EventConflict,
        RefusalCode::BelowWindow,
    ] {
        let mut bench = Bench::new();
        bench.found("a", 0, 1);
        for attempt in 0..=LIMITS.attempts {
            let sent = calls(&bench.page("a", vec![prepared(1, 1)]));
            let failure = if attempt < LIMITS.attempts {
                Input::Lost(sent[0].0, "trapped".to_owned())
            } else {
                Input::Refused(sent[0].0, refusal(code))
            };
            assert!(
                matches!(bench.step(failure)[..], [Effect::Compare(_)]),
                "{code:?}: {attempt}"
            );
            bench.learned("a", Verdict::InStep(seq(0)));
            bench.later(60_000);
        }
    }
}

#[test]
fn a_refusal_that_concerns_every_call_drops_the_link() {
    for code in [
        RefusalCode::Unauthorized,
        RefusalCode::TokenRevoked,
        // The stream is not to blame: a fresh token may succeed.
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
fn calls_in_flight_when_the_link_breaks_are_sent_again() {
    let mut bench = Bench::new();
    bench.found("a", 0, 2);
    let sent = calls(&bench.page("a", vec![prepared(1, 2)]));
    assert_eq!(bench.step(Input::LinkDown), [], "they do not count as published");
    assert_eq!(
        bench.step(Input::Acked(sent[0].0)),
        [],
        "an answer from the old link is ignored"
    );
    bench.link_up();
    assert_eq!(reads(&bench.found("a", 0, 2)), [("a".to_owned(), 0)]);
}

#[test]
fn streams_take_turns() {
    let mut bench = Bench::new();
    bench.found("a", 0, 100);
    bench.found("b", 0, 100);
    let mut flying = calls(&bench.page("a", (1..=6).map(|at| prepared(at, at)).collect()));
    // A second page gives the stream no second place in the queue.
    bench.page("a", vec![prepared(7, 7)]);
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
fn acknowledgements_in_another_order_never_move_the_published_seq_back() {
    let mut bench = Bench::new();
    bench.found("a", 0, 2);
    let sent = calls(&bench.page("a", vec![prepared(1, 1), prepared(2, 2)]));
    assert_eq!(advances(&bench.step(Input::Acked(sent[1].0))), [2]);
    assert_eq!(advances(&bench.step(Input::Acked(sent[0].0))), [2]);
    assert_eq!(bench.core.load(), Load::default());
}

#[test]
fn a_stream_that_halts_frees_what_it_had_read() {
    let mut bench = Bench::new();
    bench.found("a", 0, 9);
    let sent = calls(&bench.page("a", (1..=5).map(|at| prepared(at, at)).collect()));
    bench.step(Input::Refused(sent[0].0, refusal(RefusalCode::InvalidArgument)));
    assert_eq!(bench.core.load().bytes, 20, "two calls are in flight");
    for (call, ..) in &sent[1..] {
        bench.step(Input::Refused(*call, refusal(RefusalCode::SeqGap)));
    }
    // The next page was being read. It comes too late.
    bench.page("a", vec![prepared(6, 6)]);
    let halted = Load {
        halted_streams: 1,
        ..Load::default()
    };
    assert_eq!(bench.core.load(), halted);
}

#[test]
fn a_halted_stream_forgets_its_calls_with_their_link() {
    let mut bench = Bench::new();
    bench.found("a", 0, 9);
    bench.page("a", vec![prepared(1, 1)]);
    bench.step(Input::Halt(stream("a"), HaltReason::AheadOfAuthority));
    assert_eq!(bench.core.load().busy_streams, 1, "its call is in flight");
    bench.step(Input::LinkDown);
    bench.link_up();
    assert_eq!(bench.core.load().busy_streams, 0);
}
