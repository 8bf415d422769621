//! What the application watches: what the session subscribes to, and how fresh it says that is.

use std::collections::BTreeSet;

use super::*;
use crate::signal::{Audience, Audiences, Purpose};
use crate::watched::{Freshness, Watchable};

const WATCHED: Watchable = Watchable::Capabilities;

/// What the commands subscribe to.
fn watched(commands: &[Command]) -> Vec<(ConnectionId, Watchable)> {
    let watched = commands.iter().filter_map(|command| match command {
        Command::Watch { connection, watchable } => Some((*connection, *watchable)),
        _ => None,
    });
    watched.collect()
}

/// Whose rows the commands show, and how fresh they say these are.
fn shown(commands: &[Command]) -> Vec<(Watchable, Option<ConnectionId>, Freshness)> {
    let shown = commands.iter().filter_map(|command| match command {
        Command::Show {
            watchable,
            rows_of,
            freshness,
        } => Some((*watchable, *rows_of, *freshness)),
        _ => None,
    });
    shown.collect()
}

impl Case {
    fn watch(&mut self, watches: &[Watchable]) -> &[Command] {
        let watches = BTreeSet::from_iter(watches.iter().copied());
        self.step(Event::Wishes {
            said: None,
            watches,
            readable: false,
        })
    }
}

/// A live session that watches, and sees every change.
fn watching() -> (Case, ConnectionId) {
    let mut case = Case::new(1, 3);
    let connection = case.live();
    assert_eq!(watched(case.watch(&[WATCHED])), [(connection, WATCHED)]);
    assert_eq!(
        shown(case.hear(connection, Inbound::Changed(WATCHED))),
        [],
        "not all rows are there"
    );
    let live = [(WATCHED, Some(connection), Freshness::Live)];
    assert_eq!(shown(case.hear(connection, Inbound::ViewBegan(WATCHED))), live);
    (case, connection)
}

#[test]
fn each_thing_is_watched_once_and_shown_when_it_has_changed() {
    let (mut case, connection) = watching();
    assert_eq!(watched(&case.stay(connection, 10 * second())), []);
    let other = Watchable::Outbox;
    assert_eq!(watched(case.watch(&[WATCHED, other])), [(connection, other)]);
    assert_eq!(shown(case.hear(connection, Inbound::GrantCame)), []);
    let inbound = vec![
        Inbound::Changed(WATCHED),
        Inbound::Changed(other),
        Inbound::Changed(WATCHED),
    ];
    let commands = case.step(Event::Message { connection, inbound });
    let live = (WATCHED, Some(connection), Freshness::Live);
    assert_eq!(
        shown(commands),
        [live],
        "once for a message, and not what has not begun"
    );
}

#[test]
fn without_a_connection_nothing_is_live_and_it_says_since_when() {
    let (mut case, connection) = watching();
    let lost_at = case.now;
    let stale = [(WATCHED, None, Freshness::Stale { since: lost_at })];
    assert_eq!(shown(&case.close(connection)), stale);
    assert_eq!(watched(case.watch(&[WATCHED, Watchable::Outbox])), []);
    let next = case.dial();
    case.serve(next);
    let commands = std::mem::take(&mut case.commands);
    assert_eq!(watched(&commands), [(next, WATCHED), (next, Watchable::Outbox)]);
    assert_eq!(shown(&commands), [], "it stays stale, since the same time");
    // What belongs to the lost connection changes nothing.
    for late in [Inbound::ViewBegan(WATCHED), Inbound::Changed(WATCHED)] {
        assert_eq!(shown(case.hear(connection, late)), []);
    }
    let live = [(WATCHED, Some(next), Freshness::Live)];
    assert_eq!(shown(case.hear(next, Inbound::ViewBegan(WATCHED))), live);
}

#[test]
fn what_was_never_seen_does_not_become_stale() {
    let mut case = Case::new(1, 3);
    let connection = case.live();
    case.watch(&[WATCHED]);
    assert_eq!(shown(&case.close(connection)), []);
}

#[test]
fn a_hand_over_makes_it_stale_until_the_next_connection_has_brought_all() {
    let mut case = Case::new(1, 3);
    let first = case.live_with_a_token_that_ends_soon();
    case.watch(&[WATCHED]);
    case.hear(first, Inbound::ViewBegan(WATCHED));
    let next = case.dial_next(first);
    case.serve(next);
    let commands = std::mem::take(&mut case.commands);
    assert_eq!(watched(&commands), [(next, WATCHED)]);
    let since = case.now;
    assert_eq!(shown(&commands), [(WATCHED, None, Freshness::Stale { since })]);
    assert_eq!(
        shown(case.hear(first, Inbound::Changed(WATCHED))),
        [],
        "it may be behind"
    );
    let live = [(WATCHED, Some(next), Freshness::Live)];
    assert_eq!(shown(case.hear(next, Inbound::ViewBegan(WATCHED))), live);
}

#[test]
fn a_subscription_that_ends_makes_it_stale_and_is_made_again() {
    let (mut case, connection) = watching();
    let failed = || Inbound::ViewFailed {
        watchable: WATCHED,
        detail: "no".to_owned(),
    };
    let since = case.now;
    let commands = case.hear(connection, failed());
    assert_eq!(shown(commands), [(WATCHED, None, Freshness::Stale { since })]);
    assert_eq!(shown(case.hear(connection, Inbound::Changed(WATCHED))), []);
    assert_eq!(watched(&case.stay(connection, 4 * second())), []);
    assert_eq!(watched(&case.stay(connection, 2 * second())), [(connection, WATCHED)]);
    assert_eq!(shown(case.hear(connection, failed())), [], "it is known");
}

