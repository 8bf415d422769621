//! Makes a token: its claims, and the answer that describes them.

use rand::RngCore as _;
use spacetime_sync_proto::RefusalCode;
use spacetime_sync_proto::access::{CLAIMS_VERSION, ClientVersion, SyncClaims, TokenResponse};
use spacetime_sync_proto::contract::PROTOCOL;
use spacetime_sync_proto::{DatabasePin, Label, SealKey, limit};

use super::denial::Denial;
use super::jws::{Kind, claims_bytes};
use super::keys::SigningKey;
use super::policy::Granted;
use super::sessions::Session;

/// How many seconds before a token ends its client should ask for a new one.
const REFRESH_BEFORE: u64 = 30;
/// The shortest time for which a token is valid, however soon its session ends.
const LEAST_SECONDS: u64 = 60;

/// Who signs tokens, and for whom.
#[derive(Debug, Clone)]
pub struct Names {
    /// `iss`
    pub issuer: String,
    /// `aud`
    pub audience: String,
}

/// Everything that goes into a token.
#[derive(Debug)]
pub struct Order<'a> {
    /// Who asks.
    pub session: &'a Session,
    /// The device to which the session is bound.
    pub device_id: &'a Label,
    /// What the client says about itself. The caller has checked it.
    pub client: &'a ClientVersion,
    /// The kind of client, such as `desktop`.
    pub surface: &'a Label,
    /// What the token allows.
    pub granted: Granted,
    /// How long the request wants the token to last.
    pub ttl_seconds: u64,
}

/// Signs a token. The client accepts the seals of `seal_keys`, and connects to no other database than `pin`. `now_us` is in
/// microseconds since 1970.
pub fn issue(
    key: &SigningKey,
    names: &Names,
    order: Order<'_>,
    seal_keys: Vec<SealKey>,
    pin: Option<DatabasePin>,
    now_us: u64,
) -> Result<TokenResponse, Denial> {
    let Order {
        session,
        device_id,
        client,
        surface,
        granted,
        ttl_seconds,
    } = order;
    let now = now_us / 1_000_000;
    // A token may outlive its session, but by no more than the shortest time for which a token is valid.
    let left = session.expires_at.saturating_sub(now).max(LEAST_SECONDS);
    let ttl = ttl_seconds.min(left);
    let claims = SyncClaims {
        iss: names.issuer.clone(),
        aud: names.audience.clone(),
        sub: SyncClaims::subject(&session.user_id, &session.session_id),
        iat: now,
        oa_iat_us: Some(now_us),
        nbf: now,
        exp: now + ttl,
        jti: token_id(),
        oa_user_id: session.user_id.clone(),
        oa_org_id: session.org_id.clone(),
        oa_session_id: session.session_id.clone(),
        oa_device_id: device_id.clone(),
        oa_sync_scopes: granted.scopes,
        oa_sync_topics: granted.topics,
        oa_sync_streams: granted.streams,
        oa_claims_version: CLAIMS_VERSION.to_owned(),
        oa_client_surface: surface.clone(),
        oa_client_build_id: client.client_build_id.clone(),
        oa_protocol_version: client.protocol_version.clone(),
        oa_schema_version: client.schema_version,
        oa_oldest_schema_version: client.oldest_schema_version,
    };
    let token = sign(key, &claims)?;
    let refresh_after_in = ttl.saturating_sub(REFRESH_BEFORE).max(1);
    Ok(TokenResponse {
        token,
        token_type: "Bearer".to_owned(),
        transport: "spacetime_ws".to_owned(),
        protocol_version: PROTOCOL.to_owned(),
        expires_in: ttl,
        refresh_after_in,
        issued_at: now,
        refresh_after: now + refresh_after_in,
        expires_at: claims.exp,
        issuer: claims.iss,
        audience: claims.aud,
        subject: claims.sub,
        org_id: claims.oa_org_id,
        claims_version: claims.oa_claims_version,
        scopes: claims.oa_sync_scopes,
        granted_topics: claims.oa_sync_topics,
        granted_streams: claims.oa_sync_streams,
        kid: key.kid().to_owned(),
        token_id: claims.jti,
        session_id: claims.oa_session_id,
        device_id: claims.oa_device_id,
        seal_keys,
        pin,
    })
}

