//! What the bridge decides: pages cut into frames, and the whole lane, from a look to the published seq on record.

use std::collections::{BTreeMap, VecDeque};
use std::hint::black_box;
use std::time::Duration;

use bytes::Bytes;
use spacetime_sync_lane::{
    Answer, Command, Event, HeadSeal, Lane, Limits, Looked, Page, ReadyFrame, Recorded, Settings, Standing, prepare,
};
use spacetime_sync_proto::epoch::AuthorityEpoch;
use spacetime_sync_proto::journal::{JournalPage, JournalTurn};
use spacetime_sync_proto::{ChainHash, FrameRow, Position, Seq, StreamId, StreamProgress, limit};

use super::log::{events, named};
use super::{Path, Round};

/// Events of a page that the bridge reads.
const PAGE_EVENTS: usize = 400;
/// What `limits.frame_bytes` is unless somebody sets it.
const FRAME_BYTES: usize = 256 * 1024;
/// The authority's epoch.
const EPOCH: &str = "one";
/// How long a question takes.
const ANSWER: Duration = Duration::from_micros(10);

pub(super) const PREPARE_FRAME: Path = Path {
    name: "prepare-frame",
    about: "the bridge checks a page of 400 events and cuts it into frames",
    hashes: true,
    events: PAGE_EVENTS as u64,
    rounds: 4,
    open: prepare_frame,
};

pub(super) const ONE_EVENT: Path = Path {
    name: "lane-event",
    about: "the lane carries a single event: look, call, acknowledgement, its part of a record",
    hashes: false,
    events: 1,
    rounds: 400,
    open: |_| carry(1, 1),
};

pub(super) const FULL_FRAMES: Path = Path {
    name: "lane-frame",
    about: "the lane carries a full frame of 1,000 events: look, page, call, acknowledgement, its part of a record",
    hashes: false,
    // A frame costs what it costs, however many events it holds.
    events: 1,
    rounds: 400,
    open: |_| carry(1, limit::FRAME_EVENTS as u64),
};

pub(super) const MANY_STREAMS: Path = Path {
    name: "lane-streams",
    about: "the lane carries one event of each of 1,000 streams, whose published seqs the ledger records at once",
    hashes: false,
    events: 1_000,
    rounds: 8,
    open: |_| carry(1_000, 1),
};

fn prepare_frame(_: u32) -> Round {
    let log = events(PAGE_EVENTS);
    let start = Position::start(&super::log::stream_id());
    Box::new(move || {
        let frames = prepare(start.seq, start.chain, black_box(&log), FRAME_BYTES, None);
        assert!(black_box(frames).is_ok_and(|frames| frames.len() == 1));
    })
}

/// A round commits a frame's worth of events to each stream, and ends when SpacetimeDB has acknowledged all.
fn carry(streams: usize, events: u64) -> Round {
    let mut world = World::new(streams, events);
    while !world.lane.health(world.now).ready {
        world.go_on();
    }
    Box::new(move || {
        world.commit();
        world.run();
    })
}

/// The lane, and around it an authority and a SpacetimeDB that answer everything at once.
struct World {
    lane: Lane,
    now: Duration,
    commands: Vec<Command>,
    todo: VecDeque<Command>,
    /// How many events a frame holds.
    events: u64,
    /// Up to where each stream is committed, acknowledged and on record.
    streams: BTreeMap<StreamId, Stream>,
    /// How many streams have something that is not acknowledged.
    behind: usize,
}

#[derive(Default)]
struct Stream {
    head: u64,
    acked: u64,
    published: u64,
}

impl Stream {
    fn progress(&self, stream_id: &StreamId) -> StreamProgress {
        StreamProgress {
            stream_id: stream_id.clone(),
            head_seq: Seq::ZERO.plus(self.head),
            published_seq: Seq::ZERO.plus(self.published),
            floor_seq: Seq::ZERO,
        }
    }
}

impl World {
    fn new(streams: usize, events: u64) -> Self {
        let name = |nth| named(&format!("runtime.run.{nth}.events"));
        Self {
            lane: Lane::new(settings(), 1),
            now: Duration::ZERO,
            commands: Vec::new(),
            todo: VecDeque::new(),
            events,
            streams: (0..streams).map(|nth| (name(nth), Stream::default())).collect(),
            behind: 0,
        }
    }

