//! Which streams the session may read, as the application hears it.

use std::collections::BTreeSet;

use super::*;
use crate::readable::ReadableStreams;
use crate::session::readable::SPREAD;
use crate::watched::Freshness;

/// The questions among commands, and after which name each asks.
fn asked(commands: &[Command]) -> Vec<(ConnectionId, QuestionId, String)> {
    let asked = commands.iter().filter_map(|command| match command {
        Command::AskReadable {
            connection,
            question,
            after,
        } => Some((*connection, *question, after.clone())),
        _ => None,
    });
    asked.collect()
}

/// What the commands show the application.
fn told(commands: &[Command]) -> Vec<(Option<ReadableStreams>, Freshness)> {
    let told = commands.iter().filter_map(|command| match command {
        Command::ShowReadable { readable, freshness } => Some((readable.clone(), *freshness)),
        _ => None,
    });
    told.collect()
}

fn streams(names: &[&str], is_complete: bool) -> (Option<ReadableStreams>, Freshness) {
    let streams = names.iter().map(|name| StreamId::new(name).unwrap()).collect();
    (Some(ReadableStreams { streams, is_complete }), Freshness::Live)
}

fn speaks(newest: u32) -> Inbound {
    let ours = Contract::ours();
    Inbound::Contract(Contract { newest, ..ours })
}

impl Case {
    fn want_readable(&mut self) -> &[Command] {
        self.step(Event::Wishes {
            said: None,
            watches: BTreeSet::new(),
            readable: true,
        })
    }

    fn tell(&mut self, connection: ConnectionId, question: QuestionId, names: &[&str]) -> &[Command] {
        let answer = Ok(names.iter().map(|name| (*name).to_owned()).collect());
        self.hear(connection, Inbound::Readable { question, answer })
    }

    /// Asks at once, and answers with these names.
    fn tell_all(&mut self, connection: ConnectionId, commands: &[Command], names: &[&str]) {
        let [(_, question, _)] = &asked(commands)[..] else {
            panic!("expected one question, found {commands:?}");
        };
        let next = asked(self.tell(connection, *question, names));
        for (_, question, _) in next {
            self.tell(connection, question, &[]);
        }
    }
}

/// A live session on a module that tells, with the question that it has asked.
fn asking() -> (Case, ConnectionId, QuestionId) {
    asking_with(7)
}

/// The same with other dice.
fn asking_with(seed: u64) -> (Case, ConnectionId, QuestionId) {
    let mut case = Case::seeded(2, 3, seed, |_| {});
    let connection = case.live();
    case.hear(connection, speaks(12));
    let asked = asked(case.want_readable());
    let [(on, question, after)] = &asked[..] else {
        panic!("expected one question, found {asked:?}");
    };
    assert_eq!((*on, after.as_str()), (connection, ""));
    (case, connection, *question)
}

#[test]
fn pages_are_asked_for_until_one_brings_no_later_name() {
    let (mut case, connection, first) = asking();
    let next = asked(case.tell(connection, first, &["a", "not a name", "b"]));
    let [(_, second, after)] = &next[..] else {
        panic!("expected the next page, found {next:?}");
    };
    assert_eq!(after, "b");
    assert_eq!(told(case.tell(connection, first, &["c"])), [], "answered before");
    assert_eq!(
        told(case.tell(ConnectionId(999), *second, &[])),
        [],
        "of another connection"
    );
    assert_eq!(told(case.tell(connection, *second, &[])), [streams(&["a", "b"], true)]);
    // Nobody has to want it twice.
    assert_eq!(asked(case.want_readable()), []);
}

#[test]
fn a_module_that_repeats_itself_is_not_asked_for_ever() {
    let (mut case, connection, question) = asking();
    let next = asked(case.tell(connection, question, &["a", "b"]));
    let again = case.tell(connection, next[0].1, &["a", "b"]);
    assert_eq!((asked(again), told(again)), (vec![], vec![streams(&["a", "b"], true)]));
}

#[test]
fn a_grant_that_comes_or_goes_is_heard_and_many_at_once_are_one_question() {
    let (mut case, connection, question) = asking();
    // One comes while the first question is under way.
    assert_eq!(asked(case.hear(connection, Inbound::GrantCame)), []);
    case.tell(connection, question, &[]);
    let later = case.stay(connection, 3 * second());
    assert_eq!(asked(&later).len(), 1, "what came meanwhile is asked for");
    case.tell_all(connection, &later, &["a"]);
    case.stay(connection, 2 * second());
    let inbound = (0..50)
        .map(|key| Inbound::GrantLost {
            stream_key: 1_000 + key,
        })
        .collect();
    let mut soon = asked(case.step(Event::Message { connection, inbound }));
    soon.extend(asked(&case.stay(connection, SPREAD + QUARTER)));
    assert_eq!(soon.len(), 1, "a session that has rested asks soon");
    case.tell(connection, soon[0].1, &[]);
    assert_eq!(asked(case.hear(connection, Inbound::GrantCame)), [], "and then rests");
    assert_eq!(asked(&case.stay(connection, 3 * second())).len(), 1);
}

