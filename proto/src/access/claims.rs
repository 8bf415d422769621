//! The claims of a sync token.

use serde::{Deserialize, Serialize};

use super::{ClientVersion, Scope, StreamPattern};
use crate::id::Label;
use crate::limit;

/// `aud` of every sync token, unless the operator configures another.
pub const AUDIENCE: &str = "openagents-sync";
/// `typ` in the header of every sync token (RFC 8725, 3.11). SpacetimeDB does not look at it, and the module does not see
/// it; bridge and gate accept no other.
pub const TOKEN_TYP: &str = "oa-sync+jwt";
/// Kind and version of these claims.
pub const CLAIMS_VERSION: &str = "oa_sync_claims_v1";
/// `sub` of the bridge's own token. No user's `sub` equals it, because those begin with `user:`.
pub const SERVICE_SUBJECT: &str = "service:bridge";
/// The name of the user, the session, the device and the surface in the bridge's own token. No user and no session of a
/// user may have it: the module finds a session by its name, so such a session could keep the bridge out, and revoking it
/// would revoke the bridge.
pub const SERVICE_NAME: &str = "bridge";

/// What a sync token says, field by field as it is signed. A token is invalid if a field is missing or has another
/// type.
///
/// `sub` names the session, not only the user: SpacetimeDB derives an identity from `iss` and `sub`, grants and filters
/// go by identity, and each session of a user has its own rights and its own end (docs/adr/0008).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncClaims {
    /// The bridge that signed it.
    pub iss: String,
    /// See [`AUDIENCE`].
    pub aud: String,
    /// See [`SyncClaims::subject`] and [`SERVICE_SUBJECT`].
    pub sub: String,
    /// When it was signed, in Unix seconds.
    pub iat: u64,
    /// The same in microseconds, so that a session's tokens have an order. Issuers before schema version 5 do not say it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oa_iat_us: Option<u64>,
    /// From when it is valid, in Unix seconds.
    pub nbf: u64,
    /// When it expires, in Unix seconds.
    pub exp: u64,
    /// `sync_<uuid>`
    pub jti: String,
    /// The user, as the session credential names it.
    pub oa_user_id: Label,
    /// The organisation, if the session belongs to one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oa_org_id: Option<Label>,
    /// The session.
    pub oa_session_id: Label,
    /// The device that the session is bound to.
    pub oa_device_id: Label,
    /// What the session may do. A scope that this release does not know is left out: it gives no right here.
    #[serde(deserialize_with = "crate::known::known")]
    pub oa_sync_scopes: Vec<Scope>,
    /// The topics that the client asked for and got.
    pub oa_sync_topics: Vec<String>,
    /// The streams that the session may see, including those of the topics.
    pub oa_sync_streams: Vec<StreamPattern>,
    /// See [`CLAIMS_VERSION`].
    pub oa_claims_version: String,
    /// The kind of client, e.g. `desktop`.
    pub oa_client_surface: Label,
    /// The client's build, `YYYYMMDDTHHMMSSZ`.
    pub oa_client_build_id: String,
    /// The protocol version of the client.
    pub oa_protocol_version: String,
    /// The schema version that the client was built with.
    pub oa_schema_version: u32,
    /// The oldest schema version that the client works with, if that is another one. Issuers before schema version 11 do
    /// not say it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oa_oldest_schema_version: Option<u32>,
}

impl SyncClaims {
    /// The client that the token was issued to.
    pub fn client(&self) -> ClientVersion {
        ClientVersion {
            client_build_id: self.oa_client_build_id.clone(),
            protocol_version: self.oa_protocol_version.clone(),
            schema_version: self.oa_schema_version,
            oldest_schema_version: self.oa_oldest_schema_version,
            surface: self.oa_client_surface.as_str().to_owned(),
        }
    }

    /// When the token was signed, in Unix microseconds. `None` if its two times contradict each other.
    pub fn issued_at_us(&self) -> Option<u64> {
        let second = self.iat.checked_mul(1_000_000)?;
        let at = self.oa_iat_us.unwrap_or(second);
        (second..=second.saturating_add(999_999)).contains(&at).then_some(at)
    }

    /// `sub` of a session's tokens.
    pub fn subject(user_id: &Label, session_id: &Label) -> String {
        format!("user:{user_id}/session:{session_id}")
    }

    /// Whether a session of a user may have these names.
    pub fn check_names(user_id: &Label, session_id: &Label) -> Result<(), UnusableName> {
        for (what, name) in [("user", user_id), ("session", session_id)] {
            if name.as_str() == SERVICE_NAME {
                return Err(UnusableName::Reserved { what });
            }
        }
        let excess = Self::subject(user_id, session_id)
            .len()
            .saturating_sub(limit::CLAIMED_NAME_BYTES);
        if excess > 0 {
            let found = user_id.as_str().len() + session_id.as_str().len();
            let most = found - excess;
            return Err(UnusableName::TooLong { most, found });
        }
        Ok(())
    }

    /// Whether any user's session may have this name.
    pub fn check_session_name(session_id: &Label) -> Result<(), UnusableName> {
        let shortest = Label::new("u").expect("one letter is a name");
        Self::check_names(&shortest, session_id)
    }
}

