//! Streams that come and go while the session runs.

use super::*;
use crate::config::{Carries, StreamBounds};
use crate::error::FollowError;

/// A stream's place, of those that the commands give away.
fn opened(commands: &[Command]) -> Vec<(usize, StreamId)> {
    let opened = commands.iter().filter_map(|command| match command {
        Command::Open { stream, stream_id, .. } => Some((*stream, stream_id.clone())),
        _ => None,
    });
    opened.collect()
}

fn replies(commands: &[Command]) -> Vec<(u64, Result<(), FollowError>)> {
    let replies = commands.iter().filter_map(|command| match command {
        Command::Followed { call, result } => Some((call.0, result.clone())),
        _ => None,
    });
    replies.collect()
}

/// The streams for which a token is asked.
fn asked_for(commands: &[Command]) -> Option<Vec<StreamId>> {
    commands.iter().find_map(|command| match command {
        Command::Dial { streams, .. } => Some(streams.clone()),
        _ => None,
    })
}

fn unsubscribed(commands: &[Command]) -> Vec<(usize, SubscriptionId)> {
    let given_up = commands.iter().filter_map(|command| match command {
        Command::Unsubscribe { stream, id, .. } => Some((*stream, *id)),
        _ => None,
    });
    given_up.collect()
}

/// The streams that the status shows.
fn followed_of(case: &Case) -> Vec<String> {
    case.shown.streams.keys().map(|id| id.as_str().to_owned()).collect()
}

impl Case {
    fn bounds(carries: Carries) -> StreamBounds {
        let config = ClientConfig::new("https://host", "lane", vec![id(0)]);
        config.bounds_of(&id(0), carries, 1, carries.are_documents())
    }

    fn follow(&mut self, call: u64, stream: usize) -> &[Command] {
        self.follow_as(call, stream, Carries::Events)
    }

    fn follow_as(&mut self, call: u64, stream: usize, carries: Carries) -> &[Command] {
        self.step(Event::Follow {
            call: CallId(call),
            stream_id: id(stream),
            bounds: Self::bounds(carries),
        })
    }

    fn unfollow(&mut self, call: u64, stream: usize) -> &[Command] {
        self.step(Event::Unfollow {
            call: CallId(call),
            stream_id: id(stream),
        })
    }

    /// The store says that a stream is applied up to this seq.
    fn open(&mut self, place: usize, log: usize, applied: u64) -> &[Command] {
        self.open_as(place, log, applied, Carries::Events)
    }

    fn open_as(&mut self, place: usize, log: usize, applied: u64, carries: Carries) -> &[Command] {
        let opened = Opened {
            at: self.logs[log].at(applied),
            carries,
        };
        let result = Applied::Opened(Ok(opened));
        self.step(Event::Applied(Outcome {
            stream: place,
            released: 0,
            result,
        }))
    }

    /// Connects again, with a token that was asked for now.
    fn reconnect(&mut self, before: ConnectionId) -> ConnectionId {
        self.close(before);
        let connection = self.dial();
        self.serve(connection);
        connection
    }
}

/// A live session of one stream, with the logs of three.
fn live() -> (Case, ConnectionId) {
    let mut case = Case::new(1, 3);
    for at in 1..3 {
        case.logs.push(Log::new(&format!("stream.{at}"), 3));
    }
    let connection = case.dial();
    case.step(Event::Dialed {
        connection,
        token: None,
        result: Ok(Vec::new()),
    });
    case.make_live(connection);
    (case, connection)
}

#[test]
fn a_stream_that_comes_goes_on_from_its_checkpoint() {
    let (mut case, _) = live();
    let commands = case.follow(1, 1);
    assert_eq!((opened(commands), replies(commands)), (vec![(1, id(1))], vec![]));
    assert_eq!(followed_of(&case), ["stream.0"], "nobody knows yet where it is");
    assert_eq!(replies(case.follow(2, 1)), [], "nor does whoever asks again");
    let commands = case.open(1, 1, 2);
    assert_eq!(replies(commands), [(1, Ok(())), (2, Ok(()))]);
    let after = commands.iter().find_map(|command| match command {
        Command::Read { stream: 1, after, .. } => Some(after.get()),
        _ => None,
    });
    assert_eq!(after, Some(2));
    assert_eq!(followed_of(&case), ["stream.0", "stream.1"]);
    assert_eq!(case.shown.streams[&id(1)].applied.seq.get(), 2);
    let unread = reads(&case.commands);
    case.answer(unread[0]);
    case.apply();
    assert_eq!(case.shown.streams[&id(1)].applied.seq.get(), 3);
    assert_eq!(replies(case.follow(3, 1)), [(3, Ok(()))], "it is followed already");
}

