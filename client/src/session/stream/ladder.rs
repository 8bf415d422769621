//! Small cases of the ladder: what a stream does when SpacetimeDB does not continue what was applied.

use bytes::Bytes;
use spacetime_sync_proto::{FrameRow, PayloadHash, Position, StaleReason, StreamId};

use super::tests::{Case, Log, applied, bounds, seq};
use super::*;
use crate::config::{StaleAnswer, StreamBounds, WithoutDocument};
use crate::seal::Unproven;

fn within(on_stale: StaleAnswer) -> StreamBounds {
    StreamBounds {
        history: true,
        recovery_attempts: 2,
        on_stale,
        ..bounds()
    }
}

fn case(at: Position, on_stale: StaleAnswer) -> Case {
    let mut case = Case::within(at, within(on_stale));
    case.step(Input::Connected);
    case
}

fn lane(log: &Log, oldest: u64, frames: Vec<FrameRow>) -> Input {
    Input::Page(Page {
        head: log.head(),
        oldest_seq: seq(oldest),
        durable_reads: true,
        frames,
    })
}

fn history(log: &Log, frames: Vec<FrameRow>) -> Input {
    Input::HistoryPage(Page {
        head: log.head(),
        oldest_seq: seq(1),
        durable_reads: true,
        frames,
    })
}

fn stale(log: &Log, after: u64, floor: u64, snapshot: Option<u64>) -> Input {
    Input::Stale(Box::new(StaleCursor {
        code: Default::default(),
        stream_id: StreamId::new("s").unwrap(),
        requested_after_seq: seq(after),
        oldest_available_cursor: seq(floor),
        oldest_available_chain: log.at(floor).chain,
        head_cursor: log.head().seq,
        reason_codes: vec![StaleReason::RetentionFloorBreach],
        replay_lag: log.head().seq.get().saturating_sub(after),
        replay_budget_events: None,
        snapshot_cursor: snapshot.map(seq),
    }))
}

fn document(log: &Log, at: u64) -> Option<Box<Snapshot>> {
    let payload = Bytes::from_static(b"{}");
    Some(Box::new(Snapshot {
        doc_key: "doc".to_owned(),
        seq: seq(at),
        chain_hash: log.at(at).chain,
        payload_hash: PayloadHash::of(&payload),
        payload,
    }))
}

fn rung(case: &Case) -> &'static str {
    match case.stream.mode() {
        Mode::Recovering(rung) => rung.code(),
        _ => "none",
    }
}

#[test]
fn events_before_the_window_come_from_the_authority_and_the_rest_from_spacetimedb() {
    let log = Log::new("s", 5_000);
    let mut case = case(log.at(10), StaleAnswer::Stop);
    case.expect(lane(&log, 3_001, vec![]), &["history after 10"]);
    assert_eq!(rung(&case), "replay");
    case.expect(
        history(&log, vec![log.frame(11, 900), log.frame(901, 1_500)]),
        &["apply 11..=900", "apply 901..=1500", "history after 1500"],
    );
    // The authority's page goes past the beginning of the window.
    case.expect(
        history(&log, vec![log.frame(1_501, 2_400), log.frame(2_401, 3_300)]),
        &["apply 1501..=2400", "apply 2401..=3300", "read after 3300"],
    );
    let rest = case.step(lane(
        &log,
        3_001,
        vec![log.frame(3_001, 4_000), log.frame(4_001, 5_000)],
    ));
    assert_eq!(
        rest,
        ["apply 3301..=4000", "apply 4001..=5000", "subscribe 1 after 5000"]
    );
    case.step(Input::Subscribed(SubscriptionId(1)));
    case.step(applied(&log, 5_000));
    assert!(case.stream.is_current());
    assert_eq!(case.counters.history_pages, 2);
}

