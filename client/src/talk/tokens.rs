//! Tokens from the bridge: asks `POST /api/sync/token` with the application's own session credential.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use reqwest::header::{HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};
use reqwest::{Response, StatusCode, Url};
use serde::de::DeserializeOwned;
use serde_json::Value;
use spacetime_sync_proto::access::{
    ClientVersion, Incompatible, TOKEN_PATH, TokenRefusal, TokenRequest, TokenResponse, headers,
};
use spacetime_sync_proto::{Refusal, RefusalCode, error_text};
use spacetime_sync_transport::Transport;

use crate::config::ALLOWED_BY;
use crate::credential::{AccessToken, TokenError, TokenFuture, TokenProvider, WantedToken, is_token};
use crate::error::ConfigError;

/// How long the bridge may take to answer.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Longest answer that is read.
const ANSWER_BYTES: usize = 64 * 1024;

type Session = dyn Fn() -> Pin<Box<dyn Future<Output = Result<String, TokenError>> + Send>> + Send + Sync;

/// Asks a bridge for tokens.
///
/// ```no_run
/// # use spacetime_sync_client::{ClientConfig, ConfigError, Credential, HttpTokens, TokenError};
/// # fn example(mut config: ClientConfig) -> Result<(), ConfigError> {
/// let tokens = HttpTokens::new("https://bridge.example", || async {
///     std::fs::read_to_string("session.token").map_err(TokenError::unavailable)
/// })?;
/// config.credential = Credential::provider(tokens);
/// # Ok(())
/// # }
/// ```
pub struct HttpTokens {
    http: reqwest::Client,
    url: Url,
    bridge: String,
    session: Box<Session>,
    ttl: Option<Duration>,
    device_id: Option<String>,
}

impl HttpTokens {
    /// Asks the bridge at this address. `session` returns the application's own session credential, each time a token
    /// is needed; blanks around it are removed.
    pub fn new<F, R>(bridge: impl Into<String>, session: F) -> Result<Self, ConfigError>
    where
        F: Fn() -> R + Send + Sync + 'static,
        R: Future<Output = Result<String, TokenError>> + Send + 'static,
    {
        Self::over(Transport::default(), bridge, session)
    }

    /// Like [`new`](Self::new), with another transport than the default.
    pub fn over<F, R>(transport: Transport, bridge: impl Into<String>, session: F) -> Result<Self, ConfigError>
    where
        F: Fn() -> R + Send + Sync + 'static,
        R: Future<Output = Result<String, TokenError>> + Send + 'static,
    {
        let bridge = bridge.into();
        let mut url = bridge_url(&bridge)?;
        transport.check(&bridge, ALLOWED_BY)?;
        url.set_path(&format!("{}{TOKEN_PATH}", url.path().trim_end_matches('/')));
        let http = transport
            .http(&bridge)
            .timeout(TIMEOUT)
            .build()
            .map_err(|error| ConfigError::Bridge {
                detail: error.without_url().to_string(),
            })?;
        Ok(Self {
            http,
            url,
            bridge,
            session: Box::new(move || Box::pin(session())),
            ttl: None,
            device_id: None,
        })
    }

    /// Asks for tokens that last this long. The bridge decides.
    #[must_use]
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = Some(ttl);
        self
    }

    /// Names the device, for session credentials that do not.
    #[must_use]
    pub fn device_id(mut self, device_id: impl Into<String>) -> Self {
        self.device_id = Some(device_id.into());
        self
    }

    /// Interprets an answer of the bridge, for a provider with its own HTTP client. An answer that is not in the
    /// bridge's form is judged by its status.
    pub fn read_answer(status: StatusCode, answered: &HeaderMap, body: &[u8]) -> Result<AccessToken, TokenError> {
        read_answer(status, answered, body)
    }

    async fn ask(&self, wanted: WantedToken) -> Result<AccessToken, TokenError> {
        let session = (self.session)().await?;
        let session = session.trim();
        if !is_token(session) {
            let message = "the application's session credential is empty or contains blanks or non-ASCII characters";
            return Err(TokenError::unavailable(message));
        }
        let body = TokenRequest {
            scopes: wanted.scopes.iter().map(|scope| scope.as_str().to_owned()).collect(),
            streams: wanted.streams.iter().map(|stream| stream.as_str().to_owned()).collect(),
            topics: Vec::new(),
            ttl_seconds: self.ttl.map(|ttl| ttl.as_secs()),
            device_id: self.device_id.clone(),
        };
        let failed = |error: reqwest::Error| TokenError::unavailable(error_text(&error.without_url()));
        let answer = self
            .http
            .post(self.url.clone())
            .bearer_auth(session)
            .headers(version_headers(&wanted.client)?)
            .json(&body)
            .send()
            .await
            .map_err(failed)?;
        let (status, answered) = (answer.status(), answer.headers().clone());
        let body = read_up_to(answer, ANSWER_BYTES)
            .await
            .map_err(TokenError::unavailable)?;
        read_answer(status, &answered, &body)
    }
}

