//! Sessions: decides whether a token may open or renew one, and what the session may do.
//!
//! SpacetimeDB has already checked the signature. This module checks who signed the token, for what purpose, for whom
//! and until when.

use std::collections::BTreeSet;

use serde_json::Value;
use spacetime_sync_proto::access::{
    CLAIMS_VERSION, ClientVersion, Compatibility, Incompatible, SERVICE_SUBJECT, Scope, StreamPattern, SyncClaims,
    TTL_SECONDS,
};
use spacetime_sync_proto::{Label, Refusal, RefusalCode, StreamId, limit};

/// How far the issuer's clock may be ahead of this one, in seconds.
pub const SKEW_SECONDS: u64 = 60;
/// How long a revoked session is remembered, in seconds: by then every token it may hold has expired, by every clock.
pub const REVOKED_SECONDS: u64 = 1_800;

/// Whose tokens are accepted, and from which clients.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// `iss`
    pub issuer: String,
    /// `aud`
    pub audience: String,
    /// Which clients are served.
    pub compatibility: Compatibility,
}

/// What a valid token stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    /// The session's name.
    pub session_id: Label,
    /// The session's user.
    pub user_id: Label,
    /// The organisation, if the session belongs to one.
    pub org_id: Option<Label>,
    /// The device that the session is bound to.
    pub device_id: Label,
    /// What the session may do.
    pub scopes: Vec<Scope>,
    /// The streams that its token names. The session sees those of them that [`may_see`] allows.
    pub streams: Vec<StreamPattern>,
    /// When the token was signed, in microseconds.
    pub issued_at_us: u64,
    /// When the session ends unless it is renewed, in seconds.
    pub expires_at: u64,
}

/// The claims of a token, as JSON. [`admit`] checks them.
#[derive(Debug)]
pub struct Claims(Value);

impl Claims {
    /// Parses the claims.
    pub fn read(text: &str) -> Result<Self, Refusal> {
        if text.len() > limit::CLAIMS_BYTES {
            return Err(no_token(format!("more than {} bytes", limit::CLAIMS_BYTES)));
        }
        let value = serde_json::from_str(text).map_err(|error| no_token(error.to_string()))?;
        Ok(Self(value))
    }

    /// The issuer that the token names.
    pub fn issuer(&self) -> Option<&str> {
        self.0.get("iss")?.as_str()
    }

    fn sync(self) -> Result<SyncClaims, Refusal> {
        // SpacetimeDB signs the claims of any caller anew, with its own key (`/v1/identity/websocket-token`), and accepts
        // the result in place of the issuer's token. It adds the caller's identity, and makes a list of `aud`.
        if self.0.get("hex_identity").is_some() || self.0.get("aud").is_some_and(Value::is_array) {
            return Err(refused(RefusalCode::InvalidToken, SIGNED_ANEW));
        }
        for (field, code) in [("jti", RefusalCode::MissingJti), ("iat", RefusalCode::MissingIat)] {
            if self.0.get(field).is_none() {
                return Err(refused(code, format!("the token has no {field}")));
            }
        }
        let claims: SyncClaims = serde_json::from_value(self.0).map_err(|error| no_token(error.to_string()))?;
        if claims.jti.is_empty() {
            return Err(refused(RefusalCode::MissingJti, "the token's jti is empty"));
        }
        Ok(claims)
    }
}

/// Why claims are refused that SpacetimeDB has signed.
const SIGNED_ANEW: &str = "SpacetimeDB has signed this token anew: connect with the token that the bridge has signed";

fn no_token(detail: String) -> Refusal {
    refused(
        RefusalCode::InvalidToken,
        format!("these are not the claims of a sync token: {detail}"),
    )
}

/// Why a token opens no session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Denied {
    /// The token or its session is the reason.
    Refused(Refusal),
    /// The client is none of those that are served.
    Incompatible(Box<Incompatible>),
}

impl Denied {
    /// The refusal, without which clients are served.
    pub fn refusal(self) -> Refusal {
        match self {
            Self::Refused(refusal) => refusal,
            Self::Incompatible(incompatible) => refused(incompatible.code, incompatible.message),
        }
    }

    /// Encodes it for the wire. Whoever expects a refusal reads one.
    pub fn to_wire(&self) -> String {
        match self {
            Self::Refused(refusal) => refusal.to_wire(),
            Self::Incompatible(incompatible) => incompatible.to_wire(),
        }
    }
}