    fn commit(&mut self) {
        for stream in self.streams.values_mut() {
            stream.head += self.events;
        }
        self.behind = self.streams.len();
    }

    /// Lets time pass until everything is acknowledged.
    fn run(&mut self) {
        while self.behind > 0 || !self.todo.is_empty() || !self.commands.is_empty() {
            self.go_on();
        }
    }

    /// Answers the next command, or lets time pass if there is none.
    fn go_on(&mut self) {
        self.todo.extend(self.commands.drain(..));
        match self.todo.pop_front() {
            None => self.now = self.now.max(self.lane.next_due()),
            Some(command) => {
                if let Some(event) = self.answer(command) {
                    self.now += ANSWER;
                    self.lane.step(self.now, event, &mut self.commands);
                }
            }
        }
        self.lane.turn(self.now, &mut self.commands);
    }

    fn answer(&mut self, command: Command) -> Option<Event> {
        Some(match command {
            Command::OpenAuthority(request) => Event::Opened(request, Ok(())),
            Command::AskForLead(request) => Event::Lead(request, Ok(true)),
            Command::Listen(request) => Event::Listening(request, Ok(())),
            Command::SetSleeping(request, _) => Event::SleepingSet(request, Ok(())),
            Command::Look {
                request, read, limit, ..
            } => Event::Looked {
                request,
                found: Ok(self.look(&read, limit)),
                took: ANSWER,
            },
            Command::ListStreams { request, after, limit } => {
                let later = |id: &&StreamId| after.as_ref().is_none_or(|after| *id > after);
                let page = self.streams.keys().filter(later).take(limit).cloned();
                Event::Listed(request, Ok(page.collect()))
            }
            Command::ReadStandings(request, asked) => {
                let standing = |(id, at): &(StreamId, Seq)| {
                    let progress = self.streams[id].progress(id);
                    let chain = (*at <= progress.head_seq).then(|| position(at.get()).chain);
                    Ok(Standing { progress, chain })
                };
                Event::Standings(request, Ok(asked.iter().map(standing).collect()))
            }
            Command::ReadHeads(link, request, ids) => {
                let heads = ids.iter().map(|id| position(self.streams[id].acked));
                Event::Heads(link, request, Ok(heads.collect()))
            }
            Command::ReadPage {
                link, stream_id, after, ..
            } => {
                let frame = self.next_frame(&stream_id, after);
                Event::Page {
                    link,
                    stream_id,
                    page: Ok(Page::Frames(frame.into_iter().collect())),
                }
            }
            Command::Append {
                link,
                call,
                stream_id,
                frame,
            } => {
                if let Some(stream) = self.streams.get_mut(&stream_id) {
                    stream.acked = black_box(frame).row.last_seq.get();
                    self.behind -= usize::from(stream.acked == stream.head);
                }
                Event::Answered(link, call, Answer::Acked)
            }
            Command::Record(request, records) | Command::RecordExactly(request, records) => {
                for record in records {
                    if let Some(stream) = self.streams.get_mut(&record.stream_id) {
                        stream.published = record.published.get();
                    }
                }
                Event::Recorded(request, Ok(Recorded::default()))
            }
            Command::CheckSeal { link, request, .. } => Event::SealChecked(link, request, Ok(HeadSeal::Good)),
            Command::ReadPolicy(request) => Event::Policy(request, Ok(Vec::new())),
            Command::ReadEpoch(request) => {
                let epoch = EPOCH.to_owned();
                Event::Epoch(request, Ok(AuthorityEpoch { epoch, beat: 1 }))
            }
            Command::AdvanceBeat(request) => Event::BeatAdvanced(request, Ok(())),
            Command::SetRetention(link, request, _) => Event::RetentionSet(link, request, Ok(())),
            Command::MarkEpoch(link, request, _) => Event::EpochMarked(link, request, Ok(Ok(()))),
            Command::ReadJournal(link, request) => Event::Journal(link, request, Ok(resting_journal())),
            Command::SettleJournal(link, request, _)
            | Command::CloseJournal(link, request, _)
            | Command::BringBack(link, request, _)
            | Command::OpenJournal { link, request, .. } => Event::JournalTold(link, request, Ok(())),
            Command::BeginJournal(request) => {
                let begun = JournalTurn {
                    turn: 1,
                    newest: 0,
                    epoch: EPOCH.to_owned(),
                };
                Event::JournalBegun(request, Ok(begun))
            }
            Command::FetchJournal(request, _) => Event::JournalFetched(request, Ok(Vec::new())),
            Command::KeepJournal { request, .. } => Event::JournalKept(request, Ok(())),
            Command::ForgetJournal(request, _) => Event::JournalForgotten(request, Ok(0)),
            Command::Dial(link) => Event::Dialed(link, Ok(())),
            Command::BeginLead | Command::Relinked | Command::Strayed(_) | Command::Tell(_) => return None,
            Command::EndLead
            | Command::HangUp(_)
            | Command::Rewind { .. }
            | Command::CheckFrames { .. }
            | Command::End(_) => {
                panic!("nothing fails here, and yet the lane orders {command:?}")
            }
        })
    }

