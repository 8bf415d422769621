//! The bridge's questions to the authority, and what the model of the authority answers.

use std::collections::BTreeMap;
use std::time::Duration;

use rand::Rng as _;
use spacetime_sync_lane::{
    Event, Failure, LinkId, Looked, Page, ReadyFrame, Record, Recorded, RequestId, Sealing, Standing, is_doubtful,
    judge, prepare_looked,
};
use spacetime_sync_proto::epoch::AuthorityEpoch;
use spacetime_sync_proto::journal::JournalEntry;
use spacetime_sync_proto::refusal::RefusalClass;
use spacetime_sync_proto::retention::RetentionClass;
use spacetime_sync_proto::{ChainHash, Position, Seq, StreamId, StreamProgress};

use crate::agenda::Micros;
use crate::fault::Fault;
use crate::seal::SimSealer;
use crate::world::{World, say};

/// A question to the authority.
#[derive(Debug)]
pub(crate) enum Question {
    Open(RequestId),
    Lead(RequestId),
    Listen(RequestId),
    Sleep(RequestId, bool),
    Look {
        request: RequestId,
        after: Option<StreamId>,
        limit: usize,
        read: Vec<(StreamId, Position)>,
        asked: Micros,
    },
    List {
        request: RequestId,
        after: Option<StreamId>,
        limit: usize,
    },
    Standings(RequestId, Vec<(StreamId, Seq)>),
    /// A page, which begins with the question for the chain hash before it, if `base` does not give it.
    Base {
        link: LinkId,
        stream: usize,
        after: Seq,
        base: Option<ChainHash>,
    },
    Events {
        link: LinkId,
        stream: usize,
        after: Seq,
        base: Option<ChainHash>,
    },
    Record(RequestId, Vec<Record>),
    RecordExactly(RequestId, Vec<Record>),
    Policy(RequestId),
    Epoch(RequestId),
    Beat(RequestId),
    BeginJournal(RequestId),
    FetchJournal(RequestId, u64),
    KeepJournal {
        request: RequestId,
        turn: u64,
        entries: Vec<JournalEntry>,
        to: u64,
    },
    ForgetJournal(RequestId, u64),
}

impl World {
    /// Answers for the authority, which may be away.
    pub(super) fn authority_hears(&mut self, at: usize, question: Question) {
        let event = if self.authority_is_away() {
            self.away(question)
        } else {
            match self.answer(at, question) {
                Some(event) => event,
                None => return,
            }
        };
        self.reply(at, event);
    }

    fn away(&self, question: Question) -> Event {
        let away = Failure {
            class: RefusalClass::Retry,
            refusal: None,
            text: "the authority is away".to_owned(),
        };
        match question {
            Question::Open(request) => Event::Opened(request, Err(away)),
            Question::Lead(request) => Event::Lead(request, Err(away)),
            Question::Listen(request) => Event::Listening(request, Err(away)),
            Question::Sleep(request, _) => Event::SleepingSet(request, Err(away)),
            Question::Look { request, asked, .. } => Event::Looked {
                request,
                found: Err(away),
                took: Duration::from_micros(self.now - asked),
            },
            Question::List { request, .. } => Event::Listed(request, Err(away)),
            Question::Standings(request, _) => Event::Standings(request, Err(away)),
            Question::Base { link, stream, .. } | Question::Events { link, stream, .. } => Event::Page {
                link,
                stream_id: self.logs[stream].id.clone(),
                page: Err(away),
            },
            Question::Record(request, _) | Question::RecordExactly(request, _) => Event::Recorded(request, Err(away)),
            Question::Policy(request) => Event::Policy(request, Err(away)),
            Question::Epoch(request) => Event::Epoch(request, Err(away)),
            Question::Beat(request) => Event::BeatAdvanced(request, Err(away)),
            Question::BeginJournal(request) => Event::JournalBegun(request, Err(away)),
            Question::FetchJournal(request, _) => Event::JournalFetched(request, Err(away)),
            Question::KeepJournal { request, .. } => Event::JournalKept(request, Err(away)),
            Question::ForgetJournal(request, _) => Event::JournalForgotten(request, Err(away)),
        }
    }

