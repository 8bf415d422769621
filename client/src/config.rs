//! What a client is told: where the lane is, who it is, which streams, and every bound that it keeps.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use spacetime_sync_proto::access::ClientVersion;
use spacetime_sync_proto::contract::{PROTOCOL, SCHEMA_VERSION};
use spacetime_sync_proto::{StreamId, limit};

use crate::credential::{Credential, is_token};
use crate::error::ConfigError;

/// The build of an application that does not say which it is.
pub const DEFAULT_BUILD_ID: &str = "20260101T000000Z";
/// What kind of client an application is that does not say.
pub const DEFAULT_SURFACE: &str = "desktop";

/// What a client is told.
#[derive(Clone)]
pub struct ClientConfig {
    /// Where SpacetimeDB listens: `http://host:port` or `https://host`.
    pub uri: String,
    /// Name of the database that the module is published as.
    pub database: String,
    /// What to connect with. Never shown.
    pub credential: Credential,
    /// The application's build, `YYYYMMDDTHHMMSSZ`: what an operator decides by whether it is served.
    pub client_build_id: String,
    /// What kind of client the application is.
    pub surface: String,
    /// The streams to follow, each once.
    pub streams: Vec<StreamId>,
    /// Whether only what is durable is delivered.
    pub reads: Reads,
    /// Whether the host compresses large messages. Worth it over a network, not on one machine.
    pub compression: bool,
    /// Where the authority's log is read.
    pub history: History,
    /// What to do about a stale cursor.
    pub on_stale: StaleAnswer,
    /// The same for single streams.
    pub on_stale_of: BTreeMap<StreamId, StaleAnswer>,
    /// How long to wait between attempts to connect.
    pub backoff: Backoff,
    /// Every bound in time and memory.
    pub limits: Limits,
}

/// What to do when what was applied cannot be continued event by event: it is too old for the authority, or is no part of
/// its log any more.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum StaleAnswer {
    /// Stop the stream, and let a person decide.
    #[default]
    Stop,
    /// Start over at the oldest event that the authority keeps. What came before it is never seen.
    Restart,
    /// Start over from the document that stands for the events before, if the stream has one.
    Rebootstrap(WithoutDocument),
}

/// What to do where there is no document to begin from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum WithoutDocument {
    /// As [`StaleAnswer::Stop`].
    #[default]
    Stop,
    /// As [`StaleAnswer::Restart`].
    Restart,
}

/// Where the authority's log is read: what SpacetimeDB holds no longer, and who is right when it contradicts what was
/// applied.
#[derive(Clone, Default, PartialEq, Eq)]
pub enum History {
    /// Where tokens come from, if that is a bridge: [`HttpTokens`](crate::HttpTokens).
    #[default]
    OfCredential,
    /// At the bridge with this address, with the token that the client connects with.
    At(String),
    /// Nowhere: a stream stops where it cannot go on by the lane alone.
    Off,
}

impl fmt::Debug for History {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OfCredential => "OfCredential",
            // The address may hold a password.
            Self::At(_) => "At((redacted))",
            Self::Off => "Off",
        })
    }
}

impl ClientConfig {
    /// With the defaults: confirmed reads, no compression.
    pub fn new(uri: impl Into<String>, database: impl Into<String>, streams: Vec<StreamId>) -> Self {
        Self {
            uri: uri.into(),
            database: database.into(),
            credential: Credential::Anonymous,
            client_build_id: DEFAULT_BUILD_ID.to_owned(),
            surface: DEFAULT_SURFACE.to_owned(),
            streams,
            reads: Reads::Confirmed,
            compression: false,
            history: History::default(),
            on_stale: StaleAnswer::default(),
            on_stale_of: BTreeMap::new(),
            backoff: Backoff::default(),
            limits: Limits::default(),
        }
    }

