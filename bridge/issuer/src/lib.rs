//! The issuer: gives sync tokens to sessions with a valid credential, for the streams that the authority lets them
//! read. For clients that SpacetimeDB cannot continue, it also reads the authority's log ([`history`]).
//!
//! Everything that decides is pure ([`policy`], [`issue`], how many `credentials` may be bad, the schedule of [`keys`]). [`Issuer`] carries it
//! out with the authority. All memory that it uses is bounded. It never trusts a request about who asks or what they
//! may read.

mod cache;
mod counters;
mod credentials;
pub mod denial;
pub mod history;
pub mod http;
pub mod issue;
pub mod json;
pub mod jws;
pub mod keys;
pub mod policy;
pub mod reader;
pub mod revocation;
pub mod service;
pub mod sessions;
pub mod settings;

use std::net::IpAddr;
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use spacetime_sync_doors::asker::Origin;
use spacetime_sync_doors::buckets::Buckets;
use spacetime_sync_doors::quota::Rate;
use spacetime_sync_proto::access::{ClientVersion, Compatibility, Incompatible, TokenRequest, TokenResponse};
use spacetime_sync_proto::{DatabasePin, Label, RefusalCode};

use cache::AccessCache;
use credentials::{Check, Credentials};
use denial::Denial;
use issue::{Names, Order};
use keys::{KeyError, KeyFolder, SigningKey, now, now_us};
use policy::Wanted;
use service::ServiceTokens;
use sessions::{PublicKeyError, Refused, Session, SessionVerifier};
use settings::{IssuerConfig, SessionsConfig};
use spacetime_sync_authority::{Access, AccessQuestion, Authority, BoundSession};

pub use counters::{AuthCounters, AuthFailures};

