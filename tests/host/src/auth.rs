//! Identifies the caller of a request by its bearer token. A caller without a token gets a new identity.
//!
//! The engine's own validators check tokens: first with this node's key, then with the keys that the token's issuer
//! publishes. What a caller may do is decided elsewhere.

use std::time::{Duration, SystemTime};

use axum::body::Body;
use axum::extract::{Query, Request, State};
use axum::http::{HeaderValue, header, request::Parts};
use axum::middleware::Next;
use axum::response::Response;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use spacetimedb::Identity;
use spacetimedb::auth::identity::{ConnectionAuthCtx, SpacetimeIdentityClaims};
use spacetimedb::auth::token_validation::{TokenSigner as _, TokenValidator as _};

use crate::error::Failure;
use crate::node::{App, Node};
use crate::registry::Entry;

/// The issuer of the tokens that this node signs for itself.
pub(crate) const LOCAL_ISSUER: &str = "localhost";

/// A caller whose token has been checked.
#[derive(Clone)]
pub(crate) struct Caller {
    pub(crate) token: String,
    pub(crate) claims: SpacetimeIdentityClaims,
    /// The token's claims as they were signed. The module sees them.
    payload: Box<str>,
}

impl Caller {
    pub(crate) fn identity(&self) -> Identity {
        self.claims.identity
    }

    pub(crate) fn context(&self) -> ConnectionAuthCtx {
        ConnectionAuthCtx {
            identity: self.claims.identity,
            jwt_payload: Some(self.payload.clone()),
        }
    }

    /// Fails unless the caller owns the database.
    pub(crate) fn must_own(&self, entry: &Entry, action: &'static str) -> Result<(), Failure> {
        if entry.owner == self.identity() {
            return Ok(());
        }
        Err(Failure::NotTheOwner {
            subject: self.identity(),
            database: entry.identity,
            action,
        })
    }

    /// The caller of a request; `None` if the request carries no token.
    pub(crate) async fn of_request(node: &Node, parts: &Parts) -> Result<Option<Self>, Failure> {
        match token_of(parts)? {
            Some(token) => Self::check(node, token).await.map(Some),
            None => Ok(None),
        }
    }

    async fn check(node: &Node, token: String) -> Result<Self, Failure> {
        let claims = node
            .validator
            .validate_token(&token)
            .await
            .map_err(|e| Failure::BadToken(e.to_string()))?;
        Self::new(token, claims)
    }

    fn new(token: String, claims: SpacetimeIdentityClaims) -> Result<Self, Failure> {
        let payload = token
            .split('.')
            .nth(1)
            .and_then(|part| URL_SAFE_NO_PAD.decode(part).ok())
            .and_then(|bytes| String::from_utf8(bytes).ok())
            .ok_or_else(|| Failure::BadToken("the token has no readable payload".into()))?;
        Ok(Self {
            token,
            claims,
            payload: payload.into(),
        })
    }

    /// Creates a new identity and a token for it that does not expire.
    pub(crate) fn mint(node: &Node) -> Result<Self, Failure> {
        let subject = uuid::Uuid::new_v4().to_string();
        let claims = SpacetimeIdentityClaims {
            identity: Identity::from_claims(LOCAL_ISSUER, &subject),
            subject: subject.into(),
            issuer: LOCAL_ISSUER.into(),
            audience: ["spacetimedb".into()].into(),
            iat: SystemTime::now(),
            exp: None,
            extra: None,
        };
        let token = node.keys.sign(&claims).map_err(Failure::internal)?;
        Self::new(token, claims)
    }

    /// Signs the same claims again, in a short-lived token.
    ///
    /// The issuer stays the same. This node accepts the token nevertheless, because it tries its own key first.
    pub(crate) fn short_lived_token(&self, node: &Node, lifetime: Duration) -> Result<String, Failure> {
        let now = SystemTime::now();
        let claims = SpacetimeIdentityClaims {
            iat: now,
            exp: Some(now + lifetime),
            ..self.claims.clone()
        };
        node.keys.sign(&claims).map_err(Failure::internal)
    }
}

/// Reads the token of a request. The header wins over `?token=`, which only browsers need.
fn token_of(parts: &Parts) -> Result<Option<String>, Failure> {
    #[derive(Deserialize)]
    struct InQuery {
        token: String,
    }
    let Some(header) = parts.headers.get(header::AUTHORIZATION) else {
        return Ok(Query::<InQuery>::try_from_uri(&parts.uri).ok().map(|q| q.0.token));
    };
    let bearer = header.to_str().ok().and_then(|text| text.split_once(' '));
    match bearer {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("Bearer") => Ok(Some(token.trim().to_owned())),
        _ => Err(Failure::bad_request("Authorization is invalid: malformed token")),
    }
}

/// Adds the [`Caller`] to each request, and the caller's identity to each response.
///
/// Reads the whole body first. Refusing a request whose body is half read would close the connection, and the client
/// might see the closed connection instead of the refusal.
pub(crate) async fn identify(State(node): State<App>, mut request: Request, next: Next) -> Result<Response, Failure> {
    let (parts, body) = request.into_parts();
    let body = axum::body::to_bytes(body, usize::MAX)
        .await
        .map_err(Failure::bad_request)?;
    let caller = match Caller::of_request(&node, &parts).await? {
        Some(caller) => caller,
        None => Caller::mint(&node)?,
    };
    let identity = HeaderValue::from_str(&caller.identity().to_hex()).map_err(Failure::internal)?;
    let mut token = HeaderValue::from_str(&caller.token).map_err(Failure::internal)?;
    token.set_sensitive(true);
    request = Request::from_parts(parts, Body::from(body));
    request.extensions_mut().insert(caller);
    let mut response = next.run(request).await;
    response.headers_mut().insert("spacetime-identity", identity);
    response.headers_mut().insert("spacetime-identity-token", token);
    Ok(response)
}
