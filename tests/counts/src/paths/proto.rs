//! What bridge and client do with events by the contract alone.

use std::hint::black_box;

use spacetime_sync_proto::page::EventPage;
use spacetime_sync_proto::{Frame, FrameRow, Position, Seq};

use super::log::{event, events, frames, payload, position, stream_id};
use super::{Path, Round};

/// Events of a frame and frames of a page: a page as the benchmark's bridge serves it.
const PAGE: (usize, usize) = (100, 4);

pub(super) const SEAL_EVENT: Path = Path {
    name: "hash-event",
    about: "one event of 512 bytes is hashed and linked to the chain",
    hashes: true,
    events: 1,
    rounds: 400,
    open: hash_event,
};

pub(super) const VERIFY_FRAME: Path = Path {
    name: "verify-frame",
    about: "a client decodes a frame of 100 events, takes the events out of it, and hashes their payloads",
    hashes: true,
    events: PAGE.0 as u64,
    rounds: 8,
    open: verify_frame,
};

pub(super) const VERIFY_HISTORY: Path = Path {
    name: "verify-history",
    about: "the same with a page of the bridge's history, 4 frames of 100 events",
    hashes: true,
    events: (PAGE.0 * PAGE.1) as u64,
    rounds: 4,
    open: verify_history,
};

fn hash_event(_: u32) -> Round {
    let mut last = Position::start(&stream_id());
    let payload = payload(1);
    Box::new(move || {
        let next = event(last.seq.next(), &last.chain, payload.clone());
        last = Position {
            seq: next.seq,
            chain: next.chain_hash,
        };
        black_box(next);
    })
}

fn verify_frame(_: u32) -> Round {
    let frame = frames(&events(PAGE.0), PAGE.0).swap_remove(0);
    Box::new(move || verify(black_box(&frame)))
}

fn verify_history(_: u32) -> Round {
    let log = events(PAGE.0 * PAGE.1);
    let head = position(&log, log.len());
    let page = EventPage {
        head_seq: head.seq,
        head_chain: head.chain,
        oldest_seq: Seq::ZERO.next(),
        frames: frames(&log, PAGE.0),
    };
    let bytes = page.encode();
    Box::new(move || {
        let page = EventPage::decode(black_box(bytes.clone())).unwrap_or_else(|error| panic!("{error}"));
        page.frames.iter().for_each(verify);
    })
}

fn verify(row: &FrameRow) {
    let frame = Frame::decode(row.first_seq.get(), row.base_chain, row.bytes.clone());
    let frame = frame.unwrap_or_else(|error| panic!("{error}"));
    for event in frame.into_events_after(Seq::ZERO) {
        assert!(black_box(event).payload_matches());
    }
}
