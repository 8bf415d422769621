//! What the session asks about heads, and what it makes of streams that are not brought there.

use std::ops::Range;

use spacetime_sync_proto::limit;

use super::*;
use crate::session::stream::Rung;

/// A session that can ask the authority.
fn case(streams: usize, set: impl FnOnce(&mut ClientConfig)) -> Case {
    Case::within(streams, 3, |config| {
        config.history = History::At("http://bridge".to_owned());
        set(config);
    })
}

/// A session that serves, the question that it began with, and its connection.
fn asking(streams: usize, set: impl FnOnce(&mut ClientConfig)) -> (Case, ConnectionId, QuestionId) {
    let mut case = case(streams, set);
    let connection = case.dial();
    case.serve(connection);
    let (question, _) = asked(&case.commands).remove(0);
    (case, connection, question)
}

/// The questions for heads among the commands.
fn asked(commands: &[Command]) -> Vec<(QuestionId, Range<usize>)> {
    let asked = commands.iter().filter_map(|command| match command {
        Command::AskHeads { question, streams, .. } => Some((*question, streams.clone())),
        _ => None,
    });
    asked.collect()
}

/// The streams that the commands report to the bridge.
fn reported_of(commands: &[Command]) -> Vec<usize> {
    let reported = commands.iter().filter_map(|command| match command {
        Command::AskHeads { reported, .. } => Some(reported.clone()),
        _ => None,
    });
    reported.flatten().collect()
}

/// The streams whose events the commands ask the authority for.
fn history_of(commands: &[Command]) -> Vec<usize> {
    let asked = commands.iter().filter_map(|command| match command {
        Command::Ask {
            stream,
            about: Question::Events(_),
            ..
        } => Some(*stream),
        _ => None,
    });
    asked.collect()
}

fn heads(question: QuestionId, heads: &[(usize, u64)]) -> Event {
    let heads = heads.iter().map(|(at, seq)| (*at, Seq::new(*seq).unwrap()));
    Event::Heads {
        question,
        answer: Ok(heads.collect()),
    }
}

#[test]
fn every_stream_is_asked_about_with_each_token_and_now_and_then() {
    let (mut case, connection, first) = asking(1, |config| config.limits.heads_every = 20 * second());
    case.make_live(connection);
    case.step(heads(first, &[(0, 3)]));
    assert_eq!(asked(&case.stay(connection, 19 * second())), []);
    let (again, streams) = asked(&case.stay(connection, 2 * second())).remove(0);
    assert_eq!(streams, 0..1);
    assert_ne!(again, first);
}

#[test]
fn a_client_that_cannot_ask_the_authority_asks_for_no_heads() {
    let mut case = Case::new(1, 3);
    let connection = case.dial();
    case.serve(connection);
    assert_eq!(asked(&case.commands), []);
    assert_eq!(asked(&case.stay(connection, 400 * second())), []);
}

#[test]
fn many_streams_are_asked_about_in_parts_one_at_a_time() {
    let mut case = case(limit::HEADS + 2, |_| {});
    let connection = case.dial();
    case.serve(connection);
    let (question, streams) = asked(&case.commands).remove(0);
    assert_eq!(streams, 0..limit::HEADS);
    let rest = asked(case.step(heads(question, &[])));
    assert_eq!(rest[0].1, limit::HEADS..limit::HEADS + 2);
    assert_eq!(asked(case.step(heads(rest[0].0, &[]))), []);
}

#[test]
fn a_question_that_fails_is_asked_again_soon() {
    let (mut case, connection, question) = asking(1, |_| {});
    case.make_live(connection);
    let answer = Err("no bridge".to_owned());
    assert_eq!(asked(case.step(Event::Heads { question, answer })), []);
    assert_eq!(asked(&case.stay(connection, 29 * second())), []);
    assert_eq!(asked(&case.stay(connection, 2 * second())).len(), 1);
}

