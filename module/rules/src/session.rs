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
mod tests {
    use serde_json::json;
    use spacetime_sync_proto::contract::{PROTOCOL, SCHEMA_VERSION};

    use super::*;

    const NOW: u64 = 1_000_000;

    fn policy() -> Policy {
        Policy {
            issuer: "https://sync.example".to_owned(),
            audience: "openagents-sync".to_owned(),
            compatibility: Compatibility {
                min_client_build_id: "20260101T000000Z".to_owned(),
                ..Compatibility::default()
            },
        }
    }

    fn claims() -> Value {
        json!({
            "iss": "https://sync.example", "aud": "openagents-sync", "sub": "user:7/session:s1",
            "iat": NOW - 10, "nbf": NOW - 10, "exp": NOW + 290, "jti": "sync_1",
            "oa_user_id": "7", "oa_session_id": "s1", "oa_device_id": "d1",
            "oa_sync_scopes": ["sync.subscribe", "runtime.run_events"], "oa_sync_topics": [],
            "oa_sync_streams": ["user:7:*"], "oa_claims_version": "oa_sync_claims_v1",
            "oa_client_surface": "desktop", "oa_client_build_id": "20261101T000000Z",
            "oa_protocol_version": PROTOCOL, "oa_schema_version": SCHEMA_VERSION,
        })
    }

    fn judged(changes: &[(&str, Value)]) -> Result<Session, RefusalCode> {
        let mut claims = claims();
        for (field, value) in changes {
            claims[*field] = value.clone();
        }
        Claims::read(&claims.to_string())
            .and_then(|claims| admit(claims, &policy(), NOW, |session| session.as_str() == "gone"))
            .map_err(|refusal| refusal.code)
    }

