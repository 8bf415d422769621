//! The handle that an application holds.

use spacetime_sync_proto::{Position, StreamId};
use tokio::runtime::Handle;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::config::ClientConfig;
use crate::error::{PresenceError, StartError};
use crate::presence::{Presence, PresenceHandle, PresenceWishes, Presences};
use crate::runner::Runner;
use crate::seal::SealKeys;
use crate::session::status::{Phase, Status, StopReason};
use crate::session::{Session, Settings};
use crate::store::CheckpointStore;
use crate::store::applier::{Applier, BatchBounds, Handler};
use crate::talk::history::Source;

/// Follows streams until it is stopped or dropped. It connects, catches up, goes live and recovers from failures by
/// itself; the application watches its [`Status`].
#[derive(Debug)]
pub struct SyncClient {
    status: watch::Receiver<Status>,
    wishes: watch::Sender<PresenceWishes>,
    may_serve: bool,
    presences: watch::Sender<Presences>,
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
        let (wishes, wished) = watch::channel(PresenceWishes::default());
        let may_serve = config.serves;
        let presences = watch::Sender::new(Presences::new());
        let status = watch::Sender::new(session.status());
        let watched = status.subscribe();
        let runner = Runner::new(config, session, applier, history, status, presences.clone());
        Ok(Self {
            status: watched,
            wishes,
            may_serve,
            presences,
            stop,
            runner: runtime.spawn(runner.run(stopped, wished)),
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
