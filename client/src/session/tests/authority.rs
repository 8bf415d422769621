//! Questions to the authority: how many, in which order, and what their answers mean.

use bytes::Bytes;
use spacetime_sync_proto::limit::PAGE_BYTES;
use spacetime_sync_proto::page::Snapshot;
use spacetime_sync_proto::{PayloadHash, StaleCursor, StaleReason};

use super::*;
use crate::config::{StaleAnswer, WithoutDocument};

/// A session that asks the authority, because SpacetimeDB holds only the last event of each stream. Connected, and with
/// its first reads under way.
fn case(streams: usize, set: impl FnOnce(&mut ClientConfig)) -> (Case, ConnectionId) {
    let mut case = Case::within(streams, 3, |config| {
        config.history = History::At("http://bridge".to_owned());
        set(config);
    });
    let connection = case.dial();
    case.serve(connection);
    (case, connection)
}

/// The questions among the commands.
fn asked(commands: &[Command]) -> Vec<(usize, Question, QuestionId)> {
    let asked = commands.iter().filter_map(|command| match command {
        Command::Ask {
            question,
            stream,
            about,
            ..
        } => Some((*stream, about.clone(), *question)),
        _ => None,
    });
    asked.collect()
}

/// The streams that the commands ask about.
fn streams(asked: &[(usize, Question, QuestionId)]) -> Vec<usize> {
    asked.iter().map(|(stream, ..)| *stream).collect()
}

fn withdrawn(commands: &[Command]) -> Vec<QuestionId> {
    let withdrawn = commands.iter().filter_map(|command| match command {
        Command::Withdraw { question } => Some(*question),
        _ => None,
    });
    withdrawn.collect()
}

fn begins(commands: &[Command]) -> bool {
    let begins = |command: &Command| {
        matches!(
            command,
            Command::Apply {
                work: Work::StartOver(_),
                ..
            }
        )
    };
    commands.iter().any(begins)
}

impl Case {
    /// Answers a read with a window that holds only the last event.
    fn outrun(
        &mut self,
        (connection, read, stream): (ConnectionId, ReadId, usize),
    ) -> Vec<(usize, Question, QuestionId)> {
        let mut page = self.page(stream);
        page.oldest_seq = page.head.seq;
        page.frames = Vec::new();
        let answer = Ok((stream as u64, page));
        asked(self.hear(connection, Inbound::Page { stream, read, answer }))
    }

    fn outrun_all(&mut self) -> Vec<(usize, Question, QuestionId)> {
        let unread = reads(&self.commands);
        unread.into_iter().flat_map(|read| self.outrun(read)).collect()
    }

    fn reply(&mut self, (stream, _, question): &(usize, Question, QuestionId), answer: Answer) -> &[Command] {
        self.step(Event::Answered {
            question: *question,
            stream: *stream,
            answer,
        })
    }

    /// The authority holds nothing after `after`, and begins anew at the beginning, or with a document at the head.
    fn stale(&self, stream: usize, after: u64) -> Answer {
        let log = &self.logs[stream];
        Answer::Stale(Box::new(StaleCursor {
            code: Default::default(),
            stream_id: id(stream),
            requested_after_seq: log.at(after).seq,
            oldest_available_cursor: log.start.seq,
            oldest_available_chain: log.start.chain,
            head_cursor: log.head().seq,
            reason_codes: vec![StaleReason::RetentionFloorBreach],
            replay_lag: 0,
            replay_budget_events: None,
            snapshot_cursor: Some(log.head().seq),
        }))
    }

    fn document(&self, stream: usize) -> Answer {
        let payload = Bytes::from_static(b"{}");
        let head = self.logs[stream].head();
        Answer::Document(Some(Box::new(Snapshot {
            doc_key: "doc".to_owned(),
            seq: head.seq,
            chain_hash: head.chain,
            payload_hash: PayloadHash::of(&payload),
            payload,
        })))
    }

    /// The store has started over.
    fn begun(&mut self, stream: usize, at: Position) -> &[Command] {
        self.step(Event::Applied(Outcome {
            stream,
            released: 0,
            result: Applied::StartedOver(at),
        }))
    }
}

#[test]
fn questions_are_asked_in_turn_and_with_the_connections_token() {
    let (mut case, _) = case(3, |config| config.limits.history_in_flight = 1);
    let first = case.outrun_all();
    assert_eq!(streams(&first), [0]);
    let page = Answer::Page(case.page(0));
    let commands = case.reply(&first[0], page);
    let token = commands.iter().find_map(|command| match command {
        Command::Ask { token, .. } => token.clone(),
        _ => None,
    });
    assert_eq!(token.as_deref(), Some("x"));
    let next = asked(commands);
    assert_eq!(streams(&next), [1]);
    assert_eq!(case.shown.counters.history_pages, 1);
    let again = Answer::Page(case.page(0));
    assert!(case.reply(&first[0], again).is_empty(), "it was answered already");
    let page = Answer::Page(case.page(1));
    assert_eq!(streams(&asked(case.reply(&next[0], page))), [2]);
}

