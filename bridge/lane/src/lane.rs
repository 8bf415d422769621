//! The whole lane as one machine. It takes events with a time and answers with commands.

mod carry;
mod stage;

use std::time::Duration;

use rand::SeedableRng;
use rand::rngs::SmallRng;
use spacetime_sync_proto::StreamId;
use spacetime_sync_proto::refusal::RefusalClass;

use crate::Turn;
use crate::backoff::Backoff;
use crate::beats::Beats;
use crate::compare::Compare;
use crate::health::{Health, Vitals};
use crate::ids::Ids;
use crate::journal::Journal;
use crate::ledger::Ledger;
use crate::link::Link;
use crate::look::Look;
use crate::message::{Command, Event, Page};
use crate::notice::Notice;
use crate::streams::{Effect, HaltReason, Input, Limits, Load, Streams};
use crate::wake::Wake;

use stage::{Attempt, Stage};

/// The first and the longest wait between attempts to reach the authority.
const AUTHORITY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));
/// The longest time between two turns. Health takes a turn as a sign that the bridge's loop is alive.
const HEARTBEAT: Duration = Duration::from_millis(500);

/// What an operator may set.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Bounds on what is under way.
    pub limits: Limits,
    /// Whether this bridge must take the lead before it carries events.
    pub lead: bool,
    /// Health turns red when work makes no progress for this long, or when the authority or SpacetimeDB is away for this long.
    pub stall_after: Duration,
    /// How long a stop may wait for the calls in flight.
    pub drain: Duration,
    /// How long an attempt to connect to SpacetimeDB may take.
    pub connect_deadline: Duration,
    /// The bridge gives up a link on which a call waits this long for its answer.
    pub ack_deadline: Duration,
    /// The longest wait between two looks for dirty streams.
    pub idle_poll: Duration,
    /// How many dirty streams one look returns at most.
    pub dirty_streams: usize,
    /// How many streams one batch compares with SpacetimeDB at most.
    pub compared_streams: usize,
    /// How long after all streams were compared to compare them again.
    pub compare_every: Duration,
    /// Whether SpacetimeDB keeps only the window that a stream's retention class allows.
    pub applies_windows: bool,
    /// How often the bridge reads the retention policy.
    pub policy_every: Duration,
    /// How often the bridge tells the module how far the authority's history has come.
    pub beat_every: Duration,
}

/// Everything that the bridge decides about the lane.
#[derive(Debug)]
pub struct Lane {
    settings: Settings,
    ids: Ids,
    dice: SmallRng,
    stage: Stage,
    authority: Backoff,
    /// Whether the log says already that another bridge leads.
    stands_by: bool,
    /// Whether the log says already that the authority is away.
    told_away: bool,
    streams: Streams,
    link: Link,
    compare: Compare,
    ledger: Ledger,
    look: Look,
    beats: Beats,
    journal: Journal,
    wake: Wake,
    vitals: Vitals,
    /// When the last turn was.
    turned: Duration,
    /// Whether SpacetimeDB led to another database when this bridge last looked. Only a bridge that leads looks.
    strayed: bool,
    /// A buffer for the streams' effects. Empty between steps.
    effects: Vec<Effect>,
}

impl Lane {
    /// A lane at the start of the process, when the clock is at zero. `seed` decides how the waits vary.
    pub fn new(settings: Settings, seed: u64) -> Self {
        Self {
            ids: Ids::default(),
            dice: SmallRng::seed_from_u64(seed),
            stage: Stage::Opening(Attempt::Waiting(Duration::ZERO)),
            authority: Backoff::new(AUTHORITY.0, AUTHORITY.1),
            stands_by: false,
            told_away: false,
            streams: Streams::new(settings.limits),
            link: Link::new(settings.connect_deadline, settings.ack_deadline),
            compare: Compare::new(settings.compared_streams, settings.compare_every),
            ledger: Ledger::new(),
            look: Look::new(settings.idle_poll, settings.dirty_streams),
            beats: Beats::new(settings.beat_every, settings.policy_every, settings.applies_windows),
            journal: Journal::new(),
            wake: Wake::new(Duration::ZERO),
            vitals: Vitals::new(settings.stall_after),
            turned: Duration::ZERO,
            strayed: false,
            effects: Vec::new(),
            settings,
        }
    }

