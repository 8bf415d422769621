//! A whole lane: authority, SpacetimeDB with the module, bridges and followers, each a real process.

mod bridge;
mod forger;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use serde_json::Value;
use spacetime_sync_authority::{Actor, Authority};
use spacetime_sync_issuer::issue::Names;
use spacetime_sync_issuer::keys::{KeyFolder, add_key, now};
use spacetime_sync_issuer::service::ServiceTokens;
use spacetime_sync_ops::publish::{Bridge as BridgeProof, ROW_LIMIT, Request, Trust, publish};
use spacetime_sync_ops::repair::{Report, Sides};
use spacetime_sync_proto::access::{AUDIENCE, Compatibility};
use spacetime_sync_proto::{DatabasePin, Position, Seal, SealKey, Sealer as _, StreamId};
use spacetime_sync_stdb::admin::{Admin, Breaking};
use spacetime_sync_stdb::link::{Link, Target};
use spacetime_sync_stdb::tokens::{TokenSource, read_token};
use spacetime_sync_transport::Transport;
use sqlx::Connection as _;

pub use bridge::Bridge;
pub use forger::{Forger, invented};

use crate::follower::{Credential, Follower};
use crate::gate::{Gate, GateOptions};
use crate::issuing::Keys;
use crate::port;
use crate::postgres::{Cluster, Database};
use crate::process::{Environment, Process};
use crate::release::Release;
use crate::server::Server;
use crate::{until, write_secret};

/// How long the grants last that a lane without tokens gives its clients.
pub const A_DAY: Duration = Duration::from_secs(86_400);
/// How often the module of a lane with tokens looks for ended sessions, in milliseconds.
const SWEEP_MS: u32 = 1_000;
/// How long a token lasts that a lane signs in its bridge's name.
const SERVICE_SECONDS: u64 = 900;
/// The folder of the keys that seal the events of a lane without tokens.
const SEALS: &str = "seals";
/// The file that holds their public halves.
const SEAL_KEYS: &str = "seal-keys.json";

/// Makes the keys that seal the events of a lane without tokens.
fn make_seals(folder: &Path) -> anyhow::Result<()> {
    add_key(&folder.join(SEALS), None, now())?;
    let keys = KeyFolder::open(&folder.join(SEALS), now())?.ring().seal_keys();
    std::fs::write(folder.join(SEAL_KEYS), serde_json::to_vec(&keys)?)?;
    Ok(())
}

/// A whole lane; see the module.
#[derive(Debug)]
pub struct Lane {
    /// The folder of all files that the processes write.
    pub folder: tempfile::TempDir,
    /// The runtime's database.
    pub database: Database,
    /// A connection to the same database.
    pub authority: Authority,
    /// SpacetimeDB.
    pub server: Server,
    /// Name of the database on SpacetimeDB.
    pub name: String,
    /// Which database that is, as of the last publish.
    pin: Mutex<Option<DatabasePin>>,
    /// The keys of a lane with tokens.
    tokens: Option<Tokens>,
    next: std::sync::atomic::AtomicU32,
}

/// Bridge and clients authenticate with tokens that the bridge issues.
#[derive(Debug)]
struct Tokens {
    keys: Keys,
    /// The address of the lane's one bridge, which is also the issuer's.
    http: SocketAddr,
}

/// How a bridge differs from the default.
#[derive(Debug, Clone, Default)]
pub struct BridgeOptions {
    /// Connect to the authority through this address, e.g. a proxy's.
    pub authority_at: Option<SocketAddr>,
    /// Connect to SpacetimeDB through this address.
    pub server_at: Option<SocketAddr>,
    /// Publish to whichever database has the name.
    pub unpinned: bool,
    /// Additional configuration keys, as `section.key` and a value.
    pub set: Vec<(&'static str, String)>,
    /// The release whose bridge it is.
    pub release: Release,
    /// The bridge's `RUST_LOG`.
    pub says: Option<String>,
    /// Additional environment.
    pub environment: Environment,
}

/// How a lane differs from the default.
#[derive(Debug, Clone, Default)]
pub struct LaneOptions {
    /// The folder of SpacetimeDB's data.
    pub data: Option<PathBuf>,
    /// Additional environment of SpacetimeDB.
    pub environment: Environment,
    /// Whether everybody authenticates with tokens of the lane's bridge. Such a lane has one bridge at a time.
    pub tokens: bool,
    /// The release whose module is published first.
    pub module: Release,
}

impl Lane {
    /// Starts everything except bridges and clients, on the cluster that all tests share.
    pub async fn start() -> anyhow::Result<Self> {
        Self::start_on(Cluster::shared().await).await
    }