    /// The dirty streams, and the next frame of those that the bridge has read so far.
    fn look(&self, read: &[(StreamId, Position)], limit: usize) -> Looked {
        let dirty = self.streams.iter().filter(|(_, stream)| stream.published < stream.head);
        let frames = read.iter().filter_map(|(id, at)| {
            let frame = self.next_frame(id, at.seq)?;
            (frame.size() <= LOOKED_BYTES).then(|| (id.clone(), vec![frame]))
        });
        Looked {
            progress: dirty.take(limit).map(|(id, stream)| stream.progress(id)).collect(),
            frames: frames.collect(),
        }
    }

    fn next_frame(&self, stream_id: &StreamId, after: Seq) -> Option<ReadyFrame> {
        let last = position(after.get() + self.events);
        (last.seq.get() <= self.streams[stream_id].head).then(|| ReadyFrame {
            row: FrameRow {
                first_seq: after.next(),
                last_seq: last.seq,
                base_chain: position(after.get()).chain,
                bytes: Bytes::from_static(if self.events == 1 { &SHORT } else { &FULL }),
            },
            last_chain: last.chain,
            last_at_us: 0,
        })
    }
}

/// The bytes of frames: the lane does not look into them.
static SHORT: [u8; limit::FRAME_PADDED_BYTES] = [7; limit::FRAME_PADDED_BYTES];
static FULL: [u8; FRAME_BYTES] = [7; FRAME_BYTES];
/// A look brings no frame that is longer.
const LOOKED_BYTES: usize = 64 * 1024;

/// All streams have the same chain.
fn position(seq: u64) -> Position {
    let mut chain = [0; 32];
    chain[..8].copy_from_slice(&seq.to_be_bytes());
    Position {
        seq: Seq::ZERO.plus(seq),
        chain: ChainHash::from_bytes(chain),
    }
}

/// What a bridge goes by unless somebody sets it, but nothing happens only because time passes.
fn settings() -> Settings {
    const NEVER: Duration = Duration::from_secs(1 << 30);
    Settings {
        limits: Limits {
            reads: 4,
            calls: 64,
            bytes: 8 << 20,
            idle_streams: 100_000,
            attempts: 8,
        },
        lead: true,
        stall_after: NEVER,
        drain: NEVER,
        connect_deadline: NEVER,
        ack_deadline: NEVER,
        idle_poll: Duration::from_millis(250),
        dirty_streams: 1_000,
        compared_streams: limit::HEADS,
        compare_every: NEVER,
        applies_windows: false,
        policy_every: NEVER,
        beat_every: NEVER,
    }
}

/// A journal that is in step, with nothing to keep.
fn resting_journal() -> JournalPage {
    JournalPage {
        is_open: true,
        epoch: EPOCH.to_owned(),
        settled: 0,
        whole_at: 0,
        newest: 0,
        waiting: 0,
        oldest: Duration::ZERO,
        to: 0,
        entries: Vec::new(),
    }
}
