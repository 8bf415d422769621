//! Every bound in time and memory that a client keeps.

use std::time::Duration;

use super::{Reads, StaleAnswer};
use crate::error::ConfigError;

/// The longest time that may be configured. Added to any instant it stays within what a clock can represent.
pub(crate) const LONGEST_TIME: Duration = Duration::from_secs(365 * 24 * 60 * 60);

fn check_longest<const N: usize>(times: [(&'static str, Duration); N]) -> Result<(), ConfigError> {
    match times.into_iter().find(|(_, time)| *time > LONGEST_TIME) {
        None => Ok(()),
        Some((name, _)) => Err(ConfigError::Limit {
            name,
            needed: "at most 365 days",
        }),
    }
}

/// The longest wait that another party can impose on a client.
const LONGEST_ASKED: Duration = Duration::from_secs(300);

/// How long to wait between attempts. The first wait is random within `spread`, so that clients that lose their
/// connections together do not return together. Later waits double from `first` to `most`, each random within its upper
/// half.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backoff {
    /// The longest wait before the first attempt after a lost connection: 1 s.
    pub spread: Duration,
    /// The wait before the next attempt: 250 ms.
    pub first: Duration,
    /// The longest wait: 4 s.
    pub most: Duration,
    /// After a connection has been stable for this long, the next failure counts as the first: 10 s.
    pub stable_after: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self {
            spread: Duration::from_secs(1),
            first: Duration::from_millis(250),
            most: Duration::from_secs(4),
            stable_after: Duration::from_secs(10),
        }
    }
}

impl Backoff {
    /// The same, but at least the wait that somebody asked for, up to five minutes.
    pub(crate) fn delay_of(&self, attempt: u32, asked: Option<Duration>, roll: f64) -> Duration {
        // Spread the wait: others were probably told the same one.
        let asked = asked.unwrap_or_default().min(LONGEST_ASKED);
        self.delay(attempt, roll).max(asked.mul_f64(1.0 + roll / 4.0))
    }

    /// The wait after the `attempt`th failure in a row (1, 2, …); `roll` is random, between 0 and 1.
    pub fn delay(&self, attempt: u32, roll: f64) -> Duration {
        if attempt <= 1 {
            return self.spread.mul_f64(roll.clamp(0.0, 1.0));
        }
        let doubled = self.first.saturating_mul(1 << (attempt - 2).min(16));
        doubled.min(self.most).mul_f64(0.5 + roll.clamp(0.0, 1.0) / 2.0)
    }

    pub(super) fn check(&self) -> Result<(), ConfigError> {
        if self.first.is_zero() || self.most < self.first {
            return Err(ConfigError::Limit {
                name: "backoff",
                needed: "0 < first <= most",
            });
        }
        check_longest([
            ("backoff.spread", self.spread),
            ("backoff.most", self.most),
            ("backoff.stable_after", self.stable_after),
        ])
    }
}

