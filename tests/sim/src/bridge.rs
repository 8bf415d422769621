//! A bridge: the shipped [`Lane`], and an adapter that carries out its commands in this world. Every question and every
//! answer is a step of its own, so that anything can happen between them.

mod questions;

use std::collections::BTreeMap;
use std::time::Duration;

use rand::Rng as _;
use spacetime_sync_lane::{
    Answer, Command, Event, Failure, HeadSeal, Lane, LinkId, Notice, Reached, RequestId, Sealing, Settings,
    check_frames, check_seal,
};
use spacetime_sync_proto::refusal::RefusalClass;
use spacetime_sync_proto::{Position, Refusal};

use crate::agenda::{MILLISECOND, Micros, SECOND};
use crate::fault::Fault;
use crate::host::{JournalAnswer, JournalCall, frame_of};
use crate::net::{ConnId, FromHost, Party, ToHost};
use crate::seal::SimSealer;
use crate::world::{Step, World, say};

pub(crate) use questions::Question;

/// How late a bridge may hear of the end of a connection that it gave up.
const LATE_END: Micros = 60 * SECOND;

#[derive(Debug)]
pub(crate) enum BridgeStep {
    /// The lane's timer.
    Due,
    /// A question reaches the authority.
    Asked(Question),
    /// The lane hears of an event.
    Happens(Event),
    LeadLost,
    Stop,
}

/// The subject of a question on a link. The host's model knows heads and rewinds; any other question asks it for the
/// heads of no streams.
#[derive(Debug, Clone, Copy)]
enum Asked {
    Heads,
    /// The last frame of a stream, which ended here.
    Tail(usize, Position),
    /// The frames of a stream after a position.
    Frames(usize, Reached),
    Rewind,
    Retention,
    Epoch,
}

#[derive(Debug)]
pub(crate) struct Bridge {
    pub(crate) life: u32,
    pub(crate) running: bool,
    pub(crate) lane: Lane,
    pub(crate) paused_until: Micros,
    settings: Settings,
    started: Micros,
    /// All connections of this life, including those that the bridge gave up: the lane must ignore what they still say.
    conns: BTreeMap<LinkId, Conn>,
    asked: BTreeMap<RequestId, Asked>,
    /// When the timer goes off.
    timer: Option<Micros>,
    commands: Vec<Command>,
}

#[derive(Debug, Clone, Copy)]
struct Conn {
    id: ConnId,
    let_in: bool,
    /// Whether the bridge has not given it up.
    wanted: bool,
}

impl Bridge {
    pub(crate) fn new(settings: Settings) -> Self {
        Self {
            life: 0,
            running: false,
            lane: Lane::new(settings.clone(), 0),
            paused_until: 0,
            settings,
            started: 0,
            conns: BTreeMap::new(),
            asked: BTreeMap::new(),
            timer: None,
            commands: Vec::new(),
        }
    }

    /// The connection that the bridge has or is making.
    pub(crate) fn conn(&self) -> Option<ConnId> {
        let mut conns = self.conns.values().rev();
        conns.find(|conn| conn.wanted).map(|conn| conn.id)
    }

    fn link(&self, conn: ConnId) -> Option<LinkId> {
        let mut conns = self.conns.iter();
        conns.find(|(_, of)| of.id == conn).map(|(link, _)| *link)
    }

    /// Starts a process that knows nothing.
    fn begin(&mut self, now: Micros, seed: u64) {
        *self = Self {
            life: self.life,
            running: true,
            paused_until: self.paused_until,
            started: now,
            lane: Lane::new(self.settings.clone(), seed),
            ..Self::new(self.settings.clone())
        };
    }
}

impl World {
    pub(crate) fn bridge_in(&mut self, at: usize, after: Micros, step: BridgeStep) {
        let life = self.bridges[at].life;
        self.agenda.push(self.now + after, Step::Bridge { at, life, step });
    }

    /// A call of the authority, there or back.
    pub(crate) fn hop(&mut self) -> Micros {
        self.dice.work.random_range(20..2 * MILLISECOND)
    }

    pub(crate) fn authority_is_away(&self) -> bool {
        self.now < self.authority_away_until
    }

