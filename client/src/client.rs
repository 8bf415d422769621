//! The handle that an application holds.

use std::time::Duration;

use serde::de::DeserializeOwned;
use spacetime_sync_proto::access::Topic;
use spacetime_sync_proto::{Label, NostrKey, NostrSignature, StreamId};
use tokio::runtime::Handle;
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::changes::{Changes, ToHear};
use crate::config::{Carries, ClientConfig};
use crate::documents::{Documents, Events, Reader};
use crate::error::{CallError, ConfigError, DocumentsError, FollowError, PresenceError, StartError};
use crate::nostr::NostrChallenge;
use crate::outbox::{Outbox, OutboxEvent, OutboxOutcome};
use crate::presence::{Presence, PresenceHandle, Presences, Wishes};
use crate::readable::ReadableStreams;
use crate::runner::{Asked, Runner, Wanted};
use crate::seal::SealKeys;
use crate::session::status::{Phase, Status, StopReason};
use crate::session::{Call, Opened, Session, Settings};
use crate::signal::{Audience, Audiences, HEARD_QUEUE, Heard, Purpose, Signal, Signals};
use crate::store::applier::{Applier, BatchBounds, open_stream};
use crate::store::{CheckpointStore, Handler, StoreError};
use crate::talk::history::Source;
use crate::watched::{Views, Watchable, Watched};
use crate::work::{Assignments, Capabilities, Capability, ChangeAssignment, OpenAssignment};

/// How many calls may wait for the client's task.
const CALLS_QUEUE: usize = 16;

/// Follows streams until it is stopped or dropped. It connects, catches up, goes live and recovers from failures by
/// itself; the application watches its [`Status`].
#[derive(Debug)]
pub struct SyncClient {
    status: watch::Receiver<Status>,
    wishes: watch::Sender<Wishes>,
    may_serve: bool,
    may_provide: bool,
    presences: watch::Receiver<Watched<Presences>>,
    providers_online: watch::Receiver<Watched<u64>>,
    capabilities: watch::Receiver<Watched<Capabilities>>,
    assignments: watch::Receiver<Watched<Assignments>>,
    outbox: watch::Receiver<Watched<Outbox>>,
    readable: watch::Receiver<Watched<ReadableStreams>>,
    audiences: watch::Sender<Audiences>,
    heard: broadcast::Receiver<Heard>,
    calls: mpsc::Sender<Asked>,
    changes: ToHear,
    reader: Option<Reader>,
    has_history: bool,
    stop: oneshot::Sender<()>,
    runner: JoinHandle<()>,
}

impl SyncClient {
    /// Checks the configuration and the store, and starts. It reads the checkpoints before it returns and may block
    /// meanwhile; it connects only afterwards.
    ///
    /// Must be called inside a tokio runtime.
    pub fn start<S, H>(config: ClientConfig, mut store: S, handler: H) -> Result<Self, StartError>
    where
        S: CheckpointStore,
        H: Handler<S>,
    {
        config.check()?;
        let history = Source::of(&config)?;
        if history.is_none() && !config.documents.is_empty() {
            return Err(ConfigError::DocumentsWithoutHistory.into());
        }
        let has_history = history.is_some();
        let runtime = Handle::try_current().map_err(|_| StartError::Runtime)?;
        store.bind(&config.database)?;
        let streams = config
            .followed()
            .map(|(id, carries)| Ok((id.clone(), open_stream(&mut store, id, carries)?)))
            .collect::<Result<Vec<(StreamId, Opened)>, StartError>>()?;
        // A file in memory has no second reader, and a client that follows no documents needs none.
        let reader = match store.documents().map(|documents| documents.document_reader()) {
            Some(Err(error)) if !config.documents.is_empty() => return Err(error.into()),
            opened => opened.and_then(Result::ok),
        };
        let bounds = BatchBounds {
            events: config.limits.batch_events,
            bytes: config.limits.batch_bytes,
        };
        let seals = SealKeys::new(&config.seal_keys);
        let changes = Changes::new();
        let places = streams
            .iter()
            .map(|(id, opened)| (id.clone(), opened.at, opened.carries));
        let to_hear = changes.to_hear();
        let applier = Applier::start(store, handler, places.collect(), bounds, seals, changes);
        let applier = applier.map_err(StartError::Thread)?;
        let many = streams.len();
        let bounded = streams.into_iter().map(|(id, Opened { at, carries })| {
            let bounds = config.bounds_of(&id, carries, many, history.is_some());
            (id, at, bounds)
        });
        let now = Instant::now().into_std();
        let session = Session::new(Settings::of(&config), bounded.collect(), rand::random(), now);
        let (stop, stopped) = oneshot::channel();
        let (audiences, wanted) = watch::channel(Audiences::default());
        let (calls, called) = mpsc::channel(CALLS_QUEUE);
        let (told, heard) = broadcast::channel(HEARD_QUEUE);
        let (wishes, wished) = watch::channel(Wishes::default());
        let (may_serve, may_provide) = (config.serves, config.provides);
        let views = Views::default();
        let (presences, providers_online) = (views.presences.subscribe(), views.providers_online.subscribe());
        let (capabilities, assignments) = (views.capabilities.subscribe(), views.assignments.subscribe());
        let (outbox, readable) = (views.outbox.subscribe(), views.readable.subscribe());
        let status = watch::Sender::new(session.status());
        let watched = status.subscribe();
        let runner = Runner::new(config, session, applier, history, status, views, told);
        let wanted = Wanted {
            stop: stopped,
            wishes: wished,
            audiences: wanted,
            calls: called,
        };
        Ok(Self {
            status: watched,
            wishes,
            may_serve,
            may_provide,
            presences,
            providers_online,
            capabilities,
            assignments,
            outbox,
            readable,
            audiences,
            heard,
            calls,
            changes: to_hear,
            reader: reader.map(Reader::new),
            has_history,
            stop,
            runner: runtime.spawn(runner.run(wanted)),
        })
    }

