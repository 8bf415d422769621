//! The session as a whole, step by step and without other parties: what it orders, and what its status shows.

use std::time::Duration;

use spacetime_sync_proto::contract::Contract;
use spacetime_sync_proto::{Refusal, RefusalCode, Seq};

use super::status::{Disconnect, StreamPhase};
use super::stream::tests::Log;
use super::stream::{Batch, Page, SubscriptionId};
use super::*;
use crate::config::ClientConfig;
use crate::credential::{AccessToken, TokenError};

/// A session over streams with a given number of events each, and the commands it gave last.
struct Case {
    logs: Vec<Log>,
    session: Session,
    shown: Status,
    now: Instant,
    commands: Vec<Command>,
}

fn second() -> Duration {
    Duration::from_secs(1)
}

impl Case {
    fn new(streams: usize, events: u64) -> Self {
        let logs: Vec<_> = (0..streams)
            .map(|at| Log::new(&format!("stream.{at}"), events))
            .collect();
        let ids: Vec<_> = (0..streams).map(id).collect();
        let config = ClientConfig::new("http://host", "lane", ids.clone());
        let settings = Settings {
            renewable: true,
            ..Settings::of(&config)
        };
        let bounded = ids.into_iter().map(|id| {
            let bounds = config.bounds_of(&id, false);
            (id.clone(), Position::start(&id), bounds)
        });
        let now = Instant::now();
        let session = Session::new(settings, bounded.collect(), 7, now);
        Self {
            logs,
            shown: session.status(),
            session,
            now,
            commands: Vec::new(),
        }
    }

    fn step(&mut self, event: Event) -> &[Command] {
        self.commands.clear();
        self.session.step(self.now, event, &mut self.commands);
        self.session.show(&mut self.shown);
        &self.commands
    }

    /// Lets time pass and wakes the session whenever it asks. Returns the commands it gave meanwhile.
    fn wait(&mut self, duration: Duration) -> Vec<Command> {
        let until = self.now + duration;
        let mut all = Vec::new();
        while let Some(due) = self.session.due().filter(|due| *due <= until) {
            self.now = self.now.max(due);
            self.step(Event::Woken);
            all.append(&mut self.commands);
        }
        self.now = until;
        all
    }

    /// Waits for an attempt to connect and returns its id.
    fn dial(&mut self) -> ConnectionId {
        let commands = self.wait(10 * second());
        dialed(&commands).expect("an attempt")
    }

    fn token(&self, refresh_after: Duration) -> Option<Issued> {
        let token = AccessToken {
            refresh_after,
            ..AccessToken::new("x", 10 * refresh_after)
        };
        Some(Issued {
            token,
            asked_at: self.now,
        })
    }

    fn serve(&mut self, connection: ConnectionId) {
        let token = self.token(Duration::from_secs(3_600));
        self.step(Event::Dialed {
            connection,
            token,
            result: Ok(Vec::new()),
        });
    }

    fn hear(&mut self, connection: ConnectionId, inbound: Inbound) -> &[Command] {
        let inbound = vec![inbound];
        self.step(Event::Message { connection, inbound })
    }

    fn page(&self, stream: usize) -> Page {
        let head = self.logs[stream].head();
        let all = self.logs[stream].frame(1, head.seq.get());
        Page {
            head,
            oldest_seq: Seq::ZERO.next(),
            durable_reads: true,
            frames: vec![all],
        }
    }

    /// Saves the batches of the last commands.
    fn apply(&mut self) {
        let batches: Vec<(usize, Batch)> = std::mem::take(&mut self.commands)
            .into_iter()
            .filter_map(|command| match command {
                Command::Apply {
                    stream,
                    work: Work::Batch(batch),
                } => Some((stream, batch)),
                _ => None,
            })
            .collect();
        for (stream, batch) in batches {
            let outcome = Outcome {
                stream,
                released: batch.bytes,
                result: Applied::To(batch.to),
            };
            self.step(Event::Applied(outcome));
        }
    }

    /// Connects, and brings every stream to its head and live.
    fn live(&mut self) -> ConnectionId {
        let connection = self.dial();
        self.serve(connection);
        self.make_live(connection);
        connection
    }

    /// Connects with a token of twenty seconds, so that another connection soon takes over.
    fn live_with_a_token_that_ends_soon(&mut self) -> ConnectionId {
        let connection = self.dial();
        let token = self.token(20 * second());
        self.step(Event::Dialed {
            connection,
            token,
            result: Ok(Vec::new()),
        });
        self.make_live(connection);
        connection
    }