    pub(crate) fn bridge_starts(&mut self, at: usize) {
        if self.bridges[at].running {
            return;
        }
        let (now, seed) = (self.now, self.dice.work.random());
        self.bridges[at].begin(now, seed);
        say!(self, "bridge {at}: starts");
        self.bridge_turns(at);
    }

    /// Ends the process. Returns whether one was running.
    pub(crate) fn bridge_dies(&mut self, at: usize, back_after: Micros) -> bool {
        if !self.bridges[at].running {
            return false;
        }
        say!(self, "bridge {at}: dies");
        let conns: Vec<_> = self.bridges[at].conns.values().map(|conn| conn.id).collect();
        conns.into_iter().for_each(|conn| self.hang_up(conn));
        let life = self.bridges[at].life;
        if self.lead == Some((at, life)) {
            self.lead = None;
        }
        self.bridges[at].life += 1;
        self.bridges[at].running = false;
        self.agenda.push(self.now + back_after, Step::BridgeStarts { at });
        true
    }

    pub(crate) fn bridge_is_told_to_stop(&mut self, at: usize) -> bool {
        let running = self.bridges[at].running;
        if running {
            self.bridge_in(at, 0, BridgeStep::Stop);
        }
        running
    }

    pub(crate) fn bridge_takes(&mut self, at: usize, step: BridgeStep) {
        match step {
            BridgeStep::Due => {
                let timer = &mut self.bridges[at].timer;
                // Otherwise the lane has set another time since. A process that stood still is late.
                if timer.is_some_and(|timer| timer <= self.now) {
                    *timer = None;
                    self.bridge_turns(at);
                }
            }
            BridgeStep::Asked(question) => self.authority_hears(at, question),
            BridgeStep::Happens(event) => self.bridge_feeds(at, event),
            BridgeStep::LeadLost => {
                say!(self, "bridge {at}: has lost the lead");
                self.bridge_feeds(at, Event::LeadLost);
            }
            BridgeStep::Stop => self.bridge_feeds(at, Event::Stop),
        }
    }

    fn bridge_feeds(&mut self, at: usize, event: Event) {
        let bridge = &mut self.bridges[at];
        let now = Duration::from_micros(self.now - bridge.started);
        bridge.lane.step(now, event, &mut bridge.commands);
        self.bridge_turns(at);
    }

    /// Like a turn of the runner: lets the lane do what is due, carries out its commands and sets the timer.
    fn bridge_turns(&mut self, at: usize) {
        let bridge = &mut self.bridges[at];
        let now = Duration::from_micros(self.now - bridge.started);
        bridge.lane.turn(now, &mut bridge.commands);
        let commands = std::mem::take(&mut bridge.commands);
        let life = bridge.life;
        for command in commands {
            self.bridge_does(at, command);
            if self.bridges[at].life != life {
                return;
            }
        }
        let bridge = &mut self.bridges[at];
        let due = bridge.started + bridge.lane.next_due().as_nanos().div_ceil(1_000) as Micros;
        let due = due.max(self.now);
        if bridge.timer.is_none_or(|timer| due < timer) {
            bridge.timer = Some(due);
            self.bridge_in(at, due - self.now, BridgeStep::Due);
        }
    }

    fn ask(&mut self, at: usize, question: Question) {
        let hop = self.hop();
        self.bridge_in(at, hop, BridgeStep::Asked(question));
    }

    fn reply(&mut self, at: usize, event: Event) {
        let hop = self.hop();
        self.bridge_in(at, hop, BridgeStep::Happens(event));
    }

    fn send(&mut self, at: usize, link: LinkId, message: ToHost) {
        if let Some(conn) = self.bridges[at].conns.get(&link).filter(|conn| conn.wanted) {
            self.send_up(conn.id, message);
        }
    }

