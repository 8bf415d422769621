//! What a session says of its presence, and what it shows of the presence of others.

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

fn watches(commands: &[Command]) -> usize {
    let watch = |command: &&Command| matches!(command, Command::WatchPresence { .. });
    commands.iter().filter(watch).count()
}

fn shows(commands: &[Command]) -> usize {
    let show = |command: &&Command| matches!(command, Command::ShowPresences { .. });
    commands.iter().filter(show).count()
}

/// A live session that is present.
fn present(watch: bool) -> (Case, ConnectionId) {
    let mut case = Case::new(1, 3);
    let connection = case.live();
    let said = Some(Presence::online("node"));
    case.step(Event::Presence { said, watch });
    (case, connection)
}

#[test]
fn presence_is_told_and_repeated_and_answers_are_counted() {
    let (mut case, connection) = present(false);
    let commands = case.wait(second());
    assert_eq!(said(&commands), [(connection, "session", Presence::online("node"))]);
    assert_eq!(watches(&commands), 0);
    case.hear(connection, Inbound::PresenceSaid { answer: Ok(()) });
    assert_eq!(said(&case.stay(connection, 5 * second())).len(), 1);
    let answer = Err(CallFailure::Failed("trapped".to_owned()));
    case.hear(connection, Inbound::PresenceSaid { answer });
    let counters = case.shown.counters;
    assert_eq!((counters.heartbeats, counters.heartbeats_refused), (1, 1));
}

#[test]
fn presence_is_watched_once_and_shown_when_it_has_changed() {
    let (mut case, connection) = present(true);
    assert_eq!(watches(&case.wait(second())), 1);
    assert_eq!(watches(&case.wait(second())), 0);
    assert_eq!(shows(case.hear(connection, Inbound::GrantCame)), 0);
    assert_eq!(shows(case.hear(connection, Inbound::PresenceChanged)), 1);
}

#[test]
fn the_presence_that_a_replaced_connection_brings_is_not_shown() {
    let mut case = Case::new(1, 3);
    let first = case.live_with_a_token_that_ends_soon();
    let second = case.dial_next(first);
    case.serve(second);
    assert_eq!(shows(case.hear(first, Inbound::PresenceChanged)), 0);
    assert_eq!(shows(case.hear(second, Inbound::PresenceChanged)), 1);
}

#[test]
fn a_stopping_client_says_that_it_leaves_and_waits_for_the_answer() {
    let (mut case, connection) = present(false);
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
