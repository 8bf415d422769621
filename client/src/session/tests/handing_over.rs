//! Connections that take over from one whose token is about to end.

use super::*;

#[test]
fn a_connection_hands_over_stream_by_stream_and_ends_with_the_last() {
    let mut case = Case::new(2, 3);
    let first = case.live_with_a_token_that_ends_soon();
    let second = case.dial_next(first);
    case.serve(second);
    let moved: Vec<_> = case.commands.iter().filter_map(subscribed).collect();
    assert_eq!(moved.len(), 2);
    assert_eq!(case.shown.counters.refreshes, 1);
    let (stream, id) = moved[0];
    assert_eq!(closed(case.hear(second, Inbound::Subscribed { stream, id })), []);
    let (stream, id) = moved[1];
    assert_eq!(closed(case.hear(second, Inbound::Subscribed { stream, id })), [first]);
    assert_eq!(
        (case.shown.phase.clone(), case.session.serving()),
        (Phase::Live, Some(second))
    );
}

/// A connection that has just been replaced: one stream reads from it, one waits for its subscription there, and one is
/// live.
fn replaced() -> (Case, ConnectionId, ConnectionId) {
    let mut case = Case::new(3, 3);
    let first = case.dial();
    case.serve_with_token_of(first, 20 * second());
    let unread = reads(&case.commands);
    for read in &unread[1..] {
        case.answer(*read);
        case.apply();
    }
    let (stream, id) = (2, SubscriptionId(1));
    case.hear(first, Inbound::Subscribed { stream, id });
    let next = case.dial_next(first);
    case.serve(next);
    let moving: Vec<_> = case.commands.iter().filter_map(subscribed).collect();
    assert_eq!(moving, [(2, SubscriptionId(2))]);
    (case, first, next)
}

#[test]
fn streams_that_have_not_moved_in_time_page_on_the_new_connection() {
    let (mut case, first, next) = replaced();
    let commands = case.stay(next, 5 * second() - QUARTER);
    assert_eq!((closed(&commands), read(&commands)), (vec![], vec![]));
    let commands = case.stay(next, QUARTER);
    assert_eq!((closed(&commands), read(&commands)), (vec![first], vec![0, 1, 2]));
    assert!(reads(&commands).iter().all(|read| read.0 == next));
}

#[test]
fn the_end_of_a_replaced_connection_loses_only_what_was_to_come_on_it() {
    let (mut case, first, _) = replaced();
    assert!(case.close(ConnectionId(999)).is_empty());
    let commands = case.close(first);
    assert_eq!((closed(&commands), read(&commands)), (vec![first], vec![0, 1]));
    assert_eq!(case.phase_of(2), &StreamPhase::Live);
}

#[test]
fn a_subscription_that_fails_on_the_replaced_connection_matters_only_to_a_stream_that_relies_on_it() {
    let (mut case, first, _) = replaced();
    let failed = |stream| Inbound::SubscriptionFailed {
        stream,
        id: SubscriptionId(1),
        detail: String::new(),
    };
    assert_eq!(read(case.hear(first, failed(2))), NONE);
    assert_eq!(case.phase_of(2), &StreamPhase::Live);
    assert_eq!(read(case.hear(first, failed(1))), [1]);
}

#[test]
fn a_replaced_connection_delivers_and_its_rows_are_dropped_with_it() {
    let (mut case, first, next) = replaced();
    let bytes = case.logs[2].frame(3, 3).bytes.len();
    case.deliver(first, 2);
    case.apply();
    assert_eq!(case.shown.streams[&id(2)].applied, case.logs[2].head());
    case.deliver(ConnectionId(999), 2);
    assert!(case.commands.is_empty());
    for _ in 0..2 {
        case.deliver_frame(next, 2, 5, 5);
    }
    assert_eq!(case.session.cache.all(), 3 * bytes);
    case.close(first);
    assert_eq!(case.session.cache.all(), 2 * bytes);
}

#[test]
fn a_stream_that_must_page_again_asks_once_and_in_turn() {
    let mut case = Case::within(2, 3, |config| config.limits.pages_in_flight = 1);
    let first = case.live_with_a_token_that_ends_soon();
    let next = case.dial_next(first);
    case.serve(next);
    for (stream, expected) in [(0, vec![0]), (1, vec![])] {
        (0..2).for_each(|_| case.logs[stream].append());
        assert_eq!(read(case.deliver_frame(first, stream, 5, 5)), expected);
    }
    let mut commands = case.stay(next, 5 * second());
    for (stream, follower) in [(0, vec![1]), (1, vec![])] {
        let unread = reads(&commands);
        assert_eq!(read(&commands), [stream]);
        assert_eq!(read(case.answer(unread[0])), follower);
        commands = std::mem::take(&mut case.commands);
    }
}