    /// Refuses what cannot work, before anything is opened.
    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        let uri: tungstenite::http::Uri =
            self.uri
                .parse()
                .map_err(|error: tungstenite::http::uri::InvalidUri| ConfigError::Uri {
                    found: self.uri.clone(),
                    detail: error.to_string(),
                })?;
        let scheme = uri.scheme_str().unwrap_or_default();
        if !["http", "https", "ws", "wss"].contains(&scheme) || uri.authority().is_none() || uri.query().is_some() {
            let detail = "a scheme, a host and no query are needed".to_owned();
            return Err(ConfigError::Uri {
                found: self.uri.clone(),
                detail,
            });
        }
        let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if self.database.is_empty() || !self.database.chars().all(good) {
            return Err(ConfigError::Database {
                found: self.database.clone(),
            });
        }
        match &self.credential {
            Credential::Fixed(token) if !is_token(token) => return Err(ConfigError::Token),
            Credential::Anonymous | Credential::Fixed(_) | Credential::Provider(_) => {}
        }
        // Whether the build is one that is served is the operator's to say; here it only has to fit into a header.
        for (name, found) in [("client_build_id", &self.client_build_id), ("surface", &self.surface)] {
            if !is_token(found) {
                return Err(ConfigError::Version { name });
            }
        }
        if self.streams.is_empty() {
            return Err(ConfigError::NoStreams);
        }
        let mut seen = BTreeSet::new();
        if let Some(twice) = self.streams.iter().find(|stream| !seen.insert(*stream)) {
            return Err(ConfigError::StreamTwice { stream: twice.clone() });
        }
        self.limits.check()?;
        self.backoff.check()
    }

    /// What bounds one of the streams. `history` says whether the authority can be asked.
    pub(crate) fn bounds_of(&self, stream_id: &StreamId, history: bool) -> StreamBounds {
        let limits = &self.limits;
        StreamBounds {
            window_bytes: (limits.subscribed_bytes / self.streams.len().max(1)).max(limit::FRAME_BYTES),
            unapplied_bytes: limits.unapplied_bytes,
            resume_bytes: limits.resume_bytes,
            subscribe_within_events: limits.subscribe_within_events,
            subscribe_within_bytes: limits.subscribe_within_bytes,
            apply_attempts: limits.apply_attempts,
            recovery_attempts: limits.recovery_attempts,
            history,
            on_stale: self.on_stale_of.get(stream_id).copied().unwrap_or(self.on_stale),
            reads: self.reads,
        }
    }

    /// What the client says it is.
    pub(crate) fn version(&self) -> ClientVersion {
        ClientVersion {
            client_build_id: self.client_build_id.clone(),
            protocol_version: PROTOCOL.to_owned(),
            schema_version: SCHEMA_VERSION,
            surface: self.surface.clone(),
        }
    }
}

impl fmt::Debug for ClientConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientConfig")
            .field("uri", &self.uri)
            .field("database", &self.database)
            .field("credential", &self.credential)
            .field("client_build_id", &self.client_build_id)
            .field("surface", &self.surface)
            .field("streams", &self.streams)
            .field("reads", &self.reads)
            .field("compression", &self.compression)
            .field("history", &self.history)
            .field("on_stale", &self.on_stale)
            .field("on_stale_of", &self.on_stale_of)
            .field("backoff", &self.backoff)
            .field("limits", &self.limits)
            .finish()
    }
}

/// When the host delivers what it has committed. It is a property of a connection, so of all streams of a client: who
/// wants some streams early follows them with a client of their own.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Reads {
    /// When it is durable: what was applied is never lost by the host.
    #[default]
    Confirmed,
    /// At once, and only of streams whose class allows it; the others stop with
    /// [`StreamStop::DurableReads`](crate::StreamStop::DurableReads), and nothing of them is applied. A power failure may
    /// take from the host what was applied. It comes again, being in the authority; a stream that asks before it is there
    /// stops as ahead of its lane.
    Early,
}

impl Reads {
    /// Whether a connection is to ask for what is durable only.
    pub(crate) fn are_confirmed(self) -> bool {
        match self {
            Self::Confirmed => true,
            Self::Early => false,
        }
    }
}

/// No time that is configured is longer: added to any instant, it is one that every clock knows.
const LONGEST_TIME: Duration = Duration::from_secs(365 * 24 * 60 * 60);

