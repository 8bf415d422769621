//! What the gate does with SpacetimeDB's bytes.

use std::hint::black_box;

use spacetime_sync_gate::frames::Walk;

use super::{Path, Round};

/// The gate reads so much at once.
const READ_BYTES: usize = 16 * 1024;
/// A message with a single event of 512 bytes, whose row is padded.
const MESSAGE_BYTES: u16 = 1_200;
/// Messages of a round.
const MESSAGES: usize = 100;

pub(super) const WALK: Path = Path {
    name: "gate-walk",
    about: "the gate walks over SpacetimeDB's messages, each with a single event",
    hashes: false,
    events: MESSAGES as u64,
    rounds: 200,
    open: walk,
};

fn walk(_: u32) -> Round {
    let mut said = Vec::new();
    for _ in 0..MESSAGES {
        said.extend_from_slice(&[0x82, 126]);
        said.extend_from_slice(&MESSAGE_BYTES.to_be_bytes());
        // Neither compressed, nor an answer to a subscription.
        said.extend_from_slice(&[0, 4]);
        said.resize(said.len() + usize::from(MESSAGE_BYTES) - 2, 7);
    }
    let (mut walk, mut frames) = (Walk::default(), 0);
    Box::new(move || {
        black_box(&said).chunks(READ_BYTES).for_each(|read| walk.over(read));
        frames += MESSAGES as u64;
        assert!(walk.frames == frames && walk.is_between_frames());
    })
}
