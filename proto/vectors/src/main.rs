//! Checks the contract against its vectors. Each check is a test, and the program makes them all: `scripts/contracts` compiles it
//! to wasm, where the module runs, and executes it there. It panics at the first vector that does not hold.

// What a vector lacks is a failure like any other.
#![allow(clippy::unwrap_used)]

mod documents;
mod frames;
mod hashes;
mod messages;
mod names;
mod pages;
mod refusals;

use serde::de::DeserializeOwned;
use spacetime_sync_proto::Seq;

fn main() {
    let checks: [fn(); 8] = [
        hashes::payloads_have_their_hashes,
        hashes::logs_have_their_chains,
        frames::frames_are_read_and_written_or_refused,
        pages::pages_and_documents_are_read_or_refused,
        documents::documents_have_one_text_or_are_refused,
        names::topics_and_streams_lead_to_one_another,
        refusals::every_code_has_its_json_and_its_class,
        messages::messages_are_read_and_written_as_they_stand,
    ];
    for check in checks {
        check();
    }
}

/// Reads a file of vectors, of which there are at least `least`.
fn vectors<T: DeserializeOwned>(json: &str, least: usize) -> Vec<T> {
    let vectors: Vec<T> = serde_json::from_str(json).unwrap();
    assert!(vectors.len() >= least, "only {} vectors", vectors.len());
    vectors
}

/// Numbers of 64 bits are texts in vectors, because not every language has them.
fn number<T: std::str::FromStr>(text: &str) -> T {
    text.parse().ok().unwrap_or_else(|| panic!("not a number: {text}"))
}

fn seq(text: &str) -> Seq {
    Seq::new(number(text)).unwrap()
}
