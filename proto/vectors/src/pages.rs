//! Pages of a log, and the document that replaces its beginning.

use bytes::Bytes;
use serde::Deserialize;
use spacetime_sync_proto::page::{EventPage, PageError, Snapshot};
use spacetime_sync_proto::{ChainHash, FrameRow, PayloadHash};

use crate::{seq, vectors};

#[derive(Deserialize)]
struct Vector {
    name: String,
    message: Message,
    bytes: String,
    #[serde(flatten)]
    outcome: Outcome,
}

#[derive(Deserialize)]
enum Message {
    EventPage,
    Snapshot,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Outcome {
    Refused {
        refused: String,
    },
    EventPage {
        head_seq: String,
        head_chain: ChainHash,
        oldest_seq: String,
        frames: Vec<Row>,
    },
    Snapshot {
        doc_key: String,
        seq: String,
        chain_hash: ChainHash,
        payload: String,
        payload_hash: PayloadHash,
        payload_matches: bool,
    },
}

#[derive(Deserialize)]
struct Row {
    first_seq: String,
    last_seq: String,
    base_chain: ChainHash,
    frame: String,
}

fn code(error: &PageError) -> &'static str {
    match error {
        PageError::Malformed(_) => "malformed",
        PageError::Seq(_) => "seq",
        PageError::Hash(_) => "hash",
        PageError::DocKey(_) => "doc_key",
        PageError::Document(_) => "document",
    }
}

#[cfg_attr(test, test)]
pub(crate) fn pages_and_documents_are_read_or_refused() {
    for Vector {
        name,
        message,
        bytes,
        outcome,
    } in vectors(include_str!("../pages.json"), 12)
    {
        let bytes = Bytes::from(hex::decode(&bytes).unwrap());
        match outcome {
            Outcome::Refused { refused } => {
                let found = match message {
                    Message::EventPage => EventPage::decode(bytes).err(),
                    Message::Snapshot => Snapshot::decode(bytes).err(),
                };
                assert_eq!(found.as_ref().map(code), Some(refused.as_str()), "{name}");
            }
            Outcome::EventPage {
                head_seq,
                head_chain,
                oldest_seq,
                frames,
            } => {
                let row = |row: &Row| FrameRow {
                    first_seq: seq(&row.first_seq),
                    last_seq: seq(&row.last_seq),
                    base_chain: row.base_chain,
                    bytes: hex::decode(&row.frame).unwrap().into(),
                };
                let page = EventPage {
                    head_seq: seq(&head_seq),
                    head_chain,
                    oldest_seq: seq(&oldest_seq),
                    frames: frames.iter().map(row).collect(),
                };
                assert_eq!(EventPage::decode(bytes.clone()).as_ref(), Ok(&page), "{name}");
                assert_eq!(page.encode(), bytes, "{name}");
            }
            Outcome::Snapshot {
                doc_key,
                seq: at,
                chain_hash,
                payload,
                payload_hash,
                payload_matches,
            } => {
                let snapshot = Snapshot {
                    doc_key,
                    seq: seq(&at),
                    chain_hash,
                    payload: hex::decode(&payload).unwrap().into(),
                    payload_hash,
                };
                assert_eq!(Snapshot::decode(bytes.clone()).as_ref(), Ok(&snapshot), "{name}");
                assert_eq!(snapshot.encode(), bytes, "{name}");
                assert_eq!(snapshot.payload_matches(), payload_matches, "{name}");
            }
        }
    }
}
