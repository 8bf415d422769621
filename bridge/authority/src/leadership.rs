//! Decides which bridge leads, and which mirror. Two leaders at once would be safe, but would do all the work twice.
//!
//! A lead is a lock that only one function can keep, so only a role with the bridge's or the mirror's duty can have it
//! (migrations 5 and 14). The transaction that took it stays open as long as the bridge leads. It writes nothing and has no
//! snapshot, so it keeps vacuum from nothing.

use std::panic::resume_unwind;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{ConnectOptions, Connection, Executor};
use tokio::sync::oneshot;
use tokio::task::{JoinError, JoinHandle};
use tokio::time::{sleep, timeout};

use super::connections::CALL_LIMIT;
use super::error::AuthorityError;

/// What there is one leader of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lead {
    /// Bridges.
    Bridge,
    /// Mirrors.
    Mirror,
}

impl Lead {
    /// Takes it, if nobody has it.
    fn take(self) -> &'static str {
        match self {
            Self::Bridge => "select runtime.sync_take_lead()",
            Self::Mirror => "select runtime.sync_take_mirror_lead()",
        }
    }
}

/// The server's session that held the lead. The server reuses process ids, so only pid and start time together identify it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LeadSession {
    pid: i32,
    started: String,
}

/// Settings by which a server would end the transaction that holds the lead. The second one exists since Postgres 17.
const KEEP_OPEN: &str = "
    select set_config(name, '0', true) from pg_settings
    where name in ('idle_in_transaction_session_timeout', 'transaction_timeout')";
const PING_EVERY: Duration = Duration::from_millis(500);
const PING_LIMIT: Duration = Duration::from_secs(5);

/// The lead, held for as long as this value and its connection live.
#[derive(Debug)]
pub struct Leadership {
    /// Owns the connection, and ends when the connection is lost. It is a task of its own, because a caller in a `select!`
    /// often cancels its wait, and that must not interrupt a ping.
    keeper: JoinHandle<()>,
    /// Dropping this releases the lead.
    held: oneshot::Sender<()>,
}

/// A bridge or a mirror that asks for the lead. All attempts use one connection while it lives, so that a standby costs the server only
/// one session.
#[derive(Debug)]
pub struct Candidate {
    lead: Lead,
    server: String,
    options: PgConnectOptions,
    /// The session in which this process held the lead until the session stopped answering.
    lost: Arc<Mutex<Option<LeadSession>>>,
    connection: Option<PgConnection>,
}

impl Candidate {
    pub(super) fn new(
        lead: Lead,
        server: String,
        options: PgConnectOptions,
        lost: Arc<Mutex<Option<LeadSession>>>,
    ) -> Self {
        Self {
            lead,
            server,
            options,
            lost,
            connection: None,
        }
    }

    /// Takes the lead if nobody else has it. The lead goes with the connection.
    pub async fn try_lead(&mut self) -> Result<Option<Leadership>, AuthorityError> {
        // If the attempt times out, its connection is dropped.
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
        connection
            .execute("begin isolation level read committed")
            .await
            .map_err(driver)?;
        let taken: bool = sqlx::query_scalar(self.lead.take())
            .fetch_one(&mut connection)
            .await
            .map_err(driver)?;
        if taken {
            connection.execute(KEEP_OPEN).await.map_err(driver)?;
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
        connection.execute("rollback").await.map_err(driver)?;
        // The session that this process lost may still hold the lead, because the server has not noticed that its client
        // is gone. End it, so that nobody has to wait until the server notices.
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
                tracing::warn!(pid, "ended a session that still held the lead for a lost connection");
            }
        }
        self.connection = Some(connection);
        Ok(None)
    }
}

impl Leadership {
    /// Resolves within about five seconds after the connection that holds the lead is lost. The caller may cancel it and
    /// call it again.
    pub async fn lost(&mut self) {
        if !self.keeper.is_finished() {
            pass_on_panic((&mut self.keeper).await);
        }
    }

    /// Releases the lead at once, so that a standby does not have to wait until the server notices.
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

/// Pings the connection until it is lost or the lead is released.
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
        tracing::debug!(%error, "the lead was lost before it was released");
    }
}

/// Resolves when the connection is lost.
async fn gone(connection: &mut PgConnection) {
    loop {
        sleep(PING_EVERY).await;
        match timeout(PING_LIMIT, connection.ping()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!(%error, "the connection that holds the lead is lost");
                return;
            }
            Err(_) => {
                tracing::warn!(limit = ?PING_LIMIT, "the connection that holds the lead does not answer");
                return;
            }
        }
    }
}
