//! What a stream never applies: another log, a broken frame, events that are not durable.

use super::*;

#[test]
fn a_frame_of_another_log_is_never_applied() {
    let mut log = Log::new("s", 10);
    let mut other = Log::new("other", 15);
    other.start = log.start;
    for (first, last) in [(11, 12), (10, 12), (8, 10)] {
        let mut case = Case::live(&log);
        case.expect(Input::Frame(other.frame(first, last)), &["unsubscribe 1"]);
        assert!(matches!(case.stopped(), StreamStop::ChainMismatch { seq, .. } if seq.get() == 10));
        log.append();
        case.expect(Input::Frame(log.frame(11, 11)), &[]);
        log.events.pop();
    }
}

#[test]
fn a_frame_that_does_not_lead_to_the_head_is_never_applied() {
    let log = Log::new("s", 20);
    let mut case = Case::new(log.at(10));
    case.step(Input::Connected);
    let forged = {
        let mut events = log.events[10..20].to_vec();
        events[4].payload = Bytes::from_static(b"other");
        events[4].payload_hash = PayloadHash::of(b"other");
        FrameRow {
            bytes: Frame::encode(&events, None),
            ..log.frame(11, 20)
        }
    };
    case.expect(log.page(vec![forged]), &[]);
    assert!(matches!(case.stopped(), StreamStop::ChainMismatch { seq, .. } if seq.get() == 20));
}

#[test]
fn without_history_a_stream_asks_again_for_a_damaged_row_however_long_it_takes() {
    let (before, log) = (Log::new("s", 10), Log::new("s", 12));
    let broken = FrameRow {
        bytes: Bytes::from_static(b"\xff\xff\xff"),
        ..log.frame(11, 11)
    };
    let longer = FrameRow {
        last_seq: seq(12),
        ..log.frame(11, 11)
    };
    for (damaged, why) in [
        (broken, "the frame at seq 11 is invalid"),
        (longer, "says that its frame ends at 12"),
    ] {
        let mut case = Case::live(&before);
        case.expect(Input::Frame(damaged.clone()), &["unsubscribe 1", "retry later 1"]);
        for attempt in 2..3 * bounds().recovery_attempts {
            let mode = case.stream.mode();
            assert!(
                matches!(mode, Mode::Retrying { message } if message.contains(why)),
                "{mode:?}"
            );
            case.expect(Input::AskAgain, &["read after 10"]);
            case.expect(log.page(vec![damaged.clone()]), &[&format!("retry later {attempt}")]);
        }
        // The bridge has put the true row there.
        case.expect(Input::AskAgain, &["read after 10"]);
        let effects = case.step(log.page(vec![log.frame(11, 12)]));
        assert_eq!(effects[0], "apply 11..=12");
    }
}

#[test]
fn what_was_taken_before_a_damaged_row_is_not_taken_again() {
    let log = Log::new("s", 30);
    for is_applied_first in [true, false] {
        let mut case = Case::new(log.at(10));
        case.step(Input::Connected);
        let damaged = FrameRow {
            bytes: Bytes::from_static(b"\xff\xff\xff"),
            ..log.frame(16, 20)
        };
        case.expect(
            log.page(vec![log.frame(11, 15), damaged, log.frame(21, 30)]),
            &["apply 11..=15", "retry later 1"],
        );
        if is_applied_first {
            case.expect(applied(&log, 15), &[]);
        }
        case.expect(Input::Frame(log.frame(16, 20)), &[]);
        case.expect(Input::AskAgain, &["read after 15"]);
        if !is_applied_first {
            case.expect(applied(&log, 15), &[]);
        }
        let effects = case.step(log.page(vec![log.frame(16, 20), log.frame(21, 30)]));
        assert_eq!(effects[..2], ["apply 16..=20", "apply 21..=30"]);
        assert_eq!(case.stream.applied(), log.at(15));
    }
}

