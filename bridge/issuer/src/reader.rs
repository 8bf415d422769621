//! Decides who may read the log over HTTP: every holder of a sync token that the module would accept.

use std::time::Instant;

use spacetime_sync_authority::{Authority, BoundSession};
use spacetime_sync_doors::asker::Origin;
use spacetime_sync_proto::access::{Incompatible, Scope, SyncClaims};
use spacetime_sync_proto::{Label, Refusal, RefusalCode, StreamId};
use spacetime_sync_rules::session::{self, Claims, Policy, Session};

use super::Issuer;
use super::denial::Denial;
use super::jws::{Jws, Kind};
use super::keys::{Ring, now};

/// Why a request may not read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NoReader {
    /// The issuer refuses the credential, or what it asks for.
    Denied(Denial),
    /// The bridge does not serve this client.
    Incompatible(Box<Incompatible>),
}

impl NoReader {
    fn code(&self) -> RefusalCode {
        match self {
            Self::Denied(denial) => denial.code,
            Self::Incompatible(why) => why.code,
        }
    }
}

impl From<Denial> for NoReader {
    fn from(denial: Denial) -> Self {
        Self::Denied(denial)
    }
}

/// The holder of a valid sync token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reader(Session);

impl Reader {
    /// Its session.
    pub fn session(&self) -> &Session {
        &self.0
    }

    /// Whether the token allows reading a stream.
    pub fn may_read(&self, stream_id: &StreamId) -> Result<(), Denial> {
        let Session { scopes, streams, .. } = &self.0;
        let needed = [Some(Scope::Subscribe), Scope::of_stream(stream_id)];
        if let Some(lacking) = needed.into_iter().flatten().find(|scope| !scopes.contains(scope)) {
            let message = format!("the session has no scope {lacking}");
            return Err(Denial::new(RefusalCode::MissingScope, message));
        }
        if streams.iter().any(|pattern| pattern.matches(stream_id)) {
            return Ok(());
        }
        // The answer does not depend on whether the stream exists.
        Err(Denial::new(
            RefusalCode::ForbiddenStream,
            "no grant for this stream: ask for a token that names it",
        ))
    }
}

impl Issuer {
    /// Verifies the value of the header `Authorization`. [`lasts`](Issuer::lasts) says whether the session still
    /// exists.
    pub fn reader(&self, authorization: Option<&[u8]>, origin: &Origin) -> Result<Reader, NoReader> {
        let counted = |refused| match refused {
            NoReader::Denied(denial) => NoReader::Denied(self.counted(denial)),
            NoReader::Incompatible(_) => refused,
        };
        let policy = Policy {
            issuer: self.names.issuer.clone(),
            audience: self.names.audience.clone(),
            compatibility: self.compatibility.clone(),
        };
        let (token, check) = self
            .begin(authorization, origin)
            .map_err(|denial| counted(denial.into()))?;
        let verified = verify(token, &self.keys.ring(), &policy, now());
        let (proven, code) = match &verified {
            Ok(reader) => (Some(&reader.0.session_id), None),
            Err((refused, session_id)) => (session_id.as_ref(), Some(refused.code())),
        };
        self.credentials
            .settle(check, proven, code, Instant::now())
            .map_err(NoReader::from)
            .and(verified.map_err(|(refused, _)| refused))
            .map_err(counted)
    }

    /// Whether a reader's session still exists. Asks the authority each time, so that a revocation takes effect at
    /// once.
    pub async fn lasts(&self, reader: &Reader, authority: &Authority) -> Result<(), Denial> {
        let known = self.ask(authority.session(&reader.0.session_id)).await?;
        known
            .map_or(Ok(()), |known| lasts(&known, &reader.0))
            .map_err(|denial| self.counted(denial))
    }
}

/// Makes the checks that SpacetimeDB, and then the module, make when somebody connects. A refusal names the session of the
/// token, if this bridge has signed the token for this lane.
fn verify(token: &str, ring: &Ring, policy: &Policy, now: u64) -> Result<Reader, (NoReader, Option<Label>)> {
    let nobodys = |denial: Denial| (NoReader::from(denial), None);
    let jws = Jws::parse(token.trim(), Kind::Sync).map_err(|malformed| nobodys(malformed.into()))?;
    let key = ring.published(now).find(|key| Some(key.kid()) == jws.kid.as_deref());
    let claims = key.and_then(|key| jws.claims(&key.public()).ok());
    let claims = claims.ok_or_else(|| nobodys(Denial::invalid_token("the token is not signed by this bridge")))?;
    let claims = claims.get();
    Claims::read(claims)
        .and_then(|claims| session::admit(claims, policy, now, |_| false))
        .map(Reader)
        .map_err(|refusal| (refused(refusal, claims, policy), named(claims, policy)))
}