    /// Like [`start`](Self::start), on a cluster of its own that a test can kill.
    pub async fn start_on(cluster: &Cluster) -> anyhow::Result<Self> {
        Self::start_in(cluster, &std::env::temp_dir()).await
    }

    /// A lane on which everybody authenticates with tokens of its bridge. It has one bridge at a time.
    pub async fn start_with_tokens(cluster: &Cluster) -> anyhow::Result<Self> {
        let options = LaneOptions {
            tokens: true,
            ..LaneOptions::default()
        };
        Self::start_with(cluster, &std::env::temp_dir(), &options).await
    }

    /// Like [`start_on`](Self::start_on), with SpacetimeDB's data below `parent`.
    pub async fn start_in(cluster: &Cluster, parent: &Path) -> anyhow::Result<Self> {
        Self::start_with(cluster, parent, &LaneOptions::default()).await
    }

    /// Starts a lane with options below `parent`.
    pub async fn start_with(cluster: &Cluster, parent: &Path, options: &LaneOptions) -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("sync-lane-").tempdir_in(parent)?;
        let database = cluster.create_database().await?;
        let authority = Authority::connect(database.url(), 8).await?;
        let data = options.data.clone().unwrap_or_else(|| folder.path().join("host"));
        std::fs::create_dir_all(&data)?;
        let server = Server::start_with(&data, &options.environment).await?;
        let name = format!("lane-{}", database.name().replace('_', "-"));
        let tokens = if options.tokens {
            Some(Tokens {
                keys: Keys::make(folder.path())?,
                // All bridges of this lane use it, one after another.
                http: port::free()?,
            })
        } else {
            None
        };
        if tokens.is_none() {
            make_seals(folder.path())?;
        }
        let lane = Self {
            folder,
            database,
            authority,
            server,
            name,
            pin: Mutex::new(None),
            tokens,
            next: 0.into(),
        };
        lane.publish_module(options.module.module()?, Breaking::Refuse).await?;
        Ok(lane)
    }

    /// Publishes the module in the same way as `spacetime-sync publish`. Bridges that start from here on are pinned to that
    /// database.
    pub async fn publish(&self, breaking: Breaking) -> anyhow::Result<()> {
        self.publish_module(module_wasm()?, breaking).await
    }

    /// Like [`publish`](Self::publish), for another module.
    pub async fn publish_module(&self, wasm: Vec<u8>, breaking: Breaking) -> anyhow::Result<()> {
        let request = Request {
            uri: self.server.uri().to_owned(),
            transport: Transport::default(),
            database: self.name.clone(),
            owner_token: self.path("owner.token"),
            bridge: match &self.tokens {
                None => BridgeProof::TokenFile(self.path("bridge.token")),
                Some(tokens) => BridgeProof::Issuer(Trust {
                    issuer: tokens.url(),
                    audience: AUDIENCE.to_owned(),
                    sweep_every_ms: SWEEP_MS,
                }),
            },
            wasm: Some(wasm),
            breaking,
            row_limit: ROW_LIMIT,
        };
        let report = publish(request).await?;
        *self.pin.lock().unwrap_or_else(PoisonError::into_inner) = Some(report.pin);
        Ok(())
    }

