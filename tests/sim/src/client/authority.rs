//! What a client hears from the authority, over HTTP, past SpacetimeDB: where its streams end, and their events.

use std::ops::Range;

use rand::Rng as _;
use spacetime_sync_client::session::stream::Page;
use spacetime_sync_client::session::{Answer, Event, Question, QuestionId};
use spacetime_sync_lane::{Event as LaneEvent, Report};
use spacetime_sync_proto::{Frame, FrameRow, Label, Position, Seq, StaleCursor, StaleReason};

use super::ClientStep;
use crate::bridge::BridgeStep;
use crate::world::World;

impl World {
    pub(super) fn client_asks(&mut self, at: usize, step: ClientStep) {
        let hop = self.hop();
        self.client_in(at, hop, step);
    }

    /// A bridge answers, if one runs and reaches the authority.
    fn answering_bridge(&mut self) -> Option<usize> {
        let running: Vec<usize> = (0..self.bridges.len()).filter(|at| self.bridges[*at].running).collect();
        if running.is_empty() || self.authority_is_away() {
            return None;
        }
        Some(running[self.dice.work.random_range(0..running.len())])
    }

    pub(super) fn authority_tells_heads(
        &mut self,
        at: usize,
        question: QuestionId,
        streams: Range<usize>,
        reported: Vec<usize>,
    ) {
        let answer = match self.answering_bridge() {
            None => Err("injected".to_owned()),
            Some(bridge) => {
                for stream in reported {
                    self.coverage.seen("client: reports what it saw");
                    self.bridge_hears_of(bridge, at, stream);
                }
                let has_events = |stream: &usize| self.logs[*stream].head() > Seq::ZERO;
                Ok(streams
                    .filter(has_events)
                    .map(|stream| (stream, self.logs[stream].published))
                    .collect())
            }
        };
        self.tell_client(at, Event::Heads { question, answer });
    }

    /// A client reports a stream to a bridge.
    pub(crate) fn bridge_hears_of(&mut self, bridge: usize, client: usize, stream: usize) {
        let report = Report {
            stream_id: self.logs[stream].id.clone(),
            session_id: Label::new(&format!("client-{client}")).expect("a name"),
        };
        self.bridge_in(bridge, 0, BridgeStep::Happens(LaneEvent::Reported(report)));
    }

    pub(super) fn authority_answers(&mut self, at: usize, question: QuestionId, stream: usize, about: Question) {
        let failed = || Answer::Failed {
            message: "injected".to_owned(),
            retry_after: None,
        };
        let answer = match (self.answering_bridge(), about) {
            (Some(_), Question::Events(after)) if !self.is_poisoned(stream) => self.history(at, stream, after),
            (Some(_), Question::Document) => Answer::Document(None),
            // The streams of these runs carry events.
            (Some(_), Question::Events(_) | Question::Documents { .. } | Question::Content(_)) | (None, _) => failed(),
        };
        self.tell_client(
            at,
            Event::Answered {
                question,
                stream,
                answer,
            },
        );
    }

    /// A page of the authority's log.
    fn history(&mut self, at: usize, stream: usize, after: Position) -> Answer {
        let log = &self.logs[stream];
        if log.chain_at(after.seq) != Some(after.chain) {
            self.violate("I7", || {
                format!("client {at}, stream {stream}: asks the authority about {after:?}, which it never had")
            });
        }
        let log = &self.logs[stream];
        // Both are positions of the log.
        let position = |seq| Position {
            seq,
            chain: log.chain_at(seq).unwrap_or(log.start.chain),
        };
        let (head, floor) = (position(log.head()), position(log.floor));
        if after.seq < floor.seq {
            return Answer::Stale(Box::new(StaleCursor {
                code: Default::default(),
                stream_id: log.id.clone(),
                requested_after_seq: after.seq,
                oldest_available_cursor: floor.seq,
                oldest_available_chain: floor.chain,
                head_cursor: head.seq,
                reason_codes: vec![StaleReason::RetentionFloorBreach],
                replay_lag: head.seq.since(after.seq),
                replay_budget_events: None,
                snapshot_cursor: None,
            }));
        }
        let events = log.read(after.seq, self.setup.page.events, self.setup.page.bytes);
        let frames = events.last().map(|last| FrameRow {
            first_seq: after.seq.next(),
            last_seq: last.seq,
            base_chain: after.chain,
            bytes: Frame::encode(&events, None),
        });
        if let Some(frame) = &frames {
            let followed = &mut self.clients[at].followed[stream];
            followed.from_authority = followed.from_authority.max(frame.last_seq);
            self.coverage.seen("client: read from the authority");
        }
        Answer::Page(Page {
            head,
            oldest_seq: floor.seq.next(),
            durable_reads: false,
            frames: Vec::from_iter(frames),
        })
    }
}
