//! What an application reads: documents that the store holds, and events as they are applied, decoded.

use std::fmt;
use std::marker::PhantomData;
use std::sync::{Arc, Mutex, PoisonError};

use serde::de::DeserializeOwned;
use spacetime_sync_proto::{IdempotencyKey, Kind, PayloadHash, Seq};

use crate::changes::{Changed, Listener, Next, Unheard};
use crate::error::DocumentsError;
use crate::store::{DocumentReader, StoreError, StoredDocument};

/// A store's reader, which all handles share.
#[derive(Clone)]
pub(crate) struct Reader(Arc<Mutex<Box<dyn DocumentReader>>>);

impl Reader {
    pub(crate) fn new(reader: Box<dyn DocumentReader>) -> Self {
        Self(Arc::new(Mutex::new(reader)))
    }

    fn with<T>(&self, read: impl FnOnce(&dyn DocumentReader) -> Result<T, StoreError>) -> Result<T, DocumentsError> {
        let reader = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        read(&**reader).map_err(DocumentsError::Store)
    }
}

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reader")
    }
}

/// The documents of a stream, decoded as `T`. Fields that `T` does not have are passed over, and stay in the store. To read may block
/// for as long as SQLite takes.
#[derive(Debug)]
pub struct Documents<T> {
    reader: Reader,
    listener: Listener<Option<Changed>>,
    decodes: PhantomData<fn() -> T>,
}

/// A document as an application reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document<T> {
    /// Names it within its stream, e.g. `runtime/run_summary:42`.
    pub key: String,
    /// The seq, in its source, of what it was made of last. It never goes back.
    pub version: u64,
    /// The seq of the event that told of it.
    pub seq: Seq,
    /// What is in it.
    pub content: Content<T>,
}

/// What is in a document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content<T> {
    /// This.
    Decoded(T),
    /// It is too large for an event, and is being fetched. A change is told of when it is here.
    Fetching,
    /// It cannot be decoded. Other documents are not affected.
    NotDecoded(NotDecoded),
}

impl<T> fmt::Display for Content<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Decoded(_) => f.write_str("decoded"),
            Self::Fetching => f.write_str("being fetched"),
            Self::NotDecoded(not_decoded) => not_decoded.fmt(f),
        }
    }
}

impl<T> Content<T> {
    /// What is in the document, if it is here and can be decoded.
    pub fn decoded(&self) -> Option<&T> {
        match self {
            Self::Decoded(value) => Some(value),
            Self::Fetching | Self::NotDecoded(_) => None,
        }
    }
}

/// Why a value cannot be decoded, and what it is instead.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("cannot be decoded: {why}")]
pub struct NotDecoded {
    /// What is wrong with it.
    pub why: String,
    /// What was to be decoded.
    pub bytes: Vec<u8>,
}

fn decode<T: DeserializeOwned>(bytes: Vec<u8>) -> Result<T, NotDecoded> {
    serde_json::from_slice(&bytes).map_err(|error| NotDecoded {
        why: error.to_string(),
        bytes,
    })
}

impl<T: DeserializeOwned> Documents<T> {
    pub(crate) fn new(reader: Reader, listener: Listener<Option<Changed>>) -> Self {
        Self {
            reader,
            listener,
            decodes: PhantomData,
        }
    }

    /// One document, if there is one with this key.
    pub fn get(&self, key: &str) -> Result<Option<Document<T>>, DocumentsError> {
        let stored = self
            .reader
            .with(|reader| reader.document(self.listener.stream_id(), key))?;
        Ok(stored.map(read))
    }

    /// All documents, in the order of the bytes of their keys, as they are at one moment.
    pub fn all(&self) -> Result<Vec<Document<T>>, DocumentsError> {
        self.after(None, usize::MAX)
    }

    /// Documents after a key, in the order of the bytes of their keys, at most so many. `None` begins with the first. Two calls may see
    /// different moments.
    pub fn after(&self, key: Option<&str>, most: usize) -> Result<Vec<Document<T>>, DocumentsError> {
        let stored = self
            .reader
            .with(|reader| reader.documents(self.listener.stream_id(), key, most))?;
        Ok(stored.into_iter().map(read).collect())
    }

    /// How many documents there are.
    pub fn count(&self) -> Result<u64, DocumentsError> {
        self.reader.with(|reader| reader.count(self.listener.stream_id()))
    }

    /// Waits for a change, and says all that has changed since this was last asked. `None` once the client has ended. What is told is
    /// saved already, so to read afterwards shows it.
    pub async fn changed(&mut self) -> Option<Changed> {
        self.listener.changed().await
    }
}

fn read<T: DeserializeOwned>(stored: StoredDocument) -> Document<T> {
    let content = match stored.content.map(String::into_bytes) {
        None => Content::Fetching,
        Some(bytes) => match PayloadHash::of(&bytes) {
            found if found != stored.hash => Content::NotDecoded(NotDecoded {
                why: format!(
                    "it has hash {found}, expected {}: somebody else has altered the file",
                    stored.hash
                ),
                bytes,
            }),
            _ => decode(bytes).map_or_else(Content::NotDecoded, Content::Decoded),
        },
    };
    Document {
        key: stored.key,
        version: stored.version,
        seq: stored.seq,
        content,
    }
}

/// The events of a stream as they are applied, decoded as `T`.
#[derive(Debug)]
pub struct Events<T> {
    listener: Listener<Unheard>,
    decodes: PhantomData<fn() -> T>,
}

/// An event that was applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told<T> {
    /// Its seq.
    pub seq: Seq,
    /// Its kind.
    pub kind: Kind,
    /// Its idempotency key.
    pub idempotency_key: IdempotencyKey,
    /// What is in it, or why that cannot be decoded. Other events are not affected.
    pub value: Result<T, NotDecoded>,
}

/// The listener has missed events: it was too slow, or the stream has begun anew at another position.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("some events were missed: they were applied faster than they were listened to, or the stream has begun anew")]
pub struct Missed;

impl<T: DeserializeOwned> Events<T> {
    pub(crate) fn new(listener: Listener<Unheard>) -> Self {
        Self {
            listener,
            decodes: PhantomData,
        }
    }

    /// The next event. `None` once the client has ended.
    pub async fn next(&mut self) -> Option<Result<Told<T>, Missed>> {
        Some(match self.listener.next().await? {
            Next::Missed => Err(Missed),
            Next::Event(event) => Ok(Told {
                seq: event.seq,
                kind: event.kind,
                idempotency_key: event.idempotency_key,
                value: decode(event.payload.into()),
            }),
        })
    }
}
