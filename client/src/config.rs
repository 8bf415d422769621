//! What a client needs to know: where SpacetimeDB is, who the client is, which streams it follows, and every bound it
//! keeps.

pub(crate) mod limits;

pub use limits::{Backoff, Carries, Limits, StreamBounds};

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use spacetime_sync_proto::access::{ClientVersion, Scope, Topic};
use spacetime_sync_proto::contract::{OLDEST_SCHEMA_VERSION, PROTOCOL, SCHEMA_VERSION};
use spacetime_sync_proto::{DatabasePin, SealKey, StreamId, limit};
use spacetime_sync_transport::Transport;

use crate::credential::{Credential, is_token};
use crate::error::ConfigError;

/// The build id of an application that sets none.
pub const DEFAULT_BUILD_ID: &str = "20260101T000000Z";
/// The surface of an application that sets none.
pub const DEFAULT_SURFACE: &str = "desktop";

/// What allows plaintext to another machine.
pub(crate) const ALLOWED_BY: &str = "`Transport::allow_plaintext`";

/// The configuration of a client.
#[derive(Clone)]
pub struct ClientConfig {
    /// Where SpacetimeDB listens: `http://host:port` or `https://host`.
    pub uri: String,
    /// How to reach SpacetimeDB, and the bridge for history.
    pub transport: Transport,
    /// Name of the database that the module is published as.
    pub database: String,
    /// Which database that must be, until a token says it: `spacetime-sync publish` prints it. Without a pin the client
    /// connects to whichever database has the name, even if a stranger created it.
    pub pin: Option<DatabasePin>,
    /// What to connect with. Never shown.
    pub credential: Credential,
    /// The application's build, `YYYYMMDDTHHMMSSZ`. The operator decides by it which builds are supported.
    pub client_build_id: String,
    /// What kind of client the application is.
    pub surface: String,
    /// The streams to follow, each once.
    pub streams: Vec<StreamId>,
    /// The streams to follow as documents by key, each once, and none of them in `streams`. The store holds the newest version of each
    /// document, and [`SyncClient::documents`](crate::SyncClient::documents) reads them; the handler never sees their events. They need
    /// a store that holds documents, and [history](Self::history).
    pub documents: Vec<StreamId>,
    /// Whether its presence may list streams that a node serves. The client asks for a scope for that, and gets it if the
    /// authority's policy names its user.
    pub serves: bool,
    /// Whether it asks for work: opens assignments and changes its own. The client asks for a scope for that.
    pub assigns: bool,
    /// Whether it provides: publishes capabilities, sees what is open to all, and takes assignments. The client asks for a
    /// scope for that, and gets it if the authority's policy names its user.
    pub provides: bool,
    /// Whether it mirrors: sees the outbox, puts events into it, and says what became of them. The client asks for a scope for
    /// that, and gets it if the authority's policy names its user.
    pub mirrors: bool,
    /// Whether to read only what is durable.
    pub reads: Reads,
    /// Whether SpacetimeDB compresses large messages. Worth it over a network, not on one machine. Through a gate none is
    /// compressed.
    pub compression: bool,
    /// The keys whose seals the client accepts until a token brings others. Needed by a client whose tokens bring none:
    /// `spacetime-sync keys seals` prints them.
    pub seal_keys: Vec<SealKey>,
    /// Where to read the authority's log.
    pub history: History,
    /// What to do about a stale cursor.
    pub on_stale: StaleAnswer,
    /// What to do about a stale cursor of particular streams.
    pub on_stale_of: BTreeMap<StreamId, StaleAnswer>,
    /// How long to wait between attempts to connect.
    pub backoff: Backoff,
    /// Every bound in time and memory.
    pub limits: Limits,
}

/// What to do when what was applied cannot be continued event by event: the authority has purged what follows, or its
/// log no longer contains it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum StaleAnswer {
    /// Stop the stream and let a person decide.
    #[default]
    Stop,
    /// Start over at the oldest event that the authority keeps. The application never sees what came before.
    Restart,
    /// Start over from the document that stands for the earlier events, if the stream has one.
    Rebootstrap(WithoutDocument),
}

