//! Connections: attempts, failures and silence.

use super::*;

#[test]
fn events_of_a_connection_that_was_given_up_are_ignored() {
    let mut case = Case::new(1, 3);
    let first = case.dial();
    case.serve(first);
    let (_, read, stream) = case.commands.iter().find_map(read_of).unwrap();
    assert_eq!(closed(&case.close(first)), [first]);
    let second = case.dial();
    case.serve(second);
    let before = case.shown.clone();
    let other = Contract {
        oldest: 999,
        newest: 999,
        ..Contract::ours()
    };
    let answer = Ok((0, case.page(0)));
    for late in [
        Inbound::Page { stream, read, answer },
        Inbound::Contract(other),
        Inbound::NoModule { detail: String::new() },
    ] {
        assert!(case.hear(first, late).is_empty());
    }
    case.close(first);
    assert!(case.commands.is_empty());
    assert_eq!((case.session.serving(), &case.shown), (Some(second), &before));
    // The same for an attempt that the session has given up.
    let token = case.token(Duration::from_secs(60));
    let commands = case.step(Event::Dialed {
        connection: ConnectionId(999),
        token,
        result: Ok(Vec::new()),
    });
    assert_eq!(closed(commands), [ConnectionId(999)]);
}

#[test]
fn a_client_without_grants_waits_says_so_and_asks_again() {
    let mut case = Case::new(1, 3);
    let mut connection = case.dial();
    for _ in 0..20 {
        let error = TokenError::refused(RefusalCode::Forbidden, "none of the streams");
        case.step(Event::Dialed {
            connection,
            token: None,
            result: Err(DialFailure::NoToken(error)),
        });
        let Phase::Backoff { retry_in, reason, .. } = &case.shown.phase else {
            panic!("{:?}", case.shown.phase);
        };
        assert_eq!(reason.refusal(), Some(RefusalCode::Forbidden));
        assert!((5..=10).contains(&retry_in.as_secs()), "{retry_in:?}");
        connection = case.dial();
    }
    // By now the issuer knows the stream's owner.
    case.serve(connection);
    case.make_live(connection);
}

#[test]
fn a_connection_that_falls_silent_is_given_up_in_time() {
    let mut case = Case::new(1, 3);
    let connection = case.live();
    let began = case.now;
    while closed(&case.wait(Duration::from_millis(250))).is_empty() {}
    let took = case.now - began;
    assert!((7..=8).contains(&took.as_secs()), "{took:?}");
    assert_eq!(case.session.serving(), None);
    let Phase::Backoff { reason, .. } = &case.shown.phase else {
        panic!("{:?} {connection:?}", case.shown.phase);
    };
    assert_eq!(reason.code(), "silence");
}

#[test]
fn a_call_may_stay_unanswered_for_exactly_the_limit() {
    let mut case = Case::new(1, 3);
    let mut silent = case.dial();
    case.serve(silent);
    assert_eq!(closed(&case.wait(4 * second())), []);
    assert_eq!(closed(&case.wait(QUARTER)), [silent]);
    // A connection that is not silent is given up much later.
    silent = case.dial();
    case.serve(silent);
    assert_eq!(closed(&case.stay(silent, 60 * second())), []);
    assert_eq!(closed(&case.stay(silent, QUARTER)), [silent]);
}

#[test]
fn a_silent_connection_is_tested_with_one_question_about_a_stream_that_delivers() {
    let mut case = Case::new(3, 3);
    let connection = case.live();
    case.hear(connection, Inbound::GrantLost { stream_key: 0 });
    assert_eq!(read(&case.wait(3 * second() - QUARTER)), NONE);
    assert_eq!(read(&case.wait(second())), [1]);
}

#[test]
fn a_wakeup_before_its_time_dials_nothing() {
    let mut case = Case::new(1, 3);
    let connection = case.live();
    case.close(connection);
    assert_eq!(dialed(case.step(Event::Woken)), None);
    case.dial();
}

#[test]
fn another_attempt_than_the_present_one_is_closed_even_if_it_succeeded() {
    let mut case = Case::new(1, 3);
    let connection = case.dial();
    case.serve(ConnectionId(999));
    assert_eq!(closed(&case.commands), [ConnectionId(999)]);
    assert_eq!(case.session.serving(), None);
    case.serve(connection);
    assert_eq!(case.session.serving(), Some(connection));
}

#[test]
fn connections_after_the_first_are_counted() {
    let mut case = Case::new(1, 3);
    for reconnects in 0..3 {
        let connection = case.dial();
        case.serve(connection);
        assert_eq!(case.shown.counters.reconnects, reconnects);
        case.close(connection);
    }
}

/// A live session whose third attempt to connect succeeded.
fn third_time_lucky(stable_after: Duration) -> (Case, ConnectionId) {
    let mut case = Case::within(1, 3, |config| config.backoff.stable_after = stable_after);
    for _ in 0..2 {
        let connection = case.dial();
        case.fail(connection, None, DialFailure::Later(Disconnect::Closed));
    }
    let connection = case.live_with_a_token_that_ends_soon();
    (case, connection)
}

/// Which failure in a row the end of the connection is.
fn failures(case: &mut Case, connection: ConnectionId) -> u32 {
    case.close(connection);
    match &case.shown.phase {
        Phase::Backoff { attempt, .. } => *attempt,
        other => panic!("{other:?}"),
    }
}

#[test]
fn after_a_stable_while_a_failure_counts_as_the_first() {
    for (seconds, expected) in [(9, 3), (11, 1)] {
        let (mut case, connection) = third_time_lucky(10 * second());
        case.stay(connection, seconds * second());
        assert_eq!(failures(&mut case, connection), expected);
    }
}

#[test]
fn a_stable_while_spans_a_hand_over() {
    let (mut case, first) = third_time_lucky(25 * second());
    let next = case.dial_next(first);
    case.serve(next);
    let (stream, id) = case.commands.iter().find_map(subscribed).unwrap();
    case.hear(next, Inbound::Subscribed { stream, id });
    case.stay(next, 9 * second());
    assert_eq!(failures(&mut case, next), 1);
}
