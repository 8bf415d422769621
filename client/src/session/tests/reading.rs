//! Pages: how many are under way, and for how many there is room.

use spacetime_sync_proto::limit::PAGE_BYTES;

use super::stream::ApplyFailure;
use super::*;

fn connected(mut case: Case) -> (Case, ConnectionId) {
    let connection = case.dial();
    case.serve(connection);
    (case, connection)
}

#[test]
fn only_so_many_pages_are_under_way() {
    let (mut case, _) = connected(Case::new(6, 3));
    assert_eq!(read(&case.commands), [0, 1, 2, 3]);
    let first = reads(&case.commands)[0];
    assert_eq!(read(case.answer(first)), [4]);
}

#[test]
fn a_page_is_read_only_if_there_is_room_for_it() {
    let (mut case, _) = connected(Case::within(5, 3, |config| {
        config.limits.unapplied_bytes = 3 * PAGE_BYTES
    }));
    assert_eq!(read(&case.commands), [0, 1, 2]);
    let first = reads(&case.commands)[0];
    assert_eq!(read(case.answer(first)), NONE, "what it brought is not applied yet");
    case.apply();
    assert_eq!(read(&case.commands), [3]);
}

#[test]
fn there_is_always_room_for_one_page() {
    let (mut case, _) = connected(Case::within(2, 3, |config| config.limits.unapplied_bytes = 1));
    assert_eq!(read(&case.commands), [0]);
    let first = reads(&case.commands)[0];
    assert_eq!(read(case.answer(first)), NONE);
    case.apply();
    assert_eq!(read(&case.commands), [1]);
}

#[test]
fn reads_of_a_lost_connection_are_asked_again_on_the_next() {
    let (mut case, connection) = connected(Case::within(2, 3, |config| config.limits.pages_in_flight = 1));
    assert_eq!(read(&case.commands), [0]);
    case.close(connection);
    let (mut case, _) = connected(case);
    let first = reads(&case.commands)[0];
    assert_eq!(first.2, 0);
    assert_eq!(read(case.answer(first)), [1]);
}

#[test]
fn a_forbidden_stream_stays_forbidden_until_a_page_comes() {
    let (mut case, connection) = connected(Case::within(1, 9, |config| config.limits.subscribe_within_events = 1));
    let unread = reads(&case.commands)[0];
    case.refuse(unread, RefusalCode::ForbiddenStream);
    let code = RefusalCode::ForbiddenStream;
    let again = reads(&case.stay(connection, 6 * second()));
    assert_eq!(again.len(), 1);
    assert_eq!(case.phase_of(0), &StreamPhase::Forbidden { code }, "it only asks");
    let mut page = case.page(0);
    page.frames = vec![case.logs[0].frame(1, 5)];
    let (stream, read, answer) = (0, again[0].1, Ok((0, page)));
    case.hear(connection, Inbound::Page { stream, read, answer });
    assert_eq!(case.phase_of(0), &StreamPhase::CatchingUp);
}

#[test]
fn a_failed_subscription_is_tried_again_after_a_while() {
    let mut case = Case::new(1, 3);
    let connection = case.live();
    let (stream, id, detail) = (0, SubscriptionId(1), String::new());
    case.hear(connection, Inbound::SubscriptionFailed { stream, id, detail });
    assert_eq!(case.phase_of(0), &StreamPhase::Unanswered);
    assert_eq!(read(&case.wait(5 * second() - QUARTER)), NONE);
    assert_eq!(read(&case.wait(QUARTER)), [0]);
}

#[test]
fn an_overrun_begins_only_past_the_bound() {
    let mut case = Case::new(2, 3);
    let connection = case.live();
    let bytes = case.logs[0].frame(3, 3).bytes.len();
    case.session.settings.limits.unapplied_bytes = 2 * bytes;
    for (stream, overruns) in [(0, 0), (1, 0), (1, 1)] {
        case.deliver(connection, stream);
        assert_eq!(case.shown.counters.overruns, overruns);
    }
}

#[test]
fn a_batch_that_fails_again_and_again_is_tried_more_and_more_rarely() {
    let mut case = Case::new(1, 3);
    let connection = case.dial();
    case.serve(connection);
    // The waits are random: these are the shortest, in seconds.
    for shortest in [0, 0, 0, 0, 1, 2] {
        let unread = reads(&case.commands)[0];
        case.answer(unread);
        let failure = ApplyFailure::Retry {
            message: "busy".to_owned(),
        };
        case.step(Event::Applied(Outcome {
            stream: 0,
            released: usize::MAX,
            result: Applied::Failed(failure),
        }));
        let failed = case.now;
        while reads(&case.commands).is_empty() {
            case.commands = case.wait(QUARTER);
        }
        assert!((case.now - failed).as_secs() >= shortest);
    }
}
