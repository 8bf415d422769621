//! The client of the lane: follows streams and hands their events to the application, in order, each once in effect.
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
//! [`SyncClient`] is the handle, [`Status`] what it says, [`Handler`] what the application brings, [`CheckpointStore`]
//! where it is saved, [`Credential`] what it is let in by. Within, [`apply`] decides and does nothing, `engine` does what it decided, `link` holds the
//! connection, `applier` the thread that the store and the handler run on.
//!
//! The SDK panics when a connection breaks in the midst of a call, and a handler may panic: the client catches both and
//! goes on. An application that is built with `panic = "abort"` ends with them instead.
//!
//! A client never writes events: commands go to the runtime. It never skips one either: what it cannot apply stops
//! its stream, with a reason, and the other streams go on.

pub mod apply;
pub mod config;
pub mod credential;
pub mod error;
pub mod presence;
pub mod status;
pub mod store;

mod applier;
mod client;
mod engine;
#[cfg(test)]
mod fake_host;
mod history;
mod link;

pub use applier::Handler;
#[doc(hidden)]
pub use applier::Stepped;
pub use apply::{Beginning, Counters, Rung, StreamStop};
pub use client::SyncClient;
pub use config::{Backoff, ClientConfig, History, Limits, Reads, StaleAnswer, WithoutDocument};
pub use credential::{AccessToken, Credential, HttpTokens, TokenError, TokenFuture, TokenProvider, WantedToken};
pub use error::{ConfigError, ErrorClass, HandlerError, PresenceError, StartError};
#[doc(hidden)]
pub use link::frame_row;
pub use presence::{OfflineReason, Presence, PresenceHandle, PresenceKey, PresenceStatus, Presences, SeenPresence};
pub use status::{Disconnect, Phase, Status, StopReason, StreamPhase, StreamStatus, TokenStatus};
pub use store::{CheckpointStore, CommitError, Effects, SqliteStore, StoreError};

pub use rusqlite;
pub use spacetime_sync_proto::access::{ClientVersion, Incompatible, Scope, StreamPattern};
pub use spacetime_sync_proto::page::Snapshot;
pub use spacetime_sync_proto::{
    ChainHash, Event, IdempotencyKey, Kind, PayloadHash, Position, Refusal, RefusalCode, Seq, StaleCursor, StaleReason,
    StreamId,
};
