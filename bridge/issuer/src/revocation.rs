//! Revocations: durable in the authority first, then told to the module until it has taken them.
//!
//! Which of them it has taken is recorded in the authority, so that it does not matter which bridge tells it. What a host
//! had not yet made durable may be lost with it: after every new link the recent ones are told again.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::json;
use spacetime_sync_proto::Label;
use tokio::sync::Notify;
use tokio::time::timeout;

use super::Issuer;
use super::denial::Denial;
use spacetime_sync_authority::{Authority, AuthorityError};
use spacetime_sync_proto::error_text;
use spacetime_sync_stdb::StdbError;
use spacetime_sync_stdb::admin::Admin;
use spacetime_sync_stdb::tokens::TokenSource;

/// Most sessions of one request.
pub const SESSIONS: usize = 100;
/// Longest reason, in bytes.
pub const REASON_BYTES: usize = 512;
/// How long a request waits for the module.
const WAIT: Duration = Duration::from_secs(5);
/// How often undelivered ones are looked for.
const LOOK: Duration = Duration::from_secs(2);
/// The longest wait after a failure.
const REST: Duration = Duration::from_secs(30);
/// Revocations told in one go.
const AT_ONCE: usize = 100;
/// How old a revocation may be that is told again after a new link: older ones are durable, and their tokens have ended.
const RECENT: Duration = Duration::from_secs(30 * 60);

/// Says to the one who tells the module that there is something to do.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    woken: Notify,
    relinked: AtomicBool,
}

impl Outbox {
    /// The link is a new one: what the host had is not known.
    pub(crate) fn relinked(&self) {
        self.relinked.store(true, Ordering::SeqCst);
        self.woken.notify_one();
    }
}

/// The module, as revocations are told to it.
#[derive(Debug, Clone)]
pub struct Messenger {
    admin: Admin,
    tokens: TokenSource,
}

impl Messenger {
    /// For one database.
    pub fn new(uri: &str, database: &str, tokens: TokenSource) -> Self {
        Self {
            admin: Admin::new(uri, database, spacetime_sync_proto::Secret::from(String::new())),
            tokens,
        }
    }

    async fn tell(&self, session_ids: &[Label]) -> Result<(), StdbError> {
        let admin = self.admin.with_token(self.tokens.token()?);
        for session_id in session_ids {
            admin.call("revoke_session", json!([session_id.as_str()])).await?;
        }
        Ok(())
    }
}

/// What became of a revocation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Revoked {
    /// Whether the module has taken it by now.
    pub delivered: bool,
    /// Sessions that never had a token. They are revoked, too; but their ids may be mistyped.
    pub unknown: Vec<Label>,
}

impl Issuer {
    /// Revokes sessions. From here on no token is given to them.
    pub async fn revoke(&self, messenger: &Messenger, session_ids: &[Label], reason: &str) -> Result<Revoked, Denial> {
        let authority = self.authority()?;
        let unknown = self.ask(authority.revoke_sessions(session_ids, reason)).await?;
        self.cache.forget(session_ids);
        tracing::info!(sessions = session_ids.len(), unknown = unknown.len(), "revoked");
        let delivered = match timeout(WAIT, deliver(authority, messenger, session_ids)).await {
            Ok(Ok(())) => true,
            Ok(Err(error)) => {
                tracing::warn!(error = error_text(&error), "the module has not taken a revocation yet");
                false
            }
            Err(_) => false,
        };
        if !delivered {
            self.revocations.woken.notify_one();
        }
        Ok(Revoked { delivered, unknown })
    }

    /// Tells the module what it has not taken yet, for as long as the process runs.
    pub async fn tell_revocations(&self, messenger: Messenger) {
        let mut rest = LOOK;
        loop {
            let woken = timeout(rest, self.revocations.woken.notified()).await.is_ok();
            let Some(authority) = self.authority.get() else {
                continue;
            };
            match self.tell_once(authority, &messenger).await {
                Ok(()) => rest = LOOK,
                Err(error) => {
                    // What is told at every failure would fill the log; what a person asked for is told by the request.
                    if rest == LOOK || woken {
                        tracing::warn!(error = error_text(&error), "revocations are not delivered");
                    }
                    rest = (rest * 2).min(REST);
                }
            }
        }
    }

    async fn tell_once(&self, authority: &Authority, messenger: &Messenger) -> Result<(), DeliveryError> {
        if self.revocations.relinked.swap(false, Ordering::SeqCst) {
            let again = authority.redeliver_revocations(RECENT.as_secs_f64()).await;
            let again = again.inspect_err(|_| self.revocations.relinked.store(true, Ordering::SeqCst))?;
            if again > 0 {
                tracing::info!(again, "recent revocations are told again");
            }
        }
        loop {
            let waiting = authority.undelivered_revocations(AT_ONCE).await?;
            if waiting.is_empty() {
                return Ok(());
            }
            deliver(authority, messenger, &waiting).await?;
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum DeliveryError {
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    #[error(transparent)]
    Stdb(#[from] StdbError),
}

async fn deliver(authority: &Authority, messenger: &Messenger, session_ids: &[Label]) -> Result<(), DeliveryError> {
    messenger.tell(session_ids).await?;
    authority.revocations_delivered(session_ids).await?;
    Ok(())
}
