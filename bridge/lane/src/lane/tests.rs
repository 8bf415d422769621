mod carry;
mod compare;
mod link;
mod refill;
mod stage;

use std::collections::BTreeMap;

use bytes::Bytes;
use spacetime_sync_proto::epoch::AuthorityEpoch;
use spacetime_sync_proto::journal::{JournalPage, JournalTurn};
use spacetime_sync_proto::{ChainHash, FrameRow, Position, Refusal, RefusalCode, Seq, StreamProgress};

use super::*;
use crate::health::Role;
use crate::message::{Answer, Checked, Failure, Looked, Reached, Standing};
use crate::streams::ReadyFrame;
use crate::{CallId, LinkId, RequestId};

fn settings() -> Settings {
    Settings {
        compare_every: Duration::from_secs(300),
        limits: Limits {
            reads: 4,
            calls: 64,
            bytes: 1 << 20,
            idle_streams: 1_000_000,
            attempts: 8,
        },
        lead: true,
        stall_after: Duration::from_secs(10),
        drain: Duration::from_secs(10),
        connect_deadline: Duration::from_secs(5),
        ack_deadline: Duration::from_secs(6),
        idle_poll: Duration::from_millis(250),
        dirty_streams: 1_000,
        compared_streams: 1_000,
        applies_windows: false,
        policy_every: Duration::from_secs(60),
        beat_every: Duration::from_secs(10),
    }
}

fn stream(name: &str) -> StreamId {
    StreamId::new(name).unwrap()
}

fn seq(value: u64) -> Seq {
    Seq::new(value).unwrap()
}

/// All streams have the same chain: a chain hash is 32 times the seq.
fn position(value: u64) -> Position {
    Position {
        seq: seq(value),
        chain: ChainHash::from_bytes([value as u8; 32]),
    }
}

fn progress(name: &str, published: u64, head: u64) -> StreamProgress {
    StreamProgress {
        stream_id: stream(name),
        head_seq: seq(head),
        published_seq: seq(published),
        floor_seq: Seq::ZERO,
    }
}

/// What a look finds that brings no events.
fn found(progress: Vec<StreamProgress>) -> Looked {
    let frames = BTreeMap::new();
    Looked { progress, frames }
}

fn failure(class: RefusalClass) -> Failure {
    Failure {
        class,
        refusal: None,
        text: "no".to_owned(),
    }
}

/// A journal that is in step and rests.
fn journal() -> JournalPage {
    JournalPage {
        is_open: true,
        epoch: "one".to_owned(),
        settled: 0,
        whole_at: 0,
        newest: 0,
        waiting: 0,
        oldest: Duration::ZERO,
        to: 0,
        entries: Vec::new(),
    }
}

/// The head of a stream in SpacetimeDB, and its published seq and head in the authority.
#[derive(Clone, Copy)]
struct Held {
    held: u64,
    published: u64,
    head: u64,
}

/// A lane whose commands are all answered at once, except those that a test answers itself.
struct Bench {
    lane: Lane,
    now: Duration,
    commands: Vec<Command>,
    held: fn(&StreamId) -> Held,
    streams: Vec<StreamId>,
    dirty: Vec<StreamProgress>,
}

impl Bench {
    fn new(streams: Vec<StreamId>, held: fn(&StreamId) -> Held) -> Self {
        Self {
            lane: Lane::new(settings(), 1),
            now: Duration::ZERO,
            commands: Vec::new(),
            held,
            streams,
            dirty: Vec::new(),
        }
    }

    fn feed(&mut self, event: Event) {
        self.lane.step(self.now, event, &mut self.commands);
        self.lane.turn(self.now, &mut self.commands);
    }

    /// Lets time pass until something is due.
    fn wait(&mut self) {
        self.now = self.now.max(self.lane.next_due());
        self.lane.turn(self.now, &mut self.commands);
    }

    fn standing(&self, stream_id: &StreamId, at: Seq) -> Standing {
        let Held { published, head, .. } = (self.held)(stream_id);
        Standing {
            progress: progress(stream_id.as_str(), published, head),
            chain: (at.get() <= head).then(|| position(at.get()).chain),
        }
    }