/// Why names cannot be those of a session.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnusableName {
    /// The name is the bridge's.
    #[error("{what}: the name {SERVICE_NAME} is reserved for the bridge itself; give the {what} another one")]
    Reserved {
        /// What has the name.
        what: &'static str,
    },
    /// Both names together do not fit into a subject.
    #[error(
        "user and session: expected names of at most {most} bytes together, found {found}: SpacetimeDB accepts no longer \
         subject"
    )]
    TooLong {
        /// The most that both may have together.
        most: usize,
        /// What they have.
        found: usize,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn claims() -> Value {
        json!({
            "iss": "https://sync.example", "aud": "openagents-sync", "sub": "user:7/session:s1",
            "iat": 100, "oa_iat_us": 100_000_007, "nbf": 100, "exp": 400, "jti": "sync_1",
            "oa_user_id": "7", "oa_org_id": "acme", "oa_session_id": "s1", "oa_device_id": "d1",
            "oa_sync_scopes": ["sync.subscribe"], "oa_sync_topics": ["run:42:events"],
            "oa_sync_streams": ["runtime.run.42.events", "user:7:*"], "oa_claims_version": "oa_sync_claims_v1",
            "oa_client_surface": "desktop", "oa_client_build_id": "20261101T000000Z",
            "oa_protocol_version": "spacetime.sync.v1", "oa_schema_version": 12, "oa_oldest_schema_version": 11,
        })
    }

    #[test]
    fn claims_cross_the_wire_as_they_are_named_upstream() {
        let read: SyncClaims = serde_json::from_value(claims()).unwrap();
        assert_eq!(read.sub, SyncClaims::subject(&read.oa_user_id, &read.oa_session_id));
        assert_eq!(serde_json::to_value(&read).unwrap(), claims());
        assert_eq!(
            (read.client().contract().oldest, read.client().contract().newest),
            (11, 12)
        );
    }

    #[test]
    fn what_a_newer_issuer_adds_to_a_token_is_left_out() {
        let mut newer = claims();
        newer["oa_sync_scopes"] = json!(["sync.subscribe", "sync.everything"]);
        newer["oa_later"] = json!({ "more": [1] });
        let read: SyncClaims = serde_json::from_value(newer).unwrap();
        assert_eq!(serde_json::to_value(&read).unwrap(), claims());
    }

    #[test]
    fn the_bridges_name_and_names_that_no_subject_holds_are_no_sessions() {
        let named = |user: &str, session: &str| {
            SyncClaims::check_names(&Label::new(user).unwrap(), &Label::new(session).unwrap())
        };
        let (long, longer) = ("s".repeat(113), "s".repeat(114));
        assert_eq!(
            SyncClaims::subject(&Label::new("7").unwrap(), &Label::new(&long).unwrap()).len(),
            limit::CLAIMED_NAME_BYTES
        );
        for (user, session, expected) in [
            ("7", "s1", Ok(())),
            ("bridges", "Bridge", Ok(())),
            ("7", &long, Ok(())),
            (&long, "7", Ok(())),
            ("7", &longer, Err(UnusableName::TooLong { most: 114, found: 115 })),
            (&longer, "7", Err(UnusableName::TooLong { most: 114, found: 115 })),
            ("bridge", "s1", Err(UnusableName::Reserved { what: "user" })),
            ("7", "bridge", Err(UnusableName::Reserved { what: "session" })),
        ] {
            assert_eq!(named(user, session), expected, "{user} {session}");
        }
        let session = |name: &str| SyncClaims::check_session_name(&Label::new(name).unwrap()).is_ok();
        assert_eq!([session("s1"), session(&long)], [true, true]);
        assert_eq!([session("bridge"), session(&longer)], [false, false]);
    }

    #[test]
    fn a_token_is_signed_within_its_second() {
        let mut read: SyncClaims = serde_json::from_value(claims()).unwrap();
        for (at, expected) in [
            (None, Some(100_000_000)),
            (Some(100_000_000), Some(100_000_000)),
            (Some(100_999_999), Some(100_999_999)),
            (Some(99_999_999), None),
            (Some(101_000_000), None),
        ] {
            read.oa_iat_us = at;
            assert_eq!(read.issued_at_us(), expected, "{at:?}");
        }
        read.iat = u64::MAX;
        assert_eq!(read.issued_at_us(), None);
    }

    #[test]
    fn claims_with_a_missing_or_mistyped_field_are_refused() {
        for field in claims().as_object().unwrap().keys() {
            if !["oa_org_id", "oa_iat_us", "oa_oldest_schema_version"].contains(&field.as_str()) {
                let mut without = claims();
                without.as_object_mut().unwrap().remove(field);
                assert!(serde_json::from_value::<SyncClaims>(without).is_err(), "{field}");
            }
            for wrong in [json!({}), json!(-1), json!(true), json!(1.5), json!([1])] {
                let mut mistyped = claims();
                mistyped[field] = wrong.clone();
                assert!(
                    serde_json::from_value::<SyncClaims>(mistyped).is_err(),
                    "{field}: {wrong}"
                );
            }
        }
        for (field, wrong) in [("exp", json!("400")), ("oa_sync_streams", json!(["*"]))] {
            let mut mistyped = claims();
            mistyped[field] = wrong;
            assert!(serde_json::from_value::<SyncClaims>(mistyped).is_err(), "{field}");
        }
    }
}
