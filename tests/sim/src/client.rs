//! A client: the shipped [`Session`], the shipped applier, and an adapter that carries out the session's commands over
//! modelled connections, as `client/src/runner.rs` does over real ones. Every call is a step of its own.

mod applier;
mod authority;
mod following;
mod talk;

use std::collections::BTreeSet;
use std::fmt;
use std::ops::Range;
use std::time::{Duration, Instant};

use rand::Rng as _;
use spacetime_sync_client::seal::SealKeys;
use spacetime_sync_client::session::status::{Disconnect, Phase, Status, StopReason};
use spacetime_sync_client::session::stream::{Counters, Mode, StreamStop};
use spacetime_sync_client::session::{
    Applied, Command, ConnectionId, Event, Inbound, Issued, Outcome, Question, QuestionId, Session,
};
use spacetime_sync_client::{CheckpointStore as _, HandlerError, Stepped, StreamId};
use spacetime_sync_proto::{Position, Seq};

use crate::agenda::{Micros, SECOND};
use crate::net::{ConnId, ToHost};
use crate::seal;
use crate::setup::Setup;
use crate::store::{SimStore, Transaction, handler};
use crate::world::{Step, World, say};

pub(crate) use following::Wish;
use following::Wishes;

#[derive(Debug)]
pub(crate) enum ClientStep {
    /// The session asked to be woken.
    Woken,
    /// An attempt to connect fails for this reason, if it is still under way.
    DialFails {
        connection: ConnectionId,
        reason: Disconnect,
    },
    /// The applier carries out one transaction.
    Work,
    /// The session hears what became of the applier's work.
    Applied(Outcome),
    ApplierEnded,
    /// A question about events, or the document, arrives at the authority.
    Asks {
        question: QuestionId,
        stream: usize,
        about: Question,
    },
    /// A question where streams end arrives at the authority.
    AsksHeads {
        question: QuestionId,
        streams: Range<usize>,
        reported: Vec<usize>,
    },
    /// The application stops the client in good order, and starts it again after a while.
    Stop {
        back_after: Micros,
    },
    /// The application follows a stream no longer, and follows it again after a while.
    Unfollow {
        stream: usize,
        follow_after: Micros,
    },
    Follow {
        stream: usize,
    },
}

/// A connection, or the attempt to make one.
#[derive(Debug)]
struct Line {
    connection: ConnectionId,
    conn: ConnId,
    /// While it is an attempt: the token, and what came before the host's welcome.
    attempt: Option<(Issued, Vec<Inbound>)>,
}

/// What the oracle remembers of a stream in a client.
#[derive(Debug)]
pub(crate) struct Followed {
    /// The checkpoint when the process started.
    pub(crate) loaded: Seq,
    /// How many of the effects the oracle has checked.
    pub(crate) checked: usize,
    /// Up to where the authority has told the client its events.
    pub(crate) from_authority: Seq,
    /// The reasons for which the stream may stop.
    forgiven: BTreeSet<&'static str>,
    /// Whether its stop was counted.
    stopped: bool,
    /// What the application wishes, and has heard.
    pub(crate) wish: Wish,
}

type Handler = fn(&mut Transaction, &StreamId, &[spacetime_sync_client::Event]) -> Result<(), HandlerError>;

pub(crate) struct Client {
    pub(crate) life: u32,
    pub(crate) running: bool,
    pub(crate) paused_until: Micros,
    pub(crate) slow_until: Micros,
    pub(crate) store: SimStore,
    pub(crate) session: Session,
    /// What the session shows, brought up to date after each step.
    pub(crate) shown: Status,
    pub(crate) followed: Vec<Followed>,
    /// When the run began, on the session's clock. Only differences matter.
    epoch: Instant,
    lines: Vec<Line>,
    /// When the session is woken next.
    alarm: Option<Micros>,
    applier: Stepped<SimStore, Handler>,
    working: bool,
    applier_stopped: bool,
    /// When the session hears the last outcome of the applier.
    told_at: Micros,
    /// The application's wishes to follow a stream, or to follow it no longer, that were not answered.
    wishes: Wishes,
    /// How long after an orderly stop the process starts again.
    back_after: Option<Micros>,
    /// The counters of earlier processes.
    before: Counters,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("shown", &self.shown).finish()
    }
}