fn check_longest<const N: usize>(times: [(&'static str, Duration); N]) -> Result<(), ConfigError> {
    match times.into_iter().find(|(_, time)| *time > LONGEST_TIME) {
        None => Ok(()),
        Some((name, _)) => Err(ConfigError::Limit {
            name,
            needed: "at most 365 days",
        }),
    }
}

/// No party that is asked makes a client wait for longer.
const LONGEST_ASKED: Duration = Duration::from_secs(300);

/// How long to wait between attempts: the first comes somewhere within `spread`, so that many clients that lose their
/// connections at once do not come back at once. Then doubling from `first` to `most`, each somewhere in its upper half.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backoff {
    /// Before the attempt that follows a connection that was lost, at most: 1 s.
    pub spread: Duration,
    /// Before the one after that: 250 ms.
    pub first: Duration,
    /// Never longer: 4 s.
    pub most: Duration,
    /// A connection that served this long makes the next failure the first again: 10 s.
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
    /// The same, but no less than someone asked for, up to five minutes.
    pub(crate) fn delay_of(&self, attempt: u32, asked: Option<Duration>, roll: f64) -> Duration {
        // Those who were told the same wait should not come back at once either.
        let asked = asked.unwrap_or_default().min(LONGEST_ASKED);
        self.delay(attempt, roll).max(asked.mul_f64(1.0 + roll / 4.0))
    }

    /// The wait after the `attempt`th failure in a row (1, 2, …); `roll` is random, from 0 up to 1.
    pub fn delay(&self, attempt: u32, roll: f64) -> Duration {
        if attempt <= 1 {
            return self.spread.mul_f64(roll.clamp(0.0, 1.0));
        }
        let doubled = self.first.saturating_mul(1 << (attempt - 2).min(16));
        doubled.min(self.most).mul_f64(0.5 + roll.clamp(0.0, 1.0) / 2.0)
    }

    fn check(&self) -> Result<(), ConfigError> {
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
    /// Bytes of frames that were received and are not applied yet, over all streams: 8 MiB. Past it nothing more is
    /// read, and live streams go back to paging, which only brings what was asked for.
    pub unapplied_bytes: usize,
    /// Of these a stream may have so many when it goes live again after it lagged: 1 MiB.
    pub resume_bytes: usize,
    /// Bytes of rows that subscriptions may bring before they are replaced by ones from later positions: 4 MiB. The SDK
    /// keeps every row of a subscription, and queues what is not yet taken without a bound of its own, so a
    /// subscription also ends so far ahead of the cursor: the host never sends more than was asked for. Replacing
    /// brings the rows once more.
    pub subscribed_bytes: usize,
    /// When a host is so far behind with sending that replacing takes effect too late, and so many bytes of rows have
    /// come meanwhile, the connection is replaced, which frees them all at once: 24 MiB. The SDK keeps each row twice, as
    /// it came and as it was read: twice this is most of what a client holds at its peak.
    pub reconnect_bytes: usize,
    /// Pages under way at the same time, over all streams: 4.
    pub pages_in_flight: usize,
    /// A stream subscribes when it is so many events behind its head: 2,000 …
    pub subscribe_within_events: u64,
    /// … and about so many bytes: 1 MiB. Until then it pages.
    pub subscribe_within_bytes: u64,
    /// Events applied in one transaction: 4,000 …
    pub batch_events: usize,
    /// … or bytes of frames, whichever comes first, but at least one frame: 2 MiB.
    pub batch_bytes: usize,
    /// How often a batch is tried that the handler asks to retry, or whose store is busy: 8. Then its stream stops.
    pub apply_attempts: u32,
    /// Requests to the authority under way at the same time, over all streams: 2.
    pub history_in_flight: usize,
    /// How long one of them may take: 30 s.
    pub history_timeout: Duration,
    /// How often a stream starts over, and how often it lets a lane be that contradicts the authority, before it stops:
    /// 3. Counted anew when it has been live for [`Backoff::stable_after`].
    pub recovery_attempts: u32,
    /// From the first packet of a connection to the host's contract: 5 s.
    pub connect_timeout: Duration,
    /// How long a [`TokenProvider`](crate::TokenProvider) may take: 15 s.
    pub token_timeout: Duration,
    /// How long asking a host why it closed a connection may take: 5 s.
    pub reason_timeout: Duration,
    /// How long the connection that a new token's replaces may go on, until all its streams have changed over: 5 s.
    pub handover_timeout: Duration,
    /// When nothing was heard for so long, the head of a live stream is asked for: 3 s.
    pub heartbeat_after: Duration,
    /// When a call is under way and nothing is heard for so long, the connection is given up: 4 s.
    pub silence_timeout: Duration,
    /// When a single call is not answered for so long, the connection is given up, whatever else is heard: 60 s.
    pub answer_timeout: Duration,
    /// Each live stream's head is asked for at least this often, so that a lost delivery heals: 30 s.
    pub verify_every: Duration,
    /// When the module refused a stream, it is asked for again after so long: 5 s. A grant may come later.
    pub ask_again_after: Duration,
    /// A stream counts as live until something known has been unapplied for so long: 1 s.
    pub live_grace: Duration,
    /// A moved checkpoint is acknowledged at most this often per stream: 5 s.
    pub ack_every: Duration,
    /// Acknowledgements sent in one go, every quarter second: 8.
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
            ask_again_after: Duration::from_secs(5),
            live_grace: Duration::from_secs(1),
            ack_every: Duration::from_secs(5),
            acks_at_once: 8,
            stop_timeout: Duration::from_secs(1),
        }
    }
}

