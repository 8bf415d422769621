//! The lane as one machine: takes events with a time, answers with commands.

use std::time::Duration;

use rand::SeedableRng;
use rand::rngs::SmallRng;
use spacetime_sync_proto::StreamId;
use spacetime_sync_proto::refusal::RefusalClass;

use crate::backoff::Backoff;
use crate::beats::{self, Beats};
use crate::compare::{Compare, Found};
use crate::health::{Health, Role, Vitals};
use crate::ids::Ids;
use crate::ledger::Ledger;
use crate::link::Link;
use crate::look::Look;
use crate::message::{Answer, Command, Event, Failure, Page};
use crate::notice::Notice;
use crate::streams::{Effect, HaltReason, Input, Limits, Load, Streams};
use crate::wake::Wake;
use crate::{LinkId, RequestId, Turn};

/// Waits between attempts to reach an authority that is away.
const AUTHORITY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));
/// Wait before a standby asks for the lead again.
const LEAD_EVERY: Duration = Duration::from_millis(500);
/// How long the last records may take when the bridge stops.
const RECORD: Duration = Duration::from_secs(5);
/// The longest time without a turn: a loop that turns is what tells health that the bridge lives.
const HEARTBEAT: Duration = Duration::from_millis(500);

/// What an operator may set.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Bounds of what is under way.
    pub limits: Limits,
    /// Whether this bridge takes the lead before it carries anything.
    pub lead: bool,
    /// After how long of work without progress, or without a peer, health turns red.
    pub stall_after: Duration,
    /// How long a stop may wait for what is in flight.
    pub drain: Duration,
    /// How long an attempt to connect may take.
    pub connect_deadline: Duration,
    /// A call that is not acknowledged for this long means that the link is dead.
    pub ack_deadline: Duration,
    /// The longest wait between looks for dirty streams.
    pub idle_poll: Duration,
    /// Dirty streams asked for at once.
    pub dirty_streams: usize,
    /// Streams compared with SpacetimeDB at once.
    pub compared_streams: usize,
    /// Whether SpacetimeDB holds no more of a stream than its class says.
    pub applies_windows: bool,
    /// How often the policy of retention is read.
    pub policy_every: Duration,
    /// How often the authority's progress is written down.
    pub beat_every: Duration,
}

/// What the bridge is about.
#[derive(Debug)]
enum Stage {
    /// The authority is not known yet to be there and to have the right schema.
    Opening(Attempt),
    /// Another bridge leads, or may.
    Standby(Attempt),
    /// This bridge carries.
    Leading,
    /// Told to stop: what was read is sent, and what was sent is waited for.
    Draining { by: Duration },
    /// Told to stop: what is published is recorded.
    Recording { by: Duration },
    /// Nothing happens any more.
    Ended,
}

/// Something that is asked for again and again until it is there.
#[derive(Debug)]
enum Attempt {
    /// Asked for then.
    Waiting(Duration),
    Asked(RequestId),
}

/// The bridge's decisions about the lane.
#[derive(Debug)]
pub struct Lane {
    settings: Settings,
    ids: Ids,
    dice: SmallRng,
    stage: Stage,
    authority: Backoff,
    /// Whether a person was told that another bridge leads.
    stands_by: bool,
    /// Whether a person was told that the authority is away.
    told_away: bool,
    streams: Streams,
    link: Link,
    compare: Compare,
    ledger: Ledger,
    look: Look,
    beats: Beats,
    wake: Wake,
    vitals: Vitals,
    /// When the last turn was.
    turned: Duration,
    /// What the streams asked for in the step under way; empty between steps.
    effects: Vec<Effect>,
}

