//! A bridge that issues tokens, an authority with stream owners and access policies, and sessions that ask for tokens.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Context as _;
use reqwest::{RequestBuilder, Response};
use serde_json::{Value, json};
use spacetime_sync_authority::Authority;
use spacetime_sync_issuer::jws::Kind;
use spacetime_sync_issuer::keys::{SigningKey, add_key, now};
use spacetime_sync_proto::access::{REVOKE_PATH, TOKEN_PATH, headers};
use spacetime_sync_proto::contract::{PROTOCOL, SCHEMA_VERSION};
use spacetime_sync_transport::Transport;
use sqlx::Connection as _;

use crate::gate::GATE;
use crate::port;
use crate::postgres::{Cluster, Database};
use crate::process::{Process, built};
use crate::until;

/// `iss` of the sync tokens. Any name will do, because nobody verifies the tokens by it here.
pub const ISSUER: &str = "https://lane.example";
/// `iss` of the session credentials.
pub const APP: &str = "https://app.example";
/// `aud` of the session credentials.
pub const APP_AUDIENCE: &str = "runtime-sync";
/// The admin credential.
pub const ADMIN: &str = "admin-credential-of-the-tests";
/// A client build that the default window serves.
pub const BUILD: &str = "20260601T120000Z";
const UP_LIMIT: Duration = Duration::from_secs(30);

/// The keys of a bridge, and of the application whose sessions the bridge accepts.
#[derive(Debug)]
pub struct Keys {
    folder: PathBuf,
    /// Signs session credentials.
    pub app: SigningKey,
}

/// What several bridges share: the database and the keys.
#[derive(Debug)]
pub struct Desk {
    /// The folder of all files.
    pub folder: tempfile::TempDir,
    /// The runtime's database.
    pub database: Database,
    /// A connection to the same database.
    pub authority: Authority,
    /// The keys, which lie in the folder.
    pub keys: Keys,
    next: std::sync::atomic::AtomicU32,
}

/// A running bridge.
#[derive(Debug)]
pub struct Issuing {
    /// The process.
    pub process: Process,
    http: String,
    operator: String,
    client: reqwest::Client,
}

impl Keys {
    /// Creates one signing key, and one key of the application.
    pub fn make(folder: &Path) -> anyhow::Result<Self> {
        add_key(&folder.join("keys"), None, now())?;
        let pem = SigningKey::generate()?;
        let app = SigningKey::from_pem(&pem, 0, "app.pem")?;
        crate::write_secret(&folder.join("app.pem"), pem.expose())?;
        let public = app.public_pem().context("no public key")?;
        std::fs::write(folder.join("app.pub.pem"), public)?;
        Ok(Self {
            folder: folder.to_owned(),
            app,
        })
    }

    /// The folder of the signing keys.
    pub fn keys_dir(&self) -> PathBuf {
        self.folder.join("keys")
    }

    /// The configuration of a bridge that signs tokens as `issuer`.
    pub fn configuration(&self, issuer: &str) -> Vec<(&'static str, String)> {
        let path = |name: &str| self.folder.join(name).display().to_string();
        vec![
            ("http.admin_token", ADMIN.to_owned()),
            ("http.gate_token", GATE.to_owned()),
            ("http.behind_proxy", "false".to_owned()),
            ("issuer.url", issuer.to_owned()),
            ("issuer.keys_dir", self.keys_dir().display().to_string()),
            ("issuer.keys_reload_ms", "100".to_owned()),
            ("sessions.issuer", APP.to_owned()),
            ("sessions.audience", APP_AUDIENCE.to_owned()),
            ("sessions.public_keys", path("app.pub.pem")),
        ]
    }

    /// The claims of a valid session credential.
    pub fn claims(&self, user: &str, session: &str) -> Value {
        json!({
            "iss": APP, "aud": APP_AUDIENCE, "sub": user, "sid": session, "device_id": format!("{session}-device"),
            "iat": now(), "exp": now() + 3_600,
        })
    }

    /// A session credential with these claims.
    pub fn sign(&self, claims: &Value) -> String {
        let token = self.app.sign(Kind::Session, claims);
        token.map(|token| token.expose().to_owned()).unwrap_or_default()
    }

    /// A valid session credential.
    pub fn session(&self, user: &str, session: &str) -> String {
        self.sign(&self.claims(user, session))
    }
}