    /// Answers a command in the obvious way. Returns a command that only a test can answer.
    fn answer(&mut self, command: Command) -> Option<Command> {
        let event = match command {
            Command::OpenAuthority(request) => Event::Opened(request, Ok(())),
            Command::AskForLead(request) => Event::Lead(request, Ok(true)),
            Command::Listen(request) => Event::Listening(request, Ok(())),
            Command::SetSleeping(request, _) => Event::SleepingSet(request, Ok(())),
            Command::Look { request, .. } => Event::Looked {
                request,
                found: Ok(found(self.dirty.clone())),
                took: Duration::from_millis(1),
            },
            Command::ListStreams { request, after, limit } => {
                let from = after.map_or(0, |after| self.streams.partition_point(|stream_id| *stream_id <= after));
                let page = self.streams[from..].iter().take(limit).cloned().collect();
                Event::Listed(request, Ok(page))
            }
            Command::ReadStandings(request, at) => {
                let all = at.iter().map(|(stream_id, at)| Ok(self.standing(stream_id, *at)));
                Event::Standings(request, Ok(all.collect()))
            }
            Command::ReadHeads(link, request, streams) => {
                let heads = streams.iter().map(|stream_id| position((self.held)(stream_id).held));
                Event::Heads(link, request, Ok(heads.collect()))
            }
            Command::CheckFrames { link, request, .. } => {
                let after = Reached {
                    seq: Seq::ZERO,
                    chain: None,
                };
                let checked = Checked::Unsound { after };
                Event::FramesChecked(link, request, Ok(checked))
            }
            Command::CheckSeal { link, request, .. } => Event::SealChecked(link, request, Ok(crate::HeadSeal::Good)),
            Command::ReadPolicy(request) => Event::Policy(request, Ok(Vec::new())),
            Command::ReadEpoch(request) => {
                let epoch = AuthorityEpoch {
                    epoch: "one".to_owned(),
                    beat: 1,
                };
                Event::Epoch(request, Ok(epoch))
            }
            Command::AdvanceBeat(request) => Event::BeatAdvanced(request, Ok(())),
            Command::SetRetention(link, request, _) => Event::RetentionSet(link, request, Ok(())),
            Command::MarkEpoch(link, request, _) => Event::EpochMarked(link, request, Ok(Ok(()))),
            Command::ReadJournal(link, request) => Event::Journal(link, request, Ok(journal())),
            Command::BeginJournal(request) => Event::JournalBegun(
                request,
                Ok(JournalTurn {
                    turn: 1,
                    newest: 0,
                    epoch: "one".to_owned(),
                }),
            ),
            Command::SettleJournal(link, request, _)
            | Command::CloseJournal(link, request, _)
            | Command::BringBack(link, request, _)
            | Command::OpenJournal { link, request, .. } => Event::JournalTold(link, request, Ok(())),
            Command::FetchJournal(request, _) => Event::JournalFetched(request, Ok(Vec::new())),
            Command::KeepJournal { request, .. } => Event::JournalKept(request, Ok(())),
            Command::ForgetJournal(request, _) => Event::JournalForgotten(request, Ok(0)),
            Command::Dial(link) => Event::Dialed(link, Ok(())),
            Command::Record(request, _) | Command::RecordExactly(request, _) => {
                Event::Recorded(request, Ok(crate::Recorded::default()))
            }
            other @ (Command::ReadPage { .. }
            | Command::Append { .. }
            | Command::Rewind { .. }
            | Command::BeginLead
            | Command::EndLead
            | Command::HangUp(_)
            | Command::Relinked
            | Command::Strayed(_)
            | Command::Tell(_)
            | Command::End(_)) => return Some(other),
        };
        self.feed(event);
        None
    }

    /// Answers commands, and lets time pass when there are none, until `wanted` accepts a command.
    fn until<T>(&mut self, mut wanted: impl FnMut(&Command) -> Option<T>) -> T {
        for _ in 0..100_000 {
            if self.commands.is_empty() {
                self.wait();
                continue;
            }
            let command = self.commands.remove(0);
            if let Some(found) = wanted(&command) {
                return found;
            }
            self.answer(command);
        }
        panic!("the wanted command does not come")
    }

    fn link_up(&mut self) -> LinkId {
        self.until(|command| matches!(command, Command::Tell(Notice::LinkUp)).then_some(()));
        self.lane.link.up().unwrap()
    }

    /// A page of one event.
    fn page(&mut self, link: LinkId, name: &str, after: Seq) {
        let last = position(after.next().get());
        let frame = ReadyFrame {
            row: FrameRow {
                first_seq: last.seq,
                last_seq: last.seq,
                base_chain: position(after.get()).chain,
                bytes: Bytes::from_static(b"frame"),
            },
            last_chain: last.chain,
            last_at_us: 0,
        };
        let stream_id = stream(name);
        let page = Ok(Page::Frames(vec![frame]));
        self.feed(Event::Page { link, stream_id, page });
    }
}

fn reads(command: &Command) -> Option<(String, Seq)> {
    match command {
        Command::ReadPage { stream_id, after, .. } => Some((stream_id.to_string(), *after)),
        _ => None,
    }
}

fn in_step(_: &StreamId) -> Held {
    Held {
        held: 1,
        published: 1,
        head: 1,
    }
}