#[test]
fn what_spacetimedb_keeps_back_is_read_from_the_authority_and_shown() {
    let (mut case, connection, question) = asking(2, |_| {});
    case.make_live(connection);
    case.step(heads(question, &[(0, 3), (1, 5)]));
    let commands = case.stay(connection, 29 * second());
    assert_eq!(history_of(&commands), NONE);
    assert_eq!(case.phase_of(1), &StreamPhase::Live);
    let commands = case.stay(connection, 2 * second());
    assert_eq!(history_of(&commands), [1]);
    // The bridge hears at once what is missing, in the question about the heads.
    let (question, _) = asked(&commands).pop().unwrap();
    assert_eq!(reported_of(&commands), [1]);
    case.step(heads(question, &[(0, 3), (1, 5)]));
    assert_eq!(case.shown.counters.withheld, 1);
    let StreamPhase::Recovering {
        rung: Rung::Consult(why),
        ..
    } = case.phase_of(1)
    else {
        panic!("{:?}", case.phase_of(1));
    };
    assert_eq!(why.code(), "withheld");
    // SpacetimeDB may keep back what comes next as well.
    assert_eq!(asked(&case.stay(connection, 31 * second())).len(), 1);
}

#[test]
fn a_stream_that_is_brought_to_the_head_in_time_goes_on() {
    let (mut case, connection, question) = asking(1, |_| {});
    case.make_live(connection);
    case.step(heads(question, &[(0, 4)]));
    case.stay(connection, 29 * second());
    case.deliver(connection, 0);
    case.apply();
    assert_eq!(history_of(&case.stay(connection, 10 * second())), NONE);
    assert_eq!(case.shown.counters.withheld, 0);
}

#[test]
fn a_newer_head_does_not_postpone_what_is_overdue() {
    let (mut case, connection, question) = asking(1, |config| config.limits.heads_every = 20 * second());
    case.make_live(connection);
    case.step(heads(question, &[(0, 4)]));
    let (again, _) = asked(&case.stay(connection, 21 * second())).remove(0);
    case.step(heads(again, &[(0, 9)]));
    assert_eq!(history_of(&case.stay(connection, 11 * second())), [0]);
}

#[test]
fn much_that_is_missing_may_take_longer() {
    let (mut case, connection, question) = asking(1, |_| {});
    case.make_live(connection);
    case.step(heads(question, &[(0, 1_003)]));
    assert_eq!(history_of(&case.stay(connection, 39 * second())), NONE);
    assert_eq!(history_of(&case.stay(connection, 2 * second())), [0]);
}

#[test]
fn a_stream_that_waits_for_its_turn_to_read_is_not_overdue() {
    let (mut case, connection, question) = asking(2, |config| config.limits.pages_in_flight = 1);
    assert_eq!(read(&case.commands), [0]);
    case.step(heads(question, &[(0, 3), (1, 3)]));
    assert_eq!(history_of(&case.stay(connection, 31 * second())), [0]);
}

#[test]
fn a_stream_whose_application_is_slow_is_not_overdue() {
    let (mut case, connection, question) = asking(1, |config| config.limits.resume_bytes = 0);
    let unread = reads(&case.commands);
    // The events arrive, and nobody applies them.
    case.answer(unread[0]);
    case.step(heads(question, &[(0, 5)]));
    assert_eq!(history_of(&case.stay(connection, 40 * second())), NONE);
}

#[test]
fn an_answer_to_a_question_of_an_earlier_round_is_ignored() {
    let (mut case, connection, question) = asking(1, |config| config.limits.heads_every = 5 * second());
    case.make_live(connection);
    let commands = case.stay(connection, 6 * second());
    let withdraws = |command: &Command| matches!(command, Command::Withdraw { question: of } if *of == question);
    assert!(commands.iter().any(withdraws), "{commands:?}");
    case.step(heads(question, &[(0, 9)]));
    assert!(case.session.followers[0].owed.is_none());
}
