//! The live link: one WebSocket that appends frames with confirmed reads, so that an answer means durable.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use spacetime_sync_bindings::{
    DbConnection, HeadReport, RemoteProcedures, RemoteReducers, append_sync_events, read_heads,
};
use spacetime_sync_proto::access::Compatibility;
use spacetime_sync_proto::{
    ChainHash, DatabasePin, FrameRow, Position, Refusal, RefusalCode, Seq, StreamId, error_text,
};
use spacetime_sync_transport::Transport;
use spacetimedb_sdk::__codegen::InternalError;
use spacetimedb_sdk::DbContext;
use tokio::sync::oneshot;

use super::admin::Admin;
use super::handshake::{self, LinkRuntime};
use super::pin;
use super::tokens::TokenSource;
use super::{StdbError, chain_from_column, chain_to_column};

/// How long the answer to a call may take, for calls other than appends.
const ANSWER_LIMIT: Duration = Duration::from_secs(20);

/// How often a waiting call checks whether the connection has ended.
const LOOK: Duration = Duration::from_millis(50);
/// How long to wait after a failed renewal before the next attempt.
const RENEW_PAUSE: Duration = Duration::from_secs(5);

/// Where to connect, and as whom.
#[derive(Debug, Clone)]
pub struct Target {
    /// `http://…`
    pub uri: String,
    /// How to reach the server.
    pub transport: Transport,
    /// The name of the database, or its identity.
    pub database: String,
    /// Which database it must be. `None`: whichever has the name.
    pub pin: Option<DatabasePin>,
    /// The bridge's credential.
    pub tokens: TokenSource,
    /// Which clients the module should accept. `None` if the bridge does not issue tokens.
    pub compatibility: Option<Compatibility>,
    /// How long connecting may take.
    pub deadline: Duration,
}

impl Target {
    /// What to ask the server for: the identity, which no other database can have while this one is there.
    pub fn address(&self) -> &str {
        self.pin
            .as_ref()
            .map_or(&self.database, |pin| pin.database_identity.as_str())
    }

    /// Whether the database is the right one.
    async fn check(&self, admin: &Admin) -> Result<(), StdbError> {
        match &self.pin {
            Some(pinned) => pin::check(pinned, admin, &self.database).await,
            None => Ok(()),
        }
    }
}

/// The result of an append.
#[derive(Debug)]
pub enum Appended {
    /// SpacetimeDB holds the frame durably.
    Durable,
    /// The module refused the frame.
    Refused(Refusal),
    /// The call failed in another way.
    Failed(String),
}

/// Called at least once with the reason when the link has ended. Appends without an answer may or may not have arrived.
pub type OnClosed = Arc<dyn Fn(String) + Send + Sync>;

/// A link that is up. Dropping it closes it.
pub struct Link {
    target: Target,
    connection: Arc<DbConnection>,
    on_closed: OnClosed,
    /// The task that reads the server's messages until the connection ends.
    reader: tokio::task::JoinHandle<()>,
    renewal: Option<tokio::task::JoinHandle<()>>,
    /// The runtime of the connection, which ends with the link.
    _runtime: LinkRuntime,
}

impl Link {
    /// Checks that it is the right database and its contract, connects, and makes sure that the module accepts this identity
    /// as the bridge.
    pub async fn connect(target: Target, on_closed: OnClosed) -> Result<Self, StdbError> {
        let deadline = target.deadline;
        let uri = target.uri.clone();
        tokio::time::timeout(deadline, Self::connect_unbounded(target, on_closed))
            .await
            .unwrap_or(Err(StdbError::TimedOut {
                uri,
                what: "connecting",
            }))
    }