    fn make_live(&mut self, connection: ConnectionId) {
        let mut unread: Vec<_> = self.commands.iter().filter_map(read_of).collect();
        while let Some((on, read, stream)) = unread.pop() {
            assert_eq!(on, connection);
            let answer = Ok((stream as u64, self.page(stream)));
            self.hear(connection, Inbound::Page { stream, read, answer });
            let mut ordered = std::mem::take(&mut self.commands);
            loop {
                unread.extend(ordered.iter().filter_map(read_of));
                for (stream, id) in ordered.iter().filter_map(subscribed).collect::<Vec<_>>() {
                    self.hear(connection, Inbound::Subscribed { stream, id });
                }
                self.commands = ordered;
                self.apply();
                if self.commands.is_empty() {
                    break;
                }
                ordered = std::mem::take(&mut self.commands);
            }
        }
        assert_eq!(self.shown.phase, Phase::Live);
    }

    fn close(&mut self, connection: ConnectionId) -> Vec<Command> {
        let reason = Disconnect::Closed;
        self.step(Event::Closed { connection, reason });
        std::mem::take(&mut self.commands)
    }
}

fn id(at: usize) -> StreamId {
    StreamId::new(&format!("stream.{at}")).unwrap()
}

fn dialed(commands: &[Command]) -> Option<ConnectionId> {
    commands.iter().find_map(|command| match command {
        Command::Dial { connection, .. } => Some(*connection),
        _ => None,
    })
}

fn read_of(command: &Command) -> Option<(ConnectionId, ReadId, usize)> {
    match command {
        Command::Read {
            connection,
            read,
            stream,
            ..
        } => Some((*connection, *read, *stream)),
        _ => None,
    }
}

fn subscribed(command: &Command) -> Option<(usize, SubscriptionId)> {
    match command {
        Command::Subscribe { stream, id, .. } => Some((*stream, *id)),
        _ => None,
    }
}

/// Which checkpoints were acknowledged, and of which streams.
fn acknowledged(commands: &[Command]) -> Vec<(usize, u64)> {
    let acknowledged = commands.iter().filter_map(|command| match command {
        Command::Acknowledge { stream, position, .. } => Some((*stream, position.seq.get())),
        _ => None,
    });
    acknowledged.collect()
}

fn closed(commands: &[Command]) -> Vec<ConnectionId> {
    let closed = commands.iter().filter_map(|command| match command {
        Command::Close { connection } => Some(*connection),
        _ => None,
    });
    closed.collect()
}

#[test]
fn an_acknowledgement_lost_with_its_connection_is_sent_again_on_the_next() {
    let mut case = Case::new(1, 3);
    case.live();
    assert_eq!(acknowledged(&case.wait(second())), [(0, 3)]);
    let connection = case.session.serving().unwrap();
    case.close(connection);
    let next = case.dial();
    case.serve(next);
    assert_eq!(acknowledged(&case.wait(second())), [(0, 3)], "nothing new was applied");
    let seq = Seq::new(3).unwrap();
    case.hear(
        next,
        Inbound::Acked {
            stream: 0,
            seq,
            answer: Ok(()),
        },
    );
    assert_eq!(acknowledged(&case.wait(second())), []);
    assert_eq!(case.shown.counters.acks, 1);
}

#[test]
fn a_failed_acknowledgement_is_sent_again_even_if_nothing_new_comes() {
    let mut case = Case::new(1, 3);
    let connection = case.live();
    assert_eq!(acknowledged(&case.wait(second())), [(0, 3)]);
    let answer = Err(CallFailure::Failed("trapped".to_owned()));
    let seq = Seq::new(3).unwrap();
    case.hear(connection, Inbound::Acked { stream: 0, seq, answer });
    let mut again = Vec::new();
    for _ in 0..20 {
        // The connection must not fall silent, or the session would give it up.
        case.hear(connection, Inbound::GrantCame);
        again.extend(acknowledged(&case.wait(second())));
    }
    assert_eq!(again, [(0, 3)]);
}

#[test]
fn a_stream_is_acknowledged_again_once_a_lost_grant_returns() {
    let mut case = Case::new(1, 3);
    let connection = case.live();
    assert_eq!(acknowledged(&case.wait(second())), [(0, 3)]);
    let (seq, answer) = (Seq::new(3).unwrap(), Ok(()));
    case.hear(connection, Inbound::Acked { stream: 0, seq, answer });
    case.hear(connection, Inbound::GrantLost { stream_key: 0 });
    assert_eq!(acknowledged(&case.wait(second())), [], "the module would not accept it");
    case.hear(connection, Inbound::GrantCame);
    case.make_live(connection);
    assert_eq!(acknowledged(&case.wait(second())), [(0, 3)]);
}

