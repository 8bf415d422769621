//! The audit log: what operators and the issuer did, who, when and from where.
//!
//! What the database does for them, such as a revocation, is recorded by the function that does it, in the same transaction
//! (migration 6). [`Authority::record`] records what they do elsewhere, before they do it, and Postgres takes no other acts.

use std::net::IpAddr;

use spacetime_sync_proto::{Seq, StreamId};

use super::{Authority, AuthorityError};

/// Who does something, and from where, as this process says. Postgres adds the login and the address of the process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Actor {
    who: String,
    origin: Option<String>,
}

impl Actor {
    /// Whoever has the admin credential.
    pub fn admin(address: IpAddr) -> Self {
        Self {
            who: "admin".to_owned(),
            origin: Some(address.to_string()),
        }
    }

    /// Who runs a command, as the operating system calls them, and the machine.
    pub fn operator(name: &str, machine: Option<String>) -> Self {
        Self {
            who: format!("operator:{name}"),
            origin: machine,
        }
    }

    pub(super) fn who(&self) -> &str {
        &self.who
    }

    pub(super) fn origin(&self) -> Option<&str> {
        self.origin.as_deref()
    }
}

/// What is done outside of the database. `runtime.sync_record_act` lists the same acts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act<'a> {
    /// SpacetimeDB's log of a stream is made to end at a seq.
    RewindStream {
        /// The stream.
        stream_id: &'a StreamId,
        /// The seq.
        to: Seq,
    },
    /// The module is published, or configured.
    PublishModule {
        /// The server.
        uri: &'a str,
        /// The database on it.
        database: &'a str,
        /// How.
        how: &'a str,
    },
    /// An identity is given a stream by hand.
    GrantStream {
        /// The identity, in hex.
        identity: &'a str,
        /// The stream.
        stream_id: &'a StreamId,
    },
    /// What was given by hand, or by a token, is taken away.
    RevokeStream {
        /// The identity, in hex.
        identity: &'a str,
        /// The stream.
        stream_id: &'a StreamId,
    },
}

impl Act<'_> {
    fn name(&self) -> &'static str {
        match self {
            Self::RewindStream { .. } => "rewind_stream",
            Self::PublishModule { .. } => "publish_module",
            Self::GrantStream { .. } => "grant_stream",
            Self::RevokeStream { .. } => "revoke_stream",
        }
    }

    fn subject(&self) -> String {
        match self {
            Self::RewindStream { stream_id, .. } => format!("stream:{stream_id}"),
            Self::PublishModule { database, .. } => format!("database:{database}"),
            Self::GrantStream { identity, .. } | Self::RevokeStream { identity, .. } => format!("identity:{identity}"),
        }
    }

    fn detail(&self) -> String {
        match self {
            Self::RewindStream { to, .. } => format!("to seq {to}"),
            Self::PublishModule { uri, how, .. } => format!("{how} at {uri}"),
            Self::GrantStream { stream_id, .. } | Self::RevokeStream { stream_id, .. } => format!("stream {stream_id}"),
        }
    }
}

impl Authority {
    /// Records an act. Who calls this and gets an error must not do it.
    pub async fn record(&self, act: Act<'_>, actor: &Actor) -> Result<(), AuthorityError> {
        self.connections
            .run("record", async |connection| {
                sqlx::query("select runtime.sync_record_act($1, $2, $3, $4, $5)")
                    .bind(act.name())
                    .bind(act.subject())
                    .bind(actor.who())
                    .bind(actor.origin())
                    .bind(act.detail())
                    .execute(connection)
                    .await?;
                Ok(())
            })
            .await
    }

    /// Removes at most `most` of the oldest acts that `runtime.sync_audit_retention` no longer keeps. Returns how many.
    pub async fn purge_audit(&self, most: i32) -> Result<u64, AuthorityError> {
        self.connections
            .run("purge_audit", async |connection| {
                let gone: i64 = sqlx::query_scalar("select runtime.sync_purge_audit($1)")
                    .bind(most)
                    .fetch_one(connection)
                    .await?;
                Ok(u64::try_from(gone).unwrap_or_default())
            })
            .await
    }
}