    fn answer(&mut self, at: usize, question: Question) -> Option<Event> {
        Some(match question {
            Question::Open(request) => Event::Opened(request, Ok(())),
            Question::Lead(request) => {
                let life = self.bridges[at].life;
                let free = self.lead.is_none();
                if free {
                    self.lead = Some((at, life));
                }
                Event::Lead(request, Ok(free))
            }
            Question::Listen(request) => Event::Listening(request, Ok(())),
            Question::Sleep(request, sleeping) => {
                self.writers_wake = sleeping;
                Event::SleepingSet(request, Ok(()))
            }
            Question::Look {
                request,
                after,
                limit,
                read,
                asked,
            } => {
                let dirty = self.logs.iter().filter(|log| log.published < log.head());
                let progress: Vec<_> = dirty
                    .map(|log| log.position())
                    .filter(|progress| after.as_ref().is_none_or(|after| progress.stream_id > *after))
                    .take(limit)
                    .collect();
                let frames = self.looked_frames(&progress, &read);
                Event::Looked {
                    request,
                    found: Ok(Looked { progress, frames }),
                    took: Duration::from_micros(self.now - asked),
                }
            }
            Question::List { request, after, limit } => {
                let held = self.logs.iter().filter(|log| log.head() > Seq::ZERO);
                let ids = held
                    .map(|log| log.id.clone())
                    .filter(|stream_id| after.as_ref().is_none_or(|after| stream_id > after))
                    .take(limit)
                    .collect();
                Event::Listed(request, Ok(ids))
            }
            Question::Standings(request, streams) => {
                let standings = streams.iter().map(|(stream_id, seq)| self.standing(stream_id, *seq));
                let standings = standings.collect::<Vec<_>>();
                Event::Standings(request, Ok(standings))
            }
            Question::Base {
                link,
                stream,
                after,
                base,
            } => match base.map_or_else(|| self.log_chain_at(stream, after), |base| Ok(Some(base))) {
                Ok(base) => {
                    let events = Question::Events {
                        link,
                        stream,
                        after,
                        base,
                    };
                    self.ask(at, events);
                    return None;
                }
                Err(text) => self.corrupt_page(link, stream, text),
            },
            Question::Events {
                link,
                stream,
                after,
                base,
            } => self.log_page(link, stream, after, base),
            Question::Record(request, records) => Event::Recorded(request, Ok(self.record(records, false))),
            Question::RecordExactly(request, records) => Event::Recorded(request, Ok(self.record(records, true))),
            Question::Policy(request) => {
                let class = |window_events| RetentionClass {
                    class: "all".to_owned(),
                    stream_prefix: String::new(),
                    window_events,
                    window_age_us: i64::MAX,
                    durable_reads: true,
                };
                Event::Policy(request, Ok(self.setup.window().map(class).into_iter().collect()))
            }
            Question::Epoch(request) => {
                let epoch = self.kept.epoch();
                Event::Epoch(request, Ok(AuthorityEpoch { epoch, beat: 1 }))
            }
            Question::Beat(request) => Event::BeatAdvanced(request, Ok(())),
            Question::BeginJournal(request) => Event::JournalBegun(request, Ok(self.kept.begin())),
            Question::FetchJournal(request, after) => Event::JournalFetched(request, Ok(self.kept.page(after))),
            Question::KeepJournal {
                request,
                turn,
                entries,
                to,
            } => Event::JournalKept(request, self.keep(turn, &entries, to)),
            Question::ForgetJournal(request, turn) => Event::JournalForgotten(request, self.forget(turn)),
        })
    }

    /// Wakes the bridges after a commit. Each of them may miss it.
    pub(crate) fn wake_bridges(&mut self) {
        for at in 0..self.bridges.len() {
            if self.bridges[at].running && self.dice.work.random_bool(0.8) {
                self.coverage.seen("bridge: woken");
                self.reply(at, Event::Woken);
            }
        }
    }