    /// How a token of the bridge differs.
    fn service() -> [(&'static str, Value); 4] {
        [
            ("sub", json!("service:bridge")),
            ("oa_sync_scopes", json!(["sync.append"])),
            ("oa_sync_streams", json!([])),
            ("oa_client_build_id", json!("")),
        ]
    }

    #[test]
    fn a_good_token_opens_its_session() {
        let session = judged(&[]).unwrap();
        assert_eq!((session.session_id.as_str(), session.expires_at), ("s1", NOW + 290));
        assert!(may_see(
            &session.scopes,
            &StreamId::new("runtime.run.1.events").unwrap()
        ));
        assert!(!may_see(
            &session.scopes,
            &StreamId::new("runtime.worker.1.lifecycle").unwrap()
        ));
        assert!(!may_see(
            &[Scope::RunEvents],
            &StreamId::new("runtime.run.1.events").unwrap()
        ));
    }

    #[test]
    fn a_pattern_covers_streams_with_its_prefix_if_the_session_has_their_scope() {
        let streams = json!(["user:7:*", "runtime.*", "org:a:x"]);
        let session = judged(&[("oa_sync_streams", streams)]).unwrap();
        let covered = [
            "user:7:notes",
            "user:7:",
            "runtime.run.1.events",
            "runtime.worker.1.lifecycle",
            "org:a:x",
        ]
        .map(|name| session.covers(&StreamId::new(name).unwrap()));
        assert_eq!(covered, [true, false, true, false, false]);
    }

    #[test]
    fn an_older_token_brings_nothing_back() {
        let signed = |at: u64| ("oa_iat_us", json!((NOW - 10) * 1_000_000 + at));
        let newest = |expires_at| {
            let issued_at_us = (NOW - 10) * 1_000_000 + 5;
            Some(NewestToken {
                issued_at_us,
                expires_at,
            })
        };
        let renews = |at, newest| {
            let token = judged(&[signed(at)]).unwrap();
            token.renews(newest, NOW).map_err(|refusal| refusal.code)
        };
        assert_eq!(renews(4, None), Ok(true));
        assert_eq!(renews(6, newest(NOW + 1)), Ok(true));
        assert_eq!(renews(6, newest(NOW)), Ok(true));
        for older in [5, 4, 0] {
            assert_eq!(renews(older, newest(NOW + 1)), Ok(false));
            assert_eq!(renews(older, newest(NOW)), Err(RefusalCode::TokenExpired));
        }
    }

    #[test]
    fn of_several_bridges_the_token_that_lasts_longest_counts() {
        let token = judged(&service()).unwrap();
        let newest = |expires_at| {
            let issued_at_us = NOW * 1_000_000;
            Some(NewestToken {
                issued_at_us,
                expires_at,
            })
        };
        assert_eq!(token.renews(newest(NOW + 289), NOW), Ok(true));
        assert_eq!(token.renews(newest(NOW + 290), NOW), Ok(false));
        assert_eq!(token.renews(newest(NOW - 1), NOW), Ok(true));
    }

    #[test]
    fn the_newest_streams_stay_when_there_is_no_room_for_all() {
        let kept = |room, streams: &[(i64, u64)]| {
            let mut newest = Newest::new(room);
            for (created_at, stream_key) in streams {
                newest.add(*created_at, *stream_key);
            }
            newest.keys().collect::<Vec<_>>()
        };
        assert_eq!(kept(2, &[(3, 30), (1, 10), (2, 20)]), [20, 30]);
        // Two patterns may cover the same stream.
        assert_eq!(kept(2, &[(3, 30), (2, 20), (3, 30)]), [20, 30]);
        assert_eq!(kept(2, &[(1, 11), (1, 12), (1, 10)]), [11, 12]);
        assert_eq!(kept(0, &[(1, 10)]), [0; 0]);
    }

    #[test]
    fn the_bridge_has_a_session_without_streams_whatever_its_build() {
        assert_eq!(judged(&service()).unwrap().scopes, [Scope::Append]);
    }

    #[test]
    fn every_invalid_token_is_refused_with_its_code() {
        for (changes, code) in [
            (vec![("iss", json!("https://other.example"))], RefusalCode::InvalidToken),
            (vec![("iss", json!("https://sync.example/"))], RefusalCode::InvalidToken),
            (vec![("aud", json!("sessions"))], RefusalCode::InvalidToken),
            (
                vec![("oa_claims_version", json!("oa_sync_claims_v0"))],
                RefusalCode::InvalidToken,
            ),
            (vec![("jti", json!(""))], RefusalCode::MissingJti),
            (vec![("exp", json!("soon"))], RefusalCode::InvalidToken),
            (vec![("exp", json!(NOW))], RefusalCode::TokenExpired),
            (vec![("exp", json!(NOW - 30))], RefusalCode::TokenExpired),
            (vec![("exp", json!(NOW + 891))], RefusalCode::TokenTooOld),
            (vec![("iat", json!(NOW + 61))], RefusalCode::TokenNotYetValid),
            (vec![("nbf", json!(NOW + 61))], RefusalCode::TokenNotYetValid),
            (
                vec![("oa_iat_us", json!((NOW - 9) * 1_000_000))],
                RefusalCode::InvalidToken,
            ),
            (vec![("iat", json!(0))], RefusalCode::TokenTooOld),
            (vec![("sub", json!("user:8/session:s1"))], RefusalCode::InvalidToken),
            (vec![("sub", json!("service:bridge"))], RefusalCode::InvalidScope),
            (
                vec![
                    ("oa_session_id", json!("bridge")),
                    ("sub", json!("user:7/session:bridge")),
                ],
                RefusalCode::InvalidToken,
            ),
            (
                vec![
                    ("oa_user_id", json!("bridge")),
                    ("sub", json!("user:bridge/session:s1")),
                ],
                RefusalCode::InvalidToken,
            ),
            (
                vec![
                    ("oa_user_id", json!("u".repeat(113))),
                    ("sub", json!(format!("user:{}/session:s1", "u".repeat(113)))),
                ],
                RefusalCode::InvalidToken,
            ),
            (
                vec![("oa_sync_scopes", json!(["sync.append"]))],
                RefusalCode::InvalidScope,
            ),
            (vec![("oa_sync_streams", json!(["user:7*"]))], RefusalCode::InvalidToken),
            (
                vec![("oa_sync_streams", json!(vec!["a"; 257]))],
                RefusalCode::TooManyGrants,
            ),
            (
                vec![("oa_session_id", json!("gone")), ("sub", json!("user:7/session:gone"))],
                RefusalCode::TokenRevoked,
            ),
            (
                vec![("oa_client_build_id", json!("1.0"))],
                RefusalCode::InvalidClientBuild,
            ),
            (
                vec![("oa_protocol_version", json!("v0"))],
                RefusalCode::UnsupportedProtocolVersion,
            ),
            (
                vec![("oa_schema_version", json!(999))],
                RefusalCode::UnsupportedSchemaVersion,
            ),
            (
                vec![("oa_client_build_id", json!("20251231T000000Z"))],
                RefusalCode::UpgradeRequired,
            ),
            (
                vec![("oa_client_surface", json!("x".repeat(1 << 20)))],
                RefusalCode::InvalidToken,
            ),
        ] {
            assert_eq!(judged(&changes).err(), Some(code), "{changes:.80?}");
        }
        let mut without = claims();
        without.as_object_mut().unwrap().remove("iat");
        let refusal = admit(Claims(without), &policy(), NOW, |_| false).unwrap_err();
        assert_eq!(refusal.code, RefusalCode::MissingIat);
    }

    #[test]
    fn a_client_that_is_not_served_is_told_who_is() {
        let mut older = claims();
        older["oa_client_build_id"] = json!("20251231T000000Z");
        let denied = judge(Claims(older), &policy(), NOW, |_| false).unwrap_err();
        let wire = denied.to_wire();
        let said: Incompatible = serde_json::from_str(&wire).unwrap();
        assert_eq!((said.code, said.upgrade_required), (RefusalCode::UpgradeRequired, true));
        assert_eq!(said.min_client_build_id, "20260101T000000Z");
        // Whoever reads refusals alone reads the same one.
        assert_eq!(Refusal::from_wire(&wire), Some(denied.refusal()));
        let gone = judge(Claims(claims()), &policy(), NOW, |_| true).unwrap_err();
        let refusal = Refusal::from_wire(&gone.to_wire()).unwrap();
        assert_eq!(
            (refusal.code, Denied::Refused(refusal)),
            (RefusalCode::TokenRevoked, gone)
        );
    }

    #[test]
    fn a_token_that_spacetimedb_signed_anew_is_refused_as_such() {
        let mut anew = claims();
        anew["hex_identity"] = json!("c2000000");
        let mut listed = claims();
        listed["aud"] = json!(["openagents-sync"]);
        for claims in [anew, listed] {
            let read = Claims::read(&claims.to_string()).unwrap();
            let refusal = admit(read, &policy(), NOW, |_| false).unwrap_err();
            assert_eq!(
                (refusal.code, refusal.message.as_str()),
                (RefusalCode::InvalidToken, SIGNED_ANEW)
            );
        }
    }

    #[test]
    fn a_token_at_the_limits_is_accepted() {
        let named = [
            ("oa_user_id", json!("u".repeat(112))),
            ("sub", json!(format!("user:{}/session:s1", "u".repeat(112)))),
        ];
        assert!(judged(&named).is_ok());
        let longest = [("iat", json!(NOW)), ("exp", json!(NOW + TTL_SECONDS.end()))];
        assert!(judged(&longest).is_ok());
        let most_streams = json!(vec!["a"; limit::TOKEN_STREAMS]);
        assert!(judged(&[("oa_sync_streams", most_streams)]).is_ok());
        let padded = |bytes: usize| {
            let text = claims().to_string();
            Claims::read(&(" ".repeat(bytes - text.len()) + &text)).map_err(|refusal| refusal.code)
        };
        assert!(padded(limit::CLAIMS_BYTES).is_ok());
        assert_eq!(padded(limit::CLAIMS_BYTES + 1).err(), Some(RefusalCode::InvalidToken));
    }

    #[test]
    fn the_issuer_of_a_token_is_known_before_its_claims_are_checked() {
        let issuer = |text: &str| Claims::read(text).ok()?.issuer().map(str::to_owned);
        assert_eq!(issuer(&claims().to_string()).as_deref(), Some("https://sync.example"));
        for text in [
            "",
            "null",
            "[]",
            "{}",
            r#"{"iss":1}"#,
            r#"["iss"]"#,
            &" ".repeat(1 << 20),
        ] {
            assert_eq!(issuer(text), None, "{text:.20}");
        }
    }

    #[test]
    fn a_token_may_be_a_minute_early_but_never_late() {
        let fresh = [
            ("iat", json!(NOW + 60)),
            ("nbf", json!(NOW + 60)),
            ("exp", json!(NOW + 360)),
        ];
        assert!(judged(&fresh).is_ok());
        assert!(judged(&[("exp", json!(NOW + 1))]).is_ok());
    }
}