/// Every bound in time and memory, with its default. No time may be longer than 365 days.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of frames received and not yet applied, over all streams: 8 MiB. Past this the client reads nothing more,
    /// and live streams go back to paging, which only brings what was asked for.
    pub unapplied_bytes: usize,
    /// How many of these bytes a stream may have when it goes live again after it lagged: 1 MiB.
    pub resume_bytes: usize,
    /// Bytes of rows that subscriptions may bring before newer subscriptions replace them: 4 MiB. The SDK keeps every
    /// row of a subscription and queues rows without a bound of its own. So a subscription also ends this far ahead of
    /// the cursor, and SpacetimeDB never sends more than was asked for. Replacing a subscription brings its rows once
    /// more.
    pub subscribed_bytes: usize,
    /// When SpacetimeDB is so slow to send that replacing subscriptions takes effect too late, and this many bytes of
    /// rows have arrived meanwhile, the client replaces the connection, which frees all rows at once: 24 MiB. The SDK
    /// keeps each row twice, as received and as decoded: twice this is most of a client's peak memory.
    pub reconnect_bytes: usize,
    /// How many bytes each stream adds to these two bounds: 16 KiB. To replace a subscription costs the same however little
    /// it has brought. Without this share, a client of thousands of streams would spend most of its time on that.
    pub stream_bytes: usize,
    /// Pages under way at the same time, over all streams: 4.
    pub pages_in_flight: usize,
    /// A stream subscribes when it is at most this many events behind its head: 2,000 …
    pub subscribe_within_events: u64,
    /// … and about this many bytes: 1 MiB. Until then it pages.
    pub subscribe_within_bytes: u64,
    /// Events applied in one transaction: 4,000 …
    pub batch_events: usize,
    /// … or bytes of frames, whichever comes first, but at least one frame: 2 MiB.
    pub batch_bytes: usize,
    /// How many times to try a batch that the handler wants retried or whose store is busy: 8. Then its stream stops.
    pub apply_attempts: u32,
    /// Requests to the authority under way at the same time, over all streams: 2.
    pub history_in_flight: usize,
    /// How long one of them may take: 30 s.
    pub history_timeout: Duration,
    /// How many times a stream starts over before it stops: 3. The count restarts when the stream has been live for [`Backoff::stable_after`].
    pub recovery_attempts: u32,
    /// From the first packet of a connection to the module's contract: 5 s.
    pub connect_timeout: Duration,
    /// How long a [`TokenProvider`](crate::TokenProvider) may take: 15 s.
    pub token_timeout: Duration,
    /// How long asking SpacetimeDB why it closed a connection may take: 5 s.
    pub reason_timeout: Duration,
    /// How long the old connection may serve after a new one took over, until all streams have moved: 5 s.
    pub handover_timeout: Duration,
    /// When nothing was heard for this long, the client asks for the head of a live stream: 3 s.
    pub heartbeat_after: Duration,
    /// When a call is pending and nothing is heard for this long, the client gives up the connection: 4 s.
    pub silence_timeout: Duration,
    /// When a single call is unanswered for this long, the client gives up the connection whatever else it hears: 60 s.
    pub answer_timeout: Duration,
    /// The client asks for each live stream's head at least this often, so that a lost delivery heals: 30 s.
    pub verify_every: Duration,
    /// How long SpacetimeDB may take to bring what the authority says there is, besides 10 ms for each missing event: 30 s.
    /// After that the client reads it from the authority.
    pub overdue_after: Duration,
    /// How often the client asks the authority where its streams end, besides with each token: every 5 min.
    pub heads_every: Duration,
    /// When to ask again for a stream that the module refused: after 5 s. A grant may come later.
    pub ask_again_after: Duration,
    /// How long a stream may be behind and still count as live: 1 s.
    pub live_grace: Duration,
    /// The shortest time between two acknowledgements of a stream: 5 s.
    pub ack_every: Duration,
    /// Most acknowledgements sent at once, every quarter second: 8.
    pub acks_at_once: usize,
    /// How long a stopping client waits for its last acknowledgements: 1 s.
    pub stop_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            unapplied_bytes: 8 << 20,
            resume_bytes: 1 << 20,
            subscribed_bytes: 4 << 20,
            reconnect_bytes: 24 << 20,
            stream_bytes: 16 << 10,
            pages_in_flight: 4,
            subscribe_within_events: 2_000,
            subscribe_within_bytes: 1 << 20,
            batch_events: 4_000,
            batch_bytes: 2 << 20,
            apply_attempts: 8,
            history_in_flight: 2,
            history_timeout: Duration::from_secs(30),
            recovery_attempts: 3,
            connect_timeout: Duration::from_secs(5),
            token_timeout: Duration::from_secs(15),
            reason_timeout: Duration::from_secs(5),
            handover_timeout: Duration::from_secs(5),
            heartbeat_after: Duration::from_secs(3),
            silence_timeout: Duration::from_secs(4),
            answer_timeout: Duration::from_secs(60),
            verify_every: Duration::from_secs(30),
            overdue_after: Duration::from_secs(30),
            heads_every: Duration::from_secs(300),
            ask_again_after: Duration::from_secs(5),
            live_grace: Duration::from_secs(1),
            ack_every: Duration::from_secs(5),
            acks_at_once: 8,
            stop_timeout: Duration::from_secs(1),
        }
    }
}

impl Limits {
    /// What the subscriptions of so many streams may bring before the largest is replaced.
    pub(crate) fn subscribed(&self, streams: usize) -> usize {
        self.subscribed_bytes
            .saturating_add(streams.saturating_mul(self.stream_bytes))
    }

    /// What they may bring before the connection is replaced.
    pub(crate) fn overfull(&self, streams: usize) -> usize {
        self.reconnect_bytes
            .saturating_add(streams.saturating_mul(self.stream_bytes))
    }