#[test]
fn a_stream_that_goes_is_not_shown_read_or_delivered_and_comes_back_as_it_was() {
    let (mut case, connection) = live();
    let commands = case.unfollow(1, 0);
    assert_eq!(
        (unsubscribed(commands).len(), replies(commands)),
        (1, vec![(1, Ok(()))])
    );
    assert_eq!(followed_of(&case), NONE_SHOWN);
    assert_eq!(case.shown.phase, Phase::Idle, "a client that follows nothing is idle");
    case.deliver(connection, 0);
    let commands = case.stay(connection, 40 * second());
    assert_eq!((read(&commands), acknowledged(&commands)), (vec![], vec![]));
    assert_eq!(replies(case.unfollow(2, 0)), [(2, Ok(()))]);
    let commands = case.follow(3, 0);
    assert_eq!((opened(commands), replies(commands)), (vec![], vec![(3, Ok(()))]));
    assert_eq!(read(&case.commands), [0]);
    let unread = reads(&case.commands);
    case.answer(unread[0]);
    case.apply();
    assert_eq!(case.shown.streams[&id(0)].applied.seq.get(), 4);
}

const NONE_SHOWN: [&str; 0] = [];

#[test]
fn what_is_being_applied_when_a_stream_goes_is_awaited() {
    let (mut case, connection) = live();
    case.deliver(connection, 0);
    let ordered = std::mem::take(&mut case.commands);
    assert_eq!(replies(case.unfollow(1, 0)), []);
    let Some((stream, batch)) = ordered.into_iter().find_map(|command| match command {
        Command::Apply {
            stream,
            work: Work::Batch(batch),
        } => Some((stream, batch)),
        _ => None,
    }) else {
        panic!("expected a batch");
    };
    let commands = case.step(Event::Applied(Outcome {
        stream,
        released: batch.bytes,
        result: Applied::To(batch.to),
    }));
    assert_eq!(replies(commands), [(1, Ok(()))]);
    assert_eq!(followed_of(&case), NONE_SHOWN);
}

#[test]
fn a_place_is_given_away_only_once_nothing_of_its_stream_can_come_any_more() {
    let (mut case, connection) = live();
    let given_up = unsubscribed(case.unfollow(1, 0));
    let [(stream, subscription)] = given_up[..] else {
        panic!("expected one subscription, found {given_up:?}");
    };
    assert_eq!(
        opened(case.follow(2, 1)),
        [(1, id(1))],
        "its subscription has yet to end"
    );
    case.open(1, 1, 0);
    case.hear(
        connection,
        Inbound::Unsubscribed {
            stream,
            id: subscription,
        },
    );
    case.ack(connection, 3, Ok(()));
    assert_eq!(opened(case.follow(3, 2)), [(0, id(2))]);
    // Meanwhile the first stream comes back. Its place is no longer its own.
    assert_eq!(opened(case.follow(4, 0)), [(2, id(0))]);
    case.open(0, 2, 1);
    case.open(2, 0, 3);
    assert_eq!(followed_of(&case), ["stream.0", "stream.1", "stream.2"]);
    assert_eq!(case.shown.streams[&id(2)].applied.seq.get(), 1);
    assert_eq!(case.shown.streams[&id(0)].applied.seq.get(), 3);
}

#[test]
fn a_stream_that_is_not_wanted_any_more_when_the_store_answers_is_not_followed() {
    let (mut case, _) = live();
    case.follow(1, 1);
    assert_eq!(replies(case.unfollow(2, 1)), []);
    let commands = case.open(1, 1, 2);
    assert_eq!(
        (replies(commands), read(commands)),
        (vec![(1, Ok(())), (2, Ok(()))], vec![])
    );
    assert_eq!(followed_of(&case), ["stream.0"]);
    // It is known where it is.
    let commands = case.follow(3, 1);
    assert_eq!((opened(commands), read(commands)), (vec![], vec![1]));
}