#[test]
fn a_cursor_is_never_moved_to_suit_spacetimedb() {
    let log = Log::new("s", 10);
    let mut ahead = Case::new(log.at(10));
    ahead.step(Input::Connected);
    ahead.expect(Log::new("s", 7).page(vec![]), &[]);
    assert_eq!(
        ahead.stopped(),
        &StreamStop::AheadOfLane {
            applied: seq(10),
            head: seq(7)
        }
    );

    let mut forked = Case::new(log.at(10));
    forked.step(Input::Connected);
    forked.expect(Log::new("other", 10).page(vec![]), &[]);
    assert_eq!(forked.stopped().code(), "chain_mismatch");

    let mut below = Case::new(log.at(3));
    below.step(Input::Connected);
    below.expect(
        Input::Page(Page {
            head: log.head(),
            oldest_seq: seq(6),
            durable_reads: true,
            frames: vec![log.frame(6, 10)],
        }),
        &[],
    );
    assert_eq!(
        below.stopped(),
        &StreamStop::BelowWindow {
            applied: seq(3),
            oldest: seq(6)
        }
    );

    let mut at_the_edge = Case::new(log.at(5));
    at_the_edge.step(Input::Connected);
    let page = Page {
        head: log.head(),
        oldest_seq: seq(6),
        durable_reads: true,
        frames: vec![log.frame(6, 10)],
    };
    at_the_edge.expect(Input::Page(page), &["apply 6..=10", "subscribe 1 after 10"]);
}

fn early() -> StreamBounds {
    StreamBounds {
        reads: Reads::Early,
        ..bounds()
    }
}

#[test]
fn a_class_of_confirmed_reads_is_not_applied_when_read_early() {
    let log = Log::new("s", 10);
    let frames = || vec![log.frame(1, 10)];
    let mut refused = Case::within(log.start, early());
    refused.step(Input::Connected);
    refused.expect(log.page(frames()), &[]);
    assert_eq!(refused.stopped(), &StreamStop::DurableReads);
    refused.expect(Input::Frame(log.frame(1, 10)), &[]);

    let mut allowed = Case::within(log.start, early());
    allowed.step(Input::Connected);
    allowed.expect(
        log.page_of_class(false, frames()),
        &["apply 1..=10", "subscribe 1 after 10"],
    );

    let mut confirmed = Case::new(log.start);
    confirmed.step(Input::Connected);
    confirmed.expect(log.page(frames()), &["apply 1..=10", "subscribe 1 after 10"]);
}

#[test]
fn a_class_that_becomes_confirmed_ends_early_delivery() {
    let log = Log::new("s", 10);
    let mut case = Case::within(log.head(), early());
    case.step(Input::Connected);
    case.step(log.page_of_class(false, vec![]));
    case.step(Input::Subscribed(SubscriptionId(1)));
    case.expect(Input::Verify, &["read after 10"]);
    case.expect(log.page(vec![]), &["unsubscribe 1"]);
    assert_eq!(case.stopped(), &StreamStop::DurableReads);
}

#[test]
fn rows_that_claim_more_events_than_can_be_counted_do_no_harm() {
    let log = Log::new("s", 10);
    let mut case = Case::new(log.start);
    case.step(Input::Connected);
    let claims = |last_seq| FrameRow {
        first_seq: seq(12),
        last_seq,
        base_chain: log.start.chain,
        bytes: vec![0; 2 << 20].into(),
    };
    // With the first nine events these claim one more than 64 bits can count.
    let hostile = [Seq::MAX, Seq::MAX, seq(27)].map(claims);
    let frames = [log.frame(1, 9)].into_iter().chain(hostile).collect();
    case.expect(log.page(frames), &["apply 1..=9", "subscribe 1 after 9"]);
}

#[test]
fn the_genesis_of_a_log_is_part_of_the_check() {
    let log = Log::new("s", 3);
    let mut case = Case::new(Position {
        chain: ChainHash::genesis(&StreamId::new("t").unwrap()),
        ..log.start
    });
    case.step(Input::Connected);
    case.expect(log.page(vec![log.frame(1, 3)]), &[]);
    assert_eq!(case.stopped().code(), "chain_mismatch");
}

#[test]
fn every_frame_of_a_page_must_lead_to_the_head() {
    let log = Log::new("s", 30);
    let other = log.fork(20, 30);
    let mut case = Case::new(log.at(10));
    case.step(Input::Connected);
    case.expect(
        log.page(vec![log.frame(11, 15), log.frame(16, 20), other.frame(21, 30)]),
        &["apply 11..=15", "apply 16..=20"],
    );
    assert!(matches!(case.stopped(), StreamStop::ChainMismatch { seq, .. } if seq.get() == 30));
}

#[test]
fn at_the_head_it_does_not_matter_where_the_window_begins() {
    let log = Log::new("s", 10);
    let mut case = Case::new(log.head());
    case.step(Input::Connected);
    let page = Page {
        head: log.head(),
        oldest_seq: seq(12),
        durable_reads: true,
        frames: vec![],
    };
    case.expect(Input::Page(page), &["subscribe 1 after 10"]);
}