#[test]
fn a_replay_follows_a_window_that_moves_on() {
    let log = Log::new("s", 50);
    let mut case = case(log.start, StaleAnswer::Stop);
    case.expect(lane(&log, 11, vec![]), &["history after 0"]);
    case.expect(
        history(&log, vec![log.frame(1, 10)]),
        &["apply 1..=10", "read after 10"],
    );
    case.expect(lane(&log, 21, vec![]), &["history after 10"]);
    case.expect(
        history(&log, vec![log.frame(11, 20)]),
        &["apply 11..=20", "read after 20"],
    );
    case.expect(
        lane(&log, 21, vec![log.frame(21, 50)]),
        &["apply 21..=50", "subscribe 1 after 50"],
    );
}

#[test]
fn a_page_of_the_authority_is_checked_like_one_of_spacetimedb() {
    let log = Log::new("s", 50);
    let other = log.fork(20, 50);
    let ask = || {
        let mut case = case(log.at(20), StaleAnswer::Stop);
        case.expect(lane(&log, 40, vec![]), &["history after 20"]);
        case
    };
    let mut forked = ask();
    forked.expect(history(&log, vec![other.frame(21, 50)]), &[]);
    assert_eq!(forked.stopped().code(), "chain_mismatch");
    let mut foreign = ask();
    foreign.expect(history(&log, vec![Log::new("t", 50).frame(21, 30)]), &[]);
    assert_eq!(foreign.stopped().code(), "chain_mismatch");
    let mut hole = ask();
    hole.expect(history(&log, vec![log.frame(31, 50)]), &["recover later 1"]);
    assert_eq!(rung(&hole), "await_authority");
    let mut bad = ask();
    let mut frame = log.frame(21, 30);
    frame.bytes = Bytes::from_static(b"no frame");
    bad.expect(history(&log, vec![frame]), &[]);
    assert_eq!(bad.stopped().code(), "bad_frame");
}

#[test]
fn a_stream_waits_while_spacetimedb_is_filled_and_applies_what_the_authority_has() {
    let log = Log::new("s", 30);
    let mut case = case(log.at(20), StaleAnswer::Restart);
    let wiped = Log::new("s", 0);
    case.expect(lane(&wiped, 1, vec![]), &["report", "history after 20"]);
    assert_eq!(rung(&case), "consult");
    case.expect(
        history(&log, vec![log.frame(21, 30)]),
        &["apply 21..=30", "recover later 1"],
    );
    assert_eq!(rung(&case), "await_lane");
    // Filling takes longer than any number of attempts.
    let filling = Log::new("s", 7);
    for attempt in 2..9 {
        case.expect(Input::AskAgain, &["read after 30"]);
        case.expect(lane(&filling, 1, vec![]), &["report", "history after 30"]);
        case.expect(history(&log, vec![]), &[&format!("recover later {attempt}")]);
        assert_eq!(case.stream.recovery_attempt(), attempt);
    }
    case.expect(Input::AskAgain, &["read after 30"]);
    case.expect(lane(&log, 1, vec![]), &["subscribe 1 after 30"]);
    assert_eq!((case.counters.rebootstraps, case.counters.restarts), (0, 0));
}

#[test]
fn another_log_than_the_authoritys_is_waited_out_however_long_it_takes() {
    let log = Log::new("s", 30);
    let other = log.fork(10, 40);
    let mut case = case(log.at(20), StaleAnswer::Restart);
    case.expect(
        lane(&other, 1, vec![other.frame(21, 40)]),
        &["report", "history after 20"],
    );
    case.expect(
        history(&log, vec![log.frame(21, 30)]),
        &["apply 21..=30", "recover later 1"],
    );
    for attempt in 2..9 {
        case.expect(Input::AskAgain, &["read after 30"]);
        case.expect(
            lane(&other, 1, vec![other.frame(31, 40)]),
            &["report", "history after 30"],
        );
        assert_eq!(rung(&case), "consult");
        case.expect(history(&log, vec![]), &[&format!("recover later {attempt}")]);
    }
    case.expect(Input::AskAgain, &["read after 30"]);
    case.expect(lane(&log, 1, vec![]), &["subscribe 1 after 30"]);
}

