//! Which bridge leads. Two at once are safe by construction and only waste work: this avoids the waste.

use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{ConnectOptions, Connection};
use tokio::time::{sleep, timeout};

use super::error::AuthorityError;

/// Key of the session advisory lock, of which every database has its own: "sync" and "lead" in ASCII.
const LOCK: i64 = 0x7379_6e63_6c65_6164;
const PING_EVERY: Duration = Duration::from_millis(500);
const PING_LIMIT: Duration = Duration::from_secs(5);

/// The lead, held for as long as this value and its connection live.
#[derive(Debug)]
pub struct Leadership {
    connection: PgConnection,
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
            return Ok(Some(Leadership { connection }));
        }
        connection.close().await.map_err(driver)?;
        Ok(None)
    }

    /// Resolves when the lead is gone because its connection is, within about five seconds. May be cancelled and
    /// called again.
    pub async fn lost(&mut self) {
        loop {
            sleep(PING_EVERY).await;
            match timeout(PING_LIMIT, self.connection.ping()).await {
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

    /// Gives the lead up at once, so that a standby need not wait for the server to notice.
    pub async fn release(self) {
        if let Err(error) = self.connection.close().await {
            tracing::debug!(%error, "the lead was lost before it was given up");
        }
    }
}
