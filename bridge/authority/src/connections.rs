//! A bounded set of connections.
//!
//! sqlx's own pool pings a connection at every release. The ping costs each call a round trip and has no timeout: if the
//! network goes silent after a call, the connection's place stays taken for a quarter of an hour. Here, a connection on which
//! the server has answered comes back without a ping, and any other connection is dropped.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{ConnectOptions, Connection};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::error::{AuthorityError, CallError, connection_is_good};

/// How long a call may wait for its turn, and how long a connection attempt may take.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// How long a call may take on its connection.
pub(super) const CALL_LIMIT: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub(super) struct Connections {
    server: String,
    options: PgConnectOptions,
    turns: Semaphore,
    idle: Mutex<Vec<PgConnection>>,
}

impl Connections {
    pub(super) fn new(server: String, options: PgConnectOptions, most: usize) -> Self {
        Self {
            server,
            options,
            turns: Semaphore::new(most.clamp(1, Semaphore::MAX_PERMITS)),
            idle: Mutex::default(),
        }
    }

    pub(super) fn server(&self) -> &str {
        &self.server
    }

    pub(super) fn options(&self) -> &PgConnectOptions {
        &self.options
    }

    /// Runs one call. If the call is cancelled, its connection is dropped.
    pub(super) async fn run<T>(
        &self,
        what: &'static str,
        call: impl AsyncFnOnce(&mut PgConnection) -> Result<T, CallError>,
    ) -> Result<T, AuthorityError> {
        // Nobody closes the semaphore, so the inner result is always a permit.
        let _turn = timeout(CONNECT_LIMIT, self.turns.acquire())
            .await
            .map_err(|_| self.timed_out("waiting for a free connection", CONNECT_LIMIT))?;
        let idle = self.idle().pop();
        let mut connection = match idle {
            Some(connection) => connection,
            None => timeout(CONNECT_LIMIT, self.options.connect())
                .await
                .map_err(|_| self.timed_out("connecting", CONNECT_LIMIT))?
                .map_err(|error| AuthorityError::from_driver(&self.server, error))?,
        };
        match timeout(CALL_LIMIT, call(&mut connection)).await {
            Ok(Ok(value)) => {
                self.idle().push(connection);
                Ok(value)
            }
            Ok(Err(CallError::Content(error))) => Err(error),
            Ok(Err(CallError::Driver(error))) => {
                if connection_is_good(&error) {
                    self.idle().push(connection);
                } else {
                    self.forget_idle();
                }
                Err(AuthorityError::from_driver(&self.server, error))
            }
            Err(_) => {
                self.forget_idle();
                Err(self.timed_out(what, CALL_LIMIT))
            }
        }
    }

    /// Closes the connections that no call uses.
    pub(super) async fn close(&self) {
        let idle = std::mem::take(&mut *self.idle());
        for connection in idle {
            if let Err(error) = connection.close().await {
                tracing::debug!(%error, "a connection was lost before it was closed");
            }
        }
    }

    pub(super) fn timed_out(&self, what: &'static str, limit: Duration) -> AuthorityError {
        AuthorityError::TimedOut {
            server: self.server.clone(),
            what,
            limit,
        }
    }

    /// Drops the connections that no call uses. Whatever ended one of them most likely ended all of them, and otherwise a
    /// call would have to fail on each.
    pub(super) fn forget_idle(&self) {
        self.idle().clear();
    }

    fn idle(&self) -> MutexGuard<'_, Vec<PgConnection>> {
        // Nothing panics while it is locked.
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