    /// The client's state, to read or to watch.
    pub fn status(&self) -> watch::Receiver<Status> {
        self.status.clone()
    }

    /// Announces this session's presence, now and every five seconds while there is a connection. A client announces
    /// one presence: the latest replaces the one before. Needs a [`TokenProvider`](crate::TokenProvider) whose tokens
    /// name their session.
    pub fn presence(&self, presence: Presence) -> Result<PresenceHandle, PresenceError> {
        let handle = PresenceHandle {
            wishes: self.wishes.clone(),
            may_serve: self.may_serve,
        };
        handle.update(presence)?;
        Ok(handle)
    }

    /// The nodes of the user's sessions, and of sessions that serve one of these streams. The client begins to watch them at the
    /// first call, as it does with everything that can be watched. It goes on to watch all that it was ever asked to, and every
    /// channel has all of it. A stream that the session may not read shows nothing. The channel closes when the client has ended.
    pub fn presences(&self, streams: &[StreamId]) -> Result<watch::Receiver<Watched<Presences>>, CallError> {
        self.want(Purpose::Presences, Audience::OwnUser, streams)?;
        self.watch(Watchable::Presences);
        Ok(self.presences.clone())
    }

    /// How many keys of Nostr are bound to a node that is not offline, over all users.
    pub fn providers_online(&self) -> watch::Receiver<Watched<u64>> {
        self.watch(Watchable::ProvidersOnline);
        self.providers_online.clone()
    }

    /// What all providers say they can do.
    pub fn capabilities(&self) -> watch::Receiver<Watched<Capabilities>> {
        self.watch(Watchable::Capabilities);
        self.capabilities.clone()
    }

    /// The assignments in which the session's user takes part. With [`ClientConfig::provides`], also those that are open to
    /// all.
    pub fn assignments(&self) -> watch::Receiver<Watched<Assignments>> {
        self.audiences.send_if_modified(|audiences| {
            let own = [Some(Audience::OwnUser), self.may_provide.then_some(Audience::Providers)];
            let own = own.into_iter().flatten().collect();
            audiences.want(Purpose::Assignments, own).unwrap_or_default()
        });
        self.watch(Watchable::Assignments);
        self.assignments.clone()
    }

    /// What the world outside is to hear, and what became of it. Needs [`ClientConfig::mirrors`].
    pub fn outbox(&self) -> watch::Receiver<Watched<Outbox>> {
        self.watch(Watchable::Outbox);
        self.outbox.clone()
    }