#[test]
fn questions_end_with_the_connection() {
    let (mut case, connection) = case(2, |config| config.limits.history_in_flight = 1);
    let first = case.outrun_all();
    assert_eq!(withdrawn(&case.close(connection)), [first[0].2]);
    let late = Answer::Page(case.page(0));
    assert!(case.reply(&first[0], late).is_empty());
    let next = case.dial();
    case.serve(next);
    assert_eq!(streams(&case.outrun_all()), [0]);
}

#[test]
fn a_question_needs_room_for_its_answer_like_a_page() {
    let (mut case, _) = case(3, |config| config.limits.unapplied_bytes = 2 * PAGE_BYTES);
    let unread = reads(&case.commands);
    assert_eq!(unread.len(), 2);
    assert_eq!(streams(&case.outrun(unread[0])), NONE);
    let last = reads(&case.commands)[0];
    assert_eq!(streams(&case.outrun(unread[1])), [0]);
    assert_eq!(streams(&case.outrun(last)), [1]);
}

#[test]
fn one_document_is_fetched_at_a_time_and_saved_before_the_next() {
    let answer = StaleAnswer::Rebootstrap(WithoutDocument::Stop);
    let (mut case, _) = case(3, |config| config.on_stale = answer);
    let first = case.outrun_all();
    assert_eq!(streams(&first), [0, 1]);
    let stale = case.stale(0, 0);
    let events = asked(case.reply(&first[0], stale));
    assert_eq!(streams(&events), [2]);
    let stale = case.stale(1, 0);
    let documents = asked(case.reply(&first[1], stale));
    let (stream, about, _) = documents[0].clone();
    assert_eq!((documents.len(), stream, about), (1, 0, Question::Document));
    let page = Answer::Page(case.page(2));
    assert_eq!(asked(case.reply(&events[0], page)), [], "one document is under way");
    let document = case.document(0);
    let commands = case.reply(&documents[0], document);
    assert!(begins(commands));
    assert_eq!(asked(commands), [], "it is not saved yet");
    let head = case.logs[0].head();
    let (stream, about, _) = asked(case.begun(0, head))[0].clone();
    assert_eq!((stream, about), (1, Question::Document));
}

#[test]
fn an_authority_that_asks_for_time_gets_it() {
    let (mut case, _) = case(1, |_| {});
    let question = &case.outrun_all()[0];
    let answer = Answer::Failed {
        message: "busy".to_owned(),
        retry_after: Some(60 * second()),
    };
    case.reply(question, answer);
    assert_eq!(read(&case.wait(60 * second() - QUARTER)), NONE);
    assert_eq!(read(&case.wait(20 * second())), [0]);
}

#[test]
fn a_refusal_of_the_authority_ends_the_client_the_stream_or_only_the_token() {
    use RefusalCode::{ForbiddenStream, InvalidToken, TokenExpired, TokenRevoked};
    let refused = |code| Answer::Refused(Refusal::new(code, "no"));
    let unauthorized = |code| Answer::Unauthorized(Refusal::new(code, "no"));
    for (answer, expected) in [
        (refused(TokenRevoked), "the client"),
        (unauthorized(TokenRevoked), "the client"),
        (refused(ForbiddenStream), "the stream"),
        (unauthorized(TokenExpired), "the token"),
        // After an upgrade, the bridge refuses what its earlier release signed.
        (unauthorized(InvalidToken), "the token"),
    ] {
        let (mut case, _) = case(1, |_| {});
        let question = &case.outrun_all()[0];
        let stops = matches!(case.reply(question, answer), [Command::StopApplier]);
        let forbidden = matches!(case.phase_of(0), StreamPhase::Forbidden { .. });
        let doubted = dialed(&case.wait(2 * second())).is_some();
        let found = match (stops, forbidden, doubted) {
            (true, false, false) => "the client",
            (false, true, false) => "the stream",
            (false, false, true) => "the token",
            other => panic!("{other:?}"),
        };
        assert_eq!(found, expected);
    }
}

/// Whether a live stream starts over when another log arrives and the authority calls the cursor stale.
fn starts_over(case: &mut Case, connection: ConnectionId) -> bool {
    let log = case.logs[0].fork(2, 4);
    let frame = log.frame(4, 4);
    let question = &asked(case.hear(connection, Inbound::Frame { stream_key: 0, frame }))[0];
    let stale = case.stale(0, 3);
    begins(case.reply(question, stale))
}

#[test]
fn a_stream_may_start_over_again_once_it_has_been_live_for_a_while() {
    for (seconds, expected) in [(9, false), (11, true)] {
        let (mut case, connection) = case(1, |config| {
            config.on_stale = StaleAnswer::Restart;
            config.limits.recovery_attempts = 1;
        });
        case.make_live(connection);
        assert!(starts_over(&mut case, connection));
        let start = case.logs[0].start;
        case.begun(0, start);
        case.make_live(connection);
        case.stay(connection, seconds * second());
        assert_eq!(starts_over(&mut case, connection), expected);
    }
}
