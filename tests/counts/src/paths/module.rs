//! What the module decides about an append, over a log in memory in place of its tables.

use std::hint::black_box;

use spacetime_sync_proto::{Event, Frame, FrameRow, PayloadHash, Position};
use spacetime_sync_rules::append::{Appended, Request, append};
use spacetime_sync_rules::log::memory::MemoryLog;

use super::log::{events, frames, position, stream_id};
use super::{Path, Round};

/// Events of a frame.
const EVENTS: usize = 100;

pub(super) const APPEND_FRAME: Path = Path {
    name: "append-frame",
    about: "the module's rules take a frame as the bridge states it",
    hashes: false,
    events: 1,
    rounds: 20,
    open: append_frame,
};

pub(super) const APPEND_EVENT: Path = Path {
    name: "append-event",
    about: "the module hashes, encodes, checks and appends a single event",
    hashes: true,
    events: 1,
    rounds: 200,
    open: append_event,
};

fn append_frame(rounds: u32) -> Round {
    let log = events(rounds as usize * EVENTS);
    let ends = (1..=rounds as usize).map(|nth| (position(&log, nth * EVENTS), log[nth * EVENTS - 1].committed_at_us));
    let stated = |(row, (last, last_at_us)): (FrameRow, (Position, i64))| Request {
        first_seq: row.first_seq.get(),
        last_seq: row.last_seq.get(),
        base_chain: row.base_chain,
        last_chain: last.chain,
        last_at_us,
        frame: row.bytes,
    };
    let mut requests = frames(&log, EVENTS)
        .into_iter()
        .zip(ends)
        .map(stated)
        .collect::<Vec<_>>()
        .into_iter();
    let (mut rows, stream_id) = (MemoryLog::default(), stream_id());
    Box::new(move || {
        let Some(request) = requests.next() else { return };
        let appended = append(&mut rows, &stream_id, black_box(request));
        assert!(matches!(appended, Ok(Appended::Extended { .. })), "{appended:?}");
    })
}

fn append_event(rounds: u32) -> Round {
    let (mut rows, stream_id) = (MemoryLog::default(), stream_id());
    let mut base_chain = Position::start(&stream_id).chain;
    let mut given = events(rounds as usize).into_iter();
    Box::new(move || {
        let Some(given) = given.next() else { return };
        let (seq, next) = (given.seq.get(), given.chain_hash);
        // As the reducer does it: it believes neither the payload's hash nor the chain's.
        let taken = Event {
            payload_hash: PayloadHash::of(black_box(&given.payload)),
            chain_hash: base_chain,
            ..given
        };
        let request = Request::of_frame(seq, base_chain, Frame::encode(&[taken], None));
        let appended = request.and_then(|request| append(&mut rows, &stream_id, request));
        assert!(matches!(appended, Ok(Appended::Extended { .. })), "{appended:?}");
        base_chain = next;
    })
}
