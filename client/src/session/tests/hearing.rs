//! What is told in passing: what the session asks for, and what it tells the application about every break.

use super::*;
use crate::signal::{Audience, Audiences, Heard, Purpose};

/// The audiences whose keys the commands ask for.
fn asked(commands: &[Command]) -> Vec<(ConnectionId, usize)> {
    let asked = commands.iter().filter_map(|command| match command {
        Command::AskAudience { connection, ear, .. } => Some((*connection, *ear)),
        _ => None,
    });
    asked.collect()
}

/// The keys that the commands subscribe to.
fn heard(commands: &[Command]) -> Vec<(ConnectionId, usize, u64)> {
    let heard = commands.iter().filter_map(|command| match command {
        Command::Hear {
            connection, ear, key, ..
        } => Some((*connection, *ear, *key)),
        _ => None,
    });
    heard.collect()
}

/// What the commands tell the application.
fn told(commands: &[Command]) -> Vec<Heard> {
    let told = commands.iter().filter_map(|command| match command {
        Command::Tell(heard) => Some(heard.clone()),
        _ => None,
    });
    told.collect()
}

fn of(stream: &str) -> Audience {
    Audience::Stream(StreamId::new(stream).unwrap())
}

/// What a listener wants, who is the first, the second …
fn signals(audiences: &[Audience], listeners: u64) -> Event {
    let wanted = audiences.iter().map(|audience| (Purpose::Signals, audience.clone()));
    Event::Hear(Audiences {
        wanted: wanted.collect(),
        listeners,
    })
}

/// Anything that could be heard.
fn something() -> Inbound {
    Inbound::Told(Heard::Missed(1))
}

/// A live session that listens to its own user.
fn listening() -> (Case, ConnectionId) {
    let mut case = Case::new(1, 3);
    let connection = case.live();
    let commands = case.step(signals(&[Audience::OwnUser], 1));
    assert_eq!(asked(commands), [(connection, 0)]);
    let commands = case.hear(connection, Inbound::AudienceTold { ear: 0, answer: Ok(70) });
    assert_eq!((heard(commands), told(commands)), (vec![(connection, 0, 70)], vec![]));
    let commands = case.hear(connection, Inbound::HearingBegan { ear: 0 });
    assert_eq!(told(commands), [Heard::Listening(Audience::OwnUser)]);
    (case, connection)
}

#[test]
fn what_is_told_is_handed_on_and_another_listener_learns_what_is_heard() {
    let (mut case, connection) = listening();
    assert_eq!(told(case.hear(connection, something())), [Heard::Missed(1)]);
    let commands = case.step(signals(&[Audience::OwnUser, of("a")], 2));
    assert_eq!(told(commands), [Heard::Listening(Audience::OwnUser)]);
    assert_eq!(asked(commands), [(connection, 1)]);
    assert_eq!(
        asked(&case.stay(connection, 10 * second())),
        [],
        "each is asked for once"
    );
}

#[test]
fn a_lost_connection_is_told_and_the_next_one_listens_anew() {
    let (mut case, connection) = listening();
    assert_eq!(told(&case.close(connection)), [Heard::Interrupted(Audience::OwnUser)]);
    assert_eq!(told(case.hear(connection, something())), []);
    let next = case.dial();
    case.serve(next);
    let commands = std::mem::take(&mut case.commands);
    assert_eq!((asked(&commands), told(&commands)), (vec![(next, 0)], vec![]));
    // What belongs to the lost connection changes nothing.
    for late in [
        Inbound::AudienceTold { ear: 0, answer: Ok(70) },
        Inbound::HearingBegan { ear: 0 },
        something(),
    ] {
        let commands = case.hear(connection, late);
        assert_eq!((heard(commands), told(commands)), (vec![], vec![]));
    }
    let commands = case.hear(next, Inbound::AudienceTold { ear: 0, answer: Ok(70) });
    assert_eq!(heard(commands), [(next, 0, 70)]);
    let commands = case.hear(next, Inbound::HearingBegan { ear: 0 });
    assert_eq!(told(commands), [Heard::Listening(Audience::OwnUser)]);
}

#[test]
fn a_hand_over_is_a_break_and_only_one_connection_is_heard() {
    let mut case = Case::new(1, 3);
    let first = case.live_with_a_token_that_ends_soon();
    case.step(signals(&[Audience::OwnUser], 1));
    case.hear(first, Inbound::AudienceTold { ear: 0, answer: Ok(70) });
    case.hear(first, Inbound::HearingBegan { ear: 0 });
    let next = case.dial_next(first);
    case.serve(next);
    let commands = std::mem::take(&mut case.commands);
    assert_eq!(told(&commands), [Heard::Interrupted(Audience::OwnUser)]);
    assert_eq!(asked(&commands), [(next, 0)]);
    assert_eq!(told(case.hear(first, something())), []);
    case.hear(next, Inbound::AudienceTold { ear: 0, answer: Ok(70) });
    case.hear(next, Inbound::HearingBegan { ear: 0 });
    assert_eq!(told(case.hear(next, something())), [Heard::Missed(1)]);
}

#[test]
fn a_refusal_is_told_once_and_the_key_asked_for_again() {
    let mut case = Case::new(1, 3);
    let connection = case.live();
    case.step(signals(&[of("a")], 1));
    let refusal = Refusal::new(RefusalCode::ForbiddenStream, "no");
    let refused = || Inbound::AudienceTold {
        ear: 0,
        answer: Err(CallFailure::Refused(refusal.clone())),
    };
    let (audience, expected) = (of("a"), refusal.clone());
    let commands = case.hear(connection, refused());
    assert_eq!(
        told(commands),
        [Heard::Refused {
            audience,
            refusal: expected
        }]
    );
    assert_eq!(asked(&case.stay(connection, 4 * second())), []);
    assert_eq!(asked(&case.stay(connection, 2 * second())), [(connection, 0)]);
    assert_eq!(told(case.hear(connection, refused())), [], "it is known");
    // A grant that comes may be the one.
    assert_eq!(asked(case.hear(connection, Inbound::GrantCame)), [(connection, 0)]);
}

#[test]
fn a_right_that_is_lost_and_comes_back_needs_no_other_subscription() {
    let (mut case, connection) = listening();
    let commands = case.hear(connection, Inbound::GrantLost { stream_key: 71 });
    assert_eq!(asked(commands), []);
    let commands = case.hear(connection, Inbound::GrantLost { stream_key: 70 });
    assert_eq!(asked(commands), [(connection, 0)]);
    assert_eq!(told(commands), [Heard::Interrupted(Audience::OwnUser)]);
    let commands = case.hear(connection, Inbound::AudienceTold { ear: 0, answer: Ok(70) });
    assert_eq!(told(commands), [Heard::Listening(Audience::OwnUser)]);
    assert_eq!(heard(commands), []);
}

#[test]
fn a_subscription_that_ends_is_told_and_made_again() {
    let (mut case, connection) = listening();
    let failed = Inbound::HearingFailed {
        ear: 0,
        detail: "no".to_owned(),
    };
    let commands = case.hear(connection, failed);
    assert_eq!(told(commands), [Heard::Interrupted(Audience::OwnUser)]);
    assert_eq!(asked(&case.stay(connection, 6 * second())), [(connection, 0)]);
    let commands = case.hear(connection, Inbound::AudienceTold { ear: 0, answer: Ok(70) });
    assert_eq!(heard(commands), [(connection, 0, 70)]);
}