#[test]
fn events_of_a_connection_that_was_given_up_are_ignored() {
    let mut case = Case::new(1, 3);
    let first = case.dial();
    case.serve(first);
    let (_, read, stream) = case.commands.iter().find_map(read_of).unwrap();
    assert_eq!(closed(&case.close(first)), [first]);
    let second = case.dial();
    case.serve(second);
    let before = case.shown.clone();
    let other = Contract {
        schema_version: 999,
        ..Contract::ours()
    };
    let answer = Ok((0, case.page(0)));
    for late in [
        Inbound::Page { stream, read, answer },
        Inbound::Contract(other),
        Inbound::NoModule { detail: String::new() },
    ] {
        assert!(case.hear(first, late).is_empty());
    }
    case.close(first);
    assert!(case.commands.is_empty());
    assert_eq!((case.session.serving(), &case.shown), (Some(second), &before));
    // The same for an attempt that the session has given up.
    let token = case.token(Duration::from_secs(60));
    let commands = case.step(Event::Dialed {
        connection: ConnectionId(999),
        token,
        result: Ok(Vec::new()),
    });
    assert_eq!(closed(commands), [ConnectionId(999)]);
}

#[test]
fn a_client_without_grants_waits_says_so_and_asks_again() {
    let mut case = Case::new(1, 3);
    let mut connection = case.dial();
    for _ in 0..20 {
        let error = TokenError::refused(RefusalCode::Forbidden, "none of the streams");
        case.step(Event::Dialed {
            connection,
            token: None,
            result: Err(DialFailure::NoToken(error)),
        });
        let Phase::Backoff { retry_in, reason, .. } = &case.shown.phase else {
            panic!("{:?}", case.shown.phase);
        };
        assert_eq!(reason.refusal(), Some(RefusalCode::Forbidden));
        assert!((5..=10).contains(&retry_in.as_secs()), "{retry_in:?}");
        connection = case.dial();
    }
    // By now the issuer knows the stream's owner.
    case.serve(connection);
    case.make_live(connection);
}

#[test]
fn only_what_has_changed_is_shown() {
    let mut case = Case::new(3, 3);
    let connection = case.live();
    assert!(!case.session.show(&mut case.shown), "nothing has happened since");
    let stream = 1;
    case.logs[stream].append();
    let frame = case.logs[stream].frame(4, 4);
    let inbound = Inbound::Frame {
        stream_key: stream as u64,
        frame,
    };
    case.commands.clear();
    let event = Event::Message {
        connection,
        inbound: vec![inbound],
    };
    case.session.step(case.now, event, &mut case.commands);
    assert_eq!(case.session.unshown, [stream]);
    assert!(case.session.show(&mut case.shown));
    assert_eq!(case.shown.streams[&id(stream)].head, Seq::new(4));
    case.apply();
    assert_eq!(case.shown.streams[&id(stream)].applied, case.logs[stream].head());
    assert_eq!(case.shown.phase, Phase::Live);
}

#[test]
fn the_shown_status_equals_one_computed_from_scratch() {
    let mut case = Case::new(4, 3);
    let connection = case.live();
    let refused = Refusal::new(RefusalCode::ForbiddenStream, "no grant");
    case.hear(connection, Inbound::GrantLost { stream_key: 2 });
    case.logs[0].append();
    let frame = case.logs[0].frame(4, 4);
    case.hear(connection, Inbound::Frame { stream_key: 0, frame });
    let fresh = case.session.status();
    assert_eq!(case.shown.streams, fresh.streams);
    let code = refused.code;
    assert_eq!(case.shown.streams[&id(2)].phase, StreamPhase::Forbidden { code });
    // Still live for a moment, then behind: nothing but time has passed.
    assert_eq!(case.shown.phase, Phase::Live);
    case.wait(2 * second());
    let (applied, target) = (9, 10);
    assert_eq!(case.shown.phase, Phase::CatchingUp { applied, target });
}

