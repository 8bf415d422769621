//! What is delivered and when: pages, subscriptions, holes, refusals and new connections.

use spacetime_sync_proto::limit::SUBSCRIPTION_EVENTS;

use super::*;

#[test]
fn an_empty_stream_subscribes_from_its_beginning() {
    let log = Log::new("s", 0);
    let mut case = Case::new(log.start);
    case.expect(Input::Connected, &["read after 0"]);
    case.expect(log.page(vec![]), &["subscribe 1 after 0"]);
    assert!(!case.stream.is_current());
    case.expect(Input::Subscribed(SubscriptionId(1)), &[]);
    assert!(case.stream.is_current());
}

#[test]
fn a_stream_pages_what_is_missing_and_then_subscribes() {
    let log = Log::new("s", 9_000);
    let mut case = Case::new(log.at(500));
    case.expect(Input::Connected, &["read after 500"]);
    let far = log.page(vec![log.frame(1, 1_000), log.frame(1_001, 2_000)]);
    case.expect(far, &["apply 501..=1000", "apply 1001..=2000", "read after 2000"]);
    let near = log.page((2..9).map(|k| log.frame(k * 1_000 + 1, (k + 1) * 1_000)).collect());
    let effects = case.step(near);
    assert_eq!(effects.last().unwrap(), "subscribe 1 after 9000");
    case.expect(Input::Subscribed(SubscriptionId(1)), &[]);
    assert!(!case.stream.is_current(), "nothing is applied yet");
    case.expect(applied(&log, 9_000), &[]);
    assert!(case.stream.is_current());
    assert_eq!(case.counters.duplicates_dropped, 500);
    assert_eq!(case.counters.events_applied, 8_500);
    assert_eq!((case.counters.pages, case.counters.frames), (2, 9));
}

#[test]
fn live_frames_are_applied_as_they_come_and_repeats_are_dropped() {
    let mut log = Log::new("s", 10);
    let mut case = Case::live(&log);
    (0..5).for_each(|_| log.append());
    case.expect(Input::Frame(log.frame(11, 12)), &["apply 11..=12"]);
    case.expect(Input::Frame(log.frame(11, 12)), &[]);
    // The stream no longer remembers this position: only the head can tell that it is the same log.
    case.expect(Input::Frame(log.frame(3, 5)), &["read after 12"]);
    let page = Page {
        head: log.at(12),
        oldest_seq: seq(1),
        durable_reads: true,
        frames: vec![],
    };
    case.expect(Input::Page(page), &[]);
    case.expect(Input::Frame(log.frame(10, 15)), &["apply 13..=15"]);
    assert_eq!(case.counters.duplicates_dropped, 2 + 3 + 3);
}

#[test]
fn a_hole_is_paged_once_and_live_goes_on() {
    let mut log = Log::new("s", 10);
    let mut case = Case::live(&log);
    (0..10).for_each(|_| log.append());
    case.expect(Input::Frame(log.frame(15, 16)), &["read after 10"]);
    case.expect(Input::Frame(log.frame(17, 18)), &[]);
    assert_eq!(case.counters.holes_paged, 1);
    assert!(!case.stream.is_current());
    case.expect(log.page(vec![log.frame(11, 20)]), &["apply 11..=20"]);
    case.expect(applied(&log, 20), &[]);
    assert!(case.stream.is_current());
}

#[test]
fn a_page_older_than_what_was_heard_since_is_followed_by_another() {
    let mut log = Log::new("s", 10);
    let mut case = Case::live(&log);
    let older = log.page(vec![]);
    case.expect(Input::Verify, &["read after 10"]);
    (0..5).for_each(|_| log.append());
    case.expect(Input::Frame(log.frame(12, 13)), &[]);
    case.expect(older, &["read after 10"]);
    case.expect(log.page(vec![log.frame(11, 15)]), &["apply 11..=15"]);
}

#[test]
fn a_page_that_leads_nowhere_is_not_requested_in_a_loop() {
    let log = Log::new("s", 5_000);
    let mut case = Case::new(log.start);
    case.step(Input::Connected);
    case.expect(log.page(vec![]), &["ask later"]);
    case.expect(Input::AskAgain, &["read after 0"]);
    case.expect(log.page(vec![log.frame(11, 20)]), &["ask later"]);
}

