//! History: what clients read of the authority's log by themselves, because SpacetimeDB holds it no longer.
//!
//! Judging a cursor and making a page are pure. [`Histories`] asks the authority, on connections of its own, and bounds
//! who asks how often. What it never does: send an event whose hashes are not right, or move a cursor.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;
use spacetime_sync_proto::page::{EventPage, PAGE_EVENTS, Snapshot};
use spacetime_sync_proto::{
    ChainHash, Event, FrameRow, Label, RefusalCode, Seq, StaleCursor, StaleReason, StreamId, limit,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use crate::denial::Denial;
use crate::limits::{Buckets, Rate};
use crate::settings::HistoryConfig;
use spacetime_sync_authority::{Authority, AuthorityError, Extent, History};
use spacetime_sync_lane::{HaltReason, prepare};

/// How long a request waits for its turn.
const TURN: Duration = Duration::from_secs(2);
/// When the bound on replays is smaller than the log, a stream is begun anew so far before it is reached that what is
/// appended meanwhile does not reach it at once: a quarter of it.
const ROOM: u64 = 4;
/// For how long somebody who has asked counts as a consumer, and a lag as the largest.
const RECENT: Duration = Duration::from_secs(60);
/// Most consumers that are told apart.
const CONSUMERS: usize = 10_000;

/// A position of a client, and its chain hash if the client says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cursor {
    /// The position.
    pub after: Seq,
    /// The chain hash there.
    pub chain: Option<ChainHash>,
}

/// What a cursor comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Judged {
    /// It can be continued, on this chain.
    Good(ChainHash),
    /// It cannot. The chain hash of where it can be begun anew is that of the floor, wherever that is.
    Stale(Box<StaleCursor>),
    /// The log has no event there, though it goes from before to behind.
    Broken,
}

/// Judges a cursor by how the log stood at one moment. Every reason against it is told.
pub fn judge(stream_id: &StreamId, cursor: Cursor, history: &History) -> Judged {
    let empty = Extent {
        oldest_seq: Seq::ZERO.next(),
        floor_chain: ChainHash::genesis(stream_id),
        head_seq: Seq::ZERO,
        head_chain: ChainHash::genesis(stream_id),
        window_events: 0,
        replay_budget_events: None,
        snapshot_seq: None,
    };
    let extent = history.extent.as_ref().unwrap_or(&empty);
    let lag = extent.head_seq.since(cursor.after);
    let within = |lag: u64| extent.replay_budget_events.is_none_or(|budget| lag <= budget);
    let reasons = [
        (cursor.after < extent.floor(), StaleReason::RetentionFloorBreach),
        (!within(lag), StaleReason::ReplayBudgetExceeded),
        (cursor.after > extent.head_seq, StaleReason::AheadOfHead),
        (
            history
                .chain
                .zip(cursor.chain)
                .is_some_and(|(ours, theirs)| ours != theirs),
            StaleReason::ChainMismatch,
        ),
    ];
    let reason_codes: Vec<_> = reasons
        .into_iter()
        .filter_map(|(holds, reason)| holds.then_some(reason))
        .collect();
    match history.chain {
        Some(chain) if reason_codes.is_empty() => Judged::Good(chain),
        None if reason_codes.is_empty() => Judged::Broken,
        Some(_) | None => {
            let snapshot_cursor = extent.snapshot_seq;
            let can_start = |seq: &Seq| *seq >= extent.floor() && within(extent.head_seq.since(*seq));
            Judged::Stale(Box::new(StaleCursor {
                code: Default::default(),
                stream_id: stream_id.clone(),
                requested_after_seq: cursor.after,
                oldest_available_cursor: beginning(extent),
                oldest_available_chain: extent.floor_chain,
                head_cursor: extent.head_seq,
                reason_codes,
                replay_lag: lag,
                replay_budget_events: extent.replay_budget_events,
                snapshot_cursor: snapshot_cursor.filter(can_start),
            }))
        }
    }
}

/// The first position from which a stream can be continued for a while.
fn beginning(extent: &Extent) -> Seq {
    let floor = extent.floor();
    match extent.replay_budget_events {
        Some(budget) if extent.head_seq.since(floor) > budget => {
            let back = budget - budget.div_ceil(ROOM).min(budget);
            Seq::new(extent.head_seq.get().saturating_sub(back))
                .unwrap_or(floor)
                .max(floor)
        }
        Some(_) | None => floor,
    }
}

