//! Which bridge leads. Two at once are safe by construction and only waste work: this avoids the waste.

use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{ConnectOptions, Connection};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use super::error::AuthorityError;

/// Key of the session advisory lock, of which every database has its own: "sync" and "lead" in ASCII.
const LOCK: i64 = 0x7379_6e63_6c65_6164;
const PING_EVERY: Duration = Duration::from_millis(500);
const PING_LIMIT: Duration = Duration::from_secs(5);

/// The lead, held for as long as this value and its connection live.
#[derive(Debug)]
pub struct Leadership {
    /// Has the connection, and ends when it is gone. A task of its own, for whoever waits for the loss beside other
    /// things cancels that wait all the time, and a ping must not begin anew with each of them.
    keeper: JoinHandle<()>,
    /// Gives the lead up when it is dropped.
    held: oneshot::Sender<()>,
}

impl Leadership {
    pub(super) async fn try_take(
        server: &str,
        options: &PgConnectOptions,
    ) -> Result<Option<Leadership>, AuthorityError> {
        let driver = |error| AuthorityError::from_driver(server, error);
        let mut connection = options.connect().await.map_err(driver)?;
        let taken: bool = sqlx::query_scalar("select pg_try_advisory_lock($1)")
            .bind(LOCK)
            .fetch_one(&mut connection)
            .await
            .map_err(driver)?;
        if taken {
            let (held, given_up) = oneshot::channel();
            let keeper = tokio::spawn(keep(connection, given_up));
            return Ok(Some(Leadership { keeper, held }));
        }
        connection.close().await.map_err(driver)?;
        Ok(None)
    }

    /// Resolves when the lead is gone because its connection is, within about five seconds. May be cancelled and
    /// called again, as often as one likes.
    pub async fn lost(&mut self) {
        if !self.keeper.is_finished() {
            let _ = (&mut self.keeper).await;
        }
    }

    /// Gives the lead up at once, so that a standby need not wait for the server to notice.
    pub async fn release(self) {
        drop(self.held);
        let _ = self.keeper.await;
    }
}

async fn keep(mut connection: PgConnection, given_up: oneshot::Receiver<()>) {
    tokio::select! {
        () = gone(&mut connection) => return,
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