#[test]
fn a_store_that_cannot_answer_changes_nothing_and_is_asked_again() {
    let (mut case, _) = live();
    case.follow(1, 1);
    let error = StoreError::Full {
        path: "a.db".to_owned(),
        detail: "no room".to_owned(),
    };
    let commands = case.step(Event::Applied(Outcome {
        stream: 1,
        released: 0,
        result: Applied::Opened(Err(error.clone())),
    }));
    assert_eq!(replies(commands), [(1, Err(FollowError::Store(error)))]);
    assert_eq!(followed_of(&case), ["stream.0"]);
    assert_eq!(opened(case.follow(2, 1)), [(1, id(1))]);
}

#[test]
fn a_token_for_the_streams_that_are_followed_is_asked_for_at_once() {
    let mut case = Case::new(1, 3);
    case.logs.push(Log::new("stream.1", 3));
    let connection = case.live();
    case.follow(1, 1);
    let commands = case.open(1, 1, 0);
    assert_eq!((replies(commands), read(commands)), (vec![(1, Ok(()))], vec![]));
    assert_eq!(case.phase_of(1), &StreamPhase::Waiting);
    let commands = case.stay(connection, 3 * second());
    assert_eq!(asked_for(&commands), Some(vec![id(0), id(1)]));
    let next = dialed(&commands).expect("an attempt");
    case.serve(next);
    assert_eq!(read(&case.commands), [1], "{:?}", case.commands);
    // The next token is asked for without it, once it is gone.
    case.unfollow(2, 1);
    case.close(next);
    let commands = case.wait(10 * second());
    assert_eq!(asked_for(&commands), Some(vec![id(0)]));
}

#[test]
fn a_token_that_was_asked_for_before_does_not_count() {
    let mut case = Case::new(1, 3);
    case.logs.push(Log::new("stream.1", 3));
    let first = case.live_with_a_token_that_ends_soon();
    let next = case.dial_next(first);
    let token = case.token(3_600 * second());
    case.now += QUARTER;
    case.follow(1, 1);
    case.open(1, 1, 0);
    case.step(Event::Dialed {
        connection: next,
        token,
        result: Ok(Vec::new()),
    });
    assert_eq!(read(&case.commands), NONE);
    let commands = case.stay(next, 10 * second());
    assert_eq!(asked_for(&commands), Some(vec![id(0), id(1)]));
    let third = dialed(&commands).expect("an attempt");
    case.serve(third);
    assert_eq!(read(&case.commands), [1]);
}

#[test]
fn a_client_that_follows_nothing_asks_for_a_token_all_the_same() {
    let mut case = Case::new(1, 3);
    let connection = case.live();
    case.unfollow(1, 0);
    case.close(connection);
    let commands = case.wait(10 * second());
    assert_eq!(
        asked_for(&commands),
        Some(vec![id(0)]),
        "no issuer gives one for nothing"
    );
    let connection = dialed(&commands).expect("an attempt");
    case.serve(connection);
    assert_eq!(read(&case.commands), NONE);
    assert_eq!(case.shown.phase, Phase::Idle);
}

#[test]
fn there_is_a_bound_to_the_streams_and_to_the_changes_under_way() {
    let mut case = Case::new(limit::TOKEN_STREAMS, 1);
    let most = limit::TOKEN_STREAMS;
    assert_eq!(replies(case.follow(1, most)), [(1, Err(FollowError::TooMany { most }))]);
    // The places of those that are gone are free.
    for stream in 0..70 {
        case.unfollow(100 + stream as u64, stream);
    }
    let opened: Vec<_> = (0..70)
        .flat_map(|stream| {
            case.follow(200 + stream, most + stream as usize);
            opened(&case.commands)
        })
        .map(|(place, _)| place)
        .collect();
    assert_eq!(opened, (0..64).collect::<Vec<_>>());
    assert_eq!(replies(&case.commands), [(269, Err(FollowError::Busy))]);
}

#[test]
fn the_end_of_the_client_answers_whoever_waits() {
    let (mut case, _) = live();
    case.follow(1, 1);
    assert_eq!(replies(case.step(Event::Stop)), [(1, Err(FollowError::Stopped))]);
    assert_eq!(replies(case.follow(2, 1)), [(2, Err(FollowError::Stopped))]);
    assert_eq!(replies(case.unfollow(3, 0)), [(3, Err(FollowError::Stopped))]);
}