fn applier(store: &SimStore, streams: Vec<(StreamId, Position)>, setup: &Setup) -> Stepped<SimStore, Handler> {
    let seals = SealKeys::verified_by(&[seal::key()], seal::verify);
    Stepped::new(store.clone(), handler as Handler, streams, setup.batch, seals)
}

fn session(streams: &[(StreamId, Position)], setup: &Setup, seed: u64, now: Instant) -> Session {
    let bounded = streams.iter().map(|(id, at)| (id.clone(), *at, setup.bounds.clone()));
    Session::new(setup.client.clone(), bounded.collect(), seed, now)
}

impl Client {
    pub(crate) fn new(setup: &Setup, starts: impl Iterator<Item = (StreamId, Position)>) -> Self {
        let starts: Vec<_> = starts.collect();
        let store = SimStore::new(starts.iter().cloned(), setup.defect);
        let followed = |(_, start): &(StreamId, Position)| Followed {
            loaded: start.seq,
            checked: 0,
            from_authority: Seq::ZERO,
            forgiven: BTreeSet::new(),
            stopped: false,
            wish: Wish::Follow,
        };
        let epoch = Instant::now();
        let session = session(&starts, setup, 0, epoch);
        Self {
            life: 0,
            running: false,
            paused_until: 0,
            slow_until: 0,
            followed: starts.iter().map(followed).collect(),
            shown: session.status(),
            session,
            epoch,
            lines: Vec::new(),
            alarm: None,
            applier: applier(&store, starts, setup),
            store,
            working: false,
            applier_stopped: false,
            told_at: 0,
            wishes: Wishes::default(),
            back_after: None,
            before: Counters::default(),
        }
    }

    /// The newest connection, or attempt at one.
    pub(crate) fn conn(&self) -> Option<ConnId> {
        self.lines.last().map(|line| line.conn)
    }

    fn line(&self, connection: ConnectionId) -> Option<ConnId> {
        let line = self.lines.iter().find(|line| line.connection == connection);
        line.map(|line| line.conn)
    }

    pub(crate) fn is_stopped(&self, stream: usize) -> bool {
        matches!(self.session.stream(stream).mode(), Mode::Stopped(_))
    }

    /// Whether a stream stopped because nobody holds what it needs next.
    pub(crate) fn is_below_window(&self, stream: usize) -> bool {
        let mode = self.session.stream(stream).mode();
        matches!(
            mode,
            Mode::Stopped(StreamStop::BelowWindow { .. } | StreamStop::StaleCursor(_))
        )
    }

    /// Whether a wish of the application about a stream may not be fulfilled yet, or not any more.
    pub(crate) fn has_wish(&self, stream: usize) -> bool {
        self.wishes.are_open(stream)
    }

    pub(crate) fn forgive(&mut self, stream: usize, code: &'static str) {
        self.followed[stream].forgiven.insert(code);
    }

    pub(crate) fn forgives(&self, stream: usize, code: &str) -> bool {
        self.followed[stream].forgiven.contains(code)
    }

    /// The counters of all its processes together.
    pub(crate) fn all_counters(&self) -> Counters {
        let (now, before) = (self.session.counters(), self.before);
        Counters {
            holes_paged: before.holes_paged + now.holes_paged,
            duplicates_dropped: before.duplicates_dropped + now.duplicates_dropped,
            overruns: before.overruns + now.overruns,
            resubscriptions: before.resubscriptions + now.resubscriptions,
            reconnects: before.reconnects + now.reconnects,
            refreshes: before.refreshes + now.refreshes,
            connections_overfull: before.connections_overfull + now.connections_overfull,
            acks_refused: before.acks_refused + now.acks_refused,
            events_applied: before.events_applied + now.events_applied,
            ..Counters::default()
        }
    }
}

