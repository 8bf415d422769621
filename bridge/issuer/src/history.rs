//! History: clients read from the authority's log, over HTTP, what SpacetimeDB no longer holds.
//!
//! Judging a cursor and making a page are pure. [`Histories`] asks the authority on connections of its own, and bounds
//! how often a session may ask. It never sends an event whose hashes do not match, and never moves a cursor.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use serde::Serialize;
use spacetime_sync_authority::{Authority, AuthorityError, Extent, History};
use spacetime_sync_doors::buckets::Buckets;
use spacetime_sync_doors::quota::Rate;
use spacetime_sync_lane::{HaltReason, prepare};
use spacetime_sync_proto::heads::StreamHead;
use spacetime_sync_proto::page::{EventPage, PAGE_EVENTS, Snapshot};
use spacetime_sync_proto::{ChainHash, Event, Label, RefusalCode, Seq, StaleCursor, StaleReason, StreamId, limit};
use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use crate::denial::Denial;
use crate::settings::HistoryConfig;

pub use documents::DocumentsAsked;

/// How long a request waits for its turn.
const TURN: Duration = Duration::from_secs(2);
/// Where a client starts over when it may not replay the whole log. Starting at the bound itself would pass it with the
/// next append, so the client starts a quarter of the bound (1 / `ROOM`) closer to the head.
const ROOM: u64 = 4;
/// How long a session counts as a consumer after it asked, and over how long the largest lag is taken.
const RECENT: Duration = Duration::from_secs(60);
/// With so many users and sessions, those that neither hold nor want a turn are forgotten. There are fewer others: each has
/// a connection.
const SWEPT: usize = 1_024;
/// Most consumers that are counted.
const CONSUMERS: usize = 10_000;

/// The position after which a client wants to read. The chain hash is optional.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cursor {
    /// The seq of the last event that the client has.
    pub after: Seq,
    /// The chain hash there.
    pub chain: Option<ChainHash>,
}

/// Whether the log continues a cursor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Judged {
    /// The log continues it, from this chain hash.
    Good(ChainHash),
    /// The log does not continue it. [`judge`] always gives the chain hash of the floor; a caller that names another
    /// position to start over from must look up its chain hash.
    Stale(Box<StaleCursor>),
    /// The log has no event there, although it begins before and ends after it.
    Broken,
}