impl Desk {
    /// Creates the database and the keys.
    pub async fn new(cluster: &Cluster) -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("sync-issuer-").tempdir()?;
        let database = cluster.create_database().await?;
        let authority = Authority::connect(database.url(), 4).await?;
        let keys = Keys::make(folder.path())?;
        Ok(Self {
            folder,
            database,
            authority,
            keys,
            next: 0.into(),
        })
    }

    /// A path in the folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The environment of a bridge that is configured without a file.
    pub fn environment(&self, http: &str, set: &[(&str, String)]) -> Vec<(String, String)> {
        let mut keys = vec![
            ("authority.url", self.database.url().to_owned()),
            // Nobody listens there, because these tests need no link.
            ("spacetimedb.uri", "http://127.0.0.1:9".to_owned()),
            ("spacetimedb.database", "lane".to_owned()),
            ("spacetimedb.unpinned", "true".to_owned()),
            ("http.listen", http.to_owned()),
        ];
        keys.extend(self.keys.configuration(ISSUER));
        for (key, value) in set {
            keys.retain(|(known, _)| known != key);
            if !value.is_empty() {
                keys.push((key, value.clone()));
            }
        }
        let name = |key: &str| format!("SPACETIME_SYNC__{}", key.replace('.', "__").to_uppercase());
        keys.into_iter().map(|(key, value)| (name(key), value)).collect()
    }

    /// Starts a bridge with additional configuration keys, and waits until it can issue tokens. An empty value removes
    /// the key.
    pub async fn bridge(&self, set: &[(&str, String)]) -> anyhow::Result<Issuing> {
        self.bridge_by(Command::new(built("spacetime-sync")), "info,sqlx=warn", set)
            .await
    }

    /// Like [`bridge`](Self::bridge), with another command and another `RUST_LOG`.
    pub async fn bridge_by(&self, mut command: Command, says: &str, set: &[(&str, String)]) -> anyhow::Result<Issuing> {
        let number = self.next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let http = port::free()?.to_string();
        command.arg("run").env("RUST_LOG", says).env("NO_COLOR", "1");
        command.envs(self.environment(&http, set));
        let process = Process::start("bridge", &mut command, &self.path(&format!("bridge-{number}.log")))?;
        let own = set.iter().find(|(key, _)| *key == "http.admin_listen");
        let url = format!("http://{http}");
        let issuing = Issuing {
            process,
            operator: format!("http://{}", own.map_or(&http, |(_, address)| address)),
            client: Transport::default().http(&url).build()?,
            http: url,
        };
        // A bridge that has a role is connected to the authority, and is ready for tokens a moment later.
        let deadline = tokio::time::Instant::now() + UP_LIMIT;
        loop {
            let health = issuing.client.get(issuing.operator("/healthz")).bearer_auth(ADMIN);
            if let Ok(health) = health.send().await
                && health.json::<Value>().await?["role"] != "starting"
            {
                return Ok(issuing);
            }
            anyhow::ensure!(
                issuing.process.is_running(),
                "the bridge ended: {}",
                issuing.process.log()
            );
            anyhow::ensure!(
                tokio::time::Instant::now() < deadline,
                "the bridge was not ready in time"
            );
            tokio::time::sleep(crate::STEP).await;
        }
    }

    /// Runs SQL as the runtime would.
    pub async fn sql(&self, text: &str) -> anyhow::Result<()> {
        let mut connection = sqlx::PgConnection::connect(self.database.url()).await?;
        sqlx::raw_sql(text).execute(&mut connection).await?;
        connection.close().await?;
        Ok(())
    }

    /// Allows a user, an organisation or everyone to read a pattern.
    pub async fn allow(&self, principal: &str, pattern: &str) -> anyhow::Result<()> {
        self.sql(&format!(
            "insert into runtime.sync_access_policy values ('{principal}', '{pattern}') on conflict do nothing"
        ))
        .await
    }

    /// Sets the owner of a stream: `user` and `org` are SQL expressions.
    pub async fn own(&self, stream: &str, user: &str, org: &str) -> anyhow::Result<()> {
        self.sql(&format!(
            "insert into runtime.sync_stream_owners values ('{stream}', {user}, {org})"
        ))
        .await
    }

    /// The claims of a valid session credential.
    pub fn claims(&self, user: &str, session: &str) -> Value {
        self.keys.claims(user, session)
    }

    /// A session credential with these claims.
    pub fn sign(&self, claims: &Value) -> String {
        self.keys.sign(claims)
    }

    /// A valid session credential.
    pub fn session(&self, user: &str, session: &str) -> String {
        self.keys.session(user, session)
    }
}

