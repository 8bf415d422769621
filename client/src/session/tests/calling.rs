//! Calls of the application: each gets one answer, whatever happens to the connection.

use super::*;
use crate::error::CallError;

fn call(node: &str) -> Call {
    Call::Challenge {
        node_id: node.to_owned(),
    }
}

/// The calls that the commands make.
fn made(commands: &[Command]) -> Vec<(ConnectionId, CallId)> {
    let made = commands.iter().filter_map(|command| match command {
        Command::Call { connection, id, .. } => Some((*connection, *id)),
        _ => None,
    });
    made.collect()
}

/// The answers that the commands give.
fn replies(commands: &[Command]) -> Vec<(CallId, Called<CallError>)> {
    let replies = commands.iter().filter_map(|command| match command {
        Command::Reply { id, reply } => Some((*id, reply.clone())),
        _ => None,
    });
    replies.collect()
}

impl Case {
    fn call(&mut self, id: u64) -> &[Command] {
        let (id, call) = (CallId(id), call("n"));
        self.step(Event::Call { id, call })
    }
}

#[test]
fn a_call_is_made_on_the_connection_that_serves_and_answered_once() {
    let mut case = Case::new(1, 3);
    assert_eq!(replies(case.call(1)), [(CallId(1), Err(CallError::NotConnected))]);
    let connection = case.live();
    assert_eq!(made(case.call(2)), [(connection, CallId(2))]);
    let answer = || Inbound::Called {
        id: CallId(2),
        answer: Ok(Some("challenge".to_owned())),
    };
    assert_eq!(
        replies(case.hear(ConnectionId(999), answer())),
        [],
        "of another connection"
    );
    let reply = [(CallId(2), Ok(Some("challenge".to_owned())))];
    assert_eq!(replies(case.hear(connection, answer())), reply);
    assert_eq!(replies(case.hear(connection, answer())), []);
}

#[test]
fn a_refusal_is_handed_on_and_one_of_the_token_brings_another_token() {
    let mut case = Case::new(1, 3);
    let connection = case.live();
    case.call(1);
    let refusal = Refusal::new(RefusalCode::ChallengeRefused, "used");
    let answer = Err(CallFailure::Refused(refusal.clone()));
    let commands = case.hear(connection, Inbound::Called { id: CallId(1), answer });
    assert_eq!(replies(commands), [(CallId(1), Err(CallError::Refused(refusal)))]);
    assert!(dialed(&case.stay(connection, second())).is_none());
    case.call(2);
    let answer = Err(aged());
    case.hear(connection, Inbound::Called { id: CallId(2), answer });
    assert!(dialed(&case.stay(connection, 10 * second())).is_some());
}

#[test]
fn what_had_no_answer_when_the_connection_was_lost_is_unknown() {
    let mut case = Case::new(1, 3);
    let connection = case.live();
    case.call(1);
    case.call(2);
    let lost = |id| (CallId(id), Err(CallError::Lost));
    assert_eq!(replies(&case.close(connection)), [lost(1), lost(2)]);
    assert_eq!(replies(case.call(3)), [(CallId(3), Err(CallError::NotConnected))]);
}

#[test]
fn a_call_outlives_the_hand_over_as_long_as_its_connection_does() {
    let mut case = Case::new(1, 3);
    let first = case.live_with_a_token_that_ends_soon();
    case.call(1);
    case.call(2);
    let next = case.dial_next(first);
    case.serve(next);
    let answer = Ok(None);
    let commands = case.hear(first, Inbound::Called { id: CallId(1), answer });
    assert_eq!(replies(commands), [(CallId(1), Ok(None))]);
    let all = case.stay(next, 60 * second());
    assert_eq!(replies(&all), [(CallId(2), Err(CallError::Lost))]);
}

#[test]
fn a_bounded_number_of_calls_waits_for_answers() {
    let mut case = Case::new(1, 3);
    let connection = case.live();
    let most = (1..).find(|id| made(case.call(*id)).is_empty()).unwrap() - 1;
    assert_eq!(most, 64);
    assert_eq!(replies(case.call(100)), [(CallId(100), Err(CallError::TooMany))]);
    let answer = Ok(None);
    case.hear(connection, Inbound::Called { id: CallId(7), answer });
    assert_eq!(made(case.call(101)).len(), 1);
}

#[test]
fn a_client_that_stops_makes_no_call() {
    let mut case = Case::new(1, 3);
    case.live();
    case.step(Event::Stop);
    assert_eq!(replies(case.call(1)), [(CallId(1), Err(CallError::Stopped))]);
}