#[test]
fn what_may_be_forged_is_not_shown_to_the_authority() {
    let log = Log::new("s", 30);
    let other = log.fork(10, 40);
    let mut case = Case::within(log.at(10), within(StaleAnswer::Stop));
    case.step(Input::Connected);
    case.step(lane(&Log::new("s", 10), 1, vec![]));
    case.step(Input::Subscribed(SubscriptionId(1)));
    case.expect(Input::Frame(other.frame(11, 20)), &["apply 11..=20"]);
    // SpacetimeDB contradicts itself before the seal of the first events is checked.
    case.expect(Input::Frame(log.frame(18, 25)), &["report", "unsubscribe 1"]);
    let failure = ApplyFailure::Unproven {
        to: seq(20),
        why: Unproven::NoSeal,
    };
    case.expect(
        Input::ApplyFailed { failure, released: 0 },
        &["report", "history after 10"],
    );
    case.expect(
        history(&log, vec![log.frame(11, 30)]),
        &["apply 11..=30", "recover later 1"],
    );
}

#[test]
fn rows_that_are_damaged_come_from_the_authority() {
    let log = Log::new("s", 20);
    let mut bytes = log.frame(11, 20);
    bytes.bytes = Bytes::from_static(b"no frame");
    let mut extent = log.frame(11, 20);
    extent.last_seq = seq(19);
    for damaged in [bytes, extent] {
        let mut case = case(log.at(10), StaleAnswer::Stop);
        case.expect(lane(&log, 1, vec![damaged]), &["report", "history after 10"]);
    }
    let mut case = case(log.at(10), StaleAnswer::Stop);
    case.step(lane(&log, 1, vec![log.frame(11, 20)]));
    let altered = |from_authority| ApplyFailure::Payload {
        seq: seq(11),
        expected: PayloadHash::of(b"a"),
        found: PayloadHash::of(b"b"),
        from_authority,
    };
    let failed = |from_authority| Input::ApplyFailed {
        failure: altered(from_authority),
        released: 0,
    };
    assert_eq!(case.step(failed(false)).last(), Some(&"history after 10".to_owned()));
    case.step(failed(true));
    assert_eq!(case.stopped().code(), "payload_mismatch");
}

/// The module takes a frame as it is stated, so rows may state anything about what they hold.
#[test]
fn a_frame_that_is_not_what_was_stated_comes_from_the_authority() {
    let log = Log::new("s", 20);
    let wrong = log.at(1).chain;
    let fewer = FrameRow {
        last_seq: seq(20),
        ..log.frame(11, 19)
    };
    let at_the_head = |chain, frame| {
        Input::Page(Page {
            head: Position { chain, ..log.head() },
            oldest_seq: seq(1),
            durable_reads: true,
            frames: vec![frame],
        })
    };
    for page in [
        at_the_head(log.head().chain, fewer),
        at_the_head(wrong, log.frame(11, 20)),
    ] {
        let mut case = case(log.at(10), StaleAnswer::Stop);
        case.expect(page, &["report", "history after 10"]);
    }
    // Another end within the log is the base of the next frame.
    let next = FrameRow {
        base_chain: wrong,
        ..log.frame(16, 20)
    };
    let mut case = case(log.at(10), StaleAnswer::Stop);
    case.expect(
        lane(&log, 1, vec![log.frame(11, 15), next]),
        &["apply 11..=15", "report"],
    );
    case.expect(applied(&log, 15), &["history after 15"]);
}

#[test]
fn a_stale_cursor_stops_by_default_and_is_never_moved() {
    let log = Log::new("s", 90);
    let mut case = case(log.at(3), StaleAnswer::Stop);
    case.expect(lane(&log, 50, vec![]), &["history after 3"]);
    case.expect(stale(&log, 3, 40, Some(60)), &[]);
    let StreamStop::StaleCursor(stale) = case.stopped() else {
        panic!("{:?}", case.stopped());
    };
    assert_eq!(stale.oldest_available_cursor, seq(40));
    assert_eq!(case.stream.applied(), log.at(3));
    assert_eq!(case.counters.stale_cursors, 1);
}