#[test]
fn sessions_whose_grants_change_at_the_same_moment_do_not_all_ask_at_once() {
    let sessions = 100;
    // How many ask at once, and how many in each quarter of a second after that.
    let mut asking_at = [0; 6];
    for seed in 0..sessions {
        let (mut case, connection, question) = asking_with(seed);
        case.tell(connection, question, &[]);
        case.stay(connection, 2 * second());
        case.hear(connection, Inbound::GrantCame);
        let mut commands = std::mem::take(&mut case.commands);
        let quarter = asking_at.iter_mut().find(|_| {
            let asks = !asked(&commands).is_empty();
            commands = case.stay(connection, QUARTER);
            asks
        });
        *quarter.expect("every session asks within the spread") += 1;
    }
    assert!(
        asking_at.iter().all(|at_once| *at_once <= sessions / 2),
        "{asking_at:?}"
    );
}

#[test]
fn without_a_connection_it_is_stale_and_the_next_one_is_asked() {
    let (mut case, connection, question) = asking();
    case.tell(connection, question, &[]);
    let since = case.now;
    let commands = case.close(connection);
    assert_eq!(told(&commands), [(None, Freshness::Stale { since })]);
    let connection = case.dial();
    case.step(Event::Dialed {
        connection,
        token: None,
        result: Ok(vec![speaks(12)]),
    });
    let commands = std::mem::take(&mut case.commands);
    case.tell_all(connection, &commands, &["a"]);
    assert_eq!(told(&case.commands), [streams(&["a"], true)]);
}

#[test]
fn a_refusal_makes_it_stale_and_is_followed_by_another_attempt() {
    let (mut case, connection, question) = asking();
    case.tell(connection, question, &[]);
    case.stay(connection, 2 * second());
    case.hear(connection, Inbound::GrantCame);
    let mut commands = std::mem::take(&mut case.commands);
    commands.extend(case.stay(connection, SPREAD + QUARTER));
    let question = asked(&commands)[0].1;
    let answer = Err(CallFailure::Failed("no".to_owned()));
    let since = case.now;
    assert_eq!(
        told(case.hear(connection, Inbound::Readable { question, answer })),
        [(None, Freshness::Stale { since })]
    );
    let commands = case.stay(connection, 6 * second());
    case.tell_all(connection, &commands, &["a"]);
    assert_eq!(told(&case.commands), [streams(&["a"], true)]);
}

#[test]
fn a_module_that_cannot_tell_is_not_asked() {
    let mut case = Case::new(2, 3);
    let connection = case.live();
    assert_eq!(case.shown.schema_version, Some(11));
    let commands = case.want_readable();
    assert_eq!(
        (asked(commands), told(commands)),
        (vec![], vec![streams(&["stream.0", "stream.1"], false)])
    );
    case.now += 2 * second();
    let commands = case.hear(connection, Inbound::GrantLost { stream_key: 1 });
    assert_eq!(
        (asked(commands), told(commands)),
        (vec![], vec![streams(&["stream.0"], false)])
    );
    // The module is updated under the connection.
    let mut commands = asked(case.hear(connection, speaks(12)));
    commands.extend(asked(&case.stay(connection, 2 * second())));
    assert_eq!(commands.len(), 1);
    assert_eq!(case.shown.schema_version, Some(12));
    case.close(connection);
    assert_eq!(case.shown.schema_version, None);
}

#[test]
fn a_question_that_is_never_answered_ends_the_connection() {
    let (mut case, connection, _) = asking();
    let commands = case.wait(5 * second());
    assert_eq!(closed(&commands), [connection]);
    // The next connection serves for a while before it is asked, whoever ended the first.
    let next = dialed(&commands).unwrap_or_else(|| case.dial());
    let result = Ok(vec![speaks(12), Inbound::GrantCame]);
    case.step(Event::Dialed {
        connection: next,
        token: None,
        result,
    });
    assert_eq!(asked(&case.commands), []);
    let commands = case.stay(next, 6 * second());
    assert_eq!(asked(&commands).len(), 1);
}
