//! Decides which bridge leads. Two leaders at once would be safe, but would do all work twice.

use std::panic::resume_unwind;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{ConnectOptions, Connection};
use tokio::sync::oneshot;
use tokio::task::{JoinError, JoinHandle};
use tokio::time::{sleep, timeout};

use super::connections::CALL_LIMIT;
use super::error::AuthorityError;

/// A session of the server that held the lead. The server reuses process ids, so the start belongs to the name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LeadSession {
    pid: i32,
    started: String,
}

/// Key of the advisory lock, which each database has for itself: "sync" and "lead" in ASCII.
const LOCK: i64 = 0x7379_6e63_6c65_6164;
const PING_EVERY: Duration = Duration::from_millis(500);
const PING_LIMIT: Duration = Duration::from_secs(5);

/// The lead, held for as long as this value and its connection live.
#[derive(Debug)]
pub struct Leadership {
    /// Owns the connection, and ends when the connection is gone. It is a task of its own, because a caller that waits for
    /// the loss beside other things cancels that wait all the time, and that must not restart a ping.
    keeper: JoinHandle<()>,
    /// Dropping it gives the lead up.
    held: oneshot::Sender<()>,
}

/// One who would lead. All attempts use one connection for as long as it lives, so that a standby costs the server one
/// session and no more.
#[derive(Debug)]
pub struct Candidate {
    server: String,
    options: PgConnectOptions,
    /// The session in which this process had the lead until it stopped to answer.
    lost: Arc<Mutex<Option<LeadSession>>>,
    connection: Option<PgConnection>,
}

impl Candidate {
    pub(super) fn new(server: String, options: PgConnectOptions, lost: Arc<Mutex<Option<LeadSession>>>) -> Self {
        Self {
            server,
            options,
            lost,
            connection: None,
        }
    }

    /// Takes the lead if no other bridge has it. The lead goes with the connection.
    pub async fn try_lead(&mut self) -> Result<Option<Leadership>, AuthorityError> {
        // A connection that an attempt leaves without an answer is given up with it.
        let connection = self.connection.take();
        let asked = timeout(CALL_LIMIT, self.ask(connection)).await;
        asked.unwrap_or_else(|_| {
            Err(AuthorityError::TimedOut {
                server: self.server.clone(),
                what: "try_lead",
                limit: CALL_LIMIT,
            })
        })
    }

    async fn ask(&mut self, connection: Option<PgConnection>) -> Result<Option<Leadership>, AuthorityError> {
        let driver = |error| AuthorityError::from_driver(&self.server, error);
        let mut connection = match connection {
            Some(connection) => connection,
            None => self.options.connect().await.map_err(driver)?,
        };
        let taken: bool = sqlx::query_scalar("select pg_try_advisory_lock($1)")
            .bind(LOCK)
            .fetch_one(&mut connection)
            .await
            .map_err(driver)?;
        if taken {
            let (pid, started) =
                sqlx::query_as("select pid, backend_start::text from pg_stat_activity where pid = pg_backend_pid()")
                    .fetch_one(&mut connection)
                    .await
                    .map_err(driver)?;
            let session = LeadSession { pid, started };
            let (held, given_up) = oneshot::channel();
            let keeper = tokio::spawn(keep(connection, session, given_up, self.lost.clone()));
            return Ok(Some(Leadership { keeper, held }));
        }
        // The session that this process lost may hold the lead still, because the server has not noticed that its client
        // is gone: it is ended, so that nobody waits until the server does.
        let ghost = lock(&self.lost).clone();
        if let Some(LeadSession { pid, started }) = ghost {
            let ended: Option<bool> = sqlx::query_scalar(
                "select pg_terminate_backend(pid) from pg_stat_activity
                 where pid = $1 and backend_start = $2::text::timestamptz",
            )
            .bind(pid)
            .bind(started)
            .fetch_optional(&mut connection)
            .await
            .map_err(driver)?;
            *lock(&self.lost) = None;
            if ended == Some(true) {
                tracing::warn!(
                    pid,
                    "the server still held the lead for a connection that is gone; ended that session"
                );
            }
        }
        self.connection = Some(connection);
        Ok(None)
    }
}

impl Leadership {
    /// Resolves within about five seconds after the connection that holds the lead is gone. It may be cancelled and called
    /// again.
    pub async fn lost(&mut self) {
        if !self.keeper.is_finished() {
            pass_on_panic((&mut self.keeper).await);
        }
    }

    /// Gives the lead up at once, so that a standby does not wait for the server to notice.
    pub async fn release(self) {
        drop(self.held);
        pass_on_panic(self.keeper.await);
    }
}

/// Continues a panic of the keeper in the caller.
fn pass_on_panic(ended: Result<(), JoinError>) {
    if let Err(Ok(panic)) = ended.map_err(JoinError::try_into_panic) {
        resume_unwind(panic);
    }
}

fn lock(lost: &Mutex<Option<LeadSession>>) -> MutexGuard<'_, Option<LeadSession>> {
    // Nothing panics while it is locked.
    lost.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn keep(
    mut connection: PgConnection,
    session: LeadSession,
    given_up: oneshot::Receiver<()>,
    lost: Arc<Mutex<Option<LeadSession>>>,
) {
    tokio::select! {
        () = gone(&mut connection) => {
            *lock(&lost) = Some(session);
            return;
        }
        _ = given_up => {}
    }
    if let Err(error) = connection.close().await {
        tracing::debug!(%error, "the lead was lost before it was given up");
    }
}

async fn gone(connection: &mut PgConnection) {
    loop {
        sleep(PING_EVERY).await;
        match timeout(PING_LIMIT, connection.ping()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!(%error, "the connection that holds the lead is gone");
                return;
            }
            Err(_) => {
                tracing::warn!(limit = ?PING_LIMIT, "the connection that holds the lead does not answer");
                return;
            }
        }
    }
}