#[test]
fn a_restart_begins_at_the_floor_once_what_was_handed_out_is_saved() {
    let log = Log::new("s", 90);
    let mut case = case(log.start, StaleAnswer::Restart);
    case.expect(lane(&log, 50, vec![]), &["history after 0"]);
    case.expect(
        history(&log, vec![log.frame(1, 9)]),
        &["apply 1..=9", "history after 9"],
    );
    case.expect(stale(&log, 9, 40, None), &[]);
    assert_eq!(rung(&case), "start_over");
    case.expect(applied(&log, 9), &["begin at 40"]);
    // A connection that breaks meanwhile changes nothing.
    case.expect(Input::Disconnected, &[]);
    assert_eq!(rung(&case), "start_over");
    case.expect(Input::Connected, &[]);
    case.expect(Input::StartedOver(log.at(40)), &["read after 40"]);
    assert_eq!(case.stream.applied(), log.at(40));
    case.expect(lane(&log, 50, vec![]), &["history after 40"]);
    case.expect(
        history(&log, vec![log.frame(41, 60)]),
        &["apply 41..=60", "read after 60"],
    );
    assert_eq!((case.counters.rebootstraps, case.counters.restarts), (0, 1));
}

#[test]
fn a_rebootstrap_begins_from_the_document_or_as_configured_without_one() {
    let log = Log::new("s", 90);
    let begun = |without, snapshot, answer: Option<Option<Box<Snapshot>>>| {
        let mut case = case(log.at(3), StaleAnswer::Rebootstrap(without));
        case.expect(lane(&log, 50, vec![]), &["history after 3"]);
        let mut effects = case.step(stale(&log, 3, 40, snapshot));
        if let Some(answer) = answer {
            assert_eq!(effects, ["document"]);
            assert_eq!(rung(&case), "document");
            effects = case.step(Input::Document(answer));
        }
        match case.stream.mode() {
            Mode::Stopped(stop) => stop.code().to_owned(),
            _ => effects.concat(),
        }
    };
    use WithoutDocument::{Restart, Stop};
    assert_eq!(begun(Stop, Some(60), Some(document(&log, 70))), "begin at 70");
    assert_eq!(begun(Stop, Some(60), Some(None)), "stale_cursor");
    assert_eq!(begun(Restart, Some(60), Some(None)), "begin at 40");
    assert_eq!(begun(Stop, None, None), "stale_cursor");
    assert_eq!(begun(Restart, None, None), "begin at 40");
}

#[test]
fn a_stream_starts_over_a_bounded_number_of_times_until_it_is_live_for_a_while() {
    let log = Log::new("s", 90);
    let climb = |case: &mut Case, from: u64, to: u64| {
        case.expect(lane(&log, 80, vec![]), &[&format!("history after {from}")]);
        let effects = case.step(stale(&log, from, to, None));
        if effects.is_empty() {
            return false;
        }
        case.step(Input::StartedOver(log.at(to)));
        true
    };
    let mut case = case(log.at(1), StaleAnswer::Restart);
    assert!(climb(&mut case, 1, 10));
    assert!(climb(&mut case, 10, 20));
    assert!(!climb(&mut case, 20, 30));
    assert_eq!(case.stopped().code(), "stale_cursor");

    let mut case = self::case(log.at(1), StaleAnswer::Restart);
    assert!(climb(&mut case, 1, 10));
    case.step(Input::Stable);
    assert!(climb(&mut case, 10, 20));
    assert!(climb(&mut case, 20, 30));
}

