//! Revocations: the authority records one first, and then the issuer tells the module until the module has taken it.
//!
//! The authority also records which revocations the module has taken, so that any bridge can continue. SpacetimeDB may
//! lose what it had not made durable, so recent revocations are sent again after every new link.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::json;
use spacetime_sync_proto::Label;
use spacetime_sync_proto::access::SyncClaims;
use tokio::sync::Notify;
use tokio::time::timeout;

use super::Issuer;
use super::denial::Denial;
use spacetime_sync_authority::{Actor, Authority, AuthorityError};
use spacetime_sync_proto::error_text;
use spacetime_sync_stdb::StdbError;
use spacetime_sync_stdb::admin::Admin;
use spacetime_sync_stdb::link::Target;
use spacetime_sync_stdb::tokens::TokenSource;

/// Most sessions, users and devices of one request, together.
pub const AT_MOST: usize = 100;
/// Longest reason, in bytes.
pub const REASON_BYTES: usize = 512;
/// How long a request waits for the module.
const WAIT: Duration = Duration::from_secs(5);
/// How often the issuer looks for undelivered revocations.
const LOOK: Duration = Duration::from_secs(2);
/// The longest wait after a failure.
const REST: Duration = Duration::from_secs(30);
/// Most revocations in one round.
const AT_ONCE: usize = 100;
/// How old a revocation may be and still be sent again after a new link. Older ones are durable, and their tokens have
/// expired.
const RECENT: Duration = Duration::from_secs(30 * 60);

/// Wakes the task that tells the module.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    woken: Notify,
    relinked: AtomicBool,
}

impl Outbox {
    /// The link to SpacetimeDB is new, and the server may have lost recent revocations.
    pub(crate) fn relinked(&self) {
        self.relinked.store(true, Ordering::SeqCst);
        self.woken.notify_one();
    }
}

/// Tells the module about revocations.
#[derive(Debug, Clone)]
pub struct Messenger {
    admin: Admin,
    tokens: TokenSource,
}

impl Messenger {
    /// A messenger for one database.
    pub fn new(target: &Target) -> Self {
        let nobody = spacetime_sync_proto::Secret::from(String::new());
        Self {
            admin: Admin::over(&target.transport, &target.uri, target.address(), nobody),
            tokens: target.tokens.clone(),
        }
    }

    async fn tell(&self, session_ids: &[Label]) -> Result<(), StdbError> {
        let admin = self.admin.with_token(self.tokens.token()?);
        // An earlier release may have recorded the revocation of a name that no session can have. The module refuses such a
        // name, and nothing has to end.
        let may_exist = |session_id: &&Label| SyncClaims::check_session_name(session_id).is_ok();
        for session_id in session_ids.iter().filter(may_exist) {
            admin.call("revoke_session", json!([session_id.as_str()])).await?;
        }
        Ok(())
    }
}

/// What a revocation names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Whom {
    /// Sessions.
    pub sessions: Vec<Label>,
    /// Users, of whom all sessions are revoked that were signed in until now.
    pub users: Vec<Label>,
    /// Devices, and so for them.
    pub devices: Vec<Label>,
}

/// The result of a revocation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Revoked {
    /// The sessions that were named, and those of the users and devices.
    pub sessions: Vec<Label>,
    /// Whether the module has taken it by now.
    pub delivered: bool,
    /// Sessions that never had a token. They are revoked, too; but their ids may be mistyped.
    pub unknown: Vec<Label>,
}

impl Issuer {
    /// Revokes sessions. From here on they get no token.
    pub async fn revoke(
        &self,
        messenger: &Messenger,
        whom: Whom,
        reason: &str,
        actor: &Actor,
    ) -> Result<Revoked, Denial> {
        let authority = self.authority()?;
        let Whom {
            mut sessions,
            users,
            devices,
        } = whom;
        let unknown = self.ask(authority.revoke_sessions(&sessions, reason, actor)).await?;
        self.cache.forget(&sessions);
        if !users.is_empty() || !devices.is_empty() {
            let revoked = authority.revoke_subjects(&users, &devices, reason, actor);
            let revoked = self.ask(revoked).await?;
            self.cache.forget(&revoked);
            sessions.extend(revoked);
        }
        tracing::info!(
            sessions = sessions.len(),
            unknown = unknown.len(),
            users = users.len(),
            devices = devices.len(),
            "sessions revoked"
        );
        let delivering = async {
            if self.strayed() {
                // Another database has nothing to do with our sessions.
                return Ok(false);
            }
            deliver(authority, messenger, &sessions).await.map(|()| true)
        };
        let delivered = match timeout(WAIT, delivering).await {
            Ok(Ok(delivered)) => delivered,
            Ok(Err(error)) => {
                tracing::warn!(error = error_text(&error), "the module has not taken a revocation yet");
                false
            }
            Err(_) => false,
        };
        if !delivered {
            self.revocations.woken.notify_one();
        }
        Ok(Revoked {
            sessions,
            delivered,
            unknown,
        })
    }

    /// The sessions that were revoked while any of their tokens may still be valid.
    pub async fn recently_revoked(&self) -> Result<Vec<Label>, Denial> {
        let authority = self.authority()?;
        self.ask(authority.recent_revocations(RECENT.as_secs_f64())).await
    }

    /// Tells the module what it has not taken yet, as long as the process runs.
    pub async fn tell_revocations(&self, messenger: Messenger) {
        let mut rest = LOOK;
        loop {
            let woken = timeout(rest, self.revocations.woken.notified()).await.is_ok();
            let Some(authority) = self.authority.get() else {
                continue;
            };
            if self.strayed() {
                // Another database has nothing to do with our sessions.
                continue;
            }
            match self.tell_once(authority, &messenger).await {
                Ok(()) => rest = LOOK,
                Err(error) => {
                    // A line for each failure would fill the log. A person who revokes a session learns of it from the
                    // request.
                    if rest == LOOK || woken {
                        tracing::warn!(
                            error = error_text(&error),
                            "cannot deliver revocations to the module; the issuer keeps trying"
                        );
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
                tracing::info!(again, "sending recent revocations again");
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