    async fn connect_unbounded(target: Target, on_closed: OnClosed) -> Result<Self, StdbError> {
        let token = target.tokens.token()?;
        let admin = Admin::over(&target.transport, &target.uri, target.address(), token.clone());
        target.check(&admin).await?;
        admin.check_contract().await?;
        let (connected, is_connected) = oneshot::channel();
        let (connection, runtime, address) = handshake::open(&target, &token, move || {
            let _ = connected.send(());
        })
        .await?;
        if let Some(port) = port_of(&address)
            && let Err(error) = super::nodelay::on_connections_to(port)
        {
            tracing::debug!(%error, "the kernel may delay small messages to SpacetimeDB");
        }
        let connection = Arc::new(connection);
        let read = {
            let (connection, on_closed) = (connection.clone(), on_closed.clone());
            async move {
                // The SDK panics when a call meets a connection that has just broken.
                let why = match AssertUnwindSafe(connection.run_async()).catch_unwind().await {
                    Ok(Ok(())) => "the server closed the connection".to_owned(),
                    Ok(Err(error)) => error.to_string(),
                    Err(_) => "the connection broke while a call was being sent".to_owned(),
                };
                on_closed(why);
            }
        };
        // Runs on the runtime of the socket. On another one, each answer would pass between threads once more.
        let reader = match runtime.handle() {
            Some(threads) => threads.spawn(read),
            None => tokio::spawn(read),
        };
        let renewal = target
            .tokens
            .renew_after()
            .map(|every| tokio::spawn(renew(admin.clone(), target.tokens.clone(), every)));
        let link = Self {
            target,
            connection,
            on_closed,
            reader,
            _runtime: runtime,
            renewal,
        };
        is_connected
            .await
            .map_err(|_| link.unavailable("closed during the handshake"))?;
        // Once more, of the database that this connection leads to. To put another one with the same identity in its place,
        // somebody must first delete it, and that ends its connections.
        link.target.check(&admin).await?;
        link.may_append(&admin).await?;
        if let Some(compatibility) = &link.target.compatibility {
            admin.set_compatibility(compatibility).await?;
        }
        Ok(link)
    }

    /// Ends the connection, even while others hold the link.
    pub fn close(&self) {
        // After the SDK has panicked its locks are poisoned, and it panics here too. Then there is nothing left to
        // close.
        let _ = catch_unwind(AssertUnwindSafe(|| self.connection.disconnect()));
        self.reader.abort();
        if let Some(renewal) = &self.renewal {
            renewal.abort();
        }
    }

    /// Whether the connection has ended.
    pub fn is_closed(&self) -> bool {
        self.reader.is_finished()
    }

    /// Whether the module accepts this identity as the bridge. Only the owner and the bridge may read heads, and the
    /// server says who the owner is. The module logs every refusal as an error, so a valid bridge must not cause one.
    async fn may_append(&self, admin: &Admin) -> Result<(), StdbError> {
        match self.heads(&[]).await {
            Ok(_) => {
                let owner = admin.pin().await?.owner_identity;
                let ours = self.connection.try_identity().map(|ours| ours.to_hex().to_string());
                if ours.is_some_and(|ours| ours != owner.as_str()) {
                    return Ok(());
                }
            }
            Err(StdbError::Refused(_)) => {}
            Err(error) => return Err(error),
        }
        self.ask_to_append().await
    }

    /// Sends an append that can never succeed. The module tells a caller who may append what is wrong with it, and any
    /// other caller that it may not append.
    async fn ask_to_append(&self) -> Result<(), StdbError> {
        let (answer, answered) = oneshot::channel();
        let no_chain = chain_to_column(&ChainHash::from_bytes([0; 32]));
        let reducers = &self.connection.reducers;
        let sent = reducers.append_sync_events_then(
            String::new(),
            0,
            0,
            no_chain,
            no_chain,
            0,
            Vec::new(),
            move |_, result| {
                let _ = answer.send(result.map_err(|error| error.to_string()));
            },
        );
        sent.map_err(|error| self.unavailable(&error.to_string()))?;
        let result = answered
            .await
            .map_err(|_| self.unavailable("closed before it answered"))?;
        match result.map(|outcome| outcome.map_err(|text| Refusal::from_wire(&text).ok_or(text))) {
            Ok(Err(Ok(refusal))) if refusal.code == RefusalCode::InvalidArgument => Ok(()),
            Ok(Err(Ok(refusal))) => Err(StdbError::Refused(refusal)),
            other => Err(StdbError::Unexpected {
                uri: self.target.uri.clone(),
                what: "an append of nothing",
                message: format!("{other:?}"),
            }),
        }
    }