/// An event in a few words.
fn words(event: &Event) -> String {
    match event {
        Event::Message { inbound, .. } => {
            let each = inbound.iter().map(|inbound| match inbound {
                Inbound::Page { stream, answer, .. } => match answer {
                    Ok((_, page)) => {
                        let (frames, head) = (page.frames.len(), page.head.seq);
                        format!("a page of stream {stream}, {frames} frames, head {head}")
                    }
                    Err(failure) => format!("no page of stream {stream}: {failure:?}"),
                },
                Inbound::Frame { stream_key, frame } => {
                    format!("{}..={} of stream {stream_key}", frame.first_seq, frame.last_seq)
                }
                other => format!("{other:?}"),
            });
            each.collect::<Vec<_>>().join(", ")
        }
        Event::Applied(outcome) => match &outcome.result {
            Applied::To(to) => format!("stream {} is applied up to {}", outcome.stream, to.seq),
            other => format!("stream {}: {other:?}", outcome.stream),
        },
        Event::Dialed { connection, result, .. } => match result {
            Ok(_) => format!("connection {} serves", connection.0),
            Err(failure) => format!("connection {} failed: {failure:?}", connection.0),
        },
        other => format!("{other:?}"),
    }
}

impl World {
    fn client_in(&mut self, at: usize, after: Micros, step: ClientStep) {
        let life = self.clients[at].life;
        self.agenda.push(self.now + after, Step::Client { at, life, step });
    }

    pub(crate) fn client_starts(&mut self, at: usize) {
        if self.clients[at].running {
            return;
        }
        let seed = self.dice.work.random();
        let client = &mut self.clients[at];
        client.before = client.all_counters();
        let mut starts = Vec::new();
        for (log, followed) in self.logs.iter().zip(&mut client.followed) {
            // Infallible: the model's store can always be read.
            let applied = client.store.load(&log.id).expect("readable").unwrap_or(log.start);
            starts.push((log.id.clone(), applied));
            (followed.loaded, followed.stopped, followed.wish) = (applied.seq, false, Wish::Follow);
        }
        let now = client.epoch + Duration::from_micros(self.now);
        client.session = session(&starts, &self.setup, seed, now);
        client.shown = client.session.status();
        client.applier = applier(&client.store, starts, &self.setup);
        client.running = true;
        client.lines.clear();
        client.alarm = None;
        client.working = false;
        client.applier_stopped = false;
        client.wishes = Wishes::default();
        client.back_after = None;
        say!(self, "client {at}: starts");
        self.tell_client(at, Event::Woken);
    }

    /// Ends the process. Returns whether one was running.
    pub(crate) fn client_dies(&mut self, at: usize, back_after: Micros) -> bool {
        if !self.clients[at].running {
            return false;
        }
        say!(self, "client {at}: dies");
        for line in std::mem::take(&mut self.clients[at].lines) {
            self.hang_up(line.conn);
        }
        self.clients[at].life += 1;
        self.clients[at].running = false;
        self.agenda.push(self.now + back_after, Step::ClientStarts { at });
        true
    }