    /// Which database the last publish created or updated.
    pub fn pin(&self) -> Option<DatabasePin> {
        self.pin.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A path in the lane's folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The file with the keys that clients of a lane without tokens are told of.
    pub fn seal_keys_file(&self) -> PathBuf {
        self.path(SEAL_KEYS)
    }

    /// The keys that clients of a lane without tokens are told of.
    pub fn seal_keys(&self) -> anyhow::Result<Vec<SealKey>> {
        Ok(serde_json::from_slice(&std::fs::read(self.seal_keys_file())?)?)
    }

    /// The HTTP API of the database, as its owner.
    pub fn owner(&self) -> anyhow::Result<Admin> {
        Ok(Admin::new(
            self.server.uri(),
            &self.name,
            read_token(&self.path("owner.token"))?,
        ))
    }

    /// Starts a bridge.
    pub fn bridge(&self) -> anyhow::Result<Bridge> {
        self.bridge_with(&BridgeOptions::default())
    }

    /// Starts a bridge with options.
    pub fn bridge_with(&self, options: &BridgeOptions) -> anyhow::Result<Bridge> {
        let number = self.next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let http = match &self.tokens {
            None => port::free()?,
            Some(tokens) => tokens.http,
        };
        let mut command = Command::new(options.release.program("spacetime-sync")?);
        command
            .arg("run")
            .env("RUST_LOG", options.says.as_deref().unwrap_or("info,sqlx=warn"))
            .env("NO_COLOR", "1")
            .envs(options.environment.iter().map(|(key, value)| (key, value)))
            .envs(self.environment(options, http)?);
        let process = Process::start("bridge", &mut command, &self.path(&format!("bridge-{number}.log")))?;
        Ok(Bridge {
            process,
            http: format!("http://{http}"),
        })
    }

    /// Starts a gate for a lane with tokens.
    pub fn gate(&self, set: &[(&'static str, String)]) -> anyhow::Result<Gate> {
        let tokens = self.tokens.as_ref().context("this lane does not use tokens")?;
        self.gate_with(&GateOptions {
            issuer: tokens.url(),
            set: set.to_vec(),
            ..GateOptions::default()
        })
    }

    /// Starts a gate with options.
    pub fn gate_with(&self, options: &GateOptions) -> anyhow::Result<Gate> {
        let number = self.next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        Gate::start(self, options, &self.path(&format!("gate-{number}.log")))
    }

    /// The configuration of a bridge that listens on `http`, as environment variables.
    pub fn environment(&self, options: &BridgeOptions, http: SocketAddr) -> anyhow::Result<Vec<(String, String)>> {
        let url = match options.authority_at {
            Some(addr) => self.database.url_at(addr)?,
            None => self.database.url().to_owned(),
        };
        let uri = options
            .server_at
            .map_or(self.server.uri().to_owned(), |addr| format!("http://{addr}"));
        let mut keys = vec![
            ("authority.url", url),
            ("spacetimedb.uri", uri),
            ("spacetimedb.database", self.name.clone()),
            ("http.listen", http.to_string()),
        ];
        match self.pin() {
            Some(pin) if !options.unpinned => keys.extend([
                ("spacetimedb.database_identity", pin.database_identity.to_string()),
                ("spacetimedb.owner_identity", pin.owner_identity.to_string()),
            ]),
            Some(_) | None => keys.push(("spacetimedb.unpinned", "true".to_owned())),
        }
        match &self.tokens {
            None => keys.extend([
                (
                    "spacetimedb.token_file",
                    self.path("bridge.token").display().to_string(),
                ),
                ("seals.keys_dir", self.path(SEALS).display().to_string()),
            ]),
            Some(tokens) => keys.extend(tokens.keys.configuration(&tokens.url())),
        }
        keys.extend(options.set.iter().cloned());
        let name = |key: &str| format!("SPACETIME_SYNC__{}", key.replace('.', "__").to_uppercase());
        Ok(keys.into_iter().map(|(key, value)| (name(key), value)).collect())
    }

    /// Creates a client that may read these streams. Does not start it.
    pub async fn client(&self, streams: &[StreamId]) -> anyhow::Result<Follower> {
        let number = self.next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        if let Some(tokens) = &self.tokens {
            let user = format!("user-{number}");
            return self.session_of(tokens, &user, &number.to_string(), streams).await;
        }
        let credential = Admin::new_identity(self.server.uri()).await?;
        let token_file = self.path(&format!("client-{number}.token"));
        write_secret(&token_file, credential.token.expose())?;
        let owner = self.owner()?;
        for stream_id in streams {
            owner.grant(&credential.identity, stream_id, A_DAY).await?;
        }
        let seal_keys = self.path(SEAL_KEYS);
        let client = Follower::new(
            self.server.uri(),
            &self.name,
            Credential::Token { token_file, seal_keys },
            &credential.identity,
            &self.path(&format!("client-{number}.sqlite")),
            streams,
        );
        Ok(client.pinned(self.pin()))
    }

    /// Creates a device of a user on a lane with tokens. Its session has the device's name after `session-`, and may read these
    /// streams. Does not start it.
    pub async fn device(&self, user: &str, name: &str, streams: &[StreamId]) -> anyhow::Result<Follower> {
        let tokens = self.tokens.as_ref().context("this lane does not use tokens")?;
        self.session_of(tokens, user, name, streams).await
    }

    async fn session_of(
        &self,
        tokens: &Tokens,
        user: &str,
        name: &str,
        streams: &[StreamId],
    ) -> anyhow::Result<Follower> {
        let session = format!("session-{name}");
        let session_file = self.path(&format!("client-{name}.session"));
        write_secret(&session_file, tokens.keys.session(user, &session))?;
        let patterns: Vec<&str> = streams.iter().map(StreamId::as_str).collect();
        self.allow(&format!("user:{user}"), &patterns).await?;
        let subject = format!("user:{user}/session:{session}");
        let identity = spacetimedb_sdk::Identity::from_claims(&tokens.url(), &subject);
        let credential = Credential::Session(tokens.url(), session_file);
        let store = self.path(&format!("client-{name}.sqlite"));
        // The bridge says which database it is.
        Ok(Follower::new(
            self.server.uri(),
            &self.name,
            credential,
            identity.to_hex().as_ref(),
            &store,
            streams,
        ))
    }

    /// Allows a user, an organisation or everyone to ask for tokens that cover these patterns.
    pub async fn allow(&self, principal: &str, patterns: &[&str]) -> anyhow::Result<()> {
        let mut connection = sqlx::PgConnection::connect(self.database.url()).await?;
        for pattern in patterns {
            sqlx::query(
                "insert into runtime.sync_access_policy (principal, pattern) values ($1, $2) on conflict do nothing",
            )
            .bind(principal)
            .bind(pattern)
            .execute(&mut connection)
            .await?;
        }
        connection.close().await?;
        Ok(())
    }

    /// Runs a statement on the authority.
    pub async fn sql(&self, statement: &str) -> anyhow::Result<()> {
        let mut connection = sqlx::PgConnection::connect(self.database.url()).await?;
        sqlx::Executor::execute(&mut connection, statement).await?;
        connection.close().await?;
        Ok(())
    }

    /// A link like the bridge's, with a token of the bridge.
    pub async fn link(&self) -> anyhow::Result<Link> {
        let tokens = match &self.tokens {
            None => TokenSource::Fixed(read_token(&self.path("bridge.token"))?),
            Some(tokens) => TokenSource::Signed(Arc::new(tokens.of_bridge()?)),
        };
        let target = Target {
            uri: self.server.uri().to_owned(),
            transport: Transport::default(),
            database: self.name.clone(),
            pin: self.pin(),
            tokens,
            compatibility: None,
            deadline: Duration::from_secs(10),
        };
        Ok(Link::connect(target, Arc::new(|_| {})).await?)
    }

    /// What `spacetime-sync verify --deep` reports.
    pub async fn verify(&self) -> Vec<Report> {
        let sides = Sides {
            authority: self.authority.clone(),
            link: self.link().await.unwrap_or_else(|error| panic!("{error:#}")),
            sealer: Arc::new(self.sealer().unwrap_or_else(|error| panic!("{error:#}"))),
            streams: Vec::new(),
            operator: Actor::operator("tests", None),
        };
        sides.verify(true).await.unwrap_or_else(|error| panic!("{error:#}"))
    }

    /// Asserts that everything SpacetimeDB holds equals the authority's log, event by event.
    pub async fn verified(&self) {
        let reports = self.verify().await;
        for report in &reports {
            assert!(report.findings.is_empty(), "{report:?}");
        }
        assert!(reports.iter().any(|report| report.compared > 0), "nothing was compared");
    }

    /// The bridge's seal of a position.
    pub fn seal(&self, stream_id: &StreamId, at: &Position) -> anyhow::Result<Seal> {
        self.sealer()?.seal(stream_id, at).context("no key seals")
    }

    /// The keys that seal events.
    fn sealer(&self) -> anyhow::Result<KeyFolder> {
        let folder = self
            .tokens
            .as_ref()
            .map_or_else(|| self.path(SEALS), |tokens| tokens.keys.keys_dir());
        Ok(KeyFolder::open(&folder, now())?)
    }

    /// The issuer of a lane with tokens.
    pub fn issuer(&self) -> Option<String> {
        self.tokens.as_ref().map(Tokens::url)
    }

    /// The keys of a lane with tokens.
    pub fn keys(&self) -> anyhow::Result<&Keys> {
        Ok(&self.tokens.as_ref().context("this lane does not use tokens")?.keys)
    }

    /// Grants a client streams, again after its grants were deleted.
    pub async fn grant(&self, client: &Follower, streams: &[StreamId]) -> anyhow::Result<()> {
        let owner = self.owner()?;
        for stream_id in streams {
            owner.grant(client.identity(), stream_id, A_DAY).await?;
        }
        Ok(())
    }

    /// The last seq that SpacetimeDB holds of each stream; 0 for a stream that it does not hold.
    pub async fn held(&self, streams: &[StreamId]) -> anyhow::Result<Vec<u64>> {
        let names: Vec<&str> = streams.iter().map(StreamId::as_str).collect();
        let answer = reqwest::Client::new()
            .post(format!(
                "{}/v1/database/{}/call/read_heads",
                self.server.uri(),
                self.name
            ))
            .bearer_auth(read_token(&self.path("owner.token"))?.expose())
            .json(&serde_json::json!([names]))
            .send()
            .await?
            .error_for_status()?;
        let answer: Value = answer.json().await?;
        let heads = answer.get("ok").or(answer.get(1)).and_then(Value::as_array);
        let heads = heads.with_context(|| format!("expected heads, found {answer}"))?;
        heads
            .iter()
            .map(|head| {
                head[0]
                    .as_u64()
                    .with_context(|| format!("expected a head, found {head}"))
            })
            .collect()
    }

    /// The rows of a query that the owner runs on SpacetimeDB. With `durable` it returns only durable rows.
    pub async fn rows(&self, query: impl Into<String>, durable: bool) -> anyhow::Result<Vec<Value>> {
        let answer: Value = reqwest::Client::new()
            .post(format!("{}/v1/database/{}/sql", self.server.uri(), self.name))
            .query(&[("confirmed", durable)])
            .bearer_auth(read_token(&self.path("owner.token"))?.expose())
            .body(query.into())
            .send()
            .await?
            .error_for_status()?
            .json()
            .await?;
        let rows = answer[0]["rows"].as_array();
        rows.cloned().with_context(|| format!("expected rows, found {answer}"))
    }

    /// Whether the module accepts changes of assignments and capabilities: a bridge has brought back what there was.
    pub async fn accepts_changes(&self) -> bool {
        let rows = self.rows("SELECT is_open FROM journal_state", false).await;
        rows.is_ok_and(|rows| rows.first().is_some_and(|row| row[0] == true))
    }

    /// The first seq that SpacetimeDB holds of each stream, in no particular order.
    pub async fn oldest_held(&self) -> anyhow::Result<Vec<u64>> {
        let rows = self.rows("SELECT oldest_seq FROM sync_head", false).await?;
        Ok(rows.iter().filter_map(|row| row[0].as_u64()).collect())
    }

    /// The `published_seq` of each stream.
    pub async fn recorded(&self, streams: &[StreamId]) -> anyhow::Result<Vec<u64>> {
        let mut recorded = Vec::new();
        for stream_id in streams {
            let position = self.authority.position(stream_id).await?;
            recorded.push(position.map_or(0, |position| position.published_seq.get()));
        }
        Ok(recorded)
    }

    /// Waits until everything that is committed is published, and returns whether it was.
    pub async fn published(&self, limit: Duration) -> bool {
        let deadline = tokio::time::Instant::now() + limit;
        loop {
            if let Ok(dirty) = self.authority.dirty_streams(None, 1).await
                && dirty.is_empty()
            {
                return true;
            }
            if tokio::time::Instant::now() > deadline {
                return false;
            }
            tokio::time::sleep(crate::STEP).await;
        }
    }
}

impl Tokens {
    fn url(&self) -> String {
        format!("http://{}", self.http)
    }

    /// Tokens as the bridge signs them for itself.
    fn of_bridge(&self) -> anyhow::Result<ServiceTokens> {
        let names = Names {
            issuer: self.url(),
            audience: AUDIENCE.to_owned(),
        };
        let keys = Arc::new(KeyFolder::open(&self.keys.keys_dir(), now())?);
        Ok(ServiceTokens::new(
            keys,
            &names,
            &Compatibility::default(),
            SERVICE_SECONDS,
        ))
    }
}

/// The module that the scripts built.
pub fn module_wasm() -> anyhow::Result<Vec<u8>> {
    let path = std::env::var("SYNC_MODULE_WASM").context("SYNC_MODULE_WASM is not set: start through ./scripts")?;
    std::fs::read(Path::new(&path)).with_context(|| path.clone())
}

/// The name of test stream `number`.
pub fn stream(number: usize) -> StreamId {
    StreamId::new(&format!("runtime.run.{number}.events")).unwrap_or_else(|error| panic!("{error}"))
}

/// Waits for a condition that needs no async call.
pub async fn wait(limit: Duration, what: &str, condition: impl FnMut() -> bool) {
    assert!(until(limit, condition).await, "{what}: not within {limit:?}");
}

/// Like [`wait`], for a condition that asks somebody.
pub async fn wait_for(limit: Duration, what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + limit;
    while !condition().await {
        assert!(tokio::time::Instant::now() < deadline, "{what}: not within {limit:?}");
        tokio::time::sleep(crate::STEP).await;
    }
}