    /// Sends a frame, with the chain hash and the time of its last event. Calls `done` with the result, or never if the
    /// link breaks.
    pub fn append(
        &self,
        stream_id: &StreamId,
        frame: FrameRow,
        last_chain: &ChainHash,
        last_at_us: i64,
        done: impl FnOnce(Appended) + Send + 'static,
    ) {
        let sent = self.connection.reducers.append_sync_events_then(
            stream_id.as_str().to_owned(),
            frame.first_seq.get(),
            frame.last_seq.get(),
            chain_to_column(&frame.base_chain),
            chain_to_column(last_chain),
            last_at_us,
            frame.bytes.into(),
            move |_, result| {
                done(match result {
                    Ok(Ok(())) => Appended::Durable,
                    Ok(Err(text)) => match Refusal::from_wire(&text) {
                        Some(refusal) => Appended::Refused(refusal),
                        None => Appended::Failed(format!("the module's answer is not a refusal: {text}")),
                    },
                    Err(error) => Appended::Failed(error.to_string()),
                });
            },
        );
        if let Err(error) = sent {
            (self.on_closed)(error.to_string());
        }
    }

    /// The durable heads of streams in SpacetimeDB, in the order asked for.
    pub async fn heads(&self, stream_ids: &[StreamId]) -> Result<Vec<Position>, StdbError> {
        let (answer, answered) = oneshot::channel();
        let names = stream_ids
            .iter()
            .map(|stream_id| stream_id.as_str().to_owned())
            .collect();
        self.connection
            .procedures
            .read_heads_then(names, move |_, result| drop(answer.send(result)));
        let reports = self.outcome("read_heads", answered).await?;
        if reports.len() != stream_ids.len() {
            let message = format!("{} heads for {} streams", reports.len(), stream_ids.len());
            return Err(self.unexpected("read_heads", message));
        }
        let heads = stream_ids.iter().zip(&reports);
        Ok(heads.map(|(stream_id, report)| head_of(stream_id, report)).collect())
    }

    /// Resolves when the connection has ended.
    async fn closed(&self) {
        while !self.is_closed() {
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Waits for the answer to a call.
    pub(super) async fn outcome<T>(
        &self,
        what: &'static str,
        answered: oneshot::Receiver<Result<Result<T, String>, InternalError>>,
    ) -> Result<T, StdbError> {
        // The SDK never calls the callbacks of a connection that has ended.
        let answer = async {
            tokio::select! {
                answer = answered => answer.ok(),
                () = self.closed() => None,
            }
        };
        let outcome = tokio::time::timeout(ANSWER_LIMIT, answer)
            .await
            .map_err(|_| StdbError::TimedOut {
                uri: self.target.uri.clone(),
                what,
            })?
            .ok_or_else(|| self.unavailable("closed before it answered"))?;
        match outcome {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(text)) => Err(match Refusal::from_wire(&text) {
                Some(refusal) => StdbError::Refused(refusal),
                None => self.unexpected(what, text),
            }),
            Err(error) => Err(self.unexpected(what, error.to_string())),
        }
    }

    pub(super) fn reducers(&self) -> &RemoteReducers {
        &self.connection.reducers
    }

    pub(super) fn procedures(&self) -> &RemoteProcedures {
        &self.connection.procedures
    }

    pub(super) fn unexpected(&self, what: &'static str, message: String) -> StdbError {
        StdbError::Unexpected {
            uri: self.target.uri.clone(),
            what,
            message,
        }
    }

    pub(super) fn unavailable(&self, message: &str) -> StdbError {
        StdbError::Unavailable {
            uri: self.target.uri.clone(),
            message: message.to_owned(),
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.close();
    }
}

/// The head of a stream, as the module reports it.
pub(super) fn head_of(stream_id: &StreamId, report: &HeadReport) -> Position {
    let seq = Seq::new(report.head_seq).unwrap_or(Seq::MAX);
    let chain = if seq == Seq::ZERO {
        ChainHash::genesis(stream_id)
    } else {
        chain_from_column(report.head_chain)
    };
    Position { seq, chain }
}

fn port_of(uri: &str) -> Option<u16> {
    reqwest::Url::parse(uri).ok()?.port_or_known_default()
}

/// Shows the module a fresh token over HTTP, again and again. The module goes by the newest token of this identity,
/// whichever connection it came on, so the link itself continues.
async fn renew(admin: Admin, tokens: TokenSource, every: Duration) {
    loop {
        tokio::time::sleep(every).await;
        loop {
            let renewed = match tokens.token() {
                Ok(token) => admin.with_token(token).check_contract().await.map(drop),
                Err(error) => Err(error),
            };
            match renewed {
                Ok(()) => break,
                Err(error) => {
                    tracing::warn!(
                        error = error_text(&error),
                        "cannot renew the bridge's token, trying again"
                    );
                    tokio::time::sleep(RENEW_PAUSE.min(every)).await;
                }
            }
        }
    }
}
