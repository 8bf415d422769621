//! What a stream does when the application is slow or fails.

use super::*;
use crate::seal::Unproven;

#[test]
fn a_slow_applier_makes_a_live_stream_page_and_later_return() {
    let mut log = Log::new("s", 10);
    let small = StreamBounds {
        unapplied_bytes: 3_000,
        resume_bytes: 500,
        ..bounds()
    };
    let mut case = Case::within(log.head(), small);
    case.step(Input::Connected);
    case.step(log.page(vec![]));
    case.step(Input::Subscribed(SubscriptionId(1)));
    (0..5).for_each(|_| log.append());
    let bytes = log.frame(11, 11).bytes.len();
    (11..=13).for_each(|at| case.expect(Input::Frame(log.frame(at, at)), &[&format!("apply {at}..={at}")]));
    assert_eq!(case.stream.unapplied_bytes(), 3 * bytes);
    case.expect(Input::Frame(log.frame(14, 14)), &["apply 14..=14", "unsubscribe 1"]);
    case.expect(Input::Frame(log.frame(15, 15)), &[]);
    case.expect(
        Input::Applied {
            to: log.at(13),
            released: 3 * bytes,
        },
        &[],
    );
    // Only a page can say how far the head has moved meanwhile; a subscription would bring everything at once.
    case.expect(
        Input::Applied {
            to: log.at(14),
            released: bytes,
        },
        &["read after 14"],
    );
    case.expect(log.page(vec![log.frame(15, 15)]), &["apply 15..=15"]);
    case.expect(
        Input::Applied {
            to: log.at(15),
            released: bytes,
        },
        &["read after 15"],
    );
    case.expect(log.page(vec![]), &["subscribe 2 after 15"]);
    assert_eq!(case.counters.overruns, 1);
}

#[test]
fn a_failed_batch_is_tried_again_from_what_is_saved() {
    let mut log = Log::new("s", 10);
    let mut case = Case::live(&log);
    (0..4).for_each(|_| log.append());
    case.expect(Input::Frame(log.frame(11, 12)), &["apply 11..=12"]);
    case.expect(Input::Frame(log.frame(13, 14)), &["apply 13..=14"]);
    let retry = || Input::ApplyFailed {
        failure: ApplyFailure::Retry {
            message: "busy".to_owned(),
        },
        released: 0,
    };
    case.expect(retry(), &["unsubscribe 1", "retry later 1"]);
    case.expect(Input::Dropped { released: 0 }, &[]);
    case.expect(Input::AskAgain, &["read after 10"]);
    case.expect(
        log.page(vec![log.frame(11, 14)]),
        &["apply 11..=14", "subscribe 2 after 14"],
    );
    case.expect(applied(&log, 14), &[]);
    assert_eq!(case.stream.applied(), log.head());
    for attempt in 1..bounds().apply_attempts {
        assert!(case.step(retry()).contains(&format!("retry later {attempt}")));
        case.step(Input::AskAgain);
        case.step(log.page(vec![]));
    }
    case.step(retry());
    assert_eq!(case.stopped().code(), "handler");
    // The store may have been the busy one.
    let said = case.stopped().to_string();
    assert_eq!(said, "applying failed after 8 attempts: busy");
    assert_eq!(case.counters.apply_failures, 9);
    // A stopped stream stays as it is, whatever fails then.
    case.expect(retry(), &[]);
    let failure = ApplyFailure::Stop {
        message: "no".to_owned(),
    };
    case.expect(Input::ApplyFailed { failure, released: 0 }, &[]);
    assert_eq!(case.stopped().to_string(), said);
}

