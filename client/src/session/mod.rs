//! The client's decisions: about connections, tokens, streams, acknowledgements, reads, questions to the authority,
//! presence and status.
//!
//! [`Session::step`] takes an [`Event`] and its time, and answers with [`Command`]s. It does no IO, reads no clock and
//! draws its random numbers from a seed, so the simulation runs the code that we ship. A small runner (`runner.rs`)
//! carries the commands out and decides nothing.
//!
//! Every event of a connection carries its [`ConnectionId`]. A session has at most three connections: one that serves,
//! an older one that still delivers during a hand-over, and an attempt at the next one. It ignores events of any other.
//!
//! Each stream has its own pure core, in [`stream`].

pub mod command;
pub mod event;
pub mod settings;
pub mod status;
pub mod stream;
pub mod token;

mod acknowledgement;
mod cache;
mod calls;
mod connection;
mod contents;
mod counted;
mod ears;
mod ending;
mod follower;
mod following;
mod handover;
mod heads;
mod heartbeat;
mod inbound;
mod questions;
mod readable;
mod reads;
mod tally;
mod timers;
mod views;

pub use calls::{Call, CallId, Called};
pub use command::{Command, Work};
pub use event::{
    Answer, Applied, CallFailure, ConnectionId, Content, DialFailure, Event, Filled, Inbound, Opened, Outcome,
    Question, QuestionId, ReadId,
};
pub(crate) use inbound::agree;
pub use settings::Settings;
pub use token::Issued;

use std::collections::HashMap;
use std::time::Instant;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use spacetime_sync_proto::{Position, StreamId};

use crate::config::StreamBounds;
use crate::presence::Presence;

use cache::Cache;
use calls::Calls;
use connection::Connection;
use contents::Contents;
use ears::Ears;
use ending::Life;
use follower::Follower;
use following::Changes;
use heads::Heads;
use heartbeat::Heartbeat;
use questions::Questions;
use readable::Readable;
use reads::Reads;
use status::{Disconnect, Phase, Status, StopReason};
use stream::{Counters, Effect, Input, Stream};
use tally::Tally;
use views::Views;

/// The client's decisions. See the module documentation.
pub struct Session {
    settings: Settings,
    /// The only source of random numbers: how long waits are.
    dice: StdRng,
    /// The time of the current event.
    now: Instant,
    /// The commands that the current event has led to so far.
    commands: Vec<Command>,
    life: Life,
    /// Whether the apply thread has ended.
    applier_ended: bool,
    followers: Vec<Follower>,
    /// Streams by the key that the module gave them.
    by_key: HashMap<u64, usize>,
    connection: Connection,
    /// Attempts to connect since a connection last stayed stable.
    attempt: u32,
    /// Attempts to connect since the start.
    attempts: u64,
    /// Why the last connection ended, or the last attempt failed.
    last_disconnect: Option<Disconnect>,
    /// How many connections have served so far.
    served: u64,
    /// How many ids of connections, reads and questions have been handed out.
    ids: u64,
    /// The latest token from the provider, until somebody rejects it.
    held: Option<Issued>,
    reads: Reads,
    questions: Questions,
    contents: Contents,
    heads: Heads,
    /// Whether the authority can be asked.
    asks_authority: bool,
    cache: Cache,
    /// Bytes of frames handed to the applier and not yet saved, over all streams.
    unapplied_bytes: usize,
    /// The stream at which the search for checkpoints to acknowledge continues.
    ack_turn: usize,
    /// The presence that the application gave this session.
    presence: Option<Presence>,
    heartbeat: Heartbeat,
    calls: Calls,
    ears: Ears,
    views: Views,
    readable: Readable,
    changes: Changes,
    /// The most streams that it may have.
    most: usize,
    /// How many streams had stopped for good when that was last looked at.
    stopped: usize,
    /// When to look at the timers next.
    tick_at: Instant,
    counters: Counters,
    phase: Phase,
    tally: Tally,
    /// Streams that have changed since the tally was last updated.
    touched: Vec<usize>,
    /// Streams whose shown status may be out of date.
    unshown: Vec<usize>,
    /// Whether the shown token status is out of date.
    token_unshown: bool,
}