#[test]
fn a_stream_asks_again_after_a_passing_refusal_and_stops_at_a_final_one() {
    let log = Log::new("s", 1);
    let mut case = Case::new(log.start);
    case.step(Input::Connected);
    case.expect(
        Input::ReadRefused(Refusal::new(RefusalCode::ForbiddenStream, "no grant")),
        &["ask later"],
    );
    assert_eq!(case.stream.mode(), &Mode::Refused(RefusalCode::ForbiddenStream));
    case.expect(Input::AskAgain, &["read after 0"]);
    case.expect(Input::ReadFailed, &["ask later"]);
    case.expect(Input::AskAgain, &["read after 0"]);
    case.expect(
        Input::ReadRefused(Refusal::new(RefusalCode::InvalidArgument, "no")),
        &[],
    );
    assert_eq!(case.stopped().code(), "refused");
    assert_eq!(case.counters.reads_refused, 3);
}

#[test]
fn a_lost_grant_ends_delivery_and_a_new_one_resumes_it() {
    let mut log = Log::new("s", 10);
    let mut case = Case::live(&log);
    case.expect(Input::GrantLost, &["unsubscribe 1", "ask later"]);
    log.append();
    case.expect(Input::Frame(log.frame(11, 11)), &[]);
    case.expect(Input::AskAgain, &["read after 10"]);
    case.expect(
        log.page(vec![log.frame(11, 11)]),
        &["apply 11..=11", "subscribe 2 after 11"],
    );
}

#[test]
fn a_renewed_subscription_takes_over_without_a_gap() {
    let mut log = Log::new("s", 10);
    let mut case = Case::live(&log);
    (0..3).for_each(|_| log.append());
    case.expect(Input::Renew, &["subscribe 2 after 10"]);
    case.expect(Input::Renew, &[]);
    case.expect(Input::Frame(log.frame(11, 11)), &["apply 11..=11"]);
    let both = Mode::Renewing {
        old: SubscriptionId(1),
        new: SubscriptionId(2),
    };
    case.expect(Input::Subscribed(SubscriptionId(1)), &[]);
    assert_eq!(case.stream.mode(), &both);
    case.expect(Input::Subscribed(SubscriptionId(2)), &["unsubscribe 1"]);
    case.expect(Input::Frame(log.frame(12, 13)), &["apply 12..=13"]);
    assert!(case.stream.is_delivering());
    assert_eq!(case.counters.resubscriptions, 1);
}

#[test]
fn a_new_connection_continues_after_what_was_handed_out() {
    let mut log = Log::new("s", 10);
    let mut case = Case::live(&log);
    (0..4).for_each(|_| log.append());
    case.expect(Input::Frame(log.frame(11, 12)), &["apply 11..=12"]);
    case.expect(Input::Disconnected, &[]);
    assert_eq!(case.stream.mode(), &Mode::Offline);
    case.expect(applied(&log, 12), &[]);
    case.expect(Input::Connected, &["read after 12"]);
}

#[test]
fn events_of_a_subscription_that_was_given_up_change_nothing() {
    let log = Log::new("s", 10);
    let mut case = Case::live(&log);
    case.expect(Input::Overrun, &["unsubscribe 1", "read after 10"]);
    case.expect(log.page(vec![]), &["subscribe 2 after 10"]);
    case.expect(Input::Subscribed(SubscriptionId(1)), &[]);
    case.expect(Input::SubscriptionFailed(SubscriptionId(1)), &[]);
    assert_eq!(case.stream.mode(), &Mode::Subscribing(SubscriptionId(2)));
    case.expect(
        Input::SubscriptionFailed(SubscriptionId(2)),
        &["unsubscribe 2", "ask later"],
    );
}

#[test]
fn a_subscription_is_bounded_and_renewed_when_half_is_used() {
    let mut log = Log::new("s", 10);
    let narrow = StreamBounds {
        reach_bytes: 4 * UNKNOWN_EVENT_BYTES as usize,
        ..bounds()
    };
    let mut case = Case::within(log.head(), narrow);
    case.step(Input::Connected);
    let asked = case.stream.step(log.page(vec![]), &mut case.counters);
    let (id, after, to) = (SubscriptionId(1), seq(10), seq(14));
    assert_eq!(asked, [Effect::Subscribe { id, after, to }]);
    case.step(Input::Subscribed(id));
    (0..2).for_each(|_| log.append());
    case.expect(Input::Frame(log.frame(11, 11)), &["apply 11..=11"]);
    let frame = Input::Frame(log.frame(12, 12));
    case.expect(frame, &["apply 12..=12", "subscribe 2 after 12"]);
    case.expect(Input::Subscribed(SubscriptionId(2)), &["unsubscribe 1"]);
}