#[test]
fn a_stopping_client_finishes_and_acknowledges_its_batch_within_its_limit() {
    for answered in [true, false] {
        let mut case = Case::new(1, 3);
        let connection = case.live();
        case.wait(second());
        case.logs[0].append();
        let frame = case.logs[0].frame(4, 4);
        case.hear(connection, Inbound::Frame { stream_key: 0, frame });
        let unsaved = std::mem::take(&mut case.commands);
        assert!(matches!(case.step(Event::Stop), [Command::StopApplier]));
        case.wait(60 * second());
        assert!(
            !case.session.has_ended(),
            "the session waits for the batch, however long it takes"
        );
        case.commands = unsaved;
        case.apply();
        let said = acknowledged(case.step(Event::ApplierEnded));
        assert_eq!(said, [(0, 4)]);
        if answered {
            for seq in [3, 4] {
                let seq = Seq::new(seq).unwrap();
                let answer = Ok(());
                case.hear(connection, Inbound::Acked { stream: 0, seq, answer });
            }
        } else {
            let limit = ClientConfig::new("http://host", "lane", vec![id(0)])
                .limits
                .stop_timeout;
            case.wait(limit / 2);
            assert!(!case.session.has_ended());
            case.wait(limit);
        }
        assert!(case.session.has_ended());
        assert_eq!(case.session.due(), None);
        let reason = StopReason::Requested;
        assert_eq!(case.shown.phase, Phase::Stopped { reason });
        assert_eq!(case.shown.streams[&id(0)].applied, case.logs[0].head());
        assert_eq!(case.shown.token, None);
    }
}

#[test]
fn a_stopping_client_gives_up_a_pending_attempt() {
    let mut case = Case::new(1, 3);
    let connection = case.dial();
    let commands = case.step(Event::Stop);
    assert_eq!(closed(commands), [connection]);
    case.step(Event::ApplierEnded);
    assert!(case.session.has_ended());
}

#[test]
fn a_client_whose_applier_ends_by_itself_stops_with_a_defect() {
    let mut case = Case::new(1, 3);
    case.live();
    case.wait(second());
    case.step(Event::ApplierEnded);
    case.wait(10 * second());
    let reason = StopReason::Defect;
    assert_eq!(case.shown.phase, Phase::Stopped { reason });
}

#[test]
fn a_connection_that_falls_silent_is_given_up_in_time() {
    let mut case = Case::new(1, 3);
    let connection = case.live();
    let began = case.now;
    while closed(&case.wait(Duration::from_millis(250))).is_empty() {}
    let took = case.now - began;
    assert!((7..=8).contains(&took.as_secs()), "{took:?}");
    assert_eq!(case.session.serving(), None);
    let Phase::Backoff { reason, .. } = &case.shown.phase else {
        panic!("{:?} {connection:?}", case.shown.phase);
    };
    assert_eq!(reason.code(), "silence");
}

#[test]
fn a_connection_hands_over_stream_by_stream_and_ends_with_the_last() {
    let mut case = Case::new(2, 3);
    let first = case.live_with_a_token_that_ends_soon();
    let second = loop {
        case.hear(first, Inbound::GrantCame);
        if let Some(second) = dialed(&case.wait(Duration::from_millis(250))) {
            break second;
        }
    };
    case.serve(second);
    let moved: Vec<_> = case.commands.iter().filter_map(subscribed).collect();
    assert_eq!(moved.len(), 2);
    assert_eq!(case.shown.counters.refreshes, 1);
    let (stream, id) = moved[0];
    assert_eq!(closed(case.hear(second, Inbound::Subscribed { stream, id })), []);
    let (stream, id) = moved[1];
    assert_eq!(closed(case.hear(second, Inbound::Subscribed { stream, id })), [first]);
    assert_eq!(
        (case.shown.phase.clone(), case.session.serving()),
        (Phase::Live, Some(second))
    );
}

/// Seed 49,164: SpacetimeDB was restored while the first connection was silent, and lost the checkpoint.
#[test]
fn a_stream_is_acknowledged_again_on_the_connection_that_takes_over() {
    let mut case = Case::new(1, 3);
    let first = case.live_with_a_token_that_ends_soon();
    let seq = Seq::new(3).unwrap();
    let second = loop {
        case.hear(first, Inbound::GrantCame);
        let commands = case.wait(Duration::from_millis(250));
        if acknowledged(&commands) == [(0, 3)] {
            let answer = Ok(());
            case.hear(first, Inbound::Acked { stream: 0, seq, answer });
        }
        if let Some(second) = dialed(&commands) {
            break second;
        }
    };
    assert_eq!(case.shown.counters.acks, 1);
    case.serve(second);
    assert_eq!(acknowledged(&case.wait(Duration::from_secs(1))), [(0, 3)]);
}