impl Session {
    /// A session that has not begun yet: it connects at the first [`Event::Woken`]. Each of `streams` continues from
    /// its saved position; from here on its index identifies it.
    pub fn new(settings: Settings, streams: Vec<(StreamId, Position, StreamBounds)>, seed: u64, now: Instant) -> Self {
        let asks_authority = streams.iter().any(|(_, _, bounds)| bounds.history);
        let followers: Vec<_> = streams
            .into_iter()
            .map(|(id, applied, bounds)| Follower::new(id, Stream::new(applied, bounds), now))
            .collect();
        let renewable = settings.renewable;
        let mut session = Self {
            settings,
            dice: StdRng::seed_from_u64(seed),
            now,
            commands: Vec::new(),
            life: Life::Running,
            applier_ended: false,
            by_key: HashMap::new(),
            connection: Connection::Waiting { until: now },
            attempt: 0,
            attempts: 0,
            last_disconnect: None,
            served: 0,
            ids: 0,
            held: None,
            reads: Reads::default(),
            questions: Questions::default(),
            contents: Contents::default(),
            heads: Heads::default(),
            asks_authority,
            cache: Cache::default(),
            unapplied_bytes: 0,
            ack_turn: 0,
            presence: None,
            heartbeat: Heartbeat::default(),
            calls: Calls::default(),
            ears: Ears::default(),
            views: Views::default(),
            readable: Readable::default(),
            changes: Changes::default(),
            most: Self::most_streams(renewable, followers.len()),
            stopped: 0,
            tick_at: now,
            counters: Counters::default(),
            phase: Phase::Idle,
            tally: Tally::default(),
            touched: Vec::new(),
            unshown: Vec::new(),
            token_unshown: false,
            followers,
        };
        for at in 0..session.followers.len() {
            let share = session.followers[at].share();
            session.followers[at].share = share;
            session.tally.add(share);
        }
        session
    }

    /// The initial status.
    pub fn status(&self) -> Status {
        let streams = self.followers.iter();
        Status {
            phase: self.phase.clone(),
            streams: streams
                .map(|follower| (follower.id.clone(), follower.status()))
                .collect(),
            connect_attempts: self.attempts,
            last_disconnect: self.last_disconnect.clone(),
            schema_version: self.speaks(),
            token: None,
            counters: self.counters,
        }
    }

    /// Updates `shown` and returns whether anything has changed. The cost grows with the number of changed streams.
    pub fn show(&mut self, shown: &mut Status) -> bool {
        let speaks = self.speaks();
        let mut changed =
            shown.counters != self.counters || shown.phase != self.phase || shown.schema_version != speaks;
        shown.counters = self.counters;
        shown.schema_version = speaks;
        if shown.connect_attempts != self.attempts || shown.last_disconnect != self.last_disconnect {
            shown.connect_attempts = self.attempts;
            shown.last_disconnect.clone_from(&self.last_disconnect);
            changed = true;
        }
        if shown.phase != self.phase {
            shown.phase = self.phase.clone();
        }
        if std::mem::take(&mut self.token_unshown) {
            shown.token = self.token_status();
            changed = true;
        }
        while let Some(at) = self.unshown.pop() {
            let follower = &mut self.followers[at];
            follower.unshown = false;
            let found = follower.status();
            if !follower.is_followed() {
                changed |= shown.streams.remove(&follower.id).is_some();
                continue;
            }
            match shown.streams.get_mut(&follower.id) {
                Some(stream) if *stream == found => continue,
                Some(stream) => *stream = found,
                None => drop(shown.streams.insert(follower.id.clone(), found)),
            }
            changed = true;
        }
        changed
    }

    /// The latest time for the next [`Event::Woken`]. `None` while the session waits for another event.
    pub fn due(&self) -> Option<Instant> {
        match &self.life {
            Life::Running => Some(match &self.connection {
                Connection::Waiting { until } => self.tick_at.min(*until),
                Connection::Dialing(_) | Connection::Up(_) => self.tick_at,
            }),
            Life::Draining { .. } => None,
            Life::Leaving { until, .. } => Some(*until),
            Life::Ended => None,
        }
    }

    /// Whether the session has ended: it answers no further event.
    pub fn has_ended(&self) -> bool {
        matches!(self.life, Life::Ended)
    }

    /// One stream's core.
    pub fn stream(&self, at: usize) -> &Stream {
        &self.followers[at].stream
    }

    /// Bytes of frames that are not applied yet, over all streams.
    pub fn unapplied_bytes(&self) -> usize {
        self.unapplied_bytes
    }

