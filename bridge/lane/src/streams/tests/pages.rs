use super::*;

#[test]
fn a_page_requested_before_a_set_back_is_dropped() {
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
fn a_page_that_cannot_be_read_is_retried_less_and_less_often() {
    let mut bench = Bench::new();
    let failed = |bench: &mut Bench| {
        let (link, stream_id) = (bench.link(), stream("a"));
        bench.step(Input::PageFailed { link, stream_id })
    };
    bench.found("a", 0, 9);
    for wait in [50, 100, 200, 400, 800, 1_600, 3_200, 3_200] {
        assert_eq!(failed(&mut bench), []);
        assert_eq!(bench.core.next_due(), Some(bench.now + Duration::from_millis(wait)));
        assert_eq!(reads(&bench.found("a", 0, 9)), [], "a look does not end the rest");
        assert_eq!(bench.later(wait - 1), []);
        assert_eq!(reads(&bench.later(1)), [("a".to_owned(), 0)]);
    }
    let sent = calls(&bench.page("a", vec![prepared(1, 1)]));
    assert_eq!(
        failed(&mut bench),
        [],
        "the stream does not rest while a call is in flight"
    );
    let acked = bench.step(Input::Acked(sent[0].0));
    assert_eq!(reads(&acked), [("a".to_owned(), 1)]);
    failed(&mut bench);
    assert_eq!(
        reads(&bench.later(50)),
        [("a".to_owned(), 1)],
        "the rests start short again"
    );
}

#[test]
fn a_broken_log_halts_after_the_events_before_it_are_published() {
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
fn the_next_page_is_read_while_the_last_one_is_in_flight() {
    let mut bench = Bench::new();
    bench.found("a", 0, 10);
    let out = bench.page("a", vec![prepared(1, 5)]);
    assert_eq!(calls(&out).len(), 1);
    assert_eq!(reads(&out), [("a".to_owned(), 5)]);
}

/// Seed 3,976: the authority purged events during a refill, which then set the published seq back below the floor. No
/// look could help the stream.
#[test]
fn a_stream_whose_next_page_is_purged_is_compared_again() {
    let mut bench = Bench::new();
    bench.found("a", 3, 9);
    let (link, stream_id) = (bench.link(), stream("a"));
    let page = Page::Purged;
    assert_eq!(bench.step(Input::Page { link, stream_id, page }), []);
    assert_eq!(bench.later(50), [Effect::Compare(stream("a"))]);
    let after = seq(5);
    let out = bench.learned("a", Verdict::Refill(after));
    assert!(matches!(out[..], [Effect::Refill { after: begin, .. }] if begin == after));
}

#[test]
fn a_stream_with_eight_frames_to_send_reads_on_only_after_an_acknowledgement() {
    for (frames, read_on) in [(7, true), (8, false)] {
        let mut bench = Bench::new();
        bench.found("a", 0, 100);
        let out = bench.page("a", (1..=frames).map(|at| prepared(at, at)).collect());
        let next = vec![("a".to_owned(), frames)];
        assert_eq!(reads(&out), if read_on { next.clone() } else { vec![] });
        let acked = bench.step(Input::Acked(calls(&out)[0].0));
        assert_eq!(reads(&acked), if read_on { vec![] } else { next });
    }
}

#[test]
fn a_page_that_is_being_read_counts_though_another_bridge_has_published_more() {
    let mut bench = Bench::new();
    bench.found("a", 0, 2);
    assert_eq!(bench.found("a", 5, 8), []);
    let sent = calls(&bench.page("a", vec![prepared(1, 2)]));
    assert_eq!((sent[0].1, sent[0].2), (1, 2));
}

#[test]
fn events_that_come_with_a_look_are_sent_without_a_read() {
    let mut bench = Bench::new();
    bench.found("a", 0, 2);
    assert_eq!(bench.core.read_up_to(), [], "nothing of it is read");
    let sent = calls(&bench.page("a", vec![prepared(1, 2)]));
    assert_eq!(bench.core.read_up_to(), [], "a call is in flight");
    bench.step(Input::Acked(sent[0].0));
    assert_eq!(bench.core.read_up_to(), [(stream("a"), position(2))]);
    let out = bench.looked("a", 0, 4, vec![prepared(3, 3), prepared(4, 4)]);
    assert_eq!(reads(&out), []);
    let both: Vec<_> = calls(&out).into_iter().map(|(_, first, last)| (first, last)).collect();
    assert_eq!(both, [(3, 3), (4, 4)]);
    for call in calls(&out) {
        bench.step(Input::Acked(call.0));
    }
    assert_eq!(bench.core.load(), Load::default());
    assert_eq!(bench.core.read_up_to(), [(stream("a"), position(4))]);
    bench.core.drain();
    assert_eq!(bench.core.read_up_to(), []);
    assert_eq!(calls(&bench.looked("a", 0, 5, vec![prepared(5, 5)])), []);
}

#[test]
fn events_that_come_with_a_look_are_dropped_unless_they_are_the_next_ones() {
    let other_chain = ReadyFrame {
        row: FrameRow {
            base_chain: chain(9),
            ..prepared(3, 3).row
        },
        ..prepared(3, 3)
    };
    let [again, later] = [prepared(2, 3), prepared(4, 4)].map(|frame| ReadyFrame {
        row: FrameRow {
            base_chain: chain(2),
            ..frame.row
        },
        ..frame
    });
    for frame in [again, later, other_chain] {
        let mut bench = Bench::new();
        bench.found("a", 0, 2);
        bench.page("a", vec![prepared(1, 2)]);
        let out = bench.looked("a", 0, 4, vec![frame]);
        assert_eq!((calls(&out), reads(&out)), (vec![], vec![("a".to_owned(), 2)]));
        // A page is on its way.
        assert_eq!(bench.core.read_up_to(), []);
        assert_eq!(bench.looked("a", 0, 4, vec![prepared(3, 4)]), []);
        assert_eq!(calls(&bench.page("a", vec![prepared(3, 4)])).len(), 1);
    }
}

#[test]
fn a_stream_that_waits_to_be_compared_takes_no_events_of_a_look() {
    let mut bench = Bench::new();
    bench.found("a", 0, 2);
    let sent = calls(&bench.page("a", vec![prepared(1, 2)]));
    bench.step(Input::Lost(sent[0].0, "no answer".to_owned()));
    assert_eq!(bench.core.read_up_to(), []);
    assert_eq!(bench.looked("a", 0, 3, vec![prepared(3, 3)]), []);
}

#[test]
fn a_look_brings_events_of_the_64_streams_that_began_to_send_last() {
    let mut bench = Bench::within(Limits {
        idle_streams: 100,
        ..LIMITS
    });
    let send = |bench: &mut Bench, at: u64| {
        let name = format!("s{at}");
        bench.found(&name, 0, 1);
        let sent = calls(&bench.page(&name, vec![prepared(1, 1)]));
        bench.step(Input::Acked(sent[0].0));
    };
    (1..=65).for_each(|at| send(&mut bench, at));
    let named: Vec<_> = bench.core.read_up_to().into_iter().map(|(name, _)| name).collect();
    assert_eq!((named.len(), &named[0]), (64, &stream("s2")));
    bench.step(Input::LinkDown);
    bench.link_up();
    assert_eq!(bench.core.read_up_to(), []);
}
