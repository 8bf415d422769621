//! What a client decides about the events that SpacetimeDB delivers.

use std::collections::VecDeque;
use std::hint::black_box;
use std::time::{Duration, Instant};

use spacetime_sync_client::ClientConfig;
use spacetime_sync_client::config::{Carries, Reads, StaleAnswer, StreamBounds};
use spacetime_sync_client::seal::SealKeys;
use spacetime_sync_client::session::stream::Page;
use spacetime_sync_client::session::{
    Applied, Command, ConnectionId, Event, Inbound, Outcome, Session, Settings, Work,
};
use spacetime_sync_proto::{ChainHash, FrameRow, Position, Seal, SealKey, SealKeyId, Seq, limit};

use super::log::{events, frames, stream_id};
use super::{Path, Round};

/// Events of a frame that bulk writers lead to.
const FRAME_EVENTS: usize = 100;
/// How much time passes with each message.
const TICK: Duration = Duration::from_micros(100);
/// The key that the module gave the stream.
const STREAM_KEY: u64 = 7;

pub(super) const ONE_EVENT: Path = Path {
    name: "client-event",
    about: "a client's session takes a frame of one event, hands it to the applier, and hears that it is saved",
    hashes: true,
    events: 1,
    rounds: 200,
    open: |rounds| follow(rounds, 1),
};

pub(super) const FULL_FRAMES: Path = Path {
    name: "client-frame",
    about: "the same with frames of 100 events",
    hashes: true,
    events: FRAME_EVENTS as u64,
    rounds: 12,
    open: |rounds| follow(rounds, FRAME_EVENTS),
};

pub(super) const CHECK_SEAL: Path = Path {
    name: "check-seal",
    about: "a client checks the seal of a frame",
    hashes: false,
    events: 1,
    rounds: 12,
    open: check_seal,
};

/// A session that follows one stream. Each round delivers the next frame.
fn follow(rounds: u32, each: usize) -> Round {
    let log = events(rounds as usize * each);
    let mut delivered = frames(&log, each).into_iter();
    let mut client = Client::start();
    Box::new(move || {
        let Some(frame) = delivered.next() else { return };
        let last = frame.last_seq;
        client.deliver(frame);
        assert!(client.session.stream(0).applied().seq == last);
    })
}

/// A session, and around it a SpacetimeDB and an applier that answer everything at once.
struct Client {
    session: Session,
    now: Instant,
    connection: Option<ConnectionId>,
    commands: Vec<Command>,
    answers: VecDeque<Event>,
}

impl Client {
    /// A client that is live before the first event.
    fn start() -> Self {
        let config = ClientConfig::new("https://host", "lane", vec![stream_id()]);
        let start = Position::start(&stream_id());
        // The time is an argument. Only its differences count, and they are the same in every run.
        let now = Instant::now();
        let mut client = Self {
            session: Session::new(
                Settings::of(&config),
                vec![(stream_id(), start, bounds(&config))],
                7,
                now,
            ),
            now,
            connection: None,
            commands: Vec::new(),
            answers: VecDeque::from([Event::Woken]),
        };
        client.run();
        assert!(client.session.stream(0).is_current());
        client
    }

    fn deliver(&mut self, frame: FrameRow) {
        self.hear(Inbound::Frame {
            stream_key: STREAM_KEY,
            frame,
        });
        self.run();
    }

    fn hear(&mut self, inbound: Inbound) {
        if let Some(connection) = self.connection {
            let inbound = vec![inbound];
            self.answers.push_back(Event::Message { connection, inbound });
        }
    }

    /// Tells the session everything, and answers its commands until it has no more.
    fn run(&mut self) {
        while let Some(event) = self.answers.pop_front() {
            self.now += TICK;
            let mut commands = std::mem::take(&mut self.commands);
            self.session.step(self.now, event, &mut commands);
            commands.drain(..).for_each(|command| self.answer(black_box(command)));
            self.commands = commands;
            if self.session.due().is_some_and(|due| due <= self.now) {
                self.answers.push_back(Event::Woken);
            }
        }
    }

