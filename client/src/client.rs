//! The handle that an application holds.

use spacetime_sync_proto::{Label, NostrKey, NostrSignature, Position, StreamId, limit};
use tokio::runtime::Handle;
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::config::ClientConfig;
use crate::error::{CallError, PresenceError, StartError};
use crate::nostr::NostrChallenge;
use crate::presence::{Presence, PresenceHandle, PresenceWishes, Presences};
use crate::runner::{Asked, Runner, Wanted};
use crate::seal::SealKeys;
use crate::session::status::{Phase, Status, StopReason};
use crate::session::{Call, Session, Settings};
use crate::signal::{Audience, HEARD_QUEUE, Heard, Signal, Signals};
use crate::store::CheckpointStore;
use crate::store::applier::{Applier, BatchBounds, Handler};
use crate::talk::history::Source;

/// How many calls may wait for the client's task.
const CALLS_QUEUE: usize = 16;

/// Follows streams until it is stopped or dropped. It connects, catches up, goes live and recovers from failures by
/// itself; the application watches its [`Status`].
#[derive(Debug)]
pub struct SyncClient {
    status: watch::Receiver<Status>,
    wishes: watch::Sender<PresenceWishes>,
    may_serve: bool,
    presences: watch::Sender<Presences>,
    audiences: watch::Sender<Vec<Audience>>,
    heard: broadcast::Receiver<Heard>,
    calls: mpsc::Sender<Asked>,
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
        let runtime = Handle::try_current().map_err(|_| StartError::Runtime)?;
        store.bind(&config.database)?;
        let streams = config
            .streams
            .iter()
            .map(|id| Ok((id.clone(), store.load(id)?.unwrap_or_else(|| Position::start(id)))))
            .collect::<Result<Vec<(StreamId, Position)>, StartError>>()?;
        let bounds = BatchBounds {
            events: config.limits.batch_events,
            bytes: config.limits.batch_bytes,
        };
        let seals = SealKeys::new(&config.seal_keys);
        let applier = Applier::start(store, handler, streams.clone(), bounds, seals).map_err(StartError::Thread)?;
        let bounded = streams.into_iter().map(|(id, applied)| {
            let bounds = config.bounds_of(&id, history.is_some());
            (id, applied, bounds)
        });
        let now = Instant::now().into_std();
        let session = Session::new(Settings::of(&config), bounded.collect(), rand::random(), now);
        let (stop, stopped) = oneshot::channel();
        let (audiences, wanted) = watch::channel(Vec::new());
        let (calls, called) = mpsc::channel(CALLS_QUEUE);
        let (told, heard) = broadcast::channel(HEARD_QUEUE);
        let (wishes, wished) = watch::channel(PresenceWishes::default());
        let may_serve = config.serves;
        let presences = watch::Sender::new(Presences::new());
        let status = watch::Sender::new(session.status());
        let watched = status.subscribe();
        let runner = Runner::new(config, session, applier, history, status, presences.clone(), told);
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
            presences,
            audiences,
            heard,
            calls,
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

    /// The latest known presence of others: sessions of the same user, and sessions that serve a stream which this
    /// session may read. The client begins to watch them at the first call.
    pub fn presences(&self) -> watch::Receiver<Presences> {
        self.wishes
            .send_if_modified(|wishes| !std::mem::replace(&mut wishes.watch, true));
        self.presences.subscribe()
    }

    /// Hears what is told in passing, from now on: to the session's own user, and to the readers of these streams, which the
    /// client need not follow. The client goes on to hear all that it was ever asked to, and every [`Signals`] has all of it.
    pub fn signals(&self, streams: &[StreamId]) -> Result<Signals, CallError> {
        let heard = self.heard.resubscribe();
        let streams = streams.iter().cloned().map(Audience::Stream);
        let mut accepted = Ok(());
        self.audiences.send_if_modified(|audiences| {
            let mut wanted = audiences.clone();
            for audience in std::iter::once(Audience::OwnUser).chain(streams) {
                if !wanted.contains(&audience) {
                    wanted.push(audience);
                }
            }
            if wanted.len() > limit::HEARD_STREAMS + 1 {
                let (found, most) = (wanted.len() - 1, limit::HEARD_STREAMS);
                accepted = Err(CallError::Invalid(format!("{found} streams, at most {most} are heard")));
                return false;
            }
            *audiences = wanted;
            // Even if they are the same: a new listener is told which of them the client hears already.
            true
        });
        accepted.map(|()| Signals { heard })
    }

    /// Tells others something in passing. `Ok` means that the module has told whoever listens, and nothing about who did.
    pub async fn signal(&self, signal: Signal) -> Result<(), CallError> {
        signal.check()?;
        self.call(Call::Signal(signal)).await.map(drop)
    }

    /// Asks for a challenge by which a key of Nostr is bound to a node of this session. The session must have announced the
    /// node by [`presence`](Self::presence). The application signs [`NostrChallenge::to_sign`] with the key.
    pub async fn nostr_challenge(&self, node_id: &str) -> Result<NostrChallenge, CallError> {
        let node_id = Label::new(node_id).map_err(|error| CallError::Invalid(format!("node_id: {error}")))?;
        let call = Call::Challenge {
            node_id: node_id.as_str().to_owned(),
        };
        let text = self.call(call).await?;
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
        self.call(call).await.map(drop)
    }

    async fn call(&self, call: Call) -> Result<Option<String>, CallError> {
        let (caller, reply) = oneshot::channel();
        self.calls.send((call, caller)).await.map_err(|_| CallError::Stopped)?;
        reply.await.unwrap_or(Err(CallError::Stopped))
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