    /// What has been counted since the start.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Handles one event and appends the commands that follow from it.
    pub fn step(&mut self, now: Instant, event: Event, commands: &mut Vec<Command>) {
        self.now = self.now.max(now);
        std::mem::swap(&mut self.commands, commands);
        let result = match self.life {
            Life::Running => self.run(event),
            Life::Draining { .. } | Life::Leaving { .. } | Life::Ended => {
                self.wind_down(event);
                Ok(())
            }
        };
        self.count_touched();
        let result = result.and_then(|()| self.go_on());
        if let Err(reason) = result {
            self.begin_to_stop(reason);
        }
        self.count_touched();
        self.derive_phase();
        std::mem::swap(&mut self.commands, commands);
    }

    fn run(&mut self, event: Event) -> Result<(), StopReason> {
        match event {
            Event::Woken => self.woken(),
            Event::Dialed {
                connection,
                token,
                result,
            } => return self.dialed(connection, token, result),
            Event::Message { connection, inbound } => return self.message(connection, inbound),
            Event::Closed { connection, reason } => self.closed(connection, reason),
            Event::Answered {
                question,
                stream,
                answer,
            } => return self.answered(question, stream, answer),
            Event::Heads { question, answer } => self.heads_came(question, answer),
            Event::Applied(outcome) => return self.applied(outcome),
            Event::ApplierEnded => {
                self.applier_ended = true;
                return Err(StopReason::Defect);
            }
            Event::Call { id, call, within } => self.call(id, call, within),
            Event::Follow {
                call,
                stream_id,
                bounds,
            } => self.follow(call, stream_id, bounds),
            Event::Unfollow { call, stream_id } => self.unfollow(call, &stream_id),
            Event::Hear(audiences) => self.hear(audiences),
            Event::Wishes {
                said,
                watches,
                readable,
            } => {
                self.presence = said;
                self.watch(watches);
                if readable {
                    self.want_readable();
                }
            }
            Event::Stop => return Err(StopReason::Requested),
        }
        Ok(())
    }

    /// Does what the new state allows or requires, whatever led to it.
    fn go_on(&mut self) -> Result<(), StopReason> {
        match self.life {
            Life::Running => {}
            Life::Draining { .. } | Life::Leaving { .. } | Life::Ended => return Ok(()),
        }
        self.end_handover_if_over();
        self.go_on_with_calls();
        self.start_reads();
        self.start_questions();
        self.start_contents();
        self.start_heads();
        self.ask_readable();
        let stopped = self.tally.stopped();
        let has_one_stopped = stopped > std::mem::replace(&mut self.stopped, stopped);
        // Not when the application follows a stream no longer: it may follow another one next.
        if has_one_stopped && !self.changes.are_opening() && self.tally.all_have_stopped(self.followers.len()) {
            return Err(StopReason::EveryStreamStopped);
        }
        Ok(())
    }

    /// Feeds one input to one stream and carries out its effects.
    fn feed(&mut self, at: usize, input: Input) {
        let stream = &mut self.followers[at].stream;
        let before = stream.unapplied_bytes();
        let effects = stream.step(input, &mut self.counters);
        debug_assert!(self.unapplied_bytes >= before, "a stream has more unapplied than all");
        self.unapplied_bytes = self.unapplied_bytes - before + stream.unapplied_bytes();
        self.touch(at);
        match self.life {
            Life::Running => {}
            // The session is ending and begins nothing new.
            Life::Draining { .. } | Life::Leaving { .. } | Life::Ended => return,
        }
        if self.followers[at].is_followed() {
            for effect in effects {
                self.perform(at, effect);
            }
        } else if !effects.is_empty() {
            // Nobody does for it what it asks for any more.
            let nothing = self.followers[at].stream.step(Input::Disconnected, &mut self.counters);
            debug_assert!(nothing.is_empty(), "a stream without a connection asks for nothing");
        }
    }