/// The session that claims name, if they are of this lane's issuer and audience.
fn named(claims: &str, policy: &Policy) -> Option<Label> {
    let claims: serde_json::Value = serde_json::from_str(claims).ok()?;
    let says = |field: &str| claims.get(field)?.as_str();
    if says("iss")? != policy.issuer || says("aud")? != policy.audience {
        return None;
    }
    Label::new(says("oa_session_id")?).ok()
}

/// Tells an unsupported client which clients the bridge supports.
fn refused(refusal: Refusal, claims: &str, policy: &Policy) -> NoReader {
    let client = serde_json::from_str(claims).map(|claims: SyncClaims| claims.client());
    match client.map(|client| policy.compatibility.check(&client)) {
        Ok(Err(incompatible)) if incompatible.code == refusal.code => NoReader::Incompatible(incompatible),
        Ok(_) | Err(_) => Denial::new(refusal.code, refusal.message).into(),
    }
}

fn lasts(known: &BoundSession, session: &Session) -> Result<(), Denial> {
    if known.revoked {
        return Err(Denial::new(RefusalCode::TokenRevoked, "the session was revoked"));
    }
    match &known.bound_to {
        Some((user_id, device_id)) if *user_id != session.user_id || *device_id != session.device_id => {
            Err(super::another_device())
        }
        Some(_) | None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::{Value, json};
    use spacetime_sync_proto::access::Compatibility;
    use spacetime_sync_proto::contract::{PROTOCOL, SCHEMA_VERSION};
    use spacetime_sync_proto::{Secret, seal::SealKey};

    use super::*;
    use crate::keys::tests::key;
    use crate::keys::{PUBLISHED_AFTER_SECONDS, SigningKey};

    const NOW: u64 = 1_000_000;

    fn policy() -> Policy {
        Policy {
            issuer: "https://lane.example".to_owned(),
            audience: "openagents-sync".to_owned(),
            compatibility: Compatibility::default(),
        }
    }

    fn claims() -> Value {
        json!({
            "iss": "https://lane.example", "aud": "openagents-sync", "sub": "user:7/session:s1",
            "iat": NOW - 10, "nbf": NOW - 10, "exp": NOW + 290, "jti": "sync_1",
            "oa_user_id": "7", "oa_session_id": "s1", "oa_device_id": "d1",
            "oa_sync_scopes": ["sync.subscribe"], "oa_sync_topics": [],
            "oa_sync_streams": ["user:7:*", "notes", "runtime.run.1.events"], "oa_claims_version": "oa_sync_claims_v1",
            "oa_client_surface": "desktop", "oa_client_build_id": "20261101T000000Z",
            "oa_protocol_version": PROTOCOL, "oa_schema_version": SCHEMA_VERSION,
        })
    }

    fn code(result: Result<Reader, (NoReader, Option<Label>)>) -> Option<RefusalCode> {
        result.err().map(|(refused, _)| refused.code())
    }

    #[test]
    fn a_token_of_every_published_key_is_accepted_and_of_no_other() {
        let (old, new, foreign) = (key(0), key(NOW - 100), key(0));
        let ring = Ring::new(vec![old.clone(), new.clone()]);
        let read = |key: &crate::keys::SigningKey, now| {
            code(verify(
                key.sign(Kind::Sync, &claims()).unwrap().expose(),
                &ring,
                &policy(),
                now,
            ))
        };
        assert_eq!(
            read(&old, NOW),
            None,
            "the key no longer signs, but its tokens are still valid"
        );
        assert_eq!(read(&new, NOW), None);
        assert_eq!(read(&foreign, NOW), Some(RefusalCode::InvalidToken));
        let later = NOW + PUBLISHED_AFTER_SECONDS;
        assert_eq!(
            read(&old, later),
            Some(RefusalCode::InvalidToken),
            "the key is no longer published"
        );
    }

    #[test]
    fn a_token_that_the_module_would_refuse_does_not_read() {
        let key = key(0);
        let ring = Ring::new(vec![key.clone()]);
        for (field, value, expected) in [
            ("iss", json!("https://other.example"), RefusalCode::InvalidToken),
            ("aud", json!("sessions"), RefusalCode::InvalidToken),
            ("exp", json!(NOW), RefusalCode::TokenExpired),
            ("nbf", json!(NOW + 61), RefusalCode::TokenNotYetValid),
            ("oa_schema_version", json!(999), RefusalCode::UnsupportedSchemaVersion),
            ("oa_client_build_id", json!("1"), RefusalCode::InvalidClientBuild),
            ("jti", json!(""), RefusalCode::MissingJti),
        ] {
            let mut claims = claims();
            claims[field] = value;
            let token = key.sign(Kind::Sync, &claims).unwrap();
            let (refused, whose) = verify(token.expose(), &ring, &policy(), NOW).unwrap_err();
            assert_eq!(refused.code(), expected, "{field}");
            let foreign = ["iss", "aud"].contains(&field);
            assert_eq!(whose.is_none(), foreign, "{field}");
        }
        let service = json!({ "iss": "https://lane.example", "sub": "service:bridge" });
        let token = key.sign(Kind::Sync, &service).unwrap();
        assert!(code(verify(token.expose(), &ring, &policy(), NOW)).is_some());
    }

    #[derive(serde::Deserialize)]
    struct Vectors {
        private_key: Secret,
        key: SealKey,
        policy: VectorPolicy,
        tokens: Vec<Vector>,
    }

    #[derive(serde::Deserialize)]
    struct VectorPolicy {
        issuer: String,
        audience: String,
        now: u64,
    }

    #[derive(serde::Deserialize)]
    struct Vector {
        name: String,
        token: String,
        claims: Option<SyncClaims>,
        refused: Option<RefusalCode>,
    }

    #[test]
    fn tokens_of_the_contracts_vectors_are_taken_or_refused() {
        let vectors: Vectors = serde_json::from_str(include_str!("../../../proto/vectors/tokens.json")).unwrap();
        let key = SigningKey::from_pem(&vectors.private_key, 0, "vectors").unwrap();
        assert_eq!(key.seal_key(), vectors.key);
        let ring = Ring::new(vec![Arc::new(key)]);
        let policy = Policy {
            issuer: vectors.policy.issuer,
            audience: vectors.policy.audience,
            compatibility: Compatibility {
                min_schema_version: 0,
                max_schema_version: u32::MAX,
                ..Compatibility::default()
            },
        };
        assert!(vectors.tokens.len() >= 10);
        for Vector {
            name,
            token,
            claims,
            refused,
        } in vectors.tokens
        {
            let read = verify(&token, &ring, &policy, vectors.policy.now);
            assert_eq!(read.is_ok(), claims.is_some(), "{name}");
            assert_eq!(code(read), refused, "{name}");
            if let Some(claims) = claims {
                // What it says, field by field.
                let jws = Jws::parse(&token, Kind::Sync).unwrap();
                let signed = jws.claims(&ring.published(0).next().unwrap().public()).unwrap();
                assert_eq!(
                    serde_json::from_str::<SyncClaims>(signed.get()).unwrap(),
                    claims,
                    "{name}"
                );
            }
        }
    }

    #[test]
    fn a_reader_reads_what_its_token_names_and_its_scopes_allow() {
        let key = key(0);
        let ring = Ring::new(vec![key.clone()]);
        let token = key.sign(Kind::Sync, &claims()).unwrap();
        let reader = verify(token.expose(), &ring, &policy(), NOW).unwrap();
        for (stream, expected) in [
            ("notes", None),
            ("user:7:a/b", None),
            ("user:70:a", Some(RefusalCode::ForbiddenStream)),
            ("notes2", Some(RefusalCode::ForbiddenStream)),
            ("runtime.run.1.events", Some(RefusalCode::MissingScope)),
        ] {
            let may = reader.may_read(&StreamId::new(stream).unwrap());
            assert_eq!(may.err().map(|denial| denial.code), expected, "{stream}");
        }
        let label = |text: &str| Label::new(text).unwrap();
        for (bound_to, revoked, good) in [
            (Some(("7", "d1")), false, true),
            (None, false, true),
            (Some(("7", "d2")), false, false),
            (Some(("8", "d1")), false, false),
            (Some(("7", "d1")), true, false),
            (None, true, false),
        ] {
            let bound_to = bound_to.map(|(user, device)| (label(user), label(device)));
            let known = BoundSession { bound_to, revoked };
            assert_eq!(lasts(&known, reader.session()).is_ok(), good, "{known:?}");
        }
    }
}