    /// Takes in what happened at `now` and adds to `out` what to do about it.
    pub fn step(&mut self, now: Duration, event: Event, out: &mut Vec<Command>) {
        let before = out.len();
        self.take(now, event, out);
        debug_assert!(self.effects.is_empty());
        self.watch(now, &out[before..]);
    }

    /// Does what has become possible or due since the last turn. The runner calls it after every batch of events, and at
    /// [`Lane::next_due`].
    pub fn turn(&mut self, now: Duration, out: &mut Vec<Command>) {
        let before = out.len();
        self.turned = now;
        self.do_what_is_due(now, out);
        self.vitals.turned(now, self.streams.load(), self.look.lag());
        self.vitals.journal(self.journal.backlog());
        debug_assert!(self.effects.is_empty());
        self.watch(now, &out[before..]);
    }

    /// When the next turn is due if no event comes before.
    pub fn next_due(&self) -> Duration {
        let heartbeat = self.turned + HEARTBEAT.min(self.settings.stall_after / 2);
        let attempt = |attempt: &Attempt| match attempt {
            Attempt::Waiting(until) => Some(*until),
            Attempt::Asked(_) => None,
        };
        let due = match &self.stage {
            Stage::Opening(opening) => attempt(opening),
            Stage::Standby(asking) => attempt(asking),
            Stage::Leading => [self.carrying_due(), self.look.next_due(), self.wake.next_due()]
                .into_iter()
                .flatten()
                .min(),
            Stage::Draining { by } => self.carrying_due().into_iter().chain([*by]).min(),
            Stage::Recording { by } => self.ledger.next_due().into_iter().chain([*by]).min(),
            Stage::Ended => None,
        };
        due.map_or(heartbeat, |due| due.min(heartbeat))
    }

