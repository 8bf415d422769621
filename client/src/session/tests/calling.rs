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
        self.call_within(id, None)
    }

    fn call_within(&mut self, id: u64, within: Option<Duration>) -> &[Command] {
        let (id, call) = (CallId(id), call("n"));
        self.step(Event::Call { id, call, within })
    }

    /// Answers a call.
    fn answer_call(&mut self, connection: ConnectionId, id: u64, answer: Called<CallFailure>) -> &[Command] {
        self.hear(connection, Inbound::Called { id: CallId(id), answer })
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
fn a_client_that_stops_answers_all_calls_and_makes_no_other() {
    let mut case = Case::new(1, 3);
    case.call_within(1, MINUTE);
    let connection = case.live();
    case.call(2);
    case.call_within(3, MINUTE);
    case.answer_call(connection, 3, Err(busy()));
    case.close(connection);
    case.call_within(4, MINUTE);
    let outcomes = [
        (CallId(1), Err(CallError::Lost)),
        (CallId(3), Err(CallError::Refused(refusal_of(busy())))),
        (CallId(4), Err(CallError::Stopped)),
    ];
    assert_eq!(replies(case.step(Event::Stop)), outcomes);
    assert_eq!(replies(case.call(5)), [(CallId(5), Err(CallError::Stopped))]);
}

const MINUTE: Option<Duration> = Some(Duration::from_secs(60));

fn busy() -> CallFailure {
    CallFailure::Refused(Refusal::new(RefusalCode::RateLimited, "later"))
}

fn refusal_of(failure: CallFailure) -> Refusal {
    match failure {
        CallFailure::Refused(refusal) => refusal,
        CallFailure::Failed(said) => panic!("{said}"),
    }
}

#[test]
fn a_call_that_may_be_repeated_waits_for_a_connection_and_outlives_it() {
    let mut case = Case::new(1, 3);
    assert_eq!(replies(case.call_within(1, MINUTE)), []);
    let first = case.dial();
    case.serve(first);
    let commands = std::mem::take(&mut case.commands);
    assert_eq!(made(&commands), [(first, CallId(1))]);
    let commands = case.close(first);
    assert_eq!((made(&commands), replies(&commands)), (vec![], vec![]));
    let next = case.dial();
    case.serve(next);
    let commands = std::mem::take(&mut case.commands);
    assert_eq!(made(&commands), [(next, CallId(1))]);
    assert_eq!(
        replies(case.answer_call(first, 1, Ok(None))),
        [],
        "of the lost connection"
    );
    assert_eq!(replies(case.answer_call(next, 1, Ok(None))), [(CallId(1), Ok(None))]);
    assert_eq!(made(&case.close(next)), []);
}

#[test]
fn a_refusal_that_passes_is_waited_for_and_any_other_ends_the_call() {
    let mut case = Case::new(1, 3);
    let connection = case.live();
    case.call_within(1, MINUTE);
    for failure in [busy(), CallFailure::Failed("trapped".to_owned()), busy()] {
        let commands = case.answer_call(connection, 1, Err(failure));
        assert_eq!((made(commands), replies(commands)), (vec![], vec![]), "not at once");
        assert_eq!(made(&case.stay(connection, 5 * second())), [(connection, CallId(1))]);
    }
    let refusal = Refusal::new(RefusalCode::AssignmentConflict, "somebody else has it");
    let commands = case.answer_call(connection, 1, Err(CallFailure::Refused(refusal.clone())));
    assert_eq!(replies(commands), [(CallId(1), Err(CallError::Refused(refusal)))]);
    assert_eq!(made(&case.stay(connection, 10 * second())), []);
}

#[test]
fn a_call_whose_time_is_up_says_what_is_known() {
    let within = Some(3 * second());
    let outcome = |case: &mut Case, connection: Option<ConnectionId>| {
        let commands = match connection {
            Some(connection) => case.stay(connection, 4 * second()),
            None => case.wait(4 * second()),
        };
        replies(&commands)
    };
    // Nothing was sent.
    let mut case = Case::new(1, 3);
    let connection = case.live();
    case.close(connection);
    case.call_within(1, within);
    assert_eq!(outcome(&mut case, None), [(CallId(1), Err(CallError::NotConnected))]);
    // It is under way.
    let mut case = Case::new(1, 3);
    let connection = case.live();
    case.call_within(1, within);
    assert_eq!(
        outcome(&mut case, Some(connection)),
        [(CallId(1), Err(CallError::Lost))]
    );
    assert_eq!(
        replies(case.answer_call(connection, 1, Ok(None))),
        [],
        "it was answered"
    );
    // The module refused each attempt, so the call was never done.
    case.call_within(2, Some(Duration::ZERO));
    case.answer_call(connection, 2, Err(busy()));
    let refused = CallError::Refused(refusal_of(busy()));
    assert_eq!(outcome(&mut case, Some(connection)), [(CallId(2), Err(refused))]);
    // It may have been done before it was refused.
    // The session takes ten seconds to dial.
    case.call_within(3, Some(10 * second() + QUARTER / 2));
    case.close(connection);
    let next = case.dial();
    case.serve(next);
    case.answer_call(next, 3, Err(busy()));
    assert_eq!(outcome(&mut case, Some(next)), [(CallId(3), Err(CallError::Lost))]);
    assert!(
        case.call_within(4, Some(Duration::MAX)).len() == 1,
        "no time is too long"
    );
}

#[test]
fn a_connection_that_owes_an_answer_for_too_long_is_given_up() {
    let mut case = Case::new(1, 3);
    let connection = case.live();
    case.call_within(1, Some(1_000 * second()));
    assert_eq!(closed(&case.stay(connection, 59 * second())), []);
    assert_eq!(closed(&case.stay(connection, 3 * second())), [connection]);
}