impl Issuing {
    /// The url of a path of this bridge.
    pub fn url(&self, path: &str) -> String {
        format!("{}{path}", self.http)
    }

    /// The url of a path where the bridge serves its operator.
    pub fn operator(&self, path: &str) -> String {
        format!("{}{path}", self.operator)
    }

    /// A token request of a supported client with this credential, still without a body.
    pub fn ask(&self, credential: &str) -> RequestBuilder {
        ask(&self.client, &self.http, credential)
    }

    /// A token request of a client with these version headers.
    pub fn client_of(&self, build: &str, protocol: &str, schema: &str, surface: &str) -> RequestBuilder {
        client_of(&self.client, &self.http, [build, protocol, schema, surface])
    }

    /// Asks for a token for these streams.
    pub async fn token(&self, credential: &str, streams: &[&str]) -> anyhow::Result<(u16, Value)> {
        let body = json!({ "scopes": ["sync.subscribe", "runtime.run_events"], "streams": streams });
        answer(self.ask(credential).json(&body).send().await?).await
    }

    /// Gets a path without a credential.
    pub async fn get(&self, path: &str) -> anyhow::Result<(u16, Value)> {
        answer(self.client.get(self.url(path)).send().await?).await
    }

    /// The metrics that an admin sees.
    pub async fn metrics(&self) -> anyhow::Result<Value> {
        let path = "/internal/v1/spacetime/sync/metrics";
        let response = self.client.get(self.operator(path)).bearer_auth(ADMIN).send().await?;
        Ok(response.error_for_status()?.json().await?)
    }

    /// The text at a path, as an admin sees it.
    pub async fn text(&self, path: &str) -> anyhow::Result<String> {
        let request = self.client.get(self.url(path)).bearer_auth(ADMIN);
        Ok(request.send().await?.text().await?)
    }

    /// Revokes sessions as an admin.
    pub async fn revoke(&self, sessions: &[&str]) -> anyhow::Result<(u16, Value)> {
        self.revoke_whom(&json!({ "session_ids": sessions, "reason": "lost" }))
            .await
    }

    /// Sends this revocation.
    pub async fn revoke_whom(&self, body: &Value) -> anyhow::Result<(u16, Value)> {
        let request = self.client.post(self.operator(REVOKE_PATH)).bearer_auth(ADMIN);
        answer(request.json(body).send().await?).await
    }

    /// The HTTP client of all requests.
    pub fn http(&self) -> &reqwest::Client {
        &self.client
    }

    /// Waits until the bridge's log holds a text.
    pub async fn said(&self, text: &str) -> bool {
        until(UP_LIMIT, || self.process.log().contains(text)).await
    }
}

/// A token request of a supported client with this credential to the bridge at a url, still without a body.
pub fn ask(http: &reqwest::Client, bridge: &str, credential: &str) -> RequestBuilder {
    let schema = SCHEMA_VERSION.to_string();
    client_of(http, bridge, [BUILD, PROTOCOL, schema.as_str(), "desktop"]).bearer_auth(credential)
}

fn client_of(http: &reqwest::Client, bridge: &str, says: [&str; 4]) -> RequestBuilder {
    let mut request = http.post(format!("{bridge}{TOKEN_PATH}"));
    let names = [
        headers::CLIENT_BUILD_ID,
        headers::PROTOCOL_VERSION,
        headers::SCHEMA_VERSION,
        headers::CLIENT_SURFACE,
    ];
    for (name, text) in names.into_iter().zip(says) {
        // A text that is not a valid header as a string is sent as bytes.
        if let Ok(value) = reqwest::header::HeaderValue::from_bytes(text.as_bytes()) {
            request = request.header(name, value);
        }
    }
    request
}

/// Status and body of a response; null for a body that is not JSON.
pub async fn answer(response: Response) -> anyhow::Result<(u16, Value)> {
    let status = response.status().as_u16();
    let body = response.bytes().await?;
    Ok((status, serde_json::from_slice(&body).unwrap_or(Value::Null)))
}