    /// The streams that the session may read, among them those that the client does not follow, and
    /// [their topics](ReadableStreams::topics). It hears when a grant comes or goes, within about a second. A token that names
    /// no more than the streams that the client follows lets it read no others: the provider decides.
    ///
    /// ```no_run
    /// # use spacetime_sync_client::{SyncClient, Watched};
    /// # async fn example(client: SyncClient) {
    /// let mut readable = client.readable();
    /// // Once: what they are at the moment.
    /// if let Ok(seen) = readable.wait_for(Watched::is_live).await {
    ///     println!("{:?}", seen.rows.streams);
    /// }
    /// // And whenever they change, until the client has ended.
    /// while readable.changed().await.is_ok() {
    ///     let topics = readable.borrow_and_update().rows.topics();
    ///     println!("{topics:?}");
    /// }
    /// # }
    /// ```
    pub fn readable(&self) -> watch::Receiver<Watched<ReadableStreams>> {
        self.wishes
            .send_if_modified(|wishes| !std::mem::replace(&mut wishes.readable, true));
        self.readable.clone()
    }

    /// Follows one more stream. It goes on where its checkpoint in the store says, as a stream does that was followed from the
    /// start: [`Status::streams`] shows it from now on. To follow a stream that is followed already changes nothing.
    ///
    /// If the client's token does not grant the stream, the client gets another one at once, and the stream waits for that.
    /// A client follows at most 256 streams if its tokens come from a [`TokenProvider`](crate::TokenProvider), because a token
    /// holds no more, and 10,000 otherwise; or as many as it began with, if those are more.
    ///
    /// ```no_run
    /// # use spacetime_sync_client::{FollowError, StreamId, SyncClient};
    /// # async fn example(client: SyncClient, shown: StreamId, closed: StreamId) -> Result<(), FollowError> {
    /// client.follow(&shown).await?;
    /// client.follow_topic("run:42:events").await?;
    /// client.unfollow(&closed).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn follow(&self, stream_id: &StreamId) -> Result<(), FollowError> {
        let (stream_id, carries) = (stream_id.clone(), Carries::Events);
        self.change(|caller| Asked::Follow {
            stream_id,
            carries,
            caller,
        })
        .await
    }

    /// Follows one more stream as documents, as [`ClientConfig::documents`] does from the start. A stream that was followed as events
    /// before begins with its documents; one that was followed as documents and is [followed](Self::follow) as events begins with its
    /// first event. So a handler that had its events before it was followed as documents gets these once more.
    pub async fn follow_documents(&self, stream_id: &StreamId) -> Result<(), FollowError> {
        if !self.has_history {
            return Err(FollowError::NoHistory);
        }
        if self.reader.is_none() {
            return Err(FollowError::Store(StoreError::NoDocuments));
        }
        let stream_id = stream_id.clone();
        let carries = Carries::Documents { are_held: false };
        self.change(|caller| Asked::Follow {
            stream_id,
            carries,
            caller,
        })
        .await
    }

    /// Follows the stream that carries a topic [as documents](Self::follow_documents).
    pub async fn follow_documents_of_topic(&self, topic: &str) -> Result<(), FollowError> {
        self.follow_documents(&stream_of(topic)?).await
    }

    /// The newest version of each document of a stream that is followed as documents, decoded, and word of every change. It shows
    /// what the store holds, also while there is no connection: [`Status::streams`] says how fresh that is. Of a stream that is not
    /// followed as documents it shows what the store holds from before, and nothing changes until it is.
    ///
    /// ```no_run
    /// # use spacetime_sync_client::{DocumentsError, StreamId, SyncClient};
    /// #[derive(serde::Deserialize)]
    /// struct RunSummary {
    ///     state: String,
    /// }
    /// # async fn example(client: SyncClient, stream: StreamId) -> Result<(), DocumentsError> {
    /// let mut runs = client.documents::<RunSummary>(&stream)?;
    /// loop {
    ///     for run in runs.all()? {
    ///         println!("{}: {:?}", run.key, run.content.decoded().map(|run| &run.state));
    ///     }
    ///     if runs.changed().await.is_none() {
    ///         return Ok(());
    ///     }
    /// }
    /// # }
    /// ```
    pub fn documents<T: DeserializeOwned>(&self, stream_id: &StreamId) -> Result<Documents<T>, DocumentsError> {
        let reader = self.reader.clone().ok_or(DocumentsError::NoDocuments)?;
        Ok(Documents::new(reader, self.changes.documents(stream_id.clone())))
    }

    /// The events of a stream, decoded, from now on, each once it is applied and saved. For what must not be missed, whatever happens to
    /// the application, use the [`Handler`](crate::Handler): it has each event exactly once in effect, and this has those that are
    /// applied while it is listened to.
    ///
    /// ```no_run
    /// # use spacetime_sync_client::{StreamId, SyncClient};
    /// #[derive(serde::Deserialize)]
    /// struct RunEvent {
    ///     text: String,
    /// }
    /// # async fn example(client: SyncClient, stream: StreamId) {
    /// let mut events = client.events::<RunEvent>(&stream);
    /// while let Some(next) = events.next().await {
    ///     match next.map(|told| told.value) {
    ///         Ok(Ok(event)) => println!("{}", event.text),
    ///         Ok(Err(not_decoded)) => println!("{not_decoded}"),
    ///         Err(missed) => println!("{missed}"),
    ///     }
    /// }
    /// # }
    /// ```
    pub fn events<T: DeserializeOwned>(&self, stream_id: &StreamId) -> Events<T> {
        Events::new(self.changes.events(stream_id.clone()))
    }

    /// Follows a stream no longer. Once this returns, the handler hears nothing more of it, unless it is followed again. Its
    /// checkpoint and what the handler has made of it stay. A client that follows nothing goes on, and is idle. To unfollow a stream
    /// that is not followed changes nothing.
    pub async fn unfollow(&self, stream_id: &StreamId) -> Result<(), FollowError> {
        let stream_id = stream_id.clone();
        self.change(|caller| Asked::Unfollow { stream_id, caller }).await
    }

    /// [Follows](Self::follow) the stream that carries a topic.
    pub async fn follow_topic(&self, topic: &str) -> Result<(), FollowError> {
        self.follow(&stream_of(topic)?).await
    }

    /// [Unfollows](Self::unfollow) the stream that carries a topic.
    pub async fn unfollow_topic(&self, topic: &str) -> Result<(), FollowError> {
        self.unfollow(&stream_of(topic)?).await
    }

    async fn change(
        &self,
        asked: impl FnOnce(oneshot::Sender<Result<(), FollowError>>) -> Asked,
    ) -> Result<(), FollowError> {
        let (caller, reply) = oneshot::channel();
        let sent = self.calls.send(asked(caller)).await;
        sent.map_err(|_| FollowError::Stopped)?;
        reply.await.unwrap_or(Err(FollowError::Stopped))
    }

    fn watch(&self, watchable: Watchable) {
        self.wishes.send_if_modified(|wishes| wishes.watches.insert(watchable));
    }

    /// Hears what is told in passing, from now on: to the session's own user, and to the readers of these streams, which the
    /// client need not follow. The client goes on to hear all that it was ever asked to, and every [`Signals`] has all of it.
    pub fn signals(&self, streams: &[StreamId]) -> Result<Signals, CallError> {
        let heard = self.heard.resubscribe();
        self.want(Purpose::Signals, Audience::OwnUser, streams)?;
        // Even if they are the same: a new listener is told which of them the client hears already.
        self.audiences.send_modify(|audiences| audiences.listeners += 1);
        Ok(Signals { heard })
    }

    /// Wants this of an audience and of the readers of these streams.
    fn want(&self, purpose: Purpose, audience: Audience, streams: &[StreamId]) -> Result<(), CallError> {
        let streams = streams.iter().cloned().map(Audience::Stream);
        let audiences = std::iter::once(audience).chain(streams).collect();
        let mut added = Ok(false);
        self.audiences.send_if_modified(|wanted| {
            added = wanted.want(purpose, audiences);
            matches!(added, Ok(true))
        });
        added.map(drop)
    }

    /// Tells others something in passing. `Ok` means that the module has told whoever listens, and nothing about who did.
    pub async fn signal(&self, signal: Signal) -> Result<(), CallError> {
        signal.check()?;
        self.call(Call::Signal(signal), None).await.map(drop)
    }

    /// Publishes what a provider can do, or withdraws it. It is repeated until it has an answer, for at most so long.
    ///
    /// This call and those that refer to it are done once, however often they are repeated, and a lost connection does not end them.
    /// The errors say what is known: after [`CallError::NotConnected`] and [`CallError::Stopped`] it was not done; after
    /// [`CallError::Lost`] and [`CallError::Failed`] it may have been, and the same call again says so.
    /// [`CallError::Refused`] is about the last attempt. If an answer was lost before, and the refusal is about the session
    /// and not about the call, an earlier attempt may have been done. To drop the future does not withdraw the call.
    pub async fn publish_capability(&self, capability: Capability, within: Duration) -> Result<(), CallError> {
        capability.check()?;
        self.call(Call::Publish(capability), Some(within)).await.map(drop)
    }

    /// Opens an assignment. See [`publish_capability`](Self::publish_capability) for how it is repeated.
    pub async fn open_assignment(&self, opening: OpenAssignment, within: Duration) -> Result<(), CallError> {
        opening.check()?;
        self.call(Call::Open(opening), Some(within)).await.map(drop)
    }

    /// Changes an assignment. If somebody else was faster, it is refused with
    /// [`RefusalCode::AssignmentConflict`](crate::RefusalCode::AssignmentConflict), which names both states and who has it. See
    /// [`publish_capability`](Self::publish_capability) for how it is repeated.
    ///
    /// The module knows an assignment's newest 16 changes by their names. If so many others were made while this one was
    /// repeated, it is refused as if it was another one.
    pub async fn change_assignment(&self, change: ChangeAssignment, within: Duration) -> Result<(), CallError> {
        change.check()?;
        self.call(Call::Change(change), Some(within)).await.map(drop)
    }

    /// Puts an event into the outbox. Needs [`ClientConfig::mirrors`]. See [`publish_capability`](Self::publish_capability) for how
    /// it is repeated.
    pub async fn enqueue_event(&self, event: OutboxEvent, within: Duration) -> Result<(), CallError> {
        event.check()?;
        self.call(Call::Enqueue(event), Some(within)).await.map(drop)
    }

    /// Says what became of an event of the outbox. Needs [`ClientConfig::mirrors`]. See
    /// [`publish_capability`](Self::publish_capability) for how it is repeated.
    pub async fn mark_event(&self, outcome: OutboxOutcome, within: Duration) -> Result<(), CallError> {
        outcome.check()?;
        self.call(Call::Mark(outcome), Some(within)).await.map(drop)
    }

    /// Asks for a challenge by which a key of Nostr is bound to a node of this session. The session must have announced the
    /// node by [`presence`](Self::presence). The application signs [`NostrChallenge::to_sign`] with the key.
    pub async fn nostr_challenge(&self, node_id: &str) -> Result<NostrChallenge, CallError> {
        let node_id = Label::new(node_id).map_err(|error| CallError::Invalid(format!("node_id: {error}")))?;
        let call = Call::Challenge {
            node_id: node_id.as_str().to_owned(),
        };
        let text = self.call(call, None).await?;
        let text = text.ok_or_else(|| CallError::Failed("no challenge".to_owned()))?;
        Ok(NostrChallenge { node_id, text })
    }

    /// Binds a key to the challenge's node. It ends the key's binding to any other node, and that of any other key to this one.
    /// After [`CallError::Lost`] presences show whether it was done; a second attempt needs another challenge.
    pub async fn bind_nostr_key(
        &self,
        challenge: NostrChallenge,
        key: NostrKey,
        signature: NostrSignature,
    ) -> Result<(), CallError> {
        let call = Call::Bind {
            node_id: challenge.node_id.as_str().to_owned(),
            challenge: challenge.text,
            key,
            signature,
        };
        self.call(call, None).await.map(drop)
    }

    async fn call(&self, call: Call, within: Option<Duration>) -> Result<Option<String>, CallError> {
        let (caller, reply) = oneshot::channel();
        let asked = Asked::Call { call, within, caller };
        self.calls.send(asked).await.map_err(|_| CallError::Stopped)?;
        reply.await.unwrap_or_else(|_| {
            // Either the client had ended before it heard of the call, or its task has failed.
            let has_ended = matches!(self.status.borrow().phase, Phase::Stopped { .. });
            Err(if has_ended { CallError::Stopped } else { CallError::Lost })
        })
    }

    /// Finishes the current batch, tells the module how far each stream got and that the session leaves, and ends.
    pub async fn stop(self) -> Status {
        // A client that has stopped by itself no longer listens.
        let _ = self.stop.send(());
        // A panic of the task shows in the status.
        let _ = self.runner.await;
        last_status(self.status).await
    }

    /// Waits until the client has stopped, by itself or by a failure.
    pub async fn stopped(&self) -> Status {
        last_status(self.status.clone()).await
    }
}

fn stream_of(topic: &str) -> Result<StreamId, FollowError> {
    Topic::new(topic).stream_id().map_err(|invalid| FollowError::Topic {
        topic: topic.to_owned(),
        invalid,
    })
}

async fn last_status(mut status: watch::Receiver<Status>) -> Status {
    let stopped = status
        .wait_for(|status| matches!(status.phase, Phase::Stopped { .. }))
        .await
        .map(|status| status.clone());
    if let Ok(status) = stopped {
        return status;
    }
    Status {
        phase: Phase::Stopped {
            reason: StopReason::Defect,
        },
        ..status.borrow().clone()
    }
}
