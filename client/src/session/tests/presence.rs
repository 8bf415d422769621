//! What a session says of its presence.

use std::collections::BTreeSet;

use super::*;

/// The presence that the commands tell.
fn said(commands: &[Command]) -> Vec<(ConnectionId, &str, Presence)> {
    let said = commands.iter().filter_map(|command| match command {
        Command::SayPresence {
            connection,
            session_id,
            presence,
        } => Some((*connection, session_id.as_str(), presence.clone())),
        _ => None,
    });
    said.collect()
}

/// A live session that is present.
fn present() -> (Case, ConnectionId) {
    let mut case = Case::new(1, 3);
    let connection = case.live();
    let said = Some(Presence::online("node"));
    let watches = BTreeSet::new();
    case.step(Event::Wishes {
        said,
        watches,
        readable: false,
    });
    (case, connection)
}

#[test]
fn presence_is_told_and_repeated_and_answers_are_counted() {
    let (mut case, connection) = present();
    let commands = case.wait(second());
    assert_eq!(said(&commands), [(connection, "session", Presence::online("node"))]);
    case.hear(connection, Inbound::PresenceSaid { answer: Ok(()) });
    assert_eq!(said(&case.stay(connection, 5 * second())).len(), 1);
    let answer = Err(CallFailure::Failed("trapped".to_owned()));
    case.hear(connection, Inbound::PresenceSaid { answer });
    let counters = case.shown.counters;
    assert_eq!((counters.heartbeats, counters.heartbeats_refused), (1, 1));
}

#[test]
fn a_stopping_client_says_that_it_leaves_and_waits_for_the_answer() {
    let (mut case, connection) = present();
    case.wait(second());
    let answer = || Inbound::PresenceSaid { answer: Ok(()) };
    case.hear(connection, answer());
    case.ack(connection, 3, Ok(()));
    case.step(Event::Stop);
    let commands = case.step(Event::ApplierEnded);
    assert_eq!(
        said(commands),
        [(connection, "session", Presence::online("node").gone())]
    );
    assert!(!case.session.has_ended());
    case.hear(ConnectionId(999), answer());
    assert_eq!(case.shown.counters.heartbeats, 1, "of another connection");
    assert!(!case.session.has_ended());
    case.hear(connection, answer());
    assert!(case.session.has_ended());
}