    fn answer(&mut self, command: Command) {
        match command {
            Command::Dial { connection, token, .. } => {
                self.connection = Some(connection);
                self.answers.push_back(Event::Dialed {
                    connection,
                    token,
                    result: Ok(Vec::new()),
                });
            }
            Command::Read { read, stream, .. } => {
                let page = Page {
                    head: self.session.stream(0).cursor(),
                    oldest_seq: Seq::ZERO.next(),
                    durable_reads: true,
                    frames: Vec::new(),
                };
                let answer = Ok((STREAM_KEY, page));
                self.hear(Inbound::Page { stream, read, answer });
            }
            Command::Subscribe { stream, id, .. } => self.hear(Inbound::Subscribed { stream, id }),
            Command::Unsubscribe { stream, id, .. } => self.hear(Inbound::Unsubscribed { stream, id }),
            Command::Acknowledge { stream, position, .. } => self.hear(Inbound::Acked {
                stream,
                seq: position.seq,
                answer: Ok(()),
            }),
            Command::Apply {
                stream,
                work: Work::Batch(batch),
            } => self.answers.push_back(Event::Applied(Outcome {
                stream,
                released: batch.bytes,
                result: Applied::To(batch.to),
            })),
            Command::Trust(_) => {}
            other => panic!("nothing fails here, and yet the session orders {other:?}"),
        }
    }
}

/// The bounds of a client that follows one stream and sets nothing.
fn bounds(config: &ClientConfig) -> StreamBounds {
    let limits = &config.limits;
    StreamBounds {
        unapplied_bytes: limits.unapplied_bytes,
        resume_bytes: limits.resume_bytes,
        subscribe_within_events: limits.subscribe_within_events,
        subscribe_within_bytes: limits.subscribe_within_bytes,
        apply_attempts: limits.apply_attempts,
        recovery_attempts: limits.recovery_attempts,
        history: false,
        on_stale: StaleAnswer::Stop,
        reads: Reads::Confirmed,
        carries: Carries::Events,
        reach_bytes: limits.subscribed_bytes.max(limit::FRAME_BYTES),
    }
}

/// A seal that was made once, and the public half of its key: signing draws random numbers, so it would not be the same
/// in every run.
fn check_seal(_: u32) -> Round {
    let key = SealKey {
        kid: "A".repeat(43),
        kty: "EC".to_owned(),
        crv: "P-256".to_owned(),
        x: "DJAdQjyDHKheJ8c8JjuhMnIbudeoTE8DgLKmdW_WATM".to_owned(),
        y: "HIhwI03sh4UEwXQUT6SxS2amUWkWBtgXPlW9N-OBVp4".to_owned(),
    };
    let keys = SealKeys::new(&[key]);
    let at = Position {
        seq: Seq::ZERO.next(),
        chain: ChainHash::from_bytes([7; 32]),
    };
    let seal = Seal {
        key: SealKeyId::of_thumbprint(&[0; 32]),
        signature: SIGNATURE,
    };
    Box::new(move || {
        let checked = keys.check(&stream_id(), black_box(&at), Some(&seal));
        assert!(checked.is_ok(), "{checked:?}");
    })
}

/// Over the position of [`check_seal`] in the stream of [`stream_id`].
const SIGNATURE: [u8; 64] = [
    127, 11, 154, 122, 92, 168, 76, 46, 68, 245, 20, 165, 245, 251, 7, 48, 118, 149, 203, 197, 108, 100, 239, 18, 57,
    7, 205, 22, 196, 215, 79, 148, 193, 73, 64, 57, 230, 185, 214, 36, 147, 126, 141, 73, 149, 225, 248, 179, 83, 67,
    81, 136, 116, 232, 147, 203, 200, 241, 102, 236, 123, 38, 137, 181,
];