    pub(super) fn check(&self) -> Result<(), ConfigError> {
        let wrong = |name, needed| Err(ConfigError::Limit { name, needed });
        if self.pages_in_flight == 0 || self.history_in_flight == 0 {
            return wrong("pages_in_flight and history_in_flight", "at least 1");
        }
        if self.batch_events == 0 || self.batch_bytes == 0 {
            return wrong("batch_events and batch_bytes", "at least 1");
        }
        if self.apply_attempts == 0 {
            return wrong("apply_attempts", "at least 1");
        }
        if self.resume_bytes >= self.unapplied_bytes {
            return wrong("resume_bytes", "less than unapplied_bytes");
        }
        if self.subscribed_bytes == 0 || self.reconnect_bytes <= self.subscribed_bytes {
            return wrong("subscribed_bytes", "at least 1, and less than reconnect_bytes");
        }
        let never_zero = [
            ("connect_timeout", self.connect_timeout),
            ("token_timeout", self.token_timeout),
            ("reason_timeout", self.reason_timeout),
            ("handover_timeout", self.handover_timeout),
            ("heartbeat_after", self.heartbeat_after),
            ("silence_timeout", self.silence_timeout),
            ("verify_every", self.verify_every),
            ("overdue_after", self.overdue_after),
            ("heads_every", self.heads_every),
            ("history_timeout", self.history_timeout),
            ("ask_again_after", self.ask_again_after),
        ];
        if let Some((name, _)) = never_zero.iter().find(|(_, time)| time.is_zero()) {
            return wrong(name, "longer than 0");
        }
        check_longest(never_zero)?;
        check_longest([
            ("answer_timeout", self.answer_timeout),
            ("live_grace", self.live_grace),
            ("ack_every", self.ack_every),
            ("stop_timeout", self.stop_timeout),
        ])
    }
}

/// What a stream carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Carries {
    /// Events, each of which the handler applies.
    Events,
    /// Documents by key, which the store holds.
    Documents {
        /// Whether the store holds those of the checkpoint. If not, the stream begins with them.
        are_held: bool,
    },
}

impl Carries {
    /// Whether it carries documents.
    pub fn are_documents(self) -> bool {
        match self {
            Self::Documents { .. } => true,
            Self::Events => false,
        }
    }
}

/// What the pure core needs of [`Limits`] and of the connection.
#[derive(Debug, Clone)]
pub struct StreamBounds {
    /// See [`Limits::unapplied_bytes`].
    pub unapplied_bytes: usize,
    /// See [`Limits::resume_bytes`].
    pub resume_bytes: usize,
    /// See [`Limits::subscribe_within_events`].
    pub subscribe_within_events: u64,
    /// See [`Limits::subscribe_within_bytes`].
    pub subscribe_within_bytes: u64,
    /// See [`Limits::apply_attempts`].
    pub apply_attempts: u32,
    /// See [`Limits::recovery_attempts`].
    pub recovery_attempts: u32,
    /// Whether the client can ask the authority.
    pub history: bool,
    /// See [`ClientConfig::on_stale`](crate::ClientConfig::on_stale).
    pub on_stale: StaleAnswer,
    /// See [`ClientConfig::reads`](crate::ClientConfig::reads).
    pub reads: Reads,
    /// What the stream carries.
    pub carries: Carries,
    /// This stream's share of [`Limits::subscribed_bytes`], but at least one large frame: with very many streams,
    /// subscriptions would otherwise be replaced every few events.
    pub reach_bytes: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_doubles_up_to_its_bound_and_is_jittered() {
        let backoff = Backoff::default();
        let longest: Vec<_> = (1..=8).map(|attempt| backoff.delay(attempt, 1.0).as_millis()).collect();
        assert_eq!(longest, [1_000, 250, 500, 1_000, 2_000, 4_000, 4_000, 4_000]);
        assert_eq!([0.0, 0.5].map(|roll| backoff.delay(1, roll).as_millis()), [0, 500]);
        assert_eq!(backoff.delay(2, 0.0).as_millis(), 125);
        assert_eq!(backoff.delay(u32::MAX, 0.0).as_millis(), 2_000);
        let asked = |seconds| backoff.delay_of(1, Some(Duration::from_secs(seconds)), 0.0);
        assert_eq!(
            [asked(0), asked(7), asked(u64::MAX)].map(|wait| wait.as_millis()),
            [0, 7_000, 300_000]
        );
    }
}