impl TokenProvider for HttpTokens {
    fn token(&self, wanted: WantedToken) -> TokenFuture<'_> {
        Box::pin(self.ask(wanted))
    }

    fn bridge(&self) -> Option<&str> {
        Some(&self.bridge)
    }
}

/// The address of a bridge.
pub(crate) fn bridge_url(address: &str) -> Result<Url, ConfigError> {
    let wrong = |detail: String| ConfigError::Bridge { detail };
    let url = Url::parse(address).map_err(|error| wrong(error.to_string()))?;
    if !["http", "https"].contains(&url.scheme()) || !url.has_host() || url.query().is_some() {
        return Err(wrong(
            "it needs http or https and a host, and must have no query".to_owned(),
        ));
    }
    Ok(url)
}

impl fmt::Debug for HttpTokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The address may contain a password.
        f.debug_struct("HttpTokens")
            .field("host", &self.url.host_str())
            .field("ttl", &self.ttl)
            .field("device_id", &self.device_id)
            .finish_non_exhaustive()
    }
}

fn version_headers(client: &ClientVersion) -> Result<HeaderMap, TokenError> {
    let schema = client.schema_version.to_string();
    let oldest = client.oldest_schema_version.map(|version| version.to_string());
    let mut map = HeaderMap::new();
    let said = [
        (headers::CLIENT_BUILD_ID, Some(client.client_build_id.as_str())),
        (headers::PROTOCOL_VERSION, Some(client.protocol_version.as_str())),
        (headers::SCHEMA_VERSION, Some(schema.as_str())),
        (headers::OLDEST_SCHEMA_VERSION, oldest.as_deref()),
        (headers::CLIENT_SURFACE, Some(client.surface.as_str())),
    ];
    for (name, value) in said.into_iter().filter_map(|(name, value)| Some((name, value?))) {
        let value = HeaderValue::from_str(value).map_err(|_| {
            TokenError::refused(
                RefusalCode::InvalidRequest,
                format!("{name}: does not fit into a header"),
            )
        })?;
        map.insert(HeaderName::from_static(name), value);
    }
    Ok(map)
}

fn read_answer(status: StatusCode, answered: &HeaderMap, body: &[u8]) -> Result<AccessToken, TokenError> {
    if status == StatusCode::OK {
        return read_token(body);
    }
    let incompatible = read_incompatible(body).or_else(|| read_headers(answered));
    if let Some(incompatible) = incompatible.filter(|_| status == StatusCode::UPGRADE_REQUIRED) {
        return Err(TokenError::Incompatible(Box::new(incompatible)));
    }
    let refusal = json::<TokenRefusal>(body);
    let retry_after = retry_after(refusal.as_ref(), answered);
    let said = refusal.map(|refusal| Refusal::new(refusal.code, refusal.message));
    // A failing server is asked again, whatever code it gives.
    if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS {
        return Err(match said {
            Some(refusal) if TokenError::refused(refusal.code, "").class() == crate::ErrorClass::Retry => {
                TokenError::Refused { refusal, retry_after }
            }
            Some(_) | None => TokenError::Unavailable {
                message: format!("the bridge answered {status}"),
                retry_after,
            },
        });
    }
    let by_status = match status {
        StatusCode::UNAUTHORIZED => Some(RefusalCode::Unauthorized),
        StatusCode::FORBIDDEN => Some(RefusalCode::Forbidden),
        StatusCode::UNPROCESSABLE_ENTITY => Some(RefusalCode::InvalidRequest),
        StatusCode::UPGRADE_REQUIRED => Some(RefusalCode::UpgradeRequired),
        _ => None,
    };
    let told = || by_status.map(|code| Refusal::new(code, format!("the bridge answered {status}")));
    Err(match said.or_else(told) {
        Some(refusal) => TokenError::Refused { refusal, retry_after },
        None => TokenError::Unavailable {
            message: format!("the server answered {status}, but not as a bridge does: check the bridge's address"),
            retry_after,
        },
    })
}