    fn perform(&mut self, at: usize, effect: Effect) {
        match effect {
            Effect::Read { after } => self.reads.queue(at, after),
            Effect::Subscribe { id, after, to } => self.subscribe(at, id, after, to),
            Effect::Unsubscribe { id } => self.unsubscribe(at, id),
            Effect::Apply(batch) => self.commands.push(Command::Apply {
                stream: at,
                work: Work::Batch(batch),
            }),
            Effect::StartOver(beginning) => self.commands.push(Command::Apply {
                stream: at,
                work: Work::StartOver(beginning),
            }),
            Effect::ReadHistory { after } => self.ask_authority(at, Question::Events(after)),
            Effect::ReadDocument => self.ask_authority(at, Question::Document),
            Effect::ReadDocuments { at: position, after } => {
                self.ask_authority(at, Question::Documents { at: position, after });
            }
            Effect::Stage(staging) => self.commands.push(Command::Apply {
                stream: at,
                work: Work::Stage(staging),
            }),
            Effect::Adopt(adoption) => self.commands.push(Command::Apply {
                stream: at,
                work: Work::Adopt(adoption),
            }),
            Effect::Report => self.report(at),
            Effect::RecoverLater { attempt } => {
                let wait = self.followers[at].wait_for_authority.take();
                let pause = self.settings.backoff.delay_of(attempt, wait, self.dice.random());
                self.followers[at].ask_at = Some(self.now + pause);
            }
            Effect::AskLater => {
                self.followers[at].ask_at = Some(self.now + self.settings.limits.ask_again_after);
            }
            Effect::RetryLater { attempt } => {
                let pause = self.settings.backoff.delay(attempt, self.dice.random());
                self.followers[at].ask_at = Some(self.now + pause);
            }
        }
    }

    /// The apply thread has finished a piece of work.
    fn applied(&mut self, outcome: Outcome) -> Result<(), StopReason> {
        let Outcome {
            stream: at,
            released,
            result,
        } = outcome;
        let follower = &mut self.followers[at];
        let input = match result {
            Applied::Opened(result) => {
                self.opened(at, result);
                return Ok(());
            }
            Applied::To(to) => Input::Applied { to, released },
            Applied::DocumentsTo {
                to,
                have_pointers,
                refused,
            } => {
                self.counters.documents_refused += refused;
                if have_pointers {
                    self.search(at);
                }
                Input::Applied { to, released }
            }
            Applied::Staged(fetch) => Input::Staged { fetch, released },
            Applied::Pointer(found) => {
                self.pointer_found(at, found);
                return Ok(());
            }
            Applied::Filled(filled) => {
                self.filled(at, filled);
                return Ok(());
            }
            Applied::StartedOver(from) => {
                if follower.stream.carries_documents() {
                    tracing::info!(stream = %follower.id, %from.seq, "the stream has begun with its documents");
                } else {
                    tracing::warn!(stream = %follower.id, %from.seq, "the stream has started over");
                }
                follower.acknowledgement.forget();
                self.search(at);
                Input::StartedOver(from)
            }
            Applied::Dropped => Input::Dropped { released },
            Applied::Failed(failure) => {
                tracing::warn!(stream = %follower.id, ?failure, "applying a batch failed");
                Input::ApplyFailed { failure, released }
            }
            Applied::StoreFailed(error) => return Err(StopReason::Store(error)),
        };
        self.feed(at, input);
        self.end_leaving_if_applied(at);
        Ok(())
    }

    fn next_id(&mut self) -> u64 {
        self.ids += 1;
        self.ids
    }

    /// Marks a stream as changed.
    fn touch(&mut self, at: usize) {
        let follower = &mut self.followers[at];
        if !std::mem::replace(&mut follower.touched, true) {
            self.touched.push(at);
        }
    }

    /// Updates the tally and the hand-over for the streams that have changed.
    fn count_touched(&mut self) {
        while let Some(at) = self.touched.pop() {
            let follower = &mut self.followers[at];
            follower.touched = false;
            follower.observe(self.now, self.settings.limits.live_grace);
            self.tally.remove(follower.share);
            follower.share = follower.share();
            self.tally.add(follower.share);
            let is_readable = follower.is_readable();
            let readable_changed = std::mem::replace(&mut follower.was_readable, is_readable) != is_readable;
            if !std::mem::replace(&mut follower.unshown, true) {
                self.unshown.push(at);
            }
            self.hand_over(at);
            // A grant that names the stream may be older than the stream, so nothing else says that it has begun.
            if readable_changed {
                self.readable_changed();
            }
        }
    }

    /// Derives the phase of the whole client.
    fn derive_phase(&mut self) {
        match self.life {
            Life::Running => {}
            Life::Draining { .. } | Life::Leaving { .. } | Life::Ended => return,
        }
        let Connection::Up(up) = &mut self.connection else {
            return;
        };
        let phase = self.tally.phase();
        up.stable_since = match phase {
            Phase::Idle | Phase::Live => up.stable_since.or(Some(self.now)),
            Phase::Connecting { .. } | Phase::CatchingUp { .. } | Phase::Backoff { .. } | Phase::Stopped { .. } => None,
        };
        if self.phase != phase {
            self.phase = phase;
        }
    }
}

#[cfg(test)]
mod tests;
