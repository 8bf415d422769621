//! Reads the log for clients over HTTP. Each answer shows the log at one moment.

use spacetime_sync_proto::{ChainHash, Event, Label, Seq, StreamId};
use sqlx::Connection as _;
use sqlx::postgres::PgConnection;

use super::access::{BoundSession, bound_session};
use super::error::CallError;
use super::log::{self, chain_at};
use super::retention::{Extent, extent_of};
use super::{Authority, AuthorityError};

/// A stream, a position in it and the events that follow, as they were at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct History {
    /// Where the log begins and ends; `None` if nothing was ever appended.
    pub extent: Option<Extent>,
    /// The chain hash at the position; `None` if the log does not reach it.
    pub chain: Option<ChainHash>,
    /// The events that follow.
    pub events: Vec<Event>,
}

impl Authority {
    /// Reads the events after a seq, and what a caller needs to check its cursor. One transaction reads everything, so that a
    /// purge, an append or a restore in between changes nothing.
    pub async fn history(
        &self,
        stream_id: &StreamId,
        after: Seq,
        max_events: usize,
        max_bytes: usize,
    ) -> Result<History, AuthorityError> {
        self.connections
            .run("history", async |connection| {
                // If a read fails, sqlx rolls the transaction back before the connection's next use.
                let mut moment = connection
                    .begin_with("begin isolation level repeatable read read only")
                    .await?;
                let history = history(&mut moment, stream_id, after, max_events, max_bytes).await?;
                moment.commit().await?;
                Ok(history)
            })
            .await
    }

    /// What the authority knows about a session. `None` if it never had a token and was never revoked.
    pub async fn session(&self, session_id: &Label) -> Result<Option<BoundSession>, AuthorityError> {
        self.connections
            .run("session", async |connection| {
                let row = sqlx::query(
                    "select user_id, device_id, revoked_at is not null as revoked
                     from runtime.sync_sessions where session_id = $1",
                )
                .bind(session_id.as_str())
                .fetch_optional(connection)
                .await?;
                row.as_ref().map(bound_session).transpose()
            })
            .await
    }
}

async fn history(
    connection: &mut PgConnection,
    stream_id: &StreamId,
    after: Seq,
    max_events: usize,
    max_bytes: usize,
) -> Result<History, CallError> {
    let extent = extent_of(&mut *connection, stream_id).await?;
    let chain = chain_at(&mut *connection, stream_id, after).await?;
    let events = match &extent {
        Some(extent) if chain.is_some() && extent.floor() <= after && after < extent.head_seq => {
            log::read_events(&mut *connection, stream_id, after, max_events, max_bytes).await?
        }
        Some(_) | None => Vec::new(),
    };
    Ok(History { extent, chain, events })
}
