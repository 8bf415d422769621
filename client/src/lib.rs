//! The client: follows streams and hands their events to the application in order, each with effect exactly once.
//!
//! ```no_run
//! # use spacetime_sync_client::{ClientConfig, Event, HandlerError, SqliteStore, StreamId, SyncClient};
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let streams = vec![StreamId::new("runtime.run.42.events")?];
//! let config = ClientConfig::new("http://127.0.0.1:3000", "spacetime-sync", streams);
//! let mut store = SqliteStore::open("application.db")?;
//! store.connection().execute_batch("CREATE TABLE IF NOT EXISTS note (seq INTEGER PRIMARY KEY, text BLOB) STRICT")?;
//!
//! let client = SyncClient::start(
//!     config,
//!     store,
//!     |transaction: &mut rusqlite::Transaction<'_>, _stream: &StreamId, events: &[Event]| {
//!         for event in events {
//!             transaction.execute("INSERT INTO note VALUES (?1, ?2)", (event.seq.to_sql(), &event.payload[..]))?;
//!         }
//!         Ok::<(), HandlerError>(())
//!     },
//! )?;
//! println!("{:?}", client.status().borrow().phase);
//! client.stop().await;
//! # Ok(())
//! # }
//! ```
//!
//! [`guide`] has ten things that an application does, with an example of each. [`SyncClient`] is the handle, [`Status`] says what the
//! client is doing, a [`Handler`] is the application's code, a [`CheckpointStore`] saves what the handler does, and a [`Credential`]
//! authenticates the client. Inside there are three rooms: `session` decides and does no IO, `talk` holds the connection and asks the bridge over HTTP, `store`
//! saves checkpoints and runs the apply thread. `talk` and `store` know `session` but not each other.
//!
//! The SDK panics when a connection breaks in the middle of a call, and a handler may panic: the client catches both
//! and goes on. An application built with `panic = "abort"` ends with them instead.
//!
//! A client never writes events: only the authority's writers do. It never skips one either: what it cannot apply stops
//! its stream with a reason, and the other streams go on.

/// Compiles the README's program.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;

pub mod config;
pub mod credential;
pub mod error;
pub mod guide;
pub mod nostr;
pub mod outbox;
pub mod presence;
pub mod seal;
#[doc(hidden)]
pub mod session;
pub mod signal;
pub mod store;
pub mod watched;
pub mod work;

mod changes;
mod client;
mod documents;
#[cfg(test)]
mod fake_host;
mod readable;
mod runner;
mod talk;
#[cfg(test)]
mod whole_client;

pub use changes::Changed;
pub use client::SyncClient;
pub use config::{Backoff, ClientConfig, History, Limits, Reads, StaleAnswer, WithoutDocument};
pub use credential::{AccessToken, Credential, TokenError, TokenFuture, TokenProvider, WantedToken};
pub use documents::{Content, Document, Documents, Events, Missed, NotDecoded, Told};
pub use error::{
    CallError, ConfigError, DocumentsError, ErrorClass, FollowError, HandlerError, PresenceError, StartError,
};
pub use nostr::NostrChallenge;
pub use outbox::{Outbox, OutboxEvent, OutboxOutcome, SeenOutboxEvent};
pub use presence::{OfflineReason, Presence, PresenceHandle, PresenceKey, PresenceStatus, Presences, SeenPresence};
pub use readable::ReadableStreams;
pub use session::status;
pub use session::stream::{Beginning, Counters, Rung, StreamStop};
pub use signal::{Audience, Heard, HeardSignal, PresenceChange, Says, Signal, Signals, Subject};
pub use status::{Disconnect, Phase, Status, StopReason, StreamPhase, StreamStatus, TokenStatus};
#[doc(hidden)]
pub use store::applier::Stepped;
pub use store::{
    CheckpointStore, Closures, CommitError, Committed, DocumentReader, DocumentStore, Effects, Handler, NoEvents,
    SqliteStore, StoreError, StoredDocument,
};
#[doc(hidden)]
pub use talk::link::frame_row;
pub use talk::tokens::HttpTokens;
pub use watched::{Freshness, Watched};
pub use work::{
    AssignmentChange, Assignments, Capabilities, Capability, CapabilityKey, ChangeAssignment, OpenAssignment,
    SeenAssignment, SeenCapability,
};

pub use rusqlite;
pub use spacetime_sync_proto::access::{ClientVersion, Incompatible, Scope, StreamPattern, Topic};
pub use spacetime_sync_proto::limit::HEARD_STREAMS;
pub use spacetime_sync_proto::page::Snapshot;
pub use spacetime_sync_proto::wire::ClientCounters;
pub use spacetime_sync_proto::{
    AssignmentSide, AssignmentState, ChainHash, DatabasePin, Event, IdempotencyKey, IdentityHex, Kind, NostrKey,
    NostrSignature, OutboxStatus, PayloadHash, Position, Refusal, RefusalCode, Seq, StaleCursor, StaleReason, StreamId,
};
pub use spacetime_sync_transport::{PlaintextRefused, TlsError, TlsFiles, Transport};

#[cfg(test)]
mod tests {
    use std::fmt::Display;

    use super::*;

    #[test]
    fn every_state_and_every_reason_has_a_text() {
        fn text<T: Display>() -> fn(&T) -> String {
            T::to_string
        }
        let _ = (
            text::<Phase>(),
            text::<StreamPhase>(),
            text::<Rung>(),
            text::<Freshness>(),
        );
        let _ = (text::<StreamStop>(), text::<StopReason>(), text::<Disconnect>());
        let _ = (text::<StaleReason>(), text::<RefusalCode>(), text::<Incompatible>());
        let _ = (
            text::<PresenceStatus>(),
            text::<OfflineReason>(),
            text::<OutboxStatus>(),
        );
        let _ = (text::<AssignmentState>(), text::<AssignmentSide>());
        let _ = (
            text::<Changed>(),
            text::<Content<()>>(),
            text::<NotDecoded>(),
            text::<Missed>(),
        );
        for (text, expected) in [
            (PresenceStatus::Away.to_string(), "away"),
            (OfflineReason::TtlExpired.to_string(), "it was silent for too long"),
            (
                Changed::Documents(["a".to_owned()].into()).to_string(),
                "1 document has changed",
            ),
            (
                Changed::Documents(["a", "b"].map(str::to_owned).into()).to_string(),
                "2 documents have changed",
            ),
            (Content::<()>::Fetching.to_string(), "being fetched"),
        ] {
            assert_eq!(text, expected);
        }
    }
}
