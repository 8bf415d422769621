//! The session as a whole, step by step and without other parties: what it orders, and what its status shows.

use std::time::Duration;

use spacetime_sync_proto::access::StreamPattern;
use spacetime_sync_proto::contract::Contract;
use spacetime_sync_proto::{Refusal, RefusalCode, Seq, limit};

use super::status::{Disconnect, StreamPhase};
use super::stream::tests::Log;
use super::stream::{Batch, Page, SubscriptionId};
use super::*;
use crate::config::{ClientConfig, History};
use crate::credential::{AccessToken, TokenError};
use crate::error::StoreError;

mod acknowledging;
mod authority;
mod caching;
mod calling;
mod connecting;
mod documents;
mod ending;
mod following;
mod handing_over;
mod heads;
mod hearing;
mod presence;
mod reading;
mod showing;
mod telling;
mod tokens;
mod watching;

/// A session over streams with a given number of events each, and the commands it gave last.
struct Case {
    logs: Vec<Log>,
    session: Session,
    shown: Status,
    now: Instant,
    commands: Vec<Command>,
}

/// How often the session looks at its timers.
const QUARTER: Duration = Duration::from_millis(250);

/// No stream.
const NONE: [usize; 0] = [];

fn second() -> Duration {
    Duration::from_secs(1)
}

impl Case {
    fn new(streams: usize, events: u64) -> Self {
        Self::within(streams, events, |_| {})
    }

    /// The same for a client with other settings. It asks the authority, unless `history` is off.
    fn within(streams: usize, events: u64, set: impl FnOnce(&mut ClientConfig)) -> Self {
        Self::seeded(streams, events, 7, set)
    }

    /// The same with other dice.
    fn seeded(streams: usize, events: u64, seed: u64, set: impl FnOnce(&mut ClientConfig)) -> Self {
        let logs: Vec<_> = (0..streams)
            .map(|at| Log::new(&format!("stream.{at}"), events))
            .collect();
        let ids: Vec<_> = (0..streams).map(id).collect();
        let mut config = ClientConfig::new("https://host", "lane", ids.clone());
        config.history = History::Off;
        set(&mut config);
        let settings = Settings {
            renewable: true,
            ..Settings::of(&config)
        };
        let bounded = config.followed().map(|(id, carries)| {
            let bounds = config.bounds_of(id, carries, streams, config.history != History::Off);
            (id.clone(), Position::start(id), bounds)
        });
        let now = Instant::now();
        let session = Session::new(settings, bounded.collect(), seed, now);
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

    /// Lets time pass on a connection that is never silent. Returns the commands that the session gave meanwhile.
    fn stay(&mut self, connection: ConnectionId, duration: Duration) -> Vec<Command> {
        let until = self.now + duration;
        let mut all = Vec::new();
        while self.now < until {
            self.hear(connection, Inbound::Contract(Contract::ours()));
            all.append(&mut self.commands);
            all.extend(self.wait(QUARTER));
        }
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
            granted_streams: vec![StreamPattern::new("stream.0").unwrap()],
            session_id: Some("session".to_owned()),
            ..AccessToken::new("x", 10 * refresh_after)
        };
        Some(Issued {
            token,
            asked_at: self.now,
        })
    }

    fn serve(&mut self, connection: ConnectionId) {
        self.serve_with_token_of(connection, 3_600 * second());
    }

    fn serve_with_token_of(&mut self, connection: ConnectionId, refresh_after: Duration) {
        let token = self.token(refresh_after);
        self.step(Event::Dialed {
            connection,
            token,
            result: Ok(Vec::new()),
        });
    }

    fn fail(&mut self, connection: ConnectionId, token: Option<Issued>, failure: DialFailure) {
        self.step(Event::Dialed {
            connection,
            token,
            result: Err(failure),
        });
    }

    fn hear(&mut self, connection: ConnectionId, inbound: Inbound) -> &[Command] {
        let inbound = vec![inbound];
        self.step(Event::Message { connection, inbound })
    }

    /// Appends an event to a stream's log and has a connection deliver it.
    fn deliver(&mut self, connection: ConnectionId, stream: usize) -> &[Command] {
        self.logs[stream].append();
        let last = self.logs[stream].head().seq.get();
        self.deliver_frame(connection, stream, last, last)
    }

    fn deliver_frame(&mut self, connection: ConnectionId, stream: usize, first: u64, last: u64) -> &[Command] {
        let frame = self.logs[stream].frame(first, last);
        let stream_key = stream as u64;
        self.hear(connection, Inbound::Frame { stream_key, frame })
    }

    /// Answers a read with all of the stream's events.
    fn answer(&mut self, (connection, read, stream): (ConnectionId, ReadId, usize)) -> &[Command] {
        let answer = Ok((stream as u64, self.page(stream)));
        self.hear(connection, Inbound::Page { stream, read, answer })
    }

    fn refuse(&mut self, (connection, read, stream): (ConnectionId, ReadId, usize), code: RefusalCode) -> &[Command] {
        let answer = Err(CallFailure::Refused(Refusal::new(code, "no")));
        self.hear(connection, Inbound::Page { stream, read, answer })
    }

    fn ack(&mut self, connection: ConnectionId, seq: u64, answer: Result<(), CallFailure>) -> &[Command] {
        let (stream, seq) = (0, Seq::new(seq).unwrap());
        self.hear(connection, Inbound::Acked { stream, seq, answer })
    }

    fn phase_of(&self, stream: usize) -> &StreamPhase {
        &self.shown.streams[&id(stream)].phase
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
        self.serve_with_token_of(connection, 20 * second());
        self.make_live(connection);
        connection
    }

    /// Waits on such a connection until the session attempts the next one.
    fn dial_next(&mut self, first: ConnectionId) -> ConnectionId {
        (0..200)
            .find_map(|_| dialed(&self.stay(first, QUARTER)))
            .expect("an attempt")
    }

    fn make_live(&mut self, connection: ConnectionId) {
        let mut unread: Vec<_> = self.commands.iter().filter_map(read_of).collect();
        while let Some(read) = unread.pop() {
            assert_eq!(read.0, connection);
            self.answer(read);
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

fn reads(commands: &[Command]) -> Vec<(ConnectionId, ReadId, usize)> {
    commands.iter().filter_map(read_of).collect()
}

/// The streams that the commands read.
fn read(commands: &[Command]) -> Vec<usize> {
    commands
        .iter()
        .filter_map(read_of)
        .map(|(_, _, stream)| stream)
        .collect()
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

fn aged() -> CallFailure {
    CallFailure::Refused(Refusal::new(RefusalCode::TokenExpired, "too old"))
}

fn closed(commands: &[Command]) -> Vec<ConnectionId> {
    let closed = commands.iter().filter_map(|command| match command {
        Command::Close { connection } => Some(*connection),
        _ => None,
    });
    closed.collect()
}