fn read_token(body: &[u8]) -> Result<AccessToken, TokenError> {
    let response: TokenResponse =
        json(body).ok_or_else(|| TokenError::unavailable("the bridge's answer contains no token"))?;
    if !is_token(&response.token) || response.expires_in == 0 {
        let message = "the bridge's answer contains an unusable token";
        return Err(TokenError::unavailable(message));
    }
    Ok(AccessToken {
        token: response.token,
        refresh_after: Duration::from_secs(response.refresh_after_in),
        expires_in: Duration::from_secs(response.expires_in),
        granted_streams: response.granted_streams,
        session_id: Some(response.session_id.to_string()),
        seal_keys: response.seal_keys,
        pin: response.pin.map(Box::new),
    })
}

pub(super) fn json<T: DeserializeOwned>(body: &[u8]) -> Option<T> {
    serde_json::from_slice(body).ok()
}

/// The body of a 426. A code of a later release is taken by the status; what it says beside its code counts all the same.
pub(super) fn read_incompatible(body: &[u8]) -> Option<Incompatible> {
    let mut said: Value = json(body)?;
    let code = said.get_mut("code")?;
    *code = serde_json::to_value(code_of_426(code.as_str()?)).ok()?;
    serde_json::from_value(said).ok()
}

fn code_of_426(code: &str) -> RefusalCode {
    serde_json::from_value(code.into()).unwrap_or(RefusalCode::UpgradeRequired)
}

/// A 426 repeats its body in its headers, because a proxy may replace the body with a page of its own.
fn read_headers(answered: &HeaderMap) -> Option<Incompatible> {
    let text = |name: &str| answered.get(name)?.to_str().ok().map(str::to_owned);
    let code = text(headers::CODE)?;
    Some(Incompatible {
        code: code_of_426(&code),
        message: format!("the bridge does not support this client: {code}"),
        retryable: false,
        upgrade_required: text(headers::UPGRADE_REQUIRED)? == "true",
        surface: text(headers::CLIENT_SURFACE).unwrap_or_default(),
        min_client_build_id: text(headers::MIN_CLIENT_BUILD_ID)?,
        max_client_build_id: text(headers::MAX_CLIENT_BUILD_ID).filter(|max| !max.is_empty()),
        min_schema_version: text(headers::MIN_SCHEMA_VERSION)?.parse().ok()?,
        max_schema_version: text(headers::MAX_SCHEMA_VERSION)?.parse().ok()?,
        protocol_version: text(headers::SERVED_PROTOCOL_VERSION)?,
    })
}

/// When to ask again: as the bridge says, or else what stands before it.
pub(super) fn retry_after(said: Option<&TokenRefusal>, answered: &HeaderMap) -> Option<Duration> {
    let told = said.and_then(|said| said.retry_after_ms).map(Duration::from_millis);
    let seconds = || answered.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok();
    told.or_else(|| seconds().map(Duration::from_secs))
}

/// The body, unless it is longer than allowed.
pub(crate) async fn read_up_to(mut answer: Response, most: usize) -> Result<Vec<u8>, String> {
    let mut body = Vec::new();
    while let Some(chunk) = answer.chunk().await.map_err(|error| error_text(&error.without_url()))? {
        if body.len() + chunk.len() > most {
            return Err(format!("the answer is longer than the {most} bytes allowed"));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

#[cfg(test)]
mod tests;