#[test]
fn an_answer_about_an_earlier_position_is_asked_for_again() {
    let log = Log::new("s", 90);
    let mut case = case(log.at(3), StaleAnswer::Restart);
    case.expect(lane(&log, 50, vec![]), &["history after 3"]);
    case.expect(stale(&log, 2, 40, None), &["history after 3"]);
    assert_eq!(case.counters.stale_cursors, 0);
}

#[test]
fn a_silent_authority_is_asked_again_with_growing_pauses_and_refusals_are_shown() {
    let log = Log::new("s", 90);
    let mut case = case(log.at(3), StaleAnswer::Restart);
    for attempt in 1..20 {
        case.expect(lane(&log, 50, vec![]), &["history after 3"]);
        case.expect(Input::HistoryFailed, &[&format!("recover later {attempt}")]);
        assert_eq!(rung(&case), "await_authority");
        case.expect(Input::AskAgain, &["read after 3"]);
    }
    case.expect(lane(&log, 50, vec![]), &["history after 3"]);
    let refused = |code| Input::HistoryRefused(Refusal::new(code, "no"));
    case.expect(refused(RefusalCode::ForbiddenStream), &["ask later"]);
    assert_eq!(case.stream.mode(), &Mode::Refused(RefusalCode::ForbiddenStream));
    case.expect(Input::AskAgain, &["read after 3"]);
    case.expect(lane(&log, 50, vec![]), &["history after 3"]);
    case.expect(refused(RefusalCode::ChainMismatch), &[]);
    assert_eq!(case.stopped().code(), "refused");
    assert_eq!(case.counters.history_failures, 19 + 2);
}

#[test]
fn a_live_stream_notices_another_log_at_remembered_positions() {
    let log = Log::new("s", 30);
    let other = log.fork(20, 40);
    let live = || {
        let mut case = Case::within(log.at(10), within(StaleAnswer::Stop));
        case.step(Input::Connected);
        case.step(lane(&Log::new("s", 10), 1, vec![]));
        case.step(Input::Subscribed(SubscriptionId(1)));
        case.step(Input::Frame(log.frame(11, 20)));
        case.step(Input::Frame(log.frame(21, 25)));
        case.step(Input::Frame(log.frame(26, 30)));
        case.step(applied(&log, 30));
        case
    };
    let mut before = live();
    before.expect(Input::Frame(log.frame(21, 25)), &[]);
    // It ends before the cursor, where a batch ended.
    before.expect(
        Input::Frame(other.frame(21, 25)),
        &["report", "unsubscribe 1", "history after 30"],
    );
    assert_eq!(rung(&before), "consult");
    let mut across = live();
    across.expect(
        Input::Frame(other.frame(26, 33)),
        &["report", "unsubscribe 1", "history after 30"],
    );
    let mut after = live();
    after.expect(
        Input::Frame(other.frame(31, 33)),
        &["report", "unsubscribe 1", "history after 30"],
    );
    // At a frame that holds no remembered position, the stream asks for the head, which decides.
    let mut unknown = live();
    unknown.expect(Input::Frame(other.frame(22, 23)), &["read after 30"]);
    let short = Page {
        head: other.at(23),
        oldest_seq: seq(1),
        durable_reads: true,
        frames: vec![],
    };
    unknown.expect(Input::Page(short), &["report", "unsubscribe 1", "history after 30"]);
    // So it does when the row at the end of what was applied is gone.
    let mut rewound = live();
    rewound.expect(Input::Gone { last_seq: seq(20) }, &[]);
    rewound.expect(Input::Gone { last_seq: seq(30) }, &["read after 30"]);
    rewound.expect(lane(&log, 1, vec![]), &[]);
    assert!(rewound.stream.is_delivering());
}

