//! What is done now and then, beside the events: the authority's progress is written down on both sides, a changed policy is
//! handed on, the authority's log is purged, and sessions that are over are forgotten.

use std::sync::Arc;
use std::time::Duration;

use spacetime_sync_proto::{Label, StreamId};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::News;
use super::policy::Policy;
use crate::config::Config;
use crate::status::Status;
use spacetime_sync_authority::{Authority, AuthorityError};
use spacetime_sync_proto::error_text;
use spacetime_sync_stdb::StdbError;
use spacetime_sync_stdb::link::Link;

/// Events that are removed in one transaction, and for which a writer of the stream may have to wait.
const PURGE_EVENTS: i32 = 1_000;
/// Streams asked for at once.
const PURGE_STREAMS: usize = 1_000;
/// How often sessions are forgotten: they are kept for days, and every look goes through all of them.
const FORGET_EVERY: Duration = Duration::from_secs(60 * 60);
/// Sessions looked at in one statement.
const FORGET_SESSIONS: usize = 1_000;

#[derive(Debug, thiserror::Error)]
enum UpkeepError {
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    #[error(transparent)]
    Stdb(#[from] StdbError),
}

/// Runs as long as the link.
pub(super) struct Upkeep {
    pub(super) link: Arc<Link>,
    pub(super) authority: Authority,
    pub(super) status: Arc<Status>,
    pub(super) policy: watch::Sender<Policy>,
    pub(super) news: mpsc::UnboundedSender<News>,
    /// The epoch that this bridge began with.
    pub(super) epoch: String,
}

impl Upkeep {
    pub(super) async fn run(self, config: &Config) {
        let retention = &config.retention;
        let (beat, every) = (
            Duration::from_millis(retention.beat_ms),
            Duration::from_millis(retention.every_ms),
        );
        let mut policy_due = Instant::now() + every;
        loop {
            if let Err(error) = self.beat().await {
                tracing::warn!(
                    error = error_text(&error),
                    "the authority's progress could not be written down"
                );
            }
            if policy_due <= Instant::now() {
                policy_due = Instant::now() + every;
                if let Err(error) = self.policy(config.applies_windows()).await {
                    tracing::warn!(
                        error = error_text(&error),
                        "the policy of retention could not be handed on"
                    );
                }
            }
            tokio::time::sleep(beat).await;
        }
    }

    async fn beat(&self) -> Result<(), UpkeepError> {
        let beat = self.authority.epoch().await?;
        if beat.epoch != self.epoch {
            let _ = self.news.send(News::EpochBegun);
            return Ok(());
        }
        let refused = self.link.mark_epoch(&beat, false).await?;
        if let Some(refusal) = &refused
            && !self.status.is_restored()
        {
            tracing::error!(%refusal, "the authority was restored");
        }
        let accepted = refused.is_none();
        self.status.restored(refused.map(|refusal| refusal.message));
        // An authority that is behind stays where it is: it must not catch up with what it has lost.
        if accepted {
            self.authority.beat().await?;
        }
        Ok(())
    }

    async fn policy(&self, applies_windows: bool) -> Result<(), UpkeepError> {
        let policy = Policy::read(&self.authority, applies_windows).await?;
        if *self.policy.borrow() != policy {
            self.link.set_retention(&policy.classes).await?;
            tracing::info!(classes = policy.classes.len(), "the policy of retention has changed");
            self.policy.send_replace(policy);
        }
        Ok(())
    }
}

/// Purges the authority's log again and again, with a connection of its own.
pub(super) async fn purge(authority: Authority, status: Arc<Status>, every: Duration) {
    let authority = authority.beside(1);
    loop {
        if let Err(error) = purge_once(&authority, &status).await {
            tracing::warn!(error = error_text(&error), "the authority's log could not be purged");
        }
        tokio::time::sleep(every).await;
    }
}

async fn purge_once(authority: &Authority, status: &Status) -> Result<(), AuthorityError> {
    let mut after: Option<StreamId> = None;
    loop {
        let streams = authority.purgeable_streams(after.as_ref(), PURGE_STREAMS).await?;
        let Some(last) = streams.last() else { return Ok(()) };
        after = Some(last.clone());
        for stream_id in &streams {
            loop {
                let gone = authority.purge(stream_id, PURGE_EVENTS).await?;
                status.count(|counters| counters.purged_events += gone);
                if gone < PURGE_EVENTS.unsigned_abs().into() {
                    break;
                }
            }
        }
    }
}

/// Forgets sessions again and again, with a connection of its own.
pub(super) async fn forget_sessions(authority: Authority, days: u16) {
    let authority = authority.beside(1);
    loop {
        match forget_sessions_once(&authority, days).await {
            Ok(0) => {}
            Ok(gone) => tracing::info!(gone, "sessions that are over are forgotten"),
            Err(error) => tracing::warn!(
                error = error_text(&error),
                "sessions that are over could not be forgotten"
            ),
        }
        tokio::time::sleep(FORGET_EVERY).await;
    }
}

async fn forget_sessions_once(authority: &Authority, days: u16) -> Result<u64, AuthorityError> {
    let (mut all_gone, mut after) = (0, None::<Label>);
    loop {
        let (last, gone) = authority.forget_sessions(days, after.as_ref(), FORGET_SESSIONS).await?;
        all_gone += gone;
        if last.is_none() {
            return Ok(all_gone);
        }
        after = last;
    }
}