#[test]
fn a_stream_waits_for_a_full_disk_however_long_it_takes() {
    let mut log = Log::new("s", 10);
    let mut case = Case::live(&log);
    log.append();
    case.expect(Input::Frame(log.frame(11, 11)), &["apply 11..=11"]);
    let full = || Input::ApplyFailed {
        failure: ApplyFailure::Full {
            message: "no room".to_owned(),
        },
        released: 0,
    };
    let pause = format!("retry later {}", bounds().apply_attempts);
    case.expect(full(), &["unsubscribe 1", &pause]);
    for _ in 0..3 * bounds().apply_attempts {
        case.expect(Input::AskAgain, &["read after 10"]);
        case.step(log.page(vec![log.frame(11, 11)]));
        assert!(case.step(full()).contains(&pause));
    }
    case.step(Input::AskAgain);
    case.step(log.page(vec![log.frame(11, 11)]));
    case.expect(applied(&log, 11), &[]);
    assert_eq!(case.stream.applied(), log.head());
}

#[test]
fn an_altered_payload_or_a_handler_that_gives_up_stops_the_stream_at_once() {
    let log = Log::new("s", 10);
    let failures = [
        (
            ApplyFailure::Stop {
                message: "no".to_owned(),
            },
            "handler",
        ),
        (
            ApplyFailure::Payload {
                seq: seq(9),
                expected: PayloadHash::of(b"a"),
                found: PayloadHash::of(b"b"),
                from_authority: false,
            },
            "payload_mismatch",
        ),
    ];
    for (failure, code) in failures {
        let mut case = Case::live(&log);
        case.expect(Input::ApplyFailed { failure, released: 0 }, &["unsubscribe 1"]);
        assert_eq!(case.stopped().code(), code);
        if let StreamStop::Handler { attempts, .. } = case.stopped() {
            assert_eq!(*attempts, 1);
        }
        case.expect(Input::Disconnected, &[]);
        case.expect(Input::Connected, &[]);
        case.expect(Input::AskAgain, &[]);
    }
}

#[test]
fn a_stream_lags_only_past_its_bounds() {
    let mut log = Log::new("s", 13);
    let bytes = log.frame(13, 13).bytes.len();
    let mut case = Case::within(
        log.head(),
        StreamBounds {
            unapplied_bytes: 2 * bytes,
            resume_bytes: bytes,
            ..bounds()
        },
    );
    case.step(Input::Connected);
    case.step(log.page(vec![]));
    case.step(Input::Subscribed(SubscriptionId(1)));
    (0..3).for_each(|_| log.append());
    case.expect(Input::Frame(log.frame(14, 14)), &["apply 14..=14"]);
    case.expect(Input::Frame(log.frame(15, 15)), &["apply 15..=15"]);
    case.expect(Input::Frame(log.frame(16, 16)), &["apply 16..=16", "unsubscribe 1"]);
    let saved = |to| Input::Applied {
        to: log.at(to),
        released: bytes,
    };
    case.expect(saved(14), &[]);
    case.expect(saved(15), &["read after 16"]);
}

fn unproven(to: u64) -> Input {
    Input::ApplyFailed {
        failure: ApplyFailure::Unproven {
            to: seq(to),
            why: Unproven::Forged,
        },
        released: 0,
    }
}

#[test]
fn without_history_a_stream_asks_again_for_what_is_not_sealed_however_long_it_takes() {
    let mut log = Log::new("s", 10);
    let mut case = Case::live(&log);
    log.append();
    case.expect(Input::Frame(log.frame(11, 11)), &["apply 11..=11"]);
    case.expect(unproven(11), &["unsubscribe 1", "retry later 1"]);
    for attempt in 2..3 * bounds().recovery_attempts {
        case.expect(Input::AskAgain, &["read after 10"]);
        case.step(log.page(vec![log.frame(11, 11)]));
        assert_eq!(case.step(unproven(11)).last(), Some(&format!("retry later {attempt}")));
    }
    // The bridge has removed the forgery. The true event has another chain hash.
    let log = log.fork(10, 11);
    case.step(Input::AskAgain);
    let effects = case.step(log.page(vec![log.frame(11, 11)]));
    assert_eq!(effects[0], "apply 11..=11");
    case.expect(applied(&log, 11), &[]);
    assert_eq!(case.stream.applied(), log.head());
}