impl Lane {
    /// At the start of a process, whose clock is at zero. `seed` decides how much waits vary.
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
            compare: Compare::new(settings.compared_streams),
            ledger: Ledger::new(),
            look: Look::new(settings.idle_poll, settings.dirty_streams),
            beats: Beats::new(settings.beat_every, settings.policy_every, settings.applies_windows),
            wake: Wake::new(Duration::ZERO),
            vitals: Vitals::new(settings.stall_after),
            turned: Duration::ZERO,
            effects: Vec::new(),
            settings,
        }
    }

    /// Takes in what happened at `now` and adds what is to be done about it.
    pub fn step(&mut self, now: Duration, event: Event, out: &mut Vec<Command>) {
        let before = out.len();
        self.take(now, event, out);
        debug_assert!(self.effects.is_empty());
        self.watch(now, &out[before..]);
    }

    /// Does what has become possible or due since the last turn. The runner calls it after every batch of events, and
    /// whenever [`Lane::next_due`] says so.
    pub fn turn(&mut self, now: Duration, out: &mut Vec<Command>) {
        let before = out.len();
        self.turned = now;
        self.do_what_is_due(now, out);
        self.vitals.turned(now, self.streams.load(), self.look.lag());
        debug_assert!(self.effects.is_empty());
        self.watch(now, &out[before..]);
    }

    /// When the next turn is due, if nothing happens before.
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
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// All that health and metrics are made of.
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

    /// Whether a stream goes no further.
    pub fn is_halted(&self, stream_id: &StreamId) -> bool {
        self.streams.is_halted(stream_id)
    }

    /// The streams that go no further, and why.
    pub fn halted(&self) -> impl Iterator<Item = (&StreamId, &HaltReason)> {
        self.streams.halted()
    }

    /// Questions on the link have a deadline, whoever asks them.
    fn watch(&mut self, now: Duration, commands: &[Command]) {
        for command in commands {
            match command {
                Command::ReadHeads(_, request, _)
                | Command::Rewind { request, .. }
                | Command::SetRetention(_, request, _)
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
                | Command::Dial(_)
                | Command::HangUp(_)
                | Command::Relinked
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
            Event::Answered(link, call, answer) => self.answered(now, link, call, answer, out),
            Event::Page { link, stream_id, page } => {
                let input = match page {
                    Ok(page) => Input::Page { link, stream_id, page },
                    // A row holds what the contract does not allow.
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
                    Ok(progress) => {
                        self.vitals.count().polls += 1;
                        self.authority_here(out);
                        let (streams, has_link) = (&self.streams, self.link.up().is_some());
                        self.look
                            .found(now, &progress, took, has_link, |stream_id| streams.is_halted(stream_id));
                        let swept = self.compare.coverage().clone();
                        self.feed(now, Input::Found { progress, swept }, out);
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
        }
    }

    fn do_what_is_due(&mut self, now: Duration, out: &mut Vec<Command>) {
        match &mut self.stage {
            Stage::Opening(attempt) => {
                if let Some(request) = attempt.due(now, &mut self.ids) {
                    out.push(Command::OpenAuthority(request));
                }
            }
            Stage::Standby(attempt) => {
                if let Some(request) = attempt.due(now, &mut self.ids) {
                    out.push(Command::AskForLead(request));
                }
            }
            Stage::Leading => {
                self.carry(now, out);
                self.look.turn(now, &mut self.ids, out);
                self.wake.turn(now, &mut self.ids, out);
                self.wake.sleeps(self.look.is_asleep(), &mut self.ids, out);
            }
            Stage::Draining { by } => {
                let by = *by;
                if by <= now || self.streams.is_drained() || self.link.up().is_none() {
                    self.link.turn_off(out);
                    self.feed(now, Input::LinkDown, out);
                    self.ledger.flush(now);
                    self.stage = Stage::Recording { by: now + RECORD };
                    return self.do_what_is_due(now, out);
                }
                self.carry(now, out);
            }
            Stage::Recording { by } => {
                let late = *by <= now;
                self.ledger.turn(now, &mut self.ids, out);
                if late || self.ledger.is_empty() {
                    if late {
                        let streams = self.ledger.len();
                        out.push(Command::Tell(Notice::LeftUnrecorded { streams }));
                    }
                    self.end(Ok(()), out);
                }
            }
            Stage::Ended => {}
        }
    }

    /// What a bridge does that carries events.
    fn carry(&mut self, now: Duration, out: &mut Vec<Command>) {
        if let Some(why) = self.link.is_overdue(now) {
            if self.link.up().is_some() {
                self.link_down(now, why, out);
            } else {
                self.no_link(now, why, false, out);
            }
        }
        if matches!(self.stage, Stage::Leading) {
            self.link.turn(now, &mut self.ids, out);
        }
        if self.streams.next_due().is_some_and(|due| due <= now) {
            self.feed(now, Input::Tick, out);
        }
        self.beats.turn(now, &mut self.ids, out);
        // Before that it is not known how much SpacetimeDB is to hold, or what the authority's record will say.
        if let Some(link) = self.link.up()
            && !self.compare.is_open()
            && self.beats.settled_policy().is_some()
            && !self.ledger.writes_the_past()
        {
            self.compare.open(now, link);
        }
        let mut turn = Turn::new(now, &mut self.ids, &mut self.dice, out);
        self.compare.turn(&mut turn);
        self.ledger.turn(now, &mut self.ids, out);
    }

    /// Feeds the streams and does what they ask for.
    fn feed(&mut self, now: Duration, input: Input, out: &mut Vec<Command>) {
        let mut effects = std::mem::take(&mut self.effects);
        self.streams.step(now, input, &mut effects);
        let mut drop_link = None;
        for effect in effects.drain(..) {
            match effect {
                Effect::Append {
                    link,
                    call,
                    stream_id,
                    frame,
                } => {
                    self.link.sends(now, call, frame.claimed_events());
                    out.push(Command::Append {
                        link,
                        call,
                        stream_id,
                        frame,
                    });
                }
                Effect::Read {
                    link,
                    stream_id,
                    after,
                    base_chain,
                } => out.push(Command::ReadPage {
                    link,
                    stream_id,
                    after,
                    base_chain,
                }),
                Effect::Advance { stream_id, seq } => self.ledger.advance(now, stream_id, seq),
                Effect::SetBack { stream_id, seq } => {
                    let told = stream_id.clone();
                    out.push(Command::Tell(Notice::SetBack {
                        stream_id: told,
                        to: seq,
                    }));
                    self.ledger.set_back(now, stream_id, seq);
                }
                Effect::Holds { stream_id, seq } => self.ledger.holds(now, stream_id, seq),
                Effect::Compare(stream_id) => self.compare.want(stream_id),
                Effect::Refill { stream_id, seen, after } => self.compare.want_refill(stream_id, seen, after),
                Effect::Halted { stream_id, reason } => {
                    self.vitals.halted(stream_id.clone(), reason.clone());
                    out.push(Command::Tell(Notice::Halted { stream_id, reason }));
                }
                Effect::DropLink(refusal) => drop_link = Some(refusal.to_string()),
            }
        }
        self.effects = effects;
        if let Some(why) = drop_link {
            self.link_down(now, why, out);
        }
    }

    /// Hands on what the comparison found.
    fn found(&mut self, now: Duration, found: Found, out: &mut Vec<Command>) {
        for (stream_id, finding) in found.findings {
            self.feed(now, Input::Compared(stream_id, finding), out);
        }
        if let Some(why) = found.drop_link {
            self.link_down(now, why, out);
        }
    }

    fn answered(&mut self, now: Duration, link: LinkId, call: crate::CallId, answer: Answer, out: &mut Vec<Command>) {
        // Answers of an earlier link are not in the books.
        let Some(sent) = self.link.answered(link, call) else {
            return;
        };
        let input = match answer {
            Answer::Acked => {
                self.vitals.progress(now, sent.events);
                Input::Acked(call)
            }
            Answer::Refused(refusal) => {
                self.vitals.count().refused_calls += 1;
                Input::Refused(call, refusal)
            }
            Answer::Lost(message) => {
                self.vitals.count().lost_calls += 1;
                Input::Lost(call, message)
            }
        };
        self.feed(now, input, out);
    }

    fn beaten(&mut self, now: Duration, verdict: beats::Verdict, out: &mut Vec<Command>) {
        match verdict {
            beats::Verdict::Fine => {}
            beats::Verdict::Marked(restored) => self.vitals.restored(restored.map(|refusal| refusal.message)),
            beats::Verdict::DropLink(why) => self.link_down(now, why, out),
            beats::Verdict::EpochBegun => {
                out.push(Command::Tell(Notice::EpochBegun));
                self.vitals.none_halted();
                self.link_down(now, "a new epoch of the authority begins".to_owned(), out);
                self.feed(now, Input::Anew, out);
            }
        }
    }

    fn dialed(&mut self, now: Duration, link: LinkId, dialed: Result<(), Failure>, out: &mut Vec<Command>) {
        if !self.link.is_dialing(link) {
            // It was given up before it was made.
            if dialed.is_ok() {
                out.push(Command::HangUp(link));
            }
            return;
        }
        match dialed {
            Ok(()) => {
                out.push(Command::Tell(Notice::LinkUp));
                out.push(Command::Relinked);
                self.link.rise(now, link);
                self.vitals.link_up();
                self.ledger.forget();
                self.vitals.unrecorded(self.ledger.refused().iter());
                self.beats.link_up(now, link);
                self.feed(now, Input::LinkUp(link), out);
                self.look.woken(now);
            }
            Err(failure) => {
                let for_a_person = failure.class != RefusalClass::Retry;
                self.no_link(now, failure.text, for_a_person, out);
            }
        }
    }

    /// An attempt to connect came to nothing.
    fn no_link(&mut self, now: Duration, why: String, for_a_person: bool, out: &mut Vec<Command>) {
        let wait = self.link.fall(now, &mut self.dice, out);
        out.push(Command::Tell(Notice::NoLink {
            why: why.clone(),
            wait,
            for_a_person,
        }));
        self.vitals.link_down(now, why);
    }

    /// Gives up the link that is up, if there is one: what ends a link is often told more than once.
    fn link_down(&mut self, now: Duration, why: String, out: &mut Vec<Command>) {
        if self.link.up().is_none() {
            return;
        }
        let wait = self.link.fall(now, &mut self.dice, out);
        out.push(Command::Tell(Notice::LinkDown { why: why.clone(), wait }));
        self.vitals.link_down(now, why);
        self.beats.link_down();
        self.compare.close();
        self.feed(now, Input::LinkDown, out);
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

    fn opened(&mut self, now: Duration, request: RequestId, opened: Result<(), Failure>, out: &mut Vec<Command>) {
        match &mut self.stage {
            Stage::Opening(attempt) if attempt.is(request) => match opened {
                Ok(()) => {
                    self.authority_here(out);
                    if self.settings.lead {
                        self.stage = Stage::Standby(Attempt::Waiting(now));
                    } else {
                        self.begin_lead(now, out);
                    }
                }
                // A database that is away is waited for; one that is wrong ends the bridge.
                Err(failure) if failure.class == RefusalClass::Retry => {
                    *attempt = Attempt::Waiting(now + self.authority.next(&mut self.dice));
                    self.authority_away(now, failure.text, out);
                }
                Err(failure) => self.end(Err(failure), out),
            },
            Stage::Opening(_)
            | Stage::Standby(_)
            | Stage::Leading
            | Stage::Draining { .. }
            | Stage::Recording { .. }
            | Stage::Ended => {}
        }
    }

    fn asked_for_lead(
        &mut self,
        now: Duration,
        request: RequestId,
        lead: Result<bool, Failure>,
        out: &mut Vec<Command>,
    ) {
        match &mut self.stage {
            Stage::Standby(attempt) if attempt.is(request) => match lead {
                Ok(true) => {
                    self.authority_here(out);
                    self.begin_lead(now, out);
                }
                Ok(false) => {
                    *attempt = Attempt::Waiting(now + LEAD_EVERY);
                    if !std::mem::replace(&mut self.stands_by, true) {
                        out.push(Command::Tell(Notice::StandingBy));
                    }
                    self.vitals.role(Role::Standby);
                    self.authority_here(out);
                }
                Err(failure) => {
                    *attempt = Attempt::Waiting(now + self.authority.next(&mut self.dice));
                    self.authority_away(now, failure.text, out);
                }
            },
            Stage::Opening(_)
            | Stage::Standby(_)
            | Stage::Leading
            | Stage::Draining { .. }
            | Stage::Recording { .. }
            | Stage::Ended => {}
        }
    }

    fn begin_lead(&mut self, now: Duration, out: &mut Vec<Command>) {
        out.push(Command::Tell(Notice::Leading));
        out.push(Command::BeginLead);
        self.stage = Stage::Leading;
        self.stands_by = false;
        self.vitals.lead_begun(now);
        self.link.want(now);
        self.look.woken(now);
        self.wake = Wake::new(now);
    }

    /// What this bridge carried is for the next leader to find out.
    fn lead_lost(&mut self, now: Duration, out: &mut Vec<Command>) {
        match self.stage {
            Stage::Leading => {
                out.push(Command::Tell(Notice::LeadLost));
                self.link.turn_off(out);
                out.push(Command::EndLead);
                let settings = &self.settings;
                self.streams = Streams::new(settings.limits);
                self.link = Link::new(settings.connect_deadline, settings.ack_deadline);
                self.compare = Compare::new(settings.compared_streams);
                self.ledger = Ledger::new();
                self.look = Look::new(settings.idle_poll, settings.dirty_streams);
                self.beats = Beats::new(settings.beat_every, settings.policy_every, settings.applies_windows);
                self.stage = Stage::Standby(Attempt::Waiting(now));
                self.vitals.lead_lost(now, "the connection that held the lead is gone");
            }
            // There is nothing to finish without the lead.
            Stage::Draining { .. } | Stage::Recording { .. } => {
                self.link.turn_off(out);
                self.end(Ok(()), out);
            }
            Stage::Opening(_) | Stage::Standby(_) | Stage::Ended => {}
        }
    }

    fn stop(&mut self, now: Duration, out: &mut Vec<Command>) {
        match self.stage {
            Stage::Opening(_) | Stage::Standby(_) => self.end(Ok(()), out),
            Stage::Leading => {
                out.push(Command::Tell(Notice::Stopping));
                self.vitals.role(Role::Draining);
                self.streams.drain();
                self.stage = Stage::Draining {
                    by: now + self.settings.drain,
                };
            }
            Stage::Draining { .. } | Stage::Recording { .. } | Stage::Ended => {}
        }
    }

    fn end(&mut self, ended: Result<(), Failure>, out: &mut Vec<Command>) {
        self.stage = Stage::Ended;
        out.push(Command::End(ended));
    }
}

impl Attempt {
    /// The next attempt, if it is due.
    fn due(&mut self, now: Duration, ids: &mut Ids) -> Option<RequestId> {
        match self {
            Self::Waiting(until) if *until <= now => {
                let request = ids.request();
                *self = Self::Asked(request);
                Some(request)
            }
            Self::Waiting(_) | Self::Asked(_) => None,
        }
    }

    fn is(&self, request: RequestId) -> bool {
        matches!(self, Self::Asked(asked) if *asked == request)
    }
}

#[cfg(test)]
mod tests;