impl From<Refusal> for Denied {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

/// Checks the claims of a token whose signature is valid. `is_revoked` says whether the session of this name was
/// revoked.
pub fn admit(
    claims: Claims,
    policy: &Policy,
    now: u64,
    is_revoked: impl FnOnce(&Label) -> bool,
) -> Result<Session, Refusal> {
    judge(claims, policy, now, is_revoked).map_err(Denied::refusal)
}

/// Like [`admit`], and tells a client that is not served which ones are.
pub fn judge(
    claims: Claims,
    policy: &Policy,
    now: u64,
    is_revoked: impl FnOnce(&Label) -> bool,
) -> Result<Session, Denied> {
    let (session, client) = check(claims, policy, now, is_revoked)?;
    if let Some(client) = client {
        policy.compatibility.check(&client).map_err(Denied::Incompatible)?;
    }
    Ok(session)
}

/// What a token stands for, and the client that it was issued to, unless that is the bridge.
fn check(
    claims: Claims,
    policy: &Policy,
    now: u64,
    is_revoked: impl FnOnce(&Label) -> bool,
) -> Result<(Session, Option<ClientVersion>), Refusal> {
    let claims = claims.sync()?;
    if claims.iss != policy.issuer {
        return Err(refused(
            RefusalCode::InvalidToken,
            "the token is from another issuer than the one that this database trusts",
        ));
    }
    if claims.aud != policy.audience || claims.oa_claims_version != CLAIMS_VERSION {
        let message = "the token is for another purpose: ask the bridge for a sync token";
        return Err(refused(RefusalCode::InvalidToken, message));
    }
    let Some(issued_at_us) = claims.issued_at_us() else {
        let message = "the token's iat and oa_iat_us are two different times";
        return Err(refused(RefusalCode::InvalidToken, message));
    };
    let latest = now.saturating_add(SKEW_SECONDS);
    if claims.iat > latest || claims.nbf > latest {
        return Err(refused(
            RefusalCode::TokenNotYetValid,
            "the token is not valid yet: check the clocks of issuer and server",
        ));
    }
    if claims.exp <= now {
        return Err(expired());
    }
    if claims.exp <= claims.iat || claims.exp - claims.iat > *TTL_SECONDS.end() {
        let message = format!("the token is valid for more than {} s", TTL_SECONDS.end());
        return Err(refused(RefusalCode::TokenTooOld, message));
    }
    if claims.oa_sync_streams.len() > limit::TOKEN_STREAMS {
        let message = format!("the token names more than {} streams", limit::TOKEN_STREAMS);
        return Err(refused(RefusalCode::TooManyGrants, message));
    }
    let service = claims.sub == SERVICE_SUBJECT;
    if !service && claims.sub != SyncClaims::subject(&claims.oa_user_id, &claims.oa_session_id) {
        return Err(refused(
            RefusalCode::InvalidToken,
            "the token's subject does not name its session",
        ));
    }
    if !service {
        let named = SyncClaims::check_names(&claims.oa_user_id, &claims.oa_session_id);
        named.map_err(|unusable| refused(RefusalCode::InvalidToken, unusable.to_string()))?;
    }
    if claims.oa_sync_scopes.contains(&Scope::Append) != service {
        return Err(refused(
            RefusalCode::InvalidScope,
            "the scope sync.append is for the bridge alone, and the bridge has no other scope",
        ));
    }
    if is_revoked(&claims.oa_session_id) {
        return Err(refused(
            RefusalCode::TokenRevoked,
            "the session was revoked: sign in again",
        ));
    }
    let client = (!service).then(|| claims.client());
    let session = Session {
        session_id: claims.oa_session_id,
        user_id: claims.oa_user_id,
        org_id: claims.oa_org_id,
        device_id: claims.oa_device_id,
        scopes: claims.oa_sync_scopes,
        streams: claims.oa_sync_streams,
        issued_at_us,
        expires_at: claims.exp,
    };
    Ok((session, client))
}

/// Whether a session with these scopes may see a stream that its token names.
pub fn may_see(scopes: &[Scope], stream_id: &StreamId) -> bool {
    let lane = Scope::of_stream(stream_id);
    scopes.contains(&Scope::Subscribe) && lane.is_none_or(|lane| scopes.contains(&lane))
}

/// The newest token that a session has shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NewestToken {
    /// When it was signed, in microseconds.
    pub issued_at_us: u64,
    /// When it expires, in seconds. It may have expired.
    pub expires_at: u64,
}

impl Session {
    /// Whether this token says from now on what its session may do. An older one changes nothing while the session lasts,
    /// and does not open it again once it has ended: it may say more than the newer one did. All tokens of the bridge say
    /// the same, so among those the one that lasts longest counts.
    pub fn renews(&self, newest: Option<NewestToken>, now: u64) -> Result<bool, Refusal> {
        let Some(newest) = newest else { return Ok(true) };
        if self.scopes.contains(&Scope::Append) {
            return Ok(self.expires_at > newest.expires_at);
        }
        if self.issued_at_us > newest.issued_at_us {
            return Ok(true);
        }
        if newest.expires_at > now {
            Ok(false)
        } else {
            Err(expired())
        }
    }

    /// Whether the session may see a stream by one of its patterns.
    pub fn covers(&self, stream_id: &StreamId) -> bool {
        let under = |pattern: &StreamPattern| match pattern {
            StreamPattern::Exact(_) => false,
            StreamPattern::Prefix(_) => pattern.matches(stream_id),
        };
        may_see(&self.scopes, stream_id) && self.streams.iter().any(under)
    }
}

/// The streams that a session sees by its patterns: the newest, as many as there is room for.
#[derive(Debug)]
pub struct Newest<T> {
    room: usize,
    streams: BTreeSet<(T, u64)>,
}

impl<T: Ord> Newest<T> {
    /// Holds no stream yet.
    pub fn new(room: usize) -> Self {
        Self {
            room,
            streams: BTreeSet::new(),
        }
    }

    /// Adds a stream with the time at which it was created. Adding it again changes nothing.
    pub fn add(&mut self, created_at: T, stream_key: u64) {
        self.streams.insert((created_at, stream_key));
        if self.streams.len() > self.room {
            self.streams.pop_first();
        }
    }

    /// The keys of the streams that found room.
    pub fn keys(self) -> impl Iterator<Item = u64> {
        self.streams.into_iter().map(|(_, stream_key)| stream_key)
    }
}

/// The refusal for a caller whose session has expired, or never existed.
pub fn expired() -> Refusal {
    refused(
        RefusalCode::TokenExpired,
        "the session has ended: connect with a new token",
    )
}

fn refused(code: RefusalCode, message: impl Into<String>) -> Refusal {
    Refusal::new(code, message)
}

#[cfg(test)]
mod tests;