/// What to do if a stream has no document to start over from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum WithoutDocument {
    /// As [`StaleAnswer::Stop`].
    #[default]
    Stop,
    /// As [`StaleAnswer::Restart`].
    Restart,
}

/// Where to read the authority's log: for events that SpacetimeDB no longer holds, and to decide who is right when
/// SpacetimeDB contradicts what was applied.
#[derive(Clone, Default, PartialEq, Eq)]
pub enum History {
    /// At the bridge that issues the tokens, if they come from one: [`HttpTokens`](crate::HttpTokens).
    #[default]
    OfCredential,
    /// At the bridge with this address, with the token that the client connects with.
    At(String),
    /// Nowhere: a stream stops where SpacetimeDB alone cannot continue it.
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
    /// The defaults: confirmed reads, no compression.
    pub fn new(uri: impl Into<String>, database: impl Into<String>, streams: Vec<StreamId>) -> Self {
        Self {
            uri: uri.into(),
            transport: Transport::default(),
            database: database.into(),
            pin: None,
            credential: Credential::Anonymous,
            client_build_id: DEFAULT_BUILD_ID.to_owned(),
            surface: DEFAULT_SURFACE.to_owned(),
            streams,
            documents: Vec::new(),
            serves: false,
            assigns: false,
            provides: false,
            mirrors: false,
            reads: Reads::Confirmed,
            compression: false,
            seal_keys: Vec::new(),
            history: History::default(),
            on_stale: StaleAnswer::default(),
            on_stale_of: BTreeMap::new(),
            backoff: Backoff::default(),
            limits: Limits::default(),
        }
    }

    /// Follows topics, too: the streams that carry them, each once.
    pub fn topics<'a>(mut self, topics: impl IntoIterator<Item = &'a str>) -> Result<Self, ConfigError> {
        add_topics(&mut self.streams, topics)?;
        Ok(self)
    }

    /// Follows topics as [documents](Self::documents), too: the streams that carry them, each once.
    pub fn document_topics<'a>(mut self, topics: impl IntoIterator<Item = &'a str>) -> Result<Self, ConfigError> {
        add_topics(&mut self.documents, topics)?;
        Ok(self)
    }

    /// Refuses a configuration that cannot work, before anything is opened.
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
            let detail = "it needs a scheme and a host, and must have no query".to_owned();
            return Err(ConfigError::Uri {
                found: self.uri.clone(),
                detail,
            });
        }
        self.transport.check(&self.uri, ALLOWED_BY)?;
        let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if self.database.is_empty() || !self.database.chars().all(good) {
            return Err(ConfigError::Database {
                found: self.database.clone(),
            });
        }
        match &self.credential {
            Credential::Fixed(token) if !is_token(token) => return Err(ConfigError::Token),
            Credential::Anonymous | Credential::Fixed(_) if self.seal_keys.is_empty() => {
                return Err(ConfigError::SealKeys);
            }
            Credential::Anonymous | Credential::Fixed(_) | Credential::Provider(_) => {}
        }
        // Which builds are supported is the operator's decision; here the value only has to fit into a header.
        for (name, found) in [("client_build_id", &self.client_build_id), ("surface", &self.surface)] {
            if !is_token(found) {
                return Err(ConfigError::Version { name });
            }
        }
        if self.followed().next().is_none() {
            return Err(ConfigError::NoStreams);
        }
        let mut seen = BTreeSet::new();
        if let Some((twice, _)) = self.followed().find(|(stream, _)| !seen.insert(*stream)) {
            return Err(ConfigError::StreamTwice { stream: twice.clone() });
        }
        self.limits.check()?;
        self.backoff.check()
    }

    /// All streams to follow, and what each carries. Only the store knows whether it holds the documents.
    pub(crate) fn followed(&self) -> impl Iterator<Item = (&StreamId, Carries)> {
        let events = self.streams.iter().map(|stream| (stream, Carries::Events));
        let documents = self.documents.iter();
        events.chain(documents.map(|stream| (stream, Carries::Documents { are_held: false })))
    }

    /// The bounds of one of so many streams. `history` says whether the client can ask the authority.
    pub(crate) fn bounds_of(
        &self,
        stream_id: &StreamId,
        carries: Carries,
        streams: usize,
        history: bool,
    ) -> StreamBounds {
        let limits = &self.limits;
        StreamBounds {
            reach_bytes: (limits.subscribed_bytes / streams.max(1)).max(limit::FRAME_BYTES),
            unapplied_bytes: limits.unapplied_bytes,
            resume_bytes: limits.resume_bytes,
            subscribe_within_events: limits.subscribe_within_events,
            subscribe_within_bytes: limits.subscribe_within_bytes,
            apply_attempts: limits.apply_attempts,
            recovery_attempts: limits.recovery_attempts,
            history,
            on_stale: self.on_stale_of.get(stream_id).copied().unwrap_or(self.on_stale),
            reads: self.reads,
            carries,
        }
    }

    /// The scopes that it needs besides those that its streams ask for.
    pub(crate) fn scopes(&self) -> Vec<Scope> {
        let asked = [
            (true, Scope::Subscribe),
            (true, Scope::CheckpointWrite),
            (self.serves, Scope::Serve),
            (self.assigns, Scope::AssignmentOpen),
            (self.provides, Scope::Provider),
            (self.mirrors, Scope::Mirror),
        ];
        asked
            .into_iter()
            .filter(|(needed, _)| *needed)
            .map(|(_, scope)| scope)
            .collect()
    }

    /// What the client says about itself.
    pub(crate) fn version(&self) -> ClientVersion {
        ClientVersion {
            client_build_id: self.client_build_id.clone(),
            protocol_version: PROTOCOL.to_owned(),
            schema_version: SCHEMA_VERSION,
            oldest_schema_version: Some(OLDEST_SCHEMA_VERSION),
            surface: self.surface.clone(),
        }
    }
}