    fn carrying_due(&self) -> Option<Duration> {
        [
            self.streams.next_due(),
            self.link.next_due(),
            self.compare.next_due(),
            self.ledger.next_due(),
            self.beats.next_due(),
            self.journal.next_due(),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// The data behind health and metrics.
    pub fn vitals(&self) -> &Vitals {
        &self.vitals
    }

    /// How the bridge is.
    pub fn health(&self, now: Duration) -> Health {
        self.vitals.health(now)
    }

    /// How much is under way.
    pub fn load(&self) -> Load {
        self.streams.load()
    }

    /// Whether a stream is halted.
    pub fn is_halted(&self, stream_id: &StreamId) -> bool {
        self.streams.is_halted(stream_id)
    }

    /// The halted streams, with their reasons.
    pub fn halted(&self) -> impl Iterator<Item = (&StreamId, &HaltReason)> {
        self.streams.halted()
    }

    /// Gives every question on the link a deadline.
    fn watch(&mut self, now: Duration, commands: &[Command]) {
        for command in commands {
            match command {
                Command::ReadHeads(_, request, _)
                | Command::CheckSeal { request, .. }
                | Command::CheckFrames { request, .. }
                | Command::Rewind { request, .. }
                | Command::SetRetention(_, request, _)
                | Command::ReadJournal(_, request)
                | Command::SettleJournal(_, request, _)
                | Command::CloseJournal(_, request, _)
                | Command::BringBack(_, request, _)
                | Command::OpenJournal { request, .. }
                | Command::MarkEpoch(_, request, _) => self.link.asks(now, *request),
                Command::OpenAuthority(_)
                | Command::AskForLead(_)
                | Command::BeginLead
                | Command::EndLead
                | Command::Listen(_)
                | Command::SetSleeping(..)
                | Command::Look { .. }
                | Command::ListStreams { .. }
                | Command::ReadStandings(..)
                | Command::ReadPage { .. }
                | Command::Record(..)
                | Command::RecordExactly(..)
                | Command::ReadPolicy(_)
                | Command::ReadEpoch(_)
                | Command::AdvanceBeat(_)
                | Command::BeginJournal(_)
                | Command::FetchJournal(..)
                | Command::KeepJournal { .. }
                | Command::ForgetJournal(..)
                | Command::Dial(_)
                | Command::HangUp(_)
                | Command::Relinked
                | Command::Strayed(_)
                | Command::Append { .. }
                | Command::Tell(_)
                | Command::End(_) => {}
            }
        }
    }

    fn take(&mut self, now: Duration, event: Event, out: &mut Vec<Command>) {
        match event {
            Event::Stop => self.stop(now, out),
            Event::Opened(request, opened) => self.opened(now, request, opened, out),
            Event::Lead(request, lead) => self.asked_for_lead(now, request, lead, out),
            Event::LeadLost => self.lead_lost(now, out),
            Event::Dialed(link, dialed) => self.dialed(now, link, dialed, out),
            Event::Purged(events) => self.vitals.count().purged_events += events,
            Event::KeptKeys(keys) => self.vitals.count().kept_keys = keys,
            Event::Answered(link, call, answer) => self.answered(now, link, call, answer, out),
            Event::Page { link, stream_id, page } => {
                let input = match page {
                    Ok(page) => Input::Page { link, stream_id, page },
                    // A row of the log breaks the contract.
                    Err(failure) if failure.class == RefusalClass::Reject => Input::Page {
                        link,
                        stream_id,
                        page: Page::Broken(HaltReason::BrokenLog(failure.text)),
                    },
                    Err(failure) => {
                        let why = failure.text;
                        let told = stream_id.clone();
                        out.push(Command::Tell(Notice::NotRead { stream_id: told, why }));
                        Input::PageFailed { link, stream_id }
                    }
                };
                self.feed(now, input, out);
            }
            Event::Looked { request, found, took } => {
                if !self.look.hears(request) {
                    return;
                }
                match found {
                    Err(failure) => {
                        self.look.failed(now);
                        self.authority_away(now, failure.text, out);
                    }
                    Ok(looked) => {
                        self.vitals.count().polls += 1;
                        self.authority_here(out);
                        let (streams, has_link) = (&self.streams, self.link.up().is_some());
                        self.look.found(now, &looked.progress, took, has_link, |stream_id| {
                            streams.is_halted(stream_id)
                        });
                        let swept = self.compare.coverage().clone();
                        self.feed(now, Input::Found { looked, swept }, out);
                    }
                }
            }
            Event::Woken => {
                self.vitals.count().wakes += 1;
                self.look.woken(now);
            }
            Event::Listening(request, listening) => {
                self.wake.listening(now, request, listening, &mut self.dice, out);
            }
            Event::SleepingSet(request, set) => self.wake.sleeping_set(request, set, out),
            Event::Recorded(request, recorded) => {
                let outcome = self.ledger.recorded(now, request, recorded, &mut self.dice, out);
                for stream_id in outcome.above_head {
                    self.feed(now, Input::Halt(stream_id, HaltReason::AheadOfAuthority), out);
                }
                self.vitals.unrecorded(self.ledger.refused().iter());
            }
            Event::LinkClosed(link, why) => {
                if self.link.up() == Some(link) {
                    self.link_down(now, why, out);
                } else if self.link.is_dialing(link) {
                    self.no_link(now, why, false, out);
                }
            }
            Event::Listed(request, listed) => {
                let streams = &self.streams;
                let is_met = |stream_id: &StreamId| streams.is_met(stream_id);
                let mut turn = Turn::new(now, &mut self.ids, &mut self.dice, out);
                self.compare.listed(request, listed, is_met, &mut turn);
            }
            Event::Heads(link, request, heads) => {
                if self.link.hears(link, request) {
                    let mut turn = Turn::new(now, &mut self.ids, &mut self.dice, out);
                    let found = self.compare.heads(request, heads, &mut turn);
                    self.found(now, found, out);
                }
            }
            Event::Standings(request, standings) => {
                let Some(policy) = self.beats.settled_policy() else {
                    return;
                };
                let mut turn = Turn::new(now, &mut self.ids, &mut self.dice, out);
                let found = self.compare.standings(request, standings, policy, &mut turn);
                self.vitals.count().compared_streams += found.findings.len() as u64;
                self.found(now, found, out);
            }
            Event::SealChecked(link, request, sealed) => {
                if self.link.hears(link, request) {
                    let mut turn = Turn::new(now, &mut self.ids, &mut self.dice, out);
                    let found = self.compare.seal_checked(request, sealed, &mut turn);
                    self.found(now, found, out);
                }
            }
            Event::FramesChecked(link, request, checked) => {
                if self.link.hears(link, request) {
                    let mut turn = Turn::new(now, &mut self.ids, &mut self.dice, out);
                    let found = self.compare.frames_checked(request, checked, &mut turn);
                    self.found(now, found, out);
                }
            }
            Event::Reported(report) => self.compare.reported(now, report),
            Event::Rewound(link, request, rewound) => {
                if self.link.hears(link, request) {
                    let mut turn = Turn::new(now, &mut self.ids, &mut self.dice, out);
                    let found = self.compare.rewound(request, rewound, &mut turn);
                    self.found(now, found, out);
                }
            }
            Event::Policy(request, classes) => {
                let (dice, ids) = (&mut self.dice, &mut self.ids);
                self.beats.read(now, request, classes, dice, ids, out);
            }
            Event::RetentionSet(link, request, set) => {
                if self.link.hears(link, request) {
                    let verdict = self.beats.handed(now, request, set, out);
                    self.beaten(now, verdict, out);
                }
            }
            Event::Epoch(request, epoch) => {
                let verdict = self.beats.epoch(now, request, epoch, &mut self.ids, out);
                self.beaten(now, verdict, out);
            }
            Event::EpochMarked(link, request, marked) => {
                if self.link.hears(link, request) {
                    let verdict = self.beats.marked(now, request, marked, &mut self.ids, out);
                    self.beaten(now, verdict, out);
                }
            }
            Event::BeatAdvanced(request, advanced) => self.beats.advanced(now, request, advanced, out),
            Event::Journal(link, request, page) => {
                if self.link.hears(link, request) {
                    let mut turn = Turn::new(now, &mut self.ids, &mut self.dice, out);
                    let verdict = self.journal.read(request, page, &mut turn);
                    self.journalled(now, verdict, out);
                }
            }
            Event::JournalTold(link, request, told) => {
                if self.link.hears(link, request) {
                    let mut turn = Turn::new(now, &mut self.ids, &mut self.dice, out);
                    let verdict = self.journal.told(request, told, &mut turn);
                    self.journalled(now, verdict, out);
                }
            }
            Event::JournalBegun(request, begun) => {
                let mut turn = Turn::new(now, &mut self.ids, &mut self.dice, out);
                self.journal.begun(request, begun, &mut turn);
            }
            Event::JournalFetched(request, entries) => {
                let mut turn = Turn::new(now, &mut self.ids, &mut self.dice, out);
                self.journal.fetched(request, entries, &mut turn);
            }
            Event::JournalKept(request, kept) => {
                let mut turn = Turn::new(now, &mut self.ids, &mut self.dice, out);
                self.journal.kept(request, kept, &mut turn);
            }
            Event::JournalForgotten(request, gone) => {
                let mut turn = Turn::new(now, &mut self.ids, &mut self.dice, out);
                self.journal.forgotten(request, gone, &mut turn);
            }
        }
    }

    fn authority_here(&mut self, out: &mut Vec<Command>) {
        self.authority.reset();
        self.vitals.authority_here();
        if std::mem::take(&mut self.told_away) {
            out.push(Command::Tell(Notice::AuthorityBack));
        }
    }

    fn authority_away(&mut self, now: Duration, why: String, out: &mut Vec<Command>) {
        if self.vitals.authority_away(now, why.clone()) {
            self.told_away = true;
            out.push(Command::Tell(Notice::AuthorityAway { why }));
        }
    }
}

#[cfg(test)]
mod tests;