    pub(crate) fn client_takes(&mut self, at: usize, step: ClientStep) {
        match step {
            ClientStep::Woken => {
                self.clients[at].alarm = None;
                self.tell_client(at, Event::Woken);
            }
            ClientStep::DialFails { connection, reason } => {
                let attempted = |line: &Line| line.connection == connection && line.attempt.is_some();
                let lines = &mut self.clients[at].lines;
                if let Some(nth) = lines.iter().position(attempted) {
                    let line = lines.remove(nth);
                    self.hang_up(line.conn);
                    self.dial_failed(at, connection, line.attempt.map(|(token, _)| token), reason);
                }
            }
            ClientStep::Work => self.work(at),
            ClientStep::Applied(outcome) => {
                if outcome.result == Applied::Dropped {
                    self.coverage.seen("client: batch thrown away");
                }
                self.tell_client(at, Event::Applied(outcome));
            }
            ClientStep::ApplierEnded => self.tell_client(at, Event::ApplierEnded),
            ClientStep::Asks {
                question,
                stream,
                about,
            } => self.authority_answers(at, question, stream, about),
            ClientStep::AsksHeads {
                question,
                streams,
                reported,
            } => self.authority_tells_heads(at, question, streams, reported),
            ClientStep::Stop { back_after } => {
                self.clients[at].back_after = Some(back_after);
                self.tell_client(at, Event::Stop);
            }
            ClientStep::Unfollow { stream, follow_after } => self.unfollow(at, stream, follow_after),
            ClientStep::Follow { stream } => self.follow(at, stream),
        }
    }

    fn modes_of(&self, at: usize) -> Vec<Mode> {
        let session = &self.clients[at].session;
        let streams = 0..self.setup.streams;
        streams.map(|stream| session.stream(stream).mode().clone()).collect()
    }

    /// Tells the session what happened, and carries out its commands.
    fn tell_client(&mut self, at: usize, event: Event) {
        // A timer that changes nothing is not part of the story.
        let is_timer = matches!(event, Event::Woken);
        let heard = self.is_telling().then(|| (words(&event), self.modes_of(at)));
        let client = &mut self.clients[at];
        let now = client.epoch + Duration::from_micros(self.now);
        let mut commands = Vec::new();
        client.session.step(now, event, &mut commands);
        let phase = client.shown.phase.code();
        client.session.show(&mut client.shown);
        if let (true, Phase::Backoff { reason, .. }) = (phase != "backoff", &client.shown.phase)
            && matches!(reason, Disconnect::Silence(_))
        {
            self.coverage.seen("client: silence noticed");
        }
        if let Some((heard, before)) = heard {
            let modes = self.modes_of(at);
            if !is_timer || modes != before {
                say!(self, "client {at}: {heard}: {modes:?}");
            }
        }
        self.see_stopped(at);
        let life = self.clients[at].life;
        for command in commands {
            self.carry_out(at, command);
            if self.clients[at].life != life {
                return;
            }
        }
        if self.clients[at].session.has_ended() {
            return self.client_has_ended(at);
        }
        self.set_alarm(at);
    }

    fn see_stopped(&mut self, at: usize) {
        for stream in 0..self.setup.streams {
            let client = &mut self.clients[at];
            if let Mode::Stopped(stop) = client.session.stream(stream).mode()
                && !std::mem::replace(&mut client.followed[stream].stopped, true)
            {
                let why = stop.to_string();
                self.coverage.seen("client: stream stopped");
                say!(self, "client {at}: stream {stream} stopped, {why}");
            }
        }
    }

    fn set_alarm(&mut self, at: usize) {
        let client = &mut self.clients[at];
        let Some(due) = client.session.due() else { return };
        let due = due.saturating_duration_since(client.epoch).as_nanos().div_ceil(1_000);
        let due = (due as Micros).max(self.now + 1);
        if client.alarm.is_none_or(|alarm| due < alarm) {
            client.alarm = Some(due);
            self.client_in(at, due - self.now, ClientStep::Woken);
        }
    }