impl Limits {
    fn check(&self) -> Result<(), ConfigError> {
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

/// What the pure core needs to know of [`Limits`], and of how the connection reads.
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
    /// Whether the authority can be asked.
    pub history: bool,
    /// See [`ClientConfig::on_stale`].
    pub on_stale: StaleAnswer,
    /// See [`ClientConfig::reads`].
    pub reads: Reads,
    /// This stream's part of [`Limits::subscribed_bytes`], and a large frame at least: however many streams there are,
    /// a subscription is not renewed for every few events.
    pub window_bytes: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> ClientConfig {
        ClientConfig::new("http://127.0.0.1:3000", "lane", vec![StreamId::new("a").unwrap()])
    }

    #[test]
    fn the_token_is_never_shown() {
        let shown = format!(
            "{:?}",
            ClientConfig {
                credential: Credential::Fixed("very-secret".to_owned()),
                ..config()
            }
        );
        assert!(!shown.contains("very-secret"), "{shown}");
        assert!(shown.contains("(redacted)"), "{shown}");
    }

    #[test]
    fn what_cannot_work_is_refused() {
        assert!(config().check().is_ok());
        for wrong in ["", "127.0.0.1", "ftp://host", "http://host/?x=1", "http://a b"] {
            assert!(
                ClientConfig {
                    uri: wrong.to_owned(),
                    ..config()
                }
                .check()
                .is_err(),
                "{wrong:?}"
            );
        }
        for wrong in ["", "a/b", "a b", "a?b"] {
            assert!(
                ClientConfig {
                    database: wrong.to_owned(),
                    ..config()
                }
                .check()
                .is_err(),
                "{wrong:?}"
            );
        }
        for wrong in ["", "a\nb", "ü"] {
            assert_eq!(
                ClientConfig {
                    credential: Credential::Fixed(wrong.to_owned()),
                    ..config()
                }
                .check(),
                Err(ConfigError::Token)
            );
        }
        assert_eq!(
            ClientConfig {
                client_build_id: "a\nb".to_owned(),
                ..config()
            }
            .check(),
            Err(ConfigError::Version {
                name: "client_build_id"
            })
        );
        assert_eq!(
            ClientConfig {
                streams: Vec::new(),
                ..config()
            }
            .check(),
            Err(ConfigError::NoStreams)
        );
        let stream = StreamId::new("a").unwrap();
        let twice = ClientConfig {
            streams: vec![stream.clone(), stream.clone()],
            ..config()
        };
        assert_eq!(twice.check(), Err(ConfigError::StreamTwice { stream }));
    }

    #[test]
    fn no_time_is_zero_where_it_would_spin_nor_longer_than_a_year() {
        type Set = fn(&mut ClientConfig, Duration);
        let needed = |set: Set, time| {
            let mut config = config();
            set(&mut config, time);
            config.check().err().map(|error| error.to_string())
        };
        let year = Duration::from_secs(365 * 24 * 60 * 60);
        let zero = "limits: ask_again_after must be longer than 0";
        let long = |name| format!("limits: {name} must be at most 365 days");
        let set: Set = |config, time| config.limits.ask_again_after = time;
        assert_eq!(needed(set, Duration::ZERO).as_deref(), Some(zero));
        assert_eq!(needed(set, year), None);
        assert_eq!(needed(set, Duration::MAX), Some(long("ask_again_after")));
        let times: [(&str, Set); 5] = [
            ("handover_timeout", |config, time| config.limits.handover_timeout = time),
            ("stop_timeout", |config, time| config.limits.stop_timeout = time),
            ("backoff.spread", |config, time| config.backoff.spread = time),
            ("backoff.most", |config, time| config.backoff.most = time),
            ("backoff.stable_after", |config, time| {
                config.backoff.stable_after = time
            }),
        ];
        for (name, set) in times {
            assert_eq!(needed(set, year), None);
            assert_eq!(needed(set, year + Duration::from_nanos(1)), Some(long(name)));
        }
    }

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