    fn bridge_does(&mut self, at: usize, command: Command) {
        match command {
            Command::OpenAuthority(request) => self.ask(at, Question::Open(request)),
            Command::AskForLead(request) => self.ask(at, Question::Lead(request)),
            Command::BeginLead => self.coverage.seen("bridge: lead taken"),
            Command::EndLead => self.bridges[at].asked.clear(),
            Command::Listen(request) => self.ask(at, Question::Listen(request)),
            Command::SetSleeping(request, sleeping) => self.ask(at, Question::Sleep(request, sleeping)),
            Command::Look {
                request,
                after,
                limit,
                read,
            } => {
                let asked = self.now;
                let look = Question::Look {
                    request,
                    after,
                    limit,
                    read,
                    asked,
                };
                self.ask(at, look);
            }
            Command::ListStreams { request, after, limit } => self.ask(at, Question::List { request, after, limit }),
            Command::ReadStandings(request, streams) => self.ask(at, Question::Standings(request, streams)),
            Command::ReadPage {
                link,
                stream_id,
                after,
                base_chain: base,
            } => {
                let stream = self.stream_at(&stream_id);
                let page = Question::Base {
                    link,
                    stream,
                    after,
                    base,
                };
                self.ask(at, page);
            }
            Command::Record(request, records) => self.ask(at, Question::Record(request, records)),
            Command::RecordExactly(request, records) => self.ask(at, Question::RecordExactly(request, records)),
            Command::ReadPolicy(request) => self.ask(at, Question::Policy(request)),
            Command::ReadEpoch(request) => self.ask(at, Question::Epoch(request)),
            Command::AdvanceBeat(request) => self.ask(at, Question::Beat(request)),
            Command::Dial(link) => {
                let conn = Conn {
                    id: self.dial(Party::Bridge(at)),
                    let_in: false,
                    wanted: true,
                };
                self.bridges[at].conns.insert(link, conn);
            }
            Command::HangUp(link) => {
                let Some(conn) = self.bridges[at].conns.get_mut(&link) else {
                    return;
                };
                conn.wanted = false;
                let conn = conn.id;
                self.hang_up(conn);
                // As if a task still held it: the lane hears of its end late, perhaps when the next link is up.
                let late = self.dice.net.random_range(0..LATE_END);
                let ended = Event::LinkClosed(link, "given up".to_owned());
                self.bridge_in(at, late, BridgeStep::Happens(ended));
            }
            Command::Relinked | Command::Strayed(_) => {}
            Command::Append {
                link,
                call,
                stream_id,
                frame,
            } => {
                let stream = self.stream_at(&stream_id);
                let (first, last) = (frame.row.first_seq, frame.row.last_seq);
                say!(self, "bridge {at}: sends {first}..={last} of stream {stream}");
                self.send(at, link, ToHost::Append { call, stream, frame });
            }
            Command::ReadHeads(link, request, streams) => {
                let streams = streams.iter().map(|stream_id| self.stream_at(stream_id)).collect();
                self.bridges[at].asked.insert(request, Asked::Heads);
                self.send(at, link, ToHost::Heads { ask: request, streams });
            }
            Command::CheckSeal {
                link,
                request,
                stream_id,
                head,
            } => {
                let stream = self.stream_at(&stream_id);
                self.bridges[at].asked.insert(request, Asked::Tail(stream, head));
                self.send(at, link, ToHost::Tail { ask: request, stream });
            }
            Command::CheckFrames {
                link,
                request,
                stream_id,
                after,
            } => {
                let stream = self.stream_at(&stream_id);
                self.bridges[at].asked.insert(request, Asked::Frames(stream, after));
                let ask = ToHost::Frames {
                    ask: request,
                    stream,
                    after: after.seq,
                };
                self.send(at, link, ask);
            }
            Command::Rewind {
                link,
                request,
                stream_id,
                seen,
                to: target,
            } => {
                let stream = self.stream_at(&stream_id);
                self.bridges[at].asked.insert(request, Asked::Rewind);
                let rewind = ToHost::Rewind {
                    ask: request,
                    stream,
                    seen,
                    target,
                };
                self.rewind_is_overtaken(at, link);
                self.send(at, link, rewind);
            }
            Command::SetRetention(link, request, _) => self.ask_nothing(at, link, request, Asked::Retention),
            Command::MarkEpoch(link, request, _) => self.ask_nothing(at, link, request, Asked::Epoch),
            Command::ReadJournal(link, ask) => self.journal(at, link, ask, JournalCall::Read),
            Command::SettleJournal(link, ask, to) => self.journal(at, link, ask, JournalCall::Settle(to)),
            Command::CloseJournal(link, ask, settled) => self.journal(at, link, ask, JournalCall::Close(settled)),
            Command::BringBack(link, ask, entries) => self.journal(at, link, ask, JournalCall::BringBack(entries)),
            Command::OpenJournal {
                link,
                request,
                epoch,
                newest,
            } => self.journal(at, link, request, JournalCall::Open { epoch, newest }),
            Command::BeginJournal(request) => self.ask(at, Question::BeginJournal(request)),
            Command::FetchJournal(request, after) => self.ask(at, Question::FetchJournal(request, after)),
            Command::KeepJournal {
                request,
                turn,
                entries,
                to,
            } => {
                let page = Question::KeepJournal {
                    request,
                    turn,
                    entries,
                    to,
                };
                self.ask(at, page);
            }
            Command::ForgetJournal(request, turn) => self.ask(at, Question::ForgetJournal(request, turn)),
            Command::Tell(notice) => self.bridge_says(at, &notice),
            Command::End(ended) => {
                if let Err(failure) = ended {
                    self.violate("I10", || format!("bridge {at} ends by itself: {}", failure.text));
                }
                self.bridge_dies(at, SECOND);
            }
        }
    }