/// Judges a cursor against the log as it was at one moment, and names every reason against it.
pub fn judge(stream_id: &StreamId, cursor: Cursor, history: &History) -> Judged {
    let empty = Extent {
        oldest_seq: Seq::ZERO.next(),
        floor_chain: ChainHash::genesis(stream_id),
        head_seq: Seq::ZERO,
        head_chain: ChainHash::genesis(stream_id),
        window_events: None,
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

/// The first position from which a client can start over and stay within the bound for a while.
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

/// Cuts the events after a good cursor into frames. Checks every hash first, as the lane does.
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
    for prepared in prepare(after, chain, events, frame_bytes, None)? {
        bytes += prepared.size();
        if !frames.is_empty() && bytes > limit::PAGE_BYTES {
            break;
        }
        end = prepared.row.last_seq;
        if end == extent.head_seq && prepared.last_chain != extent.head_chain {
            return Err(HaltReason::BrokenLog(format!(
                "seq {end} does not have the chain hash that the stream's row has for its head"
            )));
        }
        frames.push(prepared.row);
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
    /// The client must start over.
    Stale(Box<StaleCursor>),
    /// The request is refused.
    Denied(Denial),
}

impl From<Denial> for NoPage {
    fn from(denial: Denial) -> Self {
        Self::Denied(denial)
    }
}

/// Reads the authority's log for clients.
#[derive(Debug)]
pub struct Histories {
    authority: OnceLock<Authority>,
    pool_size: usize,
    frame_bytes: usize,
    turns: Arc<Semaphore>,
    /// How many turns one user may hold, and one session.
    shares: Shares,
    /// The turns of the users and sessions that hold or want one.
    holders: Mutex<HashMap<Holder, Weak<Semaphore>>>,
    asked: Buckets<Label>,
    totals: Mutex<Totals>,
}

/// Who holds turns.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Holder {
    User(Label),
    Session(Label),
}

/// How many turns each may hold.
#[derive(Debug, Clone, Copy)]
struct Shares {
    user: usize,
    session: usize,
}

/// The right to make one of the answers that may be in memory at the same time. It lasts until the client has taken its
/// answer.
#[derive(Debug)]
pub struct Turn {
    _permits: [OwnedSemaphorePermit; 3],
}

/// The counters, under the names of the metrics.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Delivery {
    /// Events that were sent.
    pub served_messages: u64,
    /// Documents that were sent by their keys.
    pub served_documents: u64,
    /// Requests for pages, snapshots and documents with a good token.
    pub total_polls: u64,
    /// Cursors that the log does not continue.
    pub stale_cursor_events_total: u64,
    /// Answers that were refused because hashes in the log, or those of documents, do not match.
    pub broken_log_total: u64,
    /// How many events the slowest client was behind within the last two minutes.
    pub max_replay_lag: u64,
    /// Sessions that asked within the last minute.
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
    /// There is no authority to ask yet; see [`attach`](Histories::attach).
    pub fn new(config: &HistoryConfig, frame_bytes: usize) -> Self {
        Self {
            authority: OnceLock::new(),
            pool_size: config.pool_size,
            frame_bytes,
            turns: Arc::new(Semaphore::new(config.requests)),
            shares: Shares {
                user: (config.requests / 2).max(1),
                session: (config.requests / 4).max(1),
            },
            holders: Mutex::default(),
            asked: Buckets::new(
                Rate::per_minute(config.session_per_minute, config.session_burst),
                Instant::now(),
            ),
            totals: Mutex::default(),
        }
    }

    /// Sets the authority, which it asks on connections of its own. A second call changes nothing.
    pub fn attach(&self, authority: &Authority) {
        let _ = self.authority.set(authority.beside(self.pool_size));
    }

    /// The authority.
    pub fn authority(&self) -> Result<&Authority, Denial> {
        self.authority
            .get()
            .ok_or_else(|| Denial::unavailable("the authority is not connected yet"))
    }

    /// Takes a token from a session's bucket, and counts the session.
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

    /// Where these streams end.
    pub async fn heads(&self, _turn: &Turn, streams: &[StreamId]) -> Result<Vec<StreamHead>, Denial> {
        self.authority()?.heads(streams).await.map_err(|error| {
            let error = spacetime_sync_proto::error_text(&error);
            tracing::warn!(error, "cannot read heads from the authority");
            Denial::unavailable("the authority is not available at the moment")
        })
    }

    /// A page of the events after a cursor.
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
                        // The log was purged in between, past this position.
                        None => return Err(Denial::unavailable("the log was purged meanwhile; ask again").into()),
                    }
                }
                tracing::info!(%stream_id, reasons = ?stale.reason_codes, after = %stale.requested_after_seq, "a client must start over: the log does not continue its cursor");
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
            Err(self.broken(stream_id, "the document's payload does not have its payload hash"))
        }
    }

    fn broken(&self, stream_id: &StreamId, reason: &str) -> Denial {
        self.with(Instant::now(), |totals| totals.counted.broken_log_total += 1);
        tracing::error!(%stream_id, reason, "hashes in the authority's log do not match; history of this stream is not sent");
        Denial::new(
            RefusalCode::ChainMismatch,
            "the hashes of this stream do not match in the authority; an operator must look at it",
        )
    }

    fn failed(&self, stream_id: &StreamId, error: &AuthorityError) -> Denial {
        if let AuthorityError::Corrupt { .. } = error {
            return self.broken(stream_id, &spacetime_sync_proto::error_text(error));
        }
        tracing::warn!(
            error = spacetime_sync_proto::error_text(error),
            "cannot read history from the authority"
        );
        Denial::unavailable("the authority is not available at the moment")
    }

    /// Waits a moment for a turn. A session waits for its own turns first, and then for its user's, so that it never stands
    /// in the way of others.
    pub async fn turn(&self, session_id: &Label, user_id: &Label) -> Result<Turn, Denial> {
        let own = [
            self.turns_of(Holder::Session(session_id.clone()), self.shares.session),
            self.turns_of(Holder::User(user_id.clone()), self.shares.user),
        ];
        let all = async {
            let [of_session, of_user] = own;
            Ok::<_, AcquireError>([
                of_session.acquire_owned().await?,
                of_user.acquire_owned().await?,
                self.turns.clone().acquire_owned().await?,
            ])
        };
        match timeout(TURN, all).await {
            Ok(Ok(permits)) => Ok(Turn { _permits: permits }),
            // Nobody closes the semaphores.
            Ok(Err(_)) | Err(_) => Err(Denial::rate_limited(
                "too many clients read history at the moment",
                TURN,
            )),
        }
    }

    /// The turns of one user or session. They last as long as one of them is held or waited for.
    fn turns_of(&self, holder: Holder, share: usize) -> Arc<Semaphore> {
        let mut holders = self.holders.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(turns) = holders.get(&holder).and_then(Weak::upgrade) {
            return turns;
        }
        if holders.len() >= SWEPT {
            holders.retain(|_, turns| turns.strong_count() > 0);
        }
        let turns = Arc::new(Semaphore::new(share));
        holders.insert(holder, Arc::downgrade(&turns));
        turns
    }

    /// The counters.
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
        // A panic while counting poisons the lock, but leaves the counters true.
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

mod documents;
#[cfg(test)]
mod tests;