/// Why the configured issuer cannot start.
#[derive(Debug, thiserror::Error)]
pub enum IssuerError {
    /// The configuration names no key.
    #[error("expected issuer.keys_dir or issuer.key, found neither")]
    NoKeys,
    /// A signing key is missing or invalid.
    #[error("the issuer cannot use its signing keys")]
    Keys(#[from] KeyError),
    /// A key of the sessions' issuer is missing or invalid.
    #[error("the issuer cannot use the keys of [sessions]")]
    Sessions(#[from] PublicKeyError),
}

/// Issues tokens.
#[derive(Debug)]
pub struct Issuer {
    names: Names,
    compatibility: Compatibility,
    keys: Arc<KeyFolder>,
    seals: Arc<KeyFolder>,
    sessions: SessionVerifier,
    asked: Buckets<Label>,
    credentials: Credentials,
    cache: AccessCache,
    authority: OnceLock<Authority>,
    counters: counters::Totals,
    service: Arc<ServiceTokens>,
    revocations: revocation::Outbox,
    /// The database that tokens are for.
    pin: Option<DatabasePin>,
    /// Whether SpacetimeDB led to another database when the bridge last looked.
    strayed: AtomicBool,
}

impl Issuer {
    /// Reads all keys. `compatibility` says which clients are supported, `seals` what events are sealed with if it is not
    /// the keys that sign tokens.
    pub fn open(
        issuer: &IssuerConfig,
        sessions: &SessionsConfig,
        compatibility: &Compatibility,
        seals: Option<Arc<KeyFolder>>,
    ) -> Result<Self, IssuerError> {
        let keys = match (&issuer.key, &issuer.keys_dir) {
            (Some(pem), _) => KeyFolder::single(SigningKey::from_pem(pem, 0, "issuer.key")?),
            (None, Some(folder)) => KeyFolder::open(folder, now())?,
            (None, None) => return Err(IssuerError::NoKeys),
        };
        let names = Names {
            issuer: issuer.url.clone(),
            audience: issuer.audience.clone(),
        };
        let (keys, started) = (Arc::new(keys), Instant::now());
        let service = ServiceTokens::new(keys.clone(), &names, compatibility, issuer.service_ttl_seconds);
        Ok(Self {
            names,
            compatibility: compatibility.clone(),
            seals: seals.unwrap_or_else(|| keys.clone()),
            keys,
            sessions: SessionVerifier::new(sessions)?,
            asked: Buckets::new(
                Rate::per_minute(issuer.session_per_minute, issuer.session_burst),
                started,
            ),
            credentials: Credentials::new(
                Rate::per_second(issuer.checks_per_second, issuer.checks_burst),
                Rate::per_minute(issuer.failures_per_minute, issuer.failures_burst),
                started,
            ),
            cache: AccessCache::new(issuer.policy_cache()),
            authority: OnceLock::new(),
            counters: counters::Totals::default(),
            service: Arc::new(service),
            revocations: revocation::Outbox::default(),
            pin: None,
            strayed: AtomicBool::new(false),
        })
    }

    /// The same issuer, whose tokens are for one database.
    #[must_use]
    pub fn pinned(self, pin: Option<DatabasePin>) -> Self {
        Self { pin, ..self }
    }

    /// The database that tokens are for, for a gate.
    pub fn pin(&self) -> Option<&DatabasePin> {
        self.pin.as_ref()
    }

    /// `iss` and `aud`.
    pub fn names(&self) -> &Names {
        &self.names
    }

    /// The signing keys.
    pub fn keys(&self) -> &Arc<KeyFolder> {
        &self.keys
    }

    /// The sealing keys, which clients are told of.
    pub fn seals(&self) -> &Arc<KeyFolder> {
        &self.seals
    }

    /// Signs the bridge's own tokens.
    pub fn service(&self) -> &Arc<ServiceTokens> {
        &self.service
    }

    /// The counters.
    pub fn counters(&self) -> AuthCounters {
        self.counters.read()
    }

    /// Sets the authority. A second call changes nothing.
    pub fn attach(&self, authority: Authority) {
        let _ = self.authority.set(authority);
    }

    /// Notes that the link to SpacetimeDB is new. The server may have lost recent revocations, so they are sent again.
    pub fn relinked(&self) {
        self.revocations.relinked();
    }

    /// Whether SpacetimeDB leads to another database. Nobody gets a token for that one.
    pub fn set_strayed(&self, strayed: bool) {
        self.strayed.store(strayed, Ordering::SeqCst);
    }

    pub(crate) fn strayed(&self) -> bool {
        self.strayed.load(Ordering::SeqCst)
    }

    /// Which clients the bridge supports.
    pub fn compatibility(&self) -> &Compatibility {
        &self.compatibility
    }

    /// Whether the bridge supports this client.
    pub fn check_client(&self, client: &ClientVersion) -> Result<(), Box<Incompatible>> {
        self.compatibility.check(client)
    }

    /// Returns the session that the value of the header `Authorization` proves.
    pub async fn authenticate(
        self: &Arc<Self>,
        authorization: Option<&[u8]>,
        origin: &Origin,
    ) -> Result<Session, Denial> {
        let (credential, check) = self
            .begin(authorization, origin)
            .map_err(|denial| self.counted(denial))?;
        let credential = credential.to_owned();
        // Runs in a task of its own: if the client hangs up while a key is fetched, its failure counts all the same.
        let judged = tokio::spawn({
            let issuer = self.clone();
            async move { issuer.judge(&credential, check).await }
        });
        // Nobody cancels the task, so it ends with an answer or with a panic.
        judged.await.unwrap_or_else(|ended| resume_unwind(ended.into_panic()))
    }

    /// The credential of a request, the check of which is paid for.
    fn begin<'a>(&self, authorization: Option<&'a [u8]>, origin: &Origin) -> Result<(&'a str, Check), Denial> {
        let now = Instant::now();
        let credential = bearer(authorization).map(str::trim).map_err(|denial| {
            let failed = self.credentials.nothing_shown(origin, now);
            failed.err().unwrap_or(denial)
        })?;
        Ok((credential, self.credentials.begin(credential, origin, now)?))
    }

    async fn judge(&self, credential: &str, check: Check) -> Result<Session, Denial> {
        let verified = self.sessions.verify(credential, now()).await;
        let (proven, code) = match &verified {
            Ok(session) => (Some(&session.session_id), None),
            Err(refused) => (refused.session_id.as_ref(), Some(refused.denial.code)),
        };
        self.credentials
            .settle(check, proven, code, Instant::now())
            .and(verified.map_err(|Refused { denial, .. }| denial))
            .map_err(|denial| self.counted(denial))
    }

    /// Makes a token for a session. The caller has checked `client`, which asks from `address`.
    pub async fn token(
        &self,
        session: &Session,
        client: &ClientVersion,
        request: &TokenRequest,
        address: IpAddr,
    ) -> Result<TokenResponse, Denial> {
        self.grant(session, client, request, address)
            .await
            .inspect(|_| self.counters.minted())
            .map_err(|denial| self.counted(denial))
    }

    /// Takes a token from the session's bucket. If there is none, the caller does not even read the body.
    pub fn admit(&self, session: &Session) -> Result<(), Denial> {
        self.asked
            .take(session.session_id.clone(), Instant::now())
            .map_err(|wait| self.counted(Denial::rate_limited("this session asks too often", wait)))
    }

    /// Counts a refusal that was not made by one of the issuer's own methods.
    pub fn counted(&self, denial: Denial) -> Denial {
        self.counters.denied(denial.code);
        denial
    }

    async fn grant(
        &self,
        session: &Session,
        client: &ClientVersion,
        request: &TokenRequest,
        address: IpAddr,
    ) -> Result<TokenResponse, Denial> {
        if self.strayed() {
            return Err(Denial::strayed());
        }
        let wanted = Wanted::read(request)?;
        let surface = Label::new(&client.surface)
            .map_err(|error| Denial::new(RefusalCode::InvalidRequest, format!("the client's surface: {error}")))?;
        let device_id = device(session, &wanted)?;
        let question = Arc::new(AccessQuestion {
            session_id: session.session_id.clone(),
            user_id: session.user_id.clone(),
            org_id: session.org_id.clone(),
            wanted: wanted.streams.clone(),
        });
        let asked_at = Instant::now();
        let (access, epoch) = match self.cache.get(&question, asked_at) {
            Ok(access) => (access, None),
            Err(epoch) => {
                let access = Arc::new(self.ask(self.authority()?.access(&question)).await?);
                self.cache.put(epoch, question.clone(), access.clone(), asked_at);
                (access, Some(epoch))
            }
        };
        if let Some(known) = &access.session {
            bound(known, session, &device_id)?;
        }
        let granted = wanted.grant(&access.allowed, &access.scopes)?;
        if access.session.as_ref().is_none_or(|known| known.bound_to.is_none()) {
            let (authority, user_id) = (self.authority()?, &session.user_id);
            let known = self
                .ask(authority.bind_session(&session.session_id, user_id, &device_id, session.issued_at, address))
                .await?;
            bound(&known, session, &device_id)?;
            if let Some(epoch) = epoch {
                let access = Access {
                    session: Some(known),
                    ..(*access).clone()
                };
                self.cache.put(epoch, question, Arc::new(access), asked_at);
            }
        }
        let now_us = now_us();
        let ring = self.keys.ring();
        let key = ring
            .signer(now_us / 1_000_000)
            .ok_or_else(|| Denial::unavailable("no key may sign at the moment"))?;
        let order = Order {
            session,
            device_id: &device_id,
            client,
            surface: &surface,
            granted,
            ttl_seconds: wanted.ttl_seconds,
        };
        let (seal_keys, pin) = (self.seals.ring().seal_keys(), self.pin.clone());
        issue::issue(key, &self.names, order, seal_keys, pin, now_us)
    }

    fn authority(&self) -> Result<&Authority, Denial> {
        self.authority
            .get()
            .ok_or_else(|| Denial::unavailable("the authority is not connected yet"))
    }

    /// The authority's answer. A failure's reason goes to the log; the caller learns only that there is no answer.
    async fn ask<T>(
        &self,
        call: impl Future<Output = Result<T, spacetime_sync_authority::AuthorityError>>,
    ) -> Result<T, Denial> {
        call.await.map_err(|error| {
            tracing::warn!(
                error = spacetime_sync_proto::error_text(&error),
                "the authority did not answer a question about a session"
            );
            Denial::unavailable("the authority is not available at the moment")
        })
    }
}

/// The credential in the header `Authorization`.
fn bearer(authorization: Option<&[u8]>) -> Result<&str, Denial> {
    let Some(value) = authorization else {
        return Err(Denial::new(
            RefusalCode::MissingAuthorization,
            "expected the header Authorization: Bearer, found none",
        ));
    };
    let scheme = || {
        Denial::new(
            RefusalCode::InvalidAuthorizationScheme,
            "expected the header Authorization: Bearer, found another scheme",
        )
    };
    let text = std::str::from_utf8(value).map_err(|_| scheme())?;
    match text.split_once(' ') {
        Some((name, token)) if name.eq_ignore_ascii_case("bearer") => Ok(token),
        Some(_) | None => Err(scheme()),
    }
}

/// The device that a request comes from. If the session credential does not name it, the request does.
fn device(session: &Session, wanted: &Wanted) -> Result<Label, Denial> {
    match (&session.device_id, &wanted.device_id) {
        (Some(proven), Some(named)) if proven != named => Err(another_device()),
        (Some(device_id), _) | (None, Some(device_id)) => Ok(device_id.clone()),
        (None, None) => Err(Denial::new(
            RefusalCode::InvalidRequest,
            "device_id: expected the device, which the session credential does not name",
        )),
    }
}

/// Whether a session that the authority knows may have a token.
fn bound(known: &BoundSession, session: &Session, device_id: &Label) -> Result<(), Denial> {
    if known.revoked {
        return Err(Denial::new(RefusalCode::TokenRevoked, "the session was revoked"));
    }
    match &known.bound_to {
        Some((user_id, device)) if *user_id != session.user_id || device != device_id => Err(another_device()),
        _ => Ok(()),
    }
}

fn another_device() -> Denial {
    Denial::new(RefusalCode::SessionBound, "the session is bound to another device")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn label(text: &str) -> Label {
        Label::new(text).unwrap()
    }

    fn session(device: Option<&str>) -> Session {
        Session {
            user_id: label("7"),
            session_id: label("s1"),
            org_id: None,
            device_id: device.map(label),
            issued_at: 0,
            expires_at: 0,
        }
    }

    #[tokio::test]
    async fn a_client_that_hangs_up_does_not_escape_the_limit_on_failures() {
        let (requests, mut requested) = tokio::sync::mpsc::unbounded_channel();
        let answer = Arc::new(tokio::sync::Semaphore::new(0));
        let no_keys = axum::routing::get({
            let answer = answer.clone();
            move || {
                requests.send(()).unwrap();
                async move { answer.acquire().await.map(|_| r#"{"keys":[]}"#).unwrap() }
            }
        });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let keys_of_sessions = format!("http://{}/keys", listener.local_addr().unwrap());
        let app = axum::Router::new().route("/keys", no_keys);
        tokio::spawn(axum::serve(listener, app).into_future());
        let issuer = Arc::new(issuer(&keys_of_sessions));
        let stranger = Origin::of([10, 0, 0, 1].into());
        let payer = credentials::Payer::Origin(stranger.clone());
        let token = keys::tests::key(0)
            .sign(jws::Kind::Session, &serde_json::json!({ "sub": "7" }))
            .unwrap();
        let authorization = format!("Bearer {}", token.expose());

        let asked = tokio::spawn({
            let (issuer, authorization, stranger) = (issuer.clone(), authorization.clone(), stranger.clone());
            async move { issuer.authenticate(Some(authorization.as_bytes()), &stranger).await }
        });
        requested.recv().await.unwrap();
        asked.abort();
        assert!(asked.await.unwrap_err().is_cancelled());
        answer.add_permits(10);

        // Without a limit on failures, this loop would never end.
        let limited = async {
            while issuer.credentials.may_fail(&payer, Instant::now()) {
                tokio::time::sleep(std::time::Duration::from_millis(1)).await;
            }
        };
        let limited = tokio::time::timeout(std::time::Duration::from_secs(10), limited).await;
        assert!(limited.is_ok(), "the credential that failed was not counted");
        let denial = issuer.authenticate(Some(authorization.as_bytes()), &stranger).await;
        assert_eq!(denial.unwrap_err().code, RefusalCode::RateLimited);
    }

    /// An issuer that allows one failed credential per address, and fetches the keys of sessions.
    fn issuer(keys_of_sessions: &str) -> Issuer {
        let issuer = IssuerConfig {
            key: Some(SigningKey::generate().unwrap()),
            failures_per_minute: 1,
            failures_burst: 1,
            ..serde_json::from_value(serde_json::json!({ "url": "https://lane.example" })).unwrap()
        };
        let sessions = serde_json::json!({
            "issuer": "https://app.example", "audience": "runtime-sync", "jwks_url": keys_of_sessions,
        });
        Issuer::open(
            &issuer,
            &serde_json::from_value(sessions).unwrap(),
            &Compatibility::default(),
            None,
        )
        .unwrap()
    }

    #[test]
    fn the_credential_names_the_device_before_the_request_does() {
        let wanted = |device: Option<&str>| {
            let request = TokenRequest {
                scopes: vec!["sync.subscribe".to_owned()],
                streams: vec!["a".to_owned()],
                device_id: device.map(str::to_owned),
                ..TokenRequest::default()
            };
            Wanted::read(&request).unwrap()
        };
        for (proven, named, expected) in [
            (Some("d1"), None, Ok("d1")),
            (None, Some("d1"), Ok("d1")),
            (Some("d1"), Some("d1"), Ok("d1")),
            (Some("d1"), Some("d2"), Err(RefusalCode::SessionBound)),
            (None, None, Err(RefusalCode::InvalidRequest)),
        ] {
            let found = device(&session(proven), &wanted(named)).map_err(|denial| denial.code);
            assert_eq!(found, expected.map(label), "{proven:?} {named:?}");
        }
    }

    #[test]
    fn a_session_serves_only_the_user_and_device_it_is_bound_to_until_it_is_revoked() {
        let bound_to = |user: &str, device: &str| Some((label(user), label(device)));
        for (bound_to, revoked, expected) in [
            (None, false, None),
            (bound_to("7", "d1"), false, None),
            (bound_to("7", "d2"), false, Some(RefusalCode::SessionBound)),
            (bound_to("8", "d1"), false, Some(RefusalCode::SessionBound)),
            (bound_to("7", "d1"), true, Some(RefusalCode::TokenRevoked)),
            (None, true, Some(RefusalCode::TokenRevoked)),
        ] {
            let known = BoundSession { bound_to, revoked };
            let found = bound(&known, &session(None), &label("d1"))
                .err()
                .map(|denial| denial.code);
            assert_eq!(found, expected, "{known:?}");
        }
    }
}