    /// If the fault strikes, this bridge loses the lead, and what it sends from here on arrives seconds later.
    fn rewind_is_overtaken(&mut self, at: usize, link: LinkId) {
        let Some(conn) = self.bridges[at].conns.get(&link).map(|conn| conn.id) else {
            return;
        };
        let mut others = (0..self.bridges.len()).filter(|other| *other != at);
        if others.any(|other| self.bridges[other].running) && self.strikes(Fault::RewindOvertaken, None, None) {
            if self.lead == Some((at, self.bridges[at].life)) {
                self.lose_lead();
            }
            let late = self.dice.net.random_range(2 * SECOND..6 * SECOND);
            self.delay(conn, late);
        }
    }

    fn ask_nothing(&mut self, at: usize, link: LinkId, request: RequestId, what: Asked) {
        self.bridges[at].asked.insert(request, what);
        let nothing = ToHost::Heads {
            ask: request,
            streams: Vec::new(),
        };
        self.send(at, link, nothing);
    }

    fn journal(&mut self, at: usize, link: LinkId, ask: RequestId, call: JournalCall) {
        self.send(at, link, ToHost::Journal { ask, call });
    }

    fn bridge_says(&mut self, at: usize, notice: &Notice) {
        say!(self, "bridge {at}: {notice}");
        match notice {
            Notice::LinkUp => {
                self.coverage.seen("bridge: link up");
                if self.host.work.pass.is_some() {
                    self.coverage.seen("journal: pass under way at link up");
                }
            }
            Notice::LinkDown { why, .. } if why.contains("did not answer a call") => {
                self.coverage.seen("bridge: ack deadline");
            }
            Notice::LinkDown { why, .. } if why.contains("did not answer a question") => {
                self.coverage.seen("bridge: question deadline");
            }
            Notice::SetBack { .. } => self.coverage.seen("bridge: heads behind"),
            Notice::Forged { stream_id, to, .. } => {
                self.coverage.seen("bridge: forgery removed");
                let stream = self.stream_at(stream_id);
                if self.excuses[stream].foreign.is_empty() {
                    self.violate("I13", || {
                        format!("bridge {at}: takes the authority's own events of stream {stream} for a forgery")
                    });
                }
                // Another bridge may have published before it, and go with it.
                let after = self.excuses[stream].foreign_after(*to);
                self.set_back(stream, after);
            }
            Notice::WindowBegun { .. } => self.coverage.seen("bridge: window refilled"),
            Notice::Halted { .. } => self.coverage.seen("bridge: stream halted"),
            Notice::AllCompared { .. } => self.coverage.seen("bridge: all streams compared"),
            Notice::JournalClosed => self.coverage.seen("bridge: journal closed"),
            Notice::JournalOpened { brought_back: 1.. } => self.coverage.seen("bridge: assignments brought back"),
            Notice::StandingBy => self.coverage.seen("bridge: stands by"),
            _ => {}
        }
    }