/// Cuts what follows a good cursor into frames, as for the lane: every hash is checked first.
pub fn page(
    extent: &Extent,
    after: Seq,
    chain: ChainHash,
    events: &[Event],
    frame_bytes: usize,
) -> Result<EventPage, HaltReason> {
    if events.is_empty() && after < extent.head_seq {
        return Err(HaltReason::BrokenLog(format!(
            "seq {} is missing, the head is {}",
            after.next(),
            extent.head_seq
        )));
    }
    let mut bytes = 0;
    let mut frames = Vec::new();
    let mut end = Seq::ZERO;
    for prepared in prepare(after, chain, events, frame_bytes)? {
        bytes += prepared.frame.len();
        if !frames.is_empty() && bytes > limit::PAGE_BYTES {
            break;
        }
        end = prepared.last_seq;
        if end == extent.head_seq && prepared.last_chain != extent.head_chain {
            return Err(HaltReason::BrokenLog(format!(
                "seq {end} is not what the stream's row says of its head"
            )));
        }
        frames.push(FrameRow {
            first_seq: prepared.first_seq,
            last_seq: prepared.last_seq,
            base_chain: prepared.base_chain,
            bytes: prepared.frame,
        });
    }
    if end > extent.head_seq {
        return Err(HaltReason::BrokenLog(format!(
            "seq {end} is past the head, {}",
            extent.head_seq
        )));
    }
    Ok(EventPage {
        head_seq: extent.head_seq,
        head_chain: extent.head_chain,
        oldest_seq: extent.oldest_seq,
        frames,
    })
}

/// Why there is no page.
#[derive(Debug)]
pub enum NoPage {
    /// Begin anew.
    Stale(Box<StaleCursor>),
    /// For another reason.
    Denied(Denial),
}

impl From<Denial> for NoPage {
    fn from(denial: Denial) -> Self {
        Self::Denied(denial)
    }
}

/// See the module.
#[derive(Debug)]
pub struct Histories {
    authority: OnceLock<Authority>,
    pool_size: usize,
    frame_bytes: usize,
    turns: Arc<Semaphore>,
    asked: Buckets<Label>,
    totals: Mutex<Totals>,
}

/// One of the answers that are made and sent at once. Whoever is slow to take an answer keeps it until then: an answer is
/// in memory for as long.
#[derive(Debug)]
pub struct Turn {
    _permit: OwnedSemaphorePermit,
}

/// What was counted, as the metrics name it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Delivery {
    /// Events that were sent.
    pub served_messages: u64,
    /// Pages and documents that were asked for with a good token.
    pub total_polls: u64,
    /// Cursors that could not be continued.
    pub stale_cursor_events_total: u64,
    /// Pages that were not made because the log is not what it claims.
    pub broken_log_total: u64,
    /// How far behind who asked was, at most, within the last minute or two.
    pub max_replay_lag: u64,
    /// Sessions that have asked within the last minute.
    pub active_consumers: u64,
}

#[derive(Debug, Default)]
struct Totals {
    counted: Delivery,
    consumers: HashMap<Label, Instant>,
    /// The largest lag of this minute and of the one before.
    lags: [u64; 2],
    since: Option<Instant>,
}

impl Histories {
    /// Without an authority yet.
    pub fn new(config: &HistoryConfig, frame_bytes: usize) -> Self {
        Self {
            authority: OnceLock::new(),
            pool_size: config.pool_size,
            frame_bytes,
            turns: Arc::new(Semaphore::new(config.requests)),
            asked: Buckets::new(
                Rate::per_minute(config.session_per_minute, config.session_burst),
                Instant::now(),
            ),
            totals: Mutex::default(),
        }
    }

    /// From here on there is an authority to ask, on connections of its own.
    pub fn attach(&self, authority: &Authority) {
        // A second one is the same.
        let _ = self.authority.set(authority.beside(self.pool_size));
    }

    /// The authority.
    pub fn authority(&self) -> Result<&Authority, Denial> {
        self.authority
            .get()
            .ok_or_else(|| Denial::unavailable("the authority is not connected yet"))
    }

    /// Takes one from a session's bucket, and counts it.
    pub fn admit(&self, session_id: &Label) -> Result<(), Denial> {
        let now = Instant::now();
        self.with(now, |totals| {
            totals.counted.total_polls += 1;
            if totals.consumers.len() >= CONSUMERS {
                totals
                    .consumers
                    .retain(|_, at| now.saturating_duration_since(*at) < RECENT);
            }
            if totals.consumers.len() < CONSUMERS || totals.consumers.contains_key(session_id) {
                totals.consumers.insert(session_id.clone(), now);
            }
        });
        let taken = self.asked.take(session_id.clone(), now);
        taken.map_err(|wait| Denial::rate_limited("this session reads history too often", wait))
    }