fn add_topics<'a>(streams: &mut Vec<StreamId>, topics: impl IntoIterator<Item = &'a str>) -> Result<(), ConfigError> {
    for topic in topics {
        let stream_id = Topic::new(topic).stream_id().map_err(|invalid| ConfigError::Topic {
            topic: topic.to_owned(),
            invalid,
        })?;
        if !streams.contains(&stream_id) {
            streams.push(stream_id);
        }
    }
    Ok(())
}

impl fmt::Debug for ClientConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientConfig")
            .field("uri", &self.uri)
            .field("transport", &self.transport)
            .field("database", &self.database)
            .field("pin", &self.pin)
            .field("credential", &self.credential)
            .field("client_build_id", &self.client_build_id)
            .field("surface", &self.surface)
            .field("streams", &self.streams)
            .field("documents", &self.documents)
            .field("serves", &self.serves)
            .field("assigns", &self.assigns)
            .field("provides", &self.provides)
            .field("mirrors", &self.mirrors)
            .field("reads", &self.reads)
            .field("compression", &self.compression)
            .field("seal_keys", &self.seal_keys)
            .field("history", &self.history)
            .field("on_stale", &self.on_stale)
            .field("on_stale_of", &self.on_stale_of)
            .field("backoff", &self.backoff)
            .field("limits", &self.limits)
            .finish()
    }
}

/// When SpacetimeDB delivers what it has committed. This is a property of the connection, and so of all streams of a
/// client: to read some streams early, follow them with a client of their own.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Reads {
    /// Once it is durable: SpacetimeDB never loses what was applied.
    #[default]
    Confirmed,
    /// At once, for streams whose class allows it. Other streams stop with
    /// [`StreamStop::DurableReads`](crate::StreamStop::DurableReads), and nothing of them is applied. After a power
    /// failure SpacetimeDB may have lost events that were applied. The authority has them and they come again; a stream
    /// that asks before then stops as ahead of SpacetimeDB.
    Early,
}