    fn standing(&mut self, stream_id: &StreamId, seq: Seq) -> Result<Standing, String> {
        let stream = self.stream_at(stream_id);
        let progress: StreamProgress = self.logs[stream].position();
        self.coverage.seen(match seq.cmp(&progress.published_seq) {
            std::cmp::Ordering::Less => "bridge: asked below what is published",
            std::cmp::Ordering::Equal => "bridge: heads in step",
            std::cmp::Ordering::Greater => "bridge: heads ahead",
        });
        let chain = self.log_chain_at(stream, seq)?;
        Ok(Standing { progress, chain })
    }

    fn log_chain_at(&self, stream: usize, seq: Seq) -> Result<Option<ChainHash>, String> {
        let log = &self.logs[stream];
        if log.corrupt == Some(seq) {
            return Err(format!("{} holds a malformed chain hash at seq {seq}", log.id));
        }
        Ok(log.kept_chain_at(seq))
    }

    fn corrupt_page(&self, link: LinkId, stream: usize, text: String) -> Event {
        Event::Page {
            link,
            stream_id: self.logs[stream].id.clone(),
            page: Err(Failure {
                class: RefusalClass::Reject,
                refusal: None,
                text,
            }),
        }
    }

    /// The frames of the next events of dirty streams.
    fn looked_frames(
        &mut self,
        dirty: &[StreamProgress],
        read: &[(StreamId, Position)],
    ) -> BTreeMap<StreamId, Vec<ReadyFrame>> {
        let limits = self.setup.page;
        let mut events = BTreeMap::new();
        for (stream_id, at) in read {
            let log = &self.logs[self.stream_at(stream_id)];
            let next = log.read(at.seq, limits.events, limits.bytes);
            let is_readable = log.corrupt.is_none_or(|bad| next.iter().all(|event| event.seq != bad));
            let is_dirty = dirty.iter().any(|progress| progress.stream_id == *stream_id);
            if is_dirty && is_readable && !next.is_empty() {
                self.coverage.seen("bridge: events came with a look");
                events.insert(stream_id.clone(), next);
            }
        }
        prepare_looked(read, &events, limits.frame_bytes, &SimSealer)
    }

    fn log_page(&mut self, link: LinkId, stream: usize, after: Seq, base: Option<ChainHash>) -> Event {
        let limits = self.setup.page;
        let log = &self.logs[stream];
        let events = log.read(after, limits.events, limits.bytes);
        if let Some(bad) = log.corrupt.filter(|bad| events.iter().any(|event| event.seq == *bad)) {
            return self.corrupt_page(link, stream, format!("the chain hash at seq {bad} is malformed"));
        }
        let floor = is_doubtful(after, base, &events).then_some(log.floor);
        let stream_id = log.id.clone();
        let sealing = Sealing {
            stream_id: &stream_id,
            sealer: &SimSealer,
        };
        let page = judge(after, base, floor, &events, limits.frame_bytes, sealing);
        if page == Page::Purged {
            self.coverage.seen("bridge: page purged before it was read");
        }
        Event::Page {
            link,
            stream_id,
            page: Ok(page),
        }
    }

    /// Like the SQL statements: skips rows that a writer has locked, and moves nothing above a head.
    fn record(&mut self, records: Vec<Record>, exactly: bool) -> Recorded {
        let mut recorded = Recorded::default();
        for Record { stream_id, published } in records {
            let stream = self.stream_at(&stream_id);
            let now = self.now;
            let log = &mut self.logs[stream];
            let moves = published > log.published || exactly && published != log.published;
            if !moves {
                continue;
            }
            if log.locked_until > now {
                recorded.locked.push(stream_id);
                self.coverage.struck(Fault::RowLocked);
            } else if published > log.head() {
                recorded.above_head.push(stream_id);
            } else {
                log.published = published;
                say!(self, "authority: stream {stream} is published up to {published}");
            }
        }
        recorded
    }
}