/// Signs claims, unless they are longer than readers of tokens accept.
fn sign(key: &SigningKey, claims: &SyncClaims) -> Result<String, Denial> {
    let token = key
        .sign(Kind::Sync, claims)
        .map_err(|_| Denial::unavailable("cannot sign the token"))?;
    if claims_bytes(token.expose()) > limit::CLAIMS_BYTES {
        return Err(Denial::new(
            RefusalCode::InvalidRequest,
            format!(
                "the names of the streams and topics take more than the {} bytes that a token may hold; ask for \
                 fewer, or use patterns",
                limit::CLAIMS_BYTES
            ),
        ));
    }
    Ok(token.expose().to_owned())
}

/// `sync_` and a random UUID.
pub(super) fn token_id() -> String {
    let mut bytes = [0; 16];
    rand::rng().fill_bytes(&mut bytes);
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex = hex::encode(bytes);
    let (a, b, c, d, e) = (&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]);
    format!("sync_{a}-{b}-{c}-{d}-{e}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jws::Jws;
    use crate::keys::tests::key;
    use spacetime_sync_proto::access::{Scope, StreamPattern};

    const NOW: u64 = 1_800_000_000;

    fn answer(ttl_seconds: u64, session_left: u64, streams: usize) -> Result<(TokenResponse, SyncClaims), Denial> {
        let label = |text: &str| Label::new(text).unwrap();
        let session = Session {
            user_id: label("7"),
            session_id: label("s1"),
            org_id: None,
            device_id: None,
            issued_at: NOW,
            expires_at: NOW + session_left,
        };
        let client = ClientVersion {
            client_build_id: "20260601T000000Z".to_owned(),
            protocol_version: PROTOCOL.to_owned(),
            schema_version: 1,
            oldest_schema_version: None,
            surface: "desktop".to_owned(),
        };
        let name = |number: usize| StreamPattern::new(&format!("{}.{number}", "x".repeat(240))).unwrap();
        let granted = Granted {
            scopes: vec![Scope::Subscribe],
            streams: (0..streams).map(name).collect(),
            topics: vec![],
        };
        let names = Names {
            issuer: "https://lane.example".to_owned(),
            audience: "openagents-sync".to_owned(),
        };
        let key = key(0);
        let order = Order {
            session: &session,
            device_id: &label("d1"),
            client: &client,
            surface: &label("desktop"),
            granted,
            ttl_seconds,
        };
        let identity = |digit: &str| digit.repeat(64).parse().unwrap();
        let pin = DatabasePin {
            database_identity: identity("c"),
            owner_identity: identity("d"),
        };
        let now_us = NOW * 1_000_000 + 7;
        let answer = issue(&key, &names, order, vec![key.seal_key()], Some(pin.clone()), now_us)?;
        assert_eq!(answer.pin, Some(pin));
        let jws = Jws::parse(&answer.token, Kind::Sync).unwrap();
        let claims = serde_json::from_str(jws.claims(&key.public()).unwrap().get()).unwrap();
        Ok((answer, claims))
    }

    #[test]
    fn an_answer_says_what_its_token_says() {
        let (answer, claims) = answer(300, 3_600, 1).unwrap();
        assert_eq!((claims.iat, claims.nbf, claims.exp), (NOW, NOW, NOW + 300));
        assert_eq!(claims.oa_iat_us, Some(NOW * 1_000_000 + 7));
        assert_eq!((answer.expires_in, answer.refresh_after_in), (300, 270));
        assert_eq!((answer.expires_at, answer.refresh_after), (NOW + 300, NOW + 270));
        assert_eq!(
            (answer.subject.as_str(), &claims.sub),
            ("user:7/session:s1", &answer.subject)
        );
        assert_eq!(
            (&answer.token_id, &answer.granted_streams),
            (&claims.jti, &claims.oa_sync_streams)
        );
        assert_eq!(claims.oa_claims_version, "oa_sync_claims_v1");
        assert!(!format!("{answer:?}").contains(&answer.token));
    }

    #[test]
    fn a_token_ends_with_its_session_but_lives_at_least_a_minute() {
        for (ttl, left, expected) in [(300, 120, 120), (300, 10, 60), (900, 900, 900), (60, 0, 60)] {
            assert_eq!(answer(ttl, left, 1).unwrap().0.expires_in, expected);
        }
    }

    #[test]
    fn claims_longer_than_a_reader_accepts_are_not_signed() {
        assert!(answer(300, 300, 60).is_ok());
        assert_eq!(answer(300, 300, 100).unwrap_err().code, RefusalCode::InvalidRequest);
    }

    #[test]
    fn every_token_has_an_id_of_its_own() {
        let id = token_id();
        assert_eq!(id.len(), 41);
        assert_eq!(&id[19..20], "4");
        assert_ne!(id, token_id());
    }
}
