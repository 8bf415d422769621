//! Tokens: which one an attempt uses, and what makes the session doubt one.

use std::collections::BTreeSet;

use super::*;

/// Whether the attempt among the commands reuses a token.
fn reuses(commands: &[Command]) -> Option<(ConnectionId, bool)> {
    commands.iter().find_map(|command| match command {
        Command::Dial { connection, token, .. } => Some((*connection, token.is_some())),
        _ => None,
    })
}

fn closed_early() -> DialFailure {
    DialFailure::Later(Disconnect::Closed)
}

#[test]
fn a_token_is_used_again_unless_it_was_not_accepted() {
    let mut case = Case::new(1, 3);
    let mut connection = case.dial();
    for (failure, reused) in [(closed_early(), true), (DialFailure::Unauthorized, false)] {
        let token = case.token(3_600 * second());
        case.fail(connection, token, failure);
        let next = reuses(&case.wait(10 * second())).unwrap();
        assert_eq!(next.1, reused);
        connection = next.0;
    }
}

#[test]
fn a_replacement_begins_with_a_new_token_and_is_repeated_with_the_same() {
    let mut case = Case::within(1, 3, |config| config.limits.verify_every = 3_600 * second());
    let first = case.dial();
    // Long enough for the random share by which it is replaced earlier to exceed the time between two looks.
    case.serve_with_token_of(first, 600 * second());
    case.make_live(first);
    let next = |case: &mut Case| (0..3_000).find_map(|_| reuses(&case.stay(first, QUARTER))).unwrap();
    let (attempted, reused) = next(&mut case);
    assert!(!reused, "the present token is about to end");
    let token = case.token(20 * second());
    case.fail(attempted, token, closed_early());
    assert!(next(&mut case).1);
}

#[test]
fn a_failed_replacement_is_tried_again_later_and_shown() {
    let mut case = Case::new(1, 3);
    let first = case.live_with_a_token_that_ends_soon();
    for failures in 1..=3 {
        let attempted = case.dial_next(first);
        let failure = DialFailure::NoToken(TokenError::unavailable("busy"));
        case.fail(attempted, None, failure);
        let token = case.shown.token.clone().unwrap();
        assert_eq!(token.failures, failures);
        assert!(token.refresh_at > case.now);
        assert_eq!(case.shown.counters.token_failures, u64::from(failures));
        assert_eq!(case.session.serving(), Some(first));
    }
}

#[test]
fn a_refused_read_casts_doubt_on_the_token_if_it_grants_the_stream_or_has_aged() {
    use RefusalCode::{ForbiddenStream, RateLimited, TokenExpired};
    // The token grants only the first stream.
    for (stream, code, doubted) in [
        (0, ForbiddenStream, true),
        (1, ForbiddenStream, false),
        (0, RateLimited, false),
        (1, TokenExpired, true),
    ] {
        let mut case = Case::new(2, 3);
        let connection = case.dial();
        case.serve(connection);
        let unread = reads(&case.commands);
        case.refuse(unread[stream], code);
        let next = dialed(&case.wait(2 * second()));
        assert_eq!(next.is_some(), doubted, "{stream} {code:?}");
    }
}

#[test]
fn a_call_that_is_refused_for_the_tokens_age_casts_doubt_on_it() {
    let other = CallFailure::Refused(Refusal::new(RefusalCode::RateLimited, "too many"));
    let failed = CallFailure::Failed("trapped".to_owned());
    for (failure, doubted) in [(aged(), true), (other, false), (failed, false)] {
        let answer = Err(failure);
        let acked = Inbound::Acked {
            stream: 0,
            seq: Seq::new(3).unwrap(),
            answer: answer.clone(),
        };
        for inbound in [acked, Inbound::PresenceSaid { answer }] {
            let mut case = Case::new(1, 3);
            let connection = case.live();
            let (said, watches) = (Some(Presence::online("node")), BTreeSet::new());
            case.step(Event::Wishes {
                said,
                watches,
                readable: false,
            });
            case.wait(QUARTER);
            case.hear(connection, inbound);
            let next = dialed(&case.wait(2 * second()));
            assert_eq!(next.is_some(), doubted);
        }
    }
}

#[test]
fn a_refusal_that_ends_the_session_stops_the_client_and_any_other_only_the_stream() {
    use RefusalCode::{InvalidArgument, SessionBound, SurfacePolicyDenied, TokenRevoked};
    for (code, ends) in [
        (TokenRevoked, true),
        (SessionBound, true),
        (SurfacePolicyDenied, true),
        (InvalidArgument, false),
    ] {
        let mut case = Case::new(2, 3);
        let connection = case.dial();
        case.serve(connection);
        let unread = reads(&case.commands);
        let stops = matches!(case.refuse(unread[0], code), [Command::StopApplier]);
        assert_eq!(stops, ends, "{code:?}");
    }
}