    pub(crate) fn bridge_hears(&mut self, at: usize, conn: ConnId, message: FromHost) {
        let bridge = &self.bridges[at];
        let (true, Some(link)) = (bridge.running, bridge.link(conn)) else {
            return;
        };
        if matches!(message, FromHost::Welcome) && self.strikes(Fault::BridgeSilentOnceUp, Some(at), None) {
            self.silence(Some(conn));
        }
        let bridge = &mut self.bridges[at];
        let event = match message {
            FromHost::Welcome => {
                if let Some(conn) = bridge.conns.get_mut(&link) {
                    conn.let_in = true;
                }
                Event::Dialed(link, Ok(()))
            }
            FromHost::Acked(call) => Event::Answered(link, call, Answer::Acked),
            FromHost::Refused(call, refusal) => Event::Answered(link, call, Answer::Refused(refusal)),
            FromHost::Lost(call) => Event::Answered(link, call, Answer::Lost("injected".to_owned())),
            FromHost::Heads { ask, heads } => match bridge.asked.remove(&ask) {
                Some(Asked::Heads) => Event::Heads(link, ask, Ok(heads)),
                Some(Asked::Retention) => Event::RetentionSet(link, ask, Ok(())),
                Some(Asked::Epoch) => Event::EpochMarked(link, ask, Ok(Ok(()))),
                Some(Asked::Rewind | Asked::Tail(..) | Asked::Frames(..)) | None => return,
            },
            FromHost::Tail { ask, head: now, frame } => {
                let Some(Asked::Tail(stream, head)) = bridge.asked.remove(&ask) else {
                    return;
                };
                let sealing = Sealing {
                    stream_id: &self.logs[stream].id,
                    sealer: &SimSealer,
                };
                let (is_there, read) = (frame.is_some(), frame.and_then(|stored| frame_of(&stored)));
                let sealed = match check_seal(&head, &now, read.as_slice(), sealing) {
                    HeadSeal::Unknown if is_there && read.is_none() => HeadSeal::Missing,
                    sealed => sealed,
                };
                Event::SealChecked(link, ask, Ok(sealed))
            }
            FromHost::Frames {
                ask,
                oldest,
                head,
                frames,
            } => {
                let Some(Asked::Frames(stream, after)) = bridge.asked.remove(&ask) else {
                    return;
                };
                let sealing = Sealing {
                    stream_id: &self.logs[stream].id,
                    sealer: &SimSealer,
                };
                let frames = frames.iter().map_while(frame_of).collect();
                let checked = check_frames(after, oldest, &head, frames, sealing);
                Event::FramesChecked(link, ask, Ok(checked))
            }
            FromHost::Journal {
                ask,
                answer: JournalAnswer::Page(page),
            } => Event::Journal(link, ask, Ok(page)),
            FromHost::Journal {
                ask,
                answer: JournalAnswer::Told(told),
            } => Event::JournalTold(link, ask, told.map_err(refused)),
            FromHost::Rewound { ask, answer } => Event::Rewound(link, ask, answer.map_err(refused)),
            FromHost::Page { .. }
            | FromHost::Row { .. }
            | FromHost::Subscribed { .. }
            | FromHost::SubscriptionFailed { .. }
            | FromHost::Unsubscribed { .. }
            | FromHost::CheckpointTaken { .. }
            | FromHost::GrantCame
            | FromHost::GrantLost { .. } => return,
        };
        self.bridge_feeds(at, event);
    }

    pub(crate) fn bridge_conn_broken(&mut self, at: usize, conn: ConnId) {
        let bridge = &self.bridges[at];
        if bridge.paused_until > self.now {
            let until = bridge.paused_until;
            return self.agenda.push(until, Step::Broken { conn });
        }
        let (true, Some(link)) = (bridge.running, bridge.link(conn)) else {
            return;
        };
        let why = "the connection broke".to_owned();
        let event = if bridge.conns[&link].let_in {
            Event::LinkClosed(link, why)
        } else {
            let failure = Failure {
                class: RefusalClass::Retry,
                refusal: None,
                text: why,
            };
            Event::Dialed(link, Err(failure))
        };
        self.bridge_feeds(at, event);
    }
}

fn refused(refusal: Refusal) -> Failure {
    Failure {
        class: refusal.code.class(),
        text: refusal.to_string(),
        refusal: Some(refusal),
    }
}