#[test]
fn the_next_event_is_within_the_subscription_however_narrow() {
    let log = Log::new("s", 10);
    for reach_bytes in [0, 1, 1_000, 100_000] {
        let mut case = Case::within(
            log.head(),
            StreamBounds {
                reach_bytes,
                ..bounds()
            },
        );
        case.step(Input::Connected);
        let asked = case.stream.step(log.page(vec![]), &mut case.counters);
        let [Effect::Subscribe { after, to, .. }] = asked[..] else {
            panic!("{asked:?}")
        };
        let last_before_renewal = after.plus(to.since(after).div_ceil(2) - 1);
        assert!(last_before_renewal < to);
    }
}

#[test]
fn one_page_is_under_way_at_a_time() {
    let log = Log::new("s", 10);
    let mut case = Case::live(&log);
    assert!(!case.stream.is_reading());
    case.expect(Input::Verify, &["read after 10"]);
    assert!(case.stream.is_reading());
    case.expect(Input::Verify, &[]);
}

#[test]
fn either_subscription_that_fails_during_a_renewal_ends_both() {
    let log = Log::new("s", 10);
    for (failed, effects) in [
        (1, &["unsubscribe 1", "unsubscribe 2", "ask later"][..]),
        (2, &["unsubscribe 1", "unsubscribe 2", "ask later"]),
        (3, &[]),
    ] {
        let mut case = Case::live(&log);
        case.expect(Input::Renew, &["subscribe 2 after 10"]);
        case.expect(Input::SubscriptionFailed(SubscriptionId(failed)), effects);
    }
}

/// Up to where a stream subscribes that may have so many bytes ahead.
fn reach(case: &mut Case, input: Input) -> u64 {
    let asked = case.stream.step(input, &mut case.counters);
    let reach = asked.iter().find_map(|effect| match effect {
        Effect::Subscribe { after, to, .. } => Some(to.since(*after)),
        _ => None,
    });
    reach.expect("a subscription")
}

/// More than a subscription ever brings in these tests.
const WIDE: u64 = 1 << 20;

#[test]
fn a_subscription_reaches_as_far_as_the_size_of_recent_events_allows() {
    let mut log = Log::new("s", 20);
    log.append_payload(&(0..999).map(|n| n.to_string()).collect::<String>());
    (0..2).for_each(|_| log.append());
    let wide = StreamBounds {
        reach_bytes: WIDE as usize,
        ..bounds()
    };
    let mut case = Case::within(log.at(0), wide.clone());
    case.step(Input::Connected);
    let frames = [(1, 5), (6, 20)].map(|(first, last)| log.frame(first, last)).to_vec();
    let bytes: usize = frames.iter().map(|frame| frame.bytes.len()).sum();
    let page = Input::Page(Page {
        head: log.at(20),
        oldest_seq: seq(1),
        durable_reads: true,
        frames,
    });
    let each = bytes.div_ceil(20) as u64;
    assert_eq!(reach(&mut case, page), WIDE / each);
    // A larger event counts at once, a smaller one little by little.
    let mut case = Case::within(log.at(20), wide);
    case.step(Input::Connected);
    let at_head = Page {
        head: log.at(20),
        oldest_seq: seq(1),
        durable_reads: true,
        frames: vec![],
    };
    case.step(Input::Page(at_head));
    case.step(Input::Subscribed(SubscriptionId(1)));
    case.step(Input::Frame(log.frame(21, 21)));
    let large = log.frame(21, 21).bytes.len() as u64;
    assert_eq!(reach(&mut case, Input::Renew), WIDE / large);
    case.step(Input::Subscribed(SubscriptionId(2)));
    case.step(Input::Frame(log.frame(22, 22)));
    assert_eq!(reach(&mut case, Input::Renew), WIDE / (large - large / 8));
}

#[test]
fn a_subscription_reaches_no_further_than_a_gate_lets_pass() {
    let log = Log::new("s", 10);
    let endless = StreamBounds {
        reach_bytes: usize::MAX,
        ..bounds()
    };
    let mut case = Case::within(log.head(), endless);
    case.step(Input::Connected);
    assert_eq!(reach(&mut case, log.page(vec![])), SUBSCRIPTION_EVENTS);
}

#[test]
fn a_page_that_denies_what_was_heard_before_it_is_believed() {
    let mut log = Log::new("s", 10);
    let mut case = Case::live(&log);
    let rewound = log.page(vec![]);
    (0..10).for_each(|_| log.append());
    case.expect(Input::Frame(log.frame(15, 16)), &["read after 10"]);
    case.expect(rewound, &[]);
    assert!(case.stream.is_current());
}
