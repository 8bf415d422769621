//! Ten things that a desktop application does with this crate, in the order in which it meets them. Each example compiles.
//!
//! # 1. Say who you are
//! Your application has a session of its own. A bridge gives a sync token for it, and the client renews that by itself: you hand it a
//! way to read the session's credential, and it asks again for each token.
//!
//! ```no_run
//! use spacetime_sync_client::{ClientConfig, Credential, HttpTokens, StreamId, TokenError};
//!
//! # fn example() -> Result<ClientConfig, Box<dyn std::error::Error>> {
//! let streams = vec![StreamId::new("runtime.run.42.events")?];
//! let mut config = ClientConfig::new("https://lane.example", "lane", streams);
//! config.credential = Credential::provider(HttpTokens::new("https://bridge.example", || async {
//!     std::fs::read_to_string("session.token").map_err(TokenError::unavailable)
//! })?);
//! config.client_build_id = "20261101T000000Z".to_owned();
//! # Ok(config)
//! # }
//! ```
//!
//! # 2. Apply events, each once
//! Your [`Handler`](crate::Handler) gets events in order, and the transaction that also moves the checkpoint: both are saved or neither.
//! So an event that is delivered twice takes effect once, whatever is killed in between. A closure will do.
//!
//! ```no_run
//! use spacetime_sync_client::rusqlite::Transaction;
//! use spacetime_sync_client::{ClientConfig, Event, HandlerError, SqliteStore, StreamId, SyncClient};
//!
//! # fn example(config: ClientConfig) -> Result<SyncClient, Box<dyn std::error::Error>> {
//! let mut store = SqliteStore::open("app.db")?;
//! store.connection().execute_batch("CREATE TABLE IF NOT EXISTS step (seq INTEGER PRIMARY KEY, body BLOB)")?;
//! let client = SyncClient::start(config, store, |tx: &mut Transaction<'_>, _: &StreamId, events: &[Event]| {
//!     for event in events {
//!         tx.execute("INSERT INTO step VALUES (?1, ?2)", (event.seq.to_sql(), &event.payload[..]))?;
//!     }
//!     Ok::<(), HandlerError>(())
//! })?;
//! # Ok(client)
//! # }
//! ```
//!
//! # 3. Show how it goes
//! [`Status`](crate::Status) is what a health panel shows. Everything in it has a text, and all of it becomes JSON.
//!
//! ```no_run
//! # use spacetime_sync_client::SyncClient;
//! # async fn example(client: SyncClient) -> Result<(), Box<dyn std::error::Error>> {
//! let mut status = client.status();
//! while status.changed().await.is_ok() {
//!     let now = status.borrow_and_update().clone();
//!     println!("{}", now.phase);
//!     for (stream, state) in &now.streams {
//!         println!("  {stream}: {}", state.phase);
//!     }
//!     println!("{}", serde_json::to_string(&now)?);
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # 4. Read documents
//! A stream of documents needs no handler: the client keeps the newest version of each in your file. Who comes anew, or back after too
//! long, gets them as they are, and not their history. [`NoEvents`](crate::NoEvents) stands for the handler of a client that follows
//! nothing else.
//!
//! ```no_run
//! use spacetime_sync_client::{ClientConfig, NoEvents, SqliteStore, StreamId, SyncClient};
//!
//! #[derive(Debug, serde::Deserialize)]
//! struct RunSummary {
//!     state: String,
//! }
//!
//! # fn example(mut config: ClientConfig) -> Result<(), Box<dyn std::error::Error>> {
//! let stream = StreamId::new("runtime.run_summaries")?;
//! config.documents = vec![stream.clone()];
//! let client = SyncClient::start(config, SqliteStore::open("app.db")?, NoEvents)?;
//! let runs = client.documents::<RunSummary>(&stream)?;
//! for run in runs.all()? {
//!     println!("{}: {:?}", run.key, run.content);
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # 5. Hear which of them change
//! [`Documents::changed`](crate::Documents::changed) says what has changed since it was last asked, once that is saved.
//!
//! ```no_run
//! # use spacetime_sync_client::{Documents, DocumentsError};
//! use spacetime_sync_client::Changed;
//!
//! # async fn example(mut runs: Documents<serde_json::Value>) -> Result<(), DocumentsError> {
//! while let Some(changed) = runs.changed().await {
//!     match changed {
//!         Changed::Documents(keys) => {
//!             for key in keys {
//!                 match runs.get(&key)? {
//!                     Some(run) => println!("{key} is now {:?}", run.content),
//!                     None => println!("{key} is deleted"),
//!                 }
//!             }
//!         }
//!         Changed::Everything => println!("{} runs", runs.all()?.len()),
//!     }
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # 6. Listen to events as they are applied
//! For what is shown and not kept, there are the same events decoded, from now on.
//!
//! ```no_run
//! # use spacetime_sync_client::{StreamId, SyncClient};
//! #[derive(serde::Deserialize)]
//! struct RunEvent {
//!     text: String,
//! }
//!
//! # async fn example(client: SyncClient, stream: StreamId) {
//! let mut events = client.events::<RunEvent>(&stream);
//! while let Some(next) = events.next().await {
//!     match next {
//!         Ok(told) => match told.value {
//!             Ok(event) => println!("{} {}", told.seq, event.text),
//!             Err(not_decoded) => println!("{} {not_decoded}", told.seq),
//!         },
//!         Err(missed) => println!("{missed}"),
//!     }
//! }
//! # }
//! ```
//!
//! # 7. Follow more, or less, while it runs
//! The client says which streams its session may read, and follows them when you ask: as events or as documents. To follow one as the
//! other, unfollow it first.
//!
//! ```no_run
//! # use spacetime_sync_client::{StreamId, SyncClient, Watched};
//! # async fn example(client: SyncClient, closed: StreamId) -> Result<(), Box<dyn std::error::Error>> {
//! let mut readable = client.readable();
//! let seen = readable.wait_for(Watched::is_live).await?.rows.clone();
//! for stream in seen.streams.iter().filter(|stream| stream.as_str().ends_with(".events")) {
//!     client.follow(stream).await?;
//! }
//! client.follow_topic("run:42:events").await?;
//! client.follow_documents_of_topic("runtime.codex_worker_summaries").await?;
//! client.unfollow(&closed).await?;
//! # Ok(())
//! # }
//! ```
//!
//! # 8. Start over
//! Who was away for longer than the authority keeps events cannot be brought up event by event. Streams of documents begin anew by
//! themselves, and [`Handler::documents_begun`](crate::Handler::documents_begun) says so. Of other streams you decide:
//! [`StaleAnswer`](crate::StaleAnswer) says what is to happen, and your handler clears what it made. Closures are told of both by
//! [`Closures`](crate::Closures).
//!
//! ```no_run
//! use spacetime_sync_client::rusqlite::Transaction;
//! use spacetime_sync_client::{
//!     Beginning, ClientConfig, Event, Handler, HandlerError, SqliteStore, StaleAnswer, StreamId, WithoutDocument,
//! };
//!
//! struct Steps;
//!
//! impl Handler<SqliteStore> for Steps {
//!     fn apply(&mut self, tx: &mut Transaction<'_>, _: &StreamId, events: &[Event]) -> Result<(), HandlerError> {
//!         for event in events {
//!             tx.execute("INSERT INTO step VALUES (?1, ?2)", (event.seq.to_sql(), &event.payload[..]))?;
//!         }
//!         Ok(())
//!     }
//!
//!     fn start_over(&mut self, tx: &mut Transaction<'_>, _: &StreamId, from: &Beginning) -> Result<(), HandlerError> {
//!         tx.execute("DELETE FROM step", ())?;
//!         if let Some(document) = &from.document {
//!             tx.execute("INSERT INTO step VALUES (?1, ?2)", (document.seq.to_sql(), &document.payload[..]))?;
//!         }
//!         Ok(())
//!     }
//! }
//!
//! # fn example(mut config: ClientConfig) {
//! config.on_stale = StaleAnswer::Rebootstrap(WithoutDocument::Restart);
//! # }
//! ```
//!
//! # 9. See who is here, and be seen
//!
//! ```no_run
//! use spacetime_sync_client::{Presence, SyncClient};
//!
//! # async fn example(client: SyncClient) -> Result<(), Box<dyn std::error::Error>> {
//! let _here = client.presence(Presence::online("laptop-1"))?;
//! let mut presences = client.presences(&[])?;
//! while presences.changed().await.is_ok() {
//!     let seen = presences.borrow_and_update().clone();
//!     println!("{} nodes, live: {}", seen.rows.len(), seen.is_live());
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # 10. Ask for work, and stop
//! A call is done once, however often it is repeated. [`stop`](crate::SyncClient::stop) finishes what is being applied and says how far
//! the client came.
//!
//! ```no_run
//! use std::time::Duration;
//!
//! use spacetime_sync_client::{CallError, OpenAssignment, SyncClient};
//!
//! # async fn example(client: SyncClient) -> Result<(), CallError> {
//! let request = OpenAssignment {
//!     request_id: "request-1".into(),
//!     provider_id: None,
//!     document: r#"{"do":"something"}"#.into(),
//!     deadline: Duration::from_secs(600),
//! };
//! client.open_assignment(request, Duration::from_secs(30)).await?;
//! let last = client.stop().await;
//! println!("{}", last.phase);
//! # Ok(())
//! # }
//! ```
