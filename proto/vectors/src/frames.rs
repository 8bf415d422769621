//! Frames.

use serde::Deserialize;
use spacetime_sync_proto::seal::SEAL_BYTES;
use spacetime_sync_proto::{ChainHash, Event, Frame, FrameError, Seal, Seq};

use crate::hashes::Row;
use crate::{number, seq, vectors};

#[derive(Deserialize)]
struct Vector {
    name: String,
    first_seq: String,
    base_chain: ChainHash,
    frame: String,
    #[serde(flatten)]
    outcome: Outcome,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Outcome {
    Refused {
        refused: String,
    },
    Read {
        last_seq: String,
        last_chain: ChainHash,
        seal: String,
        /// Whether writing the events again gives the same bytes.
        encodes_alike: bool,
        events: Vec<Row>,
    },
}

fn code(error: &FrameError) -> &'static str {
    match error {
        FrameError::Malformed(_) => "malformed",
        FrameError::TooLarge { .. } => "too_large",
        FrameError::TooSmall { .. } => "too_small",
        FrameError::EventCount { .. } => "event_count",
        FrameError::FirstSeq { .. } => "first_seq",
        FrameError::LastSeq { .. } => "last_seq",
        FrameError::Id { .. } => "id",
        FrameError::PayloadSize { .. } => "payload_size",
        FrameError::PayloadHashLength { .. } => "payload_hash_length",
        FrameError::SealLength { .. } => "seal_length",
    }
}

#[cfg_attr(test, test)]
pub(crate) fn frames_are_read_and_written_or_refused() {
    for Vector {
        name,
        first_seq,
        base_chain,
        frame,
        outcome,
    } in vectors(include_str!("../frames.json"), 20)
    {
        let bytes = hex::decode(&frame).unwrap();
        let read = Frame::decode(number(&first_seq), base_chain, bytes.clone().into());
        match outcome {
            Outcome::Refused { refused } => {
                assert_eq!(read.as_ref().map_err(code).err(), Some(refused.as_str()), "{name}");
            }
            Outcome::Read {
                last_seq,
                last_chain,
                seal,
                encodes_alike,
                events,
            } => {
                let read = read.unwrap_or_else(|error| panic!("{name}: {error}"));
                let seal = hex::decode(&seal).unwrap();
                assert_eq!(
                    (read.last_seq(), read.last_chain()),
                    (seq(&last_seq), last_chain),
                    "{name}"
                );
                assert_eq!(read.seal().copied(), Seal::from_slice(&seal), "{name}");
                assert!(seal.is_empty() || seal.len() == SEAL_BYTES, "{name}");
                let events: Vec<Event> = events.iter().map(Row::event).collect();
                if encodes_alike {
                    assert_eq!(Frame::encode(&events, read.seal()), bytes, "{name}");
                }
                assert_eq!(read.into_events_after(Seq::ZERO).collect::<Vec<_>>(), events, "{name}");
            }
        }
    }
}