    /// A page of what follows a cursor.
    pub async fn page(
        &self,
        _turn: &Turn,
        stream_id: &StreamId,
        cursor: Cursor,
        most: usize,
    ) -> Result<EventPage, NoPage> {
        let authority = self.authority()?;
        let most = most.clamp(1, PAGE_EVENTS);
        let read = authority.history(stream_id, cursor.after, most, limit::PAGE_BYTES);
        let history = read.await.map_err(|error| self.failed(stream_id, &error))?;
        match judge(stream_id, cursor, &history) {
            Judged::Broken => Err(self
                .broken(stream_id, &format!("seq {} is missing", cursor.after))
                .into()),
            Judged::Good(chain) => self.made(stream_id, cursor.after, chain, &history),
            Judged::Stale(mut stale) => {
                self.with(Instant::now(), |totals| totals.counted.stale_cursor_events_total += 1);
                if let Some(extent) = &history.extent
                    && stale.oldest_available_cursor > extent.floor()
                {
                    let at = stale.oldest_available_cursor;
                    let chain = authority.chain_at(stream_id, at).await;
                    match chain.map_err(|error| self.failed(stream_id, &error))? {
                        Some(chain) => stale.oldest_available_chain = chain,
                        // Purged since: the floor has passed it.
                        None => return Err(Denial::unavailable("the log has moved on; ask again").into()),
                    }
                }
                tracing::info!(%stream_id, reasons = ?stale.reason_codes, after = %stale.requested_after_seq, "a stale cursor");
                Err(NoPage::Stale(stale))
            }
        }
    }

    fn made(&self, stream_id: &StreamId, after: Seq, chain: ChainHash, history: &History) -> Result<EventPage, NoPage> {
        let Some(extent) = &history.extent else {
            return Ok(EventPage {
                head_seq: Seq::ZERO,
                head_chain: chain,
                oldest_seq: Seq::ZERO.next(),
                frames: Vec::new(),
            });
        };
        match page(extent, after, chain, &history.events, self.frame_bytes) {
            Ok(page) => {
                let served = page.frames.last().map_or(0, |frame| frame.last_seq.since(after));
                self.with(Instant::now(), |totals| {
                    totals.counted.served_messages += served;
                    totals.lags[0] = totals.lags[0].max(extent.head_seq.since(after));
                });
                Ok(page)
            }
            Err(reason) => Err(self.broken(stream_id, &reason.to_string()).into()),
        }
    }

    /// The document that stands for the beginning of a stream.
    pub async fn snapshot(&self, _turn: &Turn, stream_id: &StreamId) -> Result<Snapshot, Denial> {
        let snapshot = self.authority()?.snapshot(stream_id).await;
        let snapshot = snapshot.map_err(|error| self.failed(stream_id, &error))?;
        let none = || Denial::new(RefusalCode::NotFound, "the stream has no document to start from");
        let snapshot = snapshot.ok_or_else(none)?;
        if snapshot.payload_matches() {
            Ok(snapshot)
        } else {
            Err(self.broken(stream_id, "the document is not what was hashed"))
        }
    }

    fn broken(&self, stream_id: &StreamId, reason: &str) -> Denial {
        self.with(Instant::now(), |totals| totals.counted.broken_log_total += 1);
        tracing::error!(%stream_id, reason, "what the authority holds is not what it claims, and is not sent");
        Denial::new(
            RefusalCode::ChainMismatch,
            "what the authority holds of this stream is not what it claims; an operator has to look at it",
        )
    }

    fn failed(&self, stream_id: &StreamId, error: &AuthorityError) -> Denial {
        if let AuthorityError::Corrupt { .. } = error {
            return self.broken(stream_id, &spacetime_sync_proto::error_text(error));
        }
        tracing::warn!(
            error = spacetime_sync_proto::error_text(error),
            "the authority cannot be asked for history"
        );
        Denial::unavailable("the authority cannot be asked at the moment")
    }

    /// Waits for a turn, for a moment.
    pub async fn turn(&self) -> Result<Turn, Denial> {
        match timeout(TURN, self.turns.clone().acquire_owned()).await {
            Ok(Ok(permit)) => Ok(Turn { _permit: permit }),
            // Never closed.
            Ok(Err(_)) | Err(_) => Err(Denial::rate_limited("too many read history at the moment", TURN)),
        }
    }

    /// What was counted.
    pub fn delivery(&self) -> Delivery {
        let now = Instant::now();
        self.with(now, |totals| {
            totals
                .consumers
                .retain(|_, at| now.saturating_duration_since(*at) < RECENT);
            Delivery {
                max_replay_lag: totals.lags[0].max(totals.lags[1]),
                active_consumers: totals.consumers.len() as u64,
                ..totals.counted
            }
        })
    }

    fn with<T>(&self, now: Instant, count: impl FnOnce(&mut Totals) -> T) -> T {
        // A poisoned lock means a panic while counting: what was counted is still true.
        let mut totals = self.totals.lock().unwrap_or_else(PoisonError::into_inner);
        let since = *totals.since.get_or_insert(now);
        let minutes = now.saturating_duration_since(since).as_secs() / RECENT.as_secs();
        if minutes > 0 {
            totals.lags = [0, if minutes == 1 { totals.lags[0] } else { 0 }];
            totals.since = Some(now);
        }
        count(&mut totals)
    }
}

#[cfg(test)]
mod tests;