#[test]
fn a_failed_start_over_is_tried_again_from_the_saved_position() {
    let log = Log::new("s", 90);
    let mut case = case(log.at(3), StaleAnswer::Restart);
    case.expect(lane(&log, 50, vec![]), &["history after 3"]);
    case.expect(stale(&log, 3, 40, None), &["begin at 40"]);
    let failed = |failure| Input::ApplyFailed { failure, released: 0 };
    case.expect(
        failed(ApplyFailure::Retry {
            message: "busy".to_owned(),
        }),
        &["retry later 1"],
    );
    case.expect(Input::AskAgain, &["read after 3"]);
    case.expect(lane(&log, 50, vec![]), &["history after 3"]);
    case.expect(stale(&log, 3, 40, None), &["begin at 40"]);
    case.expect(
        failed(ApplyFailure::Stop {
            message: "no".to_owned(),
        }),
        &[],
    );
    assert_eq!(case.stopped().code(), "handler");
    assert_eq!(case.stream.applied(), log.at(3));
}

#[test]
fn a_question_that_is_lost_with_its_connection_leaves_the_stream_offline() {
    let log = Log::new("s", 90);
    let mut case = case(log.at(3), StaleAnswer::Stop);
    case.expect(lane(&log, 50, vec![]), &["history after 3"]);
    case.expect(Input::Disconnected, &[]);
    assert_eq!(case.stream.mode(), &Mode::Offline);
    case.expect(Input::Connected, &["read after 3"]);
}

#[test]
fn a_grant_that_is_lost_does_not_interrupt_a_start_over() {
    let log = Log::new("s", 90);
    let answer = StaleAnswer::Rebootstrap(WithoutDocument::Stop);
    let mut case = case(log.at(3), answer);
    case.expect(lane(&log, 50, vec![]), &["history after 3"]);
    case.expect(stale(&log, 3, 40, Some(60)), &["document"]);
    case.expect(Input::Document(document(&log, 70)), &["begin at 70"]);
    case.expect(Input::GrantLost, &[]);
    case.expect(Input::StartedOver(log.at(70)), &["read after 70"]);
    assert_eq!((case.counters.rebootstraps, case.counters.restarts), (1, 0));
}

#[test]
fn a_page_that_was_asked_for_after_a_start_over_counts_also_once_the_stream_is_stable() {
    let log = Log::new("s", 90);
    let mut case = case(log.at(3), StaleAnswer::Restart);
    case.step(lane(&log, 50, vec![]));
    case.expect(stale(&log, 3, 90, None), &["begin at 90"]);
    case.expect(Input::StartedOver(log.at(90)), &["read after 90"]);
    case.expect(Input::Stable, &[]);
    case.expect(lane(&log, 50, vec![]), &["subscribe 1 after 90"]);
}

#[test]
fn events_that_are_not_sealed_come_from_the_authority_until_spacetimedb_has_good_ones() {
    let log = Log::new("s", 12);
    let mut case = case(log.at(10), StaleAnswer::Stop);
    let unproven = || Input::ApplyFailed {
        failure: ApplyFailure::Unproven {
            to: seq(12),
            why: Unproven::NoSeal,
        },
        released: 0,
    };
    // The authority has only seq 11 yet. What SpacetimeDB calls seq 12 is an invention.
    for attempt in 1..3 * bounds().recovery_attempts {
        let handed_out = case.step(lane(&log, 1, vec![log.frame(11, 12)]));
        assert!(
            handed_out.iter().any(|effect| effect.starts_with("apply ")),
            "{handed_out:?}"
        );
        let after = case.stream.applied().seq;
        assert_eq!(case.step(unproven()).last(), Some(&format!("history after {after}")));
        let frames = if attempt == 1 { vec![log.frame(11, 11)] } else { vec![] };
        case.step(Input::HistoryPage(Page {
            head: log.at(11),
            oldest_seq: seq(1),
            durable_reads: true,
            frames,
        }));
        if attempt == 1 {
            case.step(applied(&log, 11));
        }
        assert_eq!(rung(&case), "await_lane");
        assert_eq!(
            case.stream.recovery_attempt(),
            attempt,
            "each pause is longer than the one before"
        );
        case.step(Input::AskAgain);
    }
    assert_eq!(case.stream.applied(), log.at(11));
}