impl Reads {
    /// Whether to ask for a connection with confirmed reads.
    pub(crate) fn are_confirmed(self) -> bool {
        match self {
            Self::Confirmed => true,
            Self::Early => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::credential::TokenError;
    use crate::seal::tests::some_key;

    fn config() -> ClientConfig {
        ClientConfig {
            seal_keys: vec![some_key()],
            ..ClientConfig::new("http://127.0.0.1:3000", "lane", vec![StreamId::new("a").unwrap()])
        }
    }

    #[test]
    fn each_thing_that_a_client_does_asks_for_its_scope() {
        let base = [Scope::Subscribe, Scope::CheckpointWrite];
        assert_eq!(config().scopes(), base);
        for (set, scope) in [
            ((|config| config.serves = true) as fn(&mut ClientConfig), Scope::Serve),
            (|config| config.assigns = true, Scope::AssignmentOpen),
            (|config| config.provides = true, Scope::Provider),
            (|config| config.mirrors = true, Scope::Mirror),
        ] {
            let mut config = config();
            set(&mut config);
            assert_eq!(config.scopes(), [base.as_slice(), &[scope]].concat());
        }
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
    fn a_configuration_that_cannot_work_is_refused() {
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
    fn topics_are_followed_by_the_streams_that_carry_them() {
        let stream = |name: &str| StreamId::new(name).unwrap();
        let config = ClientConfig {
            streams: vec![stream("a"), stream("runtime.run.42.events")],
            ..config()
        };
        let config = config
            .topics(["run:42:events", "worker:7:lifecycle", "worker:7:lifecycle"])
            .unwrap();
        let expected = ["a", "runtime.run.42.events", "runtime.worker.7.lifecycle"].map(stream);
        assert_eq!(config.streams, expected);
        assert_eq!(config.check(), Ok(()));
        for wrong in ["", &"x".repeat(242)] {
            for refused in [config.clone().topics([wrong]), config.clone().document_topics([wrong])] {
                assert!(matches!(refused, Err(ConfigError::Topic { .. })), "{refused:?}");
            }
        }
        let documents = config.clone().document_topics(["runtime.run_summaries"; 2]).unwrap();
        assert_eq!(documents.documents, [stream("runtime.run_summaries")]);
        assert_eq!(
            (documents.streams.as_slice(), documents.check()),
            (&expected[..], Ok(()))
        );
        let twice = config.document_topics(["run:42:events"]).unwrap();
        assert!(matches!(twice.check(), Err(ConfigError::StreamTwice { .. })));
    }

    #[test]
    fn plaintext_to_another_machine_is_refused_unless_it_is_allowed() {
        let check = |uri: &str, transport| {
            let config = ClientConfig {
                uri: uri.to_owned(),
                transport,
                ..config()
            };
            config.check()
        };
        for uri in ["http://lane.example", "ws://10.0.0.1:3000"] {
            let refused = check(uri, Transport::default());
            assert!(matches!(refused, Err(ConfigError::Plaintext(_))), "{refused:?}");
            assert_eq!(check(uri, Transport::default().allow_plaintext(true)), Ok(()));
        }
        assert_eq!(check("wss://lane.example", Transport::default()), Ok(()));
        assert_eq!(check("ws://localhost:3000", Transport::default()), Ok(()));
    }

    #[test]
    fn a_client_needs_keys_unless_its_tokens_may_bring_them() {
        let without = |credential| {
            let config = ClientConfig {
                credential,
                seal_keys: Vec::new(),
                ..config()
            };
            config.check()
        };
        assert_eq!(without(Credential::Anonymous), Err(ConfigError::SealKeys));
        assert_eq!(
            without(Credential::Fixed("token".to_owned())),
            Err(ConfigError::SealKeys)
        );
        let provider = |_| std::future::ready(Err(TokenError::unavailable("down")));
        assert_eq!(without(Credential::provider(provider)), Ok(()));
    }

    #[test]
    fn times_are_at_most_a_year_and_not_zero_where_that_would_spin() {
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
}
