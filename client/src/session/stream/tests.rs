//! Small cases of one stream, one rule each. [`Log`] is the log to follow.

use bytes::Bytes;
use spacetime_sync_proto::{
    ChainHash, Event, Frame, FrameRow, IdempotencyKey, Kind, PayloadHash, Position, Refusal, RefusalCode, Seq, StreamId,
};

use super::*;
use crate::config::{Carries, ClientConfig, Reads, StreamBounds};
use crate::seal::tests::TestKey;
use crate::session::stream::core::UNKNOWN_EVENT_BYTES;

mod applying;
mod checks;
mod delivery;

/// A log to follow.
pub(crate) struct Log {
    pub(crate) start: Position,
    pub(crate) events: Vec<Event>,
}

impl Log {
    pub(crate) fn new(name: &str, events: u64) -> Self {
        let stream_id = StreamId::new(name).unwrap();
        let start = Position::start(&stream_id);
        let mut log = Self {
            start,
            events: Vec::new(),
        };
        (0..events).for_each(|_| log.append());
        log
    }

    pub(crate) fn append(&mut self) {
        let seq = self.head().seq.next();
        self.append_payload(&format!("payload {seq}"));
    }

    /// Another log that equals this one up to a seq.
    pub(crate) fn fork(&self, at: u64, events: u64) -> Self {
        let mut fork = Self {
            start: self.start,
            events: self.events[..at as usize].to_vec(),
        };
        (at..events).for_each(|at| fork.append_payload(&format!("forked {at} of {}", self.events.len())));
        fork
    }

    pub(crate) fn append_payload(&mut self, payload: &str) {
        self.append_event("test.event", payload);
    }

    pub(crate) fn append_event(&mut self, kind: &str, payload: &str) {
        let seq = self.head().seq.next();
        let payload = Bytes::from(payload.to_owned());
        let payload_hash = PayloadHash::of(&payload);
        let idempotency_key = IdempotencyKey::new(&format!("key-{seq}")).unwrap();
        let kind = Kind::new(kind).unwrap();
        let chain_hash = self.head().chain.link(seq, 7, &payload_hash, &idempotency_key, &kind);
        self.events.push(Event {
            seq,
            idempotency_key,
            kind,
            payload,
            payload_hash,
            chain_hash,
            committed_at_us: 7,
        });
    }

    pub(crate) fn head(&self) -> Position {
        self.at(self.events.len() as u64)
    }

    pub(crate) fn at(&self, seq: u64) -> Position {
        match seq.checked_sub(1) {
            None => self.start,
            Some(at) => {
                let event = &self.events[at as usize];
                Position {
                    seq: event.seq,
                    chain: event.chain_hash,
                }
            }
        }
    }

    /// A frame of the events from `first` to `last`.
    pub(crate) fn frame(&self, first: u64, last: u64) -> FrameRow {
        let events = &self.events[first as usize - 1..last as usize];
        FrameRow {
            first_seq: Seq::new(first).unwrap(),
            last_seq: Seq::new(last).unwrap(),
            base_chain: self.at(first - 1).chain,
            bytes: Frame::encode(events, None),
        }
    }

    /// The same, sealed.
    pub(crate) fn sealed_frame(&self, stream_id: &StreamId, first: u64, last: u64, key: &TestKey) -> FrameRow {
        let events = &self.events[first as usize - 1..last as usize];
        FrameRow {
            bytes: Frame::encode(events, Some(&key.seal(stream_id, &self.at(last)))),
            ..self.frame(first, last)
        }
    }

    fn page(&self, frames: Vec<FrameRow>) -> Input {
        self.page_of_class(true, frames)
    }

    fn page_of_class(&self, durable_reads: bool, frames: Vec<FrameRow>) -> Input {
        Input::Page(Page {
            head: self.head(),
            oldest_seq: Seq::new(1).unwrap(),
            durable_reads,
            frames,
        })
    }
}

pub(crate) fn bounds() -> StreamBounds {
    let stream = StreamId::new("model").unwrap();
    ClientConfig::new("https://host", "lane", vec![stream.clone()]).bounds_of(&stream, Carries::Events, 1, false)
}

pub(super) fn seq(value: u64) -> Seq {
    Seq::new(value).unwrap()
}

pub(super) struct Case {
    pub(super) stream: Stream,
    pub(super) counters: Counters,
}

impl Case {
    fn new(applied: Position) -> Self {
        Self::within(applied, bounds())
    }

    pub(super) fn within(applied: Position, bounds: StreamBounds) -> Self {
        Self {
            stream: Stream::new(applied, bounds),
            counters: Counters::default(),
        }
    }

    /// A case that is connected, and live at the log's head.
    fn live(log: &Log) -> Self {
        let mut case = Self::new(log.head());
        case.step(Input::Connected);
        case.step(log.page(vec![]));
        case.step(Input::Subscribed(SubscriptionId(1)));
        assert!(case.stream.is_current());
        case
    }

    pub(super) fn step(&mut self, input: Input) -> Vec<String> {
        self.stream.step(input, &mut self.counters).iter().map(show).collect()
    }

    /// Steps and compares the effects, written as text.
    pub(super) fn expect(&mut self, input: Input, effects: &[&str]) {
        assert_eq!(self.step(input), effects);
    }

    pub(super) fn stopped(&self) -> &StreamStop {
        match self.stream.mode() {
            Mode::Stopped(stop) => stop,
            other => panic!("not stopped but {other:?}"),
        }
    }
}

fn show(effect: &Effect) -> String {
    match effect {
        Effect::Read { after } => format!("read after {after}"),
        Effect::Subscribe { id, after, .. } => format!("subscribe {} after {after}", id.0),
        Effect::Unsubscribe { id } => format!("unsubscribe {}", id.0),
        Effect::Apply(batch) => format!("apply {}..={}", batch.from.seq.next(), batch.to.seq),
        Effect::ReadHistory { after } => format!("history after {}", after.seq),
        Effect::ReadDocument => "document".to_owned(),
        Effect::ReadDocuments { at, after } => {
            let at = at.map_or_else(|| "the position that it says".to_owned(), |at| at.seq.to_string());
            format!("documents at {at} after {}", after.as_deref().unwrap_or_default())
        }
        Effect::Stage(staging) => format!(
            "stage {} of fetch {}{}",
            staging.documents.len(),
            staging.fetch.0,
            if staging.is_first { ", the first" } else { "" }
        ),
        Effect::Adopt(adoption) => format!("adopt fetch {} at {}", adoption.fetch.0, adoption.at.seq),
        Effect::Report => "report".to_owned(),
        Effect::StartOver(beginning) => format!("begin at {}", beginning.at.seq),
        Effect::RecoverLater { attempt } => format!("recover later {attempt}"),
        Effect::AskLater => "ask later".to_owned(),
        Effect::RetryLater { attempt } => format!("retry later {attempt}"),
    }
}

pub(super) fn applied(log: &Log, to: u64) -> Input {
    Input::Applied {
        to: log.at(to),
        released: usize::MAX,
    }
}