    /// The session has ended. Whoever stopped it, or an operator, starts it again.
    fn client_has_ended(&mut self, at: usize) {
        let Phase::Stopped { reason } = self.clients[at].shown.phase.clone() else {
            return self.violate("I8", || format!("client {at} has ended and does not say why"));
        };
        match reason {
            StopReason::Requested => {
                self.coverage.seen("client: stopped in good order");
                let back_after = self.clients[at].back_after.unwrap_or(SECOND);
                self.client_dies(at, back_after);
            }
            StopReason::Store(_) => {
                say!(self, "client {at}: its store has failed");
                let back = self.dice.work.random_range(0..2 * SECOND);
                self.client_dies(at, back);
            }
            StopReason::EveryStreamStopped => {
                self.coverage.seen("client: every stream stopped");
                // Every stream that it followed. The application wants the others back.
                let client = &self.clients[at];
                let is_followed = |followed: &Followed| followed.wish == Wish::Follow;
                if client.wishes.are_refused() || !client.followed.iter().all(is_followed) {
                    self.client_dies(at, SECOND);
                }
            }
            StopReason::Unauthorized
            | StopReason::Refused(_)
            | StopReason::Incompatible(_)
            | StopReason::ContractMismatch { .. }
            | StopReason::NoModule { .. }
            | StopReason::Defect => self.violate("I13", || format!("client {at} stopped without a cause: {reason}")),
        }
    }

    fn carry_out(&mut self, at: usize, command: Command) {
        match command {
            Command::Dial { connection, token, .. } => self.client_dials(at, connection, token),
            Command::Close { connection } => {
                let lines = &mut self.clients[at].lines;
                if let Some(nth) = lines.iter().position(|line| line.connection == connection) {
                    let line = lines.remove(nth);
                    self.hang_up(line.conn);
                }
            }
            Command::Read {
                connection,
                read,
                stream,
                after,
            } => self.client_sends(
                at,
                connection,
                ToHost::Read {
                    read: read.0,
                    stream,
                    after,
                },
            ),
            Command::Subscribe {
                connection,
                stream,
                id,
                after,
                to,
                ..
            } => self.client_sends(at, connection, ToHost::Subscribe { stream, id, after, to }),
            Command::Unsubscribe { connection, stream, id } => {
                self.client_sends(at, connection, ToHost::Unsubscribe { stream, id });
            }
            Command::Acknowledge {
                connection,
                stream,
                position,
            } => {
                let checkpoint = position;
                self.client_sends(at, connection, ToHost::Ack { stream, checkpoint });
            }
            Command::Apply { stream, work } => {
                let client = &mut self.clients[at];
                client.applier.hand_over(stream, work);
                if !client.working {
                    self.work_later(at);
                }
            }
            Command::Open {
                stream,
                stream_id,
                carries,
            } => {
                self.coverage.seen("client: stream read from the store again");
                self.clients[at].applier.open(stream, stream_id, carries);
                self.hear_applier(at);
            }
            Command::Followed { call, result } => self.wish_answered(at, call, result),
            Command::Trust(keys) => self.clients[at].applier.trust(keys),
            Command::StopApplier => {
                let client = &mut self.clients[at];
                client.applier_stopped = true;
                let after = client.told_at.saturating_sub(self.now) + 1;
                self.client_in(at, after, ClientStep::ApplierEnded);
            }
            Command::Ask {
                question,
                stream,
                about,
                ..
            } => self.client_asks(
                at,
                ClientStep::Asks {
                    question,
                    stream,
                    about,
                },
            ),
            Command::AskHeads {
                question,
                streams,
                reported,
                ..
            } => self.client_asks(
                at,
                ClientStep::AsksHeads {
                    question,
                    streams,
                    reported,
                },
            ),
            // The session ignores the answer.
            Command::Withdraw { .. } => {}
            // These runs have no presence and no signals, and no application that watches or calls.
            Command::SayPresence { .. }
            | Command::Watch { .. }
            | Command::Show { .. }
            | Command::Call { .. }
            | Command::Reply { .. }
            | Command::AskAudience { .. }
            | Command::Hear { .. }
            | Command::Tell(_)
            | Command::AskReadable { .. }
            | Command::ShowReadable { .. } => {
                self.violate("I8", || {
                    format!("client {at} gave a command that these runs have no use for: {command:?}")
                });
            }
        }
    }
}