#[test]
fn a_client_that_stops_sees_nothing_more() {
    let (mut case, connection) = watching();
    let since = case.now;
    let commands = case.step(Event::Stop);
    assert_eq!(shown(commands), [(WATCHED, None, Freshness::Stale { since })]);
    assert_eq!(shown(case.hear(connection, Inbound::Changed(WATCHED))), []);
}

/// A live session that watches the assignments of its user and of all who may provide, which the ears 0 and 1 hear.
fn watching_audiences() -> (Case, ConnectionId) {
    let mut case = Case::new(1, 3);
    let connection = case.live();
    let wanted = [Audience::OwnUser, Audience::Providers].map(|audience| (Purpose::Assignments, audience));
    let audiences = Audiences {
        wanted: wanted.to_vec(),
        listeners: 0,
    };
    case.step(Event::Hear(audiences));
    assert_eq!(watched(case.watch(&[SHOWN])), [], "it is heard, audience by audience");
    (case, connection)
}

const SHOWN: Watchable = Watchable::Assignments;

impl Case {
    fn audience_begins(&mut self, connection: ConnectionId, ear: usize) -> &[Command] {
        let answer = Ok(70 + ear as u64);
        self.hear(connection, Inbound::AudienceTold { ear, answer });
        self.hear(connection, Inbound::HearingBegan { ear })
    }

    fn audience_refused(&mut self, connection: ConnectionId, ear: usize) -> &[Command] {
        let answer = Err(CallFailure::Refused(Refusal::new(RefusalCode::MissingScope, "no")));
        self.hear(connection, Inbound::AudienceTold { ear, answer })
    }
}

#[test]
fn what_is_shown_to_audiences_is_live_when_all_of_them_are_heard() {
    let (mut case, connection) = watching_audiences();
    assert_eq!(shown(case.audience_begins(connection, 0)), []);
    assert_eq!(shown(case.hear(connection, Inbound::Changed(SHOWN))), []);
    let live = [(SHOWN, Some(connection), Freshness::Live)];
    assert_eq!(shown(case.audience_begins(connection, 1)), live);
    assert_eq!(shown(case.hear(connection, Inbound::Changed(SHOWN))), live);
    let lost_at = case.now;
    let stale = [(SHOWN, None, Freshness::Stale { since: lost_at })];
    assert_eq!(shown(&case.close(connection)), stale);
    let next = case.dial();
    case.serve(next);
    assert_eq!(shown(&std::mem::take(&mut case.commands)), []);
    assert_eq!(shown(case.audience_begins(next, 1)), []);
    let live = [(SHOWN, Some(next), Freshness::Live)];
    assert_eq!(shown(case.audience_begins(next, 0)), live);
}

#[test]
fn an_audience_that_the_session_is_none_of_shows_nothing_and_keeps_nothing_from_being_live() {
    let (mut case, connection) = watching_audiences();
    case.audience_begins(connection, 0);
    let live = [(SHOWN, Some(connection), Freshness::Live)];
    assert_eq!(shown(case.audience_refused(connection, 1)), live);
    // The policy has changed: what the session sees is not all of it until the other audience is heard, too.
    let since = case.now;
    case.hear(connection, Inbound::GrantCame);
    let answer = Ok(71);
    let told = case.hear(connection, Inbound::AudienceTold { ear: 1, answer });
    assert_eq!(shown(told), [(SHOWN, None, Freshness::Stale { since })]);
    assert_eq!(shown(case.hear(connection, Inbound::HearingBegan { ear: 1 })), live);
}

#[test]
fn a_refusal_on_another_connection_or_about_the_token_leaves_it_unseen() {
    let (mut case, connection) = watching_audiences();
    case.audience_begins(connection, 0);
    let aged = Refusal::new(RefusalCode::TokenExpired, "no");
    let answer = Err(CallFailure::Refused(aged));
    let told = case.hear(connection, Inbound::AudienceTold { ear: 1, answer });
    assert_eq!(shown(told), []);
    let (mut case, connection) = watching_audiences();
    case.audience_refused(connection, 1);
    case.close(connection);
    let next = case.dial();
    case.serve(next);
    assert_eq!(shown(case.audience_begins(next, 0)), []);
}

#[test]
fn an_audience_that_is_heard_no_more_makes_it_stale() {
    let (mut case, connection) = watching_audiences();
    case.audience_begins(connection, 0);
    case.audience_begins(connection, 1);
    let stale = [(SHOWN, None, Freshness::Stale { since: case.now })];
    let failed = Inbound::HearingFailed {
        ear: 1,
        detail: "no".to_owned(),
    };
    assert_eq!(shown(case.hear(connection, failed)), stale);
    case.stay(connection, 6 * second());
    let live = [(SHOWN, Some(connection), Freshness::Live)];
    assert_eq!(shown(case.audience_begins(connection, 1)), live);
    let stale = [(SHOWN, None, Freshness::Stale { since: case.now })];
    assert_eq!(
        shown(case.hear(connection, Inbound::GrantLost { stream_key: 71 })),
        stale
    );
    assert_eq!(shown(case.audience_refused(connection, 1)), live);
}