#[test]
fn a_stream_that_has_stopped_is_read_from_the_store_again() {
    let (mut case, connection) = live();
    case.follow(1, 1);
    case.open(1, 1, 0);
    let unread = reads(&case.commands);
    case.refuse(unread[0], RefusalCode::InvalidArgument);
    assert_eq!(case.phase_of(1).code(), "stopped");
    case.unfollow(2, 1);
    assert_eq!(opened(case.follow(3, 1)), [(1, id(1))]);
    case.open(1, 1, 0);
    assert_eq!(read(&case.commands), [1]);
    // It goes on with every connection, as one does that was followed from the start.
    let next = case.reconnect(connection);
    let mut again = read(&case.commands);
    again.sort_unstable();
    assert_eq!(again, [0, 1], "on {next:?}");
}

#[test]
fn a_stream_that_is_wanted_as_documents_is_refused_as_events_and_one_that_is_wanted_no_longer_is_soon_free() {
    let documents = Carries::Documents { are_held: false };
    let (mut case, _) = live();
    assert_eq!(opened(case.follow_as(1, 1, documents)), [(1, id(1))]);
    assert_eq!(replies(case.follow(2, 1)), [(2, Err(FollowError::OtherKind))]);
    case.unfollow(3, 1);
    assert_eq!(replies(case.follow(4, 1)), [(4, Err(FollowError::Busy))]);
    assert_eq!(replies(case.open_as(1, 1, 0, documents)), [(1, Ok(())), (3, Ok(()))]);
    assert_eq!(opened(case.follow(5, 1)), [(1, id(1))]);
    assert_eq!(replies(case.open(1, 1, 0)), [(5, Ok(()))]);
}

#[test]
fn to_follow_a_stream_no_longer_ends_no_client() {
    let (mut case, _) = live();
    case.follow(1, 1);
    case.open(1, 1, 0);
    let unread = reads(&case.commands);
    case.refuse(unread[0], RefusalCode::InvalidArgument);
    assert_eq!(case.shown.phase, Phase::Live);
    assert_eq!(replies(case.unfollow(2, 0)), [(2, Ok(()))]);
    assert_eq!(case.shown.phase, Phase::Idle, "the other one has stopped");
    assert_eq!(replies(case.follow(3, 0)), [(3, Ok(()))]);
    assert_eq!(read(&case.commands), [0]);
    // It ends when the last stream that goes on stops.
    let unread = reads(&case.commands);
    assert!(matches!(
        case.refuse(unread[0], RefusalCode::InvalidArgument),
        [.., Command::StopApplier]
    ));
}

#[test]
fn a_place_stays_its_streams_while_a_replaced_connection_may_bring_something_for_it() {
    let mut case = Case::new(2, 3);
    case.logs.push(Log::new("stream.2", 3));
    let first = case.live_with_a_token_that_ends_soon();
    let next = case.dial_next(first);
    case.serve(next);
    // Its subscription on the connection that is handed over is forgotten at once; the other one ends.
    let given_up = unsubscribed(case.unfollow(1, 1));
    for (stream, id) in given_up {
        case.hear(next, Inbound::Unsubscribed { stream, id });
    }
    let (stream, seq, answer) = (1, Seq::new(3).unwrap(), Ok(()));
    case.hear(next, Inbound::Acked { stream, seq, answer });
    let opened = opened(case.follow(2, 2));
    assert_eq!(opened, [(2, id(2))], "the place of stream.1 is not free");
}

#[test]
fn a_swap_at_the_bound_takes_a_new_place() {
    let most = limit::TOKEN_STREAMS;
    let mut case = Case::new(most, 3);
    let connection = case.live();
    case.logs.push(Log::new("another", 3));
    assert_eq!(replies(case.follow(1, most)), [(1, Err(FollowError::TooMany { most }))]);
    case.unfollow(2, 0);
    assert_eq!(opened(case.follow(3, most)), [(most, id(most))], "on {connection:?}");
    assert_eq!(replies(case.follow(4, 0)), [(4, Err(FollowError::TooMany { most }))]);
}
