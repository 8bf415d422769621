//! Wake-ups: hints from writers that they have appended something. Writers send them only to a bridge that sleeps, and a
//! wake-up may be lost.

use std::time::Duration;

use sqlx::PgPool;
use sqlx::postgres::{PgConnectOptions, PgListener, PgPoolOptions};

use super::Authority;
use super::error::AuthorityError;

const CHANNEL: &str = "sync_wake";
const RECONNECT_LIMIT: Duration = Duration::from_secs(5);

/// Listens for wake-ups on a connection of its own.
#[derive(Debug)]
pub struct WakeListener {
    server: String,
    listener: PgListener,
    /// The listener takes its connection from this pool of one.
    _pool: PgPool,
}

impl WakeListener {
    pub(super) async fn start(server: &str, options: &PgConnectOptions) -> Result<WakeListener, AuthorityError> {
        let driver = |error| AuthorityError::from_driver(server, error);
        let pool = PgPoolOptions::new()
            .max_connections(1)
            .max_lifetime(None)
            .idle_timeout(None)
            .acquire_timeout(RECONNECT_LIMIT)
            .connect_lazy_with(options.clone());
        let mut listener = PgListener::connect_with(&pool).await.map_err(driver)?;
        listener.listen(CHANNEL).await.map_err(driver)?;
        Ok(WakeListener {
            server: server.to_owned(),
            listener,
            _pool: pool,
        })
    }

    /// Resolves at a wake-up, and when the connection was lost, because a wake-up may have been lost with it. The listener
    /// connects again by itself. If that fails, this returns an error, and may be called again. It may be cancelled.
    pub async fn woken(&mut self) -> Result<(), AuthorityError> {
        match self.listener.try_recv().await {
            Ok(Some(_)) => {
                while self.listener.next_buffered().is_some() {}
                Ok(())
            }
            Ok(None) => Ok(()),
            Err(error) => Err(AuthorityError::from_driver(&self.server, error)),
        }
    }
}

impl Authority {
    /// Tells writers whether the bridge sleeps and wants to be woken. After it says so, the bridge must look for
    /// dirty streams once more and keep looking slowly, because an append at the same moment does not see the change.
    pub async fn set_sleeping(&self, sleeping: bool) -> Result<(), AuthorityError> {
        self.connections
            .run("set_sleeping", async |connection| {
                sqlx::query("update runtime.sync_bridge_wake set sleeping = $1 where sleeping <> $1")
                    .bind(sleeping)
                    .execute(connection)
                    .await?;
                Ok(())
            })
            .await
    }

    /// Begins to listen for wake-ups, on a connection of its own.
    pub async fn listen(&self) -> Result<WakeListener, AuthorityError> {
        self.limit(
            "listen",
            WakeListener::start(self.connections.server(), self.connections.options()),
        )
        .await
    }
}
